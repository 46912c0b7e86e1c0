use bytes::BytesMut;

use super::*;
use crate::{
    batch::{BatchBuilder, Compressor, Stamp},
    cluster::LeaderHint,
    config::settings::AutoOffsetReset,
    config::settings::Compression,
    consumer::{
        lookups::Lookups,
        partitions::{EpochEnd, EpochEnds, Next, Position, ResetTo, Turn},
    },
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
            max_partition_bytes: 2 * REFILL,
            max_wait: Duration::from_millis(500),
            buffer_memory,
            read_committed: true,
            check_crcs: true,
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
            replica_max_age: Duration::from_secs(300),
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

    fn forgotten(action: &FetchAction) -> Vec<i32> {
        action.request.forgotten.iter().map(|(key, _)| key.partition).collect()
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
            match self.partitions.next_chunk(left, Turn::Poll, self.fetcher.refill_below()) {
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
    assert_eq!(Bench::forgotten(&fetch), [0]);
    assert_eq!(fetch.max_wait, Duration::from_millis(500), "nobody waits for it as long as nobody polls");
    assert_eq!(bench.poll(100).len(), 10);
    assert!(bench.partitions.take_wants_fetch());
    assert!(bench.plan().is_none());
    bench.now += SHORT_WAIT;
    let aside = bench.plan().unwrap();
    assert!(aside.is_aside && Bench::sent(&aside) == [(0, 10)], "it must not wait for partition 1");
}

#[test]
fn an_answer_that_nobody_asked_for_begins_the_session_anew_after_a_pause() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    let fetch = bench.plan().unwrap();
    assert_eq!(Bench::sent(&fetch), [(0, 10)], "the session stands");
    bench.answer(&fetch, vec![data(7, Vec::new())]);
    assert!(bench.plan().is_none(), "at once it would be told the same");
    bench.now += Duration::from_millis(200);
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 10), (1, 0)], "all is told again");
}

#[test]
fn a_fetch_that_waits_for_memory_is_asked_for_as_soon_as_there_is_some() {
    let mut bench = Bench::new(&[1; 60], 80 << 10);
    let fetch = bench.plan().unwrap();
    // Each below every mark, and together more than leaves room for a fetch.
    let answered = (0..60).map(|partition| data(partition, batch(0, 30))).collect();
    bench.answer(&fetch, answered);
    for _ in 0..60 {
        if bench.plan().is_some() {
            return;
        }
        assert_eq!(bench.poll(10).len(), 10);
        let wants = bench.partitions.take_wants_fetch();
        assert!(wants && bench.fetcher.is_due(bench.now, &mut bench.partitions), "nobody would ask again");
    }
    panic!("nothing is asked for although all is read");
}

