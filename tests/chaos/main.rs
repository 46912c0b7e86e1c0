//! Three real brokers, one after the other killed, paused or restarted, while producers of every codec send and a group
//! of members that come and go, die, freeze and block reads: nothing lost, doubled, reordered, skipped or invented, no
//! commit goes back in the log of the coordinators, and handled again is only what was not committed when its partition was
//! given to another.
//!
//! `DTKAFKA_CHAOS_SECONDS` is how long faults are injected (default 20; 0 leaves the test out) and `DTKAFKA_CHAOS_FAULTS`
//! how many faults it has at least (default 0), `DTKAFKA_CHAOS_SEED` its seed, `DTKAFKA_CHAOS_RATE` the records of each of the
//! five producers in a second (default 600), `DTKAFKA_CHAOS_GROUP` the members' protocol: `eager` (default), `cooperative` or
//! `consumer` (KIP-848), or `none` for producers alone.
//! `DTKAFKA_CHAOS_BESIDE` is the command of a program that runs beside, such as `benches/peers/java/Churn.java`.
//! It needs what real Kafka needs; see `tests/run`.

#![allow(missing_docs, reason = "the names of tests are sentences")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and spawn, and so may what its tests share"
)]

mod blocks;
mod clients;
mod faults;
mod judge;
mod members;
mod owners;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dtkafka::{KafkaAdmin, KafkaConfig, KafkaInstance, NewTopic};
use dtkafka_testcontainers::{Listener, launch::Kafka};

use crate::{
    clients::{World, ends, producer, read_all, read_commits, watch_commits},
    faults::{Dice, in_sync, inject_faults},
    members::{POLL_INTERVAL, churn},
};

const GROUP: &str = "chaos";
const TOPICS: [&str; 3] = ["chaos-a", "chaos-b", "chaos-c"];
const PARTITIONS: u16 = 6;
/// Records of each producer in a second, unless `DTKAFKA_CHAOS_RATE` says otherwise.
const RATE: u64 = 600;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The protocol of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Eager,
    Cooperative,
    /// KIP-848.
    Consumer,
    /// Producers alone.
    None,
}

impl Group {
    fn of_environment() -> Self {
        match env::var("DTKAFKA_CHAOS_GROUP").as_deref() {
            Ok("eager") | Err(_) => Self::Eager,
            Ok("cooperative") => Self::Cooperative,
            Ok("consumer") => Self::Consumer,
            Ok("none") => Self::None,
            Ok(other) => panic!("DTKAFKA_CHAOS_GROUP is eager, cooperative, consumer or none, not {other}"),
        }
    }
}

/// Half of the clients go through TLS and SCRAM.
fn config(kafka: &Kafka, secure: bool) -> KafkaConfig {
    let config = KafkaConfig::new()
        .set_group_id(GROUP)
        .set_auto_offset_reset("earliest")
        .set("request.timeout.ms", 5000)
        .set("max.poll.interval.ms", POLL_INTERVAL.as_millis() as u64);
    let classic = config.clone().set("session.timeout.ms", 6000).set("heartbeat.interval.ms", 500);
    let config = match Group::of_environment() {
        Group::Eager | Group::None => classic,
        Group::Cooperative => classic.set("partition.assignment.strategy", "cooperative-sticky"),
        // The broker keeps the times of these groups.
        Group::Consumer => config.set("group.protocol", "consumer"),
    };
    if !secure {
        return config.set_bootstrap_servers(kafka.bootstrap_servers());
    }
    config
        .set_bootstrap_servers(kafka.listener(Listener::SaslSsl))
        .set_security_protocol("SASL_SSL")
        .set_sasl_mechanism("SCRAM-SHA-512")
        .set_sasl_plain_username("alice")
        .set_sasl_plain_password("alice-secret")
        .set("ssl.truststore.certificates", kafka.certificates().ca_pem())
        .set("ssl.truststore.type", "PEM")
}

#[test]
fn nothing_is_lost_doubled_reordered_or_skipped_while_brokers_come_and_go() {
    let seconds = number("DTKAFKA_CHAOS_SECONDS").unwrap_or(20);
    let Some(builder) = Kafka::for_tests().unwrap().filter(|_| seconds > 0) else { return };
    let warnings = count_warnings();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run(builder, Duration::from_secs(seconds), &warnings));
}

