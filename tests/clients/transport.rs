//! Streams of the user's own: host and port reach the transport, TLS and SASL run on top, failures name it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use dtkafka::{Connecting, ErrorKind, KafkaConfig, KafkaInstance, Stage, Transport};
use dtkafka_testcontainers::{Certificates, EmbeddedBroker, Listener};
use serde_json::{Value, json};
use tokio::io::DuplexStream;

const PATIENCE: Duration = Duration::from_secs(30);

/// Reaches an embedded broker without sockets, and keeps what it was asked for.
#[derive(Clone)]
struct InMemory {
    broker: Arc<EmbeddedBroker>,
    listener: Listener,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

impl InMemory {
    fn new(broker: EmbeddedBroker, listener: Listener) -> Self {
        Self { broker: Arc::new(broker), listener, asked: Arc::default() }
    }

    fn bootstrap(&self) -> String {
        let (host, port) = self.broker.address(1, self.listener).unwrap();
        format!("{host}:{port}")
    }

    fn open(&self, host: &str, port: u16) -> io::Result<DuplexStream> {
        self.asked.lock().unwrap().push((host.to_owned(), port));
        let known = |id: &i32| self.broker.address(*id, self.listener) == Some((host.to_owned(), port));
        let id = (1..=3).find(known).ok_or(io::ErrorKind::HostUnreachable)?;
        let (near, far) = tokio::io::duplex(1 << 16);
        self.broker.serve_stream(id, self.listener, far);
        Ok(near)
    }
}

impl Transport for InMemory {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        Box::pin(async move { self.open(host, port).map(|stream| Box::new(stream) as _) })
    }
}

async fn round_trip(config: KafkaConfig) {
    let kafka = KafkaInstance::new(config.set_group_id("inside").set_auto_offset_reset("earliest")).unwrap();
    let sent = kafka.producer_context(async |producer| {
        producer.send("orders", &json!({ "number": 7 })).await?.await?;
        Ok(())
    });
    sent.await.unwrap();
    let consumer = kafka.get_consumer(["orders"]).await.unwrap();
    let records = consumer.poll(PATIENCE).await.unwrap();
    let values: Vec<Value> = records.records().map(|record| record.json::<Value>().unwrap()).collect();
    assert_eq!(values, [json!({ "number": 7 })]);
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn every_connection_goes_through_the_transport_also_to_advertised_addresses() {
    let broker = EmbeddedBroker::builder().brokers(3).in_memory().start().await.unwrap();
    let transport = InMemory::new(broker, Listener::Plaintext);
    let config = KafkaConfig::new()
        .set_bootstrap_servers(transport.bootstrap())
        .set_transport(transport.clone())
        .set("reconnect.backoff.ms", 10);
    transport.broker.create_topic("orders", 3).unwrap();
    round_trip(config).await;
    let asked = transport.asked.lock().unwrap().clone();
    assert!(asked.contains(&("broker-1".to_owned(), 9092)), "{asked:?}");
    assert!(asked.iter().any(|(host, _)| host != "broker-1"), "the others were named by metadata: {asked:?}");
}

#[tokio::test]
async fn tls_and_sasl_run_on_top_of_the_transport_and_the_name_is_checked() {
    let certificates = Certificates::builder().server_names(["broker-1"]).generate().unwrap();
    let server = certificates.server();
    let broker = EmbeddedBroker::builder()
        .in_memory()
        .user("alice", "tiger-7")
        .tls(server.certificate_pem(), server.key_pem(), None)
        .start()
        .await
        .unwrap();
    let transport = InMemory::new(broker, Listener::SaslSsl);
    let config = KafkaConfig::new()
        .set_transport(transport.clone())
        .set_security_protocol("SASL_SSL")
        .set_sasl_mechanism("SCRAM-SHA-256")
        .set_sasl_plain_username("alice")
        .set_sasl_plain_password("tiger-7")
        .set_ssl_ca_pem(certificates.ca_pem());
    round_trip(config.clone().set_bootstrap_servers(transport.bootstrap())).await;
    // The same listener under a name that its certificate does not have.
    let inner = transport.clone();
    let by_another_name = move |_host, port| {
        let opened = inner.open("broker-1", port);
        async move { opened }
    };
    let config = config
        .set_bootstrap_servers("elsewhere:9095")
        .set_transport(by_another_name)
        .set("default.api.timeout.ms", 3000);
    let error = KafkaInstance::new(config).unwrap().admin().await.unwrap_err();
    assert_eq!(error.stage(), Some(Stage::Tls), "{error}");
}

#[tokio::test]
async fn an_error_of_the_transport_is_in_the_clients_error() {
    let refuse = |host: String, port: u16| async move {
        Err::<DuplexStream, _>(io::Error::other(format!("no tunnel to {host}:{port}")))
    };
    let config = KafkaConfig::new()
        .set_bootstrap_servers("nowhere.invalid:9092")
        .set_transport(refuse)
        .set("default.api.timeout.ms", 2000);
    let error = KafkaInstance::new(config).unwrap().admin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect(Stage::Tcp), "{error}");
    let text = format!("{error:?} {error}");
    assert!(text.contains("set_transport"), "{text}");
    assert!(text.contains("no tunnel to nowhere.invalid:9092"), "{text}");
}

/// Panics at its first use of a kind, and works after that.
#[derive(Clone)]
struct Panicking {
    how: &'static str,
    left: Arc<std::sync::atomic::AtomicBool>,
    port: u16,
}

impl Panicking {
    fn is_due(&self, how: &str) -> bool {
        self.how == how && self.left.swap(false, std::sync::atomic::Ordering::SeqCst)
    }
}

impl Transport for Panicking {
    fn connect<'a>(&'a self, _host: &'a str, _port: u16) -> Connecting<'a> {
        assert!(!self.is_due("connect"), "connect panics");
        Box::pin(async move {
            assert!(!self.is_due("its future"), "its future panics");
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            Ok(Box::new(PanickingStream(stream, self.clone())) as _)
        })
    }
}

struct PanickingStream(tokio::net::TcpStream, Panicking);

impl tokio::io::AsyncRead for PanickingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(!self.1.is_due("read"), "read panics");
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for PanickingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.1.is_due("write"), "write panics");
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert!(!self.1.is_due("flush"), "flush panics");
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_panic_of_the_transport_is_a_broker_that_cannot_be_reached_and_ends_no_client() {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("orders", 1).unwrap();
    let port = broker.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
    for how in ["connect", "its future", "read", "write", "flush"] {
        let transport = Panicking { how, left: Arc::new(true.into()), port };
        let config =
            KafkaConfig::new().set_bootstrap_servers("elsewhere:9092").set_transport(transport.clone());
        let producer = KafkaInstance::new(config).unwrap().get_producer().await.unwrap();
        producer.send("orders", &1).await.unwrap().await.unwrap();
        assert!(!transport.left.load(std::sync::atomic::Ordering::SeqCst), "{how}");
    }
}
