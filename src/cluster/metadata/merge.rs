//! Merges a broker's answer into the next snapshot. Pure.
//!
//! Rules: KIP-320 (a leader of an older epoch never replaces a newer one), KIP-516 (a topic that was deleted and made
//! again has another id, and its epochs start again). What cannot be (negative ids, ports, numbers twice) is passed over.

use std::sync::Arc;

use super::{Broker, Metadata, Partition, Topic, TopicId, are_two_clusters};
use crate::{
    config::settings::Address,
    error::ErrorCode,
    pattern::Pattern,
    sorted::{Map, Set},
    wire,
};

/// No cluster has more brokers; further ones in an answer are ignored.
pub(super) const MOST_BROKERS: usize = 10_000;

/// No topic has more partitions. One that is said to have more is not used at all: a client keeps something for each
/// partition, and a smaller number would send keys elsewhere.
pub(super) const MOST_PARTITIONS: usize = 40_000;

/// Ids that a topic of one name has had. Ids have no order. But one that was replaced does not come back, so a broker
/// that names it lags behind, unless all brokers name it for long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Former {
    /// The last one, also while the topic is not there.
    last: TopicId,
    /// Those before it, oldest first.
    pub(super) replaced: Vec<TopicId>,
}

impl Former {
    /// Whether a broker that names this id lags behind.
    fn is_replaced(&self, id: &TopicId) -> bool {
        self.replaced.contains(id)
    }

    /// Adds the id that brokers name now.
    fn followed_by(mut self, id: TopicId) -> Self {
        if id != TopicId::default() && id != self.last {
            self.replaced.retain(|replaced| *replaced != id);
            if self.last != TopicId::default() {
                self.replaced.push(self.last);
            }
            if self.replaced.len() > MOST_FORMER {
                self.replaced.remove(0);
            }
            self.last = id;
        }
        self
    }
}

/// How many earlier ids are remembered: no broker lags behind by more lives of a topic.
pub(super) const MOST_FORMER: usize = 16;

/// No broker lags behind for more answers in a row than this. If as many answers in a row name only a replaced id, that
/// id is the right one: the client had first heard of the topic from a broker that lagged behind. Likewise, a leader
/// epoch that no broker names any more was never true, or is of a log that was lost.
pub(super) const MOST_REFUSED: u32 = 20;

/// What Redpanda's brokers say in place of the cluster's id until there is one: it is not another cluster that has one later.
const UNSETTLED: &str = "redpanda.initializing";

impl Metadata {
    /// The snapshot after an answer about the topics `asked`. Topics that are not to be kept are forgotten.
    pub(crate) fn merge(
        &self,
        answer: wire::MetadataResponse,
        asked: &[Arc<str>],
        keep: impl Fn(&str) -> bool,
    ) -> Self {
        let version = self.version + 1;
        let (mut brokers, mut misplaced) = (Map::new(), Map::new());
        for broker in answer.brokers.into_iter().take(MOST_BROKERS) {
            let Some(address) = address(broker.node_id, &broker.host, broker.port) else {
                let host: String = broker.host.chars().take(SHOWN_OF_A_HOST).collect();
                misplaced.insert(broker.node_id, format!("{host:?} port {}", broker.port));
                continue;
            };
            let rack = broker.rack.map(|rack| rack.to_string());
            // If a broker is listed twice the first entry counts.
            brokers.entry(broker.node_id).or_insert(Broker { address, rack });
        }
        let cluster_id = answer.cluster_id.map(|id| id.to_string()).filter(|id| id != UNSETTLED);
        // If the address leads to another cluster now, its topics have nothing to do with earlier ones of the same name.
        let is_another = are_two_clusters(self.cluster_id.as_deref(), cluster_id.as_deref());
        // Topics that were not asked about stay as they were.
        let asked: Set<&Arc<str>> = asked.iter().collect();
        let kept = self.topics.iter().filter(|(name, _)| !asked.contains(*name) && keep(name));
        let kept = kept.map(|(name, topic)| (Arc::clone(name), topic.clone()));
        let told = answer.topics.into_iter().filter_map(|topic| {
            let name = topic.name.as_ref().map(|name| Arc::<str>::from(name.as_str()))?;
            keep(&name).then(|| {
                let known = self.topics.get(&name).filter(|_| !is_another);
                let merged = merge_topic(version, known, topic);
                (name, merged)
            })
        });
        let topics: Map<_, _> = kept.chain(told).collect();
        let names = topics.iter().filter(|(_, topic)| topic.id != TopicId::default());
        Self {
            version,
            answers: self.answers,
            names: Arc::new(names.map(|(name, topic)| (topic.id, Arc::clone(name))).collect()),
            cluster_id,
            controller: (answer.controller_id >= 0).then_some(answer.controller_id),
            brokers,
            misplaced,
            topics,
            matched: self.matched.clone(),
        }
    }

    /// The snapshot after an answer about all topics, of which those of the pattern are kept, and those that are to be kept
    /// anyway. One that is not there any more is known to be gone, for a time.
    pub(crate) fn merge_all(
        &self,
        answer: wire::MetadataResponse,
        asked: &[Arc<str>],
        pattern: &Arc<Pattern>,
        keep: impl Fn(&str) -> bool,
    ) -> Self {
        let known: Vec<_> = self.topics.keys().cloned().collect();
        // All topics that exist, whether they are kept or not.
        let listed: Set<Arc<str>> =
            answer.topics.iter().filter_map(|topic| Some(Arc::from(topic.name.as_ref()?.as_str()))).collect();
        let mut new = self.merge(answer, &known, |name| keep(name) || pattern.takes(name, false));
        let version = new.version;
        let gone = |told_in| Topic {
            told_in,
            error: Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
            ..Topic::default()
        };
        for (name, topic) in self.topics.iter().filter(|(name, _)| !listed.contains(*name)) {
            let former = &topic.former;
            let was_gone = topic.error == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
            let told_in = if was_gone { topic.told_in } else { new.version };
            if new.version - told_in < REMEMBERED {
                let gone = || Topic { former: former.clone(), gone: topic.of_last_id(), ..gone(told_in) };
                new.topics.entry(Arc::clone(name)).or_insert_with(gone);
            }
        }
        for name in asked {
            new.topics.entry(Arc::clone(name)).or_insert_with(|| gone(version));
        }
        new.matched = Some((Arc::clone(pattern), version));
        new
    }
}

