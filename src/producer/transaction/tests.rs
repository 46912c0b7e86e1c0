//! Tables of what the core does, and seeds against a model of a coordinator.

use std::time::Duration;

use super::*;
use crate::error::ErrorCode;

const FIRST: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0 };

fn idle() -> Outstanding {
    Outstanding { records: false, in_flight: false }
}

fn core() -> Core {
    Core::new(Backoff::new(Duration::from_millis(100), Duration::from_secs(1)))
}

struct Rig {
    core: Core,
    now: Instant,
    rng: Rng,
}

impl Rig {
    fn ready(version2: bool) -> Self {
        let mut rig = Self { core: core(), now: crate::time::now(), rng: Rng::new(1) };
        rig.core.handle_init();
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::Init(None)));
        rig.reply(&call, Ok(Reply::Initialized { identity: FIRST, version2 }));
        rig
    }

    fn open(version2: bool) -> Self {
        let mut rig = Self::ready(version2);
        assert_eq!(rig.core.handle_begin().unwrap().unwrap(), 1);
        rig
    }

    fn call(&mut self, outstanding: Outstanding) -> Option<Call> {
        self.core.poll_discard();
        self.core.poll_call(self.now, outstanding)
    }

    fn reply(&mut self, call: &Call, reply: Result<Reply>) {
        let reply = reply.map_err(|error| NotDone { error, asked: true });
        self.core.handle_reply(self.now, call, reply, &mut self.rng);
    }

    /// Nobody was there who could be asked.
    fn unreached(&mut self, call: &Call, error: Error) {
        self.core.handle_reply(self.now, call, Err(NotDone { error, asked: false }), &mut self.rng);
    }

    fn wants(&mut self, partition: i32) {
        self.core.handle_wanted(&Partitions::from([("orders".into(), partition)]));
    }
}

fn broker(told: i16) -> Error {
    Error::from_code("EndTxn", told)
}

fn offsets() -> Offsets {
    let group = ConsumerGroupMetadata::new("billing".into(), 3, "me".into(), None);
    Offsets { group, offsets: vec![(TopicPartition::new("in", 0), 5)] }
}

#[test]
fn version_1_adds_partitions_before_their_records_leave_and_ends_when_all_is_answered() {
    let mut rig = Rig::open(false);
    assert_eq!(rig.core.identity(), Some(FIRST));
    assert!(rig.core.permitted().unwrap().is_empty());
    rig.wants(0);
    let Some(call @ Call::AddPartitions(..)) = rig.call(idle()) else { panic!("not added") };
    assert!(rig.call(idle()).is_none(), "one request at a time");
    rig.wants(1);
    rig.reply(&call, Ok(Reply::Done));
    assert_eq!(rig.core.permitted().unwrap().len(), 1);
    rig.core.handle_commit().unwrap();
    let call = rig.call(Outstanding { records: true, in_flight: true }).unwrap();
    assert!(matches!(&call, Call::AddPartitions(_, partitions) if partitions.len() == 1), "{call:?}");
    rig.reply(&call, Ok(Reply::Done));
    assert!(rig.call(Outstanding { records: true, in_flight: false }).is_none());
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { identity: FIRST, commit: true }));
    assert!(rig.core.outcome(1).is_none());
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(rig.core.outcome(1).unwrap().is_ok() && rig.core.is_settled());
    rig.core.handle_begin().unwrap().unwrap();
    assert!(rig.core.permitted().unwrap().is_empty(), "each transaction adds its own");
}

#[test]
fn version_2_adds_nothing_and_takes_the_next_epoch_from_every_end() {
    let mut rig = Rig::open(true);
    rig.wants(0);
    assert!(rig.core.permitted().is_none() && rig.call(idle()).is_none());
    rig.core.handle_sent();
    rig.core.handle_commit().unwrap();
    let call = rig.call(idle()).unwrap();
    let next = ProducerIdentity { id: 7, epoch: 1 };
    rig.reply(&call, Ok(Reply::Ended(Some(next))));
    rig.core.handle_begin().unwrap().unwrap();
    assert_eq!(rig.core.identity(), Some(next));
}

