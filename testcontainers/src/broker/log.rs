//! One partition's log: stored record batches (format v2, KIP-98), their offsets, leader epochs and producers.
//!
//! A batch is kept as it came, a slice of the request's buffer: the base offset and the leader epoch stand before the
//! checksummed part, so they are kept apart and written in front of it when the batch is read. Never decompresses.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;

use super::producers::{Producers, Stamp, Verdict, sequence_after};

/// Base offset, batch length, leader epoch: the part in front of the magic byte.
const PREFIX: usize = 16;
/// A batch up to its first record.
const HEADER: usize = 61;
const ATTRIBUTES: std::ops::Range<usize> = 21..23;
const MAX_TIMESTAMP: std::ops::Range<usize> = 35..43;
const LOG_APPEND_TIME_BIT: i16 = 0x08;

/// A batch as a producer sent it, with its header read and checked.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    bytes: Bytes,
    records: i32,
    max_timestamp: i64,
    stamp: Option<Stamp>,
}

impl Incoming {
    /// Reads the records of one partition of a produce request: since format v2, exactly one batch.
    pub(super) fn parse(bytes: &Bytes) -> Result<Self, ResponseError> {
        if bytes.len() < HEADER {
            return Err(ResponseError::CorruptMessage);
        }
        if bytes[16] != 2 {
            return Err(ResponseError::InvalidRecord);
        }
        let length = usize::try_from(i32_at(bytes, 8)).map_err(|_| ResponseError::CorruptMessage)?;
        if length > bytes.len() - 12 {
            return Err(ResponseError::CorruptMessage);
        }
        if length < bytes.len() - 12 {
            return Err(ResponseError::InvalidRecord);
        }
        if crc32c::crc32c(&bytes[21..]) != i32_at(bytes, 17).cast_unsigned() {
            return Err(ResponseError::CorruptMessage);
        }
        let (last_delta, records) = (i32_at(bytes, 23), i32_at(bytes, 57));
        if records <= 0 || last_delta != records - 1 {
            return Err(ResponseError::InvalidRecord);
        }
        let producer_id = i64_at(bytes, 43);
        let first_sequence = i32_at(bytes, 53);
        let stamp = (producer_id >= 0).then(|| Stamp {
            producer_id,
            epoch: i16_at(bytes, 51),
            first_sequence,
            last_sequence: sequence_after(first_sequence, last_delta),
        });
        if stamp.is_some_and(|s| s.first_sequence < 0 || s.epoch < 0) {
            return Err(ResponseError::InvalidRecord);
        }
        Ok(Self { bytes: bytes.clone(), records, max_timestamp: i64_at(bytes, 35), stamp })
    }

    /// `message.timestamp.type=LogAppendTime`: the broker's time replaces the producer's, and so the checksum changes.
    fn stamp_append_time(&mut self, now_ms: i64) {
        let mut copy = BytesMut::from(&self.bytes[..]);
        let attributes = i16_at(&copy, 21) | LOG_APPEND_TIME_BIT;
        copy[ATTRIBUTES].copy_from_slice(&attributes.to_be_bytes());
        copy[MAX_TIMESTAMP].copy_from_slice(&now_ms.to_be_bytes());
        let crc = crc32c::crc32c(&copy[21..]);
        copy[17..21].copy_from_slice(&crc.to_be_bytes());
        self.max_timestamp = now_ms;
        self.bytes = copy.freeze();
    }
}

/// A stored batch.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) base_offset: i64,
    pub(super) last_offset: i64,
    pub(super) max_timestamp: i64,
    leader_epoch: i32,
    bytes: Bytes,
}

impl Batch {
    /// Writes the batch as readers see it.
    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_i64(self.base_offset);
        out.extend_from_slice(&self.bytes[8..12]);
        out.put_i32(self.leader_epoch);
        out.extend_from_slice(&self.bytes[PREFIX..]);
    }

    /// The batch as readers see it.
    pub(super) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes.len());
        self.write(&mut out);
        out.freeze()
    }
}

/// Where an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Append {
    pub(super) base_offset: i64,
    /// -1 where the topic keeps the producer's times.
    pub(super) append_time_ms: i64,
}

/// The log of one partition. Every append is committed at once: high watermark and end are the same.
#[derive(Debug)]
pub(super) struct PartitionLog {
    batches: Vec<Batch>,
    start: i64,
    end: i64,
    /// Each leader epoch that there was and the offset at which it began, ascending.
    epochs: Vec<(i32, i64)>,
    producers: Producers,
}

