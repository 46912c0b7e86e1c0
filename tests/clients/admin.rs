//! The admin client: topics, their settings, groups and what they have committed.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::{
    ConfigChanges, ErrorCode, ErrorKind, KafkaAdmin, KafkaConfig, KafkaInstance, NewTopic, OffsetAndMetadata,
    TopicPartition,
};
use serde_json::json;

use dtkafka_testcontainers::{
    EmbeddedBroker, NewRecord,
    broker::{ApiKey, Effect, Fault, ResponseError},
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

        let cluster = admin.describe_cluster().await.unwrap();
        assert!(cluster.cluster_id.is_some() && cluster.cluster_id == admin.cluster_id(), "{cluster:?}");
        assert!(cluster.brokers.iter().any(|broker| Some(broker.id) == cluster.controller), "{cluster:?}");
        assert!(cluster.brokers.iter().all(|broker| broker.host == "127.0.0.1" && broker.port > 0), "{cluster:?}");

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

    async fn topics_grow_change_their_settings_and_lose_their_oldest_records(backend) {
        let admin = backend.admin().await;
        let topic = backend.topic("orders", 1).await;
        let code = |error: dtkafka::Error| (error.code(), error.topic().map(str::to_owned));
        let key = |partition| TopicPartition::new(&*topic, partition);

        admin.create_partitions(&topic, 3).await.unwrap();
        let is_known = async || admin.describe_topic(&topic).await.is_ok_and(|told| told.partitions.len() == 3);
        while !is_known().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for total in [3, 2, 0] {
            let error = admin.create_partitions(&topic, total).await.unwrap_err();
            assert_eq!(code(error), (Some(ErrorCode(37)), Some(topic.to_string())), "{total}");
        }
        let error = admin.create_partitions("typo", 3).await.unwrap_err();
        assert_eq!(code(error), (Some(UNKNOWN_TOPIC_OR_PARTITION), Some("typo".to_owned())));

        let before = admin.describe_topic_configs(&topic).await.unwrap();
        let changes = ConfigChanges::new().set("retention.ms", "86400000").set("cleanup.policy", "delete,compact");
        admin.alter_topic_configs(&topic, changes).await.unwrap();
        admin.alter_topic_configs(&topic, ConfigChanges::new().reset("cleanup.policy")).await.unwrap();
        let after = loop {
            let told = admin.describe_topic_configs(&topic).await.unwrap();
            if told["retention.ms"].is_set && !told["cleanup.policy"].is_set {
                break told;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(after["retention.ms"].value.as_deref(), Some("86400000"));
        assert_eq!(after["cleanup.policy"], before["cleanup.policy"]);
        for changes in [ConfigChanges::new().set("retention.ms", "often"), ConfigChanges::new().set("typo", "1")] {
            let error = admin.alter_topic_configs(&topic, changes).await.unwrap_err();
            // With ZooKeeper a value that is none is an InvalidRequest.
            assert!([40, 42].map(|code| Some(ErrorCode(code))).contains(&error.code()), "{error}");
            assert_eq!(error.topic(), Some(&*topic));
        }
        let error = admin.alter_topic_configs("typo", ConfigChanges::new().reset("retention.ms")).await.unwrap_err();
        assert_eq!(error.code(), Some(UNKNOWN_TOPIC_OR_PARTITION), "{error}");

        let producer = backend.instance().get_producer().await.unwrap();
        for n in 0..5 {
            producer.send(&topic, &json!(n)).partition(0).await.unwrap().await.unwrap();
        }
        producer.close().await.unwrap();
        let outcomes = admin.delete_records([(key(0), 2), (key(1), 7), (key(9), 1)]).await.unwrap();
        assert_eq!(*outcomes[&key(0)].as_ref().unwrap(), 2);
        let refused = |partition| outcomes[&key(partition)].as_ref().unwrap_err();
        assert_eq!((refused(1).code(), refused(1).partition()), (Some(ErrorCode(1)), Some(1)));
        assert_eq!(refused(9).code(), Some(UNKNOWN_TOPIC_OR_PARTITION));
        let (first, last) = (admin.earliest_offsets([key(0), key(1)]), admin.latest_offsets([key(0), key(1)]));
        assert!(first.await.unwrap().into_iter().eq([(key(0), 2), (key(1), 0)]));
        assert!(last.await.unwrap().into_iter().eq([(key(0), 5), (key(1), 0)]));
    }

    async fn the_offsets_of_a_group_are_changed_while_nobody_is_in_it(backend) {
        let (kafka, admin) = (backend.instance(), backend.admin().await);
        let group = kafka.config().get("group.id").unwrap();
        let (read, other) = (backend.topic("read", 2).await, backend.topic("other", 1).await);
        let both = [0, 1].map(|partition| TopicPartition::new(&*read, partition));
        let third = TopicPartition::new(&*other, 0);
        let error = admin.delete_group_offsets(&group, [third.clone()]).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode(69)), "{error}");

        // A group that nobody has been in yet.
        let told = OffsetAndMetadata::new(7).with_metadata("by hand");
        let offsets = [(both[0].clone(), told.clone()), (both[1].clone(), 9.into()), (third.clone(), 1.into())];
        let missing = TopicPartition::new("typo", 0);
        let outcomes =
            admin.alter_group_offsets(&group, offsets.into_iter().chain([(missing.clone(), 1.into())])).await.unwrap();
        assert_eq!(outcomes[&missing].as_ref().unwrap_err().code(), Some(UNKNOWN_TOPIC_OR_PARTITION));
        assert!(outcomes.len() == 4 && outcomes.values().filter(|outcome| outcome.is_ok()).count() == 3);
        let found = admin.group_offsets(&group).await.unwrap();
        assert!(found[&both[0]] == told && found[&both[1]].offset == 9 && found[&third].offset == 1, "{found:?}");
        let error = admin.alter_group_offsets(&group, [(third.clone(), -1)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");

        let consumer = kafka.get_consumer([&read]).await.unwrap();
        while consumer.assignment().len() < 2 {
            consumer.poll(Duration::from_millis(20)).await.unwrap();
        }
        let outcomes = admin.alter_group_offsets(&group, [(both[0].clone(), 3)]).await.unwrap();
        let error = outcomes[&both[0]].as_ref().unwrap_err();
        assert!(error.code() == Some(ErrorCode(25)) && error.to_string().contains("no members"), "{error}");
        let outcomes = admin.delete_group_offsets(&group, [both[0].clone(), third.clone()]).await.unwrap();
        assert_eq!(outcomes[&both[0]].as_ref().unwrap_err().code(), Some(ErrorCode(86)));
        outcomes[&third].as_ref().unwrap();
        let found = admin.group_offsets(&group).await.unwrap();
        assert!(found.keys().eq(&both), "{found:?}");
        consumer.close(Duration::from_secs(10)).await.unwrap();

        let outcomes = admin.delete_group_offsets(&group, both.clone()).await.unwrap();
        assert!(outcomes.len() == 2 && outcomes.values().all(Result::is_ok), "{outcomes:?}");
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

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_made_again_and_one_that_cannot_be_is_in_doubt() {
    let broker = cluster(1).await;
    broker.create_topic("t", 1).unwrap();
    commit(&broker, &["g"], &["t"]).await;
    let (admin, key) = (admin(&broker).await, TopicPartition::new("t", 0));
    let lose = |api| broker.control().inject(Fault::on(api).times(1).effect(Effect::DisconnectAfter));

    lose(ApiKey::IncrementalAlterConfigs);
    admin.alter_topic_configs("t", ConfigChanges::new().set("retention.ms", "1000000")).await.unwrap();
    lose(ApiKey::DeleteRecords);
    let outcomes = admin.delete_records([(key.clone(), 0)]).await.unwrap();
    assert_eq!(*outcomes[&key].as_ref().unwrap(), 0);
    lose(ApiKey::OffsetCommit);
    let outcomes = admin.alter_group_offsets("g", [(key.clone(), 5)]).await.unwrap();
    outcomes[&key].as_ref().unwrap();
    lose(ApiKey::OffsetDelete);
    let outcomes = admin.delete_group_offsets("g", [key.clone()]).await.unwrap();
    outcomes[&key].as_ref().unwrap();
    for api in [ApiKey::IncrementalAlterConfigs, ApiKey::DeleteRecords, ApiKey::OffsetDelete] {
        assert_eq!(broker.control().requests(api), 2, "{api:?}");
    }

    lose(ApiKey::CreatePartitions);
    let error = admin.create_partitions("t", 2).await.unwrap_err();
    assert!(error.code() == Some(ErrorCode(37)) && error.possibly_written(), "{error}");
    assert_eq!(admin.describe_topic("t").await.unwrap().partitions.len(), 2);
}

#[tokio::test]
async fn each_leader_deletes_its_own_records_and_one_that_never_answers_holds_up_no_other() {
    let broker = cluster(2).await;
    broker.create_topic("t", 2).unwrap();
    for partition in [0, 1] {
        broker.control().move_leader("t", partition, partition + 1).unwrap();
        broker.feed("t", partition, NewRecord::new("x")).unwrap();
    }
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set("default.api.timeout.ms", 2_000);
    let admin = KafkaInstance::new(config).unwrap().admin().await.unwrap();
    let both = [0, 1].map(|partition| TopicPartition::new("t", partition));
    let all = |below| both.clone().map(|partition| (partition, below));
    let outcomes = admin.delete_records(all(1)).await.unwrap();
    assert!(outcomes.values().all(|outcome| *outcome.as_ref().unwrap() == 1), "{outcomes:?}");
    let lost = Fault::on(ApiKey::DeleteRecords).broker(2).effect(Effect::DisconnectAfter);
    broker.control().inject(lost);
    let outcomes = admin.delete_records(all(1)).await.unwrap();
    assert_eq!(*outcomes[&both[0]].as_ref().unwrap(), 1);
    let error = outcomes[&both[1]].as_ref().unwrap_err();
    assert!(error.partition() == Some(1) && error.possibly_written(), "{error}");
}
