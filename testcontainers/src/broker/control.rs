//! Faults on demand: what tests do to the broker, and the counters they read.
//!
//! Rules are consulted once per request. Nothing here touches the cluster's data except [`FaultControl`]'s moves,
//! which go through the same doors as the protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

use super::cluster::Shared;
use super::watch;
use super::{BrokerError, Commit, server};

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Fail(ResponseError),
    DisconnectBefore,
    DisconnectAfter,
}

#[derive(Debug)]
struct Rule {
    api: i16,
    topic: Option<String>,
    left: usize,
    action: Action,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    delays: BTreeMap<i16, Duration>,
    requests: BTreeMap<i16, u64>,
}

/// What the faults do to one request.
#[derive(Debug, Default, Clone)]
pub(super) struct Fate {
    pub(super) disconnect_before: bool,
    pub(super) disconnect_after: bool,
    pub(super) error: Option<ResponseError>,
    pub(super) delay: Option<Duration>,
}

/// The rules that are in force.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Mutex<Rules>,
    held: watch::Sender<BTreeSet<i16>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rules: Mutex::default(), held: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Faults {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, api: ApiKey, topic: Option<&str>, left: usize, action: Action) {
        self.rules().rules.push(Rule { api: api as i16, topic: topic.map(str::to_owned), left, action });
    }

    /// Counts the request and takes the oldest rule for its API that names no topic.
    pub(super) fn fate(&self, api: i16) -> Fate {
        let mut rules = self.rules();
        *rules.requests.entry(api).or_default() += 1;
        let mut fate = Fate { delay: rules.delays.get(&api).copied(), ..Fate::default() };
        match rules.take(|r| r.api == api && r.topic.is_none()) {
            Some(Action::Fail(error)) => fate.error = Some(error),
            Some(Action::DisconnectBefore) => fate.disconnect_before = true,
            Some(Action::DisconnectAfter) => fate.disconnect_after = true,
            None => {}
        }
        fate
    }

    /// Takes the oldest rule for this API and topic.
    pub(super) fn topic_error(&self, api: i16, topic: &str) -> Option<ResponseError> {
        match self.rules().take(|r| r.api == api && r.topic.as_deref() == Some(topic)) {
            Some(Action::Fail(error)) => Some(error),
            _ => None,
        }
    }

    /// Waits while this API's answers are held.
    pub(super) async fn wait_while_held(&self, api: i16) {
        let mut held = self.held.subscribe();
        // The sender lives as long as the faults: this ends only when the API is released.
        held.wait_for(|held| !held.contains(&api)).await;
    }
}

impl Rules {
    fn take(&mut self, fits: impl Fn(&Rule) -> bool) -> Option<Action> {
        let at = self.rules.iter().position(fits)?;
        let rule = &mut self.rules[at];
        rule.left -= 1;
        let action = rule.action.clone();
        if rule.left == 0 {
            self.rules.remove(at);
        }
        Some(action)
    }
}

/// Makes the embedded broker misbehave, and counts what it was asked. Cheap to clone; valid as long as the broker.
///
/// Rules queue up: for one API the oldest rule with requests left applies. A request of a held or delayed API keeps
/// the requests behind it on the same connection waiting, as in Apache Kafka.
#[derive(Clone)]
pub struct FaultControl {
    pub(super) shared: Arc<Shared>,
}

impl FaultControl {
    /// The next `count` requests of `api` are answered with `error`, without effect.
    pub fn fail(&self, api: ApiKey, count: usize, error: ResponseError) {
        self.add(api, None, count, Action::Fail(error));
    }

    /// The next `count` requests of `api` that name `topic` get `error` for that topic, without effect on it; their
    /// other topics are served.
    pub fn fail_topic(&self, api: ApiKey, topic: &str, count: usize, error: ResponseError) {
        self.add(api, Some(topic), count, Action::Fail(error));
    }

    /// The next `count` requests of `api` are not applied: the connection closes instead.
    pub fn disconnect_before(&self, api: ApiKey, count: usize) {
        self.add(api, None, count, Action::DisconnectBefore);
    }

    /// The next `count` requests of `api` are applied, and then the connection closes without the answer.
    pub fn disconnect_after(&self, api: ApiKey, count: usize) {
        self.add(api, None, count, Action::DisconnectAfter);
    }

    /// Every answer of `api` is sent this much later (tokio's clock), until set to zero.
    pub fn delay(&self, api: ApiKey, delay: Duration) {
        let mut rules = self.shared.faults.rules();
        if delay.is_zero() {
            rules.delays.remove(&(api as i16));
        } else {
            rules.delays.insert(api as i16, delay);
        }
    }

