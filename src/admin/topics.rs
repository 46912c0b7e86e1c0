//! Topics: create, grow, delete, describe, list. Answers are per topic; only topics with a
//! retriable error are asked about again.

use std::collections::BTreeMap;

use super::{At, KafkaAdmin, PossiblyApplied, check_code, without};
use crate::{
    cluster::{
        UNKNOWN_TOPIC_OR_PARTITION, kafka_string,
        metadata::{told, topic_error},
        millis,
    },
    connection::api::{
        Api,
        wire::{
            self,
            create_partitions_request::CreatePartitionsTopic,
            create_topics_request::{CreatableTopic, CreatableTopicConfig},
            metadata_request::MetadataRequestTopic,
        },
    },
    error::{
        Error, ErrorCode, Result,
        code::{INVALID_PARTITIONS, TOPIC_ALREADY_EXISTS},
    },
    sorted::{self, Map},
    time,
};

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it is only created by `KafkaAdmin::create_topic`"]
pub struct NewTopic {
    name: String,
    partitions: i32,
    replication_factor: i16,
    configs: BTreeMap<String, String>,
}

impl NewTopic {
    /// A topic with the brokers' own number of partitions and replicas (`num.partitions`, `default.replication.factor`;
    /// KIP-464: brokers of 2.4 and newer).
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), partitions: -1, replication_factor: -1, configs: BTreeMap::new() }
    }

    /// The number of partitions, 1 or more.
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// On how many brokers each partition is kept, 1 to the number of brokers.
    pub fn replication_factor(mut self, replication_factor: i16) -> Self {
        self.replication_factor = replication_factor;
        self
    }

    /// A setting of the topic, such as `cleanup.policy`.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.configs.insert(name.into(), value.into());
        self
    }

    fn to_wire(&self) -> CreatableTopic {
        let config = |(name, value): (&String, &String)| CreatableTopicConfig {
            name: kafka_string(name),
            value: Some(kafka_string(value)),
        };
        CreatableTopic {
            name: kafka_string(&self.name),
            num_partitions: self.partitions,
            replication_factor: self.replication_factor,
            configs: self.configs.iter().map(config).collect(),
            ..Default::default()
        }
    }
}

/// What the cluster tells about a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Whether it is one of Kafka's own, such as `__consumer_offsets`.
    pub is_internal: bool,
    /// Its partitions, in order.
    pub partitions: Vec<PartitionDescription>,
}

/// What the cluster tells about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionDescription {
    /// Its number, from 0.
    pub partition: i32,
    /// The broker that leads it; `None` while there is none.
    pub leader: Option<i32>,
    /// The leader's epoch (KIP-320), where known.
    pub leader_epoch: Option<i32>,
    /// The brokers that keep it, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Those of them that are in sync.
    pub in_sync_replicas: Vec<i32>,
}

