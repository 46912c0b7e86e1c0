//! SASL over Kafka's own requests (KIP-43, KIP-152, KIP-84): PLAIN and SCRAM, driven by `rsasl`.
//!
//! The requests are sent here and not by rskafka's `do_sasl`, which hides the broker's own text of a refusal and the
//! session lifetime (KIP-368). Never lets a password, a proof or a server's challenge into an error or a log.

use std::{io::Cursor, time::Duration};

use bytes::Bytes;
use rsasl::prelude::{Mechname, MessageSent, SASLClient, SASLConfig, Session, State};

use super::api::{Api, Channel, ChannelError, wire};
use crate::{
    config::settings::{SaslMechanism, SaslSettings},
    error::{Error, ErrorKind, Result, Stage, code},
};

/// SCRAM rounds up to which the key is derived where the connection is made; beyond, a thread for blocking work does it.
/// Measured with the dependencies at opt-level 1: Kafka's default of 4,096 rounds takes 1 ms of SHA-256 and 6 ms of
/// SHA-512, 8,192 rounds of SHA-512 take 14 ms, which is too long to hold up a runtime.
const ROUNDS_INLINE: u32 = 4_096;

/// More rounds than this are refused: the server is not authenticated yet, and could keep a core busy for hours. Kafka's
/// own upper limit is 16,384.
const ROUNDS_MAX: u32 = 1_000_000;

/// Authenticates the connection; returns how long the broker lets the session live, if it says.
pub(super) async fn authenticate(channel: &Channel, settings: &SaslSettings) -> Result<Option<Duration>> {
    let mechanism = mechanism_name(settings.mechanism);
    handshake(channel, mechanism).await?;
    let mut session = start(settings, mechanism)?;
    let mut lifetime = None;
    let mut received: Option<Bytes> = None;
    loop {
        let (state, message);
        (session, state, message) = step(session, received.take(), mechanism).await?;
        let sent = matches!(state, State::Finished(MessageSent::Yes) | State::Running);
        if sent {
            let answer = exchange(channel, message, settings).await?;
            if answer.session_lifetime_ms > 0 {
                lifetime = u64::try_from(answer.session_lifetime_ms).ok().map(Duration::from_millis);
            }
            received = Some(answer.auth_bytes);
        }
        if matches!(state, State::Finished(_)) {
            tracing::debug!(mechanism, ?lifetime, "authenticated");
            return Ok(lifetime);
        }
    }
}

fn mechanism_name(mechanism: SaslMechanism) -> &'static str {
    match mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
    }
}

async fn handshake(channel: &Channel, mechanism: &'static str) -> Result<()> {
    let request = wire::SaslHandshakeRequest { mechanism: wire::Str::from_static(mechanism) };
    let answer = channel.request(request).await.map_err(lost::<wire::SaslHandshakeRequest>)?;
    match answer.error_code {
        0 => Ok(()),
        code::UNSUPPORTED_SASL_MECHANISM => {
            let enabled: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
            let enabled =
                if enabled.is_empty() { "none on this listener".to_owned() } else { enabled.join(", ") };
            Err(sasl_error(format!("the broker does not enable {mechanism}; it enables {enabled}"))
                .with_hint("set sasl.mechanism to one of these")
                .with_permanent())
        }
        code::ILLEGAL_SASL_STATE => Err(sasl_error("the listener does not want SASL".to_owned())
            .with_hint("set security.protocol to PLAINTEXT or SSL, or use the port of a SASL listener")
            .with_permanent()),
        code => {
            Err(sasl_error(format!("the broker answered {} to the handshake", crate::error::ErrorCode(code))))
        }
    }
}

fn start(settings: &SaslSettings, mechanism: &'static str) -> Result<Session> {
    let failed = |text: String| {
        // The text is rsasl's on its configuration; it names the mechanism or the property, never its value.
        sasl_error(format!("{mechanism} cannot be started: {text}"))
    };
    let (user, password) = (settings.username.clone(), settings.password.expose().to_owned());
    let config =
        SASLConfig::with_credentials(None, user, password).map_err(|error| failed(error.to_string()))?;
    let name = Mechname::parse(mechanism.as_bytes()).map_err(|error| failed(error.to_string()))?;
    SASLClient::new(config).start_suggested(&[name]).map_err(|error| failed(error.to_string()))
}

