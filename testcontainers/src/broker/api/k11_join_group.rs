//! JoinGroup (key 11): parks the caller until its group's rebalance is complete. The rules are in `group`.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};
use kafka_protocol::protocol::StrBytes;

use super::super::group::{Answer, Join, Joined, Ticket};
use super::{Call, text};

/// Apache Kafka's `group.max.session.timeout.ms`. There is no minimum here: tests want short sessions.
const MAX_SESSION_MS: i32 = 1_800_000;

pub(super) async fn handle(call: &Call<'_>, request: JoinGroupRequest) -> JoinGroupResponse {
    let member_id = request.member_id.to_string();
    let receiver = match park(call, request) {
        Ok(receiver) => receiver,
        Err(error) => return refused(call, error, &member_id),
    };
    match receiver.await {
        Ok(Answer::Joined(joined)) => accepted(call, joined),
        Ok(Answer::Refused { error, member_id }) => refused(call, error, &member_id),
        Ok(Answer::Synced { .. }) | Err(_) => {
            refused(call, ResponseError::CoordinatorNotAvailable, &member_id)
        }
    }
}

type Receiver = tokio::sync::oneshot::Receiver<Answer>;

fn park(call: &Call<'_>, request: JoinGroupRequest) -> Result<Receiver, ResponseError> {
    let mut cluster = call.cluster();
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    call.check_group(&cluster, &request.group_id)?;
    if !(1..=MAX_SESSION_MS).contains(&request.session_timeout_ms) {
        return Err(ResponseError::InvalidSessionTimeout);
    }
    if !request.member_id.is_empty() && !cluster.groups.contains_key(&*request.group_id.0) {
        return Err(ResponseError::UnknownMemberId);
    }
    let consumer = cluster.groups.get(&*request.group_id.0).and_then(|e| e.consumer.as_ref());
    if consumer.is_some_and(|c| !c.is_empty()) {
        return Err(ResponseError::InconsistentGroupProtocol);
    }
    let millis = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let rebalance = if call.version == 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms };
    let join = Join {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.map(|id| id.to_string()),
        client_id: call.client_id.clone(),
        client_host: call.client_host.clone(),
        session_timeout: millis(request.session_timeout_ms),
        rebalance_timeout: millis(rebalance),
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.into_iter().map(|p| (p.name, p.metadata)).collect(),
        needs_known_id: call.version >= 4,
        knows_skipping: call.version >= 9,
    };
    let (ticket, receiver): (Ticket, Receiver) = cluster.park();
    cluster.group_mut(&request.group_id).group.handle_join(call.shared.clock.now(), ticket, join);
    cluster.deliver(&request.group_id);
    drop(cluster);
    call.shared.timer.notify_one();
    Ok(receiver)
}

fn accepted(call: &Call<'_>, joined: Joined) -> JoinGroupResponse {
    let member = |(id, instance, metadata): (String, Option<String>, bytes::Bytes)| {
        let instance = instance.filter(|_| call.version >= 5).map(StrBytes::from_string);
        JoinGroupResponseMember::default()
            .with_member_id(StrBytes::from_string(id))
            .with_group_instance_id(instance)
            .with_metadata(metadata)
    };
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.map(StrBytes::from_string))
        .with_protocol_name(Some(joined.protocol.unwrap_or_default()))
        .with_leader(text(&joined.leader))
        .with_skip_assignment(joined.skip_assignment && call.version >= 9)
        .with_member_id(text(&joined.member_id))
        .with_members(joined.members.into_iter().map(member).collect())
}

fn refused(call: &Call<'_>, error: ResponseError, member_id: &str) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(-1)
        // The name became nullable in version 7.
        .with_protocol_name((call.version < 7).then(StrBytes::new))
        .with_member_id(text(member_id))
}
