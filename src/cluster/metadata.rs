//! The cluster as one immutable snapshot: brokers, topics, leaders. Pure; replaced whole, never edited in place.
//!
//! Rules: KIP-320 (a leader of an older epoch never replaces a newer one), KIP-516 (a topic that was deleted and made
//! again has another id, and its epochs start again).

use std::{collections::BTreeMap, sync::Arc};

pub(crate) use crate::error::code::UNKNOWN_TOPIC_OR_PARTITION;
use crate::{
    config::settings::Address,
    error::{Error, ErrorCode},
    wire,
};

/// What a client knows of the cluster at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    /// 0 before the first answer; grows by one with each.
    pub(crate) version: u64,
    pub(crate) cluster_id: Option<String>,
    pub(crate) controller: Option<i32>,
    pub(crate) brokers: BTreeMap<i32, Broker>,
    pub(crate) topics: BTreeMap<Arc<str>, Topic>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) address: Address,
    pub(crate) rack: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Topic {
    /// All zeros from brokers older than 2.8.
    pub(crate) id: [u8; 16],
    pub(crate) error: Option<ErrorCode>,
    /// The index is the partition's number.
    pub(crate) partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) leader: Option<i32>,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) replicas: Vec<i32>,
    pub(crate) in_sync_replicas: Vec<i32>,
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

    /// Whether a topic is known with all its partitions' leaders.
    pub(crate) fn is_settled(&self, topic: &str) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|topic| topic.error.is_none() && topic.partitions.iter().all(|p| p.leader.is_some()))
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

    /// The snapshot after an answer about the topics `asked`.
    pub(crate) fn merge(&self, answer: wire::MetadataResponse, asked: &[Arc<str>]) -> Self {
        let brokers = answer
            .brokers
            .into_iter()
            .map(|broker| {
                let port = u16::try_from(broker.port).unwrap_or_default();
                let address = Address { host: broker.host.to_string(), port };
                (broker.node_id, Broker { address, rack: broker.rack.map(|rack| rack.to_string()) })
            })
            .collect();
        // What nobody asked about this time stays as it was.
        let mut topics = self.topics.clone();
        topics.retain(|name, _| !asked.contains(name));
        for topic in answer.topics {
            let Some(name) = topic.name.as_ref().map(|name| Arc::<str>::from(name.as_str())) else {
                continue;
            };
            let merged = merge_topic(self.topics.get(&name), topic);
            topics.insert(name, merged);
        }
        Self {
            version: self.version + 1,
            cluster_id: answer.cluster_id.map(|id| id.to_string()),
            controller: (answer.controller_id >= 0).then_some(answer.controller_id),
            brokers,
            topics,
        }
    }
}

fn merge_topic(known: Option<&Topic>, answer: wire::metadata_response::MetadataResponseTopic) -> Topic {
    let id = answer.topic_id.0;
    // KIP-516: epochs compare only within one life of the topic.
    let known = known.filter(|known| known.id == id);
    // A topic has fewer partitions than the answer has bytes, so this cannot grow by an unchecked number.
    let mut partitions = vec![Partition::UNKNOWN; answer.partitions.len()];
    for partition in answer.partitions {
        let Some(index) = usize::try_from(partition.partition_index).ok().filter(|i| *i < partitions.len())
        else {
            continue;
        };
        let fresh = Partition {
            leader: (partition.leader_id >= 0).then_some(partition.leader_id),
            leader_epoch: partition.leader_epoch,
            replicas: partition.replica_nodes,
            in_sync_replicas: partition.isr_nodes,
        };
        let newer = known
            .and_then(|known| known.partitions.get(index))
            .filter(|known| fresh.leader_epoch >= 0 && known.leader_epoch > fresh.leader_epoch);
        // KIP-320: a broker that lags behind must not lead us back to an old leader.
        partitions[index] = newer.cloned().unwrap_or(fresh);
    }
    let error = (answer.error_code != 0).then_some(ErrorCode(answer.error_code));
    Topic { id, error, partitions }
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

    #[test]
    fn a_leader_of_an_older_epoch_does_not_replace_a_newer_one() {
        let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[]);
        let second = first.merge(answer(vec![topic("orders", &[(1, 4)])]), &[]);
        assert_eq!(second.leader("orders", 0), Some((2, 5)));
        let third = second.merge(answer(vec![topic("orders", &[(3, 6)])]), &[]);
        assert_eq!(third.leader("orders", 0), Some((3, 6)));
    }

    #[test]
    fn a_topic_made_again_starts_its_epochs_again() {
        let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[]);
        let mut again = topic("orders", &[(1, 0)]);
        again.topic_id = wire::Uuid([9; 16]);
        let second = first.merge(answer(vec![again]), &[]);
        assert_eq!(second.leader("orders", 0), Some((1, 0)));
    }

    #[test]
    fn topics_not_asked_for_are_kept_and_deleted_ones_are_forgotten() {
        let both = vec![topic("a", &[(1, 0)]), topic("b", &[(1, 0)])];
        let first = Metadata::default().merge(answer(both), &[]);
        let second = first.merge(answer(vec![]), &["a".into()]);
        assert!(!second.topics.contains_key("a") && second.is_settled("b"));
    }

    #[test]
    fn partitions_of_a_deleted_or_smaller_topic_are_gone_and_those_of_an_unknown_one_are_not() {
        let mut deleted = topic("deleted", &[]);
        deleted.error_code = UNKNOWN_TOPIC_OR_PARTITION;
        let metadata = Metadata::default().merge(answer(vec![topic("a", &[(1, 0)]), deleted]), &[]);
        assert!(metadata.is_gone("a", 1) && metadata.is_gone("deleted", 0));
        assert!(!metadata.is_gone("a", 0) && !metadata.is_gone("a", -1) && !metadata.is_gone("unknown", 0));
    }

    #[test]
    fn absurd_partition_numbers_are_ignored() {
        let mut odd = topic("a", &[(1, 0), (1, 0)]);
        odd.partitions[1].partition_index = i32::MAX;
        let metadata = Metadata::default().merge(answer(vec![odd]), &[]);
        assert_eq!(metadata.leader("a", 0), Some((1, 0)));
        assert_eq!(metadata.leader("a", 1), None);
        assert_eq!(metadata.leader("a", i32::MAX), None);
        assert_eq!(metadata.leader("a", -1), None);
    }
}
