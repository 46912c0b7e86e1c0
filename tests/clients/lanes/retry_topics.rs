//! Records that wait in retry topics, and topics of a pattern.

use super::*;

#[tokio::test]
async fn a_record_waits_in_a_retry_topic_without_holding_up_those_behind_it() {
    let retry = "orders-retry-300ms";
    let (broker, kafka) = broker(&[("orders", 1), (retry, 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..4).await;
    let seen: Arc<Mutex<Vec<(u32, u32, i64)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async move |m: Message<u32>| {
            assert_eq!(&*m.topic, "orders", "the topic it came from first");
            log.lock().unwrap().push((m.value, m.attempt, m.offset));
            match m.value {
                1 if m.attempt == 1 => Err("not yet".into()),
                2 => Err("never".into()),
                _ => Ok(()),
            }
        })
        .unwrap()
        .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_millis(300)]).then_dead_letter("dead"))
        .unwrap();
    let running = run(consumer);
    until(|| seen.lock().unwrap().len() == 6).await;
    let (consumer, outcome) = running.stop().await;
    outcome.unwrap();
    let expected = [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 1, 3), (1, 2, 1), (2, 2, 2)];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(broker.committed("g", "orders", 0), Some(4));
    let dead = broker.records("dead", 0).unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((consumer.metrics().dead_lettered, consumer.metrics().handled), (1, 6));
}

#[tokio::test]
async fn a_record_in_a_retry_topic_waits_on_over_a_shutdown_and_counts_on() {
    let (broker, kafka) = broker(&[("orders", 1), ("orders-retry-300ms", 1), ("dead", 1)]).await;
    produce(&kafka, "orders", 1, 1, 0..3).await;
    let seen: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    let consumer = || {
        let log = Arc::clone(&seen);
        Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| {
                log.lock().unwrap().push((m.value, m.attempt));
                if m.value == 1 { Err("not this one".into()) } else { Ok(()) }
            })
            .unwrap()
            .error_policy(
                ErrorPolicy::retry(2, Duration::ZERO)
                    .retry_topics([Duration::from_millis(300)])
                    .then_dead_letter("dead"),
            )
            .unwrap()
    };
    let running = run(consumer());
    until(|| broker.records("orders-retry-300ms", 0).unwrap().len() == 1).await;
    running.stop().await.1.unwrap();
    let second = run(consumer());
    until(|| broker.records("dead", 0).unwrap().len() == 1).await;
    second.stop().await.1.unwrap();
    let attempts: Vec<_> =
        seen.lock().unwrap().iter().filter(|(value, _)| *value == 1).map(|(_, attempt)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let letter = &broker.records("dead", 0).unwrap()[0];
    let header = |name: &str| {
        let found = letter.headers.iter().find(|(key, _)| key == &format!("dtkafka-dead-letter-{name}"));
        String::from_utf8(found.unwrap().1.clone().unwrap().to_vec()).unwrap()
    };
    assert_eq!(["topic", "offset", "attempts"].map(header), ["orders", "1", "4"].map(str::to_owned));
    assert_eq!(letter.value.as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn what_waits_in_a_retry_topic_is_not_lost_where_reading_begins_at_the_end() {
    for (reset, by_pattern) in [("latest", false), ("latest", true), ("none", false), ("none", true)] {
        let (broker, kafka) = broker(&[("orders", 1), ("orders-retry-300ms", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..3).await;
        let seen = Seen::default();
        let consumer = |reset: &str, policy: ErrorPolicy| {
            let log = Arc::clone(&seen);
            let settings = |c: ConsumerConfig| c.auto_offset_reset(reset);
            let consumer = match by_pattern {
                true => Consumer::matching_with(&kafka, "orders", settings),
                false => Consumer::new_with(&kafka, ["orders"], settings),
            };
            consumer
                .unwrap()
                .register_handler("orders", async move |m: Message<u32>| {
                    log.lock().unwrap().push(m.value);
                    Ok(())
                })
                .unwrap()
                .error_policy(policy)
                .unwrap()
        };
        let first = run(consumer("earliest", ErrorPolicy::Stop));
        until(|| broker.committed("g", "orders", 0) == Some(3)).await;
        first.stop().await.1.unwrap();
        // A letter that nobody has seen yet: of the retry topic nothing is committed.
        produce(&kafka, "orders-retry-300ms", 1, 1, 3..4).await;
        assert_eq!(broker.committed("g", "orders-retry-300ms", 0), None);
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_millis(300)]);
        let second = run(consumer(reset, policy));
        until(|| broker.committed("g", "orders-retry-300ms", 0) == Some(1)).await;
        second.stop().await.1.unwrap();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3], "{reset} {by_pattern}");
    }
}

