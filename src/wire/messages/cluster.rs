//! Who is there, who leads, who coordinates, and which versions they speak. KIP-35, KIP-511, KIP-699, KIP-700.

use crate::{error::code::UNSUPPORTED_VERSION, wire::NEVER};

api! {
    // Version 4 (Kafka 3.8) only lets a feature's minimum be 0, and costs a round trip on every older broker.
    ApiVersions = 18, speaks 0..=3 of 0..=5, flexible 3, {
        // KIP-511: the answer keeps header version 0, so that a client can read it before it knows the broker.
        const RESPONSE_FLEXIBLE: i16 = NEVER;

        // KIP-511: a broker that does not know the version answers UNSUPPORTED_VERSION in version 0.
        fn answer_version(asked: i16, body: &[u8]) -> i16 {
            if body.starts_with(&UNSUPPORTED_VERSION.to_be_bytes()) { 0 } else { asked }
        }
    };

    request api_versions_request::ApiVersionsRequest {
        client_software_name: Str [3..], ignorable;
        client_software_version: Str [3..], ignorable;
        cluster_id: Option<Str> [5], ignorable;
        node_id: i32 [5] = -1, ignorable;
    }

    response api_versions_response::ApiVersionsResponse {
        error_code: i16;
        api_keys: Vec<ApiVersion>;
        throttle_time_ms: i32 [1..], ignorable;
        0 => supported_features: Vec<SupportedFeatureKey> [3..], ignorable;
        1 => finalized_features_epoch: i64 [3..] = -1, ignorable;
        2 => finalized_features: Vec<FinalizedFeatureKey> [3..], ignorable;
        3 => zk_migration_ready: bool [3..], ignorable;
    }
    struct ApiVersion {
        api_key: i16;
        min_version: i16;
        max_version: i16;
    }
    struct SupportedFeatureKey {
        name: Str;
        min_version: i16;
        max_version: i16;
    }
    struct FinalizedFeatureKey {
        name: Str;
        max_version_level: i16;
        min_version_level: i16;
    }
}

api! {
    Metadata = 3, speaks 0..=13 of 0..=13, flexible 9;

    request metadata_request::MetadataRequest {
        topics: Option<Vec<MetadataRequestTopic>> [0.., nullable 1..];
        allow_auto_topic_creation: bool [4..] = true;
        include_cluster_authorized_operations: bool [8..=10];
        include_topic_authorized_operations: bool [8..];
    }
    struct MetadataRequestTopic {
        topic_id: Uuid [10..], ignorable;
        name: Option<Str> [0.., nullable 10..];
    }

    response metadata_response::MetadataResponse {
        throttle_time_ms: i32 [3..], ignorable;
        brokers: Vec<MetadataResponseBroker>;
        cluster_id: Option<Str> [2..], ignorable;
        controller_id: i32 [1..] = -1, ignorable;
        topics: Vec<MetadataResponseTopic>;
        cluster_authorized_operations: i32 [8..=10] = -2147483648;
        error_code: i16 [13], ignorable;
    }
    struct MetadataResponseBroker {
        node_id: i32;
        host: Str;
        port: i32;
        rack: Option<Str> [1..], ignorable;
    }
    struct MetadataResponseTopic {
        error_code: i16;
        name: Option<Str> [0.., nullable 12..];
        topic_id: Uuid [10..], ignorable;
        is_internal: bool [1..], ignorable;
        partitions: Vec<MetadataResponsePartition>;
        topic_authorized_operations: i32 [8..] = -2147483648;
    }
    struct MetadataResponsePartition {
        error_code: i16;
        partition_index: i32;
        leader_id: i32;
        leader_epoch: i32 [7..] = -1, ignorable;
        replica_nodes: Vec<i32>;
        isr_nodes: Vec<i32>;
        offline_replicas: Vec<i32> [5..], ignorable;
    }
}

api! {
    // Versions up to 3 ask for one key, later ones for several: another layout.
    FindCoordinator = 10, speaks 0..=6 of 0..=6, flexible 3;

    request find_coordinator_request::FindCoordinatorRequest {
        key: Str [0..=3];
        key_type: i8 [1..];
        coordinator_keys: Vec<Str> [4..];
    }

    response find_coordinator_response::FindCoordinatorResponse {
        throttle_time_ms: i32 [1..], ignorable;
        error_code: i16 [0..=3];
        error_message: Option<Str> [1..=3], ignorable;
        node_id: i32 [0..=3];
        host: Str [0..=3];
        port: i32 [0..=3];
        coordinators: Vec<Coordinator> [4..];
    }
    struct Coordinator {
        key: Str;
        node_id: i32;
        host: Str;
        port: i32;
        error_code: i16;
        error_message: Option<Str>, ignorable;
    }
}

#[cfg(any(test, feature = "unstable-fuzzing"))]
api! {
    DescribeCluster = 60, speaks 0..=2 of 0..=2, flexible 0;

    request describe_cluster_request::DescribeClusterRequest {
        include_cluster_authorized_operations: bool;
        endpoint_type: i8 [1..] = 1;
        include_fenced_brokers: bool [2];
    }

    response describe_cluster_response::DescribeClusterResponse {
        throttle_time_ms: i32;
        error_code: i16;
        error_message: Option<Str>;
        endpoint_type: i8 [1..] = 1;
        cluster_id: Str;
        controller_id: i32 = -1;
        brokers: Vec<DescribeClusterBroker>;
        cluster_authorized_operations: i32 = -2147483648;
    }
    struct DescribeClusterBroker {
        broker_id: i32;
        host: Str;
        port: i32;
        rack: Option<Str>;
        is_fenced: bool [2];
    }
}
