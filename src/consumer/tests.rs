//! The consumer against a broker, over TCP.

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
async fn two_members_share_the_partitions_and_nothing_is_read_twice_after_the_rebalance() {
    let bench = Bench::start().await;
    let topic = unique("share");
    bench.topic(&topic, 6).await;
    bench.produce(&topic, 6, 0, 6_000).await;
    let config =
        bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "200").set_enable_auto_commit(true);
    let first = bench.consumer(&config);
    first.subscribe([&topic]).unwrap();
    let mut numbers = read(&first, 3_000).await;
    let second = bench.consumer(&config);
    second.subscribe([&topic]).unwrap();
    let deadline = time::now() + WAIT;
    while numbers.len() < 6_000 || second.assignment().len() != 3 {
        assert!(time::now() < deadline, "{} records, {:?}", numbers.len(), second.assignment());
        let polls =
            tokio::join!(first.poll(Duration::from_millis(100)), second.poll(Duration::from_millis(100)));
        for records in [polls.0.unwrap(), polls.1.unwrap()] {
            for record in records.records() {
                assert!(numbers.insert(number(record.value().unwrap())), "{record:?} came twice");
            }
        }
    }
    assert_eq!(first.assignment().len(), 3);
    // The one that is left takes over what the other leaves, and reads on where it stopped.
    first.poll(Duration::ZERO).await.unwrap();
    first.close(WAIT).await.unwrap();
    bench.produce(&topic, 6, 6_000, 600).await;
    assert_eq!(read(&second, 600).await, (6_000..6_600).collect());
    assert_eq!(second.assignment().len(), 6);
    second.close(WAIT).await.unwrap();
}

#[tokio::test]
async fn an_automatic_commit_covers_what_earlier_polls_handed_out_and_no_more() {
    let bench = Bench::start().await;
    let topic = unique("auto");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    let config =
        bench.config().set_group_id(&topic).set_enable_auto_commit(true).set("max.poll.records", "4");
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    assert_eq!(read(&consumer, 4).await.len(), 4);
    assert_eq!(read(&consumer, 4).await.len(), 4);
    consumer.close(WAIT).await.unwrap();
    let consumer = bench.consumer(&config);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let committed = consumer.committed([partition.clone()]).await.unwrap();
    assert_eq!(committed[&partition].as_ref().map(|committed| committed.offset), Some(4));
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

#[tokio::test]
async fn closing_and_dropping_return_at_once_when_no_broker_answers() {
    let nowhere = Bench { bootstrap: "127.0.0.1:1".to_owned(), broker: None };
    let consumer = nowhere.consumer(&nowhere.config());
    consumer.subscribe(["t"]).unwrap();
    let error = consumer.poll(Duration::from_millis(100)).await;
    assert!(error.as_ref().is_ok_and(ConsumerRecords::is_empty), "{error:?}");
    let started = time::now();
    let _ = consumer.close(Duration::from_millis(500)).await;
    drop(consumer);
    assert!(time::now() - started < Duration::from_secs(2));
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
async fn unsubscribing_and_closing_are_nothing_to_warn_of() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (log, bench, topic) = (Log::default(), Bench::start().await, unique("quiet"));
    bench.topic(&topic, 2).await;
    bench.produce(&topic, 2, 0, 10).await;
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Of this thread, on which everything here runs.
    crate::heard::on_every_thread();
    let _guard = tracing::subscriber::set_default(subscriber);
    let settings = bench.config().set_group_id(&topic).resolve_consumer().unwrap();
    let consumer = KafkaConsumer::start_on(bench.cluster(), settings, None).unwrap();
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.unsubscribe().unwrap();
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.close(WAIT).await.unwrap();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("partitions assigned"), "the log is empty: {log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn a_member_that_was_expelled_joins_again_and_reads_on_from_the_commit() {
    let bench = Bench::embedded(1).await;
    let topic = unique("expelled");
    bench.topic(&topic, 2).await;
    bench.produce(&topic, 2, 0, 100).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "50"));
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 100).await;
    consumer.commit().await.unwrap();
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    bench.produce(&topic, 2, 100, 100).await;
    let mut numbers = BTreeSet::new();
    while numbers.len() < 100 {
        for record in consumer.poll(WAIT).await.unwrap().records() {
            numbers.insert(number(record.value().unwrap()));
        }
    }
    // What was not committed may come again, what was must not.
    assert_eq!(numbers, (100..200).collect());
}

