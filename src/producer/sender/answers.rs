//! What came of requests: each answer becomes a decision about each of its batches, which the partition's queue carries
//! out. Pure but for the partitions' locks.

use std::sync::Arc;

use super::{Answer, Request, Sender, Sent};
use crate::{
    batch,
    error::{Error, ErrorCode, ErrorKind},
    producer::{
        decision::{Decision, decide, leaves_open},
        queue::{Aftermath, Batch, Queue, Verdicts},
        receipt::{Ack, BatchOutcome},
        record_errors::{Separated, separate},
        refusal_errors::{broker_error, not_idempotent},
        topics::PartitionQueue,
        transaction::{CONCURRENT_PAUSE, is_concurrent},
    },
    sorted::Map,
    time::Instant,
};

/// A batch may lose bad records so many times; then the rest fails with them.
const MOST_PURGES: u32 = 8;

impl Sender {
    /// The broker's answers to the batches of a request, sorted by topic and partition.
    pub(crate) fn handle_answers(
        &mut self,
        now: Instant,
        request: Request,
        answers: &[((&str, i32), Answer)],
    ) {
        self.landed(request.leader);
        for Sent { partition, mut batch, .. } in request.batches {
            let place = (&*partition.topic, partition.partition);
            let found = answers.binary_search_by(|(answered, _)| answered.cmp(&place)).ok();
            let Some((_, answer)) = found.and_then(|index| answers.get(index)) else {
                let error = Error::protocol("the broker's answer lacks a partition")
                    .with_api("Produce")
                    .with_broker(request.leader);
                // As after a time-out.
                batch.possibly_written = true;
                self.wants_metadata = true;
                self.refuse(now, &partition, batch, Decision::Retry { stale_leader: true }, error);
                continue;
            };
            let code = ErrorCode(answer.code);
            batch.possibly_written |= leaves_open(code);
            let context = partition.lock().context(&batch);
            match decide(code, context) {
                Decision::Acknowledge => self.acknowledge(now, &partition, batch, answer),
                decision => {
                    self.handle_refusal(now, request.leader, &partition, batch, decision, answer);
                }
            }
        }
    }

    fn acknowledge(&mut self, now: Instant, partition: &PartitionQueue, batch: Batch, answer: &Answer) {
        self.counts.records += batch.count.unsigned_abs() as u64;
        // A broker recognizes a duplicate without always knowing its offset.
        let base_offset = if answer.code == 0 { answer.base_offset } else { -1 };
        let ack = Ack { base_offset, log_append_time: answer.log_append_time };
        self.change(now, partition, |queue, aftermath| queue.handle_acknowledged(batch, ack, aftermath));
    }

    fn handle_refusal(
        &mut self,
        now: Instant,
        leader: i32,
        partition: &Arc<PartitionQueue>,
        batch: Batch,
        decision: Decision,
        answer: &Answer,
    ) {
        let error = broker_error(answer, leader);
        tracing::debug!(topic = %partition.topic, partition = partition.partition, %error, ?decision, "a batch was refused");
        self.wants_metadata |= matches!(decision, Decision::Retry { stale_leader: true });
        let given_up = partition.lock().is_given_up(&batch);
        match decision {
            Decision::Split if !given_up => self.split(now, partition, batch, error),
            Decision::Fail { possibly_written: false } if !given_up && !answer.record_errors.is_empty() => {
                self.purge(now, partition, batch, answer, error);
            }
            Decision::Fatal => {
                let error = not_idempotent(error);
                self.fatal.get_or_insert_with(|| error.clone());
                self.refuse(now, partition, batch, decision, error);
            }
            _ => self.refuse(now, partition, batch, decision, error),
        }
    }

    /// The request was never sent: its connection had gone.
    pub(crate) fn handle_not_sent(&mut self, now: Instant, request: Request, error: &Error) {
        self.landed(request.leader);
        self.handle_disconnected(request.leader);
        for Sent { partition, batch, .. } in request.batches {
            self.refuse(now, &partition, batch, Decision::Retry { stale_leader: true }, error.clone());
        }
    }

