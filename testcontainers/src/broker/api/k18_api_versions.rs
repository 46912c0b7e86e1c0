//! ApiVersions (key 18): what the broker answers. A version from the future gets version 0's answer (KIP-511).

use bytes::BytesMut;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse};

use super::super::server::Close;
use super::{Call, SUPPORTED, encode};

pub(super) fn handle(call: &Call<'_>) -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default().with_api_keys(versions());
    if let Some(error) = call.error {
        response.error_code = error.code();
    }
    response
}

/// The answer in version 0 to a request of a version that is not supported.
pub(in super::super) fn unsupported(correlation: i32) -> Result<BytesMut, Close> {
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(versions());
    encode(ApiKey::ApiVersions, 0, correlation, &response)
}

fn versions() -> Vec<ApiVersion> {
    let version = |(api, min, max): (ApiKey, i16, i16)| {
        // KAFKA-18659: librdkafka takes a broker without Produce 0 for one that knows no record batches, so Apache
        // Kafka names it too and does not answer it.
        let min = if api == ApiKey::Produce { 0 } else { min };
        ApiVersion::default().with_api_key(api as i16).with_min_version(min).with_max_version(max)
    };
    SUPPORTED.into_iter().map(version).collect()
}
