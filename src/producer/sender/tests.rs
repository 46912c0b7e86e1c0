//! The sender and its queues against a model of a cluster's logs ([`world`]): what happens by itself and in order here, at
//! random in [`random`].

mod random;
mod world;

use std::collections::BTreeMap;

use futures_util::FutureExt as _;

use self::world::World;
use super::*;
use crate::{
    batch,
    cluster::metadata,
    config::Compression,
    error::ErrorKind,
    producer::{
        accumulator::{Appended, Parts},
        memory::Memory,
        receipt::Delivery,
    },
};

const BUFFER: usize = 1 << 20;
const BROKERS: i32 = 3;

fn limits(idempotent: bool) -> Limits {
    Limits {
        batch_size: 400,
        linger: Duration::from_millis(5),
        delivery_timeout: Duration::from_secs(120),
        max_in_flight: 5,
        retries: u32::MAX,
        idempotent,
        transactional: false,
    }
}

fn refused(code: i16) -> Option<Answer> {
    Some(Answer { code, base_offset: -1, log_append_time: -1, ..Answer::default() })
}
/// A world whose producer has an identity that its brokers know.
fn introduced(partitions: usize, limits: Limits) -> World {
    let mut world = World::new(1, partitions, limits);
    for partition in 0..partitions {
        let _delivery = world.send(partition, 0);
    }
    world.drain();
    world
}

fn deliver(delivery: Delivery) -> Result<i64, Error> {
    delivery.now_or_never().expect("an answer").map(|metadata| metadata.offset)
}

/// Batches of one record each on the wire, as many as may be.
fn fill(world: &mut World, partition: usize, ids: std::ops::Range<u32>) -> Vec<Delivery> {
    ids.map(|id| {
        let delivery = world.send(partition, id);
        world.partitions[partition].lock().close_open();
        world.turn(true);
        delivery
    })
    .collect()
}

#[test]
fn a_refused_record_costs_no_identity_and_does_not_stop_a_neighbour() {
    let mut world = introduced(2, limits(true));
    let asked = world.asked;
    for round in 1..200 {
        let bad = fill(&mut world, 0, round..round + 1).remove(0);
        let good = fill(&mut world, 1, round..round + 1).remove(0);
        world.answer(1, |_, _| refused(87));
        world.answer(2, |_, _| None);
        assert!(!deliver(bad).unwrap_err().possibly_written());
        assert_eq!(deliver(good).unwrap(), i64::from(round));
    }
    assert_eq!(world.asked, asked);
    for log in &world.logs {
        let producers: Vec<_> = log.producers.values().map(|(epoch, _)| *epoch).collect();
        assert_eq!(producers, [0], "one identity, one epoch");
    }
}

#[test]
fn a_partition_is_wanted_in_a_transaction_only_while_what_it_has_cannot_leave() {
    let mut world = World::new(1, 1, Limits { transactional: true, ..limits(true) });
    let identity = ProducerIdentity { id: 7, epoch: 0, cluster: 0 };
    let _delivery = world.send(0, 1);
    world.sender.handle_scheduled(&mut world.scheduled);
    let (nothing, all) = (Partitions::new(), Partitions::from_iter([("orders".into(), 0)]));
    let mut wanted_beside = |added| {
        let permit = Permit { identity: Ok(Some(identity)), partitions: Some(added) };
        world.sender.handle_tick(world.now, &world.snapshot, true, Some(permit));
        let action = world.sender.poll_action();
        if let Some(Action::Connect(leader)) = action {
            world.sender.handle_connected(world.now, leader, true);
        }
        (world.sender.wanted().len(), matches!(action, Some(Action::Send(_))))
    };
    assert_eq!(wanted_beside(&nothing), (0, false), "its leader is looked for");
    assert_eq!(wanted_beside(&nothing), (1, false));
    assert_eq!(wanted_beside(&nothing), (1, false), "and not once more with each turn");
    assert_eq!(wanted_beside(&all), (0, true));
}

#[test]
fn what_follows_a_refused_batch_is_renumbered_under_the_same_epoch() {
    let mut world = introduced(1, limits(true));
    let deliveries = fill(&mut world, 0, 1..6);
    let mut first = true;
    for _ in 0..5 {
        world.answer(1, |_, _| if std::mem::take(&mut first) { refused(29) } else { None });
    }
    world.drain();
    let outcomes: Vec<_> = deliveries.into_iter().map(|delivery| deliver(delivery).ok()).collect();
    assert_eq!(outcomes, [None, Some(1), Some(2), Some(3), Some(4)]);
    let epochs: Vec<_> = world.logs[0].producers.values().map(|(epoch, _)| *epoch).collect();
    assert_eq!((world.asked, epochs), (1, vec![0]));
}