#[tokio::test]
async fn topics_of_a_pattern_have_handlers_those_made_later_and_their_retry_topics_too() {
    /// Value and attempt of each message, by handler and topic.
    type Seen = Arc<Mutex<BTreeMap<String, Vec<(u32, u32)>>>>;
    for protocol in ["classic", "consumer"] {
        let (broker, kafka) =
            broker(&[("orders-eu", 2), ("orders-eu-retry-200ms", 1), ("audit", 1), ("dead", 1)]).await;
        produce(&kafka, "audit", 1, 1, 0..3).await;
        produce(&kafka, "orders-eu", 2, 2, 0..6).await;
        let seen = Seen::default();
        let note = |log: &Seen, m: &Message<u32>, name: &str| {
            let place = format!("{name}:{}", m.topic);
            log.lock().unwrap().entry(place).or_default().push((m.value, m.attempt));
        };
        let (eu, rest) = (Arc::clone(&seen), Arc::clone(&seen));
        let settings = |c: ConsumerConfig| c.set("group.protocol", protocol).set("metadata.max.age.ms", 100);
        let consumer = Consumer::matching_with(&kafka, "orders-[a-z]+", settings)
            .unwrap()
            .register_handler("orders-eu", async move |m: Message<u32>| {
                note(&eu, &m, "eu");
                if m.value == 3 && m.attempt == 1 { Err("later".into()) } else { Ok(()) }
            })
            .unwrap()
            .register_handler(Topics::others(), async move |m: Message<u32>| {
                note(&rest, &m, "rest");
                Ok(())
            })
            .unwrap()
            .error_policy_for("orders-eu", ErrorPolicy::Stop.retry_topics([Duration::from_millis(200)]))
            .unwrap();
        let running = run(consumer);
        until(|| seen.lock().unwrap().get("eu:orders-eu").is_some_and(|seen| seen.len() == 7)).await;
        broker.create_topic("orders-us", 1).unwrap();
        produce(&kafka, "orders-us", 1, 1, 0..2).await;
        until(|| seen.lock().unwrap().get("rest:orders-us").is_some_and(|seen| seen.len() == 2)).await;
        running.stop().await.1.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2, "{protocol}: {seen:?}");
        assert!(seen["eu:orders-eu"].contains(&(3, 2)), "{protocol}: {seen:?}");
        assert_eq!(broker.committed("g", "orders-eu", 0), Some(3));
        assert_eq!(broker.committed("g", "orders-eu-retry-200ms", 0), Some(1));
    }
    let (_broker, kafka) = broker(&[]).await;
    let error = Consumer::matching(&kafka, "orders-(").unwrap_err();
    assert!(error.to_string().contains("'orders-('"), "{error}");
    let consumer = Consumer::matching(&kafka, "orders-.*").unwrap();
    let error = consumer.error_policy(ErrorPolicy::dead_letter("orders-dead")).unwrap_err();
    assert!(error.to_string().contains("feed itself"), "{error}");
}

