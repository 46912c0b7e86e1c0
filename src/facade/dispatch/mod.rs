//! From polled records to lanes. Pure; [`lanes`] decides who runs beside whom.

pub(crate) mod lanes;
