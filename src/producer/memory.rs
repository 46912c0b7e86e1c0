//! The producer's memory: `buffer.memory` bytes, waited for and never exceeded by more than one record.
//!
//! Bytes are taken as a batch's buffer grows and given back when the batch has its answer.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio::sync::Semaphore;

use crate::{
    error::{Error, ErrorKind, Result},
    time::Instant,
};

/// Buffers kept for the next batches; more are given back to the allocator.
const POOLED_BUFFERS: usize = 32;

#[derive(Debug)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
    pool: Mutex<Vec<BytesMut>>,
}

impl Memory {
    pub(crate) fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
            waiting: AtomicUsize::new(0),
            pool: Mutex::new(Vec::new()),
        }
    }

    /// Takes `bytes` if they are free now and nobody waits for some.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        // More than there is at all can only be waited for, alone.
        if bytes > self.total {
            return false;
        }
        match self.free.try_acquire_many(self.clamp(bytes)) {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        }
    }

    /// Waits for `bytes`. First come, first served, so that a large record is not starved by small ones.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] naming `buffer.memory` and `max.block.ms`.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(crate) async fn take(&self, bytes: usize, deadline: Instant) -> Result<()> {
        let _waiting = Waiting::new(&self.waiting);
        match tokio::time::timeout_at(deadline, self.free.acquire_many(self.clamp(bytes))).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(())
            }
            Ok(Err(_)) => Err(Error::closed("producer")),
            Err(_elapsed) => Err(Error::new(
                ErrorKind::Timeout,
                format!("the producer's memory of {} bytes stayed full", self.total),
            )
            .with_hint("raise buffer.memory or max.block.ms, or send less at once")),
        }
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.free.add_permits(self.clamp(bytes) as usize);
    }

    /// Whether a sender waits: then every batch is sent as it is.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// No call waits any longer.
    pub(crate) fn close(&self) {
        self.free.close();
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.total.saturating_sub(self.free.available_permits())
    }

    /// A buffer to fill: a used one, or an empty one that grows.
    pub(crate) fn buffer(&self) -> BytesMut {
        self.pool().pop().unwrap_or_default()
    }

    /// Keeps a buffer for the next batch.
    pub(crate) fn recycle(&self, buffer: BytesMut) {
        let mut pool = self.pool();
        if pool.len() < POOLED_BUFFERS {
            pool.push(buffer);
        }
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<BytesMut>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request never asks for more than there is: a record larger than `buffer.memory` takes all of it.
    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
