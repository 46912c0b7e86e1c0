//! TLS over rustls: which crypto provider serves, which roots are trusted, and handshakes with errors one can act on.
//!
//! The only file that names the crypto providers. `graviola` serves where it is compiled in and the CPU has what it
//! needs; RustCrypto's (`rustls-provider-rustcrypto-pq`) serves elsewhere, with a warning. Without the `tls` feature [`Tls::new`] says so.
//! Files are read off the async path, and again for each new connection, so that renewed certificates are taken up. Never
//! skips the check of the chain.

#[cfg(feature = "tls")]
mod der;
#[cfg(feature = "tls")]
mod encrypted;
#[cfg(feature = "tls")]
mod material;
#[cfg(feature = "tls")]
mod pem;

#[cfg(feature = "tls")]
pub(crate) use with_rustls::Tls;
#[cfg(feature = "tls")]
pub(super) use with_rustls::is_refusal;
#[cfg(all(test, any(feature = "tls-graviola", feature = "tls-rustcrypto")))]
pub(super) use with_rustls::provider;
#[cfg(not(feature = "tls"))]
pub(crate) use without::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use without::is_refusal;

#[cfg(not(feature = "tls"))]
mod without {
    use crate::{
        config::settings::{Address, TlsSettings},
        connection::transport::TransportStream,
        error::{Error, ErrorKind, Result},
    };

    /// Nothing here shows anything to be refused.
    pub(in crate::connection) fn is_refusal(_: &std::io::Error) -> bool {
        false
    }

    /// Cannot be made: this build has no TLS.
    pub(crate) struct Tls(std::convert::Infallible);

    impl Tls {
        /// A missing feature is reported where the settings are resolved.
        pub(crate) fn problems(_: &TlsSettings) -> Vec<String> {
            Vec::new()
        }

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
            let error = Tls::new(&TlsSettings::default()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains("tls-graviola") && error.to_string().contains("tls-rustcrypto")
            );
        }
    }
}

/// Reads roots, certificates and key of settings that name no file.
#[cfg(all(feature = "tls", any(test, feature = "unstable-fuzzing")))]
pub(crate) fn fuzz(settings: &crate::config::settings::TlsSettings) {
    let _ = material::Material::new(settings, &material::Files::read(settings));
}

#[cfg(feature = "tls")]
mod with_rustls {
    use std::{
        io,
        net::IpAddr,
        sync::{Arc, Mutex, PoisonError},
        time::Duration,
    };

