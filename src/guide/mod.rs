//! Guides: one page each, for those who come from another client and for those who run this one. Every example is compiled
//! with the documentation tests.

#[doc = include_str!("from_kafka_python.md")]
pub mod from_kafka_python {}

#[doc = include_str!("from_rdkafka.md")]
pub mod from_rdkafka {}

#[doc = include_str!("from_spring_kafka.md")]
pub mod from_spring_kafka {}

#[doc = include_str!("delivery_guarantees.md")]
pub mod delivery_guarantees {}

#[doc = include_str!("error_handling.md")]
pub mod error_handling {}

#[doc = include_str!("tuning.md")]
pub mod tuning {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("operating.md")]
pub mod operating {}

#[doc(inline)]
pub use crate::config::properties::settings;
