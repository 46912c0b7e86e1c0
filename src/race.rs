//! Attempts that race: the next one starts a moment after the last, or as soon as one has failed (RFC 8305).
//!
//! [`Race`] is the core and knows no IO; [`run`] drives it. What races (addresses of a host, brokers) and in which order is
//! the caller's. A candidate that keeps silent costs the others one step, never its whole time-out.

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::{
    error::{Error, Result},
    time::{self, Instant},
};

/// How far apart attempts start. RFC 8305 recommends 250 ms and allows 100: with ten silent candidates before it, a
/// living one is tried after 1.5 s.
pub(crate) const STEP: Duration = Duration::from_millis(150);

/// How long in all an attempt that makes progress holds back the others. Without this, on a slow network several would
/// authenticate side by side, all but one for nothing. An attempt that falls silent after its first steps costs the
/// others no more than this.
const PATIENCE: Duration = Duration::from_millis(900);

/// Which candidate starts when.
#[derive(Debug)]
pub(crate) struct Race<T> {
    waiting: VecDeque<T>,
    out: usize,
    next_at: Instant,
    patience: Duration,
}

impl<T> Race<T> {
    /// The candidates in the order in which they start.
    pub(crate) fn new(now: Instant, candidates: impl IntoIterator<Item = T>) -> Self {
        Self { waiting: candidates.into_iter().collect(), out: 0, next_at: now, patience: PATIENCE }
    }

    /// The next candidate, if its time has come; call it until it returns `None`.
    pub(crate) fn poll_start(&mut self, now: Instant) -> Option<T> {
        if now < self.next_at {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.out += 1;
        self.next_at = now + STEP;
        Some(next)
    }

    /// An attempt under way makes progress: the next one, if it is due, waits for another step.
    pub(crate) fn handle_progress(&mut self, now: Instant) {
        if self.out > 0 && now >= self.next_at && !self.patience.is_zero() {
            self.patience = self.patience.saturating_sub(STEP);
            self.next_at = now + STEP;
        }
    }

    /// An attempt has failed: the next one need not wait.
    pub(crate) fn handle_failure(&mut self, now: Instant) {
        self.out = self.out.saturating_sub(1);
        self.next_at = now;
    }

    /// When to call [`Self::poll_start`] again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }

    /// Whether every candidate has failed.
    pub(crate) fn is_lost(&self) -> bool {
        self.waiting.is_empty() && self.out == 0
    }
}

/// The first attempt that succeeds; the others are dropped. Otherwise why each one failed, in the order in which they did.
///
/// `ends` says which failure ends the race, because every other attempt would end in it too; `gets_on`, whether an attempt under
/// way has got so far that the others do better to wait.
///
/// # Cancel safety
/// Dropping the future drops all attempts.
pub(crate) async fn run<T: Copy, R, F: Future<Output = Result<R>>>(
    candidates: impl IntoIterator<Item = T>,
    mut attempt: impl FnMut(T) -> F,
    ends: impl Fn(&Error) -> bool,
    gets_on: impl Fn() -> bool,
) -> Result<R, Vec<(T, Error)>> {
    let mut race = Race::new(time::now(), candidates);
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        if gets_on() {
            race.handle_progress(time::now());
        }
        while let Some(candidate) = race.poll_start(time::now()) {
            let attempt = attempt(candidate);
            attempts.push(async move { (candidate, attempt.await) });
        }
        if race.is_lost() {
            return Err(failures);
        }
        tokio::select! {
            biased;
            Some((candidate, outcome)) = attempts.next() => match outcome {
                Ok(won) => return Ok(won),
                Err(error) => {
                    race.handle_failure(time::now());
                    let ended = ends(&error);
                    failures.push((candidate, error));
                    if ended {
                        return Err(failures);
                    }
                }
            },
            () = time::sleep_until(race.poll_timeout()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_silent_candidate_delays_the_next_one_by_a_step_and_a_failed_one_not_at_all() {
        let start = time::now();
        let mut race = Race::new(start, ["silent", "refused", "good"]);
        assert_eq!(race.poll_start(start), Some("silent"));
        assert_eq!(race.poll_start(start), None);
        assert_eq!(race.poll_timeout(), Some(start + STEP));
        assert_eq!(race.poll_start(start + STEP), Some("refused"));
        race.handle_failure(start + STEP);
        assert_eq!(race.poll_start(start + STEP), Some("good"));
        assert_eq!(race.poll_timeout(), None);
        assert!(!race.is_lost());
        race.handle_failure(start + STEP);
        race.handle_failure(start + STEP);
        assert!(race.is_lost());
    }

    #[test]
    fn an_attempt_that_gets_on_holds_back_the_next_for_a_second_in_all() {
        let start = time::now();
        let mut race = Race::new(start, 0..3);
        race.handle_progress(start);
        assert_eq!(race.poll_start(start), Some(0), "nothing is under way yet");
        let mut starts = Vec::new();
        while let Some(now) = race.poll_timeout() {
            race.handle_progress(now);
            starts.extend(race.poll_start(now).map(|n| (n, now - start)));
        }
        assert_eq!(starts, [(1, STEP + PATIENCE), (2, STEP + PATIENCE + STEP)]);
    }

    #[test]
    fn a_race_of_nobody_is_lost_at_once() {
        assert!(Race::<u8>::new(time::now(), []).is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn one_living_candidate_behind_ten_silent_ones_is_found_within_two_seconds() {
        let started = time::now();
        let attempt = |n| async move { if n < 10 { std::future::pending().await } else { Ok(n) } };
        assert_eq!(run(0..=10, attempt, |_| false, || false).await.ok(), Some(10));
        assert!(time::now() - started <= Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn every_cause_is_kept_and_one_that_ends_the_race_comes_last() {
        let attempt = |n: u8| async move { Err::<(), _>(Error::new(ErrorKind::Timeout, n.to_string())) };
        let failures = run(0..3, attempt, |error| error.to_string() == "1", || false).await.unwrap_err();
        let failures: Vec<_> = failures.iter().map(|(n, error)| (*n, error.to_string())).collect();
        assert_eq!(failures, [(0, "0".to_owned()), (1, "1".to_owned())]);
        assert_eq!(run(0..3, attempt, |_| false, || false).await.unwrap_err().len(), 3);
    }
}
