//! A copy from topic to topic with `ExactlyOnce`, by a process that is killed again and again while its broker is killed and
//! restarted: what `read_committed` consumers see, ours and Java's, is each record once, in order per key; a copier that was
//! thought dead is fenced; no transaction stays open.
//!
//! `DTKAFKA_EXACTLY_ONCE_RECORDS` (default 20000; 0 leaves it out), `DTKAFKA_EXACTLY_ONCE_KILLS` (default 3) and
//! `DTKAFKA_EXACTLY_ONCE_RESTARTS` of the broker (default 1) say how much. `just exactly-once` is the long run. It needs what
//! real Kafka needs (see `tests/run`), and javac for Java's view, without which that is left out and named.

#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod judge;

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dtkafka::{
    ErrorKind, ExactlyOnce, IsolationLevel, KafkaAdmin, KafkaConfig, KafkaInstance, NewTopic, ProducerRecord,
    RecordRef, TopicPartition, Transaction,
};
use dtkafka_testcontainers::launch::Kafka;

use crate::judge::{Judge, Seen};

const GROUP: &str = "copiers";
const SOURCE: &str = "exactly-once-source";
const TARGET: &str = "exactly-once-target";
const PARTITIONS: i32 = 6;
const KEYS: u64 = 101;
const PATIENCE: Duration = Duration::from_secs(90);
/// How a copier ends that was fenced.
const FENCED: i32 = 33;

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The process that is killed: this test started again with `DTKAFKA_EXACTLY_ONCE_COPIER` set to the brokers.
#[test]
fn copier() {
    let Ok(servers) = env::var("DTKAFKA_EXACTLY_ONCE_COPIER") else { return };
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(servers)
        .set_auto_offset_reset("earliest")
        .set("session.timeout.ms", 6000)
        .set("heartbeat.interval.ms", 500);
    let config = match env::var("DTKAFKA_EXACTLY_ONCE_INSTANCE") {
        Ok(name) => config.set("group.instance.id", name),
        Err(_) => config,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ended = runtime.block_on(async {
        let kafka = KafkaInstance::new(config).unwrap();
        let copier = ExactlyOnce::new(&kafka, [SOURCE], GROUP).commit_records(500);
        let copier = match env::var("DTKAFKA_EXACTLY_ONCE_ID") {
            Ok(id) => copier.transactional_id(id),
            Err(_) => copier,
        };
        loop {
            let body = async |record: RecordRef<'_>, output: &Transaction<'_>| {
                let copy = ProducerRecord::new(TARGET)
                    .key(record.key().unwrap_or_default())
                    .value(record.value().unwrap_or_default());
                output.send_record(copy).await.map(drop)
            };
            match copier.clone().run(body).await {
                // No start without a broker, which may need longer than that on a busy machine.
                Err(error) if matches!(error.kind(), ErrorKind::Connect(_)) => {}
                ended => break ended,
            }
        }
    });
    eprintln!("copier: {ended:?}");
    std::process::exit(if ended.is_err_and(|error| error.is_fenced()) { FENCED } else { 1 });
}

/// How a copier is started.
#[derive(Debug, Clone, Copy)]
enum Life {
    /// As a static member, which takes over at once; its name makes the `transactional.id`.
    Static,
    /// As another member, under the same `transactional.id`.
    Dynamic,
}

fn start_copier(servers: &str, life: Life) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "copier", "--nocapture"]).stdout(Stdio::null());
    command.env("DTKAFKA_EXACTLY_ONCE_COPIER", servers);
    match life {
        Life::Static => command.env("DTKAFKA_EXACTLY_ONCE_INSTANCE", "one"),
        Life::Dynamic => command.env("DTKAFKA_EXACTLY_ONCE_ID", format!("{GROUP}-one")),
    };
    command.spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(sent.unwrap().success(), "kill -{name}");
}

#[test]
fn a_copy_is_exact_whoever_is_killed() {
    let records = number("DTKAFKA_EXACTLY_ONCE_RECORDS", 20_000);
    let Some(builder) = Kafka::for_tests().unwrap().filter(|_| records > 0) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run(builder, records));
}

