//! The consumer: a handle over one driver task. Fetches, heartbeats and commits run in the background; `poll` only takes
//! what is there, decodes it and hands it out.
//!
//! The handle mutates the core under its lock and wakes the driver; it sends nothing through channels, so that a dropped
//! future loses nothing. The lock is never held across an await, nor while records are decoded.

pub(crate) mod acknowledge;
mod buffer;
mod closing;
mod committing;
mod core;
mod fetch;
mod ledger;
mod listener;
mod lookups;
mod offsets;
mod partitions;
mod records;
mod requests;
mod session;
mod starving;
mod stream;
mod task;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

pub(crate) use self::listener::Listen;
pub use self::{
    closing::CloseOptions,
    committing::{Committer, Committing},
    listener::RebalanceListener,
    records::{ConsumerRecords, IntoIter, Iter, OwnedRecords, PartitionRecords, RecordRef, RecordRefs},
    stream::RecordStream,
};
use self::{
    core::Core,
    ledger::Life,
    listener::Listening,
    lookups::{Found, Lookup, Place},
    partitions::{Next, Phase, Position, ResetTo, Turn},
};
use crate::{
    batch::Decompressor,
    cluster::{Cluster, CoordinatorKind, Create, UNKNOWN_TOPIC_OR_PARTITION},
    config::settings::{ClientSettings, ConsumerSettings, GroupProtocol},
    driver::{self, Home},
    error::{Error, ErrorKind, Result},
    group::code::is_moved,
    record::{ConsumerGroupMetadata, TopicPartition},
    time::{self, Backoff, Instant, Rng},
};

/// A consumer of topics, alone or as a member of a group. Shared between tasks by reference: every method takes `&self`.
///
/// **At-least-once by rule.** A record is *covered* once the next `poll` is called; automatic commits, those before a
/// rebalance and the one of [`close`](Self::close) include covered records only. With several tasks polling one
/// consumer, one task's poll covers what another is still working on: commit yourself then.
///
/// **Rebalancing.** When the group rebalances, the consumer stops handing out records at once but keeps its partitions
/// until the next `poll` (which says that the records before it are done), commits, and only then gives them up: a
/// member that polls in time never has its records handed to another member as well. `max.poll.interval.ms` bounds the
/// wait.
///
/// Dropping the consumer never blocks: the driver leaves the group in the background, without a commit.
pub struct KafkaConsumer {
    shared: Arc<Shared>,
    /// What a listener is given is not: it neither polls nor ends the consumer.
    is_owner: bool,
}

struct Shared {
    settings: Arc<ConsumerSettings>,
    cluster: Cluster,
    core: Mutex<Core>,
    /// Wakes the driver.
    wake: Notify,
    /// Wakes those who wait for records, positions or the end.
    changed: Notify,
    decompressor: Decompressor,
    listening: Listening,
    /// The last coordinator asked.
    coordinator: AtomicI32,
    /// The driver has a fetch to send: on a runtime of one thread a poll must let it.
    yields: AtomicBool,
    /// The last to go: the cluster and its connections live there.
    home: Option<Home>,
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConsumer")
            .field("group_id", &self.shared.settings.group_id)
            .finish_non_exhaustive()
    }
}

impl KafkaConsumer {
    /// Starts the driver; nothing is sent but for metadata before there is something to fetch. Must be called in a tokio
    /// runtime. A member of a group lives in a thread of its own: its heartbeats and commits must not depend on the user's
    /// code yielding.
    pub(crate) fn start(client: Arc<ClientSettings>, settings: ConsumerSettings) -> Result<Self> {
        driver::check_runtime()?;
        if settings.group_id.is_none() || client.environment.is_simulated() {
            return Self::start_on(Cluster::start(client)?, settings, None);
        }
        let home = Home::start("dtkafka-consumer")?;
        let runtime = home.runtime().clone();
        let _within = runtime.enter();
        Self::start_on(Cluster::start_in(client, Some(runtime.clone()))?, settings, Some(home))
    }

