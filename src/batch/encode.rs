//! Writing record batches: records are encoded straight into the buffer that goes to the socket.
//!
//! Nothing is allocated, locked or counted atomically per record: the producer's speed is decided here. This file never
//! decides when a batch is full or sent.

use bytes::{Bytes, BytesMut};

use super::{
    ATTRIBUTES, BASE_OFFSET, BASE_SEQUENCE, BASE_TIMESTAMP, BATCH_HEADER_LEN, BATCH_LENGTH, CODEC_MASK, CRC,
    CRC_COVERS_FROM, Compressor, LAST_OFFSET_DELTA, LEADER_EPOCH, LOG_OVERHEAD, MAGIC_AT, MAX_TIMESTAMP,
    PRODUCER_EPOCH, PRODUCER_ID, RECORD_COUNT, TRANSACTIONAL,
};
use crate::{
    error::{Error, ErrorKind, Result},
    record::Header,
};

/// Who wrote a batch, and its place in that producer's sequence (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) transactional: bool,
}

impl Stamp {
    /// The stamp of a producer that is not idempotent.
    pub(crate) const NONE: Self =
        Self { producer_id: -1, producer_epoch: -1, base_sequence: -1, transactional: false };
}

/// The open batch of a partition: a buffer whose first 61 bytes wait for the header.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    buffer: BytesMut,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl BatchBuilder {
    /// An empty batch in `buffer`, whose content is dropped and whose capacity is kept.
    pub(crate) fn new(mut buffer: BytesMut) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&[0; BATCH_HEADER_LEN]);
        Self { buffer, count: 0, base_timestamp: -1, max_timestamp: -1 }
    }

    /// Adds a record at the next offset. The caller has checked [`record_size_bound`] against `max.request.size`, so
    /// that no length here leaves the range of `i32`.
    #[inline]
    pub(crate) fn append(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) {
        if self.count == 0 {
            self.base_timestamp = timestamp_ms;
            self.max_timestamp = timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let body = body_size(self.count, timestamp_delta, key, value, headers);
        // One reservation for the record; the rest is the length and the spare bytes `Varints` copies.
        self.buffer.reserve(body + 2 * Varints::LEN);

        let mut varints = Varints::new();
        varints.push(body as u64 * 2, &mut self.buffer); // zigzag of a length is its double
        varints.push(0, &mut self.buffer); // attributes: none are defined
        varints.push(zigzag(timestamp_delta), &mut self.buffer);
        varints.push(zigzag(i64::from(self.count)), &mut self.buffer);
        varints.push_part(key, &mut self.buffer);
        varints.push_part(value, &mut self.buffer);
        varints.push(headers.len() as u64 * 2, &mut self.buffer);
        for header in headers {
            varints.push_part(Some(header.key.as_bytes()), &mut self.buffer);
            varints.push_part(header.value.as_deref(), &mut self.buffer);
        }
        varints.flush(&mut self.buffer);
        self.count += 1;
    }

    /// Records appended.
    pub(crate) fn count(&self) -> i32 {
        self.count
    }

    /// Bytes of the batch so far, uncompressed and with its header.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Compresses the records, writes the header and its CRC. As in Java, records that do not shrink stay compressed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an empty batch and one above 2 GiB.
    pub(crate) fn finish(mut self, stamp: Stamp, compressor: &Compressor) -> Result<EncodedBatch> {
        if self.count == 0 {
            return Err(Error::new(ErrorKind::InvalidArgument, "a record batch needs at least one record"));
        }
        compressor.compress_from(&mut self.buffer, BATCH_HEADER_LEN)?;
        let length = i32::try_from(self.buffer.len() - LOG_OVERHEAD).map_err(|_| {
            Error::new(ErrorKind::InvalidArgument, "a record batch is limited to 2 GiB")
                .with_hint("lower batch.size and max.request.size")
        })?;
        let header = &mut self.buffer[..BATCH_HEADER_LEN];
        header[BASE_OFFSET].copy_from_slice(&0_i64.to_be_bytes());
        header[BATCH_LENGTH].copy_from_slice(&length.to_be_bytes());
        header[LEADER_EPOCH].copy_from_slice(&(-1_i32).to_be_bytes());
        header[MAGIC_AT] = 2;
        header[ATTRIBUTES].copy_from_slice(&compressor.attributes().to_be_bytes());
        header[LAST_OFFSET_DELTA].copy_from_slice(&(self.count - 1).to_be_bytes());
        header[BASE_TIMESTAMP].copy_from_slice(&self.base_timestamp.to_be_bytes());
        header[MAX_TIMESTAMP].copy_from_slice(&self.max_timestamp.to_be_bytes());
        header[RECORD_COUNT].copy_from_slice(&self.count.to_be_bytes());
        write_stamp(&mut self.buffer, stamp);
        Ok(EncodedBatch { bytes: self.buffer.freeze(), count: self.count })
    }
}

/// A batch ready for a produce request.
#[derive(Debug, Clone)]
pub(crate) struct EncodedBatch {
    pub(crate) bytes: Bytes,
    /// Records in it.
    pub(crate) count: i32,
}

