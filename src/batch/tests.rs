//! Encoding against decoding, and both against Kafka's own classes and an independent implementation.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use kafka_protocol::records as theirs;
use proptest::{prelude::*, string::string_regex};

use super::{encode::record_size, *};
use crate::{
    config::settings::Compression,
    error::{Error, ErrorKind},
    record::{Header, TimestampType},
};

const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
const CAP: usize = 64 << 20;

/// A record with everything a batch keeps of it.
#[derive(Debug, Clone, PartialEq)]
struct Plain {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

fn encode(records: &[Plain], stamp: Stamp, compression: Compression, level: Option<i32>) -> EncodedBatch {
    let mut builder = BatchBuilder::new(BytesMut::new());
    let mut len = builder.len();
    for (index, record) in records.iter().enumerate() {
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        builder.append(record.timestamp, key, value, &record.headers);
        let delta = record.timestamp.wrapping_sub(records[0].timestamp);
        let exact = record_size(index as i32, delta, key, value, &record.headers);
        assert_eq!(builder.len(), len + exact);
        let lens = [key, value].map(|part| part.map_or(0, <[u8]>::len));
        assert!(exact <= record_size_bound(lens[0], lens[1], &record.headers));
        len += exact;
    }
    builder.finish(stamp, &Compressor::new(compression, level).unwrap()).unwrap()
}

fn plain(batch: &DecodedBatch, slot: &RecordSlot) -> Plain {
    assert_eq!(batch.key_bytes(slot).as_deref(), batch.key(slot));
    assert_eq!(batch.value_bytes(slot).as_deref(), batch.value(slot));
    Plain {
        timestamp: slot.timestamp,
        key: batch.key(slot).map(Vec::from),
        value: batch.value(slot).map(Vec::from),
        headers: batch.owned_headers(slot),
    }
}

/// Everything in `bytes`, as offset and record.
fn read(bytes: Bytes, check_crc: bool) -> Result<Vec<(i64, Plain)>, Error> {
    let decompressor = Decompressor::new();
    let mut records = Vec::new();
    for batch in split(bytes) {
        let batch = batch?.decode(check_crc, &decompressor, CAP)?;
        records.extend(batch.slots.iter().map(|slot| (batch.offset(slot), plain(&batch, slot))));
    }
    Ok(records)
}

fn numbered(records: Vec<Plain>) -> Vec<(i64, Plain)> {
    (0..).zip(records).collect()
}

/// The records of `tests/fixtures/GenerateBatches.java`, made by the same rule.
fn expected(headers: bool) -> Vec<Plain> {
    let record = |index: usize| {
        let all =
            [Header::new("trace", format!("t-{index}")), Header { key: "trace".to_owned(), value: None }];
        let value = match index {
            58 => (0..200_000).map(|at| (at % 251) as u8).collect(),
            _ => format!("value-{index}{}", "x".repeat(index * 7 % 50)).into_bytes(),
        };
        Plain {
            timestamp: 1_700_000_000_000 + index as i64 * 10,
            key: (!index.is_multiple_of(5)).then(|| format!("key-{index}").into_bytes()),
            value: (index % 7 != 3).then_some(value),
            headers: all[..if headers { index % 3 } else { 0 }].to_vec(),
        }
    };
    (0..59).map(record).collect()
}

fn fixture(name: &str) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/batches").join(name);
    std::fs::read(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display())).into()
}

#[test]
fn a_wall_clock_that_jumps_within_a_batch_is_kept_record_by_record() {
    let jumps = [0, 10, -3_600_000, 20, 86_400_000, 30];
    let records: Vec<Plain> = expected(true)
        .into_iter()
        .zip(jumps)
        .map(|(record, jump)| Plain { timestamp: record.timestamp + jump, ..record })
        .collect();
    for codec in CODECS {
        let encoded = encode(&records, Stamp::NONE, codec, None);
        let latest = records.iter().map(|record| record.timestamp).max().unwrap();
        let max = i64::from_be_bytes(encoded.bytes[35..43].try_into().unwrap());
        assert_eq!(max, latest, "retention and lookups by time go by the latest");
        assert_eq!(read(encoded.bytes, true).unwrap(), numbered(records.clone()));
    }
}

