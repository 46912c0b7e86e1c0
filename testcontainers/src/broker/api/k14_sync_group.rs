//! SyncGroup (key 14): the leader brings the assignments, everyone waits for their own. The rules are in `group`.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;

use super::super::group::{Answer, Caller, Sync};
use super::Call;

pub(super) async fn handle(call: &Call<'_>, request: SyncGroupRequest) -> SyncGroupResponse {
    let refused = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
    let receiver = match park(call, request) {
        Ok(receiver) => receiver,
        Err(error) => return refused(error),
    };
    match receiver.await {
        Ok(Answer::Synced { protocol_type, protocol, assignment }) => SyncGroupResponse::default()
            .with_protocol_type(protocol_type.map(StrBytes::from_string))
            .with_protocol_name(protocol.map(StrBytes::from_string))
            .with_assignment(assignment),
        Ok(Answer::Refused { error, .. }) => refused(error),
        Ok(Answer::Joined(_)) | Err(_) => refused(ResponseError::CoordinatorNotAvailable),
    }
}

fn park(
    call: &Call<'_>,
    request: SyncGroupRequest,
) -> Result<tokio::sync::oneshot::Receiver<Answer>, ResponseError> {
    let mut cluster = call.cluster();
    call.check_group(&cluster, &request.group_id)?;
    if !cluster.groups.contains_key(&*request.group_id.0) {
        return Err(ResponseError::UnknownMemberId);
    }
    let sync = Sync {
        caller: Caller {
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.map(|id| id.to_string()),
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type.map(|p| p.to_string()),
        protocol: request.protocol_name.map(|p| p.to_string()),
        assignments: request
            .assignments
            .into_iter()
            .map(|a| (a.member_id.to_string(), a.assignment))
            .collect(),
    };
    let (ticket, receiver) = cluster.park();
    cluster.group_mut(&request.group_id).group.handle_sync(call.shared.clock.now(), ticket, sync);
    cluster.deliver(&request.group_id);
    drop(cluster);
    call.shared.timer.notify_one();
    Ok(receiver)
}
