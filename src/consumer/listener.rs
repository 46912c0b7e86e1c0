//! The user's rebalance listener: called within polls, one call at a time, each to its end. What it is told and when is
//! the core's (`core/notices.rs`).
//!
//! A call is a future that outlives the poll it began in: a poll that is dropped puts it back, and the next one goes on
//! with it. So no call is lost, and none is made twice.

use std::{
    fmt,
    future::{Future, poll_fn, ready},
    pin::Pin,
    sync::Arc,
};

use super::{KafkaConsumer, Shared, core::Notice};
use crate::{
    mutex::Mutex,
    record::TopicPartition,
    time::{self, Instant},
};

/// Is called when a consumer's partitions change: Java's `ConsumerRebalanceListener`, with futures.
///
/// ```no_run
/// use dtkafka::{KafkaConsumer, RebalanceListener, TopicPartition};
///
/// struct Positions;
///
/// impl RebalanceListener for Positions {
///     async fn assigned(&self, consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
///         for partition in partitions {
///             let _gone = consumer.seek(partition, stored(partition).await);
///         }
///     }
///
///     async fn revoked(&self, consumer: &KafkaConsumer, _partitions: &[TopicPartition]) {
///         let _told_by_the_next_commit = consumer.commit().await;
///     }
/// }
/// # async fn stored(_: &TopicPartition) -> i64 { 0 }
/// ```
///
/// **When.** Within [`poll`](KafkaConsumer::poll), its relatives, the facade's `consume` and `run`, and
/// [`close`](KafkaConsumer::close); never at the same time as another call, and in the order in which things happened. A
/// consumer that is not polled hears of nothing. While a call runs or waits, no poll hands out records.
///
/// **What is accepted within.** Everything but polling and closing: commits, seeks, pauses and questions to the broker. The
/// consumer passed in is the one the listener belongs to. A listener that keeps an `Arc` of it keeps it alive for ever.
///
/// **How long.** [`revoked`](Self::revoked) has what is left of `max.poll.interval.ms` since the rebalance began; after that
/// the partitions go, as the group waits no longer. A call that has not begun by then is a call of [`lost`](Self::lost)
/// instead. A call that takes longer than `max.poll.interval.ms` costs the membership, as a long pause between polls does, whatever is
/// polled meanwhile.
///
/// **Cancellation.** A poll that is dropped in the middle of a call loses nothing: the next poll, or the close, goes on with
/// the same call where it stood. A consumer that is dropped makes no more calls.
///
/// **Panics** reach whoever polls; the call counts as returned.
pub trait RebalanceListener: Send + Sync + 'static {
    /// These partitions are the consumer's now, beside those it has; nothing of them was handed out yet. Not called without
    /// any. A position set here with [`seek`](KafkaConsumer::seek) stands in place of the committed one.
    fn assigned(
        &self,
        consumer: &KafkaConsumer,
        partitions: &[TopicPartition],
    ) -> impl Future<Output = ()> + Send {
        let _ = (consumer, partitions);
        ready(())
    }

    /// These partitions go to another member when this returns; what was handed out of them is done, or its time is over.
    /// Commits are still accepted. With `enable.auto.commit` what is done is committed before and after. Also called by
    /// [`close`](KafkaConsumer::close), with all partitions.
    fn revoked(
        &self,
        consumer: &KafkaConsumer,
        partitions: &[TopicPartition],
    ) -> impl Future<Output = ()> + Send {
        let _ = (consumer, partitions);
        ready(())
    }

    /// These partitions are gone already, and may be another member's: nothing of them can be committed any more. The member
    /// was away for too long, was expelled, or has unsubscribed. Does as [`revoked`](Self::revoked) unless it is
    /// written, as in Java.
    fn lost(
        &self,
        consumer: &KafkaConsumer,
        partitions: &[TopicPartition],
    ) -> impl Future<Output = ()> + Send {
        self.revoked(consumer, partitions)
    }
}

/// One call of a listener, which owns all it needs.
type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A listener whose type is forgotten.
pub(crate) trait Listen: Send + Sync {
    fn call(self: Arc<Self>, consumer: KafkaConsumer, notice: Notice) -> Call;
}

