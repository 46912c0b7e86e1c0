//! Validated, typed settings: what the clients read. Only `resolve.rs` makes them.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use super::{iso8601, secrecy};
use crate::{
    connection::{Faults, KeptMemory, Running, transport::Route},
    error::{Error, ErrorKind},
    group::assignor::Strategy,
    producer::Plugins,
    time::Environment,
};

/// Gives an enum of settings Java's spellings: `FromStr` (any case), `Display` (the first spelling of each) and the
/// list of all of them for messages.
macro_rules! spellings {
    ($type:ident, $property:literal, { $($variant:ident => [$first:literal $(, $other:literal)*]),+ $(,)? }) => {
        impl $type {
            /// Every accepted spelling.
            pub(crate) const ACCEPTED: &'static [&'static str] = &[$($first $(, $other)*),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $first),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let text = text.trim();
                $(if text.eq_ignore_ascii_case($first) $(|| text.eq_ignore_ascii_case($other))* {
                    return Ok(Self::$variant);
                })+
                Err(refused($property, text, Self::ACCEPTED))
            }
        }
    };
}

spellings!(SecurityProtocol, "security.protocol", {
    Plaintext => ["PLAINTEXT"], Ssl => ["SSL"], SaslPlaintext => ["SASL_PLAINTEXT"], SaslSsl => ["SASL_SSL"],
});
spellings!(GroupProtocol, "group.protocol", {
    Classic => ["classic"], Consumer => ["consumer"], Auto => ["auto"],
});
spellings!(SaslMechanism, "sasl.mechanism", {
    Plain => ["PLAIN"], ScramSha256 => ["SCRAM-SHA-256"], ScramSha512 => ["SCRAM-SHA-512"],
});
spellings!(Acks, "acks", { All => ["all", "-1"], Leader => ["1"], None => ["0"] });
spellings!(Compression, "compression.type", {
    None => ["none"], Gzip => ["gzip"], Snappy => ["snappy"], Lz4 => ["lz4"], Zstd => ["zstd"],
});
spellings!(IsolationLevel, "isolation.level", {
    ReadUncommitted => ["read_uncommitted"], ReadCommitted => ["read_committed"],
});
spellings!(KeyHash, "partitioner", {
    Murmur2Random => ["murmur2_random"], Murmur2 => ["murmur2"], ConsistentRandom => ["consistent_random"],
    Consistent => ["consistent"], Random => ["random"],
});

/// The error for a text that is none of the accepted ones.
fn refused(property: &str, text: &str, accepted: &[&str]) -> Error {
    let text = secrecy::refused(text, accepted);
    Error::new(ErrorKind::Config, format!("{text:?} is no {property}; accepted: {}", accepted.join(", ")))
}

/// A broker's host and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A text that never shows in Debug, Display or logs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(secrecy::HIDDEN)
    }
}

/// Everything a connection and the cluster view need.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    pub(crate) bootstrap: Vec<Address>,
    pub(crate) client_id: Arc<str>,
    /// `None` for PLAINTEXT and SASL_PLAINTEXT.
    pub(crate) tls: Option<TlsSettings>,
    /// `None` for PLAINTEXT and SSL.
    pub(crate) sasl: Option<SaslSettings>,
    /// `request.timeout.ms`
    pub(crate) request_timeout: Duration,
    /// `socket.connection.setup.timeout.ms` and its maximum (KIP-601).
    pub(crate) connection_setup_timeout: Duration,
    pub(crate) connection_setup_timeout_max: Duration,
    pub(crate) reconnect_backoff: Duration,
    pub(crate) reconnect_backoff_max: Duration,
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
    /// `metadata.max.age.ms`
    pub(crate) metadata_max_age: Duration,
    /// `metadata.max.idle.ms`: how long a topic that is not used is followed.
    pub(crate) metadata_max_idle: Duration,
    /// `metadata.recovery.strategy` (KIP-899): whether the bootstrap addresses are asked again.
    pub(crate) rebootstrap: bool,
    /// `metadata.recovery.rebootstrap.trigger.ms` (KIP-1102)
    pub(crate) rebootstrap_after: Duration,
    /// `connections.max.idle.ms`
    pub(crate) connections_max_idle: Duration,
    /// `default.api.timeout.ms`: bounds admin calls, commits, position look-ups.
    pub(crate) default_api_timeout: Duration,
    /// `allow.auto.create.topics`
    pub(crate) allow_auto_create_topics: bool,
    /// The largest answer accepted from a broker, in bytes. That is, to a Fetch.
    pub(crate) receive_message_max_bytes: usize,
    /// The same for any other request.
    pub(crate) receive_other_max_bytes: usize,
    /// What connections keep of the memory of answers.
    pub(crate) kept: KeptMemory,
    /// Peers that have broken the protocol.
    pub(crate) faults: Faults,
    /// Logins of this client that wait for an answer.
    pub(crate) logins: Arc<Running>,
    /// How streams to brokers are opened.
    pub(crate) route: Route,
    /// Where randomness and wall clock come from.
    pub(crate) environment: Environment,
}

