//! The answers are written by hand.

use super::*;
use crate::{error::ErrorKind, time};

const PAUSE: Duration = Duration::from_millis(100);

struct Bench {
    lookups: Lookups,
    partitions: Partitions,
    now: Instant,
}

impl Bench {
    /// Partitions 0 to 3 in this phase; those below 2 are led by broker 7, the rest by nobody.
    fn new(policy: AutoOffsetReset, start: &Phase) -> Self {
        let lookups = Lookups::new(policy, PAUSE, Backoff::new(PAUSE, PAUSE * 10), Rng::new(1));
        let mut partitions = Partitions::default();
        let now = time::now();
        partitions.assign((0..4).map(key), start);
        partitions.set_leaders(now, |key| (key.partition < 2).then_some((7, 3)));
        Self { lookups, partitions, now }
    }

    fn questions(&mut self) -> Questions {
        self.lookups.poll_questions(self.now, &mut self.partitions)
    }

    fn next(&self, partition: i32) -> Option<i64> {
        self.partitions.get(&key(partition)).unwrap().position().map(|position| position.next)
    }
}

fn found(offset: i64) -> Result<FoundOffset, i16> {
    Ok(FoundOffset { offset, leader_epoch: -1, timestamp: -1, metadata: String::new(), by_id: false })
}

fn key(partition: i32) -> TopicPartition {
    TopicPartition::new("orders", partition)
}

#[test]
fn positions_that_are_outside_the_log_again_and_again_are_looked_up_less_and_less_often() {
    let mut bench =
        Bench::new(AutoOffsetReset::Earliest, &Phase::Fetching(crate::consumer::partitions::Position::at(7)));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        bench.lookups.handle_out_of_range(bench.now, &key(0), 7, &mut bench.partitions);
        let before = bench.now;
        let asked = loop {
            match bench.questions().offsets {
                Some((_, asked)) => break asked,
                None => bench.now += PAUSE,
            }
        };
        pauses.push((bench.now - before).as_millis() / PAUSE.as_millis());
        let answer = Found::from([(key(0), found(7))]);
        bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
        assert_eq!(bench.next(0), Some(7));
    }
    assert_eq!(pauses, [0, 2, 4, 8, 16, 16, 16, 16], "the first is at once");
}

#[test]
fn why_an_offset_is_not_known_is_kept_until_it_is() {
    let mut bench = Bench::new(AutoOffsetReset::Latest, &Phase::AwaitingCommitted);
    let asked = bench.questions().committed;
    let silence = Error::new(ErrorKind::Timeout, "no answer");
    bench.lookups.handle_committed(bench.now, &asked, Err(silence), &mut bench.partitions);
    let why = |bench: &Bench| bench.partitions.get(&key(0)).unwrap().trouble.clone();
    assert!(why(&bench).unwrap().to_string().contains("no answer"));
    bench.now += PAUSE * 20;
    let asked = bench.questions().committed;
    let answer = (0..4).map(|partition| (key(partition), found(5))).collect();
    bench.lookups.handle_committed(bench.now, &asked, Ok(answer), &mut bench.partitions);
    assert!(why(&bench).is_none());
}

#[test]
fn committed_offsets_are_asked_for_once_and_the_policy_decides_where_there_is_none() {
    let mut bench = Bench::new(AutoOffsetReset::Latest, &Phase::AwaitingCommitted);
    let asked = bench.questions().committed;
    assert_eq!(asked.len(), 4);
    assert!(bench.questions().committed.is_empty(), "the question is out");

    let answer = Found::from([(key(0), found(5)), (key(1), found(-1)), (key(2), Err(16))]);
    let effects = bench.lookups.handle_committed(bench.now, &asked, Ok(answer), &mut bench.partitions);
    assert!(effects.settled && effects.forget_coordinator && !effects.refresh_metadata);
    assert_eq!(effects.errors.len(), 1, "an answer that leaves a partition out is a broken broker's");
    assert_eq!(bench.next(0), Some(5));

    let (broker, lookups) = bench.questions().offsets.unwrap();
    assert_eq!((broker, lookups.len(), lookups[0].partition.partition), (7, 1, 1));
    assert_eq!((lookups[0].to, lookups[0].leader_epoch), (ResetTo::Latest, 3));
    bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
    assert_eq!(bench.questions().committed.len(), 2, "the rest is asked for again after one back-off");
}

