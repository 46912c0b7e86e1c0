//! Groups of the consumer protocol (KIP-848): the broker assigns, and partitions change hands one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dtkafka::{GroupProtocol, KafkaConfig, KafkaConsumer, KafkaInstance, NewTopic, TopicPartition};
use dtkafka_testcontainers::{EmbeddedBroker, Profile};
use tokio::{runtime, task::JoinHandle};

use crate::{
    backend::{Backend, unique},
    on_every_backend,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 6;
const TICK: Duration = Duration::from_millis(50);

fn config(backend: &Backend, protocol: &str) -> KafkaConfig {
    backend.config().set("group.protocol", protocol)
}

/// Whether the broker has the protocol: Kafka has it from 4.0 on.
pub(crate) async fn has_protocol(backend: &Backend) -> bool {
    let topic = backend.topic("probe", 1).await;
    let kafka = KafkaInstance::new(config(backend, "auto")).unwrap();
    let consumer = kafka.get_consumer([&topic]).await.unwrap();
    while consumer.group_protocol().is_none() {
        consumer.poll(TICK).await.unwrap();
    }
    let has = consumer.group_protocol() == Some(GroupProtocol::Consumer);
    consumer.close(PATIENCE).await.unwrap();
    if !has {
        assert!(backend.is_real(), "the embedded broker has the protocol");
        eprintln!("SKIPPED: this Kafka does not have the consumer protocol");
    }
    has
}

/// Which records were handed out, by all members together.
#[derive(Default)]
struct Seen {
    /// By partition: the offset after the last one that was handed out.
    next: BTreeMap<TopicPartition, i64>,
    again: u32,
}

impl Seen {
    fn see(&mut self, partition: TopicPartition, offset: i64) {
        let next = self.next.entry(partition.clone()).or_default();
        assert!(offset <= *next, "{partition}: {offset} came, and {next} was skipped");
        self.again += u32::from(offset < *next);
        *next = (*next).max(offset + 1);
    }
}

/// A consumer that is polled in a task of its own.
struct Member {
    consumer: Arc<KafkaConsumer>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Member {
    async fn start(config: KafkaConfig, topic: &str, seen: &Arc<Mutex<Seen>>) -> Self {
        let kafka = KafkaInstance::new(config).unwrap();
        let consumer = Arc::new(kafka.get_consumer([topic]).await.unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (consumer, stop, seen) = (Arc::clone(&consumer), Arc::clone(&stop), Arc::clone(seen));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let records = consumer.poll(TICK).await.unwrap();
                    let mut seen = seen.lock().unwrap();
                    for record in records.records() {
                        seen.see(TopicPartition::new(record.topic(), record.partition()), record.offset());
                    }
                }
            }
        });
        Self { consumer, stop, task }
    }

    fn assignment(&self) -> Vec<TopicPartition> {
        self.consumer.assignment()
    }

    /// Ends its polls, and commits and leaves.
    async fn close(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.consumer.commit().await.unwrap();
        self.consumer.close(PATIENCE).await.unwrap();
    }
}

/// Waits until the members share all partitions of the topic, as evenly as can be.
async fn wait_until_shared(members: &[&Member], partitions: i32) {
    let fair = partitions as usize / members.len();
    let shared = || {
        let all: Vec<_> = members.iter().map(|member| member.assignment()).collect();
        let distinct: BTreeSet<_> = all.iter().flatten().collect();
        let total: usize = all.iter().map(Vec::len).sum();
        let even = all.iter().all(|of_member| (fair..=fair + 1).contains(&of_member.len()));
        even && total == partitions as usize && distinct.len() == total
    };
    while !shared() {
        tokio::time::sleep(TICK).await;
        for member in members {
            assert!(!member.task.is_finished(), "a member has ended");
        }
    }
}

async fn send(kafka: &KafkaInstance, topic: &str, partitions: i32, count: u32) {
    let producer = kafka.get_producer().await.unwrap();
    let mut deliveries = Vec::new();
    for number in 0..count {
        deliveries.push(producer.send(topic, &number).partition(number as i32 % partitions).await.unwrap());
    }
    producer.flush().await.unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.close().await.unwrap();
}

async fn wait_until_seen(seen: &Mutex<Seen>, count: i64) {
    while seen.lock().unwrap().next.values().sum::<i64>() < count {
        tokio::time::sleep(TICK).await;
    }
}

