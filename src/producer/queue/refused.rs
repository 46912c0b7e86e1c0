//! What becomes of batches that are not in the log, or not for sure: they go again, in halves, without their bad records,
//! or fail. Pure; it decides nothing, but carries out.

use std::sync::Arc;

use super::{Aftermath, Batch, Order, Queue};
use crate::{
    batch::{EncodedBatch, Stamp},
    cluster::are_two_lives,
    error::{Error, ErrorKind},
    producer::{
        accumulator::OpenBatch,
        decision::{Context, Decision},
        identity::sequence_after,
        receipt::{BatchOutcome, Part, ReceiptStub},
    },
    time::Instant,
};

impl Queue {
    /// Gives up batches whose time is over. One in flight fails now, and its answer, when it comes, only says how far the
    /// log is; the other batches of its request are not affected.
    pub(crate) fn expire(&mut self, now: Instant, no_identity: Option<&Error>, aftermath: &mut Aftermath) {
        // Whether other batches were ahead of those that were never sent, and why the first of them was not written.
        let ahead = (!self.in_flight.is_empty() || !self.pending.is_empty())
            .then(|| self.pending.front().and_then(|batch| batch.cause.clone()));
        for flying in self.in_flight.values_mut() {
            if flying.deadline <= now && !flying.given_up {
                flying.given_up = true;
                let error =
                    delivery_timeout("a request with it has no answer yet").with_possibly_written(true);
                aftermath.resolved.push((flying.receipt.clone(), BatchOutcome::Failed(error)));
            }
        }
        if self.pending.iter().any(|batch| batch.deadline <= now) {
            for batch in std::mem::take(&mut self.pending) {
                if batch.deadline <= now {
                    let error = delivery_timeout("it waited to be sent again");
                    let error = with_cause(error, batch.cause.as_ref());
                    self.take_out(batch, error, aftermath);
                } else {
                    self.pending.push_back(batch);
                }
            }
        }
        while let Some(open) = self.accumulator.take_expired(now) {
            let error = match (no_identity, &ahead) {
                (Some(cause), _) => with_cause(delivery_timeout("it waited for a producer id"), Some(cause)),
                (None, Some(cause)) => {
                    let error = delivery_timeout("earlier records of its partition had no answer yet");
                    with_cause(error, cause.as_ref())
                }
                (None, None) => delivery_timeout("it waited for its leader"),
            };
            aftermath.resolved.push((open.receipt, BatchOutcome::Failed(error)));
            self.release(open.reserved, None, aftermath);
        }
        self.after_landing(aftermath);
    }

