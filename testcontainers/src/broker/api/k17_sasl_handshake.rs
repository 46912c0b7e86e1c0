//! SaslHandshake (key 17): names the mechanism of the login that follows.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslHandshakeRequest, SaslHandshakeResponse};
use kafka_protocol::protocol::StrBytes;

use super::super::sasl::{Login, MECHANISMS};
use super::Call;

pub(super) fn handle(
    call: &Call<'_>,
    request: SaslHandshakeRequest,
    login: &mut Login,
) -> SaslHandshakeResponse {
    let mechanisms = MECHANISMS.into_iter().map(StrBytes::from_static_str).collect();
    let response = SaslHandshakeResponse::default().with_mechanisms(mechanisms);
    if let Some(error) = call.error {
        return response.with_error_code(error.code());
    }
    if !call.listener.is_sasl() {
        return response.with_error_code(ResponseError::IllegalSaslState.code());
    }
    if login.handshake(&request.mechanism, call.version) {
        response
    } else {
        response.with_error_code(ResponseError::UnsupportedSaslMechanism.code())
    }
}