#[test]
fn fields_at_the_bounds_of_one_two_and_more_bytes_are_read_as_written() {
    let sizes = [0, 63, 64, 8_100, 8_185, 8_191, 8_192, 9_000];
    let deltas = [0, 63, 64, -64, -65, 8_191, 8_192, -8_192, -8_193, i64::MAX, i64::MIN];
    let part = |size| (size != 63).then(|| vec![b'x'; size]);
    let record = |(index, (key, value)): (usize, (usize, usize))| Plain {
        timestamp: deltas[index % deltas.len()],
        key: part(key),
        value: part(value),
        headers: vec![Header::new("trace", vec![1; index % 70]); index % 3],
    };
    let pairs = sizes.iter().flat_map(|key| sizes.map(|value| (*key, value)));
    let records: Vec<_> = pairs.enumerate().map(record).cycle().take(9_000).collect();
    let encoded = encode(&records, Stamp::NONE, Compression::None, None);
    assert!(read(encoded.bytes, true).unwrap() == numbered(records));
}

#[test]
fn batches_written_by_java_are_read_with_every_codec_and_level() {
    let codecs =
        "none snappy gzip-1 gzip-6 gzip-9 lz4-1 lz4-9 lz4-17 zstd--5 zstd-1 zstd-3 zstd-9 zstd-19 zstd-22";
    for codec in codecs.split(' ') {
        let mut wanted = expected(true);
        wanted.truncate(if codec == "none" { 58 } else { 59 });
        let found = read(fixture(&format!("v2-{codec}.bin")), true).unwrap();
        let wanted: Vec<_> = (42..).zip(wanted).collect();
        assert!(found == wanted, "{codec} reads as {} other records", found.len());
    }
}

#[test]
fn message_sets_written_by_java_are_read_with_every_codec() {
    for (magic, codec) in
        [0, 1].into_iter().flat_map(|magic| ["none", "snappy", "gzip-6", "lz4-9"].map(|codec| (magic, codec)))
    {
        let mut wanted = expected(false);
        wanted.truncate(if codec == "none" { 58 } else { 59 });
        if magic == 0 {
            wanted.iter_mut().for_each(|record| record.timestamp = -1);
        }
        let found = read(fixture(&format!("v{magic}-{codec}.bin")), true).unwrap();
        let wanted: Vec<_> = (42..).zip(wanted).collect();
        assert!(found == wanted, "v{magic} {codec} reads as {} other records", found.len());
    }
}

#[test]
fn a_message_set_whose_messages_lie_behind_it_is_an_error() {
    for codec in ["snappy", "gzip-6", "lz4-9"] {
        let last = 42 + 58_i64;
        for (offset, is_good) in [(last, true), (last - 1, false), (42, false), (0, false)] {
            // No CRC covers the wrapper's offset.
            let moved = moved(&fixture(&format!("v0-{codec}.bin")), offset);
            assert_eq!(read(moved, true).is_ok(), is_good, "{codec} at {offset}");
        }
        // Relative offsets may begin a log, and not before it.
        for (offset, first) in [(last, Some(42)), (58, Some(0)), (57, None)] {
            let records = read(moved(&fixture(&format!("v1-{codec}.bin")), offset), true);
            assert_eq!(records.ok().map(|records| records[0].0), first, "{codec} at {offset}");
        }
    }
}

#[test]
fn a_message_set_whose_messages_go_back_is_an_error() {
    let input = include_bytes!("../../fuzz/corpus/batches/v0-lz4-behind-its-wrapper");
    for check_crc in [false, true] {
        for raw in split(Bytes::copy_from_slice(&input[1..])) {
            let Ok(raw) = raw else { break };
            if let Ok(batch) = raw.decode(check_crc, &Decompressor::new(), 1 << 20) {
                let offsets: Vec<i64> = batch.slots.iter().map(|slot| batch.offset(slot)).collect();
                assert!(offsets.is_sorted() && offsets.last() <= Some(&batch.last_offset), "{offsets:?}");
            }
        }
    }
}

/// A message of magic 0 or 1 without a key, with its checksum.
fn message(offset: i64, magic: u8, attributes: u8, value: &[u8]) -> Vec<u8> {
    let time: &[u8] = if magic == 0 { &[] } else { &[0; 8] };
    let (no_key, len) = ((-1_i32).to_be_bytes(), (value.len() as i32).to_be_bytes());
    let summed = [&[magic, attributes], time, &no_key, &len, value].concat();
    let mut crc = flate2::Crc::new();
    crc.update(&summed);
    let size = (summed.len() as i32 + 4).to_be_bytes();
    [&offset.to_be_bytes()[..], &size, &crc.sum().to_be_bytes(), &summed].concat()
}

