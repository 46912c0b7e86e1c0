//! The one file that names `kafka-protocol` and rskafka's messenger: one table row per API, and the bridge between the two.
//!
//! Requests and answers are `kafka-protocol`'s generated types ([`wire`]); framing and correlation are rskafka's. Answers
//! are decoded from one shared buffer, so the record bytes of a fetch are slices of it and are never copied.
//! Never put policy here: no retries, no deadlines, no choice of broker.

use std::{collections::HashMap, io::Cursor, marker::PhantomData, sync::Arc};

use bytes::{Buf, Bytes};
use kafka_protocol::{
    ResponseError,
    protocol::{Decodable, Encodable},
};
use rskafka::{
    messenger::{Messenger, RequestError},
    protocol::{
        api_key::ApiKey,
        api_version::{ApiVersion, ApiVersionRange},
        frame,
        messages::{
            ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
        },
        primitives::Int16,
        traits,
    },
};

pub(crate) use kafka_protocol::{messages as wire, protocol::StrBytes};

use super::stream::Stream;

/// The broker's error codes that this layer acts on itself.
pub(crate) const UNSUPPORTED_VERSION: i16 = 35;
pub(crate) const SASL_AUTHENTICATION_FAILED: i16 = 58;
pub(crate) const ILLEGAL_SASL_STATE: i16 = 34;
pub(crate) const UNSUPPORTED_SASL_MECHANISM: i16 = 33;

/// Kafka's name of an error code.
pub(crate) fn error_name(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        None => "None".to_owned(),
        Some(error) => format!("{error:?}"),
    }
}

/// Whether the protocol guide calls an error code retriable.
pub(crate) fn error_is_retriable(code: i16) -> bool {
    ResponseError::try_from_code(code).is_some_and(|error| error.is_retriable())
}

/// A request that [`Connection::call`](super::Connection::call) can send, in the versions this crate speaks.
pub(crate) trait Api: Encodable + Send + 'static {
    /// The answer.
    type Response: Decodable + Send + 'static;
    /// Kafka's number of the API.
    const KEY: i16;
    /// Kafka's name of the API, for errors and logs.
    const NAME: &'static str;
    /// The lowest version this crate speaks.
    const MIN: i16;
    /// The highest version this crate speaks.
    const MAX: i16;
    /// The first version with tagged fields (KIP-482): from there on the request header is version 2 and the response
    /// header version 1.
    const FLEXIBLE: i16;
    /// The same for the response header, which differs for ApiVersions only.
    const RESPONSE_FLEXIBLE: i16 = Self::FLEXIBLE;

    /// For how many milliseconds the broker wants to be left alone (KIP-219); 0 where the answer cannot say.
    fn throttle_time_ms(answer: &Self::Response) -> i32;

    /// The version an answer is written in, given the version asked for and the bytes of the answer.
    fn answer_version(asked: i16, _body: &[u8]) -> i16 {
        asked
    }
}

/// No version of the API has tagged fields.
const NEVER: i16 = i16::MAX;

macro_rules! throttle_time {
    ($answer:ident) => {
        $answer.throttle_time_ms
    };
    ($answer:ident, $none:literal) => {{
        let _ = $answer;
        $none
    }};
}

macro_rules! apis {
    ($($name:ident = $key:literal, $min:literal..=$max:literal, flexible $flexible:expr, $request:ident => $response:ident $(, throttle $none:literal)?;)*) => {
        $(impl Api for wire::$request {
            type Response = wire::$response;
            const KEY: i16 = $key;
            const NAME: &'static str = stringify!($name);
            const MIN: i16 = $min;
            const MAX: i16 = $max;
            const FLEXIBLE: i16 = $flexible;

            fn throttle_time_ms(answer: &Self::Response) -> i32 {
                throttle_time!(answer $(, $none)?)
            }
        })*

        /// The name of an API by its key, for logs.
        #[cfg(test)]
        pub(crate) const NAMES: &[(i16, &str)] = &[$(($key, stringify!($name)),)* (18, "ApiVersions")];

        #[cfg(test)]
        fn check_rows(check: &mut impl tests::Check) {
            $(check.row::<wire::$request>();)*
            check.row::<wire::ApiVersionsRequest>();
        }
    };
}

