//! What a client knows of its cluster, and the way to reach it: snapshot, leaders, coordinators, connections.
//!
//! Handle of the pattern "one handle, one driver task": [`Cluster`] answers from the snapshot and wakes the task, which
//! alone replaces the snapshot. Implements KIP-899 and KIP-1102 (back to the bootstrap addresses when no known broker
//! answers). It knows why something cannot be reached ([`Cluster::why`]) and is the one that logs it.

mod asking;
mod brokers;
mod candidates;
mod causes;
mod coordinators;
mod hints;
pub(crate) mod metadata;
mod refresh;
mod task;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify};

use self::{
    brokers::Brokers,
    coordinators::Coordinators,
    refresh::{Limits, Refresh},
};
pub(crate) use self::{
    brokers::Lane,
    coordinators::CoordinatorKind,
    hints::{Endpoint, LeaderHint},
    metadata::{Leadership, Metadata, Partition, TopicId, UNKNOWN_TOPIC_OR_PARTITION, are_two_lives},
    refresh::Create,
};
use crate::{
    config::settings::ClientSettings,
    connection::{Connection, is_said_for_all},
    driver::{self, AbortOnDrop},
    error::{Error, ErrorCode, ErrorKind, Result, Stage, code},
    mutex::Mutex,
    pattern::Pattern,
    race,
    record::check_topic,
    sorted::Set,
    time::{self, Backoff, Instant},
    watch,
    wire::{self, Api},
};

/// A client's view of the cluster. Cheap to clone; the driver task ends with the last clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    driver: Arc<AbortOnDrop<()>>,
}

struct Shared {
    settings: Arc<ClientSettings>,
    brokers: Brokers,
    refresh: Mutex<Refresh>,
    wake: Notify,
    snapshot: watch::Sender<Arc<Metadata>>,
    /// How the last attempts to refresh went.
    health: watch::Sender<Health>,
    coordinators: Mutex<Coordinators>,
    /// Why the driver ended before its time.
    ended: OnceLock<Error>,
}

#[derive(Debug, Clone, Default)]
struct Health {
    /// Grows with every finished refresh, good or bad.
    attempts: u64,
    /// Why the last one failed.
    error: Option<Error>,
}

impl Cluster {
    /// Starts the driver task; connects when something is first asked.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the TLS settings cannot be used, and outside a tokio runtime.
    pub(crate) fn start(settings: Arc<ClientSettings>) -> Result<Self> {
        Self::start_in(settings, None)
    }

    /// [`start`](Self::start), with its driver and all connections at home on a runtime of their own. To be called in it.
    pub(crate) fn start_in(settings: Arc<ClientSettings>, home: Option<Handle>) -> Result<Self> {
        driver::check_runtime()?;
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        let limits = Limits {
            max_age: settings.metadata_max_age,
            max_idle: settings.metadata_max_idle,
            rebootstrap_after: settings.rebootstrap.then_some(settings.rebootstrap_after),
        };
        let shared = Arc::new(Shared {
            brokers: Brokers::new(Arc::clone(&settings), home)?,
            refresh: Mutex::new(Refresh::new(time::now(), limits, backoff)),
            wake: Notify::new(),
            snapshot: watch::Sender::new(Arc::new(Metadata::default())),
            health: watch::Sender::new(Health::default()),
            coordinators: Mutex::default(),
            ended: OnceLock::new(),
            settings,
        });
        let driver = Arc::new(task::start(Arc::clone(&shared))?);
        Ok(Self { shared, driver })
    }

    /// The client has ended, though handles of it may be kept: nothing is asked any more, and no connection stays open.
    pub(crate) fn end(&self) {
        let _ = self.shared.ended.set(Error::closed("client"));
        self.driver.abort();
        self.shared.brokers.retire_all();
    }

    pub(crate) fn settings(&self) -> &Arc<ClientSettings> {
        &self.shared.settings
    }

