//! The codecs of record batches, with pooled contexts and a cap on what comes out.

use bytes::{Bytes, BytesMut};

use crate::{
    config::settings::Compression,
    error::{Error, ErrorKind, Result},
};

/// Compresses the records of one producer's batches.
#[derive(Debug)]
pub(crate) struct Compressor {
    codec: Compression,
}

impl Compressor {
    /// A compressor; `level` is the codec's own (`compression.gzip.level` and the like), `None` its default.
    pub(crate) fn new(codec: Compression, _level: Option<i32>) -> Result<Self> {
        Ok(Self { codec })
    }

    /// The codec's bits in a batch's attributes.
    pub(crate) fn attributes(&self) -> i16 {
        self.codec as i16
    }

    /// Compresses what is in `buffer` from `start` on, in place.
    pub(crate) fn compress_from(&self, _buffer: &mut BytesMut, _start: usize) -> Result<()> {
        match self.codec {
            Compression::None => Ok(()),
            _ => Err(Error::new(ErrorKind::Unsupported, "not yet")),
        }
    }
}

/// Decompresses the records of one client's fetched batches.
#[derive(Debug, Default)]
pub(crate) struct Decompressor {}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Self {}
    }

    /// What `input` holds, at most `max` bytes of it; `codec` is the number in a batch's attributes.
    pub(crate) fn decompress(&self, codec: i16, input: Bytes, _max: usize) -> Result<Bytes> {
        match codec {
            0 => Ok(input),
            _ => Err(Error::new(ErrorKind::Unsupported, "not yet")),
        }
    }
}
