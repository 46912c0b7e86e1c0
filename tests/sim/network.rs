//! The network of a world: the broker's in-memory connections, with latency, pieces, and connections that break.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dtkafka::{Connecting, Transport};
use dtkafka_testcontainers::broker::{Breaker, Network};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::Notify,
    time::Instant,
};

use crate::rng::Rng;

const BUFFER: usize = 16 * 1024;

/// How good the connections are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// A piece takes this long, in milliseconds.
    pub(crate) latency: (u64, u64),
    /// Of 10,000 pieces, so many are lost together with their connection.
    pub(crate) breaks: u64,
    /// Of a hundred pieces, so many arrive in parts.
    pub(crate) splits: u64,
}

/// The network of all clients of a world.
pub(crate) struct Air {
    network: Network,
    conditions: Conditions,
    rng: Mutex<Rng>,
    calm: AtomicBool,
    start: Instant,
    connections: AtomicU64,
    /// Every open connection breaks.
    storm: Notify,
}

impl Air {
    pub(crate) fn new(network: Network, conditions: Conditions, rng: Rng) -> Arc<Self> {
        Arc::new(Self {
            network,
            conditions,
            rng: Mutex::new(rng),
            calm: AtomicBool::new(false),
            start: Instant::now(),
            connections: AtomicU64::new(0),
            storm: Notify::new(),
        })
    }

    /// Whether nothing takes longer than the shortest time-out, and nothing breaks.
    pub(crate) fn is_fast(&self) -> bool {
        self.conditions.latency.1 <= 40 && self.conditions.breaks == 0
    }

    /// Nothing breaks any more, and nothing is slow.
    pub(crate) fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Breaks every open connection.
    pub(crate) fn break_all(&self) {
        self.storm.notify_waiters();
    }

    /// What a connection is called in the trace.
    fn name(&self, client: &str, host: &str) -> String {
        format!("{client} {host} #{}", self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// Virtual milliseconds since the beginning.
    fn millis(&self) -> u128 {
        self.start.elapsed().as_millis()
    }

    fn latency(&self) -> Duration {
        let (low, mut high) = self.conditions.latency;
        if self.calm.load(Ordering::Relaxed) {
            // Clients with the shortest time-outs make progress as well.
            high = high.min(40);
        }
        self.rng.lock().unwrap().millis(low, high)
    }

    fn breaks(&self) -> bool {
        !self.calm.load(Ordering::Relaxed) && self.rng.lock().unwrap().below(10_000) < self.conditions.breaks
    }

    /// Where to cut a piece in two; its length if it stays whole.
    fn split(&self, length: usize) -> usize {
        let mut rng = self.rng.lock().unwrap();
        if length > 1 && rng.percent(self.conditions.splits) {
            rng.range(1, length as u64 - 1) as usize
        } else {
            length
        }
    }
}

/// The transport of one client.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) air: Arc<Air>,
    /// The name by which the nemesis knows the client.
    pub(crate) client: Arc<str>,
}

impl Transport for Wire {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        Box::pin(async move {
            tokio::time::sleep(self.air.latency()).await;
            let broker = self.air.network.connect(&self.client, host, port)?;
            let (near, far) = tokio::io::duplex(BUFFER);
            let (from_client, to_client) = tokio::io::split(far);
            let (broken, breaker) = (Arc::new(Notify::new()), broker.breaker());
            let (from_broker, to_broker) = tokio::io::split(broker);
            let name = self.air.name(&self.client, host);
            tracing::trace!(name, "opens");
            tokio::spawn(carry(
                Arc::clone(&self.air),
                format!("{name} out"),
                from_client,
                to_broker,
                (Arc::clone(&broken), breaker.clone()),
            ));
            let ends = (broken, breaker);
            tokio::spawn(carry(Arc::clone(&self.air), format!("{name} in"), from_broker, to_client, ends));
            Ok(Box::new(near) as _)
        })
    }
}

/// Carries bytes in one direction until either end closes or the connection breaks.
async fn carry<S: AsyncRead + AsyncWrite, T: AsyncRead + AsyncWrite>(
    air: Arc<Air>,
    name: String,
    from: ReadHalf<S>,
    to: WriteHalf<T>,
    (broken, breaker): (Arc<Notify>, Breaker),
) {
    let breaks = tokio::select! {
        biased;
        () = broken.notified() => false,
        () = air.storm.notified() => true,
        carried = carry_all(&air, &name, from, to) => carried.unwrap_or(false),
    };
    tracing::trace!(name, "ends");
    if breaks {
        // What is on its way is lost, and what the broker has not read.
        breaker.reset();
    }
    // Both directions end together.
    broken.notify_one();
}

/// Whether the connection breaks.
async fn carry_all<S: AsyncRead + AsyncWrite, T: AsyncRead + AsyncWrite>(
    air: &Air,
    name: &str,
    mut from: ReadHalf<S>,
    mut to: WriteHalf<T>,
) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        tracing::trace!(name, length, at = air.millis(), "piece");
        if length == 0 {
            to.shutdown().await?;
            return Ok(false);
        }
        tokio::time::sleep(air.latency()).await;
        if air.breaks() {
            return Ok(true);
        }
        let cut = air.split(length);
        to.write_all(&buffer[..cut]).await?;
        if cut < length {
            tokio::time::sleep(air.latency()).await;
            if air.breaks() {
                return Ok(true);
            }
            to.write_all(&buffer[cut..length]).await?;
        }
    }
}
