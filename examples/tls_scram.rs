//! TLS and SCRAM from end to end: an authority that is trusted, a user, and what is said when one of them is wrong.
//!
//! `cargo run --example tls_scram`

use dtkafka::{KafkaConfig, KafkaInstance};
use dtkafka_testcontainers::{Certificates, EmbeddedBroker, Listener};
use serde_json::json;

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    let certificates = Certificates::generate()?;
    let server = certificates.server();
    let broker = EmbeddedBroker::builder()
        .user("alice", "alice-secret")
        .tls(server.certificate_pem(), server.key_pem(), None)
        .start()
        .await?;
    broker.create_topic("payments", 1)?;
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.listener(Listener::SaslSsl))
        .set_security_protocol("SASL_SSL")
        .set_sasl_mechanism("SCRAM-SHA-512")
        .set_sasl_plain_username("alice")
        .set_sasl_plain_password("alice-secret")
        .set_ssl_ca_pem(certificates.ca_pem());
    println!("The configuration shows no secret: {config:?}");

    let kafka = KafkaInstance::new(config.clone())?;
    let written = kafka
        .producer_context(async |producer| {
            producer.send("payments", &json!({"payment_id": "PAY-123", "amount": 500})).await?.await
        })
        .await?;
    println!("Written over TLS as alice: {}-{} offset {}", written.topic, written.partition, written.offset);

    println!("\nWith a wrong password:");
    let wrong = KafkaInstance::new(config.clone().set_sasl_plain_password("guess"))?;
    match wrong.get_producer().await {
        Ok(_) => return Err("a wrong password was taken".into()),
        Err(error) => println!("  {error}"),
    }
    println!("\nWith an authority that did not sign the certificate:");
    let other = Certificates::generate()?;
    let wrong = KafkaInstance::new(config.set_ssl_ca_pem(other.ca_pem()))?;
    match wrong.get_producer().await {
        Ok(_) => return Err("a foreign certificate was taken".into()),
        Err(error) => println!("  {error}"),
    }
    Ok(())
}
