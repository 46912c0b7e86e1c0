//! Record batches: the only code that knows their bytes (KIP-98 batches, magic 2, both ways; message sets, magic 0
//! and 1, for reading).
//!
//! It works on bytes alone and never waits, reads a clock or knows a broker. Bytes that come from the network are
//! checked here once, before anything is handed out: every length against what is left, every count before memory is
//! reserved for it, every decompression against a cap.

pub(crate) mod compression;
mod decode;
mod encode;
mod halve;
mod legacy;

pub(crate) use compression::{Compressor, Decompressor};
pub(crate) use decode::{ControlType, DecodedBatch, Incomplete, RawBatch, RecordSlot, split};
pub(crate) use encode::{BatchBuilder, EncodedBatch, Stamp, record_size_bound, recycle, restamp};
pub(crate) use halve::{split_in_two, without};

use std::ops::Range;

/// Bytes of a batch before its records.
pub(crate) const BATCH_HEADER_LEN: usize = 61;
/// Base offset and length: the part of a batch or message that its own length does not count.
const LOG_OVERHEAD: usize = 12;
const MAGIC_AT: usize = 16;

// Where the fields of a batch header of magic 2 are.
const BASE_OFFSET: Range<usize> = 0..8;
const BATCH_LENGTH: Range<usize> = 8..12;
const LEADER_EPOCH: Range<usize> = 12..16;
const CRC: Range<usize> = 17..21;
const ATTRIBUTES: Range<usize> = 21..23;
const LAST_OFFSET_DELTA: Range<usize> = 23..27;
const BASE_TIMESTAMP: Range<usize> = 27..35;
const MAX_TIMESTAMP: Range<usize> = 35..43;
const PRODUCER_ID: Range<usize> = 43..51;
const PRODUCER_EPOCH: Range<usize> = 51..53;
const BASE_SEQUENCE: Range<usize> = 53..57;
const RECORD_COUNT: Range<usize> = 57..61;
/// The CRC-32C covers everything after itself.
const CRC_COVERS_FROM: usize = 21;

const CODEC_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

#[cfg(test)]
mod tests;
