//! One partition's records on their way: the open batch, full ones, and those to be sent again. Pure but for the count
//! of memory; the task takes batches out, sends them, and reports back.
//!
//! ```text
//!  append ─> open ──(full, lingered, flushed)──> closed ──stamp──> in flight ──ack──> receipt
//!                                                                   │    ▲
//!                                         retry, same stamp ────────▼    │
//!                                         restamp, split ────────> pending
//! ```
//! Order: batches leave in the order of their `order` number. After any answer but an acknowledgment nothing leaves
//! until all that is in flight has landed; then `pending` goes first. So a partition's records are never reordered
//! while idempotence is on (KIP-98 allows five in flight).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    identity::{NotYet, ProducerIdentity, Sequences},
    memory::Memory,
    outcome::{Context, Decision},
    receipt::{Delivery, Receipt},
};
use crate::{
    batch::{self, BatchBuilder, Compressor, EncodedBatch, Stamp},
    error::{Error, Result},
    record::Header,
    time::Instant,
};

/// What a batch starts with in memory; it grows by doubling.
const FIRST_RESERVATION: usize = 4096;

/// What an open batch waits for at least, whatever `linger.ms`, while requests to its leader are in flight: under load records
/// gather meanwhile, and the broker has a few requests to answer in place of thousands.
const CROWDED_LINGER: Duration = Duration::from_millis(1);

/// How long an open batch waits for more records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Not at all: there is a flush, a closing, or too little memory.
    Hurry,
    /// For `linger.ms`.
    Linger,
    /// Requests to the leader are in flight.
    Crowded,
}

impl Pace {
    /// `in_flight`: requests to the leader.
    pub(crate) fn new(hurry: bool, in_flight: usize) -> Self {
        match (hurry, in_flight) {
            (true, _) => Self::Hurry,
            (false, 0) => Self::Linger,
            (false, _) => Self::Crowded,
        }
    }
}

/// The settings a partition's queue obeys.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) batch_size: usize,
    pub(crate) linger: Duration,
    pub(crate) delivery_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) retries: u32,
    pub(crate) idempotent: bool,
}

/// The parts of a record that go into a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [Header],
    pub(crate) timestamp: i64,
    /// An upper bound of the record's size in a batch.
    pub(crate) size_bound: usize,
}

/// What became of an append.
#[derive(Debug)]
pub(crate) enum Appended {
    /// It is in a batch. `wake`: the task has something new to look at. `schedule`: and does not know this queue yet.
    Done { delivery: Delivery, wake: bool, schedule: bool },
    /// So many more bytes of memory must be taken first.
    NeedMemory(usize),
}

/// A batch's place in its partition: its number, and behind a split the first of its records in the batch it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    batch: u64,
    record: i32,
}

#[derive(Debug)]
pub(crate) struct OpenBatch {
    builder: BatchBuilder,
    receipt: Arc<Receipt>,
    created: Instant,
    reserved: usize,
}

/// A batch with its stamp, as it goes over the wire.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) receipt: Arc<Receipt>,
    pub(crate) count: i32,
    /// When `delivery.timeout.ms` ends.
    pub(crate) deadline: Instant,
    pub(crate) possibly_written: bool,
    created: Instant,
    order: Order,
    /// `None` once the stamp is of no more use.
    stamp: Option<Stamp>,
    reserved: usize,
    attempts: u32,
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

