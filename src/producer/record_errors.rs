//! The record errors of a produce answer (KIP-467): separates the records that a broker refuses from the others of their batch,
//! which are sent again without them. Pure.

use std::sync::Arc;

use super::receipt::{BatchOutcome, Part, ReceiptStub};
use crate::{error::Error, sorted::Map};

/// The receipts of a batch whose bad records were taken out.
pub(super) struct Separated {
    /// Where each record is now.
    pub(super) parts: Vec<Part>,
    /// The receipt of the records that were not refused.
    pub(super) rest: ReceiptStub,
    /// The receipts of those that were, each with the broker's error.
    pub(super) failed: Vec<(ReceiptStub, BatchOutcome)>,
}

/// `bad`: the places of the refused records in the batch, with the broker's message if there is one.
pub(super) fn separate(
    whole: &ReceiptStub,
    count: i32,
    bad: &Map<usize, Option<&str>>,
    error: &Error,
) -> Separated {
    let count = usize::try_from(count).unwrap_or(0);
    let good = u32::try_from(count.saturating_sub(bad.len())).unwrap_or(u32::MAX);
    let mut separated =
        Separated { parts: Vec::new(), rest: ReceiptStub::part_of(whole, good), failed: Vec::new() };
    let mut kept = 0;
    for place in 0..count {
        let first = place as u32;
        match bad.get(&place) {
            Some(message) => {
                let receipt = ReceiptStub::part_of(whole, 1);
                let error = message.map_or_else(|| error.clone(), |text| error.clone().with_message(text));
                separated.parts.push(Part { first, index: 0, receipt: Arc::clone(&receipt) });
                separated.failed.push((receipt, BatchOutcome::Failed(error)));
            }
            None => {
                if place == 0 || bad.contains_key(&(place - 1)) {
                    separated.parts.push(Part { first, index: kept, receipt: Arc::clone(&separated.rest) });
                }
                kept += 1;
            }
        }
    }
    separated
}