#[test]
fn offsets_are_added_and_committed_before_the_end() {
    for version2 in [false, true] {
        let mut rig = Rig::open(version2);
        let job = rig.core.handle_offsets(offsets()).unwrap();
        rig.core.handle_commit().unwrap();
        if !version2 {
            let call = rig.call(idle()).unwrap();
            assert!(matches!(&call, Call::AddOffsets(FIRST, group) if &**group == "billing"));
            rig.reply(&call, Ok(Reply::Done));
        }
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::CommitOffsets(..)) && rig.core.is_job_done(job).is_none());
        rig.reply(&call, Ok(Reply::Done));
        assert!(rig.core.is_job_done(job).unwrap().is_ok());
        assert!(matches!(rig.call(idle()), Some(Call::End { commit: true, .. })));
    }
}

#[test]
fn a_transaction_of_nothing_asks_nobody() {
    for commit in [true, false] {
        let mut rig = Rig::open(true);
        match commit {
            true => rig.core.handle_commit().unwrap(),
            false => rig.core.handle_abort(),
        }
        assert!(rig.call(idle()).is_none() && rig.core.outcome(1).unwrap().is_ok());
    }
}

#[test]
fn a_failed_record_leaves_only_the_abort() {
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Done));
    rig.core.handle_failure(broker(code::TOPIC_AUTHORIZATION_FAILED), false);
    assert!(rig.core.identity().is_none() && rig.core.poll_discard().is_some());
    let error = rig.core.handle_commit().unwrap_err();
    assert!(error.requires_abort() && !error.is_fatal(), "{error}");
    assert!(rig.call(idle()).is_none(), "the caller decides");
    rig.core.handle_abort();
    assert!(rig.call(Outstanding { records: true, in_flight: true }).is_none(), "what is out lands first");
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: false, .. }));
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(rig.core.outcome(1).unwrap().is_ok());
    assert!(rig.core.handle_begin().unwrap().is_ok());
}

#[test]
fn what_may_come_in_late_is_kept_out_by_a_new_epoch_before_the_next_transaction() {
    let mut rig = Rig::open(false);
    rig.core.handle_sent();
    rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late"), true);
    rig.core.handle_abort();
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(rig.core.handle_begin().is_none(), "not yet");
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::Init(Some(FIRST))));
    let next = ProducerIdentity { id: 7, epoch: 1 };
    rig.reply(&call, Ok(Reply::Initialized { identity: next, version2: false }));
    rig.core.handle_begin().unwrap().unwrap();
    assert_eq!(rig.core.identity(), Some(next));
}

#[test]
fn offsets_that_may_come_in_late_are_kept_out_of_the_next_transaction_by_a_new_epoch() {
    for (version2, asked) in [(false, true), (false, false), (true, true)] {
        let mut rig = Rig::open(version2);
        rig.core.handle_offsets(offsets()).unwrap();
        let mut call = rig.call(idle()).unwrap();
        if !version2 {
            rig.reply(&call, Ok(Reply::Done));
            call = rig.call(idle()).unwrap();
        }
        assert!(matches!(call, Call::CommitOffsets(..)), "{call:?}");
        let lost = Error::new(ErrorKind::Disconnected, "lost");
        match asked {
            true => rig.reply(&call, Err(lost)),
            false => rig.unreached(&call, lost),
        }
        rig.core.handle_abort();
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::End { commit: false, .. }), "{call:?}");
        let next = version2.then_some(ProducerIdentity { id: 7, epoch: 1 });
        rig.reply(&call, Ok(Reply::Ended(next)));
        // With version 2 the end has brought one.
        let call = rig.call(idle());
        assert_eq!(matches!(call, Some(Call::Init(Some(FIRST)))), !version2 && asked, "{call:?}");
    }
}

#[test]
fn a_commit_that_was_asked_for_cannot_be_aborted_any_more() {
    let mut rig = Rig::open(true);
    rig.core.handle_sent();
    rig.core.handle_commit().unwrap();
    let call = rig.call(idle()).unwrap();
    rig.core.handle_abort();
    rig.reply(&call, Err(Error::new(ErrorKind::Disconnected, "lost")));
    rig.core.handle_abort();
    rig.now += Duration::from_secs(1);
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: true, .. }), "the same question again");
    rig.reply(&call, Ok(Reply::Ended(Some(ProducerIdentity { id: 7, epoch: 1 }))));
    assert!(rig.core.outcome(1).unwrap().is_ok());
}

/// A transaction whose commit was asked for, and the call.
fn asked_to_commit() -> (Rig, Call) {
    let mut rig = Rig::open(true);
    rig.core.handle_sent();
    rig.core.handle_commit().unwrap();
    let call = rig.call(idle()).unwrap();
    (rig, call)
}

