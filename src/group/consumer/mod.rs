//! A member of a consumer group of the new protocol (KIP-848), as a pure state machine: the coordinator assigns, and one
//! request, the heartbeat, joins, stays, tells what the member has, and leaves.
//!
//! It decides when to beat, what to say, and in which order partitions go and come. What is not ours any more goes first:
//! it is released before the coordinator hears that it is gone, and what is new is taken only when the coordinator names
//! it. It must never say that it has given up partitions that are still being worked on. KIP-848, KIP-1082 (the member
//! makes its own id), KIP-345 (static members), KIP-62 (poll interval).
//!
//! ```text
//!          subscribe, poll              answer: an epoch
//!   Idle ───────────────────▶ Joining ──────────────────▶ Joined ⟲ target: revoke, then tell and take
//!    ▲ ▲                       ▲  (epoch 0)                 │ │
//!    │ │                       └── lost: fenced, unknown ───┘ │
//!    │ └─ Leaving ◀── poll interval, unsubscribed, closed ────┤      Fatal ◀── fenced instance, from anywhere
//!    └──── refused: the next poll tries again ◀───────────────┘
//! ```

mod ending;
mod heartbeat;
mod reconcile;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tracing::info;

use super::{
    Action, Answer, Exchange, GroupMembershipOperation, GroupSettings, Identity, liveness::Liveness,
    refusal::CONSUMER_HEARTBEAT,
};
use crate::{
    error::Error,
    flights::{Token, Tokens},
    record::TopicPartition,
    sorted::{Map, Set},
    time::{Backoff, Instant, Rng},
    wire::Uuid,
};

/// A partition as the coordinator names it: a topic that was made again is another one.
pub(crate) type IdPartition = (Uuid, i32);

/// Names of topics by their ids.
pub(crate) type Names = Map<[u8; 16], Arc<str>>;

/// The content of a ConsumerGroupHeartbeat request. `None`: unchanged since the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumerHeartbeat {
    pub(crate) member_id: String,
    /// 0 to join, -1 to leave, -2 to leave for a while (a static member).
    pub(crate) epoch: i32,
    pub(crate) topics: Option<Vec<Arc<str>>>,
    /// A regular expression for the broker (version 1); empty: not any more.
    pub(crate) pattern: Option<Arc<str>>,
    pub(crate) owned: Option<Vec<IdPartition>>,
    /// All that only a first heartbeat must say: rebalance time-out, rack and assignor.
    pub(crate) is_full: bool,
}

/// The content of a ConsumerGroupHeartbeat answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsumerHeartbeatAnswer {
    pub(crate) error: i16,
    pub(crate) message: Option<String>,
    pub(crate) member_id: Option<String>,
    pub(crate) epoch: i32,
    pub(crate) interval: Duration,
    /// `None`: unchanged.
    pub(crate) assignment: Option<Vec<IdPartition>>,
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
    Joined {
        exchange: Exchange,
    },
    Leaving {
        token: Token,
    },
    /// Fenced: another member has our instance id.
    Fatal,
}

/// What the coordinator has been told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reported {
    topics: Vec<Arc<str>>,
    pattern: Option<Arc<str>>,
    owned: Set<IdPartition>,
}

/// The member.
#[derive(Debug)]
pub(crate) struct Member {
    settings: GroupSettings,
    state: State,
    /// For the member's whole life (KIP-1082).
    member_id: String,
    /// 0 before the coordinator has let us in, and after a loss.
    epoch: i32,
    topics: Vec<Arc<str>>,
    pattern: Option<Arc<str>>,
    /// What is ours, under the names it was assigned with.
    owned: Map<IdPartition, TopicPartition>,
    /// Those of `owned` that are being given up.
    revoking: Option<(Token, Vec<IdPartition>)>,
    /// The assignment that the coordinator wants this member to reach.
    target: Set<IdPartition>,
    /// Since when the coordinator may be waiting for partitions that are not in it: since the first heartbeat that it may
    /// have answered with this target.
    target_since: Instant,
    /// When the first heartbeat was sent that no good answer has come to.
    unanswered_since: Option<Instant>,
    names: Arc<Names>,
    /// What the coordinator knows of us; `None` where it may know nothing, so that all must be said.
    told: Option<Reported>,
    /// The coordinator may have been told of a pattern, and not that it is over.
    may_have_pattern: bool,
    /// What the heartbeat in flight reports.
    telling: Option<Reported>,
    /// The broker's pause between heartbeats.
    interval: Duration,
    /// The coordinator may still count us in, whatever has become of the membership here.
    is_counted: bool,
    /// No heartbeat was answered since we were let in.
    is_fresh: bool,
    /// The target is new, and no regular heartbeat was answered since: its topics may not have been looked up yet.
    is_unheard: bool,
    /// Heartbeats in a row that did not wait for their time.
    hurried: u32,
    /// Since when another member is said to have our instance id.
    unreleased_since: Option<Instant>,
    /// The coordinator was told that the old membership is over, and has not let us in since.
    has_begun_anew: bool,
    liveness: Liveness,
    departure: GroupMembershipOperation,
    /// Why this protocol cannot be used, where another one may be.
    unusable: Option<Error>,
    tokens: Tokens,
    backoff: Backoff,
    rng: Rng,
    actions: VecDeque<Action>,
}

