//! Records as users see them: what is sent, what is received, and where.

use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Serialize, Serializer, de::DeserializeOwned};

use crate::{
    error::{Error, ErrorKind, Result},
    json,
    telemetry::spans,
};

/// `Serialize` of structs by their fields, without the derive, which would be a macro package in every build.
macro_rules! serialize_fields {
    ($($type:ident { $($field:ident),+ })+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                let fields = [$(stringify!($field)),+].len();
                let mut fields = serializer.serialize_struct(stringify!($type), fields)?;
                $(fields.serialize_field(stringify!($field), &self.$field)?;)+
                fields.end()
            }
        }
    )+};
}
pub(crate) use serialize_fields;

/// The longest text of a request, in bytes. Brokers close the connection on a longer one.
pub(crate) const LONGEST_TEXT: usize = i16::MAX as usize;

/// Whether this can be asked about as the name of a topic. What is wrong with it otherwise, brokers say.
///
/// # Errors
/// `InvalidArgument`. One question is about all topics of a client, so that a name that cannot be written, or on which brokers
/// close the connection, would keep every other topic from being asked about.
#[inline]
pub(crate) fn check_topic(name: &str) -> Result<()> {
    match name.len() {
        1..=LONGEST_TEXT => Ok(()),
        0 => Err(Error::new(ErrorKind::InvalidArgument, "the topic's name is empty")),
        length => {
            let start: String = name.chars().take(40).collect();
            let text =
                format!("the topic's name ({start:?} …) has {length} bytes, and none has more than 249");
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
    }
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }

    /// The topic's name as text, as in `partition.topic() == "orders"`.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

impl<T: Into<Arc<str>>> From<(T, i32)> for TopicPartition {
    fn from((topic, partition): (T, i32)) -> Self {
        Self::new(topic, partition)
    }
}

impl FromStr for TopicPartition {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) writes: `orders-3`.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.rsplit_once('-').filter(|(topic, _)| !topic.is_empty());
        match parts.and_then(|(topic, number)| Some((topic, number.parse().ok().filter(|n| *n >= 0)?))) {
            Some((topic, partition)) => Ok(Self::new(topic, partition)),
            None => Err(Error::new(ErrorKind::InvalidArgument, "this is not a topic and a partition")
                .with_hint("write it as topic-number, such as orders-3")),
        }
    }
}

/// As text, `orders-3`, so that it can be the key of a map in JSON.
impl Serialize for TopicPartition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Milliseconds since the Unix epoch as a point in time; `None` for -1, which stands for no time at all.
pub(crate) fn time_of(timestamp_ms: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(timestamp_ms).ok()?))
}

/// A record's time: milliseconds since the Unix epoch, or a [`SystemTime`].
///
/// Times before 1970 count as 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp(pub(crate) i64);

impl From<i64> for Timestamp {
    fn from(milliseconds: i64) -> Self {
        Self(milliseconds)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Partitions as the log names them: no line holds more than a few of a thousand.
pub(crate) fn list<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> String {
    const SHOWN: usize = 32;
    let mut partitions = partitions.into_iter();
    let shown: Vec<_> = partitions.by_ref().take(SHOWN).map(ToString::to_string).collect();
    match (shown.join(", "), partitions.count()) {
        (shown, 0) => shown,
        (shown, more) => format!("{shown} and {more} more"),
    }
}

/// One header of a record (KIP-82). Keys may repeat; order is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The header's name.
    pub key: String,
    /// The header's value; `None` is Kafka's null.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header with a value.
    pub fn new(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }
}

/// The value of the last header of this name.
pub(crate) fn last_header<'a>(headers: &'a [Header], key: &str) -> Option<&'a [u8]> {
    headers.iter().rev().find(|header| header.key == key)?.value.as_deref()
}

/// Whether a record's timestamp was set by its producer or by the broker (`message.timestamp.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampType {
    /// Set by the producer.
    #[default]
    CreateTime,
    /// Set by the broker when it appended the batch.
    LogAppendTime,
}

/// A record to send, as bytes. It borrows: the producer copies it once, into its batch.
#[derive(Debug, Clone)]
pub struct ProducerRecord<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Cow<'a, [Header]>,
    pub(crate) timestamp: Option<i64>,
}

