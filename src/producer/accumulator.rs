//! One partition's records before they are sent: the open batch and the full ones. Pure but for the count of memory.
//!
//! Appending is the path of every record: one lock, no allocation but the batch's own buffer as it grows. Nothing here
//! wakes a task or resolves a receipt; the queue around it hands that out, to be done outside the lock.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    memory::Memory,
    queue::{Batch, Order},
    receipt::{Delivery, ReceiptStub},
};
use crate::{
    batch::{self, BatchBuilder, Compressor, Stamp},
    error::{Error, Result},
    record::Header,
    time::Instant,
};

/// What a batch starts with in memory; it grows by doubling.
const FIRST_RESERVATION: usize = 4096;

/// The least time that an open batch waits while requests to its leader are in flight, whatever `linger.ms` is. Records
/// gather meanwhile, so that under load the broker answers a few requests instead of thousands.
pub(super) const CROWDED_LINGER: Duration = Duration::from_millis(1);

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
    /// Batches belong to transactions.
    pub(crate) transactional: bool,
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
    /// So many bytes of memory must be taken first: as many as the record needs in whatever batch is open by then, so that it
    /// never holds some while it waits for more.
    NeedMemory(usize),
    /// The producer has ended: nothing would ever send the record.
    Ended,
}

#[derive(Debug)]
pub(crate) struct OpenBatch {
    builder: BatchBuilder,
    pub(super) receipt: ReceiptStub,
    created: Instant,
    pub(super) reserved: usize,
}

#[derive(Debug)]
pub(super) struct Accumulator {
    topic: Arc<str>,
    partition: i32,
    limits: Arc<Limits>,
    open: Option<OpenBatch>,
    closed: VecDeque<OpenBatch>,
    /// Receipts without an answer, oldest first; answered ones are dropped when a batch is opened.
    unresolved: VecDeque<ReceiptStub>,
    /// The task knows that there is something here.
    scheduled: bool,
    /// Nothing is taken any more.
    ended: bool,
    /// Bytes of memory held by batches of the partition, those in flight included.
    pub(super) bytes: usize,
}

impl Accumulator {
    pub(super) fn new(topic: Arc<str>, partition: i32, limits: Arc<Limits>) -> Self {
        Self {
            topic,
            partition,
            limits,
            open: None,
            closed: VecDeque::new(),
            unresolved: VecDeque::new(),
            scheduled: false,
            ended: false,
            bytes: 0,
        }
    }

    /// Encodes a record into the open batch. `credit`: bytes the caller has already waited for.
    #[inline]
    pub(super) fn append(
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
                let Some(taken) = reserve(memory, credit, needed, open.reserved, self.limits.batch_size)
                else {
                    return Appended::NeedMemory(batch::BATCH_HEADER_LEN + parts.size_bound);
                };
                open.reserved += taken;
                self.bytes += taken;
                return Self::write(open, parts, &mut self.scheduled, false);
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
        // `end` sets this under the same lock under which it fails what is here. So each record is either failed by `end`
        // or refused here, and none slips in between.
        if self.ended {
            return Appended::Ended;
        }
        let needed = batch::BATCH_HEADER_LEN + parts.size_bound;
        let Some(reserved) = reserve(memory, credit, needed, 0, self.limits.batch_size) else {
            return Appended::NeedMemory(needed);
        };
        while self.unresolved.front().is_some_and(|receipt| receipt.is_resolved()) {
            self.unresolved.pop_front();
        }
        let receipt = ReceiptStub::new(Arc::clone(&self.topic), self.partition);
        self.unresolved.push_back(receipt.clone());
        self.bytes += reserved;
        let builder = BatchBuilder::new(memory.buffer());
        let open = self.open.insert(OpenBatch { builder, receipt, created: now(), reserved });
        let appended = Self::write(open, parts, &mut self.scheduled, true);
        if open.builder.len() >= self.limits.batch_size {
            // A record that fills a batch by itself has nothing to linger for.
            self.close_open();
        }
        appended
    }

    #[inline]
    fn write(open: &mut OpenBatch, parts: &Parts<'_>, scheduled: &mut bool, wake: bool) -> Appended {
        let index = open.builder.count() as u32;
        let delivery = Delivery::new(Arc::clone(&open.receipt), index, parts.timestamp);
        open.builder.append(parts.timestamp, parts.key, parts.value, parts.headers);
        open.receipt.set_records(index + 1);
        let schedule = wake && !std::mem::replace(scheduled, true);
        Appended::Done { delivery, wake, schedule }
    }

