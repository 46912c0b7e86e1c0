//! DescribeGroups (key 15): state, protocol and members.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse, GroupId};
use kafka_protocol::protocol::StrBytes;

use super::super::cluster::Cluster;
use super::super::group::Group;
use super::{Call, text};

pub(super) fn handle(call: &Call<'_>, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let cluster = call.cluster();
    let groups = request.groups.into_iter().map(|id| describe(call, &cluster, id)).collect();
    DescribeGroupsResponse::default().with_groups(groups)
}

fn describe(call: &Call<'_>, cluster: &Cluster, id: GroupId) -> DescribedGroup {
    let answer = DescribedGroup::default().with_group_id(id.clone());
    if let Err(error) = call.check_group(cluster, &id) {
        return answer.with_error_code(error.code());
    }
    let Some(entry) = cluster.groups.get(&*id.0).filter(|entry| !entry.is_consumer()) else {
        let answer = answer.with_group_state(text("Dead"));
        // KIP-1043: since version 6 a group that does not exist is an error.
        return match call.version {
            6.. => answer
                .with_error_code(ResponseError::GroupIdNotFound.code())
                .with_error_message(Some(text(&format!("Group {} not found.", &*id.0)))),
            _ => answer,
        };
    };
    fill(call, answer, &entry.group)
}

fn fill(call: &Call<'_>, answer: DescribedGroup, group: &Group) -> DescribedGroup {
    let members = group.members().map(|(id, m)| {
        let instance = m.instance_id.as_deref().filter(|_| call.version >= 4).map(text);
        DescribedGroupMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance)
            .with_client_id(text(&m.client_id))
            .with_client_host(text(&m.client_host))
            .with_member_metadata(group.metadata_of(m))
            .with_member_assignment(m.assignment.clone())
    });
    answer
        .with_group_state(StrBytes::from_static_str(group.state.name()))
        .with_protocol_type(text(group.protocol_type.as_deref().unwrap_or_default()))
        .with_protocol_data(group.protocol.clone().unwrap_or_default())
        .with_members(members.collect())
}
