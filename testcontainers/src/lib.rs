//! test kit
mod backends;
mod certificates;
pub mod launch;
mod listener;

pub use backends::note_backend;
pub use certificates::{CertificateError, Certificates, CertificatesBuilder, Identity};
pub use listener::Listener;
