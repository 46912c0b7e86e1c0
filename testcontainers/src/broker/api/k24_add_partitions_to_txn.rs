//! AddPartitionsToTxn (key 24): takes partitions into a transaction of the first version; brokers ask in version 4 and later.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};

use super::super::transactions::{Part, Who};
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
    let mut response = AddPartitionsToTxnResponse::default();
    if call.version < 4 {
        let who = Who {
            id: &request.v3_and_below_transactional_id,
            identity: (request.v3_and_below_producer_id.0, request.v3_and_below_producer_epoch),
        };
        response.results_by_topic_v3_and_below = add(call, who, &request.v3_and_below_topics, false);
        return response;
    }
    for txn in &request.transactions {
        let who = Who { id: &txn.transactional_id, identity: (txn.producer_id.0, txn.producer_epoch) };
        response.results_by_transaction.push(
            AddPartitionsToTxnResult::default()
                .with_transactional_id(txn.transactional_id.clone())
                .with_topic_results(add(call, who, &txn.topics, txn.verify_only)),
        );
    }
    response
}

fn add(
    call: &Call<'_>,
    who: Who<'_>,
    topics: &[AddPartitionsToTxnTopic],
    verify_only: bool,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let mut cluster = call.cluster();
    let mut errors = Vec::new();
    let mut parts = Vec::new();
    for topic in topics {
        let injected = call.error_for(&topic.name);
        for partition in &topic.partitions {
            let known = cluster.partition(&topic.name, *partition).map(drop);
            errors.push(injected.map_or(known, Err).err());
            parts.push(Part::Partition(topic.name.to_string(), *partition));
        }
    }
    let mut result = call.check_transaction(&cluster, who.id);
    // One that cannot be added keeps all of them out.
    if result.is_ok() && errors.iter().any(Option::is_some) {
        result = Err(ResponseError::OperationNotAttempted);
    }
    let (now, now_ms) = (call.shared.clock.now(), call.shared.clock.wall_ms());
    let result = result.and_then(|()| match verify_only {
        true => parts.iter().try_for_each(|part| cluster.transactions.verify(who, part)),
        false => cluster.transactions.add(now, now_ms, who, parts),
    });
    let result = result.map_err(|error| match (error, call.version) {
        (ResponseError::ProducerFenced, ..2) => ResponseError::InvalidProducerEpoch,
        (error, _) => error,
    });
    let after = topics.iter().find_map(|topic| call.error_after(&topic.name));
    let result = after.map_or(result, |error| result.and(Err(error)));
    call.shared.timer.notify_one();
    let mut errors = errors.into_iter();
    let of_topic = |topic: &AddPartitionsToTxnTopic| {
        let one = |partition: &i32| {
            let own = errors.next().flatten();
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*partition)
                .with_partition_error_code(own.map_or_else(|| super::code(&result), |error| error.code()))
        };
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(topic.partitions.iter().map(one).collect())
    };
    topics.iter().map(of_topic).collect()
}
