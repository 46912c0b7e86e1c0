//! Batches that cannot be read, and answers that bring nothing.

use super::*;

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
fn a_checksum_is_checked_when_it_is_asked_for_and_not_otherwise() {
    for checked in [true, false] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        let mut damaged = batch(0, 10);
        damaged[17] ^= 1;
        bench.answer(&fetch, vec![data(0, damaged)]);
        let Next::Decode(job) = bench.partitions.next_chunk(5, 1) else { panic!() };
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

/// The error that a poll ends with, when the damaged batch is put back.
fn damage(bench: &mut Bench) -> Error {
    let Next::Decode(job) = bench.partitions.next_chunk(500, 1) else { panic!("nothing to decode") };
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
fn what_cannot_be_taken_in_behind_records_that_wait_is_asked_for_again_when_they_are_gone() {
    let mut unknown = batch(10, 10);
    unknown[16] = 9;
    let cut = batch(10, 10)[..40].to_vec();
    for bad in [unknown, cut] {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        assert!(bench.answer(&fetch, vec![data(0, [batch(0, 10), bad.clone()].concat())]).errors.is_empty());
        if let Some(fetch) = bench.plan() {
            // A batch that is cut off may have come whole the next time.
            assert_eq!(Bench::sent(&fetch), [(0, 10)]);
            assert!(bench.answer(&fetch, vec![data(0, bad.clone())]).errors.is_empty());
        }
        for _ in 0..100 {
            assert!(bench.plan().is_none() && bench.poll(0).is_empty());
            bench.now += Duration::from_secs(10);
        }
        assert_eq!(bench.poll(4), (0..4).collect::<Vec<_>>());
        assert!(bench.plan().is_none());
        assert_eq!(bench.poll(100), (4..10).collect::<Vec<_>>());
        let fetch = bench.plan().expect("nothing is left before it");
        assert_eq!(bench.answer(&fetch, vec![data(0, bad)]).errors[0].offset(), Some(10));
        bench.now += Duration::from_secs(2);
        let fetch = bench.plan().expect("it may have been mended");
        bench.answer(&fetch, vec![data(0, batch(10, 10))]);
        assert_eq!(bench.poll(100), (10..20).collect::<Vec<_>>());
    }
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

#[test]
fn a_broker_that_answers_at_once_with_nothing_is_asked_less_and_less_often() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let before = bench.now;
        let fetch = loop {
            match bench.plan() {
                Some(fetch) => break fetch,
                None => bench.now += Duration::from_millis(10),
            }
        };
        pauses.push((bench.now - before).as_millis());
        bench.answer(&fetch, Vec::new());
    }
    assert!(pauses[..5].iter().all(|pause| *pause == 0), "{pauses:?}");
    assert!(pauses[11] > 5 * pauses[6] && pauses[6] > 0, "{pauses:?}");
    // One that waits for records is asked again at once, whatever it brings.
    bench.now += Duration::from_secs(2);
    let fetch = bench.plan().unwrap();
    bench.now += Duration::from_millis(500);
    bench.answer(&fetch, Vec::new());
    assert!(bench.plan().is_some());
}

#[test]
fn a_partition_that_is_refused_again_and_again_does_not_keep_its_broker_from_serving_another() {
    let mut bench = Bench::new(&[1, 1], 1 << 20);
    for _ in 0..12 {
        bench.now += Duration::from_secs(2);
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![refused(0, code::UNKNOWN_SERVER_ERROR)]);
    }
    assert!(bench.plan().is_some(), "the other is asked for at once");
}

#[test]
fn a_header_that_cannot_be_read_is_told_once_and_after_what_stands_before_it() {
    let mut impossible = batch(10, 10);
    impossible[8..12].copy_from_slice(&(-1i32).to_be_bytes());
    let mut bench = Bench::new(&[1], 1 << 20);
    bench.partitions.restart(&key(0), Phase::Fetching(Position::at(10)));
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![data(0, impossible.clone())]);
    let [error] = &effects.errors[..] else { panic!("{:?}", effects.errors) };
    assert!(error.to_string().contains("impossible length"), "{error}");

    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let effects = bench.answer(&fetch, vec![data(0, [batch(0, 10), impossible.clone()].concat())]);
    assert!(effects.errors.is_empty(), "{:?}", effects.errors);
    assert!(bench.plan().is_none(), "what is left to hand out comes first");
    assert_eq!(bench.poll(100), (0..10).collect::<Vec<_>>());
    let fetch = bench.plan().unwrap();
    assert_eq!(Bench::sent(&fetch), [(0, 10)]);
    assert_eq!(bench.answer(&fetch, vec![data(0, impossible)]).errors.len(), 1);
}
