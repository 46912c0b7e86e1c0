//! In virtual time.

use super::*;

const MAX_AGE: Duration = Duration::from_secs(300);
const MAX_IDLE: Duration = Duration::from_secs(60);
const BACKOFF: Duration = Duration::from_millis(100);

fn refresh(now: Instant) -> Refresh {
    let limits =
        Limits { max_age: MAX_AGE, max_idle: MAX_IDLE, rebootstrap_after: Some(Duration::from_secs(300)) };
    Refresh::new(now, limits, Backoff::new(BACKOFF, Duration::from_secs(1)))
}

/// One that has had its first answer.
fn settled(now: Instant) -> Refresh {
    let mut refresh = refresh(now);
    answer(&mut refresh, now, Found::Settled);
    refresh
}

/// Asks, and answers with the same for every topic; returns what was asked.
fn answer(refresh: &mut Refresh, now: Instant, found: Found) -> Ask {
    let ask = refresh.poll_ask(now).expect("a question is due");
    assert_eq!(refresh.poll_ask(now), None, "one question at a time");
    refresh.handle_answer(now, &ask, false, |_| found, &mut Rng::new(1));
    ask
}

fn topics(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn waits(refresh: &Refresh, now: Instant) -> Duration {
    refresh.poll_timeout().unwrap() - now
}

#[test]
fn asks_at_once_then_only_when_too_old() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    assert_eq!(refresh.poll_timeout(), Some(now + MAX_AGE));
    assert_eq!(refresh.poll_ask(now + MAX_AGE - Duration::from_millis(1)), None);
    assert!(refresh.poll_ask(now + MAX_AGE).is_some());
}

#[test]
fn a_burst_of_complaints_is_one_question_after_the_back_off() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    for _ in 0..100 {
        refresh.want();
    }
    assert_eq!(refresh.poll_ask(now), None);
    answer(&mut refresh, now + BACKOFF, Found::Settled);
    assert_eq!(refresh.poll_ask(now + 2 * BACKOFF), None);
}

#[test]
fn complaints_that_change_nothing_are_served_less_and_less_often_and_news_end_that() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        refresh.want();
        pauses.push(waits(&refresh, now));
        now += waits(&refresh, now);
        answer(&mut refresh, now, Found::Settled);
    }
    assert!(pauses[5] > 5 * pauses[0], "{pauses:?}");
    refresh.want();
    now += waits(&refresh, now);
    let ask = refresh.poll_ask(now).unwrap();
    refresh.handle_answer(now, &ask, true, |_| Found::Settled, &mut Rng::new(1));
    refresh.want();
    assert_eq!(waits(&refresh, now), BACKOFF);
}

#[test]
fn a_complaint_during_a_question_is_not_lost() {
    let now = crate::time::now();
    let mut refresh = refresh(now);
    let ask = refresh.poll_ask(now).unwrap();
    refresh.want();
    refresh.handle_answer(now, &ask, false, |_| Found::Settled, &mut Rng::new(1));
    assert!(refresh.poll_ask(now + 2 * BACKOFF).is_some());
}

#[test]
fn a_complaint_during_a_question_that_fails_is_answered_by_the_next_one() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want();
    let lost = refresh.poll_ask(now + BACKOFF).unwrap();
    let awaited = refresh.complain(now + BACKOFF, &"orders".into());
    assert!(lost.number < awaited, "it was put before the complaint");
    refresh.handle_failure(now + BACKOFF, &lost, &mut Rng::new(1));
    let again = answer(&mut refresh, now + 3 * BACKOFF, Found::Settled);
    assert_eq!((again.number, again.topics), (awaited, topics(&["orders"])));
    assert_eq!(waits(&refresh, now + 3 * BACKOFF), MAX_AGE, "nothing else is asked for it");
}

#[test]
fn a_complaint_between_an_answer_and_its_snapshot_is_answered_by_the_next_question() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want();
    // The core has this answer already; the snapshot that carries its number is not published yet.
    let early = answer(&mut refresh, now + BACKOFF, Found::Settled);
    let awaited = refresh.complain(now + BACKOFF, &"orders".into());
    assert!(early.number < awaited, "it was answered before the complaint");
    assert_eq!(answer(&mut refresh, now + 3 * BACKOFF, Found::Settled).number, awaited);
}

#[test]
fn a_question_about_some_topics_only_answers_no_complaint() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    let awaited = refresh.complain(now, &"orders".into());
    refresh.want_topic(now, &"new".into(), Create::IfAllowed);
    refresh.identify(&[[1; 16]]);
    let mut later = now;
    let mut asked = Vec::new();
    for _ in 0..3 {
        later += 2 * BACKOFF;
        asked.push(answer(&mut refresh, later, Found::Settled).number);
    }
    assert_eq!(asked, [0, 0, awaited]);
}

