//! The network of a scenario: connects clients with the embedded broker, and carries the fault out until its time is over.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dtkafka::{Connecting, Transport};
use dtkafka_testcontainers::{
    Listener,
    broker::{ApiKey, MemoryStream, Network},
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::Instant,
};

/// How long the fault of a scenario lasts.
pub(super) const FAULTS_LAST: Duration = Duration::from_secs(30);
/// More requests of one API, or connections, than this mean a busy loop.
const MOST_REQUESTS: u64 = 6_000;
const MOST_DIALS: u64 = 1_500;

/// A request, as far as it is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) key: i16,
    version: i16,
    /// Which request of this API it is, over all connections.
    pub(super) number: u64,
}

impl Asked {
    pub(super) fn is(self, key: ApiKey) -> bool {
        self.key == key as i16
    }

    fn head(self) -> usize {
        let flexible = ApiKey::try_from(self.key).unwrap().response_header_version(self.version) > 0;
        4 + usize::from(flexible)
    }

    /// The answer `frame` with a change.
    pub(super) fn changed<M: Decodable + Encodable>(
        self,
        frame: &[u8],
        change: impl FnOnce(&mut M),
    ) -> Reply {
        let mut body = Bytes::copy_from_slice(&frame[self.head()..]);
        let mut message = M::decode(&mut body, self.version).unwrap();
        change(&mut message);
        let mut changed = frame[..self.head()].to_vec();
        message.encode(&mut changed, self.version).unwrap();
        Reply::Frame(changed)
    }
}

pub(super) enum Reply {
    Frame(Vec<u8>),
    /// The first bytes, and after a pause the others.
    Paused(usize, Duration),
    /// The first bytes, and nothing more, though the connection stays open.
    Silence(usize),
    /// The first bytes, then the connection is closed.
    Close(usize),
}

/// Where a dial leads.
pub(super) enum Destination {
    Itself,
    Broker(i32),
    Refused,
    /// It is never answered.
    BlackHole,
    /// The connection opens, and nothing is ever answered.
    Silent,
}

pub(super) type Route = Box<dyn Fn(&str, i32, u64) -> Destination + Send + Sync>;
pub(super) type Act = Box<dyn Fn(Asked, &[u8]) -> Option<Reply> + Send + Sync>;

pub(super) struct FaultyNetwork {
    pub(super) network: Network,
    pub(super) listener: Listener,
    pub(super) start: Instant,
    pub(super) route: Route,
    pub(super) act: Act,
    pub(super) dials: AtomicU64,
    pub(super) requests: Mutex<BTreeMap<i16, u64>>,
}

impl FaultyNetwork {
    pub(super) fn is_over(&self) -> bool {
        self.start.elapsed() > FAULTS_LAST
    }
}

#[derive(Clone)]
pub(super) struct FaultyTransport(pub(super) Arc<FaultyNetwork>);

/// The host of the bootstrap address, which no broker has.
pub(super) const BALANCER: &str = "balancer";

impl Transport for FaultyTransport {
    fn connect<'a>(&'a self, host: &'a str, _port: u16) -> Connecting<'a> {
        Box::pin(async move {
            let network = &self.0;
            let number = network.dials.fetch_add(1, Ordering::Relaxed);
            assert!(number < MOST_DIALS, "dials in a busy loop");
            tokio::time::sleep(Duration::from_millis(1)).await;
            let known = (1..=2).find(|id| host == name(*id).as_str());
            if known.is_none() && host != BALANCER {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let way = match network.is_over() {
                true => Destination::Itself,
                false => (network.route)(host, known.unwrap_or(0), number),
            };
            let broker = match way {
                Destination::Itself => known.unwrap_or(1 + (number % 2) as i32),
                Destination::Broker(id) => id,
                Destination::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Destination::BlackHole => std::future::pending().await,
                Destination::Silent => {
                    let (near, far) = tokio::io::duplex(1 << 16);
                    tokio::spawn(async move {
                        let _far = far;
                        std::future::pending::<()>().await;
                    });
                    return Ok(Box::new(near) as _);
                }
            };
            let far = network.network.connect_to("client", broker, network.listener)?;
            let (near, mine) = tokio::io::duplex(1 << 16);
            let network = Arc::clone(network);
            tokio::spawn(async move {
                tokio::select! {
                    _ = carry(&network, mine, far) => {}
                    // What leads elsewhere then breaks its connections.
                    () = tokio::time::sleep_until(network.start + FAULTS_LAST), if known.is_some_and(|id| id != broker) => {}
                }
            });
            Ok(Box::new(near) as _)
        })
    }
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// Passes requests and answers on, one after the other.
async fn carry(network: &FaultyNetwork, mut near: DuplexStream, mut far: MemoryStream) -> io::Result<()> {
    loop {
        let request = read_frame(&mut near).await?;
        let short = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        let number = {
            let mut requests = network.requests.lock().unwrap();
            let count = requests.entry(short(0)).or_default();
            *count += 1;
            assert!(*count < MOST_REQUESTS, "API {} in a busy loop", short(0));
            *count - 1
        };
        let asked = Asked { key: short(0), version: short(2), number };
        far.write_u32(request.len() as u32).await?;
        far.write_all(&request).await?;
        let answer = read_frame(&mut far).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let act = if network.is_over() { None } else { (network.act)(asked, &answer) };
        let whole = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        match act {
            None => near.write_all(&whole(&answer)).await?,
            Some(Reply::Frame(frame)) => near.write_all(&whole(&frame)).await?,
            Some(Reply::Paused(first, pause)) => {
                let bytes = whole(&answer);
                let first = first.min(bytes.len());
                near.write_all(&bytes[..first]).await?;
                tokio::time::sleep(pause).await;
                near.write_all(&bytes[first..]).await?;
            }
            Some(Reply::Silence(first)) => {
                let bytes = whole(&answer);
                near.write_all(&bytes[..first.min(bytes.len())]).await?;
                std::future::pending::<()>().await;
            }
            Some(Reply::Close(first)) => {
                let bytes = whole(&answer);
                near.write_all(&bytes[..first.min(bytes.len())]).await?;
                return Ok(());
            }
        }
    }
}

/// The host of a broker, as metadata names it.
pub(super) fn name(id: i32) -> StrBytes {
    StrBytes::from_string(format!("broker-{id}"))
}
