use bytes::BytesMut;

use super::*;
use crate::{
    batch::{BatchBuilder, Compressor, Stamp},
    config::settings::Compression,
    consumer::partitions::{Next, Position, Turn},
    time,
};

const REFILL: i32 = 1_000;

struct Bench {
    fetcher: Fetcher,
    partitions: Partitions,
    decompressor: Decompressor,
    now: Instant,
}

fn key(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

impl Bench {
    /// Partitions at offset 0, each with its leader.
    fn new(leaders: &[i32], buffer_memory: usize) -> Self {
        let settings = FetchSettings {
            max_bytes: 1 << 20,
            max_partition_bytes: REFILL,
            max_wait: Duration::from_millis(500),
            buffer_memory,
            read_committed: true,
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
        };
        let mut partitions = Partitions::default();
        partitions.assign((0..).take(leaders.len()).map(key), &Phase::Fetching(Position::at(0)));
        let now = time::now();
        partitions.set_leaders(now, |key| Some((leaders[key.partition as usize], 0)));
        let fetcher = Fetcher::new(settings, Rng::new(1));
        Self { fetcher, partitions, decompressor: Decompressor::new(), now }
    }

    fn plan(&mut self) -> Option<FetchAction> {
        self.fetcher.poll_action(self.now, &mut self.partitions)
    }

    fn sent(action: &FetchAction) -> Vec<(i32, i64)> {
        action.request.partitions.iter().map(|(key, wanted)| (key.partition, wanted.offset)).collect()
    }

    fn answer(&mut self, action: &FetchAction, data: Vec<wire::fetch_response::PartitionData>) -> Effects {
        let topic = wire::fetch_response::FetchableTopicResponse {
            topic: crate::cluster::kafka_string("t"),
            partitions: data,
            ..Default::default()
        };
        let answer = wire::FetchResponse { session_id: 9, responses: vec![topic], ..Default::default() };
        self.answered(action, Ok(answer))
    }

    fn answered(&mut self, action: &FetchAction, answer: Result<wire::FetchResponse>) -> Effects {
        let (broker, token) = (action.broker, action.token);
        self.fetcher.handle_answer(self.now, broker, token, answer, &mut self.partitions, &self.decompressor)
    }

    /// Takes records as a poll does; their offsets.
    fn poll(&mut self, max: usize) -> Vec<i64> {
        let (mut offsets, mut left) = (Vec::new(), max);
        while left > 0 {
            match self.partitions.next_chunk(left, Turn::Poll, REFILL as usize) {
                Next::Chunk(_, _, chunk) => {
                    left -= chunk.range.len();
                    offsets
                        .extend(chunk.batch.slots[chunk.range].iter().map(|slot| chunk.batch.offset(slot)));
                }
                Next::Decode(job) => {
                    let (key, decoding) = job.split();
                    let (decoded, result) = decoding.run(true, &self.decompressor, 1 << 20);
                    self.partitions.check_in(key, decoded, result.is_err());
                    if result.is_err() {
                        break;
                    }
                }
                Next::Nothing => break,
            }
        }
        offsets
    }

    fn covered(&mut self, partition: i32) -> Option<i64> {
        self.partitions.cover();
        self.partitions.covered(|_| None).get(&key(partition)).map(|offset| offset.offset)
    }
}

/// A batch of ten records with values of this size.
fn batch(base_offset: i64, size: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BytesMut::new());
    for _ in 0..10 {
        builder.append(1, None, Some(&vec![7; size]), &[]);
    }
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let mut bytes = builder.finish(Stamp::NONE, &compressor).unwrap().bytes.to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes
}

fn data(partition: i32, records: Vec<u8>) -> wire::fetch_response::PartitionData {
    wire::fetch_response::PartitionData {
        partition_index: partition,
        high_watermark: 1_000,
        records: Some(records.into()),
        ..Default::default()
    }
}

fn refused(partition: i32, error: i16) -> wire::fetch_response::PartitionData {
    wire::fetch_response::PartitionData {
        partition_index: partition,
        error_code: error,
        ..Default::default()
    }
}

