//! When a running consumer commits what its handlers have done. Pure.
//!
//! One commit is out at a time, and handlers go on meanwhile. The next one follows when a take's worth of records is done,
//! when nothing is left to do, or when something has been done for [`LONGEST`]; never within [`SHORTEST`] of the one before,
//! or the commits of handlers that do nothing would cost more than the handlers.

use std::time::Duration;

use crate::time::Instant;

/// What is done waits no longer than this, unless the commit before is still out.
const LONGEST: Duration = Duration::from_millis(100);
/// The least time from one commit to the next.
const SHORTEST: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(crate) struct CommitPace {
    /// Records done in all, and how many of them when the last commit began.
    total: u64,
    before: u64,
    /// Since when there are records that are done and not committed.
    since: Option<Instant>,
    not_before: Option<Instant>,
    is_out: bool,
}

impl CommitPace {
    /// Takes note that so many records are done in all.
    pub(crate) fn handle_done(&mut self, now: Instant, total: u64) {
        self.total = total;
        if total > self.before {
            self.since.get_or_insert(now);
        }
    }

    /// Whether to commit now; if so, it is out until [`handle_end`](Self::handle_end). `enough`: how many records are worth
    /// a commit. `is_idle`: nothing waits or runs.
    pub(crate) fn poll_commit(&mut self, now: Instant, enough: u64, is_idle: bool) -> bool {
        let is_due = self.due(enough, is_idle).is_some_and(|due| due <= now);
        if is_due {
            self.before = self.total;
            self.since = None;
            self.not_before = Some(now + SHORTEST);
            self.is_out = true;
        }
        is_due
    }

    /// When to look again: lanes at work may have done something by then without telling.
    pub(crate) fn poll_timeout(&self, now: Instant, enough: u64, is_idle: bool) -> Option<Instant> {
        let quiet = (!is_idle && !self.is_out).then(|| now + LONGEST);
        self.due(enough, is_idle).or(quiet)
    }

    fn due(&self, enough: u64, is_idle: bool) -> Option<Instant> {
        let since = self.since.filter(|_| !self.is_out)?;
        let due = if is_idle || self.total - self.before >= enough { since } else { since + LONGEST };
        Some(self.not_before.map_or(due, |at| at.max(due)))
    }

    /// The commit that was out has ended, well or not: what failed goes with the next one.
    pub(crate) fn handle_end(&mut self) {
        self.is_out = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::now;

    #[test]
    fn a_take_s_worth_is_committed_at_once_and_less_when_nothing_is_left_or_after_a_while() {
        let begun = now();
        let mut pace = CommitPace::default();
        assert!(!pace.poll_commit(begun, 500, true), "nothing is done");
        assert_eq!(pace.poll_timeout(begun, 500, true), None);
        assert_eq!(pace.poll_timeout(begun, 500, false), Some(begun + LONGEST), "a lane may do something");
        pace.handle_done(begun, 499);
        assert!(!pace.poll_commit(begun, 500, false));
        assert_eq!(pace.poll_timeout(begun, 500, false), Some(begun + LONGEST));
        assert_eq!(pace.poll_timeout(begun, 500, true), Some(begun), "nothing is left to do");
        pace.handle_done(begun, 500);
        assert!(pace.poll_commit(begun, 500, false));
        assert_eq!(pace.poll_timeout(begun, 500, true), None, "one is out");

        pace.handle_end();
        pace.handle_done(begun, 500);
        assert!(!pace.poll_commit(begun + LONGEST, 500, true), "nothing more is done");
        pace.handle_done(begun, 501);
        assert!(pace.poll_commit(begun + LONGEST, 500, false), "it has waited long enough");
    }

    #[test]
    fn one_commit_is_out_at_a_time_and_the_next_keeps_its_distance() {
        let begun = now();
        let mut pace = CommitPace::default();
        pace.handle_done(begun, 500);
        assert!(pace.poll_commit(begun, 500, false));
        pace.handle_done(begun, 5000);
        assert!(!pace.poll_commit(begun + LONGEST, 500, true), "one is out");
        pace.handle_end();
        assert!(!pace.poll_commit(begun + SHORTEST / 2, 500, true));
        assert_eq!(pace.poll_timeout(begun, 500, false), Some(begun + SHORTEST));
        assert!(pace.poll_commit(begun + SHORTEST, 500, false));
    }
}
