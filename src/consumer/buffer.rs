//! What was fetched of one partition and not yet handed out: batches in order, raw until a poll wants them.
//!
//! Batches wait as they came, so that the budget counts bytes of the network, and are decoded on the caller's side of a
//! poll, outside every lock. Nothing here copies a record. KIP-98: control batches and, for read_committed, batches of
//! aborted transactions are stepped over; their offsets still count.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use crate::{
    batch::{ControlType, DecodedBatch, Decompressor, RawBatch},
    error::{Error, Result},
    sorted::{self, Set},
};

/// Bytes that one poll decodes. Further batches wait until these are handed out, so that small batches that decompress to
/// much do not add up.
pub(super) const DECODED_AT_ONCE: usize = 16 << 20;

/// Records of one batch: what a poll hands out without copying.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) batch: Arc<DecodedBatch>,
    pub(crate) range: Range<usize>,
}

#[derive(Debug)]
enum Entry {
    Raw(RawBatch),
    /// `from` is the first record not handed out.
    Decoded {
        batch: Arc<DecodedBatch>,
        from: usize,
        bytes: usize,
    },
    /// A batch that is not for the user.
    Skipped {
        last_offset: i64,
        leader_epoch: i32,
        bytes: usize,
    },
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Raw(batch) => batch.bytes.len(),
            Self::Decoded { bytes, .. } | Self::Skipped { bytes, .. } => *bytes,
        }
    }
}

/// Batches taken out to be decoded.
#[derive(Debug)]
pub(crate) struct Decoding {
    raw: Vec<RawBatch>,
    /// Why the first of them cannot be decoded, if that was found before.
    verdict: Option<Error>,
}

/// What became of them.
#[derive(Debug)]
pub(crate) struct Decoded {
    done: Vec<(Arc<DecodedBatch>, usize)>,
    /// The batch that could not be decoded and those behind it.
    rest: Vec<RawBatch>,
    verdict: Option<Error>,
}

impl Decoding {
    /// The slow part of a poll: checks, decompresses and finds the records. Stops at the first batch that is damaged, and
    /// when the decoded ones take much memory: the rest stay as they came.
    pub(crate) fn run(
        self,
        check_crcs: bool,
        decompressor: &Decompressor,
        max_decompressed: usize,
    ) -> (Decoded, Result<()>) {
        if let Some(error) = self.verdict {
            let decoded = Decoded { done: Vec::new(), rest: self.raw, verdict: Some(error.clone()) };
            return (decoded, Err(error));
        }
        let mut decoded =
            Decoded { done: Vec::with_capacity(self.raw.len()), rest: Vec::new(), verdict: None };
        let (mut raw, mut memory) = (self.raw.into_iter(), 0_usize);
        while memory < DECODED_AT_ONCE
            && let Some(batch) = raw.next()
        {
            match batch.decode(check_crcs, decompressor, max_decompressed) {
                Ok(done) => {
                    memory = memory.saturating_add(done.memory());
                    decoded.done.push((Arc::new(done), batch.bytes.len()));
                }
                Err(error) => {
                    decoded.rest.push(batch);
                    decoded.rest.extend(raw);
                    decoded.verdict = Some(error.clone());
                    return (decoded, Err(error));
                }
            }
        }
        decoded.rest.extend(raw);
        (decoded, Ok(()))
    }
}

/// What [`Buffer::take`] found.
#[derive(Debug)]
pub(crate) enum Taken {
    Chunk(Chunk),
    /// The next batch must be decoded first.
    NeedsDecoding,
    Nothing,
}

/// The batches of one partition.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    entries: VecDeque<Entry>,
    bytes: usize,
    checked_out: bool,
    /// Why the first raw batch cannot be decoded: each poll says so again, and none unpacks it again.
    verdict: Option<Error>,
}

