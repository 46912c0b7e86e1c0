//! The user's own code within the clients: interceptors, a partitioner, an assignor.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dtkafka::{
    Assignor, ConsumerConfig, Error, ErrorKind, GroupInfo, KafkaConfig, KafkaConsumer, KafkaInstance,
    OutgoingRecord, Partitions, Producer, ProducerInterceptor, ProducerRecord, RecordMetadata,
    TopicPartition,
};
use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};

const TOPIC: &str = "orders";

async fn cluster() -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic(TOPIC, 3).unwrap();
    let config = KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers());
    (broker, KafkaInstance::new(config).unwrap())
}

/// Where a record is, or the kind of its error.
type Told = Result<(i32, i64), ErrorKind>;

/// Notes what it is told, by the record's partition and offset or by the kind of its error.
#[derive(Clone, Default)]
struct Witness {
    sent: Arc<Mutex<usize>>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Witness {
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl ProducerInterceptor for Witness {
    fn on_send(&self, record: &mut OutgoingRecord<'_>) {
        *self.sent.lock().unwrap() += 1;
        record.add_header("witness", "saw it");
    }

    fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
        let told = outcome.map(|written| (written.partition, written.offset)).map_err(Error::kind);
        self.told.lock().unwrap().push(told);
    }
}

struct Panics;

impl ProducerInterceptor for Panics {
    fn on_send(&self, record: &mut OutgoingRecord<'_>) {
        record.set_value(None::<Vec<u8>>);
        panic!("a test's on_send");
    }

    fn on_acknowledgement(&self, _: Result<&RecordMetadata, &Error>) {
        panic!("a test's on_acknowledgement");
    }
}

#[tokio::test]
async fn interceptors_see_every_record_once_and_hear_of_it_before_its_delivery_does() {
    let (broker, kafka) = cluster().await;
    let witness = Witness::default();
    let producer = kafka
        .get_producer_with(|p| p.set("batch.size", 400).interceptor(Panics).interceptor(witness.clone()))
        .await
        .unwrap();
    // The first waits for the topic.
    let delivery = producer.send(TOPIC, &7).partition(1).header("own", "1").await.unwrap();
    let metadata = delivery.await.unwrap();
    assert_eq!(witness.told(), [Ok((1, metadata.offset))]);
    let stored = &broker.records(TOPIC, 1).unwrap()[0];
    assert_eq!(stored.value.as_deref(), Some(&b"7"[..]), "what the panic left half done is forgotten");
    let names: Vec<_> = stored.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["own", "witness"]);

    let refused = producer.try_send(ProducerRecord::new(TOPIC).partition(9)).unwrap_err();
    assert_eq!(
        (refused.kind(), witness.told()),
        (ErrorKind::InvalidArgument, vec![Err(ErrorKind::InvalidArgument)])
    );
    let refused = producer.send("", &1).await.unwrap_err();
    assert_eq!(
        (refused.kind(), witness.told()),
        (ErrorKind::InvalidArgument, vec![Err(ErrorKind::InvalidArgument)])
    );

    // Batches that are cut in two, again and again.
    broker.control().fail_topic(ApiKey::Produce, TOPIC, 3, ResponseError::MessageTooLarge);
    for number in 0..200 {
        drop(producer.send(TOPIC, &number).partition(0).await.unwrap());
    }
    producer.flush().await.unwrap();
    let mut told = witness.told();
    told.sort_unstable_by_key(|told| *told.as_ref().unwrap());
    assert!(told.into_iter().eq((0..200).map(|offset| Ok((0, offset)))));
    assert_eq!(*witness.sent.lock().unwrap(), 203);

