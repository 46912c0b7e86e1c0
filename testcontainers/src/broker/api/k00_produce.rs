//! Produce (key 0): appends one batch per partition. Idempotence is in `producers`, the checks of a batch in `log`.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::super::cluster::Cluster;
use super::super::log::{Append, Incoming};
use super::super::server::Close;
use super::{Call, text};

/// `None` for acks=0, whose errors can only be told by closing the connection.
pub(super) fn handle(call: &Call<'_>, request: ProduceRequest) -> Result<Option<ProduceResponse>, Close> {
    let mut response = ProduceResponse::default();
    let mut failed = false;
    for topic in request.topic_data {
        let injected = call.error_for(&topic.name);
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in &topic.partition_data {
            // The checksum is the costly part, and needs no lock.
            let parsed = match (&data.records, request.acks) {
                (_, acks) if !(-1..=1).contains(&acks) => Err(ResponseError::InvalidRequiredAcks),
                (Some(records), _) => Incoming::parse(records),
                (None, _) => Err(ResponseError::InvalidRecord),
            };
            let mut cluster = call.cluster();
            let result = match injected {
                Some(error) => Err(error),
                None => append(call, &mut cluster, &topic.name, data, parsed),
            };
            failed |= result.is_err();
            partitions.push(answer(call, &cluster, &topic.name, data.index, result));
        }
        let answer =
            TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions);
        response.responses.push(answer);
    }
    call.shared.appended.notify_waiters();
    if request.acks == 0 {
        return if failed { Err(Close) } else { Ok(None) };
    }
    if call.version >= 10 {
        response.node_endpoints = endpoints(call, &response);
    }
    Ok(Some(response))
}

fn append(
    call: &Call<'_>,
    cluster: &mut Cluster,
    topic: &str,
    data: &PartitionProduceData,
    parsed: Result<Incoming, ResponseError>,
) -> Result<Append, ResponseError> {
    cluster.led_partition(call.broker, topic, data.index, -1)?;
    let size = data.records.as_ref().map_or(0, bytes::Bytes::len);
    let config = |name: &str| cluster.topics.get(topic).and_then(|t| t.config(name));
    let max = config("max.message.bytes").and_then(|v| v.parse::<usize>().ok());
    let append_time = config("message.timestamp.type") == Some("LogAppendTime");
    if max.is_some_and(|max| size > max) {
        return Err(ResponseError::MessageTooLarge);
    }
    let batch = parsed?;
    let now = append_time.then(|| call.shared.clock.wall_ms());
    cluster.partition_mut(topic, data.index)?.log.append(batch, now)
}

fn answer(
    call: &Call<'_>,
    cluster: &Cluster,
    topic: &str,
    index: i32,
    result: Result<Append, ResponseError>,
) -> PartitionProduceResponse {
    let mut answer = PartitionProduceResponse::default().with_index(index);
    let partition = cluster.partition(topic, index);
    match result {
        Ok(append) => {
            answer.base_offset = append.base_offset;
            answer.log_append_time_ms = append.append_time_ms;
            answer.log_start_offset = partition.map_or(-1, |p| p.log.start());
        }
        Err(error) => {
            answer.error_code = error.code();
            answer.base_offset = -1;
            answer.log_append_time_ms = -1;
            answer.log_start_offset = -1;
            if error == ResponseError::InvalidRecord && call.version >= 8 {
                answer.error_message =
                    Some(text("One batch of format v2 with consecutive records per partition is expected."));
            }
            // KIP-951: tell the client who leads now.
            if let (ResponseError::NotLeaderOrFollower, Ok(p), 10..) = (error, partition, call.version) {
                answer.current_leader = LeaderIdAndEpoch::default()
                    .with_leader_id(p.leader.into())
                    .with_leader_epoch(p.log.leader_epoch());
            }
        }
    }
    answer
}

fn endpoints(call: &Call<'_>, response: &ProduceResponse) -> Vec<NodeEndpoint> {
    let partitions = response.responses.iter().flat_map(|t| &t.partition_responses);
    let mut leaders: Vec<i32> =
        partitions.map(|p| p.current_leader.leader_id.0).filter(|l| *l >= 0).collect();
    leaders.sort_unstable();
    leaders.dedup();
    let cluster = call.cluster();
    let endpoint = |id: i32| {
        let (host, port) = cluster.address(id, call.listener)?;
        Some(NodeEndpoint::default().with_node_id(id.into()).with_host(text(&host)).with_port(port.into()))
    };
    leaders.into_iter().filter_map(endpoint).collect()
}
