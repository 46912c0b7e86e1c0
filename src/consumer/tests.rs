//! The consumer against a broker, over TCP: what all such tests share, and reading.

mod acknowledged;
mod closing;
mod commits;
mod lookups;
mod membership;

use std::{collections::BTreeSet, time::Duration};

use dtkafka_testcontainers::{
    EmbeddedBroker, FaultControl,
    broker::{ApiKey, ResponseError},
};
use futures_util::StreamExt;

use super::*;
use crate::{
    KafkaProducer,
    cluster::{Lane, kafka_string},
    config::KafkaConfig,
    connection::api::wire,
    record::ProducerRecord,
};

pub(super) const WAIT: Duration = Duration::from_secs(30);

/// The embedded broker, or the one that `KAFKA_BOOTSTRAP` names.
pub(super) struct Bench {
    bootstrap: String,
    pub(super) broker: Option<EmbeddedBroker>,
}

impl Bench {
    pub(super) async fn start() -> Self {
        Self::of(1).await
    }

    pub(super) async fn of(brokers: i32) -> Self {
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
            return Self { bootstrap, broker: None };
        }
        Self::embedded(brokers).await
    }

    /// For faults, which only the embedded broker can be told to have.
    pub(super) async fn embedded(brokers: i32) -> Self {
        let broker = EmbeddedBroker::builder().brokers(brokers).start().await.unwrap();
        Self { bootstrap: broker.bootstrap_servers(), broker: Some(broker) }
    }

    pub(super) fn control(&self) -> FaultControl {
        self.broker.as_ref().unwrap().control()
    }

    pub(super) fn config(&self) -> KafkaConfig {
        KafkaConfig::new()
            .set_bootstrap_servers(self.bootstrap.as_str())
            .set_group_id("group")
            .set_auto_offset_reset("earliest")
            .set_enable_auto_commit(false)
    }

    pub(super) fn cluster(&self) -> Cluster {
        Cluster::start(Arc::new(self.config().resolve_client().unwrap())).unwrap()
    }

    pub(super) fn consumer(&self, config: &KafkaConfig) -> KafkaConsumer {
        let client = Arc::new(self.config().resolve_client().unwrap());
        KafkaConsumer::start(client, config.resolve_consumer().unwrap()).unwrap()
    }

    pub(super) async fn topic(&self, name: &str, partitions: i32) {
        let cluster = self.cluster();
        let deadline = time::now() + WAIT;
        let topic = wire::create_topics_request::CreatableTopic {
            name: kafka_string(name),
            num_partitions: partitions,
            replication_factor: 1,
            ..Default::default()
        };
        let request =
            wire::CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
        cluster.connect(deadline).await.unwrap();
        let controller = cluster.metadata().controller.unwrap();
        let answer = cluster.call(controller, Lane::Main, request, deadline).await.unwrap();
        assert_eq!(answer.topics[0].error_code, 0, "{answer:?}");
    }

    pub(super) async fn produce(&self, topic: &str, partitions: i32, from: i32, count: i32) {
        let producer =
            KafkaProducer::start(self.cluster(), self.config().resolve_producer().unwrap()).await.unwrap();
        for number in from..from + count {
            let value = format!("value-{number}");
            let record = ProducerRecord::new(topic).value(&value).partition(number % partitions);
            drop(producer.send_record(record).await.unwrap());
        }
        producer.flush().await.unwrap();
        producer.close().await.unwrap();
    }
}

fn unique(name: &str) -> String {
    format!("{name}-{}", time::Environment::default().rng().next_u64())
}

fn number(value: &[u8]) -> i32 {
    std::str::from_utf8(value).unwrap().strip_prefix("value-").unwrap().parse().unwrap()
}

/// Polls until `count` records have come, and checks the order within each partition.
pub(super) async fn read(consumer: &KafkaConsumer, count: usize) -> BTreeSet<i32> {
    let deadline = time::now() + WAIT;
    let (mut numbers, mut next) = (BTreeSet::new(), BTreeMap::new());
    while numbers.len() < count {
        assert!(time::now() < deadline, "only {} of {count} records came", numbers.len());
        let records = consumer.poll(Duration::from_secs(1)).await.unwrap();
        for (partition, records) in &records {
            for record in records {
                let expected = next.entry(partition.clone()).or_insert_with(|| record.offset());
                assert_eq!(*expected, record.offset(), "a hole or a repetition in {partition}");
                *expected += 1;
                assert!(numbers.insert(number(record.value().unwrap())));
            }
        }
    }
    numbers
}

