//! SASL over Kafka's own requests (KIP-43, KIP-152, KIP-84): PLAIN and SCRAM.
//!
//! This file sends and waits; the mechanisms are pure, in `plain.rs` and `scram.rs`. The requests are sent here and not by
//! rskafka's `do_sasl`, which hides the broker's own text of a refusal and the session lifetime (KIP-368). Whatever bytes
//! a server sends become an error that names the step. Never lets a password, a proof or a server's challenge into an
//! error or a log.

mod plain;
mod scram;

#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) use self::scram::fuzz;

use std::time::Duration;

use bytes::Bytes;

use self::scram::{Challenge, Hash, Proven, Refusal};
use super::api::{Api, Channel, ChannelError, wire};
use crate::{
    config::{
        secrecy,
        settings::{SaslMechanism, SaslSettings},
    },
    error::{Error, ErrorCode, ErrorKind, Result, Stage, code},
    time::Environment,
};

/// SCRAM rounds up to which the key is derived where the connection is made; beyond, a thread for blocking work does it.
/// Measured with the dependencies at opt-level 1: Kafka's default of 4,096 rounds takes 1 ms of SHA-256 and 6 ms of
/// SHA-512, and the 8,192 of Kafka's own examples twice that. A simulated world has no threads.
const ROUNDS_INLINE: u32 = 8_192;

/// What of a server's text an error repeats.
const SHOWN_CHARS: usize = 300;

/// Authenticates the connection; returns how long the broker lets the session live, if it says.
pub(super) async fn authenticate(
    channel: &Channel,
    settings: &SaslSettings,
    environment: &Environment,
) -> Result<Option<Duration>> {
    let mechanism = settings.mechanism.as_str();
    handshake(channel, mechanism).await?;
    let lifetime = match settings.mechanism {
        SaslMechanism::Plain => plain(channel, settings).await?,
        SaslMechanism::ScramSha256 => scram(channel, settings, Hash::Sha256, environment).await?,
        SaslMechanism::ScramSha512 => scram(channel, settings, Hash::Sha512, environment).await?,
    };
    tracing::debug!(mechanism, ?lifetime, "authenticated");
    Ok(lifetime)
}

async fn plain(channel: &Channel, settings: &SaslSettings) -> Result<Option<Duration>> {
    let message = plain::message(&settings.username, settings.password.expose()).map_err(|why| {
        sasl_error(format!("PLAIN cannot be used: {why}"))
            .with_hint("check sasl.plain.username and sasl.plain.password for stray characters")
            .with_permanent()
    })?;
    Ok(lifetime(&exchange(channel, message, settings).await?))
}

async fn scram(
    channel: &Channel,
    settings: &SaslSettings,
    hash: Hash,
    environment: &Environment,
) -> Result<Option<Duration>> {
    let mechanism = settings.mechanism.as_str();
    let refused = |Refusal { step, why }: Refusal| refused(mechanism, step, &hidden(&why, settings));
    let (opened, message) =
        scram::start(hash, &settings.username, settings.password.clone(), scram::nonce(environment));
    let answer = exchange(channel, message, settings).await?;
    let challenge = opened.handle_server_first(&answer.auth_bytes).map_err(refused)?;
    let (proven, message) = prove(challenge, mechanism, environment).await?;
    let answer = exchange(channel, message, settings).await?;
    // The broker has accepted the proof. Only its signature shows that it knows the password itself.
    proven.handle_server_final(&answer.auth_bytes).map_err(refused)?;
    Ok(lifetime(&answer))
}

async fn prove(
    challenge: Challenge,
    mechanism: &'static str,
    environment: &Environment,
) -> Result<(Proven, Vec<u8>)> {
    if challenge.rounds <= ROUNDS_INLINE || environment.is_simulated() {
        return Ok(challenge.prove());
    }
    tokio::task::spawn_blocking(move || challenge.prove())
        .await
        .map_err(|_| sasl_error(format!("{mechanism} was cut short: the runtime is ending")))
}

fn refused(mechanism: &'static str, step: &str, why: &str) -> Error {
    sasl_error(format!("{mechanism} failed at {step}: {why}"))
        .with_hint(
            "check sasl.plain.username and sasl.plain.password, and that this is the broker it claims to be",
        )
        .with_permanent()
}

/// KIP-368: zero means for ever. More than seven weeks are cut down to these, so that sums with them cannot overflow.
fn lifetime(answer: &wire::SaslAuthenticateResponse) -> Option<Duration> {
    u64::try_from(answer.session_lifetime_ms)
        .ok()
        .filter(|ms| *ms > 0)
        .map(|ms| Duration::from_millis(ms.min(u64::from(u32::MAX))))
}

/// The text without password and user name: a server may repeat what it was sent, and a user may have taken one for the other.
fn hidden(text: &str, settings: &SaslSettings) -> String {
    let (user, password) = (&settings.username, settings.password.expose());
    // Only a little more than is shown is searched, enough for a secret that crosses its end: a peer may send a megabyte.
    let text: String = text.chars().take(SHOWN_CHARS + 2 * password.len().max(user.len())).collect();
    secrecy::without(&secrecy::without(&text, password), user)
}

/// A server's text as an error may repeat it: short, and without what confuses a terminal.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(SHOWN_CHARS).map(plain).collect()
}

