//! The cluster as one immutable snapshot: brokers, topics, leaders. Pure; replaced whole, never edited in place.
//!
//! Rules: KIP-320 (a leader of an older epoch never replaces a newer one), KIP-516 (a topic that was deleted and made
//! again has another id, and its epochs start again). What cannot be (negative ids, ports, numbers twice) is passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::refresh::Found;
pub(crate) use crate::error::code::UNKNOWN_TOPIC_OR_PARTITION;
use crate::{
    config::settings::Address,
    error::{
        Error, ErrorCode, ErrorKind,
        code::{INVALID_PARTITIONS, LEADER_NOT_AVAILABLE},
    },
    pattern::Pattern,
    wire,
};

/// What a client knows of the cluster at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    /// Names of topics by their id (KIP-516).
    names: Arc<BTreeMap<TopicId, Arc<str>>>,
    /// 0 before the first answer; grows by one with each.
    pub(crate) version: u64,
    pub(crate) cluster_id: Option<String>,
    pub(crate) controller: Option<i32>,
    pub(crate) brokers: BTreeMap<i32, Broker>,
    pub(crate) topics: BTreeMap<Arc<str>, Topic>,
    /// All topics of this pattern are in it.
    matched: Option<Arc<Pattern>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) address: Address,
    pub(crate) rack: Option<String>,
}

/// No cluster has more; what an answer lists beyond is passed over.
const MOST_BROKERS: usize = 10_000;

/// No topic has more. One that is said to have is not used: a client keeps something for each, and where keys go rests on the
/// number.
const MOST_PARTITIONS: usize = 40_000;

/// All zeros from brokers older than 2.8.
pub(crate) type TopicId = [u8; 16];

/// Whether these are of two lives of a topic: both are known, and not the same.
pub(crate) fn are_two_lives(one: TopicId, other: TopicId) -> bool {
    one != other && one != TopicId::default() && other != TopicId::default()
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Topic {
    pub(crate) id: TopicId,
    /// The ids it had before, by which brokers that lag behind may still know it.
    pub(crate) former: Former,
    /// How many answers in a row told of a former id.
    pub(crate) refused: u32,
    /// The version of the snapshot that asked about it last.
    pub(crate) told_in: u64,
    pub(crate) error: Option<ErrorCode>,
    /// Of the brokers' own.
    pub(crate) is_internal: bool,
    /// The index is the partition's number.
    pub(crate) partitions: Vec<Partition>,
}

/// Ids that a topic of one name has had. Brokers give no order of them: one that was replaced does not come back in a cluster, and
/// what is told of it is told by a broker that lags behind, unless all tell the same for long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Former {
    /// The last one, also while the topic is not there.
    last: TopicId,
    /// Those before it, oldest first.
    replaced: Vec<TopicId>,
}

impl Former {
    /// Whether a broker that tells of this id lags behind.
    fn is_replaced(&self, id: &TopicId) -> bool {
        self.replaced.contains(id)
    }

    /// With one that brokers tell of now.
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

/// No broker lags behind more lives of a topic.
const MOST_FORMER: usize = 16;

/// No broker lags behind for more answers in a row. After so many, without the id that counts between them, it was that one which
/// a broker behind had told, to a client that had heard of none before.
const MOST_REFUSED: u32 = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) leader: Option<i32>,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) replicas: Vec<i32>,
    pub(crate) in_sync_replicas: Vec<i32>,
}

/// Where a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) leader: i32,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) topic_id: TopicId,
}

impl Partition {
    const UNKNOWN: Self =
        Self { leader: None, leader_epoch: -1, replicas: Vec::new(), in_sync_replicas: Vec::new() };
}

