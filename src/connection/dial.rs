//! From an address to a connection: transport, TLS, ApiVersions, SASL, one deadline for all, every failure with its stage.
//!
//! Names are resolved on every connect (KIP-302: every answer is tried; RFC 8305: a silent one holds up the next for a
//! moment only; one that is authenticating the client, for a second). Never retries beyond that: pauses and further
//! attempts are the caller's.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Connection,
    api::{self, Api, Channel, ChannelError, Versions, wire},
    fault_error,
    notices::{Limits, Notices},
    order::Order,
    sasl,
    stream::Stream,
    tls::Tls,
    too_large,
    transport::{Target, TransportStream},
    watch_runtime,
};
use crate::{
    config::settings::{Address, ClientSettings},
    error::{Error, ErrorCode, ErrorKind, Result, Stage, code},
    mutex::Mutex,
    race,
    sorted::Map,
    time::{Instant, now},
};

pub(super) const SETUP_HINT: &str = "check that the broker runs and can be reached from here; on a slow network raise \
                          socket.connection.setup.timeout.max.ms";

/// A dial on its way: to what, with what, and until when.
pub(super) struct Dial<'a> {
    pub(super) address: &'a Address,
    pub(super) settings: &'a ClientSettings,
    pub(super) tls: Option<&'a Tls>,
    pub(super) deadline: Instant,
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
        // KIP-601: no attempt lasts longer than the greatest set-up time.
        let deadline = deadline.min(now() + settings.connection_setup_timeout_max);
        let dial = Dial { address, settings, tls, deadline };
        let targets = within(Stage::Dns, deadline, settings.route.targets(address)).await;
        dial.any(&targets.map_err(|error| dial.at(error))?).await
    }
}

impl Dial<'_> {
    /// Connects by the first of these ways that leads to a broker.
    pub(super) async fn any(&self, targets: &[Target]) -> Result<Connection> {
        let open = Running::default();
        // Boxed: a TLS handshake has kilobytes of state, and callers keep this future inside theirs.
        let attempt = |target| Box::pin(self.connect(target, &open));
        let raced = race::run(targets, attempt, is_said_for_all, || open.is_any()).await;
        raced.map_err(|failures| self.at(join_failures(failures)))
    }

    fn at(&self, error: Error) -> Error {
        error.with_address(self.address.to_string())
    }

    async fn connect(&self, target: &Target, open: &Running) -> Result<Connection> {
        let connected = match self.attempt(target, open, wire::ApiVersionsRequest::MAX).await {
            // Some brokers close the connection on a version of ApiVersions they do not know; version 0 is known to all.
            Err(Failure::ClosedOnVersions(_)) => self.attempt(target, open, 0).await,
            connected => connected,
        };
        connected.map_err(|failure| match failure {
            Failure::ClosedOnVersions(text) => closed_on_versions(&text, self.settings),
            Failure::Error(error) => error,
        })
    }

    async fn attempt(&self, target: &Target, open: &Running, version: i16) -> Result<Connection, Failure> {
        let stream = within(Stage::Tcp, self.deadline, target.open(self.address)).await?;
        let _open = open.enter();
        self.set_up(self.secure(stream).await?, version).await
    }

    /// The stream itself, or TLS on top of it.
    async fn secure(&self, stream: Box<dyn TransportStream>) -> Result<Box<dyn TransportStream>> {
        match (&self.settings.tls, self.tls) {
            (None, _) => Ok(stream),
            (Some(_), Some(tls)) => {
                within(Stage::Tls, self.deadline, tls.connect(stream, self.address)).await
            }
            (Some(_), None) => Err(Error::new(ErrorKind::Config, "TLS is asked for and was not prepared")),
        }
    }

    /// Makes a connection of an open stream: ApiVersions, then SASL.
    async fn set_up(&self, io: Box<dyn TransportStream>, version: i16) -> Result<Connection, Failure> {
        let Self { address, settings, deadline, .. } = *self;
        let limits =
            Limits { fetch: settings.receive_message_max_bytes, other: settings.receive_other_max_bytes };
        // It is not known yet who answers.
        let small = limits.other.min(SETUP_MAX_ANSWER);
        let (stream, notices) = Stream::new(
            io,
            Limits { fetch: small, other: small },
            settings.kept.clone(),
            settings.faults.at(address),
        );
        let mut channel =
            Channel::new(stream, limits.fetch.max(limits.other), Arc::clone(&settings.client_id));
        let Offered { versions, features, throttle_ms } =
            ask_versions(&mut channel, &notices, settings, version, deadline).await?;
        channel.versions = versions;
        let mut reauthenticate_by = None;
        if let Some(sasl) = &settings.sasl {
            let _login = settings.logins.enter();
            let lifetime =
                within(Stage::Sasl, deadline, sasl::authenticate(&channel, sasl, &settings.environment))
                    .await?;
            // KIP-368: at a random point, as Java, so that the clients of a cluster do not come back together.
            let percent = 85 + settings.environment.rng().below(11) as u32;
            reauthenticate_by = lifetime.map(|lifetime| now() + lifetime.mul_f64(f64::from(percent) / 100.0));
        }
        *notices.limits.lock() = limits;
        let connection = Connection {
            _watch: watch_runtime(&notices),
            channel,
            notices,
            order: Order::default(),
            address: address.clone(),
            features,
            pauses: Arc::default(),
            request_timeout: settings.request_timeout,
            without_sasl: settings.sasl.is_none(),
            reauthenticate_by,
            spent: false.into(),
            silent_since: Mutex::default(),
            retired: false.into(),
            answered: false.into(),
            in_flight: 0.into(),
            idle_since: Mutex::new(now()),
        };
        // The pause counts from now on: requests sent during it would wait in the socket and be carried out later, even after
        // the client has given up the connection.
        connection.handle_throttle(wire::ApiVersionsRequest::NAME, throttle_ms);
        Ok(connection)
    }
}

