//! What groups have committed, where partitions end, and how far the one is behind the other.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use super::{At, KafkaAdmin, Patience, check_code, without};
use crate::{
    cluster::{
        kafka_string,
        metadata::{told, topic_error},
    },
    connection::api::wire::{self, metadata_response::MetadataResponseTopic},
    error::{
        Error, ErrorCode, Result,
        code::{LEADER_NOT_AVAILABLE, UNKNOWN_TOPIC_OR_PARTITION},
    },
    record::{OffsetAndMetadata, TopicPartition, serialize_fields},
    sorted::Map,
    time::Instant,
};

/// ListOffsets: the offset after the last record.
const LATEST: i64 = -1;

/// How far a group is behind the end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// The group's committed offset.
    pub committed: i64,
    /// The offset the next record of the partition will get.
    pub end: i64,
    /// Their difference, never negative. Transaction markers and compaction make it larger than the number of records.
    pub lag: i64,
}

impl Lag {
    fn of(committed: i64, end: i64) -> Self {
        Self { committed, end, lag: end.saturating_sub(committed).max(0) }
    }
}

serialize_fields! {
    OffsetAndMetadata { offset, leader_epoch, metadata }
    Lag { committed, end, lag }
}

impl KafkaAdmin {
    /// Every committed offset of a group. A group that never committed, or does not exist, has none.
    ///
    /// # Errors
    /// `GroupAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        self.committed(group, self.deadline()).await
    }

    /// How far a group is behind, for every partition it has committed; each has its own outcome, so that one topic that was
    /// deleted, or may not be read, does not hide the others.
    ///
    /// What it has never committed is not in it: a new group, or one that is stuck at its first record, has no lag here,
    /// and a name that no group has gives an empty map. Compare with [`latest_offsets`](Self::latest_offsets) of its
    /// topics to see those.
    ///
    /// # Errors
    /// As [`group_offsets`](Self::group_offsets); per partition as [`latest_offsets`](Self::latest_offsets).
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn group_lag(&self, group: &str) -> Result<BTreeMap<TopicPartition, Result<Lag>>> {
        let deadline = self.deadline();
        let committed = self.committed(group, deadline).await?;
        let ends = self.ends(committed.keys().cloned().collect(), deadline).await?;
        let lag = |(partition, end): (TopicPartition, Result<i64>)| {
            let committed = committed.get(&partition)?.offset;
            Some((partition, end.map(|end| Lag::of(committed, end))))
        };
        Ok(ends.into_iter().filter_map(lag).collect())
    }

    /// The offset that the next record of each partition will get.
    ///
    /// # Errors
    /// `UnknownTopicOrPartition`, `TopicAuthorizationFailed` … for the first partition that has none;
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn latest_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let ends = self.ends(partitions.into_iter().collect(), self.deadline()).await?;
        ends.into_iter().map(|(partition, end)| Ok((partition, end?))).collect()
    }

    async fn committed(
        &self,
        group: &str,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        retry!(self, At::Coordinator(group), deadline, |connection, until| {
            let version = connection.version::<wire::OffsetFetchRequest>();
            // KIP-709: from version 8 on, one request asks about several groups. No topics means all of them.
            let request = if version.is_some_and(|version| version >= 8) {
                let asked = wire::offset_fetch_request::OffsetFetchRequestGroup {
                    group_id: kafka_string(group),
                    topics: None,
                    ..Default::default()
                };
                wire::OffsetFetchRequest { groups: vec![asked], ..Default::default() }
            } else {
                wire::OffsetFetchRequest { group_id: kafka_string(group), topics: None, ..Default::default() }
            };
            // Later versions name topics by their ids.
            committed_offsets(group, connection.call_up_to(9, request, until).await?)
        })
    }

    /// The end of each partition, or why it cannot be told.
    async fn ends(
        &self,
        mut left: BTreeSet<TopicPartition>,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Result<i64>>> {
        let (mut done, mut patience) = (BTreeMap::new(), Patience::default());
        if left.is_empty() {
            return Ok(done);
        }
        let ended = retry!(self, deadline, |until| {
            let answer = self.ask_any(topics_of(&left), told, until).await?;
            let (by_leader, mut outcomes) = leaders(&left, &answer.topics);
            self.cluster.learn_brokers(answer.brokers);
            let asked: Vec<_> =
                by_leader.into_iter().map(|(leader, asked)| self.ends_at(leader, asked, until)).collect();
            outcomes.extend(join_all(asked).await.into_iter().flatten());
            sort_out(&mut left, &mut done, outcomes, &mut patience)
        });
        if let Err(error) = ended {
            if done.is_empty() {
                return Err(error);
            }
            done.extend(refused(left, &error));
        }
        Ok(done)
    }

    /// The ends of partitions of one leader.
    async fn ends_at(&self, leader: i32, asked: Vec<TopicPartition>, until: Instant) -> Outcomes {
        match self.call(leader, list_offsets(&asked), until).await {
            Ok(answer) => read_list_offsets(answer, asked),
            Err(error) => refused(asked, &error).collect(),
        }
    }
}

