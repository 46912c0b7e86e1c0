//! TLS over rustls: which crypto provider serves, which roots are trusted, and handshakes with errors one can act on.
//!
//! The only file that names the crypto providers. `graviola` serves where it is compiled in and the CPU has what it
//! needs; `rustls-rustcrypto`, an alpha, serves elsewhere, with a warning. Without the `tls` feature [`Tls::new`] says so.
//! Never skips the check of the chain.

#[cfg(feature = "tls")]
pub(crate) use with_rustls::Tls;
#[cfg(all(test, any(feature = "tls-graviola", feature = "tls-rustcrypto")))]
pub(super) use with_rustls::provider;
#[cfg(not(feature = "tls"))]
pub(crate) use without::Tls;

#[cfg(not(feature = "tls"))]
mod without {
    use crate::{
        config::settings::{Address, TlsSettings},
        connection::transport::TransportStream,
        error::{Error, ErrorKind, Result},
    };

    /// Cannot be made: this build has no TLS.
    pub(crate) struct Tls(std::convert::Infallible);

    impl Tls {
        pub(crate) fn new(_: &TlsSettings) -> Result<Self> {
            Err(Error::new(ErrorKind::Config, "TLS is asked for, and this build of dtkafka has none").with_hint(
                "build with the feature tls-graviola or tls-rustcrypto, or with tls and a crypto provider of your own",
            ))
        }

        pub(in crate::connection) fn connect<S: TransportStream>(
            &self,
            _: S,
            _: &Address,
        ) -> impl Future<Output = Result<S>> + Send + use<S> {
            match self.0 {}
            #[expect(unreachable_code, reason = "it types the future of a value that does not exist")]
            std::future::pending()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_build_without_tls_names_the_features() {
            let settings = TlsSettings {
                roots: Vec::new(),
                client_certificate: None,
                client_key: None,
                verify_host_name: true,
            };
            let error = Tls::new(&settings).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains("tls-graviola") && error.to_string().contains("tls-rustcrypto")
            );
        }
    }
}

#[cfg(feature = "tls")]
mod with_rustls {
    use std::{io, net::IpAddr, sync::Arc};

