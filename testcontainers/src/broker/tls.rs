//! TLS for the broker's SSL and SASL_SSL listeners: rustls with RustCrypto, certificates as PEM.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use super::BrokerError;

/// PEM texts of the server, and of the authority whose clients alone are let in (`ssl.client.auth=required`).
#[derive(Debug, Clone)]
pub(super) struct TlsPem {
    pub(super) chain: String,
    pub(super) key: String,
    pub(super) client_ca: Option<String>,
}

pub(super) fn acceptor(pem: &TlsPem) -> Result<TlsAcceptor, BrokerError> {
    let bad = |what: &str, error: &dyn std::fmt::Display| BrokerError::Tls(format!("{what}: {error}"));
    let provider = Arc::new(rustls_provider_rustcrypto_pq::provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", &e))?;
    let builder = match &pem.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|e| bad("client authority", &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| bad("client authority", &e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|e| bad("server key", &e))?;
    let config = builder
        .with_single_cert(certificates(&pem.chain)?, key)
        .map_err(|e| bad("server certificate", &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, BrokerError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| BrokerError::Tls(format!("certificate PEM: {error}")))
}
