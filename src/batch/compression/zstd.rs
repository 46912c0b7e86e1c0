//! Zstandard (KIP-110): the only file that names the library, so that it can be replaced.

use zrip_core::DecompressError;
use zrip_decode::context::DecompressContext;
use zrip_encode::context::CompressContext;

use super::{damaged, encoding_failed, grow, too_large};
use crate::error::Result;

const CODEC: &str = "zstd";
/// No block holds more.
const MAX_BLOCK_LEN: usize = 128 * 1024;

/// The level to run for Kafka's `level`; `None` outside Java's range.
pub(super) fn level(level: i32) -> Option<i32> {
    match level {
        -131_072..=-1 => Some(level.max(-7)),
        1 | 2 => Some(level),
        // 0 is Zstandard's default, 3. The library's 3 is weaker than C's, its 4 about equal, and it has nothing above.
        0 | 3..=22 => Some(4),
        _ => None,
    }
}

pub(super) struct Encoder(CompressContext);

impl Encoder {
    pub(super) fn new(level: i32) -> Result<Self> {
        let mut context = CompressContext::new(level).map_err(|cause| encoding_failed(CODEC, cause))?;
        // The batch has a CRC of its own; Java writes none either.
        context.set_content_checksum(false);
        Ok(Self(context))
    }

    pub(super) fn compress(&mut self, input: &[u8], scratch: &mut Vec<u8>) -> Result<usize> {
        grow(scratch, longest_frame(input.len()));
        self.0.compress_into(input, scratch).map_err(|cause| encoding_failed(CODEC, cause))
    }
}

/// A frame's header is at most 18 bytes long, its checksum 4, and each block has 3 of its own; a block that does not get
/// smaller is stored as it is (RFC 8878, section 3.1.1).
fn longest_frame(len: usize) -> usize {
    len + (len / MAX_BLOCK_LEN + 1) * 3 + 22
}

pub(super) struct Decoder(DecompressContext);

impl Decoder {
    pub(super) fn new() -> Self {
        Self(DecompressContext::new())
    }

    /// Every frame of `input`.
    pub(super) fn decompress(&mut self, input: &[u8], output: &mut Vec<u8>, max: usize) -> Result<()> {
        output.clear();
        if usize::BITS < 64 && has_overflowing_frame(input) {
            return Err(damaged(CODEC, "a skippable frame is longer than the batch"));
        }
        let too_large = || too_large(CODEC, input.len(), content_len(input), max);
        // Within a block the library takes its limit for damage. With a block of room beyond ours it meets its own only
        // once ours is passed.
        match self.0.decompress_into_with_limit(input, output, max.saturating_add(MAX_BLOCK_LEN)) {
            Ok(_) if output.len() > max => Err(too_large()),
            Ok(_) => Ok(()),
            Err(DecompressError::OutputTooSmall) => Err(too_large()),
            Err(_) if output.len() > max => Err(too_large()),
            Err(cause) => Err(damaged(CODEC, cause)),
        }
    }
}

/// On 32-bit targets the library adds a skippable frame's length to its header's without a check, and would not move on.
/// Such a length in data that is not one has a chance of 1 in 2^57 per byte.
fn has_overflowing_frame(input: &[u8]) -> bool {
    input.windows(8).any(|window| {
        let (magic, len) = (&window[..4], &window[4..]);
        magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18] && len[0] >= 0xf8 && len[1..] == [0xff; 3]
    })
}

/// What the first frame says that it holds (RFC 8878, section 3.1.1.1).
fn content_len(input: &[u8]) -> Option<u64> {
    let rest = input.strip_prefix(&0xFD2F_B528_u32.to_le_bytes())?;
    let (&descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0b10_0000 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
    let rest = rest.get(usize::from(!single_segment) + dictionary..)?;
    let bytes =
        |len: usize| rest.get(..len).map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
    match descriptor >> 6 {
        0 if single_segment => bytes(1),
        0 => None,
        1 => bytes(2).map(|len| len + 256),
        2 => bytes(4),
        _ => bytes(8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_what_it_holds() {
        for len in [0, 1, 255, 256, 257, 65_791, 65_792, 1 << 20] {
            let frame = zrip_encode::compress(&vec![7; len], 1).unwrap();
            assert_eq!(content_len(&frame), Some(len as u64));
        }
        assert_eq!(content_len(b""), None);
        assert_eq!(content_len(&0xFD2F_B528_u32.to_le_bytes()), None);
    }

    #[test]
    fn a_skippable_frame_whose_length_overflows_32_bits_is_seen_before_the_library_sees_it() {
        let frame = |len: u32| [&0x184D_2A57_u32.to_le_bytes()[..], &len.to_le_bytes()].concat();
        assert!(has_overflowing_frame(&[b"abc".to_vec(), frame(u32::MAX - 7)].concat()));
        assert!(!has_overflowing_frame(&frame(u32::MAX - 8)));
    }
}
