//! A pure-Rust client for Apache Kafka: an API for JSON values with handlers per topic, and a complete client for bytes below it.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use dtkafka::{Consumer, KafkaConfig, KafkaInstance, Message};
//!
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct Order { id: u64 }
//! # async fn example() -> dtkafka::Result<()> {
//! let config = KafkaConfig::new()
//!     .set_kafka_url("kafka://localhost:9092?group_id=billing")
//!     .set_auto_offset_reset("earliest");
//! let kafka = KafkaInstance::new(config)?; // every bad value is named here; nothing connects yet
//!
//! kafka
//!     .producer_context(async |producer| {
//!         let delivery = producer.send("orders", &Order { id: 7 }).key("customer-1").await?; // queued
//!         delivery.await // acknowledged
//!     })
//!     .await?;
//!
//! let mut consumer = Consumer::new(&kafka, ["orders"])?.register_handler(
//!     "orders",
//!     async |order: Message<Order>| {
//!         println!("order {}", order.value.id);
//!         Ok(())
//!     },
//! )?;
//! consumer.consume(Duration::from_secs(1)).await?; // committed once the handler has returned Ok
//! consumer.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Where to look
//!
//! | to | use | made by | `send` or `poll` |
//! | --- | --- | --- | --- |
//! | call handlers with JSON values | [`Consumer`] | [`Consumer::new`] | calls the handlers, and commits what they have handled |
//! | send JSON and wait for each acknowledgment | [`Producer`] | [`Producer::new`] | returns when the record is acknowledged, or after 10 s |
//! | send many records, JSON or bytes | [`KafkaProducer`] | [`KafkaInstance::get_producer`] | queues the record, and returns a [`Delivery`] to await |
//! | read bytes, seek, commit by hand | [`KafkaConsumer`] | [`KafkaInstance::get_consumer`] | returns records; commits what earlier polls returned |
//! | read, write and commit in transactions | [`ExactlyOnce`] | [`ExactlyOnce::new`] | calls one body per record |
//! | topics, groups, offsets | [`KafkaAdmin`] | [`KafkaInstance::admin`] | |
//!
//! * **Settings**: [`KafkaConfig`] takes a URL, setters, Java property names and the environment. [`KafkaInstance`] checks
//!   it and makes every client.
//! * **Failures of handlers**: an [`ErrorPolicy`] retries, dead-letters, skips or stops.
//! * **Transactions by hand**: [`KafkaInstance::transaction`] and [`TransactionalProducer`].
//! * **Rebalances**: [`RebalanceListener`], for both kinds of consumers.
//! * **Errors**: one type, [`Error`], with its [`ErrorKind`], where it happened, and which setting to change.
//! * **Code of your own**: [`Codec`], [`ProducerInterceptor`], [`Partitioner`], [`Assignor`], [`Transport`].
//! * **Guides**: [`guide`], one page each: from other clients, delivery guarantees, error handling, tuning, security,
//!   testing, operating; and [every setting](guide::settings) with its default.
//!
//! # Requirements
//!
//! A tokio runtime with its time and IO drivers, on which clients run their driver tasks. Nothing in the build needs a C
//! toolchain.
//!
//! # Features
//!
//! * `tls-graviola` (default): TLS with graviola, fast, on the x86-64 and aarch64 CPUs it supports.
//! * `tls-rustcrypto` (default): TLS with RustCrypto on every target, slower; serves where graviola cannot.
//! * `signal` (default): `run_until_signal` of [`Consumer`] and [`ExactlyOnce`].
//! * `pattern` (default): `Consumer::matching` and `KafkaConsumer::subscribe_pattern` in classic groups.
//! * `blocking`: the module `blocking`, the same names for programs without `async`.
//! * `metrics`: `MetricsPublisher`, the numbers of clients through the `metrics` facade.
//! * `traceparent`: what a handler sends gets the `traceparent` and `tracestate` of the record that it handles.
//! * `tls`: TLS with a provider or a `rustls::ClientConfig` of your own.

mod admin;
mod batch;
#[cfg(feature = "unstable-benches")]
#[doc(hidden)]
pub mod bench_support;
#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(test)]
mod clock_tests;
mod cluster;
mod config;
mod connection;
mod consumer;
mod driver;
mod error;
mod facade;
mod flights;
#[cfg(any(test, feature = "unstable-fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod group;
pub mod guide;
mod json;
mod mutex;
mod pattern;
mod producer;
mod race;
mod record;
mod sorted;
mod telemetry;
#[cfg(test)]
mod test_log;
mod time;
mod watch;
mod wire;

pub use admin::{
    BrokerDescription, ClusterDescription, ConfigChanges, ConfigEntry, GroupDescription, GroupListing,
    KafkaAdmin, Lag, MemberDescription, NewTopic, PartitionDescription, TopicDescription,
};
pub use config::{
    Acks, AutoOffsetReset, Compression, ConsumerConfig, GroupProtocol, IsolationLevel, KafkaConfig, KeyHash,
    ProducerConfig, SaslMechanism, SecurityProtocol, SettingValue,
};
pub use connection::transport::{Connecting, Transport, TransportStream};
pub use consumer::{
    CloseOptions, Committer, Committing, ConsumerRecords, KafkaConsumer, OffsetAndTimestamp,
    PartitionRecords, RebalanceListener, RecordRef,
};
pub use error::{Error, ErrorCode, ErrorKind, Result, Stage};
#[doc(hidden)]
pub use facade::ErasedHandler;
pub use facade::{
    Batch, BulkLoad, CancellationToken, Codec, Consumer, ConsumerHandle, DeadLetter, ErrorPolicy,
    ExactlyOnce, FailedAt, Handler, HandlerArgument, HandlerError, HandlerOutput, HandlerResult, Json,
    KafkaInstance, Message, Ordering, Producer, Progress, Rebalance, Replay, Replayed, SendAndWait, Topics,
};
pub use group::{
    GroupMembershipOperation,
    assignor::{Assignor, GroupInfo, GroupMember},
};
pub use producer::{
    Delivery, IntoKey, KafkaProducer, Key, OutgoingRecord, Partitioner, Partitions, ProducerInterceptor,
    ProducerStatistics, SendJson, Sending, Transaction, TransactionalProducer,
};
pub use record::{
    ConsumerGroupMetadata, ConsumerRecord, Header, OffsetAndMetadata, ProducerRecord, RecordMetadata,
    Timestamp, TimestampType, TopicPartition,
};
#[cfg(feature = "metrics")]
pub use telemetry::MetricsPublisher;
pub use telemetry::{ConsumerMetrics, HistogramSnapshot};

/// The iterators over polled records, where one must be named.
pub mod iter {
    pub use crate::consumer::{IntoIter, Iter, OwnedRecords, RecordRefs, RecordStream};
}

/// The examples of the README, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
