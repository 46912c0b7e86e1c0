//! One connection to one broker: [`Connection::dial`] makes it, [`Connection::call`] asks and waits, with one deadline.
//!
//! It owns the socket, TLS, SASL (KIP-43, KIP-152, KIP-368) and the negotiated versions (KIP-35, KIP-511). It never
//! retries a call, never chooses a broker and knows nothing of topics. Requests leave in the order of their first polls
//! ([`order`]); while a broker throttles the client (KIP-219), nothing is sent to it ([`throttle`]).

pub(crate) mod api;
mod dial;
mod faults;
mod fetch_memory;
mod notices;
mod order;
mod sasl;
mod stream;
mod throttle;
mod tls;
pub(crate) mod transport;

use std::{
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;

use self::fetch_memory::Slot;
#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) use self::sasl::fuzz as fuzz_scram;
#[cfg(all(feature = "tls", any(test, feature = "unstable-fuzzing")))]
pub(crate) use self::tls::fuzz as fuzz_pem;
use self::{
    api::{Answer, Api, Channel, ChannelError, Outgoing, Row},
    notices::{Fault, Notices},
    order::{Asking, Order},
    throttle::ThrottleChange,
};
pub(crate) use self::{
    dial::{Running, is_said_for_all},
    faults::Faults,
    fetch_memory::KeptMemory,
    tls::Tls,
};
use crate::{
    config::settings::Address,
    driver::AbortOnDrop,
    error::{Error, ErrorKind, Result},
    mutex::Mutex,
    sorted::Map,
    time::{Instant, now},
};

/// A connection to a broker: authenticated, its versions known. Shared behind an `Arc`; many calls may be in flight.
pub(crate) struct Connection {
    channel: Channel,
    notices: Arc<Notices>,
    order: Order,
    address: Address,
    /// The cluster's finalized features (KIP-584) and their levels.
    features: Map<String, i16>,
    pauses: Arc<ThrottleTotals>,
    request_timeout: Duration,
    /// The connection does not use SASL, which may be why the broker closes it.
    without_sasl: bool,
    reauthenticate_by: Option<Instant>,
    /// No further call may use this connection: it was lost, or a call went unanswered.
    spent: AtomicBool,
    /// No further call may use this connection: it is replaced, and closed when its last call has ended.
    retired: AtomicBool,
    /// Some call got an answer.
    answered: AtomicBool,
    in_flight: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// Since when no answer came at all, although one was waited for.
    silent_since: Mutex<Option<Begun>>,
    _watch: AbortOnDrop<()>,
}

/// The state of the connection when a call began.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    /// The pauses that were over.
    paused: Duration,
    /// How many answers had come.
    heard: u64,
}

/// Notices the end of the runtime in which answers are read, which may be another than the callers'. To be called where the
/// connection is made, which keeps what this returns.
fn watch_runtime(notices: &Arc<Notices>) -> AbortOnDrop<()> {
    struct Guard(Weak<Notices>);
    impl Drop for Guard {
        fn drop(&mut self) {
            if let Some(notices) = self.0.upgrade() {
                notices.orphan();
            }
        }
    }
    let guard = Guard(Arc::downgrade(notices));
    #[expect(
        clippy::disallowed_methods,
        reason = "it does nothing, and ends with its runtime or its connection"
    )]
    AbortOnDrop(tokio::spawn(async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    }))
}

/// How often and for how long brokers held this client back, over all its connections.
#[derive(Debug, Default)]
pub(crate) struct ThrottleTotals {
    /// Answers that asked for a pause.
    answers: AtomicU64,
    paused_ms: AtomicU64,
}

impl ThrottleTotals {
    pub(crate) fn so_far(&self) -> (u64, Duration) {
        let paused = Duration::from_millis(self.paused_ms.load(Ordering::Relaxed));
        (self.answers.load(Ordering::Relaxed), paused)
    }
}

/// An answer that is here and not yet read.
pub(crate) struct Unread {
    answer: Answer,
    /// What the stream has read of it past the messenger.
    whole: Option<Bytes>,
}

impl Connection {
    /// Sends a request in the highest version both sides speak, and waits for its answer until `deadline`.
    ///
    /// The first poll writes the request, or takes its place behind those that were polled before: calls that are polled
    /// once each, in order, cross the wire in that order. While the broker wants to be left alone nothing is written, and a
    /// deadline that leaves the whole request time-out does not count that pause.
    ///
    /// # Errors
    /// `Timeout` at the deadline, `Disconnected` when the connection is lost before the answer, `Unsupported` when the
    /// broker does not offer the API, `InvalidArgument` when the negotiated version cannot express the request,
    /// `Protocol` when the answer cannot be read. [`Error::is_unsent`] where nothing of the request was written.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the connection usable: a request half written is finished in the background, its
    /// answer, told apart by its correlation id, is dropped. The broker may still act on the request.
    pub(crate) fn call<R: Api>(
        &self,
        request: R,
        deadline: Instant,
    ) -> impl Future<Output = Result<R::Response>> + Send {
        self.call_up_to(i16::MAX, request, deadline)
    }

