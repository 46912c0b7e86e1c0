//! The end of a consumer, as its user asks for it; what it takes is the core's. It must never end later than it was told to.

use std::time::Duration;

use super::{KafkaConsumer, Shared, listener::Listening};
use crate::{
    driver,
    error::{Error, ErrorKind, Result},
    group::GroupMembershipOperation,
    time::{self, Instant},
};

/// How a consumer is closed (KIP-1092); see [`KafkaConsumer::close_with`].
///
/// ```
/// # use std::time::Duration;
/// # use dtkafka::{CloseOptions, GroupMembershipOperation};
/// let restarting = CloseOptions::new()
///     .timeout(Duration::from_secs(5))
///     .group_membership(GroupMembershipOperation::RemainInGroup);
/// ```
#[derive(Debug, Clone)]
#[must_use = "options do nothing until a consumer is closed with them"]
pub struct CloseOptions {
    timeout: Duration,
    membership: GroupMembershipOperation,
}

impl CloseOptions {
    /// Within 30 seconds, as in Java; a static member stays in its group, any other leaves it.
    pub fn new() -> Self {
        Self { timeout: Duration::from_secs(30), membership: GroupMembershipOperation::Default }
    }

    /// How long committing and leaving may take together. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether the member leaves its group. Default: it leaves, unless it is a static one (`group.instance.id`). Without a group
    /// it has no meaning.
    pub fn group_membership(mut self, operation: GroupMembershipOperation) -> Self {
        self.membership = operation;
        self
    }
}

impl Default for CloseOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl KafkaConsumer {
    /// Commits what is covered (with `enable.auto.commit`), leaves the group unless the member is a static one
    /// (`group.instance.id`), and returns after `deadline` at the latest. The consumer can do nothing more afterwards,
    /// and closing it again is `Ok`. Commit first if the last poll's records are done as well.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the group could not be left in time; it then notices by `session.timeout.ms`.
    /// [`ErrorKind::InvalidArgument`] within a rebalance listener; [`ErrorKind::Closed`] if the consumer's runtime has ended.
    ///
    /// # Cancel safety
    /// If dropped, it goes on closing in the background.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        self.close_with(CloseOptions::new().timeout(deadline)).await
    }

    /// As [`close`](Self::close), and says whether the member leaves its group.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    ///
    /// # Cancel safety
    /// If dropped, it goes on closing in the background.
    pub async fn close_with(&self, options: CloseOptions) -> Result<()> {
        if !self.is_owner {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a rebalance listener cannot close its consumer",
            ));
        }
        let deadline = time::after(options.timeout);
        let shared = &*self.shared;
        let farewell = BeginCloseOnDrop { shared, deadline, membership: options.membership };
        let telling = async {
            Listening::tell(&self.shared, None).await;
            shared.lock().tell_farewell();
            Listening::tell(&self.shared, None).await;
        };
        shared.lock().prepare_close(deadline);
        shared.wake.notify_one();
        // Where nothing can be waited for, it goes on in the background.
        driver::check_runtime()?;
        if tokio::time::timeout_at(deadline, telling).await.is_err() {
            tracing::warn!("the rebalance listener has not returned by the end of the close");
        }
        drop(farewell);
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(ended) = shared.lock().ended() {
                return Err(ended);
            }
            if shared.lock().is_closed() {
                return if time::now() < deadline { Ok(()) } else { Err(close_timeout()) };
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                // The driver may be late. The deadline is applied here as well, so that a closed consumer holds nothing
                // any more.
                shared.lock().advance_close(time::now());
                shared.wake.notify_one();
                return Err(close_timeout());
            }
        }
    }
}

/// Begins the close when dropped, so that it begins also if the future that tells the listener first is dropped.
struct BeginCloseOnDrop<'a> {
    shared: &'a Shared,
    deadline: Instant,
    membership: GroupMembershipOperation,
}

impl Drop for BeginCloseOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.lock().begin_close_as(self.membership, time::now(), self.deadline);
        self.shared.changed.notify_waiters();
        self.shared.wake.notify_one();
    }
}

fn close_timeout() -> Error {
    Error::new(ErrorKind::Timeout, "the consumer did not finish committing and leaving its group in time")
        .with_hint("give close more time; the group takes its partitions after session.timeout.ms")
}
