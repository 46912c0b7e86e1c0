//! Handlers that fail, hang, panic, block their thread and meet what is no JSON, under each policy and ordering, while
//! members are killed and others come: each record is handled, skipped, or put aside with its bytes; order is kept where it is
//! promised; no commit passes a record that is not done.
//!
//! `DTKAFKA_STRESS` is the number of records of each round, 3,000 without it; `DTKAFKA_STRESS_KAFKA` the version of Apache
//! Kafka whose three brokers take the place of the embedded ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use dtkafka::{
    Consumer, ConsumerConfig, ConsumerHandle, ErrorPolicy, KafkaAdmin, KafkaConfig, KafkaInstance, Message,
    NewTopic, Ordering, ProducerRecord, TopicPartition,
};
use dtkafka_testcontainers::{EmbeddedBroker, launch::Kafka};

const PARTITIONS: i32 = 6;
const KEYS: u32 = 200;
const MEMBERS: usize = 3;

/// What a record does to its handler, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    FailsOnce,
    PanicsOnce,
    HangsOnce,
    Blocks,
    Waits,
    FailsAlways,
    NoJson,
}

/// What becomes of a record that its handler does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    DeadLetter,
    Skip,
    /// The member ends, and another comes in its place; nothing fails twice.
    Stop,
    /// It waits elsewhere, and ends as a letter.
    RetryTopic,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    ordering: Ordering,
    concurrency: usize,
    last: Last,
    count: u32,
}

impl Round {
    fn fate(&self, number: u32) -> Fate {
        let every = if self.last == Last::Stop { (self.count / 8).max(101) } else { 101 };
        match number % every {
            1 => Fate::FailsOnce,
            2 => Fate::PanicsOnce,
            3 if (number / every).is_multiple_of(4) => Fate::HangsOnce,
            4 => Fate::Blocks,
            5..=20 => Fate::Waits,
            21 if self.last != Last::Stop => Fate::FailsAlways,
            22 if self.last != Last::Stop => Fate::NoJson,
            _ => Fate::Well,
        }
    }

    fn is_put_aside(&self, number: u32) -> bool {
        matches!(self.fate(number), Fate::FailsAlways | Fate::NoJson)
    }

    fn bytes(&self, number: u32) -> String {
        if self.fate(number) == Fate::NoJson { format!("{{no json {number}") } else { number.to_string() }
    }

    fn policy(&self) -> ErrorPolicy {
        let policy = ErrorPolicy::retry(2, Duration::from_millis(1)).deadline(Duration::from_millis(300));
        match self.last {
            Last::DeadLetter => policy.then_dead_letter("dead"),
            Last::Skip => policy.then_skip(),
            Last::Stop => ErrorPolicy::Stop.deadline(Duration::from_millis(300)),
            Last::RetryTopic => ErrorPolicy::Stop
                .deadline(Duration::from_millis(300))
                .retry_topics([Duration::from_millis(50)])
                .then_dead_letter("dead"),
        }
    }
}

#[derive(Default)]
struct History {
    /// Numbers in the order in which their handlers ended well.
    handled: Mutex<Vec<u32>>,
    done: Mutex<BTreeSet<(i32, i64)>>,
    tried: Mutex<BTreeSet<u32>>,
}

async fn handle(round: Round, history: Arc<History>, message: Message<u32>) -> dtkafka::HandlerResult {
    let first = history.tried.lock().unwrap().insert(message.value);
    match round.fate(message.value) {
        Fate::FailsOnce if first => return Err("not yet".into()),
        Fate::PanicsOnce if first => panic!("{} bursts", message.value),
        Fate::HangsOnce if first => std::future::pending().await,
        Fate::FailsAlways => return Err("never".into()),
        Fate::Blocks => std::thread::sleep(Duration::from_micros(500)),
        Fate::Waits => tokio::time::sleep(Duration::from_millis(u64::from(message.value % 3))).await,
        _ => {}
    }
    history.done.lock().unwrap().insert((message.partition, message.offset));
    history.handled.lock().unwrap().push(message.value);
    Ok(())
}

fn member(kafka: &KafkaInstance, round: Round, history: &Arc<History>) -> Consumer {
    let history = Arc::clone(history);
    let settings = |c: ConsumerConfig| {
        c.session_timeout(6000).heartbeat_interval(100).auto_commit_interval(50).max_poll_records(200)
    };
    Consumer::new_with(kafka, ["orders"], settings)
        .unwrap()
        .ordering(round.ordering)
        .concurrency(round.concurrency)
        .drain_timeout(Duration::from_secs(5))
        .register_handler("orders", async move |message: Message<u32>| {
            handle(round, Arc::clone(&history), message).await
        })
        .unwrap()
        .error_policy(round.policy())
        .unwrap()
}

struct Running {
    handle: ConsumerHandle,
    task: tokio::task::JoinHandle<dtkafka::Result<()>>,
}

