//! One connection to one broker: [`Connection::dial`] makes it, [`Connection::call`] asks and waits, with one deadline.
//!
//! It owns the socket, TLS, SASL (KIP-43, KIP-152, KIP-368) and the negotiated versions (KIP-35, KIP-511). It never
//! retries a call, never chooses a broker and knows nothing of topics.

pub(crate) mod api;
mod dial;
mod sasl;
mod stream;
mod tls;
pub(crate) mod transport;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub(crate) use self::tls::Tls;
use self::{
    api::{Api, Channel, ChannelError, Versions},
    stream::{Notices, Stranger},
};
use crate::{
    config::settings::{Address, ClientSettings},
    error::{Error, ErrorKind, Result, Stage},
    time::{Instant, now},
};

/// A connection to a broker: authenticated, its versions known. Shared behind an `Arc`; many calls may be in flight.
pub(crate) struct Connection {
    channel: Channel,
    notices: Arc<Notices>,
    address: Address,
    versions: Versions,
    request_timeout: Duration,
    max_answer: usize,
    /// SASL was not asked for: the broker may close the connection because it wants it.
    without_sasl: bool,
    reauthenticate_by: Option<Instant>,
    /// No further call may use this connection.
    spent: AtomicBool,
    /// Some call got an answer.
    answered: AtomicBool,
    in_flight: AtomicUsize,
    idle_since: Mutex<Instant>,
}

impl Connection {
    /// Connects, authenticates and learns the broker's versions, all before `deadline`.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] with the stage reached, every cause, and the setting to change.
    ///
    /// # Cancel safety
    /// Dropping the future closes whatever was opened.
    pub(crate) async fn dial(
        address: &Address,
        settings: &ClientSettings,
        tls: Option<&Tls>,
        deadline: Instant,
    ) -> Result<Self> {
        dial::dial(address, settings, tls, deadline).await
    }

    /// Sends a request in the highest version both sides speak, and waits for its answer until `deadline`.
    ///
    /// The first poll writes the request, or takes its place in the first-in-first-out queue of writers: calls that are
    /// polled once each, in order, cross the wire in that order.
    ///
    /// The messenger below waits for an answer to everything, and a broker sends none to a Produce request with
    /// `acks=0`: that one is sent with `acks=1`, polled once, and its future kept aside; the caller need not wait.
    ///
    /// # Errors
    /// `Timeout` at the deadline, `Disconnected` when the connection is lost before the answer, `Unsupported` when the
    /// broker does not offer the API, `InvalidArgument` when the negotiated version cannot express the request,
    /// `Protocol` when the answer cannot be read.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the connection usable: a request half written is finished in the background, its
    /// answer, told apart by its correlation id, is dropped. The broker may still act on the request.
    pub(crate) async fn call<R: Api>(&self, request: R, deadline: Instant) -> Result<R::Response> {
        if self.is_lost() {
            return Err(self.disconnected::<R>("the connection is closed"));
        }
        let started = now();
        let _in_flight = InFlight::enter(self);
        match tokio::time::timeout_at(deadline, self.channel.request(request)).await {
            Ok(Ok(answer)) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(Err(error)) => Err(self.call_error::<R>(error)),
            Err(_) => Err(self.timed_out::<R>(now() - started)),
        }
    }

    /// The version in which requests of this API are sent; `None` where the broker lacks the API.
    pub(crate) fn version<R: Api>(&self) -> Option<i16> {
        api::negotiate::<R>(&self.versions)
    }

    /// Whether to dial a new one: the connection is lost, a request on it went unanswered for the whole request timeout,
    /// or its session ends soon. Calls still in flight get their answers.
    pub(crate) fn is_closed(&self) -> bool {
        // KIP-368: the session is renewed by another connection, before the broker ends it.
        self.is_lost() || self.reauthenticate_by.is_some_and(|end| end <= now())
    }

    fn is_lost(&self) -> bool {
        self.spent.load(Ordering::Acquire) || self.notices.is_lost()
    }