    fn start_on(cluster: Cluster, settings: ConsumerSettings, home: Option<Home>) -> Result<Self> {
        let settings = Arc::new(settings);
        let client = Arc::clone(cluster.settings());
        let rng = client.environment.rng();
        let core = Core::new(Arc::clone(&settings), client, time::now(), rng);
        let shared = Arc::new(Shared {
            settings,
            cluster,
            core: Mutex::new(core),
            wake: Notify::new(),
            changed: Notify::new(),
            decompressor: Decompressor::new(),
            listening: Listening::default(),
            coordinator: AtomicI32::new(-1),
            yields: AtomicBool::new(false),
            home,
        });
        task::spawn(Arc::clone(&shared))?;
        Ok(Self { shared, is_owner: true })
    }

    /// Waits for the first answer of a broker.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.shared.cluster.connect(self.api_deadline()).await
    }

    /// Joins the group for these topics, in place of those subscribed to before; none at all unsubscribes. The group is
    /// joined by the next `poll`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; [`ErrorKind::InvalidArgument`] for an empty name, or while partitions
    /// are assigned by [`assign`](Self::assign).
    pub fn subscribe<T: AsRef<str>>(&self, topics: impl IntoIterator<Item = T>) -> Result<()> {
        let topics = topics.into_iter().map(|topic| Arc::from(topic.as_ref())).collect();
        self.change(|core, now| core.subscribe(now, topics))
    }

    /// Joins the group for all topics whose whole name matches this regular expression, in place of those subscribed to before.
    /// Topics that match and are made later are taken in, deleted ones are let go.
    ///
    /// In a classic group the client matches. It asks for the metadata of all topics every `metadata.max.age.ms`, whose answer
    /// must fit into `receive.message.max.bytes`, and leaves out the brokers' own topics unless `exclude.internal.topics` is
    /// `false`. With `group.protocol=consumer` the broker matches (KIP-848): in RE2's syntax, with its own topics included, and
    /// what it has found comes with the heartbeats. With `auto` the client matches until it is known which protocol the group
    /// has. Neither syntax has look-around or back-references.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with the pattern, for one that cannot be read, or while partitions are assigned by
    /// [`assign`](Self::assign); a broker that cannot read it says so in the next poll. [`ErrorKind::Config`] without a
    /// `group.id`; [`ErrorKind::Unsupported`] where the client is to match and was built without the feature `pattern`.
    pub fn subscribe_pattern(&self, pattern: &str) -> Result<()> {
        let pattern = Arc::from(pattern);
        self.change(|core, now| core.subscribe_pattern(now, &pattern))
    }

    /// Has this listener told of partitions that come and go, in place of the one before; see [`RebalanceListener`] for when it
    /// is called. Set it before the first poll, or it does not hear of what was assigned already.
    pub fn set_rebalance_listener(&self, listener: impl RebalanceListener) {
        self.listen(Arc::new(listener));
    }

    pub(crate) fn listen(&self, listener: Arc<dyn Listen>) {
        self.shared.listening.set(listener);
        self.shared.lock().set_listening(true);
    }

    /// Leaves the group, or drops the assigned partitions. Nothing is committed; a rebalance listener hears of it as
    /// [`lost`](RebalanceListener::lost), in the next poll with a subscription or the close.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn unsubscribe(&self) -> Result<()> {
        self.change(|core, now| core.subscribe(now, Vec::new()))
    }

    /// Reads exactly these partitions, outside any group; a partition that was assigned before keeps its position. With
    /// a `group.id`, reading starts at the group's committed offsets, and commits are stored under its name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an impossible partition, or while topics are subscribed.
    pub fn assign(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        let partitions = partitions.into_iter().collect();
        self.change(|core, now| core.assign(now, partitions))
    }

    /// The partitions this consumer has now, sorted.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.lock().partitions.iter().map(|(key, _)| key.clone()).collect()
    }

    /// What the group's coordinator knows this consumer by now: for
    /// [`Transaction::send_offsets`](crate::Transaction::send_offsets) (KIP-447). Take it before the records are processed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; `RebalanceInProgress` while the member has no place in the group.
    pub fn group_metadata(&self) -> Result<ConsumerGroupMetadata> {
        let group = self.shared.settings.group_id.clone();
        let identity = self.shared.lock().identity()?;
        let (Some(identity), Some(group)) = (identity, group) else {
            return Err(Error::from_code("JoinGroup", crate::error::code::REBALANCE_IN_PROGRESS)
                .with_hint("the group is being rebalanced: poll, and process what comes then"));
        };
        Ok(ConsumerGroupMetadata::new(group, identity.generation, identity.member_id, identity.instance_id))
    }

    /// Joins a classic group again, so that it is planned anew with what its members now say of themselves (rack, user data of
    /// an [`Assignor`](crate::Assignor)). The coordinator logs the reason (KIP-800), of which the first 255 characters are sent.
    ///
    /// Nothing happens before the group has been joined, nor during a rebalance. Where this member does not lead and has nothing
    /// new to say, the coordinator answers with the assignment that it has already.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; [`ErrorKind::Unsupported`] in the consumer protocol, where the broker
    /// decides; [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn enforce_rebalance(&self, reason: &str) -> Result<()> {
        self.change(|core, now| core.enforce_rebalance(now, reason))
    }

    /// The protocol that the member speaks with its group (`group.protocol`); `None` without a `group.id`, and with `auto` as
    /// long as the group has not been joined.
    pub fn group_protocol(&self) -> Option<GroupProtocol> {
        self.shared.lock().group_protocol()
    }

    /// The next records: at once if any are buffered, otherwise as soon as some arrive, and none after `timeout`. At most
    /// `max.poll.records`. Calling it says that all records handed out before are done with.
    ///
    /// # Errors
    /// What the group, the broker or a damaged batch refuses, with partition and offset; the next poll goes on where
    /// that is possible. [`ErrorKind::InvalidArgument`] if nothing is subscribed or assigned.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped poll has handed out nothing and loses nothing.
    pub async fn poll(&self, timeout: Duration) -> Result<ConsumerRecords> {
        self.poll_up_to(self.shared.settings.max_poll_records, timeout).await
    }

    async fn poll_up_to(&self, max: usize, timeout: Duration) -> Result<ConsumerRecords> {
        let shared = &*self.shared;
        if shared.yields.swap(false, Ordering::Relaxed) {
            // Before anything is taken: a poll dropped here loses nothing.
            tokio::task::yield_now().await;
        }
        if !self.is_owner {
            return Err(poll_within_a_call());
        }
        let deadline = time::after(timeout);
        let polling = Polling::begin(shared)?;
        Listening::tell(&self.shared).await;
        let records = polling.take(max)?;
        if !records.is_empty() {
            return Ok(records);
        }
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            Listening::tell(&self.shared).await;
            let records = polling.take(max)?;
            if !records.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(records);
            }
        }
    }

    /// Records one by one, for ever. A record is covered when the next one is asked for; dropping the stream loses
    /// nothing. Reads the same positions as [`poll`](Self::poll).
    pub fn stream(&self) -> RecordStream<'_> {
        RecordStream::new(&self.shared, self.is_owner)
    }

    /// The offset of the next record that will be handed out; waits until it is known.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned; [`ErrorKind::Timeout`] after
    /// `default.api.timeout.ms`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn position(&self, partition: &TopicPartition) -> Result<i64> {
        let deadline = self.api_deadline();
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(offset) = self.shared.lock().position(partition)? {
                return Ok(offset);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(Error::new(ErrorKind::Timeout, "the position is not known yet")
                    .with_topic(Arc::clone(&partition.topic))
                    .with_partition(partition.partition));
            }
        }
    }

    /// Goes on at this offset. Buffered records of the partition are dropped; the next automatic commit commits the new
    /// place.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned or the offset is negative.
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.change(|core, now| core.seek(now, partition, Phase::Fetching(Position::at(offset))))
    }

    /// Goes on at the first record still in the log.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned.
    pub fn seek_to_beginning<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
    ) -> Result<()> {
        self.seek_all(partitions, ResetTo::Earliest)
    }

    /// Goes on after the last record.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned.
    pub fn seek_to_end<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Result<()> {
        self.seek_all(partitions, ResetTo::Latest)
    }

    /// Goes on at the first record with this time or a later one, in milliseconds since the Unix epoch; at the end where there
    /// is none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned or the time is negative.
    pub fn seek_to_time(&self, partition: &TopicPartition, timestamp: i64) -> Result<()> {
        check_time(partition, timestamp)?;
        self.seek_all([partition], ResetTo::Time(timestamp))
    }

    fn seek_all<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
        to: ResetTo,
    ) -> Result<()> {
        self.change(|core, now| {
            partitions.into_iter().try_for_each(|key| core.seek(now, key, Phase::AwaitingReset(to)))
        })
    }

    /// Hands out no more of these partitions until [`resume`](Self::resume); they stay assigned, and the member goes on
    /// polling. A rebalance forgets it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is paused then.
    pub fn pause(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        self.set_paused(partitions, true)
    }

    /// Hands out these partitions again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is resumed then.
    pub fn resume(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        self.set_paused(partitions, false)
    }

    fn set_paused(&self, partitions: impl IntoIterator<Item = TopicPartition>, paused: bool) -> Result<()> {
        let partitions: Vec<_> = partitions.into_iter().collect();
        self.change(|core, _| core.set_paused(&partitions, paused))
    }

    /// The partitions that are paused, sorted.
    pub fn paused(&self) -> Vec<TopicPartition> {
        self.shared.lock().partitions.paused().cloned().collect()
    }

    /// How many offsets each assigned partition is behind the end of its log, as of the last fetch (with `read_committed`:
    /// the last stable offset); partitions that were
    /// not fetched yet are left out. Costs no request.
    pub fn lag(&self) -> BTreeMap<TopicPartition, i64> {
        let core = self.shared.lock();
        let lags = core.partitions.iter().filter_map(|(key, partition)| {
            let lag = partition.end?.saturating_sub(partition.position()?.next);
            Some((key.clone(), lag.max(0)))
        });
        lags.collect()
    }

    /// Bytes of fetched records that wait to be polled; bounded by `fetch.buffer.memory`.
    pub fn buffered_bytes(&self) -> usize {
        self.shared.lock().partitions.buffered()
    }

    /// The offsets of the first records still in the logs.
    ///
    /// # Errors
    /// The leaders' errors; [`ErrorKind::Timeout`] after `default.api.timeout.ms`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn beginning_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let asked = partitions.into_iter().map(|key| (key, ResetTo::Earliest)).collect();
        Ok(offsets(self.list_offsets(asked).await?))
    }

    /// The offsets that the next records will get (with `read_committed`: after the last record that can be read).
    ///
    /// # Errors
    /// The leaders' errors; [`ErrorKind::Timeout`] after `default.api.timeout.ms`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn end_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let asked = partitions.into_iter().map(|key| (key, ResetTo::Latest)).collect();
        Ok(offsets(self.list_offsets(asked).await?))
    }

    /// The first records with these times or later ones, in milliseconds since the Unix epoch; `None` where there is none.
    /// Partitions need not be assigned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a negative time; the leaders' errors; [`ErrorKind::Timeout`] after
    /// `default.api.timeout.ms`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn offsets_for_times(
        &self,
        times: impl IntoIterator<Item = (TopicPartition, i64)>,
    ) -> Result<BTreeMap<TopicPartition, Option<OffsetAndTimestamp>>> {
        let mut asked = BTreeMap::new();
        for (key, time) in times {
            check_time(&key, time)?;
            asked.insert(key, ResetTo::Time(time));
        }
        let found = self.list_offsets(asked).await?;
        let record = |place: Place| {
            let Place { offset, leader_epoch, timestamp, .. } = place;
            (offset >= 0).then(|| OffsetAndTimestamp {
                offset,
                timestamp,
                leader_epoch: Some(leader_epoch).filter(|epoch| *epoch >= 0),
            })
        };
        Ok(found.into_iter().map(|(key, place)| (key, record(place))).collect())
    }

    async fn list_offsets(
        &self,
        asked: BTreeMap<TopicPartition, ResetTo>,
    ) -> Result<BTreeMap<TopicPartition, Place>> {
        let mut topics: Vec<_> = asked.keys().map(|key| Arc::clone(&key.topic)).collect();
        topics.dedup();
        let deadline = self.api_deadline();
        let mut insisting = Insisting::new(&self.shared, deadline);
        loop {
            let found = self.ask_leaders(&topics, &asked, deadline).await;
            if let Some(outcome) = insisting.settle(found).await {
                return outcome;
            }
        }
    }

    async fn ask_leaders(
        &self,
        topics: &[Arc<str>],
        asked: &BTreeMap<TopicPartition, ResetTo>,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, Place>> {
        let metadata = self.shared.cluster.require_topics(topics, Create::Never, deadline).await?;
        let mut leaders: BTreeMap<i32, Vec<Lookup>> = BTreeMap::new();
        for (key, to) in asked {
            let Some((leader, leader_epoch)) = metadata.leader(&key.topic, key.partition) else {
                return Err(Error::from_code("Metadata", UNKNOWN_TOPIC_OR_PARTITION)
                    .with_topic(Arc::clone(&key.topic))
                    .with_partition(key.partition));
            };
            let lookup = Lookup { partition: key.clone(), life: Life::NONE, leader_epoch, to: *to };
            leaders.entry(leader).or_default().push(lookup);
        }
        let mut found = BTreeMap::new();
        for (leader, lookups) in leaders {
            found.extend(requests::list_offsets(&self.shared, leader, &lookups, deadline).await?);
        }
        all_found("ListOffsets", asked.keys(), &found)
    }

    fn api_deadline(&self) -> Instant {
        self.shared.api_deadline()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Core, Instant) -> Result<T>) -> Result<T> {
        self.shared.change(change)
    }
}

