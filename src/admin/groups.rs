//! Consumer groups and what they have committed. Each group is asked about at its own coordinator.

use std::{collections::BTreeMap, sync::Arc};

use super::{At, Doubt, KafkaAdmin, broker_error};
use crate::{
    cluster::{Create, Lane, kafka_string},
    connection::{Connection, api::wire},
    error::{
        Error, Result,
        code::{GROUP_ID_NOT_FOUND, UNSUPPORTED_VERSION},
    },
    group::wire::decode_assignment,
    record::{OffsetAndMetadata, TopicPartition, serialize_fields},
    sorted::{Map, Set},
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

serialize_fields! {
    OffsetAndMetadata { offset, leader_epoch, metadata }
    Lag { committed, end, lag }
}

/// One group of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupListing {
    /// `consumer` for consumer groups; empty where nobody has joined yet.
    pub protocol_type: String,
    /// `Stable`, `Empty` … (KIP-518: brokers of 2.6 and newer).
    pub state: Option<String>,
    /// `classic` or `consumer` (KIP-848: brokers of 3.8 and newer).
    pub group_type: Option<String>,
}

/// A group and its members, in either protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub group_id: String,
    /// `Stable`, `PreparingRebalance`, `CompletingRebalance` or `Empty`; in the consumer protocol `Stable`, `Assigning`,
    /// `Reconciling` or `Empty`.
    pub state: String,
    /// `classic`, or `consumer` (KIP-848).
    pub group_type: String,
    /// `consumer` for consumer groups.
    pub protocol_type: String,
    /// The assignor in use, such as `range`; empty where there is no member.
    pub protocol: String,
    /// The members, as the coordinator lists them.
    pub members: Vec<MemberDescription>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberDescription {
    /// The id the coordinator gave it, or that it made for itself (KIP-848).
    pub member_id: String,
    /// Its own name, if it is a static member (KIP-345).
    pub group_instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// The address it comes from, as the broker sees it.
    pub client_host: String,
    /// The partitions assigned to it, in order.
    pub assignment: Vec<TopicPartition>,
    /// Its epoch in the consumer protocol (KIP-848).
    pub member_epoch: Option<i32>,
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
        retry!(self, At::Coordinator(group), |connection, until| {
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
            committed_offsets(group, connection.call_up_to::<9, _>(request, until).await?)
        })
    }

    /// How far a group is behind, for every partition it has committed. What it has never committed is not in it: a new group, or
    /// one that is stuck at its first record, has no lag here, and a name that no group has gives an empty map. Compare with
    /// [`latest_offsets`](Self::latest_offsets) of its topics to see those.
    ///
    /// # Errors
    /// As [`group_offsets`](Self::group_offsets) and [`latest_offsets`](Self::latest_offsets).
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn group_lag(&self, group: &str) -> Result<BTreeMap<TopicPartition, Lag>> {
        let committed = self.group_offsets(group).await?;
        let ends = self.latest_offsets(committed.keys().cloned()).await?;
        let lag = |(partition, end): (TopicPartition, i64)| {
            let committed = committed.get(&partition)?.offset;
            Some((partition, Lag { committed, end, lag: (end - committed).max(0) }))
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
        let partitions: Vec<TopicPartition> = partitions.into_iter().collect();
        let mut topics: Vec<_> = partitions.iter().map(|partition| partition.topic.clone()).collect();
        topics.sort();
        topics.dedup();
        let mut found = BTreeMap::new();
        retry!(self, At::Any, |_, until| {
            let metadata = self.cluster.require_topics(&topics, Create::Never, until).await?;
            let mut by_leader: Map<i32, Vec<&TopicPartition>> = Map::new();
            for partition in partitions.iter().filter(|partition| !found.contains_key(*partition)) {
                let (leader, _) =
                    metadata.leader(&partition.topic, partition.partition).ok_or_else(|| {
                        // LEADER_NOT_AVAILABLE: it may get one.
                        at(Error::from_code("Metadata", 5), partition)
                    })?;
                by_leader.entry(leader).or_default().push(partition);
            }
            for (leader, partitions) in by_leader {
                let request = list_offsets(&partitions);
                let answer = self.cluster.call(leader, Lane::Main, request, until).await?;
                read_list_offsets(answer, &partitions, &mut found)?;
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// A group and its members, of the classic or the consumer protocol (KIP-848).
    ///
    /// # Errors
    /// `GroupIdNotFound` if there is no such group (on every version of Kafka), or it is of another kind (shares, streams);
    /// `GroupAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        retry!(self, At::Coordinator(group), |connection, until| {
            let request =
                wire::DescribeGroupsRequest { groups: vec![kafka_string(group)], ..Default::default() };
            let answer = connection.call(request, until).await?;
            let described = answer
                .groups
                .into_iter()
                .find(|described| described.group_id.as_str() == group)
                .ok_or_else(|| Error::protocol("an answer without the group asked for"))?;
            let message = described.error_message.as_deref();
            let error = broker_error("DescribeGroups", described.error_code, message);
            // Before version 6 (KIP-1043), a group that is not there is described as dead.
            let is_dead = described.group_state.as_str() == "Dead";
            let missing = || Error::from_code("DescribeGroups", GROUP_ID_NOT_FOUND);
            match error.or_else(|| is_dead.then(missing)) {
                None => describe(described),
                Some(error) if is_missing(&error) => {
                    match describe_consumer(&connection, group, until).await? {
                        Some(group) => Ok(group),
                        None => Err(error),
                    }
                }
                Some(error) => Err(error),
            }
        })
    }

    /// Every group the user may see, by name. Asks every broker.
    ///
    /// # Errors
    /// The first broker's error; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn list_groups(&self) -> Result<BTreeMap<String, GroupListing>> {
        let mut found = BTreeMap::new();
        let brokers: Vec<i32> = self.cluster.metadata().brokers.keys().copied().collect();
        for broker in brokers {
            let listed = retry!(self, At::Broker(broker), |connection, until| {
                let answer = connection.call(wire::ListGroupsRequest::default(), until).await?;
                broker_error("ListGroups", answer.error_code, None)
                    .map_or(Ok(answer.groups), |error| Err(error.with_broker(broker)))
            })?;
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            found.extend(listed.into_iter().map(|group| {
                let listing = GroupListing {
                    protocol_type: group.protocol_type.to_string(),
                    state: text(&group.group_state),
                    group_type: text(&group.group_type),
                };
                (group.group_id.to_string(), listing)
            }));
        }
        Ok(found)
    }

    /// Deletes groups without members, with their offsets; each has its own outcome.
    ///
    /// # Errors
    /// None but those per group: `NonEmptyGroup`, `GroupIdNotFound`, `GroupAuthorizationFailed` …,
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, any of the groups may be deleted.
    pub async fn delete_groups(
        &self,
        groups: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<BTreeMap<String, Result<()>>> {
        let mut done = BTreeMap::new();
        for group in groups {
            let (group, mut doubt) = (group.into(), Doubt::default());
            let outcome = retry!(self, At::Coordinator(&group), |connection, until| {
                let names = vec![kafka_string(&group)];
                let request = wire::DeleteGroupsRequest { groups_names: names };
                let answer = doubt.note(connection.call(request, until).await)?;
                let result = answer.results.into_iter().find(|result| result.group_id.as_str() == group);
                let result =
                    result.ok_or_else(|| Error::protocol("an answer without the group asked for"))?;
                broker_error("DeleteGroups", result.error_code, None).map_or(Ok(()), Err)
            });
            done.insert(group, outcome.map_err(|error| doubt.word(error, GROUP_ID_NOT_FOUND)));
        }
        Ok(done)
    }
}

fn at(error: Error, partition: &TopicPartition) -> Error {
    error.with_topic(partition.topic.clone()).with_partition(partition.partition)
}

/// Both layouts of an OffsetFetch answer: one group (up to version 7), or a list with one group in it.
fn committed_offsets(
    group: &str,
    answer: wire::OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
    let (is_listed, mut groups) = (!answer.groups.is_empty(), answer.groups.into_iter());
    let (code, rows): (i16, Vec<_>) = match groups.find(|found| found.group_id.as_str() == group) {
        None if is_listed => return Err(Error::protocol("an answer without the group asked for")),
        Some(group) => {
            let rows = group.topics.into_iter().flat_map(|topic| {
                let name = topic.name;
                topic.partitions.into_iter().map(move |p| {
                    let key = TopicPartition::new(name.as_str(), p.partition_index);
                    (key, p.error_code, p.committed_offset, p.committed_leader_epoch, p.metadata)
                })
            });
            (group.error_code, rows.collect())
        }
        None => {
            let rows = answer.topics.into_iter().flat_map(|topic| {
                let name = topic.name;
                topic.partitions.into_iter().map(move |p| {
                    let key = TopicPartition::new(name.as_str(), p.partition_index);
                    (key, p.error_code, p.committed_offset, p.committed_leader_epoch, p.metadata)
                })
            });
            (answer.error_code, rows.collect())
        }
    };
    if let Some(error) = broker_error("OffsetFetch", code, None) {
        return Err(error);
    }
    let mut found = BTreeMap::new();
    for (key, code, offset, epoch, metadata) in rows {
        if let Some(error) = broker_error("OffsetFetch", code, None) {
            return Err(at(error, &key));
        }
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

fn list_offsets(partitions: &[&TopicPartition]) -> wire::ListOffsetsRequest {
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

fn read_list_offsets(
    answer: wire::ListOffsetsResponse,
    asked: &[&TopicPartition],
    found: &mut BTreeMap<TopicPartition, i64>,
) -> Result<()> {
    let mut left: Set<&TopicPartition> = asked.iter().copied().collect();
    for topic in answer.topics {
        for partition in topic.partitions {
            let key = TopicPartition::new(topic.name.as_str(), partition.partition_index);
            if !left.remove(&key) {
                continue;
            }
            if let Some(error) = broker_error("ListOffsets", partition.error_code, None) {
                return Err(at(error, &key));
            }
            found.insert(key, partition.offset);
        }
    }
    let missing = || Error::protocol("the answer leaves out a partition").with_api("ListOffsets");
    left.first().map_or(Ok(()), |partition| Err(at(missing(), partition)))
}

fn describe(group: wire::describe_groups_response::DescribedGroup) -> Result<GroupDescription> {
    let is_consumer = group.protocol_type.as_str() == "consumer";
    let members = group.members.into_iter().map(|member| {
        let assignment = if is_consumer { read_assignment(&member.member_assignment)? } else { Vec::new() };
        Ok(MemberDescription {
            member_id: member.member_id.to_string(),
            group_instance_id: member.group_instance_id.map(|id| id.to_string()),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            assignment,
            member_epoch: None,
        })
    });
    Ok(GroupDescription {
        group_id: group.group_id.to_string(),
        state: group.group_state.to_string(),
        group_type: "classic".to_owned(),
        protocol_type: group.protocol_type.to_string(),
        protocol: group.protocol_data.to_string(),
        members: members.collect::<Result<_>>()?,
    })
}

fn is_missing(error: &Error) -> bool {
    error.code().is_some_and(|code| code.0 == GROUP_ID_NOT_FOUND)
}

/// A group of the consumer protocol; `None` if there is none of this name, or the broker does not have the protocol.
async fn describe_consumer(
    connection: &Connection,
    group: &str,
    until: Instant,
) -> Result<Option<GroupDescription>> {
    if connection.version::<wire::ConsumerGroupDescribeRequest>().is_none() {
        return Ok(None);
    }
    let request =
        wire::ConsumerGroupDescribeRequest { group_ids: vec![kafka_string(group)], ..Default::default() };
    let answer = connection.call(request, until).await?;
    let described = answer.groups.into_iter().find(|described| described.group_id.as_str() == group);
    let described = described.ok_or_else(|| Error::protocol("an answer without the group asked for"))?;
    match broker_error("ConsumerGroupDescribe", described.error_code, described.error_message.as_deref()) {
        None => Ok(Some(consumer_description(described))),
        // The feature may be off (group.version 0).
        Some(error)
            if is_missing(&error) || error.code().is_some_and(|code| code.0 == UNSUPPORTED_VERSION) =>
        {
            Ok(None)
        }
        Some(error) => Err(error),
    }
}

fn consumer_description(group: wire::consumer_group_describe_response::DescribedGroup) -> GroupDescription {
    let member = |member: wire::consumer_group_describe_response::Member| {
        let mut assignment = Vec::new();
        for topic in member.assignment.topic_partitions {
            let name: Arc<str> = Arc::from(topic.topic_name.as_str());
            let of_topic = |partition| TopicPartition { topic: Arc::clone(&name), partition };
            assignment.extend(topic.partitions.into_iter().map(of_topic));
        }
        assignment.sort();
        MemberDescription {
            member_id: member.member_id.to_string(),
            group_instance_id: member.instance_id.map(|id| id.to_string()),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            assignment,
            member_epoch: Some(member.member_epoch),
        }
    };
    GroupDescription {
        group_id: group.group_id.to_string(),
        state: group.group_state.to_string(),
        group_type: "consumer".to_owned(),
        protocol_type: "consumer".to_owned(),
        protocol: group.assignor_name.to_string(),
        members: group.members.into_iter().map(member).collect(),
    }
}

/// A member's assignment as its leader wrote it. Empty while the group rebalances.
fn read_assignment(bytes: &[u8]) -> Result<Vec<TopicPartition>> {
    if bytes.is_empty() { Ok(Vec::new()) } else { decode_assignment(bytes) }
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
        let keys = [TopicPartition::new("t", 0), TopicPartition::new("t", 1)];
        let asked: Vec<_> = keys.iter().collect();
        let mut found = BTreeMap::new();
        let answer = listed(vec![end(0, 5), refused, end(7, 1), end(1, 6), end(0, 99)]);
        read_list_offsets(answer, &asked, &mut found).unwrap();
        assert!(found.values().eq(&[5, 6]), "{found:?}");
        let error = read_list_offsets(listed(vec![end(0, 5)]), &asked, &mut found).unwrap_err();
        assert_eq!((error.topic(), error.partition()), (Some("t"), Some(1)), "{error}");
    }
}
