//! One partition's log: stored record batches, their offsets, leader epochs, producers and transactions.
//!
//! Never decompresses. What it knows of producers and transactions can be read from its batches again, and is, when the
//! log is cut off or its broker starts anew.

mod batch;
mod ongoing;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;

pub(super) use self::batch::{Batch, Incoming, Marker};
pub(super) use self::ongoing::Aborted;
use self::ongoing::Transactions;
use super::producers::{Producers, REMEMBERED_BATCHES, Verdict};

/// Where an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Append {
    pub(super) base_offset: i64,
    /// -1 where the topic keeps the producer's times.
    pub(super) append_time_ms: i64,
    /// Acknowledged once the high watermark is here.
    pub(super) next_offset: i64,
}

/// How far a reader may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    Uncommitted,
    Committed,
}

/// The log of one partition.
#[derive(Debug)]
pub(super) struct PartitionLog {
    batches: Vec<Batch>,
    start: i64,
    end: i64,
    /// What replicas that lag have; `None` when none does.
    replicated: Option<i64>,
    /// Each leader epoch that there was and the offset at which it began, ascending.
    epochs: Vec<(i32, i64)>,
    leader_epoch: i32,
    producers: Producers,
    transactions: Transactions,
}

impl PartitionLog {
    pub(super) fn new() -> Self {
        Self {
            batches: Vec::new(),
            start: 0,
            end: 0,
            replicated: None,
            epochs: vec![(0, 0)],
            leader_epoch: 0,
            producers: Producers::default(),
            transactions: Transactions::default(),
        }
    }

    pub(super) fn start(&self) -> i64 {
        self.start
    }

    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// What all in-sync replicas have.
    pub(super) fn high_watermark(&self) -> i64 {
        self.replicated.map_or(self.end, |replicated| replicated.min(self.end))
    }

    /// Everything before is decided: no transaction is open there.
    pub(super) fn last_stable_offset(&self) -> i64 {
        self.transactions.last_stable(self.high_watermark()).max(self.start)
    }

