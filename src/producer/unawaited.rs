//! Records that failed and whose deliveries nobody awaited: kept until `flush` or `close` tells of them. Pure.
//!
//! Costs nothing while nothing fails. A delivery that is still held somewhere may be awaited later, and is not counted before it
//! is dropped.

use super::receipt::ReceiptStub;
use crate::error::Error;

/// How many failed batches are remembered one by one. Of older ones those count whose deliveries are gone by then.
const REMEMBERED: usize = 1000;

/// Failures that nobody may have heard of.
#[derive(Debug, Default)]
pub(super) struct Unawaited {
    failed: Vec<Failed>,
    /// Failed records in batches whose receipts were dropped.
    records: u64,
    first: Option<Error>,
}

#[derive(Debug)]
struct Failed {
    receipt: ReceiptStub,
    error: Error,
    /// Records of the batch that were counted before.
    told: u32,
}

impl Unawaited {
    pub(super) fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.records == 0
    }

    /// A batch has failed.
    pub(super) fn note(&mut self, receipt: &ReceiptStub, error: &Error) {
        if self.failed.len() >= REMEMBERED {
            self.gather();
            let over = (self.failed.len() + 1).saturating_sub(REMEMBERED);
            // After `gather` only batches are left whose deliveries are still held, and may yet be awaited.
            self.failed.drain(..over);
        }
        self.failed.push(Failed { receipt: receipt.clone(), error: error.clone(), told: 0 });
    }

    /// Counts what is lost for good, and forgets batches that nobody holds any more.
    fn gather(&mut self) {
        for failed in &mut self.failed {
            let lost = failed.receipt.unawaited().saturating_sub(failed.told);
            if lost > 0 {
                failed.told += lost;
                self.records += u64::from(lost);
                self.first.get_or_insert_with(|| failed.error.clone());
            }
        }
        self.failed.retain(|failed| failed.receipt.is_held());
    }

    /// The first error of those that nobody has heard of since the last time, with their number.
    pub(super) fn take(&mut self) -> Option<Error> {
        self.gather();
        let records = std::mem::take(&mut self.records);
        let first = self.first.take()?;
        Some(first.with_message(&format!(
            "{records} {} failed since the last flush without anybody awaiting the delivery; the first error is this",
            if records == 1 { "record" } else { "records" }
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        error::ErrorKind,
        producer::receipt::{BatchOutcome, Delivery, Part},
    };

    fn failed(count: u32) -> (ReceiptStub, Vec<Delivery>, Error) {
        let receipt = ReceiptStub::new("orders".into(), 0);
        receipt.set_records(count);
        let deliveries = (0..count).map(|index| Delivery::new(Arc::clone(&receipt), index, 0)).collect();
        let error = Error::new(ErrorKind::Timeout, "too late");
        receipt.resolve(BatchOutcome::Failed(error.clone()));
        (receipt, deliveries, error)
    }

    #[tokio::test]
    async fn deliveries_that_were_dropped_unheard_are_counted_once_and_the_others_never() {
        let mut unawaited = Unawaited::default();
        let (receipt, mut deliveries, error) = failed(4);
        unawaited.note(&receipt, &error);
        drop(receipt);
        deliveries.pop().unwrap().await.unwrap_err();
        assert!(unawaited.take().is_none(), "three are held");
        deliveries.truncate(1);
        let told = unawaited.take().unwrap();
        assert!(told.to_string().contains("2 records failed"), "{told}");
        assert_eq!(told.kind(), ErrorKind::Timeout);
        assert!(unawaited.take().is_none());
        deliveries.clear();
        assert!(unawaited.take().unwrap().to_string().contains("1 record failed"));
        assert!(unawaited.take().is_none() && unawaited.is_empty());
    }

    #[tokio::test]
    async fn a_delivery_that_was_given_up_by_who_was_told_so_is_none() {
        let mut unawaited = Unawaited::default();
        let (receipt, mut deliveries, error) = failed(2);
        unawaited.note(&receipt, &error);
        drop(receipt);
        deliveries.pop().unwrap().give_up();
        deliveries.clear();
        assert!(unawaited.take().unwrap().to_string().contains("1 record failed"));
    }

    #[test]
    fn a_part_of_a_batch_counts_once_nobody_can_come_to_it_from_the_batch() {
        let mut unawaited = Unawaited::default();
        let whole = ReceiptStub::new("orders".into(), 0);
        let part = ReceiptStub::part_of(&whole, 3);
        let error = Error::new(ErrorKind::Timeout, "too late");
        part.resolve(BatchOutcome::Failed(error.clone()));
        unawaited.note(&part, &error);
        whole.resolve(BatchOutcome::Split(vec![Part { first: 0, index: 0, receipt: Arc::clone(&part) }]));
        drop(part);
        assert!(unawaited.take().is_none());
        drop(whole);
        assert!(unawaited.take().unwrap().to_string().contains("3 records failed"));
    }

    #[test]
    fn whatever_else_the_producer_holds_of_a_batch_is_no_delivery() {
        let mut unawaited = Unawaited::default();
        // An attempt that is in flight when the time is over, and the list of what a flush waits for.
        let (receipt, deliveries, error) = failed(1);
        let (_in_flight, _waited_for) = (receipt.clone(), receipt.clone());
        unawaited.note(&receipt, &error);
        drop(deliveries);
        assert!(unawaited.take().unwrap().to_string().contains("1 record failed"));
        assert!(unawaited.is_empty());
    }

    #[test]
    fn however_many_fail_little_is_kept() {
        let mut unawaited = Unawaited::default();
        for _ in 0..5 * REMEMBERED {
            let (receipt, deliveries, error) = failed(2);
            unawaited.note(&receipt, &error);
            drop((receipt, deliveries));
        }
        assert!(unawaited.failed.len() <= REMEMBERED);
        let expected = format!("{} records failed", 10 * REMEMBERED);
        assert!(unawaited.take().unwrap().to_string().contains(&expected));
    }
}
