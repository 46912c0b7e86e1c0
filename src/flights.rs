//! The calls that a driver task has in flight, and the tokens that tell them apart. Nothing here knows what they are.

use std::{future::Future, pin::Pin};

use futures_util::stream::{FuturesUnordered, StreamExt};

/// Names an action that is out; an answer with another token than the one waited for is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(u64);

#[cfg(test)]
impl Token {
    /// One that nobody waits for.
    pub(crate) const STRANGER: Self = Self(u64::MAX);
}

/// Gives out tokens; none is given twice.
#[derive(Debug, Default)]
pub(crate) struct Tokens(u64);

impl Tokens {
    pub(crate) fn next(&mut self) -> Token {
        self.0 += 1;
        Token(self.0)
    }
}

/// Something in flight, on the heap.
pub(crate) type Flight<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Futures of one driver task; each is polled only when it was woken.
pub(crate) struct Flights<T>(FuturesUnordered<Flight<T>>);

impl<T: Send + 'static> Flights<T> {
    pub(crate) fn new() -> Self {
        // `FuturesUnordered` wakes its own task whenever it has polled as many futures as it holds. With a single call in
        // flight that is every time, and each such wake-up costs a futex and a turn of another core. One more future that is
        // never ready, and polled once, keeps the count from being reached.
        Self(FuturesUnordered::from_iter([Box::pin(std::future::pending()) as Flight<T>]))
    }

    pub(crate) fn push(&self, flight: Flight<T>) {
        self.0.push(flight);
    }

    /// The next result; waits for ever while nothing is in flight.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> T {
        match self.0.next().await {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_flight_that_waits_does_not_wake_its_task() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut flights: Flights<u8> = Flights::new();
        assert!(std::pin::pin!(flights.next()).poll(&mut context).is_pending());
        let mut senders = Vec::new();
        for _ in 0..3 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            senders.push(sender);
            flights.push(Box::pin(async move { receiver.await.unwrap() }));
            count.0.store(0, Ordering::Relaxed);
            assert!(std::pin::pin!(flights.next()).poll(&mut context).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
        }
        senders.remove(1).send(7).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(std::pin::pin!(flights.next()).poll(&mut context), Poll::Ready(7));
    }
}
