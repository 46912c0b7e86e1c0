//! The brokers the suite runs on: each is started once, shared by every test of the process, and named in the run's sum.
//!
//! `DTKAFKA_TEST_BACKENDS` chooses (default: all that this machine has): `embedded`, `kafka`, `kafka:4.3.1`, separated by
//! commas. Where real Kafka is missing, its tests say so and pass, or fail with `DTKAFKA_REQUIRE_KAFKA`; see `tests/run`.

use std::{
    env,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dtkafka::{KafkaAdmin, KafkaConfig, KafkaInstance, NewTopic};
use dtkafka_testcontainers::{
    Certificates, EmbeddedBroker, Listener, broker::Quota, launch::Kafka, note_backend,
};
use tokio::{runtime::Runtime, sync::OnceCell};

/// No test may take longer; the slowest need a few seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// A user of every SASL listener.
pub(crate) const USER: &str = "alice";
/// The user's password.
pub(crate) const PASSWORD: &str = "alice-secret";

/// One broker, shared by all tests.
pub(crate) struct Backend {
    inner: Inner,
    certificates: Certificates,
}

enum Inner {
    Embedded(EmbeddedBroker),
    Kafka(Box<Kafka>),
}

/// The backends a test can be asked to run on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Embedded,
    RealKafka,
}

/// Outlives every test: the embedded broker's tasks run on it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime can be started"));
static EMBEDDED: OnceCell<Backend> = OnceCell::const_new();
static KAFKA: OnceCell<Option<Backend>> = OnceCell::const_new();
static STRICT_EMBEDDED: OnceCell<Backend> = OnceCell::const_new();
static STRICT_KAFKA: OnceCell<Backend> = OnceCell::const_new();

/// Runs a test on a backend, or says why not.
pub(crate) fn run(kind: Kind, test: impl AsyncFnOnce(&'static Backend)) {
    let Some(wanted) = wanted(kind) else {
        eprintln!("SKIPPED: {kind:?} is not among DTKAFKA_TEST_BACKENDS");
        return;
    };
    RUNTIME.block_on(async {
        let backend = match kind {
            Kind::Embedded => Some(EMBEDDED.get_or_init(start_embedded).await),
            Kind::RealKafka => KAFKA.get_or_init(|| start_kafka(wanted)).await.as_ref(),
        };
        // Why there is none has been printed and noted.
        let Some(backend) = backend else { return };
        tokio::time::timeout(LIMIT, test(backend)).await.expect("the test takes too long");
    });
}

/// The version asked for, empty if any will do; `None` if the backend is not asked for.
fn wanted(kind: Kind) -> Option<String> {
    let Ok(list) = env::var("DTKAFKA_TEST_BACKENDS") else { return Some(String::new()) };
    list.split(',').map(str::trim).find_map(|entry| match kind {
        Kind::Embedded => (entry == "embedded").then(String::new),
        Kind::RealKafka if entry == "kafka" => Some(String::new()),
        Kind::RealKafka => entry.strip_prefix("kafka:").map(str::to_owned),
    })
}

async fn start_embedded() -> Backend {
    let certificates = Certificates::generate().unwrap();
    let server = certificates.server();
    let broker = EmbeddedBroker::builder()
        .user(USER, PASSWORD)
        .tls(server.certificate_pem(), server.key_pem(), None)
        .consumer_group_times(Duration::from_secs(6), Duration::from_millis(300))
        .start()
        .await
        .unwrap();
    note_backend("embedded broker");
    Backend { inner: Inner::Embedded(broker), certificates }
}

async fn start_kafka(version: String) -> Option<Backend> {
    let builder = match version.is_empty() {
        true => Kafka::for_tests().unwrap()?,
        false => Kafka::builder().version(version),
    };
    // Tests that kill members do not wait for Kafka's own minimum of 6 s.
    let builder = builder
        .property("group.min.session.timeout.ms", "500")
        .property("group.consumer.min.session.timeout.ms", "500")
        .property("group.consumer.session.timeout.ms", "6000")
        .property("group.consumer.min.heartbeat.interval.ms", "100")
        .property("group.consumer.heartbeat.interval.ms", "300");
    let kafka = builder.user(USER, PASSWORD).start().await.unwrap();
    let certificates = kafka.certificates().clone();
    Some(Backend { inner: Inner::Kafka(Box::new(kafka)), certificates })
}

/// The name in the certificate of [`Backend::strict`], by which nobody can reach it.
pub(crate) const OTHER_NAME: &str = "broker.example";

async fn start_strict_embedded() -> Backend {
    let certificates = Certificates::builder().server_names([OTHER_NAME]).generate().unwrap();
    let server = certificates.server();
    let broker = EmbeddedBroker::builder()
        .user(USER, PASSWORD)
        .tls(server.certificate_pem(), server.key_pem(), Some(certificates.ca_pem()))
        .auto_create_topics(false)
        .start()
        .await
        .unwrap();
    Backend { inner: Inner::Embedded(broker), certificates }
}

async fn start_strict_kafka(version: &str) -> Backend {
    let certificates = Certificates::builder().server_names([OTHER_NAME]).generate().unwrap();
    let kafka = Kafka::builder()
        .version(version)
        .heap("256m")
        .user(USER, PASSWORD)
        .certificates(certificates.clone())
        .property("ssl.client.auth", "required")
        .property("auto.create.topics.enable", "false")
        .property("sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512")
        .start()
        .await
        .unwrap();
    Backend { inner: Inner::Kafka(Box::new(kafka)), certificates }
}

impl Backend {
    /// Another broker of the same kind, that refuses more: its certificate is for [`OTHER_NAME`], its TLS listeners demand a
    /// client certificate, it creates no topics by itself, and the real one does not enable PLAIN.
    pub(crate) async fn strict(&self) -> &'static Self {
        match &self.inner {
            Inner::Embedded(_) => STRICT_EMBEDDED.get_or_init(start_strict_embedded).await,
            Inner::Kafka(kafka) => STRICT_KAFKA.get_or_init(|| start_strict_kafka(kafka.version())).await,
        }
    }

    /// The certificates of the TLS listeners and their clients.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Whether it is real Kafka.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self.inner, Inner::Kafka(_))
    }

    /// `host:port` of a listener.
    pub(crate) fn listener(&self, listener: Listener) -> String {
        match &self.inner {
            Inner::Embedded(broker) => broker.listener(listener),
            Inner::Kafka(kafka) => kafka.listener(listener),
        }
    }

    /// `host:port` of the PLAINTEXT listener.
    pub(crate) fn bootstrap_servers(&self) -> String {
        self.listener(Listener::Plaintext)
    }

    /// The authority that signed the TLS listeners' certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        self.certificates.ca_pem()
    }

    /// Lets a `client.id` produce so many bytes a second.
    pub(crate) async fn produce_quota(&self, client: &str, bytes: u32) {
        match &self.inner {
            Inner::Embedded(broker) => {
                broker.control().quota(Quota::ProduceBytes, Some(client), Some(u64::from(bytes)));
            }
            Inner::Kafka(_) => alter_quota(&self.bootstrap_servers(), client, f64::from(bytes)).await,
        }
    }

    /// Whether SCRAM users exist (Kafka from 3.5 on).
    pub(crate) fn has_scram(&self) -> bool {
        match &self.inner {
            Inner::Embedded(_) => true,
            Inner::Kafka(kafka) => kafka.has_scram(),
        }
    }

    /// A configuration that reads from the beginning, in a group of its own.
    pub(crate) fn config(&self) -> KafkaConfig {
        KafkaConfig::new()
            .set_bootstrap_servers(self.bootstrap_servers())
            .set_group_id(unique("group"))
            .set_auto_offset_reset("earliest")
    }

    /// An instance of [`config`](Self::config).
    pub(crate) fn instance(&self) -> KafkaInstance {
        KafkaInstance::new(self.config()).unwrap()
    }

    /// An admin client.
    pub(crate) async fn admin(&self) -> KafkaAdmin {
        self.instance().admin().await.unwrap()
    }

    /// Makes a topic that no other test uses, and returns its name when every broker knows it.
    pub(crate) async fn topic(&self, name: &str, partitions: i32) -> String {
        let name = unique(name);
        let admin = self.admin().await;
        admin.create_topic(NewTopic::new(&name).partitions(partitions).replication_factor(1)).await.unwrap();
        // KRaft's controller answers before the broker has applied the change.
        while admin.describe_topic(&name).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        name
    }
}

