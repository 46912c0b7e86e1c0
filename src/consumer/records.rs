//! What a poll hands out: records of several partitions, borrowed from the responses they came in, or owned.
//!
//! Walking by reference allocates nothing and counts no reference; nothing is ever copied.

use std::{borrow::Cow, fmt, slice, vec};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{buffer::Chunk, ledger::Life};
use crate::{
    batch::{DecodedBatch, RecordSlot},
    error::Result,
    json,
    record::{ConsumerRecord, OffsetAndMetadata, Origin, ProducerRecord, TimestampType, TopicPartition},
};

/// The records of one poll, by partition.
#[derive(Debug, Clone, Default)]
pub struct ConsumerRecords {
    partitions: Vec<PartitionRecords>,
    count: usize,
}

impl ConsumerRecords {
    /// How many records there are in all partitions.
    pub fn len(&self) -> usize {
        self.count
    }

    /// How many records there are in all partitions (Java's `count`).
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the poll ended without records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The partitions that have records, in the order they are handed out.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.iter().map(|records| &records.partition)
    }

    /// The records of one partition.
    pub fn partition(&self, partition: &TopicPartition) -> Option<&PartitionRecords> {
        self.partitions.iter().find(|records| records.partition == *partition)
    }

    /// Every record, partition by partition, in the order of their offsets within each.
    pub fn records(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.partitions.iter().flat_map(|records| records.iter())
    }

    /// The records by partition, borrowed.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.partitions.iter())
    }

    pub(crate) fn push(&mut self, partition: TopicPartition, life: Life, chunk: Chunk) {
        let count = chunk.range.len();
        self.count += count;
        // A partition's chunks come one after the other, but for a poll that had to decode in between.
        match self
            .partitions
            .iter_mut()
            .rev()
            .find(|records| records.partition == partition && records.life == life)
        {
            Some(records) => {
                records.count += count;
                records.chunks.push(chunk);
            }
            None => self.partitions.push(PartitionRecords { partition, life, chunks: vec![chunk], count }),
        }
    }
}

impl IntoIterator for ConsumerRecords {
    type Item = (TopicPartition, PartitionRecords);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self.partitions.into_iter())
    }
}

impl<'a> IntoIterator for &'a ConsumerRecords {
    type Item = (&'a TopicPartition, &'a PartitionRecords);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The partitions of a poll with their records.
#[derive(Debug)]
pub struct IntoIter(vec::IntoIter<PartitionRecords>);

impl Iterator for IntoIter {
    type Item = (TopicPartition, PartitionRecords);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|records| (records.partition.clone(), records))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// The partitions of a poll with their records, borrowed.
#[derive(Debug, Clone)]
pub struct Iter<'a>(slice::Iter<'a, PartitionRecords>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a TopicPartition, &'a PartitionRecords);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|records| (&records.partition, records))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// Records of one partition, in the order of their offsets.
///
/// `for record in &records` borrows ([`RecordRef`]) and costs nothing but reading; `for record in records` owns
/// ([`ConsumerRecord`]), sharing the buffer of the response.
#[derive(Debug, Clone)]
pub struct PartitionRecords {
    partition: TopicPartition,
    /// The partition's life in which the consumer handed these records out.
    life: Life,
    /// Never empty, and no chunk is.
    chunks: Vec<Chunk>,
    count: usize,
}

impl PartitionRecords {
    /// The partition.
    pub fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes of the batches they stand in, in proportion.
    pub(crate) fn bytes(&self) -> usize {
        let share =
            |chunk: &Chunk| chunk.batch.data.len() * chunk.range.len() / chunk.batch.slots.len().max(1);
        self.chunks.iter().map(share).sum()
    }

