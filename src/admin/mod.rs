//! The admin client's handle: one request per call, at the broker that can answer it, tried again while that may help.
//!
//! It keeps no state but its view of the cluster. The modules hold the calls; here is what they share: who
//! is asked, until when, and which answers are asked for again.

/// Tries an attempt on the broker that can answer, until it succeeds, fails for good, or the call's deadline has passed.
///
/// A macro and not a method that takes an async closure: the compiler cannot tell that the futures of those may cross
/// threads.
macro_rules! retry {
    ($admin:expr, $at:expr, $deadline:expr, |$connection:ident, $until:ident| $attempt:block) => {
        retry!(@ $admin, $deadline, attempts, match attempts.begin($at).await {
            Ok(($connection, $until)) => async { $attempt }.await,
            Err(error) => Err(error),
        })
    };
    // For what picks its brokers itself.
    ($admin:expr, $deadline:expr, |$until:ident| $attempt:block) => {
        retry!(@ $admin, $deadline, attempts, {
            let $until = attempts.until();
            async { $attempt }.await
        })
    };
    (@ $admin:expr, $deadline:expr, $attempts:ident, $outcome:expr) => {{
        let mut $attempts = $crate::admin::Attempts::new($admin, $deadline);
        loop {
            let outcome = $outcome;
            let Err(error) = outcome else { break outcome };
            if let Err(error) = $attempts.pause_after(error).await {
                break Err(error);
            }
        }
    }};
}

/// What an answer says of each partition: its error code, and a value. A macro, because each API has types of its own with
/// the same fields.
macro_rules! rows {
    ($topics:expr, |$partition:ident| $value:expr) => {{
        let rows = $topics.into_iter().flat_map(|topic| {
            let name = topic.name;
            topic.partitions.into_iter().map(move |$partition| {
                let key = TopicPartition::new(name.as_str(), $partition.partition_index);
                (key, $partition.error_code, $value)
            })
        });
        rows.collect::<Vec<_>>()
    }};
}

mod cluster;
mod configs;
mod group_offsets;
mod groups;
mod offsets;
mod topics;

use std::{sync::Arc, time::Duration};

pub use self::{
    cluster::{BrokerDescription, ClusterDescription},
    configs::{ConfigChanges, ConfigEntry},
    group_offsets::Lag,
    groups::{GroupDescription, GroupListing, MemberDescription},
    topics::{NewTopic, PartitionDescription, TopicDescription},
};
use crate::{
    cluster::{Cluster, CoordinatorKind, Lane},
    connection::{Connection, Unread, api::Outgoing},
    driver,
    error::{Error, ErrorCode, ErrorKind, Result, code},
    time::{self, Backoff, Instant, Rng},
    wire::Api,
};

/// The code of what went well. Given for that of a change made before, it says that no code tells of that.
const NO_ERROR: i16 = 0;

/// How long brokers may take to hear of a topic that was just created. One that is unknown for longer does not exist.
const HEARD_OF: Duration = Duration::from_secs(1);

/// Asks and changes what a cluster holds: topics, their settings, consumer groups and their offsets.
///
/// Made by [`KafkaInstance::admin`](crate::KafkaInstance::admin). Cheap to clone; all clones share their connections, which
/// end with the last clone.
///
/// Every call ends by `default.api.timeout.ms` (1 minute), however many brokers it asks. Within it, a request that
/// fails with a retriable error, such as that of a broker which is no longer the controller, is repeated after `retry.backoff.ms`.
/// A change whose answer was lost is repeated too. If the repeated request then finds it made already
/// (`TopicAlreadyExists`, `UnknownTopicOrPartition`, `GroupIdNotFound`), nobody can tell who has made it; if no answer
/// comes at all, nobody can tell whether it was made. Such errors say so ([`Error::possibly_written`]).
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::NewTopic;
///
/// let admin = kafka.admin().await?;
/// admin.create_topic(NewTopic::new("orders").partitions(6).config("retention.ms", "86400000")).await?;
/// for (partition, committed) in admin.group_offsets("billing").await? {
///     println!("{partition} next offset {}", committed.offset);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KafkaAdmin {
    cluster: Cluster,
}

impl std::fmt::Debug for KafkaAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaAdmin").finish_non_exhaustive()
    }
}

