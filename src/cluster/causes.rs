//! Why brokers cannot be reached, and what of it is worth a line in the log. Pure.
//!
//! A line per change of state, with a count when it ends: an outage of two minutes is two lines per broker, not hundreds.

use std::time::Duration;

use crate::{error::Error, sorted::Map, time::Instant};

/// The last cause of each thing that fails now.
#[derive(Debug, Default)]
pub(crate) struct Causes<K>(Map<K, Cause>);

#[derive(Debug)]
struct Cause {
    error: Error,
    since: Instant,
    last: Instant,
    failures: u64,
}

/// Failures that a success has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) failures: u64,
    pub(crate) lasted: Duration,
}

impl<K: Ord + Copy> Causes<K> {
    /// True if it is worth a line: the first failure, or one of another nature (permanent where the last one was
    /// passing).
    pub(crate) fn handle_failure(&mut self, now: Instant, key: K, error: &Error) -> bool {
        match self.0.get_mut(&key) {
            None => {
                self.0.insert(key, Cause { error: error.clone(), since: now, last: now, failures: 1 });
                true
            }
            Some(cause) => {
                cause.failures += 1;
                let news = cause.error.is_retriable() != error.is_retriable();
                (cause.error, cause.last) = (error.clone(), now);
                news
            }
        }
    }

    /// The failures that this success ends, if any were reported.
    pub(crate) fn handle_success(&mut self, now: Instant, key: K) -> Option<Recovered> {
        let cause = self.0.remove(&key)?;
        Some(Recovered { failures: cause.failures, lasted: now.saturating_duration_since(cause.since) })
    }

    /// Why it fails, if it does.
    pub(crate) fn why(&self, key: K) -> Option<&Error> {
        self.0.get(&key).map(|cause| &cause.error)
    }

    /// As [`why`](Self::why), unless the failure is older than `within`.
    pub(crate) fn why_lately(&self, now: Instant, within: Duration, key: K) -> Option<&Error> {
        let cause = self.0.get(&key).filter(|cause| now.saturating_duration_since(cause.last) <= within);
        cause.map(|cause| &cause.error)
    }

    /// Forgets what is not there any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(K) -> bool) {
        self.0.retain(|key, _| keep(*key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, Stage};

    #[test]
    fn an_outage_is_told_when_it_begins_and_when_it_ends_with_its_count() {
        let start = crate::time::now();
        let mut causes = Causes::default();
        let error = |stage| Error::new(ErrorKind::Connect(stage), stage.to_string());
        assert_eq!(causes.handle_success(start, 1), None);
        assert!(causes.handle_failure(start, 1, &error(Stage::Tcp)));
        for stage in [Stage::Tcp, Stage::Api, Stage::Tls, Stage::Tcp] {
            assert!(!causes.handle_failure(start, 1, &error(stage)));
        }
        assert!(causes.handle_failure(start, 2, &error(Stage::Dns)), "another broker");
        assert_eq!(causes.why(1).map(|error| error.stage()), Some(Some(Stage::Tcp)));
        assert!(causes.handle_failure(start, 1, &error(Stage::Sasl).with_permanent()), "now it is a setting");
        let later = start + Duration::from_secs(9);
        assert!(causes.why_lately(later, Duration::from_secs(9), 1).is_some());
        assert!(causes.why_lately(later, Duration::from_secs(8), 1).is_none(), "much may have changed since");
        let over = Recovered { failures: 6, lasted: Duration::from_secs(9) };
        assert_eq!(causes.handle_success(later, 1), Some(over));
        assert!(causes.why(1).is_none());
        assert!(causes.handle_failure(later, 1, &error(Stage::Tcp)), "a new outage");
        causes.retain(|key| key == 1);
        assert!(causes.why(1).is_some() && causes.why(2).is_none());
    }
}
