//! Commits of what is done, while handlers go on; at most one is out. `dispatch/pace.rs` decides when.

use std::{pin::Pin, sync::Arc};

use tokio::time::Instant;
use tracing::Instrument as _;

use super::Engine;
use crate::{
    consumer::KafkaConsumer,
    error::{Error, Result, code::UNKNOWN_MEMBER_ID},
    telemetry::{ConsumerCounters, spans},
    time,
};

/// A commit that is out.
pub(super) type Committing = Pin<Box<dyn Future<Output = Result<()>> + Send + Sync>>;

/// Commits what is done.
pub(in crate::facade::consumer) async fn commit(
    client: Arc<KafkaConsumer>,
    counters: Arc<ConsumerCounters>,
) -> Result<()> {
    let begun = time::now();
    let committing = client.commit_done().instrument(spans::commit());
    // A consumer that is dropped meanwhile leaves its group.
    drop(client);
    let committed = committing.await;
    if committed.is_ok() {
        counters.committed(time::now() - begun);
    }
    committed
}

impl Engine {
    /// Commits what is done, also if it is told first that something else was lost.
    pub(in crate::facade::consumer) fn commit(
        &self,
    ) -> impl Future<Output = Result<()>> + Send + Sync + use<> {
        let (client, counters) = (Arc::clone(&self.client), Arc::clone(&self.context.counters));
        async move {
            match commit(Arc::clone(&client), Arc::clone(&counters)).await {
                // A loss is told once, and nothing is committed with it. What is this member's now is committed all the same.
                Err(error) if error.code().is_some_and(|told| told.0 == UNKNOWN_MEMBER_ID) => {
                    tracing::warn!(%error, "what was handled could not all be committed; it may be handled again");
                    commit(client, counters).await
                }
                outcome => outcome,
            }
        }
    }

    /// Commits what is done while handlers go on, if it is time to.
    pub(super) fn commit_beside(&mut self) {
        if !self.plan.auto_commit {
            return;
        }
        let (now, enough, is_idle) = (time::now(), self.plan.take as u64, self.is_idle());
        self.pace.handle_done(now, self.context.counters.handled_in_all());
        if self.pace.poll_commit(now, enough, is_idle) {
            self.committing = Some(Box::pin(self.commit()));
        }
    }

    pub(super) fn commit_at(&self) -> Option<Instant> {
        self.pace.poll_timeout(time::now(), self.plan.take as u64, self.is_idle())
    }

    pub(super) fn on_commit(&mut self, outcome: Result<()>) {
        self.committing = None;
        self.pace.handle_end();
        match outcome {
            Ok(()) => {}
            // Nothing is lost: what could be committed was committed before the partitions went.
            Err(error) if is_of_rebalance(&error) => tracing::debug!(%error, "a commit in a rebalance"),
            Err(error) => {
                tracing::warn!(%error, "what was handled could not be committed; the next commit takes it along")
            }
        }
    }
}

/// Waits for the end of the commit that is out; for ever without one.
pub(super) async fn end_of(committing: &mut Option<Committing>) -> Result<()> {
    match committing {
        Some(committing) => committing.await,
        None => std::future::pending().await,
    }
}

/// Whether the error means that another member has the partitions: their records come again there, and there is nothing
/// to do here.
pub(in crate::facade::consumer) fn is_of_rebalance(error: &Error) -> bool {
    // ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS, GROUP_ID_NOT_FOUND, FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH
    error.code().is_some_and(|code| matches!(code.0, 22 | 25 | 27 | 69 | 110 | 113))
}
