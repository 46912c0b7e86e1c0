//! Real Apache Kafka by version: one node or several, with four listeners each, on loopback.
//!
//! The broker runs in a JVM from jars that Maven resolves once; where java or mvn is missing and a Docker daemon
//! answers, in the `apache/kafka` image, through the `docker` command (a Docker client library would bring a C
//! toolchain or a large graph for one call). Never touches a process it did not start.
//!
//! ```no_run
//! # async fn example() -> Result<(), dtkafka_testcontainers::launch::Error> {
//! use dtkafka_testcontainers::{Listener, launch::Kafka};
//!
//! let kafka = Kafka::builder().version("4.3.1").user("alice", "alice-secret").start().await?;
//! println!("{} {}", kafka.bootstrap_servers(), kafka.listener(Listener::SaslSsl));
//! kafka.stop().await?;
//! # Ok(())
//! # }
//! ```

mod jars;
mod node;
mod probe;
mod process;
mod properties;
mod route;

use std::{
    collections::BTreeMap,
    env, io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    node::Node,
    probe::{Probe, call, probe, probe_stream},
};
use self::{
    node::Plan,
    process::Broker,
    route::{Route, cluster_id, free_ports},
};
use crate::{CertificateError, Certificates, Listener, note_backend};

/// Started unless another version is asked for.
pub const DEFAULT_VERSION: &str = "4.3.1";

/// A port can be taken between our look and the broker's bind.
const START_ATTEMPTS: u32 = 3;

/// Why no broker is running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine lacks a program; the text says which, and how to get it.
    #[error("real Kafka cannot run here: {0}")]
    Missing(String),
    /// A setting of the builder cannot be used.
    #[error("{setting}: {reason}")]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// What is wrong, and what is accepted.
        reason: String,
    },
    /// A program that prepares the start failed.
    #[error("{what} failed: {output}")]
    Command {
        /// Which one.
        what: String,
        /// The end of its output.
        output: String,
    },
    /// The broker ended, or did not answer in time.
    #[error("Kafka {version} did not start: {reason}\n{log}")]
    Start {
        /// Its version.
        version: String,
        /// What was seen.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// A file or process operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
}

impl Error {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

/// A running cluster, of one node unless more were asked for. Dropping it kills the nodes and removes their data;
/// [`Kafka::stop`] ends them in order. A value in a `static`, which is never dropped, ends with this process.
#[derive(Debug)]
pub struct Kafka {
    nodes: Vec<Node>,
    /// After the nodes, so that it is dropped after them.
    zookeeper: Option<Broker>,
    builder: KafkaBuilder,
    certificates: Certificates,
}

/// Settings of a broker to start; see [`Kafka::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct KafkaBuilder {
    version: String,
    nodes: usize,
    heap: String,
    users: BTreeMap<String, String>,
    properties: BTreeMap<String, String>,
    certificates: Option<Certificates>,
    start_timeout: Duration,
    stop_grace: Duration,
    keep_data: bool,
}

impl Kafka {
    /// Settings with their defaults.
    pub fn builder() -> KafkaBuilder {
        KafkaBuilder {
            version: DEFAULT_VERSION.to_owned(),
            nodes: 1,
            heap: "512m".to_owned(),
            users: BTreeMap::new(),
            properties: BTreeMap::new(),
            certificates: None,
            start_timeout: Duration::from_secs(90),
            stop_grace: Duration::from_secs(15),
            keep_data: false,
        }
    }

    /// Whether this machine can run real Kafka: `java` and `mvn`, or a Docker daemon that answers.
    ///
    /// # Errors
    /// The text names everything that is missing.
    pub fn available() -> Result<(), String> {
        Route::find(None).map(drop)
    }

