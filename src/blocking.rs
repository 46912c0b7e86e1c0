//! The same names for programs without `async` (feature `blocking`): each call waits for what its twin awaits. It owns a
//! runtime with one thread, started with the first call and shared by the whole process, and no logic.
//!
//! Everything here may be used from any thread and kept in a `static`. Inside an async runtime a call would hold up its
//! thread: it is an error there, but for handlers of this module, which run on threads for blocking work.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use dtkafka::{KafkaConfig, Message, blocking::{Consumer, KafkaInstance}};
//! use serde_json::{Value, json};
//!
//! # fn main() -> dtkafka::Result<()> {
//! let kafka = KafkaInstance::new(KafkaConfig::new().set_kafka_url("kafka://localhost:9092?group_id=billing"))?;
//! kafka.producer_context(|producer| {
//!     producer.send("events", &json!({"type": "user.signup", "id": 42})).queue()?;
//!     Ok(())
//! })?; // flushed and closed
//!
//! let mut consumer = Consumer::new(&kafka, ["events"])?
//!     .register_handler("events", |message: Message<Value>| {
//!         println!("received {} on {}", message.value, message.topic);
//!         Ok(())
//!     })?;
//! consumer.consume(Duration::from_secs(1))?;
//! consumer.close()?;
//! # Ok(()) }
//! ```

use std::{cell::Cell, sync::OnceLock, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    config::{ConsumerConfig, KafkaConfig, ProducerConfig},
    consumer::ConsumerRecords,
    error::{Error, ErrorKind, Result},
    facade::{self, ConsumerHandle, ErrorPolicy, HandlerResult, Message, Topics},
    producer::{self, IntoKey},
    record::{ConsumerRecord, ProducerRecord, RecordMetadata, Timestamp, TopicPartition},
};

/// How long a consumer's context tries to leave its group, as in Java.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();

thread_local! {
    /// This thread is one for blocking work, whatever runtime it belongs to.
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Waits for any future of this crate, such as those of [`KafkaAdmin`](crate::KafkaAdmin).
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] inside an async runtime, or if no thread can be started.
pub fn wait<T>(future: impl Future<Output = T>) -> Result<T> {
    if Handle::try_current().is_ok() && !MAY_BLOCK.get() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "a blocking call inside an async runtime would hold up its thread",
        )
        .with_hint("use the types of dtkafka itself and .await them, or call from a thread of its own"));
    }
    let start = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("dtkafka-blocking").enable_all().build()
    };
    match RUNTIME.get_or_init(start) {
        Ok(runtime) => Ok(runtime.block_on(future)),
        Err(cause) => {
            let text = format!("the runtime of the blocking calls cannot be started: {cause}");
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
    }
}

/// [`wait`] for what has a result of its own.
fn result<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    wait(future)?
}

/// As [`dtkafka::KafkaInstance`](crate::KafkaInstance).
#[derive(Debug, Clone)]
pub struct KafkaInstance(facade::KafkaInstance);

impl KafkaInstance {
    /// Checks the whole configuration; nothing connects yet.
    ///
    /// # Errors
    /// As [`KafkaInstance::new`](crate::KafkaInstance::new).
    pub fn new(config: KafkaConfig) -> Result<Self> {
        facade::KafkaInstance::new(config).map(Self)
    }

    /// The instance for `async` code.
    pub fn inner(&self) -> &facade::KafkaInstance {
        &self.0
    }

    /// A producer; waits for the first answer of a broker.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_producer`](crate::KafkaInstance::get_producer).
    pub fn get_producer(&self) -> Result<KafkaProducer> {
        self.get_producer_with(|producer| producer)
    }

