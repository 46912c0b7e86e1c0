//! Every secret in every wrong form and place: nothing that a program may print holds eight characters of it in a row, nor
//! its decimal, hexadecimal or base64 form.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    sync::LazyLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{properties::PROPERTIES, *};
use crate::KafkaInstance;

const PASSWORD: &str = "Canary7f3A9c2E+pa55/Wq8Zt1Lm4Xk";
/// The body of a PKCS#8 key, of its own for this test.
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgU3VjaEFLZXlPZk5v\n\
    Ym9keUF0QWxsLDMyQnl0ZXMhISGhRANCAASgRdDDoZzysoBae/eP4kuP31Zir8NV\n";

/// Everything that would give the secret away.
struct Canary {
    verbatim: Windows,
    /// In lower case.
    hex: Windows,
    base64: Windows,
    /// As `{:?}` of bytes writes them.
    decimal: Vec<String>,
}

/// Pieces of one length, by their first two bytes: most of a text begins none of them.
struct Windows(BTreeMap<[u8; 2], Vec<Vec<u8>>>, Vec<bool>);

impl Windows {
    fn new(pieces: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut by_start = BTreeMap::<[u8; 2], Vec<Vec<u8>>>::new();
        let mut is_start = vec![false; 1 << 16];
        for piece in pieces {
            let start = [piece[0], piece[1]];
            is_start[usize::from(u16::from_be_bytes(start))] = true;
            by_start.entry(start).or_default().push(piece);
        }
        Self(by_start, is_start)
    }

    fn find(&self, text: &str) -> Option<Vec<u8>> {
        let bytes = text.as_bytes();
        for at in 1..bytes.len() {
            let start = [bytes[at - 1], bytes[at]];
            if self.1[usize::from(u16::from_be_bytes(start))]
                && let Some(found) = self.0[&start].iter().find(|piece| bytes[at - 1..].starts_with(piece))
            {
                return Some(found.clone());
            }
        }
        None
    }
}

impl Canary {
    fn new(secret: &str) -> Self {
        let bytes: Vec<u8> = secret.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let windows = || bytes.windows(8);
        let hex = |window: &[u8]| window.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
        let decimal = |window: &[u8]| window.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        Self {
            verbatim: Windows::new(windows().map(<[u8]>::to_vec)),
            hex: Windows::new(windows().map(hex)),
            // Six bytes are eight characters; every window, so that it does not matter what stands before it.
            base64: Windows::new(windows().map(|window| STANDARD.encode(&window[..6]).into_bytes())),
            decimal: windows().step_by(4).map(decimal).collect(),
        }
    }

    fn is_in(&self, text: &str) -> Option<String> {
        // What a line break or a quote cuts is joined again.
        let joined: String =
            text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '"' | '\\')).collect();
        let lower = joined.to_ascii_lowercase();
        let found = self.verbatim.find(&joined).or_else(|| self.base64.find(&joined));
        found
            .or_else(|| self.hex.find(&lower))
            .map(|window| String::from_utf8_lossy(&window).into_owned())
            .or_else(|| self.decimal.iter().find(|form| text.contains(*form)).cloned())
    }

    fn check(&self, how: &str, shown: &str) {
        assert_eq!(self.is_in(shown), None, "{how} shows: {shown}");
    }
}

/// What a mistake leaves of a secret.
fn forms(secret: &str) -> Vec<String> {
    let flat: String = secret.split_whitespace().collect();
    let (half, middle) = (flat.len() / 2, flat.len() / 3);
    let with = |text: &str| format!("{}{text}{}", &flat[..middle], &flat[middle..]);
    let mut forms = vec![flat.clone(), secret.to_owned(), flat[..half].to_owned(), flat[half..].to_owned()];
    if secret == PASSWORD {
        forms.extend(["\n", "\\n", "&", "#", "?", "@", "/", "%zz", "\""].map(with));
    }
    forms.extend([
        format!("\"{flat}\""),
        format!(" {flat} "),
        format!("sasl.password={flat}"),
        format!("-----BEGIN PRIVATE KEY-----{flat}"),
        format!("-----BEGIN PRIVATE KEY-----\n{flat}\n-----END PRIVATE KEY-----"),
        format!("-----BEGIN PRIVATE KEY-----{flat}-----END PRIVATE KEY-----"),
        format!("-----BEGIN PRIVATE KEY-----\\n{flat}\\n-----END PRIVATE KEY-----"),
        format!("-----BEGIN CERTIFICATE-----\n{flat}\n-----END CERTIFICATE-----"),
        format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{flat}\n-----END ENCRYPTED PRIVATE KEY-----"),
        format!("org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"{flat}\";"),
        format!("PlainLoginModule required username=\"u password=\"{flat}\";"),
        format!("DigestLoginModule required password={flat}"),
        format!("kafka://u:{flat}@h"),
    ]);
    forms
}

