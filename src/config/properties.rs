//! The one table of property names: what is known, what is accepted, what is the default, and what is secret.
//!
//! Names are Java's where Java has one, librdkafka's or our own otherwise. Nothing else in the crate may hold a default.

use super::{
    secrecy::{self, HIDDEN},
    settings::{
        Acks, AutoOffsetReset, Compression, GroupProtocol, IsolationLevel, KeyHash, SaslMechanism,
        SecurityProtocol,
    },
    url,
};
use crate::record::LONGEST_TEXT;

/// What a property's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Flag,
    /// A whole number, both bounds included.
    Int(i64, i64),
    /// Milliseconds, both bounds included.
    Millis(i64, i64),
    /// Bytes, both bounds included.
    Bytes(i64, i64),
    Choice(&'static [&'static str]),
    /// Where to start: one of [`AutoOffsetReset::ACCEPTED`].
    Reset,
    /// A comma-separated list of some of these.
    Choices(&'static [&'static str]),
    /// `host:port` list.
    Addresses,
    Url,
    Secret,
    /// The name of a file.
    Path,
    /// PEM text that is no secret.
    Pem,
    /// Known to Java or librdkafka, without meaning here.
    Ignored,
}

/// Which client reads a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsedBy {
    Every,
    Producer,
    Consumer,
}

#[derive(Debug)]
pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) used_by: UsedBy,
    pub(crate) doc: &'static str,
}

const INT: i64 = i32::MAX as i64;
const LONG: i64 = i64::MAX;
/// Java lets these be `Long.MAX_VALUE`; the longest pause kept is 24 days, so that deadlines never overflow.
pub(crate) const LONGEST_MS: i64 = INT;

use Kind::{
    Addresses, Bytes, Choice, Choices, Flag, Ignored, Int, Millis, Path, Pem, Reset, Secret, Text, Url,
};
use UsedBy::{Consumer, Every, Producer};

