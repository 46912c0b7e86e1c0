//! A member of a classic consumer group, as a pure state machine. With eager rebalancing all partitions are given up
//! before it joins again; with cooperative rebalancing (KIP-429) only those that another member will get, in a rebalance
//! of their own.
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

mod ending;
mod rebalance;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    Action, Answer, Exchange, GroupMembershipOperation, GroupSettings, Identity, Reason, Request,
    assignor::Strategy, code, liveness::Liveness,
};
use crate::{
    error::Error,
    flights::{Token, Tokens},
    record::TopicPartition,
    time::{Backoff, Instant, Rng},
};

/// The heartbeats of a member that has its assignment.
#[derive(Debug, Clone, Copy)]
struct Heartbeats {
    exchange: Exchange,
    /// When the last heartbeat was sent.
    sent: Instant,
    /// When a heartbeat was sent to which the coordinator answered that the group was not rebalancing: a rebalance has
    /// begun later.
    at_rest: Instant,
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
        heartbeats: Heartbeats,
    },
    /// Partitions are being released; the member stays alive until that is done.
    Revoking {
        generation: i32,
        heartbeats: Heartbeats,
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
    /// The partitions of this member, sorted.
    owned: Vec<TopicPartition>,
    /// Those of `owned` that are being given up.
    revoking: Vec<TopicPartition>,
    /// What was ours in `generation`: what sticky assignors go by.
    claim: Vec<TopicPartition>,
    /// The last one joined; -1 before, and after a loss.
    generation: i32,
    /// Partition counts that the assignment was planned with, if this member leads the group.
    planned: Option<BTreeMap<Arc<str>, i32>>,
    /// It leads, and there is no other member.
    is_alone: bool,
    /// What a static leader that came back would get by a new plan (KIP-814).
    expected: Option<Vec<TopicPartition>>,
    /// The assignment that the coordinator has kept did not fit: the next plan is sent even if the coordinator would keep
    /// its own.
    is_misfit: bool,
    /// It has had an assignment.
    is_settled: bool,
    /// Something changed while a join or sync was out: join again after it.
    stale: bool,
    /// Since when every question to the coordinator has failed, while it joins.
    unreached_since: Option<Instant>,
    /// When the last join or sync was sent.
    asked: Instant,
    liveness: Liveness,
    departure: GroupMembershipOperation,
    /// Why it joins next (KIP-800).
    reason: Reason,
    tokens: Tokens,
    backoff: Backoff,
    /// How often in a row a generation ended before its assignment came, and the pauses before it is joined again.
    failed_syncs: u32,
    churn: Backoff,
    rng: Rng,
    actions: VecDeque<Action>,
}

impl Member {
    pub(crate) fn new(settings: GroupSettings, now: Instant, rng: Rng) -> Self {
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        Self {
            liveness: Liveness::new(settings.max_poll_interval, now),
            settings,
            state: State::Idle { rejoin: false, not_before: now },
            member_id: String::new(),
            topics: Vec::new(),
            owned: Vec::new(),
            revoking: Vec::new(),
            claim: Vec::new(),
            generation: -1,
            planned: None,
            is_alone: false,
            expected: None,
            is_misfit: false,
            is_settled: false,
            stale: false,
            unreached_since: None,
            asked: now,
            departure: GroupMembershipOperation::Default,
            reason: Reason::default(),
            tokens: Tokens::default(),
            churn: backoff.clone(),
            failed_syncs: 0,
            backoff,
            rng,
            actions: VecDeque::new(),
        }
    }

    /// Takes the place of another membership of the same client: no answer to that one is taken for one of its own, and
    /// the poll interval goes on from where it was.
    pub(super) fn going_on(mut self, tokens: Tokens, liveness: Liveness) -> Self {
        (self.tokens, self.liveness) = (tokens, liveness);
        self
    }

    /// Who commits, or `None` while the member has no generation of its own.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let generation = match self.state {
            State::Stable { generation, .. } | State::Revoking { generation, .. } => generation,
            // Partitions that are kept through a cooperative rebalance can be committed meanwhile.
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

