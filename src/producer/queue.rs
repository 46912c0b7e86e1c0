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
//! (KIP-516). What is in flight to the old one lands before anything goes to the new one, and there one batch goes alone.
//!
//! A batch that may be in the log keeps its stamp for ever. Where the sequence no longer fits, such batches are asked for one
//! by one, under that stamp, as long as nothing older waits; what cannot be proved fails and says so.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    accumulator::{Accumulator, Appended, Limits, OpenBatch, Pace, Parts},
    decision::{Context, Decision},
    identity::{NotYet, ProducerIdentity, Sequences, Settled, sequence_after},
    memory::Memory,
    receipt::{Ack, Outcome, Part, Receipt},
};
use crate::{
    batch::{self, EncodedBatch, Stamp},
    cluster::{Place, TopicId, are_two_lives},
    error::{Error, ErrorKind, Result},
    time::Instant,
};

/// Attempts of a batch for which a leader that is newer ends its pause.
const MOST_HURRIED: u32 = 3;

/// A batch's place in its partition: its number, and behind a split the first of its records in the batch it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    batch: u64,
    record: i32,
}

#[cfg(test)]
impl Order {
    pub(crate) fn test(batch: u64) -> Self {
        Self { batch, record: 0 }
    }
}

/// A batch as it goes over the wire.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) count: i32,
    /// Some attempt has no answer, or one that leaves open what happened.
    pub(crate) possibly_written: bool,
    pub(super) receipt: Arc<Receipt>,
    /// When `delivery.timeout.ms` ends.
    deadline: Instant,
    order: Order,
    /// `None` without idempotence, and once the stamp is of no more use.
    stamp: Option<Stamp>,
    /// `bytes` carry another stamp.
    stale_bytes: bool,
    reserved: usize,
    pub(super) attempts: u32,
    /// How often bad records were taken out of it.
    pub(super) purges: u32,
    /// The end of its back-off (KIP-580).
    not_before: Option<Instant>,
    /// Why the last attempt failed.
    cause: Option<Error>,
}

impl Batch {
    pub(super) fn new(
        encoded: EncodedBatch,
        receipt: Arc<Receipt>,
        deadline: Instant,
        order: Order,
        stamp: Option<Stamp>,
        reserved: usize,
    ) -> Self {
        Self {
            bytes: encoded.bytes,
            count: encoded.count,
            possibly_written: false,
            receipt,
            deadline,
            order,
            stamp,
            stale_bytes: false,
            reserved,
            attempts: 0,
            purges: 0,
            not_before: None,
            cause: None,
        }
    }

    /// The batch is being sent (again). To be called outside the partition's lock: it may sum over all bytes.
    pub(super) fn prepare(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        if let (true, Some(stamp)) = (std::mem::take(&mut self.stale_bytes), self.stamp) {
            self.bytes = batch::restamp(std::mem::take(&mut self.bytes), stamp);
        }
    }
}

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
    /// What became of batches, to be told.
    pub(crate) resolved: Vec<(Arc<Receipt>, Outcome)>,
    /// Something was acknowledged under the current identity.
    pub(crate) proven: bool,
    /// Nothing more can be proved under this identity.
    pub(crate) bump: Option<ProducerIdentity>,
    /// A broker refuses this identity.
    pub(crate) renew: Option<ProducerIdentity>,
}

/// What is remembered of a batch in flight.
#[derive(Debug)]
struct Flying {
    deadline: Instant,
    receipt: Arc<Receipt>,
    /// Its time is over, or its transaction was given up: it is not sent again.
    given_up: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    limits: Arc<Limits>,
    accumulator: Accumulator,
    /// Sorted by `order`.
    pending: VecDeque<Batch>,
    in_flight: BTreeMap<Order, Flying>,
    next_order: u64,
    sequences: Sequences,
    /// Something went wrong: nothing leaves until the flight has landed.
    recovering: bool,
    /// All zeros where unknown.
    topic_id: TopicId,
    /// -1 where unknown.
    leader_epoch: i32,
    /// The topic was made again since the last batch left.
    made_again: bool,
}

