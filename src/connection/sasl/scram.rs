//! SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677, KIP-84), the client's side. Pure: bytes in, bytes out.
//!
//! ```text
//! start -> Opened --server-first--> Challenge --prove (slow)--> Proven --server-final--> done
//! ```
//! Every message of the server is hostile until its signature is verified: whatever its bytes are, they make an error
//! that names the step, and never a panic. Java does not apply SASLprep (neither where the credential is stored nor where
//! it is used), so nothing is normalized here. No error repeats a password, a nonce, a salt or a proof.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};

use crate::{config::settings::Secret, time::Environment};

/// Java and RFC 7677: fewer rounds make the password cheap to guess from what was sent.
const ROUNDS_MIN: u32 = 4_096;
/// More rounds than this are refused: the server is not authenticated yet, and could keep a core busy for hours. Kafka's
/// own upper limit is 16,384.
const ROUNDS_MAX: u32 = 1_000_000;
/// No channel binding, no authorization identity.
const GS2_HEADER: &str = "n,,";

/// The hash of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha512 => Sha512::digest(data).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => keyed::<Hmac<Sha256>>(key, data).finalize().into_bytes().to_vec(),
            Self::Sha512 => keyed::<Hmac<Sha512>>(key, data).finalize().into_bytes().to_vec(),
        }
    }

    /// Compares in constant time.
    fn verifies(self, key: &[u8], data: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Sha256 => keyed::<Hmac<Sha256>>(key, data).verify_slice(signature).is_ok(),
            Self::Sha512 => keyed::<Hmac<Sha512>>(key, data).verify_slice(signature).is_ok(),
        }
    }

    /// `Hi` of RFC 5802, which is PBKDF2.
    fn salted(self, password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
        match self {
            Self::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, rounds).to_vec(),
            Self::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, rounds).to_vec(),
        }
    }
}

fn keyed<M: Mac + hmac::digest::KeyInit>(key: &[u8], data: &[u8]) -> M {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
    let mac = <M as Mac>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.chain_update(data)
}

/// Why the exchange ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The server's message that was read.
    pub(super) step: &'static str,
    pub(super) why: String,
}

const FIRST: &str = "the server's first message";
const FINAL: &str = "the server's final message";

fn first(why: impl Into<String>) -> Refusal {
    Refusal { step: FIRST, why: why.into() }
}

fn last(why: impl Into<String>) -> Refusal {
    Refusal { step: FINAL, why: why.into() }
}

/// The client's part of the nonce: 192 bits. It is no secret, but must not come again: a server that only replays what it
/// overheard is found out by it. Each generator is seeded from the system's randomness.
pub(super) fn nonce(environment: &Environment) -> String {
    let bytes: Vec<u8> = (0..3).flat_map(|_| environment.rng().next_u64().to_be_bytes()).collect();
    BASE64.encode(bytes)
}

/// The first message is out.
pub(super) struct Opened {
    hash: Hash,
    password: Secret,
    nonce: String,
    first_bare: String,
}

/// Begins an exchange; returns the first message.
pub(super) fn start(hash: Hash, username: &str, password: Secret, nonce: String) -> (Opened, Vec<u8>) {
    // RFC 5802: `,` and `=` delimit.
    let name = username.replace('=', "=3D").replace(',', "=2C");
    let first_bare = format!("n={name},r={nonce}");
    let message = format!("{GS2_HEADER}{first_bare}").into_bytes();
    (Opened { hash, password, nonce, first_bare }, message)
}