/// Asks who leads the partitions.
fn topics_of(partitions: &BTreeSet<TopicPartition>) -> wire::MetadataRequest {
    let mut names: Vec<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
    names.dedup();
    let topic = |name| wire::metadata_request::MetadataRequestTopic {
        name: Some(kafka_string(name)),
        ..Default::default()
    };
    wire::MetadataRequest {
        topics: Some(names.into_iter().map(topic).collect()),
        allow_auto_topic_creation: false,
        ..Default::default()
    }
}

/// Partitions with what is known of their ends.
type Outcomes = Vec<(TopicPartition, Result<i64>)>;

/// Partitions by their leaders, and why some have none.
fn leaders(
    partitions: &BTreeSet<TopicPartition>,
    topics: &[MetadataResponseTopic],
) -> (Map<i32, Vec<TopicPartition>>, Outcomes) {
    // If a partition is listed twice the first entry counts.
    let by_name = topics.iter().rev().filter_map(|topic| {
        let leaders = topic.partitions.iter().rev().map(|found| (found.partition_index, found.leader_id));
        Some((topic.name.as_deref()?, (topic.error_code, leaders.collect::<Map<i32, i32>>())))
    });
    let by_name: Map<&str, _> = by_name.collect();
    let leader = |key: &TopicPartition| {
        let (code, leaders) = by_name.get(&*key.topic).ok_or_else(|| without("topic"))?;
        if *code != 0 {
            return Err(topic_error(&key.topic, ErrorCode(*code)));
        }
        match leaders.get(&key.partition) {
            Some(leader) if *leader >= 0 => Ok(*leader),
            // It may get a leader soon.
            Some(_) => Err(Error::from_code("Metadata", LEADER_NOT_AVAILABLE)),
            None => Err(Error::from_code("Metadata", UNKNOWN_TOPIC_OR_PARTITION)),
        }
    };
    let (mut found, mut failures) = (Map::<i32, Vec<TopicPartition>>::new(), Vec::new());
    for key in partitions {
        match leader(key) {
            Ok(leader) => found.entry(leader).or_default().push(key.clone()),
            Err(error) => failures.push((key.clone(), Err(at(error, key)))),
        }
    }
    (found, failures)
}

/// Moves every partition with a final outcome from `left` to `done`. An error is one that calls for another try.
fn sort_out(
    left: &mut BTreeSet<TopicPartition>,
    done: &mut BTreeMap<TopicPartition, Result<i64>>,
    outcomes: Outcomes,
    patience: &mut Patience,
) -> Result<()> {
    let mut again = None;
    for (partition, outcome) in outcomes {
        match outcome {
            Err(error) if patience.is_passing(&error) => again = Some(error),
            outcome => {
                left.remove(&partition);
                done.insert(partition, outcome);
            }
        }
    }
    again.map_or(Ok(()), Err)
}

/// The same error for each of them.
fn refused<'a>(
    partitions: impl IntoIterator<Item = TopicPartition> + 'a,
    error: &'a Error,
) -> impl Iterator<Item = (TopicPartition, Result<i64>)> + 'a {
    partitions.into_iter().map(|partition| {
        let error = at(error.clone(), &partition);
        (partition, Err(error))
    })
}

fn at(error: Error, partition: &TopicPartition) -> Error {
    error.with_topic(partition.topic.clone()).with_partition(partition.partition)
}