/// Names may be a secret in the wrong place.
macro_rules! opaque {
    ($($type:ident),+) => {
        $(impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).finish_non_exhaustive()
            }
        })+
    };
}
opaque!(ClientSettings, ConsumerSettings, TrustRoots, PemSource);

/// Where trusted roots come from; several add up. Text and names may be a key that was given to the wrong setter.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum TrustRoots {
    /// The Mozilla set compiled in.
    Mozilla,
    /// The operating system's store.
    System,
    /// PEM text.
    Pem(String),
    /// A PEM file.
    PemFile(String),
}

#[derive(Clone)]
#[cfg_attr(test, derive(Default))]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "read where there is TLS"))]
pub(crate) struct TlsSettings {
    /// Empty means: the Mozilla set and the system's store.
    pub(crate) roots: Vec<TrustRoots>,
    /// The client's certificate chain and its key. Files are read when the TLS configuration is built.
    pub(crate) identity: Option<(PemSource, PemSource)>,
    /// `ssl.key.password`
    pub(crate) key_password: Option<Secret>,
    /// `ssl.endpoint.identification.algorithm`: false switches the host-name check off, never the chain check.
    pub(crate) verify_host_name: bool,
    /// A configuration of the user's own replaces all of the above.
    #[cfg(feature = "tls")]
    pub(crate) client_config: Option<Arc<rustls::ClientConfig>>,
    /// A crypto provider of the user's own.
    #[cfg(feature = "tls")]
    pub(crate) crypto_provider: Option<Arc<rustls::crypto::CryptoProvider>>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PemSource {
    Text(Secret),
    File(String),
}

/// How clients talk to brokers (`security.protocol`): encrypted or not, authenticated or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated (the default).
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without encryption: with [`SaslMechanism::Plain`] the password crosses the wire readable.
    SaslPlaintext,
    /// SASL inside TLS.
    SaslSsl,
}

impl SecurityProtocol {
    /// Whether connections are encrypted.
    pub fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    /// Whether clients authenticate with SASL.
    pub fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SaslMechanism {
    #[default]
    /// PLAIN (RFC 4616): the password crosses the wire; use it over TLS.
    Plain,
    /// SCRAM-SHA-256 (KIP-84), with 4,096 rounds, as Java demands, to 1,000,000.
    ScramSha256,
    /// SCRAM-SHA-512 (KIP-84), with 4,096 rounds, as Java demands, to 1,000,000.
    ScramSha512,
}

#[derive(Clone)]
pub(crate) struct SaslSettings {
    pub(crate) mechanism: SaslMechanism,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// How many replicas must have a record before the broker acknowledges it (`acks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Acks {
    /// All in-sync replicas (`-1`, the default): an acknowledged record survives as long as one of them does.
    #[default]
    All,
    /// The leader alone: lost if the leader fails before the others have copied it.
    Leader,
    /// Nobody: `send` resolves when the record was written to the socket; its offset is unknown.
    None,
}

/// Which partition a key means (`partitioner`), by librdkafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KeyHash {
    /// Java's murmur2 (the default); records without a key stick to some partition for a batch.
    #[default]
    Murmur2Random,
    /// As that, and records without a key go where the empty key goes.
    Murmur2,
    /// CRC-32, librdkafka's default; records without a key, or with an empty one, stick to some partition for a batch.
    ConsistentRandom,
    /// As that, and records without a key go where the empty key goes.
    Consistent,
    /// Whatever the key.
    Random,
}

/// The codec of a record batch (`compression.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression (the default).
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy in xerial framing, as Java writes it.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard (KIP-110).
    Zstd,
}

/// Where to start where the group has no committed offset (`auto.offset.reset`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AutoOffsetReset {
    /// At the first record still in the log.
    Earliest,
    /// After the last record (the default): only what is written from now on.
    #[default]
    Latest,
    /// Fail, naming the partition.
    None,
    /// At the first record that is no older than this (KIP-1106), and at the end where none is: `by_duration:P7D`, as ISO 8601
    /// writes durations of days, hours, minutes and seconds.
    ByDuration(Duration),
}

impl AutoOffsetReset {
    pub(crate) const ACCEPTED: &'static [&'static str] =
        &["earliest", "latest", "none", "by_duration:PnDTnHnMnS"];
}

