//! What an answer to a produced batch means: decides, does nothing.
//!
//! Implements the producer's side of KIP-98 (sequences), KIP-126 (splitting), KIP-360 (recovery by a new epoch) and
//! KIP-951's codes. A batch that may be in the log is never sent under another stamp.

use crate::error::{ErrorCode, code};

/// What is known of the batch besides the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) idempotent: bool,
    /// The batch is part of a transaction, which can be aborted.
    pub(crate) transactional: bool,
    /// Records in the batch.
    pub(crate) count: i32,
    /// An earlier attempt was sent and never answered, or this answer leaves open what happened.
    pub(crate) possibly_written: bool,
    /// Earlier batches of the partition are waiting to be sent again or on their way, or were so when this one left:
    /// answers may come in another order than batches are written in.
    pub(crate) predecessors_pending: bool,
    /// An earlier batch was given up, so that the log still expects that one's sequence number.
    pub(crate) behind_gap: bool,
}

/// What to do with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is in the log.
    Acknowledge,
    /// Send it again with the same stamp, after a pause. `stale_leader`: ask for metadata first.
    Retry { stale_leader: bool },
    /// It came before its predecessors, which go first: send it again with the same stamp behind them.
    Early,
    /// It is not in the log, because a predecessor was taken out: send it again with the number that fits.
    Renumber,
    /// It is not in the log, and the log does not go on where we think: send it again under a new epoch.
    Bump,
    /// It is not in the log, and the broker refuses our producer id: send it again under another one.
    Reidentify,
    /// Too large: send it again in two parts.
    Split,
    /// Give up. `possibly_written`: it may be in the log.
    Fail { possibly_written: bool },
    /// Give up, and nothing this producer sends can succeed.
    Fatal,
}

/// The decision on a batch the broker answered with `code`.
pub(crate) fn decide(code: ErrorCode, context: Context) -> Decision {
    let fail = Decision::Fail { possibly_written: context.possibly_written };
    match code.0 {
        code::NONE => Decision::Acknowledge,
        // An earlier attempt is in the log, too far back for the broker to know its offset.
        code::DUPLICATE_SEQUENCE_NUMBER => Decision::Acknowledge,
        // The halves keep the sequence numbers of the whole, so that the broker does not append them if an earlier
        // attempt is in the log.
        code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE if context.count > 1 => Decision::Split,
        // While an earlier batch is being sent again this one is only early, and behind one that was given up this code
        // had to come. Otherwise either the log has lost the batches before and this one with them, or the broker
        // remembers only later ones: after a clean restart it knows just the last batch of each producer.
        code::OUT_OF_ORDER_SEQUENCE_NUMBER if context.idempotent => {
            if context.predecessors_pending {
                Decision::Early
            } else if context.possibly_written {
                fail
            } else if context.behind_gap {
                Decision::Renumber
            } else if context.transactional {
                fail
            } else {
                Decision::Bump
            }
        }
        // The broker has forgotten us, so it cannot tell whether it has an earlier attempt (KIP-360).
        code::UNKNOWN_PRODUCER_ID
            if context.idempotent && !context.possibly_written && !context.transactional =>
        {
            Decision::Bump
        }
        // Somebody else uses our id.
        code::INVALID_PRODUCER_EPOCH | code::INVALID_PRODUCER_ID_MAPPING | code::PRODUCER_FENCED
            if context.idempotent && !context.possibly_written && !context.transactional =>
        {
            Decision::Reidentify
        }
        // The principal may not write idempotently, so that nothing this producer sends can succeed.
        code::CLUSTER_AUTHORIZATION_FAILED if context.idempotent => Decision::Fatal,
        code::NOT_LEADER_OR_FOLLOWER
        | code::UNKNOWN_TOPIC_OR_PARTITION
        | code::LEADER_NOT_AVAILABLE
        | code::REPLICA_NOT_AVAILABLE
        | code::KAFKA_STORAGE_ERROR
        | code::FENCED_LEADER_EPOCH
        | code::UNKNOWN_LEADER_EPOCH
        | code::UNKNOWN_TOPIC_ID
        | code::INCONSISTENT_TOPIC_ID => Decision::Retry { stale_leader: true },
        _ if code.is_retriable() => Decision::Retry { stale_leader: false },
        _ => fail,
    }
}