#[test]
fn partitions_that_are_read_side_by_side_are_asked_for_together_unless_one_runs_low() {
    let some = |partition, from: i64, batches: i64| {
        let batches = (0..batches).map(|n| batch(from + n * 10, 55));
        data(partition, batches.flatten().collect())
    };
    let mut bench = Bench::new(&[1, 1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![some(0, 0, 3), some(1, 0, 3), some(2, 0, 3)]);
    for poll in 0..5 {
        assert!(bench.plan().is_none(), "poll {poll}");
        assert_eq!(bench.poll(10).len(), 10);
        let is_due =
            bench.partitions.take_wants_fetch() && bench.fetcher.is_due(bench.now, &mut bench.partitions);
        assert!(!is_due, "the driver is not woken for one that waits for the others: poll {poll}");
    }
    bench.poll(10);
    assert!(bench.partitions.take_wants_fetch() && bench.fetcher.is_due(bench.now, &mut bench.partitions));
    let fetch = bench.plan().unwrap();
    assert_eq!(Bench::sent(&fetch), [(0, 30), (1, 30), (2, 30)]);
    // One that has nothing left waits for nobody.
    bench.answer(&fetch, vec![some(1, 30, 3), some(2, 30, 3)]);
    assert!(bench.plan().is_none(), "it has some");
    bench.poll(10);
    assert_eq!(Bench::forgotten(&bench.plan().unwrap()), [1, 2], "it is asked for alone");
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
    assert_eq!((fetch.broker, Bench::forgotten(&fetch)), (1, vec![1]));
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
    assert_eq!((fetch.broker, Bench::forgotten(&fetch)), (1, vec![1]));
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
    let since = bench.now;
    let committed =
        crate::consumer::ledger::Committed { offset: 10, metadata: String::new(), since, is_own: true };
    bench.partitions.set_committed(&key(0), committed);
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
        assert_eq!((Bench::sent(&fetch), Bench::forgotten(&fetch)), (vec![(1, 10)], vec![0]));
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
fn why_nothing_comes_is_known_until_something_comes() {
    let mut bench = Bench::new(&[1, 1, 2], 1 << 20);
    let why = |bench: &Bench, partition| {
        let partition = bench.partitions.get(&key(partition)).unwrap();
        bench.fetcher.why(bench.now, partition).map(ToString::to_string)
    };
    let (fetch, _other) = (bench.plan().unwrap(), bench.plan().unwrap());
    assert_eq!(why(&bench, 0), None);
    bench.answered(&fetch, Err(Error::new(crate::error::ErrorKind::Disconnected, "it closed")));
    assert!(why(&bench, 0).unwrap().contains("it closed") && why(&bench, 1).is_some());
    assert_eq!(why(&bench, 2), None, "of another broker");
    bench.now += Duration::from_secs(1);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![refused(0, 56), data(1, batch(0, 10))]);
    assert!(why(&bench, 0).unwrap().contains("KafkaStorageError"));
    assert_eq!(why(&bench, 1), None, "it has brought something");
    // Others go on; what is not asked for again is still refused.
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(1, batch(10, 10))]);
    assert!(why(&bench, 0).is_some());
    bench.now += Duration::from_secs(1);
    let fetch = bench.plan().unwrap();
    assert!(Bench::sent(&fetch).contains(&(0, 0)));
    bench.answer(&fetch, vec![]);
    assert_eq!(why(&bench, 0), None, "a session does not tell of what has not changed");
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
fn what_was_refused_aside_is_not_refused_any_more_once_the_session_has_it() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    let parked = bench.plan().unwrap();
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(100)));
    bench.plan();
    bench.now = bench.fetcher.poll_timeout(bench.now, &bench.partitions).unwrap();
    let aside = bench.plan().unwrap();
    bench.answer(&aside, vec![refused(0, 56)]);
    let is_refused =
        |bench: &Bench| bench.fetcher.why(bench.now, bench.partitions.get(&key(0)).unwrap()).is_some();
    assert!(aside.is_aside && is_refused(&bench));
    bench.answer(&parked, vec![]);
    bench.now += Duration::from_secs(2);
    let fetch = bench.plan().unwrap();
    assert!(!fetch.is_aside && Bench::sent(&fetch).contains(&(0, 100)));
    bench.answer(&fetch, vec![]);
    assert!(!is_refused(&bench));
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

/// As [`batch`], of this leader epoch.
fn batch_of(base_offset: i64, epoch: i32) -> Vec<u8> {
    let mut bytes = batch(base_offset, 10);
    // Not under the CRC.
    bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
    bytes
}

impl Bench {
    /// Partition 0 of broker 1 at epoch 3, with records up to 20 fetched of which `taken` were handed out.
    fn read_up_to_20(taken: usize) -> Self {
        let mut bench = Self::new(&[1], 1 << 20);
        bench.lead(1, 3);
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, [batch_of(0, 2), batch_of(10, 3)].concat())]);
        assert_eq!(bench.poll(taken).len(), taken);
        bench
    }

    fn lead(&mut self, broker: i32, epoch: i32) {
        self.partitions.set_leaders(self.now, |_| Some((broker, epoch)));
    }

    fn lookups(policy: AutoOffsetReset) -> Lookups {
        let pause = Duration::from_millis(100);
        Lookups::new(policy, pause, Backoff::new(pause, pause * 10), Rng::new(1))
    }

    /// The new leader answers the one question that there must be.
    fn check(&mut self, lookups: &mut Lookups, epoch: i32, offset: i64) -> crate::consumer::lookups::Effects {
        let (_, checks) = lookups.poll_questions(self.now, &mut self.partitions).checks.unwrap();
        assert!(self.plan().is_none_or(|fetch| Self::sent(&fetch).is_empty()), "it is not fetched unchecked");
        let ends = EpochEnds::from([(key(0), Ok(EpochEnd { epoch, offset }))]);
        lookups.handle_epoch_ends(self.now, &checks, Ok(Some(ends)), &mut self.partitions)
    }

    fn position(&self) -> Position {
        self.partitions.get(&key(0)).unwrap().position().unwrap()
    }
}

