//! A connected [`Consumer`](super::Consumer): takes records, puts them into lanes, runs the lanes as tasks, and follows the
//! group. Which lane runs when is `dispatch/lanes.rs`'s, what is committed the ledger's of the client.
//!
//! Whatever ends early leaves nothing behind: what was taken and is not done is handed out again by
//! [`rewind`](Engine::rewind), and no task goes on that a dropped future has started.

mod committing;
mod damage;
mod following;
mod plan;
mod taking;

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinError, JoinSet},
    time::Instant,
};

use self::{
    committing::{Committing, end_of},
    damage::{Damaged, Passed},
};
pub(super) use self::{
    committing::{commit, is_of_rebalance},
    plan::Plan,
};
use super::{
    control::Shared,
    lane::{self, Ended, Flow, GRACE, Ledger, RunContext},
    load::Chunk,
};
use crate::{
    consumer::{
        KafkaConsumer,
        acknowledge::{AtWork, Life},
    },
    error::{Error, ErrorKind, Result},
    facade::{
        dispatch::{
            lanes::{LaneId, Lanes},
            pace::CommitPace,
        },
        message::CancellationToken,
        outbox::Outbox,
    },
    mutex::Mutex,
    record::TopicPartition,
    sorted::{Map, Set},
    time::{self, Environment},
};

/// How long handlers that were dropped may take to end, which they do at their next await.
const DROPPED_END_WITHIN: Duration = Duration::from_secs(1);

impl Ledger for KafkaConsumer {
    fn done(&self, partition: &TopicPartition, life: Life, offsets: &[i64]) -> bool {
        self.done_all(partition, life, offsets) == offsets.len()
    }

    fn hand_back(&self, partition: &TopicPartition, life: Life, offsets: &[i64]) {
        self.hand_back_all(partition, life, offsets);
    }

    fn is_live(&self, partition: &TopicPartition, life: Life) -> bool {
        Self::is_live(self, partition, life)
    }

    fn expect_topic(&self, topic: &Arc<str>) {
        Self::expect_topic(self, topic);
    }
}

/// A run that is out.
struct Running {
    abort: AbortHandle,
    token: CancellationToken,
    partition: TopicPartition,
    life: Life,
}

pub(super) struct Engine {
    pub(super) client: Arc<KafkaConsumer>,
    plan: Plan,
    context: Arc<RunContext>,
    lanes: Lanes<Chunk, Life>,
    tasks: JoinSet<Ended>,
    running: BTreeMap<LaneId, Running>,
    /// Tells all runs at once to give up.
    stop: CancellationToken,
    /// Partitions with records that were taken and given up.
    left: Set<(TopicPartition, Life)>,
    /// Partitions that wait before a batch that cannot be read.
    damaged: Map<TopicPartition, Damaged>,
    /// Writes the letter of a damaged batch.
    passing: JoinSet<Passed>,
    /// The first error that ends the dispatch.
    failure: Option<Error>,
    /// Records done since this was last asked.
    handled: usize,
    pace: CommitPace,
    committing: Option<Committing>,
    alive_at: Instant,
    shared: Arc<Shared>,
    /// Partitions that the user has paused, as far as the engine has followed.
    by_user: BTreeSet<TopicPartition>,
    unhandled: Set<Arc<str>>,
    /// Partitions for which it was logged that records of other groups are passed over.
    passed_over: Set<TopicPartition>,
    /// The client has ended, and that was reported. Waiting for its changes would return at once, again and again.
    is_closed: bool,
}

impl Engine {
    pub(super) fn new(
        client: Arc<KafkaConsumer>,
        plan: Plan,
        outbox: Outbox,
        shared: Arc<Shared>,
        environment: Environment,
    ) -> Self {
        client.acknowledge_each();
        let context = Arc::new(RunContext {
            ledger: Arc::clone(&client) as Arc<dyn Ledger>,
            outbox,
            counters: Arc::clone(&shared.counters),
            persists: AtomicBool::new(false),
            is_alone: lane::is_alone(),
            rng: Mutex::new(environment.rng()),
            environment,
            group: Arc::clone(&plan.group),
        });
        Self {
            lanes: Lanes::new(plan.ordering, plan.bounds),
            alive_at: time::after(plan.keep_alive),
            client,
            plan,
            context,
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            stop: CancellationToken::new(),
            left: Set::new(),
            damaged: Map::new(),
            passing: JoinSet::new(),
            failure: None,
            handled: 0,
            pace: CommitPace::default(),
            committing: None,
            shared,
            by_user: BTreeSet::new(),
            unhandled: Set::new(),
            passed_over: Set::new(),
            is_closed: false,
        }
    }

