//! What is committed, with what, by whom, and of which topic.

use std::{future::Future, sync::Arc, time::Duration};

use dtkafka::{
    ConsumerConfig, ErrorKind, KafkaConfig, KafkaConsumer, KafkaInstance, NewTopic, OffsetAndMetadata,
    TopicPartition,
};
use dtkafka_testcontainers::{EmbeddedBroker, NewRecord};

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

/// Waits on a thread that no runtime has ever seen.
fn wait_without_runtime<F: Future + Send + 'static>(future: F) -> F::Output
where
    F::Output: Send + 'static,
{
    struct Thread(std::thread::Thread);
    impl std::task::Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    std::thread::spawn(move || {
        let waker = Arc::new(Thread(std::thread::current())).into();
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
                std::task::Poll::Ready(output) => return output,
                std::task::Poll::Pending => std::thread::park(),
            }
        }
    })
    .join()
    .unwrap()
}

#[tokio::test]
async fn a_commit_can_be_awaited_and_dropped_where_there_is_no_runtime() {
    let broker = EmbeddedBroker::start().await.unwrap();
    let kafka = KafkaInstance::new(
        KafkaConfig::new()
            .set_bootstrap_servers(broker.bootstrap_servers())
            .set_group_id("g")
            .set_auto_offset_reset("earliest"),
    )
    .unwrap();
    broker.create_topic("orders", 1).unwrap();
    let key = TopicPartition::new("orders", 0);
    let consumer = kafka.get_consumer_with(["orders"], manual).await.unwrap();
    broker.feed("orders", 0, NewRecord::new("a")).unwrap();
    read(&consumer, 1).await;
    let committer = consumer.committer();
    let (first, second) = (committer.clone(), committer.clone());
    let place = key.clone();
    let committed = tokio::task::spawn_blocking(move || {
        wait_without_runtime(async move {
            drop(first.commit_async([(place.clone(), 1)]));
            second.commit_offsets([(place, 1)]).await
        })
    });
    committed.await.unwrap().unwrap();
    assert_eq!(consumer.committed([key.clone()]).await.unwrap()[&key], Some(OffsetAndMetadata::new(1)));
    let left = committer.commit_async([(key, 1)]).unwrap();
    consumer.close(WAIT).await.unwrap();
    drop(consumer);
    let _told = tokio::task::spawn_blocking(|| wait_without_runtime(left)).await.unwrap();
}

#[tokio::test]
async fn a_task_that_is_still_at_a_record_of_a_topic_that_was_made_again_commits_nothing_for_the_new_one() {
    let broker = EmbeddedBroker::builder().auto_create_topics(false).start().await.unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("metadata.max.age.ms", 200);
    let feed = |count: usize| {
        for _ in 0..count {
            broker.feed("orders", 0, NewRecord::new("x")).unwrap();
        }
    };
    broker.create_topic("orders", 1).unwrap();
    feed(3);
    let key = TopicPartition::new("orders", 0);
    let consumer = KafkaInstance::new(config).unwrap().get_consumer_with(["orders"], manual).await.unwrap();
    let mut old = Vec::new();
    while old.is_empty() {
        let records = consumer.poll(WAIT).await.unwrap();
        old.extend(records.iter().map(|(_, records)| records.offset_after(2)));
    }
    let committer = consumer.committer();
    broker.delete_topic("orders").unwrap();
    broker.create_topic("orders", 1).unwrap();
    feed(10);
    while consumer.position(&key).await.map_or(true, |position| position < 10) {
        let _ = consumer.poll(Duration::from_millis(50)).await;
    }
    // Both are below the position of now: no number would tell.
    committer.commit_offsets([(key.clone(), old.remove(0))]).await.unwrap_err();
    committer.commit_offsets([(key.clone(), 3)]).await.unwrap_err();
    assert_eq!(consumer.committed([key.clone()]).await.unwrap()[&key], None);
    consumer.committer().commit_offsets([(key.clone(), 9)]).await.unwrap();
    consumer.close(WAIT).await.unwrap();
}
