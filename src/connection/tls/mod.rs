//! TLS over rustls: which crypto provider serves, which roots are trusted, and handshakes with errors one can act on.
//!
//! `provider.rs` alone names the crypto providers. `graviola` serves where it is compiled in and the CPU has what it needs;
//! RustCrypto's (`rustls-provider-rustcrypto-pq`) serves elsewhere, with a warning. Without the `tls` feature [`Tls::new`] says
//! so. Files are read off the async path, and again for each new connection, so that renewed certificates are taken up. Never
//! skips the check of the chain.

#[cfg(feature = "tls")]
mod der;
#[cfg(feature = "tls")]
mod encrypted;
#[cfg(feature = "tls")]
mod handshake;
#[cfg(feature = "tls")]
mod material;
#[cfg(feature = "tls")]
mod pem;
#[cfg(feature = "tls")]
mod provider;
#[cfg(feature = "tls")]
mod with_rustls;
#[cfg(not(feature = "tls"))]
mod without;

#[cfg(feature = "tls")]
pub(super) use self::handshake::is_refusal;
#[cfg(all(test, any(feature = "tls-graviola", feature = "tls-rustcrypto")))]
pub(super) use self::provider::provider;
#[cfg(feature = "tls")]
pub(crate) use self::with_rustls::Tls;
#[cfg(not(feature = "tls"))]
pub(crate) use self::without::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use self::without::is_refusal;

/// Reads roots, certificates and key of settings that name no file.
#[cfg(all(feature = "tls", any(test, feature = "unstable-fuzzing")))]
pub(crate) fn fuzz(settings: &crate::config::settings::TlsSettings) {
    let _ = material::Material::new(settings, &material::Files::read(settings));
}
