//! A value that many tasks watch, in the manner of `tokio::sync::watch`, which wakes its receivers in random order. This one
//! wakes them in the order in which they began to wait: a run can be replayed from its seed.

use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    /// The sender is gone.
    closed: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value, borrowed. Not for holding across an await.
pub(super) struct Ref<'a, T>(MutexGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Holds the value and changes it.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    pub(super) fn new(value: T) -> Self {
        let state = Mutex::new(State { value, closed: false });
        Self(Arc::new(Shared { state, changed: Notify::new() }))
    }

    pub(super) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.lock())
    }

    pub(super) fn subscribe(&self) -> Receiver<T> {
        Receiver(Arc::clone(&self.0))
    }

    /// Changes the value and wakes everybody.
    pub(super) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.0.lock().value);
        self.0.changed.notify_waiters();
    }

    pub(super) fn send_replace(&self, value: T) {
        self.send_modify(|old| *old = value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_waiters();
    }
}

/// Waits for what the value becomes.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Shared<T>>);

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Receiver<T> {
    pub(super) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.lock())
    }

    /// Waits until the value fulfils `wanted`, or the sender is gone.
    pub(super) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // Before the look: a change between the two must not be missed.
            changed.as_mut().enable();
            {
                let state = self.0.lock();
                if state.closed || wanted(&state.value) {
                    return;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
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
                receiver.wait_for(|value| *value == 1).await;
                order.lock().unwrap().push(number);
            }));
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_receiver_does_not_wait_for_a_sender_that_is_gone() {
        let sender = Sender::new(0);
        let mut receiver = sender.subscribe();
        drop(sender);
        receiver.wait_for(|_| false).await;
    }
}
