//! One client's TLS over rustls: its configuration, made with the first connection and again when a file has changed, and
//! handshakes under it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio_rustls::TlsConnector;

use super::{
    handshake::handshake_error,
    material::{Files, Material},
    provider::{choose, provider},
};
use crate::{
    config::settings::{Address, PemSource, TlsSettings, TrustRoots},
    connection::transport::TransportStream,
    error::{Error, ErrorKind, Result, Stage},
    mutex::Mutex,
    time::{self, Instant},
};

/// What all TLS connections of a client share: built with the first, so that sessions are resumed, and again when a file
/// has changed.
pub(crate) struct Tls {
    settings: Arc<TlsSettings>,
    current: Mutex<Option<Arc<Built>>>,
}

/// A configuration, and the files it was made of.
struct Built {
    connector: TlsConnector,
    files: Arc<Files>,
    /// Damaged certificates that were left out.
    damaged: Vec<String>,
    /// Later contents of the files that could not be used, and since when they are so.
    refused: Option<(Files, Instant)>,
}

/// A file whose content has not changed for this long is not being written any more.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

impl Built {
    fn new(connector: TlsConnector, files: Files, damaged: Vec<String>) -> Self {
        Self { connector, files: Arc::new(files), damaged, refused: None }
    }

    /// The same configuration, after the files have had this content.
    fn after(&self, refused: Option<(Files, Instant)>) -> Arc<Self> {
        let (connector, files) = (self.connector.clone(), Arc::clone(&self.files));
        Arc::new(Self { connector, files, damaged: self.damaged.clone(), refused })
    }
}

impl Tls {
    /// Nothing is read yet.
    ///
    /// # Errors
    /// `Config`: no provider for this CPU.
    pub(crate) fn new(settings: &TlsSettings) -> Result<Self> {
        let built = match &settings.client_config {
            Some(config) => {
                tracing::info!(provider = "the application's own rustls configuration", "TLS");
                let connector = TlsConnector::from(Arc::clone(config));
                Some(Arc::new(Built::new(connector, Files::default(), Vec::new())))
            }
            None => {
                choose(settings)?;
                None
            }
        };
        Ok(Self { settings: Arc::new(settings.clone()), current: Mutex::new(built) })
    }

    /// Reads roots, certificate and key, and says everything that is wrong with them, each by its setting. Blocks on files.
    pub(crate) fn problems(settings: &TlsSettings) -> Vec<String> {
        if settings.client_config.is_some() {
            return Vec::new();
        }
        let material = match Material::new(settings, &Files::read(settings)) {
            Ok(material) => material,
            Err(problems) => return problems,
        };
        let config = choose(settings).and_then(|choice| client_config(settings, choice.provider, material));
        config.err().map(|error| error.to_string()).into_iter().collect()
    }

    /// The TLS handshake on an open socket.
    pub(in crate::connection) async fn connect(
        &self,
        socket: Box<dyn TransportStream>,
        address: &Address,
    ) -> Result<Box<dyn TransportStream>> {
        let name = server_name(&address.host)?;
        let secured = self.connector().await?.connect(name, socket).await;
        Ok(Box::new(secured.map_err(|error| handshake_error(error, &address.host))?))
    }

    /// The configuration for a new connection; files are looked at again, on a thread for blocking work.
    async fn connector(&self) -> Result<TlsConnector> {
        let current = self.current.lock().clone();
        let built = match current {
            Some(built) if built.files.is_empty() => built,
            current => {
                let settings = Arc::clone(&self.settings);
                let built = if is_quick(&settings) {
                    renewed(&settings, current, time::now())?
                } else {
                    tokio::task::spawn_blocking(move || renewed(&settings, current, time::now()))
                        .await
                        .map_err(|_| tls_error("TLS was cut short: the runtime is ending"))??
                };
                *self.current.lock() = Some(Arc::clone(&built));
                built
            }
        };
        Ok(built.connector.clone())
    }
}

