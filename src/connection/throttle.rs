//! How long a broker wants to be sent nothing (KIP-219). Pure.
//!
//! A broker answers at once, says for how long the client is over its quota, and reads nothing from the connection until
//! then. So nothing is sent before that, and no time-out counts the pause.

use std::time::Duration;

use crate::time::Instant;

/// Brokers never ask for more than their quota window, 11 s by default. A pause that is longer is held for this long; a
/// broker that means it says so again.
const LONGEST: Duration = Duration::from_secs(60);

/// An answer without a pause for this long after the last pause ends the state of being throttled.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Throttle {
    until: Option<Instant>,
    /// All pauses so far, those that overlap counted once.
    total: Duration,
    /// Since throttling began.
    answers: u64,
    began_with: Duration,
}

/// A change of state, to be told once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ThrottleChange {
    Begins { pause: Duration },
    Ends { answers: u64, paused: Duration },
}

impl Throttle {
    /// An answer has come that asks for this pause, or for none. Returns by how much the pause grew, and what there is to
    /// tell.
    pub(super) fn handle_answer(
        &mut self,
        now: impl FnOnce() -> Instant,
        ms: i32,
    ) -> (Duration, Option<ThrottleChange>) {
        let pause = u64::try_from(ms).map_or(Duration::ZERO, Duration::from_millis).min(LONGEST);
        if pause.is_zero() {
            let quiet = self.until.is_some_and(|until| until + QUIET <= now());
            if !quiet {
                return (Duration::ZERO, None);
            }
            self.until = None;
            let paused = self.total - self.began_with;
            return (
                Duration::ZERO,
                Some(ThrottleChange::Ends { answers: std::mem::take(&mut self.answers), paused }),
            );
        }
        let (now, begins) = (now(), self.until.is_none());
        if begins {
            self.began_with = self.total;
        }
        self.answers += 1;
        let from = self.until.map_or(now, |until| until.max(now));
        let until = from.max(now + pause);
        let grown = until - from;
        self.total += grown;
        self.until = Some(until);
        (grown, begins.then_some(ThrottleChange::Begins { pause }))
    }

    /// Until when nothing may be sent. The clock is read only where the broker has ever asked for a pause.
    pub(super) fn held_until(&self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now())
    }

    /// The pauses so far, without what is left of the present one. A time-out is extended by as much as this has grown
    /// since it began, and by what is left of the present pause.
    pub(super) fn paused_before(&self, now: impl FnOnce() -> Instant) -> Duration {
        let left = self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now()));
        self.total.saturating_sub(left)
    }

    /// All pauses so far, to their end.
    pub(super) fn paused_in_all(&self) -> Duration {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_begins_and_what_ends_is_told_once() {
        let start = crate::time::now();
        let mut throttle = Throttle::default();
        assert_eq!(throttle.handle_answer(|| start, 0), (Duration::ZERO, None));
        assert_eq!(
            throttle.handle_answer(|| start, 2000),
            (2 * SECOND, Some(ThrottleChange::Begins { pause: 2 * SECOND }))
        );
        assert_eq!(throttle.held_until(|| start), Some(start + 2 * SECOND));
        // Pauses that overlap are counted once.
        assert_eq!(throttle.handle_answer(|| start + SECOND, 2000), (SECOND, None));
        assert_eq!(throttle.handle_answer(|| start + SECOND, 500), (Duration::ZERO, None));
        assert_eq!(
            throttle.handle_answer(|| start + 4 * SECOND, 0),
            (Duration::ZERO, None),
            "it may come back"
        );
        assert_eq!(throttle.held_until(|| start + 3 * SECOND), None);
        let told = throttle.handle_answer(|| start + 13 * SECOND, 0).1;
        assert_eq!(told, Some(ThrottleChange::Ends { answers: 3, paused: 3 * SECOND }));
        assert_eq!(throttle.handle_answer(|| start + 14 * SECOND, 0).1, None);
        let told = throttle.handle_answer(|| start + 15 * SECOND, 100).1;
        assert_eq!(told, Some(ThrottleChange::Begins { pause: Duration::from_millis(100) }));
    }

    #[test]
    fn a_time_out_is_late_by_what_is_left_of_the_pause_and_by_what_is_added() {
        let start = crate::time::now();
        let mut throttle = Throttle::default();
        throttle.handle_answer(|| start, 4000);
        let begun = throttle.paused_before(|| start + SECOND);
        assert_eq!(throttle.paused_in_all() - begun, 3 * SECOND);
        throttle.handle_answer(|| start + 2 * SECOND, 4000);
        assert_eq!(throttle.paused_in_all() - begun, 5 * SECOND);
        let later = throttle.paused_before(|| start + 7 * SECOND);
        assert_eq!(throttle.paused_in_all() - later, Duration::ZERO);
    }

    #[test]
    fn absurd_pauses_are_bounded_and_negative_ones_are_none() {
        let start = crate::time::now();
        let mut throttle = Throttle::default();
        assert_eq!(throttle.handle_answer(|| start, i32::MIN), (Duration::ZERO, None));
        assert_eq!(throttle.handle_answer(|| start, i32::MAX).0, LONGEST);
    }
}
