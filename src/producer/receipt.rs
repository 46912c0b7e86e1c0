//! What `send` hands out: one receipt per batch, shared by its records, and a [`Delivery`] per record.
//!
//! Per record it costs a reference count and an index: no channel, no allocation.

use std::{
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::interceptor::Interceptors;
use crate::{
    error::{Error, Result},
    mutex::Mutex,
    record::RecordMetadata,
};

/// Where the first record of an acknowledged batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// -1 if the broker did not say.
    pub(crate) base_offset: i64,
    /// -1 unless the topic's timestamps are the broker's.
    pub(crate) log_append_time: i64,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum BatchOutcome {
    Acknowledged(Ack),
    Failed(Error),
    /// The batch was too large, or had bad records in it, and went on in parts, sorted by `first`.
    Split(Vec<Part>),
}

/// Some records of a batch that went on in another one.
#[derive(Debug)]
pub(crate) struct Part {
    /// The first of these records in the batch they were in. They end where the next part begins.
    pub(crate) first: u32,
    /// Its place in the batch it is in now.
    pub(crate) index: u32,
    pub(crate) receipt: Arc<Receipt>,
}

/// A record of whose fate interceptors are told.
#[derive(Debug, Clone, Copy)]
struct Watched {
    index: u32,
    timestamp: i64,
}

/// The producer's own reference to a receipt. All its copies count as one, so that every other reference belongs to a
/// delivery.
#[derive(Debug, Clone)]
pub(crate) struct ReceiptStub(Arc<Own>);

#[derive(Debug)]
struct Own(Arc<Receipt>);

impl ReceiptStub {
    pub(crate) fn new(topic: Arc<str>, partition: i32) -> Self {
        Self(Arc::new(Own(Receipt::make(topic, partition, None))))
    }

    /// Of some records of a batch that go on in another one.
    pub(crate) fn part_of(whole: &Self, records: u32) -> Self {
        let part = Receipt::make(Arc::clone(&whole.topic), whole.partition, Some(Arc::downgrade(whole)));
        part.set_records(records);
        Self(Arc::new(Own(part)))
    }

    /// How many deliveries there are that may still be awaited, counting references from a batch to its parts.
    fn deliveries(&self) -> u32 {
        u32::try_from(Arc::strong_count(self) - 1).unwrap_or(u32::MAX)
    }

    /// Waits until every record of the batch has its answer.
    pub(crate) async fn resolved(&self) {
        let mut waiting = self.parts().await;
        while let Some(part) = waiting.pop() {
            waiting.extend(part.parts().await);
        }
    }

    /// Whether a delivery may still come to it.
    pub(crate) fn is_held(&self) -> bool {
        self.deliveries() > 0
    }

    /// How many records of the failed batch nobody has heard of, nor can any more.
    pub(crate) fn unawaited(&self) -> u32 {
        if self.whole.as_ref().is_some_and(|whole| whole.strong_count() > 0) {
            return 0;
        }
        let heard = self.heard.load(Ordering::Relaxed);
        self.records().saturating_sub(heard).saturating_sub(self.deliveries())
    }
}

impl Deref for ReceiptStub {
    type Target = Arc<Receipt>;

    fn deref(&self) -> &Arc<Receipt> {
        &self.0.0
    }
}

/// The fate of one batch.
#[derive(Debug)]
pub(crate) struct Receipt {
    topic: Arc<str>,
    partition: i32,
    outcome: OnceLock<BatchOutcome>,
    waiting: Mutex<Vec<Waker>>,
    /// Empty without interceptors.
    watched: Mutex<Vec<Watched>>,
    /// How many records the batch has so far.
    records: AtomicU32,
    /// How many of them have told their caller that they failed, or were given up by a caller who knew.
    heard: AtomicU32,
    /// The batch that this is a part of, whose deliveries come here when they are awaited.
    whole: Option<Weak<Self>>,
}

impl Receipt {
    #[cfg(test)]
    pub(crate) fn new(topic: Arc<str>, partition: i32) -> Arc<Self> {
        Self::make(topic, partition, None)
    }

    fn make(topic: Arc<str>, partition: i32, whole: Option<Weak<Self>>) -> Arc<Self> {
        Arc::new(Self {
            topic,
            partition,
            outcome: OnceLock::new(),
            waiting: Mutex::new(Vec::new()),
            watched: Mutex::new(Vec::new()),
            records: AtomicU32::new(0),
            heard: AtomicU32::new(0),
            whole,
        })
    }

    /// The batch has so many records by now. Called under its partition's lock.
    #[inline]
    pub(crate) fn set_records(&self, records: u32) {
        self.records.store(records, Ordering::Relaxed);
    }

    pub(crate) fn records(&self) -> u32 {
        self.records.load(Ordering::Relaxed)
    }

    /// Tells all who wait. Never call it under a lock: it wakes tasks. The first outcome stands; false if this was not it.
    #[cfg(any(test, feature = "unstable-benches"))]
    pub(crate) fn resolve(&self, outcome: BatchOutcome) -> bool {
        self.resolve_telling(outcome, &Interceptors::default())
    }

    /// The same, and interceptors are told of each record before anybody else is.
    pub(crate) fn resolve_telling(&self, outcome: BatchOutcome, interceptors: &Interceptors) -> bool {
        let outcome = match outcome {
            BatchOutcome::Failed(error) => {
                BatchOutcome::Failed(error.with_topic(Arc::clone(&self.topic)).with_partition(self.partition))
            }
            outcome => outcome,
        };
        let is_first = loop {
            let mut watched = self.watched.lock();
            if watched.is_empty() {
                // Set under the lock, so that whoever comes later finds the outcome. The first one stands: a batch that
                // has timed out, or was failed by `close`, may still be answered.
                break self.outcome.set(outcome).is_ok();
            }
            let records = std::mem::take(&mut *watched);
            drop(watched);
            records.into_iter().for_each(|record| self.tell(&outcome, record, interceptors));
        };
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for waker in waiting {
            waker.wake();
        }
        is_first
    }

    /// Interceptors want to be told of a record.
    fn watch(&self, record: Watched, interceptors: &Interceptors) {
        let mut watched = self.watched.lock();
        match self.outcome.get() {
            None => watched.push(record),
            Some(outcome) => {
                drop(watched);
                self.tell(outcome, record, interceptors);
            }
        }
    }

    /// Tells interceptors of a record, or notes it in the part of the batch that it is in now.
    fn tell(&self, outcome: &BatchOutcome, record: Watched, interceptors: &Interceptors) {
        let Watched { index, timestamp } = record;
        match outcome {
            BatchOutcome::Failed(error) => interceptors.on_acknowledgement(Err(error)),
            BatchOutcome::Acknowledged(ack) => {
                interceptors.on_acknowledgement(Ok(&self.metadata(ack, index, timestamp)));
            }
            BatchOutcome::Split(parts) => {
                if let Some((index, part)) = part_with(parts, index) {
                    part.watch(Watched { index, timestamp }, interceptors);
                }
            }
        }
    }

    /// Where a record of the batch is.
    #[inline]
    fn metadata(&self, ack: &Ack, index: u32, timestamp: i64) -> RecordMetadata {
        // An offset beyond `i64` is in no log, and counts as unknown.
        let offset = ack.base_offset.checked_add(i64::from(index));
        let offset = offset.filter(|_| ack.base_offset >= 0).unwrap_or(-1);
        let timestamp = if ack.log_append_time < 0 { timestamp } else { ack.log_append_time };
        RecordMetadata { topic: Arc::clone(&self.topic), partition: self.partition, offset, timestamp }
    }

    /// Whether the batch itself has its answer.
    pub(crate) fn has_outcome(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Where the batch goes.
    pub(crate) fn place(&self) -> (&Arc<str>, i32) {
        (&self.topic, self.partition)
    }

    /// Whether every record of the batch has its answer.
    pub(crate) fn is_resolved(&self) -> bool {
        match self.outcome.get() {
            None => false,
            Some(BatchOutcome::Split(parts)) => parts.iter().all(|part| part.receipt.is_resolved()),
            Some(_) => true,
        }
    }

    /// Waits for its outcome. Returns the parts that it went on in.
    async fn parts(&self) -> Vec<Arc<Self>> {
        let mut registered = 0;
        match std::future::poll_fn(|context| self.poll(context, &mut registered)).await {
            BatchOutcome::Split(parts) => parts.iter().map(|part| Arc::clone(&part.receipt)).collect(),
            _ => Vec::new(),
        }
    }

    /// `registered`: the caller's place in the list of those who wait, plus one; 0 while it is not in the list.
    #[inline]
    fn poll(&self, context: &Context<'_>, registered: &mut u32) -> Poll<&BatchOutcome> {
        match self.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => self.wait(context, registered),
        }
    }

    #[inline(never)]
    fn wait(&self, context: &Context<'_>, registered: &mut u32) -> Poll<&BatchOutcome> {
        let mut waiting = self.waiting.lock();
        // Checked again under the lock: `resolve` sets the outcome before it takes the list.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        // A task that polls again, or that awaits its records in order, registers only once: several deliveries may share
        // a place.
        let own = (*registered as usize).checked_sub(1).and_then(|place| waiting.get(place));
        if own.or_else(|| waiting.last()).is_some_and(|waker| waker.will_wake(context.waker())) {
            if *registered == 0 {
                *registered = waiting.len() as u32;
            }
        } else {
            waiting.push(context.waker().clone());
            *registered = waiting.len() as u32;
        }
        Poll::Pending
    }
}

/// The acknowledgment of one record: a future of its [`RecordMetadata`].
///
/// # Errors
/// The broker's error, or [`Timeout`](crate::ErrorKind::Timeout) after `delivery.timeout.ms`.
/// [`Error::possibly_written`] says whether the record may be in the log all the same.
///
/// # Cancel safety
/// Dropping it does not take the record back: the producer goes on delivering. Awaiting it by reference and dropping
/// that future loses nothing.
#[derive(Debug)]
#[must_use = "a record is only known to be written when its delivery was awaited, its producer flushed, or its transaction committed; \
              `drop` it to say that you mean one of these"]
pub struct Delivery {
    receipt: Arc<Receipt>,
    index: u32,
    /// Its place among those who wait for the receipt.
    registered: u32,
    timestamp: i64,
}

impl Delivery {
    pub(crate) fn new(receipt: Arc<Receipt>, index: u32, timestamp: i64) -> Self {
        Self { receipt, index, registered: 0, timestamp }
    }

    /// The topic the record goes to.
    pub fn topic(&self) -> &str {
        &self.receipt.topic
    }

    /// The partition the record goes to.
    pub fn partition(&self) -> i32 {
        self.receipt.partition
    }

    /// Interceptors are told what becomes of it.
    pub(super) fn watch(&self, interceptors: &Interceptors) {
        self.receipt.watch(Watched { index: self.index, timestamp: self.timestamp }, interceptors);
    }

    /// Drops the delivery of a caller who has been told already that the record may fail: it does not count as unawaited.
    pub(crate) fn give_up(self) {
        self.receipt.heard.fetch_add(1, Ordering::Relaxed);
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = &mut *self;
            let ack = match this.receipt.poll(context, &mut this.registered) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(BatchOutcome::Failed(error)) => {
                    this.receipt.heard.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(Err(error.clone()));
                }
                Poll::Ready(BatchOutcome::Acknowledged(ack)) => *ack,
                Poll::Ready(BatchOutcome::Split(parts)) => {
                    // Batches can be split again and again.
                    let Some((index, part)) = part_with(parts, this.index) else {
                        return Poll::Ready(Err(Error::protocol("a split batch lost a record")));
                    };
                    (this.index, this.receipt, this.registered) = (index, Arc::clone(part), 0);
                    continue;
                }
            };
            return Poll::Ready(Ok(this.receipt.metadata(&ack, this.index, this.timestamp)));
        }
    }
}

