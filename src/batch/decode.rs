//! Reading record batches out of fetch responses: splitting, checking, and finding the parts of every record.
//!
//! Nothing is copied and nothing allocated per record: a decoded batch is its bytes plus one small slot per record,
//! all checked, so that reading a record later cannot fail. Which records a consumer wants (fetch offset, aborted
//! transactions) is not decided here.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    ATTRIBUTES, BASE_OFFSET, BASE_TIMESTAMP, BATCH_HEADER_LEN, BATCH_LENGTH, CODEC_MASK, CONTROL, CRC,
    CRC_COVERS_FROM, Decompressor, LAST_OFFSET_DELTA, LEADER_EPOCH, LOG_APPEND_TIME, LOG_OVERHEAD, MAGIC_AT,
    MAX_TIMESTAMP, PRODUCER_ID, RECORD_COUNT, TRANSACTIONAL, compression::TOO_LARGE_HINT, legacy,
};
use crate::{
    error::{Error, Result},
    record::{Header, TimestampType},
};

/// The smallest record: length, attributes, two deltas, two lengths, header count.
const MIN_RECORD_LEN: usize = 7;
const CORRUPT_HINT: &str = "the log of this partition is damaged, or something on the way changed the bytes; \
    seek past the batch to go on without it";

/// Walks the batches of one partition in a fetch response.
pub(crate) fn split(records: Bytes) -> Batches {
    Batches { rest: records }
}

/// The iterator of [`split`]. It ends at the first error, and before a batch that the response holds only in part, which
/// [`incomplete`](Self::incomplete) then tells of.
#[derive(Debug)]
pub(crate) struct Batches {
    rest: Bytes,
}

/// The start of a batch whose end a response does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incomplete {
    /// Where it begins; `None` where not even that is there.
    pub(crate) base_offset: Option<i64>,
    /// Bytes of the whole batch, as it claims; `None` where that is not there. Never use it to reserve memory.
    pub(crate) needed: Option<u64>,
    /// Bytes that are there; at least one.
    pub(crate) got: usize,
}

impl Batches {
    /// What is left once the walk has ended without an error. Brokers cut a response anywhere, so behind other batches
    /// this is usual. But since KIP-74 they send the first batch whole, however large: if nothing stands before the rest,
    /// asking the same again makes no progress.
    pub(crate) fn incomplete(&self) -> Option<Incomplete> {
        let rest = &self.rest;
        let has = |end: usize| (rest.len() >= end).then_some(());
        (!rest.is_empty()).then(|| Incomplete {
            base_offset: has(BASE_OFFSET.end).map(|()| i64_at(rest, BASE_OFFSET.start)),
            needed: has(BATCH_LENGTH.end)
                .and_then(|()| u64::try_from(i32_at(rest, BATCH_LENGTH.start)).ok())
                .map(|length| length + LOG_OVERHEAD as u64),
            got: rest.len(),
        })
    }

    fn next_batch(&mut self) -> Result<Option<RawBatch>> {
        let Some(head) = self.rest.get(..=MAGIC_AT) else { return Ok(None) };
        let base_offset = i64_at(head, BASE_OFFSET.start);
        let length = i32_at(head, BATCH_LENGTH.start);
        let magic = head[MAGIC_AT];
        let least = match magic {
            0 | 1 => legacy::min_len(magic),
            2 => BATCH_HEADER_LEN,
            _ => return Err(corrupt(base_offset, format!("a record batch has the unknown magic {magic}"))),
        };
        let Some(size) = usize::try_from(length)
            .ok()
            .map(|length| length.saturating_add(LOG_OVERHEAD))
            .filter(|size| *size >= least)
        else {
            return Err(corrupt(
                base_offset,
                format!("a record batch claims the impossible length {length}"),
            ));
        };
        if size > self.rest.len() {
            return Ok(None);
        }
        let bytes = self.rest.split_to(size);
        if magic != 2 {
            return legacy::parse(bytes).map(Some);
        }
        let next_offset = self.next_base().filter(|next| *next > base_offset);
        RawBatch::parse(bytes, next_offset).map(Some)
    }

    /// Where what is left begins, if it begins with a batch of magic 2: older ones may tell only where they end.
    fn next_base(&self) -> Option<i64> {
        let head = self.rest.get(..=MAGIC_AT)?;
        (head[MAGIC_AT] == 2).then(|| i64_at(head, BASE_OFFSET.start))
    }
}

