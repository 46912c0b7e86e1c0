//! One lane to one broker: the connection that is open, and the turn to dial another.
//!
//! It outlives its connections and is replaced when the broker moves: whoever still waits here is told so, and goes on at the
//! new address.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    config::settings::ClientSettings,
    connection::Connection,
    mutex::Mutex,
    time::{Backoff, Instant},
};

pub(super) struct Slot {
    pub(super) connection: Mutex<Option<Arc<Connection>>>,
    /// The broker has moved or is gone: nobody should wait here any more.
    pub(super) is_left: AtomicBool,
    leaves: Notify,
    /// Attempts that failed or were overtaken since the last that succeeded.
    pub(super) failures: AtomicU32,
    /// When the broker was last silent, in any lane.
    pub(super) silent_at: Mutex<Option<Instant>>,
    /// Held while dialing, so that all who wait for a broker share one attempt. An async mutex: it is meant to be held
    /// across the dial.
    pub(super) dialing: tokio::sync::Mutex<Dialing>,
}

pub(super) struct Dialing {
    pub(super) backoff: Backoff,
    /// KIP-601.
    pub(super) setup: Backoff,
    pub(super) not_before: Option<Instant>,
}

impl Slot {
    pub(super) fn new(settings: &ClientSettings) -> Self {
        let mut setup =
            Backoff::new(settings.connection_setup_timeout, settings.connection_setup_timeout_max);
        // The first attempt has the time that is set; this is for those after it.
        let _ = setup.next(&mut settings.environment.rng());
        let dialing = tokio::sync::Mutex::new(Dialing {
            backoff: Backoff::new(settings.reconnect_backoff, settings.reconnect_backoff_max),
            setup,
            not_before: None,
        });
        Self {
            connection: Mutex::new(None),
            is_left: AtomicBool::new(false),
            leaves: Notify::new(),
            failures: AtomicU32::new(0),
            silent_at: Mutex::new(None),
            dialing,
        }
    }

    /// The open connection. One that was lost is let go; so is one that was idle for too long, since callers give such a
    /// connection back at once, and would be handed it again until the idle timer fires.
    pub(super) fn open(&self, now: Instant, max_idle: Duration) -> Option<Arc<Connection>> {
        let mut connection = self.connection.lock();
        let open = connection.as_ref()?;
        let unused = open.in_flight() == 0 && open.idle_since() + max_idle <= now;
        if open.is_closed() || unused {
            tracing::debug!(unused, "a connection is let go");
            open.retire();
            *connection = None;
            return None;
        }
        Some(Arc::clone(open))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.lock().as_ref().is_some_and(|connection| !connection.is_closed())
    }

    /// Tells those who wait here to go elsewhere, and closes the connection with its last answer.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
        self.leaves.notify_waiters();
        self.retire();
    }

    /// Returns once nobody should wait here any more.
    pub(super) async fn left(&self) {
        let mut leaves = std::pin::pin!(self.leaves.notified());
        leaves.as_mut().enable();
        if !self.is_left.load(Ordering::Acquire) {
            leaves.await;
        }
    }

    pub(super) fn retire(&self) {
        if let Some(connection) = self.connection.lock().take() {
            connection.retire();
        }
    }

    /// Closes a connection that was idle for too long, because a middle box may have dropped it silently. Returns when to
    /// look again.
    pub(super) fn close_idle(&self, now: Instant, max_idle: Duration) -> Option<Instant> {
        let open = self.open(now, max_idle)?;
        match open.in_flight() {
            0 => Some(open.idle_since() + max_idle),
            _ => Some(now + max_idle),
        }
    }
}
