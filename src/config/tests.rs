//! Tables and properties of the whole configuration.

use std::{ffi::OsString, time::Duration};

use proptest::prelude::*;

use super::{
    env, jaas,
    properties::{self, PROPERTIES},
    settings::{Address, PemSource, Secret, TrustRoots},
    url, *,
};
use crate::error::ErrorKind;

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
fn a_url_says_hosts_user_protocol_and_any_property() {
    type Expected = Option<(SaslMechanism, &'static str, &'static str)>;
    let table: &[(&str, &str, bool, Expected)] = &[
        ("kafka://h1", "h1:9092", false, None),
        ("h1:9093,h2", "h1:9093,h2:9092", false, None),
        ("kafka://h1:1,[::1],[2001:db8::2]:65535/", "h1:1,[::1]:9092,[2001:db8::2]:65535", false, None),
        ("kafkas://h1", "h1:9092", true, None),
        ("kafka://u:p@h1,h2", "h1:9092,h2:9092", false, Some((SaslMechanism::Plain, "u", "p"))),
        ("KAFKAS://u:p@h1", "h1:9092", true, Some((SaslMechanism::Plain, "u", "p"))),
        ("kafka://a%40b:%2F%3F%25%3A@h1", "h1:9092", false, Some((SaslMechanism::Plain, "a@b", "/?%:"))),
        ("kafka://u:p@ss:w#rd@h1", "h1:9092", false, Some((SaslMechanism::Plain, "u", "p@ss:w#rd"))),
        (
            "kafka://u:p@h1?security_protocol=SASL_SSL&sasl.mechanism=scram-sha-512",
            "h1:9092",
            true,
            Some((SaslMechanism::ScramSha512, "u", "p")),
        ),
        (
            "kafkas://h1/?sasl_plain_username=u&sasl_plain_password=p%26q",
            "h1:9092",
            true,
            Some((SaslMechanism::Plain, "u", "p&q")),
        ),
    ];
    for (text, hosts, tls, sasl) in table {
        let client = KafkaConfig::new()
            .set_kafka_url(*text)
            .resolve_client()
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(url::join(&client.bootstrap), *hosts, "{text}");
        assert_eq!(client.tls.is_some(), *tls, "{text}");
        let found = client.sasl.as_ref().map(|s| (s.mechanism, s.username.as_str(), s.password.expose()));
        assert_eq!(found, *sasl, "{text}");
    }
    let config = KafkaConfig::new().set_kafka_url("kafka://h?group_id=billing&max.poll.records=7");
    let consumer = config.resolve_consumer().unwrap();
    assert_eq!((consumer.group_id.as_deref(), consumer.max_poll_records), (Some("billing"), 7));
}

