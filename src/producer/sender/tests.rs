//! The sender and its queues against a model of a cluster's logs, in virtual time.
//!
//! The model keeps Kafka's rules: five batches remembered per producer and partition, after a clean restart only the last,
//! any sequence taken from a producer that is not known, a higher epoch only from sequence 0. Requests whose connection broke
//! may be applied, dropped, or applied much later.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;

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

/// One partition's log.
#[derive(Default)]
struct Log {
    ids: Vec<u32>,
    /// By producer id: its epoch, and the last batches as (base sequence, count, base offset).
    producers: BTreeMap<i64, (i16, Remembered)>,
}

type Remembered = VecDeque<(i32, i32, i64)>;

impl Log {
    fn append(&mut self, bytes: &bytes::Bytes) -> (i16, i64) {
        let raw = batch::split(bytes.clone()).next().unwrap().unwrap();
        let (epoch, sequence) = (raw.producer_epoch(), raw.base_sequence());
        let offset = self.ids.len() as i64;
        if raw.producer_id >= 0 {
            if let Some((known_epoch, batches)) = self.producers.get(&raw.producer_id) {
                if epoch < *known_epoch {
                    return (47, -1);
                }
                if epoch > *known_epoch && sequence != 0 {
                    return (45, -1);
                }
                if epoch == *known_epoch {
                    let same =
                        batches.iter().find(|(base, count, _)| (*base, *count) == (sequence, raw.count));
                    if let Some((.., offset)) = same {
                        return (0, *offset);
                    }
                    if batches.back().is_some_and(|(base, count, _)| base + count != sequence) {
                        return (45, -1);
                    }
                }
            }
            let (known_epoch, batches) = self.producers.entry(raw.producer_id).or_default();
            if *known_epoch != epoch {
                batches.clear();
            }
            *known_epoch = epoch;
            batches.push_back((sequence, raw.count, offset));
            if batches.len() > 5 {
                batches.pop_front();
            }
        }
        self.ids.extend(ids(bytes));
        (0, offset)
    }

    fn fence(&mut self, bytes: &bytes::Bytes) {
        let raw = batch::split(bytes.clone()).next().unwrap().unwrap();
        let (epoch, batches) = self.producers.entry(raw.producer_id).or_default();
        *epoch = (*epoch).max(raw.producer_epoch()) + 1;
        batches.clear();
    }

    /// Brokers write down only the last batch of each producer when they stop.
    fn restart_cleanly(&mut self) {
        for (_, batches) in self.producers.values_mut() {
            batches.drain(..batches.len().saturating_sub(1));
        }
    }
}

fn ids(batch: &bytes::Bytes) -> Vec<u32> {
    let raw = batch::split(batch.clone()).next().unwrap().unwrap();
    let decoded = raw.decode(true, &Decompressor::new(), 1 << 20).unwrap();
    let id = |slot| u32::from_be_bytes(decoded.value(slot).unwrap()[..4].try_into().unwrap());
    decoded.slots.iter().map(id).collect()
}

struct World {
    sender: Sender,
    memory: Memory,
    partitions: Vec<Arc<PartitionQueue>>,
    logs: Vec<Log>,
    /// The topic's id, and the logs of its earlier lives.
    topic_id: TopicId,
    deleted: Vec<(usize, Log)>,
    leaders: Vec<i32>,
    snapshot: Metadata,
    /// By broker, oldest first.
    wire: BTreeMap<i32, VecDeque<Request>>,
    /// Requests of broken connections that brokers have read and not yet looked at.
    late: Vec<(usize, TopicId, bytes::Bytes)>,
    scheduled: Vec<Arc<PartitionQueue>>,
    now: Instant,
    rng: Rng,
    asked: i64,
    asking: bool,
}

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

