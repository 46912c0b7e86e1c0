//! What of a name or a value an error, `Debug` or a log may repeat.
//!
//! People paste keys into the wrong setter, forget to encode a `&`, and break a key over lines, so that a part of a secret
//! stands where a name, a number or a file is wanted. Nothing is repeated here that could be such a part: at most seven
//! characters, or what is nearly a word that is known anyway, or what has the form of a path.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use super::{
    Entry, env, jaas,
    properties::{self, Kind},
    settings::Secret,
    url,
};
use crate::sorted::{Map, Set};

pub(crate) const HIDDEN: &str = "[hidden]";
/// Bytes in a row that give a secret away.
const TELLING: usize = 8;
/// No property has a longer name.
const LONGEST_NAME: usize = 60;
/// Longer runs of base64 are keys rather than names.
const LONGEST_RUN: usize = 40;
/// What other clients accept, or people try, where one word out of few is wanted.
const OTHER_VALUES: &[&str] = &[
    "beginning",
    "smallest",
    "largest",
    "GSSAPI",
    "OAUTHBEARER",
    "AWS_MSK_IAM",
    "SCRAM-SHA-1",
    "PLAINTEXT_SASL",
    "read_committed_only",
    "CooperativeSticky",
];
/// Words of Java's and librdkafka's properties that are not in our table.
const OTHER_WORDS: &[&str] = &[
    "admin", "assignor", "async", "aws", "broker", "bucket", "buffer", "cache", "calls", "callback", "claim",
    "clock", "cluster", "config", "connect", "connector", "controller", "credentials", "crl", "data",
    "debug", "delete", "dns", "engine", "expected", "factor", "factory", "fallback", "family", "fetcher",
    "filter", "grant", "header", "heartbeats", "host", "http", "https", "iam", "include", "issuer", "jitter",
    "jwks", "jwt", "kafka", "keytab", "kinit", "krb5", "lag", "limit", "list", "listener", "log", "login",
    "lookup", "min", "name", "oauth", "oauthbearer", "oidc", "partition", "period", "plugin", "port",
    "principal", "private", "public", "queue", "queued", "random", "rate", "reader", "rebalance", "recovery",
    "refresh", "region", "registry", "renew", "replica", "replication", "response", "scheme", "schema",
    "scope", "secure", "seed", "server", "servers", "service", "skew", "socket", "source", "sparse", "state",
    "statistics", "stats", "stream", "streams", "strategy", "sub", "sync", "tcp", "thread", "threads",
    "time", "timestamp", "token", "topic", "topics", "transaction", "ts", "uri", "user", "validate", "value",
    "version", "window", "worker", "write",
];

/// An unknown property's name, where a message may repeat it: it is nearly a known one, or every word of it is, or nearly
/// is, a word of some property.
pub(crate) fn name(name: &str) -> Option<&str> {
    let name = name.trim();
    if name.is_empty() || name.len() > LONGEST_NAME {
        return None;
    }
    (env::near_miss(name).is_some() || name.split(['.', '_', '-']).all(is_known_word)).then_some(name)
}

fn is_known_word(word: &str) -> bool {
    if !word.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let word = word.to_ascii_lowercase();
    // A letter in three may be wrong, two at most.
    let slack = (word.len() / 3).min(2);
    let ours = properties::names().flat_map(|name| name.split('.'));
    ours.chain(OTHER_WORDS.iter().copied()).any(|known| {
        known == word
            || (known.len().abs_diff(word.len()) <= slack && properties::edit_distance(&word, known) <= slack)
    })
}

/// A name, or why it is left out.
pub(crate) fn name_or_length(text: &str) -> String {
    match name(text) {
        Some(name) => format!("{name:?}"),
        None => {
            format!("of {} characters (not repeated: it may be a part of a secret)", text.chars().count())
        }
    }
}

/// A value that is refused, where the accepted ones are few words: short, or nearly one of them.
pub(crate) fn refused<'a>(value: &'a str, accepted: &[&str]) -> Cow<'a, str> {
    let trimmed = value.trim();
    let lower = trimmed.to_ascii_lowercase();
    let near = |one: &&str| {
        one.len().abs_diff(lower.len()) <= 2
            && properties::edit_distance(&lower, &one.to_ascii_lowercase()) <= 2
    };
    let is_known = || accepted.iter().chain(OTHER_VALUES).any(near);
    if trimmed.chars().count() < TELLING || is_known() { value.into() } else { HIDDEN.into() }
}

/// A value that is no number in its bounds.
pub(crate) fn refused_number(value: &str) -> Cow<'_, str> {
    let number = value.trim().parse::<i64>().is_ok();
    if number || value.chars().count() < TELLING { value.into() } else { HIDDEN.into() }
}

/// A text that may be anything, unless it looks like key, login or URL.
pub(crate) fn text(value: &str) -> Cow<'_, str> {
    if looks_secret(value) { HIDDEN.into() } else { value.into() }
}

