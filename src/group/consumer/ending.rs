//! How a membership ends (by leaving, by a loss, by a refusal of the coordinator), and which heartbeats are only
//! repeated. It must never take a passing error for the end, nor repeat a heartbeat without a pause.

use std::time::Duration;

use tracing::{info, warn};

use super::{ConsumerHeartbeat, Member, State};
use crate::{
    config::settings::GroupProtocol,
    error::{Error, ErrorKind},
    group::{
        Action, Exchange, GroupMembershipOperation, code,
        refusal::{WITHOUT_CONSUMER_PROTOCOL, explain},
    },
    time::Instant,
};

impl Member {
    /// A commit was refused because of the member's epoch.
    pub(crate) fn handle_fenced_commit(&mut self, now: Instant, epoch: i32, error: i16) {
        if !self.is_joined() || epoch != self.epoch {
            return;
        }
        match error {
            // The coordinator is ahead: the next answer says how far.
            code::STALE_MEMBER_EPOCH => self.beat_now(now),
            _ => self.on_error(now, "OffsetCommit", error, None),
        }
    }

    pub(crate) fn set_departure(&mut self, departure: GroupMembershipOperation) {
        self.departure = departure;
    }

    /// Leaves the group, if in it; `is_idle` says when that is done. A static member leaves for a while: its partitions
    /// wait for it until its session ends.
    pub(crate) fn handle_close(&mut self, now: Instant) {
        self.topics.clear();
        self.pattern = None;
        self.leave(now);
    }

    /// The coordinator has given our partitions away, or may have.
    pub(super) fn lose(&mut self, now: Instant) {
        let was_joining = self.is_joining();
        self.is_counted = false;
        self.drop_assignment();
        if was_joining {
            // A coordinator that answers so again and again must not be asked without a pause.
            return self.retry(now);
        }
        let pause = if self.is_fresh { self.backoff.next(&mut self.rng) } else { Duration::ZERO };
        self.state = State::Idle { rejoin: true, not_before: now + pause };
        self.join_if_idle(now);
    }

    pub(super) fn drop_assignment(&mut self) {
        let mut partitions: Vec<_> = std::mem::take(&mut self.owned).into_values().collect();
        partitions.sort();
        self.revoking = None;
        self.target.clear();
        self.told = None;
        self.epoch = 0;
        self.hurried = 0;
        if !partitions.is_empty() {
            self.actions.push_back(Action::Lost { partitions });
        }
    }

