//! The requests that the broker answers: one file per API, named by its key; this one has the table of versions and
//! the dispatch.
//!
//! A handler takes a decoded request and returns the answer; it refuses per topic or per group, as Kafka does, and it
//! consults [`Call::error_for`] before it has any effect.

mod k00_produce;
mod k01_fetch;
mod k02_list_offsets;
mod k03_metadata;
mod k08_offset_commit;
mod k09_offset_fetch;
mod k10_find_coordinator;
mod k11_join_group;
mod k12_heartbeat;
mod k13_leave_group;
mod k14_sync_group;
mod k15_describe_groups;
mod k16_list_groups;
mod k17_sasl_handshake;
mod k18_api_versions;
mod k19_create_topics;
mod k20_delete_topics;
mod k21_delete_records;
mod k22_init_producer_id;
mod k23_offset_for_leader_epoch;
mod k32_describe_configs;
mod k36_sasl_authenticate;
mod k37_create_partitions;
mod k42_delete_groups;
mod k44_incremental_alter_configs;
mod k60_describe_cluster;

use std::sync::{Arc, MutexGuard};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::Listener;
use super::cluster::{Cluster, Shared};
use super::sasl::Login;
use super::server::Close;

pub(super) use k18_api_versions::unsupported as unsupported_api_versions;

/// API, oldest and newest version that is answered.
const SUPPORTED: [(ApiKey, i16, i16); 26] = [
    (ApiKey::Produce, 3, 12),
    (ApiKey::Fetch, 4, 16),
    (ApiKey::ListOffsets, 1, 10),
    (ApiKey::Metadata, 0, 13),
    (ApiKey::OffsetCommit, 2, 9),
    (ApiKey::OffsetFetch, 1, 9),
    (ApiKey::FindCoordinator, 0, 6),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 6),
    (ApiKey::ListGroups, 0, 5),
    (ApiKey::SaslHandshake, 0, 1),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::SaslAuthenticate, 0, 2),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::DescribeCluster, 0, 2),
];

pub(super) fn is_supported(api: ApiKey, version: i16) -> bool {
    SUPPORTED.iter().any(|(a, min, max)| *a == api && (*min..=*max).contains(&version))
}

/// One request and where it came from.
pub(super) struct Call<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) broker: i32,
    pub(super) listener: Listener,
    pub(super) api: ApiKey,
    pub(super) version: i16,
    pub(super) correlation: i32,
    pub(super) client_id: String,
    pub(super) client_host: String,
    /// What a fault makes of the whole request.
    pub(super) error: Option<ResponseError>,
}

impl Call<'_> {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.shared.cluster()
    }

    /// The fault's error for this topic. Ask once per topic and request: asking uses it up.
    fn error_for(&self, topic: &str) -> Option<ResponseError> {
        self.error.or_else(|| self.shared.faults.topic_error(self.api as i16, topic))
    }

    /// May this broker answer for the group?
    fn check_group(&self, cluster: &Cluster, group: &str) -> Result<(), ResponseError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if cluster.coordinator(group) != self.broker {
            return Err(ResponseError::NotCoordinator);
        }
        Ok(())
    }

    fn decode<R: Decodable>(&self, mut body: Bytes) -> Result<R, Close> {
        R::decode(&mut body, self.version).map_err(|error| {
            tracing::debug!(api = ?self.api, version = self.version, %error, "request cannot be decoded");
            Close
        })
    }

    fn encode<R: Encodable>(&self, response: &R) -> Result<Option<BytesMut>, Close> {
        encode(self.api, self.version, self.correlation, response).map(Some)
    }
}

/// Frame length, response header and body in one buffer.
fn encode<R: Encodable>(
    api: ApiKey,
    version: i16,
    correlation: i32,
    response: &R,
) -> Result<BytesMut, Close> {
    let write = || -> Result<BytesMut, Box<dyn std::error::Error>> {
        let mut out = BytesMut::with_capacity(response.compute_size(version)? + 16);
        out.put_i32(0);
        let header = ResponseHeader::default().with_correlation_id(correlation);
        header.encode(&mut out, api.response_header_version(version))?;
        response.encode(&mut out, version)?;
        let size = i32::try_from(out.len() - 4)?;
        out[..4].copy_from_slice(&size.to_be_bytes());
        Ok(out)
    };
    write().map_err(|error| {
        tracing::error!(?api, version, %error, "answer cannot be encoded");
        Close
    })
}

