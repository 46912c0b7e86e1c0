//! SASL.

use std::time::Duration;

use super::api::Channel;
use crate::{
    config::settings::SaslSettings,
    error::{Error, ErrorKind, Result},
};

#[expect(clippy::unused_async, reason = "the stand-in")]
pub(super) async fn authenticate(_channel: &Channel, _sasl: &SaslSettings) -> Result<Option<Duration>> {
    Err(Error::new(ErrorKind::Config, "SASL is not ready yet"))
}
