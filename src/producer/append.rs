//! The path of every record into its partition's batch, and the slow paths beside it: a topic that is not known, memory that is
//! short, interceptors. It never sends.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Delivery, OutgoingRecord, Shared,
    accumulator::{Appended, Parts},
    memory::Memory,
    partitioner::partition_of,
    plugins::Partitions,
    topics::{PartitionQueue, TopicQueues},
};
use crate::{
    batch,
    cluster::{Create, Metadata},
    driver,
    error::{Error, ErrorCode, ErrorKind, Result, code},
    record::{ProducerRecord, check_topic},
    time::{self, Instant},
    watch,
};

/// The outcome of one attempt to append.
pub(super) enum Attempt {
    Done(Delivery),
    Wait(Wait),
}

/// What an append must wait for.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    Topic,
    /// The record names a partition that the topic does not have, as far as is known: the number is how many it has.
    Partition(usize),
    Memory(usize),
}

/// What the user's partitioner has said.
enum PartitionChoice {
    /// Nothing: the topic is not known yet.
    Unknown,
    /// The record's own partition counts, else the rules for its key.
    Anywhere,
    Chosen(i32),
}

impl Shared {
    pub(super) fn append(&self, record: &ProducerRecord<'_>, credit: &mut usize) -> Result<Attempt> {
        if self.is_closing.load(Ordering::Relaxed) {
            return Err(self.refusal());
        }
        let parts = self.check(record)?;
        let partition = match self.ask_partitioner(record)? {
            PartitionChoice::Unknown => return Ok(Attempt::Wait(Wait::Topic)),
            PartitionChoice::Anywhere => record.partition,
            PartitionChoice::Chosen(partition) => Some(partition),
        };
        self.topics.with(|topics| {
            let Some(topic) = topics.queues.get(record.topic) else { return Ok(Attempt::Wait(Wait::Topic)) };
            let Some(partition) = self.choose_partition(topic, partition, &parts) else {
                return Ok(Attempt::Wait(match record.partition {
                    // The partitioner chose among more partitions than the topic has by now.
                    None => Wait::Topic,
                    Some(_) => Wait::Partition(topic.count),
                }));
            };
            let mut queue = partition.lock();
            match queue.append(&parts, time::now, &self.memory, credit) {
                Appended::Done { delivery, wake, schedule } => {
                    drop(queue);
                    if schedule {
                        self.scheduled.lock().push(Arc::clone(partition));
                    }
                    if wake {
                        self.wake.notify_one();
                    }
                    Ok(Attempt::Done(delivery))
                }
                Appended::NeedMemory(bytes) => Ok(Attempt::Wait(Wait::Memory(bytes))),
                Appended::Ended => {
                    drop(queue);
                    Err(self.refusal())
                }
            }
        })
    }

    /// Appends for a producer with interceptors: they see the record once, whatever it waits for, and are told what
    /// became of it.
    pub(super) async fn append_intercepted(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        let interceptors = &self.settings.plugins.interceptors;
        let changed = interceptors.on_send(record);
        let sent = self.append_shown(&changed).await;
        interceptors.watch(changed.topic(), sent)
    }

    /// Appends a record that interceptors have seen already; they are told what became of it.
    pub(super) async fn append_shown(&self, record: &OutgoingRecord<'_>) -> Result<Delivery> {
        let record = record.borrowed();
        match self.append(&record, &mut 0)? {
            Attempt::Done(delivery) => Ok(delivery),
            Attempt::Wait(wait) => self.append_waiting(&record, wait).await,
        }
    }

