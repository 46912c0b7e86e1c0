//! The test kit of dtkafka: an [`EmbeddedBroker`] in process, and [`launch`] for a real Apache Kafka.
//!
//! It shares no code with `dtkafka`, so that one bug cannot hide in both, and works for any Kafka client.
//!
//! ```
//! use std::time::Duration;
//! use dtkafka_testcontainers::{ApiKey, EmbeddedBroker, Fault, Effect, NewRecord};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let broker = EmbeddedBroker::start().await?;
//! broker.feed("orders", 0, NewRecord::new(r#"{"id":1}"#).key("a"))?;
//! // The next commit is applied, and its answer never comes.
//! broker.control().inject(Fault::on(ApiKey::OffsetCommit).times(1).effect(Effect::DisconnectAfter));
//! // Here your code reads from `broker.bootstrap_servers()`; then:
//! // broker.wait_until_committed("billing", "orders", 0, 1, Duration::from_secs(30)).await?;
//! let orders = broker.wait_for_records("orders", 1, Duration::from_secs(30)).await?;
//! assert_eq!(orders[&0][0].key_text(), Some("a"));
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

mod backends;
pub mod broker;
mod certificates;
pub mod launch;
mod listener;

pub use backends::note_backend;
pub use broker::{
    ApiKey, BrokerError, Effect, EmbeddedBroker, EmbeddedBrokerBuilder, FakeKafka, Fault, FaultControl,
    FaultId, Network, NewRecord, Operation, Profile, Quota, Resource, ResponseError, StoredRecord,
};
pub use certificates::{CertificateError, Certificates, CertificatesBuilder, Identity};
pub use listener::Listener;