/// Decodes a request, has it answered, and encodes the answer (`None`: there is none).
pub(super) async fn dispatch(
    call: &Call<'_>,
    body: Bytes,
    login: &mut Login,
) -> Result<Option<BytesMut>, Close> {
    match call.api {
        ApiKey::Produce => match k00_produce::handle(call, call.decode(body)?)? {
            Some(response) => call.encode(&response),
            None => Ok(None),
        },
        ApiKey::Fetch => call.encode(&Box::pin(k01_fetch::handle(call, call.decode(body)?)).await),
        ApiKey::JoinGroup => call.encode(&Box::pin(k11_join_group::handle(call, call.decode(body)?)).await),
        ApiKey::SyncGroup => call.encode(&Box::pin(k14_sync_group::handle(call, call.decode(body)?)).await),
        ApiKey::SaslHandshake => call.encode(&k17_sasl_handshake::handle(call, call.decode(body)?, login)),
        ApiKey::SaslAuthenticate => {
            call.encode(&k36_sasl_authenticate::handle(call, call.decode(body)?, login))
        }
        ApiKey::ListOffsets => call.encode(&k02_list_offsets::handle(call, call.decode(body)?)),
        ApiKey::Metadata => call.encode(&k03_metadata::handle(call, call.decode(body)?)),
        ApiKey::OffsetCommit => call.encode(&k08_offset_commit::handle(call, call.decode(body)?)),
        ApiKey::OffsetFetch => call.encode(&k09_offset_fetch::handle(call, call.decode(body)?)),
        ApiKey::FindCoordinator => call.encode(&k10_find_coordinator::handle(call, call.decode(body)?)),
        ApiKey::Heartbeat => call.encode(&k12_heartbeat::handle(call, call.decode(body)?)),
        ApiKey::LeaveGroup => call.encode(&k13_leave_group::handle(call, call.decode(body)?)),
        ApiKey::DescribeGroups => call.encode(&k15_describe_groups::handle(call, call.decode(body)?)),
        ApiKey::ListGroups => call.encode(&k16_list_groups::handle(call, call.decode(body)?)),
        ApiKey::ApiVersions => call.encode(&k18_api_versions::handle(call)),
        ApiKey::CreateTopics => call.encode(&k19_create_topics::handle(call, call.decode(body)?)),
        ApiKey::DeleteTopics => call.encode(&k20_delete_topics::handle(call, call.decode(body)?)),
        ApiKey::DeleteRecords => call.encode(&k21_delete_records::handle(call, call.decode(body)?)),
        ApiKey::InitProducerId => call.encode(&k22_init_producer_id::handle(call, call.decode(body)?)),
        ApiKey::OffsetForLeaderEpoch => {
            call.encode(&k23_offset_for_leader_epoch::handle(call, call.decode(body)?))
        }
        ApiKey::DescribeConfigs => call.encode(&k32_describe_configs::handle(call, call.decode(body)?)),
        ApiKey::CreatePartitions => call.encode(&k37_create_partitions::handle(call, call.decode(body)?)),
        ApiKey::DeleteGroups => call.encode(&k42_delete_groups::handle(call, call.decode(body)?)),
        ApiKey::IncrementalAlterConfigs => {
            call.encode(&k44_incremental_alter_configs::handle(call, call.decode(body)?))
        }
        ApiKey::DescribeCluster => call.encode(&k60_describe_cluster::handle(call, call.decode(body)?)),
        _ => Err(Close),
    }
}

/// The code of a result: 0, or the error's.
fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn topic_name(value: &str) -> TopicName {
    TopicName(text(value))
}

#[cfg(test)]
mod tests;
