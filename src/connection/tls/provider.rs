//! Which crypto provider serves. The only file that names them.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::{config::settings::TlsSettings, error::Result};

/// A crypto provider, and what logs call it.
pub(super) struct Choice {
    pub(super) provider: Arc<CryptoProvider>,
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
pub(super) fn choose(settings: &TlsSettings) -> Result<Choice> {
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
    Err(super::with_rustls::bad("no TLS crypto provider of this build supports this CPU").with_hint(
        "build dtkafka with the feature tls-rustcrypto (every CPU) or tls-graviola (x86-64 with AES, ADX, BMI2 and AVX2, \
         or aarch64 with AES), or pass a crypto provider of your own",
    ))
}
