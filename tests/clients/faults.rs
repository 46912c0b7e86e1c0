//! The consumer on a broker that fails on purpose: nothing is skipped, nothing is lost, and nothing that was committed comes
//! again.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::{ConsumerConfig, KafkaConfig, KafkaConsumer, KafkaInstance, KafkaProducer, ProducerRecord};
use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const PARTITIONS: i32 = 6;

struct Bench {
    broker: EmbeddedBroker,
    kafka: KafkaInstance,
    producer: KafkaProducer,
    written: BTreeMap<i32, i64>,
    read: BTreeMap<i32, i64>,
}

impl Bench {
    async fn start(brokers: i32) -> Self {
        let broker = EmbeddedBroker::builder().brokers(brokers).start().await.unwrap();
        broker.create_topic(TOPIC, PARTITIONS).unwrap();
        let config = KafkaConfig::new()
            .set_bootstrap_servers(broker.bootstrap_servers())
            .set_group_id(GROUP)
            .set_auto_offset_reset("earliest")
            .set("retry.backoff.ms", 10)
            .set("retry.backoff.max.ms", 50)
            .set("reconnect.backoff.ms", 10)
            .set("reconnect.backoff.max.ms", 50);
        let kafka = KafkaInstance::new(config).unwrap();
        let producer = kafka.get_producer().await.unwrap();
        let none: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
        Self { broker, kafka, producer, written: none.clone(), read: none }
    }

    /// Members that a fault made the client forget go on counting until their session ends: short ones.
    async fn consumer(&self) -> KafkaConsumer {
        let settings = |c: ConsumerConfig| {
            c.enable_auto_commit(false).session_timeout(3000).heartbeat_interval(100).max_poll_records(100)
        };
        self.kafka.get_consumer_with([TOPIC], settings).await.unwrap()
    }

    /// Writes `count` more records to every partition; each value is its offset.
    async fn write(&mut self, count: i64) {
        for (partition, written) in &mut self.written {
            for _ in 0..count {
                let value = written.to_string();
                let record = ProducerRecord::new(TOPIC).value(&value).partition(*partition);
                let _flushed = self.producer.send_record(record).await.unwrap();
                *written += 1;
            }
        }
        tokio::time::timeout(PATIENCE, self.producer.flush()).await.expect("flush hangs").unwrap();
    }