/// What `describe` says that it does not say of every configuration.
fn told_of(config: &KafkaConfig) -> String {
    static ALWAYS: LazyLock<HashSet<String>> =
        LazyLock::new(|| KafkaConfig::new().describe().lines().map(str::to_owned).collect());
    config.describe().lines().filter(|line| !ALWAYS.contains(*line)).collect::<Vec<_>>().join("\n")
}

/// All that a program can print of a configuration: `Debug`, `describe`, every error, and what is logged meanwhile.
fn shown(make: impl FnOnce() -> KafkaConfig) -> String {
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::TRACE);
    let config = make();
    let mut text = format!("{config:?} {config:#?} {}", told_of(&config));
    match config.resolve_client() {
        Ok(settings) => {
            text.push_str(&format!("{settings:?}"));
        }
        Err(error) => text.push_str(&format!("{error} {error:?}")),
    }
    for error in [config.resolve_producer().err(), config.resolve_consumer().err()].into_iter().flatten() {
        text.push_str(&format!("{error} {error:?}"));
    }
    match KafkaInstance::new(config) {
        Ok(kafka) => text.push_str(&format!("{kafka:?}")),
        Err(error) => text.push_str(&format!("{error} {error:?}")),
    }
    text + &log.text()
}

/// A configuration that has the secret where it belongs, so that it can be told from a name.
fn base(form: &str) -> KafkaConfig {
    KafkaConfig::new()
        .set_bootstrap_servers("127.0.0.1:1")
        .set_security_protocol("SASL_SSL")
        .set_ssl_trust_roots("mozilla")
        .set_sasl_plain_username("u")
        .set_sasl_plain_password(form)
}

