//! Which handlers and which policy a topic has. Pure.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    consumed::Consumed,
    dispatch::lanes::Gather,
    handler::{BatchSize, CallBatch, ErasedHandler, Kind, MakeCalls},
    letters,
    policy::{ErrorPolicy, pause_in_words},
};
use crate::{
    error::{Error, ErrorKind, Result},
    pattern,
    record::{ConsumerRecord, TopicPartition},
    sorted::{Map, Set},
};

/// Between the name of a topic and the pause of its retry topic.
const RETRY: &str = "-retry-";

/// The topics of a handler or a policy: one by name, those that match a pattern, or all that have no other handler.
///
/// ```
/// use dtkafka::Topics;
///
/// let one: Topics = "orders".into();
/// let some = Topics::glob("orders-*");
/// let rest = Topics::others();
/// # let _ = (one, some, rest);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics(Selector);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Named(Arc<str>),
    Glob(Arc<str>),
    Others,
}

impl Topics {
    /// Topics whose whole name matches: `*` stands for any characters, `?` for one. Not a regular expression, unlike
    /// [`Consumer::matching`](crate::Consumer::matching).
    pub fn glob(pattern: &str) -> Self {
        Self(Selector::Glob(pattern.into()))
    }

    /// Topics that have no other handler.
    pub fn others() -> Self {
        Self(Selector::Others)
    }

    fn is_others(&self) -> bool {
        self.0 == Selector::Others
    }

    fn takes_none_of(&self, own: &Consumed) -> bool {
        match (&self.0, own) {
            (Selector::Others, _) | (Selector::Glob(_), Consumed::Matching { .. }) => false,
            (Selector::Named(name), _) => own.excludes(name),
            (Selector::Glob(_), Consumed::Named(names)) => !names.iter().any(|topic| self.names(topic)),
        }
    }

    /// Handlers and policies of topics that are not consumed would never be asked.
    pub(super) fn refuse_strangers(&self, own: &Consumed) -> Result<()> {
        if !self.takes_none_of(own) {
            return Ok(());
        }
        let what = match &self.0 {
            Selector::Glob(_) => "the consumer consumes no topic that matches the pattern",
            _ => "the consumer does not consume this topic",
        };
        let error = Error::new(ErrorKind::InvalidArgument, what).with_topic(self.to_string());
        Err(error.with_hint(own.to_string()))
    }

    /// Whether a topic that is not known yet may have handlers of both.
    fn may_meet(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Selector::Others, Selector::Others) => true,
            (Selector::Others, _) | (_, Selector::Others) => false,
            (Selector::Named(name), _) => other.names(name),
            (_, Selector::Named(name)) => self.names(name),
            (Selector::Glob(_), Selector::Glob(_)) => true,
        }
    }

    /// Whether it names this topic, and not just takes what is left.
    fn names(&self, topic: &str) -> bool {
        match &self.0 {
            Selector::Named(name) => **name == *topic,
            Selector::Glob(pattern) => matches(pattern.as_bytes(), topic.as_bytes()),
            Selector::Others => false,
        }
    }
}

impl<T: AsRef<str> + ?Sized> From<&T> for Topics {
    fn from(name: &T) -> Self {
        Self(Selector::Named(name.as_ref().into()))
    }
}

impl From<String> for Topics {
    fn from(name: String) -> Self {
        Self(Selector::Named(name.into()))
    }
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Selector::Named(name) | Selector::Glob(name) => f.write_str(name),
            Selector::Others => f.write_str("all other topics"),
        }
    }
}

/// `*` and `?`, without recursion: the last star takes one more character whenever what follows it does not fit.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What a topic's records are handled with.
#[derive(Clone)]
pub(super) enum Handlers {
    None,
    Each(Vec<Arc<MakeCalls>>),
    Batch(BatchSize, Arc<CallBatch>),
}

/// The road of a topic's records.
pub(super) struct Route {
    /// The topic whose records these are: of a retry topic, that they came from.
    pub(super) origin: Arc<str>,
    pub(super) handlers: Handlers,
    pub(super) policy: ErrorPolicy,
    /// How many retry topics its records have been through.
    pub(super) level: usize,
    /// Records may be there that another group has put into its retry topic.
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

    /// How much of a pause is left that ends then (milliseconds since the Unix epoch), and no more than records of this topic wait:
    /// anyone can write such a header.
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
    /// Those that were asked for.
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

