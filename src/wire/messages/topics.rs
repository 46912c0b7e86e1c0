//! Creating, growing and deleting topics. KIP-4, KIP-195, KIP-516, KIP-525, KIP-599.

api! {
    CreateTopics = 19, speaks 2..=7 of 2..=7, flexible 5;

    request create_topics_request::CreateTopicsRequest {
        topics: Vec<CreatableTopic>;
        timeout_ms: i32 = 60000;
        validate_only: bool;
    }
    struct CreatableTopic {
        name: Str;
        num_partitions: i32;
        replication_factor: i16;
        assignments: Vec<CreatableReplicaAssignment>;
        configs: Vec<CreatableTopicConfig>;
    }
    struct CreatableReplicaAssignment {
        partition_index: i32;
        broker_ids: Vec<i32>;
    }
    struct CreatableTopicConfig {
        name: Str;
        value: Option<Str>;
    }

    response create_topics_response::CreateTopicsResponse {
        throttle_time_ms: i32, ignorable;
        topics: Vec<CreatableTopicResult>;
    }
    struct CreatableTopicResult {
        name: Str;
        topic_id: Uuid [7], ignorable;
        error_code: i16;
        error_message: Option<Str>, ignorable;
        num_partitions: i32 [5..] = -1, ignorable;
        replication_factor: i16 [5..] = -1, ignorable;
        configs: Option<Vec<CreatableTopicConfigs>> [5..], ignorable;
        0 => topic_config_error_code: i16 [5..], ignorable;
    }
    struct CreatableTopicConfigs {
        name: Str;
        value: Option<Str>;
        read_only: bool;
        config_source: i8 = -1, ignorable;
        is_sensitive: bool;
    }
}

api! {
    CreatePartitions = 37, speaks 0..=3 of 0..=3, flexible 2;

    request create_partitions_request::CreatePartitionsRequest {
        topics: Vec<CreatePartitionsTopic>;
        timeout_ms: i32;
        validate_only: bool;
    }
    struct CreatePartitionsTopic {
        name: Str;
        count: i32;
        assignments: Option<Vec<CreatePartitionsAssignment>>;
    }
    struct CreatePartitionsAssignment {
        broker_ids: Vec<i32>;
    }

    response create_partitions_response::CreatePartitionsResponse {
        throttle_time_ms: i32;
        results: Vec<CreatePartitionsTopicResult>;
    }
    struct CreatePartitionsTopicResult {
        name: Str;
        error_code: i16;
        error_message: Option<Str>;
    }
}

api! {
    // Version 6 has `topics` in place of `topic_names`.
    DeleteTopics = 20, speaks 1..=6 of 1..=6, flexible 4;

    request delete_topics_request::DeleteTopicsRequest {
        topics: Vec<DeleteTopicState> [6];
        topic_names: Vec<Str> [1..=5], ignorable;
        timeout_ms: i32;
    }
    struct DeleteTopicState {
        name: Option<Str>;
        topic_id: Uuid;
    }

    response delete_topics_response::DeleteTopicsResponse {
        throttle_time_ms: i32, ignorable;
        responses: Vec<DeletableTopicResult>;
    }
    struct DeletableTopicResult {
        name: Option<Str> [0.., nullable 6];
        topic_id: Uuid [6], ignorable;
        error_code: i16;
        error_message: Option<Str> [5..], ignorable;
    }
}