impl<'a> ProducerRecord<'a> {
    /// A record for `topic` without key and value (a null value is a tombstone on a compacted topic).
    pub fn new(topic: &'a str) -> Self {
        Self { topic, partition: None, key: None, value: None, headers: Cow::Borrowed(&[]), timestamp: None }
    }

    /// The key: decides the partition (murmur2, as in Java) unless one is set.
    #[must_use]
    pub fn key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// The value.
    #[must_use]
    pub fn value(mut self, value: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.value = Some(value.as_ref());
        self
    }

    /// The partition to write to, whatever the key.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The headers, in order, in place of those it has. Costs nothing: they are borrowed.
    #[must_use]
    pub fn headers(mut self, headers: &'a [Header]) -> Self {
        self.headers = Cow::Borrowed(headers);
        self
    }

    /// One more header; keys may repeat. The first one copies those that were borrowed.
    ///
    /// ```
    /// use dtkafka::ProducerRecord;
    ///
    /// let record = ProducerRecord::new("orders").key("id-7").value("{}").header("source", "web");
    /// # let _ = record;
    /// ```
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.headers.to_mut().push(Header::new(key, Bytes::copy_from_slice(value.as_ref())));
        self
    }

    /// The create time: milliseconds since the Unix epoch, or a [`SystemTime`]. Default: the time of sending.
    #[must_use]
    pub fn timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.timestamp = Some(timestamp.into().0);
        self
    }
}

/// The place of an acknowledged record in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The record's offset; -1 if the broker does not say (`acks=0`, or a duplicate whose batch it no longer knows).
    pub offset: i64,
    /// Milliseconds since the Unix epoch: the record's own time, or the broker's for `LogAppendTime` topics.
    pub timestamp: i64,
}

impl Serialize for RecordMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut fields = serializer.serialize_struct("RecordMetadata", 4)?;
        fields.serialize_field("topic", &*self.topic)?;
        fields.serialize_field("partition", &self.partition)?;
        fields.serialize_field("offset", &self.offset)?;
        fields.serialize_field("timestamp", &self.timestamp)?;
        fields.end()
    }
}

impl RecordMetadata {
    /// Metadata without a timestamp: for tests of what comes after a delivery.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32, offset: i64) -> Self {
        Self { topic: topic.into(), partition, offset, timestamp: -1 }
    }

    /// The same with a timestamp.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.timestamp = timestamp.into().0;
        self
    }

    /// The topic's name as text, as in `record.topic() == "orders"`.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), self.partition)
    }

    /// The timestamp as a point in time, if there is one.
    pub fn time(&self) -> Option<SystemTime> {
        time_of(self.timestamp)
    }
}

/// How a group's coordinator identifies a member at one moment: for offsets that are committed in a transaction (KIP-447).
///
/// Take it before the records are processed: a member that has lost its partitions meanwhile is then refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGroupMetadata {
    pub(crate) group_id: Arc<str>,
    pub(crate) generation_or_member_epoch: i32,
    pub(crate) member_id: String,
    pub(crate) group_instance_id: Option<String>,
}

impl ConsumerGroupMetadata {
    pub(crate) fn new(
        group_id: Arc<str>,
        generation_or_member_epoch: i32,
        member_id: String,
        group_instance_id: Option<String>,
    ) -> Self {
        Self { group_id, generation_or_member_epoch, member_id, group_instance_id }
    }

    /// The group without a member: for offsets of partitions that were assigned by hand. Nothing then fences other writers.
    pub fn of_group(group_id: impl Into<Arc<str>>) -> Self {
        Self::new(group_id.into(), -1, String::new(), None)
    }

    /// The `group.id`.
    pub fn group_id(&self) -> &str {
        &self.group_id
    }

    /// The generation (classic groups) or the member's epoch (KIP-848); -1 without membership.
    pub fn generation_or_member_epoch(&self) -> i32 {
        self.generation_or_member_epoch
    }

    /// The member's id; empty without membership.
    pub fn member_id(&self) -> &str {
        &self.member_id
    }
}

