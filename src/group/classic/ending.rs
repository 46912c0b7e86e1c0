//! How a membership ends (by leaving, by a loss, by a refusal of the coordinator), and which requests are only repeated.
//! It must never take a passing error for the end, nor repeat a request without a pause.

use std::time::Duration;

use tracing::info;

use super::{Member, State, send};
use crate::{
    error::{Error, ErrorKind},
    group::{Action, Exchange, GroupMembershipOperation, Reason, Request, code, refusal::explain},
    time::Instant,
};

/// How many generations in a row may end under this member's hands before it waits with the next.
const SYNCS_AT_ONCE: u32 = 5;

impl Member {
    /// A commit was refused because the generation is over.
    pub(crate) fn handle_fenced_commit(&mut self, now: Instant, generation: i32, error: i16) {
        // A commit of partitions that are kept through a rebalance. That the next generation has begun is ordinary then.
        // That the group goes on without this member is not: its join may be held back by a broker that is not the
        // coordinator any more.
        let is_out =
            matches!(error, code::UNKNOWN_MEMBER_ID | code::GROUP_ID_NOT_FOUND | code::FENCED_INSTANCE_ID);
        let counts = self.is_in() || is_out;
        if counts && self.identity().is_some_and(|identity| identity.generation == generation) {
            self.on_error(now, "OffsetCommit", error);
        }
    }

    pub(crate) fn set_departure(&mut self, departure: GroupMembershipOperation) {
        self.departure = departure;
    }

    /// Leaves the group, if in it; `is_idle` says when that is done. A static member stays (KIP-345): its partitions
    /// wait for it until the session times out.
    pub(crate) fn handle_close(&mut self, now: Instant) {
        self.topics.clear();
        self.leave(now, "the consumer closed");
    }

