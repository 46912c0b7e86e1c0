//! The cluster's topics and partitions, and what happens to them when a broker stops or starts.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::super::clock::Now;
use super::super::partition::Partition;
use super::{Cluster, Topic};

/// Where the replicas of a new topic are.
#[derive(Debug, Default)]
pub(in super::super) struct Placement {
    /// -1: the cluster's default.
    pub(in super::super) factor: i16,
    /// By partition; the first of each list leads. Partitions that are not named are spread over the running brokers.
    pub(in super::super) replicas: BTreeMap<i32, Vec<i32>>,
}

impl Placement {
    pub(in super::super) fn usual() -> Self {
        Self { factor: -1, replicas: BTreeMap::new() }
    }
}

impl Cluster {
    pub(in super::super) fn topic_name(&self, id: Uuid) -> Option<&str> {
        self.topic_names.get(&id).map(String::as_str)
    }

    pub(in super::super) fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        placement: &Placement,
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
        let id = Uuid::from_u64_pair(self.topic_ids, self.topics_made);
        let partitions = (0..partitions).map(|p| self.new_partition(p, placement)).collect();
        self.topics.insert(name.to_owned(), Topic { id, partitions, configs });
        self.topic_names.insert(id, name.to_owned());
        Ok(id)
    }

    fn new_partition(&self, partition: i32, placement: &Placement) -> Partition {
        if let Some(replicas) = placement.replicas.get(&partition) {
            return Partition::new(replicas.clone());
        }
        let mut brokers: Vec<i32> = self.running().map(|(id, _)| id).collect();
        if brokers.is_empty() {
            // They lead it once they run.
            brokers.extend(self.nodes.keys());
        }
        let factor = if placement.factor < 1 { self.options.default_replication } else { placement.factor };
        let factor = usize::try_from(factor).unwrap_or(1).clamp(1, brokers.len().max(1));
        let turn = usize::try_from(partition).unwrap_or(0);
        Partition::new(
            brokers.iter().copied().cycle().skip(turn % brokers.len().max(1)).take(factor).collect(),
        )
    }

    pub(in super::super) fn add_partitions(&mut self, name: &str, total: i32) -> Result<(), ResponseError> {
        let topic = self.topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        let have = topic.partitions.len();
        if usize::try_from(total).unwrap_or(0) <= have || total > 10_000 {
            return Err(ResponseError::InvalidPartitions);
        }
        let factor = topic.partitions.first().map_or(1, |p| i16::try_from(p.replicas.len()).unwrap_or(1));
        let placement = Placement { factor, ..Placement::default() };
        let first = i32::try_from(have).unwrap_or(i32::MAX);
        let added: Vec<Partition> = (first..total).map(|p| self.new_partition(p, &placement)).collect();
        if let Some(topic) = self.topics.get_mut(name) {
            topic.partitions.extend(added);
        }
        Ok(())
    }

    pub(in super::super) fn delete_topic(&mut self, name: &str) -> Result<Uuid, ResponseError> {
        let topic = self.topics.remove(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        self.topic_names.remove(&topic.id);
        for entry in self.groups.values_mut() {
            entry.offsets.retain(|(topic, _), _| topic != name);
        }
        Ok(topic.id)
    }

    /// The partition, if it exists.
    pub(in super::super) fn partition(
        &self,
        topic: &str,
        partition: i32,
    ) -> Result<&Partition, ResponseError> {
        let index = usize::try_from(partition).map_err(|_| ResponseError::UnknownTopicOrPartition)?;
        let topic = self.topics.get(topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        topic.partitions.get(index).ok_or(ResponseError::UnknownTopicOrPartition)
    }

    pub(in super::super) fn partition_mut(
        &mut self,
        topic: &str,
        partition: i32,
    ) -> Result<&mut Partition, ResponseError> {
        let index = usize::try_from(partition).map_err(|_| ResponseError::UnknownTopicOrPartition)?;
        let topic = self.topics.get_mut(topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        topic.partitions.get_mut(index).ok_or(ResponseError::UnknownTopicOrPartition)
    }

    /// The partition, if `broker` leads it and the client's leader epoch is the current one (KIP-320).
    pub(in super::super) fn led_partition(
        &self,
        broker: i32,
        topic: &str,
        partition: i32,
        client_epoch: i32,
    ) -> Result<&Partition, ResponseError> {
        let found = self.kept_partition(broker, topic, partition, client_epoch)?;
        if found.leader == broker { Ok(found) } else { Err(ResponseError::NotLeaderOrFollower) }
    }

    /// The partition, if `broker` leads or follows it (KIP-392) and the client's leader epoch is the current one.
    pub(in super::super) fn kept_partition(
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
            _ if found.end_at(broker).is_none() => Err(ResponseError::NotLeaderOrFollower),
            _ => Ok(found),
        }
    }

    /// The replica that a reader in `rack` is sent to by the leader, as Apache Kafka's `RackAwareReplicaSelector` has it: one in
    /// sync that has the offset. None where the leader is as near.
    pub(in super::super) fn nearer_replica(&self, found: &Partition, rack: &str, offset: i64) -> Option<i32> {
        let is_there = |id: &i32| self.nodes.get(id).is_some_and(|node| node.rack.as_deref() == Some(rack));
        if is_there(&found.leader) {
            return None;
        }
        let has = |id: &i32| found.end_at(*id).is_some_and(|end| end >= offset);
        let fits = |id: &&i32| is_there(id) && self.runs(**id) && found.is_in_sync(**id) && has(id);
        found.replicas.iter().find(fits).copied()
    }

    /// Makes `broker` the leader under a new epoch.
    pub(in super::super) fn move_leader(
        &mut self,
        topic: &str,
        partition: i32,
        broker: i32,
    ) -> Result<(), ResponseError> {
        let found = self.partition_mut(topic, partition)?;
        if found.leader != broker {
            found.move_to(broker);
        }
        Ok(())
    }

    /// A broker went down: its partitions and groups go to running ones that can take them over; the rest wait for it.
    pub(in super::super) fn broker_stopped(&mut self, broker: i32, clean: bool, now: Now) {
        if let Some(node) = self.nodes.get_mut(&broker) {
            node.stopped_cleanly = clean;
        }
        let running: Vec<i32> = self.running().map(|(id, _)| id).collect();
        for topic in self.topics.values_mut() {
            let unclean = topic.config("unclean.leader.election.enable") == Some("true");
            for partition in &mut topic.partitions {
                partition.broker_stopped(broker, |id| running.contains(&id), unclean);
            }
        }
        let heir = running.iter().copied().find(|id| *id > broker).or_else(|| running.first().copied());
        if let Some(heir) = heir {
            self.move_coordinators(broker, heir, now);
        }
    }

    /// A broker is back.
    pub(in super::super) fn broker_started(&mut self, broker: i32) {
        let clean = self.nodes.get(&broker).is_none_or(|node| node.stopped_cleanly);
        for topic in self.topics.values_mut() {
            for partition in &mut topic.partitions {
                partition.broker_started(broker, clean);
            }
        }
    }

    /// Every topic and partition with its number.
    pub(in super::super) fn partitions_mut(&mut self) -> impl Iterator<Item = (&str, i32, &mut Partition)> {
        self.topics.iter_mut().flat_map(|(name, topic)| {
            (0..).zip(&mut topic.partitions).map(move |(index, partition)| (name.as_str(), index, partition))
        })
    }

    /// Forgets the producers that were silent for too long; looked at every ten minutes
    /// (`producer.id.expiration.check.interval.ms`).
    pub(in super::super) fn expire_producers(&mut self, now_ms: i64) {
        if now_ms < self.producers_checked_ms + 600_000 {
            return;
        }
        self.producers_checked_ms = now_ms;
        let age = i64::try_from(self.options.producer_expiration.as_millis()).unwrap_or(i64::MAX);
        for (_, _, partition) in self.partitions_mut() {
            partition.log.expire_producers(now_ms.saturating_sub(age));
        }
    }
}

/// Kafka's rule for topic names: 1 to 249 letters, digits, dots, underscores and dashes; not `.` or `..`.
pub(in super::super) fn check_topic_name(name: &str) -> Result<(), ResponseError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fine = (1..=249).contains(&name.len()) && name.chars().all(legal) && name != "." && name != "..";
    if fine { Ok(()) } else { Err(ResponseError::InvalidTopicException) }
}
