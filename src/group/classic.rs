//! A member of a classic consumer group (eager rebalancing), as a pure state machine.
//!
//! It decides when to join, sync, beat, revoke and leave. It never awaits, never reads a clock, never touches offsets:
//! what a revocation commits is the consumer's business, which answers `handle_revoked` when it is done.
//! KIP-62 (background heartbeats, poll interval), KIP-345 (static members), KIP-394 (MEMBER_ID_REQUIRED), KIP-814.
//!
//! ```text
//!            subscribe, poll                 answer: leader          planned
//!   Idle ───────────────────────▶ Joining ──────────────────▶ Planning ──────▶ Syncing
//!    ▲ ▲                          ▲ ▲  ▲ └──────── answer: follower ──────────▶   │
//!    │ │ poll interval, left      │ │  │                                          │ assignment
//!    │ │                  revoked │ │  │ lost: unknown member,                    ▼
//!    │ └─── Leaving ◀─────────┐   │ │  └ illegal generation, session ended ─── Stable
//!    │                        │   │ │                                             │ rebalance,
//!    └ recoverable error      └─── Revoking ◀─────────────────────────────────────┘ new topics
//!                                                       Fatal ◀── fenced, from anywhere
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    Action, Answer, GroupSettings, Identity, Request,
    assignor::{Assignment, Assignor, Subscriber},
    code,
    wire::{decode_assignment, encode_assignment},
};
use crate::{
    error::{Error, ErrorKind},
    time::{Backoff, Instant, Rng},
};

/// One exchange with the coordinator: due at a time, or out and waited for.
#[derive(Debug, Clone, Copy)]
enum Exchange {
    Due(Instant),
    Out { epoch: u64 },
}

impl Exchange {
    fn due(self) -> Option<Instant> {
        match self {
            Self::Due(at) => Some(at),
            Self::Out { .. } => None,
        }
    }

    fn is(self, epoch: u64) -> bool {
        matches!(self, Self::Out { epoch: out } if out == epoch)
    }
}

/// The heartbeat of a member that has its assignment.
#[derive(Debug, Clone, Copy)]
struct Heart {
    beat: Exchange,
    /// The coordinator forgets a member that it has not heard of for the session timeout.
    session_ends: Instant,
}

#[derive(Debug)]
enum State {
    /// Not in the group. `rejoin` says whether the next poll joins.
    Idle {
        rejoin: bool,
    },
    Joining {
        exchange: Exchange,
    },
    /// The leader works out who gets what.
    Planning {
        generation: i32,
        epoch: u64,
    },
    Syncing {
        generation: i32,
        assignor: Assignor,
        assignments: Vec<(String, bytes::Bytes)>,
        exchange: Exchange,
    },
    Stable {
        generation: i32,
        heart: Heart,
    },
    /// Partitions are being released; the member stays alive until that is done.
    Revoking {
        generation: i32,
        heart: Heart,
        epoch: u64,
    },
    Leaving {
        epoch: u64,
    },
    /// Fenced: another member has our instance id.
    Fatal,
}

/// The member.
#[derive(Debug)]
pub(crate) struct Member {
    settings: GroupSettings,
    state: State,
    /// Empty until the coordinator gives one; outlives generations.
    member_id: String,
    topics: Vec<Arc<str>>,
    /// Partition counts that the assignment was planned with, if this member leads the group.
    planned: Option<BTreeMap<Arc<str>, i32>>,
    /// Something changed while a join or sync was out: join again after it.
    stale: bool,
    /// `None` while a poll waits: only time away from poll counts (KIP-62).
    away_since: Option<Instant>,
    next_epoch: u64,
    backoff: Backoff,
    rng: Rng,
    actions: VecDeque<Action>,
}

impl Member {
    pub(crate) fn new(settings: GroupSettings, now: Instant, rng: Rng) -> Self {
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        Self {
            settings,
            state: State::Idle { rejoin: false },
            member_id: String::new(),
            topics: Vec::new(),
            planned: None,
            stale: false,
            away_since: Some(now),
            next_epoch: 1,
            backoff,
            rng,
            actions: VecDeque::new(),
        }
    }

