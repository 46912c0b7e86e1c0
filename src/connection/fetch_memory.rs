//! The memory of Fetch answers, which the stream reads whole and past the messenger.
//!
//! The messenger would zero as many bytes as an answer announces before it reads the first, and take fresh memory for each:
//! a tenth of the CPU of consuming small records. Here an answer is read into memory that an earlier one has left, once
//! nobody holds a record of that any more. Nothing is reserved by an announced length alone: no more than twice what has really
//! come, in this answer or an earlier one of the connection. What all connections of a client keep is bounded, since it is
//! outside of what a consumer counts. Never looks at what it reads.

use std::{
    collections::VecDeque,
    io,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::mutex::Mutex;

/// Where a caller finds its answer: what follows the correlation id.
pub(super) type Slot = Mutex<Option<Bytes>>;

/// What is reserved for an answer before anything has come; smaller ones are not worth keeping.
const SMALL: usize = 64 * 1024;
/// One answer that is being handed out, one that waits, and one that is being read.
const KEPT: usize = 3;

/// What all connections of a client may keep together, in bytes, since there may be many brokers.
const KEPT_IN_ALL: usize = 32 << 20;

/// How much the connections of a client keep.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptMemory(Arc<AtomicUsize>);

impl KeptMemory {
    /// Takes a share of this size if there is room; it is given back when dropped.
    fn take(&self, bytes: usize) -> Option<Share> {
        let add = |kept: usize| kept.checked_add(bytes).filter(|kept| *kept <= KEPT_IN_ALL);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Share { of: self.clone(), bytes })
    }
}

/// A part of what is kept.
struct Share {
    of: KeptMemory,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The memory of earlier answers of one connection.
#[derive(Default)]
pub(super) struct Buffers {
    all: KeptMemory,
    /// The oldest first.
    kept: VecDeque<Kept>,
    /// The longest answer that came whole.
    longest: usize,
}

/// An answer whose memory is taken again when its records are gone.
struct Kept {
    answer: Bytes,
    share: Share,
}

impl Buffers {
    /// The buffers of one connection; what they keep counts in `all`.
    pub(super) fn within(all: KeptMemory) -> Self {
        Self { all, ..Self::default() }
    }

    /// Begins an answer of this length.
    pub(super) fn begin(&mut self, id: i32, length: usize, slot: Weak<Slot>) -> Filling {
        // A small answer must not hold the memory of a large one.
        let fits = |capacity| length > SMALL && (length..=length.saturating_mul(2)).contains(&capacity);
        let is_free = |kept: &Kept| kept.answer.is_unique();
        let fitting = self.kept.iter().position(|kept| is_free(kept) && fits(kept.share.bytes));
        // Buffers that do not fit are freed one at a time; small answers free them too, which come when there is little
        // to read.
        let place = fitting.or_else(|| self.kept.iter().position(is_free));
        let free = place.and_then(|place| self.kept.remove(place)).filter(|_| fitting.is_some());
        let bytes = match free.map(|kept| kept.answer.try_into_mut()) {
            Some(Ok(mut memory)) => {
                memory.clear();
                memory
            }
            // All of one size, so that each fits any of the next answers.
            _ if fits(self.longest) => BytesMut::with_capacity(self.longest),
            _ => BytesMut::with_capacity(length.min(self.longest.saturating_mul(2).max(SMALL))),
        };
        Filling { id, left: length, bytes, slot }
    }

    /// An answer has come whole. Says whose it was.
    pub(super) fn finish(&mut self, filling: Filling) -> i32 {
        let Filling { id, bytes, slot, .. } = filling;
        let capacity = bytes.capacity();
        let answer = bytes.freeze();
        self.longest = self.longest.max(answer.len());
        if answer.len() > SMALL {
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            if let Some(share) = self.all.take(capacity) {
                self.kept.push_back(Kept { answer: answer.clone(), share });
            }
        }
        // Without it nobody waits for the answer any more.
        if let Some(slot) = slot.upgrade() {
            *slot.lock() = Some(answer);
        }
        id
    }
}

/// An answer that is being read.
pub(super) struct Filling {
    id: i32,
    /// Bytes that have not come.
    left: usize,
    bytes: BytesMut,
    slot: Weak<Slot>,
}

impl Filling {
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Takes what it lacks from the front of `ahead`; says how much.
    pub(super) fn take(&mut self, ahead: &[u8]) -> usize {
        let taken = &ahead[..ahead.len().min(self.left)];
        self.bytes.extend_from_slice(taken);
        self.left -= taken.len();
        taken.len()
    }

