//! Topics by id and by pattern: those without a name yet, made again, not followed or not to be seen any more.

use super::*;

#[test]
fn a_pattern_is_taken_back_also_where_a_heartbeat_was_lost() {
    let mut bench = Bench::joined();
    let told = |bench: &mut Bench| {
        let (token, beat) = bench.beat();
        (token, beat.pattern.as_deref().map(str::to_owned))
    };
    bench.member.handle_subscription(bench.now, Vec::new(), Some("ord.*".into()));
    let (token, pattern) = told(&mut bench);
    assert_eq!(pattern.as_deref(), Some("ord.*"));
    bench.lose_answer(token);
    bench.subscribe(&["orders"]);
    bench.pass_to_timeout();
    let (token, pattern) = told(&mut bench);
    assert_eq!(pattern.as_deref(), Some(""), "it may have heard the pattern");
    bench.answer(token, 1, None);
    // Now it knows.
    bench.pass_to_timeout();
    assert_eq!(told(&mut bench).1, None);
}

#[test]
fn a_pattern_is_for_the_broker_and_an_empty_one_takes_it_back() {
    let mut bench = Bench::joined();
    bench.member.handle_subscription(bench.now, Vec::new(), Some("ord.*".into()));
    let (token, told) = bench.beat();
    assert_eq!((told.pattern.as_deref(), told.topics), (Some("ord.*"), Some(Vec::new())));
    bench.answer(token, 2, None);
    bench.subscribe(&["orders"]);
    let (_, told) = bench.beat();
    assert_eq!((told.pattern.as_deref(), told.topics), (Some(""), Some(vec!["orders".into()])));
}

#[test]
fn unknown_topics_are_asked_for_and_taken_when_they_have_a_name() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.answer(token, 1, Some(&[(ORDERS, 0), (ORDERS_AGAIN, 4)]));
    let action = bench.member.poll_action();
    assert!(matches!(&action, Some(Action::Identify { topics }) if *topics == [ORDERS_AGAIN]), "{action:?}");
    assert_eq!(bench.assigned(), [key("orders", 0)], "what is known is taken");
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS, 0)]), "and only that is told");
    bench.member.handle_names(bench.now, &names(&[(ORDERS, "orders"), (ORDERS_AGAIN, "more")]));
    assert_eq!(bench.assigned(), [key("more", 4)]);
}

/// A member that was given a topic made again, and waits to hear its name.
fn made_again() -> Bench {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[(ORDERS_AGAIN, 0)]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    bench.quiet();
    bench
}

#[test]
fn a_topic_that_was_made_again_is_another_one_and_nothing_of_the_old_one_is_committed() {
    let mut bench = made_again();
    // An answer that was on its way, or of a broker that does not know yet.
    bench.member.handle_names(bench.now, &names(&[(ORDERS, "orders"), (PAYMENTS, "payments")]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    bench.quiet();
    bench.member.handle_names(bench.now, &names(&[(ORDERS_AGAIN, "orders")]));
    assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)], "no revocation, which would commit");
    assert_eq!(bench.assigned(), [key("orders", 0)]);
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS_AGAIN, 0)]));
}

#[test]
fn a_heartbeat_in_a_hurry_does_not_end_the_wait_for_the_name_of_a_topic_that_was_made_again() {
    let mut bench = Bench::joined();
    bench.pass(INTERVAL);
    let (token, _) = bench.beat();
    // It says what the member does not want any more before the answer that takes a topic in the place of another comes.
    bench.subscribe(&["orders", "payments"]);
    bench.answer(token, 2, Some(&[(ORDERS_AGAIN, 0)]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    let (token, _) = bench.beat();
    bench.answer(token, 2, None);
    let waits = std::iter::from_fn(|| bench.member.poll_action());
    let (mut again, waits): (Vec<_>, Vec<_>) =
        waits.partition(|action| matches!(action, Action::Identify { .. }));
    assert!(again.pop().is_some() && waits.is_empty(), "it is being asked about: {waits:?}");
    bench.member.handle_names(bench.now, &names(&[(ORDERS_AGAIN, "orders"), (PAYMENTS, "payments")]));
    assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)]);
    assert_eq!(bench.assigned(), [key("orders", 0)]);
}

#[test]
fn a_topic_that_never_gets_a_name_does_not_hold_up_what_must_go() {
    let mut bench = made_again();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, None);
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })), "it is asked for again");
    assert_eq!(bench.revoked().1.len(), 2);
}

#[test]
fn topics_that_are_not_followed_any_more_are_revoked_and_not_lost() {
    let mut bench = Bench::joined();
    bench.subscribe(&["payments"]);
    bench.member.handle_names(bench.now, &names(&[(PAYMENTS, "payments")]));
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[]));
    assert_eq!(bench.revoked().1, [key("orders", 0), key("orders", 1)]);
}

#[test]
fn a_topic_that_may_not_be_seen_any_more_takes_nothing_away() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::TOPIC_AUTHORIZATION_FAILED);
    bench.failed();
    bench.quiet();
    assert!(bench.member.is_joined());
    bench.pass_to_timeout();
    assert!(bench.beat().1.is_full);
}
