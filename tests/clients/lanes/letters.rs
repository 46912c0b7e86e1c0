//! Dead letters: written, acknowledged, refused, sent back.

use dtkafka::Replay;

use super::*;

#[tokio::test]
async fn a_dead_letter_is_acknowledged_before_its_record_is_committed() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler(
            "orders",
            async |m: Message<u32>| {
                if m.value == 1 { Err("never".into()) } else { Ok(()) }
            },
        )
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let control = broker.control();
    control.hold(ApiKey::Produce);
    let consuming = tokio::spawn(async move {
        let handled = consumer.consume(PATIENCE).await;
        (consumer, handled)
    });
    let before = control.requests(ApiKey::Produce);
    until(|| control.requests(ApiKey::Produce) > before || consuming.is_finished()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!consuming.is_finished(), "the letter is not acknowledged yet");
    assert!(broker.committed("g", "orders", 0).is_none_or(|offset| offset <= 1));
    control.release(ApiKey::Produce);
    let (mut consumer, handled) = consuming.await.unwrap();
    assert_eq!((handled.unwrap(), broker.committed("g", "orders", 0)), (3, Some(3)));
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
    assert_eq!(consumer.metrics().dead_lettered, 1);
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_while_a_letter_is_on_its_way_stops() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<u32>| Err("never".into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let control = broker.control();
    control.hold(ApiKey::Produce);
    let before = control.requests(ApiKey::Produce);
    let running = run(consumer);
    until(|| control.requests(ApiKey::Produce) > before).await;
    let begun = Instant::now();
    let (_consumer, outcome) = running.stop().await;
    outcome.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(broker.committed("g", "orders", 0).is_none_or(|offset| offset == 0), "it comes again");
    control.release(ApiKey::Produce);
}