#[tokio::test]
async fn a_retry_topic_that_its_first_record_makes_is_read_at_once() {
    for by_pattern in [false, true] {
        let (broker, kafka) = broker(&[("orders", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..1).await;
        let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
        let log = Arc::clone(&seen);
        // A refresh by time would come too late for the test.
        let settings = |c: ConsumerConfig| c.set("metadata.max.age.ms", 3_600_000);
        let consumer = match by_pattern {
            true => Consumer::matching_with(&kafka, "orders", settings),
            false => Consumer::new_with(&kafka, ["orders"], settings),
        };
        let consumer = consumer
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| {
                log.lock().unwrap().push(m.attempt);
                if m.attempt == 1 { Err("later".into()) } else { Ok(()) }
            })
            .unwrap()
            .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_millis(20)]))
            .unwrap();
        let running = run(consumer);
        until(|| broker.committed("g", "orders-retry-20ms", 0) == Some(1)).await;
        running.stop().await.1.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 2], "{by_pattern}");
    }
}

#[tokio::test]
async fn retry_topics_of_a_policy_that_comes_later_are_read() {
    for by_pattern in [false, true] {
        let (broker, kafka) = broker(&[("orders", 1), ("orders-retry-20ms", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..1).await;
        let consumer = match by_pattern {
            true => Consumer::matching(&kafka, "orders"),
            false => Consumer::new(&kafka, ["orders"]),
        };
        let mut consumer = consumer
            .unwrap()
            .register_handler("orders", async |m: Message<u32>| {
                if m.value == 1 && m.attempt == 1 { Err("later".into()) } else { Ok(()) }
            })
            .unwrap();
        while consumer.consume(PATIENCE).await.unwrap() == 0 {}
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_millis(20)]);
        let running = run(consumer.error_policy(policy).unwrap());
        produce(&kafka, "orders", 1, 1, 1..2).await;
        until(|| broker.committed("g", "orders-retry-20ms", 0) == Some(1)).await;
        let (consumer, outcome) = running.stop().await;
        outcome.unwrap();
        assert_eq!(consumer.metrics().handled, 3, "{by_pattern}");
    }
}

#[tokio::test]
async fn consume_does_not_wait_for_what_a_retry_topic_holds_back() {
    let retry = "orders-retry-1h";
    let (broker, kafka) = broker(&[("orders", 1), (retry, 1)]).await;
    let due =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() + 3_600_000;
    let header = [dtkafka::Header::new("dtkafka-retry-due", due.to_string())];
    let producer = kafka.get_producer().await.unwrap();
    let waits = ProducerRecord::new(retry).value("0").headers(&header);
    producer.send_record(waits).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
    let seen = Seen::default();
    let consumer = || {
        let log = Arc::clone(&seen);
        Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| {
                log.lock().unwrap().push(m.value);
                Ok(())
            })
            .unwrap()
            .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_secs(3600)]))
            .unwrap()
    };
    let mut first = consumer();
    // A call ends with what it has taken, however long it might have waited for records.
    let consume = async |consumer: &mut Consumer, timeout: Duration| {
        tokio::time::timeout(PATIENCE, consumer.consume(timeout)).await.expect("it returns").unwrap()
    };
    // Alone in its call, and then beside others.
    let control = broker.control();
    let partition = dtkafka::TopicPartition::new(retry, 0);
    loop {
        consume(&mut first, Duration::from_millis(50)).await;
        if first.client().unwrap().position(&partition).await.is_ok_and(|next| next == 1) {
            break;
        }
    }
    for value in 1..4 {
        produce(&kafka, "orders", 1, 1, value..value + 1).await;
        while seen.lock().unwrap().len() < value as usize {
            consume(&mut first, PATIENCE * 200).await;
        }
    }
    // What rests is given back at once where a member joins, also in the middle of a call.
    let joins = control.requests(ApiKey::JoinGroup);
    let resting = tokio::spawn(async move { (first.consume(PATIENCE * 10).await, first) });
    let second = run(consumer());
    until(|| control.requests(ApiKey::JoinGroup) >= joins + 2).await;
    produce(&kafka, "orders", 1, 1, 4..5).await;
    until(|| seen.lock().unwrap().len() == 4).await;
    second.stop().await.1.unwrap();
    resting.abort();
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4]);
    assert!(broker.committed("g", retry, 0).is_none_or(|offset| offset == 0), "it still waits");
}

