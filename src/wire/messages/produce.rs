//! Writing: records, and the producer ids that make writing them idempotent. KIP-98, KIP-360, KIP-951.

api! {
    // Version 13 names topics by id alone.
    Produce = 0, speaks 3..=13 of 3..=13, flexible 9;

    request produce_request::ProduceRequest {
        transactional_id: Option<Str>;
        acks: i16;
        timeout_ms: i32;
        topic_data: Vec<TopicProduceData>;
    }
    struct TopicProduceData {
        name: Str [3..=12], ignorable;
        topic_id: Uuid [13], ignorable;
        partition_data: Vec<PartitionProduceData>;
    }
    struct PartitionProduceData {
        index: i32;
        records: Option<Bytes>;
    }

    response produce_response::ProduceResponse {
        responses: Vec<TopicProduceResponse>;
        throttle_time_ms: i32, ignorable;
        0 => node_endpoints: Vec<NodeEndpoint> [10..];
    }
    struct TopicProduceResponse {
        name: Str [3..=12], ignorable;
        topic_id: Uuid [13], ignorable;
        partition_responses: Vec<PartitionProduceResponse>;
    }
    struct PartitionProduceResponse {
        index: i32;
        error_code: i16;
        base_offset: i64;
        log_append_time_ms: i64 = -1, ignorable;
        log_start_offset: i64 [5..] = -1, ignorable;
        record_errors: Vec<BatchIndexAndErrorMessage> [8..], ignorable;
        error_message: Option<Str> [8..], ignorable;
        0 => current_leader: LeaderIdAndEpoch [10..];
    }
    struct BatchIndexAndErrorMessage {
        batch_index: i32;
        batch_index_error_message: Option<Str>;
    }
    struct LeaderIdAndEpoch {
        leader_id: i32 = -1;
        leader_epoch: i32 = -1;
    }
    struct NodeEndpoint {
        node_id: i32;
        host: Str;
        port: i32;
        rack: Option<Str>;
    }
}

api! {
    // Version 6 is for two-phase commits (KIP-939).
    InitProducerId = 22, speaks 0..=5 of 0..=6, flexible 2;

    request init_producer_id_request::InitProducerIdRequest {
        transactional_id: Option<Str>;
        transaction_timeout_ms: i32;
        producer_id: i64 [3..] = -1;
        producer_epoch: i16 [3..] = -1;
        enable2_pc: bool [6];
        keep_prepared_txn: bool [6];
    }

    response init_producer_id_response::InitProducerIdResponse {
        throttle_time_ms: i32, ignorable;
        error_code: i16;
        producer_id: i64 = -1;
        producer_epoch: i16;
        ongoing_txn_producer_id: i64 [6] = -1;
        ongoing_txn_producer_epoch: i16 [6] = -1;
    }
}
