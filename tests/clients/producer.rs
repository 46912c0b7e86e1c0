//! The producer on a broker that fails on purpose: what was acknowledged is in the log once and in order, and what failed
//! says whether it may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use dtkafka::{
    Acks, Delivery, Error, ErrorKind, KafkaConfig, KafkaInstance, KafkaProducer, ProducerConfig,
    ProducerRecord,
};
use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};
use futures_util::{FutureExt as _, future::join_all};

use crate::on_every_backend;

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "orders";

/// A cluster with a topic of three partitions.
async fn cluster(brokers: i32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::builder().brokers(brokers).start().await.unwrap();
    broker.create_topic(TOPIC, 3).unwrap();
    broker
}

fn instance(broker: &EmbeddedBroker) -> KafkaInstance {
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set("retry.backoff.ms", 10)
        .set("retry.backoff.max.ms", 50)
        .set("reconnect.backoff.ms", 10)
        .set("reconnect.backoff.max.ms", 50);
    KafkaInstance::new(config).unwrap()
}

/// Small batches, so that many are on their way.
async fn producer(broker: &EmbeddedBroker) -> KafkaProducer {
    producer_with(broker, |p| p.set("batch.size", 200)).await
}

async fn producer_with(
    broker: &EmbeddedBroker,
    settings: impl FnOnce(ProducerConfig) -> ProducerConfig,
) -> KafkaProducer {
    let producer = instance(broker).get_producer_with(settings).await.unwrap();
    // Knows the topic, so that what follows is about sending.
    assert_eq!(producer.partitions_for(TOPIC).await.unwrap(), 3);
    producer
}

async fn send(producer: &KafkaProducer, partition: i32, numbers: Range<u32>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in numbers {
        deliveries.push(producer.send(TOPIC, &number).partition(partition).await.unwrap());
    }
    deliveries
}

/// Waits for all and checks that their offsets follow each other.
async fn acknowledged(deliveries: Vec<Delivery>, from: i64) {
    for (delivery, offset) in deliveries.into_iter().zip(from..) {
        let metadata = tokio::time::timeout(PATIENCE, delivery).await.expect("no answer").unwrap();
        assert_eq!(metadata.offset, offset);
    }
}

async fn failure(delivery: Delivery) -> Error {
    tokio::time::timeout(PATIENCE, delivery).await.expect("no answer").unwrap_err()
}

/// What the log holds.
fn log(broker: &EmbeddedBroker, partition: i32) -> Vec<u32> {
    let records = broker.records(TOPIC, partition).unwrap();
    records.iter().map(|record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()).collect()
}

#[track_caller]
fn assert_log(broker: &EmbeddedBroker, partition: i32, numbers: Range<u32>) {
    assert!(log(broker, partition).into_iter().eq(numbers), "{:?}", log(broker, partition));
}

#[tokio::test]
async fn answers_lost_after_the_append_leave_every_record_once_and_in_order() {
    let broker = cluster(1).await;
    let producer = producer(&broker).await;
    let first = send(&producer, 0, 0..500).await;
    broker.control().disconnect_after(ApiKey::Produce, 3);
    let second = send(&producer, 0, 500..1000).await;
    broker.control().disconnect_before(ApiKey::Produce, 2);
    broker.control().disconnect_after(ApiKey::Produce, 1);
    let third = send(&producer, 0, 1000..1500).await;
    acknowledged(first, 0).await;
    acknowledged(second, 500).await;
    acknowledged(third, 1000).await;
    assert_log(&broker, 0, 0..1500);
}

