//! The embedded broker: Kafka's protocol in process, over TCP or in-memory streams, in pure Rust.
//!
//! Good enough that foreign clients produce to it and consume through a group, and made for tests: [`FaultControl`]
//! breaks it on purpose, [`EmbeddedBroker::feed`] writes, [`EmbeddedBroker::records`] and
//! [`EmbeddedBroker::committed`] look inside, and two waits end when a program has done its work. Data lives in
//! memory; a cluster of several brokers shares it, and a replica lags only when a test says so. It shares no code with the
//! client it tests. Not for hostile networks.

mod acls;
mod api;
mod clock;
mod cluster;
mod commits;
mod compaction;
mod consumer_group;
mod control;
mod fake;
mod faults;
mod group;
mod log;
mod network;
mod partition;
mod producers;
mod profile;
mod quotas;
mod random;
mod records;
mod sasl;
mod server;
mod session;
mod stored;
mod tls;
mod topic_config;
mod transactions;
mod user;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

pub use self::acls::{Operation, Resource};
use self::clock::{Clock, FOREVER};
use self::cluster::{Cluster, Node, Options, Placement, Shared};
pub use self::commits::Commit;
use self::consumer_group::Times;
pub use self::control::FaultControl;
pub use self::fake::FakeKafka;
pub use self::faults::{Effect, Fault, FaultId};
pub use self::network::{Breaker, MemoryStream, Network};
pub use self::profile::Profile;
pub use self::quotas::Quota;
use self::session::FetchSessions;
pub use self::stored::StoredRecord;
use self::tls::TlsPem;
pub use self::user::NewRecord;
pub use crate::Listener;
pub use kafka_protocol::ResponseError;
pub use kafka_protocol::messages::ApiKey;

impl Listener {
    fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

/// What can go wrong with the embedded broker itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// A port could not be opened.
    #[error("the embedded broker cannot listen: {0}")]
    Listen(#[source] std::io::Error),
    /// A certificate or key of [`EmbeddedBrokerBuilder::tls`] is of no use.
    #[error("the embedded broker's TLS settings: {0}")]
    Tls(String),
    /// The cluster has no broker of this id (they are numbered from 1).
    #[error("there is no broker {0}")]
    NoSuchBroker(i32),
    /// The topic or partition does not exist.
    #[error("there is no partition {0}-{1}")]
    NoSuchPartition(String, i32),
    /// The topic was not created, grown or deleted.
    #[error("topic {0}: {1}")]
    Topic(String, ResponseError),
    /// What a test waited for did not come in time.
    #[error("it did not come in time: {0}")]
    TimedOut(String),
    /// A stored batch could not be read.
    #[error("a stored batch cannot be read: {0}")]
    Batch(String),
}

/// Records by partition.
pub type Partitioned = BTreeMap<i32, Vec<StoredRecord>>;

/// Settings of an [`EmbeddedBroker`]; made by [`EmbeddedBroker::builder`].
#[derive(Debug, Clone)]
pub struct EmbeddedBrokerBuilder {
    brokers: i32,
    cluster_id: Option<String>,
    racks: Vec<String>,
    options: Options,
    users: sasl::Users,
    tls: Option<TlsPem>,
    in_memory: bool,
    seed: u64,
    wall_ms: Option<i64>,
}

impl EmbeddedBrokerBuilder {
    /// How many brokers the cluster has, with the ids 1 to `brokers`. Default 1, at least 1.
    #[must_use]
    pub fn brokers(mut self, brokers: i32) -> Self {
        self.brokers = brokers.max(1);
        self
    }

    /// The cluster's id. Default: the same for all. Clusters of different ids give their topics different ids as well (KIP-516),
    /// so that no client takes one for the other.
    #[must_use]
    pub fn cluster_id(mut self, id: &str) -> Self {
        self.cluster_id = Some(id.to_owned());
        self
    }

    /// Where the brokers stand (`broker.rack`), in the order of their ids. A leader names the replica in the reader's rack
    /// (`client.rack`), and followers answer readers too (KIP-392, `RackAwareReplicaSelector`). Default: nowhere.
    #[must_use]
    pub fn racks<R: Into<String>>(mut self, racks: impl IntoIterator<Item = R>) -> Self {
        self.racks = racks.into_iter().map(Into::into).collect();
        self
    }

    /// Partitions of a topic that is created without saying how many (`num.partitions`). Default 1.
    #[must_use]
    pub fn default_partitions(mut self, partitions: i32) -> Self {
        self.options.default_partitions = partitions.max(1);
        self
    }

    /// May a metadata request create the topics it names (`auto.create.topics.enable`)? Default true.
    #[must_use]
    pub fn auto_create_topics(mut self, create: bool) -> Self {
        self.options.auto_create_topics = create;
        self
    }

    /// Replicas of a topic that is created without saying how many (`default.replication.factor`). Default: one on each
    /// broker, three at most.
    #[must_use]
    pub fn default_replication(mut self, replicas: i16) -> Self {
        self.options.default_replication = replicas;
        self
    }

