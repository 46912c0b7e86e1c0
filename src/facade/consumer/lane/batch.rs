//! Batches of a lane: many records in one call of their handler, and what becomes of each after a failure.

use std::sync::Arc;

use super::{Flow, Lane};
use crate::{
    error::Error,
    facade::{
        consumer::load::Chunk,
        dispatch::lanes::Load as _,
        failure::Failure,
        handler::CallBatch,
        letters,
        message::Failed,
        policy::{Decision, causes},
    },
    record::ConsumerRecord,
    telemetry::spans,
};

/// A record of a batch, and what the ledger knows it by.
pub(super) struct Item {
    pub(super) offset: i64,
    /// How often its handlers were called before it waited in a retry topic.
    before: u32,
    /// Its lane has waited for it.
    has_waited: bool,
    record: ConsumerRecord,
}

impl Lane {
    /// A batch of records through its handler, when those that have waited in a retry topic have waited long enough.
    pub(super) async fn batch(&mut self, call: &Arc<CallBatch>, mut items: Vec<Item>) -> Result<Flow, Error> {
        if self.route.level > 0 {
            let mut due = 0;
            for item in &mut items {
                let waited = letters::restore(&mut item.record);
                item.before = waited.attempts;
                if !item.has_waited {
                    due = waited.due.max(due);
                }
            }
            if self.wait_until(due).await == Flow::Abandoned {
                return Ok(Flow::Abandoned);
            }
        }
        self.call_batch(call, items).await
    }

    async fn call_batch(&mut self, call: &Arc<CallBatch>, mut items: Vec<Item>) -> Result<Flow, Error> {
        let mut attempt = 1;
        while let Some(first) = items.first() {
            if self.is_ending() {
                return Ok(Flow::Abandoned);
            }
            let number = first.before.saturating_add(attempt);
            let failure = match self.call_once(call, first, &items, number).await {
                Ok(()) => {
                    self.finish(items.drain(..));
                    continue;
                }
                Err(BatchFailure::Unreadable(0, error)) => {
                    let failure = Failure::Unreadable(error);
                    if self.is_given_up(&failure) {
                        return Ok(Flow::Abandoned);
                    }
                    self.context.counters.failed();
                    let flow = self.deal_with_each(&mut items, 1, failure, attempt).await?;
                    if flow == Flow::Abandoned {
                        return Ok(flow);
                    }
                    attempt = 1;
                    continue;
                }
                Err(BatchFailure::Unreadable(index, _)) => {
                    // The records before it are handled first; it is then the first of the rest.
                    let rest = items.split_off(index);
                    if Box::pin(self.call_batch(call, items)).await? == Flow::Abandoned {
                        return Ok(Flow::Abandoned);
                    }
                    items = rest;
                    continue;
                }
                Err(BatchFailure::Call(failure)) => failure,
            };
            let place = failed_at(&failure).and_then(|at| items.iter().position(|item| item.is_at(at)));
            self.finish(items.drain(..place.unwrap_or(0)));
            if self.is_given_up(&failure) {
                return Ok(Flow::Abandoned);
            }
            self.context.counters.failed();
            if place.is_some_and(|place| place > 0) {
                // It is not the message that failed before, so that its attempts begin anew.
                attempt = 1;
            }
            if let Decision::RetryAfter(pause) = self.decide(&failure, attempt) {
                tracing::warn!(attempt = number, ?pause, topic = %self.partition.topic, "the handler of a batch is called again after a pause");
                if self.pause(pause).await == Flow::Abandoned {
                    return Ok(Flow::Abandoned);
                }
                attempt += 1;
                self.context.counters.retried();
                continue;
            }
            let count = if place.is_some() { 1 } else { items.len() };
            if self.deal_with_each(&mut items, count, failure, attempt).await? == Flow::Abandoned {
                return Ok(Flow::Abandoned);
            }
            attempt = 1;
        }
        Ok(Flow::Handled)
    }

    /// One call of the handler with all `items`. `number`: of the attempt.
    async fn call_once(
        &mut self,
        call: &Arc<CallBatch>,
        first: &Item,
        items: &[Item],
        number: u32,
    ) -> Result<(), BatchFailure> {
        let given: Vec<_> = items.iter().map(|item| item.record.clone()).collect();
        let count = given.len();
        let header = |name: &str| {
            let header = first.record.header_str(name).filter(|_| count == 1);
            header.map(str::to_owned)
        };
        let one = spans::process(
            &first.record.topic,
            (first.record.partition, first.offset),
            number,
            Some(count),
            header,
        );
        let running =
            async { call(given, number)?.await.map_err(|error| BatchFailure::Call(Failure::Handler(error))) };
        self.guard(one.run(running), false).await.unwrap_or_else(|failure| Err(BatchFailure::Call(failure)))
    }

    /// Deals with the first `count` records for good, one after the other.
    async fn deal_with_each(
        &mut self,
        items: &mut Vec<Item>,
        count: usize,
        failure: Failure,
        attempt: u32,
    ) -> Result<Flow, Error> {
        let decision = self.decide(&failure, u32::MAX);
        let Some(first) = items.first() else { return Ok(Flow::Handled) };
        let error = failure.into_error(&first.record.topic, first.record.partition, first.record.offset);
        for item in items.drain(..count.min(items.len())).collect::<Vec<_>>() {
            // In a retry topic records of several partitions wait side by side.
            let ConsumerRecord { topic, partition, offset, .. } = &item.record;
            let error =
                error.clone().with_topic(Arc::clone(topic)).with_partition(*partition).with_offset(*offset);
            let dealt = self.deal(decision, &item.record, item.before.saturating_add(attempt), error).await?;
            if dealt == Flow::Abandoned {
                return Ok(Flow::Abandoned);
            }
            self.done.push(item.offset);
        }
        Ok(Flow::Handled)
    }

    fn finish(&mut self, items: impl Iterator<Item = Item>) {
        self.done.extend(items.map(|item| item.offset));
    }
}

enum BatchFailure {
    /// The record at this index is not what the handler expects. The handler was not called.
    Unreadable(usize, Error),
    Call(Failure),
}

impl From<(usize, Error)> for BatchFailure {
    fn from((index, error): (usize, Error)) -> Self {
        Self::Unreadable(index, error)
    }
}

impl Item {
    fn is_at(&self, place: &Failed) -> bool {
        let record = &self.record;
        (record.offset, record.partition, &record.topic) == (place.offset, place.partition, &place.topic)
    }

    pub(super) fn all_of(load: Chunk) -> impl Iterator<Item = Self> {
        let has_waited = load.due().is_some();
        load.records().map(move |record| Self { offset: record.offset, before: 0, has_waited, record })
    }
}

/// The message at which the handler of a batch says it failed.
fn failed_at(failure: &Failure) -> Option<&Failed> {
    let Failure::Handler(error) = failure else { return None };
    causes(error.as_ref()).find_map(|cause| cause.downcast_ref::<Failed>())
}
