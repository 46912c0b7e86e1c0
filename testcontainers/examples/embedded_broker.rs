//! The embedded broker as a process, for clients of any language: prints its addresses, and ends with its standard
//! input. `cargo run -p dtkafka-testcontainers --example embedded_broker [BROKERS] [DEFAULT_PARTITIONS]`
//! `BROKER_TLS_CHAIN` and `BROKER_TLS_KEY` (PEM files) open the TLS listeners, `BROKER_TLS_CLIENT_CA` asks clients for a
//! certificate.

use std::io::Read;

use dtkafka_testcontainers::{EmbeddedBroker, Listener};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<i32>());
    let brokers = numbers.next().transpose()?.unwrap_or(1);
    let partitions = numbers.next().transpose()?.unwrap_or(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut builder = EmbeddedBroker::builder()
            .brokers(brokers)
            .default_partitions(partitions)
            .user("alice", "alice-secret");
        let pem = |name: &str| std::env::var_os(name).map(std::fs::read_to_string).transpose();
        if let (Some(chain), Some(key)) = (pem("BROKER_TLS_CHAIN")?, pem("BROKER_TLS_KEY")?) {
            builder = builder.tls(&chain, &key, pem("BROKER_TLS_CLIENT_CA")?.as_deref());
        }
        let broker = builder.start().await?;
        println!("PLAINTEXT {}", broker.bootstrap_servers());
        println!("SASL_PLAINTEXT {} (alice, alice-secret)", broker.listener(Listener::SaslPlaintext));
        println!("SSL {}", broker.listener(Listener::Ssl));
        println!("SASL_SSL {}", broker.listener(Listener::SaslSsl));
        let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        closed.await??;
        broker.shutdown().await;
        Ok(())
    })
}
