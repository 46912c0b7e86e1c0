//! The four kinds of listener that every broker of this kit offers. Names only; no sockets.

/// A listener of a broker, by its security protocol (Java: `listener.security.protocol.map`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listener {
    /// No encryption, no authentication.
    Plaintext,
    /// SASL authentication without encryption.
    SaslPlaintext,
    /// TLS without SASL.
    Ssl,
    /// SASL authentication over TLS.
    SaslSsl,
}