    /// Reads more, never past the end of the answer. True at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<bool>> {
        if self.bytes.len() == self.bytes.capacity() {
            self.bytes.reserve(self.left.min(self.bytes.len().max(SMALL)));
        }
        let read = ready!(pin!(io.read_buf(&mut (&mut self.bytes).limit(self.left))).poll(cx))?;
        self.left -= read;
        Poll::Ready(Ok(read == 0))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// An answer of `length` bytes of `byte`, of which all have come.
    fn fill(buffers: &mut Buffers, length: usize, byte: u8) -> Bytes {
        let slot = Arc::new(Slot::default());
        let mut filling = buffers.begin(7, length, Arc::downgrade(&slot));
        filling.take(&vec![byte; length]);
        assert!(filling.is_whole());
        assert_eq!(buffers.finish(filling), 7);
        slot.lock().take().unwrap()
    }

    #[test]
    fn memory_is_taken_again_once_nobody_holds_a_part_of_its_answer() {
        let mut buffers = Buffers::default();
        let first = fill(&mut buffers, 300_000, 1);
        let (at, part) = (first.as_ptr(), first.slice(299_990..));
        drop(first);
        let second = fill(&mut buffers, 290_000, 2);
        assert_ne!(second.as_ptr(), at, "a part of the first is still held");
        assert_eq!(part, vec![1; 10]);
        drop(part);
        let third = fill(&mut buffers, 300_000, 3);
        assert_eq!(third.as_ptr(), at);
        assert_eq!((second, third), (vec![2; 290_000].into(), vec![3; 300_000].into()));
    }

    #[test]
    fn no_more_is_kept_than_a_few_answers_and_nothing_when_there_is_little_to_read() {
        let mut buffers = Buffers::default();
        let held: Vec<_> = (0..10).map(|n| fill(&mut buffers, 200_000, n)).collect();
        assert_eq!(buffers.kept.len(), KEPT);
        drop(held);
        for left in (0..KEPT).rev() {
            fill(&mut buffers, 100, 0);
            assert_eq!(buffers.kept.len(), left);
        }
    }

    #[test]
    fn what_all_connections_of_a_client_keep_is_bounded_and_given_back_with_them() {
        const LENGTH: usize = 4 << 20;
        let all = KeptMemory::default();
        let kept = || all.0.load(Ordering::Relaxed);
        let mut connections: Vec<_> = (0..20).map(|_| Buffers::within(all.clone())).collect();
        let most =
            |connections: &[Buffers]| connections.iter().map(|buffers| buffers.kept.len()).sum::<usize>();
        for _ in 0..KEPT {
            for buffers in &mut connections {
                // Those that are not kept are whole all the same.
                assert_eq!(fill(buffers, LENGTH, 7), vec![7; LENGTH]);
            }
        }
        assert!((KEPT_IN_ALL - LENGTH..=KEPT_IN_ALL).contains(&kept()), "{}", kept());
        assert_eq!(most(&connections), KEPT_IN_ALL / LENGTH);
        connections.truncate(1);
        assert_eq!(kept(), most(&connections) * LENGTH);
        // There is room for another one's again.
        let mut other = Buffers::within(all.clone());
        fill(&mut other, LENGTH, 8);
        assert_eq!(other.kept.len(), 1);
        drop((connections, other));
        assert_eq!(kept(), 0);
    }

    #[test]
    fn a_few_records_do_not_hold_the_memory_of_many() {
        let mut buffers = Buffers::default();
        fill(&mut buffers, 1_000_000, 1);
        assert!(Vec::from(fill(&mut buffers, 400_000, 2)).capacity() < 1_000_000);
        let capacity = |buffers: &Buffers| buffers.kept.iter().map(|kept| kept.share.bytes).max();
        assert!(capacity(&buffers) < Some(1_000_000), "{:?}", capacity(&buffers));
    }

    #[tokio::test]
    async fn an_announced_length_alone_reserves_nothing() {
        const ANNOUNCED: usize = 1 << 30;
        let mut buffers = Buffers::default();
        let slot = Arc::new(Slot::default());
        for really in [0, 1_000_000] {
            fill(&mut buffers, really, 1);
            let mut filling = buffers.begin(0, ANNOUNCED, Arc::downgrade(&slot));
            assert!(filling.bytes.capacity() <= 2 * really.max(SMALL / 2), "{}", filling.bytes.capacity());
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            for come in 1..100 {
                far.write_all(&[0; 50_000]).await.unwrap();
                while filling.bytes.len() < come * 50_000 {
                    assert!(!poll_fn(|cx| filling.poll_read(cx, &mut near)).await.unwrap());
                }
                let most = 2 * (come * 50_000 + SMALL).max(really);
                assert!(filling.bytes.capacity() <= most, "{} > {most}", filling.bytes.capacity());
            }
        }
    }
}
