//! What an engine follows: the group, the user's pauses, and the lanes that are full.

use super::{Engine, Running};
use crate::{
    consumer::acknowledge::{Change, Life},
    facade::{
        consumer::{lane::Ledger, load::Chunk, pauses::PauseChanges},
        dispatch::lanes::Pause,
    },
    record::{self, TopicPartition},
    sorted::Map,
};

impl Engine {
    /// Resumes a partition unless there is another reason to keep it paused: the user, full lanes, or a damaged batch.
    pub(super) fn resume(&self, partition: TopicPartition) {
        let is_held = self.by_user.contains(&partition)
            || self.lanes.is_paused(&partition)
            || self.damaged.contains_key(&partition);
        if !is_held && let Err(error) = self.client.resume([partition]) {
            tracing::debug!(%error, "the partition is gone");
        }
    }

    /// Pauses and resumes what the user has paused and resumed. Only [`Self::resume`] resumes anything, since it knows
    /// all the reasons not to.
    pub(super) fn follow_user(&mut self) {
        let Some(PauseChanges { paused, freed }) = self.shared.follow_pauses() else { return };
        self.by_user = paused;
        for partition in &self.by_user {
            if let Err(error) = self.client.pause([partition.clone()]) {
                tracing::debug!(%error, "the partition is gone");
            }
        }
        for partition in freed {
            self.resume(partition);
        }
    }

    pub(super) fn follow_pauses(&mut self) {
        while let Some(pause) = self.lanes.poll_pause() {
            let outcome = match pause {
                Pause::Pause(partition) => self.client.hold_back(partition),
                Pause::Resume(partition) => {
                    self.resume(partition);
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "the partition is gone");
            }
        }
    }

    /// What has happened to the assignment.
    pub(in crate::facade::consumer) fn follow_group(&mut self) {
        for change in self.client.take_changes() {
            match &change {
                // The member has logged what comes and what is lost.
                Change::Assigned(_) => self.shared.counters.rebalanced(),
                Change::Revoking(partitions) => {
                    tracing::info!(partitions = %list(partitions), "partitions are being revoked");
                    self.revoke(partitions, false);
                }
                Change::Revoked(partitions) => {
                    tracing::info!(partitions = %list(partitions), "partitions revoked");
                    self.revoke(partitions, true);
                }
                Change::Lost(partitions) => self.revoke(partitions, true),
                Change::Over(partitions) => {
                    for (partition, life) in partitions {
                        // Done here, because the partition may be paused: then no record of its next life would come and
                        // show it.
                        drop(self.lanes.revoke(partition, *life));
                    }
                }
            }
            self.shared.tell(&change);
        }
        self.follow_pauses();
    }

    /// Begins nothing more in these partitions, and ends what runs there if they are gone.
    fn revoke(&mut self, partitions: &[(TopicPartition, Life)], are_gone: bool) {
        for (partition, life) in partitions {
            if self.damaged.get(partition).is_some_and(|damaged| damaged.life <= *life) {
                self.damaged.remove(partition);
            }
            for (life, waiting) in self.lanes.revoke(partition, *life) {
                self.hand_back(partition, life, waiting);
            }
        }
        // Runs of a later life go on: the partition may be ours again by the time that this is heard of.
        let gone: Map<&TopicPartition, Life> = partitions.iter().map(|(key, life)| (key, *life)).collect();
        let is_gone =
            |running: &Running| gone.get(&running.partition).is_some_and(|life| running.life <= *life);
        for running in self.running.values().filter(|running| is_gone(running)) {
            // Handlers are told to give up. Until the partitions are gone they may still finish.
            running.token.cancel();
            if are_gone {
                running.abort.abort();
            }
        }
    }

    pub(super) fn hand_back(
        &self,
        partition: &TopicPartition,
        life: Life,
        loads: impl IntoIterator<Item = Chunk>,
    ) {
        let mut offsets = Vec::new();
        for load in loads {
            load.offsets(&mut |offset| offsets.push(offset));
        }
        Ledger::hand_back(&*self.client, partition, life, &offsets);
    }
}

fn list(partitions: &[(TopicPartition, Life)]) -> String {
    record::list(partitions.iter().map(|(partition, _)| partition))
}
