//! What can be asked of a [`Consumer`](super::Consumer) while it runs: lag, assignment, numbers, pause, stop. A handle that
//! shares a little state with it, and owns nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, MutexGuard, Weak},
};

use tokio::sync::Notify;

use super::{
    SUBJECT,
    engine::commit,
    pauses::{PauseChanges, Pauses},
};
use crate::{
    consumer::{
        KafkaConsumer,
        acknowledge::{Change, Life},
    },
    driver,
    error::{Error, ErrorKind, Result},
    facade::{LogSubject, logged, message::CancellationToken},
    mutex::Mutex,
    record::TopicPartition,
    sorted::Map,
    telemetry::{ConsumerCounters, ConsumerMetrics},
};

/// A change of a consumer's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rebalance {
    /// The consumer has them now.
    Assigned(Vec<TopicPartition>),
    /// They are about to go: nothing more is started in them, and running handlers are waited for.
    Revoking(Vec<TopicPartition>),
    /// They are gone; what was done is committed, with automatic commits.
    Revoked(Vec<TopicPartition>),
    /// They were taken away, or what was done could not be committed as the consumer left: it is delivered again, to
    /// another member.
    Lost(Vec<TopicPartition>),
}

type Listener = Arc<dyn Fn(&Rebalance) + Send + Sync>;

/// What a consumer shares with its handles.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) counters: Arc<ConsumerCounters>,
    state: Mutex<State>,
    /// Wakes the engine after something was paused or resumed.
    steered: Notify,
}

#[derive(Default)]
struct State {
    client: Weak<KafkaConsumer>,
    /// Cancelled by a handle: `run` ends.
    stop: CancellationToken,
    /// What the user has paused.
    pauses: Pauses,
    listeners: Vec<Listener>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn connect(&self, client: &Arc<KafkaConsumer>) {
        let mut state = self.lock();
        state.client = Arc::downgrade(client);
        // Pauses of an earlier client do not count.
        state.pauses = Pauses::default();
    }

    pub(super) fn stop_token(&self) -> CancellationToken {
        self.lock().stop.clone()
    }

    /// A stop that has ended one `run` does not end the next.
    pub(super) fn renew_stop(&self) {
        self.lock().stop = CancellationToken::new();
    }

    pub(super) fn listen(&self, listener: Listener) {
        self.lock().listeners.push(listener);
    }

    /// What the user has paused and resumed since this was last asked.
    pub(super) fn follow_pauses(&self) -> Option<PauseChanges> {
        self.lock().pauses.follow()
    }

    /// Waits until the user may have paused or resumed something.
    pub(super) async fn steered(&self) {
        self.steered.notified().await;
    }

    pub(super) fn tell(&self, change: &Change) {
        let names = |partitions: &[(TopicPartition, Life)]| {
            partitions.iter().map(|(partition, _)| partition.clone()).collect::<Vec<_>>()
        };
        let rebalance = match change {
            Change::Assigned(partitions) => Rebalance::Assigned(names(partitions)),
            Change::Revoking(partitions) => Rebalance::Revoking(names(partitions)),
            Change::Revoked(partitions) => Rebalance::Revoked(names(partitions)),
            Change::Lost(partitions) => Rebalance::Lost(names(partitions)),
            // Not a change of the group's assignment, so that listeners do not hear of it.
            Change::Over(_) => return,
        };
        if let Change::Revoked(gone) | Change::Lost(gone) = change {
            let mut state = self.lock();
            for (partition, life) in gone {
                state.pauses.handle_gone(partition, *life);
            }
        }
        self.announce(&rebalance);
    }

    /// For listeners.
    pub(super) fn announce(&self, rebalance: &Rebalance) {
        let listeners = self.lock().listeners.clone();
        for listener in listeners {
            listener(rebalance);
        }
    }

    pub(super) fn metrics(&self) -> ConsumerMetrics {
        let mut metrics = self.counters.snapshot();
        if let Some(client) = self.client() {
            metrics.in_work = client.outstanding() as u64;
            (metrics.throttled, metrics.throttle_time) = client.throttled();
            metrics.lag = Some(client.lag().values().sum());
        }
        metrics
    }

    pub(super) fn client(&self) -> Option<Arc<KafkaConsumer>> {
        self.lock().client.upgrade()
    }

