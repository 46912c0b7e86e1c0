//! What goes wrong while connecting, as users see it: the stage, the address and the setting to change, at once, and never
//! the password.

use std::time::Duration;

use dtkafka::{
    Consumer, Error, ErrorCode, ErrorKind, KafkaConfig, KafkaInstance, SaslMechanism, SecurityProtocol, Stage,
};
use dtkafka_testcontainers::Listener;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

use crate::{
    backend::{self, Backend, Kind, PASSWORD, USER, unique},
    on_every_backend,
};

/// Three clients fail in less than this, each with a `max.block.ms` and `default.api.timeout.ms` of a minute.
const QUICK: Duration = Duration::from_secs(20);
const WRONG: &str = "hunter2-is-wrong";
const UNKNOWN_TOPIC_OR_PARTITION: ErrorCode = ErrorCode(3);

/// The error that each kind of client returns with this configuration.
async fn every_client(config: KafkaConfig) -> [Error; 3] {
    let kafka = KafkaInstance::new(config.set_group_id("group")).unwrap();
    let failing = async {
        let producer = kafka.get_producer().await.unwrap_err();
        let consumer = kafka.get_consumer(["orders"]).await.unwrap_err();
        [producer, consumer, kafka.admin().await.unwrap_err()]
    };
    tokio::time::timeout(QUICK, failing).await.expect("an error that needs a human comes at once")
}

