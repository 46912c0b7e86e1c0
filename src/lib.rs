//! A pure-Rust Kafka client: JSON in and out through one URL, and a complete client of bytes below.

mod admin;
mod batch;
mod cluster;
mod config;
mod connection;
mod consumer;
mod error;
mod facade;
mod producer;
mod record;
mod time;

pub use admin::{
    CommittedOffset, ConfigEntry, GroupDescription, GroupListing, KafkaAdmin, Lag, MemberDescription,
    NewTopic, PartitionDescription, TopicDescription,
};
pub use config::{
    Acks, AutoOffsetReset, Compression, ConsumerConfig, IsolationLevel, KafkaConfig, ProducerConfig,
    SaslMechanism, SecurityProtocol, SettingValue,
};
pub use consumer::{ConsumerRecords, KafkaConsumer, PartitionRecords, RecordRef};
pub use error::{Error, ErrorCode, ErrorKind, Result, Stage};
pub use facade::{
    Consumer, ErrorPolicy, Exhausted, Handler, HandlerError, HandlerResult, KafkaInstance, Message, Producer,
    SendAndWait,
};
pub use producer::{Delivery, KafkaProducer, SendJson};
pub use record::{ConsumerRecord, Header, ProducerRecord, RecordMetadata, TimestampType, TopicPartition};

/// The iterators over polled records, where one must be named.
pub mod iter {
    pub use crate::consumer::{IntoIter, Iter, OwnedRecords, RecordRefs, RecordStream};
}