#[tokio::test]
async fn a_group_reads_everything_and_its_next_life_goes_on_where_it_committed() {
    let bench = Bench::start().await;
    let topic = unique("resume");
    bench.topic(&topic, 6).await;
    bench.produce(&topic, 6, 0, 10_000).await;
    let config = bench.config().set_group_id(&topic);
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    assert_eq!(read(&consumer, 10_000).await.len(), 10_000);
    assert_eq!(consumer.assignment().len(), 6);
    consumer.commit().await.unwrap();
    let committed = consumer.committed(consumer.assignment()).await.unwrap();
    assert_eq!(committed.values().flatten().map(|committed| committed.offset).sum::<i64>(), 10_000);
    consumer.close(WAIT).await.unwrap();
    assert_eq!(consumer.poll(WAIT).await.unwrap_err().kind(), ErrorKind::Closed);

    bench.produce(&topic, 6, 10_000, 60).await;
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    assert_eq!(read(&consumer, 60).await, (10_000..10_060).collect());
    consumer.close(WAIT).await.unwrap();
}

#[tokio::test]
async fn assigned_partitions_can_be_sought_paused_and_asked_about() {
    let bench = Bench::start().await;
    let topic = unique("seek");
    bench.topic(&topic, 2).await;
    bench.produce(&topic, 2, 0, 200).await;
    let consumer = bench.consumer(&bench.config());
    let keys: Vec<_> = (0..2).map(|partition| TopicPartition::new(topic.as_str(), partition)).collect();
    consumer.assign(keys.clone()).unwrap();
    assert!(consumer.subscribe([&topic]).is_err());
    assert_eq!(
        consumer.end_offsets(keys.clone()).await.unwrap().into_values().collect::<Vec<_>>(),
        [100, 100]
    );
    assert_eq!(consumer.beginning_offsets(keys.clone()).await.unwrap().into_values().sum::<i64>(), 0);
    assert_eq!(consumer.position(&keys[0]).await.unwrap(), 0);
    consumer.seek(&keys[0], 90).unwrap();
    consumer.pause([keys[1].clone()]).unwrap();
    assert_eq!(read(&consumer, 10).await, (180..200).step_by(2).collect());
    assert!(consumer.poll(Duration::from_millis(200)).await.unwrap().is_empty());
    assert_eq!(consumer.position(&keys[0]).await.unwrap(), 100);
    assert_eq!(consumer.lag()[&keys[0]], 0);
    consumer.resume([keys[1].clone()]).unwrap();
    assert_eq!(read(&consumer, 100).await, (1..200).step_by(2).collect());
    consumer.seek_to_beginning(&keys).unwrap();
    assert_eq!(read(&consumer, 200).await.len(), 200);
    consumer.seek_to_end(&keys).unwrap();
    assert!(consumer.poll(Duration::from_millis(300)).await.unwrap().is_empty());
    // Outside the log: the reset policy (earliest) brings it back to the start.
    consumer.seek(&keys[1], 1_000_000).unwrap();
    assert_eq!(read(&consumer, 100).await, (1..200).step_by(2).collect());
}