async fn run(builder: dtkafka_testcontainers::launch::KafkaBuilder, records: u64) {
    let kills = number("DTKAFKA_EXACTLY_ONCE_KILLS", 3);
    let restarts = number("DTKAFKA_EXACTLY_ONCE_RESTARTS", 1);
    let started = Instant::now();
    let mut broker =
        builder.heap("512m").property("group.min.session.timeout.ms", "1000").start().await.unwrap();
    let servers = broker.bootstrap_servers();
    let kafka = KafkaInstance::new(KafkaConfig::new().set_bootstrap_servers(&servers)).unwrap();
    let admin = kafka.admin().await.unwrap();
    for topic in [SOURCE, TARGET] {
        admin.create_topic(NewTopic::new(topic).partitions(PARTITIONS)).await.unwrap();
    }
    fill(&kafka, records).await;
    let begin = Instant::now();
    eprintln!(
        "exactly once: {records} records, {kills} kills, {restarts} restarts; ready after {:?}",
        started.elapsed()
    );

    let mut copier = start_copier(&servers, Life::Static);
    let mut restarted = 0;
    let mut pauses = 0;
    for kill in 1..=kills {
        // Spread over the copy, and at another place of a transaction each time.
        progressed(&admin, &mut copier, records * kill / (kills + 1)).await;
        pauses = (pauses * 31 + 17) % 97;
        tokio::time::sleep(Duration::from_millis(pauses)).await;
        copier.kill().unwrap();
        copier.wait().unwrap();
        eprintln!(
            "exactly once: {:?}: copier {kill} is killed at {}",
            begin.elapsed(),
            committed(&admin).await
        );
        if restarted < restarts && kill * (restarts + 1) > restarted * kills {
            restarted += 1;
            let node = broker.node(0).unwrap();
            match restarted % 2 {
                1 => node.kill().await.unwrap(),
                _ => node.shut_down(Duration::from_secs(20)).await.unwrap(),
            }
            // The next copier starts while there is nobody.
            copier = start_copier(&servers, Life::Static);
            broker.restart(0).await.unwrap();
        } else {
            let life = if kill % 5 == 3 { Life::Dynamic } else { Life::Static };
            copier = start_copier(&servers, life);
        }
    }
    // One that only seems dead: its heir ends the transaction it has open, and when it wakes up it is told.
    copier.kill().unwrap();
    copier.wait().unwrap();
    let mut zombie = start_copier(&servers, Life::Dynamic);
    let at = committed(&admin).await;
    progressed(&admin, &mut zombie, (at + 1).min(records)).await;
    signal(&zombie, "STOP");
    let mut heir = start_copier(&servers, Life::Dynamic);
    progressed(&admin, &mut heir, records).await;
    let copied = begin.elapsed();
    eprintln!("exactly once: {copied:?}: all is copied, the zombie wakes up");
    signal(&zombie, "CONT");
    let mut records = records;
    let end = loop {
        // One that had nothing open is told by the first record it gets, and until it is a member again the heir may take them all.
        fill_one(&kafka, records).await;
        records += PARTITIONS as u64;
        progressed(&admin, &mut heir, records).await;
        match ended(&mut zombie, Duration::from_millis(500)).await {
            Some(end) => break end,
            None => assert!(begin.elapsed() < copied + PATIENCE, "the zombie was not fenced"),
        }
    };
    eprintln!("exactly once: the zombie ended with {end}");
    heir.kill().unwrap();
    heir.wait().unwrap();

    let mut judge = Judge::new(records);
    for (partition, key, value) in read(&kafka).await {
        judge.saw(Seen { partition, key, value });
    }
    judge.end("ours");
    nothing_is_open(&kafka).await;
    match java(&broker, &servers).await {
        Ok(printed) => {
            let (open, seen): (Vec<&str>, Vec<&str>) =
                printed.lines().partition(|line| line.starts_with("open"));
            assert!(open.is_empty(), "transactions stay open: {open:#?}");
            let mut judge = Judge::new(records);
            for line in seen {
                judge.saw(Seen::parse(line));
            }
            judge.end("java's");
        }
        Err(missing) => eprintln!("SKIPPED: Java's view: {missing}"),
    }
    assert_eq!(end, FENCED, "the zombie was not fenced");
    let version = broker.version().to_owned();
    broker.stop().await.unwrap();
    eprintln!(
        "exactly once: Kafka {version}: {records} records exact after {kills} kills and {restarted} restarts; copied in {copied:?}, all in {:?}",
        started.elapsed()
    );
}

async fn fill(kafka: &KafkaInstance, records: u64) {
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..records {
        let (key, value) = ((number % KEYS).to_string(), number.to_string());
        let partition = i32::try_from(number % KEYS).unwrap() % PARTITIONS;
        let record = ProducerRecord::new(SOURCE).key(&key).value(&value).partition(partition);
        drop(producer.send_record(record).await.unwrap());
    }
    producer.flush().await.unwrap();
    assert_eq!(producer.statistics().records, records);
    producer.close().await.unwrap();
}

