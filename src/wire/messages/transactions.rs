//! Transactions: taking part (KIP-98, KIP-447, KIP-890) and looking on (KIP-664, KIP-994).

api! {
    // Version 4 is the brokers' own.
    AddPartitionsToTxn = 24, speaks 0..=3 of 0..=5, flexible 3;

    request add_partitions_to_txn_request::AddPartitionsToTxnRequest {
        transactions: Vec<AddPartitionsToTxnTransaction> [4..];
        v3_and_below_transactional_id: Str [0..=3];
        v3_and_below_producer_id: i64 [0..=3];
        v3_and_below_producer_epoch: i16 [0..=3];
        v3_and_below_topics: Vec<AddPartitionsToTxnTopic> [0..=3];
    }
    struct AddPartitionsToTxnTransaction {
        transactional_id: Str;
        producer_id: i64;
        producer_epoch: i16;
        verify_only: bool;
        topics: Vec<AddPartitionsToTxnTopic>;
    }
    struct AddPartitionsToTxnTopic {
        name: Str;
        partitions: Vec<i32>;
    }

    response add_partitions_to_txn_response::AddPartitionsToTxnResponse {
        throttle_time_ms: i32;
        error_code: i16 [4..], ignorable;
        results_by_transaction: Vec<AddPartitionsToTxnResult> [4..];
        results_by_topic_v3_and_below: Vec<AddPartitionsToTxnTopicResult> [0..=3];
    }
    struct AddPartitionsToTxnResult {
        transactional_id: Str;
        topic_results: Vec<AddPartitionsToTxnTopicResult>;
    }
    struct AddPartitionsToTxnTopicResult {
        name: Str;
        results_by_partition: Vec<AddPartitionsToTxnPartitionResult>;
    }
    struct AddPartitionsToTxnPartitionResult {
        partition_index: i32;
        partition_error_code: i16;
    }
}

api! {
    AddOffsetsToTxn = 25, speaks 0..=4 of 0..=4, flexible 3;

    request add_offsets_to_txn_request::AddOffsetsToTxnRequest {
        transactional_id: Str;
        producer_id: i64;
        producer_epoch: i16;
        group_id: Str;
    }

    response add_offsets_to_txn_response::AddOffsetsToTxnResponse {
        throttle_time_ms: i32;
        error_code: i16;
    }
}

api! {
    // Version 5 bumps the epoch with every transaction (KIP-890, part 2): the producer must follow it.
    EndTxn = 26, speaks 0..=5 of 0..=5, flexible 3;

    request end_txn_request::EndTxnRequest {
        transactional_id: Str;
        producer_id: i64;
        producer_epoch: i16;
        committed: bool;
    }

    response end_txn_response::EndTxnResponse {
        throttle_time_ms: i32;
        error_code: i16;
        producer_id: i64 [5] = -1, ignorable;
        producer_epoch: i16 [5] = -1, ignorable;
    }
}

api! {
    // Version 5 adds the offsets to the transaction by itself (KIP-890, part 2). Version 6 names topics by id.
    TxnOffsetCommit = 28, speaks 0..=5 of 0..=6, flexible 3;

    request txn_offset_commit_request::TxnOffsetCommitRequest {
        transactional_id: Str;
        group_id: Str;
        producer_id: i64;
        producer_epoch: i16;
        generation_id_or_member_epoch: i32 [3..] = -1;
        member_id: Str [3..];
        group_instance_id: Option<Str> [3..];
        topics: Vec<TxnOffsetCommitRequestTopic>;
    }
    struct TxnOffsetCommitRequestTopic {
        name: Str [0..=5], ignorable;
        topic_id: Uuid [6], ignorable;
        partitions: Vec<TxnOffsetCommitRequestPartition>;
    }
    struct TxnOffsetCommitRequestPartition {
        partition_index: i32;
        committed_offset: i64;
        committed_leader_epoch: i32 [2..] = -1, ignorable;
        committed_metadata: Option<Str>;
    }

    response txn_offset_commit_response::TxnOffsetCommitResponse {
        throttle_time_ms: i32;
        topics: Vec<TxnOffsetCommitResponseTopic>;
    }
    struct TxnOffsetCommitResponseTopic {
        name: Str [0..=5], ignorable;
        topic_id: Uuid [6], ignorable;
        partitions: Vec<TxnOffsetCommitResponsePartition>;
    }
    struct TxnOffsetCommitResponsePartition {
        partition_index: i32;
        error_code: i16;
    }
}

api! {
    DescribeProducers = 61, speaks 0..=0 of 0..=0, flexible 0;

    request describe_producers_request::DescribeProducersRequest {
        topics: Vec<TopicRequest>;
    }
    struct TopicRequest {
        name: Str;
        partition_indexes: Vec<i32>;
    }

    response describe_producers_response::DescribeProducersResponse {
        throttle_time_ms: i32;
        topics: Vec<TopicResponse>;
    }
    struct TopicResponse {
        name: Str;
        partitions: Vec<PartitionResponse>;
    }
    struct PartitionResponse {
        partition_index: i32;
        error_code: i16;
        error_message: Option<Str>;
        active_producers: Vec<ProducerState>;
    }
    struct ProducerState {
        producer_id: i64;
        producer_epoch: i32;
        last_sequence: i32 = -1;
        last_timestamp: i64 = -1;
        coordinator_epoch: i32;
        current_txn_start_offset: i64 = -1;
    }
}

api! {
    DescribeTransactions = 65, speaks 0..=0 of 0..=0, flexible 0;

    request describe_transactions_request::DescribeTransactionsRequest {
        transactional_ids: Vec<Str>;
    }

    response describe_transactions_response::DescribeTransactionsResponse {
        throttle_time_ms: i32;
        transaction_states: Vec<TransactionState>;
    }
    struct TransactionState {
        error_code: i16;
        transactional_id: Str;
        transaction_state: Str;
        transaction_timeout_ms: i32;
        transaction_start_time_ms: i64;
        producer_id: i64;
        producer_epoch: i16;
        topics: Vec<TopicData>;
    }
    struct TopicData {
        topic: Str;
        partitions: Vec<i32>;
    }
}

api! {
    ListTransactions = 66, speaks 0..=2 of 0..=2, flexible 0;

    request list_transactions_request::ListTransactionsRequest {
        state_filters: Vec<Str>;
        producer_id_filters: Vec<i64>;
        duration_filter: i64 [1..] = -1;
        transactional_id_pattern: Option<Str> [2];
    }

    response list_transactions_response::ListTransactionsResponse {
        throttle_time_ms: i32;
        error_code: i16;
        unknown_state_filters: Vec<Str>;
        transaction_states: Vec<TransactionState>;
    }
    struct TransactionState {
        transactional_id: Str;
        producer_id: i64;
        transaction_state: Str;
    }
}