async fn run(
    builder: dtkafka_testcontainers::launch::KafkaBuilder,
    length: Duration,
    warnings: &AtomicUsize,
) {
    let seed = number("DTKAFKA_CHAOS_SEED").unwrap_or_else(|| {
        // Other faults each time.
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        time.subsec_nanos().into()
    });
    eprintln!("chaos: DTKAFKA_CHAOS_SEED={seed}");
    let mut dice = Dice(seed);
    let mut kafka = builder
        .nodes(3)
        .heap("384m")
        .property("default.replication.factor", "3")
        .property("min.insync.replicas", "2")
        .property("group.min.session.timeout.ms", "1000")
        .property("group.consumer.session.timeout.ms", "6000")
        .property("group.consumer.min.session.timeout.ms", "1000")
        .property("group.consumer.heartbeat.interval.ms", "500")
        .property("group.consumer.min.heartbeat.interval.ms", "500")
        .start()
        .await
        .unwrap();
    let topics = TOPICS.map(str::to_owned).to_vec();
    let instance = KafkaInstance::new(config(&kafka, false)).unwrap();
    let admin = instance.admin().await.unwrap();
    for topic in &topics {
        admin
            .create_topic(NewTopic::new(topic).partitions(PARTITIONS.into()).replication_factor(3))
            .await
            .unwrap();
    }
    in_sync(&admin, &topics).await;

    let world = World::new(topics.clone(), PARTITIONS);
    let rate = number("DTKAFKA_CHAOS_RATE").unwrap_or(RATE);
    let mut producers = Vec::new();
    for (number, codec) in (0..).zip(CODECS) {
        let config = config(&kafka, number % 2 == 1).set("compression.type", codec);
        producers.push(tokio::spawn(producer(Arc::clone(&world), config, number, rate)));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let watching =
        tokio::spawn(watch_commits(Arc::clone(&world), admin.clone(), GROUP.to_owned(), Arc::clone(&stop)));
    let group = Group::of_environment();
    let members = (group != Group::None).then(|| {
        let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
        let configs = [config(&kafka, false), config(&kafka, true)];
        let dice = Dice(seed ^ 1);
        std::thread::spawn(move || churn(&world, &configs, dice, &stop))
    });

    let beside = beside(&kafka, length);
    let from = world.now();
    let least = number("DTKAFKA_CHAOS_FAULTS").map_or(0, |least| usize::try_from(least).unwrap());
    let end = Instant::now() + length;
    let faults = inject_faults(&mut kafka, &admin, &topics, &mut dice, end, least, |sleeps| {
        world.blocks().broker_sleeps(world.now(), sleeps);
    })
    .await;
    let calm = world.now();
    world.sending.store(false, Ordering::Relaxed);
    for producer in producers {
        producer.await.unwrap();
    }
    let caught_up = match group {
        Group::None => Some(calm),
        _ => caught_up(&world, &instance, &admin).await,
    };
    let without = world.owners().share_without(from, calm);
    stop.store(true, Ordering::Relaxed);
    let lives = tokio::task::spawn_blocking(|| members.map(|members| members.join().unwrap())).await.unwrap();
    watching.await.unwrap();
    let count = read_all(&world, &instance).await;
    read_commits(&world, &instance, &admin, GROUP).await;
    if let Some(mut beside) = beside {
        tokio::task::spawn_blocking(move || beside.wait()).await.unwrap().unwrap();
    }
    kafka.stop().await.unwrap();

    let judge = world.judge();
    let Some(caught_up) = caught_up.map(|at| at - calm) else {
        panic!("the group is not at the end of the log: {:?}\n{:#?}", judge.frontier(), judge.violations);
    };
    let owners = world.owners();
    let per_second = count.in_log as f64 / (calm - from).as_secs_f64();
    eprintln!("chaos: {faults:?} over {length:?}, {lives:?}");
    eprintln!(
        "chaos: {count:?}, {per_second:.0}/s, handled {} and again {}",
        judge.handled, judge.handled_again
    );
    eprintln!(
        "chaos: {group:?}: a partition has no owner for {:.2} % of the time; {} moved, {} given up and given back",
        without * 100.0,
        owners.moved,
        owners.given_back
    );
    let blocks = world.blocks();
    eprintln!(
        "chaos: {} members blocked and kept what they had, {} did not as a broker had slept",
        blocks.kept, blocks.excused
    );
    eprintln!("chaos: lag 0 {caught_up:?} after the calm, {} warnings", warnings.load(Ordering::Relaxed));
    let shown: Vec<&String> = judge.violations.iter().take(20).collect();
    assert!(shown.is_empty(), "seed {seed}: {} violations, the first: {shown:#?}", judge.violations.len());
    // What does not move is not taken away. It comes back only where the member is gone that it was taken away for.
    assert!(
        group == Group::Eager || owners.given_back * 4 <= owners.moved,
        "seed {seed}: {} partitions were taken away for nothing, {} moved",
        owners.given_back,
        owners.moved
    );
}

fn beside(kafka: &Kafka, length: Duration) -> Option<std::process::Child> {
    let command = env::var("DTKAFKA_CHAOS_BESIDE").ok()?;
    let mut words = command.split_whitespace();
    let mut program = std::process::Command::new(words.next()?);
    program.args(words).arg("--brokers").arg(kafka.bootstrap_servers());
    program.args(["--topics", &TOPICS.join(","), "--seconds", &length.as_secs().to_string()]);
    Some(program.spawn().unwrap())
}

/// When the group had committed everything; `None` if it never came there.
async fn caught_up(world: &World, instance: &KafkaInstance, admin: &KafkaAdmin) -> Option<Duration> {
    let ends = ends(world, instance).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Ok(offsets) = admin.group_offsets(GROUP).await {
            let at = |partition| offsets.get(partition).map_or(0, |offset| offset.offset);
            if ends.iter().all(|(partition, end)| at(partition) == *end) {
                return Some(world.now());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

/// Counts the WARN and ERROR lines of the clients, and prints them where `DTKAFKA_CHAOS_LOG` is set.
fn count_warnings() -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let lines = Arc::clone(&count);
    let shown = env::var_os("DTKAFKA_CHAOS_LOG").is_some();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || Lines { count: Arc::clone(&lines), shown })
        .init();
    count
}

struct Lines {
    count: Arc<AtomicUsize>,
    shown: bool,
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.count.fetch_add(bytes.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
        if self.shown { std::io::stderr().write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
