//! What a connection's stream has noticed, and what the stream is told; shared with the connection.
//!
//! It holds the counts of frames by which requests keep their order, who waits for an answer, why the stream ended, and
//! what is special about the frame that is written next. Never reads or writes itself: the
//! [`Stream`](super::stream::Stream) does.

use std::{
    sync::{
        OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;

use super::fetch_memory::Slot;
use crate::{
    mutex::Mutex,
    time::{self, Instant},
};

/// A number that grows by one.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn grow(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// What the stream has noticed, and what it is told; shared with the connection.
#[derive(Default)]
pub(crate) struct Notices {
    pub(super) lost: AtomicBool,
    /// The connection wants it closed.
    pub(super) ended: AtomicBool,
    /// The runtime in which answers are read has ended, so that none will come.
    orphaned: AtomicBool,
    pub(super) fault: OnceLock<Fault>,
    /// The peer has refused our certificate, by a TLS alert after the handshake.
    pub(super) refused: AtomicBool,
    /// Frames of which the first byte, and of which the last one, was written.
    pub(super) begun: Count,
    pub(super) left: Count,
    /// Answers of which the head has come, also those that nobody waits for any more.
    pub(super) heard: Count,
    /// Since when the peer takes nothing of what is to be written.
    stalled: Mutex<Option<Instant>>,
    /// No answer will come to the next frame.
    pub(super) next_unanswered: AtomicBool,
    /// The caller that takes the next answer as whole bytes, past the messenger.
    pub(super) next_whole: Mutex<Option<Weak<Slot>>>,
    /// The largest answers accepted now.
    pub(super) limits: Mutex<Limits>,
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
    /// Who waits for an answer, sorted by ticket. The messenger keeps them in no order, and would wake them in any.
    waiting: Mutex<Vec<(u64, Waker)>>,
}

impl Notices {
    /// Whether the peer has closed the stream, or reading or writing has failed.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.ended.load(Ordering::Acquire)
    }

    /// The runtime in which answers are read is ending, and nobody else would wake those who wait.
    pub(super) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Release);
        self.lost.store(true, Ordering::Release);
        self.wake_waiting();
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    /// Why the stream itself ended the connection.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// Whether the peer has refused our certificate, which it may do after the handshake (TLS 1.3).
    pub(crate) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Closes the stream, with what waits to be written.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// A request waits for its answer.
    pub(super) fn wait(&self, ticket: u64, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        match waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            Ok(place) => waiting[place].1.clone_from(waker),
            Err(place) => waiting.insert(place, (ticket, waker.clone())),
        }
    }

    /// A request waits no longer.
    pub(super) fn forget(&self, ticket: u64) {
        let mut waiting = self.waiting.lock();
        if let Ok(place) = waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            waiting.remove(place);
        }
    }

    /// Wakes those who wait for an answer in the order of their tickets, before the messenger wakes them in any order.
    pub(super) fn wake_waiting(&self) {
        // Not under the lock: a waker is foreign code.
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Since when the peer takes nothing, although there is something to write.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        *self.stalled.lock()
    }

    /// The frame that is written next gets no answer from the broker; an empty one is made up for the messenger.
    pub(super) fn expect_no_answer(&self) {
        self.next_unanswered.store(true, Ordering::Release);
    }

    /// The answer to the frame that is written next is put there, and an empty one is made up for the messenger.
    pub(super) fn expect_whole(&self, slot: Weak<Slot>) {
        *self.next_whole.lock() = Some(slot);
    }

    /// The frame that is written next gets an ordinary answer.
    pub(super) fn expect_an_answer(&self) {
        self.next_unanswered.store(false, Ordering::Release);
        *self.next_whole.lock() = None;
    }

    pub(super) fn set_stalled(&self, stalled: bool) {
        let mut since = self.stalled.lock();
        if !stalled {
            *since = None;
        } else if since.is_none() {
            *since = Some(time::now());
        }
    }
}

/// The largest answers accepted, in bytes. What is no Fetch has no records: whole clusters are told of in a few MiB, and
/// what is read of an answer takes a multiple of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    pub(crate) fetch: usize,
    pub(crate) other: usize,
}

/// Why a connection was ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The first bytes are a TLS alert: the listener wants TLS.
    Tls,
    /// The first bytes are an HTTP answer.
    Http,
    /// The first four bytes are no length of a first answer.
    Stranger([u8; 4]),
    /// A later answer's length is none.
    Length(i32),
    /// An answer is larger than the limit.
    TooLarge { actual: usize, limit: usize },
    /// An answer to a request that was not sent, or was answered before.
    Unasked(i32),
}
