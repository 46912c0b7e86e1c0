//! One run of a lane: takes its records through their handlers one after the other, and does what the
//! [`ErrorPolicy`](crate::ErrorPolicy) says after a failure. Knows nothing of polls and commits: it tells the ledger what is
//! done, before it waits for anything and when it ends.

mod batch;
mod each;

use std::{
    any::Any,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt as _;

use self::batch::Item;
use super::{SUBJECT, load::Chunk};
use crate::{
    consumer::acknowledge::Life,
    error::Error,
    facade::{
        LogSubject,
        dispatch::lanes::{LaneId, Run},
        failure::Failure,
        letters, log,
        message::CancellationToken,
        outbox::Outbox,
        policy::Decision,
        routes::{Handlers, Route},
    },
    mutex::Mutex,
    record::{ConsumerRecord, RecordMetadata, TopicPartition},
    telemetry::ConsumerCounters,
    time::{self, Environment, Rng},
};

const PLACE: LogSubject = LogSubject { controller: "dtkafka::Consumer::handler", subject: SUBJECT };
/// How long a letter that is on its way may still take once the consumer stops.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// After how long a warning is logged that a letter is still not acknowledged.
const SILENCE: Duration = Duration::from_secs(5);
/// The first pause before a letter is written again, which doubles up to the longest.
pub(super) const LETTER_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_LETTER_PAUSE: Duration = Duration::from_secs(30);

/// The pause that follows this one.
pub(super) fn longer_letter_pause(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(LONGEST_LETTER_PAUSE)
}

/// Whether one thread does everything here: on a current-thread runtime, and on a multi-threaded one with a single CPU.
pub(super) fn is_alone() -> bool {
    tokio::runtime::Handle::try_current().is_ok_and(|handle| handle.metrics().num_workers() == 1)
}

/// How many records may be done before the ledger is told, because each telling takes its lock.
const TELL: usize = 32;

/// The ledger that lanes report to: the client, or a stand-in in tests and benchmarks.
pub(super) trait Ledger: Send + Sync {
    /// These records of one life are done. False if the life is over.
    fn done(&self, partition: &TopicPartition, life: Life, offsets: &[i64]) -> bool;
    /// These come again: nobody works on them any more.
    fn hand_back(&self, partition: &TopicPartition, life: Life, offsets: &[i64]);
    /// Whether this life goes on.
    fn is_live(&self, partition: &TopicPartition, life: Life) -> bool;
    /// A record was put into this retry topic, and is to be read there.
    fn expect_topic(&self, topic: &Arc<str>);
}

/// What all runs share.
pub(super) struct RunContext {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) outbox: Outbox,
    pub(super) counters: Arc<ConsumerCounters>,
    /// A letter that fails for a passing reason is tried again for as long as it takes, because no caller waits (`run`,
    /// not `consume`).
    pub(super) persists: AtomicBool,
    pub(super) rng: Mutex<Rng>,
    /// See [`is_alone`].
    pub(super) is_alone: bool,
    pub(super) environment: Environment,
    /// The group whose work this is.
    pub(super) group: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Ended {
    pub(super) lane: LaneId,
    pub(super) partition: TopicPartition,
    pub(super) life: Life,
    /// Records that are done.
    pub(super) handled: usize,
    pub(super) outcome: Result<Flow, Error>,
}

/// How the run goes on after a record, and how it ends, if not with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Handled,
    /// Told to give up; what is left comes again, here or at another member.
    Abandoned,
}

struct Lane {
    context: Arc<RunContext>,
    route: Arc<Route>,
    partition: TopicPartition,
    life: Life,
    token: CancellationToken,
    /// Done, and not yet told.
    done: Vec<i64>,
    handled: usize,
    /// The ledger says that the life is over.
    is_over: bool,
    /// Time spent in handlers that are timed by themselves, in pauses, and while other tasks ran.
    waited: Duration,
    /// Calls of handlers that did not wait.
    prompt: u32,
}

/// Runs a lane to its end.
pub(super) async fn run(
    context: Arc<RunContext>,
    route: Arc<Route>,
    run: Run<Chunk, Life>,
    token: CancellationToken,
) -> Ended {
    let Run { lane: id, partition, life, loads } = run;
    let begun = time::now();
    let mut lane = Lane {
        context,
        route,
        partition,
        life,
        token: token.clone(),
        done: Vec::new(),
        handled: 0,
        is_over: false,
        waited: Duration::ZERO,
        prompt: 0,
    };
    let flow = token.scope(lane.run(loads)).await;
    lane.tell();
    lane.count_prompt(begun);
    let outcome = flow.map(|flow| if lane.is_over { Flow::Abandoned } else { flow });
    Ended { lane: id, partition: lane.partition, life, handled: lane.handled, outcome }
}

