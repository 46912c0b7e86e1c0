//! Consume, transform, produce: exactly once. The records written and the offsets read are committed in one transaction, so that
//! a crash, a rebalance or a broker that goes leaves neither a gap nor a repetition.
//!
//! It owns a consumer and a producer of transactions and decides when a transaction ends. It never commits what belongs
//! to partitions that the consumer has lost: the coordinator refuses the group metadata from before (KIP-447).

mod input;
mod patience;

use std::{future::Future, pin::pin, time::Duration};

#[cfg(feature = "signal")]
use futures_core::Stream;
use futures_util::future::{FutureExt as _, Shared, join, try_join_all};

use self::{
    input::{TransactionInput, hand_out_again, put_back},
    patience::{patiently, pauses, poll_patiently},
};
use super::{HURRY, KafkaInstance, LogSubject, logged};
#[cfg(feature = "signal")]
use super::{message::CancellationToken, signals};
use crate::{
    config::{ConsumerConfig, IsolationLevel, ProducerConfig},
    consumer::{ConsumerRecords, KafkaConsumer, PartitionRecords, RecordRef, acknowledge::Life},
    error::{Error, ErrorKind, Result, code},
    producer::{Transaction, TransactionalProducer, is_refused},
    record::{OffsetAndMetadata, TopicPartition},
    sorted::Map,
    telemetry::spans,
    time::{self, Instant},
};

/// `transaction.timeout.ms` unless set. Kafka Streams: `StreamsConfig`, the same for exactly-once.
const SHORT_TIMEOUT: Duration = Duration::from_secs(10);

/// `max.poll.interval.ms` unless set.
const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// How often in a row a run with a made-up name replaces its producer because the coordinator has ended its transaction.
const MOST_TIMED_OUT: u32 = 10;

/// Brokers' `transaction.max.timeout.ms`.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(900);

const PLACE: LogSubject =
    LogSubject { controller: "dtkafka::ExactlyOnce::run", subject: "Kafka ExactlyOnce" };

/// Reads topics, hands each record to a body that may write others, and commits both in transactions.
///
/// Records of one partition come in order, one at a time; partitions are worked on at the same time. What the body does besides
/// writing through its transaction happens again when a transaction has to be aborted.
///
/// There is no error policy: a body that returns an error ends the run, and the next one begins with the same record. What cannot
/// be handled at all is written to a topic of its own, in the same transaction, and the body returns `Ok`:
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// # use dtkafka::ExactlyOnce;
/// ExactlyOnce::new(&kafka, ["orders"], "invoicing")
///     .run(async |record, output| {
///         let Ok(order) = record.json::<u64>() else {
///             drop(output.send_record(record.forward_to("orders-dead")).await?);
///             return Ok(());
///         };
///         drop(output.send("invoices", &order).await?);
///         Ok(())
///     })
///     .await
/// # }
/// ```
///
/// To `tokio::spawn` a run, let the body own what it uses (`async move`, an `Arc` or a clone): the compiler does not see that the
/// future of one that borrows may change threads, and says that `Send` is not general enough.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::ExactlyOnce;
///
/// ExactlyOnce::new(&kafka, ["orders"], "invoicing")
///     .transactional_id("invoicing-1")
///     .run(async |record, output| {
///         let order: u64 = record.json()?;
///         drop(output.send("invoices", &order).await?); // the commit waits for it
///         Ok(())
///     })
///     .await
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is run"]
pub struct ExactlyOnce {
    kafka: KafkaInstance,
    topics: Vec<String>,
    group: String,
    transactional_id: Option<String>,
    interval: Duration,
    most_records: usize,
}

/// Places where the reset policy had partitions begin, with the lives that began there, and that the group does not know
/// yet.
type Places = Map<TopicPartition, (Life, i64)>;

