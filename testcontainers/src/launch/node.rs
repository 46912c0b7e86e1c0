//! One node of a cluster: its folder, its process, and how both are made. Never touches a process it did not start.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Error, KafkaBuilder, jars,
    probe::probe,
    process::Broker,
    properties::{self, Mode, Ports},
    route::{Route, random, run},
};
use crate::{Certificates, Listener};

/// Formatting starts a JVM of its own, and several may start at once on a busy machine.
const FORMAT_DEADLINE: Duration = Duration::from_secs(240);
/// Between two looks at a broker that is starting.
const LOOK: Duration = Duration::from_millis(100);

/// What all nodes of one cluster have in common.
pub(super) struct Plan<'a> {
    pub(super) builder: &'a KafkaBuilder,
    pub(super) route: &'a Route,
    pub(super) certificates: &'a Certificates,
    pub(super) cluster_id: String,
    /// Every node by id.
    pub(super) voters: Vec<(usize, Ports)>,
}

/// A node; see [`Kafka::node`](super::Kafka::node).
#[derive(Debug)]
pub struct Node {
    pub(super) broker: Broker,
    ports: Ports,
    is_paused: bool,
}

impl Node {
    /// `host:port` of a listener of this node.
    #[must_use]
    pub fn listener(&self, listener: Listener) -> String {
        format!("127.0.0.1:{}", self.ports.of(listener))
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

    /// Whether its process runs and is not paused.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        !self.is_paused && matches!(self.broker.ended(), Ok(None))
    }

    /// Stops its process where it is (SIGSTOP): connections stay open, and nothing answers.
    pub fn pause(&mut self) {
        self.broker.signal("STOP");
        self.is_paused = true;
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&mut self) {
        self.broker.signal("CONT");
        self.is_paused = false;
    }