#[test]
fn who_waits_no_longer_is_told_whether_the_commit_was_asked_for_and_stops_it_if_not() {
    let mut rig = Rig::open(true);
    rig.core.handle_sent();
    rig.core.handle_commit().unwrap();
    assert!(matches!(rig.core.handle_impatience(1), Impatience::Aborted));
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: false, .. }), "the commit must not follow: {call:?}");
    let (mut rig, call) = asked_to_commit();
    assert!(matches!(rig.core.handle_impatience(1), Impatience::Asked));
    rig.reply(&call, Ok(Reply::Ended(Some(ProducerIdentity { id: 7, epoch: 1 }))));
    assert!(matches!(rig.core.handle_impatience(1), Impatience::Ended(Ok(()))));
}

#[test]
fn a_commit_is_told_before_the_new_epoch_that_the_next_transaction_needs() {
    let mut rig = Rig::open(false);
    rig.core.handle_sent();
    rig.core.handle_commit().unwrap();
    let call = rig.call(idle()).unwrap();
    rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late"), true);
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(!rig.core.is_settled() && rig.core.outcome(1).unwrap().is_ok());
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::Init(Some(FIRST))), "{call:?}");
    rig.reply(&call, Err(broker(code::PRODUCER_FENCED)));
    assert!(rig.core.outcome(1).unwrap().is_ok(), "whatever comes after");
    assert!(rig.core.handle_begin().unwrap().unwrap_err().is_fenced());
}

#[test]
fn the_end_of_the_transaction_before_is_waited_for_in_short_pauses_however_often() {
    let (mut rig, mut call) = asked_to_commit();
    for _ in 0..20 {
        rig.reply(&call, Err(broker(code::CONCURRENT_TRANSACTIONS)));
        assert!(rig.call(idle()).is_none(), "not at once");
        rig.now += CONCURRENT_PAUSE;
        call = rig.call(idle()).expect("its markers are there in a few milliseconds");
    }
    rig.reply(&call, Err(broker(code::COORDINATOR_NOT_AVAILABLE)));
    rig.now += CONCURRENT_PAUSE;
    assert!(rig.call(idle()).is_none(), "who is away has more time");
}

#[test]
fn an_error_says_that_the_commit_may_stand_where_an_attempt_had_no_clear_answer() {
    let possibly = |rig: &Rig| rig.core.outcome(1).unwrap().unwrap_err().possibly_written();
    for told in [code::PRODUCER_FENCED, code::INVALID_TXN_STATE, code::TRANSACTION_ABORTABLE] {
        let (mut rig, call) = asked_to_commit();
        rig.reply(&call, Err(broker(told)));
        assert!(!possibly(&rig), "{}: it was refused at once", ErrorCode(told));
        let lost = [
            Error::new(ErrorKind::Disconnected, "lost"),
            broker(code::COORDINATOR_NOT_AVAILABLE),
            broker(code::NOT_COORDINATOR),
        ];
        for lost in lost {
            let (mut rig, call) = asked_to_commit();
            rig.reply(&call, Err(lost.clone()));
            rig.now += Duration::from_secs(2);
            let call = rig.call(idle()).unwrap();
            rig.reply(&call, Err(broker(told)));
            assert!(possibly(&rig), "{} after {lost}", ErrorCode(told));
        }
        let (mut rig, call) = asked_to_commit();
        rig.reply(&call, Err(broker(code::CONCURRENT_TRANSACTIONS)));
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        rig.reply(&call, Err(broker(told)));
        assert!(!possibly(&rig), "the first attempt did nothing");
    }
    // The runtime ends while the answer is on its way.
    let (mut rig, _call) = asked_to_commit();
    rig.core.handle_fatal(Error::closed("producer").with_fatal());
    assert!(possibly(&rig));
    let mut rig = Rig::open(true);
    rig.core.handle_commit().unwrap();
    rig.core.handle_fatal(Error::closed("producer").with_fatal());
    assert!(!possibly(&rig));
    // A record that may be in the log is not committed by that.
    let mut rig = Rig::open(true);
    rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late").with_possibly_written(true), true);
    assert!(!rig.core.handle_commit().unwrap_err().possibly_written());
}