#[tokio::test]
async fn records_follow_their_leader_from_broker_to_broker() {
    let broker = cluster(3).await;
    let producer = producer(&broker).await;
    let mut deliveries: [Vec<Delivery>; 3] = Default::default();
    for round in 0..10 {
        for partition in 0..3 {
            let sent = send(&producer, partition, round * 100..round * 100 + 100).await;
            deliveries[partition as usize].extend(sent);
            let leader = (round as i32 + partition) % 3 + 1;
            broker.control().move_leader(TOPIC, partition, leader).unwrap();
        }
        // Some of it is on its way when the leader moves, some waits.
        if let Some(delivery) = deliveries[0].last_mut() {
            let _ = tokio::time::timeout(PATIENCE, delivery).await.expect("no answer");
            deliveries[0].pop();
        }
    }
    for (deliveries, partition) in deliveries.into_iter().zip(0..) {
        for delivery in deliveries {
            tokio::time::timeout(PATIENCE, delivery).await.expect("no answer").unwrap();
        }
        assert_log(&broker, partition, 0..1000);
    }
}

#[tokio::test]
async fn brokers_that_stop_and_start_lose_and_repeat_nothing() {
    let broker = cluster(3).await;
    let producer = producer(&broker).await;
    let mut deliveries: [Vec<Delivery>; 3] = Default::default();
    for round in 0..6 {
        let victim = round as i32 % 3 + 1;
        for partition in 0..3 {
            deliveries[partition as usize]
                .extend(send(&producer, partition, round * 50..round * 50 + 25).await);
        }
        broker.control().stop_broker(victim).unwrap();
        for partition in 0..3 {
            deliveries[partition as usize]
                .extend(send(&producer, partition, round * 50 + 25..round * 50 + 50).await);
        }
        tokio::time::timeout(PATIENCE, producer.flush()).await.expect("flush hangs").unwrap();
        broker.control().start_broker(victim).await.unwrap();
    }
    for (deliveries, partition) in deliveries.into_iter().zip(0..) {
        acknowledged(deliveries, 0).await;
        assert_log(&broker, partition, 0..300);
    }
}

#[tokio::test]
async fn the_only_broker_comes_back_and_gets_what_waited() {
    let broker = cluster(1).await;
    let producer = producer(&broker).await;
    acknowledged(send(&producer, 0, 0..10).await, 0).await;
    broker.control().stop_broker(1).unwrap();
    let waiting = send(&producer, 0, 10..500).await;
    broker.control().start_broker(1).await.unwrap();
    acknowledged(waiting, 10).await;
    assert_log(&broker, 0, 0..500);
}

#[tokio::test]
async fn errors_that_pass_are_lived_through_in_order() {
    let broker = cluster(1).await;
    let producer = producer(&broker).await;
    let mut deliveries = send(&producer, 0, 0..100).await;
    let mut sent = 100;
    for error in [
        ResponseError::NotLeaderOrFollower,
        ResponseError::UnknownTopicOrPartition,
        ResponseError::LeaderNotAvailable,
        ResponseError::NotEnoughReplicas,
        ResponseError::RequestTimedOut,
        ResponseError::KafkaStorageError,
        ResponseError::FencedLeaderEpoch,
        ResponseError::CorruptMessage,
        ResponseError::ThrottlingQuotaExceeded,
        ResponseError::OutOfOrderSequenceNumber,
        ResponseError::UnknownProducerId,
        ResponseError::InvalidProducerEpoch,
    ] {
        broker.control().fail_topic(ApiKey::Produce, TOPIC, 2, error);
        deliveries.extend(send(&producer, 0, sent..sent + 100).await);
        tokio::time::timeout(PATIENCE, producer.flush())
            .await
            .unwrap_or_else(|_| panic!("{error:?} hangs"))
            .unwrap();
        sent += 100;
        assert_log(&broker, 0, 0..sent);
    }
    acknowledged(deliveries, 0).await;
}

#[tokio::test]
async fn an_error_that_stays_fails_its_records_and_the_producer_goes_on() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p).await;
    for error in [ResponseError::TopicAuthorizationFailed, ResponseError::InvalidRecord] {
        broker.control().fail_topic(ApiKey::Produce, TOPIC, 1, error);
        let delivery = producer.send(TOPIC, &1).partition(0).await.unwrap();
        let told = failure(delivery).await;
        assert_eq!(told.code().map(|code| code.0), Some(error.code()), "{told}");
        assert_eq!((told.topic(), told.partition()), (Some(TOPIC), Some(0)), "{told}");
        assert!(!told.possibly_written() && !told.is_fatal(), "{told}");
    }
    acknowledged(send(&producer, 0, 0..10).await, 0).await;
    assert_log(&broker, 0, 0..10);
}