    /// Settings for a test suite that runs on real Kafka where it can; the one place that reads these variables:
    /// `DTKAFKA_REQUIRE_KAFKA` is the version that must run (`1`: [`DEFAULT_VERSION`]); `DTKAFKA_SKIP_KAFKA` leaves real
    /// Kafka out. `None` means leave it out; why has been printed and noted.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is required and cannot run here.
    pub fn for_tests() -> Result<Option<KafkaBuilder>, Error> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let leave_out = |why: &str| {
            eprintln!("SKIPPED: no real Kafka: {why}");
            note_backend(&format!("left out: Apache Kafka: {why}"));
            Ok(None)
        };
        if set("DTKAFKA_SKIP_KAFKA").is_some() {
            return leave_out("DTKAFKA_SKIP_KAFKA is set");
        }
        let required = set("DTKAFKA_REQUIRE_KAFKA");
        let version = required.clone().filter(|value| value != "1");
        let version = version.unwrap_or_else(|| DEFAULT_VERSION.to_owned());
        match Route::find(Some(&version)) {
            // Tests run beside others, on machines of any kind: a node that does not come ends before that.
            Ok(_) => Ok(Some(Self::builder().version(version).start_timeout(Duration::from_secs(240)))),
            Err(missing) if required.is_none() => leave_out(&missing),
            Err(missing) => Err(Error::Missing(format!("DTKAFKA_REQUIRE_KAFKA is set, but {missing}"))),
        }
    }

    /// `host:port` of a listener: of every node, separated by commas.
    #[must_use]
    pub fn listener(&self, listener: Listener) -> String {
        self.nodes.iter().map(|node| node.listener(listener)).collect::<Vec<_>>().join(",")
    }

    /// `host:port` of the PLAINTEXT listener of every node, separated by commas.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.listener(Listener::Plaintext)
    }

    /// What the SSL and SASL_SSL listeners present, and the authority to trust.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The folder with the version's jars, Java's client among them; resolves them first where the broker runs in Docker.
    ///
    /// # Errors
    /// [`Error::Missing`] without Maven, [`Error::Command`] if it fails.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn jars(&self) -> Result<PathBuf, Error> {
        jars::resolve(self.version()).await
    }

    /// The version of Apache Kafka.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.builder.version
    }

    /// Whether SCRAM users exist: not in 3.3 and 3.4, where KRaft has none (KIP-900). PLAIN works on every version.
    #[must_use]
    pub fn has_scram(&self) -> bool {
        properties::has_scram(self.version())
    }

    /// The nodes; the one at index `i` has the broker id `i + 1`.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node, to pause, kill or ask it; `None` past the last.
    pub fn node(&mut self, index: usize) -> Option<&mut Node> {
        self.nodes.get_mut(index)
    }

    /// Starts the process of a node again, after it was killed or shut down, and waits until it serves.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such node or it still runs; [`Error::Start`] if it does not come up.
    ///
    /// # Cancel safety
    /// A dropped future leaves the node starting.
    pub async fn restart(&mut self, index: usize) -> Result<(), Error> {
        let wrong =
            |reason: &str| Error::Setting { setting: "restart", reason: format!("node {index} {reason}") };
        let node = self.nodes.get_mut(index).ok_or_else(|| wrong("does not exist"))?;
        if matches!(node.broker.ended(), Ok(None)) {
            return Err(wrong("still runs; kill it or shut it down first"));
        }
        node.broker.respawn()?;
        node.wait(&self.builder).await
    }

    /// Asks every node to shut down (SIGTERM), kills it after the grace period, and removes the data unless it is kept.
    ///
    /// # Errors
    /// [`Error::Io`] if a process could not be waited for.
    ///
    /// # Cancel safety
    /// A dropped future kills the nodes.
    pub async fn stop(mut self) -> Result<(), Error> {
        // All are asked before one is waited for: the last of a quorum waits in vain for the others.
        for node in &mut self.nodes {
            node.resume();
            node.broker.signal("TERM");
        }
        let mut result = Ok(());
        for node in self.nodes {
            result = result.and(node.broker.stop(self.builder.stop_grace).await);
        }
        if let Some(zookeeper) = self.zookeeper {
            result = result.and(zookeeper.stop(self.builder.stop_grace).await);
        }
        result
    }
}

