//! Clients that are not ours against the embedded broker: kafka-python from PyPI, in a virtual environment that is
//! kept in a cache folder (`DTKAFKA_TEST_CACHE`, or the build's target folder).
//!
//! Without python3 or without a way to PyPI the test says that it was skipped; with `DTKAFKA_REQUIRE_FOREIGN=1` it
//! fails instead.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dtkafka_testcontainers::broker::{ApiKey, EmbeddedBroker, Listener};
use tokio::process::Command;

const PACKAGE: &str = "kafka-python==3.0.12";

#[tokio::test(flavor = "current_thread")]
async fn kafka_python_produces_and_consumes_through_a_group() {
    let python = match environment().await {
        Ok(python) => python,
        Err(why) if std::env::var("DTKAFKA_REQUIRE_FOREIGN").as_deref() == Ok("1") => {
            panic!("DTKAFKA_REQUIRE_FOREIGN=1, but {PACKAGE} cannot be had: {why}")
        }
        Err(why) => {
            println!("SKIPPED kafka_python_produces_and_consumes_through_a_group: {why}");
            return;
        }
    };
    let broker = EmbeddedBroker::builder().user("alice", "alice-secret").start().await.unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka_python_client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(broker.bootstrap_servers()).arg(broker.listener(Listener::SaslPlaintext));
    command.args(["alice", "alice-secret"]);
    let output = run(command, Duration::from_secs(120)).await.unwrap();
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
        assert!(records.iter().all(|r| r.headers.len() == 1 && r.key.is_some()));
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

/// The interpreter of an environment with kafka-python in it.
async fn environment() -> Result<PathBuf, String> {
    let cache = std::env::var_os("DTKAFKA_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(), PathBuf::from);
    let folder = cache.join("kafka-python-3.0.12");
    let python = folder.join("bin/python");
    let probe = || {
        let mut command = Command::new(&python);
        command.args(["-c", "import kafka; assert kafka.__version__ == '3.0.12'"]);
        command
    };
    if python.exists() && run(probe(), Duration::from_secs(30)).await.is_ok() {
        return Ok(python);
    }
    let mut command = Command::new("python3");
    command.args(["-m", "venv"]).arg(&folder);
    run(command, Duration::from_secs(120)).await?;
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]);
    run(command, Duration::from_secs(180)).await?;
    run(probe(), Duration::from_secs(30)).await?;
    Ok(python)
}

/// Runs a command to its end and returns what it printed.
async fn run(mut command: Command, limit: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let named = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| format!("{named} took longer than {limit:?}"))?
        .map_err(|error| format!("{named}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{named}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