impl Shared {
    fn api_deadline(&self) -> Instant {
        time::now() + self.cluster.settings().default_api_timeout
    }

    /// Changes the core and lets the driver and the waiting see to it.
    fn change<T>(&self, change: impl FnOnce(&mut Core, Instant) -> Result<T>) -> Result<T> {
        let (result, news) = {
            let mut core = self.lock();
            (change(&mut core, time::now()), core.take_news())
        };
        if news {
            self.changed.notify_waiters();
        }
        self.wake.notify_one();
        result
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        self.shared.listening.clear();
        let mut core = self.shared.lock();
        let now = time::now();
        core.abandon(now, now + DROP_PATIENCE);
        drop(core);
        self.shared.wake.notify_one();
    }
}

/// How long the driver of a dropped consumer tries to leave the group.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Repeats a look-up until it succeeds, fails for good, or the deadline is near. No async closure is taken: of the futures
/// of those, the compiler cannot tell that they may cross threads.
struct Insisting<'a> {
    shared: &'a Shared,
    deadline: Instant,
    backoff: Backoff,
    rng: Rng,
}

impl<'a> Insisting<'a> {
    fn new(shared: &'a Shared, deadline: Instant) -> Self {
        let settings = shared.cluster.settings();
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        Self { shared, deadline, backoff, rng: settings.environment.rng() }
    }