#[tokio::test]
async fn without_the_right_to_write_idempotently_the_producer_says_so_for_good() {
    let broker = cluster(1).await;
    broker.control().fail(ApiKey::InitProducerId, 1, ResponseError::ClusterAuthorizationFailed);
    let producer = instance(&broker).get_producer().await.unwrap();
    // The identity is asked for at once: the answer may be there before the record.
    let told = match producer.send(TOPIC, &1).await {
        Ok(delivery) => failure(delivery).await,
        Err(error) => error,
    };
    assert!(told.is_fatal() && told.code().map(|code| code.0) == Some(31), "{told}");
    assert!(producer.send(TOPIC, &2).await.unwrap_err().is_fatal());
    for call in [producer.flush().await, producer.partitions_for(TOPIC).await.map(drop)] {
        assert_eq!(call.unwrap_err().code().map(|code| code.0), Some(31));
    }
    // Without idempotence the same broker takes them.
    let producer = producer_with(&broker, |p| p.set("enable.idempotence", false)).await;
    acknowledged(send(&producer, 0, 0..10).await, 0).await;
    assert_log(&broker, 0, 0..10);
}

#[tokio::test]
async fn an_identity_that_is_long_in_coming_holds_nothing_up_for_good() {
    let broker = cluster(1).await;
    broker.control().fail(ApiKey::InitProducerId, 2, ResponseError::CoordinatorLoadInProgress);
    broker.control().disconnect_before(ApiKey::InitProducerId, 1);
    broker.control().disconnect_after(ApiKey::InitProducerId, 1);
    let producer = producer(&broker).await;
    acknowledged(send(&producer, 0, 0..100).await, 0).await;
    assert_log(&broker, 0, 0..100);
}

fn impatient(p: ProducerConfig) -> ProducerConfig {
    p.set("delivery.timeout.ms", 1000).set("request.timeout.ms", 400).set("linger.ms", 0)
}

#[tokio::test]
async fn the_delivery_timeout_says_whether_the_record_may_be_written() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, impatient).await;
    acknowledged(send(&producer, 0, 0..1).await, 0).await;
    broker.control().hold(ApiKey::Produce);
    let delivery = producer.send(TOPIC, &1).partition(0).await.unwrap();
    let told = failure(delivery).await;
    assert_eq!(told.kind(), ErrorKind::Timeout, "{told}");
    assert!(told.possibly_written() && told.to_string().contains("may have been written"), "{told}");
    assert!(told.to_string().contains("delivery.timeout.ms"), "{told}");
    assert_log(&broker, 0, 0..2);
    broker.control().release(ApiKey::Produce);

    // Nobody was ever asked to write this one.
    broker.control().stop_broker(1).unwrap();
    let mut told = failure(producer.send(TOPIC, &2).partition(1).await.unwrap()).await;
    if told.possibly_written() {
        // It was written to the connection before the client had heard of its end. The next one finds none.
        told = failure(producer.send(TOPIC, &3).partition(1).await.unwrap()).await;
    }
    assert!(told.kind() == ErrorKind::Timeout && !told.possibly_written(), "{told}");
    broker.control().start_broker(1).await.unwrap();
    acknowledged(send(&producer, 2, 0..10).await, 0).await;
    acknowledged(send(&producer, 0, 2..10).await, 2).await;
    assert_log(&broker, 0, 0..10);
    assert_log(&broker, 1, 0..0);
}

