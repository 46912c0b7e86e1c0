//! Kafka's messages as tables: one per API, which read like the protocol guide, and from which both reading and writing are
//! made. An API costs its table and nothing else: the direction that no client needs, and the tables that none
//! speaks yet, are compiled for tests and fuzzing alone.
//!
//! No policy: no retries, no choice of version, no IO. Bytes from the network never panic here, and never reserve memory by
//! an unchecked count (see [`codec`]).
//!
//! A table has the API's key, the versions the clients speak out of those it covers, and the first flexible version
//! (KIP-482). Then come the request, the response, and their structures, one row a field:
//!
//! ```text
//! name: type [versions, nullable versions] = default, ignorable;
//! 0 => name: type [versions] = default, ignorable;      tagged: 0 is its tag
//! ```
//!
//! Without versions a field is in all of them; an `Option` may be null in all of them. A value that the version has no field
//! for cannot be written, unless the field is `ignorable`.

pub(crate) mod codec;
#[allow(
    dead_code,
    reason = "the tables are whole: fields and messages that no client uses yet are in them too"
)]
mod messages;
mod types;

use std::fmt;

use bytes::{Buf, Bytes};

use self::codec::{Read, Reader, Write, Writer};
pub(crate) use self::{
    messages::*,
    types::{Str, Uuid},
};

/// A request that [`Connection::call`](crate::connection::Connection::call) can send.
pub(crate) trait Api: Write + Whole + Send + 'static {
    /// The answer.
    type Response: Read + Whole + Send + 'static;
    /// Kafka's number of the API.
    const KEY: i16;
    /// Kafka's name of the API, for errors and logs.
    const NAME: &'static str;
    /// The lowest version that the clients speak.
    const MIN: i16;
    /// The highest version that the clients speak: what a higher one brings is not handled above.
    const MAX: i16;
    /// The versions that the table has.
    #[cfg(any(test, feature = "unstable-fuzzing"))]
    const TABLE: (i16, i16);
    /// The first version with tagged fields (KIP-482): from there on the request header is version 2 and the response
    /// header version 1.
    const FLEXIBLE: i16;
    /// The same for the response header, which differs for ApiVersions only.
    const RESPONSE_FLEXIBLE: i16 = Self::FLEXIBLE;

    /// The version an answer is written in, given the version asked for and the bytes of the answer.
    fn answer_version(asked: i16, _body: &[u8]) -> i16 {
        asked
    }

    /// How long the broker asks to be left alone (KIP-219); 0 where its answer does not say.
    fn throttle_time_ms(answer: &Self::Response) -> i32;

    /// Writes the request, into memory that is reserved once.
    fn encode(&self, version: i16, out: &mut Vec<u8>) -> Result<(), WireError> {
        encode(self, version, version >= Self::FLEXIBLE, out)
    }

    /// Reads an answer to its last byte. Its strings and bytes stay slices of `body`.
    fn decode(body: Bytes, version: i16) -> Result<Self::Response, WireError> {
        decode(body, version, version >= Self::FLEXIBLE, Self::KEY == FetchRequest::KEY)
    }

    /// The bytes of an answer, for peers in tests.
    #[cfg(any(test, feature = "unstable-fuzzing"))]
    fn encode_answer(answer: &Self::Response, version: i16) -> Vec<u8> {
        let mut out = Vec::new();
        let written = encode(answer, version, version >= Self::FLEXIBLE, &mut out);
        assert!(written.is_ok(), "{} version {version}: {written:?}", Self::NAME);
        out
    }
}

/// What tests and fuzzing ask of a message: that it crosses the wire in both directions, and can be compared and shown.
#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) trait Whole: Read + Write + PartialEq + fmt::Debug {}
#[cfg(any(test, feature = "unstable-fuzzing"))]
impl<T: Read + Write + PartialEq + fmt::Debug> Whole for T {}
/// Outside of tests and fuzzing, nothing is asked of a message.
#[cfg(not(any(test, feature = "unstable-fuzzing")))]
pub(crate) trait Whole {}
#[cfg(not(any(test, feature = "unstable-fuzzing")))]
impl<T> Whole for T {}

