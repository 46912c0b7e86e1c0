//! The records of a log as tests look at them: a type of the kit, read by a parser of its own that keeps every header.

use bytes::Bytes;

use super::log::Batch;
use super::records;

/// A record as it stands in a broker's log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970: the producer's time, or the broker's on topics with `LogAppendTime`.
    pub timestamp: i64,
    /// `None`: no key.
    pub key: Option<Bytes>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
    /// Names and values in the order in which they were sent; a name may come more than once.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The epoch of the leader that took it.
    pub leader_epoch: i32,
    /// -1: not written by an idempotent producer.
    pub producer_id: i64,
    /// -1: not written by an idempotent producer.
    pub producer_epoch: i16,
    /// Its number in the producer's sequence for the partition; -1 without one.
    pub sequence: i32,
    /// Is it part of a transaction (committed or not)?
    pub transactional: bool,
}

impl StoredRecord {
    /// The value of a header; the last one where the name comes more than once.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().rev().find(|(known, _)| known == name)?;
        found.1.as_deref()
    }

    /// A header's value as text; `None` where there is none, or it is no UTF-8.
    #[must_use]
    pub fn header_text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.header(name)?).ok()
    }

    /// The key as text; `None` where there is none, or it is no UTF-8.
    #[must_use]
    pub fn key_text(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }

    /// The value as text; `None` for a tombstone, or where it is no UTF-8.
    #[must_use]
    pub fn value_text(&self) -> Option<&str> {
        std::str::from_utf8(self.value.as_deref()?).ok()
    }
}

/// The records of one batch.
pub(super) fn read(batch: &Batch) -> Result<Vec<StoredRecord>, String> {
    let broken = || format!("batch at offset {}: a record is cut short", batch.base_offset);
    let (packed, codec) = batch.payload();
    let payload =
        records::unpack(&packed, codec).map_err(|e| format!("batch at offset {}: {e}", batch.base_offset))?;
    let head = batch.head();
    let mut reader = Reader { bytes: &payload, at: 0 };
    let mut all = Vec::new();
    while reader.at < payload.len() {
        let size = usize::try_from(reader.varint().ok_or_else(broken)?).map_err(|_| broken())?;
        let end = reader.at.checked_add(size).ok_or_else(broken)?;
        let record = record(&mut reader, &head).ok_or_else(broken)?;
        if reader.at != end {
            return Err(broken());
        }
        all.push(record);
    }
    Ok(all)
}

/// What all records of a batch share.
pub(super) struct Head {
    pub(super) base_offset: i64,
    pub(super) base_timestamp: i64,
    /// The broker's time where it replaces the records' own.
    pub(super) append_timestamp: Option<i64>,
    pub(super) leader_epoch: i32,
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    pub(super) base_sequence: i32,
    pub(super) transactional: bool,
}

fn record(reader: &mut Reader<'_>, head: &Head) -> Option<StoredRecord> {
    reader.take(1)?;
    let timestamp = head.base_timestamp.wrapping_add(reader.varint()?);
    let delta = reader.varint()?;
    let (key, value) = (reader.bytes()?, reader.bytes()?);
    let mut headers = Vec::new();
    for _ in 0..reader.varint()? {
        let name = String::from_utf8_lossy(&reader.bytes()??).into_owned();
        headers.push((name, reader.bytes()?));
    }
    let sequence = match head.base_sequence {
        0.. => super::producers::sequence_after(head.base_sequence, i32::try_from(delta).ok()?),
        none => none,
    };
    Some(StoredRecord {
        offset: head.base_offset + delta,
        timestamp: head.append_timestamp.unwrap_or(timestamp),
        key,
        value,
        headers,
        leader_epoch: head.leader_epoch,
        producer_id: head.producer_id,
        producer_epoch: head.producer_epoch,
        sequence,
        transactional: head.transactional,
    })
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, size: usize) -> Option<Bytes> {
        let end = self.at.checked_add(size)?;
        let taken = self.bytes.slice_ref(self.bytes.get(self.at..end)?);
        self.at = end;
        Some(taken)
    }

    fn varint(&mut self) -> Option<i64> {
        let (value, at) = super::compaction::varint(self.bytes, self.at)?;
        self.at = at;
        Some(value)
    }

    /// A length and so many bytes; the inner `None` is null.
    #[expect(clippy::option_option, reason = "cut short, or null")]
    fn bytes(&mut self) -> Option<Option<Bytes>> {
        match usize::try_from(self.varint()?) {
            Ok(size) => self.take(size).map(Some),
            Err(_) => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Incoming, PartitionLog, tests::keyed};
    use super::*;

    #[test]
    fn records_come_with_key_value_sequence_and_offset() {
        let mut log = PartitionLog::new();
        for first in [0, 2] {
            let batch = keyed(&[("a", "1"), ("b", "2")], Some((9, 3, first)));
            log.append(Incoming::parse(&batch).unwrap(), None).unwrap();
        }
        let all = read(&log.batches_from(2)[0]).unwrap();
        assert_eq!(all.len(), 2);
        let last = &all[1];
        assert_eq!((last.offset, last.sequence, last.producer_id, last.producer_epoch), (3, 3, 9, 3));
        assert_eq!((last.key_text(), last.value_text(), last.timestamp), (Some("b"), Some("2"), 1001));
        assert_eq!(last.header("none"), None);
    }

    #[test]
    fn a_header_is_found_by_its_name_and_the_last_one_counts() {
        // One record: no key, value "v", headers h=1, h=2 and n=null.
        let body = [0, 0, 0, 1, 2, b'v', 6, 2, b'h', 2, b'1', 2, b'h', 2, b'2', 2, b'n', 1];
        let payload = Bytes::from([&[body.len() as u8 * 2][..], &body[..]].concat());
        let head = Head {
            base_offset: 5,
            base_timestamp: 7,
            append_timestamp: None,
            leader_epoch: 0,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            transactional: false,
        };
        let mut reader = Reader { bytes: &payload, at: 1 };
        let record = record(&mut reader, &head).unwrap();
        assert_eq!(record.headers.len(), 3);
        assert_eq!((record.header_text("h"), record.header("n"), record.sequence), (Some("2"), None, -1));
    }
}
