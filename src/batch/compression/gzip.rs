//! gzip (RFC 1952) around raw deflate: its state is reused for every batch, which the library's own gzip readers and
//! writers do not allow.

use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};

use super::{damaged, encoding_failed, grow, too_large};
use crate::error::{Error, Result};

const CODEC: &str = "gzip";
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
const TRAILER_LEN: usize = 8;

/// The level to run for Kafka's `level`; `None` outside 1 to 9 and -1.
pub(super) fn level(level: i32) -> Option<i32> {
    match level {
        -1 => Some(6),
        // zlib-rs's 1 is zlib-ng's quick mode, which compresses far worse than zlib's; its 2 is still faster than zlib's 1.
        1 => Some(2),
        2..=9 => Some(level),
        _ => None,
    }
}

pub(super) struct Encoder(Compress);

impl Encoder {
    pub(super) fn new(level: i32) -> Self {
        Self(Compress::new(Compression::new(level.unsigned_abs()), false))
    }

    pub(super) fn compress(&mut self, input: &[u8], scratch: &mut Vec<u8>) -> Result<usize> {
        self.0.reset();
        grow(scratch, input.len() + input.len() / 16 + 256);
        scratch[..HEADER.len()].copy_from_slice(&HEADER);
        loop {
            let (read, written) = (self.0.total_in() as usize, HEADER.len() + self.0.total_out() as usize);
            let status = self
                .0
                .compress(&input[read..], &mut scratch[written..], FlushCompress::Finish)
                .map_err(|cause| encoding_failed(CODEC, cause))?;
            let end = HEADER.len() + self.0.total_out() as usize;
            if status == Status::StreamEnd {
                grow(scratch, end + TRAILER_LEN);
                scratch[end..end + 4].copy_from_slice(&crc(input).to_le_bytes());
                scratch[end + 4..end + 8].copy_from_slice(&(input.len() as u32).to_le_bytes());
                return Ok(end + TRAILER_LEN);
            }
            let longer = scratch.len() * 2;
            grow(scratch, longer);
        }
    }
}

pub(super) struct Decoder(Decompress);

impl Decoder {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
    }

    /// Every member of `input`, as Java reads them.
    pub(super) fn decompress(&mut self, whole: &[u8], output: &mut Vec<u8>, max: usize) -> Result<()> {
        output.clear();
        let mut input = whole;
        // The last member's own length is a good guess; what a forged one can reserve is bounded by the input.
        let claimed = input.last_chunk().map_or(0, |tail| u32::from_le_bytes(*tail) as usize);
        output.reserve(claimed.min(input.len().saturating_mul(32)).min(max) + 64);
        loop {
            input = skip_header(input).ok_or_else(|| damaged(CODEC, "its header is not gzip's"))?;
            let start = output.len();
            let Some(read) = self.member(input, output, max)? else {
                let claimed = whole.last_chunk().map(|tail| u64::from(u32::from_le_bytes(*tail)));
                return Err(too_large(CODEC, whole.len(), claimed, max));
            };
            let trailer = input.get(read..read + TRAILER_LEN).ok_or_else(truncated)?;
            let body = &output[start..];
            let sum = [crc(body).to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
            if trailer != sum {
                return Err(damaged(CODEC, "its checksum or length is wrong"));
            }
            input = &input[read + TRAILER_LEN..];
            if input.is_empty() {
                return Ok(());
            }
        }
    }

    /// How much of the input the member takes; `None` if it is beyond `max`.
    fn member(&mut self, input: &[u8], output: &mut Vec<u8>, max: usize) -> Result<Option<usize>> {
        self.0.reset(false);
        loop {
            if output.len() == output.capacity() {
                // Doubled, but no further than a byte beyond the limit.
                let left = max.saturating_sub(output.len()).saturating_add(1);
                output.reserve_exact(output.len().max(4096).min(left));
            }
            let before = (self.0.total_in(), self.0.total_out());
            let status = self
                .0
                .decompress_vec(&input[before.0 as usize..], output, FlushDecompress::None)
                .map_err(|cause| damaged(CODEC, cause))?;
            if output.len() > max {
                return Ok(None);
            }
            if status == Status::StreamEnd {
                return Ok(Some(self.0.total_in() as usize));
            }
            // Room was left and nothing moved: the input ends too early.
            if before == (self.0.total_in(), self.0.total_out()) && output.len() < output.capacity() {
                return Err(truncated());
            }
        }
    }
}

fn truncated() -> Error {
    damaged(CODEC, "it ends too early")
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// What follows a member's header, whose optional fields are skipped.
fn skip_header(input: &[u8]) -> Option<&[u8]> {
    let (fixed, mut rest) = input.split_first_chunk::<10>()?;
    let flags = fixed[3];
    if fixed[..3] != HEADER[..3] || flags & 0xe0 != 0 {
        return None;
    }
    if flags & 4 != 0 {
        let (len, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [8, 16] {
        if flags & text != 0 {
            rest = &rest[rest.iter().position(|byte| *byte == 0)? + 1..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(content: &[u8]) -> Vec<u8> {
        let mut scratch = Vec::new();
        let len = Encoder::new(6).compress(content, &mut scratch).unwrap();
        scratch.truncate(len);
        scratch
    }

    #[test]
    fn joined_members_and_optional_header_fields_are_read() {
        let (first, second) = (member(b"hello "), member(b"world"));
        let fields = [&[0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3, 2, 0][..], b"exname\0comment\0##"].concat();
        let input = [&fields, &first[10..], &second].concat();
        let mut output = Vec::new();
        Decoder::new().decompress(&input, &mut output, 11).unwrap();
        assert_eq!(output, b"hello world");
    }

    #[test]
    fn a_member_cut_or_changed_behind_its_header_is_an_error() {
        let good = member(&b"some text, some more text, and some more".repeat(20));
        let mut output = Vec::new();
        for at in 10..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 0x55;
            assert!(Decoder::new().decompress(&changed, &mut output, 1 << 20).is_err(), "changed at {at}");
            assert!(Decoder::new().decompress(&good[..at], &mut output, 1 << 20).is_err(), "cut at {at}");
        }
    }
}
