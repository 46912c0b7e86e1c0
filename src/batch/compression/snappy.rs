//! Snappy: blocks of 32 KiB in the framing of snappy-java ("xerial"), which Java writes; bare blocks are read too.

use super::{damaged, encoding_failed, grow, too_large};
use crate::error::Result;

const CODEC: &str = "snappy";
const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// The magic, then version and lowest compatible version, both 1.
const HEADER_LEN: usize = 16;
const CHUNK_LEN: usize = 32 * 1024;
/// No three bytes of Snappy make more than 64 bytes.
const MAX_RATIO: usize = 22;

pub(super) struct Encoder(snap::raw::Encoder);

impl Encoder {
    pub(super) fn new() -> Self {
        Self(snap::raw::Encoder::new())
    }

    pub(super) fn compress(&mut self, input: &[u8], scratch: &mut Vec<u8>) -> Result<usize> {
        let chunk_bound = snap::raw::max_compress_len(CHUNK_LEN.min(input.len())) + 4;
        grow(scratch, HEADER_LEN + input.len().div_ceil(CHUNK_LEN) * chunk_bound);
        scratch[..8].copy_from_slice(&MAGIC);
        scratch[8..12].copy_from_slice(&1_i32.to_be_bytes());
        scratch[12..16].copy_from_slice(&1_i32.to_be_bytes());
        let mut end = HEADER_LEN;
        for chunk in input.chunks(CHUNK_LEN) {
            let len = self
                .0
                .compress(chunk, &mut scratch[end + 4..])
                .map_err(|cause| encoding_failed(CODEC, cause))?;
            scratch[end..end + 4].copy_from_slice(&(len as u32).to_be_bytes());
            end += 4 + len;
        }
        Ok(end)
    }
}

pub(super) fn decompress(input: &[u8], output: &mut Vec<u8>, max: usize) -> Result<()> {
    let mut end = 0;
    if !input.starts_with(&MAGIC) {
        end = block(input, output, end, max)?
            .ok_or_else(|| too_large(CODEC, input.len(), claimed(input), max))?;
        output.truncate(end);
        return Ok(());
    }
    let mut rest = input;
    while !rest.is_empty() {
        // Streams that were joined bring their header along.
        if rest.starts_with(&MAGIC) {
            rest = rest.get(HEADER_LEN..).ok_or_else(|| damaged(CODEC, "its header is cut off"))?;
            continue;
        }
        let chunk = rest
            .split_first_chunk::<4>()
            .and_then(|(len, after)| after.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?));
        let (chunk, after) = chunk.ok_or_else(|| damaged(CODEC, "a chunk is cut off"))?;
        end = block(chunk, output, end, max)?
            .ok_or_else(|| too_large(CODEC, input.len(), claimed(input), max))?;
        rest = after;
    }
    output.truncate(end);
    Ok(())
}

/// What all blocks say that they hold, as far as they can be walked.
fn claimed(input: &[u8]) -> Option<u64> {
    let len = |block: &[u8]| snap::raw::decompress_len(block).ok().map(|len| len as u64);
    if !input.starts_with(&MAGIC) {
        return len(input);
    }
    let (mut sum, mut rest) = (0_u64, input.get(HEADER_LEN..)?);
    while let Some((chunk_len, after)) = rest.split_first_chunk::<4>() {
        if rest.starts_with(&MAGIC) {
            rest = rest.get(HEADER_LEN..)?;
            continue;
        }
        let (chunk, after) = after.split_at_checked(u32::from_be_bytes(*chunk_len) as usize)?;
        sum = sum.saturating_add(len(chunk)?);
        rest = after;
    }
    Some(sum)
}

/// Decompresses one block to `output` from `at` on and says where it ends; `None` if that is beyond `max`.
fn block(input: &[u8], output: &mut Vec<u8>, at: usize, max: usize) -> Result<Option<usize>> {
    let len = snap::raw::decompress_len(input).map_err(|cause| damaged(CODEC, cause))?;
    // The claim is checked before memory is reserved for it.
    if len > input.len().saturating_mul(MAX_RATIO) {
        return Err(damaged(CODEC, format_args!("{} bytes cannot hold {len}", input.len())));
    }
    if len > max.saturating_sub(at) {
        return Ok(None);
    }
    grow(output, at + len);
    let len = snap::raw::Decoder::new()
        .decompress(input, &mut output[at..at + len])
        .map_err(|cause| damaged(CODEC, cause))?;
    Ok(Some(at + len))
}
