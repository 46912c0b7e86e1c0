//! What is read: subscriptions by pattern, which topics come into and go from.

use std::{collections::BTreeSet, time::Duration};

use dtkafka::{ErrorKind, KafkaConsumer, KafkaInstance, NewTopic, TopicPartition};

use crate::{
    backend::{Backend, unique},
    consumer_protocol::has_protocol,
    on_every_backend,
};

const WAIT: Duration = Duration::from_secs(30);
/// Brokers look for new topics of a pattern every ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until the consumer has just these partitions.
async fn poll_until_assigned(consumer: &KafkaConsumer, wanted: &[&TopicPartition]) {
    let wanted: BTreeSet<_> = wanted.iter().map(|key| (*key).clone()).collect();
    let polling = async {
        while consumer.assignment().into_iter().collect::<BTreeSet<_>>() != wanted {
            consumer.poll(Duration::from_millis(50)).await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, polling).await;
    assert!(in_time.is_ok(), "{:?} are assigned instead of {wanted:?}", consumer.assignment());
}

async fn pattern_is_followed(backend: &Backend, protocol: &str) {
    let prefix = unique("pattern");
    let (eu, us, other) = (format!("{prefix}-eu"), format!("{prefix}-us"), format!("{prefix}-x-other"));
    let kafka = KafkaInstance::new(
        backend
            .config()
            .set_group_id(unique("group"))
            .set_auto_offset_reset("earliest")
            .set("group.protocol", protocol)
            .set("metadata.max.age.ms", 300),
    )
    .unwrap();
    let admin = kafka.admin().await.unwrap();
    for name in [&eu, &other] {
        admin.create_topic(NewTopic::new(name).partitions(1)).await.unwrap();
    }
    let consumer = kafka.get_consumer(Vec::<&str>::new()).await.unwrap();
    // Brokers that match give their own topics as well.
    let internal = if protocol == "classic" { "|__consumer_offsets" } else { "" };
    consumer.subscribe_pattern(&format!("{prefix}-(eu|us){internal}")).unwrap();
    let of = |name: &str| TopicPartition::new(name, 0);
    poll_until_assigned(&consumer, &[&of(&eu)]).await;

    admin.create_topic(NewTopic::new(&us).partitions(1)).await.unwrap();
    poll_until_assigned(&consumer, &[&of(&eu), &of(&us)]).await;
    let producer = kafka.get_producer().await.unwrap();
    for name in [&eu, &us, &other] {
        producer.send(name, &1).await.unwrap().await.unwrap();
    }
    let mut topics = BTreeSet::new();
    while topics.len() < 2 {
        for record in consumer.poll(Duration::from_millis(100)).await.unwrap().records() {
            topics.insert(record.topic().to_owned());
        }
    }
    assert!(!topics.contains(&other), "{topics:?}");

    consumer.commit().await.unwrap();
    admin.delete_topic(&eu).await.unwrap();
    poll_until_assigned(&consumer, &[&of(&us)]).await;
    consumer.commit().await.unwrap();
    assert!(!admin.list_topics().await.unwrap().contains(&eu), "it was made again");
    consumer.close(WAIT).await.unwrap();
}

on_every_backend! {
    async fn a_classic_member_reads_the_topics_that_match_its_pattern(backend) {
        pattern_is_followed(backend, "classic").await;
    }

    async fn the_broker_finds_the_topics_that_match_in_the_consumer_protocol(backend) {
        if has_protocol(backend).await {
            pattern_is_followed(backend, "consumer").await;
        }
    }

    async fn a_pattern_that_cannot_be_read_is_an_error_that_names_it(backend) {
        let pattern = format!("{}-(", unique("pattern"));
        let config = || backend.config().set_group_id(unique("group"));
        let kafka = KafkaInstance::new(config()).unwrap();
        let consumer = kafka.get_consumer(Vec::<&str>::new()).await.unwrap();
        let error = consumer.subscribe_pattern(&pattern).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains(&pattern), "{error}");
        consumer.close(WAIT).await.unwrap();
        if !has_protocol(backend).await {
            return;
        }
        let kafka = KafkaInstance::new(config().set("group.protocol", "consumer")).unwrap();
        let consumer = kafka.get_consumer(Vec::<&str>::new()).await.unwrap();
        consumer.subscribe_pattern(&pattern).unwrap();
        let error = loop {
            if let Err(error) = consumer.poll(Duration::from_millis(50)).await {
                break error;
            }
        };
        assert!(error.to_string().contains(&pattern), "{error}");
        consumer.close(WAIT).await.unwrap();
    }
}