/// The part of a split batch that a record is in, and its place there: the last that begins at or before it.
fn part_with(parts: &[Part], index: u32) -> Option<(u32, &Arc<Receipt>)> {
    let after = parts.partition_point(|part| part.first <= index);
    let part = parts.get(after.checked_sub(1)?)?;
    Some((index - part.first + part.index, &part.receipt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_look_again_and_again_by_turns_register_once_each() {
        let receipt = Receipt::new("orders".into(), 0);
        let (one, other) = (Wakes::waker(), Wakes::waker());
        let mut deliveries = [0, 1].map(|index| Delivery::new(Arc::clone(&receipt), index, 0));
        for _ in 0..100 {
            for (delivery, (_, waker)) in deliveries.iter_mut().zip([&one, &other]) {
                assert!(Pin::new(delivery).poll(&mut Context::from_waker(waker)).is_pending());
            }
        }
        assert_eq!(receipt.waiting.lock().len(), 2);
        // One that is awaited elsewhere takes no place from the others.
        let [_, moved] = &mut deliveries;
        assert!(Pin::new(moved).poll(&mut Context::from_waker(&one.1)).is_pending());
        receipt.resolve(acknowledged(7));
        assert!(one.0.0.load(Ordering::Relaxed) > 0 && other.0.0.load(Ordering::Relaxed) > 0);
    }

    struct Wakes(AtomicU32);

    impl Wakes {
        fn waker() -> (Arc<Self>, Waker) {
            let wakes = Arc::new(Self(AtomicU32::new(0)));
            (Arc::clone(&wakes), Waker::from(wakes))
        }
    }

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn acknowledged(base_offset: i64) -> BatchOutcome {
        BatchOutcome::Acknowledged(Ack { base_offset, log_append_time: -1 })
    }

    #[tokio::test]
    async fn records_beside_a_bad_one_find_their_place_in_the_batch_without_it() {
        let (receipt, kept, bad) = (
            Receipt::new("orders".into(), 0),
            Receipt::new("orders".into(), 0),
            Receipt::new("orders".into(), 0),
        );
        let deliveries: Vec<_> = (0..4).map(|i| Delivery::new(Arc::clone(&receipt), i, 0)).collect();
        let part = |first, index, receipt: &Arc<Receipt>| Part { first, index, receipt: Arc::clone(receipt) };
        receipt.resolve(BatchOutcome::Split(vec![part(0, 0, &kept), part(1, 0, &bad), part(2, 1, &kept)]));
        bad.resolve(BatchOutcome::Failed(Error::from_code("Produce", 87)));
        kept.resolve(acknowledged(50));
        let mut outcomes = Vec::new();
        for delivery in deliveries {
            outcomes.push(delivery.await.map(|metadata| metadata.offset).map_err(|error| error.code()));
        }
        let code = Some(crate::error::ErrorCode(87));
        assert_eq!(outcomes, [Ok(50), Err(code), Ok(51), Ok(52)]);
    }

    #[tokio::test]
    async fn every_record_of_a_batch_learns_its_own_offset() {
        let receipt = Receipt::new("orders".into(), 3);
        let (first, third) =
            (Delivery::new(Arc::clone(&receipt), 0, 7), Delivery::new(Arc::clone(&receipt), 2, 9));
        assert!(!receipt.is_resolved());
        receipt.resolve(acknowledged(40));
        assert_eq!(first.await.unwrap().offset, 40);
        let third = third.await.unwrap();
        assert_eq!((third.offset, third.timestamp, third.partition), (42, 9, 3));
    }

    #[tokio::test]
    async fn an_offset_that_cannot_be_is_not_known_and_no_panic() {
        for (base, expected) in [(-1, -1), (i64::MIN, -1), (i64::MAX - 1, -1), (i64::MAX - 2, i64::MAX)] {
            let receipt = Receipt::new("orders".into(), 0);
            receipt.resolve(acknowledged(base));
            assert_eq!(Delivery::new(receipt, 2, 0).await.unwrap().offset, expected, "{base}");
        }
    }

    #[tokio::test]
    async fn a_split_batch_leads_each_record_to_its_part() {
        let receipt = Receipt::new("orders".into(), 0);
        let parts = [Receipt::new("orders".into(), 0), Receipt::new("orders".into(), 0)];
        let deliveries: Vec<_> = (0..4).map(|i| Delivery::new(Arc::clone(&receipt), i, 0)).collect();
        let part = |first, receipt: &Arc<Receipt>| Part { first, index: 0, receipt: Arc::clone(receipt) };
        receipt.resolve(BatchOutcome::Split(vec![part(0, &parts[0]), part(3, &parts[1])]));
        assert!(!receipt.is_resolved());
        parts[0].resolve(acknowledged(10));
        parts[1].resolve(acknowledged(20));
        assert!(receipt.is_resolved());
        let mut offsets = Vec::new();
        for delivery in deliveries {
            offsets.push(delivery.await.unwrap().offset);
        }
        assert_eq!(offsets, [10, 11, 12, 20]);
    }

    #[tokio::test]
    async fn the_first_outcome_stands() {
        let receipt = Receipt::new("orders".into(), 0);
        receipt.resolve(BatchOutcome::Failed(Error::closed("producer")));
        receipt.resolve(acknowledged(1));
        let error = Delivery::new(receipt, 0, 0).await.unwrap_err();
        assert_eq!(error.to_string(), "the producer is closed [topic orders partition 0]");
    }

    #[tokio::test]
    async fn a_waiting_task_is_woken() {
        let receipt = Receipt::new("orders".into(), 0);
        let delivery = Delivery::new(Arc::clone(&receipt), 0, 0);
        let (metadata, ()) = tokio::join!(delivery, async {
            tokio::task::yield_now().await;
            receipt.resolve(acknowledged(1));
        });
        assert_eq!(metadata.unwrap().offset, 1);
    }
}