#[tokio::test]
async fn partitions_follow_their_leader_and_their_coordinator() {
    let bench = Bench::embedded(3).await;
    let topic = unique("moves");
    bench.topic(&topic, 3).await;
    bench.produce(&topic, 3, 0, 90).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "50"));
    consumer.subscribe([&topic]).unwrap();
    let mut numbers = read(&consumer, 90).await;
    for (round, broker) in [(0, 2), (1, 3), (2, 1)] {
        for partition in 0..3 {
            bench.control().move_leader(&topic, partition, broker).unwrap();
        }
        bench.control().move_coordinator(&topic, broker).unwrap();
        bench.produce(&topic, 3, 90 + round * 30, 30).await;
        numbers.extend(read(&consumer, 30).await);
        consumer.commit().await.unwrap();
    }
    assert_eq!(numbers, (0..180).collect());
    let committed = consumer.committed(consumer.assignment()).await.unwrap();
    assert_eq!(committed.values().flatten().map(|committed| committed.offset).sum::<i64>(), 180);
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
async fn closing_ends_by_its_deadline_when_the_coordinator_is_silent() {
    let bench = Bench::embedded(1).await;
    let topic = unique("silent");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set_enable_auto_commit(true));
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.poll(Duration::ZERO).await.unwrap();
    bench.control().hold(ApiKey::OffsetCommit);
    bench.control().hold(ApiKey::LeaveGroup);
    let started = time::now();
    assert_eq!(consumer.close(Duration::from_millis(300)).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(time::now() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn a_consumer_holds_nothing_once_a_close_that_was_too_short_has_returned() {
    let bench = Bench::embedded(1).await;
    let topic = unique("held");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    bench.control().hold(ApiKey::OffsetCommit);
    for group in 0..5 {
        let config = bench.config().set_group_id(format!("{topic}-{group}")).set("max.poll.records", "2");
        let consumer = bench.consumer(&config.set_enable_auto_commit(true));
        consumer.subscribe([&topic]).unwrap();
        read(&consumer, 4).await;
        assert!(consumer.buffered_bytes() > 0);
        assert_eq!(consumer.close(Duration::from_millis(20)).await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(consumer.buffered_bytes(), 0);
    }
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

// What a member leaves behind, and what it may not.

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

#[tokio::test]
async fn a_position_that_was_only_looked_up_is_committed_so_that_the_next_member_skips_nothing() {
    for how in ["interval", "commit", "close"] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        let config = bench.config().set_auto_offset_reset("latest").set_enable_auto_commit(how != "commit");
        let interval = if how == "interval" { 50 } else { 60_000 };
        let config = config.set("auto.commit.interval.ms", interval);
        let first = bench.consumer(&config);
        first.subscribe(["t"]).unwrap();
        joined(&first).await;
        assert_eq!(first.position(&TopicPartition::new("t", 0)).await.unwrap(), 0);
        if how == "commit" {
            first.commit().await.unwrap();
        }
        let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
        while how == "interval" && committed() != Some(0) {
            first.poll(Duration::from_millis(20)).await.unwrap();
        }
        bench.produce("t", 1, 0, 10).await;
        first.close(WAIT).await.unwrap();
        assert_eq!(committed(), Some(0), "{how}");
        let next = bench.consumer(&config);
        next.subscribe(["t"]).unwrap();
        assert_eq!(read(&next, 10).await.len(), 10, "{how}");
    }
}

#[tokio::test]
async fn the_place_of_a_seek_is_committed_by_the_close_forwards_and_backwards() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    for place in [7, 3] {
        let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
        let partition = TopicPartition::new("t", 0);
        consumer.subscribe(["t"]).unwrap();
        joined(&consumer).await;
        consumer.seek(&partition, place).unwrap();
        consumer.close(WAIT).await.unwrap();
        assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(place));
    }
}

#[tokio::test]
async fn a_coordinator_that_cannot_be_reached_any_more_is_looked_for_again() {
    let bench = Bench::embedded(2).await;
    bench.topic("t", 1).await;
    let control = bench.control();
    control.move_leader("t", 0, 1).unwrap();
    control.move_coordinator("group", 2).unwrap();
    let consumer = bench.consumer(&bench.config());
    let partition = TopicPartition::new("t", 0);
    consumer.assign([partition.clone()]).unwrap();
    consumer.commit_offsets([(partition.clone(), 5)]).await.unwrap();
    control.stop_broker(2).unwrap();
    let committed = consumer.committed([partition.clone()]).await.unwrap();
    assert_eq!(committed[&partition].as_ref().map(|committed| committed.offset), Some(5));
    consumer.commit_offsets([(partition.clone(), 6)]).await.unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(6));
}

