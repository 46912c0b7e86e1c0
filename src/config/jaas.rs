//! Java's `sasl.jaas.config`, as people paste it. Errors never repeat any of it.

use super::settings::{SaslMechanism, Secret};

/// What the login string says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jaas {
    pub(crate) module: Module,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Module {
    /// Means the mechanism PLAIN.
    Plain,
    /// Means SCRAM, without saying which: `sasl.mechanism` must.
    Scram,
}

impl Module {
    pub(crate) fn fits(self, mechanism: SaslMechanism) -> bool {
        (self == Self::Plain) == (mechanism == SaslMechanism::Plain)
    }
}

const ACCEPTED: &str = "accepted: org.apache.kafka.common.security.plain.PlainLoginModule or \
    org.apache.kafka.common.security.scram.ScramLoginModule, then required username=\"...\" password=\"...\";";

/// Reads `<module> required username="…" password="…";`.
pub(crate) fn parse(text: &str) -> Result<Jaas, String> {
    let text = text.trim();
    let (module, rest) = text.split_once(char::is_whitespace).ok_or(ACCEPTED)?;
    let module = match module.rsplit('.').next() {
        Some("PlainLoginModule") => Module::Plain,
        Some("ScramLoginModule") => Module::Scram,
        _ => return Err(ACCEPTED.to_owned()),
    };
    let (_flag, mut rest) = rest.trim_start().split_once(char::is_whitespace).ok_or(ACCEPTED)?;
    let (mut username, mut password) = (None, None);
    loop {
        rest = rest.trim_start();
        if matches!(rest, "" | ";") {
            break;
        }
        let (name, value) = rest.split_once('=').ok_or(ACCEPTED)?;
        let (value, after) = read_value(value.trim_start()).ok_or(ACCEPTED)?;
        match name.trim() {
            "username" => username = Some(value),
            "password" => password = Some(Secret::new(value)),
            "tokenauth" if value.eq_ignore_ascii_case("true") => {
                return Err("delegation tokens (tokenauth) are not supported".to_owned());
            }
            _ => {}
        }
        rest = after;
    }
    match (username, password) {
        (Some(username), Some(password)) => Ok(Jaas { module, username, password }),
        _ => Err(format!("username or password is missing; {ACCEPTED}")),
    }
}

/// A quoted value with backslash escapes, or a bare one, and what follows it.
fn read_value(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let (_, quote @ ('"' | '\'')) = chars.next()? else {
        let end = text.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (!value.is_empty()).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, text.get(at + 1..).unwrap_or("")));
        }
        value.push(if c == '\\' { chars.next()?.1 } else { c });
    }
    None
}
