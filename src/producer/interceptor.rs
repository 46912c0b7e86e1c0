//! Interceptors: the user's code that sees a record before it is sent, and what became of it (KIP-42; Java's
//! `interceptor.classes`). A panic in one is logged; the record and the other interceptors go on without it.
//!
//! A producer without any pays one look at an empty list per record. With some, each record is noted in its batch's receipt, so
//! that it is told of when the batch has its answer.

use std::{
    any::type_name,
    borrow::Cow,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

use super::Delivery;
#[cfg(feature = "traceparent")]
use crate::telemetry::trace_context::{self, TraceContext};
use crate::{
    error::{Error, Result},
    record::{Header, ProducerRecord, RecordMetadata, Timestamp},
};

/// Your own code that sees each record of a producer before it is sent, may change it, and learns its outcome.
///
/// Set it with [`ProducerConfig::interceptor`](crate::ProducerConfig::interceptor), once for each; they are called in that order,
/// each with the record as the one before left it. A panic is logged and its changes to the record are discarded; the record is
/// still sent, and the next interceptors are still called.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::{Error, OutgoingRecord, ProducerInterceptor, RecordMetadata};
///
/// struct Stamped;
///
/// impl ProducerInterceptor for Stamped {
///     fn on_send(&self, record: &mut OutgoingRecord<'_>) {
///         record.add_header("sent-by", "billing");
///     }
///
///     fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
///         if let Err(error) = outcome {
///             eprintln!("{error}");
///         }
///     }
/// }
///
/// let producer = kafka.get_producer_with(|p| p.interceptor(Stamped)).await?;
/// # Ok(()) }
/// ```
pub trait ProducerInterceptor: Send + Sync + 'static {
    /// A record is about to be sent: before its partition is chosen, and once, whatever it waits for. Called by whoever sends,
    /// so it should be quick and must not block.
    fn on_send(&self, record: &mut OutgoingRecord<'_>) {
        let _ = record;
    }

    /// A record was acknowledged, or has failed: the same that its [`Delivery`] tells, and before that does. A send that is
    /// refused is told of as well; one that is dropped while it waits is not. Called by the producer's driver, which sends
    /// nothing meanwhile, and for a refused send by whoever sends: be quick, never block.
    fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
        let _ = outcome;
    }
}

/// A record that is about to be sent, as interceptors see and change it. What is not changed is not copied.
#[derive(Clone)]
pub struct OutgoingRecord<'a> {
    topic: Cow<'a, str>,
    partition: Option<i32>,
    key: Option<Cow<'a, [u8]>>,
    value: Option<Cow<'a, [u8]>>,
    headers: Cow<'a, [Header]>,
    timestamp: Option<i64>,
}

impl<'a> OutgoingRecord<'a> {
    pub(super) fn new(record: ProducerRecord<'a>) -> Self {
        Self {
            topic: Cow::Borrowed(record.topic),
            partition: record.partition,
            key: record.key.map(Cow::Borrowed),
            value: record.value.map(Cow::Borrowed),
            headers: record.headers,
            timestamp: record.timestamp,
        }
    }

    pub(super) fn into_owned(self) -> OutgoingRecord<'static> {
        OutgoingRecord {
            topic: Cow::Owned(self.topic.into_owned()),
            partition: self.partition,
            key: self.key.map(|key| Cow::Owned(key.into_owned())),
            value: self.value.map(|value| Cow::Owned(value.into_owned())),
            headers: Cow::Owned(self.headers.into_owned()),
            timestamp: self.timestamp,
        }
    }

    pub(super) fn borrowed(&self) -> ProducerRecord<'_> {
        ProducerRecord {
            topic: &self.topic,
            partition: self.partition,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: Cow::Borrowed(&self.headers),
            timestamp: self.timestamp,
        }
    }

    /// The topic it goes to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Sends it to another topic.
    pub fn set_topic(&mut self, topic: impl Into<String>) {
        self.topic = Cow::Owned(topic.into());
    }

    /// The partition that was asked for; `None` where it is still to be chosen.
    pub fn partition(&self) -> Option<i32> {
        self.partition
    }

    /// Sends it to this partition; `None` leaves it to the partitioner. One that the topic does not have is an error of the send.
    pub fn set_partition(&mut self, partition: Option<i32>) {
        self.partition = partition;
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// Gives it another key, or none.
    pub fn set_key(&mut self, key: Option<impl Into<Vec<u8>>>) {
        self.key = key.map(|key| Cow::Owned(key.into()));
    }

    /// The value; `None` is a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Gives it another value; `None` makes it a tombstone.
    pub fn set_value(&mut self, value: Option<impl Into<Vec<u8>>>) {
        self.value = value.map(|value| Cow::Owned(value.into()));
    }

    /// The headers, in order.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// The headers, to be changed.
    pub fn headers_mut(&mut self) -> &mut Vec<Header> {
        self.headers.to_mut()
    }

    /// Adds a header behind the others; keys may repeat.
    pub fn add_header(&mut self, key: impl Into<String>, value: impl Into<Bytes>) {
        self.headers_mut().push(Header::new(key, value));
    }

    /// The create time in milliseconds since the Unix epoch; `None` for the time of sending.
    pub fn timestamp(&self) -> Option<i64> {
        self.timestamp
    }

    /// Sets the create time: milliseconds since the Unix epoch, or a `SystemTime`.
    pub fn set_timestamp(&mut self, timestamp: impl Into<Timestamp>) {
        self.timestamp = Some(timestamp.into().0);
    }
}