    /// Gives up until the user polls again, and for a pause: a poll that finds the same again must not flood the group.
    pub(super) fn stop(&mut self, now: Instant, error: Error) {
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now + self.backoff.next(&mut self.rng) };
        self.actions.push_back(Action::Fail(error));
    }

    /// The protocol cannot be used here: with `group.protocol=auto` the classic one replaces it, otherwise the user gets
    /// the error.
    pub(super) fn give_up(&mut self, now: Instant, error: Error) {
        if self.settings.protocol == GroupProtocol::Auto {
            self.drop_assignment();
            self.state = State::Idle { rejoin: true, not_before: now };
            self.unusable = Some(error);
        } else {
            self.stop(now, error);
        }
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.drop_assignment();
        // As in Java, a static member that stays in its group still says that it is away for a while.
        let epoch = match (self.departure, &self.settings.instance_id) {
            (GroupMembershipOperation::LeaveGroup, _) | (GroupMembershipOperation::Default, None) => LEAVE,
            (_, Some(_)) => LEAVE_FOR_A_WHILE,
            (GroupMembershipOperation::RemainInGroup, None) => STAY,
        };
        match self.state {
            State::Fatal | State::Leaving { .. } => {}
            _ if epoch == STAY => self.on_left(now),
            // A member that is outside the group says nothing, unless it is a static one whose place is still kept.
            State::Idle { .. } if !self.is_counted || epoch != LEAVE => self.on_left(now),
            State::Idle { .. } | State::Joining { .. } | State::Joined { .. } => {
                info!("leaving the group");
                self.is_counted &= epoch != LEAVE;
                self.say_left(now, epoch);
            }
        }
    }

    fn say_left(&mut self, now: Instant, epoch: i32) {
        let beat = ConsumerHeartbeat {
            member_id: self.member_id.clone(),
            epoch,
            topics: None,
            pattern: None,
            owned: None,
            is_full: false,
        };
        let token = self.send(beat, now + self.settings.request_timeout);
        self.state = State::Leaving { token };
    }

    /// A coordinator that counts this member in already, under an epoch of which it has not heard, lets nobody join under its
    /// id before the session has ended. It is told that the old membership is over, and asked anew. False: it was, in vain.
    fn begin_anew(&mut self, now: Instant) -> bool {
        if std::mem::replace(&mut self.has_begun_anew, true) {
            return false;
        }
        self.say_left(now, if self.settings.instance_id.is_some() { LEAVE_FOR_A_WHILE } else { LEAVE });
        true
    }

    pub(super) fn on_left(&mut self, now: Instant) {
        self.state = State::Idle { rejoin: self.is_subscribed(), not_before: now };
        self.join_if_idle(now);
    }

    /// No answer came: the connection was lost, the deadline passed, or the coordinator is not known.
    pub(super) fn on_failure(&mut self, now: Instant, error: Error) {
        match error.code() {
            Some(code) => self.on_error(now, error.api().unwrap_or("FindCoordinator"), code.0, None),
            None if error.kind() == ErrorKind::Unsupported => {
                self.give_up(now, error.with_hint(WITHOUT_CONSUMER_PROTOCOL));
            }
            None if error.is_retriable() => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            None => self.stop(now, error),
        }
    }

    pub(super) fn on_error(&mut self, now: Instant, api: &'static str, error: i16, message: Option<&str>) {
        // The instance may be this member's own.
        let is_in_the_way = matches!(error, code::FENCED_MEMBER_EPOCH | code::UNRELEASED_INSTANCE_ID);
        if is_in_the_way && self.is_joining() && self.begin_anew(now) {
            return;
        }
        let explained = || {
            let mut refused = explain(api, error);
            if let (code::INVALID_REGULAR_EXPRESSION, Some(pattern)) = (error, &self.pattern) {
                refused = refused.with_message(&format!("the broker does not take the pattern '{pattern}'"));
            }
            match message {
                Some(message) => refused.with_message(message),
                None => refused,
            }
        };
        match error {
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            code::COORDINATOR_LOAD_IN_PROGRESS | code::UNKNOWN_SERVER_ERROR => self.retry(now),
            code::FENCED_MEMBER_EPOCH | code::UNKNOWN_MEMBER_ID | code::STALE_MEMBER_EPOCH => self.lose(now),
            // The group was deleted, or is of another kind now.
            code::GROUP_ID_NOT_FOUND if self.is_joined() => self.lose(now),
            code::GROUP_ID_NOT_FOUND | code::UNSUPPORTED_VERSION => self.give_up(now, explained()),
            code::FENCED_INSTANCE_ID => {
                let fenced = explained()
                    .with_fatal()
                    .with_hint("give every member of the group its own group.instance.id");
                self.drop_assignment();
                self.actions.push_back(Action::Fail(fenced));
                self.state = State::Fatal;
            }
            code::UNRELEASED_INSTANCE_ID => {
                let since = *self.unreleased_since.get_or_insert(now);
                if now < since + self.settings.session_timeout {
                    if since == now {
                        warn!(
                            "the group.instance.id is still another member's: waiting until its session ends"
                        );
                    }
                    return self.retry(now);
                }
                self.unreleased_since = None;
                self.stop(now, explained());
            }
            // The member goes on reading what it has; the coordinator checks again with each heartbeat.
            code::TOPIC_AUTHORIZATION_FAILED if self.is_joined() => {
                self.actions.push_back(Action::Fail(explained()));
                self.retry(now);
            }
            _ if Error::from_code(api, error).is_retriable() => self.retry(now),
            _ => self.stop(now, explained()),
        }
    }

    /// Asks again after a pause, and says everything: nobody knows what the coordinator has heard.
    pub(super) fn retry(&mut self, now: Instant) {
        let due = Exchange::Due(now + self.backoff.next(&mut self.rng));
        if let State::Joining { exchange } | State::Joined { exchange } = &mut self.state {
            *exchange = due;
        }
    }
}

pub(super) const LEAVE: i32 = -1;
pub(super) const LEAVE_FOR_A_WHILE: i32 = -2;
/// No epoch that is sent.
const STAY: i32 = i32::MIN;
