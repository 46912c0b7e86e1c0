//! One partition's batches on their way: what waits, what is in flight, and what must be sent again. Pure.
//!
//! ```text
//!  append ─> open ──(full, lingered, flushed)──> closed ──stamp──> in flight ──ack──> receipt
//!                                                                   │    ▲
//!                              retry with the same stamp, renumbered, ▼    │
//!                              in halves, without its bad records ──> pending
//! ```
//! Order: batches leave in the order of their `order` number. After any answer but an acknowledgment nothing leaves
//! until all that is in flight has landed; then `pending` goes first. So a partition's records are never reordered
//! while idempotence is on (KIP-98 allows five in flight).
//!
//! A topic that was made again has another log, which knows nothing of this producer and takes any sequence for the first
//! (KIP-516). Everything in flight to the old log is answered before anything is sent to the new one, where the first batch
//! is sent alone.
//!
//! A batch that may be in the log keeps its stamp. It is sent again alone: nothing leaves behind it before its answer, which
//! says whether it is in the log. If the sequence no longer fits, it is retried only while nothing older waits. A batch of
//! which it cannot be found out whether it is in the log fails, and its error says that it may be written.

mod closed;
mod refused;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;

pub(crate) use self::closed::{Batch, Order};
use super::{
    accumulator::{Accumulator, Appended, Limits, OpenBatch, Pace, Parts},
    identity::{NotYet, ProducerIdentity, Sequences, Settled},
    memory::Memory,
    receipt::{Ack, BatchOutcome, ReceiptStub},
};
use crate::{
    batch::Stamp,
    cluster::{Leadership, TopicId, are_two_lives},
    error::{Error, Result},
    sorted::Map,
    time::Instant,
};

/// A broker forgets a producer that has sent nothing for `producer.id.expiration.ms`, a day unless set: long before that one
/// batch goes alone again.
const PROOF_LASTS: Duration = Duration::from_secs(600);

/// So many batches of each producer a broker remembers. Java: `ProducerStateEntry.NUM_BATCHES_TO_RETAIN`.
const REMEMBERED: u64 = 5;

/// A newer leader ends the pause of a batch with at most so many attempts.
const MOST_HURRIED: u32 = 3;

/// A batch that may leave now.
#[derive(Debug)]
pub(crate) enum Taken {
    /// For the first time: to be sealed outside the lock.
    First {
        open: OpenBatch,
        stamp: Stamp,
        order: Order,
    },
    Again(Batch),
}

/// What must be done once the partition's lock is free again.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    /// Bytes of memory that are free again.
    pub(crate) freed: usize,
    /// Buffers that can be used again.
    pub(crate) buffers: Vec<Bytes>,
    /// The outcomes of batches, with which their receipts are to be resolved.
    pub(crate) resolved: Vec<(ReceiptStub, BatchOutcome)>,
    pub(crate) verdicts: Verdicts,
}

/// What the partition has found out about the producer's identity.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    /// Something was acknowledged under it.
    pub(crate) proven: bool,
    /// Nothing more can be proved under this one.
    pub(crate) bump: Option<ProducerIdentity>,
    /// A broker refuses this one.
    pub(crate) renew: Option<ProducerIdentity>,
}

impl Aftermath {
    /// Whether there is nothing to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.freed == 0 && self.buffers.is_empty() && self.resolved.is_empty()
    }

    /// Keeps memory for a usual answer's batches, and not what an outage took that ended very many at once.
    pub(crate) fn trim(&mut self) {
        const KEPT: usize = 256;
        self.buffers.shrink_to(KEPT);
        self.resolved.shrink_to(KEPT);
    }
}

