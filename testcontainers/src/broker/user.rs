//! What a user's own tests do with the embedded broker: feed it, and wait for what their programs do.
//!
//! Nothing here polls: the broker says when records are appended and offsets committed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::cluster::Placement;
use super::log::{Incoming, Isolation};
use super::stored::{self, StoredRecord};
use super::{BrokerError, EmbeddedBroker, Partitioned};

/// A record to [`EmbeddedBroker::feed`].
///
/// ```
/// # use dtkafka_testcontainers::NewRecord;
/// let record = NewRecord::new(r#"{"id":7}"#).key("id-7").header("trace", "abc");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a record does nothing before it is fed"]
pub struct NewRecord {
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<(String, Bytes)>,
    timestamp: Option<i64>,
}

impl NewRecord {
    /// A record with a value.
    pub fn new(value: impl AsRef<[u8]>) -> Self {
        Self { value: Some(Bytes::copy_from_slice(value.as_ref())), ..Self::default() }
    }

    /// A record without a value.
    pub fn tombstone() -> Self {
        Self::default()
    }

    /// Its key.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(Bytes::copy_from_slice(key.as_ref()));
        self
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), Bytes::copy_from_slice(value.as_ref())));
        self
    }

    /// Its time in milliseconds since 1970. Default: the broker's.
    pub fn timestamp_ms(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// One batch of format v2 with this record, uncompressed.
    fn to_batch(&self, now_ms: i64) -> Bytes {
        let timestamp = self.timestamp.unwrap_or(now_ms);
        let mut record = BytesMut::new();
        // Attributes, timestamp delta, offset delta.
        record.put_slice(&[0, 0, 0]);
        put_bytes(&mut record, self.key.as_deref());
        put_bytes(&mut record, self.value.as_deref());
        put_varint(&mut record, self.headers.len() as i64);
        for (name, value) in &self.headers {
            put_bytes(&mut record, Some(name.as_bytes()));
            put_bytes(&mut record, Some(value));
        }
        let mut tail = BytesMut::new();
        // Attributes, last offset delta, times, producer id and epoch, sequence, count.
        tail.put_i16(0);
        tail.put_i32(0);
        tail.put_i64(timestamp);
        tail.put_i64(timestamp);
        tail.put_i64(-1);
        tail.put_i16(-1);
        tail.put_i32(-1);
        tail.put_i32(1);
        put_varint(&mut tail, record.len() as i64);
        tail.put_slice(&record);
        let mut out = BytesMut::with_capacity(21 + tail.len());
        out.put_i64(0);
        out.put_i32(i32::try_from(tail.len() + 9).unwrap_or(i32::MAX));
        out.put_i32(-1);
        out.put_u8(2);
        out.put_u32(crc32c::crc32c(&tail));
        out.put_slice(&tail);
        out.freeze()
    }
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_bytes(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}

impl EmbeddedBroker {
    /// Appends a record to a partition, as its leader would for a producer, and returns its offset. A topic that does not
    /// exist is created, unless [`super::EmbeddedBrokerBuilder::auto_create_topics`] is off.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn feed(&self, topic: &str, partition: i32, record: NewRecord) -> Result<i64, BrokerError> {
        let unknown = || BrokerError::NoSuchPartition(topic.to_owned(), partition);
        let now_ms = self.shared.clock.wall_ms();
        let batch =
            Incoming::parse(&record.to_batch(now_ms)).map_err(|e| BrokerError::Batch(e.to_string()))?;
        let mut cluster = self.shared.cluster();
        if cluster.options.auto_create_topics && !cluster.topics.contains_key(topic) {
            let partitions = cluster.options.default_partitions.max(partition.saturating_add(1));
            let made = cluster.create_topic(topic, partitions, &Placement::usual(), BTreeMap::new());
            made.map_err(|error| BrokerError::Topic(topic.to_owned(), error))?;
        }
        let found = cluster.partition_mut(topic, partition).map_err(|_| unknown())?;
        let done = found.log.append(batch, None).map_err(|e| BrokerError::Batch(e.to_string()))?;
        drop(cluster);
        self.shared.appended.notify_waiters();
        Ok(done.base_offset)
    }

    /// Every record of a partition from its log start, decompressed; also those of open and aborted transactions. Without
    /// control batches.
    ///
    /// # Errors
    /// The partition does not exist, or a batch cannot be decoded.
    pub fn records(&self, topic: &str, partition: i32) -> Result<Vec<StoredRecord>, BrokerError> {
        self.read(topic, partition, Isolation::Uncommitted)
    }

    /// The same as a reader of committed records sees it: up to the first open transaction, without aborted ones.
    ///
    /// # Errors
    /// The partition does not exist, or a batch cannot be decoded.
    pub fn committed_records(&self, topic: &str, partition: i32) -> Result<Vec<StoredRecord>, BrokerError> {
        self.read(topic, partition, Isolation::Committed)
    }

    fn read(
        &self,
        topic: &str,
        partition: i32,
        isolation: Isolation,
    ) -> Result<Vec<StoredRecord>, BrokerError> {
        let (start, batches) = {
            let cluster = self.shared.cluster();
            let found = cluster
                .partition(topic, partition)
                .map_err(|_| BrokerError::NoSuchPartition(topic.to_owned(), partition))?;
            let log = &found.log;
            let batches = match isolation {
                Isolation::Uncommitted => log.batches_from(0).to_vec(),
                Isolation::Committed => log.committed_batches(),
            };
            (log.start(), batches)
        };
        let mut all = Vec::new();
        for batch in batches.iter().filter(|b| !b.is_control()) {
            let records = stored::read(batch).map_err(BrokerError::Batch)?;
            all.extend(records.into_iter().filter(|r| r.offset >= start));
        }
        Ok(all)
    }

    /// Waits until a topic has at least `count` records in all partitions together, and returns them by partition. Those of
    /// transactions count once they are committed.
    ///
    /// # Errors
    /// [`BrokerError::TimedOut`] says how many there were after `limit`; the topic does not exist by then.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn wait_for_records(
        &self,
        topic: &str,
        count: usize,
        limit: Duration,
    ) -> Result<Partitioned, BrokerError> {
        let look = || -> Result<Partitioned, BrokerError> {
            let partitions = self.shared.cluster().topics.get(topic).map_or(0, |t| t.partitions.len());
            let numbers = 0..i32::try_from(partitions).unwrap_or(i32::MAX);
            numbers.map(|p| Ok((p, self.committed_records(topic, p)?))).collect()
        };
        let sum = |found: &Partitioned| found.values().map(Vec::len).sum::<usize>();
        self.wait(
            limit,
            || look().map(|found| (sum(&found) >= count).then_some(found)),
            || {
                let have = look().map_or(0, |found| sum(&found));
                format!("{topic} has {have} of {count} records")
            },
        )
        .await
    }

    /// Waits until a group has committed at least `offset` for a partition, and returns what it has committed.
    ///
    /// # Errors
    /// [`BrokerError::TimedOut`] says what was committed after `limit`.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn wait_until_committed(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        limit: Duration,
    ) -> Result<i64, BrokerError> {
        let look = || self.committed(group, topic, partition);
        self.wait(
            limit,
            || Ok(look().filter(|at| *at >= offset)),
            || format!("{group} has committed {:?} for {topic}-{partition}, not {offset}", look()),
        )
        .await
    }

    async fn wait<T>(
        &self,
        limit: Duration,
        look: impl Fn() -> Result<Option<T>, BrokerError>,
        why: impl Fn() -> String,
    ) -> Result<T, BrokerError> {
        let found = async {
            loop {
                let mut appended = std::pin::pin!(self.shared.appended.notified());
                let mut committed = std::pin::pin!(self.shared.committed.notified());
                appended.as_mut().enable();
                committed.as_mut().enable();
                if let Some(found) = look()? {
                    return Ok(found);
                }
                tokio::select! {
                    biased;
                    () = appended => {}
                    () = committed => {}
                }
            }
        };
        tokio::time::timeout(limit, found).await.unwrap_or_else(|_elapsed| Err(BrokerError::TimedOut(why())))
    }
}
