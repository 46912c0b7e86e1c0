//! The producer's handle: takes records, waits for memory, picks partitions, hands out deliveries.
//!
//! One driver task ([`task`]) sends. The handle never talks to a broker itself but for the first look at a topic.
//! Appending takes only its partition's lock, so that many threads can append to many partitions; the topics are a
//! snapshot ([`topics`]), replaced whole. Two locks are held at once only by the sticky partitioner, which looks at the
//! queues to choose among them; none is held across an await.

pub(crate) mod accumulator;
mod append;
mod coordinator;
pub(crate) mod decision;
pub(crate) mod identity;
mod interceptor;
mod key;
mod leaders;
pub(crate) mod memory;
pub(crate) mod partitioner;
mod plugins;
mod produce;
pub(crate) mod queue;
pub(crate) mod receipt;
mod record_errors;
mod refusal_errors;
mod send;
pub(crate) mod sender;
mod settle;
mod statistics;
mod task;
mod topics;
pub(crate) mod transaction;
mod transactional;
mod unawaited;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::sync::Notify;

use self::{
    accumulator::Limits,
    append::{Attempt, Wait, no_such_partition},
    memory::Memory,
    queue::Aftermath,
    topics::{PartitionQueue, TopicTable},
    transactional::Transactions,
    unawaited::Unawaited,
};
pub use self::{
    interceptor::{OutgoingRecord, ProducerInterceptor},
    key::{IntoKey, Key},
    plugins::{Partitioner, Partitions},
    receipt::Delivery,
    send::{SendJson, Sending},
    statistics::ProducerStatistics,
    transactional::{Transaction, TransactionalProducer},
};
pub(crate) use self::{
    plugins::{OwnPartitioner, Plugins},
    transactional::is_refused,
};
use crate::{
    cluster::Cluster,
    config::settings::ProducerSettings,
    driver,
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    record::ProducerRecord,
    time::{self, Backoff, Environment, Instant},
    watch,
};

/// A producer of one cluster: batches records per partition and delivers them in order, once each by default.
///
/// Cheap to clone; all clones share one buffer, one set of connections and one driver task. When the last one is
/// dropped without [`close`](Self::close), what was sent is still delivered in the background while the runtime runs.
#[derive(Clone)]
pub struct KafkaProducer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster,
    settings: ProducerSettings,
    /// The cluster's, near at hand for the path of every record.
    environment: Environment,
    limits: Arc<Limits>,
    memory: Memory,
    topics: TopicTable,
    /// Queues with something to send that the task has not seen yet.
    scheduled: Mutex<Vec<Arc<PartitionQueue>>>,
    wake: Notify,
    closing: watch::Sender<Closing>,
    /// Set with `closing`, for the path of every record.
    is_closing: AtomicBool,
    fatal: Mutex<Option<Error>>,
    /// Only in a transactional producer.
    transactions: Option<Transactions>,
    statistics: Mutex<ProducerStatistics>,
    unawaited: Mutex<Unawaited>,
    /// Records that were given up when the producer ended.
    given_up: AtomicU64,
    /// It ended before the end of a transaction was confirmed.
    left_open: AtomicBool,
}

/// How far the end of the producer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// Everything leaves at once; what is not delivered by then is given up.
    Draining(Instant),
    Done,
}

impl KafkaProducer {
    /// Starts the driver task and waits for the first answer of a broker.
    pub(crate) async fn start(cluster: Cluster, settings: ProducerSettings) -> Result<Self> {
        if settings.transactional_id.is_some() {
            return Err(Error::new(
                ErrorKind::Config,
                "transactional.id is set, and a plain producer writes outside of transactions",
            )
            .with_hint("use get_transactional_producer, or leave transactional.id out"));
        }
        Self::start_with(cluster, settings, None).await
    }

    /// As [`start`](Self::start), for transactions; nothing leaves before one is begun.
    pub(crate) async fn start_transactional(cluster: Cluster, settings: ProducerSettings) -> Result<Self> {
        let config = |text: &str, hint: &str| Error::new(ErrorKind::Config, text).with_hint(hint);
        let Some(id) = settings.transactional_id.clone() else {
            return Err(config("a producer of transactions has no name", "set transactional.id"));
        };
        if !settings.idempotence {
            return Err(config(
                "transactions need an idempotent producer",
                "leave enable.idempotence, acks, retries and max.in.flight.requests.per.connection at their defaults",
            ));
        }
        let client = cluster.settings();
        let backoff = Backoff::new(client.retry_backoff, client.retry_backoff_max);
        let transactions = Transactions::new(id, settings.transaction_timeout, backoff);
        Self::start_with(cluster, settings, Some(transactions)).await
    }

