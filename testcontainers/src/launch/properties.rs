//! The `server.properties` of one node, as text: KRaft, or ZooKeeper before 3.3. Pure: no files, no processes.
//!
//! KIP-500 (KRaft), KIP-651 (PEM key and trust stores, so that no keytool is needed), KIP-900 (SCRAM
//! users at format time).

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{Certificates, Listener};

/// One port per listener, and the controller's (or ZooKeeper's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) plaintext: u16,
    pub(super) sasl_plaintext: u16,
    pub(super) ssl: u16,
    pub(super) sasl_ssl: u16,
    pub(super) controller: u16,
}

impl Ports {
    pub(super) fn from_five(ports: &[u16]) -> Option<Self> {
        let &[plaintext, sasl_plaintext, ssl, sasl_ssl, controller] = ports else { return None };
        Some(Self { plaintext, sasl_plaintext, ssl, sasl_ssl, controller })
    }

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

/// Who keeps the cluster's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The brokers themselves.
    KRaft,
    /// A ZooKeeper of its own, before 3.3: KRaft was a preview without producer ids then.
    ZooKeeper,
}

impl Mode {
    pub(super) fn of(version: &str) -> Self {
        if release(version) >= (3, 3) { Self::KRaft } else { Self::ZooKeeper }
    }
}

/// What the properties are made from.
pub(super) struct Node<'a> {
    /// Its id, from 1 on.
    pub(super) id: usize,
    pub(super) ports: Ports,
    /// Every node of the cluster by id, this one among them.
    pub(super) voters: &'a [(usize, Ports)],
    /// Which program keeps the cluster's metadata.
    pub(super) mode: Mode,
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
    // Internal topics are on as many nodes as Kafka's own defaults ask for, if there are so many.
    let copies = node.voters.len().min(3);
    for (key, value) in REPLICATED {
        let value = if key.ends_with("min.isr") { copies.min(*value) } else { copies };
        properties.insert((*key).to_owned(), value.to_string());
    }
    let mut set = |key: &str, value: String| properties.insert(key.to_owned(), value);
    let at = |host: &str| {
        let each = node.ports.clients().map(|(name, port)| format!("{name}://{host}:{port}"));
        each.join(",")
    };
    let controller = node.ports.controller;
    let mut protocols =
        "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL".to_owned();
    match node.mode {
        Mode::KRaft => {
            let voters = node.voters.iter().map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controller));
            set("process.roles", "broker,controller".to_owned());
            set("node.id", node.id.to_string());
            set("controller.listener.names", "CONTROLLER".to_owned());
            set("controller.quorum.voters", voters.collect::<Vec<_>>().join(","));
            set("listeners", format!("{},CONTROLLER://127.0.0.1:{controller}", at(node.bind)));
            protocols.push_str(",CONTROLLER:PLAINTEXT");
        }
        Mode::ZooKeeper => {
            set("broker.id", node.id.to_string());
            // One ZooKeeper serves all, on the port that is the first node's for a controller.
            let port = node.voters.first().map_or(controller, |(_, ports)| ports.controller);
            set("zookeeper.connect", format!("127.0.0.1:{port}"));
            set("listeners", at(node.bind));
        }
    }
    set("listener.security.protocol.map", protocols);
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

/// Where and how ZooKeeper keeps what it knows.
pub(super) fn render_zookeeper(port: u16, data_dir: &str) -> String {
    format!(
        "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\n\
         tickTime=500\n",
        escape(data_dir, false)
    )
}

/// Whether SCRAM users exist: ZooKeeper always had them, KRaft from 3.5 on.
pub(super) fn has_scram(version: &str) -> bool {
    Mode::of(version) == Mode::ZooKeeper || has_scram_bootstrap(version)
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

/// The same for every node; few partitions, so that it starts fast.
const FIXED: &[(&str, &str)] = &[
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"),
    ("ssl.keystore.type", "PEM"),
    ("ssl.truststore.type", "PEM"),
    ("auto.create.topics.enable", "true"),
    ("num.partitions", "1"),
    ("num.network.threads", "2"),
    ("num.io.threads", "2"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.num.partitions", "4"),
    // Kafka's own 128 MiB leave a small heap so little that the broker fails to start, at times.
    ("log.cleaner.dedupe.buffer.size", "16777216"),
    // A node that was killed is missed after three seconds and not after Kafka's nine.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    ("zookeeper.session.timeout.ms", "3000"),
];

/// How often internal topics are kept, and how many copies a write must reach on three nodes.
const REPLICATED: &[(&str, usize)] = &[
    ("offsets.topic.replication.factor", 3),
    ("transaction.state.log.replication.factor", 3),
    ("transaction.state.log.min.isr", 2),
    ("share.coordinator.state.topic.replication.factor", 3),
    ("share.coordinator.state.topic.min.isr", 2),
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
            id: 1,
            ports: PORTS,
            voters: &[(1, PORTS)],
            mode: Mode::KRaft,
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

    fn of_three(id: usize, mode: Mode) -> String {
        let other = |by: u16| Ports { plaintext: 2000 + by, controller: 2005 + by, ..PORTS };
        render(&Node {
            id,
            ports: PORTS,
            voters: &[(1, PORTS), (2, other(10)), (3, other(20))],
            mode,
            bind: "127.0.0.1",
            data_dir: "/tmp/data",
            certificates: &Certificates::generate().unwrap(),
            users: &BTreeMap::new(),
            overrides: &BTreeMap::new(),
        })
    }

    #[test]
    fn nodes_of_a_cluster_vote_together_and_keep_internal_topics_three_times() {
        let text = of_three(2, Mode::KRaft);
        assert!(text.contains("\nnode.id=2\n"));
        assert!(
            text.contains("\ncontroller.quorum.voters=1@127.0.0.1:1005,2@127.0.0.1:2015,3@127.0.0.1:2025\n")
        );
        assert!(text.contains("\noffsets.topic.replication.factor=3\n"));
        assert!(text.contains("\ntransaction.state.log.min.isr=2\n"));
        assert!(rendered(&[]).contains("\ntransaction.state.log.min.isr=1\n"));
    }

    #[test]
    fn before_3_3_metadata_lies_in_a_zookeeper() {
        assert_eq!((Mode::of("2.8.2"), Mode::of("3.2.3")), (Mode::ZooKeeper, Mode::ZooKeeper));
        assert_eq!((Mode::of("3.3.0"), Mode::of("4.3.1")), (Mode::KRaft, Mode::KRaft));
        let text = of_three(3, Mode::ZooKeeper);
        assert!(text.contains("\nbroker.id=3\n") && text.contains("\nzookeeper.connect=127.0.0.1:1005\n"));
        assert!(!text.contains("process.roles") && !text.contains("CONTROLLER"));
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
