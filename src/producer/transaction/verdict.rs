//! What a coordinator's error means for the transaction: decides, does nothing.
//!
//! KIP-360 (a producer id that is forgotten), KIP-691 (abortable, fenced and fatal errors), KIP-890 (`TRANSACTION_ABORTABLE`).

use super::Call;
use crate::error::{Error, ErrorCode, ErrorKind, code};

/// What an error of a coordinator means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Again,
    Abort,
    /// The coordinator has forgotten the producer id, or the transaction: there is nothing to end.
    Forgotten,
    Fenced,
    Fatal,
}

/// `asked`: the coordinator was reached, and may have done it.
pub(super) fn verdict(call: &Call, error: &Error, asked: bool) -> Verdict {
    let Some(answered) = error.code() else {
        return match call {
            // The answer cannot be read, or leaves out what was asked for, which therefore may not have been done.
            Call::AddPartitions(..) | Call::AddOffsets(..) | Call::CommitOffsets(..)
                if error.kind() == ErrorKind::Protocol && asked =>
            {
                Verdict::Abort
            }
            // The answer was lost, or damaged on its way: every one of these calls may be repeated.
            _ if error.is_retriable() || error.kind() == ErrorKind::Protocol => Verdict::Again,
            _ => Verdict::Fatal,
        };
    };
    match answered.0 {
        code::PRODUCER_FENCED | code::INVALID_PRODUCER_EPOCH => Verdict::Fenced,
        // The coordinator is still at the end of the transaction before, is not the coordinator, or loads.
        code::CONCURRENT_TRANSACTIONS
        | code::COORDINATOR_LOAD_IN_PROGRESS
        | code::COORDINATOR_NOT_AVAILABLE
        | code::NOT_COORDINATOR => Verdict::Again,
        // Idle for longer than transactional.id.expiration.ms.
        code::INVALID_PRODUCER_ID_MAPPING if !matches!(call, Call::Init(_)) => Verdict::Forgotten,
        // The coordinator knows of no open transaction. If we abort, the transaction never began there: whatever would
        // have joined it was refused or lost (Java sends no EndTxn then). If we commit, the coordinator has aborted it,
        // as it does with `transaction.version` 2 when one was open for too long; it is not committed already, since a
        // coordinator confirms a commit as often as it is asked.
        code::INVALID_TXN_STATE if matches!(call, Call::End { .. }) => Verdict::Forgotten,
        // The transaction cannot be committed, but the producer can go on.
        code::TRANSACTION_ABORTABLE
        | code::UNKNOWN_PRODUCER_ID
        | code::TOPIC_AUTHORIZATION_FAILED
        | code::GROUP_AUTHORIZATION_FAILED
        | code::OPERATION_NOT_ATTEMPTED
        | code::INVALID_TOPIC_EXCEPTION
        | code::OFFSET_METADATA_TOO_LARGE
            if !matches!(call, Call::Init(_)) =>
        {
            Verdict::Abort
        }
        told if is_of_the_group(told) && !matches!(call, Call::Init(_)) => Verdict::Abort,
        // The code says nothing of the producer, and what was asked for may not have been done.
        _ if says_nothing(answered)
            && matches!(call, Call::AddPartitions(..) | Call::AddOffsets(..) | Call::CommitOffsets(..)) =>
        {
            Verdict::Abort
        }
        // Asking for these twice does no more than asking once.
        _ if says_nothing(answered)
            && matches!(call, Call::Init(Some(_)) | Call::End { commit: false, .. }) =>
        {
            Verdict::Again
        }
        _ if answered.is_retriable() => Verdict::Again,
        _ => Verdict::Fatal,
    }
}

/// The group has gone on without the member whose offsets were to be committed.
pub(in crate::producer) fn is_of_the_group(told: i16) -> bool {
    matches!(
        told,
        code::ILLEGAL_GENERATION
            | code::UNKNOWN_MEMBER_ID
            | code::REBALANCE_IN_PROGRESS
            | code::FENCED_INSTANCE_ID
            | code::FENCED_MEMBER_EPOCH
            | code::STALE_MEMBER_EPOCH
    )
}

/// A broker that does not know itself what is wrong, or says it in a way that is newer than this client.
pub(in crate::producer) fn says_nothing(answered: ErrorCode) -> bool {
    answered.0 == code::UNKNOWN_SERVER_ERROR || !answered.is_known()
}

/// Whether a coordinator may have done what it was asked for although it answered with this error. The codes named below
/// also come when its log did not take the change in time, or took it just before the coordinator moved.
pub(super) fn leaves_open(error: &Error) -> bool {
    error.code().is_none_or(|told| {
        says_nothing(told)
            || matches!(
                told.0,
                code::COORDINATOR_LOAD_IN_PROGRESS
                    | code::COORDINATOR_NOT_AVAILABLE
                    | code::NOT_COORDINATOR
                    | code::REQUEST_TIMED_OUT
            )
    })
}