#[test]
fn one_fetch_is_out_per_leader_and_none_waits_for_another() {
    let mut bench = Bench::new(&[1, 2, 1], 1 << 20);
    let first = bench.plan().unwrap();
    let second = bench.plan().unwrap();
    assert_eq!((first.broker, Bench::sent(&first)), (1, vec![(0, 0), (2, 0)]));
    assert_eq!((second.broker, Bench::sent(&second)), (2, vec![(1, 0)]));
    assert!(bench.plan().is_none());
    bench.answer(&second, vec![data(1, batch(0, 10))]);
    let next = bench.plan().unwrap();
    assert_eq!((next.broker, Bench::sent(&next)), (2, vec![(1, 10)]));
    assert!(bench.plan().is_none(), "broker 1 still has its fetch");
}

#[test]
fn a_full_partition_is_left_out_until_a_poll_makes_room() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    assert_eq!(fetch.max_wait, Duration::from_millis(500));
    bench.answer(&fetch, vec![data(0, batch(0, 200))]);
    let fetch = bench.plan().unwrap();
    assert_eq!(fetch.request.forgotten, [key(0)]);
    assert_eq!(fetch.max_wait, Duration::from_millis(500), "nobody waits for it as long as nobody polls");
    assert_eq!(bench.poll(100).len(), 10);
    assert!(bench.partitions.take_wants_fetch());
    assert!(bench.plan().is_none());
    bench.now += SHORT_WAIT;
    let aside = bench.plan().unwrap();
    assert!(aside.is_aside && Bench::sent(&aside) == [(0, 10)], "it must not wait for partition 1");
}

#[test]
fn bytes_asked_for_and_buffered_stay_within_the_budget() {
    let mut bench = Bench::new(&[1, 2], 100_000);
    let (first, second) = (bench.plan().unwrap(), bench.plan().unwrap());
    assert!(first.max_bytes + second.max_bytes <= 100_000);
    bench.answer(&first, vec![data(0, batch(0, 9_000))]);
    // Buffered 90 KB of 100 KB: not even a small fetch is worth it.
    bench.answer(&second, vec![]);
    assert!(bench.plan().is_none());
    bench.poll(100);
    assert!(bench.plan().is_some());
}

#[test]
fn buffers_of_paused_partitions_make_room_and_are_fetched_again() {
    let mut bench = Bench::new(&[1, 2], 100_000);
    let (first, second) = (bench.plan().unwrap(), bench.plan().unwrap());
    bench.answer(&first, vec![data(0, batch(0, 9_000))]);
    bench.answer(&second, vec![]);
    bench.partitions.set_paused(&key(0), true);
    assert_eq!(bench.plan().unwrap().broker, 2);
    assert_eq!(bench.partitions.buffered(), 0);
    bench.partitions.set_paused(&key(0), false);
    // The session knows offset 0 of the last fetch still, so nothing has to be said again.
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.broker, Bench::sent(&fetch)), (1, vec![]));
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
}

#[test]
fn an_answer_for_a_partition_that_was_sought_or_released_is_dropped() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    assert!(bench.partitions.restart(&key(0), Phase::Fetching(Position::at(500))));
    bench.partitions.assign([key(0)], &Phase::AwaitingCommitted);
    let effects = bench.answer(&fetch, vec![data(0, batch(0, 10)), data(1, batch(0, 10))]);
    assert!(!effects.buffered);
    assert_eq!((bench.partitions.buffered(), bench.poll(100)), (0, vec![]));
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 500)]);
}

#[test]
fn a_partition_that_was_released_or_paused_is_forgotten_and_nothing_is_asked_for_nobody() {
    let mut bench = Bench::new(&[1, 1, 2], 1 << 20);
    let (first, second) = (bench.plan().unwrap(), bench.plan().unwrap());
    bench.partitions.assign([key(0)], &Phase::AwaitingCommitted);
    bench.answer(&first, vec![]);
    bench.answer(&second, vec![]);
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.broker, &fetch.request.forgotten[..]), (1, &[key(1)][..]));
    assert!(bench.plan().is_none(), "nothing of broker 2 is left");
    bench.answer(&fetch, vec![]);
    bench.partitions.set_paused(&key(0), true);
    assert!(bench.plan().is_none(), "nor of broker 1");
}

