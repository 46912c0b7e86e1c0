//! The order in which requests cross the wire: that of their first polls, by tickets of our own.
//!
//! A request takes a ticket with its first poll, and its turn ends when its frame has left, which the stream counts. So at
//! no time do two requests wait for the messenger's lock, and nothing rests on how a runtime treats those who do. A pause
//! that the broker asked for (KIP-219) holds back the first in line, and with it all others.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use super::{
    api::ChannelError,
    fetch_memory::Slot,
    notices::Notices,
    throttle::{Throttle, ThrottleChange},
};
use crate::{
    mutex::Mutex,
    time::{self, Instant},
};

/// The requests that wait for their turn. Pure.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    waiting: VecDeque<(u64, Option<Waker>)>,
}

impl Line {
    fn join(&mut self) -> u64 {
        self.next += 1;
        self.waiting.push_back((self.next, None));
        self.next
    }

    fn is_first(&self, ticket: u64) -> bool {
        self.waiting.front().is_some_and(|(first, _)| *first == ticket)
    }

    fn wait(&mut self, ticket: u64, waker: &Waker) {
        if let Ok(place) = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            && let Some((_, waiting)) = self.waiting.get_mut(place)
            && !waiting.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            *waiting = Some(waker.clone());
        }
    }

    /// Takes a request out. Returns the waker of the one that is first now, if it was not first before.
    fn leave(&mut self, ticket: u64) -> Option<Waker> {
        let place = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        self.waiting.remove(place);
        if place > 0 { None } else { self.waiting.front_mut()?.1.take() }
    }
}

#[derive(Debug, Default)]
struct State {
    line: Line,
    throttle: Throttle,
}

/// The order of one connection's requests.
#[derive(Debug, Default)]
pub(super) struct Order(Mutex<State>);

impl Order {
    /// An answer asks for a pause of so many milliseconds, or for none.
    pub(super) fn handle_throttle(&self, ms: i32) -> (Duration, Option<ThrottleChange>) {
        self.0.lock().throttle.handle_answer(time::now, ms)
    }

    /// Until when the broker wants nothing sent.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.0.lock().throttle.held_until(time::now)
    }

    /// The pauses that are over.
    pub(super) fn paused_before(&self) -> Duration {
        self.0.lock().throttle.paused_before(time::now)
    }

    /// All pauses so far, to their end.
    pub(super) fn paused_in_all(&self) -> Duration {
        self.0.lock().throttle.paused_in_all()
    }

    /// A place in the order; the first poll takes it.
    pub(super) fn turn<'a>(&'a self, notices: &'a Notices) -> Turn<'a> {
        Turn {
            order: self,
            notices,
            state: TurnState::New,
            is_unsent: true,
            whole: None,
            pause: None,
            awaits: None,
        }
    }
}

/// One request's place; given up when its frame has left, or when it is dropped.
pub(super) struct Turn<'a> {
    order: &'a Order,
    notices: &'a Notices,
    state: TurnState,
    /// Set when its turn is over: nothing of its frame was written.
    is_unsent: bool,
    /// Where it wants its answer.
    whole: Option<Arc<Slot>>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The ticket under which it waits for its answer.
    awaits: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum TurnState {
    New,
    InLine(u64),
    /// Its frame is being written, and has left when so many have.
    Writing {
        ticket: u64,
        frame: u64,
    },
    Left,
}

impl Turn<'_> {
    /// Has the answer read whole and put there.
    pub(super) fn into_slot(mut self, slot: Option<Arc<Slot>>) -> Self {
        self.whole = slot;
        self
    }

    /// Polls the request when its turn has come.
    pub(super) fn poll<F: Future + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        request: Pin<&mut F>,
    ) -> Poll<F::Output> {
        ready!(self.poll_turn(cx));
        let polled = request.poll(cx);
        if let TurnState::Writing { frame, ticket } = self.state
            && (polled.is_ready() || self.notices.left.get() >= frame)
        {
            self.leave();
            self.awaits = Some(ticket);
        }
        if let Some(ticket) = self.awaits {
            match polled.is_ready() {
                true => self.end_wait(),
                false => self.notices.wait(ticket, cx.waker()),
            }
        }
        polled
    }

    /// Polls a request that the broker does not answer.
    pub(super) fn poll_unanswered<F: Future + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        request: Pin<&mut F>,
    ) -> Poll<F::Output> {
        let begins = !matches!(self.state, TurnState::Writing { .. } | TurnState::Left);
        ready!(self.poll_turn(cx));
        if begins {
            // The next frame is this request's, since it is its turn.
            self.notices.expect_no_answer();
        }
        self.poll(cx, request)
    }

    /// Whether the frame is written whole.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.state, TurnState::Left)
    }

    /// Whether nothing of its frame was written: the broker cannot have heard of it.
    pub(super) fn is_unsent(&self) -> bool {
        match self.state {
            TurnState::New | TurnState::InLine(_) => true,
            TurnState::Writing { frame, .. } => self.notices.begun.get() < frame,
            TurnState::Left => self.is_unsent,
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let mut state = self.order.0.lock();
            let ticket = match self.state {
                TurnState::New => state.line.join(),
                TurnState::InLine(ticket) => ticket,
                TurnState::Writing { .. } | TurnState::Left => return Poll::Ready(()),
            };
            self.state = TurnState::InLine(ticket);
            if !state.line.is_first(ticket) {
                state.line.wait(ticket, cx.waker());
                return Poll::Pending;
            }
            if let Some(until) = state.throttle.held_until(time::now) {
                self.pause = Some(Box::pin(tokio::time::sleep_until(until)));
                continue;
            }
            // A frame whose request was dropped in the middle may still be on its way: it is counted already.
            self.state = TurnState::Writing { ticket, frame: self.notices.begun.get() + 1 };
            if let Some(slot) = &self.whole {
                // The next frame is this request's.
                self.notices.expect_whole(Arc::downgrade(slot));
            }
            return Poll::Ready(());
        }
    }

    fn end_wait(&mut self) {
        if let Some(ticket) = self.awaits.take() {
            self.notices.forget(ticket);
        }
    }

    fn leave(&mut self) {
        let (TurnState::InLine(ticket) | TurnState::Writing { ticket, .. }) = self.state else { return };
        self.is_unsent = self.is_unsent();
        if let (TurnState::Writing { .. }, true) = (self.state, self.is_unsent) {
            // It was dropped, or failed, before anything was written.
            self.notices.expect_an_answer();
        }
        self.state = TurnState::Left;
        let next = self.order.0.lock().line.leave(ticket);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// A request that waits for its turn, and then for its answer.
pub(super) struct Asking<'a, F: ?Sized> {
    pub(super) turn: Turn<'a>,
    pub(super) request: Pin<&'a mut F>,
}

