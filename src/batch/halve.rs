//! Making new batches of a batch's records: two halves, for a broker that finds it too large, or one without the records that
//! the broker refuses.

use bytes::{Bytes, BytesMut};

use super::{BatchBuilder, Compressor, DecodedBatch, Decompressor, EncodedBatch, RecordSlot, Stamp, split};
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
    let decoded = decode(batch, decompressor)?;
    let middle = decoded.slots.len() / 2;
    if middle == 0 {
        return Err(Error::protocol("a batch of one record cannot be split"));
    }
    let half = |slots: &[RecordSlot]| build(batch.len() / 2, &decoded, slots.iter(), compressor);
    Ok([half(&decoded.slots[..middle])?, half(&decoded.slots[middle..])?])
}

/// The batch without the records for which `drop` is true, by their place; without a stamp.
///
/// # Errors
/// If nothing would be left, or the bytes are not one batch.
pub(crate) fn without(
    batch: &Bytes,
    drop: impl Fn(usize) -> bool,
    compressor: &Compressor,
    decompressor: &Decompressor,
) -> Result<EncodedBatch> {
    let decoded = decode(batch, decompressor)?;
    let kept = decoded.slots.iter().enumerate().filter(|(place, _)| !drop(*place)).map(|(_, slot)| slot);
    build(batch.len(), &decoded, kept, compressor)
}

fn decode(batch: &Bytes, decompressor: &Decompressor) -> Result<DecodedBatch> {
    let raw = split(batch.clone()).next().ok_or_else(|| Error::protocol("there is no batch"))??;
    // No limit is needed for our own records, which were in memory before.
    raw.decode(false, decompressor, usize::MAX)
}

fn build<'a>(
    capacity: usize,
    decoded: &DecodedBatch,
    slots: impl Iterator<Item = &'a RecordSlot>,
    compressor: &Compressor,
) -> Result<EncodedBatch> {
    let mut builder = BatchBuilder::new(BytesMut::with_capacity(capacity));
    for slot in slots {
        let headers = decoded.owned_headers(slot);
        builder.append(slot.timestamp, decoded.key(slot), decoded.value(slot), &headers);
    }
    builder.finish(Stamp::NONE, compressor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Compression, record::Header};

    #[test]
    fn halves_hold_every_record_in_order() {
        use Compression::{Gzip, Lz4, None as Plain, Snappy, Zstd};
        for codec in [Plain, Gzip, Snappy, Lz4, Zstd] {
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
    fn a_batch_without_some_records_has_the_others_in_order() {
        let (compressor, decompressor) =
            (Compressor::new(Compression::None, None).unwrap(), Decompressor::new());
        let mut builder = BatchBuilder::new(BytesMut::new());
        for i in 0..5 {
            builder.append(1000 + i, None, Some(&[i as u8]), &[]);
        }
        let whole = builder.finish(Stamp::NONE, &compressor).unwrap().bytes;
        let kept = without(&whole, |place| place % 2 == 1, &compressor, &decompressor).unwrap();
        let decoded =
            split(kept.bytes).next().unwrap().unwrap().decode(true, &decompressor, 1 << 20).unwrap();
        let seen: Vec<_> =
            decoded.slots.iter().map(|slot| (slot.timestamp, decoded.value(slot).unwrap()[0])).collect();
        assert_eq!((kept.count, seen), (3, vec![(1000, 0), (1002, 2), (1004, 4)]));
        assert!(without(&whole, |_| true, &compressor, &decompressor).is_err());
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
