//! What was set, merged from all sources, with every value checked by itself; and the methods that read typed values from
//! it.

use std::{cell::LazyCell, str::FromStr, time::Duration};

use super::{
    Entry, KafkaConfig, Origin,
    properties::{self, Found, LONGEST_MS},
    secrecy::{self, Secrets},
    settings::{Secret, SecurityProtocol},
    url::{self, KafkaUrl},
};
use crate::{
    error::{Error, ErrorKind, Result},
    sorted::{Map, Set},
};

/// Every source merged, and what is wrong with it.
#[derive(Default)]
pub(super) struct Effective {
    pub(super) entries: Map<&'static str, Entry>,
    pub(super) problems: Vec<String>,
    /// Worth a warning, no reason to refuse.
    pub(super) notes: Vec<String>,
}

impl KafkaConfig {
    /// The URL and the setters merged.
    pub(super) fn effective(&self) -> Effective {
        let (problems, notes) = (self.problems.clone(), self.notes.clone());
        let mut all = Effective { problems, notes, ..Effective::default() };
        let url = self.entries.get("kafka.url").map(|entry| url::parse(&entry.value));
        match url {
            Some(Ok(url)) => {
                all.take_url(&url);
                self.take_setters(&mut all);
                all.imply_security(&url);
            }
            Some(Err(why)) => {
                all.problems.push(format!("kafka.url cannot be read: {why}"));
                self.take_setters(&mut all);
            }
            None => self.take_setters(&mut all),
        }
        all
    }

    fn take_setters(&self, all: &mut Effective) {
        for (name, entry) in &self.entries {
            match all.entries.get(name) {
                // As `set_kafka_url` says, the URL overrides the bootstrap servers.
                Some(_) if *name == "bootstrap.servers" && entry.origin == Origin::Set => {
                    if url::parse_addresses(&entry.value).is_err() {
                        let secrets = LazyCell::new(|| Secrets::of(&all.entries));
                        let problem = bad_value(name, entry, &secrets).unwrap_or_default();
                        all.problems.push(problem);
                    }
                    continue;
                }
                Some(said) if entry.origin == Origin::Set && !same(&said.value, &entry.value) => {
                    let (kind, secrets) = (properties::kind(name), Secrets::of(&self.entries));
                    let (there, here) = (secrets.shown(kind, &said.value), secrets.shown(kind, &entry.value));
                    all.problems.push(format!(
                        "{name} is {there:?} in kafka.url and {here:?} outside of it: keep one of them"
                    ));
                }
                _ => {}
            }
            all.entries.insert(name, entry.clone());
        }
    }

    /// Merged, and every value checked by itself.
    pub(super) fn checked(&self) -> Effective {
        let mut all = self.effective();
        let secrets = LazyCell::new(|| Secrets::of(&all.entries));
        let bad: Vec<_> =
            all.entries.iter().filter_map(|(name, entry)| bad_value(name, entry, &secrets)).collect();
        all.problems.extend(bad);
        let ignored = |name: &&&'static str| matches!(properties::find(name), Some(Found::Ignored(_)));
        all.notes.extend(all.entries.keys().filter(ignored).map(|name| match *name {
            "interceptor.classes" => {
                format!("{name} names Java classes: set ProducerConfig::interceptor in code")
            }
            "partitioner.class" => {
                format!("{name} names a Java class: set partitioner, or ProducerConfig::partitioner in code")
            }
            "statistics.interval.ms" => {
                format!("{name} has no effect in this client: its numbers are in metrics()")
            }
            name => format!("{name} has no effect in this client"),
        }));
        all
    }
}

/// What is wrong with a value by itself. It is shown without the secrets of the whole configuration, which are looked for
/// only where something is wrong.
fn bad_value(
    name: &str,
    entry: &Entry,
    secrets: &LazyCell<Secrets, impl FnOnce() -> Secrets>,
) -> Option<String> {
    let kind = properties::kind(name);
    let why = properties::check(kind, &entry.value).err()?;
    let why = match name {
        "sasl.mechanism" => format!("{why} (GSSAPI and OAUTHBEARER are not supported)"),
        _ => why,
    };
    Some(format!("{name} = {:?}: {why}", secrets.shown(kind, &entry.value)))
}

fn same(left: &str, right: &str) -> bool {
    left.trim() == right.trim()
}