    /// Never true for what a poll hands out.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What to commit once everything up to this offset is done: the offset after it, and of which log it is. Where the topic was
    /// made again since, or the partition was taken away, such a commit is refused, and a number could not be.
    ///
    /// ```no_run
    /// # async fn doc(consumer: &dtkafka::KafkaConsumer) -> dtkafka::Result<()> {
    /// let records = consumer.poll(std::time::Duration::from_secs(1)).await?;
    /// for (partition, records) in &records {
    ///     for record in records {
    ///         consumer.commit_offsets([(partition.clone(), records.offset_after(record.offset()))]).await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn offset_after(&self, offset: i64) -> OffsetAndMetadata {
        OffsetAndMetadata {
            origin: Origin::of(self.life.number()),
            ..OffsetAndMetadata::new(offset.saturating_add(1))
        }
    }

    /// The life of the partition that the records belong to.
    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// The records, borrowed.
    pub fn iter(&self) -> RecordRefs<'_> {
        RecordRefs { partition: &self.partition, chunks: self.chunks.iter(), batch: None, slots: [].iter() }
    }
}

impl<'a> IntoIterator for &'a PartitionRecords {
    type Item = RecordRef<'a>;
    type IntoIter = RecordRefs<'a>;

    fn into_iter(self) -> RecordRefs<'a> {
        self.iter()
    }
}

impl IntoIterator for PartitionRecords {
    type Item = ConsumerRecord;
    type IntoIter = OwnedRecords;

    fn into_iter(self) -> OwnedRecords {
        OwnedRecords {
            partition: self.partition,
            chunks: self.chunks.into_iter(),
            chunk: None,
            left: self.count,
        }
    }
}

/// Borrowed records of one partition.
#[derive(Clone)]
pub struct RecordRefs<'a> {
    partition: &'a TopicPartition,
    chunks: slice::Iter<'a, Chunk>,
    batch: Option<&'a DecodedBatch>,
    slots: slice::Iter<'a, RecordSlot>,
}

impl fmt::Debug for RecordRefs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordRefs").field("partition", self.partition).finish_non_exhaustive()
    }
}

impl<'a> Iterator for RecordRefs<'a> {
    type Item = RecordRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordRef<'a>> {
        loop {
            if let (Some(batch), Some(slot)) = (self.batch, self.slots.next()) {
                return Some(RecordRef { partition: self.partition, batch, slot });
            }
            let chunk = self.chunks.next()?;
            self.batch = Some(&chunk.batch);
            self.slots = chunk.batch.slots.get(chunk.range.clone()).unwrap_or_default().iter();
        }
    }
}

/// Owned records of one partition.
#[derive(Debug)]
pub struct OwnedRecords {
    partition: TopicPartition,
    chunks: vec::IntoIter<Chunk>,
    chunk: Option<Chunk>,
    left: usize,
}

impl Iterator for OwnedRecords {
    type Item = ConsumerRecord;

    fn next(&mut self) -> Option<ConsumerRecord> {
        loop {
            if let Some(chunk) = &mut self.chunk
                && let Some(slot) = chunk.range.next().and_then(|index| chunk.batch.slots.get(index))
            {
                self.left = self.left.saturating_sub(1);
                return Some(RecordRef { partition: &self.partition, batch: &chunk.batch, slot }.to_owned());
            }
            self.chunk = Some(self.chunks.next()?);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for OwnedRecords {}

/// One received record, borrowed from the response it came in.
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    partition: &'a TopicPartition,
    batch: &'a DecodedBatch,
    slot: &'a RecordSlot,
}

impl<'a> RecordRef<'a> {
    /// The topic.
    pub fn topic(&self) -> &'a str {
        &self.partition.topic
    }

    /// The partition's number.
    pub fn partition(&self) -> i32 {
        self.partition.partition
    }

    /// The offset.
    #[inline]
    pub fn offset(&self) -> i64 {
        self.batch.offset(self.slot)
    }

    /// Milliseconds since the Unix epoch; -1 if the record has none.
    #[inline]
    pub fn timestamp(&self) -> i64 {
        self.slot.timestamp
    }

    /// Who set the timestamp.
    pub fn timestamp_type(&self) -> TimestampType {
        self.batch.timestamp_type
    }

    /// The leader epoch of the batch (KIP-320), where known.
    pub fn leader_epoch(&self) -> Option<i32> {
        self.batch.leader_epoch
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.key(self.slot)
    }

    /// The value; `None` is a tombstone.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.batch.value(self.slot)
    }

