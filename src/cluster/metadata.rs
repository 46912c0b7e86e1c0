//! The cluster as one immutable snapshot: brokers, topics, leaders. Pure; replaced whole, never edited in place.
//!
//! What an answer makes of it is [`merge`]'s.

mod merge;

use std::sync::Arc;

use self::merge::Former;
pub(super) use self::merge::address;
use super::refresh::Found;
pub(crate) use crate::error::code::UNKNOWN_TOPIC_OR_PARTITION;
use crate::{
    config::settings::Address,
    error::{
        Error, ErrorCode, ErrorKind, Result,
        code::{LEADER_NOT_AVAILABLE, REBOOTSTRAP_REQUIRED},
    },
    pattern::Pattern,
    sorted::Map,
    wire,
};

/// What a client knows of the cluster at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    /// Names of topics by their id (KIP-516).
    names: Arc<Map<TopicId, Arc<str>>>,
    /// 0 before the first answer; grows by one with each.
    pub(crate) version: u64,
    /// The number of the last question about all topics of interest whose answer is in it.
    pub(crate) answers: u64,
    pub(crate) cluster_id: Option<String>,
    pub(crate) controller: Option<i32>,
    pub(crate) brokers: Map<i32, Broker>,
    /// The advertised addresses of brokers that cannot be addresses.
    misplaced: Map<i32, String>,
    pub(crate) topics: Map<Arc<str>, Topic>,
    /// All topics of this pattern are in it.
    matched: Option<(Arc<Pattern>, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) address: Address,
    pub(crate) rack: Option<String>,
}

/// All zeros from brokers older than 2.8.
pub(crate) type TopicId = [u8; 16];

/// Whether these ids are of two different lives of a topic: both are known, and they differ.
pub(crate) fn are_two_lives(one: TopicId, other: TopicId) -> bool {
    one != other && one != TopicId::default() && other != TopicId::default()
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Topic {
    pub(crate) id: TopicId,
    /// The ids it had before, by which brokers that lag behind may still know it.
    pub(crate) former: Former,
    /// How many answers in a row told of a former id, or of older leaders.
    pub(crate) refused: u32,
    /// The version of the snapshot that asked about it last.
    pub(crate) told_in: u64,
    pub(crate) error: Option<ErrorCode>,
    /// Whether brokers use the topic themselves, as `__consumer_offsets`.
    pub(crate) is_internal: bool,
    /// The index is the partition's number.
    pub(crate) partitions: Vec<Partition>,
    /// The partitions of its last id, kept while brokers say that the topic is not there: they may lag behind, and so may
    /// the next answer that names leaders.
    pub(crate) gone: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) leader: Option<i32>,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) replicas: Vec<i32>,
    pub(crate) in_sync_replicas: Vec<i32>,
}

/// The leader of a partition, and the id of its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) leader: i32,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) topic_id: TopicId,
}

/// Whether these ids are of two clusters: both are known, and they differ.
pub(super) fn are_two_clusters(one: Option<&str>, other: Option<&str>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
}

impl Partition {
    const UNKNOWN: Self =
        Self { leader: None, leader_epoch: -1, replicas: Vec::new(), in_sync_replicas: Vec::new() };
}