#[tokio::test]
async fn a_static_leader_that_comes_back_reads_what_its_topics_have_grown_by_meanwhile() {
    for assignor in ["range", "sticky", "cooperative-sticky"] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let config =
            bench.config().set("group.instance.id", "one").set("partition.assignment.strategy", assignor);
        let first = bench.consumer(&config);
        first.subscribe(["t"]).unwrap();
        read(&first, 10).await;
        // It stays in the group, and leads it.
        first.close(WAIT).await.unwrap();
        bench.broker.as_ref().unwrap().grow_topic("t", 3).unwrap();
        bench.produce("t", 3, 10, 30).await;
        let second = bench.consumer(&config);
        second.subscribe(["t"]).unwrap();
        assert_eq!(read(&second, 40).await.len(), 40, "{assignor}");
        second.close(WAIT).await.unwrap();
    }
}

#[tokio::test]
async fn the_place_of_a_seek_to_the_end_is_committed_by_the_close() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    bench.produce("t", 1, 10, 90).await;
    let key = TopicPartition::new("t", 0);
    consumer.seek_to_end([&key]).unwrap();
    assert_eq!(consumer.position(&key).await.unwrap(), 100);
    consumer.close(WAIT).await.unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(100));
}

#[tokio::test]
async fn after_a_loss_a_commit_says_so_and_nothing_of_the_earlier_life_is_committed() {
    let bench = Bench::embedded(1).await;
    let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 100).await;
    let key = TopicPartition::new("t", 0);
    let config = brief(&bench).set("max.poll.records", 50);
    let first = bench.consumer(&config);
    first.subscribe(["t"]).unwrap();
    read(&first, 50).await;
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while !first.assignment().is_empty() {
        tokio::task::yield_now().await;
    }
    // It is not in the group, and does not come back by itself.
    let joins = bench.control().requests(ApiKey::JoinGroup);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.control().requests(ApiKey::JoinGroup), joins);
    for error in [first.commit().await, first.commit().await] {
        error.unwrap_err();
    }
    first.commit_offsets([(key.clone(), 50)]).await.unwrap_err();
    assert_eq!(committed(), None);

    // Another member goes on and leaves; the first takes the partition again.
    let second = bench.consumer(&config.clone().set("max.poll.records", 500));
    second.subscribe(["t"]).unwrap();
    read(&second, 100).await;
    second.commit().await.unwrap();
    second.close(WAIT).await.unwrap();
    joined(&first).await;
    assert_eq!(first.position(&key).await.unwrap(), 100);
    first.commit().await.expect_err("the member that is back is told once");
    let error = first.commit_offsets([(key.clone(), 50)]).await.unwrap_err();
    assert!(error.to_string().contains("seek"), "{error}");
    assert_eq!(committed(), Some(100));
    // Who goes back on purpose may.
    first.seek(&key, 50).unwrap();
    first.commit().await.unwrap();
    assert_eq!(committed(), Some(50));
}

