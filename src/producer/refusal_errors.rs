//! What a refusal of records says to the user: the broker's code and words, the place, and the setting, grant or broker to see
//! to. It decides nothing about a batch's fate.

use super::sender::Answer;
use crate::error::{Error, ErrorKind, code};

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
    let error = error.with_fatal();
    match error.kind() {
        ErrorKind::Broker(told) if told.0 != code::CLUSTER_AUTHORIZATION_FAILED => {
            error.with_hint("see what the broker's own log says of it, or set enable.idempotence=false")
        }
        ErrorKind::Broker(_) | ErrorKind::Unsupported => {
            error.with_hint("grant IdempotentWrite, or set enable.idempotence=false")
        }
        // A refused password or certificate says by itself what to change.
        _ => error,
    }
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
        code::UNKNOWN_SERVER_ERROR => "see what the broker's own log says of it",
        code::LEADER_NOT_AVAILABLE | code::NOT_LEADER_OR_FOLLOWER | code::REPLICA_NOT_AVAILABLE => {
            "the partition has no leader, or changes it: see to the brokers of its replicas, or raise delivery.timeout.ms"
        }
        code::REQUEST_TIMED_OUT => {
            "the replicas in sync did not confirm in time: see to them, or raise request.timeout.ms"
        }
        code::KAFKA_STORAGE_ERROR => "a disk of the broker failed: see to its log.dirs",
        code::THROTTLING_QUOTA_EXCEEDED => "the user's or client's quota is used up: send less, or raise it",
        code::UNSUPPORTED_VERSION | code::INVALID_REQUEST => {
            "the broker does not understand the request: see whether a proxy stands between, and which version it has"
        }
        code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::UNKNOWN_PRODUCER_ID => {
            "the log has lost earlier records of this producer: see whether retention is shorter than the producer's pauses, \
             or unclean.leader.election.enable is on"
        }
        code::INVALID_PRODUCER_EPOCH | code::PRODUCER_FENCED | code::INVALID_PRODUCER_ID_MAPPING => {
            "another producer uses the id, or the transaction was open for longer than transaction.timeout.ms: give each \
             producer its own transactional.id"
        }
        code::INVALID_TXN_STATE | code::TRANSACTION_ABORTABLE => {
            "the transaction is not open any more: abort it, and see whether it takes longer than transaction.timeout.ms"
        }
        code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED => "grant the user Write on the transactional.id",
        code::CLUSTER_AUTHORIZATION_FAILED => "grant the user IdempotentWrite on the cluster",
        code::UNKNOWN_TOPIC_ID | code::INCONSISTENT_TOPIC_ID => {
            "the topic was deleted, or made anew: create it, or send to its successor"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn every_refusal_of_records_has_its_remedy() {
        // What Kafka's brokers answer produce requests with, from its sources.
        let told = [
            -1, 2, 3, 5, 6, 7, 9, 10, 17, 18, 19, 20, 21, 29, 31, 32, 35, 42, 43, 44, 45, 47, 48, 49, 53, 56,
            59, 76, 87, 89, 90, 100, 103, 120,
        ];
        for code in told {
            let answer = Answer { code, message: Some("the broker's words".into()), ..Answer::default() };
            let error = broker_error(&answer, 3);
            assert!(error.hint().is_some(), "{}", ErrorCode(code));
            let text = error.to_string();
            assert!(text.contains("the broker's words") && text.contains("broker 3"), "{text}");
        }
    }
}