#[test]
fn a_bad_url_is_refused_with_its_reason_and_without_its_password() {
    let table = [
        ("http://h", "kafka:// or kafkas://"),
        ("kafka://", "no host"),
        ("kafka://,", "no host"),
        ("kafka://u:hunter2-Zq9@", "no host"),
        ("kafka://u:hunter2-Zq9", "port is not a number from 1 to 65535"),
        ("u:hunter2-Zq9@h", "user and password belong"),
        ("kafka://h:0", "port is not a number from 1 to 65535"),
        ("kafka://h:65536", "port is not a number from 1 to 65535"),
        ("kafka://h:+9092", "port is not a number from 1 to 65535"),
        ("kafka://::1", "brackets"),
        ("kafka://[::1", "closing bracket"),
        ("kafka://[h]:9092", "not an IPv6 address"),
        ("kafka://h 1", "letters, digits"),
        ("kafka://:hunter2-Zq9@h", "no user name"),
        ("kafka://u@h", "needs sasl.plain.password"),
        ("kafka://u:hunter2-Zq9/x@h", "percent-encoded, as %2F"),
        ("kafka://u:hunter2-Zq9?x@h", "percent-encoded, as %2F"),
        ("kafka://u:hunter2-Zq9%zz@h", "percent-encoded UTF-8"),
        ("kafka://u:hunter2-Zq9%ff@h", "percent-encoded UTF-8"),
        ("kafka://u:hunter2-Zq9@h/orders", "has a path"),
        ("kafka://u:hunter2-Zq9@h?grup_id=x", "nearest known one is group.id"),
        ("kafka://h?group_id", "has no `=`"),
        ("kafkas://h?sasl_password=hunt&hunter2-Zq9=1", "unknown name of 11 characters (not repeated"),
        ("kafkas://h?sasl_password=hunt&er2-Zq9", "with & inside a value written as %26"),
        ("kafka://u:p@h1,u:hunter2-Zq9@h2", "stand once, before the first host"),
        ("kafka://h?group_id=a&group.id=b", "sets group.id twice"),
        ("kafka://h?bootstrap_servers=b", "name the hosts before it"),
        ("kafkas://h?security_protocol=PLAINTEXT", "kafkas:// (TLS), but security.protocol is PLAINTEXT"),
        ("kafka://u:hunter2-Zq9@h?security_protocol=SSL", "does not authenticate"),
        ("kafka://u:hunter2-Zq9@h?sasl_password=hunter2-Zq9x", "keep one"),
    ];
    for (text, reason) in table {
        let config = KafkaConfig::new().set_kafka_url(text);
        let error = refusal(&config);
        assert!(error.contains(reason), "{text}: {error}");
        for shown in [error, format!("{config:?}"), config.get("kafka_url").unwrap(), config.describe()] {
            assert!(!shown.contains(PASSWORD), "{shown}");
        }
    }
}

#[test]
fn setters_complete_the_url_override_what_it_implies_and_may_not_contradict_it() {
    let url = KafkaConfig::new().set_kafka_url("kafka://u:p@h?group_id=a");
    let sasl = url.clone().set_sasl_mechanism("SCRAM-SHA-256").resolve_client().unwrap().sasl.unwrap();
    assert_eq!(sasl.mechanism, SaslMechanism::ScramSha256);
    assert!(url.clone().set_security_protocol("SASL_SSL").resolve_client().unwrap().tls.is_some());
    let both = url.clone().set_bootstrap_servers("other:1").resolve_client().unwrap();
    assert_eq!(both.bootstrap, [address("h", 9092)], "the URL overrides the bootstrap servers");
    let error = refusal(&url.clone().set_group_id("b").set_sasl_plain_password(PASSWORD));
    assert!(error.contains("group.id is \"a\" in kafka.url and \"b\" outside of it"), "{error}");
    assert!(error.contains("sasl.plain.password is \"[hidden]\"") && !error.contains(PASSWORD), "{error}");
    let merged = ConsumerConfig::new().group_id("b").merged(&url);
    assert_eq!(merged.resolve_consumer().unwrap().group_id.as_deref(), Some("b"), "an override wins");
    let completed = KafkaConfig::new().set_kafka_url("kafka://u@h").set_sasl_plain_password("x");
    assert_eq!(completed.resolve_client().unwrap().sasl.unwrap().password.expose(), "x");
}