impl Buffer {
    /// Bytes of the network that wait here, those being decoded included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.checked_out
    }

    /// The first batch, if it was not decoded, or could not be.
    pub(crate) fn front_raw(&self) -> Option<&RawBatch> {
        match self.entries.front() {
            Some(Entry::Raw(batch)) => Some(batch),
            _ => None,
        }
    }

    /// Whether the first batch was decoded, and something of it is left.
    pub(crate) fn is_decoded(&self) -> bool {
        matches!(self.entries.front(), Some(Entry::Decoded { .. }))
    }

    /// A poll is decoding the front of the queue.
    pub(crate) fn is_checked_out(&self) -> bool {
        self.checked_out
    }

    pub(crate) fn push(&mut self, batch: RawBatch, skip: bool) {
        let bytes = batch.bytes.len();
        self.bytes += bytes;
        self.entries.push_back(if skip {
            Entry::Skipped { last_offset: batch.last_offset, leader_epoch: batch.leader_epoch, bytes }
        } else {
            Entry::Raw(batch)
        });
    }

    /// Up to `max` records of the first batch. `next` is the position and moves with what is handed out; so does
    /// `leader_epoch`.
    pub(crate) fn take(&mut self, max: usize, next: &mut i64, leader_epoch: &mut i32) -> Taken {
        while let Some(front) = self.entries.front_mut() {
            match front {
                Entry::Raw(_) => return Taken::NeedsDecoding,
                Entry::Skipped { last_offset, leader_epoch: epoch, .. } => {
                    *next = (*next).max(last_offset.saturating_add(1));
                    *leader_epoch = *epoch;
                    self.pop();
                }
                Entry::Decoded { batch, from, bytes } => {
                    let until = batch.slots.len().min(from.saturating_add(max));
                    *leader_epoch = batch.leader_epoch.unwrap_or(-1);
                    let chunk = Chunk { batch: Arc::clone(batch), range: *from..until };
                    if until == batch.slots.len() {
                        // Compaction may have removed the last records: go on after the batch, not after its last record.
                        *next = (*next).max(batch.last_offset.saturating_add(1));
                        self.pop();
                    } else {
                        *next = batch.offset(&batch.slots[until - 1]).saturating_add(1);
                        // What is handed out does not count as waiting any more, because when to fetch again depends on
                        // how much waits.
                        let waiting = (batch.slots.len() - *from).max(1) as u64;
                        let share = (*bytes as u64 * chunk.range.len() as u64 / waiting) as usize;
                        *bytes -= share;
                        self.bytes = self.bytes.saturating_sub(share);
                        *from = until;
                    }
                    if !chunk.range.is_empty() {
                        return Taken::Chunk(chunk);
                    }
                }
            }
        }
        Taken::Nothing
    }

    /// Takes raw batches from the front until they promise `wanted` records. Their bytes still count.
    pub(crate) fn check_out(&mut self, wanted: usize) -> Decoding {
        let mut decoding = Decoding { raw: Vec::new(), verdict: self.verdict.take() };
        let mut promised = 0;
        while promised < wanted && matches!(self.entries.front(), Some(Entry::Raw(_))) {
            let Some(Entry::Raw(batch)) = self.entries.pop_front() else { break };
            // At least one, so that a batch that promises nothing does not drag the whole queue along.
            promised += usize::try_from(batch.count).unwrap_or(0).max(1);
            decoding.raw.push(batch);
        }
        self.checked_out = true;
        decoding
    }

    /// Puts decoded batches back in front. Records below `next` were not asked for.
    pub(crate) fn check_in(&mut self, decoded: Decoded, next: i64) {
        self.checked_out = false;
        self.verdict = decoded.verdict;
        for batch in decoded.rest.into_iter().rev() {
            self.entries.push_front(Entry::Raw(batch));
        }
        for (batch, bytes) in decoded.done.into_iter().rev() {
            let from = batch.slots.partition_point(|slot| batch.offset(slot) < next);
            self.entries.push_front(Entry::Decoded { batch, from, bytes });
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(entry.bytes());
        }
    }
}

/// The aborted transactions that a read_committed fetch answer tells of (KIP-98).
#[derive(Debug, Default)]
pub(crate) struct Aborted {
    /// `(first offset, producer id)`, by offset.
    ahead: VecDeque<(i64, i64)>,
    open: Set<i64>,
}

impl Aborted {
    /// Not every broker sends them in order.
    pub(crate) fn new(transactions: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut ahead: Vec<_> = transactions.into_iter().collect();
        sorted::sort_by(&mut ahead, Ord::cmp);
        Self { ahead: ahead.into(), open: Set::new() }
    }

