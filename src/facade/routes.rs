//! Which handlers and which policy a topic has. Pure.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    consumed::Consumed,
    dispatch::lanes::Gather,
    handler::{BatchSize, CallBatch, ErasedHandler, Kind, MakeCalls},
    letters,
    policy::ErrorPolicy,
    retry_topics::{self, SEPARATOR},
    topics::Topics,
};
use crate::{
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    pattern,
    record::{ConsumerRecord, TopicPartition},
    sorted::{Map, Set},
};

/// What a topic's records are handled with.
#[derive(Clone)]
pub(super) enum Handlers {
    None,
    Each(Vec<Arc<MakeCalls>>),
    Batch(BatchSize, Arc<CallBatch>),
}

/// How the records of a topic are handled.
pub(super) struct Route {
    /// The topic whose records these are; for a retry topic, the one that they came from.
    pub(super) origin: Arc<str>,
    pub(super) handlers: Handlers,
    pub(super) policy: ErrorPolicy,
    /// How many retry topics its records have been through.
    pub(super) level: usize,
    /// The topic may hold records that another group has put into its own retry topic.
    pub(super) may_hold_others: bool,
    /// How long a record waits in this retry topic at most.
    pause: Duration,
    /// The topics of the next levels with their pauses.
    pub(super) retry_topics: Vec<(Arc<str>, Duration)>,
}

impl Route {
    /// Why a record may not become a dead letter in `topic`: it would come back from there for ever. `from`: where it was read.
    pub(super) fn refuse_circle(
        &self,
        from: &TopicPartition,
        record: &ConsumerRecord,
        topic: &Arc<str>,
        error: &Error,
    ) -> Result<()> {
        let text = match () {
            () if **topic == *from.topic || *topic == self.origin => {
                "the dead letter topic is the one the record came from, and would feed itself"
            }
            () if letters::was_in(record, topic) => {
                "the record has been in the dead letter topic before, became a dead letter there, and would go round in a circle"
            }
            () => return Ok(()),
        };
        let refused =
            Error::new(ErrorKind::Config, text).with_topic(Arc::clone(topic)).with_partition(from.partition);
        let refused = match error.offset() {
            Some(offset) => refused.with_offset(offset),
            None => refused,
        };
        let hint = "let the error policy name a topic from which no record comes back to the topics of this consumer";
        Err(refused.with_hint(hint).with_source(error.clone()))
    }

    /// How long a record still waits that is due at this time (milliseconds since the Unix epoch), and no longer than
    /// records of this topic wait: anyone can write such a header.
    pub(super) fn left_to_wait(&self, due: i64, now_ms: i64) -> Duration {
        let left = u64::try_from(due.saturating_sub(now_ms)).unwrap_or(0);
        Duration::from_millis(left).min(self.pause)
    }

    pub(super) fn is_unhandled(&self) -> bool {
        matches!(self.handlers, Handlers::None)
    }

    /// How many records its lanes wait for, if its handler takes many.
    pub(super) fn gather(&self) -> Option<Gather> {
        match self.handlers {
            Handlers::Batch(BatchSize { records, wait }, _) => Some(Gather { records, wait }),
            Handlers::None | Handlers::Each(_) => None,
        }
    }
}

impl Clone for Routes {
    fn clone(&self) -> Self {
        Self { handlers: self.handlers.clone(), policies: self.policies.clone(), known: Mutex::default() }
    }
}

/// Handlers and policies as they were registered.
#[derive(Default)]
pub(super) struct Routes {
    handlers: Vec<(Topics, ErasedHandler)>,
    policies: Vec<(Topics, ErrorPolicy)>,
    /// The routes that were asked for so far.
    known: Mutex<Map<Arc<str>, Arc<Route>>>,
}

