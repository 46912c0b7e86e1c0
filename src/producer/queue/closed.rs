//! A batch that was closed, on its way to the log. Pure.

use bytes::Bytes;

use crate::{
    batch::{self, EncodedBatch, Stamp},
    cluster::TopicId,
    error::Error,
    producer::receipt::ReceiptStub,
    time::Instant,
};

/// A batch's place in its partition: its number, and after a split the place of its first record in the batch that was
/// split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(super) batch: u64,
    pub(super) record: i32,
}

#[cfg(test)]
impl Order {
    pub(crate) fn test(batch: u64) -> Self {
        Self { batch, record: 0 }
    }
}

/// A batch as it goes over the wire.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) count: i32,
    /// Some attempt has no answer, or one that leaves open what happened.
    pub(crate) possibly_written: bool,
    pub(in crate::producer) receipt: ReceiptStub,
    /// When `delivery.timeout.ms` ends.
    pub(super) deadline: Instant,
    pub(super) order: Order,
    /// `None` without idempotence, and once the stamp is of no more use.
    pub(super) stamp: Option<Stamp>,
    /// `bytes` carry another stamp.
    pub(super) stale_bytes: bool,
    pub(super) reserved: usize,
    pub(in crate::producer) attempts: u32,
    /// How often bad records were taken out of it.
    pub(in crate::producer) purges: u32,
    /// The end of its back-off (KIP-580).
    pub(super) not_before: Option<Instant>,
    /// Why the last attempt failed.
    pub(super) cause: Option<Error>,
    /// The id of the topic in whose log it may be; `None` while it is certainly in none (KIP-516).
    pub(super) log: Option<TopicId>,
}

impl Batch {
    pub(in crate::producer) fn new(
        encoded: EncodedBatch,
        receipt: ReceiptStub,
        deadline: Instant,
        order: Order,
        stamp: Option<Stamp>,
        reserved: usize,
    ) -> Self {
        Self {
            bytes: encoded.bytes,
            count: encoded.count,
            possibly_written: false,
            receipt,
            deadline,
            order,
            stamp,
            stale_bytes: false,
            reserved,
            attempts: 0,
            purges: 0,
            not_before: None,
            cause: None,
            log: None,
        }
    }

    /// The batch is being sent (again). To be called outside the partition's lock: it may sum over all bytes.
    pub(in crate::producer) fn prepare(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        if let (true, Some(stamp)) = (std::mem::take(&mut self.stale_bytes), self.stamp) {
            self.bytes = batch::restamp(std::mem::take(&mut self.bytes), stamp);
        }
    }
}
