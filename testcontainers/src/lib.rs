//! The test kit of dtkafka: an [`EmbeddedBroker`] in process, and [`launch`] for a real Apache Kafka.
//!
//! It shares no code with `dtkafka`, so that one bug cannot hide in both, and works for any Kafka client.

mod backends;
pub mod broker;
mod certificates;
pub mod launch;
mod listener;

pub use backends::note_backend;
pub use broker::{
    Effect, EmbeddedBroker, EmbeddedBrokerBuilder, FakeKafka, Fault, FaultControl, FaultId, Network,
    NewRecord, Operation, Profile, Quota, Resource, StoredRecord,
};
pub use certificates::{CertificateError, Certificates, CertificatesBuilder, Identity};
pub use listener::Listener;