    /// The outcome of the look-up; `None` after the pause before another attempt.
    async fn settle<T>(&mut self, outcome: Result<T>) -> Option<Result<T>> {
        let error = match outcome {
            Err(error) if error.is_retriable() => error,
            done => return Some(done),
        };
        if let Some(group) = &self.shared.settings.group_id
            && error.code().is_some_and(|code| is_moved(code.0))
        {
            let coordinator = self.shared.coordinator.load(Ordering::Relaxed);
            self.shared.cluster.forget_coordinator(CoordinatorKind::Group, group, coordinator);
        }
        self.shared.cluster.refresh();
        let next = time::now() + self.backoff.next(&mut self.rng);
        if next >= self.deadline {
            return Some(Err(error));
        }
        tokio::time::sleep_until(next).await;
        None
    }
}

/// Where a record is that was looked up by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetAndTimestamp {
    /// Its offset.
    pub offset: i64,
    /// Its time, in milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The leader epoch it was written under, where known.
    pub leader_epoch: Option<i32>,
}

/// One poll under way; the time until the next counts from its end, however it ends.
struct Polling<'a> {
    shared: &'a Shared,
}

impl<'a> Polling<'a> {
    fn begin(shared: &'a Shared) -> Result<Self> {
        let begun = shared.lock().handle_poll(time::now());
        begun.map(|driver_is_due| {
            if driver_is_due {
                shared.wake.notify_one();
            }
            Self { shared }
        })
    }