#[test]
fn a_compressed_message_set_that_no_broker_writes_is_refused_with_its_reason() {
    const GZIP: u8 = 1;
    let wrapped = |magic, offset, set: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, set).unwrap();
        read(message(offset, magic, GZIP, &gzip.finish().unwrap()).into(), true)
    };
    for magic in [0, 1] {
        let (one, two) = (message(4, magic, 0, b"a"), message(5, magic, 0, b"b"));
        let good = wrapped(magic, 5, &[&one[..], &two].concat()).unwrap();
        assert_eq!(good.iter().map(|record| record.0).collect::<Vec<_>>(), [4, 5]);
        let mut other_crc = two.clone();
        *other_crc.last_mut().unwrap() ^= 1;
        let mut endless = one.clone();
        endless[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
        let mut negative = one.clone();
        negative[8..12].copy_from_slice(&(-1_i32).to_be_bytes());
        for (set, why) in [
            (Vec::new(), "is empty"),
            (message(4, 1 - magic, 0, b"a longer one"), "another magic"),
            (message(4, magic, GZIP, b"a"), "compressed again"),
            ([&two[..], &one].concat(), "order of its offsets"),
            ([&one[..], &two[..two.len() - 1]].concat(), "impossible length"),
            ([&one[..], &[0]].concat(), "impossible length"),
            (endless, "impossible length"),
            (negative, "impossible length"),
            ([&one[..], &other_crc].concat(), "CRC"),
        ] {
            let error = wrapped(magic, 5, &set).unwrap_err();
            assert!(error.to_string().contains(why), "magic {magic}, {why}: {error}");
        }
        for (whole, why) in
            [(message(-1, magic, 0, b"a"), "negative offset"), (message(4, magic, 4, b"a"), "zstd")]
        {
            let error = read(whole.into(), true).unwrap_err();
            assert!(error.to_string().contains(why), "magic {magic}: {error}");
        }
    }
}

#[test]
fn the_brokers_time_replaces_the_time_of_every_record() {
    for name in ["v2-appended-lz4-9.bin", "v1-appended-gzip-6.bin"] {
        let raw = split(fixture(name)).next().unwrap().unwrap();
        let batch = raw.decode(true, &Decompressor::new(), CAP).unwrap();
        assert_eq!((batch.timestamp_type, batch.slots.len()), (TimestampType::LogAppendTime, 59));
        assert!(batch.slots.iter().all(|slot| slot.timestamp == 1_800_000_000_000));
    }
}

#[test]
fn control_batches_tell_commit_from_abort() {
    for (name, wanted) in
        [("control-commit.bin", ControlType::Commit), ("control-abort.bin", ControlType::Abort)]
    {
        let raw = split(fixture(name)).next().unwrap().unwrap();
        assert!(raw.is_control && raw.is_transactional);
        assert_eq!((raw.producer_id, raw.producer_epoch(), raw.leader_epoch, raw.base_offset), (9, 2, 3, 7));
        let batch = raw.decode(true, &Decompressor::new(), CAP).unwrap();
        assert_eq!(batch.control_type(), Some(wanted));
    }
    let records = encode(&expected(true), Stamp::NONE, Compression::None, None);
    let raw = split(records.bytes).next().unwrap().unwrap();
    assert_eq!(raw.decode(true, &Decompressor::new(), CAP).unwrap().control_type(), None);
}

#[test]
#[ignore = "writes files for GenerateBatches.java to read"]
fn writes_batches_for_java_to_read() {
    let dir = PathBuf::from(std::env::var_os("BATCHES_DIR").expect("BATCHES_DIR"));
    std::fs::create_dir_all(&dir).unwrap();
    let stamp = Stamp { producer_id: 77, producer_epoch: 3, base_sequence: 1000, transactional: true };
    let levels = [(Compression::Gzip, 1..=9), (Compression::Zstd, -7..=5), (Compression::Lz4, 1..=1)];
    let mut all: Vec<_> = CODECS.map(|codec| (codec, None)).into();
    all.extend(levels.into_iter().flat_map(|(codec, levels)| levels.map(move |level| (codec, Some(level)))));
    for (codec, level) in all {
        let batch = encode(&expected(true), stamp, codec, level);
        std::fs::write(dir.join(format!("{codec:?}-{level:?}.bin")), &batch.bytes).unwrap();
    }
}

