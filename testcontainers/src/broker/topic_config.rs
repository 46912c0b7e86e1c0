//! The topic configurations that the broker knows, with Apache Kafka's defaults.
//!
//! Some change what it does: `cleanup.policy` (records without a key are refused), `max.message.bytes`, `message.timestamp.type`,
//! `min.insync.replicas`, `retention.ms` (when a test applies it) and `unclean.leader.election.enable`. The rest is kept and shown.

/// Name, default and type (the numbers of KIP-569: 1 boolean, 2 string, 3 int, 5 long, 6 double, 7 list).
pub(super) const KNOWN: [(&str, &str, i8); 24] = [
    ("cleanup.policy", "delete", 7),
    ("compression.gzip.level", "-1", 3),
    ("compression.lz4.level", "9", 3),
    ("compression.type", "producer", 2),
    ("compression.zstd.level", "3", 3),
    ("delete.retention.ms", "86400000", 5),
    ("file.delete.delay.ms", "60000", 5),
    ("flush.messages", "9223372036854775807", 5),
    ("flush.ms", "9223372036854775807", 5),
    ("index.interval.bytes", "4096", 3),
    ("max.compaction.lag.ms", "9223372036854775807", 5),
    ("max.message.bytes", "1048588", 3),
    ("message.timestamp.after.max.ms", "3600000", 5),
    ("message.timestamp.before.max.ms", "9223372036854775807", 5),
    ("message.timestamp.type", "CreateTime", 2),
    ("min.cleanable.dirty.ratio", "0.5", 6),
    ("min.compaction.lag.ms", "0", 5),
    ("min.insync.replicas", "1", 3),
    ("preallocate", "false", 1),
    ("retention.bytes", "-1", 5),
    ("retention.ms", "604800000", 5),
    ("segment.bytes", "1073741824", 3),
    ("segment.ms", "604800000", 5),
    ("unclean.leader.election.enable", "false", 1),
];

/// The default of a topic configuration, if the broker knows it.
pub(super) fn default_of(name: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.0 == name).map(|known| known.1)
}

/// Is this a configuration with a value of its type? Says why not.
pub(super) fn check(name: &str, value: &str) -> Result<(), String> {
    let Some((_, _, kind)) = KNOWN.iter().find(|known| known.0 == name) else {
        return Err(format!("Unknown topic config name: {name}"));
    };
    let fits = match (kind, name) {
        (_, "cleanup.policy") => {
            value.split(',').all(|policy| matches!(policy.trim(), "delete" | "compact" | ""))
        }
        (_, "compression.type") => {
            matches!(value, "producer" | "uncompressed" | "gzip" | "snappy" | "lz4" | "zstd")
        }
        (_, "message.timestamp.type") => matches!(value, "CreateTime" | "LogAppendTime"),
        (_, "min.insync.replicas") => value.parse::<i32>().is_ok_and(|least| least >= 1),
        (1, _) => matches!(value, "true" | "false"),
        (3, _) => value.parse::<i32>().is_ok(),
        (5, _) => value.parse::<i64>().is_ok(),
        (6, _) => value.parse::<f64>().is_ok(),
        _ => true,
    };
    if fits { Ok(()) } else { Err(format!("Invalid value {value} for configuration {name}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_values_that_mean_nothing_are_not() {
        for (name, default, _) in KNOWN {
            assert_eq!(check(name, default), Ok(()), "{name}");
        }
        assert_eq!(check("cleanup.policy", "compact,delete"), Ok(()));
        for (name, value) in [
            ("cleanup.policy", "compakt"),
            ("compression.type", "lzma"),
            ("message.timestamp.type", "Never"),
            ("min.insync.replicas", "0"),
            ("preallocate", "yes"),
            ("retention.ms", "7d"),
            ("retention", "7"),
        ] {
            assert!(check(name, value).is_err(), "{name}={value}");
        }
    }
}
