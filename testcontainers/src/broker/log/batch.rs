//! One record batch (format v2, KIP-98): its header read and checked, and the control batches that end transactions.
//!
//! A batch is kept as it came, a slice of the request's buffer: the base offset and the leader epoch stand before the
//! checksummed part, so they are kept apart and written in front of it when the batch is read.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;

use super::super::producers::{Stamp, sequence_after};
use super::super::stored::Head;

/// Base offset, batch length, leader epoch: the part in front of the magic byte.
const PREFIX: usize = 16;
/// A batch up to its first record.
pub(in super::super) const HEADER: usize = 61;
const ATTRIBUTES: std::ops::Range<usize> = 21..23;
const MAX_TIMESTAMP: std::ops::Range<usize> = 35..43;
const LOG_APPEND_TIME_BIT: i16 = 0x08;
const TRANSACTIONAL_BIT: i16 = 0x10;
const CONTROL_BIT: i16 = 0x20;

/// How a transaction ended, as its control batch says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Marker {
    pub(in super::super) producer_id: i64,
    pub(in super::super) epoch: i16,
    pub(in super::super) commit: bool,
    pub(in super::super) coordinator_epoch: i32,
}

/// A batch as a producer sent it, with its header read and checked.
#[derive(Debug, Clone)]
pub(in super::super) struct Incoming {
    pub(super) bytes: Bytes,
    pub(super) records: i32,
    pub(super) max_timestamp: i64,
    pub(super) stamp: Option<Stamp>,
    pub(super) transactional: bool,
    pub(super) marker: Option<Marker>,
}

impl Incoming {
    /// Reads the records of one partition of a produce request: since format v2, exactly one batch.
    pub(in super::super) fn parse(bytes: &Bytes) -> Result<Self, ResponseError> {
        // Not one whole batch, or one that is to be anywhere but at the end of the log.
        if bytes.len() < HEADER
            || bytes[16] != 2
            || usize::try_from(i32_at(bytes, 8)) != Ok(bytes.len() - 12)
            || i64_at(bytes, 0) != 0
        {
            return Err(ResponseError::InvalidRecord);
        }
        if crc32c::crc32c(&bytes[21..]) != i32_at(bytes, 17).cast_unsigned() {
            return Err(ResponseError::CorruptMessage);
        }
        let (last_delta, records) = (i32_at(bytes, 23), i32_at(bytes, 57));
        let attributes = i16_at(bytes, 21);
        if records <= 0 || last_delta != records - 1 || attributes & CONTROL_BIT != 0 {
            return Err(ResponseError::InvalidRecord);
        }
        let producer_id = i64_at(bytes, 43);
        let first_sequence = i32_at(bytes, 53);
        let transactional = attributes & TRANSACTIONAL_BIT != 0;
        let stamp = (producer_id >= 0).then(|| Stamp {
            producer_id,
            epoch: i16_at(bytes, 51),
            first_sequence,
            last_sequence: sequence_after(first_sequence, last_delta),
        });
        if stamp.is_some_and(|s| s.first_sequence < 0 || s.epoch < 0) || (transactional && stamp.is_none()) {
            return Err(ResponseError::InvalidRecord);
        }
        Ok(Self {
            bytes: bytes.clone(),
            records,
            max_timestamp: i64_at(bytes, 35),
            stamp,
            transactional,
            marker: None,
        })
    }

    /// The control batch that ends a transaction: one record of type 1 (commit) or 0 (abort).
    pub(super) fn of_marker(marker: Marker, now_ms: i64) -> Self {
        let mut record = BytesMut::new();
        // Attributes, timestamp delta and offset delta, the key and its length (zigzag), the value, no headers.
        record.put_slice(&[0, 0, 0, 8]);
        record.put_i16(0);
        record.put_i16(i16::from(marker.commit));
        record.put_u8(12);
        record.put_i16(0);
        record.put_i32(marker.coordinator_epoch);
        record.put_u8(0);
        let mut out = BytesMut::new();
        out.put_i64(0);
        out.put_i32(0);
        out.put_i32(-1);
        out.put_u8(2);
        out.put_u32(0);
        out.put_i16(TRANSACTIONAL_BIT | CONTROL_BIT);
        out.put_i32(0);
        out.put_i64(now_ms);
        out.put_i64(now_ms);
        out.put_i64(marker.producer_id);
        out.put_i16(marker.epoch);
        out.put_i32(-1);
        out.put_i32(1);
        // A record of fewer than 64 bytes: its zigzag length is one byte.
        out.put_u8(u8::try_from(record.len() * 2).unwrap_or(0));
        out.put_slice(&record);
        seal(&mut out);
        Self {
            bytes: out.freeze(),
            records: 1,
            max_timestamp: now_ms,
            stamp: None,
            transactional: true,
            marker: Some(marker),
        }
    }

