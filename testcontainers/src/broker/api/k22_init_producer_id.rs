//! InitProducerId (key 22): a new identity for an idempotent producer. Transactions are refused.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use super::Call;

pub(super) fn handle(call: &Call<'_>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |error: ResponseError| {
        InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id((-1).into())
            .with_producer_epoch(-1)
    };
    if let Some(error) = call.error {
        return refused(error);
    }
    if request.transactional_id.is_some() {
        return refused(ResponseError::TransactionalIdAuthorizationFailed);
    }
    // Without a transactional id Apache Kafka gives a new id with epoch 0, whatever the request brings along.
    InitProducerIdResponse::default().with_producer_id(call.cluster().next_producer_id().into())
}
