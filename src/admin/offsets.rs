//! Where partitions end, asked of their leaders.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use super::{KafkaAdmin, Patience, check_code, without};
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
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

/// ListOffsets: the offset after the last record.
const LATEST: i64 = -1;

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
        let ends = self.ends(partitions.into_iter().collect(), self.deadline()).await?;
        ends.into_iter().map(|(partition, end)| Ok((partition, end?))).collect()
    }

    /// The end of each partition, or why it cannot be told.
    pub(super) async fn ends(
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

pub(super) fn at(error: Error, partition: &TopicPartition) -> Error {
    error.with_topic(partition.topic.clone()).with_partition(partition.partition)
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
