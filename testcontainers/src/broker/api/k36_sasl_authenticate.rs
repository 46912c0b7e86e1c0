//! SaslAuthenticate (key 36): one token of the login (KIP-152), with a text that says why it failed.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslAuthenticateResponse};

use super::super::sasl::Login;
use super::{Call, text};

pub(super) fn handle(
    call: &Call<'_>,
    request: SaslAuthenticateRequest,
    login: &mut Login,
) -> SaslAuthenticateResponse {
    let response = SaslAuthenticateResponse::default();
    if let Some(error) = call.error {
        return response.with_error_code(error.code()).with_error_message(Some(text(&error.to_string())));
    }
    if !call.listener.is_sasl() {
        return response
            .with_error_code(ResponseError::IllegalSaslState.code())
            .with_error_message(Some(text("SaslAuthenticate request received on a listener without SASL")));
    }
    match login.token(&call.shared.users, &call.shared.random, &request.auth_bytes) {
        Ok(reply) => response.with_auth_bytes(Bytes::from(reply)),
        Err(message) => response
            .with_error_code(ResponseError::SaslAuthenticationFailed.code())
            .with_error_message(Some(text(&message))),
    }
}
