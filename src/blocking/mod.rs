//! The same names for programs without `async` (feature `blocking`): each call waits for what its twin awaits. It owns a
//! runtime with one thread, started with the first call and shared by the whole process, and no logic.
//!
//! A process that ends waits for nothing: close a producer before that, or what is queued is lost. The contexts do so.
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

mod consumer;
mod producer;

use std::{cell::Cell, sync::OnceLock, time::Duration};

use tokio::runtime::{Builder, Handle, Runtime};

pub use self::{
    consumer::{Consumer, KafkaConsumer, Records},
    producer::{Delivery, KafkaProducer, Producer, SendAndWait, SendJson},
};
use crate::{
    config::{ConsumerConfig, KafkaConfig, ProducerConfig},
    error::{Error, ErrorKind, Result},
    facade,
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
