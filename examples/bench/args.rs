//! The command line, keys and values.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::Ordering;

pub(crate) const MODES: &str = "produce, consume, latency, pingpong, members, copy, rebalance or scaling";

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone)]
pub(crate) struct Args {
    pub(crate) mode: String,
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) records: u64,
    pub(crate) size: usize,
    pub(crate) group: String,
    pub(crate) compression: String,
    pub(crate) acks: String,
    pub(crate) linger_ms: u64,
    pub(crate) batch_bytes: u64,
    pub(crate) payload: Option<String>,
    pub(crate) rate: f64,
    pub(crate) api: String,
    pub(crate) tasks: u64,
    pub(crate) in_flight: u64,
    /// Records sent before the oldest deliveries are awaited; 0: enough for every batch in flight to six partitions.
    pub(crate) window: usize,
    pub(crate) consumers: usize,
    /// Keys that take turns; 0: every record has its own.
    pub(crate) keys: u64,
    pub(crate) ordering: Ordering,
    /// Runs of handlers at once; 0: the default.
    pub(crate) concurrency: usize,
    /// How long a handler waits.
    pub(crate) pause: Duration,
    /// Where `copy` writes to.
    pub(crate) to: String,
    /// Records of a transaction; 0: as many as come while it is open.
    pub(crate) txn_records: u64,
    /// How long a transaction is open; 0: until it has its records.
    pub(crate) txn_ms: u64,
    /// Of the group: `eager`, `cooperative` or `consumer`.
    pub(crate) protocol: String,
}

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mode = words.next().ok_or_else(|| format!("say {MODES}"))?;
        let mut options = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("unexpected {word}"))?;
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (name.to_owned(), words.next().ok_or_else(|| format!("--{name} needs a value"))?),
            };
            options.insert(name, value);
        }
        let mut take = |name: &str, default: Option<&str>| -> Result<String, Failure> {
            let value = options.remove(name).or_else(|| default.map(str::to_owned));
            value.ok_or_else(|| format!("--{name} is required").into())
        };
        let scaling = mode == "scaling";
        let rebalance = mode == "rebalance";
        let reads = rebalance || matches!(mode.as_str(), "consume" | "members" | "copy");
        let args = Self {
            brokers: take("brokers", None)?,
            topic: take("topic", scaling.then_some("scaling"))?,
            records: take("records", (scaling || rebalance).then_some("0"))?.parse()?,
            size: take("size", (reads || scaling).then_some("0"))?.parse()?,
            group: take("group", (!reads).then_some(""))?,
            compression: take("compression", Some("none"))?,
            acks: take("acks", Some("all"))?,
            linger_ms: take("linger-ms", Some("5"))?.parse()?,
            batch_bytes: take("batch-bytes", Some("131072"))?.parse()?,
            payload: take("payload", Some("")).map(|path| Some(path).filter(|path| !path.is_empty()))?,
            rate: take("rate", (mode != "latency").then_some("0"))?.parse()?,
            api: take("api", Some("bytes"))?,
            tasks: take("tasks", Some("1"))?.parse::<u64>()?.max(1),
            in_flight: take("in-flight", Some("5"))?.parse()?,
            window: take("window", Some("0"))?.parse()?,
            consumers: take("consumers", Some("1"))?.parse::<usize>()?.max(1),
            keys: take("keys", Some("0"))?.parse()?,
            ordering: match take("ordering", Some("partition"))?.as_str() {
                "partition" => Ordering::Partition,
                "key" => Ordering::Key,
                "unordered" => Ordering::Unordered,
                other => return Err(format!("unknown ordering {other}").into()),
            },
            concurrency: take("concurrency", Some("0"))?.parse()?,
            pause: Duration::from_millis(take("pause-ms", Some("0"))?.parse()?),
            to: take("to", (mode != "copy").then_some(""))?,
            txn_records: take("txn-records", Some("0"))?.parse()?,
            txn_ms: take("txn-ms", Some("0"))?.parse()?,
            protocol: take("protocol", Some("eager"))?,
            mode,
        };
        if args.mode == "copy" && args.txn_records == 0 && args.txn_ms == 0 {
            return Err("copy needs --txn-records or --txn-ms".into());
        }
        match options.keys().next() {
            Some(unknown) => Err(format!("unknown option --{unknown}").into()),
            None => Ok(args),
        }
    }
}

/// The 16-byte key of record `i`: the hex digits of a mix of `i` that gives every record another key.
pub(crate) fn key(i: u64) -> [u8; 16] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mixed = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    std::array::from_fn(|place| HEX[(mixed >> (60 - 4 * place)) as usize & 15])
}

/// Successive slices of one text, wrapping.
pub(crate) struct Payload {
    text: Vec<u8>,
    cycle: usize,
    size: usize,
}

impl Payload {
    pub(crate) fn new(args: &Args) -> Result<Self, Failure> {
        let mut text = match &args.payload {
            Some(path) => std::fs::read(path)?,
            None => words(1 << 20),
        };
        if text.is_empty() {
            return Err("the payload file is empty".into());
        }
        let cycle = text.len();
        while text.len() < cycle + args.size {
            let more = (cycle + args.size - text.len()).min(text.len());
            text.extend_from_within(..more);
        }
        Ok(Self { text, cycle, size: args.size })
    }

    pub(crate) fn value(&self, i: u64) -> &[u8] {
        let start = ((u128::from(i) * self.size as u128) % self.cycle as u128) as usize;
        &self.text[start..start + self.size]
    }
}

/// Pseudo-random words and numbers: text that compresses as text does.
fn words(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let vocabulary: Vec<Vec<u8>> =
        (0..512).map(|_| (0..3 + next() % 8).map(|_| b'a' + (next() % 26) as u8).collect()).collect();
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        let random = next();
        if random.is_multiple_of(8) {
            text.extend_from_slice((random >> 40).to_string().as_bytes());
        } else {
            text.extend_from_slice(&vocabulary[(random >> 8) as usize % vocabulary.len()]);
        }
        text.push(b' ');
    }
    text.truncate(len);
    text
}