#[test]
fn a_new_leader_is_asked_whether_it_has_what_was_fetched_before_it_is_fetched_from() {
    let mut bench = Bench::read_up_to_20(5);
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    bench.lead(2, 4);
    let (broker, checks) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
    assert_eq!((broker, checks[0].leader_epoch, checks[0].epoch, checks[0].offset), (2, 4, 3, 20));
    assert!(bench.plan().is_none());
    assert_eq!(bench.poll(3), [5, 6, 7], "what is there is handed out meanwhile");
    bench.lead(1, 5);
    let ends = EpochEnds::from([(key(0), Ok(EpochEnd { epoch: 1, offset: 0 }))]);
    lookups.handle_epoch_ends(bench.now, &checks, Ok(Some(ends)), &mut bench.partitions);
    assert_eq!(bench.position().next, 8, "what a former leader says is nothing any more");
    bench.check(&mut lookups, 3, 25);
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.broker, Bench::sent(&fetch)), (1, vec![(0, 20)]));
    assert_eq!(fetch.request.partitions[0].1.last_epoch, 3);
}

#[test]
fn a_log_cut_behind_the_position_is_fetched_again_from_the_position() {
    let mut bench = Bench::read_up_to_20(12);
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    bench.lead(2, 4);
    let effects = bench.check(&mut lookups, 3, 15);
    assert!(effects.errors.is_empty() && !effects.settled);
    assert_eq!((bench.position().next, bench.position().fetch), (12, 12));
    assert_eq!(bench.partitions.buffered(), 0);
    bench.check(&mut lookups, 3, 15);
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 12)]);
}

#[test]
fn a_log_cut_before_the_position_is_read_on_where_it_was_cut_or_is_an_error_by_the_reset_policy() {
    for policy in [AutoOffsetReset::Earliest, AutoOffsetReset::Latest] {
        let mut bench = Bench::read_up_to_20(20);
        let mut lookups = Bench::lookups(policy);
        assert_eq!(bench.covered(0), Some(20));
        bench.lead(2, 4);
        bench.check(&mut lookups, 2, 10);
        assert_eq!(bench.position(), Position::after(10, 2));
        assert_eq!(bench.covered(0), Some(10), "the next automatic commit goes back");
        // The record before it is of an epoch that is not the leader's: it is asked about as well.
        bench.check(&mut lookups, 2, 10);
        assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 10)]);
    }
    let mut bench = Bench::read_up_to_20(20);
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    bench.lead(2, 4);
    assert!(bench.check(&mut lookups, 2, 10).settled);
    let error = bench.partitions.failure().unwrap();
    assert_eq!((error.topic(), error.partition()), (Some("t"), Some(0)));
    assert_eq!((error.offset(), error.divergent_offset()), (Some(20), Some(10)), "{error}");
}

#[test]
fn what_was_handed_out_before_the_cut_and_is_not_done_is_neither_committed_nor_skipped() {
    let mut bench = Bench::read_up_to_20(5);
    bench.partitions.cover();
    assert_eq!(bench.poll(10).len(), 10);
    let mut lookups = Bench::lookups(AutoOffsetReset::Latest);
    bench.lead(2, 4);
    bench.check(&mut lookups, 2, 10);
    assert_eq!(bench.partitions.covered(|_| None)[&key(0)].offset, 5, "5 to 9 are still in the user's hands");
    assert_eq!(bench.covered(0), Some(10), "the next poll covers them");

    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.acknowledge_each();
    bench.lead(1, 3);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch_of(0, 3))]);
    assert_eq!(bench.poll(10).len(), 10);
    bench.lead(2, 4);
    bench.check(&mut lookups, 3, 7);
    assert_eq!(bench.position().next, 0, "nothing was acknowledged: all of it comes again");
}

#[test]
fn a_leader_that_knows_no_such_epoch_leaves_it_to_the_reset_policy() {
    // Its log begins later: where they part nobody can say.
    let mut bench = Bench::read_up_to_20(20);
    let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.lead(2, 4);
    bench.check(&mut lookups, -1, -1);
    let partition = bench.partitions.get(&key(0)).unwrap();
    assert!(matches!(partition.phase(), Phase::AwaitingReset(ResetTo::Earliest)), "{partition:?}");
}

