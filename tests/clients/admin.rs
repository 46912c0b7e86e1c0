//! The admin client: topics, their settings, groups and what they have committed.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::{ErrorCode, NewTopic, TopicPartition};
use serde_json::json;

use crate::{backend::unique, on_every_backend};

const TOPIC_ALREADY_EXISTS: ErrorCode = ErrorCode(36);
const UNKNOWN_TOPIC_OR_PARTITION: ErrorCode = ErrorCode(3);

on_every_backend! {
    async fn topics_are_created_described_listed_and_deleted(backend) {
        let admin = backend.admin().await;
        let (one, two) = (unique("one"), unique("two"));
        let outcomes = admin
            .create_topics([
                NewTopic::new(&one).partitions(6).replication_factor(1).config("retention.ms", "86400000"),
                NewTopic::new(&two).partitions(1).replication_factor(1),
            ])
            .await
            .unwrap();
        assert!(outcomes.len() == 2 && outcomes.values().all(Result::is_ok), "{outcomes:?}");
        let error = admin.create_topic(NewTopic::new(&one).partitions(1).replication_factor(1)).await.unwrap_err();
        assert_eq!((error.code(), error.topic()), (Some(TOPIC_ALREADY_EXISTS), Some(&*one)));
        let error = admin.create_topic(NewTopic::new("no/such/name").partitions(1)).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode(17)), "{error}");

        let described = loop {
            match admin.describe_topic(&one).await {
                Ok(described) if described.partitions.iter().all(|p| p.leader.is_some()) => break described,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        assert!(described.partitions.iter().map(|p| p.partition).eq(0..6) && !described.is_internal);
        for partition in &described.partitions {
            let leader = partition.leader.unwrap();
            assert_eq!((&partition.replicas, &partition.in_sync_replicas), (&vec![leader], &vec![leader]));
        }
        let configs = admin.describe_topic_configs(&one).await.unwrap();
        let retention = &configs["retention.ms"];
        assert!(retention.value.as_deref() == Some("86400000") && retention.is_set, "{retention:?}");
        assert!(!configs["cleanup.policy"].is_set);

        let names = admin.list_topics().await.unwrap();
        assert!(names.contains(&one), "{names:?}");
        admin.delete_topic(&one).await.unwrap();
        while admin.list_topics().await.unwrap().contains(&one) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let outcomes = admin.delete_topics([&one, &two]).await.unwrap();
        assert_eq!(outcomes[&one].as_ref().unwrap_err().code(), Some(UNKNOWN_TOPIC_OR_PARTITION));
        outcomes[&two].as_ref().unwrap();
        let outcomes = admin.describe_topics([&one]).await.unwrap();
        assert_eq!(outcomes[&one].as_ref().unwrap_err().code(), Some(UNKNOWN_TOPIC_OR_PARTITION));
        assert!(!admin.list_topics().await.unwrap().contains(&one), "describing a topic must not create it");
    }

    async fn groups_their_members_offsets_and_lag_are_told(backend) {
        let (kafka, admin) = (backend.instance(), backend.admin().await);
        let group = kafka.config().get("group.id").unwrap();
        let topic = backend.topic("orders", 2).await;
        assert!(admin.group_offsets(&group).await.unwrap().is_empty());
        assert_eq!(admin.describe_group(&group).await.unwrap_err().code(), Some(ErrorCode(69)));
        let producer = kafka.get_producer().await.unwrap();
        for n in 0..10 {
            let delivery = producer.send(&topic, &json!(n)).partition(n % 2).await.unwrap();
            delivery.await.unwrap();
        }
        producer.close().await.unwrap();

        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        while consumer.poll(Duration::from_secs(30)).await.unwrap().is_empty() {}
        consumer.commit_offsets([(TopicPartition::new(&*topic, 1), 3)]).await.unwrap();
        let described = admin.describe_group(&group).await.unwrap();
        assert_eq!((described.state.as_str(), described.protocol_type.as_str()), ("Stable", "consumer"));
        let both = [0, 1].map(|partition| TopicPartition::new(&*topic, partition));
        assert_eq!(described.members[0].assignment, both);
        assert!(admin.list_groups().await.unwrap().contains_key(&group));
        let outcomes = admin.delete_groups([&group]).await.unwrap();
        assert_eq!(outcomes[&group].as_ref().unwrap_err().code(), Some(ErrorCode(68)), "it has a member");

        let offsets: BTreeMap<_, _> =
            admin.group_offsets(&group).await.unwrap().into_iter().map(|(p, o)| (p, o.offset)).collect();
        assert!(offsets.into_iter().eq([(both[1].clone(), 3)]));
        let lag = admin.group_lag(&group).await.unwrap();
        let lag = &lag[&both[1]];
        assert_eq!((lag.committed, lag.end, lag.lag), (3, 5, 2));
        drop(consumer);
        // Leaves in the background; then the group can be deleted.
        while admin.delete_groups([&group]).await.unwrap()[&group].is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(admin.group_offsets(&group).await.unwrap().is_empty());
    }
}
