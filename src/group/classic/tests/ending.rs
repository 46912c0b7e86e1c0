//! Members that are lost, leave or close.

use super::*;

#[test]
fn lost_partitions_are_released_and_the_member_joins_again_in_a_poll_alone() {
    // (code, the member id of the next join)
    for (error, id) in [(code::UNKNOWN_MEMBER_ID, ""), (code::ILLEGAL_GENERATION, "me")] {
        let mut bench = Bench::stable();
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error });
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        assert!(bench.member.identity().is_none());
        bench.pass(SESSION * 2);
        bench.nothing();
        bench.poll();
        assert_eq!(bench.joins().1, id);
    }
}

#[test]
fn a_commit_that_was_fenced_ends_the_generation_it_was_made_in_and_no_later_one() {
    let mut bench = Bench::stable();
    bench.member.handle_fenced_commit(bench.now, 4, code::ILLEGAL_GENERATION);
    bench.nothing();
    bench.member.handle_fenced_commit(bench.now, 5, code::ILLEGAL_GENERATION);
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.poll();
    bench.joins();
}

#[test]
fn a_poll_that_nobody_looks_after_does_not_keep_the_member() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    bench.member.handle_loose_poll(bench.now);
    let mut is_lost = false;
    for _ in 0..200 {
        bench.pass_to_timeout();
        while let Some(action) = bench.member.poll_action() {
            match action {
                Action::Send { token, request: Request::Heartbeat { .. }, .. } => {
                    bench.answer(token, Answer::Heartbeat { error: 0 });
                }
                Action::Lost { .. } => is_lost = true,
                _ => {}
            }
        }
        if is_lost {
            break;
        }
    }
    assert!(is_lost);
    bench.pass(SESSION);
    bench.nothing();
}

#[test]
fn proof_of_life_between_polls_keeps_the_member_without_being_a_poll() {
    let mut bench = Bench::stable();
    for _ in 0..10 {
        for _ in 0..(POLL_INTERVAL.as_secs() * 2 / 3 / HEARTBEAT.as_secs()) {
            let beat = bench.heartbeat();
            bench.answer(beat, Answer::Heartbeat { error: 0 });
        }
        bench.member.handle_alive(bench.now);
    }
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::UNKNOWN_MEMBER_ID });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.member.handle_alive(bench.now);
    bench.nothing();
}

#[test]
fn a_session_without_an_answer_ends_with_the_partitions_released() {
    let mut bench = Bench::stable();
    bench.heartbeat();
    bench.pass(SESSION);
    assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.poll();
    assert_eq!(bench.joins().1, "me");
}

#[test]
fn an_eager_member_that_cannot_reach_its_coordinator_for_long_says_all_the_same_what_it_had() {
    let mut bench = Bench::stable();
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    let until = bench.now + SESSION * 2;
    let said = loop {
        match bench.member.poll_action() {
            Some(Action::Send { request: Request::Join { claim, generation, .. }, .. })
                if bench.now > until =>
            {
                break (claim, generation);
            }
            Some(Action::Send { token, .. }) => {
                bench.member.handle_answer(bench.now, token, Err(disconnected()));
            }
            Some(Action::ForgetCoordinator) => {}
            None => bench.pass_to_timeout(),
            other => panic!("unexpected {other:?}"),
        }
        bench.poll();
    };
    assert_eq!(said, (vec![TopicPartition::new("t", 0)], 5));
}

#[test]
fn a_member_that_does_not_poll_leaves_and_joins_again_when_it_does() {
    let mut bench = Bench::stable();
    loop {
        bench.pass_to_timeout();
        match bench.member.poll_action() {
            Some(Action::Send { token, request: Request::Heartbeat { .. }, .. }) => {
                bench.answer(token, Answer::Heartbeat { error: 0 });
            }
            Some(Action::Lost { .. }) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    let (token, Request::Leave { member_id, .. }) = bench.sent() else { panic!("it must leave") };
    assert_eq!(member_id, "me");
    bench.answer(token, Answer::Leave { error: 0 });
    bench.pass(Duration::from_secs(3600));
    bench.nothing();
    bench.poll();
    assert_eq!(bench.joins().1, "");
}

#[test]
fn a_poll_that_waits_is_no_absence() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    for _ in 0..200 {
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error: 0 });
    }
    assert!(bench.member.is_stable());
}

#[test]
fn a_closing_member_leaves_even_while_it_joins() {
    let mut bench = Bench::stable();
    bench.subscribe(&["t", "u"]);
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    bench.joins();
    bench.member.handle_close(bench.now);
    let (token, Request::Leave { .. }) = bench.sent() else { panic!("it must leave") };
    assert!(!bench.member.is_idle());
    bench.member.handle_answer(bench.now, token, Err(disconnected()));
    assert!(bench.member.is_idle());
}

#[test]
fn a_static_member_closes_without_leaving() {
    let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
    bench.member.handle_close(bench.now);
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.nothing();
    assert!(bench.member.is_idle());
}

