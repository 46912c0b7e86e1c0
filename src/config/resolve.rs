//! From what was set to what the clients read: every combination is checked, and all that is wrong is reported in one error.

use std::{sync::Arc, time::Duration};

use super::{
    KafkaConfig,
    effective::Effective,
    properties, secrecy, security,
    settings::{
        Acks, Address, ClientSettings, Compression, ConsumerSettings, GroupProtocol, ProducerSettings,
        SecurityProtocol, TlsSettings,
    },
    url,
};
use crate::{
    connection::{Faults, KeptMemory},
    error::Result,
    group::assignor::{OwnAssignor, Strategy},
    producer::Plugins,
};

/// The largest answers that are accepted unless `receive.message.max.bytes` is set. No batch of ordinary size comes near
/// the first, and the second has room for 100,000 partitions with three replicas each. Both bound the memory that a
/// broker can make a client take.
const LARGEST_FETCH: i64 = 32 << 20;
const LARGEST_OTHER: i64 = 4 << 20;
/// Java accepts a pause of 0 as well. Here it becomes 1 ms, because what is repeated after no pause would be repeated
/// without end.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

fn log(note: &str) {
    tracing::warn!(controller = "dtkafka.config", subject = "Kafka configuration", "{note}");
}

impl KafkaConfig {
    /// Checks everything at once but the contents of files, and logs what has no effect.
    pub(crate) fn validate(&self) -> Result<()> {
        self.validate_with(|_| Vec::new())
    }

    /// [`validate`](Self::validate); `files` reads what the TLS settings name, and says what is wrong with it.
    pub(crate) fn validate_with(&self, files: impl FnOnce(&TlsSettings) -> Vec<String>) -> Result<()> {
        let (mut all, client) = self.for_all_clients();
        all.problems.extend(client.tls.as_ref().map(files).unwrap_or_default());
        all.notes.iter().for_each(|note| log(note));
        all.outcome(())
    }

    /// Logs the notes that its overrides add to those which were logged for `base`.
    pub(crate) fn log_beside(&self, base: &Self) {
        let (notes, logged) = (self.for_all_clients().0.notes, base.for_all_clients().0.notes);
        notes.iter().filter(|note| !logged.contains(note)).for_each(|note| log(note));
    }

    /// As every kind of client reads it.
    fn for_all_clients(&self) -> (Effective, ClientSettings) {
        let mut all = self.checked();
        let client = self.client(&mut all);
        producer(&mut all);
        consumer(&mut all, &self.assignors);
        (all, client)
    }

    /// What connections read. A consumer resolves its merged configuration, so that its fetch sizes count.
    pub(crate) fn resolve_client(&self) -> Result<ClientSettings> {
        let mut all = self.checked();
        let settings = self.client(&mut all);
        all.outcome(settings)
    }

    /// What a producer reads.
    pub(crate) fn resolve_producer(&self) -> Result<ProducerSettings> {
        let mut all = self.checked();
        let settings = ProducerSettings { plugins: self.plugins.clone(), ..producer(&mut all) };
        all.outcome(settings)
    }

    /// What a consumer reads.
    pub(crate) fn resolve_consumer(&self) -> Result<ConsumerSettings> {
        let mut all = self.checked();
        let settings = consumer(&mut all, &self.assignors);
        all.outcome(settings)
    }

    fn client(&self, all: &mut Effective) -> ClientSettings {
        let protocol: SecurityProtocol = all.choice("security.protocol");
        let bootstrap = bootstrap(all);
        // The first pause or time-out, and the longest.
        let mut growing = |first: &str, most: &str| {
            if all.number(first) > all.number(most) {
                all.notes.push(format!("{first} is above {most}; the greater value is used for both"));
            }
            (all.millis(first), all.millis(most).max(all.millis(first)))
        };
        let (reconnect_backoff, reconnect_backoff_max) =
            growing("reconnect.backoff.ms", "reconnect.backoff.max.ms");
        let (retry_backoff, retry_backoff_max) = growing("retry.backoff.ms", "retry.backoff.max.ms");
        let (connection_setup_timeout, connection_setup_timeout_max) =
            growing("socket.connection.setup.timeout.ms", "socket.connection.setup.timeout.max.ms");
        let (largest, largest_other) = answer_limits(all);
        ClientSettings {
            bootstrap,
            client_id: all.text("client.id").unwrap_or_default().into(),
            tls: self.tls(all, protocol),
            sasl: security::sasl(all, protocol),
            request_timeout: all.millis("request.timeout.ms"),
            connection_setup_timeout,
            connection_setup_timeout_max,
            reconnect_backoff,
            reconnect_backoff_max,
            retry_backoff: retry_backoff.max(LEAST_PAUSE),
            retry_backoff_max: retry_backoff_max.max(LEAST_PAUSE),
            metadata_max_age: all.millis("metadata.max.age.ms"),
            metadata_max_idle: all.millis("metadata.max.idle.ms"),
            rebootstrap: all
                .text("metadata.recovery.strategy")
                .is_none_or(|text| !text.eq_ignore_ascii_case("none")),
            rebootstrap_after: all.millis("metadata.recovery.rebootstrap.trigger.ms"),
            connections_max_idle: all.millis("connections.max.idle.ms"),
            default_api_timeout: all.millis("default.api.timeout.ms"),
            allow_auto_create_topics: all.flag("allow.auto.create.topics"),
            receive_message_max_bytes: usize::try_from(largest).unwrap_or(usize::MAX),
            receive_other_max_bytes: usize::try_from(largest_other).unwrap_or(usize::MAX),
            kept: KeptMemory::default(),
            faults: Faults::default(),
            logins: Arc::default(),
            route: self.route.clone(),
            environment: self.environment.clone(),
        }
    }
}