#[test]
fn an_epoch_that_is_gone_from_a_log_that_has_the_offsets_is_no_truncation() {
    for end in [20, 30] {
        let mut bench = Bench::read_up_to_20(20);
        let mut lookups = Bench::lookups(AutoOffsetReset::None);
        assert_eq!(bench.covered(0), Some(20));
        bench.lead(2, 4);
        assert!(!bench.check(&mut lookups, 2, end).settled);
        assert_eq!(bench.position(), Position::after(20, -1));
        let fetch = bench.plan().unwrap();
        assert_eq!((Bench::sent(&fetch), fetch.request.partitions[0].1.last_epoch), (vec![(0, 20)], -1));
        assert_eq!(bench.partitions.covered(|_| None)[&key(0)].leader_epoch, -1);
    }
    // What waits to be handed out ends behind: that is fetched again, and nothing else.
    let mut bench = Bench::read_up_to_20(15);
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    bench.lead(2, 4);
    assert!(!bench.check(&mut lookups, 2, 17).settled);
    assert!(!bench.check(&mut lookups, 2, 17).settled);
    assert_eq!(bench.position(), Position::after(15, -1));
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 15)]);
}

#[test]
fn a_fetch_that_tells_of_an_epoch_that_is_gone_is_sent_once_more_without_epochs() {
    for epoch in [2, 3] {
        let mut bench = Bench::read_up_to_20(20);
        let fetch = bench.plan().unwrap();
        assert_eq!(fetch.request.partitions[0].1.last_epoch, 3);
        let mut diverged = data(0, Vec::new());
        diverged.diverging_epoch.epoch = epoch;
        diverged.diverging_epoch.end_offset = 25;
        let effects = bench.answer(&fetch, vec![diverged]);
        assert!(effects.truncated.is_empty() && effects.errors.is_empty());
        bench.now += Duration::from_millis(100);
        let fetch = bench.plan().unwrap();
        assert_eq!((Bench::sent(&fetch), fetch.request.partitions[0].1.last_epoch), (vec![(0, 20)], -1));
    }
}

#[test]
fn a_leader_of_an_earlier_epoch_than_the_position_is_neither_asked_nor_fetched_from() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.lead(1, 3);
    bench.partitions.set_position(&key(0), 50, 5);
    for _ in 0..3 {
        let questions = lookups.poll_questions(bench.now, &mut bench.partitions);
        assert!(questions.checks.is_none() && questions.leaderless, "the metadata is refreshed");
        assert!(!lookups.poll_questions(bench.now, &mut bench.partitions).leaderless, "after a pause");
        assert!(bench.plan().is_none());
        bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
    }
    bench.lead(2, 6);
    bench.check(&mut lookups, 5, 60);
    assert_eq!(bench.position(), Position::after(50, 5));
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 50)]);
}

#[test]
fn a_position_of_an_epoch_that_never_comes_is_read_from_in_the_end() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.lead(1, 3);
    bench.partitions.set_position(&key(0), 50, 5);
    let begun = bench.now;
    while lookups.poll_questions(bench.now, &mut bench.partitions).leaderless {
        assert!(bench.plan().is_none());
        bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
    }
    let waited = bench.now - begun;
    assert!((Duration::from_secs(10)..Duration::from_secs(60)).contains(&waited), "{waited:?}");
    assert_eq!(bench.position(), Position::after(50, -1));
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 50)]);
}

#[test]
fn what_is_evicted_while_it_is_checked_is_not_asked_about_without_an_epoch() {
    for (taken, epoch) in [(0, None), (5, Some(2))] {
        let mut bench = Bench::read_up_to_20(taken);
        let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
        bench.partitions.set_paused(&key(0), true);
        bench.lead(2, 4);
        let (_, stale) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
        bench.partitions.evict_paused();
        bench.partitions.set_paused(&key(0), false);
        let ends = EpochEnds::from([(key(0), Ok(EpochEnd { epoch: -1, offset: -1 }))]);
        lookups.handle_epoch_ends(bench.now, &stale, Ok(Some(ends)), &mut bench.partitions);
        assert_eq!(bench.position().fetch, i64::try_from(taken).unwrap());
        let checks = lookups.poll_questions(bench.now, &mut bench.partitions).checks;
        assert_eq!(checks.map(|(_, checks)| checks[0].epoch), epoch);
        assert_eq!(bench.plan().is_some_and(|fetch| !Bench::sent(&fetch).is_empty()), epoch.is_none());
        // The next leader is asked, if there is something to ask about.
        bench.lead(3, 5);
        let checks = lookups.poll_questions(bench.now, &mut bench.partitions).checks;
        assert_eq!(checks.map(|(broker, checks)| (broker, checks[0].epoch)), epoch.map(|epoch| (3, epoch)));
    }
}