impl fmt::Debug for OutgoingRecord<'_> {
    /// Without key, value and headers, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingRecord")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}

/// Those of one producer, in the order in which they are called.
#[derive(Clone, Default)]
pub(crate) struct Interceptors(Vec<Interceptor>);

#[derive(Clone)]
struct Interceptor {
    /// Its type, for the log.
    name: &'static str,
    own: Arc<dyn ProducerInterceptor>,
}

impl Interceptors {
    pub(crate) fn push<I: ProducerInterceptor>(&mut self, interceptor: I) {
        self.0.push(Interceptor { name: type_name::<I>(), own: Arc::new(interceptor) });
    }

    /// Whether a record that is sent now goes out as it is.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        #[cfg(feature = "traceparent")]
        if TraceContext::current().is_some() {
            return false;
        }
        self.0.is_empty()
    }

    /// The record as the interceptors have changed it.
    pub(super) fn on_send<'a>(&self, record: ProducerRecord<'a>) -> OutgoingRecord<'a> {
        let mut record = OutgoingRecord::new(record);
        for interceptor in &self.0 {
            // Of one that panics nothing must remain: it may have been in the middle of a change.
            let mut changed = record.clone();
            if interceptor.call("on_send", |own| own.on_send(&mut changed)) {
                record = changed;
            }
        }
        #[cfg(feature = "traceparent")]
        trace_context::pass_on(&mut record);
        record
    }

    /// Tells them what became of a record.
    pub(super) fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
        for interceptor in &self.0 {
            interceptor.call("on_acknowledgement", |own| own.on_acknowledgement(outcome));
        }
    }

    /// A record was taken, and they are told of it when its batch has its answer; or it was refused, and they are told now.
    pub(super) fn watch(&self, topic: &str, sent: Result<Delivery>) -> Result<Delivery> {
        match sent {
            Ok(delivery) => {
                if !self.0.is_empty() {
                    delivery.watch(self);
                }
                Ok(delivery)
            }
            Err(error) => {
                let error = error.with_topic(topic);
                self.on_acknowledgement(Err(&error));
                Err(error)
            }
        }
    }
}

impl Interceptor {
    /// False if it panicked. The panic's own text may hold what is secret: the hook that the program has set for panics has
    /// seen it.
    fn call(&self, what: &'static str, call: impl FnOnce(&dyn ProducerInterceptor)) -> bool {
        let ended = catch_unwind(AssertUnwindSafe(|| call(&*self.own)));
        if ended.is_err() {
            tracing::error!(
                interceptor = self.name,
                call = what,
                "an interceptor panicked; the record goes on without it"
            );
        }
        ended.is_ok()
    }
}

