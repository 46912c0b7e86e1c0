//! Settings and their sources.

pub(crate) mod settings;

pub use settings::{Acks, AutoOffsetReset, Compression, IsolationLevel, SaslMechanism};
