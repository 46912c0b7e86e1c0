//! Doors for `benches/` to what is private: thin wrappers, with no logic of their own. No part of the API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use crate::{
    batch::{self, BatchBuilder, Compressor, Decompressor, Stamp},
    config::Compression,
    error::{Error, ErrorKind, Result},
    facade::Consumer,
    group::assignor::{GroupInfo, GroupMember, Strategy},
    mutex::Mutex,
    producer::{
        Delivery,
        accumulator::{Appended, Limits, Pace, Parts},
        identity::ProducerIdentity,
        memory::Memory,
        partitioner,
        queue::{Aftermath, Queue, Taken},
        receipt::Ack,
    },
    record::{ConsumerRecord, TimestampType, TopicPartition},
    time,
};

/// The default of `batch.size`.
pub const BATCH_SIZE: usize = 131_072;
/// The default of `buffer.memory`.
const BUFFER_MEMORY: usize = 32 << 20;
const MAX_DECOMPRESSED: usize = 64 << 20;
const TIMESTAMP: i64 = 1_700_000_000_000;

/// Writes batches, each into the buffer of one before.
#[derive(Debug)]
pub struct Encoder {
    compressor: Compressor,
    buffer: BytesMut,
}

impl Encoder {
    /// An encoder with the codec's default level.
    ///
    /// # Errors
    /// None with the default level.
    pub fn new(codec: Compression) -> Result<Self> {
        Ok(Self { compressor: Compressor::new(codec, None)?, buffer: BytesMut::new() })
    }

    /// A finished batch of `count` equal records.
    ///
    /// # Errors
    /// For a count of 0.
    pub fn encode(&mut self, count: usize, key: &[u8], value: &[u8]) -> Result<Bytes> {
        let mut builder = BatchBuilder::new(std::mem::take(&mut self.buffer));
        for _ in 0..count {
            builder.append(TIMESTAMP, Some(key), Some(value), &[]);
        }
        builder.finish(Stamp::NONE, &self.compressor).map(|encoded| encoded.bytes)
    }

    /// Takes back the buffer of a batch.
    pub fn recycle(&mut self, batch: Bytes) {
        self.buffer = batch::recycle(batch).unwrap_or_default();
    }

    /// Compresses `block` in place.
    ///
    /// # Errors
    /// The codec's.
    pub fn compress(&self, block: &mut BytesMut) -> Result<()> {
        self.compressor.compress_from(block, 0)
    }
}

/// Reads batches.
#[derive(Debug, Default)]
pub struct Decoder(Decompressor);

impl Decoder {
    /// Checks and decodes a batch, shows every key and value, and gives its memory back.
    ///
    /// # Errors
    /// For a batch that is damaged.
    pub fn decode(&self, batch: &Bytes, mut each: impl FnMut(Option<&[u8]>, Option<&[u8]>)) -> Result<()> {
        for raw in batch::split(batch.clone()) {
            let batch = raw?.decode(true, &self.0, MAX_DECOMPRESSED)?;
            for slot in &batch.slots {
                each(batch.key(slot), batch.value(slot));
            }
        }
        Ok(())
    }
}

/// The queues of one topic behind their locks, as the producer has them.
#[derive(Debug)]
pub struct Accumulator {
    /// Apart in memory, as the producer has them.
    queues: Vec<Arc<Mutex<Queue>>>,
    limits: Arc<Limits>,
    memory: Memory,
    compressor: Compressor,
}

impl Accumulator {
    /// Empty queues, idempotent and with the default sizes; what is not full lingers for an hour.
    ///
    /// # Errors
    /// None.
    pub fn new(partitions: i32) -> Result<Self> {
        let limits = Arc::new(Limits {
            batch_size: BATCH_SIZE,
            linger: Duration::from_secs(3600),
            delivery_timeout: Duration::from_secs(7200),
            max_in_flight: 5,
            retries: u32::MAX,
            idempotent: true,
            transactional: false,
        });
        let topic: Arc<str> = "orders".into();
        let queue =
            |partition| Arc::new(Mutex::new(Queue::new(Arc::clone(&topic), partition, Arc::clone(&limits))));
        let queues = (0..partitions).map(queue).collect();
        let compressor = Compressor::new(Compression::None, None)?;
        Ok(Self { queues, limits, memory: Memory::new(BUFFER_MEMORY, BATCH_SIZE), compressor })
    }