/// Both layouts of an OffsetFetch answer: one group (up to version 7), or a list with one group in it.
fn committed_offsets(
    group: &str,
    answer: wire::OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
    // The layouts have types of their own, with the same fields.
    macro_rules! rows {
        ($topics:expr) => {{
            let rows = $topics.into_iter().flat_map(|topic| {
                let name = topic.name;
                topic.partitions.into_iter().map(move |p| {
                    let key = TopicPartition::new(name.as_str(), p.partition_index);
                    (key, p.error_code, p.committed_offset, p.committed_leader_epoch, p.metadata)
                })
            });
            rows.collect()
        }};
    }
    let (is_listed, mut groups) = (!answer.groups.is_empty(), answer.groups.into_iter());
    let (code, rows): (i16, Vec<_>) = match groups.find(|found| found.group_id.as_str() == group) {
        None if is_listed => return Err(without("group")),
        Some(group) => (group.error_code, rows!(group.topics)),
        None => (answer.error_code, rows!(answer.topics)),
    };
    check_code("OffsetFetch", code, None)?;
    let mut found = BTreeMap::new();
    for (key, code, offset, epoch, metadata) in rows {
        check_code("OffsetFetch", code, None).map_err(|error| at(error, &key))?;
        // -1: nothing was committed.
        if offset >= 0 {
            let leader_epoch = (epoch >= 0).then_some(epoch);
            let metadata = metadata.map(|text| text.to_string()).unwrap_or_default();
            let found_offset = OffsetAndMetadata::new(offset).with_metadata(metadata);
            found.insert(key, OffsetAndMetadata { leader_epoch, ..found_offset });
        }
    }
    Ok(found)
}

fn list_offsets(partitions: &[TopicPartition]) -> wire::ListOffsetsRequest {
    use wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let mut topics: Map<&str, Vec<ListOffsetsPartition>> = Map::new();
    for partition in partitions {
        let asked = ListOffsetsPartition {
            partition_index: partition.partition,
            current_leader_epoch: -1,
            timestamp: LATEST,
        };
        topics.entry(&partition.topic).or_default().push(asked);
    }
    let topic = |(name, partitions): (&str, _)| ListOffsetsTopic { name: kafka_string(name), partitions };
    wire::ListOffsetsRequest {
        replica_id: -1,
        topics: topics.into_iter().map(topic).collect(),
        ..Default::default()
    }
}

fn read_list_offsets(answer: wire::ListOffsetsResponse, asked: Vec<TopicPartition>) -> Outcomes {
    let mut left: BTreeSet<TopicPartition> = asked.into_iter().collect();
    let mut outcomes = Vec::with_capacity(left.len());
    for topic in answer.topics {
        for partition in topic.partitions {
            let key = TopicPartition::new(topic.name.as_str(), partition.partition_index);
            // Skips a partition that is listed twice, or that nobody asked about.
            if left.remove(&key) {
                let checked = check_code("ListOffsets", partition.error_code, None);
                let outcome = checked.map(|()| partition.offset).map_err(|error| at(error, &key));
                outcomes.push((key, outcome));
            }
        }
    }
    let missing = Error::protocol("the answer leaves out a partition").with_api("ListOffsets");
    outcomes.extend(refused(left, &missing));
    outcomes
}

