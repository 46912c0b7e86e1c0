//! Brokers that are not the newest Apache Kafka: which requests they answer in which versions, and how else they differ.

use kafka_protocol::messages::ApiKey;

/// Which broker the embedded one looks like to its clients. The ranges of versions are those the brokers tell of
/// themselves, as far as this broker answers the API at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Profile {
    /// Everything that this broker can do.
    #[default]
    Latest,
    /// Apache Kafka 3.9: no second version of transactions, KIP-848 in its first version.
    Kafka39,
    /// Apache Kafka 2.8: no topic ids in Fetch and Produce, no KIP-848.
    Kafka28,
    /// Azure Event Hubs: closes the connection on ApiVersions 4 and later, has no OffsetForLeaderEpoch, transactions or
    /// IncrementalAlterConfigs, and old versions of Produce, Fetch and Metadata.
    EventHubs,
    /// Redpanda: no KIP-848, old versions of most requests.
    Redpanda,
}

/// The newest version by API; what is not named is not answered.
type Newest = &'static [(ApiKey, i16)];

const KAFKA_39: Newest = &[
    (ApiKey::Produce, 11),
    (ApiKey::Fetch, 17),
    (ApiKey::ListOffsets, 9),
    (ApiKey::Metadata, 12),
    (ApiKey::OffsetCommit, 9),
    (ApiKey::OffsetFetch, 9),
    (ApiKey::FindCoordinator, 6),
    (ApiKey::JoinGroup, 9),
    (ApiKey::Heartbeat, 4),
    (ApiKey::LeaveGroup, 5),
    (ApiKey::SyncGroup, 5),
    (ApiKey::DescribeGroups, 5),
    (ApiKey::ListGroups, 5),
    (ApiKey::SaslHandshake, 1),
    (ApiKey::ApiVersions, 4),
    (ApiKey::CreateTopics, 7),
    (ApiKey::DeleteTopics, 6),
    (ApiKey::DeleteRecords, 2),
    (ApiKey::InitProducerId, 5),
    (ApiKey::OffsetForLeaderEpoch, 4),
    (ApiKey::AddPartitionsToTxn, 5),
    (ApiKey::AddOffsetsToTxn, 4),
    (ApiKey::EndTxn, 4),
    (ApiKey::TxnOffsetCommit, 4),
    (ApiKey::DescribeConfigs, 4),
    (ApiKey::SaslAuthenticate, 2),
    (ApiKey::CreatePartitions, 3),
    (ApiKey::DeleteGroups, 2),
    (ApiKey::IncrementalAlterConfigs, 1),
    (ApiKey::OffsetDelete, 0),
    (ApiKey::DescribeCluster, 1),
    (ApiKey::DescribeProducers, 0),
    (ApiKey::DescribeTransactions, 0),
    (ApiKey::ListTransactions, 1),
    (ApiKey::ConsumerGroupHeartbeat, 0),
    (ApiKey::ConsumerGroupDescribe, 0),
];

const KAFKA_28: Newest = &[
    (ApiKey::Produce, 9),
    (ApiKey::Fetch, 12),
    (ApiKey::ListOffsets, 6),
    (ApiKey::Metadata, 11),
    (ApiKey::OffsetCommit, 8),
    (ApiKey::OffsetFetch, 7),
    (ApiKey::FindCoordinator, 3),
    (ApiKey::JoinGroup, 7),
    (ApiKey::Heartbeat, 4),
    (ApiKey::LeaveGroup, 4),
    (ApiKey::SyncGroup, 5),
    (ApiKey::DescribeGroups, 5),
    (ApiKey::ListGroups, 4),
    (ApiKey::SaslHandshake, 1),
    (ApiKey::ApiVersions, 3),
    (ApiKey::CreateTopics, 7),
    (ApiKey::DeleteTopics, 6),
    (ApiKey::DeleteRecords, 2),
    (ApiKey::InitProducerId, 4),
    (ApiKey::OffsetForLeaderEpoch, 4),
    (ApiKey::AddPartitionsToTxn, 3),
    (ApiKey::AddOffsetsToTxn, 3),
    (ApiKey::EndTxn, 3),
    (ApiKey::TxnOffsetCommit, 3),
    (ApiKey::DescribeConfigs, 4),
    (ApiKey::SaslAuthenticate, 2),
    (ApiKey::CreatePartitions, 3),
    (ApiKey::DeleteGroups, 2),
    (ApiKey::IncrementalAlterConfigs, 1),
    (ApiKey::OffsetDelete, 0),
    (ApiKey::DescribeCluster, 0),
    (ApiKey::DescribeProducers, 0),
];

