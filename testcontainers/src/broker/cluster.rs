//! What all brokers of the embedded cluster share: topics, groups, committed offsets, leaders and coordinators.
//!
//! One std mutex guards it; no handler holds it across an await. The parts with rules of their own (log, producers,
//! group, fetch sessions) are pure structs in their own files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::clock::{Clock, Now};
use super::commits::Commits;
use super::control::Faults;
use super::group::{Answer, Group, Ticket};
use super::log::PartitionLog;
use super::network::Links;
use super::random::Random;
use super::sasl::Users;
use super::session::FetchSessions;
use super::watch;
use super::{Listener, topic_config};

/// What the broker, its connections and its control handle share.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) users: Users,
    pub(super) faults: Faults,
    pub(super) links: Links,
    pub(super) commits: Commits,
    pub(super) random: Random,
    pub(super) tls: Option<tokio_rustls::TlsAcceptor>,
    /// No sockets: connections come through `serve_stream` only.
    pub(super) in_memory: bool,
    cluster: Mutex<Cluster>,
    /// Woken by every append: fetches wait on it.
    pub(super) appended: Notify,
    /// Woken when a group's next timeout may have changed.
    pub(super) group_timer: Notify,
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
            tls,
            in_memory,
            cluster: Mutex::new(cluster),
            appended: Notify::new(),
            group_timer: Notify::new(),
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
}

/// One broker: where it listens and whether it runs.
pub(super) struct Node {
    pub(super) host: String,
    pub(super) ports: BTreeMap<Listener, u16>,
    /// True while the broker runs; its connections watch it.
    pub(super) running: watch::Sender<bool>,
    /// The tasks that accept its connections.
    pub(super) accepting: Vec<tokio::task::JoinHandle<()>>,
    pub(super) sessions: FetchSessions,
}

pub(super) struct Partition {
    pub(super) log: PartitionLog,
    pub(super) leader: i32,
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
}

pub(super) struct GroupEntry {
    pub(super) group: Group,
    pub(super) offsets: BTreeMap<(String, i32), Committed>,
}

pub(super) struct Cluster {
    pub(super) id: String,
    pub(super) options: Options,
    pub(super) nodes: BTreeMap<i32, Node>,
    pub(super) topics: BTreeMap<String, Topic>,
    topic_names: BTreeMap<Uuid, String>,
    pub(super) groups: BTreeMap<String, GroupEntry>,
    coordinators: BTreeMap<String, i32>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Answer>>,
    tickets: Ticket,
    topics_made: u128,
    producer_ids: i64,
}

