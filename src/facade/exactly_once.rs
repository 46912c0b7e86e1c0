//! Consume, transform, produce: exactly once. The records written and the offsets read are committed in one transaction, so that
//! a crash, a rebalance or a broker that goes leaves neither a gap nor a repetition.
//!
//! It owns a consumer and a producer of transactions and decides when a transaction ends. It never commits what belongs to
//! partitions that the consumer has lost: the group's metadata of before refuses that (KIP-447).

use std::{collections::BTreeMap, future::Future, pin::pin, time::Duration};

use futures_util::future::try_join_all;

use super::KafkaInstance;
use crate::{
    config::IsolationLevel,
    consumer::{ConsumerRecords, KafkaConsumer, PartitionRecords, RecordRef},
    error::{Error, Result, code},
    producer::{Transaction, TransactionalProducer},
    record::{ConsumerGroupMetadata, TopicPartition},
    time::{self, Backoff},
};

/// Reads topics, hands each record to a body that may write others, and commits both in transactions.
///
/// Records of one partition come in order, one at a time; partitions are worked on at the same time. What the body does besides
/// writing through its transaction happens again when a transaction has to be aborted.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::ExactlyOnce;
///
/// ExactlyOnce::new(&kafka, ["orders"], "invoicing")
///     .transactional_id("invoicing-1")
///     .run(async |record, output| {
///         let order: u64 = record.json()?;
///         output.send("invoices", &order).await?;
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

/// What one transaction has taken in.
#[derive(Default)]
struct Taken {
    /// By partition: the first offset handed out, and the one behind the last.
    offsets: BTreeMap<TopicPartition, (i64, i64)>,
    group: Option<ConsumerGroupMetadata>,
    records: usize,
}

impl ExactlyOnce {
    /// Of these topics, as a member of this group.
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
    /// crash left open is ended at once. Default: that of the configuration; without one a name made up for this run, with
    /// which others wait up to `transaction.timeout.ms` for what a crash left open.
    pub fn transactional_id(mut self, id: impl Into<String>) -> Self {
        self.transactional_id = Some(id.into());
        self
    }

    /// How long a transaction takes in records before it is committed. Default: 100 ms.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How many records a transaction takes in at most, rounded up to whole polls. Default: 10,000.
    pub fn commit_records(mut self, records: usize) -> Self {
        self.most_records = records.max(1);
        self
    }

    /// Runs until the body fails or the producer can do nothing more.
    ///
    /// # Errors
    /// The body's error, whose transaction is aborted; a [fatal](Error::is_fatal) error such as that of a second instance with
    /// the same `transactional.id`; what consumer and producer refuse at the start.
    ///
    /// # Cancel safety
    /// Dropping it aborts the open transaction, unless brokers were asked to commit already; nothing is lost or repeated.
    pub async fn run(self, body: impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>) -> Result<()> {
        self.run_until(std::future::pending::<()>(), body).await
    }

