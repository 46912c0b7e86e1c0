//! Records as users see them: what is sent, what is received, and where.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

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
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
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
#[derive(Debug, Clone, Copy)]
pub struct ProducerRecord<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [Header],
    pub(crate) timestamp: Option<i64>,
}

impl<'a> ProducerRecord<'a> {
    /// A record for `topic` with neither key nor value (a null value is a tombstone on a compacted topic).
    pub fn new(topic: &'a str) -> Self {
        Self { topic, partition: None, key: None, value: None, headers: &[], timestamp: None }
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

    /// The headers, in order.
    #[must_use]
    pub fn headers(mut self, headers: &'a [Header]) -> Self {
        self.headers = headers;
        self
    }

    /// The create time in milliseconds since the Unix epoch. Default: the time of sending.
    #[must_use]
    pub fn timestamp(mut self, timestamp_ms: i64) -> Self {
        self.timestamp = Some(timestamp_ms);
        self
    }
}

/// Where an acknowledged record is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The record's offset; -1 where the broker does not tell it (`acks=0`, or a duplicate whose batch it no longer knows).
    pub offset: i64,
    /// Milliseconds since the Unix epoch: the record's own time, or the broker's for `LogAppendTime` topics.
    pub timestamp: i64,
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
    /// The value read as JSON; a tombstone reads as `null`.
    ///
    /// # Errors
    /// [`ErrorKind::Json`] naming topic, partition and offset if the value is not JSON of that type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        read_json(self.value.as_deref(), &self.topic, self.partition, self.offset)
    }
}

/// Reads a record's value as JSON; a tombstone reads as `null`.
pub(crate) fn read_json<T: DeserializeOwned>(
    value: Option<&[u8]>,
    topic: &Arc<str>,
    partition: i32,
    offset: i64,
) -> Result<T> {
    serde_json::from_slice(value.unwrap_or(b"null")).map_err(|cause| {
        // serde quotes the value it did not expect, and an error never holds a record's value.
        let cause = match cause.classify() {
            serde_json::error::Category::Data if !cause.to_string().starts_with("missing field") => {
                format!(
                    "another type of value was expected at line {} column {}",
                    cause.line(),
                    cause.column()
                )
            }
            _ => cause.to_string(),
        };
        Error::new(ErrorKind::Json, "the record's value is not JSON of the expected type")
            .with_topic(Arc::clone(topic))
            .with_partition(partition)
            .with_offset(offset)
            .with_boxed_source(cause.into())
            .with_hint(
                "read the value as bytes, or choose an error policy that skips or dead-letters the record",
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_reading_json_says_where_and_never_shows_the_value() {
        let read = |json: &str| read_json::<u32>(Some(json.as_bytes()), &"orders".into(), 3, 42).unwrap_err();
        let text = read("\"hunter2\"").to_string();
        assert!(text.contains("topic orders partition 3, offset 42") && !text.contains("hunter2"), "{text}");
        assert!(read("").to_string().contains("EOF"), "{}", read(""));
        assert_eq!(
            read_json::<Option<u32>>(None, &"orders".into(), 3, 42).unwrap(),
            None,
            "a tombstone is null"
        );
    }
}