impl Cluster {
    pub(super) fn new(options: Options, nodes: BTreeMap<i32, Node>) -> Self {
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
            topics_made: 0,
            producer_ids: 1000,
        }
    }

    /// Brokers that run, by id.
    pub(super) fn running(&self) -> impl Iterator<Item = (i32, &Node)> {
        self.nodes.iter().filter(|(_, n)| *n.running.borrow()).map(|(id, n)| (*id, n))
    }

    pub(super) fn controller(&self) -> i32 {
        self.running().next().map_or(-1, |(id, _)| id)
    }

    /// The address at which a broker answers on `listener`.
    pub(super) fn address(&self, broker: i32, listener: Listener) -> Option<(String, u16)> {
        let node = self.nodes.get(&broker)?;
        Some((node.host.clone(), *node.ports.get(&listener)?))
    }

    pub(super) fn next_producer_id(&mut self) -> i64 {
        self.producer_ids += 1;
        self.producer_ids
    }

    // Topics.

    pub(super) fn topic_name(&self, id: Uuid) -> Option<&str> {
        self.topic_names.get(&id).map(String::as_str)
    }

    /// Creates a topic whose partitions are led by the running brokers in turn, or by `leaders` where it names them.
    pub(super) fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        leaders: &BTreeMap<i32, i32>,
        configs: BTreeMap<String, String>,
    ) -> Result<Uuid, ResponseError> {
        check_topic_name(name)?;
        if self.topics.contains_key(name) {
            return Err(ResponseError::TopicAlreadyExists);
        }
        if !(1..=10_000).contains(&partitions) {
            return Err(ResponseError::InvalidPartitions);
        }
        self.topics_made += 1;
        let id = Uuid::from_u128((0xd7_6b_af_6a << 96) | self.topics_made);
        let partitions = (0..partitions).map(|p| self.new_partition(p, leaders.get(&p))).collect();
        self.topics.insert(name.to_owned(), Topic { id, partitions, configs });
        self.topic_names.insert(id, name.to_owned());
        Ok(id)
    }

    fn new_partition(&self, partition: i32, leader: Option<&i32>) -> Partition {
        let running: Vec<i32> = self.running().map(|(id, _)| id).collect();
        let turn = usize::try_from(partition).unwrap_or(0) % running.len().max(1);
        let leader = leader.or_else(|| running.get(turn)).copied().unwrap_or(-1);
        Partition { log: PartitionLog::new(), leader }
    }

    pub(super) fn add_partitions(&mut self, name: &str, total: i32) -> Result<(), ResponseError> {
        let have = self.topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?.partitions.len();
        if usize::try_from(total).unwrap_or(0) <= have || total > 10_000 {
            return Err(ResponseError::InvalidPartitions);
        }
        let first = i32::try_from(have).unwrap_or(i32::MAX);
        let added: Vec<Partition> = (first..total).map(|p| self.new_partition(p, None)).collect();
        if let Some(topic) = self.topics.get_mut(name) {
            topic.partitions.extend(added);
        }
        Ok(())
    }

    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Uuid, ResponseError> {
        let topic = self.topics.remove(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        self.topic_names.remove(&topic.id);
        for entry in self.groups.values_mut() {
            entry.offsets.retain(|(topic, _), _| topic != name);
        }
        Ok(topic.id)
    }

    /// The partition, if it exists.
    pub(super) fn partition(&self, topic: &str, partition: i32) -> Result<&Partition, ResponseError> {
        let index = usize::try_from(partition).map_err(|_| ResponseError::UnknownTopicOrPartition)?;
        let topic = self.topics.get(topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        topic.partitions.get(index).ok_or(ResponseError::UnknownTopicOrPartition)
    }

    pub(super) fn partition_mut(
        &mut self,
        topic: &str,
        partition: i32,
    ) -> Result<&mut Partition, ResponseError> {
        let index = usize::try_from(partition).map_err(|_| ResponseError::UnknownTopicOrPartition)?;
        let topic = self.topics.get_mut(topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        topic.partitions.get_mut(index).ok_or(ResponseError::UnknownTopicOrPartition)
    }

    /// The partition, if `broker` leads it and the client's leader epoch is the current one (KIP-320).
    pub(super) fn led_partition(
        &self,
        broker: i32,
        topic: &str,
        partition: i32,
        client_epoch: i32,
    ) -> Result<&Partition, ResponseError> {
        let found = self.partition(topic, partition)?;
        let epoch = found.log.leader_epoch();
        match client_epoch {
            e if e >= 0 && e < epoch => Err(ResponseError::FencedLeaderEpoch),
            e if e > epoch => Err(ResponseError::UnknownLeaderEpoch),
            _ if found.leader != broker => Err(ResponseError::NotLeaderOrFollower),
            _ => Ok(found),
        }
    }

    /// Makes `broker` the leader under a new epoch.
    pub(super) fn move_leader(
        &mut self,
        topic: &str,
        partition: i32,
        broker: i32,
    ) -> Result<(), ResponseError> {
        let found = self.partition_mut(topic, partition)?;
        if found.leader != broker {
            found.leader = broker;
            found.log.begin_epoch();
        }
        Ok(())
    }

    /// A broker went down: its partitions and groups go to the running ones; with none left they wait for it.
    pub(super) fn broker_stopped(&mut self, broker: i32, now: Now) {
        let running: Vec<i32> = self.running().map(|(id, _)| id).collect();
        let Some(heir) = running.iter().copied().find(|id| *id > broker).or_else(|| running.first().copied())
        else {
            return;
        };
        for topic in self.topics.values_mut() {
            for partition in topic.partitions.iter_mut().filter(|p| p.leader == broker) {
                partition.leader = heir;
                partition.log.begin_epoch();
            }
        }
        let moved: Vec<String> =
            self.groups.keys().filter(|g| self.coordinator(g) == broker).cloned().collect();
        for group in moved {
            self.move_coordinator(&group, heir, now);
        }
        for owner in self.coordinators.values_mut().filter(|o| **o == broker) {
            *owner = heir;
        }
    }

    // Groups.

    /// The broker that coordinates a group: where it was moved to, or the one its name falls on.
    pub(super) fn coordinator(&self, group: &str) -> i32 {
        if let Some(moved) = self.coordinators.get(group) {
            return *moved;
        }
        let ids: Vec<i32> = self.nodes.keys().copied().collect();
        let slot = crc32c::crc32c(group.as_bytes()) as usize % ids.len().max(1);
        ids.get(slot).copied().unwrap_or(-1)
    }

    /// The coordinator as FindCoordinator tells it: pinned, so that later restarts do not move it again.
    pub(super) fn running_coordinator(&mut self, group: &str, now: Now) -> i32 {
        let owner = self.coordinator(group);
        let runs = |id: i32| self.nodes.get(&id).is_some_and(|n| *n.running.borrow());
        if runs(owner) {
            return owner;
        }
        let heir = self.controller();
        if heir >= 0 {
            self.move_coordinator(group, heir, now);
        }
        heir
    }

    pub(super) fn move_coordinator(&mut self, group: &str, broker: i32, now: Now) {
        if self.coordinator(group) == broker {
            return;
        }
        self.coordinators.insert(group.to_owned(), broker);
        if let Some(entry) = self.groups.get_mut(group) {
            entry.group.handle_resign(now);
        }
        self.deliver(group);
    }

    /// The group, made if it is new.
    pub(super) fn group_mut(&mut self, group: &str) -> &mut GroupEntry {
        self.groups
            .entry(group.to_owned())
            .or_insert_with(|| GroupEntry { group: Group::new(), offsets: BTreeMap::new() })
    }

    /// Parks a request: the receiver gets the group's answer to this ticket.
    pub(super) fn park(&mut self) -> (Ticket, oneshot::Receiver<Answer>) {
        self.tickets += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(self.tickets, sender);
        (self.tickets, receiver)
    }

    /// Hands the group's answers to those who wait for them; one whose connection is gone is dropped.
    pub(super) fn deliver(&mut self, group: &str) {
        let Some(entry) = self.groups.get_mut(group) else { return };
        while let Some((ticket, answer)) = entry.group.poll_answer() {
            if let Some(waiting) = self.waiting.remove(&ticket) {
                drop(waiting.send(answer));
            }
        }
    }

    pub(super) fn next_group_timeout(&self) -> Option<Now> {
        self.groups.values().filter_map(|e| e.group.poll_timeout()).min()
    }

    pub(super) fn handle_group_timeouts(&mut self, now: Now) {
        let due = |e: &GroupEntry| e.group.poll_timeout().is_some_and(|at| at <= now);
        let due: BTreeSet<String> =
            self.groups.iter().filter(|(_, e)| due(e)).map(|(g, _)| g.clone()).collect();
        for group in due {
            if let Some(entry) = self.groups.get_mut(&group) {
                entry.group.handle_timeout(now);
            }
            self.deliver(&group);
        }
    }
}

/// Kafka's rule for topic names: 1 to 249 letters, digits, dots, underscores and dashes; not `.` or `..`.
pub(super) fn check_topic_name(name: &str) -> Result<(), ResponseError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fine = (1..=249).contains(&name.len()) && name.chars().all(legal) && name != "." && name != "..";
    if fine { Ok(()) } else { Err(ResponseError::InvalidTopicException) }
}