    /// When the last call ended, or the connection was made; meaningful while nothing is in flight.
    pub(crate) fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls are being waited for.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn call_error<R: Api>(&self, error: ChannelError) -> Error {
        match error {
            ChannelError::NoVersion => self.unsupported::<R>(),
            ChannelError::Encode(text) => Error::new(
                ErrorKind::InvalidArgument,
                format!("the request cannot be written in version {:?}: {text}", self.version::<R>()),
            )
            .with_api(R::NAME)
            .with_address(self.address.to_string()),
            ChannelError::Decode(text) => Error::protocol(format!("the answer cannot be read: {text}"))
                .with_api(R::NAME)
                .with_address(self.address.to_string()),
            ChannelError::TooLarge { actual } => {
                self.spent.store(true, Ordering::Release);
                too_large(actual, self.max_answer).with_api(R::NAME).with_address(self.address.to_string())
            }
            ChannelError::Lost(text) => {
                self.spent.store(true, Ordering::Release);
                self.disconnected::<R>(&text)
            }
        }
    }

    fn unsupported<R: Api>(&self) -> Error {
        let offered = match self.versions.get(&R::KEY) {
            None => "the broker does not offer it at all".to_owned(),
            Some((low, high)) => format!("the broker offers versions {low} to {high}"),
        };
        let text = format!("this client speaks {} versions {} to {}, {offered}", R::NAME, R::MIN, R::MAX);
        Error::new(ErrorKind::Unsupported, text).with_api(R::NAME).with_address(self.address.to_string())
    }

    fn disconnected<R: Api>(&self, text: &str) -> Error {
        let error = Error::new(ErrorKind::Disconnected, format!("the connection was lost: {text}"))
            .with_api(R::NAME)
            .with_address(self.address.to_string());
        // A SASL listener answers ApiVersions to anybody and closes on what follows.
        if self.without_sasl && !self.answered.load(Ordering::Relaxed) {
            return error.with_hint(
                "the broker answered ApiVersions and closed on the first other request, as a listener with SASL does; if \
                 it is one, set security.protocol to SASL_PLAINTEXT or SASL_SSL, with sasl.mechanism, user and password",
            );
        }
        error
    }

    fn timed_out<R: Api>(&self, waited: Duration) -> Error {
        // A peer that leaves a request unanswered for that long is taken for dead, as Java does. A call with a shorter
        // deadline of its own proves nothing. The tenth is for callers who compute the deadline before they call.
        if waited + self.request_timeout / 10 >= self.request_timeout {
            self.spent.store(true, Ordering::Release);
        }
        Error::new(ErrorKind::Timeout, format!("no answer within {} ms", waited.as_millis()))
            .with_api(R::NAME)
            .with_address(self.address.to_string())
            .with_hint("if the broker is only slow, raise request.timeout.ms")
    }
}

fn too_large(actual: usize, limit: usize) -> Error {
    Error::protocol(format!("the broker's answer has {actual} bytes, more than the limit of {limit}"))
        .with_hint("raise receive.message.max.bytes, or lower fetch.max.bytes")
}

/// What a peer that is not a Kafka broker, or not on this listener, means for the settings.
fn stranger_error(stranger: Stranger, stage: Stage) -> Error {
    let (text, hint) = match stranger {
        Stranger::Tls => (
            "the listener speaks TLS, and this client does not".to_owned(),
            "set security.protocol to SSL, or to SASL_SSL where the listener wants a password too",
        ),
        Stranger::Http => (
            "an HTTP server answered, not a Kafka broker".to_owned(),
            "check host and port in bootstrap.servers (9092 is usual)",
        ),
        Stranger::Other(bytes) => (
            format!("what answered does not speak Kafka: it sent {:?}", bytes.escape_ascii().to_string()),
            "check host and port in bootstrap.servers and security.protocol; if it is a broker, raise \
             receive.message.max.bytes",
        ),
    };
    Error::new(ErrorKind::Connect(stage), text).with_hint(hint)
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
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