#[tokio::test]
async fn a_sender_waits_while_the_buffer_is_full_and_goes_on_when_it_is_not() {
    let broker = cluster(1).await;
    let settings = |p: ProducerConfig| p.set("buffer.memory", 32_768).set("batch.size", 4096);
    let producer = producer_with(&broker, settings).await;
    broker.control().hold(ApiKey::Produce);
    let (sender, value) = (producer.clone(), "x".repeat(1000));
    let mut sending = tokio::spawn(async move {
        let mut deliveries = Vec::new();
        for _ in 0..200 {
            let record = ProducerRecord::new(TOPIC).value(&value).partition(0);
            deliveries.push(sender.send_record(record).await.unwrap());
        }
        deliveries
    });
    // 200 KB do not fit into 32: it cannot end before the broker answers.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut sending).await.is_err());
    assert!((16_384..=32_768).contains(&producer.buffered_bytes()), "{}", producer.buffered_bytes());
    broker.control().release(ApiKey::Produce);
    acknowledged(sending.await.unwrap(), 0).await;
    assert_eq!(broker.records(TOPIC, 0).unwrap().len(), 200);
    assert_eq!(producer.buffered_bytes(), 0);
}

#[tokio::test]
async fn a_sender_that_waits_too_long_for_memory_is_told_which_setting() {
    let broker = cluster(1).await;
    let settings =
        |p: ProducerConfig| p.set("buffer.memory", 16_384).set("batch.size", 4096).set("max.block.ms", 200);
    let producer = producer_with(&broker, settings).await;
    broker.control().hold(ApiKey::Produce);
    let (value, mut taken) = ("x".repeat(1000), Vec::new());
    let told = loop {
        match producer.send_record(ProducerRecord::new(TOPIC).value(&value).partition(0)).await {
            Ok(delivery) => taken.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(told.kind() == ErrorKind::Timeout && !told.possibly_written(), "{told}");
    assert!(told.to_string().contains("buffer.memory"), "{told}");
    broker.control().release(ApiKey::Produce);
    let count = taken.len();
    acknowledged(taken, 0).await;
    assert_eq!(broker.records(TOPIC, 0).unwrap().len(), count, "the refused record was not written");
}

#[tokio::test]
async fn close_within_returns_in_time_when_every_broker_is_dead() {
    let broker = cluster(2).await;
    let producer = producer_with(&broker, |p| p).await;
    acknowledged(send(&producer, 0, 0..1).await, 0).await;
    broker.control().stop_broker(1).unwrap();
    broker.control().stop_broker(2).unwrap();
    let lost = send(&producer, 1, 0..3).await;
    let closing = producer.close_within(Duration::from_millis(300));
    let told = tokio::time::timeout(Duration::from_secs(5), closing).await.expect("close hangs").unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Timeout, "{told}");
    assert!(told.to_string().contains("records not delivered"), "{told}");
    for delivery in lost {
        // Possibly written or not: it may have been on its way to a broker that was about to die.
        assert_eq!(failure(delivery).await.kind(), ErrorKind::Closed);
    }
    assert_eq!(producer.send(TOPIC, &1).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn every_close_says_what_was_given_up_also_after_one_that_was_dropped() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p).await;
    acknowledged(send(&producer, 0, 0..1).await, 0).await;
    broker.control().stop_broker(1).unwrap();
    let lost = send(&producer, 1, 0..3).await;
    assert!(producer.close_within(Duration::from_millis(100)).now_or_never().is_none());
    // The last of them finds an end that is long over.
    for _ in 0..3 {
        let told = producer.close().await.unwrap_err();
        assert_eq!(told.kind(), ErrorKind::Timeout, "{told}");
        assert!(told.to_string().contains("3 records not delivered"), "{told}");
    }
    for delivery in lost {
        assert_eq!(failure(delivery).await.kind(), ErrorKind::Closed);
    }
}

#[tokio::test]
async fn close_within_says_that_a_record_without_an_answer_may_be_written() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p.set("linger.ms", 0)).await;
    broker.control().hold(ApiKey::Produce);
    let delivery = producer.send(TOPIC, &0).partition(0).await.unwrap();
    while broker.records(TOPIC, 0).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let closing = producer.close_within(Duration::from_millis(100));
    tokio::time::timeout(Duration::from_secs(5), closing).await.expect("close hangs").unwrap_err();
    let told = failure(delivery).await;
    assert!(told.kind() == ErrorKind::Closed && told.possibly_written(), "{told}");
}