#[test]
fn a_split_with_five_in_flight_costs_no_identity_and_nothing_of_what_follows() {
    let mut world = introduced(1, limits(true));
    let mut deliveries = Vec::new();
    for id in 1..30 {
        deliveries.push(world.send(0, id));
        world.turn(true);
    }
    let mut first = true;
    for _ in 0..5 {
        world.answer(
            1,
            |_, sent| {
                if sent.batch.count > 1 && std::mem::take(&mut first) { refused(10) } else { None }
            },
        );
    }
    world.drain();
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
    assert_eq!((world.asked, world.sender.counts().splits), (1, u64::from(!first)));
}

#[test]
fn after_lost_answers_and_a_clean_restart_nothing_is_written_twice() {
    let mut world = introduced(1, limits(true));
    let deliveries = fill(&mut world, 0, 1..6);
    let requests = std::mem::take(&mut world.wire);
    for request in requests.into_values().flatten() {
        for sent in &request.batches {
            assert_eq!(world.apply(1, sent).code, 0);
        }
        let error = Error::new(ErrorKind::Disconnected, "lost");
        world.sender.handle_request_error(world.now, request, &error);
    }
    world.logs[0].restart_cleanly();
    world.drain();
    assert_eq!(world.logs[0].ids, [0, 1, 2, 3, 4, 5]);
    let outcomes: Vec<_> = deliveries.into_iter().map(deliver).collect();
    for outcome in &outcomes[..4] {
        assert!(outcome.as_ref().unwrap_err().possibly_written(), "{outcome:?}");
    }
    assert_eq!(outcomes[4].as_ref().unwrap(), &5, "the broker remembers the last one");
    // The producer goes on, under another epoch of the same id.
    let next = fill(&mut world, 0, 6..7).remove(0);
    world.drain();
    assert_eq!((deliver(next).unwrap(), world.asked), (6, 1));
}

#[test]
fn a_broker_that_never_knows_the_producer_is_not_stormed() {
    let mut world = introduced(1, limits(true));
    let (started, asked) = (world.now, world.asked);
    let delivery = fill(&mut world, 0, 1..2).remove(0);
    let mut requests = 0;
    for code in [59, 47] {
        while world.now < started + Duration::from_secs(if code == 59 { 20 } else { 40 }) {
            world.turn(true);
            world.identify();
            world.answer(1, |_, _| {
                requests += 1;
                refused(code)
            });
            world.now += Duration::from_millis(1);
        }
    }
    assert!((20..120).contains(&requests), "{requests} produce requests in 40 s");
    assert!(world.asked - asked < 60, "{} InitProducerId requests", world.asked - asked);
    world.drain();
    assert_eq!(deliver(delivery).unwrap(), 1);
}

#[test]
fn each_batch_has_a_back_off_of_its_own() {
    let mut world = introduced(30, limits(true));
    let deliveries: Vec<_> = (0..30).map(|partition| world.send(partition, 1)).collect();
    world.turn(true);
    for broker in 1..=BROKERS {
        world.answer(broker, |_, _| refused(19));
    }
    // A first back-off is 100 ms within 20 %.
    world.now += Duration::from_millis(121);
    world.turn(true);
    for broker in 1..=BROKERS {
        world.answer(broker, |_, _| None);
    }
    for delivery in deliveries {
        assert_eq!(deliver(delivery).unwrap(), 1);
    }
}