    /// What is known of a batch in flight besides its answer.
    pub(crate) fn context(&self, batch: &Batch) -> Context {
        let first_in_flight = self.in_flight.keys().next().copied();
        let first_pending = self.pending.front().map(|batch| batch.order);
        let left_alone = self.in_flight.get(&batch.order).is_none_or(|flying| flying.alone);
        let predecessors_pending =
            !left_alone || first_in_flight.into_iter().chain(first_pending).any(|order| order < batch.order);
        Context {
            idempotent: self.limits.idempotent,
            transactional: self.limits.transactional,
            count: batch.count,
            possibly_written: batch.possibly_written,
            predecessors_pending,
            behind_gap: self.sequences.has_gap(),
        }
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
        let given_up = self.land(&mut batch);
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
                // The first time it goes again at once; a pause is only for what is refused again and again, to spare the
                // broker.
                batch.not_before = (batch.attempts > 1).then_some(retry_at);
                batch.cause = Some(error);
                batch.stamp = None;
                let broken = self.sequences.break_off();
                let verdict = match decision {
                    Decision::Bump => &mut aftermath.verdicts.bump,
                    _ => &mut aftermath.verdicts.renew,
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

    /// A batch is in flight no more, and not acknowledged. Whether it was given up meanwhile.
    fn land(&mut self, batch: &mut Batch) -> bool {
        self.recovering = true;
        let Some(flying) = self.in_flight.remove(&batch.order) else { return true };
        if batch.possibly_written {
            batch.log.get_or_insert(flying.topic_id);
        }
        flying.given_up
    }

    /// Two halves in place of a batch the broker finds too large (`max.message.bytes`). They keep its sequence numbers, so
    /// that what was sent behind it still fits, and that what may be in the log already is not taken again.
    pub(crate) fn handle_split(
        &mut self,
        mut batch: Batch,
        halves: [EncodedBatch; 2],
        aftermath: &mut Aftermath,
    ) {
        self.land(&mut batch);
        let fits = |stamp: &Stamp| self.sequences.is_intact() && self.sequences.is_own(stamp);
        let stamp = batch.stamp.filter(|stamp| batch.possibly_written || fits(stamp));
        let mut parts = Vec::with_capacity(2);
        let mut first = 0;
        let mut reserved = batch.reserved;
        for half in halves {
            let receipt = ReceiptStub::part_of(&batch.receipt, half.count.unsigned_abs());
            parts.push(Part { first: first as u32, index: 0, receipt: Arc::clone(&receipt) });
            let order = Order { record: batch.order.record + first, ..batch.order };
            let stamp = stamp
                .map(|stamp| Stamp { base_sequence: sequence_after(stamp.base_sequence, first), ..stamp });
            first += half.count;
            // Each half holds a share of the batch's memory, and gives it back with its own answer.
            let share = if first < batch.count { reserved / 2 } else { reserved };
            reserved -= share;
            let mut half = Batch::new(half, receipt, batch.deadline, order, stamp, share);
            half.stale_bytes = true;
            half.attempts = batch.attempts;
            half.purges = batch.purges;
            half.possibly_written = batch.possibly_written;
            half.log = batch.log;
            self.put_back(half);
        }
        aftermath.resolved.push((batch.receipt, BatchOutcome::Split(parts)));
        self.after_landing(aftermath);
    }

    /// Some records of a batch were refused, and therefore all of it (KIP-467): the others go on without them. `kept`: the
    /// batch without them; `parts`: where each record is now.
    pub(crate) fn handle_purged(
        &mut self,
        batch: Batch,
        kept: EncodedBatch,
        kept_receipt: ReceiptStub,
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
        aftermath.resolved.push((batch.receipt, BatchOutcome::Split(parts)));
        self.after_landing(aftermath);
    }

    /// A batch is not in the log and not sent again; `parts` say why, record by record.
    pub(crate) fn handle_taken_apart(&mut self, batch: Batch, parts: Vec<Part>, aftermath: &mut Aftermath) {
        self.in_flight.remove(&batch.order);
        self.recovering = true;
        if batch.stamp.is_some() {
            self.sequences.leave_gap();
        }
        aftermath.resolved.push((batch.receipt, BatchOutcome::Split(parts)));
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
        receipt: ReceiptStub,
        reserved: usize,
        error: Error,
        aftermath: &mut Aftermath,
    ) {
        self.in_flight.remove(&order);
        self.recovering = true;
        self.sequences.leave_gap();
        aftermath.resolved.push((receipt, BatchOutcome::Failed(error)));
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
            aftermath.resolved.push((open.receipt, BatchOutcome::Failed(error.clone())));
            self.release(open.reserved, None, aftermath);
        }
        self.after_landing(aftermath);
    }

    /// Fails a batch that was stamped, and says what that does to the sequence.
    fn take_out(&mut self, batch: Batch, error: Error, aftermath: &mut Aftermath) {
        if batch.stamp.is_some_and(|stamp| self.sequences.is_own(&stamp)) {
            if batch.possibly_written {
                aftermath.verdicts.bump = self.sequences.break_off();
            } else {
                self.sequences.leave_gap();
            }
        }
        let error = error.with_possibly_written(batch.possibly_written);
        aftermath.resolved.push((batch.receipt, BatchOutcome::Failed(error)));
        self.release(batch.reserved, Some(batch.bytes), aftermath);
    }

    /// Called when a batch has landed. Once nothing is in flight and the sequence does not fit, a batch that may be
    /// written cannot be sent again while an older one waits that is certainly not written: the log might append it
    /// before the older one. So it fails, as possibly written.
    pub(super) fn after_landing(&mut self, aftermath: &mut Aftermath) {
        self.give_up_earlier_life(aftermath);
        if self.sequences.is_intact() || !self.in_flight.is_empty() || !self.limits.idempotent {
            return;
        }
        if self.pending.front().is_none_or(|first| first.possibly_written) {
            return;
        }
        let lost = "an earlier batch of the partition was refused, and the answer to this one was lost";
        self.give_up_pending(lost, |batch| batch.possibly_written, aftermath);
    }

    /// What may be in the log of a topic that was made again is never written to the new one.
    pub(super) fn give_up_earlier_life(&mut self, aftermath: &mut Aftermath) {
        let topic_id = self.topic_id;
        let is_earlier = |batch: &Batch| batch.log.is_some_and(|log| are_two_lives(log, topic_id));
        if self.limits.idempotent && self.pending.iter().any(is_earlier) {
            let lost =
                "the topic was deleted and made again, and the answer to this batch of before was lost";
            self.give_up_pending(lost, is_earlier, aftermath);
        }
    }

    /// Fails, as possibly written, the batches that wait to be sent again and of which `is_meant` is true.
    fn give_up_pending(&mut self, why: &str, is_meant: impl Fn(&Batch) -> bool, aftermath: &mut Aftermath) {
        for batch in std::mem::take(&mut self.pending) {
            if is_meant(&batch) {
                let error = with_cause(Error::new(ErrorKind::Disconnected, why), batch.cause.as_ref());
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
}

fn delivery_timeout(what: &str) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the record was not acknowledged within delivery.timeout.ms: {what}"),
    )
    .with_hint("raise delivery.timeout.ms, or see to the broker")
}

/// Names the cause where there is one, and its remedy in place of a general one.
fn with_cause(error: Error, cause: Option<&Error>) -> Error {
    let Some(cause) = cause else { return error };
    let error = match cause.hint() {
        Some(hint) => error.with_hint(hint),
        None => error,
    };
    error.with_source(cause.clone())
}