    /// Closes the open batch, so that it leaves as soon as it can.
    pub(super) fn close_open(&mut self) {
        self.closed.extend(self.open.take());
    }

    /// Receipts whose batches have no answer yet.
    pub(super) fn unresolved(&self) -> impl Iterator<Item = &ReceiptStub> {
        self.unresolved.iter().filter(|receipt| !receipt.is_resolved())
    }

    /// Lets go of answered receipts.
    pub(super) fn forget_resolved(&mut self) {
        self.unresolved.retain(|receipt| !receipt.is_resolved());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_none() && self.closed.is_empty()
    }

    pub(super) fn unschedule(&mut self) {
        self.scheduled = false;
    }

    /// Whether a batch is full, was flushed, or has waited long enough.
    pub(super) fn has_ready(&self, now: Instant, pace: Pace) -> bool {
        let linger = match pace {
            Pace::Hurry => Duration::ZERO,
            Pace::Linger => self.limits.linger,
            Pace::Crowded => self.limits.linger.max(CROWDED_LINGER),
        };
        !self.closed.is_empty() || self.open.as_ref().is_some_and(|open| open.created + linger <= now)
    }

    /// When the open batch has lingered, if it is all there is.
    pub(super) fn lingers_until(&self, now: Instant) -> Option<Instant> {
        let open = self.open.as_ref().filter(|_| self.closed.is_empty())?;
        let lingers = [self.limits.linger, CROWDED_LINGER];
        lingers.into_iter().map(|linger| open.created + linger).find(|due| *due > now)
    }

    /// Records of the oldest batch, which is closed by this.
    pub(super) fn first_count(&mut self) -> Option<i32> {
        if self.closed.is_empty() {
            self.close_open();
        }
        self.closed.front().map(|open| open.builder.count())
    }

    /// Bytes of the oldest batch, uncompressed.
    pub(super) fn first_len(&self) -> usize {
        self.closed.front().or(self.open.as_ref()).map_or(0, OpenBatch::len)
    }

    pub(super) fn take_first(&mut self) -> Option<OpenBatch> {
        self.closed.pop_front()
    }

    /// When `delivery.timeout.ms` of the oldest batch ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closed.front().or(self.open.as_ref()).map(|open| open.created + self.limits.delivery_timeout)
    }

    /// The oldest batch if its time is over.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<OpenBatch> {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            return self.closed.pop_front().or_else(|| self.open.take());
        }
        None
    }

    /// Everything, oldest first.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = OpenBatch> + use<'_> {
        let open = self.open.take();
        self.closed.drain(..).chain(open)
    }

    /// Nothing is appended from now on. Returns the receipts that have no answer.
    pub(super) fn end(&mut self) -> Vec<ReceiptStub> {
        self.ended = true;
        self.unresolved.drain(..).filter(|receipt| !receipt.is_resolved()).collect()
    }
}

impl OpenBatch {
    /// Bytes of the batch, uncompressed.
    pub(super) fn len(&self) -> usize {
        self.builder.len()
    }

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
    ) -> Result<Batch, (Error, ReceiptStub, usize)> {
        let Self { builder, receipt, created, reserved } = self;
        match builder.finish(stamp, compressor) {
            Ok(encoded) => {
                let stamp = limits.idempotent.then_some(stamp);
                let deadline = created + limits.delivery_timeout;
                Ok(Batch::new(encoded, receipt, deadline, order, stamp, reserved))
            }
            Err(error) => Err((error, receipt, reserved)),
        }
    }

    /// When `delivery.timeout.ms` ends.
    pub(super) fn deadline(&self, limits: &Limits) -> Instant {
        self.created + limits.delivery_timeout
    }
}

/// Takes memory so that a batch that has `reserved` bytes can hold `needed` bytes, and returns how much was taken. What
/// the caller has waited for comes first; otherwise the batch's memory is doubled if that much is free, or grows by what
/// is needed.
fn reserve(
    memory: &Memory,
    credit: &mut usize,
    needed: usize,
    reserved: usize,
    batch_size: usize,
) -> Option<usize> {
    let exact = needed - reserved;
    if *credit >= exact {
        *credit -= exact;
        return Some(exact);
    }
    let generous = needed.max((2 * reserved).max(FIRST_RESERVATION).min(batch_size)) - reserved;
    [generous, exact].into_iter().find(|bytes| memory.try_take(*bytes))
}