#[test]
fn waiting_for_the_transaction_before_uses_up_no_retries_but_the_time_to_deliver() {
    let mut world = introduced(1, Limits { retries: 2, ..limits(true) });
    let delivery = fill(&mut world, 0, 1..2).remove(0);
    for code in [vec![51; 50], vec![19], vec![51; 50], vec![19]].concat() {
        assert!(!world.wire[&1].is_empty(), "it was not sent again");
        world.answer(1, |_, _| refused(code));
        world.now += if code == 51 { Duration::from_millis(20) } else { Duration::from_secs(1) };
        world.turn(true);
    }
    world.answer(1, |_, _| None);
    assert_eq!(deliver(delivery).unwrap(), 1);
    let late = fill(&mut world, 0, 2..3).remove(0);
    let begun = world.now;
    while world.wire.get(&1).is_some_and(|requests| !requests.is_empty()) {
        assert!(world.now - begun < Duration::from_secs(121), "it never ends");
        world.answer(1, |_, _| refused(51));
        world.now += Duration::from_millis(20);
        world.turn(true);
    }
    assert_eq!(world.now - begun, Duration::from_secs(120));
    let error = deliver(late).unwrap_err();
    assert!(error.kind() == ErrorKind::Timeout && !error.possibly_written(), "{error}");
}

#[test]
fn a_batch_whose_time_is_over_takes_none_of_its_neighbours_along() {
    for idempotent in [true, false] {
        let mut world = World::new(1, 4, limits(idempotent));
        let _warm = (world.send(0, 0), world.send(3, 0));
        world.drain();
        // Partitions 0 and 3 have the same leader.
        let old = world.send(0, 1);
        world.turn(true);
        world.answer(1, |_, _| refused(19));
        world.now += Duration::from_millis(119_900);
        let healthy = world.send(3, 1);
        world.turn(true);
        assert_eq!(
            world.wire[&1].iter().flat_map(|request| &request.batches).count(),
            2,
            "both are on their way"
        );
        world.now += Duration::from_millis(200);
        world.turn(true);
        let error = deliver(old).unwrap_err();
        assert!(error.possibly_written() && error.to_string().contains("delivery.timeout.ms"), "{error}");
        world.answer(1, |_, _| None);
        assert_eq!(deliver(healthy).unwrap(), 1);
        // The late answer of the other said where its log is: it goes on without a new epoch.
        let next = world.send(0, 2);
        world.drain();
        assert_eq!((deliver(next).unwrap(), &world.logs[0].ids), (2, &vec![0, 1, 2]));
        assert_eq!(world.memory.available(), BUFFER);
    }
}

#[test]
fn records_beside_a_bad_one_are_written_and_the_bad_one_is_told_why() {
    let mut world = introduced(1, limits(true));
    let deliveries: Vec<_> = (1..5).map(|id| world.send(0, id)).collect();
    let behind = fill(&mut world, 0, 5..6).remove(0);
    let mut first = true;
    let record_errors = vec![(1, Some("record 1 has no key".to_owned())), (-7, None), (99, None)];
    for _ in 0..2 {
        world.answer(1, |_, _| {
            let answer = Answer { record_errors: record_errors.clone(), ..refused(87).unwrap() };
            std::mem::take(&mut first).then_some(answer)
        });
    }
    world.drain();
    let outcomes: Vec<_> = deliveries.into_iter().map(deliver).collect();
    let error = outcomes[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("record 1 has no key"), "{error}");
    let offsets: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().ok().copied()).collect();
    assert_eq!(offsets, [Some(1), None, Some(2), Some(3)]);
    assert_eq!((deliver(behind).unwrap(), world.asked), (4, 1));
    assert_eq!(world.logs[0].ids, [0, 1, 3, 4, 5]);
}

#[test]
fn a_batch_is_given_up_where_none_of_its_records_is_good_or_one_after_another_is_refused() {
    // A batch that is split in between has its refusals behind it all the same.
    for (all, splits, refused_in_all, named) in
        [(true, false, 1, 40), (false, false, 9, 9), (false, true, 16, 15)]
    {
        let mut world = introduced(1, Limits { batch_size: 20_000, ..limits(true) });
        let deliveries: Vec<_> = (1..41).map(|id| world.send(0, id)).collect();
        let mut refusals = 0;
        while !world.is_done() {
            world.turn(true);
            world.answer(1, |_, sent| {
                refusals += 1;
                if splits && refusals == 4 {
                    return refused(10);
                }
                let bad = if all { 0..sent.batch.count } else { 0..1 };
                let record_errors = bad.map(|index| (index, Some("it has no key".to_owned()))).collect();
                Some(Answer { record_errors, ..refused(87).unwrap() })
            });
            world.now += Duration::from_millis(50);
            assert!(refusals < 100);
        }
        assert_eq!(refusals, refused_in_all, "all {all}, splits {splits}");
        let errors = deliveries.into_iter().map(|delivery| deliver(delivery).unwrap_err());
        let (told, others): (Vec<_>, Vec<_>) =
            errors.partition(|error| error.to_string().contains("it has no key"));
        assert_eq!(told.len(), named, "all {all}, splits {splits}");
        assert!(others.iter().all(|error| error.to_string().contains("refused for other records")));
        let next = world.send(0, 99);
        world.drain();
        assert_eq!((deliver(next).unwrap(), &world.logs[0].ids), (1, &vec![0, 99]));
        assert_eq!(world.memory.available(), BUFFER);
    }
}

