//! Reading message sets of magic 0 and 1, which brokers before 0.11 wrote and old logs still hold. Never writes any.

use bytes::Bytes;

use super::{
    Decompressor,
    decode::{DecodedBatch, RawBatch, RecordSlot, corrupt},
};
use crate::error::Result;

/// The shortest message of that magic, with its offset and length.
pub(super) fn min_len(magic: u8) -> usize {
    // offset, length, CRC, magic, attributes, (timestamp), key length, value length
    if magic == 0 { 26 } else { 34 }
}

pub(super) fn parse(bytes: Bytes) -> Result<RawBatch> {
    Err(corrupt(super::decode::i64_at(&bytes, 0), "message sets are not read yet".into()))
}

pub(super) fn decode(
    batch: &RawBatch,
    _check_crc: bool,
    _decompressor: &Decompressor,
    _max_decompressed: usize,
    _slots: Vec<RecordSlot>,
) -> Result<DecodedBatch> {
    Err(corrupt(batch.base_offset, "message sets are not read yet".into()))
}