#[test]
fn a_commit_that_reached_nobody_is_none_and_can_be_aborted() {
    let refused = || Error::new(ErrorKind::Disconnected, "connection refused");
    for (told, possibly) in [(refused(), false), (broker(code::COORDINATOR_NOT_AVAILABLE), false)] {
        let (mut rig, call) = asked_to_commit();
        rig.unreached(&call, told);
        assert!(rig.core.trouble().is_some());
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::End { commit: true, .. }), "it is asked for again: {call:?}");
        rig.unreached(&call, broker(code::INVALID_TXN_STATE));
        assert_eq!(rig.core.outcome(1).unwrap().unwrap_err().possibly_written(), possibly);
    }
    let (mut rig, call) = asked_to_commit();
    rig.unreached(&call, refused());
    assert!(matches!(rig.core.handle_impatience(1), Impatience::Aborted));
    rig.now += Duration::from_secs(2);
    assert!(matches!(rig.call(idle()), Some(Call::End { commit: false, .. })));
    // Once somebody may have heard of it, no later attempt takes that back.
    let (mut rig, call) = asked_to_commit();
    rig.reply(&call, Err(refused()));
    rig.now += Duration::from_secs(2);
    let call = rig.call(idle()).unwrap();
    rig.unreached(&call, refused());
    assert!(matches!(rig.core.handle_impatience(1), Impatience::Asked));
    rig.core.handle_abort();
    rig.now += Duration::from_secs(2);
    assert!(matches!(rig.call(idle()), Some(Call::End { commit: true, .. })));
}

#[test]
fn an_answer_that_is_damaged_on_its_way_ends_no_producer() {
    let damaged = || Error::protocol("the answer cannot be read");
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(1) };
    rig.core.handle_init();
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(damaged()));
    assert!(rig.core.is_initialized().is_none());
    rig.now += Duration::from_secs(2);
    assert!(matches!(rig.call(idle()), Some(Call::Init(None))));
    let (mut rig, call) = asked_to_commit();
    rig.reply(&call, Err(damaged()));
    assert!(rig.core.outcome(1).is_none());
    rig.now += Duration::from_secs(2);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(rig.core.outcome(1).unwrap().is_ok());
}

#[test]
fn a_producer_id_that_the_coordinator_has_forgotten_is_replaced_without_an_end() {
    let forgotten = || broker(code::INVALID_PRODUCER_ID_MAPPING);
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(forgotten()));
    let error = rig.core.handle_commit().unwrap_err();
    assert!(error.requires_abort() && !error.is_fatal(), "{error}");
    rig.core.handle_abort();
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::Init(Some(FIRST))), "{call:?}");
    let other = ProducerIdentity { id: 8, epoch: 0 };
    rig.reply(&call, Ok(Reply::Initialized { identity: other, version2: false }));
    assert!(rig.core.outcome(1).unwrap().is_ok());
    rig.core.handle_begin().unwrap().unwrap();
    assert_eq!(rig.core.identity(), Some(other));
    // Heard of at the end alone, of a commit and of an abort.
    let (mut rig, call) = asked_to_commit();
    rig.reply(&call, Err(forgotten()));
    assert!(rig.core.outcome(1).unwrap().unwrap_err().requires_abort());
    rig.core.handle_abort();
    assert!(matches!(rig.call(idle()), Some(Call::Init(Some(FIRST)))));
    let mut rig = Rig::open(true);
    rig.core.handle_sent();
    rig.core.handle_abort();
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(forgotten()));
    assert!(matches!(rig.call(idle()), Some(Call::Init(Some(FIRST)))));
}

#[test]
fn every_error_code_of_every_call_has_its_verdict() {
    let calls = [
        Call::Init(None),
        Call::AddPartitions(FIRST, Arc::default()),
        Call::AddOffsets(FIRST, "billing".into()),
        Call::CommitOffsets(FIRST, Arc::new(offsets())),
        Call::End { identity: FIRST, commit: true },
        Call::End { identity: FIRST, commit: false },
    ];
    let abortable = [12, 17, 22, 25, 27, 29, 30, 55, 59, 82, 110, 113, 120];
    for call in &calls {
        for told in (-1..140).filter(|told| *told != 0) {
            let expected = match told {
                47 | 90 => Verdict::Fenced,
                14 | 15 | 16 | 51 => Verdict::Again,
                49 if !matches!(call, Call::Init(_)) => Verdict::Forgotten,
                48 if matches!(call, Call::End { commit: false, .. }) => Verdict::Forgotten,
                _ if abortable.contains(&told) && !matches!(call, Call::Init(_)) => Verdict::Abort,
                // Of the last three nobody knows what they say.
                -1 | 137..140 if !matches!(call, Call::Init(_) | Call::End { .. }) => Verdict::Abort,
                _ if ErrorCode(told).is_retriable() => Verdict::Again,
                _ => Verdict::Fatal,
            };
            assert_eq!(verdict(call, &broker(told)), expected, "{call:?} {}", ErrorCode(told));
        }
        let unsent = Error::protocol("another's answer ended the connection").with_unsent();
        for error in [unsent, Error::new(ErrorKind::Disconnected, "lost")] {
            assert_eq!(verdict(call, &error), Verdict::Again, "{error}");
        }
        assert_eq!(verdict(call, &Error::new(ErrorKind::Unsupported, "old")), Verdict::Fatal);
    }
}