impl KafkaAdmin {
    /// Creates a topic and returns when the controller has; brokers may need a moment longer to know of it.
    ///
    /// # Errors
    /// The broker's: `TopicAlreadyExists`, `InvalidPartitions`, `InvalidReplicationFactor`, `InvalidConfig`,
    /// `TopicAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, the topic may or may not be created.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<()> {
        only(self.create_topics([topic]).await?)
    }

    /// Creates several topics; each has its own outcome.
    ///
    /// # Errors
    /// Those of no topic in particular: no connection, no time. Per topic as [`create_topic`](Self::create_topic).
    ///
    /// # Cancel safety
    /// If dropped, any of the topics may be created.
    pub async fn create_topics(
        &self,
        topics: impl IntoIterator<Item = NewTopic>,
    ) -> Result<BTreeMap<String, Result<()>>> {
        let mut left: Map<String, NewTopic> =
            topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        let (mut done, mut possibly) = (BTreeMap::new(), PossiblyApplied::default());
        let ended = retry!(self, At::Controller, self.deadline(), |connection, until| {
            let request = wire::CreateTopicsRequest {
                topics: left.values().map(NewTopic::to_wire).collect(),
                timeout_ms: millis(until.saturating_duration_since(time::now())),
                ..Default::default()
            };
            let answer = possibly.note(connection.call(request, until).await)?;
            let outcomes = answer.topics.into_iter().map(|topic| {
                let outcome = check_code("CreateTopics", topic.error_code, topic.error_message.as_deref());
                (topic.name.to_string(), outcome)
            });
            sort_out(&mut left, &mut done, outcomes.collect(), &mut possibly)
        });
        outcomes(left, done, ended, &possibly, TOPIC_ALREADY_EXISTS)
    }

    /// Raises the number of a topic's partitions to `total` (KIP-195), and returns when the controller has; brokers and clients may need a
    /// moment longer to know of the new ones. Keys go to other partitions from then on.
    ///
    /// # Errors
    /// The broker's: `InvalidPartitions` if the topic has as many already, or more; `UnknownTopicOrPartition`,
    /// `TopicAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, the partitions may or may not be added.
    pub async fn create_partitions(&self, topic: &str, total: i32) -> Result<()> {
        let mut possibly = PossiblyApplied::default();
        let ended = retry!(self, At::Controller, self.deadline(), |connection, until| {
            let asked = CreatePartitionsTopic { name: kafka_string(topic), count: total, assignments: None };
            let request = wire::CreatePartitionsRequest {
                topics: vec![asked],
                timeout_ms: millis(until.saturating_duration_since(time::now())),
                ..Default::default()
            };
            let answer = possibly.note(connection.call(request, until).await)?;
            let result = answer.results.into_iter().find(|result| result.name.as_str() == topic);
            let result = result.ok_or_else(|| without("topic"))?;
            let name = wire::CreatePartitionsRequest::NAME;
            possibly.note(check_code(name, result.error_code, result.error_message.as_deref()))
        });
        ended.map_err(|error| possibly.mark(error.with_topic(topic), INVALID_PARTITIONS))
    }

    /// Deletes a topic and returns when the controller has; brokers may serve it a moment longer.
    ///
    /// # Errors
    /// The broker's: `UnknownTopicOrPartition`, `TopicDeletionDisabled`, `TopicAuthorizationFailed` …;
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, the topic may or may not be deleted.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        only(self.delete_topics([topic]).await?)
    }

    /// Deletes several topics; each has its own outcome.
    ///
    /// # Errors
    /// Those of no topic in particular: no connection, no time. Per topic as [`delete_topic`](Self::delete_topic).
    ///
    /// # Cancel safety
    /// If dropped, any of the topics may be deleted.
    pub async fn delete_topics(
        &self,
        topics: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<BTreeMap<String, Result<()>>> {
        let mut left: Map<String, ()> = topics.into_iter().map(|topic| (topic.into(), ())).collect();
        let (mut done, mut possibly) = (BTreeMap::new(), PossiblyApplied::default());
        let ended = retry!(self, At::Controller, self.deadline(), |connection, until| {
            let mut request = wire::DeleteTopicsRequest {
                timeout_ms: millis(until.saturating_duration_since(time::now())),
                ..Default::default()
            };
            let version = connection.version::<wire::DeleteTopicsRequest>();
            if version.is_some_and(|version| version >= 6) {
                let topic = |name: &String| wire::delete_topics_request::DeleteTopicState {
                    name: Some(kafka_string(name)),
                    ..Default::default()
                };
                request.topics = left.keys().map(topic).collect();
            } else {
                request.topic_names = left.keys().map(|name| kafka_string(name)).collect();
            }
            let answer = possibly.note(connection.call(request, until).await)?;
            let outcomes = answer.responses.into_iter().filter_map(|topic| {
                let outcome = check_code("DeleteTopics", topic.error_code, topic.error_message.as_deref());
                Some((topic.name?.to_string(), outcome))
            });
            sort_out(&mut left, &mut done, outcomes.collect(), &mut possibly)
        });
        outcomes(left, done, ended, &possibly, UNKNOWN_TOPIC_OR_PARTITION)
    }

    /// One topic's partitions, leaders and replicas. Never creates a topic.
    ///
    /// # Errors
    /// `UnknownTopicOrPartition` (also for a moment after it was created), `TopicAuthorizationFailed` …;
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription> {
        only(self.describe_topics([topic]).await?)
    }

    /// Several topics' partitions, leaders and replicas; each has its own outcome. Never creates a topic.
    ///
    /// # Errors
    /// Those of no topic in particular: no connection, no time. Per topic as [`describe_topic`](Self::describe_topic).
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_topics(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<BTreeMap<String, Result<TopicDescription>>> {
        let topic =
            |name: &str| MetadataRequestTopic { name: Some(kafka_string(name)), ..Default::default() };
        let topics: Vec<_> = topics.into_iter().map(|name| topic(name.as_ref())).collect();
        if topics.is_empty() {
            // An empty list means every topic to brokers that speak version 0.
            return Ok(BTreeMap::new());
        }
        self.topics(Some(topics)).await
    }

    /// The names of every topic the user may see, Kafka's own included.
    ///
    /// # Errors
    /// No connection, no time.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn list_topics(&self) -> Result<Vec<String>> {
        Ok(self.topics(None).await?.into_keys().collect())
    }

    async fn topics(
        &self,
        topics: Option<Vec<MetadataRequestTopic>>,
    ) -> Result<BTreeMap<String, Result<TopicDescription>>> {
        retry!(self, self.deadline(), |until| {
            let request = wire::MetadataRequest {
                topics: topics.clone(),
                allow_auto_topic_creation: false,
                ..Default::default()
            };
            let answer = self.ask_any(request, told, until).await?;
            let is_asked = |name: &str| {
                let named = |topic: &MetadataRequestTopic| topic.name.as_deref() == Some(name);
                topics.as_ref().is_none_or(|asked| asked.iter().any(named))
            };
            let named = answer.topics.into_iter().filter_map(|topic| {
                let name = topic.name.as_ref().filter(|name| is_asked(name))?.to_string();
                let outcome = match topic.error_code {
                    0 => Ok(description(&name, topic)),
                    code => Err(topic_error(&name, ErrorCode(code))),
                };
                Some((name, outcome))
            });
            Ok(named.collect())
        })
    }
}