/// Asks a broker for a quota, which no client here can.
async fn alter_quota(server: &str, client: &str, bytes: f64) {
    use kafka_protocol::{
        messages::{
            AlterClientQuotasRequest, AlterClientQuotasResponse, RequestHeader,
            alter_client_quotas_request::{EntityData, EntryData, OpData},
        },
        protocol::{Decodable, Encodable, StrBytes},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let entity =
        EntityData::default().with_entity_type(text("client-id")).with_entity_name(Some(text(client)));
    let rate = OpData::default().with_key(text("producer_byte_rate")).with_value(bytes);
    let entry = EntryData::default().with_entity(vec![entity]).with_ops(vec![rate]);
    let mut frame = Vec::new();
    // Version 1 is the first with tagged fields: header 2, and 1 in the answer.
    RequestHeader::default()
        .with_request_api_key(49)
        .with_request_api_version(1)
        .encode(&mut frame, 2)
        .unwrap();
    AlterClientQuotasRequest::default().with_entries(vec![entry]).encode(&mut frame, 1).unwrap();
    let mut stream = tokio::net::TcpStream::connect(server).await.unwrap();
    stream.write_u32(frame.len() as u32).await.unwrap();
    stream.write_all(&frame).await.unwrap();
    let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let answer = AlterClientQuotasResponse::decode(&mut &answer[5..], 1).unwrap();
    assert!(answer.entries.iter().all(|entry| entry.error_code == 0), "{answer:?}");
}

/// A name that no other test of this or another run uses.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Turns each `async fn name(backend) { … }` into a module with one test per backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($(#[$meta:meta])* async fn $name:ident($backend:ident) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all of them")]
            use super::*;

            async fn test($backend: &'static $crate::backend::Backend) $body

            #[test]
            fn embedded() {
                $crate::backend::run($crate::backend::Kind::Embedded, test);
            }

            #[test]
            fn real_kafka() {
                $crate::backend::run($crate::backend::Kind::RealKafka, test);
            }
        }
    )+};
}
