//! Settings and their sources: setters, URL, Java property names, environment, `.properties` text.
//!
//! Setters never fail and never connect; `resolve.rs` reports everything that is wrong at once. A password never
//! reaches `Debug`, `get`, an error or a log line.

mod effective;
mod env;
mod iso8601;
pub(crate) mod jaas;
mod overlay;
pub(crate) mod properties;
mod read;
mod resolve;
pub(crate) mod secrecy;
mod security;
pub(crate) mod settings;
pub(crate) mod url;
mod value;

#[cfg(test)]
mod canary_tests;
#[cfg(test)]
mod tests;

use std::fmt;
#[cfg(feature = "tls")]
use std::sync::Arc;

pub use overlay::{ConsumerConfig, ProducerConfig};
pub use settings::{
    Acks, AutoOffsetReset, Compression, GroupProtocol, IsolationLevel, KeyHash, SaslMechanism,
    SecurityProtocol,
};
pub use value::SettingValue;

use self::secrecy::Secrets;
use crate::{
    connection::transport::{Route, Transport},
    group::assignor::OwnAssignor,
    producer::Plugins,
    sorted::Map,
    time::Environment,
};

/// Where a value came from; it decides who wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The URL says it.
    Url,
    /// A setter, a property or the environment; a different value in the URL is an error.
    Set,
    /// `get_producer_with` and `get_consumer_with`; wins over everything.
    Override,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    value: String,
    origin: Origin,
    /// The property's name as it was written.
    name: String,
}

impl Entry {
    fn of_url(value: &str) -> Self {
        Self { value: value.to_owned(), origin: Origin::Url, name: String::new() }
    }
}

/// Everything a client is told: a builder by value that is checked when it is used.
///
/// Every setter takes text and typed values alike; the last one wins. Any property can be set by its Java name with
/// [`set`](Self::set), as `fetch.min.bytes`, `fetch_min_bytes` or librdkafka's name for it; [`describe`](Self::describe)
/// lists them all with their meaning and default.
///
/// Nothing is checked here: `KafkaInstance::new` reports every bad value by name with what is accepted. Passwords and keys never
/// show in `Debug`, [`get`](Self::get), errors or logs.
///
/// ```
/// use dtkafka::{AutoOffsetReset, KafkaConfig};
///
/// let config = KafkaConfig::new()
///     .set_kafka_url("kafka://user:pass@host1:9092,host2:9092")
///     .set_group_id("billing")
///     .set_auto_offset_reset(AutoOffsetReset::Earliest)
///     .set_enable_auto_commit(false)
///     .set("fetch.min.bytes", 1024);
/// assert_eq!(config.get("fetch_min_bytes").as_deref(), Some("1024"));
/// assert_eq!(config.get("sasl_plain_password").as_deref(), Some("[hidden]"));
/// ```
#[derive(Clone, Default)]
pub struct KafkaConfig {
    entries: Map<&'static str, Entry>,
    /// What is wrong with names and sources; values are checked later.
    problems: Vec<String>,
    /// Of names as well: worth a warning, no reason to refuse.
    notes: Vec<String>,
    route: Route,
    /// Of one producer; no setter of this type sets it.
    plugins: Plugins,
    /// Assignors of the user, for one consumer.
    assignors: Vec<OwnAssignor>,
    environment: Environment,
    #[cfg(feature = "tls")]
    tls_client_config: Option<Arc<rustls::ClientConfig>>,
    #[cfg(feature = "tls")]
    tls_crypto_provider: Option<Arc<rustls::crypto::CryptoProvider>>,
}

/// One setter per line: its documentation, its name, its property.
macro_rules! setters {
    ($($(#[$doc:meta])* $setter:ident => $property:literal;)+) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $setter(self, value: impl Into<SettingValue>) -> Self {
            self.set($property, value)
        })+
    };
}

