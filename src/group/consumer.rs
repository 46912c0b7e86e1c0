//! A member of a consumer group of the new protocol (KIP-848), as a pure state machine: the coordinator assigns, and one
//! request, the heartbeat, joins, stays, tells what the member has, and leaves.
//!
//! It decides when to beat, what to say, and in which order partitions go and come. What is not ours any more goes first:
//! it is released before the coordinator hears that it is gone, and what is new is taken only when the coordinator names
//! it. It must never say that it has given up what is still being worked on.
//! KIP-848, KIP-1082 (the member makes its own id), KIP-345 (static members), KIP-62 (poll interval).
//!
//! ```text
//!          subscribe, poll              answer: an epoch
//!   Idle ───────────────────▶ Joining ──────────────────▶ Joined ⟲ target: revoke, then tell and take
//!    ▲ ▲                       ▲  (epoch 0)                 │ │
//!    │ │                       └── lost: fenced, unknown ───┘ │
//!    │ └─ Leaving ◀── poll interval, unsubscribed, closed ────┤      Fatal ◀── fenced instance, from anywhere
//!    └──── refused: the next poll tries again ◀───────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tracing::warn;

use super::{
    Action, Answer, Exchange, GroupMembershipOperation, GroupSettings, Identity, Request, code,
    presence::Presence,
    refusal::{CONSUMER_HEARTBEAT, WITHOUT_CONSUMER_PROTOCOL, explain},
};
use crate::{
    config::settings::GroupProtocol,
    error::{Error, ErrorKind},
    flights::{Token, Tokens},
    record::TopicPartition,
    time::{Backoff, Instant, Rng},
    wire::Uuid,
};

/// A partition as the coordinator names it: a topic that was made again is another one.
pub(crate) type IdPartition = (Uuid, i32);

/// Names of topics by their ids.
pub(crate) type Names = BTreeMap<[u8; 16], Arc<str>>;

/// What a member says of itself; `None`: as before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beat {
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

/// What the coordinator answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct BeatAnswer {
    pub(crate) error: i16,
    pub(crate) message: Option<String>,
    pub(crate) member_id: Option<String>,
    pub(crate) epoch: i32,
    pub(crate) interval: Duration,
    /// `None`: as before.
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
struct Told {
    topics: Vec<Arc<str>>,
    pattern: Option<Arc<str>>,
    owned: BTreeSet<IdPartition>,
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
    owned: BTreeMap<IdPartition, TopicPartition>,
    /// What of it is being given up.
    revoking: Option<(Token, Vec<IdPartition>)>,
    /// What the coordinator wants us to have.
    target: BTreeSet<IdPartition>,
    names: Arc<Names>,
    /// What the coordinator knows of us; `None` where it may know nothing, so that all must be said.
    told: Option<Told>,
    /// What the heartbeat that is out says.
    telling: Option<Told>,
    /// The broker's pause between heartbeats.
    interval: Duration,
    /// Nothing was answered since we were let in.
    is_fresh: bool,
    /// The target has just been heard of: what it names may not have been looked up yet.
    is_unheard: bool,
    /// Heartbeats in a row that did not wait for their time.
    hurried: u32,
    /// Since when another member is said to have our instance id.
    unreleased_since: Option<Instant>,
    presence: Presence,
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
            owned: BTreeMap::new(),
            revoking: None,
            target: BTreeSet::new(),
            names: Arc::default(),
            told: None,
            telling: None,
            interval: FIRST_INTERVAL,
            is_fresh: false,
            is_unheard: false,
            hurried: 0,
            unreleased_since: None,
            presence: Presence::new(settings.max_poll_interval, now),
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

    /// The names of the cluster's topics: what could not be named may be now.
    pub(crate) fn handle_names(&mut self, now: Instant, names: &Arc<Names>) {
        if !Arc::ptr_eq(names, &self.names) {
            self.names = Arc::clone(names);
            self.reconcile();
            self.hurry(now);
        }
    }