fn description(name: &str, topic: wire::metadata_response::MetadataResponseTopic) -> TopicDescription {
    let mut partitions: Vec<_> = topic
        .partitions
        .into_iter()
        .map(|partition| PartitionDescription {
            partition: partition.partition_index,
            leader: (partition.leader_id >= 0).then_some(partition.leader_id),
            leader_epoch: (partition.leader_epoch >= 0).then_some(partition.leader_epoch),
            replicas: partition.replica_nodes,
            in_sync_replicas: partition.isr_nodes,
        })
        .collect();
    sorted::sort_by(&mut partitions, |a, b| a.partition.cmp(&b.partition));
    TopicDescription { name: name.to_owned(), is_internal: topic.is_internal, partitions }
}

/// Moves every topic with a final outcome from `left` to `done`. An error is one that calls for another try.
fn sort_out<T>(
    left: &mut Map<String, T>,
    done: &mut BTreeMap<String, Result<()>>,
    outcomes: Vec<(String, Result<()>)>,
    possibly: &mut PossiblyApplied,
) -> Result<()> {
    let mut patience = None;
    for (name, outcome) in outcomes {
        // It is listed twice, or nobody asked about it.
        if !left.contains_key(&name) {
            continue;
        }
        match outcome.map_err(|error| error.with_topic(name.as_str())) {
            Err(error) if error.is_retriable() && !is_final(&error) => {
                possibly.handle(&error);
                patience = Some(error);
            }
            outcome => {
                left.remove(&name);
                done.insert(name, outcome);
            }
        }
    }
    match (patience, left.keys().next()) {
        (Some(error), _) => Err(error),
        (None, None) => Ok(()),
        (None, Some(name)) => {
            Err(Error::protocol("the broker's answer leaves out a topic").with_topic(name.as_str()))
        }
    }
}

/// `UnknownTopicOrPartition` is retriable when a topic is used, and final when it is deleted.
fn is_final(error: &Error) -> bool {
    error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)
}

/// The outcome of each topic. The error with which the call `ended` is that of the topics that are left, or of the whole
/// call if no topic has an outcome.
fn outcomes<T>(
    left: Map<String, T>,
    done: BTreeMap<String, Result<()>>,
    ended: Result<()>,
    possibly: &PossiblyApplied,
    made: i16,
) -> Result<BTreeMap<String, Result<()>>> {
    let mark = |error| possibly.mark(error, made);
    let mut told: BTreeMap<_, _> =
        done.into_iter().map(|(name, outcome)| (name, outcome.map_err(mark))).collect();
    if let Err(error) = ended.map_err(mark) {
        if told.is_empty() {
            return Err(error);
        }
        told.extend(left.into_keys().map(|name| (name.clone(), Err(error.clone().with_topic(name)))));
    }
    Ok(told)
}

