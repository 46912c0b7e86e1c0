//! OffsetDelete (key 47): forgets offsets that a group has committed for topics its members do not read (KIP-496).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::super::cluster::Cluster;
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let mut cluster = call.cluster();
    let group = request.group_id.to_string();
    let mut response = OffsetDeleteResponse::default();
    if let Err(error) = call.check_group(&cluster, &group).and_then(|()| check(&cluster, &group)) {
        return response.with_error_code(error.code());
    }
    for topic in request.topics {
        let name = topic.name.to_string();
        let is_read = || cluster.is_read_by(&group, &name).unwrap_or_default();
        let refused =
            call.error_for(&name).or_else(|| is_read().then_some(ResponseError::GroupSubscribedToTopic));
        let mut answer = OffsetDeleteResponseTopic::default().with_name(topic.name);
        for p in topic.partitions {
            let known = cluster.partition(&name, p.partition_index).map(drop);
            let result = refused.map_or(known, Err);
            if result.is_ok() {
                cluster.group_mut(&group).offsets.remove(&(name.clone(), p.partition_index));
            }
            answer.partitions.push(
                OffsetDeleteResponsePartition::default()
                    .with_partition_index(p.partition_index)
                    .with_error_code(super::code(&result)),
            );
        }
        response.topics.push(answer);
    }
    response
}

fn check(cluster: &Cluster, group: &str) -> Result<(), ResponseError> {
    if !cluster.groups.contains_key(group) {
        return Err(ResponseError::GroupIdNotFound);
    }
    cluster.is_read_by(group, "").map(drop).ok_or(ResponseError::NonEmptyGroup)
}
