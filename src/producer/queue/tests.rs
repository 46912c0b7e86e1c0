//! A partition's queue in virtual time. What it does together with others is the sender's test.

use std::time::Duration;

use super::*;
use crate::{
    batch::{self, Compressor, Decompressor},
    config::Compression,
    error::{ErrorCode, ErrorKind, code},
    producer::{
        accumulator::CROWDED_LINGER,
        decision::{Decision, decide},
        receipt::{Ack, Delivery},
    },
};

const ME: ProducerIdentity = ProducerIdentity { id: 1, epoch: 0, cluster: 0 };

fn limits() -> Limits {
    Limits {
        batch_size: 400,
        linger: Duration::from_millis(5),
        delivery_timeout: Duration::from_secs(120),
        max_in_flight: 5,
        retries: u32::MAX,
        idempotent: true,
        transactional: false,
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
            memory: Memory::new(1 << 20, 400),
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
            other => panic!("{other:?}"),
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
        batch.prepare();
        Some(batch)
    }

    fn settle(&mut self, batch: Batch, decision: Decision) {
        let mut aftermath = Aftermath::default();
        let error = Error::closed("test");
        self.queue.handle_refused(batch, decision, self.now, error, &mut aftermath);
        self.tell(aftermath);
    }

    fn leadership(&mut self, leadership: &Leadership) {
        let mut aftermath = Aftermath::default();
        self.queue.handle_leadership(leadership, &mut aftermath);
        self.tell(aftermath);
    }

    fn tell(&mut self, aftermath: Aftermath) {
        for (receipt, outcome) in aftermath.resolved {
            receipt.resolve(outcome);
        }
        self.memory.give_back(aftermath.freed);
        if aftermath.verdicts.bump == Some(self.identity) {
            self.identity.epoch += 1;
        }
    }

    /// The broker gets to know the producer: from now on, several batches may be in flight.
    fn introduce(&mut self) {
        let _delivery = self.send(0);
        let batch = self.poll(true).unwrap();
        self.acknowledge(batch, 0);
    }

    fn acknowledge(&mut self, batch: Batch, base_offset: i64) {
        let mut aftermath = Aftermath::default();
        self.queue.handle_acknowledged(batch, Ack { base_offset, log_append_time: -1 }, &mut aftermath);
        self.tell(aftermath);
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
fn what_a_partition_holds_counts_until_it_is_answered() {
    let mut rig = Rig::new(limits());
    assert_eq!(rig.queue.bytes(), 0);
    let _delivery = rig.send(0);
    let held = rig.queue.bytes();
    assert!(held >= 60, "{held}");
    let batch = rig.poll(true).unwrap();
    assert!(rig.queue.bytes() >= 60, "it may have to go again");
    rig.acknowledge(batch, 0);
    assert_eq!(rig.queue.bytes(), 0);
}

#[test]
fn memory_buffers_and_outcomes_are_each_something_to_be_done() {
    assert!(Aftermath::default().is_empty());
    assert!(!Aftermath { freed: 1, ..Aftermath::default() }.is_empty());
    assert!(!Aftermath { buffers: vec![Bytes::new()], ..Aftermath::default() }.is_empty());
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
    assert!(rig.poll(true).is_none(), "were the first refused, the second would be taken in its leadership");
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
fn nothing_new_passes_a_batch_that_may_be_written_so_that_the_broker_still_knows_it() {
    let mut rig = Rig::new(limits());
    rig.introduce();
    let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
    let mut flight: VecDeque<_> = std::iter::from_fn(|| rig.poll(true)).collect();
    let mut first = flight.pop_front().unwrap();
    let number = sequence(&first);
    // Written, and not yet by enough replicas: those behind it are in the log.
    first.possibly_written = true;
    rig.settle(first, Decision::Retry { stale_leader: false });
    for (batch, offset) in flight.into_iter().zip(10..) {
        rig.acknowledge(batch, offset);
    }
    for _ in 0..3 {
        let again = rig.poll(true).unwrap();
        assert_eq!(sequence(&again), number);
        assert!(rig.poll(true).is_none(), "a broker knows the last five alone");
        rig.settle(again, Decision::Retry { stale_leader: false });
    }
    let again = rig.poll(true).unwrap();
    rig.acknowledge(again, 1);
    assert_eq!(std::iter::from_fn(|| rig.poll(true)).count(), 5);
}

#[test]
fn nothing_gets_more_than_five_ahead_of_a_batch_without_an_answer_however_soon_others_have_theirs() {
    let mut rig = Rig::new(limits());
    rig.introduce();
    let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
    // Its leader says nothing more, and has handed the log over: the next one answers all that follows.
    let silent = rig.poll(true).unwrap();
    for offset in 10..14 {
        let behind = rig.poll(true).unwrap();
        rig.acknowledge(behind, offset);
    }
    assert!(rig.poll(true).is_none(), "a broker knows the last five alone");
    rig.acknowledge(silent, 1);
    let flight: Vec<_> = std::iter::from_fn(|| rig.poll(true)).collect();
    assert_eq!(flight.len(), 5);
    // Nobody waits for one whose time is over.
    rig.now += Duration::from_secs(120);
    let mut aftermath = Aftermath::default();
    rig.queue.expire(rig.now, None, &mut aftermath);
    rig.tell(aftermath);
    let mut flight = flight.into_iter();
    let _silent = flight.next();
    flight.for_each(|batch| rig.acknowledge(batch, 20));
    let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
    for _ in 0..9 {
        let next = rig.poll(true).unwrap();
        rig.acknowledge(next, 30);
    }
}

#[test]
fn a_batch_that_was_refused_as_early_before_its_predecessor_was_told_to_be_written_keeps_its_stamp() {
    for possibly_written in [false, true] {
        let mut rig = Rig::new(limits());
        rig.introduce();
        let _deliveries: Vec<_> = (0..100).map(|id| rig.send(id)).collect();
        let [first, mut second] = [(); 2].map(|()| rig.poll(true).unwrap());
        let number = sequence(&second);
        second.possibly_written = possibly_written;
        // They went by two connections: the refusal is older than the answer that comes before it.
        rig.acknowledge(first, 1);
        let refused = ErrorCode(code::OUT_OF_ORDER_SEQUENCE_NUMBER);
        let decision = decide(refused, rig.queue.context(&second));
        assert_eq!(decision, Decision::Early);
        rig.settle(second, decision);
        let again = rig.poll(true).unwrap();
        assert_eq!((sequence(&again), rig.identity), (number, ME));
        // Alone on its way, it is refused for good.
        assert_ne!(decide(refused, rig.queue.context(&again)), Decision::Early);
    }
}

#[test]
fn what_ended_very_many_batches_at_once_leaves_little_memory_behind() {
    let mut aftermath = Aftermath::default();
    for count in [10, 10_000] {
        aftermath.buffers.extend((0..count).map(|_| Bytes::new()));
        let error = Error::closed("producer");
        let ended =
            (0..count).map(|_| (ReceiptStub::new("orders".into(), 0), BatchOutcome::Failed(error.clone())));
        aftermath.resolved.extend(ended);
        aftermath.buffers.clear();
        aftermath.resolved.clear();
        aftermath.trim();
        let kept = (aftermath.buffers.capacity(), aftermath.resolved.capacity());
        assert!((10..1000).contains(&kept.0) && (10..1000).contains(&kept.1), "{kept:?}");
    }
}

#[test]
fn what_could_leave_now_sets_no_timer() {
    let mut rig = Rig::new(limits());
    let _delivery = rig.send(0);
    let expiry = rig.now + Duration::from_secs(120);
    let batch = rig.poll(true).unwrap();
    assert_eq!(rig.queue.poll_timeout(rig.now), Some(expiry), "a batch in flight ends in time as well");
    let not_before = rig.now + Duration::from_millis(100);
    let retry = Decision::Retry { stale_leader: true };
    rig.queue.handle_refused(batch, retry, not_before, Error::closed("test"), &mut Aftermath::default());
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
    let mut aftermath = Aftermath::default();
    rig.queue.expire(rig.now, None, &mut aftermath);
    rig.tell(aftermath);
    let error = |delivery: Delivery| futures_util::FutureExt::now_or_never(delivery).unwrap().unwrap_err();
    let (sent, waiting) = (error(sent), error(waiting));
    assert!(sent.possibly_written() && !waiting.possibly_written());
    // Not its leader: what stood before it, and why.
    assert!(waiting.to_string().contains("earlier records of its partition"), "{waiting}");
    assert!(waiting.to_string().contains("is closed"), "{waiting}");
    assert_eq!((rig.memory.used(), rig.queue.is_idle()), (0, true));
}

#[test]
fn memory_is_asked_for_when_there_is_none() {
    let mut rig = Rig::new(limits());
    rig.memory = Memory::new(250, 400);
    let value = [0; 90];
    let size_bound = batch::record_size_bound(0, value.len(), &[]);
    let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
    let mut append = |credit: &mut usize| rig.queue.append(&parts, || rig.now, &rig.memory, credit);
    assert!(matches!(append(&mut 0), Appended::Done { .. }));
    let Appended::NeedMemory(missing) = append(&mut 0) else { panic!("there is no memory for a second") };
    let mut credit = missing;
    assert!(matches!(append(&mut credit), Appended::Done { .. }));
    assert!(credit < batch::BATCH_HEADER_LEN + size_bound, "what is not needed is given back");
}

#[test]
fn memory_that_was_waited_for_is_enough_whatever_batch_is_open_by_then() {
    let mut rig = Rig::new(limits());
    rig.memory = Memory::new(250, 400);
    let value = [0; 90];
    let size_bound = batch::record_size_bound(0, value.len(), &[]);
    let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
    assert!(matches!(rig.queue.append(&parts, || rig.now, &rig.memory, &mut 0), Appended::Done { .. }));
    // A few bytes are missing in the batch that is open.
    let appended = rig.queue.append(&parts, || rig.now, &rig.memory, &mut 0);
    let Appended::NeedMemory(missing) = appended else { panic!("there is no memory for a second") };
    // They come when that batch is gone and all its memory is with others who wait.
    let batch = rig.poll(true).unwrap();
    rig.acknowledge(batch, 0);
    assert!(rig.memory.try_take(250));
    let mut credit = missing;
    let appended = rig.queue.append(&parts, || rig.now, &rig.memory, &mut credit);
    assert!(matches!(appended, Appended::Done { .. }), "{appended:?}");
}

#[test]
fn when_it_has_ended_every_record_has_an_answer_and_none_is_taken() {
    let mut rig = Rig::new(limits());
    let flying = rig.send(0);
    let _batch = rig.poll(true).unwrap();
    let waiting = rig.send(1);
    let mut aftermath = Aftermath::default();
    rig.queue.end(&Error::closed("producer"), &mut aftermath);
    rig.tell(aftermath);
    let error = |delivery: Delivery| futures_util::FutureExt::now_or_never(delivery).unwrap().unwrap_err();
    let (flying, waiting) = (error(flying), error(waiting));
    assert!(flying.possibly_written() && !waiting.possibly_written());
    assert_eq!((flying.kind(), rig.memory.available()), (ErrorKind::Closed, 1 << 20));
    let parts = Parts { key: None, value: None, headers: &[], timestamp: 1, size_bound: 40 };
    let appended = rig.queue.append(&parts, || rig.now, &rig.memory, &mut 0);
    assert!(matches!(appended, Appended::Ended));
}

#[test]
fn what_is_discarded_is_not_sent_again_and_what_is_in_flight_keeps_its_answer() {
    let mut rig = Rig::new(limits());
    rig.introduce();
    let [first, second] = [1, 2].map(|id| {
        let delivery = rig.send(id);
        (delivery, rig.poll(true).unwrap())
    });
    let waiting = rig.send(3);
    let mut aftermath = Aftermath::default();
    rig.queue.discard(&Error::closed("transaction"), &mut aftermath);
    rig.tell(aftermath);
    rig.acknowledge(first.1, 1);
    rig.settle(second.1, Decision::Retry { stale_leader: false });
    let outcome = |delivery: Delivery| futures_util::FutureExt::now_or_never(delivery).unwrap().is_ok();
    assert_eq!((outcome(first.0), outcome(second.0), outcome(waiting)), (true, false, false));
    assert_eq!((rig.queue.is_idle(), rig.memory.available()), (true, 1 << 20));
}

fn leadership(topic: u8, leader_epoch: i32) -> Leadership {
    Leadership { leader: 1, leader_epoch, topic_id: [topic; 16] }
}

#[test]
fn a_topic_made_again_gets_nothing_before_the_old_one_has_answered_and_then_one_batch_at_a_time() {
    let mut rig = Rig::new(limits());
    rig.leadership(&leadership(1, 7));
    rig.introduce();
    let _sent: Vec<_> = (1..4).map(|id| rig.send(id)).collect();
    let first = rig.poll(true).unwrap();
    let _sent = rig.send(4);
    let second = rig.poll(true).unwrap();
    let _sent = rig.send(5);
    rig.leadership(&leadership(2, 0));
    assert!(rig.poll(true).is_none(), "what is out lands first");
    // The old topic has taken one, and is gone when the other comes.
    rig.acknowledge(first, 1);
    assert!(rig.poll(true).is_none());
    let number = sequence(&second);
    rig.settle(second, Decision::Retry { stale_leader: true });
    let again = rig.poll(true).unwrap();
    assert_eq!((sequence(&again), ids(&again.bytes)), (number, vec![4]));
    assert!(rig.poll(true).is_none(), "a second one could be taken for the first");
    rig.acknowledge(again, 0);
    assert_eq!(ids(&rig.poll(true).unwrap().bytes), [5]);
    let _sent = rig.send(6);
    assert!(rig.poll(true).is_some(), "the new log knows the producer");
}

#[test]
fn a_topic_whose_id_is_not_known_for_a_while_is_the_same_topic() {
    let mut rig = Rig::new(limits());
    rig.leadership(&leadership(0, -1));
    rig.introduce();
    rig.leadership(&leadership(1, 3));
    let _sent = rig.send(1);
    let first = rig.poll(true).unwrap();
    let _sent = rig.send(2);
    let second = rig.poll(true).unwrap();
    rig.leadership(&leadership(0, 3));
    let _sent = rig.send(3);
    let third = rig.poll(true).unwrap();
    rig.leadership(&leadership(2, 0));
    let _sent = rig.send(4);
    assert!(rig.poll(true).is_none(), "and this is another");
    for (batch, offset) in [(first, 1), (second, 2), (third, 3)] {
        rig.acknowledge(batch, offset);
    }
    assert_eq!(ids(&rig.poll(true).unwrap().bytes), [4]);
}

#[test]
fn a_newer_leader_is_asked_at_once_by_what_the_old_one_has_refused() {
    let mut rig = Rig::new(limits());
    rig.leadership(&leadership(1, 3));
    rig.introduce();
    let _sent = rig.send(1);
    let batch = rig.poll(true).unwrap();
    let (retry_at, error) = (rig.now + Duration::from_secs(1), Error::closed("test"));
    let decision = Decision::Retry { stale_leader: true };
    rig.queue.handle_refused(batch, decision, retry_at, error, &mut Aftermath::default());
    rig.leadership(&leadership(1, 3));
    assert!(rig.poll(true).is_none(), "it backs off");
    rig.leadership(&leadership(1, 4));
    assert!(rig.poll(true).is_some());
}

#[test]
fn what_may_be_in_the_log_of_a_topic_that_was_made_again_fails_and_never_goes_to_the_new_one() {
    // The answer is lost before the topic is known to be another, or after that.
    for is_known in [false, true] {
        let mut rig = Rig::new(limits());
        rig.leadership(&leadership(1, 7));
        rig.introduce();
        let lost = rig.send(1);
        let mut first = rig.poll(true).unwrap();
        let refused = rig.send(2);
        let second = rig.poll(true).unwrap();
        let waiting = rig.send(3);
        first.possibly_written = true;
        if is_known {
            rig.leadership(&leadership(2, 0));
            assert!(rig.poll(true).is_none());
        }
        rig.settle(first, Decision::Retry { stale_leader: true });
        rig.settle(second, Decision::Retry { stale_leader: true });
        rig.leadership(&leadership(2, 0));
        let error = futures_util::FutureExt::now_or_never(lost).expect("it is told at once").unwrap_err();
        assert!(error.possibly_written() && error.to_string().contains("made again"), "{error}");
        // What was certainly not taken goes to the new one, in order, under the next epoch.
        let mut written = Vec::new();
        while let Some(batch) = rig.poll(true) {
            written.extend(ids(&batch.bytes));
            rig.acknowledge(batch, written.len() as i64);
        }
        assert_eq!((written, rig.identity.epoch), (vec![2, 3], 1));
        assert!(futures_util::FutureExt::now_or_never(refused).unwrap().is_ok());
        assert!(futures_util::FutureExt::now_or_never(waiting).unwrap().is_ok());
    }
}

#[test]
fn nothing_goes_to_another_cluster_under_the_id_of_the_one_before_though_both_gave_the_same() {
    // Topics have no ids there.
    for may_be_written in [false, true] {
        let mut rig = Rig::new(limits());
        rig.introduce();
        let first = rig.send(1);
        let mut out = rig.poll(true).unwrap();
        let _second = rig.send(2);
        rig.identity.cluster += 1;
        assert!(rig.poll(true).is_none(), "what is out lands first");
        out.possibly_written = may_be_written;
        rig.settle(out, Decision::Retry { stale_leader: true });
        if may_be_written {
            assert!(
                rig.poll(true).is_none(),
                "the other cluster could take it for the batch of another producer"
            );
            let mut aftermath = Aftermath::default();
            rig.now += limits().delivery_timeout;
            rig.queue.expire(rig.now, None, &mut aftermath);
            rig.tell(aftermath);
            let _third = rig.send(3);
            let error = futures_util::FutureExt::now_or_never(first).unwrap().unwrap_err();
            assert!(error.possibly_written(), "{error}");
        }
        let next = rig.poll(true).expect("the new one is not broken");
        assert_eq!((sequence(&next), ids(&next.bytes)), (0, vec![if may_be_written { 3 } else { 1 }]));
    }
}

#[test]
fn a_record_that_fills_a_batch_by_itself_does_not_linger() {
    for batch_size in [0, 1, 100] {
        let mut rig = Rig::new(Limits { batch_size, linger: Duration::from_secs(60), ..limits() });
        let _sent = (rig.send(1), rig.send(2));
        assert_eq!(ids(&rig.poll(false).expect("it is full").bytes), [1], "batch.size {batch_size}");
    }
}