fn looks_secret(value: &str) -> bool {
    const MARKS: [&str; 4] = ["-----", "PRIVATE KEY", "LoginModule", "assword"];
    value.chars().count() > 200
        || value.chars().any(char::is_control)
        || MARKS.iter().any(|mark| value.contains(mark))
        || (value.contains("://") && value.contains('@'))
        || longest_run(value) > LONGEST_RUN
}

/// A list of hosts, in which no name is as long as a key.
pub(crate) fn hosts(value: String) -> String {
    if longest_run(&value) > LONGEST_RUN { HIDDEN.to_owned() } else { value }
}

fn longest_run(value: &str) -> usize {
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    value.split(|c| !base64(c)).map(str::len).max().unwrap_or(0)
}

/// A file's name, where it has the form of one: people give the text of a key to the setter of its file.
pub(crate) fn file(path: &str) -> Option<&str> {
    const ENDINGS: [&str; 12] =
        ["pem", "crt", "cer", "cert", "key", "p8", "pk8", "jks", "p12", "pfx", "txt", "properties"];
    let drive = || {
        let mut chars = path.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':')
    };
    let ending = path
        .rsplit_once('.')
        .is_some_and(|(_, ending)| ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending)));
    let begins = ["/", "./", "../", "~"].iter().any(|start| path.starts_with(start));
    // A path's parts are short; base64 has a slash now and then.
    let parts = || path.split(['/', '\\', '.', '-', '_', ' ']).all(|part| part.len() <= LONGEST_RUN);
    let named = begins || ending || drive();
    (named && parts() && !looks_secret_at_all(path)).then_some(path)
}

fn looks_secret_at_all(value: &str) -> bool {
    value.contains("-----") || value.contains("://") || value.chars().any(char::is_control)
}

/// A file's name as a message says it.
pub(crate) fn path(path: &str) -> String {
    match file(path) {
        Some(path) => format!("{path:?}"),
        None => format!(
            "a file whose name of {} characters is not repeated, since it does not look like one (text goes into the setting \
             for text)",
            path.chars().count()
        ),
    }
}

/// A text of somebody who has seen the secret, without it: verbatim, in hexadecimal and in base64, whole or in part.
pub(crate) fn without(text: &str, secret: &str) -> String {
    let text = match secret.len() {
        // A secret this short would be found in any text.
        0..4 => text.to_owned(),
        _ => text.replace(secret, HIDDEN),
    };
    let windows: Set<Vec<u8>> = forms(secret)
        .iter()
        .flat_map(|form| form.windows(TELLING).map(<[u8]>::to_vec).collect::<Vec<_>>())
        .collect();
    let mut told = vec![false; text.len()];
    for (at, window) in text.as_bytes().windows(TELLING).enumerate() {
        if windows.contains(window) {
            told[at..at + TELLING].fill(true);
        }
    }
    let mut shown = String::with_capacity(text.len());
    let mut was_told = false;
    for (at, c) in text.char_indices() {
        let is_told = told.get(at..at + c.len_utf8()).is_some_and(|bytes| bytes.contains(&true));
        match (is_told, was_told) {
            (false, _) => shown.push(c),
            (true, false) => shown.push_str(HIDDEN),
            (true, true) => {}
        }
        was_told = is_told;
    }
    shown
}

/// How a secret may be written.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut forms = vec![secret.as_bytes().to_vec(), hex.to_ascii_uppercase().into_bytes(), hex.into_bytes()];
    // Base64 makes four characters of three bytes. How many bytes stand before the secret decides the characters, of
    // which the first are mixed with those bytes.
    for (before, mixed) in [(0, 0), (1, 2), (2, 3)] {
        let encoded = BASE64.encode([&vec![0; before], secret.as_bytes()].concat());
        forms.push(encoded.trim_end_matches('=').bytes().skip(mixed).collect());
    }
    forms
}

/// The secrets of a configuration, to find them where they do not belong.
#[derive(Default)]
pub(super) struct Secrets(Set<[u8; TELLING]>);

impl Secrets {
    pub(super) fn of(entries: &Map<&'static str, Entry>) -> Self {
        let mut secrets = Self::default();
        for (name, entry) in entries {
            match properties::kind(name) {
                Kind::Url => match url::parse(&entry.value) {
                    Ok(url) => {
                        secrets.add(url.password.as_ref().map_or("", Secret::expose));
                        for (name, value) in &url.parameters {
                            if properties::kind(name) == Kind::Secret {
                                secrets.add(value.expose());
                            }
                        }
                    }
                    Err(_) => secrets.add(entry.value.split_once("://").map_or("", |(_, rest)| rest)),
                },
                Kind::Secret if *name == "sasl.jaas.config" => match jaas::parse(&entry.value) {
                    Ok(login) => secrets.add(login.password.expose()),
                    Err(_) => secrets.add(&entry.value),
                },
                Kind::Secret => secrets.add(&entry.value),
                _ => {}
            }
        }
        secrets
    }

