//! Membership of groups: the classic protocol (KIP-62, KIP-345, KIP-394) and the new one (KIP-848).

api! {
    JoinGroup = 11, speaks 0..=9 of 0..=9, flexible 6;

    request join_group_request::JoinGroupRequest {
        group_id: Str;
        session_timeout_ms: i32;
        rebalance_timeout_ms: i32 [1..] = -1, ignorable;
        member_id: Str;
        group_instance_id: Option<Str> [5..];
        protocol_type: Str;
        protocols: Vec<JoinGroupRequestProtocol>;
        reason: Option<Str> [8..], ignorable;
    }
    struct JoinGroupRequestProtocol {
        name: Str;
        metadata: Bytes;
    }

    response join_group_response::JoinGroupResponse {
        throttle_time_ms: i32 [2..], ignorable;
        error_code: i16;
        generation_id: i32 = -1;
        protocol_type: Option<Str> [7..], ignorable;
        protocol_name: Option<Str> [0.., nullable 7..];
        leader: Str;
        skip_assignment: bool [9];
        member_id: Str;
        members: Vec<JoinGroupResponseMember>;
    }
    struct JoinGroupResponseMember {
        member_id: Str;
        group_instance_id: Option<Str> [5..], ignorable;
        metadata: Bytes;
    }
}

api! {
    SyncGroup = 14, speaks 0..=5 of 0..=5, flexible 4;

    request sync_group_request::SyncGroupRequest {
        group_id: Str;
        generation_id: i32;
        member_id: Str;
        group_instance_id: Option<Str> [3..];
        protocol_type: Option<Str> [5], ignorable;
        protocol_name: Option<Str> [5], ignorable;
        assignments: Vec<SyncGroupRequestAssignment>;
    }
    struct SyncGroupRequestAssignment {
        member_id: Str;
        assignment: Bytes;
    }

    response sync_group_response::SyncGroupResponse {
        throttle_time_ms: i32 [1..], ignorable;
        error_code: i16;
        protocol_type: Option<Str> [5], ignorable;
        protocol_name: Option<Str> [5], ignorable;
        assignment: Bytes;
    }
}

api! {
    Heartbeat = 12, speaks 0..=4 of 0..=4, flexible 4;

    request heartbeat_request::HeartbeatRequest {
        group_id: Str;
        generation_id: i32;
        member_id: Str;
        group_instance_id: Option<Str> [3..];
    }

    response heartbeat_response::HeartbeatResponse {
        throttle_time_ms: i32 [1..], ignorable;
        error_code: i16;
    }
}

api! {
    LeaveGroup = 13, speaks 0..=5 of 0..=5, flexible 4;

    request leave_group_request::LeaveGroupRequest {
        group_id: Str;
        member_id: Str [0..=2];
        members: Vec<MemberIdentity> [3..];
    }
    struct MemberIdentity {
        member_id: Str;
        group_instance_id: Option<Str>;
        reason: Option<Str> [5], ignorable;
    }

    response leave_group_response::LeaveGroupResponse {
        throttle_time_ms: i32 [1..], ignorable;
        error_code: i16;
        members: Vec<MemberResponse> [3..];
    }
    struct MemberResponse {
        member_id: Str;
        group_instance_id: Option<Str>;
        error_code: i16;
    }
}

api! {
    ConsumerGroupHeartbeat = 68, speaks 0..=1 of 0..=1, flexible 0;

    request consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest {
        group_id: Str;
        member_id: Str;
        member_epoch: i32;
        instance_id: Option<Str>;
        rack_id: Option<Str>;
        rebalance_timeout_ms: i32 = -1;
        subscribed_topic_names: Option<Vec<Str>>;
        subscribed_topic_regex: Option<Str> [1];
        server_assignor: Option<Str>;
        topic_partitions: Option<Vec<TopicPartitions>>;
    }
    struct TopicPartitions {
        topic_id: Uuid;
        partitions: Vec<i32>;
    }

    response consumer_group_heartbeat_response::ConsumerGroupHeartbeatResponse {
        throttle_time_ms: i32;
        error_code: i16;
        error_message: Option<Str>;
        member_id: Option<Str>;
        member_epoch: i32;
        heartbeat_interval_ms: i32;
        assignment: Option<Assignment>;
    }
    struct Assignment {
        topic_partitions: Vec<TopicPartitions>;
    }
    struct TopicPartitions {
        topic_id: Uuid;
        partitions: Vec<i32>;
    }
}
