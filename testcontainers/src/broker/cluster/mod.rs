//! What all brokers of the embedded cluster share: topics, groups, committed offsets, leaders and coordinators.
//!
//! One std mutex guards it; no handler holds it across an await. The parts with rules of their own (log, producers,
//! group, fetch sessions) are pure structs in their own files; topics and coordinators have a file each below this one.

mod coordinators;
mod settle;
mod topics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::protocol::StrBytes;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::acls::Acls;
use super::clock::Clock;
use super::commits::Commits;
use super::consumer_group::{ConsumerGroup, Times};
use super::faults::Faults;
use super::group::{Answer, Group, State, Ticket};
use super::network::Links;
use super::partition::Partition;
use super::profile::Profile;
use super::quotas::Quotas;
use super::random::Random;
use super::sasl::Users;
use super::session::FetchSessions;
use super::transactions::Transactions;
use super::watch;
use super::{Listener, topic_config};

pub(super) use self::coordinators::Kind;
pub(super) use self::topics::{Placement, check_topic_name};

/// What the broker, its connections and its control handle share.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) users: Users,
    pub(super) faults: Faults,
    pub(super) links: Links,
    pub(super) commits: Commits,
    pub(super) random: Random,
    pub(super) acls: Mutex<Acls>,
    pub(super) quotas: Mutex<Quotas>,
    pub(super) profile: Profile,
    pub(super) tls: Option<tokio_rustls::TlsAcceptor>,
    /// No sockets: connections come through `serve_stream` only.
    pub(super) in_memory: bool,
    cluster: Mutex<Cluster>,
    /// Woken by every append: fetches wait on it.
    pub(super) appended: Notify,
    /// Woken by every commit of offsets.
    pub(super) committed: Notify,
    /// Woken when the next timeout of a group or transaction may have changed.
    pub(super) timer: Notify,
}

impl Shared {
    pub(super) fn new(
        cluster: Cluster,
        clock: Clock,
        users: Users,
        tls: Option<tokio_rustls::TlsAcceptor>,
        in_memory: bool,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            users,
            faults: Faults::default(),
            links: Links::default(),
            commits: Commits::default(),
            random: Random::new(seed),
            acls: Mutex::default(),
            quotas: Mutex::default(),
            profile: cluster.options.profile,
            tls,
            in_memory,
            cluster: Mutex::new(cluster),
            appended: Notify::new(),
            committed: Notify::new(),
            timer: Notify::new(),
        })
    }

    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of the whole cluster.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) default_partitions: i32,
    pub(super) auto_create_topics: bool,
    pub(super) default_replication: i16,
    /// Producers that are silent for longer are forgotten (`producer.id.expiration.ms`).
    pub(super) producer_expiration: Duration,
    /// `transaction.max.timeout.ms`.
    pub(super) max_transaction_timeout: Duration,
    /// Offsets of groups without members are forgotten when older (`offsets.retention.minutes`).
    pub(super) offsets_retention: Duration,
    pub(super) consumer_group: Times,
    pub(super) profile: Profile,
    /// Fetch sessions that a broker keeps (`max.incremental.fetch.session.cache.slots`).
    pub(super) fetch_sessions: usize,
}

/// One broker: where it listens and whether it runs.
pub(super) struct Node {
    pub(super) host: String,
    /// `broker.rack`.
    pub(super) rack: Option<String>,
    pub(super) ports: BTreeMap<Listener, u16>,
    /// True while the broker runs; its connections watch it.
    pub(super) running: watch::Sender<bool>,
    /// The tasks that accept its connections.
    pub(super) accepting: Vec<tokio::task::JoinHandle<()>>,
    pub(super) sessions: FetchSessions,
    /// Did it end in an orderly way when it ended last?
    pub(super) stopped_cleanly: bool,
}

pub(super) struct Topic {
    pub(super) id: Uuid,
    pub(super) partitions: Vec<Partition>,
    /// Only what differs from the defaults.
    pub(super) configs: BTreeMap<String, String>,
}

