//! Producers without `async`: of bytes and deliveries, and the one that waits for each acknowledgment.

use std::time::Duration;

use serde::Serialize;

use super::{KafkaInstance, result, wait};
use crate::{
    config::ProducerConfig,
    error::{Error, ErrorKind, Result},
    facade,
    producer::{self, IntoKey},
    record::{ProducerRecord, RecordMetadata, Timestamp},
};

/// What both kinds of a record in the making can be given.
macro_rules! setters {
    () => {
        /// The key; see [`IntoKey`].
        pub fn key(self, key: impl IntoKey<'a>) -> Self {
            Self(self.0.key(key))
        }

        /// The partition to write to, whatever the key.
        pub fn partition(self, partition: i32) -> Self {
            Self(self.0.partition(partition))
        }

        /// Adds a header; keys may repeat.
        pub fn header(self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
            Self(self.0.header(key, value))
        }

        /// The create time. Default: the time of sending.
        pub fn timestamp(self, timestamp: impl Into<Timestamp>) -> Self {
            Self(self.0.timestamp(timestamp))
        }
    };
}

/// As [`dtkafka::KafkaProducer`](crate::KafkaProducer).
#[derive(Debug, Clone)]
pub struct KafkaProducer(pub(super) producer::KafkaProducer);

impl KafkaProducer {
    /// Sends `value` as JSON; configure the record further and [`queue`](SendJson::queue) it.
    pub fn send<'a, V: Serialize + ?Sized>(&'a self, topic: &'a str, value: &'a V) -> SendJson<'a, V> {
        SendJson(self.0.send(topic, value))
    }

    /// Sends a record of bytes; waits for buffer memory only.
    ///
    /// # Errors
    /// As [`KafkaProducer::send_record`](crate::KafkaProducer::send_record).
    pub fn send_record(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        result(self.0.send_record(record)).map(Delivery)
    }

    /// Waits until each record sent before has its answer.
    ///
    /// # Errors
    /// As [`KafkaProducer::flush`](crate::KafkaProducer::flush).
    pub fn flush(&self) -> Result<()> {
        result(self.0.flush())
    }

    /// Delivers what was sent and ends the producer and all its clones.
    ///
    /// # Errors
    /// As [`KafkaProducer::close`](crate::KafkaProducer::close).
    pub fn close(&self) -> Result<()> {
        result(self.0.close())
    }

    /// The producer for `async` code.
    pub fn inner(&self) -> &producer::KafkaProducer {
        &self.0
    }
}

/// A record being put together by [`KafkaProducer::send`].
#[must_use = "nothing is sent until it is queued"]
#[derive(Debug)]
pub struct SendJson<'a, V: ?Sized>(producer::SendJson<'a, V>);

impl<'a, V: Serialize + ?Sized> SendJson<'a, V> {
    setters!();

    /// Sends it; waits for buffer memory only.
    ///
    /// # Errors
    /// As [`KafkaProducer::send`](crate::KafkaProducer::send).
    pub fn queue(self) -> Result<Delivery> {
        result(self.0.into_future()).map(Delivery)
    }
}

/// A record on its way.
#[derive(Debug)]
pub struct Delivery(producer::Delivery);

impl Delivery {
    /// Waits for the acknowledgment.
    ///
    /// # Errors
    /// As awaiting a [`dtkafka::Delivery`](crate::Delivery).
    pub fn wait(self) -> Result<RecordMetadata> {
        result(self.0)
    }

    /// Waits for the acknowledgment up to `timeout`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); [`ErrorKind::Timeout`] says that the record may be written all the same.
    pub fn get(self, timeout: Duration) -> Result<RecordMetadata> {
        wait(async {
            tokio::time::timeout(timeout, self.0).await.unwrap_or_else(|_elapsed| {
                Err(Error::new(
                    ErrorKind::Timeout,
                    format!("no acknowledgment within {} ms", timeout.as_millis()),
                )
                .with_possibly_written(true)
                .with_hint("the producer goes on delivering it until delivery.timeout.ms"))
            })
        })?
    }
}

/// As [`dtkafka::Producer`](crate::Producer).
#[derive(Debug, Clone)]
pub struct Producer(facade::Producer);

impl Producer {
    /// A producer with the settings of the instance; waits for the first answer of a broker.
    ///
    /// # Errors
    /// As [`Producer::new`](crate::Producer::new).
    pub fn new(kafka: &KafkaInstance) -> Result<Self> {
        result(facade::Producer::new(&kafka.0)).map(Self)
    }

    /// A producer with settings of its own.
    ///
    /// # Errors
    /// As [`Producer::new_with`](crate::Producer::new_with).
    pub fn new_with(
        kafka: &KafkaInstance,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<Self> {
        result(facade::Producer::new_with(&kafka.0, overrides)).map(Self)
    }

    /// Sends many values as JSON, none waiting for the one before it: one result for each, in order.
    ///
    /// # Errors
    /// Inside an async runtime; otherwise each record has its own, as in
    /// [`Producer::send_many`](crate::Producer::send_many).
    pub fn send_many<'a, K: IntoKey<'a>, V: Serialize + ?Sized + 'a>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = (K, &'a V)>,
    ) -> Result<Vec<Result<RecordMetadata>>> {
        wait(self.0.send_many(topic, records))
    }

    /// The producer for `async` code, such as [`bulk_load`](crate::Producer::bulk_load) under [`wait`].
    pub fn inner(&self) -> &facade::Producer {
        &self.0
    }

    /// Sends `value` as JSON; configure the record further and [`wait`](SendAndWait::wait) for its acknowledgment.
    pub fn send<'a, V: Serialize + Sync + ?Sized>(
        &'a self,
        topic: &'a str,
        value: &'a V,
    ) -> SendAndWait<'a, V> {
        SendAndWait(self.0.send(topic, value))
    }

    /// Delivers what was sent and ends the producer and all its clones.
    ///
    /// # Errors
    /// As [`Producer::close`](crate::Producer::close).
    pub fn close(&self) -> Result<()> {
        result(self.0.close())
    }
}

/// A record being put together by [`Producer::send`].
#[must_use = "nothing is sent until it is waited for"]
#[derive(Debug)]
pub struct SendAndWait<'a, V: ?Sized>(facade::SendAndWait<'a, V>);

impl<'a, V: Serialize + Sync + ?Sized> SendAndWait<'a, V> {
    setters!();

    /// How long to wait. Default: 10 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self(self.0.timeout(timeout))
    }

    /// Sends it and waits for the broker's acknowledgment.
    ///
    /// # Errors
    /// As [`Producer::send`](crate::Producer::send).
    pub fn wait(self) -> Result<RecordMetadata> {
        result(self.0.into_future())
    }
}