    pub(crate) fn metadata(&self) -> Arc<Metadata> {
        Arc::clone(&self.shared.snapshot.borrow())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Metadata>> {
        self.shared.snapshot.subscribe()
    }

    /// Says that the snapshot is stale. Complaints are gathered into one refresh.
    pub(crate) fn refresh(&self) {
        self.shared.refresh.lock().want();
        self.shared.wake.notify_one();
    }

    /// As [`refresh`](Self::refresh), because of one topic. Returns the least [`answers`](Metadata::answers) of a
    /// snapshot that is no older than this complaint.
    pub(crate) fn complain(&self, topic: &Arc<str>) -> u64 {
        let awaited = self.shared.refresh.lock().complain(time::now(), topic);
        self.shared.wake.notify_one();
        awaited
    }

    /// Exactly these topics are subscribed to from now on.
    pub(crate) fn follow(&self, topics: &[Arc<str>]) {
        self.shared.refresh.lock().follow(time::now(), topics);
        self.shared.wake.notify_one();
    }

    /// Topics of this pattern are subscribed to from now on, beside those that are followed by name.
    pub(crate) fn follow_matching(&self, pattern: Option<Arc<Pattern>>) {
        self.shared.refresh.lock().follow_matching(pattern);
        self.shared.wake.notify_one();
    }

    /// Exactly these topics are looked for by their ids.
    pub(crate) fn identify(&self, ids: &[TopicId]) {
        self.shared.refresh.lock().identify(ids);
        self.shared.wake.notify_one();
    }

    /// Records wait for a topic that has no leader in the snapshot.
    pub(crate) fn want_topic(&self, topic: &Arc<str>) {
        let create = match self.settings().allow_auto_create_topics {
            true => Create::IfAllowed,
            false => Create::Never,
        };
        self.want_topics(&self.metadata(), [topic], create);
    }

    fn want_topics<'a>(
        &self,
        metadata: &Metadata,
        topics: impl IntoIterator<Item = &'a Arc<str>>,
        create: Create,
    ) {
        let mut refresh = self.shared.refresh.lock();
        let mut is_news = false;
        for topic in topics {
            is_news |= refresh.want_topic(time::now(), topic, create.of(metadata.found(topic)));
        }
        drop(refresh);
        // A producer repeats this with each of its turns; only the first call wakes the driver.
        if is_news {
            self.shared.wake.notify_one();
        }
    }

    /// This topic was written to; the snapshot, which may be too old to have it, soon does.
    pub(crate) fn expect_topic(&self, topic: &Arc<str>) {
        if !self.metadata().is_usable(topic) {
            self.shared.refresh.lock().expect(time::now(), topic);
            self.shared.wake.notify_one();
        }
    }

