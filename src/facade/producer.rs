//! [`Producer`]: a JSON value goes out, and the call returns when the broker has acknowledged it.

use std::{future::IntoFuture, pin::Pin, time::Duration};

use futures_util::FutureExt as _;
use serde::Serialize;
use tracing::{Instrument as _, Span};

use super::{BulkLoad, KafkaInstance, LogSubject, log, logged};
use crate::{
    config::ProducerConfig,
    driver,
    error::{Error, ErrorKind, Result},
    producer::{Delivery, IntoKey, KafkaProducer, SendJson},
    record::{RecordMetadata, Timestamp},
};

/// How long [`Producer::send`] waits unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends JSON values one at a time, each waiting for its acknowledgment.
///
/// Cheap to clone; clones share one producer. Sends from several tasks share batches. For many records from one task,
/// [`KafkaProducer`] is faster: it does not wait between them.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use std::time::Duration;
///
/// use dtkafka::Producer;
///
/// let producer = Producer::new(&kafka).await?;
/// let event = serde_json::json!({"action": "order.created", "order_id": 1001});
/// let metadata = producer.send("events", &event).key(b"order-1001").timeout(Duration::from_secs(10)).await?;
/// println!("partition {} offset {}", metadata.partition, metadata.offset);
/// producer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Producer {
    client: KafkaProducer,
}

impl Producer {
    /// A producer with the settings of the instance; waits for the first answer of a broker.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_producer`].
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn new(kafka: &KafkaInstance) -> Result<Self> {
        Ok(Self { client: kafka.get_producer().await? })
    }

    /// A producer with settings of its own, which win over those of the instance.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_producer_with`].
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn new_with(
        kafka: &KafkaInstance,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<Self> {
        Ok(Self { client: kafka.get_producer_with(overrides).await? })
    }

    /// Sends `value` as JSON; configure the record further and `.await` the result, which waits for the broker's
    /// acknowledgment.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for an empty topic name or a timeout of zero;
    /// [`Json`](ErrorKind::Json) if the value cannot be written as JSON; [`Timeout`](ErrorKind::Timeout) after
    /// [`timeout`](SendAndWait::timeout) (10 s); the broker's error. [`Error::possibly_written`] says whether the record may be
    /// in the log all the same. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, the record may still be written.
    pub fn send<'a, V: Serialize + ?Sized>(&'a self, topic: &'a str, value: &'a V) -> SendAndWait<'a, V> {
        SendAndWait {
            send: self.client.send(topic, value),
            client: &self.client,
            topic,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Sends many values as JSON, without waiting in between, and returns when each has its answer: one result for
    /// each, in order.
    ///
    /// ```no_run
    /// # async fn example(producer: dtkafka::Producer) -> dtkafka::Result<()> {
    /// let results = producer.send_many("numbers", [(Some("a"), &1), (None, &2)]).await;
    /// let failed = results.iter().filter(|result| result.is_err()).count();
    /// println!("{} sent, {failed} failed", results.len());
    /// # Ok(()) }
    /// ```
    ///
    /// In a task that is spawned the compiler takes a named function and not a closure over borrowed items ("implementation
    /// of `FnOnce` is not general enough"): `orders.iter().map(pair)` with `fn pair(order: &Order) -> (u64, &Order)`.
    ///
    /// # Errors
    /// None for the call: each record has its own, as in [`send`](Self::send), after `delivery.timeout.ms` at the latest.
    ///
    /// # Cancel safety
    /// If dropped, what was sent so far is still delivered.
    pub async fn send_many<'a, K: IntoKey<'a>, V: Serialize + ?Sized + 'a>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = (K, &'a V)>,
    ) -> Vec<Result<RecordMetadata>> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Producer::send_many", subject: "Kafka Producer" };
        let mut deliveries: Vec<Result<Delivery>> = Vec::new();
        for (key, value) in records {
            let send = self.client.send(topic, value).key(key.into_key()).into_future();
            deliveries.push(match deliveries.last() {
                // It has waited for the whole of `max.block.ms`, for its topic or for memory, and each of the others
                // would do the same.
                Some(Err(late)) if late.is_retriable() => {
                    let late = late.clone();
                    send.now_or_never().unwrap_or(Err(late))
                }
                // Waits for memory alone, which is the back-pressure.
                _ => send.await,
            });
        }
        let mut results = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            results.push(match delivery {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            });
        }
        if let Some(Err(first)) = results.iter().find(|result| result.is_err()) {
            let failed = results.iter().filter(|result| result.is_err()).count();
            tracing::warn!(failed, of = results.len(), "some records of a call were not delivered");
            log(PLACE, first);
        }
        results
    }

    /// Sends any number of values as JSON, without waiting in between, and reports its progress.
    ///
    /// Nothing is sent before [`next`](BulkLoad::next), [`stream`](BulkLoad::stream) or [`finish`](BulkLoad::finish) is awaited.
    /// Memory stays flat however many there are: records are taken from the iterator in order, as `buffer.memory` has room for
    /// them and fewer than 65,536 of them are without an answer. A record that fails (after `delivery.timeout.ms` at the latest)
    /// is among the failures of a [`Progress`](crate::Progress), and does not end the load. Once a record has waited for
    /// `max.block.ms` in vain for a topic that is not there, the others fail at once until it is.
    ///
    /// ```no_run
    /// # async fn example(producer: dtkafka::Producer) -> dtkafka::Result<()> {
    /// let mut load = producer.bulk_load("numbers", (0..1_000_000_u64).map(|number| (number, number)));
    /// while let Some(progress) = load.next().await {
    ///     println!("{progress}"); // 35000 delivered, 0 failed, 8000 open
    ///     for (number, error) in progress.failures {
    ///         eprintln!("record {number}: {error}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn bulk_load<'k, K: IntoKey<'k>, V: Serialize, I: IntoIterator<Item = (K, V)>>(
        &self,
        topic: &str,
        records: I,
    ) -> BulkLoad<'k, I::IntoIter, V> {
        BulkLoad::new(self.client.clone(), topic, records.into_iter())
    }

    /// The client underneath, for bytes and for sending without waiting.
    pub fn client(&self) -> &KafkaProducer {
        &self.client
    }

    /// Delivers what was sent and ends the producer and all its clones.
    ///
    /// # Errors
    /// As [`KafkaProducer::close`]. Logged before it is returned.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the closing.
    pub async fn close(&self) -> Result<()> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Producer::close", subject: "Kafka Producer" };
        logged(PLACE, self.client.close().await)
    }
}

