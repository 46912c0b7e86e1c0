//! The admin client: topics, their settings, groups and what they have committed.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::{ErrorCode, KafkaAdmin, KafkaConfig, KafkaInstance, NewTopic, TopicPartition};
use serde_json::json;

use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};

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
        let lag = lag[&both[1]].as_ref().unwrap();
        assert_eq!((lag.committed, lag.end, lag.lag), (3, 5, 2));
        drop(consumer);
        // Leaves in the background; then the group can be deleted.
        while admin.delete_groups([&group]).await.unwrap()[&group].is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(admin.group_offsets(&group).await.unwrap().is_empty());
    }
}

async fn cluster(brokers: i32) -> EmbeddedBroker {
    EmbeddedBroker::builder().brokers(brokers).start().await.unwrap()
}

fn instance(broker: &EmbeddedBroker) -> KafkaInstance {
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_auto_offset_reset("earliest")
        .set("default.api.timeout.ms", 20_000);
    KafkaInstance::new(config).unwrap()
}

async fn admin(broker: &EmbeddedBroker) -> KafkaAdmin {
    instance(broker).admin().await.unwrap()
}

/// Groups without members that have committed offset 1 of the topic's partition 0.
async fn commit(broker: &EmbeddedBroker, groups: &[&str], topics: &[&str]) {
    for group in groups {
        let kafka = instance(broker);
        let consumer = kafka.get_consumer_with(Vec::<String>::new(), |c| c.group_id(*group)).await.unwrap();
        let offsets = topics.iter().map(|topic| (TopicPartition::new(*topic, 0), 1));
        consumer.assign(topics.iter().map(|topic| TopicPartition::new(*topic, 0))).unwrap();
        consumer.commit_offsets(offsets).await.unwrap();
        consumer.close(Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_is_asked_about_at_its_new_coordinator_once_the_old_one_is_gone() {
    let broker = cluster(3).await;
    broker.create_topic("t", 1).unwrap();
    commit(&broker, &["g"], &["t"]).await;
    broker.control().move_coordinator("g", 2).unwrap();
    let admin = admin(&broker).await;
    assert_eq!(admin.group_offsets("g").await.unwrap().len(), 1);
    broker.control().kill_broker(2).unwrap();
    assert_eq!(admin.group_offsets("g").await.unwrap().len(), 1);
    assert_eq!(admin.describe_group("g").await.unwrap().state, "Empty");
    admin.delete_groups(["g"]).await.unwrap()["g"].clone().unwrap();
}

#[tokio::test]
async fn groups_of_a_broker_that_has_joined_are_listed_and_one_that_has_left_is_not_waited_for() {
    let broker = cluster(3).await;
    broker.create_topic("t", 1).unwrap();
    commit(&broker, &["g"], &["t"]).await;
    broker.control().stop_broker(2).unwrap();
    let admin = admin(&broker).await;
    assert!(admin.list_groups().await.unwrap().contains_key("g"));
    broker.control().start_broker(2).await.unwrap();
    broker.control().move_coordinator("g", 2).unwrap();
    assert!(admin.list_groups().await.unwrap().contains_key("g"), "broker 2 has joined");
    broker.control().kill_broker(2).unwrap();
    admin.list_groups().await.unwrap();
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_by_its_code_and_not_by_a_time_out() {
    let broker = cluster(1).await;
    let admin = admin(&broker).await;
    let error = admin.describe_topic_configs("typo").await.unwrap_err();
    assert_eq!((error.code(), error.topic()), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some("typo")), "{error}");
    let error = admin.latest_offsets([TopicPartition::new("typo", 0)]).await.unwrap_err();
    assert_eq!((error.code(), error.topic()), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some("typo")), "{error}");
    assert!(admin.list_topics().await.unwrap().is_empty(), "nor is it created");
}

#[tokio::test]
async fn the_lag_of_a_group_is_told_though_one_of_its_topics_is_gone() {
    let broker = cluster(1).await;
    broker.create_topic("kept", 1).unwrap();
    broker.create_topic("gone", 1).unwrap();
    commit(&broker, &["g"], &["gone", "kept"]).await;
    let admin = admin(&broker).await;
    // A broker forgets what was committed of a topic that is deleted; an answer from before may still name it.
    broker.control().fail_topic(ApiKey::ListOffsets, "gone", 1000, ResponseError::UnknownTopicOrPartition);
    let lag = admin.group_lag("g").await.unwrap();
    assert_eq!(lag[&TopicPartition::new("kept", 0)].as_ref().unwrap().committed, 1);
    let error = lag[&TopicPartition::new("gone", 0)].as_ref().unwrap_err();
    assert_eq!((error.code(), error.topic()), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some("gone")), "{error}");
}

#[tokio::test]
async fn groups_are_deleted_by_one_request_to_each_coordinator_and_one_that_cannot_be_holds_up_no_other() {
    let broker = cluster(2).await;
    broker.create_topic("t", 1).unwrap();
    commit(&broker, &["a", "b", "c", "d"], &["t"]).await;
    for (group, coordinator) in [("a", 1), ("b", 1), ("c", 2), ("d", 2)] {
        broker.control().move_coordinator(group, coordinator).unwrap();
    }
    let admin = admin(&broker).await;
    let outcomes = admin.delete_groups(["a", "b", "c", "d", "none"]).await.unwrap();
    assert_eq!(broker.control().requests(ApiKey::DeleteGroups), 2);
    let missing = outcomes["none"].as_ref().unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::GROUP_ID_NOT_FOUND), "{missing}");
    assert!(outcomes.iter().all(|(group, outcome)| group == "none" || outcome.is_ok()), "{outcomes:?}");
    assert!(admin.list_groups().await.unwrap().is_empty());
}
