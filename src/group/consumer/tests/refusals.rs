//! What coordinators refuse, and answers that cannot be followed.

use super::*;
use crate::group::consumer::ending::LEAVE_FOR_A_WHILE;

#[test]
fn a_refused_repetition_is_full_too_and_slower_each_time() {
    let mut bench = Bench::joining();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let (token, beat) = bench.beat();
        assert!(beat.is_full && beat.topics.is_some() && beat.owned.is_some());
        let before = bench.now;
        bench.refuse(token, code::COORDINATOR_LOAD_IN_PROGRESS);
        bench.pass_to_timeout();
        pauses.push(bench.now - before);
    }
    assert!(pauses[3] > pauses[0] * 3, "{pauses:?}");
}

#[test]
fn a_member_that_is_let_in_and_thrown_out_at_once_does_not_flood_the_coordinator() {
    let mut bench = Bench::joining();
    let mut rounds = 0;
    let begun = bench.now;
    while bench.now < begun + Duration::from_secs(10) {
        let (token, _) = bench.beat();
        bench.answer(token, 1, Some(&[(ORDERS, 0)]));
        bench.assigned();
        let (token, _) = bench.beat();
        bench.refuse(token, code::UNKNOWN_MEMBER_ID);
        bench.lost();
        bench.pass_to_timeout();
        rounds += 1;
    }
    assert!((5..20).contains(&rounds), "{rounds} rounds in 10 s");
}

#[test]
fn a_coordinator_that_changes_its_mind_with_every_answer_is_not_followed_for_ever() {
    let mut bench = Bench::joined();
    let mut beats = 0;
    bench.pass_to_timeout();
    while let Some(action) = bench.member.poll_action() {
        match action {
            Action::Send { token, .. } => {
                beats += 1;
                assert!(beats < 100, "it never comes to rest");
                bench.answer(token, 1, Some(&[(ORDERS, beats % 7)]));
            }
            Action::Revoke { token, .. } => bench.member.handle_revoked(bench.now, token),
            _ => {}
        }
    }
    bench.pass_to_timeout();
    bench.beat();
}

/// What a refusal of the first heartbeat does: (code, does the user hear of it, what the hint names).
#[test]
fn each_refusal_of_a_join_names_its_remedy_and_the_next_poll_tries_again() {
    let table = [
        (code::UNSUPPORTED_ASSIGNOR, "group.remote.assignor"),
        (code::GROUP_MAX_SIZE_REACHED, "group.consumer.max.size"),
        (code::GROUP_AUTHORIZATION_FAILED, "group.id"),
        (code::TOPIC_AUTHORIZATION_FAILED, "Describe and Read"),
        (code::INVALID_REGULAR_EXPRESSION, "RE2"),
        (code::UNSUPPORTED_VERSION, "group.protocol to classic"),
        (code::GROUP_ID_NOT_FOUND, "group.consumer.migration.policy"),
        (code::INVALID_REQUEST, ""),
    ];
    for (refused, remedy) in table {
        let mut bench = Bench::joining();
        let (token, _) = bench.beat();
        bench.refuse(token, refused);
        let error = bench.failed();
        assert_eq!(error.code().map(|code| code.0), Some(refused));
        assert!(error.hint().unwrap_or_default().contains(remedy), "{error}");
        assert!(!error.is_fatal() && bench.member.is_idle());
        bench.quiet();
        bench.pass_to_timeout();
        assert_eq!(bench.beat().1.epoch, 0, "a poll still waits");
    }
}

#[test]
fn what_the_broker_says_is_in_the_error() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    let message = Some("SubscribedTopicRegex `(` is not a valid regular expression".to_owned());
    let answer = ConsumerHeartbeatAnswer {
        error: code::INVALID_REGULAR_EXPRESSION,
        message,
        ..ConsumerHeartbeatAnswer::default()
    };
    bench.member.handle_answer(bench.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
    let error = bench.failed().to_string();
    assert!(error.contains("SubscribedTopicRegex `(`"), "{error}");
}

