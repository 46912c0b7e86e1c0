//! Where consumers read on: after logs were truncated, topics made again and leaders moved, and by time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dtkafka::{AutoOffsetReset, ConsumerConfig, KafkaConfig, KafkaConsumer, KafkaInstance, TopicPartition};
use dtkafka_testcontainers::{
    Effect, EmbeddedBroker, Fault, NewRecord,
    broker::{ApiKey, Profile},
};

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "orders";

fn place() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

fn feed(broker: &EmbeddedBroker, values: impl IntoIterator<Item = &'static str>) {
    for value in values {
        broker.feed(TOPIC, 0, NewRecord::new(value)).unwrap();
    }
}

/// Reads partition 0 outside any group.
async fn reader(broker: &EmbeddedBroker, reset: AutoOffsetReset) -> KafkaConsumer {
    reader_with(broker, reset, Duration::from_millis(10)).await
}

async fn reader_with(broker: &EmbeddedBroker, reset: AutoOffsetReset, backoff: Duration) -> KafkaConsumer {
    reader_of(config(broker, backoff), reset).await
}

fn config(broker: &EmbeddedBroker, backoff: Duration) -> KafkaConfig {
    KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set("retry.backoff.ms", backoff.as_millis().to_string())
        .set("retry.backoff.max.ms", (backoff * 5).as_millis().to_string())
}

async fn reader_of(config: KafkaConfig, reset: AutoOffsetReset) -> KafkaConsumer {
    let kafka = KafkaInstance::new(config).unwrap();
    let settings = |c: ConsumerConfig| c.auto_offset_reset(reset);
    let none: [&str; 0] = [];
    let consumer = kafka.get_consumer_with(none, settings).await.unwrap();
    consumer.assign([place()]).unwrap();
    consumer
}