    /// Whether a batch is not for the user. To be asked for every batch of the answer, in order.
    pub(crate) fn skips(&mut self, batch: &RawBatch, decompressor: &Decompressor) -> bool {
        while let Some((_, producer)) = self.ahead.front().filter(|(first, _)| *first <= batch.last_offset) {
            self.open.insert(*producer);
            self.ahead.pop_front();
        }
        if batch.is_control {
            // A marker has a few dozen bytes. One that cannot be read ends no transaction, and is not handed out either.
            let marker = batch.decode(false, decompressor, 1024).ok().and_then(|batch| batch.control_type());
            if marker == Some(ControlType::Abort) {
                self.open.remove(&batch.producer_id);
            }
            return true;
        }
        batch.is_transactional && self.open.contains(&batch.producer_id)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::{
        batch::{BatchBuilder, Compressor, Stamp, split},
        config::Compression,
    };

    fn batch(value: &[u8], codec: Compression) -> Bytes {
        let mut builder = BatchBuilder::new(BytesMut::new());
        builder.append(1, None, Some(value), &[]);
        builder.finish(Stamp::NONE, &Compressor::new(codec, None).unwrap()).unwrap().bytes
    }

    fn queue(batches: &[Bytes]) -> Buffer {
        let mut queue = Buffer::default();
        for (batch, offset) in batches.iter().zip(0_i64..) {
            let mut batch = BytesMut::from(&batch[..]);
            batch[..8].copy_from_slice(&offset.to_be_bytes());
            queue.push(split(batch.freeze()).next().unwrap().unwrap(), false);
        }
        queue
    }

    #[test]
    fn a_changed_byte_is_an_error_where_the_crc_is_asked_for() {
        let mut bytes = BytesMut::from(&batch(b"value", Compression::None)[..]);
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        let bytes = bytes.freeze();
        let run = |check| {
            queue(std::slice::from_ref(&bytes)).check_out(1).run(check, &Decompressor::new(), 1 << 20).1
        };
        let error = run(true).unwrap_err();
        assert!(error.to_string().contains("its CRC is"), "{error}");
        assert!(run(false).is_ok());
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_unpacked_once_and_says_so_each_time() {
        let good = batch(b"value", Compression::None);
        let mut damaged = BytesMut::from(&good[..]);
        damaged[17] ^= 1;
        let mut queue = queue(&[good.clone(), damaged.freeze(), good]);
        let (mut next, mut epoch) = (0, 0);
        // It would be read if it were looked at without its CRC.
        let errors = [true, false].map(|check| {
            let (decoded, result) = queue.check_out(3).run(check, &Decompressor::new(), 1 << 20);
            queue.check_in(decoded, next);
            while let Taken::Chunk(chunk) = queue.take(3, &mut next, &mut epoch) {
                assert_eq!(chunk.batch.base_offset, 0, "what stands before it is handed out");
            }
            result.unwrap_err().to_string()
        });
        assert_eq!((errors[0] == errors[1], next), (true, 1));
        assert!(queue.front_raw().is_some());
    }

    #[test]
    fn what_was_handed_out_of_a_batch_does_not_count_as_waiting() {
        let mut builder = BatchBuilder::new(BytesMut::new());
        (0..10).for_each(|_| builder.append(1, None, Some(&[7; 100]), &[]));
        let bytes =
            builder.finish(Stamp::NONE, &Compressor::new(Compression::None, None).unwrap()).unwrap().bytes;
        let mut queue = queue(&[bytes.clone(), bytes]);
        let whole = queue.bytes();
        let (decoded, result) = queue.check_out(20).run(true, &Decompressor::new(), 1 << 20);
        result.unwrap();
        queue.check_in(decoded, 0);
        let (mut next, mut epoch) = (0, 0);
        for (max, least) in [(5, whole * 3 / 4), (4, whole * 11 / 20), (1, whole / 2), (10, 0)] {
            assert!(matches!(queue.take(max, &mut next, &mut epoch), Taken::Chunk(_)));
            assert!((least..=least + 10).contains(&queue.bytes()), "{} {least}", queue.bytes());
        }
        assert_eq!((queue.bytes(), queue.is_empty()), (0, true));
    }

    #[test]
    fn small_batches_that_decompress_to_much_are_decoded_a_few_at_a_time() {
        let mut queue = queue(&vec![batch(&vec![0; 6 << 20], Compression::Zstd); 8]);
        let (mut handed_out, mut next, mut epoch) = (0, 0, 0);
        loop {
            match queue.take(500, &mut next, &mut epoch) {
                Taken::Chunk(_) => handed_out += 1,
                Taken::NeedsDecoding => {
                    let (decoded, result) = queue.check_out(500).run(true, &Decompressor::new(), 32 << 20);
                    result.unwrap();
                    assert!((1..=3).contains(&decoded.done.len()), "{}", decoded.done.len());
                    queue.check_in(decoded, next);
                }
                Taken::Nothing => break,
            }
        }
        assert_eq!(handed_out, 8);
    }
}
