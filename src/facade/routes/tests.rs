//! Which handlers and which policy each topic gets, retry topics among them.

use super::*;
use crate::facade::{HandlerResult, handler::HandlerArgument, message::Batch};

fn each() -> ErasedHandler {
    ConsumerRecord::erase(async |_: ConsumerRecord| -> HandlerResult { Ok(()) })
}

fn batch() -> ErasedHandler {
    <Batch<u32>>::erase(async |_: Batch<u32>| -> HandlerResult { Ok(()) })
}

fn own() -> Consumed {
    Consumed::named(["orders", "orders-eu", "audit"]).unwrap()
}

fn count(routes: &Routes, topic: &str) -> usize {
    match &routes.of(&own(), &topic.into()).handlers {
        Handlers::None => 0,
        Handlers::Each(each) => each.len(),
        Handlers::Batch(..) => 100,
    }
}

#[test]
fn a_topic_has_every_handler_that_names_it_and_else_those_for_the_others() {
    let mut routes = Routes::default();
    routes.add(&own(), "orders".into(), each()).unwrap();
    routes.add(&own(), Topics::glob("orders*"), each()).unwrap();
    assert_eq!((count(&routes, "orders"), count(&routes, "orders-eu"), count(&routes, "audit")), (2, 1, 0));
    routes.add(&own(), Topics::others(), each()).unwrap();
    assert_eq!((count(&routes, "orders"), count(&routes, "audit")), (2, 1));
    assert_eq!(count(&routes, "found-by-pattern"), 1);
}

#[test]
fn handlers_that_could_never_run_or_not_together_are_refused() {
    let mut routes = Routes::default();
    for topics in [Topics::from("payments"), Topics::glob("p*")] {
        let error = routes.add(&own(), topics, each()).unwrap_err();
        assert!(error.to_string().contains("orders, orders-eu, audit"), "{error}");
    }
    routes.add(&own(), "orders".into(), batch()).unwrap();
    for handler in [each(), batch()] {
        let error = routes.add(&own(), Topics::glob("orders*"), handler).unwrap_err();
        assert_eq!(error.topic(), Some("orders"), "{error}");
    }
    assert_eq!((count(&routes, "orders"), count(&routes, "orders-eu")), (100, 0));
}

#[test]
fn the_last_policy_that_names_a_topic_is_its_own() {
    let mut routes = Routes::default();
    let says = |routes: &Routes, topic: &str| format!("{:?}", routes.of(&own(), &topic.into()).policy);
    routes.set_policy(Topics::others(), ErrorPolicy::Skip);
    routes.set_policy("orders".into(), ErrorPolicy::dead_letter("dead"));
    assert!(says(&routes, "orders").contains("dead") && says(&routes, "audit").contains("skip"));
    routes.set_policy(Topics::glob("*"), ErrorPolicy::Stop);
    assert!(says(&routes, "orders").contains("stop") && says(&routes, "audit").contains("stop"));
}

#[test]
fn a_retry_topic_has_the_handlers_of_the_topic_it_waits_for() {
    let mut routes = Routes::default();
    routes.add(&own(), "orders".into(), each()).unwrap();
    let pauses = [Duration::from_secs(1), Duration::from_secs(60)];
    routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics(pauses));
    let Consumed::Named(names) = own() else { unreachable!("they are named") };
    assert_eq!(routes.retry_topics(&names), ["orders-retry-1s", "orders-retry-1m"].map(Arc::from));
    let route = routes.of(&own(), &"orders-retry-1m".into());
    assert_eq!((route.level, count(&routes, "orders-retry-1m")), (2, 1));
    assert_eq!(routes.of(&own(), &"orders".into()).level, 0);
}

#[test]
fn a_retry_topic_that_the_consumer_names_is_one_unless_a_handler_names_it_too() {
    let own = Consumed::named(["orders", "orders-retry-1m", "orders-retry-5m"]).unwrap();
    let mut routes = Routes::default();
    routes.add(&own, "orders".into(), each()).unwrap();
    routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
    let of = |routes: &Routes, topic: &str| {
        let route = routes.of(&own, &topic.into());
        (route.level, route.is_unhandled())
    };
    assert_eq!(of(&routes, "orders-retry-1m"), (1, false));
    assert_eq!(of(&routes, "orders-retry-5m"), (1, false), "of a policy there was");
    routes.add(&own, Topics::others(), each()).unwrap();
    assert_eq!(of(&routes, "orders-retry-1m"), (1, false), "what failed waits there");
    assert_eq!(of(&routes, "orders-retry-5m"), (0, false), "a topic of its own");
    routes.add(&own, "orders-retry-1m".into(), each()).unwrap();
    assert_eq!(of(&routes, "orders-retry-1m"), (0, false));
}