apis! {
    // Version 13 names topics by id alone.
    Produce = 0, 3..=12, flexible 9, ProduceRequest => ProduceResponse;
    // Versions from 13 on name topics by id alone, and a topic made anew would need its own handling in the session.
    Fetch = 1, 4..=12, flexible 12, FetchRequest => FetchResponse;
    ListOffsets = 2, 1..=10, flexible 6, ListOffsetsRequest => ListOffsetsResponse;
    Metadata = 3, 0..=13, flexible 9, MetadataRequest => MetadataResponse;
    // Version 10 names topics by id.
    OffsetCommit = 8, 2..=9, flexible 8, OffsetCommitRequest => OffsetCommitResponse;
    // Version 8 asks for several groups at once: another layout.
    OffsetFetch = 9, 1..=9, flexible 6, OffsetFetchRequest => OffsetFetchResponse;
    // Version 4 asks for several keys at once: another layout.
    FindCoordinator = 10, 0..=6, flexible 3, FindCoordinatorRequest => FindCoordinatorResponse;
    JoinGroup = 11, 0..=9, flexible 6, JoinGroupRequest => JoinGroupResponse;
    Heartbeat = 12, 0..=4, flexible 4, HeartbeatRequest => HeartbeatResponse;
    LeaveGroup = 13, 0..=5, flexible 4, LeaveGroupRequest => LeaveGroupResponse;
    SyncGroup = 14, 0..=5, flexible 4, SyncGroupRequest => SyncGroupResponse;
    DescribeGroups = 15, 0..=6, flexible 5, DescribeGroupsRequest => DescribeGroupsResponse;
    ListGroups = 16, 0..=5, flexible 3, ListGroupsRequest => ListGroupsResponse;
    SaslHandshake = 17, 1..=1, flexible NEVER, SaslHandshakeRequest => SaslHandshakeResponse, throttle 0;
    CreateTopics = 19, 2..=7, flexible 5, CreateTopicsRequest => CreateTopicsResponse;
    // Version 6 has `topics` in place of `topic_names`.
    DeleteTopics = 20, 1..=6, flexible 4, DeleteTopicsRequest => DeleteTopicsResponse;
    DeleteRecords = 21, 0..=2, flexible 2, DeleteRecordsRequest => DeleteRecordsResponse;
    InitProducerId = 22, 0..=5, flexible 2, InitProducerIdRequest => InitProducerIdResponse;
    OffsetForLeaderEpoch = 23, 2..=4, flexible 4, OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse;
    // Version 4 is the brokers' own.
    AddPartitionsToTxn = 24, 0..=3, flexible 3, AddPartitionsToTxnRequest => AddPartitionsToTxnResponse;
    AddOffsetsToTxn = 25, 0..=4, flexible 3, AddOffsetsToTxnRequest => AddOffsetsToTxnResponse;
    // Version 5 bumps the epoch with every transaction (KIP-890, part 2), and needs a producer that follows it.
    EndTxn = 26, 0..=4, flexible 3, EndTxnRequest => EndTxnResponse;
    // Version 5 adds the offsets to the transaction by itself (KIP-890, part 2).
    TxnOffsetCommit = 28, 0..=4, flexible 3, TxnOffsetCommitRequest => TxnOffsetCommitResponse;
    DescribeConfigs = 32, 1..=4, flexible 4, DescribeConfigsRequest => DescribeConfigsResponse;
    SaslAuthenticate = 36, 0..=2, flexible 2, SaslAuthenticateRequest => SaslAuthenticateResponse, throttle 0;
    CreatePartitions = 37, 0..=3, flexible 2, CreatePartitionsRequest => CreatePartitionsResponse;
    DeleteGroups = 42, 0..=2, flexible 2, DeleteGroupsRequest => DeleteGroupsResponse;
    IncrementalAlterConfigs = 44, 0..=1, flexible 1, IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse;
    OffsetDelete = 47, 0..=0, flexible NEVER, OffsetDeleteRequest => OffsetDeleteResponse;
    DescribeCluster = 60, 0..=2, flexible 0, DescribeClusterRequest => DescribeClusterResponse;
    ConsumerGroupHeartbeat = 68, 0..=1, flexible 0, ConsumerGroupHeartbeatRequest => ConsumerGroupHeartbeatResponse;
}

