//! How a byte stream to a broker is opened: by TCP, or by a [`Transport`] of the user's: a proxy, a tunnel, memory in a test.
//!
//! It resolves names and opens sockets, and nothing else does. It knows nothing of TLS, SASL or Kafka, which come on top of
//! whatever stream it opens, and keeps no deadline of its own: the caller drops an attempt that takes too long.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
};

use crate::{
    config::settings::Address,
    driver,
    error::{Error, ErrorKind, Result, Stage},
};

/// A stream that a [`Transport`] opens: every type that reads and writes as tokio does and can move between tasks.
pub trait TransportStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> TransportStream for T {}

/// What [`Transport::connect`] returns: a boxed future of the stream.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn TransportStream>>> + Send + 'a>>;

/// Opens the byte streams to brokers in place of TCP: through a SOCKS proxy, a tunnel or a Unix socket, or in memory.
///
/// Given with [`KafkaConfig::set_transport`](crate::KafkaConfig::set_transport). A closure that takes host and port and
/// returns a future of the stream is one:
///
/// ```
/// use dtkafka::KafkaConfig;
/// use tokio::net::TcpStream;
///
/// // Every broker is reached through one forwarded port.
/// let config = KafkaConfig::new()
///     .set_bootstrap_servers("kafka.internal:9092")
///     .set_transport(|_host: String, port: u16| TcpStream::connect(("127.0.0.1", port)));
/// ```
pub trait Transport: Send + Sync + 'static {
    /// Opens a stream to a broker.
    ///
    /// `host` and `port` are those of `bootstrap.servers` at first, and then those under which the brokers advertise
    /// themselves (`advertised.listeners`); `host` may be a name, and the client does not resolve it. TLS and SASL run on
    /// the stream if the configuration asks for them; the name in the broker's certificate is checked against `host`.
    ///
    /// Each broker gets up to three streams per client, opened again whenever one is lost. The client closes a stream by
    /// dropping it.
    ///
    /// # Errors
    /// An error counts as a broker that cannot be reached: it is in the source of the client's error, and the client tries
    /// again after `reconnect.backoff.ms`. So does a panic, here and of the stream.
    ///
    /// # Cancel safety
    /// The client drops the future when the attempt has taken `socket.connection.setup.timeout.ms`; what it had opened
    /// should close with it. It must not block: resolve names with [`tokio::net::lookup_host`] or on a thread.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a>;
}

impl<F, Fut, S> Transport for F
where
    F: Fn(String, u16) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<S>> + Send + 'static,
    S: TransportStream,
{
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        let opening = self(host.to_owned(), port);
        Box::pin(async move { opening.await.map(|stream| Box::new(stream) as Box<dyn TransportStream>) })
    }
}

/// The transport of a configuration: TCP unless the user gave another.
#[derive(Clone, Default)]
pub(crate) struct Route(Option<Arc<dyn Transport>>);

/// One way to a broker, to be tried by itself.
#[derive(Clone)]
pub(super) enum Target {
    /// An address that the name has resolved to.
    Tcp(SocketAddr),
    /// Whatever the user's transport makes of host and port.
    Custom(Arc<dyn Transport>),
}

impl Route {
    pub(crate) fn through(transport: impl Transport) -> Self {
        Self(Some(Arc::new(transport)))
    }

    /// The ways to an address, in the order of the name server's answer (KIP-302); at least one.
    pub(super) async fn targets(&self, address: &Address) -> Result<Vec<Target>> {
        match &self.0 {
            Some(transport) => Ok(vec![Target::Custom(Arc::clone(transport))]),
            None => Ok(resolve(address).await?.into_iter().map(Target::Tcp).collect()),
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "the user's transport" } else { "TCP" })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Custom(_) => f.write_str("the transport"),
        }
    }
}

impl Target {
    pub(super) async fn open(&self, address: &Address) -> Result<Box<dyn TransportStream>> {
        match self {
            Self::Tcp(answer) => Ok(Box::new(open_tcp(*answer).await?)),
            Self::Custom(transport) => {
                let connecting = async { transport.connect(&address.host, address.port).await };
                let opened =
                    AssertUnwindSafe(connecting).catch_unwind().await.unwrap_or_else(|_| Err(panicked()));
                let guarded = opened.map(|stream| Box::new(Guarded(Some(stream))) as _);
                guarded.map_err(|error| {
                    Error::new(ErrorKind::Connect(Stage::Tcp), "the transport could not connect")
                        .with_source(error)
                        .with_hint(
                            "the stream is opened by what was given to set_transport: check the proxy or tunnel, and \
                             that it can reach the broker's advertised host and port",
                        )
                })
            }
        }
    }
}

/// A stream of the user's. A panic of it is a failure of the stream, and does not end the client's tasks.
struct Guarded(Option<Box<dyn TransportStream>>);

fn panicked() -> io::Error {
    io::Error::other("the transport panicked")
}

impl Guarded {
    fn guard<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Box<dyn TransportStream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(stream) = &mut self.0 else { return Poll::Ready(Err(panicked())) };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| poll(Pin::new(stream))));
        polled.unwrap_or_else(|_| {
            // After a panic its state is unknown.
            self.let_go();
            Poll::Ready(Err(panicked()))
        })
    }

    /// Its end may panic as well.
    fn let_go(&mut self) {
        let stream = self.0.take();
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(stream)));
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.guard(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.guard(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.guard(|stream| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(|stream| stream.poll_shutdown(cx))
    }
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>> {
    let failed = |text: String| {
        Error::new(ErrorKind::Connect(Stage::Dns), text).with_hint(
            "check the host name in bootstrap.servers, or what the broker has in advertised.listeners",
        )
    };
    let answers: Vec<_> = lookup_host((address.host.as_str(), address.port))
        .await
        .map_err(|error| {
            failed(format!("the host name {:?} cannot be resolved", address.host)).with_source(error)
        })?
        .collect();
    if answers.is_empty() {
        return Err(failed(format!("the host name {:?} has no address", address.host)));
    }
    Ok(answers)
}

async fn open_tcp(answer: SocketAddr) -> Result<TcpStream> {
    let tcp = |text: &str, error: io::Error| {
        Error::new(ErrorKind::Connect(Stage::Tcp), text).with_source(error).with_hint(super::dial::SETUP_HINT)
    };
    let socket = if answer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| tcp("no socket could be made", error))?;
    // Keep-alive notices a broker that has vanished silently, even while nothing is asked. Not every system has it.
    if let Err(error) = socket.set_keepalive(true) {
        tracing::debug!(%error, "TCP keep-alive is not available");
    }
    // Tokio panics here if the runtime was built without IO, which cannot be found out beforehand.
    let connecting =
        AssertUnwindSafe(socket.connect(answer)).catch_unwind().await.map_err(|_| driver::no_io())?;
    let stream = connecting.map_err(|error| tcp("the TCP connection failed", error))?;
    stream.set_nodelay(true).map_err(|error| tcp("TCP_NODELAY could not be set", error))?;
    Ok(stream)
}