    /// These topics are in use: they are followed for another `metadata.max.idle.ms`.
    pub(crate) fn touch_topics<'a>(&self, topics: impl IntoIterator<Item = &'a Arc<str>>) {
        self.shared.refresh.lock().touch(time::now(), topics);
    }

    /// Waits for the first answer of any broker.
    ///
    /// # Errors
    /// The cause at once where waiting will not help (a setting), and the last one at the deadline.
    pub(crate) async fn connect(&self, deadline: Instant) -> Result<()> {
        let started = time::now();
        let mut health = self.shared.health.subscribe();
        loop {
            let Health { attempts, error: cause } = health.borrow_and_update().clone();
            self.shared.check_driver()?;
            if self.metadata().version > 0 {
                return Ok(());
            }
            if let Some(error) = cause.as_ref().filter(|error| attempts > 0 && is_a_setting(error)) {
                return Err(error.clone());
            }
            match tokio::time::timeout_at(deadline, health.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::closed("client")),
                Err(_elapsed) => return Err(not_connected(cause, time::now() - started)),
            }
        }
    }

    /// Has topics followed for `metadata.max.idle.ms`, and waits until each can be used.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that no topic can have; the broker's error for a topic that waiting will not mend, asked for
    /// again before it is believed; a setting that is wrong at once; and [`ErrorKind::Timeout`] with the last cause at the deadline.
    pub(crate) async fn require_topics(
        &self,
        topics: &[Arc<str>],
        create: Create,
        deadline: Instant,
    ) -> Result<Arc<Metadata>> {
        topics.iter().try_for_each(|topic| check_topic(topic))?;
        let mut health = self.shared.health.subscribe();
        let (begun, known) = (health.borrow_and_update().attempts, self.metadata().version);
        self.shared.refresh.lock().touch(time::now(), topics);
        loop {
            let Health { attempts, error: cause } = health.borrow_and_update().clone();
            self.shared.check_driver()?;
            let metadata = self.metadata();
            let Some(missing) = topics.iter().find(|topic| !metadata.is_usable(topic)) else {
                return Ok(metadata);
            };
            // An earlier error may be long over: a topic that was refused, a password that was wrong.
            let is_news =
                |topic: &&Arc<str>| metadata.topics.get(*topic).is_some_and(|topic| topic.told_in > known);
            if let Some(error) =
                topics.iter().filter(is_news).find_map(|topic| metadata.permanent_error(topic))
            {
                return Err(error);
            }
            if let Some(error) = cause.as_ref().filter(|error| attempts > begun && is_a_setting(error)) {
                return Err(error.clone());
            }
            let unusable = topics.iter().filter(|topic| !metadata.is_usable(topic));
            self.want_topics(&metadata, unusable, create);
            match tokio::time::timeout_at(deadline, health.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::closed("client")),
                Err(_elapsed) => return Err(missing_topic(&metadata, missing, cause)),
            }
        }
    }

    /// Why a broker cannot be reached, if the last attempt failed, or nothing leads to it.
    pub(crate) fn why(&self, broker: i32) -> Option<Error> {
        self.shared.brokers.why(broker).or_else(|| self.why_nowhere(broker))
    }

    /// Why no address is known of a broker.
    fn why_nowhere(&self, broker: i32) -> Option<Error> {
        if self.shared.brokers.has_address(broker) { None } else { self.metadata().why_broker(broker) }
    }

    /// Why nothing can be written to, or read from, a topic or one of its partitions, as far as is known: the source of a
    /// time-out of who waited for it.
    pub(crate) fn why_topic(&self, topic: &str, partition: Option<i32>) -> Option<Error> {
        if let Some(ended) = self.shared.ended.get() {
            return Some(ended.clone());
        }
        let metadata = self.metadata();
        let unreachable = || self.shared.health.borrow().error.clone();
        if let Some(why) = metadata.why(topic, partition) {
            return Some(match (unreachable(), metadata.topics.contains_key(topic)) {
                (Some(cause), false) => why.with_source(cause),
                _ => why,
            });
        }
        let leader = match partition {
            Some(partition) => metadata.leader(topic, partition).map(|(leader, _)| leader),
            None => metadata.topics.get(topic)?.partitions.iter().find_map(|partition| partition.leader),
        };
        leader.and_then(|leader| self.why(leader)).or_else(unreachable)
    }

    /// Why nothing is sent to the leader of a partition at the moment, though it can be reached.
    pub(crate) fn why_held(&self, topic: &str, partition: i32) -> Option<Error> {
        let (leader, _) = self.metadata().leader(topic, partition)?;
        self.shared.brokers.why_held(leader)
    }

    /// In how many answers and for how long brokers have held this client back (KIP-219).
    pub(crate) fn pauses(&self) -> (u64, Duration) {
        self.shared.brokers.pauses().so_far()
    }

    /// The open connection to a broker, or a new one.
    pub(crate) async fn connection(
        &self,
        broker: i32,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Arc<Connection>> {
        self.shared.check_driver()?;
        let connection = self.shared.brokers.connection(broker, lane, deadline).await;
        // A new connection is one more for the idle timer. After a failure the broker may have moved, so the snapshot is
        // refreshed.
        match &connection {
            Ok(_) if self.shared.brokers.take_new() => self.shared.wake.notify_one(),
            Ok(_) => {}
            Err(_) => self.refresh(),
        }
        connection.map_err(|error| self.why_nowhere(broker).unwrap_or(error))
    }

    /// One request to one broker.
    pub(crate) async fn call<R: Api>(
        &self,
        broker: i32,
        lane: Lane,
        request: R,
        deadline: Instant,
    ) -> Result<R::Response> {
        let connection = self.connection(broker, lane, deadline).await?;
        self.note(broker, connection.call(request, deadline).await)
    }

    /// Takes note of what became of a request: a broker that has closed the connection may have moved, and one that is
    /// silent comes after the others where any broker will do.
    pub(crate) fn note<T>(&self, broker: i32, answer: Result<T>) -> Result<T> {
        match answer.as_ref().map_err(Error::kind) {
            Err(ErrorKind::Disconnected) => self.refresh(),
            Err(ErrorKind::Timeout) => self.shared.brokers.handle_silent(broker),
            _ => {}
        }
        answer.map_err(|error| error.with_broker(broker))
    }

    /// The brokers that an answer tells of. Where they are is taken over of those that are new.
    pub(crate) fn learn_brokers(
        &self,
        told: Vec<wire::metadata_response::MetadataResponseBroker>,
    ) -> Vec<i32> {
        let (mut ids, brokers) = (Vec::with_capacity(told.len()), &self.shared.brokers);
        for broker in told {
            let id = broker.node_id;
            let Some(address) = metadata::address(id, &broker.host, broker.port) else { continue };
            if !brokers.has_address(id) {
                brokers.learn_one(id, address);
            }
            ids.push(id);
        }
        ids
    }

    /// A connection to any broker that answers: an open one, else the first that can be made.
    pub(crate) async fn any_connection(&self, deadline: Instant) -> Result<Arc<Connection>> {
        self.shared.check_driver()?;
        let connected = self.shared.any_connection(false, &Set::new(), &Refusals::default(), deadline).await;
        connected.map(|(_, connection)| connection)
    }

    /// Asks one broker after another until one answers, see [`Shared::ask_any`].
    pub(crate) async fn ask_any<T, F: Future<Output = Result<T>>>(
        &self,
        deadline: Instant,
        question: impl Fn(Arc<Connection>, Instant) -> F,
    ) -> Result<T> {
        self.shared.check_driver()?;
        self.shared.ask_any(false, deadline, question).await
    }
}

