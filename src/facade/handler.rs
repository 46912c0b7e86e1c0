//! What handlers look like and what happens when one fails. Pure but for the call itself: no clock, no socket.

use std::{error::Error as StdError, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, ErrorKind, Result},
    record::{ConsumerRecord, Header},
};

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What a handler fails with: any error; `?` converts every type that implements [`std::error::Error`].
pub type HandlerError = Box<dyn StdError + Send + Sync>;

/// What a handler returns.
pub type HandlerResult = std::result::Result<(), HandlerError>;

/// A record whose value was read as JSON, as handlers get it.
///
/// A handler is an ordinary function, so that a test can call it with a message of its own:
///
/// ```
/// use dtkafka::{HandlerResult, Message};
///
/// async fn on_order(order: Message<u32>) -> HandlerResult {
///     if order.value == 0 { Err("an order of nothing")? }
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert!(on_order(Message::new("orders", 7)).await.is_ok());
/// assert!(on_order(Message::new("orders", 0)).await.is_err());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<T> {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value. A tombstone reads as JSON's `null`: take an `Option` where the topic has them.
    pub value: T,
    /// The headers in order, duplicates kept.
    pub headers: Vec<Header>,
    /// Milliseconds since the Unix epoch; -1 if the record has none.
    pub timestamp: i64,
}

impl<T> Message<T> {
    /// A message of partition 0 and offset 0, without key, headers and timestamp: for tests of handlers.
    pub fn new(topic: impl Into<Arc<str>>, value: T) -> Self {
        let topic = topic.into();
        Self { topic, partition: 0, offset: 0, key: None, value, headers: Vec::new(), timestamp: -1 }
    }

    /// The value of the last header of this name.
    pub fn header(&self, key: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|header| header.key == key)?.value.as_deref()
    }
}

impl<T: DeserializeOwned> Message<T> {
    fn read(record: ConsumerRecord) -> Result<Self> {
        Ok(Self {
            value: record.json()?,
            topic: record.topic,
            partition: record.partition,
            offset: record.offset,
            key: record.key,
            headers: record.headers,
            timestamp: record.timestamp,
        })
    }
}

type Running = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// A function that handles what it is given: an `async fn`, an `async` closure, or a closure that returns a future.
///
/// Implemented for all of them that can be cloned, sent and shared; never by hand. What an `async move` closure captures is
/// cloned for each call: put state into an `Arc`.
pub trait Handler<A>: Clone + Send + Sync + 'static {
    /// Calls the function.
    fn call(&self, argument: A) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
}

impl<A, F, Running> Handler<A> for F
where
    F: FnOnce(A) -> Running + Clone + Send + Sync + 'static,
    Running: Future<Output = HandlerResult> + Send + 'static,
{
    fn call(&self, argument: A) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>> {
        // Stable Rust cannot say that the future of an `async` closure called by reference is `Send`; of one called by
        // value it can.
        Box::pin(self.clone()(argument))
    }
}

/// A handler whose type of message is forgotten.
pub(super) struct ErasedHandler(Box<dyn Fn(ConsumerRecord) -> Result<Running> + Send + Sync>);

impl ErasedHandler {
    pub(super) fn json<T: DeserializeOwned + 'static>(handler: impl Handler<Message<T>>) -> Self {
        Self(Box::new(move |record| Ok(handler.call(Message::read(record)?))))
    }

    pub(super) fn raw(handler: impl Handler<ConsumerRecord>) -> Self {
        Self(Box::new(move |record| Ok(handler.call(record))))
    }

    /// Calls the handler at once; the future is its own, and holds no second copy of the record.
    #[inline]
    pub(super) fn handle(
        &self,
        record: ConsumerRecord,
    ) -> impl Future<Output = std::result::Result<(), Failure>> + Send + use<> {
        let running = (self.0)(record);
        async move { running.map_err(Failure::Unreadable)?.await.map_err(Failure::Handler) }
    }
}

/// Why a record was not handled.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its value is not the JSON the handler takes.
    Unreadable(Error),
    /// The handler's own error.
    Handler(HandlerError),
}

impl Failure {
    /// The error that names the record.
    pub(super) fn into_error(self, topic: &Arc<str>, partition: i32, offset: i64) -> Error {
        match self {
            Self::Unreadable(error) => error,
            Self::Handler(cause) => Error::new(ErrorKind::Handler, "the handler failed")
                .with_topic(Arc::clone(topic))
                .with_partition(partition)
                .with_offset(offset)
                .with_boxed_source(cause),
        }
    }
}

/// What a [`Consumer`](crate::Consumer) does with a record that its handlers do not take: a handler returned an error, or
/// the value is not JSON of the handler's type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ErrorPolicy {
    /// `consume` returns the error. The record and those behind it are not committed, and come again (the default).
    #[default]
    Stop,
    /// The handler that failed is called again, and then the record is dealt with for good. Handlers of the record that
    /// succeeded are not called again. A value that cannot be read will not get better: it is dealt with at once.
    Retry {
        /// How many times the handler is called in all, 1 or more.
        attempts: u32,
        /// The pause before the second call; doubles with each further one, up to a minute. The member stays in its group.
        backoff: Duration,
        /// What happens after the last.
        then: Exhausted,
    },
}

