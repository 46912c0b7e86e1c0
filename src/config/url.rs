//! `kafka://user:password@host1:9092,host2:9092?group_id=billing` and plain `host1:9092,host2` lists.
//!
//! Errors name the part that is wrong, never its text: a part that cannot be read may be half a password.

use std::net::Ipv6Addr;

use crate::sorted::Set;

use super::{
    properties::{self, Kind},
    secrecy::{self, HIDDEN},
    settings::{Address, Secret},
};

/// Kafka's customary port.
const DEFAULT_PORT: u16 = 9092;

/// What a URL says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct KafkaUrl {
    pub(crate) addresses: Vec<Address>,
    /// `kafkas://`
    pub(crate) tls: bool,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    /// Java names and values of the query, in order.
    pub(crate) parameters: Vec<(&'static str, Secret)>,
}

/// Reads a URL, or a plain list of addresses.
pub(crate) fn parse(text: &str) -> Result<KafkaUrl, String> {
    let text = text.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(KafkaUrl { addresses: parse_addresses(text)?, ..KafkaUrl::default() });
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "kafka" => false,
        "kafkas" => true,
        _ => return Err("its scheme must be kafka:// or kafkas:// (TLS)".to_owned()),
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if tail.contains('@') {
        return Err(
            "there is an @ behind the hosts: write / ? and @ inside the user name, the password and the \
                    query percent-encoded, as %2F %3F and %40"
                .to_owned(),
        );
    }
    let query = match tail.strip_prefix('/').unwrap_or(tail) {
        "" => "",
        query => query
            .strip_prefix('?')
            .ok_or("it has a path, which means nothing here: write the topic where the client is made")?,
    };
    // A host never holds an @, so that the last one ends the user info even if a password has a bare one.
    let ((username, password), hosts) = match authority.rsplit_once('@') {
        Some((user_info, _)) if user_info.split_once('@').is_some_and(|(_, rest)| rest.contains(',')) => {
            return Err("user and password stand once, before the first host; write @ and , inside them as %40 and %2C"
                .to_owned());
        }
        Some((user_info, hosts)) => (parse_user_info(user_info)?, hosts),
        None => ((None, None), authority),
    };
    let addresses = parse_addresses(hosts)?;
    Ok(KafkaUrl { addresses, tls, username, password, parameters: parse_query(query)? })
}

fn parse_user_info(text: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (user, password) = split(text, ':');
    let user = decode(user).ok_or("its user name is not percent-encoded UTF-8")?;
    let read = |password| decode(password).map(Secret::new);
    let unreadable = "its password is not percent-encoded UTF-8 (write % as %25)";
    let password = password.map(|password| read(password).ok_or(unreadable)).transpose()?;
    if user.is_empty() {
        return Err("there is no user name before its @".to_owned());
    }
    Ok((Some(user), password))
}

/// What stands before the first of these signs, and what behind it, if there is one.
fn split(text: &str, sign: char) -> (&str, Option<&str>) {
    text.split_once(sign).map_or((text, None), |(before, behind)| (before, Some(behind)))
}

fn parse_query(query: &str) -> Result<Vec<(&'static str, Secret)>, String> {
    let mut parameters = Vec::new();
    let mut seen = Set::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(
                "a part of its query has no `=`: accepted is name=value&name=value, with & inside a value \
                        written as %26"
                    .to_owned(),
            );
        };
        let name = decode(name).ok_or("a name in its query is not percent-encoded UTF-8")?;
        let Some(found) = properties::find(&name) else {
            return Err(format!(
                "its query has an unknown name {}; the nearest known one is {} (write & inside a value as %26)",
                secrecy::name_or_length(&name),
                properties::nearest(&name).0
            ));
        };
        let name = found.name();
        if matches!(found.kind(), Kind::Url | Kind::Addresses) {
            return Err(format!("{name} cannot stand in its query: name the hosts before it"));
        }
        if !seen.insert(name) {
            return Err(format!("its query sets {name} twice"));
        }
        let value =
            decode(value).ok_or_else(|| format!("{name} in its query is not percent-encoded UTF-8"))?;
        parameters.push((name, Secret::new(value)));
    }
    Ok(parameters)
}

/// Reads `host:port` items separated by commas. Empty items are skipped, as Java does.
pub(crate) fn parse_addresses(text: &str) -> Result<Vec<Address>, String> {
    if text.contains("://") {
        return Err(
            "accepted: host:port,host:port without PLAINTEXT:// or another scheme in front (security.protocol says it); a \
             kafka:// URL belongs into set_kafka_url"
                .to_owned(),
        );
    }
    if text.contains('@') {
        return Err("accepted: host:port,host:port; user and password belong into a kafka:// URL or the sasl settings"
            .to_owned());
    }
    let mut addresses = Vec::new();
    for (item, number) in text.split(',').zip(1..) {
        let item = item.trim();
        if !item.is_empty() {
            let address = parse_address(item).map_err(|why| format!("address {number}: {why}"))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    if addresses.is_empty() {
        Err("no host is named; accepted: host:port,host:port".to_owned())
    } else {
        Ok(addresses)
    }
}

fn parse_address(text: &str) -> Result<Address, String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("an IPv6 address needs its closing bracket")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err("what stands in brackets is not an IPv6 address".to_owned());
        }
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').ok_or("a port follows the closing bracket after a colon")?),
        };
        (host, port)
    } else {
        let (host, port) = split(text, ':');
        if text.parse::<Ipv6Addr>().is_ok() || port.is_some_and(|port| port.contains(':')) {
            return Err(
                "write an IPv6 address in brackets, as [::1]:9092; several hosts are separated by commas"
                    .to_owned(),
            );
        }
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(
                "accepted is a host name or an IP address: letters, digits, `.`, `-` and `_`".to_owned()
            );
        }
        (host, port)
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return Err("its port is not a number from 1 to 65535".to_owned()),
        },
    };
    Ok(Address { host: host.to_owned(), port })
}

/// Percent-decodes; `None` if that is not UTF-8 or a `%` is not followed by two hex digits.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(*rest.next()?).to_digit(16)?;
            let low = char::from(*rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The URL as messages may show it: user info and secrets hidden, all of it hidden where it cannot be read.
pub(crate) fn redacted(text: &str) -> String {
    let Ok(url) = parse(text) else { return HIDDEN.to_owned() };
    let mut shown = String::new();
    if text.contains("://") {
        shown.push_str(if url.tls { "kafkas://" } else { "kafka://" });
    }
    if url.username.is_some() {
        shown.push_str(HIDDEN);
        shown.push('@');
    }
    shown.push_str(&join(&url.addresses));
    for ((name, value), first) in
        url.parameters.iter().zip(std::iter::once('?').chain(std::iter::repeat('&')))
    {
        let value = properties::shown(properties::kind(name), value.expose());
        shown.push_str(&format!("{first}{name}={value}"));
    }
    shown
}

/// The addresses as `bootstrap.servers` writes them.
pub(crate) fn join(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
