//! Tables of what the core does. Seeds against a model of a coordinator: `random.rs`; what is lost, damaged or
//! unreachable: `lost.rs`.

mod lost;
mod random;

use std::time::Duration;

use super::{
    verdict::{Verdict, verdict},
    *,
};
use crate::{
    error::ErrorCode,
    record::{ConsumerGroupMetadata, TopicPartition},
    time::Rng,
};

const FIRST: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0, cluster: 0 };

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

    /// Asks for a new epoch before anything else.
    fn renews_its_epoch(&mut self) {
        let call = self.call(idle()).expect("a new epoch is asked for");
        assert!(matches!(call, Call::Init(Some(FIRST))), "{call:?}");
        let identity = ProducerIdentity { epoch: FIRST.epoch + 1, ..FIRST };
        self.reply(&call, Ok(Reply::Initialized { identity, version2: false }));
    }

    fn wants(&mut self, partition: i32) {
        self.core.handle_wanted(&[("orders".into(), partition)]);
    }
}

fn broker(told: i16) -> Error {
    Error::from_code("EndTxn", told)
}

fn offsets() -> Offsets {
    let group = ConsumerGroupMetadata::new("billing".into(), 3, "me".into(), None);
    Offsets { group, offsets: vec![(TopicPartition::new("in", 0), 5.into())] }
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
    let next = ProducerIdentity { id: 7, epoch: 1, cluster: 0 };
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
    assert!(rig.core.poll_discard().is_some(), "one more may have been on its way into its queue");
    let error = rig.core.handle_commit().unwrap_err();
    assert!(error.requires_abort() && !error.is_fatal(), "{error}");
    assert!(rig.call(idle()).is_none(), "the caller decides");
    rig.core.handle_abort();
    assert!(rig.call(Outstanding { records: true, in_flight: true }).is_none(), "what is out lands first");
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: false, .. }));
    rig.reply(&call, Ok(Reply::Ended(None)));
    rig.renews_its_epoch();
    assert!(rig.core.outcome(1).unwrap().is_ok());
    assert!(rig.core.handle_begin().unwrap().is_ok());
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
    rig.reply(&call, Ok(Reply::Ended(Some(ProducerIdentity { id: 7, epoch: 1, cluster: 0 }))));
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
    assert!(matches!(rig.core.handle_commit_timeout(1), CommitTimeout::Aborting));
    let call = rig.call(idle()).unwrap();
    assert!(matches!(call, Call::End { commit: false, .. }), "the commit must not follow: {call:?}");
    let (mut rig, call) = asked_to_commit();
    assert!(matches!(rig.core.handle_commit_timeout(1), CommitTimeout::CommitSent));
    rig.reply(&call, Ok(Reply::Ended(Some(ProducerIdentity { id: 7, epoch: 1, cluster: 0 }))));
    assert!(matches!(rig.core.handle_commit_timeout(1), CommitTimeout::Ended(Ok(()))));
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
    let other = ProducerIdentity { id: 8, epoch: 0, cluster: 0 };
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
        Call::Init(Some(FIRST)),
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
                48 if matches!(call, Call::End { .. }) => Verdict::Forgotten,
                _ if abortable.contains(&told) && !matches!(call, Call::Init(_)) => Verdict::Abort,
                // Of the last three nobody knows what they say.
                -1 | 137..140 => match call {
                    Call::Init(Some(_)) | Call::End { commit: false, .. } => Verdict::Again,
                    Call::Init(None) | Call::End { commit: true, .. } => Verdict::Fatal,
                    _ => Verdict::Abort,
                },
                _ if ErrorCode(told).is_retriable() => Verdict::Again,
                _ => Verdict::Fatal,
            };
            assert_eq!(verdict(call, &broker(told), true), expected, "{call:?} {}", ErrorCode(told));
        }
        let damaged = Error::protocol("another's answer ended the connection");
        for (error, asked) in [(damaged, false), (Error::new(ErrorKind::Disconnected, "lost"), true)] {
            assert_eq!(verdict(call, &error, asked), Verdict::Again, "{error}");
        }
        assert_eq!(verdict(call, &Error::new(ErrorKind::Unsupported, "old"), true), Verdict::Fatal);
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
    assert!(rig.core.poll_discard().is_some() && rig.core.poll_discard().is_some(), "nothing is to wait");
}

