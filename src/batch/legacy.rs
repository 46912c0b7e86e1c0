//! Reading message sets of magic 0 and 1, which brokers before 0.11 wrote and old logs still hold. Never writes any.
//!
//! A message is a batch of one record; a compressed one wraps a set of them (KIP-31: offsets in a wrapper of magic 1 are
//! relative, those in one of magic 0 are absolute).

use bytes::Bytes;
use flate2::Crc;

use super::{
    BASE_OFFSET, BATCH_LENGTH, CODEC_MASK, Decompressor, LOG_OVERHEAD, MAGIC_AT,
    decode::{
        DecodedBatch, RawBatch, RecordSlot, check_slots, corrupt, i32_at, i64_at, timestamp_type, u32_at,
        wrong_crc,
    },
};
use crate::{error::Result, record::TimestampType};

const CRC_AT: usize = 12;
const ATTRIBUTES_AT: usize = 17;
const TIMESTAMP_AT: usize = 18;

/// The shortest message of that magic, with its offset and length.
pub(super) fn min_len(magic: u8) -> usize {
    // offset, length, CRC, magic, attributes, (timestamp), key length, value length
    if magic == 0 { 26 } else { 34 }
}

/// `bytes` is a message of magic 0 or 1, not shorter than [`min_len`].
pub(super) fn parse(bytes: Bytes) -> Result<RawBatch> {
    let (offset, message) = (i64_at(&bytes, BASE_OFFSET.start), Message::read(&bytes, 0)?);
    if offset < 0 {
        return Err(corrupt(offset, "a message claims a negative offset".into()));
    }
    Ok(RawBatch {
        magic: message.magic,
        base_offset: offset,
        last_offset: offset,
        next_offset: None,
        leader_epoch: -1,
        attributes: message.attributes,
        timestamp_type: message.timestamp_type(),
        is_transactional: false,
        is_control: false,
        base_timestamp: message.slot.timestamp,
        max_timestamp: message.slot.timestamp,
        producer_id: -1,
        count: 1,
        bytes,
    })
}

/// The records of a message; see [`RawBatch::decode_into`].
pub(super) fn decode(
    batch: &RawBatch,
    check_crc: bool,
    decompressor: &Decompressor,
    max_decompressed: usize,
    mut slots: Vec<RecordSlot>,
) -> Result<DecodedBatch> {
    let message = Message::read(&batch.bytes, 0)?;
    if check_crc {
        check(&batch.bytes, batch.base_offset)?;
    }
    let (base_offset, data) = if batch.is_compressed() {
        let value = batch.bytes.get(message.value()).unwrap_or_default();
        let data = decompressor.decompress_legacy(
            batch.attributes & CODEC_MASK,
            batch.bytes.slice_ref(value),
            max_decompressed,
        )?;
        let base_offset = read_inner(batch, &data, check_crc, max_decompressed, &mut slots)?;
        (base_offset, data)
    } else {
        slots.push(message.slot);
        (batch.base_offset, batch.bytes.clone())
    };
    Ok(DecodedBatch {
        base_offset,
        last_offset: batch.last_offset,
        leader_epoch: None,
        timestamp_type: batch.timestamp_type,
        is_control: false,
        data,
        slots,
        decompressed: batch.is_compressed(),
        home: decompressor.clone(),
    })
}

