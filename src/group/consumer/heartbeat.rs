//! What a heartbeat says, when it is sent, and what its answer means. A heartbeat counts as received only once it is
//! answered: a coordinator that may have missed something is told everything again.

use std::{sync::Arc, time::Duration};

use super::{ConsumerHeartbeat, ConsumerHeartbeatAnswer, FIRST_INTERVAL, Member, Reported, State};
use crate::{
    error::Error,
    flights::Token,
    group::{Action, Exchange, Request, refusal::CONSUMER_HEARTBEAT},
    time::Instant,
};

impl Member {
    pub(super) fn current(&self) -> Reported {
        let owned = self.owned.keys().copied().collect();
        Reported { topics: self.topics.clone(), pattern: self.pattern.clone(), owned }
    }

    /// Whether there is something to say before the next heartbeat is due.
    pub(super) fn has_news(&self) -> bool {
        self.told.as_ref().or(self.telling.as_ref()).is_none_or(|told| {
            told.topics != self.topics
                || told.pattern != self.pattern
                || !told.owned.iter().eq(self.owned.keys())
        })
    }

    /// Sends a heartbeat with what has changed, or with everything if the coordinator may know nothing.
    pub(super) fn beat(&mut self, now: Instant) {
        let (told, current) = (self.told.take(), self.current());
        // Taken, so that without an answer to this heartbeat the next one says everything.
        let is_full = told.is_none();
        let changed = |differs: fn(&Reported, &Reported) -> bool| {
            told.as_ref().is_none_or(|told| differs(told, &current))
        };
        let pattern = match &current.pattern {
            Some(pattern) => {
                changed(|told, current| told.pattern != current.pattern).then(|| Arc::clone(pattern))
            }
            None => self.may_have_pattern.then(|| Arc::from("")),
        };
        self.may_have_pattern |= current.pattern.is_some();
        let beat = ConsumerHeartbeat {
            member_id: self.member_id.clone(),
            epoch: self.epoch,
            topics: changed(|told, current| told.topics != current.topics).then(|| current.topics.clone()),
            pattern,
            owned: changed(|told, current| told.owned != current.owned)
                .then(|| current.owned.iter().copied().collect()),
            is_full,
        };
        self.telling = Some(current);
        self.unanswered_since.get_or_insert(now);
        let token = self.send(beat, now + self.patience());
        if let State::Joining { exchange } | State::Joined { exchange } = &mut self.state {
            *exchange = Exchange::Out { token };
        }
    }

    /// A coordinator that hangs is given up while another attempt can still save the session, which lasts for several
    /// intervals (the broker's default: nine).
    pub(super) fn patience(&self) -> Duration {
        self.settings.request_timeout.min((self.interval * 3).max(LEAST_PATIENCE))
    }

    pub(super) fn send(&mut self, beat: ConsumerHeartbeat, deadline: Instant) -> Token {
        let token = self.tokens.next();
        self.actions.push_back(Action::Send { token, request: Request::ConsumerHeartbeat(beat), deadline });
        token
    }

    /// Beats at once if there is something to say; not while it waits to repeat what failed.
    pub(super) fn hurry(&mut self, now: Instant) {
        // A coordinator that changes the target with every answer must not be asked without a pause.
        if self.told.is_some() && self.has_news() && self.hurried < MOST_HURRIED {
            self.hurried += 1;
            self.beat_now(now);
        }
    }

    pub(super) fn beat_now(&mut self, now: Instant) {
        if let State::Joined { exchange: Exchange::Due(_) } = self.state {
            self.beat(now);
        }
    }

    pub(super) fn on_beat(&mut self, now: Instant, answer: ConsumerHeartbeatAnswer, told: Option<Reported>) {
        if answer.epoch <= 0 {
            let error = Error::protocol(format!("the coordinator answers with the epoch {}", answer.epoch));
            return self.stop(now, error.with_api(CONSUMER_HEARTBEAT));
        }
        // A member that is let in and lost again at once joins after ever longer pauses.
        self.is_fresh = !self.is_joined();
        if !self.is_fresh {
            self.backoff.reset();
        }
        self.unreleased_since = None;
        self.has_begun_anew = false;
        self.is_counted = true;
        self.may_have_pattern &= told.as_ref().is_none_or(|told| told.pattern.is_some());
        self.told = told;
        self.epoch = answer.epoch;
        self.interval = match answer.interval {
            Duration::ZERO => FIRST_INTERVAL,
            interval => interval.max(LEAST_INTERVAL),
        };
        if let Some(id) = answer.member_id.filter(|id| !id.is_empty()) {
            self.member_id = id;
        }
        self.state = State::Joined { exchange: Exchange::Due(now + self.interval) };
        // An earlier answer that was lost may have named this target already, since the first unanswered heartbeat at
        // most; and not before a session time-out ago, after which the coordinator would have dropped us.
        let asked = self.unanswered_since.take().unwrap_or(now);
        let asked = now.checked_sub(self.settings.session_timeout).map_or(asked, |known| asked.max(known));
        // Heartbeats that do not wait for their time are answered before the names of new topics can have been looked up.
        self.is_unheard = answer.assignment.is_some() || self.is_unheard && self.hurried > 0;
        if let Some(assignment) = answer.assignment {
            let target = assignment.into_iter().collect();
            if target != self.target {
                (self.target, self.target_since) = (target, asked);
            }
        }
        self.reconcile();
        self.hurry(now);
    }
}

/// A broker that asks for heartbeats without a pause, or with hardly any, is not followed.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
const LEAST_PATIENCE: Duration = Duration::from_secs(3);
/// Steps of one reconciliation that are told at once: a member with much to give back has a handful.
const MOST_HURRIED: u32 = 16;