/// One step of the mechanism: what the broker sent in, what is to be sent out.
async fn step(
    mut session: Session,
    received: Option<Bytes>,
    mechanism: &'static str,
) -> Result<(Session, State, Vec<u8>)> {
    let rounds = received.as_deref().and_then(scram_rounds).unwrap_or(0);
    if rounds > ROUNDS_MAX {
        return Err(sasl_error(format!(
            "the broker asks for {rounds} rounds of {mechanism}; more than {ROUNDS_MAX} are refused"
        ))
        .with_permanent());
    }
    let run = move || {
        let mut message = Cursor::new(Vec::new());
        let state = session.step(received.as_deref(), &mut message);
        (session, state, message.into_inner())
    };
    let (session, state, message) = if rounds > ROUNDS_INLINE {
        tokio::task::spawn_blocking(run)
            .await
            .map_err(|_| sasl_error(format!("{mechanism} was cut short: the runtime is ending")))?
    } else {
        run()
    };
    let state = state.map_err(|error| {
        // rsasl's text says which rule was broken. A wrong signature of the server ends here too.
        sasl_error(format!("{mechanism} failed on what the broker sent: {error}"))
            .with_hint("check sasl.username and sasl.password, and that this is the broker it claims to be")
            .with_permanent()
    })?;
    Ok((session, state, message))
}

/// The iteration count of a SCRAM server-first message (RFC 5802: `r=..,s=..,i=4096`).
fn scram_rounds(message: &[u8]) -> Option<u32> {
    if !message.starts_with(b"r=") {
        return None;
    }
    let count = message.split(|&byte| byte == b',').find_map(|part| part.strip_prefix(b"i="))?;
    // A count that does not fit is above every limit.
    std::str::from_utf8(count).ok().map(|count| count.parse().unwrap_or(u32::MAX))
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
    let mechanism = mechanism_name(settings.mechanism);
    let code = crate::error::ErrorCode(answer.error_code);
    let broker_text = answer.error_message.as_deref().unwrap_or("no text");
    let user = &settings.username;
    let text = format!("the broker refused user {user:?} with {mechanism}: {broker_text} ({code})");
    let error = sasl_error(text);
    Err(if answer.error_code == code::SASL_AUTHENTICATION_FAILED {
        error
            .with_hint("check sasl.username and sasl.password, and that the user exists for this mechanism")
            .with_permanent()
    } else {
        error
    })
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
        .with_hint("check sasl.mechanism, sasl.username and sasl.password; the broker's log has its reason"),
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
    use crate::config::settings::Secret;

    fn settings(mechanism: SaslMechanism) -> SaslSettings {
        SaslSettings { mechanism, username: "user".to_owned(), password: Secret::new("pencil") }
    }

    #[tokio::test]
    async fn plain_sends_user_and_password_once_and_is_done() {
        let session = start(&settings(SaslMechanism::Plain), "PLAIN").unwrap();
        let (_, state, message) = step(session, None, "PLAIN").await.unwrap();
        assert_eq!(message, b"\0user\0pencil");
        assert!(matches!(state, State::Finished(MessageSent::Yes)));
    }

    async fn server_first(extra: &str) -> Result<(Session, State, Vec<u8>)> {
        let session = start(&settings(SaslMechanism::ScramSha512), "SCRAM-SHA-512").unwrap();
        let (session, _, message) = step(session, None, "SCRAM-SHA-512").await.unwrap();
        let nonce = String::from_utf8(message).unwrap().split("r=").nth(1).unwrap().to_owned();
        let answer = format!("r={nonce}{extra}");
        step(session, Some(Bytes::from(answer)), "SCRAM-SHA-512").await
    }

    #[tokio::test]
    async fn scram_answers_a_challenge_and_refuses_an_absurd_one() {
        let (_, state, message) = server_first("x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").await.unwrap();
        assert!(matches!(state, State::Running) && message.starts_with(b"c=biws,r="));
        let (_, state, _) = server_first("x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4097").await.unwrap();
        assert!(matches!(state, State::Running), "the thread for blocking work gives the session back");
        for rounds in ["1000001", "4294967295", "99999999999999999999"] {
            let error =
                server_first(&format!("x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i={rounds}")).await.err().unwrap();
            assert!(error.to_string().contains("are refused"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_password_is_not_believed() {
        let (session, _, _) = server_first("x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").await.unwrap();
        let forged = Bytes::from_static(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=");
        let error = step(session, Some(forged), "SCRAM-SHA-512").await.err().unwrap();
        assert_eq!(error.stage(), Some(Stage::Sasl));
        assert!(!error.to_string().contains("pencil"));
    }
}
