//! Sending a value as JSON: the record being put together, and the future that appends it.
//!
//! Nothing is allocated per record: the JSON is written into a buffer of the thread and from there into the batch. This
//! file never decides where a record goes.

use std::{
    borrow::Cow,
    cell::Cell,
    future::IntoFuture,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::Serialize;

use super::{
    Delivery, KafkaProducer, OutgoingRecord,
    append::{Attempt, Wait},
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

/// Bytes that a thread keeps for the next value: room for what `max.request.size` lets through unless it is raised, and not for
/// the one value that was larger than all others.
const KEPT: usize = 2 << 20;

#[inline]
fn keep(buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT {
        JSON.set(buffer);
    }
}

/// A record being put together by [`KafkaProducer::send`]; `.await` it to send.
#[must_use = "nothing is sent until it is awaited"]
#[derive(Debug)]
pub struct SendJson<'a, V: ?Sized> {
    draft: Draft<'a>,
    value: &'a V,
}

/// All of it but the value.
#[derive(Debug)]
struct Draft<'a> {
    producer: &'a KafkaProducer,
    topic: &'a str,
    partition: Option<i32>,
    timestamp: Option<i64>,
    key: Option<Key<'a>>,
    headers: Vec<Header>,
}

impl<'a, V: Serialize + ?Sized> SendJson<'a, V> {
    pub(super) fn new(producer: &'a KafkaProducer, topic: &'a str, value: &'a V) -> Self {
        let draft =
            Draft { producer, topic, partition: None, timestamp: None, key: None, headers: Vec::new() };
        Self { draft, value }
    }

    /// The key: text, bytes, an integer, or an option of these; see [`IntoKey`]. It decides the partition (murmur2, as in
    /// Java) unless one is set.
    pub fn key(mut self, key: impl IntoKey<'a>) -> Self {
        self.draft.key = key.into_key();
        self
    }

    /// The partition to write to, whatever the key.
    pub fn partition(mut self, partition: i32) -> Self {
        self.draft.partition = Some(partition);
        self
    }

    /// Adds a header; keys may repeat.
    pub fn header(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.draft.headers.push(Header::new(key, value.as_ref().to_vec()));
        self
    }

    /// The create time: milliseconds since the Unix epoch, or a `SystemTime`. Default: the time of sending.
    pub fn timestamp(mut self, timestamp: impl Into<Timestamp>) -> Self {
        self.draft.timestamp = Some(timestamp.into().0);
        self
    }

    /// Writes the JSON and appends the record, or says what there is to wait for. It works where the record stands, since moving
    /// it would cost as much as finding its partition.
    fn start(&mut self) -> ControlFlow<Result<Delivery>, Waiting<'a>> {
        let draft = &mut self.draft;
        let mut buffer = JSON.take();
        buffer.clear();
        let sent = match json::write(&mut buffer, self.value) {
            Ok(()) if !draft.producer.shared().settings.plugins.interceptors.is_empty() => {
                return ControlFlow::Continue(draft.take().wait(buffer, None));
            }
            Ok(()) => draft.producer.shared().append(&draft.record(&buffer), &mut 0),
            Err(cause) => Err(unwritable(draft.topic, cause)),
        };
        let sent = match sent {
            Ok(Attempt::Done(delivery)) => Ok(delivery),
            Ok(Attempt::Wait(wait)) => return ControlFlow::Continue(draft.take().wait(buffer, Some(wait))),
            Err(error) => Err(error),
        };
        keep(buffer);
        ControlFlow::Break(sent)
    }
}

impl<'a> Draft<'a> {
    #[inline]
    fn record<'r>(&'r self, value: &'r [u8]) -> ProducerRecord<'r> {
        ProducerRecord {
            topic: self.topic,
            partition: self.partition,
            key: self.key.as_ref().map(Key::as_bytes),
            value: Some(value),
            headers: Cow::Borrowed(&self.headers),
            timestamp: self.timestamp,
        }
    }

    /// Moves the draft out, leaving one without key and headers behind.
    fn take(&mut self) -> Self {
        Self { key: self.key.take(), headers: std::mem::take(&mut self.headers), ..*self }
    }

    /// Appends the record after what it waits for; or, with nothing to wait for, by way of the interceptors.
    #[cold]
    fn wait(self, value: Vec<u8>, wait: Option<Wait>) -> Waiting<'a> {
        Box::pin(async move {
            let shared = self.producer.shared();
            match wait {
                Some(wait) => shared.append_waiting(&self.record(&value), wait).await,
                None => shared.append_intercepted(self.record(&value)).await,
            }
        })
    }
}

impl KafkaProducer {
    pub(crate) fn has_interceptors(&self) -> bool {
        !self.shared().settings.plugins.interceptors.is_empty()
    }

    /// What interceptors make of a value that is to be sent as JSON, for [`send_shown`](Self::send_shown), which can then be
    /// called again and again; [`watch`](Self::watch) has them told of the end.
    pub(crate) fn show<V: Serialize + ?Sized>(
        &self,
        topic: &str,
        key: Option<Key<'_>>,
        value: &V,
    ) -> Result<OutgoingRecord<'static>> {
        let mut buffer = Vec::new();
        json::write(&mut buffer, value).map_err(|cause| unwritable(topic, cause))?;
        let mut record = ProducerRecord::new(topic).value(&buffer);
        record.key = key.as_ref().map(Key::as_bytes);
        Ok(self.shared().settings.plugins.interceptors.on_send(record).into_owned())
    }

    pub(crate) async fn send_shown(&self, record: &OutgoingRecord<'_>) -> Result<Delivery> {
        self.shared().append_shown(record).await
    }

    pub(crate) fn watch(&self, record: &OutgoingRecord<'_>, sent: Result<Delivery>) -> Result<Delivery> {
        self.shared().settings.plugins.interceptors.watch(record.topic(), sent)
    }
}

fn unwritable(topic: &str, cause: serde_json::Error) -> Error {
    Error::new(ErrorKind::Json, "the value cannot be written as JSON").with_topic(topic).with_source(cause)
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
/// If dropped before it returned, nothing was sent.
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
        let stage = &mut self.0;
        if let Stage::New(send) = stage {
            match send.start() {
                ControlFlow::Break(sent) => {
                    *stage = Stage::Ended;
                    return Poll::Ready(sent);
                }
                ControlFlow::Continue(waiting) => *stage = Stage::Waiting(waiting),
            }
        }
        let Stage::Waiting(waiting) = stage else {
            let text = "the future of a send was polled after it had ended";
            return Poll::Ready(Err(Error::new(ErrorKind::InvalidArgument, text)));
        };
        let sent = ready!(waiting.as_mut().poll(context));
        *stage = Stage::Ended;
        Poll::Ready(sent)
    }
}

impl<V: ?Sized> std::fmt::Debug for Sending<'_, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_no_more_than_its_values_usually_take() {
        keep(vec![b'x'; KEPT]);
        let usual = JSON.take();
        assert_eq!(usual.capacity(), KEPT);
        keep(vec![b'x'; 50 << 20]);
        assert_eq!(JSON.take().capacity(), 0, "50 MiB would stay for ever");
    }
}
