//! What leaders are asked about partitions: where they begin and end, and to delete their oldest records.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use super::{KafkaAdmin, NO_ERROR, Patience, PossiblyApplied, check_code, without};
use crate::{
    cluster::{
        kafka_string,
        metadata::{told, topic_error},
        millis,
    },
    connection::api::{
        Api,
        wire::{self, metadata_response::MetadataResponseTopic},
    },
    error::{
        Error, ErrorCode, Result,
        code::{LEADER_NOT_AVAILABLE, UNKNOWN_TOPIC_OR_PARTITION},
    },
    record::TopicPartition,
    sorted::Map,
    time::{self, Instant},
};

/// ListOffsets: the offset after the last record, and that of the first one.
pub(super) const LATEST: i64 = -1;
const EARLIEST: i64 = -2;

/// What leaders are asked, with a number for each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Its offset for a time, or one of its ends ([`LATEST`], [`EARLIEST`]).
    Offset,
    /// To delete what lies below an offset, and to tell where the log begins then.
    Deletion,
}

/// Partitions that one leader is asked about, with that number.
type Asked = Vec<(TopicPartition, i64)>;

/// Partitions without a final outcome, with the number that goes with what is asked.
type Left = BTreeMap<TopicPartition, i64>;

impl KafkaAdmin {
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
        self.ends(partitions, LATEST, self.deadline()).await?.into_iter().map(known).collect()
    }

    /// The offset of the first record that each partition still has, or will get if it has none.
    ///
    /// # Errors
    /// As for [`latest_offsets`](Self::latest_offsets).
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn earliest_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        self.ends(partitions, EARLIEST, self.deadline()).await?.into_iter().map(known).collect()
    }

    /// Deletes the records of each partition below an offset, and tells the offset of the first record that is left (KIP-107).
    /// Each partition has its own outcome. Whoever reads below it gets the offset that `auto.offset.reset` says. An offset of -1 stands
    /// for all that is there when the leader is asked: if an answer is lost, that is what was written since as well.
    ///
    /// # Errors
    /// Those of no partition in particular: no connection, no time. Per partition `OffsetOutOfRange` for one beyond the records
    /// that all in-sync replicas have, `PolicyViolation` for a topic whose `cleanup.policy` does not contain `delete`,
    /// `TopicAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, any of the records may be deleted.
    pub async fn delete_records(
        &self,
        below: impl IntoIterator<Item = (TopicPartition, i64)>,
    ) -> Result<BTreeMap<TopicPartition, Result<i64>>> {
        self.at_leaders(Ask::Deletion, below.into_iter().collect(), self.deadline()).await
    }

    /// The same end of each partition, or why it cannot be told.
    pub(super) async fn ends(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
        which: i64,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Result<i64>>> {
        let left = partitions.into_iter().map(|partition| (partition, which)).collect();
        self.at_leaders(Ask::Offset, left, deadline).await
    }

    /// What the leader of each partition answers, or why there is no answer.
    async fn at_leaders(
        &self,
        ask: Ask,
        mut left: Left,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Result<i64>>> {
        let mut settled = Settled::default();
        if left.is_empty() {
            return Ok(settled.done);
        }
        let ended = retry!(self, deadline, |until| {
            let answer = self.ask_any(topics_of(&left), told, until).await?;
            let (by_leader, mut outcomes) = leaders(&left, &answer.topics);
            self.cluster.learn_brokers(answer.brokers);
            let asked: Vec<_> = by_leader
                .into_iter()
                .map(|(leader, asked)| self.at_leader(ask, leader, asked, until))
                .collect();
            outcomes.extend(join_all(asked).await.into_iter().flatten());
            settled.sort_out(&mut left, outcomes)
        });
        match ask {
            Ask::Offset => settled.end(left, ended, |error, _| error),
            Ask::Deletion => settled.end(left, ended, |error, possibly| possibly.mark(error, NO_ERROR)),
        }
    }

    /// What one leader answers.
    async fn at_leader(&self, ask: Ask, leader: i32, asked: Asked, until: Instant) -> Outcomes<i64> {
        let rows = match ask {
            Ask::Offset => {
                let answer = self.call(leader, list_offsets(&asked), until).await;
                answer.map(|answer| rows!(answer.topics, |p| p.offset))
            }
            Ask::Deletion => {
                let answer = self.call(leader, delete_records(&asked, until), until).await;
                answer.map(|answer| rows!(answer.topics, |p| p.low_watermark))
            }
        };
        let asked = asked.into_iter().map(|(partition, _)| partition);
        match rows {
            Ok(rows) => read_rows(ask.api(), rows, asked.collect()),
            Err(error) => refused(asked, &error).collect(),
        }
    }
}

impl Ask {
    fn api(self) -> &'static str {
        match self {
            Self::Offset => wire::ListOffsetsRequest::NAME,
            Self::Deletion => wire::DeleteRecordsRequest::NAME,
        }
    }
}

