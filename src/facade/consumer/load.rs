//! Records as they stand in lanes: whole parts of a poll, or one by one.

use std::hash::{DefaultHasher, Hasher as _};

use bytes::Bytes;

use crate::{
    consumer::{PartitionRecords, RecordRefs},
    facade::{borrowed::BorrowedRecord, dispatch::lanes::Load},
    record::ConsumerRecord,
    time::Instant,
};

/// Records of one partition in the order of their offsets.
#[derive(Debug)]
pub(super) enum Chunk {
    /// As they were polled; each becomes a record when its turn comes.
    Polled(PartitionRecords),
    /// One record with data of its own; of a retry topic, with the time when its pause is over.
    One(Box<ConsumerRecord>, Option<Instant>),
}

impl Chunk {
    /// The records, each made when it is asked for.
    pub(super) fn records(self) -> impl Iterator<Item = ConsumerRecord> + Send {
        let (polled, one) = match self {
            Self::Polled(records) => (Some(records), None),
            Self::One(record, _) => (None, Some(*record)),
        };
        polled.into_iter().flatten().chain(one)
    }

    /// The records, borrowed.
    pub(super) fn given(&self) -> ChunkRecords<'_> {
        match self {
            Self::Polled(records) => ChunkRecords::Polled(records.iter()),
            Self::One(record, _) => ChunkRecords::One(Some(record)),
        }
    }

    /// The offsets alone.
    pub(super) fn offsets(&self, hand_out: &mut dyn FnMut(i64)) {
        match self {
            Self::Polled(records) => records.iter().for_each(|record| hand_out(record.offset())),
            Self::One(record, _) => hand_out(record.offset),
        }
    }
}

impl Load for Chunk {
    fn len(&self) -> usize {
        match self {
            Self::Polled(records) => records.len(),
            Self::One(..) => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Polled(records) => records.bytes(),
            Self::One(record, _) => {
                let length = |data: &Option<Bytes>| data.as_ref().map_or(0, Bytes::len);
                let headers =
                    record.headers.iter().map(|header| header.key.len() + length(&header.value) + 64);
                length(&record.key) + length(&record.value) + headers.sum::<usize>() + 200
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Self::One(_, due) => *due,
            Self::Polled(_) => None,
        }
    }

    fn each(self, hand_out: &mut dyn FnMut(Option<u64>, Self)) {
        let due = self.due();
        let (polled, one) = match self {
            Self::Polled(records) => (Some(records), None),
            Self::One(record, _) => (None, Some(*record)),
        };
        // A record that waits outlives those around it by far. It is copied, so that it does not keep the answer that all
        // of them came in.
        let copied = polled.iter().flatten().map(|record| record.to_copied());
        for record in copied.chain(one) {
            // A hash without a secret: the same key has the same lane in every process, as it has the same partition.
            let hash = record.key.as_deref().map(|key| {
                let mut hasher = DefaultHasher::new();
                hasher.write(key);
                hasher.finish()
            });
            hand_out(hash, Self::One(Box::new(record), due));
        }
    }
}

/// The records of a [`Chunk`].
pub(super) enum ChunkRecords<'a> {
    Polled(RecordRefs<'a>),
    One(Option<&'a ConsumerRecord>),
}

impl<'a> Iterator for ChunkRecords<'a> {
    type Item = BorrowedRecord<'a>;

    #[inline]
    fn next(&mut self) -> Option<BorrowedRecord<'a>> {
        match self {
            Self::Polled(records) => records.next().map(BorrowedRecord::Polled),
            Self::One(record) => record.take().map(BorrowedRecord::Alone),
        }
    }
}