    async fn start_with(
        cluster: Cluster,
        settings: ProducerSettings,
        transactions: Option<Transactions>,
    ) -> Result<Self> {
        cluster.connect(time::after(start_limit(&cluster, &settings))).await?;
        let limits = Arc::new(Limits {
            batch_size: settings.batch_size.max(1),
            linger: settings.linger,
            delivery_timeout: settings.delivery_timeout,
            max_in_flight: settings.max_in_flight.max(1),
            retries: settings.retries,
            idempotent: settings.idempotence,
            transactional: transactions.is_some(),
        });
        let shared = Arc::new(Shared {
            memory: Memory::new(settings.buffer_memory, settings.batch_size),
            environment: cluster.settings().environment.clone(),
            cluster,
            limits,
            topics: TopicTable::default(),
            scheduled: Mutex::new(Vec::new()),
            wake: Notify::new(),
            closing: watch::Sender::new(Closing::Open),
            is_closing: AtomicBool::new(transactions.is_some()),
            fatal: Mutex::new(None),
            transactions,
            statistics: Mutex::default(),
            unawaited: Mutex::default(),
            given_up: AtomicU64::new(0),
            left_open: AtomicBool::new(false),
            settings,
        });
        task::spawn(Arc::clone(&shared))?;
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    /// Sends `value` as JSON; configure the record further and `.await` the result.
    ///
    /// Awaiting waits for buffer memory only and gives the record's [`Delivery`]; await that for the acknowledgment.
    ///
    /// ```no_run
    /// # async fn example(producer: dtkafka::KafkaProducer) -> dtkafka::Result<()> {
    /// let delivery = producer.send("orders", &serde_json::json!({"id": 7})).key("id-7").await?;
    /// let metadata = delivery.await?;
    /// println!("{}-{} offset {}", metadata.topic, metadata.partition, metadata.offset);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`send_record`](Self::send_record); also [`ErrorKind::Json`] if the value cannot be written as JSON.
    ///
    /// # Cancel safety
    /// As [`send_record`](Self::send_record).
    pub fn send<'a, V: Serialize + ?Sized>(&'a self, topic: &'a str, value: &'a V) -> SendJson<'a, V> {
        SendJson::new(self, topic, value)
    }

    /// Sends a record of bytes; waits only for the first look at the topic, for a second one if the record's partition is not
    /// known, and for buffer memory.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for an empty topic name, a partition the topic does not have or a
    /// record larger than `max.request.size`; [`Timeout`](ErrorKind::Timeout) after `max.block.ms` without memory or
    /// without the topic; [`Closed`](ErrorKind::Closed). None of them leaves a record behind.
    ///
    /// # Cancel safety
    /// If dropped before it returned, nothing was sent.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` would move each record once more")]
    pub fn send_record<'r>(
        &self,
        record: ProducerRecord<'r>,
    ) -> impl Future<Output = Result<Delivery>> + Send + use<'_, 'r> {
        async move {
            let shared = self.shared();
            if !shared.settings.plugins.interceptors.is_empty() {
                // Apart, as is waiting: the future of a record that does neither is small.
                return Box::pin(shared.append_intercepted(record)).await;
            }
            match shared.append(&record, &mut 0) {
                Ok(Attempt::Done(delivery)) => Ok(delivery),
                Ok(Attempt::Wait(wait)) => Box::pin(shared.append_waiting(&record, wait)).await,
                Err(error) => Err(error),
            }
        }
    }

    /// Sends a record if that can be done now, without waiting for memory or for the first look at the topic.
    ///
    /// # Errors
    /// As [`send_record`](Self::send_record), but for [`Timeout`](ErrorKind::Timeout) at once where that would wait:
    /// [`Error::is_retriable`] is true then, and nothing was sent.
    pub fn try_send(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        let interceptors = &self.shared().settings.plugins.interceptors;
        if interceptors.is_empty() {
            return self.send_now(record);
        }
        let changed = interceptors.on_send(record);
        let record = changed.borrowed();
        interceptors.watch(record.topic, self.send_now(record))
    }

    fn send_now(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        let shared = self.shared();
        let would_wait = |text: &str, hint: &str| {
            Err(Error::new(ErrorKind::Timeout, text).with_topic(record.topic).with_hint(hint))
        };
        let attempt = match shared.append(&record, &mut 0)? {
            // The cluster may know the topic by now: it is taken over only when somebody sends to it.
            Attempt::Wait(Wait::Topic) if shared.take_over_topic(record.topic) => {
                shared.append(&record, &mut 0)?
            }
            attempt => attempt,
        };
        match attempt {
            Attempt::Done(delivery) => Ok(delivery),
            Attempt::Wait(Wait::Memory(_)) => {
                shared.wake.notify_one();
                would_wait("the producer's memory is full now", "try again later, or raise buffer.memory")
            }
            Attempt::Wait(Wait::Topic) => {
                shared.cluster.want_topic(&record.topic.into());
                would_wait("the topic is not known yet", "try again later, or call partitions_for first")
            }
            Attempt::Wait(Wait::Partition(count)) => Err(no_such_partition(&record, count)),
        }
    }

    /// As [`flush`](Self::flush), for at most `limit`.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) if something has no answer by then; it is still being delivered.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the sending.
    pub async fn flush_within(&self, limit: Duration) -> Result<()> {
        driver::check_runtime()?;
        match tokio::time::timeout_at(time::after(limit), self.flush()).await {
            Ok(flushed) => flushed,
            Err(_elapsed) => Err(Error::new(
                ErrorKind::Timeout,
                format!("{} bytes of records have no answer yet", self.buffered_bytes()),
            )
            .with_hint("give flush more time, or see to the brokers")),
        }
    }

    /// What the producer has done so far, and what it holds now.
    pub fn statistics(&self) -> ProducerStatistics {
        let shared = self.shared();
        let mut statistics = shared.statistics.lock().clone();
        statistics.buffered_bytes = shared.memory.used();
        for partition in shared.topics.snapshot().partitions() {
            for receipt in partition.lock().unresolved() {
                statistics.unanswered_batches += 1;
                statistics.unanswered_records += u64::from(receipt.records());
            }
        }
        (statistics.throttled, statistics.throttle_time) = shared.cluster.pauses();
        statistics
    }

    /// Sends everything at once, without `linger.ms`, and waits until each record sent before has its answer.
    ///
    /// The answers themselves are in the deliveries. Failed records whose deliveries were dropped without having been awaited are
    /// reported here, once.
    ///
    /// # Errors
    /// The first error of the records that failed unawaited since the last flush, with their number. [`ErrorKind::Closed`] if the
    /// producer was closed before, or the error that has ended it.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the sending.
    pub async fn flush(&self) -> Result<()> {
        let shared = self.shared();
        let mut unresolved = Vec::new();
        let topics = shared.topics.snapshot();
        for partition in topics.partitions() {
            let mut queue = partition.lock();
            queue.close_open();
            unresolved.extend(queue.unresolved().cloned());
        }
        shared.wake.notify_one();
        for receipt in unresolved {
            receipt.resolved().await;
        }
        shared.take_unawaited()?;
        if *shared.closing.borrow() == Closing::Done {
            return Err(shared.refusal());
        }
        Ok(())
    }

    /// Delivers what was sent, for at most `delivery.timeout.ms`, and ends the producer and all its clones.
    ///
    /// # Errors
    /// As [`close_within`](Self::close_within).
    ///
    /// # Cancel safety
    /// Dropping it does not stop the closing.
    pub async fn close(&self) -> Result<()> {
        self.close_within(self.shared().settings.delivery_timeout).await
    }

    /// Delivers what was sent, for at most `deadline`, and ends the producer and all its clones.
    ///
    /// Always returns by then; what was not delivered fails with [`ErrorKind::Closed`], and says whether it may have
    /// been written.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] with the number of records given up; or as [`flush`](Self::flush), of records that failed unawaited
    /// before.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the closing.
    pub async fn close_within(&self, deadline: Duration) -> Result<()> {
        let shared = self.shared();
        let mut closing = shared.closing.subscribe();
        shared.begin_close(time::after(deadline));
        // The task itself ends by the deadline: nothing here can wait longer.
        let _ = closing.wait_for(|closing| *closing == Closing::Done).await;
        let given_up = shared.given_up.load(Ordering::Relaxed);
        if given_up == 0 {
            return shared.take_unawaited();
        }
        Err(Error::new(
            ErrorKind::Timeout,
            format!("closed with {given_up} records not delivered; their deliveries say what may have been written"),
        )
        .with_hint("give close more time"))
    }

    /// The number of partitions of a topic.
    ///
    /// # Errors
    /// The broker's error, or [`Timeout`](ErrorKind::Timeout) after `max.block.ms`; [`Closed`](ErrorKind::Closed);
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a name that no topic can have.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn partitions_for(&self, topic: &str) -> Result<usize> {
        let shared = self.shared();
        if *shared.closing.borrow() != Closing::Open {
            return Err(shared.refusal());
        }
        shared.learn_topic(topic, time::now() + shared.settings.max_block).await?;
        Ok(shared.topics.snapshot().queues.get(topic).map_or(0, |topic| topic.count))
    }

    /// Bytes of `buffer.memory` in use.
    pub fn buffered_bytes(&self) -> usize {
        self.shared().memory.used()
    }

    /// Why nothing can be written to a topic or a partition at the moment, as far as is known.
    pub(crate) fn why(&self, topic: &str, partition: Option<i32>) -> Option<Error> {
        self.shared().cluster.why_topic(topic, partition)
    }

    /// Whether the topic was found, so that records for it need not wait for that.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.shared().topics.with(|topics| topics.queues.contains_key(topic))
    }

    /// How long a send may wait.
    pub(crate) fn max_block(&self) -> std::time::Duration {
        self.shared().settings.max_block
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl std::fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaProducer")
            .field("buffered_bytes", &self.buffered_bytes())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Never blocks: the task delivers what is left and ends.
        self.shared.begin_close(time::after(self.shared.settings.delivery_timeout));
    }
}

