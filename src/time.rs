//! The only place that reads a clock or seeds a random generator.
//!
//! Cores take `now` and an [`Rng`] as arguments, so that a test drives them with virtual time and a seed.

#![expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub(crate) use tokio::time::Instant;

use crate::mutex::Mutex;

/// The monotonic clock; follows tokio's paused clock in tests.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The longest time that anything waits for: 30 years. Sums with it never overflow.
const FAR_AWAY: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The deadline after a time that a user has named, which may be `Duration::MAX` for "as long as it takes".
pub(crate) fn after(duration: Duration) -> Instant {
    later(now(), duration)
}

/// As [`after`], counted from `now`.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR_AWAY)
}

/// Waits until then; for ever without a time.
pub(crate) async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The timer of a loop that names a time with each turn, as a rule a later one. It is set anew only for an earlier time,
/// because setting and dropping a timer with every turn is expensive. So it may ring too early, and the loop looks once
/// more.
pub(crate) struct Alarm {
    sleep: Pin<Box<tokio::time::Sleep>>,
    set_to: Option<Instant>,
}

impl Alarm {
    /// Needs a runtime with timers.
    pub(crate) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(now())), set_to: None }
    }

    /// Waits until then, or until an earlier time that was named before and not waited for; for ever without one.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the timer as it is.
    pub(crate) async fn ring(&mut self, time: Option<Instant>) {
        let Some(time) = time else { return std::future::pending().await };
        if self.set_to.is_none_or(|set_to| time < set_to) {
            self.sleep.as_mut().reset(time);
            self.set_to = Some(time);
        }
        self.sleep.as_mut().await;
        self.set_to = None;
    }
}

/// Milliseconds since the Unix epoch, as record timestamps want them.
///
/// On Linux the coarse clock: up to one timer tick (1 to 10 ms) behind, and several times cheaper than the exact one.
#[inline]
fn wall_clock_ms() -> i64 {
    #[cfg(target_os = "linux")]
    if let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE) {
        // On 32-bit targets these are `i32`.
        #[allow(clippy::useless_conversion, reason = "not useless on 32-bit targets")]
        return i64::from(time.tv_sec()) * 1000 + i64::from(time.tv_nsec()) / 1_000_000;
    }
    exact_wall_clock_ms()
}

fn exact_wall_clock_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Where a client's randomness and wall clock come from: the system, or one seed and the runtime's clock.
///
/// In a simulation every generator is a child of the seed, in the order in which they are made, and the wall clock moves
/// with tokio's paused clock. A simulated client uses no thread.
#[derive(Clone, Default)]
pub(crate) struct Environment(Option<Arc<Simulated>>);

struct Simulated {
    seeds: Mutex<Rng>,
    /// The wall clock at `start`, in milliseconds since the Unix epoch.
    epoch_ms: AtomicI64,
    start: Instant,
}

impl Environment {
    /// A simulated one, whose wall clock shows `epoch_ms` now.
    pub(crate) fn simulated(seed: u64, epoch_ms: i64) -> Self {
        let (seeds, epoch_ms) = (Mutex::new(Rng::new(seed)), AtomicI64::new(epoch_ms));
        Self(Some(Arc::new(Simulated { seeds, epoch_ms, start: now() })))
    }

    /// Sets the simulated wall clock forward or back, as a time server does, a user, or the end of a computer's sleep.
    #[cfg(test)]
    pub(crate) fn put_wall_clock(&self, by_ms: i64) {
        if let Some(world) = &self.0 {
            world.epoch_ms.fetch_add(by_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.0.is_some()
    }

    /// A generator of its own for whoever asks.
    pub(crate) fn rng(&self) -> Rng {
        match &self.0 {
            Some(world) => Rng::new(world.seeds.lock().next_u64()),
            None => Rng::from_entropy(),
        }
    }

    /// [`wall_clock_ms`], or the simulated one.
    #[inline]
    pub(crate) fn wall_clock_ms(&self) -> i64 {
        match &self.0 {
            Some(world) => {
                let since = now().saturating_duration_since(world.start).as_millis();
                let epoch_ms = world.epoch_ms.load(Ordering::Relaxed);
                epoch_ms.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
            }
            None => wall_clock_ms(),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_simulated() { "simulated" } else { "real" })
    }
}

/// A small random generator (SplitMix64): for jitter and for picking a broker or a partition, never for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded from the process's own hash keys, so that clients started together spread out.
    fn from_entropy() -> Self {
        Self(RandomState::new().hash_one(0x9E37_79B9_7F4A_7C15_u64))
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_u64() % bound as u64) as usize }
    }
}

