//! Limits and odd moments of producers and transactions, on brokers of each test's own: records as large as they may be,
//! splits while leaders move, topics that change under what is on its way, calls dropped wherever they wait.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use dtkafka::{
    Acks, Connecting, ConsumerGroupMetadata, Delivery, ErrorKind, IsolationLevel, KafkaConfig, KafkaInstance,
    KafkaProducer, NewTopic, OffsetAndMetadata, ProducerRecord, TopicPartition, Transport,
};
use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};
use futures_util::{FutureExt as _, future::join_all};
use tokio::net::TcpStream;

use crate::{cancellation::waits, lanes::until};

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "orders";

async fn cluster(brokers: i32, partitions: i32) -> (EmbeddedBroker, KafkaConfig) {
    let broker = EmbeddedBroker::builder().brokers(brokers).auto_create_topics(false).start().await.unwrap();
    broker.create_topic(TOPIC, partitions).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set("retry.backoff.ms", 10)
        .set("retry.backoff.max.ms", 50)
        .set("reconnect.backoff.ms", 10)
        .set("reconnect.backoff.max.ms", 50);
    (broker, config)
}

async fn producer(config: &KafkaConfig) -> KafkaProducer {
    let producer = KafkaInstance::new(config.clone()).unwrap().get_producer().await.unwrap();
    producer.partitions_for(TOPIC).await.unwrap();
    producer
}

async fn answer(delivery: Delivery) -> dtkafka::Result<dtkafka::RecordMetadata> {
    tokio::time::timeout(PATIENCE, delivery).await.expect("a record has no answer")
}