impl Shared {
    /// Refuses new records and has the task drain the rest.
    fn begin_close(&self, deadline: Instant) {
        self.memory.close();
        if let Some(transactions) = &self.transactions {
            transactions.lock().handle_close();
        }
        self.closing.send_if_modified(|closing| {
            self.is_closing.store(true, Ordering::Relaxed);
            let change = match *closing {
                Closing::Open => true,
                Closing::Draining(earlier) => deadline < earlier,
                Closing::Done => false,
            };
            if change {
                *closing = Closing::Draining(deadline);
            }
            change
        });
        self.wake.notify_one();
    }

    /// Nothing this producer sends can succeed any more.
    fn fail_for_good(&self, error: &Error) {
        self.fatal.lock().get_or_insert_with(|| error.clone());
        self.begin_close(time::now());
    }

    /// Why no record is taken now.
    fn refusal(&self) -> Error {
        let transaction =
            || self.transactions.as_ref().and_then(|transactions| transactions.lock().refusal());
        let open = *self.closing.borrow() == Closing::Open;
        self.fatal_error()
            .or_else(|| open.then(transaction).flatten())
            .unwrap_or_else(|| Error::closed("producer"))
    }

    /// A transaction has begun.
    fn accept_records(&self) {
        // Under the lock of `closing`, so that an end that comes meanwhile is not forgotten.
        self.closing.send_if_modified(|closing| {
            if *closing == Closing::Open {
                self.is_closing.store(false, Ordering::Relaxed);
            }
            false
        });
    }

