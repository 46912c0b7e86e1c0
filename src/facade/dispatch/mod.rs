//! From polled records to lanes. Pure; [`lanes`] decides who runs beside whom, [`pace`] when what is done is committed.

pub(crate) mod lanes;
pub(crate) mod pace;
