//! Snapshots through the `metrics` facade, named by OpenTelemetry's conventions for messaging. Only here does the crate know
//! that facade; nothing is done per record.

use std::time::Duration;

use metrics::{Label, Unit};

use super::{ConsumerMetrics, HistogramSnapshot};
use crate::producer::ProducerStatistics;

/// Publishes the numbers of one client through the [`metrics`] facade, to whatever recorder the program has installed. Needs the
/// feature `metrics`.
///
/// Call it every few seconds: what a client counts costs nothing more for it. Histograms are given what came since the
/// last call, each duration as the upper bound of its class (5, 10, 25, 50, 75, 100, 250, 500, 750 ms, 1, 2.5, 5, 7.5, 10
/// s, which are those OpenTelemetry advises; a producer's are powers of two of milliseconds): a recorder with the same
/// buckets counts them exactly, and sums are too large by at most the width of a class. What took longer than the last
/// bound is given as twice that.
///
/// | of a consumer | kind | |
/// | --- | --- | --- |
/// | `messaging.client.consumed.messages` | counter | records done |
/// | `messaging.process.duration` | histogram, s | calls of handlers |
/// | `messaging.client.operation.duration`, operation `commit` | histogram, s | commits |
/// | `dtkafka.consumer.failed`, `.retried`, `.skipped`, `.dead_lettered`, `.rebalances`, `.throttled` | counters | as in [`ConsumerMetrics`] |
/// | `dtkafka.consumer.in_work`, `.lag` | gauges | lag only while it is known |
///
/// | of a producer | kind | |
/// | --- | --- | --- |
/// | `messaging.client.sent.messages` | counter | records acknowledged |
/// | `messaging.client.operation.duration`, operation `send` | histogram, s | requests |
/// | `dtkafka.producer.requests`, `.batches`, `.bytes`, `.retries`, `.splits`, `.failed_batches`, `.throttled` | counters | as in [`ProducerStatistics`] |
/// | `dtkafka.producer.buffered_bytes`, `.compression_ratio` | gauges | |
///
/// Each has the label `messaging.system=kafka` and those given.
///
/// ```no_run
/// # async fn example(consumer: dtkafka::Consumer) {
/// use std::time::Duration;
///
/// use dtkafka::MetricsPublisher;
///
/// let (handle, mut publisher) = (consumer.handle(), MetricsPublisher::new([("service", "billing")]));
/// tokio::spawn(async move {
///     loop {
///         publisher.consumer(&handle.metrics());
///         tokio::time::sleep(Duration::from_secs(5)).await;
///     }
/// });
/// # }
/// ```
#[derive(Debug)]
pub struct MetricsPublisher {
    labels: Vec<Label>,
    /// What the histograms have been given, by class.
    process: Vec<u64>,
    commit: Vec<u64>,
    send: Vec<u64>,
}

