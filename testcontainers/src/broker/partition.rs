//! One partition: its log, its leader, and which replicas have how much of it.
//!
//! There is one log for all replicas. A replica follows at once unless it lags; one that lags has the log up to its own
//! end, and if it becomes the leader the log is cut off there. So what an unclean move loses is what Kafka loses.

use std::collections::{BTreeMap, BTreeSet};

use super::log::PartitionLog;

pub(super) struct Partition {
    pub(super) log: PartitionLog,
    pub(super) leader: i32,
    /// The first one is preferred as the leader.
    pub(super) replicas: Vec<i32>,
    pub(super) isr: BTreeSet<i32>,
    /// Where replicas that do not follow any more stopped.
    lagging: BTreeMap<i32, i64>,
}

impl Partition {
    pub(super) fn new(replicas: Vec<i32>) -> Self {
        Self {
            log: PartitionLog::new(),
            leader: replicas.first().copied().unwrap_or(-1),
            isr: replicas.iter().copied().collect(),
            replicas,
            lagging: BTreeMap::new(),
        }
    }

    /// A follower stops to fetch. It stays in sync in name, and so holds back the high watermark, until it is
    /// [`Self::shrink`]ed away.
    pub(super) fn lag(&mut self, broker: i32) {
        if broker != self.leader && self.replicas.contains(&broker) {
            let end = self.log.end();
            self.lagging.entry(broker).or_insert(end);
            self.update();
        }
    }

    /// Takes a follower out of the in-sync replicas.
    pub(super) fn shrink(&mut self, broker: i32) {
        if broker != self.leader {
            self.lag(broker);
            self.isr.remove(&broker);
            self.update();
        }
    }

    /// A replica has everything again and is in sync.
    pub(super) fn catch_up(&mut self, broker: i32) {
        if self.replicas.contains(&broker) {
            self.lagging.remove(&broker);
            self.isr.insert(broker);
            self.update();
        }
    }

    /// Every replica loses what is from `offset` on, and the leader begins a new epoch.
    pub(super) fn truncate(&mut self, offset: i64) {
        self.log.truncate(offset);
        let cut = self.log.end();
        self.lagging.values_mut().for_each(|end| *end = (*end).min(cut));
        self.log.begin_epoch();
        self.update();
    }

    /// Where the log ends at one of its replicas.
    pub(super) fn end_at(&self, broker: i32) -> Option<i64> {
        let is_replica = broker == self.leader || self.replicas.contains(&broker);
        is_replica.then(|| self.lagging.get(&broker).copied().unwrap_or_else(|| self.log.end()))
    }

    /// Would this broker lead without losing what was acknowledged?
    pub(super) fn is_in_sync(&self, broker: i32) -> bool {
        self.isr.contains(&broker)
    }

    /// Makes `broker` the leader under a new epoch: what it does not have is gone. One that was no replica becomes one.
    pub(super) fn move_to(&mut self, broker: i32) {
        if !self.replicas.contains(&broker) {
            self.replicas.push(broker);
            self.isr.insert(broker);
        }
        if let Some(end) = self.lagging.remove(&broker) {
            self.log.truncate(end);
            let cut = self.log.end();
            // The others cut off what the new leader does not have as soon as they follow it.
            self.lagging.values_mut().for_each(|end| *end = (*end).min(cut));
        }
        if !self.isr.contains(&broker) {
            self.isr = BTreeSet::from([broker]);
        }
        self.leader = broker;
        self.log.begin_epoch();
        self.update();
    }

    /// A broker went down. Another in-sync replica that runs takes over, or with `unclean` any replica that runs; with none
    /// the partition waits for the broker.
    pub(super) fn broker_stopped(&mut self, broker: i32, runs: impl Fn(i32) -> bool, unclean: bool) {
        if self.leader == broker {
            let others = || self.replicas.iter().copied().filter(|r| *r != broker && runs(*r));
            // The next one in the list, so that brokers that stop in turn hand on in turn.
            let turn = |r: &i32| (*r < broker, *r);
            let heir = others().filter(|r| self.is_in_sync(*r)).min_by_key(turn);
            let heir = heir.or_else(|| others().filter(|_| unclean).min_by_key(turn));
            let Some(heir) = heir else { return };
            self.move_to(heir);
        }
        self.shrink(broker);
    }

    /// A broker is back: it follows again, or leads what it led when it went down, under a new epoch.
    pub(super) fn broker_started(&mut self, broker: i32, clean: bool) {
        if self.leader == broker {
            self.log.restart(clean);
            self.log.begin_epoch();
        }
        self.catch_up(broker);
    }

    fn update(&mut self) {
        let behind = self.lagging.iter().filter(|(id, _)| self.isr.contains(id) && **id != self.leader);
        let end = behind.map(|(_, end)| *end).min();
        self.log.set_replicated(end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Incoming, tests::batch};
    use super::*;

    fn append(partition: &mut Partition, value: &str) {
        let batch = Incoming::parse(&batch(&[value], None)).unwrap();
        partition.log.append(batch, None).unwrap();
    }

    #[test]
    fn an_unclean_leader_cuts_off_what_it_never_had() {
        let mut partition = Partition::new(vec![1, 2]);
        append(&mut partition, "a");
        partition.shrink(2);
        append(&mut partition, "acknowledged by 1 alone");
        assert_eq!(partition.log.high_watermark(), 2);
        partition.broker_stopped(1, |id| id == 2, false);
        assert_eq!(partition.leader, 1, "nobody in sync is left");
        partition.broker_stopped(1, |id| id == 2, true);
        assert_eq!((partition.leader, partition.log.end(), partition.log.leader_epoch()), (2, 1, 1));
        assert_eq!(partition.isr, BTreeSet::from([2]));
    }

    #[test]
    fn a_clean_leader_keeps_what_was_acknowledged_and_drops_the_rest() {
        let mut partition = Partition::new(vec![1, 2]);
        append(&mut partition, "a");
        partition.lag(2);
        append(&mut partition, "never replicated");
        assert_eq!(partition.log.high_watermark(), 1);
        partition.broker_stopped(1, |id| id == 2, false);
        assert_eq!((partition.leader, partition.log.end(), partition.log.high_watermark()), (2, 1, 1));
        partition.broker_started(1, true);
        assert_eq!(partition.isr.len(), 2);
        append(&mut partition, "b");
        assert_eq!(partition.log.high_watermark(), 2);
    }

    #[test]
    fn an_only_replica_leads_again_under_a_new_epoch() {
        let mut partition = Partition::new(vec![1]);
        append(&mut partition, "a");
        partition.broker_stopped(1, |_| true, true);
        assert_eq!(partition.leader, 1);
        partition.broker_started(1, true);
        assert_eq!((partition.log.end(), partition.log.leader_epoch()), (1, 1));
    }
}
