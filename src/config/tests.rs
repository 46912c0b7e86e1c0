//! The whole configuration: its table, its defaults, and what is refused.

mod secrets;
mod sources;

use std::{ffi::OsString, time::Duration};

use super::{
    properties::{self, PROPERTIES},
    settings::{Address, PemSource, Secret, TrustRoots},
    *,
};
use tracing::Level;

use crate::{error::ErrorKind, test_log::Log};

const PASSWORD: &str = "hunter2-Zq9";

fn local() -> KafkaConfig {
    KafkaConfig::new().set_bootstrap_servers("localhost")
}

fn refusal(config: &KafkaConfig) -> String {
    let error = config.validate().expect_err("the configuration is bad");
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

fn address(host: &str, port: u16) -> Address {
    Address { host: host.to_owned(), port }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn every_default_fits_its_own_kind_and_every_name_is_known_once() {
    let mut names = std::collections::BTreeSet::new();
    for property in PROPERTIES {
        if let Some(default) = property.default {
            assert_eq!(properties::check(property.kind, default), Ok(()), "{}", property.name);
        }
        for name in std::iter::once(&property.name).chain(property.aliases) {
            assert!(names.insert(*name), "{name} is in the table twice");
            assert_eq!(*name, properties::normalized(name), "{name} can never be found");
        }
    }
}

#[test]
fn defaults_are_those_of_java_with_ours_where_documented() {
    let client = local().resolve_client().unwrap();
    assert_eq!(client.bootstrap, [address("localhost", 9092)]);
    assert_eq!(&*client.client_id, "dtkafka");
    assert!(client.tls.is_none() && client.sasl.is_none() && client.allow_auto_create_topics);
    assert_eq!(client.connections_max_idle, Duration::from_secs(230));
    assert_eq!((client.receive_message_max_bytes, client.receive_other_max_bytes), (32 << 20, 4 << 20));
    let producer = local().resolve_producer().unwrap();
    assert!(producer.idempotence && producer.acks == Acks::All && producer.compression == Compression::None);
    assert_eq!((producer.linger, producer.batch_size), (Duration::from_millis(5), 131_072));
    assert_eq!((producer.retries, producer.max_in_flight), (2_147_483_647, 5));
    let consumer = local().set_group_id("g").resolve_consumer().unwrap();
    assert!(consumer.enable_auto_commit && consumer.check_crcs);
    assert_eq!((consumer.max_poll_records, consumer.fetch_max_bytes), (500, 8_388_608));
    assert!(!local().resolve_consumer().unwrap().enable_auto_commit, "nothing to commit without a group");
}

#[test]
fn the_seeds_builder_works_with_text_and_with_types() {
    let seeds = [
        KafkaConfig::new()
            .set_bootstrap_servers(["prod-broker1:9093", "prod-broker2:9093"])
            .set_security_protocol("sasl_ssl")
            .set_sasl_mechanism("SCRAM-SHA-256")
            .set_auto_offset_reset("earliest")
            .set_enable_auto_commit("False"),
        KafkaConfig::new()
            .set_bootstrap_servers(vec!["prod-broker1:9093".to_owned(), "prod-broker2:9093".to_owned()])
            .set_security_protocol(SecurityProtocol::SaslSsl)
            .set_sasl_mechanism(SaslMechanism::ScramSha256)
            .set_auto_offset_reset(AutoOffsetReset::Earliest)
            .set_enable_auto_commit(false),
    ];
    for config in seeds {
        let config = config
            .set_sasl_plain_username("app_user")
            .set_sasl_plain_password(PASSWORD)
            .set_client_id("payments")
            .set_group_id("billing");
        config.validate().unwrap();
        let client = config.resolve_client().unwrap();
        assert_eq!(client.bootstrap, [address("prod-broker1", 9093), address("prod-broker2", 9093)]);
        let sasl = client.sasl.unwrap();
        assert_eq!(
            (sasl.mechanism, sasl.username.as_str(), sasl.password.expose()),
            (SaslMechanism::ScramSha256, "app_user", PASSWORD)
        );
        assert!(client.tls.unwrap().verify_host_name);
        let consumer = config.resolve_consumer().unwrap();
        assert_eq!(consumer.group_id.as_deref(), Some("billing"));
        assert!(!consumer.enable_auto_commit && consumer.auto_offset_reset == AutoOffsetReset::Earliest);
    }
}

#[test]
fn every_bad_value_is_named_with_what_is_accepted() {
    let table = [
        ("linger.ms", "soon", "linger.ms = \"soon\": accepted: a whole number of milliseconds from 0 to"),
        ("batch_size", "-1", "batch.size = \"-1\": accepted: a whole number of bytes from 0 to 2147483647"),
        ("retries", "1.5", "retries = \"1.5\": accepted: a whole number from 0 to 2147483647"),
        ("acks", "2", "acks = \"2\": accepted: all, -1, 1, 0"),
        ("enable_auto_commit", "yes", "enable.auto.commit = \"yes\": accepted: true, false"),
        ("compression.type", "brotli", "accepted: none, gzip, snappy, lz4, zstd"),
        ("auto_offset_reset", "first", "accepted: earliest, latest, none"),
        ("isolation.level", "x", "accepted: read_uncommitted, read_committed"),
        ("sasl_mechanism", "GSSAPI", "accepted: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ("sasl_mechanism", "OAUTHBEARER", "= \"OAUTHBEARER\""),
        ("sasl_mechanism", "OAUTHBEARER", "GSSAPI and OAUTHBEARER are not supported"),
        ("auto.offset.reset", "begining", "= \"begining\""),
        ("bootstrap.servers", "PLAINTEXT://localhost:9092", "without PLAINTEXT://"),
        ("security_protocol", "TLS", "accepted: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("ssl.trust.roots", "mine", "accepted: one or several of mozilla, system"),
        ("group.id", " ", "group.id = \" \": it must not be empty"),
        ("transaction.timeout.ms", "0", "transaction.timeout.ms"),
        ("group.protocol", "modern", "accepted: classic, consumer, auto"),
        ("ssl.truststore.type", "JKS", "accepted: PEM"),
        ("enable.ssl.certificate.verification", "false", "accepted: true"),
        ("request.timeout.ms", "99999999999999999999", "request.timeout.ms"),
    ];
    let mut all = local();
    for (name, value, reason) in table {
        let error = refusal(&local().set(name, value));
        assert!(error.contains(reason), "{name}: {error}");
        all = all.set(name, value);
    }
    for name in ["client.id", "client.rack", "group.id", "group.instance.id", "sasl.username"] {
        assert!(properties::check(properties::Kind::Text, &"x".repeat(32_767)).is_ok());
        let error = refusal(&local().set(name, "x".repeat(32_768)));
        assert!(error.contains("accepted: at most 32767 bytes") && error.len() < 1000, "{name}: {error}");
    }
    let error = refusal(&all);
    for (name, _, reason) in table {
        assert!(error.contains(reason), "{name} is missing from {error}");
    }
    assert!(refusal(&KafkaConfig::new()).contains("no broker is named"));
    assert!(refusal(&KafkaConfig::new().set_bootstrap_servers("")).contains("no host is named"));
    assert!(refusal(&KafkaConfig::new().set_bootstrap_servers("h:x")).contains("address 1: its port"));
    assert!(refusal(&ProducerConfig::new().linger(Duration::MAX).merged(&local())).contains("linger.ms"));
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[("enable.idempotence", "true"), ("acks", "1")], "does not go with acks = 1 (needed: all)"),
        (&[("enable.idempotence", "true"), ("retries", "0")], "retries = 0"),
        (&[("enable.idempotence", "true"), ("max_in_flight_requests_per_connection", "6")], "at most 5"),
        (&[("transaction.two.phase.commit.enable", "true")], "two-phase commits (KIP-939) yet. Leave it out"),
        (&[("delivery.timeout.ms", "1000")], "below linger.ms + request.timeout.ms = 30005"),
        (
            &[("session.timeout.ms", "3000")],
            "heartbeat.interval.ms = 3000 must be below session.timeout.ms = 3000",
        ),
        (&[("fetch.max.wait.ms", "30000")], "must be below request.timeout.ms"),
        (&[("security.protocol", "SASL_SSL")], "needs sasl.plain.username"),
        (&[("security.protocol", "SASL_PLAINTEXT"), ("sasl.username", "u")], "needs sasl.plain.password"),
        (&[("sasl.username", "u")], "set security.protocol to SASL_PLAINTEXT or SASL_SSL"),
        (&[("ssl_cafile", "/ca.pem")], "set security.protocol to SSL"),
        (&[("security.protocol", "SSL"), ("ssl.certfile", "/c.pem")], "without its key"),
        (&[("security.protocol", "SSL"), ("ssl.keyfile", "/k.pem")], "without its certificate"),
        (&[("security.protocol", "SSL"), ("ssl.truststore.location", "/a.JKS")], "is a Java key store"),
        (&[("receive.message.max.bytes", "2000")], "cannot hold an answer"),
        (&[("compression.type", "gzip"), ("compression.level", "15")], "is no level of gzip"),
        (
            &[
                ("security.protocol", "SSL"),
                ("ssl.endpoint.identification.algorithm", "https"),
                ("ssl.check.hostname", "false"),
            ],
            "keep one of them",
        ),
    ];
    for (pairs, reason) in table {
        let error = refusal(&local().set_properties(pairs.iter().copied()));
        assert!(error.contains(reason), "{pairs:?}: {error}");
    }
}

#[test]
fn a_tls_setting_that_says_what_is_so_anyway_goes_with_a_protocol_without_tls() {
    let config = |value| local().set("ssl.endpoint.identification.algorithm", value);
    config("https").validate().unwrap();
    config(" HTTPS ").set("ssl.check.hostname", true).validate().unwrap();
    assert!(refusal(&config("none")).contains("does not encrypt"));
}

#[test]
fn idempotence_goes_off_by_itself_only_where_nobody_asked_for_it() {
    for (name, value) in [("acks", "1"), ("acks", "0"), ("retries", "0"), ("max.in.flight", "6")] {
        let config = local().set(name, value);
        config.validate().unwrap();
        assert!(!config.resolve_producer().unwrap().idempotence, "{name}");
    }
    assert!(local().set("acks", -1).resolve_producer().unwrap().idempotence);
}

#[test]
fn what_overrides_switch_off_or_leave_without_effect_is_logged() {
    let base = local().set("key.serializer", "x").set("linger.ms", 7);
    let beside = |overrides: ProducerConfig| {
        let (log, _guard) = Log::of_this_thread(Level::WARN);
        overrides.merged(&base).log_beside(&base);
        log.text()
    };
    for (name, value) in [("acks", "1"), ("retries", "0"), ("max.in.flight", "6")] {
        let text = beside(ProducerConfig::new().set(name, value));
        assert!(text.contains("idempotence is off") && !text.contains("key.serializer"), "{name}: {text}");
    }
    assert!(beside(ProducerConfig::new().set("partitioner.class", "a.B")).contains("names a Java class"));
    assert_eq!(beside(ProducerConfig::new().acks("all").linger(7)), "");
}

#[test]
fn nothing_follows_from_a_mechanism_that_is_refused_already() {
    let login =
        "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"u\" password=\"p\";";
    let config = |mechanism: &'static str| {
        let config = local().set_security_protocol("SASL_SSL").set_sasl_jaas_config(login);
        refusal(&config.set_sasl_mechanism(mechanism))
    };
    assert!(!config("SCRAM-SHA512").contains("login module"), "{}", config("SCRAM-SHA512"));
    assert!(config("PLAIN").contains("names a Scram login module"));
}

