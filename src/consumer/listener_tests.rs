//! Rebalance listeners against a broker.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use dtkafka_testcontainers::broker::{ApiKey, ResponseError};
use futures_util::StreamExt;
use tokio::sync::Notify;

use super::{
    tests::{Bench, WAIT, joined, read},
    *,
};
use crate::KafkaConfig;

/// What a call was told, and the partitions.
type Told = (&'static str, Vec<i32>);

/// Writes down what it is told, and does what it is asked to.
#[derive(Default, Clone)]
struct Scribe {
    told: Arc<Mutex<Vec<Told>>>,
    /// Each call waits for one.
    gate: Option<Arc<Notify>>,
    seeks: Option<i64>,
    commits: bool,
    panics: Arc<AtomicBool>,
}

impl Scribe {
    async fn write(&self, consumer: &KafkaConsumer, what: &'static str, partitions: &[TopicPartition]) {
        assert!(consumer.poll(Duration::ZERO).await.is_err(), "a poll within a poll");
        let streamed: Vec<_> = consumer.stream().collect().await;
        assert!(matches!(streamed[..], [Err(_)]), "a stream within a poll");
        if self.panics.swap(false, Ordering::Relaxed) {
            panic!("a listener's own bug");
        }
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        for partition in partitions {
            if let (Some(offset), "assigned") = (self.seeks, what) {
                consumer.seek(partition, offset).unwrap();
            }
        }
        if self.commits && what == "revoked" {
            consumer.commit().await.unwrap();
        }
        let numbers = partitions.iter().map(|partition| partition.partition).collect();
        self.told.lock().unwrap().push((what, numbers));
    }

    fn told(&self) -> Vec<(&'static str, Vec<i32>)> {
        self.told.lock().unwrap().clone()
    }
}

impl RebalanceListener for Scribe {
    async fn assigned(&self, consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        self.write(consumer, "assigned", partitions).await;
    }

    async fn revoked(&self, consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        self.write(consumer, "revoked", partitions).await;
    }

    async fn lost(&self, consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        self.write(consumer, "lost", partitions).await;
    }
}

async fn bench() -> (Bench, KafkaConfig) {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 2).await;
    bench.produce("t", 2, 0, 20).await;
    let config = bench.config().set("heartbeat.interval.ms", 50).set("session.timeout.ms", 3_000);
    (bench, config)
}

fn committed(bench: &Bench) -> Vec<Option<i64>> {
    (0..2).map(|partition| bench.broker.as_ref().unwrap().committed("group", "t", partition)).collect()
}

#[tokio::test]
async fn it_is_told_in_order_and_may_seek_and_commit_before_partitions_come_and_go() {
    let (bench, config) = bench().await;
    let scribe = Scribe { seeks: Some(5), commits: true, ..Scribe::default() };
    let first = bench.consumer(&config);
    first.set_rebalance_listener(scribe.clone());
    first.subscribe(["t"]).unwrap();
    // From 5 on each: nothing was handed out before the seek.
    assert_eq!(read(&first, 10).await, (10..20).collect());
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])]);

    let second = bench.consumer(&config);
    second.subscribe(["t"]).unwrap();
    while first.assignment().len() != 1 || second.assignment().is_empty() {
        first.poll(Duration::from_millis(10)).await.unwrap();
        second.poll(Duration::from_millis(10)).await.unwrap();
    }
    first.poll(Duration::ZERO).await.unwrap();
    let kept = first.assignment()[0].partition;
    assert_eq!(scribe.told()[1..], [("revoked", vec![0, 1]), ("assigned", vec![kept])]);
    assert_eq!(committed(&bench), [Some(10), Some(10)]);

    first.close(WAIT).await.unwrap();
    assert_eq!(scribe.told()[3..], [("revoked", vec![kept])]);
}

/// A consumer of `t` whose listener waits at a gate in each call.
async fn at_a_gate() -> (Bench, KafkaConsumer, Scribe, Arc<Notify>) {
    let (bench, config) = bench().await;
    let gate = Arc::new(Notify::new());
    let scribe = Scribe { gate: Some(Arc::clone(&gate)), ..Scribe::default() };
    let consumer = bench.consumer(&config);
    consumer.set_rebalance_listener(scribe.clone());
    consumer.subscribe(["t"]).unwrap();
    (bench, consumer, scribe, gate)
}

#[tokio::test]
async fn a_call_goes_on_in_the_next_poll_however_often_polls_are_dropped() {
    let (_bench, consumer, scribe, gate) = at_a_gate().await;
    let deadline = time::now() + WAIT;
    while consumer.assignment().is_empty() {
        assert!(time::now() < deadline);
        let _dropped = tokio::time::timeout(Duration::from_millis(20), consumer.poll(WAIT)).await;
    }
    for _ in 0..20 {
        let poll = tokio::time::timeout(Duration::from_millis(5), consumer.poll(WAIT)).await;
        assert!(poll.is_err() && scribe.told().is_empty(), "nothing is handed out before it has returned");
    }
    gate.notify_one();
    read(&consumer, 20).await;
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])], "once");
    // A close that is dropped in its call closes all the same.
    let closing = tokio::time::timeout(Duration::from_millis(20), consumer.close(WAIT)).await;
    assert!(closing.is_err());
    while !consumer.shared.lock().is_closed() {
        assert!(time::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn two_that_poll_at_once_make_one_call_at_a_time() {
    let (_bench, consumer, scribe, gate) = at_a_gate().await;
    let opens = async {
        while consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(scribe.told().is_empty());
        gate.notify_one();
    };
    let (one, other, ()) =
        tokio::join!(consumer.poll(Duration::from_secs(3)), consumer.poll(Duration::from_secs(3)), opens);
    assert!(one.unwrap().len() + other.unwrap().len() > 0);
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])]);
}