#[test]
fn who_is_closed_before_it_has_its_id_never_asks_for_it_again() {
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(1) };
    rig.core.handle_init();
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Err(broker(code::COORDINATOR_LOAD_IN_PROGRESS)));
    rig.core.handle_close();
    rig.now += Duration::from_secs(2);
    assert!(rig.call(idle()).is_none(), "it would fence its successor");
    assert!(rig.core.is_settled() && rig.core.is_initialized().unwrap().is_err());
    // Nor does the answer that is on its way bring it back.
    let mut rig = Rig { core: core(), now: crate::time::now(), rng: Rng::new(1) };
    rig.core.handle_init();
    let call = rig.call(idle()).unwrap();
    rig.core.handle_close();
    rig.reply(&call, Ok(Reply::Initialized { identity: FIRST, version2: true }));
    assert!(rig.core.is_settled() && rig.core.handle_begin().unwrap().is_err());
    // What is open is ended as ever.
    let mut rig = Rig::open(true);
    rig.core.handle_sent();
    rig.core.handle_close();
    rig.core.handle_abort();
    assert!(matches!(rig.call(idle()), Some(Call::End { commit: false, .. })));
}

#[test]
fn nothing_goes_on_after_a_fatal_end_and_a_commit_that_stands_is_told() {
    let (mut rig, call) = asked_to_commit();
    rig.core.handle_fatal(broker(code::PRODUCER_FENCED).with_fatal());
    rig.reply(&call, Ok(Reply::Ended(Some(FIRST))));
    assert!(rig.core.outcome(1).unwrap().is_ok(), "the coordinator has said so");
    assert!(rig.core.handle_begin().unwrap().unwrap_err().is_fenced());
    let (mut rig, call) = asked_to_commit();
    rig.core.handle_fatal(broker(code::PRODUCER_FENCED).with_fatal());
    rig.reply(&call, Err(Error::new(ErrorKind::Disconnected, "lost")));
    let error = rig.core.outcome(1).unwrap().unwrap_err();
    assert!(error.is_fenced() && error.possibly_written(), "{error}");
    rig.now += Duration::from_secs(2);
    assert!(rig.call(idle()).is_none());
}

#[test]
fn a_log_that_has_lost_records_is_written_to_under_a_new_epoch_after_the_abort() {
    let mut rig = Rig::open(false);
    rig.wants(0);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Done));
    rig.core.handle_sent();
    rig.core.handle_failure(broker(code::OUT_OF_ORDER_SEQUENCE_NUMBER), false);
    rig.core.handle_abort();
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Ended(None)));
    assert!(rig.core.handle_begin().is_none(), "not under the epoch that the log refuses");
    rig.renews_its_epoch();
    rig.core.handle_begin().unwrap().unwrap();
    // What its caller throws away says nothing of a log.
    let mut rig = Rig::open(false);
    rig.core.handle_sent();
    rig.core.handle_abort();
    rig.core.handle_failure(aborted(), false);
    let call = rig.call(idle()).unwrap();
    rig.reply(&call, Ok(Reply::Ended(None)));
    rig.core.handle_begin().unwrap().unwrap();
}

#[test]
fn the_failure_of_a_record_that_may_be_written_says_so_of_no_other() {
    let late = || Error::new(ErrorKind::Timeout, "late").with_possibly_written(true);
    for fatal in [false, true] {
        let mut rig = Rig::open(true);
        rig.core.handle_sent();
        match fatal {
            false => rig.core.handle_failure(late(), true),
            true => rig.core.handle_fatal(late().with_fatal()),
        }
        let told = [
            rig.core.poll_discard().unwrap(),
            rig.core.refusal().unwrap(),
            rig.core.handle_offsets(offsets()).unwrap_err(),
            rig.core.is_job_done(1).unwrap().unwrap_err(),
            rig.core.handle_commit().unwrap_err(),
        ];
        assert!(told.iter().all(|error| !error.possibly_written()), "{told:?}");
    }
}
