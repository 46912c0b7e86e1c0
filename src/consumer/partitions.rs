//! What is assigned, and where each partition stands: looking for its first offset, fetching, paused. Pure.
//!
//! Two positions per partition, always `next <= fetch`: `fetch` is asked of the broker next, `next` is handed out next. What
//! of that is done, and may be committed, is the ledger's ([`Account`]). A partition's life changes with every assignment
//! and seek, so that answers and decoded batches of its earlier life are dropped.
//!
//! Nothing that happens with every fetch or poll goes over all partitions: those that look for an offset, those that have
//! failed, and those that the fetcher must look at again are listed apart.

mod done;
mod identity;
mod partition;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

pub(crate) use self::identity::{MetadataId, Standing};
pub(crate) use self::partition::{Partition, PausedBy, Phase, Position, ResetTo};
pub(crate) use self::source::{Check, Checked, EpochEnd, EpochEnds, Replica, Truncation};

use super::{
    buffer::{Buffer, Chunk, Decoded, Decoding, Taken},
    fetch::low_mark,
    ledger::{Account, Life, Lives, Mark},
};
use crate::{cluster::TopicId, error::Error, record::TopicPartition, sorted::Map, time::Instant};

/// What [`Partitions::next_chunk`] found.
#[derive(Debug)]
pub(crate) enum Next {
    Chunk(TopicPartition, Life, Chunk),
    Decode(Job),
    Nothing,
}

/// Batches of one partition to decode outside the lock.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) partition: TopicPartition,
    life: Life,
    pub(crate) decoding: Decoding,
}

/// Names what a finished [`Job`] belongs to.
#[derive(Debug)]
pub(crate) struct JobKey {
    pub(crate) partition: TopicPartition,
    life: Life,
}

impl Job {
    pub(crate) fn split(self) -> (JobKey, Decoding) {
        (JobKey { partition: self.partition, life: self.life }, self.decoding)
    }
}

/// All assigned partitions.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    partitions: BTreeMap<TopicPartition, Partition>,
    /// Partitions that may have records to hand out, whose turn is next first.
    ready: VecDeque<TopicPartition>,
    /// How often records of a partition have come.
    turns: u64,
    /// Partitions that handed out records since the last poll began.
    uncovered: Vec<TopicPartition>,
    /// Partitions for which the reset policy has decided on a place since [`Self::take_decided`].
    decided: BTreeSet<TopicPartition>,
    /// Partitions whose first offset is being looked for.
    unsettled: BTreeSet<TopicPartition>,
    failed: BTreeSet<TopicPartition>,
    /// Partitions whose position may not be in the log of their leader.
    unchecked: BTreeSet<TopicPartition>,
    /// Partitions whose position is outside the log, and is not reset before all that was handed out is done.
    outside: BTreeSet<TopicPartition>,
    paused: BTreeSet<TopicPartition>,
    /// Partitions of which the fetcher may want something else than before. Some may not be assigned any more.
    touched: Vec<TopicPartition>,
    /// Bytes buffered in all queues.
    buffered: usize,
    wants_fetch: bool,
    /// A fetch waits for memory: whatever is handed out may make room.
    is_short: bool,
    lives: Lives,
    /// The topics that were ever assigned, by their last ids, and since when another one has that name.
    known: Map<Arc<str>, (TopicId, Life)>,
    /// Leaders that have named a replica which failed, and the time until which their partitions are read from them
    /// instead.
    kept_to: Map<i32, Instant>,
    /// Records are acknowledged one by one, and not by the next poll.
    by_each: bool,
    /// Some partition has an unconfirmed id.
    has_unconfirmed: bool,
    /// Where records are acknowledged one by one: for each partition the last life that ended, under an assignment that
    /// goes on, with something not done.
    over: BTreeMap<TopicPartition, Life>,
}

impl Partitions {
    /// A fetch had to wait for memory.
    pub(super) fn note_short(&mut self) {
        self.is_short = true;
    }

    /// Whether a partition has become fetchable since this was last asked.
    pub(crate) fn take_wants_fetch(&mut self) -> bool {
        std::mem::take(&mut self.wants_fetch)
    }

    /// From now on records are acknowledged one by one.
    pub(crate) fn acknowledge_each(&mut self) {
        self.by_each = true;
    }

    pub(crate) fn is_by_each(&self) -> bool {
        self.by_each
    }

    pub(crate) fn get(&self, partition: &TopicPartition) -> Option<&Partition> {
        self.partitions.get(partition)
    }

    /// Whether the partition is ours, by the assignment of that tenure.
    pub(crate) fn is_of(&self, partition: &TopicPartition, tenure: Life) -> bool {
        self.partitions.get(partition).is_some_and(|partition| partition.account.tenure() == tenure)
    }

