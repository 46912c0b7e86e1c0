//! LZ4 frames (version 1.6 of the format) over a block codec: strict about their ends and checksums, which the block
//! library's own frame reader is not.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, decompress_into_with_dict,
    get_maximum_output_size,
};
use twox_hash::XxHash32;

use super::{damaged, encoding_failed, grow, too_large};
use crate::error::{Error, Result};

const CODEC: &str = "lz4";
const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Room for this ratio is tried first; text as a rule shrinks by less.
const USUAL_RATIO: usize = 6;
const BLOCK_LEN: usize = 64 * 1024;
/// Version 1, independent blocks, no checksums: the batch has its own. Blocks of 64 KiB. Java writes the same.
const DESCRIPTOR: [u8; 2] = [0x60, 0x40];
/// In a block's length: the block is stored as it is.
const STORED: u32 = 1 << 31;
/// How far back a block may refer into the one before.
const WINDOW: usize = 64 * 1024;
/// One byte of LZ4 makes at most 255.
const MAX_RATIO: usize = 255;

pub(super) struct Encoder(CompressTable);

impl Encoder {
    pub(super) fn new() -> Self {
        Self(CompressTable::default())
    }

    pub(super) fn compress(&mut self, input: &[u8], scratch: &mut Vec<u8>) -> Result<usize> {
        let block_bound = get_maximum_output_size(BLOCK_LEN.min(input.len())) + 4;
        grow(scratch, 7 + input.len().div_ceil(BLOCK_LEN) * block_bound + 4);
        scratch[..4].copy_from_slice(&MAGIC);
        scratch[4..6].copy_from_slice(&DESCRIPTOR);
        scratch[6] = header_checksum(&DESCRIPTOR);
        let mut end = 7;
        for block in input.chunks(BLOCK_LEN) {
            let len = compress_into_with_table(block, &mut scratch[end + 4..], &mut self.0)
                .map_err(|cause| encoding_failed(CODEC, cause))?;
            let (len, flag) = if len < block.len() {
                (len, 0)
            } else {
                scratch[end + 4..end + 4 + block.len()].copy_from_slice(block);
                (block.len(), STORED)
            };
            scratch[end..end + 4].copy_from_slice(&(len as u32 | flag).to_le_bytes());
            end += 4 + len;
        }
        scratch[end..end + 4].copy_from_slice(&0_u32.to_le_bytes());
        Ok(end + 4)
    }
}

/// Every frame of `input`. `check_header` is false for old message sets, whose header checksum is wrong.
pub(super) fn decompress(input: &[u8], output: &mut Vec<u8>, max: usize, check_header: bool) -> Result<()> {
    let mut cursor = Cursor(input);
    let mut end = 0;
    loop {
        end = frame(&mut cursor, output, end, max, check_header)?;
        if cursor.0.is_empty() {
            output.truncate(end);
            return Ok(());
        }
    }
}

struct Descriptor {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    content_len: Option<u64>,
    block_max: usize,
}

fn frame(
    cursor: &mut Cursor<'_>,
    output: &mut Vec<u8>,
    start: usize,
    max: usize,
    check: bool,
) -> Result<usize> {
    let input_len = cursor.0.len();
    let descriptor = read_descriptor(cursor, check)?;
    let too_large = || too_large(CODEC, input_len, descriptor.content_len, max);
    let mut end = start;
    loop {
        let word = cursor.u32()?;
        if word == 0 {
            break;
        }
        let block = cursor.take((word & !STORED) as usize)?;
        if descriptor.block_checksums && cursor.u32()? != XxHash32::oneshot(0, block) {
            return Err(damaged(CODEC, "a block's checksum is wrong"));
        }
        let done = if word & STORED == 0 {
            compressed_block(block, output, start, end, max, &descriptor)?
        } else {
            stored_block(block, output, end, max, &descriptor)?
        };
        end = done.ok_or_else(too_large)?;
    }
    if descriptor.content_checksum && cursor.u32()? != XxHash32::oneshot(0, &output[start..end]) {
        return Err(damaged(CODEC, "its checksum is wrong"));
    }
    if descriptor.content_len.is_some_and(|len| len != (end - start) as u64) {
        return Err(damaged(CODEC, "its length is not what its header says"));
    }
    Ok(end)
}

fn read_descriptor(cursor: &mut Cursor<'_>, check: bool) -> Result<Descriptor> {
    if cursor.take(4)? != MAGIC {
        return Err(damaged(CODEC, "its magic is not an LZ4 frame's"));
    }
    let from = cursor.0;
    let (flags, block) = (cursor.take(1)?[0], cursor.take(1)?[0]);
    let size_code = block >> 4;
    if flags >> 6 != 1 || flags & 0b11 != 0 || block & 0x8f != 0 || !(4..=7).contains(&size_code) {
        return Err(damaged(CODEC, format_args!("its descriptor {flags:#04x} {block:#04x} is not known")));
    }
    let content_len = if flags & 0b1000 == 0 {
        None
    } else {
        Some(u64::from(cursor.u32()?) | u64::from(cursor.u32()?) << 32)
    };
    let described = &from[..from.len() - cursor.0.len()];
    if cursor.take(1)?[0] != header_checksum(described) && check {
        return Err(damaged(CODEC, "its header's checksum is wrong"));
    }
    Ok(Descriptor {
        linked: flags & 0b10_0000 == 0,
        block_checksums: flags & 0b1_0000 != 0,
        content_checksum: flags & 0b100 != 0,
        content_len,
        block_max: 1 << (8 + 2 * size_code),
    })
}

