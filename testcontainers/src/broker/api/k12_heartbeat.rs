//! Heartbeat (key 12): keeps a member's session, and tells it of a rebalance.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::super::group::Caller;
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: HeartbeatRequest) -> HeartbeatResponse {
    let mut cluster = call.cluster();
    let result = call.check_group(&cluster, &request.group_id).and_then(|()| {
        let entry = cluster.groups.get_mut(&*request.group_id.0).ok_or(ResponseError::UnknownMemberId)?;
        let caller = Caller {
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.map(|id| id.to_string()),
            generation: request.generation_id,
        };
        entry.group.handle_heartbeat(call.shared.clock.now(), &caller)
    });
    HeartbeatResponse::default().with_error_code(super::code(&result))
}
