//! The handles of transactions: [`TransactionalProducer`] and the [`Transaction`] it begins. A record is sent through a
//! transaction only, so that a send outside one does not compile.
//!
//! The handles change the core ([`transaction`](super::transaction)) and wait for what becomes of it; the producer's driver does
//! the rest, so that a dropped future or handle loses nothing and leaves nothing open.

use std::{
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::Duration,
};

use serde::Serialize;

use super::{
    Delivery, KafkaProducer, SendJson, Shared,
    transaction::{CommitTimeout, Core, Offsets, is_of_the_group},
};
use crate::{
    cluster::Cluster,
    config::settings::ProducerSettings,
    driver,
    error::{Error, ErrorKind, Result, code},
    mutex::Mutex,
    record::{ConsumerGroupMetadata, OffsetAndMetadata, ProducerRecord, TopicPartition},
    time::{self, Backoff, Instant},
    watch,
};

/// [`TransactionalProducer::run`] gives up after so many aborted attempts.
const MOST_ATTEMPTS: u32 = 10;

/// The state of a producer's transactions, shared by its handles and its driver.
pub(super) struct Transactions {
    pub(super) id: Arc<str>,
    /// `transaction.timeout.ms`
    pub(super) timeout: Duration,
    core: Mutex<Core>,
    changed: watch::Sender<()>,
}

impl Transactions {
    pub(super) fn new(id: Arc<str>, timeout: Duration, backoff: Backoff) -> Self {
        Self { id, timeout, core: Mutex::new(Core::new(backoff)), changed: watch::Sender::new(()) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Waits until something of the core has changed.
    async fn wait(&self, changed: &mut watch::Receiver<()>, deadline: Instant, what: &str) -> Result<()> {
        driver::check_runtime()?;
        match tokio::time::timeout_at(deadline, changed.changed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::closed("producer")),
            Err(_elapsed) => {
                let error = Error::new(ErrorKind::Timeout, format!("{what} within max.block.ms"))
                    .with_hint("see to the transaction coordinator, or raise max.block.ms");
                Err(match self.lock().trouble() {
                    Some(cause) => error.with_source(cause),
                    None => error,
                })
            }
        }
    }

    /// Wakes the handles that wait for the core.
    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }
}

/// A producer whose records are written in transactions: all of one are seen by `read_committed` consumers, or none.
///
/// Made by [`KafkaInstance::get_transactional_producer`](crate::KafkaInstance::get_transactional_producer) with a
/// `transactional.id` of its own. A second producer of the same id fences the first: what that one does from then on fails
/// with an error for which [`Error::is_fenced`] is true. Brokers remember that until both have done nothing for
/// `transactional.id.expiration.ms` (7 days).
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// let mut producer =
///     kafka.get_transactional_producer_with(|p| p.set("transactional.id", "billing-1")).await?;
/// let transaction = producer.begin().await?;
/// drop(transaction.send("orders", &7).await?); // the commit waits for it
/// drop(transaction.send("invoices", &7).await?);
/// transaction.commit().await?;
/// # Ok(()) }
/// ```
///
/// When it is dropped with a transaction open, the driver aborts that in the background while the runtime runs.
#[derive(Debug)]
pub struct TransactionalProducer {
    producer: KafkaProducer,
}

impl TransactionalProducer {
    /// Starts the producer and fences others of its id.
    pub(crate) async fn start(cluster: Cluster, settings: ProducerSettings) -> Result<Self> {
        let limit = super::start_limit(&cluster, &settings);
        let producer = KafkaProducer::start_transactional(cluster, settings).await?;
        // Made before the id is there: if this future is dropped meanwhile, the handle's drop keeps the driver from
        // asking again.
        let this = Self { producer };
        this.transactions()?.lock().handle_init();
        this.shared().wake.notify_one();
        this.wait(time::after(limit), "the producer could not be initialized", Core::is_initialized).await?;
        Ok(this)
    }

    /// The `transactional.id`.
    pub fn transactional_id(&self) -> &str {
        self.shared().transactions.as_ref().map_or("", |transactions| &transactions.id)
    }

