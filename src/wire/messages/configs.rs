//! The settings of topics and brokers. KIP-133, KIP-226, KIP-339.

api! {
    DescribeConfigs = 32, speaks 1..=4 of 1..=4, flexible 4;

    request describe_configs_request::DescribeConfigsRequest {
        resources: Vec<DescribeConfigsResource>;
        include_synonyms: bool;
        include_documentation: bool [3..];
    }
    struct DescribeConfigsResource {
        resource_type: i8;
        resource_name: Str;
        configuration_keys: Option<Vec<Str>>;
    }

    response describe_configs_response::DescribeConfigsResponse {
        throttle_time_ms: i32;
        results: Vec<DescribeConfigsResult>;
    }
    struct DescribeConfigsResult {
        error_code: i16;
        error_message: Option<Str>;
        resource_type: i8;
        resource_name: Str;
        configs: Vec<DescribeConfigsResourceResult>;
    }
    struct DescribeConfigsResourceResult {
        name: Str;
        value: Option<Str>;
        read_only: bool;
        config_source: i8 = -1, ignorable;
        is_sensitive: bool;
        synonyms: Vec<DescribeConfigsSynonym>, ignorable;
        config_type: i8 [3..], ignorable;
        documentation: Option<Str> [3..], ignorable;
    }
    struct DescribeConfigsSynonym {
        name: Str;
        value: Option<Str>;
        source: i8;
    }
}

api! {
    IncrementalAlterConfigs = 44, speaks 0..=1 of 0..=1, flexible 1;

    request incremental_alter_configs_request::IncrementalAlterConfigsRequest {
        resources: Vec<AlterConfigsResource>;
        validate_only: bool;
    }
    struct AlterConfigsResource {
        resource_type: i8;
        resource_name: Str;
        configs: Vec<AlterableConfig>;
    }
    struct AlterableConfig {
        name: Str;
        config_operation: i8;
        value: Option<Str>;
    }

    response incremental_alter_configs_response::IncrementalAlterConfigsResponse {
        throttle_time_ms: i32;
        responses: Vec<AlterConfigsResourceResponse>;
    }
    struct AlterConfigsResourceResponse {
        error_code: i16;
        error_message: Option<Str>;
        resource_type: i8;
        resource_name: Str;
    }
}