/// How a transaction failed.
enum Failed {
    /// It is certainly not committed: its records are processed again.
    Again(Error),
    /// The run ends with this error.
    ForGood(Error),
    /// The body returned an error. It ends the run even if the error, of another producer perhaps, looks like one that
    /// passes.
    InBody(Error),
}

impl ExactlyOnce {
    /// Reads these topics as a member of this group.
    pub fn new<T: Into<String>>(
        kafka: &KafkaInstance,
        from: impl IntoIterator<Item = T>,
        group: impl Into<String>,
    ) -> Self {
        Self {
            kafka: kafka.clone(),
            topics: from.into_iter().map(Into::into).collect(),
            group: group.into(),
            transactional_id: None,
            interval: Duration::from_millis(100),
            most_records: 10_000,
        }
    }

    /// The `transactional.id`: one for each instance that runs at the same time, the same one after its restart, so that what a
    /// crash left open is ended at once, and an instance that was only thought dead is fenced.
    ///
    /// Default: that of the configuration; else the group and `group.instance.id`, which has the same rule; else a name made
    /// up for this run, since nothing tells two instances apart. Then readers, and whoever takes over the partitions, wait up to
    /// `transaction.timeout.ms` for what a crash left open. That is 10 s here unless set, or ten times the
    /// [interval](Self::commit_interval), and not 60 s as for other producers.
    pub fn transactional_id(mut self, id: impl Into<String>) -> Self {
        self.transactional_id = Some(id.into());
        self
    }

    /// How long a transaction gathers records before it is committed. Default: 100 ms.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How many records a transaction gathers at most (fewer if the body is slow: it ends after half of `transaction.timeout.ms`,
    /// or of a shorter `max.poll.interval.ms`, between two records), rounded up to whole polls. Default: 10,000.
    pub fn commit_records(mut self, records: usize) -> Self {
        self.most_records = records.max(1);
        self
    }

    /// Runs until the body fails or the producer cannot continue. Waits for brokers that are away, at its start too.
    ///
    /// # Errors
    /// The body's error, whose transaction is aborted; a [fatal](Error::is_fatal) error such as that of a second instance with
    /// the same `transactional.id`, or of a transaction that stayed open for longer than `transaction.timeout.ms` (with a name
    /// made up for the run only at the tenth in a row); what consumer and producer refuse at the start, which is logged. Whatever
    /// it is: another run goes on where the last transaction ended.
    ///
    /// # Cancel safety
    /// Dropping it aborts the open transaction, unless brokers were asked to commit already; nothing is lost or repeated.
    pub async fn run(self, body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>) -> Result<()> {
        self.run_until(std::future::pending::<()>(), body).await
    }

