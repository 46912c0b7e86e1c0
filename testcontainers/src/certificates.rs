//! Certificates for tests: a certificate authority, a server and a client certificate, and an authority
//! that nobody trusts. ECDSA P-256, made in memory on every call.
//!
//! Owns no files. `rcgen` writes the DER; the keys are our own over the `p256` crate, because `rcgen`'s need
//! `ring` or `aws-lc`, which need a C compiler. Never use these outside tests: the keys are handed out.

use std::sync::Arc;

use p256::{
    ecdsa::{DerSignature, SigningKey as P256Key, signature::Signer},
    elliptic_curve::rand_core::OsRng,
    pkcs8::{EncodePrivateKey, LineEnding},
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};

/// The names a server certificate covers unless [`CertificatesBuilder::server_names`] says otherwise.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A name cannot stand in a certificate, or the certificate could not be written.
    #[error("cannot write the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A private key could not be encoded as PKCS#8.
    #[error("cannot encode the private key: {0}")]
    Key(#[from] p256::pkcs8::Error),
    /// rustls refused the certificates.
    #[error("cannot use the certificates for TLS: {0}")]
    Tls(String),
}

/// A certificate and its private key, both PEM; the key is PKCS#8, as Java and rustls want it.
#[derive(Clone)]
pub struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The private key, PKCS#8 PEM.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A set of certificates for one broker and its clients.
#[derive(Debug, Clone)]
pub struct Certificates {
    ca: String,
    unrelated_ca: String,
    server: Identity,
    client: Identity,
}

/// Settings of [`Certificates::builder`].
#[derive(Debug, Clone)]
pub struct CertificatesBuilder {
    server_names: Vec<String>,
    client_name: String,
}

impl CertificatesBuilder {
    /// The host names and addresses the server certificate covers. Default: `localhost`, `127.0.0.1`, `::1`.
    /// Give another name to see a client refuse the mismatch.
    #[must_use]
    pub fn server_names<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        self.server_names = names.into_iter().map(Into::into).collect();
        self
    }

    /// The common name of the client certificate; Kafka's principal is `User:CN=<name>`. Default: `client`.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Makes the keys and the certificates.
    ///
    /// # Errors
    /// [`CertificateError`] if a name cannot stand in a certificate.
    pub fn generate(self) -> Result<Certificates, CertificateError> {
        let authority = Authority::new("dtkafka test CA")?;
        let server = authority.issue(
            self.server_names.first().map_or("server", String::as_str),
            &self.server_names,
            ExtendedKeyUsagePurpose::ServerAuth,
        )?;
        let client = authority.issue(&self.client_name, &[], ExtendedKeyUsagePurpose::ClientAuth)?;
        let unrelated = Authority::new("dtkafka unrelated CA")?;
        Ok(Certificates { ca: authority.pem, unrelated_ca: unrelated.pem, server, client })
    }
}

impl Certificates {
    /// A fresh set for a broker on loopback.
    ///
    /// # Errors
    /// [`CertificateError`] if a certificate could not be written.
    pub fn generate() -> Result<Self, CertificateError> {
        Self::builder().generate()
    }

    /// A set with other names.
    #[must_use]
    pub fn builder() -> CertificatesBuilder {
        CertificatesBuilder {
            server_names: LOOPBACK.map(String::from).to_vec(),
            client_name: "client".to_owned(),
        }
    }

    /// The authority that signed the server and the client certificate, PEM. Clients trust this one.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca
    }

    /// An authority that signed nothing here, PEM. A client that trusts only this one must refuse the broker.
    #[must_use]
    pub fn unrelated_ca_pem(&self) -> &str {
        &self.unrelated_ca
    }

    /// The broker's certificate and key.
    #[must_use]
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// A client's certificate and key, for mutual TLS.
    #[must_use]
    pub fn client(&self) -> &Identity {
        &self.client
    }

    /// A rustls configuration for a server with these certificates (TLS 1.2 and 1.3).
    /// `require_client` refuses clients without a certificate of this authority (Java: `ssl.client.auth=required`).
    ///
    /// # Errors
    /// [`CertificateError::Tls`] if rustls refuses them.
    pub fn server_config(&self, require_client: bool) -> Result<ServerConfig, CertificateError> {
        let provider = Arc::new(rustls_provider_rustcrypto_pq::provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(tls)?;
        let builder = if require_client {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(tls)?)
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = parse(&self.server)?;
        builder.with_single_cert(chain, key).map_err(tls)
    }

    /// A rustls configuration for a client that trusts [`Self::ca_pem`]; `with_certificate` presents
    /// [`Self::client`] when the server asks.
    ///
    /// # Errors
    /// [`CertificateError::Tls`] if rustls refuses them.
    pub fn client_config(&self, with_certificate: bool) -> Result<ClientConfig, CertificateError> {
        client_config(&self.ca, with_certificate.then_some(&self.client))
    }
}

