//! Batches that cannot be read, and what is done with them.

use super::*;

/// Three batches of the only partition of `orders`: 0 to 2, then 3 and 4, which cannot be read, then 5 to 7.
async fn with_a_damaged_batch() -> (EmbeddedBroker, KafkaInstance) {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1), ("others", 1)]).await;
    for batch in [0..3, 3..5, 5..8] {
        produce(&kafka, "orders", 1, 1, batch).await;
    }
    broker.control().damage("orders", 0, 3).unwrap();
    (broker, kafka)
}

fn logging(kafka: &KafkaInstance, policy: ErrorPolicy) -> (Consumer, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new(kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    (consumer, seen)
}

/// The letter of a damaged batch has been sent, and is not answered.
async fn with_a_letter_on_its_way() -> (EmbeddedBroker, Running, Seen) {
    let (broker, kafka) = with_a_damaged_batch().await;
    let (consumer, seen) = logging(&kafka, ErrorPolicy::dead_letter("dead"));
    let before = broker.control().requests(ApiKey::Produce);
    broker.control().hold(ApiKey::Produce);
    let running = run(consumer);
    until(|| broker.control().requests(ApiKey::Produce) > before).await;
    (broker, running, seen)
}

#[tokio::test]
async fn a_damaged_batch_is_passed_over_when_its_letter_is_acknowledged_and_not_before() {
    let (broker, running, seen) = with_a_letter_on_its_way().await;
    until(|| broker.committed("g", "orders", 0) == Some(3)).await;
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    // The user's pause is not undone by going on behind the batch.
    let orders = dtkafka::TopicPartition::new("orders", 0);
    running.handle.pause([orders.clone()]).unwrap();
    broker.control().release(ApiKey::Produce);
    until(|| running.handle.metrics().dead_lettered == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2], "it is paused");
    running.handle.resume([orders]).unwrap();
    until(|| seen.lock().unwrap().len() == 6).await;
    running.stop().await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 5, 6, 7]);
    assert_eq!(broker.committed("g", "orders", 0), Some(8));
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn a_shutdown_is_heard_while_the_letter_of_a_damaged_batch_is_on_its_way() {
    let (broker, running, seen) = with_a_letter_on_its_way().await;
    let begun = Instant::now();
    running.stop().await.1.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((broker.committed("g", "orders", 0), seen.lock().unwrap().len()), (Some(3), 3));
}

#[tokio::test]
async fn what_stands_before_a_damaged_batch_and_comes_again_is_handled_before_the_batch_is_passed_over() {
    let (broker, kafka) = with_a_damaged_batch().await;
    let seen = Seen::default();
    let (log, calls) = (Arc::clone(&seen), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&calls);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value == 1 && count.fetch_add(1, Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Skip)
        .unwrap();
    // A call that is dropped while a handler is at work before the damaged batch.
    while calls.load(Relaxed) == 0 {
        tokio::select! {
            () = until(|| calls.load(Relaxed) > 0) => {}
            outcome = consumer.consume(PATIENCE) => drop(outcome.unwrap()),
        }
    }
    let running = run(consumer);
    until(|| broker.committed("g", "orders", 0) == Some(8)).await;
    running.stop().await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 5, 6, 7]);
}

/// The letter of a damaged batch has nowhere to go, while a handler of another topic is at work.
#[tokio::test]
async fn the_letter_of_a_damaged_batch_that_has_to_wait_disturbs_no_handler() {
    let (lines, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
    let topics = [("orders", 1), ("others", 1)];
    let (broker, kafka) = broker_with(&topics, |builder| builder.auto_create_topics(false)).await;
    let kafka = KafkaInstance::new(kafka.config().clone().set("max.block.ms", 300)).unwrap();
    for topic in ["orders", "others"] {
        produce(&kafka, topic, 1, 1, 0..1).await;
    }
    broker.control().damage("orders", 0, 0).unwrap();
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, wait) = (Arc::clone(&calls), Arc::clone(&go_on));
    let consumer = Consumer::new(&kafka, ["orders", "others"])
        .unwrap()
        .drain_timeout(Duration::ZERO)
        .register_handler(Topics::others(), async move |_: Message<u32>| {
            count.fetch_add(1, Relaxed);
            wait.notified().await;
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| lines.text().matches("written again after a pause").count() >= 2).await;
    broker.create_topic("dead", 1).unwrap();
    until(|| broker.records("dead", 0).is_ok_and(|letters| letters.len() == 1)).await;
    go_on.notify_one();
    until(|| broker.committed("g", "others", 0) == Some(1)).await;
    running.stop().await.1.unwrap();
    assert_eq!((calls.load(Relaxed), broker.committed("g", "orders", 0)), (1, Some(1)));
}

#[tokio::test]
async fn a_damaged_batch_does_not_wait_for_the_letter_of_another() {
    let topics = [("orders", 1), ("others", 1)];
    let (broker, kafka) = broker_with(&topics, |builder| builder.auto_create_topics(false)).await;
    for topic in ["orders", "others"] {
        for batch in [0..1, 1..2] {
            produce(&kafka, topic, 1, 1, batch).await;
        }
        broker.control().damage(topic, 0, 0).unwrap();
    }
    let consumer = Consumer::new(&kafka, ["orders", "others"])
        .unwrap()
        .register_handler(Topics::others(), async |_: Message<u32>| Ok(()))
        .unwrap()
        .error_policy_for("orders", ErrorPolicy::dead_letter("missing"))
        .unwrap()
        .error_policy_for("others", ErrorPolicy::Skip)
        .unwrap();
    let running = run(consumer);
    until(|| broker.committed("g", "others", 0) == Some(2)).await;
    running.stop().await.1.unwrap();
    assert_eq!(broker.committed("g", "orders", 0), Some(0));
}

#[tokio::test]
async fn a_panic_while_the_topic_of_a_damaged_batch_is_chosen_is_an_error() {
    let (_broker, kafka) = with_a_damaged_batch().await;
    let (mut consumer, _) =
        logging(&kafka, ErrorPolicy::Stop.then_dead_letter_by(|_, _| panic!("no topic for it")));
    let ended = tokio::time::timeout(PATIENCE, consumer.run(std::future::pending::<()>())).await;
    let error = ended.expect("it goes on").unwrap_err();
    assert_eq!((error.kind(), error.topic()), (dtkafka::ErrorKind::Handler, Some("orders")), "{error}");
    assert!(error.to_string().contains("no topic for it"), "{error}");
}
