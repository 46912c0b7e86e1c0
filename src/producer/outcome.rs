//! What an answer to a produced batch means: decides, does nothing.
//!
//! Implements the producer's side of KIP-98 (sequences), KIP-360 (recovery by a new identity) and KIP-951's codes.

use crate::error::ErrorCode;

/// What is known of the batch besides the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) idempotent: bool,
    /// Records in the batch.
    pub(crate) count: i32,
    /// An earlier attempt was sent and never answered.
    pub(crate) possibly_written: bool,
    /// Earlier batches of the partition are waiting to be sent again.
    pub(crate) predecessors_pending: bool,
}

/// What to do with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is in the log.
    Acknowledge,
    /// Send it again with the same stamp. `stale_leader`: ask for metadata first.
    Retry { stale_leader: bool },
    /// It is not in the log, and its stamp is of no more use: send it again under a new producer identity.
    Restamp,
    /// Too large: send it again in two parts.
    Split,
    /// Give up. `possibly_written`: an earlier attempt may be in the log.
    Fail { possibly_written: bool },
    /// Give up, and nothing this producer sends can succeed.
    Fatal,
}

/// The decision on a batch the broker answered with `code`.
pub(crate) fn decide(code: ErrorCode, context: Context) -> Decision {
    match code.0 {
        0 => Decision::Acknowledge,
        // DUPLICATE_SEQUENCE_NUMBER: an earlier attempt is in the log, too far back for the broker to know its offset.
        46 => Decision::Acknowledge,
        // MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE
        10 | 18 if context.count > 1 => Decision::Split,
        // OUT_OF_ORDER_SEQUENCE_NUMBER: behind a batch that is being retried it is only early. Otherwise the log has
        // lost what came before, so this batch is not in it either (KIP-360).
        45 if context.idempotent => {
            if context.predecessors_pending {
                Decision::Retry { stale_leader: false }
            } else {
                Decision::Restamp
            }
        }
        // UNKNOWN_PRODUCER_ID, INVALID_PRODUCER_EPOCH, INVALID_PRODUCER_ID_MAPPING, PRODUCER_FENCED: the broker no
        // longer knows us, so it cannot tell whether it has an earlier attempt.
        59 | 47 | 49 | 90 if context.idempotent => {
            if context.possibly_written {
                Decision::Fail { possibly_written: true }
            } else {
                Decision::Restamp
            }
        }
        // CLUSTER_AUTHORIZATION_FAILED: no idempotent write will be allowed.
        31 if context.idempotent => Decision::Fatal,
        // NOT_LEADER_OR_FOLLOWER, UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, REPLICA_NOT_AVAILABLE,
        // KAFKA_STORAGE_ERROR, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID
        6 | 3 | 5 | 9 | 56 | 74 | 75 | 100 | 103 => Decision::Retry { stale_leader: true },
        _ if code.is_retriable() => Decision::Retry { stale_leader: false },
        _ => Decision::Fail { possibly_written: context.possibly_written },
    }
}

/// Whether a batch may be in the log although the broker answered with this code.
pub(crate) fn leaves_open(code: ErrorCode) -> bool {
    // UNKNOWN_SERVER_ERROR, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND, KAFKA_STORAGE_ERROR: the leader may have
    // written it before it failed. NOT_LEADER_OR_FOLLOWER also comes when a leader that has written it loses its office
    // while it waits for the replicas.
    matches!(code.0, -1 | 6 | 7 | 20 | 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Context =
        Context { idempotent: true, count: 10, possibly_written: false, predecessors_pending: false };

    #[test]
    fn every_error_code_has_its_decision() {
        use Decision::{Acknowledge, Fail, Fatal, Restamp, Retry, Split};
        let table = [
            (Acknowledge, vec![0, 46]),
            (Split, vec![10, 18]),
            (Restamp, vec![45, 47, 49, 59, 90]),
            (Fatal, vec![31]),
            (Retry { stale_leader: true }, vec![3, 5, 6, 9, 56, 74, 75, 100, 103]),
        ];
        for code in -1..140 {
            let decision = decide(ErrorCode(code), FRESH);
            let expected =
                table.iter().find(|(_, codes)| codes.contains(&code)).map(|(decision, _)| *decision);
            let expected = match expected {
                Some(expected) => expected,
                None if ErrorCode(code).is_retriable() => Retry { stale_leader: false },
                None => Fail { possibly_written: false },
            };
            assert_eq!(decision, expected, "{}", ErrorCode(code));
        }
        // Codes a produce request really gets, spelt out, so that a wrong retriable table shows.
        for code in [2, 7, 13, 19, 20, 89] {
            assert_eq!(decide(ErrorCode(code), FRESH), Retry { stale_leader: false }, "{}", ErrorCode(code));
        }
        for code in [-1, 17, 21, 29, 32, 43, 44, 87] {
            assert_eq!(
                decide(ErrorCode(code), FRESH),
                Fail { possibly_written: false },
                "{}",
                ErrorCode(code)
            );
        }
    }

    #[test]
    fn a_batch_behind_a_retried_one_keeps_its_stamp() {
        let behind = Context { predecessors_pending: true, ..FRESH };
        assert_eq!(decide(ErrorCode(45), behind), Decision::Retry { stale_leader: false });
    }

    #[test]
    fn a_batch_that_may_be_written_is_never_written_under_another_identity() {
        let unknown = Context { possibly_written: true, ..FRESH };
        for code in [47, 49, 59, 90] {
            assert_eq!(decide(ErrorCode(code), unknown), Decision::Fail { possibly_written: true });
        }
    }

    #[test]
    fn codes_that_can_come_after_the_write_leave_its_outcome_open() {
        let open: Vec<i16> = (-1..140).filter(|code| leaves_open(ErrorCode(*code))).collect();
        assert_eq!(open, [-1, 6, 7, 20, 56]);
    }

    #[test]
    fn one_record_too_large_fails_and_without_idempotence_sequences_mean_nothing() {
        let one = Context { count: 1, ..FRESH };
        assert_eq!(decide(ErrorCode(10), one), Decision::Fail { possibly_written: false });
        let plain = Context { idempotent: false, ..FRESH };
        assert_eq!(decide(ErrorCode(45), plain), Decision::Fail { possibly_written: false });
    }
}
