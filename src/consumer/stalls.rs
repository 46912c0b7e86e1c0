//! What a consumer cannot read, and for how long. Pure.
//!
//! An empty poll does not tell an idle topic from one whose leader is gone, whose partition is missing, or whose group has
//! no coordinator. So a stall is reported with its cause once it has lasted for `unreadable.warn.ms`, and again when it is over.

use std::{sync::Arc, time::Duration};

use super::fetch::is_passing;
use crate::{
    error::{Error, ErrorKind},
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

/// Where a consumer makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stalled {
    /// The group has not let the member in.
    Group,
    /// A topic that is subscribed to and does not exist.
    Topic(Arc<str>),
    /// Everything, because the user has paused it.
    Paused,
    Partition(TopicPartition),
}

/// Where a consumer should make progress, with the last error that brokers have answered with there.
#[derive(Debug, Default)]
pub(super) struct ExpectedProgress {
    pub(super) partitions: Vec<(TopicPartition, Option<Error>)>,
    /// How many partitions the user has paused, if these are all.
    pub(super) paused: usize,
    /// Subscribed to, with no partition here.
    pub(super) topics: Vec<Arc<str>>,
    /// `None` where no group is to let the member in.
    pub(super) group: Option<Option<Error>>,
}

impl ExpectedProgress {
    /// All that makes no progress, and why. An unreachable broker counts more than what it answered before.
    pub(super) fn causes(
        self,
        unreachable: impl Fn(&TopicPartition) -> Option<Error>,
        missing: impl Fn(&str) -> Option<Error>,
        without_coordinator: impl FnOnce() -> Option<Error>,
    ) -> Map<Stalled, Error> {
        let partitions = self.partitions.into_iter().filter_map(|(key, answered)| {
            let error = unreachable(&key).or_else(|| {
                answered.map(|error| if is_passing(&error) { error.with_passing() } else { error })
            })?;
            let error = error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
            Some((Stalled::Partition(key), error))
        });
        let topics = self
            .topics
            .into_iter()
            .filter_map(|topic| Some((Stalled::Topic(Arc::clone(&topic)), missing(&topic)?)));
        let paused = (self.paused > 0).then(|| {
            let text = format!("all partitions of this consumer are paused, {} of them", self.paused);
            let error = Error::new(ErrorKind::InvalidArgument, text).with_hint("resume them to read on");
            (Stalled::Paused, error)
        });
        let group = self.group.and_then(|answered| without_coordinator().or(answered));
        partitions.chain(topics).chain(paused).chain(group.map(|error| (Stalled::Group, error))).collect()
    }
}

#[derive(Debug)]
pub(super) struct Stalls {
    patience: Duration,
    since: Map<Stalled, Since>,
    next_look: Instant,
}

#[derive(Debug)]
struct Since {
    at: Instant,
    is_reported: bool,
}

/// What is to be reported after a look.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What has stalled for `unreadable.warn.ms` now, with the cause.
    pub(super) stalled: Vec<(Stalled, Error)>,
    /// What was reported before and makes progress again, and how long it was stalled.
    pub(super) over: Vec<(Stalled, Duration)>,
}

impl Changes {
    /// What is no error of poll, each by itself: of other topics all is read, and what is paused was paused on purpose.
    pub(super) fn take_harmless(&mut self) -> Vec<Self> {
        let all = std::mem::take(&mut self.stalled).into_iter();
        let (harmless, rest): (Vec<_>, Vec<_>) =
            all.partition(|(what, _)| matches!(what, Stalled::Topic(_) | Stalled::Paused));
        self.stalled = rest;
        harmless.into_iter().map(|one| Self { stalled: vec![one], over: Vec::new() }).collect()
    }