impl Api for wire::ApiVersionsRequest {
    type Response = wire::ApiVersionsResponse;
    const KEY: i16 = 18;
    const NAME: &'static str = "ApiVersions";
    const MIN: i16 = 0;
    // Version 4 (Kafka 3.8) only lets a feature's minimum be 0, and costs a round trip on every older broker.
    const MAX: i16 = 3;
    const FLEXIBLE: i16 = 3;
    // KIP-511: the answer keeps header version 0, so that a client can read it before it knows the broker.
    const RESPONSE_FLEXIBLE: i16 = NEVER;

    fn throttle_time_ms(answer: &Self::Response) -> i32 {
        answer.throttle_time_ms
    }

    /// KIP-511: a broker that does not know the version answers UNSUPPORTED_VERSION in version 0.
    fn answer_version(asked: i16, body: &[u8]) -> i16 {
        if body.starts_with(&UNSUPPORTED_VERSION.to_be_bytes()) { 0 } else { asked }
    }
}

/// The versions a broker offers: `(lowest, highest)` by API key.
pub(crate) type Versions = std::collections::BTreeMap<i16, (i16, i16)>;

/// The highest version both sides speak.
pub(crate) fn negotiate<R: Api>(offered: &Versions) -> Option<i16> {
    let &(low, high) = offered.get(&R::KEY)?;
    let version = high.min(R::MAX);
    (version >= low.max(R::MIN)).then_some(version)
}

/// Why [`Channel::request`] failed.
pub(crate) enum ChannelError {
    /// The request cannot be written in the negotiated version.
    Encode(String),
    /// The broker does not offer the API.
    NoVersion,
    /// The answer does not follow the protocol; the connection itself is still in step.
    Decode(String),
    /// The answer was larger than the limit; the connection is lost.
    TooLarge { actual: usize },
    /// The connection is lost.
    Lost(String),
}

/// Framing and correlation over one stream: rskafka's messenger.
pub(crate) struct Channel(Messenger<Stream>);

impl Channel {
    /// Must be called inside a tokio runtime: the messenger reads answers in a task of its own, ended by the drop.
    pub(crate) fn new(stream: Stream, max_answer: usize, client_id: Arc<str>) -> Self {
        Self(Messenger::new(stream, max_answer, client_id))
    }

    /// Sets what the broker offers.
    pub(crate) fn set_versions(&mut self, offered: &Versions) {
        // Every key goes in as `Unknown`: the number is all that matters, and rskafka's names end before KIP-848.
        let ranges: HashMap<ApiKey, ApiVersionRange> = offered
            .iter()
            // `ApiVersionRange::new` panics on a range that is upside down.
            .filter(|(_, (low, high))| low <= high)
            .map(|(&key, &(low, high))| {
                (ApiKey::Unknown(Int16(key)), ApiVersionRange::new(version(low), version(high)))
            })
            .collect();
        self.0.override_version_ranges(ranges);
    }

    /// Sends a request and waits for its answer. Dropping the future never leaves half a request on the wire. In which order
    /// several at once are written is the runtime's; see [`order`](super::order).
    pub(crate) async fn request<R: Api>(&self, request: R) -> Result<R::Response, ChannelError> {
        match self.0.request(Request(request)).await {
            Ok(answer) => Ok(answer.0),
            Err(error) => Err(channel_error(&error)),
        }
    }
}

const fn version(number: i16) -> ApiVersion {
    ApiVersion(Int16(number))
}

