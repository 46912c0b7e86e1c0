//! Authentication. KIP-43, KIP-152, KIP-368.

use crate::wire::NEVER;

api! {
    SaslHandshake = 17, speaks 1..=1 of 1..=1, flexible NEVER, unthrottled;

    request sasl_handshake_request::SaslHandshakeRequest {
        mechanism: Str;
    }

    response sasl_handshake_response::SaslHandshakeResponse {
        error_code: i16;
        mechanisms: Vec<Str>;
    }
}

api! {
    SaslAuthenticate = 36, speaks 0..=2 of 0..=2, flexible 2, unthrottled;

    request sasl_authenticate_request::SaslAuthenticateRequest {
        auth_bytes: Bytes;
    }

    response sasl_authenticate_response::SaslAuthenticateResponse {
        error_code: i16;
        error_message: Option<Str>;
        auth_bytes: Bytes;
        session_lifetime_ms: i64 [1..], ignorable;
    }
}
