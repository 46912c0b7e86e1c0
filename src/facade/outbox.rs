//! Sends records to other topics: dead letters, and records that wait in retry topics. A record counts as sent when the
//! broker has acknowledged it, never before.

use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;

use super::{KafkaInstance, letters};
use crate::{
    error::{Error, Result, code},
    producer::KafkaProducer,
    record::{ConsumerRecord, Header, RecordMetadata},
};

/// A producer that is made with the first record.
#[derive(Debug)]
pub(super) struct Outbox {
    kafka: KafkaInstance,
    producer: OnceCell<KafkaProducer>,
}

impl Outbox {
    pub(super) fn new(kafka: KafkaInstance) -> Self {
        Self { kafka, producer: OnceCell::new() }
    }

    /// Writes the record with these headers to another topic, and waits for the acknowledgment. `failure`: why it goes there.
    pub(super) async fn send(
        &self,
        topic: &Arc<str>,
        record: &ConsumerRecord,
        headers: &[Header],
        failure: &Error,
    ) -> Result<RecordMetadata> {
        let sent = self.write(topic, record, headers).await;
        sent.map_err(|error| {
            let failure = letters::chain(failure);
            let text = format!(
                "a record that failed ({failure}) could not be written to the topic {topic}, and comes again"
            );
            let place = error.over(text).with_topic(Arc::clone(&record.topic));
            place.with_partition(record.partition).with_offset(record.offset)
        })
    }

    async fn write(
        &self,
        topic: &Arc<str>,
        record: &ConsumerRecord,
        headers: &[Header],
    ) -> Result<RecordMetadata> {
        if topic.trim().is_empty() {
            return Err(Error::new(
                crate::error::ErrorKind::InvalidArgument,
                "the topic chosen for a record that failed has an empty name",
            )
            .with_topic(Arc::clone(&record.topic))
            .with_partition(record.partition)
            .with_offset(record.offset));
        }
        let producer =
            self.producer.get_or_try_init(|| self.kafka.get_letter_producer(|p| p.linger(0))).await?;
        let letter = letters::forwarded(topic, record, headers);
        let sent = async { producer.send_record(letter).await?.await }.await;
        sent.map_err(|error| match error.code().map(|told| told.0) {
            Some(code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE) => error.with_hint(
                "what is told of a failure makes a record larger than it was: raise max.message.bytes of the topic it goes \
                 to; the record is not committed, and comes again",
            ),
            // A broker that does not know what is wrong may know better next time; a letter may be there twice.
            Some(code::UNKNOWN_SERVER_ERROR) => error.with_passing(),
            _ => error,
        })
    }

    /// Every record was awaited when it was sent: nothing is left to fail.
    pub(super) async fn close(&self, limit: Duration) {
        if let Some(producer) = self.producer.get() {
            let _ = producer.close_within(limit).await;
        }
    }
}