    /// A producer with settings of its own.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_producer_with`](crate::KafkaInstance::get_producer_with).
    pub fn get_producer_with(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<KafkaProducer> {
        result(self.0.get_producer_with(overrides)).map(KafkaProducer)
    }

    /// A consumer of these topics; waits for the first answer of a broker.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_consumer`](crate::KafkaInstance::get_consumer).
    pub fn get_consumer(&self, topics: impl IntoIterator<Item = impl AsRef<str>>) -> Result<KafkaConsumer> {
        self.get_consumer_with(topics, |consumer| consumer)
    }

    /// A consumer with settings of its own.
    ///
    /// # Errors
    /// As [`KafkaInstance::get_consumer_with`](crate::KafkaInstance::get_consumer_with).
    pub fn get_consumer_with(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<KafkaConsumer> {
        result(self.0.get_consumer_with(topics, overrides)).map(KafkaConsumer)
    }

    /// Runs `body` with a producer that is flushed and closed afterwards, also when the body fails or panics.
    ///
    /// # Errors
    /// The body's, else that of closing.
    pub fn producer_context<T>(&self, body: impl FnOnce(&KafkaProducer) -> Result<T>) -> Result<T> {
        self.producer_context_with(|producer| producer, body)
    }

    /// [`producer_context`](Self::producer_context) with settings of its own.
    ///
    /// # Errors
    /// As [`producer_context`](Self::producer_context).
    pub fn producer_context_with<T>(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
        body: impl FnOnce(&KafkaProducer) -> Result<T>,
    ) -> Result<T> {
        let closing = Closing { client: self.get_producer_with(overrides)?, close: KafkaProducer::close };
        let outcome = body(&closing.client);
        let closed = closing.end();
        outcome.and_then(|value| closed.map(|()| value))
    }

    /// Runs `body` with a consumer of these topics that leaves its group afterwards, also when the body fails or panics.
    /// With automatic commits (the default), what the body was handed out is committed when it returns `Ok`.
    ///
    /// # Errors
    /// The body's, else that of committing and closing.
    pub fn consumer_context<T>(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        body: impl FnOnce(&KafkaConsumer) -> Result<T>,
    ) -> Result<T> {
        self.consumer_context_with(topics, |consumer| consumer, body)
    }

    /// [`consumer_context`](Self::consumer_context) with settings of its own.
    ///
    /// # Errors
    /// As [`consumer_context`](Self::consumer_context).
    pub fn consumer_context_with<T>(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
        body: impl FnOnce(&KafkaConsumer) -> Result<T>,
    ) -> Result<T> {
        let overrides = overrides(ConsumerConfig::new());
        let settings = overrides.merged(self.0.config()).resolve_consumer()?;
        let consumer = self.get_consumer_with(topics, |_| overrides)?;
        let closing = Closing { client: consumer, close: KafkaConsumer::close };
        let outcome = body(&closing.client);
        let committed = match &outcome {
            Ok(_) if settings.enable_auto_commit => closing.client.commit(),
            _ => Ok(()),
        };
        let closed = closing.end();
        outcome.and_then(|value| committed.and(closed).map(|()| value))
    }
}

/// A client that is closed at the end, also by a panic.
struct Closing<C> {
    client: C,
    close: fn(&C) -> Result<()>,
}

impl<C> Closing<C> {
    fn end(mut self) -> Result<()> {
        let close = std::mem::replace(&mut self.close, |_| Ok(()));
        close(&self.client)
    }
}

impl<C> Drop for Closing<C> {
    fn drop(&mut self) {
        // After a panic nobody asks how it went.
        let _ = (self.close)(&self.client);
    }
}

/// As [`dtkafka::KafkaProducer`](crate::KafkaProducer).
#[derive(Debug, Clone)]
pub struct KafkaProducer(producer::KafkaProducer);

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

/// As [`dtkafka::KafkaConsumer`](crate::KafkaConsumer).
#[derive(Debug)]
pub struct KafkaConsumer(crate::consumer::KafkaConsumer);

impl KafkaConsumer {
    /// The next records, and none after `timeout`. Says that all records before are done with.
    ///
    /// # Errors
    /// As [`KafkaConsumer::poll`](crate::KafkaConsumer::poll).
    pub fn poll(&self, timeout: Duration) -> Result<ConsumerRecords> {
        result(self.0.poll(timeout))
    }

    /// Record by record, for ever: `for record in consumer.iter()`. A record is done with when the next one is asked for.
    pub fn iter(&self) -> Records<'_> {
        Records { stream: self.0.stream(), has_failed: false }
    }

    /// Commits everything handed out so far.
    ///
    /// # Errors
    /// As [`KafkaConsumer::commit`](crate::KafkaConsumer::commit).
    pub fn commit(&self) -> Result<()> {
        result(self.0.commit())
    }

    /// Goes on at this offset.
    ///
    /// # Errors
    /// As [`KafkaConsumer::seek`](crate::KafkaConsumer::seek).
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.0.seek(partition, offset)
    }

    /// Leaves the group. The consumer can do nothing more afterwards.
    ///
    /// # Errors
    /// As [`KafkaConsumer::close`](crate::KafkaConsumer::close).
    pub fn close(&self) -> Result<()> {
        result(self.0.close(CLOSE_TIMEOUT))
    }

    /// The consumer for `async` code, and for what has no twin here: `blocking::wait(consumer.inner().position(..))`.
    pub fn inner(&self) -> &crate::consumer::KafkaConsumer {
        &self.0
    }
}

