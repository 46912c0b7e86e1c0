//! Handlers beside each other, rebalances and shutdowns, on a broker of each test's own: what is done is
//! committed, and nothing else is, whatever the handlers do.

mod damaged;
mod letters;
mod retry_topics;

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dtkafka::{
    Batch, Consumer, ConsumerConfig, ConsumerRecord, ErrorPolicy, HandlerResult, KafkaConfig, KafkaInstance,
    Message, Ordering, OutgoingRecord, ProducerInterceptor, ProducerRecord, Rebalance, Topics,
};
use dtkafka_testcontainers::{EmbeddedBroker, EmbeddedBrokerBuilder, broker::ApiKey};
use tokio::sync::Notify;

const PATIENCE: Duration = Duration::from_secs(30);

type Seen = Arc<Mutex<Vec<u32>>>;

async fn broker(topics: &[(&str, i32)]) -> (EmbeddedBroker, KafkaInstance) {
    broker_with(topics, |builder| builder).await
}

async fn broker_with(
    topics: &[(&str, i32)],
    settings: impl FnOnce(EmbeddedBrokerBuilder) -> EmbeddedBrokerBuilder,
) -> (EmbeddedBroker, KafkaInstance) {
    let broker = settings(EmbeddedBroker::builder()).start().await.unwrap();
    for (topic, partitions) in topics {
        broker.create_topic(topic, *partitions).unwrap();
    }
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    (broker, KafkaInstance::new(config).unwrap())
}

/// Sends numbers, each to the partition `number % partitions` with the key `number % keys`.
async fn produce(
    kafka: &KafkaInstance,
    topic: &str,
    partitions: u32,
    keys: u32,
    numbers: std::ops::Range<u32>,
) {
    let producer = kafka.get_producer().await.unwrap();
    for number in numbers {
        let key = format!("k{}", number % keys);
        let send = producer.send(topic, &number).key(&key).partition((number % partitions) as i32);
        let _flushed = send.await.unwrap();
    }
    producer.close().await.unwrap();
}

pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came to be");
}

/// A consumer at work, that can be stopped.
struct Running {
    handle: dtkafka::ConsumerHandle,
    task: tokio::task::JoinHandle<(Consumer, dtkafka::Result<()>)>,
}

fn run(mut consumer: Consumer) -> Running {
    let handle = consumer.handle();
    let task = tokio::spawn(async move {
        let outcome = consumer.run(std::future::pending::<()>()).await;
        (consumer, outcome)
    });
    Running { handle, task }
}

impl Running {
    async fn stop(self) -> (Consumer, dtkafka::Result<()>) {
        self.handle.stop();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it does not stop").unwrap()
    }
}

