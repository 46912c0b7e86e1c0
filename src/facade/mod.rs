//! The facade: JSON values, one configuration, handlers per topic. Built on the clients' public handles alone.
//!
//! [`instance`] makes clients, [`producer`] sends and waits, [`consumer`] polls and dispatches, [`policy`] decides what
//! happens to a record that its handlers do not take. Errors are logged here, with the fields `controller`, `subject` and
//! `payload`, before they are returned. Never logs a password, a key or a value.

mod borrowed;
mod bulk;
mod codec;
mod consumed;
mod consumer;
mod dispatch;
mod exactly_once;
mod failure;
mod handler;
mod instance;
mod letters;
mod message;
mod outbox;
mod policy;
mod producer;
mod replay;
mod retry_topics;
mod routes;
#[cfg(feature = "signal")]
mod signals;
mod topics;

use std::time::Duration;

#[doc(hidden)]
pub use self::handler::ErasedHandler;
pub use self::{
    bulk::{BulkLoad, Progress},
    codec::{Codec, Json},
    consumer::{Consumer, ConsumerHandle, Rebalance},
    dispatch::lanes::Ordering,
    exactly_once::ExactlyOnce,
    handler::{Handler, HandlerArgument, HandlerError, HandlerOutput, HandlerResult},
    instance::KafkaInstance,
    message::{Batch, CancellationToken, FailedAt, Message},
    policy::ErrorPolicy,
    producer::{Producer, SendAndWait},
    replay::{DeadLetter, Replay, Replayed},
    topics::Topics,
};
use crate::error::{Error, Result};

/// The pause of a run after an error that may pass by itself.
const RUN_PAUSE: Duration = Duration::from_millis(500);
/// How long it may take to leave for who was told to end twice.
const HURRY: Duration = Duration::from_secs(5);

/// Who logs an error, and about what.
#[derive(Debug, Clone, Copy)]
struct LogSubject {
    controller: &'static str,
    subject: &'static str,
}

/// Logs the error, if it is one, and hands the result on.
fn logged<T>(about: LogSubject, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        log(about, error);
    }
    result
}

fn log(about: LogSubject, error: &Error) {
    tracing::error!(
        controller = about.controller,
        subject = about.subject,
        payload = %payload(error),
        "{error}"
    );
}

/// What is known of an error as one line of JSON.
fn payload(error: &Error) -> serde_json::Value {
    let mut payload = serde_json::Map::new();
    let mut put = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            payload.insert(name.to_owned(), value);
        }
    };
    put("kind", Some(format!("{:?}", error.kind()).into()));
    put("topic", error.topic().map(Into::into));
    put("partition", error.partition().map(Into::into));
    put("offset", error.offset().map(Into::into));
    put("broker", error.broker().map(Into::into));
    put("address", error.address().map(Into::into));
    put("api", error.api().map(Into::into));
    put("hint", error.hint().map(Into::into));
    put("retriable", Some(error.is_retriable().into()));
    put("possibly_written", error.possibly_written().then_some(true.into()));
    payload.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_payload_of_an_error_says_where_it_happened_and_leaves_out_what_is_not_known() {
        let error = Error::new(ErrorKind::Handler, "the handler failed")
            .with_topic("orders")
            .with_partition(3)
            .with_offset(42);
        assert_eq!(
            payload(&error).to_string(),
            r#"{"kind":"Handler","offset":42,"partition":3,"retriable":false,"topic":"orders"}"#
        );
    }
}