impl World {
    fn new(seed: u64, partitions: usize, limits: Limits) -> Self {
        let topic: Arc<str> = "orders".into();
        let settings = SenderSettings {
            idempotent: limits.idempotent,
            transactional: false,
            max_in_flight: limits.max_in_flight,
            max_request_size: 1 << 20,
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
            availability_timeout: Duration::from_millis(200),
        };
        let limits = Arc::new(limits);
        let compressor = Compressor::new(Compression::None, None).unwrap();
        let mut world = Self {
            sender: Sender::new(settings, Arc::clone(&limits), compressor, Rng::new(seed)),
            memory: Memory::new(BUFFER, 400),
            partitions: (0..partitions)
                .map(|index| Arc::new(PartitionQueue::new(&topic, index as i32, &limits, true)))
                .collect(),
            logs: (0..partitions).map(|_| Log::default()).collect(),
            topic_id: [1; 16],
            deleted: Vec::new(),
            leaders: (0..partitions as i32).map(|index| index % BROKERS + 1).collect(),
            snapshot: Metadata::default(),
            wire: BTreeMap::new(),
            late: Vec::new(),
            scheduled: Vec::new(),
            now: crate::time::now(),
            rng: Rng::new(seed ^ 0xABCD),
            asked: 0,
            asking: false,
        };
        world.learn_leaders();
        world
    }

    fn learn_leaders(&mut self) {
        let leader = |id: &i32| metadata::Partition {
            leader: Some(*id),
            leader_epoch: 0,
            replicas: Vec::new(),
            in_sync_replicas: Vec::new(),
        };
        let partitions = self.leaders.iter().map(leader).collect();
        let topic = metadata::Topic { id: self.topic_id, partitions, ..Default::default() };
        self.snapshot.topics = BTreeMap::from([("orders".into(), topic)]);
    }

    fn send(&mut self, partition: usize, id: u32) -> Delivery {
        let mut value = [0; 60];
        value[..4].copy_from_slice(&id.to_be_bytes());
        let size_bound = batch::record_size_bound(0, value.len(), &[]);
        let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
        let now = self.now;
        let queue = &self.partitions[partition];
        let appended = queue.lock().append(&parts, || now, &self.memory, &mut 0);
        match appended {
            Appended::Done { delivery, schedule, .. } => {
                if schedule {
                    self.scheduled.push(Arc::clone(queue));
                }
                delivery
            }
            other => panic!("{other:?}"),
        }
    }

    /// One turn of the task.
    fn turn(&mut self, hurry: bool) {
        self.sender.handle_scheduled(&mut self.scheduled);
        self.sender.handle_tick(self.now, &self.snapshot, hurry, None);
        while let Some(action) = self.sender.poll_action() {
            match action {
                Action::Connect(id) => self.sender.handle_connected(self.now, id, true),
                Action::AskIdentity => {
                    assert!(!std::mem::replace(&mut self.asking, true), "one question at a time");
                    self.asked += 1;
                }
                Action::Send(request) => self.wire.entry(request.leader).or_default().push_back(request),
            }
        }
        if self.sender.poll_metadata() && self.rng.below(2) == 0 {
            self.learn_leaders();
        }
        self.settle();
        self.sender.poll_timeout(self.now);
    }

    fn settle(&mut self) {
        let aftermath = self.sender.poll_aftermath().unwrap_or_default();
        for (receipt, outcome) in aftermath.resolved {
            receipt.resolve(outcome);
        }
        self.memory.give_back(aftermath.freed);
        assert!(self.memory.available() <= BUFFER, "memory was given back twice");
        assert!(self.sender.poll_fatal().is_none());
    }

    fn identify(&mut self) {
        if std::mem::take(&mut self.asking) {
            let identity = ProducerIdentity { id: 100 + self.asked, epoch: 0 };
            self.sender.handle_identity(self.now, Ok(identity));
        }
    }

    /// The topic is deleted and made again: under another id (KIP-516), with logs that know nobody.
    fn make_again(&mut self) {
        self.topic_id[0] += 1;
        let logs = self.logs.iter_mut().map(std::mem::take).enumerate();
        self.deleted.extend(logs);
    }