    broker.control().fail_topic(ApiKey::Produce, TOPIC, 1, ResponseError::TopicAuthorizationFailed);
    let failed = producer.send(TOPIC, &1).partition(2).await.unwrap().await.unwrap_err();
    assert_eq!(witness.told(), [Err(failed.kind())]);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn the_facades_producer_and_transactions_have_interceptors_too() {
    let (broker, kafka) = cluster().await;
    let witness = Witness::default();
    let producer = Producer::new_with(&kafka, |p| p.interceptor(witness.clone())).await.unwrap();
    let metadata = producer.send(TOPIC, &7).key("k").await.unwrap();
    assert_eq!(witness.told(), [Ok((metadata.partition, metadata.offset))]);
    producer.close().await.unwrap();

    let settings = |p: dtkafka::ProducerConfig| p.set("transactional.id", "t").interceptor(witness.clone());
    let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    let transaction = producer.begin().await.unwrap();
    let delivery = transaction.send(TOPIC, &8).partition(2).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(witness.told(), [Ok((2, delivery.await.unwrap().offset))]);
    producer.close().await.unwrap();
    let last = broker.records(TOPIC, 2).unwrap().pop().unwrap();
    assert!(last.headers.iter().any(|(name, _)| name == "witness"));
}

#[tokio::test]
async fn interceptors_see_each_record_of_a_bulk_load_once_however_long_it_waits() {
    let (broker, kafka) = cluster().await;
    let witness = Witness::default();
    let settings = |p: dtkafka::ProducerConfig| {
        p.set("buffer.memory", 8192).set("batch.size", 1024).interceptor(witness.clone())
    };
    let producer = Producer::new_with(&kafka, settings).await.unwrap();
    producer.client().partitions_for(TOPIC).await.unwrap();
    broker.control().hold(ApiKey::Produce);
    let value = "x".repeat(300);
    let mut load =
        producer.bulk_load(TOPIC, (0..100_u32).map(|key| (key, &value))).every(Duration::from_millis(10));
    // Memory is full, and the next record waits through many a progress.
    let mut last = load.next().await.unwrap();
    for _ in 0..10 {
        last = load.next().await.unwrap();
    }
    assert!(last.taken < 100 && last.delivered == 0, "{last}");
    assert_eq!(*witness.sent.lock().unwrap() as u64, last.taken);
    broker.control().release(ApiKey::Produce);
    let last = load.finish().await;
    assert_eq!((last.delivered, last.failed), (100, 0));
    assert_eq!((*witness.sent.lock().unwrap(), witness.told().len()), (100, 100));
    producer.close().await.unwrap();
    for partition in 0..3 {
        let records = broker.records(TOPIC, partition).unwrap();
        assert!(records.iter().all(|record| record.headers.len() == 1), "shown once each");
    }
}

#[tokio::test]
async fn interceptors_hear_of_a_bulk_record_that_was_not_taken_in_time() {
    let (broker, kafka) = cluster().await;
    let witness = Witness::default();
    let settings = |p: dtkafka::ProducerConfig| {
        p.set("buffer.memory", 4096).set("max.block.ms", 100).interceptor(witness.clone())
    };
    let producer = Producer::new_with(&kafka, settings).await.unwrap();
    producer.client().partitions_for(TOPIC).await.unwrap();
    broker.control().hold(ApiKey::Produce);
    let value = "x".repeat(3000);
    let mut load =
        producer.bulk_load(TOPIC, (0..2_u32).map(|key| (key, &value))).every(Duration::from_millis(10));
    let mut failures = Vec::new();
    while failures.is_empty() {
        failures.extend(load.next().await.unwrap().failures);
    }
    // However many progresses came between: each of them is shorter than max.block.ms.
    assert_eq!((failures[0].0, failures[0].1.kind()), (1, ErrorKind::Timeout), "{}", failures[0].1);
    assert_eq!(witness.told(), [Err(ErrorKind::Timeout)]);
    broker.control().release(ApiKey::Produce);
    let last = load.finish().await;
    assert_eq!((last.delivered, last.failed), (1, 1));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_partitioner_of_ones_own_decides_for_records_that_name_no_partition() {
    let (broker, kafka) = cluster().await;
    let by_value = |topic: &str, _: Option<&[u8]>, value: Option<&[u8]>, partitions: Partitions<'_>| {
        assert_eq!((topic, partitions.count(), partitions.available().count()), (TOPIC, 3, 3));
        match value {
            Some(b"panic") => panic!("a test's partitioner"),
            Some(b"keyed") => None,
            value => Some(value.map_or(2, |value| i32::from(value[0] - b'0'))),
        }
    };
    let producer = kafka.get_producer_with(|p| p.partitioner(by_value)).await.unwrap();
    let send = async |record: ProducerRecord<'_>| {
        producer.send_record(record).await?.await.map(|written| written.partition)
    };
    let record = ProducerRecord::new(TOPIC);
    assert_eq!(send(record.clone().value("1")).await.unwrap(), 1);
    assert_eq!(send(record.clone()).await.unwrap(), 2);
    assert_eq!(
        send(record.clone().value("1").partition(0)).await.unwrap(),
        0,
        "the record's own wish comes first"
    );
    let plain = kafka.get_producer().await.unwrap();
    let place = plain.send_record(record.clone().key("k7").value("keyed")).await.unwrap().partition();
    assert_eq!(send(record.clone().key("k7").value("keyed")).await.unwrap(), place, "left to the key");
    let error = send(record.clone().value("8")).await.unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::InvalidArgument, Some(TOPIC)));
    assert!(error.to_string().contains("chose partition 8"), "{error}");
    let error = send(record.value("panic")).await.unwrap_err();
    assert!(error.to_string().contains("the partitioner panicked"), "{error}");

    // A topic that grows is seen with its new number.
    let by_count = |_: &str, _: Option<&[u8]>, _: Option<&[u8]>, partitions: Partitions<'_>| {
        Some(partitions.count() - 1)
    };
    let settings = |p: dtkafka::ProducerConfig| p.partitioner(by_count);
    let kafka = KafkaInstance::new(
        KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers()).set("metadata.max.age.ms", 100),
    );
    let producer = kafka.unwrap().get_producer_with(settings).await.unwrap();
    assert_eq!(producer.send(TOPIC, &1).await.unwrap().partition(), 2);
    broker.grow_topic(TOPIC, 5).unwrap();
    let grown = async {
        while producer.send(TOPIC, &1).await.unwrap().partition() != 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), grown).await.expect("the new partitions are never used");
    producer.close().await.unwrap();
}