    /// The partition, if the assignment goes on under which this life began. Lives are given out in order, so comparing
    /// them is enough.
    pub(crate) fn assigned_since(&self, partition: &TopicPartition, life: Life) -> Option<&Partition> {
        self.get(partition).filter(|partition| partition.account.tenure() <= life)
    }

    pub(crate) fn get_mut(&mut self, partition: &TopicPartition) -> Option<&mut Partition> {
        self.touch(partition);
        self.partitions.get_mut(partition)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.partitions.iter()
    }

    /// Partitions that wait for an offset to start from.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.unsettled.iter().filter_map(|key| self.partitions.get_key_value(key))
    }

    pub(crate) fn each_unsettled(&mut self, mut each: impl FnMut(&TopicPartition, &mut Partition)) {
        for key in &self.unsettled {
            if let Some(partition) = self.partitions.get_mut(key) {
                each(key, partition);
            }
        }
    }

    pub(crate) fn paused(&self) -> impl Iterator<Item = &TopicPartition> {
        self.paused.iter()
    }

    /// One of the partitions that changed in what may be fetched of them, each once.
    pub(crate) fn pop_touched(&mut self) -> Option<TopicPartition> {
        let key = self.touched.pop()?;
        if let Some(partition) = self.partitions.get_mut(&key) {
            partition.is_touched = false;
        }
        Some(key)
    }

    fn touch(&mut self, key: &TopicPartition) {
        if let Some(partition) = self.partitions.get_mut(key) {
            mark(&mut partition.is_touched, key, &mut self.touched);
        }
    }

    fn set_phase(&mut self, key: &TopicPartition, phase: Phase) {
        let Some(partition) = self.partitions.get_mut(key) else { return };
        let phase = match phase {
            Phase::Failed(error) => {
                Phase::Failed(error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition))
            }
            phase => phase,
        };
        list(
            &mut self.unsettled,
            key,
            matches!(phase, Phase::AwaitingCommitted | Phase::AwaitingReset(_) | Phase::Replaced(_)),
        );
        list(&mut self.failed, key, matches!(phase, Phase::Failed(_)));
        partition.phase = phase;
        partition.end_before = None;
        partition.outside = None;
        self.outside.remove(key);
        partition.asked = false;
        partition.retry_at = None;
        partition.trouble = None;
        self.doubt(key);
        self.touch(key);
    }

    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Replaces the assignment. A partition that stays keeps its position and its buffer, as in Java's `assign`.
    pub(crate) fn assign(&mut self, partitions: impl IntoIterator<Item = TopicPartition>, start: &Phase) {
        let mut before = std::mem::take(&mut self.partitions);
        for key in partitions {
            if let Some(kept) = before.remove(&key) {
                self.partitions.insert(key, kept);
            } else {
                self.open(key, start);
            }
        }
        // The fetcher learns what is gone.
        self.touched.extend(before.into_keys());
        self.forget_released();
    }

    /// Takes partitions on beside those there are.
    pub(crate) fn add(&mut self, partitions: impl IntoIterator<Item = TopicPartition>, start: &Phase) {
        for key in partitions {
            if !self.partitions.contains_key(&key) {
                self.open(key, start);
            }
        }
    }

    /// Lets go of partitions.
    pub(crate) fn release(&mut self, partitions: &[TopicPartition]) {
        for key in partitions {
            if self.partitions.remove(key).is_some() {
                self.touched.push(key.clone());
            }
        }
        self.forget_released();
    }

    fn open(&mut self, key: TopicPartition, start: &Phase) {
        let fresh = self.fresh();
        self.partitions.insert(key.clone(), fresh);
        self.set_phase(&key, start.clone());
    }

    fn forget_released(&mut self) {
        let partitions = &self.partitions;
        self.ready.retain(|key| partitions.contains_key(key));
        self.uncovered.retain(|key| partitions.contains_key(key));
        self.decided.retain(|key| partitions.contains_key(key));
        self.unsettled.retain(|key| partitions.contains_key(key));
        self.failed.retain(|key| partitions.contains_key(key));
        self.unchecked.retain(|key| partitions.contains_key(key));
        self.outside.retain(|key| partitions.contains_key(key));
        self.paused.retain(|key| partitions.contains_key(key));
        self.buffered = self.partitions.values().map(|partition| partition.queue.bytes()).sum();
    }

    /// Releases everything.
    pub(crate) fn clear(&mut self) {
        self.assign([], &Phase::AwaitingCommitted);
    }

    fn fresh(&mut self) -> Partition {
        Partition {
            account: Account::open(self.lives.begin()),
            paused: None,
            is_revoking: false,
            phase: Phase::AwaitingCommitted,
            queue: Buffer::default(),
            asked: false,
            retry_at: None,
            turn: 0,
            stuck_at: None,
            resets: 0,
            trouble: None,
            leader: None,
            topic_id: TopicId::default(),
            unconfirmed: None,
            is_served: false,
            is_served_by_id: false,
            is_refused: false,
            replica: None,
            is_unchecked: false,
            outside: None,
            ahead: 0,
            gone_told: false,
            end_before: None,
            end: None,
            committed_before: None,
            is_ready: false,
            is_touched: false,
        }
    }

    /// Starts a partition again from somewhere else: what is buffered or on its way of it is dropped. False if it is
    /// not assigned. What was covered stays covered unless the user seeks, who then means the new place.
    pub(crate) fn restart(&mut self, key: &TopicPartition, phase: Phase) -> bool {
        self.note_over(key);
        let Some(partition) = self.partitions.get_mut(key) else { return false };
        self.buffered = self.buffered.saturating_sub(partition.drop_buffer());
        partition.account.restart(self.lives.begin());
        self.uncovered.retain(|uncovered| uncovered != key);
        let position = match &phase {
            Phase::Fetching(position) => Some(position.mark()),
            _ => None,
        };
        if let Some(mark) = position {
            // The user seeks: as in Java, the next automatic commit commits the new place.
            partition.account.begin_at(mark);
        }
        self.set_phase(key, phase);
        // It stays in `ready` if it is there, which checks before it acts.
        true
    }

    /// A position found by a look-up. It is covered from the start, so that whoever comes after this member goes on from
    /// there even if nothing was handed out.
    pub(crate) fn set_position(&mut self, key: &TopicPartition, offset: i64, leader_epoch: i32) {
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.account.begin_at(Mark { offset, leader_epoch });
        }
        self.set_phase(key, Phase::Fetching(Position::after(offset, leader_epoch)));
    }

    /// As [`Self::set_position`], for a place that the reset policy has decided on and the group does not know.
    pub(crate) fn set_decided(&mut self, key: &TopicPartition, offset: i64) {
        // Without an epoch, as in Java: there may be no record before it.
        self.set_position(key, offset, -1);
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.account.decide(offset);
            self.decided.insert(key.clone());
        }
    }

    /// Records are handed out again from `first` on: a place decided on beyond it is not reported.
    pub(crate) fn forget_decided_beyond(&mut self, key: &TopicPartition, first: i64) {
        let account = self.partitions.get_mut(key).map(|partition| &mut partition.account);
        if account.is_none_or(|account| account.forget_decided_beyond(first)) {
            self.decided.remove(key);
        }
    }

    pub(crate) fn has_decided(&self) -> bool {
        !self.decided.is_empty()
    }

    /// Where the reset policy has had partitions begin, or go on, since this was last asked.
    pub(crate) fn take_decided(&mut self) -> Vec<(TopicPartition, Life, i64)> {
        let decided = std::mem::take(&mut self.decided).into_iter();
        let place = |key: TopicPartition| {
            let account = &mut self.partitions.get_mut(&key)?.account;
            let offset = account.take_decided()?;
            Some((key, account.life(), offset))
        };
        decided.filter_map(place).collect()
    }

    /// These partitions are being given up: nothing more is handed out of them.
    pub(crate) fn set_revoking(&mut self, partitions: &[TopicPartition]) {
        for key in partitions {
            if let Some(partition) = self.partitions.get_mut(key) {
                partition.is_revoking = true;
            }
        }
    }

    /// Pauses a partition, or resumes it. What the user has paused counts as that until it is resumed.
    pub(crate) fn set_paused(&mut self, key: &TopicPartition, paused: Option<PausedBy>) {
        let Some(partition) = self.partitions.get_mut(key) else { return };
        partition.paused = paused.and_then(|_| partition.paused.max(paused));
        list(&mut self.paused, key, paused.is_some());
        self.mark_ready(key);
        self.touch(key);
    }

    /// Whether records of any partition have come yet.
    pub(crate) fn has_taken_turns(&self) -> bool {
        self.turns > 0
    }

    /// Adds fetched batches to the queue.
    pub(crate) fn add_buffered(&mut self, key: &TopicPartition, bytes: usize) {
        self.buffered += bytes;
        self.turns += 1;
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.turn = self.turns;
        }
        self.mark_ready(key);
    }

    /// Drops what is buffered of paused partitions, to make room for those that are not; it is fetched again.
    pub(crate) fn evict_paused(&mut self) {
        let has_any =
            |key: &&TopicPartition| self.get(key).is_some_and(|partition| !partition.queue.is_empty());
        for key in self.paused.iter().filter(has_any).cloned().collect::<Vec<_>>() {
            if self.drop_buffered(&key) {
                self.doubt(&key);
            }
        }
    }

    fn mark_ready(&mut self, key: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(key) else { return };
        if !partition.is_ready
            && partition.paused.is_none()
            && !partition.is_revoking
            && !partition.queue.is_empty()
        {
            partition.is_ready = true;
            self.ready.push_back(key.clone());
        }
    }

    /// Whether some partition may have records to hand out.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Up to `max` records of the partition whose turn it is, which ends when what was decoded of it is used up. A partition that
    /// falls below `refill_below` bytes, or runs low, wants a fetch.
    pub(crate) fn next_chunk(&mut self, max: usize, refill_below: usize) -> Next {
        while let Some(key) = self.ready.pop_front() {
            let Some(partition) = self.partitions.get_mut(&key) else { continue };
            partition.is_ready = false;
            let Phase::Fetching(position) = &mut partition.phase else { continue };
            if partition.paused.is_some() || partition.is_revoking || partition.queue.is_checked_out() {
                // Resuming the partition, or the poll that decodes its batches, puts it back.
                continue;
            }
            let life = partition.account.life();
            let (bytes, next) = (partition.queue.bytes(), position.next);
            let taken = partition.queue.take(max, &mut position.next, &mut position.leader_epoch);
            self.buffered = self.buffered.saturating_sub(bytes - partition.queue.bytes());
            let left = partition.queue.bytes();
            let falls_below = |mark| bytes >= mark && left < mark;
            let is_free = partition.stuck_at.is_some() && partition.queue.is_empty();
            if falls_below(refill_below) || falls_below(low_mark(refill_below)) || is_free {
                self.wants_fetch = true;
                mark(&mut partition.is_touched, &key, &mut self.touched);
            }
            if left < bytes && std::mem::take(&mut self.is_short) {
                self.wants_fetch = true;
            }
            match taken {
                Taken::Chunk(chunk) => {
                    if self.by_each {
                        let slots = chunk.batch.slots.get(chunk.range.clone()).unwrap_or_default();
                        let offsets = slots.iter().map(|slot| chunk.batch.offset(slot));
                        partition.account.hand_out_each(offsets, position.leader_epoch);
                    } else if partition.account.hand_out() {
                        self.uncovered.push(key.clone());
                    }
                    // Otherwise each partition would hold a decoded batch, and these have no bound together. It ends wherever
                    // that is, or a partition that is far behind would keep others from being read.
                    let stays = partition.queue.is_decoded();
                    partition.is_ready = !partition.queue.is_empty();
                    match (partition.is_ready, stays) {
                        (true, true) => self.ready.push_front(key.clone()),
                        (true, false) => self.ready.push_back(key.clone()),
                        (false, _) => {}
                    }
                    return Next::Chunk(key, life, chunk);
                }
                Taken::NeedsDecoding => {
                    let decoding = partition.queue.check_out(max);
                    return Next::Decode(Job { partition: key, life, decoding });
                }
                Taken::Nothing => {
                    // Only markers were stepped over, which may be committed without waiting for anybody.
                    if position.next > next {
                        partition.account.step_over(position.mark());
                    }
                }
            }
        }
        Next::Nothing
    }

    /// Decoded batches come back; dropped if the partition has begun another life. `damaged` moves it to the back of
    /// the row, so that the others are served first.
    pub(crate) fn check_in(&mut self, job: JobKey, decoded: Decoded, damaged: bool) {
        let Some(partition) = self.partitions.get_mut(&job.partition) else { return };
        if partition.life() != job.life {
            return;
        }
        let Some(position) = partition.position() else { return };
        partition.queue.check_in(decoded, position.next);
        if !partition.is_ready && partition.paused.is_none() && !partition.is_revoking {
            partition.is_ready = true;
            if damaged {
                self.ready.push_back(job.partition);
            } else {
                self.ready.push_front(job.partition);
            }
        }
    }

    /// Why the first failed partition failed.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failed.iter().find_map(|key| match &self.partitions.get(key)?.phase {
            Phase::Failed(error) => Some(error.clone()),
            _ => None,
        })
    }

    /// The topics of the assignment.
    pub(crate) fn topics(&self) -> Vec<Arc<str>> {
        let mut topics: Vec<_> = self.partitions.keys().map(|key| Arc::clone(&key.topic)).collect();
        topics.dedup();
        topics
    }
}

/// Puts a partition on a list of those whose mark is set.
fn mark(is_marked: &mut bool, key: &TopicPartition, list: &mut Vec<TopicPartition>) {
    if !std::mem::replace(is_marked, true) {
        list.push(key.clone());
    }
}

/// Whether a partition stands in a list.
fn list(list: &mut BTreeSet<TopicPartition>, key: &TopicPartition, stands: bool) {
    if stands {
        list.insert(key.clone());
    } else {
        list.remove(key);
    }
}