#[test]
fn a_topic_that_nobody_makes_keeps_the_others_from_no_more_than_each_second_question() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    refresh.follow(now, &topics(&["led"]));
    answer(&mut refresh, now, Found::Settled);
    for with_ids in [false, true] {
        refresh.identify(if with_ids { &[[1; 16]] } else { &[] });
        for _ in 0..5 {
            // Whoever writes to it wants it again after each answer; meanwhile a leader dies.
            let awaited = refresh.complain(now, &"led".into());
            let mut asked = Vec::new();
            for _ in 0..3 {
                refresh.want_topic(now, &"missing".into(), Create::IfAllowed);
                now += Duration::from_secs(2);
                asked.push(answer(&mut refresh, now, Found::Missing).number);
            }
            assert!(asked.iter().any(|number| *number >= awaited), "{asked:?} {with_ids}");
            assert!(asked.contains(&0), "the topic is asked about as well");
        }
    }
}

#[test]
fn a_new_topic_does_not_wait_but_a_broken_cluster_makes_it_wait() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want_topic(now, &"orders".into(), Create::Never);
    let ask = refresh.poll_ask(now).unwrap();
    assert_eq!((ask.topics.len(), ask.create), (1, false));
    refresh.handle_failure(now, &ask, &mut Rng::new(1));
    refresh.want_topic(now, &"more".into(), Create::Never);
    assert_eq!(refresh.poll_ask(now), None);
    assert!(refresh.poll_ask(now + 2 * BACKOFF).is_some());
}

#[test]
fn a_missing_topic_is_looked_for_as_long_as_somebody_waits_and_then_no_more() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    for _ in 0..10 {
        refresh.want_topic(now, &"orders".into(), Create::Never);
        assert!(waits(&refresh, now) <= Duration::from_millis(1200));
        now += waits(&refresh, now);
        answer(&mut refresh, now, Found::Missing);
    }
    assert_eq!(waits(&refresh, now), MAX_AGE);
}

#[test]
fn a_topic_that_was_written_to_is_asked_about_until_it_is_found_or_for_a_time() {
    for (is_there, asked) in [(true, 4), (false, 60)] {
        let begun = crate::time::now();
        let (mut now, mut refresh) = (begun, settled(begun));
        refresh.expect(now, &"new".into());
        assert_eq!(waits(&refresh, now), Duration::ZERO);
        let mut answers = 0;
        while waits(&refresh, now) < UNHURRIED {
            now += waits(&refresh, now);
            answers += 1;
            answer(&mut refresh, now, if is_there && answers > 3 { Found::Settled } else { Found::Missing });
        }
        assert!((4..=asked + 10).contains(&answers), "{answers}");
        assert_eq!(is_there, now - begun < MAX_IDLE, "{:?}", now - begun);
        assert_eq!(waits(&refresh, now), MAX_AGE);
    }
}

#[test]
fn a_topic_without_partitions_or_leaders_is_looked_at_again_unasked() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    refresh.touch(now, &topics(&["used"]));
    answer(&mut refresh, now, Found::Unsettled);
    assert_eq!(waits(&refresh, now), UNHURRIED);
    refresh.follow(now, &topics(&["followed"]));
    answer(&mut refresh, now, Found::Missing);
    for _ in 0..5 {
        let pause = waits(&refresh, now);
        assert!(pause <= Duration::from_millis(1200), "{pause:?}");
        now += pause;
        answer(&mut refresh, now, Found::Missing);
    }
    now += waits(&refresh, now);
    answer(&mut refresh, now, Found::Settled);
    assert_eq!(waits(&refresh, now), MAX_AGE);
}

#[test]
fn brokers_may_create_only_what_is_wanted_by_name_and_no_refresh_brings_a_topic_back() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.touch(now, &topics(&["old"]));
    answer(&mut refresh, now, Found::Settled);
    refresh.want_topic(now, &"new".into(), Create::IfAllowed);
    let ask = answer(&mut refresh, now, Found::Unsettled);
    assert_eq!((ask.topics.clone(), ask.create), (topics(&["new"]), true));
    refresh.want();
    let ask = answer(&mut refresh, now + 2 * BACKOFF, Found::Settled);
    assert_eq!((ask.topics, ask.create), (topics(&["new", "old"]), false));
}

#[test]
fn a_question_that_may_create_is_put_again_when_it_was_lost() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want_topic(now, &"new".into(), Create::IfAllowed);
    let ask = refresh.poll_ask(now).unwrap();
    refresh.handle_failure(now, &ask, &mut Rng::new(1));
    // One that loses every question like it keeps nobody from the others.
    assert!(!answer(&mut refresh, now + 2 * BACKOFF, Found::Missing).create);
    assert_eq!(refresh.poll_ask(now + 20 * BACKOFF), Some(ask));
}

