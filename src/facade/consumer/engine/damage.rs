//! Batches that cannot be read: set aside until all before them is done, then passed over as the policy says, with a letter
//! that is written beside everything else. Nothing before such a batch is ever said to be done by passing over it.

use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use crate::{
    consumer::acknowledge::{Life, Taken},
    error::{Error, ErrorKind, Result},
    facade::{failure::Failure, letters, policy::Decision},
    record::{ConsumerRecord, TopicPartition},
};

/// A batch that cannot be read. All that stands before it was taken.
#[derive(Clone)]
pub(super) struct Damaged {
    pub(super) life: Life,
    bytes: Bytes,
    error: Error,
}

/// A damaged batch that was dealt with.
pub(super) struct Passed {
    partition: TopicPartition,
    life: Life,
    error: Error,
    /// Whether it was written to a dead letter topic.
    outcome: Result<bool>,
}

impl Engine {
    /// Sets a batch that cannot be read aside, if the policy does not say to stop there.
    pub(super) fn on_damage(&mut self, error: Error) -> Result<Vec<Taken>> {
        let place = (error.topic(), error.partition(), error.last_offset());
        let (Some(topic), Some(partition), Some(_)) = place else { return Err(error) };
        let partition = TopicPartition::new(topic, partition);
        let route = self.plan.routes.of(&self.plan.topics, &partition.topic);
        if route.policy.decide(&Failure::Corrupt(error.clone()), 1, 0, 0) == Decision::Stop {
            return Err(error);
        }
        // What stands before it is handled first: going on behind it says that all before it is done.
        // While there is something to be taken before it, it is met again.
        if let Some((life, bytes)) = self.client.damaged(&partition, &error)? {
            if let Err(error) = self.client.pause([partition.clone()]) {
                // A rebalance has come between: whoever has the partition now meets the batch.
                tracing::debug!(%error, "the partition is gone");
                return Ok(Vec::new());
            }
            self.damaged.insert(partition, Damaged { life, bytes, error });
        }
        Ok(Vec::new())
    }

    /// Begins to go on behind a damaged batch whose partition has nothing at work any more, as the policy says. Its letter
    /// is written beside everything else.
    pub(super) fn pass_damage(&mut self) {
        if !self.passing.is_empty() || self.stop.is_cancelled() {
            return;
        }
        let ready = self.damaged.iter().find(|(partition, _)| !self.lanes.has(partition));
        let Some((partition, Damaged { life, bytes, error })) =
            ready.map(|(partition, damaged)| (partition.clone(), damaged.clone()))
        else {
            return;
        };
        let last = error.last_offset().unwrap_or(-1);
        let route = self.plan.routes.of(&self.plan.topics, &partition.topic);
        let is_letter =
            route.policy.decide(&Failure::Corrupt(error.clone()), 1, 0, 0) == Decision::DeadLetter;
        let mut record = ConsumerRecord::new(
            Arc::clone(&partition.topic),
            partition.partition,
            error.offset().unwrap_or(last),
        );
        let topic = is_letter.then(|| route.policy.dead_letter_topic(&record, &error)).flatten();
        let Some(topic) = topic else {
            self.on_passed(Passed { partition, life, error, outcome: Ok(false) });
            return;
        };
        if let Err(refused) = route.refuse_circle(&partition, &record, &topic, &error) {
            return self.on_passed(Passed { partition, life, error, outcome: Err(refused) });
        }
        record.value = Some(bytes);
        let kit = Arc::clone(&self.kit);
        self.passing.spawn(async move {
            let headers = letters::batch_headers(&record, last, &error);
            let outcome = kit.outbox.send(&topic, &record, &headers, &error).await.map(|_| true);
            Passed { partition, life, error, outcome }
        });
    }

    fn on_passed(&mut self, passed: Passed) {
        let Passed { partition, life, error, outcome } = passed;
        let is_letter = match outcome {
            Ok(is_letter) => is_letter,
            // It is tried again, if this is no end.
            Err(failed) => return self.on_failure(failed),
        };
        if self.damaged.remove(&partition).is_none() {
            tracing::debug!(%partition, "the partition of a damaged batch is gone");
            return;
        }
        let last = error.last_offset().unwrap_or(-1);
        if self.client.pass_over(&partition, life, last.saturating_add(1)) {
            tracing::error!(%error, last_offset = last, "a batch that cannot be read is passed over, as the error policy says");
            if is_letter { self.kit.counters.dead_lettered() } else { self.kit.counters.skipped() }
        }
        self.resume(partition);
    }

    pub(super) fn on_letter(&mut self, passed: std::result::Result<Passed, tokio::task::JoinError>) {
        match passed {
            Ok(passed) => self.on_passed(passed),
            Err(gone) if gone.is_cancelled() => {}
            Err(gone) => self.on_failure(
                Error::new(ErrorKind::Handler, "the letter of a damaged batch ended by itself")
                    .with_source(gone),
            ),
        }
    }
}