/// The addresses of `bootstrap.servers`; none if it is wrong or missing, which is reported.
fn bootstrap(all: &mut Effective) -> Vec<Address> {
    match all.text("bootstrap.servers") {
        Some(text) => url::parse_addresses(&text).unwrap_or_default(),
        None => {
            if !all.is_set("kafka.url") {
                all.problems.push(
                    "no broker is named: set kafka.url (set_kafka_url, KAFKA_URL) to kafka://host:9092 or \
                     bootstrap.servers (set_bootstrap_servers, KAFKA_BOOTSTRAP_SERVERS) to host:9092"
                        .to_owned(),
                );
            }
            Vec::new()
        }
    }
}

/// The size of the largest answer to a Fetch, and to anything else.
fn answer_limits(all: &mut Effective) -> (i64, i64) {
    let fetch = all.number("fetch.max.bytes").max(all.number("max.partition.fetch.bytes"));
    let derived = fetch.saturating_add(1 << 20).clamp(LARGEST_FETCH, i64::from(i32::MAX));
    if all.is_set("receive.message.max.bytes") {
        let largest = all.number("receive.message.max.bytes");
        // A fetch answer has room for its headers besides the records.
        if largest < fetch.saturating_add(512).min(i64::from(i32::MAX)) {
            all.problems.push(format!(
                "receive.message.max.bytes = {largest} cannot hold an answer of fetch.max.bytes and \
                 max.partition.fetch.bytes: accepted is at least {} or leave it out",
                fetch.saturating_add(512)
            ));
        }
        (largest, largest)
    } else {
        (derived, LARGEST_OTHER)
    }
}

fn producer(all: &mut Effective) -> ProducerSettings {
    let acks: Acks = all.choice("acks");
    let compression: Compression = all.choice("compression.type");
    let linger = all.millis("linger.ms");
    let request_timeout = all.millis("request.timeout.ms");
    let mut delivery_timeout = all.millis("delivery.timeout.ms");
    if delivery_timeout < linger + request_timeout {
        // Java: an explicit value is refused, the default grows.
        let least = (linger + request_timeout).as_millis();
        if all.is_set("delivery.timeout.ms") {
            all.problems.push(format!(
                "delivery.timeout.ms = {} is below linger.ms + request.timeout.ms = {least}: raise it, or lower one of \
                 the others",
                delivery_timeout.as_millis()
            ));
        } else {
            all.notes
                .push(format!("delivery.timeout.ms is raised to linger.ms + request.timeout.ms = {least}"));
            delivery_timeout = linger + request_timeout;
        }
    }
    if all.flag("transaction.two.phase.commit.enable") {
        // Up to 4.4 version 6 of InitProducerId is marked unstable, and Java's producer has no call that prepares.
        all.problems.push(
            "transaction.two.phase.commit.enable = true is not supported: released brokers and clients do not offer two-phase \
             commits (KIP-939) yet. Leave it out; transactions are ended by their producer, and by their coordinator after \
             transaction.timeout.ms"
                .to_owned(),
        );
    }
    let max_request_size = all.size("max.request.size");
    let buffer_memory = all.size("buffer.memory");
    ProducerSettings {
        acks,
        idempotence: idempotence(all, acks),
        linger,
        // A batch that no request or buffer holds could never be sent.
        batch_size: all.size("batch.size").clamp(1, max_request_size.min(buffer_memory).max(1)),
        buffer_memory,
        max_block: all.millis("max.block.ms"),
        delivery_timeout,
        retries: u32::try_from(all.number("retries")).unwrap_or(u32::MAX),
        max_in_flight: all.size("max.in.flight.requests.per.connection"),
        max_request_size,
        compression,
        compression_level: compression_level(all, compression),
        partitioner_ignore_keys: all.flag("partitioner.ignore.keys"),
        key_hash: all.choice("partitioner"),
        partitioner_adaptive: all.flag("partitioner.adaptive.partitioning.enable"),
        partitioner_availability_timeout: all.millis("partitioner.availability.timeout.ms"),
        transactional_id: all.text("transactional.id").map(Into::into),
        transaction_timeout: all.millis("transaction.timeout.ms"),
        plugins: Plugins::default(),
    }
}

