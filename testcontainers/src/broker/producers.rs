//! What one partition remembers of its idempotent producers: the sequence rules of KIP-98 and KIP-360.
//!
//! Pure: decides whether a batch is new, a duplicate or refused. It never touches the log.

use std::collections::{BTreeMap, VecDeque};

use kafka_protocol::ResponseError;

/// Kafka remembers this many batches per producer and partition, as many as a producer may have in flight.
pub(super) const REMEMBERED_BATCHES: usize = 5;

/// The identity that a batch carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer_id: i64,
    pub(super) epoch: i16,
    pub(super) first_sequence: i32,
    pub(super) last_sequence: i32,
}

/// What becomes of a stamped batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Append it.
    New,
    /// It is in the log already, from this base offset up to the next. Its greatest time is told as if it were the log's,
    /// whatever times the topic keeps, as in Apache Kafka.
    Duplicate { base_offset: i64, next_offset: i64, append_time_ms: i64 },
}

#[derive(Debug, Clone, Copy)]
struct Appended {
    stamp: Stamp,
    base_offset: i64,
    max_timestamp: i64,
}

impl Appended {
    fn next_offset(&self) -> i64 {
        let (first, last) = (i64::from(self.stamp.first_sequence), i64::from(self.stamp.last_sequence));
        let wrapped = if last < first { i64::from(i32::MAX) + 1 } else { 0 };
        self.base_offset + last + wrapped - first + 1
    }
}

/// What is known of one producer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) epoch: i16,
    /// Of the last marker; -1 before there is one.
    pub(super) coordinator_epoch: i32,
    /// The time that the last batch or marker has.
    pub(super) last_ms: i64,
    batches: VecDeque<Appended>,
}

impl Entry {
    fn new(epoch: i16) -> Self {
        Self { epoch, coordinator_epoch: -1, last_ms: 0, batches: VecDeque::new() }
    }

    /// -1 where the epoch has no batch yet.
    pub(super) fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(-1, |b| b.stamp.last_sequence)
    }

    fn begin_epoch(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
    }
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Producers {
    entries: BTreeMap<i64, Entry>,
}

impl Producers {
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// An older epoch than the one known is fenced.
    pub(super) fn check_epoch(&self, producer_id: i64, epoch: i16) -> Result<(), ResponseError> {
        match self.entries.get(&producer_id) {
            Some(entry) if epoch < entry.epoch => Err(ResponseError::InvalidProducerEpoch),
            _ => Ok(()),
        }
    }

    /// Whether the producer's last batch here was of this epoch.
    pub(super) fn is_of_epoch(&self, producer_id: i64, epoch: i16) -> bool {
        self.entries.get(&producer_id).is_some_and(|entry| entry.epoch == epoch)
    }

    /// Applies the rules of Apache Kafka's `ProducerAppendInfo`.
    pub(super) fn check(&self, stamp: Stamp) -> Result<Verdict, ResponseError> {
        let Some(entry) = self.entries.get(&stamp.producer_id) else {
            // KIP-360: an unknown producer may go on with any sequence (its state may have been dropped).
            return Ok(Verdict::New);
        };
        self.check_epoch(stamp.producer_id, stamp.epoch)?;
        let same = |a: &&Appended| {
            a.stamp.first_sequence == stamp.first_sequence && a.stamp.last_sequence == stamp.last_sequence
        };
        if stamp.epoch == entry.epoch
            && let Some(known) = entry.batches.iter().find(same)
        {
            return Ok(Verdict::Duplicate {
                base_offset: known.base_offset,
                next_offset: known.next_offset(),
                append_time_ms: known.max_timestamp,
            });
        }
        // A new epoch starts at 0, be it the batch's or one that a marker began.
        let expected = match entry.batches.back() {
            Some(last) if stamp.epoch == entry.epoch => sequence_after(last.stamp.last_sequence, 1),
            _ => 0,
        };
        match stamp.first_sequence == expected {
            true => Ok(Verdict::New),
            false => Err(ResponseError::OutOfOrderSequenceNumber),
        }
    }

    /// Remembers a batch that was appended.
    pub(super) fn appended(&mut self, stamp: Stamp, base_offset: i64, max_timestamp: i64) {
        let entry = self.entries.entry(stamp.producer_id).or_insert_with(|| Entry::new(stamp.epoch));
        entry.begin_epoch(stamp.epoch);
        entry.last_ms = max_timestamp;
        if entry.batches.len() == REMEMBERED_BATCHES {
            entry.batches.pop_front();
        }
        entry.batches.push_back(Appended { stamp, base_offset, max_timestamp });
    }

    /// Remembers a marker: its epoch counts from here on (KIP-890: one more than that of its transaction).
    pub(super) fn ended(&mut self, producer_id: i64, epoch: i16, coordinator_epoch: i32, timestamp: i64) {
        let entry = self.entries.entry(producer_id).or_insert_with(|| Entry::new(epoch));
        entry.begin_epoch(epoch);
        entry.coordinator_epoch = coordinator_epoch;
        entry.last_ms = timestamp;
    }

