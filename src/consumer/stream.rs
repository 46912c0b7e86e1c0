//! Records one by one as a stream: a poll of one record each time, without a queue of its own, so that a dropped stream
//! has nothing to give back and a commit never passes a record that was not yielded.

use std::{
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::{sync::futures::Notified, time::Sleep};

use super::{Shared, listener::Listening, partitions::Turn, polling::Polling, records::ConsumerRecords};
use crate::{driver, error::Result, record::ConsumerRecord, time};

/// The stream of [`KafkaConsumer::stream`](super::KafkaConsumer::stream). Ends after the consumer was closed.
pub struct RecordStream<'a> {
    shared: &'a Arc<Shared>,
    /// False within a rebalance listener, which cannot wait for its own end.
    is_owner: bool,
    waiting: Option<Waiting<'a>>,
    ended: bool,
}

/// A poll that has found nothing yet.
struct Waiting<'a> {
    polling: Polling<'a>,
    changed: Pin<Box<Notified<'a>>>,
    /// Rings well within the poll interval. A task that waits is woken by it and says so; a stream that is kept and never
    /// looked at again says nothing, and the group takes its partitions in the end.
    alive: Pin<Box<Sleep>>,
    /// The calls of a rebalance listener that come before the next record.
    telling: Option<Pin<Box<dyn Future<Output = bool> + Send + 'a>>>,
}

impl fmt::Debug for RecordStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStream").field("waits", &self.waiting.is_some()).finish_non_exhaustive()
    }
}

impl<'a> RecordStream<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, is_owner: bool) -> Self {
        Self { shared, is_owner, waiting: None, ended: false }
    }

    fn listen(&self) -> Pin<Box<Notified<'a>>> {
        let mut changed = Box::pin(self.shared.changed.notified());
        changed.as_mut().enable();
        changed
    }
}

impl Waiting<'_> {
    /// It is still there, and joins again if nobody has looked after it for so long that the group was left.
    fn go_on(&mut self, shared: &Shared) {
        let now = time::now();
        self.alive.as_mut().reset(now + shared.settings.max_poll_interval / 3);
        let driver_is_due = {
            let mut core = shared.lock();
            let is_due = core.handle_poll_again(now);
            core.handle_loose_poll(now);
            is_due
        };
        if driver_is_due {
            shared.wake.notify_one();
        }
    }
}

impl Stream for RecordStream<'_> {
    type Item = Result<ConsumerRecord>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.is_owner {
            self.ended = true;
            return Poll::Ready(Some(Err(super::polling::poll_within_a_call())));
        }
        // Shares the runtime with the driver however many records are buffered.
        ready!(pin!(tokio::task::consume_budget()).poll(context));
        if self.waiting.is_none() {
            let polling = match Polling::begin(self.shared) {
                Ok(polling) => polling,
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if let Some(item) = take_one(&polling).transpose() {
                return Poll::Ready(Some(item));
            }
            if let Err(error) = driver::check_runtime() {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            let changed = self.listen();
            let alive = Box::pin(tokio::time::sleep(self.shared.settings.max_poll_interval / 3));
            self.shared.lock().handle_loose_poll(time::now());
            self.waiting = Some(Waiting { polling, changed, alive, telling: None });
        }
        let shared = self.shared;
        loop {
            let Some(waiting) = &mut self.waiting else { return Poll::Pending };
            if let Some(telling) = &mut waiting.telling {
                let _told = ready!(telling.as_mut().poll(context));
                waiting.telling = None;
                // The poll interval has not run meanwhile.
                waiting.go_on(shared);
            }
            // Listening began before this look, so nothing that happens after it is missed.
            if let Some(item) = take_one(&waiting.polling).transpose() {
                self.waiting = None;
                return Poll::Ready(Some(item));
            }
            if shared.lock().is_telling() {
                waiting.telling = Some(Box::pin(Listening::tell(shared, None)));
                continue;
            }
            if waiting.alive.as_mut().poll(context).is_ready() {
                waiting.go_on(shared);
                continue;
            }
            ready!(waiting.changed.as_mut().poll(context));
            let changed = self.listen();
            if let Some(waiting) = &mut self.waiting {
                waiting.changed = changed;
            }
        }
    }
}

fn take_one(polling: &Polling<'_>) -> Result<Option<ConsumerRecord>> {
    let mut one = ConsumerRecords::default();
    polling.take_each(1, Turn::Stream, &mut |partition, life, chunk| one.push(partition, life, chunk))?;
    Ok(one.into_iter().next().and_then(|(_, records)| records.into_iter().next()))
}
