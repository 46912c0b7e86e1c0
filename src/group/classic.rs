//! A member of a classic consumer group, as a pure state machine. With eager rebalancing all partitions are given up before
//! it joins again; with cooperative (KIP-429) those alone that another member is to have, in a rebalance of their own.
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
    Action, Answer, Exchange, GroupMembershipOperation, GroupSettings, Identity, Reason, Request,
    assignor::{Assignment, GroupMember, Strategy},
    code,
    presence::Presence,
    refusal::explain,
    wire::{decode_assignment, encode_assignment},
};
use crate::{
    error::Error,
    flights::{Token, Tokens},
    record::TopicPartition,
    time::{Backoff, Instant, Rng},
};

/// The heartbeat of a member that has its assignment.
#[derive(Debug, Clone, Copy)]
struct Heart {
    beat: Exchange,
    /// The coordinator forgets a member that it has not heard of for the session timeout.
    session_ends: Instant,
}

#[derive(Debug)]
enum State {
    /// Not in the group. `rejoin` says whether the next poll joins, and not before when.
    Idle {
        rejoin: bool,
        not_before: Instant,
    },
    Joining {
        exchange: Exchange,
    },
    /// The leader works out who gets what.
    Planning {
        generation: i32,
        token: Token,
        /// KIP-814: the coordinator keeps the assignment it has; the plan only shows whether that still fits.
        keeps: bool,
    },
    Syncing {
        generation: i32,
        assignor: Strategy,
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
        token: Token,
    },
    Leaving {
        token: Token,
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
    /// What is ours, sorted.
    owned: Vec<TopicPartition>,
    /// What of it is being given up.
    revoking: Vec<TopicPartition>,
    /// What was ours in `generation`: what sticky assignors go by.
    claim: Vec<TopicPartition>,
    /// The last one joined; -1 before, and after a loss.
    generation: i32,
    /// Partition counts that the assignment was planned with, if this member leads the group.
    planned: Option<BTreeMap<Arc<str>, i32>>,
    /// What a leader that came back would have got by a new plan.
    expected: Option<Vec<TopicPartition>>,
    /// Something changed while a join or sync was out: join again after it.
    stale: bool,
    presence: Presence,
    departure: GroupMembershipOperation,
    /// Why it joins next (KIP-800).
    reason: Reason,
    tokens: Tokens,
    backoff: Backoff,
    rng: Rng,
    actions: VecDeque<Action>,
}

impl Member {
    pub(crate) fn new(settings: GroupSettings, now: Instant, rng: Rng) -> Self {
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        Self {
            presence: Presence::new(settings.max_poll_interval, now),
            settings,
            state: State::Idle { rejoin: false, not_before: now },
            member_id: String::new(),
            topics: Vec::new(),
            owned: Vec::new(),
            revoking: Vec::new(),
            claim: Vec::new(),
            generation: -1,
            planned: None,
            expected: None,
            stale: false,
            departure: GroupMembershipOperation::Default,
            reason: Reason::default(),
            tokens: Tokens::default(),
            backoff,
            rng,
            actions: VecDeque::new(),
        }
    }

    /// In the place of another membership of the same client: no answer to that one is taken for one of its own, and the user is
    /// where he was.
    pub(super) fn going_on(mut self, tokens: Tokens, presence: Presence) -> Self {
        (self.tokens, self.presence) = (tokens, presence);
        self
    }

