//! One poll: the listener is told, chunks are taken, and decoded outside the lock. It must never hold the lock while it decodes
//! or waits, and a dropped poll must have handed out nothing.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    KafkaConsumer, Shared, buffer, ledger::Life, listener::Listening, partitions::Next,
    records::ConsumerRecords,
};
use crate::{
    driver,
    error::{Error, ErrorKind, Result},
    record::TopicPartition,
    time::{self, Instant},
};

impl KafkaConsumer {
    /// The next records: at once if any are buffered, otherwise as soon as some arrive, and none after `timeout`. At most
    /// `max.poll.records`. Calling it says that all records handed out before are done with. A `timeout` of zero takes
    /// what is there. A call of the [`RebalanceListener`](crate::RebalanceListener) that this poll makes takes as long as
    /// it takes. A poll whose future is kept and not looked after counts as one until `timeout` is over;
    /// `max.poll.interval.ms` runs from then.
    ///
    /// # Errors
    /// What the group, the broker or a damaged batch refuses, with partition and offset; the next poll goes on where
    /// that is possible. [`ErrorKind::InvalidArgument`] if nothing is subscribed or assigned; [`ErrorKind::Closed`] after
    /// [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped poll has handed out nothing and loses nothing.
    pub async fn poll(&self, timeout: Duration) -> Result<ConsumerRecords> {
        self.poll_up_to(self.shared.settings.max_poll_records, timeout).await
    }

    pub(super) async fn poll_up_to(&self, max: usize, timeout: Duration) -> Result<ConsumerRecords> {
        let shared = &*self.shared;
        if shared.yields.swap(false, Ordering::Relaxed) {
            // Before anything is taken: a poll dropped here loses nothing.
            tokio::task::yield_now().await;
        }
        if !self.is_owner {
            return Err(poll_within_a_call());
        }
        let deadline = time::after(timeout);
        // A batch that cannot be read fails at once, each time, and so does a closed consumer: whoever polls on must not keep the
        // runtime to himself.
        let note = |_: &Error| shared.yields.store(true, Ordering::Relaxed);
        let mut polling = Polling::begin(shared).inspect_err(note)?;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !Listening::tell(&self.shared, Some(deadline)).await {
                return Ok(ConsumerRecords::default());
            }
            let records = polling.take(max).inspect_err(note)?;
            if !records.is_empty() {
                return Ok(records);
            }
            driver::check_runtime()?;
            polling.wait(deadline);
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(records);
            }
        }
    }
}

/// One poll under way; the time until the next counts from its end, however it ends.
pub(super) struct Polling<'a> {
    shared: &'a Shared,
    /// It waits until then at most.
    until: Option<Instant>,
}

impl<'a> Polling<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Result<Self> {
        let begun = shared.lock().handle_poll(time::now());
        begun.map(|driver_is_due| {
            if driver_is_due {
                shared.wake.notify_one();
            }
            Self { shared, until: None }
        })
    }

    /// It has found nothing, and waits. To be called each time before it does: a listener's call may have come in between.
    fn wait(&mut self, until: Instant) {
        let mut core = self.shared.lock();
        match self.until.replace(until) {
            None => core.handle_wait(until),
            Some(_) => core.handle_loose_poll(until),
        }
    }

    /// What can be handed out now, at most `max` records.
    fn take(&self, max: usize) -> Result<ConsumerRecords> {
        let mut records = ConsumerRecords::default();
        self.take_each(max, &mut |partition, life, chunk| {
            records.push(partition, life, chunk);
        })?;
        Ok(records)
    }

    /// Takes chunks until `max` records are there or nothing is left, decoding outside the lock.
    pub(super) fn take_each(
        &self,
        max: usize,
        hand_out: &mut dyn FnMut(TopicPartition, Life, buffer::Chunk),
    ) -> Result<()> {
        let shared = self.shared;
        let (mut left, mut memory) = (max, 0_usize);
        let mut returned = None;
        let mut failure: Option<Error> = None;
        let mut is_left = false;
        loop {
            let job = {
                let mut core = shared.lock();
                if let Some((key, decoded)) = returned.take() {
                    core.partitions.check_in(key, decoded, failure.is_some());
                } else if let Some(error) = core.take_error() {
                    return Err(error);
                }
                let mut job = None;
                // A poll hands out no more than the memory that is decoded at once, and a batch.
                while left > 0 && memory < buffer::DECODED_AT_ONCE && failure.is_none() {
                    match core.next_chunk(left) {
                        Next::Chunk(partition, life, chunk) => {
                            left = left.saturating_sub(chunk.range.len());
                            memory = memory.saturating_add(chunk.batch.memory());
                            hand_out(partition, life, chunk);
                        }
                        Next::Decode(next) => {
                            job = Some(next);
                            break;
                        }
                        Next::Nothing => break,
                    }
                }
                is_left |= job.is_none() && core.has_left_for_others();
                if core.take_wants_fetch(time::now) {
                    // A consumer with a thread of its own does not depend on this poll yielding.
                    shared.yields.store(shared.home.is_none(), Ordering::Relaxed);
                    shared.wake.notify_one();
                }
                job
            };
            let Some(job) = job else { break };
            let partition = job.partition.clone();
            let (key, decoding) = job.split();
            let (decoded, result) = decoding.run(
                shared.settings.check_crcs,
                &shared.decompressor,
                shared.settings.max_decompressed_bytes,
            );
            failure = result
                .err()
                .map(|error| error.with_topic(partition.topic).with_partition(partition.partition));
            returned = Some((key, decoded));
        }
        if is_left {
            // They may have met it while it was decoded here, and wait.
            shared.changed.notify_waiters();
        }
        if left < max {
            // A failure comes again with the next poll, after these records.
            return Ok(());
        }
        match failure.or_else(|| shared.lock().partitions.failure()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if let Some(until) = self.until {
            core.handle_wait_end(until);
        }
        core.handle_poll_end(time::now());
    }
}

pub(super) fn poll_within_a_call() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a rebalance listener cannot poll")
        .with_hint("return from it: the poll that it was called in goes on")
}