    /// How long after the time of its last records an idempotent producer is remembered (`producer.id.expiration.ms`; looked at
    /// every ten minutes). Default one day.
    #[must_use]
    pub fn producer_id_expiration(mut self, age: Duration) -> Self {
        self.options.producer_expiration = age;
        self
    }

    /// Which broker this one looks like. Default: everything it can do.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.options.profile = profile;
        self
    }

    /// Times of KIP-848 groups: when a silent member is out (`group.consumer.session.timeout.ms`, default 45 s), and how
    /// often members are told to send heartbeats (`group.consumer.heartbeat.interval.ms`, default 5 s).
    #[must_use]
    pub fn consumer_group_times(mut self, session: Duration, heartbeat: Duration) -> Self {
        self.options.consumer_group = Times { session: session.min(FOREVER), heartbeat };
        self
    }

    /// How many fetch sessions a broker keeps (`max.incremental.fetch.session.cache.slots`). A client that finds the cache
    /// full gets none, and fetches without. Default 1000.
    #[must_use]
    pub fn fetch_sessions(mut self, slots: usize) -> Self {
        self.options.fetch_sessions = slots;
        self
    }

    /// How long the offsets of a group without members are kept (`offsets.retention.minutes`). Default seven days.
    #[must_use]
    pub fn offsets_retention(mut self, age: Duration) -> Self {
        self.options.offsets_retention = age;
        self
    }

    /// A user who may log in at the SASL listeners, with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Call it once per user.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.insert(name.to_owned(), password.to_owned());
        self
    }

    /// Opens the TLS listeners. PEM texts: the server's chain (its own certificate first), its key, and the authority
    /// that must have signed a client's certificate (`None`: clients need none).
    #[must_use]
    pub fn tls(mut self, chain: &str, key: &str, client_ca: Option<&str>) -> Self {
        let client_ca = client_ca.map(str::to_owned);
        self.tls = Some(TlsPem { chain: chain.to_owned(), key: key.to_owned(), client_ca });
        self
    }

    /// Opens no sockets: connections come through [`EmbeddedBroker::network`] only. Brokers are then advertised
    /// as `broker-ID`, with port 9092 for PLAINTEXT, 9093 SASL_PLAINTEXT, 9094 SSL and 9095 SASL_SSL. Default off.
    #[must_use]
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// The seed of everything in the broker that is left to chance (faults by probability, SCRAM nonces). Default 0: with
    /// [`Self::in_memory`], paused time and one thread a run repeats exactly.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The wall-clock time at the start, in milliseconds since 1970; it moves with tokio's clock from there. Default: the
    /// machine's.
    #[must_use]
    pub fn wall_clock_ms(mut self, start: i64) -> Self {
        self.wall_ms = Some(start);
        self
    }

    /// Starts the cluster on ephemeral ports of 127.0.0.1. Needs a tokio runtime.
    ///
    /// # Errors
    /// A port cannot be opened, or the TLS settings are of no use.
    ///
    /// # Cancel safety
    /// A dropped call closes what it had opened.
    pub async fn start(self) -> Result<EmbeddedBroker, BrokerError> {
        let tls = self.tls.as_ref().map(tls::acceptor).transpose()?;
        let mut listeners = vec![(Listener::Plaintext, 9092), (Listener::SaslPlaintext, 9093)];
        if tls.is_some() {
            listeners.extend([(Listener::Ssl, 9094), (Listener::SaslSsl, 9095)]);
        }
        let port = |fixed: u16| if self.in_memory { fixed } else { 0 };
        let node = |id: i32| Node {
            host: if self.in_memory { format!("broker-{id}") } else { "127.0.0.1".to_owned() },
            rack: usize::try_from(id - 1).ok().and_then(|index| self.racks.get(index).cloned()),
            ports: listeners.iter().map(|(l, p)| (*l, port(*p))).collect(),
            running: watch::Sender::new(false),
            accepting: Vec::new(),
            sessions: FetchSessions::default(),
            stopped_cleanly: true,
        };
        let nodes = (1..=self.brokers).map(|id| (id, node(id))).collect();
        let mut options = self.options;
        if options.default_replication < 1 {
            options.default_replication = i16::try_from(self.brokers.min(3)).unwrap_or(3);
        }
        let mut cluster = Cluster::new(options, nodes);
        if let Some(id) = self.cluster_id {
            cluster.set_id(id);
        }
        let shared =
            Shared::new(cluster, Clock::start(self.wall_ms), self.users, tls, self.in_memory, self.seed);
        let timers = spawn_timers(Arc::clone(&shared));
        let broker = EmbeddedBroker { shared, timers };
        for id in 1..=self.brokers {
            server::start_node(&broker.shared, id).await?;
        }
        Ok(broker)
    }
}

/// One task per cluster ends sessions, rebalances and transactions in time.
#[expect(clippy::disallowed_methods, reason = "the cluster's one timer task; the handle aborts it")]
fn spawn_timers(shared: Arc<Shared>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let changed = shared.timer.notified();
            let next = shared.cluster().next_timeout();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(shared.clock.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = due => {
                    let mut cluster = shared.cluster();
                    cluster.handle_group_timeouts(shared.clock.now());
                    cluster.settle_transactions(&shared.clock, &shared.commits);
                    drop(cluster);
                    shared.appended.notify_waiters();
                    shared.committed.notify_waiters();
                }
            }
        }
    })
}

