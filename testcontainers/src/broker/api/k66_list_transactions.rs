//! ListTransactions (key 66): the transactional ids that this broker coordinates, by state, producer and age (KIP-664).

use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{ListTransactionsRequest, ListTransactionsResponse, TransactionalId};

use super::super::cluster::Kind;
use super::super::transactions::State;
use super::{Call, text};

const STATES: [State; 6] = [
    State::Empty,
    State::Ongoing,
    State::PrepareCommit,
    State::PrepareAbort,
    State::CompleteCommit,
    State::CompleteAbort,
];

pub(super) fn handle(call: &Call<'_>, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let mut response = ListTransactionsResponse::default();
    if let Some(error) = call.error {
        return response.with_error_code(error.code());
    }
    let unknown =
        |filter: &&kafka_protocol::protocol::StrBytes| STATES.iter().all(|s| s.name() != &***filter);
    response.unknown_state_filters = request.state_filters.iter().filter(unknown).cloned().collect();
    let cluster = call.cluster();
    let now_ms = call.shared.clock.wall_ms();
    for (id, txn) in cluster.transactions.iter() {
        let state = txn.state.name();
        // One that never began is older than any.
        let old =
            request.duration_filter < 0 || now_ms.saturating_sub(txn.started_ms) > request.duration_filter;
        let wanted = (request.state_filters.is_empty()
            || request.state_filters.iter().any(|f| &**f == state))
            && (request.producer_id_filters.is_empty()
                || request.producer_id_filters.iter().any(|f| f.0 == txn.identity.0));
        if old && wanted && cluster.coordinator(Kind::Transaction, id) == call.broker {
            response.transaction_states.push(
                TransactionState::default()
                    .with_transactional_id(TransactionalId(text(id)))
                    .with_producer_id(txn.identity.0.into())
                    .with_transaction_state(text(state)),
            );
        }
    }
    response
}
