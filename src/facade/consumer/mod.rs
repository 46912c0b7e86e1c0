//! [`Consumer`]: hands records to the handlers of their topics, beside each other where their order allows it, and commits
//! what they have handled.
//!
//! The builder and the calls of users; [`engine`] does the work while it is connected, [`lane`] takes a record through its
//! handlers. A dropped call leaves no task behind: [`Working`] ends them.

#[cfg(feature = "unstable-benches")]
mod bench;
mod control;
mod engine;
mod lane;
mod load;
mod register;

use std::{
    collections::BTreeMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;

pub use self::control::{ConsumerHandle, Rebalance};
use self::{
    control::Shared,
    engine::{Engine, Plan},
};
use super::{
    KafkaInstance, Place,
    consumed::Consumed,
    dispatch::lanes::{Bounds, Ordering},
    log, logged,
    outbox::Outbox,
    policy::ErrorPolicy,
    routes::{Routes, Topics},
};
use crate::{
    config::{ConsumerConfig, GroupProtocol},
    consumer::{KafkaConsumer, Listen, RebalanceListener},
    driver,
    error::{Error, ErrorKind, Result},
    record::TopicPartition,
    telemetry::ConsumerMetrics,
    time,
};

const SUBJECT: &str = "Kafka Consumer";
/// How long [`Consumer::run`] waits for records before it looks around.
const RUN_POLL: Duration = Duration::from_secs(1);
/// The pause of [`Consumer::run`] after an error that may pass by itself.
const RUN_PAUSE: Duration = Duration::from_millis(500);
/// How long [`Consumer::close`] tries to leave the group, and handlers have to end, as in Java.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the producer of dead letters may take to end.
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(1);

/// Hands the records of its topics to handlers, at least once each, and commits what they have handled.
///
/// * **Order.** The records of a partition are handled one after another, in order; partitions run beside each other. See
///   [`ordering`](Self::ordering) and [`concurrency`](Self::concurrency) for more. Several handlers of a topic run in the
///   order they were registered.
/// * **Commits.** With `enable.auto.commit` (the default), each [`consume`](Self::consume) ends with one commit of what its
///   handlers have handled. [`run`](Self::run) commits beside its handlers: after `max.poll.records` records, when there is
///   nothing left to do, and else ten times a second; also before partitions go to another member and when it ends. So a
///   crash hands out again what was done in the last moment, and no more. Without it, [`commit`](Self::commit) alone commits, and also never past a record that was not
///   handled. A record counts as handled when every handler of its topic has returned `Ok`, or when the
///   [`ErrorPolicy`] has dealt with it.
/// * **Errors.** [`error_policy`](Self::error_policy) says what happens when a handler fails, panics or takes too long.
/// * **Topics without a handler.** Their records count as handled; a warning is logged once for each topic.
/// * **Long handlers.** The member stays in its group however long a handler takes, and a handler that is stuck holds up
///   its own lane alone. When partitions go to another member, nothing more is begun in them, what is at work is waited for
///   (within `max.poll.interval.ms`), and what is done is committed before they go.
///
/// Handlers run as tasks of the runtime. It connects when it first consumes, and leaves the group in
/// [`close`](Self::close). After that, or after [`run`](Self::run), it can consume again: it joins anew and goes on at the
/// committed offsets.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use std::time::Duration;
///
/// use dtkafka::{Consumer, ErrorPolicy, Message};
///
/// #[derive(serde::Deserialize)]
/// struct Order { id: u64 }
///
/// let mut consumer = Consumer::new(&kafka, ["orders"])?
///     .register_handler("orders", async |order: Message<Order>| {
///         println!("{} at {}-{}", order.value.id, order.partition, order.offset);
///         Ok(())
///     })?
///     .error_policy(ErrorPolicy::retry(3, Duration::from_millis(200)).then_dead_letter("orders-dead"))?;
/// consumer.consume(Duration::from_secs(1)).await?; // once …
/// consumer.run_until_signal().await?;              // … or until told to stop
/// # Ok(()) }
/// ```
pub struct Consumer {
    kafka: KafkaInstance,
    overrides: ConsumerConfig,
    topics: Consumed,
    routes: Arc<Routes>,
    ordering: Ordering,
    concurrency: Option<usize>,
    drain_timeout: Duration,
    auto_commit: bool,
    /// How often the member says that it is alive while handlers run.
    keep_alive: Duration,
    take: usize,
    buffer: usize,
    engine: Option<Box<Engine>>,
    /// A call was dropped in the middle of its work.
    interrupted: bool,
    shared: Arc<Shared>,
    listener: Option<Arc<dyn Listen>>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("topics", &self.topics)
            .field("routes", &self.routes)
            .field("ordering", &self.ordering)
            .field("connected", &self.engine.is_some())
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// A consumer of these topics with the settings of the instance; nothing connects yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`, or naming what else is wrong; [`ErrorKind::InvalidArgument`] without a topic
    /// or for an empty name. Logged before it is returned.
    pub fn new(kafka: &KafkaInstance, topics: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        Self::new_with(kafka, topics, |consumer| consumer)
    }

    /// A consumer with settings of its own, which win over those of the instance; nothing connects yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_with(
        kafka: &KafkaInstance,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<Self> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::new", subject: SUBJECT };
        let overrides = overrides(ConsumerConfig::new());
        logged(PLACE, Self::build(kafka, overrides, |_| Consumed::named(topics)))
    }

    /// A consumer of all topics whose whole names match this regular expression, those made later too; nothing connects yet.
    ///
    /// Who matches, and in which syntax, is as in [`KafkaConsumer::subscribe_pattern`]; new topics are found within
    /// `metadata.max.age.ms`. Handlers may name a topic, some of the topics ([`Topics::matching`]), or all others. Retry topics
    /// of the [`ErrorPolicy`] are read as well. **A dead letter topic must not match**: one that the policy names is refused where
    /// the client can read the pattern. What is left, such as one that a closure chooses, is yours to look after; only a letter
    /// to the topic that its record came from is not written, and stops the consumer.
    ///
    /// ```no_run
    /// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
    /// use dtkafka::{Consumer, Message, Topics};
    ///
    /// let mut consumer = Consumer::matching(&kafka, r"orders-[a-z]{2}")?
    ///     .register_handler("orders-eu", async |order: Message<u64>| {
    ///         println!("from Europe: {}", order.value);
    ///         Ok(())
    ///     })?
    ///     .register_handler(Topics::others(), async |order: Message<u64>| {
    ///         println!("from {}: {}", order.topic(), order.value);
    ///         Ok(())
    ///     })?;
    /// consumer.run_until_signal().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with the pattern, for one that cannot be read; [`ErrorKind::Unsupported`] where the client
    /// is to match and was built without the feature `pattern`; [`ErrorKind::Config`] as [`new`](Self::new). Logged before it is
    /// returned.
    pub fn matching(kafka: &KafkaInstance, pattern: &str) -> Result<Self> {
        Self::matching_with(kafka, pattern, |consumer| consumer)
    }

    /// [`matching`](Self::matching) with settings of its own, which win over those of the instance.
    ///
    /// # Errors
    /// As [`matching`](Self::matching).
    pub fn matching_with(
        kafka: &KafkaInstance,
        pattern: &str,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<Self> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::matching", subject: SUBJECT };
        let overrides = overrides(ConsumerConfig::new());
        let outcome = Self::build(kafka, overrides, |by_brokers| Consumed::matching(pattern, by_brokers));
        logged(PLACE, outcome)
    }

    fn build(
        kafka: &KafkaInstance,
        overrides: ConsumerConfig,
        topics: impl FnOnce(bool) -> Result<Consumed>,
    ) -> Result<Self> {
        let settings = overrides.merged(kafka.config()).resolve_consumer()?;
        if settings.group_id.is_none() {
            return Err(Error::new(ErrorKind::Config, "a consumer with handlers needs a group")
                .with_hint("set group.id"));
        }
        Ok(Self {
            kafka: kafka.clone(),
            topics: topics(settings.group_protocol == GroupProtocol::Consumer)?,
            routes: Arc::default(),
            ordering: Ordering::default(),
            concurrency: None,
            drain_timeout: CLOSE_TIMEOUT,
            auto_commit: settings.enable_auto_commit,
            keep_alive: settings.max_poll_interval / 3,
            take: settings.max_poll_records,
            buffer: settings.fetch_buffer_memory,
            engine: None,
            interrupted: false,
            shared: Arc::default(),
            listener: None,
            overrides,
        })
    }

    /// Which records are handled one after the other. Default: those of a partition.
    #[must_use]
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.ordering = ordering;
        self
    }

    /// How many handlers run at once; 0 counts as 1. Default: with [`Ordering::Partition`] as many as there are partitions,
    /// with [`Ordering::Key`] and [`Ordering::Unordered`] 1.
    ///
    /// What waits is bounded per partition, in records and in bytes (`fetch.buffer.memory` in all), so that many keys cost
    /// no more than few. A partition that is full is paused by itself.
    #[must_use]
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = Some(handlers.max(1));
        self
    }

    /// How long handlers at work may take to end after a shutdown, or after another one has failed; they are dropped then,
    /// and their records come again. Default: 30 s.
    #[must_use]
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = limit;
        self
    }

    /// Calls `listener` for what happens to the consumer's partitions, within [`consume`](Self::consume) and
    /// [`run`](Self::run). It should not block.
    #[must_use]
    pub fn on_rebalance(self, listener: impl Fn(&Rebalance) + Send + Sync + 'static) -> Self {
        self.shared.listen(Arc::new(listener));
        self
    }

    /// Has this listener told of partitions that come and go, and waits for it: before records of new partitions are handled,
    /// and before partitions go, when their handlers are done and what they did may still be committed. In place of the one
    /// before; it is used from the next connecting on.
    #[must_use]
    pub fn rebalance_listener(mut self, listener: impl RebalanceListener) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// What happens when a handler fails, for all topics without a policy of their own. Default: [`ErrorPolicy::Stop`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a policy without an attempt, or a dead letter topic that is empty or among the topics
    /// consumed. Logged before it is returned.
    pub fn error_policy(self, policy: ErrorPolicy) -> Result<Self> {
        self.error_policy_for(Topics::others(), policy)
    }

    /// What happens when a handler of these topics fails.
    ///
    /// # Errors
    /// As [`error_policy`](Self::error_policy).
    pub fn error_policy_for(mut self, topics: impl Into<Topics>, policy: ErrorPolicy) -> Result<Self> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::error_policy", subject: SUBJECT };
        logged(PLACE, policy.check(&self.topics))?;
        Arc::make_mut(&mut self.routes).set_policy(topics.into(), policy);
        Ok(self)
    }

    /// A handle that can be asked, and can pause and stop it, while it runs.
    pub fn handle(&self) -> ConsumerHandle {
        ConsumerHandle { shared: Arc::clone(&self.shared) }
    }

    /// The client underneath, while it is connected. What it has taken is this consumer's: poll through this one only.
    pub fn client(&self) -> Option<&KafkaConsumer> {
        self.engine.as_ref().map(|engine| &*engine.client)
    }

    /// The partitions it has, sorted; none while it is not connected.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.handle().assignment()
    }

    /// How far each of its partitions is behind, as of the last fetch. Costs no request.
    pub fn lag(&self) -> BTreeMap<TopicPartition, i64> {
        self.handle().lag()
    }

    /// What it has done since it was made.
    pub fn metrics(&self) -> ConsumerMetrics {
        self.shared.metrics()
    }

    /// Polls once, waiting for records up to `timeout`, hands what came to the handlers, waits for them, and commits if
    /// automatic commits are on. Returns how many records were handled.
    ///
    /// # Errors
    /// The handler's error ([`Handler`](ErrorKind::Handler)) or that of reading the value ([`Json`](ErrorKind::Json)), with topic,
    /// partition and offset, where the policy is to stop: this record and what follows come again with the next call, and
    /// what was handled before is committed. Otherwise that of connecting, polling, dead-lettering or committing; no record
    /// is lost by it. Logged before it is returned.
    ///
    /// # Cancel safety
    /// Dropped, the running handlers end where they stand; their records and what follows come again with the next call.
    pub async fn consume(&mut self, timeout: Duration) -> Result<usize> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::consume", subject: SUBJECT };
        let outcome = self.consume_once(timeout).await;
        logged(PLACE, outcome)
    }

    async fn consume_once(&mut self, timeout: Duration) -> Result<usize> {
        driver::check_runtime()?;
        let (limit, auto_commit) = (self.drain_timeout, self.auto_commit);
        let mut working = self.work().await?;
        let engine = working.engine();
        engine.take(timeout).await?;
        let outcome = engine.drain(pin!(std::future::pending::<()>()), limit).await;
        let handled = engine.take_handled();
        working.is_done = true;
        if !auto_commit {
            return outcome.map(|()| handled);
        }
        match (working.engine().commit().await, outcome) {
            (Ok(()), outcome) => outcome.map(|()| handled),
            (Err(error), Ok(())) if !is_of_rebalance(&error) => Err(error),
            (Err(error), outcome) => {
                tracing::warn!(%error, "what was handled could not be committed; it may be handled again");
                outcome.map(|()| handled)
            }
        }
    }

    /// Consumes until `shutdown` completes, or [`ConsumerHandle::stop`] is called; then lets the running handlers finish (up
    /// to [`drain_timeout`](Self::drain_timeout)), commits if automatic commits are on, and leaves the group.
    ///
    /// Errors that may pass by themselves, such as a lost connection, are logged and do not end it.
    ///
    /// # Errors
    /// As [`consume`](Self::consume), for errors that stay. What was handled is committed and the group is left before that.
    /// Logged before it is returned.
    ///
    /// # Cancel safety
    /// As [`consume`](Self::consume); the group is left in the background only when the consumer is dropped.
    pub async fn run<F: Future>(&mut self, shutdown: F) -> Result<()> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::run", subject: SUBJECT };
        // Also where this future is dropped: the next `run` is not ended by what ended this one.
        let _renewed = RenewStop(Arc::clone(&self.shared));
        logged(PLACE, driver::check_runtime())?;
        let stop = self.shared.stop_token();
        let mut shutdown = pin!(
            async {
                tokio::select! { biased; _ = shutdown => {} () = stop.cancelled() => {} }
            }
            .fuse()
        );
        let begun = (time::now(), self.shared.counters.snapshot());
        let outcome = self.run_until(shutdown.as_mut()).await;
        let closed = self.close().await;
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
        logged(PLACE, outcome).and(closed)
    }

    async fn run_until<S: futures_util::future::FusedFuture<Output = ()>>(
        &mut self,
        mut shutdown: Pin<&mut S>,
    ) -> Result<()> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::run", subject: SUBJECT };
        let limit = self.drain_timeout;
        loop {
            let round = async {
                // Connecting may take long; a shutdown does not wait for it.
                let mut working = tokio::select! {
                    biased;
                    () = shutdown.as_mut() => return Ok(()),
                    working = self.work() => working?,
                };
                let engine = working.engine();
                let ended =
                    engine.run(shutdown.as_mut(), RUN_POLL, RUN_PAUSE, |error| log(PLACE, error)).await;
                let finished = engine.finish(limit).await;
                working.is_done = true;
                ended.and(finished)
            };
            match round.await {
                Err(error) if error.is_retriable() && !shutdown.is_terminated() => {
                    log(PLACE, &error);
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
    /// # Errors
    /// As [`run`](Self::run); also if no signal can be listened for.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    #[cfg(feature = "signal")]
    pub async fn run_until_signal(&mut self) -> Result<()> {
        let failed = |cause: std::io::Error| {
            Error::new(ErrorKind::InvalidArgument, "signals cannot be listened for").with_source(cause)
        };
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
            self.run(async {
                tokio::select! {
                    biased;
                    _ = terminate.recv() => tracing::info!("SIGTERM: the consumer ends"),
                    _ = interrupt.recv() => tracing::info!("SIGINT: the consumer ends"),
                }
            })
            .await
        }
        #[cfg(not(unix))]
        {
            let mut outcome = Ok(());
            let ran = self.run(async { outcome = tokio::signal::ctrl_c().await }).await;
            outcome.map_err(failed).and(ran)
        }
    }

    /// Commits what was handled and not committed yet: for consumers without automatic commits.
    ///
    /// # Errors
    /// The coordinator's error; after a rebalance, the partitions may be another member's, which handles the records again.
    /// [`ErrorKind::Timeout`] after `default.api.timeout.ms`. Logged before it is returned.
    ///
    /// # Cancel safety
    /// A dropped commit may still be done.
    pub async fn commit(&mut self) -> Result<()> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::commit", subject: SUBJECT };
        logged(PLACE, driver::check_runtime())?;
        let Some(engine) = &mut self.engine else { return Ok(()) };
        if self.interrupted {
            // Its handlers may just have finished what the last of them did.
            engine.recover().await;
            self.interrupted = false;
        }
        logged(PLACE, engine.commit().await)
    }

    /// Commits what was handled if automatic commits are on, and leaves the group. Returns within 30 s or so.
    ///
    /// # Errors
    /// That of committing, else that of leaving; the group then notices by `session.timeout.ms`. Logged before it is returned.
    /// In the middle of a rebalance there is nothing to commit, which is no error.
    ///
    /// # Cancel safety
    /// Dropped, it goes on leaving in the background.
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
        const PLACE: Place = Place { controller: "dtkafka::Consumer::close", subject: SUBJECT };
        logged(PLACE, driver::check_runtime())?;
        let Some(mut engine) = self.engine.take() else { return Ok(()) };
        self.interrupted = false;
        engine.halt().await;
        let deadline = time::after(limit);
        let committed = match self.auto_commit {
            true => tokio::time::timeout_at(deadline, engine.commit()).await,
            false => Ok(Ok(())),
        };
        let committed = committed.map(|committed| match committed {
            // Between two assignments it has nothing: what it had was committed as it went.
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
        let left = || deadline.saturating_duration_since(time::now()).max(Duration::from_millis(100));
        let closed = engine.client.close(left()).await;
        // A letter that is still on its way was given up: its record comes again.
        engine.close_outbox(left().min(OUTBOX_TIMEOUT)).await;
        logged(PLACE, committed.and(closed))
    }

    /// The engine, connected, with nothing left of a call that was dropped.
    async fn work(&mut self) -> Result<Working<'_>> {
        if self.engine.is_none() {
            let client = Arc::new(self.connect().await?);
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
        engine.follow_plan(plan);
        engine.client.set_at_work(true);
        Ok(Working { engine, interrupted: &mut self.interrupted, is_done: false })
    }

    /// A client of all topics that are consumed, retry topics included.
    async fn connect(&self) -> Result<KafkaConsumer> {
        let client = self.kafka.start_consumer(&[], self.overrides.clone()).await?;
        // Before anything can be assigned.
        client.read_from_start(self.plan().read_from_start());
        match &self.topics {
            Consumed::Named(topics) => {
                let topics: Vec<_> = topics.iter().cloned().chain(self.routes.retry_topics(topics)).collect();
                client.subscribe(&topics)?;
            }
            Consumed::Matching { text, .. } => {
                client.subscribe_pattern(&self.routes.with_retry_topics(text))?;
            }
        }
        Ok(client)
    }

    fn plan(&self) -> Plan {
        let runs = self.concurrency.unwrap_or(match self.ordering {
            Ordering::Partition => usize::MAX,
            Ordering::Key | Ordering::Unordered => 1,
        });
        let records = (2 * self.take).max(4 * self.concurrency.unwrap_or(1)).max(1000);
        Plan {
            topics: self.topics.clone(),
            routes: Arc::clone(&self.routes),
            ordering: self.ordering,
            bounds: Bounds { runs, records, bytes: self.buffer, span: 10 * records as u64 },
            take: self.take,
            keep_alive: self.keep_alive,
            auto_commit: self.auto_commit,
        }
    }
}

struct RenewStop(Arc<Shared>);

impl Drop for RenewStop {
    fn drop(&mut self) {
        self.0.renew_stop();
    }
}

/// A call at work. Dropped before it is done, it ends what it has started.
struct Working<'a> {
    engine: &'a mut Engine,
    interrupted: &'a mut bool,
    is_done: bool,
}

impl Working<'_> {
    fn engine(&mut self) -> &mut Engine {
        self.engine
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.engine.client.set_at_work(false);
        if !self.is_done {
            self.engine.abort_all();
            *self.interrupted = true;
        }
    }
}

/// Another member has the partitions: the records come again there, and nothing is to be done here.
fn is_of_rebalance(error: &Error) -> bool {
    // ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS, FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH
    error.code().is_some_and(|code| matches!(code.0, 22 | 25 | 27 | 110 | 113))
}

#[cfg(test)]
mod tests;
