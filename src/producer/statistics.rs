//! What a producer has done, as one snapshot. It only counts.

use std::time::Duration;

use super::{Shared, sender::Counts};
use crate::telemetry::prometheus::Page;

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

impl ProducerStatistics {
    /// The numbers as Prometheus reads them, named by OpenTelemetry's conventions for messaging; `labels` are added to each, such as
    /// `[("service", "billing")]`.
    pub fn to_prometheus(&self, labels: &[(&str, &str)]) -> String {
        let mut page = Page::new(labels);
        for (name, help, value) in [
            ("messaging_client_sent_messages_total", "Records acknowledged.", self.records),
            ("dtkafka_producer_requests_total", "Produce requests sent.", self.requests),
            ("dtkafka_producer_batches_total", "Batches sent, each attempt counted.", self.batches),
            ("dtkafka_producer_bytes_total", "Bytes of batches sent, each attempt counted.", self.bytes),
            ("dtkafka_producer_retries_total", "Batches sent again.", self.retries),
            ("dtkafka_producer_splits_total", "Batches cut in two.", self.splits),
            ("dtkafka_producer_failed_batches_total", "Batches that failed.", self.failed_batches),
            ("dtkafka_producer_throttled_total", "Answers of brokers that held it back.", self.throttled),
        ] {
            page.counter(name, help, value);
        }
        let paused = self.throttle_time.as_secs_f64();
        page.counter("dtkafka_producer_throttle_seconds_total", "How long brokers held it back.", paused);
        page.gauge("dtkafka_producer_buffered_bytes", "Bytes of buffer.memory in use.", self.buffered_bytes);
        let open = self.unanswered_records;
        page.gauge("dtkafka_producer_unanswered_records", "Records without an answer yet.", open);
        let ratio = self.compression_ratio;
        page.gauge("dtkafka_producer_compression_ratio", "Bytes after compression by those before.", ratio);
        page.histogram(
            "dtkafka_producer_request_duration_seconds",
            "Duration of requests.",
            self.classes(),
            None,
        );
        page.finish()
    }

    /// Answered requests by the upper bounds of their classes; the last has none.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let last = self.request_latency.len() - 1;
        let bound = move |place: usize| (place < last).then(|| Duration::from_millis(1 << place));
        self.request_latency.iter().enumerate().map(move |(place, count)| (bound(place), *count))
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

    #[test]
    fn a_snapshot_reads_as_prometheus_text() {
        let mut statistics = ProducerStatistics { records: 7, buffered_bytes: 9, ..Default::default() };
        statistics.request_latency[1] = 3;
        statistics.request_latency[15] = 1;
        let text = statistics.to_prometheus(&[("service", "a\"b")]);
        for line in [
            "# TYPE messaging_client_sent_messages_total counter",
            r#"messaging_client_sent_messages_total{service="a\"b"} 7"#,
            "# TYPE dtkafka_producer_buffered_bytes gauge",
            r#"dtkafka_producer_buffered_bytes{service="a\"b"} 9"#,
            r#"dtkafka_producer_request_duration_seconds_bucket{service="a\"b",le="0.001"} 0"#,
            r#"dtkafka_producer_request_duration_seconds_bucket{service="a\"b",le="0.002"} 3"#,
            r#"dtkafka_producer_request_duration_seconds_bucket{service="a\"b",le="+Inf"} 4"#,
            r#"dtkafka_producer_request_duration_seconds_count{service="a\"b"} 4"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(statistics.to_prometheus(&[]).contains("_bucket{le=\"0.001\"} 0\n"));
    }
}