impl Shared {
    /// The driver ended before its time: whoever waits for it is told.
    fn handle_end(&self, error: Error) {
        let _ = self.ended.set(error.clone());
        self.tell_health(Some(error));
    }

    /// A refresh has ended, and why it failed if it did.
    fn tell_health(&self, error: Option<Error>) {
        self.health.send_modify(|health| *health = Health { attempts: health.attempts + 1, error });
    }

    /// Whether something can be waited for.
    fn check_driver(&self) -> Result<()> {
        driver::check_runtime()?;
        self.ended.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The candidates race: a silent one holds up the next for a moment only.
    async fn any_connection(
        &self,
        rebootstrap: bool,
        but: &Set<i32>,
        refusals: &Refusals,
        deadline: Instant,
    ) -> Result<(i32, Arc<Connection>)> {
        let mut candidates = self.brokers.candidates(&self.metadata(), rebootstrap);
        candidates.retain(|candidate| !but.contains(&candidate.id));
        let order = candidates::order(candidates, &mut self.settings.environment.rng());
        let tried = Mutex::new(Vec::new());
        let attempt = |id| {
            tried.lock().push(id);
            async move { Ok((id, self.brokers.connection(id, Lane::Main, deadline).await?)) }
        };
        // A client that was never let in is refused everywhere, so that one refusal is enough. Later, a single broker may
        // be behind with a change of passwords; but if two refuse, the others are not asked in this round, because
        // accounts get locked.
        let enough = if self.metadata().version == 0 { 1 } else { 2 };
        let ends = |error: &Error| is_said_for_all(error) && refusals.note(error) >= enough;
        let won = race::run(order.iter().copied(), attempt, ends, || self.settings.logins.is_any()).await;
        let won =
            won.map_err(|mut failures| match failures.pop_if(|(_, error)| enough == 1 && ends(error)) {
                Some((_, error)) => error,
                None => {
                    let is_asked = |id: &&i32| failures.iter().any(|(asked, _)| asked == *id);
                    // As long as a broker that was not asked may let the client in, the error is not permanent.
                    let is_open = order.iter().any(|id| !is_asked(&id) && !self.brokers.refuses(*id));
                    let others = is_open.then(|| {
                        Error::new(ErrorKind::Connect(Stage::Sasl), "the others were not asked in this round")
                    });
                    no_broker(failures.into_iter().map(|(_, error)| error).chain(others).collect())
                }
            });
        if let Ok((winner, _)) = &won {
            for id in tried.into_inner() {
                if id != *winner {
                    self.brokers.handle_unanswered(id);
                }
            }
            if self.brokers.take_new() {
                self.wake.notify_one();
            }
        }
        won
    }

    fn metadata(&self) -> Arc<Metadata> {
        Arc::clone(&self.snapshot.borrow())
    }
}

/// Where the client was refused while one question was on its way, or would be anywhere.
#[derive(Debug, Default)]
struct Refusals(Mutex<Set<Option<String>>>);

impl Refusals {
    /// Returns at how many addresses that was by now.
    fn note(&self, error: &Error) -> usize {
        let mut refusals = self.0.lock();
        refusals.insert(error.address().map(str::to_owned));
        refusals.len()
    }