#[test]
fn a_batch_whose_time_is_over_is_not_sent_again_without_its_bad_record() {
    let mut world = introduced(1, limits(true));
    let deliveries = [world.send(0, 1), world.send(0, 2)];
    world.turn(true);
    world.now += Duration::from_secs(120);
    world.turn(true);
    world.answer(1, |_, _| Some(Answer { record_errors: vec![(1, None)], ..refused(87).unwrap() }));
    let behind = fill(&mut world, 0, 3..4).remove(0);
    world.drain();
    deliveries.into_iter().for_each(|delivery| drop(deliver(delivery).unwrap_err()));
    assert_eq!((deliver(behind).unwrap(), &world.logs[0].ids), (1, &vec![0, 3]));
}

#[test]
fn a_partition_that_the_answer_lacks_is_asked_again_and_without_retries_may_be_written() {
    for retries in [1, 0] {
        let mut world = introduced(1, Limits { retries, ..limits(true) });
        let delivery = fill(&mut world, 0, 1..2).remove(0);
        let request = world.wire.get_mut(&1).and_then(VecDeque::pop_front).unwrap();
        world.apply(1, &request.batches[0]);
        world.sender.handle_answers(world.now, request, &[]);
        world.settle();
        let next = fill(&mut world, 0, 2..3).remove(0);
        world.drain();
        match retries {
            0 => assert!(deliver(delivery).unwrap_err().possibly_written()),
            _ => assert_eq!(deliver(delivery).unwrap(), 1),
        }
        assert_eq!(world.sender.counts.retries, u64::from(retries));
        assert_eq!((deliver(next).unwrap(), &world.logs[0].ids), (2, &vec![0, 1, 2]));
    }
}

#[test]
fn what_has_not_left_when_its_connection_goes_is_not_called_possibly_written() {
    for unsent in [true, false] {
        let mut world = introduced(1, Limits { retries: 0, ..limits(true) });
        let delivery = fill(&mut world, 0, 1..2).remove(0);
        let request = world.wire.get_mut(&1).and_then(VecDeque::pop_front).unwrap();
        let error = Error::new(ErrorKind::Disconnected, "lost");
        let error = if unsent { error.with_unsent() } else { error };
        world.sender.handle_request_error(world.now, request, &error);
        world.settle();
        assert_eq!(deliver(delivery).unwrap_err().possibly_written(), !unsent);
    }
}

#[test]
fn what_waited_on_a_connection_that_damage_has_ended_goes_again() {
    for kind in [ErrorKind::Timeout, ErrorKind::Disconnected, ErrorKind::Protocol] {
        for unsent in [true, false] {
            let mut world = introduced(1, limits(true));
            let delivery = fill(&mut world, 0, 1..2).remove(0);
            let request = world.wire.get_mut(&1).and_then(VecDeque::pop_front).unwrap();
            let error = Error::new(kind, "the answer before is too large");
            let error = if unsent { error.with_unsent() } else { error };
            world.sender.handle_request_error(world.now, request, &error);
            world.drain();
            assert_eq!(deliver(delivery).unwrap(), 1, "{kind:?}, unsent: {unsent}");
        }
    }
}

#[test]
fn codes_that_can_come_after_the_append_are_told_when_the_record_fails_in_the_end() {
    for (code, open) in [(7, true), (20, true), (6, true), (3, true), (56, true), (19, false), (5, false)] {
        let mut world = introduced(1, Limits { retries: 1, ..limits(true) });
        let delivery = fill(&mut world, 0, 1..2).remove(0);
        for _ in 0..2 {
            world.answer(1, |_, _| refused(code));
            world.now += Duration::from_secs(2);
            world.turn(true);
        }
        let error = deliver(delivery).unwrap_err();
        assert_eq!(error.possibly_written(), open, "{error}");
        assert!(error.to_string().contains("raise retries"), "{error}");
    }
}