impl Metadata {
    /// The leader of a partition and its epoch.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<(i32, i32)> {
        let partitions = &self.topics.get(topic)?.partitions;
        let partition = partitions.get(usize::try_from(partition).ok()?)?;
        Some((partition.leader?, partition.leader_epoch))
    }

    /// The leader of a partition, its epoch, and the topic's id.
    pub(crate) fn place(&self, topic: &str, partition: i32) -> Option<Place> {
        let topic = self.topics.get(topic)?;
        let known = topic.partitions.get(usize::try_from(partition).ok()?)?;
        Some(Place { leader: known.leader?, leader_epoch: known.leader_epoch, topic_id: topic.id })
    }

    /// The id of a topic; all zeros where it is not known.
    pub(crate) fn topic_id(&self, topic: &str) -> TopicId {
        self.topics.get(topic).map_or_else(TopicId::default, |topic| topic.id)
    }

    /// The names of all topics by their ids.
    pub(crate) fn topic_names(&self) -> &Arc<BTreeMap<TopicId, Arc<str>>> {
        &self.names
    }

    /// The topics there are of a pattern, sorted; `None` as long as brokers have not been asked for all.
    pub(crate) fn matching(&self, pattern: &Arc<Pattern>) -> Option<Vec<Arc<str>>> {
        self.matched.as_ref().filter(|matched| Arc::ptr_eq(matched, pattern))?;
        let is_there = |topic: &Topic| topic.error.is_none_or(|code| code.0 != UNKNOWN_TOPIC_OR_PARTITION);
        let topics = self
            .topics
            .iter()
            .filter(|(name, topic)| is_there(topic) && pattern.takes(name, topic.is_internal));
        Some(topics.map(|(name, _)| Arc::clone(name)).collect())
    }

    /// What is known of a topic.
    pub(crate) fn found(&self, topic: &str) -> Found {
        match self.topics.get(topic) {
            None => Found::Missing,
            Some(Topic { error: Some(code), .. })
                if code.is_retriable() && code.0 != UNKNOWN_TOPIC_OR_PARTITION =>
            {
                Found::Unsettled
            }
            Some(Topic { error: Some(_), .. }) => Found::Missing,
            // A topic that is being made may be listed before its partitions are.
            Some(topic) if topic.partitions.is_empty() => Found::Unsettled,
            Some(topic) if topic.partitions.iter().all(|partition| partition.leader.is_some()) => {
                Found::Settled
            }
            Some(_) => Found::Unsettled,
        }
    }

    /// Whether it says the same of brokers and topics.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let same = |(name, topic): (&Arc<str>, &Topic)| {
            other.topics.get(name).is_some_and(|known| {
                (topic.id, topic.error, &topic.partitions) == (known.id, known.error, &known.partitions)
            })
        };
        self.brokers == other.brokers
            && self.topics.len() == other.topics.len()
            && self.topics.iter().all(same)
    }

    /// Why a partition cannot be used, as far as the snapshot says.
    pub(crate) fn why(&self, topic: &str, partition: Option<i32>) -> Option<Error> {
        let Some(known) = self.topics.get(topic) else {
            let text = "no broker has told about the topic yet";
            return Some(Error::new(ErrorKind::Timeout, text).with_topic(topic));
        };
        if let Some(code) = known.error {
            return Some(topic_error(topic, code));
        }
        let count = known.partitions.len();
        if count == 0 {
            return Some(
                Error::from_code("Metadata", LEADER_NOT_AVAILABLE)
                    .with_message("the topic is listed without partitions")
                    .with_topic(topic),
            );
        }
        let partition = partition?;
        match usize::try_from(partition).ok().and_then(|index| known.partitions.get(index)) {
            None => Some(
                Error::from_code("Metadata", UNKNOWN_TOPIC_OR_PARTITION)
                    .with_message(&format!("the topic has {count} partitions, from 0"))
                    .with_topic(topic)
                    .with_partition(partition)
                    .with_hint("name a partition that the topic has, or add partitions to it"),
            ),
            Some(Partition { leader: None, replicas, .. }) => Some(
                Error::from_code("Metadata", LEADER_NOT_AVAILABLE)
                    .with_message(&format!("the partition has no leader; its replicas are on {replicas:?}"))
                    .with_topic(topic)
                    .with_partition(partition)
                    .with_hint("see to the brokers of its replicas"),
            ),
            Some(_) => None,
        }
    }

    /// Whether a topic can be used: it is there, and has at least one leader.
    pub(crate) fn is_usable(&self, topic: &str) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|topic| topic.error.is_none() && topic.partitions.iter().any(|p| p.leader.is_some()))
    }

    /// Whether brokers say that there is no such partition: the topic was deleted, or made again with fewer.
    pub(crate) fn is_gone(&self, topic: &str, partition: i32) -> bool {
        self.topics.get(topic).is_some_and(|topic| match topic.error {
            None => usize::try_from(partition).is_ok_and(|index| index >= topic.partitions.len()),
            Some(code) => code.0 == UNKNOWN_TOPIC_OR_PARTITION,
        })
    }

    /// Why a topic cannot be used, if waiting will not help.
    pub(crate) fn permanent_error(&self, topic: &str) -> Option<Error> {
        let code = self.topics.get(topic)?.error?;
        (!code.is_retriable()).then(|| topic_error(topic, code))
    }

    /// The snapshot after an answer about the topics `asked`. Topics that are not to be kept are forgotten.
    pub(crate) fn merge(
        &self,
        answer: wire::MetadataResponse,
        asked: &[Arc<str>],
        keep: impl Fn(&str) -> bool,
    ) -> Self {
        let version = self.version + 1;
        let mut brokers = BTreeMap::new();
        for broker in answer.brokers.into_iter().take(MOST_BROKERS) {
            let Some(address) = address(broker.node_id, &broker.host, broker.port) else { continue };
            let rack = broker.rack.map(|rack| rack.to_string());
            // Of a broker that is listed twice the first counts.
            brokers.entry(broker.node_id).or_insert(Broker { address, rack });
        }
        let cluster_id = answer.cluster_id.map(|id| id.to_string());
        // A topic of another cluster, to which an address leads now, has nothing to do with that of the same name before.
        let is_another =
            matches!((&self.cluster_id, &cluster_id), (Some(before), Some(now)) if before != now);
        // What nobody asked about this time stays as it was.
        let mut topics = self.topics.clone();
        let asked: BTreeSet<&Arc<str>> = asked.iter().collect();
        topics.retain(|name, _| !asked.contains(name) && keep(name));
        for topic in answer.topics {
            let Some(name) = topic.name.as_ref().map(|name| Arc::<str>::from(name.as_str())) else {
                continue;
            };
            if keep(&name) {
                let known = self.topics.get(&name).filter(|_| !is_another);
                let merged = merge_topic(version, known, topic);
                topics.insert(name, merged);
            }
        }
        let names = topics.iter().filter(|(_, topic)| topic.id != TopicId::default());
        Self {
            version,
            names: Arc::new(names.map(|(name, topic)| (topic.id, Arc::clone(name))).collect()),
            cluster_id,
            controller: (answer.controller_id >= 0).then_some(answer.controller_id),
            brokers,
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
        // They are there, whether anybody is to keep them or not.
        let listed: BTreeSet<Arc<str>> =
            answer.topics.iter().filter_map(|topic| Some(Arc::from(topic.name.as_ref()?.as_str()))).collect();
        let mut new = self.merge(answer, &known, |name| keep(name) || pattern.takes(name, false));
        let version = new.version;
        let gone = |told_in| Topic {
            told_in,
            error: Some(ErrorCode(UNKNOWN_TOPIC_OR_PARTITION)),
            ..Topic::default()
        };
        for (name, topic) in self.topics.iter().filter(|(name, _)| !listed.contains(*name)) {
            let former = &topic.former;
            let was_gone = topic.error.is_some_and(|code| code.0 == UNKNOWN_TOPIC_OR_PARTITION);
            let told_in = if was_gone { topic.told_in } else { new.version };
            if new.version - told_in < REMEMBERED {
                let gone = || Topic { former: former.clone(), ..gone(told_in) };
                new.topics.entry(Arc::clone(name)).or_insert_with(gone);
            }
        }
        for name in asked {
            new.topics.entry(Arc::clone(name)).or_insert_with(|| gone(version));
        }
        new.matched = Some(Arc::clone(pattern));
        new
    }
}

