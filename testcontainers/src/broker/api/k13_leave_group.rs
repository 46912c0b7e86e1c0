//! LeaveGroup (key 13): one member up to version 2, several since version 3 (KIP-345).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::Call;

pub(super) fn handle(call: &Call<'_>, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let mut cluster = call.cluster();
    let mut response = LeaveGroupResponse::default();
    if let Err(error) = call.check_group(&cluster, &request.group_id) {
        return response.with_error_code(error.code());
    }
    let now = call.shared.clock.now();
    let mut leave = |member: &str, instance: Option<&str>| {
        let entry = cluster.groups.get_mut(&*request.group_id.0).ok_or(ResponseError::UnknownMemberId)?;
        match &mut entry.consumer {
            Some(consumer) if !consumer.is_empty() => consumer.handle_removal(member, instance),
            _ => entry.group.handle_leave(now, member, instance),
        }
    };
    if call.version < 3 {
        response.error_code = super::code(&leave(&request.member_id, None));
    } else {
        let one = |m: MemberIdentity| {
            let result = leave(&m.member_id, m.group_instance_id.as_deref());
            MemberResponse::default()
                .with_member_id(m.member_id)
                .with_group_instance_id(m.group_instance_id)
                .with_error_code(super::code(&result))
        };
        response.members = request.members.into_iter().map(one).collect();
    }
    cluster.deliver(&request.group_id);
    drop(cluster);
    call.shared.timer.notify_one();
    response
}