#[test]
fn a_topic_that_is_read_from_its_start_begins_there_under_every_policy() {
    let policies = [
        AutoOffsetReset::Latest,
        AutoOffsetReset::None,
        AutoOffsetReset::ByDuration(PAUSE),
        AutoOffsetReset::Earliest,
    ];
    for policy in policies {
        let mut bench = Bench::new(policy, &Phase::AwaitingCommitted);
        bench.lookups.set_from_start(Arc::new(|topic| **topic == *"orders"));
        let asked = bench.questions().committed;
        let answer = Found::from([(key(0), found(5)), (key(1), found(-1))]);
        bench.lookups.handle_committed(bench.now, &asked, Ok(answer), &mut bench.partitions);
        assert_eq!(bench.next(0), Some(5), "what was committed stands");
        let (_, asked) = bench.questions().offsets.unwrap();
        assert_eq!((asked[0].partition.partition, asked[0].to), (1, ResetTo::Earliest), "{policy}");
        // A position outside the log as well, unless the user wants to hear of that.
        let Bench { lookups, partitions, .. } = &mut bench;
        let failed = lookups.handle_out_of_range(time::now(), &key(0), 99, partitions);
        assert_eq!(failed, policy == AutoOffsetReset::None);
        let phase = partitions.get(&key(0)).unwrap().phase();
        assert!(failed || matches!(phase, Phase::AwaitingReset(ResetTo::Earliest)), "{policy} {phase:?}");

        let mut bench = Bench::new(policy, &Phase::AwaitingCommitted);
        bench.lookups.set_from_start(Arc::new(|topic| **topic == *"orders-retry-1m"));
        let asked = bench.questions().committed;
        let answer = Found::from([(key(1), found(-1))]);
        bench.lookups.handle_committed(bench.now, &asked, Ok(answer), &mut bench.partitions);
        let to = bench.questions().offsets.map(|(_, asked)| asked[0].to);
        assert_eq!(to == Some(ResetTo::Earliest), policy == AutoOffsetReset::Earliest, "{policy} {to:?}");
    }
}

#[test]
fn a_member_of_an_epoch_that_is_over_asks_again_and_the_user_hears_nothing() {
    for code in [STALE_MEMBER_EPOCH, UNKNOWN_MEMBER_ID] {
        let mut bench = Bench::new(AutoOffsetReset::Latest, &Phase::AwaitingCommitted);
        let asked = bench.questions().committed;
        let refused = Err(Error::from_code("OffsetFetch", code));
        let effects = bench.lookups.handle_committed(bench.now, &asked, refused, &mut bench.partitions);
        assert!(effects.errors.is_empty() && !effects.settled);
        bench.now = Lookups::poll_timeout(bench.now, &bench.partitions).unwrap();
        assert_eq!(bench.questions().committed.len(), 4);
    }
}

#[test]
fn a_partition_without_a_leader_is_looked_at_again_after_a_pause() {
    let start = Phase::AwaitingReset(ResetTo::Earliest);
    let mut bench = Bench::new(AutoOffsetReset::Earliest, &start);
    let questions = bench.questions();
    assert!(questions.leaderless);
    assert_eq!(questions.offsets.unwrap().1.len(), 2);
    assert!(!bench.questions().leaderless);
    assert_eq!(Lookups::poll_timeout(bench.now, &bench.partitions), Some(bench.now + PAUSE));

    bench.partitions.set_leaders(bench.now, |_| Some((8, 4)));
    let (broker, lookups) = bench.questions().offsets.unwrap();
    assert_eq!((broker, lookups.len()), (8, 4), "a new leader is asked at once, whoever was asked before");
}

