//! Handlers that fail, hang, panic, block their thread and meet what is no JSON, under each ordering, while members are
//! killed and others come: each record is handled, or put aside with its bytes; order is kept where it is promised; no
//! commit passes a record that is not done.
//!
//! `DTKAFKA_STRESS` is the number of records of each round; 3,000 without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use dtkafka::{
    Consumer, ConsumerConfig, ConsumerHandle, ErrorPolicy, KafkaConfig, KafkaInstance, Message, Ordering,
    ProducerRecord,
};
use dtkafka_testcontainers::EmbeddedBroker;

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

fn fate(number: u32) -> Fate {
    match number % 101 {
        1 => Fate::FailsOnce,
        2 => Fate::PanicsOnce,
        3 if number.is_multiple_of(4) => Fate::HangsOnce,
        4 => Fate::Blocks,
        5..=20 => Fate::Waits,
        21 => Fate::FailsAlways,
        22 => Fate::NoJson,
        _ => Fate::Well,
    }
}

fn is_put_aside(number: u32) -> bool {
    matches!(fate(number), Fate::FailsAlways | Fate::NoJson)
}

fn bytes(number: u32) -> String {
    if fate(number) == Fate::NoJson { format!("{{no json {number}") } else { number.to_string() }
}

#[derive(Default)]
struct History {
    /// Numbers in the order in which their handlers ended well.
    handled: Mutex<Vec<u32>>,
    done: Mutex<BTreeSet<(i32, i64)>>,
}

async fn handle(history: Arc<History>, message: Message<u32>) -> dtkafka::HandlerResult {
    let first = message.attempt == 1;
    match fate(message.value) {
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

fn member(kafka: &KafkaInstance, ordering: Ordering, history: &Arc<History>) -> Consumer {
    let history = Arc::clone(history);
    let settings = |c: ConsumerConfig| {
        c.session_timeout(6000).heartbeat_interval(100).auto_commit_interval(50).max_poll_records(200)
    };
    Consumer::new_with(kafka, ["orders"], settings)
        .unwrap()
        .ordering(ordering)
        .concurrency(16)
        .drain_timeout(Duration::from_secs(5))
        .register_handler("orders", async move |message: Message<u32>| {
            handle(Arc::clone(&history), message).await
        })
        .unwrap()
        .error_policy(
            ErrorPolicy::retry(2, Duration::from_millis(1))
                .deadline(Duration::from_millis(300))
                .then_dead_letter("dead"),
        )
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
    let dead = dtkafka::TopicPartition::new("dead", 0);
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

async fn round(ordering: Ordering, seed: u64) {
    let count: u32 = std::env::var("DTKAFKA_STRESS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let broker = EmbeddedBroker::builder().brokers(3).start().await.unwrap();
    broker.create_topic("orders", PARTITIONS).unwrap();
    broker.create_topic("dead", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..count {
        let (key, value) = (format!("k{}", number % KEYS), bytes(number));
        let _flushed =
            producer.send_record(ProducerRecord::new("orders").key(&key).value(&value)).await.unwrap();
    }
    producer.close().await.unwrap();

    let history = Arc::new(History::default());
    let mut members: Vec<_> = (0..MEMBERS).map(|_| run(member(&kafka, ordering, &history))).collect();
    let (mut random, mut killed, begun) = (seed, 0, std::time::Instant::now());
    let well = (0..count).filter(|number| !is_put_aside(*number)).count();
    let aside = count as usize - well;
    loop {
        tokio::time::sleep(Duration::from_millis(150)).await;
        // What is committed is done: handled before, or put aside before.
        let committed: Vec<_> =
            (0..PARTITIONS).map(|p| broker.committed("g", "orders", p).unwrap_or(0)).collect();
        let done = history.done.lock().unwrap().clone();
        let put_aside: BTreeSet<_> = letters(&kafka).await.iter().map(origin).collect();
        for (partition, committed) in (0..).zip(&committed) {
            for offset in 0..*committed {
                let place = (partition, offset);
                assert!(
                    done.contains(&place) || put_aside.contains(&place),
                    "{ordering:?} seed {seed}: {committed} is committed of {partition}, and {offset} is not done"
                );
            }
        }
        if committed.iter().sum::<i64>() == i64::from(count) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "{ordering:?}: {committed:?} of {count}");
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let which = (random >> 33) as usize % MEMBERS;
        match (random >> 20) % 8 {
            // Killed: nothing is committed, nothing ends well.
            0 if killed < 6 => {
                killed += 1;
                members[which].task.abort();
                members[which] = run(member(&kafka, ordering, &history));
            }
            1 if killed < 6 => {
                killed += 1;
                let next = run(member(&kafka, ordering, &history));
                let ended = std::mem::replace(&mut members[which], next);
                ended.handle.stop();
                ended.task.await.unwrap().unwrap();
            }
            _ => {}
        }
    }
    for member in members {
        member.handle.stop();
        member.task.await.unwrap().unwrap();
    }

    let handled = history.handled.lock().unwrap().clone();
    let distinct: BTreeSet<u32> = handled.iter().copied().collect();
    assert_eq!(distinct.len(), well, "{ordering:?} seed {seed}: every record that can be handled was");
    let letters = letters(&kafka).await;
    let mut values = BTreeSet::new();
    for letter in &letters {
        values.insert(String::from_utf8(letter.value.clone().unwrap().to_vec()).unwrap());
    }
    let expected: BTreeSet<_> = (0..count).filter(|number| is_put_aside(*number)).map(bytes).collect();
    assert_eq!(values, expected, "{ordering:?} seed {seed}: with their own bytes");
    assert_eq!(expected.len(), aside);
    if ordering != Ordering::Unordered {
        let mut first: BTreeSet<u32> = BTreeSet::new();
        let mut last: BTreeMap<u32, u32> = BTreeMap::new();
        for number in &handled {
            if first.insert(*number) {
                let before = last.insert(number % KEYS, *number);
                assert!(before < Some(*number), "{ordering:?} seed {seed}: {number} after {before:?}");
            }
        }
    }
    eprintln!(
        "{ordering:?}: {count} records, {} handled ({} again), {} letters, {killed} members ended, {:?}",
        distinct.len(),
        handled.len() - distinct.len(),
        letters.len(),
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_out_of_order_per_partition() {
    round(Ordering::Partition, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_out_of_order_per_key() {
    round(Ordering::Key, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_without_an_order() {
    round(Ordering::Unordered, 3).await;
}