    /// The error for the next poll. One stands for all, and the group comes before a partition.
    pub(super) fn error(self, patience: Duration) -> Option<Error> {
        let (count, patience) = (self.stalled.len(), patience.as_millis());
        let (what, cause) = self.stalled.into_iter().next()?;
        Some(cause.over(match what {
            Stalled::Group => format!("the group has not let this member in for {patience} ms"),
            Stalled::Paused => format!("nothing was read for {patience} ms"),
            Stalled::Topic(_) => format!("a topic that is subscribed to could not be read for {patience} ms"),
            Stalled::Partition(_) if count > 1 => {
                format!("{count} partitions could not be read for {patience} ms, of which this is one")
            }
            Stalled::Partition(_) => format!("the partition could not be read for {patience} ms"),
        }))
    }
}

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);

impl Stalls {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self { patience, since: Map::new(), next_look: now + LOOK }
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_look
    }

    /// Whether it is time to look, and to call [`Self::handle_look`] with what makes no progress.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_look <= now
    }

    /// `why`: all that makes no progress now, and its cause.
    pub(super) fn handle_look(&mut self, now: Instant, why: Map<Stalled, Error>) -> Changes {
        self.next_look = now + LOOK;
        let mut changes = Changes::default();
        self.since.retain(|what, since| {
            let is_stalled = why.contains_key(what);
            if !is_stalled && since.is_reported {
                changes.over.push((what.clone(), now.saturating_duration_since(since.at)));
            }
            is_stalled
        });
        for (what, error) in why {
            let since = self.since.entry(what.clone()).or_insert(Since { at: now, is_reported: false });
            if !since.is_reported && now.saturating_duration_since(since.at) >= self.patience {
                since.is_reported = true;
                changes.stalled.push((what, error));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, code};

    #[test]
    fn a_stall_that_lasts_is_reported_once_and_so_is_its_end() {
        let start = crate::time::now();
        let mut stalls = Stalls::new(start, Duration::from_secs(10));
        let partition = Stalled::Partition(TopicPartition::new("orders", 3));
        let why = || Map::from([(partition.clone(), Error::new(ErrorKind::Timeout, "no leader"))]);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert!(stalls.handle_look(at(second), why()).stalled.is_empty(), "{second}");
        }
        assert_eq!(stalls.handle_look(at(10), why()).stalled.len(), 1);
        assert!(stalls.handle_look(at(11), why()).stalled.is_empty(), "once");
        let changes = stalls.handle_look(at(12), Map::new());
        assert_eq!(changes.over, [(partition.clone(), Duration::from_secs(12))]);
        // A short one is not reported.
        stalls.handle_look(at(13), why());
        assert!(stalls.handle_look(at(15), Map::new()).over.is_empty());
        stalls.handle_look(at(20), why());
        assert!(stalls.handle_look(at(25), why()).stalled.is_empty(), "its time begins anew");
        assert!(!stalls.is_due(at(25)) && stalls.is_due(stalls.poll_timeout()));
    }

    #[test]
    fn one_error_with_its_cause_stands_for_all_that_is_stalled() {
        let error = |text: &'static str| Error::new(ErrorKind::Timeout, text);
        let partition = |number| TopicPartition::new("orders", number);
        let answered = |number, answer: Option<_>| (partition(number), answer.map(error));
        // Where progress is expected, which partition has no leader, whether there is a coordinator, and the error.
        type Row = (ExpectedProgress, Option<i32>, bool, Option<&'static str>);
        let rows: [Row; 9] = [
            (
                ExpectedProgress {
                    topics: vec!["missing".into(), "users".into()],
                    ..ExpectedProgress::default()
                },
                None,
                true,
                Some("a topic that is subscribed to could not be read for 10 ms: no such topic"),
            ),
            (ExpectedProgress::default(), Some(0), false, None),
            (
                ExpectedProgress { paused: 3, ..ExpectedProgress::default() },
                None,
                true,
                Some("nothing was read for 10 ms: all partitions of this consumer are paused, 3 of them"),
            ),
            (
                ExpectedProgress { partitions: vec![answered(0, None)], ..ExpectedProgress::default() },
                None,
                false,
                None,
            ),
            (
                ExpectedProgress {
                    partitions: vec![answered(0, Some("refused"))],
                    ..ExpectedProgress::default()
                },
                Some(0),
                false,
                Some("the partition could not be read for 10 ms [topic orders partition 0]: no leader"),
            ),
            (
                ExpectedProgress {
                    partitions: vec![
                        answered(3, Some("refused")),
                        answered(4, None),
                        answered(5, Some("slow")),
                    ],
                    ..ExpectedProgress::default()
                },
                None,
                false,
                Some(
                    "2 partitions could not be read for 10 ms, of which this is one [topic orders partition 3]: refused",
                ),
            ),
            (
                ExpectedProgress {
                    partitions: vec![answered(0, Some("refused"))],
                    group: Some(None),
                    ..ExpectedProgress::default()
                },
                None,
                false,
                Some("the group has not let this member in for 10 ms: no coordinator"),
            ),
            (
                ExpectedProgress {
                    group: Some(Some(error("not authorized"))),
                    ..ExpectedProgress::default()
                },
                None,
                true,
                Some("the group has not let this member in for 10 ms: not authorized"),
            ),
            (ExpectedProgress { group: Some(None), ..ExpectedProgress::default() }, None, true, None),
        ];
        let patience = Duration::from_millis(10);
        for (should, leaderless, has_coordinator, said) in rows {
            let shown = format!("{should:?}");
            let why = should.causes(
                |key| (leaderless == Some(key.partition)).then(|| error("no leader")),
                |topic| (topic == "missing").then(|| error("no such topic")),
                || (!has_coordinator).then(|| error("no coordinator")),
            );
            let stalled = why.into_iter().collect();
            let text = Changes { stalled, over: Vec::new() }.error(patience).map(|error| error.to_string());
            let text = text.as_deref();
            assert!(
                text == said || said.zip(text).is_some_and(|(said, text)| text.starts_with(said)),
                "{shown}: {text:?}"
            );
        }
    }

    #[test]
    fn what_is_paused_or_missing_is_no_error_of_poll() {
        let should = ExpectedProgress {
            partitions: vec![(
                TopicPartition::new("orders", 0),
                Some(Error::new(ErrorKind::Timeout, "slow")),
            )],
            paused: 3,
            topics: vec!["missing".into()],
            group: None,
        };
        let missing = |_: &str| Some(Error::new(ErrorKind::Timeout, "no such topic"));
        let why = should.causes(|_| None, missing, || None);
        let mut changes =
            Stalls::new(crate::time::now(), Duration::ZERO).handle_look(crate::time::now(), why);
        let said = |changes: Changes| changes.error(Duration::ZERO).unwrap().to_string();
        let harmless: Vec<_> = changes.take_harmless().into_iter().map(said).collect();
        assert!(
            matches!(&harmless[..], [topic, paused] if topic.contains("no such") && paused.contains("paused"))
        );
        assert!(said(changes).contains("slow"));
    }

    #[test]
    fn what_the_client_asks_for_again_passes_whatever_its_code_says() {
        let passes = |code| {
            let answered = Some(Error::from_code("Fetch", code));
            let should = ExpectedProgress {
                partitions: vec![(TopicPartition::new("orders", 0), answered)],
                ..ExpectedProgress::default()
            };
            let why = should.causes(|_| None, |_| None, || None);
            let mut stalls = Stalls::new(crate::time::now(), Duration::ZERO);
            let changes = stalls.handle_look(crate::time::now(), why);
            changes.error(Duration::ZERO).unwrap().is_retriable()
        };
        assert!(passes(code::UNKNOWN_SERVER_ERROR) && passes(code::NOT_LEADER_OR_FOLLOWER));
        assert!(!passes(code::TOPIC_AUTHORIZATION_FAILED), "somebody has to act");
    }
}