/// The table, and the page of it in the documentation.
macro_rules! properties {
    ($(row(
        $name:literal, $aliases:expr, $kind:expr, $default:ident $(($value:literal))?, $used_by:ident, $doc:literal
    )),+ $(,)?) => {
        /// Every known property. Aliases are librdkafka's names and kafka-python's where underscores for dots do not suffice.
        pub(crate) static PROPERTIES: &[Property] =
            &[$(Property {
                name: $name,
                aliases: $aliases,
                kind: $kind,
                default: $default $(($value))?,
                used_by: $used_by,
                doc: $doc,
            }),+];

        /// Every property, with its default and which client reads it. Names are Java's where Java has one; librdkafka's and
        /// kafka-python's are accepted for them, in any case and with underscores for dots.
        ///
        /// [`KafkaConfig::set`](crate::KafkaConfig::set) takes any of them, as do a URL's query,
        /// [`from_properties_text`](crate::KafkaConfig::from_properties_text) and the environment;
        /// [`KafkaConfig::describe`](crate::KafkaConfig::describe) lists them with the values of a configuration.
        ///
        /// | property | default | for | meaning |
        /// | --- | --- | --- | --- |
        $(#[doc = concat!(" | `", $name, "` | ", $("`", $value, "`",)? " | ", stringify!($used_by), " | ", $doc, " |")])+
        pub mod settings {}
    };
}

properties! {
    // Where the cluster is
    row("kafka.url", &["url"], Url, None, Every, "kafka://user:password@host1:9092,host2:9092?group_id=...; kafkas:// for TLS; overrides bootstrap.servers"),
    row("bootstrap.servers", &["metadata.broker.list"], Addresses, None, Every, "brokers to ask first, host:port separated by commas; port 9092 if left out"),
    row("client.id", &[], Text, Some("dtkafka"), Every, "name in the brokers' logs and quotas"),
    row("client.rack", &["broker.rack"], Text, None, Consumer, "where this client is, to read from the nearest replica (KIP-392)"),
    // Security
    row("security.protocol", &[], Choice(SecurityProtocol::ACCEPTED), Some("PLAINTEXT"), Every, "encryption and authentication"),
    row("sasl.mechanism", &["sasl.mechanisms"], Choice(SaslMechanism::ACCEPTED), Some("PLAIN"), Every, "how to authenticate; ours is PLAIN where Java's is GSSAPI"),
    row("sasl.plain.username", &["sasl.username"], Text, None, Every, "user name, for every mechanism"),
    row("sasl.plain.password", &["sasl.password"], Secret, None, Every, "password, for every mechanism"),
    row("sasl.jaas.config", &[], Secret, None, Every, "Java's login string: PlainLoginModule or ScramLoginModule with username and password"),
    row("ssl.truststore.location", &["ssl.ca.location", "ssl.cafile", "ssl.ca.file"], Path, None, Every, "PEM file of the authorities to trust"),
    row("ssl.truststore.certificates", &["ssl.ca.pem"], Pem, None, Every, "the authorities to trust, PEM text (KIP-651)"),
    row("ssl.truststore.type", &[], Choice(&["PEM"]), Some("PEM"), Every, "only PEM is read"),
    row("ssl.trust.roots", &[], Choices(&["mozilla", "system"]), None, Every, "sets of public authorities to trust besides the above; both if no authority is named at all"),
    row("ssl.keystore.location", &[], Path, None, Every, "PEM file with the client's certificate chain and key"),
    row("ssl.keystore.certificate.chain", &["ssl.certificate.pem", "ssl.client.certificate.pem"], Pem, None, Every, "the client's certificate chain, PEM text (KIP-651)"),
    row("ssl.certificate.location", &["ssl.certfile", "ssl.client.certificate.file"], Path, None, Every, "PEM file with the client's certificate chain"),
    row("ssl.keystore.key", &["ssl.key.pem"], Secret, None, Every, "the client's private key, PEM text (KIP-651)"),
    row("ssl.key.location", &["ssl.keyfile", "ssl.key.file"], Path, None, Every, "PEM file with the client's private key"),
    row("ssl.keystore.type", &[], Choice(&["PEM"]), Some("PEM"), Every, "only PEM is read"),
    row("ssl.key.password", &["ssl.keystore.password", "ssl.password"], Secret, None, Every, "password of an encrypted private key (PKCS#8)"),
    row("ssl.endpoint.identification.algorithm", &[], Choice(&["https", "", "none"]), Some("https"), Every, "empty or none: the certificate's host name is not checked (its chain always is)"),
    row("ssl.check.hostname", &[], Flag, None, Every, "false: as an empty ssl.endpoint.identification.algorithm"),
    row("enable.ssl.certificate.verification", &[], Choice(&["true"]), Some("true"), Every, "the chain is always checked; trust a private authority with ssl.truststore.location"),
    // Connections
    row("request.timeout.ms", &["socket.timeout.ms"], Millis(1, INT), Some("30000"), Every, "how long to wait for a broker's answer"),
    row("default.api.timeout.ms", &[], Millis(1, INT), Some("60000"), Every, "limit of calls that name none, such as commits"),
    row("socket.connection.setup.timeout.ms", &[], Millis(1, LONG), Some("10000"), Every, "limit of the first attempt to connect (KIP-601)"),
    row("socket.connection.setup.timeout.max.ms", &[], Millis(1, LONG), Some("30000"), Every, "limit of an attempt to connect after several failures"),
    row("reconnect.backoff.ms", &[], Millis(0, LONG), Some("50"), Every, "pause after the first failed connection"),
    row("reconnect.backoff.max.ms", &[], Millis(0, LONG), Some("1000"), Every, "longest pause after failed connections"),
    row("retry.backoff.ms", &[], Millis(0, LONG), Some("100"), Every, "pause before the first retry; 0 counts as 1"),
    row("retry.backoff.max.ms", &[], Millis(0, LONG), Some("1000"), Every, "longest pause before a retry (KIP-580)"),
    row("metadata.max.age.ms", &["topic.metadata.refresh.interval.ms"], Millis(1, LONG), Some("300000"), Every, "age after which metadata is asked for again"),
    row("metadata.max.idle.ms", &[], Millis(5000, LONG), Some("300000"), Every, "a topic that is neither subscribed to nor used for that long is forgotten (KIP-526)"),
    row("metadata.recovery.strategy", &[], Choice(&["rebootstrap", "none"]), Some("rebootstrap"), Every, "none: bootstrap.servers are asked only until a broker is known (KIP-899)"),
    row("metadata.recovery.rebootstrap.trigger.ms", &[], Millis(0, LONG), Some("300000"), Every, "without any metadata for that long bootstrap.servers are asked before all others, on new connections (KIP-1102)"),
    row("connections.max.idle.ms", &[], Millis(1, LONG), Some("230000"), Every, "idle connections are closed; ours is below the 4 minutes after which cloud load balancers drop them silently"),
    row("allow.auto.create.topics", &[], Flag, Some("true"), Every, "whether asking for an unknown topic may create it"),
    row("receive.message.max.bytes", &[], Bytes(1024, INT), None, Every, "largest answer accepted; if not set, 32 MiB of a Fetch, or more where fetch.max.bytes wants it, and 4 MiB of any other, which tells of 100,000 partitions"),
    // Producer
    row("acks", &["request.required.acks"], Choice(Acks::ACCEPTED), Some("all"), Producer, "replicas that must have a record"),
    row("enable.idempotence", &[], Flag, Some("true"), Producer, "no duplicates by retries; goes off by itself where acks, retries or in-flight forbid it (KIP-679)"),
    row("linger.ms", &["queue.buffering.max.ms"], Millis(0, LONG), Some("5"), Producer, "how long a batch waits for more records"),
    row("batch.size", &[], Bytes(0, INT), Some("131072"), Producer, "bytes per batch; 0: each record by itself; ours, measured to be faster than Java's 16384"),
    row("buffer.memory", &[], Bytes(1, LONG), Some("33554432"), Producer, "bytes of unsent records, 4 GiB at most; senders wait when it is used up; a record larger than all of it goes alone, where Java refuses it"),
    row("max.block.ms", &[], Millis(0, LONG), Some("60000"), Producer, "how long a sender waits for memory and metadata"),
    row("delivery.timeout.ms", &["message.timeout.ms"], Millis(1, INT), Some("120000"), Producer, "limit from sending to acknowledgement, retries included"),
    row("retries", &["message.send.max.retries"], Int(0, INT), Some("2147483647"), Producer, "attempts after the first"),
    row("max.in.flight.requests.per.connection", &["max.in.flight"], Int(1, INT), Some("5"), Producer, "requests on their way per broker"),
    row("max.request.size", &["message.max.bytes"], Bytes(1, INT), Some("1048576"), Producer, "bytes of a request, and so of a record"),
    row("compression.type", &["compression.codec"], Choice(Compression::ACCEPTED), Some("none"), Producer, "codec of batches"),
    row("compression.level", &[], Int(-131_072, 22), None, Producer, "level of whatever codec compression.type names"),
    row("compression.gzip.level", &[], Int(-1, 9), None, Producer, "gzip's level, -1 for its default (KIP-390)"),
    row("compression.lz4.level", &[], Int(1, 17), None, Producer, "LZ4's level (KIP-390)"),
    row("compression.zstd.level", &[], Int(-131_072, 22), None, Producer, "Zstandard's level (KIP-390)"),
    row("partitioner", &[], Choice(KeyHash::ACCEPTED), Some("murmur2_random"), Producer, "where keys go: murmur2_random as Java, consistent_random (CRC32) as librdkafka; records without a key stick to a partition for a batch"),
    row("partitioner.adaptive.partitioning.enable", &[], Flag, Some("true"), Producer, "records without a key prefer partitions whose queues are short (KIP-794)"),
    row("partitioner.availability.timeout.ms", &[], Millis(0, LONG), Some("0"), Producer, "records without a key avoid a leader that takes nothing for so long; 0: never (KIP-794)"),
    row("partitioner.ignore.keys", &[], Flag, Some("false"), Producer, "spread records whatever their key (KIP-794)"),
    row("transactional.id", &[], Text, None, Producer, "who a producer of transactions is, through its restarts; another one with the same id fences it (KIP-98)"),
    row("transaction.timeout.ms", &[], Millis(1, INT), Some("60000"), Producer, "limit of an open transaction, after which its coordinator aborts it"),
    row("transaction.two.phase.commit.enable", &[], Flag, Some("false"), Producer, "transactions that a coordinator outside of Kafka ends (KIP-939); only false, for released brokers do not offer them"),
    // Consumer
    row("group.id", &[], Text, None, Consumer, "consumer group"),
    row("group.instance.id", &[], Text, None, Consumer, "static membership (KIP-345)"),
    row("group.protocol", &[], Choice(GroupProtocol::ACCEPTED), Some("classic"), Consumer, "classic: the members assign; consumer: the broker does (KIP-848); auto: consumer where broker and group have it, else classic (ours)"),
    row("group.remote.assignor", &[], Text, None, Consumer, "the broker's assignor, uniform or range; the broker's first without; with group.protocol consumer or auto"),
    row("partition.assignment.strategy", &[], Text, Some("range,roundrobin"), Consumer, "assignors in order of preference: range, roundrobin, sticky, cooperative-sticky, or Java's class names; cooperative alone rebalances without a stop (KIP-429)"),
    row("auto.offset.reset", &[], Reset, Some("latest"), Consumer, "where to start without a committed offset: earliest, latest, none (an error), or by_duration:P7D, as far back (KIP-1106)"),
    row("enable.auto.commit", &[], Flag, Some("true"), Consumer, "commit what earlier polls handed out"),
    row("auto.commit.interval.ms", &[], Millis(1, INT), Some("5000"), Consumer, "pause between automatic commits"),
    row("max.poll.records", &[], Int(1, INT), Some("500"), Consumer, "records per poll"),
    row("max.poll.interval.ms", &[], Millis(1, INT), Some("300000"), Consumer, "longest time between polls before the member leaves"),
    row("unreadable.warn.ms", &[], Millis(100, LONG), Some("10000"), Consumer, "a partition that cannot be read, or a group that cannot be joined, for that long is said in the log and by poll; ours"),
    row("session.timeout.ms", &[], Millis(1, INT), Some("45000"), Consumer, "silence after which the coordinator drops the member"),
    row("heartbeat.interval.ms", &[], Millis(1, INT), Some("3000"), Consumer, "pause between heartbeats"),
    row("fetch.min.bytes", &[], Bytes(0, INT), Some("1"), Consumer, "bytes a broker waits for before it answers; 0 counts as 1"),
    row("fetch.max.bytes", &[], Bytes(0, INT), Some("8388608"), Consumer, "bytes per answer; Java 52428800: memory for larger ones comes fresh from the system each time"),
    row("fetch.max.wait.ms", &["fetch.wait.max.ms"], Millis(0, INT), Some("500"), Consumer, "how long a broker waits for fetch.min.bytes"),
    row("max.partition.fetch.bytes", &["fetch.message.max.bytes"], Bytes(0, INT), Some("1048576"), Consumer, "bytes per partition and answer"),
    row("fetch.buffer.memory", &[], Bytes(1, LONG), Some("67108864"), Consumer, "bytes of fetched records that wait to be polled (KIP-81); ours"),
    row("isolation.level", &[], Choice(IsolationLevel::ACCEPTED), Some("read_uncommitted"), Consumer, "whether records of open and aborted transactions are handed out"),
    row("max.decompressed.bytes", &[], Bytes(1, INT), None, Consumer, "memory that the records of one batch may decompress to; 32 MiB, or four times fetch.max.bytes or max.partition.fetch.bytes where that is more; Java has no limit"),
    row("exclude.internal.topics", &[], Flag, Some("true"), Consumer, "whether a subscription by pattern leaves out the brokers' own topics, in a classic group"),
    row("check.crcs", &[], Flag, Some("true"), Consumer, "check every batch's CRC-32C"),
}

/// Names that Java or Python programs carry along and that change nothing here.
static IGNORED: &[&str] = &[
    "api.version",
    "api.version.auto.timeout.ms",
    "auto.include.jmx.reporter",
    "client.dns.lookup",
    "config.providers",
    "consumer.timeout.ms",
    "enable.metrics.push",
    "interceptor.classes",
    "key.deserializer",
    "key.serializer",
    "metric.reporters",
    "metrics.num.samples",
    "metrics.recording.level",
    "metrics.sample.window.ms",
    "partitioner.class",
    "receive.buffer.bytes",
    "sasl.client.callback.handler.class",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.service.name",
    "sasl.kerberos.ticket.renew.jitter",
    "sasl.kerberos.ticket.renew.window.factor",
    "sasl.login.callback.handler.class",
    "sasl.login.class",
    "sasl.login.connect.timeout.ms",
    "sasl.login.read.timeout.ms",
    "sasl.login.refresh.buffer.seconds",
    "sasl.login.refresh.min.period.seconds",
    "sasl.login.refresh.window.factor",
    "sasl.login.refresh.window.jitter",
    "sasl.login.retry.backoff.max.ms",
    "sasl.login.retry.backoff.ms",
    "sasl.oauthbearer.assertion.algorithm",
    "sasl.oauthbearer.assertion.claim.aud",
    "sasl.oauthbearer.assertion.claim.exp.seconds",
    "sasl.oauthbearer.assertion.claim.iss",
    "sasl.oauthbearer.assertion.claim.jti.include",
    "sasl.oauthbearer.assertion.claim.nbf.seconds",
    "sasl.oauthbearer.assertion.claim.sub",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.template.file",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.clock.skew.seconds",
    "sasl.oauthbearer.expected.audience",
    "sasl.oauthbearer.expected.issuer",
    "sasl.oauthbearer.header.urlencode",
    "sasl.oauthbearer.jwks.endpoint.refresh.ms",
    "sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms",
    "sasl.oauthbearer.jwks.endpoint.retry.backoff.ms",
    "sasl.oauthbearer.jwks.endpoint.url",
    "sasl.oauthbearer.jwt.retriever.class",
    "sasl.oauthbearer.jwt.validator.class",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.scope.claim.name",
    "sasl.oauthbearer.sub.claim.name",
    "sasl.oauthbearer.token.endpoint.url",
    "security.providers",
    "send.buffer.bytes",
    "ssl.cipher.suites",
    "ssl.enabled.protocols",
    "ssl.engine.factory.class",
    "ssl.keymanager.algorithm",
    "ssl.protocol",
    "ssl.provider",
    "ssl.secure.random.implementation",
    "ssl.trustmanager.algorithm",
    "ssl.truststore.password",
    "statistics.interval.ms",
    "value.deserializer",
    "value.serializer",
];

/// Java's form of a name: kafka-python and the environment write underscores, the environment in capitals.
pub(crate) fn normalized(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('_', ".")
}

/// The property of that name, alias or spelling with underscores.
pub(crate) fn find(name: &str) -> Option<Found> {
    // Most come in the form of the table.
    find_normal(name).or_else(|| find_normal(&normalized(name)))
}

fn find_normal(name: &str) -> Option<Found> {
    PROPERTIES
        .iter()
        .find(|known| known.name == name || known.aliases.contains(&name))
        .map(Found::Used)
        .or_else(|| IGNORED.iter().find(|known| **known == name).map(|known| Found::Ignored(known)))
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    Used(&'static Property),
    Ignored(&'static str),
}

impl Found {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Used(property) => property.name,
            Self::Ignored(name) => name,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Used(property) => property.kind,
            Self::Ignored(_) => Ignored,
        }
    }
}

/// What the values of a property look like. One that is not known may be a secret.
pub(crate) fn kind(name: &str) -> Kind {
    find(name).map_or(Secret, Found::kind)
}

/// The known name nearest to an unknown one, and how many letters apart they are.
pub(crate) fn nearest(name: &str) -> (&'static str, usize) {
    nearest_below(name, usize::MAX)
}

/// The same for names that are less than `bound` letters apart, which takes less time; `bound` where none is so near.
pub(crate) fn nearest_below(name: &str, bound: usize) -> (&'static str, usize) {
    let name: String = normalized(name).chars().take(100).collect();
    let (length, mut best) = (name.chars().count(), ("bootstrap.servers", bound));
    for property in PROPERTIES {
        for known in std::iter::once(&property.name).chain(property.aliases) {
            // They are at least as far apart as their lengths are.
            if known.len().abs_diff(length) < best.1 {
                let apart = edit_distance(&name, known);
                if apart < best.1 {
                    best = (property.name, apart);
                }
            }
        }
    }
    best
}

/// Every name there is.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let ours =
        PROPERTIES.iter().flat_map(|known| std::iter::once(known.name).chain(known.aliases.iter().copied()));
    ours.chain(IGNORED.iter().copied())
}

