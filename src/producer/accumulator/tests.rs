//! A partition's queue against a model of a broker's log, in virtual time.

use std::collections::BTreeMap;

use super::*;
use crate::{
    batch::Decompressor,
    config::Compression,
    error::{ErrorCode, ErrorKind},
    producer::{outcome::decide, receipt::Ack},
    time::Rng,
};

const ME: ProducerIdentity = ProducerIdentity { id: 1, epoch: 0 };

fn limits() -> Limits {
    Limits {
        batch_size: 400,
        linger: Duration::from_millis(5),
        delivery_timeout: Duration::from_secs(120),
        max_in_flight: 5,
        retries: u32::MAX,
        idempotent: true,
    }
}

struct Rig {
    queue: Queue,
    limits: Arc<Limits>,
    memory: Memory,
    compressor: Compressor,
    now: Instant,
    identity: ProducerIdentity,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let limits = Arc::new(limits);
        Self {
            queue: Queue::new("orders".into(), 0, Arc::clone(&limits)),
            limits,
            memory: Memory::new(1 << 20),
            compressor: Compressor::new(Compression::None, None).unwrap(),
            now: crate::time::now(),
            identity: ME,
        }
    }

    fn send(&mut self, id: u32) -> Delivery {
        let mut value = [0; 60];
        value[..4].copy_from_slice(&id.to_be_bytes());
        let size_bound = batch::record_size_bound(0, value.len(), &[]);
        let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
        match self.queue.append(&parts, || self.now, &self.memory, &mut 0) {
            Appended::Done { delivery, .. } => delivery,
            Appended::NeedMemory(bytes) => panic!("{bytes} bytes missing"),
        }
    }

    fn poll(&mut self, hurry: bool) -> Option<Batch> {
        self.poll_at(if hurry { Pace::Hurry } else { Pace::Linger })
    }

    fn poll_at(&mut self, pace: Pace) -> Option<Batch> {
        let mut batch = match self.queue.poll_batch(self.now, pace, Ok(Some(self.identity)))? {
            Taken::Again(batch) => batch,
            Taken::First { open, stamp, order } => {
                open.seal(stamp, order, &self.limits, &self.compressor).map_err(|(error, ..)| error).unwrap()
            }
        };
        batch.count_attempt();
        Some(batch)
    }

    fn settle(&mut self, batch: Batch, decision: Decision) {
        let aftermath = match decision {
            Decision::Split => {
                let halves =
                    batch::split_in_two(&batch.bytes, &self.compressor, &Decompressor::new()).unwrap();
                self.queue.handle_split(batch, halves)
            }
            _ => self.queue.handle_decision(batch, decision, None, || Error::closed("test")),
        };
        self.memory.give_back(aftermath.freed);
        if aftermath.broken == Some(self.identity) {
            self.identity.id += 1;
        }
    }

    /// The broker gets to know the producer: from now on, several batches may be in flight.
    fn introduce(&mut self) {
        let _delivery = self.send(0);
        let batch = self.poll(true).unwrap();
        self.acknowledge(batch, 0);
    }

    fn acknowledge(&mut self, batch: Batch, base_offset: i64) {
        batch.receipt.acknowledge(Ack { base_offset, log_append_time: -1 });
        self.settle(batch, Decision::Acknowledge);
    }
}

fn ids(batch: &Bytes) -> Vec<u32> {
    let raw = batch::split(batch.clone()).next().unwrap().unwrap();
    let decoded = raw.decode(true, &Decompressor::new(), 1 << 20).unwrap();
    let id = |slot| u32::from_be_bytes(decoded.value(slot).unwrap()[..4].try_into().unwrap());
    decoded.slots.iter().map(id).collect()
}

fn sequence(batch: &Batch) -> i32 {
    batch::split(batch.bytes.clone()).next().unwrap().unwrap().base_sequence()
}