#[test]
fn a_partition_moves_with_its_leader_from_one_session_to_another() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let moved = |key: &TopicPartition| Some((1 + key.partition, 4));
    assert!(bench.partitions.set_leaders(bench.now, moved));
    let other = bench.plan().unwrap();
    assert_eq!((other.broker, Bench::sent(&other)), (2, vec![(1, 0)]));
    // What the old leader still sends is as good as any, but for what the new one was asked for meanwhile.
    bench.answer(&fetch, vec![data(1, batch(0, 10))]);
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
    bench.answer(&other, vec![data(1, batch(0, 10))]);
    assert_eq!(bench.poll(100), Vec::<i64>::new(), "no record comes twice");
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.broker, &fetch.request.forgotten[..]), (1, &[key(1)][..]));
    let other = bench.plan().unwrap();
    assert_eq!((other.broker, Bench::sent(&other)), (2, vec![(1, 10)]));
}

#[test]
fn batches_decoded_while_the_partition_was_sought_are_dropped() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    let Next::Decode(job) = bench.partitions.next_chunk(5, Turn::Poll, 1) else {
        panic!("nothing to decode")
    };
    let (job, decoding) = job.split();
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(3)));
    let (decoded, _) = decoding.run(true, &bench.decompressor, 1 << 20);
    bench.partitions.check_in(job, decoded, false);
    assert_eq!(bench.poll(100), [0i64; 0]);
    let fetch = bench.plan();
    assert_eq!(Bench::sent(&fetch.unwrap_or_else(|| panic!("no fetch"))), [(0, 3)]);
}

#[test]
fn records_before_the_position_are_not_handed_out() {
    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(14)));
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, [batch(0, 1), batch(10, 1), batch(20, 1)].concat())]);
    assert_eq!(bench.poll(8), (14..22).collect::<Vec<_>>());
    assert_eq!(bench.poll(100), (22..30).collect::<Vec<_>>());
}

#[test]
fn automatic_commits_never_pass_what_an_earlier_poll_handed_out() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    assert_eq!(bench.covered(0), None);
    bench.poll(4);
    assert!(bench.partitions.covered(|_| None).is_empty() && bench.partitions.is_outstanding(&[key(0)]));
    assert_eq!(bench.covered(0), Some(4));
    assert!(!bench.partitions.is_outstanding(&[key(0)]));
    bench.poll(100);
    assert_eq!(bench.partitions.covered(|_| None)[&key(0)].offset, 4);
    assert_eq!(bench.partitions.positions(|_| None)[&key(0)].offset, 10);
    assert_eq!(bench.covered(0), Some(10));
    bench.partitions.set_committed(&key(0), 10);
    assert!(bench.partitions.covered(|_| None).is_empty(), "nothing is committed twice");
}

#[test]
fn a_damaged_batch_ends_a_poll_after_what_came_before_it_and_others_go_on() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let mut damaged = batch(10, 10);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    bench.answer(&fetch, vec![data(0, [batch(0, 10), damaged].concat()), data(1, batch(0, 10))]);
    assert_eq!(bench.poll(100), [0i64; 0]); // the damage is found, and partition 0 goes behind
    let mut offsets = bench.poll(100);
    offsets.sort_unstable();
    assert_eq!(offsets, (0..10).flat_map(|offset| [offset, offset]).collect::<Vec<_>>());
    assert_eq!(bench.covered(0), Some(10), "never past the damage");
}

#[test]
fn an_answer_with_only_the_start_of_a_batch_is_an_error_with_a_back_off() {
    let whole = batch(0, 100);
    for cut in [1, 11, 16, 61, whole.len() - 1] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let action = bench.plan().unwrap();
        let effects = bench.answer(&action, vec![data(0, whole[..cut].to_vec())]);
        let [error] = &effects.errors[..] else { panic!("{cut}: {:?}", effects.errors) };
        assert_eq!((error.topic(), error.partition(), error.offset()), (Some("t"), Some(0), Some(0)));
        let text = error.to_string();
        assert!(text.contains(&format!("{cut} bytes, only the start")), "{text}");
        assert_eq!(text.contains(&format!("claims {} bytes", whole.len())), cut >= 12, "{text}");
        assert!(text.contains("max.partition.fetch.bytes") && text.contains("seek past"), "{text}");
        assert!(bench.plan().is_none(), "nothing is asked in vain meanwhile");
        bench.now += Duration::from_secs(1);
        assert!(bench.plan().is_some(), "it is asked again");
    }
    // Behind a whole batch it is usual.
    let mut bench = Bench::new(&[1], 1 << 20);
    let action = bench.plan().unwrap();
    let effects = bench.answer(&action, vec![data(0, [&whole[..], &whole[..70]].concat())]);
    assert!(effects.errors.is_empty() && effects.buffered);
}