    /// As [`call`](Self::call), in version `max` at most: for a request that means something else in higher ones.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub(crate) fn call_up_to<R: Api>(
        &self,
        max: i16,
        request: R,
        deadline: Instant,
    ) -> impl Future<Output = Result<R::Response>> + Send {
        // The request is put on the heap first, or the future would hold it: allocators are slow above some 1,000 bytes.
        self.ask(Outgoing::up_to(max, request), deadline).map(|answer| self.read::<R>(answer?))
    }

    /// Reads the answer that [`ask`](Self::ask) has brought, and takes note of the pause that the broker asks for in it.
    pub(crate) fn read<R: Api>(&self, Unread { answer, whole }: Unread) -> Result<R::Response> {
        let answer = answer.decode::<R>(whole);
        let answer = answer.map_err(|error| self.call_error(Row::of::<R>(), error))?;
        self.handle_throttle(R::NAME, R::throttle_time_ms(&answer));
        Ok(answer)
    }

    /// The part of [`call_up_to`](Self::call_up_to) that is the same for every API, and so compiled once: waits for the turn of
    /// a request, and then for its answer.
    pub(crate) async fn ask(&self, request: Outgoing, deadline: Instant) -> Result<Unread> {
        let api = request.api;
        let slot = request.is_read_whole().then(Arc::<Slot>::default);
        let request = pin!(self.channel.send(request));
        let begun = self.begin();
        let _in_flight = self.enter(api, begun.at)?;
        let mut asking = Asking { turn: self.order.turn(&self.notices).into_slot(slot.clone()), request };
        match self.wait(api, begun, deadline, &mut asking).await {
            Ok(answer) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(Unread { answer, whole: slot.and_then(|slot| slot.lock().take()) })
            }
            Err(error) if asking.turn.is_unsent() => Err(error.with_unsent()),
            Err(error) => Err(error),
        }
    }

    /// For how long the broker has wanted to be left alone until now (KIP-219).
    pub(crate) fn paused_so_far(&self) -> Duration {
        self.order.paused_before()
    }

    /// Sends a request that the broker does not answer: a Produce request with `acks=0`, in version `max` at most. Waits until
    /// it is written.
    ///
    /// # Errors
    /// As [`call`](Self::call), but for those of an answer.
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub(crate) async fn send_unanswered<R: Api>(
        &self,
        max: i16,
        request: R,
        deadline: Instant,
    ) -> Result<()> {
        let (api, begun) = (Row::of::<R>(), self.begin());
        let _in_flight = self.enter(api, begun.at)?;
        let mut request = pin!(self.channel.send(Outgoing::up_to(max, request)));
        let mut turn = self.order.turn(&self.notices);
        let written = std::future::poll_fn(|cx| match turn.poll_unanswered(cx, request.as_mut()) {
            // The answer that is made up for the messenger cannot be read, and needs not.
            Poll::Ready(Ok(_) | Err(ChannelError::Decode(_))) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if turn.has_left() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        let sent = self.wait(api, begun, deadline, written).await;
        sent.map_err(|error| if turn.is_unsent() { error.with_unsent() } else { error })
    }

    /// Waits for what is asked until the deadline. If that leaves the whole request time-out, it is extended by the pauses that
    /// the broker asks for meanwhile.
    async fn wait<T>(
        &self,
        api: &Row,
        begun: Begun,
        deadline: Instant,
        mut asked: impl Future<Output = Result<T, ChannelError>> + Unpin,
    ) -> Result<T> {
        // A tenth less is enough, for callers that compute the deadline a little earlier.
        let patient =
            deadline.saturating_duration_since(begun.at) + self.request_timeout / 10 >= self.request_timeout;
        let mut until = deadline;
        loop {
            if let Ok(done) = tokio::time::timeout_at(until, &mut asked).await {
                return done.map_err(|error| self.call_error(api, error));
            }
            let later = deadline + self.order.paused_in_all().saturating_sub(begun.paused);
            if !patient || later <= until {
                return Err(self.timed_out(api, begun, patient));
            }
            until = later;
        }
    }

    fn begin(&self) -> Begun {
        Begun { at: now(), paused: self.order.paused_before(), heard: self.notices.heard.get() }
    }

    /// Begins a call, unless the connection is of no use.
    fn enter(&self, api: &Row, started: Instant) -> Result<InFlight<'_>> {
        // A peer that reads nothing for that long is taken for dead, whatever the deadlines of the calls are.
        if self.notices.stalled_since().is_some_and(|since| since + self.request_timeout <= started) {
            self.end();
        }
        if self.is_lost() {
            return Err(self.disconnected(api, "the connection is closed").with_unsent());
        }
        Ok(InFlight::enter(self))
    }

    fn handle_throttle(&self, api: &'static str, ms: i32) {
        let (grown, told) = self.order.handle_throttle(ms);
        if ms > 0 {
            self.pauses.answers.fetch_add(1, Ordering::Relaxed);
            let grown = u64::try_from(grown.as_millis()).unwrap_or(u64::MAX);
            self.pauses.paused_ms.fetch_add(grown, Ordering::Relaxed);
        }
        match told {
            None => {}
            Some(ThrottleChange::Begins { pause }) => tracing::warn!(
                address = %self.address,
                api,
                pause_ms = pause.as_millis() as u64,
                "the broker holds this client back, because it is over a quota; see to the quotas of its user and client.id"
            ),
            Some(ThrottleChange::Ends { answers, paused }) => tracing::info!(
                address = %self.address,
                answers,
                paused_ms = paused.as_millis() as u64,
                "the broker does not hold this client back any more"
            ),
        }
    }

    /// Until when the broker wants nothing sent (KIP-219); `None` if it is free.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.order.held_until()
    }

    /// Has the pauses of this connection counted there.
    pub(crate) fn with_pauses(mut self, pauses: Arc<ThrottleTotals>) -> Self {
        self.pauses = pauses;
        self
    }

    /// The level of a feature of the cluster (KIP-584), such as `transaction.version`; 0 where it is not known.
    pub(crate) fn finalized_feature(&self, name: &str) -> i16 {
        self.features.get(name).copied().unwrap_or(0)
    }

    /// Closes the connection at once, with whatever waits to be written.
    pub(crate) fn end(&self) {
        self.spent.store(true, Ordering::Release);
        self.notices.end();
    }

    /// No further call uses this connection; it is closed when the last one in flight has its answer.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.end_if_done();
    }

    fn end_if_done(&self) {
        if self.in_flight() == 0 && (self.is_closed() || self.retired.load(Ordering::Acquire)) {
            self.end();
        }
    }

    /// The version in which requests of this API are sent; `None` where the broker lacks the API.
    pub(crate) fn version<R: Api>(&self) -> Option<i16> {
        Row::of::<R>().negotiate(&self.channel.versions)
    }

    /// Whether to dial a new one: the connection is lost, a request on it went unanswered for the whole request timeout,
    /// it was retired, or its session ends soon. Calls still in flight get their answers.
    pub(crate) fn is_closed(&self) -> bool {
        // KIP-368: the session is renewed by another connection, before the broker ends it.
        self.is_lost()
            || self.retired.load(Ordering::Acquire)
            || self.reauthenticate_by.is_some_and(|end| end <= now())
    }

    /// Whether no more answers will come.
    pub(crate) fn is_lost(&self) -> bool {
        self.spent.load(Ordering::Acquire) || self.notices.is_lost()
    }

    /// When the last call ended, or the connection was made; meaningful while nothing is in flight.
    pub(crate) fn idle_since(&self) -> Instant {
        *self.idle_since.lock()
    }

    /// How many calls are being waited for.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// An error of a call of this API.
    fn of_call(&self, api: &Row, error: Error) -> Error {
        error.with_api(api.name).with_address(self.address.to_string())
    }

    fn call_error(&self, api: &Row, error: ChannelError) -> Error {
        let error = match error {
            ChannelError::NoVersion => return self.unsupported(api),
            ChannelError::Encode(text) => {
                Error::new(ErrorKind::InvalidArgument, format!("the request cannot be written: {text}"))
            }
            ChannelError::Decode(text) => Error::protocol(format!("the answer cannot be read: {text}")),
            ChannelError::TooLarge { actual } => {
                self.end();
                too_large(actual, None)
            }
            ChannelError::Lost(text) => {
                self.end();
                match self.notices.fault() {
                    Some(fault) => fault_error(fault, ErrorKind::Disconnected),
                    None => return self.disconnected(api, &text),
                }
            }
        };
        self.of_call(api, error)
    }

    fn unsupported(&self, api: &Row) -> Error {
        let offered = match self.channel.versions.get(&api.key) {
            None => "the broker does not offer it at all".to_owned(),
            Some((low, high)) => format!("the broker offers versions {low} to {high}"),
        };
        let text = format!("this client speaks {} versions {} to {}, {offered}", api.name, api.min, api.max);
        self.of_call(api, Error::new(ErrorKind::Unsupported, text))
    }

    fn disconnected(&self, api: &Row, text: &str) -> Error {
        let error = Error::new(ErrorKind::Disconnected, format!("the connection was lost: {text}"));
        let error = self.of_call(api, error);
        // A SASL listener answers ApiVersions to anybody and closes on what follows.
        if self.without_sasl && !self.answered.load(Ordering::Relaxed) {
            return error.with_hint(
                "the broker answered ApiVersions and closed on the first other request, as a listener with SASL does; if \
                 it is one, set security.protocol to SASL_PLAINTEXT or SASL_SSL, with sasl.mechanism, user and password",
            );
        }
        error
    }

    /// Whether no answer has come to any call for the whole request time-out, all of which some call was waiting.
    fn is_silent(&self, begun: Begun) -> bool {
        let current = self.begin();
        let mut silence = self.silent_since.lock();
        let since = match *silence {
            Some(since) if since.heard == current.heard => since,
            _ if begun.heard == current.heard => begun,
            // An answer ends the silence, even one that was too late for its call.
            _ => current,
        };
        *silence = Some(since);
        let paused = self.order.paused_in_all().saturating_sub(since.paused);
        current.at - since.at >= self.request_timeout + paused
    }

    fn timed_out(&self, api: &Row, begun: Begun, patient: bool) -> Error {
        let waited = now() - begun.at;
        // A peer that leaves a request unanswered for the whole request time-out is taken for dead, as in Java. One call
        // with a shorter deadline proves nothing. Several in a row do: answers come in order, so behind one that never
        // comes all of them would wait in vain.
        if self.is_silent(begun) || patient {
            self.spent.store(true, Ordering::Release);
            if self.notices.stalled_since().is_some() {
                // The peer does not even read, and what waits to be written would be kept for ever.
                self.end();
            }
        }
        let error = Error::new(ErrorKind::Timeout, format!("no answer within {} ms", waited.as_millis()));
        self.of_call(api, error).with_hint(match self.held_until() {
            Some(_) => "the broker holds this client back, because it is over a quota: see to the quotas",
            None => "if the broker is only slow, raise request.timeout.ms",
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A request that was dropped half written stays in the background, with its bytes, as long as the socket is open.
        self.notices.end();
    }
}

/// Whether no other broker would do better: the request cannot be written, none of this version of Kafka offers it, or its answer is
/// larger than what this client takes.
pub(crate) fn is_for_the_client(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::InvalidArgument => true,
        // KRaft controllers tell nobody about the cluster, and may stand among the bootstrap addresses.
        ErrorKind::Unsupported => error.api() != Some("Metadata"),
        ErrorKind::Protocol => error.is_permanent(),
        _ => false,
    }
}

