//! The JSON line.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use crate::args::{Args, Failure};

/// User and system seconds of this process so far.
pub(crate) fn cpu() -> Result<(f64, f64), Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok((seconds(usage.user_time()), seconds(usage.system_time())))
}

/// What was read: lengths and first bytes of all keys and values.
#[derive(Default)]
pub(crate) struct Touch {
    pub(crate) records: u64,
    key_bytes: u64,
    pub(crate) value_bytes: u64,
    first_bytes: u64,
}

impl Touch {
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) {
        let first = |bytes: &[u8]| u64::from(bytes.first().copied().unwrap_or_default());
        self.records += 1;
        self.key_bytes += key.len() as u64;
        self.value_bytes += value.len() as u64;
        self.first_bytes = self.first_bytes.wrapping_add(first(key)).wrapping_add(first(value));
    }
}

pub(crate) struct Report {
    pub(crate) records: u64,
    pub(crate) value_bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu_before: f64,
    pub(crate) extra: Vec<(&'static str, String)>,
}

impl Report {
    pub(crate) fn touched(mut self, touch: &Touch, first_record: Duration) -> Self {
        self.value_bytes = touch.value_bytes;
        self.extra.push(("first_record_s", format!("{:.6}", first_record.as_secs_f64())));
        self.extra.push(("key_bytes", touch.key_bytes.to_string()));
        self.extra.push(("value_bytes", touch.value_bytes.to_string()));
        self.extra.push(("touch", touch.first_bytes.to_string()));
        self
    }

    pub(crate) fn percentiles(mut self, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let place = (latencies.len() as f64 * share).ceil() as usize;
            latencies.get(place.clamp(1, latencies.len().max(1)) - 1).copied().unwrap_or_default()
        };
        for (name, share) in
            [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999), ("max_us", 1.0)]
        {
            self.extra.push((name, format!("{:.1}", at(share).as_secs_f64() * 1e6)));
        }
        self
    }

    /// Prints the line. Call it last, with every client closed.
    pub(crate) fn print(self, args: &Args) -> Result<(), Failure> {
        let (user, system) = cpu()?;
        let secs = self.elapsed.as_secs_f64();
        let peak = std::fs::read_to_string("/proc/self/status")?
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default();
        let mut line = serde_json::json!({
            "peer": "dtkafka", "version": env!("CARGO_PKG_VERSION"), "mode": args.mode,
            "records": self.records, "secs": secs,
            "records_per_s": self.records as f64 / secs, "mb_per_s": self.value_bytes as f64 / 1e6 / secs,
            "cpu_user_s": user, "cpu_sys_s": system, "cpu_part_s": user + system - self.cpu_before,
            "max_rss_kb": peak,
        });
        for (name, value) in self.extra {
            line[name] = serde_json::from_str(&value)?;
        }
        println!("{line}");
        Ok(())
    }
}
