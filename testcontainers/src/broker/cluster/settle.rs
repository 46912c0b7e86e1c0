//! Ends transactions: writes their markers into the logs, and makes or drops the offsets that they commit.

use std::collections::BTreeSet;

use kafka_protocol::ResponseError;

use super::super::clock::Clock;
use super::super::commits::{Commit, Commits};
use super::super::log::Marker;
use super::super::transactions::{Ending, Identity};
use super::{Cluster, Committed};

impl Cluster {
    /// Time-outs of transactions, and the markers that are due.
    pub(in super::super) fn settle_transactions(&mut self, clock: &Clock, commits: &Commits) {
        let (now, now_ms) = (clock.now(), clock.wall_ms());
        self.transactions.handle_timeout(now);
        while let Some((id, ending)) = self.transactions.poll_ending(now) {
            let Some(txn) = self.transactions.get(&id) else { return };
            let (partitions, groups) = (txn.partitions.clone(), txn.groups.clone());
            for group in groups {
                self.end_group(&group, &ending, clock, commits);
            }
            let mut left = BTreeSet::new();
            for (topic, partition) in partitions {
                if !self.write_marker(&topic, partition, &ending, now_ms) {
                    left.insert((topic, partition));
                }
            }
            if left.is_empty() {
                self.transactions.complete(&id);
            } else {
                self.transactions.postpone(now, &id, left);
            }
        }
    }

    /// False: nobody leads the partition now.
    fn write_marker(&mut self, topic: &str, partition: i32, ending: &Ending, now_ms: i64) -> bool {
        // A topic that is gone has nothing to end.
        let Ok(found) = self.partition(topic, partition) else { return true };
        if !self.runs(found.leader) {
            return false;
        }
        let (producer_id, epoch) = ending.marker;
        let marker = Marker { producer_id, epoch, commit: ending.commit, coordinator_epoch: 0 };
        if let Ok(found) = self.partition_mut(topic, partition)
            && let Err(error) = found.log.append_marker(marker, now_ms)
        {
            tracing::debug!(topic, partition, producer_id, epoch, %error, "marker refused");
        }
        true
    }

    fn end_group(&mut self, group: &str, ending: &Ending, clock: &Clock, commits: &Commits) {
        let Some(entry) = self.groups.get_mut(group) else { return };
        let (producer_id, epoch) = ending.marker;
        entry.producer_epochs.insert(producer_id, epoch);
        let pending = entry.pending.remove(&producer_id).unwrap_or_default();
        if !ending.commit {
            return;
        }
        for ((topic, partition), committed) in &pending {
            commits.add(|| Commit {
                at: clock.instant_now(),
                group: group.to_owned(),
                topic: topic.clone(),
                partition: *partition,
                offset: committed.offset,
                member: String::new(),
                generation: -1,
            });
        }
        entry.offsets.extend(pending);
    }

    /// Offsets that count once the producer's transaction is committed. An older epoch than the one known is fenced.
    pub(in super::super) fn stage_offsets(
        &mut self,
        group: &str,
        identity: Identity,
        offsets: Vec<((String, i32), Committed)>,
    ) -> Result<(), ResponseError> {
        let entry = self.group_mut(group);
        let known = entry.producer_epochs.entry(identity.0).or_insert(identity.1);
        if identity.1 < *known {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        *known = identity.1;
        entry.pending.entry(identity.0).or_default().extend(offsets);
        Ok(())
    }
}