#[test]
fn an_independent_decoder_reads_what_is_encoded_and_its_batches_are_read() {
    let stamp = Stamp { producer_id: 5, producer_epoch: 2, base_sequence: 40, transactional: true };
    let mut records = expected(true);
    // That decoder keeps one header per name.
    records.iter_mut().for_each(|record| record.headers.truncate(1));
    let mut bytes = encode(&records, stamp, Compression::None, None).bytes;
    let set = theirs::RecordBatchDecoder::decode(&mut bytes).unwrap();
    assert_eq!(set.records.len(), records.len());
    for (index, (found, wanted)) in set.records.iter().zip(&records).enumerate() {
        assert_eq!((found.offset, found.timestamp), (index as i64, wanted.timestamp));
        assert_eq!((found.producer_id, found.producer_epoch, found.transactional), (5, 2, true));
        assert_eq!(found.sequence, 40 + index as i32);
        assert_eq!(
            (found.key.as_deref(), found.value.as_deref()),
            (wanted.key.as_deref(), wanted.value.as_deref())
        );
        let headers: Vec<_> = found
            .headers
            .iter()
            .map(|(key, value)| Header { key: key.to_string(), value: value.clone() })
            .collect();
        assert_eq!(headers, wanted.headers);
    }
    let options = theirs::RecordEncodeOptions { version: 2, compression: theirs::Compression::None };
    let mut buffer = BytesMut::new();
    theirs::RecordBatchEncoder::encode(&mut buffer, &set.records, &options).unwrap();
    assert_eq!(read(buffer.freeze(), true).unwrap(), numbered(records));
}

#[test]
fn a_new_stamp_is_written_in_place_where_nobody_shares_the_batch() {
    let records = expected(true);
    let first = Stamp { producer_id: 1, producer_epoch: 0, base_sequence: 0, transactional: true };
    let second = Stamp { producer_id: 8, producer_epoch: 4, base_sequence: 99, transactional: false };
    let batch = encode(&records, first, Compression::Lz4, None);
    let (address, held) = (batch.bytes.as_ptr(), batch.bytes.clone());
    let copied = restamp(batch.bytes, second);
    assert_ne!(copied.as_ptr(), address);
    assert_eq!(split(held.clone()).next().unwrap().unwrap().producer_id, 1);
    let in_place = restamp(held, second);
    assert_eq!(in_place.as_ptr(), address);
    for bytes in [copied, in_place] {
        let raw = split(bytes.clone()).next().unwrap().unwrap();
        assert_eq!((raw.producer_id, raw.producer_epoch(), raw.base_sequence()), (8, 4, 99));
        assert!(!raw.is_transactional);
        assert_eq!(read(bytes, true).unwrap(), numbered(records.clone()));
    }
}

#[test]
fn a_buffer_comes_back_with_its_capacity_once_nobody_holds_it() {
    for codec in CODECS {
        let mut builder = BatchBuilder::new(BytesMut::with_capacity(16_384));
        builder.append(1, None, Some(&[7; 5000]), &[]);
        let bytes = builder.finish(Stamp::NONE, &Compressor::new(codec, None).unwrap()).unwrap().bytes;
        let held = bytes.clone();
        assert!(recycle(bytes).is_none());
        let buffer = recycle(held).unwrap();
        assert!(buffer.is_empty() && buffer.capacity() >= 16_384, "{codec:?} leaves {}", buffer.capacity());
    }
}

