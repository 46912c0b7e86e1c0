//! Sockets and framing: accept loops, one task per connection, answers in the order of the requests.
//!
//! A connection serves one request at a time, as Apache Kafka does: pipelined requests wait in the socket. What a
//! request means is in `api`; who may ask is in `sasl`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader};
use kafka_protocol::protocol::Decodable;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::api::{self, Call};
use super::cluster::Shared;
use super::faults::{Asked, Effect, InjectedFaults};
use super::network::Breaker;
use super::random::Random;
use super::sasl::Login;
use super::watch;
use super::{BrokerError, Listener};

/// Apache Kafka's `socket.request.max.bytes`.
const MAX_REQUEST: usize = 100 * 1024 * 1024;
/// A frame's buffer grows by at most this much before its bytes are there.
const READ_STEP: usize = 1024 * 1024;

/// Why a connection ends.
pub(super) struct Close;

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// What the network calls it: given at an in-memory connection, else the `client.id` of its first request.
    pub(super) name: String,
    pub(super) host: String,
    /// Of a connection in memory.
    pub(super) breaker: Breaker,
}

/// Binds a broker's listeners (the same ports as before, if it had some) and starts to accept.
pub(super) async fn start_node(shared: &Arc<Shared>, broker: i32) -> Result<(), BrokerError> {
    let (old, ports) = {
        let mut cluster = shared.cluster();
        let Some(node) = cluster.nodes.get_mut(&broker) else {
            return Err(BrokerError::NoSuchBroker(broker));
        };
        if *node.running.borrow() {
            return Ok(());
        }
        (std::mem::take(&mut node.accepting), node.ports.clone())
    };
    for task in old {
        // A stopped accept loop has closed its socket once its task has ended.
        drop(task.await);
    }
    let mut bound = Vec::new();
    if !shared.in_memory {
        for (listener, port) in ports {
            bound
                .push((listener, TcpListener::bind(("127.0.0.1", port)).await.map_err(BrokerError::Listen)?));
        }
    }
    let mut cluster = shared.cluster();
    let Some(node) = cluster.nodes.get_mut(&broker) else { return Err(BrokerError::NoSuchBroker(broker)) };
    node.running = watch::Sender::new(true);
    let node = {
        cluster.broker_started(broker);
        let Some(node) = cluster.nodes.get_mut(&broker) else {
            return Err(BrokerError::NoSuchBroker(broker));
        };
        node
    };
    for (listener, socket) in bound {
        let port = socket.local_addr().map_err(BrokerError::Listen)?.port();
        node.ports.insert(listener, port);
        node.accepting.push(spawn_accept(
            Arc::clone(shared),
            broker,
            listener,
            socket,
            node.running.subscribe(),
        ));
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "one accept loop per listener, ended by the broker's running flag"
)]
fn spawn_accept(
    shared: Arc<Shared>,
    broker: i32,
    listener: Listener,
    socket: TcpListener,
    running: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let mut stop = running.clone();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.wait_for(|running| !running) => return,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = socket.accept() => {
                    let Ok((stream, peer)) = accepted else { continue };
                    if stream.set_nodelay(true).is_err() {
                        continue;
                    }
                    let host = format!("/{}", peer.ip());
                    let peer = Peer { name: String::new(), host, breaker: Breaker::default() };
                    connections.spawn(serve(Arc::clone(&shared), broker, listener, stream, peer, running.clone()));
                }
            }
        }
    })
}

/// Serves one connection until either side closes it or the broker stops.
pub(super) async fn serve<S>(
    shared: Arc<Shared>,
    broker: i32,
    listener: Listener,
    stream: S,
    peer: Peer,
    mut running: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = Connection {
        login: Login::new(listener.is_sasl()),
        mark: shared.links.mark(&peer.name, broker),
        shared: Arc::clone(&shared),
        broker,
        listener,
        peer,
    };
    let work = async {
        match (&shared.tls, listener.is_tls()) {
            (_, false) => connection.run(stream).await,
            (Some(tls), true) => match tls.accept(stream).await {
                Ok(stream) => connection.run(stream).await,
                Err(error) => tracing::debug!(%error, "TLS handshake failed"),
            },
            (None, true) => {}
        }
    };
    tokio::select! {
        biased;
        () = running.wait_for(|running| !running) => {}
        () = Box::pin(work) => {}
    }
}

/// What goes back for one request, and how.
struct Answer {
    frame: BytesMut,
    /// The connection closes behind it.
    close: bool,
    /// In pieces of so many bytes, with this pause after each.
    trickle: Option<(usize, Duration)>,
    /// The broker reads nothing for so long (KIP-219).
    mute: Duration,
}

impl Answer {
    fn plain(frame: BytesMut) -> Self {
        Self { frame, close: false, trickle: None, mute: Duration::ZERO }
    }