/// How many attempts are at one point of the way.
#[derive(Debug, Default)]
pub(crate) struct Running(AtomicUsize);

impl Running {
    pub(crate) fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// One more, until the guard is dropped.
    fn enter(&self) -> impl Drop + '_ {
        struct Entered<'a>(&'a AtomicUsize);
        impl Drop for Entered<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(&self.0)
    }
}

/// Whether a failure at one address holds for all of them. A refused password does, and asking again may lock the
/// account. Something other than a broker, in contrast, may listen at one address only.
pub(crate) fn is_said_for_all(error: &Error) -> bool {
    !error.is_retriable() && matches!(error.kind(), ErrorKind::Connect(Stage::Sasl) | ErrorKind::Config)
}

/// One error for all addresses of a name: the kind and hint of the one that says most, and every cause in its text.
fn join_failures<T: std::fmt::Display>(mut failures: Vec<(T, Error)>) -> Error {
    // Such an error has ended the race.
    let last = failures.pop_if(|(_, error)| is_said_for_all(error));
    if let Some((_, error)) = last {
        return error;
    }
    // If every address that answers fails permanently, a setting is wrong. Addresses where nobody listens say nothing
    // about that.
    let answered = || failures.iter().filter(|(_, error)| error.stage() != Some(Stage::Tcp));
    if answered().all(|(_, error)| !error.is_retriable())
        && let Some((_, error)) = answered().next()
    {
        return error.clone();
    }
    if failures.len() == 1 {
        return failures.remove(0).1;
    }
    let text: Vec<String> = failures.iter().map(|(answer, error)| format!("{answer}: {error}")).collect();
    let kind = failures.first().map_or(ErrorKind::Connect(Stage::Dns), |(_, error)| error.kind());
    Error::new(kind, format!("none of {} addresses could be connected to: {}", text.len(), text.join("; ")))
}

/// Waits for `future` until `deadline`; past it, an error says at which stage.
pub(super) async fn within<T>(
    stage: Stage,
    deadline: Instant,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = now();
    match tokio::time::timeout_at(deadline, future).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(stage, now() - started)),
    }
}

fn timed_out(stage: Stage, waited: Duration) -> Error {
    let what = match stage {
        Stage::Dns => "the name server did not answer",
        Stage::Tcp => "the host did not answer",
        Stage::Tls => "the TLS handshake did not end",
        Stage::Sasl => "the broker did not answer the authentication",
        Stage::Api => "the port is open, but what listens there did not answer the first Kafka request",
    };
    let hint = match stage {
        Stage::Api => {
            "check that it is a Kafka listener, and security.protocol: a TLS listener waits in silence for a handshake"
        }
        Stage::Tls => "check security.protocol: a plaintext listener waits in silence for a Kafka request",
        _ => SETUP_HINT,
    };
    Error::new(ErrorKind::Connect(stage), format!("{what} within {} ms", waited.as_millis())).with_hint(hint)
}

fn closed_on_versions(text: &str, settings: &ClientSettings) -> Error {
    let hint = if settings.tls.is_none() {
        "check security.protocol: a TLS listener closes a plaintext connection; set SSL or SASL_SSL if it is one"
    } else {
        // TLS 1.3: the broker's verdict on the client certificate comes after the client has ended its handshake.
        "if the listener wants a client certificate (ssl.client.auth), set ssl.keystore.certificate.chain and \
         ssl.keystore.key; else check that it is a Kafka listener"
    };
    Error::new(
        ErrorKind::Connect(Stage::Api),
        format!("the connection was lost on the first Kafka request: {text}"),
    )
    .with_hint(hint)
}

