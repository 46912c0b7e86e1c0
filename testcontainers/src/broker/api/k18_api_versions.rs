//! ApiVersions (key 18): what the broker answers. A version from the future gets version 0's answer (KIP-511).

use bytes::BytesMut;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};

use super::super::profile::Profile;
use super::super::server::Close;
use super::{Call, encode, supported, text};

pub(super) fn handle(call: &Call<'_>, request: &ApiVersionsRequest) -> ApiVersionsResponse {
    if call.version >= 3
        && !(is_word(&request.client_software_name) && is_word(&request.client_software_version))
    {
        return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    let mut response = ApiVersionsResponse::default().with_api_keys(versions(call.shared.profile));
    if call.version >= 3 {
        let features = call.shared.profile.features().iter();
        response.supported_features = features.clone().map(supports).collect();
        response.finalized_features_epoch = 0;
        response.finalized_features = features.map(finalized).collect();
    }
    if let Some(error) = call.error {
        response.error_code = error.code();
    }
    response
}

/// KIP-511: letters, digits, dots and dashes; neither of the latter at an end.
fn is_word(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(text.chars().next()) && edge(text.chars().next_back()) && text.chars().all(inner)
}

fn supports((name, level): &(&str, i16)) -> SupportedFeatureKey {
    // A minimum of 0 would have to be left out before version 4.
    SupportedFeatureKey::default().with_name(text(name)).with_min_version(1).with_max_version(*level)
}

fn finalized((name, level): &(&str, i16)) -> FinalizedFeatureKey {
    FinalizedFeatureKey::default()
        .with_name(text(name))
        .with_min_version_level(*level)
        .with_max_version_level(*level)
}

/// The answer in version 0 to a request of a version that is not supported: it names the versions of ApiVersions alone.
pub(in super::super) fn unsupported(profile: Profile, correlation: i32) -> Result<BytesMut, Close> {
    let mut own = versions(profile);
    own.retain(|version| version.api_key == ApiKey::ApiVersions as i16);
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(own);
    encode(ApiKey::ApiVersions, 0, correlation, &response)
}

fn versions(profile: Profile) -> Vec<ApiVersion> {
    let version = |(api, min, max): (ApiKey, i16, i16)| {
        // KAFKA-18659: librdkafka takes a broker without Produce 0 for one that knows no record batches, so Apache
        // Kafka names it too and does not answer it.
        let min = if api == ApiKey::Produce { 0 } else { min };
        ApiVersion::default().with_api_key(api as i16).with_min_version(min).with_max_version(max)
    };
    supported(profile).map(version).collect()
}
