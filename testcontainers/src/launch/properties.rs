//! The `server.properties` of a one-node KRaft cluster, as text. Pure: no files, no processes.
//!
//! KIP-500 (KRaft), KIP-651 (PEM key and trust stores, so that no keytool is needed), KIP-900 (SCRAM
//! users at format time).

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{Certificates, Listener};

/// One port per listener, and the controller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) plaintext: u16,
    pub(super) sasl_plaintext: u16,
    pub(super) ssl: u16,
    pub(super) sasl_ssl: u16,
    pub(super) controller: u16,
}

impl Ports {
    pub(super) fn of(&self, listener: Listener) -> u16 {
        match listener {
            Listener::Plaintext => self.plaintext,
            Listener::SaslPlaintext => self.sasl_plaintext,
            Listener::Ssl => self.ssl,
            Listener::SaslSsl => self.sasl_ssl,
        }
    }

    fn clients(&self) -> [(&'static str, u16); 4] {
        [
            ("PLAINTEXT", self.plaintext),
            ("SASL_PLAINTEXT", self.sasl_plaintext),
            ("SSL", self.ssl),
            ("SASL_SSL", self.sasl_ssl),
        ]
    }
}

/// What the properties are made from.
pub(super) struct Node<'a> {
    pub(super) ports: Ports,
    /// The address the listeners bind to: loopback, or every address inside a container.
    pub(super) bind: &'a str,
    pub(super) data_dir: &'a str,
    pub(super) certificates: &'a Certificates,
    /// Name to password.
    pub(super) users: &'a BTreeMap<String, String>,
    /// Laid over everything else.
    pub(super) overrides: &'a BTreeMap<String, String>,
}

/// The file's text, keys in order.
pub(super) fn render(node: &Node<'_>) -> String {
    let mut properties: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in FIXED {
        properties.insert((*key).to_owned(), (*value).to_owned());
    }
    let mut set = |key: &str, value: String| properties.insert(key.to_owned(), value);
    let at = |host: &str| {
        let each = node.ports.clients().map(|(name, port)| format!("{name}://{host}:{port}"));
        each.join(",")
    };
    let controller = node.ports.controller;
    set("controller.quorum.voters", format!("1@127.0.0.1:{controller}"));
    set("listeners", format!("{},CONTROLLER://127.0.0.1:{controller}", at(node.bind)));
    set("advertised.listeners", at("127.0.0.1"));
    set("log.dirs", node.data_dir.to_owned());
    set("ssl.keystore.certificate.chain", node.certificates.server().certificate_pem().to_owned());
    set("ssl.keystore.key", node.certificates.server().key_pem().to_owned());
    set("ssl.truststore.certificates", node.certificates.ca_pem().to_owned());
    let plain = plain_jaas(node.users);
    for listener in ["sasl_plaintext", "sasl_ssl"] {
        set(&format!("listener.name.{listener}.plain.sasl.jaas.config"), plain.clone());
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            set(
                &format!("listener.name.{listener}.{mechanism}.sasl.jaas.config"),
                "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned(),
            );
        }
    }
    properties.extend(node.overrides.clone());
    let mut text = String::new();
    for (key, value) in &properties {
        text.push_str(&escape(key, true));
        text.push('=');
        text.push_str(&escape(value, false));
        text.push('\n');
    }
    text
}

/// The arguments of `kafka.tools.StorageTool format` that make the SCRAM users; none where the version cannot.
pub(super) fn scram_arguments(version: &str, users: &BTreeMap<String, String>) -> Vec<String> {
    let mut arguments = Vec::new();
    if has_scram_bootstrap(version) {
        for (name, password) in users {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                arguments.push("--add-scram".to_owned());
                arguments.push(format!("{mechanism}=[name={name},password={password}]"));
            }
        }
    }
    arguments
}

/// KIP-900: SCRAM users when the storage is formatted, from 3.5 on. Before it, KRaft has no SCRAM at all.
pub(super) fn has_scram_bootstrap(version: &str) -> bool {
    release(version) >= (3, 5)
}