impl KafkaConfig {
    /// An empty configuration: every property has its default, and no broker is named yet.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// The cluster as a URL: `kafka://user:password@host1:9092,host2:9092?group_id=billing`, `kafkas://` for TLS, or a plain
        /// `host1:9092,host2` list.
        ///
        /// It overrides the bootstrap servers. The port is 9092 if left out, IPv6 addresses stand in brackets, user info and
        /// query are percent-decoded (`%40` for `@`, `%2F` for `/`). User info means SASL_PLAINTEXT (SASL_SSL with `kafkas`)
        /// and PLAIN unless the query or a setter says otherwise. The query takes every property by any of its names. A query
        /// or user info that says one thing where a setter says another is an error.
        set_kafka_url => "kafka.url";
        /// The brokers to ask first (`bootstrap.servers`): `"h1:9092,h2:9092"` or a list of `host:port`.
        set_bootstrap_servers => "bootstrap.servers";
        /// Encryption and authentication (`security.protocol`): `PLAINTEXT` (default), `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`, or a
        /// [`SecurityProtocol`].
        set_security_protocol => "security.protocol";
        /// How to authenticate (`sasl.mechanism`): `PLAIN` (default), `SCRAM-SHA-256`, `SCRAM-SHA-512`, or a [`SaslMechanism`].
        set_sasl_mechanism => "sasl.mechanism";
        /// The user name, for every mechanism.
        set_sasl_plain_username => "sasl.plain.username";
        /// The password, for every mechanism. It is never shown.
        set_sasl_plain_password => "sasl.plain.password";
        /// Java's login string (`sasl.jaas.config`) with PlainLoginModule, which means the mechanism PLAIN, or
        /// ScramLoginModule, which needs `sasl.mechanism` to say which SCRAM. It is never shown.
        set_sasl_jaas_config => "sasl.jaas.config";
        /// The client's name in the brokers' logs and quotas (`client.id`). Default: `dtkafka`.
        set_client_id => "client.id";
        /// The consumer group (`group.id`). Default: none.
        set_group_id => "group.id";
        /// Where to start without a committed offset (`auto.offset.reset`): `earliest`, `latest` (default), `none`,
        /// `by_duration:P7D` (KIP-1106), or an [`AutoOffsetReset`].
        set_auto_offset_reset => "auto.offset.reset";
        /// Whether the consumer commits what earlier polls handed out (`enable.auto.commit`). Default: true.
        set_enable_auto_commit => "enable.auto.commit";
        /// A PEM file of the authorities to trust (`ssl.truststore.location`, librdkafka's `ssl.ca.location`). Adds to
        /// [`set_ssl_ca_pem`](Self::set_ssl_ca_pem) and [`set_ssl_trust_roots`](Self::set_ssl_trust_roots).
        set_ssl_ca_file => "ssl.truststore.location";
        /// The authorities to trust as PEM text (`ssl.truststore.certificates`, KIP-651).
        set_ssl_ca_pem => "ssl.truststore.certificates";
        /// Sets of public authorities to trust besides the above: `mozilla` (compiled in), `system` (the operating
        /// system's store), or both separated by a comma. Default: both if no authority is named at all, none otherwise.
        set_ssl_trust_roots => "ssl.trust.roots";
        /// The client's certificate chain as PEM text (`ssl.keystore.certificate.chain`, KIP-651).
        set_ssl_client_certificate_pem => "ssl.keystore.certificate.chain";
        /// A PEM file with the client's certificate chain.
        set_ssl_client_certificate_file => "ssl.certificate.location";
        /// The client's private key as PEM text (`ssl.keystore.key`, KIP-651): PKCS#8, PKCS#1 or SEC1. It is never shown.
        set_ssl_key_pem => "ssl.keystore.key";
        /// A PEM file with the client's private key.
        set_ssl_key_file => "ssl.key.location";
        /// The password of the private key (`ssl.key.password`), where it is encrypted: PKCS#8 with PBES2, which is what
        /// `openssl pkcs8 -topk8` writes. It is never shown.
        set_ssl_key_password => "ssl.key.password";
        /// Whether the certificate's host name is checked (`ssl.endpoint.identification.algorithm`). Default: true. The chain is
        /// always checked.
        set_ssl_check_hostname => "ssl.check.hostname";
    }

    /// A rustls configuration of your own: it replaces every `ssl_*` setting.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn set_tls_client_config(mut self, config: Arc<rustls::ClientConfig>) -> Self {
        self.tls_client_config = Some(config);
        self
    }

    /// A crypto provider of your own. Default: graviola where the CPU allows it, RustCrypto otherwise.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn set_tls_crypto_provider(mut self, provider: Arc<rustls::crypto::CryptoProvider>) -> Self {
        self.tls_crypto_provider = Some(provider);
        self
    }

    /// Opens the streams to brokers in another way than TCP: through a proxy or a tunnel, or in memory. TLS and SASL run on
    /// top of it as configured. See [`Transport`](crate::Transport); `examples/socks5.rs` is one for SOCKS5 proxies.
    #[must_use]
    pub fn set_transport(mut self, transport: impl Transport) -> Self {
        self.route = Route::through(transport);
        self
    }

    /// Makes the clients of this configuration deterministic, for the simulation in `tests/sim`: their random numbers are
    /// children of `seed`, their wall clock shows `wall_clock_ms` now and moves with tokio's paused clock, and they use no
    /// thread. No part of the API: it may change or go in any version.
    #[doc(hidden)]
    #[must_use]
    pub fn set_simulation(mut self, seed: u64, wall_clock_ms: i64) -> Self {
        self.environment = Environment::simulated(seed, wall_clock_ms);
        self
    }

    /// Any property by its Java name, its kafka-python name (underscores) or librdkafka's name.
    ///
    /// An unknown name is reported by `KafkaInstance::new`, with the nearest known one. Java properties that mean nothing
    /// here, such as `key.serializer`, are accepted and logged.
    #[must_use]
    pub fn set(mut self, name: impl AsRef<str>, value: impl Into<SettingValue>) -> Self {
        let name = name.as_ref();
        if !self.take(name, value) {
            // The value stays out: under a misspelt name it may be a password. So does a name that may be a part of one.
            let nearest = properties::nearest(name).0;
            self.problems.push(match secrecy::name(name) {
                Some(name) => format!("{name:?} is not a known property; the nearest known one is {nearest}"),
                None => format!(
                    "a property name {} is not known; the nearest known one is {nearest}",
                    secrecy::name_or_length(name)
                ),
            });
        }
        self
    }

    /// Sets a property; false for an unknown name.
    fn take(&mut self, name: &str, value: impl Into<SettingValue>) -> bool {
        let Some(found) = properties::find(name) else { return false };
        let (value, name) = (value.into().into_text(), properties::normalized(name));
        if let Some(before) = self.entries.get(found.name())
            && before.name != name
            && before.value != value
        {
            let (before, property) = (&before.name, found.name());
            self.notes.push(format!(
                "{before} and {name} are two names of {property} here, and have two values: that of {name} counts"
            ));
        }
        self.entries.insert(found.name(), Entry { value, origin: Origin::Set, name });
        true
    }

    /// Many properties, as [`set`](Self::set) takes them.
    #[must_use]
    pub fn set_properties<N: AsRef<str>, V: Into<SettingValue>>(
        self,
        properties: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        properties.into_iter().fold(self, |config, (name, value)| config.set(name, value))
    }

    /// A configuration of these properties.
    pub fn from_properties<N: AsRef<str>, V: Into<SettingValue>>(
        properties: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        Self::new().set_properties(properties)
    }

    /// The text of a Java `.properties` file: comments, continued lines and escapes as Java reads them.
    #[must_use]
    pub fn set_properties_text(mut self, text: &str) -> Self {
        env::take_properties(&mut self, text);
        self
    }

    /// A configuration of the text of a Java `.properties` file.
    pub fn from_properties_text(text: &str) -> Self {
        Self::new().set_properties_text(text)
    }

    /// A configuration of the environment's `KAFKA_` variables; see [`set_from_env`](Self::set_from_env).
    pub fn from_env() -> Self {
        Self::new().set_from_env("KAFKA_")
    }

    /// The environment's variables that start with `prefix`, followed by a property's name in capitals with
    /// underscores for dots: `KAFKA_URL`, `KAFKA_BOOTSTRAP_SERVERS`, `KAFKA_GROUP_ID`, `KAFKA_SASL_PLAIN_PASSWORD`.
    ///
    /// They replace what was set before. A broker's own variables are better kept apart from a client's: some mean a property of
    /// both, such as `KAFKA_MESSAGE_MAX_BYTES`, `KAFKA_COMPRESSION_TYPE` and `KAFKA_CONNECTIONS_MAX_IDLE_MS`. Give the client's
    /// another prefix then. An empty variable counts as not set. Brokers and images use the same prefix for their own
    /// purposes, so unknown variables are not taken; one that nearly has a known name is logged as a warning.
    #[must_use]
    pub fn set_from_env(self, prefix: &str) -> Self {
        self.set_from_variables(prefix, std::env::vars_os())
    }

    /// What was set for a property, by a setter or by the URL; `None` if nothing was (its default is in
    /// [`describe`](Self::describe)) or the name is unknown. A secret that was set is `"[hidden]"`, and the URL comes
    /// without its user info.
    pub fn get(&self, name: impl AsRef<str>) -> Option<String> {
        let found = properties::find(name.as_ref())?;
        let effective = self.effective();
        effective.entries.get(found.name()).map(|entry| properties::shown(found.kind(), &entry.value))
    }

    /// Every property this crate knows, one per line: name, value or default, which client reads it, meaning. Secrets are hidden.
    pub fn describe(&self) -> String {
        let effective = self.effective();
        let secrets = Secrets::of(&self.entries);
        let mut text = String::new();
        for property in properties::PROPERTIES {
            let value = match (effective.entries.get(property.name), property.default) {
                (Some(entry), _) => secrets.shown(property.kind, &entry.value),
                (None, Some(default)) => format!("{default} (default)"),
                (None, None) => "(not set)".to_owned(),
            };
            text.push_str(&format!(
                "{} = {value} [{:?}] {}\n",
                property.name, property.used_by, property.doc
            ));
        }
        text
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut map, secrets) = (f.debug_map(), Secrets::of(&self.entries));
        for (name, entry) in &self.entries {
            map.entry(name, &secrets.shown(properties::kind(name), &entry.value));
        }
        if !self.problems.is_empty() {
            map.entry(&"problems", &self.problems);
        }
        map.finish()
    }
}