/// What is remembered of a batch in flight.
#[derive(Debug)]
struct InFlight {
    /// How many attempts of any batch had left before this one.
    left_before: u64,
    /// Nothing was in flight when it left.
    alone: bool,
    /// The topic as it was when this left.
    topic_id: TopicId,
    deadline: Instant,
    receipt: ReceiptStub,
    /// Its time is over, or its transaction was given up: it is not sent again.
    given_up: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    limits: Arc<Limits>,
    accumulator: Accumulator,
    /// Sorted by `order`.
    pending: VecDeque<Batch>,
    in_flight: Map<Order, InFlight>,
    next_order: u64,
    /// How many attempts of batches have left so far.
    departures: u64,
    sequences: Sequences,
    /// Something went wrong: nothing leaves until the flight has landed.
    recovering: bool,
    /// All zeros where unknown.
    topic_id: TopicId,
    /// -1 where unknown.
    leader_epoch: i32,
    /// The topic was made again since the last batch left.
    made_again: bool,
    /// When a batch left last.
    left_at: Option<Instant>,
}

impl Queue {
    pub(crate) fn new(topic: Arc<str>, partition: i32, limits: Arc<Limits>) -> Self {
        let accumulator = Accumulator::new(topic, partition, Arc::clone(&limits));
        Self {
            limits,
            accumulator,
            pending: VecDeque::new(),
            in_flight: Map::new(),
            next_order: 0,
            departures: 0,
            sequences: Sequences::default(),
            recovering: false,
            topic_id: TopicId::default(),
            leader_epoch: -1,
            made_again: false,
            left_at: None,
        }
    }

    /// Encodes a record into the open batch. `credit`: bytes the caller has already waited for.
    #[inline]
    pub(crate) fn append(
        &mut self,
        parts: &Parts<'_>,
        now: impl FnOnce() -> Instant,
        memory: &Memory,
        credit: &mut usize,
    ) -> Appended {
        self.accumulator.append(parts, now, memory, credit)
    }

    /// Closes the open batch, so that it leaves as soon as it can.
    pub(crate) fn close_open(&mut self) {
        self.accumulator.close_open();
    }

    /// Receipts whose batches have no answer yet.
    pub(crate) fn unresolved(&self) -> impl Iterator<Item = &ReceiptStub> {
        self.accumulator.unresolved()
    }

    /// Lets go of receipts that were answered.
    pub(crate) fn forget_resolved(&mut self) {
        self.accumulator.forget_resolved();
    }

    /// Bytes of memory held by batches here, in flight included.
    pub(crate) fn bytes(&self) -> usize {
        self.accumulator.bytes
    }