    /// Begins a transaction, once the one before has ended.
    ///
    /// # Errors
    /// A fatal error, after which a new producer must be made; [`ErrorKind::Timeout`] when the end of the one before takes
    /// longer than `max.block.ms`.
    ///
    /// # Cancel safety
    /// If dropped before it returned, nothing was begun that stays open: the next `begin` sees to it.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        let deadline = time::after(self.shared().settings.max_block);
        let mut changed = self.transactions()?.changed.subscribe();
        let number = loop {
            changed.borrow_and_update();
            let begun = self.transactions()?.lock().handle_begin();
            if let Some(begun) = begun {
                break begun?;
            }
            self.shared().wake.notify_one();
            self.transactions()?.wait(&mut changed, deadline, "the transaction before has not ended").await?;
        };
        self.shared().accept_records();
        Ok(Transaction { producer: self, number, ended: false })
    }

    /// Runs `body` in a transaction: commits when it returns `Ok`, aborts when it returns an error, panics or is dropped, and
    /// runs it again when the transaction could only be aborted for a reason that passes (at most ten times).
    ///
    /// Records and offsets of aborted attempts are not seen by `read_committed` consumers; whatever else `body` does happens
    /// again with each attempt.
    ///
    /// # Errors
    /// The body's error, or that of the transaction.
    ///
    /// # Cancel safety
    /// Dropping it aborts, unless brokers were asked to commit already.
    pub async fn run<T>(&mut self, mut body: impl AsyncFnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let client = Arc::clone(self.shared().cluster.settings());
        let mut backoff = Backoff::new(client.retry_backoff, client.retry_backoff_max);
        let mut rng = client.environment.rng();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let transaction = self.begin().await?;
            let error = match body(&transaction).await {
                Ok(value) => match transaction.commit().await {
                    Ok(()) => return Ok(value),
                    Err(error) => error,
                },
                Err(error) => {
                    // The cause of a failed delivery is the transaction's failure, if it has one.
                    let error = transaction.failure().unwrap_or(error).with_possibly_written(false);
                    match transaction.abort().await {
                        // One that takes longer is waited for by the next `begin`.
                        Err(aborting) if aborting.is_fatal() => return Err(aborting),
                        _ => error,
                    }
                }
            };
            if !may_pass(&error) || attempts >= MOST_ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%error, attempts, "the transaction was aborted and is tried again");
            tokio::time::sleep(backoff.next(&mut rng)).await;
        }
    }

    /// Aborts a transaction left open, and ends the producer.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if it was not over by `limit`: readers of committed records wait for `transaction.timeout.ms` then.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the closing.
    pub async fn close_within(self, limit: Duration) -> Result<()> {
        if let Some(transactions) = &self.shared().transactions {
            transactions.lock().handle_abort();
        }
        self.producer.close_within(limit).await?;
        if !self.shared().left_open.load(Ordering::Relaxed) {
            return Ok(());
        }
        let text = "closed before brokers have confirmed the end of the last transaction";
        Err(Error::new(ErrorKind::Timeout, text)
            .with_hint("see to the transaction coordinator, or give close more time"))
    }

    /// As [`close_within`](Self::close_within) `max.block.ms`.
    ///
    /// # Errors
    /// As [`close_within`](Self::close_within).
    ///
    /// # Cancel safety
    /// Dropping it does not stop the closing.
    pub async fn close(self) -> Result<()> {
        let limit = self.shared().settings.max_block;
        self.close_within(limit).await
    }

    /// Why it can do nothing more, once that is so.
    pub(crate) fn fatal(&self) -> Option<Error> {
        self.transactions().ok()?.lock().refusal().filter(Error::is_fatal)
    }

    fn shared(&self) -> &Shared {
        self.producer.shared()
    }

    fn transactions(&self) -> Result<&Transactions> {
        self.shared().transactions.as_ref().ok_or_else(|| Error::closed("producer"))
    }

    /// Waits until the core has an answer.
    async fn wait<T>(
        &self,
        deadline: Instant,
        what: &str,
        mut look: impl FnMut(&Core) -> Option<Result<T>>,
    ) -> Result<T> {
        let transactions = self.transactions()?;
        let mut changed = transactions.changed.subscribe();
        loop {
            changed.borrow_and_update();
            // Read before the core: the core is ended first, so that after `Done` its end cannot be missed.
            let is_done = *self.shared().closing.borrow() == super::Closing::Done;
            let seen = look(&transactions.lock());
            if let Some(seen) = seen {
                return seen;
            }
            if is_done {
                return Err(self.shared().fatal_error().unwrap_or_else(|| Error::closed("producer")));
            }
            transactions.wait(&mut changed, deadline, what).await?;
        }
    }
}

