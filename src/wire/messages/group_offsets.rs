//! Committed offsets. KIP-211, KIP-447, KIP-709, KIP-848.

use crate::wire::NEVER;

api! {
    // Version 10 names topics by id.
    OffsetCommit = 8, speaks 2..=10 of 2..=10, flexible 8;

    request offset_commit_request::OffsetCommitRequest {
        group_id: Str;
        generation_id_or_member_epoch: i32 = -1, ignorable;
        member_id: Str, ignorable;
        group_instance_id: Option<Str> [7..];
        retention_time_ms: i64 [2..=4] = -1, ignorable;
        topics: Vec<OffsetCommitRequestTopic>;
    }
    struct OffsetCommitRequestTopic {
        name: Str [2..=9], ignorable;
        topic_id: Uuid [10], ignorable;
        partitions: Vec<OffsetCommitRequestPartition>;
    }
    struct OffsetCommitRequestPartition {
        partition_index: i32;
        committed_offset: i64;
        committed_leader_epoch: i32 [6..] = -1, ignorable;
        committed_metadata: Option<Str>;
    }

    response offset_commit_response::OffsetCommitResponse {
        throttle_time_ms: i32 [3..], ignorable;
        topics: Vec<OffsetCommitResponseTopic>;
    }
    struct OffsetCommitResponseTopic {
        name: Str [2..=9], ignorable;
        topic_id: Uuid [10], ignorable;
        partitions: Vec<OffsetCommitResponsePartition>;
    }
    struct OffsetCommitResponsePartition {
        partition_index: i32;
        error_code: i16;
    }
}

api! {
    // Versions up to 7 ask for one group, later ones for several: another layout. Version 10 names topics by id.
    OffsetFetch = 9, speaks 1..=10 of 1..=10, flexible 6;

    request offset_fetch_request::OffsetFetchRequest {
        group_id: Str [1..=7];
        topics: Option<Vec<OffsetFetchRequestTopic>> [1..=7, nullable 2..];
        groups: Vec<OffsetFetchRequestGroup> [8..];
        require_stable: bool [7..];
    }
    struct OffsetFetchRequestTopic {
        name: Str;
        partition_indexes: Vec<i32>;
    }
    struct OffsetFetchRequestGroup {
        group_id: Str;
        member_id: Option<Str> [9..], ignorable;
        member_epoch: i32 [9..] = -1, ignorable;
        topics: Option<Vec<OffsetFetchRequestTopics>>;
    }
    struct OffsetFetchRequestTopics {
        name: Str [1..=9], ignorable;
        topic_id: Uuid [10], ignorable;
        partition_indexes: Vec<i32>;
    }

    response offset_fetch_response::OffsetFetchResponse {
        throttle_time_ms: i32 [3..], ignorable;
        topics: Vec<OffsetFetchResponseTopic> [1..=7];
        error_code: i16 [2..=7], ignorable;
        groups: Vec<OffsetFetchResponseGroup> [8..];
    }
    struct OffsetFetchResponseTopic {
        name: Str;
        partitions: Vec<OffsetFetchResponsePartition>;
    }
    struct OffsetFetchResponsePartition {
        partition_index: i32;
        committed_offset: i64;
        committed_leader_epoch: i32 [5..] = -1, ignorable;
        metadata: Option<Str>;
        error_code: i16;
    }
    struct OffsetFetchResponseGroup {
        group_id: Str;
        topics: Vec<OffsetFetchResponseTopics>;
        error_code: i16;
    }
    struct OffsetFetchResponseTopics {
        name: Str [1..=9], ignorable;
        topic_id: Uuid [10], ignorable;
        partitions: Vec<OffsetFetchResponsePartitions>;
    }
    struct OffsetFetchResponsePartitions {
        partition_index: i32;
        committed_offset: i64;
        committed_leader_epoch: i32 = -1, ignorable;
        metadata: Option<Str>;
        error_code: i16;
    }
}

api! {
    OffsetDelete = 47, speaks 0..=0 of 0..=0, flexible NEVER;

    request offset_delete_request::OffsetDeleteRequest {
        group_id: Str;
        topics: Vec<OffsetDeleteRequestTopic>;
    }
    struct OffsetDeleteRequestTopic {
        name: Str;
        partitions: Vec<OffsetDeleteRequestPartition>;
    }
    struct OffsetDeleteRequestPartition {
        partition_index: i32;
    }

    response offset_delete_response::OffsetDeleteResponse {
        error_code: i16;
        throttle_time_ms: i32, ignorable;
        topics: Vec<OffsetDeleteResponseTopic>;
    }
    struct OffsetDeleteResponseTopic {
        name: Str;
        partitions: Vec<OffsetDeleteResponsePartition>;
    }
    struct OffsetDeleteResponsePartition {
        partition_index: i32;
        error_code: i16;
    }
}
