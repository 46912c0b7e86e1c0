//! Cooperative rebalancing (KIP-429).

use super::*;

/// A follower with these partitions of t in generation 5.
fn cooperative(partitions: &[i32]) -> Bench {
    let mut bench = Bench::with(|settings| settings.cooperative = true);
    bench.subscribe(&["t"]);
    bench.poll();
    rejoined(&mut bench, 5, partitions);
    let Some(Action::Assign { added }) = bench.member.poll_action() else { panic!("no assignment") };
    assert_eq!(added, keys(partitions));
    bench
}

fn keys(partitions: &[i32]) -> Vec<TopicPartition> {
    partitions.iter().map(|partition| TopicPartition::new("t", *partition)).collect()
}

/// The join that is out is answered, and the sync after it. What the join claimed.
fn rejoined(bench: &mut Bench, generation: i32, partitions: &[i32]) -> (Vec<TopicPartition>, i32) {
    let (token, Request::Join { claim, generation: before, .. }) = bench.sent() else { panic!("no join") };
    bench.answer(
        token,
        Answer::Join {
            error: 0,
            generation,
            member_id: "me".into(),
            leader: "other".into(),
            protocol: "cooperative-sticky".into(),
            members: Vec::new(),
            skip_assignment: false,
        },
    );
    let (token, Request::Sync { .. }) = bench.sent() else { panic!("no sync") };
    bench.answer(token, Answer::Sync { error: 0, assignment: encode_assignment(&keys(partitions)) });
    (claim, before)
}

#[test]
fn a_cooperative_member_keeps_what_stays_and_gives_up_what_goes_in_a_rebalance_of_its_own() {
    let mut bench = cooperative(&[0, 1, 2]);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    assert_eq!(bench.member.identity().unwrap().generation, 5, "it goes on committing");
    assert_eq!(rejoined(&mut bench, 6, &[1, 3]), (keys(&[0, 1, 2]), 5));
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added == keys(&[3])));
    let Some(Action::Revoke { token, partitions, .. }) = bench.member.poll_action() else {
        panic!("no revocation")
    };
    assert_eq!(partitions, keys(&[0, 2]));
    assert_eq!(bench.member.identity().unwrap().generation, 6);
    bench.member.handle_revoked(bench.now, token);
    assert_eq!(rejoined(&mut bench, 7, &[1, 3]), (keys(&[1, 3]), 6));
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added.is_empty()));
    bench.nothing();
}

#[test]
fn a_cooperative_member_that_is_not_known_any_more_loses_what_it_kept() {
    let mut bench = cooperative(&[0, 1]);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let (token, _) = bench.joins();
    bench.answer(token, join_error(code::UNKNOWN_MEMBER_ID, ""));
    let lost = bench.member.poll_action();
    assert!(matches!(lost, Some(Action::Lost { partitions }) if partitions == keys(&[0, 1])));
    assert!(bench.member.identity().is_none());
    bench.pass_to_timeout();
    let (_, Request::Join { claim, generation, member_id, .. }) = bench.sent() else { panic!("no join") };
    assert_eq!((claim, generation, member_id.as_str()), (Vec::new(), -1, ""));
}

#[test]
fn a_cooperative_member_that_cannot_reach_its_coordinator_while_it_joins_loses_what_it_kept_with_its_session()
{
    for was_heard in [false, true] {
        let mut bench = cooperative(&[0, 1]);
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
        let mut since = bench.now;
        let mut hears = was_heard.then_some(bench.now + SESSION / 2);
        let lost = loop {
            match bench.member.poll_action() {
                Some(Action::Send { token, .. }) if hears.is_some_and(|at| at <= bench.now) => {
                    (hears, since) = (None, bench.now);
                    bench.answer(token, join_error(code::COORDINATOR_LOAD_IN_PROGRESS, ""));
                }
                Some(Action::Send { token, .. }) => {
                    bench.member.handle_answer(bench.now, token, Err(disconnected()));
                }
                Some(Action::ForgetCoordinator) => {}
                Some(Action::Lost { partitions }) => break partitions,
                None => bench.pass_to_timeout(),
                other => panic!("unexpected {other:?}"),
            }
            bench.poll();
        };
        assert_eq!(lost, keys(&[0, 1]));
        let after = bench.now - since;
        assert!(SESSION <= after && after <= SESSION + Duration::from_secs(4), "{was_heard} {after:?}");
        assert!(bench.member.identity().is_none(), "another member's by now");
    }
}