impl<L: RebalanceListener> Listen for L {
    fn call(self: Arc<Self>, consumer: KafkaConsumer, notice: Notice) -> Call {
        Box::pin(async move {
            match notice {
                Notice::Assigned(partitions) => self.assigned(&consumer, &partitions).await,
                Notice::Revoked(partitions) => self.revoked(&consumer, &partitions).await,
                Notice::Lost(partitions) => self.lost(&consumer, &partitions).await,
            }
        })
    }
}

/// The listener of a consumer, and the call that is under way.
#[derive(Default)]
pub(super) struct Listening {
    slot: Mutex<Slot>,
}

/// Whose turn it is to make calls.
enum Taking {
    NoListener,
    /// Somebody else's: it tells when it has made them, or leaves.
    Another,
    Mine(Arc<dyn Listen>, Option<Call>),
}

#[derive(Default)]
struct Slot {
    listener: Option<Arc<dyn Listen>>,
    /// A call whose poll was dropped.
    kept: Option<Call>,
    /// Somebody is at a call, or looks for one.
    is_taken: bool,
    /// Somebody waits for the turn.
    is_wanted: bool,
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").finish_non_exhaustive()
    }
}

impl Listening {
    pub(super) fn set(&self, listener: Arc<dyn Listen>) {
        self.slot.lock().listener = Some(listener);
    }

    /// Makes no more calls. What a call holds may hold the consumer: it goes too.
    pub(super) fn clear(&self) {
        let (listener, kept) = {
            let mut slot = self.slot.lock();
            (slot.listener.take(), slot.kept.take())
        };
        drop((listener, kept));
    }

    fn take_turn(&self) -> Taking {
        let mut slot = self.slot.lock();
        let Some(listener) = slot.listener.clone() else { return Taking::NoListener };
        if std::mem::replace(&mut slot.is_taken, true) {
            slot.is_wanted = true;
            return Taking::Another;
        }
        Taking::Mine(listener, slot.kept.take())
    }

    /// Makes every call that waits, one after the other. `Arc`, as calls own the consumer they are about. False if somebody else
    /// was still at one at `deadline`; own calls take the time that they take.
    ///
    /// # Cancel safety
    /// If dropped, it leaves the call it is at to the next.
    pub(super) async fn tell(shared: &Arc<Shared>, deadline: Option<Instant>) -> bool {
        loop {
            let freed = shared.changed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let (listener, kept) = match shared.listening.take_turn() {
                Taking::NoListener => return true,
                Taking::Another => {
                    match deadline {
                        Some(deadline)
                            if tokio::time::timeout_at(deadline, freed.as_mut()).await.is_err() =>
                        {
                            return false;
                        }
                        Some(_) => {}
                        None => freed.await,
                    }
                    continue;
                }
                Taking::Mine(listener, kept) => (listener, kept),
            };
            let mut turn = MyTurn { shared, call: kept, is_in_call: false };
            if turn.call.is_none() {
                let notice = shared.lock().next_notice(time::now());
                let consumer = || KafkaConsumer { shared: Arc::clone(shared), is_owner: false };
                turn.call = notice.map(|notice| listener.call(consumer(), notice));
            }
            let MyTurn { call: Some(call), is_in_call, .. } = &mut turn else { return true };
            poll_fn(|context| {
                *is_in_call = true;
                let polled = call.as_mut().poll(context);
                *is_in_call = false;
                polled
            })
            .await;
            turn.call = None;
            shared.lock().handle_told(time::now());
            shared.wake.notify_one();
        }
    }
}

/// The right to make a call. Dropped in the middle of one, it keeps the call for the next.
struct MyTurn<'a> {
    shared: &'a Shared,
    call: Option<Call>,
    /// The listener's own code runs: a panic is its own, and not one of whoever polls.
    is_in_call: bool,
}

impl Drop for MyTurn<'_> {
    fn drop(&mut self) {
        let call = self.call.take();
        let has_panicked = self.is_in_call && call.is_some() && std::thread::panicking();
        let mut slot = self.shared.listening.slot.lock();
        slot.is_taken = false;
        let is_wanted = std::mem::take(&mut slot.is_wanted);
        if !has_panicked {
            slot.kept = call;
        }
        drop(slot);
        if has_panicked {
            self.shared.lock().handle_told(time::now());
            self.shared.wake.notify_one();
        }
        // Only if somebody waits: a poll that finds nothing to tell must not wake itself.
        if is_wanted {
            self.shared.changed.notify_waiters();
        }
    }
}