/// Where the block ends in the output; `None` if that is beyond `max`.
fn compressed_block(
    block: &[u8],
    output: &mut Vec<u8>,
    start: usize,
    end: usize,
    max: usize,
    descriptor: &Descriptor,
) -> Result<Option<usize>> {
    let left = max.saturating_sub(end);
    let most = descriptor.block_max.min(block.len().saturating_mul(MAX_RATIO));
    // A block may hold 4 MiB and mostly holds little: zeroing room for all of it cost more than decompressing.
    let mut room = block.len().saturating_mul(USUAL_RATIO).min(most).min(left);
    loop {
        grow(output, end + room);
        let (before, after) = output.split_at_mut(end);
        let result = if descriptor.linked {
            let window = &before[start.max(end.saturating_sub(WINDOW))..];
            decompress_into_with_dict(block, &mut after[..room], window)
        } else {
            decompress_into(block, &mut after[..room])
        };
        match result {
            Ok(len) => return Ok(Some(end + len)),
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room < most.min(left) => {
                room = room.saturating_mul(4).min(most).min(left);
            }
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if left < most => {
                return Ok(None);
            }
            Err(cause) => return Err(damaged(CODEC, cause)),
        }
    }
}

/// As [`compressed_block`].
fn stored_block(
    block: &[u8],
    output: &mut Vec<u8>,
    end: usize,
    max: usize,
    descriptor: &Descriptor,
) -> Result<Option<usize>> {
    if block.len() > descriptor.block_max {
        return Err(damaged(CODEC, "a block is longer than its header allows"));
    }
    if block.len() > max.saturating_sub(end) {
        return Ok(None);
    }
    grow(output, end + block.len());
    output[end..end + block.len()].copy_from_slice(block);
    Ok(Some(end + block.len()))
}

fn header_checksum(descriptor: &[u8]) -> u8 {
    (XxHash32::oneshot(0, descriptor) >> 8) as u8
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        let (taken, rest) = self.0.split_first_chunk::<4>().ok_or_else(truncated)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }
}

fn truncated() -> Error {
    damaged(CODEC, "it ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as other clients may write it: linked blocks, one of them stored, with every checksum and its length.
    fn full_frame() -> (Vec<u8>, Vec<u8>) {
        let parts: [Vec<u8>; 3] = [1, 3, 7].map(|step| (0..600).map(|at| (at * step % 256) as u8).collect());
        let content = parts.concat();
        let blocks = [
            (lz4_flex::block::compress(&parts[0]), 0),
            (parts[1].clone(), STORED),
            (lz4_flex::block::compress_with_dict(&parts[2], &content[..1200]), 0),
        ];
        let descriptor = [&[0x5c, 0x40][..], &(content.len() as u64).to_le_bytes()].concat();
        let mut frame = [&MAGIC[..], &descriptor, &[header_checksum(&descriptor)]].concat();
        for (block, flag) in blocks {
            frame.extend((block.len() as u32 | flag).to_le_bytes());
            frame.extend(&block);
            frame.extend(XxHash32::oneshot(0, &block).to_le_bytes());
        }
        frame.extend([0; 4]);
        frame.extend(XxHash32::oneshot(0, &content).to_le_bytes());
        (frame, content)
    }

    fn run(frame: &[u8], check: bool) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        decompress(frame, &mut output, 1 << 20, check).map(|()| output)
    }

    #[test]
    fn linked_and_stored_blocks_checksums_and_joined_frames_are_read() {
        let (frame, content) = full_frame();
        assert_eq!(run(&frame, true).unwrap(), content);
        assert_eq!(run(&frame.repeat(2), true).unwrap(), content.repeat(2));
    }

    #[test]
    fn a_block_that_shrank_far_more_than_usual_is_read() {
        let content = vec![b'x'; 3 << 20];
        let block = lz4_flex::block::compress(&content);
        assert!(content.len() > 100 * block.len());
        let descriptor = [0x60, 0x70];
        let mut frame = [&MAGIC[..], &descriptor, &[header_checksum(&descriptor)]].concat();
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(&block);
        frame.extend([0; 4]);
        let mut output = Vec::new();
        decompress(&frame, &mut output, 4 << 20, true).unwrap();
        assert!(output == content);
        assert!(decompress(&frame, &mut Vec::new(), 2 << 20, true).is_err(), "the cap holds");
    }

    #[test]
    fn a_frame_cut_anywhere_or_changed_anywhere_is_an_error() {
        let (frame, _) = full_frame();
        for at in 0..frame.len() {
            assert!(run(&frame[..at], true).is_err(), "cut at {at}");
            let mut changed = frame.clone();
            changed[at] ^= 0x11;
            assert!(run(&changed, true).is_err(), "changed at {at}");
        }
        assert!(run(&[&frame[..], b"x"].concat(), true).is_err());
    }

    #[test]
    fn the_wrong_header_checksum_of_old_message_sets_is_not_looked_at_there() {
        let (mut frame, content) = full_frame();
        frame[14] ^= 1;
        assert!(run(&frame, true).is_err());
        assert_eq!(run(&frame, false).unwrap(), content);
    }
}