impl Iterator for Batches {
    type Item = Result<RawBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_batch().transpose();
        if matches!(next, Some(Err(_))) {
            self.rest = Bytes::new();
        }
        next
    }
}

/// A batch as it came: its header is read and plausible, its records are neither checked nor decompressed.
#[derive(Debug, Clone)]
pub(crate) struct RawBatch {
    pub(crate) magic: u8,
    /// The first offset; for a compressed message of magic 0 or 1, where it is known only after decoding, the last.
    pub(crate) base_offset: i64,
    pub(crate) last_offset: i64,
    /// Where the batch behind it in the same answer begins, where that is known.
    pub(crate) next_offset: Option<i64>,
    /// -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) attributes: i16,
    pub(crate) timestamp_type: TimestampType,
    pub(crate) is_transactional: bool,
    pub(crate) is_control: bool,
    pub(crate) base_timestamp: i64,
    pub(crate) max_timestamp: i64,
    /// -1 without one, and the two below with it.
    pub(crate) producer_id: i64,
    /// Records as the header claims; 1 for a compressed message of magic 0 or 1. Never use it to reserve memory.
    pub(crate) count: i32,
    /// All of the batch, with its header.
    pub(crate) bytes: Bytes,
}

impl RawBatch {
    /// `bytes` is a whole batch of magic 2 with at least its header. Fields that the CRC covers are judged later, except
    /// for those without which nobody could go on: an error here ends the walk, and would hide the batches in front of
    /// this one.
    fn parse(bytes: Bytes, next_offset: Option<i64>) -> Result<Self> {
        let attributes = i16_at(&bytes, ATTRIBUTES.start);
        let base_offset = i64_at(&bytes, BASE_OFFSET.start);
        let last_delta = i32_at(&bytes, LAST_OFFSET_DELTA.start);
        let count = i32_at(&bytes, RECORD_COUNT.start);
        let last_offset = base_offset.checked_add(i64::from(last_delta));
        let (Some(last_offset), 0.., 0..) = (last_offset, base_offset, last_delta) else {
            return Err(corrupt(
                base_offset,
                format!("a record batch claims the last offset delta {last_delta}"),
            ));
        };
        Ok(Self {
            magic: 2,
            base_offset,
            last_offset,
            next_offset,
            leader_epoch: i32_at(&bytes, LEADER_EPOCH.start),
            attributes,
            timestamp_type: timestamp_type(attributes),
            is_transactional: attributes & TRANSACTIONAL != 0,
            is_control: attributes & CONTROL != 0,
            base_timestamp: i64_at(&bytes, BASE_TIMESTAMP.start),
            max_timestamp: i64_at(&bytes, MAX_TIMESTAMP.start),
            producer_id: i64_at(&bytes, PRODUCER_ID.start),
            count,
            bytes,
        })
    }

    #[cfg(test)]
    pub(crate) fn producer_epoch(&self) -> i16 {
        i16_at(&self.bytes, super::PRODUCER_EPOCH.start)
    }

    #[cfg(test)]
    pub(crate) fn base_sequence(&self) -> i32 {
        i32_at(&self.bytes, super::BASE_SEQUENCE.start)
    }

    /// Where to go on behind it if it cannot be read. Its last offset may be what is damaged, so the batch behind it,
    /// which says where it begins, is believed first.
    pub(crate) fn behind(&self) -> i64 {
        self.next_offset.unwrap_or_else(|| self.last_offset.saturating_add(1))
    }

    /// Whether the CRC holds, which covers every field of the header because of which a batch may be passed over. Batches
    /// of magic 0 and 1 are never passed over because of their headers.
    pub(crate) fn is_intact(&self) -> bool {
        self.magic < 2 || self.check_crc().is_ok()
    }

    fn check_crc(&self) -> Result<()> {
        let (claimed, computed) =
            (u32_at(&self.bytes, CRC.start), crc32c::crc32c(&self.bytes[CRC_COVERS_FROM..]));
        if claimed == computed { Ok(()) } else { Err(wrong_crc(self.base_offset, claimed, computed)) }
    }

    /// Whether the records must be decompressed.
    pub(crate) fn is_compressed(&self) -> bool {
        self.attributes & CODEC_MASK != 0
    }