#[cfg(feature = "pattern")]
#[test]
fn the_retry_topics_of_a_pattern_with_an_anchor_at_its_end_are_read() {
    let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]);
    let text = "^orders-[a-z]{2}$|^audit$";
    policy.check(&Consumed::matching(text, false).unwrap()).unwrap();
    let mut routes = Routes::default();
    routes.set_policy(Topics::others(), policy.clone());
    let whole = Consumed::matching(&routes.with_retry_topics(text, &[]), false).unwrap();
    for (topic, expected) in [
        ("orders-eu", true),
        ("orders-eu-retry-1m", true),
        ("audit-retry-1m", true),
        ("orders-eur-retry-1m", false),
    ] {
        assert_eq!(whole.takes(topic), expected, "{topic}");
    }
    let refused = policy.check(&Consumed::matching("(orders$|audit)", false).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("leave out its `$`"), "{refused}");
    ErrorPolicy::Skip.check(&Consumed::matching("(orders$|audit)", false).unwrap()).unwrap();
}

#[cfg(feature = "pattern")]
#[test]
fn topics_of_a_pattern_have_their_handlers_and_their_retry_topics() {
    let own = Consumed::matching("orders-.*", false).unwrap();
    let mut routes = Routes::default();
    let error = routes.add(&own, "audit".into(), each()).unwrap_err();
    assert!(error.to_string().contains("orders-.*"), "{error}");
    routes.add(&own, "orders-eu".into(), each()).unwrap();
    routes.add(&own, Topics::others(), batch()).unwrap();
    let pauses = [Duration::from_secs(1), Duration::from_secs(60)];
    routes.set_policy("orders-eu".into(), ErrorPolicy::Stop.retry_topics(pauses));
    routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([pauses[0]]));
    let of = |topic: &str| routes.of(&own, &topic.into());
    assert_eq!((of("orders-eu").level, of("orders-us").level), (0, 0));
    let retry = of("orders-eu-retry-1m");
    assert_eq!((retry.level, matches!(retry.handlers, Handlers::Each(_))), (2, true));
    let retry = of("orders-us-retry-1s");
    assert_eq!((retry.level, matches!(retry.handlers, Handlers::Batch(..))), (1, true));
    let former = of("orders-us-retry-1m");
    assert_eq!((former.level, &*former.origin), (1, "orders-us"), "of a policy there was: the last try");
    let is_former = |topic: &str| routes.is_former_retry_topic(&own, &topic.into());
    assert!(is_former("orders-us-retry-1m") && !is_former("orders-us-retry-1s") && !is_former("orders-us"));
    let whole = Consumed::matching(&routes.with_retry_topics("orders-.*|x", &[]), false).unwrap();
    for (topic, expected) in [("x", true), ("x-retry-1m", true), ("x-retry-2m", false), ("y-retry-1m", false)]
    {
        assert_eq!(whole.takes(topic), expected, "{topic}");
    }
    let dead = ErrorPolicy::dead_letter("orders-dead").check(&own).unwrap_err();
    assert!(dead.to_string().contains("feed itself"), "{dead}");
}

#[cfg(feature = "pattern")]
#[test]
fn what_other_groups_put_into_a_retry_topic_is_looked_for_where_a_pattern_matches_it() {
    let of = |own: &Consumed, handler: Topics, topic: &str| {
        let mut routes = Routes::default();
        routes.add(own, handler, each()).unwrap();
        let route = routes.of(own, &topic.into());
        (route.level, route.may_hold_others)
    };
    let pattern = Consumed::matching("orders.*", false).unwrap();
    let glob = Topics::glob("orders*");
    assert_eq!(of(&pattern, glob.clone(), "orders-retry-1m"), (0, true));
    assert_eq!(of(&pattern, glob.clone(), "orders-retry-soon"), (0, false));
    assert_eq!(of(&pattern, glob.clone(), "orders"), (0, false));
    assert_eq!(of(&pattern, "orders-retry-1m".into(), "orders-retry-1m"), (0, false));
    assert_eq!(of(&pattern, "orders".into(), "orders-retry-1m"), (1, true));
    let retries = Consumed::matching("orders-retry-.*", false).unwrap();
    assert_eq!(of(&retries, glob.clone(), "orders-retry-1m"), (0, false), "they alone are consumed");
    let named = Consumed::named(["orders", "orders-retry-1m"]).unwrap();
    assert_eq!(of(&named, glob, "orders-retry-1m"), (0, false), "the consumer names it");
}