#[test]
fn a_topic_is_forgotten_when_it_is_idle_or_not_subscribed_to_any_more() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.touch(now, &topics(&["idle", "used"]));
    refresh.follow(now, &topics(&["followed", "left"]));
    answer(&mut refresh, now, Found::Settled);
    let later = now + MAX_IDLE;
    refresh.touch(later, &topics(&["used"]));
    refresh.follow(later, &topics(&["followed"]));
    refresh.want();
    let ask = answer(&mut refresh, later, Found::Settled);
    assert_eq!(ask.topics, topics(&["followed", "used"]));
    assert!(refresh.knows("used") && !refresh.knows("idle") && !refresh.knows("left"));
}

#[test]
fn who_gets_no_answer_for_long_goes_back_to_the_bootstrap_addresses_alone() {
    let mut now = crate::time::now();
    let start = now;
    let mut refresh = settled(now);
    refresh.want();
    now += BACKOFF;
    loop {
        let ask = refresh.poll_ask(now).unwrap();
        if ask.rebootstrap {
            break;
        }
        refresh.handle_failure(now, &ask, &mut Rng::new(1));
        now = refresh.poll_timeout().unwrap();
    }
    let took = now - start;
    assert!((300..303).contains(&took.as_secs()), "{took:?}");
}

#[cfg(feature = "pattern")]
#[test]
fn topics_of_a_pattern_are_asked_about_with_all_at_once_and_when_metadata_is_old() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.follow(now, &topics(&["mine"]));
    answer(&mut refresh, now, Found::Settled);
    let pattern = Pattern::new("orders.*", false).unwrap();
    refresh.follow_matching(Some(Arc::clone(&pattern)));
    let ask = answer(&mut refresh, now, Found::Settled);
    assert_eq!((ask.matching.as_ref(), ask.topics.len()), (Some(&pattern), 1));
    assert!(refresh.knows("orders-eu") && refresh.knows("mine") && !refresh.knows("users"));
    assert_eq!(waits(&refresh, now), MAX_AGE);
    refresh.want_topic(now, &"new".into(), Create::IfAllowed);
    let ask = answer(&mut refresh, now, Found::Settled);
    assert!(ask.create && ask.matching.is_none(), "nothing else is created by it");
    refresh.follow_matching(Some(Arc::clone(&pattern)));
    refresh.want_topic(now, &"newer".into(), Create::IfAllowed);
    let asked = [answer(&mut refresh, now, Found::Missing), answer(&mut refresh, now, Found::Settled)];
    assert_eq!(asked.map(|ask| ask.matching.is_some()), [true, false], "neither waits");
    assert!(answer(&mut refresh, now + MAX_AGE * 2, Found::Settled).matching.is_some());
    refresh.follow_matching(None);
    assert!(!refresh.knows("orders-eu"));
}

#[test]
fn ids_are_asked_about_by_themselves_and_in_turn_with_names_until_they_have_one() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    refresh.follow(now, &topics(&["mine"]));
    answer(&mut refresh, now, Found::Settled);
    refresh.identify(&[[1; 16], [2; 16]]);
    let ask = answer(&mut refresh, now, Found::Settled);
    assert_eq!((ask.ids.len(), ask.topics.len()), (2, 0));
    refresh.handle_named(now, &"orders".into());
    refresh.handle_names(&[([1; 16], "orders".into())].into());
    assert!(refresh.knows("orders"));
    let mut pauses = Vec::new();
    for _ in 0..4 {
        for ids in [0, 1] {
            pauses.push(waits(&refresh, now));
            now += waits(&refresh, now);
            assert_eq!(answer(&mut refresh, now, Found::Settled).ids.len(), ids);
        }
    }
    assert!(pauses[0] > Duration::ZERO && pauses[7] > 3 * pauses[1], "{pauses:?}");
    refresh.identify(&[]);
    assert_eq!(waits(&refresh, now), MAX_AGE - pauses[7], "all were told about before the last pause");
}

#[test]
fn new_topics_are_asked_for_at_once_and_by_themselves_one_after_the_other() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    // One that is there, and one that is made by the question.
    for (round, found) in [Found::Settled, Found::Unsettled].into_iter().cycle().take(50).enumerate() {
        let new = topics(&[&format!("new-{round}")]);
        if round == 20 {
            refresh.want();
        }
        refresh.want_topic(now, &new[0], Create::IfAllowed);
        assert_eq!(waits(&refresh, now), Duration::ZERO);
        let ask = answer(&mut refresh, now, found);
        assert_eq!((ask.topics, ask.create), (new, true), "{round}");
    }
    assert_eq!(waits(&refresh, now), BACKOFF, "the complaint has its pause");
    assert_eq!(answer(&mut refresh, now + BACKOFF, Found::Settled).topics.len(), 50);
    assert_eq!(waits(&refresh, now + BACKOFF), MAX_AGE);
}

