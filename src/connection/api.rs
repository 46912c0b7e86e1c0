//! The one file that names rskafka's messenger: the bridge from the messages of [`wire`] to it.
//!
//! Framing and correlation are rskafka's. Answers are decoded from one shared buffer, so the record bytes of a fetch are
//! slices of it and are never copied; those of Fetch come past the messenger (see [`fetch_memory`](super::fetch_memory)).
//! Never put policy here: no retries, no deadlines, no choice of broker.

use std::{collections::HashMap, io::Cursor, sync::Arc};

use bytes::{Buf, Bytes};
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

use super::stream::Stream;
use crate::sorted::Map;
pub(crate) use crate::wire::{self, Api};

/// The versions a broker offers: `(lowest, highest)` by API key.
pub(crate) type Versions = Map<i16, (i16, i16)>;

/// What a call must know of its API besides the messages. Code that needs only this is compiled once, and not for each
/// API.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: i16,
    pub(super) name: &'static str,
    pub(super) min: i16,
    pub(super) max: i16,
    /// The first versions with tagged fields in the header of a request, and of an answer.
    flexible: (i16, i16),
}

impl Row {
    pub(super) const fn of<R: Api>() -> &'static Self {
        const {
            let flexible = (R::FLEXIBLE, R::RESPONSE_FLEXIBLE);
            &Self { key: R::KEY, name: R::NAME, min: R::MIN, max: R::MAX, flexible }
        }
    }

    /// The highest version both sides speak.
    pub(super) fn negotiate(&self, offered: &Versions) -> Option<i16> {
        self.negotiate_up_to(i16::MAX, offered)
    }

    /// As [`Self::negotiate`], but not above the version `max`.
    fn negotiate_up_to(&self, max: i16, offered: &Versions) -> Option<i16> {
        let &(low, high) = offered.get(&self.key)?;
        let version = high.min(self.max).min(max);
        (version >= low.max(self.min)).then_some(version)
    }
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

/// A request to be sent, of whatever API: what sends it is compiled once.
pub(crate) struct Outgoing {
    pub(super) api: &'static Row,
    /// The highest version in which the request means what the caller means.
    max: i16,
    body: Box<dyn Body>,
}

impl Outgoing {
    pub(crate) fn up_to<R: Api>(max: i16, request: R) -> Self {
        Self { api: Row::of::<R>(), max, body: Box::new(request) }
    }

    /// Whether the stream reads the answer past the messenger: it is large, and its memory is worth keeping.
    pub(super) const fn is_read_whole(&self) -> bool {
        self.api.key == wire::FetchRequest::KEY
    }
}

/// What follows the header of a request.
trait Body: Send {
    fn write(&self, version: i16, out: &mut Vec<u8>) -> Result<(), wire::WireError>;
}

impl<R: Api> Body for R {
    fn write(&self, version: i16, out: &mut Vec<u8>) -> Result<(), wire::WireError> {
        self.encode(version, out)
    }
}

/// Framing and correlation over one stream: rskafka's messenger.
pub(crate) struct Channel {
    messenger: Messenger<Stream>,
    /// What the broker offers.
    pub(super) versions: Versions,
}

impl Channel {
    /// Must be called inside a tokio runtime: the messenger reads answers in a task of its own, ended by the drop.
    pub(crate) fn new(stream: Stream, max_answer: usize, client_id: Arc<str>) -> Self {
        let mut messenger = Messenger::new(stream, max_answer, client_id);
        messenger.override_version_ranges(HashMap::from([(ANY, ApiVersionRange::new(ONLY, ONLY))]));
        Self { messenger, versions: Versions::new() }
    }

    /// Sends a request and waits for its answer. Dropping the future never leaves half a request on the wire. In which order
    /// several at once are written is the runtime's; see [`order`](super::order).
    pub(crate) async fn request<R: Api>(&self, request: R) -> Result<R::Response, ChannelError> {
        self.send(Outgoing::up_to(i16::MAX, request)).await?.decode::<R>(None)
    }