/// A record being put together by [`Producer::send`]; `.await` it to send it and wait for its acknowledgment.
#[must_use = "nothing is sent until it is awaited"]
#[derive(Debug)]
pub struct SendAndWait<'a, V: ?Sized> {
    send: SendJson<'a, V>,
    client: &'a KafkaProducer,
    topic: &'a str,
    timeout: Duration,
}

impl<'a, V: Serialize + ?Sized> SendAndWait<'a, V> {
    /// The key: text, bytes, an integer, or an option of these; see [`IntoKey`]. It decides the partition (murmur2, as in
    /// Java) unless one is set.
    pub fn key(mut self, key: impl IntoKey<'a>) -> Self {
        self.send = self.send.key(key);
        self
    }

    /// The partition to write to, whatever the key.
    pub fn partition(mut self, partition: i32) -> Self {
        self.send = self.send.partition(partition);
        self
    }

    /// Adds a header; keys may repeat.
    pub fn header(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.send = self.send.header(key, value);
        self
    }

    /// The create time: milliseconds since the Unix epoch, or a `SystemTime`. Default: the time of sending.
    pub fn timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.send = self.send.timestamp(timestamp);
        self
    }

    /// How long to wait for the acknowledgment. Default: 10 s. `delivery.timeout.ms` (2 minutes) ends the attempt as well.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<'a, V: Serialize + Sync + ?Sized> SendAndWait<'a, V> {
    async fn wait(self) -> Result<RecordMetadata> {
        if self.topic.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the topic's name is empty")
                .with_hint("name the topic to send to"));
        }
        if self.timeout.is_zero() {
            return Err(
                Error::new(ErrorKind::InvalidArgument, "the timeout of send is zero").with_topic(self.topic)
            );
        }
        driver::check_runtime()?;
        let mut delivery = None;
        let acknowledged = async { delivery.insert(self.send.await?).await };
        let outcome = tokio::time::timeout(self.timeout, acknowledged).await;
        outcome.unwrap_or_else(|_elapsed| {
            let partition = delivery.as_ref().map(Delivery::partition);
            if let Some(delivery) = delivery {
                delivery.give_up();
            }
            let error = not_in_time(self.topic, self.timeout, partition);
            Err(match self.client.why(self.topic, partition) {
                Some(cause) => error.with_source(cause),
                None => error,
            })
        })
    }
}

impl<'a, V: Serialize + Sync + ?Sized> IntoFuture for SendAndWait<'a, V> {
    type Output = Result<RecordMetadata>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Producer::send", subject: "Kafka Producer" };
        let span = crate::telemetry::spans::send(self.topic);
        let sending = async move {
            let outcome = logged(PLACE, self.wait().await);
            let span = Span::current();
            match &outcome {
                _ if span.is_disabled() => {}
                Ok(written) => {
                    span.record("messaging.destination.partition.id", written.partition);
                    span.record("messaging.kafka.offset", written.offset);
                }
                Err(error) => {
                    span.record("error.type", tracing::field::debug(error.kind()));
                }
            }
            outcome
        };
        Box::pin(sending.instrument(span))
    }
}

/// `queued`: the partition of a record that the producer has taken, and goes on delivering.
fn not_in_time(topic: &str, timeout: Duration, queued: Option<i32>) -> Error {
    let error = |text: &str| {
        Error::new(ErrorKind::Timeout, format!("{text} within {} ms", timeout.as_millis())).with_topic(topic)
    };
    match queued {
        Some(partition) => {
            error("no acknowledgment").with_partition(partition).with_possibly_written(true).with_hint(
                "the producer goes on delivering it until delivery.timeout.ms; give send a longer timeout",
            )
        }
        None => error("the record could not be queued")
            .with_hint("nothing was written: the topic is not known yet, or buffer.memory is full"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_error_says_whether_the_record_may_be_written() {
        let timeout = Duration::from_secs(10);
        let queued = not_in_time("events", timeout, Some(2));
        assert!(queued.possibly_written() && queued.kind() == ErrorKind::Timeout);
        let text = queued.to_string();
        assert!(text.contains("within 10000 ms") && text.contains("may have been written"), "{text}");
        let waiting = not_in_time("events", timeout, None);
        assert!(!waiting.possibly_written());
        assert!(waiting.to_string().contains("nothing was written"), "{waiting}");
    }
}