fn run(mut consumer: Consumer) -> Running {
    let handle = consumer.handle();
    Running { handle, task: tokio::spawn(async move { consumer.run(std::future::pending::<()>()).await }) }
}

/// Where a dead letter comes from.
fn origin(letter: &dtkafka::ConsumerRecord) -> (i32, i64) {
    let number = |name: &str| {
        letter.header_str(&format!("dtkafka-dead-letter-{name}")).unwrap().parse::<i64>().unwrap()
    };
    (number("partition") as i32, number("offset"))
}

async fn letters(kafka: &KafkaInstance) -> Vec<dtkafka::ConsumerRecord> {
    let none: [&str; 0] = [];
    let reader = kafka.get_consumer_with(none, |c| c.group_id("auditors")).await.unwrap();
    let dead = TopicPartition::new("dead", 0);
    let end = reader.end_offsets([dead.clone()]).await.unwrap()[&dead];
    reader.assign([dead.clone()]).unwrap();
    reader.seek_to_beginning([&dead]).unwrap();
    let mut letters = Vec::new();
    while reader.position(&dead).await.unwrap() < end {
        letters.extend(
            reader.poll(Duration::from_secs(1)).await.unwrap().into_iter().flat_map(|(_, records)| records),
        );
    }
    reader.close(Duration::from_secs(10)).await.unwrap();
    letters
}

/// Three brokers.
enum Brokers {
    Embedded(EmbeddedBroker),
    Kafka(Box<Kafka>),
}

impl Brokers {
    async fn start() -> Self {
        match std::env::var("DTKAFKA_STRESS_KAFKA") {
            Ok(version) => {
                let kafka = Kafka::builder().version(version).nodes(3).heap("512m");
                let kafka = kafka.property("group.min.session.timeout.ms", "1000").start().await;
                Self::Kafka(Box::new(kafka.unwrap()))
            }
            Err(_) => Self::Embedded(EmbeddedBroker::builder().brokers(3).start().await.unwrap()),
        }
    }

    fn bootstrap_servers(&self) -> String {
        match self {
            Self::Embedded(broker) => broker.bootstrap_servers(),
            Self::Kafka(kafka) => kafka.bootstrap_servers(),
        }
    }

    async fn stop(self) {
        if let Self::Kafka(kafka) = self {
            kafka.stop().await.unwrap();
        }
    }
}

/// Writes the records; which number stands where.
async fn fill(kafka: &KafkaInstance, round: Round) -> BTreeMap<(i32, i64), u32> {
    let producer = kafka.get_producer().await.unwrap();
    let mut deliveries = Vec::new();
    for number in 0..round.count {
        let (key, value) = (format!("k{}", number % KEYS), round.bytes(number));
        let record = ProducerRecord::new("orders").key(&key).value(&value);
        deliveries.push(producer.send_record(record).await.unwrap());
    }
    let mut places = BTreeMap::new();
    for (number, delivery) in (0..).zip(deliveries) {
        let written = delivery.await.unwrap();
        places.insert((written.partition, written.offset), number);
    }
    producer.close().await.unwrap();
    places
}

async fn committed(admin: &KafkaAdmin) -> BTreeMap<i32, i64> {
    let offsets = admin.group_offsets("g").await.unwrap_or_default();
    let own = offsets.into_iter().filter(|(partition, _)| &*partition.topic == "orders");
    own.map(|(partition, committed)| (partition.partition, committed.offset)).collect()
}

