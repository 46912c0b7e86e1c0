//! The server's side of SASL: PLAIN (RFC 4616), SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802), with Apache Kafka's
//! texts. Decides which requests a connection may send before it has logged in.
//!
//! Not a model of how to keep passwords: users and passwords of a test broker are plain text in memory.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use hmac::{Hmac, Mac};
use kafka_protocol::messages::ApiKey;
use sha2::{Digest, Sha256, Sha512};

use super::random::Random;
use super::server::Close;

/// User names and their passwords.
pub(super) type Users = BTreeMap<String, String>;

/// The mechanisms that every SASL listener has.
pub(super) const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

const ITERATIONS: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha512,
}

#[derive(Debug)]
enum Exchange {
    Plain,
    ScramFirst(Hash),
    ScramFinal { hash: Hash, salted: Vec<u8>, client_first: String, server_first: String, nonce: String },
}

#[derive(Debug)]
enum State {
    /// No login needed, or done.
    Open,
    Handshake,
    Tokens {
        exchange: Exchange,
        mechanism: &'static str,
        raw: bool,
    },
    Failed,
}

/// How far one connection's login has come.
#[derive(Debug)]
pub(super) struct Login {
    state: State,
    user: String,
}

/// A token that was accepted: what to answer.
pub(super) type Token = Vec<u8>;

impl Login {
    pub(super) fn new(needed: bool) -> Self {
        Self { state: if needed { State::Handshake } else { State::Open }, user: String::new() }
    }

    /// Before the login only these three are heard; anything else closes the connection, as in Apache Kafka.
    pub(super) fn allows(&self, api: ApiKey) -> bool {
        matches!(
            (&self.state, api),
            (State::Open, _)
                | (State::Handshake, ApiKey::ApiVersions | ApiKey::SaslHandshake)
                | (State::Tokens { .. }, ApiKey::SaslAuthenticate)
        )
    }

    /// Who has logged in; empty before, and without a login.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Since a handshake of version 0 tokens come as bare frames, without a request header.
    pub(super) fn expects_raw_token(&self) -> bool {
        matches!(self.state, State::Tokens { raw: true, .. })
    }

    /// False: the mechanism is unknown, and the login has failed.
    pub(super) fn handshake(&mut self, mechanism: &str, version: i16) -> bool {
        let Some(mechanism) = MECHANISMS.into_iter().find(|m| *m == mechanism) else {
            self.state = State::Failed;
            return false;
        };
        let exchange = match mechanism {
            "PLAIN" => Exchange::Plain,
            "SCRAM-SHA-256" => Exchange::ScramFirst(Hash::Sha256),
            _ => Exchange::ScramFirst(Hash::Sha512),
        };
        self.state = State::Tokens { exchange, mechanism, raw: version == 0 };
        true
    }

    /// One token of the client.
    ///
    /// # Errors
    /// The text for the client; the login has failed.
    pub(super) fn token(&mut self, users: &Users, random: &Random, token: &[u8]) -> Result<Token, String> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        let State::Tokens { exchange, mechanism, raw } = state else {
            return Err("SaslAuthenticate request received after successful authentication".to_owned());
        };
        let wrong = || {
            format!(
                "Authentication failed during authentication due to invalid credentials with SASL mechanism {mechanism}"
            )
        };
        let (reply, next) = match exchange {
            Exchange::Plain => {
                let reply = plain(users, token)?;
                let name = token.split(|b| *b == 0).nth(1).unwrap_or_default();
                self.user = String::from_utf8_lossy(name).into_owned();
                (reply, None)
            }
            Exchange::ScramFirst(hash) => {
                let (reply, next) = scram_first(users, hash, token, &nonce(random)).ok_or_else(wrong)?;
                (reply, Some(next))
            }
            Exchange::ScramFinal { hash, salted, client_first, server_first, nonce } => {
                let text = std::str::from_utf8(token).map_err(|_| wrong())?;
                let reply = scram_final(hash, &salted, &client_first, &server_first, &nonce, text);
                let reply = reply.ok_or_else(wrong)?;
                self.user = attribute(&client_first, "n=").unwrap_or_default().to_owned();
                (reply, None)
            }
        };
        self.state = match next {
            Some(exchange) => State::Tokens { exchange, mechanism, raw },
            None => State::Open,
        };
        Ok(reply)
    }

    /// A token as a bare frame; there is no way to tell the client why it failed.
    pub(super) fn raw_token(
        &mut self,
        users: &Users,
        random: &Random,
        token: &Bytes,
    ) -> Result<BytesMut, Close> {
        let reply = self.token(users, random, token).map_err(|_| Close)?;
        let mut frame = BytesMut::with_capacity(4 + reply.len());
        frame.put_u32(u32::try_from(reply.len()).map_err(|_| Close)?);
        frame.put_slice(&reply);
        Ok(frame)
    }
}