    /// As [`run`](Self::run), until `shutdown` is ready: then the open transaction is committed, and the group is left.
    ///
    /// Where brokers do not answer that takes up to `max.block.ms` (1 minute) for the commit after the body has ended, as long for the
    /// abort where there is none, and 30 s for the ends of producer and consumer. Dropping the future ends it at once.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_until(
        self,
        shutdown: impl Future<Output = ()>,
        body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        self.run_until_either(shutdown, std::future::pending(), body).await
    }

    /// As [`run_until`](Self::run_until). Once `hurry` is ready the body is not waited for; it is polled until then, and may be what makes
    /// `shutdown` ready.
    async fn run_until_either(
        self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
        body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let (shutdown, hurry) = (pin!(shutdown), pin!(hurry));
        let (shutdown, hurry) = (shutdown.shared(), hurry.shared());
        // The producer first: it ends what a predecessor left open, before positions are looked up.
        let start = async {
            let producer = patiently(|| self.start_producer()).await?;
            Ok((producer, self.start_consumer().await?))
        };
        let (mut producer, consumer) = tokio::select! {
            biased;
            () = shutdown.clone() => return Ok(()),
            () = hurry.clone() => return Ok(()),
            started = start => logged(PLACE, started)?,
        };
        let outcome = tokio::select! {
            biased;
            worked = self.work(&mut producer, &consumer, shutdown, &body) => worked,
            () = hurry.clone() => {
                tracing::warn!("told to end a second time: the open transaction is aborted");
                Ok(())
            }
        };
        let limit = Duration::from_secs(30);
        let end = join(producer.close_within(limit), consumer.close(limit));
        tokio::select! {
            biased;
            (closed, left) = end => outcome.and(closed).and(left),
            () = hurry.then(|()| tokio::time::sleep(HURRY)) => outcome,
        }
    }

    /// As [`run_until`](Self::run_until), until the process is told to end: by SIGTERM, SIGINT (ctrl-c), or what the system has in
    /// their place. Needs the feature `signal`, which is on by default.
    ///
    /// A second signal, a second or more after the first, does not wait for the body: the open transaction is aborted, and the
    /// group left, for 5 seconds at most. From the first call on, for as long as the process lives, these signals no longer end it
    /// by themselves.
    ///
    /// # Errors
    /// As [`run`](Self::run); also if no signal can be listened for.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    #[cfg(feature = "signal")]
    pub async fn run_until_signal(
        self,
        body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        self.run_until_told(signals::listen()?, body).await
    }

    /// [`run`](Self::run) until the first of these. With the second it ends where it stands.
    #[cfg(feature = "signal")]
    async fn run_until_told(
        self,
        signals: impl Stream<Item = Result<()>>,
        body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let (told, mut failure) = (CancellationToken::new(), Ok(()));
        let second = signals::second(signals, |heard| {
            failure = heard;
            if failure.is_ok() {
                tracing::info!("the process is told to end: the last transaction is committed");
            }
            told.cancel();
        });
        let outcome = self.run_until_either(told.cancelled(), second, body).await;
        failure.and(outcome)
    }

    /// The `transactional.id`, if anything names one.
    fn named(&self) -> Option<String> {
        let configured = |name: &str| self.kafka.config().get(name);
        let of_instance = || Some(format!("{}-{}", self.group, configured("group.instance.id")?));
        self.transactional_id.clone().or_else(|| configured("transactional.id")).or_else(of_instance)
    }

    async fn start_producer(&self) -> Result<TransactionalProducer> {
        let id = match self.named() {
            Some(id) => id,
            None => {
                let number = self.kafka.config().resolve_client()?.environment.rng().next_u64();
                format!("{}-{number:016x}", self.group)
            }
        };
        let settings = ProducerConfig::new().set("transactional.id", id);
        let settings = match self.kafka.config().get("transaction.timeout.ms") {
            None => settings.set("transaction.timeout.ms", self.open_at_most().as_millis() as u64),
            Some(_) => settings,
        };
        let (cluster, settings) = self.kafka.begin_transactional(settings)?;
        // One client for as long as brokers are away: each would log anew that they are.
        cluster.connect(time::after(Duration::MAX)).await?;
        TransactionalProducer::start(cluster, settings).await
    }

    /// `transaction.timeout.ms` where it is not set: as short as Kafka Streams has it, because readers wait for what a crash has
    /// left open.
    fn open_at_most(&self) -> Duration {
        SHORT_TIMEOUT.max(self.interval.saturating_mul(10)).min(LONGEST_TIMEOUT)
    }

    /// Half of `transaction.timeout.ms`: the other half is for delivering and committing. A member that does not poll for longer
    /// than `max.poll.interval.ms` is not let commit, whatever the transaction's time.
    fn worked_on_at_most(&self) -> Duration {
        let between_polls = self.milliseconds("max.poll.interval.ms").unwrap_or(POLL_INTERVAL);
        let limit = self.milliseconds("transaction.timeout.ms").unwrap_or_else(|| self.open_at_most());
        limit.min(between_polls) / 2
    }

    fn milliseconds(&self, name: &str) -> Option<Duration> {
        self.kafka.config().get(name)?.parse().ok().map(Duration::from_millis)
    }

    async fn start_consumer(&self) -> Result<KafkaConsumer> {
        let settings = ConsumerConfig::new()
            .set("group.id", &self.group)
            .set("enable.auto.commit", false)
            .set("isolation.level", IsolationLevel::ReadCommitted);
        let consumer = self.kafka.begin_consumer(settings)?;
        consumer.subscribe(&self.topics)?;
        patiently(|| consumer.connect()).await?;
        Ok(consumer)
    }

    async fn work(
        &self,
        producer: &mut TransactionalProducer,
        consumer: &KafkaConsumer,
        shutdown: Shared<impl Future<Output = ()>>,
        body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut places, mut timed_out) = (Places::new(), 0);
        let mut backoff = pauses();
        let mut rng = self.kafka.config().resolve_client()?.environment.rng();
        loop {
            let polled = tokio::select! {
                biased;
                () = shutdown.clone() => return Ok(()),
                polled = poll_patiently(consumer, &mut rng) => polled,
            };
            let records = polled?;
            let (mut taken, is_empty) = (TransactionInput::default(), records.is_empty());
            // What was polled counts as taken before anything can fail, so that it comes again.
            taken.note(consumer, &records);
            places
                .extend(consumer.take_decided().into_iter().map(|(key, life, offset)| (key, (life, offset))));
            let outcome = match commit_places(producer, consumer, &mut places, shutdown.clone()).await {
                // Another instance may have taken over since, which must end the loop even if no more records come.
                Ok(()) if is_empty => producer.fatal().map_or(Ok(()), |error| Err(Failed::ForGood(error))),
                // The shutdown came first.
                Ok(()) if !places.is_empty() => Ok(()),
                Ok(()) => {
                    self.transaction(producer, consumer, records, &mut taken, shutdown.clone(), body).await
                }
                failed => failed,
            };
            match outcome {
                Ok(()) if is_empty => {}
                Ok(()) => {
                    backoff.reset();
                    timed_out = 0;
                }
                // Nobody else can have a name that was made up for this run, so it was the coordinator that ended a
                // transaction which was open for too long: after an outage, or because of a slow body. Too many such ends in
                // a row end the run, or its record would be worked on for ever.
                Err(Failed::Again(error) | Failed::ForGood(error))
                    if self.named().is_none() && is_timed_out(&error) && timed_out + 1 < MOST_TIMED_OUT =>
                {
                    timed_out += 1;
                    tracing::warn!(%error, "a transaction was open for longer than transaction.timeout.ms; its records are processed again");
                    taken.rewind(consumer);
                    tokio::time::sleep(backoff.next(&mut rng)).await;
                    *producer = tokio::select! {
                        biased;
                        () = shutdown.clone() => return Ok(()),
                        started = patiently(|| self.start_producer()) => logged(PLACE, started)?,
                    };
                }
                Err(Failed::Again(error)) if self.named().is_some() || !is_timed_out(&error) => {
                    tracing::warn!(%error, "a transaction was aborted; its records are processed again");
                    taken.rewind(consumer);
                    tokio::time::sleep(backoff.next(&mut rng)).await;
                }
                Err(Failed::Again(error) | Failed::ForGood(error) | Failed::InBody(error)) => {
                    return Err(error);
                }
            }
        }
    }

    /// One transaction: what has been polled, and what comes until it is time to commit.
    async fn transaction(
        &self,
        producer: &mut TransactionalProducer,
        consumer: &KafkaConsumer,
        records: ConsumerRecords,
        taken: &mut TransactionInput,
        shutdown: Shared<impl Future<Output = ()>>,
        body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<(), Failed> {
        let until = time::after(self.interval);
        let transaction = tokio::select! {
            biased;
            begun = producer.begin() => begun.map_err(failed)?,
            () = shutdown.clone() => return Ok(()),
        };
        let input = Input { consumer, records, taken };
        if let Err(error) = self.work_until(until, &transaction, input, shutdown.clone(), body).await {
            return Err(abort_after(transaction, error).await);
        }
        commit(transaction, consumer, taken, shutdown).await
    }

    /// Hands records to the body, those that were polled and those that come until it is time to commit.
    async fn work_until(
        &self,
        until: Instant,
        transaction: &Transaction<'_>,
        Input { consumer, mut records, taken }: Input<'_>,
        shutdown: Shared<impl Future<Output = ()>>,
        body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let late = time::after(self.worked_on_at_most());
        // Bounded by `late` also while no more records come.
        let until = until.min(late);
        loop {
            let is_late = work_on(consumer, transaction, &records, taken, late, body).await?;
            let now = time::now();
            if is_late || taken.records >= self.most_records || now >= until {
                return Ok(());
            }
            let more = tokio::select! {
                biased;
                () = shutdown.clone() => return Ok(()),
                more = consumer.poll(until - now) => more,
            };
            // An error of the consumer ends the gathering. The next poll, outside of the transaction, reports it.
            let Ok(more) = more else { return Ok(()) };
            records = more;
            // Records behind a place that the group does not know yet are not worked on (see `commit_places`). What was
            // worked on already is committed first: if the reset policy was asked because the log begins later now, it
            // could not be read again after an abort.
            if consumer.has_decided() {
                put_back(consumer, &records);
                return Ok(());
            }
            taken.note(consumer, &records);
        }
    }
}

