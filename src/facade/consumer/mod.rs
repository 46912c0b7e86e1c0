//! [`Consumer`]: hands records to the handlers of their topics, beside each other where their order allows it, and commits
//! what they have handled.
//!
//! Here it is built and looked at; [`running`] has the calls that take records, [`engine`] does the work while it is connected,
//! [`lane`] takes a record through its handlers.

#[cfg(feature = "unstable-benches")]
mod bench;
mod control;
mod engine;
mod lane;
mod load;
mod pauses;
mod register;
mod running;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use self::control::{ConsumerHandle, Rebalance};
use self::{control::Shared, engine::Engine, running::LeaveStage};
use super::{
    KafkaInstance, LogSubject, consumed::Consumed, dispatch::lanes::Ordering, logged, policy::ErrorPolicy,
    routes::Routes, topics::Topics,
};
use crate::{
    config::{ConsumerConfig, GroupProtocol},
    consumer::{KafkaConsumer, Listen, RebalanceListener},
    error::{Error, ErrorKind, Result},
    record::TopicPartition,
    telemetry::ConsumerMetrics,
};

const SUBJECT: &str = "Kafka Consumer";
/// How long [`Consumer::close`] tries to leave the group, and handlers have to end, as in Java.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands the records of its topics to handlers, at least once each, and commits what they have handled.
///
/// * **Order.** The records of a partition are handled one after another, in order; partitions run beside each other. See
///   [`ordering`](Self::ordering) and [`concurrency`](Self::concurrency) for more. Several handlers of a topic run in the
///   order they were registered.
/// * **Commits.** With `enable.auto.commit` (the default), each [`consume`](Self::consume) ends with one commit of what
///   its handlers have handled. [`run`](Self::run) commits beside its handlers: after `max.poll.records` records, when
///   there is nothing left to do, and else ten times a second; also before partitions go to another member and when it
///   ends. So a crash hands out again what was done in the last moment, and no more. Without it, [`commit`](Self::commit)
///   and [`ConsumerHandle::commit`] alone commit, and also never past a record that was not handled. A record counts as
///   handled when every handler of its topic has returned `Ok`, or when the [`ErrorPolicy`] has dealt with it.
/// * **Errors.** [`error_policy`](Self::error_policy) says what happens when a handler fails, panics or takes too long.
/// * **Topics without a handler.** Their records count as handled; a warning is logged once for each topic.
/// * **Long handlers.** The member stays in its group however long a handler takes. A handler that is stuck holds up its own
///   lane, and one of the places that [`concurrency`](Self::concurrency) gives; what is done behind it in its partition is
///   committed after it, and only so much is taken. When partitions go to another member, nothing more is begun in them, what
///   is at work is waited for (within `max.poll.interval.ms`), and what is done is committed before they go.
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
    /// A client that has begun to connect.
    connecting: Option<Arc<KafkaConsumer>>,
    engine: Option<Box<Engine>>,
    /// A call was dropped in the middle of its work.
    interrupted: bool,
    shared: Arc<Shared>,
    listener: Option<Arc<dyn Listen>>,
    group: Arc<str>,
    /// Retry topics of earlier policies, as of the last connect.
    former: Arc<[Arc<str>]>,
    leaves: LeaveStage,
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
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::new", subject: SUBJECT };
        let overrides = overrides(ConsumerConfig::new());
        logged(PLACE, Self::build(kafka, overrides, |_| Consumed::named(topics)))
    }

    /// A consumer of all topics whose whole names match this regular expression, those made later too; nothing connects yet.
    ///
    /// Who matches, and in which syntax, is as in [`KafkaConsumer::subscribe_pattern`]. New topics are found within
    /// `metadata.max.age.ms`, a retry topic when the first record is put into it. Handlers may name a topic, some of the topics
    /// ([`Topics::glob`]), or all others. Retry topics of the [`ErrorPolicy`] are read as well. What other groups have put into a
    /// retry topic that the pattern matches is passed over, unless a handler names that topic.
    ///
    /// **A dead letter topic must not match.** One that the policy names is refused if the client can read the pattern;
    /// one that a closure chooses is your responsibility. A letter to a topic that its record came from is not
    /// written, since it would come back without end; it stops the consumer.
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
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::matching", subject: SUBJECT };
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
        let Some(group) = settings.group_id.clone() else {
            return Err(Error::new(ErrorKind::Config, "a consumer with handlers needs a group")
                .with_hint("set group.id"));
        };
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
            connecting: None,
            engine: None,
            interrupted: false,
            shared: Arc::default(),
            listener: None,
            group,
            former: Arc::default(),
            leaves: LeaveStage::default(),
            overrides,
        })
    }

    /// Which records are handled one after the other. Default: those of a partition. With [`Ordering::Key`] and
    /// [`Ordering::Unordered`] say also how many at once: [`concurrency`](Self::concurrency) is 1 otherwise.
    #[must_use]
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.ordering = ordering;
        self
    }

    /// How many handlers may run at once; 0 counts as 1. Default: with [`Ordering::Partition`] as many as there are
    /// partitions, with [`Ordering::Key`] and [`Ordering::Unordered`] 1. One that pauses between two calls counts, one
    /// that waits in a retry topic does not.
    ///
    /// Waiting records are bounded per partition, in number and in bytes (`fetch.buffer.memory` in all), so that many keys cost
    /// no more than few. Only the partition that is full is paused.
    #[must_use]
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = Some(handlers.max(1));
        self
    }

    /// How long running handlers may take to end after a shutdown, or after another one has failed. After that they are dropped,
    /// and their records are delivered again. Default: 30 s.
    #[must_use]
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.drain_timeout = limit;
        self
    }

    /// Calls `listener` for what happens to the consumer's partitions, within [`consume`](Self::consume) and
    /// [`run`](Self::run); and for those it gives up as it leaves its group, at the end of [`run`](Self::run) and in
    /// [`close`](Self::close). It should not block.
    #[must_use]
    pub fn on_rebalance(self, listener: impl Fn(&Rebalance) + Send + Sync + 'static) -> Self {
        self.shared.listen(Arc::new(listener));
        self
    }

    /// Calls this listener when partitions come and go, and waits for it: before records of new partitions are handled,
    /// and before partitions go, when their handlers are done and what they did may still be committed. Replaces the listener
    /// set before; takes effect with the next connect.
    #[must_use]
    pub fn rebalance_listener(mut self, listener: impl RebalanceListener) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// What happens when a handler fails, for all topics without a policy of their own. Default: [`ErrorPolicy::Stop`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a policy without an attempt, or a dead letter topic whose name no topic can have, or that is
    /// among the topics consumed, or a retry topic of any policy of this consumer. Logged before it is returned.
    pub fn error_policy(self, policy: ErrorPolicy) -> Result<Self> {
        self.error_policy_for(Topics::others(), policy)
    }

    /// What happens when a handler of these topics fails.
    ///
    /// # Errors
    /// As [`error_policy`](Self::error_policy); [`ErrorKind::InvalidArgument`] for topics of which none is consumed.
    pub fn error_policy_for(mut self, topics: impl Into<Topics>, policy: ErrorPolicy) -> Result<Self> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::Consumer::error_policy", subject: SUBJECT };
        let topics = topics.into();
        logged(PLACE, topics.refuse_strangers(&self.topics).and_then(|()| policy.check(&self.topics)))?;
        let routes = Arc::make_mut(&mut self.routes);
        routes.set_policy(topics, policy);
        logged(PLACE, routes.check_letters(&self.topics))?;
        Ok(self)
    }

    /// A handle that looks at the consumer, and can pause and stop it, while it runs.
    pub fn handle(&self) -> ConsumerHandle {
        ConsumerHandle { shared: Arc::clone(&self.shared) }
    }

    /// The client underneath, while it is connected. Do not poll it: its records belong to this consumer.
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
}

#[cfg(test)]
mod tests;