/// What happens to a record when the last attempt has failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Exhausted {
    /// `consume` returns the error; the record is not committed, and comes again (the default).
    #[default]
    Stop,
    /// The record is logged and counts as handled: **it is lost to the handlers**.
    Skip,
    /// The record is written to this topic, and counts as handled when the broker has acknowledged it.
    ///
    /// Key, value and headers are the original ones; the headers `dtkafka-dead-letter-topic`, `-partition`, `-offset`,
    /// `-timestamp`, `-attempts` and `-error` are added, each as text.
    DeadLetter(String),
}

impl ErrorPolicy {
    /// Calls a failing handler up to `attempts` times in all, then stops.
    pub fn retry(attempts: u32, backoff: Duration) -> Self {
        Self::Retry { attempts, backoff, then: Exhausted::Stop }
    }

    /// Skips a record in the end, or at once if there is no retry. **It is lost to the handlers.**
    #[must_use]
    pub fn then_skip(self) -> Self {
        self.then(Exhausted::Skip)
    }

    /// Writes a record to a dead letter topic in the end, or at once if there is no retry.
    #[must_use]
    pub fn then_dead_letter(self, topic: impl Into<String>) -> Self {
        self.then(Exhausted::DeadLetter(topic.into()))
    }

    fn then(self, then: Exhausted) -> Self {
        match self {
            Self::Stop => Self::Retry { attempts: 1, backoff: Duration::ZERO, then },
            Self::Retry { attempts, backoff, .. } => Self::Retry { attempts, backoff, then },
        }
    }