/// Exponential back-off with 20 % jitter (KIP-580).
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max: max.max(initial), failures: 0 }
    }

    /// The pause before the next attempt; doubles with each call up to the maximum.
    pub(crate) fn next(&mut self, rng: &mut Rng) -> Duration {
        let pause = self.after(self.failures, rng);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after so many failures, for those who count by themselves.
    pub(crate) fn after(&self, failures: u32, rng: &mut Rng) -> Duration {
        let doubled = self.initial.saturating_mul(1u32.checked_shl(failures.min(20)).unwrap_or(1 << 20));
        // KIP-580: the pause is spread over 80 % to 120 %, so that clients do not come back in step.
        let percent = 80 + rng.below(41) as u32;
        doubled.min(self.max).saturating_mul(percent) / 100
    }

    pub(crate) fn initial(&self) -> Duration {
        self.initial
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_maximum_and_are_spread_so_that_clients_do_not_come_back_in_step() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(1000));
        let mut rng = Rng::new(1);
        for (failures, middle) in [(0, 100), (1, 200), (3, 800), (4, 1000), (30, 1000)] {
            let pauses: Vec<_> = (0..500).map(|_| backoff.after(failures, &mut rng).as_millis()).collect();
            let (least, most) = (*pauses.iter().min().unwrap(), *pauses.iter().max().unwrap());
            assert!((middle * 80 / 100..=middle * 82 / 100).contains(&least), "{least} of {middle}");
            assert!((middle * 118 / 100..=middle * 120 / 100).contains(&most), "{most} of {middle}");
        }
    }

    #[test]
    fn the_coarse_clock_agrees_with_the_exact_one() {
        let apart = exact_wall_clock_ms() - wall_clock_ms();
        assert!((-60_000..60_000).contains(&apart), "{apart} ms apart");
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_wall_clock_moves_with_the_runtimes_clock_alone() {
        let world = Environment::simulated(1, 1_700_000_000_000);
        assert_eq!(world.wall_clock_ms(), 1_700_000_000_000);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(world.wall_clock_ms(), 1_700_000_090_000);
    }

    #[test]
    fn one_seed_gives_the_same_generators_in_the_same_order_and_each_is_another() {
        let draw = |seed| {
            let world = Environment::simulated(seed, 0);
            [world.rng().next_u64(), world.clone().rng().next_u64(), world.rng().next_u64()]
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        let [first, second, third] = draw(5);
        assert!(first != second && second != third && first != third);
        let real = Environment::default();
        assert_ne!(real.rng().next_u64(), real.rng().next_u64());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_after_any_time_is_one_that_can_be_waited_for() {
        assert_eq!(after(Duration::from_secs(5)), now() + Duration::from_secs(5));
        let deadline = after(Duration::MAX) + Duration::from_secs(60);
        assert!(tokio::time::timeout_at(deadline, std::future::ready(())).await.is_ok());
        assert!(tokio::time::timeout_at(deadline, std::future::pending::<()>()).await.is_err(), "it comes");
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_by_the_time_that_was_named_last_and_is_not_set_anew_for_a_later_one() {
        let (start, second) = (now(), Duration::from_secs(1));
        let mut alarm = Alarm::new();
        let elapsed = |alarm: &mut Alarm, seconds: Option<u32>| {
            let ring = alarm.ring(seconds.map(|seconds| start + second * seconds));
            futures_util::FutureExt::now_or_never(ring).is_some()
        };
        assert!(!elapsed(&mut alarm, None) && !elapsed(&mut alarm, Some(9)) && !elapsed(&mut alarm, Some(5)));
        alarm.ring(Some(start + second * 7)).await;
        assert_eq!(now() - start, second * 5, "once too early");
        alarm.ring(Some(start + second * 7)).await;
        assert_eq!(now() - start, second * 7);
        assert!(elapsed(&mut alarm, Some(3)), "what is over is over");
        assert!(!elapsed(&mut alarm, Some(8)));
        alarm.ring(Some(start + second * 8)).await;
        assert_eq!(now() - start, second * 8);
    }

    #[test]
    fn back_off_doubles_up_to_its_maximum_and_starts_again_after_a_success() {
        let mut rng = Rng::new(7);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let within = |pause: Duration, ms: u64| {
            let (low, high) = (Duration::from_millis(ms * 80 / 100), Duration::from_millis(ms * 120 / 100));
            assert!(low <= pause && pause <= high, "{pause:?} is not {ms} ms within 20 %");
        };
        for ms in [100, 200, 400, 800, 1000, 1000] {
            within(backoff.next(&mut rng), ms);
        }
        backoff.reset();
        within(backoff.next(&mut rng), 100);
    }

    #[test]
    fn back_off_survives_a_very_long_outage() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        backoff.failures = u32::MAX;
        assert!(backoff.next(&mut Rng::new(1)) <= Duration::from_millis(1200));
    }
}