#[test]
fn what_is_evicted_is_checked_if_its_epoch_is_not_the_leaders() {
    // Partition 0 is led at epoch 3, and what was fetched last is of it; what was handed out last is of epoch 2.
    let mut bench = Bench::read_up_to_20(5);
    let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.partitions.set_paused(&key(0), true);
    bench.partitions.evict_paused();
    bench.partitions.set_paused(&key(0), false);
    bench.check(&mut lookups, 2, 10);
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 5)]);
}

#[test]
fn what_is_stepped_over_gives_the_position_its_epoch() {
    let mut bench = Bench::read_up_to_20(20);
    let fetch = bench.plan().unwrap();
    let mut marker = batch_of(20, 4);
    marker[22] |= (1 << 4) | (1 << 5);
    let crc = crc32c::crc32c(&marker[21..]);
    marker[17..21].copy_from_slice(&crc.to_be_bytes());
    bench.answer(&fetch, vec![data(0, marker)]);
    assert_eq!(bench.poll(100), [0_i64; 0]);
    assert_eq!(bench.position(), Position::after(30, 4));
    assert_eq!(bench.covered(0), Some(30));
    assert_eq!(bench.partitions.covered(|_| None)[&key(0)].leader_epoch, 4);
}

#[test]
fn where_no_epoch_can_be_compared_nothing_is_asked() {
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    // Of a broker without the API.
    let mut bench = Bench::read_up_to_20(20);
    bench.lead(2, 4);
    let (_, checks) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
    lookups.handle_epoch_ends(bench.now, &checks, Ok(None), &mut bench.partitions);
    assert_eq!(Bench::sent(&bench.plan().unwrap()), [(0, 20)]);
    // A leader without an epoch, the epoch that was read, and a position whose epoch nobody knows.
    for (epoch, at) in [(-1, None), (3, None), (9, Some(7))] {
        let mut bench = Bench::read_up_to_20(20);
        if let Some(at) = at {
            bench.partitions.restart(&key(0), Phase::Fetching(Position::at(at)));
        }
        bench.lead(2, epoch);
        assert!(lookups.poll_questions(bench.now, &mut bench.partitions).checks.is_none());
        assert!(bench.plan().is_some());
    }
}

#[test]
fn what_was_in_the_way_of_a_check_is_nothing_any_more_once_there_is_no_doubt() {
    let mut lookups = Bench::lookups(AutoOffsetReset::None);
    for leads_again in [false, true] {
        let mut bench = Bench::read_up_to_20(20);
        bench.lead(2, 4);
        let (_, checks) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
        let ends = EpochEnds::from([(key(0), Err(code::NOT_LEADER_OR_FOLLOWER))]);
        lookups.handle_epoch_ends(bench.now, &checks, Ok(Some(ends)), &mut bench.partitions);
        let why = |bench: &Bench| {
            let partition = bench.partitions.get(&key(0)).unwrap();
            bench.fetcher.why(bench.now, partition).is_some()
        };
        assert!(why(&bench));
        match leads_again {
            true => bench.lead(1, 3),
            false => {
                bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
                drop(bench.check(&mut lookups, 3, 25));
            }
        }
        assert!(!why(&bench), "an idle partition is no partition that cannot be read");
    }
}

#[test]
fn a_committed_offset_of_another_epoch_is_checked_before_it_is_read_from() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.lead(1, 6);
    bench.partitions.set_position(&key(0), 50, 4);
    bench.check(&mut lookups, 4, 40);
    assert_eq!(bench.position(), Position::after(40, 4));
}

#[test]
fn a_check_that_fails_is_asked_again_after_a_pause_and_metadata_is_refreshed() {
    let mut bench = Bench::read_up_to_20(20);
    let mut lookups = Bench::lookups(AutoOffsetReset::Earliest);
    bench.lead(2, 4);
    for code in [code::FENCED_LEADER_EPOCH, code::UNKNOWN_LEADER_EPOCH, code::NOT_LEADER_OR_FOLLOWER] {
        let (_, checks) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
        let ends = EpochEnds::from([(key(0), Err(code))]);
        let effects = lookups.handle_epoch_ends(bench.now, &checks, Ok(Some(ends)), &mut bench.partitions);
        assert!(effects.refresh_metadata && effects.errors.is_empty());
        assert!(lookups.poll_questions(bench.now, &mut bench.partitions).checks.is_none());
        bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
    }
}