#[test]
fn without_a_linger_records_leave_at_once_but_gather_a_moment_while_requests_are_in_flight() {
    assert_eq!(
        [Pace::new(false, 0), Pace::new(false, 1), Pace::new(true, 1)],
        [Pace::Linger, Pace::Crowded, Pace::Hurry]
    );
    let mut rig = Rig::new(Limits { linger: Duration::ZERO, ..limits() });
    rig.introduce();
    let _first = rig.send(1);
    let first = rig.poll_at(Pace::Linger).unwrap();
    let _others = (rig.send(2), rig.send(3));
    assert!(rig.poll_at(Pace::Crowded).is_none());
    assert_eq!(rig.queue.poll_timeout(rig.now), Some(rig.now + CROWDED_LINGER), "the task wakes for it");
    rig.now += CROWDED_LINGER;
    let second = rig.poll_at(Pace::Crowded).unwrap();
    assert_eq!((first.count, ids(&second.bytes)), (1, vec![2, 3]));
    let _more = rig.send(4);
    rig.acknowledge(first, 1);
    rig.acknowledge(second, 2);
    assert_eq!(rig.poll_at(Pace::Linger).unwrap().count, 1, "the way is free again");
}

#[test]
fn a_batch_leaves_when_it_is_full_or_has_lingered() {
    let mut rig = Rig::new(limits());
    let _first = rig.send(0);
    assert!(rig.poll(false).is_none());
    assert_eq!(rig.queue.poll_timeout(rig.now), Some(rig.now + Duration::from_millis(5)));
    let others: Vec<_> = (1..8).map(|id| rig.send(id)).collect();
    let full = rig.poll(false).unwrap();
    assert!(full.count > 1 && full.count < 8, "{} records", full.count);
    assert!(rig.poll(false).is_none(), "the rest has not lingered");
    rig.now += Duration::from_millis(5);
    let count = full.count;
    rig.acknowledge(full, 0);
    let rest = rig.poll(false).unwrap();
    assert_eq!((count + rest.count) as usize, 1 + others.len());
}

#[test]
fn a_flushed_batch_does_not_linger() {
    let mut rig = Rig::new(limits());
    let _delivery = rig.send(0);
    rig.queue.close_open();
    assert!(rig.poll(false).is_some());
}

#[test]
fn no_more_than_five_batches_are_in_flight_and_one_until_the_broker_knows_the_producer() {
    let mut rig = Rig::new(limits());
    let _deliveries: Vec<_> = (0..50).map(|id| rig.send(id)).collect();
    let first = rig.poll(true).unwrap();
    assert!(rig.poll(true).is_none(), "were the first refused, the second would be taken in its place");
    rig.settle(first, Decision::Retry { stale_leader: false });
    let first = rig.poll(true).unwrap();
    assert!(rig.poll(true).is_none());
    rig.acknowledge(first, 0);
    let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
    let flight: Vec<_> = std::iter::from_fn(|| rig.poll(true)).collect();
    assert_eq!(flight.len(), 5);
    for batch in flight.into_iter().take(1) {
        rig.acknowledge(batch, 0);
    }
    assert!(rig.poll(true).is_some());
}

#[test]
fn after_a_retry_nothing_leaves_until_the_flight_has_landed_and_then_in_order_with_the_same_stamps() {
    let mut rig = Rig::new(limits());
    rig.introduce();
    let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
    let mut flight: VecDeque<_> = std::iter::from_fn(|| rig.poll(true)).collect();
    let sequences: Vec<_> = flight.iter().map(sequence).collect();
    // The answers come in another order than the requests went.
    rig.settle(flight.remove(1).unwrap(), Decision::Retry { stale_leader: true });
    assert!(rig.poll(true).is_none());
    rig.settle(flight.pop_front().unwrap(), Decision::Retry { stale_leader: true });
    for batch in flight {
        assert!(rig.poll(true).is_none());
        rig.settle(batch, Decision::Retry { stale_leader: true });
    }
    let again: Vec<_> = std::iter::from_fn(|| rig.poll(true)).collect();
    assert_eq!(again.iter().map(sequence).collect::<Vec<_>>(), sequences);
}

