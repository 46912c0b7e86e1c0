//! Handlers beside each other, retry topics, replays and shutdowns, on a broker of each test's own: what is done is
//! committed, and nothing else is, whatever the handlers do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dtkafka::{
    Batch, Consumer, ConsumerConfig, ConsumerRecord, ErrorPolicy, HandlerResult, KafkaConfig, KafkaInstance,
    Message, Ordering, ProducerRecord, Rebalance, Replay, Topics,
};
use dtkafka_testcontainers::{EmbeddedBroker, broker::ApiKey};
use tokio::sync::Notify;

const PATIENCE: Duration = Duration::from_secs(30);

type Seen = Arc<Mutex<Vec<u32>>>;

async fn broker(topics: &[(&str, i32)]) -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::builder().start().await.unwrap();
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

async fn until(mut is_so: impl FnMut() -> bool) {
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
async fn a_dead_letter_is_acknowledged_before_its_record_is_committed() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler(
            "orders",
            async |m: Message<u32>| {
                if m.value == 1 { Err("never".into()) } else { Ok(()) }
            },
        )
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let control = broker.control();
    control.hold(ApiKey::Produce);
    let consuming = tokio::spawn(async move {
        let handled = consumer.consume(PATIENCE).await;
        (consumer, handled)
    });
    let before = control.requests(ApiKey::Produce);
    until(|| control.requests(ApiKey::Produce) > before || consuming.is_finished()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!consuming.is_finished(), "the letter is not acknowledged yet");
    assert!(broker.committed("g", "orders", 0).is_none_or(|offset| offset <= 1));
    control.release(ApiKey::Produce);
    let (mut consumer, handled) = consuming.await.unwrap();
    assert_eq!((handled.unwrap(), broker.committed("g", "orders", 0)), (3, Some(3)));
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
    assert_eq!(consumer.metrics().dead_lettered, 1);
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_while_a_letter_is_on_its_way_stops() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<u32>| Err("never".into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let control = broker.control();
    control.hold(ApiKey::Produce);
    let before = control.requests(ApiKey::Produce);
    let running = run(consumer);
    until(|| control.requests(ApiKey::Produce) > before).await;
    let begun = Instant::now();
    let (_consumer, outcome) = running.stop().await;
    outcome.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(broker.committed("g", "orders", 0).is_none_or(|offset| offset == 0), "it comes again");
    control.release(ApiKey::Produce);
}

#[tokio::test]
async fn a_record_waits_in_a_retry_topic_without_holding_up_those_behind_it() {
    let retry = "orders-retry-300ms";
    let (broker, kafka) = broker(&[("orders", 1), (retry, 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..4).await;
    let seen: Arc<Mutex<Vec<(u32, u32, i64)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            assert_eq!(&*m.topic, "orders", "the topic it came from first");
            log.lock().unwrap().push((m.value, m.attempt, m.offset));
            match m.value {
                1 if m.attempt == 1 => Err("not yet".into()),
                2 => Err("never".into()),
                _ => Ok(()),
            }
        })
        .unwrap()
        .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_millis(300)]).then_dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 6).await;
    let (consumer, outcome) = running.stop().await;
    outcome.unwrap();
    let expected = [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 1, 3), (1, 2, 1), (2, 2, 2)];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(broker.committed("g", "orders", 0), Some(4));
    let dead = broker.records("dead", 0).unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((consumer.metrics().dead_lettered, consumer.metrics().handled), (1, 6));
}

#[tokio::test]
async fn dead_letters_are_sent_back_by_a_filter_and_by_a_group_once() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 2)]).await;
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..6_u32 {
        let value = number.to_string();
        let header = [dtkafka::Header::new("trace", format!("t{number}"))];
        let record = ProducerRecord::new("orders").key("k").value(&value).headers(&header);
        producer.send_record(record).await.unwrap().await.unwrap();
    }
    producer.close().await.unwrap();
    let is_mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, mended) = (Seen::default(), Arc::clone(&is_mended));
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value % 2 == 1 && !mended.load(Relaxed) {
                return Err(format!("odd {}", m.value).into());
            }
            assert_eq!(m.header_str("trace"), Some(format!("t{}", m.value).as_str()));
            assert!(!m.headers.iter().any(|header| header.key.starts_with("dtkafka")));
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Stop.then_dead_letter_by(|_, _| "dead".to_owned()))
        .unwrap();
    let mut handled = 0;
    while handled < 6 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    is_mended.store(true, Relaxed);
    let replay = Replay::from_dead_letters(&kafka, "dead");
    let some = replay.clone().filter(|letter| letter.error.contains("odd 3")).run().await.unwrap();
    assert_eq!((some.read, some.sent, some.left), (3, 1, 2));
    let all = replay.clone().group("replay").run().await.unwrap();
    assert_eq!((all.read, all.sent), (3, 3));
    let none = replay.group("replay").run().await.unwrap();
    assert_eq!((none.read, none.sent), (0, 0), "the group has seen them");
    while handled < 10 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 3, 4, 5]);
    assert_eq!(broker.committed("g", "orders", 0), Some(10));
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
            Topics::matching("orders-*"),
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

