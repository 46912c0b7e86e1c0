//! Members that come, go, are lost and come back.

use dtkafka_testcontainers::{Effect, Fault};

use super::*;

#[tokio::test]
async fn two_members_share_the_partitions_and_nothing_is_read_twice_after_the_rebalance() {
    let bench = Bench::start().await;
    let topic = unique("share");
    bench.topic(&topic, 6).await;
    bench.produce(&topic, 6, 0, 6_000).await;
    let config =
        bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "200").set_enable_auto_commit(true);
    let first = bench.consumer(&config);
    first.subscribe([&topic]).unwrap();
    let mut numbers = read(&first, 3_000).await;
    let second = bench.consumer(&config);
    second.subscribe([&topic]).unwrap();
    let deadline = time::now() + WAIT;
    while numbers.len() < 6_000 || second.assignment().len() != 3 {
        assert!(time::now() < deadline, "{} records, {:?}", numbers.len(), second.assignment());
        let polls =
            tokio::join!(first.poll(Duration::from_millis(100)), second.poll(Duration::from_millis(100)));
        for records in [polls.0.unwrap(), polls.1.unwrap()] {
            for record in records.records() {
                assert!(numbers.insert(number(record.value().unwrap())), "{record:?} came twice");
            }
        }
    }
    assert_eq!(first.assignment().len(), 3);
    // The one that is left takes over what the other leaves, and reads on where it stopped.
    first.poll(Duration::ZERO).await.unwrap();
    first.close(WAIT).await.unwrap();
    bench.produce(&topic, 6, 6_000, 600).await;
    assert_eq!(read(&second, 600).await, (6_000..6_600).collect());
    assert_eq!(second.assignment().len(), 6);
    second.close(WAIT).await.unwrap();
}

#[tokio::test]
async fn a_member_that_was_expelled_joins_again_and_reads_on_from_the_commit() {
    let bench = Bench::embedded(1).await;
    let topic = unique("expelled");
    bench.topic(&topic, 2).await;
    bench.produce(&topic, 2, 0, 100).await;
    // The broker still has the member that it says it does not know, and waits for it until its session is over.
    let config = bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "50");
    let consumer = bench.consumer(&config.set("session.timeout.ms", "2000"));
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 100).await;
    consumer.commit().await.unwrap();
    let joins = bench.control().requests(ApiKey::JoinGroup);
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while bench.control().requests(ApiKey::JoinGroup) == joins {
        assert!(consumer.poll(Duration::from_millis(10)).await.unwrap().is_empty());
    }
    bench.produce(&topic, 2, 100, 100).await;
    let mut numbers = BTreeSet::new();
    while numbers.len() < 100 {
        for record in consumer.poll(WAIT).await.unwrap().records() {
            numbers.insert(number(record.value().unwrap()));
        }
    }
    // What was not committed may come again, what was must not.
    assert_eq!(numbers, (100..200).collect());
}

#[tokio::test]
async fn partitions_follow_their_leader_and_their_coordinator() {
    let bench = Bench::embedded(3).await;
    let topic = unique("moves");
    bench.topic(&topic, 3).await;
    bench.produce(&topic, 3, 0, 90).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set("heartbeat.interval.ms", "50"));
    consumer.subscribe([&topic]).unwrap();
    let mut numbers = read(&consumer, 90).await;
    for (round, broker) in [(0, 2), (1, 3), (2, 1)] {
        for partition in 0..3 {
            bench.control().move_leader(&topic, partition, broker).unwrap();
        }
        bench.control().move_coordinator(&topic, broker).unwrap();
        bench.produce(&topic, 3, 90 + round * 30, 30).await;
        numbers.extend(read(&consumer, 30).await);
        consumer.commit().await.unwrap();
    }
    assert_eq!(numbers, (0..180).collect());
    let committed = consumer.committed(consumer.assignment()).await.unwrap();
    assert_eq!(committed.values().flatten().map(|committed| committed.offset).sum::<i64>(), 180);
}

