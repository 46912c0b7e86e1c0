//! Where the records of a batch go when the broker refuses it for some of them (KIP-467). Pure.

use std::sync::Arc;

use super::receipt::{BatchOutcome, Part, Stub};
use crate::{error::Error, sorted::Map};

/// A batch without its bad records.
pub(super) struct Apart {
    /// Where each record is now.
    pub(super) parts: Vec<Part>,
    /// The receipt of the records that were not refused.
    pub(super) rest: Stub,
    /// Of those that were, each with what the broker said of it.
    pub(super) failed: Vec<(Stub, BatchOutcome)>,
}

/// `bad`: what was said of records, by their places in the batch.
pub(super) fn take_apart(whole: &Stub, count: i32, bad: &Map<usize, Option<&str>>, error: &Error) -> Apart {
    let count = usize::try_from(count).unwrap_or(0);
    let good = u32::try_from(count.saturating_sub(bad.len())).unwrap_or(u32::MAX);
    let mut apart = Apart { parts: Vec::new(), rest: Stub::part_of(whole, good), failed: Vec::new() };
    let mut kept = 0;
    for place in 0..count {
        let first = place as u32;
        match bad.get(&place) {
            Some(message) => {
                let receipt = Stub::part_of(whole, 1);
                let error = message.map_or_else(|| error.clone(), |text| error.clone().with_message(text));
                apart.parts.push(Part { first, index: 0, receipt: Arc::clone(&receipt) });
                apart.failed.push((receipt, BatchOutcome::Failed(error)));
            }
            None => {
                if place == 0 || bad.contains_key(&(place - 1)) {
                    apart.parts.push(Part { first, index: kept, receipt: Arc::clone(&apart.rest) });
                }
                kept += 1;
            }
        }
    }
    apart
}