#[tokio::test]
async fn what_was_taken_away_is_told_as_lost_before_what_comes_next() {
    let (bench, config) = bench().await;
    let scribe = Scribe::default();
    let consumer = bench.consumer(&config);
    consumer.set_rebalance_listener(scribe.clone());
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 20).await;
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while !consumer.assignment().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    joined(&consumer).await;
    while scribe.told().len() < 3 {
        consumer.poll(Duration::from_millis(10)).await.unwrap();
    }
    assert_eq!(scribe.told(), [("assigned", vec![0, 1]), ("lost", vec![0, 1]), ("assigned", vec![0, 1])]);
    consumer.unsubscribe().unwrap();
    consumer.subscribe(["t"]).unwrap();
    while scribe.told().len() < 5 {
        consumer.poll(Duration::from_millis(10)).await.unwrap();
    }
    assert_eq!(scribe.told()[3..], [("lost", vec![0, 1]), ("assigned", vec![0, 1])]);
}

#[tokio::test]
async fn a_revocation_that_nobody_polls_for_ends_with_its_time_and_is_told_as_lost() {
    let (bench, config) = bench().await;
    let config = config.set("max.poll.interval.ms", 600);
    let scribe = Scribe::default();
    let idle = bench.consumer(&config);
    idle.set_rebalance_listener(scribe.clone());
    idle.subscribe(["t"]).unwrap();
    joined(&idle).await;
    idle.poll(Duration::ZERO).await.unwrap();
    let other = bench.consumer(&config);
    other.subscribe(["t"]).unwrap();
    tokio::time::timeout(WAIT, async {
        while other.assignment().len() < 2 {
            other.poll(Duration::from_millis(20)).await.unwrap();
        }
    })
    .await
    .unwrap();
    let _records = idle.poll(Duration::from_millis(50)).await.unwrap();
    assert_eq!(scribe.told()[..2], [("assigned", vec![0, 1]), ("lost", vec![0, 1])]);
}

#[tokio::test]
async fn a_panic_reaches_who_polls_and_the_consumer_goes_on() {
    let (bench, config) = bench().await;
    let scribe = Scribe::default();
    scribe.panics.store(true, Ordering::Relaxed);
    let consumer = Arc::new(bench.consumer(&config));
    consumer.set_rebalance_listener(scribe.clone());
    consumer.subscribe(["t"]).unwrap();
    let polled = Arc::clone(&consumer);
    #[expect(clippy::disallowed_methods, reason = "a panic stays in its task")]
    let panicked = tokio::spawn(async move { polled.poll(WAIT).await.map(drop) }).await;
    assert!(panicked.unwrap_err().is_panic());
    assert_eq!(read(&consumer, 20).await.len(), 20);
}

#[tokio::test]
async fn a_poll_waits_for_a_call_that_another_has_begun_as_long_as_its_own_time_and_no_longer() {
    let (_bench, consumer, scribe, gate) = at_a_gate().await;
    let mut first = std::pin::pin!(consumer.poll(WAIT));
    while !consumer.shared.lock().is_telling() || consumer.assignment().is_empty() {
        let _pending = tokio::time::timeout(Duration::from_millis(20), first.as_mut()).await;
    }
    let _at_the_gate = tokio::time::timeout(Duration::from_millis(20), first.as_mut()).await;
    // Nobody polls the first.
    let second = tokio::time::timeout(WAIT, consumer.poll(Duration::from_millis(20))).await.unwrap();
    assert!(second.unwrap().is_empty() && scribe.told().is_empty());
    gate.notify_one();
    assert!(!first.await.unwrap().is_empty());
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])]);
}

#[tokio::test]
async fn a_call_that_is_dropped_by_another_panic_goes_on_in_the_next_poll() {
    let (bench, config) = bench().await;
    let gate = Arc::new(Notify::new());
    let scribe = Scribe { gate: Some(Arc::clone(&gate)), ..Scribe::default() };
    let consumer = Arc::new(bench.consumer(&config));
    consumer.set_rebalance_listener(scribe.clone());
    consumer.subscribe(["t"]).unwrap();
    let polled = Arc::clone(&consumer);
    let panics = async move {
        let other = async {
            while polled.assignment().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            panic!("not the listener's bug");
        };
        tokio::join!(polled.poll(WAIT), other).0.map(drop)
    };
    #[expect(clippy::disallowed_methods, reason = "a panic stays in its task")]
    let panicked = tokio::spawn(panics).await;
    assert!(panicked.unwrap_err().is_panic() && scribe.told().is_empty());
    gate.notify_one();
    assert_eq!(read(&consumer, 20).await.len(), 20);
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])], "once, and to its end");
}

#[tokio::test]
async fn a_stream_makes_the_calls_as_well() {
    let (bench, config) = bench().await;
    let scribe = Scribe { seeks: Some(5), ..Scribe::default() };
    let consumer = bench.consumer(&config);
    consumer.set_rebalance_listener(scribe.clone());
    consumer.subscribe(["t"]).unwrap();
    let mut stream = consumer.stream();
    for _ in 0..10 {
        let record = tokio::time::timeout(WAIT, stream.next()).await.unwrap().unwrap().unwrap();
        assert!(record.offset >= 5);
    }
    assert_eq!(scribe.told(), [("assigned", vec![0, 1])]);
}