async fn round(ordering: Ordering, concurrency: usize, last: Last, seed: u64) {
    let count: u32 = std::env::var("DTKAFKA_STRESS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let round = Round { ordering, concurrency, last, count };
    let brokers = Brokers::start().await;
    let config = KafkaConfig::new()
        .set_bootstrap_servers(brokers.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let admin = kafka.admin().await.unwrap();
    for (topic, partitions) in [("orders", PARTITIONS), ("orders-retry-50ms", 2), ("dead", 1)] {
        admin.create_topic(NewTopic::new(topic).partitions(partitions).replication_factor(3)).await.unwrap();
    }
    let places = fill(&kafka, round).await;

    let history = Arc::new(History::default());
    let mut members: Vec<_> = (0..MEMBERS).map(|_| run(member(&kafka, round, &history))).collect();
    let (mut random, mut killed, mut stopped) = (seed, 0, 0);
    let begun = std::time::Instant::now();
    let well = (0..count).filter(|number| !round.is_put_aside(*number)).count();
    let (pause, kills) = if count > 10_000 { (1000, 20) } else { (150, 6) };
    loop {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // What is committed is done: handled before, or dealt with before as the policy says.
        let committed = committed(&admin).await;
        let done = history.done.lock().unwrap().clone();
        let put_aside: BTreeSet<_> = letters(&kafka).await.iter().map(origin).collect();
        for (place, number) in &places {
            if place.1 < committed.get(&place.0).copied().unwrap_or(0) {
                let fate = round.fate(*number);
                let is_dealt_with = match last {
                    Last::DeadLetter => put_aside.contains(place),
                    Last::Skip => round.is_put_aside(*number),
                    Last::Stop => false,
                    Last::RetryTopic => !matches!(fate, Fate::Well | Fate::Waits | Fate::Blocks),
                };
                assert!(
                    is_dealt_with || done.contains(place),
                    "{round:?} seed {seed}: {committed:?} is committed, and {place:?}, {fate:?}, is not done"
                );
            }
        }
        let handled: BTreeSet<u32> = history.handled.lock().unwrap().iter().copied().collect();
        let letters = if last == Last::RetryTopic { count as usize - well } else { 0 };
        let is_over = handled.len() == well && put_aside.len() >= letters;
        if is_over && committed.values().sum::<i64>() == i64::from(count) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "{round:?}: {committed:?} of {count}");
        for member in &mut members {
            if member.task.is_finished() {
                assert_eq!(last, Last::Stop, "only there does a record end its member");
                stopped += 1;
                let ended = std::mem::replace(member, run(self::member(&kafka, round, &history)));
                ended.task.await.unwrap().unwrap_err();
            }
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let which = (random >> 33) as usize % MEMBERS;
        match (random >> 20) % 8 {
            // Killed: nothing is committed, nothing ends well.
            0 if killed < kills => {
                killed += 1;
                members[which].task.abort();
                members[which] = run(member(&kafka, round, &history));
            }
            1 if killed < kills => {
                killed += 1;
                let next = run(member(&kafka, round, &history));
                let ended = std::mem::replace(&mut members[which], next);
                ended.handle.stop();
                let ended = ended.task.await.unwrap();
                assert!(ended.is_ok() || last == Last::Stop, "{ended:?}");
            }
            _ => {}
        }
    }
    for member in members {
        member.handle.stop();
        // One may have failed with a record that another has handled since.
        let ended = member.task.await.unwrap();
        assert!(ended.is_ok() || last == Last::Stop, "{ended:?}");
    }
    check_end(round, &places, &history, &letters(&kafka).await, seed);
    eprintln!(
        "{round:?}: {} handled again, {killed} members ended, {stopped} by a record, {:?}",
        history.handled.lock().unwrap().len() - well,
        begun.elapsed()
    );
    drop(kafka);
    brokers.stop().await;
}

/// Every record was handled or is put aside as it was, and in order where that is promised.
fn check_end(
    round: Round,
    places: &BTreeMap<(i32, i64), u32>,
    history: &History,
    letters: &[dtkafka::ConsumerRecord],
    seed: u64,
) {
    let handled = history.handled.lock().unwrap().clone();
    let distinct: BTreeSet<u32> = handled.iter().copied().collect();
    let well: BTreeSet<u32> = (0..round.count).filter(|number| !round.is_put_aside(*number)).collect();
    assert_eq!(distinct, well, "{round:?} seed {seed}: every record that can be handled was");
    let values: BTreeSet<String> = letters
        .iter()
        .map(|letter| String::from_utf8(letter.value.clone().unwrap().to_vec()).unwrap())
        .collect();
    let aside = (0..round.count).filter(|number| round.is_put_aside(*number));
    let expected: BTreeSet<_> = match round.last {
        Last::DeadLetter | Last::RetryTopic => aside.map(|number| round.bytes(number)).collect(),
        Last::Skip | Last::Stop => BTreeSet::new(),
    };
    assert_eq!(values, expected, "{round:?} seed {seed}: with their own bytes");
    if round.ordering == Ordering::Unordered || round.last == Last::RetryTopic {
        return;
    }
    let partition: BTreeMap<u32, i32> =
        places.iter().map(|((partition, _), number)| (*number, *partition)).collect();
    let (mut first, mut last) = (BTreeSet::new(), BTreeMap::new());
    for number in &handled {
        if first.insert(*number) {
            let lane = match round.ordering {
                Ordering::Key => (0, number % KEYS),
                _ => (partition[number], 0),
            };
            let before = last.insert(lane, *number);
            assert!(before < Some(*number), "{round:?} seed {seed}: {number} after {before:?}");
        }
    }
}

macro_rules! rounds {
    ($($name:ident: $ordering:ident, $concurrency:literal, $last:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $name() {
            round(Ordering::$ordering, $concurrency, Last::$last, line!().into()).await;
        }
    )*};
}

rounds! {
    nothing_is_lost_or_out_of_order_per_partition: Partition, 16, DeadLetter;
    nothing_is_lost_or_out_of_order_per_key: Key, 16, DeadLetter;
    nothing_is_lost_without_an_order: Unordered, 16, DeadLetter;
    nothing_else_is_skipped: Key, 64, Skip;
    nothing_is_lost_by_members_that_stop_at_a_failure: Partition, 2, Stop;
    nothing_is_lost_by_way_of_a_retry_topic: Partition, 1, RetryTopic;
}
