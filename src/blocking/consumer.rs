//! Consumers without `async`: records by polls or one by one, and handlers that may block.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{CLOSE_TIMEOUT, KafkaInstance, MAY_BLOCK, result, wait};
use crate::{
    config::ConsumerConfig,
    consumer::ConsumerRecords,
    error::Result,
    facade::{self, ConsumerHandle, ErrorPolicy, HandlerResult, Message, Topics},
    record::{ConsumerRecord, TopicPartition},
};

/// As [`dtkafka::KafkaConsumer`](crate::KafkaConsumer).
#[derive(Debug)]
pub struct KafkaConsumer(pub(super) crate::consumer::KafkaConsumer);

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

    /// A consumer of all topics whose whole names match this regular expression; nothing connects yet.
    ///
    /// # Errors
    /// As [`Consumer::matching`](crate::Consumer::matching).
    pub fn matching(kafka: &KafkaInstance, pattern: &str) -> Result<Self> {
        facade::Consumer::matching(&kafka.0, pattern).map(Self)
    }

    /// [`matching`](Self::matching) with settings of its own.
    ///
    /// # Errors
    /// As [`Consumer::matching`](crate::Consumer::matching).
    pub fn matching_with(
        kafka: &KafkaInstance,
        pattern: &str,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<Self> {
        facade::Consumer::matching_with(&kafka.0, pattern, overrides).map(Self)
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

    /// The consumer for `async` code, to set what has no twin here: the order, handlers of batches or bytes. These are `async`, and
    /// must not block: the runtime has one thread.
    ///
    /// ```no_run
    /// # fn example(consumer: dtkafka::blocking::Consumer) -> dtkafka::Result<dtkafka::blocking::Consumer> {
    /// use dtkafka::{ConsumerRecord, Ordering};
    ///
    /// consumer.map(|c| {
    ///     c.ordering(Ordering::Key).concurrency(8).register_raw_handler("events", async |event: ConsumerRecord| {
    ///         println!("{} bytes", event.value.unwrap_or_default().len());
    ///         Ok(())
    ///     })
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map(self, change: impl FnOnce(facade::Consumer) -> Result<facade::Consumer>) -> Result<Self> {
        change(self.0).map(Self)
    }
}