#[tokio::test]
async fn a_stream_yields_every_record_and_commits_never_pass_one_that_was_not_yielded() {
    let bench = Bench::start().await;
    let topic = unique("stream");
    bench.topic(&topic, 3).await;
    bench.produce(&topic, 3, 0, 300).await;
    let config = bench.config().set_group_id(&topic);
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    let mut numbers = BTreeSet::new();
    {
        let mut stream = consumer.stream();
        while numbers.len() < 100 {
            let record = stream.next().await.unwrap().unwrap();
            assert!(numbers.insert(number(record.value.as_deref().unwrap())));
        }
        consumer.commit().await.unwrap();
    }
    let committed = consumer.committed(consumer.assignment()).await.unwrap();
    assert_eq!(committed.values().flatten().map(|committed| committed.offset).sum::<i64>(), 100);
    // The rest comes by polls: the stream kept nothing back.
    numbers.extend(read(&consumer, 200).await);
    assert_eq!(numbers.len(), 300);
    consumer.close(WAIT).await.unwrap();
    let mut stream = consumer.stream();
    assert!(stream.next().await.unwrap().is_err());
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn polls_that_are_dropped_lose_nothing() {
    let bench = Bench::start().await;
    let topic = unique("cancel");
    bench.topic(&topic, 1).await;
    let config = bench.config().set_group_id(&topic);
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    let reader = async {
        let mut offsets = Vec::new();
        while offsets.len() < 2_000 {
            tokio::select! {
                biased;
                records = consumer.poll(WAIT) => {
                    offsets.extend(records.unwrap().records().map(|record| record.offset()));
                }
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
        offsets
    };
    let (offsets, ()) = tokio::join!(reader, bench.produce(&topic, 1, 0, 2_000));
    assert_eq!(offsets, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "two threads of a user poll at once")]
async fn what_one_poll_leaves_is_there_for_another_that_has_met_it_at_work() {
    let bench = Bench::start().await;
    let topic = unique("two");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 30_000).await;
    let config = bench.config().set_group_id(&topic).set("max.poll.records", 10);
    let consumer = Arc::new(bench.consumer(&config));
    let partition = TopicPartition::new(topic.as_str(), 0);
    consumer.assign([partition.clone()]).unwrap();
    let is_decoding = || {
        let core = consumer.shared.lock();
        core.partitions.get(&partition).is_some_and(|partition| partition.queue.is_checked_out())
    };
    while consumer.buffered_bytes() == 0 {
        tokio::task::yield_now().await;
    }
    let first = tokio::spawn({
        let consumer = Arc::clone(&consumer);
        async move { consumer.poll(WAIT).await.unwrap().len() }
    });
    while !is_decoding() && !first.is_finished() {
        std::hint::spin_loop();
    }
    assert_eq!(consumer.poll(WAIT).await.unwrap().len(), 10, "it has waited for something else to come");
    assert_eq!(first.await.unwrap(), 10);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "another task of the user's")]
async fn a_loop_of_polls_that_fail_leaves_the_runtime_to_others() {
    let bench = Bench::embedded(1).await;
    let topic = unique("damaged");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 1).await;
    bench.control().damage(&topic, 0, 0).unwrap();
    let consumer = bench.consumer(&bench.config());
    consumer.assign([TopicPartition::new(topic.as_str(), 0)]).unwrap();
    consumer.poll(WAIT).await.unwrap_err();
    let other = tokio::spawn(async {});
    for _ in 0..10 {
        consumer.poll(WAIT).await.unwrap_err();
    }
    assert!(other.is_finished());
    // Nor does one that does not end with the consumer keep others from closing it.
    consumer.close(WAIT).await.unwrap();
    consumer.poll(WAIT).await.unwrap_err();
    let other = tokio::spawn(async {});
    for _ in 0..10 {
        assert_eq!(consumer.poll(WAIT).await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert!(other.is_finished());
}

#[tokio::test]
async fn faults_of_group_and_fetch_are_lived_through() {
    let bench = Bench::embedded(2).await;
    let topic = unique("faults");
    bench.topic(&topic, 4).await;
    bench.produce(&topic, 4, 0, 400).await;
    let control = bench.control();
    control.fail(ApiKey::FindCoordinator, 2, ResponseError::CoordinatorNotAvailable);
    control.fail(ApiKey::JoinGroup, 1, ResponseError::CoordinatorLoadInProgress);
    control.fail(ApiKey::SyncGroup, 1, ResponseError::RebalanceInProgress);
    control.fail(ApiKey::OffsetFetch, 1, ResponseError::NotCoordinator);
    control.fail(ApiKey::ListOffsets, 1, ResponseError::NotLeaderOrFollower);
    control.fail(ApiKey::Fetch, 2, ResponseError::NotLeaderOrFollower);
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "100"));
    consumer.subscribe([&topic]).unwrap();
    assert_eq!(read(&consumer, 400).await.len(), 400);
    control.disconnect_before(ApiKey::Fetch, 2);
    control.disconnect_before(ApiKey::Heartbeat, 1);
    control.fail(ApiKey::OffsetCommit, 2, ResponseError::NotCoordinator);
    consumer.commit().await.unwrap();
    bench.produce(&topic, 4, 400, 400).await;
    assert_eq!(read(&consumer, 400).await, (400..800).collect());
    consumer.close(WAIT).await.unwrap();
}