#[test]
fn what_could_leave_now_sets_no_timer() {
    let mut rig = Rig::new(limits());
    let _delivery = rig.send(0);
    let expiry = rig.now + Duration::from_secs(120);
    let batch = rig.poll(true).unwrap();
    let not_before = rig.now + Duration::from_millis(100);
    let retry = Decision::Retry { stale_leader: true };
    rig.queue.handle_decision(batch, retry, Some(not_before), || Error::closed("test"));
    assert_eq!(rig.queue.poll_timeout(rig.now), Some(not_before));
    // The back-off is over, and the leader is away: nobody asks for the batch.
    assert_eq!(rig.queue.poll_timeout(not_before), Some(expiry));
    let _second = rig.send(1);
    rig.now = not_before + Duration::from_millis(5);
    assert_eq!(rig.queue.poll_timeout(rig.now), Some(expiry));
}

#[test]
fn retries_end_where_the_setting_says() {
    let mut rig = Rig::new(Limits { retries: 1, ..limits() });
    let delivery = rig.send(0);
    for _ in 0..2 {
        let batch = rig.poll(true).unwrap();
        rig.settle(batch, Decision::Retry { stale_leader: false });
    }
    assert!(rig.poll(true).is_none());
    let error = futures_util::FutureExt::now_or_never(delivery).unwrap().unwrap_err();
    assert!(error.to_string().contains("raise retries"), "{error}");
    assert_eq!(rig.memory.used(), 0);
}

#[test]
fn an_old_batch_is_given_up_and_says_whether_it_may_be_written() {
    let mut rig = Rig::new(limits());
    let sent = rig.send(0);
    let mut batch = rig.poll(true).unwrap();
    batch.possibly_written = true;
    rig.settle(batch, Decision::Retry { stale_leader: true });
    let waiting = rig.send(1);
    rig.now += Duration::from_secs(120);
    for aftermath in rig.queue.expire(rig.now, || Error::new(ErrorKind::Timeout, "late")) {
        rig.memory.give_back(aftermath.freed);
    }
    let error = |delivery: Delivery| futures_util::FutureExt::now_or_never(delivery).unwrap().unwrap_err();
    assert!(error(sent).possibly_written() && !error(waiting).possibly_written());
    assert_eq!((rig.memory.used(), rig.queue.is_idle()), (0, true));
}

#[test]
fn memory_is_asked_for_when_there_is_none() {
    let mut rig = Rig::new(limits());
    rig.memory = Memory::new(250);
    let value = [0; 90];
    let size_bound = batch::record_size_bound(0, value.len(), &[]);
    let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
    let mut append = |credit: &mut usize| rig.queue.append(&parts, || rig.now, &rig.memory, credit);
    assert!(matches!(append(&mut 0), Appended::Done { .. }));
    let Appended::NeedMemory(missing) = append(&mut 0) else { panic!("there is no memory for a second") };
    let mut credit = missing;
    assert!(matches!(append(&mut credit), Appended::Done { .. }));
    assert_eq!(credit, 0);
}

/// What Kafka's log does with an idempotent producer's batches.
#[derive(Default)]
struct Log {
    ids: Vec<u32>,
    /// By producer id: the last five batches as (base sequence, count, base offset).
    producers: BTreeMap<i64, VecDeque<(i32, i32, i64)>>,
}

impl Log {
    fn append(&mut self, bytes: &Bytes) -> (i16, i64) {
        let raw = batch::split(bytes.clone()).next().unwrap().unwrap();
        let known = self.producers.entry(raw.producer_id).or_default();
        if let Some((.., offset)) =
            known.iter().find(|(base, count, _)| (*base, *count) == (raw.base_sequence(), raw.count))
        {
            return (0, *offset);
        }
        // KIP-360: of a producer it does not know, the broker takes any sequence for the first.
        let expected = known.back().map_or_else(|| raw.base_sequence(), |(base, count, _)| base + count);
        if raw.base_sequence() != expected {
            return (if raw.base_sequence() < expected { 46 } else { 45 }, -1);
        }
        let offset = self.ids.len() as i64;
        known.push_back((raw.base_sequence(), raw.count, offset));
        if known.len() > 5 {
            known.pop_front();
        }
        self.ids.extend(ids(bytes));
        (0, offset)
    }
}