impl KafkaBuilder {
    /// The version of Apache Kafka, 2.8 or newer. Default: [`DEFAULT_VERSION`].
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// The folder with the jars of this version, without a broker: what [`Kafka::jars`] gives.
    ///
    /// # Errors
    /// [`Error::Missing`] without Maven, [`Error::Command`] if it fails.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn jars(&self) -> Result<PathBuf, Error> {
        jars::resolve(&self.version).await
    }

    /// How many nodes the cluster has, 1 to 9. Default: 1. With three or more, internal topics are kept three times. More
    /// than one needs java and mvn.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// The JVM's heap, as `-Xmx` takes it. Default: `512m`.
    pub fn heap(mut self, heap: impl Into<String>) -> Self {
        self.heap = heap.into();
        self
    }

    /// Adds a user for SASL PLAIN, and for SCRAM-SHA-256 and -512 from 3.5 on. Default, when none is added: `alice` with `alice-secret`.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.users.insert(name.into(), password.into());
        self
    }

    /// Sets a broker property; it wins over everything this kit sets.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// The certificates of the TLS listeners. Default: fresh ones for loopback.
    pub fn certificates(mut self, certificates: Certificates) -> Self {
        self.certificates = Some(certificates);
        self
    }

    /// How long the broker may take until it answers. Default: 90 s; five are usual.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How long an orderly shutdown may take before the broker is killed. Default: 15 s.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// Whether the data and the log stay after the end, in [`Node::folder`]. Default: false.
    pub fn keep_data(mut self, keep: bool) -> Self {
        self.keep_data = keep;
        self
    }

    /// Starts the cluster and waits until every listener accepts and Metadata lists a broker.
    ///
    /// # Errors
    /// [`Error::Missing`] where no route is open, [`Error::Setting`] for a value that cannot be used, [`Error::Start`] with
    /// the end of the log otherwise.
    ///
    /// # Cancel safety
    /// A dropped future leaves no process behind.
    pub async fn start(mut self) -> Result<Kafka, Error> {
        if self.users.is_empty() {
            self = self.user("alice", "alice-secret");
        }
        self.check()?;
        let certificates = match self.certificates.take() {
            Some(certificates) => certificates,
            None => Certificates::generate()?,
        };
        let route = Route::find(Some(&self.version)).map_err(Error::Missing)?;
        if self.nodes > 1 && !matches!(route, Route::Jvm { .. }) {
            return Err(Error::Missing("a cluster of several nodes needs java and mvn".to_owned()));
        }
        let mut attempt = 1;
        loop {
            match self.start_once(&route, &certificates).await {
                Err(Error::Start { log, .. })
                    if attempt < START_ATTEMPTS && log.contains("already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn start_once(&self, route: &Route, certificates: &Certificates) -> Result<Kafka, Error> {
        let ports =
            free_ports(self.nodes).map_err(|e| Error::io("find free ports on", Path::new("loopback"), e))?;
        let plan = Plan {
            builder: self,
            route,
            certificates,
            cluster_id: cluster_id(),
            voters: (1..).zip(ports).collect(),
        };
        let zookeeper = plan.start_zookeeper().await?;
        let mut nodes = Vec::new();
        for (id, ports) in &plan.voters {
            nodes.push(plan.start_node(*id, *ports).await?);
        }
        for node in &mut nodes {
            node.wait(self).await?;
        }
        let mode = if zookeeper.is_some() { " with ZooKeeper" } else { "" };
        note_backend(&format!(
            "Apache Kafka {} in {}{mode}{}",
            self.version,
            route.name(),
            of_nodes(self.nodes)
        ));
        tracing::info!(version = self.version, nodes = self.nodes, "Apache Kafka answers");
        Ok(Kafka { nodes, zookeeper, builder: self.clone(), certificates: certificates.clone() })
    }

    fn check(&self) -> Result<(), Error> {
        let numbers = self.version.split('.').all(|part| part.parse::<u32>().is_ok());
        if !numbers || properties::release(&self.version) < (2, 8) {
            let reason =
                format!("{:?} is not a version such as {DEFAULT_VERSION}, 2.8 or newer", self.version);
            return Err(Error::Setting { setting: "version", reason });
        }
        if !(1..=9).contains(&self.nodes) {
            let reason = format!("{} nodes; 1 to 9 can be started", self.nodes);
            return Err(Error::Setting { setting: "nodes", reason });
        }
        // What the storage tool's parser of every version, and a JVM started in any locale, takes.
        let usable = |text: &str| {
            !text.is_empty() && text.chars().all(|c| matches!(c, ' '..='~') && !",[]=\"".contains(c))
        };
        for (name, password) in &self.users {
            let word = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            if !word || !usable(name) || !usable(password) {
                let reason = format!(
                    "user {name:?}: names take letters, digits, '_', '-', '.'; passwords printable ASCII without , [ ] = and \""
                );
                return Err(Error::Setting { setting: "user", reason });
            }
        }
        Ok(())
    }
}

fn of_nodes(nodes: usize) -> String {
    if nodes == 1 { String::new() } else { format!(", {nodes} nodes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_that_cannot_work_are_named_before_anything_starts() {
        for (builder, setting) in [
            (Kafka::builder().version("0.11.0"), "version"),
            (Kafka::builder().version("../4.3.1"), "version"),
            (Kafka::builder().nodes(0), "nodes"),
            (Kafka::builder().nodes(10), "nodes"),
            (Kafka::builder().user("alice", "a,b"), "user"),
            (Kafka::builder().user("alice", "a\"b"), "user"),
            (Kafka::builder().user("alice", "ü"), "user"),
            (Kafka::builder().user("a b", "secret"), "user"),
        ] {
            let error = builder.start().await.unwrap_err();
            assert!(matches!(error, Error::Setting { setting: s, .. } if s == setting), "{error}");
        }
    }
}
