//! TLS over rustls.

use tokio::net::TcpStream;

use crate::{
    config::settings::{Address, TlsSettings},
    error::{Error, ErrorKind, Result},
};

/// What all TLS connections of a client share.
pub(crate) struct Tls(());

impl Tls {
    pub(crate) fn new(_settings: &TlsSettings) -> Result<Self> {
        Err(Error::new(ErrorKind::Config, "TLS is not ready yet"))
    }

    #[expect(clippy::unused_async, reason = "the stand-in")]
    pub(super) async fn connect(&self, socket: TcpStream, _address: &Address) -> Result<TcpStream> {
        Ok(socket)
    }
}