fn secrets() -> [(&'static str, Canary); 2] {
    [(PASSWORD, Canary::new(PASSWORD)), (KEY, Canary::new(KEY))]
}

#[test]
fn a_secret_shows_under_no_property_in_no_form() {
    for (secret, canary) in secrets() {
        for (turn, form) in forms(secret).into_iter().enumerate() {
            let mut all = base(&form);
            for (number, property) in PROPERTIES.iter().enumerate() {
                // All at once, and one by one in turns, since that takes its time.
                if (turn + number).is_multiple_of(13) {
                    canary.check(property.name, &shown(|| base(&form).set(property.name, form.as_str())));
                }
                all = all.set(property.name, form.as_str());
            }
            canary.check("all", &shown(|| all));
        }
    }
}

#[test]
fn a_secret_shows_from_no_setter_that_knows_its_values() {
    for (secret, canary) in secrets() {
        for form in forms(secret) {
            // Alone: nothing else tells that it is a secret.
            let alone = KafkaConfig::new()
                .set_bootstrap_servers("127.0.0.1:1")
                .set_security_protocol("SSL")
                .set_ssl_ca_file(form.as_str())
                .set_ssl_client_certificate_file(form.as_str())
                .set_ssl_key_file(form.as_str());
            canary.check("files", &shown(|| alone));
            let text = KafkaConfig::new()
                .set_bootstrap_servers("127.0.0.1:1")
                .set_security_protocol("SSL")
                .set_ssl_ca_pem(form.as_str())
                .set_ssl_client_certificate_pem(form.as_str())
                .set_ssl_key_pem(form.as_str())
                .set_ssl_key_password(form.as_str());
            canary.check("PEM", &shown(|| text));
            let words = KafkaConfig::new()
                .set_bootstrap_servers("127.0.0.1:1")
                .set_security_protocol(form.as_str())
                .set_sasl_mechanism(form.as_str())
                .set_auto_offset_reset(form.as_str())
                .set_enable_auto_commit(form.as_str())
                .set_ssl_check_hostname(form.as_str())
                .set("linger.ms", form.as_str())
                .set("compression.level", form.as_str());
            canary.check("words", &shown(|| words));
            let login = KafkaConfig::new()
                .set_bootstrap_servers("127.0.0.1:1")
                .set_security_protocol("SASL_PLAINTEXT")
                .set_sasl_jaas_config(form.as_str());
            canary.check("login string", &shown(|| login));
            for parsed in [form.parse::<SaslMechanism>().map(drop), form.parse::<Acks>().map(drop)] {
                canary.check("FromStr", &format!("{:?}", parsed.unwrap_err()));
            }
            if let Err(error) = form.parse::<KafkaConfig>() {
                canary.check("FromStr", &error.to_string());
            }
            canary.check("value", &format!("{:?}", SettingValue::from(form.as_str())));
            let overlay = ConsumerConfig::new().set("sasl.password", form.as_str()).set(form.as_str(), 1);
            canary.check("overlay", &format!("{overlay:?}"));
        }
    }
}

#[test]
fn a_secret_shows_in_no_name() {
    for (secret, canary) in secrets() {
        for (turn, form) in forms(secret).into_iter().enumerate() {
            let names = [
                form.clone(),
                format!("sasl.password.{form}"),
                format!("{form}.password"),
                format!("sasl_password={form}"),
            ];
            for name in names.into_iter().skip(turn % 4).step_by(4) {
                canary.check("a name", &shown(|| base(&form).set(&name, "x")));
                canary.check(
                    "a name alone",
                    &shown(|| KafkaConfig::new().set_bootstrap_servers("h").set(&name, "x")),
                );
                canary.check(
                    "a name in properties",
                    &shown(|| KafkaConfig::from_properties_text(&format!("{name}=x\n{name}\n"))),
                );
                let variable = (OsString::from(format!("KAFKA_{name}")), OsString::from(&form));
                canary.check(
                    "a variable",
                    &shown(|| KafkaConfig::new().set_from_variables("KAFKA_", [variable])),
                );
            }
        }
    }
}

#[test]
fn a_secret_shows_from_no_url_and_no_list_of_hosts() {
    for (secret, canary) in secrets() {
        for (turn, form) in forms(secret).into_iter().enumerate() {
            // In turns, since it takes its time.
            let urls = [
                format!("kafka://u:{form}@h"),
                format!("kafkas://u:{form}@h?{form}"),
                format!("kafka://u:{form}"),
                format!("kafka://u:p@h1,u:{form}@h2"),
                format!("kafka://u:{form}@"),
                format!("kafka://:{form}@h"),
                format!("http://u:{form}@h"),
                format!("u:{form}@h"),
                format!("kafka://h/{form}"),
                format!("kafka://h#{form}"),
                format!("kafka://h?sasl_password={form}"),
                format!("kafkas://h?sasl_plain_username=u&sasl_plain_password={form}=1"),
                format!("kafkas://h?ssl.keystore.key={form}&group.id"),
                format!("kafka://h?linger.ms={form}"),
                format!("kafka://h?{form}=1"),
                form.clone(),
            ];
            for url in urls.into_iter().skip(turn % 7).step_by(7) {
                // A host is shown as it is; only one that can be a part of the secret must not.
                if url::parse(&url).is_ok_and(|url| {
                    url.addresses.iter().any(|address| canary.is_in(&address.host).is_some())
                }) {
                    continue;
                }
                canary.check("a URL", &shown(|| KafkaConfig::new().set_kafka_url(url.as_str())));
                canary.check("a URL beside setters", &shown(|| base(&form).set_kafka_url(url.as_str())));
                canary.check("hosts", &shown(|| base(&form).set_bootstrap_servers(url.as_str())));
            }
        }
    }
}

#[test]
fn a_secret_shows_from_no_properties_text_and_no_environment() {
    for (secret, canary) in secrets() {
        for (turn, form) in forms(secret).into_iter().enumerate() {
            let names = [
                "sasl.password",
                "ssl.keystore.key",
                "ssl.key.password",
                "sasl.jaas.config",
                "ssl.key.location",
            ];
            for name in names.into_iter().skip(turn % 5).step_by(5) {
                for text in [
                    format!("{name}={form}"),
                    format!("{name}={}", form.replace('\n', "\\\n")),
                    format!("{name} = \\\n{form}\nlinger.ms=5"),
                    format!("{name}: x\n{form}\\"),
                    format!("{name}\\u00zz={form}"),
                ] {
                    let text = format!(
                        "bootstrap.servers=127.0.0.1:1\nsecurity.protocol=SASL_SSL\nssl.trust.roots=mozilla\n{text}\n"
                    );
                    canary.check(name, &shown(|| KafkaConfig::from_properties_text(&text)));
                }
                let variable = format!("KAFKA_{}", name.to_uppercase().replace('.', "_"));
                let variables = [(OsString::from(variable), OsString::from(&form))];
                canary.check(name, &shown(|| KafkaConfig::new().set_from_variables("KAFKA_", variables)));
            }
        }
    }
}

#[test]
fn the_canary_is_seen_where_it_shows() {
    let canary = Canary::new(PASSWORD);
    let bytes = PASSWORD.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for shown in [format!("x{}y", &PASSWORD[3..11]), format!("{bytes:?}"), hex, STANDARD.encode(PASSWORD)] {
        assert!(std::panic::catch_unwind(|| canary.check("a test", &shown)).is_err(), "{shown}");
    }
    canary.check("a test", &PASSWORD[3..10]);
}
