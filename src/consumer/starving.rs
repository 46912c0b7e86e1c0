//! What a consumer cannot read, and for how long: told once it lasts, and once again when it is over. Pure.
//!
//! A poll that returns nothing says nothing: the topic may be idle, or its leader gone, its partition missing, its group
//! without a coordinator. After `unreadable.warn.ms` the difference is said, once per change of state.

use std::{collections::BTreeMap, time::Duration};

use crate::{error::Error, record::TopicPartition, time::Instant};

/// What does not get on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The group has not let the member in.
    Group,
    Partition(TopicPartition),
}

#[derive(Debug)]
pub(super) struct Starving {
    patience: Duration,
    since: BTreeMap<What, Since>,
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

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

impl Starving {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self { patience, since: BTreeMap::new(), next_look: now + LOOK }
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
    pub(super) fn handle_look(&mut self, now: Instant, why: BTreeMap<What, Error>) -> News {
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
    use crate::error::ErrorKind;

    #[test]
    fn what_starves_for_long_is_told_once_and_so_is_its_end() {
        let start = crate::time::now();
        let mut starving = Starving::new(start, Duration::from_secs(10));
        let partition = What::Partition(TopicPartition::new("orders", 3));
        let why = || BTreeMap::from([(partition.clone(), Error::new(ErrorKind::Timeout, "no leader"))]);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert!(starving.handle_look(at(second), why()).starving.is_empty(), "{second}");
        }
        assert_eq!(starving.handle_look(at(10), why()).starving.len(), 1);
        assert!(starving.handle_look(at(11), why()).starving.is_empty(), "once");
        let news = starving.handle_look(at(12), BTreeMap::new());
        assert_eq!(news.over, [(partition.clone(), Duration::from_secs(12))]);
        // A short one is not worth a word.
        starving.handle_look(at(13), why());
        assert!(starving.handle_look(at(15), BTreeMap::new()).over.is_empty());
        starving.handle_look(at(20), why());
        assert!(starving.handle_look(at(25), why()).starving.is_empty(), "its time begins anew");
        assert!(!starving.is_due(at(25)) && starving.is_due(starving.poll_timeout()));
    }
}
