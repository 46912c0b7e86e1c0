//! What one transaction of [`ExactlyOnce`](super::ExactlyOnce) has read: what it commits, and what comes again if it is aborted.

use crate::{
    consumer::{ConsumerRecords, KafkaConsumer, acknowledge::Life},
    record::{ConsumerGroupMetadata, TopicPartition},
    sorted::Map,
};

/// What one transaction has taken in.
#[derive(Default)]
pub(super) struct TransactionInput {
    pub(super) offsets: Map<TopicPartition, Span>,
    pub(super) group: Option<ConsumerGroupMetadata>,
    pub(super) records: usize,
    /// A log was cut below what was handed out of it. What comes again must not be processed in two committed
    /// transactions.
    is_cut: bool,
}

/// What was handed out of one partition.
pub(super) struct Span {
    pub(super) life: Life,
    first: i64,
    /// The offset behind the last record, and the last one's leader epoch (KIP-320), by which whoever goes on there
    /// notices if the log was cut.
    pub(super) next: i64,
    pub(super) epoch: Option<i32>,
    /// There was no time for all that was handed out.
    pub(super) is_late: bool,
}

impl TransactionInput {
    /// What was polled counts as taken in.
    pub(super) fn note(&mut self, consumer: &KafkaConsumer, records: &ConsumerRecords) {
        for (partition, part) in records {
            let (Some(first), Some(last)) = (part.iter().next(), part.iter().last()) else { continue };
            let (life, first, next) = (part.life(), first.offset(), last.offset().saturating_add(1));
            let epoch = last.leader_epoch();
            self.records += part.len();
            match self.offsets.get_mut(partition) {
                Some(span) if span.life == life => (span.next, span.epoch) = (next, epoch),
                // The log was cut, or the position was outside it. After an abort, reading goes back to the first record
                // of both lives.
                Some(span) if consumer.is_assigned_since(partition, span.life) => {
                    self.is_cut |= first < span.next;
                    *span = Span { life, first: span.first.min(first), next, epoch, is_late: false };
                }
                // What an earlier assignment handed out is another member's by now, and its commit will be refused.
                _ => drop(
                    self.offsets.insert(partition.clone(), Span { life, first, next, epoch, is_late: false }),
                ),
            }
        }
    }

    /// Has the consumer hand out again what was aborted, of partitions that are still assigned as they were. One that was
    /// lost is its next owner's business, and one that came back begins where that owner has left it.
    pub(super) fn rewind(&self, consumer: &KafkaConsumer) {
        for (partition, span) in &self.offsets {
            hand_out_again(consumer, partition, span.life, span.first);
        }
    }

    pub(super) fn is_cut(&self, consumer: &KafkaConsumer) -> bool {
        self.is_cut
            || self.offsets.iter().any(|(partition, span)| consumer.is_cut(partition, span.life, span.next))
    }
}

/// Has the consumer hand out again what was polled and not worked on.
pub(super) fn put_back(consumer: &KafkaConsumer, records: &ConsumerRecords) {
    for (partition, part) in records {
        if let Some(first) = part.iter().next() {
            hand_out_again(consumer, partition, part.life(), first.offset());
        }
    }
}

pub(super) fn hand_out_again(consumer: &KafkaConsumer, partition: &TopicPartition, life: Life, first: i64) {
    if let Err(error) = consumer.hand_out_again(partition, life, first) {
        tracing::debug!(%error, "the partition was lost meanwhile");
    }
}