/// KIP-679: idempotence is on by default, off where other settings forbid it, and an error where it was asked for.
fn idempotence(all: &mut Effective, acks: Acks) -> bool {
    let mut conflicts = Vec::new();
    if acks != Acks::All {
        conflicts.push(format!("acks = {acks} (needed: all)"));
    }
    if all.number("retries") == 0 {
        conflicts.push("retries = 0 (needed: at least 1)".to_owned());
    }
    let in_flight = all.number("max.in.flight.requests.per.connection");
    if in_flight > 5 {
        conflicts.push(format!("max.in.flight.requests.per.connection = {in_flight} (needed: at most 5)"));
    }
    let wanted = all.flag("enable.idempotence");
    if !wanted || conflicts.is_empty() {
        return wanted;
    }
    let conflicts = conflicts.join(" and ");
    if all.is_set("enable.idempotence") {
        all.problems.push(format!("enable.idempotence = true does not go with {conflicts}"));
    } else {
        all.notes.push(format!("idempotence is off, so that retries may write duplicates: {conflicts}"));
    }
    false
}

fn compression_level(all: &mut Effective, compression: Compression) -> Option<i32> {
    let name = match compression {
        Compression::Gzip => "compression.gzip.level",
        Compression::Lz4 => "compression.lz4.level",
        Compression::Zstd => "compression.zstd.level",
        Compression::None | Compression::Snappy => return None,
    };
    if all.is_set(name) {
        return i32::try_from(all.number(name)).ok();
    }
    let level = all.text("compression.level")?;
    if let Err(why) = properties::check(properties::kind(name), &level) {
        let level = secrecy::refused_number(&level);
        all.problems.push(format!("compression.level = {level:?} is no level of {compression}: {why}"));
    }
    level.trim().parse().ok()
}

fn consumer(all: &mut Effective, own: &[OwnAssignor]) -> ConsumerSettings {
    let below = |all: &mut Effective, small: &str, great: &str| {
        let (less, more) = (all.number(small), all.number(great));
        if less >= more {
            all.problems.push(format!("{small} = {less} must be below {great} = {more}"));
        }
    };
    let group_protocol: GroupProtocol = all.choice("group.protocol");
    check_protocol(all, group_protocol);
    if group_protocol == GroupProtocol::Consumer && !own.is_empty() {
        all.problems.push(
            "ConsumerConfig::assignor does not go with group.protocol = consumer, where the broker assigns: leave it out, or set \
             group.protocol to classic or auto"
                .to_owned(),
        );
    }
    if group_protocol != GroupProtocol::Consumer {
        below(all, "heartbeat.interval.ms", "session.timeout.ms");
    }
    let mut fetch_max_wait = all.millis("fetch.max.wait.ms");
    let request_timeout = all.millis("request.timeout.ms");
    if all.is_set("fetch.max.wait.ms") {
        below(all, "fetch.max.wait.ms", "request.timeout.ms");
    } else if fetch_max_wait >= request_timeout {
        // Every fetch without records would time out.
        fetch_max_wait = request_timeout / 2;
        all.notes.push("fetch.max.wait.ms is lowered to half of request.timeout.ms".to_owned());
    }
    let group_id = all.text("group.id");
    let bytes = |all: &Effective, name| i32::try_from(all.number(name)).unwrap_or(i32::MAX);
    ConsumerSettings {
        // Without a group there is nothing to commit to.
        enable_auto_commit: all.flag("enable.auto.commit") && group_id.is_some(),
        group_id: group_id.map(Arc::from),
        group_instance_id: all.text("group.instance.id"),
        group_protocol,
        group_remote_assignor: all.text("group.remote.assignor"),
        auto_offset_reset: all.choice("auto.offset.reset"),
        auto_commit_interval: all.millis("auto.commit.interval.ms"),
        max_poll_records: all.size("max.poll.records"),
        unreadable_warn: all.millis("unreadable.warn.ms"),
        max_poll_interval: all.millis("max.poll.interval.ms"),
        session_timeout: all.millis("session.timeout.ms"),
        heartbeat_interval: all.millis("heartbeat.interval.ms"),
        // With 0 a broker answers at once also without records, and those that come then wait until it is asked again.
        fetch_min_bytes: bytes(all, "fetch.min.bytes").max(1),
        fetch_max_bytes: bytes(all, "fetch.max.bytes"),
        fetch_max_wait,
        max_partition_fetch_bytes: bytes(all, "max.partition.fetch.bytes"),
        fetch_buffer_memory: all.size("fetch.buffer.memory"),
        max_decompressed_bytes: max_decompressed(all),
        check_crcs: all.flag("check.crcs"),
        isolation_level: all.choice("isolation.level"),
        client_rack: all.text("client.rack"),
        exclude_internal_topics: all.flag("exclude.internal.topics"),
        assignors: assignors(all, own),
    }
}