#[tokio::test]
async fn refused_records_cost_no_identity_and_do_not_slow_a_neighbour() {
    let broker = cluster(1).await;
    broker.create_topic("good", 1).unwrap();
    let producer = producer_with(&broker, |p| p.set("linger.ms", 0)).await;
    producer.send("good", &0).await.unwrap().await.unwrap();
    broker.control().delay(ApiKey::InitProducerId, PATIENCE);
    broker.control().fail_topic(ApiKey::Produce, TOPIC, 1000, ResponseError::InvalidRecord);
    let asked = broker.control().requests(ApiKey::InitProducerId);
    for round in 1..100 {
        let bad = producer.send(TOPIC, &round).partition(0).await.unwrap();
        let good = producer.send("good", &round).await.unwrap();
        let offset = tokio::time::timeout(PATIENCE, good).await.expect("the neighbour waits").unwrap().offset;
        assert_eq!(offset, round);
        assert!(!failure(bad).await.possibly_written());
    }
    assert_eq!(broker.control().requests(ApiKey::InitProducerId), asked);
}

#[tokio::test]
async fn a_split_with_five_in_flight_costs_no_identity() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p.set("batch.size", 400)).await;
    acknowledged(send(&producer, 0, 0..1).await, 0).await;
    broker.control().delay(ApiKey::InitProducerId, PATIENCE);
    let asked = broker.control().requests(ApiKey::InitProducerId);
    broker.control().fail_topic(ApiKey::Produce, TOPIC, 2, ResponseError::MessageTooLarge);
    acknowledged(send(&producer, 0, 1..500).await, 1).await;
    assert_log(&broker, 0, 0..500);
    assert_eq!(broker.control().requests(ApiKey::InitProducerId), asked);
}

#[test]
fn sends_that_race_with_close_are_refused_or_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = cluster(1).await;
        for round in 0..200_u64 {
            let producer = producer_with(&broker, |p| p.set("linger.ms", 0)).await;
            let senders: Vec<_> = (0..4)
                .map(|_| {
                    let (producer, handle) = (producer.clone(), tokio::runtime::Handle::current());
                    std::thread::spawn(move || {
                        let _runtime = handle.enter();
                        let mut deliveries = Vec::new();
                        while deliveries.len() < 5000 {
                            let sent = producer.send(TOPIC, &1).partition(0).into_future().now_or_never();
                            let Some(Ok(delivery)) = sent else { break };
                            deliveries.push(delivery);
                        }
                        deliveries
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_micros(100 + round % 20 * 50)).await;
            let limit = if round % 2 == 0 { Duration::ZERO } else { PATIENCE };
            let _ = tokio::time::timeout(PATIENCE, producer.close_within(limit)).await.expect("close hangs");
            for sender in senders {
                for delivery in sender.join().unwrap() {
                    let _ =
                        tokio::time::timeout(PATIENCE, delivery).await.expect("accepted and never answered");
                }
            }
            let _ = tokio::time::timeout(PATIENCE, producer.flush()).await.expect("flush hangs");
        }
    });
}

