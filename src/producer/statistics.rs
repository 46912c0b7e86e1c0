//! What a producer has done, as one snapshot. It only counts.

use std::time::Duration;

use super::{Shared, sender::Counts};

/// What a producer has done so far, and what it holds now.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ProducerStatistics {
    /// Bytes of `buffer.memory` in use.
    pub buffered_bytes: usize,
    /// Batches without an answer yet: being filled, waiting or in flight.
    pub unanswered_batches: u64,
    /// Records in them.
    pub unanswered_records: u64,
    /// Produce requests that were sent.
    pub requests: u64,
    /// Batches that were sent, each attempt counted.
    pub batches: u64,
    /// Bytes of batches that were sent, each attempt counted.
    pub bytes: u64,
    /// Records that were acknowledged.
    pub records: u64,
    /// Batches that were sent again.
    pub retries: u64,
    /// Batches that were cut in two, because brokers found them too large.
    pub splits: u64,
    /// Batches that failed.
    pub failed_batches: u64,
    /// Bytes of batches after compression by those before; 1 without any.
    pub compression_ratio: f64,
    /// Answers in which a broker throttled this client, because it is over a quota (KIP-219).
    pub throttled: u64,
    /// For how long brokers throttled this client; overlapping pauses of one connection count once.
    pub throttle_time: Duration,
    /// How many requests were answered within 1, 2, 4, 8 ... ms; the last is for all that took longer. What brokers wanted to be
    /// left alone for is not counted.
    pub request_latency: [u64; 16],
}

impl ProducerStatistics {
    /// The time within which this share of the requests was answered (0.99 for the 99th percentile), to the next power of two
    /// of milliseconds. Zero before the first answer.
    pub fn latency_within(&self, share: f64) -> Duration {
        let total: u64 = self.request_latency.iter().sum();
        if total == 0 {
            return Duration::ZERO;
        }
        let wanted = (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut sum = 0;
        let place = self.request_latency.iter().position(|count| {
            sum += count;
            sum >= wanted.max(1)
        });
        Duration::from_millis(1 << place.unwrap_or(self.request_latency.len() - 1))
    }
}

impl Shared {
    pub(super) fn note_counts(&self, counts: Counts) {
        let mut statistics = self.statistics.lock();
        statistics.requests = counts.requests;
        statistics.batches = counts.batches;
        statistics.bytes = counts.bytes;
        statistics.records = counts.records;
        statistics.retries = counts.retries;
        statistics.splits = counts.splits;
        statistics.failed_batches = counts.failed_batches;
        statistics.compression_ratio = match counts.raw_bytes {
            0 => 1.0,
            raw => counts.sealed_bytes as f64 / raw as f64,
        };
    }

    pub(super) fn note_latency(&self, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let place = (64 - ms.leading_zeros()) as usize;
        let mut statistics = self.statistics.lock();
        let last = statistics.request_latency.len() - 1;
        statistics.request_latency[place.min(last)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_is_named_by_the_bucket_that_holds_it() {
        let mut statistics = ProducerStatistics::default();
        assert_eq!(statistics.latency_within(0.99), Duration::ZERO);
        statistics.request_latency[0] = 90;
        statistics.request_latency[5] = 10;
        assert_eq!(statistics.latency_within(0.5), Duration::from_millis(1));
        assert_eq!(statistics.latency_within(0.99), Duration::from_millis(32));
    }
}