    /// Checks, decompresses and finds the records. What comes out of the decompression and the slots of its records take no
    /// more than `max_decompressed` bytes together.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Protocol`] with the first and the last offset (see [`behind`](Self::behind)), if the
    /// CRC (where checked), the compressed data or a record is wrong, or the number of records is not what the header
    /// says.
    pub(crate) fn decode(
        &self,
        check_crc: bool,
        decompressor: &Decompressor,
        max_decompressed: usize,
    ) -> Result<DecodedBatch> {
        self.try_decode(check_crc, decompressor, max_decompressed).map_err(|error| {
            error.with_offset(self.base_offset).with_last_offset(self.behind().saturating_sub(1))
        })
    }

    fn try_decode(
        &self,
        check_crc: bool,
        decompressor: &Decompressor,
        max_decompressed: usize,
    ) -> Result<DecodedBatch> {
        let mut slots = decompressor.slots();
        if self.magic < 2 {
            return legacy::decode(self, check_crc, decompressor, max_decompressed, slots);
        }
        if check_crc {
            self.check_crc()?;
        }
        let records = self.bytes.slice(BATCH_HEADER_LEN..);
        let data = decompressor.decompress(self.attributes & CODEC_MASK, records, max_decompressed)?;
        // The division keeps a forged count from making anyone reserve memory.
        if !fits(self.count, data.len()) {
            return Err(wrong_count(self.base_offset, self.count, data.len()));
        }
        check_slots(self.count as usize, self.decompressed_len(&data), max_decompressed)?;
        self.read_records(&data, &mut slots)?;
        Ok(DecodedBatch {
            base_offset: self.base_offset,
            last_offset: self.last_offset,
            leader_epoch: Some(self.leader_epoch).filter(|epoch| *epoch >= 0),
            timestamp_type: self.timestamp_type,
            is_control: self.is_control,
            data,
            slots,
            decompressed: self.is_compressed(),
            home: decompressor.clone(),
        })
    }

    fn decompressed_len(&self, data: &Bytes) -> usize {
        if self.is_compressed() { data.len() } else { 0 }
    }

    fn read_records(&self, data: &[u8], slots: &mut Vec<RecordSlot>) -> Result<()> {
        let last_delta = (self.last_offset - self.base_offset) as i32;
        let broker_time = (self.timestamp_type == TimestampType::LogAppendTime).then_some(self.max_timestamp);
        slots.reserve_exact(self.count as usize);
        let mut reader = Reader { data, at: 0 };
        let mut before = -1;
        for index in 0..self.count {
            // Offsets must rise, since records are looked up by offset.
            let slot = reader
                .record(self.base_timestamp, broker_time)
                .filter(|slot| before < slot.offset_delta && slot.offset_delta <= last_delta);
            let Some(slot) = slot else {
                return Err(corrupt(
                    self.base_offset,
                    format!("record {index} of a batch of {} cannot be read", self.count),
                ));
            };
            before = slot.offset_delta;
            slots.push(slot);
        }
        if reader.at != data.len() {
            let left = data.len() - reader.at;
            return Err(corrupt(
                self.base_offset,
                format!("{left} bytes are left after the {} records a batch claims to have", self.count),
            ));
        }
        Ok(())
    }
}

/// Where the parts of a record are in [`DecodedBatch::data`]; lengths below 0 are nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordSlot {
    /// Milliseconds since the Unix epoch; -1 for none.
    pub(crate) timestamp: i64,
    pub(crate) offset_delta: i32,
    pub(super) key_at: u32,
    pub(super) key_len: i32,
    pub(super) value_at: u32,
    pub(super) value_len: i32,
    pub(super) headers_at: u32,
    pub(super) header_count: u32,
}

/// What a control batch says (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlType {
    /// The producer's transaction was aborted.
    Abort,
    /// The producer's transaction was committed.
    Commit,
    /// A marker that consumers only skip.
    Other(i16),
}

/// A checked batch: its bytes, and the place of every record in them.
#[derive(Debug, Clone)]
pub(crate) struct DecodedBatch {
    pub(crate) base_offset: i64,
    /// The last offset the batch covers; compaction may have removed its last records, so go on after this one.
    pub(crate) last_offset: i64,
    pub(crate) leader_epoch: Option<i32>,
    pub(crate) timestamp_type: TimestampType,
    /// The records are markers, not for users.
    pub(crate) is_control: bool,
    /// The records; shares the response's buffer unless they were compressed.
    pub(crate) data: Bytes,
    pub(crate) slots: Vec<RecordSlot>,
    pub(super) decompressed: bool,
    /// Where the memory goes when the last record is gone.
    pub(super) home: Decompressor,
}

