//! Whether the user polls, and otherwise since when not (KIP-62). Pure.
//!
//! Time within a poll must never count towards `max.poll.interval.ms`.

use std::time::Duration;

use crate::time::Instant;

/// What a membership knows of the user's polls.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    max_poll_interval: Duration,
    /// Somebody is in a poll.
    is_polled: bool,
    /// `None` while a poll waits, or when it should end: only time away from poll counts.
    away_since: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(max_poll_interval: Duration, now: Instant) -> Self {
        Self { max_poll_interval, is_polled: false, away_since: Some(now) }
    }

    pub(super) fn is_polled(&self) -> bool {
        self.is_polled
    }

    /// When the poll interval is over, if nobody polls.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.away_since.map(|since| since + self.max_poll_interval)
    }

    pub(super) fn handle_poll(&mut self) {
        self.is_polled = true;
        self.away_since = None;
    }

    /// The last waiting poll has returned: the poll interval runs from here.
    pub(super) fn handle_poll_end(&mut self, now: Instant) {
        self.is_polled = false;
        self.away_since = Some(now);
    }

    /// The user is alive: the poll interval begins again. Not a poll.
    pub(super) fn handle_alive(&mut self, now: Instant) {
        self.away_since = self.away_since.map(|since| since.max(now));
    }

    /// Somebody waits in a poll whose future may never be polled again: from then on the poll interval runs although the
    /// poll has not ended.
    pub(super) fn handle_loose_poll(&mut self, now: Instant) {
        if self.is_polled {
            self.away_since = Some(now);
        }
    }

    /// The poll interval has passed: the user is taken to have stopped polling.
    pub(super) fn give_up(&mut self) {
        self.is_polled = false;
    }
}