const EVENT_HUBS: Newest = &[
    (ApiKey::Produce, 7),
    (ApiKey::Fetch, 6),
    (ApiKey::ListOffsets, 5),
    (ApiKey::Metadata, 5),
    (ApiKey::OffsetCommit, 8),
    (ApiKey::OffsetFetch, 7),
    (ApiKey::FindCoordinator, 3),
    (ApiKey::JoinGroup, 7),
    (ApiKey::Heartbeat, 4),
    (ApiKey::LeaveGroup, 4),
    (ApiKey::SyncGroup, 5),
    (ApiKey::DescribeGroups, 5),
    (ApiKey::ListGroups, 4),
    (ApiKey::SaslHandshake, 1),
    (ApiKey::ApiVersions, 3),
    (ApiKey::CreateTopics, 4),
    (ApiKey::DeleteTopics, 3),
    (ApiKey::InitProducerId, 1),
    (ApiKey::DescribeConfigs, 2),
    (ApiKey::SaslAuthenticate, 1),
    (ApiKey::CreatePartitions, 1),
    (ApiKey::DeleteGroups, 0),
];

const REDPANDA: Newest = &[
    (ApiKey::Produce, 7),
    (ApiKey::Fetch, 11),
    (ApiKey::ListOffsets, 4),
    (ApiKey::Metadata, 8),
    (ApiKey::OffsetCommit, 7),
    (ApiKey::OffsetFetch, 7),
    (ApiKey::FindCoordinator, 3),
    (ApiKey::JoinGroup, 5),
    (ApiKey::Heartbeat, 4),
    (ApiKey::LeaveGroup, 4),
    (ApiKey::SyncGroup, 4),
    (ApiKey::DescribeGroups, 5),
    (ApiKey::ListGroups, 4),
    (ApiKey::SaslHandshake, 1),
    (ApiKey::ApiVersions, 3),
    (ApiKey::CreateTopics, 6),
    (ApiKey::DeleteTopics, 4),
    (ApiKey::DeleteRecords, 1),
    (ApiKey::InitProducerId, 4),
    (ApiKey::OffsetForLeaderEpoch, 3),
    (ApiKey::AddPartitionsToTxn, 3),
    (ApiKey::AddOffsetsToTxn, 3),
    (ApiKey::EndTxn, 3),
    (ApiKey::TxnOffsetCommit, 3),
    (ApiKey::DescribeConfigs, 4),
    (ApiKey::SaslAuthenticate, 2),
    (ApiKey::CreatePartitions, 3),
    (ApiKey::DeleteGroups, 2),
    (ApiKey::IncrementalAlterConfigs, 1),
    (ApiKey::OffsetDelete, 0),
    (ApiKey::DescribeProducers, 0),
    (ApiKey::DescribeTransactions, 0),
    (ApiKey::ListTransactions, 0),
];

impl Profile {
    /// The newest version of `api` that is answered; `None`: it is not answered at all. `ours` is the broker's own.
    pub(super) fn newest(self, api: ApiKey, ours: i16) -> Option<i16> {
        let table = match self {
            Self::Latest => return Some(ours),
            Self::Kafka39 => KAFKA_39,
            Self::Kafka28 => KAFKA_28,
            Self::EventHubs => EVENT_HUBS,
            Self::Redpanda => REDPANDA,
        };
        table.iter().find(|(key, _)| *key == api).map(|(_, newest)| ours.min(*newest))
    }

    /// Is an ApiVersions request from the future answered in version 0 (KIP-511)? Else the connection closes.
    pub(super) fn answers_future_versions(self) -> bool {
        self != Self::EventHubs
    }

    /// Features and their levels (KIP-584).
    pub(super) fn features(self) -> &'static [(&'static str, i16)] {
        match self {
            Self::Latest => &[("group.version", 1), ("transaction.version", 2)],
            // In 3.9 neither is production ready: groups of KIP-848 are switched on by themselves.
            Self::Kafka39 => &[("group.version", 1)],
            Self::Kafka28 | Self::EventHubs | Self::Redpanda => &[],
        }
    }
}