on_every_backend! {
    async fn members_come_and_go_and_every_record_is_handed_out_once(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", PARTITIONS).await;
        let config = config(backend, "consumer");
        let kafka = KafkaInstance::new(config.clone()).unwrap();
        let seen = Arc::default();
        let first = Member::start(config.clone(), &topic, &seen).await;
        wait_until_shared(&[&first], PARTITIONS).await;
        assert_eq!(first.consumer.group_protocol(), Some(GroupProtocol::Consumer));
        send(&kafka, &topic, PARTITIONS, 600).await;
        let second = Member::start(config.clone(), &topic, &seen).await;
        let third = Member::start(config.clone(), &topic, &seen).await;
        wait_until_shared(&[&first, &second, &third], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        first.close().await;
        wait_until_shared(&[&second, &third], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        wait_until_seen(&seen, 1800).await;
        let group = config.get("group.id").unwrap();
        let admin = kafka.admin().await.unwrap();
        let described = admin.describe_group(&group).await.unwrap();
        assert_eq!((described.group_type.as_str(), described.members.len()), ("consumer", 2));
        for member in [&second, &third] {
            let id = member.consumer.group_metadata().unwrap().member_id().to_owned();
            let of_member = described.members.iter().find(|member| member.member_id == id).unwrap();
            assert_eq!(of_member.assignment, member.assignment());
            assert!(of_member.member_epoch.is_some_and(|epoch| epoch > 0));
        }
        assert_eq!(admin.list_groups().await.unwrap()[&group].group_type.as_deref(), Some("consumer"));
        let metadata = second.consumer.group_metadata().unwrap();
        assert!(metadata.generation_or_member_epoch() > 0 && !metadata.member_id().is_empty());
        second.close().await;
        third.close().await;
        assert_eq!(seen.lock().unwrap().again, 0, "nobody died: nothing comes twice");
        let committed = admin.group_offsets(&group).await.unwrap();
        assert_eq!(committed.values().map(|committed| committed.offset).sum::<i64>(), 1800);
    }

    async fn a_member_that_dies_is_replaced_and_nothing_is_skipped(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", PARTITIONS).await;
        let config = config(backend, "consumer");
        let kafka = KafkaInstance::new(config.clone()).unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let survivor = Member::start(config.clone(), &topic, &seen).await;
        let doomed = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let victim = {
            let (config, topic, seen) = (config.clone(), topic.clone(), Arc::clone(&seen));
            doomed.spawn(async move { Member::start(config, &topic, &seen).await }).await.unwrap()
        };
        wait_until_shared(&[&survivor, &victim], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        wait_until_seen(&seen, 600).await;
        doomed.shutdown_background();
        drop(victim);
        wait_until_shared(&[&survivor], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        wait_until_seen(&seen, 1200).await;
        survivor.close().await;
    }

    /// KIP-345: a static member comes back to its partitions, and the others keep theirs.
    async fn a_static_member_comes_back_to_its_partitions(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", PARTITIONS).await;
        let config = config(backend, "consumer");
        let seen = Arc::default();
        let of = |name: &str| config.clone().set("group.instance.id", name);
        let first = Member::start(of("a"), &topic, &seen).await;
        let second = Member::start(of("b"), &topic, &seen).await;
        wait_until_shared(&[&first, &second], PARTITIONS).await;
        let (before, others) = (first.assignment(), second.assignment());
        first.close().await;
        let back = Member::start(of("a"), &topic, &seen).await;
        wait_until_shared(&[&back, &second], PARTITIONS).await;
        assert_eq!((back.assignment(), second.assignment()), (before, others));
        back.close().await;
        second.close().await;
    }

    async fn a_member_of_the_classic_protocol_and_one_of_auto_share_a_group(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", PARTITIONS).await;
        let config = config(backend, "auto");
        let kafka = KafkaInstance::new(config.clone()).unwrap();
        let seen = Arc::default();
        let classic = config.clone().set("group.protocol", "classic").set("heartbeat.interval.ms", 200);
        let old = Member::start(classic, &topic, &seen).await;
        wait_until_shared(&[&old], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        let new = Member::start(config.set("heartbeat.interval.ms", 200), &topic, &seen).await;
        wait_until_shared(&[&old, &new], PARTITIONS).await;
        send(&kafka, &topic, PARTITIONS, 600).await;
        wait_until_seen(&seen, 1200).await;
        // Kafka converts the group; the embedded broker does not.
        let expected = if backend.is_real() { GroupProtocol::Consumer } else { GroupProtocol::Classic };
        assert_eq!(new.consumer.group_protocol(), Some(expected));
        old.close().await;
        wait_until_shared(&[&new], PARTITIONS).await;
        new.close().await;
        assert_eq!(seen.lock().unwrap().again, 0);
    }

    /// KIP-516: another topic of the same name, whose offsets are not those of the old one.
    async fn a_topic_that_is_made_again_is_read_from_its_beginning(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", 2).await;
        let config = config(backend, "consumer").set("metadata.max.age.ms", 300);
        let kafka = KafkaInstance::new(config.clone()).unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let member = Member::start(config, &topic, &seen).await;
        send(&kafka, &topic, 2, 100).await;
        wait_until_seen(&seen, 100).await;
        member.consumer.commit().await.unwrap();
        let admin = kafka.admin().await.unwrap();
        admin.delete_topic(&topic).await.unwrap();
        while !member.assignment().is_empty() {
            tokio::time::sleep(TICK).await;
        }
        seen.lock().unwrap().next.clear();
        while admin.create_topic(NewTopic::new(&topic).partitions(2).replication_factor(1)).await.is_err() {
            tokio::time::sleep(TICK).await;
        }
        wait_until_shared(&[&member], 2).await;
        send(&kafka, &topic, 2, 40).await;
        wait_until_seen(&seen, 40).await;
        member.stop.store(true, Ordering::Relaxed);
        member.task.await.unwrap();
        member.consumer.close(PATIENCE).await.unwrap();
    }

    async fn what_the_broker_refuses_names_the_setting(backend) {
        if !has_protocol(backend).await {
            return;
        }
        let topic = backend.topic("orders", 1).await;
        let config = config(backend, "consumer").set("group.remote.assignor", "fairest");
        let consumer = KafkaInstance::new(config).unwrap().get_consumer([&topic]).await.unwrap();
        let error = consumer.poll(PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("group.remote.assignor"), "{error}");
        consumer.close(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn auto_uses_the_classic_protocol_with_a_broker_that_has_no_other() {
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka28).start().await.unwrap();
    let topic = unique("orders");
    broker.create_topic(&topic, PARTITIONS).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let seen = Arc::default();
    let member = Member::start(config.clone().set("group.protocol", "auto"), &topic, &seen).await;
    wait_until_shared(&[&member], PARTITIONS).await;
    assert_eq!(member.consumer.group_protocol(), Some(GroupProtocol::Classic));
    member.close().await;

    let kafka = KafkaInstance::new(config.set("group.protocol", "consumer")).unwrap();
    let consumer = kafka.get_consumer([&topic]).await.unwrap();
    let error = consumer.poll(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("set group.protocol to classic"), "{error}");
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn settings_of_the_other_protocol_are_refused_by_name() {
    let config = || KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    for (protocol, setting, value) in [
        ("consumer", "session.timeout.ms", "6000"),
        ("consumer", "heartbeat.interval.ms", "500"),
        ("consumer", "partition.assignment.strategy", "range"),
        ("classic", "group.remote.assignor", "uniform"),
    ] {
        let config = config().set("group.protocol", protocol).set(setting, value);
        let error = KafkaInstance::new(config.clone()).map(drop).unwrap_err().to_string();
        assert!(error.contains(setting) && error.contains("group.protocol"), "{error}");
        KafkaInstance::new(config.set("group.protocol", "auto")).unwrap();
    }
}

#[tokio::test]
async fn a_pattern_that_an_old_coordinator_does_not_match_is_matched_by_the_client_or_refused_with_a_remedy()
{
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka39).start().await.unwrap();
    broker.create_topic("orders-eu", 1).unwrap();
    let config = KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers()).set_group_id("g");
    for protocol in ["auto", "consumer"] {
        let kafka = KafkaInstance::new(config.clone().set("group.protocol", protocol)).unwrap();
        let consumer = kafka.get_consumer(Vec::<String>::new()).await.unwrap();
        consumer.subscribe_pattern("orders-.*").unwrap();
        let joined = async {
            while consumer.assignment().is_empty() {
                consumer.poll(TICK).await?;
            }
            Ok::<_, dtkafka::Error>(())
        };
        let joined = tokio::time::timeout(PATIENCE, joined).await.unwrap();
        match protocol {
            "auto" => {
                joined.unwrap();
                assert_eq!(consumer.group_protocol(), Some(GroupProtocol::Classic));
            }
            _ => {
                let error = joined.unwrap_err().to_string();
                assert!(error.contains("pattern") && error.contains("group.protocol"), "{error}");
                // By name it is served there.
                consumer.subscribe(["orders-eu"]).unwrap();
                while consumer.assignment().is_empty() {
                    tokio::time::timeout(PATIENCE, consumer.poll(TICK)).await.unwrap().unwrap();
                }
            }
        }
        consumer.close(PATIENCE).await.unwrap();
    }
}