#[tokio::test]
async fn dead_letters_are_sent_back_by_a_filter_and_by_a_group_once() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 2)]).await;
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..6_u32 {
        let value = number.to_string();
        let header = [dtkafka::Header::new("trace", format!("t{number}"))];
        let record = ProducerRecord::new("orders").key("k").value(&value).headers(&header);
        producer.send_record(record).await.unwrap().await.unwrap();
    }
    producer.close().await.unwrap();
    let is_mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, mended) = (Seen::default(), Arc::clone(&is_mended));
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            if m.value % 2 == 1 && !mended.load(Relaxed) {
                return Err(format!("odd {}", m.value).into());
            }
            assert_eq!(m.header_str("trace"), Some(format!("t{}", m.value).as_str()));
            assert!(!m.headers.iter().any(|header| header.key.starts_with("dtkafka")));
            log.lock().unwrap().push(m.value);
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Stop.then_dead_letter_by(|_, _| "dead".to_owned()))
        .unwrap();
    let mut handled = 0;
    while handled < 6 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    is_mended.store(true, Relaxed);
    let replay = Replay::from_dead_letters(&kafka, "dead");
    let some = replay.clone().filter(|letter| letter.error.contains("odd 3")).run().await.unwrap();
    assert_eq!((some.read, some.sent, some.left), (3, 1, 2));
    let all = replay.clone().group("replay").run().await.unwrap();
    assert_eq!((all.read, all.sent), (3, 3));
    let none = replay.group("replay").run().await.unwrap();
    assert_eq!((none.read, none.sent), (0, 0), "the group has seen them");
    while handled < 10 {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 3, 4, 5]);
    assert_eq!(broker.committed("g", "orders", 0), Some(10));
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_letter_that_is_too_large_for_its_topic_ends_the_consumer_and_says_what_to_do() {
    let (broker, kafka) = broker(&[("orders", 1)]).await;
    let dead = dtkafka::NewTopic::new("dead").partitions(1).replication_factor(1);
    kafka.admin().await.unwrap().create_topic(dead.config("max.message.bytes", "500")).await.unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let value = "x".repeat(400);
    producer.send("orders", &value).await.unwrap().await.unwrap();
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<String>| Err("e".repeat(100_000).into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let error = consumer.run(std::future::pending::<()>()).await.unwrap_err();
    assert!(error.to_string().contains("dead"), "{error}");
    assert!(error.hint().unwrap().contains("max.message.bytes"), "{:?}", error.hint());
    assert_eq!(broker.committed("g", "orders", 0).unwrap_or(0), 0);
}

#[tokio::test]
async fn letters_are_acknowledged_by_all_replicas_whatever_the_producers_of_the_user_ask_for() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..1).await;
    let config = kafka.config().clone().set("acks", 0).set("enable.idempotence", false);
    let kafka =
        KafkaInstance::new(config.set("delivery.timeout.ms", 800).set("request.timeout.ms", 700)).unwrap();
    let fault = dtkafka_testcontainers::broker::ResponseError::NotEnoughReplicas;
    broker.control().fail_topic(ApiKey::Produce, "dead", usize::MAX, fault);
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |_: Message<u32>| Err("never".into()))
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    consumer.consume(PATIENCE).await.unwrap_err();
    assert_eq!(broker.committed("g", "orders", 0).unwrap_or(0), 0, "no letter was written");
    broker.control().clear();
    assert_eq!(consumer.consume(PATIENCE).await.unwrap(), 1);
    assert_eq!(broker.committed("g", "orders", 0), Some(1));
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_dead_letter_topic_that_is_missing_holds_up_its_lane_and_calls_no_handler_again() {
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
    let (broker, kafka) = broker_with(&[("orders", 2)], |builder| builder.auto_create_topics(false)).await;
    let kafka = KafkaInstance::new(kafka.config().clone().set("max.block.ms", 300)).unwrap();
    produce(&kafka, "orders", 2, 2, 0..2).await;
    let calls: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&calls);
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            seen.lock().unwrap().push(m.value);
            if m.value == 1 { Err("never".into()) } else { Ok(()) }
        })
        .unwrap()
        .error_policy(ErrorPolicy::retry(2, Duration::ZERO).then_dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| log.text().matches("written again after a pause").count() >= 2).await;
    let said = log.text();
    for part in ["topic dead", "never", "topic orders partition 1, offset 0"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    produce(&kafka, "orders", 2, 2, 2..3).await;
    until(|| calls.lock().unwrap().contains(&2)).await;
    broker.create_topic("dead", 1).unwrap();
    until(|| broker.records("dead", 0).is_ok_and(|letters| letters.len() == 1)).await;
    let (consumer, outcome) = running.stop().await;
    outcome.unwrap();
    let mut calls = calls.lock().unwrap().clone();
    calls.sort_unstable();
    assert_eq!((calls, consumer.metrics().dead_lettered), (vec![0, 1, 1, 2], 1));
    assert_eq!(broker.committed("g", "orders", 1), Some(1));
}

