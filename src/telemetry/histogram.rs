//! Durations by size class, in the classes OpenTelemetry's messaging conventions advise. Fixed memory, no lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds in microseconds; one more class has none.
const BOUNDS: [u64; 14] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000,
    5_000_000, 7_500_000, 10_000_000,
];

#[derive(Debug, Default)]
pub(super) struct Histogram {
    classes: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(super) fn record(&self, each: Duration, count: u64) {
        let micros = u64::try_from(each.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS.partition_point(|bound| *bound < micros);
        self.classes[class].fetch_add(count, Relaxed);
        self.micros.fetch_add(micros.saturating_mul(count), Relaxed);
    }

    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            classes: std::array::from_fn(|class| self.classes[class].load(Relaxed)),
            sum: Duration::from_micros(self.micros.load(Relaxed)),
        }
    }
}

/// How many durations fell into which class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    classes: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl HistogramSnapshot {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Their mean; zero if there was none.
    pub fn mean(&self) -> Duration {
        let count = self.count();
        if count == 0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(self.sum.as_secs_f64() / count as f64)
        }
    }

    /// The classes with their upper bounds, `None` for the last, and how many durations fell into each.
    pub fn classes(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Some(Duration::from_micros(*bound))).chain([None]);
        bounds.zip(self.classes)
    }

    /// The upper bound of the class that holds this share (0 to 1) of the durations; `None` if it is the last class, or
    /// there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.classes().find_map(|(bound, count)| {
            seen += count;
            (seen >= wanted).then_some(bound)
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_class_and_bounds_belong_to_it() {
        let histogram = Histogram::default();
        for ms in [0, 5, 6, 100, 9_999_999] {
            histogram.record(Duration::from_millis(ms), 1);
        }
        let snapshot = histogram.snapshot();
        let counts: Vec<_> = snapshot.classes().filter(|(_, count)| *count > 0).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(counts, [(ms(5), 2), (ms(10), 1), (ms(100), 1), (None, 1)]);
        assert_eq!((snapshot.count(), snapshot.quantile(0.5), snapshot.quantile(1.0)), (5, ms(10), None));
        assert_eq!(Histogram::default().snapshot().quantile(0.5), None);
    }
}
