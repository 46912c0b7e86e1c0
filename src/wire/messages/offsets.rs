//! Asking a partition's leader about its log, and cutting it. KIP-79, KIP-101, KIP-107, KIP-207.

api! {
    // Version 11 adds a special timestamp of its own.
    ListOffsets = 2, speaks 1..=10 of 1..=11, flexible 6;

    request list_offsets_request::ListOffsetsRequest {
        replica_id: i32;
        isolation_level: i8 [2..];
        topics: Vec<ListOffsetsTopic>;
        timeout_ms: i32 [10..], ignorable;
    }
    struct ListOffsetsTopic {
        name: Str;
        partitions: Vec<ListOffsetsPartition>;
    }
    struct ListOffsetsPartition {
        partition_index: i32;
        current_leader_epoch: i32 [4..] = -1, ignorable;
        timestamp: i64;
    }

    response list_offsets_response::ListOffsetsResponse {
        throttle_time_ms: i32 [2..], ignorable;
        topics: Vec<ListOffsetsTopicResponse>;
    }
    struct ListOffsetsTopicResponse {
        name: Str;
        partitions: Vec<ListOffsetsPartitionResponse>;
    }
    struct ListOffsetsPartitionResponse {
        partition_index: i32;
        error_code: i16;
        timestamp: i64 = -1;
        offset: i64 = -1;
        leader_epoch: i32 [4..] = -1;
    }
}

api! {
    OffsetForLeaderEpoch = 23, speaks 2..=4 of 2..=4, flexible 4;

    request offset_for_leader_epoch_request::OffsetForLeaderEpochRequest {
        replica_id: i32 [3..] = -2, ignorable;
        topics: Vec<OffsetForLeaderTopic>;
    }
    struct OffsetForLeaderTopic {
        topic: Str;
        partitions: Vec<OffsetForLeaderPartition>;
    }
    struct OffsetForLeaderPartition {
        partition: i32;
        current_leader_epoch: i32 = -1, ignorable;
        leader_epoch: i32;
    }

    response offset_for_leader_epoch_response::OffsetForLeaderEpochResponse {
        throttle_time_ms: i32, ignorable;
        topics: Vec<OffsetForLeaderTopicResult>;
    }
    struct OffsetForLeaderTopicResult {
        topic: Str;
        partitions: Vec<EpochEndOffset>;
    }
    struct EpochEndOffset {
        error_code: i16;
        partition: i32;
        leader_epoch: i32 = -1, ignorable;
        end_offset: i64 = -1;
    }
}

api! {
    DeleteRecords = 21, speaks 0..=2 of 0..=2, flexible 2;

    request delete_records_request::DeleteRecordsRequest {
        topics: Vec<DeleteRecordsTopic>;
        timeout_ms: i32;
    }
    struct DeleteRecordsTopic {
        name: Str;
        partitions: Vec<DeleteRecordsPartition>;
    }
    struct DeleteRecordsPartition {
        partition_index: i32;
        offset: i64;
    }

    response delete_records_response::DeleteRecordsResponse {
        throttle_time_ms: i32;
        topics: Vec<DeleteRecordsTopicResult>;
    }
    struct DeleteRecordsTopicResult {
        name: Str;
        partitions: Vec<DeleteRecordsPartitionResult>;
    }
    struct DeleteRecordsPartitionResult {
        partition_index: i32;
        low_watermark: i64;
        error_code: i16;
    }
}