    /// What is wrong with the policy of a consumer of `topics`.
    pub(super) fn check(&self, topics: &[Arc<str>]) -> Result<()> {
        let bad = |text: String| {
            Err(Error::new(ErrorKind::Config, format!("the error policy cannot be used: {text}")))
        };
        match self {
            Self::Retry { attempts: 0, .. } => {
                bad("attempts is 0; accepted: 1 (no retry) or more".to_owned())
            }
            Self::Retry { then: Exhausted::DeadLetter(topic), .. } if topic.is_empty() => {
                bad("the dead letter topic's name is empty".to_owned())
            }
            Self::Retry { then: Exhausted::DeadLetter(topic), .. }
                if topics.iter().any(|own| **own == **topic) =>
            {
                bad(format!(
                    "the dead letter topic {topic} is one of the topics consumed, and would feed itself"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether a record is needed after a handler has failed on it: for another attempt, or as a dead letter.
    pub(super) fn keeps_records(&self) -> bool {
        let Self::Retry { attempts, then, .. } = self else { return false };
        *attempts > 1 || matches!(then, Exhausted::DeadLetter(_))
    }

    /// What to do after the `attempt`-th call (from 1) of a handler has failed.
    pub(super) fn decide(&self, failure: &Failure, attempt: u32) -> Decision<'_> {
        let Self::Retry { attempts, backoff, then } = self else { return Decision::Stop };
        if attempt < *attempts && matches!(failure, Failure::Handler(_)) {
            let doubled = backoff.saturating_mul(1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
            return Decision::RetryAfter(doubled.min(MAX_BACKOFF.max(*backoff)));
        }
        match then {
            Exhausted::Stop => Decision::Stop,
            Exhausted::Skip => Decision::Skip,
            Exhausted::DeadLetter(topic) => Decision::DeadLetter(topic),
        }
    }
}

/// What to do with a record after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision<'a> {
    RetryAfter(Duration),
    Stop,
    Skip,
    DeadLetter(&'a str),
}

/// The headers of a dead letter: the record's own, then what happened to it.
pub(super) fn dead_letter_headers(record: &ConsumerRecord, attempts: u32, error: &Error) -> Vec<Header> {
    let added = [
        ("topic", record.topic.to_string()),
        ("partition", record.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("timestamp", record.timestamp.to_string()),
        ("attempts", attempts.to_string()),
        ("error", error.to_string()),
    ];
    let added =
        added.into_iter().map(|(name, text)| Header::new(format!("dtkafka-dead-letter-{name}"), text));
    record.headers.iter().cloned().chain(added).collect()
}

#[cfg(test)]
pub(super) fn test_record(topic: &str, partition: i32, offset: i64, value: &str) -> ConsumerRecord {
    ConsumerRecord {
        topic: topic.into(),
        partition,
        offset,
        timestamp: 1_700_000_000_000,
        timestamp_type: crate::record::TimestampType::CreateTime,
        leader_epoch: None,
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: vec![Header::new("trace", "t1")],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn failed() -> Failure {
        Failure::Handler("out of stock".into())
    }

    fn unreadable() -> Failure {
        Failure::Unreadable(Error::new(ErrorKind::Json, "not JSON"))
    }

    #[test]
    fn every_policy_decides_by_attempt_and_kind_of_failure() {
        let second = Duration::from_secs(1);
        let retry = ErrorPolicy::retry(3, second);
        let dead = retry.clone().then_dead_letter("dead");
        let long = ErrorPolicy::retry(u32::MAX, second);
        let table = [
            (&ErrorPolicy::Stop, failed(), 1, Decision::Stop),
            (&ErrorPolicy::Stop, unreadable(), 1, Decision::Stop),
            (&retry, failed(), 1, Decision::RetryAfter(second)),
            (&retry, failed(), 2, Decision::RetryAfter(2 * second)),
            (&retry, failed(), 3, Decision::Stop),
            (&retry, unreadable(), 1, Decision::Stop),
            (&dead, failed(), 2, Decision::RetryAfter(2 * second)),
            (&dead, failed(), 3, Decision::DeadLetter("dead")),
            (&dead, unreadable(), 1, Decision::DeadLetter("dead")),
            (&long, failed(), 7, Decision::RetryAfter(Duration::from_secs(60))),
            (&long, failed(), 4_000_000_000, Decision::RetryAfter(Duration::from_secs(60))),
        ];
        for (policy, failure, attempt, expected) in table {
            let decision = policy.decide(&failure, attempt);
            assert_eq!(decision, expected, "{policy:?} {failure:?} attempt {attempt}");
            if matches!(decision, Decision::RetryAfter(_) | Decision::DeadLetter(_)) {
                assert!(policy.keeps_records(), "{policy:?} needs the record");
            }
        }
        let skip = ErrorPolicy::Stop.then_skip();
        assert_eq!(skip.decide(&failed(), 1), Decision::Skip, "skipping needs no retry");
        for policy in [ErrorPolicy::Stop, skip, ErrorPolicy::retry(1, second)] {
            assert!(!policy.keeps_records(), "{policy:?} has no use for a record that failed");
        }
    }

    #[test]
    fn policies_that_cannot_work_are_refused() {
        let topics = ["orders".into()];
        let bad = [
            ErrorPolicy::retry(0, Duration::ZERO),
            ErrorPolicy::Stop.then_dead_letter(""),
            ErrorPolicy::Stop.then_dead_letter("orders"),
        ];
        for policy in bad {
            assert_eq!(policy.check(&topics).unwrap_err().kind(), ErrorKind::Config, "{policy:?}");
        }
        ErrorPolicy::retry(1, Duration::ZERO).then_dead_letter("orders-dead").check(&topics).unwrap();
    }

    #[test]
    fn a_dead_letter_says_where_it_came_from_and_keeps_its_headers() {
        let record = test_record("orders", 3, 42, "{}");
        let error = failed().into_error(&record.topic, record.partition, record.offset);
        let headers = dead_letter_headers(&record, 5, &error);
        let text = |index: usize| String::from_utf8(headers[index].value.clone().unwrap().to_vec()).unwrap();
        let names: Vec<_> = headers.iter().map(|header| header.key.as_str()).collect();
        assert_eq!(names[..3], ["trace", "dtkafka-dead-letter-topic", "dtkafka-dead-letter-partition"]);
        assert_eq!(
            (text(1), text(2), text(3), text(5)),
            ("orders".into(), "3".into(), "42".into(), "5".into())
        );
        assert!(text(6).contains("out of stock"), "{}", text(6));
    }

    #[tokio::test]
    async fn functions_and_closures_of_every_kind_are_handlers() {
        async fn function(message: Message<u32>) -> HandlerResult {
            if message.value == 7 { Ok(()) } else { Err("not 7".into()) }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (one, two) = (Arc::clone(&seen), Arc::clone(&seen));
        let handlers = [
            ErasedHandler::json(function),
            ErasedHandler::json(async move |message: Message<u32>| {
                one.lock().unwrap().push(message.value);
                Ok(())
            }),
            ErasedHandler::json(move |message: Message<u32>| {
                let two = Arc::clone(&two);
                async move {
                    two.lock().unwrap().push(message.value);
                    Ok(())
                }
            }),
            ErasedHandler::raw(async |record: ConsumerRecord| match record.value {
                Some(_) => Ok(()),
                None => Err("no value".into()),
            }),
        ];
        for handler in &handlers {
            handler.handle(test_record("orders", 0, 0, "7")).await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), [7, 7]);
        let failure = handlers[0].handle(test_record("orders", 0, 0, "8")).await.unwrap_err();
        assert!(matches!(failure, Failure::Handler(_)));
        let failure = handlers[0].handle(test_record("orders", 0, 0, "\"x\"")).await.unwrap_err();
        assert!(matches!(failure, Failure::Unreadable(_)));
    }

    #[test]
    fn a_message_finds_its_last_header_of_a_name() {
        let mut message = Message::new("orders", ());
        message.headers = vec![Header::new("a", "1"), Header::new("b", "2"), Header::new("a", "3")];
        assert_eq!(message.header("a"), Some(&b"3"[..]));
        assert_eq!(message.header("c"), None);
    }
}
