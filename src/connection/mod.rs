//! Connections to brokers.

pub(crate) mod api;
