//! What a consumer cannot read, and for how long: told once it lasts, and once again when it is over. Pure.
//!
//! A poll that returns nothing says nothing: the topic may be idle, or its leader gone, its partition missing, its group
//! without a coordinator. After `unreadable.warn.ms` the difference is said, once per change of state.

use std::{sync::Arc, time::Duration};

use super::fetch::is_passing;
use crate::{error::Error, record::TopicPartition, sorted::Map, time::Instant};

/// What does not get on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The group has not let the member in.
    Group,
    /// It is subscribed to, and not there.
    Topic(Arc<str>),
    Partition(TopicPartition),
}

/// What should get on, and why it does not as far as brokers have answered.
#[derive(Debug, Default)]
pub(super) struct ShouldGetOn {
    pub(super) partitions: Vec<(TopicPartition, Option<Error>)>,
    /// Subscribed to, with no partition here.
    pub(super) topics: Vec<Arc<str>>,
    /// `None` where no group is to let the member in.
    pub(super) group: Option<Option<Error>>,
}

impl ShouldGetOn {
    /// All that does not get on, and why. That a broker cannot be reached now counts more than what it answered before.
    pub(super) fn causes(
        self,
        unreachable: impl Fn(&TopicPartition) -> Option<Error>,
        missing: impl Fn(&str) -> Option<Error>,
        without_coordinator: impl FnOnce() -> Option<Error>,
    ) -> Map<What, Error> {
        let partitions = self.partitions.into_iter().filter_map(|(key, answered)| {
            let error = unreachable(&key).or_else(|| {
                answered.map(|error| if is_passing(&error) { error.with_passing() } else { error })
            })?;
            let error = error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
            Some((What::Partition(key), error))
        });
        let topics = self
            .topics
            .into_iter()
            .filter_map(|topic| Some((What::Topic(Arc::clone(&topic)), missing(&topic)?)));
        let group = self.group.and_then(|answered| without_coordinator().or(answered));
        partitions.chain(topics).chain(group.map(|error| (What::Group, error))).collect()
    }
}

#[derive(Debug)]
pub(super) struct Starving {
    patience: Duration,
    since: Map<What, Since>,
    next_look: Instant,
}

#[derive(Debug)]
struct Since {
    at: Instant,
    told: bool,
}

/// What there is to say after a look.
#[derive(Debug, Default)]
pub(super) struct News {
    /// What has starved for so long now, with the cause.
    pub(super) starving: Vec<(What, Error)>,
    /// What was told of and goes on.
    pub(super) over: Vec<(What, Duration)>,
}

impl News {
    /// Each topic by itself.
    pub(super) fn take_topics(&mut self) -> Vec<Self> {
        let all = std::mem::take(&mut self.starving).into_iter();
        let (topics, rest): (Vec<_>, Vec<_>) = all.partition(|(what, _)| matches!(what, What::Topic(_)));
        self.starving = rest;
        topics.into_iter().map(|topic| Self { starving: vec![topic], over: Vec::new() }).collect()
    }

    /// The error for the next poll. One stands for all, and the group comes before a partition.
    pub(super) fn error(self, patience: Duration) -> Option<Error> {
        let (count, patience) = (self.starving.len(), patience.as_millis());
        let (what, cause) = self.starving.into_iter().next()?;
        Some(cause.over(match what {
            What::Group => format!("the group has not let this member in for {patience} ms"),
            What::Topic(_) => format!("a topic that is subscribed to could not be read for {patience} ms"),
            What::Partition(_) if count > 1 => {
                format!("{count} partitions could not be read for {patience} ms, of which this is one")
            }
            What::Partition(_) => format!("the partition could not be read for {patience} ms"),
        }))
    }
}

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

