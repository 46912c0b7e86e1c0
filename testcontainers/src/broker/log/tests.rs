//! The log's rules, and batches for other tests.

use bytes::{Bytes, BytesMut};

use super::batch::{i32_at, i64_at};
use super::*;
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

/// A batch of `values`, stamped when `producer` names an id, an epoch and a first sequence.
pub(in super::super) fn batch(values: &[&str], producer: Option<(i64, i16, i32)>) -> Bytes {
    encode(values.iter().map(|value| (None, *value)).collect(), producer)
}

/// The same with keys.
pub(in super::super) fn keyed(records: &[(&str, &str)], producer: Option<(i64, i16, i32)>) -> Bytes {
    encode(records.iter().map(|(key, value)| (Some(*key), *value)).collect(), producer)
}

fn encode(records: Vec<(Option<&str>, &str)>, producer: Option<(i64, i16, i32)>) -> Bytes {
    let (producer_id, producer_epoch, first) = producer.unwrap_or((-1, -1, -1));
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let records: Vec<Record> = records
        .into_iter()
        .enumerate()
        .map(|(i, (key, value))| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
            producer_id,
            producer_epoch,
            timestamp_type: TimestampType::Creation,
            offset: i as i64,
            // The codec puts records into one batch only while sequence and offset rise together.
            sequence: first + i as i32,
            timestamp: 1000 + i as i64,
            key: key.map(bytes),
            value: Some(bytes(value)),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

/// The bytes of a batch that belongs to a transaction.
pub(in super::super) fn transactional_batch(values: &[&str], producer: (i64, i16, i32)) -> Bytes {
    let mut bytes = BytesMut::from(&batch(values, Some(producer))[..]);
    bytes[22] |= 0x10;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}

const ALL: Isolation = Isolation::Uncommitted;

fn append(log: &mut PartitionLog, values: &[&str], producer: Option<(i64, i16, i32)>) -> i64 {
    log.append(Incoming::parse(&batch(values, producer)).unwrap(), None).unwrap().base_offset
}

#[test]
fn offsets_are_given_in_order_and_the_checksum_stays_valid() {
    let mut log = PartitionLog::new();
    assert_eq!(append(&mut log, &["a", "b"], None), 0);
    log.begin_epoch();
    assert_eq!(append(&mut log, &["c"], None), 2);
    let read = log.read(2, log.readable_end(ALL), 1 << 20, true).0;
    assert_eq!(i64_at(&read, 0), 2);
    assert_eq!(i32_at(&read, 12), 1);
    assert_eq!(crc32c::crc32c(&read[21..]).to_be_bytes(), read[17..21]);
    assert_eq!(log.epoch_end(0), (0, 2));
    assert_eq!(log.epoch_end(1), (1, 3));
    assert_eq!(log.epoch_end(9), (-1, -1));
    assert_eq!(log.epoch_end(-1), (-1, -1));
}

#[test]
fn a_changed_byte_is_a_corrupt_message() {
    let mut bytes = BytesMut::from(&batch(&["abc"], None)[..]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(Incoming::parse(&bytes.freeze()).unwrap_err(), ResponseError::CorruptMessage);
}

#[test]
fn a_truncated_batch_is_refused_and_two_batches_in_one_are_too() {
    let one = batch(&["abc"], None);
    let cut = one.slice(..one.len() - 1);
    assert_eq!(Incoming::parse(&cut).unwrap_err(), ResponseError::InvalidRecord);
    let two: Bytes = [&one[..], &one[..]].concat().into();
    assert_eq!(Incoming::parse(&two).unwrap_err(), ResponseError::InvalidRecord);
    assert_eq!(Incoming::parse(&Bytes::new()).unwrap_err(), ResponseError::InvalidRecord);
    let mut elsewhere = BytesMut::from(&one[..]);
    elsewhere[7] = 7;
    assert_eq!(Incoming::parse(&elsewhere.freeze()).unwrap_err(), ResponseError::InvalidRecord);
}

#[test]
fn a_duplicate_batch_is_acknowledged_and_not_stored_twice() {
    let mut log = PartitionLog::new();
    assert_eq!(append(&mut log, &["x"], None), 0);
    assert_eq!(append(&mut log, &["a", "b"], Some((9, 0, 0))), 1);
    assert_eq!(append(&mut log, &["a", "b"], Some((9, 0, 0))), 1);
    assert_eq!(log.end(), 3);
    let gap = Incoming::parse(&batch(&["c"], Some((9, 0, 3)))).unwrap();
    assert_eq!(log.append(gap, None).unwrap_err(), ResponseError::OutOfOrderSequenceNumber);
}

#[test]
fn the_first_batch_always_comes_whole_and_the_last_may_be_cut_off() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a", "b"], None);
    append(&mut log, &["c"], None);
    let first = log.read(1, log.readable_end(ALL), 1, true).0;
    assert_eq!(i64_at(&first, 0), 0);
    let one = first.len();
    let (cut, next) = log.read(0, log.readable_end(ALL), one + 20, false);
    assert_eq!((cut.len(), next, i64_at(&cut, one)), (one + 20, 2, 2));
    assert_eq!(log.read(0, 2, one + 20, false).0.len(), one, "nothing of what may not be read");
    assert!(log.read(0, log.readable_end(ALL), 1, false).0.is_empty());
    assert_eq!(
        log.read(0, log.readable_end(ALL), 1 << 20, false).0.len(),
        log.readable(0, log.readable_end(ALL), usize::MAX)
    );
    assert!(log.read(3, log.readable_end(ALL), 1 << 20, true).0.is_empty());
}

#[test]
fn epochs_that_ended_before_the_start_of_the_log_are_forgotten() {
    let mut log = PartitionLog::new();
    for value in ["a", "b", "c"] {
        append(&mut log, &[value], None);
        log.begin_epoch();
    }
    assert_eq!((log.epoch_at(log.start()), log.epoch_end(0)), (0, (0, 1)));
    log.delete_before(2).unwrap();
    assert_eq!(log.epoch_at(log.start()), 2);
    assert_eq!((log.epoch_end(0), log.epoch_end(2), log.epoch_end(3)), ((0, 2), (2, 3), (3, 3)));
}

#[test]
fn nothing_is_written_beside_an_open_transaction() {
    let mut log = PartitionLog::new();
    let transactional = Incoming::parse(&transactional_batch(&["a"], (9, 0, 0))).unwrap();
    log.append(transactional, None).unwrap();
    let plain = Incoming::parse(&batch(&["b"], Some((9, 0, 1)))).unwrap();
    assert_eq!(log.append(plain.clone(), None).unwrap_err(), ResponseError::InvalidTxnState);
    let marker = Marker { producer_id: 9, epoch: 0, commit: true, coordinator_epoch: 0 };
    log.append_marker(marker, 0).unwrap();
    assert_eq!(log.append(plain, None).unwrap().base_offset, 2);
}

#[test]
fn deleting_records_moves_the_start_and_drops_whole_batches() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a", "b"], None);
    append(&mut log, &["c"], None);
    assert_eq!(log.delete_before(1), Ok(1));
    assert_eq!(log.batches_from(0).len(), 2);
    assert_eq!(log.delete_before(-1), Ok(3));
    assert!(log.batches_from(0).is_empty());
    assert_eq!(log.delete_before(4), Err(ResponseError::OffsetOutOfRange));
}

#[test]
fn append_time_replaces_the_timestamp_under_a_new_checksum() {
    let mut log = PartitionLog::new();
    let done = log.append(Incoming::parse(&batch(&["a"], None)).unwrap(), Some(5_000)).unwrap();
    assert_eq!(done.append_time_ms, 5_000);
    let read = Incoming::parse(&log.read(0, log.readable_end(ALL), 1 << 20, true).0).unwrap();
    assert_eq!(read.max_timestamp, 5_000);
}

fn transactional(values: &[&str], producer: (i64, i16, i32)) -> Incoming {
    Incoming::parse(&transactional_batch(values, producer)).unwrap()
}

fn marker(producer_id: i64, epoch: i16, commit: bool) -> Marker {
    Marker { producer_id, epoch, commit, coordinator_epoch: 0 }
}

#[test]
fn readers_of_committed_records_stop_at_an_open_transaction() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a"], None);
    log.append(transactional(&["b", "c"], (9, 0, 0)), None).unwrap();
    append(&mut log, &["d"], None);
    assert_eq!((log.last_stable_offset(), log.high_watermark()), (1, 4));
    assert_eq!(log.read(0, log.readable_end(Isolation::Committed), 1 << 20, true).1, 1);
    assert_eq!(log.readable(1, log.readable_end(Isolation::Committed), 1), 0);
    log.append_marker(marker(9, 0, false), 5).unwrap();
    assert_eq!((log.last_stable_offset(), log.end()), (5, 5));
    assert_eq!(log.aborted(0, 5), [Aborted { producer_id: 9, first_offset: 1 }]);
    // The sequences go on behind the marker.
    log.append(transactional(&["e"], (9, 0, 2)), None).unwrap();
    assert_eq!(log.last_stable_offset(), 5);
}