/// What the task must do after it reported an answer.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    /// Bytes of memory that are free again.
    pub(crate) freed: usize,
    /// A buffer that can be used again.
    pub(crate) buffer: Option<Bytes>,
    /// The identity that is of no more use.
    pub(crate) broken: Option<ProducerIdentity>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    topic: Arc<str>,
    partition: i32,
    limits: Arc<Limits>,
    open: Option<OpenBatch>,
    closed: VecDeque<OpenBatch>,
    /// Sorted by `order`.
    pending: VecDeque<Batch>,
    /// The orders of the batches in flight.
    in_flight: BTreeSet<Order>,
    next_order: u64,
    sequences: Sequences,
    /// Something went wrong: nothing leaves until the flight has landed.
    recovering: bool,
    not_before: Option<Instant>,
    /// Receipts without an answer, oldest first; answered ones are dropped when a batch is opened.
    unresolved: VecDeque<Arc<Receipt>>,
    /// The task knows that there is something here.
    scheduled: bool,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(topic: Arc<str>, partition: i32, limits: Arc<Limits>) -> Self {
        Self {
            topic,
            partition,
            limits,
            open: None,
            closed: VecDeque::new(),
            pending: VecDeque::new(),
            in_flight: BTreeSet::new(),
            next_order: 0,
            sequences: Sequences::default(),
            recovering: false,
            not_before: None,
            unresolved: VecDeque::new(),
            scheduled: false,
            bytes: 0,
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
        if let Some(open) = &mut self.open {
            let needed = open.builder.len() + parts.size_bound;
            if needed <= open.reserved {
                return Self::write(open, parts, &mut self.scheduled, false);
            }
            if needed <= self.limits.batch_size {
                return match reserve(memory, credit, needed, open.reserved, self.limits.batch_size) {
                    Ok(taken) => {
                        open.reserved += taken;
                        self.bytes += taken;
                        Self::write(open, parts, &mut self.scheduled, false)
                    }
                    Err(missing) => Appended::NeedMemory(missing),
                };
            }
            self.close_open();
        }
        self.open_batch(parts, now, memory, credit)
    }

    fn open_batch(
        &mut self,
        parts: &Parts<'_>,
        now: impl FnOnce() -> Instant,
        memory: &Memory,
        credit: &mut usize,
    ) -> Appended {
        let needed = batch::BATCH_HEADER_LEN + parts.size_bound;
        let reserved = match reserve(memory, credit, needed, 0, self.limits.batch_size) {
            Ok(reserved) => reserved,
            Err(missing) => return Appended::NeedMemory(missing),
        };
        while self.unresolved.front().is_some_and(|receipt| receipt.is_resolved()) {
            self.unresolved.pop_front();
        }
        let receipt = Receipt::new(Arc::clone(&self.topic), self.partition);
        self.unresolved.push_back(Arc::clone(&receipt));
        self.bytes += reserved;
        let builder = BatchBuilder::new(memory.buffer());
        let open = self.open.insert(OpenBatch { builder, receipt, created: now(), reserved });
        Self::write(open, parts, &mut self.scheduled, true)
    }

    #[inline]
    fn write(open: &mut OpenBatch, parts: &Parts<'_>, scheduled: &mut bool, wake: bool) -> Appended {
        let index = open.builder.count();
        open.builder.append(parts.timestamp, parts.key, parts.value, parts.headers);
        let delivery = Delivery::new(Arc::clone(&open.receipt), index as u32, parts.timestamp);
        let schedule = wake && !std::mem::replace(scheduled, true);
        Appended::Done { delivery, wake, schedule }
    }

    /// Closes the open batch, so that it leaves as soon as it can.
    pub(crate) fn close_open(&mut self) {
        self.closed.extend(self.open.take());
    }

    /// Receipts whose batches have no answer yet.
    pub(crate) fn unresolved(&self) -> impl Iterator<Item = &Arc<Receipt>> {
        self.unresolved.iter().filter(|receipt| !receipt.is_resolved())
    }

    /// Bytes of memory held by batches here, in flight included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to send and nothing in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none() && self.closed.is_empty() && self.pending.is_empty() && self.in_flight.is_empty()
    }

    /// The task forgets this queue if nothing is left; the next append schedules it again.
    pub(crate) fn unschedule_if_idle(&mut self) -> bool {
        let idle = self.is_idle();
        if idle {
            self.scheduled = false;
        }
        idle
    }

    /// The next batch that may leave.
    pub(crate) fn poll_batch(
        &mut self,
        now: Instant,
        pace: Pace,
        identity: Result<Option<ProducerIdentity>, NotYet>,
    ) -> Option<Taken> {
        if !self.may_leave(now) || !self.has_ready(now, pace) {
            return None;
        }
        if self.sequences.is_unproven() && !self.in_flight.is_empty() {
            return None;
        }
        let identity = identity.ok()?;
        if let Some(batch) = self.pending.pop_front() {
            return self.poll_pending(batch, identity);
        }
        if self.closed.is_empty() {
            self.close_open();
        }
        let count = self.closed.front()?.builder.count();
        let stamp = self.sequences.stamp(identity, count, self.in_flight.is_empty())?;
        let open = self.closed.pop_front()?;
        let order = Order { batch: self.next_order, record: 0 };
        self.next_order += 1;
        self.in_flight.insert(order);
        Some(Taken::First { open, stamp, order })
    }

    fn poll_pending(&mut self, mut batch: Batch, identity: Option<ProducerIdentity>) -> Option<Taken> {
        let idle = self.in_flight.is_empty();
        if batch.stamp.is_none() && idle {
            batch.stamp = self.sequences.stamp(identity, batch.count, idle);
            if let Some(stamp) = batch.stamp {
                batch.bytes = batch::restamp(std::mem::take(&mut batch.bytes), stamp);
            }
        }
        let fits = batch.stamp.as_ref().map(|stamp| self.sequences.fits(stamp));
        match fits {
            Some(true) => {}
            // Stamped under an identity that has been left: it is in the log already, or will be refused and stamped
            // anew. Until that is known nothing may pass it.
            Some(false) if idle => self.recovering = true,
            Some(false) | None => {
                self.pending.push_front(batch);
                return None;
            }
        }
        self.in_flight.insert(batch.order);
        Some(Taken::Again(batch))
    }

    fn may_leave(&mut self, now: Instant) -> bool {
        if self.recovering && self.in_flight.is_empty() {
            self.recovering = false;
        }
        if self.not_before.is_some_and(|time| time <= now) {
            self.not_before = None;
        }
        !self.recovering && self.not_before.is_none() && self.in_flight.len() < self.limits.max_in_flight
    }

    fn has_ready(&self, now: Instant, pace: Pace) -> bool {
        let linger = match pace {
            Pace::Hurry => Duration::ZERO,
            Pace::Linger => self.limits.linger,
            Pace::Crowded => self.limits.linger.max(CROWDED_LINGER),
        };
        let lingered = |open: &OpenBatch| open.created + linger <= now;
        !self.pending.is_empty() || !self.closed.is_empty() || self.open.as_ref().is_some_and(lingered)
    }

    /// When to look again if nothing happens before: the end of `linger.ms`, of a back-off, or of the oldest batch.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let expiry = self.oldest().map(|created| created + self.limits.delivery_timeout);
        let waiting = self.not_before.or_else(|| {
            let open = self.open.as_ref().filter(|_| self.pending.is_empty() && self.closed.is_empty())?;
            let lingers = [self.limits.linger, CROWDED_LINGER];
            lingers.into_iter().map(|linger| open.created + linger).find(|due| *due > now)
        });
        // What could leave now waits for an event, such as a connection, not for a time: one that has passed would make
        // the task spin.
        let waiting = waiting.filter(|due| *due > now);
        expiry.into_iter().chain(waiting).min()
    }

    fn oldest(&self) -> Option<Instant> {
        let waiting = self.closed.front().or(self.open.as_ref()).map(|open| open.created);
        self.pending.iter().map(|batch| batch.created).chain(waiting).min()
    }

    /// Gives up batches whose time is over; those in flight end with their request.
    pub(crate) fn expire(&mut self, now: Instant, error: impl Fn() -> Error) -> Vec<Aftermath> {
        let timeout = self.limits.delivery_timeout;
        let too_old = |created: Instant| created + timeout <= now;
        let mut given_up = Vec::new();
        if !self.oldest().is_some_and(too_old) {
            return given_up;
        }
        for batch in std::mem::take(&mut self.pending) {
            if too_old(batch.created) {
                batch.receipt.fail(error().with_possibly_written(batch.possibly_written));
                let broken = self.sequences.break_off();
                given_up.push(self.release(batch.reserved, Some(batch.bytes), broken));
            } else {
                self.pending.push_back(batch);
            }
        }
        while self.closed.front().or(self.open.as_ref()).is_some_and(|open| too_old(open.created)) {
            let Some(open) = self.closed.pop_front().or_else(|| self.open.take()) else { break };
            open.receipt.fail(error());
            given_up.push(self.release(open.reserved, None, None));
        }
        given_up
    }

    /// What is known of a batch in flight besides its answer.
    pub(crate) fn context(&self, batch: &Batch) -> Context {
        let first_in_flight = self.in_flight.first().copied();
        let first_pending = self.pending.front().map(|batch| batch.order);
        let predecessors_pending =
            first_in_flight.into_iter().chain(first_pending).any(|order| order < batch.order);
        Context {
            idempotent: self.limits.idempotent,
            count: batch.count,
            possibly_written: batch.possibly_written,
            predecessors_pending,
        }
    }

    /// Carries out a decision on a batch that was in flight. The receipt of an acknowledged batch is the caller's to
    /// resolve, outside the lock.
    pub(crate) fn handle_decision(
        &mut self,
        mut batch: Batch,
        decision: Decision,
        not_before: Option<Instant>,
        error: impl FnOnce() -> Error,
    ) -> Aftermath {
        self.in_flight.remove(&batch.order);
        let broken = match decision {
            Decision::Acknowledge => {
                if let Some(stamp) = &batch.stamp {
                    self.sequences.handle_acknowledged(stamp);
                }
                return self.release(batch.reserved, Some(batch.bytes), None);
            }
            Decision::Retry { .. } if batch.attempts <= self.limits.retries => {
                self.recover(not_before);
                self.put_back(batch);
                return Aftermath::default();
            }
            Decision::Restamp => {
                batch.stamp = None;
                self.recover(not_before);
                self.put_back(batch);
                let broken = self.sequences.break_off();
                return Aftermath { broken, ..Aftermath::default() };
            }
            // The task makes the halves and calls `handle_split`; without them there is nothing left to try.
            Decision::Split => {
                batch.receipt.fail(error());
                self.sequences.break_off()
            }
            Decision::Retry { .. } => {
                let error = error().with_hint("raise retries");
                batch.receipt.fail(error.with_possibly_written(batch.possibly_written));
                self.sequences.break_off()
            }
            Decision::Fail { possibly_written } => {
                batch.receipt.fail(error().with_possibly_written(possibly_written));
                self.sequences.break_off()
            }
            Decision::Fatal => {
                batch.receipt.fail(error().with_fatal());
                self.sequences.break_off()
            }
        };
        self.recover(not_before);
        self.release(batch.reserved, Some(batch.bytes), broken)
    }

    /// Two halves in place of a batch the broker finds too large (`max.message.bytes`).
    pub(crate) fn handle_split(&mut self, batch: Batch, halves: [EncodedBatch; 2]) -> Aftermath {
        self.in_flight.remove(&batch.order);
        self.recover(None);
        let broken = self.sequences.break_off();
        let mut parts = Vec::with_capacity(2);
        let mut first = 0;
        // The memory stays taken until the first half has its answer.
        for (half, reserved) in halves.into_iter().zip([batch.reserved, 0]) {
            let receipt = Receipt::new(Arc::clone(&self.topic), self.partition);
            parts.push((first as u32, Arc::clone(&receipt)));
            let count = half.count;
            self.put_back(Batch {
                bytes: half.bytes,
                receipt,
                count,
                deadline: batch.deadline,
                possibly_written: false,
                created: batch.created,
                order: Order { record: batch.order.record + first, ..batch.order },
                stamp: None,
                reserved,
                attempts: batch.attempts,
            });
            first += count;
        }
        batch.receipt.split(parts);
        Aftermath { broken, ..Aftermath::default() }
    }

    /// A batch that was taken could not even be sealed.
    pub(crate) fn abandon(&mut self, order: Order, reserved: usize) -> Aftermath {
        self.in_flight.remove(&order);
        self.recover(None);
        let broken = self.sequences.break_off();
        self.release(reserved, None, broken)
    }

    /// Fails everything that has no answer. Nothing leaves afterwards.
    pub(crate) fn fail_all(&mut self, error: impl Fn() -> Error) -> usize {
        for batch in self.pending.drain(..) {
            batch.receipt.fail(error().with_possibly_written(batch.possibly_written));
        }
        for open in self.closed.drain(..).chain(self.open.take()) {
            open.receipt.fail(error());
        }
        for receipt in self.unresolved.drain(..).filter(|receipt| !receipt.is_resolved()) {
            receipt.fail(error().with_possibly_written(true));
        }
        self.in_flight.clear();
        std::mem::take(&mut self.bytes)
    }

    fn recover(&mut self, not_before: Option<Instant>) {
        self.recovering = true;
        self.not_before = self.not_before.max(not_before);
    }

    fn put_back(&mut self, batch: Batch) {
        let place = self.pending.partition_point(|other| other.order < batch.order);
        self.pending.insert(place, batch);
    }

    fn release(
        &mut self,
        reserved: usize,
        buffer: Option<Bytes>,
        broken: Option<ProducerIdentity>,
    ) -> Aftermath {
        self.bytes = self.bytes.saturating_sub(reserved);
        Aftermath { freed: reserved, buffer, broken }
    }
}

