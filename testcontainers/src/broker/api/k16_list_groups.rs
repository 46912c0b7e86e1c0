//! ListGroups (key 16): the groups that this broker coordinates, by state (KIP-518) and type (KIP-848).

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{GroupId, ListGroupsRequest, ListGroupsResponse};

use super::super::cluster::Kind;
use super::{Call, text};

pub(super) fn handle(call: &Call<'_>, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut response = ListGroupsResponse::default();
    if let Some(error) = call.error {
        return response.with_error_code(error.code());
    }
    let wanted = |filter: &[kafka_protocol::protocol::StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|f| f.eq_ignore_ascii_case(value))
    };
    let cluster = call.cluster();
    for (id, entry) in &cluster.groups {
        let (state, kind) = match &entry.consumer {
            Some(consumer) if entry.is_consumer() => (consumer.state(), "consumer"),
            _ => (entry.group.state.name(), "classic"),
        };
        if cluster.coordinator(Kind::Group, id) != call.broker
            || !wanted(&request.states_filter, state)
            || !wanted(&request.types_filter, kind)
        {
            continue;
        }
        let mut group =
            ListedGroup::default().with_group_id(GroupId(text(id))).with_protocol_type(text(match kind {
                "consumer" => kind,
                _ => entry.group.protocol_type.as_deref().unwrap_or_default(),
            }));
        if call.version >= 4 {
            group.group_state = text(state);
        }
        if call.version >= 5 {
            group.group_type = text(kind);
        }
        response.groups.push(group);
    }
    response
}
