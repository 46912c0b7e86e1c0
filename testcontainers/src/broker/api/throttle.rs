//! `throttle_time_ms` of every answer that has it (KIP-124, KIP-219).

use kafka_protocol::messages::*;

/// An answer that can say for how long the client is throttled.
pub(super) trait Throttled {
    /// Does nothing where the answer has no such field.
    fn throttle(&mut self, ms: i32);
}

macro_rules! throttled {
    ($($answer:ty),*) => {
        $(impl Throttled for $answer {
            fn throttle(&mut self, ms: i32) {
                self.throttle_time_ms = ms;
            }
        })*
    };
}

throttled!(
    ProduceResponse,
    FetchResponse,
    ListOffsetsResponse,
    MetadataResponse,
    OffsetCommitResponse,
    OffsetFetchResponse,
    FindCoordinatorResponse,
    JoinGroupResponse,
    HeartbeatResponse,
    LeaveGroupResponse,
    SyncGroupResponse,
    DescribeGroupsResponse,
    ListGroupsResponse,
    ApiVersionsResponse,
    CreateTopicsResponse,
    DeleteTopicsResponse,
    DeleteRecordsResponse,
    InitProducerIdResponse,
    OffsetForLeaderEpochResponse,
    AddPartitionsToTxnResponse,
    AddOffsetsToTxnResponse,
    EndTxnResponse,
    TxnOffsetCommitResponse,
    DescribeConfigsResponse,
    CreatePartitionsResponse,
    DeleteGroupsResponse,
    IncrementalAlterConfigsResponse,
    OffsetDeleteResponse,
    DescribeClusterResponse,
    DescribeProducersResponse,
    DescribeTransactionsResponse,
    ListTransactionsResponse,
    ConsumerGroupHeartbeatResponse,
    ConsumerGroupDescribeResponse
);

impl Throttled for SaslHandshakeResponse {
    fn throttle(&mut self, _ms: i32) {}
}

impl Throttled for SaslAuthenticateResponse {
    fn throttle(&mut self, _ms: i32) {}
}