#[test]
fn an_instance_id_that_is_not_released_yet_is_waited_for_as_long_as_a_session() {
    let mut bench = Bench::joining_with(|settings| settings.instance_id = Some("i".to_owned()));
    let begun = bench.now;
    let (token, _) = bench.beat();
    bench.refuse(token, code::UNRELEASED_INSTANCE_ID);
    // It may be this member's own, which it gives up once; of another's it hears that it is fenced.
    let (token, left) = bench.beat();
    assert_eq!(left.epoch, LEAVE_FOR_A_WHILE);
    bench.refuse(token, code::FENCED_INSTANCE_ID);
    let error = loop {
        let (token, beat) = bench.beat();
        assert_eq!(beat.epoch, 0);
        bench.refuse(token, code::UNRELEASED_INSTANCE_ID);
        match bench.member.poll_action() {
            None => bench.pass_to_timeout(),
            Some(Action::Fail(error)) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(bench.now >= begun + SESSION && bench.now < begun + SESSION + Duration::from_secs(3));
    assert!(!error.is_fatal() && error.to_string().contains("group.instance.id"), "{error}");
    // What is told meanwhile is no reason to end: the member goes on asking.
    let answer =
        ConsumerHeartbeatAnswer { error: code::UNRELEASED_INSTANCE_ID, ..ConsumerHeartbeatAnswer::default() };
    let meanwhile = Answer::ConsumerHeartbeat(answer).trouble().unwrap();
    assert!(meanwhile.is_retriable() && !error.is_retriable(), "{meanwhile}");
    assert!(meanwhile.to_string().contains("group.instance.id"), "{meanwhile}");
    let refused = ConsumerHeartbeatAnswer {
        error: code::GROUP_AUTHORIZATION_FAILED,
        ..ConsumerHeartbeatAnswer::default()
    };
    assert!(!Answer::ConsumerHeartbeat(refused).trouble().unwrap().is_retriable(), "somebody has to act");
}

#[test]
fn a_fenced_instance_is_the_end() {
    let mut bench = Bench::joined_with(|settings| settings.instance_id = Some("i".to_owned()));
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::FENCED_INSTANCE_ID);
    bench.lost();
    assert!(bench.failed().is_fatal());
    bench.member.handle_poll(bench.now);
    bench.quiet();
    assert!(bench.member.is_idle() && bench.member.poll_timeout().is_none());
}

#[test]
fn a_broker_without_the_protocol_is_told_of_or_left_to_the_classic_one() {
    let unsupported = || Err(Error::new(ErrorKind::Unsupported, "the broker does not offer it at all"));
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.member.handle_answer(bench.now, token, unsupported());
    let error = bench.failed();
    assert!(bench.member.take_unusable().is_none());
    assert!(error.hint().unwrap_or_default().contains("group.protocol to classic"), "{error}");

    let mut bench = Bench::joining_with(|settings| settings.protocol = GroupProtocol::Auto);
    let (token, _) = bench.beat();
    bench.member.handle_answer(bench.now, token, unsupported());
    bench.quiet();
    assert!(bench.member.take_unusable().is_some());
}

#[test]
fn an_answer_without_an_epoch_or_an_interval_is_not_followed() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.answer(token, 0, Some(&[(ORDERS, 0)]));
    assert!(bench.failed().to_string().contains("epoch 0"));

    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    let answer =
        ConsumerHeartbeatAnswer { epoch: 1, interval: Duration::ZERO, ..ConsumerHeartbeatAnswer::default() };
    bench.member.handle_answer(bench.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
    bench.quiet();
    assert!(bench.member.poll_timeout().unwrap() > bench.now, "it does not beat without a pause");
}

#[test]
fn a_coordinator_that_moved_is_looked_up_and_one_that_loads_is_not() {
    for (refused, looked_up) in [
        (code::NOT_COORDINATOR, true),
        (code::COORDINATOR_NOT_AVAILABLE, true),
        (code::COORDINATOR_LOAD_IN_PROGRESS, false),
        (code::UNKNOWN_SERVER_ERROR, false),
    ] {
        let mut bench = Bench::joined();
        bench.pass_to_timeout();
        let (token, _) = bench.beat();
        bench.refuse(token, refused);
        if looked_up {
            assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)), "{refused}");
        }
        bench.quiet();
        assert!(bench.member.is_joined());
        bench.pass_to_timeout();
        assert!(bench.beat().1.is_full, "it is asked again");
    }
}

#[test]
fn a_heartbeat_that_hangs_is_given_up_while_another_can_still_save_the_session() {
    let seconds = Duration::from_secs;
    for (interval, request_timeout, patience) in [
        (seconds(5), seconds(30), seconds(15)),
        (Duration::from_millis(100), seconds(30), seconds(3)),
        (seconds(20), seconds(30), seconds(30)),
        (seconds(5), seconds(2), seconds(2)),
    ] {
        let mut bench = Bench::joining_with(|settings| settings.request_timeout = request_timeout);
        let (token, _) = bench.beat();
        let answer = ConsumerHeartbeatAnswer { epoch: 1, interval, ..ConsumerHeartbeatAnswer::default() };
        bench.member.handle_answer(bench.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
        bench.pass_to_timeout();
        assert_eq!(bench.patient_beat().2, patience);
    }
}