#[cfg(test)]
mod tests {
    use wire::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    };

    use super::*;

    #[test]
    fn both_layouts_of_committed_offsets_are_read_and_what_was_never_committed_is_left_out() {
        let name = || kafka_string("orders");
        let old = |partition, offset| OffsetFetchResponsePartition {
            partition_index: partition,
            committed_offset: offset,
            committed_leader_epoch: 4,
            ..Default::default()
        };
        let topic = OffsetFetchResponseTopic { name: name(), partitions: vec![old(0, 7), old(1, -1)] };
        let old =
            committed_offsets("", wire::OffsetFetchResponse { topics: vec![topic], ..Default::default() })
                .unwrap();
        let new = |partition, offset| OffsetFetchResponsePartitions {
            partition_index: partition,
            committed_offset: offset,
            committed_leader_epoch: 4,
            ..Default::default()
        };
        let topic = OffsetFetchResponseTopics {
            name: name(),
            partitions: vec![new(0, 7), new(1, -1)],
            ..Default::default()
        };
        let group = OffsetFetchResponseGroup { topics: vec![topic], ..Default::default() };
        let new =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap();
        assert_eq!(old, new);
        let offset = OffsetAndMetadata::new(7).with_leader_epoch(4);
        assert!(new.into_iter().eq([(TopicPartition::new("orders", 0), offset)]));
    }

    #[test]
    fn an_error_for_the_group_or_for_a_partition_is_an_error() {
        let group = OffsetFetchResponseGroup { error_code: 16, ..Default::default() };
        let error =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap_err();
        assert!(error.is_retriable(), "{error}");
        let row = OffsetFetchResponsePartitions { partition_index: 3, error_code: 29, ..Default::default() };
        let topic = OffsetFetchResponseTopics { partitions: vec![row], ..Default::default() };
        let group = OffsetFetchResponseGroup { topics: vec![topic], ..Default::default() };
        let error =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap_err();
        assert_eq!(error.partition(), Some(3));
    }

    #[test]
    fn only_the_group_and_the_partitions_that_were_asked_about_count_and_none_may_be_left_out() {
        let group = |name: &str, error_code| OffsetFetchResponseGroup {
            group_id: kafka_string(name),
            error_code,
            ..Default::default()
        };
        let read =
            |groups| committed_offsets("g", wire::OffsetFetchResponse { groups, ..Default::default() });
        assert!(read(vec![group("g", 0), group("other", 30)]).is_ok());
        assert!(read(vec![group("other", 0), group("g", 30)]).is_err());
        assert!(read(vec![group("other", 0)]).unwrap_err().to_string().contains("without the group"));

        use wire::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
        let end = |partition_index, offset| ListOffsetsPartitionResponse {
            partition_index,
            offset,
            ..Default::default()
        };
        let refused = ListOffsetsPartitionResponse { error_code: 29, ..end(9, -1) };
        let listed = |partitions| wire::ListOffsetsResponse {
            topics: vec![ListOffsetsTopicResponse { name: kafka_string("t"), partitions }],
            ..Default::default()
        };
        let asked = || vec![TopicPartition::new("t", 0), TopicPartition::new("t", 1)];
        let answer = listed(vec![end(0, 5), refused, end(7, 1), end(1, 6), end(0, 99)]);
        let found = read_list_offsets(answer, asked());
        assert!(found.iter().map(|(_, end)| *end.as_ref().unwrap()).eq([5, 6]), "{found:?}");
        let mut found = read_list_offsets(listed(vec![end(0, 5)]), asked());
        let error = found.pop().unwrap().1.unwrap_err();
        assert_eq!((error.topic(), error.partition()), (Some("t"), Some(1)), "{error}");
        assert!(found.pop().unwrap().1.is_ok() && found.is_empty());
    }

    #[test]
    fn lag_is_never_negative_whatever_a_broker_says_of_the_end() {
        for (committed, end, expected) in
            [(5, 9, 4), (9, 5, 0), (5, i64::MIN, 0), (0, i64::MAX, i64::MAX), (i64::MAX, -1, 0)]
        {
            assert_eq!(Lag::of(committed, end).lag, expected, "{committed} of {end}");
        }
    }

    #[test]
    fn a_partition_without_an_end_does_not_hide_the_others() {
        use wire::metadata_response::MetadataResponsePartition;
        let led = |partition_index, leader_id| MetadataResponsePartition {
            partition_index,
            leader_id,
            ..Default::default()
        };
        let topic = |name: &str, error_code, partitions| MetadataResponseTopic {
            name: Some(kafka_string(name)),
            error_code,
            partitions,
            ..Default::default()
        };
        let topics = [topic("gone", 3, vec![]), topic("t", 0, vec![led(0, 7), led(1, -1)])];
        let key = TopicPartition::new;
        let all = [key("gone", 0), key("t", 0), key("t", 1), key("t", 2)];
        let mut left: BTreeSet<_> = all.iter().cloned().collect();
        let (by_leader, failures) = leaders(&left, &topics);
        assert_eq!(by_leader, [(7, vec![key("t", 0)])].into());
        let codes: Vec<_> =
            failures.iter().map(|(_, end)| end.as_ref().unwrap_err().code().unwrap().0).collect();
        assert_eq!(codes, [3, 5, 3]);

        let mut done = BTreeMap::new();
        let since = crate::time::now().checked_sub(super::super::HEARD_OF);
        let outcomes = failures.into_iter().chain([(key("t", 0), Ok(9))]).collect();
        let error =
            sort_out(&mut left, &mut done, outcomes, &mut Patience { unknown_since: since }).unwrap_err();
        assert!(error.partition() == Some(1) && left.iter().eq([&all[2]]), "it may get a leader: {error}");
        assert!(done.keys().eq([&all[0], &all[1], &all[3]]) && done[&all[1]].is_ok(), "{done:?}");
    }
}