#[tokio::test]
async fn a_coordinator_that_cannot_be_reached_any_more_is_looked_for_again() {
    let bench = Bench::embedded(2).await;
    bench.topic("t", 1).await;
    let control = bench.control();
    control.move_leader("t", 0, 1).unwrap();
    control.move_coordinator("group", 2).unwrap();
    let consumer = bench.consumer(&bench.config());
    let partition = TopicPartition::new("t", 0);
    consumer.assign([partition.clone()]).unwrap();
    consumer.commit_offsets([(partition.clone(), 5)]).await.unwrap();
    control.stop_broker(2).unwrap();
    let committed = consumer.committed([partition.clone()]).await.unwrap();
    assert_eq!(committed[&partition].as_ref().map(|committed| committed.offset), Some(5));
    consumer.commit_offsets([(partition.clone(), 6)]).await.unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(6));
}

#[tokio::test]
async fn a_static_leader_that_comes_back_reads_what_its_topics_have_grown_by_meanwhile() {
    for assignor in ["range", "sticky", "cooperative-sticky"] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let config =
            bench.config().set("group.instance.id", "one").set("partition.assignment.strategy", assignor);
        let first = bench.consumer(&config);
        first.subscribe(["t"]).unwrap();
        read(&first, 10).await;
        // It stays in the group, and leads it.
        first.close(WAIT).await.unwrap();
        bench.broker.as_ref().unwrap().grow_topic("t", 3).unwrap();
        bench.produce("t", 3, 10, 30).await;
        let second = bench.consumer(&config);
        second.subscribe(["t"]).unwrap();
        assert_eq!(read(&second, 40).await.len(), 40, "{assignor}");
        second.close(WAIT).await.unwrap();
    }
}

#[tokio::test]
async fn records_of_a_lost_life_are_told_of_also_when_the_next_poll_came_first() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&brief(&bench));
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while !consumer.assignment().is_empty() {
        tokio::task::yield_now().await;
    }
    joined(&consumer).await;
    consumer.commit().await.unwrap_err();
    consumer.commit().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_kept_and_not_polled_gives_its_partitions_up() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let config = bench.config().set("max.poll.interval.ms", 600).set("heartbeat.interval.ms", 50);
    let consumer = bench.consumer(&config);
    consumer.subscribe(["t"]).unwrap();
    joined(&consumer).await;
    let mut stream = consumer.stream();
    // Waited for, it keeps the partitions however long nothing comes.
    let waited = tokio::time::timeout(Duration::from_millis(1500), stream.next()).await;
    assert!(waited.is_err() && !consumer.assignment().is_empty());
    tokio::time::timeout(WAIT, async {
        while !consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    // Looked after again, it joins again, as a poll would.
    bench.produce("t", 1, 0, 1).await;
    let record = tokio::time::timeout(WAIT, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.offset, 0);
}

#[tokio::test]
async fn a_stream_that_waits_goes_on_after_a_time_with_nothing_assigned() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let consumer = bench.consumer(&bench.config().set("max.poll.interval.ms", 300));
    let partition = TopicPartition::new("t", 0);
    consumer.assign([partition.clone()]).unwrap();
    let mut stream = consumer.stream();
    let waits = Duration::from_millis(250);
    assert!(tokio::time::timeout(waits, stream.next()).await.is_err());
    consumer.assign([]).unwrap();
    // More than once within a third of the poll interval.
    assert!(tokio::time::timeout(waits, stream.next()).await.is_err());
    consumer.assign([partition]).unwrap();
    bench.produce("t", 1, 0, 1).await;
    let record = tokio::time::timeout(WAIT, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.offset, 0);
}