    /// What can be handed out now, at most `max` records.
    fn take(&self, max: usize) -> Result<ConsumerRecords> {
        let mut records = ConsumerRecords::default();
        self.take_each(max, Turn::Poll, &mut |partition, life, chunk| {
            records.push(partition, life, chunk);
        })?;
        Ok(records)
    }

    /// Takes chunks until `max` records are there or nothing is left, decoding outside the lock.
    fn take_each(
        &self,
        max: usize,
        turn: Turn,
        hand_out: &mut dyn FnMut(TopicPartition, Life, buffer::Chunk),
    ) -> Result<()> {
        let shared = self.shared;
        let (mut left, mut memory) = (max, 0_usize);
        let mut returned = None;
        let mut failure: Option<Error> = None;
        loop {
            let job = {
                let mut core = shared.lock();
                if let Some((key, decoded)) = returned.take() {
                    core.check_in(key, decoded, failure.is_some());
                } else if let Some(error) = core.take_error() {
                    return Err(error);
                }
                let mut job = None;
                // A poll hands out no more than the memory that is decoded at once, and a batch.
                while left > 0 && memory < buffer::DECODED_AT_ONCE && failure.is_none() {
                    match core.next_chunk(left, turn) {
                        Next::Chunk(partition, life, chunk) => {
                            left = left.saturating_sub(chunk.range.len());
                            memory = memory.saturating_add(chunk.batch.memory());
                            hand_out(partition, life, chunk);
                        }
                        Next::Decode(next) => {
                            job = Some(next);
                            break;
                        }
                        Next::Nothing => break,
                    }
                }
                if core.take_wants_fetch() {
                    // A thread of its own needs not be let.
                    shared.yields.store(shared.home.is_none(), Ordering::Relaxed);
                    shared.wake.notify_one();
                }
                job
            };
            let Some(job) = job else { break };
            let partition = job.partition.clone();
            let (key, decoding) = job.split();
            let (decoded, result) = decoding.run(
                shared.settings.check_crcs,
                &shared.decompressor,
                shared.settings.max_decompressed_bytes,
            );
            failure = result
                .err()
                .map(|error| error.with_topic(partition.topic).with_partition(partition.partition));
            returned = Some((key, decoded));
        }
        if left < max {
            // A failure comes again with the next poll, after these records.
            return Ok(());
        }
        match failure.or_else(|| shared.lock().take_failure()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.shared.lock().handle_poll_end(time::now());
    }
}

fn all_found<'a>(
    api: &'static str,
    partitions: impl Iterator<Item = &'a TopicPartition>,
    found: &Found,
) -> Result<BTreeMap<TopicPartition, Place>> {
    let place = |key: &TopicPartition| match found.get(key) {
        Some(Ok(place)) => Ok((key.clone(), place.clone())),
        Some(Err(code)) => {
            Err(Error::from_code(api, *code).with_topic(Arc::clone(&key.topic)).with_partition(key.partition))
        }
        None => Err(Error::protocol("the answer left out a partition").with_api(api)),
    };
    partitions.map(place).collect()
}

fn offsets(places: BTreeMap<TopicPartition, Place>) -> BTreeMap<TopicPartition, i64> {
    places.into_iter().map(|(key, place)| (key, place.offset)).collect()
}

fn poll_within_a_call() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a rebalance listener cannot poll")
        .with_hint("return from it: the poll that it was called in goes on")
}

fn check_time(key: &TopicPartition, time: i64) -> Result<()> {
    if time >= 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("{time} is no time to look for"))
        .with_topic(Arc::clone(&key.topic))
        .with_partition(key.partition)
        .with_hint("times are milliseconds since the Unix epoch"))
}

#[cfg(test)]
mod listener_tests;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;
