//! Clients that are not ours against the embedded broker: Apache Kafka's own (Java), librdkafka (confluent-kafka from
//! PyPI), franz-go and kafka-python. What they need is kept in a cache folder (`DTKAFKA_TEST_CACHE`, or the build's
//! target folder).
//!
//! Without javac and mvn, python3, go, or a way to their registries, a test says that it was skipped and why; with
//! `DTKAFKA_REQUIRE_FOREIGN=1` it fails instead, all but the one that needs Go.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dtkafka_testcontainers::broker::{ApiKey, EmbeddedBroker, Listener};
use dtkafka_testcontainers::note_backend;
use tokio::process::Command;

const KAFKA_PYTHON: &str = "kafka-python==3.0.12";
const CONFLUENT_KAFKA: &str = "confluent-kafka==2.16.1";
const KAFKA_CLIENTS: &str = "4.3.1";

/// A program may take so long on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(170);
/// Fetching and building what it needs, once.
const SET_UP: Duration = Duration::from_secs(400);

#[tokio::test(flavor = "current_thread")]
async fn apache_kafkas_own_client_does_its_ordinary_work() {
    let Some(libraries) = have("Apache Kafka's client", jars().await) else { return };
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-cp"]).arg(libraries.join("*")).arg(sources("JavaClient.java"));
    let (broker, told) = drive("java", command).await;
    assert_eq!((&*told["retention"], &*told["partitions"], &*told["earliest"]), ("3600000", "3", "5"));
    assert_eq!(
        (&*told["types"], &*told["tx-state"], &*told["tx-offset"]),
        ("Classic,Consumer", "CompleteAbort", "3")
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "current_thread")]
async fn librdkafka_does_its_ordinary_work() {
    let made = python(CONFLUENT_KAFKA, "import confluent_kafka").await;
    let Some(python) = have("librdkafka (confluent-kafka)", made) else { return };
    let mut command = Command::new(python);
    command.arg(sources("confluent_client.py"));
    let (broker, told) = drive("librdkafka", command).await;
    assert_eq!((&*told["partitions"], &*told["tx-offset"]), ("3", "3"));
    broker.shutdown().await;
}

#[tokio::test(flavor = "current_thread")]
async fn franz_go_does_its_ordinary_work() {
    // Go is not everywhere: without it this one is left out, and named, even where the others are required.
    let made = go().await;
    if let Err(why) = &made {
        println!("SKIPPED franz-go: {why}");
        note_backend(&format!("SKIPPED franz-go: {}", why.lines().next().unwrap_or_default()));
        return;
    }
    let Some(program) = have("franz-go", made) else { return };
    let (broker, told) = drive("franz-go", Command::new(program)).await;
    assert_eq!(told["partitions"], "3");
    broker.shutdown().await;
}

/// Runs a program that prints `name=value` lines against a broker of three, and checks what all of them do.
async fn drive(topic: &str, mut command: Command) -> (EmbeddedBroker, BTreeMap<String, String>) {
    let broker = EmbeddedBroker::builder()
        .brokers(3)
        .consumer_group_times(Duration::from_secs(45), Duration::from_millis(500))
        .start()
        .await
        .unwrap();
    command.arg(broker.bootstrap_servers());
    let output = run(command, LIMIT).await.unwrap();
    let told: BTreeMap<String, String> = output
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    assert_eq!(told.get("done").map(String::as_str), Some("1"), "{output}");
    assert_eq!((&*told["produced"], &*told["committed"]), ("500", "20"), "{output}");
    for name in ["classic", "kip848"] {
        assert_eq!(told[name], "500", "{name}");
    }
    assert!(broker.control().requests(ApiKey::ConsumerGroupHeartbeat) > 0, "KIP-848 was spoken");
    let count = |topic: &str, partitions: i32| {
        let of = |p| broker.records(topic, p).unwrap();
        (0..partitions).flat_map(of).filter(|r| r.producer_id >= 0).count()
    };
    // The Java program deletes five.
    assert!(count(topic, 4) >= 495, "every codec was read by another library, and every record is stamped");
    let transactional = format!("{topic}-tx");
    assert_eq!(count(&transactional, 2), 40);
    let committed = |p| broker.committed_records(&transactional, p).unwrap().len();
    assert_eq!(committed(0) + committed(1), 20);
    (broker, told)
}