impl Drop for DecodedBatch {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        self.home.recycle(std::mem::take(&mut self.slots), self.decompressed.then_some(data));
    }
}

impl DecodedBatch {
    /// Bytes of memory that it takes besides the response's own.
    pub(crate) fn memory(&self) -> usize {
        let data = if self.decompressed { self.data.len() } else { 0 };
        data + self.slots.len() * size_of::<RecordSlot>()
    }

    #[inline]
    pub(crate) fn offset(&self, slot: &RecordSlot) -> i64 {
        self.base_offset.wrapping_add(i64::from(slot.offset_delta))
    }

    #[inline]
    pub(crate) fn key(&self, slot: &RecordSlot) -> Option<&[u8]> {
        part(&self.data, slot.key_at, slot.key_len)
    }

    #[inline]
    pub(crate) fn value(&self, slot: &RecordSlot) -> Option<&[u8]> {
        part(&self.data, slot.value_at, slot.value_len)
    }

    /// The key as a share of the buffer, which it keeps alive.
    #[inline]
    pub(crate) fn key_bytes(&self, slot: &RecordSlot) -> Option<Bytes> {
        self.key(slot).map(|key| self.data.slice_ref(key))
    }

    /// The value as a share of the buffer, which it keeps alive.
    #[inline]
    pub(crate) fn value_bytes(&self, slot: &RecordSlot) -> Option<Bytes> {
        self.value(slot).map(|value| self.data.slice_ref(value))
    }

    /// The headers in order, duplicates kept.
    pub(crate) fn headers(&self, slot: &RecordSlot) -> impl Iterator<Item = HeaderRef<'_>> {
        let mut reader = Reader { data: &self.data, at: slot.headers_at as usize };
        (0..slot.header_count).map_while(move |_| reader.header())
    }

    /// The headers with values as shares of the buffer.
    #[inline]
    pub(crate) fn owned_headers(&self, slot: &RecordSlot) -> Vec<Header> {
        if slot.header_count == 0 {
            return Vec::new();
        }
        let owned = |header: HeaderRef<'_>| Header {
            key: header.key().into_owned(),
            value: header.value.map(|value| self.data.slice_ref(value)),
        };
        self.headers(slot).map(owned).collect()
    }

    /// What the control batch says; `None` for a batch of records, or a control batch that compaction has emptied.
    pub(crate) fn control_type(&self) -> Option<ControlType> {
        let key = self.key(self.slots.first().filter(|_| self.is_control)?)?;
        // KIP-98: version and type, both int16; a later version only adds fields.
        let kind = i16::from_be_bytes(key.get(2..4)?.try_into().ok()?);
        Some(match kind {
            0 => ControlType::Abort,
            1 => ControlType::Commit,
            other => ControlType::Other(other),
        })
    }
}

/// A header of a record, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderRef<'a> {
    pub(crate) key_bytes: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
}

impl<'a> HeaderRef<'a> {
    /// The name. As in Java, bytes that are not UTF-8 become replacement characters: a strange header of one producer
    /// must not stop a consumer.
    pub(crate) fn key(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.key_bytes)
    }
}

#[inline]
fn part(data: &[u8], at: u32, len: i32) -> Option<&[u8]> {
    let (at, len) = (at as usize, usize::try_from(len).ok()?);
    data.get(at..)?.get(..len)
}

