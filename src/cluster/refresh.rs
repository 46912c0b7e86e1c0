//! When to ask for metadata, and about which topics. Pure: the task asks and reports back.
//!
//! ```text
//!   Idle ──(wanted, too old, new topic)──> Asking ──ok──> Idle
//!                                            │ failed
//!                                            └──> BackingOff ──(time)──> Asking
//! ```
//! A topic is followed while somebody subscribes to it, and for `metadata.max.idle.ms` after it was last used; then
//! it is forgotten. While topics are wanted by a pattern, all are asked about; a topic may also be asked about by its id,
//! by itself, as brokers want it. Brokers may create a topic only where somebody asks for it who wants that: no refresh
//! ever does. Never asks twice at once. A complaint, or somebody who waits, leads to a question after `retry.backoff.ms`
//! at first, and after longer pauses while the answers stay the same (KIP-580); a topic that nobody has asked about yet
//! does not wait.

use std::{sync::Arc, time::Duration};

use super::metadata::TopicId;
use crate::{
    pattern::Pattern,
    sorted::{Map, Set},
    time::{Backoff, Instant, Rng},
};

/// The question to put to some broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) topics: Vec<Arc<str>>,
    /// All topics are asked about, for this pattern.
    pub(crate) matching: Option<Arc<Pattern>>,
    /// These are asked about, and none by name.
    pub(crate) ids: Vec<TopicId>,
    /// Brokers may create what does not exist.
    pub(crate) create: bool,
    /// The bootstrap addresses are asked first, on new connections (KIP-1102): no broker has told anything for long, or they send
    /// the client there.
    pub(crate) rebootstrap: bool,
    /// Its number among the questions about all topics of interest, from 1 on; 0 for one about some of them only.
    pub(crate) number: u64,
}

/// Whether brokers may create a topic that does not exist (where `auto.create.topics.enable` lets them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Create {
    Never,
    /// If `allow.auto.create.topics` allows it.
    IfAllowed,
}

impl Create {
    /// Whether to create a topic that was found so. One that exists and has no leader at the moment must not be created.
    pub(super) fn of(self, found: Found) -> Self {
        if found == Found::Missing { self } else { Self::Never }
    }
}

/// What an answer says about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It has partitions, and each has a leader.
    Settled,
    /// A partition has no leader at the moment, or the topic no partition yet.
    Unsettled,
    /// There is none, or it may not be seen.
    Missing,
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All topics of interest.
    Full,
    /// Only topics that may be created, so that the question does not bring back any other that was deleted.
    Create,
    ById,
}

/// How often an unsettled topic is looked at that nobody waits for.
const UNHURRIED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Refresh {
    topics: Map<Arc<str>, Interest>,
    /// Topics whose names are looked for.
    matching: Option<Arc<Pattern>>,
    ids: Set<TopicId>,
    last: Kind,
    /// The pattern has not been asked about yet.
    new_pattern: bool,
    /// One of the ids has not been asked about yet.
    new_ids: bool,
    /// When all topics of interest were last told about.
    told_at: Instant,
    state: State,
    /// Someone saw that the snapshot is stale.
    wanted: bool,
    /// How many questions about all topics of interest were put, whatever became of them.
    asked: u64,
    /// The question that is out was put because of a complaint, or because somebody waits.
    hurried: bool,
    pause: Duration,
    /// Since when no answer came at all.
    failing_since: Option<Instant>,
    misled: bool,
    limits: Limits,
    backoff: Backoff,
}

/// Settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_age: Duration,
    pub(crate) max_idle: Duration,
    /// `None`: a client that knows brokers never asks the bootstrap addresses before them.
    pub(crate) rebootstrap_after: Option<Duration>,
}

#[derive(Debug)]
struct Interest {
    used: Instant,
    /// Subscribed to: never idle.
    followed: bool,
    /// Somebody waits for it.
    awaited: bool,
    /// It has not been asked about yet, or only by a question that creates nothing: the next question need not wait.
    new: bool,
    create: bool,
    unsettled: bool,
    /// Somebody has written to it, so that an answer without it is too old.
    expected: bool,
}

#[derive(Debug)]
enum State {
    Idle { since: Instant },
    Asking,
    BackingOff { until: Instant },
}

impl Refresh {
    pub(crate) fn new(now: Instant, limits: Limits, backoff: Backoff) -> Self {
        Self {
            topics: Map::new(),
            matching: None,
            ids: Set::new(),
            last: Kind::Full,
            new_pattern: false,
            new_ids: false,
            told_at: now,
            state: State::BackingOff { until: now },
            wanted: false,
            asked: 0,
            hurried: false,
            pause: backoff.initial(),
            failing_since: None,
            misled: false,
            limits,
            backoff,
        }
    }

