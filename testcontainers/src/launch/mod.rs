//! Real Apache Kafka by version: a one-node KRaft cluster with four listeners on loopback.
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
mod probe;
mod process;
mod properties;

use std::{
    collections::BTreeMap,
    env, fs,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::Engine as _;

pub use self::probe::{Probe, call, probe, probe_stream};
use self::{process::Broker, properties::Ports};
use crate::{CertificateError, Certificates, Listener, note_backend};

/// Started unless another version is asked for.
pub const DEFAULT_VERSION: &str = "4.3.1";

/// Formatting starts a JVM of its own.
const FORMAT_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a broker that is starting.
const LOOK: Duration = Duration::from_millis(100);
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

/// A running broker. Dropping it kills the broker and removes its data; [`Kafka::stop`] ends it in order. A value in a
/// `static`, which is never dropped, ends with this process.
#[derive(Debug)]
pub struct Kafka {
    broker: Broker,
    ports: Ports,
    version: String,
    certificates: Certificates,
    grace: Duration,
}

/// Settings of a broker to start; see [`Kafka::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct KafkaBuilder {
    version: String,
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
            Ok(_) => Ok(Some(Self::builder().version(version))),
            Err(missing) if required.is_none() => leave_out(&missing),
            Err(missing) => Err(Error::Missing(format!("DTKAFKA_REQUIRE_KAFKA is set, but {missing}"))),
        }
    }

    /// `host:port` of a listener.
    #[must_use]
    pub fn listener(&self, listener: Listener) -> String {
        format!("127.0.0.1:{}", self.ports.of(listener))
    }

    /// `host:port` of the PLAINTEXT listener.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.listener(Listener::Plaintext)
    }

    /// What the SSL and SASL_SSL listeners present, and the authority to trust.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The version of Apache Kafka.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether SCRAM users exist: from 3.5 on (KIP-900). PLAIN works on every version.
    #[must_use]
    pub fn has_scram(&self) -> bool {
        properties::has_scram_bootstrap(&self.version)
    }

    /// The process id of the JVM, or of the docker client in front of the container.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.broker.id()
    }

    /// The folder with `server.properties`, `broker.log` and `data`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.broker.folder()
    }

    /// Asks the broker to shut down (SIGTERM), kills it after the grace period, and removes its data unless it is kept.
    ///
    /// # Errors
    /// [`Error::Io`] if the process could not be waited for.
    ///
    /// # Cancel safety
    /// A dropped future kills the broker.
    pub async fn stop(self) -> Result<(), Error> {
        self.broker.stop(self.grace).await
    }
}

impl KafkaBuilder {
    /// The version of Apache Kafka, 2.8 or newer. Default: [`DEFAULT_VERSION`].
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
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

    /// Whether the data and the log stay after the end, in [`Kafka::folder`]. Default: false.
    pub fn keep_data(mut self, keep: bool) -> Self {
        self.keep_data = keep;
        self
    }

    /// Starts the broker and waits until every listener accepts and Metadata lists the broker.
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