fn too_large(actual: usize, limit: Option<usize>) -> Error {
    let limit = limit.map_or_else(|| "the limit".to_owned(), |limit| format!("the limit of {limit}"));
    Error::protocol(format!("the broker's answer has {actual} bytes, more than {limit}"))
        .with_hint("raise receive.message.max.bytes, or lower fetch.max.bytes")
        .with_permanent()
}

/// The error for bytes of the peer that ended the connection, with the setting that may be wrong.
fn fault_error(fault: Fault, kind: ErrorKind) -> Error {
    const STRANGER: &str = "check host and port in bootstrap.servers and security.protocol; if it is a broker, raise \
                            receive.message.max.bytes";
    let permanent = |text: String, hint| Error::new(kind, text).with_hint(hint).with_permanent();
    match fault {
        Fault::Tls => permanent(
            "the listener speaks TLS, and this client does not".to_owned(),
            "set security.protocol to SSL, or to SASL_SSL where the listener wants a password too",
        ),
        Fault::Http => permanent(
            "an HTTP server answered, not a Kafka broker".to_owned(),
            "check host and port in bootstrap.servers (9092 is usual)",
        ),
        Fault::Stranger(bytes) => permanent(
            format!("what answered does not speak Kafka: it sent {:?}", bytes.escape_ascii().to_string()),
            STRANGER,
        ),
        Fault::TooLarge { actual, limit } => too_large(actual, Some(limit)),
        Fault::Length(length) => {
            Error::new(kind, format!("the broker announced an answer of {length} bytes"))
                .with_hint("see to what is between this client and the broker")
        }
        Fault::Unasked(id) => Error::new(
            kind,
            format!("the broker answered a request that was not asked (correlation id {id})"),
        )
        .with_hint("see to what is between this client and the broker"),
    }
}

/// Counts a call while it is waited for, also when its future is dropped.
struct InFlight<'a>(&'a Connection);

impl<'a> InFlight<'a> {
    fn enter(connection: &'a Connection) -> Self {
        connection.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(connection)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.end_if_done();
    }
}

#[cfg(test)]
mod tests;