fn channel_error(error: &RequestError) -> ChannelError {
    match error {
        RequestError::NoVersionMatch { .. } => ChannelError::NoVersion,
        RequestError::WriteError(error) => ChannelError::Encode(error.to_string()),
        RequestError::Poisoned(cause) => match channel_error(cause) {
            lost @ (ChannelError::TooLarge { .. } | ChannelError::Lost(_)) => lost,
            _ => ChannelError::Lost(cause.to_string()),
        },
        RequestError::ReadFramedMessageError(frame::ReadError::MessageTooLarge { actual, .. }) => {
            ChannelError::TooLarge { actual: *actual }
        }
        // The plain text of the cause: "unexpected end of file" is how an orderly close shows.
        RequestError::ReadFramedMessageError(frame::ReadError::IO(error))
        | RequestError::WriteMessageError(frame::WriteError::IO(error))
        | RequestError::IO(error) => ChannelError::Lost(match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the broker closed the connection".to_owned(),
            _ => error.to_string(),
        }),
        RequestError::WriteMessageError(error) => ChannelError::Encode(error.to_string()),
        RequestError::ReadFramedMessageError(error) => ChannelError::Lost(error.to_string()),
        // ReadError, ReadVersionedError, TooMuchData: the frame was whole, its content is not what it should be.
        error => ChannelError::Decode(error.to_string()),
    }
}

/// A wire request as rskafka wants it.
struct Request<R>(R);

/// A wire answer as rskafka wants it.
struct Answer<R: Api>(R::Response, PhantomData<fn() -> R>);

impl<R: Api> RequestBody for Request<R> {
    type ResponseBody = Answer<R>;
    const API_KEY: ApiKey = ApiKey::Unknown(Int16(R::KEY));
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(R::MIN), version(R::MAX));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(R::FLEXIBLE);
    const FIRST_TAGGED_FIELD_IN_RESPONSE_VERSION: ApiVersion = version(R::RESPONSE_FLEXIBLE);
}

impl<R: Api> WriteVersionedType<Vec<u8>> for Request<R> {
    fn write_versioned(&self, writer: &mut Vec<u8>, version: ApiVersion) -> Result<(), WriteVersionedError> {
        let version = version.0.0;
        let size = self.0.compute_size(version).map_err(malformed_write)?;
        writer.reserve(size);
        self.0.encode(writer, version).map_err(malformed_write)
    }
}

impl<R: Api> ReadVersionedType<Cursor<Vec<u8>>> for Answer<R> {
    fn read_versioned(reader: &mut Cursor<Vec<u8>>, version: ApiVersion) -> Result<Self, ReadVersionedError> {
        let start = usize::try_from(reader.position()).unwrap_or(usize::MAX);
        let mut body = Bytes::from(std::mem::take(reader.get_mut()));
        // The messenger compares the cursor's position with what is left in it: nothing and nothing. The check for
        // leftovers is below.
        reader.set_position(0);
        if start > body.len() {
            return Err(malformed_read("the answer ends inside its header".into()));
        }
        body.advance(start);
        let version = R::answer_version(version.0.0, &body);
        let answer = R::Response::decode(&mut body, version)
            .map_err(|error| malformed_read(format!("version {version}: {error}").into()))?;
        if !body.is_empty() {
            let text = format!("version {version}: {} bytes are left over after the answer", body.len());
            return Err(malformed_read(text.into()));
        }
        Ok(Self(answer, PhantomData))
    }
}

