//! test kit

pub mod broker;

pub use broker::{EmbeddedBroker, EmbeddedBrokerBuilder, FaultControl, Listener};
