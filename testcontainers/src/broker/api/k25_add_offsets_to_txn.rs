//! AddOffsetsToTxn (key 25): takes a group's offsets into a transaction of the first version.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};

use super::super::transactions::{Part, Who};
use super::Call;

pub(super) fn handle(call: &Call<'_>, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let result = add(call, &request);
    let result = call.error_after("").map_or(result, |error| result.and(Err(error)));
    AddOffsetsToTxnResponse::default().with_error_code(super::code(&result))
}

fn add(call: &Call<'_>, request: &AddOffsetsToTxnRequest) -> Result<(), ResponseError> {
    let mut cluster = call.cluster();
    call.check_transaction(&cluster, &request.transactional_id)?;
    let who =
        Who { id: &request.transactional_id, identity: (request.producer_id.0, request.producer_epoch) };
    let (now, now_ms) = (call.shared.clock.now(), call.shared.clock.wall_ms());
    let part = Part::Group(request.group_id.to_string());
    call.shared.timer.notify_one();
    cluster.transactions.add(now, now_ms, who, [part]).map_err(|error| match (error, call.version) {
        (ResponseError::ProducerFenced, ..2) => ResponseError::InvalidProducerEpoch,
        (error, _) => error,
    })
}
