//! When to ask for metadata, and about which topics. Pure: the task asks and reports back.
//!
//! ```text
//!   Idle ──(wanted, too old, new topic)──> Asking ──ok──> Idle
//!                                            │ failed
//!                                            └──> BackingOff ──(time)──> Asking
//! ```
//! A topic is followed while somebody subscribes to it, and for `metadata.max.idle.ms` after it was last used; then it is
//! forgotten. While topics are wanted by a pattern, all are asked about; a topic may also be asked about by its id, by itself,
//! as brokers want it. Brokers may create a topic only where somebody asks for it who wants that: no refresh ever does.
//! Never asks twice at once. Who complains or waits is served after `retry.backoff.ms` at first, and less often while the
//! answers stay the same (KIP-580); a topic that nobody has asked about yet does not wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::metadata::TopicId;
use crate::{
    pattern::Pattern,
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
    /// Only the bootstrap addresses are asked (KIP-1102): no known broker has told anything for long.
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

/// How often an unsettled topic is looked at that nobody waits for.
const UNHURRIED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Refresh {
    topics: BTreeMap<Arc<str>, Interest>,
    /// Topics whose names are looked for.
    matching: Option<Arc<Pattern>>,
    ids: BTreeSet<TopicId>,
    /// The last question was for ids: the next is not.
    was_by_id: bool,
    /// The pattern or an id has not been asked about yet.
    unasked: bool,
    state: State,
    /// Someone saw that the snapshot is stale.
    wanted: bool,
    /// How many questions about all topics of interest were put, whatever became of them.
    asked: u64,
    /// The question that is out came of a complaint or of somebody who waits.
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
    /// `None`: a client that knows brokers never goes back to the bootstrap addresses alone.
    pub(crate) rebootstrap_after: Option<Duration>,
}

#[derive(Debug)]
struct Interest {
    used: Instant,
    /// Subscribed to: never idle.
    followed: bool,
    /// Somebody waits for it.
    awaited: bool,
    /// Nobody has asked about it yet: it need not wait.
    new: bool,
    create: bool,
    unsettled: bool,
    /// Somebody has written to it: an answer without it is too old.
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
            topics: BTreeMap::new(),
            matching: None,
            ids: BTreeSet::new(),
            was_by_id: false,
            unasked: false,
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

    /// Somebody waits for these topics, or has records for them.
    pub(crate) fn want_topics<'a>(
        &mut self,
        now: Instant,
        topics: impl IntoIterator<Item = &'a Arc<str>>,
        create: Create,
    ) {
        for topic in topics {
            let interest = self.interest(now, topic);
            interest.used = now;
            interest.awaited = true;
            interest.create |= create == Create::IfAllowed;
        }
    }

    /// This topic was written to: it is asked about until an answer has it, for `metadata.max.idle.ms` at most.
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
        let topics: BTreeSet<&Arc<str>> = topics.iter().collect();
        for (topic, interest) in &mut self.topics {
            if interest.followed && !topics.contains(topic) {
                interest.followed = false;
                // Given up: whoever else uses it says so.
                interest.used = now.checked_sub(self.limits.max_idle).unwrap_or(now);
            }
        }
        for topic in topics {
            self.interest(now, topic).followed = true;
        }
    }

    /// From now on topics of this pattern are subscribed to as well.
    pub(crate) fn follow_matching(&mut self, pattern: Option<Arc<Pattern>>) {
        self.unasked |= pattern.is_some();
        self.matching = pattern;
    }

    /// Exactly these topics are looked for by id.
    pub(crate) fn identify(&mut self, ids: &[TopicId]) {
        self.unasked |= ids.iter().any(|id| !self.ids.contains(id));
        self.was_by_id &= !self.unasked;
        self.ids = ids.iter().copied().collect();
    }

    /// A topic that was asked about by id has this name: it is of interest for `metadata.max.idle.ms`.
    pub(crate) fn handle_named(&mut self, now: Instant, topic: &Arc<str>) {
        let known = self.topics.contains_key(topic);
        let interest = self.interest(now, topic);
        interest.used = now;
        interest.new &= known;
    }

    /// The names that the snapshot has for ids now. What it did not take in, whoever told of it, is asked about again, and no
    /// sooner than anything else.
    pub(crate) fn handle_names(&mut self, names: &BTreeMap<TopicId, Arc<str>>) {
        self.ids.retain(|id| !names.contains_key(id));
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

    /// As [`Self::want`], of one topic; the number of the first question that is put after this complaint. An answer to that one
    /// or to a later one is no older. One that is out does not count, whether its answer is taken over, lost, or on its way.
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
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        if let State::Idle { since } = self.state
            && now.saturating_duration_since(since) > self.pause * 4
        {
            // Complaints that are far apart do not slow each other down.
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
        self.hurried = self.wanted
            || !self.ids.is_empty()
            || self.topics.values().any(|topic| topic.awaited && !topic.new);
        self.state = State::Asking;
        // Those that may be created are asked about by themselves, so that nothing else comes back by it.
        let create = self.topics.values().any(|topic| topic.create);
        let by_id = !create && !self.ids.is_empty() && !self.was_by_id;
        self.was_by_id = by_id;
        self.unasked = false;
        if by_id {
            let ids = self.ids.iter().copied().collect();
            return Some(Ask { topics: Vec::new(), matching: None, ids, create, rebootstrap, number: 0 });
        }
        let number = if create { 0 } else { self.asked + 1 };
        if !create {
            self.wanted = false;
            self.asked = number;
        }
        let matching = self.matching.clone().filter(|_| !create);
        let asked = self.topics.iter_mut().filter(|(_, topic)| !create || topic.create);
        let topics = asked.map(|(name, topic)| {
            (topic.new, topic.awaited) = (false, false);
            Arc::clone(name)
        });
        Some(Ask { topics: topics.collect(), matching, ids: Vec::new(), create, rebootstrap, number })
    }

    /// When to call [`Self::poll_ask`] again, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due()
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
        for name in &ask.topics {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            if ask.create {
                topic.create = false;
            }
            let is_looked_for = topic.followed
                || (topic.expected && now.saturating_duration_since(topic.used) < self.limits.max_idle);
            topic.unsettled = match found(name) {
                Found::Settled => false,
                Found::Unsettled => true,
                // Whoever waits for it asks again; nobody else needs to know.
                Found::Missing => is_looked_for,
            };
            topic.expected &= topic.unsettled;
            topic.awaited |= topic.unsettled && is_looked_for;
        }
        if changed || !self.hurried {
            self.backoff.reset();
            self.pause = self.backoff.initial();
        } else {
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

    fn due(&self) -> Option<Instant> {
        let since = match self.state {
            State::Asking => return None,
            State::BackingOff { until } => return Some(until),
            State::Idle { since } => since,
        };
        let any = |holds: fn(&Interest) -> bool| self.topics.values().any(holds);
        let wait = if self.unasked || any(|topic| topic.new) {
            Duration::ZERO
        } else if self.wanted || !self.ids.is_empty() || any(|topic| topic.awaited || topic.create) {
            self.pause
        } else if any(|topic| topic.unsettled) {
            UNHURRIED.min(self.limits.max_age)
        } else {
            self.limits.max_age
        };
        Some(since + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_AGE: Duration = Duration::from_secs(300);
    const MAX_IDLE: Duration = Duration::from_secs(60);
    const BACKOFF: Duration = Duration::from_millis(100);

    fn refresh(now: Instant) -> Refresh {
        let limits = Limits {
            max_age: MAX_AGE,
            max_idle: MAX_IDLE,
            rebootstrap_after: Some(Duration::from_secs(300)),
        };
        Refresh::new(now, limits, Backoff::new(BACKOFF, Duration::from_secs(1)))
    }

    /// One that has had its first answer.
    fn settled(now: Instant) -> Refresh {
        let mut refresh = refresh(now);
        answer(&mut refresh, now, Found::Settled);
        refresh
    }

    /// Asks, and answers with the same for every topic; returns what was asked.
    fn answer(refresh: &mut Refresh, now: Instant, found: Found) -> Ask {
        let ask = refresh.poll_ask(now).expect("a question is due");
        assert_eq!(refresh.poll_ask(now), None, "one question at a time");
        refresh.handle_answer(now, &ask, false, |_| found, &mut Rng::new(1));
        ask
    }

    fn topics(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn waits(refresh: &Refresh, now: Instant) -> Duration {
        refresh.poll_timeout().unwrap() - now
    }

    #[test]
    fn asks_at_once_then_only_when_too_old() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        assert_eq!(refresh.poll_timeout(), Some(now + MAX_AGE));
        assert_eq!(refresh.poll_ask(now + MAX_AGE - Duration::from_millis(1)), None);
        assert!(refresh.poll_ask(now + MAX_AGE).is_some());
    }

    #[test]
    fn a_burst_of_complaints_is_one_question_after_the_back_off() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        for _ in 0..100 {
            refresh.want();
        }
        assert_eq!(refresh.poll_ask(now), None);
        answer(&mut refresh, now + BACKOFF, Found::Settled);
        assert_eq!(refresh.poll_ask(now + 2 * BACKOFF), None);
    }

    #[test]
    fn complaints_that_change_nothing_are_served_less_and_less_often_and_news_end_that() {
        let mut now = crate::time::now();
        let mut refresh = settled(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            refresh.want();
            pauses.push(waits(&refresh, now));
            now += waits(&refresh, now);
            answer(&mut refresh, now, Found::Settled);
        }
        assert!(pauses[5] > 5 * pauses[0], "{pauses:?}");
        refresh.want();
        now += waits(&refresh, now);
        let ask = refresh.poll_ask(now).unwrap();
        refresh.handle_answer(now, &ask, true, |_| Found::Settled, &mut Rng::new(1));
        refresh.want();
        assert_eq!(waits(&refresh, now), BACKOFF);
    }

    #[test]
    fn a_complaint_during_a_question_is_not_lost() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        let ask = refresh.poll_ask(now).unwrap();
        refresh.want();
        refresh.handle_answer(now, &ask, false, |_| Found::Settled, &mut Rng::new(1));
        assert!(refresh.poll_ask(now + 2 * BACKOFF).is_some());
    }

    #[test]
    fn a_complaint_during_a_question_that_fails_is_answered_by_the_next_one() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.want();
        let lost = refresh.poll_ask(now + BACKOFF).unwrap();
        let awaited = refresh.complain(now + BACKOFF, &"orders".into());
        assert!(lost.number < awaited, "it was put before the complaint");
        refresh.handle_failure(now + BACKOFF, &lost, &mut Rng::new(1));
        let again = answer(&mut refresh, now + 3 * BACKOFF, Found::Settled);
        assert_eq!((again.number, again.topics), (awaited, topics(&["orders"])));
        assert_eq!(waits(&refresh, now + 3 * BACKOFF), MAX_AGE, "nothing else is asked for it");
    }

    #[test]
    fn a_complaint_between_an_answer_and_its_snapshot_is_answered_by_the_next_question() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.want();
        // The core has this answer already; the snapshot that carries its number is not published yet.
        let early = answer(&mut refresh, now + BACKOFF, Found::Settled);
        let awaited = refresh.complain(now + BACKOFF, &"orders".into());
        assert!(early.number < awaited, "it was answered before the complaint");
        assert_eq!(answer(&mut refresh, now + 3 * BACKOFF, Found::Settled).number, awaited);
    }

    #[test]
    fn a_question_about_some_topics_only_answers_no_complaint() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        let awaited = refresh.complain(now, &"orders".into());
        refresh.want_topics(now, &topics(&["new"]), Create::IfAllowed);
        refresh.identify(&[[1; 16]]);
        let mut later = now;
        let mut asked = Vec::new();
        for _ in 0..3 {
            later += 2 * BACKOFF;
            asked.push(answer(&mut refresh, later, Found::Settled).number);
        }
        assert_eq!(asked, [0, 0, awaited]);
    }

    #[test]
    fn a_new_topic_does_not_wait_but_a_broken_cluster_makes_it_wait() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.want_topics(now, &topics(&["orders"]), Create::Never);
        let ask = refresh.poll_ask(now).unwrap();
        assert_eq!((ask.topics.len(), ask.create), (1, false));
        refresh.handle_failure(now, &ask, &mut Rng::new(1));
        refresh.want_topics(now, &topics(&["more"]), Create::Never);
        assert_eq!(refresh.poll_ask(now), None);
        assert!(refresh.poll_ask(now + 2 * BACKOFF).is_some());
    }

    #[test]
    fn a_missing_topic_is_looked_for_as_long_as_somebody_waits_and_then_no_more() {
        let mut now = crate::time::now();
        let mut refresh = settled(now);
        for _ in 0..10 {
            refresh.want_topics(now, &topics(&["orders"]), Create::Never);
            assert!(waits(&refresh, now) <= Duration::from_millis(1200));
            now += waits(&refresh, now);
            answer(&mut refresh, now, Found::Missing);
        }
        assert_eq!(waits(&refresh, now), MAX_AGE);
    }

    #[test]
    fn a_topic_that_was_written_to_is_asked_about_until_it_is_found_or_for_a_time() {
        for (is_there, asked) in [(true, 4), (false, 60)] {
            let begun = crate::time::now();
            let (mut now, mut refresh) = (begun, settled(begun));
            refresh.expect(now, &"new".into());
            assert_eq!(waits(&refresh, now), Duration::ZERO);
            let mut answers = 0;
            while waits(&refresh, now) < UNHURRIED {
                now += waits(&refresh, now);
                answers += 1;
                answer(
                    &mut refresh,
                    now,
                    if is_there && answers > 3 { Found::Settled } else { Found::Missing },
                );
            }
            assert!((4..=asked + 10).contains(&answers), "{answers}");
            assert_eq!(is_there, now - begun < MAX_IDLE, "{:?}", now - begun);
            assert_eq!(waits(&refresh, now), MAX_AGE);
        }
    }

    #[test]
    fn a_topic_without_partitions_or_leaders_is_looked_at_again_unasked() {
        let mut now = crate::time::now();
        let mut refresh = settled(now);
        refresh.touch(now, &topics(&["used"]));
        answer(&mut refresh, now, Found::Unsettled);
        assert_eq!(waits(&refresh, now), UNHURRIED);
        refresh.follow(now, &topics(&["followed"]));
        answer(&mut refresh, now, Found::Missing);
        for _ in 0..5 {
            let pause = waits(&refresh, now);
            assert!(pause <= Duration::from_millis(1200), "{pause:?}");
            now += pause;
            answer(&mut refresh, now, Found::Missing);
        }
        now += waits(&refresh, now);
        answer(&mut refresh, now, Found::Settled);
        assert_eq!(waits(&refresh, now), MAX_AGE);
    }

    #[test]
    fn brokers_may_create_only_what_is_wanted_by_name_and_no_refresh_brings_a_topic_back() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.touch(now, &topics(&["old"]));
        answer(&mut refresh, now, Found::Settled);
        refresh.want_topics(now, &topics(&["new"]), Create::IfAllowed);
        let ask = answer(&mut refresh, now, Found::Unsettled);
        assert_eq!((ask.topics.clone(), ask.create), (topics(&["new"]), true));
        refresh.want();
        let ask = answer(&mut refresh, now + 2 * BACKOFF, Found::Settled);
        assert_eq!((ask.topics, ask.create), (topics(&["new", "old"]), false));
    }

    #[test]
    fn a_question_that_may_create_is_put_again_when_it_was_lost() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.want_topics(now, &topics(&["new"]), Create::IfAllowed);
        let ask = refresh.poll_ask(now).unwrap();
        refresh.handle_failure(now, &ask, &mut Rng::new(1));
        assert_eq!(refresh.poll_ask(now + 2 * BACKOFF), Some(ask));
    }

    #[test]
    fn a_topic_is_forgotten_when_it_is_idle_or_not_subscribed_to_any_more() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.touch(now, &topics(&["idle", "used"]));
        refresh.follow(now, &topics(&["followed", "left"]));
        answer(&mut refresh, now, Found::Settled);
        let later = now + MAX_IDLE;
        refresh.touch(later, &topics(&["used"]));
        refresh.follow(later, &topics(&["followed"]));
        refresh.want();
        let ask = answer(&mut refresh, later, Found::Settled);
        assert_eq!(ask.topics, topics(&["followed", "used"]));
        assert!(refresh.knows("used") && !refresh.knows("idle") && !refresh.knows("left"));
    }

    #[test]
    fn who_gets_no_answer_for_long_goes_back_to_the_bootstrap_addresses_alone() {
        let mut now = crate::time::now();
        let start = now;
        let mut refresh = settled(now);
        refresh.want();
        now += BACKOFF;
        loop {
            let ask = refresh.poll_ask(now).unwrap();
            if ask.rebootstrap {
                break;
            }
            refresh.handle_failure(now, &ask, &mut Rng::new(1));
            now = refresh.poll_timeout().unwrap();
        }
        let took = now - start;
        assert!((300..303).contains(&took.as_secs()), "{took:?}");
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn topics_of_a_pattern_are_asked_about_with_all_at_once_and_when_metadata_is_old() {
        let now = crate::time::now();
        let mut refresh = settled(now);
        refresh.follow(now, &topics(&["mine"]));
        answer(&mut refresh, now, Found::Settled);
        let pattern = Pattern::new("orders.*", false).unwrap();
        refresh.follow_matching(Some(Arc::clone(&pattern)));
        let ask = answer(&mut refresh, now, Found::Settled);
        assert_eq!((ask.matching.as_ref(), ask.topics.len()), (Some(&pattern), 1));
        assert!(refresh.knows("orders-eu") && refresh.knows("mine") && !refresh.knows("users"));
        assert_eq!(waits(&refresh, now), MAX_AGE);
        refresh.want_topics(now, &topics(&["new"]), Create::IfAllowed);
        let ask = answer(&mut refresh, now, Found::Settled);
        assert!(ask.create && ask.matching.is_none(), "nothing else is created by it");
        assert!(answer(&mut refresh, now + MAX_AGE * 2, Found::Settled).matching.is_some());
        refresh.follow_matching(None);
        assert!(!refresh.knows("orders-eu"));
    }

    #[test]
    fn ids_are_asked_about_by_themselves_and_in_turn_with_names_until_they_have_one() {
        let mut now = crate::time::now();
        let mut refresh = settled(now);
        refresh.follow(now, &topics(&["mine"]));
        answer(&mut refresh, now, Found::Settled);
        refresh.identify(&[[1; 16], [2; 16]]);
        let ask = answer(&mut refresh, now, Found::Settled);
        assert_eq!((ask.ids.len(), ask.topics.len()), (2, 0));
        refresh.handle_named(now, &"orders".into());
        refresh.handle_names(&[([1; 16], "orders".into())].into());
        assert!(refresh.knows("orders"));
        let mut pauses = Vec::new();
        for _ in 0..4 {
            for ids in [0, 1] {
                pauses.push(waits(&refresh, now));
                now += waits(&refresh, now);
                assert_eq!(answer(&mut refresh, now, Found::Settled).ids.len(), ids);
            }
        }
        assert!(pauses[0] > Duration::ZERO && pauses[7] > 3 * pauses[1], "{pauses:?}");
        refresh.identify(&[]);
        assert_eq!(waits(&refresh, now), MAX_AGE);
    }
}
