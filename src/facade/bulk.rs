//! [`BulkLoad`]: many records in a row, and how far it has got. Nothing is allocated per record beyond its place in the queue of
//! open deliveries, which is bounded; what bounds the bytes is the producer's `buffer.memory`.

use std::{collections::VecDeque, fmt, pin::pin, time::Duration};

use futures_core::Stream;
use futures_util::FutureExt as _;
use serde::Serialize;

use super::{LogSubject, log};
use crate::{
    driver,
    error::{Error, ErrorKind},
    producer::{Delivery, IntoKey, KafkaProducer, Key, OutgoingRecord},
    time::{self, Instant},
};

const PLACE: LogSubject =
    LogSubject { controller: "dtkafka::Producer::bulk_load", subject: "Kafka Producer" };
/// Deliveries that may be open: more would only be memory, as batches of a few thousand records are in flight at a time.
const OPEN: usize = 1 << 16;
/// Failures in one progress. A load of which everything fails must not gather all its errors.
const FAILURES: usize = 1000;
/// The least time that a progress waits for news, however often one is wanted, so that a loop over them does not spin.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// Records between two looks at the clock.
const STRIDE: u32 = 64;

/// The progress of a [`BulkLoad`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Records that were taken from the iterator.
    pub taken: u64,
    /// Records that were acknowledged.
    pub delivered: u64,
    /// Records that failed.
    pub failed: u64,
    /// The records that failed since the last progress: their index in the iterator, from 0, and why.
    pub failures: Vec<(u64, Error)>,
}

impl Progress {
    /// Records that were taken and have no answer yet.
    pub fn open(&self) -> u64 {
        self.taken - self.delivered - self.failed
    }
}

impl fmt::Display for Progress {
    /// As in `1200 delivered, 3 failed, 500 open`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} delivered, {} failed, {} open", self.delivered, self.failed, self.open())
    }
}

struct Pending<'k, V> {
    number: u64,
    key: Option<Key<'k>>,
    value: V,
    /// The record as interceptors have changed it; they see it once, however long it waits.
    shown: Option<OutgoingRecord<'static>>,
    /// The end of `max.block.ms`, which progresses in between do not extend; `None` before the first attempt.
    until: Option<Instant>,
}

/// Many JSON values on their way to one topic, made by [`Producer::bulk_load`](super::Producer::bulk_load). It goes on while
/// [`next`](Self::next) is awaited.
#[must_use = "nothing is sent until its progress is asked for"]
pub struct BulkLoad<'k, I, V> {
    client: KafkaProducer,
    topic: String,
    records: I,
    /// The next record, which waits for memory.
    pending: Option<Pending<'k, V>>,
    /// Sent and not answered, in the order they were sent.
    open: VecDeque<(u64, Delivery)>,
    progress: Progress,
    every: Duration,
    /// Brokers say that this topic does not exist, and a record has waited for it in vain: the next ones do not wait.
    missing: Option<String>,
    /// The iterator is at its end, or the producer is.
    is_drained: bool,
    is_over: bool,
}

impl<I, V> fmt::Debug for BulkLoad<'_, I, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkLoad")
            .field("topic", &self.topic)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl<'k, K, V, I> BulkLoad<'k, I, V>
