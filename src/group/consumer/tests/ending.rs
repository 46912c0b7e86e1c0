//! How a membership ends: fenced, lost between polls, left by its user, or not left at all.

use super::*;
use crate::group::consumer::ending::{LEAVE, LEAVE_FOR_A_WHILE};

#[test]
fn a_member_that_is_fenced_or_forgotten_loses_all_and_joins_again_in_epoch_0_with_nothing() {
    for error in [code::FENCED_MEMBER_EPOCH, code::UNKNOWN_MEMBER_ID, code::GROUP_ID_NOT_FOUND] {
        let mut bench = Bench::joined();
        bench.pass_to_timeout();
        let (token, _) = bench.beat();
        bench.refuse(token, error);
        assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)]);
        let (token, again) = bench.beat();
        assert_eq!((again.epoch, again.is_full, again.owned), (0, true, Some(Vec::new())));
        assert!(bench.member.identity().is_none());
        bench.answer(token, 5, None);
        bench.quiet();
    }
}

#[test]
fn a_join_that_is_refused_because_the_member_is_in_already_is_begun_anew() {
    let cases = [
        (None, code::FENCED_MEMBER_EPOCH, LEAVE),
        (Some("i".to_owned()), code::UNRELEASED_INSTANCE_ID, LEAVE_FOR_A_WHILE),
    ];
    for (instance, refused, epoch) in cases {
        let mut bench = Bench::joining_with(|settings| settings.instance_id = instance);
        // The coordinator has let it in, and has gone on to another epoch.
        let (token, _) = bench.beat();
        bench.lose_answer(token);
        bench.pass_to_timeout();
        let (token, again) = bench.beat();
        assert_eq!(again.epoch, 0);
        bench.refuse(token, refused);
        let (token, left) = bench.beat();
        assert_eq!((left.epoch, left.member_id == again.member_id), (epoch, true));
        bench.answer(token, epoch, None);
        let (token, anew) = bench.beat();
        assert_eq!((anew.epoch, anew.is_full), (0, true));
        // One that refuses it all the same is asked after a pause, and not told again.
        bench.refuse(token, refused);
        bench.quiet();
        bench.pass_to_timeout();
        let (token, anew) = bench.beat();
        assert_eq!(anew.epoch, 0);
        bench.answer(token, 3, Some(&[]));
        assert_eq!(bench.member.identity().unwrap().generation, 3);
    }
}

#[test]
fn a_failure_that_does_not_pass_is_told_and_not_met_again_at_once() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.member.handle_answer(bench.now, token, Err(Error::protocol("an answer that cannot be read")));
    assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)]);
    assert_eq!(bench.failed().kind(), ErrorKind::Protocol);
    bench.quiet();
}

#[test]
fn a_member_that_is_lost_between_polls_joins_again_in_a_poll_alone() {
    let mut bench = Bench::joined();
    bench.member.handle_poll_end(bench.now);
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::FENCED_MEMBER_EPOCH);
    bench.lost();
    bench.pass(INTERVAL);
    bench.quiet();
    assert!(bench.member.poll_timeout().is_none());
    bench.member.handle_poll(bench.now);
    assert_eq!(bench.beat().1.epoch, 0);
}

#[test]
fn a_member_that_does_not_poll_leaves_and_joins_again_when_it_does() {
    for (instance, epoch) in [(None, LEAVE), (Some("i".to_owned()), LEAVE_FOR_A_WHILE)] {
        let mut bench = Bench::joined_with(|settings| settings.instance_id = instance);
        bench.member.handle_poll_end(bench.now);
        let end = bench.now + POLL_INTERVAL;
        while bench.member.is_joined() {
            bench.pass_to_timeout();
            if bench.now < end {
                let (token, _) = bench.beat();
                bench.answer(token, 1, None);
            }
        }
        assert_eq!(bench.now, end);
        assert_eq!(bench.lost().len(), 2);
        let (token, left) = bench.beat();
        assert_eq!((left.epoch, left.owned, left.topics), (epoch, None, None));
        bench.answer(token, epoch, None);
        bench.quiet();
        bench.member.handle_poll(bench.now);
        assert_eq!(bench.beat().1.epoch, 0);
    }
}

#[test]
fn a_closed_member_has_left_with_whatever_answer_and_a_stale_one_is_dropped() {
    for refused in [0, code::UNKNOWN_MEMBER_ID, code::NOT_COORDINATOR] {
        let mut bench = Bench::joined();
        bench.pass_to_timeout();
        let (stale, _) = bench.beat();
        bench.member.handle_close(bench.now);
        bench.lost();
        let (token, left) = bench.beat();
        assert_eq!(left.epoch, LEAVE);
        bench.answer(stale, 7, Some(&[(ORDERS, 5)]));
        assert!(!bench.member.is_idle());
        bench.refuse(token, refused);
        assert!(bench.member.is_idle() && bench.member.poll_timeout().is_none());
        bench.quiet();
    }
}

#[test]
fn a_close_leaves_or_stays_as_it_is_told_whatever_the_member_is() {
    use GroupMembershipOperation::{Default, LeaveGroup, RemainInGroup};
    for (departure, is_static, epoch) in [
        (Default, false, Some(LEAVE)),
        (Default, true, Some(LEAVE_FOR_A_WHILE)),
        (LeaveGroup, false, Some(LEAVE)),
        (LeaveGroup, true, Some(LEAVE)),
        (RemainInGroup, false, None),
        (RemainInGroup, true, Some(LEAVE_FOR_A_WHILE)),
    ] {
        let instance = is_static.then(|| "i".to_owned());
        let mut bench = Bench::joined_with(|settings| settings.instance_id = instance);
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        bench.lost();
        match epoch {
            Some(epoch) => assert_eq!(bench.beat().1.epoch, epoch, "{departure:?} {is_static}"),
            None => bench.quiet(),
        }
        assert_eq!(bench.member.is_idle(), epoch.is_none());
    }
}

#[test]
fn a_member_that_closes_while_it_joins_says_so() {
    let mut bench = Bench::joining();
    bench.beat();
    bench.member.handle_close(bench.now);
    assert_eq!(bench.beat().1.epoch, LEAVE, "the coordinator may have let it in");
}

#[test]
fn a_static_member_outside_its_group_leaves_it_all_the_same_when_its_close_is_to() {
    for (departure, leaves) in
        [(GroupMembershipOperation::LeaveGroup, true), (GroupMembershipOperation::Default, false)]
    {
        let mut bench = Bench::joined_with(|settings| settings.instance_id = Some("i".to_owned()));
        bench.member.handle_poll_end(bench.now);
        bench.pass(POLL_INTERVAL);
        bench.lost();
        let (token, away) = bench.beat();
        assert_eq!(away.epoch, LEAVE_FOR_A_WHILE);
        bench.answer(token, -2, None);
        assert!(bench.member.is_idle());
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        if leaves {
            let (token, left) = bench.beat();
            assert_eq!(left.epoch, LEAVE);
            bench.answer(token, -1, None);
        }
        bench.quiet();
        assert!(bench.member.is_idle());
        bench.member.handle_close(bench.now);
        bench.quiet();
    }
}
