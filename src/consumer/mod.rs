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
mod logs;
mod lookups;
mod offsets;
mod partitions;
mod polling;
mod records;
mod requests;
mod session;
mod stalls;
mod stream;
mod task;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32},
    },
    time::Duration,
};

use tokio::sync::Notify;

pub(crate) use self::listener::Listen;
pub use self::{
    closing::CloseOptions,
    committing::{Committer, Committing},
    listener::RebalanceListener,
    logs::OffsetAndTimestamp,
    records::{ConsumerRecords, IntoIter, Iter, OwnedRecords, PartitionRecords, RecordRef, RecordRefs},
    stream::RecordStream,
};
use self::{
    core::Core,
    listener::Listening,
    logs::check_time,
    partitions::{PausedBy, Phase, Position, ResetTo},
};
use crate::{
    batch::Decompressor,
    cluster::Cluster,
    config::settings::{ClientSettings, ConsumerSettings, GroupProtocol},
    driver::{self, DriverThread},
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    record::{ConsumerGroupMetadata, TopicPartition},
    time::{self, Instant},
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
    home: Option<DriverThread>,
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
        let home = DriverThread::start("dtkafka-consumer")?;
        let runtime = home.runtime().clone();
        let _within = runtime.enter();
        Self::start_on(Cluster::start_in(client, Some(runtime.clone()))?, settings, Some(home))
    }

    fn start_on(cluster: Cluster, settings: ConsumerSettings, home: Option<DriverThread>) -> Result<Self> {
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

    /// Subscribes to these topics, in place of those before; no topics at all means [`unsubscribe`](Self::unsubscribe). The next
    /// `poll` joins the group.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; [`ErrorKind::InvalidArgument`] for an empty name, or while partitions
    /// are assigned by [`assign`](Self::assign); [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn subscribe<T: AsRef<str>>(&self, topics: impl IntoIterator<Item = T>) -> Result<()> {
        let topics = topics.into_iter().map(|topic| Arc::from(topic.as_ref())).collect();
        self.change(|core, now| core.subscribe(now, topics))
    }

    /// Subscribes to all topics whose whole name matches this regular expression, in place of those before. Matching topics
    /// that are created later are added, deleted ones are removed.
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

    /// Calls this listener when partitions come and go, in place of the one set before; see [`RebalanceListener`] for when.
    /// Set it before the first poll, or it misses what was assigned already.
    pub fn set_rebalance_listener(&self, listener: impl RebalanceListener) {
        self.listen(Arc::new(listener));
    }

    pub(crate) fn listen(&self, listener: Arc<dyn Listen>) {
        self.shared.listening.set(listener);
        self.shared.lock().set_listening(true);
    }

    /// Leaves the group, committing nothing, or drops the assigned partitions, as [`assign`](Self::assign) does. A
    /// rebalance listener is called with [`lost`](RebalanceListener::lost), by the next poll with a subscription or by
    /// the close.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn unsubscribe(&self) -> Result<()> {
        self.change(|core, now| core.subscribe(now, Vec::new()))
    }

    /// Reads exactly these partitions, outside any group; a partition that was assigned before keeps its position. With
    /// a `group.id`, reading starts at the group's committed offsets, and commits are stored under its name; with
    /// `enable.auto.commit` what is done of the partitions before is committed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an impossible partition, or while topics are subscribed; [`ErrorKind::Closed`] after
    /// [`close`](Self::close).
    pub fn assign(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        let partitions = partitions.into_iter().collect();
        self.change(|core, now| core.assign(now, partitions))
    }

    /// The partitions this consumer has now, sorted.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.lock().partitions.iter().map(|(key, _)| key.clone()).collect()
    }

    /// How the group's coordinator identifies this consumer now: for
    /// [`Transaction::send_offsets`](crate::Transaction::send_offsets) (KIP-447). Take it before the records are processed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; `RebalanceInProgress` while the member has no place in the group;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn group_metadata(&self) -> Result<ConsumerGroupMetadata> {
        let group = self.shared.settings.group_id.clone();
        let identity = {
            let core = self.shared.lock();
            core.check_open()?;
            core.identity()?
        };
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

    /// Records one by one, for ever. A record is covered when the next one is asked for; dropping the stream loses
    /// nothing. Reads the same positions as [`poll`](Self::poll).
    pub fn stream(&self) -> RecordStream<'_> {
        RecordStream::new(&self.shared, self.is_owner)
    }

    /// The offset of the next record that will be handed out; waits until it is known.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned; [`ErrorKind::Timeout`] after
    /// `default.api.timeout.ms`; [`ErrorKind::Closed`] after [`close`](Self::close).
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
            driver::check_runtime()?;
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(Error::new(ErrorKind::Timeout, "the position is not known yet")
                    .with_topic(Arc::clone(&partition.topic))
                    .with_partition(partition.partition));
            }
        }
    }

    /// Continues at this offset. Buffered records of the partition are dropped; the next automatic commit commits the new
    /// position.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned or the offset is negative;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.change(|core, _| core.seek(partition, Phase::Fetching(Position::at(offset))))
    }

    /// Continues at the first record still in the log. No partitions mean none (in Java all that are assigned).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn seek_to_beginning<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
    ) -> Result<()> {
        self.seek_all(partitions, ResetTo::Earliest)
    }

    /// Continues after the last record there is now: the log's end is looked up at once, not by the next poll as in Java. No
    /// partitions mean none (in Java all that are assigned).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn seek_to_end<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Result<()> {
        self.seek_all(partitions, ResetTo::Latest)
    }

    /// Continues at the first record with this time or a later one, in milliseconds since the Unix epoch; at the end if there
    /// is none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the partition is not assigned or the time is negative;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub fn seek_to_time(&self, partition: &TopicPartition, timestamp: i64) -> Result<()> {
        check_time(partition, timestamp)?;
        self.seek_all([partition], ResetTo::Time(timestamp))
    }

    fn seek_all<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
        to: ResetTo,
    ) -> Result<()> {
        self.change(|core, _| {
            partitions.into_iter().try_for_each(|key| core.seek(key, Phase::AwaitingReset(to)))
        })
    }

    /// Returns no more records of these partitions until [`resume`](Self::resume); they stay assigned, and you should keep
    /// polling. A partition that is taken away is not paused when it comes back: with an eager assignor every rebalance takes all
    /// away. If all that is assigned is paused for `unreadable.warn.ms`, the log says so once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is paused then.
    pub fn pause(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        self.set_paused(partitions, Some(PausedBy::User))
    }

    /// As [`pause`](Self::pause), for as long as what was handed out is worked off: nobody has to act for it to end.
    pub(crate) fn hold_back(&self, partition: TopicPartition) -> Result<()> {
        self.set_paused([partition], Some(PausedBy::Backlog))
    }

    /// Returns records of these partitions again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is resumed then.
    pub fn resume(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        self.set_paused(partitions, None)
    }

    fn set_paused(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
        paused: Option<PausedBy>,
    ) -> Result<()> {
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

#[cfg(test)]
mod listener_tests;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;
