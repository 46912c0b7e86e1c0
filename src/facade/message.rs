//! What handlers are given: [`Message`], [`Batch`], and the [`CancellationToken`] that says when to give up. Plain data; a
//! handler's test makes them by hand.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::record::{ConsumerRecord, Header, TopicPartition, last_header, time_of};

/// A record whose value was read, as handlers get it.
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
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value, read from JSON or by the handler's codec. A tombstone reads as JSON's `null`.
    pub value: T,
    /// The headers in order, duplicates kept.
    pub headers: Vec<Header>,
    /// Milliseconds since the Unix epoch; -1 if the record has none.
    pub timestamp: i64,
    /// Which call of the handler for this record this is, from 1.
    pub attempt: u32,
}

impl<T> Message<T> {
    /// A message of partition 0 and offset 0, without key, headers and timestamp: for tests of handlers.
    pub fn new(topic: impl Into<Arc<str>>, value: T) -> Self {
        let topic = topic.into();
        Self {
            topic,
            partition: 0,
            offset: 0,
            key: None,
            value,
            headers: Vec::new(),
            timestamp: -1,
            attempt: 1,
        }
    }

    /// The record's parts with a value in place of its bytes.
    pub(super) fn of(record: ConsumerRecord, value: T, attempt: u32) -> Self {
        Self {
            value,
            topic: record.topic,
            partition: record.partition,
            offset: record.offset,
            key: record.key,
            headers: record.headers,
            timestamp: record.timestamp,
            attempt,
        }
    }

    /// The key as text, if there is one and it is UTF-8.
    pub fn key_str(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }

    /// The value of the last header of this name.
    pub fn header(&self, key: &str) -> Option<&[u8]> {
        last_header(&self.headers, key)
    }

    /// The same as text, if it is UTF-8.
    pub fn header_str(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.header(key)?).ok()
    }

    /// The `traceparent` of the record (W3C trace context), if it has a valid one, to make it the parent of a span. With the
    /// feature `traceparent` what the handler sends gets it; without, or from a task that the handler has spawned, pass it on by
    /// `.header("traceparent", ..)`.
    pub fn traceparent(&self) -> Option<&str> {
        crate::telemetry::spans::traceparent(self.header("traceparent"))
    }

    /// The timestamp as a point in time, if there is one.
    pub fn time(&self) -> Option<SystemTime> {
        time_of(self.timestamp)
    }

    /// The topic's name as text, as in `message.topic() == "orders"`.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition it comes from.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), self.partition)
    }

    /// Says when the handler should give up: the consumer is stopping, or the partition is another member's now. Of a
    /// message made by hand it never does, unless the handler runs in a [`CancellationToken::scope`].
    ///
    /// Ask in the handler itself, not in a task it spawns; the token may go there.
    pub fn cancellation(&self) -> CancellationToken {
        CancellationToken::current()
    }

    /// The same message with another value.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Message<U> {
        let Self { topic, partition, offset, key, value, headers, timestamp, attempt } = self;
        Message { topic, partition, offset, key, value: map(value), headers, timestamp, attempt }
    }
}

/// Messages of one lane in the order they came, for handlers that do many at once.
///
/// The handler returns `Ok` for all of them, an error that fails them all, or a [`FailedAt`] that fails one: those before
/// it are done then.
///
/// ```
/// use dtkafka::{Batch, FailedAt, HandlerResult, Message};
///
/// async fn store(batch: Batch<u32>) -> HandlerResult {
///     for message in &batch {
///         if message.value == 0 {
///             return Err(FailedAt::new(message, "an order of nothing"))?;
///         }
///     }
///     Ok(())
/// }
/// # let _ = store(Batch::new(vec![Message::new("orders", 7)]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    messages: Vec<Message<T>>,
}

impl<T> Batch<T> {
    /// A batch of these messages: for tests of handlers.
    pub fn new(messages: impl IntoIterator<Item = Message<T>>) -> Self {
        Self { messages: messages.into_iter().collect() }
    }

    /// How many messages there are; never 0 in a handler.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Never true in a handler.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Message<T>> {
        self.messages.iter()
    }

    /// The values in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &T> {
        self.messages.iter().map(|message| &message.value)
    }

    /// The values in order, owned.
    pub fn into_values(self) -> impl ExactSizeIterator<Item = T> {
        self.messages.into_iter().map(|message| message.value)
    }

    /// As [`Message::cancellation`].
    pub fn cancellation(&self) -> CancellationToken {
        CancellationToken::current()
    }
}