#[tokio::test]
async fn a_stream_that_is_kept_gives_its_partitions_up_also_after_a_call_of_a_listener() {
    struct Listener;
    impl crate::RebalanceListener for Listener {}

    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let config = bench.config().set("max.poll.interval.ms", 600).set("heartbeat.interval.ms", 50);
    let consumer = bench.consumer(&config);
    consumer.set_rebalance_listener(Listener);
    consumer.subscribe(["t"]).unwrap();
    let mut stream = consumer.stream();
    while consumer.assignment().is_empty() || consumer.shared.lock().is_telling() {
        let _nothing = tokio::time::timeout(Duration::from_millis(5), stream.next()).await;
    }
    tokio::time::timeout(WAIT, async {
        while !consumer.assignment().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_coordinator_that_hangs_is_asked_over_another_connection() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let consumer = bench.consumer(&brief(&bench));
    consumer.subscribe(["t"]).unwrap();
    joined(&consumer).await;
    let joins = bench.control().requests(ApiKey::JoinGroup);
    bench.control().hold(ApiKey::Heartbeat);
    let deadline = time::now() + WAIT;
    while bench.control().requests(ApiKey::JoinGroup) == joins {
        assert!(time::now() < deadline, "the join waits behind the heartbeat that hangs");
        consumer.poll(Duration::from_millis(20)).await.unwrap();
    }
    bench.control().clear();
    joined(&consumer).await;
}

#[tokio::test]
async fn a_join_is_not_waited_for_at_a_broker_that_does_not_coordinate_the_group_any_more() {
    for hangs in [false, true] {
        let bench = Bench::embedded(2).await;
        let control = bench.control();
        bench.topic("t", 1).await;
        control.move_leader("t", 0, 1).unwrap();
        control.move_coordinator("group", 2).unwrap();
        let silence = |fault: Fault| control.inject(fault.broker(2).effect(Effect::Silence));
        silence(Fault::on(ApiKey::JoinGroup));
        let config = bench.config().set("heartbeat.interval.ms", 50).set("session.timeout.ms", 400);
        let config = config.set("request.timeout.ms", 500);
        let client = Arc::new(config.resolve_client().unwrap());
        let consumer = KafkaConsumer::start(client, config.resolve_consumer().unwrap()).unwrap();
        consumer.subscribe(["t"]).unwrap();
        while control.requests(ApiKey::JoinGroup) == 0 {
            consumer.poll(Duration::from_millis(20)).await.unwrap();
        }
        if hangs {
            silence(Fault::anywhere());
        }
        control.move_coordinator("group", 1).unwrap();
        joined(&consumer).await;
    }
}

#[test]
fn heartbeats_go_on_while_the_users_only_thread_is_blocked() {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = theirs.block_on(Bench::embedded(1));
    theirs.block_on(bench.topic("t", 1));
    theirs.block_on(bench.produce("t", 1, 0, 10));
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let consumer = bench.consumer(&brief(&bench));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        let before = bench.control().requests(ApiKey::Heartbeat);
        // Longer than the session.
        std::thread::sleep(Duration::from_secs(4));
        assert!(bench.control().requests(ApiKey::Heartbeat) >= before + 10);
        consumer.commit().await.unwrap();
        assert_eq!(consumer.assignment().len(), 1);
    });
}

#[tokio::test]
async fn a_subscribed_topic_that_is_not_there_is_a_warning_and_no_error_of_poll() {
    let (log, _guard) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 5).await;
    let config = bench.config().set("allow.auto.create.topics", false).set("unreadable.warn.ms", 100);
    // On this thread, on which the log is heard.
    let cluster = Cluster::start(Arc::new(config.resolve_client().unwrap())).unwrap();
    let consumer = KafkaConsumer::start_on(cluster, config.resolve_consumer().unwrap(), None).unwrap();
    consumer.subscribe(["t", "missing"]).unwrap();
    let deadline = time::now() + WAIT;
    let mut count = 0;
    while count < 5 || !log.text().contains("makes no progress") {
        assert!(time::now() < deadline, "{}", log.text());
        count += consumer.poll(Duration::from_millis(50)).await.unwrap().len();
    }
    assert!(log.text().contains("missing"), "{}", log.text());
}