/// Levenshtein: insertions, deletions and replacements that turn one text into the other.
pub(super) fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (1..=right.chars().count()).collect();
    let mut last = row.len();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = i;
        last = i + 1;
        for (r, above) in right.chars().zip(&mut row) {
            last = (diagonal + usize::from(l != r)).min(*above + 1).min(last + 1);
            diagonal = std::mem::replace(above, last);
        }
    }
    last
}

/// Whether a value fits its kind; the error says what is accepted and never repeats the value.
pub(crate) fn check(kind: Kind, value: &str) -> Result<(), String> {
    let trimmed = value.trim();
    match kind {
        Text | Path | Secret | Pem if trimmed.is_empty() => Err("it must not be empty".to_owned()),
        // The protocol's strings have a length of 16 bits.
        Text if value.len() > LONGEST_TEXT => Err(format!("accepted: at most {LONGEST_TEXT} bytes")),
        Text | Path | Secret | Pem | Ignored => Ok(()),
        Flag if parse_flag(trimmed).is_some() => Ok(()),
        Flag => Err("accepted: true, false".to_owned()),
        Int(low, high) | Millis(low, high) | Bytes(low, high) => match trimmed.parse::<i64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(()),
            _ => Err(format!("accepted: a whole number{} from {low} to {high}", unit(kind))),
        },
        Choice(list) if list.iter().any(|one| one.eq_ignore_ascii_case(trimmed)) => Ok(()),
        Choice(list) => Err(format!("accepted: {}", listed(list))),
        Reset if trimmed.parse::<AutoOffsetReset>().is_ok() => Ok(()),
        Reset => Err(format!("accepted: {}", listed(AutoOffsetReset::ACCEPTED))),
        Choices(list) => {
            let known = |part: &str| list.iter().any(|one| one.eq_ignore_ascii_case(part.trim()));
            if trimmed.split(',').all(known) {
                Ok(())
            } else {
                Err(format!("accepted: one or several of {}, separated by commas", listed(list)))
            }
        }
        Addresses => url::parse_addresses(trimmed).map(|_| ()),
        // Parsed, and reported, where its parts are merged.
        Url => Ok(()),
    }
}

