//! A value that many tasks watch, in the manner of `tokio::sync::watch`. That one wakes its receivers in an order drawn from
//! the runtime's generator, whose seed cannot be set in stable tokio; the order of wake-ups is part of what a simulation
//! replays from its seed. This one wakes them in the order in which they began to wait. Its lock is never held across a wait.

use std::{
    ops::Deref,
    pin::pin,
    sync::{Arc, MutexGuard},
};

use tokio::sync::Notify;

use crate::mutex::Mutex;

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    /// Counts the changes.
    version: u64,
    /// The sender is gone.
    is_closed: bool,
}

/// The value, borrowed. Never to be held across an await.
pub(crate) struct Ref<'a, T>(MutexGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// The sender is gone: nothing changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Holds the value and changes it.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        let state = Mutex::new(State { value, version: 0, is_closed: false });
        Self(Arc::new(Shared { state, changed: Notify::new() }))
    }

    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.state.lock())
    }

    /// A receiver to which the present value is no news.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.state.lock().version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    pub(crate) fn send_replace(&self, value: T) {
        self.send_modify(|old| *old = value);
    }

    pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Wakes everybody if `change` says that it has changed something.
    pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
        {
            let mut state = self.0.state.lock();
            if !change(&mut state.value) {
                return;
            }
            state.version += 1;
        }
        self.0.changed.notify_waiters();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().is_closed = true;
        self.0.changed.notify_waiters();
    }
}

/// Waits for what the value becomes.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The version that was seen last.
    seen: u64,
}

impl<T> Receiver<T> {
    pub(crate) fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.state.lock();
        self.seen = state.version;
        Ref(state)
    }

    /// What is there now counts as news.
    pub(crate) fn mark_changed(&mut self) {
        self.seen = self.seen.wrapping_sub(1);
    }

    /// Waits for a change that was not seen yet; a dropped wait loses none. [`Closed`] if none can come.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        let Self { shared, seen } = self;
        loop {
            let mut changed = pin!(shared.changed.notified());
            // Enabled before the version is looked at, so that a change between the two is not missed.
            changed.as_mut().enable();
            {
                let state = shared.state.lock();
                if state.version != *seen {
                    *seen = state.version;
                    return Ok(());
                }
                if state.is_closed {
                    return Err(Closed);
                }
            }
            changed.await;
        }
    }

    /// As [`changed`](Self::changed), for a loop that keeps the wait from turn to turn; waits for ever if nothing can come.
    pub(crate) async fn into_changed(mut self) -> Self {
        match self.changed().await {
            Ok(()) => self,
            Err(Closed) => std::future::pending().await,
        }
    }

    /// Waits until the value is as `wanted`. [`Closed`] if it cannot become so.
    pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        while !wanted(&self.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "tasks of a test")]
    async fn receivers_are_woken_in_the_order_in_which_they_began_to_wait() {
        let sender = Sender::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..20 {
            let (mut receiver, order) = (sender.subscribe(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                receiver.changed().await.unwrap();
                order.lock().push(number);
            }));
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn each_change_is_told_once_and_the_last_one_before_the_end() {
        let sender = Sender::new(0);
        let mut receiver = sender.subscribe();
        assert_eq!(receiver.changed().now_or_never(), None, "what was there is no change");
        sender.send_replace(1);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())), "made while nobody waited");
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send_if_modified(|_| false);
        assert_eq!(receiver.changed().now_or_never(), None, "it has not changed");
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert_eq!(receiver.changed().now_or_never(), None, "seen already");
        receiver.mark_changed();
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.wait_for(|value| *value == 2).now_or_never(), Some(Ok(())));
        assert_eq!(receiver.wait_for(|value| *value == 3).now_or_never(), None);
        sender.send_replace(3);
        drop(sender);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 3).await, Ok(()));
        assert_eq!(receiver.wait_for(|value| *value == 4).await, Err(Closed));
    }
}