    fn are_any(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

/// Whether waiting will not help. It may help if an answer cannot be read, which may have been damaged on its way; and if
/// a broker does not know itself what is wrong, since others can be asked.
fn is_a_setting(error: &Error) -> bool {
    let is_its_own = |code: ErrorCode| code.0 == code::UNKNOWN_SERVER_ERROR || !code.is_known();
    !error.is_retriable() && error.kind() != ErrorKind::Protocol && !error.code().is_some_and(is_its_own)
}

/// One error out of those of every broker tried. It is permanent only if all of them are: while one may come back,
/// waiting may help.
fn no_broker(errors: Vec<Error>) -> Error {
    let telling = errors.iter().find(|error| !error.is_retriable()).or_else(|| errors.first());
    match (telling, errors.len()) {
        (None, _) => Error::new(ErrorKind::Config, "no broker is known").with_hint("set bootstrap.servers"),
        (Some(only), 1) => only.clone(),
        (Some(telling), _) => {
            let causes: Vec<String> = errors.iter().map(|error| format!("({error})")).collect();
            let text = format!("none of {} brokers could be reached: {}", causes.len(), causes.join(", "));
            match errors.iter().find(|error| error.is_retriable()) {
                // Some pass although their kind does not say so.
                Some(passing) => Error::new(passing.kind(), text).with_passing(),
                None => Error::new(telling.kind(), text).with_permanent(),
            }
        }
    }
}

/// No broker answered within the time to connect.
fn not_connected(cause: Option<Error>, waited: Duration) -> Error {
    let text = format!("no broker answered within {} ms", waited.as_millis());
    match cause {
        // The cause keeps its kind, address and hint, which say how far the attempts came and what to change.
        Some(cause) => cause.with_message(&text),
        None => Error::new(ErrorKind::Timeout, text)
            .with_hint("check bootstrap.servers, and that the brokers run and can be reached from here"),
    }
}

fn missing_topic(metadata: &Metadata, topic: &Arc<str>, cause: Option<Error>) -> Error {
    let code = metadata.topics.get(topic).and_then(|topic| topic.error);
    let error = match (cause, code) {
        (Some(cause), _) => {
            Error::new(ErrorKind::Timeout, "no broker told about the topic in time").with_source(cause)
        }
        (None, Some(code)) => metadata::standing_error(topic, code),
        (None, None) => {
            let error = Error::new(ErrorKind::Timeout, "the topic has no leader yet");
            match metadata.why(topic, Some(0)) {
                Some(why) => error.with_source(why),
                None => error,
            }
        }
    };
    error.with_topic(Arc::clone(topic))
}

/// A string for the wire.
pub(crate) fn kafka_string(text: &str) -> wire::Str {
    text.into()
}

/// Kafka counts time-outs in `i32` milliseconds.
pub(crate) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use dtkafka_testcontainers::{ApiKey, EmbeddedBroker, Listener, ResponseError, broker::Network};

    use super::*;
    use crate::{Connecting, KafkaConfig, Transport};

    /// To an embedded broker without a socket.
    pub(crate) fn config_of(broker: &EmbeddedBroker) -> KafkaConfig {
        KafkaConfig::new()
            .set_bootstrap_servers(broker.bootstrap_servers())
            .set_transport(InMemory(broker.network()))
    }

    /// An embedded broker without a socket.
    pub(crate) struct InMemory(pub(crate) Network);

    impl Transport for InMemory {
        fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
            Box::pin(async move { Ok(Box::new(self.0.connect("test", host, port)?) as _) })
        }
    }

