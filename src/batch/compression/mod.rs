//! The codecs of record batches: contexts that are expensive to make are pooled, and what comes out is capped.
//!
//! One [`Compressor`] serves a producer and one [`Decompressor`] a consumer; both are shared by threads and hold a lock
//! only while a context is taken or given back. No codec trusts a length it reads: memory grows with what was really
//! decompressed or with a bound that follows from the length of the input.

mod gzip;
mod lz4;
mod snappy;
mod zstd;

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::RecordSlot;
use crate::{
    config::settings::Compression,
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
};

/// Contexts kept for reuse. If more threads compress at once, the others make fresh ones.
const POOLED: usize = 8;
/// Buffers above this are not kept: one huge batch must not pin its memory for ever.
const POOLED_BUFFER_LEN: usize = 4 << 20;

/// Compresses the records of one producer's batches.
pub(crate) struct Compressor {
    codec: Compression,
    level: i32,
    contexts: Pool<Context>,
}

impl Compressor {
    /// A compressor. `level` is the codec's own (`compression.gzip.level`, `compression.lz4.level`,
    /// `compression.zstd.level`, KIP-390), `None` its default.
    ///
    /// gzip: 1 to 9, default 6 (-1 is the default too). LZ4: 1 to 17 as in Java, without effect: there is one level.
    /// Zstandard: -131072 to 22, default 3; levels from 3 on are the strongest there is here (about C's level 3), those
    /// below -7 are -7.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming what is accepted, for a level outside the codec's range or a codec without levels.
    pub(crate) fn new(codec: Compression, level: Option<i32>) -> Result<Self> {
        let level = match (codec, level) {
            (Compression::Gzip, level) => gzip::level(level.unwrap_or(-1)),
            (Compression::Lz4, level) => Some(0).filter(|_| (1..=17).contains(&level.unwrap_or(9))),
            (Compression::Zstd, level) => zstd::level(level.unwrap_or(3)),
            (Compression::None | Compression::Snappy, level) => Some(0).filter(|_| level.is_none()),
        };
        let Some(level) = level else {
            return Err(Error::new(ErrorKind::Config, format!("{} has no such compression level", name(codec)))
                .with_hint("compression.gzip.level takes 1 to 9, compression.lz4.level 1 to 17, compression.zstd.level -131072 to 22; the others take none"));
        };
        Ok(Self { codec, level, contexts: Pool::default() })
    }

    /// One that can compress nothing.
    #[cfg(test)]
    pub(crate) fn failing() -> Self {
        Self { codec: Compression::Zstd, level: i32::MAX, contexts: Pool::default() }
    }

    /// The codec's bits in a batch's attributes.
    pub(crate) fn attributes(&self) -> i16 {
        match self.codec {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
            Compression::Zstd => 4,
        }
    }

    /// Compresses what is in `buffer` from `start` on, in place: the buffer keeps its capacity for its next batch.
    pub(crate) fn compress_from(&self, buffer: &mut BytesMut, start: usize) -> Result<()> {
        if self.codec == Compression::None {
            return Ok(());
        }
        let mut context = match self.contexts.take() {
            Some(context) => context,
            None => Context::new(self.codec, self.level)?,
        };
        let input = buffer.get(start..).unwrap_or_default();
        let len = context.encoder.compress(input, &mut context.scratch)?;
        buffer.truncate(start);
        buffer.extend_from_slice(&context.scratch[..len]);
        if context.scratch.len() <= POOLED_BUFFER_LEN {
            self.contexts.put(context);
        }
        Ok(())
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("codec", &self.codec).finish_non_exhaustive()
    }
}

/// An encoder and the memory it writes to, whose length only grows, so that it is zeroed once.
struct Context {
    encoder: Encoder,
    scratch: Vec<u8>,
}

#[expect(clippy::large_enum_variant, reason = "a handful exist, each in a pool")]
enum Encoder {
    Gzip(gzip::Encoder),
    Snappy(snappy::Encoder),
    Lz4(lz4::Encoder),
    Zstd(zstd::Encoder),
}

impl Context {
    fn new(codec: Compression, level: i32) -> Result<Self> {
        let encoder = match codec {
            Compression::Gzip => Encoder::Gzip(gzip::Encoder::new(level)),
            Compression::Snappy => Encoder::Snappy(snappy::Encoder::new()),
            Compression::Lz4 => Encoder::Lz4(lz4::Encoder::new()),
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(level)?),
            Compression::None => {
                return Err(Error::new(ErrorKind::InvalidArgument, "no codec to compress with"));
            }
        };
        Ok(Self { encoder, scratch: Vec::new() })
    }
}

impl Encoder {
    /// Compresses `input` to the start of `scratch`, growing it where needed, and says how long the result is.
    fn compress(&mut self, input: &[u8], scratch: &mut Vec<u8>) -> Result<usize> {
        match self {
            Self::Gzip(encoder) => encoder.compress(input, scratch),
            Self::Snappy(encoder) => encoder.compress(input, scratch),
            Self::Lz4(encoder) => encoder.compress(input, scratch),
            Self::Zstd(encoder) => encoder.compress(input, scratch),
        }
    }
}

