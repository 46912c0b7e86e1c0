//! InitProducerId (key 22): an identity for an idempotent or a transactional producer. The rules are in `transactions`.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use super::super::acls::{Operation, Resource};
use super::super::transactions::Identity;
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let result = call.error.map_or_else(|| init(call, &request), Err);
    let result = call.error_after("").map_or(result, |error| result.and(Err(error)));
    match result {
        Ok((id, epoch)) => {
            InitProducerIdResponse::default().with_producer_id(id.into()).with_producer_epoch(epoch)
        }
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id((-1).into())
            .with_producer_epoch(-1),
    }
}

fn init(call: &Call<'_>, request: &InitProducerIdRequest) -> Result<Identity, ResponseError> {
    let mut guard = call.cluster();
    let cluster = &mut *guard;
    let Some(id) = &request.transactional_id else {
        if call.denies(&Resource::Cluster, Operation::IdempotentWrite) {
            return Err(ResponseError::ClusterAuthorizationFailed);
        }
        // Without a transactional id Apache Kafka gives a new id with epoch 0, whatever the request brings along.
        return Ok((cluster.next_producer_id(), 0));
    };
    if id.is_empty() {
        return Err(ResponseError::InvalidRequest);
    }
    call.check_transaction(cluster, id)?;
    if call.version >= 3 && (request.producer_id.0 < 0) != (request.producer_epoch < 0) {
        return Err(ResponseError::InvalidRequest);
    }
    let timeout = u64::try_from(request.transaction_timeout_ms).map(Duration::from_millis);
    let timeout = timeout.ok().filter(|t| !t.is_zero() && *t <= cluster.options.max_transaction_timeout);
    let timeout = timeout.ok_or(ResponseError::InvalidTransactionTimeout)?;
    let expected = (request.producer_id.0 >= 0 && call.version >= 3)
        .then_some((request.producer_id.0, request.producer_epoch));
    let now = call.shared.clock.now();
    let fresh = cluster.producer_ids + 1;
    let done = cluster.transactions.init(now, id, timeout, expected, || fresh);
    if done.is_ok_and(|(given, _)| given == fresh) {
        cluster.producer_ids = fresh;
    }
    call.settle(cluster);
    done.map_err(|error| match (error, call.version) {
        (ResponseError::ProducerFenced, ..4) => ResponseError::InvalidProducerEpoch,
        (error, _) => error,
    })
}