fn known((partition, end): (TopicPartition, Result<i64>)) -> Result<(TopicPartition, i64)> {
    Ok((partition, end?))
}

/// Asks who leads the partitions.
fn topics_of(partitions: &Left) -> wire::MetadataRequest {
    let mut names: Vec<&str> = partitions.keys().map(|partition| &*partition.topic).collect();
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

/// Partitions with what is known of them.
pub(super) type Outcomes<T> = Vec<(TopicPartition, Result<T>)>;

/// Partitions by their leaders, and why some have none.
fn leaders(partitions: &Left, topics: &[MetadataResponseTopic]) -> (Map<i32, Asked>, Outcomes<i64>) {
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
    let (mut found, mut failures) = (Map::<i32, Asked>::new(), Vec::new());
    for (key, number) in partitions {
        match leader(key) {
            Ok(leader) => found.entry(leader).or_default().push((key.clone(), *number)),
            Err(error) => failures.push((key.clone(), Err(at(error, key)))),
        }
    }
    (found, failures)
}

/// The final outcomes of a call about several partitions.
pub(super) struct Settled<T> {
    pub(super) done: BTreeMap<TopicPartition, Result<T>>,
    patience: Patience,
    pub(super) possibly: PossiblyApplied,
}

impl<T> Default for Settled<T> {
    fn default() -> Self {
        Self { done: BTreeMap::new(), patience: Patience::default(), possibly: PossiblyApplied::default() }
    }
}

impl<T> Settled<T> {
    /// Moves every partition with a final outcome out of `left`. An error is one that calls for another try.
    pub(super) fn sort_out<A>(
        &mut self,
        left: &mut BTreeMap<TopicPartition, A>,
        outcomes: Outcomes<T>,
    ) -> Result<()> {
        let mut again = None;
        for (partition, outcome) in outcomes {
            match outcome {
                Err(error) if self.patience.is_passing(&error) => {
                    self.possibly.handle(&error);
                    again = Some(error);
                }
                outcome => {
                    left.remove(&partition);
                    self.done.insert(partition, outcome);
                }
            }
        }
        again.map_or(Ok(()), Err)
    }

    /// What the call says once it has `ended`: its error is that of the partitions that are left, or of the whole call if no
    /// partition has an outcome.
    pub(super) fn end<A>(
        mut self,
        left: BTreeMap<TopicPartition, A>,
        ended: Result<()>,
        mark: impl Fn(Error, &PossiblyApplied) -> Error,
    ) -> Result<BTreeMap<TopicPartition, Result<T>>> {
        if let Err(error) = ended {
            self.possibly.handle(&error);
            let error = mark(error, &self.possibly);
            if self.done.is_empty() {
                return Err(error);
            }
            self.done.extend(refused(left.into_keys(), &error));
        }
        Ok(self.done)
    }
}

/// The same error for each of them.
fn refused<'a, T>(
    partitions: impl IntoIterator<Item = TopicPartition> + 'a,
    error: &'a Error,
) -> impl Iterator<Item = (TopicPartition, Result<T>)> + 'a {
    partitions.into_iter().map(|partition| {
        let error = at(error.clone(), &partition);
        (partition, Err(error))
    })
}

pub(super) fn at(error: Error, partition: &TopicPartition) -> Error {
    error.with_topic(partition.topic.clone()).with_partition(partition.partition)
}