/// Every client fails at this stage, names the address, and says all of `parts`.
async fn refused(config: KafkaConfig, stage: Stage, address: &str, parts: &[&str]) {
    for error in every_client(config).await {
        let text = format!("{error} {error:?}");
        assert_eq!(error.stage(), Some(stage), "{text}");
        assert_eq!(error.address(), Some(address), "{text}");
        assert!(text.contains(address), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        assert!(!text.contains(PASSWORD) && !text.contains(WRONG), "a password in: {text}");
        assert!(error.hint().is_some(), "{text}");
    }
}

/// Of failures that may pass by themselves, which every client waits out: a broker may be about to start.
fn briefly(config: KafkaConfig) -> KafkaConfig {
    config.set("max.block.ms", 1500).set("default.api.timeout.ms", 1500)
}

fn at(address: &str, protocol: SecurityProtocol) -> KafkaConfig {
    KafkaConfig::new().set_bootstrap_servers(address).set_security_protocol(protocol)
}

fn login(config: KafkaConfig, mechanism: SaslMechanism, password: &str) -> KafkaConfig {
    config.set_sasl_mechanism(mechanism).set_sasl_plain_username(USER).set_sasl_plain_password(password)
}

async fn wrong_password(backend: &Backend, mechanism: SaslMechanism, name: &str) {
    if mechanism != SaslMechanism::Plain && !backend.has_scram() {
        return;
    }
    let parts = [name, "sasl.plain.password", "uthentication failed"];
    for (listener, protocol) in [
        (Listener::SaslPlaintext, SecurityProtocol::SaslPlaintext),
        (Listener::SaslSsl, SecurityProtocol::SaslSsl),
    ] {
        let address = backend.listener(listener);
        let mut config = login(at(&address, protocol), mechanism, WRONG);
        if protocol.uses_tls() {
            config = config.set("ssl.truststore.certificates", backend.ca_pem());
        }
        refused(config, Stage::Sasl, &address, &parts).await;
    }
}

on_every_backend! {
    async fn as_long_as_it_takes_is_a_time_that_can_be_waited(backend) {
        let (kafka, topic) = (backend.instance(), backend.topic("patient", 1).await);
        let producer = kafka.get_producer().await.unwrap();
        producer.send(&topic, &1).await.unwrap().await.unwrap();
        producer.close_within(Duration::MAX).await.unwrap();
        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        assert_eq!(consumer.poll(Duration::MAX).await.unwrap().len(), 1);
        consumer.close(Duration::MAX).await.unwrap();
        let mut consumer = Consumer::new(&kafka, [&topic]).unwrap();
        consumer.consume(Duration::from_millis(1)).await.unwrap();
        consumer.close_within(Duration::MAX).await.unwrap();
    }
}

on_every_backend! {
    async fn a_plaintext_client_on_a_tls_port(backend) {
        let address = backend.listener(Listener::Ssl);
        let parts = ["security.protocol", "SSL"];
        refused(at(&address, SecurityProtocol::Plaintext), Stage::Api, &address, &parts).await;
        let address = backend.listener(Listener::SaslSsl);
        let config = login(at(&address, SecurityProtocol::SaslPlaintext), SaslMechanism::Plain, PASSWORD);
        refused(config, Stage::Api, &address, &["security.protocol", "SASL_SSL"]).await;
    }

    async fn a_tls_client_on_a_plaintext_port(backend) {
        let address = backend.listener(Listener::Plaintext);
        let config = at(&address, SecurityProtocol::Ssl).set("ssl.truststore.certificates", backend.ca_pem());
        // A broker that closes in the middle of a handshake may be one that stops.
        refused(briefly(config), Stage::Tls, &address, &["security.protocol", "PLAINTEXT"]).await;
    }

    async fn a_wrong_password_with_plain(backend) {
        wrong_password(backend, SaslMechanism::Plain, "PLAIN").await;
    }

    async fn a_wrong_password_with_scram_sha_256(backend) {
        wrong_password(backend, SaslMechanism::ScramSha256, "SCRAM-SHA-256").await;
    }

    async fn a_wrong_password_with_scram_sha_512(backend) {
        wrong_password(backend, SaslMechanism::ScramSha512, "SCRAM-SHA-512").await;
    }

    async fn a_user_that_does_not_exist(backend) {
        let address = backend.listener(Listener::SaslPlaintext);
        for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha512] {
            let config = login(at(&address, SecurityProtocol::SaslPlaintext), mechanism, WRONG)
                .set_sasl_plain_username("mallory");
            refused(config, Stage::Sasl, &address, &["sasl.plain.username"]).await;
        }
    }

    async fn an_unknown_authority_is_refused_also_without_the_host_name_check(backend) {
        let address = backend.listener(Listener::Ssl);
        let unrelated = backend.certificates().unrelated_ca_pem();
        let config = at(&address, SecurityProtocol::Ssl).set("ssl.truststore.certificates", unrelated);
        let parts = ["not signed by a CA this client trusts", "ssl.truststore.location"];
        refused(config.clone(), Stage::Tls, &address, &parts).await;
        let unchecked = config.set("ssl.endpoint.identification.algorithm", "none");
        refused(unchecked, Stage::Tls, &address, &parts).await;
        // Nor is it among the public ones.
        refused(at(&address, SecurityProtocol::Ssl), Stage::Tls, &address, &parts).await;
    }

    async fn a_certificate_for_another_name(backend) {
        let strict = backend.strict().await;
        let address = strict.listener(Listener::Ssl);
        let config = at(&address, SecurityProtocol::Ssl).set("ssl.truststore.certificates", strict.ca_pem());
        let parts = ["not for the name \"127.0.0.1\"", "ssl.endpoint.identification.algorithm"];
        refused(config, Stage::Tls, &address, &parts).await;
    }

    async fn a_client_certificate_that_is_missing(backend) {
        let strict = backend.strict().await;
        let address = strict.listener(Listener::Ssl);
        let config = at(&address, SecurityProtocol::Ssl)
            .set("ssl.truststore.certificates", strict.ca_pem())
            .set("ssl.endpoint.identification.algorithm", "");
        for error in every_client(config).await {
            // TLS 1.3: the broker's verdict comes after the client's handshake, with its first request or before.
            assert!(matches!(error.stage(), Some(Stage::Tls | Stage::Api)), "{error}");
            assert_eq!(error.address(), Some(&*address), "{error}");
            for part in ["ssl.client.auth", "ssl.keystore.certificate.chain", "ssl.keystore.key"] {
                assert!(error.to_string().contains(part), "{part} is not in: {error}");
            }
        }
    }

    async fn a_client_without_sasl_on_a_sasl_port(backend) {
        let address = backend.listener(Listener::SaslPlaintext);
        for error in every_client(briefly(at(&address, SecurityProtocol::Plaintext))).await {
            assert_eq!(error.address(), Some(&*address), "{error}");
            for part in ["security.protocol", "SASL_PLAINTEXT", "sasl.mechanism"] {
                assert!(error.to_string().contains(part), "{part} is not in: {error}");
            }
        }
    }

    async fn a_client_with_sasl_on_a_port_without(backend) {
        let address = backend.listener(Listener::Plaintext);
        let config = login(at(&address, SecurityProtocol::SaslPlaintext), SaslMechanism::Plain, PASSWORD);
        refused(config, Stage::Sasl, &address, &["security.protocol", "PLAINTEXT"]).await;
    }

    async fn a_missing_topic_that_nobody_creates(backend) {
        let strict = backend.strict().await;
        let config = KafkaConfig::new()
            .set_bootstrap_servers(strict.bootstrap_servers())
            .set_group_id(unique("group"))
            .set_auto_offset_reset("earliest")
            .set("max.block.ms", 1500);
        let (kafka, topic) = (KafkaInstance::new(config).unwrap(), unique("missing"));
        let producer = kafka.get_producer().await.unwrap();
        let error = producer.send(&topic, &1).await.unwrap_err();
        assert_eq!((error.code(), error.topic()), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some(&*topic)));
        assert!(!error.possibly_written() && error.hint().is_some(), "{error}");
        producer.close().await.unwrap();
        let admin = kafka.admin().await.unwrap();
        let error = admin.describe_topic(&topic).await.unwrap_err();
        assert_eq!((error.code(), error.topic()), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some(&*topic)));
        // A consumer waits for the topic, and reads it once somebody makes it.
        let consumer = kafka.get_consumer_with([&topic], |c| c.set("metadata.max.age.ms", 500)).await.unwrap();
        assert!(consumer.poll(Duration::from_millis(300)).await.is_ok_and(|records| records.is_empty()));
        admin.create_topic(dtkafka::NewTopic::new(&topic).partitions(1).replication_factor(1)).await.unwrap();
        let producer = kafka.get_producer_with(|p| p.set("max.block.ms", 30_000)).await.unwrap();
        producer.send(&topic, &1).await.unwrap().await.unwrap();
        assert_eq!(consumer.poll(Duration::from_secs(30)).await.unwrap().len(), 1);
        consumer.close(QUICK).await.unwrap();
    }
}

