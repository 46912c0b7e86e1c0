//! The one error type: what failed, where, and which setting to change.
//!
//! Never put a password, token or record value into an error.

pub(crate) mod code;

use std::{error::Error as StdError, fmt, sync::Arc};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting has a bad value, is missing or is unknown.
    Config,
    /// An argument of the call cannot be used, for example an empty topic name.
    InvalidArgument,
    /// No connection could be made; [`Error::stage`] says how far it came.
    Connect(Stage),
    /// An established connection was lost.
    Disconnected,
    /// The deadline of the call, or of a setting such as `delivery.timeout.ms`, has passed.
    Timeout,
    /// The broker answered with an error code.
    Broker(ErrorCode),
    /// Bytes from the network do not follow the protocol, or a record batch is corrupt.
    Protocol,
    /// The broker does not offer what the call needs.
    Unsupported,
    /// A value could not be turned into JSON, or JSON not into a value.
    Json,
    /// A handler, or the body of a context, returned an error of its own.
    Handler,
    /// The client was closed.
    Closed,
}

/// How far a connection came before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Resolving the host name.
    Dns,
    /// Opening the TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// SASL authentication.
    Sasl,
    /// The first Kafka request (ApiVersions).
    Api,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Sasl => "sasl",
            Self::Api => "api",
        })
    }
}

/// An error code of the Kafka protocol. Brokers may answer with one that is newer than this list.
///
/// ```
/// use dtkafka::{Error, ErrorCode};
///
/// fn is_there_already(error: &Error) -> bool {
///     error.code() == Some(ErrorCode::TOPIC_ALREADY_EXISTS)
/// }
/// # let _ = is_there_already;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub i16);

impl ErrorCode {
    /// Kafka's name of the code, such as `NotLeaderOrFollower`.
    pub fn name(self) -> String {
        code::lookup(self.0).map_or_else(|| format!("Unknown({})", self.0), |(name, _)| name.to_owned())
    }

    /// Whether it was a code of Kafka's when this was written.
    pub(crate) fn is_known(self) -> bool {
        code::lookup(self.0).is_some()
    }

