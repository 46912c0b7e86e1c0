//! Apache Kafka in a JVM starts, serves every kind of listener and is gone after `stop`.
//!
//! Where it cannot run, the test says why and passes; with `DTKAFKA_REQUIRE_KAFKA` set it fails instead.

use std::{path::Path, sync::Arc};

use dtkafka_testcontainers::{
    Listener,
    launch::{DEFAULT_VERSION, Kafka, probe, probe_stream},
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The version to run, or `None` after saying why it cannot.
fn version() -> Option<String> {
    let required = std::env::var("DTKAFKA_REQUIRE_KAFKA").ok().filter(|value| !value.is_empty());
    match Kafka::available() {
        Ok(()) => {
            let version = required.filter(|value| value.contains('.'));
            Some(version.unwrap_or_else(|| DEFAULT_VERSION.to_owned()))
        }
        Err(missing) => {
            assert!(required.is_none(), "DTKAFKA_REQUIRE_KAFKA is set, but {missing}");
            eprintln!("SKIPPED: real Kafka cannot run here: {missing}");
            None
        }
    }
}

#[tokio::test]
async fn real_kafka_serves_plaintext_and_tls_and_leaves_nothing_behind() {
    let Some(version) = version() else { return };
    let kafka = Kafka::builder().version(&version).start().await.unwrap();
    let pid = kafka.pid();
    let folder = kafka.folder().to_owned();
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