#[test]
fn a_batch_that_may_be_written_is_split_under_its_own_numbers() {
    for is_written in [false, true] {
        let mut world = introduced(1, limits(true));
        let deliveries = [world.send(0, 1), world.send(0, 2)];
        world.turn(true);
        // The leader loses its office, and the next one finds the batch too large.
        world.answer(1, |world, sent| {
            if is_written {
                world.apply(1, sent);
            }
            refused(6)
        });
        let mut first = true;
        for _ in 0..50 {
            world.turn(true);
            world.answer(1, |_, _| if std::mem::take(&mut first) { refused(10) } else { None });
            world.now += Duration::from_millis(50);
        }
        for delivery in deliveries {
            match deliver(delivery) {
                Ok(_) => assert!(!is_written),
                Err(error) => assert!(is_written && error.possibly_written(), "{error}"),
            }
        }
        assert_eq!(world.logs[0].ids, [0, 1, 2]);
    }
}

#[test]
fn an_answer_that_comes_after_the_plan_is_looked_at_at_once() {
    let mut world = introduced(1, Limits { batch_size: 20_000, ..limits(true) });
    let deliveries: Vec<_> = (1..81).map(|id| world.send(0, id)).collect();
    let mut plans = 0;
    while !world.is_done() {
        world.turn(true);
        plans += 1;
        assert!(plans < 1000);
        // Nothing but the time-out wakes the task: each answer is there before it goes to sleep.
        world.answer(1, |_, sent| if sent.batch.count > 10 { refused(10) } else { None });
        if let Some(timeout) = world.sender.poll_timeout(world.now) {
            assert!(timeout <= world.now, "it sleeps for {:?} with batches to send", timeout - world.now);
        }
    }
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
}

#[test]
fn a_hundred_records_are_split_down_to_single_ones() {
    let mut world = introduced(1, Limits { batch_size: 20_000, ..limits(true) });
    let deliveries: Vec<_> = (1..101).map(|id| world.send(0, id)).collect();
    let mut turns = 0;
    while !world.is_done() {
        world.turn(true);
        world.answer(1, |_, sent| if sent.batch.count > 1 { refused(10) } else { None });
        world.now += Duration::from_millis(1);
        turns += 1;
        assert!(turns < 2000);
    }
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
    assert_eq!((world.asked, world.memory.available()), (1, BUFFER));
}

#[test]
fn why_no_producer_id_comes_is_in_the_error_of_what_waited_for_it() {
    let mut world = World::new(3, 1, limits(true));
    let delivery = world.send(0, 1);
    let says_nothing = [-1, 29_999].map(|code| Error::from_code("InitProducerId", code));
    let lost = [Error::protocol("damaged"), Error::new(ErrorKind::Disconnected, "the broker closed")];
    for cause in says_nothing.into_iter().chain(lost) {
        world.turn(true);
        assert!(std::mem::take(&mut world.asking), "it is asked for again");
        world.sender.handle_identity(world.now, Err(cause));
        assert!(world.sender.poll_fatal().is_none(), "it may come yet");
        world.now += Duration::from_secs(20);
    }
    world.now += Duration::from_secs(600);
    world.turn(true);
    let error = deliver(delivery).unwrap_err();
    assert!(!error.possibly_written() && error.to_string().contains("producer id"), "{error}");
    assert!(error.to_string().contains("the broker closed"), "{error}");
    for (cause, hint) in [
        (
            Error::new(ErrorKind::Connect(crate::error::Stage::Sasl), "refused")
                .with_hint("check sasl.password"),
            "sasl",
        ),
        (Error::from_code("InitProducerId", 31), "IdempotentWrite"),
        (Error::from_code("InitProducerId", 42), "the broker's own log"),
    ] {
        let mut world = World::new(3, 1, limits(true));
        world.sender.handle_identity(world.now, Err(cause.with_permanent()));
        let fatal = world.sender.poll_fatal().unwrap();
        assert!(fatal.is_fatal() && fatal.hint().unwrap().contains(hint), "{fatal}");
    }
}

#[test]
fn a_healthy_partition_goes_on_while_another_producer_id_is_awaited() {
    let mut world = introduced(2, limits(true));
    let _refused = fill(&mut world, 0, 1..2);
    world.answer(1, |_, _| refused(49));
    let deliveries = fill(&mut world, 1, 1..4);
    assert!(world.asking, "another id is asked for, and the answer has not come");
    for _ in 0..3 {
        world.answer(2, |_, _| None);
    }
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
}

