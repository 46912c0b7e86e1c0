//! One suite, every backend: what users do with `dtkafka`, on the embedded broker and on real Apache Kafka.

#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod admin;
mod backend;
mod cancellation;
mod causes;
mod codecs;
mod consumer_protocol;
mod errors;
mod facade;
mod faults;
mod groups;
mod lanes;
#[path = "../chaos/faults.rs"]
mod nodes;
mod offsets;
mod plugins;
mod producer;
mod producer_limits;
mod python_docs;
mod quotas;
mod reading;
mod runtimes;
mod security;
mod stress;
mod subscriptions;
mod test_kit;
#[path = "../../src/test_log.rs"]
mod test_log;
mod topics;
mod transactions;
mod transient_faults;
mod transport;
mod unreliable_brokers;
