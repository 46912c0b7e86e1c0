//! The user's own code within a producer: which there is, and the partitioner. It is called on the path of a record and in the
//! driver; a panic of it ends neither.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{interceptor::Interceptors, topics::TopicQueues};
use crate::{
    error::{Error, ErrorKind, Result},
    record::ProducerRecord,
};

/// Chooses the partition of records that name none, in place of the property `partitioner` (Java: `partitioner.class`).
///
/// Set it with [`ProducerConfig::partitioner`](crate::ProducerConfig::partitioner). A closure will do:
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::Partitions;
///
/// // Audited topics stay in one partition, the others follow the usual rules.
/// let by_topic =
///     |topic: &str, _: Option<&[u8]>, _: Option<&[u8]>, _: Partitions<'_>| topic.starts_with("audit.").then_some(0);
/// let producer = kafka.get_producer_with(|p| p.partitioner(by_topic)).await?;
/// # Ok(()) }
/// ```
pub trait Partitioner: Send + Sync + 'static {
    /// The partition of a record with this key and value, among those that the topic has now. It is asked with each record,
    /// and again where the record waited for the topic or for memory, so it should be quick and must not block.
    ///
    /// `None` leaves it to the producer, which does as without this partitioner: by the key, or else wherever batches fill. A
    /// number that is none of the topic's, and a panic, are an error of the send, which then leaves nothing behind.
    fn partition(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        partitions: Partitions<'_>,
    ) -> Option<i32>;
}

impl<F> Partitioner for F
where
    F: Fn(&str, Option<&[u8]>, Option<&[u8]>, Partitions<'_>) -> Option<i32> + Send + Sync + 'static,
{
    fn partition(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        partitions: Partitions<'_>,
    ) -> Option<i32> {
        self(topic, key, value, partitions)
    }
}

/// The partitions of a topic, as they are known now.
#[derive(Clone, Copy)]
pub struct Partitions<'a> {
    topic: &'a TopicQueues,
}

impl<'a> Partitions<'a> {
    pub(super) fn new(topic: &'a TopicQueues) -> Self {
        Self { topic }
    }

    /// How many partitions there are, at least 1; they are numbered from 0.
    pub fn count(&self) -> i32 {
        i32::try_from(self.topic.count).unwrap_or(i32::MAX)
    }

    /// Whether a partition has a leader that takes records now.
    pub fn is_available(&self, partition: i32) -> bool {
        let known = &self.topic.partitions[..self.topic.count];
        usize::try_from(partition)
            .ok()
            .and_then(|index| known.get(index))
            .is_some_and(|queue| queue.has_leader())
    }

    /// The partitions that have a leader now, in ascending order; there may be none.
    pub fn available(&self) -> impl Iterator<Item = i32> + use<'a> {
        let this = *self;
        (0..this.count()).filter(move |partition| this.is_available(*partition))
    }
}

impl fmt::Debug for Partitions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partitions")
            .field("topic", &self.topic.name)
            .field("count", &self.topic.count)
            .finish()
    }
}

/// The user's partitioner.
#[derive(Clone)]
pub(crate) struct OwnPartitioner(Arc<dyn Partitioner>);

impl OwnPartitioner {
    pub(crate) fn new(partitioner: impl Partitioner) -> Self {
        Self(Arc::new(partitioner))
    }

    pub(super) fn ask(&self, record: &ProducerRecord<'_>, partitions: Partitions<'_>) -> Result<Option<i32>> {
        let call = || self.0.partition(record.topic, record.key, record.value, partitions);
        let refused = |text: String| {
            Error::new(ErrorKind::InvalidArgument, text)
                .with_topic(record.topic)
                .with_hint("see to the partitioner that was set for this producer; nothing was sent")
        };
        // Nothing of the producer is changed while it runs.
        let chosen = catch_unwind(AssertUnwindSafe(call))
            .map_err(|_panic| refused("the partitioner panicked".to_owned()))?;
        match chosen {
            Some(partition) if !(0..partitions.count()).contains(&partition) => Err(refused(format!(
                "the partitioner chose partition {partition}, and the topic has {}, from 0",
                partitions.count()
            ))),
            chosen => Ok(chosen),
        }
    }
}

/// All of the user's code that a producer calls.
#[derive(Clone, Default)]
pub(crate) struct Plugins {
    pub(crate) interceptors: Interceptors,
    pub(crate) partitioner: Option<OwnPartitioner>,
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins")
            .field("interceptors", &self.interceptors)
            .field("partitioner", &self.partitioner.is_some())
            .finish()
    }
}