    fn check(&self) -> Result<(), Error> {
        let numbers = self.version.split('.').all(|part| part.parse::<u32>().is_ok());
        if !numbers || properties::release(&self.version) < (2, 8) {
            let reason =
                format!("{:?} is not a version such as {DEFAULT_VERSION}, 2.8 or newer", self.version);
            return Err(Error::Setting { setting: "version", reason });
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

    async fn start_once(&self, route: &Route, certificates: &Certificates) -> Result<Kafka, Error> {
        let folder = env::temp_dir().join(format!("dtkafka-kafka-{}-{:016x}", self.version, random()));
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let guard = Folder { path: folder, keep: self.keep_data };
        let ports = free_ports().map_err(|e| Error::io("find free ports for", &guard.path, e))?;
        let data = guard.path.join("data");
        let (bind, data_dir) = match route {
            Route::Jvm { .. } => ("127.0.0.1", data.to_string_lossy().into_owned()),
            Route::Docker { .. } => ("0.0.0.0", "/tmp/dtkafka-data".to_owned()),
        };
        let text = properties::render(&properties::Node {
            ports,
            bind,
            data_dir: &data_dir,
            certificates,
            users: &self.users,
            overrides: &self.properties,
        });
        let file = guard.path.join("server.properties");
        fs::write(&file, &text).map_err(|e| Error::io("write", &file, e))?;
        let (command, container) = match route {
            Route::Jvm { java } => (self.jvm(java, &file).await?, None),
            Route::Docker { docker } => {
                let name = format!("dtkafka-{:016x}", random());
                (self.container(docker, &name, ports, &text), Some((docker.clone(), name)))
            }
        };
        let broker = Broker::spawn(command, guard.release(), self.keep_data, container)?;
        let certificates = certificates.clone();
        let mut kafka =
            Kafka { broker, ports, version: self.version.clone(), certificates, grace: self.stop_grace };
        self.wait(&mut kafka).await?;
        note_backend(&format!("Apache Kafka {} in {}", self.version, route.name()));
        tracing::info!(version = self.version, pid = kafka.pid(), "Apache Kafka answers");
        Ok(kafka)
    }

    /// Resolves, formats, and returns the command of the broker itself.
    async fn jvm(&self, java: &Path, file: &Path) -> Result<Command, Error> {
        let libs = jars::resolve(&self.version).await?.join("*");
        let mut format = tokio::process::Command::new(java);
        format.args(["-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(&libs);
        format.args(["kafka.tools.StorageTool", "format", "-t", &cluster_id(), "-c"]).arg(file);
        format.args(properties::scram_arguments(&self.version, &self.users)).stdin(Stdio::null());
        run(format, "kafka.tools.StorageTool format", FORMAT_DEADLINE).await?;
        let mut command = Command::new(java);
        command.arg(format!("-Xmx{}", self.heap)).arg("-XX:+UseG1GC");
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(&libs);
        command.arg("kafka.Kafka").arg(file);
        Ok(command)
    }

    /// The same properties in the `apache/kafka` image, handed over in the environment: nothing is mounted.
    fn container(&self, docker: &Path, name: &str, ports: Ports, properties: &str) -> Command {
        let mut script = "printf '%s' \"$DTKAFKA_PROPERTIES\" > /tmp/server.properties && \
            /opt/kafka/bin/kafka-storage.sh format -t \"$DTKAFKA_CLUSTER_ID\" -c /tmp/server.properties"
            .to_owned();
        for argument in properties::scram_arguments(&self.version, &self.users) {
            script.push_str(&format!(" '{}'", argument.replace('\'', "'\\''")));
        }
        script.push_str(" && exec /opt/kafka/bin/kafka-server-start.sh /tmp/server.properties");
        let mut command = Command::new(docker);
        command.args(["run", "--rm", "--name", name]);
        for port in [ports.plaintext, ports.sasl_plaintext, ports.ssl, ports.sasl_ssl] {
            command.args(["-p", &format!("127.0.0.1:{port}:{port}")]);
        }
        command.args(["-e", "DTKAFKA_PROPERTIES", "-e", "DTKAFKA_CLUSTER_ID", "-e"]);
        command.arg(format!("KAFKA_HEAP_OPTS=-Xmx{}", self.heap));
        command.args(["--entrypoint", "sh", &format!("apache/kafka:{}", self.version), "-c", &script]);
        command.env("DTKAFKA_PROPERTIES", properties).env("DTKAFKA_CLUSTER_ID", cluster_id());
        command
    }

    async fn wait(&self, kafka: &mut Kafka) -> Result<(), Error> {
        let address = kafka.bootstrap_servers();
        let mut seen = "it never accepted a connection".to_owned();
        let answered = tokio::time::timeout(self.start_timeout, async {
            loop {
                if let Ok(Some(status)) = kafka.broker.ended() {
                    return Err(format!("the process ended with {status}"));
                }
                match probe(&address).await {
                    Ok(probe) if probe.brokers.is_empty() => {
                        seen = "its metadata lists no broker yet".to_owned()
                    }
                    Ok(_) if self.all_listen(kafka.ports) => return Ok(()),
                    Ok(_) => seen = "a listener does not accept connections yet".to_owned(),
                    Err(error) => seen = format!("{address}: {error}"),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        let reason = match answered.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {:?}: {seen}", self.start_timeout),
        };
        Err(Error::Start { version: self.version.clone(), reason, log: kafka.broker.log_tail() })
    }

    /// Blocking connects, on loopback only, to ports that answer or refuse at once. A user who has replaced
    /// the listeners knows better which there are.
    fn all_listen(&self, ports: Ports) -> bool {
        self.properties.contains_key("listeners")
            || [ports.sasl_plaintext, ports.ssl, ports.sasl_ssl]
                .iter()
                .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok())
    }
}

/// How a broker can be run here.
enum Route {
    Jvm { java: PathBuf },
    Docker { docker: PathBuf },
}

impl Route {
    fn name(&self) -> &'static str {
        match self {
            Self::Jvm { .. } => "a JVM",
            Self::Docker { .. } => "Docker",
        }
    }

    /// `version` counts where its jars are cached: then Maven is not needed.
    fn find(version: Option<&str>) -> Result<Self, String> {
        let java = env::var_os("JAVA_HOME")
            .map(|home| PathBuf::from(home).join("bin").join(format!("java{}", env::consts::EXE_SUFFIX)))
            .filter(|java| java.is_file())
            .or_else(|| find_program("java"));
        let resolvable = find_program("mvn").is_some() || version.is_some_and(jars::is_cached);
        let mut missing = Vec::new();
        match java {
            Some(java) if resolvable => return Ok(Self::Jvm { java }),
            Some(_) => {}
            None => missing.push("java is not on PATH (Debian: apt-get install default-jre-headless)"),
        }
        if !resolvable {
            missing.push("mvn is not on PATH (Debian: apt-get install maven)");
        }
        match find_program("docker") {
            Some(docker) if succeeds(&docker, &["info"]) => return Ok(Self::Docker { docker }),
            Some(_) => missing.push("docker is there, but no daemon answers `docker info`"),
            None => missing.push("docker, the other way, is not on PATH either"),
        }
        Err(missing.join("; "))
    }
}

/// Removes the folder of a start that failed before a [`Broker`] owned it.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn release(mut self) -> PathBuf {
        self.keep = true;
        self.path.clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Runs a command to its end; its output is the error's text.
async fn run(mut command: tokio::process::Command, what: &str, deadline: Duration) -> Result<(), Error> {
    let failed = |output: String| Error::Command { what: what.to_owned(), output };
    let output = tokio::time::timeout(deadline, command.kill_on_drop(true).output())
        .await
        .map_err(|_| failed(format!("not finished within {deadline:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Err(failed(lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")))
}

fn succeeds(program: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&file)).find(|path| path.is_file())
}

/// Kafka's form of a UUID: base64url of 16 bytes; the first is small, so that it cannot start with `-`.
fn cluster_id() -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_be_bytes());
    bytes[8..].copy_from_slice(&random().to_be_bytes());
    bytes[0] &= 0x7f;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Distinct, not secret.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Ports below those the system gives to outgoing connections, so that nothing takes them before the
/// broker binds, and held all at once, so that they differ.
fn free_ports() -> io::Result<Ports> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        let port = u16::try_from(12_000 + random() % 18_000).map_err(io::Error::other)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
        if let [(plaintext, _), (sasl_plaintext, _), (ssl, _), (sasl_ssl, _), (controller, _)] = held[..] {
            return Ok(Ports { plaintext, sasl_plaintext, ssl, sasl_ssl, controller });
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no five free ports between 12000 and 30000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_is_a_uuid_that_no_option_parser_mistakes() {
        for _ in 0..64 {
            let id = cluster_id();
            assert_eq!(id.len(), 22);
            assert!(!id.starts_with('-'), "{id}");
        }
    }

    #[test]
    fn free_ports_differ() {
        let ports = free_ports().unwrap();
        let all = [ports.plaintext, ports.sasl_plaintext, ports.ssl, ports.sasl_ssl, ports.controller];
        assert_eq!(std::collections::BTreeSet::from(all).len(), 5);
    }

    #[tokio::test]
    async fn settings_that_cannot_work_are_named_before_anything_starts() {
        for (builder, setting) in [
            (Kafka::builder().version("0.11.0"), "version"),
            (Kafka::builder().version("../4.3.1"), "version"),
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
