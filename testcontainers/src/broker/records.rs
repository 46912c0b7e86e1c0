//! Reads stored batches for test checks and for look-ups by time, with kafka-protocol's codec and decompressors that
//! are not the client's, so that one bug cannot cancel itself.

use std::io::Read;

use bytes::Bytes;
use kafka_protocol::records::{Compression, Record, RecordBatchDecoder};

use super::log::Batch;

/// No batch of a test decompresses to more.
const MAX_DECOMPRESSED: u64 = 256 * 1024 * 1024;
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";

/// Decodes one batch.
pub(super) fn decode(batch: &Batch) -> Result<Vec<Record>, String> {
    let mut bytes = batch.to_bytes();
    let unpack = |packed: &mut Bytes, how: Compression| Ok(decompress(packed, how)?);
    let set = RecordBatchDecoder::decode_with_custom_compression(&mut bytes, Some(unpack))
        .map_err(|error| format!("batch at offset {}: {error:#}", batch.base_offset))?;
    Ok(set.records)
}

/// Decompresses by the codec's number in a batch's attributes.
pub(super) fn unpack(packed: &Bytes, codec: i16) -> std::io::Result<Bytes> {
    let how = match codec {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Snappy,
        3 => Compression::Lz4,
        4 => Compression::Zstd,
        _ => return Err(std::io::Error::other(format!("codec {codec}"))),
    };
    decompress(packed, how)
}

fn decompress(packed: &Bytes, how: Compression) -> std::io::Result<Bytes> {
    let all = |reader: &mut dyn Read| -> std::io::Result<Bytes> {
        let mut out = Vec::new();
        reader.take(MAX_DECOMPRESSED).read_to_end(&mut out)?;
        Ok(out.into())
    };
    match how {
        Compression::None => Ok(packed.clone()),
        Compression::Gzip => all(&mut flate2::read::MultiGzDecoder::new(&packed[..])),
        Compression::Lz4 => all(&mut lz4_flex::frame::FrameDecoder::new(&packed[..])),
        Compression::Zstd => {
            let reader = ruzstd::decoding::StreamingDecoder::new(&packed[..]);
            all(&mut reader.map_err(std::io::Error::other)?)
        }
        Compression::Snappy => snappy(packed),
    }
}

/// Java frames snappy as xerial's blocks; other clients send one bare block.
fn snappy(packed: &Bytes) -> std::io::Result<Bytes> {
    let block = |bytes: &[u8]| {
        let size = snap::raw::decompress_len(bytes)?;
        if size as u64 > MAX_DECOMPRESSED {
            return Err(std::io::Error::other("snappy block too large"));
        }
        Ok(snap::raw::Decoder::new().decompress_vec(bytes)?)
    };
    if !packed.starts_with(XERIAL_MAGIC) {
        return block(packed).map(Bytes::from);
    }
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut rest = packed.get(16..).ok_or_else(cut)?;
    let mut out = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_be_bytes(*size) as usize;
        out.extend(block(after.get(..size).ok_or_else(cut)?)?);
        rest = &after[size..];
    }
    Ok(out.into())
}