impl PartitionLog {
    pub(super) fn new() -> Self {
        Self { batches: Vec::new(), start: 0, end: 0, epochs: vec![(0, 0)], producers: Producers::default() }
    }

    pub(super) fn start(&self) -> i64 {
        self.start
    }

    pub(super) fn end(&self) -> i64 {
        self.end
    }

    pub(super) fn leader_epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |e| e.0)
    }

    /// A new leader begins a new epoch.
    pub(super) fn begin_epoch(&mut self) {
        let next = self.leader_epoch() + 1;
        self.epochs.push((next, self.end));
    }

    /// Appends a batch. `append_time` is the broker's time on topics that keep it.
    pub(super) fn append(
        &mut self,
        mut batch: Incoming,
        append_time: Option<i64>,
    ) -> Result<Append, ResponseError> {
        if let Some(stamp) = batch.stamp
            && let Verdict::Duplicate { base_offset, append_time_ms } = self.producers.check(stamp)?
        {
            return Ok(Append { base_offset, append_time_ms });
        }
        if let Some(now_ms) = append_time {
            batch.stamp_append_time(now_ms);
        }
        let done = Append { base_offset: self.end, append_time_ms: append_time.unwrap_or(-1) };
        if let Some(stamp) = batch.stamp {
            self.producers.appended(stamp, done.base_offset, done.append_time_ms);
        }
        self.end += i64::from(batch.records);
        self.batches.push(Batch {
            base_offset: done.base_offset,
            last_offset: self.end - 1,
            max_timestamp: batch.max_timestamp,
            leader_epoch: self.leader_epoch(),
            bytes: batch.bytes,
        });
        Ok(done)
    }

    /// The batches from the one that holds `offset` on.
    pub(super) fn batches_from(&self, offset: i64) -> &[Batch] {
        let first = self.batches.partition_point(|b| b.last_offset < offset);
        &self.batches[first..]
    }

    /// How many bytes are there to read from `offset`, counted no further than `enough`.
    pub(super) fn readable(&self, offset: i64, enough: usize) -> usize {
        let mut sum = 0;
        for batch in self.batches_from(offset) {
            sum += batch.bytes.len();
            if sum >= enough {
                break;
            }
        }
        sum
    }

    /// Whole batches from `offset` up to `max_bytes`; with `at_least_one` the first comes whatever its size (KIP-74).
    pub(super) fn read(&self, offset: i64, max_bytes: usize, at_least_one: bool) -> Bytes {
        let batches = self.batches_from(offset);
        let (mut size, mut count) = (0, 0);
        for batch in batches {
            if size + batch.bytes.len() > max_bytes && !(at_least_one && count == 0) {
                break;
            }
            size += batch.bytes.len();
            count += 1;
        }
        let mut out = BytesMut::with_capacity(size);
        batches[..count].iter().for_each(|b| b.write(&mut out));
        out.freeze()
    }

    /// Deletes the records before `offset` (KIP-107). Returns the new log start.
    pub(super) fn delete_before(&mut self, offset: i64) -> Result<i64, ResponseError> {
        let offset = if offset == -1 { self.end } else { offset };
        if offset < 0 || offset > self.end {
            return Err(ResponseError::OffsetOutOfRange);
        }
        self.start = self.start.max(offset);
        let gone = self.batches.partition_point(|b| b.last_offset < self.start);
        self.batches.drain(..gone);
        Ok(self.start)
    }

    /// The last epoch not above `epoch` and the offset at which the next one began (KIP-101, KIP-279).
    pub(super) fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        match self.epochs.partition_point(|e| e.0 <= epoch) {
            0 => (-1, -1),
            next => (self.epochs[next - 1].0, self.epochs.get(next).map_or(self.end, |e| e.1)),
        }
    }
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    (i64::from(i32_at(bytes, at)) << 32) | i64::from(i32_at(bytes, at + 4).cast_unsigned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kafka_protocol::records::{
        Compression, NO_PARTITION_LEADER_EPOCH, Record, RecordBatchEncoder, RecordEncodeOptions,
        TimestampType,
    };

    /// A batch of `values`, stamped when `producer` names an id, an epoch and a first sequence.
    pub(crate) fn batch(values: &[&str], producer: Option<(i64, i16, i32)>) -> Bytes {
        let (producer_id, producer_epoch, first) = producer.unwrap_or((-1, -1, -1));
        let records: Vec<Record> = values
            .iter()
            .enumerate()
            .map(|(i, value)| Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
                producer_id,
                producer_epoch,
                timestamp_type: TimestampType::Creation,
                offset: i as i64,
                // The codec puts records into one batch only while sequence and offset rise together.
                sequence: first + i as i32,
                timestamp: 1000 + i as i64,
                key: None,
                value: Some(Bytes::copy_from_slice(value.as_bytes())),
                headers: Default::default(),
            })
            .collect();
        let mut out = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
        out.freeze()
    }

    fn append(log: &mut PartitionLog, values: &[&str], producer: Option<(i64, i16, i32)>) -> i64 {
        log.append(Incoming::parse(&batch(values, producer)).unwrap(), None).unwrap().base_offset
    }

    #[test]
    fn offsets_are_given_in_order_and_the_checksum_stays_valid() {
        let mut log = PartitionLog::new();
        assert_eq!(append(&mut log, &["a", "b"], None), 0);
        log.begin_epoch();
        assert_eq!(append(&mut log, &["c"], None), 2);
        let read = log.read(2, 1 << 20, true);
        assert_eq!(i64_at(&read, 0), 2);
        assert_eq!(i32_at(&read, 12), 1);
        assert!(Incoming::parse(&read).is_ok());
        assert_eq!(log.epoch_end(0), (0, 2));
        assert_eq!(log.epoch_end(9), (1, 3));
    }

    #[test]
    fn a_changed_byte_is_a_corrupt_message() {
        let mut bytes = BytesMut::from(&batch(&["abc"], None)[..]);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(Incoming::parse(&bytes.freeze()).unwrap_err(), ResponseError::CorruptMessage);
    }

    #[test]
    fn a_truncated_batch_is_refused_and_two_batches_in_one_are_too() {
        let one = batch(&["abc"], None);
        let cut = one.slice(..one.len() - 1);
        assert_eq!(Incoming::parse(&cut).unwrap_err(), ResponseError::CorruptMessage);
        let two: Bytes = [&one[..], &one[..]].concat().into();
        assert_eq!(Incoming::parse(&two).unwrap_err(), ResponseError::InvalidRecord);
        assert_eq!(Incoming::parse(&Bytes::new()).unwrap_err(), ResponseError::CorruptMessage);
    }

    #[test]
    fn a_duplicate_batch_is_acknowledged_and_not_stored_twice() {
        let mut log = PartitionLog::new();
        assert_eq!(append(&mut log, &["x"], None), 0);
        assert_eq!(append(&mut log, &["a", "b"], Some((9, 0, 0))), 1);
        assert_eq!(append(&mut log, &["a", "b"], Some((9, 0, 0))), 1);
        assert_eq!(log.end(), 3);
        let gap = Incoming::parse(&batch(&["c"], Some((9, 0, 3)))).unwrap();
        assert_eq!(log.append(gap, None).unwrap_err(), ResponseError::OutOfOrderSequenceNumber);
    }

    #[test]
    fn reads_keep_batches_whole_and_the_first_one_always_comes() {
        let mut log = PartitionLog::new();
        append(&mut log, &["a", "b"], None);
        append(&mut log, &["c"], None);
        let first = log.read(1, 1, true);
        assert_eq!(i64_at(&first, 0), 0);
        assert!(log.read(0, 1, false).is_empty());
        assert_eq!(log.read(0, 1 << 20, false).len(), log.readable(0, usize::MAX));
        assert!(log.read(3, 1 << 20, true).is_empty());
    }

    #[test]
    fn deleting_records_moves_the_start_and_drops_whole_batches() {
        let mut log = PartitionLog::new();
        append(&mut log, &["a", "b"], None);
        append(&mut log, &["c"], None);
        assert_eq!(log.delete_before(1), Ok(1));
        assert_eq!(log.batches_from(0).len(), 2);
        assert_eq!(log.delete_before(-1), Ok(3));
        assert!(log.batches_from(0).is_empty());
        assert_eq!(log.delete_before(4), Err(ResponseError::OffsetOutOfRange));
    }

    #[test]
    fn append_time_replaces_the_timestamp_under_a_new_checksum() {
        let mut log = PartitionLog::new();
        let done = log.append(Incoming::parse(&batch(&["a"], None)).unwrap(), Some(5_000)).unwrap();
        assert_eq!(done.append_time_ms, 5_000);
        let read = Incoming::parse(&log.read(0, 1 << 20, true)).unwrap();
        assert_eq!(read.max_timestamp, 5_000);
    }
}
