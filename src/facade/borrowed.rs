//! A record on its way to its handlers: as it stands in the answer it came in, or on its own. Reading it leaves it whole,
//! so that nothing is copied in case a handler fails.

use std::sync::Arc;

use super::message::Message;
use crate::{
    consumer::RecordRef,
    record::{ConsumerRecord, TopicPartition},
};

#[derive(Clone, Copy)]
pub(super) enum BorrowedRecord<'a> {
    Polled(RecordRef<'a>),
    Alone(&'a ConsumerRecord),
}

/// A value that is to be read, and where it comes from.
#[derive(Clone, Copy)]
pub(super) struct RawValue<'a> {
    pub(super) topic: &'a Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) bytes: Option<&'a [u8]>,
}

impl<'a> BorrowedRecord<'a> {
    #[inline]
    pub(super) fn offset(self) -> i64 {
        match self {
            Self::Polled(record) => record.offset(),
            Self::Alone(record) => record.offset,
        }
    }

    #[inline]
    pub(super) fn value(self) -> RawValue<'a> {
        match self {
            Self::Polled(record) => {
                let TopicPartition { topic, partition } = record.place();
                RawValue { topic, partition: *partition, offset: record.offset(), bytes: record.value() }
            }
            Self::Alone(record) => RawValue {
                topic: &record.topic,
                partition: record.partition,
                offset: record.offset,
                bytes: record.value.as_deref(),
            },
        }
    }

    /// The record with its data.
    pub(super) fn to_record(self) -> ConsumerRecord {
        match self {
            Self::Polled(record) => record.to_owned(),
            Self::Alone(record) => record.clone(),
        }
    }

    /// The message with a value that was read.
    #[inline]
    pub(super) fn message<T>(self, value: T, attempt: u32) -> Message<T> {
        match self {
            Self::Polled(record) => {
                let TopicPartition { topic, partition } = record.place();
                Message {
                    topic: Arc::clone(topic),
                    partition: *partition,
                    offset: record.offset(),
                    key: record.key_bytes(),
                    value,
                    headers: record.owned_headers(),
                    timestamp: record.timestamp(),
                    attempt,
                }
            }
            Self::Alone(record) => Message {
                topic: Arc::clone(&record.topic),
                partition: record.partition,
                offset: record.offset,
                key: record.key.clone(),
                value,
                headers: record.headers.clone(),
                timestamp: record.timestamp,
                attempt,
            },
        }
    }

    /// The value of the last header of this name, if it is text.
    pub(super) fn header(self, name: &str) -> Option<String> {
        let value = match self {
            Self::Polled(record) => record.header_str(name),
            Self::Alone(record) => record.header_str(name),
        };
        value.map(str::to_owned)
    }
}
