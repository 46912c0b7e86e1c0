//! Sends records on: dead letters, and those that wait in retry topics. A record counts as sent when the broker has
//! acknowledged it, never before.

use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;

use super::{KafkaInstance, letters};
use crate::{
    error::{Error, Result},
    producer::KafkaProducer,
    record::{ConsumerRecord, Header, RecordMetadata},
};

/// One producer, made with the first record.
#[derive(Debug)]
pub(super) struct Outbox {
    kafka: KafkaInstance,
    producer: OnceCell<KafkaProducer>,
}

impl Outbox {
    pub(super) fn new(kafka: KafkaInstance) -> Self {
        Self { kafka, producer: OnceCell::new() }
    }

    /// Writes the record with these headers to another topic, and waits for the acknowledgment.
    pub(super) async fn send(
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
        let make = || self.kafka.get_producer_with(|producer| producer.linger(0));
        let producer = self.producer.get_or_try_init(make).await?;
        producer.send_record(letters::forwarded(topic, record, headers)).await?.await
    }

    /// Every record was awaited when it was sent: nothing is left to fail.
    pub(super) async fn close(&self, limit: Duration) {
        if let Some(producer) = self.producer.get() {
            let _ = producer.close_within(limit).await;
        }
    }
}
