//! Record batches that no broker would make. Written by hand: what writes good ones refuses these.

use std::io::Write;

use bytes::Bytes;

/// Kafka's numbers of the codecs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

fn varint(value: i64, out: &mut Vec<u8>) {
    let mut left = ((value << 1) ^ (value >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// A record of so many zeros.
fn record(delta: i64, zeros: usize, out: &mut Vec<u8>) {
    let mut body = vec![0, 0];
    varint(delta, &mut body);
    varint(-1, &mut body);
    varint(zeros as i64, &mut body);
    varint((body.len() + zeros + 1) as i64, out);
    out.append(&mut body);
    out.resize(out.len() + zeros, 0);
    out.push(0);
}

/// `count` records of `zeros` bytes each, of which the batch says that they are `claimed`.
pub(crate) fn batch(codec: Codec, count: usize, zeros: usize, claimed: i32) -> Bytes {
    let mut records = Vec::new();
    for delta in 0..count {
        record(delta as i64, zeros, &mut records);
    }
    let records = compress(codec, &records);
    let mut after_crc = Vec::with_capacity(records.len() + 40);
    after_crc.extend((codec as i16).to_be_bytes());
    after_crc.extend((claimed - 1).to_be_bytes());
    after_crc.extend(1_700_000_000_000i64.to_be_bytes());
    after_crc.extend(1_700_000_000_000i64.to_be_bytes());
    after_crc.extend((-1i64).to_be_bytes());
    after_crc.extend((-1i16).to_be_bytes());
    after_crc.extend((-1i32).to_be_bytes());
    after_crc.extend(claimed.to_be_bytes());
    after_crc.extend(records);
    let mut batch = 0i64.to_be_bytes().to_vec();
    batch.extend((after_crc.len() as i32 + 9).to_be_bytes());
    batch.extend(0i32.to_be_bytes());
    batch.push(2);
    batch.extend(crc32c::crc32c(&after_crc).to_be_bytes());
    batch.extend(after_crc);
    batch.into()
}

fn compress(codec: Codec, bytes: &[u8]) -> Vec<u8> {
    match codec {
        Codec::None => bytes.to_vec(),
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Snappy => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
        Codec::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Zstd => zrip_encode::compress(bytes, 1).unwrap(),
    }
}

/// The batch at another offset, which its CRC does not cover.
pub(crate) fn at(batch: &Bytes, offset: i64) -> Vec<u8> {
    let mut bytes = batch.to_vec();
    bytes[..8].copy_from_slice(&offset.to_be_bytes());
    bytes
}