#[test]
fn every_bad_value_is_named_with_what_is_accepted() {
    let table = [
        ("linger.ms", "soon", "linger.ms = \"soon\": accepted: a whole number of milliseconds from 0 to"),
        ("batch_size", "-1", "batch.size = \"-1\": accepted: a whole number of bytes from 1 to 2147483647"),
        ("retries", "1.5", "retries = \"1.5\": accepted: a whole number from 0 to 2147483647"),
        ("acks", "2", "acks = \"2\": accepted: all, -1, 1, 0"),
        ("enable_auto_commit", "yes", "enable.auto.commit = \"yes\": accepted: true, false"),
        ("compression.type", "brotli", "accepted: none, gzip, snappy, lz4, zstd"),
        ("auto_offset_reset", "first", "accepted: earliest, latest, none"),
        ("isolation.level", "x", "accepted: read_uncommitted, read_committed"),
        ("sasl_mechanism", "GSSAPI", "accepted: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
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
    ];
    for (pairs, reason) in table {
        let error = refusal(&local().set_properties(pairs.iter().copied()));
        assert!(error.contains(reason), "{pairs:?}: {error}");
    }
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
fn dependent_defaults_follow_the_values_that_were_set() {
    let config = local().set("request.timeout.ms", 300_000);
    assert_eq!(config.resolve_producer().unwrap().delivery_timeout, Duration::from_millis(300_005));
    let config = local().set("request.timeout.ms", 400);
    assert_eq!(config.resolve_consumer().unwrap().fetch_max_wait, Duration::from_millis(200));
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
    assert_eq!(one.client_certificate, Some(PemSource::File("/both.pem".into())));
    assert_eq!(one.client_certificate, one.client_key);
    let text = tls(local().set_ssl_client_certificate_pem("C").set_ssl_key_pem("K"));
    assert_eq!(text.client_key, Some(PemSource::Text(Secret::new("K"))));
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
fn secrets_never_show_whatever_way_they_came() {
    let jaas = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"{PASSWORD}\";"
    );
    let pem = format!("-----BEGIN PRIVATE KEY-----{PASSWORD}");
    let configs = [
        local()
            .set_security_protocol("SASL_SSL")
            .set_sasl_plain_username("u")
            .set_sasl_plain_password(PASSWORD),
        local().set_security_protocol("SASL_SSL").set_sasl_jaas_config(jaas.as_str()),
        local().set_sasl_jaas_config(jaas.replace("Plain", "Digest")),
        KafkaConfig::new().set_kafka_url(format!("kafkas://u:{PASSWORD}@h?ssl.keystore.key={PASSWORD}")),
        KafkaConfig::new().set_bootstrap_servers(format!("kafka://u:{PASSWORD}@h")),
        KafkaConfig::new().set_bootstrap_servers(format!("u:{PASSWORD}@h")),
        KafkaConfig::new().set_bootstrap_servers(format!("h:{PASSWORD}")),
        local().set_security_protocol("SSL").set_ssl_key_pem(pem.as_str()),
        local().set_security_protocol("SSL").set_ssl_ca_pem(pem.as_str()),
        local().set("ssl.key.password", PASSWORD),
        local().set("ssl.truststore.password", PASSWORD),
        local().set("sasl_plain_pasword", PASSWORD),
        local().set_properties_text(&format!("sasl.password={PASSWORD}\nbad=\\uZZ{PASSWORD}")),
        local().set_from_variables("KAFKA_", variables(&[("KAFKA_SASL_PASSWORD", PASSWORD)])),
        ProducerConfig::new().set("sasl.password", PASSWORD).merged(&local()),
    ];
    for config in configs {
        let mut shown = format!("{config:?} {config:#?} {}", config.describe());
        for property in PROPERTIES {
            shown.push_str(&config.get(property.name).unwrap_or_default());
        }
        match config.resolve_client() {
            Ok(settings) => shown.push_str(&format!("{settings:?}")),
            Err(error) => shown.push_str(&format!("{error} {error:?}")),
        }
        if let Err(error) = config.validate() {
            shown.push_str(&format!("{error} {error:?}"));
        }
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
    let overlay = ProducerConfig::new().set("sasl.password", PASSWORD);
    let value = SettingValue::from(PASSWORD);
    assert!(!format!("{overlay:?}{value:?}").contains(PASSWORD));
}

#[test]
fn a_pasted_java_login_string_is_read() {
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required\n  username=\"al\\\"ice\" password='s p=c;';";
    let config = local().set_security_protocol("SASL_PLAINTEXT").set_sasl_jaas_config(plain);
    let sasl = config.resolve_client().unwrap().sasl.unwrap();
    assert_eq!(
        (sasl.mechanism, sasl.username.as_str(), sasl.password.expose()),
        (SaslMechanism::Plain, "al\"ice", "s p=c;")
    );
    let scram = plain.replace("plain.Plain", "scram.Scram");
    let config = config.set_sasl_jaas_config(scram.as_str());
    assert!(refusal(&config).contains("ScramLoginModule with SCRAM-SHA-256 or SCRAM-SHA-512"));
    let sasl = config.set_sasl_mechanism("SCRAM-SHA-512").resolve_client().unwrap().sasl.unwrap();
    assert_eq!(sasl.mechanism, SaslMechanism::ScramSha512);
    for bad in [
        "",
        "PlainLoginModule",
        "PlainLoginModule required",
        "PlainLoginModule required username=\"u\";",
        "PlainLoginModule required username=\"u password=p",
        "ScramLoginModule required username=u password=p tokenauth=\"true\";",
        "com.sun.Krb5LoginModule required useKeyTab=true;",
    ] {
        assert!(jaas::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_environment_gives_known_names_only_and_empty_variables_count_as_unset() {
    let config = local().set_client_id("mine").set_from_variables(
        "KAFKA_",
        variables(&[
            ("KAFKA_URL", "kafka://h1"),
            ("KAFKA_GROUP_ID", "billing"),
            ("KAFKA_FETCH_MIN_BYTES", "7"),
            ("KAFKA_CLIENT_ID", ""),
            ("KAFKA_HEAP_OPTS", "-Xmx1g"),
            ("KAFKA_ADVERTISED_LISTENERS", "PLAINTEXT://x"),
            ("KAFKA_GROUPID", "near"),
            ("KAFKA_", "x"),
            ("GROUP_ID", "other"),
        ]),
    );
    config.validate().unwrap();
    let shown = |name| config.get(name);
    assert_eq!(shown("kafka.url").as_deref(), Some("kafka://h1:9092"));
    assert_eq!((shown("group.id"), shown("client.id")), (Some("billing".into()), Some("mine".into())));
    assert_eq!(config.resolve_consumer().unwrap().fetch_min_bytes, 7);
    assert_eq!(env::near_miss("GROUPID"), Some("group.id"));
    assert_eq!(env::near_miss("BOOTSTRAP_SERVER"), Some("bootstrap.servers"));
    assert_eq!(env::near_miss("HEAP_OPTS"), None);
    assert_eq!(env::near_miss("ADVERTISED_LISTENERS"), None);
}

#[test]
fn a_properties_file_reads_as_java_reads_it() {
    let text = "# comment\n! another\n\n  bootstrap.servers = h1:9092,\\\n      h2:9092\ngroup.id:bil\\u006cing\n\
                client.id my\\ client\r\nsasl.password=a\\=b\\\\\n";
    let pairs: Vec<_> = env::read_properties(text).into_iter().map(|(_, pair)| pair.unwrap()).collect();
    let expected = [
        ("bootstrap.servers", "h1:9092,h2:9092"),
        ("group.id", "billing"),
        ("client.id", "my client"),
        ("sasl.password", "a=b\\"),
    ];
    assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(refusal(&local().set_properties_text("a=b\nc=\\u12")).contains("line 2"));
    assert_eq!(KafkaConfig::from_properties_text("\u{feff}group.id=g").get("group_id").as_deref(), Some("g"));
    // Java: a carriage return ends a line too.
    let mac = env::read_properties("group.id=g\r\rclient.id=a\\\rb\rlinger.ms=5\r\n");
    let mac: Vec<_> = mac.into_iter().map(|(line, pair)| (line, pair.unwrap().1)).collect();
    assert_eq!(mac, [(1, "g".to_owned()), (3, "ab".to_owned()), (5, "5".to_owned())]);
    let key = "group.id=g\nssl.keystore.key=-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nZq9=\n-----END PRIVATE KEY-----";
    let error = refusal(&local().set_properties_text(key));
    assert!(error.contains("lines 3 to 5 of the properties: no known property"), "{error}");
    assert!(!error.contains("MIGHAgE"), "{error}");
    assert!(
        refusal(&local().set_properties_text("\ngroup.di=g"))
            .contains("line 2 of the properties: \"group.di\"")
    );
    assert_eq!(KafkaConfig::from_properties_text(text).get("group_id").as_deref(), Some("billing"));
}

#[test]
fn overrides_take_types_and_win_over_the_base() {
    let base = local().set("linger.ms", 50).set("acks", "1");
    let producer = ProducerConfig::new()
        .acks(Acks::All)
        .compression(Compression::Zstd)
        .compression_level(3)
        .linger(Duration::from_micros(200))
        .batch_size(32_768_usize)
        .retries(5)
        .max_in_flight(1)
        .merged(&base)
        .resolve_producer()
        .unwrap();
    assert_eq!(
        (producer.acks, producer.compression, producer.compression_level),
        (Acks::All, Compression::Zstd, Some(3))
    );
    assert_eq!(producer.linger, Duration::from_millis(1), "rounded up, never to nothing");
    assert_eq!((producer.batch_size, producer.retries, producer.idempotence), (32_768, 5, true));
    assert_eq!(base.resolve_producer().unwrap().acks, Acks::Leader, "the base is untouched");
    let consumer = ConsumerConfig::new()
        .group_id("g")
        .isolation_level(IsolationLevel::ReadCommitted)
        .session_timeout(Duration::from_secs(30))
        .max_poll_records(100)
        .merged(&base)
        .resolve_consumer()
        .unwrap();
    assert_eq!((consumer.max_poll_records, consumer.session_timeout), (100, Duration::from_secs(30)));
    assert_eq!(consumer.isolation_level, IsolationLevel::ReadCommitted);
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

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*", shaped in "kafkas?://[a:@/?%&=,\\[\\]0-9g_]{0,40}") {
        for text in [text.as_str(), shaped.as_str()] {
            let config = KafkaConfig::new()
                .set_kafka_url(text)
                .set_sasl_jaas_config(text)
                .set_properties_text(text)
                .set(text, text);
            let _shown = (config.validate().is_ok(), config.describe(), format!("{config:?}"));
            prop_assert!(config.get("kafka.url").is_some());
        }
    }

    #[test]
    fn a_url_round_trips(
        hosts in prop::collection::btree_set(("[a-z][a-z0-9.-]{0,12}", 1u16..), 1..4),
        user in prop::option::of(("\\PC{1,12}", "\\PC{0,12}")),
        tls: bool,
        group in "\\PC{1,12}",
    ) {
        let addresses: Vec<_> = hosts.into_iter().map(|(host, port)| Address { host, port }).collect();
        let info = user.as_ref().map_or(String::new(), |(u, p)| format!("{}:{}@", encode(u), encode(p)));
        let text = format!(
            "{}://{info}{}/?group_id={}",
            if tls { "kafkas" } else { "kafka" }, url::join(&addresses), encode(&group)
        );
        let read = url::parse(&text).unwrap();
        prop_assert_eq!(&read.addresses, &addresses);
        prop_assert_eq!(read.tls, tls);
        prop_assert_eq!(read.username, user.as_ref().map(|(u, _)| u.clone()));
        prop_assert_eq!(read.password, user.map(|(_, p)| Secret::new(p)));
        prop_assert_eq!(read.parameters, vec![("group.id", Secret::new(group))]);
    }

    #[test]
    fn a_password_in_any_kind_of_url_text_stays_hidden(before in "[a:@/?%&=,]{0,12}", after in "[a:@/?%&=,]{0,12}") {
        let text = format!("kafka://u:{before}{PASSWORD}{after}@h");
        let config = KafkaConfig::new().set_kafka_url(text.as_str()).set_bootstrap_servers(text.as_str());
        let mut shown = format!("{config:?}{}", config.describe());
        if let Err(error) = config.validate() {
            shown.push_str(&error.to_string());
        }
        prop_assert!(!shown.contains(PASSWORD), "{}", shown);
    }
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