#[test]
fn a_marker_can_be_read_by_another_codec() {
    let mut log = PartitionLog::new();
    log.append(transactional(&["b"], (9, 3, 0)), None).unwrap();
    log.append_marker(marker(9, 4, true), 77).unwrap();
    let records = super::super::records::decode(&log.batches_from(1)[0]).unwrap();
    let record = &records[0];
    assert!(record.control && record.transactional);
    assert_eq!((record.offset, record.producer_id, record.producer_epoch, record.timestamp), (1, 9, 4, 77));
    assert_eq!(record.key.as_deref(), Some(&[0, 0, 0, 1][..]));
    assert_eq!(log.append_marker(marker(9, 3, true), 0).unwrap_err(), ResponseError::InvalidProducerEpoch);
}

#[test]
fn a_log_that_is_cut_forgets_the_producers_and_transactions_of_what_is_gone() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a"], Some((9, 0, 0)));
    append(&mut log, &["b"], Some((9, 0, 1)));
    log.append(transactional(&["c", "d"], (8, 0, 0)), None).unwrap();
    log.begin_epoch();
    log.append_marker(marker(8, 0, false), 0).unwrap();
    // Offset 3 lies within the batch of c and d: it goes whole.
    log.truncate(3);
    assert_eq!((log.end(), log.last_stable_offset(), log.leader_epoch()), (2, 2, 1));
    log.begin_epoch();
    assert_eq!((log.epoch_end(0), log.epoch_end(2)), ((0, 2), (2, 2)));
    log.truncate(1);
    assert_eq!(append(&mut log, &["b"], Some((9, 0, 1))), 1, "the sequence goes back with the log");
    assert!(log.aborted(0, 9).is_empty());
}

#[test]
fn a_lagging_replica_holds_the_high_watermark_back() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a", "b"], None);
    log.set_replicated(Some(2));
    append(&mut log, &["c"], None);
    assert_eq!((log.high_watermark(), log.end()), (2, 3));
    assert_eq!(log.read(0, log.readable_end(ALL), 1 << 20, true).1, 2);
    assert_eq!(log.delete_before(3), Err(ResponseError::OffsetOutOfRange));
    log.set_replicated(None);
    assert_eq!(log.high_watermark(), 3);
}

#[test]
fn deleted_batches_leave_their_producers_known_after_a_restart() {
    let mut log = PartitionLog::new();
    append(&mut log, &["a"], Some((9, 0, 0)));
    append(&mut log, &["b"], Some((9, 0, 1)));
    log.delete_before(2).unwrap();
    log.restart(true);
    let gap = Incoming::parse(&batch(&["x"], Some((9, 0, 7)))).unwrap();
    assert_eq!(log.append(gap, None).unwrap_err(), ResponseError::OutOfOrderSequenceNumber);
    log.producers_mut().clear();
    assert_eq!(append(&mut log, &["x"], Some((9, 0, 7))), 2);
}