#[test]
fn a_diverging_epoch_in_a_fetch_answer_is_a_truncation() {
    let mut bench = Bench::read_up_to_20(20);
    let fetch = bench.plan().unwrap();
    let mut diverged = data(0, Vec::new());
    diverged.diverging_epoch.epoch = 2;
    diverged.diverging_epoch.end_offset = 10;
    let effects = bench.answer(&fetch, vec![diverged]);
    assert_eq!(effects.truncated[0].1.divergent, Some((10, 2)));
    assert_eq!(effects.truncated[0].1.position, 20);
}

#[test]
fn a_topic_made_again_is_read_by_the_reset_policy_and_nothing_of_the_old_one_is_committed() {
    let ids = |bench: &mut Bench, id: u8| bench.partitions.set_topic_ids(|_| [id; 16]);
    let mut bench = Bench::read_up_to_20(20);
    assert!(ids(&mut bench, 1).is_empty(), "an id that is heard of first is no news");
    assert!(ids(&mut bench, 0).is_empty(), "nor is a broker that tells none");
    assert_eq!(bench.covered(0), Some(20));
    let again = ids(&mut bench, 2);
    assert_eq!(again, [key(0)]);
    for (policy, fails) in [(AutoOffsetReset::Earliest, false), (AutoOffsetReset::None, true)] {
        assert_eq!(Bench::lookups(policy).handle_made_again(&again, &mut bench.partitions), fails);
        assert_eq!(bench.covered(0), None);
        assert_eq!(bench.partitions.buffered(), 0);
    }
    let error = bench.partitions.failure().unwrap();
    assert!(error.to_string().contains("made again"), "{error}");
}

#[test]
fn topics_are_asked_for_by_id_and_answers_are_told_apart_by_it() {
    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.set_topic_ids(|_| [7; 16]);
    let fetch = bench.plan().unwrap();
    assert!(fetch.request.by_id);
    let answer = |id: u8| wire::FetchResponse {
        session_id: 9,
        responses: vec![wire::fetch_response::FetchableTopicResponse {
            topic_id: wire::Uuid([id; 16]),
            partitions: vec![data(0, batch(0, 10))],
            ..Default::default()
        }],
        ..Default::default()
    };
    bench.answered(&fetch, Ok(answer(6)));
    assert_eq!(bench.position().fetch, 0, "that is another topic");
    bench.now += Duration::from_millis(200);
    let fetch = bench.plan().unwrap();
    bench.answered(&fetch, Ok(answer(7)));
    assert_eq!(bench.position().fetch, 10);
}

#[test]
fn the_nearest_replica_is_read_until_it_refuses_and_at_most_for_its_time() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let send_to_2 = |bench: &mut Bench| {
        let fetch = bench.plan().unwrap();
        assert_eq!(fetch.broker, 1);
        let mut nearer = data(0, Vec::new());
        nearer.preferred_read_replica = 2;
        bench.answer(&fetch, vec![nearer]);
        // The session with it may have the partition on its list still.
        bench.plan().filter(|fetch| fetch.broker == 2).unwrap()
    };
    // One that lags has not got that far: its leader has.
    let fetch = send_to_2(&mut bench);
    let effects = bench.answer(&fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
    assert!(effects.out_of_range.is_empty(), "only the leader's word is taken for that");
    bench.now += Duration::from_millis(100);
    // One that cannot be reached.
    let fetch = send_to_2(&mut bench);
    bench.answered(&fetch, Err(Error::new(crate::ErrorKind::Disconnected, "gone")));
    bench.now += Duration::from_secs(2);
    // Its time is over.
    let fetch = send_to_2(&mut bench);
    bench.answer(&fetch, vec![data(0, Vec::new())]);
    bench.now += Duration::from_secs(300);
    bench.partitions.check_replicas(bench.now, |_| true);
    // It is not among the brokers any more.
    let fetch = send_to_2(&mut bench);
    bench.partitions.check_replicas(bench.now, |broker| broker != 2);
    bench.answer(&fetch, Vec::new());
    // The leader moves.
    send_to_2(&mut bench);
    bench.lead(1, 1);
    assert_eq!(bench.plan().map(|fetch| fetch.broker), Some(1));
}