impl fmt::Display for AutoOffsetReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::None => f.write_str("none"),
            Self::ByDuration(age) => write!(f, "by_duration:{}", iso8601::format(*age)),
        }
    }
}

impl FromStr for AutoOffsetReset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.trim().to_ascii_lowercase();
        let age = lower.strip_prefix("by_duration:").and_then(iso8601::parse);
        match (lower.as_str(), age) {
            ("earliest", _) => Ok(Self::Earliest),
            ("latest", _) => Ok(Self::Latest),
            ("none", _) => Ok(Self::None),
            (_, Some(age)) => Ok(Self::ByDuration(age)),
            _ => Err(refused("auto.offset.reset", text.trim(), Self::ACCEPTED)),
        }
    }
}

/// Which protocol a member and its group's coordinator speak (`group.protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The members assign: one of them for all (the default, as in Java). Every broker has it.
    #[default]
    Classic,
    /// The broker assigns, partition by partition, and nobody waits for the whole group (KIP-848). Kafka 4.0 and newer.
    Consumer,
    /// [`Consumer`](Self::Consumer) where broker and group have it, [`Classic`](Self::Classic) elsewhere. A group of classic
    /// members is converted where the broker allows it (`group.consumer.migration.policy`).
    Auto,
}

/// Whether records of open or aborted transactions are handed out (`isolation.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IsolationLevel {
    /// Every record (the default).
    #[default]
    ReadUncommitted,
    /// Only records outside transactions and of committed ones.
    ReadCommitted,
}

#[derive(Debug, Clone)]
pub(crate) struct ProducerSettings {
    pub(crate) acks: Acks,
    /// `enable.idempotence`
    pub(crate) idempotence: bool,
    /// `linger.ms`
    pub(crate) linger: Duration,
    /// `batch.size`, bytes of uncompressed records.
    pub(crate) batch_size: usize,
    /// `buffer.memory`
    pub(crate) buffer_memory: usize,
    /// `max.block.ms`
    pub(crate) max_block: Duration,
    /// `delivery.timeout.ms`
    pub(crate) delivery_timeout: Duration,
    /// `retries`
    pub(crate) retries: u32,
    /// `max.in.flight.requests.per.connection`
    pub(crate) max_in_flight: usize,
    /// `max.request.size`
    pub(crate) max_request_size: usize,
    pub(crate) compression: Compression,
    /// `compression.{gzip,zstd,lz4}.level`; `None` is the codec's default.
    pub(crate) compression_level: Option<i32>,
    /// `partitioner.ignore.keys`
    pub(crate) partitioner_ignore_keys: bool,
    /// `partitioner`
    pub(crate) key_hash: KeyHash,
    /// `partitioner.adaptive.partitioning.enable`
    pub(crate) partitioner_adaptive: bool,
    /// `partitioner.availability.timeout.ms`
    pub(crate) partitioner_availability_timeout: Duration,
    pub(crate) transactional_id: Option<Arc<str>>,
    /// `transaction.timeout.ms`
    pub(crate) transaction_timeout: Duration,
    /// The user's own code: interceptors and a partitioner.
    pub(crate) plugins: Plugins,
}

#[derive(Clone)]
pub(crate) struct ConsumerSettings {
    pub(crate) group_id: Option<Arc<str>>,
    pub(crate) group_instance_id: Option<String>,
    /// `group.protocol`
    pub(crate) group_protocol: GroupProtocol,
    /// `group.remote.assignor`; `None`: the broker's first.
    pub(crate) group_remote_assignor: Option<String>,
    pub(crate) auto_offset_reset: AutoOffsetReset,
    pub(crate) enable_auto_commit: bool,
    pub(crate) auto_commit_interval: Duration,
    pub(crate) max_poll_records: usize,
    pub(crate) max_poll_interval: Duration,
    /// `unreadable.warn.ms`
    pub(crate) unreadable_warn: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) fetch_min_bytes: i32,
    pub(crate) fetch_max_bytes: i32,
    pub(crate) fetch_max_wait: Duration,
    pub(crate) max_partition_fetch_bytes: i32,
    /// `fetch.buffer.memory`: bytes of responses that wait to be polled, for the whole consumer (KIP-81).
    pub(crate) fetch_buffer_memory: usize,
    /// `max.decompressed.bytes`
    pub(crate) max_decompressed_bytes: usize,
    pub(crate) check_crcs: bool,
    pub(crate) isolation_level: IsolationLevel,
    pub(crate) client_rack: Option<String>,
    pub(crate) exclude_internal_topics: bool,
    /// In order of preference; never empty.
    pub(crate) assignors: Vec<Strategy>,
}
