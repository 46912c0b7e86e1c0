//! A build without TLS: the same names, and an error that says which features bring it.

use crate::{
    config::settings::{Address, TlsSettings},
    connection::transport::TransportStream,
    error::{Error, ErrorKind, Result},
};

/// Without TLS no certificate is shown, so that none is refused.
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

    pub(in crate::connection) fn connect(
        &self,
        _: Box<dyn TransportStream>,
        _: &Address,
    ) -> std::future::Pending<Result<Box<dyn TransportStream>>> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_tls_names_the_features() {
        let error = Tls::new(&TlsSettings::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("tls-graviola") && error.to_string().contains("tls-rustcrypto"));
    }
}