#[test]
fn a_close_leaves_or_stays_as_it_is_told_whatever_the_member_is() {
    use GroupMembershipOperation::{Default, LeaveGroup, RemainInGroup};
    for (departure, is_static, leaves) in [
        (Default, false, true),
        (Default, true, false),
        (LeaveGroup, false, true),
        (LeaveGroup, true, true),
        (RemainInGroup, false, false),
        (RemainInGroup, true, false),
    ] {
        let instance = is_static.then(|| "i".to_owned());
        let mut bench = Bench::stable_with(|settings| settings.instance_id = instance);
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        match leaves {
            true => assert!(matches!(bench.sent().1, Request::Leave { .. }), "{departure:?}"),
            false => bench.nothing(),
        }
        assert_eq!(bench.member.is_idle(), !leaves, "{departure:?} {is_static}");
    }
}

#[test]
fn a_static_member_outside_its_group_leaves_it_all_the_same_when_its_close_is_to() {
    for (departure, leaves) in
        [(GroupMembershipOperation::LeaveGroup, true), (GroupMembershipOperation::Default, false)]
    {
        let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
        bench.pass(POLL_INTERVAL);
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        bench.nothing();
        assert!(bench.member.is_idle(), "its place waits for it until its session ends");
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        if leaves {
            let (token, left) = bench.sent();
            assert!(matches!(&left, Request::Leave { member_id, .. } if member_id == "me"), "{left:?}");
            assert!(!bench.member.is_idle());
            bench.answer(token, Answer::Leave { error: 0 });
        }
        bench.nothing();
        assert!(bench.member.is_idle());
    }
}

#[test]
fn a_member_that_was_lost_and_is_not_static_has_nothing_to_wait_for_in_its_close() {
    let mut bench = Bench::stable();
    bench.pass(SESSION);
    while let Some(action) = bench.member.poll_action() {
        assert!(!matches!(action, Action::Send { request: Request::Leave { .. }, .. }), "{action:?}");
    }
    assert!(bench.member.is_idle(), "it joins with the next poll");
    bench.member.handle_close(bench.now);
    bench.nothing();
    assert!(bench.member.is_idle(), "a coordinator that is gone would hold it up");
}

fn matching(bench: &mut Bench, topics: &[&str]) {
    let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
    bench.member.handle_matching(bench.now, topics);
}

#[test]
fn with_nothing_that_matches_any_more_partitions_go_as_in_a_rebalance_and_then_the_member_leaves() {
    for cooperative in [false, true] {
        let mut bench = Bench::stable_with(|settings| settings.cooperative = cooperative);
        matching(&mut bench, &[]);
        let token = bench.revocation();
        bench.nothing();
        bench.member.handle_revoked(bench.now, token);
        let (token, left) = bench.sent();
        assert!(matches!(left, Request::Leave { .. }), "{left:?}");
        bench.answer(token, Answer::Leave { error: 0 });
        bench.poll();
        bench.nothing();
        matching(&mut bench, &["t"]);
        bench.poll();
        bench.joins();
    }
}

#[test]
fn with_nothing_that_matches_any_more_during_a_cooperative_rebalance_what_is_kept_is_given_up_in_order() {
    let mut bench = Bench::stable_with(|settings| settings.cooperative = true);
    let token = bench.heartbeat();
    bench.answer(token, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let (token, _) = bench.joins();
    matching(&mut bench, &[]);
    bench.join_answer(token, 6, "other");
    let (token, _) = bench.sent();
    bench.answer(
        token,
        Answer::Sync { error: 0, assignment: encode_assignment(&[TopicPartition::new("t", 0)]) },
    );
    let (token, request) = bench.sent();
    assert!(matches!(&request, Request::Join { topics, .. } if topics.is_empty()), "{request:?}");
    bench.join_answer(token, 7, "other");
    let (token, _) = bench.sent();
    bench.answer(token, Answer::Sync { error: 0, assignment: Bytes::new() });
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added.is_empty()));
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    assert!(matches!(bench.sent().1, Request::Leave { .. }));
}

#[test]
fn a_join_that_waits_to_be_repeated_keeps_what_a_cooperative_member_has_when_nothing_matches_any_more() {
    for keeps in [true, false] {
        let mut bench = Bench::stable_with(|settings| settings.cooperative = keeps);
        let token = bench.heartbeat();
        bench.answer(token, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
        if !keeps {
            let token = bench.revocation();
            bench.member.handle_revoked(bench.now, token);
        }
        let (token, _) = bench.joins();
        bench.answer(token, join_error(code::COORDINATOR_LOAD_IN_PROGRESS, "me"));
        matching(&mut bench, &[]);
        if keeps {
            bench.nothing();
            assert!(bench.member.identity().is_some(), "it is still committed");
        } else {
            assert!(matches!(bench.sent().1, Request::Leave { .. }));
        }
    }
}

#[test]
fn a_member_that_leaves_or_was_fenced_says_nothing_more_when_it_is_closed() {
    let mut bench = Bench::stable();
    bench.subscribe(&[]);
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    let (token, left) = bench.sent();
    assert!(matches!(left, Request::Leave { .. }), "{left:?}");
    bench.member.handle_close(bench.now);
    bench.nothing();
    assert!(!bench.member.is_idle(), "the coordinator has not answered");
    bench.answer(token, Answer::Leave { error: 0 });
    assert!(bench.member.is_idle());

    let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::FENCED_INSTANCE_ID });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    assert!(matches!(bench.member.poll_action(), Some(Action::Fail(_))));
    bench.member.set_departure(GroupMembershipOperation::LeaveGroup);
    bench.member.handle_close(bench.now);
    bench.nothing();
}