impl<T, F: Future<Output = Result<T, ChannelError>> + ?Sized> Future for Asking<'_, F> {
    type Output = Result<T, ChannelError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.turn.poll(cx, this.request.as_mut()) {
            Poll::Pending if this.turn.notices.is_orphaned() => {
                Poll::Ready(Err(ChannelError::Lost("the runtime in which it was made has ended".to_owned())))
            }
            polled => polled,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.end_wait();
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_in_line_is_followed_by_the_next_whoever_leaves_between() {
        let waker = noop_waker();
        let mut line = Line::default();
        let tickets: Vec<u64> = (0..4).map(|_| line.join()).collect();
        for ticket in &tickets {
            line.wait(*ticket, &waker);
        }
        assert!(line.is_first(tickets[0]));
        assert!(line.leave(tickets[1]).is_none(), "nobody's turn comes by that");
        assert!(line.leave(tickets[0]).is_some());
        assert!(line.is_first(tickets[2]));
        assert!(line.leave(tickets[0]).is_none(), "it left already");
        assert!(line.leave(tickets[2]).is_some() && line.is_first(tickets[3]));
        assert!(line.leave(tickets[3]).is_none() && line.waiting.is_empty());
    }

    /// A writer that is never fair: whoever is polled while it is free may write, and a write takes several polls.
    #[derive(Default)]
    struct Unfair {
        busy: Mutex<Option<usize>>,
        written: Mutex<Vec<usize>>,
    }

    struct Write {
        id: usize,
        polls: usize,
        writer: Arc<Unfair>,
        notices: Arc<Notices>,
    }

    impl Future for Write {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            let mut busy = self.writer.busy.lock();
            if busy.is_some_and(|other| other != self.id) {
                return Poll::Pending;
            }
            if busy.is_none() {
                *busy = Some(self.id);
                self.notices.begun.grow();
            }
            drop(busy);
            if self.polls > 0 {
                self.polls -= 1;
                return Poll::Pending;
            }
            *self.writer.busy.lock() = None;
            self.writer.written.lock().push(self.id);
            self.notices.left.grow();
            Poll::Ready(())
        }
    }

    proptest! {
        /// Whatever the runtime polls when: what is written is written in the order of the first polls.
        #[test]
        fn frames_leave_in_the_order_of_first_polls(
            polls in prop::collection::vec(0..3usize, 1..12),
            turns in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let order = Order::default();
            let (writer, notices) = (Arc::new(Unfair::default()), Arc::new(Notices::default()));
            let waker = noop_waker();
            let mut cx = Context::from_waker(&waker);
            let mut calls: Vec<_> = polls.iter().enumerate().map(|(id, polls)| {
                let write = Write { id, polls: *polls, writer: Arc::clone(&writer), notices: Arc::clone(&notices) };
                (order.turn(&notices), Box::pin(write), false)
            }).collect();
            for (turn, write, done) in &mut calls {
                *done = turn.poll(&mut cx, write.as_mut()).is_ready();
            }
            let count = calls.len();
            let rest = (0..count * count * 4).map(|n| n % count);
            for index in turns.iter().map(|index| index.index(count)).chain(rest) {
                let (turn, write, done) = &mut calls[index];
                if !*done {
                    *done = turn.poll(&mut cx, write.as_mut()).is_ready();
                }
            }
            prop_assert_eq!(&*writer.written.lock(), &(0..count).collect::<Vec<_>>());
        }
    }
}
