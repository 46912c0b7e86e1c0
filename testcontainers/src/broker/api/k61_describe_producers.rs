//! DescribeProducers (key 61): the idempotent producers that a partition remembers (KIP-664).

use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse};

use super::super::log::PartitionLog;
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let cluster = call.cluster();
    let mut response = DescribeProducersResponse::default();
    for topic in request.topics {
        let injected = call.error_for(&topic.name);
        let one = |index: &i32| {
            let look = || cluster.led_partition(call.broker, &topic.name, *index, -1);
            let found = injected.map_or_else(look, Err);
            PartitionResponse::default()
                .with_partition_index(*index)
                .with_error_code(super::code(&found))
                .with_active_producers(found.map_or_else(|_| Vec::new(), |p| producers(&p.log)))
        };
        let partitions = topic.partition_indexes.iter().map(one).collect();
        response
            .topics
            .push(TopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions));
    }
    response
}

fn producers(log: &PartitionLog) -> Vec<ProducerState> {
    let one = |(id, entry): (i64, &super::super::producers::Entry)| {
        ProducerState::default()
            .with_producer_id(id.into())
            .with_producer_epoch(entry.epoch.into())
            .with_last_sequence(entry.last_sequence())
            .with_last_timestamp(entry.last_ms)
            .with_coordinator_epoch(entry.coordinator_epoch)
            .with_current_txn_start_offset(log.transaction_start(id).unwrap_or(-1))
    };
    log.producers().iter().map(one).collect()
}
