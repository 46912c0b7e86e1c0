//! Listing, describing and deleting groups. KIP-222, KIP-229, KIP-518, KIP-848.

api! {
    ListGroups = 16, speaks 0..=5 of 0..=5, flexible 3;

    request list_groups_request::ListGroupsRequest {
        states_filter: Vec<Str> [4..];
        types_filter: Vec<Str> [5];
    }

    response list_groups_response::ListGroupsResponse {
        throttle_time_ms: i32 [1..], ignorable;
        error_code: i16;
        groups: Vec<ListedGroup>;
    }
    struct ListedGroup {
        group_id: Str;
        protocol_type: Str;
        group_state: Str [4..], ignorable;
        group_type: Str [5], ignorable;
    }
}

api! {
    DescribeGroups = 15, speaks 0..=6 of 0..=6, flexible 5;

    request describe_groups_request::DescribeGroupsRequest {
        groups: Vec<Str>;
        include_authorized_operations: bool [3..];
    }

    response describe_groups_response::DescribeGroupsResponse {
        throttle_time_ms: i32 [1..], ignorable;
        groups: Vec<DescribedGroup>;
    }
    struct DescribedGroup {
        error_code: i16;
        error_message: Option<Str> [6];
        group_id: Str;
        group_state: Str;
        protocol_type: Str;
        protocol_data: Str;
        members: Vec<DescribedGroupMember>;
        authorized_operations: i32 [3..] = -2147483648;
    }
    struct DescribedGroupMember {
        member_id: Str;
        group_instance_id: Option<Str> [4..], ignorable;
        client_id: Str;
        client_host: Str;
        member_metadata: Bytes;
        member_assignment: Bytes;
    }
}

api! {
    ConsumerGroupDescribe = 69, speaks 0..=1 of 0..=1, flexible 0;

    request consumer_group_describe_request::ConsumerGroupDescribeRequest {
        group_ids: Vec<Str>;
        include_authorized_operations: bool;
    }

    response consumer_group_describe_response::ConsumerGroupDescribeResponse {
        throttle_time_ms: i32;
        groups: Vec<DescribedGroup>;
    }
    struct DescribedGroup {
        error_code: i16;
        error_message: Option<Str>;
        group_id: Str;
        group_state: Str;
        group_epoch: i32;
        assignment_epoch: i32;
        assignor_name: Str;
        members: Vec<Member>;
        authorized_operations: i32 = -2147483648;
    }
    struct Member {
        member_id: Str;
        instance_id: Option<Str>;
        rack_id: Option<Str>;
        member_epoch: i32;
        client_id: Str;
        client_host: Str;
        subscribed_topic_names: Vec<Str>;
        subscribed_topic_regex: Option<Str>;
        assignment: Assignment;
        target_assignment: Assignment;
        member_type: i8 [1] = -1, ignorable;
    }
    struct Assignment {
        topic_partitions: Vec<TopicPartitions>;
    }
    struct TopicPartitions {
        topic_id: Uuid;
        topic_name: Str;
        partitions: Vec<i32>;
    }
}

api! {
    DeleteGroups = 42, speaks 0..=2 of 0..=3, flexible 2;

    request delete_groups_request::DeleteGroupsRequest {
        groups_names: Vec<Str>;
    }

    response delete_groups_response::DeleteGroupsResponse {
        throttle_time_ms: i32;
        results: Vec<DeletableGroupResult>;
    }
    struct DeletableGroupResult {
        group_id: Str;
        error_code: i16;
        error_message: Option<Str> [3], ignorable;
    }
}
