//! Handlers, error policies, dead letters and commits: what is handled is committed, and nothing else is.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dtkafka::{
    Consumer, ConsumerRecord, ErrorKind, ErrorPolicy, KafkaConsumer, KafkaInstance, Message, Producer,
    ProducerRecord, Progress, Result,
};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;

use crate::{backend::Backend, on_every_backend};

const PATIENCE: Duration = Duration::from_secs(30);

type Seen = Arc<Mutex<Vec<(i32, u32)>>>;

/// Sends numbers, each to the partition `number % partitions`.
async fn produce(
    kafka: &KafkaInstance,
    topic: &str,
    partitions: i32,
    numbers: impl IntoIterator<Item = u32>,
) {
    let producer = kafka.get_producer().await.unwrap();
    for number in numbers {
        let send = producer.send(topic, &number).key("key").header("trace", "t1");
        let _flushed = send.partition(number as i32 % partitions).await.unwrap();
    }
    producer.close().await.unwrap();
}

/// What the group has committed, by partition.
async fn committed(backend: &Backend, kafka: &KafkaInstance) -> Vec<(i32, i64)> {
    let group = kafka.config().get("group.id").unwrap();
    let offsets = backend.admin().await.group_offsets(&group).await.unwrap();
    offsets.into_iter().map(|(partition, committed)| (partition.partition, committed.offset)).collect()
}