    /// Who commits, or `None` while the member has no generation of its own.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let generation = match self.state {
            State::Stable { generation, .. } | State::Revoking { generation, .. } => generation,
            // What is kept through a cooperative rebalance is committed meanwhile.
            State::Joining { .. } | State::Planning { .. } | State::Syncing { .. }
                if !self.owned.is_empty() =>
            {
                self.generation
            }
            _ => return None,
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
            State::Idle { .. } => self.state = State::Idle { rejoin: true, not_before: now },
            State::Stable { .. } => self.rebalance(now, "the subscription has changed"),
            State::Revoking { .. } | State::Fatal => {}
            State::Joining { exchange: Exchange::Due(_) } => {}
            _ => self.stale = true,
        }
        self.join_if_idle(now);
    }

    /// The user polls: proof of life, and the only thing that makes an idle member join. What was lost in the meantime was
    /// lost before the user could know; what it still commits of it must not go out under a new generation.
    pub(crate) fn handle_poll(&mut self, now: Instant) {
        self.presence.handle_poll();
        self.join_if_idle(now);
    }

    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        self.presence.handle_poll_end(now);
    }

    pub(crate) fn handle_alive(&mut self, now: Instant) {
        self.presence.handle_alive(now);
    }

    pub(crate) fn handle_loose_poll(&mut self, now: Instant) {
        self.presence.handle_loose_poll(now);
    }

    /// The partition counts of the cluster. The leader calls for a rebalance when its topics have others than planned.
    pub(crate) fn handle_metadata(&mut self, now: Instant, counts: impl Fn(&str) -> Option<i32>) {
        let State::Stable { .. } = self.state else { return };
        let Some(planned) = &self.planned else { return };
        if planned.iter().any(|(topic, count)| counts(topic).is_some_and(|current| current != *count)) {
            self.rebalance(now, "a topic has another number of partitions");
        }
    }

    /// The user wants the group to rebalance.
    pub(crate) fn handle_enforce(&mut self, now: Instant, reason: &str) {
        if let State::Stable { .. } = self.state {
            let reason = reason.chars().take(LONGEST_REASON).collect::<String>();
            self.rebalance(now, reason);
        }
    }

    /// The leader's plan is ready. `counts` are what it was made with.
    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        token: Token,
        assignor: Strategy,
        counts: BTreeMap<Arc<str>, i32>,
        plan: Result<Assignment, Error>,
    ) {
        let State::Planning { generation, token: waited, keeps } = self.state else { return };
        if waited != token {
            return;
        }
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.stop(now, error),
        };
        self.planned = Some(counts);
        let is_plain = matches!(assignor, Strategy::Range | Strategy::RoundRobin);
        self.expected = if keeps && is_plain { plan.get(&self.member_id).cloned() } else { None };
        if keeps {
            return self.sync(now, generation, assignor, Vec::new());
        }
        let assignments =
            plan.iter().map(|(member, partitions)| (member.clone(), encode_assignment(partitions))).collect();
        self.sync(now, generation, assignor, assignments);
    }

    /// The partitions of the `Revoke` have been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, token: Token) {
        if matches!(self.state, State::Revoking { token: waited, .. } if waited == token) {
            let revoked = std::mem::take(&mut self.revoking);
            self.owned.retain(|key| revoked.binary_search(key).is_err());
            self.join(now);
        }
    }

    /// A commit was refused because the generation is over.
    pub(crate) fn handle_fenced_commit(&mut self, now: Instant, generation: i32, error: i16) {
        let (State::Stable { generation: current, .. } | State::Revoking { generation: current, .. }) =
            self.state
        else {
            return;
        };
        if current == generation {
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

    /// The answer to a request, or why there is none.
    pub(crate) fn handle_answer(&mut self, now: Instant, token: Token, answer: Result<Answer, Error>) {
        let waited = match &self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => exchange.is(token),
            State::Stable { heart, .. } | State::Revoking { heart, .. } => heart.beat.is(token),
            State::Leaving { token: waited } => *waited == token,
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
            // Of the other protocol: nobody asked.
            Ok(Answer::Beat(_)) => self.retry(now),
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
            State::Idle { rejoin: true, not_before }
                if self.presence.is_polled() && !self.topics.is_empty() =>
            {
                Some(*not_before)
            }
            _ => None,
        };
        due.into_iter().chain(self.poll_interval_ends()).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.is_overdue(now) {
            // KIP-62: a member that does not poll gives its partitions to those that do, and joins again when it polls.
            self.presence.give_up();
            self.leave(now, "max.poll.interval.ms passed without a poll");
            return;
        }
        self.join_if_idle(now);
        match &mut self.state {
            State::Joining { exchange } if exchange.due().is_some_and(|due| due <= now) => {
                let request = Request::Join {
                    member_id: self.member_id.clone(),
                    topics: self.topics.clone(),
                    claim: self.claim.clone(),
                    generation: self.generation,
                    reason: self.reason.clone(),
                };
                // Java: the coordinator holds the answer back for as long as other members may take.
                let patience = self.settings.max_poll_interval + std::time::Duration::from_secs(5);
                let token = send(
                    &mut self.tokens,
                    &mut self.actions,
                    request,
                    now + patience.max(self.settings.request_timeout),
                );
                *exchange = Exchange::Out { token };
                self.stale = false;
            }
            State::Syncing { generation, assignor, assignments, exchange }
                if exchange.due().is_some_and(|due| due <= now) =>
            {
                let request = Request::Sync {
                    member_id: self.member_id.clone(),
                    generation: *generation,
                    assignor: assignor.clone(),
                    assignments: assignments.clone(),
                };
                // The coordinator waits for the leader's plan, as long as for a join.
                let patience = self.settings.max_poll_interval.max(self.settings.request_timeout);
                let token = send(&mut self.tokens, &mut self.actions, request, now + patience);
                *exchange = Exchange::Out { token };
            }
            State::Stable { generation, heart } | State::Revoking { generation, heart, .. } => {
                if heart.session_ends <= now {
                    self.actions.push_back(Action::ForgetCoordinator);
                    return self.lose(now);
                }
                if heart.beat.due().is_some_and(|due| due <= now) {
                    let request =
                        Request::Heartbeat { member_id: self.member_id.clone(), generation: *generation };
                    // A coordinator that hangs is given up while another attempt can still save the session.
                    let patience = self.settings.request_timeout.min(self.settings.session_timeout / 2);
                    let deadline = heart.session_ends.min(now + patience);
                    let token = send(&mut self.tokens, &mut self.actions, request, deadline);
                    heart.beat = Exchange::Out { token };
                }
            }
            _ => {}
        }
    }

    /// Whether the poll interval has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.poll_interval_ends().is_some_and(|ends| ends <= now)
    }

    fn poll_interval_ends(&self) -> Option<Instant> {
        match self.state {
            State::Idle { .. } | State::Leaving { .. } | State::Fatal => None,
            _ => self.presence.ends(),
        }
    }

    fn join_if_idle(&mut self, now: Instant) {
        let State::Idle { rejoin: true, not_before } = self.state else { return };
        if self.presence.is_polled() && not_before <= now && !self.topics.is_empty() {
            self.join(now);
        }
    }

    fn join(&mut self, now: Instant) {
        self.planned = None;
        if self.settings.cooperative {
            self.claim.clone_from(&self.owned);
        }
        self.state = State::Joining { exchange: Exchange::Due(now) };
        self.handle_timeout(now);
    }

    fn sync(
        &mut self,
        now: Instant,
        generation: i32,
        assignor: Strategy,
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
        members: Option<Vec<GroupMember>>,
        skip_assignment: bool,
    ) {
        let offered = self.settings.assignors.iter().find(|assignor| assignor.name() == protocol);
        let Some(assignor) = offered.cloned() else {
            let error = Error::protocol(format!(
                "the group uses the assignor '{protocol}', which this member did not offer"
            ))
            .with_api("JoinGroup");
            return self.stop(now, error);
        };
        self.generation = generation;
        self.reason = Reason::default();
        match members {
            // KIP-814: of a leader that came back the coordinator still has the assignment of its earlier life. It leads all
            // the same, and must see when its topics change.
            Some(members) => {
                let token = self.tokens.next();
                self.state = State::Planning { generation, token, keeps: skip_assignment };
                self.actions.push_back(Action::Plan { token, assignor, members });
            }
            None => self.sync(now, generation, assignor, Vec::new()),
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
            Err(error) => return self.stop(now, error),
        };
        let heart = Heart {
            beat: Exchange::Due(now + self.settings.heartbeat_interval),
            session_ends: now + self.settings.session_timeout,
        };
        self.state = State::Stable { generation, heart };
        let revoked: Vec<_> =
            self.owned.iter().filter(|key| partitions.binary_search(key).is_err()).cloned().collect();
        let added: Vec<_> =
            partitions.iter().filter(|key| self.owned.binary_search(key).is_err()).cloned().collect();
        self.claim.clone_from(&partitions);
        self.owned.extend(added.iter().cloned());
        self.owned.sort();
        self.actions.push_back(Action::Assign { added });
        if !revoked.is_empty() {
            self.reason = Reason::Borrowed("partitions were given up for another member");
            // Another member gets them in the rebalance after this.
            return self.revoke(generation, heart, revoked);
        }
        if self.expected.take().is_some_and(|mut expected| {
            expected.sort();
            expected != self.owned
        }) {
            self.rebalance(now, "the assignment of before does not fit any more");
        }
    }

    fn on_beat(&mut self, now: Instant) {
        self.backoff.reset();
        let (beat, session) = (self.settings.heartbeat_interval, self.settings.session_timeout);
        if let State::Stable { heart, .. } | State::Revoking { heart, .. } = &mut self.state {
            *heart = Heart { beat: Exchange::Due(now + beat), session_ends: now + session };
        }
    }

    /// Joins again, once what must be given up for it is released.
    fn rebalance(&mut self, now: Instant, reason: impl Into<Reason>) {
        let State::Stable { generation, heart } = self.state else { return };
        self.reason = reason.into();
        // With cooperative rebalancing only what is not wanted any more.
        let is_wanted = |key: &&TopicPartition| self.settings.cooperative && self.topics.contains(&key.topic);
        let revoked: Vec<_> = self.owned.iter().filter(|key| !is_wanted(key)).cloned().collect();
        if revoked.is_empty() {
            return self.join(now);
        }
        self.revoke(generation, heart, revoked);
    }

    fn revoke(&mut self, generation: i32, heart: Heart, partitions: Vec<TopicPartition>) {
        let token = self.tokens.next();
        self.state = State::Revoking { generation, heart, token };
        self.revoking.clone_from(&partitions);
        self.actions.push_back(Action::Revoke { token, partitions });
    }

    /// The coordinator has given our partitions away, or may have.
    fn lose(&mut self, now: Instant) {
        self.reason = Reason::Borrowed("the membership was lost");
        if matches!(self.state, State::Joining { .. }) {
            // A coordinator that says so again and again must not be asked without a pause.
            self.drop_assignment();
            return self.retry(now);
        }
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now };
        self.join_if_idle(now);
    }

    fn drop_assignment(&mut self) {
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
    fn stop(&mut self, now: Instant, error: Error) {
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now + self.backoff.next(&mut self.rng) };
        self.actions.push_back(Action::Fail(error));
    }

    fn leave(&mut self, now: Instant, reason: &'static str) {
        self.drop_assignment();
        let leaves = match self.departure {
            GroupMembershipOperation::Default => self.settings.instance_id.is_none(),
            GroupMembershipOperation::LeaveGroup => true,
            GroupMembershipOperation::RemainInGroup => false,
        };
        let known = !self.member_id.is_empty() && leaves;
        match self.state {
            State::Fatal | State::Leaving { .. } => {}
            State::Idle { .. } => self.on_left(now),
            _ if known => {
                let request = Request::Leave { member_id: std::mem::take(&mut self.member_id), reason };
                let deadline = now + self.settings.request_timeout;
                let token = send(&mut self.tokens, &mut self.actions, request, deadline);
                self.state = State::Leaving { token };
            }
            _ => self.on_left(now),
        }
    }

    fn on_left(&mut self, now: Instant) {
        self.stale = false;
        self.state = State::Idle { rejoin: !self.topics.is_empty(), not_before: now };
        self.join_if_idle(now);
    }

    /// No answer came: the connection was lost, the deadline passed, or the coordinator is not known.
    fn on_failure(&mut self, now: Instant, error: Error) {
        match error.code() {
            Some(code) => self.on_error(now, error.api().unwrap_or("FindCoordinator"), code.0),
            None if error.is_retriable() => {
                self.actions.push_back(Action::ForgetCoordinator);
                self.retry(now);
            }
            None => self.stop(now, error),
        }
    }

    fn on_error(&mut self, now: Instant, api: &'static str, error: i16) {
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
            _ => self.stop(now, explain(api, error)),
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

/// What Java's client tells at most, in characters.
const LONGEST_REASON: usize = 255;

fn send(tokens: &mut Tokens, actions: &mut VecDeque<Action>, request: Request, deadline: Instant) -> Token {
    let token = tokens.next();
    actions.push_back(Action::Send { token, request, deadline });
    token
}

#[cfg(test)]
#[path = "classic_tests.rs"]
mod tests;