/// No version of the API has tagged fields.
pub(crate) const NEVER: i16 = i16::MAX;

/// Something that is done for every API.
#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) trait Visitor {
    fn visit<A: Api>(&mut self);
}

/// The keys of every API.
#[cfg(test)]
pub(crate) fn keys() -> Vec<i16> {
    struct Keys(Vec<i16>);
    impl Visitor for Keys {
        fn visit<A: Api>(&mut self) {
            self.0.push(A::KEY);
        }
    }
    let mut keys = Keys(Vec::new());
    visit_all(&mut keys);
    keys.0
}

/// Hands all requests to a macro. `untagged`: no version of the API has tagged fields.
#[cfg(any(test, feature = "unstable-fuzzing"))]
macro_rules! every_api {
    ($then:ident) => {
        $then! {
            ProduceRequest FetchRequest ListOffsetsRequest MetadataRequest OffsetCommitRequest
            OffsetFetchRequest FindCoordinatorRequest JoinGroupRequest HeartbeatRequest LeaveGroupRequest
            SyncGroupRequest DescribeGroupsRequest ListGroupsRequest SaslHandshakeRequest [untagged]
            ApiVersionsRequest CreateTopicsRequest DeleteTopicsRequest DeleteRecordsRequest
            InitProducerIdRequest OffsetForLeaderEpochRequest AddPartitionsToTxnRequest
            AddOffsetsToTxnRequest EndTxnRequest TxnOffsetCommitRequest DescribeConfigsRequest
            SaslAuthenticateRequest CreatePartitionsRequest DeleteGroupsRequest
            IncrementalAlterConfigsRequest OffsetDeleteRequest [untagged] DescribeClusterRequest
            DescribeProducersRequest DescribeTransactionsRequest ListTransactionsRequest
            ConsumerGroupHeartbeatRequest ConsumerGroupDescribeRequest GetTelemetrySubscriptionsRequest
            PushTelemetryRequest
        }
    };
}

/// Shows every API to a visitor.
#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) fn visit_all(visitor: &mut impl Visitor) {
    macro_rules! visit {
        ($($request:ident $([$none:ident])?)+) => {
            $(visitor.visit::<$request>();)+
        };
    }
    every_api!(visit);
}

/// Bytes that do not follow the protocol, or a message that a version cannot express.
#[derive(Debug)]
pub(crate) struct WireError(Box<(&'static str, String)>);

impl WireError {
    #[cold]
    #[inline(never)]
    fn new(field: &'static str, text: impl Into<String>) -> Self {
        Self(Box::new((field, text.into())))
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (field, text) = &*self.0;
        match *field {
            "" => f.write_str(text),
            field => write!(f, "{field}: {text}"),
        }
    }
}

impl std::error::Error for WireError {}

fn encode(message: &impl Write, version: i16, flexible: bool, out: &mut Vec<u8>) -> Result<(), WireError> {
    // Records are copied once, and not again whenever the buffer grows.
    let mut counter = Writer::new(None, version, flexible);
    message.write(&mut counter)?;
    out.reserve(counter.size());
    message.write(&mut Writer::new(Some(out), version, flexible))
}

fn decode<T: Read>(bytes: Bytes, version: i16, flexible: bool, holds_records: bool) -> Result<T, WireError> {
    let mut reader = Reader::new(bytes, version, flexible, holds_records);
    let message = T::read(&mut reader)?;
    reader.finish()?;
    Ok(message)
}

/// What follows the tagged fields that `bytes` begin with: those of an answer's header (KIP-482), of which none is known.
pub(crate) fn skip_tags(mut bytes: Bytes) -> Result<Bytes, WireError> {
    let mut reader = Reader::new(bytes.clone(), 0, true, true);
    reader.tags(&mut |_, _| Ok(false))?;
    let left = reader.left();
    bytes.advance(bytes.len() - left);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