impl<'a> IntoIterator for &'a KafkaConsumer {
    type Item = Result<ConsumerRecord>;
    type IntoIter = Records<'a>;

    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

/// The records of a [`KafkaConsumer`], one by one.
#[derive(Debug)]
pub struct Records<'a> {
    stream: crate::consumer::RecordStream<'a>,
    has_failed: bool,
}

impl Iterator for Records<'_> {
    type Item = Result<ConsumerRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        use futures_util::StreamExt as _;
        if self.has_failed {
            return None;
        }
        match wait(self.stream.next()) {
            Ok(record) => record,
            Err(error) => {
                self.has_failed = true;
                Some(Err(error))
            }
        }
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

/// As [`dtkafka::Consumer`](crate::Consumer), with handlers that may block.
#[derive(Debug)]
pub struct Consumer(facade::Consumer);

impl Consumer {
    /// A consumer of these topics with the settings of the instance; nothing connects yet.
    ///
    /// # Errors
    /// As [`Consumer::new`](crate::Consumer::new).
    pub fn new(kafka: &KafkaInstance, topics: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        facade::Consumer::new(&kafka.0, topics).map(Self)
    }

    /// A consumer with settings of its own.
    ///
    /// # Errors
    /// As [`Consumer::new_with`](crate::Consumer::new_with).
    pub fn new_with(
        kafka: &KafkaInstance,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<Self> {
        facade::Consumer::new_with(&kafka.0, topics, overrides).map(Self)
    }

    /// Adds a handler for the records of a topic, on threads for blocking work. It may use everything of this module.
    ///
    /// # Errors
    /// As [`Consumer::register_handler`](crate::Consumer::register_handler).
    pub fn register_handler<T, F>(self, topics: impl Into<Topics>, handler: F) -> Result<Self>
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Message<T>) -> HandlerResult + Send + Sync + 'static,
    {
        let may_block = move |message| {
            MAY_BLOCK.set(true);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler(message)));
            // The thread goes back to others.
            MAY_BLOCK.set(false);
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        self.0.register_blocking_handler(topics, may_block).map(Self)
    }

    /// What happens when a handler fails. Default: [`ErrorPolicy::Stop`].
    ///
    /// # Errors
    /// As [`Consumer::error_policy`](crate::Consumer::error_policy).
    pub fn error_policy(self, policy: ErrorPolicy) -> Result<Self> {
        self.0.error_policy(policy).map(Self)
    }

    /// What happens when a handler of these topics fails.
    ///
    /// # Errors
    /// As [`Consumer::error_policy_for`](crate::Consumer::error_policy_for).
    pub fn error_policy_for(self, topics: impl Into<Topics>, policy: ErrorPolicy) -> Result<Self> {
        self.0.error_policy_for(topics, policy).map(Self)
    }

    /// Polls once, waiting for records up to `timeout`, and hands what came to the handlers. Returns how many were handled.
    ///
    /// # Errors
    /// As [`Consumer::consume`](crate::Consumer::consume).
    pub fn consume(&mut self, timeout: Duration) -> Result<usize> {
        result(self.0.consume(timeout))
    }

    /// Consumes until [`ConsumerHandle::stop`] is called on another thread.
    ///
    /// # Errors
    /// As [`Consumer::run`](crate::Consumer::run).
    pub fn run(&mut self) -> Result<()> {
        result(self.0.run(std::future::pending::<()>()))
    }

    /// Consumes until the process is told to end.
    ///
    /// # Errors
    /// As [`Consumer::run_until_signal`](crate::Consumer::run_until_signal).
    #[cfg(feature = "signal")]
    pub fn run_until_signal(&mut self) -> Result<()> {
        result(self.0.run_until_signal())
    }

    /// Commits what was handled and not committed yet.
    ///
    /// # Errors
    /// As [`Consumer::commit`](crate::Consumer::commit).
    pub fn commit(&mut self) -> Result<()> {
        result(self.0.commit())
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// As [`Consumer::close`](crate::Consumer::close).
    pub fn close(&mut self) -> Result<()> {
        result(self.0.close())
    }

    /// A handle that can be asked, and can stop it, from other threads.
    pub fn handle(&self) -> ConsumerHandle {
        self.0.handle()
    }

    /// The consumer for `async` code, to set what has no twin here.
    pub fn map(self, change: impl FnOnce(facade::Consumer) -> facade::Consumer) -> Self {
        Self(change(self.0))
    }
}