#[tokio::test]
async fn partitions_run_beside_each_other_by_default() {
    let (_broker, kafka) = broker(&[("orders", 3)]).await;
    produce(&kafka, "orders", 3, 3, 0..12).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |_: Message<u32>| {
            peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
            now.fetch_sub(1, Relaxed);
            Ok(())
        })
        .unwrap();
    let mut handled = 0;
    while handled < 12 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    // One of each partition, of which the first poll may have brought some alone.
    assert!((2..=3).contains(&most.load(Relaxed)), "{most:?}");
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn keys_run_beside_each_other_each_in_order_up_to_the_concurrency() {
    let (broker, kafka) = broker(&[("orders", 2)]).await;
    produce(&kafka, "orders", 2, 10, 0..200).await;
    let (seen, now, most) = (Seen::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (log, count, max) = (Arc::clone(&seen), Arc::clone(&now), Arc::clone(&most));
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .ordering(Ordering::Key)
        .concurrency(5)
        .register_handler("orders", async move |m: Message<u32>| {
            max.fetch_max(count.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_millis(u64::from(m.value % 7))).await;
            count.fetch_sub(1, Relaxed);
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 200).await;
    running.stop().await.1.unwrap();
    assert_eq!(most.load(Relaxed), 5);
    let mut by_key: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for value in seen.lock().unwrap().iter() {
        by_key.entry(value % 10).or_default().push(*value);
    }
    assert!(by_key.len() == 10 && by_key.values().all(|values| values.is_sorted()), "{by_key:?}");
    assert_eq!([0, 1].map(|p| broker.committed("g", "orders", p)), [Some(100), Some(100)]);
}

#[tokio::test]
async fn with_partitions_in_order_no_more_handlers_run_at_once_than_the_concurrency() {
    let (_broker, kafka) = broker(&[("orders", 6)]).await;
    produce(&kafka, "orders", 6, 6, 0..120).await;
    let (seen, now, most) = (Seen::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (log, count, max) = (Arc::clone(&seen), Arc::clone(&now), Arc::clone(&most));
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .concurrency(2)
        .register_handler("orders", async move |m: Message<u32>| {
            max.fetch_max(count.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
            count.fetch_sub(1, Relaxed);
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 120).await;
    running.stop().await.1.unwrap();
    assert_eq!(most.load(Relaxed), 2);
    for partition in 0..6 {
        let of_one = seen.lock().unwrap().iter().copied().filter(|n| n % 6 == partition).collect::<Vec<_>>();
        assert!(of_one.len() == 20 && of_one.is_sorted(), "{of_one:?}");
    }
}

#[tokio::test]
async fn what_is_done_is_committed_while_it_runs_and_long_before_the_interval_of_automatic_commits() {
    let (broker, kafka) = broker(&[("orders", 2)]).await;
    produce(&kafka, "orders", 1, 1, 0..200).await;
    let (seen, release) = (Seen::default(), Arc::new(Notify::new()));
    let (log, wait) = (Arc::clone(&seen), Arc::clone(&release));
    let settings = |c: ConsumerConfig| c.auto_commit_interval(Duration::from_secs(3600));
    let consumer = Consumer::new_with(&kafka, ["orders"], settings)
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 150 {
                wait.notified().await;
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let running = run(consumer);
    // Its run goes on: what is done before the handler that waits is committed all the same, and nothing behind it.
    until(|| broker.committed("g", "orders", 0) == Some(150)).await;
    assert_eq!(seen.lock().unwrap().len(), 150);
    release.notify_one();
    until(|| broker.committed("g", "orders", 0) == Some(200)).await;
    // As little as one record, when nothing is left to do.
    produce(&kafka, "orders", 1, 1, 0..1).await;
    until(|| broker.committed("g", "orders", 0) == Some(201)).await;
    running.stop().await.1.unwrap();
}

#[tokio::test]
async fn handlers_go_on_while_a_commit_is_on_its_way() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..10).await;
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    broker.control().hold(ApiKey::OffsetCommit);
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 10).await;
    produce(&kafka, "orders", 1, 1, 10..3000).await;
    until(|| seen.lock().unwrap().len() == 3000).await;
    assert!(
        broker.committed("g", "orders", 0) <= Some(10),
        "the answer to the first commit is not there yet"
    );
    broker.control().release(ApiKey::OffsetCommit);
    until(|| broker.committed("g", "orders", 0) == Some(3000)).await;
    running.stop().await.1.unwrap();
}

#[tokio::test]
async fn a_stuck_handler_holds_up_its_partition_alone_and_keeps_its_membership() {
    let (broker, kafka) = broker(&[("orders", 3)]).await;
    produce(&kafka, "orders", 3, 3, 0..300).await;
    let (seen, release) = (Seen::default(), Arc::new(Notify::new()));
    let (log, wait) = (Arc::clone(&seen), Arc::clone(&release));
    let settings = |c: ConsumerConfig| {
        c.max_poll_interval(1000).session_timeout(6000).heartbeat_interval(100).auto_commit_interval(100)
    };
    let rebalances = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&rebalances);
    let consumer = Consumer::new_with(&kafka, ["orders"], settings)
        .unwrap()
        .on_rebalance(move |rebalance| heard.lock().unwrap().push(rebalance.clone()))
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 30 {
                wait.notified().await;
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 210).await;
    produce(&kafka, "orders", 3, 3, 300..600).await;
    until(|| seen.lock().unwrap().len() == 410).await;
    // Longer than the poll interval: the member is not put out.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until(|| broker.committed("g", "orders", 1) == Some(200)).await;
    assert_eq!(broker.committed("g", "orders", 0), Some(10), "before the record at work");
    release.notify_one();
    until(|| seen.lock().unwrap().len() == 600).await;
    running.stop().await.1.unwrap();
    assert_eq!([0, 1, 2].map(|p| broker.committed("g", "orders", p)), [Some(200); 3]);
    let rebalances = rebalances.lock().unwrap();
    let assigned = rebalances.iter().filter(|r| matches!(r, Rebalance::Assigned(_))).count();
    assert_eq!(assigned, 1, "{rebalances:?}");
    let gone = rebalances.last();
    assert!(matches!(gone, Some(Rebalance::Revoked(all)) if all.len() == 3), "by its end: {rebalances:?}");
}

#[tokio::test]
async fn a_handler_that_blocks_runs_on_the_threads_for_that() {
    let (broker, kafka) = broker(&[("orders", 2)]).await;
    produce(&kafka, "orders", 2, 2, 0..8).await;
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_blocking_handler("orders", move |m: Message<u32>| {
            std::thread::sleep(Duration::from_millis(50));
            if m.value == 7 && m.attempt == 1 {
                panic!("once");
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::retry(2, Duration::ZERO))
        .unwrap();
    let mut handled = 0;
    while handled < 8 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    assert_eq!([0, 1].map(|p| broker.committed("g", "orders", p)), [Some(4), Some(4)]);
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn when_a_second_member_joins_no_record_is_handled_twice_and_none_is_left_out() {
    let (broker, kafka) = broker(&[("orders", 4)]).await;
    produce(&kafka, "orders", 4, 40, 0..2000).await;
    let seen = Seen::default();
    let member = |ordering| {
        let log = Arc::clone(&seen);
        let settings = |c: ConsumerConfig| {
            c.session_timeout(6000).heartbeat_interval(100).max_poll_records(50).auto_commit_interval(50)
        };
        Consumer::new_with(&kafka, ["orders"], settings)
            .unwrap()
            .ordering(ordering)
            .concurrency(8)
            .register_handler("orders", async move |m: Message<u32>| {
                tokio::time::sleep(Duration::from_millis(u64::from(m.value % 4))).await;
                log.lock().unwrap().push(m.value);
                Ok(())
            })
            .unwrap()
    };
    // Where keys run beside each other, what is done behind a record that is not comes again: at least once.
    let first = run(member(Ordering::Partition));
    until(|| seen.lock().unwrap().len() > 200).await;
    let second = run(member(Ordering::Partition));
    until(|| !second.handle.assignment().is_empty()).await;
    let third = run(member(Ordering::Partition));
    until(|| !third.handle.assignment().is_empty()).await;
    first.stop().await.1.unwrap();
    until(|| seen.lock().unwrap().len() >= 2000).await;
    for running in [second, third] {
        running.stop().await.1.unwrap();
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let before = seen.len();
    seen.dedup();
    assert_eq!((seen.len(), before), (2000, 2000), "each once: rebalances wait for what is at work");
    assert_eq!([0, 1, 2, 3].map(|p| broker.committed("g", "orders", p)), [Some(500); 4]);
}

#[tokio::test]
async fn batches_patterns_and_the_rest_have_their_handlers() {
    let (broker, kafka) = broker(&[("orders-eu", 1), ("orders-us", 1), ("audit", 1)]).await;
    for topic in ["orders-eu", "orders-us", "audit"] {
        produce(&kafka, topic, 1, 1, 0..25).await;
    }
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let rest = Arc::new(AtomicUsize::new(0));
    let (log, count) = (Arc::clone(&sizes), Arc::clone(&rest));
    async fn audited(_: ConsumerRecord) -> Result<(), std::io::Error> {
        Ok(())
    }
    let mut consumer = Consumer::new(&kafka, ["orders-eu", "orders-us", "audit"])
        .unwrap()
        .register_batch_handler(
            Topics::glob("orders-*"),
            10,
            Duration::from_millis(200),
            async move |batch: Batch<u32>| {
                log.lock().unwrap().push(batch.len());
                Ok(())
            },
        )
        .unwrap()
        .register_raw_handler(Topics::others(), async move |_: ConsumerRecord| -> HandlerResult {
            count.fetch_add(1, Relaxed);
            Ok(())
        })
        .unwrap();
    consumer.add_handler("audit", audited).unwrap();
    let mut handled = 0;
    while handled < 75 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    let sizes = sizes.lock().unwrap().clone();
    assert!(sizes.iter().all(|size| (1..=10).contains(size)), "{sizes:?}");
    assert_eq!((sizes.iter().sum::<usize>(), rest.load(Relaxed)), (50, 0), "audit has one of its own now");
    for topic in ["orders-eu", "orders-us", "audit"] {
        assert_eq!(broker.committed("g", topic, 0), Some(25), "{topic}");
    }
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn many_values_are_sent_in_a_row_with_a_result_each() {
    let (broker, kafka) = broker(&[("numbers", 2)]).await;
    let producer = dtkafka::Producer::new(&kafka).await.unwrap();
    let values = [1.0, f64::NAN, 3.0];
    let results = producer.send_many("numbers", values.iter().map(|value| (Some("k"), value))).await;
    let offsets: Vec<_> = results.iter().map(|result| result.as_ref().ok().map(|sent| sent.offset)).collect();
    assert_eq!(offsets, [Some(0), None, Some(1)], "NaN has no form in JSON");
    assert_eq!(results[1].as_ref().unwrap_err().kind(), dtkafka::ErrorKind::Json);
    let written = results[0].as_ref().unwrap().partition;
    assert_eq!(broker.records("numbers", written).unwrap().len(), 2);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn many_values_for_a_topic_that_is_not_there_are_waited_for_once() {
    let (_broker, kafka) = broker_with(&[], |builder| builder.auto_create_topics(false)).await;
    let settings = |p: dtkafka::ProducerConfig| p.set("max.block.ms", 300);
    let producer = dtkafka::Producer::new_with(&kafka, settings).await.unwrap();
    let started = Instant::now();
    let results = producer.send_many("typo", (0..100).map(|_| (None::<&str>, &1))).await;
    assert_eq!(results.len(), 100);
    for result in &results {
        let error = result.as_ref().unwrap_err();
        assert_eq!(error.topic(), Some("typo"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_bulk_load_for_a_topic_that_is_not_there_waits_for_it_once_and_goes_on_when_it_comes() {
    let (broker, kafka) = broker_with(&[], |builder| builder.auto_create_topics(false)).await;
    let settings = |p: dtkafka::ProducerConfig| p.set("max.block.ms", 300);
    let producer = dtkafka::Producer::new_with(&kafka, settings).await.unwrap();
    let is_made = Cell::new(false);
    let mut load = producer.bulk_load(
        "late",
        (0..).map_while(|number| (number < 2000 || !is_made.get()).then_some((None::<&str>, number))),
    );
    let mut failed = 0;
    while failed < 2000 {
        let progress = tokio::time::timeout(PATIENCE, load.next()).await.expect("each record waits").unwrap();
        failed = progress.failed;
        for (_, error) in progress.failures {
            assert_eq!(error.topic(), Some("late"), "{error}");
        }
    }
    broker.create_topic("late", 1).unwrap();
    let mut delivered = 0;
    while delivered == 0 {
        delivered =
            tokio::time::timeout(PATIENCE, load.next()).await.expect("it does not go on").unwrap().delivered;
    }
    is_made.set(true);
    let last = load.finish().await;
    assert_eq!((last.open(), last.taken), (0, last.delivered + last.failed));
    producer.close().await.unwrap();
}

/// Sends every other record elsewhere.
#[derive(Default)]
struct Sorter(AtomicUsize);

impl ProducerInterceptor for Sorter {
    fn on_send(&self, record: &mut OutgoingRecord<'_>) {
        if self.0.fetch_add(1, Relaxed) % 2 == 1 {
            record.set_topic("present");
        }
    }
}

#[tokio::test]
async fn a_bulk_load_waits_for_each_topic_that_interceptors_choose() {
    let (broker, kafka) = broker_with(&[], |builder| builder.auto_create_topics(false)).await;
    let settings = |p: dtkafka::ProducerConfig| p.set("max.block.ms", 300).interceptor(Sorter::default());
    let producer = dtkafka::Producer::new_with(&kafka, settings).await.unwrap();
    broker.create_topic("present", 1).unwrap();
    let load = producer.bulk_load("absent", (0..6).map(|number| (None::<&str>, number)));
    let last = load.finish().await;
    assert!(last.delivered == 3 && last.failed == 3, "{last:?}");
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_bulk_load_in_an_outage_does_not_give_every_record_up() {
    let (broker, kafka) = broker_with(&[("loaded", 1)], |builder| builder).await;
    let settings = |p: dtkafka::ProducerConfig| p.set("max.block.ms", 300);
    let producer = dtkafka::Producer::new_with(&kafka, settings).await.unwrap();
    broker.control().cut(None, None);
    let mut load = producer.bulk_load("loaded", (0..2000).map(|number| (None::<&str>, number)));
    let mut failed = 0;
    while failed == 0 {
        let progress = tokio::time::timeout(PATIENCE, load.next()).await.expect("nothing fails").unwrap();
        failed = progress.failed;
    }
    broker.control().heal_all();
    let last = load.finish().await;
    assert!(last.taken == 2000 && last.failed < 100, "{last:?}");
    producer.close().await.unwrap();
}

#[test]
fn a_handler_that_blocks_the_only_thread_for_longer_than_the_poll_interval_keeps_its_partitions() {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (broker, kafka) = theirs.block_on(async {
        let (broker, kafka) = broker(&[("orders", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..4).await;
        (broker, kafka)
    });
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = Seen::default();
    ours.block_on(async {
        let log = Arc::clone(&seen);
        let settings = |c: ConsumerConfig| {
            c.max_poll_interval(1000).set("heartbeat.interval.ms", 100).auto_commit_interval(50)
        };
        let mut consumer = Consumer::new_with(&kafka, ["orders"], settings)
            .unwrap()
            .register_handler("orders", move |number: Message<u32>| {
                let log = Arc::clone(&log);
                async move {
                    log.lock().unwrap().push(number.value);
                    std::thread::sleep(Duration::from_millis(1500));
                    Ok(())
                }
            })
            .unwrap();
        let begun = Instant::now();
        while broker.committed("g", "orders", 0) != Some(4) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{seen:?}, committed {:?}",
                broker.committed("g", "orders", 0)
            );
            consumer.consume(Duration::from_millis(100)).await.unwrap();
        }
        consumer.close().await.unwrap();
    });
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3], "each once");
    assert_eq!(broker.control().requests(ApiKey::LeaveGroup), 1);
}

#[tokio::test]
async fn a_listener_hears_of_a_revocation_when_the_handlers_are_done_and_may_commit_what_they_did() {
    /// What it was told, of how many partitions, and how much was handled by then.
    type Told = (&'static str, usize, usize);
    struct Commits(Arc<Mutex<Vec<Told>>>, Seen);
    impl dtkafka::RebalanceListener for Commits {
        async fn assigned(&self, _: &dtkafka::KafkaConsumer, partitions: &[dtkafka::TopicPartition]) {
            let seen = self.1.lock().unwrap().len();
            self.0.lock().unwrap().push(("assigned", partitions.len(), seen));
        }
        async fn revoked(&self, consumer: &dtkafka::KafkaConsumer, partitions: &[dtkafka::TopicPartition]) {
            consumer.commit().await.unwrap();
            let seen = self.1.lock().unwrap().len();
            self.0.lock().unwrap().push(("revoked", partitions.len(), seen));
        }
    }
    let (broker, kafka) = broker(&[("orders", 2)]).await;
    produce(&kafka, "orders", 2, 2, 0..6).await;
    let (told, seen) = (Arc::default(), Seen::default());
    let log = Arc::clone(&seen);
    let settings = |c: ConsumerConfig| c.enable_auto_commit(false).set("heartbeat.interval.ms", 50);
    let first = Consumer::new_with(&kafka, ["orders"], settings)
        .unwrap()
        .register_handler("orders", move |number: Message<u32>| {
            let log = Arc::clone(&log);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                log.lock().unwrap().push(number.value);
                Ok(())
            }
        })
        .unwrap()
        .rebalance_listener(Commits(Arc::clone(&told), Arc::clone(&seen)));
    let first = run(first);
    until(|| !seen.lock().unwrap().is_empty()).await;
    let second = kafka.get_consumer_with(["orders"], settings).await.unwrap();
    let begun = Instant::now();
    while second.assignment().is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        second.poll(Duration::from_millis(20)).await.unwrap();
    }
    until(|| told.lock().unwrap().len() >= 3).await;
    let (_, outcome) = first.stop().await;
    outcome.unwrap();
    second.close(PATIENCE).await.unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!(told[0], ("assigned", 2, 0));
    let (what, count, done) = told[1];
    assert_eq!((what, count), ("revoked", 2));
    let committed: i64 = (0..2).filter_map(|partition| broker.committed("g", "orders", partition)).sum();
    assert!(committed >= done as i64, "{committed} of {done} that were done when it was told");
    assert_eq!((told[2].0, told[2].1), ("assigned", 1));
    assert_eq!(told.last().map(|told| told.0), Some("revoked"), "by the close: {told:?}");
}

#[tokio::test]
async fn a_condition_that_panics_ends_the_call_and_its_records_come_again() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let policy = ErrorPolicy::retry(3, Duration::ZERO).retry_if(move |_| match count.fetch_add(1, Relaxed) {
        0 => panic!("burst"),
        _ => true,
    });
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 1 && calls.load(Relaxed) < 2 {
                return Err("not yet".into());
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let begun = Instant::now();
    let error = loop {
        assert!(begun.elapsed() < PATIENCE, "nothing fails");
        if let Err(error) = consumer.consume(Duration::from_secs(1)).await {
            break error;
        }
    };
    assert_eq!(error.kind(), dtkafka::ErrorKind::Handler);
    assert_eq!((error.topic(), error.partition()), (Some("orders"), Some(0)));
    assert!(error.to_string().contains("burst"), "{error}");
    while broker.committed("g", "orders", 0) != Some(3) {
        assert!(begun.elapsed() < PATIENCE, "{seen:?}, committed {:?}", broker.committed("g", "orders", 0));
        consumer.consume(Duration::from_millis(200)).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test]
async fn a_run_that_was_stopped_and_dropped_does_not_end_the_next() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..5).await;
    let (mut consumer, seen) = (Consumer::new(&kafka, ["orders"]).unwrap(), Seen::default());
    let log = Arc::clone(&seen);
    consumer
        .add_handler("orders", async move |m: Message<u32>| -> HandlerResult {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let handle = consumer.handle();
    for _ in 0..3 {
        let mut running = Box::pin(consumer.run(std::future::pending::<()>()));
        assert!(futures_util::FutureExt::now_or_never(&mut running).is_none());
        handle.stop();
        drop(running);
    }
    let next = async {
        tokio::select! {
            ended = consumer.run(std::future::pending::<()>()) => panic!("it ends by itself: {ended:?}"),
            () = until(|| seen.lock().unwrap().len() == 5) => handle.stop(),
        }
    };
    next.await;
    consumer.run(std::future::ready(())).await.unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_leaves_a_short_close_time_for_the_commit() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..2).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let begins = Arc::clone(&begun);
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            begins.fetch_add(1, Relaxed);
            if m.value == 1 {
                // What was done before is told.
                tokio::task::yield_now().await;
                let _ended = wait.lock().unwrap().recv();
            }
            Ok(())
        })
        .unwrap();
    tokio::select! {
        () = until(|| begun.load(Relaxed) == 2) => {}
        ended = consumer.consume(PATIENCE) => panic!("{ended:?}"),
    }
    // `halt` alone would take a second.
    consumer.close_within(Duration::from_millis(950)).await.unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(1));
    drop(go_on);
}

#[tokio::test]
async fn a_commit_through_a_handle_does_not_keep_a_dropped_consumer_in_its_group() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let mut consumer = Consumer::new_with(&kafka, ["orders"], |c| c.enable_auto_commit(false))
        .unwrap()
        .register_handler("orders", async |_: Message<u32>| Ok(()))
        .unwrap();
    assert_eq!(consumer.consume(PATIENCE).await.unwrap(), 3);
    let (handle, control) = (consumer.handle(), broker.control());
    control.hold(ApiKey::OffsetCommit);
    let before = control.requests(ApiKey::OffsetCommit);
    let committing = tokio::spawn({
        let handle = handle.clone();
        async move { handle.commit().await }
    });
    until(|| control.requests(ApiKey::OffsetCommit) > before).await;
    drop(consumer);
    until(|| handle.assignment().is_empty()).await;
    control.release(ApiKey::OffsetCommit);
    committing.await.unwrap().unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(3));
    until(|| control.requests(ApiKey::LeaveGroup) == 1).await;
}

#[tokio::test]
async fn a_handle_commits_while_it_runs_where_nothing_else_does() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new_with(&kafka, ["orders"], |c| c.enable_auto_commit(false))
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let error = consumer.handle().commit().await.unwrap_err();
    assert_eq!(error.kind(), dtkafka::ErrorKind::InvalidArgument, "{error}");
    let running = run(consumer);
    until(|| running.handle.metrics().handled == 3).await;
    assert_eq!(broker.committed("g", "orders", 0).unwrap_or(0), 0);
    running.handle.commit().await.unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(3));
    let handle = running.handle.clone();
    running.stop().await.1.unwrap();
    handle.commit().await.unwrap_err();
}

#[tokio::test]
async fn a_handler_that_commits_by_the_handle_commits_what_was_handled_before_it() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..5).await;
    let (handle, ended) =
        (Arc::new(std::sync::OnceLock::<dtkafka::ConsumerHandle>::new()), dtkafka::CancellationToken::new());
    let (known, ends) = (Arc::clone(&handle), ended.clone());
    let consumer = Consumer::new_with(&kafka, ["orders"], |c| c.enable_auto_commit(false))
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 2 {
                known.get().unwrap().commit().await?;
                ends.cancel();
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    handle.set(consumer.handle()).unwrap();
    let running = run(consumer);
    tokio::time::timeout(PATIENCE, ended.cancelled()).await.unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(2));
    drop(running);
}

#[tokio::test]
async fn a_listener_hears_of_a_revocation_while_consume_waits_for_a_handler_of_another_partition() {
    struct Tells(Arc<AtomicUsize>);
    impl dtkafka::RebalanceListener for Tells {
        async fn revoked(&self, _: &dtkafka::KafkaConsumer, partitions: &[dtkafka::TopicPartition]) {
            self.0.fetch_add(partitions.len(), Relaxed);
        }
        async fn lost(&self, _: &dtkafka::KafkaConsumer, partitions: &[dtkafka::TopicPartition]) {
            panic!("they go in good order: {partitions:?}");
        }
    }
    let (_broker, kafka) = broker(&[("orders", 2)]).await;
    produce(&kafka, "orders", 2, 2, 0..2).await;
    let (begun, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let begins = Arc::clone(&begun);
    let settings = |c: ConsumerConfig| {
        c.set("heartbeat.interval.ms", 50).set("partition.assignment.strategy", "cooperative-sticky")
    };
    let mut first = Consumer::new_with(&kafka, ["orders"], settings)
        .unwrap()
        .rebalance_listener(Tells(Arc::clone(&told)))
        .register_handler("orders", async move |m: Message<u32>| {
            // Partition 0 stays with its member, 1 goes.
            if m.value == 0 {
                begins.fetch_add(1, Relaxed);
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    let consuming = tokio::spawn(async move {
        loop {
            first.consume(PATIENCE).await.unwrap();
        }
    });
    until(|| begun.load(Relaxed) == 1).await;
    let second = kafka.get_consumer_with(["orders"], settings).await.unwrap();
    let begun = Instant::now();
    while second.assignment().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it waits for a handler of another partition");
        second.poll(Duration::from_millis(20)).await.unwrap();
    }
    assert_eq!(
        (second.assignment(), told.load(Relaxed)),
        (vec![dtkafka::TopicPartition::new("orders", 1)], 1)
    );
    consuming.abort();
    second.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn calls_that_are_dropped_before_they_are_connected_get_connected_in_the_end() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..1).await;
    let control = broker.control();
    for api in [ApiKey::Metadata, ApiKey::FindCoordinator, ApiKey::OffsetFetch] {
        control.delay(api, Duration::from_millis(250));
    }
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap();
    let begun = Instant::now();
    while seen.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "each call begins anew");
        let _too_soon = tokio::time::timeout(Duration::from_millis(500), consumer.consume(PATIENCE)).await;
    }
    consumer.close().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0]);
}