#[test]
fn a_leader_that_has_named_a_replica_that_failed_is_not_asked_for_one_for_long() {
    let (second, five_minutes) = (Duration::from_secs(1), Duration::from_secs(300));
    type Fail = fn(&mut Bench, &FetchAction);
    let fails: [(Fail, Duration); 4] = [
        (
            |bench, fetch| {
                bench.answer(fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
            },
            second,
        ),
        (
            |bench, fetch| {
                bench.answer(fetch, vec![refused(0, code::NOT_LEADER_OR_FOLLOWER)]);
            },
            five_minutes,
        ),
        (
            |bench, fetch| {
                let gone = Error::new(crate::ErrorKind::Disconnected, "gone");
                bench.answered(fetch, Err(gone));
            },
            five_minutes,
        ),
        (
            |bench, fetch| {
                let denied = wire::FetchResponse { error_code: 31, ..Default::default() };
                bench.answered(fetch, Ok(denied));
            },
            five_minutes,
        ),
    ];
    for (fail, pause) in fails {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && fetch.names_rack);
        let mut nearer = data(0, Vec::new());
        nearer.preferred_read_replica = 2;
        bench.answer(&fetch, vec![nearer]);
        let fetch = bench.plan().filter(|fetch| fetch.broker == 2).unwrap();
        let failed = bench.now;
        fail(&mut bench, &fetch);
        bench.now += Duration::from_millis(100);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && !fetch.names_rack, "the leader serves it itself");
        bench.answer(&fetch, vec![data(0, batch(0, 10))]);
        bench.now = failed + pause - Duration::from_millis(1);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && !fetch.names_rack);
        bench.answer(&fetch, vec![]);
        bench.now = failed + pause;
        assert!(bench.plan().is_some_and(|fetch| fetch.broker == 1 && fetch.names_rack));
    }
}

#[test]
fn a_refusal_that_names_the_leader_is_handed_on() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let mut moved = refused(0, code::NOT_LEADER_OR_FOLLOWER);
    moved.current_leader.leader_id = 2;
    moved.current_leader.leader_epoch = 1;
    let effects = bench.answer(&fetch, vec![moved]);
    assert_eq!(effects.hints, [LeaderHint { partition: key(0), topic_id: [0; 16], leader: 2, epoch: 1 }]);
    assert!(effects.refresh_metadata);
}

/// The error that a poll ends with, when the damaged batch is put back.
fn damage(bench: &mut Bench) -> Error {
    let Next::Decode(job) = bench.partitions.next_chunk(500, Turn::Poll, 1) else {
        panic!("nothing to decode")
    };
    let (key, decoding) = job.split();
    let (decoded, result) = decoding.run(true, &bench.decompressor, 1 << 20);
    bench.partitions.check_in(key, decoded, true);
    result.unwrap_err()
}

#[test]
fn what_stands_before_a_batch_with_a_wrong_count_is_handed_out_first_and_is_never_taken_for_it() {
    for count in [i32::MAX, 1_000, -1] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let mut wrong = batch(10, 10);
        wrong[57..61].copy_from_slice(&count.to_be_bytes());
        let effects =
            bench.answer(&fetch, vec![data(0, [batch(0, 10), wrong.clone(), batch(20, 10)].concat())]);
        assert!(effects.errors.is_empty(), "{:?}", effects.errors);
        let error = damage(&mut bench);
        assert_eq!((error.offset(), error.last_offset()), (Some(10), Some(19)));
        let found = |bench: &Bench| bench.partitions.get(&key(0)).unwrap().damaged(&error).unwrap();
        assert_eq!(found(&bench), None, "the good one stands in front");
        // As it came, too.
        bench.partitions.restart(&key(0), Phase::Fetching(Position::at(0)));
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, [batch(0, 10), wrong.clone()].concat())]);
        assert_eq!(found(&bench), None);
        bench.partitions.restart(&key(0), Phase::Fetching(Position::at(0)));
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, [batch(0, 10), wrong.clone(), batch(20, 10)].concat())]);
        damage(&mut bench);
        assert_eq!(bench.poll(10), (0..10).collect::<Vec<_>>());
        assert_eq!(found(&bench).unwrap(), wrong);
    }
}