    /// The first offset that such a reader does not get yet.
    pub(super) fn readable_end(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::Uncommitted => self.high_watermark(),
            Isolation::Committed => self.last_stable_offset(),
        }
    }

    /// Sets what the in-sync replicas have.
    pub(super) fn set_replicated(&mut self, end: Option<i64>) {
        self.replicated = end;
    }

    pub(super) fn leader_epoch(&self) -> i32 {
        self.leader_epoch
    }

    /// The epoch of the leader that wrote at this offset, or would.
    pub(super) fn epoch_at(&self, offset: i64) -> i32 {
        let later = self.epochs.partition_point(|e| e.1 <= offset);
        later.checked_sub(1).map_or(self.leader_epoch, |index| self.epochs[index].0)
    }

    /// Does the leader not know yet what was acknowledged before its epoch?
    pub(super) fn is_unsettled(&self) -> bool {
        self.epochs.last().is_some_and(|e| e.1 > self.high_watermark())
    }

    /// One bit of the batch that holds this offset is wrong from now on. False if there is no such batch.
    pub(super) fn damage(&mut self, offset: i64) -> bool {
        let holds = |batch: &&mut Batch| (batch.base_offset..=batch.last_offset).contains(&offset);
        let Some(batch) = self.batches.iter_mut().find(holds) else { return false };
        let mut bytes = BytesMut::from(&batch.bytes[..]);
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        batch.bytes = bytes.freeze();
        true
    }

    /// A new leader begins a new epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.leader_epoch += 1;
        // An epoch that ended without a record is as if it had not been.
        self.epochs.retain(|e| e.1 < self.end);
        self.epochs.push((self.leader_epoch, self.end));
    }

    pub(super) fn producers(&self) -> &Producers {
        &self.producers
    }

    pub(super) fn producers_mut(&mut self) -> &mut Producers {
        &mut self.producers
    }

    /// Where the open transaction of a producer begins.
    pub(super) fn transaction_start(&self, producer_id: i64) -> Option<i64> {
        self.transactions.start_of(producer_id)
    }

    /// Forgets the producers whose last records are from `before_ms` or before and that have no transaction open. Apache Kafka
    /// too goes by the records' times, and not by when they came.
    pub(super) fn expire_producers(&mut self, before_ms: i64) {
        let Self { producers, transactions, .. } = self;
        producers.expire(before_ms, |id| transactions.start_of(id).is_some());
    }

    /// What these batches mean to readers of committed records.
    pub(super) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        self.transactions.aborted(from, to)
    }

    /// Appends a batch. `append_time` is the broker's time on topics that keep it.
    pub(super) fn append(
        &mut self,
        mut batch: Incoming,
        append_time: Option<i64>,
    ) -> Result<Append, ResponseError> {
        if let Some(stamp) = batch.stamp {
            match self.producers.check(stamp)? {
                // Whoever has a transaction open here writes nothing beside it.
                Verdict::New
                    if !batch.transactional && self.transactions.start_of(stamp.producer_id).is_some() =>
                {
                    return Err(ResponseError::InvalidTxnState);
                }
                Verdict::New => {}
                Verdict::Duplicate { base_offset, next_offset, append_time_ms } => {
                    return Ok(Append { base_offset, append_time_ms, next_offset });
                }
            }
        }
        if let Some(now_ms) = append_time {
            batch.stamp_append_time(now_ms);
        }
        Ok(self.store(batch, append_time.unwrap_or(-1)))
    }

    /// Ends a transaction: appends its control batch (KIP-98). A marker of an epoch that is over is refused.
    pub(super) fn append_marker(&mut self, marker: Marker, now_ms: i64) -> Result<Append, ResponseError> {
        self.producers.check_epoch(marker.producer_id, marker.epoch)?;
        Ok(self.store(Incoming::of_marker(marker, now_ms), -1))
    }

    fn store(&mut self, batch: Incoming, append_time_ms: i64) -> Append {
        let base_offset = self.end;
        self.end += i64::from(batch.records);
        let batch = Batch {
            base_offset,
            last_offset: self.end - 1,
            max_timestamp: batch.max_timestamp,
            leader_epoch: self.leader_epoch(),
            stamp: batch.stamp,
            transactional: batch.transactional,
            marker: batch.marker,
            bytes: batch.bytes,
        };
        remember(&mut self.producers, &mut self.transactions, &batch);
        self.batches.push(batch);
        Append { base_offset, append_time_ms, next_offset: self.end }
    }

    /// The batches from the one that holds `offset` on.
    pub(super) fn batches_from(&self, offset: i64) -> &[Batch] {
        let first = self.batches.partition_point(|b| b.last_offset < offset);
        &self.batches[first..]
    }

    /// The base offsets of the last batch of each producer.
    pub(super) fn last_batches(&self) -> BTreeSet<i64> {
        let stamped = self.batches.iter().filter_map(|b| Some((b.stamp?.producer_id, b.base_offset)));
        stamped.collect::<BTreeMap<i64, i64>>().into_values().collect()
    }

    /// Deletes what is older than `before_ms` by its newest record, from the start of the log on.
    pub(super) fn retain_since(&mut self, before_ms: i64) {
        let high_watermark = self.high_watermark();
        let old = |b: &&Batch| b.max_timestamp < before_ms && b.last_offset < high_watermark;
        let next = self.batches.iter().take_while(old).last().map(|b| b.last_offset + 1);
        if let Some(next) = next {
            // Within the log by construction: it cannot be out of range.
            let _start = self.delete_before(next);
        }
    }

    /// What a reader of committed records sees.
    pub(super) fn committed_batches(&self) -> Vec<Batch> {
        let end = self.last_stable_offset();
        let aborted = |b: &Batch| match b.stamp {
            Some(stamp) if b.transactional => self.transactions.is_aborted(stamp.producer_id, b.base_offset),
            _ => false,
        };
        let seen = self.batches.iter().filter(|b| b.base_offset < end && !aborted(b));
        seen.cloned().collect()
    }

    pub(super) fn batches_mut(&mut self) -> &mut Vec<Batch> {
        &mut self.batches
    }

    /// How many bytes are there to read from `offset` to `end`, counted no further than `enough`.
    pub(super) fn readable(&self, offset: i64, end: i64, enough: usize) -> usize {
        let mut sum = 0;
        for batch in self.batches_from(offset).iter().take_while(|b| b.base_offset < end) {
            sum += batch.len();
            if sum >= enough {
                break;
            }
        }
        sum
    }

    /// Batches from `offset` to `end` up to `max_bytes`, and the offset behind the last whole one; with `at_least_one` the first
    /// comes whatever its size (KIP-74). Behind a whole one, the last is cut off where there is no more room, as in Apache Kafka.
    pub(super) fn read(&self, offset: i64, end: i64, max_bytes: usize, at_least_one: bool) -> (Bytes, i64) {
        let batches = self.batches_from(offset);
        let (mut size, mut count) = (0, 0);
        for batch in batches.iter().take_while(|b| b.base_offset < end) {
            if size + batch.len() > max_bytes && !(at_least_one && count == 0) {
                break;
            }
            size += batch.len();
            count += 1;
        }
        let cut = batches.get(count).filter(|b| b.base_offset < end && count > 0 && size < max_bytes);
        let mut out = BytesMut::with_capacity(size + cut.map_or(0, Batch::len));
        batches[..count].iter().for_each(|b| b.write(&mut out));
        if let Some(cut) = cut {
            cut.write(&mut out);
            out.truncate(max_bytes);
        }
        let next = batches[..count].last().map_or(offset, |b| b.last_offset + 1);
        (out.freeze(), next)
    }

    /// Deletes the records before `offset` (KIP-107), which may be the high watermark at most. Returns the new log start.
    /// What is known of producers stays, as in Apache Kafka since 2.5 (KAFKA-7190).
    pub(super) fn delete_before(&mut self, offset: i64) -> Result<i64, ResponseError> {
        let offset = if offset == -1 { self.high_watermark() } else { offset };
        if offset < 0 || offset > self.high_watermark() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        self.start = self.start.max(offset);
        let gone = self.batches.partition_point(|b| b.last_offset < self.start);
        self.batches.drain(..gone);
        // Of the epochs that ended before, the last one begins here.
        let gone = self.epochs.partition_point(|e| e.1 <= self.start).saturating_sub(1);
        self.epochs.drain(..gone);
        if let Some(first) = self.epochs.first_mut() {
            first.1 = first.1.max(self.start);
        }
        self.transactions.started_at(self.start);
        Ok(self.start)
    }

    /// Cuts the log off at `offset`, at the start of the batch that holds it, and takes back what those batches said of
    /// producers and transactions.
    pub(super) fn truncate(&mut self, offset: i64) {
        let keep = self.batches.partition_point(|b| b.last_offset < offset);
        let cut = self.batches.get(keep).map_or(offset, |b| b.base_offset).max(self.start).min(self.end);
        if cut >= self.end {
            return;
        }
        self.batches.truncate(keep);
        self.end = cut;
        self.epochs.retain(|e| e.1 < cut);
        self.rebuild(REMEMBERED_BATCHES);
    }

    /// A broker that starts after an orderly stop knows only the last batch of each producer, from its snapshot; after a
    /// crash it reads the log again, and knows five.
    pub(super) fn restart(&mut self, clean: bool) {
        self.rebuild(if clean { 1 } else { REMEMBERED_BATCHES });
    }

    fn rebuild(&mut self, remembered: usize) {
        let known = std::mem::take(&mut self.producers);
        self.transactions = Transactions::default();
        for batch in &self.batches {
            remember(&mut self.producers, &mut self.transactions, batch);
        }
        // Producers whose batches were deleted since are in the snapshot.
        self.producers.keep_of(known, self.start);
        self.producers.keep_last(remembered);
    }

    /// The last epoch not above `epoch` and the offset at which the next one began (KIP-101, KIP-279); -1 and -1 for an
    /// epoch that has not begun.
    pub(super) fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        if epoch == self.leader_epoch {
            return (epoch, self.end);
        }
        if epoch < 0 {
            return (-1, -1);
        }
        let next = self.epochs.partition_point(|e| e.0 <= epoch);
        match (next.checked_sub(1).map(|i| self.epochs[i].0), self.epochs.get(next)) {
            (_, None) => (-1, -1),
            (floor, Some(higher)) => (floor.unwrap_or(epoch), higher.1),
        }
    }
}

/// What a batch says of its producer and its transaction.
fn remember(producers: &mut Producers, transactions: &mut Transactions, batch: &Batch) {
    if let Some(stamp) = batch.stamp {
        producers.appended(stamp, batch.base_offset, batch.max_timestamp);
        if batch.transactional {
            transactions.appended(stamp.producer_id, batch.base_offset);
        }
    }
    if let Some(marker) = batch.marker {
        producers.ended(marker.producer_id, marker.epoch, marker.coordinator_epoch, batch.max_timestamp);
        transactions.ended(marker.producer_id, batch.base_offset, marker.commit);
    }
}

#[cfg(test)]
pub(super) mod tests;