/// What a transaction begins with.
struct Input<'a> {
    consumer: &'a KafkaConsumer,
    records: ConsumerRecords,
    taken: &'a mut TransactionInput,
}

/// Aborts the transaction because of an error of the body, the producer or the group.
async fn abort_after(transaction: Transaction<'_>, error: Error) -> Failed {
    let failure = transaction.failure();
    let is_ours = failure.is_some() || error.requires_abort() || is_regrouped(&error);
    let error = failure.unwrap_or(error).with_possibly_written(false);
    match transaction.abort().await {
        Err(aborting) if aborting.is_fatal() => Failed::ForGood(aborting),
        // An abort that takes longer goes on, and the next `begin` waits for it.
        _ if is_ours => failed(error),
        _ => Failed::InBody(error),
    }
}

/// Commits what was taken, with the records that the body has sent.
async fn commit(
    transaction: Transaction<'_>,
    consumer: &KafkaConsumer,
    taken: &TransactionInput,
    shutdown: Shared<impl Future<Output = ()>>,
) -> Result<(), Failed> {
    if taken.is_cut(consumer) {
        transaction.abort().await.map_err(failed)?;
        return Err(Failed::Again(regrouped()));
    }
    let Some(group) = &taken.group else {
        return transaction.abort().await.map_err(failed);
    };
    let offsets = taken.offsets.iter().map(|(partition, span)| {
        let leader_epoch = span.epoch;
        (partition.clone(), OffsetAndMetadata { leader_epoch, ..OffsetAndMetadata::new(span.next) })
    });
    transaction.add_offsets(group, offsets).map_err(failed)?;
    transaction.commit_patiently(shutdown).await.map_err(failed)?;
    for (partition, span) in taken.offsets.iter().filter(|(_, span)| span.is_late) {
        hand_out_again(consumer, partition, span.life, span.next);
    }
    Ok(())
}