/// The next `count` records.
async fn read(consumer: &KafkaConsumer, count: usize) -> Vec<(i64, String)> {
    let mut read = Vec::new();
    let reading = async {
        while read.len() < count {
            for record in consumer.poll(Duration::from_secs(1)).await.unwrap().records() {
                let value = String::from_utf8(record.value().unwrap().to_vec()).unwrap();
                read.push((record.offset(), value));
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, reading).await;
    assert!(ended.is_ok(), "of {count} records only these come: {read:?}");
    read
}

fn values(read: &[(i64, String)]) -> Vec<&str> {
    read.iter().map(|(_, value)| value.as_str()).collect()
}

#[tokio::test]
async fn a_truncated_log_is_read_on_where_it_was_cut_and_without_a_policy_the_error_says_where() {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    feed(&broker, ["a", "b", "c", "d", "e"]);
    let latest = reader(&broker, AutoOffsetReset::Latest).await;
    let none = reader(&broker, AutoOffsetReset::None).await;
    for consumer in [&latest, &none] {
        consumer.seek(&place(), 0).unwrap();
        read(consumer, 5).await;
    }

    broker.control().truncate(TOPIC, 0, 2).unwrap();
    feed(&broker, ["C", "D", "E", "F"]);
    let again = read(&latest, 4).await;
    assert_eq!(again[0].0, 2, "nothing of the new log is skipped, though it is longer than what was read");
    assert_eq!(values(&again), ["C", "D", "E", "F"]);

    let error = loop {
        match none.poll(Duration::from_millis(100)).await {
            Ok(records) => assert_eq!(records.records().count(), 0),
            Err(error) => break error,
        }
    };
    assert_eq!((error.topic(), error.partition()), (Some(TOPIC), Some(0)), "{error}");
    assert_eq!((error.offset(), error.divergent_offset()), (Some(5), Some(2)), "{error}");
    none.seek(&place(), 2).unwrap();
    assert_eq!(values(&read(&none, 4).await), ["C", "D", "E", "F"]);
}

#[tokio::test]
async fn a_topic_made_again_is_read_from_its_own_beginning_where_ids_tell_it_from_the_old_one() {
    let broker = EmbeddedBroker::builder().auto_create_topics(false).start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    feed(&broker, ["a", "b", "c"]);
    let consumer = reader(&broker, AutoOffsetReset::Earliest).await;
    read(&consumer, 3).await;
    broker.delete_topic(TOPIC).unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    // More than the old one had: its position would be inside the new log.
    feed(&broker, ["A", "B", "C", "D", "E"]);
    let again = read(&consumer, 5).await;
    assert_eq!((again[0].0, values(&again)), (0, vec!["A", "B", "C", "D", "E"]));
}

#[tokio::test]
async fn who_leads_now_is_learnt_from_the_refusal_before_metadata_is_asked_for_again() {
    let broker = EmbeddedBroker::builder().brokers(3).start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    feed(&broker, ["a", "b"]);
    // Longer than this test is patient: the next question about metadata comes too late.
    let consumer = reader_with(&broker, AutoOffsetReset::Earliest, PATIENCE * 2).await;
    read(&consumer, 2).await;
    for (leader, value) in [(2, "c"), (3, "d"), (1, "e")] {
        broker.control().move_leader(TOPIC, 0, leader).unwrap();
        feed(&broker, [value]);
        assert_eq!(values(&read(&consumer, 1).await), [value]);
    }
}

#[tokio::test]
async fn the_replica_in_the_readers_rack_is_read_and_the_leader_once_that_one_is_gone() {
    let broker = EmbeddedBroker::builder().brokers(3).racks(["a", "b", "c"]).start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let config = config(&broker, Duration::from_millis(10)).set("client.rack", "b");
    let consumer = reader_of(config, AutoOffsetReset::Earliest).await;
    feed(&broker, ["a", "b"]);
    read(&consumer, 2).await;
    // Who asks the leader gets nothing from now on.
    let leader = Fault::on(ApiKey::Fetch).broker(1).effect(Effect::Silence);
    let silent = broker.control().inject(leader);
    feed(&broker, ["c", "d"]);
    assert_eq!(values(&read(&consumer, 2).await), ["c", "d"]);
    let elsewhere = reader(&broker, AutoOffsetReset::Earliest).await;
    assert_eq!(elsewhere.poll(Duration::from_millis(500)).await.unwrap().records().count(), 0);

    broker.control().withdraw(silent);
    broker.control().stop_broker(2).unwrap();
    feed(&broker, ["e"]);
    assert_eq!(read(&consumer, 1).await, [(4, "e".to_owned())]);
}

#[tokio::test]
async fn leaders_move_and_nothing_is_skipped_with_brokers_of_every_age() {
    for profile in
        [Profile::Latest, Profile::Kafka39, Profile::Kafka28, Profile::Redpanda, Profile::EventHubs]
    {
        let broker = EmbeddedBroker::builder().brokers(3).profile(profile).start().await.unwrap();
        broker.create_topic(TOPIC, 1).unwrap();
        feed(&broker, ["a", "b"]);
        let consumer = reader(&broker, AutoOffsetReset::Earliest).await;
        assert_eq!(values(&read(&consumer, 2).await), ["a", "b"], "{profile:?}");
        for (leader, value) in [(2, "c"), (3, "d"), (1, "e")] {
            broker.control().move_leader(TOPIC, 0, leader).unwrap();
            feed(&broker, [value]);
            assert_eq!(values(&read(&consumer, 1).await), [value], "{profile:?}");
        }
    }
}

#[tokio::test]
async fn records_are_found_by_their_time() {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let hour = 3_600_000;
    for (value, age) in [("old", 48 * hour), ("older than a day", 25 * hour), ("young", hour)] {
        broker.feed(TOPIC, 0, NewRecord::new(value).timestamp_ms(now - age)).unwrap();
    }
    let consumer = reader(&broker, AutoOffsetReset::Latest).await;
    let times = [(place(), now - 26 * hour)];
    let found = consumer.offsets_for_times(times).await.unwrap()[&place()].unwrap();
    assert_eq!((found.offset, found.timestamp), (1, now - 25 * hour));
    assert_eq!(consumer.offsets_for_times([(place(), now)]).await.unwrap()[&place()], None);
    assert!(consumer.offsets_for_times([(place(), -1)]).await.is_err());

    consumer.seek_to_time(&place(), now - 26 * hour).unwrap();
    assert_eq!(values(&read(&consumer, 2).await), ["older than a day", "young"]);
    consumer.seek_to_time(&place(), now).unwrap();
    assert_eq!(consumer.position(&place()).await.unwrap(), 3, "nothing is that young: at the end");
    assert!(consumer.seek_to_time(&place(), -1).is_err());

    let day = reader(&broker, "by_duration:P1D".parse().unwrap()).await;
    assert_eq!(values(&read(&day, 1).await), ["young"]);
    let minute = reader(&broker, AutoOffsetReset::ByDuration(Duration::from_secs(60))).await;
    assert_eq!(minute.position(&place()).await.unwrap(), 3);
}

crate::on_every_backend! {
    async fn a_topic_made_again_on_any_broker_is_read_from_its_own_beginning(backend) {
        let (admin, topic) = (backend.admin().await, backend.topic("again", 1).await);
        let kafka = backend.instance();
        let producer = kafka.get_producer_with(|p| p.set("metadata.max.age.ms", 200)).await.unwrap();
        let none: [&str; 0] = [];
        let settings = |c: ConsumerConfig| c.auto_offset_reset("earliest");
        let consumer = kafka.get_consumer_with(none, settings).await.unwrap();
        let key = TopicPartition::new(&*topic, 0);
        consumer.assign([key.clone()]).unwrap();
        for number in 0..3 {
            producer.send(&topic, &number).partition(0).await.unwrap().await.unwrap();
        }
        assert_eq!(read(&consumer, 3).await.len(), 3);
        admin.delete_topic(&topic).await.unwrap();
        loop {
            let new = dtkafka::NewTopic::new(&topic).partitions(1).replication_factor(1);
            match admin.create_topic(new).await {
                Ok(()) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        let other = kafka.get_producer().await.unwrap();
        for number in 100..106 {
            other.send(&topic, &number).partition(0).await.unwrap().await.unwrap();
        }
        let again = read(&consumer, 6).await;
        assert_eq!((again[0].0, values(&again)), (0, vec!["100", "101", "102", "103", "104", "105"]));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let found = consumer.offsets_for_times([(key.clone(), now - 600_000)]).await.unwrap()[&key].unwrap();
        assert_eq!(found.offset, 0);
        assert_eq!(consumer.offsets_for_times([(key.clone(), now + 600_000)]).await.unwrap()[&key], None);
    }
}