#[test]
fn markers_and_aborted_records_are_stepped_over_and_committed_past() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let transactional = |mut bytes: Vec<u8>, attributes: u8| {
        bytes[22] |= attributes;
        bytes[43..51].copy_from_slice(&5i64.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    };
    let mut marker = BatchBuilder::new(BytesMut::new());
    marker.append(1, Some(&[0, 0, 0, 0]), Some(&[0; 6]), &[]);
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let mut marker = marker.finish(Stamp::NONE, &compressor).unwrap().bytes.to_vec();
    marker[..8].copy_from_slice(&10i64.to_be_bytes());
    let records = [
        transactional(batch(0, 1), 1 << 4),         // aborted
        transactional(marker, (1 << 4) | (1 << 5)), // its marker
        transactional(batch(11, 1), 1 << 4),        // the next transaction of the same producer
    ];
    let aborted = wire::fetch_response::AbortedTransaction { producer_id: 5, first_offset: 0 };
    let mut answer = data(0, records.concat());
    answer.aborted_transactions = Some(vec![aborted.clone()]);
    bench.answer(&fetch, vec![answer]);
    assert_eq!(bench.poll(100), (11..21).collect::<Vec<_>>());
    // Alone, they move the position without anything to wait for.
    let fetch = bench.plan().unwrap();
    let mut answer = data(0, transactional(batch(21, 1), 1 << 4));
    answer.aborted_transactions =
        Some(vec![wire::fetch_response::AbortedTransaction { first_offset: 21, ..aborted }]);
    bench.answer(&fetch, vec![answer]);
    bench.partitions.cover();
    assert_eq!(bench.poll(100), [0i64; 0]);
    assert!(!bench.partitions.is_outstanding(&[key(0)]));
    assert_eq!(bench.partitions.covered(|_| None)[&key(0)].offset, 31);
}

#[test]
fn an_offset_outside_the_log_is_reset_only_when_the_buffer_is_empty() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
    assert!(effects.out_of_range.is_empty());
    assert!(bench.plan().is_none(), "asked again only after a pause");
    bench.poll(100);
    bench.now += Duration::from_millis(100);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
    assert_eq!(effects.out_of_range, [(key(0), 10)]);
}

#[test]
fn errors_of_one_partition_pause_it_alone() {
    for error in [code::UNKNOWN_TOPIC_OR_PARTITION, 6, code::FENCED_LEADER_EPOCH, code::UNKNOWN_LEADER_EPOCH]
    {
        let mut bench = Bench::new(&[1, 1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let effects = bench.answer(&fetch, vec![refused(0, error), data(1, batch(0, 10))]);
        assert!(effects.refresh_metadata && effects.errors.is_empty());
        let fetch = bench.plan().unwrap();
        assert_eq!((Bench::sent(&fetch), fetch.request.forgotten), (vec![(1, 10)], vec![key(0)]));
    }
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![refused(0, code::TOPIC_AUTHORIZATION_FAILED)]);
    assert!(effects.errors[0].hint().is_some());
}

#[test]
fn a_lost_connection_pauses_the_broker_and_opens_a_new_session() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![]);
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.request.id, fetch.request.epoch.0), (9, 1));
    let lost = Error::new(crate::error::ErrorKind::Disconnected, "lost");
    assert!(bench.answered(&fetch, Err(lost)).refresh_metadata);
    assert!(bench.plan().is_none());
    bench.now = bench.fetcher.poll_timeout(bench.now, &bench.partitions).unwrap();
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.request.epoch.0, Bench::sent(&fetch)), (0, vec![(0, 0)]));
}

#[test]
fn a_stale_answer_of_a_broker_is_dropped() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let stale = FetchAction { token: Token::STRANGER, request: fetch.request.clone(), ..fetch };
    assert!(!bench.answer(&stale, vec![data(0, batch(0, 10))]).buffered);
    assert!(bench.plan().is_none(), "the fetch is still out");
}