#[tokio::test]
async fn what_waits_in_the_retry_topic_of_an_earlier_policy_is_handled() {
    let retry = "orders-retry-200ms";
    let later = || ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]);
    let cases = [(ErrorPolicy::Stop, false), (later(), false), (ErrorPolicy::Stop, true), (later(), true)];
    for (policy, by_pattern) in cases {
        let (broker, kafka) = broker(&[("orders", 1), (retry, 1), ("orders-retry-1m", 1)]).await;
        produce(&kafka, "orders", 1, 1, 0..1).await;
        let seen = Seen::default();
        let consumer = |policy: ErrorPolicy| {
            let log = Arc::clone(&seen);
            let consumer = match by_pattern {
                true => Consumer::matching(&kafka, "^orders$"),
                false => Consumer::new(&kafka, ["orders"]),
            };
            let topics = if by_pattern { Topics::others() } else { "orders".into() };
            consumer
                .unwrap()
                .register_handler(topics, async move |m: Message<u32>| {
                    log.lock().unwrap().push(m.value);
                    Ok(())
                })
                .unwrap()
                .error_policy(policy)
                .unwrap()
        };
        let first = run(consumer(ErrorPolicy::Stop.retry_topics([Duration::from_millis(200)])));
        until(|| !seen.lock().unwrap().is_empty() && broker.committed("g", retry, 0).is_some()).await;
        first.stop().await.1.unwrap();
        produce(&kafka, retry, 1, 1, 7..8).await;
        let second = run(consumer(policy));
        until(|| broker.committed("g", retry, 0) == Some(1)).await;
        second.stop().await.1.unwrap();
        assert_eq!(*seen.lock().unwrap(), [0, 7], "{by_pattern}");
    }
}

#[tokio::test]
async fn what_another_group_has_put_into_a_shared_retry_topic_is_passed_over() {
    let retry = "orders-retry-200ms";
    let (broker, kafka) = broker(&[("orders", 1), (retry, 1)]).await;
    let seen = Seen::default();
    let consumer = |group: &str, fails: bool| {
        let log = Arc::clone(&seen);
        Consumer::new_with(&kafka, ["orders"], |c| c.group_id(group))
            .unwrap()
            .register_handler("orders", async move |m: Message<u32>| {
                log.lock().unwrap().push(m.value);
                if fails && m.attempt == 1 { Err("not yet".into()) } else { Ok(()) }
            })
            .unwrap()
            .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_millis(200)]))
            .unwrap()
    };
    produce(&kafka, "orders", 1, 1, 0..2).await;
    let one = run(consumer("one", true));
    until(|| seen.lock().unwrap().len() == 4).await;
    one.stop().await.1.unwrap();
    let two = run(consumer("two", false));
    until(|| broker.committed("two", retry, 0) == Some(2) && broker.committed("two", "orders", 0) == Some(2))
        .await;
    // Of nobody in particular: anyone's.
    produce(&kafka, retry, 1, 1, 9..10).await;
    until(|| broker.committed("two", retry, 0) == Some(3)).await;
    two.stop().await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 0, 1, 0, 1, 9]);
    // Of a consumer that has no retry topics, and whose pattern matches this one as well.
    let all = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&all);
    let three = Consumer::matching_with(&kafka, "orders.*", |c| c.group_id("three"))
        .unwrap()
        .register_handler(Topics::glob("orders*"), async move |m: Message<u32>| {
            log.lock().unwrap().push((m.topic.to_string(), m.value));
            Ok(())
        })
        .unwrap();
    let three = run(three);
    until(|| {
        broker.committed("three", retry, 0) == Some(3) && broker.committed("three", "orders", 0) == Some(2)
    })
    .await;
    three.stop().await.1.unwrap();
    all.lock().unwrap().sort();
    let orders = |value| ("orders".to_owned(), value);
    assert_eq!(*all.lock().unwrap(), [orders(0), orders(1), (retry.to_owned(), 9)]);
}