    /// The client and the present lives of these partitions, if it has them all.
    fn client_of(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<(Arc<KafkaConsumer>, Map<TopicPartition, Life>)> {
        let Some(client) = self.client() else {
            return Err(Error::new(ErrorKind::InvalidArgument, "the consumer has no partitions yet")
                .with_hint("it connects and joins its group when it first consumes"));
        };
        let mut lives = Map::new();
        for partition in partitions {
            let Some(life) = client.life_of(&partition) else {
                return Err(Error::new(ErrorKind::InvalidArgument, "the partition is not assigned")
                    .with_topic(partition.topic)
                    .with_partition(partition.partition));
            };
            lives.insert(partition, life);
        }
        Ok((client, lives))
    }

    /// Notes a change of the pauses, and wakes the engine.
    fn steer(&self, note: impl FnOnce(&mut Pauses)) {
        note(&mut self.lock().pauses);
        self.steered.notify_one();
    }
}

/// Inspects and controls a [`Consumer`](crate::Consumer) while it runs. Cheap to clone, usable from any task.
///
/// ```no_run
/// # async fn example(mut consumer: dtkafka::Consumer) -> dtkafka::Result<()> {
/// let handle = consumer.handle();
/// let running = consumer.run(std::future::pending::<()>());
/// # let elsewhere = async {
/// println!("{} records behind", handle.lag().values().sum::<i64>());
/// handle.stop();
/// # };
/// # let (ended, ()) = futures_util::future::join(running, elsewhere).await;
/// # ended
/// # }
/// ```
#[derive(Clone)]
pub struct ConsumerHandle {
    pub(super) shared: Arc<Shared>,
}

impl ConsumerHandle {
    /// Ends [`run`](crate::Consumer::run) as its `shutdown` does: running handlers finish, their records are committed, and the
    /// group is left.
    pub fn stop(&self) {
        self.shared.stop_token().cancel();
    }

    /// Whether it is connected and a member of its group, with partitions or, as one more than there are, without: what a
    /// readiness probe asks. Costs no request. False before it first consumes, and after it has left; while the group is
    /// rebalanced it may be false for a moment. A member whose coordinator is out of reach stays one until
    /// `session.timeout.ms` has passed; in the consumer protocol, where the session is the broker's, until it is heard of again.
    pub fn is_ready(&self) -> bool {
        self.shared.client().is_some_and(|client| client.group_metadata().is_ok())
    }

    /// The partitions it has, sorted; none while it is not connected.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.client().map_or_else(Vec::new, |client| client.assignment())
    }

    /// How far each of its partitions is behind, as of the last fetch. Costs no request.
    pub fn lag(&self) -> BTreeMap<TopicPartition, i64> {
        self.shared.client().map_or_else(BTreeMap::new, |client| client.lag())
    }

    /// What the consumer has done since it was made.
    pub fn metrics(&self) -> ConsumerMetrics {
        self.shared.metrics()
    }

    /// Commits what was handled and not committed yet, while [`run`](crate::Consumer::run) goes on: for consumers without
    /// automatic commits. From within a handler, that is what was handled before; its own records are covered once it has
    /// returned.
    ///
    /// # Errors
    /// As [`Consumer::commit`](crate::Consumer::commit); [`ErrorKind::InvalidArgument`] while the consumer is not connected, as
    /// before it first consumes and after it has left.
    ///
    /// # Cancel safety
    /// A dropped commit may still be done.
    pub async fn commit(&self) -> Result<()> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::ConsumerHandle::commit", subject: SUBJECT };
        let committed = async {
            driver::check_runtime()?;
            // A lane tells what it has handled several records at a time, and at the latest when a handler of its waits.
            tokio::task::yield_now().await;
            let (client, _) = self.shared.client_of([])?;
            commit(client, Arc::clone(&self.shared.counters)).await
        };
        logged(PLACE, committed.await)
    }

    /// Takes no more records of these partitions until [`resume`](Self::resume) or until they are revoked: in an eager
    /// rebalance all are, those that come back too (see [`Consumer::on_rebalance`](crate::Consumer::on_rebalance)). What
    /// was taken is still handled.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is paused then.
    pub fn pause(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        let (client, lives) = self.shared.client_of(partitions)?;
        let partitions: Vec<_> = lives.keys().cloned().collect();
        self.shared.steer(|pauses| pauses.pause(lives));
        let paused = client.pause(partitions.iter().cloned());
        self.shared.steer(|pauses| match paused {
            Ok(()) => pauses.handle_paused(partitions),
            Err(_) => pauses.resume(partitions),
        });
        paused
    }

    /// Takes records of these partitions again, as soon as [`run`](crate::Consumer::run) or
    /// [`consume`](crate::Consumer::consume) is at work and the lanes of the partition have room.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a partition is not assigned; none is resumed then.
    pub fn resume(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<()> {
        let (_, lives) = self.shared.client_of(partitions)?;
        self.shared.steer(|pauses| pauses.resume(lives.into_keys()));
        Ok(())
    }

    /// The partitions paused by [`pause`](Self::pause), sorted.
    pub fn paused(&self) -> Vec<TopicPartition> {
        self.shared.lock().pauses.paused().cloned().collect()
    }
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle").field("assignment", &self.assignment().len()).finish_non_exhaustive()
    }
}
