//! What each source says, and which wins: URL, setters, environment, `.properties` text, login strings, overrides.

use proptest::{prelude::*, string::string_regex};

use super::*;
use crate::config::{env, jaas, url};

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

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

// A text that is given as such is read as a regular expression for each value, which takes longer than the test.
proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_a_parser_panic(
        text in string_regex("\\PC*").unwrap(),
        shaped in string_regex("kafkas?://[a:@/?%&=,\\[\\]0-9g_]{0,40}").unwrap(),
    ) {
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
        hosts in prop::collection::btree_set((string_regex("[a-z][a-z0-9.-]{0,12}").unwrap(), 1u16..), 1..4),
        user in prop::option::of((string_regex("\\PC{1,12}").unwrap(), string_regex("\\PC{0,12}").unwrap())),
        tls: bool,
        group in string_regex("\\PC{1,12}").unwrap(),
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
}
