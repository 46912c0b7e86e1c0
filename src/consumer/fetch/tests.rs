//! Fetching without a broker, in virtual time: what all such tests share, plans, memory and what is handed out.

mod damage;
mod sessions;
mod sources;
mod truncation;
mod turns;

use bytes::BytesMut;

use super::*;
use crate::{
    batch::{BatchBuilder, Compressor, Stamp},
    cluster::LeaderHint,
    config::settings::AutoOffsetReset,
    config::settings::Compression,
    consumer::{
        lookups::Lookups,
        offsets::Offsets,
        partitions::{EpochEnd, EpochEnds, Next, PausedBy, Position, ResetTo, Truncation},
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
            min_bytes: 1,
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
            match self.partitions.next_chunk(left, self.fetcher.refill_below()) {
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

    /// What an automatic commit would commit.
    fn to_commit(&self) -> Offsets {
        self.partitions.covered(|_| None, |_| false)
    }

    fn covered(&mut self, partition: i32) -> Option<i64> {
        self.partitions.cover();
        self.to_commit().get(&key(partition)).map(|offset| offset.offset)
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

/// The batch as one of producer 5, with these attributes too.
fn transactional(mut bytes: Vec<u8>, attributes: u8) -> Vec<u8> {
    bytes[22] |= attributes;
    bytes[43..51].copy_from_slice(&5i64.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// That the producer's transaction was aborted.
fn marker(offset: i64) -> Vec<u8> {
    let mut marker = BatchBuilder::new(BytesMut::new());
    marker.append(1, Some(&[0, 0, 0, 0]), Some(&[0; 6]), &[]);
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let mut marker = marker.finish(Stamp::NONE, &compressor).unwrap().bytes.to_vec();
    marker[..8].copy_from_slice(&offset.to_be_bytes());
    transactional(marker, (1 << 4) | (1 << 5))
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
fn leaders_share_the_memory_and_none_takes_the_part_of_another() {
    let many = 4 * LEAST_FETCH / (2 * REFILL as usize);
    let leaders: Vec<i32> = [1, 2].into_iter().flat_map(|leader| vec![leader; many]).collect();
    for (leaders, count) in [(&leaders[..many], 1), (&leaders, 2)] {
        let memory = 4 * LEAST_FETCH;
        let mut bench = Bench::new(leaders, memory);
        let shares: Vec<_> =
            std::iter::from_fn(|| bench.plan()).map(|fetch| fetch.max_bytes as usize).collect();
        assert_eq!(shares.len(), count);
        assert!(shares.iter().all(|share| *share <= memory / shares.len()), "{shares:?}");
        assert!(shares.iter().all(|share| *share > memory / shares.len() * 9 / 10), "{shares:?}");
    }
}

#[test]
fn buffers_of_paused_partitions_make_room_and_are_fetched_again() {
    let mut bench = Bench::new(&[1, 2], 100_000);
    let (first, second) = (bench.plan().unwrap(), bench.plan().unwrap());
    bench.answer(&first, vec![data(0, batch(0, 9_000))]);
    bench.answer(&second, vec![]);
    bench.partitions.set_paused(&key(0), Some(PausedBy::User));
    assert_eq!(bench.plan().unwrap().broker, 2);
    assert_eq!(bench.partitions.buffered(), 0);
    bench.partitions.set_paused(&key(0), None);
    // The session knows offset 0 of the last fetch still, so nothing has to be said again.
    let fetch = bench.plan().unwrap();
    assert_eq!((fetch.broker, Bench::sent(&fetch)), (1, vec![]));
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
}

#[test]
fn buffers_of_paused_partitions_stay_while_there_is_room() {
    // Also where there is just enough for the smallest fetch.
    for memory in [1 << 20, LEAST_FETCH + batch(0, 10).len()] {
        let mut bench = Bench::new(&[1, 2], memory);
        let first = bench.plan().unwrap();
        bench.answer(&first, vec![data(0, batch(0, 10))]);
        bench.partitions.set_paused(&key(0), Some(PausedBy::User));
        let held = bench.partitions.buffered();
        assert_eq!(bench.plan().unwrap().broker, 2);
        assert!(held > 0 && bench.partitions.buffered() == held);
        bench.partitions.set_paused(&key(0), None);
        assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
    }
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
fn batches_decoded_while_the_partition_was_sought_are_dropped() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, vec![data(0, batch(0, 10))]);
    let Next::Decode(job) = bench.partitions.next_chunk(5, 1) else { panic!("nothing to decode") };
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
    assert!(bench.to_commit().is_empty() && bench.partitions.is_outstanding(&[key(0)]));
    assert_eq!(bench.covered(0), Some(4));
    assert!(!bench.partitions.is_outstanding(&[key(0)]));
    bench.poll(100);
    assert_eq!(bench.to_commit()[&key(0)].offset, 4);
    assert_eq!(bench.partitions.positions(|_| None)[&key(0)].offset, 10);
    assert_eq!(bench.covered(0), Some(10));
    let since = bench.now;
    let committed =
        crate::consumer::ledger::Committed { offset: 10, metadata: String::new(), since, is_own: true };
    bench.partitions.set_committed(&key(0), committed);
    assert!(bench.to_commit().is_empty(), "nothing is committed twice");
}

#[test]
fn markers_and_aborted_records_are_stepped_over_and_committed_past() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let records = [
        transactional(batch(0, 1), 1 << 4),  // aborted
        marker(10),                          // its marker
        transactional(batch(11, 1), 1 << 4), // the next transaction of the same producer
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
    assert_eq!(bench.to_commit()[&key(0)].offset, 31);
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
fn resets_in_a_row_are_counted_until_something_is_served() {
    let lookups = Bench::lookups(AutoOffsetReset::Earliest);
    let mut bench = Bench::new(&[1], 1 << 20);
    for _ in 0..2 {
        for resets in 1..4 {
            lookups.handle_out_of_range(bench.now, &key(0), 0, &mut bench.partitions);
            assert_eq!(bench.partitions.get(&key(0)).unwrap().resets, resets);
            bench.partitions.set_position(&key(0), 0, 0);
        }
        bench.now += Duration::from_secs(60);
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, Vec::new())]);
    }
}

#[test]
fn an_offset_outside_the_log_is_for_the_leader_of_now_to_tell() {
    let mut bench = Bench::new(&[1], 1 << 20);
    for (leader, is_believed) in [((2, 1), false), ((2, 1), true), ((2, 2), false), ((2, 2), true)] {
        if is_believed {
            bench.now += Duration::from_secs(1);
        }
        let fetch = bench.plan().unwrap();
        bench.partitions.set_leaders(bench.now, |_| Some(leader));
        let effects = bench.answer(&fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
        assert_eq!(!effects.out_of_range.is_empty(), is_believed, "{leader:?}");
        bench.now += Duration::from_secs(1);
    }
}

#[test]
fn a_position_is_reset_only_when_all_that_was_handed_out_is_done() {
    let policies = [AutoOffsetReset::Earliest, AutoOffsetReset::Latest, AutoOffsetReset::None];
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    for (policy, (by_each, is_truncated)) in
        policies.into_iter().flat_map(|policy| ways.map(|way| (policy, way)))
    {
        let lookups = Bench::lookups(policy);
        let mut bench = Bench::new(&[1], 1 << 20);
        if by_each {
            bench.partitions.acknowledge_each();
        }
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, [batch(0, 10), batch(10, 10)].concat())]);
        let offsets = bench.poll(10);
        if !is_truncated {
            bench.partitions.drop_buffered(&key(0));
        }
        let life = bench.partitions.get(&key(0)).unwrap().life();
        let reset = |bench: &mut Bench| {
            let (now, partitions) = (bench.now, &mut bench.partitions);
            let failed = match is_truncated {
                // By a leader that cannot say where.
                true => {
                    let truncation = Truncation { position: 10, epoch: 0, divergent: None };
                    lookups.handle_truncated(now, &key(0), &truncation, partitions)
                }
                false => lookups.handle_out_of_range(now, &key(0), 10, partitions),
            };
            assert_eq!(failed, partitions.failure().is_some());
            partitions.get(&key(0)).unwrap().life() != life
        };
        assert!(!reset(&mut bench), "{policy} {by_each} {is_truncated}: they are with the user");
        assert!(bench.plan().is_none(), "asked again only after a pause");
        assert_eq!(bench.poll(100), [0i64; 0], "nothing more is handed out of a log that is no more");
        bench.now += Duration::from_secs(60);
        if !is_truncated {
            assert!(bench.plan().is_none(), "the log may have grown to the position meanwhile");
            let questions = lookups.poll_questions(bench.now, &mut bench.partitions);
            assert!(!questions.failed);
            assert_eq!(
                questions.offsets.is_some(),
                matches!(policy, AutoOffsetReset::Latest),
                "its end of now"
            );
            let partition = bench.partitions.get_mut(&key(0)).unwrap();
            (partition.asked, partition.end_before) = (false, questions.offsets.map(|_| 20));
        }
        if by_each {
            // One of them comes back unhandled, and is read again at some time.
            bench.partitions.done(&key(0), life, &offsets[1..]);
            bench.partitions.hand_back(&key(0), life, 0);
            assert!(!reset(&mut bench), "{policy} {is_truncated}: one is not done");
            bench.partitions.rewind(&key(0), life);
        } else {
            bench.partitions.cover();
        }
        assert!(reset(&mut bench), "{policy} {by_each} {is_truncated}");
    }
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
    for (error, hint) in
        [(code::TOPIC_AUTHORIZATION_FAILED, "Read on the topic"), (code::CORRUPT_MESSAGE, "seek past")]
    {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let effects = bench.answer(&fetch, vec![refused(0, error)]);
        let [told] = &effects.errors[..] else { panic!("{:?}", effects.errors) };
        assert!(told.hint().unwrap().contains(hint), "{told}");
    }
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![refused(0, code::UNSUPPORTED_VERSION)]);
    assert_eq!((effects.errors.len(), effects.refresh_metadata), (1, false), "asking again does not help");
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