/// Reads records; every method is `None` for bytes that do not make one.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn record(&mut self, base_timestamp: i64, broker_time: Option<i64>) -> Option<RecordSlot> {
        let len = self.length()?;
        let end = self.at.checked_add(usize::try_from(len).ok()?).filter(|end| *end <= self.data.len())?;
        self.byte()?; // attributes: none are defined
        let timestamp_delta = self.varlong()?;
        let offset_delta = self.length()?;
        let key_len = self.length()?;
        let key_at = self.skip(key_len)?;
        let value_len = self.length()?;
        let value_at = self.skip(value_len)?;
        let header_count = u32::try_from(self.length()?).ok()?;
        let headers_at = self.at as u32;
        if header_count > 0 {
            self.skip_headers(header_count)?;
        }
        (self.at == end).then_some(RecordSlot {
            timestamp: broker_time.unwrap_or_else(|| base_timestamp.wrapping_add(timestamp_delta)),
            offset_delta,
            key_at,
            key_len,
            value_at,
            value_len,
            headers_at,
            header_count,
        })
    }

    fn skip_headers(&mut self, count: u32) -> Option<()> {
        for _ in 0..count {
            self.header()?;
        }
        Some(())
    }

    fn header(&mut self) -> Option<HeaderRef<'a>> {
        let len = self.length()?;
        let at = self.skip(len)?;
        let key_bytes = part(self.data, at, len)?;
        let len = self.length()?;
        let at = self.skip(len)?;
        Some(HeaderRef { key_bytes, value: part(self.data, at, len) })
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.data.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Steps over a part and says where it began; a length of -1 is a null, below that an error.
    #[inline]
    fn skip(&mut self, len: i32) -> Option<u32> {
        let at = self.at as u32;
        if len > 0 {
            self.at = self.at.checked_add(len as usize).filter(|end| *end <= self.data.len())?;
        } else if len < -1 {
            return None;
        }
        Some(at)
    }

    /// A zigzag varint of 32 bits. Always inlined: a call of it for each number was a twentieth of the CPU of consuming.
    #[inline(always)]
    fn length(&mut self) -> Option<i32> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(i32::from(first >> 1) ^ -i32::from(first & 1));
        }
        let second = self.byte()?;
        if second < 0x80 {
            let value = i32::from(first & 0x7f) | i32::from(second) << 7;
            return Some((value >> 1) ^ -(value & 1));
        }
        let value = self.rest_of_varint(u64::from(first & 0x7f) | u64::from(second & 0x7f) << 7, 5)?;
        let value = u32::try_from(value).ok()?;
        Some((value >> 1) as i32 ^ -((value & 1) as i32))
    }

    /// A zigzag varint of 64 bits.
    #[inline]
    fn varlong(&mut self) -> Option<i64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(i64::from(first >> 1) ^ -i64::from(first & 1));
        }
        let second = self.byte()?;
        let low = u64::from(first & 0x7f) | u64::from(second & 0x7f) << 7;
        let value = if second < 0x80 { low } else { self.rest_of_varint(low, 10)? };
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A varint whose first two bytes are in `value`, of at most `max` bytes.
    fn rest_of_varint(&mut self, mut value: u64, max: u32) -> Option<u64> {
        for index in 2..max {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(index * 7)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

/// Refuses a batch whose slots would exceed the limit: tiny records take more memory for their slots than for themselves.
pub(super) fn check_slots(count: usize, decompressed: usize, max: usize) -> Result<()> {
    let needed = count.saturating_mul(size_of::<RecordSlot>()).saturating_add(decompressed);
    if needed <= max {
        return Ok(());
    }
    Err(Error::protocol(format!(
        "the {count} records of a batch need {needed} bytes of memory, more than the {max} of max.decompressed.bytes"
    ))
    .with_hint(TOO_LARGE_HINT))
}

/// Whether `count` records can be in `len` bytes, and their places in the 32 bits of a slot.
pub(super) fn fits(count: i32, len: usize) -> bool {
    count >= 0 && count as usize <= len / MIN_RECORD_LEN && len <= i32::MAX as usize
}

pub(super) fn timestamp_type(attributes: i16) -> TimestampType {
    if attributes & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
}

pub(super) fn corrupt(offset: i64, message: String) -> Error {
    Error::protocol(message).with_offset(offset).with_hint(CORRUPT_HINT)
}

pub(super) fn wrong_crc(offset: i64, claimed: u32, computed: u32) -> Error {
    corrupt(
        offset,
        format!("a record batch is corrupt: its CRC is {claimed:#010x}, its bytes make {computed:#010x}"),
    )
}

fn wrong_count(offset: i64, count: i32, len: usize) -> Error {
    corrupt(offset, format!("a record batch claims {count} records in {len} bytes"))
}

/// `N` bytes of a header whose presence was checked; zeros beyond the end, which no caller reads.
#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

pub(super) fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(array_at(bytes, at))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

pub(super) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array_at(bytes, at))
}