/// For how many answers a deleted topic of a pattern is known to be gone: what was done of it is not waited for.
pub(super) const REMEMBERED: u64 = 100;

/// A broker's address as it was told; `None` if there can be no such broker. Negative ids are ours, of the bootstrap
/// addresses.
pub(in crate::cluster) fn address(id: i32, host: &str, port: i32) -> Option<Address> {
    // A URL has brackets around an IPv6 address, which resolvers do not take.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match u16::try_from(port) {
        Ok(port) if id >= 0 && port > 0 && is_host(host) => Some(Address { host: host.to_owned(), port }),
        _ => {
            let host: String = host.chars().take(SHOWN_OF_A_HOST).collect();
            tracing::debug!(id, host, port, "there can be no such broker; it is passed over");
            None
        }
    }
}

/// What an error or a log repeats of a host that cannot be.
const SHOWN_OF_A_HOST: usize = 60;

/// No name in DNS is longer than 253 bytes, and none has such characters.
fn is_host(host: &str) -> bool {
    (1..=255).contains(&host.len()) && !host.chars().any(|c| c.is_control() || c.is_whitespace())
}

impl Topic {
    /// What is known of the topic's partitions, present or gone, to be kept while the topic is not there. Nothing if the
    /// topic has no id, since only by its id it could be recognized when it comes back.
    fn of_last_id(&self) -> Vec<Partition> {
        match (self.former.last == TopicId::default(), self.partitions.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => self.gone.clone(),
            (false, false) => self.partitions.clone(),
        }
    }
}

fn merge_topic(
    version: u64,
    known: Option<&Topic>,
    answer: wire::metadata_response::MetadataResponseTopic,
) -> Topic {
    let (id, is_internal) = (answer.topic_id.0, answer.is_internal);
    let lags = |known: &&Topic| known.former.is_replaced(&id) && known.refused < MOST_REFUSED;
    if let Some(known) = known.filter(lags) {
        return Topic { told_in: version, refused: known.refused + 1, ..known.clone() };
    }
    let refused = known.map_or(0, |known| known.refused);
    let former = known.map(|known| known.former.clone()).unwrap_or_default().followed_by(id);
    let mut error = (answer.error_code != 0).then_some(ErrorCode(answer.error_code));
    // KIP-516: epochs compare only within one life of the topic.
    let of_this_life =
        |known: &Topic| known.id == id || (id != TopicId::default() && known.former.last == id);
    let gone = match known {
        Some(known)
            if error.is_some() && answer.partitions.is_empty() && known.former.last == former.last =>
        {
            known.of_last_id()
        }
        _ => Vec::new(),
    };
    let known = known.filter(|known| of_this_life(known)).map_or(&[][..], |known| {
        // Without an id nobody knows whether it is the topic that was there before.
        match known.partitions.is_empty() && id != TopicId::default() {
            true => known.gone.as_slice(),
            false => known.partitions.as_slice(),
        }
    });
    let mut listed = answer.partitions;
    if listed.len() > MOST_PARTITIONS {
        tracing::debug!(
            listed = listed.len(),
            "a topic is said to have more partitions than any; it is not used"
        );
        error = Some(ErrorCode::INVALID_PARTITIONS);
        listed = Vec::new();
    }
    let known = if refused < MOST_REFUSED { known } else { &[] };
    let (partitions, lags) = merge_partitions(known, listed);
    let refused = if lags { refused + 1 } else { 0 };
    Topic { id, refused, former, told_in: version, error, is_internal, partitions, gone }
}

/// The partitions that an answer lists, or what is `known` of them from a newer leader (KIP-320). True if the broker lags
/// behind in any of them. There are no more than the answer lists: it grows by no number that is not checked.
fn merge_partitions(
    known: &[Partition],
    answer: Vec<wire::metadata_response::MetadataResponsePartition>,
) -> (Vec<Partition>, bool) {
    let mut lags = false;
    let listed = answer.len();
    let mut partitions: Vec<Option<Partition>> = Vec::new();
    partitions.resize_with(listed, || None);
    for partition in answer {
        let Some(index) = usize::try_from(partition.partition_index).ok().filter(|index| *index < listed)
        else {
            continue;
        };
        let newer = known
            .get(index)
            .filter(|known| partition.leader_epoch >= 0 && known.leader_epoch > partition.leader_epoch);
        lags |= newer.is_some();
        // If a partition is listed twice the first entry counts.
        partitions[index].get_or_insert_with(|| match newer {
            // KIP-320: a broker that lags behind must not lead us back to an old leader.
            Some(newer) => newer.clone(),
            None => Partition {
                leader: (partition.leader_id >= 0).then_some(partition.leader_id),
                leader_epoch: partition.leader_epoch,
                replicas: partition.replica_nodes,
                in_sync_replicas: partition.isr_nodes,
            },
        });
    }
    while partitions.pop_if(|last| last.is_none()).is_some() {}
    // In the same memory.
    let partitions = partitions.into_iter().map(|known| known.unwrap_or(Partition::UNKNOWN)).collect();
    (partitions, lags)
}