/// Which broker a request goes to.
#[derive(Debug, Clone, Copy)]
enum At<'a> {
    /// The controller; in KRaft clusters any broker, which forwards.
    Controller,
    /// The coordinator of a group.
    Coordinator(&'a str),
}

impl KafkaAdmin {
    /// Waits for the first answer of a broker.
    pub(crate) async fn start(cluster: Cluster) -> Result<Self> {
        cluster.connect(time::now() + cluster.settings().default_api_timeout).await?;
        Ok(Self { cluster })
    }

    /// An admin over another client's view of the cluster, which is connected already.
    pub(crate) fn over(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone() }
    }

    /// The cluster's id, where the brokers tell it.
    pub fn cluster_id(&self) -> Option<String> {
        self.cluster.metadata().cluster_id.clone()
    }

    /// When a call that begins now ends.
    fn deadline(&self) -> Instant {
        time::now() + self.cluster.settings().default_api_timeout
    }

    /// The coordinator of a group; asked for once, where it is not known.
    async fn coordinator(&self, group: &str, until: Instant) -> Result<i32> {
        let (cluster, group) = (self.cluster.clone(), group.to_owned());
        driver::apart(async move { cluster.look_up_coordinator(CoordinatorKind::Group, &group, until).await })
            .await
    }

    fn forget_coordinator(&self, group: &str, broker: i32) {
        self.cluster.forget_coordinator(CoordinatorKind::Group, group, broker);
    }

    /// A connection to this broker, or to any that answers.
    async fn reach(&self, broker: Option<i32>, until: Instant) -> Result<Reached> {
        let cluster = self.cluster.clone();
        let reaching = driver::apart(async move {
            match broker {
                Some(id) => cluster.connection(id, Lane::Main, until).await,
                None => cluster.any_connection(until).await,
            }
        });
        reaching.await.map(Reached)
    }

    /// One question that any broker can answer, if its answer is one that counts. It goes on while the user does not poll, as those of
    /// [`Reached`] do.
    async fn ask_any<R: Api + Clone + Sync>(
        &self,
        question: R,
        counts: fn(R::Response) -> Result<R::Response>,
        until: Instant,
    ) -> Result<R::Response> {
        let cluster = self.cluster.clone();
        driver::apart(async move {
            let ask = |connection: Arc<Connection>, until| {
                let question = question.clone();
                async move { counts(connection.call(question, until).await?) }
            };
            cluster.ask_any(until, ask).await
        })
        .await
    }

    /// One request to one broker.
    async fn call<R: Api>(&self, broker: i32, request: R, until: Instant) -> Result<R::Response> {
        let connection = self.reach(Some(broker), until).await?;
        self.cluster.note(broker, connection.call(request, until).await)
    }
}

/// A connection whose calls go on even while the user does not poll, because others wait in line behind them.
struct Reached(Arc<Connection>);

impl Reached {
    fn version<R: Api>(&self) -> Option<i16> {
        self.0.version::<R>()
    }

    async fn call<R: Api>(&self, request: R, until: Instant) -> Result<R::Response> {
        self.call_up_to(i16::MAX, request, until).await
    }

    /// As `call`, but not above the version `max`.
    async fn call_up_to<R: Api>(&self, max: i16, request: R, until: Instant) -> Result<R::Response> {
        let answer = self.ask(Outgoing::up_to(max, request), until).await?;
        self.0.read::<R>(answer)
    }

    /// The same for every API, so that its task is compiled once.
    async fn ask(&self, request: Outgoing, until: Instant) -> Result<Unread> {
        let connection = Arc::clone(&self.0);
        driver::apart(async move { connection.ask(request, until).await }).await
    }
}

/// The attempts of one call.
struct Attempts<'a> {
    admin: &'a KafkaAdmin,
    /// The group and the coordinator that the last attempt asked, or was about to ask.
    coordinator: Option<(&'a str, i32)>,
    patience: Patience,
    deadline: Instant,
    backoff: Backoff,
    rng: Rng,
}

impl<'a> Attempts<'a> {
    fn new(admin: &'a KafkaAdmin, deadline: Instant) -> Self {
        let settings = admin.cluster.settings();
        Self {
            admin,
            coordinator: None,
            patience: Patience::default(),
            deadline,
            backoff: Backoff::new(settings.retry_backoff, settings.retry_backoff_max),
            rng: settings.environment.rng(),
        }
    }

    /// Until when a step that begins now may take.
    fn until(&self) -> Instant {
        self.deadline.min(time::now() + self.admin.cluster.settings().request_timeout)
    }