impl Queue {
    pub(crate) fn new(topic: Arc<str>, partition: i32, limits: Arc<Limits>) -> Self {
        let accumulator = Accumulator::new(topic, partition, Arc::clone(&limits));
        Self {
            limits,
            accumulator,
            pending: VecDeque::new(),
            in_flight: BTreeMap::new(),
            next_order: 0,
            sequences: Sequences::default(),
            recovering: false,
            topic_id: TopicId::default(),
            leader_epoch: -1,
            made_again: false,
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
    pub(crate) fn unresolved(&self) -> impl Iterator<Item = &Arc<Receipt>> {
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
        landed && self.in_flight.len() < self.limits.max_in_flight && self.has_ready(now, pace)
    }

    fn has_ready(&self, now: Instant, pace: Pace) -> bool {
        match self.pending.front() {
            Some(first) => first.not_before.is_none_or(|time| time <= now),
            None => self.accumulator.has_ready(now, pace),
        }
    }

    /// Where the partition is now, before a batch is asked for. Whoever waited for its old leader goes to a new one at once
    /// (KIP-951).
    pub(crate) fn handle_place(&mut self, place: &Place) {
        if (place.topic_id, place.leader_epoch) == (self.topic_id, self.leader_epoch) {
            return;
        }
        if are_two_lives(self.topic_id, place.topic_id) {
            self.made_again = true;
            self.recovering = true;
        }
        if self.made_again || place.leader_epoch > self.leader_epoch {
            // A broker that names a newer leader with each refusal hurries nobody for ever.
            let most = if self.made_again { u32::MAX } else { MOST_HURRIED };
            let hurried = self.pending.iter_mut().filter(|batch| batch.attempts <= most);
            hurried.for_each(|batch| batch.not_before = None);
        }
        self.leader_epoch = place.leader_epoch;
        if place.topic_id != TopicId::default() {
            // One that is not told for a while, by an older broker, may be another when it is told again.
            self.topic_id = place.topic_id;
        }
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
        if std::mem::take(&mut self.made_again) {
            // Only now: an answer of the old log proves nothing to the new one.
            self.sequences.forget_proof();
        }
        if self.limits.idempotent && !self.settle_identity(identity) {
            return None;
        }
        if let Some(batch) = self.pending.pop_front() {
            return self.poll_pending(batch);
        }
        let count = self.accumulator.first_count()?;
        let stamp = match self.limits.idempotent {
            true => self.sequences.stamp(count, self.limits.transactional)?,
            false => Stamp::NONE,
        };
        let open = self.accumulator.take_first()?;
        let order = Order { batch: self.next_order, record: 0 };
        self.next_order += 1;
        self.fly(order, open.deadline(&self.limits), Arc::clone(&open.receipt));
        Some(Taken::First { open, stamp, order })
    }

    /// Whether the next batch has an identity to leave under; takes a new one over where that is due.
    fn settle_identity(&mut self, current: Result<Option<ProducerIdentity>, NotYet>) -> bool {
        let idle = self.in_flight.is_empty();
        if self.sequences.is_unproven() && !idle {
            return false;
        }
        // What may be written is asked for under the stamp it has, one by one where the sequence does not fit.
        if self.pending.iter().any(|batch| batch.possibly_written) {
            return idle || self.sequences.is_intact();
        }
        let own = self.sequences.identity();
        match current {
            Ok(Some(current)) if idle => match self.sequences.settle(current) {
                Settled::Unchanged => true,
                Settled::Renumber => {
                    self.pending.iter_mut().for_each(|batch| batch.stamp = None);
                    true
                }
                Settled::Wait => false,
            },
            // A healthy partition goes on under the identity it has. In a transaction everybody changes together.
            Ok(current) if current == own || !self.limits.transactional => self.sequences.is_intact(),
            Err(NotYet) if !self.limits.transactional => own.is_some() && self.sequences.is_intact(),
            Ok(_) | Err(NotYet) => false,
        }
    }

    fn poll_pending(&mut self, mut batch: Batch) -> Option<Taken> {
        if self.limits.idempotent {
            if batch.stamp.is_none() {
                batch.stamp = self.sequences.stamp(batch.count, self.limits.transactional);
                batch.stale_bytes = true;
            }
            if batch.stamp.is_none() {
                self.pending.push_front(batch);
                return None;
            }
            // It is asked for under a stamp that does not fit: until that has its answer nothing may pass it.
            self.recovering = !self.sequences.is_intact();
        }
        self.fly(batch.order, batch.deadline, Arc::clone(&batch.receipt));
        Some(Taken::Again(batch))
    }

    fn fly(&mut self, order: Order, deadline: Instant, receipt: Arc<Receipt>) {
        self.in_flight.insert(order, Flying { deadline, receipt, given_up: false });
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
        // What could leave now waits for an event, such as a connection, not for a time: one that has passed would make
        // the task spin.
        expiry.into_iter().chain(waiting.filter(|due| *due > now)).min()
    }

    /// Gives up batches whose time is over. One in flight is told so now, and its answer, when it comes, only says how far the
    /// log is: its neighbours in the request are none the wiser.
    pub(crate) fn expire(&mut self, now: Instant, aftermath: &mut Aftermath) {
        for flying in self.in_flight.values_mut() {
            if flying.deadline <= now && !flying.given_up {
                flying.given_up = true;
                let error =
                    delivery_timeout("a request with it has no answer yet").with_possibly_written(true);
                aftermath.resolved.push((Arc::clone(&flying.receipt), Outcome::Failed(error)));
            }
        }
        if self.pending.iter().any(|batch| batch.deadline <= now) {
            for batch in std::mem::take(&mut self.pending) {
                if batch.deadline <= now {
                    let error = delivery_timeout("it waited to be sent again");
                    let error = match &batch.cause {
                        Some(cause) => with_cause(error, cause),
                        None => error,
                    };
                    self.take_out(batch, error, aftermath);
                } else {
                    self.pending.push_back(batch);
                }
            }
        }
        while let Some(open) = self.accumulator.take_expired(now) {
            let error = delivery_timeout("it waited for its leader");
            aftermath.resolved.push((open.receipt, Outcome::Failed(error)));
            self.release(open.reserved, None, aftermath);
        }
        self.after_landing(aftermath);
    }

    /// What is known of a batch in flight besides its answer.
    pub(crate) fn context(&self, batch: &Batch) -> Context {
        let first_in_flight = self.in_flight.keys().next().copied();
        let first_pending = self.pending.front().map(|batch| batch.order);
        let predecessors_pending =
            first_in_flight.into_iter().chain(first_pending).any(|order| order < batch.order);
        Context {
            idempotent: self.limits.idempotent,
            transactional: self.limits.transactional,
            count: batch.count,
            possibly_written: batch.possibly_written,
            predecessors_pending,
            behind_gap: self.sequences.has_gap(),
        }
    }

    /// A batch that was in flight is in the log.
    pub(crate) fn handle_acknowledged(&mut self, batch: Batch, ack: Ack, aftermath: &mut Aftermath) {
        self.in_flight.remove(&batch.order);
        if let Some(stamp) = &batch.stamp {
            self.sequences.handle_acknowledged(stamp, batch.order, batch.count);
            aftermath.proven = true;
        }
        aftermath.resolved.push((batch.receipt, Outcome::Acknowledged(ack)));
        self.release(batch.reserved, Some(batch.bytes), aftermath);
        self.after_landing(aftermath);
    }

    /// Carries out a decision on a batch that was in flight and is not in the log, or not for sure. `retry_at`: the end of
    /// its back-off.
    pub(crate) fn handle_refused(
        &mut self,
        mut batch: Batch,
        decision: Decision,
        retry_at: Instant,
        error: Error,
        aftermath: &mut Aftermath,
    ) {
        let given_up = self.in_flight.remove(&batch.order).is_none_or(|flying| flying.given_up);
        self.recovering = true;
        let exhausted = batch.attempts > self.limits.retries;
        match decision {
            Decision::Retry { .. } | Decision::Early | Decision::Bump | Decision::Reidentify if given_up => {
                self.take_out(batch, error, aftermath);
            }
            Decision::Retry { .. } | Decision::Bump | Decision::Reidentify if exhausted => {
                self.take_out(batch, error.with_hint("raise retries"), aftermath);
            }
            Decision::Renumber if given_up => self.take_out(batch, error, aftermath),
            Decision::Early => self.put_back(batch),
            Decision::Retry { .. } => {
                batch.not_before = Some(retry_at);
                batch.cause = Some(error);
                self.put_back(batch);
            }
            Decision::Renumber => {
                batch.stamp = None;
                self.sequences.leave_gap();
                self.put_back(batch);
            }
            Decision::Bump | Decision::Reidentify => {
                // At once the first time: only what is refused again and again must not storm the broker.
                batch.not_before = (batch.attempts > 1).then_some(retry_at);
                batch.cause = Some(error);
                batch.stamp = None;
                let broken = self.sequences.break_off();
                let verdict = match decision {
                    Decision::Bump => &mut aftermath.bump,
                    _ => &mut aftermath.renew,
                };
                *verdict = broken;
                self.put_back(batch);
            }
            Decision::Fatal => self.take_out(batch, error.with_fatal(), aftermath),
            Decision::Acknowledge | Decision::Split | Decision::Fail { .. } => {
                self.take_out(batch, error, aftermath);
            }
        }
        self.after_landing(aftermath);
    }

    /// Two halves in place of a batch the broker finds too large (`max.message.bytes`). They keep its sequence numbers, so
    /// that what was sent behind it still fits.
    pub(crate) fn handle_split(
        &mut self,
        batch: Batch,
        halves: [EncodedBatch; 2],
        aftermath: &mut Aftermath,
    ) {
        self.in_flight.remove(&batch.order);
        self.recovering = true;
        let stamp = batch.stamp.filter(|stamp| self.sequences.is_intact() && self.sequences.is_own(stamp));
        let mut parts = Vec::with_capacity(2);
        let mut first = 0;
        let mut reserved = batch.reserved;
        for half in halves {
            let receipt = Receipt::part_of(&batch.receipt, half.count.unsigned_abs());
            parts.push(Part { first: first as u32, index: 0, receipt: Arc::clone(&receipt) });
            let order = Order { record: batch.order.record + first, ..batch.order };
            let stamp = stamp
                .map(|stamp| Stamp { base_sequence: sequence_after(stamp.base_sequence, first), ..stamp });
            first += half.count;
            // All of the memory is given back with the halves, each time with the answer of one.
            let share = if first < batch.count { reserved / 2 } else { reserved };
            reserved -= share;
            let mut half = Batch::new(half, receipt, batch.deadline, order, stamp, share);
            half.stale_bytes = true;
            half.attempts = batch.attempts;
            half.purges = batch.purges;
            self.put_back(half);
        }
        aftermath.resolved.push((batch.receipt, Outcome::Split(parts)));
        self.after_landing(aftermath);
    }

    /// Some records of a batch were refused, and therefore all of it (KIP-467): the others go on without them. `kept`: the
    /// batch without them; `parts`: where each record is now.
    pub(crate) fn handle_purged(
        &mut self,
        batch: Batch,
        kept: EncodedBatch,
        kept_receipt: Arc<Receipt>,
        parts: Vec<Part>,
        aftermath: &mut Aftermath,
    ) {
        self.in_flight.remove(&batch.order);
        self.recovering = true;
        if batch.stamp.is_some() {
            self.sequences.leave_gap();
        }
        let mut rest = Batch::new(kept, kept_receipt, batch.deadline, batch.order, None, batch.reserved);
        rest.attempts = batch.attempts;
        rest.purges = batch.purges + 1;
        self.put_back(rest);
        aftermath.resolved.push((batch.receipt, Outcome::Split(parts)));
        self.after_landing(aftermath);
    }

    /// A batch is not in the log and not sent again; `parts` say why, record by record.
    pub(crate) fn handle_taken_apart(&mut self, batch: Batch, parts: Vec<Part>, aftermath: &mut Aftermath) {
        self.in_flight.remove(&batch.order);
        self.recovering = true;
        if batch.stamp.is_some() {
            self.sequences.leave_gap();
        }
        aftermath.resolved.push((batch.receipt, Outcome::Split(parts)));
        self.release(batch.reserved, Some(batch.bytes), aftermath);
        self.after_landing(aftermath);
    }

    /// Whether a batch in flight will not be sent again whatever its answer.
    pub(crate) fn is_given_up(&self, batch: &Batch) -> bool {
        self.in_flight.get(&batch.order).is_none_or(|flying| flying.given_up)
    }

    /// A batch that was taken could not even be sealed.
    pub(crate) fn abandon(
        &mut self,
        order: Order,
        receipt: Arc<Receipt>,
        reserved: usize,
        error: Error,
        aftermath: &mut Aftermath,
    ) {
        self.in_flight.remove(&order);
        self.recovering = true;
        self.sequences.leave_gap();
        aftermath.resolved.push((receipt, Outcome::Failed(error)));
        self.release(reserved, None, aftermath);
        self.after_landing(aftermath);
    }

    /// Fails what was not sent, and sends nothing of what is in flight again: the transaction is over.
    pub(crate) fn discard(&mut self, error: &Error, aftermath: &mut Aftermath) {
        for flying in self.in_flight.values_mut() {
            flying.given_up = true;
        }
        for batch in std::mem::take(&mut self.pending) {
            self.take_out(batch, error.clone(), aftermath);
        }
        let opens: Vec<OpenBatch> = self.accumulator.take_all().collect();
        for open in opens {
            aftermath.resolved.push((open.receipt, Outcome::Failed(error.clone())));
            self.release(open.reserved, None, aftermath);
        }
        self.after_landing(aftermath);
    }

    /// Fails everything that has no answer. Nothing leaves, and nothing is appended afterwards.
    pub(crate) fn end(&mut self, error: &Error, aftermath: &mut Aftermath) {
        for batch in self.pending.drain(..) {
            let error = error.clone().with_possibly_written(batch.possibly_written);
            aftermath.resolved.push((batch.receipt, Outcome::Failed(error)));
        }
        for open in self.accumulator.take_all() {
            aftermath.resolved.push((open.receipt, Outcome::Failed(error.clone())));
        }
        // Receipts resolve once: what is left is in flight.
        for receipt in self.accumulator.end() {
            let error = error.clone().with_possibly_written(true);
            aftermath.resolved.push((receipt, Outcome::Failed(error)));
        }
        for (_, flying) in std::mem::take(&mut self.in_flight) {
            let error = error.clone().with_possibly_written(true);
            aftermath.resolved.push((flying.receipt, Outcome::Failed(error)));
        }
        aftermath.freed += std::mem::take(&mut self.accumulator.bytes);
    }

    /// Fails a batch that was stamped, and says what that does to the sequence.
    fn take_out(&mut self, batch: Batch, error: Error, aftermath: &mut Aftermath) {
        if batch.stamp.is_some_and(|stamp| self.sequences.is_own(&stamp)) {
            if batch.possibly_written {
                aftermath.bump = self.sequences.break_off();
            } else {
                self.sequences.leave_gap();
            }
        }
        let error = error.with_possibly_written(batch.possibly_written);
        aftermath.resolved.push((batch.receipt, Outcome::Failed(error)));
        self.release(batch.reserved, Some(batch.bytes), aftermath);
    }

    /// Once nothing is in flight and the sequence does not fit: a batch that may be written cannot be asked for while an older
    /// one waits that certainly is not, since the log might take it first. It fails, and says so.
    fn after_landing(&mut self, aftermath: &mut Aftermath) {
        if self.sequences.is_intact() || !self.in_flight.is_empty() || !self.limits.idempotent {
            return;
        }
        if self.pending.front().is_none_or(|first| first.possibly_written) {
            return;
        }
        for batch in std::mem::take(&mut self.pending) {
            if batch.possibly_written {
                let error = Error::new(
                    ErrorKind::Disconnected,
                    "an earlier batch of the partition was refused, and the answer to this one was lost",
                );
                let error = match &batch.cause {
                    Some(cause) => with_cause(error, cause),
                    None => error,
                };
                self.take_out(batch, error, aftermath);
            } else {
                self.pending.push_back(batch);
            }
        }
    }

    fn put_back(&mut self, batch: Batch) {
        let place = self.pending.partition_point(|other| other.order < batch.order);
        self.pending.insert(place, batch);
    }

    fn release(&mut self, reserved: usize, buffer: Option<Bytes>, aftermath: &mut Aftermath) {
        self.accumulator.bytes = self.accumulator.bytes.saturating_sub(reserved);
        aftermath.freed += reserved;
        aftermath.buffers.extend(buffer);
    }
}

fn delivery_timeout(what: &str) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the record was not acknowledged within delivery.timeout.ms: {what}"),
    )
    .with_hint("raise delivery.timeout.ms, or see to the broker")
}

/// Names the cause, and its remedy in place of a general one.
fn with_cause(error: Error, cause: &Error) -> Error {
    let error = match cause.hint() {
        Some(hint) => error.with_hint(hint),
        None => error,
    };
    error.with_source(cause.clone())
}

#[cfg(test)]
mod tests;