#[tokio::test]
async fn records_of_a_lost_life_are_told_of_also_when_the_next_poll_came_first() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&brief(&bench));
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while !consumer.assignment().is_empty() {
        tokio::task::yield_now().await;
    }
    joined(&consumer).await;
    consumer.commit().await.unwrap_err();
    consumer.commit().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_kept_and_not_polled_gives_its_partitions_up() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let config = bench.config().set("max.poll.interval.ms", 600).set("heartbeat.interval.ms", 50);
    let consumer = bench.consumer(&config);
    consumer.subscribe(["t"]).unwrap();
    joined(&consumer).await;
    let mut stream = consumer.stream();
    // Waited for, it keeps the partitions however long nothing comes.
    let waited = tokio::time::timeout(Duration::from_millis(1500), stream.next()).await;
    assert!(waited.is_err() && !consumer.assignment().is_empty());
    tokio::time::timeout(WAIT, async {
        while !consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_coordinator_that_hangs_is_asked_over_another_connection() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let consumer = bench.consumer(&brief(&bench));
    consumer.subscribe(["t"]).unwrap();
    joined(&consumer).await;
    let joins = bench.control().requests(ApiKey::JoinGroup);
    bench.control().hold(ApiKey::Heartbeat);
    let deadline = time::now() + WAIT;
    while bench.control().requests(ApiKey::JoinGroup) == joins {
        assert!(time::now() < deadline, "the join waits behind the heartbeat that hangs");
        consumer.poll(Duration::from_millis(20)).await.unwrap();
    }
    bench.control().clear();
    joined(&consumer).await;
}

#[tokio::test]
async fn a_close_that_is_too_late_leaves_the_group_all_the_same() {
    for hung in [false, true] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        consumer.poll(Duration::ZERO).await.unwrap();
        if hung {
            bench.control().hold(ApiKey::OffsetCommit);
        }
        let within = Duration::from_millis(if hung { 200 } else { 0 });
        let error = consumer.close(within).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        drop(consumer);
        bench.control().clear();
        let deadline = time::now() + WAIT;
        while bench.control().requests(ApiKey::LeaveGroup) == 0 {
            assert!(time::now() < deadline, "hung {hung}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn who_commits_after_every_poll_sees_no_error_while_others_come_and_go() {
    for strategy in ["range", "cooperative-sticky"] {
        commits_while_others_come_and_go(strategy).await;
    }
}

async fn commits_while_others_come_and_go(strategy: &str) {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 4).await;
    bench.produce("t", 4, 0, 40).await;
    let config = bench.config().set("heartbeat.interval.ms", 20).set("max.poll.records", 3);
    let config = config.set("partition.assignment.strategy", strategy);
    let stays = bench.consumer(&config);
    stays.subscribe(["t"]).unwrap();
    let polling = async {
        loop {
            stays.poll(Duration::from_millis(10)).await.unwrap();
            stays.commit().await.unwrap();
        }
    };
    let coming_and_going = async {
        for _ in 0..5 {
            let comes = bench.consumer(&config);
            comes.subscribe(["t"]).unwrap();
            joined(&comes).await;
            comes.commit().await.unwrap();
            comes.close(WAIT).await.unwrap();
        }
    };
    tokio::select! {
        () = polling => {}
        () = coming_and_going => {}
    }
}

#[test]
fn heartbeats_go_on_while_the_users_only_thread_is_blocked() {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = theirs.block_on(Bench::embedded(1));
    theirs.block_on(bench.topic("t", 1));
    theirs.block_on(bench.produce("t", 1, 0, 10));
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let consumer = bench.consumer(&brief(&bench));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        let before = bench.control().requests(ApiKey::Heartbeat);
        std::thread::sleep(Duration::from_secs(5));
        assert!(bench.control().requests(ApiKey::Heartbeat) >= before + 10);
        consumer.commit().await.unwrap();
        assert_eq!(consumer.assignment().len(), 1);
    });
}