#[cfg(feature = "pattern")]
#[test]
fn a_topic_that_is_only_named_like_a_retry_topic_has_its_own_handler() {
    let own = Consumed::matching("orders.*|audit-retry-1m", false).unwrap();
    let mut routes = Routes::default();
    routes.add(&own, Topics::glob("orders*"), batch()).unwrap();
    routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
    let level = |routes: &Routes, topic: &str| routes.of(&own, &topic.into()).level;
    assert_eq!(level(&routes, "orders-retry-1m"), 1, "a pattern of handlers does not name it");
    assert_eq!(level(&routes, "audit-retry-1m"), 0, "nobody here reads audit");
    let mut routes = Routes::default();
    routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
    routes.add(&own, "orders-retry-1m".into(), each()).unwrap();
    let route = routes.of(&own, &"orders-retry-1m".into());
    assert_eq!((route.level, route.is_unhandled(), &*route.origin), (0, false, "orders-retry-1m"));
    assert_eq!(level(&routes, "orders-eu-retry-1m"), 1);
}

#[cfg(feature = "pattern")]
#[test]
fn handlers_that_may_meet_in_a_topic_not_yet_known_are_refused() {
    let own = Consumed::matching(".*", false).unwrap();
    let mut routes = Routes::default();
    routes.add(&own, Topics::glob("orders-*"), batch()).unwrap();
    for topics in [Topics::glob("*-eu"), "orders-us".into()] {
        assert!(routes.add(&own, topics.clone(), each()).is_err(), "{topics}");
        assert!(routes.add(&own, topics, batch()).is_err());
    }
    routes.add(&own, "audit".into(), each()).unwrap();
    routes.add(&own, "audit".into(), each()).unwrap();
    assert!(routes.add(&own, "audit".into(), batch()).is_err());
    routes.add(&own, Topics::others(), batch()).unwrap();
}

#[test]
fn what_waits_in_the_retry_topic_of_a_policy_there_was_has_its_last_try() {
    let mut routes = Routes::default();
    routes.add(&own(), "orders".into(), each()).unwrap();
    routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(300)]));
    let route = routes.of(&own(), &"orders-retry-1m".into());
    assert_eq!((&*route.origin, route.level, route.is_unhandled()), ("orders", 1, false));
    assert_eq!(route.left_to_wait(3_600_000, 0).as_secs(), 60, "no longer than records waited there");
    assert_eq!(route.left_to_wait(1500, 500).as_secs(), 1);
    assert!(route.left_to_wait(500, 1500).is_zero());
    // A policy without any.
    routes.set_policy("orders".into(), ErrorPolicy::Skip);
    assert_eq!(routes.of(&own(), &"orders-retry-1m".into()).level, 1);
    assert_eq!(routes.of(&own(), &"orders".into()).level, 0);
}

#[cfg(feature = "pattern")]
#[test]
fn a_topic_named_like_a_retry_topic_is_its_own_where_no_policy_has_any_and_a_handler_takes_it() {
    let own = Consumed::matching("orders.*", false).unwrap();
    let mut routes = Routes::default();
    routes.add(&own, "orders".into(), each()).unwrap();
    let of = |routes: &Routes, topic: &str| {
        let route = routes.of(&own, &topic.into());
        (route.origin.to_string(), route.level, route.is_unhandled())
    };
    let waits = ("orders".to_owned(), 1, false);
    assert_eq!(of(&routes, "orders-retry-1m"), waits, "nobody else would handle it");
    assert_eq!(of(&routes, "orders-retry-soon"), ("orders-retry-soon".to_owned(), 0, true));
    routes.add(&own, Topics::others(), each()).unwrap();
    assert_eq!(of(&routes, "orders-retry-1m"), ("orders-retry-1m".to_owned(), 0, false));
    routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(300)]));
    assert_eq!(of(&routes, "orders-retry-1m"), waits);
}
