//! How handlers are given to a [`Consumer`]: one method for each kind, as the types of closures are found best by it.

use std::{sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use super::{Consumer, SUBJECT};
use crate::{
    error::{Error, ErrorKind, Result},
    facade::{
        LogSubject,
        codec::Codec,
        handler::{self, BatchSize, ErasedHandler, Handler, HandlerArgument, HandlerResult},
        logged,
        message::{Batch, Message},
        topics::Topics,
    },
    record::ConsumerRecord,
};

impl Consumer {
    /// Adds a handler for the records of a topic, behind those it has already. Values are read as JSON.
    ///
    /// A closure needs no types beyond its message's; it fails with a [`HandlerError`](crate::HandlerError), into which
    /// `?` turns any error. For functions with an error type of their own see [`register`](Self::register). One handler
    /// serves several topics with [`Topics::glob`], and all topics without a handler with [`Topics::others`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a topic that this consumer does not consume, or that has a handler of batches.
    /// Logged before it is returned.
    pub fn register_handler<T, F>(self, topics: impl Into<Topics>, handler: F) -> Result<Self>
    where
        T: DeserializeOwned + 'static,
        F: AsyncFn(Message<T>) -> HandlerResult + Handler<Message<T>>,
    {
        self.with(topics.into(), ErasedHandler::json(handler))
    }

    /// Adds a handler for the records of a topic as bytes, behind those it has already.
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn register_raw_handler<F>(self, topics: impl Into<Topics>, handler: F) -> Result<Self>
    where
        F: AsyncFn(ConsumerRecord) -> HandlerResult + Handler<ConsumerRecord>,
    {
        self.with(topics.into(), ErasedHandler::raw(handler))
    }

    /// Adds a handler with an error type of its own, such as `anyhow::Error`: a function of a [`Message`], a [`Batch`] (up
    /// to 500 records that are there) or a [`ConsumerRecord`]. Closures must spell out all types.
    ///
    /// ```no_run
    /// # fn example(consumer: dtkafka::Consumer) -> dtkafka::Result<dtkafka::Consumer> {
    /// use dtkafka::Message;
    ///
    /// async fn on_order(order: Message<u32>) -> Result<(), std::io::Error> {
    ///     tokio::task::yield_now().await;
    ///     std::fs::write("last-order", order.value.to_string())
    /// }
    ///
    /// consumer.register("orders", on_order)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn register<A: HandlerArgument>(
        self,
        topics: impl Into<Topics>,
        handler: impl Handler<A>,
    ) -> Result<Self> {
        self.with(topics.into(), A::erase(handler))
    }

    /// [`register`](Self::register) on a consumer that is in use already.
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn add_handler<A: HandlerArgument>(
        &mut self,
        topics: impl Into<Topics>,
        handler: impl Handler<A>,
    ) -> Result<&mut Self> {
        self.add(topics.into(), A::erase(handler))?;
        Ok(self)
    }

    /// Adds a handler of many records at once: up to `records` of one lane, or fewer once the first of them has waited
    /// for `wait`; with zero it takes what is there. A lane is a partition, or with [`Ordering::Key`](crate::Ordering::Key)
    /// one key of it, so that few records of each key make small batches. [`consume`](Self::consume) returns no sooner than its last batch is
    /// handled: a long `wait` is for [`run`](Self::run). See [`Batch`].
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler); also for 0 records, or a topic that has another handler.
    pub fn register_batch_handler<T, F>(
        self,
        topics: impl Into<Topics>,
        records: usize,
        wait: Duration,
        handler: F,
    ) -> Result<Self>
    where
        T: DeserializeOwned + Send + 'static,
        F: AsyncFn(Batch<T>) -> HandlerResult + Handler<Batch<T>>,
    {
        self.with_batch(
            topics.into(),
            records,
            ErasedHandler::batch(BatchSize { records, wait }, handler::read_json, handler),
        )
    }

    /// [`register_batch_handler`](Self::register_batch_handler) of values that are read by `codec`.
    ///
    /// # Errors
    /// As [`register_batch_handler`](Self::register_batch_handler).
    pub fn register_batch_handler_with<T, C, F>(
        self,
        topics: impl Into<Topics>,
        records: usize,
        wait: Duration,
        codec: C,
        handler: F,
    ) -> Result<Self>
    where
        T: Send + 'static,
        C: Codec<T>,
        F: AsyncFn(Batch<T>) -> HandlerResult + Handler<Batch<T>>,
    {
        self.with_batch(
            topics.into(),
            records,
            ErasedHandler::batch(BatchSize { records, wait }, handler::reader(codec), handler),
        )
    }

    /// Adds a handler that may block: it runs on the runtime's threads for blocking work. Values are read as JSON.
    ///
    /// The clients need such a thread too, to resolve a name or read a certificate when they connect. A runtime of your own
    /// (`max_blocking_threads`, 512 by default) must have more of them than handlers that run at once, or none is left for the
    /// connection that the handlers wait for.
    ///
    /// Nobody can stop such a call. Once its deadline or the consumer's [`drain_timeout`](Self::drain_timeout) is over,
    /// or its partition is another member's, it is not waited for, and its record comes again, but it runs to its end,
    /// unless it looks at [`Message::cancellation`]. A runtime that ends waits for it as well: see tokio's
    /// `Runtime::shutdown_timeout`.
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn register_blocking_handler<T, F>(self, topics: impl Into<Topics>, handler: F) -> Result<Self>
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Message<T>) -> HandlerResult + Send + Sync + 'static,
    {
        self.with(topics.into(), ErasedHandler::blocking(handler::read_json, handler))
    }

    /// Adds a handler for the records of a topic, whose values are read by `codec`.
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn register_handler_with<T, C, F>(
        self,
        topics: impl Into<Topics>,
        codec: C,
        handler: F,
    ) -> Result<Self>
    where
        T: 'static,
        C: Codec<T>,
        F: AsyncFn(Message<T>) -> HandlerResult + Handler<Message<T>>,
    {
        self.with(topics.into(), ErasedHandler::decoded(handler::reader(codec), handler))
    }

    fn with_batch(self, topics: Topics, records: usize, handler: ErasedHandler) -> Result<Self> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Consumer::register_batch_handler", subject: SUBJECT };
        if records == 0 {
            return logged(
                PLACE,
                Err(Error::new(ErrorKind::InvalidArgument, "a batch needs at least one record")),
            );
        }
        self.with(topics, handler)
    }

    fn with(mut self, topics: Topics, handler: ErasedHandler) -> Result<Self> {
        self.add(topics, handler)?;
        Ok(self)
    }

    fn add(&mut self, topics: Topics, handler: ErasedHandler) -> Result<()> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Consumer::register_handler", subject: SUBJECT };
        logged(PLACE, Arc::make_mut(&mut self.routes).add(&self.topics, topics, handler))
    }
}
