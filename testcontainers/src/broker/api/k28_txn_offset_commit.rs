//! TxnOffsetCommit (key 28): a group's offsets that count once the transaction is committed (KIP-447).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};

use super::super::cluster::{Cluster, Committed};
use super::super::group::Caller;
use super::super::transactions::{Part, Who};
use super::{Call, k08_offset_commit::check_metadata};

pub(super) fn handle(call: &Call<'_>, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let mut cluster = call.cluster();
    let allowed = allow(call, &mut cluster, &request);
    let identity = (request.producer_id.0, request.producer_epoch);
    let mut response = TxnOffsetCommitResponse::default();
    for topic in request.topics {
        let injected = call.error_for(&topic.name);
        let mut answer = TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone());
        for p in topic.partitions {
            let known = cluster.partition(&topic.name, p.partition_index).map(drop);
            let fits = check_metadata(p.committed_metadata.as_ref());
            let mut result = injected.map_or(Ok(()), Err).and(allowed).and(known).and(fits);
            if result.is_ok() {
                let committed = Committed {
                    offset: p.committed_offset,
                    leader_epoch: if call.version >= 2 { p.committed_leader_epoch } else { -1 },
                    metadata: p.committed_metadata,
                    committed_ms: call.shared.clock.wall_ms(),
                };
                let key = (topic.name.to_string(), p.partition_index);
                result = cluster.stage_offsets(&request.group_id, identity, vec![(key, committed)]);
            }
            let result = call.error_after(&topic.name).map_or(result, |error| result.and(Err(error)));
            let partition = TxnOffsetCommitResponsePartition::default()
                .with_partition_index(p.partition_index)
                .with_error_code(super::code(&result));
            answer.partitions.push(partition);
        }
        response.topics.push(answer);
    }
    drop(cluster);
    call.shared.timer.notify_one();
    response
}

fn allow(
    call: &Call<'_>,
    cluster: &mut Cluster,
    request: &TxnOffsetCommitRequest,
) -> Result<(), ResponseError> {
    call.check_group(cluster, &request.group_id)?;
    // The transaction comes first: what the group refuses has begun it all the same.
    let who =
        Who { id: &request.transactional_id, identity: (request.producer_id.0, request.producer_epoch) };
    let part = Part::Group(request.group_id.to_string());
    let (now, now_ms) = (call.shared.clock.now(), call.shared.clock.wall_ms());
    let joined = match call.version {
        5.. => cluster.transactions.add(now, now_ms, who, [part]),
        _ => cluster.transactions.verify(who, &part),
    };
    joined.map_err(|error| match (error, call.version) {
        (ResponseError::ProducerFenced, _) => ResponseError::InvalidProducerEpoch,
        (ResponseError::InvalidTxnState, 4) => ResponseError::TransactionAbortable,
        (error, _) => error,
    })?;
    if call.version < 3 || (request.generation_id < 0 && request.member_id.is_empty()) {
        return Ok(());
    }
    let caller = Caller {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: request.generation_id,
    };
    cluster.check_commit(now, &request.group_id, &caller, true).map_err(|error| match error {
        ResponseError::GroupIdNotFound | ResponseError::StaleMemberEpoch => ResponseError::IllegalGeneration,
        error => error,
    })
}
