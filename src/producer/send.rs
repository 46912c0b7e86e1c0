//! Sending a value as JSON: the record being put together, and the future that appends it.
//!
//! Nothing is allocated per record: the JSON is written into a buffer of the thread and from there into the batch. This
//! file never decides where a record goes.

use std::{
    cell::Cell,
    future::IntoFuture,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
};

use serde::Serialize;

use super::{
    Delivery, KafkaProducer,
    append::Attempt,
    key::{IntoKey, Key},
};
use crate::{
    error::{Error, ErrorKind, Result},
    json,
    record::{Header, ProducerRecord, Timestamp},
};

thread_local! {
    /// JSON is written here before it is copied into its batch, so that sending allocates nothing.
    static JSON: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A record being put together by [`KafkaProducer::send`]; `.await` it to send.
#[must_use = "nothing is sent until it is awaited"]
#[derive(Debug)]
pub struct SendJson<'a, V: ?Sized> {
    pub(super) producer: &'a KafkaProducer,
    pub(super) record: ProducerRecord<'a>,
    pub(super) key: Option<Key<'a>>,
    pub(super) headers: Vec<Header>,
    pub(super) value: &'a V,
}

impl<'a, V: Serialize + ?Sized> SendJson<'a, V> {
    /// The key: text, bytes, an integer, or an option of these; see [`IntoKey`]. It decides the partition (murmur2, as in
    /// Java) unless one is set.
    pub fn key(mut self, key: impl IntoKey<'a>) -> Self {
        self.key = key.into_key();
        self
    }

    /// The partition to write to, whatever the key.
    pub fn partition(mut self, partition: i32) -> Self {
        self.record = self.record.partition(partition);
        self
    }

    /// Adds a header; keys may repeat.
    pub fn header(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push(Header::new(key, value.as_ref().to_vec()));
        self
    }

    /// The create time: milliseconds since the Unix epoch, or a `SystemTime`. Default: the time of sending.
    pub fn timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.record = self.record.timestamp(timestamp);
        self
    }

    /// Writes the JSON and appends the record, or says what there is to wait for.
    fn start(self) -> ControlFlow<Result<Delivery>, Waiting<'a>> {
        let Self { producer, record, key, headers, value } = self;
        let mut buffer = JSON.take();
        buffer.clear();
        let sent = match json::write(&mut buffer, value) {
            Ok(()) if !producer.shared().settings.plugins.interceptors.is_empty() => {
                return ControlFlow::Continue(Box::pin(async move {
                    let record = with_key(record.headers(&headers).value(&buffer), &key);
                    producer.shared().append_intercepted(record).await
                }));
            }
            Ok(()) => {
                let record = with_key(record.clone().headers(&headers).value(&buffer), &key);
                producer.shared().append(&record, &mut 0)
            }
            Err(cause) => Err(Error::new(ErrorKind::Json, "the value cannot be written as JSON")
                .with_topic(record.topic)
                .with_source(cause)),
        };
        match sent {
            Ok(Attempt::Wait(wait)) => ControlFlow::Continue(Box::pin(async move {
                let record = with_key(record.headers(&headers).value(&buffer), &key);
                producer.shared().append_waiting(&record, wait).await
            })),
            Ok(Attempt::Done(delivery)) => {
                JSON.set(buffer);
                ControlFlow::Break(Ok(delivery))
            }
            Err(error) => {
                JSON.set(buffer);
                ControlFlow::Break(Err(error))
            }
        }
    }
}

fn with_key<'k>(record: ProducerRecord<'k>, key: &'k Option<Key<'_>>) -> ProducerRecord<'k> {
    match key {
        Some(key) => record.key(key.as_bytes()),
        None => record,
    }
}

impl<'a, V: Serialize + ?Sized> IntoFuture for SendJson<'a, V> {
    type Output = Result<Delivery>;
    type IntoFuture = Sending<'a, V>;

    fn into_future(self) -> Self::IntoFuture {
        Sending(Stage::New(self))
    }
}

/// The future of [`SendJson`]; allocates nothing unless it has to wait for a topic or for memory.
///
/// # Errors
/// As [`KafkaProducer::send`].
///
/// # Cancel safety
/// Dropped before it returned, nothing was sent.
#[must_use = "nothing is sent until it is awaited"]
pub struct Sending<'a, V: ?Sized>(Stage<'a, V>);

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Delivery>> + Send + 'a>>;

enum Stage<'a, V: ?Sized> {
    New(SendJson<'a, V>),
    Waiting(Waiting<'a>),
    Ended,
}

impl<V: Serialize + ?Sized> Future for Sending<'_, V> {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match std::mem::replace(&mut self.0, Stage::Ended) {
                Stage::New(send) => match send.start() {
                    ControlFlow::Break(sent) => return Poll::Ready(sent),
                    ControlFlow::Continue(waiting) => self.0 = Stage::Waiting(waiting),
                },
                Stage::Waiting(mut waiting) => {
                    let polled = waiting.as_mut().poll(context);
                    if polled.is_pending() {
                        self.0 = Stage::Waiting(waiting);
                    }
                    return polled;
                }
                Stage::Ended => {
                    let text = "the future of a send was polled after it had ended";
                    return Poll::Ready(Err(Error::new(ErrorKind::InvalidArgument, text)));
                }
            }
        }
    }
}

impl<V: ?Sized> std::fmt::Debug for Sending<'_, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}