#[test]
fn the_codes_are_the_protocols() {
    use super::code;
    use crate::error::ErrorCode;
    for (code, name) in [
        (code::OFFSET_OUT_OF_RANGE, "OffsetOutOfRange"),
        (code::CORRUPT_MESSAGE, "CorruptMessage"),
        (code::UNKNOWN_TOPIC_OR_PARTITION, "UnknownTopicOrPartition"),
        (code::TOPIC_AUTHORIZATION_FAILED, "TopicAuthorizationFailed"),
        (code::FENCED_LEADER_EPOCH, "FencedLeaderEpoch"),
        (code::UNKNOWN_LEADER_EPOCH, "UnknownLeaderEpoch"),
    ] {
        assert_eq!(ErrorCode(code).name(), name);
    }
}

#[test]
fn every_leader_has_its_turn_where_the_buffer_has_room_for_one_fetch_only() {
    let mut bench = Bench::new(&[1, 2, 3], 1000);
    let mut asked = Vec::new();
    for _ in 0..6 {
        let action = bench.plan().unwrap();
        assert!(bench.plan().is_none(), "there is no room for a second one");
        asked.push(action.broker);
        bench.answer(&action, Vec::new());
    }
    assert_eq!(asked, [1, 2, 3, 1, 2, 3]);
}

/// The batch with a last offset so much higher, as after a compaction that took its last records.
fn compacted(mut batch: Vec<u8>, by: i32) -> Vec<u8> {
    let delta = i32::from_be_bytes(batch[23..27].try_into().unwrap()) + by;
    batch[23..27].copy_from_slice(&delta.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

#[test]
fn offsets_that_compaction_took_are_passed_by_the_next_fetch_and_by_the_commit() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, compacted(batch(0, 10), 5))]);
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
    assert_eq!(bench.covered(0), Some(15));
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 15)]);
}

#[test]
fn an_answer_from_before_a_seek_backwards_is_dropped() {
    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(10)));
    let fetch = bench.plan().unwrap();
    assert_eq!(Bench::sent(&fetch), [(0, 10)]);
    for place in [0, 10] {
        bench.partitions.restart(&key(0), Phase::Fetching(Position::at(place)));
        assert!(!bench.answer(&fetch, vec![data(0, batch(10, 10))]).buffered, "sought to {place}");
        assert_eq!(bench.poll(100), [0i64; 0]);
        let again = bench.plan().unwrap();
        assert!(!bench.answer(&again, vec![]).buffered);
    }
}

#[test]
fn control_batches_are_stepped_over_at_either_isolation() {
    for read_committed in [true, false] {
        let mut bench = Bench::new(&[1], 1 << 20);
        bench.fetcher.settings.read_committed = read_committed;
        let fetch = bench.plan().unwrap();
        let mut marker = batch(10, 10);
        marker[22] |= 0x20; // the control bit of the attributes
        let marker = compacted(marker, 0);
        bench.answer(&fetch, vec![data(0, [batch(0, 10), marker, batch(20, 10)].concat())]);
        assert_eq!(bench.poll(100), (0..10).chain(20..30).collect::<Vec<_>>());
        assert_eq!(bench.covered(0), Some(30));
    }
}

#[test]
fn a_checksum_is_checked_when_it_is_asked_for_and_not_otherwise() {
    for checked in [true, false] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let mut damaged = batch(0, 10);
        damaged[17] ^= 1;
        bench.answer(&fetch, vec![data(0, damaged)]);
        let Next::Decode(job) = bench.partitions.next_chunk(5, Turn::Poll, 1) else { panic!() };
        let (_, result) = job.split().1.run(checked, &bench.decompressor, 1 << 20);
        assert_eq!(result.is_err(), checked);
    }
}

