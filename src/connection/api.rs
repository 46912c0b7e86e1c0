//! The one file that names `kafka-protocol` and rskafka's request trait.

use kafka_protocol::ResponseError;
pub(crate) use kafka_protocol::messages as wire;

/// Kafka's name of an error code.
pub(crate) fn error_name(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        None => "None".to_owned(),
        Some(error) => format!("{error:?}"),
    }
}

/// Whether the protocol guide calls an error code retriable.
pub(crate) fn error_is_retriable(code: i16) -> bool {
    ResponseError::try_from_code(code).is_some_and(|error| error.is_retriable())
}