    /// Whether the protocol guide calls the code retriable.
    pub fn is_retriable(self) -> bool {
        code::lookup(self.0).is_some_and(|(_, retriable)| retriable)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// A failure of this crate: cheap to clone, so that every record of a batch gets the same one.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    topic: Option<Arc<str>>,
    partition: Option<i32>,
    offset: Option<i64>,
    last_offset: Option<i64>,
    divergent_offset: Option<i64>,
    broker: Option<i32>,
    address: Option<String>,
    api: Option<&'static str>,
    hint: Option<String>,
    fatal: bool,
    requires_abort: bool,
    /// Whether it passes, where the kind does not say.
    passes: Option<bool>,
    unsent: bool,
    /// The words for what may have been done all the same (`possibly_written`).
    possibly: Option<&'static str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// No topic has a longer name.
const LONGEST_NAME: usize = 249;

/// What of a broker's own words an error repeats, in characters.
const LONGEST_TEXT: usize = 1_000;

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The broker's error code, if the failure is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self.0.kind {
            ErrorKind::Broker(code) => Some(code),
            _ => None,
        }
    }

    /// How far a connection came, if the failure is one of connecting.
    pub fn stage(&self) -> Option<Stage> {
        match self.0.kind {
            ErrorKind::Connect(stage) => Some(stage),
            _ => None,
        }
    }

    /// The topic concerned.
    pub fn topic(&self) -> Option<&str> {
        self.0.topic.as_deref()
    }

    /// The partition concerned.
    pub fn partition(&self) -> Option<i32> {
        self.0.partition
    }

    /// The offset of the record concerned, or the first offset of the batch concerned.
    pub fn offset(&self) -> Option<i64> {
        self.0.offset
    }

    /// The last offset of the batch concerned, if the failure is one of a whole batch and its end is known. To continue behind
    /// it, `seek` to the offset after it.
    pub fn last_offset(&self) -> Option<i64> {
        self.0.last_offset
    }

    /// Where a log was truncated (KIP-320): the first offset from which it differs from what was read. With
    /// `auto.offset.reset=none`, undo what you made of the records behind it and `seek` there to continue.
    pub fn divergent_offset(&self) -> Option<i64> {
        self.0.divergent_offset
    }

    /// The id of the broker concerned.
    pub fn broker(&self) -> Option<i32> {
        self.0.broker
    }

    /// The address of the broker concerned.
    pub fn address(&self) -> Option<&str> {
        self.0.address.as_deref()
    }

    /// The Kafka API that was called, such as `Produce`.
    pub fn api(&self) -> Option<&'static str> {
        self.0.api
    }

    /// What to change, if that is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the same call may succeed later without a change.
    ///
    /// The cause decides, not how far a connection came: a broker that closes, resets or keeps silent may be restarting,
    /// in the middle of a TLS or SASL handshake too. An alert, a certificate that is not trusted, refused credentials or
    /// another protocol on the port stay until somebody changes a setting. A certificate that is not valid yet passes: the
    /// clock of a machine that has just booted may be behind.
    pub fn is_retriable(&self) -> bool {
        self.0.passes.unwrap_or_else(|| match self.0.kind {
            ErrorKind::Connect(_) | ErrorKind::Disconnected | ErrorKind::Timeout => true,
            ErrorKind::Broker(code) => code.is_retriable(),
            _ => false,
        })
    }

    /// Whether the client that returned it can do nothing more and must be replaced.
    pub fn is_fatal(&self) -> bool {
        self.0.fatal
    }

    /// Whether the open transaction can only be aborted; the producer can go on with another one. Always false outside a
    /// transaction (KIP-691).
    pub fn requires_abort(&self) -> bool {
        self.0.requires_abort && !self.0.fatal
    }

    /// Whether another producer with the same `transactional.id` has taken over: this one can do nothing more.
    pub fn is_fenced(&self) -> bool {
        self.0.fatal
            && self
                .code()
                .is_some_and(|told| matches!(told.0, code::PRODUCER_FENCED | code::INVALID_PRODUCER_EPOCH))
    }

    /// Whether a record that failed with this error may be in the log nevertheless: a request was sent, and its outcome is
    /// not known. Sending such a record again may write it twice. For a [`KafkaAdmin`](crate::KafkaAdmin): whether the change may
    /// have been made nevertheless.
    pub fn possibly_written(&self) -> bool {
        self.0.possibly.is_some()
    }

    /// An error of your own, to return from the body of a context: its text and source are kept, its kind is
    /// [`ErrorKind::Handler`].
    pub fn other(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Handler, "the application's code failed").with_boxed_source(cause.into())
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            topic: None,
            partition: None,
            offset: None,
            last_offset: None,
            divergent_offset: None,
            broker: None,
            address: None,
            api: None,
            hint: None,
            fatal: false,
            requires_abort: false,
            passes: None,
            unsent: false,
            possibly: None,
            source: None,
        }))
    }

    /// An error code of the broker in the answer to `api`.
    pub(crate) fn from_code(api: &'static str, code: i16) -> Self {
        let code = ErrorCode(code);
        Self::new(ErrorKind::Broker(code), format!("the broker answered {code}")).with_api(api)
    }

    pub(crate) fn closed(what: &str) -> Self {
        Self::new(ErrorKind::Closed, format!("the {what} is closed"))
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, message)
    }

    fn change(mut self, edit: impl FnOnce(&mut Inner)) -> Self {
        edit(Arc::make_mut(&mut self.0));
        self
    }

    /// What the broker itself says, after its error code: short, and without what confuses a terminal or a log.
    pub(crate) fn with_message(self, text: &str) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let text: String = text.chars().take(LONGEST_TEXT).map(plain).collect();
        self.change(|inner| inner.message = format!("{}: {text}", inner.message))
    }

    /// What came of this cause, with its kind, place and hint.
    pub(crate) fn over(self, message: impl Into<String>) -> Self {
        let kind = self.kind();
        let (hint, passes) = (self.0.hint.clone(), self.0.passes);
        let (topic, partition, broker) = (self.0.topic.clone(), self.0.partition, self.0.broker);
        Self::new(kind, message).with_source(self).change(|inner| {
            (inner.hint, inner.passes) = (hint, passes);
            (inner.topic, inner.partition, inner.broker) = (topic, partition, broker);
        })
    }

    /// Whether nothing of the request that failed was written: the broker cannot have done it.
    pub(crate) fn is_unsent(&self) -> bool {
        self.0.unsent
    }

    /// Whether [`with_permanent`](Self::with_permanent) was said of it.
    pub(crate) fn is_permanent(&self) -> bool {
        self.0.passes == Some(false)
    }
}

