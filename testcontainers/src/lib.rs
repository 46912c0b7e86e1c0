//! test kit
mod certificates;
pub mod launch;
mod listener;

pub use certificates::{CertificateError, Certificates, CertificatesBuilder, Identity};
pub use listener::Listener;
