//! Against small TCP servers in the same task, which answer what the test says.

mod calls;
mod dialing;
mod sasl;
mod silence;
#[cfg(any(feature = "tls-graviola", feature = "tls-rustcrypto"))]
mod tls;

use std::{future::pending, pin::pin, task::Poll};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    api::wire,
    transport::{Route, Target},
    *,
};
use crate::{
    KafkaConfig,
    config::settings::{ClientSettings, SaslMechanism, SaslSettings, Secret},
    error::{Stage, code},
};

fn settings() -> ClientSettings {
    let settings = KafkaConfig::new().set_bootstrap_servers("unit").resolve_client().unwrap();
    ClientSettings { receive_message_max_bytes: 1 << 20, receive_other_max_bytes: 1 << 20, ..settings }
}

fn soon() -> Instant {
    now() + Duration::from_secs(20)
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Address { host: "127.0.0.1".to_owned(), port })
}

/// Runs the client while the server runs beside it.
async fn against<T>(server: impl Future<Output = ()>, client: impl Future<Output = T>) -> T {
    let server = async {
        server.await;
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = client => result,
        () = server => unreachable!(),
    }
}

struct Asked {
    key: i16,
    version: i16,
    correlation: [u8; 4],
    frame: Vec<u8>,
}

/// The broker's side of a connection.
struct Peer<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// The next request; `None` when the client has closed.
    async fn asked(&mut self) -> Option<Asked> {
        let length = self.0.read_u32().await.ok()?;
        let mut frame = vec![0; length as usize];
        self.0.read_exact(&mut frame).await.ok()?;
        let number = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
        Some(Asked {
            key: number(0),
            version: number(2),
            correlation: frame[4..8].try_into().unwrap(),
            frame: frame.clone(),
        })
    }

    async fn answer<R: Api>(&mut self, asked: &Asked, answer: &R::Response) {
        self.answer_in::<R>(asked, asked.version, answer).await;
    }

    async fn answer_in<R: Api>(&mut self, asked: &Asked, version: i16, answer: &R::Response) {
        assert_eq!(asked.key, R::KEY);
        let mut frame = asked.correlation.to_vec();
        if version >= R::RESPONSE_FLEXIBLE {
            frame.push(0);
        }
        frame.append(&mut R::encode_answer(answer, version));
        self.0.write_u32(frame.len() as u32).await.unwrap();
        self.0.write_all(&frame).await.unwrap();
    }

    /// Answers ApiVersions as a broker that offers everything.
    async fn greet(&mut self) {
        let asked = self.asked().await.unwrap();
        self.answer::<wire::ApiVersionsRequest>(&asked, &offers()).await;
    }
}

fn offers() -> wire::ApiVersionsResponse {
    let key = |key: i16| wire::api_versions_response::ApiVersion {
        api_key: key,
        max_version: i16::MAX,
        ..Default::default()
    };
    let keys = wire::keys().into_iter().map(key).collect();
    wire::ApiVersionsResponse { api_keys: keys, ..Default::default() }
}

async fn accept(listener: &TcpListener) -> Peer<TcpStream> {
    Peer(listener.accept().await.unwrap().0)
}

/// Ways to peers in memory, so that a test may run in paused time: each connection has its other end in the queue.
#[derive(Clone)]
struct Pipes(tokio::sync::mpsc::Sender<tokio::io::DuplexStream>);

impl Pipes {
    fn open() -> (ClientSettings, tokio::sync::mpsc::Receiver<tokio::io::DuplexStream>) {
        let (pipes, ends) = tokio::sync::mpsc::channel(8);
        (ClientSettings { route: Route::through(Self(pipes)), ..settings() }, ends)
    }
}

impl transport::Transport for Pipes {
    fn connect<'a>(&'a self, _host: &'a str, _port: u16) -> transport::Connecting<'a> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let opened = self.0.try_send(far).map_err(|_| std::io::ErrorKind::ConnectionRefused.into());
        Box::pin(async move { opened.map(|()| Box::new(near) as _) })
    }
}

fn nowhere() -> Address {
    Address { host: "in.memory".to_owned(), port: 9092 }
}

async fn dial(address: &Address, settings: &ClientSettings) -> Result<Connection> {
    Connection::dial(address, settings, None, soon()).await
}

fn assert_says(error: &Error, stage: Stage, texts: &[&str]) {
    assert_eq!(error.stage(), Some(stage), "{error}");
    assert!(error.address().is_some(), "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{text:?} is not in: {error}");
    }
}

/// A broker that answers every heartbeat with the throttle time `heard`, which counts them from 1, but for `silent`.
async fn count_heartbeats(listener: &TcpListener, silent: i32) {
    let mut peer = accept(listener).await;
    peer.greet().await;
    let mut heard = 0;
    let mut late = None;
    while let Some(asked) = peer.asked().await {
        heard += 1;
        let answer = wire::HeartbeatResponse { throttle_time_ms: heard, ..Default::default() };
        if heard == silent {
            late = Some((asked, answer));
            continue;
        }
        if let Some((asked, answer)) = late.take() {
            peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
        }
        peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
    }
}