    use rustls::{
        AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
        SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use crate::{
        config::settings::{Address, PemSource, TlsSettings, TrustRoots},
        connection::transport::TransportStream,
        error::{Error, ErrorKind, Result, Stage},
    };

    /// What all TLS connections of a client share: built once, so that files are read once and sessions are resumed.
    pub(crate) struct Tls(TlsConnector);

    impl Tls {
        /// Reads roots, certificate and key, and chooses the crypto provider. Blocks on files.
        ///
        /// # Errors
        /// `Config`, naming the setting: a file that cannot be read, PEM without what is wanted, no root at all, no
        /// provider for this CPU.
        pub(crate) fn new(settings: &TlsSettings) -> Result<Self> {
            if let Some(config) = &settings.client_config {
                tracing::info!(provider = "the application's own rustls configuration", "TLS");
                return Ok(Self(TlsConnector::from(Arc::clone(config))));
            }
            let provider = provider(settings)?;
            let roots = Arc::new(roots(&settings.roots)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
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
            let config = match (&settings.client_certificate, &settings.client_key) {
                (None, None) => builder.with_no_client_auth(),
                (Some(certificate), Some(key)) => {
                    let chain = certificates(&read(certificate, "ssl.keystore.certificate.chain")?)?;
                    let key =
                        PrivateKeyDer::from_pem_slice(&read(key, "ssl.keystore.key")?).map_err(|error| {
                            bad(format!("ssl.keystore.key: no private key in PEM: {error}"))
                                .with_hint("the key must be PKCS#8, PKCS#1 or SEC1 PEM without a passphrase")
                        })?;
                    builder.with_client_auth_cert(chain, key).map_err(|error| {
                        bad("the client certificate and its key cannot be used").with_source(error).with_hint(
                            "check that ssl.keystore.key belongs to the first certificate of ssl.keystore.certificate.chain",
                        )
                    })?
                }
                (Some(_), None) => {
                    return Err(bad("a client certificate needs its key: set ssl.keystore.key"));
                }
                (None, Some(_)) => {
                    return Err(bad(
                        "a client key needs its certificate: set ssl.keystore.certificate.chain",
                    ));
                }
            };
            Ok(Self(TlsConnector::from(Arc::new(config))))
        }

        /// The TLS handshake on an open socket.
        pub(in crate::connection) async fn connect<S: TransportStream>(
            &self,
            socket: S,
            address: &Address,
        ) -> Result<TlsStream<S>> {
            let name = server_name(&address.host)?;
            self.0.connect(name, socket).await.map_err(|error| handshake_error(error, &address.host))
        }
    }

    /// The name the certificate must have. A trailing dot is DNS's, not the certificate's.
    fn server_name(host: &str) -> Result<ServerName<'static>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(ServerName::IpAddress(ip.into()));
        }
        ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned()).map_err(|error| {
            tls_error(format!("{host:?} cannot be a name in a certificate"))
                .with_source(error)
                .with_permanent()
        })
    }

    fn bad(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, text)
    }

    fn tls_error(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Connect(Stage::Tls), text)
    }

    /// The crypto provider: the application's own, else the fastest that this CPU can run.
    pub(in crate::connection) fn provider(settings: &TlsSettings) -> Result<Arc<CryptoProvider>> {
        if let Some(own) = &settings.crypto_provider {
            tracing::info!(provider = "the application's own", "TLS");
            return Ok(Arc::clone(own));
        }
        #[cfg(all(feature = "tls-graviola", any(target_arch = "x86_64", target_arch = "aarch64")))]
        // graviola panics on a CPU it does not support, so it is asked first.
        if graviola::util::is_cpu_supported() {
            tracing::info!(provider = "graviola", "TLS");
            return Ok(Arc::new(rustls_graviola::default_provider()));
        }
        portable_provider()
    }

    #[cfg(feature = "tls-rustcrypto")]
    fn portable_provider() -> Result<Arc<CryptoProvider>> {
        static WARN: std::sync::Once = std::sync::Once::new();
        WARN.call_once(|| {
            tracing::warn!(
                "TLS is served by rustls-rustcrypto, an alpha without an audit: graviola is not compiled in or does not \
                 support this CPU; pass a crypto provider of your own to replace it"
            );
        });
        tracing::info!(provider = "rustls-rustcrypto", "TLS");
        Ok(Arc::new(rustls_rustcrypto::provider()))
    }

    #[cfg(not(feature = "tls-rustcrypto"))]
    fn portable_provider() -> Result<Arc<CryptoProvider>> {
        Err(bad("no TLS crypto provider of this build supports this CPU").with_hint(
            "build dtkafka with the feature tls-rustcrypto (every CPU) or tls-graviola (x86-64 with AES, ADX, BMI2 and AVX2, \
             or aarch64 with AES), or pass a crypto provider of your own",
        ))
    }

    /// Adds the sources up. Only what was named must be readable: a broken system store is no matter while others serve.
    fn roots(sources: &[TrustRoots]) -> Result<RootCertStore> {
        const DEFAULT: &[TrustRoots] = &[TrustRoots::Mozilla, TrustRoots::System];
        let mut store = RootCertStore::empty();
        let mut problems = Vec::new();
        for source in if sources.is_empty() { DEFAULT } else { sources } {
            match source {
                TrustRoots::Mozilla => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
                TrustRoots::System => {
                    let found = rustls_native_certs::load_native_certs();
                    problems.extend(found.errors.iter().map(ToString::to_string));
                    let (added, refused) = store.add_parsable_certificates(found.certs);
                    tracing::debug!(added, refused, errors = found.errors.len(), "roots of the system");
                }
                TrustRoots::Pem(text) => add_pem(&mut store, text.as_bytes(), "ssl.truststore.certificates")?,
                TrustRoots::PemFile(path) => {
                    let text = read_file(path, "ssl.truststore.location")?;
                    add_pem(&mut store, &text, path)?;
                }
            }
        }
        if store.is_empty() {
            let text = match problems.as_slice() {
                [] => "no trusted root certificate was found".to_owned(),
                problems => format!("no trusted root certificate was found: {}", problems.join("; ")),
            };
            return Err(
                bad(text).with_hint("set ssl.truststore.location to a PEM file with the CA's certificate")
            );
        }
        Ok(store)
    }

    fn add_pem(store: &mut RootCertStore, pem: &[u8], from: &str) -> Result<()> {
        for certificate in certificates(pem).map_err(|error| bad(format!("{from}: {error}")))? {
            store
                .add(certificate)
                .map_err(|error| bad(format!("{from}: a certificate cannot be a root")).with_source(error))?;
        }
        Ok(())
    }

    /// Every certificate of a PEM text; at least one.
    fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(bad("there is no certificate in the PEM text").with_hint(
                "a JKS or PKCS#12 store must be converted first, for example with openssl pkcs12",
            )),
            Err(error) => Err(bad(format!("the PEM text is malformed: {error}"))),
        }
    }

    fn read(source: &PemSource, setting: &str) -> Result<Vec<u8>> {
        match source {
            PemSource::Text(text) => Ok(text.expose().as_bytes().to_vec()),
            PemSource::File(path) => read_file(path, setting),
        }
    }

    fn read_file(path: &str, setting: &str) -> Result<Vec<u8>> {
        std::fs::read(path)
            .map_err(|error| bad(format!("{setting}: {path} cannot be read")).with_source(error))
    }

    const PLAIN: &str =
        "if the listener does not use TLS, set security.protocol to PLAINTEXT or SASL_PLAINTEXT";

    /// End of stream, reset and silence pass; what rustls says of the other side does not.
    fn handshake_error(error: io::Error, host: &str) -> Error {
        let rustls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(cause) = rustls_error else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => {
                    tls_error("the other side closed the connection during the TLS handshake")
                        .with_hint(PLAIN)
                }
                _ => tls_error("the TLS handshake failed").with_source(error),
            };
        };
        let passing = matches!(
            cause,
            rustls::Error::AlertReceived(
                AlertDescription::CloseNotify
                    | AlertDescription::UserCanceled
                    | AlertDescription::InternalError
            ) | rustls::Error::FailedToGetCurrentTime
                | rustls::Error::FailedToGetRandomBytes
        );
        let error = refused_handshake(cause, host);
        if passing { error } else { error.with_permanent() }
    }

    fn refused_handshake(cause: &rustls::Error, host: &str) -> Error {
        match cause {
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => tls_error(format!("the broker's certificate is not for the name {host:?}: {cause}")).with_hint(
                "connect by a name in the certificate (also in the broker's advertised.listeners), or set \
                 ssl.endpoint.identification.algorithm to none, which leaves the check of the chain on",
            ),
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => tls_error(format!("the broker's certificate is not signed by a CA this client trusts: {cause}"))
                .with_hint("set ssl.truststore.location to a PEM file with the CA's certificate"),
            rustls::Error::InvalidCertificate(_) => {
                tls_error(format!("the broker's certificate cannot be accepted: {cause}"))
            }
            rustls::Error::InvalidMessage(_) => {
                tls_error(format!("what answered does not speak TLS: {cause}")).with_hint(PLAIN)
            }
            rustls::Error::AlertReceived(_) => {
                tls_error(format!("the broker refused the TLS handshake: {cause}")).with_hint(
                    "if the broker wants a client certificate (ssl.client.auth), set ssl.keystore.certificate.chain and \
                     ssl.keystore.key",
                )
            }
            _ => tls_error(format!("the TLS handshake failed: {cause}")),
        }
    }

    /// Checks the chain as ever, and accepts any name (`ssl.endpoint.identification.algorithm` empty).
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
    mod tests {
        use super::*;

        #[test]
        fn trailing_dot_and_ip_addresses_become_server_names() {
            let name = |host: &str| server_name(host).unwrap().to_str().into_owned();
            assert_eq!(name("b1.example."), "b1.example");
            assert_eq!(name("10.0.0.1"), "10.0.0.1");
            assert_eq!(name("::1"), "::1");
            assert_eq!(server_name("a b").unwrap_err().stage(), Some(Stage::Tls));
        }

        #[test]
        fn pem_without_a_certificate_and_a_missing_file_name_the_setting() {
            let error = roots(&[TrustRoots::Pem("nonsense".to_owned())]).unwrap_err();
            assert!(error.to_string().contains("ssl.truststore.certificates"), "{error}");
            let error = roots(&[TrustRoots::PemFile("/does/not/exist.pem".to_owned())]).unwrap_err();
            assert!(error.to_string().contains("ssl.truststore.location: /does/not/exist.pem"), "{error}");
        }

        #[test]
        fn a_system_store_that_cannot_be_read_is_no_matter_beside_another_root() {
            assert!(!roots(&[]).unwrap().is_empty());
        }
    }
}