#[test]
fn an_empty_batch_is_refused() {
    let builder = BatchBuilder::new(BytesMut::new());
    let error = builder.finish(Stamp::NONE, &Compressor::new(Compression::None, None).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_partial_last_batch_ends_the_walk_and_is_told_of() {
    let mut batch = BytesMut::from(&encode(&expected(true), Stamp::NONE, Compression::None, None).bytes[..]);
    batch[BASE_OFFSET].copy_from_slice(&70_i64.to_be_bytes());
    let batch = batch.freeze();
    let whole = Some(batch.len() as u64);
    for (cut, base_offset, needed) in [
        (1, None, None),
        (8, Some(70), None),
        (12, Some(70), whole),
        (16, Some(70), whole),
        (17, Some(70), whole),
        (61, Some(70), whole),
        (batch.len() - 1, Some(70), whole),
    ] {
        let incomplete = Some(Incomplete { base_offset, needed, got: cut });
        let mut batches = split([&batch[..], &batch[..cut]].concat().into());
        assert!(batches.next().unwrap().is_ok());
        assert!(batches.next().is_none());
        assert!(batches.next().is_none());
        assert_eq!(batches.incomplete(), incomplete);
        // Alone it is what a consumer would ask for again and again.
        let mut batches = split(batch.slice(..cut));
        assert!(batches.next().is_none());
        assert_eq!(batches.incomplete(), incomplete);
    }
    let mut batches = split(batch.clone());
    assert!(batches.by_ref().all(|batch| batch.is_ok()));
    assert_eq!(batches.incomplete(), None);
    assert_eq!(split(Bytes::new()).incomplete(), None);
    // An error is told of by itself.
    let mut batches = split([&[0; 16][..], &[9], &[0; 70]].concat().into());
    assert!(batches.next().unwrap().is_err());
    assert_eq!(batches.incomplete(), None);
}

#[test]
fn impossible_headers_are_errors_that_name_the_offset_and_end_the_walk() {
    let good = encode(&expected(true), Stamp::NONE, Compression::None, None).bytes;
    let forged: [(std::ops::Range<usize>, &[u8]); 5] = [
        (BATCH_LENGTH, &(-1_i32).to_be_bytes()),
        (BATCH_LENGTH, &48_i32.to_be_bytes()),
        (MAGIC_AT..MAGIC_AT + 1, &[3]),
        (LAST_OFFSET_DELTA, &(-1_i32).to_be_bytes()),
        (BASE_OFFSET, &i64::MAX.to_be_bytes()),
    ];
    for (at, value) in forged {
        let mut bytes = BytesMut::from(&good[..]);
        bytes[at.clone()].copy_from_slice(value);
        let mut batches = split(bytes.freeze());
        let error = batches.next().unwrap().expect_err(&format!("{value:?} at {at:?}"));
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.offset().is_some() && error.hint().is_some());
        assert!(batches.next().is_none());
    }
}

#[test]
fn a_record_count_other_than_the_records_is_an_error_with_every_codec() {
    for codec in CODECS {
        for wrong in [58_i32, 60] {
            let mut bytes = BytesMut::from(&encode(&expected(true), Stamp::NONE, codec, None).bytes[..]);
            bytes[RECORD_COUNT].copy_from_slice(&wrong.to_be_bytes());
            assert_eq!(
                read(bytes.freeze(), false).unwrap_err().kind(),
                ErrorKind::Protocol,
                "{codec:?} {wrong}"
            );
        }
    }
}

#[test]
fn records_whose_offsets_do_not_rise_are_damage() {
    let record = Plain { timestamp: 1, key: None, value: Some(vec![7; 3]), headers: Vec::new() };
    let good = encode(&[record.clone(), record.clone(), record], Stamp::NONE, Compression::None, None).bytes;
    // Each is of one size: length, attributes, time and offset in a byte each, and the rest.
    let size = (good.len() - BATCH_HEADER_LEN) / 3;
    for (deltas, is_good) in
        [([0, 1, 2], true), ([0, 0, 1], false), ([1, 0, 2], false), ([0, 2, 2], false), ([0, 1, 3], false)]
    {
        let mut bytes = BytesMut::from(&good[..]);
        for (index, delta) in deltas.into_iter().enumerate() {
            bytes[BATCH_HEADER_LEN + index * size + 3] = delta << 1;
        }
        assert_eq!(read(bytes.freeze(), false).is_ok(), is_good, "{deltas:?}");
    }
}

/// The batch at another offset; neither is covered by the CRC.
fn moved(batch: &Bytes, offset: i64) -> Bytes {
    let mut bytes = BytesMut::from(&batch[..]);
    bytes[BASE_OFFSET].copy_from_slice(&offset.to_be_bytes());
    bytes.freeze()
}

#[test]
fn a_bomb_is_refused_at_the_cap_by_every_codec_with_its_sizes_and_its_place() {
    let bomb = [Plain { timestamp: 1, key: None, value: Some(vec![0; 2 << 20]), headers: vec![] }];
    for codec in CODECS.into_iter().skip(1) {
        let bytes = moved(&encode(&bomb, Stamp::NONE, codec, None).bytes, 40);
        let compressed = bytes.len() - BATCH_HEADER_LEN;
        let raw = split(bytes).next().unwrap().unwrap();
        // Also where the limit falls within what a codec does in one go.
        for max in [0, 1, 1000, 65_536, 131_072, 131_073, 1 << 20, 1_500_000, (2 << 20) - 1] {
            let error = raw.decode(true, &Decompressor::new(), max).unwrap_err();
            let text = error.to_string();
            for part in [
                &format!("{compressed} bytes of"),
                &format!("the {max} bytes of max.decompressed.bytes"),
                "raise",
            ] {
                assert!(text.contains(part), "{codec:?} {max}: {part:?} is not in {text}");
            }
            assert_eq!((error.offset(), error.last_offset()), (Some(40), Some(40)));
            if codec != Compression::Lz4 {
                assert!(text.contains("by their own account"), "{codec:?}: {text}");
            }
        }
        assert_eq!(raw.decode(true, &Decompressor::new(), 3 << 20).unwrap().slots.len(), 1);
    }
}

#[test]
fn a_zstd_bomb_that_does_not_say_its_length_is_no_damage() {
    let frame = zrip_encode::compress(&vec![0; 10 << 20], 1).unwrap();
    // A single segment with a length of four bytes, made a frame with a window and no length, as Java writes it.
    assert_eq!(frame[4] >> 5, 0b101);
    let frame = Bytes::from([&frame[..4], &[frame[4] & 0b100, 0x80], &frame[9..]].concat());
    for max in [100_000, 131_072, 1 << 20, (1 << 20) + 1, 8 << 20] {
        let error = Decompressor::new().decompress(4, frame.clone(), max).unwrap_err();
        assert!(error.to_string().contains("decompress to more than"), "{max}: {error}");
    }
    assert_eq!(Decompressor::new().decompress(4, frame, 10 << 20).unwrap().len(), 10 << 20);
}

#[test]
fn a_forged_record_count_reserves_no_memory_with_any_codec() {
    for codec in CODECS {
        for forged in [1_000_000, i32::MAX, -1] {
            let batch = moved(&encode(&expected(true), Stamp::NONE, codec, None).bytes, 5);
            let mut bytes = BytesMut::from(&batch[..]);
            bytes[RECORD_COUNT].copy_from_slice(&forged.to_be_bytes());
            let error = split(bytes.freeze())
                .next()
                .unwrap()
                .and_then(|raw| raw.decode(false, &Decompressor::new(), CAP))
                .unwrap_err();
            assert!(error.to_string().contains(&format!("claims {forged} records")), "{codec:?}: {error}");
            assert_eq!((error.offset(), error.last_offset()), (Some(5), Some(63)), "{codec:?}");
        }
    }
}

#[test]
fn records_too_small_for_the_memory_of_their_slots_count_by_it() {
    let tiny = vec![Plain { timestamp: 1, key: None, value: None, headers: vec![] }; 100_000];
    for codec in [Compression::None, Compression::Zstd] {
        let raw = split(encode(&tiny, Stamp::NONE, codec, None).bytes).next().unwrap().unwrap();
        let error = raw.decode(true, &Decompressor::new(), 2 << 20).unwrap_err();
        assert!(error.to_string().contains("the 100000 records of a batch need"), "{codec:?}: {error}");
        assert_eq!(error.last_offset(), Some(99_999));
        let batch = raw.decode(true, &Decompressor::new(), 8 << 20).unwrap();
        assert!((3 << 20..8 << 20).contains(&batch.memory()), "{}", batch.memory());
    }
}

#[test]
fn message_sets_keep_to_the_cap_too() {
    for magic in [0, 1] {
        for codec in ["snappy", "gzip-6", "lz4-9"] {
            let raw = split(fixture(&format!("v{magic}-{codec}.bin"))).next().unwrap().unwrap();
            for max in [1000, 100_000] {
                let error = raw.decode(true, &Decompressor::new(), max).unwrap_err();
                assert!(error.to_string().contains("max.decompressed.bytes"), "v{magic} {codec}: {error}");
                assert_eq!(error.last_offset(), Some(100));
            }
        }
    }
}

#[test]
fn every_error_of_a_batch_tells_where_to_go_on_behind_it() {
    for codec in CODECS {
        let good = moved(&encode(&expected(true), Stamp::NONE, codec, None).bytes, 1000);
        let last = good.len() - 1;
        let mut bytes = BytesMut::from(&good[..]);
        bytes[last] ^= 0x55;
        bytes[BATCH_HEADER_LEN + 2] ^= 0x55;
        let raw = split(bytes.freeze()).next().unwrap().unwrap();
        for check_crc in [true, codec == Compression::None] {
            let error = raw.decode(check_crc, &Decompressor::new(), CAP).unwrap_err();
            assert_eq!((error.offset(), error.last_offset()), (Some(1000), Some(1058)), "{codec:?}: {error}");
        }
    }
}

#[test]
fn levels_outside_a_codecs_range_are_refused() {
    let refused = [
        (Compression::Gzip, [0, 10]),
        (Compression::Lz4, [0, 18]),
        (Compression::Zstd, [23, -131_073]),
        (Compression::Snappy, [1, 2]),
        (Compression::None, [1, 2]),
    ];
    for (codec, levels) in refused {
        for level in levels {
            assert_eq!(
                Compressor::new(codec, Some(level)).unwrap_err().kind(),
                ErrorKind::Config,
                "{codec:?}"
            );
        }
    }
}

#[test]
fn decompression_buffers_are_used_again() {
    let decompressor = Decompressor::new();
    for codec in CODECS.into_iter().skip(1) {
        let raw = split(encode(&expected(true), Stamp::NONE, codec, None).bytes).next().unwrap().unwrap();
        // The first may still have to grow the buffer.
        let [_, second, third] = [1, 2, 3].map(|_| {
            let batch = raw.decode(true, &decompressor, CAP).unwrap();
            assert!(batch.slots.iter().map(|slot| plain(&batch, slot)).eq(expected(true)), "{codec:?}");
            let address = batch.data.as_ptr() as usize;
            drop(batch);
            address
        });
        assert_eq!(second, third, "{codec:?}");
    }
    // What a longer batch left in the buffer does not show in a shorter one.
    assert_eq!(&decompressor.decompress(2, Bytes::from_static(b"\x05\x10hello"), 100).unwrap()[..], b"hello");
}

/// Three bytes in four are the same. Drawn by length and seed: byte by byte proptest would take most of the time.
fn bytes_of(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = crate::time::Rng::new(seed);
    let word = |_| {
        let word = rng.next_u64().to_le_bytes();
        word.map(|byte| if byte < 192 { b'a' } else { byte })
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(len);
    bytes
}

fn any_part() -> impl Strategy<Value = Option<Vec<u8>>> {
    let short = proptest::collection::vec(prop_oneof![3 => Just(b'a'), 1 => any::<u8>()], 0..200);
    let long = (9_000..70_000_usize, any::<u64>()).prop_map(|(len, seed)| bytes_of(len, seed));
    prop_oneof![1 => Just(None), 1 => Just(Some(vec![])), 6 => short.prop_map(Some), 1 => long.prop_map(Some)]
}

fn any_header() -> impl Strategy<Value = Header> {
    (string_regex("[a-c\u{e9}]{0,2}").unwrap(), any_part())
        .prop_map(|(key, value)| Header { key, value: value.map(Bytes::from) })
}

fn any_record() -> impl Strategy<Value = Plain> {
    let timestamp =
        prop_oneof![8 => 1_700_000_000_000..1_700_000_001_000_i64, 1 => Just(-1), 1 => any::<i64>()];
    let headers = prop_oneof![2 => Just(vec![]), 1 => proptest::collection::vec(any_header(), 0..4)];
    (timestamp, any_part(), any_part(), headers).prop_map(|(timestamp, key, value, headers)| Plain {
        timestamp,
        key,
        value,
        headers,
    })
}

fn any_codec() -> impl Strategy<Value = Compression> {
    (0..CODECS.len()).prop_map(|index| CODECS[index])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_records_come_back_as_they_were(records in proptest::collection::vec(any_record(), 1..40), codec in any_codec()) {
        let batch = encode(&records, Stamp::NONE, codec, None);
        prop_assert_eq!(batch.count as usize, records.len());
        let raw = split(batch.bytes.clone()).next().unwrap().unwrap();
        prop_assert_eq!(raw.max_timestamp, records.iter().map(|record| record.timestamp).max().unwrap());
        prop_assert!(read(batch.bytes, true).unwrap() == numbered(records));
    }

    #[test]
    fn a_changed_byte_is_found_by_the_crc_and_never_panics_without_it(
        records in proptest::collection::vec(any_record(), 1..10),
        codec in any_codec(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let good = encode(&records, Stamp::NONE, codec, None).bytes;
        let mut bad = BytesMut::from(&good[..]);
        for (at, flip) in changes {
            bad[at.index(good.len())] ^= flip;
        }
        let bad = bad.freeze();
        let _ = read(bad.clone(), false);
        // What the CRC does not cover: base offset, length, leader epoch, magic.
        if bad[CRC.start..] != good[CRC.start..] && bad[..CRC.start] == good[..CRC.start] {
            prop_assert!(read(bad.clone(), true).is_err());
        }
        let cut = cut.index(good.len());
        prop_assert!(read(good.slice(..cut), true).unwrap().is_empty());
        let _ = read(bad.slice(..cut), false);
    }

    #[test]
    fn damaged_compressed_data_is_an_error_or_other_bytes_never_a_panic(
        data in any_part(), codec in 1..5_i16, at in any::<prop::sample::Index>(), flip in 1..=255_u8, noise in any_part(),
    ) {
        let compressor = Compressor::new(CODECS[codec as usize], None).unwrap();
        let data = data.unwrap_or_default();
        let mut buffer = BytesMut::from(&data[..]);
        compressor.compress_from(&mut buffer, 0).unwrap();
        let (decompressor, good) = (Decompressor::new(), buffer.clone().freeze());
        prop_assert_eq!(&decompressor.decompress(codec, good.clone(), CAP).unwrap()[..], &data[..]);
        buffer[at.index(good.len())] ^= flip;
        for input in [buffer.freeze(), good.slice(..at.index(good.len())), Bytes::from(noise.unwrap_or_default())] {
            if let Ok(output) = decompressor.decompress(codec, input.clone(), 300_000) {
                prop_assert!(output.len() <= 300_000);
            }
            let _ = decompressor.decompress_legacy(codec, input, 300_000);
        }
    }

    #[test]
    fn a_changed_message_set_never_panics(
        magic in 0..2, codec in 0..4_usize, changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bad = BytesMut::from(&fixture(&format!("v{magic}-{}.bin", ["none", "snappy", "gzip-6", "lz4-9"][codec]))[..]);
        for (at, byte) in changes {
            let at = at.index(bad.len());
            bad[at] = byte;
        }
        let _ = read(bad.clone().freeze(), true);
        let _ = read(bad.freeze(), false);
    }
}

#[test]
fn a_wrong_last_offset_is_not_believed_where_the_next_batch_tells_its_place() {
    let good = encode(&expected(true), Stamp::NONE, Compression::None, None).bytes;
    for (wrong, alone) in [(5_000_i32, 5_005), (3, 8)] {
        let mut bytes = BytesMut::from(&moved(&good, 5)[..]);
        bytes[LAST_OFFSET_DELTA].copy_from_slice(&wrong.to_be_bytes());
        let last = |answer: Vec<u8>| {
            let raw = split(answer.into()).next().unwrap().unwrap();
            raw.decode(true, &Decompressor::new(), CAP).unwrap_err().last_offset()
        };
        assert_eq!(last([&bytes[..], &moved(&good, 64)[..]].concat()), Some(63));
        // The start of the next one is enough, if it is one: not before this one, and not of another magic.
        assert_eq!(last([&bytes[..], &moved(&good, 64)[..30]].concat()), Some(63));
        for other in [moved(&good, 5).to_vec(), moved(&good, 64)[..10].to_vec(), [0xff; 40].to_vec(), vec![]]
        {
            assert_eq!(last([&bytes[..], &other[..]].concat()), Some(alone));
        }
    }
}

#[test]
fn anything_shorter_than_a_header_is_not_stamped() {
    let stamp = Stamp { producer_id: 7, producer_epoch: 1, base_sequence: 3, transactional: false };
    for len in [0, BATCH_HEADER_LEN - 1, BATCH_HEADER_LEN] {
        let bytes = Bytes::from(vec![0; len]);
        assert_eq!(restamp(bytes.clone(), stamp) == bytes, len < BATCH_HEADER_LEN, "{len}");
    }
}

#[test]
fn a_batch_has_room_for_its_records_and_slots_can_name_their_places() {
    use super::decode::fits;
    assert!(fits(0, 0) && fits(2, 14) && !fits(3, 14) && !fits(-1, 14));
    assert!(fits(1, i32::MAX as usize) && !fits(1, i32::MAX as usize + 1));
}
