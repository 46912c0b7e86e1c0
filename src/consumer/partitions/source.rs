//! Which log a partition is read from, and whether its position is in that log. Pure.
//!
//! A log is a topic's of one id (`identity.rs`), as its leader has it; the leader may say that a replica is nearer
//! (KIP-392). Every change of the leader may have cut off what was fetched (KIP-320): until the new leader has said that
//! it has the same log, the partition is *unchecked*, and not fetched. What is buffered is handed out meanwhile, since it
//! was replicated when it was read. Nothing here skips records: if a log was cut, reading goes on where it was cut, or at
//! an earlier record that is not done.

use super::{Mark, Partition, Partitions, Phase, Position, list, mark};
use crate::{
    consumer::ledger::Life,
    error::{Error, code::OFFSET_OUT_OF_RANGE},
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

/// A replica that is nearer than the leader (KIP-392), until that is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) id: i32,
    pub(crate) until: Instant,
}

/// Whether the leader's log has what was fetched: a question to it (OffsetForLeaderEpoch).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) partition: TopicPartition,
    pub(crate) life: Life,
    /// The leader epoch under which the leader that is asked leads.
    pub(crate) leader_epoch: i32,
    /// The leader epoch of the last batch fetched.
    pub(crate) epoch: i32,
    /// The offset after the last batch fetched.
    pub(crate) offset: i64,
}

/// The largest epoch of the leader's log that is not above the one asked about, and the offset after its last record; both
/// below 0 where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) epoch: i32,
    pub(crate) offset: i64,
}

/// What a check has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The leader has all that was fetched.
    Same,
    /// Only what waits to be handed out is not in the leader's log any more: it was dropped, and comes again as it is now.
    Refetched,
    /// What was handed out is not in the leader's log any more.
    Truncated(Truncation),
}

/// A log that was cut before the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// The position, and the epoch of the record before it.
    pub(crate) position: i64,
    pub(crate) epoch: i32,
    /// The first offset from which on the logs differ, and the epoch before it, where the leader knows.
    pub(crate) divergent: Option<(i64, i32)>,
}

impl Truncation {
    /// As an error of poll. The position is its offset.
    pub(crate) fn error(&self) -> Error {
        let Self { position, epoch, divergent } = self;
        let text = match divergent {
            Some((offset, _)) => format!(
                "the log was truncated: it differs from offset {offset} on from what was read up to position {position} \
                 (leader epoch {epoch})"
            ),
            None => format!(
                "the log was truncated before position {position} (leader epoch {epoch}); its leader does not know where"
            ),
        };
        let error = Error::from_code("OffsetForLeaderEpoch", OFFSET_OUT_OF_RANGE)
            .with_message(&text)
            .with_offset(*position);
        match divergent {
            Some((offset, _)) => error.with_divergent_offset(*offset),
            None => error,
        }
    }
}

impl Partition {
    /// Whether what was fetched may not be in the log of the leader: it was written under another epoch.
    fn is_doubtful(&self) -> bool {
        match (self.position(), self.leader) {
            (Some(position), Some((_, epoch))) => {
                position.fetch_epoch >= 0 && epoch >= 0 && position.fetch_epoch != epoch
            }
            _ => false,
        }
    }

    /// Whether the leader that is known is an earlier one than that of what was fetched. What such a leader's log has, or
    /// has not, says nothing of the log that there is now.
    pub(crate) fn is_ahead(&self) -> bool {
        match (self.position(), self.leader) {
            (Some(position), Some((_, epoch))) => epoch >= 0 && position.fetch_epoch > epoch,
            _ => false,
        }
    }

    /// The broker that it is fetched from, and the leader epoch.
    pub(crate) fn source(&self, now: Instant) -> Option<(i32, i32)> {
        let (leader, epoch) = self.leader?;
        let replica = self.replica.filter(|replica| replica.until > now);
        Some((replica.map_or(leader, |replica| replica.id), epoch))
    }

    /// Nothing of its position is in doubt any more, and no answer about that is waited for.
    fn settle(&mut self) {
        self.ahead = 0;
        // An error of that question says nothing of what can be fetched now.
        self.trouble = None;
        if self.position().is_some() {
            self.asked = false;
        }
    }

    /// The leader, and what to ask it about the position.
    pub(crate) fn check(&self, key: &TopicPartition) -> Option<(i32, Check)> {
        let (leader, leader_epoch) = self.leader?;
        let position = self.position()?;
        let (epoch, offset) = (position.fetch_epoch, position.fetch);
        let check = Check { partition: key.clone(), life: self.life(), leader_epoch, epoch, offset };
        Some((leader, check))
    }
}