impl Starving {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self { patience, since: Map::new(), next_look: now + LOOK }
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_look
    }

    /// Whether it is time to look, and to call [`Self::handle_look`] with what does not get on.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_look <= now
    }

    /// `why`: all that does not get on now, and its cause.
    pub(super) fn handle_look(&mut self, now: Instant, why: Map<What, Error>) -> News {
        self.next_look = now + LOOK;
        let mut news = News::default();
        self.since.retain(|what, since| {
            let starves = why.contains_key(what);
            if !starves && since.told {
                news.over.push((what.clone(), now.saturating_duration_since(since.at)));
            }
            starves
        });
        for (what, error) in why {
            let since = self.since.entry(what.clone()).or_insert(Since { at: now, told: false });
            if !since.told && now.saturating_duration_since(since.at) >= self.patience {
                since.told = true;
                news.starving.push((what, error));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, code};

    #[test]
    fn what_starves_for_long_is_told_once_and_so_is_its_end() {
        let start = crate::time::now();
        let mut starving = Starving::new(start, Duration::from_secs(10));
        let partition = What::Partition(TopicPartition::new("orders", 3));
        let why = || Map::from([(partition.clone(), Error::new(ErrorKind::Timeout, "no leader"))]);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert!(starving.handle_look(at(second), why()).starving.is_empty(), "{second}");
        }
        assert_eq!(starving.handle_look(at(10), why()).starving.len(), 1);
        assert!(starving.handle_look(at(11), why()).starving.is_empty(), "once");
        let news = starving.handle_look(at(12), Map::new());
        assert_eq!(news.over, [(partition.clone(), Duration::from_secs(12))]);
        // A short one is not worth a word.
        starving.handle_look(at(13), why());
        assert!(starving.handle_look(at(15), Map::new()).over.is_empty());
        starving.handle_look(at(20), why());
        assert!(starving.handle_look(at(25), why()).starving.is_empty(), "its time begins anew");
        assert!(!starving.is_due(at(25)) && starving.is_due(starving.poll_timeout()));
    }

    #[test]
    fn what_starves_is_said_with_its_cause_and_for_all_that_starve() {
        let error = |text: &'static str| Error::new(ErrorKind::Timeout, text);
        let partition = |number| TopicPartition::new("orders", number);
        let answered = |number, answer: Option<_>| (partition(number), answer.map(error));
        // What should get on, which partition has no leader, whether there is a coordinator, and what is said.
        type Row = (ShouldGetOn, Option<i32>, bool, Option<&'static str>);
        let rows: [Row; 8] = [
            (
                ShouldGetOn { topics: vec!["missing".into(), "users".into()], ..ShouldGetOn::default() },
                None,
                true,
                Some("a topic that is subscribed to could not be read for 10 ms: no such topic"),
            ),
            (ShouldGetOn::default(), Some(0), false, None),
            (
                ShouldGetOn { partitions: vec![answered(0, None)], group: None, topics: Vec::new() },
                None,
                false,
                None,
            ),
            (
                ShouldGetOn {
                    partitions: vec![answered(0, Some("refused"))],
                    group: None,
                    topics: Vec::new(),
                },
                Some(0),
                false,
                Some("the partition could not be read for 10 ms [topic orders partition 0]: no leader"),
            ),
            (
                ShouldGetOn {
                    partitions: vec![
                        answered(3, Some("refused")),
                        answered(4, None),
                        answered(5, Some("slow")),
                    ],
                    group: None,
                    topics: Vec::new(),
                },
                None,
                false,
                Some(
                    "2 partitions could not be read for 10 ms, of which this is one [topic orders partition 3]: refused",
                ),
            ),
            (
                ShouldGetOn {
                    partitions: vec![answered(0, Some("refused"))],
                    group: Some(None),
                    topics: Vec::new(),
                },
                None,
                false,
                Some("the group has not let this member in for 10 ms: no coordinator"),
            ),
            (
                ShouldGetOn {
                    partitions: Vec::new(),
                    group: Some(Some(error("not authorized"))),
                    topics: Vec::new(),
                },
                None,
                true,
                Some("the group has not let this member in for 10 ms: not authorized"),
            ),
            (ShouldGetOn { partitions: Vec::new(), group: Some(None), topics: Vec::new() }, None, true, None),
        ];
        let patience = Duration::from_millis(10);
        for (should, leaderless, has_coordinator, said) in rows {
            let shown = format!("{should:?}");
            let why = should.causes(
                |key| (leaderless == Some(key.partition)).then(|| error("no leader")),
                |topic| (topic == "missing").then(|| error("no such topic")),
                || (!has_coordinator).then(|| error("no coordinator")),
            );
            let starving = why.into_iter().collect();
            let text = News { starving, over: Vec::new() }.error(patience).map(|error| error.to_string());
            let text = text.as_deref();
            assert!(
                text == said || said.zip(text).is_some_and(|(said, text)| text.starts_with(said)),
                "{shown}: {text:?}"
            );
        }
    }

    #[test]
    fn what_the_client_asks_for_again_passes_whatever_its_code_says() {
        let passes = |code| {
            let answered = Some(Error::from_code("Fetch", code));
            let should = ShouldGetOn {
                partitions: vec![(TopicPartition::new("orders", 0), answered)],
                ..ShouldGetOn::default()
            };
            let why = should.causes(|_| None, |_| None, || None);
            let mut starving = Starving::new(crate::time::now(), Duration::ZERO);
            let news = starving.handle_look(crate::time::now(), why);
            news.error(Duration::ZERO).unwrap().is_retriable()
        };
        assert!(passes(code::UNKNOWN_SERVER_ERROR) && passes(code::NOT_LEADER_OR_FOLLOWER));
        assert!(!passes(code::TOPIC_AUTHORIZATION_FAILED), "somebody has to act");
    }
}