impl Member {
    pub(crate) fn new(settings: GroupSettings, now: Instant, mut rng: Rng) -> Self {
        Self {
            state: State::Idle { rejoin: false, not_before: now },
            member_id: random_id(&mut rng),
            epoch: 0,
            topics: Vec::new(),
            pattern: None,
            owned: Map::new(),
            revoking: None,
            target: Set::new(),
            target_since: now,
            unanswered_since: None,
            names: Arc::default(),
            told: None,
            telling: None,
            may_have_pattern: false,
            interval: FIRST_INTERVAL,
            is_counted: false,
            is_fresh: false,
            is_unheard: false,
            hurried: 0,
            unreleased_since: None,
            has_begun_anew: false,
            liveness: Liveness::new(settings.max_poll_interval, now),
            departure: GroupMembershipOperation::Default,
            unusable: None,
            tokens: Tokens::default(),
            backoff: Backoff::new(settings.retry_backoff, settings.retry_backoff_max),
            rng,
            actions: VecDeque::new(),
            settings,
        }
    }

    /// Who commits, or `None` while the member is not in the group.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let State::Joined { .. } = self.state else { return None };
        let instance_id = self.settings.instance_id.clone();
        Some(Identity { member_id: self.member_id.clone(), generation: self.epoch, instance_id })
    }

    /// Whether the member is out of the group and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. } | State::Fatal)
    }

    /// The coordinator has let us in.
    pub(crate) fn is_joined(&self) -> bool {
        matches!(self.state, State::Joined { .. })
    }

    fn is_joining(&self) -> bool {
        matches!(self.state, State::Joining { .. })
    }

    /// The id of the topic by which a partition was assigned.
    pub(crate) fn assigned_id(&self, key: &TopicPartition) -> Option<Uuid> {
        self.owned.iter().find(|(_, named)| *named == key).map(|((id, _), _)| *id)
    }

    #[cfg(test)]
    pub(crate) fn id(&self) -> &str {
        &self.member_id
    }

    /// In the group with all that it is to have, and the coordinator knows.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.is_joined() && !self.has_news() && self.owned.keys().eq(self.target.iter())
    }

    /// Another set of topics, and a pattern for the broker beside it. None at all leaves the group.
    pub(crate) fn handle_subscription(
        &mut self,
        now: Instant,
        topics: Vec<Arc<str>>,
        pattern: Option<Arc<str>>,
    ) {
        if topics == self.topics && pattern == self.pattern {
            return;
        }
        (self.topics, self.pattern) = (topics, pattern);
        if !self.is_subscribed() {
            return self.leave(now);
        }
        if let State::Idle { .. } = self.state {
            self.state = State::Idle { rejoin: true, not_before: now };
        }
        self.join_if_idle(now);
        self.hurry(now);
    }

    /// The user polls: proof of life, and the only thing that makes an idle member join. What was lost in the meantime was
    /// lost before the user could know; what it still commits of it must not go out under a new epoch.
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
            State::Joining { exchange } | State::Joined { exchange } => exchange.is(token),
            State::Leaving { token: waited } => *waited == token,
            State::Idle { .. } | State::Fatal => false,
        };
        if !waited {
            return;
        }
        if matches!(self.state, State::Leaving { .. }) {
            // Whatever the answer: the session time-out does the rest.
            return self.on_left(now);
        }
        let told = self.telling.take();
        match answer {
            Ok(Answer::ConsumerHeartbeat(answer)) if answer.error == 0 => self.on_beat(now, answer, told),
            Ok(Answer::ConsumerHeartbeat(ConsumerHeartbeatAnswer { error, message, .. })) => {
                self.on_error(now, CONSUMER_HEARTBEAT, error, message.as_deref());
            }
            // Only a heartbeat was asked for.
            Ok(_) => self.retry(now),
            Err(error) => self.on_failure(now, error),
        }
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Why the protocol cannot be used with this group or broker. Asked once after each change, of a member that may use another.
    pub(crate) fn take_unusable(&mut self) -> Option<Error> {
        self.unusable.take()
    }

    /// What the next membership of the same client takes over: the tokens among it, so that no answer that is still out
    /// is taken for its own.
    pub(super) fn take_parts(&mut self) -> (Tokens, Liveness, VecDeque<Action>, Rng) {
        let (tokens, rest) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.actions));
        (tokens, self.liveness.clone(), rest, self.rng.clone())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Joining { exchange } | State::Joined { exchange } => exchange.due(),
            State::Idle { rejoin: true, not_before } if self.liveness.is_polled() && self.is_subscribed() => {
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
            return self.leave(now);
        }
        self.join_if_idle(now);
        if let State::Joining { exchange } | State::Joined { exchange } = self.state
            && exchange.due().is_some_and(|due| due <= now)
        {
            self.hurried = 0;
            self.beat(now);
        }
    }

    /// Whether the poll interval has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.poll_interval_ends().is_some_and(|ends| ends <= now)
    }

    fn poll_interval_ends(&self) -> Option<Instant> {
        match self.state {
            State::Joining { .. } | State::Joined { .. } => self.liveness.ends(),
            _ => None,
        }
    }

    fn is_subscribed(&self) -> bool {
        !self.topics.is_empty() || self.pattern.is_some()
    }

    fn join_if_idle(&mut self, now: Instant) {
        let State::Idle { rejoin: true, not_before } = self.state else { return };
        if self.liveness.is_polled() && not_before <= now && self.is_subscribed() {
            info!("joining the group");
            self.state = State::Joining { exchange: Exchange::Due(now) };
            self.handle_timeout(now);
        }
    }
}

/// KIP-1082: a random UUID (version 4), written as Kafka writes ids.
fn random_id(rng: &mut Rng) -> String {
    let mut bits = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    bits = (bits & !(0xF << 76)) | (0x4 << 76);
    bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    Uuid(bits.to_be_bytes()).to_string()
}

/// The interval until the broker has named its own.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
