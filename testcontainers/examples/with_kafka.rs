//! Runs a program against a broker that lives as long as the program: `with_kafka [--embedded] PROGRAM [ARGUMENTS]`.
//!
//! Real Apache Kafka (`DTKAFKA_REQUIRE_KAFKA` names the version), or the embedded broker. The program gets `KAFKA_URL`
//! (SASL_SSL with SCRAM-SHA-512), `KAFKA_SSL_URL` (TLS alone) and `KAFKA_BOOTSTRAP` (plaintext), and its exit code is ours.

use std::{error::Error, process::ExitCode};

use dtkafka_testcontainers::{Certificates, EmbeddedBroker, Listener, launch::Kafka};

#[expect(clippy::large_enum_variant, reason = "there is one")]
enum Broker {
    Real(Kafka),
    Embedded(EmbeddedBroker),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let embedded = arguments.next_if(|first| first == "--embedded").is_some();
    let program = arguments.next().ok_or("which program is to run?")?;
    let certificates = Certificates::generate()?;
    let (broker, what) = if embedded {
        let broker = EmbeddedBroker::builder().user("alice", "alice-secret").tls(
            certificates.server().certificate_pem(),
            certificates.server().key_pem(),
            None,
        );
        (Broker::Embedded(broker.start().await?), "the embedded broker".to_owned())
    } else {
        let version = std::env::var("DTKAFKA_REQUIRE_KAFKA").ok().filter(|text| text.contains('.'));
        let mut builder = Kafka::builder().certificates(certificates.clone());
        if let Some(version) = version {
            builder = builder.version(version);
        }
        let kafka = builder.start().await?;
        let what = format!("Apache Kafka {}", kafka.version());
        (Broker::Real(kafka), what)
    };
    let address = |listener| match &broker {
        Broker::Real(kafka) => kafka.listener(listener),
        Broker::Embedded(broker) => broker.listener(listener),
    };
    let ca = std::env::temp_dir().join(format!("with-kafka-{}.pem", std::process::id()));
    std::fs::write(&ca, certificates.ca_pem())?;
    let trust = format!("ssl.ca.location={}", ca.display());
    eprintln!("with_kafka: {what}");
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .env("KAFKA_BOOTSTRAP", address(Listener::Plaintext))
        .env("KAFKA_SSL_URL", format!("kafkas://{}?{trust}", address(Listener::Ssl)))
        .env(
            "KAFKA_URL",
            format!(
                "kafkas://alice:alice-secret@{}?sasl.mechanism=SCRAM-SHA-512&{trust}",
                address(Listener::SaslSsl)
            ),
        )
        .env("KAFKA_WHAT", &what)
        .kill_on_drop(true)
        .status()
        .await;
    std::fs::remove_file(&ca)?;
    match broker {
        Broker::Real(kafka) => kafka.stop().await?,
        Broker::Embedded(broker) => broker.shutdown().await,
    }
    Ok(ExitCode::from(u8::try_from(status?.code().unwrap_or(1)).unwrap_or(1)))
}
