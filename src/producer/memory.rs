//! The producer's memory: `buffer.memory` bytes, waited for and never exceeded by more than one record.
//!
//! Bytes are taken as a batch's buffer grows and given back when the batch has its answer. Buffers that wait to be used
//! again count too: together with what is in use they never hold more than `buffer.memory`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio::sync::Semaphore;

use crate::{
    driver,
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    time::Instant,
};

/// Buffers kept for the next batches; more are given back to the allocator.
const POOLED_BUFFERS: usize = 32;

/// Room beside `batch.size` in a buffer that is kept: a header, spare bytes, an allocator's rounding.
const SLACK: usize = 4096;

#[derive(Debug)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
    pool: Mutex<Vec<BytesMut>>,
    /// Capacity of the buffers in the pool.
    pooled: AtomicUsize,
    /// Larger buffers are those of single large records: they are not kept for small ones.
    largest_pooled: usize,
}

impl Memory {
    /// `total`: `buffer.memory`; `batch_size`: what a buffer of usual size holds.
    pub(crate) fn new(total: usize, batch_size: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
            waiting: AtomicUsize::new(0),
            pool: Mutex::new(Vec::new()),
            pooled: AtomicUsize::new(0),
            largest_pooled: batch_size.saturating_mul(2).saturating_add(SLACK),
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
                self.trim();
                true
            }
            Err(_) => false,
        }
    }

    /// Waits for `bytes`. First come, first served, so that a large record is not starved by small ones. `register` is
    /// called once the wait can be seen in [`is_short`](Self::is_short): whom it wakes will know that memory is short.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] naming `buffer.memory` and `max.block.ms`.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(crate) async fn take(&self, bytes: usize, deadline: Instant, register: impl FnOnce()) -> Result<()> {
        driver::check_runtime()?;
        let _waiting = Waiting::new(&self.waiting);
        register();
        match tokio::time::timeout_at(deadline, self.free.acquire_many(self.clamp(bytes))).await {
            Ok(Ok(permit)) => {
                permit.forget();
                self.trim();
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
        debug_assert!(self.free.available_permits() <= self.total, "memory was given back twice");
    }

    /// Whether a sender waits: then every batch is sent as it is.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// No call waits any longer.
    pub(crate) fn close(&self) {
        self.free.close();
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.total.saturating_sub(self.free.available_permits())
    }

    /// Bytes that are free: never more than `buffer.memory`, or some were given back twice.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.free.available_permits()
    }

    /// A buffer to fill: a used one, or an empty one that grows.
    pub(crate) fn buffer(&self) -> BytesMut {
        let buffer = self.pool.lock().pop().unwrap_or_default();
        self.pooled.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        buffer
    }

    /// Keeps a buffer for the next batch, if it is of a usual size and there is room for it.
    pub(crate) fn recycle(&self, buffer: BytesMut) {
        if buffer.capacity() > self.largest_pooled || buffer.capacity() == 0 {
            return;
        }
        let mut pool = self.pool.lock();
        if pool.len() < POOLED_BUFFERS {
            self.pooled.fetch_add(buffer.capacity(), Ordering::Relaxed);
            pool.push(buffer);
            drop(pool);
            self.trim();
        }
    }

    /// Gives buffers back to the allocator until they fit beside what is in use.
    fn trim(&self) {
        while self.pooled.load(Ordering::Relaxed) > self.free.available_permits() {
            let Some(buffer) = self.pool.lock().pop() else { return };
            self.pooled.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        }
    }

    /// One request never asks for more than there is: a record larger than `buffer.memory` takes all of it.
    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buffers_of_large_records_are_not_kept() {
        let memory = Memory::new(64 << 20, 16_384);
        for _ in 0..100 {
            memory.recycle(BytesMut::with_capacity(10 << 20));
        }
        assert_eq!(memory.pooled.load(Ordering::Relaxed), 0);
        assert_eq!(memory.buffer().capacity(), 0);
        memory.recycle(BytesMut::with_capacity(16_384));
        assert!(memory.buffer().capacity() >= 16_384, "one of usual size is");
        assert_eq!(memory.pooled.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_kept_and_what_is_used_are_within_buffer_memory_together() {
        let memory = Memory::new(100_000, 16_384);
        for _ in 0..10 {
            memory.recycle(BytesMut::with_capacity(20_000));
        }
        let pooled = || memory.pooled.load(Ordering::Relaxed);
        assert!((80_000..=100_000).contains(&pooled()), "{}", pooled());
        assert!(memory.try_take(70_000));
        assert!(pooled() <= 30_000 && pooled() > 0, "{}", pooled());
        assert!(memory.try_take(30_000));
        assert_eq!(pooled(), 0);
        memory.recycle(BytesMut::with_capacity(20_000));
        assert_eq!((pooled(), memory.buffer().capacity()), (0, 0));
    }

    #[test]
    fn only_so_many_buffers_are_kept_and_none_without_memory() {
        let memory = Memory::new(64 << 20, 16_384);
        memory.recycle(BytesMut::new());
        assert!(memory.pool.lock().is_empty());
        let largest = memory.largest_pooled;
        for capacity in std::iter::once(largest).chain([100; POOLED_BUFFERS + 5]) {
            memory.recycle(BytesMut::with_capacity(capacity));
        }
        assert_eq!(memory.pool.lock().len(), POOLED_BUFFERS);
        assert_eq!(memory.pooled.load(Ordering::Relaxed), largest + 100 * (POOLED_BUFFERS - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_larger_than_the_memory_waits_for_all_of_it() {
        let memory = Memory::new(100, 10);
        assert!(!memory.try_take(101), "it would find nobody to wait behind");
        let deadline = crate::time::now() + Duration::from_millis(10);
        memory.take(101, deadline, || {}).await.unwrap();
        assert_eq!((memory.used(), memory.available()), (100, 0));
        memory.give_back(101);
        assert_eq!((memory.used(), memory.available()), (0, 100));
        assert!(memory.try_take(100) && !memory.try_take(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_woken_for_a_wait_sees_that_memory_is_short() {
        let memory = Memory::new(100, 10);
        assert!(memory.try_take(100));
        let deadline = crate::time::now() + Duration::from_millis(10);
        let mut seen = false;
        let waited = memory.take(1, deadline, || seen = memory.is_short()).await;
        assert!(waited.is_err() && seen && !memory.is_short());
    }
}