    /// A connection to the broker to ask, and until when it may take.
    async fn begin(&mut self, at: At<'a>) -> Result<(Reached, Instant)> {
        let reach_by = self.until();
        let broker = match at {
            // KIP-590: without a controller of its own name, any KRaft broker forwards.
            At::Controller => self.admin.cluster.metadata().controller,
            At::Coordinator(group) => {
                let broker = self.admin.coordinator(group, reach_by).await?;
                // Noted also if it cannot be reached, so that it is forgotten: another broker may coordinate by then.
                self.coordinator = Some((group, broker));
                Some(broker)
            }
        };
        let connection = self.admin.reach(broker, reach_by).await?;
        Ok((connection, self.until()))
    }

    /// Waits before another attempt; the call's error where none may help.
    async fn pause_after(&mut self, error: Error) -> Result<()> {
        if !self.patience.is_passing(&error) {
            return Err(error);
        }
        let cluster = &self.admin.cluster;
        if let Some((group, broker)) = self.coordinator.take() {
            self.admin.forget_coordinator(group, broker);
        }
        let next = time::now() + self.backoff.next(&mut self.rng);
        if next >= self.deadline {
            return Err(out_of_time(error, cluster.settings().default_api_timeout));
        }
        // Another controller or leader may be known by then.
        cluster.refresh();
        tokio::time::sleep_until(next).await;
        Ok(())
    }
}

/// Decides after which errors a call asks again. That a topic is missing counts once it was said for a moment; time in
/// which no broker could be asked does not count.
#[derive(Debug, Default)]
struct Patience {
    unknown_since: Option<Instant>,
}

impl Patience {
    fn is_passing(&mut self, error: &Error) -> bool {
        let is_unknown = error.code() == Some(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        if is_unknown && *self.unknown_since.get_or_insert_with(time::now) + HEARD_OF <= time::now() {
            return false;
        }
        error.is_retriable()
    }
}

/// Whether a change may have been made without an answer that says so.
#[derive(Debug, Default)]
struct PossiblyApplied(bool);

impl PossiblyApplied {
    /// Takes note of the outcome of a request.
    fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.handle(error);
        }
        outcome
    }

    /// A request was lost, or a broker has begun with the change and does not know how it ends.
    fn handle(&mut self, error: &Error) {
        self.0 |= match error.code() {
            Some(code) => code.0 == code::REQUEST_TIMED_OUT,
            None => !error.is_unsent(),
        };
    }

    /// The error for a change that failed. `made`: the code that says that there is nothing left to change.
    fn mark(&self, error: Error, made: i16) -> Error {
        let is_open = error.code().is_none_or(|code| code.0 == made);
        if self.0 && is_open { error.with_possibly_made() } else { error }
    }
}

fn out_of_time(cause: Error, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("given up after {} ms", limit.as_millis()))
        .with_source(cause)
        .with_hint("raise default.api.timeout.ms if the cluster needs longer")
}

/// # Errors
/// The broker's error code, with its own words where it sent some.
fn check_code(api: &'static str, code: i16, message: Option<&str>) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let error = Error::from_code(api, code);
    Err(match message {
        Some(message) if !message.is_empty() => error.with_message(message),
        _ => error,
    })
}

/// The error for an answer that leaves out what was asked about.
fn without(what: &str) -> Error {
    Error::protocol(format!("an answer without the {what} asked for"))
}

#[cfg(test)]
mod tests {
    use dtkafka_testcontainers::{ApiKey, EmbeddedBroker, NewRecord, ResponseError};

    use super::*;
    use crate::{
        KafkaInstance, TopicPartition,
        cluster::{metadata::told, tests::config_of},
        wire,
    };