    /// The key as a share of the response's buffer.
    pub fn key_bytes(&self) -> Option<Bytes> {
        self.batch.key_bytes(self.slot)
    }

    /// The value as a share of the response's buffer.
    pub fn value_bytes(&self) -> Option<Bytes> {
        self.batch.value_bytes(self.slot)
    }

    /// The headers in order, duplicates kept: name and value. A name that is not UTF-8 reads with replacement characters.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'a, str>, Option<&'a [u8]>)> + use<'a> {
        self.batch.headers(self.slot).map(|header| (header.key(), header.value))
    }

    /// The value of the last header of this name; `None` also for one whose value is null.
    pub fn header(&self, key: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(name, _)| name == key).last()?.1
    }

    /// The same as text, if it is UTF-8.
    pub fn header_str(&self, key: &str) -> Option<&'a str> {
        std::str::from_utf8(self.header(key)?).ok()
    }

    /// The value read as JSON; a tombstone reads as `null`.
    ///
    /// # Errors
    /// [`ErrorKind::Json`](crate::ErrorKind::Json) naming topic, partition and offset if the value is not JSON of that
    /// type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        json::read(self.value(), &self.partition.topic, self.partition.partition, self.offset())
    }

    /// Topic and partition.
    #[inline]
    pub(crate) fn place(&self) -> &'a TopicPartition {
        self.partition
    }

    pub(crate) fn owned_headers(&self) -> Vec<crate::record::Header> {
        self.batch.owned_headers(self.slot)
    }

    /// The record on its way to another topic, with its key, its value (a tombstone stays one) and its headers. It gets a new
    /// timestamp unless one is set: with the old one, a topic that keeps records for a time could delete it at once.
    pub fn forward_to<'t>(&self, topic: &'t str) -> ProducerRecord<'t>
    where
        'a: 't,
    {
        let (key, value) = (self.key(), self.value());
        let headers = Cow::Owned(self.owned_headers());
        ProducerRecord { key, value, headers, ..ProducerRecord::new(topic) }
    }

    /// The record with its data: key and value share the response's buffer, headers are copied.
    pub fn to_owned(&self) -> ConsumerRecord {
        self.with_data(self.key_bytes(), self.value_bytes(), self.batch.owned_headers(self.slot))
    }

    fn with_data(
        &self,
        key: Option<Bytes>,
        value: Option<Bytes>,
        headers: Vec<crate::record::Header>,
    ) -> ConsumerRecord {
        ConsumerRecord {
            topic: std::sync::Arc::clone(&self.partition.topic),
            partition: self.partition.partition,
            offset: self.offset(),
            timestamp: self.timestamp(),
            timestamp_type: self.batch.timestamp_type,
            leader_epoch: self.batch.leader_epoch,
            key,
            value,
            headers,
        }
    }
}

impl RecordRef<'_> {
    /// As [`to_owned`](Self::to_owned), with data of its own: it does not keep the response's buffer.
    pub(crate) fn to_copied(self) -> ConsumerRecord {
        let copied = |data: Option<&[u8]>| data.map(Bytes::copy_from_slice);
        let header = |(key, value): (Cow<'_, str>, Option<&[u8]>)| crate::record::Header {
            key: key.into_owned(),
            value: copied(value),
        };
        let headers = self.headers().map(header).collect();
        self.with_data(copied(self.batch.key(self.slot)), copied(self.value()), headers)
    }
}

impl fmt::Debug for RecordRef<'_> {
    /// Without key and value, which may be secrets and may be large.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordRef")
            .field("partition", &self.partition.to_string())
            .field("offset", &self.offset())
            .field("timestamp", &self.timestamp())
            .finish_non_exhaustive()
    }
}
