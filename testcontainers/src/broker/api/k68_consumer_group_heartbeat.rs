//! ConsumerGroupHeartbeat (key 68): joining, staying, reconciling and leaving in one request (KIP-848). The rules are in
//! `consumer_group`.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use uuid::Uuid;

use super::super::cluster::Cluster;
use super::super::consumer_group::{Heartbeat, Reply};
use super::{Call, text};

pub(super) fn handle(
    call: &Call<'_>,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    let mut cluster = call.cluster();
    let times = cluster.options.consumer_group;
    let answer = ConsumerGroupHeartbeatResponse::default();
    let reply = match beat(call, &mut cluster, request) {
        Ok(reply) => reply,
        Err((error, why)) => {
            return answer.with_error_code(error.code()).with_error_message(Some(text(&why)));
        }
    };
    call.shared.timer.notify_one();
    answer
        .with_member_id(Some(text(&reply.member_id)))
        .with_member_epoch(reply.member_epoch)
        .with_heartbeat_interval_ms(i32::try_from(times.heartbeat.as_millis()).unwrap_or(i32::MAX))
        .with_assignment(reply.assignment.map(assignment))
}

fn beat(
    call: &Call<'_>,
    cluster: &mut Cluster,
    request: ConsumerGroupHeartbeatRequest,
) -> Result<Reply, (ResponseError, String)> {
    let plain = |error: ResponseError| (error, error.to_string());
    let group = request.group_id.to_string();
    if group.is_empty() {
        return Err((ResponseError::InvalidRequest, "GroupId can't be empty.".to_owned()));
    }
    call.check_group(cluster, &group).map_err(plain)?;
    if call.version >= 1 && request.member_id.is_empty() {
        return Err((ResponseError::InvalidRequest, "MemberId can't be empty.".to_owned()));
    }
    let some = |value: kafka_protocol::protocol::StrBytes| value.to_string();
    let owned = |topics: Vec<kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions>| {
        topics.into_iter().flat_map(|t| t.partitions.into_iter().map(move |p| (t.topic_id, p))).collect()
    };
    let heartbeat = Heartbeat {
        member_id: request.member_id.to_string(),
        member_epoch: request.member_epoch,
        instance_id: request.instance_id.map(some),
        rack_id: request.rack_id.map(some),
        client_id: call.client_id.clone(),
        client_host: call.client_host.clone(),
        rebalance_timeout: u64::try_from(request.rebalance_timeout_ms).ok().map(Duration::from_millis),
        names: request.subscribed_topic_names.map(|n| n.into_iter().map(|name| name.to_string()).collect()),
        regex: request.subscribed_topic_regex.map(some),
        assignor: request.server_assignor.map(some),
        owned: request.topic_partitions.map(owned),
    };
    cluster
        .consumer_heartbeat(call.shared.clock.now(), &group, heartbeat)
        .map_err(|(error, why)| (error, why.to_owned()))
}

fn assignment(partitions: BTreeSet<(Uuid, i32)>) -> Assignment {
    let mut topics: Vec<TopicPartitions> = Vec::new();
    for (id, partition) in partitions {
        match topics.last_mut().filter(|last| last.topic_id == id) {
            Some(last) => last.partitions.push(partition),
            None => {
                topics.push(TopicPartitions::default().with_topic_id(id).with_partitions(vec![partition]))
            }
        }
    }
    Assignment::default().with_topic_partitions(topics)
}
