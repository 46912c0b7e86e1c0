//! Client quotas: bytes produced and fetched, and requests, per second and `client.id` (KIP-124, KIP-219).
//!
//! Pure: a bucket per client and kind is filled by what was done, and empties with time; whoever has filled it for more
//! than a second's worth is throttled until it is empty enough.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clock::Now;

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Quota {
    /// Bytes of produce requests per second (`producer_byte_rate`).
    ProduceBytes,
    /// Bytes of fetch answers per second (`consumer_byte_rate`).
    FetchBytes,
    /// Requests of any kind per second. (Apache Kafka counts shares of its threads' time.)
    Requests,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In units of the quota.
    filled: f64,
    at: Now,
}

#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// Per second; the client `None` is every client without its own.
    limits: BTreeMap<(Quota, Option<String>), u64>,
    buckets: BTreeMap<(Quota, String), Bucket>,
}

impl Quotas {
    /// `None` lifts the quota.
    pub(super) fn set(&mut self, quota: Quota, client: Option<&str>, per_second: Option<u64>) {
        let key = (quota, client.map(str::to_owned));
        match per_second {
            Some(limit) => self.limits.insert(key, limit.max(1)),
            None => self.limits.remove(&key),
        };
        self.buckets.retain(|(kept, _), _| *kept != quota);
    }

    /// Notes what a client did, and says how long it must wait now.
    pub(super) fn used(&mut self, now: Now, quota: Quota, client: &str, amount: usize) -> Duration {
        let own = self.limits.get(&(quota, Some(client.to_owned())));
        let Some(limit) = own.or_else(|| self.limits.get(&(quota, None))) else { return Duration::ZERO };
        let rate = *limit as f64;
        let bucket =
            self.buckets.entry((quota, client.to_owned())).or_insert(Bucket { filled: 0.0, at: now });
        let gone = now.saturating_sub(bucket.at).as_secs_f64() * rate;
        bucket.filled = (bucket.filled - gone).max(0.0) + amount as f64;
        bucket.at = now;
        // A second's worth is free, as an average over a window would be.
        Duration::from_secs_f64((bucket.filled / rate - 1.0).clamp(0.0, 3600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_over_a_seconds_worth_must_be_waited_for() {
        let mut quotas = Quotas::default();
        let mut used = |at: u64, client: &str, amount| {
            quotas.set_once();
            quotas.used(Duration::from_secs(at), Quota::ProduceBytes, client, amount)
        };
        assert_eq!(used(0, "a", 1000), Duration::ZERO);
        assert_eq!(used(0, "a", 2000), Duration::from_secs(2));
        assert_eq!(used(0, "b", 100), Duration::ZERO, "each client has its own");
        assert_eq!(used(2, "a", 0), Duration::ZERO);
    }

    impl Quotas {
        fn set_once(&mut self) {
            if self.limits.is_empty() {
                self.set(Quota::ProduceBytes, None, Some(1000));
            }
        }
    }

    #[test]
    fn a_lifted_quota_throttles_nobody() {
        let mut quotas = Quotas::default();
        quotas.set(Quota::Requests, Some("a"), Some(1));
        assert_eq!(quotas.used(Duration::ZERO, Quota::Requests, "a", 3), Duration::from_secs(2));
        assert_eq!(quotas.used(Duration::ZERO, Quota::Requests, "b", 3), Duration::ZERO);
        quotas.set(Quota::Requests, Some("a"), None);
        assert_eq!(quotas.used(Duration::ZERO, Quota::Requests, "a", 9), Duration::ZERO);
    }
}
