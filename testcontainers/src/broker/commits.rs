//! The commits that were accepted, in order: what a test needs to say when an offset was committed, and by whom.
//!
//! Kept only once asked for. Never decides anything.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// An offset that a group's coordinator has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// When, on tokio's clock.
    pub at: Instant,
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset: that of the next record to read.
    pub offset: i64,
    /// The member's id; empty for a client that assigns partitions by itself, and for offsets of a transaction.
    pub member: String,
    /// The generation or member epoch; -1 for a client that assigns partitions by itself.
    pub generation: i32,
}

/// Commits since [`super::FaultControl::record_commits`].
#[derive(Debug, Default)]
pub(super) struct Commits(Mutex<Option<Vec<Commit>>>);

impl Commits {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Commit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&self) {
        self.lock().get_or_insert_default();
    }

    /// Keeps a commit if anybody wants them.
    pub(super) fn add(&self, commit: impl FnOnce() -> Commit) {
        if let Some(kept) = self.lock().as_mut() {
            kept.push(commit());
        }
    }

    pub(super) fn take(&self) -> Vec<Commit> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }
}