/// The embedded broker enables all three mechanisms.
#[test]
fn a_mechanism_that_is_not_enabled_on_real_kafka() {
    backend::run(Kind::RealKafka, async |backend| {
        let strict = backend.strict().await;
        assert!(strict.is_real());
        let address = strict.listener(Listener::SaslPlaintext);
        let config = login(at(&address, SecurityProtocol::SaslPlaintext), SaslMechanism::Plain, PASSWORD);
        let parts = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "sasl.mechanism"];
        refused(config, Stage::Sasl, &address, &parts).await;
    });
}

/// Answers everything with `answer`, or with silence.
async fn stranger(answer: &'static [u8]) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer).await;
            if answer.is_empty() {
                open.push(socket);
            }
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_port_that_speaks_http() {
    let (address, serving) = stranger(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let parts = ["HTTP", "bootstrap.servers"];
    refused(at(&address, SecurityProtocol::Plaintext), Stage::Api, &address, &parts).await;
    refused(
        at(&address, SecurityProtocol::Ssl),
        Stage::Tls,
        &address,
        &["does not speak TLS", "security.protocol"],
    )
    .await;
    serving.abort();
}

#[tokio::test]
async fn a_port_that_speaks_something_else() {
    let (address, serving) = stranger(b"220 mail.example ESMTP ready\r\n").await;
    let parts = ["does not speak Kafka", "bootstrap.servers"];
    refused(at(&address, SecurityProtocol::Plaintext), Stage::Api, &address, &parts).await;
    serving.abort();
}

#[tokio::test]
async fn a_port_that_keeps_silent() {
    let (address, serving) = stranger(b"").await;
    for (protocol, stage) in [(SecurityProtocol::Plaintext, Stage::Api), (SecurityProtocol::Ssl, Stage::Tls)]
    {
        let config = at(&address, protocol)
            .set("socket.connection.setup.timeout.ms", 300)
            .set("socket.connection.setup.timeout.max.ms", 300);
        refused(briefly(config), stage, &address, &["did not", "security.protocol"]).await;
    }
    serving.abort();
}

#[tokio::test]
async fn a_port_that_nobody_listens_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let parts = ["refused", "check that the broker runs"];
    refused(briefly(at(&address, SecurityProtocol::Plaintext)), Stage::Tcp, &address, &parts).await;
    refused(briefly(at(&address, SecurityProtocol::Ssl)), Stage::Tcp, &address, &parts).await;
}

#[tokio::test]
async fn a_host_that_does_not_exist() {
    let address = "no-such-host.invalid:9092";
    let parts = ["no-such-host.invalid", "bootstrap.servers"];
    refused(briefly(at(address, SecurityProtocol::Plaintext)), Stage::Dns, address, &parts).await;
}

/// One error for all of them, each with its cause; the broker that answers is used whatever stands before it.
#[tokio::test]
async fn several_addresses_are_all_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (http, serving) = stranger(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    for error in every_client(briefly(at(&format!("{dead},{http}"), SecurityProtocol::Plaintext))).await {
        let text = error.to_string();
        for part in [&*dead, "refused", &*http, "HTTP"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
    let broker = dtkafka_testcontainers::EmbeddedBroker::builder().start().await.unwrap();
    let config = at(&format!("{dead},{http},{}", broker.bootstrap_servers()), SecurityProtocol::Plaintext);
    KafkaInstance::new(config).unwrap().admin().await.unwrap();
    serving.abort();
}

/// The password neither in what the configuration shows nor in what its check says.
#[test]
fn a_bad_configuration_does_not_tell_its_password() {
    let config = login(KafkaConfig::new().set_bootstrap_servers("b:1"), SaslMechanism::Plain, WRONG);
    let shown = format!("{config:?} {}", config.describe());
    let error = KafkaInstance::new(config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("security.protocol"), "{error}");
    assert!(!shown.contains(WRONG) && !error.to_string().contains(WRONG), "{shown} {error}");
}