    /// The coordinator has given our partitions away, or may have.
    pub(super) fn lose(&mut self, now: Instant) {
        self.reason = Reason::Borrowed("the membership was lost");
        if matches!(self.state, State::Joining { .. }) {
            // A coordinator that answers so again and again must not be asked without a pause.
            self.drop_assignment();
            return self.retry(now);
        }
        let pause = self.pause_of_churn();
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now + pause };
        self.join_if_idle(now);
    }

    /// The pause before the next join when a generation has ended while its assignment was waited for. As a rule another
    /// member has come, which must not wait for this one; but a coordinator that answers so again and again is not asked
    /// without a pause.
    fn pause_of_churn(&mut self) -> Duration {
        if !matches!(self.state, State::Syncing { .. }) {
            return Duration::ZERO;
        }
        self.failed_syncs = self.failed_syncs.saturating_add(1);
        if self.failed_syncs <= SYNCS_AT_ONCE { Duration::ZERO } else { self.churn.next(&mut self.rng) }
    }

    pub(super) fn drop_assignment(&mut self) {
        let partitions = std::mem::take(&mut self.owned);
        self.revoking.clear();
        self.claim.clear();
        self.generation = -1;
        if !partitions.is_empty() {
            self.actions.push_back(Action::Lost { partitions });
        }
        self.planned = None;
    }

    /// Gives up until the user polls again, and for a pause: a poll that finds the same again must not flood the group.
    pub(super) fn stop(&mut self, now: Instant, error: Error) {
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now + self.backoff.next(&mut self.rng) };
        self.actions.push_back(Action::Fail(error));
    }

    pub(super) fn leave(&mut self, now: Instant, reason: &'static str) {
        self.drop_assignment();
        let leaves = match self.departure {
            GroupMembershipOperation::Default => self.settings.instance_id.is_none(),
            GroupMembershipOperation::LeaveGroup => true,
            GroupMembershipOperation::RemainInGroup => false,
        };
        // A static member says that it leaves even when it is outside the group: the coordinator keeps its place, and may
        // not know yet what was lost. Any other member has no place left to give up.
        let is_outside = matches!(self.state, State::Idle { .. }) && self.settings.instance_id.is_none();
        let known = !self.member_id.is_empty() && leaves && !is_outside;
        match self.state {
            State::Fatal | State::Leaving { .. } => {}
            _ if known => {
                info!(reason, "leaving the group");
                let request = Request::Leave { member_id: std::mem::take(&mut self.member_id), reason };
                let deadline = now + self.settings.request_timeout;
                let token = send(&mut self.tokens, &mut self.actions, request, deadline);
                self.state = State::Leaving { token };
            }
            _ => self.on_left(now),
        }
    }

    pub(super) fn on_left(&mut self, now: Instant) {
        self.stale = false;
        self.state = State::Idle { rejoin: !self.topics.is_empty(), not_before: now };
        self.join_if_idle(now);
    }

    /// No answer came: the connection was lost, the deadline passed, or the coordinator is not known.
    pub(super) fn on_failure(&mut self, now: Instant, error: Error) {
        match error.code() {
            Some(code) => self.on_error(now, error.api().unwrap_or("FindCoordinator"), code.0),
            None if error.is_retriable() => {
                self.actions.push_back(Action::ForgetCoordinator);
                if self.is_given_up(now, &error) { self.lose(now) } else { self.retry(now) }
            }
            None => self.stop(now, error),
        }
    }

    /// Whether the group has given up this member, which has kept partitions through a cooperative rebalance: the
    /// coordinator could not be reached for a whole session time-out while the member was joining.
    fn is_given_up(&mut self, now: Instant, error: &Error) -> bool {
        let is_joining = matches!(self.state, State::Joining { .. } | State::Syncing { .. });
        // A join that timed out does not tell whether the coordinator is waiting for another member, or is gone. The next
        // connection does.
        let is_held = is_joining
            && error.kind() == ErrorKind::Timeout
            && matches!(error.api(), Some("JoinGroup" | "SyncGroup"));
        let since = *self.unreached_since.get_or_insert(if is_held { self.asked } else { now });
        is_joining && !is_held && !self.owned.is_empty() && since + self.settings.session_timeout <= now
    }

    pub(super) fn on_error(&mut self, now: Instant, api: &'static str, error: i16) {
        match error {
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            code::COORDINATOR_LOAD_IN_PROGRESS | code::UNKNOWN_SERVER_ERROR => self.retry(now),
            code::REBALANCE_IN_PROGRESS => match self.state {
                State::Stable { .. } => {
                    self.on_beat(now);
                    self.rebalance(now, "the group rebalances");
                }
                State::Revoking { .. } => self.on_beat(now),
                State::Syncing { .. } => {
                    let pause = self.pause_of_churn();
                    self.join_after(now, pause);
                }
                _ => self.retry(now),
            },
            // The latter is what a commit hears since Kafka 3.6 where nobody knows the group any more.
            code::UNKNOWN_MEMBER_ID | code::GROUP_ID_NOT_FOUND => {
                self.member_id.clear();
                self.lose(now);
            }
            code::ILLEGAL_GENERATION => self.lose(now),
            code::FENCED_INSTANCE_ID => {
                let fenced = Error::from_code(api, error)
                    .with_fatal()
                    .with_hint("give every member of the group its own group.instance.id");
                self.drop_assignment();
                self.actions.push_back(Action::Fail(fenced.clone()));
                self.state = State::Fatal;
            }
            _ if Error::from_code(api, error).is_retriable() => self.retry(now),
            _ => self.stop(now, explain(api, error)),
        }
    }

    /// Asks again after a pause.
    pub(super) fn retry(&mut self, now: Instant) {
        let due = Exchange::Due(now + self.backoff.next(&mut self.rng));
        match &mut self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => *exchange = due,
            State::Stable { heartbeats, .. } | State::Revoking { heartbeats, .. } => {
                heartbeats.exchange = due
            }
            _ => {}
        }
    }
}
