//! What is committed, with what, by whom, and of which topic.

use std::{sync::Arc, time::Duration};

use dtkafka::{
    ConsumerConfig, ErrorKind, KafkaConfig, KafkaConsumer, KafkaInstance, NewTopic, OffsetAndMetadata,
    TopicPartition,
};
use dtkafka_testcontainers::EmbeddedBroker;

use crate::on_every_backend;

const WAIT: Duration = Duration::from_secs(30);

async fn produce(kafka: &KafkaInstance, topic: &str, count: u32) {
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..count {
        drop(producer.send(topic, &number).partition(0).await.unwrap());
    }
    producer.close().await.unwrap();
}

async fn read(consumer: &KafkaConsumer, mut count: usize) {
    while count > 0 {
        count -= consumer.poll(WAIT).await.unwrap().len();
    }
}

fn manual(config: ConsumerConfig) -> ConsumerConfig {
    config.enable_auto_commit(false)
}

on_every_backend! {
    async fn a_text_is_committed_with_an_offset_and_given_back(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 10).await;
        let key = TopicPartition::new(&*topic, 0);
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        read(&consumer, 10).await;
        assert_eq!(consumer.committed([key.clone()]).await.unwrap()[&key], None);

        let offset = OffsetAndMetadata::new(4).with_leader_epoch(0).with_metadata("worker \u{1F984}");
        consumer.commit_offsets([(key.clone(), offset.clone())]).await.unwrap();
        assert_eq!(consumer.committed([key.clone()]).await.unwrap()[&key], Some(offset));

        let error = consumer.commit_offsets([(key.clone(), OffsetAndMetadata::new(5).with_metadata("x".repeat(40_000)))]);
        assert_eq!(error.await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        consumer.commit_offsets([(key.clone(), 6)]).await.unwrap();
        let committed = consumer.committed([key.clone()]).await.unwrap();
        assert_eq!(committed[&key].as_ref().map(|committed| (committed.offset, &*committed.metadata)), Some((6, "")));
        consumer.close(WAIT).await.unwrap();
    }

    async fn any_task_commits_and_no_commit_overtakes_another(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 50).await;
        let key = TopicPartition::new(&*topic, 0);
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        read(&consumer, 50).await;
        let committer = consumer.committer();
        let mut tasks = Vec::new();
        for offset in 1..=50 {
            let committing = committer.commit_async([(key.clone(), offset)]).unwrap();
            // Whoever waits for it, and in whatever order, or nobody.
            if offset % 3 > 0 {
                tasks.push(tokio::spawn(committing));
            }
        }
        committer.commit_offsets([(key.clone(), 49)]).await.unwrap();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let committed = consumer.committed([key.clone()]).await.unwrap();
        assert_eq!(committed[&key].as_ref().map(|committed| committed.offset), Some(49), "on purpose, and last");
        consumer.close(WAIT).await.unwrap();
        let late = committer.commit_offsets([(key.clone(), 50)]).await;
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Closed);
        drop(consumer);
        assert_eq!(committer.commit_offsets([(key, 50)]).await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

/// As far as the client goes that has not heard of it yet.
#[tokio::test]
async fn the_position_in_a_topic_is_not_committed_for_another_that_was_made_under_its_name() {
    let broker = EmbeddedBroker::start().await.unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set_enable_auto_commit(false)
        .set("fetch.max.wait.ms", 10);
    let kafka = KafkaInstance::new(config).unwrap();
    let admin = kafka.admin().await.unwrap();
    let create = async || admin.create_topic(NewTopic::new("orders").partitions(1)).await.unwrap();
    create().await;
    produce(&kafka, "orders", 10).await;
    let key = TopicPartition::new("orders", 0);
    let consumer = Arc::new(kafka.get_consumer(Vec::<&str>::new()).await.unwrap());
    consumer.assign([key.clone()]).unwrap();
    read(&consumer, 10).await;
    consumer.pause([key]).unwrap();
    admin.delete_topic("orders").await.unwrap();
    create().await;
    // An error where the client has not heard of it, and the place where the new one begins where it has.
    let outcome = consumer.commit().await;
    assert!(broker.committed("g", "orders", 0).is_none_or(|offset| offset == 0), "{outcome:?}");
    consumer.close(WAIT).await.unwrap();
}
