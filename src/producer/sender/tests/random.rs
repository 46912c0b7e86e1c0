//! Random faults of brokers and connections: whatever happens, each record is where its sender was told.
//!
//! `DTKAFKA_MODEL_SEEDS` says how many worlds are tried.

use std::collections::BTreeSet;

use super::{world::Log, *};

/// What may go wrong with one batch whose request is answered.
fn batch_fault(world: &mut World, sent: &Sent) -> Option<Answer> {
    let partition = sent.partition.partition;
    match world.rng.below(10) {
        0 => refused([7, 19, 3, 56, 5][world.rng.below(5)]),
        // Written, and then the replicas did not follow, or the leader lost its office.
        1 => {
            let code = [7, 20, 6, -1, 3][world.rng.below(5)];
            let leader = world.leaders[partition as usize];
            world.apply(leader, sent);
            refused(code)
        }
        2 => refused([87, 29, 32, 44][world.rng.below(4)]),
        // A broker looks at the size first.
        3 | 4 => refused(10),
        5 => refused(59),
        // Somebody else uses the id, under a later epoch.
        7 => {
            world.logs[partition as usize].fence(&sent.batch.bytes);
            refused([47, 49, 90][world.rng.below(3)])
        }
        6 if sent.batch.count > 1 => {
            let index = world.rng.below(sent.batch.count as usize + 1) as i32;
            let record_errors = vec![(index, Some("it has no key".to_owned()))];
            Some(Answer { record_errors, ..refused(87).unwrap() })
        }
        _ => None,
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed.wrapping_mul(7919) + 1);
    let partitions = 1 + rng.below(3);
    let mut limits = limits(true);
    if rng.below(4) == 0 {
        limits.delivery_timeout = Duration::from_millis(400);
    }
    let mut world = World::new(seed, partitions, limits);
    let mut deliveries: Vec<(usize, u32, Delivery)> = Vec::new();
    let mut faults = 5 + rng.below(30);
    let mut lives = if rng.below(3) == 0 { 1 + rng.below(3) } else { 0 };
    // Some are closed in the middle of whatever there is.
    let mut left = if rng.below(4) == 0 { rng.below(800) } else { usize::MAX };
    let is_closed = left < usize::MAX;
    while left > 0 && (deliveries.len() < 200 || faults > 0) {
        left -= 1;
        if deliveries.len() < 200 && rng.below(3) > 0 {
            let (partition, id) = (rng.below(partitions), deliveries.len() as u32);
            let delivery = world.send(partition, id);
            deliveries.push((partition, id, delivery));
        }
        world.turn(rng.below(4) == 0);
        if rng.below(3) == 0 {
            world.identify();
        }
        world.now += Duration::from_millis([0, 1, 2, 3, 40][rng.below(5)]);
        let broker = 1 + rng.below(BROKERS as usize) as i32;
        if rng.below(3) > 0 {
            continue;
        }
        if faults == 0 || rng.below(4) > 0 {
            world.answer(broker, |_, _| None);
            continue;
        }
        faults -= 1;
        if lives > 0 && rng.below(8) == 0 {
            lives -= 1;
            world.make_again();
            continue;
        }
        match rng.below(8) {
            0 | 1 => world.lose(broker),
            2 => {
                let partition = rng.below(partitions);
                world.leaders[partition] = broker;
            }
            3 => world.logs[rng.below(partitions)].restart_cleanly(),
            4 => {
                world.lose(broker);
                world.logs.iter_mut().for_each(Log::restart_cleanly);
            }
            5 => {
                if !world.late.is_empty() {
                    let place = rng.below(world.late.len());
                    let late = world.late.remove(place);
                    world.apply_late(late);
                }
            }
            _ => world.answer(broker, batch_fault),
        }
    }
    match is_closed {
        true => world.close(),
        false => {
            world.drain();
            goes_on(seed, &mut world);
        }
    }
    for late in std::mem::take(&mut world.late) {
        world.apply_late(late);
    }
    check(seed, &world, deliveries);
}

/// No partition stands still for good. Where records have little time, the first ones may still pay for the last fault.
fn goes_on(seed: u64, world: &mut World) {
    world.learn_leaders();
    for partition in 0..world.partitions.len() {
        let begun = world.now;
        let is_written = (0..5).any(|_| {
            let delivery = world.send(partition, u32::MAX);
            world.drain();
            deliver(delivery).is_ok()
        });
        let took = world.now - begun;
        assert!(
            is_written && took < Duration::from_secs(10),
            "seed {seed}: partition {partition} stands still"
        );
    }
}

fn check(seed: u64, world: &World, deliveries: Vec<(usize, u32, Delivery)>) {
    let mut acknowledged = BTreeSet::new();
    for (partition, id, delivery) in deliveries {
        // Of every life of the topic: what may have been in one is never written to another.
        let earlier = world.deleted.iter().filter(|(place, _)| *place == partition).map(|(_, log)| &log.ids);
        let logs: Vec<&Vec<u32>> = earlier.chain([&world.logs[partition].ids]).collect();
        let copies = |log: &&Vec<u32>| log.iter().filter(|logged| **logged == id).count();
        let copies: usize = logs.iter().map(copies).sum();
        match delivery.now_or_never() {
            Some(Ok(metadata)) => {
                acknowledged.insert(id);
                assert_eq!(copies, 1, "seed {seed}: acknowledged record {id}");
                let is_there = |log: &&Vec<u32>| log.get(metadata.offset as usize) == Some(&id);
                if metadata.offset >= 0 {
                    assert!(logs.iter().any(is_there), "seed {seed}: offset of record {id}");
                }
            }
            Some(Err(error)) => {
                let allowed = usize::from(error.possibly_written());
                assert!(
                    copies <= allowed,
                    "seed {seed}: record {id} failed ({error}) and is there {copies} times"
                );
            }
            None => panic!("seed {seed}: record {id} has no answer"),
        }
    }
    for log in world.logs.iter().chain(world.deleted.iter().map(|(_, log)| log)) {
        // A new epoch keeps out what brokers have read of the older one and not looked at. Another producer id cannot: what
        // was told to be possibly written may then be written late.
        let certain = |id: &&u32| world.asked == 1 || acknowledged.contains(*id);
        let ids: Vec<_> = log.ids.iter().filter(certain).collect();
        assert!(ids.is_sorted(), "seed {seed}: the log's order is {ids:?}");
    }
    assert_eq!(world.memory.available(), BUFFER, "seed {seed}: memory");
}

#[test]
fn every_acknowledged_record_is_in_the_log_once_and_in_order_whatever_the_network_and_the_brokers_do() {
    let seeds = std::env::var("DTKAFKA_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        run(seed);
    }
}