#[tokio::test]
async fn a_dead_letter_topic_that_is_refused_ends_the_consumer() {
    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..4).await;
    let consumer = || {
        Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| match m.value {
                2 => Err("never this one".into()),
                _ => Ok(()),
            })
            .unwrap()
            .error_policy(ErrorPolicy::dead_letter("dead"))
            .unwrap()
    };
    let refusal = dtkafka_testcontainers::broker::ResponseError::TopicAuthorizationFailed;
    broker.control().fail_topic(ApiKey::Produce, "dead", 1, refusal);
    let outcome = tokio::time::timeout(PATIENCE, consumer().run(std::future::pending::<()>())).await;
    let error = outcome.expect("it goes on").unwrap_err();
    assert_eq!((error.topic(), error.offset()), (Some("orders"), Some(2)), "{error}");
    assert!(error.to_string().contains("the topic dead") && error.hint().is_some(), "{error}");
    assert_eq!(broker.committed("g", "orders", 0), Some(2));
    // Allowed in the end, it goes on where it stood.
    let running = run(consumer());
    until(|| broker.committed("g", "orders", 0) == Some(4)).await;
    running.stop().await.1.unwrap();
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn a_broker_that_does_not_know_what_is_wrong_is_asked_again_for_a_topic_and_for_a_letter() {
    use dtkafka_testcontainers::broker::ResponseError::UnknownServerError;

    let (broker, kafka) = broker(&[("orders", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..4).await;
    broker.control().fail_topic(ApiKey::Metadata, "orders", 2, UnknownServerError);
    broker.control().fail_topic(ApiKey::Metadata, "dead", 1, UnknownServerError);
    broker.control().fail_topic(ApiKey::Produce, "dead", 1, UnknownServerError);
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| match m.value {
            2 => Err("never this one".into()),
            _ => Ok(()),
        })
        .unwrap()
        .error_policy(ErrorPolicy::dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| broker.committed("g", "orders", 0) == Some(4)).await;
    running.stop().await.1.unwrap();
    assert_eq!(broker.records("dead", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn letters_that_would_go_round_in_a_circle_stop_the_last_of_its_consumers() {
    let (broker, kafka) = broker(&[("a", 1), ("b", 1), ("c", 1)]).await;
    produce(&kafka, "a", 1, 1, 0..1).await;
    let consumer = |from: &'static str, to: &str| {
        Consumer::new_with(&kafka, [from], |c| c.group_id(from))
            .unwrap()
            .register_handler(from, async |_: Message<u32>| Err("never".into()))
            .unwrap()
            .error_policy(ErrorPolicy::dead_letter(to))
            .unwrap()
    };
    let others = [run(consumer("a", "b")), run(consumer("b", "c"))];
    let mut last = consumer("c", "a");
    let ended = tokio::time::timeout(PATIENCE, last.run(std::future::pending::<()>())).await;
    let error = ended.expect("it goes round").unwrap_err();
    assert_eq!((error.kind(), error.topic()), (dtkafka::ErrorKind::Config, Some("a")));
    assert!(error.to_string().contains("circle") && error.hint().is_some(), "{error}");
    for other in others {
        other.stop().await.1.unwrap();
    }
    let count = |topic: &str| broker.records(topic, 0).unwrap().len();
    assert_eq!((["a", "b", "c"].map(count), broker.committed("c", "c", 0).unwrap_or(0)), ([1, 1, 1], 0));
}

#[tokio::test]
async fn letters_of_a_topic_that_does_not_exist_are_an_error_and_make_no_topic() {
    let (_broker, kafka) = broker(&[("orders-dead", 1)]).await;
    let error = Replay::from_dead_letters(&kafka, "orders-ded").run().await.unwrap_err();
    assert_eq!(error.topic(), Some("orders-ded"), "{error}");
    assert_eq!(kafka.admin().await.unwrap().list_topics().await.unwrap(), ["orders-dead"]);
    assert_eq!(Replay::from_dead_letters(&kafka, "orders-dead").run().await.unwrap().read, 0);
}

#[tokio::test]
async fn a_replay_commits_nothing_backwards() {
    let (broker, kafka) = broker(&[("orders", 1), ("orders-dead", 1)]).await;
    produce(&kafka, "orders-dead", 1, 1, 0..3).await;
    let dead = dtkafka::TopicPartition::new("orders-dead", 0);
    let other = kafka.get_consumer_with([""; 0], |c| c.group_id("replay")).await.unwrap();
    other.commit_offsets([(dead, 5)]).await.unwrap();
    let replayed = Replay::from_dead_letters(&kafka, "orders-dead").group("replay").run().await.unwrap();
    assert_eq!((replayed.read, broker.committed("replay", "orders-dead", 0)), (0, Some(5)));
    other.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_replay_ends_where_the_log_of_letters_was_cut_meanwhile() {
    let (broker, kafka) = broker(&[("orders-dead", 1)]).await;
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..10 {
        let letter = (number, "x".repeat(1000));
        producer.send("orders-dead", &letter).await.unwrap().await.unwrap();
    }
    // One letter at a time, so that the last are not there yet when the log is cut.
    let config = kafka.config().clone().set("max.partition.fetch.bytes", 500);
    let kafka = KafkaInstance::new(config).unwrap();
    let control = broker.control();
    let replay = Replay::from_dead_letters(&kafka, "orders-dead").filter(move |letter| {
        if letter.letter_offset == 0 {
            control.truncate("orders-dead", 0, 6).unwrap();
        }
        false
    });
    let replayed = tokio::time::timeout(PATIENCE, replay.run()).await.expect("it does not end").unwrap();
    assert_eq!((replayed.read, replayed.left), (6, 6));
}