/// Gives a finished batch another stamp: in place where nobody else holds `bytes`, in a copy where a request still does.
/// `bytes` must be a batch made by [`BatchBuilder::finish`]; anything shorter than a header comes back unchanged.
pub(crate) fn restamp(bytes: Bytes, stamp: Stamp) -> Bytes {
    if bytes.len() < BATCH_HEADER_LEN {
        return bytes;
    }
    let mut buffer = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    write_stamp(&mut buffer, stamp);
    buffer.freeze()
}

/// The buffer of a batch that is no longer needed, emptied, with its capacity; `None` while somebody else holds it.
pub(crate) fn recycle(bytes: Bytes) -> Option<BytesMut> {
    let mut buffer = bytes.try_into_mut().ok()?;
    buffer.clear();
    Some(buffer)
}

/// Writes the stamp and the CRC over a batch that is complete otherwise.
fn write_stamp(batch: &mut BytesMut, stamp: Stamp) {
    let mut attributes =
        i16::from_be_bytes([batch[ATTRIBUTES.start], batch[ATTRIBUTES.start + 1]]) & CODEC_MASK;
    if stamp.transactional {
        attributes |= TRANSACTIONAL;
    }
    batch[ATTRIBUTES].copy_from_slice(&attributes.to_be_bytes());
    batch[PRODUCER_ID].copy_from_slice(&stamp.producer_id.to_be_bytes());
    batch[PRODUCER_EPOCH].copy_from_slice(&stamp.producer_epoch.to_be_bytes());
    batch[BASE_SEQUENCE].copy_from_slice(&stamp.base_sequence.to_be_bytes());
    let crc = crc32c::crc32c(&batch[CRC_COVERS_FROM..]);
    batch[CRC].copy_from_slice(&crc.to_be_bytes());
}

/// The bytes a record takes in a batch, with its length prefix: what the bound is tested against.
#[cfg(test)]
pub(crate) fn record_size(
    offset_delta: i32,
    timestamp_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header],
) -> usize {
    let body = body_size(offset_delta, timestamp_delta, key, value, headers);
    varint_len(body as u64 * 2) + body
}

/// At least the size in a batch of a record with these parts, whatever its offset and timestamp.
#[inline]
pub(crate) fn record_size_bound(key_len: usize, value_len: usize, headers: &[Header]) -> usize {
    // Length, attributes, timestamp, offset, both lengths, header count.
    const FIXED: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
    let parts = FIXED.saturating_add(key_len).saturating_add(value_len);
    headers.iter().fold(parts, |sum, header| {
        sum.saturating_add(10 + header.key.len()).saturating_add(header.value.as_ref().map_or(0, Bytes::len))
    })
}

#[inline]
fn body_size(
    offset_delta: i32,
    timestamp_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header],
) -> usize {
    let fixed = 1 + varint_len(zigzag(timestamp_delta)) + varint_len(zigzag(i64::from(offset_delta)));
    let mut size = fixed + part_size(key) + part_size(value) + varint_len(headers.len() as u64 * 2);
    for header in headers {
        size += part_size(Some(header.key.as_bytes())) + part_size(header.value.as_deref());
    }
    size
}

#[inline]
fn part_size(part: Option<&[u8]>) -> usize {
    part.map_or(1, |part| varint_len(part.len() as u64 * 2) + part.len())
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Bytes of `value` as a varint: its significant bits by seven, rounded up, without a division.
#[inline]
fn varint_len(value: u64) -> usize {
    ((63 - (value | 1).leading_zeros()) as usize * 9 + 73) / 64
}

/// Varints on their way into a buffer, gathered in a register: copying all of it and cutting off what is not used costs
/// less than copying byte by byte, because its length is known when compiling.
struct Varints {
    word: u64,
    /// Bytes used, at most [`Self::LEN`].
    len: usize,
}

impl Varints {
    const LEN: usize = 8;

    #[inline]
    fn new() -> Self {
        Self { word: 0, len: 0 }
    }

    /// Nearly always of one byte or two, which are made without a branch and without a look at the buffer.
    #[inline]
    fn push(&mut self, value: u64, buffer: &mut BytesMut) {
        if value >= 0x4000 || self.len > Self::LEN - 2 {
            return self.push_long(value, buffer);
        }
        let is_longer = u64::from(value >= 0x80);
        self.word |= (value & 0x7f | is_longer << 7 | (value >> 7) << 8) << (8 * self.len);
        self.len += 1 + is_longer as usize;
    }

    /// A part that may be null, whose length is then -1 (zigzag 1).
    #[inline]
    fn push_part(&mut self, part: Option<&[u8]>, buffer: &mut BytesMut) {
        let Some(part) = part else { return self.push(1, buffer) };
        self.push(part.len() as u64 * 2, buffer);
        self.flush(buffer);
        buffer.extend_from_slice(part);
    }

    /// Byte by byte, with a look at the buffer before each.
    #[inline(never)]
    fn push_long(&mut self, mut value: u64, buffer: &mut BytesMut) {
        loop {
            if self.len == Self::LEN {
                self.flush(buffer);
            }
            let is_last = value < 0x80;
            self.word |= (value & 0x7f | u64::from(!is_last) << 7) << (8 * self.len);
            self.len += 1;
            value >>= 7;
            if is_last {
                return;
            }
        }
    }

    #[inline]
    fn flush(&mut self, buffer: &mut BytesMut) {
        let end = buffer.len() + self.len;
        buffer.extend_from_slice(&self.word.to_le_bytes());
        buffer.truncate(end);
        *self = Self::new();
    }
}