#[test]
fn a_new_topic_waits_for_a_question_about_all_that_is_due_and_for_no_pause_after_it() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want_topic(now, &"first".into(), Create::IfAllowed);
    assert!(answer(&mut refresh, now, Found::Settled).create);
    let awaited = refresh.complain(now, &"first".into());
    now += BACKOFF;
    refresh.want_topic(now, &"second".into(), Create::IfAllowed);
    assert_eq!(answer(&mut refresh, now, Found::Missing).number, awaited);
    assert_eq!(waits(&refresh, now), Duration::ZERO);
    let ask = answer(&mut refresh, now, Found::Settled);
    assert_eq!((ask.topics, ask.create), (topics(&["second"]), true));
}

#[test]
fn topics_that_are_new_again_and_again_keep_nobody_from_a_question_about_all() {
    type Wants = fn(&mut Refresh, Instant);
    let never: Wants = |refresh, now| {
        refresh.want_topic(now, &"never".into(), Create::Never);
    };
    let complaint: Wants = |refresh, _| refresh.want();
    let nothing: Wants = |_, _| {};
    for (wants, within) in [(never, Duration::ZERO), (complaint, 2 * BACKOFF), (nothing, MAX_AGE + BACKOFF)] {
        let begun = crate::time::now();
        let (mut now, mut refresh) = (begun, settled(begun));
        refresh.want_topic(now, &"first".into(), Create::IfAllowed);
        answer(&mut refresh, now, Found::Settled);
        wants(&mut refresh, now);
        for round in 0.. {
            refresh.want_topic(now, &format!("new-{round}").into(), Create::IfAllowed);
            if answer(&mut refresh, now, Found::Settled).number > 0 {
                break;
            }
            now += BACKOFF;
        }
        assert!(now - begun <= within, "{:?}", now - begun);
    }
}

#[test]
fn only_a_topic_that_is_not_there_is_to_be_made() {
    for (found, create) in [
        (Found::Missing, Create::IfAllowed),
        (Found::Unsettled, Create::Never),
        (Found::Settled, Create::Never),
    ] {
        assert_eq!(Create::IfAllowed.of(found), create);
        assert_eq!(Create::Never.of(found), Create::Never);
    }
}

#[test]
fn a_topic_that_is_found_is_not_asked_for_any_more() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    refresh.want_topic(now, &"new".into(), Create::IfAllowed);
    let lost = refresh.poll_ask(now).unwrap();
    refresh.handle_failure(now, &lost, &mut Rng::new(1));
    let later = now + 2 * BACKOFF;
    assert!(!answer(&mut refresh, later, Found::Settled).create);
    assert_eq!(waits(&refresh, later), MAX_AGE);
}

#[test]
fn ids_that_are_new_do_not_wait_whatever_is_asked_before_them() {
    let now = crate::time::now();
    let mut refresh = settled(now);
    for id in 1..=9 {
        refresh.want_topic(now, &format!("new-{id}").into(), Create::IfAllowed);
        refresh.identify(&[[id; 16]]);
        let asked = [answer(&mut refresh, now, Found::Settled), answer(&mut refresh, now, Found::Settled)];
        assert_eq!(asked.map(|ask| (ask.create, ask.ids.len(), ask.number)), [(true, 0, 0), (false, 1, 0)]);
    }
    refresh.identify(&[]);
    assert_eq!(waits(&refresh, now), MAX_AGE, "what is not looked for any more is not new");
}

#[test]
fn a_topic_that_is_waited_for_again_and_again_is_news_once_for_each_question() {
    let mut now = crate::time::now();
    let mut refresh = settled(now);
    let topic = Arc::from("orders");
    let wants = |refresh: &mut Refresh, now, create| {
        (0..3).map(|_| refresh.want_topic(now, &topic, create)).collect::<Vec<_>>()
    };
    assert!(refresh.want_topic(now, &topic, Create::Never));
    answer(&mut refresh, now, Found::Missing);
    for _ in 0..5 {
        assert_eq!(wants(&mut refresh, now, Create::Never), [true, false, false]);
        now += waits(&refresh, now);
        answer(&mut refresh, now, Found::Unsettled);
    }
    assert_eq!(wants(&mut refresh, now, Create::IfAllowed), [true, false, false], "now it may be made");
}
