//! FindCoordinator (key 10): which broker coordinates a group; several at once since version 4 (KIP-699).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};

use super::super::acls::{Operation, Resource};
use super::super::cluster::{Cluster, Kind};
use super::{Call, text};

pub(super) fn handle(call: &Call<'_>, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let mut cluster = call.cluster();
    let mut response = FindCoordinatorResponse::default();
    if call.version < 4 {
        match find(call, &mut cluster, &request.key, request.key_type) {
            Ok((id, host, port)) => {
                response = response.with_node_id(id.into()).with_host(text(&host)).with_port(port.into());
            }
            Err(error) => {
                response = response.with_error_code(error.code()).with_node_id((-1).into()).with_port(-1);
            }
        }
        return response;
    }
    for key in request.coordinator_keys {
        let found = find(call, &mut cluster, &key, request.key_type);
        let answer = Coordinator::default().with_key(key);
        response.coordinators.push(match found {
            Ok((id, host, port)) => {
                answer.with_node_id(id.into()).with_host(text(&host)).with_port(port.into())
            }
            Err(error) => answer.with_error_code(error.code()).with_node_id((-1).into()).with_port(-1),
        });
    }
    response
}

fn find(
    call: &Call<'_>,
    cluster: &mut Cluster,
    key: &str,
    key_type: i8,
) -> Result<(i32, String, u16), ResponseError> {
    if let Some(error) = call.error {
        return Err(error);
    }
    let kind = match key_type {
        0 if key.is_empty() => return Err(ResponseError::InvalidGroupId),
        0 => Kind::Group,
        1 => Kind::Transaction,
        _ => return Err(ResponseError::InvalidRequest),
    };
    let (resource, denied) = match kind {
        Kind::Group => (Resource::Group(key.to_owned()), ResponseError::GroupAuthorizationFailed),
        Kind::Transaction => {
            (Resource::TransactionalId(key.to_owned()), ResponseError::TransactionalIdAuthorizationFailed)
        }
    };
    if call.denies(&resource, Operation::Describe) {
        return Err(denied);
    }
    let id = cluster.running_coordinator(kind, key, call.shared.clock.now());
    let (host, port) = cluster.address(id, call.listener).ok_or(ResponseError::CoordinatorNotAvailable)?;
    Ok((id, host, port))
}