#[test]
fn two_names_of_one_property_with_two_values_are_told_of_and_no_secret_with_them() {
    let both = |one: &'static str, other: &'static str| {
        local().set("ssl.key.password", one).set("ssl.keystore.password", other)
    };
    let (log, _guard) = Log::of_this_thread(Level::WARN);
    both("hunter2-Zq9", "hunter2-Zq9").log_beside(&local());
    assert!(!log.text().contains("two names"), "{}", log.text());
    both("hunter2-Zq9", "hunter3-Zq9").log_beside(&local());
    let text = log.text();
    assert!(text.contains("ssl.key.password and ssl.keystore.password are two names"), "{text}");
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn dependent_defaults_follow_the_values_that_were_set() {
    let config = local().set("request.timeout.ms", 300_000);
    assert_eq!(config.resolve_producer().unwrap().delivery_timeout, Duration::from_millis(300_005));
    let config = local().set("request.timeout.ms", 400);
    assert_eq!(config.resolve_consumer().unwrap().fetch_max_wait, Duration::from_millis(200));
    let config = local().set("fetch.min.bytes", 0);
    assert_eq!(config.resolve_consumer().unwrap().fetch_min_bytes, 1, "what is not there is waited for");
    let config = local().set("fetch.max.bytes", 300 << 20);
    let client = config.resolve_client().unwrap();
    assert_eq!((client.receive_message_max_bytes, client.receive_other_max_bytes), (301 << 20, 4 << 20));
    let client = local().set("receive.message.max.bytes", 40 << 20).resolve_client().unwrap();
    assert_eq!((client.receive_message_max_bytes, client.receive_other_max_bytes), (40 << 20, 40 << 20));
    let consumer = |config: KafkaConfig| config.resolve_consumer().unwrap().max_decompressed_bytes;
    assert_eq!(consumer(local()), 32 << 20);
    assert_eq!(consumer(local().set("fetch.max.bytes", 50 << 20)), 200 << 20);
    assert_eq!(consumer(local().set("max.partition.fetch.bytes", 10 << 20)), 40 << 20);
    assert_eq!(consumer(local().set("max.decompressed.bytes", 5000).set("fetch.max.bytes", 50 << 20)), 5000);
    let config = local().set("max.block.ms", i64::MAX).set("max.request.size", 1000);
    let producer = config.resolve_producer().unwrap();
    assert_eq!((producer.max_block.as_millis(), producer.batch_size), (i32::MAX as u128, 1000));
    let config = local().set("batch.size", 0);
    assert_eq!(config.resolve_producer().unwrap().batch_size, 1, "as in Java, each record by itself");
}

#[test]
fn what_belongs_to_mechanisms_and_engines_of_java_is_accepted_and_changes_nothing() {
    for name in [
        "sasl.login.refresh.window.factor",
        "sasl.kerberos.kinit.cmd",
        "sasl.oauthbearer.token.endpoint.url",
        "ssl.engine.factory.class",
        "ssl.secure.random.implementation",
    ] {
        local().set(name, "hunter2").resolve_client().unwrap();
        assert!(!local().set(name, "hunter2").describe().contains("hunter2"), "{name}");
    }
}

#[test]
fn tls_sources_add_up_and_the_host_name_check_goes_off_by_either_name() {
    let tls =
        |config: KafkaConfig| config.set_security_protocol("SSL").resolve_client().unwrap().tls.unwrap();
    let all =
        tls(local().set_ssl_ca_file("/ca.pem").set_ssl_ca_pem("PEM").set_ssl_trust_roots("system, Mozilla"));
    assert_eq!(
        all.roots,
        [
            TrustRoots::PemFile("/ca.pem".into()),
            TrustRoots::Pem("PEM".into()),
            TrustRoots::System,
            TrustRoots::Mozilla
        ]
    );
    assert!(tls(local()).roots.is_empty() && tls(local()).verify_host_name);
    assert!(!tls(local().set_ssl_check_hostname(false)).verify_host_name);
    assert!(!tls(local().set("ssl.endpoint.identification.algorithm", "")).verify_host_name);
    let one = tls(local().set("ssl.keystore.location", "/both.pem"));
    let both = || PemSource::File("/both.pem".into());
    assert_eq!(one.identity, Some((both(), both())));
    let text = tls(local().set_ssl_client_certificate_pem("C").set_ssl_key_pem("K"));
    let [certificate, key] = ["C", "K"].map(|text| PemSource::Text(Secret::new(text)));
    assert_eq!(text.identity, Some((certificate, key)));
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest_known_one_and_never_shows_its_value() {
    for (name, nearest) in [
        ("fetch.min.byte", "fetch.min.bytes"),
        ("boostrap_servers", "bootstrap.servers"),
        ("groupid", "group.id"),
        ("sasl.pasword", "sasl.plain.password"),
        ("LINGER_MSS", "linger.ms"),
    ] {
        let config = local().set(name, PASSWORD);
        let error = refusal(&config);
        assert!(
            error.contains(&format!("{name:?} is not a known property; the nearest known one is {nearest}")),
            "{error}"
        );
        assert!(!error.contains(PASSWORD) && !format!("{config:?}").contains(PASSWORD));
    }
    let error = refusal(&local().set(PASSWORD, 1).set(format!("sasl.password={PASSWORD}"), 1));
    assert!(error.contains("a property name of 11 characters (not repeated"), "{error}");
    assert!(!error.contains(PASSWORD), "{error}");
    assert_eq!(local().get("no.such.name"), None);
    assert!(refusal(&ProducerConfig::new().set("lingerms", 1).merged(&local())).contains("linger.ms"));
}

#[test]
fn known_java_properties_without_meaning_here_are_accepted_and_noted() {
    let config =
        local().set("key.serializer", "x").set("receive_buffer_bytes", 1).set("metric.reporters", "");
    config.validate().unwrap();
    let notes = config.checked().notes;
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes.contains(&"receive.buffer.bytes has no effect in this client".to_owned()), "{notes:?}");
}

#[test]
fn a_configuration_can_be_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    shared(&local());
    shared(&ProducerConfig::new());
}