/// What is committed for a partition. An `i64` converts into one with only an offset.
///
/// ```
/// # use dtkafka::OffsetAndMetadata;
/// let committed = OffsetAndMetadata::new(42).with_metadata("by worker 7");
/// assert_eq!((committed.offset, committed.metadata.as_str()), (42, "by worker 7"));
/// assert_eq!(OffsetAndMetadata::from(42), OffsetAndMetadata::new(42));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct OffsetAndMetadata {
    /// The offset of the next record to read: one more than that of the last one done.
    pub offset: i64,
    /// The leader epoch of the last record read (KIP-320), if known: whoever continues from there notices a truncated log.
    pub leader_epoch: Option<i32>,
    /// Your own text, often empty. Brokers take 4096 bytes unless told otherwise (`offset.metadata.max.bytes`).
    pub metadata: String,
    pub(crate) origin: Origin,
}

impl OffsetAndMetadata {
    /// Without epoch and text.
    pub fn new(offset: i64) -> Self {
        Self { offset, leader_epoch: None, metadata: String::new(), origin: Origin::default() }
    }

    /// With this text.
    #[must_use]
    pub fn with_metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// With the leader epoch of the last record read.
    #[must_use]
    pub fn with_leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = Some(leader_epoch);
        self
    }

    /// Whether it can be committed for this partition.
    pub(crate) fn check(&self, partition: &TopicPartition) -> Result<()> {
        let wrong = |text: &str| {
            Error::new(ErrorKind::InvalidArgument, text)
                .with_topic(Arc::clone(&partition.topic))
                .with_partition(partition.partition)
                .with_offset(self.offset)
        };
        if self.offset < 0 {
            return Err(wrong("a negative offset cannot be committed"));
        }
        if self.metadata.len() > LONGEST_TEXT {
            let hint =
                format!("brokers take 4096 bytes (offset.metadata.max.bytes), and a request {LONGEST_TEXT}");
            return Err(wrong("the text committed with an offset is too long").with_hint(hint));
        }
        check_topic(&partition.topic)
    }
}

/// The life of a partition that an offset was read in, where that is known. It is no part of what is committed, and two offsets
/// do not differ by it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Origin(Option<u64>);

impl Origin {
    pub(crate) fn of(life: u64) -> Self {
        Self(Some(life))
    }

    pub(crate) fn life(self) -> Option<u64> {
        self.0
    }
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl std::hash::Hash for Origin {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl From<i64> for OffsetAndMetadata {
    fn from(offset: i64) -> Self {
        Self::new(offset)
    }
}

/// A received record that owns its data: key and value share the buffer of the response they came in.
///
/// Holding one record keeps that buffer (at most `fetch.max.bytes`) in memory; copy the parts to keep for long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; -1 if the record has none.
    pub timestamp: i64,
    /// Who set the timestamp.
    pub timestamp_type: TimestampType,
    /// The leader epoch of the batch (KIP-320), where known.
    pub leader_epoch: Option<i32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers in order, duplicates kept.
    pub headers: Vec<Header>,
}

impl ConsumerRecord {
    /// A record without key, value, headers and timestamp: for tests of handlers.
    ///
    /// ```
    /// use dtkafka::ConsumerRecord;
    ///
    /// let record = ConsumerRecord::new("orders", 0, 42).with_key("id-7").with_value(r#"{"id": 7}"#);
    /// assert_eq!(record.key_str(), Some("id-7"));
    /// ```
    pub fn new(topic: impl Into<Arc<str>>, partition: i32, offset: i64) -> Self {
        Self {
            topic: topic.into(),
            partition,
            offset,
            timestamp: -1,
            timestamp_type: TimestampType::CreateTime,
            leader_epoch: None,
            key: None,
            value: None,
            headers: Vec::new(),
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with a value.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header::new(key, value));
        self
    }

    /// The same with a timestamp.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.timestamp = timestamp.into().0;
        self
    }

