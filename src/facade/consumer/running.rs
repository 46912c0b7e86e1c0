//! A [`Consumer`] at work: the calls that take records, commit and leave, and what they set up and tidy away. A call that is
//! dropped leaves no task behind: [`CallGuard`] ends them.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

#[cfg(feature = "signal")]
use futures_core::Stream;
use futures_util::FutureExt as _;

use super::{
    CLOSE_TIMEOUT, Consumer, SUBJECT,
    control::{Rebalance, Shared},
    engine::{Engine, Plan, commit, is_of_rebalance},
};
#[cfg(feature = "signal")]
use crate::facade::{CancellationToken, HURRY, signals};
use crate::{
    admin::KafkaAdmin,
    consumer::KafkaConsumer,
    driver,
    error::{Error, ErrorKind, Result},
    facade::{
        LogSubject, RUN_PAUSE,
        dispatch::lanes::{Bounds, Ordering},
        log, logged,
        outbox::Outbox,
    },
    time,
};

/// How long [`Consumer::run`] waits for records at a time.
const RUN_POLL: Duration = Duration::from_secs(1);
/// How long the producer of dead letters may take to end.
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(1);

impl Consumer {
    /// Polls once, waiting up to `timeout` for records, passes them to their handlers, waits for these, and commits if
    /// automatic commits are on. Returns how many records were handled. The first call connects before that, which takes
    /// up to `default.api.timeout.ms` where no broker or no coordinator answers. Records of a retry topic that have to
    /// wait keep waiting while it is not called, and are handled by a later call.
    ///
    /// # Errors
    /// The handler's error ([`Handler`](ErrorKind::Handler)) or that of reading the value ([`Json`](ErrorKind::Json)),
    /// with topic, partition and offset, if the policy is to stop: this record and those behind it come again with the
    /// next call, and what was handled before is committed. Otherwise that of connecting, polling, dead-lettering or
    /// committing, by which no record is lost. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, the running handlers end where they stand; their records and what follows come again with the next call. A call
    /// that is dropped while it connects leaves its client to the next; finding the coordinator and the group's offsets begins
    /// anew, and must fit between two such drops.
    pub async fn consume(&mut self, timeout: Duration) -> Result<usize> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::consume", subject: SUBJECT };
        let outcome = self.consume_once(timeout).await;
        logged(PLACE, outcome)
    }

    async fn consume_once(&mut self, timeout: Duration) -> Result<usize> {
        driver::check_runtime()?;
        let (limit, auto_commit) = (self.drain_timeout, self.auto_commit);
        let mut working = self.work().await?;
        let engine = &mut *working.engine;
        engine.take(timeout).await?;
        let outcome = engine.drain(limit).await;
        let handled = engine.take_handled();
        working.is_done = true;
        if !auto_commit {
            return outcome.map(|()| handled);
        }
        match (working.engine.commit().await, outcome) {
            (Ok(()), outcome) => outcome.map(|()| handled),
            (Err(error), Ok(())) if !is_of_rebalance(&error) => Err(error),
            (Err(error), outcome) => {
                tracing::warn!(%error, "what was handled could not be committed; it may be handled again");
                outcome.map(|()| handled)
            }
        }
    }

    /// Consumes until `shutdown` completes, or [`ConsumerHandle::stop`](crate::ConsumerHandle::stop) is called; then lets
    /// the running handlers finish (up to [`drain_timeout`](Self::drain_timeout)), commits if automatic commits are on,
    /// and leaves the group. If they are off, commit meanwhile by
    /// [`ConsumerHandle::commit`](crate::ConsumerHandle::commit), and at its end in
    /// [`RebalanceListener::revoked`](crate::RebalanceListener::revoked), by the client that is given; what is not committed
    /// when it ends comes again.
    ///
    /// Errors that may pass, such as a lost connection, are logged and do not end it.
    ///
    /// # Errors
    /// As [`consume`](Self::consume), for errors that stay. What was handled is committed and the group is left before that.
    /// Logged before it is returned.
    ///
    /// # Cancel safety
    /// As [`consume`](Self::consume); the group is left in the background only when the consumer is dropped.
    pub async fn run<F: Future>(&mut self, shutdown: F) -> Result<()> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::run", subject: SUBJECT };
        let (left, mut outcome) = (LeaveGuard(self), Ok(()));
        let closed = left.0.run_and_leave(PLACE, shutdown, &mut outcome).await;
        outcome.and(closed)
    }

    /// [`run`](Self::run), and how leaving went. Dropped while it leaves the group, it leaves that to whoever goes on with
    /// [`leave`](Self::leave), who finds in `outcome` what ended it.
    async fn run_and_leave<F: Future>(
        &mut self,
        place: LogSubject,
        shutdown: F,
        outcome: &mut Result<()>,
    ) -> Result<()> {
        // Also if this future is dropped: what has ended this `run` must not end the next.
        let _renewed = RenewStopOnDrop(Arc::clone(&self.shared));
        logged(place, driver::check_runtime())?;
        let stop = self.shared.stop_token();
        let mut shutdown = pin!(
            async {
                tokio::select! { biased; _ = shutdown => {} () = stop.cancelled() => {} }
            }
            .fuse()
        );
        let begun = (time::now(), self.shared.counters.snapshot());
        *outcome = logged(place, self.run_until(shutdown.as_mut()).await);
        let closed = self.leave(CLOSE_TIMEOUT).await;
        let done = self.shared.counters.snapshot();
        tracing::info!(
            seconds = (time::now() - begun.0).as_secs_f64(),
            handled = done.handled - begun.1.handled,
            failed = done.failed - begun.1.failed,
            retried = done.retried - begun.1.retried,
            skipped = done.skipped - begun.1.skipped,
            dead_lettered = done.dead_lettered - begun.1.dead_lettered,
            "the consumer has ended and left its group"
        );
        closed
    }

    async fn run_until<S: futures_util::future::FusedFuture<Output = ()>>(
        &mut self,
        mut shutdown: Pin<&mut S>,
    ) -> Result<()> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::run", subject: SUBJECT };
        let limit = self.drain_timeout;
        // Why it cannot be connected is told once.
        let mut is_told = false;
        loop {
            let round = async {
                // Connecting may take long, and a shutdown must not wait for it.
                let mut working = tokio::select! {
                    biased;
                    () = shutdown.as_mut() => return Ok(()),
                    working = self.work() => working?,
                };
                is_told = false;
                let engine = &mut *working.engine;
                engine.run(shutdown.as_mut(), RUN_POLL, RUN_PAUSE, |error| log(PLACE, error)).await;
                let finished = engine.finish(limit).await;
                working.is_done = true;
                finished
            };
            match round.await {
                Err(error) if error.is_retriable() && !shutdown.is_terminated() => {
                    if !std::mem::replace(&mut is_told, true) {
                        log(PLACE, &error);
                    }
                    tokio::select! {
                        biased;
                        () = shutdown.as_mut() => return Ok(()),
                        () = tokio::time::sleep(RUN_PAUSE) => {}
                    }
                }
                ended => return ended,
            }
        }
    }

    /// [`run`](Self::run) until the process is told to end: by SIGTERM, SIGINT (ctrl-c), or what the system has in their place.
    /// Needs the feature `signal`, which is on by default.
    ///
    /// A second signal, a second or more after the first, does not wait for running handlers: they are dropped where they
    /// stand, and their records are delivered again. What is done is still committed and the group is left, within 5 s.
    /// From the first call on, for as long as the process lives, these signals no longer end it by themselves.
    ///
    /// # Errors
    /// As [`run`](Self::run); also if no signal can be listened for.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    #[cfg(feature = "signal")]
    pub async fn run_until_signal(&mut self) -> Result<()> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Consumer::run_until_signal", subject: SUBJECT };
        let signals = logged(PLACE, signals::listen())?;
        self.run_until_told(signals).await
    }

    /// [`run`](Self::run) until the first of these. With the second, what runs ends where it stands.
    #[cfg(feature = "signal")]
    pub(super) async fn run_until_told(&mut self, signals: impl Stream<Item = Result<()>>) -> Result<()> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Consumer::run_until_signal", subject: SUBJECT };
        let left = LeaveGuard(self);
        let first = CancellationToken::new();
        let (mut failure, mut outcome) = (Ok(()), Ok(()));
        let second = signals::second(signals, |heard| {
            failure = logged(PLACE, heard);
            if failure.is_ok() {
                tracing::info!("the process is told to end: the consumer ends");
            }
            first.cancel();
        });
        let left_in_time = tokio::select! {
            biased;
            closed = left.0.run_and_leave(PLACE, first.cancelled(), &mut outcome) => Some(closed),
            () = second => None,
        };
        let closed = match left_in_time {
            Some(closed) => closed,
            None => {
                tracing::warn!("told to end a second time: running handlers are dropped where they stand");
                left.0.leave(HURRY).await
            }
        };
        failure.and(outcome).and(closed)
    }

    /// Commits what was handled and not committed yet: for consumers without automatic commits. Does nothing while the
    /// consumer is not connected, as after [`run`](Self::run): [`ConsumerHandle::commit`](crate::ConsumerHandle::commit)
    /// commits while it runs.
    ///
    /// # Errors
    /// The coordinator's error; after a rebalance, the partitions may be another member's, which handles the records again.
    /// [`ErrorKind::Timeout`] after `default.api.timeout.ms`. Logged before it is returned.
    ///
    /// # Cancel safety
    /// A dropped commit may still be done.
    pub async fn commit(&mut self) -> Result<()> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::commit", subject: SUBJECT };
        logged(PLACE, driver::check_runtime())?;
        let Some(engine) = &mut self.engine else { return Ok(()) };
        if self.interrupted {
            // Handlers of a call that was dropped may just have finished, and what they did is committed too.
            engine.recover().await;
            self.interrupted = false;
        }
        // Whoever commits himself is told that something was lost.
        logged(PLACE, commit(Arc::clone(&engine.client), Arc::clone(&self.shared.counters)).await)
    }

    /// Commits what was handled if automatic commits are on, and leaves the group. Returns within 30 s or so.
    ///
    /// # Errors
    /// That of committing, else that of leaving; the group then notices by `session.timeout.ms`. Logged before it is returned.
    /// In the middle of a rebalance there is nothing to commit, which is no error.
    ///
    /// # Cancel safety
    /// If dropped, it goes on leaving in the background.
    pub async fn close(&mut self) -> Result<()> {
        self.close_within(CLOSE_TIMEOUT).await
    }

    /// [`close`](Self::close) with a limit of its own for committing and leaving.
    ///
    /// # Errors
    /// As [`close`](Self::close); [`ErrorKind::Timeout`] when the limit has passed.
    ///
    /// # Cancel safety
    /// As [`close`](Self::close).
    pub async fn close_within(&mut self, limit: Duration) -> Result<()> {
        let left = LeaveGuard(self);
        left.0.leave(limit).await
    }

    /// Commits and leaves the group. Dropped in the middle, it goes on with the next call.
    async fn leave(&mut self, limit: Duration) -> Result<()> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::close", subject: SUBJECT };
        logged(PLACE, driver::check_runtime())?;
        self.connecting = None;
        let Some(engine) = &mut self.engine else { return Ok(()) };
        self.interrupted = false;
        let is_committed = self.leaves == LeaveStage::Closing;
        if self.leaves == LeaveStage::Not {
            self.leaves = LeaveStage::Committing;
        }
        let deadline = time::after(limit);
        // A part of the time is kept for the commit.
        engine.halt(limit / 2).await;
        engine.follow_group();
        let committed = match self.auto_commit && !is_committed {
            true => tokio::time::timeout_at(deadline, engine.commit()).await,
            false => Ok(Ok(())),
        };
        let is_refused = matches!(&committed, Ok(Err(error)) if is_of_rebalance(error));
        let committed = committed.map(|committed| match committed {
            // Between two assignments there is nothing to commit: it was committed when the partitions went.
            Err(error) if is_of_rebalance(&error) => {
                tracing::warn!(%error, "nothing could be committed at the end; it may be handled again");
                Ok(())
            }
            committed => committed,
        });
        let committed = committed.unwrap_or_else(|_elapsed| {
            Err(Error::new(ErrorKind::Timeout, "what was handled could not be committed in time")
                .with_hint("give close more time; these records come again"))
        });
        self.leaves = LeaveStage::Closing;
        // What was lost meanwhile is told as that.
        engine.follow_group();
        let had = engine.client.assignment();
        let left = || deadline.saturating_duration_since(time::now()).max(Duration::from_millis(100));
        let closed = engine.client.close(left()).await;
        // A letter that is still on its way was given up: its record comes again.
        engine.close_outbox(left().min(OUTBOX_TIMEOUT)).await;
        (self.engine, self.leaves) = (None, LeaveStage::Not);
        if !had.is_empty() {
            self.shared.announce(&if committed.is_ok() && !is_refused {
                Rebalance::Revoked(had)
            } else {
                Rebalance::Lost(had)
            });
        }
        logged(PLACE, committed.and(closed))
    }

    /// The engine, connected, with nothing left of a call that was dropped.
    pub(super) async fn work(&mut self) -> Result<CallGuard<'_>> {
        if self.engine.is_none() {
            let client = self.connect().await?;
            if let Some(listener) = &self.listener {
                client.listen(Arc::clone(listener));
            }
            self.shared.connect(&client);
            let environment = self.kafka.config().resolve_client()?.environment;
            let outbox = Outbox::new(self.kafka.clone());
            self.engine = Some(Box::new(Engine::new(
                client,
                self.plan(),
                outbox,
                Arc::clone(&self.shared),
                environment,
            )));
        }
        let plan = self.plan();
        let engine = self.engine.as_mut().ok_or_else(|| Error::closed("consumer"))?;
        if self.interrupted {
            engine.recover().await;
            self.interrupted = false;
        }
        engine.follow_plan(plan)?;
        engine.client.set_at_work(Some(engine.at_work()));
        Ok(CallGuard { engine, interrupted: &mut self.interrupted, is_done: false })
    }

    /// A client of all topics that are consumed, retry topics included; and those of policies there were.
    async fn connect(&mut self) -> Result<Arc<KafkaConsumer>> {
        let client = match &self.connecting {
            Some(client) => Arc::clone(client),
            None => Arc::new(self.kafka.begin_consumer(self.overrides.clone())?),
        };
        // The next call goes on with it, or calls that are dropped too soon would never get connected.
        self.connecting = Some(Arc::clone(&client));
        let former = match client.connect().await {
            // Before anything can be assigned.
            Ok(()) => self.find_former(&client).await,
            Err(error) => Err(error),
        };
        // A new client would log anew that brokers are away.
        if !matches!(&former, Err(error) if error.is_retriable()) {
            self.connecting = None;
        }
        self.former = former?;
        let plan = self.plan();
        client.read_from_start(plan.read_from_start());
        plan.subscribe(&client)?;
        Ok(client)
    }

    /// Retry topics in which this group has committed offsets and that the present policies do not name. What waits there
    /// is the group's own work, which nobody else would ever read.
    async fn find_former(&self, client: &KafkaConsumer) -> Result<Arc<[Arc<str>]>> {
        let present = Plan { former: Arc::default(), ..self.plan() }.reads();
        let former: Vec<_> = match KafkaAdmin::over(client.cluster()).group_offsets(&self.group).await {
            Ok(offsets) => {
                let mut topics: Vec<_> = offsets.into_keys().map(|partition| partition.topic).collect();
                topics.dedup();
                topics.retain(|topic| {
                    self.routes.is_former_retry_topic(&self.topics, topic) && !present.contains(topic)
                });
                topics
            }
            // The member will need the coordinator as well, so that this is an error of connecting.
            Err(error) if error.is_retriable() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "it is not known whether records wait in retry topics of an earlier error policy");
                Vec::new()
            }
        };
        if !former.is_empty() {
            tracing::info!(
                topics = former.join(", "),
                "retry topics of an earlier error policy are read as well"
            );
        }
        Ok(former.into())
    }

    pub(super) fn plan(&self) -> Plan {
        let runs = self.concurrency.unwrap_or(match self.ordering {
            Ordering::Partition => usize::MAX,
            Ordering::Key | Ordering::Unordered => 1,
        });
        let at_once = self.concurrency.unwrap_or(1).saturating_mul(4);
        // A batch gathers while the one before it is handled.
        let batches = self.routes.largest_batch().saturating_mul(2);
        let records = self.take.saturating_mul(2).max(at_once).max(batches).max(1000);
        Plan {
            topics: self.topics.clone(),
            routes: Arc::clone(&self.routes),
            ordering: self.ordering,
            bounds: Bounds { runs, records, bytes: self.buffer, span: (records as u64).saturating_mul(10) },
            take: self.take,
            keep_alive: self.keep_alive,
            auto_commit: self.auto_commit,
            former: Arc::clone(&self.former),
            group: Arc::clone(&self.group),
        }
    }
}

/// How far a consumer has come that leaves its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LeaveStage {
    #[default]
    Not,
    Committing,
    Closing,
}

/// A consumer that may be dropped while it leaves its group: it goes on leaving in the background.
struct LeaveGuard<'a>(&'a mut Consumer);

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.0.leaves) != LeaveStage::Not {
            self.0.engine = None;
        }
    }
}

struct RenewStopOnDrop(Arc<Shared>);

impl Drop for RenewStopOnDrop {
    fn drop(&mut self) {
        self.0.renew_stop();
    }
}

/// A call at work. Dropped before it is done, it ends what it has started.
pub(super) struct CallGuard<'a> {
    pub(super) engine: &'a mut Engine,
    interrupted: &'a mut bool,
    is_done: bool,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.engine.client.set_at_work(None);
        if !self.is_done {
            self.engine.abort_all();
            *self.interrupted = true;
        }
    }
}