    /// Handlers, policies and bounds may have changed since the last call.
    pub(super) fn follow_plan(&mut self, plan: Plan) -> Result<()> {
        if self.lanes.is_empty() {
            self.lanes = Lanes::new(plan.ordering, plan.bounds);
        }
        if !Arc::ptr_eq(&self.plan.routes, &plan.routes) {
            self.client.read_from_start(plan.read_from_start());
            // A policy may have brought retry topics.
            if self.plan.reads() != plan.reads() {
                plan.subscribe(&self.client)?;
            }
        }
        self.plan = plan;
        Ok(())
    }

    /// Ends what a dropped call has left, and goes back to what it did not handle.
    pub(super) async fn recover(&mut self) {
        self.halt(DROPPED_END_WITHIN).await;
        self.settle();
    }

    /// Ends every run where it stands. Waits for that for at most `limit`, and never longer than a second.
    pub(super) async fn halt(&mut self, limit: Duration) {
        self.abort_all();
        self.passing.shutdown().await;
        // A task ends at its next await; one that blocks its thread does not, and is not waited for.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limit.min(DROPPED_END_WITHIN), ended).await.is_err() {
            tracing::warn!(handlers = self.tasks.len(), "handlers that block their thread are left alone");
            self.tasks.detach_all();
        }
        self.running.clear();
    }

    /// Takes no more of anything: for a future that is dropped.
    pub(super) fn abort_all(&mut self) {
        self.stop.cancel();
        self.tasks.abort_all();
        self.passing.abort_all();
    }

    /// When no run is out any more: whatever was taken and is not done comes again.
    fn settle(&mut self) {
        let paused: Vec<_> = self.lanes.paused().cloned().collect();
        for (partition, life, waiting) in self.lanes.revoke_all() {
            drop(waiting);
            self.left.insert((partition, life));
        }
        self.lanes = Lanes::new(self.plan.ordering, self.plan.bounds);
        self.rewind();
        // If the life has changed, the records before the damaged batch come again, and it is met after them.
        let (waiting, over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.damaged)
            .into_iter()
            .partition(|(partition, damaged)| self.client.is_live(partition, damaged.life));
        self.damaged = waiting.into_iter().collect();
        for damaged in self.damaged.values_mut() {
            damaged.is_passing = false;
        }
        for partition in over.into_iter().map(|(partition, _)| partition).chain(paused) {
            self.resume(partition);
        }
        self.stop = CancellationToken::new();
    }

    fn rewind(&mut self) {
        for (partition, life) in std::mem::take(&mut self.left) {
            // Does nothing if the life is over: its records are another member's, or come again anyway.
            if let Err(error) = self.client.rewind(&partition, life) {
                tracing::debug!(%partition, %error, "the partition is gone");
            }
        }
    }

    /// Records done since this was last asked.
    pub(super) fn take_handled(&mut self) -> usize {
        std::mem::take(&mut self.handled)
    }

    /// Tells whether runs are out. What only waits in lanes is no sign of life if nobody polls the consumer any more.
    pub(super) fn at_work(&self) -> AtWork {
        let context = Arc::downgrade(&self.context);
        Arc::new(move || context.strong_count() > 1)
    }

    /// Notes an error that ends the dispatch. Nothing more is begun.
    fn on_failure(&mut self, error: Error) {
        self.stop.cancel();
        match &self.failure {
            None => self.failure = Some(error),
            Some(_) => tracing::error!(%error, "something else failed at the same time"),
        }
    }

    /// Starts every run that may start.
    fn start(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        while let Some(run) = self.lanes.poll_run(time::now()) {
            let route = self.plan.routes.of(&self.plan.topics, &run.partition.topic);
            if route.is_unhandled() && self.unhandled.insert(Arc::clone(&run.partition.topic)) {
                tracing::warn!(topic = %run.partition.topic, "no handler is registered; records of the topic are passed over");
            }
            let (lane, partition, life) = (run.lane, run.partition.clone(), run.life);
            let token = self.stop.child();
            let running = lane::run(Arc::clone(&self.context), route, run, token.clone());
            let abort = self.tasks.spawn(running);
            self.running.insert(lane, Running { abort, token, partition, life });
        }
    }

    /// A run has ended.
    fn on_end(&mut self, ended: Ended) {
        self.running.remove(&ended.lane);
        self.lanes.handle_end(ended.lane);
        self.handled += ended.handled;
        match ended.outcome {
            Ok(Flow::Handled) => {}
            // Given up because of its own partition. What was left is handed back already.
            Ok(Flow::Abandoned) if !self.stop.is_cancelled() => {
                if !self.client.is_live(&ended.partition, ended.life) {
                    // The life is over: what waits in its other lanes comes again, or is in no log any more.
                    drop(self.lanes.revoke(&ended.partition, ended.life));
                }
            }
            Ok(Flow::Abandoned) => drop(self.left.insert((ended.partition, ended.life))),
            Err(error) => {
                self.left.insert((ended.partition, ended.life));
                self.on_failure(error);
            }
        }
    }

    /// Whether anything waits or runs.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.tasks.is_empty() && self.passing.is_empty()
    }

    /// Waits for the next thing that happens to the runs, the group or a commit, and sees to it. If dropped, nothing that
    /// has happened is lost.
    async fn next_event(&mut self) {
        tokio::select! {
            biased;
            Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.on_join(ended),
            Some(passed) = self.passing.join_next(), if !self.passing.is_empty() => self.on_letter(passed),
            // What has changed, also below, is looked up in `follow`.
            changed = self.client.changed(), if !self.is_closed => {
                if let Err(error) = changed {
                    self.is_closed = true;
                    self.on_failure(error);
                }
            }
            outcome = end_of(&mut self.committing) => self.on_commit(outcome),
            () = self.shared.steered() => {}
        }
    }

    /// Waits for the next event while no records are taken.
    async fn wait(&mut self) {
        let (client, wake_at) = (Arc::clone(&self.client), self.wake_at());
        tokio::select! {
            biased;
            () = self.next_event() => {}
            // Nobody polls meanwhile, so the listener is called here: a revocation waits for it.
            never = client.keep_listener_informed() => match never {},
            () = tokio::time::sleep_until(wake_at) => self.keep_alive_if_due(),
        }
        self.follow();
    }

    /// What there is to see to without waiting.
    fn follow(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.on_join(ended);
        }
        self.follow_group();
        self.follow_user();
    }

    fn on_join(&mut self, ended: std::result::Result<(tokio::task::Id, Ended), JoinError>) {
        match ended {
            Ok((_, ended)) => self.on_end(ended),
            // The run was aborted because its partition is gone; or user code other than a handler has panicked, such as
            // a condition of a policy.
            Err(gone) => {
                let lane = self.running.iter().find(|(_, running)| running.abort.id() == gone.id());
                let Some(lane) = lane.map(|(lane, _)| *lane) else { return };
                let running = self.running.remove(&lane);
                self.lanes.handle_end(lane);
                if let (Some(Running { partition, life, .. }), Ok(panic)) = (running, gone.try_into_panic()) {
                    // After a panic the run has handed nothing back, so the partition is rewound to what is not done.
                    let error = panicked(&*panic, &partition);
                    self.left.insert((partition, life));
                    self.on_failure(error);
                }
            }
        }
        self.follow_pauses();
    }

    /// When there is something to do that no event announces.
    fn wake_at(&self) -> Instant {
        // Once this ends, a lane that waits for more records is not started any more, and its time would stay in the
        // past.
        let gathered = self.lanes.poll_timeout().filter(|_| !self.stop.is_cancelled());
        gathered.map_or(self.alive_at, |at| at.min(self.alive_at))
    }

    fn keep_alive_if_due(&mut self) {
        if time::now() < self.alive_at {
            return;
        }
        if let Err(error) = self.client.keep_alive() {
            tracing::debug!(%error, "the consumer is closed");
        }
        self.alive_at = time::after(self.plan.keep_alive);
    }

    /// Runs what was taken until it is done or something fails; then nothing runs any more. What has to wait in a retry
    /// topic stays in its lanes. After a failure, running handlers have up to `limit` to end.
    pub(super) async fn drain(&mut self, limit: Duration) -> Result<()> {
        self.context.persists.store(false, Relaxed);
        self.follow_group();
        loop {
            self.pass_damage();
            // Started first, since only then it is known which lanes have to wait.
            self.start();
            if self.is_idle() || self.stop.is_cancelled() {
                return self.finish(limit).await;
            }
            if self.tasks.is_empty() && self.passing.is_empty() && self.lanes.are_at_rest(time::now()) {
                return Ok(());
            }
            self.wait().await;
        }
    }

    /// Begins nothing more, lets running handlers end, and rewinds to what is not done. Returns the failure, if there was
    /// one.
    pub(super) async fn finish(&mut self, limit: Duration) -> Result<()> {
        if !self.is_idle() {
            self.stop.cancel();
            let deadline = time::after(limit);
            while !self.tasks.is_empty() {
                if tokio::time::timeout_at(deadline, self.wait()).await.is_err() {
                    tracing::warn!(
                        handlers = self.tasks.len(),
                        ?limit,
                        "handlers that do not end are dropped"
                    );
                    break;
                }
            }
            // Letters that are on their way get a moment to arrive.
            let arriving = async {
                while let Some(passed) = self.passing.join_next().await {
                    self.on_letter(passed);
                }
            };
            let _elapsed = tokio::time::timeout(GRACE, arriving).await;
            self.halt(DROPPED_END_WITHIN).await;
        }
        if self.stop.is_cancelled() {
            self.settle();
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Takes and runs until `shutdown` completes or something fails, which [`finish`](Self::finish) tells. A retriable
    /// error of taking is logged by `log`.
    pub(super) async fn run<S: Future<Output = ()>>(
        &mut self,
        mut shutdown: Pin<&mut S>,
        wait: Duration,
        pause: Duration,
        log: impl Fn(&Error),
    ) {
        let mut not_before: Option<Instant> = None;
        self.context.persists.store(true, Relaxed);
        loop {
            self.follow();
            if self.failure.is_some() {
                return;
            }
            self.pass_damage();
            self.start();
            self.commit_beside();
            let client = Arc::clone(&self.client);
            let take = self.plan.take;
            let taking = async {
                if let Some(at) = not_before {
                    tokio::time::sleep_until(at).await;
                }
                client.take(take, wait).await
            };
            let commit_at = self.plan.auto_commit.then(|| self.commit_at()).flatten();
            let wake_at = commit_at.map_or_else(|| self.wake_at(), |at| at.min(self.wake_at()));
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return,
                () = self.next_event() => {}
                taken = taking => {
                    not_before = None;
                    match self.put(taken) {
                        Ok(()) => {}
                        Err(error) if error.is_retriable() => {
                            log(&error);
                            not_before = Some(time::after(pause));
                        }
                        Err(error) => self.on_failure(error),
                    }
                }
                () = tokio::time::sleep_until(wake_at) => self.keep_alive_if_due(),
            }
        }
    }

    pub(super) async fn close_outbox(&self, limit: Duration) {
        self.context.outbox.close(limit).await;
    }
}

/// A panic that no handler's guard has caught.
fn panicked(panic: &(dyn Any + Send), partition: &TopicPartition) -> Error {
    let text = format!("a condition or another closure of the consumer panicked: {}", lane::text_of(panic));
    Error::new(ErrorKind::Handler, text)
        .with_topic(Arc::clone(&partition.topic))
        .with_partition(partition.partition)
        .with_hint("what was not handled of the partition comes again")
}