impl Partitions {
    /// Takes over who leads which partition. A new leader is worth asking at once. True if all have one.
    pub(crate) fn set_leaders(
        &mut self,
        now: Instant,
        leader: impl Fn(&TopicPartition) -> Option<(i32, i32)>,
    ) -> bool {
        let mut all = true;
        for (key, partition) in &mut self.partitions {
            if partition.unconfirmed.is_some() && partition.leader.is_some() {
                // Metadata name the leader of the other topic of this name.
                continue;
            }
            let leader = leader(key);
            all &= leader.is_some();
            partition.gone_told &= leader.is_none();
            if leader != partition.leader {
                partition.leader = leader;
                partition.replica = None;
                partition.end_before = None;
                partition.trouble = None;
                partition.retry_at = partition.retry_at.map(|at| at.min(now));
                mark(&mut partition.is_touched, key, &mut self.touched);
                // The broker that was asked does not lead any more; the coordinator, in contrast, is still to answer.
                partition.asked &= matches!(partition.phase, Phase::AwaitingCommitted);
                partition.is_unchecked = partition.is_doubtful();
                list(&mut self.unchecked, key, partition.is_unchecked);
            }
        }
        all
    }

    /// Replicas that are to be read from no longer: their time is over, or they are not among the brokers.
    pub(crate) fn check_replicas(&mut self, now: Instant, is_broker: impl Fn(i32) -> bool) {
        for (key, partition) in &mut self.partitions {
            if partition.replica.is_some_and(|replica| replica.until <= now || !is_broker(replica.id)) {
                partition.replica = None;
                mark(&mut partition.is_touched, key, &mut self.touched);
            }
        }
    }

    /// A broker cannot be reached, or has refused: what was read from it as a replica is read from the leader. Until
    /// `until` the leader is not asked for a nearer replica, since it would name the same one again, at once and for
    /// ever.
    pub(crate) fn forget_replica(&mut self, id: i32, until: Instant) {
        for (key, partition) in &mut self.partitions {
            if partition.replica.is_some_and(|replica| replica.id == id) {
                partition.replica = None;
                mark(&mut partition.is_touched, key, &mut self.touched);
                if let Some((leader, _)) = partition.leader {
                    self.kept_to.insert(leader, until);
                }
            }
        }
    }

    /// What this broker leads is read from it until `until`, even if a replica is nearer.
    pub(crate) fn keep_to_leader(&mut self, leader: i32, until: Instant) {
        let kept = self.kept_to.entry(leader).or_insert(until);
        *kept = until.max(*kept);
    }

    /// Whether this broker may name nearer replicas of what it leads.
    pub(crate) fn names_rack(&mut self, now: Instant, leader: i32) -> bool {
        self.kept_to.retain(|_, until| *until > now);
        !self.kept_to.contains_key(&leader)
    }

    /// Looks at whether its position must be checked, after it has changed.
    pub(super) fn doubt(&mut self, key: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(key) else { return };
        partition.is_unchecked = partition.is_doubtful();
        if !partition.is_unchecked {
            partition.settle();
        }
        list(&mut self.unchecked, key, partition.is_unchecked);
    }

    /// Partitions whose position must be checked before they are fetched.
    pub(crate) fn unchecked(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.unchecked.iter().filter_map(|key| self.partitions.get_key_value(key))
    }

    pub(crate) fn each_unchecked(&mut self, mut each: impl FnMut(&TopicPartition, &mut Partition)) {
        for key in &self.unchecked {
            if let Some(partition) = self.partitions.get_mut(key) {
                each(key, partition);
            }
        }
    }

    /// Whether the answer to a check still says something. It is asked again where it does not.
    pub(crate) fn awaits(&mut self, check: &Check) -> bool {
        let Some(partition) = self.partitions.get_mut(&check.partition) else { return false };
        let leads = partition.leader.is_some_and(|(_, epoch)| epoch == check.leader_epoch);
        if partition.life() != check.life || !partition.is_unchecked || !partition.asked || !leads {
            return false;
        }
        partition.asked = false;
        // A fetch that was on its way when the leader changed may have moved the position meanwhile.
        partition.position().is_some_and(|at| (at.fetch, at.fetch_epoch) == (check.offset, check.epoch))
    }