impl fmt::Debug for Interceptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|interceptor| interceptor.name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        error::ErrorKind,
        producer::receipt::{Ack, BatchOutcome, Part, Receipt},
    };

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl Heard {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl ProducerInterceptor for Heard {
        fn on_send(&self, record: &mut OutgoingRecord<'_>) {
            let seen = String::from_utf8_lossy(record.value().unwrap_or_default()).into_owned();
            self.0.lock().unwrap().push(format!("send {seen}"));
        }

        fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
            self.0.lock().unwrap().push(match outcome {
                Ok(written) => format!("{}-{} {}", written.topic, written.partition, written.offset),
                Err(error) => format!("{:?}", error.kind()),
            });
        }
    }

    struct Append(&'static str);

    impl ProducerInterceptor for Append {
        fn on_send(&self, record: &mut OutgoingRecord<'_>) {
            let value = [record.value().unwrap_or_default(), self.0.as_bytes()].concat();
            record.set_value(Some(value));
            record.add_header("by", self.0);
        }
    }

    struct Panics;

    impl ProducerInterceptor for Panics {
        fn on_send(&self, record: &mut OutgoingRecord<'_>) {
            record.set_topic("elsewhere");
            panic!("on_send of a test");
        }

        fn on_acknowledgement(&self, _: Result<&RecordMetadata, &Error>) {
            panic!("on_acknowledgement of a test");
        }
    }

    fn acknowledged(base_offset: i64) -> BatchOutcome {
        BatchOutcome::Acknowledged(Ack { base_offset, log_append_time: -1 })
    }

    #[test]
    fn interceptors_are_called_in_order_and_a_panic_of_one_changes_nothing() {
        let (heard, mut all) = (Heard::default(), Interceptors::default());
        all.push(Append("1"));
        all.push(Panics);
        all.push(Append("2"));
        all.push(heard.clone());
        let changed = all.on_send(ProducerRecord::new("orders").value("v").key("k").partition(3));
        let record = changed.borrowed();
        assert_eq!((record.topic, record.value, record.key), ("orders", Some(&b"v12"[..]), Some(&b"k"[..])));
        assert_eq!(*record.headers, [Header::new("by", "1"), Header::new("by", "2")]);
        all.on_acknowledgement(Ok(&RecordMetadata::new("orders", 3, 7)));
        assert_eq!(heard.take(), ["send v12", "orders-3 7"]);
    }

    #[test]
    fn what_is_not_changed_is_not_copied() {
        let (value, mut all) = (b"value".to_vec(), Interceptors::default());
        all.push(Heard::default());
        let changed = all.on_send(ProducerRecord::new("orders").value(&value));
        assert_eq!(changed.borrowed().value.unwrap().as_ptr(), value.as_ptr());
        assert!(matches!(changed.headers, Cow::Borrowed(_)));
    }

    #[test]
    fn each_record_of_a_batch_is_told_of_once_whether_it_is_noted_before_or_after_the_answer() {
        let (heard, mut all) = (Heard::default(), Interceptors::default());
        all.push(heard.clone());
        let receipt = Receipt::new("orders".into(), 1);
        let delivery = |index| Delivery::new(Arc::clone(&receipt), index, 0);
        delivery(0).watch(&all);
        assert!(heard.take().is_empty());
        assert!(receipt.resolve_telling(acknowledged(40), &all));
        delivery(2).watch(&all);
        assert!(!receipt.resolve_telling(acknowledged(90), &all), "the first outcome stands");
        assert_eq!(heard.take(), ["orders-1 40", "orders-1 42"]);
    }

    #[test]
    fn records_of_a_batch_that_went_on_in_parts_are_told_of_with_their_part() {
        let (heard, mut all) = (Heard::default(), Interceptors::default());
        all.push(heard.clone());
        let [whole, kept, bad] = [(); 3].map(|()| Receipt::new("orders".into(), 0));
        for index in 0..3 {
            Delivery::new(Arc::clone(&whole), index, 0).watch(&all);
        }
        bad.resolve_telling(BatchOutcome::Failed(Error::from_code("Produce", 87)), &all);
        let part = |first, index, receipt: &Arc<Receipt>| Part { first, index, receipt: Arc::clone(receipt) };
        let parts = vec![part(0, 0, &kept), part(1, 0, &bad), part(2, 1, &kept)];
        whole.resolve_telling(BatchOutcome::Split(parts), &all);
        assert_eq!(heard.take(), ["Broker(InvalidRecord (87))"], "the bad one has failed before");
        kept.resolve_telling(acknowledged(50), &all);
        assert_eq!(heard.take(), ["orders-0 50", "orders-0 51"]);
    }

    #[test]
    fn a_record_that_is_refused_is_told_of_at_once_with_its_topic() {
        let (heard, mut all) = (Heard::default(), Interceptors::default());
        all.push(heard.clone());
        let error = all.watch("orders", Err(Error::closed("producer"))).unwrap_err();
        assert_eq!((error.kind(), heard.take()), (ErrorKind::Closed, vec!["Closed".to_owned()]));
        assert!(error.to_string().contains("orders"), "{error}");
    }
}