fn plain(users: &Users, token: &[u8]) -> Result<Token, String> {
    let parts: Vec<&[u8]> = token.split(|b| *b == 0).collect();
    let [authzid, user, password] = parts[..] else {
        return Err("Authentication failed: invalid SASL/PLAIN response: expected 3 tokens".to_owned());
    };
    let known = std::str::from_utf8(user).ok().and_then(|user| users.get(user));
    if known.is_none_or(|known| known.as_bytes() != password) {
        return Err("Authentication failed: Invalid username or password".to_owned());
    }
    if !authzid.is_empty() && authzid != user {
        return Err(
            "Authentication failed: Client requested an authorization id that is different from username"
                .to_owned(),
        );
    }
    Ok(Vec::new())
}

fn scram_first(users: &Users, hash: Hash, token: &[u8], nonce: &str) -> Option<(Token, Exchange)> {
    let text = std::str::from_utf8(token).ok()?;
    // gs2-header: channel binding flag (n or y), optional authorization id; then the bare message.
    let mut parts = text.splitn(3, ',');
    let (flag, _authzid, bare) = (parts.next()?, parts.next()?, parts.next()?);
    if flag != "n" && flag != "y" {
        return None;
    }
    let user = attribute(bare, "n=")?.replace("=2C", ",").replace("=3D", "=");
    let nonce = format!("{}{nonce}", attribute(bare, "r=")?);
    let password = users.get(&user)?;
    let salt = digest(hash, format!("salt of {user}").as_bytes());
    let salted = salt_password(hash, password, &salt);
    let server_first = format!("r={nonce},s={},i={ITERATIONS}", BASE64.encode(&salt));
    let reply = server_first.clone().into_bytes();
    Some((reply, Exchange::ScramFinal { hash, salted, client_first: bare.to_owned(), server_first, nonce }))
}

fn scram_final(
    hash: Hash,
    salted: &[u8],
    client_first: &str,
    server_first: &str,
    nonce: &str,
    text: &str,
) -> Option<Token> {
    let (without_proof, proof) = text.rsplit_once(",p=")?;
    if attribute(without_proof, "r=")? != nonce {
        return None;
    }
    let proof = BASE64.decode(proof).ok()?;
    let stored = digest(hash, &hmac(hash, salted, b"Client Key"));
    let message = format!("{client_first},{server_first},{without_proof}");
    let signature = hmac(hash, &stored, message.as_bytes());
    if proof.len() != signature.len() {
        return None;
    }
    let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    if digest(hash, &client_key) != stored {
        return None;
    }
    let server = hmac(hash, &hmac(hash, salted, b"Server Key"), message.as_bytes());
    Some(format!("v={}", BASE64.encode(server)).into_bytes())
}

fn attribute<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message.split(',').find_map(|part| part.strip_prefix(name))
}

fn digest(hash: Hash, data: &[u8]) -> Vec<u8> {
    match hash {
        Hash::Sha256 => Sha256::digest(data).to_vec(),
        Hash::Sha512 => Sha512::digest(data).to_vec(),
    }
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn hmac(hash: Hash, key: &[u8], data: &[u8]) -> Vec<u8> {
    match hash {
        Hash::Sha256 => {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length");
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        }
        Hash::Sha512 => {
            let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("any key length");
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        }
    }
}

fn salt_password(hash: Hash, password: &str, salt: &[u8]) -> Vec<u8> {
    match hash {
        Hash::Sha256 => {
            pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, ITERATIONS).to_vec()
        }
        Hash::Sha512 => {
            pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password.as_bytes(), salt, ITERATIONS).to_vec()
        }
    }
}