impl Lane {
    async fn run(&mut self, loads: Vec<Chunk>) -> Result<Flow, Error> {
        let route = Arc::clone(&self.route);
        match &route.handlers {
            Handlers::None => {
                for load in loads {
                    load.offsets(&mut |offset| self.done.push(offset));
                }
                Ok(Flow::Handled)
            }
            Handlers::Each(handlers) => {
                let calls = handlers.iter().map(|make| make()).collect();
                self.each(calls, loads.into()).await
            }
            Handlers::Batch(size, call) => {
                let mut items: Vec<_> = loads.into_iter().flat_map(Item::all_of).collect();
                let all: Vec<i64> = items.iter().map(|item| item.offset).collect();
                while !items.is_empty() {
                    let rest = items.split_off(items.len().min(size.records));
                    let flow = Box::pin(self.batch(call, items)).await;
                    if !matches!(flow, Ok(Flow::Handled)) {
                        // The ledger ignores those that are done, which are not out any more.
                        self.tell();
                        self.give_back(all.into_iter());
                        return flow;
                    }
                    items = rest;
                }
                Ok(Flow::Handled)
            }
        }
    }

    /// These are not at work any more: a revocation need not wait for them.
    fn give_back(&mut self, offsets: impl Iterator<Item = i64>) {
        self.tell();
        let offsets: Vec<_> = offsets.collect();
        self.context.ledger.hand_back(&self.partition, self.life, &offsets);
    }

    fn is_ending(&self) -> bool {
        self.is_over || self.token.is_cancelled()
    }

    /// Whether the failure does not count. A handler that was told to give up can do so only by an error, which says
    /// nothing of the record; it comes again. A record of a life that is over comes again as well, or is in no log any
    /// more.
    fn is_given_up(&mut self, failure: &Failure) -> bool {
        self.is_over |= !self.context.ledger.is_live(&self.partition, self.life);
        let may_be_told = !matches!(failure, Failure::Unreadable(_) | Failure::Corrupt(_));
        let is_given_up = self.is_over || (may_be_told && self.token.is_cancelled());
        if is_given_up {
            tracing::debug!(partition = %self.partition, "a handler gave up as it was told to; its record comes again");
        }
        is_given_up
    }

    /// Tells the ledger what is done.
    fn tell(&mut self) {
        if !self.done.is_empty() {
            if self.context.ledger.done(&self.partition, self.life, &self.done) {
                self.handled += self.done.len();
            } else {
                self.is_over = true;
            }
            self.context.counters.handled(self.done.len());
            self.done.clear();
        }
    }

    fn decide(&self, failure: &Failure, attempt: u32) -> Decision {
        let random = self.context.rng.lock().next_u64();
        self.route.policy.decide(failure, attempt, self.route.level, random)
    }

    /// Deals with a record for good: it is handled afterwards, or the run ends.
    async fn deal(
        &mut self,
        decision: Decision,
        record: &ConsumerRecord,
        attempts: u32,
        error: Error,
    ) -> Result<Flow, Error> {
        let route = Arc::clone(&self.route);
        match decision {
            Decision::Skip => {
                log(PLACE, &error);
                self.context.counters.skipped();
                Ok(Flow::Handled)
            }
            Decision::DeadLetter => {
                let Some(topic) = route.policy.dead_letter_topic(record, &error) else { return Err(error) };
                route.refuse_circle(&self.partition, record, &topic, &error)?;
                let headers = letters::dead_letter_headers(record, attempts, &error);
                let Some(written) = self.send(&topic, record, &headers, &error).await? else {
                    return Ok(Flow::Abandoned);
                };
                tracing::warn!(
                    attempts, %error, dead_letter_topic = %topic, dead_letter_partition = written.0,
                    dead_letter_offset = written.1, "the record was written to the dead letter topic"
                );
                self.context.counters.dead_lettered();
                Ok(Flow::Handled)
            }
            Decision::RetryTopic(level) => {
                let Some((topic, pause)) = route.retry_topics.get(level) else { return Err(error) };
                let due = letters::due(self.context.environment.wall_clock_ms(), *pause);
                let headers = letters::retry_headers(record, attempts, &error, due, &self.context.group);
                if self.send(topic, record, &headers, &error).await?.is_none() {
                    return Ok(Flow::Abandoned);
                }
                self.context.ledger.expect_topic(topic);
                tracing::warn!(attempts, ?pause, %error, retry_topic = %topic, "the record waits in a retry topic");
                self.context.counters.retried();
                Ok(Flow::Handled)
            }
            Decision::Stop | Decision::RetryAfter(_) => Err(error),
        }
    }

