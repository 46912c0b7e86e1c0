//! DeleteGroups (key 42): forgets empty groups and their offsets (KIP-229).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

use super::super::cluster::GroupEntry;
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut cluster = call.cluster();
    let mut response = DeleteGroupsResponse::default();
    for group in request.groups_names {
        let allowed = call.check_group(&cluster, &group);
        let result = allowed.and_then(|()| match cluster.groups.get(&*group.0).map(GroupEntry::is_empty) {
            None => Err(ResponseError::GroupIdNotFound),
            Some(true) => {
                cluster.groups.remove(&*group.0);
                Ok(())
            }
            Some(false) => Err(ResponseError::NonEmptyGroup),
        });
        let answer =
            DeletableGroupResult::default().with_group_id(group).with_error_code(super::code(&result));
        response.results.push(answer);
    }
    response
}
