//! dtkafka

pub(crate) mod batch;
pub mod config;
pub(crate) mod connection;
pub mod error;
pub mod record;
pub(crate) mod time;
