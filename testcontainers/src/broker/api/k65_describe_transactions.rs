//! DescribeTransactions (key 65): state, producer and partitions of transactional ids (KIP-664).

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{DescribeTransactionsRequest, DescribeTransactionsResponse, TransactionalId};

use super::super::cluster::Cluster;
use super::{Call, text, topic_name};

pub(super) fn handle(call: &Call<'_>, request: DescribeTransactionsRequest) -> DescribeTransactionsResponse {
    let cluster = call.cluster();
    let describe = |id: TransactionalId| {
        let state = TransactionState::default().with_transactional_id(id.clone());
        match fill(call, &cluster, &id, state.clone()) {
            Ok(filled) => filled,
            Err(error) => state.with_error_code(error.code()),
        }
    };
    let states = request.transactional_ids.into_iter().map(describe).collect();
    DescribeTransactionsResponse::default().with_transaction_states(states)
}

fn fill(
    call: &Call<'_>,
    cluster: &Cluster,
    id: &str,
    state: TransactionState,
) -> Result<TransactionState, ResponseError> {
    call.check_transaction(cluster, id)?;
    let txn = cluster.transactions.get(id).ok_or(ResponseError::TransactionalIdNotFound)?;
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in &txn.partitions {
        topics.entry(topic).or_default().push(*partition);
    }
    let topic =
        |(name, partitions)| TopicData::default().with_topic(topic_name(name)).with_partitions(partitions);
    Ok(state
        .with_transaction_state(text(txn.state.name()))
        .with_transaction_timeout_ms(i32::try_from(txn.timeout.as_millis()).unwrap_or(i32::MAX))
        .with_transaction_start_time_ms(txn.started_ms)
        .with_producer_id(txn.identity.0.into())
        .with_producer_epoch(txn.identity.1)
        .with_topics(topics.into_iter().map(topic).collect()))
}
