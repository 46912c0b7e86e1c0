//! Cutting a batch in two, for a broker that finds it too large.

use bytes::{Bytes, BytesMut};

use super::{BatchBuilder, Compressor, Decompressor, EncodedBatch, Stamp, split};
use crate::error::{Error, Result};

/// The first and the second half of a batch's records, each a batch without a stamp.
///
/// # Errors
/// If the bytes are not one batch of two records or more; they are our own, so that would be a bug, not bad input.
pub(crate) fn split_in_two(
    batch: &Bytes,
    compressor: &Compressor,
    decompressor: &Decompressor,
) -> Result<[EncodedBatch; 2]> {
    let raw = split(batch.clone()).next().ok_or_else(|| Error::protocol("the batch to split is empty"))??;
    // Our own records: as large as they are, they were in memory before.
    let decoded = raw.decode(false, decompressor, usize::MAX)?;
    let middle = decoded.slots.len() / 2;
    if middle == 0 {
        return Err(Error::protocol("a batch of one record cannot be split"));
    }
    let half = |slots: &[super::RecordSlot]| {
        let mut builder = BatchBuilder::new(BytesMut::with_capacity(batch.len() / 2));
        for slot in slots {
            let headers = decoded.owned_headers(slot);
            builder.append(slot.timestamp, decoded.key(slot), decoded.value(slot), &headers);
        }
        builder.finish(Stamp::NONE, compressor)
    };
    Ok([half(&decoded.slots[..middle])?, half(&decoded.slots[middle..])?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Compression, record::Header};

    #[test]
    fn halves_hold_every_record_in_order() {
        for codec in [Compression::None, Compression::Lz4] {
            let (compressor, decompressor) = (Compressor::new(codec, None).unwrap(), Decompressor::new());
            let mut builder = BatchBuilder::new(BytesMut::new());
            for i in 0..7_i64 {
                builder.append(1000 + i, Some(b"k"), Some(&[i as u8]), &[Header::new("h", vec![i as u8])]);
            }
            let whole = builder.finish(Stamp::NONE, &compressor).unwrap();
            let halves = split_in_two(&whole.bytes, &compressor, &decompressor).unwrap();
            let mut seen = Vec::new();
            for half in &halves {
                let raw = split(half.bytes.clone()).next().unwrap().unwrap();
                let decoded = raw.decode(true, &decompressor, 1 << 20).unwrap();
                for slot in &decoded.slots {
                    seen.push((
                        slot.timestamp,
                        decoded.value(slot).unwrap()[0],
                        decoded.owned_headers(slot).len(),
                    ));
                }
            }
            assert_eq!(seen, (0..7).map(|i| (1000 + i, i as u8, 1)).collect::<Vec<_>>());
            assert_eq!((halves[0].count, halves[1].count), (3, 4));
        }
    }

    #[test]
    fn one_record_cannot_be_split() {
        let compressor = Compressor::new(Compression::None, None).unwrap();
        let mut builder = BatchBuilder::new(BytesMut::new());
        builder.append(0, None, None, &[]);
        let batch = builder.finish(Stamp::NONE, &compressor).unwrap();
        assert!(split_in_two(&batch.bytes, &compressor, &Decompressor::new()).is_err());
    }
}