/// Hands the records to the body: those of a partition one after the other, partitions at the same time. True if the time
/// is over before all were handed out: the rest is for another transaction, since this one must end before its
/// coordinator ends it.
async fn work_on(
    consumer: &KafkaConsumer,
    transaction: &Transaction<'_>,
    records: &ConsumerRecords,
    taken: &mut TransactionInput,
    late: Instant,
    body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
) -> Result<bool> {
    if records.is_empty() {
        return Ok(false);
    }
    // The membership under which the records were handed out: taken before they are worked on, and then checked to be
    // unchanged.
    let group = consumer.group_metadata()?;
    let live = records.iter().all(|(partition, part)| consumer.is_live(partition, part.life()));
    let moved = taken.group.as_ref().is_some_and(|known| *known != group);
    if !live || moved || taken.is_cut(consumer) {
        return Err(regrouped());
    }
    taken.group = Some(group);
    let work = records.iter().map(async |(partition, part)| {
        Ok::<_, Error>((partition, work_on_partition(part, transaction, late, body).await?))
    });
    let mut is_late = false;
    for (partition, rest) in try_join_all(work).await? {
        if let (Some((rest, epoch)), Some(span)) = (rest, taken.offsets.get_mut(partition)) {
            (span.next, span.epoch, span.is_late) = (rest, epoch, true);
            is_late = true;
        }
    }
    Ok(is_late)
}