/// A running cluster of embedded brokers. Dropping it closes every listener and connection.
pub struct EmbeddedBroker {
    shared: Arc<Shared>,
    timers: JoinHandle<()>,
}

impl EmbeddedBroker {
    /// Starts one broker with default settings on ephemeral ports of 127.0.0.1.
    ///
    /// # Errors
    /// A port cannot be opened.
    ///
    /// # Cancel safety
    /// A dropped call closes what it had opened.
    pub async fn start() -> Result<Self, BrokerError> {
        Self::builder().start().await
    }

    /// The settings to start one with.
    #[must_use]
    pub fn builder() -> EmbeddedBrokerBuilder {
        EmbeddedBrokerBuilder {
            brokers: 1,
            cluster_id: None,
            racks: Vec::new(),
            options: Options {
                default_partitions: 1,
                auto_create_topics: true,
                default_replication: -1,
                producer_expiration: Duration::from_secs(86_400),
                max_transaction_timeout: Duration::from_secs(900),
                offsets_retention: Duration::from_secs(7 * 86_400),
                consumer_group: Times { session: Duration::from_secs(45), heartbeat: Duration::from_secs(5) },
                profile: Profile::Latest,
                fetch_sessions: 1000,
            },
            users: sasl::Users::new(),
            tls: None,
            in_memory: false,
            seed: 0,
            wall_ms: None,
        }
    }

    /// `bootstrap.servers` of the plaintext listeners: `127.0.0.1:port`, comma separated.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.listener(Listener::Plaintext)
    }

    /// `bootstrap.servers` of one kind of listener; empty for TLS ones without [`EmbeddedBrokerBuilder::tls`].
    #[must_use]
    pub fn listener(&self, listener: Listener) -> String {
        let cluster = self.shared.cluster();
        let addresses = cluster.nodes.keys().filter_map(|id| cluster.address(*id, listener));
        addresses.map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
    }

    /// The host and port at which Metadata sends clients of `listener` to a broker; for tests that map addresses to
    /// in-memory streams.
    #[must_use]
    pub fn address(&self, broker_id: i32, listener: Listener) -> Option<(String, u16)> {
        self.shared.cluster().address(broker_id, listener)
    }

    /// Serves a connection to a broker over any stream, such as one half of `tokio::io::duplex`, until it closes or
    /// the broker stops. On TLS listeners the handshake comes first. A stopped or unknown broker drops the stream.
    pub fn serve_stream<S>(&self, broker_id: i32, listener: Listener, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let breaker = network::Breaker::default();
        drop(network::serve(&self.shared, "", broker_id, listener, stream, breaker));
    }

    /// Opens in-memory connections to the brokers.
    #[must_use]
    pub fn network(&self) -> Network {
        Network { shared: Arc::clone(&self.shared) }
    }

    /// Faults, moves and counters.
    #[must_use]
    pub fn control(&self) -> FaultControl {
        FaultControl { shared: Arc::clone(&self.shared) }
    }

    /// Creates a topic with default configurations.
    ///
    /// # Errors
    /// The name is not legal, the topic exists, or `partitions` is not within 1 to 10,000.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        let made = self.shared.cluster().create_topic(name, partitions, &Placement::usual(), BTreeMap::new());
        made.map(drop).map_err(|error| BrokerError::Topic(name.to_owned(), error))
    }

    /// Gives a topic more partitions, up to `partitions` in all.
    ///
    /// # Errors
    /// The topic does not exist, or has as many already.
    pub fn grow_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        let grown = self.shared.cluster().add_partitions(name, partitions);
        grown.map_err(|error| BrokerError::Topic(name.to_owned(), error))
    }

    /// Deletes a topic with its records and what groups have committed for it, as DeleteTopics does.
    ///
    /// # Errors
    /// The topic does not exist.
    pub fn delete_topic(&self, name: &str) -> Result<(), BrokerError> {
        let deleted = self.shared.cluster().delete_topic(name);
        self.shared.appended.notify_waiters();
        deleted.map(drop).map_err(|error| BrokerError::Topic(name.to_owned(), error))
    }

    /// The offset that a group has committed for a partition.
    #[must_use]
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let cluster = self.shared.cluster();
        cluster.groups.get(group)?.offsets.get(&(topic.to_owned(), partition)).map(|c| c.offset)
    }

    /// How many transactions are open, or are being ended.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.shared.cluster().transactions.open()
    }

    /// Closes every listener and connection, and waits until the ports are free.
    ///
    /// # Cancel safety
    /// A dropped call still closes everything.
    pub async fn shutdown(self) {
        for task in self.stop() {
            drop(task.await);
        }
    }

    fn stop(&self) -> Vec<JoinHandle<()>> {
        self.timers.abort();
        let mut cluster = self.shared.cluster();
        let stop = |node: &mut Node| {
            node.running.send_replace(false);
            std::mem::take(&mut node.accepting)
        };
        cluster.nodes.values_mut().flat_map(stop).collect()
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        drop(self.stop());
    }
}
