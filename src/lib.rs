//! dtkafka

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
pub use consumer::{
    ConsumerRecords, IntoIter, Iter, KafkaConsumer, OwnedRecords, PartitionRecords, RecordRef, RecordRefs, RecordStream,
};
pub use error::{Error, ErrorCode, ErrorKind, Result, Stage};
pub use facade::{
    Consumer, ErrorPolicy, Exhausted, Handler, HandlerError, HandlerResult, KafkaInstance, Message, Producer,
    SendAndWait,
};
pub use producer::{Delivery, KafkaProducer, SendJson};
pub use record::{ConsumerRecord, Header, ProducerRecord, RecordMetadata, TimestampType, TopicPartition};