/// Whether a transaction that failed so may succeed when it is tried again.
fn may_pass(error: &Error) -> bool {
    // A commit that may stand must not be made again.
    error.requires_abort() && !error.is_fatal() && !error.possibly_written() && !is_refused(error)
}

/// Whether brokers refuse what was sent, and will refuse it again. Of the codes that are not retriable few pass with another
/// transaction: where the group, the producer's epoch or the log has moved on, and where nobody knows.
pub(crate) fn is_refused(error: &Error) -> bool {
    error.code().is_some_and(|told| {
        let passes = matches!(
            told.0,
            code::UNKNOWN_SERVER_ERROR
                | code::OUT_OF_ORDER_SEQUENCE_NUMBER
                | code::INVALID_PRODUCER_EPOCH
                | code::INVALID_PRODUCER_ID_MAPPING
                | code::INVALID_TXN_STATE
                | code::OPERATION_NOT_ATTEMPTED
                | code::UNKNOWN_PRODUCER_ID
                | code::TRANSACTION_ABORTABLE
        );
        !told.is_retriable() && !passes && !is_of_the_group(told.0) && told.is_known()
    })
}

/// An open transaction. Several tasks may send through it at once.
///
/// Dropping it aborts it in the background; the next [`begin`](TransactionalProducer::begin) waits for that.
#[must_use = "a transaction that is dropped is aborted"]
#[derive(Debug)]
pub struct Transaction<'p> {
    producer: &'p mut TransactionalProducer,
    number: u64,
    ended: bool,
}