/// All to the member that says the most of itself.
struct OneWorks {
    says: &'static str,
    is_wrong: Arc<AtomicBool>,
}

impl Assignor for OneWorks {
    fn name(&self) -> &str {
        "one-works"
    }

    fn user_data(&self, topics: &[Arc<str>]) -> Option<Bytes> {
        assert_eq!(topics, [Arc::from(TOPIC)]);
        Some(Bytes::from_static(self.says.as_bytes()))
    }

    fn assign(&self, group: &GroupInfo<'_>) -> BTreeMap<String, Vec<TopicPartition>> {
        let chosen = group.members().iter().max_by_key(|member| member.user_data.clone());
        let all = |member| group.partitions_for(member);
        let plan: BTreeMap<_, _> =
            chosen.iter().map(|member| (member.member_id.clone(), all(member))).collect();
        if self.is_wrong.load(Ordering::SeqCst) {
            return group.members().iter().map(|member| (member.member_id.clone(), all(member))).collect();
        }
        plan
    }
}

/// Polls both until each has so many partitions.
async fn polled_until(first: &KafkaConsumer, second: &KafkaConsumer, counts: (usize, usize)) {
    let settled = async {
        while (first.assignment().len(), second.assignment().len()) != counts {
            let short = Duration::from_millis(20);
            let (first, second) = tokio::join!(first.poll(short), second.poll(short));
            first.and(second).unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap();
}

#[tokio::test]
async fn an_assignor_of_ones_own_decides_for_the_group_and_a_wrong_plan_is_an_error_of_the_leaders_poll() {
    let (_broker, kafka) = cluster().await;
    let is_wrong = Arc::new(AtomicBool::new(false));
    let member = |says: &'static str| {
        let is_wrong = Arc::clone(&is_wrong);
        let settings = move |c: ConsumerConfig| {
            c.group_id("group").set("heartbeat.interval.ms", 100).assignor(OneWorks { says, is_wrong })
        };
        kafka.get_consumer_with([TOPIC], settings)
    };
    let first = member("1").await.unwrap();
    polled_until(&first, &first, (3, 3)).await;
    let second = member("2").await.unwrap();
    polled_until(&first, &second, (0, 3)).await;
    second.close(Duration::from_secs(10)).await.unwrap();
    polled_until(&first, &first, (3, 3)).await;

    is_wrong.store(true, Ordering::SeqCst);
    let second = member("2").await.unwrap();
    let refused = async {
        loop {
            let short = Duration::from_millis(20);
            let (first, second) = tokio::join!(first.poll(short), second.poll(short));
            if let Err(error) = first.and(second) {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), refused).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let text = error.to_string();
    assert!(text.contains("the assignor 'one-works' gives orders-") && text.contains(" to both "), "{text}");
    // The group gets on once the plan can be.
    is_wrong.store(false, Ordering::SeqCst);
    let settled = async {
        while (first.assignment().len(), second.assignment().len()) != (0, 3) {
            let short = Duration::from_millis(20);
            let _ = tokio::join!(first.poll(short), second.poll(short));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap();
}