    /// The request as a whole failed: its answer was lost, or it was never sent.
    pub(crate) fn handle_request_error(&mut self, now: Instant, request: Request, error: &Error) {
        self.landed(request.leader);
        // Neither an answer that did not come nor one that cannot be read says what became of the batches.
        let lost = matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Disconnected | ErrorKind::Protocol);
        // A request that was never sent is sent again as well: the answer to another one may have ended its connection.
        let unknown = lost && !error.is_unsent();
        self.handle_disconnected(request.leader);
        self.wants_metadata = true;
        let decision = match lost || error.is_retriable() {
            true => Decision::Retry { stale_leader: true },
            false => Decision::Fail { possibly_written: false },
        };
        for Sent { partition, mut batch, .. } in request.batches {
            batch.possibly_written |= unknown;
            self.refuse(now, &partition, batch, decision, error.clone());
        }
    }

    /// A request with `acks=0` has left: nobody will say more.
    pub(crate) fn handle_written(&mut self, now: Instant, request: Request) {
        self.landed(request.leader);
        let unknown = Answer { base_offset: -1, log_append_time: -1, ..Answer::default() };
        for Sent { partition, batch, .. } in request.batches {
            self.acknowledge(now, &partition, batch, &unknown);
        }
    }

    /// Fails what was not sent, and sends nothing of what is in flight again.
    pub(crate) fn discard(&mut self, now: Instant, error: &Error) {
        self.change_all(now, |queue, _, aftermath| queue.discard(error, aftermath));
    }

    fn landed(&mut self, leader: i32) {
        self.unplanned = true;
        self.leaders.handle_landed(leader);
    }

    fn refuse(
        &mut self,
        now: Instant,
        partition: &PartitionQueue,
        mut batch: Batch,
        decision: Decision,
        error: Error,
    ) {
        // KIP-580: each batch has a back-off of its own.
        let mut pause = self.backoff.after(batch.attempts.saturating_sub(1), &mut self.rng);
        if is_concurrent(&error) {
            pause = pause.min(CONCURRENT_PAUSE);
            // The broker only asks to wait: with pauses so short a few `retries` would be over before the markers are written.
            // `delivery.timeout.ms` ends this.
            batch.attempts = batch.attempts.saturating_sub(1);
        }
        self.change(now, partition, |queue, aftermath| {
            queue.handle_refused(batch, decision, now + pause, error, aftermath);
        });
    }

    fn split(&mut self, now: Instant, partition: &PartitionQueue, batch: Batch, error: Error) {
        match batch::split_in_two(&batch.bytes, &self.compressor, &self.decompressor) {
            Ok(halves) => {
                self.counts.splits += 1;
                self.change(now, partition, |queue, aftermath| queue.handle_split(batch, halves, aftermath));
            }
            Err(cause) => {
                let decision = Decision::Fail { possibly_written: false };
                self.refuse(now, partition, batch, decision, error.with_source(cause));
            }
        }
    }

    /// The broker has named the records that it does not take, and has taken none: they fail, each with what was said of it, and
    /// the others go again without them.
    fn purge(
        &mut self,
        now: Instant,
        partition: &Arc<PartitionQueue>,
        batch: Batch,
        answer: &Answer,
        error: Error,
    ) {
        let bad: Map<usize, Option<&str>> = answer
            .record_errors
            .iter()
            .filter(|(index, _)| (0..batch.count).contains(index))
            .map(|(index, message)| (*index as usize, message.as_deref()))
            .collect();
        let fail = Decision::Fail { possibly_written: false };
        let all = bad.len() == batch.count as usize;
        if bad.is_empty() || (all && batch.count == 1) {
            let error = match bad.values().next() {
                Some(Some(text)) => error.with_message(text),
                _ => error,
            };
            return self.refuse(now, partition, batch, fail, error);
        }
        let kept = match all || batch.purges >= MOST_PURGES {
            true => None,
            false => {
                let drop = |place: usize| bad.contains_key(&place);
                batch::without(&batch.bytes, drop, &self.compressor, &self.decompressor).ok()
            }
        };
        let Separated { parts, rest, failed } = separate(&batch.receipt, batch.count, &bad, &error);
        self.change(now, partition, |queue, aftermath| {
            aftermath.resolved.extend(failed);
            match kept {
                Some(kept) => queue.handle_purged(batch, kept, rest, parts, aftermath),
                None => {
                    let text = "the batch was refused for other records in it, which the broker named";
                    let error = Error::new(error.kind(), text).with_api("Produce");
                    aftermath.resolved.push((rest, BatchOutcome::Failed(error)));
                    queue.handle_taken_apart(batch, parts, aftermath);
                }
            }
        });
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.change_all(now, |queue, no_identity, aftermath| queue.expire(now, no_identity, aftermath));
    }

    /// Changes a partition's queue, and sees to what follows of it. There is no other way to change one: an answer to one
    /// batch may end another, of which a transaction must know, and which may need another identity.
    pub(super) fn change<T>(
        &mut self,
        now: Instant,
        partition: &PartitionQueue,
        change: impl FnOnce(&mut Queue, &mut Aftermath) -> T,
    ) -> T {
        let told = self.aftermath.resolved.len();
        let changed = change(&mut partition.lock(), &mut self.aftermath);
        self.follow_up(now, told);
        changed
    }

    /// As [`change`](Self::change), for every queue that has something to send or in flight. `change` also gets why there
    /// is no producer id yet.
    fn change_all(&mut self, now: Instant, change: impl Fn(&mut Queue, Option<&Error>, &mut Aftermath)) {
        for index in 0..self.active.len() {
            let told = self.aftermath.resolved.len();
            change(&mut self.active[index].lock(), self.no_identity.as_ref(), &mut self.aftermath);
            // One by one: each may have found out something about another identity.
            self.follow_up(now, told);
        }
    }

    /// What was told since `told`, and what it means for the identity.
    fn follow_up(&mut self, now: Instant, told: usize) {
        for (_, outcome) in self.aftermath.resolved.iter().skip(told) {
            // A transaction they belong to must be aborted.
            if let BatchOutcome::Failed(error) = outcome {
                // What waited behind it may leave.
                self.unplanned = true;
                self.counts.failed_batches += 1;
                self.open_attempts |= error.possibly_written();
                self.failure.get_or_insert_with(|| error.clone());
            }
        }
        let Verdicts { proven, bump, renew } = std::mem::take(&mut self.aftermath.verdicts);
        if proven {
            self.identity.handle_proven();
        }
        self.unplanned |= bump.is_some() || renew.is_some();
        if let Some(broken) = bump {
            self.identity.bump(broken, now, &mut self.rng);
        }
        if let Some(refused) = renew {
            self.identity.renew(refused, now, &mut self.rng);
        }
    }
}