    /// Who commits, or `None` while the member has no generation of its own.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let (State::Stable { generation, .. } | State::Revoking { generation, .. }) = self.state else {
            return None;
        };
        let instance_id = self.settings.instance_id.clone();
        Some(Identity { member_id: self.member_id.clone(), generation, instance_id })
    }

    /// Whether the member is out of the group and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. } | State::Fatal)
    }

    #[cfg(test)]
    pub(crate) fn is_stable(&self) -> bool {
        matches!(self.state, State::Stable { .. })
    }

    /// Another set of topics. An empty one leaves the group.
    pub(crate) fn handle_subscription(&mut self, now: Instant, topics: Vec<Arc<str>>) {
        if topics == self.topics {
            return;
        }
        self.topics = topics;
        if self.topics.is_empty() {
            return self.leave(now, "the consumer unsubscribed");
        }
        match &self.state {
            State::Idle { .. } => self.state = State::Idle { rejoin: true },
            State::Stable { .. } => self.revoke(),
            State::Revoking { .. } | State::Fatal => {}
            State::Joining { exchange: Exchange::Due(_) } => {}
            _ => self.stale = true,
        }
        if self.away_since.is_none() {
            self.join_if_idle(now);
        }
    }

    /// The user polls: proof of life, and what makes an idle member join.
    pub(crate) fn handle_poll(&mut self, now: Instant) {
        self.away_since = None;
        self.join_if_idle(now);
    }

    /// The last waiting poll has returned: the poll interval runs from here.
    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        self.away_since = Some(now);
    }

    /// The partition counts of the cluster. The leader calls for a rebalance when its topics have others than planned.
    pub(crate) fn handle_metadata(&mut self, counts: impl Fn(&str) -> Option<i32>) {
        let State::Stable { .. } = self.state else { return };
        let Some(planned) = &self.planned else { return };
        if planned.iter().any(|(topic, count)| counts(topic).is_some_and(|now| now != *count)) {
            self.revoke();
        }
    }

    /// The leader's plan is ready. `counts` are what it was made with.
    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        epoch: u64,
        assignor: Assignor,
        counts: BTreeMap<Arc<str>, i32>,
        plan: &Assignment,
    ) {
        let State::Planning { generation, epoch: waited } = self.state else { return };
        if waited != epoch {
            return;
        }
        self.planned = Some(counts);
        let assignments =
            plan.iter().map(|(member, partitions)| (member.clone(), encode_assignment(partitions))).collect();
        self.sync(now, generation, assignor, assignments);
    }

    /// Every partition has been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, epoch: u64) {
        if matches!(self.state, State::Revoking { epoch: waited, .. } if waited == epoch) {
            self.join(now);
        }
    }

    /// A commit was refused because the generation is over.
    pub(crate) fn handle_fenced_commit(&mut self, now: Instant, generation: i32, error: i16) {
        let Some(identity) = self.identity() else { return };
        if identity.generation == generation {
            self.on_error(now, "OffsetCommit", error);
        }
    }

    /// Leaves the group, if in it; `is_idle` says when that is done. A static member stays (KIP-345): its partitions
    /// wait for it until the session times out.
    pub(crate) fn handle_close(&mut self, now: Instant) {
        self.topics.clear();
        self.leave(now, "the consumer closed");
    }

    /// The answer to a request, or why there is none.
    pub(crate) fn handle_answer(&mut self, now: Instant, epoch: u64, answer: Result<Answer, Error>) {
        let waited = match &self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => exchange.is(epoch),
            State::Stable { heart, .. } | State::Revoking { heart, .. } => heart.beat.is(epoch),
            State::Leaving { epoch: waited } => *waited == epoch,
            State::Idle { .. } | State::Planning { .. } | State::Fatal => false,
        };
        if !waited {
            return;
        }
        if matches!(self.state, State::Leaving { .. }) {
            // Whatever the answer: the session timeout does the rest.
            return self.on_left(now);
        }
        match answer {
            Err(error) => self.on_failure(now, error),
            Ok(Answer::Join {
                error: 0,
                generation,
                member_id,
                leader,
                protocol,
                members,
                skip_assignment,
            }) => {
                self.backoff.reset();
                self.member_id = member_id;
                let leads = leader == self.member_id;
                self.on_joined(now, generation, &protocol, leads.then_some(members), skip_assignment);
            }
            Ok(Answer::Join { error: code::MEMBER_ID_REQUIRED, member_id, .. }) => {
                // KIP-394: the coordinator wants to see the id again, so that a lost answer leaves no ghost behind.
                self.member_id = member_id;
                self.join(now);
            }
            Ok(Answer::Sync { error: 0, assignment }) => self.on_synced(now, &assignment),
            Ok(Answer::Heartbeat { error: 0 }) => self.on_beat(now),
            Ok(Answer::Join { error, .. }) => self.on_error(now, "JoinGroup", error),
            Ok(Answer::Sync { error, .. }) => self.on_error(now, "SyncGroup", error),
            Ok(Answer::Heartbeat { error }) => self.on_error(now, "Heartbeat", error),
            Ok(Answer::Leave { error }) => self.on_error(now, "LeaveGroup", error),
        }
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => exchange.due(),
            State::Stable { heart, .. } | State::Revoking { heart, .. } => {
                Some(heart.beat.due().map_or(heart.session_ends, |due| due.min(heart.session_ends)))
            }
            _ => None,
        };
        due.into_iter().chain(self.poll_interval_ends()).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_interval_ends().is_some_and(|ends| ends <= now) {
            // KIP-62: a member that does not poll gives its partitions to those that do, and joins again when it polls.
            self.leave(now, "max.poll.interval.ms passed without a poll");
            return;
        }
        match &mut self.state {
            State::Joining { exchange } if exchange.due().is_some_and(|due| due <= now) => {
                let request =
                    Request::Join { member_id: self.member_id.clone(), topics: self.topics.clone() };
                // Java: the coordinator holds the answer back for as long as other members may take.
                let patience = self.settings.max_poll_interval + std::time::Duration::from_secs(5);
                let epoch = send(
                    &mut self.next_epoch,
                    &mut self.actions,
                    request,
                    now + patience.max(self.settings.request_timeout),
                );
                *exchange = Exchange::Out { epoch };
                self.stale = false;
            }
            State::Syncing { generation, assignor, assignments, exchange }
                if exchange.due().is_some_and(|due| due <= now) =>
            {
                let request = Request::Sync {
                    member_id: self.member_id.clone(),
                    generation: *generation,
                    assignor: *assignor,
                    assignments: assignments.clone(),
                };
                // The coordinator waits for the leader's plan, as long as for a join.
                let patience = self.settings.max_poll_interval.max(self.settings.request_timeout);
                let epoch = send(&mut self.next_epoch, &mut self.actions, request, now + patience);
                *exchange = Exchange::Out { epoch };
            }
            State::Stable { generation, heart } | State::Revoking { generation, heart, .. } => {
                if heart.session_ends <= now {
                    self.actions.push_back(Action::ForgetCoordinator);
                    return self.lose(now);
                }
                if heart.beat.due().is_some_and(|due| due <= now) {
                    let request =
                        Request::Heartbeat { member_id: self.member_id.clone(), generation: *generation };
                    let deadline = heart.session_ends.min(now + self.settings.request_timeout);
                    let epoch = send(&mut self.next_epoch, &mut self.actions, request, deadline);
                    heart.beat = Exchange::Out { epoch };
                }
            }
            _ => {}
        }
    }

    fn poll_interval_ends(&self) -> Option<Instant> {
        match self.state {
            State::Idle { .. } | State::Leaving { .. } | State::Fatal => None,
            _ => self.away_since.map(|since| since + self.settings.max_poll_interval),
        }
    }

    fn epoch(&mut self) -> u64 {
        self.next_epoch += 1;
        self.next_epoch - 1
    }

    fn join_if_idle(&mut self, now: Instant) {
        if matches!(self.state, State::Idle { rejoin: true }) && !self.topics.is_empty() {
            self.join(now);
        }
    }

    fn join(&mut self, now: Instant) {
        self.planned = None;
        self.state = State::Joining { exchange: Exchange::Due(now) };
        self.handle_timeout(now);
    }

    fn sync(
        &mut self,
        now: Instant,
        generation: i32,
        assignor: Assignor,
        assignments: Vec<(String, bytes::Bytes)>,
    ) {
        let exchange = Exchange::Due(now);
        self.state = State::Syncing { generation, assignor, assignments, exchange };
        self.handle_timeout(now);
    }

    fn on_joined(
        &mut self,
        now: Instant,
        generation: i32,
        protocol: &str,
        members: Option<Vec<Subscriber>>,
        skip_assignment: bool,
    ) {
        let Some(assignor) = Assignor::named(protocol) else {
            let error = Error::protocol(format!(
                "the group uses the assignor '{protocol}', which this member did not offer"
            ))
            .with_api("JoinGroup");
            return self.stop(error);
        };
        match members {
            Some(members) if !skip_assignment => {
                let epoch = self.epoch();
                self.state = State::Planning { generation, epoch };
                self.actions.push_back(Action::Plan { epoch, assignor, members });
            }
            // KIP-814: the coordinator still has the assignment of the leader's earlier life.
            _ => self.sync(now, generation, assignor, Vec::new()),
        }
    }

    fn on_synced(&mut self, now: Instant, assignment: &[u8]) {
        let State::Syncing { generation, .. } = self.state else { return };
        self.backoff.reset();
        if self.stale {
            return self.join(now);
        }
        let partitions = match decode_assignment(assignment) {
            Ok(partitions) => partitions,
            Err(error) => return self.stop(error),
        };
        let heart = Heart {
            beat: Exchange::Due(now + self.settings.heartbeat_interval),
            session_ends: now + self.settings.session_timeout,
        };
        self.state = State::Stable { generation, heart };
        self.actions.push_back(Action::Assign { partitions });
    }

    fn on_beat(&mut self, now: Instant) {
        self.backoff.reset();
        let (beat, session) = (self.settings.heartbeat_interval, self.settings.session_timeout);
        if let State::Stable { heart, .. } | State::Revoking { heart, .. } = &mut self.state {
            *heart = Heart { beat: Exchange::Due(now + beat), session_ends: now + session };
        }
    }

    fn revoke(&mut self) {
        let State::Stable { generation, heart } = self.state else { return };
        let epoch = self.epoch();
        self.state = State::Revoking { generation, heart, epoch };
        self.actions.push_back(Action::Revoke { epoch });
    }

    /// The coordinator has given our partitions away, or may have.
    fn lose(&mut self, now: Instant) {
        if matches!(self.state, State::Joining { .. }) {
            // Nothing is lost yet, and a coordinator that says so again and again must not be asked without a pause.
            return self.retry(now);
        }
        self.drop_assignment();
        self.join(now);
    }

    fn drop_assignment(&mut self) {
        if matches!(self.state, State::Stable { .. } | State::Revoking { .. }) {
            self.actions.push_back(Action::Lost);
        }
        self.planned = None;
    }

    /// Gives up until the user polls again.
    fn stop(&mut self, error: Error) {
        self.drop_assignment();
        self.state = State::Idle { rejoin: true };
        self.actions.push_back(Action::Fail(error));
    }

    fn leave(&mut self, now: Instant, reason: &'static str) {
        self.drop_assignment();
        let known = !self.member_id.is_empty() && self.settings.instance_id.is_none();
        match self.state {
            State::Fatal | State::Leaving { .. } => {}
            State::Idle { .. } => self.on_left(now),
            _ if known => {
                let request = Request::Leave { member_id: std::mem::take(&mut self.member_id), reason };
                let deadline = now + self.settings.request_timeout;
                let epoch = send(&mut self.next_epoch, &mut self.actions, request, deadline);
                self.state = State::Leaving { epoch };
            }
            _ => self.on_left(now),
        }
    }

    fn on_left(&mut self, now: Instant) {
        self.stale = false;
        self.state = State::Idle { rejoin: !self.topics.is_empty() };
        if self.away_since.is_none() {
            self.join_if_idle(now);
        }
    }

    /// No answer came: the connection was lost, the deadline passed, or the coordinator is not known.
    fn on_failure(&mut self, now: Instant, error: Error) {
        match error.code() {
            Some(code) => self.on_error(now, error.api().unwrap_or("FindCoordinator"), code.0),
            None if error.is_retriable() => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            None => self.stop(error),
        }
    }

    fn on_error(&mut self, now: Instant, api: &'static str, error: i16) {
        match error {
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            code::COORDINATOR_LOAD_IN_PROGRESS => self.retry(now),
            code::REBALANCE_IN_PROGRESS => match self.state {
                State::Stable { .. } => {
                    self.on_beat(now);
                    self.revoke();
                }
                State::Revoking { .. } => self.on_beat(now),
                // The coordinator holds a join back until the rebalance is under way, so this does not spin.
                State::Syncing { .. } => self.join(now),
                _ => self.retry(now),
            },
            code::UNKNOWN_MEMBER_ID => {
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
            _ => self.stop(explain(api, error)),
        }
    }

    /// Asks again after a pause.
    fn retry(&mut self, now: Instant) {
        let due = Exchange::Due(now + self.backoff.next(&mut self.rng));
        match &mut self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => *exchange = due,
            State::Stable { heart, .. } | State::Revoking { heart, .. } => heart.beat = due,
            _ => {}
        }
    }
}