    /// Kills its process (SIGKILL), as a machine that loses its power; what was on disk stays.
    ///
    /// # Errors
    /// [`Error::Io`] if the process could not be waited for.
    ///
    /// # Cancel safety
    /// The process is killed all the same.
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.is_paused = false;
        self.broker.kill().await
    }

    /// Asks its process to shut down (SIGTERM), and kills it after `grace`; its data stay.
    ///
    /// # Errors
    /// [`Error::Io`] if the process could not be waited for.
    ///
    /// # Cancel safety
    /// A dropped future leaves a process that is shutting down.
    pub async fn shut_down(&mut self, grace: Duration) -> Result<(), Error> {
        self.resume();
        self.broker.end(grace).await
    }

    pub(super) fn new(broker: Broker, ports: Ports) -> Self {
        Self { broker, ports, is_paused: false }
    }

    /// Waits until every listener accepts and Metadata lists a broker.
    pub(super) async fn wait(&mut self, builder: &KafkaBuilder) -> Result<(), Error> {
        let address = self.listener(Listener::Plaintext);
        let mut seen = "it never accepted a connection".to_owned();
        let answered = tokio::time::timeout(builder.start_timeout, async {
            loop {
                if let Ok(Some(status)) = self.broker.ended() {
                    return Err(format!("the process ended with {status}"));
                }
                match probe(&address).await {
                    Ok(probe) if probe.brokers.is_empty() => {
                        seen = "its metadata lists no broker yet".to_owned()
                    }
                    Ok(_) if self.all_listen(builder) => return Ok(()),
                    Ok(_) => seen = "a listener does not accept connections yet".to_owned(),
                    Err(error) => seen = format!("{address}: {error}"),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        let reason = match answered.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {:?}: {seen}", builder.start_timeout),
        };
        Err(Error::Start { version: builder.version.clone(), reason, log: self.broker.log_tail() })
    }

    /// Blocking connects, on loopback only, to ports that answer or refuse at once. A user who has replaced
    /// the listeners knows better which there are.
    fn all_listen(&self, builder: &KafkaBuilder) -> bool {
        builder.properties.contains_key("listeners")
            || [self.ports.sasl_plaintext, self.ports.ssl, self.ports.sasl_ssl]
                .iter()
                .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok())
    }
}

impl Plan<'_> {
    /// Makes the folder of a node, formats it, and starts its process.
    pub(super) async fn start_node(&self, id: usize, ports: Ports) -> Result<Node, Error> {
        let builder = self.builder;
        let guard = Folder::create(&builder.version, builder.keep_data)?;
        let data = guard.path.join("data");
        let (bind, data_dir) = match self.route {
            Route::Jvm { .. } => ("127.0.0.1", data.to_string_lossy().into_owned()),
            Route::Docker { .. } => ("0.0.0.0", "/tmp/dtkafka-data".to_owned()),
        };
        let text = properties::render(&properties::Node {
            id,
            ports,
            voters: &self.voters,
            mode: Mode::of(&builder.version),
            bind,
            data_dir: &data_dir,
            certificates: self.certificates,
            users: &builder.users,
            overrides: &builder.properties,
        });
        let file = guard.path.join("server.properties");
        fs::write(&file, &text).map_err(|e| Error::io("write", &file, e))?;
        let (command, container) = match self.route {
            Route::Jvm { java } => (self.jvm(java, &file).await?, None),
            Route::Docker { docker } => {
                let name = format!("dtkafka-{:016x}", random());
                (self.container(docker, &name, ports, &text), Some((docker.clone(), name)))
            }
        };
        let broker = Broker::spawn(command, guard.release(), builder.keep_data, container)?;
        Ok(Node::new(broker, ports))
    }

    /// A ZooKeeper for versions that need one, and the SCRAM users in it.
    pub(super) async fn start_zookeeper(&self) -> Result<Option<Broker>, Error> {
        let (Mode::ZooKeeper, Some((_, ports))) = (Mode::of(&self.builder.version), self.voters.first())
        else {
            return Ok(None);
        };
        let Route::Jvm { java } = self.route else {
            let text = format!("Kafka {} needs a ZooKeeper, and so java and mvn", self.builder.version);
            return Err(Error::Missing(text));
        };
        let libs = jars::resolve(&self.builder.version).await?.join("*");
        let guard = Folder::create("zookeeper", false)?;
        let file = guard.path.join("zookeeper.properties");
        let text = properties::render_zookeeper(ports.controller, &guard.path.join("data").to_string_lossy());
        fs::write(&file, text).map_err(|e| Error::io("write", &file, e))?;
        let mut command = Command::new(java);
        command.args(["-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(&libs);
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
        let zookeeper = Broker::spawn(command, guard.release(), false, None)?;
        self.make_scram_users(java, &libs, ports.controller).await?;
        Ok(Some(zookeeper))
    }

    /// Before KIP-900, `ConfigCommand` writes them; it waits for ZooKeeper by itself.
    async fn make_scram_users(&self, java: &Path, libs: &Path, port: u16) -> Result<(), Error> {
        for (name, password) in &self.builder.users {
            let mut command = tokio::process::Command::new(java);
            command.args(["-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(libs);
            command.args(["kafka.admin.ConfigCommand", "--zookeeper", &format!("127.0.0.1:{port}")]);
            let credentials =
                format!("SCRAM-SHA-256=[password={password}],SCRAM-SHA-512=[password={password}]");
            command.args([
                "--alter",
                "--add-config",
                &credentials,
                "--entity-type",
                "users",
                "--entity-name",
                name,
            ]);
            command.stdin(Stdio::null());
            run(command, "kafka.admin.ConfigCommand", FORMAT_DEADLINE).await?;
        }
        Ok(())
    }

    /// Resolves, formats, and returns the command of the broker itself.
    async fn jvm(&self, java: &Path, file: &Path) -> Result<Command, Error> {
        let builder = self.builder;
        let libs = jars::resolve(&builder.version).await?.join("*");
        if Mode::of(&builder.version) == Mode::KRaft {
            let mut format = tokio::process::Command::new(java);
            format.args(["-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(&libs);
            format.args(["kafka.tools.StorageTool", "format", "-t", &self.cluster_id, "-c"]).arg(file);
            format.args(properties::scram_arguments(&builder.version, &builder.users)).stdin(Stdio::null());
            run(format, "kafka.tools.StorageTool format", FORMAT_DEADLINE).await?;
        }
        let mut command = Command::new(java);
        command.arg(format!("-Xmx{}", builder.heap)).arg("-XX:+UseG1GC");
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]).arg(&libs);
        command.arg("kafka.Kafka").arg(file);
        Ok(command)
    }

    /// The same properties in the `apache/kafka` image, handed over in the environment: nothing is mounted.
    fn container(&self, docker: &Path, name: &str, ports: Ports, properties: &str) -> Command {
        let mut script = "printf '%s' \"$DTKAFKA_PROPERTIES\" > /tmp/server.properties && \
            /opt/kafka/bin/kafka-storage.sh format -t \"$DTKAFKA_CLUSTER_ID\" -c /tmp/server.properties"
            .to_owned();
        for argument in properties::scram_arguments(&self.builder.version, &self.builder.users) {
            script.push_str(&format!(" '{}'", argument.replace('\'', "'\\''")));
        }
        script.push_str(" && exec /opt/kafka/bin/kafka-server-start.sh /tmp/server.properties");
        let mut command = Command::new(docker);
        command.args(["run", "--rm", "--name", name]);
        for port in [ports.plaintext, ports.sasl_plaintext, ports.ssl, ports.sasl_ssl] {
            command.args(["-p", &format!("127.0.0.1:{port}:{port}")]);
        }
        command.args(["-e", "DTKAFKA_PROPERTIES", "-e", "DTKAFKA_CLUSTER_ID", "-e"]);
        command.arg(format!("KAFKA_HEAP_OPTS=-Xmx{}", self.builder.heap));
        command.args([
            "--entrypoint",
            "sh",
            &format!("apache/kafka:{}", self.builder.version),
            "-c",
            &script,
        ]);
        command.env("DTKAFKA_PROPERTIES", properties).env("DTKAFKA_CLUSTER_ID", &self.cluster_id);
        command
    }
}

/// Removes the folder of a start that failed before a [`Broker`] owned it.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn create(name: &str, keep: bool) -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("dtkafka-kafka-{name}-{:016x}", random()));
        fs::create_dir_all(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path, keep })
    }

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