    async fn write<S: AsyncWrite + Unpin>(&self, stream: &mut S) -> std::io::Result<()> {
        let (size, pause) = self.trickle.unwrap_or_else(|| (self.frame.len().max(1), Duration::ZERO));
        for piece in self.frame.chunks(size) {
            stream.write_all(piece).await?;
            stream.flush().await?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }
}

/// Turns one bit over, behind the frame's length and the correlation id.
fn corrupt(frame: &mut BytesMut, random: &Random) {
    let body = frame.len().saturating_sub(8) as u64;
    let bit = random.below(body * 8);
    let at = usize::try_from(bit / 8).unwrap_or(0) + 8;
    if let Some(byte) = frame.get_mut(at) {
        *byte ^= 1 << (bit % 8);
    }
}

struct Connection {
    shared: Arc<Shared>,
    broker: i32,
    listener: Listener,
    peer: Peer,
    /// What was noted at the start, to see whether the broker forgot this connection since.
    mark: u64,
    login: Login,
}

impl Connection {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(&mut self, mut stream: S) {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let breaker = self.peer.breaker.clone();
        loop {
            if breaker.is_reset() {
                // What has come and was not read is lost with the connection.
                return;
            }
            match take_frame(&mut buffer) {
                Err(Close) => return,
                Ok(Some(frame)) => match self.handle(frame).await {
                    Ok(Some(answer)) => {
                        self.pass().await;
                        if answer.write(&mut stream).await.is_err() {
                            return;
                        }
                        if self.login.has_failed() || answer.close {
                            drop(stream.shutdown().await);
                            return;
                        }
                        if !answer.mute.is_zero() {
                            tokio::time::sleep(answer.mute).await;
                        }
                    }
                    Ok(None) => {}
                    Err(Close) => {
                        drop(stream.shutdown().await);
                        return;
                    }
                },
                Ok(None) => {
                    let read = tokio::select! {
                        biased;
                        () = breaker.broken() => return,
                        read = stream.read_buf(&mut buffer) => read,
                    };
                    if !read.is_ok_and(|length| length > 0) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits while the link to the client is cut; for ever once the broker forgot the connection.
    async fn pass(&self) {
        self.shared.links.pass(&self.peer.name, self.broker, self.mark).await;
    }

    /// One request in, its answer out (none for acks=0).
    async fn handle(&mut self, frame: Bytes) -> Result<Option<Answer>, Close> {
        if self.login.expects_raw_token() {
            let reply = self.login.raw_token(&self.shared.users, &self.shared.random, &frame)?;
            return Ok(Some(Answer::plain(reply)));
        }
        if frame.len() < 8 {
            return Err(Close);
        }
        let mut peek = &frame[..];
        let (key, version, correlation) = (peek.get_i16(), peek.get_i16(), peek.get_i32());
        let api = ApiKey::try_from(key).map_err(|()| Close)?;
        let profile = self.shared.profile;
        if !api::is_supported(profile, api, version) {
            // Only ApiVersions answers a version from the future, in version 0 (KIP-511).
            if api == ApiKey::ApiVersions && profile.answers_future_versions() {
                return api::unsupported_api_versions(profile, correlation).map(Answer::plain).map(Some);
            }
            tracing::debug!(?api, version, "unsupported version");
            return Err(Close);
        }
        if !self.login.allows(api) {
            tracing::debug!(?api, "request before authentication");
            return Err(Close);
        }
        let size = frame.len();
        let mut body = frame;
        let header =
            RequestHeader::decode(&mut body, api.request_header_version(version)).map_err(|_| Close)?;
        let client_id = header.client_id.map(|id| id.to_string()).unwrap_or_default();
        if self.peer.name.is_empty() && !client_id.is_empty() {
            self.peer.name.clone_from(&client_id);
            self.mark = self.shared.links.mark(&client_id, self.broker);
        }
        self.pass().await;
        let asked = Asked { api: key, broker: self.broker, client: &client_id };
        let injected = self.shared.faults.for_request(asked, &self.shared.random);
        let error = match injected.effect {
            Some(Effect::DisconnectBefore) => return Err(Close),
            Some(Effect::Silence) => std::future::pending().await,
            Some(Effect::Error(error)) => Some(error),
            _ => None,
        };
        let call = Call {
            shared: &self.shared,
            broker: self.broker,
            listener: self.listener,
            api,
            version,
            correlation,
            size,
            client_id,
            client_host: self.peer.host.clone(),
            user: self.login.user().to_owned(),
            error,
            injected: Mutex::new(injected),
        };
        let answer = api::dispatch(&call, body, &mut self.login).await?;
        let injected = call.injected.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.shared.faults.wait_while_held(key).await;
        self.send_off(answer, injected).await
    }

    /// The answer as the faults injected into its request let it leave.
    async fn send_off(
        &self,
        answer: Option<BytesMut>,
        injected: InjectedFaults,
    ) -> Result<Option<Answer>, Close> {
        if !injected.delay.is_zero() {
            tokio::time::sleep(injected.delay).await;
        }
        let Some(mut frame) = answer else { return Ok(None) };
        let mut close = false;
        match injected.effect {
            Some(Effect::DisconnectBefore | Effect::DisconnectAfter) => return Err(Close),
            Some(Effect::Silence | Effect::SilenceAfter) => std::future::pending().await,
            Some(Effect::Truncate(bytes)) => {
                frame.truncate(bytes);
                close = true;
            }
            Some(Effect::Corrupt) => corrupt(&mut frame, &self.shared.random),
            _ => {}
        }
        Ok(Some(Answer { frame, close, trickle: injected.trickle, mute: injected.throttle }))
    }
}

/// Splits the next whole frame off the buffer, or makes room for its rest.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>, Close> {
    let Some(size) = buffer.first_chunk::<4>() else {
        buffer.reserve(4096);
        return Ok(None);
    };
    let size = usize::try_from(i32::from_be_bytes(*size)).map_err(|_| Close)?;
    if size > MAX_REQUEST {
        return Err(Close);
    }
    if buffer.len() < 4 + size {
        buffer.reserve((4 + size - buffer.len()).min(READ_STEP));
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(size).freeze()))
}