impl OpenBatch {
    /// Compresses and stamps the batch.
    ///
    /// # Errors
    /// The codec's error with the receipt and the memory of the batch, which cannot be sent.
    pub(crate) fn seal(
        self,
        stamp: Stamp,
        order: Order,
        limits: &Limits,
        compressor: &Compressor,
    ) -> Result<Batch, (Error, Arc<Receipt>, usize)> {
        let Self { builder, receipt, created, reserved } = self;
        match builder.finish(stamp, compressor) {
            Ok(encoded) => Ok(Batch {
                bytes: encoded.bytes,
                receipt,
                count: encoded.count,
                deadline: created + limits.delivery_timeout,
                possibly_written: false,
                created,
                order,
                stamp: Some(stamp),
                reserved,
                attempts: 0,
            }),
            Err(error) => Err((error, receipt, reserved)),
        }
    }
}

impl Batch {
    /// The batch is being sent (again).
    pub(crate) fn count_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }
}

/// Takes memory so that a batch that has `reserved` bytes can hold `needed`: twice what it has, if there is that much.
fn reserve(
    memory: &Memory,
    credit: &mut usize,
    needed: usize,
    reserved: usize,
    batch_size: usize,
) -> Result<usize, usize> {
    let generous = needed.max((2 * reserved).max(FIRST_RESERVATION).min(batch_size)) - reserved;
    if *credit == 0 && memory.try_take(generous) {
        return Ok(generous);
    }
    let exact = needed - reserved;
    if *credit >= exact {
        *credit -= exact;
        return Ok(exact);
    }
    if memory.try_take(exact - *credit) {
        *credit = 0;
        return Ok(exact);
    }
    Err(exact - *credit)
}

#[cfg(test)]
mod tests;
