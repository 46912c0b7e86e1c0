//! Records one by one as a stream: a poll of one record each time, without a queue of its own, so that a dropped stream
//! has nothing to give back and a commit never passes a record that was not yielded.

use std::{
    fmt,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use super::{
    Shared,
    listener::Listening,
    polling::{Polling, poll_within_a_call},
    records::ConsumerRecords,
};
use crate::{
    driver,
    error::{ErrorKind, Result},
    record::ConsumerRecord,
    time,
};

/// The stream of [`KafkaConsumer::stream`](super::KafkaConsumer::stream). Ends with the error that says that the consumer was closed,
/// or must be replaced.
pub struct RecordStream<'a> {
    shared: &'a Arc<Shared>,
    /// False within a rebalance listener, which cannot wait for its own end.
    is_owner: bool,
    /// A poll that has found nothing yet.
    waiting: Option<Waiting<'a>>,
    ended: bool,
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<ConsumerRecord>> + Send + 'a>>;

impl fmt::Debug for RecordStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStream").field("waits", &self.waiting.is_some()).finish_non_exhaustive()
    }
}

impl<'a> RecordStream<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, is_owner: bool) -> Self {
        Self { shared, is_owner, waiting: None, ended: false }
    }

    fn yields(&mut self, item: Result<ConsumerRecord>) -> Poll<Option<Result<ConsumerRecord>>> {
        // Nothing else would ever come.
        self.ended = item.as_ref().is_err_and(|error| error.is_fatal() || error.kind() == ErrorKind::Closed);
        Poll::Ready(Some(item))
    }
}

impl Stream for RecordStream<'_> {
    type Item = Result<ConsumerRecord>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        // Shares the runtime with the driver however many records are buffered.
        ready!(pin!(tokio::task::consume_budget()).poll(context));
        let mut waiting: Waiting<'_> = match this.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let begun =
                    if this.is_owner { Polling::begin(this.shared) } else { Err(poll_within_a_call()) };
                let found = begun.and_then(|polling| match take_one(&polling).transpose() {
                    Some(item) => Ok(ControlFlow::Break(item)),
                    None => driver::check_runtime().map(|()| ControlFlow::Continue(polling)),
                });
                match found {
                    Ok(ControlFlow::Continue(polling)) => Box::pin(wait(this.shared, polling)),
                    Ok(ControlFlow::Break(item)) => return this.yields(item),
                    Err(error) => {
                        this.ended = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        };
        match waiting.as_mut().poll(context) {
            Poll::Ready(item) => this.yields(item),
            Poll::Pending => {
                this.waiting = Some(waiting);
                Poll::Pending
            }
        }
    }
}

/// Waits for the next record.
async fn wait<'a>(shared: &'a Arc<Shared>, polling: Polling<'a>) -> Result<ConsumerRecord> {
    loop {
        // Listening begins before the look, so nothing that happens after it is missed.
        let changed = shared.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if shared.lock().is_telling() {
            Listening::tell(shared, None).await;
        }
        // Whoever waits is there, and joins again if nobody has looked after it for so long that the group was left.
        // Nothing that was handed out is done with by that.
        let now = time::now();
        let driver_is_due = {
            let mut core = shared.lock();
            let is_due = core.handle_poll_again(now);
            core.handle_loose_poll(now);
            is_due
        };
        if driver_is_due {
            shared.wake.notify_one();
        }
        if let Some(record) = take_one(&polling)? {
            return Ok(record);
        }
        // Well within the poll interval. A task that waits is woken by it and says so; a stream that is kept and never
        // looked at again says nothing, and the group takes its partitions in the end.
        let ring = shared.settings.max_poll_interval / 3;
        let _elapsed = tokio::time::timeout(ring, changed).await;
    }
}

fn take_one(polling: &Polling<'_>) -> Result<Option<ConsumerRecord>> {
    let mut one = ConsumerRecords::default();
    polling.take_each(1, &mut |partition, life, chunk| one.push(partition, life, chunk))?;
    Ok(one.into_iter().next().and_then(|(_, records)| records.into_iter().next()))
}
