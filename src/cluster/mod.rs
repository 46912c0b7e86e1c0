//! What a client knows of its cluster, and the way to reach it: snapshot, leaders, coordinators, connections.
//!
//! Handle of the pattern "one handle, one driver task": [`Cluster`] answers from the snapshot and wakes the task, which
//! alone replaces the snapshot. Implements KIP-899 and KIP-1102 (back to the bootstrap addresses when no known broker
//! answers).

mod brokers;
pub(crate) mod metadata;
mod refresh;
mod task;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use self::{brokers::Brokers, refresh::Refresh};
pub(crate) use self::{
    brokers::Lane,
    metadata::{Metadata, UNKNOWN_TOPIC_OR_PARTITION},
};
use crate::{
    config::settings::{Address, ClientSettings},
    connection::{
        Connection,
        api::{Api, wire},
    },
    error::{Error, ErrorKind, Result},
    time::{self, Backoff, Instant},
};

/// A client's view of the cluster. Cheap to clone; the driver task ends with the last clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    _driver: Arc<task::Driver>,
}

struct Shared {
    settings: Arc<ClientSettings>,
    brokers: Brokers,
    refresh: Mutex<Refresh>,
    wake: Notify,
    snapshot: watch::Sender<Arc<Metadata>>,
    /// How the last attempts to refresh went.
    health: watch::Sender<Health>,
    coordinators: Mutex<BTreeMap<String, i32>>,
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
    /// [`ErrorKind::Config`] if the TLS settings cannot be used.
    pub(crate) fn start(settings: Arc<ClientSettings>) -> Result<Self> {
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        let shared = Arc::new(Shared {
            brokers: Brokers::new(Arc::clone(&settings))?,
            refresh: Mutex::new(Refresh::new(time::now(), settings.metadata_max_age, backoff)),
            wake: Notify::new(),
            snapshot: watch::channel(Arc::new(Metadata::default())).0,
            health: watch::channel(Health::default()).0,
            coordinators: Mutex::new(BTreeMap::new()),
            settings,
        });
        let driver = Arc::new(task::Driver::start(Arc::clone(&shared)));
        Ok(Self { shared, _driver: driver })
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
        self.shared.refresh().want();
        self.shared.wake.notify_one();
    }

    /// Waits for the first answer of any broker.
    ///
    /// # Errors
    /// If no bootstrap address answers: one error with the cause of each.
    pub(crate) async fn connect(&self, deadline: Instant) -> Result<()> {
        let mut health = self.shared.health.subscribe();
        let first = health.wait_for(|health| health.attempts > 0);
        let health = tokio::time::timeout_at(deadline, first).await;
        match health {
            Ok(Ok(health)) => match &health.error {
                Some(error) if self.metadata().version == 0 => Err(error.clone()),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Error::closed("client")),
            Err(_elapsed) => Err(Error::new(ErrorKind::Timeout, "no broker answered in time")),
        }
    }

    /// Has topics followed from now on, and waits until each can be used.
    ///
    /// # Errors
    /// The broker's error for a topic that waiting will not mend, one of TLS or SASL at once, and
    /// [`ErrorKind::Timeout`] with the last cause at the deadline.
    pub(crate) async fn require_topics(
        &self,
        topics: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Arc<Metadata>> {
        self.shared.refresh().add_topics(topics);
        let mut health = self.shared.health.subscribe();
        loop {
            let metadata = self.metadata();
            let Some(missing) = topics.iter().find(|topic| !metadata.is_usable(topic)) else {
                return Ok(metadata);
            };
            if let Some(error) = topics.iter().find_map(|topic| metadata.permanent_error(topic)) {
                return Err(error);
            }
            let cause = health.borrow_and_update().error.clone();
            if let Some(error) = cause.as_ref().filter(|error| !error.is_retriable()) {
                return Err(error.clone());
            }
            self.shared.wake.notify_one();
            match tokio::time::timeout_at(deadline, health.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::closed("client")),
                Err(_elapsed) => return Err(missing_topic(&metadata, missing, cause)),
            }
        }
    }

    /// The open connection to a broker, or a new one.
    pub(crate) async fn connection(
        &self,
        broker: i32,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Arc<Connection>> {
        let connection = self.shared.brokers.connection(broker, lane, deadline).await;
        if connection.is_err() {
            // The broker may have moved; the snapshot may know better soon.
            self.refresh();
        }
        connection
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
        let answer = connection.call(request, deadline).await.map_err(|error| error.with_broker(broker));
        if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Disconnected) {
            self.refresh();
        }
        answer
    }

    /// A connection to any broker that answers, known ones first.
    pub(crate) async fn any_connection(&self, deadline: Instant) -> Result<Arc<Connection>> {
        self.shared.any_connection(deadline).await
    }