    /// The topics that would have another handler beside one of batches.
    fn conflict(&self, own: &Consumed, topics: &Topics, handler: &ErasedHandler) -> Option<Arc<str>> {
        let is_batch = |handler: &ErasedHandler| matches!(handler.0, Kind::Batch(..));
        let mut others = self.handlers.iter().filter(|(_, other)| is_batch(other) || is_batch(handler));
        match own {
            Consumed::Matching { .. } => {
                let (met, _) = others.find(|(other, _)| other.may_meet(topics))?;
                Some(met.to_string().into())
            }
            Consumed::Named(names) => {
                // A handler for all others has what no other names.
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

    /// Sets the policy of some topics; the last one that names a topic is its own.
    pub(super) fn set_policy(&mut self, topics: Topics, policy: ErrorPolicy) {
        self.policies.push((topics, policy));
        self.forget();
    }

    /// What is wrong with the policies together: letters must not be read as records that wait for another try.
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

    /// Whether a topic is one that records wait in, by a policy there was.
    pub(super) fn is_former_retry_topic(&self, own: &Consumed, topic: &Arc<str>) -> bool {
        self.waits_for(own, topic).is_some_and(|(origin, ..)| {
            let policy = self.policy_of(&origin);
            policy.retry_topics_of(&origin).all(|(present, _)| present != *topic)
        })
    }

    fn forget(&mut self) {
        self.known.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
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
        self.handlers.iter().any(|(topics, _)| matches!(&topics.0, Selector::Named(name) if **name == *topic))
    }

    fn policy_of(&self, topic: &str) -> ErrorPolicy {
        let named = self.policies.iter().rev().find(|(topics, _)| topics.names(topic));
        let others = || self.policies.iter().rev().find(|(topics, _)| topics.is_others());
        named.or_else(others).map(|(_, policy)| policy.clone()).unwrap_or_default()
    }

    /// The pattern of all topics to be read: those that match, and their retry topics. A policy that has some was refused if
    /// nothing can follow the pattern.
    pub(super) fn with_retry_topics(&self, text: &str, former: &[Arc<str>]) -> String {
        let former = former.iter().filter_map(|topic| Some(topic.rsplit_once(RETRY)?.1.to_owned()));
        let present = self.policies.iter().flat_map(|(_, policy)| policy.retry_endings());
        let endings: Set<_> = present.chain(former).collect();
        match endings.is_empty() {
            true => text.to_owned(),
            false => {
                let endings: Vec<_> = endings.into_iter().collect();
                let text = pattern::without_end(text).unwrap_or_else(|| text.to_owned());
                format!("(?:{text})(?:{RETRY}(?:{}))?", endings.join("|"))
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

    /// The road of a topic's records. `own`: the topics consumed, whose retry topics it may be.
    pub(super) fn of(&self, own: &Consumed, topic: &Arc<str>) -> Arc<Route> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
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
        // Also where the consumer names it: records wait there, and would be passed over without a handler.
        if let Some(level) = levels.iter().position(|(name, _)| name == topic) {
            let pause = levels.get(level).map_or(Duration::ZERO, |(_, pause)| *pause);
            return Some((origin, level + 1, pause));
        }
        // Of a policy there was before: what waits there is this group's work, and has its last try. If a handler takes it, and the
        // consumer names it or no policy has retry topics, it is only named like one.
        let may_be_its_own = match own {
            Consumed::Named(names) => names.contains(topic),
            Consumed::Matching { .. } => levels.is_empty() && !own.excludes(topic),
        };
        let is_one = !may_be_its_own || self.handlers_of(topic).next().is_none();
        let pause = said.filter(|_| is_one)?;
        Some((origin, levels.len().max(1), pause))
    }

    /// The topic that is consumed and whose retry topic this one is by its name, which says the pause. With a handler of its own it is
    /// only named like one.
    fn like_retry_topic(&self, own: &Consumed, topic: &str) -> Option<(Arc<str>, Option<Duration>)> {
        let (origin, pause) = topic.rsplit_once(RETRY)?;
        let is_one = !self.is_named(topic) && !own.excludes(origin);
        is_one.then(|| (origin.into(), pause_in_words(pause)))
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("handlers", &self.handlers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facade::{HandlerResult, handler::HandlerArgument, message::Batch};

    fn each() -> ErasedHandler {
        ConsumerRecord::erase(async |_: ConsumerRecord| -> HandlerResult { Ok(()) })
    }

    fn batch() -> ErasedHandler {
        <Batch<u32>>::erase(async |_: Batch<u32>| -> HandlerResult { Ok(()) })
    }

    fn own() -> Consumed {
        Consumed::named(["orders", "orders-eu", "audit"]).unwrap()
    }

    fn count(routes: &Routes, topic: &str) -> usize {
        match &routes.of(&own(), &topic.into()).handlers {
            Handlers::None => 0,
            Handlers::Each(each) => each.len(),
            Handlers::Batch(..) => 100,
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders-", true),
            ("orders-*", "my-orders-eu", false),
            ("*", "", true),
            ("*-eu", "orders-eu-eu", true),
            ("o?ders", "orders", true),
            ("o?ders", "oders", false),
            ("a*b*c", "aXXbYbZc", true),
            ("a*b*c", "aXXbYbZ", false),
            ("orders", "orders", true),
            ("orders", "orders2", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_topic_has_every_handler_that_names_it_and_else_those_for_the_others() {
        let mut routes = Routes::default();
        routes.add(&own(), "orders".into(), each()).unwrap();
        routes.add(&own(), Topics::glob("orders*"), each()).unwrap();
        assert_eq!(
            (count(&routes, "orders"), count(&routes, "orders-eu"), count(&routes, "audit")),
            (2, 1, 0)
        );
        routes.add(&own(), Topics::others(), each()).unwrap();
        assert_eq!((count(&routes, "orders"), count(&routes, "audit")), (2, 1));
        assert_eq!(count(&routes, "found-by-pattern"), 1);
    }

    #[test]
    fn handlers_that_could_never_run_or_not_together_are_refused() {
        let mut routes = Routes::default();
        for topics in [Topics::from("payments"), Topics::glob("p*")] {
            let error = routes.add(&own(), topics, each()).unwrap_err();
            assert!(error.to_string().contains("orders, orders-eu, audit"), "{error}");
        }
        routes.add(&own(), "orders".into(), batch()).unwrap();
        for handler in [each(), batch()] {
            let error = routes.add(&own(), Topics::glob("orders*"), handler).unwrap_err();
            assert_eq!(error.topic(), Some("orders"), "{error}");
        }
        assert_eq!((count(&routes, "orders"), count(&routes, "orders-eu")), (100, 0));
    }

    #[test]
    fn the_last_policy_that_names_a_topic_is_its_own() {
        let mut routes = Routes::default();
        let says = |routes: &Routes, topic: &str| format!("{:?}", routes.of(&own(), &topic.into()).policy);
        routes.set_policy(Topics::others(), ErrorPolicy::Skip);
        routes.set_policy("orders".into(), ErrorPolicy::dead_letter("dead"));
        assert!(says(&routes, "orders").contains("dead") && says(&routes, "audit").contains("skip"));
        routes.set_policy(Topics::glob("*"), ErrorPolicy::Stop);
        assert!(says(&routes, "orders").contains("stop") && says(&routes, "audit").contains("stop"));
    }

    #[test]
    fn a_retry_topic_has_the_handlers_of_the_topic_it_waits_for() {
        let mut routes = Routes::default();
        routes.add(&own(), "orders".into(), each()).unwrap();
        let pauses = [Duration::from_secs(1), Duration::from_secs(60)];
        routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics(pauses));
        let Consumed::Named(names) = own() else { unreachable!("they are named") };
        assert_eq!(routes.retry_topics(&names), ["orders-retry-1s", "orders-retry-1m"].map(Arc::from));
        let route = routes.of(&own(), &"orders-retry-1m".into());
        assert_eq!((route.level, count(&routes, "orders-retry-1m")), (2, 1));
        assert_eq!(routes.of(&own(), &"orders".into()).level, 0);
    }

    #[test]
    fn a_retry_topic_that_the_consumer_names_is_one_unless_a_handler_names_it_too() {
        let own = Consumed::named(["orders", "orders-retry-1m", "orders-retry-5m"]).unwrap();
        let mut routes = Routes::default();
        routes.add(&own, "orders".into(), each()).unwrap();
        routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
        let of = |routes: &Routes, topic: &str| {
            let route = routes.of(&own, &topic.into());
            (route.level, route.is_unhandled())
        };
        assert_eq!(of(&routes, "orders-retry-1m"), (1, false));
        assert_eq!(of(&routes, "orders-retry-5m"), (1, false), "of a policy there was");
        routes.add(&own, Topics::others(), each()).unwrap();
        assert_eq!(of(&routes, "orders-retry-1m"), (1, false), "what failed waits there");
        assert_eq!(of(&routes, "orders-retry-5m"), (0, false), "a topic of its own");
        routes.add(&own, "orders-retry-1m".into(), each()).unwrap();
        assert_eq!(of(&routes, "orders-retry-1m"), (0, false));
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn the_retry_topics_of_a_pattern_with_an_anchor_at_its_end_are_read() {
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]);
        let text = "^orders-[a-z]{2}$|^audit$";
        policy.check(&Consumed::matching(text, false).unwrap()).unwrap();
        let mut routes = Routes::default();
        routes.set_policy(Topics::others(), policy.clone());
        let whole = Consumed::matching(&routes.with_retry_topics(text, &[]), false).unwrap();
        for (topic, expected) in [
            ("orders-eu", true),
            ("orders-eu-retry-1m", true),
            ("audit-retry-1m", true),
            ("orders-eur-retry-1m", false),
        ] {
            assert_eq!(whole.takes(topic), expected, "{topic}");
        }
        let refused = policy.check(&Consumed::matching("(orders$|audit)", false).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("leave out its `$`"), "{refused}");
        ErrorPolicy::Skip.check(&Consumed::matching("(orders$|audit)", false).unwrap()).unwrap();
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn topics_of_a_pattern_have_their_handlers_and_their_retry_topics() {
        let own = Consumed::matching("orders-.*", false).unwrap();
        let mut routes = Routes::default();
        let error = routes.add(&own, "audit".into(), each()).unwrap_err();
        assert!(error.to_string().contains("orders-.*"), "{error}");
        routes.add(&own, "orders-eu".into(), each()).unwrap();
        routes.add(&own, Topics::others(), batch()).unwrap();
        let pauses = [Duration::from_secs(1), Duration::from_secs(60)];
        routes.set_policy("orders-eu".into(), ErrorPolicy::Stop.retry_topics(pauses));
        routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([pauses[0]]));
        let of = |topic: &str| routes.of(&own, &topic.into());
        assert_eq!((of("orders-eu").level, of("orders-us").level), (0, 0));
        let retry = of("orders-eu-retry-1m");
        assert_eq!((retry.level, matches!(retry.handlers, Handlers::Each(_))), (2, true));
        let retry = of("orders-us-retry-1s");
        assert_eq!((retry.level, matches!(retry.handlers, Handlers::Batch(..))), (1, true));
        let former = of("orders-us-retry-1m");
        assert_eq!((former.level, &*former.origin), (1, "orders-us"), "of a policy there was: the last try");
        let is_former = |topic: &str| routes.is_former_retry_topic(&own, &topic.into());
        assert!(
            is_former("orders-us-retry-1m") && !is_former("orders-us-retry-1s") && !is_former("orders-us")
        );
        let whole = Consumed::matching(&routes.with_retry_topics("orders-.*|x", &[]), false).unwrap();
        for (topic, expected) in
            [("x", true), ("x-retry-1m", true), ("x-retry-2m", false), ("y-retry-1m", false)]
        {
            assert_eq!(whole.takes(topic), expected, "{topic}");
        }
        let dead = ErrorPolicy::dead_letter("orders-dead").check(&own).unwrap_err();
        assert!(dead.to_string().contains("feed itself"), "{dead}");
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn what_other_groups_put_into_a_retry_topic_is_looked_for_where_a_pattern_matches_it() {
        let of = |own: &Consumed, handler: Topics, topic: &str| {
            let mut routes = Routes::default();
            routes.add(own, handler, each()).unwrap();
            let route = routes.of(own, &topic.into());
            (route.level, route.may_hold_others)
        };
        let pattern = Consumed::matching("orders.*", false).unwrap();
        let glob = Topics::glob("orders*");
        assert_eq!(of(&pattern, glob.clone(), "orders-retry-1m"), (0, true));
        assert_eq!(of(&pattern, glob.clone(), "orders-retry-soon"), (0, false));
        assert_eq!(of(&pattern, glob.clone(), "orders"), (0, false));
        assert_eq!(of(&pattern, "orders-retry-1m".into(), "orders-retry-1m"), (0, false));
        assert_eq!(of(&pattern, "orders".into(), "orders-retry-1m"), (1, true));
        let retries = Consumed::matching("orders-retry-.*", false).unwrap();
        assert_eq!(of(&retries, glob.clone(), "orders-retry-1m"), (0, false), "they alone are consumed");
        let named = Consumed::named(["orders", "orders-retry-1m"]).unwrap();
        assert_eq!(of(&named, glob, "orders-retry-1m"), (0, false), "the consumer names it");
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn a_topic_that_is_only_named_like_a_retry_topic_has_its_own_handler() {
        let own = Consumed::matching("orders.*|audit-retry-1m", false).unwrap();
        let mut routes = Routes::default();
        routes.add(&own, Topics::glob("orders*"), batch()).unwrap();
        routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
        let level = |routes: &Routes, topic: &str| routes.of(&own, &topic.into()).level;
        assert_eq!(level(&routes, "orders-retry-1m"), 1, "a pattern of handlers does not name it");
        assert_eq!(level(&routes, "audit-retry-1m"), 0, "nobody here reads audit");
        let mut routes = Routes::default();
        routes.set_policy(Topics::others(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]));
        routes.add(&own, "orders-retry-1m".into(), each()).unwrap();
        let route = routes.of(&own, &"orders-retry-1m".into());
        assert_eq!((route.level, route.is_unhandled(), &*route.origin), (0, false, "orders-retry-1m"));
        assert_eq!(level(&routes, "orders-eu-retry-1m"), 1);
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn handlers_that_may_meet_in_a_topic_not_yet_known_are_refused() {
        let own = Consumed::matching(".*", false).unwrap();
        let mut routes = Routes::default();
        routes.add(&own, Topics::glob("orders-*"), batch()).unwrap();
        for topics in [Topics::glob("*-eu"), "orders-us".into()] {
            assert!(routes.add(&own, topics.clone(), each()).is_err(), "{topics}");
            assert!(routes.add(&own, topics, batch()).is_err());
        }
        routes.add(&own, "audit".into(), each()).unwrap();
        routes.add(&own, "audit".into(), each()).unwrap();
        assert!(routes.add(&own, "audit".into(), batch()).is_err());
        routes.add(&own, Topics::others(), batch()).unwrap();
    }

    #[test]
    fn what_waits_in_the_retry_topic_of_a_policy_there_was_has_its_last_try() {
        let mut routes = Routes::default();
        routes.add(&own(), "orders".into(), each()).unwrap();
        routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(300)]));
        let route = routes.of(&own(), &"orders-retry-1m".into());
        assert_eq!((&*route.origin, route.level, route.is_unhandled()), ("orders", 1, false));
        assert_eq!(route.left_to_wait(3_600_000, 0).as_secs(), 60, "no longer than records waited there");
        assert_eq!(route.left_to_wait(1500, 500).as_secs(), 1);
        assert!(route.left_to_wait(500, 1500).is_zero());
        // A policy without any.
        routes.set_policy("orders".into(), ErrorPolicy::Skip);
        assert_eq!(routes.of(&own(), &"orders-retry-1m".into()).level, 1);
        assert_eq!(routes.of(&own(), &"orders".into()).level, 0);
    }

    #[cfg(feature = "pattern")]
    #[test]
    fn a_topic_named_like_a_retry_topic_is_its_own_where_no_policy_has_any_and_a_handler_takes_it() {
        let own = Consumed::matching("orders.*", false).unwrap();
        let mut routes = Routes::default();
        routes.add(&own, "orders".into(), each()).unwrap();
        let of = |routes: &Routes, topic: &str| {
            let route = routes.of(&own, &topic.into());
            (route.origin.to_string(), route.level, route.is_unhandled())
        };
        let waits = ("orders".to_owned(), 1, false);
        assert_eq!(of(&routes, "orders-retry-1m"), waits, "nobody else would handle it");
        assert_eq!(of(&routes, "orders-retry-soon"), ("orders-retry-soon".to_owned(), 0, true));
        routes.add(&own, Topics::others(), each()).unwrap();
        assert_eq!(of(&routes, "orders-retry-1m"), ("orders-retry-1m".to_owned(), 0, false));
        routes.set_policy("orders".into(), ErrorPolicy::Stop.retry_topics([Duration::from_secs(300)]));
        assert_eq!(of(&routes, "orders-retry-1m"), waits);
    }
}