async fn handshake(channel: &Channel, mechanism: &'static str) -> Result<()> {
    let request = wire::SaslHandshakeRequest { mechanism: wire::Str::from_static(mechanism) };
    let answer = channel.request(request).await.map_err(lost::<wire::SaslHandshakeRequest>)?;
    match answer.error_code {
        0 => Ok(()),
        code::UNSUPPORTED_SASL_MECHANISM => {
            let enabled: Vec<String> = answer.mechanisms.iter().take(20).map(|name| shown(name)).collect();
            let enabled =
                if enabled.is_empty() { "none on this listener".to_owned() } else { enabled.join(", ") };
            Err(sasl_error(format!("the broker does not enable {mechanism}; it enables {enabled}"))
                .with_hint("set sasl.mechanism to one of these")
                .with_permanent())
        }
        code::ILLEGAL_SASL_STATE => Err(sasl_error("the listener does not want SASL".to_owned())
            .with_hint("set security.protocol to PLAINTEXT or SSL, or use the port of a SASL listener")
            .with_permanent()),
        code => Err(sasl_error(format!("the broker answered {} to the handshake", ErrorCode(code)))),
    }
}

async fn exchange(
    channel: &Channel,
    message: Vec<u8>,
    settings: &SaslSettings,
) -> Result<wire::SaslAuthenticateResponse> {
    let request = wire::SaslAuthenticateRequest { auth_bytes: Bytes::from(message) };
    let answer = channel.request(request).await.map_err(lost::<wire::SaslAuthenticateRequest>)?;
    if answer.error_code == 0 {
        return Ok(answer);
    }
    let mechanism = settings.mechanism.as_str();
    let code = ErrorCode(answer.error_code);
    let broker_text = shown(&hidden(answer.error_message.as_deref().unwrap_or("no text"), settings));
    if answer.error_code != code::SASL_AUTHENTICATION_FAILED {
        return Err(sasl_error(format!("the broker broke off {mechanism}: {broker_text} ({code})")));
    }
    let text = format!("the broker refused user and password with {mechanism}: {broker_text} ({code})");
    Err(sasl_error(text)
        .with_hint(
            "check sasl.plain.username and sasl.plain.password, and that the user exists for this mechanism",
        )
        .with_permanent())
}

fn sasl_error(text: String) -> Error {
    Error::new(ErrorKind::Connect(Stage::Sasl), text)
}

fn lost<R: Api>(error: ChannelError) -> Error {
    match error {
        ChannelError::NoVersion => {
            sasl_error(format!("the broker does not offer {} in a version this client speaks", R::NAME))
                .with_hint("this needs Kafka 1.0 or newer")
                .with_permanent()
        }
        ChannelError::Lost(text) => sasl_error(format!(
            "the connection was lost while authenticating: {text}"
        ))
        .with_hint("check sasl.mechanism, sasl.plain.username and sasl.plain.password; the broker's log has its reason"),
        ChannelError::TooLarge { actual } => {
            sasl_error(format!("the answer has {actual} bytes, more than the limit"))
                .with_hint("raise receive.message.max.bytes")
                .with_permanent()
        }
        ChannelError::Encode(text) | ChannelError::Decode(text) => sasl_error(text),
    }
    .with_api(R::NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(username: &str, password: &str) -> SaslSettings {
        let config = crate::config::KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.plain.username", username)
            .set("sasl.plain.password", password);
        config.resolve_client().unwrap().sasl.clone().unwrap()
    }

    #[test]
    fn a_session_ends_only_where_the_broker_says_when() {
        let most = i64::from(u32::MAX);
        for (said, lives) in [
            (-1, None),
            (0, None),
            (1, Some(1)),
            (most, Some(most)),
            (most + 1, Some(most)),
            (i64::MAX, Some(most)),
        ] {
            let answer = wire::SaslAuthenticateResponse { session_lifetime_ms: said, ..Default::default() };
            assert_eq!(lifetime(&answer).map(|lives| lives.as_millis() as i64), lives, "{said}");
        }
    }

    #[test]
    fn what_a_server_says_is_shown_short_and_without_what_moves_a_cursor() {
        assert_eq!(shown("no\x1b[2J\r\nentry \u{e9}"), "no?[2J??entry \u{e9}");
        assert_eq!(shown(&"\u{e9}".repeat(SHOWN_CHARS + 1)).chars().count(), SHOWN_CHARS);
    }

    #[test]
    fn what_a_server_repeats_of_the_account_is_not_shown_wherever_it_stands() {
        let (user, password) = ("a-certain-user", "a-certain-password");
        let settings = settings(user, password);
        for secret in [user, password] {
            for before in [0, 1, SHOWN_CHARS - secret.len(), SHOWN_CHARS - secret.len() / 2, SHOWN_CHARS - 1]
            {
                let text = format!("{}{secret} and more", "x".repeat(before));
                let shown = shown(&hidden(&text, &settings));
                assert!(!shown.contains("a-c"), "{before}: {shown}");
                assert!(shown.starts_with(&"x".repeat(before)), "{before}: {shown}");
            }
        }
    }

    #[test]
    fn a_connection_that_ends_meanwhile_may_come_back_and_a_broker_without_sasl_may_not() {
        type Asked = wire::SaslHandshakeRequest;
        for (error, is_permanent, says) in [
            (ChannelError::NoVersion, true, "does not offer"),
            (ChannelError::TooLarge { actual: 7 }, true, "7 bytes"),
            (ChannelError::Lost("reset".into()), false, "reset"),
            (ChannelError::Decode("cut off".into()), false, "cut off"),
            (ChannelError::Encode("too long".into()), false, "too long"),
        ] {
            let error = lost::<Asked>(error);
            assert_eq!((error.is_permanent(), error.kind()), (is_permanent, ErrorKind::Connect(Stage::Sasl)));
            assert!(error.to_string().contains(says) && error.api() == Some(Asked::NAME), "{error}");
        }
    }
}