    /// The topic's name as text, as in `record.topic() == "orders"`.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), self.partition)
    }

    /// The key as text, if there is one and it is UTF-8.
    pub fn key_str(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }

    /// The value of the last header of this name; `None` also for one whose value is null.
    pub fn header(&self, key: &str) -> Option<&[u8]> {
        last_header(&self.headers, key)
    }

    /// The same as text, if it is UTF-8.
    pub fn header_str(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.header(key)?).ok()
    }

    /// The `traceparent` of the record (W3C trace context), if it has a valid one.
    pub fn traceparent(&self) -> Option<&str> {
        spans::traceparent(self.header("traceparent"))
    }

    /// The timestamp as a point in time, if there is one.
    pub fn time(&self) -> Option<SystemTime> {
        time_of(self.timestamp)
    }

    /// The value read as JSON; a tombstone reads as `null`.
    ///
    /// # Errors
    /// [`ErrorKind::Json`] naming topic, partition and offset if the value is not JSON of that type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        json::read(self.value.as_deref(), &self.topic, self.partition, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_topic_can_have_is_refused_in_few_words() {
        assert!(
            check_topic(&"x".repeat(LONGEST_TEXT)).is_ok(),
            "what brokers can be asked about, they refuse"
        );
        for name in [String::new(), "x".repeat(1 << 20)] {
            let error = check_topic(&name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().len() < 200, "{error}");
        }
    }

    #[test]
    fn a_partition_is_read_from_a_pair_and_from_the_text_it_writes() {
        let partition: TopicPartition = ("orders-eu", 3).into();
        assert_eq!("orders-eu-3".parse::<TopicPartition>().unwrap(), partition);
        assert_eq!(serde_json::to_string(&partition).unwrap(), "\"orders-eu-3\"");
        for bad in ["", "orders", "-3", "orders--", "orders-x", "orders--3-"] {
            let error = bad.parse::<TopicPartition>().unwrap_err();
            assert!(error.to_string().contains("orders-3"), "{bad}: {error}");
        }
    }

    #[test]
    fn many_partitions_are_one_short_line() {
        let partitions: Vec<_> = (0..1000).map(|number| TopicPartition::new("orders", number)).collect();
        assert_eq!(list(&partitions[..2]), "orders-0, orders-1");
        let all = list(&partitions);
        assert!(all.ends_with("orders-31 and 968 more"), "{all}");
    }

    #[test]
    fn times_go_in_and_come_out_as_points_in_time() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let record = ConsumerRecord::new("orders", 0, 1).with_timestamp(time);
        assert_eq!((record.timestamp, record.time()), (1_700_000_000_123, Some(time)));
        assert_eq!(ConsumerRecord::new("orders", 0, 1).time(), None);
        assert_eq!(Timestamp::from(UNIX_EPOCH - Duration::from_secs(1)), Timestamp(0));
        assert_eq!(ProducerRecord::new("orders").timestamp(time).timestamp, Some(1_700_000_000_123));
        assert_eq!(RecordMetadata::new("orders", 1, 2).with_timestamp(5).time(), time_of(5));
    }

    #[test]
    fn headers_are_added_one_by_one_behind_those_that_were_borrowed() {
        let headers = [Header::new("trace", "a")];
        let record = ProducerRecord::new("orders").headers(&headers).header("trace", "b").header("n", [7]);
        let expected = [Header::new("trace", "a"), Header::new("trace", "b"), Header::new("n", vec![7])];
        assert_eq!(*record.headers, expected);
        assert_eq!(*record.headers(&headers).headers, headers, "these are all of them");
    }

    #[test]
    fn topics_are_compared_with_text() {
        let record = ConsumerRecord::new("orders", 2, 1);
        let is_of_orders = |topic: &str| matches!(topic, "orders");
        assert!(record.topic() == "orders" && is_of_orders(record.topic_partition().topic()));
        assert!(RecordMetadata::new("orders", 0, 1).topic() == "orders");
    }

    #[test]
    fn keys_and_headers_are_read_as_text() {
        let record = ConsumerRecord::new("orders", 2, 1)
            .with_key("id-7")
            .with_header("trace", "a")
            .with_header("trace", "b")
            .with_header("raw", &b"\xff"[..]);
        assert_eq!((record.key_str(), record.header_str("trace")), (Some("id-7"), Some("b")));
        assert_eq!((record.header("raw"), record.header_str("raw")), (Some(&b"\xff"[..]), None));
        assert_eq!(record.topic_partition(), ("orders", 2).into());
        assert_eq!(record.with_key(&b"\xff"[..]).key_str(), None);
    }
}
