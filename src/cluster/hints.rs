//! Who leads a partition now, as an answer of a broker that does not lead it has told (KIP-951): taken into the snapshot at
//! once, without asking for metadata. Only what is newer by its leader epoch counts.

use std::sync::Arc;

use super::{
    Cluster, Metadata,
    metadata::{Broker, TopicId, address, are_two_lives},
};
use crate::record::TopicPartition;

/// A partition's leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaderHint {
    pub(crate) partition: TopicPartition,
    /// The id that the asking client knows the topic by; all zeros if it knows none.
    pub(crate) topic_id: TopicId,
    pub(crate) leader: i32,
    pub(crate) epoch: i32,
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) id: i32,
    pub(crate) host: String,
    pub(crate) port: i32,
    pub(crate) rack: Option<String>,
}

impl Metadata {
    /// The snapshot with these leaders; `None` if nothing of that is news.
    fn with_leaders(&self, hints: &[LeaderHint], endpoints: &[Endpoint]) -> Option<Self> {
        let mut new: Option<Self> = None;
        for LeaderHint { partition, topic_id, leader, epoch } in hints {
            let Some((_, known)) = self.leader(&partition.topic, partition.partition) else { continue };
            // Epochs compare only within one life of a topic: the higher epoch of an earlier life would stay the newest
            // for ever.
            if are_two_lives(self.topic_id(&partition.topic), *topic_id) {
                continue;
            }
            let endpoint = endpoints.iter().find(|endpoint| endpoint.id == *leader);
            let broker = endpoint.and_then(|told| {
                let address = address(told.id, &told.host, told.port)?;
                Some(Broker { address, rack: told.rack.clone() })
            });
            if known >= *epoch || (broker.is_none() && !self.brokers.contains_key(leader)) {
                continue;
            }
            let new = new.get_or_insert_with(|| self.clone());
            if let Some(broker) = broker {
                new.brokers.insert(*leader, broker);
            }
            let index = usize::try_from(partition.partition).unwrap_or(usize::MAX);
            let topic = new.topics.get_mut(&partition.topic);
            if let Some(led) = topic.and_then(|topic| topic.partitions.get_mut(index)) {
                (led.leader, led.leader_epoch) = (Some(*leader), *epoch);
            }
        }
        new
    }

    /// With those leaders of another snapshot that are newer.
    pub(super) fn with_newer_leaders(&self, other: &Self) -> Self {
        let mut new = self.clone();
        for (name, topic) in &mut new.topics {
            let Some(known) = other.topics.get(name).filter(|known| known.id == topic.id) else { continue };
            for (led, known) in topic.partitions.iter_mut().zip(&known.partitions) {
                if known.leader_epoch > led.leader_epoch {
                    (led.leader, led.leader_epoch) = (known.leader, known.leader_epoch);
                }
            }
        }
        for (id, broker) in &other.brokers {
            new.brokers.entry(*id).or_insert_with(|| broker.clone());
        }
        new
    }
}

impl Cluster {
    /// Takes over the leaders that an answer has named. Whether to refresh the metadata is the caller's decision.
    pub(crate) fn learn_leaders(&self, hints: &[LeaderHint], endpoints: &[Endpoint]) {
        let Some(new) = self.metadata().with_leaders(hints, endpoints) else { return };
        for hint in hints {
            if let Some(broker) = new.brokers.get(&hint.leader) {
                self.shared.brokers.learn_one(hint.leader, broker.address.clone());
            }
        }
        tracing::debug!(?hints, "brokers have told who leads now");
        self.shared.snapshot.send_if_modified(|current| {
            let new = current.with_leaders(hints, endpoints);
            let is_news = new.is_some();
            if let Some(new) = new {
                *current = Arc::new(new);
            }
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::metadata::{Partition, Topic},
        config::settings::Address,
    };

    fn metadata() -> Metadata {
        let led = Partition {
            leader: Some(1),
            leader_epoch: 5,
            replicas: vec![1, 2],
            in_sync_replicas: vec![1, 2],
        };
        let mut metadata = Metadata::default();
        let topic = Topic { partitions: vec![led], ..Topic::default() };
        metadata.topics.insert("orders".into(), topic);
        let address = Address { host: "one".into(), port: 9092 };
        metadata.brokers.insert(1, Broker { address, rack: None });
        metadata
    }

    fn hint(partition: i32, leader: i32, epoch: i32) -> LeaderHint {
        let topic_id = TopicId::default();
        LeaderHint { partition: TopicPartition::new("orders", partition), topic_id, leader, epoch }
    }

    #[test]
    fn only_a_newer_leader_that_can_be_reached_is_taken_over() {
        let metadata = metadata();
        let two = Endpoint { id: 2, host: "two".into(), port: 9092, rack: Some("b".into()) };
        assert!(metadata.with_leaders(&[hint(0, 2, 6)], &[]).is_none(), "nobody knows where it is");
        for stale in [hint(0, 2, 5), hint(0, 2, 4), hint(1, 2, 6), hint(-1, 2, 6)] {
            assert!(metadata.with_leaders(&[stale], std::slice::from_ref(&two)).is_none());
        }
        let nowhere = Endpoint { host: String::new(), ..two.clone() };
        assert!(metadata.with_leaders(&[hint(0, 2, 6)], &[nowhere]).is_none());
        let new = metadata.with_leaders(&[hint(0, 2, 6)], &[two]).unwrap();
        assert_eq!(new.leader("orders", 0), Some((2, 6)));
        let of = |topic_id| LeaderHint { topic_id: [topic_id; 16], ..hint(0, 1, 57) };
        let mut remade = new.clone();
        remade.topics.get_mut("orders").unwrap().id = [2; 16];
        assert!(remade.with_leaders(&[of(1)], &[]).is_none(), "of the topic that had the name before");
        assert_eq!(remade.with_leaders(&[of(2)], &[]).unwrap().leader("orders", 0), Some((1, 57)));
        assert_eq!(new.brokers[&2].rack.as_deref(), Some("b"));
        assert_eq!(metadata.with_newer_leaders(&new).leader("orders", 0), Some((2, 6)));
        assert_eq!(new.with_newer_leaders(&metadata).leader("orders", 0), Some((2, 6)));
        assert_eq!(new.with_leaders(&[hint(0, 1, 7)], &[]).unwrap().leader("orders", 0), Some((1, 7)));
    }
}