/// As Java: what only the other protocol knows is refused where it was set on purpose.
fn check_protocol(all: &mut Effective, protocol: GroupProtocol) {
    let (strange, remedy): (&[(&str, &str)], _) = match protocol {
        GroupProtocol::Auto => return,
        GroupProtocol::Classic => (
            &[("group.remote.assignor", "partition.assignment.strategy says how the members assign")],
            "or set group.protocol to consumer or auto",
        ),
        GroupProtocol::Consumer => (
            &[
                ("session.timeout.ms", "the broker sets it (group.consumer.session.timeout.ms)"),
                ("heartbeat.interval.ms", "the broker sets it (group.consumer.heartbeat.interval.ms)"),
                ("partition.assignment.strategy", "the broker assigns (group.remote.assignor)"),
            ],
            "or set group.protocol to classic or auto",
        ),
    };
    for (name, instead) in strange.iter().filter(|(name, _)| all.entries.contains_key(name)) {
        all.problems.push(format!(
            "{name} does not go with group.protocol = {protocol}: {instead}; leave it out, {remedy}"
        ));
    }
}

/// Four times the fetch size, since fetched batches were compressed; one that grows a hundredfold is a mistake or an
/// attack.
fn max_decompressed(all: &Effective) -> usize {
    if all.is_set("max.decompressed.bytes") {
        return all.size("max.decompressed.bytes");
    }
    let fetch = all.number("fetch.max.bytes").max(all.number("max.partition.fetch.bytes"));
    usize::try_from(fetch.saturating_mul(4).clamp(32 << 20, i64::from(i32::MAX))).unwrap_or(usize::MAX)
}

/// The assignors named, by Kafka's name or Java's class, and the user's own; what is none of them is a problem.
fn assignors(all: &mut Effective, own: &[OwnAssignor]) -> Vec<Strategy> {
    const NAME: &str = "partition.assignment.strategy";
    let text =
        if own.is_empty() || all.is_set(NAME) { all.text(NAME).unwrap_or_default() } else { String::new() };
    let mut assignors = Vec::new();
    for name in text.split([',', ';']).map(str::trim).filter(|name| !name.is_empty()) {
        let class = name.rsplit('.').next().unwrap_or(name);
        let plain = match class {
            "RangeAssignor" | "RangePartitionAssignor" => "range",
            "RoundRobinAssignor" | "RoundRobinPartitionAssignor" => "roundrobin",
            "StickyAssignor" | "StickyPartitionAssignor" => "sticky",
            "CooperativeStickyAssignor" => "cooperative-sticky",
            other => other,
        };
        let own = own.iter().find(|own| own.name() == name).cloned().map(Strategy::Own);
        match own.or_else(|| Strategy::named(&plain.to_ascii_lowercase())) {
            Some(assignor) if !assignors.contains(&assignor) => assignors.push(assignor),
            Some(_) => {}
            // The name is not shown, because it may be a secret in the wrong place.
            None => all.problems.push(format!(
                "{NAME} names an assignor that is not known, accepted: range, roundrobin, sticky, cooperative-sticky"
            )),
        }
    }
    let mut first = Vec::new();
    for own in own {
        let name = own.name();
        if name.is_empty() || Strategy::named(name).is_some() {
            all.problems.push(format!("an assignor of one's own cannot be named '{name}'"));
        }
        let own = Strategy::Own(own.clone());
        if !assignors.contains(&own) && !first.contains(&own) {
            first.push(own);
        }
    }
    assignors.splice(0..0, first);
    if assignors.is_empty() {
        assignors.extend([Strategy::Range, Strategy::RoundRobin]);
    }
    assignors
}