    #[test]
    fn what_may_have_been_done_by_a_request_without_an_answer_is_said_to_be_so() {
        const MADE: i16 = code::TOPIC_ALREADY_EXISTS;
        let lost = || Error::new(ErrorKind::Disconnected, "gone");
        let answers = [
            (lost(), true),
            (lost().with_unsent(), false),
            (Error::from_code("CreateTopics", code::REQUEST_TIMED_OUT), true),
            (Error::from_code("CreateTopics", code::NOT_CONTROLLER), false),
        ];
        for (first, is_doubtful) in answers {
            let mut possibly = PossiblyApplied::default();
            possibly.handle(&first);
            let is_open = |error| possibly.mark(error, MADE).possibly_written();
            assert_eq!(is_open(Error::from_code("CreateTopics", MADE)), is_doubtful, "{first}");
            assert_eq!(is_open(out_of_time(first.clone(), Duration::ZERO)), is_doubtful, "{first}");
            assert!(!is_open(Error::from_code("CreateTopics", code::INVALID_TOPIC_EXCEPTION)), "{first}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_nobody_knows_is_believed_to_be_missing_a_moment_after_that_was_said() {
        let (unknown, moved) = (Error::from_code("DescribeConfigs", 3), Error::from_code("ListOffsets", 6));
        let mut patience = Patience::default();
        assert!(patience.is_passing(&moved));
        // Nobody could be asked about the topic for so long.
        tokio::time::advance(HEARD_OF * 10).await;
        assert!(patience.is_passing(&unknown) && patience.is_passing(&moved));
        tokio::time::advance(HEARD_OF / 2).await;
        assert!(patience.is_passing(&unknown));
        tokio::time::advance(HEARD_OF / 2).await;
        assert!(!patience.is_passing(&unknown) && patience.is_passing(&moved));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_tells_of_no_cluster_is_no_empty_list_and_asked_for_again() {
        let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
        let admin = KafkaInstance::new(config_of(&broker)).unwrap().admin().await.unwrap();
        broker.feed("t", 0, NewRecord::new("x")).unwrap();
        let control = broker.control();
        let once = || control.fail(ApiKey::Metadata, 1, ResponseError::RebootstrapRequired);
        once();
        assert_eq!(admin.list_topics().await.unwrap(), ["t"]);
        once();
        assert_eq!(admin.describe_topic("t").await.unwrap().partitions.len(), 1);
        once();
        admin.list_groups().await.unwrap();
        assert_eq!(control.requests(ApiKey::ListGroups), 1, "each broker is asked");
        once();
        let partition = TopicPartition::new("t", 0);
        assert_eq!(admin.latest_offsets([partition.clone()]).await.unwrap()[&partition], 1);

        let error = told(wire::MetadataResponse::default()).unwrap_err();
        assert!(error.is_retriable() && error.to_string().contains("no broker"), "{error}");
        let refused =
            wire::MetadataResponse { error_code: code::CLUSTER_AUTHORIZATION_FAILED, ..Default::default() };
        assert!(!told(refused).unwrap_err().is_retriable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_silent_on_an_open_connection_holds_up_what_any_can_answer_only_once() {
        let broker = EmbeddedBroker::builder().brokers(3).in_memory().start().await.unwrap();
        let admin = KafkaInstance::new(config_of(&broker)).unwrap().admin().await.unwrap();
        broker.create_topic("t", 1).unwrap();
        // Connects to each.
        admin.list_groups().await.unwrap();
        (1..=2).for_each(|id| broker.control().cut(None, Some(id)));
        let started = time::now();
        for _ in 0..10 {
            assert_eq!(admin.list_topics().await.unwrap(), ["t"]);
            admin.describe_topic_configs("t").await.unwrap();
        }
        let took = time::now() - started;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    /// Never called: that it compiles is the test.
    #[allow(dead_code, reason = "it is only compiled")]
    fn every_call_may_be_made_in_a_spawned_task(admin: &KafkaAdmin) {
        fn sends<T: Send>(_: T) {}
        sends(admin.create_topics([NewTopic::new("t")]));
        sends(admin.delete_topics(["t"]));
        sends(admin.describe_topics(["t"]));
        sends(admin.list_topics());
        sends(admin.describe_topic_configs("t"));
        sends(admin.group_offsets("g"));
        sends(admin.group_lag("g"));
        sends(admin.describe_group("g"));
        sends(admin.list_groups());
        sends(admin.delete_groups(["g"]));
        sends(admin.create_partitions("t", 2));
        sends(admin.alter_topic_configs("t", ConfigChanges::new()));
        let partitions = || [TopicPartition::new("t", 0)];
        sends(admin.latest_offsets(partitions()));
        sends(admin.earliest_offsets(partitions()));
        sends(admin.delete_records(partitions().map(|partition| (partition, 1))));
        sends(admin.alter_group_offsets("g", partitions().map(|partition| (partition, 1))));
        sends(admin.delete_group_offsets("g", partitions()));
        sends(admin.describe_cluster());
    }
}