    /// The slow path. Brokers that stay away for too long fail the transaction, which can be tried again; a topic that is not there
    /// is for the caller to judge.
    pub(super) async fn append_waiting(&self, record: &ProducerRecord<'_>, wait: Wait) -> Result<Delivery> {
        let is_missing = |told: ErrorCode| told.0 == code::UNKNOWN_TOPIC_OR_PARTITION;
        self.wait_and_append(record, wait).await.map_err(|error| {
            let passes = error.is_retriable() && !error.code().is_some_and(is_missing);
            match self.transactions.as_ref().filter(|_| passes) {
                Some(transactions) => {
                    let error = error.with_requires_abort();
                    transactions.lock().handle_failure(error.clone(), false);
                    transactions.notify();
                    // The driver gives up what the transaction has queued.
                    self.wake.notify_one();
                    error
                }
                None => error,
            }
        })
    }

    /// Learns the topic or waits for memory, as often as needed, and looks once for new partitions.
    async fn wait_and_append(&self, record: &ProducerRecord<'_>, mut wait: Wait) -> Result<Delivery> {
        let deadline = time::now() + self.settings.max_block;
        let mut credit = Credit { memory: &self.memory, bytes: 0 };
        let mut looked = false;
        loop {
            match wait {
                Wait::Topic => self.learn_topic(record.topic, deadline).await?,
                Wait::Partition(_) if !looked && record.partition.is_none_or(|number| number >= 0) => {
                    looked = true;
                    self.look_again(record, deadline).await;
                }
                Wait::Partition(count) => return Err(no_such_partition(record, count)),
                Wait::Memory(bytes) => {
                    // The sender is woken once it can see this wait. Otherwise open batches would keep their memory for
                    // the rest of `linger.ms`.
                    let taken = self.memory.take(bytes, deadline, || self.wake.notify_one()).await;
                    taken.map_err(|error| self.own_end(error).with_topic(record.topic))?;
                    credit.bytes += bytes;
                }
            }
            match self.append(record, &mut credit.bytes)? {
                Attempt::Done(delivery) => return Ok(delivery),
                Attempt::Wait(next) => wait = next,
            }
        }
    }

