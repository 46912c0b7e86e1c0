//! The broker's clock: the only place of the test kit's broker that asks what time it is.
//!
//! Everything else receives `now` as the time since the broker was built. It follows tokio's clock, so that a paused
//! runtime clock drives session timeouts, long polls and delays.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Time since the broker was built; what the pure parts call `now`.
pub(super) type Now = Duration;

/// A century: what a test asks for beyond that, clocks may not be able to add.
pub(super) const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A start point on tokio's clock and the wall-clock time that belongs to it.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    start: Instant,
    start_wall_ms: i64,
}

impl Clock {
    /// Starts at zero now. `wall_ms` is the wall-clock time that belongs to it; the machine's when `None`.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
    pub(super) fn start(wall_ms: Option<i64>) -> Self {
        let start_wall_ms = wall_ms.unwrap_or_else(|| {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)
        });
        Self { start: Instant::now(), start_wall_ms }
    }

    /// The time on tokio's clock.
    pub(super) fn instant_now(&self) -> Instant {
        self.instant(self.now())
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Now {
        self.start.elapsed()
    }

    /// The wall-clock time in milliseconds since 1970, moved forward by tokio's clock.
    pub(super) fn wall_ms(&self) -> i64 {
        self.start_wall_ms.saturating_add(i64::try_from(self.now().as_millis()).unwrap_or(i64::MAX))
    }

    /// The instant at which `at` is reached.
    pub(super) fn instant(&self, at: Now) -> Instant {
        self.start + at
    }
}