fn send(next_epoch: &mut u64, actions: &mut VecDeque<Action>, request: Request, deadline: Instant) -> u64 {
    let epoch = *next_epoch;
    *next_epoch += 1;
    actions.push_back(Action::Send { epoch, request, deadline });
    epoch
}

/// What a user can do about a refusal.
fn explain(api: &'static str, error: i16) -> Error {
    let refused = match error {
        // The code alone says nothing about who refused what.
        code::GROUP_MAX_SIZE_REACHED => {
            Error::new(ErrorKind::Broker(crate::error::ErrorCode(error)), "the group is full").with_api(api)
        }
        _ => Error::from_code(api, error),
    };
    match error {
        code::GROUP_AUTHORIZATION_FAILED => refused.with_hint("grant the user Read on the group (group.id)"),
        code::INCONSISTENT_GROUP_PROTOCOL => refused.with_hint(
            "the other members of the group use another protocol or none of the assignors range and roundrobin: \
             use another group.id, or change partition.assignment.strategy of the others",
        ),
        code::INVALID_SESSION_TIMEOUT => refused.with_hint(
            "set session.timeout.ms between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
        ),
        code::GROUP_MAX_SIZE_REACHED => {
            refused.with_hint("raise the broker's group.max.size or start fewer members")
        }
        _ => refused,
    }
}

#[cfg(test)]
#[path = "classic_tests.rs"]
mod tests;