/// Consumes until `count` records were handled.
async fn consume(consumer: &mut Consumer, count: usize) {
    let mut handled = 0;
    while handled < count {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
    assert_eq!(handled, count);
}

/// Handles so many records with pauses, under a `max.poll.interval.ms` of 1.5 s, and expects each once.
async fn handle_slowly(backend: &Backend, count: u32, pause: fn(u32) -> Duration) {
    let kafka = backend.instance();
    let topic = backend.topic("orders", 1).await;
    produce(&kafka, &topic, 1, 0..count).await;
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let settings =
        |c: dtkafka::ConsumerConfig| c.max_poll_interval(1500).session_timeout(6000).heartbeat_interval(200);
    let mut consumer = Consumer::new_with(&kafka, [&topic], settings)
        .unwrap()
        .register_handler(&topic, async move |m: Message<u32>| {
            tokio::time::sleep(pause(m.value)).await;
            log.lock().unwrap().push((m.partition, m.value));
            Ok(())
        })
        .unwrap();
    consume(&mut consumer, count as usize).await;
    let seen: Vec<_> = seen.lock().unwrap().iter().map(|(_, value)| *value).collect();
    assert!(seen.iter().copied().eq(0..count), "each once: the member was never put out: {seen:?}");
    assert_eq!(committed(backend, &kafka).await, [(0, i64::from(count))]);
    consumer.close().await.unwrap();
}

/// Consumes until an error comes.
async fn consume_until_error(consumer: &mut Consumer) -> dtkafka::Error {
    loop {
        if let Err(error) = consumer.consume(PATIENCE).await {
            return error;
        }
    }
}

/// A consumer that keeps what it handles, and fails on `bad` while `broken`.
fn failing_on(
    kafka: &KafkaInstance,
    topic: &str,
    seen: &Seen,
    bad: u32,
    broken: &Arc<AtomicUsize>,
) -> Consumer {
    let (seen, broken) = (Arc::clone(seen), Arc::clone(broken));
    let handler = async move |m: Message<u32>| {
        if m.value == bad && broken.load(Ordering::Relaxed) > 0 {
            broken.fetch_sub(1, Ordering::Relaxed);
            return Err("out of stock".into());
        }
        seen.lock().unwrap().push((m.partition, m.value));
        Ok(())
    };
    Consumer::new(kafka, [topic]).unwrap().register_handler(topic, handler).unwrap()
}

on_every_backend! {
    async fn what_was_handled_is_committed_and_a_new_consumer_goes_on_behind_it(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 3).await;
        produce(&kafka, &topic, 3, 0..30).await;
        let seen = Seen::default();
        let mut consumer = failing_on(&kafka, &topic, &seen, u32::MAX, &Arc::default());
        consume(&mut consumer, 30).await;
        assert_eq!(committed(backend, &kafka).await, [(0, 10), (1, 10), (2, 10)]);
        for partition in 0..3 {
            let seen = seen.lock().unwrap();
            let values: Vec<_> = seen.iter().filter(|(p, _)| *p == partition).map(|(_, value)| *value).collect();
            assert!(values.is_sorted() && values.len() == 10, "{values:?}");
        }
        consumer.close().await.unwrap();
        produce(&kafka, &topic, 3, 30..33).await;
        // The same consumer joins anew.
        consume(&mut consumer, 3).await;
        let mut last: Vec<_> = seen.lock().unwrap()[30..].to_vec();
        last.sort();
        assert_eq!(last, [(0, 30), (1, 31), (2, 32)]);
        consumer.close().await.unwrap();
    }

    async fn stop_returns_the_error_and_the_record_comes_again(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 2).await;
        produce(&kafka, &topic, 2, 0..20).await;
        let (seen, broken) = (Seen::default(), Arc::new(AtomicUsize::new(2)));
        let mut consumer = failing_on(&kafka, &topic, &seen, 11, &broken);
        let error = consume_until_error(&mut consumer).await;
        assert_eq!((error.kind(), error.topic()), (ErrorKind::Handler, Some(&*topic)));
        assert_eq!((error.partition(), error.offset()), (Some(1), Some(5)));
        assert!(error.to_string().contains("out of stock"), "{error}");
        let offsets = committed(backend, &kafka).await;
        assert!(offsets.contains(&(1, 5)), "not past the record that failed: {offsets:?}");
        let error = consume_until_error(&mut consumer).await;
        assert_eq!((error.partition(), error.offset()), (Some(1), Some(5)), "it comes again");
        while seen.lock().unwrap().len() < 20 {
            consumer.consume(PATIENCE).await.unwrap();
        }
        let mut seen = seen.lock().unwrap().clone();
        let odd: Vec<_> = seen.iter().filter(|(p, _)| *p == 1).map(|(_, value)| *value).collect();
        assert!(odd.is_sorted(), "{odd:?}");
        seen.sort_by_key(|(_, value)| *value);
        assert!(seen.iter().map(|(_, value)| *value).eq(0..20), "each once, nothing lost: {seen:?}");
        assert_eq!(committed(backend, &kafka).await, [(0, 10), (1, 10)]);
        consumer.close().await.unwrap();
    }

    async fn a_handler_is_tried_again_and_earlier_handlers_are_not(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..3).await;
        let (seen, broken) = (Seen::default(), Arc::new(AtomicUsize::new(2)));
        let first = Seen::default();
        let log = Arc::clone(&first);
        let mut consumer = Consumer::new(&kafka, [&topic]).unwrap();
        consumer = consumer
            .register_handler(&topic, async move |m: Message<u32>| {
                log.lock().unwrap().push((0, m.value));
                Ok(())
            })
            .unwrap();
        let log = Arc::clone(&seen);
        consumer = consumer
            .register_raw_handler(&topic, async move |r: ConsumerRecord| {
                if r.offset == 1 && broken.fetch_sub(1, Ordering::Relaxed) > 0 {
                    return Err("not yet".into());
                }
                broken.store(0, Ordering::Relaxed);
                log.lock().unwrap().push((0, r.json()?));
                Ok(())
            })
            .unwrap()
            .error_policy(ErrorPolicy::retry(2, Duration::from_millis(1)))
            .unwrap();
        let _ = consume_first(&mut consumer, 3).await;
        assert_eq!(*first.lock().unwrap(), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(*seen.lock().unwrap(), [(0, 0), (0, 1), (0, 2)]);
        consumer.close().await.unwrap();
    }

    async fn a_record_that_cannot_be_handled_goes_to_the_dead_letter_topic(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        let dead = backend.topic("orders-dead", 1).await;
        produce(&kafka, &topic, 1, 0..2).await;
        let producer = kafka.get_producer().await.unwrap();
        let poison = ProducerRecord::new(&topic).key("poison").value("{not json");
        producer.send_record(poison).await.unwrap().await.unwrap();
        producer.close().await.unwrap();
        produce(&kafka, &topic, 1, 3..4).await;
        let seen = Seen::default();
        let mut consumer = failing_on(&kafka, &topic, &seen, 1, &Arc::new(AtomicUsize::new(usize::MAX)))
            .error_policy(ErrorPolicy::retry(3, Duration::from_millis(1)).then_dead_letter(&dead))
            .unwrap();
        consume(&mut consumer, 4).await;
        assert_eq!(*seen.lock().unwrap(), [(0, 0), (0, 3)]);
        assert_eq!(committed(backend, &kafka).await, [(0, 4)]);
        consumer.close().await.unwrap();

        let reader = kafka.get_consumer_with([&dead], |c| c.group_id(format!("{dead}-readers"))).await.unwrap();
        let letters: Vec<ConsumerRecord> = reader.stream().take(2).map(Result::unwrap).collect().await;
        let header = |letter: &ConsumerRecord, name: &str| {
            let header = letter.headers.iter().find(|header| header.key == name);
            String::from_utf8(header.and_then(|header| header.value.clone()).unwrap().to_vec()).unwrap()
        };
        assert_eq!((letters[0].key.as_deref(), letters[0].value.as_deref()), (Some(&b"key"[..]), Some(&b"1"[..])));
        for (name, value) in [
            ("trace", "t1"),
            ("dtkafka-dead-letter-topic", &*topic),
            ("dtkafka-dead-letter-partition", "0"),
            ("dtkafka-dead-letter-offset", "1"),
            ("dtkafka-dead-letter-attempts", "3"),
        ] {
            assert_eq!(header(&letters[0], name), value, "{name}");
        }
        assert!(header(&letters[0], "dtkafka-dead-letter-error").contains("out of stock"));
        assert_eq!(letters[1].value.as_deref(), Some(&b"{not json"[..]));
        assert_eq!(header(&letters[1], "dtkafka-dead-letter-attempts"), "1", "it will not get better");
        reader.close(PATIENCE).await.unwrap();
    }

    async fn a_skipped_record_counts_as_handled(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..3).await;
        let seen = Seen::default();
        let mut consumer = failing_on(&kafka, &topic, &seen, 1, &Arc::new(AtomicUsize::new(usize::MAX)))
            .error_policy(ErrorPolicy::Stop.then_skip())
            .unwrap();
        consume(&mut consumer, 3).await;
        assert_eq!(*seen.lock().unwrap(), [(0, 0), (0, 2)]);
        assert_eq!(committed(backend, &kafka).await, [(0, 3)]);
        consumer.close().await.unwrap();
    }

    async fn a_dropped_consume_loses_nothing_and_commits_nothing_unhandled(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..5).await;
        let seen = Seen::default();
        let (log, hang) = (Arc::clone(&seen), Arc::new(AtomicUsize::new(1)));
        let entered = Arc::new(Notify::new());
        let tell = Arc::clone(&entered);
        let mut consumer = Consumer::new(&kafka, [&topic])
            .unwrap()
            .register_handler(&topic, async move |m: Message<u32>| {
                if m.value == 2 && hang.swap(0, Ordering::Relaxed) == 1 {
                    tell.notify_one();
                    std::future::pending::<()>().await;
                }
                log.lock().unwrap().push((m.partition, m.value));
                Ok(())
            })
            .unwrap();
        tokio::select! {
            _ = async { loop { consumer.consume(PATIENCE).await.unwrap(); } } => unreachable!("it hangs"),
            () = entered.notified() => {}
        }
        consumer.commit().await.unwrap();
        assert_eq!(committed(backend, &kafka).await, [(0, 2)]);
        while seen.lock().unwrap().len() < 5 {
            consumer.consume(PATIENCE).await.unwrap();
        }
        assert!(seen.lock().unwrap().iter().map(|(_, value)| *value).eq(0..5), "{seen:?}");
        consumer.close().await.unwrap();
    }

    async fn run_finishes_the_running_handler_commits_and_leaves(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..5).await;
        let seen = Seen::default();
        let log = Arc::clone(&seen);
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (Arc::clone(&entered), Arc::clone(&go_on));
        let mut consumer = Consumer::new(&kafka, [&topic])
            .unwrap()
            .register_handler(&topic, async move |m: Message<u32>| {
                if m.value == 2 {
                    let token = m.cancellation();
                    tell.notify_one();
                    wait.notified().await;
                    token.cancelled().await;
                }
                log.lock().unwrap().push((m.partition, m.value));
                Ok(())
            })
            .unwrap();
        let shutdown = Arc::new(Notify::new());
        let told = Arc::clone(&shutdown);
        let running = tokio::spawn(async move { consumer.run(async move { told.notified().await }).await });
        entered.notified().await;
        shutdown.notify_one();
        tokio::task::yield_now().await;
        assert!(!running.is_finished());
        go_on.notify_one();
        running.await.unwrap().unwrap();
        let handled = seen.lock().unwrap().len();
        assert_eq!(handled, 3, "the running handler finished, and nothing was begun after it");
        assert_eq!(committed(backend, &kafka).await, [(0, handled as i64)]);
        let group = kafka.config().get("group.id").unwrap();
        let described = backend.admin().await.describe_group(&group).await.unwrap();
        assert!(described.members.is_empty(), "{described:?}");
    }

    async fn run_ends_with_the_error_of_a_handler_after_leaving(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..3).await;
        let (seen, broken) = (Seen::default(), Arc::new(AtomicUsize::new(1)));
        let mut consumer = failing_on(&kafka, &topic, &seen, 1, &broken);
        let error = consumer.run(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Handler, Some(1)));
        assert_eq!(committed(backend, &kafka).await, [(0, 1)]);
        consume(&mut consumer, 2).await;
        assert_eq!(*seen.lock().unwrap(), [(0, 0), (0, 1), (0, 2)]);
        consumer.close().await.unwrap();
    }

    async fn records_without_a_handler_count_as_handled(backend) {
        let kafka = backend.instance();
        let (orders, audit) = (backend.topic("orders", 1).await, backend.topic("audit", 1).await);
        produce(&kafka, &orders, 1, 0..2).await;
        produce(&kafka, &audit, 1, 0..2).await;
        let mut consumer = Consumer::new(&kafka, [&orders, &audit])
            .unwrap()
            .register_handler(&orders, async |_: Message<u32>| Ok(()))
            .unwrap();
        consume(&mut consumer, 4).await;
        assert_eq!(committed(backend, &kafka).await, [(0, 2), (0, 2)]);
        consumer.close().await.unwrap();
    }

    async fn a_handler_slower_than_the_poll_interval_keeps_its_partitions(backend) {
        handle_slowly(backend, 3, |value| Duration::from_secs(if value == 0 { 4 } else { 0 })).await;
    }

    async fn many_handlers_that_are_slow_together_keep_their_partitions(backend) {
        // Each far below the interval, and below the time after which the member polls in between.
        handle_slowly(backend, 12, |_| Duration::from_millis(300)).await;
    }

    async fn contexts_close_also_when_the_body_fails_or_panics(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        produce(&kafka, &topic, 1, 0..3).await;
        let error = kafka
            .producer_context(async |producer| -> Result<()> {
                let _flushed = producer.send(&topic, &3).await?;
                Err(dtkafka::Error::other("the body failed"))
            })
            .await
            .unwrap_err();
        assert!(error.kind() == ErrorKind::Handler && error.to_string().contains("the body failed"), "{error}");
        let kept = Arc::new(Mutex::new(None));
        let (keep, to, instance) = (Arc::clone(&kept), topic.clone(), kafka.clone());
        let panicking = tokio::spawn(async move {
            instance
                .producer_context(async |producer| {
                    let _flushed = producer.send(&to, &4).await?;
                    *keep.lock().unwrap() = Some(producer);
                    let reason = String::from("the body panicked");
                    std::panic::panic_any(reason);
                    #[expect(unreachable_code, reason = "gives the body its type")]
                    Ok(())
                })
                .await
        });
        let panic = panicking.await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("the body panicked"));
        let producer = kept.lock().unwrap().take().unwrap();
        assert_eq!(producer.send(&topic, &5).await.unwrap_err().kind(), ErrorKind::Closed);

        let group = kafka.config().get("group.id").unwrap();
        let admin = backend.admin().await;
        let error = kafka
            .consumer_context([&topic], async |consumer: &KafkaConsumer| -> Result<()> {
                let mut values = Vec::new();
                let mut stream = consumer.stream();
                while values.len() < 5 {
                    let record = stream.next().await.unwrap()?;
                    values.push(record.json::<u32>()?);
                }
                assert_eq!(values, [0, 1, 2, 3, 4], "what failing bodies had sent was delivered");
                assert_eq!(admin.describe_group(&group).await?.members.len(), 1);
                Err(dtkafka::Error::other("the body failed"))
            })
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the body failed"), "{error}");
        assert!(admin.describe_group(&group).await.unwrap().members.is_empty());
        assert_eq!(committed(backend, &kafka).await, [(0, 4)], "all but the last record was done with");
    }
}

