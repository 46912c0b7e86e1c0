//! Writing record batches: records are encoded straight into the buffer that goes to the socket.
//!
//! Nothing is allocated, locked or counted atomically per record: the producer's speed is decided here. This file never
//! decides when a batch is full or sent.

use bytes::{BufMut as _, Bytes, BytesMut};

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
        let deltas = [zigzag(timestamp_delta), zigzag(i64::from(self.count))];
        let lengths = [length_of(key), length_of(value)];
        let (key_bytes, value_bytes) = (key.unwrap_or_default(), value.unwrap_or_default());

        // Before the key stand the attributes (none are defined), both deltas and its length.
        let head = Short::new(0).then(deltas[0]).then(deltas[1]).then(lengths[0]);
        let middle = Short::new(lengths[1]);
        let body = head.len + key_bytes.len() + middle.len + value_bytes.len() + headers_size(headers);
        let length = body as u64 * 2; // zigzag of a length is its double
        if (deltas[0] | deltas[1] | lengths[0] | lengths[1] | length) < Short::END {
            let length = Short::new(length);
            let prefix = u128::from(length.bytes) | u128::from(head.bytes) << (8 * length.len);
            put(&mut self.buffer, prefix.to_le_bytes(), length.len + head.len);
            self.buffer.extend_from_slice(key_bytes);
            put(&mut self.buffer, middle.bytes.to_le_bytes(), middle.len);
            self.buffer.extend_from_slice(value_bytes);
        } else {
            let body = body_size(self.count, timestamp_delta, key, value, headers);
            // Once, or the bytes behind a large value would double its buffer.
            self.buffer.reserve(5 + body);
            put_long(&mut self.buffer, [body as u64 * 2, 0, deltas[0], deltas[1]], key, value);
        }
        put_varint(&mut self.buffer, headers.len() as u64 * 2);
        for header in headers {
            put_part(&mut self.buffer, Some(header.key.as_bytes()));
            put_part(&mut self.buffer, header.value.as_deref());
        }
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

fn body_size(
    offset_delta: i32,
    timestamp_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header],
) -> usize {
    let fixed = 1 + varint_len(zigzag(timestamp_delta)) + varint_len(zigzag(i64::from(offset_delta)));
    fixed + part_size(key) + part_size(value) + headers_size(headers)
}

#[inline]
fn headers_size(headers: &[Header]) -> usize {
    headers.iter().fold(varint_len(headers.len() as u64 * 2), |size, header| {
        size + part_size(Some(header.key.as_bytes())) + part_size(header.value.as_deref())
    })
}

#[inline]
fn part_size(part: Option<&[u8]>) -> usize {
    varint_len(length_of(part)) + part.map_or(0, <[u8]>::len)
}

/// What stands for the length of a part: -1 (zigzag 1) for null.
#[inline]
fn length_of(part: Option<&[u8]>) -> u64 {
    part.map_or(1, |part| part.len() as u64 * 2)
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

/// Varints of one byte or two each, one after the other in a register: made without a branch, and copied all at once.
#[derive(Clone, Copy)]
struct Short {
    bytes: u64,
    len: usize,
}

impl Short {
    /// Nearly every field of a record is less; of one that is not, nothing here is right.
    const END: u64 = 0x4000;

    #[inline]
    fn new(value: u64) -> Self {
        let is_longer = u64::from(value >= 0x80);
        Self { bytes: value & 0x7f | is_longer << 7 | (value & !0x7f) << 1, len: 1 + is_longer as usize }
    }

    /// With another behind it; there is room for four.
    #[inline]
    fn then(self, value: u64) -> Self {
        let next = Self::new(value);
        Self { bytes: self.bytes | next.bytes << (8 * self.len), len: self.len + next.len }
    }
}

/// Adds the first `len` of the bytes: copying them all and cutting off the rest costs less than copying some, because their
/// number is known when compiling.
#[inline]
fn put<const N: usize>(buffer: &mut BytesMut, bytes: [u8; N], len: usize) {
    let end = buffer.len() + len;
    buffer.extend_from_slice(&bytes);
    buffer.truncate(end);
}

/// A record up to its headers: fields of any size, and the parts.
#[inline(never)]
fn put_long(buffer: &mut BytesMut, fields: [u64; 4], key: Option<&[u8]>, value: Option<&[u8]>) {
    for field in fields {
        put_varint(buffer, field);
    }
    put_part(buffer, key);
    put_part(buffer, value);
}

/// A part that may be null.
fn put_part(buffer: &mut BytesMut, part: Option<&[u8]>) {
    put_varint(buffer, length_of(part));
    buffer.extend_from_slice(part.unwrap_or_default());
}

#[inline]
fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}