    /// Takes over the producers of `others` that are not known here and whose last batch is before `start`.
    pub(super) fn keep_of(&mut self, others: Self, start: i64) {
        for (id, entry) in others.entries {
            if entry.batches.back().is_none_or(|b| b.base_offset < start) {
                self.entries.entry(id).or_insert(entry);
            }
        }
    }

    /// Forgets all but the last batches of each producer.
    pub(super) fn keep_last(&mut self, batches: usize) {
        for entry in self.entries.values_mut() {
            let surplus = entry.batches.len().saturating_sub(batches);
            entry.batches.drain(..surplus);
        }
    }

    /// Forgets the producers whose last records are from before `before_ms`, but those with an open transaction.
    pub(super) fn expire(&mut self, before_ms: i64, has_transaction: impl Fn(i64) -> bool) {
        self.entries.retain(|id, entry| entry.last_ms > before_ms || has_transaction(*id));
    }

    /// Forgets every producer.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Sequences run from 0 to `i32::MAX` and then start again at 0.
pub(super) fn sequence_after(sequence: i32, count: i32) -> i32 {
    let next = (i64::from(sequence) + i64::from(count)) % (i64::from(i32::MAX) + 1);
    i32::try_from(next).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: i16, first: i32, last: i32) -> Stamp {
        Stamp { producer_id: 7, epoch, first_sequence: first, last_sequence: last }
    }

    fn with(batches: &[(i16, i32, i32)]) -> Producers {
        let mut producers = Producers::default();
        for (i, &(epoch, first, last)) in batches.iter().enumerate() {
            assert_eq!(producers.check(stamp(epoch, first, last)), Ok(Verdict::New));
            producers.appended(stamp(epoch, first, last), 100 + i as i64, 1);
        }
        producers
    }

    #[test]
    fn a_repeated_batch_is_a_duplicate_at_its_first_offset() {
        let producers = with(&[(0, 0, 4), (0, 5, 5)]);
        let duplicate = Verdict::Duplicate { base_offset: 100, next_offset: 105, append_time_ms: 1 };
        assert_eq!(producers.check(stamp(0, 0, 4)), Ok(duplicate));
    }

    #[test]
    fn a_gap_is_out_of_order() {
        let producers = with(&[(0, 0, 4)]);
        assert_eq!(producers.check(stamp(0, 6, 6)), Err(ResponseError::OutOfOrderSequenceNumber));
    }

    #[test]
    fn the_sixth_batch_back_is_forgotten() {
        let producers = with(&[(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 4), (0, 5, 5)]);
        assert_eq!(producers.check(stamp(0, 0, 0)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert!(matches!(producers.check(stamp(0, 1, 1)), Ok(Verdict::Duplicate { base_offset: 101, .. })));
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_starts_at_zero() {
        let producers = with(&[(3, 0, 0)]);
        assert_eq!(producers.check(stamp(2, 1, 1)), Err(ResponseError::InvalidProducerEpoch));
        assert_eq!(producers.check(stamp(4, 1, 1)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(producers.check(stamp(4, 0, 0)), Ok(Verdict::New));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let producers = with(&[(0, i32::MAX - 1, i32::MAX)]);
        assert_eq!(producers.check(stamp(0, 0, 0)), Ok(Verdict::New));
        assert_eq!(sequence_after(i32::MAX, 2), 1);
    }

    #[test]
    fn a_clean_restart_leaves_the_last_batch_only() {
        let mut producers = with(&[(0, 0, 0), (0, 1, 1), (0, 2, 2)]);
        producers.keep_last(1);
        assert!(matches!(producers.check(stamp(0, 2, 2)), Ok(Verdict::Duplicate { .. })));
        assert_eq!(producers.check(stamp(0, 1, 1)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(producers.check(stamp(0, 3, 3)), Ok(Verdict::New));
    }

    #[test]
    fn the_epoch_of_a_marker_fences_and_starts_at_zero() {
        let mut producers = with(&[(0, 0, 4)]);
        producers.ended(7, 1, 0, 0);
        assert_eq!(producers.check(stamp(0, 5, 5)), Err(ResponseError::InvalidProducerEpoch));
        assert_eq!(producers.check(stamp(1, 5, 5)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(producers.check(stamp(1, 0, 0)), Ok(Verdict::New));
    }

    #[test]
    fn a_marker_of_the_same_epoch_lets_the_sequences_go_on() {
        let mut producers = with(&[(0, 0, 4)]);
        producers.ended(7, 0, 0, 0);
        assert_eq!(producers.check(stamp(0, 5, 5)), Ok(Verdict::New));
    }

    #[test]
    fn an_expired_producer_may_go_on_with_any_sequence() {
        let mut producers = with(&[(0, 0, 4)]);
        producers.expire(1, |_| true);
        assert_eq!(producers.check(stamp(0, 9, 9)), Err(ResponseError::OutOfOrderSequenceNumber));
        producers.expire(1, |_| false);
        assert_eq!(producers.check(stamp(0, 9, 9)), Ok(Verdict::New));
    }
}