#[test]
fn a_partition_whose_last_answer_leaves_something_unproved_goes_on_under_a_new_epoch() {
    let mut world = introduced(1, limits(true));
    let begun = world.now;
    let mut deliveries = fill(&mut world, 0, 1..2);
    // The leader changes while the first is out, and the new one answers before the old one does.
    world.leaders[0] = 2;
    world.learn_leaders();
    world.turn(true);
    deliveries.extend(fill(&mut world, 0, 2..5));
    assert_eq!([1, 2].map(|broker| world.wire[&broker].len()), [1, 3]);
    world.answer(2, |_, _| refused(87));
    assert!(matches!(world.sender.poll_failure(), Some((_, false))), "it is certainly not written");
    world.answer(2, |_, _| refused(45));
    world.disconnect(2);
    assert!(world.sender.poll_failure().is_none(), "it is asked for again");
    world.answer(1, |world, sent| world.write(sent));
    assert!(matches!(world.sender.poll_failure(), Some((_, true))), "a transaction must know");
    world.drain();
    let outcomes: Vec<_> = deliveries.into_iter().map(deliver).collect();
    assert_eq!(outcomes[0].as_ref().unwrap(), &1);
    assert!(!outcomes[1].as_ref().unwrap_err().possibly_written());
    assert_eq!(outcomes[2].as_ref().unwrap(), &2);
    assert!(outcomes[3].as_ref().unwrap_err().possibly_written());
    assert_eq!(world.logs[0].ids, [0, 1, 3]);
    assert!(world.now - begun < Duration::from_secs(10), "it waited for {:?}", world.now - begun);
}

#[test]
fn what_cannot_be_compressed_fails_its_transaction_and_nothing_behind_it() {
    let mut world = introduced(1, limits(true));
    let working = std::mem::replace(&mut world.sender.compressor, Compressor::failing());
    let bad = fill(&mut world, 0, 1..2).remove(0);
    assert!(!deliver(bad).unwrap_err().possibly_written());
    assert!(matches!(world.sender.poll_failure(), Some((_, false))));
    assert_eq!(world.sender.poll_timeout(world.now), Some(world.now), "what is behind it is looked at");
    world.sender.compressor = working;
    let good = fill(&mut world, 0, 2..3).remove(0);
    world.drain();
    assert_eq!((deliver(good).unwrap(), world.asked), (1, 1));
}

#[test]
fn a_leader_that_moves_with_five_in_flight_and_some_answers_lost_costs_nothing() {
    let mut world = introduced(1, limits(true));
    let deliveries = fill(&mut world, 0, 1..6);
    world.answer(1, |_, _| None);
    // Of the rest two were written, and nobody hears of it.
    for sent in world.wire[&1]
        .iter()
        .take(2)
        .map(|request| request.batches[0].batch.bytes.clone())
        .collect::<Vec<_>>()
    {
        world.logs[0].append(&sent);
    }
    world.disconnect(1);
    world.leaders[0] = 2;
    world.learn_leaders();
    world.drain();
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
    assert_eq!((&world.logs[0].ids, world.asked), (&vec![0, 1, 2, 3, 4, 5], 1));
}