    /// Batches in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether there is nothing to send and nothing in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.accumulator.is_empty() && self.pending.is_empty() && self.in_flight.is_empty()
    }

    /// The task forgets this queue if nothing is left; the next append schedules it again.
    pub(crate) fn unschedule_if_idle(&mut self) -> bool {
        let idle = self.is_idle();
        if idle {
            self.accumulator.unschedule();
        }
        idle
    }

    /// Whether a batch could leave now, if its identity and its leader allow it.
    pub(crate) fn is_ready(&self, now: Instant, pace: Pace) -> bool {
        let landed = !self.recovering || self.in_flight.is_empty();
        landed && self.has_room() && self.has_ready(now, pace)
    }

    /// Answers may overtake each other when the leader has changed or its connection was replaced. However many later
    /// batches are acknowledged, the oldest one without an answer must stay among those that the broker remembers.
    fn has_room(&self) -> bool {
        let awaited = self.in_flight.values().find(|flying| !flying.given_up);
        let span = awaited.map_or(0, |oldest| self.departures - oldest.left_before);
        self.in_flight.len() < self.limits.max_in_flight && (!self.limits.idempotent || span < REMEMBERED)
    }

    fn has_ready(&self, now: Instant, pace: Pace) -> bool {
        match self.pending.front() {
            Some(first) => first.not_before.is_none_or(|time| time <= now),
            None => self.accumulator.has_ready(now, pace),
        }
    }

    /// Bytes of the next batch at most: one that was never sent may still be compressed.
    pub(crate) fn next_len(&self) -> usize {
        self.pending.front().map_or_else(|| self.accumulator.first_len(), |batch| batch.bytes.len())
    }

    /// Who leads the partition now; to be called before a batch is asked for. Whoever waited for its old leader goes to a
    /// new one at once (KIP-951).
    pub(crate) fn handle_leadership(&mut self, leadership: &Leadership, aftermath: &mut Aftermath) {
        if (leadership.topic_id, leadership.leader_epoch) == (self.topic_id, self.leader_epoch) {
            return;
        }
        if are_two_lives(self.topic_id, leadership.topic_id) {
            self.made_again = true;
            self.recovering = true;
        }
        if self.made_again || leadership.leader_epoch > self.leader_epoch {
            // Only the first attempts are hurried, or a broker that names a newer leader with each refusal would do away
            // with every pause.
            let most = if self.made_again { u32::MAX } else { MOST_HURRIED };
            let hurried = self.pending.iter_mut().filter(|batch| batch.attempts <= most);
            hurried.for_each(|batch| batch.not_before = None);
        }
        self.leader_epoch = leadership.leader_epoch;
        if leadership.topic_id != TopicId::default() {
            // An older broker names no id. The last one is kept meanwhile, so that a topic made again is noticed once ids
            // are named again.
            self.topic_id = leadership.topic_id;
        }
        self.give_up_earlier_life(aftermath);
    }

    /// The next batch that may leave.
    pub(crate) fn poll_batch(
        &mut self,
        now: Instant,
        pace: Pace,
        identity: Result<Option<ProducerIdentity>, NotYet>,
    ) -> Option<Taken> {
        if !self.is_ready(now, pace) {
            return None;
        }
        self.recovering = false;
        let is_forgotten =
            self.in_flight.is_empty() && self.left_at.is_some_and(|left_at| left_at + PROOF_LASTS <= now);
        if std::mem::take(&mut self.made_again) || is_forgotten {
            // Only now that nothing is in flight: an answer of the old log would count as proof, and says nothing of the
            // new one.
            self.sequences.forget_proof();
        }
        if self.limits.idempotent && !self.settle_identity(identity) {
            return None;
        }
        if let Some(batch) = self.pending.pop_front() {
            return self.poll_pending(now, batch);
        }
        let count = self.accumulator.first_count()?;
        let stamp = match self.limits.idempotent {
            true => self.sequences.stamp(count, self.limits.transactional)?,
            false => Stamp::NONE,
        };
        let open = self.accumulator.take_first()?;
        let order = Order { batch: self.next_order, record: 0 };
        self.next_order += 1;
        self.note_in_flight(now, order, open.deadline(&self.limits), open.receipt.clone());
        Some(Taken::First { open, stamp, order })
    }

    /// Whether the next batch has an identity to leave under; takes a new one over where that is due.
    fn settle_identity(&mut self, current: Result<Option<ProducerIdentity>, NotYet>) -> bool {
        let idle = self.in_flight.is_empty();
        if self.sequences.is_unproven() && !idle {
            return false;
        }
        let own = self.sequences.identity();
        let cluster = match current {
            Ok(current) => current.map(|current| current.cluster),
            Err(NotYet { cluster }) => Some(cluster),
        };
        // In another cluster than its own the id may be another producer's.
        let is_foreign = own.is_some_and(|own| Some(own.cluster) != cluster);
        // What may be written is sent again under the stamp it has, one batch at a time where the sequence does not fit.
        if self.pending.iter().any(|batch| batch.possibly_written) {
            return !is_foreign && (idle || self.sequences.is_intact());
        }
        match current {
            Ok(Some(current)) if idle => match self.sequences.settle(current) {
                Settled::Unchanged => true,
                Settled::Renumber => {
                    self.pending.iter_mut().for_each(|batch| batch.stamp = None);
                    true
                }
                Settled::Wait => false,
            },
            Ok(current) if current == own => self.sequences.is_intact(),
            // In a transaction everybody changes together.
            _ if self.limits.transactional => false,
            // A healthy partition goes on under the identity it has.
            _ => own.is_some() && self.sequences.is_intact() && !is_foreign,
        }
    }

    fn poll_pending(&mut self, now: Instant, mut batch: Batch) -> Option<Taken> {
        if self.limits.idempotent {
            if batch.stamp.is_none() {
                batch.stamp = self.sequences.stamp(batch.count, self.limits.transactional);
                batch.stale_bytes = true;
            }
            if batch.stamp.is_none() {
                self.pending.push_front(batch);
                return None;
            }
            // Nothing else leaves before this batch has its answer if its stamp does not fit, or if it may be written: a
            // broker remembers only the last five batches of a producer, and once all five were newer it would refuse
            // this one as out of order.
            self.recovering = batch.possibly_written || !self.sequences.is_intact();
        }
        self.note_in_flight(now, batch.order, batch.deadline, batch.receipt.clone());
        Some(Taken::Again(batch))
    }

    fn note_in_flight(&mut self, now: Instant, order: Order, deadline: Instant, receipt: ReceiptStub) {
        let (topic_id, left_before) = (self.topic_id, self.departures);
        self.left_at = Some(now);
        self.departures += 1;
        let alone = self.in_flight.is_empty();
        let in_flight = InFlight { left_before, alone, topic_id, deadline, receipt, given_up: false };
        self.in_flight.insert(order, in_flight);
    }

    /// When to look again if nothing happens before: the end of `linger.ms`, of a back-off, or of the oldest batch.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let flying = self.in_flight.values().filter(|flying| !flying.given_up).map(|flying| flying.deadline);
        let deadlines = self.pending.iter().map(|batch| batch.deadline).chain(flying);
        let expiry = deadlines.chain(self.accumulator.deadline()).min();
        let waiting = match self.pending.front() {
            Some(first) => first.not_before,
            None => self.accumulator.lingers_until(now),
        };
        // What could leave now waits for an event, such as a connection, and not for a time. A timer that has passed
        // would make the task spin.
        expiry.into_iter().chain(waiting.filter(|due| *due > now)).min()
    }

    /// A batch that was in flight is in the log.
    pub(crate) fn handle_acknowledged(&mut self, batch: Batch, ack: Ack, aftermath: &mut Aftermath) {
        self.in_flight.remove(&batch.order);
        if let Some(stamp) = &batch.stamp {
            self.sequences.handle_acknowledged(stamp, batch.order, batch.count);
            aftermath.verdicts.proven = true;
        }
        aftermath.resolved.push((batch.receipt, BatchOutcome::Acknowledged(ack)));
        self.release(batch.reserved, Some(batch.bytes), aftermath);
        self.after_landing(aftermath);
    }

    /// Fails everything that has no answer. Nothing leaves, and nothing is appended afterwards.
    pub(crate) fn end(&mut self, error: &Error, aftermath: &mut Aftermath) {
        for batch in self.pending.drain(..) {
            let error = error.clone().with_possibly_written(batch.possibly_written);
            aftermath.resolved.push((batch.receipt, BatchOutcome::Failed(error)));
        }
        for open in self.accumulator.take_all() {
            aftermath.resolved.push((open.receipt, BatchOutcome::Failed(error.clone())));
        }
        // A receipt resolves only once, so that of all these only batches in flight get this error.
        for receipt in self.accumulator.end() {
            let error = error.clone().with_possibly_written(true);
            aftermath.resolved.push((receipt, BatchOutcome::Failed(error)));
        }
        for (_, flying) in std::mem::take(&mut self.in_flight) {
            let error = error.clone().with_possibly_written(true);
            aftermath.resolved.push((flying.receipt, BatchOutcome::Failed(error)));
        }
        aftermath.freed += std::mem::take(&mut self.accumulator.bytes);
    }

    fn release(&mut self, reserved: usize, buffer: Option<Bytes>, aftermath: &mut Aftermath) {
        self.accumulator.bytes = self.accumulator.bytes.saturating_sub(reserved);
        aftermath.freed += reserved;
        aftermath.buffers.extend(buffer);
    }
}

#[cfg(test)]
mod tests;
