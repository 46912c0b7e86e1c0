//! The core alone, without a member of a group at work: errors, timers, and what is refused.

use std::time::Duration;

use bytes::BytesMut;

use super::*;
use crate::{
    batch::{BatchBuilder, Compressor, Stamp, split},
    config::{Compression, KafkaConfig},
    consumer::{offsets::Offset, partitions::Position},
    time,
};

/// Of a consumer without a group.
fn core(now: Instant) -> Core {
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_auto_offset_reset("none");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1))
}

/// A record of the partition was fetched.
pub(super) fn buffer_one(core: &mut Core, key: &TopicPartition) {
    let mut builder = BatchBuilder::new(BytesMut::new());
    builder.append(1, None, Some(b"value"), &[]);
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let bytes = builder.finish(Stamp::NONE, &compressor).unwrap().bytes;
    let batch = split(bytes).next().unwrap().unwrap();
    core.partitions.get_mut(key).unwrap().queue.push(batch, false);
    core.partitions.add_buffered(key, 0);
}

#[test]
fn without_a_pause_between_retries_the_driver_comes_to_an_end() {
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set("retry.backoff.ms", 0);
    let config = config.set("retry.backoff.max.ms", 0).set_auto_offset_reset("earliest");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let now = time::now();
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
    assert!(std::iter::from_fn(|| core.poll_action(now)).take(100).count() < 100);
}

#[test]
fn an_error_is_not_told_when_what_it_is_of_is_over() {
    let now = time::now();
    let refused =
        |partition| Error::from_code("Fetch", 29).with_topic(Arc::from("orders")).with_partition(partition);
    let told = |core: &mut Core| std::iter::from_fn(|| core.take_error()).collect::<Vec<_>>();
    let mut core = core(now);
    let (zero, one) = (TopicPartition::new("orders", 0), TopicPartition::new("orders", 1));
    core.assign(now, vec![zero.clone(), one.clone()]).unwrap();
    for _ in 0..20 {
        core.fail(refused(0));
        core.fail(refused(1));
    }
    assert_eq!(told(&mut core).len(), 2, "one of each partition says it");
    core.fail(refused(0));
    core.fail(refused(1));
    core.fail(Error::from_code("Metadata", 29).with_topic(Arc::from("orders")));
    core.seek(&zero, Phase::Fetching(Position::at(9))).unwrap();
    let told_now = told(&mut core);
    assert_eq!(told_now.iter().map(Error::partition).collect::<Vec<_>>(), [Some(1), None]);
    core.fail(refused(1));
    core.fail(Error::from_code("Metadata", 29).with_topic(Arc::from("orders")));
    core.assign(now, vec![TopicPartition::new("users", 0)]).unwrap();
    assert!(told(&mut core).is_empty());
    core.fail(Error::from_code("Fetch", 29).with_topic(Arc::from("users")).with_partition(0));
    assert_eq!(core.expected_progress(now).partitions.len(), 1);
    buffer_one(&mut core, &TopicPartition::new("users", 0));
    assert!(told(&mut core).is_empty(), "it is read again");
    assert!(core.expected_progress(now).partitions.is_empty(), "that it stalls would not be told either");
    core.fail(Error::new(ErrorKind::Timeout, "of nothing in particular"));
    assert_eq!(told(&mut core).len(), 1);
}

#[test]
fn a_topic_that_was_found_is_looked_for_as_soon_as_ever_when_it_is_missed_again() {
    let now = time::now();
    let (mut core, topics) = (core(now), [Arc::from("orders")]);
    core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
    let mut pause = |result| {
        core.handle_topics(now, &topics, result);
        core.interest.due.map(|due| due - now)
    };
    let lost = || Err(Error::new(ErrorKind::Disconnected, "gone"));
    let first = pause(lost());
    let later = (0..10).map(|_| pause(lost())).last().unwrap();
    assert!(later > first.map(|first| first * 4), "{first:?}, then {later:?}");
    pause(Ok(()));
    // Both have their jitter of 20 %.
    assert!(pause(lost()) < first.map(|first| first * 2));
}

#[test]
fn with_nothing_to_commit_a_commit_is_done_in_whatever_state_of_the_group() {
    let now = time::now();
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    core.subscribe(now, vec!["orders".into()]).unwrap();
    assert!(core.commit(None, now).unwrap().is_none(), "before the first join");
    core.handle_poll(now).unwrap();
    core.handle_poll_end(now);
    assert!(core.identity().unwrap().is_none(), "it is joining");
    assert!(core.commit(None, now).unwrap().is_none());
    core.lost = Some(false);
    core.commit(None, now).unwrap_err();
    core.commit(None, now).unwrap_err();
}

#[test]
fn a_poll_that_has_begun_with_partitions_by_hand_joins_when_topics_are_subscribed_to() {
    let now = time::now();
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
    core.handle_poll(now).unwrap();
    core.handle_wait(now + Duration::from_secs(60));
    core.subscribe(now, Vec::new()).unwrap();
    core.subscribe(now, vec!["users".into()]).unwrap();
    let mut actions = std::iter::from_fn(|| core.poll_action(now));
    assert!(actions.any(|action| matches!(action, Action::Group { request: Request::Join { .. }, .. })));
}

#[test]
fn a_consumer_whose_last_commit_takes_long_does_not_wake_for_what_it_will_not_read_any_more() {
    let now = time::now();
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    let (key, deadline) = (TopicPartition::new("orders", 0), now + Duration::from_secs(30));
    core.assign(now, vec![key.clone()]).unwrap();
    let offset = Offset { offset: 5, leader_epoch: -1, ..Offset::default() };
    let _waiter = core.commit(Some([(key, offset)].into()), deadline).unwrap().unwrap();
    let lost = Err(Error::new(ErrorKind::Disconnected, "gone"));
    core.handle_topics(now, &["orders".into()], lost);
    core.begin_close(now, deadline);
    let mut later = now;
    for _ in 0..100 {
        core.handle_timeout(later);
        while core.poll_action(later).is_some() {}
        match core.poll_timeout(later) {
            Some(at) if at > later => later = at,
            asleep => return assert_eq!(asleep, None, "it wakes at once and does nothing"),
        }
    }
    assert!(core.is_closed(), "the answer never came");
}

#[test]
fn without_a_group_partitions_can_be_chosen_and_topics_cannot() {
    let now = time::now();
    let mut core = core(now);
    core.subscribe(now, Vec::new()).unwrap();
    let error = core.subscribe(now, vec!["orders".into()]).unwrap_err();
    assert!(error.to_string().contains("group.id"), "{error}");

    core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
    core.handle_poll(now).unwrap();
    let error = core.partitions.failure().unwrap();
    assert_eq!((error.topic(), error.partition()), (Some("orders"), Some(0)), "{error}");
    let error = core.commit(None, now).unwrap_err();
    assert!(error.to_string().contains("group.id"), "{error}");

    core.subscribe(now, Vec::new()).unwrap();
    assert_eq!(
        core.handle_poll(now).unwrap_err().kind(),
        ErrorKind::InvalidArgument,
        "nothing is left to poll"
    );
}