impl MetricsPublisher {
    /// A publisher for one client, whose numbers have these labels.
    pub fn new<N: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (N, V)>) -> Self {
        let own = labels.into_iter().map(|(name, value)| Label::new(name.into(), value.into()));
        let labels = [Label::new("messaging.system", "kafka")].into_iter().chain(own).collect();
        Self { labels, process: Vec::new(), commit: Vec::new(), send: Vec::new() }
    }

    /// Publishes a consumer's numbers.
    pub fn consumer(&mut self, numbers: &ConsumerMetrics) {
        self.count("messaging.client.consumed.messages", "Records done", numbers.handled);
        self.count(
            "dtkafka.consumer.failed",
            "Failed calls of handlers, and unreadable values",
            numbers.failed,
        );
        self.count("dtkafka.consumer.retried", "Calls of handlers after a failure", numbers.retried);
        self.count("dtkafka.consumer.skipped", "Records skipped by policy", numbers.skipped);
        self.count(
            "dtkafka.consumer.dead_lettered",
            "Records written to dead letter topics",
            numbers.dead_lettered,
        );
        self.count("dtkafka.consumer.rebalances", "Assignments made", numbers.rebalances);
        self.count("dtkafka.consumer.throttled", "Answers of brokers that held it back", numbers.throttled);
        self.gauge(
            "dtkafka.consumer.in_work",
            Unit::Count,
            "Records taken and not done",
            numbers.in_work as f64,
        );
        if let Some(lag) = numbers.lag {
            self.gauge(
                "dtkafka.consumer.lag",
                Unit::Count,
                "Records to the ends of the partitions",
                lag as f64,
            );
        }
        let process = classes(&numbers.handler_latency);
        observe("messaging.process.duration", "Calls of handlers", &self.labels, &process, &mut self.process);
        let commit = classes(&numbers.commit_latency);
        observe(OPERATION, OPERATIONS, &self.of_operation("commit"), &commit, &mut self.commit);
    }

    /// Publishes a producer's numbers.
    pub fn producer(&mut self, numbers: &ProducerStatistics) {
        self.count("messaging.client.sent.messages", "Records acknowledged", numbers.records);
        self.count("dtkafka.producer.requests", "Produce requests sent", numbers.requests);
        self.count("dtkafka.producer.batches", "Batches sent, each attempt counted", numbers.batches);
        self.count("dtkafka.producer.bytes", "Bytes of batches sent, each attempt counted", numbers.bytes);
        self.count("dtkafka.producer.retries", "Batches sent again", numbers.retries);
        self.count("dtkafka.producer.splits", "Batches cut in two", numbers.splits);
        self.count("dtkafka.producer.failed_batches", "Batches that failed", numbers.failed_batches);
        self.count("dtkafka.producer.throttled", "Answers of brokers that held it back", numbers.throttled);
        let buffered = numbers.buffered_bytes as f64;
        self.gauge("dtkafka.producer.buffered_bytes", Unit::Bytes, "buffer.memory in use", buffered);
        let ratio = numbers.compression_ratio;
        self.gauge(
            "dtkafka.producer.compression_ratio",
            Unit::Count,
            "Bytes after compression by those before",
            ratio,
        );
        let send: Vec<_> = numbers.classes().collect();
        observe(OPERATION, OPERATIONS, &self.of_operation("send"), &send, &mut self.send);
    }

    fn of_operation(&self, name: &'static str) -> Vec<Label> {
        self.labels.iter().cloned().chain([Label::new("messaging.operation.name", name)]).collect()
    }

    fn count(&self, name: &'static str, help: &'static str, value: u64) {
        metrics::describe_counter!(name, help);
        metrics::counter!(name, self.labels.iter()).absolute(value);
    }

    fn gauge(&self, name: &'static str, unit: Unit, help: &'static str, value: f64) {
        metrics::describe_gauge!(name, unit, help);
        metrics::gauge!(name, self.labels.iter()).set(value);
    }
}

const OPERATION: &str = "messaging.client.operation.duration";
const OPERATIONS: &str = "Requests by their kind";

fn classes(histogram: &HistogramSnapshot) -> Vec<(Option<Duration>, u64)> {
    histogram.classes().collect()
}

/// Records what came since `seen`.
fn observe(
    name: &'static str,
    help: &'static str,
    labels: &[Label],
    classes: &[(Option<Duration>, u64)],
    seen: &mut Vec<u64>,
) {
    metrics::describe_histogram!(name, Unit::Seconds, help);
    let histogram = metrics::histogram!(name, labels.iter());
    seen.resize(classes.len(), 0);
    let mut longest = Duration::ZERO;
    for ((bound, count), seen) in classes.iter().zip(seen) {
        longest = bound.unwrap_or(longest * 2);
        let new = count.saturating_sub(*seen);
        if new > 0 {
            histogram.record_many(longest.as_secs_f64(), usize::try_from(new).unwrap_or(usize::MAX));
        }
        *seen = *count;
    }
}
