//! Committed offsets: written to the coordinator, and read from it.

use std::sync::Arc;

use super::{Shared, by_topic_id, coordinator, group_id, noted, of_one_request, unless_moved};
use crate::{
    cluster::{Lane, TopicId, kafka_string},
    connection::api::wire,
    consumer::{
        lookups::{Found, FoundOffset},
        offsets::CommitAction,
    },
    error::{
        Error, Result,
        code::{UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION},
    },
    group::Identity,
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

/// The last version of OffsetCommit and OffsetFetch that names topics by name.
const OFFSETS_BY_NAME: i16 = 9;

/// Commits; the coordinator's code for every partition.
pub(in crate::consumer) async fn commit(
    shared: &Shared,
    commit: &CommitAction,
) -> Result<Map<TopicPartition, i16>> {
    use wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let topics = by_topic_id(
        commit.offsets.iter(),
        |(key, _)| key,
        |(key, offset)| OffsetCommitRequestPartition {
            partition_index: key.partition,
            committed_offset: offset.offset,
            committed_leader_epoch: offset.leader_epoch,
            committed_metadata: Some(kafka_string(&offset.metadata)),
        },
        |(_, offset)| offset.topic_id,
    );
    let ids = Ids::new(topics.iter().map(|(name, id, _)| (name, *id)));
    let topic =
        |(name, id, partitions)| OffsetCommitRequestTopic { name, topic_id: wire::Uuid(id), partitions };
    let request = wire::OffsetCommitRequest {
        group_id: kafka_string(group_id(shared)?),
        generation_id_or_member_epoch: commit.identity.generation,
        member_id: kafka_string(&commit.identity.member_id),
        group_instance_id: commit.identity.instance_id.as_deref().map(kafka_string),
        retention_time_ms: -1,
        topics: topics.into_iter().map(topic).collect(),
    };
    let deadline = of_one_request(shared, commit.deadline);
    let (broker, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let max = if ids.are_known() { i16::MAX } else { OFFSETS_BY_NAME };
    let answer = unless_moved(shared, broker, connection.call_up_to(max, request, deadline)).await;
    let answer = noted(shared, broker, answer)?;
    let mut codes = Vec::new();
    for topic in answer.topics {
        let Some(name) = ids.name(&topic.name, topic.topic_id) else { continue };
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            let code = match partition.error_code {
                // No such partition of that topic.
                UNKNOWN_TOPIC_ID => UNKNOWN_TOPIC_OR_PARTITION,
                code => code,
            };
            codes.push((key, code));
        }
    }
    Ok(codes.into_iter().collect())
}

/// The topics of a request by their ids. Named so, offsets of a topic are never taken for those of another that was made under
/// its name.
struct Ids(Map<TopicId, Arc<str>>);

impl Ids {
    fn new<'a>(topics: impl Iterator<Item = (&'a wire::Str, TopicId)>) -> Self {
        Self(topics.map(|(name, id)| (id, Arc::from(name.as_str()))).collect())
    }

    /// Whether all have one.
    fn are_known(&self) -> bool {
        !self.0.contains_key(&TopicId::default())
    }

    /// The name of a topic of the answer, which has either.
    fn name(&self, name: &wire::Str, id: wire::Uuid) -> Option<Arc<str>> {
        match name.as_str() {
            "" => self.0.get(&id.0).cloned(),
            name => Some(Arc::from(name)),
        }
    }
}

/// The group's committed offsets; -1 where there is none. `ids`: those of the partitions' topics, as far as they are
/// known. If `member` is given (consumer protocol, KIP-848) the coordinator refuses a member that it has given up.
pub(in crate::consumer) async fn find_committed(
    shared: &Shared,
    member: Option<Identity>,
    partitions: &[TopicPartition],
    ids: &[TopicId],
    deadline: Instant,
) -> Result<Found> {
    use wire::offset_fetch_request::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
    };
    let deadline = of_one_request(shared, deadline);
    let (broker, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let version = connection.version::<wire::OffsetFetchRequest>().unwrap_or_default();
    let group_id = group_id(shared)?;
    let group = kafka_string(group_id);
    let known = ids.iter().copied().chain(std::iter::repeat(TopicId::default()));
    let topics =
        by_topic_id(partitions.iter().zip(known), |(key, _)| key, |(key, _)| key.partition, |(_, id)| *id);
    let ids = Ids::new(topics.iter().map(|(name, id, _)| (name, *id)));
    let mut request = wire::OffsetFetchRequest::default();
    if version >= 8 {
        let topic = |(name, id, partitions)| OffsetFetchRequestTopics {
            name,
            topic_id: wire::Uuid(id),
            partition_indexes: partitions,
        };
        let group = OffsetFetchRequestGroup {
            group_id: group,
            member_epoch: member.as_ref().map_or(-1, |member| member.generation),
            member_id: member.as_ref().map(|member| kafka_string(&member.member_id)),
            topics: Some(topics.into_iter().map(topic).collect()),
        };
        request.groups = vec![group];
    } else {
        let topic = |(name, _, partitions)| OffsetFetchRequestTopic { name, partition_indexes: partitions };
        request.group_id = group;
        request.topics = Some(topics.into_iter().map(topic).collect());
    }
    // KIP-447: the coordinator refuses while an open transaction has offsets of the group, so that a restarted processor
    // does not read twice. As in Java this holds for `read_uncommitted` too: it concerns the group's own transactions,
    // not those that the records are of.
    request.require_stable = version >= 7;
    let max = if ids.are_known() { i16::MAX } else { OFFSETS_BY_NAME };
    let answer = unless_moved(shared, broker, connection.call_up_to(max, request, deadline)).await;
    read_committed(noted(shared, broker, answer)?, group_id, &ids)
}

/// The committed offsets in an answer: of one group without its name up to version 7, of groups by name from then on.
fn read_committed(answer: wire::OffsetFetchResponse, group_id: &str, ids: &Ids) -> Result<Found> {
    let mut found = Vec::new();
    let mut add =
        |name: &Arc<str>, by_id: bool, partition: i32, place: (i64, i32, Option<wire::Str>), code: i16| {
            let key = TopicPartition { topic: Arc::clone(name), partition };
            let (offset, leader_epoch, metadata) = place;
            let metadata = metadata.map(|text| text.to_string()).unwrap_or_default();
            let place = FoundOffset { offset, leader_epoch, timestamp: -1, metadata, by_id };
            found.push((key, if code == 0 { Ok(place) } else { Err(code) }));
        };
    let mut code = answer.error_code;
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            add(
                &name,
                false,
                partition.partition_index,
                (partition.committed_offset, partition.committed_leader_epoch, partition.metadata),
                partition.error_code,
            );
        }
    }
    let is_ours =
        |group: &wire::offset_fetch_response::OffsetFetchResponseGroup| group.group_id.as_str() == group_id;
    for group in answer.groups.into_iter().filter(is_ours) {
        code = group.error_code;
        for topic in group.topics {
            let Some(name) = ids.name(&topic.name, topic.topic_id) else { continue };
            for partition in topic.partitions {
                add(
                    &name,
                    topic.topic_id != wire::Uuid::default(),
                    partition.partition_index,
                    (partition.committed_offset, partition.committed_leader_epoch, partition.metadata),
                    partition.error_code,
                );
            }
        }
    }
    if code == 0 { Ok(found.into_iter().collect()) } else { Err(Error::from_code("OffsetFetch", code)) }
}