    /// Reads what is written, each partition on from where it was, without a gap or a repetition.
    async fn read(&mut self, consumer: &KafkaConsumer) {
        let reading = async {
            while self.read != self.written {
                // What the consumer tells of faults that pass is no reason to stop.
                let Ok(records) = consumer.poll(Duration::from_secs(1)).await.inspect_err(|error| {
                    assert!(error.is_retriable(), "{error}");
                }) else {
                    continue;
                };
                for record in records.records() {
                    let next = self.read.get_mut(&record.partition()).unwrap();
                    assert_eq!(record.offset(), *next, "of partition {}", record.partition());
                    assert_eq!(record.value().unwrap(), next.to_string().as_bytes());
                    *next += 1;
                }
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, reading).await;
        assert!(outcome.is_ok(), "read {:?} of {:?}", self.read, self.written);
    }

    fn assert_committed(&self) {
        for (partition, read) in &self.read {
            assert_eq!(
                self.broker.committed(GROUP, TOPIC, *partition),
                Some(*read),
                "of partition {partition}"
            );
        }
    }
}

#[tokio::test]
async fn disconnects_at_any_request_skip_and_repeat_nothing() {
    let mut bench = Bench::start(3).await;
    bench.write(50).await;
    let control = bench.broker.control();
    for api in [
        ApiKey::FindCoordinator,
        ApiKey::JoinGroup,
        ApiKey::SyncGroup,
        ApiKey::OffsetFetch,
        ApiKey::ListOffsets,
        ApiKey::Fetch,
    ] {
        control.disconnect_before(api, 1);
        control.disconnect_after(api, 1);
    }
    let consumer = bench.consumer().await;
    bench.read(&consumer).await;
    for api in [ApiKey::Fetch, ApiKey::Heartbeat, ApiKey::Metadata, ApiKey::Fetch] {
        control.disconnect_before(api, 1);
        control.disconnect_after(api, 2);
        bench.write(50).await;
        bench.read(&consumer).await;
    }
    control.disconnect_after(ApiKey::OffsetCommit, 1);
    control.disconnect_before(ApiKey::OffsetCommit, 1);
    consumer.commit().await.unwrap();
    bench.assert_committed();
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn error_codes_that_pass_skip_and_repeat_nothing() {
    let mut bench = Bench::start(1).await;
    bench.write(20).await;
    let control = bench.broker.control();
    for error in [
        ResponseError::CoordinatorNotAvailable,
        ResponseError::NotCoordinator,
        ResponseError::CoordinatorLoadInProgress,
    ] {
        for api in [ApiKey::FindCoordinator, ApiKey::JoinGroup, ApiKey::SyncGroup, ApiKey::OffsetFetch] {
            if api != ApiKey::FindCoordinator || error != ResponseError::NotCoordinator {
                control.fail(api, 1, error);
            }
        }
    }
    let consumer = bench.consumer().await;
    bench.read(&consumer).await;
    for error in [
        ResponseError::NotLeaderOrFollower,
        ResponseError::UnknownTopicOrPartition,
        ResponseError::FencedLeaderEpoch,
        ResponseError::UnknownLeaderEpoch,
        ResponseError::KafkaStorageError,
        ResponseError::OffsetNotAvailable,
        ResponseError::ReplicaNotAvailable,
    ] {
        control.fail_topic(ApiKey::Fetch, TOPIC, 3, error);
        bench.write(20).await;
        bench.read(&consumer).await;
    }
    for error in [ResponseError::FetchSessionIdNotFound, ResponseError::InvalidFetchSessionEpoch] {
        control.fail(ApiKey::Fetch, 2, error);
        bench.write(20).await;
        bench.read(&consumer).await;
    }
    for error in [
        ResponseError::NotCoordinator,
        ResponseError::CoordinatorLoadInProgress,
        ResponseError::RequestTimedOut,
    ] {
        control.fail(ApiKey::OffsetCommit, 1, error);
        consumer.commit().await.unwrap_or_else(|told| panic!("{error:?}: {told}"));
        bench.assert_committed();
    }
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn partitions_that_move_are_read_on_at_their_new_leader() {
    let mut bench = Bench::start(3).await;
    let consumer = bench.consumer().await;
    let control = bench.broker.control();
    for round in 0..8 {
        bench.write(50).await;
        for partition in 0..PARTITIONS {
            control.move_leader(TOPIC, partition, (round + partition) % 3 + 1).unwrap();
        }
        bench.read(&consumer).await;
    }
    consumer.commit().await.unwrap();
    bench.assert_committed();
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_group_follows_its_coordinator() {
    let mut bench = Bench::start(3).await;
    let consumer = bench.consumer().await;
    let control = bench.broker.control();
    for round in 0..6 {
        bench.write(20).await;
        control.move_coordinator(GROUP, round % 3 + 1).unwrap();
        bench.read(&consumer).await;
        consumer.commit().await.unwrap();
        bench.assert_committed();
    }
    let members = bench.kafka.admin().await.unwrap().describe_group(GROUP).await.unwrap().members;
    assert_eq!(members.len(), 1, "it moved with its one member");
    consumer.close(PATIENCE).await.unwrap();
    // The next life reads on behind all of it.
    bench.write(20).await;
    let consumer = bench.consumer().await;
    bench.read(&consumer).await;
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn brokers_stop_and_start_under_a_consumer() {
    let mut bench = Bench::start(3).await;
    let consumer = bench.consumer().await;
    let control = bench.broker.control();
    for round in 0..6 {
        let victim = round % 3 + 1;
        bench.write(30).await;
        control.stop_broker(victim).unwrap();
        bench.read(&consumer).await;
        consumer.commit().await.unwrap();
        bench.assert_committed();
        control.start_broker(victim).await.unwrap();
    }
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn the_only_broker_goes_and_comes_back() {
    let mut bench = Bench::start(1).await;
    bench.write(30).await;
    let consumer = bench.consumer().await;
    bench.read(&consumer).await;
    for _ in 0..3 {
        bench.broker.control().stop_broker(1).unwrap();
        let outcome = consumer.poll(Duration::from_millis(100)).await;
        assert!(
            outcome.as_ref().map_or_else(|error| error.is_retriable(), |records| records.is_empty()),
            "{outcome:?}"
        );
        bench.broker.control().start_broker(1).await.unwrap();
        bench.write(30).await;
        bench.read(&consumer).await;
    }
    consumer.commit().await.unwrap();
    bench.assert_committed();
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn an_expelled_member_reads_on_from_its_commit() {
    let mut bench = Bench::start(1).await;
    bench.write(30).await;
    let consumer = bench.consumer().await;
    bench.read(&consumer).await;
    consumer.commit().await.unwrap();
    for error in
        [ResponseError::UnknownMemberId, ResponseError::IllegalGeneration, ResponseError::RebalanceInProgress]
    {
        let (joins, control) = (bench.broker.control().requests(ApiKey::JoinGroup), bench.broker.control());
        control.fail(ApiKey::Heartbeat, 1, error);
        while control.requests(ApiKey::JoinGroup) == joins {
            assert!(
                consumer.poll(Duration::from_millis(50)).await.unwrap().is_empty(),
                "{error:?}: it is committed"
            );
        }
        bench.write(10).await;
        bench.read(&consumer).await;
        let done = tokio::time::timeout(PATIENCE, async { while consumer.commit().await.is_err() {} });
        done.await.expect("it cannot commit any more");
        bench.assert_committed();
    }
    consumer.close(PATIENCE).await.unwrap();
}