    /// Requests of `api` are applied, but their answers wait for [`Self::release`].
    pub fn hold(&self, api: ApiKey) {
        self.shared.faults.held.send_modify(|held| {
            held.insert(api as i16);
        });
    }

    /// Sends the answers that [`Self::hold`] kept back, and holds no more of them.
    pub fn release(&self, api: ApiKey) {
        self.shared.faults.held.send_modify(|held| {
            held.remove(&(api as i16));
        });
    }

    /// Forgets every failure, disconnection, delay and hold; the counters stay.
    pub fn clear(&self) {
        let mut rules = self.shared.faults.rules();
        rules.rules.clear();
        rules.delays.clear();
        drop(rules);
        self.shared.faults.held.send_modify(BTreeSet::clear);
    }

    /// How many requests of `api` all brokers have received so far, failed ones included.
    #[must_use]
    pub fn requests(&self, api: ApiKey) -> u64 {
        self.shared.faults.rules().requests.get(&(api as i16)).copied().unwrap_or(0)
    }

    /// Keeps every commit that is accepted from now on, for [`Self::take_commits`].
    pub fn record_commits(&self) {
        self.shared.commits.record();
    }

    /// The commits that were accepted since the last call, in order; none before [`Self::record_commits`].
    #[must_use]
    pub fn take_commits(&self) -> Vec<Commit> {
        self.shared.commits.take()
    }

    /// How many requests all brokers have received so far, failed ones included.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.shared.faults.rules().requests.values().sum()
    }

    /// Makes `broker` the leader of a partition, under the next leader epoch. Fetches that wait are woken.
    ///
    /// # Errors
    /// The partition or the broker does not exist.
    pub fn move_leader(&self, topic: &str, partition: i32, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        if !cluster.nodes.contains_key(&broker) {
            return Err(BrokerError::NoSuchBroker(broker));
        }
        let moved = cluster.move_leader(topic, partition, broker);
        drop(cluster);
        self.shared.appended.notify_waiters();
        moved.map_err(|_| BrokerError::NoSuchPartition(topic.to_owned(), partition))
    }

    /// Makes `broker` the coordinator of a group. Members that wait in a join or a sync get NOT_COORDINATOR.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn move_coordinator(&self, group: &str, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        if !cluster.nodes.contains_key(&broker) {
            return Err(BrokerError::NoSuchBroker(broker));
        }
        cluster.move_coordinator(group, broker, self.shared.clock.now());
        Ok(())
    }

    /// Closes the listeners and connections of a broker. Its partitions and groups move to the brokers that still run;
    /// with none left they wait for it. Nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn stop_broker(&self, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        let Some(node) = cluster.nodes.get_mut(&broker) else {
            return Err(BrokerError::NoSuchBroker(broker));
        };
        node.running.send_replace(false);
        node.sessions = super::session::FetchSessions::default();
        cluster.broker_stopped(broker, self.shared.clock.now());
        drop(cluster);
        self.shared.appended.notify_waiters();
        Ok(())
    }

    /// Starts a stopped broker again at the same ports. It leads nothing until something is moved to it, unless it
    /// was the last one.
    ///
    /// # Errors
    /// The broker does not exist, or one of its ports is taken.
    ///
    /// # Cancel safety
    /// A dropped call may leave some of the listeners closed; call it again.
    pub async fn start_broker(&self, broker: i32) -> Result<(), BrokerError> {
        server::start_node(&self.shared, broker).await
    }

    /// Lets nothing through between the clients called `client` (`None`: all) and `broker` (`None`: all), and tells nobody:
    /// connections stay open and silent, new ones too, until [`Self::heal`]; what was sent meanwhile then arrives.
    ///
    /// A client's name is the one given to [`super::Network::connect`], over TCP its `client.id`.
    pub fn cut(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.cut((client.map(str::to_owned), broker));
    }

    /// Ends the [`Self::cut`] of the same two; [`Self::heal_all`] ends every one.
    pub fn heal(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.heal(&(client.map(str::to_owned), broker));
    }

    /// Ends every [`Self::cut`].
    pub fn heal_all(&self) {
        self.shared.links.heal_all();
    }

    /// The broker forgets the connections of these clients that are open now, as after a failure of a firewall between
    /// them: they stay open for the client, and nothing is ever answered on them. New connections work.
    pub fn forget_connections(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.forget((client.map(str::to_owned), broker));
    }

    fn add(&self, api: ApiKey, topic: Option<&str>, count: usize, action: Action) {
        if count > 0 {
            self.shared.faults.add(api, topic, count, action);
        }
    }
}
