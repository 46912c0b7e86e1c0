//! [`Consumer`]: polls, hands every record to the handlers of its topic, and commits what they have handled.
//!
//! The client underneath commits nothing by itself. What waits, what is handled and what may be committed is kept by
//! [`Dispatch`]; what happens after a failure is decided by [`ErrorPolicy`]. While a handler runs long, or pauses between
//! attempts, the member keeps polling with its partitions paused, so that the group does not take it for dead.

mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, future::FusedFuture as _};
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use self::work::{Done, Stop, Work};
use super::{
    KafkaInstance, Place,
    dispatch::Dispatch,
    handler::{ErasedHandler, ErrorPolicy, Handler, HandlerResult, Message},
    log, logged,
};
use crate::{
    config::ConsumerConfig,
    consumer::KafkaConsumer,
    error::{Error, ErrorKind, Result},
    producer::KafkaProducer,
    record::ConsumerRecord,
    time,
};

const SUBJECT: &str = "Kafka Consumer";
/// How long [`Consumer::run`] waits for records before it looks around.
const RUN_POLL: Duration = Duration::from_secs(1);
/// The pause of [`Consumer::run`] after an error that may pass by itself.
const RUN_PAUSE: Duration = Duration::from_millis(500);
/// How long [`Consumer::close`] tries to leave the group, as in Java.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands the records of its topics to handlers, at least once each, and commits what they have handled.
///
/// * **Order.** The records of a partition are handled one after another, in order. Several handlers of a topic run in the
///   order they were registered.
/// * **Commits.** With `enable.auto.commit` (the default), each [`consume`](Self::consume) ends with one commit of what its
///   handlers have handled; `auto.commit.interval.ms` has no meaning here. Without it, [`commit`](Self::commit) alone
///   commits, and also never past a record that was not handled. A record counts as handled when every handler of its
///   topic has returned `Ok`, or when the [`ErrorPolicy`] has dealt with it.
/// * **Errors.** [`error_policy`](Self::error_policy) says what happens when a handler fails.
/// * **Topics without a handler.** Their records count as handled; a warning is logged once for each topic.
/// * **Long handlers.** The member stays in its group however long a handler takes: `max.poll.interval.ms` bounds the
///   time between polls, and this type polls in between.
///
/// It connects when it first consumes, and leaves the group in [`close`](Self::close). After that, or after
/// [`run`](Self::run), it can consume again: it joins anew and goes on at the committed offsets.
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
/// consumer.consume(Duration::from_secs(1)).await?;                   // once …
/// consumer.run(async { tokio::signal::ctrl_c().await.ok(); }).await?; // … or until told to stop
/// # Ok(()) }
/// ```
pub struct Consumer {
    kafka: KafkaInstance,
    overrides: ConsumerConfig,
    topics: Vec<Arc<str>>,
    handlers: BTreeMap<Arc<str>, Vec<ErasedHandler>>,
    policy: ErrorPolicy,
    auto_commit: bool,
    /// How often the member polls while a handler runs.
    keep_alive: Duration,
    client: Option<KafkaConsumer>,
    /// For dead letters; made with the first one.
    dead_letters: Option<KafkaProducer>,
    pub(crate) dispatch: Dispatch,
    /// Topics whose missing handler was logged.
    unhandled: BTreeSet<Arc<str>>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("topics", &self.topics)
            .field("policy", &self.policy)
            .field("connected", &self.client.is_some())
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
        let topics = topics.into_iter().map(|topic| Arc::from(topic.as_ref())).collect();
        logged(PLACE, Self::build(kafka, topics, overrides(ConsumerConfig::new())))
    }

    fn build(kafka: &KafkaInstance, topics: Vec<Arc<str>>, overrides: ConsumerConfig) -> Result<Self> {
        let settings = overrides.merged(kafka.config()).resolve_consumer()?;
        if settings.group_id.is_none() {
            return Err(Error::new(ErrorKind::Config, "a consumer with handlers needs a group")
                .with_hint("set group.id"));
        }
        if topics.is_empty() || topics.iter().any(|topic| topic.is_empty()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "no topic is named, or one with an empty name",
            )
            .with_hint("name the topics to consume"));
        }
        Ok(Self {
            kafka: kafka.clone(),
            topics,
            handlers: BTreeMap::new(),
            policy: ErrorPolicy::Stop,
            auto_commit: settings.enable_auto_commit,
            keep_alive: settings.max_poll_interval / 3,
            client: None,
            dead_letters: None,
            dispatch: Dispatch::default(),
            unhandled: BTreeSet::new(),
            overrides,
        })
    }

    /// Adds a handler for the records of a topic, after those it has. Their values are read as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a topic that this consumer does not consume. Logged before it is returned.
    pub fn register_handler<T, F>(self, topic: &str, handler: F) -> Result<Self>
    where
        T: DeserializeOwned + 'static,
        F: AsyncFn(Message<T>) -> HandlerResult + Handler<Message<T>>,
    {
        self.register(topic, ErasedHandler::json(handler))
    }

    /// Adds a handler for the records of a topic as bytes, after those it has.
    ///
    /// # Errors
    /// As [`register_handler`](Self::register_handler).
    pub fn register_raw_handler<F>(self, topic: &str, handler: F) -> Result<Self>
    where
        F: AsyncFn(ConsumerRecord) -> HandlerResult + Handler<ConsumerRecord>,
    {
        self.register(topic, ErasedHandler::raw(handler))
    }

    fn register(mut self, topic: &str, handler: ErasedHandler) -> Result<Self> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::register_handler", subject: SUBJECT };
        let Some(topic) = self.topics.iter().find(|own| ***own == *topic) else {
            let error = Error::new(ErrorKind::InvalidArgument, "the consumer does not consume this topic")
                .with_topic(topic)
                .with_hint(format!("its topics are {}", self.topics.join(", ")));
            return logged(PLACE, Err(error));
        };
        self.handlers.entry(Arc::clone(topic)).or_default().push(handler);
        Ok(self)
    }

    /// What happens when a handler fails. Default: [`ErrorPolicy::Stop`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a policy without an attempt, or a dead letter topic that is empty or among the topics
    /// consumed. Logged before it is returned.
    pub fn error_policy(mut self, policy: ErrorPolicy) -> Result<Self> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::error_policy", subject: SUBJECT };
        logged(PLACE, policy.check(&self.topics))?;
        self.policy = policy;
        Ok(self)
    }

    /// Polls once, waiting for records up to `timeout`, hands what came to the handlers, and commits if automatic commits
    /// are on. Returns how many records were handled.
    ///
    /// # Errors
    /// The handler's error ([`Handler`](ErrorKind::Handler)) or that of reading the value ([`Json`](ErrorKind::Json)), with topic,
    /// partition and offset, where the policy is to stop: this record and what follows come again with the next call, and
    /// what was handled before is committed. Otherwise that of connecting, polling, dead-lettering or committing; no record
    /// is lost by it. Logged before it is returned.
    ///
    /// # Cancel safety
    /// Dropped, the running handler ends where it stands; its record and what follows come again with the next call.
    pub async fn consume(&mut self, timeout: Duration) -> Result<usize> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::consume", subject: SUBJECT };
        let outcome = async {
            self.poll(timeout).await?;
            self.dispatch(pin!(std::future::pending::<()>())).await
        };
        let outcome = outcome.await;
        logged(PLACE, outcome)
    }

    /// Consumes until `shutdown` completes; then lets the running handler finish, commits if automatic commits are on, and
    /// leaves the group.
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
        let mut shutdown = pin!(shutdown.map(|_| ()).fuse());
        let outcome = loop {
            let round = async {
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(true),
                    polled = self.poll(RUN_POLL) => polled?,
                }
                self.dispatch(shutdown.as_mut()).await.map(|_| shutdown.is_terminated())
            };
            match round.await {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) if error.is_retriable() && !shutdown.is_terminated() => {
                    log(PLACE, &error);
                    let pause = pin!(tokio::time::sleep(RUN_PAUSE));
                    if let futures_util::future::Either::Left(_) =
                        futures_util::future::select(&mut shutdown, pause).await
                    {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let closed = self.close().await;
        logged(PLACE, outcome).and(closed)
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
        logged(PLACE, self.commit_handled().await)
    }

    /// Commits what was handled if automatic commits are on, and leaves the group. Returns within 30 s or so.
    ///
    /// # Errors
    /// That of committing, else that of leaving; the group then notices by `session.timeout.ms`. Logged before it is returned.
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
        let deadline = time::after(limit);
        let committed = match self.auto_commit {
            true => tokio::time::timeout_at(deadline, self.commit_handled()).await,
            false => Ok(Ok(())),
        };
        let committed = committed.unwrap_or_else(|_elapsed| {
            Err(Error::new(ErrorKind::Timeout, "what was handled could not be committed in time")
                .with_hint("give close more time; these records come again"))
        });
        let left = deadline.saturating_duration_since(time::now());
        let closed = match self.client.take() {
            Some(client) => client.close(left.max(Duration::from_millis(100))).await,
            None => Ok(()),
        };
        if let Some(producer) = self.dead_letters.take() {
            // Every dead letter was awaited when it was sent: there is nothing left to fail.
            let _ = producer.close_within(left.max(Duration::from_millis(100))).await;
        }
        self.dispatch.clear();
        logged(PLACE, committed.and(closed))
    }

    /// Connects if need be, goes back to what was left unhandled, and takes the next records.
    async fn poll(&mut self, timeout: Duration) -> Result<()> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let overrides = self.overrides.clone();
                let topics = &self.topics;
                let client = self.kafka.start_consumer(topics, overrides.enable_auto_commit(false)).await?;
                self.client.insert(client)
            }
        };
        for (partition, offset) in self.dispatch.rewind() {
            // A partition that is not ours any more needs no seek: its new owner starts at what is committed.
            if let Err(error) = client.seek(&partition, offset) {
                tracing::debug!(%partition, %error, "the partition is gone");
            }
        }
        let records = client.poll(timeout).await?;
        self.dispatch.push(records.into_iter().flat_map(|(_, records)| records));
        self.dispatch.retain(&client.assignment());
        Ok(())
    }

    /// Handles what was polled, until `shutdown`, then commits. Returns how many records were handled.
    pub(crate) async fn dispatch<S: Future<Output = ()>>(
        &mut self,
        mut shutdown: Pin<&mut S>,
    ) -> Result<usize> {
        let stop = Stop::default();
        // One for all records, for what counts is the time since the last poll; and one for each would make them dearer.
        let mut alive = pin!(tokio::time::sleep(self.keep_alive));
        let mut count = 0;
        let outcome = loop {
            if stop.is_set() || shutdown.as_mut().now_or_never().is_some() {
                break Ok(count);
            }
            match self.handle(&stop, shutdown.as_mut(), alive.as_mut()).await {
                Ok(Some(Done::Handled)) => count += usize::from(self.dispatch.handled()),
                Ok(Some(Done::Abandoned) | None) => break Ok(count),
                Err(error) => break Err(error),
            }
        };
        if !self.auto_commit {
            return outcome;
        }
        match (self.commit_handled().await, outcome) {
            (Ok(()), outcome) => outcome,
            (Err(error), Ok(_)) if !is_of_rebalance(&error) => Err(error),
            (Err(error), outcome) => {
                tracing::warn!(%error, "what was handled could not be committed; it may be handled again");
                outcome
            }
        }
    }

    /// Takes the next record, if there is one, through its handlers and the policy, while the member keeps polling whenever
    /// `alive` rings.
    async fn handle<S: Future<Output = ()>>(
        &mut self,
        stop: &Stop,
        mut shutdown: Pin<&mut S>,
        mut alive: Pin<&mut Sleep>,
    ) -> Result<Option<Done>> {
        let Self { kafka, handlers, policy, dead_letters, unhandled, dispatch, client, .. } = self;
        // Stays where it is until a handler takes it: a record is large, and every move of it costs.
        let mut record = dispatch.take();
        let Some(ConsumerRecord { topic, partition, offset, .. }) = &record else { return Ok(None) };
        let Some((topic, handlers)) = handlers.get_key_value(topic) else {
            if unhandled.insert(Arc::clone(topic)) {
                tracing::warn!(%topic, "no handler is registered; records of the topic are passed over");
            }
            return Ok(Some(Done::Handled));
        };
        let (partition, offset) = (*partition, *offset);
        let record = &mut record;
        let mut work = Work { kafka, handlers, policy, dead_letters, topic, partition, offset, record, stop };
        let mut work = pin!(work.run());
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done.map(Some),
                () = &mut shutdown, if !stop.is_set() => stop.set(),
                () = &mut alive => {
                    if let Some(client) = client {
                        // Boxed: it is rare, and its state would make that of every record larger.
                        Box::pin(keep_alive(client, dispatch, self.auto_commit)).await;
                    }
                    alive.as_mut().reset(time::now() + self.keep_alive);
                }
            }
        }
    }

    async fn commit_handled(&mut self) -> Result<()> {
        match &self.client {
            Some(client) => commit(client, &mut self.dispatch).await,
            None => Ok(()),
        }
    }
}

