//! dtkafka

pub(crate) mod batch;
pub(crate) mod cluster;
pub mod config;
pub(crate) mod connection;
pub mod consumer;
pub mod error;
pub mod producer;
pub mod record;
pub(crate) mod time;

pub use consumer::KafkaConsumer;
pub use error::{Error, ErrorKind, Result};
pub use producer::KafkaProducer;