    /// Whether it is a member of a generation at the moment.
    pub(crate) fn is_in(&self) -> bool {
        matches!(self.state, State::Stable { .. } | State::Revoking { .. })
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
            // A join that is still to be sent says all there is, and nothing is stale then.
            _ => self.stale = true,
        }
        self.join_if_idle(now);
    }

    /// The topics that match the pattern now. If none does any more, the partitions are given up as in a rebalance before
    /// the member leaves, because the user has not unsubscribed.
    pub(crate) fn handle_matching(&mut self, now: Instant, topics: Vec<Arc<str>>) {
        if !topics.is_empty() || self.topics.is_empty() {
            return self.handle_subscription(now, topics);
        }
        self.topics = topics;
        match &self.state {
            State::Stable { .. } => self.rebalance(now, NOTHING_MATCHES),
            State::Idle { .. } => self.leave(now, NOTHING_MATCHES),
            State::Joining { exchange: Exchange::Due(_) } if self.owned.is_empty() => {
                self.leave(now, NOTHING_MATCHES);
            }
            State::Revoking { .. } | State::Leaving { .. } | State::Fatal => {}
            State::Joining { .. } | State::Planning { .. } | State::Syncing { .. } => self.stale = true,
        }
    }

    /// The user polls: proof of life, and the only thing that makes an idle member join. What was lost in the meantime was
    /// lost before the user could know; what it still commits of it must not go out under a new generation.
    pub(crate) fn handle_poll(&mut self, now: Instant) {
        self.liveness.handle_poll();
        self.join_if_idle(now);
    }

    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        self.liveness.handle_poll_end(now);
    }

    pub(crate) fn handle_alive(&mut self, now: Instant) {
        self.liveness.handle_alive(now);
    }

    pub(crate) fn handle_loose_poll(&mut self, now: Instant) {
        self.liveness.handle_loose_poll(now);
    }

    /// The answer to a request, or why there is none.
    pub(crate) fn handle_answer(&mut self, now: Instant, token: Token, answer: Result<Answer, Error>) {
        let waited = match &self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => exchange.is(token),
            State::Stable { heartbeats, .. } | State::Revoking { heartbeats, .. } => {
                heartbeats.exchange.is(token)
            }
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
        if answer.is_ok() {
            self.unreached_since = None;
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
                let is_news = self.member_id.is_empty() && !member_id.is_empty();
                self.member_id = member_id;
                match is_news {
                    true => self.join(now),
                    false => self.retry(now),
                }
            }
            Ok(Answer::Sync { error: 0, assignment }) => self.on_synced(now, &assignment),
            Ok(Answer::Heartbeat { error: 0 }) => {
                if let State::Stable { heartbeats, .. } = &mut self.state {
                    heartbeats.at_rest = heartbeats.sent;
                }
                self.on_beat(now);
            }
            Ok(Answer::Join { error, .. }) => self.on_error(now, "JoinGroup", error),
            Ok(Answer::Sync { error, .. }) => self.on_error(now, "SyncGroup", error),
            Ok(Answer::Heartbeat { error }) => self.on_error(now, "Heartbeat", error),
            Ok(Answer::Leave { error }) => self.on_error(now, "LeaveGroup", error),
            // An answer of the other protocol, which nobody has asked for.
            Ok(Answer::ConsumerHeartbeat(_)) => self.retry(now),
        }
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Joining { exchange } | State::Syncing { exchange, .. } => exchange.due(),
            State::Stable { heartbeats, .. } | State::Revoking { heartbeats, .. } => Some(
                heartbeats
                    .exchange
                    .due()
                    .map_or(heartbeats.session_ends, |due| due.min(heartbeats.session_ends)),
            ),
            State::Idle { rejoin: true, not_before }
                if self.liveness.is_polled() && !self.topics.is_empty() =>
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
            self.liveness.give_up();
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
                let patience = self.settings.max_poll_interval + Duration::from_secs(5);
                let token = send(
                    &mut self.tokens,
                    &mut self.actions,
                    request,
                    now + patience.max(self.settings.request_timeout),
                );
                *exchange = Exchange::Out { token };
                self.asked = now;
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
                self.asked = now;
            }
            State::Stable { generation, heartbeats } | State::Revoking { generation, heartbeats, .. } => {
                if heartbeats.session_ends <= now {
                    self.actions.push_back(Action::ForgetCoordinator);
                    return self.lose(now);
                }
                if heartbeats.exchange.due().is_some_and(|due| due <= now) {
                    let request =
                        Request::Heartbeat { member_id: self.member_id.clone(), generation: *generation };
                    // A coordinator that hangs is given up while another attempt can still save the session.
                    let patience = self.settings.request_timeout.min(self.settings.session_timeout / 2);
                    let deadline = heartbeats.session_ends.min(now + patience);
                    let token = send(&mut self.tokens, &mut self.actions, request, deadline);
                    heartbeats.exchange = Exchange::Out { token };
                    heartbeats.sent = now;
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
            _ => self.liveness.ends(),
        }
    }

    fn join_if_idle(&mut self, now: Instant) {
        let State::Idle { rejoin: true, not_before } = self.state else { return };
        if self.liveness.is_polled() && not_before <= now && !self.topics.is_empty() {
            self.join(now);
        }
    }

    fn on_beat(&mut self, now: Instant) {
        self.backoff.reset();
        let (beat, session) = (self.settings.heartbeat_interval, self.settings.session_timeout);
        if let State::Stable { heartbeats, .. } | State::Revoking { heartbeats, .. } = &mut self.state {
            heartbeats.exchange = Exchange::Due(now + beat);
            heartbeats.session_ends = now + session;
        }
    }
}

const NOTHING_MATCHES: &str = "no topic matches the pattern any more";

fn send(tokens: &mut Tokens, actions: &mut VecDeque<Action>, request: Request, deadline: Instant) -> Token {
    let token = tokens.next();
    actions.push_back(Action::Send { token, request, deadline });
    token
}

#[cfg(test)]
mod tests;
