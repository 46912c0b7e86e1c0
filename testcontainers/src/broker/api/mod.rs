//! The requests that the broker answers: one file per API, named by its key; this one has the table of versions and
//! the dispatch.
//!
//! A handler takes a decoded request and returns the answer; it refuses per topic or per group, as Kafka does, and it
//! consults [`Call::error_for`] before it has any effect.

mod by_id;
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
mod k24_add_partitions_to_txn;
mod k25_add_offsets_to_txn;
mod k26_end_txn;
mod k28_txn_offset_commit;
mod k32_describe_configs;
mod k36_sasl_authenticate;
mod k37_create_partitions;
mod k42_delete_groups;
mod k44_incremental_alter_configs;
mod k47_offset_delete;
mod k60_describe_cluster;
mod k61_describe_producers;
mod k65_describe_transactions;
mod k66_list_transactions;
mod k68_consumer_group_heartbeat;
mod k69_consumer_group_describe;
mod throttle;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::Listener;
use super::acls::{Operation, Resource};
use super::cluster::{Cluster, Kind, Shared};
use super::faults::{Asked, Effect, InjectedFaults};
use super::profile::Profile;
use super::quotas::Quota;
use super::sasl::Login;
use super::server::Close;

use self::throttle::Throttled;

pub(super) use k18_api_versions::unsupported as unsupported_api_versions;

/// API, oldest and newest version that is answered.
const SUPPORTED: [(ApiKey, i16, i16); 36] = [
    (ApiKey::Produce, 3, 13),
    (ApiKey::Fetch, 4, 17),
    (ApiKey::ListOffsets, 1, 10),
    (ApiKey::Metadata, 0, 13),
    (ApiKey::OffsetCommit, 2, 10),
    (ApiKey::OffsetFetch, 1, 10),
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
    (ApiKey::AddPartitionsToTxn, 0, 5),
    (ApiKey::AddOffsetsToTxn, 0, 4),
    (ApiKey::EndTxn, 0, 5),
    (ApiKey::TxnOffsetCommit, 0, 5),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::SaslAuthenticate, 0, 2),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeCluster, 0, 2),
    (ApiKey::DescribeProducers, 0, 0),
    (ApiKey::DescribeTransactions, 0, 0),
    (ApiKey::ListTransactions, 0, 2),
    (ApiKey::ConsumerGroupHeartbeat, 0, 1),
    (ApiKey::ConsumerGroupDescribe, 0, 1),
];

/// The APIs and versions that a broker of this profile answers.
fn supported(profile: Profile) -> impl Iterator<Item = (ApiKey, i16, i16)> {
    SUPPORTED.into_iter().filter_map(move |(api, min, max)| Some((api, min, profile.newest(api, max)?)))
}

pub(super) fn is_supported(profile: Profile, api: ApiKey, version: i16) -> bool {
    supported(profile).any(|(a, min, max)| a == api && (min..=max).contains(&version))
}

/// One request and where it came from.
pub(super) struct Call<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) broker: i32,
    pub(super) listener: Listener,
    pub(super) api: ApiKey,
    pub(super) version: i16,
    pub(super) correlation: i32,
    /// Bytes of the request.
    pub(super) size: usize,
    pub(super) client_id: String,
    pub(super) client_host: String,
    /// Who has logged in; empty without a login.
    pub(super) user: String,
    /// What a fault makes of the whole request.
    pub(super) error: Option<ResponseError>,
    /// What faults do to the connection once the request was handled.
    pub(super) injected: Mutex<InjectedFaults>,
}