/// Repeatable with the broker's seed: enough for a test broker.
fn nonce(random: &Random) -> String {
    format!("{:016x}{:016x}", random.next(), random.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users::from([("user".to_owned(), "pencil".to_owned())])
    }

    /// Plays the client's part by the formulas of RFC 5802, section 3.
    fn client_final(hash: Hash, password: &str, client_first: &str, server_first: &str) -> String {
        let nonce = attribute(server_first, "r=").unwrap();
        let salt = BASE64.decode(attribute(server_first, "s=").unwrap()).unwrap();
        let salted = salt_password(hash, password, &salt);
        let client_key = hmac(hash, &salted, b"Client Key");
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{client_first},{server_first},{without_proof}");
        let signature = hmac(hash, &digest(hash, &client_key), message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        format!("{without_proof},p={}", BASE64.encode(proof))
    }

    fn scram(mechanism: &str, hash: Hash, password: &str) -> Result<Token, String> {
        let mut login = Login::new(true);
        assert!(login.handshake(mechanism, 1));
        let first = login.token(&users(), &Random::new(1), b"n,,n=user,r=abc").unwrap();
        let answer = client_final(hash, password, "n=user,r=abc", std::str::from_utf8(&first).unwrap());
        let done = login.token(&users(), &Random::new(1), answer.as_bytes());
        assert_eq!(done.is_ok(), login.allows(ApiKey::Produce));
        assert_eq!(done.is_err(), login.has_failed());
        done
    }

    #[test]
    fn the_exchange_of_rfc_7677_verifies() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salt_password(Hash::Sha256, "pencil", &salt);
        let server_first =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let client_first = "n=user,r=rOprNGfwEbeRWgbNEkqO";
        let text = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let reply = scram_final(Hash::Sha256, &salted, client_first, server_first, nonce, &text).unwrap();
        assert_eq!(reply, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn scram_takes_the_right_password_and_refuses_a_wrong_one() {
        assert!(scram("SCRAM-SHA-256", Hash::Sha256, "pencil").unwrap().starts_with(b"v="));
        assert!(scram("SCRAM-SHA-512", Hash::Sha512, "pencil").unwrap().starts_with(b"v="));
        let text = scram("SCRAM-SHA-256", Hash::Sha256, "pen").unwrap_err();
        assert!(text.contains("invalid credentials with SASL mechanism SCRAM-SHA-256"), "{text}");
    }

    #[test]
    fn plain_names_the_failure_and_the_connection_is_lost() {
        let mut login = Login::new(true);
        assert!(login.handshake("PLAIN", 1));
        let text = login.token(&users(), &Random::new(1), b"\0user\0wrong").unwrap_err();
        assert_eq!(text, "Authentication failed: Invalid username or password");
        assert!(login.has_failed());
    }

    #[test]
    fn nothing_else_is_heard_before_the_login() {
        let mut login = Login::new(true);
        assert!(login.allows(ApiKey::ApiVersions) && !login.allows(ApiKey::Metadata));
        assert!(login.handshake("PLAIN", 1));
        assert!(!login.allows(ApiKey::Metadata) && login.allows(ApiKey::SaslAuthenticate));
        assert!(login.token(&users(), &Random::new(1), b"\0user\0pencil").is_ok());
        assert!(login.allows(ApiKey::Metadata));
    }

    #[test]
    fn broken_scram_messages_are_refused_without_panic() {
        for token in ["", "n", "n,,", "p=tls-unique,,n=user,r=a", "n,,n=user", "n,,r=1", "n,,n=nobody,r=1"] {
            let mut login = Login::new(true);
            assert!(login.handshake("SCRAM-SHA-512", 1));
            assert!(login.token(&users(), &Random::new(1), token.as_bytes()).is_err(), "{token}");
        }
    }
}
