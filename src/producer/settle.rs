//! What an answer leaves to be done outside of every lock: receipts resolve, interceptors are told, memory is given back.

use std::{error::Error as _, sync::Arc};

use super::{Shared, queue::Aftermath, receipt::BatchOutcome};
use crate::{batch, error::ErrorKind};

impl Shared {
    /// Does what must not be done under a partition's lock: tells those who wait, and gives memory back. What is left is empty, with
    /// memory for the next.
    pub(super) fn settle(&self, aftermath: &mut Aftermath) {
        for (receipt, outcome) in aftermath.resolved.drain(..) {
            let outcome = match outcome {
                BatchOutcome::Failed(error) => {
                    // A time-out without a broker's answer names no cause; the cluster knows why there is none.
                    let is_unexplained = error.kind() == ErrorKind::Timeout && error.source().is_none();
                    let (topic, partition) = receipt.place();
                    // In a transaction nothing leaves before the coordinator has answered, so that its trouble is the
                    // cause.
                    let trouble = || self.transactions.as_ref()?.lock().trouble();
                    let why = || {
                        let trouble = trouble().or_else(|| self.cluster.why_topic(topic, Some(partition)));
                        trouble.or_else(|| self.cluster.why_held(topic, partition))
                    };
                    let why = is_unexplained.then(why).flatten();
                    let error = match why {
                        Some(why) => error.with_source(why),
                        None => error,
                    };
                    BatchOutcome::Failed(match &self.transactions {
                        Some(_) => error.with_requires_abort(),
                        None => error,
                    })
                }
                outcome => outcome,
            };
            let failed = match (&outcome, &self.transactions) {
                (BatchOutcome::Failed(error), None) => Some(error.clone()),
                // A transaction says by itself that it has failed.
                _ => None,
            };
            // Noted before anybody is told, so that a flush which ends with this answer reports it. Only the first answer
            // counts.
            if let Some(error) = failed.filter(|_| !receipt.has_outcome()) {
                let (topic, partition) = receipt.place();
                let error = error.with_topic(Arc::clone(topic)).with_partition(partition);
                self.unawaited.lock().note(&receipt, &error);
            }
            receipt.resolve_telling(outcome, &self.settings.plugins.interceptors);
        }
        for buffer in aftermath.buffers.drain(..).filter_map(batch::recycle) {
            self.memory.recycle(buffer);
        }
        let freed = std::mem::take(&mut aftermath.freed);
        if freed > 0 {
            self.memory.give_back(freed);
        }
        aftermath.trim();
    }
}
