//! Logs that were cut, and leaders that have or have not what was fetched before them (KIP-320).

use super::*;

/// As [`batch`], of this leader epoch.
fn batch_of(base_offset: i64, epoch: i32) -> Vec<u8> {
    let mut bytes = batch(base_offset, 10);
    // Not under the CRC.
    bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
    bytes
}

impl Bench {
    /// Partition 0 of broker 1 at epoch 3, with records up to 20 fetched of which `taken` were handed out.
    pub(super) fn read_up_to_20(taken: usize) -> Self {
        let mut bench = Self::new(&[1], 1 << 20);
        bench.lead(1, 3);
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, [batch_of(0, 2), batch_of(10, 3)].concat())]);
        assert_eq!(bench.poll(taken).len(), taken);
        bench
    }

    pub(super) fn lead(&mut self, broker: i32, epoch: i32) {
        self.partitions.set_leaders(self.now, |_| Some((broker, epoch)));
    }

    pub(super) fn lookups(policy: AutoOffsetReset) -> Lookups {
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

    pub(super) fn position(&self) -> Position {
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
    bench.partitions.cover();
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
    assert_eq!(bench.to_commit()[&key(0)].offset, 5, "5 to 9 are still in the user's hands");
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
    bench.partitions.cover();
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
        assert_eq!(bench.to_commit()[&key(0)].leader_epoch, -1);
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
        bench.partitions.set_paused(&key(0), Some(PausedBy::User));
        bench.lead(2, 4);
        let (_, stale) = lookups.poll_questions(bench.now, &mut bench.partitions).checks.unwrap();
        bench.partitions.evict_paused();
        bench.partitions.set_paused(&key(0), None);
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
    bench.partitions.set_paused(&key(0), Some(PausedBy::User));
    bench.partitions.evict_paused();
    bench.partitions.set_paused(&key(0), None);
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
    assert_eq!(bench.to_commit()[&key(0)].leader_epoch, 4);
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
fn without_a_place_where_the_log_was_cut_latest_is_the_end_of_then_though_it_is_taken_later() {
    let mut bench = Bench::read_up_to_20(12);
    let mut lookups = Bench::lookups(AutoOffsetReset::Latest);
    bench.lead(2, 4);
    // Its log has no such epoch, and the user is at work on what was handed out.
    bench.check(&mut lookups, -1, -1);
    assert_eq!(bench.partitions.buffered(), 0);
    let (broker, asked) = lookups.poll_questions(bench.now, &mut bench.partitions).offsets.expect("at once");
    assert_eq!((broker, asked[0].to), (2, ResetTo::Latest));
    let place = crate::consumer::lookups::FoundOffset {
        offset: 8,
        leader_epoch: -1,
        timestamp: -1,
        metadata: String::new(),
        by_id: false,
    };
    let found = [(key(0), Ok(place))].into();
    lookups.handle_listed(bench.now, &asked, Ok(found), &mut bench.partitions);
    for _ in 0..5 {
        bench.now += Duration::from_millis(100);
        assert!(lookups.poll_questions(bench.now, &mut bench.partitions).offsets.is_none());
        assert!(bench.plan().is_none_or(|fetch| Bench::sent(&fetch).is_empty()));
        assert_eq!(bench.position().next, 12);
    }
    bench.partitions.cover();
    bench.now += Duration::from_millis(100);
    lookups.poll_questions(bench.now, &mut bench.partitions);
    assert_eq!(bench.position().next, 8, "what was written since is not passed over");
}
