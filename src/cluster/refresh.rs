//! When to ask for metadata, and about which topics. Pure: the task asks and reports back.
//!
//! ```text
//!   Idle ──(wanted, too old, new topic)──> Asking ──ok──────────────> Idle
//!                                            │ failed, or incomplete
//!                                            └──> BackingOff ──(time)──> Asking
//! ```
//! Never asks twice at once, and never again sooner than `retry.backoff.ms` but for a new topic.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::time::{Backoff, Instant, Rng};

/// The question to put to some broker: these topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) topics: Vec<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Refresh {
    topics: BTreeSet<Arc<str>>,
    state: State,
    /// Someone saw that the snapshot is stale.
    wanted: bool,
    /// A topic nobody has asked about yet.
    new_topic: bool,
    max_age: Duration,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    Idle {
        since: Instant,
    },
    Asking,
    /// `reachable`: brokers answer, but a topic is not complete yet.
    BackingOff {
        since: Instant,
        until: Instant,
        reachable: bool,
    },
}

impl Refresh {
    pub(crate) fn new(now: Instant, max_age: Duration, backoff: Backoff) -> Self {
        Self {
            topics: BTreeSet::new(),
            state: State::BackingOff { since: now, until: now, reachable: false },
            wanted: true,
            new_topic: false,
            max_age,
            backoff,
        }
    }

    /// Adds topics to what is asked about from now on.
    pub(crate) fn add_topics(&mut self, topics: &[Arc<str>]) {
        for topic in topics {
            self.new_topic |= self.topics.insert(Arc::clone(topic));
        }
    }

    /// The snapshot is known to be stale.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// The question that is due now; call it until it returns `None`.
    pub(crate) fn poll_ask(&mut self, now: Instant) -> Option<Ask> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.state = State::Asking;
        self.wanted = false;
        self.new_topic = false;
        Some(Ask { topics: self.topics.iter().cloned().collect() })
    }

    /// When to call [`Self::poll_ask`] again, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due()
    }

    /// An answer has come. `complete`: every topic asked about has its leaders.
    pub(crate) fn handle_answer(&mut self, now: Instant, complete: bool, rng: &mut Rng) {
        if complete {
            self.backoff.reset();
            self.state = State::Idle { since: now };
        } else {
            // A topic is being created or has no leader yet: look again soon.
            self.wanted = true;
            self.state =
                State::BackingOff { since: now, until: now + self.backoff.next(rng), reachable: true };
        }
    }

    /// No broker could be asked.
    pub(crate) fn handle_failure(&mut self, now: Instant, rng: &mut Rng) {
        self.wanted = true;
        self.state = State::BackingOff { since: now, until: now + self.backoff.next(rng), reachable: false };
    }

    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Asking => None,
            State::Idle { since } | State::BackingOff { since, reachable: true, .. } if self.new_topic => {
                Some(since)
            }
            State::BackingOff { until, .. } => Some(until),
            State::Idle { since } if self.wanted => Some(since + self.backoff.initial()),
            State::Idle { since } => Some(since + self.max_age),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_AGE: Duration = Duration::from_secs(300);

    fn refresh(now: Instant) -> Refresh {
        Refresh::new(now, MAX_AGE, Backoff::new(Duration::from_millis(100), Duration::from_secs(1)))
    }

    #[test]
    fn asks_at_once_then_only_when_too_old() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        assert_eq!(refresh.poll_ask(now), Some(Ask { topics: vec![] }));
        assert_eq!(refresh.poll_ask(now), None, "one question at a time");
        refresh.handle_answer(now, true, &mut Rng::new(1));
        assert_eq!(refresh.poll_timeout(), Some(now + MAX_AGE));
        assert_eq!(refresh.poll_ask(now + MAX_AGE - Duration::from_millis(1)), None);
        assert!(refresh.poll_ask(now + MAX_AGE).is_some());
    }

    #[test]
    fn a_burst_of_complaints_is_one_question_after_the_back_off() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        refresh.poll_ask(now);
        refresh.handle_answer(now, true, &mut Rng::new(1));
        for _ in 0..100 {
            refresh.want();
        }
        assert_eq!(refresh.poll_ask(now), None);
        let later = now + Duration::from_millis(100);
        assert!(refresh.poll_ask(later).is_some());
        refresh.handle_answer(later, true, &mut Rng::new(1));
        assert_eq!(refresh.poll_ask(later + Duration::from_millis(100)), None);
    }

    #[test]
    fn a_complaint_during_a_question_is_not_lost() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        refresh.poll_ask(now);
        refresh.want();
        refresh.handle_answer(now, true, &mut Rng::new(1));
        assert!(refresh.poll_ask(now + Duration::from_millis(100)).is_some());
    }

    #[test]
    fn a_new_topic_does_not_wait_but_a_broken_cluster_makes_it_wait() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        refresh.poll_ask(now);
        refresh.handle_answer(now, true, &mut Rng::new(1));
        refresh.add_topics(&["orders".into()]);
        assert_eq!(refresh.poll_ask(now), Some(Ask { topics: vec!["orders".into()] }));
        refresh.handle_failure(now, &mut Rng::new(1));
        refresh.add_topics(&["more".into()]);
        assert_eq!(refresh.poll_ask(now), None);
        assert!(refresh.poll_ask(now + Duration::from_millis(120)).is_some());
    }

    #[test]
    fn an_incomplete_answer_is_asked_again_with_growing_pauses() {
        let now = crate::time::now();
        let mut refresh = refresh(now);
        let mut rng = Rng::new(1);
        refresh.poll_ask(now);
        refresh.handle_answer(now, false, &mut rng);
        let first = refresh.poll_timeout().unwrap() - now;
        refresh.poll_ask(now + first);
        refresh.handle_answer(now + first, false, &mut rng);
        let second = refresh.poll_timeout().unwrap() - (now + first);
        assert!(second > first, "{first:?} then {second:?}");
    }
}