    /// The broker cannot tell, as brokers before KIP-320 could not. A position outside the log will be noticed by the
    /// next fetch.
    pub(crate) fn set_checked(&mut self, key: &TopicPartition) {
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.is_unchecked = false;
            partition.settle();
        }
        self.unchecked.remove(key);
        self.touch(key);
    }

    /// The epochs of what was read are of no use, because the leader's epoch stays below them. Reading goes on by offset
    /// alone, as it does without epochs.
    pub(crate) fn forget_epochs(&mut self, key: &TopicPartition) {
        if let Some(partition) = self.partitions.get_mut(key) {
            if let Some(position) = partition.position_mut() {
                (position.leader_epoch, position.fetch_epoch) = (-1, -1);
            }
            partition.account.forget_epoch();
        }
        self.set_checked(key);
    }

    /// A leader has said where the epoch of the last batch fetched, or the one before it, ends in its log.
    pub(crate) fn handle_epoch_end(&mut self, key: &TopicPartition, end: EpochEnd) -> Checked {
        let Some(partition) = self.partitions.get_mut(key) else { return Checked::Same };
        let Some(Position { next, fetch, leader_epoch, fetch_epoch }) = partition.position() else {
            return Checked::Same;
        };
        let EpochEnd { epoch, offset } = end;
        let is_known = epoch >= 0 && offset >= 0;
        if is_known && offset >= fetch {
            // As in Java the offset decides. An epoch may be gone because compaction has removed its last record, or
            // because a replica was built anew.
            match epoch == fetch_epoch {
                true => self.set_checked(key),
                false => self.forget_epochs(key),
            }
            return Checked::Same;
        }
        // What was handed out is before that end.
        if is_known && offset >= next {
            if !self.drop_buffered(key) {
                return Checked::Refetched; // a poll is decoding it: asked again when that is done
            }
            self.doubt(key);
            self.touch(key);
            return Checked::Refetched;
        }
        let divergent = is_known.then_some((offset, epoch));
        Checked::Truncated(Truncation { position: next, epoch: leader_epoch.max(fetch_epoch), divergent })
    }

    /// The position is outside the log, and stays until all that was handed out is done.
    pub(crate) fn set_outside(&mut self, now: Instant, key: &TopicPartition, offset: i64, look_at: Instant) {
        let Some(partition) = self.get_mut(key) else { return };
        let since = partition.outside.as_ref().map_or(now, |outside| outside.1);
        partition.outside = Some(Box::new((offset, since)));
        partition.retry_at = Some(look_at);
        self.outside.insert(key.clone());
    }

    /// Partitions whose position is outside the log, and where it is.
    pub(crate) fn outside(&self) -> impl Iterator<Item = (&TopicPartition, i64, &Partition)> {
        let pairs = self.outside.iter().filter_map(|key| self.partitions.get_key_value(key));
        pairs.filter_map(|(key, partition)| Some((key, partition.outside.as_ref()?.0, partition)))
    }

    /// Drops what waits to be handed out; it is fetched again. False while a poll decodes it.
    pub(crate) fn drop_buffered(&mut self, key: &TopicPartition) -> bool {
        let Some(partition) = self.partitions.get_mut(key) else { return false };
        if partition.queue.is_checked_out() {
            return false;
        }
        if let Some(bytes) = partition.drop_fetched() {
            self.buffered = self.buffered.saturating_sub(bytes);
        }
        true
    }

    /// The log is another one from this offset on. Reading goes on there, or at the first record before it that is not done.
    pub(crate) fn cut(&mut self, key: &TopicPartition, offset: i64, epoch: i32) {
        self.note_over(key);
        let Some(partition) = self.partitions.get_mut(key) else { return };
        self.buffered = self.buffered.saturating_sub(partition.drop_buffer());
        let undone = partition.account.first_not_done().filter(|first| *first < offset);
        let position = undone.map_or_else(|| Position::after(offset, epoch), Position::at);
        let life = self.lives.begin();
        partition.account.cut(life, Mark { offset: position.next, leader_epoch: position.leader_epoch });
        self.uncovered.retain(|uncovered| uncovered != key);
        if partition.account.is_uncovered() {
            self.uncovered.push(key.clone());
        }
        self.set_phase(key, Phase::Fetching(position));
    }
}

/// Answers to checks, or the broker's code.
pub(crate) type EpochEnds = Map<TopicPartition, Result<EpochEnd, i16>>;
