//! Random faults of brokers and connections: whatever happens, each record is where its sender was told.
//!
//! `DTKAFKA_MODEL_SEEDS` says how many worlds are tried.

use std::collections::{BTreeMap, BTreeSet};

use super::{world::Log, *};

/// What a world may do to a batch again and again: once it is refused, the next attempts are as well.
type Stubborn = BTreeMap<(i32, i16, i32), (i16, usize)>;

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

/// What passes by itself: no record need fail for it. A batch is refused up to eight times in a row, with codes that leave open
/// whether it is written and with others, and may be written at each of these times.
fn retriable_fault(world: &mut World, sent: &Sent, stubborn: &mut Stubborn, is_new: bool) -> Option<Answer> {
    let raw = batch::split(sent.batch.bytes.clone()).next().unwrap().unwrap();
    let place = (sent.partition.partition, raw.producer_epoch(), raw.base_sequence());
    let (code, left) = stubborn.entry(place).or_insert_with(|| {
        let code = [7, 20, 6, 3, 56, 19, 5, 10][world.rng.below(8)];
        (code, if is_new { world.rng.below(9) } else { 0 })
    });
    if *left == 0 || world.rng.below(8) == 0 {
        return None;
    }
    *left -= 1;
    match code {
        19 | 5 => return refused(*code),
        // What may be written and is too large now cannot be asked for.
        10 if sent.batch.possibly_written || sent.batch.count == 1 => return None,
        10 => return refused(10),
        _ if world.rng.below(2) == 0 => {
            let leader = world.leaders[place.0 as usize];
            let told = world.apply(leader, sent);
            // Its leader refuses what comes too early, whatever became of it before.
            if told.code == 45 {
                return Some(told);
            }
        }
        _ => {}
    }
    refused(*code)
}

/// Which faults a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultKind {
    /// Everything.
    Any,
    /// Those after which a batch is sent again, and no broker loses data: every record is written.
    Retriable,
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed.wrapping_mul(7919) + 1);
    let kind = if seed.is_multiple_of(2) { FaultKind::Any } else { FaultKind::Retriable };
    let partitions = 1 + rng.below(3);
    let mut limits = limits(true);
    if kind == FaultKind::Any && rng.below(4) == 0 {
        limits.delivery_timeout = Duration::from_millis(400);
    }
    // A transaction is aborted once a record has failed: of these only what passes.
    limits.transactional = kind == FaultKind::Retriable && rng.below(3) == 0;
    let asks = i64::from(!limits.transactional);
    let mut world = World::new(seed, partitions, limits);
    if rng.below(2) == 0 {
        world.leaders.fill(1);
        world.learn_leaders();
    }
    let mut deliveries: Vec<(usize, u32, Delivery)> = Vec::new();
    let mut faults = 5 + rng.below(30);
    let mut lives = if rng.below(3) == 0 { 1 + rng.below(3) } else { 0 };
    // Some are closed in the middle of whatever there is.
    let mut left = if kind == FaultKind::Any && rng.below(4) == 0 { rng.below(800) } else { usize::MAX };
    let is_closed = left < usize::MAX;
    let mut stubborn = Stubborn::new();
    // What is answered in time, and what is on its way for long.
    let slowness = rng.below(3);
    let favourite = 1 + rng.below(BROKERS as usize) as i32;
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
        if rng.below(3) > 0 {
            continue;
        }
        // One broker answers sooner than the others, and before what is out on connections that were replaced.
        let connections = world.connections();
        let any = connections.get(rng.below(connections.len().max(1))).copied().unwrap_or(1);
        let connection = if rng.below(4) > 0 && connections.contains(&favourite) { favourite } else { any };
        let is_fault = faults > 0 && rng.below(4) == 0;
        let mut fault = |world: &mut World, sent: &Sent| match kind {
            FaultKind::Any if is_fault => batch_fault(world, sent),
            FaultKind::Any => None,
            FaultKind::Retriable => retriable_fault(world, sent, &mut stubborn, is_fault),
        };
        if !is_fault {
            match rng.below(4) < slowness {
                true => world.read(connection, &mut fault),
                false => world.answer(connection, fault),
            }
            continue;
        }
        faults -= 1;
        if kind == FaultKind::Any && lives > 0 && rng.below(8) == 0 {
            lives -= 1;
            world.make_again();
            continue;
        }
        match rng.below(9) {
            0 | 1 => world.lose(connection),
            2 => {
                let partition = rng.below(partitions);
                world.leaders[partition] = [favourite, 1 + rng.below(BROKERS as usize) as i32][rng.below(2)];
                if rng.below(2) == 0 {
                    // Somebody else has asked.
                    world.learn_leaders();
                }
            }
            3 if kind == FaultKind::Any => world.logs[rng.below(partitions)].restart_cleanly(),
            4 => {
                world.lose(connection);
                if kind == FaultKind::Any {
                    world.logs.iter_mut().for_each(Log::restart_cleanly);
                }
            }
            // A batch in parts, and those behind it that come in late, are more than a broker remembers.
            5 if kind == FaultKind::Any || world.sender.counts().splits == 0 => {
                if !world.late.is_empty() {
                    let place = rng.below(world.late.len());
                    let late = world.late.remove(place);
                    world.apply_late(late);
                }
            }
            6 => world.time_out(connection, fault),
            _ => world.answer(connection, fault),
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
    if kind == FaultKind::Retriable {
        assert_eq!(world.asked, asks, "seed {seed}: another producer id");
        for (_, id, delivery) in &mut deliveries {
            let error = delivery.now_or_never().and_then(Result::err);
            assert!(error.is_none(), "seed {seed}: record {id} failed for nothing: {}", error.unwrap());
        }
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
        let certain = |id: &&u32| world.asked <= 1 || acknowledged.contains(*id);
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
