//! What a refusal of records says to the user: the broker's code and words, the place, and the setting, grant or broker to see
//! to. It decides nothing about a batch's fate.

use super::sender::Answer;
use crate::error::{Error, code};

/// The broker's answer to a batch as an error.
pub(super) fn broker_error(answer: &Answer, leader: i32) -> Error {
    let error = Error::from_code("Produce", answer.code).with_broker(leader);
    let error = match &answer.message {
        Some(text) => error.with_message(text),
        None => error,
    };
    match remedy(answer.code) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// No idempotent write will be allowed.
pub(super) fn not_idempotent(error: Error) -> Error {
    error.with_fatal().with_hint("grant IdempotentWrite, or set enable.idempotence=false")
}

/// What to change for records that were refused with this code.
fn remedy(told: i16) -> Option<&'static str> {
    Some(match told {
        code::CORRUPT_MESSAGE => {
            "the batch was damaged on its way: see to the network and the broker's disks"
        }
        code::UNKNOWN_TOPIC_OR_PARTITION => {
            "create the topic, or let brokers create it (auto.create.topics.enable)"
        }
        code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE => {
            "raise max.message.bytes of the topic (message.max.bytes of the brokers), or send smaller records"
        }
        code::INVALID_TOPIC_EXCEPTION => {
            "a topic's name has 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'"
        }
        code::NOT_ENOUGH_REPLICAS | code::NOT_ENOUGH_REPLICAS_AFTER_APPEND => {
            "fewer replicas are in sync than min.insync.replicas of the topic: see to the brokers, or lower it"
        }
        code::INVALID_REQUIRED_ACKS => "set acks to all, 1 or 0",
        code::TOPIC_AUTHORIZATION_FAILED => "grant the user Write on the topic",
        code::INVALID_TIMESTAMP => {
            "send timestamps within message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic"
        }
        code::UNSUPPORTED_FOR_MESSAGE_FORMAT => "the topic's message format is too old for these records",
        code::POLICY_VIOLATION => "the topic's policy refuses the records: ask whoever runs the cluster",
        code::UNSUPPORTED_COMPRESSION_TYPE => {
            "the broker or the topic does not take this codec: set another compression.type"
        }
        code::INVALID_RECORD => "a compacted topic needs a key on every record",
        _ => return None,
    })
}
