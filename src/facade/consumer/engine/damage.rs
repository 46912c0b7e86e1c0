//! Batches that cannot be read: set aside until all before them is done, then passed over as the policy says, with a letter
//! that is written beside everything else. Nothing before such a batch is ever said to be done by passing over it.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::{Engine, panicked};
use crate::{
    consumer::{PartitionRecords, acknowledge::Life},
    error::{Error, Result},
    facade::{
        consumer::lane::{LETTER_PAUSE, RunContext, longer_letter_pause},
        failure::Failure,
        letters,
        policy::Decision,
        routes::Route,
    },
    record::{ConsumerRecord, TopicPartition},
};

/// A batch that cannot be read. All that stands before it was taken.
#[derive(Clone)]
pub(super) struct Damaged {
    pub(super) life: Life,
    bytes: Bytes,
    error: Error,
    /// It is being dealt with.
    pub(super) is_passing: bool,
}

/// A damaged batch that was dealt with.
pub(super) struct Passed {
    partition: TopicPartition,
    damaged: Damaged,
    /// Whether it was written to a dead letter topic.
    outcome: Result<bool>,
}

impl Engine {
    /// Sets a batch that cannot be read aside, if the policy does not say to stop there.
    pub(super) fn on_damage(&mut self, error: Error) -> Result<Vec<PartitionRecords>> {
        let place = (error.topic(), error.partition(), error.last_offset());
        let (Some(topic), Some(partition), Some(_)) = place else { return Err(error) };
        let partition = TopicPartition::new(topic, partition);
        let route = self.plan.routes.of(&self.plan.topics, &partition.topic);
        if route.policy.decide(&Failure::Corrupt(error.clone()), 1, 0, 0) == Decision::Stop {
            return Err(error);
        }
        // Records before it are handled first, because going on behind it says that all before it is done. While there is
        // something to be taken before it, it is met again.
        if let Some((life, bytes)) = self.client.damaged(&partition, &error)? {
            if let Err(error) = self.client.hold_back(partition.clone()) {
                // After a rebalance in between, whoever has the partition now will meet the batch.
                tracing::debug!(%error, "the partition is gone");
                return Ok(Vec::new());
            }
            self.damaged.insert(partition, Damaged { life, bytes, error, is_passing: false });
        }
        Ok(Vec::new())
    }

    /// Begins to go on behind the damaged batches whose partitions have nothing at work any more, as the policy says. Letters
    /// are written beside everything else.
    pub(super) fn pass_damage(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        let lanes = &self.lanes;
        let ready = self
            .damaged
            .iter_mut()
            .filter(|(partition, damaged)| !damaged.is_passing && !lanes.has(partition));
        for (partition, damaged) in ready {
            damaged.is_passing = true;
            let (partition, damaged) = (partition.clone(), damaged.clone());
            let route = self.plan.routes.of(&self.plan.topics, &partition.topic);
            let context = Arc::clone(&self.context);
            self.passing.spawn(async move {
                let writing =
                    AssertUnwindSafe(write_letter(&context, &route, &partition, &damaged)).catch_unwind();
                let outcome = writing.await.unwrap_or_else(|panic| Err(panicked(&*panic, &partition)));
                Passed { partition, damaged, outcome }
            });
        }
    }

    fn on_passed(&mut self, passed: Passed) {
        let Passed { partition, damaged: Damaged { life, error, .. }, outcome } = passed;
        if self.damaged.get(&partition).is_none_or(|damaged| damaged.life != life) {
            tracing::debug!(%partition, "the partition of a damaged batch is gone");
            return;
        }
        let is_letter = match outcome {
            Ok(is_letter) => is_letter,
            // If the consumer goes on after this, the letter is tried again.
            Err(failed) => return self.on_failure(failed),
        };
        self.damaged.remove(&partition);
        let last = error.last_offset().unwrap_or(-1);
        if self.client.pass_over(&partition, life, last.saturating_add(1)) {
            tracing::error!(%error, last_offset = last, "a batch that cannot be read is passed over, as the error policy says");
            if is_letter { self.context.counters.dead_lettered() } else { self.context.counters.skipped() }
        }
        self.resume(partition);
    }

    pub(super) fn on_letter(&mut self, passed: std::result::Result<Passed, tokio::task::JoinError>) {
        // If writing was aborted, another call writes the letter.
        if let Ok(passed) = passed {
            self.on_passed(passed);
        }
    }
}

/// Writes the letter of a damaged batch, if the policy wants one, and returns whether it does. As with a record's letter,
/// while the consumer runs a passing error holds up only this partition.
async fn write_letter(
    context: &RunContext,
    route: &Route,
    partition: &TopicPartition,
    Damaged { life, bytes, error, .. }: &Damaged,
) -> Result<bool> {
    let last = error.last_offset().unwrap_or(-1);
    let first = error.offset().unwrap_or(last);
    let mut record = ConsumerRecord::new(Arc::clone(&partition.topic), partition.partition, first);
    let decision = route.policy.decide(&Failure::Corrupt(error.clone()), 1, 0, 0);
    let chosen = (decision == Decision::DeadLetter).then(|| route.policy.dead_letter_topic(&record, error));
    let Some(topic) = chosen.flatten() else { return Ok(false) };
    route.refuse_circle(partition, &record, &topic, error)?;
    record.value = Some(bytes.clone());
    let headers = letters::batch_headers(&record, last, error);
    let mut pause = LETTER_PAUSE;
    loop {
        let sent = context.outbox.send(&topic, &record, &headers, error).await;
        let may_pass = |failed: &Error| failed.is_retriable() && context.persists.load(Relaxed);
        match sent {
            Err(failed) if may_pass(&failed) && context.ledger.is_live(partition, *life) => {
                tracing::warn!(?pause, error = %failed, "the damaged batch is written again after a pause");
                tokio::time::sleep(pause).await;
                if !context.ledger.is_live(partition, *life) {
                    // Whoever has the partition now meets the batch.
                    return Ok(false);
                }
                pause = longer_letter_pause(pause);
            }
            sent => return sent.map(|_| true),
        }
    }
}