/// The error with a field set.
macro_rules! with {
    ($($(#[$doc:meta])* $method:ident($($value:ident: $type:ty)?) => $field:ident = $set:expr;)+) => {
        impl Error {
            $($(#[$doc])*
            pub(crate) fn $method(self $(, $value: $type)?) -> Self {
                self.change(|inner| inner.$field = $set)
            })+
        }
    };
}

with! {
    with_topic(topic: impl Into<Arc<str>>) => topic = Some(topic.into());
    with_partition(partition: i32) => partition = Some(partition);
    with_offset(offset: i64) => offset = Some(offset);
    with_last_offset(offset: i64) => last_offset = Some(offset);
    with_divergent_offset(offset: i64) => divergent_offset = Some(offset);
    with_broker(broker: i32) => broker = Some(broker);
    with_address(address: impl Into<String>) => address = Some(address.into());
    with_api(api: &'static str) => api = Some(api);
    /// Which setting to change, as a full sentence without its full stop.
    with_hint(hint: impl Into<String>) => hint = Some(hint.into());
    with_source(source: impl StdError + Send + Sync + 'static) => source = Some(Arc::new(source));
    with_boxed_source(source: Box<dyn StdError + Send + Sync>) => source = Some(source.into());
    with_fatal() => fatal = true;
    /// Nothing of the request was written.
    with_unsent() => unsent = true;
    /// Waiting will not help: a setting, a certificate or the other side must change first.
    with_permanent() => passes = Some(false);
    /// Waiting may help, whatever the code says: the client goes on asking.
    with_passing() => passes = Some(true);
    /// The open transaction can only be aborted.
    with_requires_abort() => requires_abort = true;
    with_possibly_written(possibly: bool) => possibly = possibly.then_some("the record may have been written");
    /// As [`Self::with_possibly_written`], for a change that an admin has asked for.
    with_possibly_made() => possibly = Some("an earlier request was not answered, and may have done it");
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.write_str(&inner.message)?;
        let mut places = Vec::new();
        if let ErrorKind::Connect(stage) = inner.kind {
            places.push(format!("stage {stage}"));
        }
        if let Some(api) = inner.api {
            places.push(format!("api {api}"));
        }
        match (&inner.topic, inner.partition) {
            (Some(topic), Some(partition)) => {
                places.push(format!("topic {} partition {partition}", shown_name(topic)))
            }
            (Some(topic), None) => places.push(format!("topic {}", shown_name(topic))),
            _ => {}
        }
        match (inner.offset, inner.last_offset) {
            (Some(first), Some(last)) if first != last => places.push(format!("offsets {first} to {last}")),
            (Some(offset), _) | (None, Some(offset)) => places.push(format!("offset {offset}")),
            (None, None) => {}
        }
        if let Some(broker) = inner.broker {
            places.push(format!("broker {broker}"));
        }
        if let Some(address) = &inner.address {
            places.push(format!("at {address}"));
        }
        if !places.is_empty() {
            write!(f, " [{}]", places.join(", "))?;
        }
        let source = inner.source.as_ref().map(ToString::to_string);
        if let Some(source) = &source {
            write!(f, ": {source}")?;
        }
        if let Some(possibly) = inner.possibly {
            write!(f, "; {possibly}")?;
        }
        // Not if the cause's text has it already.
        match &inner.hint {
            Some(hint) if !source.is_some_and(|source| source.contains(hint)) => write!(f, "; {hint}"),
            _ => Ok(()),
        }
    }
}

/// A name as it was given, which may be none: as long as a topic's may be, and in one line.
fn shown_name(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let mut shown: String = name.chars().take(LONGEST_NAME).map(plain).collect();
    if shown.len() < name.len() {
        shown.push_str("...");
    }
    shown
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_what_failed_where_and_what_to_change() {
        let error = Error::from_code("Produce", 6)
            .with_topic("orders")
            .with_partition(3)
            .with_broker(1)
            .with_address("b1:9092")
            .with_possibly_written(true)
            .with_hint("raise delivery.timeout.ms");
        assert_eq!(
            error.to_string(),
            "the broker answered NotLeaderOrFollower (6) [api Produce, topic orders partition 3, broker 1, at b1:9092]; \
             the record may have been written; raise delivery.timeout.ms"
        );
        assert!(error.is_retriable() && error.possibly_written() && !error.is_fatal());
    }

    #[test]
    fn a_hint_of_the_cause_is_said_once() {
        let cause = Error::closed("broker").with_hint("see to the broker");
        let text = cause.clone().over("it waited").to_string();
        assert_eq!(text.matches("see to the broker").count(), 1, "{text}");
        let text = cause.over("it waited").with_hint("raise the limit").to_string();
        assert!(text.ends_with("see to the broker; raise the limit"), "{text}");
    }

    #[test]
    fn a_name_that_can_be_none_is_cut_and_of_one_line() {
        let text = Error::closed("x").with_topic("a\nERROR b").to_string();
        assert_eq!(text, "the x is closed [topic a?ERROR b]");
        let text = Error::closed("x").with_topic("n".repeat(1 << 20)).with_partition(3).to_string();
        assert!(text.len() < 400 && text.contains("n... partition 3"), "{text}");
        assert!(Error::closed("x").with_topic("n".repeat(249)).to_string().ends_with("nn]"));
    }

    #[test]
    fn what_a_broker_says_is_short_and_of_one_line() {
        let told = format!("no\r\nERROR forged line\u{1b}[2J{}", "x".repeat(1 << 20));
        let text = Error::from_code("Produce", 87).with_message(&told).to_string();
        assert!(text.len() < 1200 && text.contains("forged") && !text.contains(char::is_control), "{text}");
    }

    #[test]
    fn a_failed_connection_is_passing_or_permanent_by_its_cause_and_not_by_its_stage() {
        for stage in [Stage::Dns, Stage::Tcp, Stage::Tls, Stage::Sasl, Stage::Api] {
            let closed = Error::new(ErrorKind::Connect(stage), "the other side closed");
            assert!(closed.is_retriable(), "{stage}");
            assert!(!closed.with_permanent().is_retriable(), "{stage}");
        }
    }

    #[test]
    fn a_batch_is_named_by_its_first_and_its_last_offset() {
        let error = Error::protocol("damaged").with_offset(7).with_last_offset(12);
        assert_eq!((error.offset(), error.last_offset()), (Some(7), Some(12)));
        assert_eq!(error.to_string(), "damaged [offsets 7 to 12]");
        assert_eq!(error.with_last_offset(7).to_string(), "damaged [offset 7]");
    }

    #[test]
    fn a_clone_keeps_its_text_when_context_is_added_to_the_other() {
        let first = Error::closed("producer");
        let second = first.clone().with_topic("orders");
        assert_eq!(first.to_string(), "the producer is closed");
        assert_eq!(second.topic(), Some("orders"));
    }
}