impl Metadata {
    /// The leader of a partition and its epoch.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<(i32, i32)> {
        self.leadership(topic, partition).map(|known| (known.leader, known.leader_epoch))
    }

    /// The leader of a partition, its epoch, and the topic's id.
    pub(crate) fn leadership(&self, topic: &str, partition: i32) -> Option<Leadership> {
        let topic = self.topics.get(topic)?;
        let known = topic.partitions.get(usize::try_from(partition).ok()?)?;
        Some(Leadership { leader: known.leader?, leader_epoch: known.leader_epoch, topic_id: topic.id })
    }

    /// The id of a topic; all zeros where it is not known.
    pub(crate) fn topic_id(&self, topic: &str) -> TopicId {
        self.topics.get(topic).map_or_else(TopicId::default, |topic| topic.id)
    }

    /// The names of all topics by their ids.
    pub(crate) fn topic_names(&self) -> &Arc<Map<TopicId, Arc<str>>> {
        &self.names
    }

    /// The topics there are of a pattern, sorted; `None` as long as brokers have not been asked for all.
    pub(crate) fn matching(&self, pattern: &Arc<Pattern>) -> Option<Vec<Arc<str>>> {
        self.matched.as_ref().filter(|(matched, _)| Arc::ptr_eq(matched, pattern))?;
        let is_there = |topic: &Topic| topic.error != Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        let is_matched =
            |(name, topic): &(&Arc<str>, &Topic)| is_there(topic) && pattern.takes(name, topic.is_internal);
        Some(self.topics.iter().filter(is_matched).map(|(name, _)| Arc::clone(name)).collect())
    }

    /// The version in which brokers have last told of all topics.
    pub(crate) fn matched_in(&self) -> Option<u64> {
        self.matched.as_ref().map(|(_, version)| *version)
    }

    /// What is known of a topic.
    pub(crate) fn found(&self, topic: &str) -> Found {
        match self.topics.get(topic) {
            None | Some(Topic { error: Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION), .. }) => Found::Missing,
            Some(Topic { error: Some(code), .. }) if !passes(*code) => Found::Missing,
            Some(Topic { error: Some(_), .. }) => Found::Unsettled,
            // A topic that is being made may be listed before its partitions are.
            Some(topic) if topic.partitions.is_empty() => Found::Unsettled,
            Some(topic) if topic.partitions.iter().any(|partition| partition.leader.is_none()) => {
                Found::Unsettled
            }
            Some(_) => Found::Settled,
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
            return Some(standing_error(topic, code));
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

    /// Why a broker cannot be reached, where no address leads to it.
    pub(crate) fn why_broker(&self, id: i32) -> Option<Error> {
        if self.version == 0 || self.brokers.contains_key(&id) {
            return None;
        }
        let text = match self.misplaced.get(&id) {
            Some(place) => format!("the broker says that it is at {place}, where no client can reach it"),
            None => "the broker is not among those that the cluster tells of".to_owned(),
        };
        let hint = "see that the broker runs, and to its advertised.listeners";
        Some(Error::new(ErrorKind::Disconnected, text).with_broker(id).with_hint(hint))
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
        (!passes(code)).then(|| topic_error(topic, code))
    }
}

/// Whether a topic may be told of later, as in Java: a broker may not know itself what is wrong, or it would create the topic if
/// more brokers had started.
fn passes(code: ErrorCode) -> bool {
    code.is_retriable()
        || [ErrorCode::UNKNOWN_SERVER_ERROR, ErrorCode::INVALID_REPLICATION_FACTOR].contains(&code)
}

/// The answer, if it tells of a cluster.
///
/// # Errors
/// They pass where the broker is starting and knows of nothing yet, or sends the client back to the bootstrap addresses (KIP-1102).
pub(crate) fn told(answer: wire::MetadataResponse) -> Result<wire::MetadataResponse> {
    let error = match answer.error_code {
        0 if answer.brokers.is_empty() => Error::protocol("the answer names no broker").with_api("Metadata"),
        0 => return Ok(answer),
        code @ REBOOTSTRAP_REQUIRED => Error::from_code("Metadata", code),
        code => return Err(Error::from_code("Metadata", code)),
    };
    Err(error.with_passing())
}

/// The error of a topic in a metadata answer, with the usual remedy.
pub(crate) fn topic_error(topic: &str, code: ErrorCode) -> Error {
    let error = Error::from_code("Metadata", code.0).with_topic(topic);
    match code.0 {
        UNKNOWN_TOPIC_OR_PARTITION => {
            error.with_hint("create the topic, or let brokers create it (auto.create.topics.enable)")
        }
        17 => error.with_hint("a topic's name has 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'"),
        38 => {
            error.with_hint("create the topic, or start as many brokers as default.replication.factor says")
        }
        29 => error.with_hint("grant the user Describe, and Read or Write, on the topic"),
        _ => error,
    }
}

/// The same for who goes on asking, as nobody does for an admin.
pub(crate) fn standing_error(topic: &str, code: ErrorCode) -> Error {
    let error = topic_error(topic, code);
    if passes(code) { error.with_passing() } else { error }
}

#[cfg(test)]
mod tests;
