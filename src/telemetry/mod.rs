//! What is counted: numbers that cost one atomic addition each, read as a snapshot, as Prometheus text, or through the
//! `metrics` facade where that feature is on. Nothing here decides anything, and nothing per record takes a lock.

mod histogram;
pub(crate) mod prometheus;
#[cfg(feature = "metrics")]
mod publish;
pub(crate) mod spans;
#[cfg(feature = "traceparent")]
pub(crate) mod trace_context;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use self::{histogram::Histogram, prometheus::Page};
pub use histogram::HistogramSnapshot;
#[cfg(feature = "metrics")]
pub use publish::MetricsPublisher;

/// What one [`Consumer`](crate::Consumer) has done.
#[derive(Debug, Default)]
pub(crate) struct ConsumerCounters {
    handled: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    skipped: AtomicU64,
    dead_lettered: AtomicU64,
    rebalanced: AtomicU64,
    latency: Histogram,
    commit_latency: Histogram,
}

/// Methods that count one in the field of their name.
macro_rules! count_one {
    ($($counter:ident)+) => {$(
        pub(crate) fn $counter(&self) {
            self.$counter.fetch_add(1, Relaxed);
        }
    )+};
}

impl ConsumerCounters {
    pub(crate) fn handled(&self, count: usize) {
        self.handled.fetch_add(count as u64, Relaxed);
    }

    /// Records done since the consumer was made.
    pub(crate) fn handled_in_all(&self) -> u64 {
        self.handled.load(Relaxed)
    }

    count_one! { failed retried skipped dead_lettered rebalanced }

    /// Counts `count` calls of handlers, each of this length.
    pub(crate) fn took(&self, each: Duration, count: u64) {
        self.latency.record(each, count);
    }

    pub(crate) fn committed(&self, took: Duration) {
        self.commit_latency.record(took, 1);
    }

    pub(crate) fn snapshot(&self) -> ConsumerMetrics {
        ConsumerMetrics {
            handled: self.handled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            retried: self.retried.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            dead_lettered: self.dead_lettered.load(Relaxed),
            rebalances: self.rebalanced.load(Relaxed),
            in_work: 0,
            throttled: 0,
            throttle_time: Duration::ZERO,
            lag: None,
            handler_latency: self.latency.snapshot(),
            commit_latency: self.commit_latency.snapshot(),
        }
    }
}

/// What a [`Consumer`](crate::Consumer) has done since it was made: a snapshot.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConsumerMetrics {
    /// Records that are done: handled, skipped or dead-lettered. One that moves on to a retry topic is done where it was,
    /// and counts again where it waits.
    pub handled: u64,
    /// Calls of handlers that failed, and values that could not be read.
    pub failed: u64,
    /// Calls of handlers after a failure, and records sent to retry topics.
    pub retried: u64,
    /// Records skipped by the error policy.
    pub skipped: u64,
    /// Records written to dead letter topics.
    pub dead_lettered: u64,
    /// Assignments that were made.
    pub rebalances: u64,
    /// Records taken and not done: waiting for their handlers or in them.
    pub in_work: u64,
    /// Answers in which a broker throttled this client, because it is over a quota (KIP-219).
    pub throttled: u64,
    /// For how long brokers throttled this client; overlapping pauses of one connection count once.
    pub throttle_time: Duration,
    /// Records between the consumer's positions and the ends of its partitions, as of the last fetch; `None` while it is not
    /// connected.
    pub lag: Option<i64>,
    /// How long calls of handlers took.
    pub handler_latency: HistogramSnapshot,
    /// How long commits took.
    pub commit_latency: HistogramSnapshot,
}

impl ConsumerMetrics {
    /// The numbers as Prometheus reads them, named by OpenTelemetry's conventions for messaging; `labels` are added to
    /// each, such as `[("group", "billing")]`.
    pub fn to_prometheus(&self, labels: &[(&str, &str)]) -> String {
        let mut page = Page::new(labels);
        for (name, help, value) in [
            ("messaging_client_consumed_messages_total", "Records done.", self.handled),
            (
                "dtkafka_consumer_failed_total",
                "Failed handler calls and values that could not be read.",
                self.failed,
            ),
            ("dtkafka_consumer_retried_total", "Handler calls after a failure.", self.retried),
            ("dtkafka_consumer_skipped_total", "Records skipped by policy.", self.skipped),
            (
                "dtkafka_consumer_dead_lettered_total",
                "Records written to dead letter topics.",
                self.dead_lettered,
            ),
            ("dtkafka_consumer_rebalances_total", "Assignments made.", self.rebalances),
            ("dtkafka_consumer_throttled_total", "Answers of brokers that held it back.", self.throttled),
        ] {
            page.counter(name, help, value);
        }
        page.gauge("dtkafka_consumer_in_work", "Records taken and not done.", self.in_work);
        if let Some(lag) = self.lag {
            page.gauge("dtkafka_consumer_lag", "Records to the ends of the partitions.", lag);
        }
        for (name, help, histogram) in [
            ("messaging_process_duration_seconds", "Duration of handler calls.", &self.handler_latency),
            ("dtkafka_consumer_commit_duration_seconds", "Duration of commits.", &self.commit_latency),
        ] {
            page.histogram(name, help, histogram.classes(), Some(histogram.sum()));
        }
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_reads_as_prometheus_text() {
        let counters = ConsumerCounters::default();
        counters.handled(7);
        counters.failed();
        counters.took(Duration::from_millis(3), 6);
        counters.took(Duration::from_secs(2), 1);
        let text = counters.snapshot().to_prometheus(&[("group", "a\"b")]);
        for line in [
            "# TYPE messaging_client_consumed_messages_total counter",
            r#"messaging_client_consumed_messages_total{group="a\"b"} 7"#,
            r#"dtkafka_consumer_failed_total{group="a\"b"} 1"#,
            r#"messaging_process_duration_seconds_bucket{group="a\"b",le="0.005"} 6"#,
            r#"messaging_process_duration_seconds_bucket{group="a\"b",le="+Inf"} 7"#,
            r#"messaging_process_duration_seconds_count{group="a\"b"} 7"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("dtkafka_consumer_lag"), "not known is not 0");
    }
}