/// Finds the messages inside a wrapper and returns the first one's offset.
fn read_inner(
    wrapper: &RawBatch,
    data: &[u8],
    check_crc: bool,
    max_decompressed: usize,
    slots: &mut Vec<RecordSlot>,
) -> Result<i64> {
    let wrong = |what: &str| corrupt(wrapper.last_offset, format!("a compressed message set {what}"));
    if i32::try_from(data.len()).is_err() {
        return Err(wrong("is longer than 2 GiB"));
    }
    let broker_time =
        (wrapper.timestamp_type == TimestampType::LogAppendTime).then_some(wrapper.max_timestamp);
    let (mut at, mut first, mut last) = (0, 0, 0);
    while at < data.len() {
        let rest = &data[at..];
        let size = usize::try_from(i32_at(rest, BATCH_LENGTH.start))
            .unwrap_or(usize::MAX)
            .saturating_add(LOG_OVERHEAD);
        // A size of zeros read from a cut-off header is too small as well.
        let bytes = rest.get(..size).filter(|bytes| bytes.len() >= min_len(wrapper.magic));
        let bytes = bytes.ok_or_else(|| wrong("holds a message of an impossible length"))?;
        let mut message = Message::read(bytes, at)?;
        if message.magic != wrapper.magic || message.attributes & CODEC_MASK != 0 {
            return Err(wrong("holds a message of another magic or one that is compressed again"));
        }
        let offset = i64_at(bytes, BASE_OFFSET.start);
        if check_crc {
            check(bytes, wrapper.last_offset)?;
        }
        if slots.is_empty() {
            (first, last) = (offset, offset);
        }
        let is_behind = offset >= std::mem::replace(&mut last, offset);
        let delta =
            offset.checked_sub(first).and_then(|delta| i32::try_from(delta).ok()).filter(|_| is_behind);
        message.slot.offset_delta = delta.ok_or_else(|| wrong("is not in the order of its offsets"))?;
        message.slot.timestamp = broker_time.unwrap_or(message.slot.timestamp);
        check_slots(slots.len() + 1, data.len(), max_decompressed)?;
        slots.push(message.slot);
        at += size;
    }
    // KIP-31: the wrapper has the offset of its last message, whatever the relative offsets start with. Absolute ones must fit:
    // reading goes on behind the wrapper, and what lies behind it would be handed out twice.
    let base = if wrapper.magic == 0 {
        Some(first).filter(|_| last <= wrapper.last_offset)
    } else {
        last.checked_sub(first).map(|span| wrapper.last_offset - span)
    };
    base.filter(|base| !slots.is_empty() && *base >= 0)
        .ok_or_else(|| wrong("is empty, or its offsets are impossible"))
}

/// CRC-32 as in gzip, not the CRC-32C of later batches.
fn check(bytes: &[u8], offset: i64) -> Result<()> {
    let mut crc = Crc::new();
    crc.update(&bytes[MAGIC_AT..]);
    let claimed = u32_at(bytes, CRC_AT);
    if claimed == crc.sum() { Ok(()) } else { Err(wrong_crc(offset, claimed, crc.sum())) }
}

struct Message {
    magic: u8,
    attributes: i16,
    slot: RecordSlot,
    /// Where the message begins in the data the slot refers to.
    start: usize,
}

impl Message {
    /// Reads a message that has [`min_len`] bytes and begins at `start` of the data its slot refers to.
    fn read(bytes: &[u8], start: usize) -> Result<Self> {
        let offset = i64_at(bytes, BASE_OFFSET.start);
        let wrong = || corrupt(offset, "a message of magic 0 or 1 cannot be read".into());
        let magic = bytes[MAGIC_AT];
        let attributes = i16::from(bytes[ATTRIBUTES_AT]);
        let (timestamp, at) = match magic {
            0 => (-1, TIMESTAMP_AT),
            1 if bytes.len() >= min_len(1) => (i64_at(bytes, TIMESTAMP_AT), TIMESTAMP_AT + 8),
            _ => return Err(wrong()),
        };
        let (key_at, key_len, at) = part(bytes, at).ok_or_else(wrong)?;
        let (value_at, value_len, at) = part(bytes, at).ok_or_else(wrong)?;
        let place = |at: usize| u32::try_from(start + at).map_err(|_| wrong());
        if at != bytes.len() {
            return Err(wrong());
        }
        Ok(Self {
            magic,
            attributes,
            slot: RecordSlot {
                timestamp,
                offset_delta: 0,
                key_at: place(key_at)?,
                key_len,
                value_at: place(value_at)?,
                value_len,
                headers_at: 0,
                header_count: 0,
            },
            start,
        })
    }

    fn timestamp_type(&self) -> TimestampType {
        if self.magic == 0 { TimestampType::CreateTime } else { timestamp_type(self.attributes) }
    }

    /// Where the value is in the message's own bytes.
    fn value(&self) -> std::ops::Range<usize> {
        let at = (self.slot.value_at as usize).saturating_sub(self.start);
        at..at + self.slot.value_len.max(0) as usize
    }
}

/// Where a part with a length of 32 bits begins, its length (-1 for null), and where it ends.
fn part(bytes: &[u8], at: usize) -> Option<(usize, i32, usize)> {
    let len = i32::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
    let start = at + 4;
    let end = start.checked_add(usize::try_from(len.max(0)).ok()?)?;
    (len >= -1 && end <= bytes.len()).then_some((start, len, end))
}