#[tokio::test(flavor = "current_thread")]
async fn kafka_python_produces_and_consumes_through_a_group() {
    let made = python(KAFKA_PYTHON, "import kafka; assert kafka.__version__ == '3.0.12'").await;
    let Some(python) = have("kafka-python", made) else { return };
    let broker = EmbeddedBroker::builder().user("alice", "alice-secret").start().await.unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka_python_client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(broker.bootstrap_servers()).arg(broker.listener(Listener::SaslPlaintext));
    command.args(["alice", "alice-secret"]);
    let output = run(command, LIMIT).await.unwrap();
    let line = output.lines().last().unwrap_or_default();

    // The script's line is JSON of flat lists: enough is checked without a JSON parser.
    let first = numbers(line, "first");
    let second = numbers(line, "second");
    assert_eq!(first.len(), 120, "{line}");
    assert_eq!(second.len(), 80, "{line}");
    let mut all: Vec<i64> = first.into_iter().chain(second).collect();
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>(), "every record once: the second consumer resumed");
    assert_eq!(numbers(line, "third"), [0; 0], "{line}");
    let mut sasl = numbers(line, "sasl");
    sasl.sort_unstable();
    assert_eq!(sasl, (200..220).collect::<Vec<_>>(), "{line}");

    for partition in 0..2 {
        let records = broker.records("foreign", partition).unwrap();
        assert_eq!(records.len(), 110);
        assert!(records.iter().all(|r| r.header("h") == Some(b"1") && r.key.is_some()));
        assert_eq!(broker.committed("foreign-group", "foreign", partition), Some(110));
    }
    for api in [ApiKey::JoinGroup, ApiKey::SyncGroup, ApiKey::OffsetCommit, ApiKey::LeaveGroup, ApiKey::Fetch]
    {
        assert!(broker.control().requests(api) > 0, "{api:?} was never asked");
    }
    broker.shutdown().await;
}

/// The numbers of `"name": [1, 2, …]` in the line.
fn numbers(line: &str, name: &str) -> Vec<i64> {
    let start = line.find(&format!("\"{name}\": [")).unwrap_or_else(|| panic!("no {name} in {line}"));
    let list = &line[start + name.len() + 5..];
    let list = &list[..list.find(']').unwrap()];
    list.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

/// What a client needs, or `None` once it is said that it is missing.
fn have(client: &str, made: Result<PathBuf, String>) -> Option<PathBuf> {
    match made {
        Ok(made) => {
            note_backend(&format!("embedded broker with {client}"));
            Some(made)
        }
        Err(why) if std::env::var("DTKAFKA_REQUIRE_FOREIGN").as_deref() == Ok("1") => {
            panic!("DTKAFKA_REQUIRE_FOREIGN=1, but {client} cannot be had: {why}")
        }
        Err(why) => {
            println!("SKIPPED {client}: {why}");
            note_backend(&format!("SKIPPED {client}: {why}"));
            None
        }
    }
}

fn sources(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

fn cache() -> PathBuf {
    let target = || Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    std::env::var_os("DTKAFKA_TEST_CACHE").map_or_else(target, PathBuf::from)
}

/// The interpreter of an environment with a package of PyPI in it.
async fn python(package: &str, check: &str) -> Result<PathBuf, String> {
    let folder = cache().join(package.replace("==", "-"));
    let python = folder.join("bin/python");
    let probe = || {
        let mut command = Command::new(&python);
        command.args(["-c", check]);
        command
    };
    if python.exists() && run(probe(), LIMIT).await.is_ok() {
        return Ok(python);
    }
    let mut command = Command::new("python3");
    command.args(["-m", "venv"]).arg(&folder);
    run(command, SET_UP).await?;
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]);
    run(command, SET_UP).await?;
    run(probe(), LIMIT).await?;
    Ok(python)
}

/// A folder with kafka-clients and what it needs, from Maven Central.
async fn jars() -> Result<PathBuf, String> {
    // The program is run from its source, which a runtime without a compiler cannot.
    let mut compiler = Command::new("javac");
    compiler.arg("-version");
    run(compiler, LIMIT).await?;
    let folder = cache().join(format!("kafka-clients-{KAFKA_CLIENTS}"));
    let libraries = folder.join("libs");
    if folder.join("complete").exists() {
        return Ok(libraries);
    }
    std::fs::create_dir_all(&libraries).map_err(|error| error.to_string())?;
    let dependency = |group: &str, name: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        )
    };
    let pom = format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>t</groupId><artifactId>t</artifactId><version>1</version>\
         <packaging>pom</packaging><dependencies>{}{}</dependencies></project>",
        dependency("org.apache.kafka", "kafka-clients", KAFKA_CLIENTS),
        dependency("org.slf4j", "slf4j-nop", "1.7.36"),
    );
    std::fs::write(folder.join("pom.xml"), pom).map_err(|error| error.to_string())?;
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"]).current_dir(&folder);
    run(command, SET_UP).await?;
    std::fs::write(folder.join("complete"), "").map_err(|error| error.to_string())?;
    Ok(libraries)
}

/// The program with franz-go in it.
async fn go() -> Result<PathBuf, String> {
    let program = cache().join("franz-go-client");
    let mut command = Command::new("go");
    command.args(["build", "-o"]).arg(&program).arg(".").current_dir(sources("franz-go"));
    run(command, SET_UP).await?;
    Ok(program)
}

/// Runs a command to its end and returns what it printed.
async fn run(mut command: Command, limit: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let named = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| format!("{named} took longer than {limit:?}"))?
        .map_err(|error| format!("{named}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(format!(
            "{named}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(text)
}
