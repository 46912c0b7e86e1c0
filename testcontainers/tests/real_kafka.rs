//! Apache Kafka in a JVM starts, serves every kind of listener and is gone after `stop`.
//!
//! Where it cannot run, the tests say why and pass; with `DTKAFKA_REQUIRE_KAFKA` set they fail instead.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use dtkafka_testcontainers::{
    Listener,
    launch::{Kafka, call, probe, probe_stream},
};
use kafka_protocol::{
    messages::{
        ApiKey, DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
        SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
    },
    protocol::StrBytes,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const SASL_AUTHENTICATION_FAILED: i16 = 58;

#[tokio::test]
async fn real_kafka_serves_plaintext_and_tls_and_leaves_nothing_behind() {
    let Some(builder) = Kafka::for_tests().unwrap() else { return };
    let kafka = builder.start().await.unwrap();
    let version = kafka.version().to_owned();
    let pid = kafka.nodes()[0].pid();
    let folder = kafka.nodes()[0].folder().to_owned();
    eprintln!("Apache Kafka {version}, pid {pid}, {}", kafka.bootstrap_servers());

    let plain = probe(&kafka.bootstrap_servers()).await.unwrap();
    assert!(plain.apis > 30, "{plain:?}");
    assert_eq!(plain.brokers, [kafka.bootstrap_servers()]);

    let tls = TlsConnector::from(Arc::new(kafka.certificates().client_config(false).unwrap()));
    for name in ["localhost", "127.0.0.1"] {
        let socket = TcpStream::connect(kafka.listener(Listener::Ssl)).await.unwrap();
        let mut stream = tls.connect(ServerName::try_from(name).unwrap(), socket).await.unwrap();
        let over_tls = probe_stream(&mut stream).await.unwrap();
        assert_eq!(over_tls.brokers, [kafka.listener(Listener::Ssl)]);
        assert_eq!(over_tls.cluster_id, plain.cluster_id);
    }
    // SASL_SSL has the same certificate; without authentication it lets nobody further than this.
    let socket = TcpStream::connect(kafka.listener(Listener::SaslSsl)).await.unwrap();
    let mut stream = tls.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
    assert!(probe_stream(&mut stream).await.is_err());

    kafka.stop().await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is still there");
    assert!(!folder.exists());
}

#[tokio::test]
async fn node_of_a_cluster_can_be_killed_paused_and_started_again() {
    let Some(builder) = Kafka::for_tests().unwrap() else { return };
    let mut kafka = builder.nodes(3).heap("256m").start().await.unwrap();
    let first = kafka.nodes()[0].listener(Listener::Plaintext);
    let others = [1, 2].map(|node: usize| kafka.nodes()[node].listener(Listener::Plaintext));
    let pids = [0, 1, 2].map(|node: usize| kafka.nodes()[node].pid());
    assert_eq!(kafka.bootstrap_servers(), [first.clone(), others.join(",")].join(","));
    wait_for_brokers(&others[0], 3).await;

    kafka.node(0).unwrap().kill().await.unwrap();
    assert!(probe(&first).await.is_err());
    wait_for_brokers(&others[0], 2).await;
    assert!(kafka.restart(1).await.is_err(), "it still runs");
    kafka.restart(0).await.unwrap();
    wait_for_brokers(&others[1], 3).await;
    assert_ne!(kafka.nodes()[0].pid(), pids[0]);

    let paused = kafka.node(1).unwrap();
    paused.pause();
    assert!(!paused.is_running());
    let silent = tokio::time::timeout(Duration::from_millis(300), probe(&others[0])).await;
    assert!(silent.is_err(), "a paused process answers nothing");
    kafka.node(1).unwrap().resume();
    wait_for_brokers(&others[0], 3).await;

    let last = [0, 1, 2].map(|node: usize| kafka.nodes()[node].pid());
    kafka.stop().await.unwrap();
    for pid in last {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is still there");
    }
}

async fn wait_for_brokers(address: &str, expected: usize) {
    let found = async {
        while probe(address).await.map_or(0, |probe| probe.brokers.len()) != expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), found).await.is_ok(), "not {expected} brokers");
}

#[tokio::test]
async fn broker_that_ends_at_once_says_why() {
    let Some(builder) = Kafka::for_tests().unwrap() else { return };
    let error = builder.property("num.io.threads", "none").start().await.unwrap_err();
    assert!(error.to_string().contains("num.io.threads"), "{error}");
}

#[tokio::test]
async fn users_can_authenticate_with_plain_and_have_scram_where_the_version_can() {
    let Some(builder) = Kafka::for_tests().unwrap() else { return };
    let kafka = builder.user("bob", "p'w\\d :#!").start().await.unwrap();
    for (password, expected) in [("p'w\\d :#!", 0), ("wrong", SASL_AUTHENTICATION_FAILED)] {
        let mut stream = TcpStream::connect(kafka.listener(Listener::SaslPlaintext)).await.unwrap();
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str("PLAIN"));
        let answer: SaslHandshakeResponse =
            call(&mut stream, ApiKey::SaslHandshake, 1, &handshake).await.unwrap();
        assert_eq!(answer.error_code, 0);
        let token = Bytes::from(format!("\0bob\0{password}"));
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token);
        let answer: SaslAuthenticateResponse =
            call(&mut stream, ApiKey::SaslAuthenticate, 1, &request).await.unwrap();
        assert_eq!(answer.error_code, expected);
    }
    if kafka.has_scram() {
        let mut stream = TcpStream::connect(kafka.bootstrap_servers()).await.unwrap();
        let request = DescribeUserScramCredentialsRequest::default().with_users(None);
        let answer: DescribeUserScramCredentialsResponse =
            call(&mut stream, ApiKey::DescribeUserScramCredentials, 0, &request).await.unwrap();
        let users: Vec<_> =
            answer.results.iter().map(|r| (r.user.as_str(), r.credential_infos.len())).collect();
        assert_eq!(users, [("bob", 2)], "SCRAM-SHA-256 and -512");
    }
    kafka.stop().await.unwrap();
}
