//! OffsetCommit (key 8): stores offsets for members of a group and for clients that assign partitions by themselves.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};
use kafka_protocol::protocol::StrBytes;

use super::super::cluster::{Cluster, Committed};
use super::super::commits::Commit;
use super::super::group::Caller;
use super::{Call, by_id};

/// Apache Kafka's `offset.metadata.max.bytes`.
const MAX_METADATA: usize = 4096;

/// A text that is too long keeps its offset out, and no other (Java: `OffsetMetadataManager`).
pub(super) fn check_metadata(metadata: Option<&StrBytes>) -> Result<(), ResponseError> {
    match metadata {
        Some(text) if text.len() > MAX_METADATA => Err(ResponseError::OffsetMetadataTooLarge),
        _ => Ok(()),
    }
}

pub(super) fn handle(call: &Call<'_>, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let mut cluster = call.cluster();
    let allowed = allow(call, &mut cluster, &request);
    let mut response = OffsetCommitResponse::default();
    for topic in request.topics {
        let name = match call.version {
            by_id::VERSION.. => cluster.topic_name(topic.topic_id).map(str::to_owned),
            _ => Some(topic.name.to_string()),
        };
        let injected = name.as_deref().and_then(|name| call.error_for(name));
        let mut answer =
            OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_topic_id(topic.topic_id);
        for p in topic.partitions {
            let known = name.as_deref().ok_or(ResponseError::UnknownTopicId);
            let known = known.and_then(|name| cluster.partition(name, p.partition_index)).map(drop);
            let fits = check_metadata(p.committed_metadata.as_ref());
            let result = injected.map_or(Ok(()), Err).and(allowed).and(known).and(fits);
            if result.is_ok() {
                let committed = Committed {
                    offset: p.committed_offset,
                    leader_epoch: if call.version >= 6 { p.committed_leader_epoch } else { -1 },
                    metadata: p.committed_metadata,
                    committed_ms: call.shared.clock.wall_ms(),
                };
                call.shared.commits.add(|| Commit {
                    at: call.shared.clock.instant_now(),
                    group: request.group_id.to_string(),
                    topic: name.clone().unwrap_or_default(),
                    partition: p.partition_index,
                    offset: p.committed_offset,
                    member: request.member_id.to_string(),
                    generation: request.generation_id_or_member_epoch,
                });
                let key = (name.clone().unwrap_or_default(), p.partition_index);
                cluster.group_mut(&request.group_id).offsets.insert(key, committed);
            }
            let result = call
                .error_after(name.as_deref().unwrap_or_default())
                .map_or(result, |error| result.and(Err(error)));
            let partition = OffsetCommitResponsePartition::default()
                .with_partition_index(p.partition_index)
                .with_error_code(super::code(&result));
            answer.partitions.push(partition);
        }
        response.topics.push(answer);
    }
    drop(cluster);
    call.shared.committed.notify_waiters();
    call.shared.timer.notify_one();
    response
}

fn allow(call: &Call<'_>, cluster: &mut Cluster, request: &OffsetCommitRequest) -> Result<(), ResponseError> {
    call.check_group(cluster, &request.group_id)?;
    let caller = Caller {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: request.generation_id_or_member_epoch,
    };
    let checked = cluster.check_commit(call.shared.clock.now(), &request.group_id, &caller, false);
    checked.map_err(|error| match (error, call.version) {
        (ResponseError::GroupIdNotFound, ..9) => ResponseError::IllegalGeneration,
        (error, _) => error,
    })
}