    /// The partitions of the `Revoke` have been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, token: Token) {
        let Some((_, revoked)) = self.revoking.take_if(|(waited, _)| *waited == token) else { return };
        for key in revoked {
            self.owned.remove(&key);
        }
        self.reconcile();
        self.hurry(now);
    }

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
            Ok(Answer::Beat(answer)) if answer.error == 0 => self.on_beat(now, answer, told),
            Ok(Answer::Beat(BeatAnswer { error, message, .. })) => {
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

    /// What the next membership of the same client goes on with: nothing that is out is taken for an answer to it.
    pub(super) fn take_parts(&mut self) -> (Tokens, Presence, VecDeque<Action>, Rng) {
        let (tokens, rest) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.actions));
        (tokens, self.presence.clone(), rest, self.rng.clone())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Joining { exchange } | State::Joined { exchange } => exchange.due(),
            State::Idle { rejoin: true, not_before } if self.presence.is_polled() && self.is_subscribed() => {
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
            State::Joining { .. } | State::Joined { .. } => self.presence.ends(),
            _ => None,
        }
    }

    fn is_subscribed(&self) -> bool {
        !self.topics.is_empty() || self.pattern.is_some()
    }

    fn join_if_idle(&mut self, now: Instant) {
        let State::Idle { rejoin: true, not_before } = self.state else { return };
        if self.presence.is_polled() && not_before <= now && self.is_subscribed() {
            self.state = State::Joining { exchange: Exchange::Due(now) };
            self.handle_timeout(now);
        }
    }

    fn current(&self) -> Told {
        let owned = self.owned.keys().copied().collect();
        Told { topics: self.topics.clone(), pattern: self.pattern.clone(), owned }
    }

    /// Whether the coordinator should hear something before it is time.
    fn has_news(&self) -> bool {
        self.told.as_ref().or(self.telling.as_ref()).is_none_or(|told| {
            told.topics != self.topics
                || told.pattern != self.pattern
                || !told.owned.iter().eq(self.owned.keys())
        })
    }

    /// Says what it has to: all of it where the coordinator may know nothing, or what has changed.
    fn beat(&mut self, now: Instant) {
        let (told, current) = (self.told.take(), self.current());
        // What was told before counts as told again only with the answer.
        let is_full = told.is_none();
        let changed =
            |differs: fn(&Told, &Told) -> bool| told.as_ref().is_none_or(|told| differs(told, &current));
        let no_longer = || told.as_ref().and_then(|told| told.pattern.as_ref()).map(|_| Arc::from(""));
        let pattern = match &current.pattern {
            Some(pattern) => {
                changed(|told, current| told.pattern != current.pattern).then(|| Arc::clone(pattern))
            }
            None => no_longer(),
        };
        let beat = Beat {
            member_id: self.member_id.clone(),
            epoch: self.epoch,
            topics: changed(|told, current| told.topics != current.topics).then(|| current.topics.clone()),
            pattern,
            owned: changed(|told, current| told.owned != current.owned)
                .then(|| current.owned.iter().copied().collect()),
            is_full,
        };
        self.telling = Some(current);
        let token = self.send(beat, now + self.patience());
        if let State::Joining { exchange } | State::Joined { exchange } = &mut self.state {
            *exchange = Exchange::Out { token };
        }
    }

    /// A coordinator that hangs is given up while another attempt can still save the session, which lasts for several
    /// intervals (the broker's default: nine).
    fn patience(&self) -> Duration {
        self.settings.request_timeout.min((self.interval * 3).max(LEAST_PATIENCE))
    }

    fn send(&mut self, beat: Beat, deadline: Instant) -> Token {
        let token = self.tokens.next();
        self.actions.push_back(Action::Send { token, request: Request::Beat(beat), deadline });
        token
    }

    /// Beats at once if there is something to say; not while it waits to repeat what failed.
    fn hurry(&mut self, now: Instant) {
        // A coordinator that changes its mind with every answer must not be asked without a pause.
        if self.told.is_some() && self.has_news() && self.hurried < MOST_HURRIED {
            self.hurried += 1;
            self.beat_now(now);
        }
    }

    fn beat_now(&mut self, now: Instant) {
        if let State::Joined { exchange: Exchange::Due(_) } = self.state {
            self.beat(now);
        }
    }

    fn on_beat(&mut self, now: Instant, answer: BeatAnswer, told: Option<Told>) {
        if answer.epoch <= 0 {
            let error = Error::protocol(format!("the coordinator answers with the epoch {}", answer.epoch));
            return self.stop(now, error.with_api(CONSUMER_HEARTBEAT));
        }
        // A member that is let in and lost again at once is let in ever more slowly.
        self.is_fresh = !self.is_joined();
        if !self.is_fresh {
            self.backoff.reset();
        }
        self.unreleased_since = None;
        self.told = told;
        self.epoch = answer.epoch;
        self.interval = answer.interval.max(LEAST_INTERVAL);
        if let Some(id) = answer.member_id.filter(|id| !id.is_empty()) {
            self.member_id = id;
        }
        self.state = State::Joined { exchange: Exchange::Due(now + self.interval) };
        if let Some(assignment) = answer.assignment {
            self.target = assignment.into_iter().collect();
            self.is_unheard = true;
        }
        self.reconcile();
        self.is_unheard = false;
        self.hurry(now);
    }

    /// One step towards the target: what is not in it goes; once that has gone, what is new comes.
    fn reconcile(&mut self) {
        if !self.is_joined() || self.revoking.is_some() {
            return;
        }
        let unknown = self.unknown();
        let waits = self.is_unheard && !unknown.is_empty();
        if !unknown.is_empty() {
            self.actions.push_back(Action::Identify { topics: unknown });
        }
        // An unknown topic may be one of ours that was made again, whose offsets are not those of the old one: it is asked
        // about before anything is committed.
        if waits && self.owned.keys().any(|key| !self.target.contains(key)) {
            return;
        }
        self.drop_gone();
        if !self.revoke_surplus() {
            self.take_new();
        }
    }

    /// Every topic of the target has a name.
    pub(crate) fn is_named(&self) -> bool {
        self.unknown().is_empty()
    }

    /// Topics of the target that have no name yet.
    fn unknown(&self) -> Vec<Uuid> {
        let new = self.target.iter().filter(|key| !self.owned.contains_key(key));
        let mut ids: Vec<_> = new.map(|(id, _)| *id).collect();
        ids.dedup();
        ids.retain(|id| !self.names.contains_key(&id.0));
        ids
    }

    /// What is no longer ours because its topic was made again: nothing of it is to be committed, since the offsets would be
    /// taken for those of the new topic.
    fn drop_gone(&mut self) {
        let mut surplus: Vec<_> = self
            .owned
            .iter()
            .filter(|(key, _)| !self.target.contains(key))
            .map(|((id, _), named)| (*id, named))
            .collect();
        surplus.dedup_by_key(|(id, _)| *id);
        let is_another =
            |id: Uuid, name: &str| self.names.iter().any(|(other, known)| **known == *name && *other != id.0);
        surplus.retain(|(id, named)| is_another(*id, &named.topic));
        let gone: BTreeSet<_> = surplus.into_iter().map(|(id, _)| id).collect();
        let mut partitions = Vec::new();
        self.owned.retain(|(id, _), named| {
            let stays = !gone.contains(id);
            if !stays {
                partitions.push(named.clone());
            }
            stays
        });
        if !partitions.is_empty() {
            partitions.sort();
            self.actions.push_back(Action::Lost { partitions });
        }
    }

    /// True if something has to go first.
    fn revoke_surplus(&mut self) -> bool {
        let surplus = self.owned.iter().filter(|(key, _)| !self.target.contains(key));
        let (keys, mut partitions): (Vec<_>, Vec<_>) =
            surplus.map(|(key, named)| (*key, named.clone())).unzip();
        if keys.is_empty() {
            return false;
        }
        partitions.sort();
        let token = self.tokens.next();
        self.revoking = Some((token, keys));
        self.actions.push_back(Action::Revoke { token, partitions });
        true
    }

    fn take_new(&mut self) {
        let mut added = Vec::new();
        for key @ (id, partition) in &self.target {
            if let (false, Some(topic)) = (self.owned.contains_key(key), self.names.get(&id.0)) {
                let named = TopicPartition { topic: Arc::clone(topic), partition: *partition };
                added.push(named.clone());
                self.owned.insert(*key, named);
            }
        }
        if !added.is_empty() {
            added.sort();
            self.actions.push_back(Action::Assign { added });
        }
    }

    /// The coordinator has given our partitions away, or may have.
    fn lose(&mut self, now: Instant) {
        let was_joining = matches!(self.state, State::Joining { .. });
        self.drop_assignment();
        if was_joining {
            // A coordinator that says so again and again must not be asked without a pause.
            return self.retry(now);
        }
        let pause = if self.is_fresh { self.backoff.next(&mut self.rng) } else { Duration::ZERO };
        self.state = State::Idle { rejoin: true, not_before: now + pause };
        self.join_if_idle(now);
    }

    fn drop_assignment(&mut self) {
        let mut partitions: Vec<_> = std::mem::take(&mut self.owned).into_values().collect();
        partitions.sort();
        self.revoking = None;
        self.target.clear();
        self.told = None;
        self.telling = None;
        self.epoch = 0;
        self.hurried = 0;
        if !partitions.is_empty() {
            self.actions.push_back(Action::Lost { partitions });
        }
    }

    /// Gives up until the user polls again, and for a pause: a poll that finds the same again must not flood the group.
    fn stop(&mut self, now: Instant, error: Error) {
        self.drop_assignment();
        self.state = State::Idle { rejoin: true, not_before: now + self.backoff.next(&mut self.rng) };
        self.actions.push_back(Action::Fail(error));
    }

    /// The protocol is not to be had here: another one is taken, or the user hears of it.
    fn give_up(&mut self, now: Instant, error: Error) {
        if self.settings.protocol == GroupProtocol::Auto {
            self.drop_assignment();
            self.state = State::Idle { rejoin: true, not_before: now };
            self.unusable = Some(error);
        } else {
            self.stop(now, error);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.drop_assignment();
        match self.state {
            State::Fatal | State::Leaving { .. } => {}
            State::Idle { .. } => self.on_left(now),
            State::Joining { .. } | State::Joined { .. } => {
                // As in Java: a static member says that it is away also when it is to stay.
                let epoch = match (self.departure, &self.settings.instance_id) {
                    (GroupMembershipOperation::LeaveGroup, _) | (GroupMembershipOperation::Default, None) => {
                        LEAVE
                    }
                    (_, Some(_)) => LEAVE_FOR_A_WHILE,
                    (GroupMembershipOperation::RemainInGroup, None) => return self.on_left(now),
                };
                let beat = Beat {
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
        }
    }

    fn on_left(&mut self, now: Instant) {
        self.state = State::Idle { rejoin: self.is_subscribed(), not_before: now };
        self.join_if_idle(now);
    }

    /// No answer came: the connection was lost, the deadline passed, or the coordinator is not known.
    fn on_failure(&mut self, now: Instant, error: Error) {
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

    fn on_error(&mut self, now: Instant, api: &'static str, error: i16, message: Option<&str>) {
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
            // What it has, it may go on reading; the coordinator looks again with each heartbeat.
            code::TOPIC_AUTHORIZATION_FAILED if self.is_joined() => {
                self.actions.push_back(Action::Fail(explained()));
                self.retry(now);
            }
            _ if Error::from_code(api, error).is_retriable() => self.retry(now),
            _ => self.stop(now, explained()),
        }
    }

    /// Asks again after a pause, and says everything: nobody knows what the coordinator has heard.
    fn retry(&mut self, now: Instant) {
        let due = Exchange::Due(now + self.backoff.next(&mut self.rng));
        if let State::Joining { exchange } | State::Joined { exchange } = &mut self.state {
            *exchange = due;
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

const LEAVE: i32 = -1;
const LEAVE_FOR_A_WHILE: i32 = -2;
/// Until the broker has said its own.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// A broker that asks for heartbeats without a pause is not followed.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
const LEAST_PATIENCE: Duration = Duration::from_secs(3);
/// Steps of one reconciliation that are told at once: a member with much to give back has a handful.
const MOST_HURRIED: u32 = 16;

#[cfg(test)]
#[path = "consumer_tests.rs"]
mod tests;