#[test]
fn enums_read_and_write_javas_spellings() {
    assert_eq!("-1".parse::<Acks>().unwrap(), Acks::All);
    assert_eq!(Acks::Leader.to_string(), "1");
    assert_eq!("sasl_ssl".parse::<SecurityProtocol>().unwrap().to_string(), "SASL_SSL");
    assert_eq!(SaslMechanism::ScramSha256.to_string(), "SCRAM-SHA-256");
    let error = "gssapi".parse::<SaslMechanism>().unwrap_err().to_string();
    assert!(error.contains("\"gssapi\" is no sasl.mechanism; accepted: PLAIN"), "{error}");
}

/// An assignor by its name.
struct Named(&'static str);

impl crate::Assignor for Named {
    fn name(&self) -> &str {
        self.0
    }

    fn assign(
        &self,
        _: &crate::GroupInfo<'_>,
    ) -> std::collections::BTreeMap<String, Vec<crate::TopicPartition>> {
        std::collections::BTreeMap::new()
    }
}

#[test]
fn assignors_of_ones_own_come_alone_or_first_or_where_the_list_has_them() {
    let names = |overlay: ConsumerConfig| {
        let config = overlay.merged(&KafkaConfig::new().set_bootstrap_servers("h:1"));
        let settings = config.resolve_consumer().map_err(|error| error.to_string())?;
        Ok::<_, String>(settings.assignors.iter().map(|a| a.name().to_owned()).collect::<Vec<_>>().join(","))
    };
    let own = || ConsumerConfig::new().assignor(Named("mine"));
    let strategy = "partition.assignment.strategy";
    assert_eq!(names(ConsumerConfig::new()).unwrap(), "range,roundrobin");
    assert_eq!(names(own()).unwrap(), "mine");
    assert_eq!(names(own().assignor(Named("other"))).unwrap(), "mine,other");
    assert_eq!(names(own().set(strategy, "range")).unwrap(), "mine,range");
    assert_eq!(names(own().set(strategy, "range,mine")).unwrap(), "range,mine");
    for (bad, why) in [
        (ConsumerConfig::new().set(strategy, "mine"), "not known"),
        (ConsumerConfig::new().assignor(Named("range")), "cannot be named 'range'"),
        (ConsumerConfig::new().assignor(Named("")), "cannot be named ''"),
        (own().set("group.protocol", "consumer"), "the broker assigns"),
    ] {
        let error = names(bad).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