/// Whether a batch may be in the log although the broker answered with this code.
pub(crate) fn leaves_open(code: ErrorCode) -> bool {
    // NOT_LEADER_OR_FOLLOWER and UNKNOWN_TOPIC_OR_PARTITION also come when a leader that has appended the batch loses its
    // leadership, or the partition is moved away from it, while it waits for the replicas. With the others the leader may
    // have appended the batch before it failed. A code that this client does not know says nothing.
    let is_news = !code.is_known();
    is_news
        || matches!(
            code.0,
            code::UNKNOWN_SERVER_ERROR
                | code::UNKNOWN_TOPIC_OR_PARTITION
                | code::NOT_LEADER_OR_FOLLOWER
                | code::REQUEST_TIMED_OUT
                | code::NOT_ENOUGH_REPLICAS_AFTER_APPEND
                | code::KAFKA_STORAGE_ERROR
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Context = Context {
        idempotent: true,
        transactional: false,
        count: 10,
        possibly_written: false,
        predecessors_pending: false,
        behind_gap: false,
    };

    #[test]
    fn every_error_code_has_its_decision() {
        use Decision::{Acknowledge, Bump, Fail, Fatal, Reidentify, Retry, Split};
        let table = [
            (Acknowledge, vec![0, 46]),
            (Split, vec![10, 18]),
            (Bump, vec![45, 59]),
            (Reidentify, vec![47, 49, 90]),
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
    fn a_batch_behind_a_retried_one_keeps_its_stamp_and_behind_a_gap_it_gets_the_next_number() {
        let behind = Context { predecessors_pending: true, ..FRESH };
        assert_eq!(decide(ErrorCode(45), behind), Decision::Early);
        assert_eq!(decide(ErrorCode(45), Context { possibly_written: true, ..behind }), Decision::Early);
        let gap = Context { behind_gap: true, ..FRESH };
        assert_eq!(decide(ErrorCode(45), gap), Decision::Renumber);
    }

    #[test]
    fn a_batch_that_may_be_written_is_never_written_under_another_stamp() {
        for behind_gap in [false, true] {
            let unknown = Context { possibly_written: true, behind_gap, ..FRESH };
            for code in -1..140 {
                let decision = decide(ErrorCode(code), unknown);
                let anew = [Decision::Bump, Decision::Reidentify, Decision::Renumber].contains(&decision);
                assert!(!anew, "{}: {decision:?}", ErrorCode(code));
            }
            for code in [45, 47, 49, 59, 90] {
                assert_eq!(decide(ErrorCode(code), unknown), Decision::Fail { possibly_written: true });
            }
        }
    }

    #[test]
    fn a_transaction_is_aborted_rather_than_its_identity_changed() {
        let transactional = Context { transactional: true, ..FRESH };
        for code in [45, 47, 49, 59, 90] {
            assert_eq!(decide(ErrorCode(code), transactional), Decision::Fail { possibly_written: false });
        }
        assert_eq!(decide(ErrorCode(45), Context { behind_gap: true, ..transactional }), Decision::Renumber);
    }

    #[test]
    fn codes_that_can_come_after_the_write_leave_its_outcome_open() {
        let (known, news): (Vec<_>, Vec<_>) =
            (-2..200).map(ErrorCode).filter(|code| leaves_open(*code)).partition(|code| code.is_known());
        assert_eq!(known, [-1, 3, 6, 7, 20, 56].map(ErrorCode));
        assert_eq!(news, (-2..200).map(ErrorCode).filter(|code| !code.is_known()).collect::<Vec<_>>());
        assert!(news.contains(&ErrorCode(-2)) && news.contains(&ErrorCode(199)));
    }

    #[test]
    fn a_batch_too_large_is_split_whatever_became_of_earlier_attempts() {
        for context in [FRESH, Context { possibly_written: true, ..FRESH }] {
            assert_eq!(decide(ErrorCode(10), context), Decision::Split);
        }
        let one = Context { count: 1, possibly_written: true, ..FRESH };
        assert_eq!(decide(ErrorCode(10), one), Decision::Fail { possibly_written: true });
    }

    #[test]
    fn one_record_too_large_fails_and_without_idempotence_sequences_mean_nothing() {
        let one = Context { count: 1, ..FRESH };
        assert_eq!(decide(ErrorCode(10), one), Decision::Fail { possibly_written: false });
        let plain = Context { idempotent: false, ..FRESH };
        for code in [45, 47, 49, 59, 90, 31] {
            assert_eq!(decide(ErrorCode(code), plain), Decision::Fail { possibly_written: false });
        }
    }
}