impl Opened {
    /// Reads `r=<nonce>,s=<salt>,i=<rounds>`.
    pub(super) fn handle_server_first(self, message: &[u8]) -> Result<Challenge, Refusal> {
        let text = std::str::from_utf8(message).map_err(|_| first("it is not UTF-8"))?;
        let mut attributes = text.split(',');
        let nonce = match attributes.next() {
            Some(mandatory) if mandatory.starts_with("m=") => {
                return Err(first("it demands an extension that this client does not have"));
            }
            Some(part) if part.starts_with("e=") => return Err(first(server_error(part))),
            part => value(part, 'r').ok_or_else(|| first("it does not begin with a nonce (r=)"))?,
        };
        let salt = value(attributes.next(), 's').ok_or_else(|| first("no salt (s=) follows the nonce"))?;
        let rounds =
            value(attributes.next(), 'i').ok_or_else(|| first("no round count (i=) follows the salt"))?;
        // Extensions are attributes too: a letter, `=`, something. None may say again what was said.
        if attributes.any(|part| !is_extension(part)) {
            return Err(first("what follows the round count is no extension"));
        }
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(first("its nonce does not continue this client's"));
        }
        if !nonce.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) {
            return Err(first("its nonce has characters that are not printable ASCII"));
        }
        let salt = BASE64.decode(salt).map_err(|_| first("its salt is not base64"))?;
        if salt.is_empty() {
            return Err(first("its salt is empty"));
        }
        let rounds = read_rounds(rounds)?;
        let without_proof = format!("c={},r={nonce}", BASE64.encode(GS2_HEADER));
        let signed = format!("{},{text},{without_proof}", self.first_bare);
        Ok(Challenge { hash: self.hash, password: self.password, salt, rounds, without_proof, signed })
    }
}

/// The value of the attribute that is expected at this place.
fn value(part: Option<&str>, name: char) -> Option<&str> {
    part?.strip_prefix(name)?.strip_prefix('=').filter(|value| !value.is_empty())
}

fn is_extension(part: &str) -> bool {
    let mut chars = part.chars();
    chars.next().is_some_and(|name| name.is_ascii_alphabetic() && !matches!(name, 'r' | 's' | 'i' | 'm'))
        && chars.next() == Some('=')
        && chars.next().is_some()
}

fn read_rounds(text: &str) -> Result<u32, Refusal> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(first("its round count is not a number"));
    }
    // A count that does not fit is above every limit.
    let rounds = text.parse().unwrap_or(u32::MAX);
    if rounds < ROUNDS_MIN {
        return Err(first(format!("it asks for {rounds} rounds, and fewer than {ROUNDS_MIN} are refused")));
    }
    if rounds > ROUNDS_MAX {
        return Err(first(format!("it asks for more rounds than the {ROUNDS_MAX} that are accepted")));
    }
    Ok(rounds)
}

/// What the server says with `e=`: short, and without what could confuse a terminal.
fn server_error(part: &str) -> String {
    format!("the server says {:?}", super::shown(part.get(2..).unwrap_or_default()))
}

/// A challenge that is in order.
pub(super) struct Challenge {
    hash: Hash,
    password: Secret,
    salt: Vec<u8>,
    pub(super) rounds: u32,
    without_proof: String,
    signed: String,
}

impl Challenge {
    /// Derives the key, which takes [`rounds`](Self::rounds) rounds, and returns the final message.
    pub(super) fn prove(self) -> (Proven, Vec<u8>) {
        let hash = self.hash;
        let salted = hash.salted(self.password.expose().as_bytes(), &self.salt, self.rounds);
        let client_key = hash.hmac(&salted, b"Client Key");
        let stored_key = hash.digest(&client_key);
        let signature = hash.hmac(&stored_key, self.signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, mask)| key ^ mask).collect();
        let message = format!("{},p={}", self.without_proof, BASE64.encode(proof)).into_bytes();
        let server_key = hash.hmac(&salted, b"Server Key");
        (Proven { hash, server_key, signed: self.signed }, message)
    }
}

/// The proof is out; the server must prove itself.
pub(super) struct Proven {
    hash: Hash,
    server_key: Vec<u8>,
    signed: String,
}