fn client_config(ca: &str, identity: Option<&Identity>) -> Result<ClientConfig, CertificateError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls_provider_rustcrypto_pq::provider()))
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_root_certificates(roots(ca)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            let (chain, key) = parse(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(tls)
        }
    }
}

fn roots(ca: &str) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).map_err(tls)?).map_err(tls)?;
    Ok(roots)
}

fn parse(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateError> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).map_err(tls)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(tls)?;
    Ok((vec![certificate], key))
}

fn tls(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Tls(error.to_string())
}

/// A certificate authority while it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, Key>,
}

impl Authority {
    fn new(name: &str) -> Result<Self, CertificateError> {
        let key = Key::generate();
        let mut params = key.params(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    fn issue(
        &self,
        name: &str,
        alternative_names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, CertificateError> {
        let key = Key::generate();
        let mut params = key.params(name, alternative_names)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate: Certificate = params.signed_by(&key, &self.issuer)?;
        let key = key.signing.to_pkcs8_pem(LineEnding::LF)?;
        Ok(Identity { certificate: certificate.pem(), key: key.as_str().to_owned() })
    }
}

/// A P-256 key that `rcgen` can sign with.
struct Key {
    signing: P256Key,
    public: Vec<u8>,
}

impl Key {
    fn generate() -> Self {
        let signing = P256Key::random(&mut OsRng);
        let public = signing.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        Self { signing, public }
    }

    /// Parameters with what `rcgen` cannot derive without a crypto provider: serial number and key identifier.
    fn params(
        &self,
        name: &str,
        alternative_names: &[String],
    ) -> Result<CertificateParams, CertificateError> {
        let mut params = CertificateParams::new(alternative_names)?;
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2049, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        // RFC 7093, method 1: the first 160 bits of SHA-256; the serial must be positive, so its top bit is cleared.
        let mut id: Vec<u8> = Sha256::digest(&self.public).iter().copied().take(20).collect();
        params.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
        if let Some(first) = id.first_mut() {
            *first = (*first & 0x7f) | 1;
        }
        params.serial_number = Some(SerialNumber::from_slice(&id));
        Ok(params)
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature =
            self.signing.try_sign(message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// A handshake over an in-memory stream; the client's result.
    async fn handshake(
        server: ServerConfig,
        client: ClientConfig,
        name: &str,
    ) -> (std::io::Result<()>, std::io::Result<()>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let connector = TlsConnector::from(Arc::new(client));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
        (accepted.map(drop), connected.map(drop))
    }

    #[tokio::test]
    async fn client_that_trusts_the_ca_accepts_every_loopback_name() {
        let certificates = Certificates::generate().unwrap();
        for name in LOOPBACK {
            let server = certificates.server_config(false).unwrap();
            let client = certificates.client_config(false).unwrap();
            let (accepted, connected) = handshake(server, client, name).await;
            connected.unwrap();
            accepted.unwrap();
        }
    }

    #[tokio::test]
    async fn client_that_trusts_only_the_unrelated_ca_refuses_the_server() {
        let certificates = Certificates::generate().unwrap();
        let client = client_config(certificates.unrelated_ca_pem(), None).unwrap();
        let (_, connected) = handshake(certificates.server_config(false).unwrap(), client, "localhost").await;
        assert!(connected.unwrap_err().to_string().contains("UnknownIssuer"));
    }

    #[tokio::test]
    async fn certificate_for_another_host_is_refused() {
        let certificates = Certificates::builder().server_names(["other.example"]).generate().unwrap();
        let client = certificates.client_config(false).unwrap();
        let (_, connected) = handshake(certificates.server_config(false).unwrap(), client, "localhost").await;
        assert!(connected.unwrap_err().to_string().contains("not valid for name"));
    }

    #[tokio::test]
    async fn server_that_requires_a_client_certificate_accepts_ours_and_refuses_none() {
        let certificates = Certificates::generate().unwrap();
        let server = certificates.server_config(true).unwrap();
        let (with, _) =
            handshake(server.clone(), certificates.client_config(true).unwrap(), "localhost").await;
        with.unwrap();
        let (without, _) = handshake(server, certificates.client_config(false).unwrap(), "localhost").await;
        without.unwrap_err();
    }

    #[test]
    fn private_keys_do_not_reach_debug() {
        let certificates = Certificates::generate().unwrap();
        assert!(certificates.server().key_pem().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(!format!("{certificates:?}").contains("PRIVATE KEY"));
    }
}