    /// `message.timestamp.type=LogAppendTime`: the broker's time replaces the producer's, and so the checksum changes.
    pub(super) fn stamp_append_time(&mut self, now_ms: i64) {
        let mut copy = BytesMut::from(&self.bytes[..]);
        let attributes = i16_at(&copy, 21) | LOG_APPEND_TIME_BIT;
        copy[ATTRIBUTES].copy_from_slice(&attributes.to_be_bytes());
        copy[MAX_TIMESTAMP].copy_from_slice(&now_ms.to_be_bytes());
        seal(&mut copy);
        self.max_timestamp = now_ms;
        self.bytes = copy.freeze();
    }

    /// The compressed records behind the header, and the codec's number.
    pub(in super::super) fn payload(&self) -> (Bytes, i16) {
        (self.bytes.slice(HEADER..), i16_at(&self.bytes, 21) & 7)
    }

    pub(in super::super) fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// The producer and epoch that the batch was stamped with, and whether it belongs to a transaction.
    pub(in super::super) fn producer(&self) -> Option<(i64, i16, bool)> {
        self.stamp.map(|s| (s.producer_id, s.epoch, self.transactional))
    }
}

/// Writes the length and the checksum of a batch whose bytes are complete.
fn seal(batch: &mut BytesMut) {
    let length = i32::try_from(batch.len() - 12).unwrap_or(i32::MAX);
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// A stored batch.
#[derive(Debug, Clone)]
pub(in super::super) struct Batch {
    pub(in super::super) base_offset: i64,
    pub(in super::super) last_offset: i64,
    pub(in super::super) max_timestamp: i64,
    pub(super) leader_epoch: i32,
    pub(super) stamp: Option<Stamp>,
    pub(super) transactional: bool,
    pub(super) marker: Option<Marker>,
    pub(super) bytes: Bytes,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the batch as readers see it.
    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_i64(self.base_offset);
        out.extend_from_slice(&self.bytes[8..12]);
        out.put_i32(self.leader_epoch);
        out.extend_from_slice(&self.bytes[PREFIX..]);
    }

    /// The batch as readers see it.
    pub(in super::super) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes.len());
        self.write(&mut out);
        out.freeze()
    }

    /// A control batch holds no records of a user.
    pub(in super::super) fn is_control(&self) -> bool {
        self.marker.is_some()
    }

    /// What all its records share.
    pub(in super::super) fn head(&self) -> Head {
        Head {
            base_offset: self.base_offset,
            base_timestamp: i64_at(&self.bytes, 27),
            append_timestamp: (i16_at(&self.bytes, 21) & LOG_APPEND_TIME_BIT != 0)
                .then_some(self.max_timestamp),
            leader_epoch: self.leader_epoch,
            producer_id: i64_at(&self.bytes, 43),
            producer_epoch: i16_at(&self.bytes, 51),
            base_sequence: i32_at(&self.bytes, 53),
            transactional: self.transactional,
        }
    }

    /// Neither a marker nor part of a transaction.
    pub(in super::super) fn is_plain(&self) -> bool {
        self.marker.is_none() && !self.transactional
    }

    /// The compressed records behind the header, and the codec's number.
    pub(in super::super) fn payload(&self) -> (Bytes, i16) {
        (self.bytes.slice(HEADER..), i16_at(&self.bytes, 21) & 7)
    }

    /// Replaces the records by `payload` (uncompressed, `count` of them), as compaction does: offsets, times and producer
    /// stay as they were.
    pub(in super::super) fn keep_only(&mut self, payload: &[u8], count: i32) {
        let mut copy = BytesMut::from(&self.bytes[..HEADER]);
        let attributes = i16_at(&copy, 21) & !7;
        copy[ATTRIBUTES].copy_from_slice(&attributes.to_be_bytes());
        copy[57..61].copy_from_slice(&count.to_be_bytes());
        copy.extend_from_slice(payload);
        seal(&mut copy);
        self.bytes = copy.freeze();
    }
}

pub(super) fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    (i64::from(i32_at(bytes, at)) << 32) | i64::from(i32_at(bytes, at + 4).cast_unsigned())
}