/// Consumes until `count` records were handled, whatever errors come between.
async fn consume_first(consumer: &mut Consumer, count: usize) -> usize {
    let mut handled = 0;
    while handled < count {
        handled += consumer.consume(PATIENCE).await.unwrap_or(0);
    }
    handled
}

on_every_backend! {
    async fn send_says_in_its_timeout_error_whether_the_record_may_be_written(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("orders", 1).await;
        // Queued for ten seconds: the time-out comes first, and the record is in the producer's hands.
        let producer = dtkafka::Producer::new_with(&kafka, |p| p.linger(Duration::from_secs(10))).await.unwrap();
        producer.client().partitions_for(&topic).await.unwrap();
        let error = producer.send(&topic, &1).timeout(Duration::from_millis(50)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Timeout && error.possibly_written(), "{error}");
        producer.close().await.unwrap();
        let error = producer.send(&topic, &1).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Closed && !error.possibly_written(), "{error}");
    }

    async fn a_consumer_refuses_what_it_cannot_do_before_it_connects(backend) {
        let kafka = backend.instance();
        let none: [&str; 0] = [];
        for error in [
            Consumer::new(&kafka, none).unwrap_err(),
            Consumer::new(&kafka, [""]).unwrap_err(),
            Consumer::new(&kafka, ["orders"])
                .unwrap()
                .register_handler("payments", async |_: Message<u32>| Ok(()))
                .unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        let without_group = KafkaInstance::new(
            dtkafka::KafkaConfig::new().set_bootstrap_servers(backend.bootstrap_servers()),
        );
        let error = Consumer::new(&without_group.unwrap(), ["orders"]).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("group.id"), "{error}");
    }
}