/// One more in each partition, so that whoever thinks to own one has work.
async fn fill_one(kafka: &KafkaInstance, from: u64) {
    let producer = kafka.get_producer().await.unwrap();
    for partition in 0..PARTITIONS {
        // Keys of their own, one by partition.
        let (key, value) = (format!("last-{partition}"), (from + partition as u64).to_string());
        let record = ProducerRecord::new(SOURCE).key(&key).value(&value).partition(partition);
        producer.send_record(record).await.unwrap().await.unwrap();
    }
    producer.close().await.unwrap();
}

/// Records whose copies are committed; offsets of the source have no gaps.
async fn committed(admin: &KafkaAdmin) -> u64 {
    let offsets = admin.group_offsets(GROUP).await;
    offsets.map_or(0, |offsets| offsets.values().map(|at| u64::try_from(at.offset).unwrap_or(0)).sum())
}

/// Waits until so many are copied; the copier must not end before.
async fn progressed(admin: &KafkaAdmin, copier: &mut Child, wanted: u64) {
    let mut last = (committed(admin).await, Instant::now());
    loop {
        let now = committed(admin).await;
        if now >= wanted {
            return;
        }
        if now > last.0 {
            last = (now, Instant::now());
        }
        assert!(last.1.elapsed() < PATIENCE, "the copy stands at {now} of {wanted}");
        if let Some(status) = copier.try_wait().unwrap() {
            panic!("the copier ended by itself at {now} of {wanted}: {status}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The exit code; `None` if it goes on for so long.
async fn ended(child: &mut Child, within: Duration) -> Option<i32> {
    let begin = Instant::now();
    while begin.elapsed() < within {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

fn partitions(topic: &str) -> Vec<TopicPartition> {
    (0..PARTITIONS).map(|partition| TopicPartition::new(topic, partition)).collect()
}

/// Everything that is committed, as our consumer sees it.
async fn read(kafka: &KafkaInstance) -> Vec<(i32, String, u64)> {
    let consumer = kafka
        .get_consumer_with(Vec::<&str>::new(), |c| {
            c.set("isolation.level", IsolationLevel::ReadCommitted).enable_auto_commit(false)
        })
        .await
        .unwrap();
    let partitions = partitions(TARGET);
    consumer.assign(partitions.clone()).unwrap();
    consumer.seek_to_beginning(&partitions).unwrap();
    let ends = consumer.end_offsets(partitions.clone()).await.unwrap();
    let mut seen = Vec::new();
    let begin = Instant::now();
    loop {
        for record in consumer.poll(Duration::from_millis(200)).await.unwrap().records() {
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            seen.push((record.partition(), text(record.key()), text(record.value()).parse().unwrap()));
        }
        let mut left = 0;
        for (partition, end) in &ends {
            left += i64::from(consumer.position(partition).await.unwrap() < *end);
        }
        if left == 0 {
            break;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "the reader is stuck in {left} partitions: a transaction is open"
        );
    }
    consumer.close(Duration::from_secs(5)).await.unwrap();
    seen
}

/// Where a transaction is open, committed records end before the log does.
async fn nothing_is_open(kafka: &KafkaInstance) {
    let mut ends = Vec::new();
    for isolation in [IsolationLevel::ReadCommitted, IsolationLevel::ReadUncommitted] {
        let settings =
            |c: dtkafka::ConsumerConfig| c.set("isolation.level", isolation).enable_auto_commit(false);
        let consumer = kafka.get_consumer_with(Vec::<&str>::new(), settings).await.unwrap();
        ends.push(consumer.end_offsets(partitions(TARGET)).await.unwrap());
        consumer.close(Duration::from_secs(5)).await.unwrap();
    }
    assert_eq!(ends[0], ends[1], "a transaction is open");
}

/// What Java's clients see, or what is missing for that.
async fn java(broker: &Kafka, servers: &str) -> Result<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exactly_once/Judge.java");
    let classes = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exactly-once").join(broker.version());
    let jars = broker.jars().await.map_err(|error| error.to_string())?.join("*");
    let jars = jars.to_string_lossy();
    let compiled = Command::new("javac").args(["-cp", &jars, "-d"]).arg(&classes).arg(source).status();
    match compiled {
        Ok(status) if status.success() => {}
        other => return Err(format!("javac: {other:?}")),
    }
    let class_path = format!("{jars}:{}", classes.display());
    let told = Command::new("java")
        .args([
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
            "-cp",
            &class_path,
            "Judge",
            servers,
            SOURCE,
            TARGET,
        ])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("java: {error}"))?;
    assert!(told.status.success(), "Judge: {:?}", told.status);
    Ok(String::from_utf8(told.stdout).unwrap())
}