impl Effective {
    fn take_url(&mut self, url: &KafkaUrl) {
        let mut put = |name, value: &str| {
            self.entries.insert(name, Entry::of_url(value));
        };
        put("bootstrap.servers", &url::join(&url.addresses));
        for (name, value) in &url.parameters {
            put(name, value.expose());
        }
        let mut twice = Vec::new();
        for (name, value) in [
            ("sasl.plain.username", url.username.as_deref()),
            ("sasl.plain.password", url.password.as_ref().map(Secret::expose)),
        ] {
            if let Some(value) = value {
                if url.parameters.iter().any(|(other, _)| *other == name) {
                    twice.push(format!(
                        "kafka.url has {name} both before its @ and in its query: keep one of them"
                    ));
                }
                put(name, value);
            }
        }
        self.problems.extend(twice);
    }

    /// Scheme and user info imply the security protocol if nothing sets it.
    fn imply_security(&mut self, url: &KafkaUrl) {
        if let Some(entry) = self.entries.get("security.protocol") {
            let protocol = entry.value.parse::<SecurityProtocol>();
            if url.tls && protocol.is_ok_and(|protocol| !protocol.uses_tls()) {
                self.problems.push(format!(
                    "kafka.url says kafkas:// (TLS), but security.protocol is {}: write kafka://, or set \
                     security.protocol to SSL or SASL_SSL",
                    entry.value.trim()
                ));
            }
            return;
        }
        let credentials =
            url.username.is_some() || self.is_set("sasl.plain.username") || self.is_set("sasl.jaas.config");
        let value = match (url.tls, credentials) {
            (true, true) => "SASL_SSL",
            (true, false) => "SSL",
            // A password is sent unencrypted only where the URL itself carries it.
            (false, _) if url.username.is_some() => "SASL_PLAINTEXT",
            (false, _) => return,
        };
        self.entries.insert("security.protocol", Entry::of_url(value));
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// False if the value was refused: then its default stands in for it, from which nothing should be concluded.
    pub(super) fn is_usable(&self, name: &str) -> bool {
        let is_good = |entry: &Entry| properties::check(properties::kind(name), &entry.value).is_ok();
        self.entries.get(name).is_none_or(is_good)
    }

    /// The value as it was set, if it is valid; otherwise the default.
    fn raw(&self, name: &str) -> Option<&str> {
        let Some(Found::Used(property)) = properties::find(name) else { return None };
        self.entries
            .get(name)
            .map(|entry| entry.value.as_str())
            .filter(|value| properties::check(property.kind, value).is_ok())
            .or(property.default)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).map(|value| value.trim().to_owned())
    }

    /// A value whose spaces count.
    pub(super) fn secret(&self, name: &str) -> Option<String> {
        self.raw(name).map(str::to_owned)
    }

    pub(super) fn number(&self, name: &str) -> i64 {
        self.raw(name).and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    pub(super) fn size(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).unwrap_or(usize::MAX)
    }

    pub(super) fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(u64::try_from(self.number(name).min(LONGEST_MS)).unwrap_or(0))
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.raw(name).and_then(|value| properties::parse_flag(value.trim())).unwrap_or_default()
    }

    pub(super) fn choice<T: FromStr + Default>(&self, name: &str) -> T {
        self.raw(name).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// A file name; Java's key stores in their own formats are refused by their ending.
    pub(super) fn pem_file(&mut self, name: &str) -> Option<String> {
        let file = self.text(name)?;
        let lower = file.to_ascii_lowercase();
        if [".jks", ".p12", ".pfx"].iter().any(|ending| lower.ends_with(ending)) {
            self.problems.push(format!(
                "{name} = {} is a Java key store: accepted is a PEM file (`keytool -exportcert -rfc` or \
                 `openssl pkcs12` write one)",
                secrecy::path(&file)
            ));
        }
        Some(file)
    }

    /// The settings, or everything that is wrong.
    pub(super) fn outcome<T>(self, settings: T) -> Result<T> {
        let mut seen = Set::new();
        let problems: Vec<_> = self.problems.iter().filter(|problem| seen.insert(problem.as_str())).collect();
        let text = match problems.as_slice() {
            [] => return Ok(settings),
            [problem] => format!("the configuration cannot be used: {problem}"),
            several => {
                let numbered = (1..).zip(several).map(|(number, problem)| format!("({number}) {problem}"));
                let (count, text) = (several.len(), numbered.collect::<Vec<_>>().join("; "));
                format!("the configuration cannot be used, {count} reasons: {text}")
            }
        };
        Err(Error::new(ErrorKind::Config, text))
    }
}
