//! Topics that change under running clients.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dtkafka::{Consumer, ConsumerRecord, ErrorKind, KafkaAdmin, NewTopic, TopicPartition};

use crate::on_every_backend;

const PATIENCE: Duration = Duration::from_secs(60);

/// Deletes a topic and makes it again with another number of partitions. Returns how many it has then: a client that looks
/// for it in between may have had the broker make it first, with the broker's number.
async fn make_again(admin: &KafkaAdmin, topic: &str, partitions: i32) -> usize {
    let before = admin.describe_topic(topic).await.unwrap().partitions.len();
    admin.delete_topic(topic).await.unwrap();
    loop {
        // Refused while the old one is not quite gone, and when it was made already.
        let _ = admin.create_topic(NewTopic::new(topic).partitions(partitions).replication_factor(1)).await;
        match admin.describe_topic(topic).await {
            Ok(now)
                if now.partitions.len() != before && now.partitions.iter().all(|p| p.leader.is_some()) =>
            {
                return now.partitions.len();
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

on_every_backend! {
    async fn a_topic_made_again_under_a_producer_gets_what_follows_once_and_in_order(backend) {
        let (admin, topic) = (backend.admin().await, backend.topic("lives", 1).await);
        let kafka = backend.instance();
        // Where topics go by id, only the refusal of the old one tells of the new.
        let producer = kafka.get_producer_with(|p| p.set("batch.size", 400)).await.unwrap();
        for number in 0..20 {
            drop(producer.send(&topic, &number).partition(0).await.unwrap());
        }
        producer.flush().await.unwrap();
        admin.delete_topic(&topic).await.unwrap();
        let begun = Instant::now();
        while admin.create_topic(NewTopic::new(&topic).partitions(1).replication_factor(1)).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the topic cannot be made again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let none: [&str; 0] = [];
        let consumer = kafka.get_consumer_with(none, |c| c.auto_offset_reset("earliest")).await.unwrap();
        let place = TopicPartition::new(&*topic, 0);
        // The controller answers before the broker has deleted: until then what is written goes to the old log.
        while consumer.end_offsets([place.clone()]).await.unwrap()[&place] != 0 {
            assert!(begun.elapsed() < PATIENCE, "the old log is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut deliveries = Vec::new();
        for number in 100..200 {
            deliveries.push(producer.send(&topic, &number).partition(0).await.unwrap());
        }
        for (delivery, offset) in deliveries.into_iter().zip(0..) {
            let written = tokio::time::timeout(PATIENCE, delivery).await.expect("no answer").unwrap();
            assert_eq!(written.offset, offset);
        }
        consumer.assign([place]).unwrap();
        let mut values = Vec::new();
        while values.len() < 100 {
            let records = consumer.poll(PATIENCE).await.unwrap();
            assert!(!records.is_empty(), "{values:?}");
            values.extend(records.records().map(|record| record.json::<u32>().unwrap()));
        }
        assert!(values.iter().copied().eq(100..200), "{values:?}");
    }

    async fn a_topic_made_again_with_fewer_partitions_is_written_and_read(backend) {
        let (admin, topic) = (backend.admin().await, backend.topic("orders", 4).await);
        let kafka = backend.instance();
        let producer = kafka.get_producer_with(|p| p.set("metadata.max.age.ms", 200)).await.unwrap();
        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        for number in 0..40 {
            let delivery = producer.send(&topic, &number).partition(number % 4).await.unwrap();
            delivery.await.unwrap();
        }
        let mut read = 0;
        while read < 40 {
            read += consumer.poll(PATIENCE).await.unwrap().records().count();
        }

        let count = make_again(&admin, &topic, 2).await;
        assert!((1..4).contains(&count), "{count} partitions");
        let begun = Instant::now();
        while producer.partitions_for(&topic).await.unwrap() != count {
            assert!(begun.elapsed() < PATIENCE, "the producer does not learn of the change");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The old life's positions are outside the new log as long as it is empty.
        let first = TopicPartition::new(&*topic, 0);
        while consumer.assignment().len() != count || consumer.position(&first).await.ok() != Some(0) {
            assert!(begun.elapsed() < PATIENCE, "the consumer holds on to {:?}", consumer.assignment());
            assert!(consumer.poll(Duration::from_millis(50)).await.unwrap().is_empty());
        }

        // With a key and without: none goes to a partition that is gone.
        for number in 0..40 {
            let key = number.to_string();
            let send = producer.send(&topic, &number);
            let send = if number % 2 == 0 { send.key(&key) } else { send };
            let metadata = send.await.unwrap().await.unwrap();
            assert!((0..count as i32).contains(&metadata.partition), "{metadata:?}");
        }
        let mut numbers = Vec::new();
        while numbers.len() < 40 {
            let records = consumer.poll(PATIENCE).await.unwrap();
            assert!(!records.is_empty(), "only {numbers:?} came");
            numbers.extend(records.records().map(|record| record.json::<u32>().unwrap()));
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..40));
        consumer.close(PATIENCE).await.unwrap();
        producer.close().await.unwrap();
    }

    async fn a_record_for_a_partition_that_is_new_is_sent_and_one_for_none_refused(backend) {
        let (admin, topic) = (backend.admin().await, backend.topic("orders", 1).await);
        let producer = backend.instance().get_producer().await.unwrap();
        producer.send(&topic, &1).await.unwrap().await.unwrap();

        assert_eq!(make_again(&admin, &topic, 3).await, 3, "no client has looked for it in between");
        let metadata = producer.send(&topic, &2).partition(2).await.unwrap().await.unwrap();
        assert_eq!((metadata.partition, metadata.offset), (2, 0));

        let error = producer.send(&topic, &3).partition(3).await.unwrap_err();
        assert_eq!((error.kind(), error.partition()), (ErrorKind::InvalidArgument, Some(3)), "{error}");
        assert!(error.to_string().contains("3 partitions"), "{error}");
        producer.close().await.unwrap();
    }

    async fn a_deleted_topic_is_no_hindrance_to_the_handlers_of_the_others(backend) {
        let (admin, topic) = (backend.admin().await, backend.topic("stays", 1).await);
        let gone = backend.topic("goes", 1).await;
        let config = backend.config().set("allow.auto.create.topics", false);
        let kafka = dtkafka::KafkaInstance::new(config).unwrap();
        let producer = kafka.get_producer().await.unwrap();
        for number in 0..100 {
            drop(producer.send(&gone, &number).await.unwrap());
            drop(producer.send(&topic, &number).await.unwrap());
        }
        producer.close().await.unwrap();

        let handled: Arc<Mutex<Vec<ConsumerRecord>>> = Arc::default();
        let mut consumer = Consumer::new_with(&kafka, [&*gone, &*topic], |c| c.max_poll_records(10)).unwrap();
        for topic in [&gone, &topic] {
            let handled = Arc::clone(&handled);
            let handler = move |record: ConsumerRecord| {
                handled.lock().unwrap().push(record);
                async { Ok(()) }
            };
            consumer = consumer.register_raw_handler(topic, handler).unwrap();
        }
        let count = |topic: &str| handled.lock().unwrap().iter().filter(|r| &*r.topic == topic).count();
        while count(&gone) == 0 || count(&topic) == 0 {
            consumer.consume(PATIENCE).await.unwrap();
        }
        admin.delete_topic(&gone).await.unwrap();
        while admin.list_topics().await.unwrap().contains(&gone) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // What was fetched before is handled still, and cannot be committed.
        let begun = Instant::now();
        while count(&topic) < 100 || begun.elapsed() < Duration::from_secs(2) {
            assert!(begun.elapsed() < PATIENCE, "{} of 100 came", count(&topic));
            consumer.consume(Duration::from_millis(100)).await.unwrap();
        }
        consumer.close().await.unwrap();
        let group = kafka.get_consumer([&*topic]).await.unwrap();
        let partition = TopicPartition::new(&*topic, 0);
        let committed = group.committed([partition.clone()]).await.unwrap();
        assert_eq!(committed[&partition].as_ref().map(|committed| committed.offset), Some(100));
    }
}
