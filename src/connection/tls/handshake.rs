//! Why a handshake came to nothing, in errors one can act on, and whether that passes.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::with_rustls::tls_error;
use crate::error::Error;

const PLAIN: &str = "if the listener does not use TLS, set security.protocol to PLAINTEXT or SASL_PLAINTEXT";

/// End of stream, reset and silence pass; what rustls says of the other side does not.
pub(super) fn handshake_error(error: io::Error, host: &str) -> Error {
    let rustls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(cause) = rustls_error else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => {
                tls_error("the other side closed the connection during the TLS handshake").with_hint(PLAIN)
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
            AlertDescription::CloseNotify | AlertDescription::UserCanceled | AlertDescription::InternalError
        ) | rustls::Error::FailedToGetCurrentTime
            | rustls::Error::FailedToGetRandomBytes
            // A machine may start with a wrong clock, before a time server has set it.
            | rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }
            )
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
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => tls_error(format!("the broker's certificate is not for this time: {cause}"))
            .with_hint("check the clock of this machine"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => tls_error(format!("the broker's certificate is not for this time: {cause}"))
            .with_hint("check the clock of this machine, and that the broker's certificate was renewed"),
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

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn a_certificate_that_is_not_for_this_time_tells_of_the_clock_and_passes_where_time_mends_it() {
        let time = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let (early, late) = (time(0), time(1_700_000_000));
        for (cause, passes) in [
            (CertificateError::NotValidYet, true),
            (CertificateError::NotValidYetContext { time: early, not_before: late }, true),
            (CertificateError::Expired, false),
            (CertificateError::ExpiredContext { time: late, not_after: early }, false),
        ] {
            let cause = rustls::Error::InvalidCertificate(cause);
            let error = handshake_error(io::Error::new(io::ErrorKind::InvalidData, cause), "b1");
            assert_eq!(error.is_retriable(), passes, "{error}");
            assert!(error.to_string().contains("check the clock of this machine"), "{error}");
        }
    }
}
