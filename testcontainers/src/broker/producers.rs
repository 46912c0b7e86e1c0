//! What one partition remembers of its idempotent producers: the sequence rules of KIP-98 and KIP-360.
//!
//! Pure: decides whether a batch is new, a duplicate or refused. It never touches the log.

use std::collections::{BTreeMap, VecDeque};

use kafka_protocol::ResponseError;

/// Kafka remembers this many batches per producer and partition, as many as a producer may have in flight.
const REMEMBERED_BATCHES: usize = 5;

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
    /// It is in the log already, at this base offset with this append time.
    Duplicate { base_offset: i64, append_time_ms: i64 },
}

#[derive(Debug, Clone, Copy)]
struct Appended {
    stamp: Stamp,
    base_offset: i64,
    append_time_ms: i64,
}

#[derive(Debug)]
struct Entry {
    epoch: i16,
    batches: VecDeque<Appended>,
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Producers {
    entries: BTreeMap<i64, Entry>,
}

impl Producers {
    /// Applies the rules of Apache Kafka's `ProducerAppendInfo`.
    pub(super) fn check(&self, stamp: Stamp) -> Result<Verdict, ResponseError> {
        let Some(entry) = self.entries.get(&stamp.producer_id) else {
            // KIP-360: an unknown producer may go on with any sequence (its state may have been dropped).
            return Ok(Verdict::New);
        };
        if stamp.epoch < entry.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if stamp.epoch > entry.epoch {
            return match stamp.first_sequence {
                0 => Ok(Verdict::New),
                _ => Err(ResponseError::OutOfOrderSequenceNumber),
            };
        }
        let same = |a: &&Appended| {
            a.stamp.first_sequence == stamp.first_sequence && a.stamp.last_sequence == stamp.last_sequence
        };
        if let Some(known) = entry.batches.iter().find(same) {
            return Ok(Verdict::Duplicate {
                base_offset: known.base_offset,
                append_time_ms: known.append_time_ms,
            });
        }
        match entry.batches.back() {
            Some(last) if stamp.first_sequence != sequence_after(last.stamp.last_sequence, 1) => {
                Err(ResponseError::OutOfOrderSequenceNumber)
            }
            _ => Ok(Verdict::New),
        }
    }

    /// Remembers a batch that was appended.
    pub(super) fn appended(&mut self, stamp: Stamp, base_offset: i64, append_time_ms: i64) {
        let entry = self
            .entries
            .entry(stamp.producer_id)
            .or_insert_with(|| Entry { epoch: stamp.epoch, batches: VecDeque::new() });
        if entry.epoch != stamp.epoch {
            entry.epoch = stamp.epoch;
            entry.batches.clear();
        }
        if entry.batches.len() == REMEMBERED_BATCHES {
            entry.batches.pop_front();
        }
        entry.batches.push_back(Appended { stamp, base_offset, append_time_ms });
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
        let duplicate = Verdict::Duplicate { base_offset: 100, append_time_ms: 1 };
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
}