#[tokio::test]
async fn a_commit_that_meets_the_next_generation_is_made_under_it() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 2).await;
    bench.produce("t", 2, 0, 20).await;
    let config = brief(&bench).set("partition.assignment.strategy", "cooperative-sticky");
    let stays = bench.consumer(&config);
    stays.subscribe(["t"]).unwrap();
    read(&stays, 20).await;
    for refusal in [ResponseError::IllegalGeneration, ResponseError::RebalanceInProgress] {
        // The coordinator says so while the member is in a rebalance that it keeps its partitions through.
        bench.control().hold(ApiKey::JoinGroup);
        let joins = bench.control().requests(ApiKey::JoinGroup);
        bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::RebalanceInProgress);
        while bench.control().requests(ApiKey::JoinGroup) == joins {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.control().fail(ApiKey::OffsetCommit, 1, refusal);
        let offsets = (0..2).map(|partition| (TopicPartition::new("t", partition), 5));
        let (committed, ()) = tokio::join!(stays.commit_offsets(offsets), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            bench.control().clear();
            while stays.shared.lock().identity().unwrap().is_none_or(|who| who.generation < 2) {
                stays.poll(Duration::from_millis(20)).await.unwrap();
            }
        });
        committed.unwrap();
        assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(5));
        stays.commit().await.unwrap();
    }
}

#[test]
fn automatic_commits_go_on_while_the_users_only_thread_is_blocked() {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = theirs.block_on(Bench::embedded(1));
    theirs.block_on(bench.topic("t", 1));
    theirs.block_on(bench.produce("t", 1, 0, 20));
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let config = brief(&bench).set_enable_auto_commit(true).set("auto.commit.interval.ms", 50);
        let consumer = bench.consumer(&config.set("max.poll.records", 10));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        // The poll that covers the first ten; they are committed while the second ten are worked on without a yield.
        read(&consumer, 10).await;
        let deadline = time::now() + WAIT;
        while bench.broker.as_ref().unwrap().committed("group", "t", 0) != Some(10) {
            assert!(time::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[tokio::test]
async fn a_commit_waits_for_one_that_is_on_its_way_and_never_takes_it_for_done() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config());
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    consumer.commit().await.unwrap();
    let key = TopicPartition::new("t", 0);
    // The first goes back; the second names what the group has now, and will not have when the first is done.
    let (first, second) = tokio::join!(consumer.commit_offsets([(key, 5)]), consumer.commit());
    first.and(second).unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(10));
}

// Records acknowledged one by one.

mod acknowledged {
    use super::{
        super::acknowledge::{Change, Taken},
        *,
    };

    async fn take(consumer: &KafkaConsumer, count: usize) -> Vec<Taken> {
        let deadline = time::now() + WAIT;
        let mut all = Vec::new();
        while all.iter().map(|taken: &Taken| taken.records.len()).sum::<usize>() < count {
            assert!(time::now() < deadline);
            all.extend(consumer.take(500, Duration::from_millis(100)).await.unwrap());
        }
        all
    }

    async fn change(consumer: &KafkaConsumer) -> Vec<Change> {
        tokio::time::timeout(WAIT, consumer.changed()).await.unwrap().unwrap();
        consumer.take_changes()
    }

    fn config(bench: &Bench) -> KafkaConfig {
        bench.config().set("heartbeat.interval.ms", 50).set("max.poll.interval.ms", 2_000)
    }

