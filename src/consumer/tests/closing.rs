//! The end of a consumer, with and without failures.

use super::*;

#[tokio::test]
async fn closing_and_dropping_return_at_once_when_no_broker_answers() {
    let nowhere = Bench { bootstrap: "127.0.0.1:1".to_owned(), broker: None };
    let consumer = nowhere.consumer(&nowhere.config());
    consumer.subscribe(["t"]).unwrap();
    let error = consumer.poll(Duration::from_millis(100)).await;
    assert!(error.as_ref().is_ok_and(ConsumerRecords::is_empty), "{error:?}");
    let started = time::now();
    let _ = consumer.close(Duration::from_millis(500)).await;
    drop(consumer);
    assert!(time::now() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn a_stream_that_waits_says_once_that_its_consumer_was_closed() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let consumer = bench.consumer(&bench.config());
    consumer.assign([TopicPartition::new("t", 0)]).unwrap();
    let mut stream = consumer.stream();
    let (waited, closed) = tokio::join!(stream.next(), consumer.close(WAIT));
    closed.unwrap();
    assert_eq!(waited.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(stream.next().await.is_none());
    assert_eq!(consumer.group_metadata().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn unsubscribing_and_closing_are_nothing_to_warn_of() {
    let (bench, topic) = (Bench::start().await, unique("quiet"));
    bench.topic(&topic, 2).await;
    bench.produce(&topic, 2, 0, 10).await;
    // Of this thread, on which everything here runs.
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::INFO);
    let settings = bench.config().set_group_id(&topic).resolve_consumer().unwrap();
    let consumer = KafkaConsumer::start_on(bench.cluster(), settings, None).unwrap();
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.unsubscribe().unwrap();
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.close(WAIT).await.unwrap();
    let log = log.text();
    assert!(log.contains("partitions assigned"), "the log is empty: {log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn closing_ends_by_its_deadline_when_the_coordinator_is_silent() {
    let bench = Bench::embedded(1).await;
    let topic = unique("silent");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_group_id(&topic).set_enable_auto_commit(true));
    consumer.subscribe([&topic]).unwrap();
    read(&consumer, 10).await;
    consumer.poll(Duration::ZERO).await.unwrap();
    bench.control().hold(ApiKey::OffsetCommit);
    bench.control().hold(ApiKey::LeaveGroup);
    let started = time::now();
    assert_eq!(consumer.close(Duration::from_millis(300)).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(time::now() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn what_is_done_is_committed_by_a_close_whose_listener_never_returns() {
    struct Hangs;
    impl RebalanceListener for Hangs {
        async fn revoked(&self, _consumer: &KafkaConsumer, _partitions: &[TopicPartition]) {
            std::future::pending().await
        }
    }
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
    consumer.set_rebalance_listener(Hangs);
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    consumer.poll(Duration::ZERO).await.unwrap();
    assert_eq!(consumer.close(Duration::from_secs(1)).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(10));
}

#[tokio::test]
async fn a_consumer_holds_nothing_once_a_close_that_was_too_short_has_returned() {
    let bench = Bench::embedded(1).await;
    let topic = unique("held");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    bench.control().hold(ApiKey::OffsetCommit);
    for group in 0..5 {
        let config = bench.config().set_group_id(format!("{topic}-{group}")).set("max.poll.records", "2");
        let consumer = bench.consumer(&config.set_enable_auto_commit(true));
        consumer.subscribe([&topic]).unwrap();
        read(&consumer, 4).await;
        assert!(consumer.buffered_bytes() > 0);
        assert_eq!(consumer.close(Duration::from_millis(20)).await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(consumer.buffered_bytes(), 0);
    }
}

#[tokio::test]
async fn a_close_that_is_too_late_leaves_the_group_all_the_same() {
    for hung in [false, true] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        bench.produce("t", 1, 0, 10).await;
        let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        consumer.poll(Duration::ZERO).await.unwrap();
        if hung {
            bench.control().hold(ApiKey::OffsetCommit);
        }
        let within = Duration::from_millis(if hung { 200 } else { 0 });
        let error = consumer.close(within).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        drop(consumer);
        bench.control().clear();
        let deadline = time::now() + WAIT;
        while bench.control().requests(ApiKey::LeaveGroup) == 0 {
            assert!(time::now() < deadline, "hung {hung}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