    /// As [`run`](Self::run), until `shutdown` is ready: then the open transaction is committed, and the group is left.
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
        // The producer first: it ends what a predecessor left open, before positions are looked up.
        let mut producer = self.start_producer().await?;
        let consumer = self.start_consumer().await?;
        let outcome = self.work(&mut producer, &consumer, shutdown, &body).await;
        let limit = Duration::from_secs(30);
        let closed = producer.close_within(limit).await;
        let left = consumer.close(limit).await;
        outcome.and(closed).and(left)
    }

    async fn start_producer(&self) -> Result<TransactionalProducer> {
        let configured = self.kafka.config().get("transactional.id");
        let id = match self.transactional_id.clone().or(configured) {
            Some(id) => id,
            None => {
                let number = self.kafka.config().resolve_client()?.environment.rng().next_u64();
                format!("{}-{number:016x}", self.group)
            }
        };
        self.kafka.get_transactional_producer_with(|p| p.set("transactional.id", id)).await
    }

    async fn start_consumer(&self) -> Result<KafkaConsumer> {
        let settings = |c: crate::ConsumerConfig| {
            c.set("group.id", &self.group)
                .set("enable.auto.commit", false)
                .set("isolation.level", IsolationLevel::ReadCommitted)
        };
        self.kafka.get_consumer_with(self.topics.iter().map(String::as_str), settings).await
    }

    async fn work(
        &self,
        producer: &mut TransactionalProducer,
        consumer: &KafkaConsumer,
        shutdown: impl Future<Output = ()>,
        body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut shutdown = pin!(shutdown);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut rng = self.kafka.config().resolve_client()?.environment.rng();
        loop {
            let polled = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                polled = consumer.poll(Duration::from_secs(1)) => polled,
            };
            let records = match polled {
                Ok(records) if records.is_empty() => continue,
                Ok(records) => records,
                Err(error) if error.is_retriable() => {
                    tracing::warn!(%error, "the consumer will go on");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut taken = Taken::default();
            let done = self.transaction(producer, consumer, records, &mut taken, body).await;
            match done {
                Ok(()) => backoff.reset(),
                Err(error) if is_aborted(&error) => {
                    tracing::warn!(%error, "a transaction was aborted; its records are processed again");
                    rewind(consumer, &taken);
                    tokio::time::sleep(backoff.next(&mut rng)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One transaction: what has been polled, and what comes until it is time to commit.
    async fn transaction(
        &self,
        producer: &mut TransactionalProducer,
        consumer: &KafkaConsumer,
        mut records: ConsumerRecords,
        taken: &mut Taken,
        body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
    ) -> Result<()> {
        let until = time::after(self.interval);
        // What was polled counts as taken before anything can fail, so that it comes again.
        note(taken, &records);
        let transaction = producer.begin().await?;
        loop {
            match work_on(consumer, &transaction, &records, taken, body).await {
                Ok(()) => {}
                Err(error) => {
                    let error = transaction.failure().unwrap_or(error);
                    transaction.abort().await?;
                    return Err(error);
                }
            }
            let now = time::now();
            if taken.records >= self.most_records || now >= until {
                break;
            }
            // Whatever is wrong with the consumer is seen by the next poll outside of the transaction.
            records = match consumer.poll(until - now).await {
                Ok(more) => more,
                Err(_) => break,
            };
            note(taken, &records);
        }
        let Some(group) = taken.group.clone() else { return transaction.abort().await };
        let offsets = taken.offsets.iter().map(|(partition, (_, next))| (partition.clone(), *next));
        let offsets: Vec<_> = offsets.collect();
        transaction.send_offsets(&group, offsets).await?;
        transaction.commit().await
    }
}

/// Hands the records to the body: those of a partition one after the other, partitions at the same time.
async fn work_on(
    consumer: &KafkaConsumer,
    transaction: &Transaction<'_>,
    records: &ConsumerRecords,
    taken: &mut Taken,
    body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    // The place in the group under which they were handed out: taken before they are worked on, and checked to be still that.
    let group = consumer.group_metadata()?;
    let live = records.iter().all(|(partition, part)| consumer.is_live(partition, part.life()));
    if !live || taken.group.as_ref().is_some_and(|known| *known != group) {
        return Err(Error::from_code("JoinGroup", code::REBALANCE_IN_PROGRESS).with_requires_abort());
    }
    taken.group = Some(group);
    let work = records.iter().map(|(_, part)| work_on_partition(part, transaction, body));
    try_join_all(work).await.map(drop)
}

async fn work_on_partition(
    part: &PartitionRecords,
    transaction: &Transaction<'_>,
    body: &impl AsyncFn(RecordRef<'_>, &Transaction<'_>) -> Result<()>,
) -> Result<()> {
    for record in part {
        body(record, transaction).await?;
    }
    Ok(())
}

fn note(taken: &mut Taken, records: &ConsumerRecords) {
    for (partition, part) in records {
        let (Some(first), Some(last)) = (part.iter().next(), part.iter().last()) else { continue };
        let place = taken.offsets.entry(partition.clone()).or_insert_with(|| (first.offset(), 0));
        place.1 = last.offset() + 1;
        taken.records += part.len();
    }
}

/// Whether the records can be processed again in another transaction.
fn is_aborted(error: &Error) -> bool {
    let regrouped = error.code().is_some_and(|told| told.0 == code::REBALANCE_IN_PROGRESS);
    (error.requires_abort() || regrouped) && !error.is_fatal()
}

/// Has the consumer hand out again what was aborted. A partition it has lost is its next owner's.
fn rewind(consumer: &KafkaConsumer, taken: &Taken) {
    let assigned = consumer.assignment();
    for (partition, (first, _)) in &taken.offsets {
        if assigned.contains(partition)
            && let Err(error) = consumer.seek(partition, *first)
        {
            tracing::debug!(%error, "the partition was lost meanwhile");
        }
    }
}