    /// Somebody waits for a topic, or has records for it. True if that is news, so that the next question may be due
    /// earlier.
    pub(crate) fn want_topic(&mut self, now: Instant, topic: &Arc<str>, create: Create) -> bool {
        let interest = self.interest(now, topic);
        let known = (interest.awaited, interest.create);
        interest.used = now;
        interest.awaited = true;
        interest.create |= create == Create::IfAllowed;
        interest.new || known != (interest.awaited, interest.create)
    }

    /// This topic was written to: it is asked about until an answer has it with all its leaders, for `metadata.max.idle.ms`
    /// after it was last used at most.
    pub(crate) fn expect(&mut self, now: Instant, topic: &Arc<str>) {
        let interest = self.interest(now, topic);
        interest.used = now;
        (interest.awaited, interest.expected) = (true, true);
    }

    /// These topics are in use.
    pub(crate) fn touch<'a>(&mut self, now: Instant, topics: impl IntoIterator<Item = &'a Arc<str>>) {
        for topic in topics {
            self.interest(now, topic).used = now;
        }
    }

    /// From now on exactly these topics are subscribed to.
    pub(crate) fn follow(&mut self, now: Instant, topics: &[Arc<str>]) {
        let topics: Set<&Arc<str>> = topics.iter().collect();
        for (topic, interest) in &mut self.topics {
            if interest.followed && !topics.contains(topic) {
                interest.followed = false;
                // Nobody subscribes to it any more. If it is used otherwise, `touch` says so.
                interest.used = now.checked_sub(self.limits.max_idle).unwrap_or(now);
            }
        }
        for topic in topics {
            self.interest(now, topic).followed = true;
        }
    }

    /// From now on topics of this pattern are subscribed to as well.
    pub(crate) fn follow_matching(&mut self, pattern: Option<Arc<Pattern>>) {
        self.new_pattern = pattern.is_some();
        self.matching = pattern;
    }

    /// Exactly these topics are looked for by id.
    pub(crate) fn identify(&mut self, ids: &[TopicId]) {
        self.new_ids |= ids.iter().any(|id| !self.ids.contains(id));
        self.new_ids &= !ids.is_empty();
        self.ids = ids.iter().copied().collect();
    }

    /// A topic that was asked about by id has this name: it is of interest for `metadata.max.idle.ms`.
    pub(crate) fn handle_named(&mut self, now: Instant, topic: &Arc<str>) {
        let known = self.topics.contains_key(topic);
        let interest = self.interest(now, topic);
        interest.used = now;
        interest.new &= known;
    }

    /// The snapshot has these names for ids now. Ids that it has no name for are asked about again, and no sooner than
    /// anything else.
    pub(crate) fn handle_names(&mut self, names: &Map<TopicId, Arc<str>>) {
        self.ids.retain(|id| !names.contains_key(id));
        self.new_ids &= !self.ids.is_empty();
    }

    fn interest(&mut self, now: Instant, topic: &Arc<str>) -> &mut Interest {
        self.topics.entry(Arc::clone(topic)).or_insert(Interest {
            used: now,
            followed: false,
            awaited: false,
            new: true,
            create: false,
            unsettled: false,
            expected: false,
        })
    }

    /// The snapshot is known to be stale.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// As [`Self::want`], because of one topic. Returns the number of the first question that is put after this
    /// complaint: the answer to it, or to a later one, is no older than the complaint. The question that is out now does
    /// not count, whatever becomes of it.
    pub(crate) fn complain(&mut self, now: Instant, topic: &Arc<str>) -> u64 {
        self.interest(now, topic).used = now;
        self.want();
        self.asked + 1
    }

    /// Whether a topic is still of interest: what is not is dropped from the snapshot.
    pub(crate) fn knows(&self, topic: &str) -> bool {
        let is_matched = || self.matching.as_ref().is_some_and(|pattern| pattern.takes(topic, false));
        self.topics.contains_key(topic) || is_matched()
    }

    /// The question that is due now; call it until it returns `None`.
    pub(crate) fn poll_ask(&mut self, now: Instant) -> Option<Ask> {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        if let State::Idle { since } = self.state
            && now.saturating_duration_since(since) > self.pause * 4
        {
            // The pauses start anew when complaints are far apart.
            self.backoff.reset();
        }
        let idle = self.limits.max_idle;
        self.topics.retain(|_, topic| {
            topic.followed || topic.awaited || now.saturating_duration_since(topic.used) < idle
        });
        let failing = self.failing_since.map(|since| now.saturating_duration_since(since));
        let rebootstrap = match (self.limits.rebootstrap_after, failing) {
            (Some(after), Some(failing)) => self.misled || failing >= after,
            _ => false,
        };
        let kind = self.kind(now);
        let (create, by_id) = (kind == Kind::Create, kind == Kind::ById);
        // A question that only creates topics answers no complaint, and nobody who waits for other topics.
        let is_repeated = |topic: &Interest| topic.awaited && !topic.new && (topic.create || !create);
        self.hurried =
            (self.wanted && !create) || !self.ids.is_empty() || self.topics.values().any(is_repeated);
        (self.state, self.last) = (State::Asking, kind);
        if by_id {
            self.new_ids = false;
            let ids = self.ids.iter().copied().collect();
            return Some(Ask { topics: Vec::new(), matching: None, ids, create, rebootstrap, number: 0 });
        }
        let number = if create { 0 } else { self.asked + 1 };
        if !create {
            (self.wanted, self.new_pattern) = (false, false);
            self.asked = number;
        }
        let matching = self.matching.clone().filter(|_| !create);
        let asked = self.topics.iter_mut().filter(|(_, topic)| !create || topic.create);
        let topics = asked.map(|(name, topic)| {
            topic.new &= topic.create && !create;
            topic.awaited = false;
            Arc::clone(name)
        });
        Some(Ask { topics: topics.collect(), matching, ids: Vec::new(), create, rebootstrap, number })
    }

    /// What the next question is about. The kinds take turns, so that one that is wanted again and again, such as for a
    /// topic that nobody creates, does not keep the others from being asked. What is new does not wait for a full
    /// question that nobody wants yet.
    fn kind(&self, now: Instant) -> Kind {
        let order = match self.last {
            Kind::Full => [Kind::Create, Kind::ById, Kind::Full],
            Kind::Create => [Kind::ById, Kind::Full, Kind::Create],
            Kind::ById => [Kind::Full, Kind::Create, Kind::ById],
        };
        let is_new = self.new_ids || self.any(|topic| topic.new && topic.create);
        let is_wanted = |kind: &Kind| match kind {
            Kind::Create => self.any(|topic| topic.create),
            Kind::ById => !self.ids.is_empty(),
            Kind::Full => !is_new || self.is_full_due(now),
        };
        order.into_iter().find(is_wanted).unwrap_or(Kind::Full)
    }

    /// Whether a question about all is due, whatever else is.
    fn is_full_due(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.told_at);
        let is_awaited = || self.wanted || self.any(|topic| topic.awaited && !topic.create);
        self.new_pattern
            || self.any(|topic| topic.new && !topic.create)
            || (age >= self.pause && is_awaited())
            || age >= self.limits.max_age
    }

    fn any(&self, holds: fn(&Interest) -> bool) -> bool {
        self.topics.values().any(holds)
    }

    /// An answer has come. `changed`: it says something new.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        ask: &Ask,
        changed: bool,
        found: impl Fn(&str) -> Found,
        rng: &mut Rng,
    ) {
        self.failing_since = None;
        self.misled = false;
        if ask.number > 0 {
            self.told_at = now;
        }
        for name in &ask.topics {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            let found = found(name);
            if ask.create || found != Found::Missing {
                // Brokers were asked to create it, or it exists already.
                (topic.new, topic.create) = (false, false);
            }
            let is_looked_for = topic.followed
                || (topic.expected && now.saturating_duration_since(topic.used) < self.limits.max_idle);
            topic.unsettled = match found {
                Found::Settled => false,
                Found::Unsettled => true,
                // A missing topic is asked about again only if somebody looks for it.
                Found::Missing => is_looked_for,
            };
            topic.expected &= topic.unsettled;
            topic.awaited |= topic.unsettled && is_looked_for;
        }
        if changed || !(self.hurried || ask.create) {
            self.backoff.reset();
            self.pause = self.backoff.initial();
        } else if self.hurried {
            self.pause = self.backoff.next(rng);
        }
        self.state = State::Idle { since: now };
    }

    /// The broker that was asked says that it is not of this cluster (KIP-1102).
    pub(crate) fn rebootstrap(&mut self) {
        self.misled = true;
    }

    /// No broker could be asked.
    pub(crate) fn handle_failure(&mut self, now: Instant, ask: &Ask, rng: &mut Rng) {
        self.failing_since.get_or_insert(now);
        self.wanted = true;
        for name in &ask.topics {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.create |= ask.create;
            }
        }
        self.state = State::BackingOff { until: now + self.backoff.next(rng) };
    }

    /// When to call [`Self::poll_ask`] again, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let since = match self.state {
            State::Asking => return None,
            State::BackingOff { until } => return Some(until),
            State::Idle { since } => since,
        };
        let wait = if self.new_pattern || self.new_ids || self.any(|topic| topic.new) {
            Duration::ZERO
        } else if self.wanted || !self.ids.is_empty() || self.any(|topic| topic.awaited || topic.create) {
            self.pause
        } else if self.any(|topic| topic.unsettled) {
            UNHURRIED.min(self.limits.max_age)
        } else {
            return Some(self.told_at + self.limits.max_age);
        };
        Some(since + wait)
    }
}

#[cfg(test)]
mod tests;