#[test]
fn an_answer_to_what_left_under_the_epoch_before_is_still_heard() {
    let mut world = introduced(2, limits(true));
    let asked_again = fill(&mut world, 1, 1..2).remove(0);
    // Another partition needs another epoch while that is out.
    let broken = fill(&mut world, 0, 1..2).remove(0);
    world.answer(1, |_, _| refused(59));
    let behind = fill(&mut world, 1, 2..4);
    world.answer(2, |world, sent| {
        world.write(sent);
        refused(7)
    });
    world.drain();
    assert_eq!((deliver(broken).unwrap(), deliver(asked_again).unwrap()), (1, 1));
    for (delivery, offset) in behind.into_iter().zip(2..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
    assert_eq!((&world.logs[1].ids, world.asked), (&vec![0, 1, 2, 3], 1));
}

#[test]
fn a_batch_whose_time_ends_before_it_is_split_is_not_and_halves_end_with_it() {
    for is_split_before in [false, true] {
        let mut world = introduced(1, limits(true));
        let deliveries = [world.send(0, 1), world.send(0, 2)];
        world.turn(true);
        let late = world.now + Duration::from_secs(120);
        if is_split_before {
            world.answer(1, |_, _| refused(10));
            world.turn(true);
            world.answer(1, |_, _| refused(7));
            world.now = late;
            world.turn(true);
        } else {
            world.now = late;
            world.turn(true);
            world.answer(1, |_, _| refused(10));
        }
        let behind = fill(&mut world, 0, 3..4).remove(0);
        world.drain();
        let possibly = deliveries.map(|delivery| deliver(delivery).unwrap_err().possibly_written());
        // One half was refused by a code that leaves it open; of what is in flight nobody knows.
        assert_eq!(possibly, [true, true]);
        assert_eq!((deliver(behind).unwrap(), &world.logs[0].ids), (1, &vec![0, 3]));
        assert_eq!((world.asked, world.memory.available()), (1, BUFFER));
    }
}

#[test]
fn two_partitions_that_break_at_once_under_two_epochs_both_go_on() {
    for first in [0, 1] {
        for seed in 0..6 {
            let mut world = World::new(seed, 2, limits(true));
            let _warm = [world.send(0, 0), world.send(1, 0)];
            world.drain();
            // One has an answer to wait for under the first epoch, the other goes on under the next.
            let _unknown = fill(&mut world, 1 - first, 1..2);
            world.disconnect(2 - first as i32);
            let _again = fill(&mut world, first, 1..2);
            world.answer(1 + first as i32, |_, _| refused(59));
            world.turn(true);
            world.answer(1 + first as i32, |_, _| refused(7));
            world.now += Duration::from_secs(120);
            world.turn(true);
            let begun = world.now;
            let deliveries = [world.send(0, 2), world.send(1, 2)];
            world.drain();
            assert_eq!(deliveries.map(|delivery| deliver(delivery).unwrap()), [1, 1]);
            assert!(world.now - begun < Duration::from_secs(10));
        }
    }
}

#[test]
fn what_a_plan_finds_out_is_planned_with_at_once() {
    let mut world = introduced(1, limits(true));
    let lost = fill(&mut world, 0, 1..2).remove(0);
    world.disconnect(1);
    let behind = fill(&mut world, 0, 2..3).remove(0);
    world.make_again();
    world.learn_leaders();
    world.turn(true);
    assert!(deliver(lost).unwrap_err().possibly_written());
    // Nothing but the time-out wakes the task.
    while world.sender.poll_timeout(world.now).is_some_and(|timeout| timeout <= world.now) {
        world.turn(true);
    }
    world.answer(1, |_, _| None);
    assert_eq!(deliver(behind).unwrap(), 0);
}

#[test]
fn a_producer_that_brokers_have_forgotten_sends_one_batch_alone_again() {
    let mut world = introduced(1, limits(true));
    world.now += Duration::from_secs(24 * 3600);
    world.logs[0].producers.clear();
    let deliveries = fill(&mut world, 0, 1..6);
    assert_eq!(
        world.wire[&1].len(),
        1,
        "a second one would be taken in place of the first, were that refused"
    );
    world.answer(1, |_, _| refused(19));
    world.drain();
    for (delivery, offset) in deliveries.into_iter().zip(1..) {
        assert_eq!(deliver(delivery).unwrap(), offset);
    }
    assert_eq!((&world.logs[0].ids, world.asked), (&vec![0, 1, 2, 3, 4, 5], 1));
}

#[test]
fn one_plan_sends_all_there_is_in_as_many_requests_as_that_takes() {
    let all_fit: &[usize] = &[2, 2, 1];
    for (max_request_size, expected) in [(1 << 20, all_fit), (200, &[1; 5]), (1, &[1; 5])] {
        // The first partition and the last have the same leader.
        let mut world = introduced(BROKERS as usize + 1, limits(true));
        world.sender.settings.max_request_size = max_request_size;
        for (partition, batches) in [(0, 3), (3, 2)] {
            for id in 1..=batches {
                let _delivery = world.send(partition, id);
                world.partitions[partition].lock().close_open();
            }
        }
        world.turn(false);
        let sent: Vec<_> = world.wire[&1].iter().map(|request| request.batches.len()).collect();
        assert_eq!(sent, expected, "max.request.size={max_request_size}");
        world.drain();
        assert_eq!((&world.logs[0].ids, &world.logs[3].ids), (&vec![0, 1, 2, 3], &vec![0, 1, 2]));
    }
}