fn log(broker: &EmbeddedBroker, partition: i32) -> Vec<u32> {
    let records = broker.records(TOPIC, partition).unwrap();
    records.iter().map(|record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn a_record_exactly_as_large_as_a_request_may_be_is_sent_and_one_byte_more_is_refused() {
    let (broker, config) = cluster(1, 1).await;
    let producer = producer(&config.set("max.request.size", 10_000)).await;
    let value = vec![b'7'; 10_000];
    let mut most = 0;
    for len in 9_800..10_000 {
        match producer.try_send(ProducerRecord::new(TOPIC).value(&value[..len])) {
            Ok(delivery) => {
                assert_eq!(most, if most == 0 { 0 } else { len - 1 }, "what is larger was refused before");
                most = len;
                answer(delivery).await.unwrap();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
                assert!(error.to_string().contains("max.request.size"), "{error}");
            }
        }
    }
    assert!(most > 9_880, "{most}");
    assert_eq!(broker.records(TOPIC, 0).unwrap().len(), most - 9_799);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn records_larger_than_the_memory_get_through_one_after_the_other() {
    let (broker, config) = cluster(1, 3).await;
    let producer = producer(&config.set("buffer.memory", 20_000).set("max.request.size", 100_000)).await;
    let (small, large) = (vec![b'1'; 900], vec![b'2'; 50_000]);
    let sends = (0..60).map(|number| {
        let value = if number % 6 == 0 { &large } else { &small };
        let record = ProducerRecord::new(TOPIC).partition(number % 3).value(value);
        async { answer(producer.send_record(record).await?).await }
    });
    let outcomes = tokio::time::timeout(PATIENCE, join_all(sends)).await.expect("somebody waits for ever");
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!((0..3).map(|partition| broker.records(TOPIC, partition).unwrap().len()).sum::<usize>(), 60);
    assert_eq!(producer.buffered_bytes(), 0);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn no_request_of_several_batches_is_larger_than_it_may_be() {
    let (broker, config) = cluster(1, 6).await;
    let producer = producer(&config.set("max.request.size", 100_000).set("linger.ms", 60_000)).await;
    let first = producer.send(TOPIC, &0).partition(0).await.unwrap();
    producer.flush().await.unwrap();
    answer(first).await.unwrap();
    let before = broker.control().requests(ApiKey::Produce);
    let value = vec![b'7'; 40_000];
    // Each lingers with a small one, so that all are there when the flush comes.
    let mut deliveries = Vec::new();
    for partition in 0..6 {
        let record = ProducerRecord::new(TOPIC).partition(partition);
        deliveries.push(producer.send_record(record.clone().value(&value[..10])).await.unwrap());
        deliveries.push(producer.send_record(record.value(&value)).await.unwrap());
    }
    producer.flush().await.unwrap();
    join_all(deliveries.into_iter().map(answer)).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    // 240,000 bytes: two of 40,000 fit into a request, and a third does not.
    let requests = broker.control().requests(ApiKey::Produce) - before;
    assert!(requests >= 3, "{requests} requests");
    producer.close().await.unwrap();
}

#[tokio::test]
async fn batches_that_are_split_while_their_leader_moves_are_there_once_and_in_order() {
    let (broker, config) = cluster(3, 1).await;
    broker.delete_topic(TOPIC).unwrap();
    let admin = KafkaInstance::new(config.clone()).unwrap().admin().await.unwrap();
    admin.create_topic(NewTopic::new(TOPIC).partitions(1).config("max.message.bytes", "1500")).await.unwrap();
    let producer = producer(&config.set("batch.size", 16_000)).await;
    let mut deliveries = Vec::new();
    for round in 0..12_u32 {
        for number in 0..300 {
            deliveries.push(producer.send(TOPIC, &(300 * round + number)).partition(0).await.unwrap());
        }
        broker.control().move_leader(TOPIC, 0, 1 + round as i32 % 3).unwrap();
        match round % 3 {
            0 => broker.control().disconnect_after(ApiKey::Produce, 1),
            1 => broker.control().fail(ApiKey::Produce, 1, ResponseError::NotLeaderOrFollower),
            _ => {}
        }
        tokio::task::yield_now().await;
    }
    for (delivery, offset) in deliveries.into_iter().zip(0..) {
        assert_eq!(answer(delivery).await.unwrap().offset, offset);
    }
    assert!(log(&broker, 0).into_iter().eq(0..3600));
    assert!(producer.statistics().splits > 0);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_record_whose_time_is_over_says_what_is_known_of_it_whatever_the_acknowledgment() {
    for in_flight in 1..=5 {
        for (acks, idempotent) in [(Acks::All, true), (Acks::All, false), (Acks::Leader, false)] {
            let (broker, config) = cluster(1, 1).await;
            let config = config
                .set("batch.size", 1)
                .set("linger.ms", 0)
                .set("request.timeout.ms", 200)
                .set("delivery.timeout.ms", 400)
                .set("max.in.flight.requests.per.connection", in_flight)
                .set("acks", acks)
                .set("enable.idempotence", idempotent);
            let producer = producer(&config).await;
            answer(producer.send(TOPIC, &0).await.unwrap()).await.unwrap();
            broker.control().hold(ApiKey::Produce);
            let mut deliveries = Vec::new();
            for number in 1..=8 {
                deliveries.push(producer.send(TOPIC, &number).await.unwrap());
            }
            let mut sent = 0;
            for delivery in deliveries {
                let error = answer(delivery).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
                sent += usize::from(error.possibly_written());
            }
            // What never left says so, and what was out does too.
            assert!((1..=in_flight).contains(&sent), "{sent} of {in_flight}");
            broker.control().release(ApiKey::Produce);
            answer(producer.send(TOPIC, &9).await.unwrap()).await.unwrap();
            let log = log(&broker, 0);
            let certain: Vec<_> = log.iter().filter(|number| [0, 9].contains(*number)).collect();
            assert_eq!(certain, [&0, &9], "{log:?}");
            if idempotent {
                assert!(log.is_sorted() && log.iter().collect::<BTreeSet<_>>().len() == log.len(), "{log:?}");
            }
            producer.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn without_acks_what_follows_goes_to_a_topic_that_was_made_again() {
    let (broker, config) = cluster(1, 1).await;
    let producer = producer(&config.set("acks", "0").set("enable.idempotence", false)).await;
    answer(producer.send(TOPIC, &1).await.unwrap()).await.unwrap();
    until(|| log(&broker, 0) == [1]).await;
    broker.delete_topic(TOPIC).unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    answer(producer.send(TOPIC, &2).await.unwrap()).await.unwrap();
    until(|| log(&broker, 0) == [2]).await;
    producer.close().await.unwrap();
}

#[tokio::test]
async fn what_waits_for_a_partition_that_is_gone_fails_alone_and_says_why() {
    let (broker, config) = cluster(1, 3).await;
    let config =
        config.set("delivery.timeout.ms", 600).set("request.timeout.ms", 500).set("metadata.max.age.ms", 100);
    let producer = producer(&config.set("linger.ms", 50)).await;
    broker.delete_topic(TOPIC).unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let gone = producer.send(TOPIC, &1).partition(2).await.unwrap();
    let there = producer.send(TOPIC, &2).partition(0).await.unwrap();
    answer(there).await.unwrap();
    let error = answer(gone).await.unwrap_err();
    assert!(!error.possibly_written() && error.partition() == Some(2), "{error}");
    let error = producer.send(TOPIC, &3).partition(2).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("1 partition"),
        "{error}"
    );
    // Those without a key go where the topic still is, and to what it grows to.
    for number in 0..50 {
        assert_eq!(answer(producer.send(TOPIC, &number).await.unwrap()).await.unwrap().partition, 0);
    }
    broker.grow_topic(TOPIC, 4).unwrap();
    answer(producer.send(TOPIC, &4).partition(3).await.unwrap()).await.unwrap();
    producer.close().await.unwrap();
}

/// Lets nobody through while it is shut, and counts who tried.
#[derive(Clone, Default)]
struct Gate(Arc<(AtomicBool, AtomicUsize)>);

impl Gate {
    fn is_shut(&self) -> &AtomicBool {
        &self.0.0
    }

    fn refused(&self) -> &AtomicUsize {
        &self.0.1
    }
}

impl Transport for Gate {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        Box::pin(async move {
            if self.is_shut().load(Ordering::Acquire) {
                self.refused().fetch_add(1, Ordering::AcqRel);
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            Ok(Box::new(TcpStream::connect((host, port)).await?) as _)
        })
    }
}

#[tokio::test]
async fn a_missing_partition_is_told_soon_though_the_question_that_was_out_is_lost() {
    let (broker, config) = cluster(1, 3).await;
    let gate = Gate::default();
    let producer = producer(&config.set_transport(gate.clone())).await;
    answer(producer.send(TOPIC, &1).partition(0).await.unwrap()).await.unwrap();
    broker.control().hold(ApiKey::Metadata);
    let before = broker.control().requests(ApiKey::Metadata);
    let mut asks = Box::pin(async { producer.send(TOPIC, &2).partition(7).await });
    assert!((&mut asks).now_or_never().is_none());
    until(|| broker.control().requests(ApiKey::Metadata) > before).await;
    let mut joins = Box::pin(async { producer.send(TOPIC, &3).partition(8).await });
    assert!((&mut joins).now_or_never().is_none());
    gate.is_shut().store(true, Ordering::Release);
    broker.control().stop_broker(1).unwrap();
    broker.control().release(ApiKey::Metadata);
    // Each question tries the broker and the bootstrap address once: the third time it is another question.
    until(|| gate.refused().load(Ordering::Acquire) > 2).await;
    broker.control().start_broker(1).await.unwrap();
    gate.is_shut().store(false, Ordering::Release);
    let both = tokio::time::timeout(PATIENCE, async { [asks.await, joins.await] }).await.expect("it stalls");
    for told in both {
        let error = told.unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("3 partitions"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_producer_that_was_closed_asks_nothing_more_and_says_so_at_once() {
    let (broker, config) = cluster(1, 1).await;
    let producer = producer(&config.set("metadata.max.age.ms", 20)).await;
    answer(producer.send(TOPIC, &1).await.unwrap()).await.unwrap();
    producer.close().await.unwrap();
    let before = broker.control().total_requests();
    let calls = async {
        assert_eq!(producer.partitions_for(TOPIC).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(producer.partitions_for("another").await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(producer.send("another", &1).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(producer.flush().await.unwrap_err().kind(), ErrorKind::Closed);
        producer.close_within(Duration::MAX).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), calls).await.expect("a call waits for what is over");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(broker.control().total_requests(), before, "a producer that is over asks for metadata");
}

#[tokio::test]
async fn a_new_leader_is_learnt_from_the_answer_of_the_old_one() {
    let (broker, config) = cluster(3, 1).await;
    broker.control().move_leader(TOPIC, 0, 1).unwrap();
    // Who had to wait and ask would need a minute.
    let config = config.set("retry.backoff.ms", 60_000).set("retry.backoff.max.ms", 60_000);
    let producer = producer(&config.clone().set("batch.size", 1)).await;
    let kafka = KafkaInstance::new(config.set_group_id("g").set_auto_offset_reset("earliest")).unwrap();
    let consumer = kafka.get_consumer([TOPIC]).await.unwrap();
    let mut read = Vec::new();
    for (round, leader) in [1, 2, 3, 1].into_iter().enumerate() {
        broker.control().move_leader(TOPIC, 0, leader).unwrap();
        for number in 0..5 {
            answer(producer.send(TOPIC, &(5 * round + number)).await.unwrap()).await.unwrap();
        }
        let more = async {
            while read.len() < 5 * (round + 1) {
                let polled = consumer.poll(PATIENCE).await.unwrap();
                read.extend(polled.records().map(|record| record.json::<usize>().unwrap()));
            }
        };
        tokio::time::timeout(PATIENCE, more).await.expect("the consumer does not find the leader");
    }
    assert!(read.into_iter().eq(0..20) && log(&broker, 0).into_iter().eq(0..20));
    producer.close().await.unwrap();
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sends_flushes_and_a_close_from_many_threads_leave_nobody_waiting() {
    let (broker, config) = cluster(1, 3).await;
    for round in 0..40_u64 {
        let producer = producer(&config.clone().set("linger.ms", round % 3)).await;
        let mut tasks = Vec::new();
        for task in 0..6_u32 {
            let producer = producer.clone();
            tasks.push(tokio::spawn(async move {
                let mut deliveries = Vec::new();
                while let Ok(delivery) = producer.send(TOPIC, &task).partition(task as i32 % 3).await {
                    deliveries.push(delivery);
                    if deliveries.len() % 40 == 0 && producer.flush().await.is_err() {
                        break;
                    }
                }
                deliveries
            }));
        }
        tokio::time::sleep(Duration::from_micros(200 * (round % 7))).await;
        let limit = if round % 2 == 0 { Duration::ZERO } else { PATIENCE };
        let closed = producer.close_within(limit).await;
        let mut failed = 0;
        for task in tasks {
            let deliveries =
                tokio::time::timeout(PATIENCE, task).await.expect("a task waits for ever").unwrap();
            for delivery in deliveries {
                failed += usize::from(answer(delivery).await.is_err());
            }
        }
        assert!(failed == 0 || closed.is_err(), "round {round}: {failed} failed, and close says nothing");
    }
    drop(broker);
}

#[tokio::test]
async fn a_transaction_dropped_at_any_await_point_is_seen_whole_or_not_at_all_and_stays_open_never() {
    let (broker, config) = cluster(1, 1).await;
    let kafka = KafkaInstance::new(config.set("transactional.id", "t").set("batch.size", 200)).unwrap();
    let mut producer = kafka.get_transactional_producer().await.unwrap();
    let (mut certain, mut possible) = (BTreeSet::new(), BTreeSet::new());
    for times in 0..60_u32 {
        let run = producer.run(async |transaction| {
            for part in 0..8 {
                let _written = transaction.send(TOPIC, &(10 * times + part)).await?;
            }
            tokio::task::yield_now().await;
            Ok(())
        });
        match waits(times as usize % 20, run).await {
            Some(outcome) => {
                outcome.unwrap();
                certain.insert(times);
            }
            None => drop(possible.insert(times)),
        }
    }
    let last = producer.begin().await.unwrap();
    let _written = last.send(TOPIC, &9999).await.unwrap();
    last.commit().await.unwrap();
    producer.close().await.unwrap();
    until(|| broker.open_transactions() == 0).await;
    let settings = |c: dtkafka::ConsumerConfig| {
        c.set("isolation.level", IsolationLevel::ReadCommitted).auto_offset_reset("earliest")
    };
    let consumer = kafka.get_consumer_with(Vec::<String>::new(), settings).await.unwrap();
    let partition = dtkafka::TopicPartition::new(TOPIC, 0);
    consumer.assign([partition]).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&9999) {
        let polled = tokio::time::timeout(PATIENCE, consumer.poll(PATIENCE)).await.unwrap().unwrap();
        seen.extend(polled.records().map(|record| record.json::<u32>().unwrap()));
    }
    seen.pop();
    let whole: BTreeSet<u32> = seen.iter().map(|number| number / 10).collect();
    assert_eq!(
        seen,
        whole.iter().flat_map(|number| (0..8).map(move |part| 10 * number + part)).collect::<Vec<_>>()
    );
    assert!(certain.is_subset(&whole) && whole.iter().all(|n| certain.contains(n) || possible.contains(n)));
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_body_that_panics_in_the_instances_transaction_leaves_nothing_open_and_nothing_seen() {
    let (broker, config) = cluster(1, 1).await;
    let kafka = KafkaInstance::new(config.set("transactional.id", "t")).unwrap();
    let body = async |transaction: &dtkafka::Transaction<'_>| -> dtkafka::Result<()> {
        transaction.send(TOPIC, &1).await?.await?;
        panic!("a test's body");
    };
    let panicked =
        futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(kafka.transaction(body)));
    assert!(panicked.await.is_err());
    until(|| broker.open_transactions() == 0).await;
    kafka.transaction(async |transaction| transaction.send(TOPIC, &2).await.map(drop)).await.unwrap();
    assert_eq!(log(&broker, 0), [1, 2], "the first was written, and aborted");
}

#[tokio::test]
async fn offsets_that_cannot_be_committed_are_refused_and_cost_neither_transaction_nor_producer() {
    let (broker, config) = cluster(1, 1).await;
    let kafka = KafkaInstance::new(config.set("transactional.id", "copier")).unwrap();
    let mut producer = kafka.get_transactional_producer().await.unwrap();
    let group = ConsumerGroupMetadata::of_group("g");
    let place = TopicPartition::new(TOPIC, 0);
    let transaction = producer.begin().await.unwrap();
    for wrong in [OffsetAndMetadata::new(-1), OffsetAndMetadata::new(1).with_metadata("x".repeat(32_768))] {
        let error = transaction.send_offsets(&group, [(place.clone(), wrong)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    transaction.send_offsets(&group, [(place, 7)]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(broker.committed("g", TOPIC, 0), Some(7));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn offsets_of_a_member_that_has_left_end_the_transaction_and_not_the_producer() {
    let (broker, config) = cluster(1, 1).await;
    let config = config.set_group_id("g").set_auto_offset_reset("earliest").set("transactional.id", "t");
    let kafka = KafkaInstance::new(config).unwrap();
    let mut producer = kafka.get_transactional_producer().await.unwrap();
    let consumer = kafka.get_consumer([TOPIC]).await.unwrap();
    while consumer.assignment().is_empty() {
        consumer.poll(Duration::from_millis(20)).await.unwrap();
    }
    let group = consumer.group_metadata().unwrap();
    consumer.close(PATIENCE).await.unwrap();
    for _ in 0..3 {
        let transaction = producer.begin().await.unwrap();
        let _written = transaction.send(TOPIC, &1).await.unwrap();
        let offsets = [(dtkafka::TopicPartition::new(TOPIC, 0), 7)];
        let error = transaction.send_offsets(&group, offsets).await.unwrap_err();
        assert!(error.requires_abort() && !error.is_fatal() && !error.possibly_written(), "{error}");
        let error = transaction.commit().await.unwrap_err();
        assert!(error.requires_abort() && !error.possibly_written(), "{error}");
    }
    let transaction = producer.begin().await.unwrap();
    let _written = transaction.send(TOPIC, &2).await.unwrap();
    transaction.commit().await.unwrap();
    assert_ne!(broker.committed("g", TOPIC, 0), Some(7));
    producer.close().await.unwrap();
}
