//! Log compaction as Apache Kafka's cleaner does it: of each key the newest record stays, the others leave gaps in the
//! offsets; batches that lose all their records go, but for the last one of a producer, which stays empty.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::log::{Incoming, PartitionLog};
use super::records;

/// One record as it stands in its batch, and its key.
struct Raw {
    bytes: Bytes,
    offset: i64,
    key: Option<Bytes>,
}

/// Compacts everything that is decided and not in a transaction. Records without a key stay.
pub(super) fn compact(log: &mut PartitionLog) -> Result<(), String> {
    let end = log.last_stable_offset();
    let mut parsed: BTreeMap<i64, Vec<Raw>> = BTreeMap::new();
    let mut newest: BTreeMap<Bytes, i64> = BTreeMap::new();
    for batch in log.batches_from(0).iter().filter(|b| b.last_offset < end && b.is_plain()) {
        let (packed, codec) = batch.payload();
        let payload = records::unpack(&packed, codec).map_err(|e| e.to_string())?;
        let raw = split(&payload, batch.base_offset).ok_or("a record is cut short")?;
        for record in &raw {
            if let Some(key) = &record.key {
                newest.insert(key.clone(), record.offset);
            }
        }
        parsed.insert(batch.base_offset, raw);
    }
    let last_of_producers = log.last_batches();
    log.batches_mut().retain_mut(|batch| {
        let Some(raw) = parsed.get(&batch.base_offset) else { return true };
        let stays = |r: &&Raw| r.key.as_ref().is_none_or(|key| newest.get(key) == Some(&r.offset));
        let kept: Vec<&Raw> = raw.iter().filter(stays).collect();
        if kept.len() < raw.len() {
            let payload: Vec<u8> = kept.iter().flat_map(|r| r.bytes.iter().copied()).collect();
            batch.keep_only(&payload, i32::try_from(kept.len()).unwrap_or(i32::MAX));
        }
        !kept.is_empty() || last_of_producers.contains(&batch.base_offset)
    });
    Ok(())
}

/// The records without a key, by their place in the batch: a compacted topic takes none (KIP-467 names them).
pub(super) fn without_key(batch: &Incoming) -> Vec<i32> {
    let (packed, codec) = batch.payload();
    let raw = records::unpack(&packed, codec).ok().and_then(|payload| split(&payload, 0)).unwrap_or_default();
    (0..).zip(raw).filter(|(_, record)| record.key.is_none()).map(|(index, _)| index).collect()
}

/// Cuts an uncompressed payload into its records.
fn split(payload: &Bytes, base_offset: i64) -> Option<Vec<Raw>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let (size, body) = varint(payload, at)?;
        let end = body.checked_add(usize::try_from(size).ok()?)?;
        let bytes = payload.get(at..end)?;
        // Attributes (one byte), timestamp delta, offset delta, key.
        let (_, next) = varint(payload, body + 1)?;
        let (delta, next) = varint(payload, next)?;
        let (length, next) = varint(payload, next)?;
        let key = match usize::try_from(length) {
            Ok(length) => Some(payload.slice_ref(payload.get(next..next.checked_add(length)?)?)),
            Err(_) => None,
        };
        records.push(Raw { bytes: payload.slice_ref(bytes), offset: base_offset + delta, key });
        at = end;
    }
    Some(records)
}

/// A zigzag varint, and where it ends.
pub(super) fn varint(bytes: &[u8], mut at: usize) -> Option<(i64, usize)> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(((value >> 1).cast_signed() ^ -(value & 1).cast_signed(), at));
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Isolation, tests::keyed};
    use super::*;

    #[test]
    fn the_newest_of_each_key_stays_and_whole_batches_go() {
        let mut log = PartitionLog::new();
        for (records, producer) in [
            (&[("a", "1"), ("b", "1")][..], None),
            (&[("a", "2"), ("c", "1")][..], None),
            (&[("a", "3"), ("b", "2")][..], Some((9, 0, 0))),
            (&[("b", "3")][..], None),
        ] {
            log.append(Incoming::parse(&keyed(records, producer)).unwrap(), None).unwrap();
        }
        log.append(Incoming::parse(&keyed(&[("a", "4")], None)).unwrap(), None).unwrap();
        compact(&mut log).unwrap();
        let bases: Vec<i64> = log.batches_from(0).iter().map(|b| b.base_offset).collect();
        assert_eq!(bases, [2, 4, 6, 7], "the first batch is gone, that of the producer is empty");
        let mut offsets = Vec::new();
        for batch in log.batches_from(0).iter().filter(|b| b.base_offset != 4) {
            offsets.extend(records::decode(batch).unwrap().into_iter().map(|r| r.offset));
        }
        assert_eq!(offsets, [3, 6, 7]);
        assert_eq!((log.start(), log.end()), (0, 8));
        let (bytes, next) = log.read(0, log.readable_end(Isolation::Uncommitted), 1, true);
        assert_eq!(next, 4);
        assert_eq!(crc32c::crc32c(&bytes[21..]).to_be_bytes(), bytes[17..21]);
    }
}
