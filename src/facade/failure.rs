//! Why a record was not handled, and the error that says so.

use std::{sync::Arc, time::Duration};

use super::HandlerError;
use crate::error::{Error, ErrorKind};

/// Why a record was not handled.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its value is not what the handler takes.
    Unreadable(Error),
    /// The batch it came in is damaged.
    Corrupt(Error),
    /// The handler's own error.
    Handler(HandlerError),
    /// The handler panicked with this text.
    Panic(String),
    /// The handler was not done within its deadline.
    Deadline(Duration),
}

impl Failure {
    /// The error that names the record.
    pub(super) fn into_error(self, topic: &Arc<str>, partition: i32, offset: i64) -> Error {
        let (text, hint) = match self {
            Self::Unreadable(error) | Self::Corrupt(error) => return error,
            Self::Handler(cause) => {
                return at(Error::new(ErrorKind::Handler, "the handler failed"), topic, partition, offset)
                    .with_boxed_source(cause);
            }
            Self::Panic(text) => (format!("the handler panicked: {text}"), None),
            Self::Deadline(limit) => (
                format!("the handler was not done within {limit:?}"),
                Some("give the error policy's deadline more time, or look for what the handler waits for"),
            ),
        };
        let error = at(Error::new(ErrorKind::Handler, text), topic, partition, offset);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

fn at(error: Error, topic: &Arc<str>, partition: i32, offset: i64) -> Error {
    error.with_topic(Arc::clone(topic)).with_partition(partition).with_offset(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_failure_names_the_record() {
        for (failure, text) in [
            (Failure::Handler("out of stock".into()), "out of stock"),
            (Failure::Panic("index out of bounds".to_owned()), "panicked: index out of bounds"),
            (Failure::Deadline(Duration::from_secs(1)), "not done within 1s"),
        ] {
            let error = failure.into_error(&"orders".into(), 3, 42);
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Handler, Some(42)));
            assert!(error.to_string().contains(text) && error.to_string().contains("orders"), "{error}");
        }
    }
}