fn malformed_write(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> WriteVersionedError {
    WriteVersionedError::WriteError(traits::WriteError::Malformed(error.into()))
}

fn malformed_read(error: Box<dyn std::error::Error + Send + Sync>) -> ReadVersionedError {
    ReadVersionedError::ReadError(traits::ReadError::Malformed(error))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::{HeaderVersion, Message, Request as KafkaRequest};

    use super::*;

    pub(super) trait Check {
        fn row<R: Api + KafkaRequest + HeaderVersion + Message>(&mut self)
        where
            <R as Api>::Response: HeaderVersion;
    }

    struct Rows(Vec<&'static str>);

    impl Check for Rows {
        fn row<R: Api + KafkaRequest + HeaderVersion + Message>(&mut self)
        where
            <R as Api>::Response: HeaderVersion,
        {
            let name = <R as Api>::NAME;
            assert_eq!(<R as Api>::KEY, <R as KafkaRequest>::KEY, "key of {name}");
            assert!(R::VERSIONS.min <= R::MIN && R::MAX <= R::VERSIONS.max, "versions of {name}");
            for version in R::MIN..=R::MAX {
                let request = if version >= R::FLEXIBLE { 2 } else { 1 };
                assert_eq!(R::header_version(version), request, "request header of {name} version {version}");
                let response = i16::from(version >= R::RESPONSE_FLEXIBLE);
                let expected = <R as Api>::Response::header_version(version);
                assert_eq!(expected, response, "response header of {name} version {version}");
            }
            self.0.push(name);
        }
    }

    #[test]
    fn every_row_has_the_key_versions_and_header_versions_of_the_protocol() {
        let mut rows = Rows(Vec::new());
        check_rows(&mut rows);
        assert_eq!(rows.0, NAMES.iter().map(|(_, name)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn the_highest_common_version_is_used_and_none_where_there_is_none() {
        let offered = Versions::from([(0, (0, 99)), (1, (0, 7)), (2, (11, 12)), (8, (0, 1))]);
        assert_eq!(negotiate::<wire::ProduceRequest>(&offered), Some(12));
        assert_eq!(negotiate::<wire::FetchRequest>(&offered), Some(7));
        assert_eq!(negotiate::<wire::ListOffsetsRequest>(&offered), None);
        assert_eq!(negotiate::<wire::OffsetCommitRequest>(&offered), None);
        assert_eq!(negotiate::<wire::MetadataRequest>(&offered), None);
    }

    fn read<R: Api>(version: i16, header: usize, bytes: Vec<u8>) -> Result<R::Response, String> {
        let mut cursor = Cursor::new(bytes);
        cursor.set_position(header as u64);
        let answer = Answer::<R>::read_versioned(&mut cursor, super::version(version));
        assert_eq!(cursor.position() as usize, cursor.get_ref().len(), "the messenger's own check passes");
        answer.map(|answer| answer.0).map_err(|error| error.to_string())
    }

    #[test]
    fn records_of_an_answer_are_a_slice_of_the_answers_own_buffer() {
        let records = Bytes::from(vec![7u8; 1000]);
        let partition = wire::fetch_response::PartitionData::default().with_records(Some(records));
        let topic = wire::fetch_response::FetchableTopicResponse::default().with_partitions(vec![partition]);
        let mut bytes = vec![0u8; 5];
        wire::FetchResponse::default().with_responses(vec![topic]).encode(&mut bytes, 12).unwrap();
        let range = bytes.as_ptr_range();
        let answer = read::<wire::FetchRequest>(12, 5, bytes).unwrap();
        let records = answer.responses[0].partitions[0].records.clone().unwrap();
        assert_eq!(records, vec![7u8; 1000]);
        assert!(range.contains(&records.as_ptr()), "the records were copied");
    }

    #[test]
    fn leftover_and_missing_bytes_are_protocol_errors() {
        let mut bytes = Vec::new();
        wire::HeartbeatResponse::default().encode(&mut bytes, 4).unwrap();
        assert!(read::<wire::HeartbeatRequest>(4, 0, bytes.clone()).is_ok());
        bytes.push(0);
        let error = read::<wire::HeartbeatRequest>(4, 0, bytes.clone()).unwrap_err();
        assert!(error.contains("1 bytes are left over"), "{error}");
        bytes.truncate(3);
        assert!(read::<wire::HeartbeatRequest>(4, 0, bytes.clone()).is_err());
        assert!(read::<wire::HeartbeatRequest>(4, 9, bytes).is_err());
    }

    #[test]
    fn an_unsupported_version_answer_is_read_in_version_0() {
        let mut bytes = Vec::new();
        let key = wire::api_versions_response::ApiVersion::default().with_api_key(18).with_max_version(2);
        let answer = wire::ApiVersionsResponse::default()
            .with_error_code(UNSUPPORTED_VERSION)
            .with_api_keys(vec![key]);
        answer.encode(&mut bytes, 0).unwrap();
        let answer = read::<wire::ApiVersionsRequest>(3, 0, bytes).unwrap();
        assert_eq!((answer.error_code, answer.api_keys[0].max_version), (35, 2));
    }
}