    /// The transaction is over, or has failed.
    fn refuse_records(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    fn fatal_error(&self) -> Option<Error> {
        self.fatal.lock().clone()
    }

    /// The first error of the records that failed and whose deliveries nobody has awaited, nor can any more.
    fn take_unawaited(&self) -> Result<()> {
        let unawaited = || self.unawaited.lock();
        if unawaited().is_empty() {
            return Ok(());
        }
        for partition in self.topics.snapshot().partitions() {
            partition.lock().forget_resolved();
        }
        unawaited().take().map_or(Ok(()), Err)
    }

    /// Nothing is sent any more: every record without an answer gets this one, and none is taken.
    fn end(&self, error: &Error) {
        if error.is_fatal() {
            // Callers that come later get the same error.
            self.fatal.lock().get_or_insert_with(|| error.clone());
        }
        self.is_closing.store(true, Ordering::Relaxed);
        self.memory.close();
        let mut aftermath = Aftermath::default();
        self.topics.end(error, &mut aftermath);
        let undelivered = undelivered(&aftermath);
        if undelivered > 0 {
            tracing::error!(
                records = undelivered,
                %error,
                "the producer has ended with records that were not delivered; close() it, and keep its runtime until that returns"
            );
        }
        self.settle(&mut aftermath);
        self.cluster.end();
        let is_open = self.transactions.as_ref().is_some_and(|transactions| {
            let mut core = transactions.lock();
            let is_open = !core.is_settled();
            // Ended before `closing` says so: whoever sees that finds the transaction ended too.
            core.handle_fatal(error.clone().with_fatal());
            is_open
        });
        self.closing.send_if_modified(|closing| {
            // `close` reports these. If the producer ended by itself, the deliveries tell of it, or the next flush.
            if matches!(*closing, Closing::Draining(_)) && error.kind() == ErrorKind::Closed {
                self.given_up.store(undelivered, Ordering::Relaxed);
                self.left_open.store(is_open, Ordering::Relaxed);
            }
            *closing = Closing::Done;
            true
        });
        if let Some(transactions) = &self.transactions {
            transactions.notify();
        }
    }
}

/// How long the start waits for a broker: long enough for one connection even if `max.block.ms` is shorter.
fn start_limit(cluster: &Cluster, settings: &ProducerSettings) -> Duration {
    settings.max_block.max(cluster.settings().connection_setup_timeout)
}

/// How many records an end leaves without an answer. Batches that were cut in two have several receipts.
fn undelivered(aftermath: &Aftermath) -> u64 {
    let mut counted = crate::sorted::Set::new();
    let left = aftermath.resolved.iter().map(|(receipt, _)| receipt);
    let left = left.filter(|receipt| !receipt.is_resolved() && counted.insert(Arc::as_ptr(receipt)));
    left.map(|receipt| u64::from(receipt.records())).sum()
}