#[test]
fn an_answer_without_progress_is_an_error_with_place_and_is_not_asked_for_again_at_once() {
    let cut = |from: usize, to: usize| batch(0, 10)[from..to].to_vec();
    let mut announced = batch(0, 10);
    announced[8..12].copy_from_slice(&1_000_000i32.to_be_bytes());
    for records in [cut(0, 1), cut(0, 11), cut(0, 40), cut(0, batch(0, 10).len() - 1), announced] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let effects = bench.answer(&fetch, vec![data(0, records)]);
        let error = effects.errors.first().expect("nobody is told");
        assert_eq!((error.topic(), error.partition(), error.offset()), (Some("t"), Some(0), Some(0)));
        assert!(bench.plan().is_none());
        let again = bench.fetcher.poll_timeout(bench.now, &bench.partitions).unwrap();
        assert!(again - bench.now >= Duration::from_secs(1));
        // A seek passes it at once.
        bench.partitions.restart(&key(0), Phase::Fetching(Position::at(10)));
        assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 10)]);
    }
    // A batch that lies before what was asked for moves nothing either.
    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(10)));
    let fetch = bench.plan().unwrap();
    assert_eq!(bench.answer(&fetch, vec![data(0, batch(0, 10))]).errors.len(), 1);
}

#[test]
fn what_the_broker_cannot_explain_is_asked_again_and_is_no_error_of_the_user() {
    let unknown = crate::error::code::UNKNOWN_SERVER_ERROR;
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![refused(0, unknown)]);
    assert!(effects.errors.is_empty() && effects.refresh_metadata);
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let whole = wire::FetchResponse { error_code: unknown, ..Default::default() };
    let effects = bench.answered(&fetch, Ok(whole));
    assert!(effects.errors.is_empty());
    assert!(bench.plan().is_none(), "not at once");
}

#[test]
fn without_a_session_every_partition_gets_its_turn() {
    // The broker has room for 8 of 20 partitions in an answer, and fills it in the order of the request.
    let mut bench = Bench::new(&[1; 20], 1 << 20);
    let mut got = [0; 20];
    for _ in 0..200 {
        let action = bench.plan().unwrap();
        let asked = Bench::sent(&action);
        assert_eq!(asked.len(), 20, "every fetch is a full one");
        let rows = asked.iter().take(8).map(|(partition, offset)| {
            got[*partition as usize] += 1;
            data(*partition, batch(*offset, 10))
        });
        let topic = wire::fetch_response::FetchableTopicResponse {
            topic: "t".into(),
            partitions: rows.collect(),
            ..Default::default()
        };
        let answer = wire::FetchResponse { session_id: 0, responses: vec![topic], ..Default::default() };
        bench.answered(&action, Ok(answer));
        bench.poll(10_000);
    }
    assert!(got.iter().all(|turns| *turns == 80), "{got:?}");
}

#[test]
fn what_is_sought_while_a_fetch_waits_is_asked_for_aside_and_once() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let parked = bench.plan().unwrap();
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(100)));
    assert!(bench.plan().is_none(), "the answer may be on its way");
    bench.now = bench.fetcher.poll_timeout(bench.now, &bench.partitions).unwrap();
    let aside = bench.plan().unwrap();
    assert!(aside.is_aside && aside.max_wait.is_zero());
    assert_eq!((Bench::sent(&aside), aside.request.epoch.0), (vec![(0, 100)], -1));
    assert!(bench.plan().is_none());
    assert!(bench.answer(&aside, vec![data(0, batch(100, 10))]).buffered);
    assert_eq!(bench.poll(100), (100..110).collect::<Vec<_>>());
    // The next place is asked for aside as well; when nothing is there, the session's fetch has it.
    bench.now += SHORT_WAIT;
    let aside = bench.plan().unwrap();
    assert_eq!(Bench::sent(&aside), [(0, 110)]);
    bench.answer(&aside, vec![]);
    bench.now += SHORT_WAIT * 100;
    assert!(bench.plan().is_none());
    assert!(!bench.answer(&parked, vec![data(0, batch(0, 10))]).buffered, "it was asked before the seek");
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 110)]);
}

#[test]
fn a_partition_that_is_full_for_long_costs_no_fetch() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(1, batch(0, 200))]);
    let (mut fetches, until) = (0, bench.now + Duration::from_secs(5));
    while bench.now < until {
        match bench.plan() {
            Some(fetch) => {
                fetches += 1;
                bench.now += fetch.max_wait;
                bench.answer(&fetch, vec![]);
            }
            None => bench.now = bench.fetcher.poll_timeout(bench.now, &bench.partitions).unwrap_or(until),
        }
    }
    assert!(fetches <= 11, "{fetches} fetches in 5 s");
}