/// The outcome of a call about one topic.
fn only<T>(outcomes: BTreeMap<String, Result<T>>) -> Result<T> {
    outcomes.into_values().next().unwrap_or_else(|| Err(without("topic")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn left() -> Map<String, ()> {
        ["a", "b"].map(|name| (name.to_owned(), ())).into()
    }

    #[test]
    fn only_topics_whose_error_calls_for_patience_are_asked_about_again() {
        let (mut left, mut done) = (left(), BTreeMap::new());
        let outcomes = vec![("a".to_owned(), Ok(())), ("b".to_owned(), check_code("CreateTopics", 41, None))];
        let error = sort_out(&mut left, &mut done, outcomes, &mut PossiblyApplied::default()).unwrap_err();
        assert_eq!((error.code(), error.topic()), (Some(ErrorCode(41)), Some("b")));
        assert!(left.keys().eq(["b"]) && done["a"].is_ok());
        let outcomes =
            vec![("b".to_owned(), check_code("CreateTopics", 36, Some("Topic 'b' already exists.")))];
        sort_out(&mut left, &mut done, outcomes, &mut PossiblyApplied::default()).unwrap();
        let error = done["b"].clone().unwrap_err();
        assert!(error.to_string().contains("already exists"), "{error}");
    }

    #[test]
    fn a_topic_that_is_not_there_is_a_final_answer_to_a_deletion() {
        let (mut left, mut done) = (left(), BTreeMap::new());
        let outcomes = vec![("a".to_owned(), Ok(())), ("b".to_owned(), check_code("DeleteTopics", 3, None))];
        sort_out(&mut left, &mut done, outcomes, &mut PossiblyApplied::default()).unwrap();
        assert_eq!(done["b"].clone().unwrap_err().code(), Some(ErrorCode(3)));
    }

    #[test]
    fn an_answer_that_leaves_out_a_topic_is_an_error() {
        let (mut left, mut done) = (left(), BTreeMap::new());
        let error =
            sort_out(&mut left, &mut done, vec![("a".to_owned(), Ok(()))], &mut PossiblyApplied::default())
                .unwrap_err();
        assert_eq!((error.kind(), error.topic()), (ErrorKind::Protocol, Some("b")));
    }

    #[test]
    fn what_an_answer_says_twice_or_of_other_topics_counts_for_nothing() {
        let (mut left, mut done) = (left(), BTreeMap::new());
        let refused = || check_code("CreateTopics", 36, None);
        let say = |name: &str, error| (name.to_owned(), error);
        let outcomes = vec![
            say("0", refused()),
            say("a", Ok(())),
            say("a", refused()),
            say("b", Ok(())),
            say("z", refused()),
        ];
        sort_out(&mut left, &mut done, outcomes, &mut PossiblyApplied::default()).unwrap();
        assert!(done.keys().eq(["a", "b"]) && done.values().all(Result::is_ok), "{done:?}");
    }

    #[test]
    fn what_is_known_of_topics_is_told_though_the_call_ends_without_an_answer_for_others() {
        let (mut left, mut done, mut possibly) = (left(), BTreeMap::new(), PossiblyApplied::default());
        let lost = || Error::new(ErrorKind::Timeout, "no answer");
        possibly.note(Err::<(), _>(lost())).unwrap_err();
        let whole = outcomes(left.clone(), done.clone(), Err(lost()), &possibly, TOPIC_ALREADY_EXISTS);
        assert!(whole.unwrap_err().possibly_written(), "nothing is known of any of them");

        let exists = check_code("CreateTopics", TOPIC_ALREADY_EXISTS, None);
        let patience = check_code("CreateTopics", 41, None);
        let said = vec![("a".to_owned(), exists), ("b".to_owned(), patience)];
        let error = sort_out(&mut left, &mut done, said, &mut possibly).unwrap_err();
        let told =
            outcomes(left, done, Err(lost().with_source(error)), &possibly, TOPIC_ALREADY_EXISTS).unwrap();
        let told = told.iter().map(|(name, outcome)| (name.as_str(), outcome.as_ref().unwrap_err()));
        for (name, error) in told {
            assert_eq!(error.topic(), Some(name));
            assert!(error.possibly_written() && error.to_string().contains("may have done it"), "{error}");
        }
    }

    #[test]
    fn partitions_are_described_in_order_and_without_a_leader_that_is_not_there() {
        use wire::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};
        let partition = |index: i32, leader: i32| MetadataResponsePartition {
            partition_index: index,
            leader_id: leader,
            ..Default::default()
        };
        let topic = MetadataResponseTopic {
            partitions: vec![partition(1, 7), partition(0, -1)],
            ..Default::default()
        };
        let description = description("orders", topic);
        let leaders: Vec<_> = description.partitions.iter().map(|p| (p.partition, p.leader)).collect();
        assert_eq!(leaders, [(0, None), (1, Some(7))]);
    }
}