    fn check<'a>(&self, record: &'a ProducerRecord<'_>) -> Result<Parts<'a>> {
        check_topic(record.topic)?;
        let (key, value) = (record.key.map_or(0, <[u8]>::len), record.value.map_or(0, <[u8]>::len));
        let size_bound = batch::record_size_bound(key, value, &record.headers);
        if size_bound + batch::BATCH_HEADER_LEN > self.settings.max_request_size {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the record of {size_bound} bytes is larger than max.request.size ({})",
                    self.settings.max_request_size
                ),
            )
            .with_topic(record.topic)
            .with_hint("raise max.request.size, and max.message.bytes of the topic"));
        }
        let timestamp = match record.timestamp {
            // Brokers take -1 for "none" and store other negative times, which no look-up by time ever finds.
            Some(timestamp) if timestamp < 0 => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("the timestamp {timestamp} is negative"),
                )
                .with_topic(record.topic)
                .with_hint("timestamps are milliseconds since 1970; leave it out for the time of sending"));
            }
            Some(timestamp) => timestamp,
            None => self.environment.wall_clock_ms(),
        };
        Ok(Parts { key: record.key, value: record.value, headers: &record.headers, timestamp, size_bound })
    }

    /// What the user's partitioner says, if there is one to be asked. It is never called under a lock, nor while the
    /// thread's snapshot is borrowed, because it may send with a producer itself.
    #[inline]
    fn ask_partitioner(&self, record: &ProducerRecord<'_>) -> Result<PartitionChoice> {
        let (Some(partitioner), None) = (&self.settings.plugins.partitioner, record.partition) else {
            return Ok(PartitionChoice::Anywhere);
        };
        let topic = self.topics.with(|topics| topics.queues.get(record.topic).cloned());
        let Some(topic) = topic else { return Ok(PartitionChoice::Unknown) };
        let chosen = partitioner.ask(record, Partitions::new(&topic))?;
        Ok(chosen.map_or(PartitionChoice::Anywhere, PartitionChoice::Chosen))
    }

    fn choose_partition<'a>(
        &self,
        topic: &'a TopicQueues,
        partition: Option<i32>,
        parts: &Parts<'_>,
    ) -> Option<&'a Arc<PartitionQueue>> {
        let count = topic.count;
        let index = match (partition, parts.key) {
            (Some(partition), _) => usize::try_from(partition).unwrap_or(usize::MAX),
            (None, key) => match self.place_of(key, count) {
                Some(index) => index,
                None => {
                    let leads = |index: usize| topic.partitions[index].has_leader();
                    let adaptive = self.settings.partitioner_adaptive;
                    let backlog =
                        |index: usize| if adaptive { topic.partitions[index].lock().bytes() } else { 0 };
                    let mut sticky = topic.sticky.lock();
                    sticky.pick(parts.size_bound, self.settings.batch_size, count, leads, backlog)
                }
            },
        };
        topic.partitions[..count].get(index)
    }

    /// Where the key says that a record goes; `None` where any partition will do.
    #[inline]
    fn place_of(&self, key: Option<&[u8]>, count: usize) -> Option<usize> {
        if self.settings.partitioner_ignore_keys {
            return None;
        }
        partition_of(key, self.settings.key_hash, count)
    }

    /// If the producer has ended meanwhile, the reason for that takes the place of a plain "closed".
    fn own_end(&self, error: Error) -> Error {
        match error.kind() {
            // The cluster's driver may hear of the end of its runtime before the producer's does.
            ErrorKind::Closed => {
                self.fatal_error().unwrap_or_else(|| if error.is_fatal() { error } else { self.refusal() })
            }
            _ => error,
        }
    }

    pub(super) async fn learn_topic(&self, topic: &str, deadline: Instant) -> Result<()> {
        let name: Arc<str> = topic.into();
        let known =
            self.cluster.require_topics(std::slice::from_ref(&name), Create::IfAllowed, deadline).await;
        let metadata = known.map_err(|error| self.own_end(error))?;
        self.topics.update(&name, &metadata, &self.limits, &self.environment);
        Ok(())
    }

    /// Takes the topic over from the cluster's snapshot. False if that does not have it.
    pub(super) fn take_over_topic(&self, topic: &str) -> bool {
        let metadata = self.cluster.metadata();
        let Some((name, known)) = metadata.topics.get_key_value(topic) else { return false };
        if known.partitions.is_empty() {
            return false;
        }
        self.topics.update(name, &metadata, &self.limits, &self.environment);
        true
    }

    /// Waits for a snapshot of the cluster that has the record's partition, or for the first that was asked for after the
    /// partition was missed, and takes the topic over from it. If none comes in time the topic stays as it was.
    async fn look_again(&self, record: &ProducerRecord<'_>, deadline: Instant) {
        let topic: Arc<str> = record.topic.into();
        let mut snapshots = self.cluster.subscribe();
        let take_over = |snapshots: &mut watch::Receiver<Arc<Metadata>>| {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            self.topics.update(&topic, &snapshot, &self.limits, &self.environment);
            snapshot
        };
        let index = record.partition.and_then(|number| usize::try_from(number).ok());
        let is_there = |snapshot: &Metadata| {
            let count = snapshot.topics.get(&topic).map_or(0, |topic| topic.partitions.len());
            index.is_some_and(|index| index < count)
        };
        if is_there(&take_over(&mut snapshots)) {
            return;
        }
        let awaited = self.cluster.complain(&topic);
        if driver::check_runtime().is_err() {
            return;
        }
        while let Ok(Ok(())) = tokio::time::timeout_at(deadline, snapshots.changed()).await {
            let snapshot = take_over(&mut snapshots);
            if is_there(&snapshot) || snapshot.answers >= awaited {
                return;
            }
        }
    }
}

/// Memory waited for and not yet used; given back when the append ends.
struct Credit<'a> {
    memory: &'a Memory,
    bytes: usize,
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.give_back(self.bytes);
        }
    }
}

pub(super) fn no_such_partition(record: &ProducerRecord<'_>, count: usize) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the topic has {count} partitions, from 0"))
        .with_topic(record.topic)
        .with_partition(record.partition.unwrap_or_default())
}