/// Commits the frontier of the partitions that are still ours.
async fn commit(client: &KafkaConsumer, dispatch: &mut Dispatch) -> Result<()> {
    dispatch.retain(&client.assignment());
    let offsets = dispatch.frontier().clone();
    if offsets.is_empty() {
        return Ok(());
    }
    client.commit_offsets(offsets.clone()).await?;
    dispatch.committed(&offsets);
    Ok(())
}

/// Polls without taking records of the partitions at hand, so that the member stays in its group.
async fn keep_alive(client: &KafkaConsumer, dispatch: &mut Dispatch, auto_commit: bool) {
    // A poll says that a rebalance may go on, so what is handled must be committed before it.
    if auto_commit && let Err(error) = commit(client, dispatch).await {
        tracing::warn!(%error, "what was handled could not be committed while a handler runs");
    }
    let paused = client.assignment();
    if let Err(error) = client.pause(paused.iter().cloned()) {
        tracing::debug!(%error, "partitions could not be paused");
    }
    match client.poll(Duration::ZERO).await {
        // Of partitions that have just come.
        Ok(records) => dispatch.push(records.into_iter().flat_map(|(_, records)| records)),
        Err(error) => tracing::warn!(%error, "polling failed while a handler runs"),
    }
    let assigned = client.assignment();
    dispatch.retain(&assigned);
    let resumed = paused.into_iter().filter(|partition| assigned.binary_search(partition).is_ok());
    if let Err(error) = client.resume(resumed) {
        tracing::debug!(%error, "partitions could not be resumed");
    }
}

/// Another member has the partitions: the records come again there, and nothing is to be done here.
fn is_of_rebalance(error: &Error) -> bool {
    // ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS, FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH
    error.code().is_some_and(|code| matches!(code.0, 22 | 25 | 27 | 110 | 113))
}

#[cfg(test)]
mod tests;