/// Major and minor; what is not a number counts as 0.
pub(super) fn release(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// The same for every node. Factors of 1 because the node is alone; few partitions, so that it starts fast.
const FIXED: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    (
        "listener.security.protocol.map",
        "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
    ),
    ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"),
    ("ssl.keystore.type", "PEM"),
    ("ssl.truststore.type", "PEM"),
    ("auto.create.topics.enable", "true"),
    ("num.partitions", "1"),
    ("num.network.threads", "2"),
    ("num.io.threads", "2"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "4"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
];

fn plain_jaas(users: &BTreeMap<String, String>) -> String {
    let mut jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required".to_owned();
    for (name, password) in users {
        let password = password.replace('\\', "\\\\").replace('"', "\\\"");
        jaas.push_str(&format!(" user_{name}=\"{password}\""));
    }
    jaas.push(';');
    jaas
}

/// Java's `Properties.load`: Latin-1 with escapes.
fn escape(text: &str, is_key: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            ' ' if index == 0 || is_key => escaped.push_str("\\ "),
            '=' | ':' | '#' | '!' if is_key => {
                escaped.push('\\');
                escaped.push(c);
            }
            ' '..='~' => escaped.push(c),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports =
        Ports { plaintext: 1001, sasl_plaintext: 1002, ssl: 1003, sasl_ssl: 1004, controller: 1005 };

    fn rendered(overrides: &[(&str, &str)]) -> String {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        render(&Node {
            ports: PORTS,
            bind: "127.0.0.1",
            data_dir: "/tmp/data",
            certificates: &Certificates::generate().unwrap(),
            users: &[("alice", "a\"b\\c")].iter().map(own).collect(),
            overrides: &overrides.iter().map(own).collect(),
        })
    }

    #[test]
    fn every_listener_is_bound_and_advertised_on_its_port() {
        let text = rendered(&[]);
        assert!(text.contains(
            "\nlisteners=PLAINTEXT://127.0.0.1:1001,SASL_PLAINTEXT://127.0.0.1:1002,SSL://127.0.0.1:1003,\
             SASL_SSL://127.0.0.1:1004,CONTROLLER://127.0.0.1:1005\n"
        ));
        assert!(text.starts_with("advertised.listeners=PLAINTEXT://127.0.0.1:1001,"));
    }

    #[test]
    fn pem_stays_on_one_line_of_the_file() {
        let text = rendered(&[]);
        let line = text.lines().find(|line| line.starts_with("ssl.keystore.key=")).unwrap();
        assert!(line.starts_with("ssl.keystore.key=-----BEGIN PRIVATE KEY-----\\n"));
        assert!(line.ends_with("-----END PRIVATE KEY-----\\n"));
    }

    #[test]
    fn password_is_quoted_for_jaas_and_then_for_the_file() {
        assert!(rendered(&[]).contains(r#"PlainLoginModule required user_alice="a\\"b\\\\c";"#));
    }

    #[test]
    fn override_replaces_a_fixed_property_once() {
        let text = rendered(&[("num.partitions", "6"), ("extra key", "ü\n")]);
        assert_eq!(text.matches("\nnum.partitions=").count(), 1);
        assert!(text.contains("\nnum.partitions=6\n"));
        assert!(text.contains("\nextra\\ key=\\u00fc\\n\n") || text.starts_with("extra\\ key"));
    }

    #[test]
    fn scram_users_are_made_only_where_the_version_can() {
        let users = BTreeMap::from([("alice".to_owned(), "secret".to_owned())]);
        assert_eq!(scram_arguments("3.4.1", &users), Vec::<String>::new());
        assert_eq!(scram_arguments("2.8.2", &users), Vec::<String>::new());
        assert_eq!(
            scram_arguments("3.5.0", &users),
            [
                "--add-scram",
                "SCRAM-SHA-256=[name=alice,password=secret]",
                "--add-scram",
                "SCRAM-SHA-512=[name=alice,password=secret]"
            ]
        );
        assert!(has_scram_bootstrap("4.0.0") && has_scram_bootstrap("3.10.0"));
    }
}