/// One run: records sent while requests are answered, refused, lost before or after they were applied.
fn run(seed: u64, faults: usize) {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new(limits());
    let mut log = Log::default();
    let mut wire: VecDeque<Batch> = VecDeque::new();
    let mut deliveries = Vec::new();
    let mut faults = faults;
    loop {
        if deliveries.len() < 200 && rng.below(3) > 0 {
            deliveries.push(rig.send(deliveries.len() as u32));
        }
        if let Some(batch) = rig.poll(rng.below(4) == 0) {
            wire.push_back(batch);
        }
        rig.now += Duration::from_millis(rng.below(4) as u64);
        if rng.below(3) == 0 && !wire.is_empty() {
            if faults > 0 && rng.below(4) == 0 {
                faults -= 1;
                fault(&mut rig, &mut log, &mut wire, &mut rng);
            } else {
                let batch = wire.pop_front().unwrap();
                answer(&mut rig, &mut log, batch);
            }
        }
        if deliveries.len() == 200 && rig.queue.is_idle() {
            break;
        }
    }
    check(seed, &log, deliveries);
    assert_eq!(rig.memory.used(), 0, "seed {seed}");
}

fn answer(rig: &mut Rig, log: &mut Log, batch: Batch) {
    let (code, offset) = log.append(&batch.bytes);
    let decision = decide(ErrorCode(code), rig.queue.context(&batch));
    match decision {
        Decision::Acknowledge => rig.acknowledge(batch, offset),
        _ => rig.settle(batch, decision),
    }
}

fn fault(rig: &mut Rig, log: &mut Log, wire: &mut VecDeque<Batch>, rng: &mut Rng) {
    match rng.below(6) {
        // One batch is refused for a while, and those behind it are not.
        5 => {
            let batch = wire.pop_front().unwrap();
            rig.settle(batch, Decision::Retry { stale_leader: false });
        }
        // The leader moved: nothing in flight is taken.
        0 => {
            for batch in wire.drain(..) {
                rig.settle(batch, Decision::Retry { stale_leader: true });
            }
        }
        // The connection broke: some of what is in flight was applied, and nobody knows how much.
        1 | 2 => {
            let applied = rng.below(wire.len() + 1);
            for (place, mut batch) in wire.drain(..).enumerate() {
                if place < applied {
                    log.append(&batch.bytes);
                }
                batch.possibly_written = true;
                rig.settle(batch, Decision::Retry { stale_leader: true });
            }
        }
        // One batch is refused for good, or found too large.
        3 => {
            let batch = wire.pop_front().unwrap();
            let possibly_written = batch.possibly_written;
            rig.settle(batch, Decision::Fail { possibly_written });
        }
        _ => {
            let batch = wire.pop_front().unwrap();
            let decision = decide(ErrorCode(10), rig.queue.context(&batch));
            // A batch that was applied is a duplicate to the broker, not too large.
            if batch.possibly_written { wire.push_front(batch) } else { rig.settle(batch, decision) }
        }
    }
}

fn check(seed: u64, log: &Log, deliveries: Vec<Delivery>) {
    for (id, delivery) in deliveries.into_iter().enumerate() {
        let copies = log.ids.iter().filter(|logged| **logged == id as u32).count();
        match futures_util::FutureExt::now_or_never(delivery) {
            Some(Ok(metadata)) => {
                assert_eq!(copies, 1, "seed {seed}: acknowledged record {id} is in the log {copies} times");
                if metadata.offset >= 0 {
                    assert_eq!(
                        log.ids[metadata.offset as usize], id as u32,
                        "seed {seed}: offset of record {id}"
                    );
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
    assert!(log.ids.is_sorted(), "seed {seed}: the log's order is {:?}", log.ids);
}

#[test]
fn every_acknowledged_record_is_in_the_log_once_and_in_order_whatever_the_network_does() {
    for seed in 0..2000 {
        run(seed, 20);
    }
}