/// For how many answers a deleted topic of a pattern is known to be gone: what was done of it is not waited for.
const REMEMBERED: u64 = 100;

/// A broker's address as it was told; `None` if there can be no such broker. Negative ids are ours, of the bootstrap
/// addresses.
pub(super) fn address(id: i32, host: &str, port: i32) -> Option<Address> {
    // As a URL has it, and a resolver does not.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match u16::try_from(port) {
        Ok(port) if id >= 0 && port > 0 && !host.is_empty() => Some(Address { host: host.to_owned(), port }),
        _ => {
            tracing::debug!(id, host, port, "there can be no such broker; it is passed over");
            None
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
    let former = known.map(|known| known.former.clone()).unwrap_or_default().followed_by(id);
    // KIP-516: epochs compare only within one life of the topic.
    let known = known.filter(|known| known.id == id);
    // A topic has no more partitions than the answer lists, so this cannot grow by an unchecked number.
    let listed = answer.partitions.len();
    if listed > MOST_PARTITIONS {
        tracing::debug!(listed, "a topic is said to have more partitions than any; it is not used");
        return Topic {
            id,
            refused: 0,
            told_in: version,
            former,
            error: Some(ErrorCode(INVALID_PARTITIONS)),
            is_internal,
            partitions: Vec::new(),
        };
    }
    let mut partitions: Vec<Option<Partition>> = Vec::new();
    partitions.resize_with(listed, || None);
    for partition in answer.partitions {
        let Some(index) = usize::try_from(partition.partition_index).ok().filter(|index| *index < listed)
        else {
            continue;
        };
        let newer = known
            .and_then(|known| known.partitions.get(index))
            .filter(|known| partition.leader_epoch >= 0 && known.leader_epoch > partition.leader_epoch);
        // Of a partition that is listed twice the first counts.
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
    let error = (answer.error_code != 0).then_some(ErrorCode(answer.error_code));
    Topic { id, refused: 0, former, told_in: version, error, is_internal, partitions }
}

/// The error of a topic in a metadata answer, with the usual remedy.
pub(crate) fn topic_error(topic: &str, code: ErrorCode) -> Error {
    let error = Error::from_code("Metadata", code.0).with_topic(topic);
    match code.0 {
        UNKNOWN_TOPIC_OR_PARTITION => {
            error.with_hint("create the topic, or let brokers create it (auto.create.topics.enable)")
        }
        17 => error.with_hint("a topic's name has 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'"),
        29 => error.with_hint("grant the user Describe, and Read or Write, on the topic"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };

    fn topic(name: &str, leaders: &[(i32, i32)]) -> MetadataResponseTopic {
        let partitions =
            leaders.iter().enumerate().map(|(index, (leader, epoch))| MetadataResponsePartition {
                partition_index: index as i32,
                leader_id: *leader,
                leader_epoch: *epoch,
                ..Default::default()
            });
        MetadataResponseTopic {
            name: Some(name.into()),
            partitions: partitions.collect(),
            ..Default::default()
        }
    }

    fn answer(topics: Vec<MetadataResponseTopic>) -> wire::MetadataResponse {
        let broker = MetadataResponseBroker {
            node_id: 1,
            host: wire::Str::from_static("b1"),
            port: 9092,
            ..Default::default()
        };
        wire::MetadataResponse { brokers: vec![broker], topics, ..Default::default() }
    }

    fn all(_: &str) -> bool {
        true
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn of_all_topics_those_of_the_pattern_are_kept_and_deleted_ones_are_known_to_be_gone() {
        let pattern = Pattern::new("orders.*", false).unwrap();
        let first = Metadata::default().merge(answer(vec![topic("orders-eu", &[(1, 1)])]), &[], all);
        assert_eq!(first.matching(&pattern), None, "nobody has asked for all");
        let internal = MetadataResponseTopic { is_internal: true, ..topic("orders-own", &[(1, 1)]) };
        let everything = vec![topic("orders-us", &[(1, 1)]), topic("users", &[(1, 1)]), internal];
        let asked = ["elsewhere".into()];
        let second = first.merge_all(answer(everything), &asked, &pattern, |_| false);
        assert_eq!(second.matching(&pattern), Some(vec!["orders-us".into()]));
        assert!(second.is_gone("orders-eu", 0) && second.is_gone("elsewhere", 0));
        assert!(!second.is_gone("orders-us", 0) && !second.topics.contains_key("users"));
        let other = Pattern::new("users", false).unwrap();
        assert_eq!(second.matching(&other), None);

        let back = second.merge_all(answer(vec![topic("orders-eu", &[(1, 1)])]), &[], &pattern, |_| false);
        assert_eq!(back.matching(&pattern), Some(vec!["orders-eu".into()]));
        let mut later = back;
        for _ in 0..=REMEMBERED {
            later = later.merge_all(answer(Vec::new()), &[], &pattern, |_| false);
        }
        assert!(later.topics.is_empty(), "what is gone for long takes no memory");
    }

    #[test]
    fn an_id_that_was_replaced_is_never_gone_back_to() {
        let told = |id: u8, epoch| MetadataResponseTopic {
            topic_id: wire::Uuid([id; 16]),
            ..topic("orders", &[(1, epoch)])
        };
        let gone = || MetadataResponseTopic {
            name: Some("orders".into()),
            error_code: UNKNOWN_TOPIC_OR_PARTITION,
            ..Default::default()
        };
        let asked = ["orders".into()];
        let mut metadata = Metadata::default();
        // What a broker tells, and the id and the epoch that count then.
        let steps = [
            (told(1, 5), 1, 5),
            (told(2, 0), 2, 0),
            (told(1, 6), 2, 0),
            (told(2, 1), 2, 1),
            (told(1, 7), 2, 1),
            (told(3, 0), 3, 0),
            (told(2, 9), 3, 0),
            (told(1, 9), 3, 0),
        ];
        for (answered, id, epoch) in steps {
            metadata = metadata.merge(answer(vec![answered]), &asked, all);
            assert_eq!(metadata.topic_id("orders"), [id; 16]);
            assert_eq!(metadata.leader("orders", 0), Some((1, epoch)));
            assert_eq!(metadata.topic_names().keys().collect::<Vec<_>>(), [&[id; 16]]);
        }
        // Nor through a time in which the topic is not there; the same topic may come back from that.
        metadata = metadata.merge(answer(vec![gone()]), &asked, all);
        assert!(metadata.is_gone("orders", 0));
        metadata = metadata.merge(answer(vec![told(2, 9)]), &asked, all);
        assert!(metadata.is_gone("orders", 0), "a broker that lags behind");
        metadata = metadata.merge(answer(vec![told(3, 1)]), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [3; 16]);
        for id in 4..=u8::MAX {
            metadata = metadata.merge(answer(vec![told(id, 0)]), &asked, all);
        }
        assert!(metadata.topics["orders"].former.replaced.len() <= MOST_FORMER);
    }

    #[test]
    fn an_id_of_which_all_answers_tell_is_believed_in_the_end_and_one_of_another_cluster_at_once() {
        let told = |id: u8, cluster: &str| {
            let topic =
                MetadataResponseTopic { topic_id: wire::Uuid([id; 16]), ..topic("orders", &[(1, 3)]) };
            wire::MetadataResponse { cluster_id: Some(cluster.into()), ..answer(vec![topic]) }
        };
        let asked = ["orders".into()];
        let mut metadata = Metadata::default();
        // The second comes of a broker that lags behind, and this client has heard of that id never before.
        for id in [2, 1] {
            metadata = metadata.merge(told(id, "here"), &asked, all);
        }
        for _ in 0..MOST_REFUSED {
            metadata = metadata.merge(told(2, "here"), &asked, all);
            assert_eq!(metadata.topic_id("orders"), [1; 16]);
        }
        metadata = metadata.merge(told(2, "here"), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [2; 16]);
        metadata = metadata.merge(told(1, "here"), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [2; 16], "now it is the other that lags");
        metadata = metadata.merge(told(1, "there"), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [1; 16]);
    }

    #[test]
    fn a_topic_that_is_listed_and_not_kept_any_more_is_not_taken_for_deleted() {
        let pattern = Pattern::new("orders.*", false).unwrap();
        let first = Metadata::default().merge(answer(vec![topic("users", &[(1, 1)])]), &[], all);
        let both = || answer(vec![topic("users", &[(1, 1)]), topic("orders", &[(1, 1)])]);
        let second = first.merge_all(both(), &[], &pattern, |_| false);
        assert!(!second.is_gone("users", 0) && second.is_usable("orders"));
        let third = first.merge_all(answer(Vec::new()), &[], &pattern, |_| false);
        assert!(third.is_gone("users", 0));
    }

    #[test]
    fn a_topic_with_more_partitions_than_any_has_is_not_used() {
        let merge = |count| {
            let answer = answer(vec![topic("t", &vec![(1, 0); count])]);
            Metadata::default().merge(answer, &["t".into()], all)
        };
        assert!(merge(MOST_PARTITIONS).is_usable("t"));
        let merged = merge(MOST_PARTITIONS + 1);
        assert!(merged.permanent_error("t").is_some() && merged.topics["t"].partitions.is_empty());
    }

    #[test]
    fn of_more_brokers_than_any_cluster_has_the_first_count() {
        let mut many = answer(vec![]);
        let broker = many.brokers[0].clone();
        let ids = 0..MOST_BROKERS as i32 + 10;
        many.brokers = ids.map(|node_id| MetadataResponseBroker { node_id, ..broker.clone() }).collect();
        let merged = Metadata::default().merge(many, &[], all);
        assert_eq!(merged.brokers.len(), MOST_BROKERS);
        assert_eq!(merged.brokers.last_key_value().map(|(id, _)| *id), Some(MOST_BROKERS as i32 - 1));
    }

    #[test]
    fn a_leader_of_an_older_epoch_does_not_replace_a_newer_one() {
        let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[], all);
        let second = first.merge(answer(vec![topic("orders", &[(1, 4)])]), &[], all);
        assert_eq!(second.leader("orders", 0), Some((2, 5)));
        let third = second.merge(answer(vec![topic("orders", &[(3, 6)])]), &[], all);
        assert_eq!(third.leader("orders", 0), Some((3, 6)));
    }

    #[test]
    fn a_topic_made_again_starts_its_epochs_again() {
        let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[], all);
        let mut again = topic("orders", &[(1, 0)]);
        again.topic_id = wire::Uuid([9; 16]);
        let second = first.merge(answer(vec![again]), &[], all);
        assert_eq!(second.leader("orders", 0), Some((1, 0)));
    }

    #[test]
    fn topics_not_asked_for_are_kept_and_deleted_ones_are_forgotten() {
        let both = vec![topic("a", &[(1, 0)]), topic("b", &[(1, 0)])];
        let first = Metadata::default().merge(answer(both), &[], all);
        let second = first.merge(answer(vec![]), &["a".into()], all);
        assert!(!second.topics.contains_key("a") && second.found("b") == Found::Settled);
    }

    #[test]
    fn partitions_of_a_deleted_or_smaller_topic_are_gone_and_those_of_an_unknown_one_are_not() {
        let mut deleted = topic("deleted", &[]);
        deleted.error_code = UNKNOWN_TOPIC_OR_PARTITION;
        let metadata = Metadata::default().merge(answer(vec![topic("a", &[(1, 0)]), deleted]), &[], all);
        assert!(metadata.is_gone("a", 1) && metadata.is_gone("deleted", 0));
        assert!(!metadata.is_gone("a", 0) && !metadata.is_gone("a", -1) && !metadata.is_gone("unknown", 0));
    }

    #[test]
    fn absurd_partition_numbers_are_ignored() {
        let mut odd = topic("a", &[(1, 0), (1, 0)]);
        odd.partitions[1].partition_index = i32::MAX;
        let metadata = Metadata::default().merge(answer(vec![odd]), &[], all);
        assert_eq!(metadata.leader("a", 0), Some((1, 0)));
        assert_eq!(metadata.leader("a", 1), None);
        assert_eq!(metadata.leader("a", i32::MAX), None);
        assert_eq!(metadata.leader("a", -1), None);
    }

    #[test]
    fn a_topic_without_partitions_is_not_settled_and_one_that_is_refused_or_unknown_is_missing() {
        let with_error = |name: &str, code| {
            let mut topic = topic(name, &[]);
            topic.error_code = code;
            topic
        };
        let topics = vec![
            topic("empty", &[]),
            topic("good", &[(1, 0)]),
            topic("leaderless", &[(1, 0), (-1, 0)]),
            with_error("starting", LEADER_NOT_AVAILABLE),
            with_error("refused", 29),
            with_error("unknown", UNKNOWN_TOPIC_OR_PARTITION),
        ];
        let metadata = Metadata::default().merge(answer(topics), &[], all);
        for (name, found) in [
            ("empty", Found::Unsettled),
            ("good", Found::Settled),
            ("leaderless", Found::Unsettled),
            ("starting", Found::Unsettled),
            ("refused", Found::Missing),
            ("unknown", Found::Missing),
            ("never heard of", Found::Missing),
        ] {
            assert_eq!(metadata.found(name), found, "{name}");
        }
    }

    #[test]
    fn brokers_that_cannot_be_and_what_is_listed_twice_are_passed_over() {
        let broker = |id: i32, host: &str, port| MetadataResponseBroker {
            node_id: id,
            host: host.into(),
            port,
            ..Default::default()
        };
        let brokers = vec![
            broker(-1, "evil", 9092),
            broker(i32::MIN, "evil", 9092),
            broker(2, "b2", -1),
            broker(3, "b3", 65_536),
            broker(4, "", 9092),
            broker(5, "b5", 0),
            broker(6, "b6", 9092),
            broker(6, "evil", 9092),
        ];
        let mut twice = topic("a", &[(6, 0), (7, 9), (8, 9)]);
        twice.partitions[1].partition_index = 0;
        twice.partitions[2].partition_index = -3;
        let answer = wire::MetadataResponse { brokers, topics: vec![twice], ..Default::default() };
        let metadata = Metadata::default().merge(answer, &[], all);
        assert_eq!(metadata.brokers.keys().collect::<Vec<_>>(), [&6]);
        assert_eq!(metadata.brokers[&6].address.host, "b6");
        assert_eq!(metadata.topics["a"].partitions.len(), 1);
        assert_eq!(metadata.leader("a", 0), Some((6, 0)));
    }

    #[test]
    fn a_topic_of_no_interest_is_not_taken_over_and_a_known_one_is_forgotten() {
        let both = || answer(vec![topic("a", &[(1, 0)]), topic("b", &[(1, 0)])]);
        let first = Metadata::default().merge(both(), &[], all);
        let second = first.merge(both(), &[], |name| name == "b");
        assert_eq!(second.topics.keys().map(|name| &**name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn why_a_partition_cannot_be_used_names_it_and_the_reason() {
        let mut refused = topic("refused", &[]);
        refused.error_code = 29;
        let topics = vec![topic("a", &[(1, 0), (-1, 0)]), topic("empty", &[]), refused];
        let metadata = Metadata::default().merge(answer(topics), &[], all);
        let why = |topic, partition| metadata.why(topic, partition).map(|error| error.to_string());
        assert_eq!(why("a", Some(0)), None);
        assert_eq!(why("a", None), None);
        for (topic, partition, text) in [
            ("a", Some(1), "has no leader"),
            ("a", Some(2), "the topic has 2 partitions, from 0"),
            ("empty", Some(0), "listed without partitions"),
            ("refused", Some(0), "TopicAuthorizationFailed"),
            ("unheard", None, "no broker has told"),
        ] {
            let why = why(topic, partition).unwrap();
            assert!(why.contains(text) && why.contains(topic), "{why}");
        }
    }

    #[test]
    fn topics_are_found_by_their_id() {
        let mut with_id = topic("a", &[(1, 0)]);
        with_id.topic_id = wire::Uuid([9; 16]);
        let metadata = Metadata::default().merge(answer(vec![with_id, topic("b", &[(1, 0)])]), &[], all);
        assert_eq!(metadata.topic_names().get(&[9; 16]).map(|name| &**name), Some("a"));
        assert_eq!(metadata.topic_names().get(&[0; 16]), None, "older brokers have none");
    }
}
