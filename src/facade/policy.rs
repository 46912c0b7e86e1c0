//! What happens to a record that its handlers do not take: [`ErrorPolicy`], and the one function that decides. Pure: no
//! clock, no handler, no socket; random numbers come as an argument.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use super::{consumed::Consumed, failure::Failure, letters, message::Failed, retry_topics};
use crate::{
    error::{Error, ErrorKind, Result},
    pattern,
    record::ConsumerRecord,
    sorted::Set,
};

/// The longest pause between two attempts unless [`ErrorPolicy::max`] says otherwise.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What may be asked about an error: any of its causes.
type Cause<'a> = &'a (dyn StdError + 'static);

#[derive(Clone)]
enum Condition {
    /// Retry only if it returns true.
    If(Arc<dyn Fn(Cause<'_>) -> bool + Send + Sync>),
    /// Do not retry if it returns true for the error or one of its causes.
    Never(fn(Cause<'_>) -> bool),
}

#[derive(Clone)]
enum Last {
    Stop,
    Skip,
    DeadLetter(Topic),
}

#[derive(Clone)]
enum Topic {
    Named(Arc<str>),
    Chosen(Arc<Choose>),
}

type Choose = dyn Fn(&ConsumerRecord, &Error) -> String + Send + Sync;

/// What a [`Consumer`](crate::Consumer) does with a record that could not be handled: a handler returned an error, panicked or
/// missed its deadline, the value cannot be read, or its batch is damaged or larger than `max.decompressed.bytes`.
///
/// A failing handler is called again as [`retry`](Self::retry) says; handlers of the record that succeeded are not. After that,
/// or at once without a retry, the consumer stops (the default), skips the record, or writes it to a dead letter topic. Retrying
/// cannot help with an unreadable value or a damaged batch, so this happens to them at once. The dead letter of a batch holds
/// all its bytes as they are in the log. If nobody can tell where a damaged batch ends, the consumer stops at it.
///
/// ```
/// use std::time::Duration;
///
/// use dtkafka::ErrorPolicy;
///
/// let policy = ErrorPolicy::retry(5, Duration::from_millis(200))
///     .max(Duration::from_secs(10))
///     .jitter()
///     .never_retry::<std::num::ParseIntError>()
///     .deadline(Duration::from_secs(30))
///     .then_dead_letter("orders-dead");
/// # let _ = policy;
/// ```
#[derive(Clone)]
#[must_use]
pub struct ErrorPolicy {
    attempts: u32,
    backoff: Duration,
    max: Option<Duration>,
    jitter: bool,
    deadline: Option<Duration>,
    conditions: Vec<Condition>,
    retry_topics: Vec<Duration>,
    last: Last,
}

/// The policies without a retry have the names of values.
#[expect(non_upper_case_globals, reason = "they read as the variants they once were")]
impl ErrorPolicy {
    /// `consume` and `run` return the error. The record and those behind it are not committed, and come again (the default).
    pub const Stop: Self = Self::at_once(Last::Stop);
    /// The record is logged and counts as handled: **it is lost to the handlers**.
    pub const Skip: Self = Self::at_once(Last::Skip);
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self::Stop
    }
}

impl ErrorPolicy {
    const fn at_once(last: Last) -> Self {
        Self {
            attempts: 1,
            backoff: Duration::ZERO,
            max: None,
            jitter: false,
            deadline: None,
            conditions: Vec::new(),
            retry_topics: Vec::new(),
            last,
        }
    }

    /// Calls a failing handler up to `attempts` times in all (1 or more), then stops. The pause before the second call is
    /// `backoff`; it doubles with each further one, up to [`max`](Self::max). Only the record's lane waits; the member
    /// stays in its group. The lane keeps its place among those that [`concurrency`](crate::Consumer::concurrency) lets
    /// run: where that is 1, as it is by default with [`Ordering::Key`](crate::Ordering::Key) and
    /// [`Ordering::Unordered`](crate::Ordering::Unordered), everything waits. For long pauses use
    /// [`retry_topics`](Self::retry_topics), where a waiting record holds no place.
    pub fn retry(attempts: u32, backoff: Duration) -> Self {
        Self { attempts, backoff, ..Self::Stop }
    }

    /// Writes the record to this topic at once; see [`then_dead_letter`](Self::then_dead_letter).
    pub fn dead_letter(topic: impl Into<String>) -> Self {
        Self::Stop.then_dead_letter(topic)
    }

    /// The longest pause between two attempts. Default: a minute, or the first pause where that is longer.
    pub fn max(mut self, max: Duration) -> Self {
        self.max = Some(max);
        self
    }

    /// Shortens each pause at random, to as little as half, so that what failed together does not come back together.
    pub fn jitter(mut self) -> Self {
        self.jitter = true;
        self
    }

    /// Tries again only if `is_passing` returns true for the handler's error. Panics and missed deadlines are always tried again.
    ///
    /// If there are several conditions, all must agree.
    pub fn retry_if(
        mut self,
        is_passing: impl Fn(&(dyn StdError + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.conditions.push(Condition::If(Arc::new(is_passing)));
        self
    }

    /// Does not try again if the handler's error, or one of its causes, is an `E`.
    ///
    /// `anyhow` hides the outermost error's type when it becomes a boxed error: with it, give the error a `context`, or use
    /// [`retry_if`](Self::retry_if) on its text.
    pub fn never_retry<E: StdError + 'static>(mut self) -> Self {
        self.conditions.push(Condition::Never(|cause| cause.is::<E>()));
        self
    }

    /// How long one call of a handler may take. Then it is dropped, which counts as a failure; a blocking handler cannot be
    /// stopped, and runs to its end unobserved. Default: no limit.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }

    /// After the last attempt, the record goes on to topics named after its own and the pauses, such as `orders-retry-1m`,
    /// one after the other; the consumer reads them as well, and calls the handlers again when the pause is over. So it
    /// waits without holding up those behind it, which **overtake it**. The topics must exist, or be created by the brokers.
    ///
    /// A retry topic without a committed offset is read from the start, whatever `auto.offset.reset` says: its records
    /// are this group's own work. Each record says whose work it is: groups that read a topic with the same pauses may
    /// share its retry topics, and each passes over what the other has put there. What somebody else wrote there without
    /// the header `dtkafka-retry-group` counts as its own. A group of another name leaves behind what waits for the old
    /// one.
    ///
    /// The pauses may change, and may go: a consumer that connects reads on in retry topics of earlier policies, as far
    /// as its group has committed offsets there by then. What waits in them has its last try before the policy's end. In
    /// a rolling change restart the first instance once more when the last one is done, since an old one may have written
    /// to its topics meanwhile. Delete the old topics when they are empty and the group has stopped. A handler that is
    /// registered for such a topic by its name makes it a topic like any other.
    pub fn retry_topics(mut self, pauses: impl IntoIterator<Item = Duration>) -> Self {
        self.retry_topics = pauses.into_iter().collect();
        self
    }

    /// Finally the consumer stops with the error (the default).
    pub fn then_stop(mut self) -> Self {
        self.last = Last::Stop;
        self
    }

    /// Finally the record is logged and counts as handled. **It is lost to the handlers.**
    pub fn then_skip(mut self) -> Self {
        self.last = Last::Skip;
        self
    }

    /// Finally the record is written to this topic, and counts as handled when the broker has acknowledged it.
    ///
    /// Key, value and headers are the original ones, and the timestamp is that of the letter, or a topic that keeps
    /// records for a time would delete it at once; the headers `dtkafka-dead-letter-topic`, `-partition`, `-offset`,
    /// `-timestamp`, `-attempts` and `-error` (with all causes) are added, each as text. A record that was read from that
    /// very topic, or became a dead letter there before, would come back without end; it stops the consumer.
    pub fn then_dead_letter(mut self, topic: impl Into<String>) -> Self {
        self.last = Last::DeadLetter(Topic::Named(topic.into().into()));
        self
    }

    /// As [`then_dead_letter`](Self::then_dead_letter), to the topic that `choose` names.
    ///
    /// ```
    /// # use dtkafka::ErrorPolicy;
    /// ErrorPolicy::Stop.then_dead_letter_by(|record, _error| format!("{}-dead", record.topic));
    /// ```
    pub fn then_dead_letter_by(
        mut self,
        choose: impl Fn(&ConsumerRecord, &Error) -> String + Send + Sync + 'static,
    ) -> Self {
        self.last = Last::DeadLetter(Topic::Chosen(Arc::new(choose)));
        self
    }

    /// What is wrong with the policy of a consumer of `topics`.
    pub(super) fn check(&self, consumed: &Consumed) -> Result<()> {
        let bad = |text: String| {
            Err(Error::new(ErrorKind::Config, format!("the error policy cannot be used: {text}")))
        };
        if self.attempts == 0 {
            return bad("attempts is 0; accepted: 1 (no retry) or more".to_owned());
        }
        if self.deadline.is_some_and(|limit| limit.is_zero()) {
            return bad("the deadline is 0; leave it out for no limit".to_owned());
        }
        if self.retry_topics.iter().any(Duration::is_zero) {
            return bad("the pause of a retry topic is 0; use retry instead".to_owned());
        }
        if let Consumed::Matching { text, .. } = consumed
            && !self.retry_topics.is_empty()
            && pattern::without_end(text).is_none()
        {
            return bad(format!(
                "nothing can follow what the pattern {text} matches, as in the names of retry topics; leave out its `$` and `\\z`: \
                 whole names must match anyway"
            ));
        }
        // The topic tells through how many levels a record has been, so no two levels may have the same one.
        let names: Set<String> = self.retry_endings().collect();
        let is_whole = |pause: &Duration| pause.subsec_nanos().is_multiple_of(1_000_000);
        if names.len() < self.retry_topics.len() || !self.retry_topics.iter().all(is_whole) {
            return bad("the pauses of retry topics must differ, in whole milliseconds".to_owned());
        }
        match &self.last {
            // Brokers would say so when the first record has failed, and the consumer would stop there.
            Last::DeadLetter(Topic::Named(topic)) if !is_topic_name(topic) => bad(format!(
                "no dead letter topic can be called {:?}; a topic's name has 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'",
                letters::bounded(topic.to_string())
            )),
            Last::DeadLetter(Topic::Named(topic)) if consumed.takes(topic) => bad(format!(
                "the dead letter topic {topic} is one of the topics consumed, and would feed itself"
            )),
            _ => Ok(()),
        }
    }

    /// The dead letter topic that it names.
    pub(super) fn named_dead_letter_topic(&self) -> Option<&Arc<str>> {
        match &self.last {
            Last::DeadLetter(Topic::Named(topic)) => Some(topic),
            _ => None,
        }
    }

    /// How the names of retry topics end.
    pub(super) fn retry_endings(&self) -> impl Iterator<Item = String> {
        self.retry_topics.iter().map(|pause| retry_topics::in_words(*pause))
    }

    /// The topics where records of `topic` wait, with their pauses.
    pub(super) fn retry_topics_of(&self, topic: &str) -> impl Iterator<Item = (Arc<str>, Duration)> {
        self.retry_topics.iter().map(move |pause| (retry_topics::name(topic, *pause), *pause))
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.deadline
    }

    /// What to do after the `attempt`-th call (from 1) of a handler has failed. `level`: how many retry topics the record
    /// has been through. `random` spreads the pauses.
    pub(super) fn decide(&self, failure: &Failure, attempt: u32, level: usize, random: u64) -> Decision {
        if self.is_worth_another_try(failure) {
            if attempt < self.attempts {
                return Decision::RetryAfter(self.pause(attempt, random));
            }
            if level < self.retry_topics.len() {
                return Decision::RetryTopic(level);
            }
        }
        match &self.last {
            Last::Stop => Decision::Stop,
            Last::Skip => Decision::Skip,
            Last::DeadLetter(_) => Decision::DeadLetter,
        }
    }

    fn is_worth_another_try(&self, failure: &Failure) -> bool {
        match failure {
            Failure::Unreadable(_) | Failure::Corrupt(_) => false,
            Failure::Panic(_) | Failure::Deadline(_) => true,
            Failure::Handler(error) => {
                let error: Cause<'_> = error.as_ref();
                // In a batch, the conditions are asked about the cause of the message that failed.
                let failed = causes(error).find_map(|cause| cause.downcast_ref::<Failed>());
                let error = failed.map_or(error, |failed| &*failed.cause);
                self.conditions.iter().all(|condition| match condition {
                    Condition::If(is_passing) => is_passing(error),
                    Condition::Never(is_one) => !causes(error).any(is_one),
                })
            }
        }
    }

    fn pause(&self, attempt: u32, random: u64) -> Duration {
        let doublings = attempt.saturating_sub(1);
        let doubled = self.backoff.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let pause = doubled.min(self.max.unwrap_or_else(|| MAX_BACKOFF.max(self.backoff)));
        if self.jitter { pause - pause / 200 * u32::try_from(random % 101).unwrap_or(0) } else { pause }
    }

    /// Where a dead letter goes.
    pub(super) fn dead_letter_topic(&self, record: &ConsumerRecord, error: &Error) -> Option<Arc<str>> {
        match &self.last {
            Last::DeadLetter(Topic::Named(topic)) => Some(Arc::clone(topic)),
            Last::DeadLetter(Topic::Chosen(choose)) => Some(choose(record, error).into()),
            Last::Stop | Last::Skip => None,
        }
    }
}

/// Java: `org.apache.kafka.common.internals.Topic.validate`. Brokers that are no Kafka may have names with a scheme, as Pulsar has.
fn is_topic_name(name: &str) -> bool {
    let may_be_in = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_kafkas =
        (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(may_be_in);
    is_kafkas || name.contains("://")
}

impl fmt::Debug for ErrorPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut policy = f.debug_struct("ErrorPolicy");
        policy.field("attempts", &self.attempts).field("backoff", &self.backoff).field("max", &self.max);
        policy.field("jitter", &self.jitter).field("deadline", &self.deadline);
        policy.field("conditions", &self.conditions.len()).field("retry_topics", &self.retry_topics);
        match &self.last {
            Last::Stop => policy.field("then", &"stop"),
            Last::Skip => policy.field("then", &"skip"),
            Last::DeadLetter(Topic::Named(topic)) => policy.field("then_dead_letter", topic),
            Last::DeadLetter(Topic::Chosen(_)) => policy.field("then_dead_letter", &"chosen by record"),
        };
        policy.finish()
    }
}

/// The error and all its causes.
pub(super) fn causes<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    std::iter::successors(Some(error), |error: &Cause<'a>| (*error).source())
}

/// What to do with a record after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    RetryAfter(Duration),
    /// It waits in the retry topic of this number.
    RetryTopic(usize),
    Stop,
    Skip,
    DeadLetter,
}

#[cfg(test)]
mod tests;
