//! Members of a group that are not ours: Java's client, franz-go, kafka-python and librdkafka as programs, and one by
//! hand that speaks the oldest bytes.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use dtkafka_testcontainers::launch::Kafka;

/// The packages of the programs in Python.
const PYTHON_PACKAGES: [&str; 2] = ["kafka-python==3.0.12", "confluent-kafka==2.16.1"];

/// The assignor of the broker, in the consumer protocol (KIP-848).
pub(crate) const BY_BROKER: &str = "uniform";

/// A client of other authors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    Java,
    FranzGo,
    KafkaPython,
    Librdkafka,
}

impl Library {
    pub(crate) const ALL: [Self; 4] = [Self::Java, Self::FranzGo, Self::KafkaPython, Self::Librdkafka];

    pub(crate) fn knows(self, assignor: &str) -> bool {
        match self {
            // Of these programs Java's alone speaks the consumer protocol (KIP-848).
            Self::Java => true,
            Self::Librdkafka => assignor != "sticky" && assignor != BY_BROKER,
            Self::FranzGo | Self::KafkaPython => assignor != BY_BROKER,
        }
    }
}

/// The programs, built.
pub(crate) struct Programs {
    class_path: String,
    /// `None` without a Go toolchain: franz-go is left out then.
    go: Option<PathBuf>,
    python: PathBuf,
}

impl Programs {
    /// Builds them with the machine's tools, once: later runs find them in the target folder.
    ///
    /// # Errors
    /// What is missing or failed.
    pub(crate) async fn build(kafka: &Kafka) -> Result<Self, String> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mixed");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mixed");
        let jars = kafka.jars().await.map_err(|error| error.to_string())?.join("*");
        let (classes, go) = (target.join("java"), target.join("franz-go"));
        let javac = Command::new("javac")
            .args(["-cp", &jars.to_string_lossy(), "-d"])
            .arg(&classes)
            .arg(sources.join("Member.java"))
            .status();
        succeeded("javac", javac)?;
        let has_go = Command::new("go").arg("version").stdout(Stdio::null()).status().is_ok();
        let go = if has_go {
            let built = Command::new("go")
                .args(["build", "-o"])
                .arg(&go)
                .arg(".")
                .current_dir(sources.join("go"))
                .status();
            succeeded("go build", built)?;
            Some(go)
        } else {
            eprintln!("SKIPPED: franz-go: no Go toolchain");
            None
        };
        let venv = target.join("python");
        let python = venv.join("bin/python");
        let probe = ["-c", "import kafka, confluent_kafka"];
        let there =
            Command::new(&python).args(probe).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        if !there {
            succeeded("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&venv).status())?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            succeeded("pip", Command::new(&python).args(pip).args(PYTHON_PACKAGES).status())?;
        }
        let separator = if cfg!(windows) { ";" } else { ":" };
        let class_path = format!("{}{separator}{}", jars.to_string_lossy(), classes.to_string_lossy());
        Ok(Self { class_path, go, python })
    }

    pub(crate) fn has(&self, library: Library) -> bool {
        library != Library::FranzGo || self.go.is_some()
    }

    pub(crate) fn start(
        &self,
        library: Library,
        servers: &str,
        group: &str,
        assignor: &str,
        topics: &[String],
    ) -> Member {
        let mut command = match library {
            Library::Java => {
                let mut java = Command::new("java");
                java.args(["-Xmx96m", "-XX:+UseSerialGC", "-cp", &self.class_path, "Member"]);
                java
            }
            Library::FranzGo => Command::new(self.go.as_deref().unwrap()),
            Library::KafkaPython | Library::Librdkafka => {
                let mut python = Command::new(&self.python);
                python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mixed/member.py"));
                python.arg(if library == Library::KafkaPython { "kafka-python" } else { "librdkafka" });
                python
            }
        };
        command.args([servers, group, assignor]).args(topics);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        if env::var_os("DTKAFKA_MIXED_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        Member(command.spawn().unwrap())
    }
}

fn succeeded(what: &str, status: std::io::Result<std::process::ExitStatus>) -> Result<(), String> {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what}: {status}")),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

/// A running member; it is killed when dropped.
pub(crate) struct Member(Child);

impl Member {
    /// Lets it leave the group, and waits for its end, blocking.
    pub(crate) fn leave(mut self) {
        let mut input = self.0.stdin.take().unwrap();
        input.write_all(b"\n").unwrap();
        drop(input);
        self.0.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