fn unit(kind: Kind) -> &'static str {
    match kind {
        Millis(..) => " of milliseconds",
        Bytes(..) => " of bytes",
        _ => "",
    }
}

fn listed(list: &[&str]) -> String {
    list.iter().map(|one| if one.is_empty() { "\"\"" } else { one }).collect::<Vec<_>>().join(", ")
}

/// Java accepts `true` and `false` in any case; nothing else.
pub(crate) fn parse_flag(text: &str) -> Option<bool> {
    text.to_ascii_lowercase().parse().ok()
}

/// The value as messages, `Debug` and `get` may show it.
pub(crate) fn shown(kind: Kind, value: &str) -> String {
    match kind {
        Secret | Ignored => HIDDEN.to_owned(),
        Pem => "[PEM]".to_owned(),
        Path => secrecy::file(value).unwrap_or(HIDDEN).to_owned(),
        Url => secrecy::hosts(url::redacted(value)),
        // A list that cannot be read may be a URL with a password in it.
        Addresses if url::parse_addresses(value).is_err() => HIDDEN.to_owned(),
        Addresses => secrecy::hosts(value.to_owned()),
        // Another property's value may have got here.
        Choice(list) | Choices(list) if check(kind, value).is_err() => {
            secrecy::refused(value, list).into_owned()
        }
        Reset if check(kind, value).is_err() => {
            secrecy::refused(value, AutoOffsetReset::ACCEPTED).into_owned()
        }
        Flag if check(kind, value).is_err() => secrecy::refused(value, &["true", "false"]).into_owned(),
        Int(..) | Millis(..) | Bytes(..) if check(kind, value).is_err() => {
            secrecy::refused_number(value).into_owned()
        }
        _ => secrecy::text(value).into_owned(),
    }
}
