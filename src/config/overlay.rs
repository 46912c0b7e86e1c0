//! Settings of one client that override those of its `KafkaConfig`.

use super::{KafkaConfig, Origin, SettingValue};
use crate::{
    group::assignor::{Assignor, OwnAssignor},
    producer::{OwnPartitioner, Partitioner, ProducerInterceptor},
};

macro_rules! overlay {
    ($(#[$type_doc:meta])* $type:ident { $($(#[$doc:meta])* $setter:ident => $property:literal;)+ }) => {
        $(#[$type_doc])*
        #[derive(Debug, Clone, Default)]
        pub struct $type {
            overlay: KafkaConfig,
        }

        impl $type {
            /// No overrides.
            pub fn new() -> Self {
                Self::default()
            }

            $($(#[$doc])*
            #[must_use]
            pub fn $setter(self, value: impl Into<SettingValue>) -> Self {
                self.set($property, value)
            })+

            /// Any other property by name; see [`KafkaConfig::set`].
            #[must_use]
            pub fn set(mut self, name: impl AsRef<str>, value: impl Into<SettingValue>) -> Self {
                self.overlay = self.overlay.set(name, value);
                self
            }

            /// The base with these overrides, which win over its setters and its URL.
            pub(crate) fn merged(&self, base: &KafkaConfig) -> KafkaConfig {
                merged(&self.overlay, base)
            }
        }
    };
}

overlay! {
    /// Overrides of one producer, each a Java property; `get_producer_with(|p| p.acks(Acks::All).linger(Duration::ZERO))`.
    ///
    /// Every method takes text, numbers (times in milliseconds, sizes in bytes), `Duration` or the enum of the setting.
    ProducerConfig {
        /// `acks`: `all` (default), `1`, `0`, or an [`Acks`](super::Acks).
        acks => "acks";
        /// `compression.type`: `none` (default), `gzip`, `snappy`, `lz4`, `zstd`, or a [`Compression`](super::Compression).
        compression => "compression.type";
        /// The level of whatever codec is used: gzip 1 to 9, LZ4 1 to 17, Zstandard -131072 to 22. Default: the codec's.
        compression_level => "compression.level";
        /// `linger.ms`: how long a batch waits for more records. Default: 5 ms. With 0 a record leaves at once; while a
        /// request to the same broker is in flight it leaves with others, when that is answered or after 1 ms.
        linger => "linger.ms";
        /// `batch.size`: bytes of records per batch; 0: each record by itself. Default: 131072.
        batch_size => "batch.size";
        /// `buffer.memory`: bytes of unsent records before senders wait. Default: 33554432.
        buffer_memory => "buffer.memory";
        /// `delivery.timeout.ms`: limit from sending to acknowledgement. Default: 2 minutes. At least `linger.ms` plus
        /// `request.timeout.ms`.
        delivery_timeout => "delivery.timeout.ms";
        /// `retries`: attempts after the first. Default: 2147483647, so that the delivery timeout decides.
        retries => "retries";
        /// `max.in.flight.requests.per.connection`. Default: 5, the most that idempotence allows.
        max_in_flight => "max.in.flight.requests.per.connection";
        /// `max.request.size`: bytes of a request, and so of a record. Default: 1048576.
        max_request_size => "max.request.size";
        /// `enable.idempotence`. Default: true, unless acks, retries or in-flight forbid it (KIP-679).
        enable_idempotence => "enable.idempotence";
        /// `max.block.ms`: how long a sender waits for memory and metadata. Default: 1 minute.
        max_block => "max.block.ms";
    }
}

overlay! {
    /// Overrides of one consumer, each a Java property; `get_consumer_with(topics, |c|
    /// c.group_id("audit").max_poll_records(50))`.
    ///
    /// Every method takes text, numbers (times in milliseconds, sizes in bytes), `Duration` or the enum of the setting.
    ConsumerConfig {
        /// `group.id`. Default: none.
        group_id => "group.id";
        /// `group.instance.id`: static membership (KIP-345). Default: none.
        group_instance_id => "group.instance.id";
        /// `group.protocol`: `classic` (default), `consumer` (KIP-848), `auto`, or a [`GroupProtocol`](super::GroupProtocol).
        group_protocol => "group.protocol";
        /// `group.remote.assignor`: the broker's assignor, `uniform` or `range`, with the consumer protocol (KIP-848). Default:
        /// the broker's first.
        group_remote_assignor => "group.remote.assignor";
        /// `auto.offset.reset`: `latest` (default), `earliest`, `none`, `by_duration:P7D`, or an
        /// [`AutoOffsetReset`](super::AutoOffsetReset).
        auto_offset_reset => "auto.offset.reset";
        /// `enable.auto.commit`. Default: true.
        enable_auto_commit => "enable.auto.commit";
        /// `auto.commit.interval.ms`. Default: 5 s.
        auto_commit_interval => "auto.commit.interval.ms";
        /// `max.poll.records`. Default: 500.
        max_poll_records => "max.poll.records";
        /// `max.poll.interval.ms`: longest time between polls. Default: 5 minutes.
        max_poll_interval => "max.poll.interval.ms";
        /// `session.timeout.ms`. Default: 45 s. Not with the consumer protocol, where the broker sets it.
        session_timeout => "session.timeout.ms";
        /// `heartbeat.interval.ms`. Default: 3 s; below the session timeout. Not with the consumer protocol, where the
        /// broker sets it.
        heartbeat_interval => "heartbeat.interval.ms";
        /// `fetch.min.bytes`. Default: 1; 0 counts as 1.
        fetch_min_bytes => "fetch.min.bytes";
        /// `fetch.max.bytes`: bytes per answer. Default: 8388608 (Java 52428800): memory for larger answers comes fresh from
        /// the system each time, which doubles the CPU per record. Raise it where the way to the broker is long and wide.
        fetch_max_bytes => "fetch.max.bytes";
        /// `fetch.max.wait.ms`: how long a broker waits for `fetch.min.bytes`. Default: 500 ms; below `request.timeout.ms`.
        fetch_max_wait => "fetch.max.wait.ms";
        /// `max.partition.fetch.bytes`. Default: 1048576.
        max_partition_fetch_bytes => "max.partition.fetch.bytes";
        /// Bytes of fetched records that wait to be polled, for the whole consumer (KIP-81). Default: 67108864.
        fetch_buffer_memory => "fetch.buffer.memory";
        /// `max.decompressed.bytes`: memory that the records of one batch may decompress to, so that a batch forged or made to
        /// blow up ends in an error. Default: 32 MiB, or four times the larger fetch size. Java has no limit.
        max_decompressed_bytes => "max.decompressed.bytes";
        /// `isolation.level`: `read_uncommitted` (default), `read_committed`, or an [`IsolationLevel`](super::IsolationLevel).
        isolation_level => "isolation.level";
        /// `check.crcs`: check every batch's CRC-32C. Default: true.
        check_crcs => "check.crcs";
    }
}

impl ProducerConfig {
    /// Code of yours that sees each record before it is sent and hears what became of it (Java: `interceptor.classes`). Called
    /// again it adds another, behind those before. Default: none. Dead letters and records that wait in retry topics are not
    /// seen by it.
    #[must_use]
    pub fn interceptor(mut self, interceptor: impl ProducerInterceptor) -> Self {
        self.overlay.plugins.interceptors.push(interceptor);
        self
    }

    /// Rules of your own for the partition of records that name none (Java: `partitioner.class`). Default: the property
    /// `partitioner`, which says where keys go, and the sticky partitioner for records without a key.
    #[must_use]
    pub fn partitioner(mut self, partitioner: impl Partitioner) -> Self {
        self.overlay.plugins.partitioner = Some(OwnPartitioner::new(partitioner));
        self
    }
}

impl ConsumerConfig {
    /// An assignor of your own, for groups of the classic protocol; see [`Assignor`]. Called again it adds another, of
    /// lower preference. Default: none. With `group.protocol=consumer`, an empty name or a built-in one it is a
    /// configuration error, told when the consumer is made.
    ///
    /// Where `partition.assignment.strategy` is set its assignors are offered as well, behind this one, or in the order
    /// of the list if that has this one's name. A rolling change to an assignor of your own offers the old and the new,
    /// as long as there are members without it.
    #[must_use]
    pub fn assignor(mut self, assignor: impl Assignor) -> Self {
        self.overlay.assignors.push(OwnAssignor::new(assignor));
        self
    }
}

fn merged(overlay: &KafkaConfig, base: &KafkaConfig) -> KafkaConfig {
    let mut merged = base.clone();
    for (name, entry) in &overlay.entries {
        let mut entry = entry.clone();
        entry.origin = Origin::Override;
        merged.entries.insert(name, entry);
    }
    merged.plugins = overlay.plugins.clone();
    merged.assignors.clone_from(&overlay.assignors);
    merged.problems.extend(overlay.problems.iter().cloned());
    merged.notes.extend(overlay.notes.iter().cloned());
    merged
}