impl Call<'_> {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.shared.cluster()
    }

    /// The fault's error for this topic. Ask once per topic and request: asking uses it up.
    fn error_for(&self, topic: &str) -> Option<ResponseError> {
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        let random = &self.shared.random;
        let faults = &self.shared.faults;
        let error = self.error.or_else(|| faults.topic_error(self.asked(), topic, random, &mut injected));
        let operation = match self.api {
            ApiKey::Produce | ApiKey::AddPartitionsToTxn => Operation::Write,
            ApiKey::Fetch | ApiKey::OffsetCommit | ApiKey::TxnOffsetCommit | ApiKey::OffsetDelete => {
                Operation::Read
            }
            ApiKey::CreateTopics => Operation::Create,
            ApiKey::DeleteTopics | ApiKey::DeleteRecords => Operation::Delete,
            ApiKey::CreatePartitions | ApiKey::IncrementalAlterConfigs => Operation::Alter,
            _ => Operation::Describe,
        };
        let denied = || {
            let resource = Resource::Topic(topic.to_owned());
            self.denies(&resource, operation).then_some(ResponseError::TopicAuthorizationFailed)
        };
        error.or_else(denied)
    }

    /// Is the caller denied this?
    fn denies(&self, resource: &Resource, operation: Operation) -> bool {
        let acls = self.shared.acls.lock().unwrap_or_else(PoisonError::into_inner);
        !acls.allows(&self.user, resource, operation)
    }

    fn asked(&self) -> Asked<'_> {
        Asked { api: self.api as i16, broker: self.broker, client: &self.client_id }
    }

    /// The error that a fault tells although the request was applied. Ask after [`Self::error_for`].
    fn error_after(&self, topic: &str) -> Option<ResponseError> {
        let injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        match injected.effect {
            Some(Effect::ErrorAfter(error)) => Some(error),
            _ => injected.topics_after.get(topic).copied(),
        }
    }

    /// May this broker answer for the group?
    fn check_group(&self, cluster: &Cluster, group: &str) -> Result<(), ResponseError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let operation = match self.api {
            ApiKey::OffsetFetch | ApiKey::DescribeGroups | ApiKey::ConsumerGroupDescribe => {
                Operation::Describe
            }
            ApiKey::DeleteGroups | ApiKey::OffsetDelete => Operation::Delete,
            _ => Operation::Read,
        };
        if self.denies(&Resource::Group(group.to_owned()), operation) {
            return Err(ResponseError::GroupAuthorizationFailed);
        }
        if cluster.coordinator(Kind::Group, group) != self.broker {
            return Err(ResponseError::NotCoordinator);
        }
        Ok(())
    }

    /// May this broker answer for the transaction?
    fn check_transaction(&self, cluster: &Cluster, id: &str) -> Result<(), ResponseError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let operation = match self.api {
            ApiKey::DescribeTransactions => Operation::Describe,
            _ => Operation::Write,
        };
        if self.denies(&Resource::TransactionalId(id.to_owned()), operation) {
            return Err(ResponseError::TransactionalIdAuthorizationFailed);
        }
        if cluster.coordinator(Kind::Transaction, id) != self.broker {
            return Err(ResponseError::NotCoordinator);
        }
        Ok(())
    }

    /// Ends the transactions that are to end now, and lets the timer see to the others.
    fn settle(&self, cluster: &mut Cluster) {
        cluster.settle_transactions(&self.shared.clock, &self.shared.commits);
        self.shared.committed.notify_waiters();
        self.shared.appended.notify_waiters();
        self.shared.timer.notify_one();
    }

    fn decode<R: Decodable>(&self, mut body: Bytes) -> Result<R, Close> {
        R::decode(&mut body, self.version).map_err(|error| {
            tracing::debug!(api = ?self.api, version = self.version, %error, "request cannot be decoded");
            Close
        })
    }

    /// Encodes an answer, with the time for which the client is throttled.
    fn encode<R: Encodable + Throttled>(&self, mut response: R) -> Result<Option<BytesMut>, Close> {
        let size = match self.api {
            ApiKey::Fetch => response.compute_size(self.version).unwrap_or(0),
            _ => 0,
        };
        response.throttle(self.throttle_ms(size));
        encode(self.api, self.version, self.correlation, &response).map(Some)
    }

    /// For how long the client must wait now, by its quotas and by faults. Asking counts the request; `answered` are the
    /// bytes of a fetch.
    fn throttle_ms(&self, answered: usize) -> i32 {
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        let mut quotas = self.shared.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.shared.clock.now();
        let mut used = |quota, amount| {
            injected.throttle = injected.throttle.max(quotas.used(now, quota, &self.client_id, amount));
        };
        used(Quota::Requests, 1);
        match self.api {
            ApiKey::Produce => used(Quota::ProduceBytes, self.size),
            ApiKey::Fetch => used(Quota::FetchBytes, answered),
            _ => {}
        }
        i32::try_from(injected.throttle.as_millis()).unwrap_or(i32::MAX)
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
        ApiKey::Produce => match Box::pin(k00_produce::handle(call, call.decode(body)?)).await? {
            Some(response) => call.encode(response),
            None => Ok(None),
        },
        ApiKey::Fetch => call.encode(Box::pin(k01_fetch::handle(call, call.decode(body)?)).await),
        ApiKey::JoinGroup => call.encode(Box::pin(k11_join_group::handle(call, call.decode(body)?)).await),
        ApiKey::SyncGroup => call.encode(Box::pin(k14_sync_group::handle(call, call.decode(body)?)).await),
        ApiKey::SaslHandshake => call.encode(k17_sasl_handshake::handle(call, call.decode(body)?, login)),
        ApiKey::SaslAuthenticate => {
            call.encode(k36_sasl_authenticate::handle(call, call.decode(body)?, login))
        }
        ApiKey::ListOffsets => call.encode(k02_list_offsets::handle(call, call.decode(body)?)),
        ApiKey::Metadata => call.encode(k03_metadata::handle(call, call.decode(body)?)),
        ApiKey::OffsetCommit if call.version >= by_id::VERSION => {
            let mut response = k08_offset_commit::handle(call, by_id::read_commit(body)?);
            response.throttle(call.throttle_ms(0));
            Ok(Some(by_id::write_commit(call.correlation, &response)))
        }
        ApiKey::OffsetFetch if call.version >= by_id::VERSION => {
            let mut response = k09_offset_fetch::handle(call, by_id::read_fetch(body)?);
            response.throttle(call.throttle_ms(0));
            Ok(Some(by_id::write_fetch(call.correlation, &response)))
        }
        ApiKey::OffsetCommit => call.encode(k08_offset_commit::handle(call, call.decode(body)?)),
        ApiKey::OffsetFetch => call.encode(k09_offset_fetch::handle(call, call.decode(body)?)),
        ApiKey::FindCoordinator => call.encode(k10_find_coordinator::handle(call, call.decode(body)?)),
        ApiKey::Heartbeat => call.encode(k12_heartbeat::handle(call, call.decode(body)?)),
        ApiKey::LeaveGroup => call.encode(k13_leave_group::handle(call, call.decode(body)?)),
        ApiKey::DescribeGroups => call.encode(k15_describe_groups::handle(call, call.decode(body)?)),
        ApiKey::ListGroups => call.encode(k16_list_groups::handle(call, call.decode(body)?)),
        ApiKey::ApiVersions => call.encode(k18_api_versions::handle(call, &call.decode(body)?)),
        ApiKey::CreateTopics => call.encode(k19_create_topics::handle(call, call.decode(body)?)),
        ApiKey::DeleteTopics => call.encode(k20_delete_topics::handle(call, call.decode(body)?)),
        ApiKey::DeleteRecords => call.encode(k21_delete_records::handle(call, call.decode(body)?)),
        ApiKey::InitProducerId => call.encode(k22_init_producer_id::handle(call, call.decode(body)?)),
        ApiKey::OffsetForLeaderEpoch => {
            call.encode(k23_offset_for_leader_epoch::handle(call, call.decode(body)?))
        }
        ApiKey::AddPartitionsToTxn => {
            call.encode(k24_add_partitions_to_txn::handle(call, call.decode(body)?))
        }
        ApiKey::AddOffsetsToTxn => call.encode(k25_add_offsets_to_txn::handle(call, call.decode(body)?)),
        ApiKey::EndTxn => call.encode(k26_end_txn::handle(call, call.decode(body)?)),
        ApiKey::TxnOffsetCommit => call.encode(k28_txn_offset_commit::handle(call, call.decode(body)?)),
        ApiKey::DescribeProducers => call.encode(k61_describe_producers::handle(call, call.decode(body)?)),
        ApiKey::DescribeTransactions => {
            call.encode(k65_describe_transactions::handle(call, call.decode(body)?))
        }
        ApiKey::ConsumerGroupHeartbeat => {
            call.encode(k68_consumer_group_heartbeat::handle(call, call.decode(body)?))
        }
        ApiKey::ConsumerGroupDescribe => {
            call.encode(k69_consumer_group_describe::handle(call, call.decode(body)?))
        }
        ApiKey::ListTransactions => call.encode(k66_list_transactions::handle(call, call.decode(body)?)),
        ApiKey::DescribeConfigs => call.encode(k32_describe_configs::handle(call, call.decode(body)?)),
        ApiKey::CreatePartitions => call.encode(k37_create_partitions::handle(call, call.decode(body)?)),
        ApiKey::DeleteGroups => call.encode(k42_delete_groups::handle(call, call.decode(body)?)),
        ApiKey::IncrementalAlterConfigs => {
            call.encode(k44_incremental_alter_configs::handle(call, call.decode(body)?))
        }
        ApiKey::OffsetDelete => call.encode(k47_offset_delete::handle(call, call.decode(body)?)),
        ApiKey::DescribeCluster => call.encode(k60_describe_cluster::handle(call, call.decode(body)?)),
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