on_every_backend! {
    async fn a_bulk_load_tells_of_every_record_and_names_those_that_failed(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("numbers", 3).await;
        // Far less memory than the records take, so that they are sent as others are acknowledged.
        let producer = Producer::new_with(&kafka, |p| p.set("buffer.memory", 65_536).set("batch.size", 4096)).await.unwrap();
        let value = |number: u32| if number % 1000 == 7 { f64::NAN } else { f64::from(number) };
        let records = (0..5000_u32).map(|number| (number, value(number)));
        let mut load = producer.bulk_load(&topic, records).every(Duration::from_millis(1));
        let (mut failures, mut last) = (Vec::new(), Progress::default());
        while let Some(progress) = load.next().await {
            assert!(progress.taken >= last.taken && progress.delivered >= last.delivered);
            assert_eq!(progress.taken, progress.delivered + progress.failed + progress.open());
            failures.extend(progress.failures.iter().map(|(number, error)| (*number, error.kind())));
            last = progress;
        }
        assert!(load.next().await.is_none(), "it has ended");
        assert_eq!((last.taken, last.delivered, last.failed, last.open()), (5000, 4995, 5, 0));
        assert_eq!(failures, [7, 1007, 2007, 3007, 4007].map(|number| (number, ErrorKind::Json)));
        producer.close().await.unwrap();
    }

    async fn a_bulk_load_that_is_dropped_and_asked_again_loses_and_doubles_nothing(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("numbers", 1).await;
        let producer = Producer::new_with(&kafka, |p| p.set("buffer.memory", 16_384).set("batch.size", 1024)).await.unwrap();
        let mut load = producer.bulk_load(&topic, (0..3000_u32).map(|number| ("key", number)));
        loop {
            // Polled once and dropped, wherever it stands.
            match load.next().now_or_never() {
                Some(None) => break,
                Some(Some(_)) => {}
                None => tokio::task::yield_now().await,
            }
        }
        producer.close().await.unwrap();
        let consumer = kafka.get_consumer([&topic]).await.unwrap();
        let mut numbers = Vec::new();
        while numbers.len() < 3000 {
            let polled = consumer.poll(PATIENCE).await.unwrap();
            numbers.extend(polled.records().map(|record| record.json::<u32>().unwrap()));
        }
        assert!(numbers.into_iter().eq(0..3000));
        consumer.close(PATIENCE).await.unwrap();
    }

    async fn a_bulk_load_ends_with_its_producer(backend) {
        let kafka = backend.instance();
        let topic = backend.topic("numbers", 1).await;
        let producer = Producer::new(&kafka).await.unwrap();
        producer.close().await.unwrap();
        let progress = producer.bulk_load(&topic, std::iter::repeat(("key", 7))).finish().await;
        assert_eq!((progress.taken, progress.failed, progress.failures.len()), (1, 1, 1));
        assert_eq!(progress.failures[0].1.kind(), ErrorKind::Closed);
    }
}