/// Three batches of the only partition of `orders`: 0 to 2, then 3 and 4, which cannot be read, then 5 to 7.
async fn with_a_damaged_batch() -> (EmbeddedBroker, KafkaInstance) {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1), ("others", 1)]).await;
    for batch in [0..3, 3..5, 5..8] {
        produce(&kafka, "orders", 1, 1, batch).await;
    }
    broker.control().damage("orders", 0, 3).unwrap();
    (broker, kafka)
}

fn logging(kafka: &KafkaInstance, policy: ErrorPolicy) -> (Consumer, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new(kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    (consumer, seen)
}

#[tokio::test]
async fn a_damaged_batch_is_passed_over_when_its_letter_is_acknowledged_and_not_before() {
    let (broker, kafka) = with_a_damaged_batch().await;
    let (consumer, seen) = logging(&kafka, ErrorPolicy::dead_letter("dead"));
    let before = broker.control().requests(ApiKey::Produce);
    broker.control().hold(ApiKey::Produce);
    let running = run(consumer);
    until(|| broker.control().requests(ApiKey::Produce) > before).await;
    until(|| broker.committed("g", "orders", 0) == Some(3)).await;
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    // The user's pause is not undone by going on behind the batch.
    let orders = dtkafka::TopicPartition::new("orders", 0);
    running.handle.pause([orders.clone()]).unwrap();
    broker.control().release(ApiKey::Produce);
    until(|| running.handle.metrics().dead_lettered == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2], "it is paused");
    running.handle.resume([orders]).unwrap();
    until(|| seen.lock().unwrap().len() == 6).await;
    running.stop().await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 5, 6, 7]);
    assert_eq!(broker.committed("g", "orders", 0), Some(8));
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn a_shutdown_is_heard_while_the_letter_of_a_damaged_batch_is_on_its_way() {
    let (broker, kafka) = with_a_damaged_batch().await;
    let (consumer, seen) = logging(&kafka, ErrorPolicy::dead_letter("dead"));
    let before = broker.control().requests(ApiKey::Produce);
    broker.control().hold(ApiKey::Produce);
    let running = run(consumer);
    until(|| broker.control().requests(ApiKey::Produce) > before).await;
    let begun = Instant::now();
    running.stop().await.1.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((broker.committed("g", "orders", 0), seen.lock().unwrap().len()), (Some(3), 3));
}

#[tokio::test]
async fn what_stands_before_a_damaged_batch_and_comes_again_is_handled_before_the_batch_is_passed_over() {
    let (broker, kafka) = with_a_damaged_batch().await;
    produce(&kafka, "others", 1, 1, 0..1).await;
    // The letters of another topic fail for a while, and with them all that is at work.
    let fault = dtkafka_testcontainers::broker::ResponseError::NotEnoughReplicas;
    broker.control().fail_topic(ApiKey::Produce, "dead", usize::MAX, fault);
    let seen = Seen::default();
    let (log, calls) = (Arc::clone(&seen), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&calls);
    let config = kafka.config().clone().set("delivery.timeout.ms", 500).set("request.timeout.ms", 400);
    let kafka = KafkaInstance::new(config).unwrap();
    let consumer = Consumer::new(&kafka, ["orders", "others"])
        .unwrap()
        .drain_timeout(Duration::from_millis(50))
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 1 && count.fetch_add(1, Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .register_handler("others", async |_: Message<u32>| Err("never".into()))
        .unwrap()
        .error_policy_for("orders", ErrorPolicy::Skip)
        .unwrap()
        .error_policy_for("others", ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| calls.load(Relaxed) > 1).await;
    broker.control().clear();
    until(|| broker.committed("g", "orders", 0) == Some(8)).await;
    running.stop().await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 5, 6, 7]);
    assert_eq!(broker.committed("g", "others", 0), Some(1));
}

#[tokio::test]
async fn a_letter_that_is_too_large_for_its_topic_ends_the_consumer_and_says_what_to_do() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    let dead = dtkafka::NewTopic::new("dead").partitions(1).replication_factor(1);
    kafka.admin().await.unwrap().create_topic(dead.config("max.message.bytes", "500")).await.unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let value = "x".repeat(400);
    producer.send("orders", &value).await.unwrap().await.unwrap();
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<String>| Err("e".repeat(100_000).into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let error = consumer.run(std::future::pending::<()>()).await.unwrap_err();
    assert!(error.to_string().contains("dead"), "{error}");
    assert!(error.hint().unwrap().contains("max.message.bytes"), "{:?}", error.hint());
    assert_eq!(broker.committed("g", "orders", 0).unwrap_or(0), 0);
}