/// Decompresses the records of one client's fetched batches. A clone shares what is pooled.
#[derive(Clone, Default)]
pub(crate) struct Decompressor(Arc<Pools>);

#[derive(Default)]
struct Pools {
    gzip: Pool<gzip::Decoder>,
    zstd: Pool<zstd::Decoder>,
    buffers: Pool<Vec<u8>>,
    slots: Pool<Vec<RecordSlot>>,
}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// What `input` holds, at most `max` bytes of it; `codec` is the number in a batch's attributes. Input that is not
    /// compressed comes back as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] for data that its codec does not read to the end, and for more than `max` bytes.
    pub(crate) fn decompress(&self, codec: i16, input: Bytes, max: usize) -> Result<Bytes> {
        self.run(codec, input, max, true)
    }

    /// As [`Decompressor::decompress`], for message sets of magic 0 and 1: their LZ4 frames were written with a wrong
    /// header checksum (KAFKA-3160), which is not checked, and Zstandard is later than they are.
    pub(crate) fn decompress_legacy(&self, codec: i16, input: Bytes, max: usize) -> Result<Bytes> {
        if codec == 4 {
            return Err(Error::protocol("a message set of magic 0 or 1 claims to be compressed with zstd"));
        }
        self.run(codec, input, max, false)
    }

    fn run(&self, codec: i16, input: Bytes, max: usize, check_lz4_header: bool) -> Result<Bytes> {
        if codec == 0 {
            return Ok(input);
        }
        let mut output = self.0.buffers.take().unwrap_or_default();
        match codec {
            1 => {
                let mut decoder = self.0.gzip.take().unwrap_or_else(gzip::Decoder::new);
                decoder.decompress(&input, &mut output, max)?;
                self.0.gzip.put(decoder);
            }
            2 => snappy::decompress(&input, &mut output, max)?,
            3 => lz4::decompress(&input, &mut output, max, check_lz4_header)?,
            4 => {
                let mut decoder = self.0.zstd.take().unwrap_or_else(zstd::Decoder::new);
                decoder.decompress(&input, &mut output, max)?;
                self.0.zstd.put(decoder);
            }
            other => {
                return Err(Error::protocol(format!(
                    "a record batch is compressed with the unknown codec {other}"
                ))
                .with_hint("a newer client wrote it; a newer version of this crate may read it"));
            }
        }
        Ok(Bytes::from(output))
    }

    /// Empty slots, with the room of a batch that is done with.
    pub(super) fn slots(&self) -> Vec<RecordSlot> {
        self.0.slots.take().unwrap_or_default()
    }

    /// Takes back the slots of a batch whose records are all gone, and its data if they were decompressed: without
    /// effect while anybody holds a part of it.
    pub(super) fn recycle(&self, mut slots: Vec<RecordSlot>, decompressed: Option<Bytes>) {
        slots.clear();
        if slots.capacity().saturating_mul(size_of::<RecordSlot>()) <= POOLED_BUFFER_LEN {
            self.0.slots.put(slots);
        }
        if let Some(Ok(buffer)) = decompressed.map(Bytes::try_into_mut)
            && buffer.capacity() <= POOLED_BUFFER_LEN
        {
            self.0.buffers.put(Vec::from(buffer));
        }
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

/// A few things worth keeping, taken in any order.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T> Pool<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().pop()
    }

    fn put(&self, item: T) {
        let mut items = self.0.lock();
        if items.len() < POOLED {
            items.push(item);
        }
    }
}

fn name(codec: Compression) -> &'static str {
    match codec {
        Compression::None => "no compression",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

/// Makes `buffer` at least `len` long. What it held before is overwritten by its user, who cuts it when done.
fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

pub(super) const TOO_LARGE_HINT: &str =
    "raise max.decompressed.bytes if such batches are expected, or seek behind the batch to go on without it";

/// `claimed` is what the records say of themselves.
fn too_large(codec: &str, compressed: usize, claimed: Option<u64>, max: usize) -> Error {
    let claimed = match claimed.filter(|claimed| *claimed > max as u64) {
        Some(claimed) => format!(" ({claimed} by their own account)"),
        None => String::new(),
    };
    Error::protocol(format!(
        "the records of a batch, {compressed} bytes of {codec}, decompress to more than the {max} bytes of \
         max.decompressed.bytes{claimed}"
    ))
    .with_hint(TOO_LARGE_HINT)
}

fn damaged(codec: &str, what: impl fmt::Display) -> Error {
    Error::protocol(format!("the {codec} records of a batch cannot be decompressed: {what}"))
}

fn encoding_failed(codec: &str, cause: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the records cannot be compressed with {codec}: {cause}"))
}
