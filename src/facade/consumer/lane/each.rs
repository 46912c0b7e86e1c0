//! Records of a lane one by one, each through all handlers of its topic. Most handlers do not wait: they are called in a
//! [pass](Lane::pass), which is no future. What waits or fails is awaited, record by record.

use std::{
    collections::VecDeque,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll},
    time::Duration,
};

use super::{Flow, Lane, TELL, text_of};
use crate::{
    error::Error,
    facade::{
        borrowed::BorrowedRecord,
        consumer::load::{Chunk, ChunkRecords},
        dispatch::lanes::Load as _,
        failure::Failure,
        handler::Calls,
        letters,
        policy::Decision,
    },
    record::ConsumerRecord,
    telemetry::spans::{self, HandlerCall},
    time::{self, Instant},
};

/// After how many records whose handlers did not wait a lane lets other tasks run.
const STRIDE: usize = 32;
/// After how long it does so where one thread does everything: handlers may block it while others wait.
const TURN: Duration = Duration::from_millis(1);

/// A call of a handler that has begun.
enum Begun {
    Ended(Result<(), Failure>),
    Waits(HandlerCall),
}

/// How a pass has ended.
enum Pass<'a> {
    /// All records are done.
    Over,
    /// Other tasks must have their turn.
    Enough,
    /// The lane was told to give up, and begins no more records.
    Ending,
    /// This record is not done: the handlers before this one are, and this one's call has begun.
    Stuck(BorrowedRecord<'a>, usize, Begun),
    /// Nothing was begun with this record: it has a deadline, or waits in a retry topic.
    Slow(BorrowedRecord<'a>),
}

/// A turn of a lane: how far it has come, and when other tasks must run.
struct Turn {
    /// Records of the load that are done.
    done: usize,
    /// Records done since other tasks could run.
    stride: usize,
    /// When other tasks must run at the latest.
    ends_at: Option<Instant>,
}

impl Turn {
    /// Begins a new turn, after other tasks had theirs.
    fn begin(is_alone: bool, done: usize) -> Self {
        Self { done, stride: 0, ends_at: is_alone.then(|| time::after(TURN)) }
    }

    fn step(&mut self) {
        self.done += 1;
        self.stride += 1;
    }

    /// Whether other tasks must run now.
    fn is_enough(&self) -> bool {
        self.stride >= STRIDE || self.ends_at.is_some_and(|at| time::now() >= at)
    }
}

impl Lane {
    /// All records through all handlers.
    pub(super) async fn each(
        &mut self,
        mut calls: Vec<Box<dyn Calls>>,
        mut loads: VecDeque<Chunk>,
    ) -> Result<Flow, Error> {
        let mut turn = Turn::begin(self.context.is_alone, 0);
        // Loads are dropped one by one, and with each the answer that its records lie in.
        while let Some(load) = loads.front() {
            let (mut records, has_waited) = (load.given(), load.due().is_some());
            turn.done = 0;
            loop {
                let pass =
                    poll_fn(|context| Poll::Ready(self.pass(context, &mut calls, &mut records, &mut turn)));
                let mut is_prompt = false;
                let (record, flow) = match pass.await {
                    Pass::Over => break,
                    Pass::Enough => (None, Ok(Flow::Handled)),
                    Pass::Ending => (None, Ok(Flow::Abandoned)),
                    // Boxed, like everything rare here: the future of a lane is moved when it is spawned, and should be
                    // small.
                    Pass::Stuck(record, index, begun) => {
                        let rest = Box::pin(self.go_on(&mut calls, record, index, begun));
                        (Some(record), rest.await)
                    }
                    Pass::Slow(record) => {
                        let prompt = self.prompt;
                        let flow = Box::pin(self.each_slow(&mut calls, record, has_waited)).await;
                        is_prompt = self.prompt > prompt;
                        (Some(record), flow)
                    }
                };
                if !matches!(flow, Ok(Flow::Handled)) {
                    self.give_back(offsets(&loads).skip(turn.done));
                    return flow;
                }
                if let Some(record) = record {
                    self.done.push(record.offset());
                    turn.step();
                    if is_prompt && !turn.is_enough() {
                        continue;
                    }
                }
                if self.done.len() >= TELL {
                    self.tell();
                }
                self.yield_now().await;
                turn = Turn::begin(self.context.is_alone, turn.done);
            }
            loads.pop_front();
        }
        Ok(Flow::Handled)
    }

    /// Takes records through their handlers as long as none waits and none fails.
    fn pass<'a>(
        &mut self,
        context: &mut Context<'_>,
        calls: &mut [Box<dyn Calls>],
        records: &mut ChunkRecords<'a>,
        turn: &mut Turn,
    ) -> Pass<'a> {
        let is_slow = self.route.level > 0 || self.route.policy.limit().is_some();
        for record in records {
            if self.is_ending() {
                return Pass::Ending;
            }
            if is_slow {
                return Pass::Slow(record);
            }
            for (index, handler) in calls.iter_mut().enumerate() {
                match self.begin(context, &mut **handler, record, 1) {
                    Begun::Ended(Ok(())) => {}
                    begun => return Pass::Stuck(record, index, begun),
                }
            }
            self.done.push(record.offset());
            turn.step();
            if turn.is_enough() {
                return Pass::Enough;
            }
        }
        Pass::Over
    }

    /// Calls a handler, up to where it waits. A panic is a failure like any other.
    #[inline]
    fn begin(
        &mut self,
        context: &mut Context<'_>,
        handler: &mut dyn Calls,
        record: BorrowedRecord<'_>,
        attempt: u32,
    ) -> Begun {
        let call = process(record, attempt);
        let begun =
            call.in_scope(|| catch_unwind(AssertUnwindSafe(|| handler.begin(record, attempt, context))));
        let outcome = match begun {
            Ok(Poll::Pending) => return Begun::Waits(call),
            Ok(Poll::Ready(outcome)) => outcome,
            Err(panic) => Err(Failure::Panic(text_of(&*panic))),
        };
        self.prompt += 1;
        Begun::Ended(outcome)
    }

    /// Waits for a handler whose call has begun.
    async fn end(&mut self, handler: &mut dyn Calls, begun: Begun) -> Result<(), Failure> {
        let outcome = match begun {
            Begun::Ended(outcome) => outcome,
            Begun::Waits(call) => {
                let running = poll_fn(|context| call.in_scope(|| handler.poll(context)));
                let ended = self.guard(running, true).await;
                ended.and_then(|result| result.map_err(Failure::Handler))
            }
        };
        cleared(handler, outcome)
    }

    /// Calls a handler once, to its end, its panic or its deadline.
    async fn call(
        &mut self,
        handler: &mut dyn Calls,
        record: BorrowedRecord<'_>,
        attempt: u32,
    ) -> Result<(), Failure> {
        if self.route.policy.limit().is_none() {
            let begun = poll_fn(|context| Poll::Ready(self.begin(context, handler, record, attempt))).await;
            return self.end(handler, begun).await;
        }
        let call = process(record, attempt);
        let mut is_begun = false;
        let running = poll_fn(|context| {
            call.in_scope(|| match std::mem::replace(&mut is_begun, true) {
                false => handler.begin(record, attempt, context),
                true => handler.poll(context).map_err(Failure::Handler),
            })
        });
        let outcome = self.guard(running, false).await.unwrap_or_else(Err);
        cleared(handler, outcome)
    }

    /// Takes a record through all its handlers. `has_waited`: its lane has waited until it was due, by a clock that
    /// nobody can put back.
    async fn each_slow(
        &mut self,
        calls: &mut [Box<dyn Calls>],
        record: BorrowedRecord<'_>,
        has_waited: bool,
    ) -> Result<Flow, Error> {
        if self.route.level == 0 {
            return self.call_all(calls, record, 0).await;
        }
        // A record of a retry topic is handled when its pause is over.
        let mut record = record.to_record();
        let waited = letters::restore(&mut record);
        let due = if has_waited { 0 } else { waited.due };
        if self.wait_until(due).await == Flow::Abandoned {
            return Ok(Flow::Abandoned);
        }
        self.call_all(calls, BorrowedRecord::Alone(&record), waited.attempts).await
    }

    /// Takes a record through these handlers. `before`: how often they were called before it waited in a retry topic.
    async fn call_all(
        &mut self,
        calls: &mut [Box<dyn Calls>],
        record: BorrowedRecord<'_>,
        before: u32,
    ) -> Result<Flow, Error> {
        for handler in calls {
            let outcome = self.call(&mut **handler, record, before.saturating_add(1)).await;
            if let Some(flow) = self.after(&mut **handler, outcome, record, before).await? {
                return Ok(flow);
            }
        }
        Ok(Flow::Handled)
    }

    /// Takes a record on from this handler, whose call has begun.
    async fn go_on(
        &mut self,
        calls: &mut [Box<dyn Calls>],
        record: BorrowedRecord<'_>,
        index: usize,
        begun: Begun,
    ) -> Result<Flow, Error> {
        let Some((handler, rest)) = calls.get_mut(index..).and_then(<[_]>::split_first_mut) else {
            return Ok(Flow::Handled);
        };
        let outcome = self.end(&mut **handler, begun).await;
        match self.after(&mut **handler, outcome, record, 0).await? {
            None => self.call_all(rest, record, 0).await,
            Some(flow) => Ok(flow),
        }
    }

    /// Acts on the outcome of a handler call. `None` if the handler has taken the record in the end; else nothing more is done with it.
    async fn after(
        &mut self,
        handler: &mut dyn Calls,
        outcome: Result<(), Failure>,
        record: BorrowedRecord<'_>,
        before: u32,
    ) -> Result<Option<Flow>, Error> {
        match outcome {
            Ok(()) => Ok(None),
            Err(failure) => Box::pin(self.after_failure(handler, failure, record.to_record(), before)).await,
        }
    }

    /// Calls a handler again that has failed, or deals with the record for good.
    async fn after_failure(
        &mut self,
        handler: &mut dyn Calls,
        mut failure: Failure,
        record: ConsumerRecord,
        before: u32,
    ) -> Result<Option<Flow>, Error> {
        self.tell();
        let mut attempt = 1;
        loop {
            if self.is_given_up(&failure) {
                return Ok(Some(Flow::Abandoned));
            }
            self.context.counters.failed();
            let decision = self.decide(&failure, attempt);
            let error = failure.into_error(&record.topic, record.partition, record.offset);
            let calls = before.saturating_add(attempt);
            let Decision::RetryAfter(pause) = decision else {
                return self.deal(decision, &record, calls, error).await.map(Some);
            };
            tracing::warn!(attempt = calls, ?pause, %error, "the handler is called again after a pause");
            if self.pause(pause).await == Flow::Abandoned {
                return Ok(Some(Flow::Abandoned));
            }
            attempt += 1;
            self.context.counters.retried();
            match self.call(handler, BorrowedRecord::Alone(&record), before.saturating_add(attempt)).await {
                Ok(()) => return Ok(None),
                Err(again) => failure = again,
            }
        }
    }
}

/// One call with a record.
#[inline]
fn process(record: BorrowedRecord<'_>, attempt: u32) -> HandlerCall {
    let value = record.value();
    spans::process(value.topic, (value.partition, value.offset), attempt, None, |name| record.header(name))
}

/// What a handler that failed has left behind is dropped.
fn cleared(handler: &mut dyn Calls, outcome: Result<(), Failure>) -> Result<(), Failure> {
    if outcome.is_err() && catch_unwind(AssertUnwindSafe(|| handler.clear())).is_err() {
        tracing::error!("what a handler that failed has left behind panicked when it was dropped");
    }
    outcome
}

/// The offsets of these loads, in order.
fn offsets(loads: &VecDeque<Chunk>) -> impl Iterator<Item = i64> {
    let mut all = Vec::new();
    for load in loads {
        load.offsets(&mut |offset| all.push(offset));
    }
    all.into_iter()
}
