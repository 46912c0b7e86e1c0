//! For tests that listen to spans and log lines on their own thread.
//!
//! `tracing` remembers for each call site whether anybody listens. While there is one subscriber in the process it asks
//! only the thread that reaches the call site first: where that is another test's, the site stays silent for the listener.
//! With two subscribers it asks both, whatever thread it is on.

use std::sync::LazyLock;

use tracing::{Dispatch, subscriber::NoSubscriber};

static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// To be called before a test installs its subscriber.
pub(crate) fn on_every_thread() {
    LazyLock::force(&SECOND);
}
