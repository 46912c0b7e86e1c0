//! DescribeCluster (key 60): brokers and controller for administrators (KIP-700).

use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{DescribeClusterRequest, DescribeClusterResponse};

use super::{Call, text};

pub(super) fn handle(call: &Call<'_>, _request: DescribeClusterRequest) -> DescribeClusterResponse {
    let cluster = call.cluster();
    let mut response = DescribeClusterResponse::default()
        .with_cluster_id(text(&cluster.id))
        .with_controller_id(cluster.controller().into());
    if let Some(error) = call.error {
        response = response.with_error_code(error.code()).with_error_message(Some(text(&error.to_string())));
    }
    for (id, _) in cluster.running() {
        if let Some((host, port)) = cluster.address(id, call.listener) {
            let broker = DescribeClusterBroker::default()
                .with_broker_id(id.into())
                .with_host(text(&host))
                .with_port(port.into())
                .with_rack(cluster.rack(id).map(text));
            response.brokers.push(broker);
        }
    }
    response
}
