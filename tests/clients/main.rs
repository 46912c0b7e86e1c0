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
mod causes;
mod codecs;
mod consumer_protocol;
mod dropped;
mod edges;
mod errors;
mod facade;
mod faults;
mod groups;
mod kit;
mod lanes;
#[path = "../chaos/faults.rs"]
mod nodes;
mod offsets;
mod plugins;
mod producer;
mod quotas;
mod reading;
mod runtimes;
mod security;
mod seeds;
mod storms;
mod stress;
mod subscriptions;
#[path = "../../src/test_log.rs"]
mod test_log;
mod topics;
mod transactions;
mod transport;
mod weather;