#[test]
fn what_was_kept_is_lost_at_the_end_of_the_session_and_not_before() {
    for (after, is_lost) in [(SESSION - Duration::from_millis(1), false), (SESSION, true)] {
        let mut bench = cooperative(&[0, 1]);
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
        let since = bench.now;
        for at in [since, since + after] {
            if at > since {
                bench.pass_to_timeout();
            }
            let (token, _) = bench.joins();
            bench.now = at;
            bench.member.handle_answer(at, token, Err(disconnected()));
            assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
        }
        let lost = matches!(bench.member.poll_action(), Some(Action::Lost { .. }));
        assert_eq!(lost, is_lost, "{after:?}");
    }
}

#[test]
fn a_join_without_an_answer_costs_what_was_kept_only_if_the_coordinator_is_gone_when_it_is_asked_again() {
    // Nobody is held up who asks where the coordinator is.
    for (again, api, is_lost) in [
        (ErrorKind::Timeout, "JoinGroup", false),
        (ErrorKind::Timeout, "FindCoordinator", true),
        (ErrorKind::Disconnected, "JoinGroup", true),
    ] {
        let mut bench = cooperative(&[0, 1]);
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
        let fails = |bench: &mut Bench, kind, api| {
            let (token, _) = bench.joins();
            bench.now += SESSION;
            let error = Error::new(kind, "no answer").with_api(api);
            bench.member.handle_answer(bench.now, token, Err(error));
            assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
        };
        // A coordinator holds a join back for as long as any member of the group may take.
        fails(&mut bench, ErrorKind::Timeout, "JoinGroup");
        bench.nothing();
        bench.pass_to_timeout();
        fails(&mut bench, again, api);
        let lost = matches!(bench.member.poll_action(), Some(Action::Lost { .. }));
        assert_eq!(lost, is_lost, "{again:?} {api}");
    }
}

#[test]
fn a_cooperative_member_gives_up_only_the_topics_it_does_not_want_any_more() {
    let mut bench = cooperative(&[0, 1]);
    bench.subscribe(&["t", "u"]);
    bench.joins();
    let mut bench = cooperative(&[0, 1]);
    bench.subscribe(&["u"]);
    let Some(Action::Revoke { token, partitions, .. }) = bench.member.poll_action() else {
        panic!("no revocation")
    };
    assert_eq!(partitions, keys(&[0, 1]));
    bench.member.handle_revoked(bench.now, token);
    let (_, Request::Join { claim, .. }) = bench.sent() else { panic!("no join") };
    assert!(claim.is_empty());
}

#[test]
fn a_commit_says_that_the_group_goes_on_without_the_member_however_long_its_join_takes() {
    for (error, is_lost) in [(code::UNKNOWN_MEMBER_ID, true), (code::ILLEGAL_GENERATION, false)] {
        for syncs in [false, true] {
            let mut bench = cooperative(&[0, 1]);
            let beat = bench.heartbeat();
            bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
            let (token, _) = bench.joins();
            if syncs {
                bench.join_answer(token, 6, "other");
                let (_, Request::Sync { .. }) = bench.sent() else { panic!("no sync") };
            }
            let generation = bench.member.identity().unwrap().generation;
            bench.member.handle_fenced_commit(bench.now, generation - 1, error);
            bench.nothing();
            bench.member.handle_fenced_commit(bench.now, generation, error);
            let lost = matches!(bench.member.poll_action(), Some(Action::Lost { .. }));
            assert_eq!(lost, is_lost, "{error} {syncs}");
            if is_lost {
                assert!(bench.member.identity().is_none());
                match syncs {
                    true => bench.poll(),
                    false => bench.pass_to_timeout(),
                }
                assert_eq!(bench.joins().1, "", "it joins as somebody else");
            }
        }
    }
}