    #[test]
    fn what_may_pass_at_one_broker_may_pass_though_several_say_so() {
        let starting = || Error::from_code("Metadata", code::REBOOTSTRAP_REQUIRED).with_passing();
        let refused = || Error::new(ErrorKind::Connect(Stage::Sasl), "no").with_permanent();
        assert!(no_broker(vec![starting(), starting()]).is_retriable());
        assert!(no_broker(vec![refused(), starting()]).is_retriable());
        assert!(!no_broker(vec![refused(), refused()]).is_retriable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_that_two_brokers_refuse_is_not_shown_to_all_and_one_that_one_refuses_to_others() {
        let broker =
            EmbeddedBroker::builder().brokers(6).user("alice", "secret").in_memory().start().await.unwrap();
        let config = KafkaConfig::new()
            .set_bootstrap_servers(broker.listener(Listener::SaslPlaintext))
            .set_security_protocol("SASL_PLAINTEXT")
            .set_sasl_plain_username("alice")
            .set_sasl_plain_password("secret")
            .set_transport(InMemory(broker.network()));
        let cluster = Cluster::start(Arc::new(config.resolve_client().unwrap())).unwrap();
        let deadline = time::after(Duration::from_secs(60));
        cluster.connect(deadline).await.unwrap();
        assert_eq!(cluster.metadata().brokers.len(), 6);
        let control = broker.control();
        // Logins that were tried, and what came of it.
        let round = async || {
            cluster.shared.brokers.retire_all();
            let before = control.requests(ApiKey::SaslAuthenticate);
            let connected = cluster.any_connection(deadline).await;
            (control.requests(ApiKey::SaslAuthenticate) - before, connected.err())
        };
        control.fail(ApiKey::SaslAuthenticate, 1, ResponseError::SaslAuthenticationFailed);
        assert!(matches!(round().await, (2, None)), "one may be behind with a change of passwords");
        control.fail(ApiKey::SaslAuthenticate, 100, ResponseError::SaslAuthenticationFailed);
        let mut is_permanent = Vec::new();
        while is_permanent.last() != Some(&true) && is_permanent.len() < 12 {
            let (shown, error) = round().await;
            // A broker and the bootstrap address that leads to it are one.
            assert!(shown <= 3, "{shown} logins in a round");
            let error = error.unwrap();
            assert_eq!(error.stage(), Some(Stage::Sasl), "{error}");
            is_permanent.push(!error.is_retriable());
        }
        assert!((2..12).contains(&is_permanent.len()), "once all have refused it: {is_permanent:?}");
        // A broker that refused the client hours ago may let it in now.
        tokio::time::advance(Duration::from_secs(4 * 3600)).await;
        let deadline = time::after(Duration::from_secs(60));
        assert!(cluster.any_connection(deadline).await.err().unwrap().is_retriable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_silent_in_one_lane_is_not_asked_in_another_while_others_answer() {
        let broker = EmbeddedBroker::builder().brokers(3).in_memory().start().await.unwrap();
        let settings = Arc::new(config_of(&broker).resolve_client().unwrap());
        for is_connected in [true, false] {
            let cluster = Cluster::start(Arc::clone(&settings)).unwrap();
            let deadline = time::after(Duration::from_secs(60));
            cluster.connect(deadline).await.unwrap();
            let ids: Vec<i32> = cluster.metadata().brokers.keys().copied().collect();
            for id in &ids {
                cluster.connection(*id, Lane::Main, deadline).await.unwrap();
            }
            if is_connected {
                cluster.connection(ids[0], Lane::Group, deadline).await.unwrap();
            }
            broker.control().cut(None, Some(ids[0]));
            // A heartbeat, of a member whose coordinator is paused.
            let until = time::after(Duration::from_secs(15));
            let beat = wire::HeartbeatRequest::default();
            let error = cluster.call(ids[0], Lane::Group, beat, until).await.unwrap_err();
            assert_eq!(error.kind() == ErrorKind::Timeout, is_connected, "{error}");
            for _ in 0..30 {
                let (id, _) = cluster
                    .shared
                    .any_connection(false, &Set::new(), &Refusals::default(), deadline)
                    .await
                    .unwrap();
                assert_ne!(id, ids[0], "it may take its whole time-out again");
            }
            broker.control().heal_all();
        }
    }
}