impl Transaction<'_> {
    /// Sends `value` as JSON, as [`KafkaProducer::send`] does. The record is seen by `read_committed` consumers once the
    /// transaction is committed; its [`Delivery`] says only that it was written, and need not be awaited.
    ///
    /// # Errors
    /// As [`KafkaProducer::send_record`]; also the error of a transaction that can only be aborted. For that, and for one that
    /// has waited for brokers until the end of `max.block.ms`, [`Error::requires_abort`] is true. Otherwise the record, such as
    /// one that is too large, never was part of the transaction, which may be committed without it (in Java it may not).
    ///
    /// # Cancel safety
    /// If dropped before it returned, nothing was sent.
    pub fn send<'a, V: Serialize + ?Sized>(&'a self, topic: &'a str, value: &'a V) -> SendJson<'a, V> {
        self.producer.producer.send(topic, value)
    }

    /// Sends a record of bytes; as [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    /// If dropped before it returned, nothing was sent.
    pub async fn send_record(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        self.producer.producer.send_record(record).await
    }

    /// Makes a consumer's offsets part of the transaction: they are committed with it, or not at all (KIP-447). Each offset
    /// is that of the next record to be read: an `i64`, or with text and leader epoch an [`OffsetAndMetadata`]. `group`: of
    /// [`KafkaConsumer::group_metadata`](crate::KafkaConsumer::group_metadata), taken before the records were processed, so
    /// that a member that has lost its partitions meanwhile is refused. After an abort the consumer has still read what was not
    /// committed: `seek` to where the transaction began.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a negative offset or a text above 32,767 bytes; one that
    /// [requires to abort](Error::requires_abort), such as that of a group that was rebalanced; [`ErrorKind::Timeout`] after
    /// `max.block.ms`.
    ///
    /// # Cancel safety
    /// If dropped before it returned, the offsets may or may not be part of the transaction: abort it.
    pub async fn send_offsets<O: Into<OffsetAndMetadata>>(
        &self,
        group: &ConsumerGroupMetadata,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<()> {
        let Some(job) = self.add_offsets(group, offsets)? else { return Ok(()) };
        self.producer.shared().wake.notify_one();
        let deadline = time::after(self.producer.shared().settings.max_block);
        let look = |core: &Core| core.is_job_done(job);
        let done =
            self.producer.wait(deadline, "the offsets did not become part of the transaction", look).await;
        // The offsets may still become part of the transaction without the caller knowing it, so that it must not be
        // committed.
        done.map_err(|error| match error.kind() {
            ErrorKind::Timeout => error.with_requires_abort(),
            _ => error,
        })
    }

    /// As [`send_offsets`](Self::send_offsets), but does not wait for it: a commit does, and asks for it at the same time
    /// as what it delivers. Returns the job to wait for, unless there is nothing to do.
    pub(crate) fn add_offsets<O: Into<OffsetAndMetadata>>(
        &self,
        group: &ConsumerGroupMetadata,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<Option<u64>> {
        let offsets: Vec<(_, OffsetAndMetadata)> =
            offsets.into_iter().map(|(partition, offset)| (partition, offset.into())).collect();
        if offsets.is_empty() {
            return Ok(None);
        }
        offsets.iter().try_for_each(|(partition, offset)| offset.check(partition))?;
        let offsets = Offsets { group: group.clone(), offsets };
        self.producer.transactions()?.lock().handle_offsets(offsets).map(Some)
    }

    /// Delivers everything that was sent, and commits.
    ///
    /// # Errors
    /// One that [requires to abort](Error::requires_abort): nothing was committed, and the transaction is being aborted. One
    /// that is [fatal](Error::is_fatal), such as that of a producer that was [fenced](Error::is_fenced): make a new producer.
    /// [`ErrorKind::Timeout`] after `max.block.ms`: if brokers were asked to commit by then, [`Error::possibly_written`] is true,
    /// the driver goes on asking, and the next [`begin`](TransactionalProducer::begin) waits for it; else the transaction is
    /// being aborted. [`Error::possibly_written`] is true for every error after which the transaction may be committed all the
    /// same, such as that of a runtime that ended meanwhile.
    ///
    /// # Cancel safety
    /// Dropping it aborts, unless brokers were asked to commit already.
    pub async fn commit(mut self) -> Result<()> {
        self.ask_to_commit()?;
        self.wait_for_commit().await
    }

    /// As [`commit`](Self::commit), but goes on waiting while brokers were asked to commit and have not said whether they did,
    /// until `give_up` is ready.
    pub(crate) async fn commit_patiently(mut self, give_up: impl Future<Output = ()>) -> Result<()> {
        let mut give_up = std::pin::pin!(give_up);
        let unknown = |error: &Error| error.kind() == ErrorKind::Timeout && error.possibly_written();
        self.ask_to_commit()?;
        loop {
            match self.wait_for_commit().await {
                Err(error) if unknown(&error) && futures_util::poll!(give_up.as_mut()).is_pending() => {
                    tracing::warn!(%error, "the commit is waited for");
                }
                committed => return committed,
            }
        }
    }

    fn ask_to_commit(&self) -> Result<()> {
        self.producer.transactions()?.lock().handle_commit()?;
        self.producer.shared().wake.notify_one();
        Ok(())
    }

    async fn wait_for_commit(&mut self) -> Result<()> {
        let committed = match self.outcome("the transaction was not committed").await {
            Err(error) if error.kind() == ErrorKind::Timeout && !error.is_fatal() => {
                let found = self.producer.transactions()?.lock().handle_commit_timeout(self.number);
                self.producer.shared().wake.notify_one();
                match found {
                    CommitTimeout::Ended(outcome) => outcome,
                    CommitTimeout::CommitSent => Err(error.with_possibly_written(true)),
                    CommitTimeout::Aborting => Err(error.with_requires_abort()),
                }
            }
            committed => committed,
        };
        self.ended = committed.is_ok();
        committed
    }

    /// Discards what was not sent, and has the brokers mark what was as aborted.
    ///
    /// # Errors
    /// A fatal error; [`ErrorKind::Timeout`] after `max.block.ms`, while the driver goes on.
    ///
    /// # Cancel safety
    /// Dropping it does not stop the aborting.
    pub async fn abort(mut self) -> Result<()> {
        self.begin_abort();
        self.ended = true;
        self.outcome("the transaction was not aborted").await
    }

    /// Why the transaction can only be aborted, if so.
    pub fn failure(&self) -> Option<Error> {
        self.producer.transactions().ok()?.lock().refusal()
    }

    async fn outcome(&self, what: &str) -> Result<()> {
        let deadline = time::after(self.producer.shared().settings.max_block);
        let number = self.number;
        self.producer.wait(deadline, what, |core| core.outcome(number)).await
    }

    fn begin_abort(&self) {
        if let Ok(transactions) = self.producer.transactions() {
            transactions.lock().handle_abort();
            self.producer.shared().wake.notify_one();
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.producer.shared().refuse_records();
        if !self.ended {
            self.begin_abort();
        }
    }
}
