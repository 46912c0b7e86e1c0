//! The settings of topics and brokers. KIP-133, KIP-226.

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