/// Returns the offset of the first record that there was no time for, and the epoch of the one before. The first record
/// of all is always worked on.
async fn work_on_partition(
    part: &PartitionRecords,
    transaction: &Transaction<'_>,
    late: Instant,
    body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
) -> Result<Option<(i64, Option<i32>)>> {
    let mut epoch = None;
    for (place, record) in part.into_iter().enumerate() {
        if place > 0 && time::now() >= late {
            return Ok(Some((record.offset(), epoch)));
        }
        epoch = record.leader_epoch();
        let place = (record.partition(), record.offset());
        let call =
            spans::process(record.topic(), place, 1, None, |name| record.header_str(name).map(str::to_owned));
        // Called in there as well: a body may send before its first wait.
        call.run(async { body(record, transaction).await }).await?;
    }
    Ok(None)
}

/// Commits the places where the reset policy had partitions begin, before anything of them is worked on. Otherwise, after
/// a run that commits nothing, `latest` would send the next one to the end of that time, past records that were written
/// meanwhile.
async fn commit_places(
    producer: &mut TransactionalProducer,
    consumer: &KafkaConsumer,
    places: &mut Places,
    shutdown: Shared<impl Future<Output = ()>>,
) -> Result<(), Failed> {
    if places.is_empty() {
        return Ok(());
    }
    // Taken before the assignment is looked at, so that the coordinator refuses the commit after a rebalance in between.
    let group = consumer.group_metadata().map_err(failed)?;
    places.retain(|partition, (life, _)| consumer.is_assigned_since(partition, *life));
    let offsets: Vec<_> =
        places.iter().map(|(partition, (_, offset))| (partition.clone(), *offset)).collect();
    let transaction = tokio::select! {
        biased;
        begun = producer.begin() => begun.map_err(failed)?,
        () = shutdown.clone() => return Ok(()),
    };
    transaction.add_offsets(&group, offsets).map_err(failed)?;
    transaction.commit_patiently(shutdown).await.map_err(failed)?;
    places.clear();
    Ok(())
}

/// What to do after a failure of the producer. A time-out passes. A commit that may have been carried out is never
/// repeated, and what brokers refuse they would refuse again.
fn failed(error: Error) -> Failed {
    let passing = error.requires_abort() || is_regrouped(&error) || error.kind() == ErrorKind::Timeout;
    match passing && !error.is_fatal() && !error.possibly_written() && !is_refused(&error) {
        true => Failed::Again(error),
        false => Failed::ForGood(error),
    }
}

/// Whether the coordinator has ended a transaction that was open for too long, provided that nobody else can have taken
/// over: then it fences the producer, or says that there is nothing to commit.
fn is_timed_out(error: &Error) -> bool {
    let is_over = error.code().is_some_and(|told| told.0 == code::INVALID_TXN_STATE);
    (error.is_fenced() || is_over) && !error.possibly_written()
}

fn regrouped() -> Error {
    Error::from_code("JoinGroup", code::REBALANCE_IN_PROGRESS).with_requires_abort()
}

fn is_regrouped(error: &Error) -> bool {
    error.code().is_some_and(|told| told.0 == code::REBALANCE_IN_PROGRESS)
}

#[cfg(test)]
mod tests;