    /// What a broker does with a batch.
    fn apply(&mut self, broker: i32, sent: &Sent) -> Answer {
        let (index, bytes) = (sent.partition.partition as usize, &sent.batch.bytes);
        if sent.topic_id != self.topic_id {
            return Answer { code: 100, base_offset: -1, log_append_time: -1, ..Answer::default() };
        }
        if self.leaders[index] != broker {
            return Answer { code: 6, base_offset: -1, log_append_time: -1, ..Answer::default() };
        }
        let (code, base_offset) = self.logs[index].append(bytes);
        Answer { code, base_offset, log_append_time: -1, ..Answer::default() }
    }

    /// The oldest request to a broker is answered; `fault` may change what is done and said about each batch.
    fn answer(&mut self, broker: i32, mut fault: impl FnMut(&mut Self, &Sent) -> Option<Answer>) {
        let Some(request) = self.wire.get_mut(&broker).and_then(VecDeque::pop_front) else { return };
        let mut answers = BTreeMap::new();
        for sent in &request.batches {
            let partition = sent.partition.partition;
            let answer = match fault(self, sent) {
                Some(answer) => answer,
                None => self.apply(broker, sent),
            };
            answers.insert(("orders", partition), answer);
        }
        let answers: Vec<_> = answers.into_iter().collect();
        self.sender.handle_answers(self.now, request, &answers);
        self.settle();
    }

    /// The connection to a broker breaks: of what is in flight some was applied, some not, and some will be.
    fn lose(&mut self, broker: i32) {
        let requests = self.wire.remove(&broker).unwrap_or_default();
        let read = self.rng.below(requests.len() + 1);
        let applied = self.rng.below(read + 1);
        for (place, request) in requests.iter().enumerate() {
            for sent in &request.batches {
                if place < applied {
                    self.apply(broker, sent);
                } else if place < read {
                    let partition = sent.partition.partition as usize;
                    self.late.push((partition, sent.topic_id, sent.batch.bytes.clone()));
                }
            }
        }
        let error = Error::new(ErrorKind::Disconnected, "lost");
        for request in requests {
            self.sender.handle_request_error(self.now, request, &error);
        }
        self.settle();
    }

    /// A broker looks at what it has read long ago.
    fn apply_late(&mut self, (partition, topic_id, bytes): (usize, TopicId, bytes::Bytes)) {
        if topic_id == self.topic_id {
            self.logs[partition].append(&bytes);
        }
    }

    fn is_done(&self) -> bool {
        self.scheduled.is_empty() && self.sender.is_idle()
    }

    /// Without further faults, until everything has its answer.
    fn drain(&mut self) {
        let mut turns = 0;
        while !self.is_done() {
            self.turn(true);
            self.identify();
            for broker in 1..=BROKERS {
                self.answer(broker, |_, _| None);
            }
            self.now += Duration::from_millis(20);
            turns += 1;
            assert!(turns < 20_000, "the queue never drains");
        }
    }
}

fn refused(code: i16) -> Option<Answer> {
    Some(Answer { code, base_offset: -1, log_append_time: -1, ..Answer::default() })
}

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
    while deliveries.len() < 200 || faults > 0 {
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
    world.drain();
    for late in std::mem::take(&mut world.late) {
        world.apply_late(late);
    }
    check(seed, &world, deliveries);
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

/// `DTKAFKA_MODEL_SEEDS` runs more of them.
#[test]
fn every_acknowledged_record_is_in_the_log_once_and_in_order_whatever_the_network_and_the_brokers_do() {
    let seeds = std::env::var("DTKAFKA_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        run(seed);
    }
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
fn a_partition_that_the_answer_lacks_fails_as_possibly_written() {
    let mut world = introduced(1, limits(true));
    let delivery = fill(&mut world, 0, 1..2).remove(0);
    let request = world.wire.get_mut(&1).and_then(VecDeque::pop_front).unwrap();
    world.apply(1, &request.batches[0]);
    world.sender.handle_answers(world.now, request, &[]);
    world.settle();
    assert!(deliver(delivery).unwrap_err().possibly_written());
    let next = fill(&mut world, 0, 2..3).remove(0);
    world.drain();
    assert_eq!((deliver(next).unwrap(), &world.logs[0].ids), (2, &vec![0, 1, 2]));
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
    for cause in [Error::protocol("damaged"), Error::new(ErrorKind::Disconnected, "the broker closed")] {
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
