//! Sessions (KIP-227), one per leader, and what is asked for outside them.

use super::*;

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
    bench.partitions.set_paused(&key(0), Some(PausedBy::User));
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

/// An answer of a broker without sessions that has room for 8 partitions, and fills it in the order of the request.
fn eight_of(asked: &[(i32, i64)], got: &mut [i32]) -> wire::FetchResponse {
    let row = |(place, (partition, offset)): (usize, &(i32, i64))| {
        let has_room = place < 8;
        got[*partition as usize] += i32::from(has_room);
        data(*partition, if has_room { batch(*offset, 200) } else { Vec::new() })
    };
    let partitions = asked.iter().enumerate().map(row).collect();
    let topic =
        wire::fetch_response::FetchableTopicResponse { topic: "t".into(), partitions, ..Default::default() };
    wire::FetchResponse { session_id: 0, responses: vec![topic], ..Default::default() }
}

#[test]
fn without_a_session_every_partition_gets_its_turn() {
    let mut bench = Bench::new(&[1; 20], 1 << 20);
    let mut got = [0; 20];
    for _ in 0..200 {
        let action = bench.plan().unwrap();
        let asked = Bench::sent(&action);
        assert_eq!(asked.len(), 20, "every fetch is a full one");
        bench.answered(&action, Ok(eight_of(&asked, &mut got)));
        bench.poll(10_000);
    }
    assert!(got.iter().all(|turns| *turns == 80), "{got:?}");
}

#[test]
fn without_a_session_every_partition_gets_its_turn_where_answers_take_long() {
    let mut bench = Bench::new(&[1; 20], 1 << 20);
    let mut got = [0; 20];
    for _ in 0..200 {
        let action = bench.plan().unwrap();
        // What came before is handed out meanwhile.
        bench.poll(10_000);
        for _ in 0..5 {
            bench.now += SHORT_WAIT;
            if let Some(aside) = bench.plan() {
                let answer = eight_of(&Bench::sent(&aside), &mut got);
                bench.answered(&aside, Ok(answer));
                bench.poll(10_000);
            }
        }
        let answer = eight_of(&Bench::sent(&action), &mut got);
        bench.answered(&action, Ok(answer));
    }
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(most - least <= 1, "{got:?}");
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
