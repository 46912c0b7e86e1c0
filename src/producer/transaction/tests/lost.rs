//! What is lost, damaged or comes in late, and who cannot be reached.

use super::*;

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
    let next = ProducerIdentity { id: 7, epoch: 1, cluster: 0 };
    rig.reply(&call, Ok(Reply::Initialized { identity: next, version2: false }));
    rig.core.handle_begin().unwrap().unwrap();
    assert_eq!(rig.core.identity(), Some(next));
}

#[test]
fn offsets_that_may_come_in_late_are_kept_out_of_the_next_transaction_by_a_new_epoch() {
    // Damage may be another answer's, which ended the connection.
    let kinds = [ErrorKind::Disconnected, ErrorKind::Timeout, ErrorKind::Protocol];
    let cases = [(false, true), (false, false), (true, true)].map(|case| kinds.map(|kind| (case, kind)));
    for ((version2, asked), kind) in cases.into_iter().flatten() {
        let mut rig = Rig::open(version2);
        rig.core.handle_offsets(offsets()).unwrap();
        let mut call = rig.call(idle()).unwrap();
        if !version2 {
            rig.reply(&call, Ok(Reply::Done));
            call = rig.call(idle()).unwrap();
        }
        assert!(matches!(call, Call::CommitOffsets(..)), "{call:?}");
        let lost = Error::new(kind, "lost");
        match asked {
            true => rig.reply(&call, Err(lost)),
            false => rig.unreached(&call, lost),
        }
        assert!(asked || rig.core.refusal().is_none(), "nobody was asked: again");
        rig.core.handle_abort();
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        assert!(matches!(call, Call::End { commit: false, .. }), "{call:?}");
        let next = version2.then_some(ProducerIdentity { id: 7, epoch: 1, cluster: 0 });
        rig.reply(&call, Ok(Reply::Ended(next)));
        // With version 2 the end has brought one.
        let call = rig.call(idle());
        assert_eq!(matches!(call, Some(Call::Init(Some(FIRST)))), !version2 && asked, "{call:?}");
    }
}

#[test]
fn an_end_that_may_come_in_late_is_kept_out_of_the_next_transaction_by_a_new_epoch() {
    for (version2, commit) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut rig = Rig::open(version2);
        rig.core.handle_sent();
        match commit {
            true => rig.core.handle_commit().unwrap(),
            false => rig.core.handle_abort(),
        }
        let call = rig.call(idle()).unwrap();
        rig.reply(&call, Err(Error::new(ErrorKind::Disconnected, "lost")));
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        let next = version2.then_some(ProducerIdentity { id: 7, epoch: 1, cluster: 0 });
        rig.reply(&call, Ok(Reply::Ended(next)));
        if commit {
            assert!(rig.core.outcome(1).unwrap().is_ok(), "it is told at once");
        }
        if !version2 {
            assert!(rig.core.handle_begin().is_none(), "not yet");
            rig.renews_its_epoch();
        }
        assert_eq!(rig.core.handle_begin().unwrap().unwrap(), 2);
    }
}

#[test]
fn who_is_closed_waits_for_the_end_of_its_transaction_and_for_no_new_epoch() {
    for closes_before_the_end_is_told in [false, true] {
        let mut rig = Rig::open(false);
        rig.core.handle_sent();
        rig.core.handle_commit().unwrap();
        let call = rig.call(idle()).unwrap();
        rig.reply(&call, Err(Error::new(ErrorKind::Disconnected, "lost")));
        rig.now += Duration::from_secs(2);
        let call = rig.call(idle()).unwrap();
        if closes_before_the_end_is_told {
            rig.core.handle_close();
            assert!(!rig.core.is_settled());
        }
        rig.reply(&call, Ok(Reply::Ended(None)));
        let asked = (!closes_before_the_end_is_told).then(|| rig.call(idle()).expect("a new epoch"));
        rig.core.handle_close();
        assert!(rig.core.is_settled() && rig.core.outcome(1).unwrap().is_ok());
        if let Some(call) = asked {
            rig.reply(&call, Err(broker(code::COORDINATOR_NOT_AVAILABLE)));
        }
        rig.now += Duration::from_secs(2);
        assert!(rig.call(idle()).is_none() && rig.core.is_settled());
    }
}

#[test]
fn what_was_just_leaving_when_its_transaction_was_given_up_and_its_producer_closed_is_aborted() {
    for leaves in [true, false] {
        let mut rig = Rig::open(true);
        assert!(rig.core.identity().is_some(), "the driver sees that records may leave");
        rig.core.handle_abort();
        rig.core.handle_close();
        if leaves {
            rig.core.handle_sent();
        }
        let call = rig.call(idle());
        assert_eq!(matches!(call, Some(Call::End { commit: false, .. })), leaves, "{call:?}");
        assert_eq!(
            rig.core.is_settled(),
            !leaves,
            "readers of committed records would wait for its time-out"
        );
    }
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
            broker(code::COORDINATOR_LOAD_IN_PROGRESS),
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
    assert!(matches!(rig.core.handle_commit_timeout(1), CommitTimeout::Aborting));
    rig.now += Duration::from_secs(2);
    assert!(matches!(rig.call(idle()), Some(Call::End { commit: false, .. })));
    // Once somebody may have heard of it, no later attempt takes that back.
    let (mut rig, call) = asked_to_commit();
    rig.reply(&call, Err(refused()));
    rig.now += Duration::from_secs(2);
    let call = rig.call(idle()).unwrap();
    rig.unreached(&call, refused());
    assert!(matches!(rig.core.handle_commit_timeout(1), CommitTimeout::CommitSent));
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
    rig.renews_its_epoch();
    rig.core.handle_begin().unwrap().unwrap();
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
        let next = ProducerIdentity { id: 7, epoch: 1, cluster: 0 };
        rig.reply(&call, Ok(Reply::Initialized { identity: next, version2: false }));
        assert!(rig.core.outcome(1).unwrap().is_ok());
        rig.core.handle_begin().unwrap().unwrap();
    }
}