    /// Appends a record. Whoever fills a batch does the driver task's part for it: seals it and takes its acknowledgment.
    ///
    /// # Errors
    /// For a partition that is not there, and where the memory is full.
    pub fn append(&self, partition: usize, key: &[u8], value: &[u8]) -> Result<Delivery> {
        let Some(queue) = self.queues.get(partition) else { return Err(refused("no such partition")) };
        let size_bound = batch::record_size_bound(key.len(), value.len(), &[]);
        let parts =
            Parts { key: Some(key), value: Some(value), headers: &[], timestamp: TIMESTAMP, size_bound };
        let appended = queue.lock().append(&parts, time::now, &self.memory, &mut 0);
        match appended {
            Appended::Done { delivery, wake: false, .. } => Ok(delivery),
            Appended::Done { delivery, .. } => self.deliver_full(queue).map(|()| delivery),
            Appended::NeedMemory(_) => Err(refused("the memory is full")),
            Appended::Ended => Err(refused("the queue has ended")),
        }
    }

    fn deliver_full(&self, queue: &Mutex<Queue>) -> Result<()> {
        let identity = ProducerIdentity { id: 1, epoch: 0, cluster: 0 };
        let now = time::now();
        loop {
            let taken = queue.lock().poll_batch(now, Pace::Linger, Ok(Some(identity)));
            let Some(Taken::First { open, stamp, order }) = taken else { return Ok(()) };
            let batch =
                open.seal(stamp, order, &self.limits, &self.compressor).map_err(|(error, ..)| error)?;
            let mut done = Aftermath::default();
            let ack = Ack { base_offset: 0, log_append_time: -1 };
            queue.lock().handle_acknowledged(batch, ack, &mut done);
            for (receipt, outcome) in done.resolved {
                receipt.resolve(outcome);
            }
            self.memory.give_back(done.freed);
            for buffer in done.buffers.into_iter().filter_map(batch::recycle) {
                self.memory.recycle(buffer);
            }
        }
    }
}

/// The partition of a key, as Java's default partitioner has it.
#[inline]
pub fn partition_of_key(key: &[u8], partitions: usize) -> usize {
    partitioner::partition_of_key(key, partitions)
}

/// A group whose members are all subscribed to all topics.
#[derive(Debug)]
pub struct Group {
    members: Vec<GroupMember>,
    counts: BTreeMap<Arc<str>, i32>,
}

impl Group {
    /// A group; every member has its own names of the topics, as decoded from its JoinGroup.
    pub fn new(members: usize, topics: usize, partitions: i32) -> Self {
        let names =
            || (0..topics).map(|topic| Arc::from(format!("topic-{topic:04}"))).collect::<Vec<Arc<str>>>();
        let member = |index| {
            GroupMember::new(
                format!("consumer-billing-{index:04}-0f8fad5b-d9cb-469f-a165-70867728950e"),
                names(),
            )
        };
        Self {
            members: (0..members).map(member).collect(),
            counts: names().into_iter().map(|topic| (topic, partitions)).collect(),
        }
    }

    /// What the leader computes; `None` for a strategy there is not.
    pub fn assign(&self, strategy: &str) -> Option<BTreeMap<String, Vec<TopicPartition>>> {
        Strategy::named(strategy)?.assign(&GroupInfo::new(&self.members, &self.counts)).ok()
    }
}

/// Records of partition 0 as a poll hands them to handlers: key and value share the buffer of a batch with these values.
///
/// # Errors
/// For no values at all.
pub fn records(topic: &str, key: &[u8], values: &[Vec<u8>]) -> Result<Vec<ConsumerRecord>> {
    let mut builder = BatchBuilder::new(BytesMut::new());
    for value in values {
        builder.append(TIMESTAMP, Some(key), Some(value), &[]);
    }
    let encoded = builder.finish(Stamp::NONE, &Compressor::new(Compression::None, None)?)?;
    let topic: Arc<str> = topic.into();
    let mut records = Vec::with_capacity(values.len());
    for raw in batch::split(encoded.bytes) {
        let batch = raw?.decode(true, &Decompressor::new(), MAX_DECOMPRESSED)?;
        records.extend(batch.slots.iter().map(|slot| ConsumerRecord {
            topic: Arc::clone(&topic),
            partition: 0,
            offset: batch.offset(slot),
            timestamp: slot.timestamp,
            timestamp_type: TimestampType::CreateTime,
            leader_epoch: None,
            key: batch.key_bytes(slot),
            value: batch.value_bytes(slot),
            headers: batch.owned_headers(slot),
        }));
    }
    Ok(records)
}

/// Takes records through the handlers of a consumer that is not connected; returns how many were handled.
///
/// # Errors
/// That of a handler, or of reading a value.
pub async fn dispatch(consumer: &mut Consumer, records: Vec<ConsumerRecord>) -> Result<usize> {
    consumer.bench_dispatch(records).await
}

fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}