    fn add(&mut self, secret: &str) {
        self.0.extend(
            secret.as_bytes().windows(TELLING).filter_map(|window| <[u8; TELLING]>::try_from(window).ok()),
        );
    }

    /// The value as a message may show it, whatever property it was given to.
    pub(super) fn shown(&self, kind: Kind, value: &str) -> String {
        let shown = properties::shown(kind, value);
        if self.are_in(&shown) { HIDDEN.to_owned() } else { shown }
    }

    /// Whether a text has enough of a secret in it to give it away.
    pub(super) fn are_in(&self, text: &str) -> bool {
        !self.0.is_empty()
            && text
                .as_bytes()
                .windows(TELLING)
                .any(|window| <[u8; TELLING]>::try_from(window).is_ok_and(|window| self.0.contains(&window)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_repeated_only_where_their_words_are_known() {
        for harmless in [
            "grup_id",
            "bootstrap.sever",
            "sasl.oauthbearer.token.endpoint.url",
            "FETCH_MIN_BYTE",
            "schema.registry.url",
        ] {
            assert_eq!(name(harmless), Some(harmless));
        }
        for telling in [
            "tKeyPart",
            "MIGHAgEAMBMGByqGSM49",
            "sasl.password=hunter2-Zq9",
            "sasl.password.hunter2Zq9",
            "",
            "ssl.h\u{fc}nter",
        ] {
            assert_eq!(name(telling), None, "{telling}");
        }
        assert!(name(&"group.".repeat(20)).is_none());
    }

    #[test]
    fn refused_values_are_repeated_only_where_short_or_nearly_right() {
        let accepted = ["SASL_PLAINTEXT", "SCRAM-SHA-256"];
        for harmless in ["sasl-plaintext", "SCRAM-SHA256", "GSSAPI", ""] {
            assert_eq!(refused(harmless, &accepted), harmless);
        }
        assert_eq!(refused("hunter2-Zq9", &accepted), HIDDEN);
        assert_eq!(refused_number("3000000000"), "3000000000");
        assert_eq!(refused_number("30sec"), "30sec");
        assert_eq!(refused_number("hunter2-Zq9"), HIDDEN);
    }

    #[test]
    fn what_looks_like_a_key_a_login_or_a_url_is_hidden_and_names_are_not() {
        for harmless in ["billing", "orders-2024.eu-central-1", "/etc/kafka/secrets/ca.pem", "CN=alice,OU=x"]
        {
            assert_eq!(text(harmless), harmless);
        }
        for telling in [
            "-----BEGIN PRIVATE KEY-----",
            "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg",
            "two\nlines",
            "kafka://u:p@h",
            "org.apache.kafka.common.security.plain.PlainLoginModule required",
        ] {
            assert_eq!(text(telling), HIDDEN);
        }
    }

    #[test]
    fn who_has_seen_a_secret_does_not_give_it_away_in_any_form_or_part() {
        const SECRET: &str = "Canary7f3A9c2E+pa55/W\u{f6}8Zt";
        let bytes = SECRET.as_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut told =
            vec![SECRET.to_owned(), SECRET[..12].to_owned(), SECRET[7..].to_owned(), hex.to_uppercase(), hex];
        for before in ["", "\0u\0", "\0user\0", "\0users\0", "u:"] {
            told.push(BASE64.encode(format!("{before}{SECRET}")));
        }
        let encoded: Vec<String> =
            ["", "1", "12"].map(|before| BASE64.encode(format!("{before}{SECRET}"))).into();
        for told in told {
            let text = without(&format!("no such user: {told}, or it is locked"), SECRET);
            assert!(text.starts_with("no such user: ") && text.contains(HIDDEN), "{text}");
            assert!(text.ends_with(", or it is locked"), "{text}");
            for form in
                [SECRET.as_bytes()].into_iter().chain(encoded.iter().map(|form| &form.as_bytes()[4..]))
            {
                let shown = |window: &&[u8]| text.as_bytes().windows(TELLING).any(|part| part == *window);
                assert!(form.windows(TELLING).all(|window| !shown(&window)), "{text}");
            }
        }
        assert_eq!(without("Authentication failed", SECRET), "Authentication failed");
        assert_eq!(without("the user pen has a pen", "pen"), "the user pen has a pen");
        assert_eq!(without("not hunt-7 again", "hunt-7"), "not [hidden] again");
    }

    #[test]
    fn paths_are_repeated_and_what_is_none_is_not() {
        for harmless in ["/etc/kafka/ca", "certs/client.PEM", "./x", "~/k", "C:\\kafka\\ca.crt"] {
            assert_eq!(path(harmless), format!("{harmless:?}"));
        }
        for telling in
            ["hunter2-Zq9", "-----BEGIN.pem", "/MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg", "a\nb.pem"]
        {
            assert!(path(telling).starts_with("a file whose name"), "{telling}");
        }
    }
}