enum Failure {
    /// The peer closed the connection when it was asked for its versions.
    ClosedOnVersions(String),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The largest answer accepted before the broker is known: the list of versions has some hundred bytes.
const SETUP_MAX_ANSWER: usize = 1 << 20;

/// The broker's ApiVersions answer.
struct Offered {
    versions: Versions,
    features: Map<String, i16>,
    /// How long it wants to be sent nothing (KIP-219).
    throttle_ms: i32,
}

/// KIP-35, KIP-511: asks in the given version, and again in the one that an UNSUPPORTED_VERSION answer offers.
async fn ask_versions(
    channel: &mut Channel,
    notices: &Notices,
    settings: &ClientSettings,
    mut version: i16,
    deadline: Instant,
) -> Result<Offered, Failure> {
    loop {
        channel.versions = [(wire::ApiVersionsRequest::KEY, (version, version))].into();
        let request = if version >= 3 {
            wire::ApiVersionsRequest {
                client_software_name: wire::Str::from_static(env!("CARGO_PKG_NAME")),
                client_software_version: wire::Str::from_static(env!("CARGO_PKG_VERSION")),
                ..Default::default()
            }
        } else {
            wire::ApiVersionsRequest::default()
        };
        let asked = within(Stage::Api, deadline, async { Ok(channel.request(request).await) }).await?;
        let answer = asked.map_err(|error| versions_error(error, notices, settings))?;
        let offered: Versions = answer
            .api_keys
            .iter()
            .map(|row| (row.api_key, (row.min_version, row.max_version)))
            .filter(|(_, (low, high))| low <= high)
            .collect();
        match answer.error_code {
            0 => {
                let features = answer
                    .finalized_features
                    .iter()
                    .map(|feature| (feature.name.to_string(), feature.max_version_level));
                let throttle_ms = wire::ApiVersionsRequest::throttle_time_ms(&answer);
                return Ok(Offered { versions: offered, features: features.collect(), throttle_ms });
            }
            code::UNSUPPORTED_VERSION if version > 0 => {
                let common = api::Row::of::<wire::ApiVersionsRequest>().negotiate(&offered).unwrap_or(0);
                version = common.min(version - 1);
            }
            // A broker that is starting, or a proxy without a broker behind it: no setting is known that would help.
            code => {
                let text = format!("the broker answered ApiVersions with {}", ErrorCode(code));
                return Err(Error::new(ErrorKind::Connect(Stage::Api), text).into());
            }
        }
    }
}

fn versions_error(error: ChannelError, notices: &Notices, settings: &ClientSettings) -> Failure {
    if let Some(fault) = notices.fault() {
        return fault_error(fault, ErrorKind::Connect(Stage::Api)).into();
    }
    match error {
        ChannelError::Lost(text) if notices.was_refused() => {
            closed_on_versions(&text, settings).with_permanent().into()
        }
        ChannelError::Lost(text) => Failure::ClosedOnVersions(text),
        ChannelError::TooLarge { actual } => too_large(actual, None).into(),
        ChannelError::Encode(text) | ChannelError::Decode(text) => {
            Error::new(ErrorKind::Connect(Stage::Api), format!("what answered does not speak Kafka: {text}"))
                .with_api(wire::ApiVersionsRequest::NAME)
                .with_hint("check host and port in bootstrap.servers and security.protocol")
                .with_permanent()
                .into()
        }
        ChannelError::NoVersion => Error::protocol("ApiVersions has no version").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_that_was_tried_is_in_the_error_with_its_cause() {
        let failure = |address: &str, stage, text: &str| {
            (address.to_owned(), Error::new(ErrorKind::Connect(stage), text))
        };
        let one = join_failures(vec![failure("[::1]:9092", Stage::Tcp, "refused")]);
        assert_eq!(one.to_string(), "refused [stage tcp]");
        let two = join_failures(vec![
            failure("[::1]:9092", Stage::Tcp, "refused"),
            failure("127.0.0.1:9092", Stage::Api, "silent"),
        ]);
        assert_eq!(two.stage(), Some(Stage::Tcp));
        let text = two.to_string();
        assert!(text.contains("[::1]:9092: refused") && text.contains("127.0.0.1:9092: silent"), "{text}");
    }

    #[test]
    fn a_setting_is_wrong_where_everybody_who_answers_says_so_and_a_password_where_one_does() {
        let passes = |stage| ("passes", Error::new(ErrorKind::Connect(stage), stage.to_string()));
        let stays =
            |stage| ("stays", Error::new(ErrorKind::Connect(stage), stage.to_string()).with_permanent());
        for (failures, is_permanent) in [
            (vec![passes(Stage::Tcp), stays(Stage::Api)], true),
            (vec![stays(Stage::Tls), passes(Stage::Tcp), stays(Stage::Api)], true),
            (vec![stays(Stage::Api), passes(Stage::Api)], false),
            (vec![passes(Stage::Tls), stays(Stage::Tls)], false),
            (vec![passes(Stage::Api), stays(Stage::Sasl)], true),
            (vec![passes(Stage::Tcp), passes(Stage::Sasl)], false),
        ] {
            let text = format!("{failures:?}");
            assert_eq!(!join_failures(failures).is_retriable(), is_permanent, "{text}");
        }
        assert!(is_said_for_all(&stays(Stage::Sasl).1));
        for goes_on in [stays(Stage::Api), stays(Stage::Tls), passes(Stage::Sasl)] {
            assert!(!is_said_for_all(&goes_on.1), "{}", goes_on.1);
        }
    }
}