#[tokio::test]
async fn letters_are_acknowledged_by_all_replicas_whatever_the_producers_of_the_user_ask_for() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..1).await;
    let config = kafka.config().clone().set("acks", 0).set("enable.idempotence", false);
    let kafka =
        KafkaInstance::new(config.set("delivery.timeout.ms", 800).set("request.timeout.ms", 700)).unwrap();
    let fault = dtkafka_testcontainers::broker::ResponseError::NotEnoughReplicas;
    broker.control().fail_topic(ApiKey::Produce, "dead", usize::MAX, fault);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<u32>| Err("never".into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    consumer.consume(PATIENCE).await.unwrap_err();
    assert_eq!(broker.committed("g", "orders", 0).unwrap_or(0), 0, "no letter was written");
    broker.control().clear();
    assert_eq!(consumer.consume(PATIENCE).await.unwrap(), 1);
    assert_eq!(broker.committed("g", "orders", 0), Some(1));
    consumer.close().await.unwrap();
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

#[tokio::test]
async fn a_dead_letter_topic_that_is_missing_is_waited_for_and_one_that_is_refused_ends_the_consumer() {
    let broker = EmbeddedBroker::builder().auto_create_topics(false).start().await.unwrap();
    broker.create_topic("orders", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("max.block.ms", 300)
        .set("retry.backoff.ms", 10);
    let kafka = KafkaInstance::new(config).unwrap();
    produce(&kafka, "orders", 1, 1, 0..4).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let consumer = || {
        let calls = Arc::clone(&calls);
        Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| match m.value {
                2 => {
                    calls.fetch_add(1, Relaxed);
                    Err("never this one".into())
                }
                _ => Ok(()),
            })
            .unwrap()
            .error_policy(ErrorPolicy::dead_letter("dead"))
            .unwrap()
    };
    // A topic may be made any time: it is waited for, and said what is missing.
    let running = run(consumer());
    until(|| calls.load(Relaxed) > 2).await;
    assert_eq!(broker.committed("g", "orders", 0), Some(2));
    if let Err(error) = running.stop().await.1 {
        assert!(error.topic() == Some("dead") && error.hint().is_some(), "{error}");
    }
    assert_eq!(broker.committed("g", "orders", 0), Some(2));
    broker.create_topic("dead", 1).unwrap();
    let refusal = dtkafka_testcontainers::broker::ResponseError::TopicAuthorizationFailed;
    broker.control().fail_topic(ApiKey::Produce, "dead", 1, refusal);
    let outcome = tokio::time::timeout(PATIENCE, consumer().run(std::future::pending::<()>())).await;
    let error = outcome.expect("it goes on").unwrap_err();
    assert!(error.topic() == Some("dead") && error.hint().is_some(), "{error}");
    assert_eq!(broker.committed("g", "orders", 0), Some(2));
    // Allowed in the end, it goes on where it stood.
    let running = run(consumer());
    until(|| broker.committed("g", "orders", 0) == Some(4)).await;
    running.stop().await.1.unwrap();
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn a_record_in_a_retry_topic_waits_on_over_a_shutdown_and_counts_on() {
    let (broker, kafka) = broker(&[("orders", 1), ("orders-retry-300ms", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let seen: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    let consumer = || {
        let log = Arc::clone(&seen);
        Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| {
                log.lock().unwrap().push((m.value, m.attempt));
                if m.value == 1 { Err("not this one".into()) } else { Ok(()) }
            })
            .unwrap()
            .error_policy(
                ErrorPolicy::retry(2, Duration::ZERO)
                    .retry_topics([Duration::from_millis(300)])
                    .then_dead_letter("dead"),
            )
            .unwrap()
    };
    let running = run(consumer());
    until(|| broker.records("orders-retry-300ms", 0).unwrap().len() == 1).await;
    running.stop().await.1.unwrap();
    let second = run(consumer());
    until(|| broker.records("dead", 0).unwrap().len() == 1).await;
    second.stop().await.1.unwrap();
    let attempts: Vec<_> =
        seen.lock().unwrap().iter().filter(|(value, _)| *value == 1).map(|(_, attempt)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let letter = &broker.records("dead", 0).unwrap()[0];
    let header = |name: &str| {
        let found = letter.headers.iter().find(|(key, _)| key == &format!("dtkafka-dead-letter-{name}"));
        String::from_utf8(found.unwrap().1.clone().unwrap().to_vec()).unwrap()
    };
    assert_eq!(["topic", "offset", "attempts"].map(header), ["orders", "1", "4"].map(str::to_owned));
    assert_eq!(letter.value.as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn what_waits_in_a_retry_topic_is_not_lost_where_reading_begins_at_the_end() {
    for (reset, by_pattern) in [("latest", false), ("latest", true), ("none", false), ("none", true)] {
        let (broker, kafka) = broker(&[("orders", 1), ("orders-retry-300ms", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..3).await;
        let seen = Seen::default();
        let consumer = |reset: &str, policy: ErrorPolicy| {
            let log = Arc::clone(&seen);
            let settings = |c: ConsumerConfig| c.auto_offset_reset(reset);
            let consumer = match by_pattern {
                true => Consumer::matching_with(&kafka, "orders", settings),
                false => Consumer::new_with(&kafka, ["orders"], settings),
            };
            consumer
                .unwrap()
                .register_handler("orders", async move |m: Message<u32>| {
                    log.lock().unwrap().push(m.value);
                    Ok(())
                })
                .unwrap()
                .error_policy(policy)
                .unwrap()
        };
        let first = run(consumer("earliest", ErrorPolicy::Stop));
        until(|| broker.committed("g", "orders", 0) == Some(3)).await;
        first.stop().await.1.unwrap();
        // A letter that nobody has seen yet: of the retry topic nothing is committed.
        produce(&kafka, "orders-retry-300ms", 1, 1, 3..4).await;
        assert_eq!(broker.committed("g", "orders-retry-300ms", 0), None);
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_millis(300)]);
        let second = run(consumer(reset, policy));
        until(|| broker.committed("g", "orders-retry-300ms", 0) == Some(1)).await;
        second.stop().await.1.unwrap();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3], "{reset} {by_pattern}");
    }
}

#[tokio::test]
async fn topics_of_a_pattern_have_handlers_those_made_later_and_their_retry_topics_too() {
    /// Value and attempt of each message, by handler and topic.
    type Seen = Arc<Mutex<BTreeMap<String, Vec<(u32, u32)>>>>;
    for protocol in ["classic", "consumer"] {
        let (broker, kafka) =
            broker(&[("orders-eu", 2), ("orders-eu-retry-200ms", 1), ("audit", 1), ("dead", 1)]).await;
        produce(&kafka, "audit", 1, 1, 0..3).await;
        produce(&kafka, "orders-eu", 2, 2, 0..6).await;
        let seen = Seen::default();
        let note = |log: &Seen, m: &Message<u32>, name: &str| {
            let place = format!("{name}:{}", m.topic);
            log.lock().unwrap().entry(place).or_default().push((m.value, m.attempt));
        };
        let (eu, rest) = (Arc::clone(&seen), Arc::clone(&seen));
        let settings = |c: ConsumerConfig| c.set("group.protocol", protocol).set("metadata.max.age.ms", 100);
        let consumer = Consumer::matching_with(&kafka, "orders-[a-z]+", settings)
            .unwrap()
            .register_handler("orders-eu", async move |m: Message<u32>| {
                note(&eu, &m, "eu");
                if m.value == 3 && m.attempt == 1 { Err("later".into()) } else { Ok(()) }
            })
            .unwrap()
            .register_handler(Topics::others(), async move |m: Message<u32>| {
                note(&rest, &m, "rest");
                Ok(())
            })
            .unwrap()
            .error_policy_for("orders-eu", ErrorPolicy::Stop.retry_topics([Duration::from_millis(200)]))
            .unwrap();
        let running = run(consumer);
        until(|| seen.lock().unwrap().get("eu:orders-eu").is_some_and(|seen| seen.len() == 7)).await;
        broker.create_topic("orders-us", 1).unwrap();
        produce(&kafka, "orders-us", 1, 1, 0..2).await;
        until(|| seen.lock().unwrap().get("rest:orders-us").is_some_and(|seen| seen.len() == 2)).await;
        running.stop().await.1.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2, "{protocol}: {seen:?}");
        assert!(seen["eu:orders-eu"].contains(&(3, 2)), "{protocol}: {seen:?}");
        assert_eq!(broker.committed("g", "orders-eu", 0), Some(3));
        assert_eq!(broker.committed("g", "orders-eu-retry-200ms", 0), Some(1));
    }
    let (_broker, kafka) = broker(&[]).await;
    let error = Consumer::matching(&kafka, "orders-(").unwrap_err();
    assert!(error.to_string().contains("'orders-('"), "{error}");
    let consumer = Consumer::matching(&kafka, "orders-.*").unwrap();
    let error = consumer.error_policy(ErrorPolicy::dead_letter("orders-dead")).unwrap_err();
    assert!(error.to_string().contains("feed itself"), "{error}");
}
