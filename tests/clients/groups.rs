//! Groups under load and under way: members that come, go and die; what is handled, what is committed, and by whom.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dtkafka::{
    AutoOffsetReset, CloseOptions, Consumer, ConsumerConfig, ErrorKind, GroupMembershipOperation, KafkaAdmin,
    KafkaConfig, KafkaConsumer, KafkaInstance, Message, TopicPartition,
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{runtime, sync::Notify, task::JoinHandle};

use crate::{backend::unique, on_every_backend};

const PATIENCE: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 6;
const RECORDS: u32 = 100_000;
/// The victim dies when it has handled so many, of a third of all.
const LIFE: u32 = 5_000;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    number: u32,
    customer: String,
}

/// What was handled, by all members together, and what that must never look like.
#[derive(Default)]
struct Ledger {
    partitions: BTreeMap<i32, Handled>,
    by_member: BTreeMap<usize, u32>,
    redelivered: u32,
}

#[derive(Default)]
struct Handled {
    /// Every offset below was handled.
    next: i64,
    /// Who handled the last record, and its offset.
    last: Option<(usize, i64)>,
}

impl Ledger {
    /// A record was handled. Offsets never jump ahead of what was handled before by anybody, and go back only when a
    /// partition changes hands.
    fn handled(&mut self, member: usize, partition: i32, offset: i64) {
        let state = self.partitions.entry(partition).or_default();
        assert!(offset <= state.next, "partition {partition}: {offset} came, and {} was skipped", state.next);
        if let Some((before, last)) = state.last.replace((member, offset))
            && before == member
        {
            assert_eq!(offset, last + 1, "partition {partition} of member {member}");
        }
        self.redelivered += u32::from(offset < state.next);
        state.next = state.next.max(offset + 1);
        *self.by_member.entry(member).or_default() += 1;
    }

    fn distinct(&self) -> i64 {
        self.partitions.values().map(|state| state.next).sum()
    }
}

/// Fails the test if the group has committed a record that nobody has handled.
async fn check_commits(admin: &KafkaAdmin, group: &str, ledger: &Mutex<Ledger>) {
    // First what is committed, then what is handled: it was handled before.
    let committed = admin.group_offsets(group).await.unwrap();
    let ledger = ledger.lock().unwrap();
    for (partition, committed) in committed {
        let handled = ledger.partitions.get(&partition.partition).map_or(0, |state| state.next);
        assert!(
            committed.offset <= handled,
            "{partition}: {} committed, {handled} handled",
            committed.offset
        );
    }
}

/// A member with a handler that writes to the ledger and tells the member's count.
fn member(
    kafka: &KafkaInstance,
    topic: &str,
    (id, ledger): (usize, Arc<Mutex<Ledger>>),
    tell: impl Fn(u32, i64) + Clone + Send + Sync + 'static,
) -> Consumer {
    let settings = |c: ConsumerConfig| c.session_timeout(6000).heartbeat_interval(300);
    Consumer::new_with(kafka, [topic], settings)
        .unwrap()
        .register_handler(topic, async move |m: Message<Order>| {
            let (count, distinct) = {
                let mut ledger = ledger.lock().unwrap();
                assert_eq!(m.value.number as i32 % PARTITIONS, m.partition);
                ledger.handled(id, m.partition, m.offset);
                (ledger.by_member[&id], ledger.distinct())
            };
            tell(count, distinct);
            Ok(())
        })
        .unwrap()
}