/// Whether the configuration is built of text alone, without files and without deriving the key of a key.
fn is_quick(settings: &TlsSettings) -> bool {
    let is_text = |root: &TrustRoots| matches!(root, TrustRoots::Mozilla | TrustRoots::Pem(_));
    let is_file = |source: &PemSource| matches!(source, PemSource::File(_));
    !settings.roots.is_empty()
        && settings.roots.iter().all(is_text)
        && !settings.identity.as_ref().is_some_and(|(chain, key)| is_file(chain) || is_file(key))
        && settings.key_password.is_none()
}

fn build(settings: &TlsSettings, files: Files) -> Result<Built> {
    let material = Material::new(settings, &files).map_err(|problems| bad(problems.join("; ")))?;
    let damaged = material.warnings.clone();
    let config = client_config(settings, provider(settings)?, material)?;
    Ok(Built::new(TlsConnector::from(Arc::new(config)), files, damaged))
}

fn client_config(
    settings: &TlsSettings,
    provider: Arc<CryptoProvider>,
    material: Material,
) -> Result<ClientConfig> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(material.roots), Arc::clone(&provider))
            .build()
            .map_err(|error| bad("the trusted roots cannot be used").with_source(error))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("the crypto provider offers no TLS version").with_source(error))?;
    let builder = if settings.verify_host_name {
        builder.with_webpki_verifier(verifier)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
    };
    let Some((chain, key)) = material.identity else { return Ok(builder.with_no_client_auth()) };
    // The library's error text is left out, because the library has seen the key.
    builder.with_client_auth_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => bad(
            "ssl.keystore.key (or ssl.key.location) does not belong to the first certificate of \
             ssl.keystore.certificate.chain (or ssl.certificate.location)",
        ),
        _ => bad(
            "ssl.keystore.key (or ssl.key.location) is damaged, or of a kind that the TLS provider does not take: take \
             ECDSA on P-256 or P-384, or RSA from 2048 bits",
        ),
    })
}

/// The name the certificate must have. A trailing dot is DNS's, not the certificate's.
fn server_name(host: &str) -> Result<ServerName<'static>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned()).map_err(|error| {
        tls_error(format!("{host:?} cannot be a name in a certificate")).with_source(error).with_permanent()
    })
}

/// What serves now, or a new configuration where a file has changed. Blocks on files. While changed files cannot be used,
/// half written perhaps, the earlier ones serve on, and that is told once.
fn renewed(settings: &TlsSettings, current: Option<Arc<Built>>, now: Instant) -> Result<Arc<Built>> {
    let files = Files::read(settings);
    let Some(current) = current else {
        let built = build(settings, files)?;
        for damage in &built.damaged {
            tracing::warn!("a damaged certificate was passed over: {damage}");
        }
        return Ok(Arc::new(built));
    };
    if *current.files == files {
        return Ok(if current.refused.is_none() { current } else { current.after(None) });
    }
    let refused = current.refused.as_ref().filter(|(refused, _)| *refused == files);
    let (is_told, is_written) =
        (refused.is_some(), refused.is_some_and(|(_, since)| *since + WRITTEN_WITHIN <= now));
    if is_told && !is_written {
        return Ok(current);
    }
    let again = files.clone();
    // A bundle that is still being written ends in the middle of a certificate.
    let built = build(settings, files).and_then(|built| {
        match built.damaged.len() > current.damaged.len() && !is_written {
            true => Err(bad(built.damaged.join("; "))),
            false => Ok(built),
        }
    });
    match built {
        Ok(built) => {
            tracing::info!("certificate or key files have changed; new connections use them");
            Ok(Arc::new(built))
        }
        Err(error) => {
            if !is_told {
                tracing::warn!(%error, "certificate or key files have changed and cannot be used; the earlier ones serve on");
            }
            Ok(current.after(Some((again, now))))
        }
    }
}

pub(super) fn bad(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, text)
}

pub(super) fn tls_error(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Connect(Stage::Tls), text)
}

/// Checks the chain as usual and accepts any name (`ssl.endpoint.identification.algorithm` empty).
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The chain is checked before the name, so an error about the name says that the chain was good.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