impl Proven {
    /// Reads `v=<signature>` and verifies it, or `e=<error>`. Only `Ok` means that the server knows the password.
    pub(super) fn handle_server_final(self, message: &[u8]) -> Result<(), Refusal> {
        let text = std::str::from_utf8(message).map_err(|_| last("it is not UTF-8"))?;
        let mut attributes = text.split(',');
        let signature = match attributes.next() {
            Some(part) if part.starts_with("e=") => return Err(last(server_error(part))),
            part => value(part, 'v').ok_or_else(|| last("it has no signature (v=)"))?,
        };
        if attributes.any(|part| !is_extension(part) || part.starts_with('v')) {
            return Err(last("what follows its signature is no extension"));
        }
        let signature = BASE64.decode(signature).map_err(|_| last("its signature is not base64"))?;
        if self.hash.verifies(&self.server_key, self.signed.as_bytes(), &signature) {
            Ok(())
        } else {
            Err(last("its signature is wrong: the server does not know the password"))
        }
    }
}

/// Reads a server's two messages, with line feeds between them, without the rounds: they are work and nothing else.
#[cfg(any(test, feature = "unstable-fuzzing"))]
pub(crate) fn fuzz(input: &[u8]) {
    let mut messages = input.split(|byte| *byte == b'\n');
    let nonce = "fyko+d2lbbFgONRv9qkxdawL".to_owned();
    let (opened, _) = start(Hash::Sha256, "user", Secret::new("pencil"), nonce);
    if let Ok(challenge) = opened.handle_server_first(messages.next().unwrap_or_default()) {
        assert!((ROUNDS_MIN..=ROUNDS_MAX).contains(&challenge.rounds) && !challenge.salt.is_empty());
    }
    let proven = Proven { hash: Hash::Sha256, server_key: vec![7; 32], signed: String::new() };
    assert!(
        proven.handle_server_final(messages.next().unwrap_or_default()).is_err(),
        "nobody knows that key"
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    /// RFC 7677, section 3.
    const RFC_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const RFC_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn opened(hash: Hash) -> Opened {
        start(hash, "user", Secret::new("pencil"), NONCE.to_owned()).0
    }

    fn refusal(message: &[u8]) -> String {
        match opened(Hash::Sha256).handle_server_first(message) {
            Err(Refusal { step: FIRST, why }) => why,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{} is accepted", message.escape_ascii()),
        }
    }

    fn proven() -> Proven {
        opened(Hash::Sha256)
            .handle_server_first(RFC_FIRST.as_bytes())
            .map(|challenge| challenge.prove().0)
            .unwrap_or_else(|r| panic!("{r:?}"))
    }

    #[test]
    fn the_exchange_of_rfc_7677_is_made_byte_by_byte() {
        let (opened, message) = start(Hash::Sha256, "user", Secret::new("pencil"), NONCE.to_owned());
        assert_eq!(message, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = opened.handle_server_first(RFC_FIRST.as_bytes()).ok().unwrap();
        assert_eq!(challenge.rounds, 4096);
        let (proven, message) = challenge.prove();
        assert_eq!(
            String::from_utf8(message).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(proven.handle_server_final(RFC_FINAL.as_bytes()), Ok(()));
    }

    /// The values are of Python's `hashlib.pbkdf2_hmac` and `hmac`.
    #[test]
    fn sha_512_makes_the_proof_an_independent_implementation_makes() {
        let challenge = opened(Hash::Sha512).handle_server_first(RFC_FIRST.as_bytes()).ok().unwrap();
        let (proven, message) = challenge.prove();
        assert!(String::from_utf8(message).unwrap().ends_with(SHA_512_PROOF));
        assert_eq!(proven.handle_server_final(SHA_512_FINAL.as_bytes()), Ok(()));
    }

    const SHA_512_PROOF: &str =
        "p=gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==";
    const SHA_512_FINAL: &str =
        "v=ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==";

    #[test]
    fn delimiters_in_a_user_name_are_escaped_and_nothing_is_normalized() {
        let (_, message) = start(Hash::Sha512, "a=b,c\u{b2}", Secret::new("x"), "N".to_owned());
        assert_eq!(String::from_utf8(message).unwrap(), "n,,n=a=3Db=2Cc\u{b2},r=N");
        let salted = |password: &str| Hash::Sha256.salted(password.as_bytes(), b"salt", 4096);
        assert_ne!(salted("m\u{b2}x"), salted("m2x"), "SASLprep would make them one");
    }

    #[test]
    fn every_malformed_first_message_is_refused_with_its_reason() {
        let n = format!("{NONCE}x");
        let table: &[(String, &str)] = &[
            (String::new(), "does not begin with a nonce"),
            ("r".to_owned(), "does not begin with a nonce"),
            ("r=".to_owned(), "does not begin with a nonce"),
            (",".to_owned(), "does not begin with a nonce"),
            (",,,".to_owned(), "does not begin with a nonce"),
            (format!("s={SALT},r={n},i=4096"), "does not begin with a nonce"),
            (format!("R={n},s={SALT},i=4096"), "does not begin with a nonce"),
            (format!("r={n}"), "no salt"),
            (format!("r={n},"), "no salt"),
            (format!("r={n},s=,i=4096"), "no salt"),
            (format!("r={n},i=4096,s={SALT}"), "no salt"),
            (format!("r={n},r={n},s={SALT},i=4096"), "no salt"),
            (format!("r={n},s={SALT}"), "no round count"),
            (format!("r={n},s={SALT},s={SALT},i=4096"), "no round count"),
            (format!("r={n},s={SALT},i="), "no round count"),
            (format!("r={n},s={SALT},i=4096,i=4096"), "no extension"),
            (format!("r={n},s={SALT},i=4096,"), "no extension"),
            (format!("r={n},s={SALT},i=4096,x"), "no extension"),
            (format!("r={n},s={SALT},i=4096,x="), "no extension"),
            (format!("r={n},s={SALT},i=4096,m=x"), "no extension"),
            (format!("r={n},s={SALT},i=4096,r={n}"), "no extension"),
            (format!("r={n},s={SALT},i=4096,s={SALT}"), "no extension"),
            (format!("r={n},s={SALT},i=4096,1=x"), "no extension"),
            (format!("r={n},s={SALT},i=4096,xy=z"), "no extension"),
            (format!("m=tls,r={n},s={SALT},i=4096"), "demands an extension"),
            (format!("r={NONCE},s={SALT},i=4096"), "does not continue"),
            (format!("r={},s={SALT},i=4096", &NONCE[1..]), "does not continue"),
            (format!("r=x{NONCE},s={SALT},i=4096"), "does not continue"),
            (format!("r={NONCE}\u{e9},s={SALT},i=4096"), "printable ASCII"),
            (format!("r={NONCE} x,s={SALT},i=4096"), "printable ASCII"),
            (format!("r={NONCE}\u{7f},s={SALT},i=4096"), "printable ASCII"),
            (format!("r={n},s=****,i=4096"), "not base64"),
            (format!("r={n},s=W22ZaJ0SNY7soEsUEjb6gQ,i=4096"), "not base64"),
            (format!("r={n},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-1"), "not a number"),
            (format!("r={n},s={SALT},i=+4096"), "not a number"),
            (format!("r={n},s={SALT},i=4096.0"), "not a number"),
            (format!("r={n},s={SALT},i=0"), "fewer than 4096"),
            (format!("r={n},s={SALT},i=1"), "fewer than 4096"),
            (format!("r={n},s={SALT},i=4095"), "fewer than 4096"),
            (format!("r={n},s={SALT},i=1000001"), "more rounds"),
            (format!("r={n},s={SALT},i=4294967296"), "more rounds"),
            (format!("r={n},s={SALT},i=99999999999999999999999"), "more rounds"),
            ("e=other-error".to_owned(), "the server says \"other-error\""),
            ("e=".to_owned(), "the server says \"\""),
        ];
        for (message, why) in table {
            let found = refusal(message.as_bytes());
            assert!(found.contains(why), "{message}: {found}");
        }
        for message in [&b"\xff"[..], b"r=\xc3", b"\0", &[b'r'; 100_000]] {
            refusal(message);
        }
        assert!(refusal(b"r=\xff\xff,s=AA==,i=4096").contains("UTF-8"));
    }

    #[test]
    fn limits_of_the_rounds_and_extensions_are_accepted() {
        for tail in ["i=4096", "i=1000000", "i=8192,x=more,y=z"] {
            let message = format!("r={NONCE}x,s={SALT},{tail}");
            assert!(opened(Hash::Sha512).handle_server_first(message.as_bytes()).is_ok(), "{tail}");
        }
        let message = format!("r={NONCE}!~,s={SALT},i=4096");
        assert!(
            opened(Hash::Sha256).handle_server_first(message.as_bytes()).is_ok(),
            "the first and the last"
        );
    }

    #[test]
    fn every_malformed_final_message_is_refused_with_its_reason() {
        let other = format!("v={}", BASE64.encode([7; 32]));
        let short = format!("v={}", BASE64.encode([7; 31]));
        let table: &[(&[u8], &str)] = &[
            (b"", "no signature"),
            (b"v", "no signature"),
            (b"v=", "no signature"),
            (b"x", "no signature"),
            (b",", "no signature"),
            (b"V=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "no signature"),
            (b"v=****", "not base64"),
            (b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4", "not base64"),
            (other.as_bytes(), "does not know the password"),
            (short.as_bytes(), "does not know the password"),
            (b"v=AA==", "does not know the password"),
            (b"e=invalid-proof", "the server says \"invalid-proof\""),
            (b"e", "no signature"),
            (b"\xff\xfe", "UTF-8"),
        ];
        for (message, why) in table {
            let Refusal { step, why: found } = proven().handle_server_final(message).unwrap_err();
            assert_eq!(step, FINAL);
            assert!(found.contains(why), "{}: {found}", message.escape_ascii());
        }
        for twice in [format!("{RFC_FINAL},{RFC_FINAL}"), format!("{RFC_FINAL},"), format!("{RFC_FINAL}\0")] {
            assert!(proven().handle_server_final(twice.as_bytes()).is_err(), "{twice:?}");
        }
        assert_eq!(proven().handle_server_final(format!("{RFC_FINAL},x=y").as_bytes()), Ok(()));
    }

    #[test]
    fn nonces_are_printable_long_and_never_the_same() {
        let seen: std::collections::BTreeSet<String> =
            (0..1000).map(|_| nonce(&Environment::default())).collect();
        assert_eq!(seen.len(), 1000);
        assert!(seen.iter().all(|nonce| nonce.len() == 32 && !nonce.contains(',')));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_of_a_server_panic(noise in proptest::collection::vec(any::<u8>(), 0..80), text in "[rsivme=,]{0,20}.{0,20}") {
            for message in [&noise[..], text.as_bytes(), &[b"r=", NONCE.as_bytes(), &noise].concat()] {
                let _ = opened(Hash::Sha512).handle_server_first(message);
            }
            let proven = Proven { hash: Hash::Sha256, server_key: vec![1; 32], signed: String::new() };
            prop_assert!(proven.handle_server_final(&noise).is_err());
            let proven = Proven { hash: Hash::Sha256, server_key: vec![1; 32], signed: String::new() };
            prop_assert!(proven.handle_server_final(text.as_bytes()).is_err());
        }

        #[test]
        fn a_changed_exchange_is_never_accepted(at in 0..RFC_FIRST.len(), with in any::<u8>()) {
            // The server signs what it sent; a client that saw something else finds the signature wrong.
            let mut message = RFC_FIRST.as_bytes().to_vec();
            prop_assume!(message[at] != with);
            message[at] = with;
            if let Ok(mut challenge) = opened(Hash::Sha256).handle_server_first(&message) {
                challenge.rounds = challenge.rounds.min(5000);
                prop_assert!(challenge.prove().0.handle_server_final(RFC_FINAL.as_bytes()).is_err());
            }
        }
    }
}