/// Waits until the group has so many members, and each has partitions.
async fn wait_for_members(kafka: &KafkaInstance, group: &str, count: usize) {
    let admin = kafka.admin().await.unwrap();
    loop {
        if let Ok(described) = admin.describe_group(group).await
            && described.members.len() == count
            && described.members.iter().all(|member| !member.assignment.is_empty())
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn group_of(kafka: &KafkaInstance) -> String {
    kafka.config().get("group.id").unwrap()
}

/// Sends numbers, each to the partition `number % partitions`.
async fn produce(
    kafka: &KafkaInstance,
    topic: &str,
    partitions: i32,
    numbers: impl IntoIterator<Item = u32>,
) {
    let producer = kafka.get_producer().await.unwrap();
    let mut deliveries = Vec::new();
    for number in numbers {
        let order = Order { number, customer: format!("customer {}", number % 97) };
        deliveries.push(producer.send(topic, &order).partition(number as i32 % partitions).await.unwrap());
    }
    producer.close().await.unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

on_every_backend! {
    async fn a_hundred_thousand_records_through_three_members_of_which_one_is_killed(backend) {
        let kafka = backend.instance();
        let (group, topic) = (group_of(&kafka), backend.topic("orders", PARTITIONS).await);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (kill, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));

        // A runtime of its own: when that is gone, its consumer is dropped in the middle of its work, without a commit.
        let doomed = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tell = Arc::clone(&kill);
        let instance = KafkaInstance::new(kafka.config().clone()).unwrap();
        let mut victim = member(&instance, &topic, (0, Arc::clone(&ledger)), move |count, _| {
            if count == LIFE {
                tell.notify_one();
            }
        });
        let victim = doomed.spawn(async move { victim.run(std::future::pending::<()>()).await });
        let survivors: Vec<JoinHandle<()>> = (1..=2)
            .map(|id| {
                let instance = KafkaInstance::new(kafka.config().clone()).unwrap();
                let tell = Arc::clone(&done);
                let ledger = Arc::clone(&ledger);
                let stop = Arc::clone(&done);
                let mut member = member(&instance, &topic, (id, ledger), move |_, distinct| {
                    if distinct == i64::from(RECORDS) {
                        tell.notify_waiters();
                        tell.notify_one();
                    }
                });
                tokio::spawn(async move {
                    member.run(async { stop.notified().await }).await.unwrap();
                    // The other one may not have been waiting yet.
                    stop.notify_one();
                })
            })
            .collect();
        wait_for_members(&kafka, &group, 3).await;

        let watched = Arc::new(AtomicBool::new(true));
        let watch = tokio::spawn({
            let admin = kafka.admin().await.unwrap();
            let (group, ledger, watched) = (group.clone(), Arc::clone(&ledger), Arc::clone(&watched));
            async move {
                let mut rounds = 0;
                while watched.load(Ordering::Relaxed) {
                    check_commits(&admin, &group, &ledger).await;
                    rounds += 1;
                }
                rounds
            }
        });
        let producing = tokio::spawn({
            let (kafka, topic) = (kafka.clone(), topic.clone());
            async move { produce(&kafka, &topic, PARTITIONS, 0..RECORDS).await }
        });
        kill.notified().await;
        doomed.shutdown_background();
        let dead = victim.await;
        assert!(dead.is_err_and(|error| error.is_cancelled()), "the victim ended by itself");
        producing.await.unwrap();
        for survivor in survivors {
            survivor.await.unwrap();
        }
        watched.store(false, Ordering::Relaxed);
        assert!(watch.await.unwrap() > 5, "commits were hardly watched");

        let admin = kafka.admin().await.unwrap();
        let lag = admin.group_lag(&group).await.unwrap();
        let lag: BTreeMap<_, _> = lag.into_iter().map(|(key, lag)| (key, lag.unwrap())).collect();
        assert!(lag.len() == PARTITIONS as usize && lag.values().all(|lag| lag.lag == 0), "{lag:?}");
        assert_eq!(lag.values().map(|lag| lag.committed).sum::<i64>(), i64::from(RECORDS));
        let ledger = ledger.lock().unwrap();
        assert_eq!(ledger.distinct(), i64::from(RECORDS));
        assert!(ledger.by_member.len() == 3 && ledger.by_member[&0] < RECORDS / 3, "{:?}", ledger.by_member);
        // What the victim had handled since its last commit began: mostly two polls, several on a busy machine, never more than
        // all that it handled.
        assert!(ledger.redelivered as i64 <= i64::from(ledger.by_member[&0]), "{} came again", ledger.redelivered);
        println!("{} records came again, handled by {:?}", ledger.redelivered, ledger.by_member);
    }

    async fn members_that_join_and_leave_hand_over_every_record_once(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", PARTITIONS).await;
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let stops: Vec<_> = (0..3).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let start = |id: usize| {
            let (kafka, topic, ledger, stop) =
                (kafka.clone(), topic.clone(), Arc::clone(&ledger), Arc::clone(&stops[id]));
            tokio::spawn(async move {
                let consumer = kafka.get_consumer_with([&topic], |c| c.heartbeat_interval(200)).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let records = consumer.poll(Duration::from_millis(100)).await.unwrap();
                    let mut ledger = ledger.lock().unwrap();
                    for record in records.records() {
                        ledger.handled(id, record.partition(), record.offset());
                    }
                }
                consumer.commit().await.unwrap();
                consumer.close(PATIENCE).await.unwrap();
            })
        };
        let writing = Arc::new(AtomicBool::new(true));
        let writer = tokio::spawn({
            let (kafka, topic, writing) = (kafka.clone(), topic.clone(), Arc::clone(&writing));
            async move {
                let producer = kafka.get_producer().await.unwrap();
                let mut number = 0u32;
                while writing.load(Ordering::Relaxed) {
                    for _ in 0..60 {
                        let send = producer.send(&topic, &number).partition(number as i32 % PARTITIONS);
                        let _flushed = send.await.unwrap();
                        number += 1;
                    }
                    producer.flush().await.unwrap();
                }
                producer.close().await.unwrap();
                number
            }
        });
        let group = group_of(&kafka);
        let mut members = vec![start(0)];
        wait_for_members(&kafka, &group, 1).await;
        members.push(start(1));
        wait_for_members(&kafka, &group, 2).await;
        members.push(start(2));
        wait_for_members(&kafka, &group, 3).await;
        handled_by_all(&ledger, 3).await;
        stops[0].store(true, Ordering::Relaxed);
        members.remove(0).await.unwrap();
        wait_for_members(&kafka, &group, 2).await;
        stops[2].store(true, Ordering::Relaxed);
        members.remove(1).await.unwrap();
        wait_for_members(&kafka, &group, 1).await;
        writing.store(false, Ordering::Relaxed);
        let written = writer.await.unwrap();
        while ledger.lock().unwrap().distinct() < i64::from(written) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stops[1].store(true, Ordering::Relaxed);
        for member in join_all(members).await {
            member.unwrap();
        }
        let ledger = ledger.lock().unwrap();
        assert_eq!((ledger.distinct(), ledger.redelivered), (i64::from(written), 0), "each once, by one owner at a time");
    }

    async fn a_restarted_consumer_goes_on_at_its_commit(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 2).await;
        produce(&kafka, &topic, 2, 0..100).await;
        let manual = |c: ConsumerConfig| c.enable_auto_commit(false).max_poll_records(10);
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        let first = read(&consumer, 40).await;
        consumer.commit().await.unwrap();
        // Read and not committed: these come again.
        read(&consumer, 10).await;
        consumer.close(PATIENCE).await.unwrap();
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        let mut second = read(&consumer, 60).await;
        consumer.close(PATIENCE).await.unwrap();
        second.extend(first);
        second.sort_unstable();
        assert!(second.into_iter().eq(0..100));
    }

    async fn offsets_committed_one_by_one_are_where_the_next_one_starts(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 2).await;
        produce(&kafka, &topic, 2, 0..100).await;
        let [one, two] = [0, 1].map(|partition| TopicPartition::new(&*topic, partition));
        let manual = |c: ConsumerConfig| c.enable_auto_commit(false);
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        read(&consumer, 100).await;
        consumer.commit_offsets([(one.clone(), 10), (two.clone(), 49)]).await.unwrap();
        let error = consumer.commit_offsets([(one.clone(), -1)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        consumer.close(PATIENCE).await.unwrap();
        let consumer = kafka.get_consumer_with([&topic], manual).await.unwrap();
        let committed = consumer.committed([one.clone(), two.clone()]).await.unwrap();
        assert_eq!([&one, &two].map(|key| committed[key].as_ref().map(|committed| committed.offset)), [Some(10), Some(49)]);
        let mut rest = read(&consumer, 41).await;
        rest.sort_unstable();
        let mut expected: Vec<u32> = (10..50).map(|n| n * 2).chain([99]).collect();
        expected.sort_unstable();
        assert_eq!(rest, expected);
        consumer.close(PATIENCE).await.unwrap();
    }

    async fn a_close_leaves_the_group_or_stays_in_it_as_it_is_told(backend) {
        let topic = backend.topic("orders", 1).await;
        let admin = backend.instance().admin().await.unwrap();
        let members = async |group: &str| admin.describe_group(group).await.unwrap().members.len();
        for (instance, operation, stay) in [
            (Some("one"), GroupMembershipOperation::Default, 1),
            (Some("one"), GroupMembershipOperation::LeaveGroup, 0),
            (None, GroupMembershipOperation::RemainInGroup, 1),
            (None, GroupMembershipOperation::Default, 0),
        ] {
            let group = unique("group");
            let mut config = backend.config().set_group_id(&*group);
            if let Some(instance) = instance {
                config = config.set("group.instance.id", instance);
            }
            let consumer = KafkaInstance::new(config).unwrap().get_consumer([&topic]).await.unwrap();
            while consumer.assignment().is_empty() {
                consumer.poll(Duration::from_millis(50)).await.unwrap();
            }
            assert_eq!(members(&group).await, 1);
            let options = CloseOptions::new().timeout(PATIENCE).group_membership(operation);
            consumer.close_with(options).await.unwrap();
            assert_eq!(members(&group).await, stay, "{instance:?} {operation:?}");
        }
    }

    async fn a_rebalance_can_be_enforced(backend) {
        let topic = backend.topic("orders", 1).await;
        let consumer = backend.instance().get_consumer([&topic]).await.unwrap();
        consumer.enforce_rebalance("nobody is in the group").unwrap();
        // Those of a member that has what it is to have.
        let generation = async |after: i32| {
            loop {
                consumer.poll(Duration::from_millis(50)).await.unwrap();
                let generation = consumer.group_metadata().map(|group| group.generation_or_member_epoch());
                match generation {
                    Ok(generation) if generation > after && !consumer.assignment().is_empty() => break generation,
                    _ => {}
                }
            }
        };
        let first = generation(-1).await;
        consumer.enforce_rebalance("the racks have changed").unwrap();
        generation(first).await;
        consumer.close(PATIENCE).await.unwrap();
    }

    async fn without_a_commit_the_reset_policy_decides(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..10).await;
        let partition = TopicPartition::new(&*topic, 0);
        let with = |reset: AutoOffsetReset| {
            move |c: ConsumerConfig| c.auto_offset_reset(reset).group_id(unique("reset"))
        };
        let consumer = kafka.get_consumer_with([&topic], with(AutoOffsetReset::Earliest)).await.unwrap();
        assert!(read(&consumer, 10).await.into_iter().eq(0..10));
        consumer.close(PATIENCE).await.unwrap();

        let consumer = kafka.get_consumer_with([&topic], with(AutoOffsetReset::None)).await.unwrap();
        let error = consumer.poll(PATIENCE).await.unwrap_err();
        assert_eq!((error.topic(), error.partition()), (Some(&*topic), Some(0)), "{error}");
        assert!(error.to_string().contains("auto.offset.reset"), "{error}");
        consumer.seek(&partition, 8).unwrap();
        assert_eq!(read(&consumer, 2).await, [8, 9], "the user has decided");
        consumer.close(PATIENCE).await.unwrap();

        let latest = kafka.get_consumer_with([&topic], with(AutoOffsetReset::Latest)).await.unwrap();
        while latest.assignment().is_empty() {
            assert!(latest.poll(Duration::from_millis(50)).await.unwrap().is_empty());
        }
        assert_eq!(latest.position(&partition).await.unwrap(), 10);
        produce(&kafka, &topic, 1, 10..13).await;
        assert_eq!(read(&latest, 3).await, [10, 11, 12]);
        latest.close(PATIENCE).await.unwrap();
    }

    async fn a_consumer_without_a_group_reads_the_partitions_it_chose(backend) {
        let topic = backend.topic("orders", 2).await;
        produce(&backend.instance(), &topic, 2, 0..20).await;
        let config = KafkaConfig::new().set_bootstrap_servers(backend.bootstrap_servers());
        let kafka = KafkaInstance::new(config.set_auto_offset_reset("earliest")).unwrap();
        let error = kafka.get_consumer([&topic]).await.unwrap_err();
        assert!(error.to_string().contains("group.id"), "{error}");

        let consumer = kafka.get_consumer([] as [&str; 0]).await.unwrap();
        consumer.assign([TopicPartition::new(&*topic, 1)]).unwrap();
        assert!(read(&consumer, 10).await.into_iter().eq((1..20).step_by(2)));
        let error = consumer.commit().await.unwrap_err();
        assert!(error.to_string().contains("group.id"), "{error}");
        consumer.assign([TopicPartition::new(&*topic, 0)]).unwrap();
        assert!(read(&consumer, 10).await.into_iter().eq((0..20).step_by(2)));
        consumer.unsubscribe().unwrap();
        assert!(consumer.assignment().is_empty());
        consumer.close(PATIENCE).await.unwrap();
    }

    async fn an_offset_outside_the_log_is_reset_by_the_policy(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..10).await;
        let partition = TopicPartition::new(&*topic, 0);
        for (reset, expected) in [
            (AutoOffsetReset::Earliest, Some((0, 0..10))),
            (AutoOffsetReset::Latest, Some((10, 10..10))),
            (AutoOffsetReset::None, None),
        ] {
            let settings = |c: ConsumerConfig| c.auto_offset_reset(reset).group_id(unique("outside"));
            let consumer = kafka.get_consumer_with([] as [&str; 0], settings).await;
            let consumer = match consumer {
                Ok(consumer) => consumer,
                Err(error) => panic!("{error}"),
            };
            consumer.assign([partition.clone()]).unwrap();
            consumer.seek(&partition, 1_000_000).unwrap();
            match expected {
                Some((_, expected)) if !expected.is_empty() => {
                    assert!(read(&consumer, expected.len()).await.into_iter().eq(expected));
                }
                Some((position, _)) => {
                    while consumer.position(&partition).await.unwrap() != position {
                        consumer.poll(Duration::from_millis(50)).await.unwrap();
                    }
                }
                None => {
                    let error = consumer.poll(PATIENCE).await.unwrap_err();
                    assert_eq!((error.topic(), error.partition()), (Some(&*topic), Some(0)), "{error}");
                    assert!(error.to_string().contains("auto.offset.reset"), "{error}");
                }
            }
            consumer.close(PATIENCE).await.unwrap();
        }
    }

    async fn seeking_pausing_and_resuming_within_a_group(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 2).await;
        produce(&kafka, &topic, 2, 0..100).await;
        let [even, odd] = [0, 1].map(|partition| TopicPartition::new(&*topic, partition));
        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        read(&consumer, 100).await;
        consumer.seek_to_beginning([&even, &odd]).unwrap();
        consumer.pause([odd.clone()]).unwrap();
        assert_eq!(consumer.paused(), std::slice::from_ref(&odd));
        assert!(read(&consumer, 50).await.into_iter().eq((0..50).map(|n| n * 2)));
        assert!(consumer.poll(Duration::from_millis(200)).await.unwrap().is_empty(), "it is paused");
        assert_eq!((consumer.position(&even).await.unwrap(), consumer.position(&odd).await.unwrap()), (50, 0));
        consumer.resume([odd.clone()]).unwrap();
        assert!(read(&consumer, 50).await.into_iter().eq((0..50).map(|n| n * 2 + 1)));
        consumer.seek(&even, 48).unwrap();
        assert_eq!(read(&consumer, 2).await, [96, 98]);
        consumer.seek_to_end([&even, &odd]).unwrap();
        assert_eq!((consumer.position(&even).await.unwrap(), consumer.position(&odd).await.unwrap()), (50, 50));
        let stranger = TopicPartition::new("stranger", 0);
        assert_eq!(consumer.seek(&stranger, 0).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(consumer.pause([stranger]).unwrap_err().kind(), ErrorKind::InvalidArgument);
        consumer.close(PATIENCE).await.unwrap();
    }

    /// KIP-345: a static member comes back to its partitions, and nobody rebalances.
    async fn a_static_member_comes_back_without_a_rebalance(backend) {
        let kafka = backend.instance();
        let (group, topic) = (group_of(&kafka), backend.topic("orders", 4).await);
        produce(&kafka, &topic, 4, 0..400).await;
        let start = async |name: &str| {
            let settings = |c: ConsumerConfig| c.set("group.instance.id", name).heartbeat_interval(200);
            kafka.get_consumer_with([&topic], settings).await.unwrap()
        };
        let (first, second) = (start("first").await, start("second").await);
        let mut numbers = Vec::new();
        while numbers.len() < 400 || first.assignment().len() != 2 || second.assignment().len() != 2 {
            for consumer in [&first, &second] {
                let records = consumer.poll(Duration::from_millis(50)).await.unwrap();
                numbers.extend(records.records().map(|record| record.json::<Order>().unwrap().number));
            }
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..400));
        let (kept, others) = (second.assignment(), first.assignment());
        second.commit().await.unwrap();
        second.close(PATIENCE).await.unwrap();
        let admin = kafka.admin().await.unwrap();
        assert_eq!(admin.describe_group(&group).await.unwrap().members.len(), 2, "a static member does not leave");
        let again = start("second").await;
        while again.assignment().is_empty() {
            again.poll(Duration::from_millis(50)).await.unwrap();
            first.poll(Duration::from_millis(10)).await.unwrap();
        }
        assert_eq!((again.assignment(), first.assignment()), (kept, others));
        let described = admin.describe_group(&group).await.unwrap();
        assert_eq!((described.state.as_str(), described.members.len()), ("Stable", 2));
        again.close(PATIENCE).await.unwrap();
        first.close(PATIENCE).await.unwrap();
    }
}

/// Reads until `count` records have come, no more.
async fn read(consumer: &KafkaConsumer, count: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let records = consumer.poll(PATIENCE).await.unwrap();
        assert!(!records.is_empty(), "only {numbers:?} came");
        numbers.extend(records.records().map(|record| record.json::<Order>().unwrap().number));
    }
    assert_eq!(numbers.len(), count, "{numbers:?}");
    numbers
}

async fn handled_by_all(ledger: &Mutex<Ledger>, members: usize) {
    while ledger.lock().unwrap().by_member.len() < members {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