#[test]
fn the_abort_of_what_never_joined_ends_no_producer() {
    for refusal in [broker(code::TOPIC_AUTHORIZATION_FAILED), Error::new(ErrorKind::Disconnected, "lost")] {
        let mut rig = Rig::open(false);
        rig.wants(0);
        let call = rig.call(idle()).unwrap();
        rig.reply(&call, Err(refusal));
        rig.core.handle_abort();
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::End { commit: false, .. }), "{call:?}");
        rig.reply(&call, Err(broker(code::INVALID_TXN_STATE)));
        // The new epoch ends whatever comes in late.
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::Init(Some(FIRST))), "{call:?}");
        let next = ProducerIdentity { id: 7, epoch: 1 };
        rig.reply(&call, Ok(Reply::Initialized { identity: next, version2: false }));
        assert!(rig.core.outcome(1).unwrap().is_ok());
        rig.core.handle_begin().unwrap().unwrap();
    }
}

#[test]
fn the_trouble_of_a_call_ends_with_it() {
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(broker(code::COORDINATOR_NOT_AVAILABLE)));
    assert!(rig.core.trouble().is_some());
    rig.now += Duration::from_secs(2);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(broker(code::TOPIC_AUTHORIZATION_FAILED)));
    assert!(rig.core.trouble().is_none(), "the abort is not waited for because of it");
}

#[test]
fn a_fenced_producer_says_so_for_good() {
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(broker(code::PRODUCER_FENCED)));
    for error in [
        rig.core.handle_commit().unwrap_err(),
        rig.core.outcome(1).unwrap().unwrap_err(),
        rig.core.refusal().unwrap(),
    ] {
        assert!(error.is_fenced() && error.is_fatal() && !error.requires_abort(), "{error}");
        assert!(error.to_string().contains("transactional.id"), "{error}");
    }
    rig.core.handle_abort();
    assert!(rig.core.handle_begin().unwrap().unwrap_err().is_fatal() && rig.call(idle()).is_none());
}

/// What a coordinator holds of one transactional id.
#[derive(Default)]
struct Coordinator {
    epoch: i16,
    ongoing: bool,
    /// The end that was written under the epoch before: asked again, it is answered again.
    last_end: Option<(i16, bool)>,
    committed: Vec<u64>,
}

impl Coordinator {
    fn answer(&mut self, call: &Call, version2: bool, number: u64) -> Result<Reply> {
        let identity = |epoch| ProducerIdentity { id: 7, epoch };
        match call {
            Call::Init(_) => {
                self.ongoing = false;
                self.epoch += 1;
                Ok(Reply::Initialized { identity: identity(self.epoch), version2 })
            }
            Call::AddPartitions(from, _) | Call::AddOffsets(from, _) | Call::CommitOffsets(from, _) => {
                assert_eq!(from.epoch, self.epoch, "an old epoch is used");
                self.ongoing = true;
                Ok(Reply::Done)
            }
            Call::End { identity: from, commit } => {
                let ended = |epoch| Reply::Ended(version2.then(|| identity(epoch)));
                if self.last_end == Some((from.epoch, *commit)) && !self.ongoing {
                    return Ok(ended(self.epoch));
                }
                assert_eq!(from.epoch, self.epoch, "an old epoch is used");
                if !self.ongoing && !version2 {
                    return Err(broker(code::INVALID_TXN_STATE));
                }
                self.ongoing = false;
                if *commit {
                    self.committed.push(number);
                }
                self.last_end = Some((self.epoch, *commit));
                self.epoch += i16::from(version2);
                Ok(ended(self.epoch))
            }
        }
    }
}

