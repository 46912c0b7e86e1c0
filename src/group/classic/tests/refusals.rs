//! Coordinators that refuse, hang, move or cannot explain themselves.

use super::*;

#[test]
fn a_coordinator_that_never_lets_a_member_in_is_not_asked_without_a_pause() {
    let asked_in_a_second = |answer: fn(&mut Bench, Token, bool)| {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        let (mut asked, start) = (0, bench.now);
        while bench.now < start + Duration::from_secs(1) {
            bench.poll();
            while let Some(action) = bench.member.poll_action() {
                if let Action::Send { token, request, .. } = action {
                    asked += 1;
                    assert!(asked < 100, "in circles");
                    answer(&mut bench, token, matches!(request, Request::Join { .. }));
                }
            }
            bench.now += Duration::from_millis(10);
            bench.member.handle_timeout(bench.now);
        }
        asked
    };
    let never =
        |bench: &mut Bench, token, _| bench.answer(token, join_error(code::MEMBER_ID_REQUIRED, "given"));
    assert!((3..20).contains(&asked_in_a_second(never)));
    let nameless =
        |bench: &mut Bench, token, _| bench.answer(token, join_error(code::MEMBER_ID_REQUIRED, ""));
    assert!((3..20).contains(&asked_in_a_second(nameless)));
    for ends in [
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::REBALANCE_IN_PROGRESS),
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::ILLEGAL_GENERATION),
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::UNKNOWN_MEMBER_ID),
    ] {
        assert!((12..40).contains(&asked_in_a_second(ends)));
    }
}

/// The group lets the member in, and has ended the generation when it asks for its assignment.
fn ends_again(bench: &mut Bench, token: Token, joins: bool, error: i16) {
    match joins {
        true => bench.join_answer(token, 5, "other"),
        false => bench.answer(token, Answer::Sync { error, assignment: bytes::Bytes::new() }),
    }
}

#[test]
fn a_refused_join_is_not_repeated_before_a_pause_however_often_the_user_polls() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    let (mut joins, until) = (0, bench.now + Duration::from_secs(10));
    while bench.now < until {
        bench.pass(Duration::from_millis(1));
        bench.poll();
        while let Some(action) = bench.member.poll_action() {
            if let Action::Send { token, .. } = action {
                joins += 1;
                let unreadable = Error::protocol("a group member's subscription cannot be read");
                bench.member.handle_answer(bench.now, token, Err(unreadable));
            }
        }
    }
    assert!((5..20).contains(&joins), "{joins} joins in 10 s");
}

#[test]
fn a_fenced_static_member_stops_for_ever() {
    let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::FENCED_INSTANCE_ID });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    let Some(Action::Fail(error)) = bench.member.poll_action() else { panic!("the user must know") };
    assert!(error.is_fatal());
    bench.poll();
    bench.pass(Duration::from_secs(3600));
    bench.nothing();
}

#[test]
fn a_coordinator_that_moved_is_looked_up_and_asked_again_after_a_pause() {
    type Answered = Result<Answer, Error>;
    let moved: [fn() -> Answered; 3] = [
        || Ok(Answer::Heartbeat { error: code::NOT_COORDINATOR }),
        || Ok(Answer::Heartbeat { error: code::COORDINATOR_NOT_AVAILABLE }),
        || Err(disconnected()),
    ];
    for answer in moved {
        let mut bench = Bench::stable();
        let beat = bench.heartbeat();
        bench.member.handle_answer(bench.now, beat, answer());
        assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
        bench.nothing();
        let before = bench.now;
        bench.pass_to_timeout();
        assert!(bench.now > before && bench.now < before + Duration::from_secs(1));
        let (token, Request::Heartbeat { generation: 5, .. }) = bench.sent() else { panic!("no heartbeat") };
        bench.answer(token, Answer::Heartbeat { error: 0 });
        assert!(bench.member.is_stable());
    }
}

#[test]
fn a_loading_coordinator_is_asked_again_without_a_new_look_up() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.answer(token, join_error(code::COORDINATOR_LOAD_IN_PROGRESS, ""));
    bench.nothing();
    bench.pass_to_timeout();
    bench.joins();
}

#[test]
fn what_the_user_must_mend_is_told_and_tried_again_by_the_next_poll() {
    for error in [
        code::GROUP_AUTHORIZATION_FAILED,
        code::INCONSISTENT_GROUP_PROTOCOL,
        code::INVALID_SESSION_TIMEOUT,
        code::GROUP_MAX_SIZE_REACHED,
    ] {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.joins();
        bench.answer(token, join_error(error, ""));
        let Some(Action::Fail(told)) = bench.member.poll_action() else { panic!("{error} is not told") };
        assert!(told.hint().is_some() && !told.is_fatal(), "{told}");
        bench.pass(Duration::from_secs(60));
        bench.nothing();
        bench.poll();
        bench.joins();
    }
}

#[test]
fn refusals_of_a_join_never_come_back_without_a_pause() {
    for error in [
        code::UNKNOWN_MEMBER_ID,
        code::ILLEGAL_GENERATION,
        code::REBALANCE_IN_PROGRESS,
        code::NOT_COORDINATOR,
        code::COORDINATOR_NOT_AVAILABLE,
        code::COORDINATOR_LOAD_IN_PROGRESS,
    ] {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.joins();
        bench.answer(token, join_error(error, ""));
        while let Some(action) = bench.member.poll_action() {
            assert!(!matches!(action, Action::Send { .. }), "{error} is asked again at once");
        }
        bench.pass_to_timeout();
        bench.joins();
    }
}

#[test]
fn a_coordinator_that_cannot_explain_itself_is_asked_again() {
    let mut bench = Bench::stable();
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::UNKNOWN_SERVER_ERROR });
    bench.pass_to_timeout();
    assert!(matches!(bench.sent(), (_, Request::Heartbeat { .. })));
}

#[test]
fn a_heartbeat_that_hangs_is_given_up_while_another_can_still_save_the_session() {
    for session in [3, 45, 600] {
        let mut bench =
            Bench::stable_with(|settings| settings.session_timeout = Duration::from_secs(session));
        bench.pass(HEARTBEAT.min(Duration::from_secs(session / 3)));
        while bench.member.poll_timeout().is_some_and(|at| at <= bench.now) {
            bench.pass(Duration::ZERO);
        }
        let mut sent = bench.member.poll_action();
        while sent.is_none() {
            bench.pass_to_timeout();
            sent = bench.member.poll_action();
        }
        let Some(Action::Send { deadline, request: Request::Heartbeat { .. }, .. }) = sent else { return };
        assert!(deadline - bench.now <= Duration::from_secs(session) / 2);
        assert!(deadline - bench.now <= Duration::from_secs(30));
    }
}