    /// The broker that coordinates a group; asked once, then remembered until [`Self::forget_coordinator`].
    ///
    /// # Errors
    /// The broker's error if waiting will not mend it; otherwise the last cause at the deadline.
    pub(crate) async fn coordinator(&self, group: &str, deadline: Instant) -> Result<i32> {
        let mut backoff = Backoff::new(self.settings().retry_backoff, self.settings().retry_backoff_max);
        let mut rng = self.settings().environment.rng();
        loop {
            if let Some(known) = self.shared.coordinators().get(group) {
                return Ok(*known);
            }
            match self.find_coordinator(group, deadline).await {
                Ok(broker) => {
                    self.shared.coordinators().insert(group.to_owned(), broker);
                    return Ok(broker);
                }
                Err(error) => {
                    let next = time::now() + backoff.next(&mut rng);
                    if !error.is_retriable() || next >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    /// The group's coordinator is not (or no longer) `broker`.
    pub(crate) fn forget_coordinator(&self, group: &str, broker: i32) {
        let mut coordinators = self.shared.coordinators();
        if coordinators.get(group) == Some(&broker) {
            coordinators.remove(group);
        }
    }

    async fn find_coordinator(&self, group: &str, deadline: Instant) -> Result<i32> {
        let connection = self.any_connection(deadline).await?;
        let key = kafka_string(group);
        // KIP-699: from version 4 on, one request asks for several keys.
        let request = if connection.version::<wire::FindCoordinatorRequest>().is_some_and(|v| v >= 4) {
            wire::FindCoordinatorRequest { coordinator_keys: vec![key], ..Default::default() }
        } else {
            wire::FindCoordinatorRequest { key, ..Default::default() }
        };
        let deadline = deadline.min(time::now() + self.settings().request_timeout);
        let mut answer = connection.call(request, deadline).await?;
        let (code, id, host, port) = match answer.coordinators.pop() {
            Some(found) => (found.error_code, found.node_id, found.host, found.port),
            None => (answer.error_code, answer.node_id, answer.host, answer.port),
        };
        if code != 0 {
            let error = Error::from_code("FindCoordinator", code);
            return Err(match code {
                30 => error.with_hint(format!("grant the user Read on the group {group}")),
                _ => error,
            });
        }
        let port =
            u16::try_from(port).map_err(|_| Error::protocol("a coordinator's port is out of range"))?;
        self.shared.brokers.learn_one(id, Address { host: host.to_string(), port });
        Ok(id)
    }
}

impl Shared {
    fn refresh(&self) -> MutexGuard<'_, Refresh> {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn coordinators(&self) -> MutexGuard<'_, BTreeMap<String, i32>> {
        self.coordinators.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Known brokers from a random one on, then the bootstrap addresses; the first that can be connected to.
    async fn any_connection(&self, deadline: Instant) -> Result<Arc<Connection>> {
        let mut candidates: Vec<i32> = self.snapshot.borrow().brokers.keys().copied().collect();
        if !candidates.is_empty() {
            let first = self.settings.environment.rng().below(candidates.len());
            candidates.rotate_left(first);
        }
        // KIP-899: the bootstrap addresses stand behind the known brokers.
        candidates.extend(self.brokers.bootstrap_ids());
        let mut errors: Vec<Error> = Vec::new();
        for id in candidates {
            let attempt = deadline.min(time::now() + self.settings.connection_setup_timeout);
            match self.brokers.connection(id, Lane::Main, attempt).await {
                Ok(connection) => return Ok(connection),
                Err(error) => errors.push(error),
            }
        }
        Err(no_broker(errors))
    }
}

/// One error out of those of every broker tried: the kind of the one that names a setting, if there is one.
fn no_broker(errors: Vec<Error>) -> Error {
    let telling = errors.iter().find(|error| !error.is_retriable()).or_else(|| errors.first());
    match (telling, errors.len()) {
        (None, _) => Error::new(ErrorKind::Config, "no broker is known").with_hint("set bootstrap.servers"),
        (Some(only), 1) => only.clone(),
        (Some(telling), _) => {
            let causes: Vec<String> = errors.iter().map(|error| format!("({error})")).collect();
            Error::new(
                telling.kind(),
                format!("none of {} brokers could be reached: {}", causes.len(), causes.join(", ")),
            )
        }
    }
}

fn missing_topic(metadata: &Metadata, topic: &Arc<str>, cause: Option<Error>) -> Error {
    let code = metadata.topics.get(topic).and_then(|topic| topic.error);
    let error = match (cause, code) {
        (Some(cause), _) => {
            Error::new(ErrorKind::Timeout, "no broker told about the topic in time").with_source(cause)
        }
        (None, Some(code)) => metadata::topic_error(topic, code),
        (None, None) => Error::new(ErrorKind::Timeout, "the topic has no leader yet"),
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