    #[tokio::test]
    async fn a_poll_claims_nothing_and_the_frontier_alone_is_committed() {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let consumer = bench.consumer(&config(&bench).set_enable_auto_commit(true));
        consumer.acknowledge_each();
        consumer.subscribe(["t"]).unwrap();
        let taken = take(&consumer, 10).await;
        let (key, life) = (taken[0].partition.clone(), taken[0].life);
        assert!(consumer.take(500, Duration::from_millis(50)).await.unwrap().is_empty());
        assert_eq!(consumer.outstanding(), 10);
        assert_eq!(consumer.done_all(&key, life, &[4, 1, 0]), 3);
        consumer.commit_done().await.unwrap();
        let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
        assert_eq!(committed(), Some(2));

        consumer.rewind(&key, life).unwrap();
        assert!(!consumer.is_live(&key, life) && !consumer.done(&key, life, 2));
        let again = take(&consumer, 8).await;
        assert_eq!(again[0].records.iter().next().unwrap().offset(), 2);
        let life = again[0].life;
        (2..10).for_each(|offset| assert!(consumer.done(&key, life, offset)));
        consumer.close(WAIT).await.unwrap();
        assert_eq!(committed(), Some(10));
    }

    #[tokio::test]
    async fn a_revocation_waits_for_what_is_outstanding_however_alive_the_user_is() {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 2).await;
        bench.produce("t", 2, 0, 20).await;
        let config = config(&bench).set_enable_auto_commit(true).set("max.poll.interval.ms", 20_000);
        let first = bench.consumer(&config);
        first.acknowledge_each();
        first.subscribe(["t"]).unwrap();
        let taken = take(&first, 20).await;
        assert!(matches!(&change(&first).await[..], [Change::Assigned(partitions)] if partitions.len() == 2));

        let second = bench.consumer(&config);
        second.subscribe(["t"]).unwrap();
        assert!(matches!(&change_after_join(&first, &second).await[..], [Change::Revoking(_)]));
        for _ in 0..5 {
            first.keep_alive().unwrap();
            assert!(first.take(500, Duration::from_millis(50)).await.unwrap().is_empty());
            assert_eq!(first.assignment().len(), 2, "it waits");
        }
        for taken in &taken {
            for record in &taken.records {
                // The first half is done, the rest comes back.
                match record.offset() < 5 {
                    true => assert!(first.done(&taken.partition, taken.life, record.offset())),
                    false => assert!(first.hand_back(&taken.partition, taken.life, record.offset())),
                }
            }
        }
        let revoked = change(&first).await;
        assert!(matches!(&revoked[..], [Change::Revoked(_), ..]), "{revoked:?}");
        for partition in 0..2 {
            let committed = bench.broker.as_ref().unwrap().committed("group", "t", partition);
            assert_eq!(committed, Some(5), "what was done, and nothing that came back");
        }
    }

    async fn change_after_join(first: &KafkaConsumer, second: &KafkaConsumer) -> Vec<Change> {
        tokio::select! {
            changes = change(first) => changes,
            () = async { loop { second.poll(Duration::from_millis(20)).await.unwrap(); } } => Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_revocation_ends_with_the_time_of_the_rebalance_and_what_comes_too_late_counts_nothing() {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let config = config(&bench).set_enable_auto_commit(true);
        let first = bench.consumer(&config);
        first.acknowledge_each();
        first.subscribe(["t"]).unwrap();
        let taken = take(&first, 10).await;
        let (key, life) = (&taken[0].partition, taken[0].life);
        assert!(first.done(key, life, 0));
        let second = bench.consumer(&config);
        second.subscribe(["t"]).unwrap();
        let polling = async {
            loop {
                second.poll(Duration::from_millis(20)).await.unwrap();
            }
        };
        let stuck = async {
            while first.is_live(key, life) {
                first.keep_alive().unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = stuck => {}
            () = polling => {}
            () = tokio::time::sleep(WAIT) => panic!("the revocation waits for ever"),
        }
        assert!(!first.done(key, life, 1));
        assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(1));
        first.commit_done().await.expect_err("a record was handled that is not committed");
    }
}