impl<T> IntoIterator for Batch<T> {
    type Item = Message<T>;
    type IntoIter = std::vec::IntoIter<Message<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Batch<T> {
    type Item = &'a Message<T>;
    type IntoIter = std::slice::Iter<'a, Message<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}

/// The message of a [`Batch`] at which its handler failed: those before it are done, it and those behind it are not.
///
/// The consumer finds it among the causes of the handler's error, also in an `anyhow::Error`. The conditions of an
/// [`ErrorPolicy`](crate::ErrorPolicy) are asked about its cause.
#[derive(Debug)]
pub struct FailedAt(Failed);

/// The contents of [`FailedAt`], as an error below it: `anyhow` hides the type of the outermost error, and not of those
/// below.
#[derive(Debug)]
pub(super) struct Failed {
    /// The topic that the message first came from: in a retry topic messages of several partitions wait side by side.
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) cause: super::HandlerError,
}

impl FailedAt {
    /// The handler failed at this message.
    pub fn new<T>(message: &Message<T>, cause: impl Into<super::HandlerError>) -> Self {
        let Message { topic, partition, offset, .. } = message;
        Self(Failed { topic: Arc::clone(topic), partition: *partition, offset: *offset, cause: cause.into() })
    }
}

impl fmt::Display for FailedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for FailedAt {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed at offset {}: {}", self.offset, self.cause)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}

/// Says when to give up. Cheap to clone, and can be waited for from any task or thread.
#[derive(Clone, Default)]
pub struct CancellationToken {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    notify: Notify,
    /// When it is cancelled, so is this one.
    parent: Option<CancellationToken>,
}

tokio::task_local! {
    /// The token of the running lane. It is not a field of each message, which would cost a reference count per record.
    static CURRENT: CancellationToken;
}

impl CancellationToken {
    /// A token that nobody has cancelled: for tests of what waits for one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is cancelled with this one, or alone.
    pub(super) fn child(&self) -> Self {
        Self { inner: Arc::new(Inner { parent: Some(self.clone()), ..Inner::default() }) }
    }

    /// A child of the running lane's token for whoever asks in a handler. It is a child so that a handler cannot cancel
    /// the lane, and with it records that nobody has asked to give up. Outside of handlers it is a token that is never
    /// cancelled.
    pub(super) fn current() -> Self {
        CURRENT.try_with(Self::child).unwrap_or_default()
    }

    /// Runs `future` as a handler's: [`Message::cancellation`] within it gives a child of this token. The consumer does so; it
    /// is for tests of handlers, too. A cancelled token does not end the future: handlers look at it themselves.
    ///
    /// ```
    /// use dtkafka::{CancellationToken, HandlerResult, Message};
    ///
    /// async fn on_order(order: Message<u32>) -> HandlerResult {
    ///     order.cancellation().cancelled().await;
    ///     Err("told to give up")?
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let token = CancellationToken::new();
    /// token.cancel();
    /// assert!(token.scope(on_order(Message::new("orders", 7))).await.is_err());
    /// # }
    /// ```
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs `function` as a handler's.
    pub(super) fn sync_scope<T>(self, function: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, function)
    }

    /// Tells all who hold this token, or a clone of it, to give up. A token from [`Message::cancellation`] is the
    /// caller's own: the consumer and tokens from other calls are not affected.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        self.inner.notify.notify_waiters();
    }

    /// Whether it is time to give up.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        let mut token = Some(self);
        while let Some(Self { inner }) = token {
            if inner.cancelled.load(Ordering::Acquire) {
                return true;
            }
            token = inner.parent.as_ref();
        }
        false
    }

    /// Waits until it is time to give up.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cancelled(&self) {
        // Listening begins before the look, or a cancellation between the two would be missed.
        let mut own = std::pin::pin!(self.inner.notify.notified());
        own.as_mut().enable();
        match &self.inner.parent {
            Some(parent) => {
                let mut parents = std::pin::pin!(parent.inner.notify.notified());
                parents.as_mut().enable();
                let mut grand = std::pin::pin!(async {
                    match &parent.inner.parent {
                        Some(grand) => Box::pin(grand.cancelled()).await,
                        None => std::future::pending().await,
                    }
                });
                if self.is_cancelled() {
                    return;
                }
                tokio::select! {
                    biased;
                    () = own => {}
                    () = parents => {}
                    () = &mut grand => {}
                }
            }
            None if self.is_cancelled() => {}
            None => own.await,
        }
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken").field("is_cancelled", &self.is_cancelled()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_message_finds_its_last_header_of_a_name() {
        let mut message = Message::new("orders", ());
        message.headers = vec![Header::new("a", "1"), Header::new("b", "2"), Header::new("a", "3")];
        assert_eq!((message.header("a"), message.header_str("b")), (Some(&b"3"[..]), Some("2")));
        assert_eq!((message.header("c"), message.topic()), (None, "orders"));
    }

    #[tokio::test]
    async fn a_child_is_cancelled_with_its_parent_and_alone() {
        let parent = CancellationToken::new();
        let (alone, with_parent) = (parent.child(), parent.child());
        let deep = with_parent.child();
        assert!(deep.cancelled().now_or_never().is_none());
        alone.cancel();
        assert!(alone.is_cancelled() && !parent.is_cancelled() && !deep.is_cancelled());
        alone.cancelled().await;
        let cancel = async {
            tokio::task::yield_now().await;
            parent.cancel();
        };
        tokio::join!(deep.cancelled(), cancel);
        assert!(deep.is_cancelled() && with_parent.is_cancelled());
    }

    #[tokio::test]
    async fn a_message_knows_the_token_of_the_handler_that_runs() {
        let token = CancellationToken::new();
        token.cancel();
        let asked = token.clone().scope(async { Message::new("orders", ()).cancellation().is_cancelled() });
        assert!(asked.await);
        assert!(!Message::new("orders", ()).cancellation().is_cancelled());
        assert!(token.sync_scope(|| Message::new("orders", ()).cancellation().is_cancelled()));
    }
}