fn list_offsets(asked: &[(TopicPartition, i64)]) -> wire::ListOffsetsRequest {
    use wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let partition = |partition_index, timestamp| ListOffsetsPartition {
        partition_index,
        current_leader_epoch: -1,
        timestamp,
    };
    let topic = |(name, partitions): (&str, _)| ListOffsetsTopic { name: kafka_string(name), partitions };
    wire::ListOffsetsRequest {
        replica_id: -1,
        topics: by_topic(pairs(asked), partition).into_iter().map(topic).collect(),
        ..Default::default()
    }
}

fn delete_records(asked: &[(TopicPartition, i64)], until: Instant) -> wire::DeleteRecordsRequest {
    use wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
    let partition = |partition_index, offset| DeleteRecordsPartition { partition_index, offset };
    let topic = |(name, partitions): (&str, _)| DeleteRecordsTopic { name: kafka_string(name), partitions };
    wire::DeleteRecordsRequest {
        topics: by_topic(pairs(asked), partition).into_iter().map(topic).collect(),
        timeout_ms: millis(until.saturating_duration_since(time::now())),
    }
}

fn pairs(asked: &[(TopicPartition, i64)]) -> impl Iterator<Item = (&TopicPartition, i64)> {
    asked.iter().map(|(key, number)| (key, *number))
}

/// A row for each partition, under the name of its topic.
pub(super) fn by_topic<'a, A: 'a, P>(
    asked: impl IntoIterator<Item = (&'a TopicPartition, A)>,
    row: impl Fn(i32, A) -> P,
) -> Map<&'a str, Vec<P>> {
    let mut topics: Map<&str, Vec<P>> = Map::new();
    for (key, asked) in asked {
        topics.entry(&key.topic).or_default().push(row(key.partition, asked));
    }
    topics
}

/// The outcome of each partition that was asked about: one that is listed twice, or that nobody asked about, counts for nothing.
pub(super) fn read_rows<T>(
    api: &'static str,
    rows: Vec<(TopicPartition, i16, T)>,
    mut left: BTreeSet<TopicPartition>,
) -> Outcomes<T> {
    let mut outcomes = Vec::with_capacity(left.len());
    for (key, code, value) in rows {
        if left.remove(&key) {
            let outcome = check_code(api, code, None).map(|()| value).map_err(|error| at(error, &key));
            outcomes.push((key, outcome));
        }
    }
    let missing = Error::protocol("the answer leaves out a partition").with_api(api);
    outcomes.extend(refused(left, &missing));
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_partitions_that_were_asked_about_count_and_none_may_be_left_out() {
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
        let asked = || [0, 1].map(|partition| TopicPartition::new("t", partition)).into();
        let answer = listed(vec![end(0, 5), refused, end(7, 1), end(1, 6), end(0, 99)]);
        let read = |answer: wire::ListOffsetsResponse| {
            read_rows("ListOffsets", rows!(answer.topics, |p| p.offset), asked())
        };
        let found = read(answer);
        assert!(found.iter().map(|(_, end)| *end.as_ref().unwrap()).eq([5, 6]), "{found:?}");
        let mut found = read(listed(vec![end(0, 5)]));
        let error = found.pop().unwrap().1.unwrap_err();
        assert_eq!((error.topic(), error.partition()), (Some("t"), Some(1)), "{error}");
        assert!(found.pop().unwrap().1.is_ok() && found.is_empty());
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
        let mut left: Left = all.iter().map(|key| (key.clone(), LATEST)).collect();
        let (by_leader, failures) = leaders(&left, &topics);
        assert_eq!(by_leader, [(7, vec![(key("t", 0), LATEST)])].into());
        let codes: Vec<_> =
            failures.iter().map(|(_, end)| end.as_ref().unwrap_err().code().unwrap().0).collect();
        assert_eq!(codes, [3, 5, 3]);

        let since = time::now().checked_sub(super::super::HEARD_OF);
        let mut settled = Settled { patience: Patience { unknown_since: since }, ..Settled::default() };
        let outcomes = failures.into_iter().chain([(key("t", 0), Ok(9))]).collect();
        let error = settled.sort_out(&mut left, outcomes).unwrap_err();
        assert!(error.partition() == Some(1) && left.keys().eq([&all[2]]), "it may get a leader: {error}");
        let done = settled.end(left, Err(error), |error, _| error).unwrap();
        assert!(done[&all[2]].is_err(), "{done:?}");
        assert!(done.keys().eq(&all) && done[&all[1]].is_ok(), "{done:?}");
    }
}