#[test]
fn what_cannot_be_told_apart_into_batches_is_an_error_when_all_before_it_is_handed_out() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let mut unknown = batch(10, 10);
    unknown[16] = 9; // the magic
    let effects = bench.answer(&fetch, vec![data(0, [batch(0, 10), unknown.clone()].concat())]);
    assert!(effects.errors.is_empty() && effects.buffered);
    assert!(bench.plan().is_none(), "nothing is asked in vain meanwhile");
    bench.now += Duration::from_millis(100);
    let fetch = bench.plan().unwrap();
    assert_eq!(Bench::sent(&fetch), [(0, 10)]);
    assert!(
        bench.answer(&fetch, vec![data(0, unknown.clone())]).errors.is_empty(),
        "there is still something"
    );
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
    bench.now += Duration::from_millis(100);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![data(0, unknown)]);
    assert_eq!(effects.errors[0].offset(), Some(10));
}

#[test]
fn a_damaged_header_has_no_batch_passed_over_in_silence() {
    let aborted = wire::fetch_response::AbortedTransaction { producer_id: 5, first_offset: 0 };
    let control: &dyn Fn(&mut Vec<u8>) = &|batch| batch[22] ^= 0x20;
    let producer: &dyn Fn(&mut Vec<u8>) = &|batch| {
        batch[22] |= 0x10;
        batch[50] = 5;
        batch[43..50].fill(0);
    };
    for (flip, read_committed, checked) in
        [(control, true, true), (control, false, true), (producer, true, true), (control, true, false)]
    {
        let mut bench = Bench::new(&[1], 1 << 20);
        bench.fetcher.settings.read_committed = read_committed;
        bench.fetcher.settings.check_crcs = checked;
        let fetch = bench.plan().unwrap();
        let mut flipped = batch(10, 10);
        flip(&mut flipped);
        let mut answer = data(0, [batch(0, 10), flipped, batch(20, 10)].concat());
        answer.aborted_transactions = Some(vec![aborted.clone()]);
        answer.last_stable_offset = 1_000;
        bench.answer(&fetch, vec![answer]);
        if !checked {
            // Who does not ask for it believes the header.
            assert_eq!(bench.poll(100), (0..10).chain(20..30).collect::<Vec<_>>());
            continue;
        }
        let error = damage(&mut bench);
        assert_eq!((error.offset(), error.last_offset()), (Some(10), Some(19)));
        assert!(error.to_string().contains("CRC"), "{error}");
        assert_eq!(bench.poll(10), (0..10).collect::<Vec<_>>());
        assert_eq!(bench.covered(0), Some(10), "never past the damage");
    }
}

#[test]
fn a_damaged_batch_is_passed_over_as_far_as_the_next_one_or_not_at_all_where_its_end_cannot_be() {
    let damaged = |delta: i32| {
        let mut damaged = batch(0, 10);
        damaged[23..27].copy_from_slice(&delta.to_be_bytes());
        damaged
    };
    let found = |delta: i32, next: Vec<u8>, at: i64| {
        let mut bench = Bench::new(&[1], 1 << 20);
        bench.partitions.restart(&key(0), Phase::Fetching(Position::at(at)));
        let fetch = bench.plan().unwrap();
        let effects = bench.answer(&fetch, vec![data(0, [damaged(delta), next].concat())]);
        assert!(effects.errors.is_empty(), "{:?}", effects.errors);
        let error = damage(&mut bench);
        let fetched = bench.partitions.get(&key(0)).unwrap().position().unwrap().fetch;
        let found = bench.partitions.get(&key(0)).unwrap().damaged(&error);
        (
            error.last_offset().unwrap(),
            fetched,
            found.map(|bytes| bytes.is_some()).map_err(|error| error.hint().is_some()),
        )
    };
    // Too far, and too short: the next one tells. 1,000 is the end of the log.
    for delta in [500, 5_000, 3] {
        assert_eq!(found(delta, batch(10, 10), 0), (9, 20, Ok(true)), "{delta}");
    }
    // In its middle, too.
    assert_eq!(found(3, batch(10, 10), 5), (9, 20, Ok(true)));
    assert_eq!(found(999, Vec::new(), 0), (999, 1_000, Ok(true)));
    assert_eq!(found(1_000, Vec::new(), 0), (1_000, 1_001, Err(true)), "behind the end of the log");
}