    /// As [`request`](Self::request). The answer is not decoded yet.
    pub(super) async fn send(&self, request: Outgoing) -> Result<Answer, ChannelError> {
        let Outgoing { api, max, body } = request;
        let version = api.negotiate_up_to(max, &self.versions).ok_or(ChannelError::NoVersion)?;
        let (key, (flexible, answer_flexible)) = (api.key, api.flexible);
        let answer = match (version >= flexible, version >= answer_flexible) {
            (false, _) => self.messenger.request(Request::<false, false> { key, version, body }).await,
            (true, false) => self.messenger.request(Request::<true, false> { key, version, body }).await,
            (true, true) => self.messenger.request(Request::<true, true> { key, version, body }).await,
        };
        answer.map(|answer| Answer { version, ..answer }).map_err(|error| channel_error(&error))
    }
}

/// Bytes that are reserved for what is written of a request.
const REQUEST: usize = 512;

/// Bytes of the header that every answer has.
const CORRELATION_ID: usize = 4;

/// The messenger knows of this one API in one version, or all its code would be compiled anew for each API. The request
/// writes the real key and version into its header.
const ANY: ApiKey = ApiKey::Unknown(Int16(0));
const ONLY: ApiVersion = ApiVersion(Int16(0));
/// The first version with tagged fields, as the messenger compares it with that one version.
const fn first_tagged(is_flexible: bool) -> ApiVersion {
    ApiVersion(Int16(if is_flexible { 0 } else { i16::MAX }))
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

/// A wire request as rskafka wants it, by whether its header and that of its answer have tagged fields.
struct Request<const FLEXIBLE: bool, const ANSWER_FLEXIBLE: bool> {
    key: i16,
    version: i16,
    /// Boxed, since each future around it would hold it once or twice.
    body: Box<dyn Body>,
}

/// A wire answer as rskafka wants it: read, and not yet decoded.
pub(super) struct Answer {
    /// The bytes after the header.
    body: Bytes,
    /// Its header has tagged fields.
    is_flexible: bool,
    version: i16,
}

impl Answer {
    /// `whole` is what really came after the correlation id, if the stream kept it from the messenger.
    pub(super) fn decode<R: Api>(self, whole: Option<Bytes>) -> Result<R::Response, ChannelError> {
        let asked = self.version;
        let read = self.into_body(whole).and_then(|body| {
            let version = R::answer_version(asked, &body);
            R::decode(body, version)
        });
        read.map_err(|error| ChannelError::Decode(format!("version {asked}: {error}")))
    }

    fn into_body(self, whole: Option<Bytes>) -> Result<Bytes, wire::WireError> {
        match whole {
            Some(whole) if self.is_flexible => wire::skip_tags(whole),
            whole => Ok(whole.unwrap_or(self.body)),
        }
    }
}

impl<const FLEXIBLE: bool, const ANSWER_FLEXIBLE: bool> RequestBody for Request<FLEXIBLE, ANSWER_FLEXIBLE> {
    type ResponseBody = Answer;
    const API_KEY: ApiKey = ANY;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(ONLY, ONLY);
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = first_tagged(FLEXIBLE);
    const FIRST_TAGGED_FIELD_IN_RESPONSE_VERSION: ApiVersion = first_tagged(ANSWER_FLEXIBLE);
}

impl<const FLEXIBLE: bool, const ANSWER_FLEXIBLE: bool> WriteVersionedType<Vec<u8>>
    for Request<FLEXIBLE, ANSWER_FLEXIBLE>
{
    fn write_versioned(&self, writer: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        // A header begins with the API's key and its version.
        let ([a, b], [c, d]) = (self.key.to_be_bytes(), self.version.to_be_bytes());
        let head = writer.first_chunk_mut().ok_or_else(|| malformed_write("there is no header"))?;
        *head = [a, b, c, d];
        // Most requests are no longer, and need not grow field by field.
        writer.reserve(REQUEST);
        self.body.write(self.version, writer).map_err(malformed_write)
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for Answer {
    fn read_versioned(reader: &mut Cursor<Vec<u8>>, version: ApiVersion) -> Result<Self, ReadVersionedError> {
        let start = usize::try_from(reader.position()).unwrap_or(usize::MAX);
        let mut body = Bytes::from(std::mem::take(reader.get_mut()));
        // The messenger checks that nothing is left in the cursor. It finds an empty one; the decoder checks for bytes
        // that are left over.
        reader.set_position(0);
        if start > body.len() {
            let error = "the answer ends inside its header".into();
            return Err(ReadVersionedError::ReadError(traits::ReadError::Malformed(error)));
        }
        body.advance(start);
        Ok(Self { body, is_flexible: start > CORRELATION_ID, version: version.0.0 })
    }
}

fn malformed_write(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> WriteVersionedError {
    WriteVersionedError::WriteError(traits::WriteError::Malformed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code::UNSUPPORTED_VERSION;

    #[test]
    fn the_highest_common_version_is_used_and_none_where_there_is_none() {
        let offered = Versions::from([(0, (0, 99)), (1, (0, 7)), (2, (11, 12)), (8, (0, 1))]);
        assert_eq!(Row::of::<wire::ProduceRequest>().negotiate(&offered), Some(13));
        assert_eq!(Row::of::<wire::FetchRequest>().negotiate(&offered), Some(7));
        assert_eq!(Row::of::<wire::ListOffsetsRequest>().negotiate(&offered), None);
        assert_eq!(Row::of::<wire::OffsetCommitRequest>().negotiate(&offered), None);
        assert_eq!(Row::of::<wire::MetadataRequest>().negotiate(&offered), None);
    }

    fn read<R: Api>(version: i16, header: usize, bytes: Vec<u8>) -> Result<R::Response, String> {
        let mut cursor = Cursor::new(bytes);
        cursor.set_position(header as u64);
        let answer = Answer::read_versioned(&mut cursor, ONLY).map(|answer| Answer { version, ..answer });
        assert_eq!(cursor.position() as usize, cursor.get_ref().len(), "the messenger's own check passes");
        let answer = answer.map_err(|error| error.to_string())?;
        answer.decode::<R>(None).map_err(|error| match error {
            ChannelError::Decode(text) => text,
            _ => "another error".to_owned(),
        })
    }

    #[test]
    fn records_of_an_answer_are_a_slice_of_the_answers_own_buffer() {
        let partition = wire::fetch_response::PartitionData {
            records: Some(Bytes::from(vec![7u8; 1000])),
            ..Default::default()
        };
        let topic = wire::fetch_response::FetchableTopicResponse {
            partitions: vec![partition],
            ..Default::default()
        };
        let answer = wire::FetchResponse { responses: vec![topic], ..Default::default() };
        let mut bytes = vec![0u8; 5];
        bytes.append(&mut wire::FetchRequest::encode_answer(&answer, 12));
        let range = bytes.as_ptr_range();
        let answer = read::<wire::FetchRequest>(12, 5, bytes).unwrap();
        let records = answer.responses[0].partitions[0].records.clone().unwrap();
        assert_eq!(records, vec![7u8; 1000]);
        assert!(range.contains(&records.as_ptr()), "the records were copied");
    }

    #[test]
    fn an_answer_that_was_read_whole_begins_behind_the_tagged_fields_of_its_header() {
        let answer = wire::FetchResponse { session_id: 77, ..Default::default() };
        // Two tagged fields that nobody knows.
        for (version, header) in [(11, &[][..]), (12, &[0]), (12, &[2, 5, 3, 1, 2, 3, 9, 0])] {
            let body = wire::FetchRequest::encode_answer(&answer, version);
            let whole = Bytes::from([header, &body].concat());
            let stub = Answer { body: Bytes::new(), is_flexible: version >= 12, version };
            let Ok(read) = stub.decode::<wire::FetchRequest>(Some(whole)) else {
                panic!("version {version} {header:?}")
            };
            assert_eq!(read.session_id, 77);
        }
        let stub = Answer { body: Bytes::new(), is_flexible: true, version: 12 };
        let hostile = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(matches!(stub.decode::<wire::FetchRequest>(Some(hostile)), Err(ChannelError::Decode(_))));
    }

    #[test]
    fn leftover_and_missing_bytes_are_protocol_errors() {
        let mut bytes = wire::HeartbeatRequest::encode_answer(&Default::default(), 4);
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
        let key =
            wire::api_versions_response::ApiVersion { api_key: 18, max_version: 2, ..Default::default() };
        let answer = wire::ApiVersionsResponse {
            error_code: UNSUPPORTED_VERSION,
            api_keys: vec![key],
            ..Default::default()
        };
        let bytes = wire::ApiVersionsRequest::encode_answer(&answer, 0);
        let answer = read::<wire::ApiVersionsRequest>(3, 0, bytes).unwrap();
        assert_eq!((answer.error_code, answer.api_keys[0].max_version), (35, 2));
    }
}
