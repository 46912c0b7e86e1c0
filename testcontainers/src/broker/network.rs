//! The network between clients and brokers: connections in memory, links that are cut, peers that forget a connection.
//!
//! Pure state behind a `watch`; connections look at it before they take a request and before they answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::Notify;

use super::cluster::Shared;
use super::{Listener, server, watch};

/// What one side of an in-memory connection may write before the other reads.
const BUFFER: usize = 64 * 1024;

/// Clients of one name (`None`: all) and one broker (`None`: all).
pub(super) type Link = (Option<String>, Option<i32>);

#[derive(Debug, Default)]
struct State {
    /// Nothing passes, and nobody is told.
    cut: BTreeSet<Link>,
    /// How often the brokers forgot the connections of a link.
    forgotten: BTreeMap<Link, u64>,
}

fn fits(link: &Link, client: &str, broker: i32) -> bool {
    link.0.as_deref().is_none_or(|c| c == client) && link.1.is_none_or(|b| b == broker)
}

impl State {
    fn is_cut(&self, client: &str, broker: i32) -> bool {
        self.cut.iter().any(|link| fits(link, client, broker))
    }

    fn forgotten(&self, client: &str, broker: i32) -> u64 {
        self.forgotten.iter().filter(|(link, _)| fits(link, client, broker)).map(|(_, n)| n).sum()
    }
}

/// Which links work.
#[derive(Debug)]
pub(super) struct Links {
    state: watch::Sender<State>,
}

impl Default for Links {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Links {
    pub(super) fn cut(&self, link: Link) {
        self.state.send_modify(|s| {
            s.cut.insert(link);
        });
    }

    pub(super) fn heal(&self, link: &Link) {
        self.state.send_modify(|s| {
            s.cut.remove(link);
        });
    }

    pub(super) fn heal_all(&self) {
        self.state.send_modify(|s| s.cut.clear());
    }

    pub(super) fn forget(&self, link: Link) {
        self.state.send_modify(|s| *s.forgotten.entry(link).or_default() += 1);
    }

    /// What a connection that begins now notes, to see later whether it was forgotten.
    pub(super) fn mark(&self, client: &str, broker: i32) -> u64 {
        self.state.borrow().forgotten(client, broker)
    }

    /// Waits while the link is cut. Never ends for a connection that was forgotten since its mark.
    pub(super) async fn pass(&self, client: &str, broker: i32, mark: u64) {
        let mut state = self.state.subscribe();
        let open = |s: &State| !s.is_cut(client, broker) && s.forgotten(client, broker) == mark;
        // The sender lives as long as the broker: an error cannot come.
        state.wait_for(open).await;
    }
}

/// Breaks a connection in memory as a TCP reset does: what the broker has not read yet is lost, what it works on it still does.
/// A stream that is only dropped ends in an orderly way: the broker reads what was written before, when it gets there.
#[derive(Debug, Clone, Default)]
pub struct Breaker(Arc<(AtomicBool, Notify)>);

impl Breaker {
    /// Breaks it, now and for good.
    pub fn reset(&self) {
        self.0.0.store(true, Ordering::Relaxed);
        self.0.1.notify_one();
    }

    pub(super) fn is_reset(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    /// For the broker alone: it wakes one.
    pub(super) async fn broken(&self) {
        while !self.is_reset() {
            self.0.1.notified().await;
        }
    }
}

/// The client's end of a connection in memory.
#[derive(Debug)]
pub struct MemoryStream {
    stream: DuplexStream,
    breaker: Breaker,
}

impl MemoryStream {
    /// What breaks this connection.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Opens in-memory connections to the brokers of one cluster. Cheap to clone.
///
/// With [`super::EmbeddedBrokerBuilder::in_memory`] a client that asks this instead of the operating system needs no
/// socket and no thread, and runs under tokio's paused clock.
#[derive(Clone)]
pub struct Network {
    pub(super) shared: Arc<Shared>,
}

impl Network {
    /// Connects `client` (a name of your choice, by which [`super::FaultControl::cut`] knows it) to the broker that is
    /// advertised at `host` and `port`. Needs a tokio runtime, on which the broker's side of the connection runs.
    ///
    /// # Errors
    /// `NotFound`: nobody has this address. `ConnectionRefused`: the broker is stopped. Over a link that is cut the
    /// connection opens and stays silent.
    pub fn connect(&self, client: &str, host: &str, port: u16) -> io::Result<MemoryStream> {
        let found = {
            let cluster = self.shared.cluster();
            let of = |id: i32| {
                let node = cluster.nodes.get(&id)?;
                let listener = node.ports.iter().find(|(_, p)| **p == port).map(|(l, _)| *l)?;
                (node.host == host).then_some((id, listener))
            };
            cluster.nodes.keys().find_map(|id| of(*id))
        };
        let (broker, listener) = found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no embedded broker is at {host}:{port}"))
        })?;
        self.connect_to(client, broker, listener)
    }

    /// Connects `client` to a broker by its id.
    ///
    /// # Errors
    /// `NotFound`: there is no such broker. `ConnectionRefused`: it is stopped.
    pub fn connect_to(&self, client: &str, broker: i32, listener: Listener) -> io::Result<MemoryStream> {
        let (stream, theirs) = tokio::io::duplex(BUFFER);
        let breaker = Breaker::default();
        serve(&self.shared, client, broker, listener, theirs, breaker.clone())?;
        Ok(MemoryStream { stream, breaker })
    }
}

#[expect(clippy::disallowed_methods, reason = "one task per connection, ended by the broker's running flag")]
pub(super) fn serve<S>(
    shared: &Arc<Shared>,
    client: &str,
    broker: i32,
    listener: Listener,
    stream: S,
    breaker: Breaker,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let running = shared.cluster().nodes.get(&broker).map(|node| node.running.subscribe());
    let Some(running) = running else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no broker {broker}")));
    };
    if !*running.borrow() {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("broker {broker} is stopped")));
    }
    let peer = server::Peer { name: client.to_owned(), host: "/in-memory".to_owned(), breaker };
    tokio::spawn(server::serve(Arc::clone(shared), broker, listener, stream, peer, running));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_holds_the_client_and_the_broker_it_names() {
        let links = Links::default();
        links.cut((Some("a".into()), Some(1)));
        links.cut((None, Some(3)));
        let cut = |client, broker| links.state.borrow().is_cut(client, broker);
        assert!(cut("a", 1) && cut("b", 3));
        assert!(!cut("a", 2) && !cut("b", 1));
        links.heal(&(None, Some(3)));
        assert!(!cut("b", 3) && cut("a", 1));
        links.heal_all();
        assert!(!cut("a", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_connection_stays_silent_and_a_new_one_passes() {
        let links = Links::default();
        let mark = links.mark("a", 1);
        links.forget((None, Some(1)));
        let passed = |mark| tokio::time::timeout(std::time::Duration::from_secs(9), links.pass("a", 1, mark));
        assert!(passed(mark).await.is_err());
        assert!(passed(links.mark("a", 1)).await.is_ok());
    }
}
