//! What of the assigned partitions is done, and may be committed. Pure.
//!
//! What a partition's own account knows is the ledger's; this asks the accounts of all, each in the life a record was handed out
//! in.

use super::{Partition, Partitions, Phase, Position};
use crate::{
    consumer::{
        ledger::{Committed, Life, Mark},
        offsets::{Offset, Offsets, Since},
    },
    record::TopicPartition,
};

impl Partitions {
    /// The life of a partition ends while its assignment goes on: whoever holds records of that life must let them go.
    pub(super) fn note_over(&mut self, key: &TopicPartition) {
        let account = self.partitions.get(key).map(|partition| &partition.account);
        if let Some(account) = account.filter(|account| self.by_each && account.has_undone()) {
            self.over.insert(key.clone(), account.life());
        }
    }

    /// The lives that have ended since this was last asked, with records that are not done.
    pub(crate) fn take_over(&mut self) -> Vec<(TopicPartition, Life)> {
        std::mem::take(&mut self.over).into_iter().collect()
    }

    pub(crate) fn has_over(&self) -> bool {
        !self.over.is_empty()
    }

    /// Begins another life at the first record that is not done, if there is one and that life is not over.
    pub(crate) fn rewind(&mut self, key: &TopicPartition, life: Life) {
        let partition = self.partitions.get(key).filter(|partition| partition.life() == life);
        if let Some(first) = partition.and_then(|partition| partition.account.first_not_done()) {
            self.restart(key, Phase::Fetching(Position::at(first)));
        }
    }

    /// Records of one life are done. How many of them count: none, if that life is over.
    pub(crate) fn done(&mut self, key: &TopicPartition, life: Life, offsets: &[i64]) -> usize {
        let Some(partition) = self.partitions.get_mut(key) else { return 0 };
        let position = partition.position().map(Position::mark);
        partition.account.done(life, offsets, position)
    }

    /// One record comes back unhandled.
    pub(crate) fn hand_back(&mut self, key: &TopicPartition, life: Life, offset: i64) -> bool {
        self.partitions.get_mut(key).is_some_and(|partition| partition.account.hand_back(life, offset))
    }

    /// The user commits these offsets: an automatic commit must not fall behind them. What was handed out but not polled
    /// past stays uncovered for a rebalance.
    pub(crate) fn cover_explicit(&mut self, offsets: &Offsets) {
        for (key, offset) in offsets {
            let Some(partition) = self.partitions.get_mut(key) else { continue };
            let mark = Mark { offset: offset.offset, leader_epoch: offset.leader_epoch };
            partition.account.cover_explicit(mark, partition.position().map(|position| position.next));
        }
    }

    /// The group has this offset committed.
    pub(crate) fn set_committed(&mut self, key: &TopicPartition, committed: Committed) {
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.account.set_committed(committed);
        }
    }

    /// Whether the user may be at work on records of these partitions.
    pub(crate) fn is_outstanding(&self, partitions: &[TopicPartition]) -> bool {
        let mut assigned = partitions.iter().filter_map(|key| self.partitions.get(key));
        assigned.any(|partition| partition.account.is_outstanding())
    }

    /// Records that are acknowledged one by one, and are not yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.partitions.values().map(|partition| partition.account.outstanding()).sum()
    }

    /// A poll begins: everything handed out before it is done with.
    pub(crate) fn cover(&mut self) {
        for key in self.uncovered.drain(..) {
            let Some(partition) = self.partitions.get_mut(&key) else { continue };
            let position = partition.position().map(Position::mark);
            partition.account.cover(position);
        }
    }

    /// What an automatic commit commits: what is covered, unless the group has it already, or will have it by a commit on
    /// its way (`planned`); also what the group has already if that is `idle`, because it would expire.
    pub(crate) fn covered(
        &self,
        planned: impl Fn(&TopicPartition) -> Option<i64>,
        idle: impl Fn(&Committed) -> bool,
    ) -> Offsets {
        self.offsets(
            |partition| partition.account.frontier(),
            |key, committed, offset| match planned(key) {
                Some(planned) => planned != offset,
                None => committed.is_none_or(|committed| committed.offset != offset || idle(committed)),
            },
        )
    }

    /// What an explicit commit commits: everything handed out so far, or where each record is acknowledged by itself what is
    /// covered. Also what is on its way, because whoever asks wants to hear that it has arrived.
    pub(crate) fn positions(&self, planned: impl Fn(&TopicPartition) -> Option<i64>) -> Offsets {
        self.offsets(
            |partition| match self.by_each {
                true => partition.account.frontier(),
                false => partition.position().map(Position::mark),
            },
            |key, committed, offset| {
                planned(key).is_some() || committed.is_none_or(|committed| committed.offset != offset)
            },
        )
    }

    fn offsets(
        &self,
        of: impl Fn(&Partition) -> Option<Mark>,
        is_new: impl Fn(&TopicPartition, Option<&Committed>, i64) -> bool,
    ) -> Offsets {
        let pairs = self.partitions.iter().filter_map(|(key, partition)| {
            let Mark { offset, leader_epoch } = of(partition)?;
            let committed = partition.account.committed();
            let new = is_new(key, committed, offset);
            let (tenure, topic_id) = (Some(partition.account.tenure()), partition.topic_id);
            // An offset that is committed again keeps its text.
            let same = committed.filter(|committed| committed.offset == offset);
            let metadata = || same.map(|committed| committed.metadata.clone()).unwrap_or_default();
            new.then(|| {
                (
                    key.clone(),
                    Offset {
                        offset,
                        leader_epoch,
                        metadata: metadata(),
                        topic_id,
                        tenure,
                        since: Since::Now,
                    },
                )
            })
        });
        pairs.collect()
    }
}