#[test]
fn when_the_runtime_of_its_driver_ends_everybody_is_told() {
    let (keep, own) = (tokio::runtime::Runtime::new().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let broker = keep.block_on(cluster(1));
    let (producer, waiting) = own.block_on(async {
        let producer = producer_with(&broker, |p| p.set("linger.ms", 0)).await;
        acknowledged(send(&producer, 0, 0..1).await, 0).await;
        broker.control().hold(ApiKey::Produce);
        let waiting = send(&producer, 0, 1..2).await.remove(0);
        (producer, waiting)
    });
    drop(own);
    keep.block_on(async {
        let told = failure(waiting).await;
        assert!(told.kind() == ErrorKind::Closed && told.to_string().contains("runtime"), "{told}");
        assert_eq!(producer.send(TOPIC, &2).await.unwrap_err().kind(), ErrorKind::Closed);
        tokio::time::timeout(PATIENCE, producer.close_within(Duration::MAX))
            .await
            .expect("close hangs")
            .unwrap();
    });
}

#[tokio::test]
async fn short_memory_is_stronger_than_a_long_linger() {
    let broker = cluster(1).await;
    let settings = |p: ProducerConfig| {
        p.set("linger.ms", 3_600_000)
            .set("delivery.timeout.ms", 7_200_000)
            .set("buffer.memory", 16_384)
            .set("batch.size", 4096)
            .set("max.block.ms", 20_000)
    };
    let producer = producer_with(&broker, settings).await;
    let value = "x".repeat(1000);
    let mut deliveries = Vec::new();
    for number in 0..100 {
        let record = ProducerRecord::new(TOPIC).value(&value).partition(number % 3);
        deliveries.push(producer.send_record(record).await.unwrap());
    }
    producer.flush().await.unwrap();
    assert_eq!(producer.buffered_bytes(), 0);
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

#[tokio::test]
async fn try_send_never_waits_and_flush_within_returns_in_time() {
    let broker = cluster(1).await;
    let settings = |p: ProducerConfig| p.set("buffer.memory", 16_384).set("batch.size", 4096);
    let producer = instance(&broker).get_producer_with(settings).await.unwrap();
    let record = |value| ProducerRecord::new(TOPIC).value(value).partition(0);
    let value = "x".repeat(1000);
    let told = producer.try_send(record(&value)).unwrap_err();
    assert!(told.is_retriable() && told.to_string().contains("not known yet"), "{told}");
    producer.partitions_for(TOPIC).await.unwrap();
    broker.control().hold(ApiKey::Produce);
    let mut taken = Vec::new();
    let told = loop {
        match producer.try_send(record(&value)) {
            Ok(delivery) => taken.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(told.is_retriable() && told.to_string().contains("buffer.memory"), "{told}");
    let told = producer.flush_within(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Timeout, "{told}");
    broker.control().release(ApiKey::Produce);
    producer.flush_within(PATIENCE).await.unwrap();
    let statistics = producer.statistics();
    assert_eq!((statistics.buffered_bytes, statistics.records), (0, taken.len() as u64), "{statistics:?}");
    assert!(statistics.latency_within(0.99) >= Duration::from_millis(64), "{statistics:?}");
    for delivery in taken {
        delivery.await.unwrap();
    }
}

#[tokio::test]
async fn without_acks_a_broker_that_does_not_answer_holds_nothing_up() {
    let broker = cluster(1).await;
    let settings = |p: ProducerConfig| p.acks(Acks::None).set("linger.ms", 0);
    let producer = producer_with(&broker, settings).await;
    for number in 0..100 {
        let delivery = producer.send(TOPIC, &number).partition(0).await.unwrap();
        let metadata = tokio::time::timeout(PATIENCE, delivery).await.expect("it waits").unwrap();
        assert_eq!(metadata.offset, -1);
    }
    while log(&broker, 0).len() < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_log(&broker, 0, 0..100);
}

#[tokio::test]
async fn negative_timestamps_are_refused() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p).await;
    for timestamp in [-1, -5, i64::MIN] {
        let told = producer.send(TOPIC, &1).timestamp(timestamp).await.unwrap_err();
        assert!(
            told.kind() == ErrorKind::InvalidArgument && told.to_string().contains("timestamp"),
            "{told}"
        );
    }
    producer.send(TOPIC, &1).timestamp(0).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn flush_sends_what_lingers_and_waits_for_it() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p.linger(Duration::from_secs(60))).await;
    let deliveries = send(&producer, 0, 0..100).await;
    assert!(log(&broker, 0).is_empty());
    let unanswered = || {
        let statistics = producer.statistics();
        (statistics.unanswered_batches, statistics.unanswered_records)
    };
    assert_eq!(unanswered(), (1, 100));
    tokio::time::timeout(PATIENCE, producer.flush()).await.expect("flush waits for linger.ms").unwrap();
    for delivery in deliveries {
        delivery.now_or_never().expect("flush did not wait for it").unwrap();
    }
    assert_eq!(unanswered(), (0, 0));
    assert_log(&broker, 0, 0..100);
}

#[tokio::test]
async fn a_producer_dropped_without_close_still_delivers() {
    let broker = cluster(1).await;
    let producer = producer_with(&broker, |p| p.linger(Duration::from_secs(60))).await;
    broker.control().disconnect_after(ApiKey::Produce, 1);
    let deliveries = send(&producer, 0, 0..100).await;
    drop(producer);
    acknowledged(deliveries, 0).await;
    assert_log(&broker, 0, 0..100);
}

#[tokio::test]
async fn a_dropped_delivery_takes_nothing_back() {
    let broker = cluster(1).await;
    let producer = producer(&broker).await;
    drop(send(&producer, 0, 0..100).await);
    producer.close().await.unwrap();
    assert_log(&broker, 0, 0..100);
}

#[tokio::test]
async fn many_tasks_on_one_producer_through_every_fault() {
    let broker = cluster(3).await;
    let producer = producer_with(&broker, |p| p.set("batch.size", 1000)).await;
    let tasks: Vec<_> = (0..8u32)
        .map(|task| {
            let producer = producer.clone();
            tokio::spawn(async move {
                let mut deliveries = Vec::new();
                for number in 0..500u32 {
                    let key = format!("{task}-{}", number % 5);
                    deliveries.push(producer.send(TOPIC, &(task * 1000 + number)).key(&key).await.unwrap());
                    if number % 50 == 49 {
                        deliveries.pop().unwrap().await.unwrap();
                    }
                }
                for delivery in deliveries {
                    delivery.await.unwrap();
                }
            })
        })
        .collect();
    let faults = async {
        for round in 0..12 {
            let control = broker.control();
            match round % 4 {
                0 => control.disconnect_after(ApiKey::Produce, 1),
                1 => control.move_leader(TOPIC, round % 3, round % 3 + 1).unwrap(),
                2 => control.disconnect_before(ApiKey::Metadata, 1),
                _ => {
                    control.fail_topic(ApiKey::Produce, TOPIC, 1, ResponseError::NotEnoughReplicasAfterAppend)
                }
            }
            let asked = control.requests(ApiKey::Produce);
            while control.requests(ApiKey::Produce) < asked + 2
                && tasks.iter().any(|task| !task.is_finished())
            {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, faults).await.expect("nothing is sent any more");
    tokio::time::timeout(PATIENCE, producer.flush()).await.expect("flush hangs").unwrap();
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let (mut all, mut last) = (BTreeSet::new(), BTreeMap::new());
    for partition in 0..3 {
        for (record, number) in broker.records(TOPIC, partition).unwrap().iter().zip(log(&broker, partition))
        {
            assert!(all.insert(number), "{number} is there twice");
            let before = last.insert(record.key.clone(), number);
            assert!(before < Some(number), "{number} stands behind {before:?}");
        }
    }
    assert!(all.into_iter().eq((0..8).flat_map(|task| task * 1000..task * 1000 + 500)));
}

on_every_backend! {
    async fn twenty_thousand_keyed_records_from_eight_tasks_keep_the_order_of_their_keys(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("keyed", 6).await;
        let producer = kafka.get_producer().await.unwrap();
        let tasks = (0..8u32).map(|task| {
            let (producer, topic) = (producer.clone(), topic.clone());
            tokio::spawn(async move {
                let mut deliveries = Vec::new();
                for number in 0..2500u32 {
                    let key = format!("{task}-{}", number % 10);
                    deliveries.push(producer.send(&topic, &number).key(&key).await.unwrap());
                }
                for delivery in deliveries {
                    delivery.await.unwrap();
                }
            })
        });
        for task in join_all(tasks.collect::<Vec<_>>()).await {
            task.unwrap();
        }
        producer.close().await.unwrap();
        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        let (mut count, mut last) = (0, BTreeMap::<Bytes, u32>::new());
        while count < 20_000 {
            let records = consumer.poll(PATIENCE).await.unwrap();
            assert!(!records.is_empty(), "only {count} came");
            for record in records.records() {
                let (number, key) = (record.json::<u32>().unwrap(), record.key_bytes().unwrap());
                let expected = last.get(&key).map_or(number % 10, |before| before + 10);
                assert_eq!(number, expected, "of {key:?}");
                last.insert(key, number);
                count += 1;
            }
        }
        assert!(last.len() == 80 && last.values().all(|number| *number >= 2490), "{last:?}");
        consumer.close(PATIENCE).await.unwrap();
    }

    async fn records_arrive_with_every_kind_of_acknowledgment(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("acks", 1).await;
        let mut written = 0i64;
        for (acks, idempotence) in
            [(Acks::All, true), (Acks::All, false), (Acks::Leader, false), (Acks::None, false)]
        {
            let settings = |p: ProducerConfig| p.acks(acks).set("enable.idempotence", idempotence);
            let producer = kafka.get_producer_with(settings).await.unwrap();
            let mut deliveries = Vec::new();
            for number in 0..100 {
                deliveries.push(producer.send(&topic, &number).await.unwrap());
            }
            for (delivery, number) in deliveries.into_iter().zip(0..) {
                let expected = if acks == Acks::None { -1 } else { written + number };
                assert_eq!(delivery.await.unwrap().offset, expected, "{acks:?} {idempotence}");
            }
            producer.close().await.unwrap();
            written += 100;
            let consumer = kafka.get_consumer([&topic]).await.unwrap();
            let partition = dtkafka::TopicPartition::new(&*topic, 0);
            // Written to the socket is not yet written to the log.
            while consumer.end_offsets([partition.clone()]).await.unwrap()[&partition] < written {
                assert_eq!(acks, Acks::None, "{idempotence}");
            }
        }
    }

    async fn records_that_cannot_be_sent_are_refused_by_send(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("refused", 3).await;
        let producer = kafka.get_producer().await.unwrap();
        let bytes_as_key = BTreeMap::from([(vec![1u8], 1)]);
        let error = producer.send(&topic, &bytes_as_key).await.unwrap_err();
        assert_eq!((error.kind(), error.topic()), (ErrorKind::Json, Some(&*topic)), "{error}");
        for impossible in [String::new(), "n".repeat(32_768)] {
            let error = producer.send(&impossible, &1).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            let error = producer.try_send(ProducerRecord::new(&impossible)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            let error = producer.partitions_for(&impossible).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            let subscribed = kafka.get_consumer([&topic, &impossible]).await;
            assert_eq!(subscribed.unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        for partition in [3, -1, i32::MAX] {
            let error = producer.send(&topic, &1).partition(partition).await.unwrap_err();
            assert_eq!((error.kind(), error.partition()), (ErrorKind::InvalidArgument, Some(partition)), "{error}");
            assert!(error.to_string().contains("3 partitions"), "{error}");
        }
        let error = producer.send("no/such/name", &1).await.unwrap_err();
        assert_eq!((error.code().map(|code| code.0), error.topic()), (Some(17), Some("no/such/name")), "{error}");
        let large = "x".repeat(1_100_000);
        let error = producer.send_record(ProducerRecord::new(&topic).value(&large)).await.unwrap_err();
        assert!(error.to_string().contains("max.request.size"), "{error}");
        // None of it has harmed the producer, which learns of other topics as well.
        producer.send(&topic, &1).await.unwrap().await.unwrap();
        assert_eq!(producer.partitions_for(&backend.topic("another", 2).await).await.unwrap(), 2);
        producer.close().await.unwrap();
    }
}
