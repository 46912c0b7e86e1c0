//! OffsetForLeaderEpoch (key 23): where an epoch ended, for consumers that look for truncation (KIP-320).

use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::Call;

pub(super) fn handle(call: &Call<'_>, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let cluster = call.cluster();
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in request.topics {
        let injected = call.error_for(&topic.topic);
        let mut answer = OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone());
        for p in topic.partitions {
            let look =
                || cluster.led_partition(call.broker, &topic.topic, p.partition, p.current_leader_epoch);
            let found = injected.map_or_else(look, Err);
            let (epoch, offset) = found.map_or((-1, -1), |found| found.log.epoch_end(p.leader_epoch));
            answer.partitions.push(
                EpochEndOffset::default()
                    .with_partition(p.partition)
                    .with_error_code(super::code(&found))
                    .with_leader_epoch(epoch)
                    .with_end_offset(offset),
            );
        }
        response.topics.push(answer);
    }
    response
}