    /// Returns partition and offset of the letter once it is acknowledged; `None` if the consumer stops before. While the
    /// consumer [runs](crate::Consumer::run), a passing error holds up only this lane, so that a missing topic does not
    /// have handlers called again.
    async fn send(
        &mut self,
        topic: &Arc<str>,
        record: &ConsumerRecord,
        headers: &[crate::record::Header],
        failure: &Error,
    ) -> Result<Option<(i32, i64)>, Error> {
        self.tell();
        let mut pause = LETTER_PAUSE;
        loop {
            let since = time::now();
            let sent = self.send_once(topic, record, headers, failure).await;
            self.waited += time::now() - since;
            match sent {
                Some(Err(error)) if error.is_retriable() && self.context.persists.load(Relaxed) => {
                    tracing::warn!(?pause, %error, "the record is written again after a pause");
                    if self.pause(pause).await == Flow::Abandoned {
                        return Ok(None);
                    }
                    pause = longer_letter_pause(pause);
                }
                sent => return Ok(sent.transpose()?.map(|metadata| (metadata.partition, metadata.offset))),
            }
        }
    }

    async fn send_once(
        &self,
        topic: &Arc<str>,
        record: &ConsumerRecord,
        headers: &[crate::record::Header],
        failure: &Error,
    ) -> Option<Result<RecordMetadata, Error>> {
        let mut sending = pin!(self.context.outbox.send(topic, record, headers, failure));
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        let mut is_told = false;
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Some(sent),
                () = self.token.cancelled() => return tokio::time::timeout(GRACE, sending).await.ok(),
                () = &mut silence, if !is_told => {
                    is_told = true;
                    let (partition, offset) = (&self.partition, record.offset);
                    tracing::warn!(%topic, %partition, offset, error = %failure, "a record that failed waits to be written to a topic; does the topic exist?");
                }
            }
        }
    }

    /// Waits, unless told to give up.
    async fn pause(&mut self, pause: Duration) -> Flow {
        self.tell();
        self.waited = self.waited.saturating_add(pause);
        tokio::select! {
            biased;
            () = self.token.cancelled() => Flow::Abandoned,
            () = tokio::time::sleep(pause) => Flow::Handled,
        }
    }

    /// Waits until this time (milliseconds since the Unix epoch), which as a rule has passed, since the lane has waited
    /// for it.
    async fn wait_until(&mut self, due: i64) -> Flow {
        let left = self.route.left_to_wait(due, self.context.environment.wall_clock_ms());
        match () {
            () if !left.is_zero() => self.pause(left).await,
            () if self.is_ending() => Flow::Abandoned,
            () => Flow::Handled,
        }
    }

    /// Runs a handler to its end, its panic or its deadline. Before it waits, what was done before is told. `waits`: it
    /// was polled already, by this task, and waits.
    async fn guard<T>(&mut self, running: impl Future<Output = T>, waits: bool) -> Result<T, Failure> {
        let running = AssertUnwindSafe(running).catch_unwind();
        let ended = match self.route.policy.limit() {
            None => self.telling(running, waits).await,
            Some(limit) => {
                let token = self.token.child();
                let running = token.clone().scope(running);
                let ended = tokio::time::timeout(limit, self.telling(running, waits)).await;
                let Ok(ended) = ended else {
                    // A blocking handler runs on, and may look at its token.
                    token.cancel();
                    self.count(limit);
                    return Err(Failure::Deadline(limit));
                };
                ended
            }
        };
        ended.map_err(|panic| Failure::Panic(text_of(&*panic)))
    }

    async fn telling<T>(&mut self, running: impl Future<Output = T>, mut waits: bool) -> T {
        let mut running = pin!(running);
        // A handler that does not wait is not timed by itself: two looks at the clock would cost more than it does.
        let mut waits_since = None;
        let ended = poll_fn(|context| {
            let polled = match std::mem::take(&mut waits) {
                true => Poll::Pending,
                false => running.as_mut().poll(context),
            };
            if polled.is_pending() && waits_since.is_none() {
                waits_since = Some(time::now());
                self.tell();
            }
            polled
        })
        .await;
        match waits_since {
            Some(since) => self.count(time::now() - since),
            None => self.prompt += 1,
        }
        ended
    }

    /// A call that is timed by itself.
    fn count(&mut self, took: Duration) {
        self.waited += took;
        self.context.counters.took(took, 1);
    }

    /// Lets other tasks run, and does not count their time as that of the handlers here.
    async fn yield_now(&mut self) {
        let since = time::now();
        tokio::task::yield_now().await;
        self.waited += time::now() - since;
    }

    /// Handlers that did not wait share the time that is left.
    fn count_prompt(&self, begun: time::Instant) {
        if self.prompt > 0 {
            let left = (time::now() - begun).saturating_sub(self.waited);
            self.context.counters.took(left / self.prompt, u64::from(self.prompt));
        }
    }
}

/// What a panic said.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    letters::bounded(text.or_else(owned).unwrap_or("without a text").to_owned())
}