impl Topic {
    pub(super) fn config(&self, name: &str) -> Option<&str> {
        self.configs.get(name).map(String::as_str).or_else(|| topic_config::default_of(name))
    }
}

/// An offset committed by a group.
#[derive(Debug, Clone)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: Option<StrBytes>,
    pub(super) committed_ms: i64,
}

#[derive(Default)]
pub(super) struct GroupEntry {
    /// The classic group. Its members and those of [`Self::consumer`] exclude each other.
    pub(super) group: Group,
    /// The group of KIP-848, once it was one.
    pub(super) consumer: Option<ConsumerGroup>,
    pub(super) offsets: BTreeMap<(String, i32), Committed>,
    /// Offsets of open transactions, by producer id.
    pub(super) pending: BTreeMap<i64, BTreeMap<(String, i32), Committed>>,
    /// The newest epoch of each producer that committed here in a transaction.
    pub(super) producer_epochs: BTreeMap<i64, i16>,
}

impl GroupEntry {
    /// No member of either protocol.
    pub(super) fn is_empty(&self) -> bool {
        self.group.state == State::Empty && self.consumer.as_ref().is_none_or(ConsumerGroup::is_empty)
    }

    /// Is it a group of KIP-848, empty or not?
    pub(super) fn is_consumer(&self) -> bool {
        self.consumer.is_some() && self.group.state == State::Empty
    }
}

pub(super) struct Cluster {
    pub(super) id: String,
    pub(super) options: Options,
    pub(super) nodes: BTreeMap<i32, Node>,
    pub(super) topics: BTreeMap<String, Topic>,
    topic_names: BTreeMap<Uuid, String>,
    pub(super) groups: BTreeMap<String, GroupEntry>,
    coordinators: BTreeMap<(Kind, String), i32>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Answer>>,
    tickets: Ticket,
    /// The first half of the ids of its topics.
    topic_ids: u64,
    topics_made: u64,
    pub(super) producer_ids: i64,
    pub(super) transactions: Transactions,
    producers_checked_ms: i64,
}

/// What the ids of all topics begin with, of whatever cluster.
const TOPIC_IDS: u64 = 0xd7_6b_af_6a << 32;

impl Cluster {
    pub(super) fn new(options: Options, nodes: BTreeMap<i32, Node>) -> Self {
        let second_version = options.profile.features().contains(&("transaction.version", 2));
        Self {
            id: "dtkafka-embedded-broker".to_owned(),
            options,
            nodes,
            topics: BTreeMap::new(),
            topic_names: BTreeMap::new(),
            groups: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tickets: 0,
            topic_ids: TOPIC_IDS,
            topics_made: 0,
            producer_ids: 1000,
            transactions: Transactions::new(second_version),
            producers_checked_ms: 0,
        }
    }

    /// Before there are topics.
    pub(super) fn set_id(&mut self, id: String) {
        self.topic_ids = TOPIC_IDS | u64::from(crc32c::crc32c(id.as_bytes()));
        self.id = id;
    }

    /// Brokers that run, by id.
    pub(super) fn running(&self) -> impl Iterator<Item = (i32, &Node)> {
        self.nodes.iter().filter(|(_, n)| *n.running.borrow()).map(|(id, n)| (*id, n))
    }

    pub(super) fn runs(&self, broker: i32) -> bool {
        self.nodes.get(&broker).is_some_and(|n| *n.running.borrow())
    }

    pub(super) fn controller(&self) -> i32 {
        self.running().next().map_or(-1, |(id, _)| id)
    }

    /// The address at which a broker answers on `listener`.
    pub(super) fn address(&self, broker: i32, listener: Listener) -> Option<(String, u16)> {
        let node = self.nodes.get(&broker)?;
        Some((node.host.clone(), *node.ports.get(&listener)?))
    }

    pub(super) fn rack(&self, broker: i32) -> Option<&str> {
        self.nodes.get(&broker)?.rack.as_deref()
    }

    pub(super) fn next_producer_id(&mut self) -> i64 {
        self.producer_ids += 1;
        self.producer_ids
    }
}
