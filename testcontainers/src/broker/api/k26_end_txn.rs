//! EndTxn (key 26): commits or aborts. Since version 5 every end gives the producer its next epoch (KIP-890).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse};

use super::super::transactions::{Identity, Who};
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: EndTxnRequest) -> EndTxnResponse {
    let result = end(call, &request);
    let result = call.error_after("").map_or(result, |error| result.and(Err(error)));
    let response = EndTxnResponse::default().with_error_code(super::code(&result));
    match result {
        Ok((id, epoch)) if call.version >= 5 => {
            response.with_producer_id(id.into()).with_producer_epoch(epoch)
        }
        _ => response,
    }
}

fn end(call: &Call<'_>, request: &EndTxnRequest) -> Result<Identity, ResponseError> {
    let mut guard = call.cluster();
    let cluster = &mut *guard;
    call.check_transaction(cluster, &request.transactional_id)?;
    let who =
        Who { id: &request.transactional_id, identity: (request.producer_id.0, request.producer_epoch) };
    let fresh = cluster.producer_ids + 1;
    let bump = call.version >= 5;
    let done = cluster.transactions.end(call.shared.clock.now(), who, request.committed, bump, || fresh);
    if done.is_ok_and(|(given, _)| given == fresh) {
        cluster.producer_ids = fresh;
    }
    call.settle(cluster);
    done.map_err(|error| match (error, call.version) {
        (ResponseError::ProducerFenced, ..2) => ResponseError::InvalidProducerEpoch,
        (error, _) => error,
    })
}