where
    K: IntoKey<'k>,
    V: Serialize,
    I: Iterator<Item = (K, V)>,
{
    pub(super) fn new(client: KafkaProducer, topic: &str, records: I) -> Self {
        Self {
            client,
            topic: topic.to_owned(),
            records,
            pending: None,
            open: VecDeque::new(),
            progress: Progress::default(),
            every: Duration::from_secs(1),
            missing: None,
            is_drained: false,
            is_over: false,
        }
    }

    /// The longest time between two progresses. Default: 1 s. With zero there is one every 64 records or fewer; where there is
    /// nothing but to wait, one a millisecond at most.
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    /// Goes on, and returns when it is time for a progress, or 1,000 records have failed since the last. The last one says that
    /// every record has its answer (`open()` is 0); `None` after that.
    ///
    /// Records that fail are in the progress, and do not end the load; a producer that was closed does, and the rest is not
    /// taken.
    ///
    /// # Cancel safety
    /// Cancel safe: call it again, and it goes on where it was. Dropped with the load, what was sent is still delivered.
    pub async fn next(&mut self) -> Option<Progress> {
        if self.is_over {
            return None;
        }
        if let Err(error) = driver::check_runtime() {
            // As for a producer that was closed: one failure, and no more records are taken.
            self.is_over = true;
            self.progress.taken += 1;
            self.answered(self.progress.taken - 1, Err(error));
            return Some(self.report());
        }
        let deadline = time::after(self.every);
        let patience = time::after(self.every.max(LEAST_WAIT));
        let mut stride = 0;
        loop {
            stride += 1;
            let mut is_time = false;
            if stride % STRIDE == 0 {
                self.reap();
                is_time = time::now() >= deadline;
            }
            if is_time || self.progress.failures.len() >= FAILURES {
                // Lets other tasks of this thread run even if no record ever had to wait.
                tokio::task::yield_now().await;
                return Some(self.report());
            }
            let is_time = if self.open.len() < OPEN && self.take_next() {
                !self.send_pending(patience).await
            } else if let Some((number, delivery)) = self.open.front_mut() {
                let number = *number;
                let outcome = tokio::time::timeout_at(patience, delivery).await;
                outcome.map_or(true, |outcome| {
                    self.open.pop_front();
                    self.answered(number, outcome.map(drop));
                    false
                })
            } else {
                self.is_over = true;
                if self.progress.failed > 0 {
                    let Progress { taken, failed, .. } = self.progress;
                    tracing::warn!(failed, of = taken, "some records of a bulk load were not delivered");
                }
                return Some(self.report());
            };
            if is_time {
                return Some(self.report());
            }
        }
    }

    /// The same as a stream, which ends with the load.
    pub fn stream(self) -> impl Stream<Item = Progress> {
        futures_util::stream::unfold(self, async |mut load| {
            load.next().await.map(|progress| (progress, load))
        })
    }

    /// Runs to the end without looking on: the last progress, with the first 1,000 failures.
    ///
    /// # Cancel safety
    /// If dropped, what was sent is still delivered, and the rest is not sent.
    pub async fn finish(mut self) -> Progress {
        let (mut failures, mut last) = (Vec::new(), Progress::default());
        while let Some(mut progress) = self.next().await {
            failures.extend(progress.failures.drain(..).take(FAILURES - failures.len()));
            last = progress;
        }
        last.failures = failures;
        last
    }

    /// Whether there is a record to be sent.
    fn take_next(&mut self) -> bool {
        if self.pending.is_none() && !self.is_drained {
            match self.records.next() {
                Some((key, value)) => {
                    let number = self.progress.taken;
                    self.progress.taken += 1;
                    self.pending =
                        Some(Pending { number, key: key.into_key(), value, shown: None, until: None });
                }
                None => self.is_drained = true,
            }
        }
        self.pending.is_some()
    }

    /// Sends it, which waits for memory at most until `deadline`. False if it is still waiting then.
    async fn send_pending(&mut self, deadline: Instant) -> bool {
        let Some(Pending { number, key, value, shown, until }) = &mut self.pending else { return true };
        let number = *number;
        let mut refused = None;
        if shown.is_none() && self.client.has_interceptors() {
            match self.client.show(&self.topic, key.clone(), value) {
                Ok(record) => *shown = Some(record),
                Err(error) => refused = Some(error),
            }
        }
        let topic = shown.as_ref().map_or(&*self.topic, OutgoingRecord::topic);
        let is_missing = self.missing.as_deref() == Some(topic);
        let wait = || time::after(if is_missing { Duration::ZERO } else { self.client.max_block() });
        let until = *until.get_or_insert_with(wait);
        let limit = deadline.min(until);
        let sent = match (refused, &*shown) {
            (Some(error), _) => Some(Err(error)),
            (None, None) => {
                in_time(self.client.send(&self.topic, &*value).key(key.clone()).into_future(), limit).await
            }
            (None, Some(record)) => in_time(self.client.send_shown(record), limit).await,
        };
        let sent = match sent {
            Some(sent) => sent,
            None if time::now() < until => return false,
            None => Err(too_late(&self.client, topic)),
        };
        let kind = sent.as_ref().err().map(Error::kind);
        // An error of the record itself is found before its topic is looked for, and says nothing of the topic.
        if !matches!(kind, Some(ErrorKind::Json | ErrorKind::InvalidArgument)) {
            // In an outage no broker says that the topic is missing. Then each record waits, or the whole load would
            // fail.
            let is_said = || self.client.why(topic, None).is_some_and(|why| why.code().is_some());
            if kind.is_some() && !self.client.has_topic(topic) && is_said() {
                self.missing = Some(topic.to_owned());
            } else if is_missing {
                self.missing = None;
            }
        }
        let shown = self.pending.take().and_then(|pending| pending.shown);
        let sent = match &shown {
            Some(record) => self.client.watch(record, sent),
            None => sent,
        };
        match sent {
            Ok(delivery) => self.open.push_back((number, delivery)),
            Err(error) => {
                self.is_drained |= error.kind() == ErrorKind::Closed;
                self.answered(number, Err(error));
            }
        }
        true
    }

    /// Takes the answers that are there, in order.
    fn reap(&mut self) {
        while let Some((number, delivery)) = self.open.front_mut() {
            let number = *number;
            let Some(outcome) = delivery.now_or_never() else { break };
            self.open.pop_front();
            self.answered(number, outcome.map(drop));
        }
    }

    fn answered(&mut self, number: u64, outcome: Result<(), Error>) {
        match outcome {
            Ok(()) => self.progress.delivered += 1,
            Err(error) => {
                if self.progress.failed == 0 {
                    log(PLACE, &error);
                }
                self.progress.failed += 1;
                self.progress.failures.push((number, error));
            }
        }
    }

    fn report(&mut self) -> Progress {
        let failures = std::mem::take(&mut self.progress.failures);
        Progress { failures, ..self.progress.clone() }
    }
}

/// A record could not be taken within `max.block.ms`.
fn too_late(client: &KafkaProducer, topic: &str) -> Error {
    let error =
        Error::new(ErrorKind::Timeout, "the record was not taken within max.block.ms").with_topic(topic);
    match client.why(topic, None) {
        Some(why) => error.with_source(why),
        None => error,
    }
}

/// Sets a timer only if it has to wait.
async fn in_time<T>(sending: impl Future<Output = T>, limit: Instant) -> Option<T> {
    let mut sending = pin!(sending);
    match (&mut sending).now_or_never() {
        Some(sent) => Some(sent),
        None => tokio::time::timeout_at(limit, sending).await.ok(),
    }
}