fn run(seed: u64) {
    let mut random = Rng::new(seed);
    let version2 = random.below(2) == 0;
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(seed) };
    let mut coordinator = Coordinator::default();
    rig.core.handle_init();
    let mut out: Option<Call> = None;
    let mut number = 0;
    let mut wanted_commit = Vec::new();
    let mut told_committed = Vec::new();
    let mut committing = false;
    let mut told_aborted = Vec::new();
    for step in 0..600 {
        let calm = step > 500;
        match random.below(8) {
            0 if !calm => {
                if let Some(begun) = rig.core.handle_begin() {
                    number = begun.unwrap();
                    committing = false;
                }
            }
            1 if rig.core.identity().is_some() && !rig.core.commit_sent => rig.wants(random.below(3) as i32),
            2 if rig.core.identity().is_some() && version2 && !rig.core.commit_sent => {
                coordinator.ongoing = true;
                rig.core.handle_sent();
            }
            3 => committing |= rig.core.handle_commit().is_ok(),
            4 if !calm => rig.core.handle_abort(),
            5 if !calm => {
                rig.core.handle_failure(Error::new(ErrorKind::Timeout, "late"), random.below(2) == 0)
            }
            6 => drop(rig.core.handle_offsets(offsets())),
            _ if committing && random.below(4) == 0 => {
                if let Impatience::Aborted = rig.core.handle_impatience(number) {
                    told_aborted.push(number);
                    committing = false;
                }
            }
            _ => {}
        }
        if out.is_none() {
            let busy = !calm && random.below(2) == 0;
            out = rig.call(Outstanding { records: busy, in_flight: busy });
            if let Some(Call::End { commit: true, .. }) = out {
                wanted_commit.push(number);
            }
        }
        if let Some(call) = &out
            && random.below(2) == 0
        {
            let mut asked = true;
            let reply = match if calm { 11 } else { random.below(12) } {
                0 => Err(Error::new(ErrorKind::Disconnected, "lost before")),
                1 => {
                    drop(coordinator.answer(call, version2, number));
                    Err(Error::new(ErrorKind::Disconnected, "lost after"))
                }
                2 => Err(broker([14, 15, 16, 51][random.below(4)])),
                3 if !matches!(call, Call::Init(_) | Call::End { .. }) => Err(broker(120)),
                4 => {
                    asked = false;
                    Err(Error::new(ErrorKind::Disconnected, "nobody was there"))
                }
                5 => {
                    drop(coordinator.answer(call, version2, number));
                    Err(Error::protocol("the answer cannot be read"))
                }
                _ => coordinator.answer(call, version2, number),
            };
            if reply.is_ok() && matches!(call, Call::End { commit: true, .. }) {
                told_committed.push(number);
            }
            let reply = reply.map_err(|error| NotDone { error, asked });
            rig.core.handle_reply(rig.now, call, reply, &mut rig.rng);
            out = None;
        }
        // Whoever waits for the commit holds the only handle: nothing begins before it knows.
        if rig.core.is_settled() && number > 0 && committing {
            assert!(rig.core.outcome(number).unwrap().is_ok());
            committing = false;
        }
        rig.now += Duration::from_millis(if calm { 1500 } else { 60 });
    }
    if !rig.core.is_settled() {
        rig.core.handle_abort();
    }
    for _ in 0..20 {
        if let Some(call) = out.take().or_else(|| rig.call(idle())) {
            let reply = coordinator.answer(&call, version2, number);
            rig.reply(&call, reply);
        }
        rig.now += Duration::from_secs(2);
    }
    assert!(matches!(rig.core.state, State::Ready), "seed {seed}: {:?}", rig.core.state);
    assert!(!coordinator.ongoing, "seed {seed}: a transaction stays open");
    for number in &told_committed {
        assert!(
            coordinator.committed.contains(number),
            "seed {seed}: {number} was told and is not committed"
        );
    }
    for number in &told_aborted {
        assert!(
            !coordinator.committed.contains(number),
            "seed {seed}: {number} is committed, against what was told"
        );
    }
    for number in &coordinator.committed {
        assert!(wanted_commit.contains(number), "seed {seed}: {number} was committed and nobody asked");
    }
}

#[test]
fn nothing_stays_open_and_what_is_told_is_so_whatever_gets_lost() {
    for seed in 0..2000 {
        run(seed);
    }
}

#[test]
fn an_answer_that_cannot_be_read_or_leaves_something_out_costs_the_transaction_and_not_the_producer() {
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::AddPartitions(..)));
    rig.reply(&call, Err(Error::protocol("the coordinator's answer leaves out a partition")));
    let error = rig.core.handle_commit().unwrap_err();
    assert!(error.requires_abort() && !error.is_fatal(), "{error}");
    rig.core.handle_abort();
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: false, .. }), "{call:?}");
    rig.reply(&call, Ok(Reply::Ended(None)));
    rig.core.handle_begin().unwrap().unwrap();
}