#[test]
fn by_time_without_a_record_reading_begins_at_the_end_from_before_the_question() {
    for to in [ResetTo::Time(5_000), ResetTo::Ago(Duration::from_secs(1))] {
        let mut bench = Bench::new(AutoOffsetReset::Earliest, &Phase::AwaitingReset(to));
        let (_, asked) = bench.questions().offsets.unwrap();
        assert_eq!((asked[0].to, asked[1].to), (ResetTo::Latest, ResetTo::Latest));
        let answer = Found::from([(key(0), found(10)), (key(1), found(20))]);
        let effects = bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
        assert!(!effects.settled);
        let (_, asked) = bench.questions().offsets.unwrap();
        assert_eq!((asked[0].to, asked[1].to), (to, to));
        // Something is written to partition 0 that is too old, and to partition 1 what is young enough.
        let answer = Found::from([(key(0), found(-1)), (key(1), found(21))]);
        let effects = bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
        assert!(effects.settled && effects.errors.is_empty());
        assert_eq!((bench.next(0), bench.next(1)), (Some(10), Some(21)));
        assert!(bench.questions().offsets.is_none());
    }
}

#[test]
fn an_end_that_another_leader_told_is_asked_for_again() {
    let to = ResetTo::Time(5_000);
    let mut bench = Bench::new(AutoOffsetReset::Earliest, &Phase::AwaitingReset(to));
    let (_, asked) = bench.questions().offsets.unwrap();
    let answer = Found::from([(key(0), found(10)), (key(1), found(20))]);
    bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
    bench.partitions.set_leaders(bench.now, |_| Some((8, 4)));
    let (_, asked) = bench.questions().offsets.unwrap();
    assert!(asked.iter().all(|lookup| lookup.to == ResetTo::Latest));
}

#[test]
fn a_leader_that_does_not_lead_any_more_is_not_waited_for() {
    let start = Phase::AwaitingReset(ResetTo::Earliest);
    let mut bench = Bench::new(AutoOffsetReset::Earliest, &start);
    let (_, before) = bench.questions().offsets.unwrap();
    bench.partitions.set_leaders(bench.now, |key| Some(if key.partition == 0 { (8, 4) } else { (7, 3) }));
    let (broker, asked) = bench.questions().offsets.unwrap();
    assert_eq!((broker, asked.len(), asked[0].partition.partition), (8, 1, 0));
    // The former leader may have been cut off when it answered.
    let answer = || Ok(Found::from([(key(0), found(10)), (key(1), found(20))]));
    bench.lookups.handle_listed(bench.now, &before, answer(), &mut bench.partitions);
    assert_eq!((bench.next(0), bench.next(1)), (None, Some(20)));
    bench.lookups.handle_listed(bench.now, &asked, answer(), &mut bench.partitions);
    assert_eq!(bench.next(0), Some(10));
}

#[test]
fn an_answer_from_before_a_seek_is_dropped() {
    let start = Phase::AwaitingReset(ResetTo::Earliest);
    let mut bench = Bench::new(AutoOffsetReset::Earliest, &start);
    let (_, asked) = bench.questions().offsets.unwrap();
    bench.partitions.restart(&key(0), Phase::AwaitingReset(ResetTo::Latest));
    let answer = Found::from([(key(0), found(1)), (key(1), found(2))]);
    let effects = bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
    assert!(effects.settled && effects.errors.is_empty());
    assert_eq!((bench.next(0), bench.next(1)), (None, Some(2)));
}

#[test]
fn a_leader_that_has_moved_is_looked_for() {
    let start = Phase::AwaitingReset(ResetTo::Earliest);
    let mut bench = Bench::new(AutoOffsetReset::Earliest, &start);
    let (_, asked) = bench.questions().offsets.unwrap();
    let answer = Found::from([(key(0), Err(6)), (key(1), Err(29))]);
    let effects = bench.lookups.handle_listed(bench.now, &asked, Ok(answer), &mut bench.partitions);
    assert!(effects.refresh_metadata && !effects.settled);
    let errors: Vec<_> = effects.errors.iter().map(Error::partition).collect();
    assert_eq!(errors, [Some(1)], "the user learns what will not pass: TopicAuthorizationFailed");
}