#[tokio::test]
async fn a_refusal_that_the_user_must_mend_is_told_by_the_poll() {
    let bench = Bench::embedded(1).await;
    let topic = unique("refused");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 1).await;
    bench.control().fail(ApiKey::JoinGroup, 1, ResponseError::GroupAuthorizationFailed);
    let consumer = bench.consumer(&bench.config().set_group_id(&topic));
    consumer.subscribe([&topic]).unwrap();
    let error = consumer.poll(WAIT).await.unwrap_err();
    assert_eq!(error.code().unwrap().0, 30);
    assert!(error.hint().is_some(), "{error}");
    // Mended: the same consumer goes on.
    assert_eq!(read(&consumer, 1).await.len(), 1);
}

#[tokio::test]
async fn without_an_offset_and_without_a_reset_policy_the_poll_says_so() {
    let bench = Bench::start().await;
    let topic = unique("none");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set_auto_offset_reset("none"));
    let partition = TopicPartition::new(topic.as_str(), 0);
    consumer.assign([partition.clone()]).unwrap();
    let error = consumer.poll(WAIT).await.unwrap_err();
    assert_eq!((error.topic(), error.partition()), (Some(topic.as_str()), Some(0)));
    consumer.seek(&partition, 5).unwrap();
    assert_eq!(read(&consumer, 5).await, (5..10).collect());
}

#[tokio::test]
async fn buffered_bytes_stay_within_the_budget_and_everything_is_read() {
    let bench = Bench::start().await;
    let topic = unique("budget");
    bench.topic(&topic, 4).await;
    bench.produce(&topic, 4, 0, 40_000).await;
    let config = bench
        .config()
        .set_group_id(&topic)
        .set("fetch.buffer.memory", "131072")
        .set("max.partition.fetch.bytes", "65536")
        .set("max.poll.records", "100");
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    let (mut numbers, mut most) = (BTreeSet::new(), 0);
    while numbers.len() < 40_000 {
        let records = consumer.poll(WAIT).await.unwrap();
        most = most.max(consumer.buffered_bytes());
        numbers.extend(records.records().map(|record| number(record.value().unwrap())));
    }
    // One oversized batch may come on top; these batches are 16 KiB.
    assert!(most > 0 && most <= 131_072 + 65_536, "{most}");
}

/// Never called: that it compiles is the test.
#[allow(dead_code, reason = "it is only compiled")]
fn every_call_may_be_made_in_a_spawned_task(consumer: &KafkaConsumer, partition: TopicPartition) {
    fn sends<T: Send>(_: T) {}
    sends(consumer.poll(WAIT));
    sends(consumer.stream());
    sends(consumer.commit());
    sends(consumer.commit_offsets([(partition.clone(), 1)]));
    sends(consumer.committed([partition.clone()]));
    sends(consumer.position(&partition));
    sends(consumer.beginning_offsets([partition.clone()]));
    sends(consumer.end_offsets([partition.clone()]));
    sends(consumer.close(WAIT));
}

/// Polls until something is assigned.
pub(super) async fn joined(consumer: &KafkaConsumer) {
    let deadline = time::now() + WAIT;
    while consumer.assignment().is_empty() {
        assert!(time::now() < deadline);
        consumer.poll(Duration::from_millis(20)).await.unwrap();
    }
}

/// A member that the group forgets soon.
fn brief(bench: &Bench) -> KafkaConfig {
    bench.config().set("heartbeat.interval.ms", 50).set("session.timeout.ms", 3_000)
}