impl Routes {
    /// Adds a handler for some of the topics that are consumed.
    pub(super) fn add(&mut self, own: &Consumed, topics: Topics, handler: ErasedHandler) -> Result<()> {
        topics.refuse_strangers(own)?;
        if let Some(topic) = self.conflict(own, &topics, &handler) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a topic has either one handler of batches or handlers of single records",
            )
            .with_topic(topic)
            .with_hint("do in one batch handler what both would do"));
        }
        self.handlers.push((topics, handler));
        self.forget();
        Ok(())
    }

    /// A topic that would have another handler beside one of batches.
    fn conflict(&self, own: &Consumed, topics: &Topics, handler: &ErasedHandler) -> Option<Arc<str>> {
        let is_batch = |handler: &ErasedHandler| matches!(handler.0, Kind::Batch(..));
        let mut others = self.handlers.iter().filter(|(_, other)| is_batch(other) || is_batch(handler));
        match own {
            Consumed::Matching { .. } => {
                let (met, _) = others.find(|(other, _)| other.may_meet(topics))?;
                Some(met.to_string().into())
            }
            Consumed::Named(names) => {
                // A handler for all other topics has those that no handler names.
                let named = |topic: &str| {
                    topics.names(topic) || self.handlers.iter().any(|(other, _)| other.names(topic))
                };
                let takes = |topics: &Topics, topic: &str| match named(topic) {
                    true => topics.names(topic),
                    false => topics.is_others(),
                };
                let others: Vec<_> = others.map(|(other, _)| other).collect();
                let meets = |topic: &&Arc<str>| {
                    takes(topics, topic) && others.iter().any(|other| takes(other, topic))
                };
                names.iter().find(meets).cloned()
            }
        }
    }

    /// Sets the policy of some topics. If several name a topic, the last one counts.
    pub(super) fn set_policy(&mut self, topics: Topics, policy: ErrorPolicy) {
        self.policies.push((topics, policy));
        self.forget();
    }

    /// Refuses policies that do not go together: a dead letter topic must not be one of the retry topics.
    pub(super) fn check_letters(&self, own: &Consumed) -> Result<()> {
        let is_retry_topic = |topic: &Arc<str>| {
            self.like_retry_topic(own, topic).is_some_and(|(origin, _)| {
                self.policy_of(&origin).retry_topics_of(&origin).any(|(name, _)| name == *topic)
            })
        };
        let mut named = self.policies.iter().filter_map(|(_, policy)| policy.named_dead_letter_topic());
        match named.find(|topic| is_retry_topic(topic)) {
            None => Ok(()),
            Some(topic) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the error policy cannot be used: the dead letter topic {topic} is one of its retry topics, or of another policy's"
                ),
            )),
        }
    }

    /// Whether a topic is a retry topic of an earlier policy.
    pub(super) fn is_former_retry_topic(&self, own: &Consumed, topic: &Arc<str>) -> bool {
        self.waits_for(own, topic).is_some_and(|(origin, ..)| {
            let policy = self.policy_of(&origin);
            policy.retry_topics_of(&origin).all(|(present, _)| present != *topic)
        })
    }

    fn forget(&mut self) {
        self.known.get_mut().clear();
    }

    fn handlers_of(&self, topic: &str) -> impl Iterator<Item = &ErasedHandler> {
        let is_named = self.handlers.iter().any(|(topics, _)| topics.names(topic));
        let topic = topic.to_owned();
        self.handlers
            .iter()
            .filter(move |(topics, _)| if is_named { topics.names(&topic) } else { topics.is_others() })
            .map(|(_, handler)| handler)
    }

    /// The records of the largest batch that a handler takes; 0 without one.
    pub(super) fn largest_batch(&self) -> usize {
        let sizes = self.handlers.iter().map(|(_, handler)| match &handler.0 {
            Kind::Batch(size, _) => size.records,
            Kind::Each(_) => 0,
        });
        sizes.max().unwrap_or(0)
    }

    /// Whether a handler is for this topic alone.
    fn is_named(&self, topic: &str) -> bool {
        self.handlers.iter().any(|(topics, _)| topics.is_named(topic))
    }

    fn policy_of(&self, topic: &str) -> ErrorPolicy {
        let named = self.policies.iter().rev().find(|(topics, _)| topics.names(topic));
        let others = || self.policies.iter().rev().find(|(topics, _)| topics.is_others());
        named.or_else(others).map(|(_, policy)| policy.clone()).unwrap_or_default()
    }

    /// The pattern of all topics to be read: those that match, and their retry topics. A policy that has some was refused if
    /// nothing can follow the pattern.
    pub(super) fn with_retry_topics(&self, text: &str, former: &[Arc<str>]) -> String {
        let former = former.iter().filter_map(|topic| Some(topic.rsplit_once(SEPARATOR)?.1.to_owned()));
        let present = self.policies.iter().flat_map(|(_, policy)| policy.retry_endings());
        let endings: Set<_> = present.chain(former).collect();
        match endings.is_empty() {
            true => text.to_owned(),
            false => {
                let endings: Vec<_> = endings.into_iter().collect();
                let text = pattern::without_end(text).unwrap_or_else(|| text.to_owned());
                format!("(?:{text})(?:{SEPARATOR}(?:{}))?", endings.join("|"))
            }
        }
    }

    /// The retry topics that records of these topics may wait in.
    pub(super) fn retry_topics(&self, own: &[Arc<str>]) -> Vec<Arc<str>> {
        own.iter()
            .flat_map(|topic| {
                self.policy_of(topic).retry_topics_of(topic).map(|(name, _)| name).collect::<Vec<_>>()
            })
            .collect()
    }

    /// How the records of a topic are handled. `own`: the topics that are consumed, of one of which it may be a retry
    /// topic.
    pub(super) fn of(&self, own: &Consumed, topic: &Arc<str>) -> Arc<Route> {
        let mut known = self.known.lock();
        if let Some(route) = known.get(topic) {
            return Arc::clone(route);
        }
        let (origin, level, pause) =
            self.waits_for(own, topic).unwrap_or_else(|| (Arc::clone(topic), 0, Duration::ZERO));
        let policy = self.policy_of(&origin);
        let mut each = Vec::new();
        let mut batch = None;
        for handler in self.handlers_of(&origin) {
            match &handler.0 {
                Kind::Each(make) => each.push(Arc::clone(make)),
                Kind::Batch(size, call) => batch = Some((*size, Arc::clone(call))),
            }
        }
        let handlers = match batch {
            Some((size, call)) => Handlers::Batch(size, call),
            None if each.is_empty() => Handlers::None,
            None => Handlers::Each(each),
        };
        let retry_topics = policy.retry_topics_of(&origin).collect();
        let is_like_one = || self.like_retry_topic(own, topic).is_some_and(|(_, pause)| pause.is_some());
        let may_hold_others = level > 0 || (matches!(own, Consumed::Matching { .. }) && is_like_one());
        let route = Arc::new(Route { origin, handlers, policy, level, may_hold_others, pause, retry_topics });
        known.insert(Arc::clone(topic), Arc::clone(&route));
        route
    }

    /// The topic whose records wait in this one, how many retry topics they have been through, and how long they wait here.
    fn waits_for(&self, own: &Consumed, topic: &Arc<str>) -> Option<(Arc<str>, usize, Duration)> {
        let (origin, said) = self.like_retry_topic(own, topic)?;
        let levels: Vec<_> = self.policy_of(&origin).retry_topics_of(&origin).collect();
        // It is one even if the consumer names it: otherwise records that wait there would be passed over for lack of a
        // handler.
        if let Some(level) = levels.iter().position(|(name, _)| name == topic) {
            let pause = levels.get(level).map_or(Duration::ZERO, |(_, pause)| *pause);
            return Some((origin, level + 1, pause));
        }
        // It may be a retry topic of an earlier policy: what waits there is this group's work, and gets its last try. It
        // is only named like one if a handler takes it and either the consumer names it or the policy has no retry
        // topics.
        let may_be_its_own = match own {
            Consumed::Named(names) => names.contains(topic),
            Consumed::Matching { .. } => levels.is_empty() && !own.excludes(topic),
        };
        let is_one = !may_be_its_own || self.handlers_of(topic).next().is_none();
        let pause = said.filter(|_| is_one)?;
        Some((origin, levels.len().max(1), pause))
    }

    /// The consumed topic whose retry topic this one is, going by its name, and the pause in the name. A topic with a
    /// handler of its own is only named like a retry topic.
    fn like_retry_topic(&self, own: &Consumed, topic: &str) -> Option<(Arc<str>, Option<Duration>)> {
        let (origin, pause) = topic.rsplit_once(SEPARATOR)?;
        let is_one = !self.is_named(topic) && !own.excludes(origin);
        is_one.then(|| (origin.into(), retry_topics::pause_of(pause)))
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("handlers", &self.handlers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