#[test]
fn the_end_that_a_position_outside_the_log_is_reset_to_is_that_of_then_though_it_is_taken_later() {
    let position = Phase::Fetching(crate::consumer::partitions::Position::at(1_000));
    for is_answered_late in [false, true] {
        let mut bench = Bench::new(AutoOffsetReset::Latest, &position);
        bench.partitions.set_position(&key(0), 1_000, -1);
        bench.partitions.acknowledge_each();
        let partition = bench.partitions.get_mut(&key(0)).unwrap();
        partition.account.hand_out_each(999..1_000, 1);
        let life = partition.life();
        let Bench { lookups, partitions, now } = &mut bench;
        assert!(!lookups.handle_out_of_range(*now, &key(0), 1_000, partitions));
        let (broker, asked) = bench.questions().offsets.expect("it is asked for at once");
        assert_eq!((broker, asked.len(), asked[0].to), (7, 1, ResetTo::Latest));
        let answer = || Ok(Found::from([(key(0), found(900))]));
        if !is_answered_late {
            bench.lookups.handle_listed(bench.now, &asked, answer(), &mut bench.partitions);
        }
        for _ in 0..5 {
            bench.now += PAUSE;
            assert!(bench.questions().offsets.is_none_or(|(_, asked)| asked.is_empty()));
            assert_eq!(bench.next(0), Some(1_000), "a handler is at work");
        }
        assert_eq!(bench.partitions.done(&key(0), life, &[999]), 1);
        if is_answered_late {
            bench.now += PAUSE;
            bench.questions();
            assert_eq!(bench.next(0), Some(1_000), "the answer is on its way");
            bench.lookups.handle_listed(bench.now, &asked, answer(), &mut bench.partitions);
        }
        bench.now += PAUSE;
        bench.questions();
        assert_eq!(bench.next(0), Some(900), "what is written since is not passed over");
    }
}

#[test]
fn a_position_outside_the_log_is_the_policys_to_mend() {
    for (policy, failed) in [(AutoOffsetReset::Earliest, false), (AutoOffsetReset::None, true)] {
        let mut bench = Bench::new(policy, &Phase::AwaitingCommitted);
        let Bench { lookups, partitions, .. } = &mut bench;
        assert_eq!(lookups.handle_out_of_range(time::now(), &key(0), 99, partitions), failed);
        match bench.partitions.get(&key(0)).unwrap().phase() {
            Phase::Failed(error) => assert_eq!((error.offset(), error.partition()), (Some(99), Some(0))),
            phase => assert!(matches!(phase, Phase::AwaitingReset(ResetTo::Earliest)), "{phase:?}"),
        }
    }
}

#[test]
fn by_duration_counts_from_when_the_position_was_found_outside_the_log() {
    let policy = AutoOffsetReset::ByDuration(Duration::from_secs(10));
    let mut bench = Bench::new(policy, &Phase::AwaitingCommitted);
    bench.partitions.set_position(&key(0), 1_000, -1);
    bench.partitions.acknowledge_each();
    let partition = bench.partitions.get_mut(&key(0)).unwrap();
    partition.account.hand_out_each(999..1_000, 1);
    let life = partition.life();
    for _ in 0..60 {
        let Bench { lookups, partitions, now } = &mut bench;
        assert!(!lookups.handle_out_of_range(*now, &key(0), 1_000, partitions));
        bench.now += Duration::from_secs(1);
    }
    assert_eq!(bench.partitions.done(&key(0), life, &[999]), 1);
    bench.questions();
    let phase = bench.partitions.get(&key(0)).unwrap().phase();
    let Phase::AwaitingReset(ResetTo::Ago(age)) = phase else { panic!("{phase:?}") };
    assert_eq!(*age, Duration::from_secs(70));
}