    use rustls::{
        AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::CryptoProvider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::material::{Files, Material};
    use crate::{
        config::settings::{Address, TlsSettings, TrustRoots},
        connection::transport::TransportStream,
        error::{Error, ErrorKind, Result, Stage},
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
        /// What was passed over.
        damaged: Vec<String>,
        /// What the files have held since, and could not be used for; and since when.
        refused: Option<(Files, Instant)>,
    }

    /// Whatever a file holds for so long is no longer being written.
    const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

    impl Built {
        fn new(connector: TlsConnector, files: Files, damaged: Vec<String>) -> Self {
            Self { connector, files: Arc::new(files), damaged, refused: None }
        }

        /// The same, after the files have held that.
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
            let config =
                choose(settings).and_then(|choice| client_config(settings, choice.provider, material));
            config.err().map(|error| error.to_string()).into_iter().collect()
        }

        /// The TLS handshake on an open socket.
        pub(in crate::connection) async fn connect<S: TransportStream>(
            &self,
            socket: S,
            address: &Address,
        ) -> Result<TlsStream<S>> {
            let name = server_name(&address.host)?;
            let connector = self.connector().await?;
            connector.connect(name, socket).await.map_err(|error| handshake_error(error, &address.host))
        }

        /// The configuration for a new connection; files are looked at again, on a thread for blocking work.
        async fn connector(&self) -> Result<TlsConnector> {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&built));
                    built
                }
            };
            Ok(built.connector.clone())
        }
    }

    /// Whether the configuration is built of text alone, without files and without deriving the key of a key.
    fn is_quick(settings: &TlsSettings) -> bool {
        let is_text = |root: &TrustRoots| matches!(root, TrustRoots::Mozilla | TrustRoots::Pem(_));
        let files = [&settings.client_certificate, &settings.client_key];
        let no_file = files.into_iter().flatten().all(|source| !source.is_file());
        !settings.roots.is_empty()
            && settings.roots.iter().all(is_text)
            && no_file
            && settings.key_password.is_none()
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
        // A bundle that is being written ends within a certificate, and the rest is not there yet.
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
        // The library has seen the key: its words stay out.
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

    /// A crypto provider, and what logs call it.
    struct Choice {
        provider: Arc<CryptoProvider>,
        name: &'static str,
        warning: Option<&'static str>,
    }

    /// The crypto provider, named in the log.
    pub(in crate::connection) fn provider(settings: &TlsSettings) -> Result<Arc<CryptoProvider>> {
        static WARN: std::sync::Once = std::sync::Once::new();
        let Choice { provider, name, warning } = choose(settings)?;
        if let Some(warning) = warning {
            WARN.call_once(|| tracing::warn!("{warning}"));
        }
        tracing::info!(provider = name, "TLS");
        Ok(provider)
    }

    /// The application's own provider, else the fastest that this CPU can run.
    fn choose(settings: &TlsSettings) -> Result<Choice> {
        if let Some(own) = &settings.crypto_provider {
            return Ok(Choice { provider: Arc::clone(own), name: "the application's own", warning: None });
        }
        #[cfg(all(feature = "tls-graviola", any(target_arch = "x86_64", target_arch = "aarch64")))]
        // graviola panics on a CPU it does not support, so it is asked first.
        if graviola::util::is_cpu_supported() {
            return Ok(Choice {
                provider: Arc::new(rustls_graviola::default_provider()),
                name: "graviola",
                warning: None,
            });
        }
        portable_provider()
    }

    #[cfg(feature = "tls-rustcrypto")]
    #[expect(clippy::unnecessary_wraps, reason = "a build without it has nothing to offer")]
    fn portable_provider() -> Result<Choice> {
        Ok(Choice {
            provider: Arc::new(rustls_provider_rustcrypto_pq::provider()),
            name: "rustcrypto",
            warning: Some(
                "TLS is served by RustCrypto, which is slower and has no audit as a provider: graviola is not compiled in or does not \
                 support this CPU; pass a crypto provider of your own to replace it",
            ),
        })
    }

    #[cfg(not(feature = "tls-rustcrypto"))]
    fn portable_provider() -> Result<Choice> {
        Err(bad("no TLS crypto provider of this build supports this CPU").with_hint(
            "build dtkafka with the feature tls-rustcrypto (every CPU) or tls-graviola (x86-64 with AES, ADX, BMI2 and AVX2, \
             or aarch64 with AES), or pass a crypto provider of your own",
        ))
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
        let error = refused_handshake(cause, host);
        if passes(cause) { error } else { error.with_permanent() }
    }

    /// Whether a read failed because the other side refused what it was shown: with TLS 1.3 its verdict on the client's
    /// certificate comes after the client has ended its handshake.
    pub(in crate::connection) fn is_refusal(error: &io::Error) -> bool {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        cause.is_some_and(|cause| !passes(cause))
    }

    fn passes(cause: &rustls::Error) -> bool {
        matches!(
            cause,
            rustls::Error::AlertReceived(
                AlertDescription::CloseNotify
                    | AlertDescription::UserCanceled
                    | AlertDescription::InternalError
            ) | rustls::Error::FailedToGetCurrentTime
                | rustls::Error::FailedToGetRandomBytes
        )
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
        use crate::config::settings::{PemSource, Secret};

        #[test]
        fn trailing_dot_and_ip_addresses_become_server_names() {
            let name = |host: &str| server_name(host).unwrap().to_str().into_owned();
            assert_eq!(name("b1.example."), "b1.example");
            assert_eq!(name("10.0.0.1"), "10.0.0.1");
            assert_eq!(name("::1"), "::1");
            assert_eq!(server_name("a b").unwrap_err().stage(), Some(Stage::Tls));
        }

        const CA: &str = include_str!("../test_certs/ca.pem");
        const CHAIN: &str = include_str!("../test_certs/server.pem");
        const KEY: &str = include_str!("../test_certs/server.key");
        const OTHER_KEY: &str = include_str!("../test_certs/keys/other.pem");

        /// Files of a test, removed in the end.
        struct Folder(std::path::PathBuf);

        impl Folder {
            fn new(name: &str) -> Self {
                let path = std::env::temp_dir().join(format!("dtkafka-tls-{}-{name}", std::process::id()));
                std::fs::create_dir_all(&path).unwrap();
                Self(path)
            }

            fn write(&self, name: &str, text: &str) -> String {
                let path = self.0.join(name);
                std::fs::write(&path, text).unwrap();
                path.to_str().unwrap().to_owned()
            }
        }

        impl Drop for Folder {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }

        #[test]
        fn a_key_of_another_certificate_is_named_and_not_shown() {
            let settings = |key: &str| TlsSettings {
                roots: vec![TrustRoots::Pem(CA.to_owned())],
                client_certificate: Some(PemSource::Text(Secret::new(CHAIN))),
                client_key: Some(PemSource::Text(Secret::new(key))),
                ..TlsSettings::default()
            };
            assert!(Tls::problems(&settings(KEY)).is_empty());
            let problems = Tls::problems(&settings(OTHER_KEY));
            assert!(problems.concat().contains("does not belong to the first certificate"), "{problems:?}");
            let damaged = KEY.replacen("AwEHBG0w", "AwEHBG0x", 1);
            let problems = Tls::problems(&settings(&damaged));
            assert!(problems.concat().contains("is damaged, or of a kind"), "{problems:?}");
        }

        #[tokio::test]
        async fn changed_files_serve_new_connections_and_broken_ones_do_not() {
            let folder = Folder::new("renewed");
            let settings = TlsSettings {
                roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
                client_certificate: Some(PemSource::File(folder.write("client.pem", CHAIN))),
                client_key: Some(PemSource::File(folder.write("client.key", KEY))),
                ..TlsSettings::default()
            };
            let tls = Tls::new(&settings).unwrap();
            let config = async || Arc::as_ptr(tls.connector().await.unwrap().config());
            let first = config().await;
            assert_eq!(config().await, first, "nothing has changed");
            for broken in ["", "half a key", OTHER_KEY] {
                folder.write("client.key", broken);
                assert_eq!(config().await, first, "the earlier ones serve on");
            }
            // The first certificate is there, the second is being written.
            folder.write("ca.pem", &format!("{CA}{}", &CHAIN[..CHAIN.len() / 2]));
            folder.write("client.key", KEY);
            assert_eq!(config().await, first, "a bundle that is half there has not all it will have");
            folder.write("ca.pem", CA);
            assert_eq!(config().await, first, "they are as they were");
            folder.write("ca.pem", &format!("{CA}{CHAIN}"));
            let second = config().await;
            assert_ne!(second, first);
            assert_eq!(config().await, second);
            std::fs::remove_dir_all(&folder.0).unwrap();
            assert_eq!(config().await, second, "files that are gone serve on");
        }

        #[test]
        fn files_that_cannot_be_used_are_told_of_once_however_many_connections_are_made() {
            let folder = Folder::new("once");
            let settings = TlsSettings {
                roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
                ..TlsSettings::default()
            };
            let mut now = time::now();
            let mut built = renewed(&settings, None, now).unwrap();
            let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
            for (text, told) in [("", 1), ("other", 2), (CA, 2), ("other", 3)] {
                folder.write("ca.pem", text);
                for _ in 0..5 {
                    built = renewed(&settings, Some(Arc::clone(&built)), now).unwrap();
                    now += WRITTEN_WITHIN;
                }
                let log = log.text();
                assert_eq!(log.matches("the earlier ones serve on").count(), told, "{text}: {log}");
            }
        }

        #[test]
        fn a_bundle_with_a_damaged_certificate_is_taken_once_nobody_writes_it_any_more() {
            let folder = Folder::new("damaged");
            let settings = TlsSettings {
                roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
                ..TlsSettings::default()
            };
            let now = time::now();
            let first = renewed(&settings, None, now).unwrap();
            folder.write("ca.pem", &format!("{CA}{}", &CHAIN[..CHAIN.len() / 2]));
            let refused = renewed(&settings, Some(first), now).unwrap();
            let soon = now + WRITTEN_WITHIN / 2;
            let kept = renewed(&settings, Some(Arc::clone(&refused)), soon).unwrap();
            assert!(Arc::ptr_eq(&kept, &refused) && kept.damaged.is_empty());
            let taken = renewed(&settings, Some(kept), now + WRITTEN_WITHIN).unwrap();
            assert_eq!((taken.damaged.len(), taken.refused.is_none()), (1, true));
        }

        #[tokio::test]
        async fn files_that_cannot_be_used_from_the_start_are_an_error_of_the_configuration() {
            let settings = TlsSettings {
                roots: vec![TrustRoots::PemFile("/does/not/exist.pem".to_owned())],
                ..TlsSettings::default()
            };
            let error = Tls::new(&settings).unwrap().connector().await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains("ssl.truststore.location: \"/does/not/exist.pem\""),
                "{error}"
            );
        }
    }
}
