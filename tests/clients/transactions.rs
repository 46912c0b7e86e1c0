//! Transactions: all of one is seen or none, whoever fails, and nothing stays open.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use dtkafka::{
    ConsumerGroupMetadata, Error, ErrorKind, ExactlyOnce, IsolationLevel, KafkaConfig, KafkaConsumer,
    KafkaInstance, ProducerInterceptor, RecordMetadata, TopicPartition, TransactionalProducer,
};
use dtkafka_testcontainers::{
    EmbeddedBroker, NewRecord,
    broker::{ApiKey, ResponseError},
};

use crate::{
    backend::{Backend, unique},
    on_every_backend,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn producer(backend: &Backend, id: &str) -> TransactionalProducer {
    let settings = |p: dtkafka::ProducerConfig| p.set("transactional.id", id).set("batch.size", 500);
    backend.instance().get_transactional_producer_with(settings).await.unwrap()
}

/// A consumer of committed records, without a group.
async fn reader(kafka: &KafkaInstance) -> KafkaConsumer {
    let settings = |c: dtkafka::ConsumerConfig| {
        c.set("isolation.level", IsolationLevel::ReadCommitted).set("enable.auto.commit", false)
    };
    kafka.get_consumer_with(Vec::<String>::new(), settings).await.unwrap()
}

/// What a reader of committed records sees of a topic with one partition when all its transactions have ended. Coordinators answer
/// before the last markers are in the log: they are waited for.
async fn seen_in_the_end(kafka: &KafkaInstance, topic: &str) -> Vec<i64> {
    let partition = TopicPartition::new(topic, 0);
    let (consumer, admin) = (reader(kafka).await, kafka.admin().await.unwrap());
    let started = tokio::time::Instant::now();
    loop {
        let stable = consumer.end_offsets([partition.clone()]).await.unwrap()[&partition];
        let end = admin.latest_offsets([partition.clone()]).await.unwrap()[&partition];
        if stable == end {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "a transaction stays open at {stable} of {end}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen(kafka, topic).await
}

/// The same of what is committed by now.
async fn seen(kafka: &KafkaInstance, topic: &str) -> Vec<i64> {
    let consumer = reader(kafka).await;
    let partition = TopicPartition::new(topic, 0);
    consumer.assign([partition.clone()]).unwrap();
    let end = consumer.end_offsets([partition.clone()]).await.unwrap()[&partition];
    let mut values = Vec::new();
    let started = tokio::time::Instant::now();
    while consumer.position(&partition).await.unwrap() < end {
        assert!(started.elapsed() < PATIENCE, "the reader is stuck before {end}: {values:?}");
        for record in consumer.poll(Duration::from_millis(200)).await.unwrap().records() {
            values.push(record.json::<i64>().unwrap());
        }
    }
    consumer.close(PATIENCE).await.unwrap();
    values
}

async fn committed_offset(kafka: &KafkaInstance, group: &str, topic: &str) -> Option<i64> {
    let offsets = kafka.admin().await.unwrap().group_offsets(group).await.unwrap();
    offsets.get(&TopicPartition::new(topic, 0)).map(|committed| committed.offset)
}

fn fenced<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.unwrap_err();
    assert!(error.is_fenced() && error.is_fatal() && !error.requires_abort(), "{error}");
}

async fn group_of(consumer: &KafkaConsumer) -> ConsumerGroupMetadata {
    loop {
        match consumer.group_metadata() {
            Ok(metadata) => return metadata,
            Err(_) => drop(consumer.poll(Duration::from_millis(50)).await.unwrap()),
        }
    }
}

on_every_backend! {
    async fn committed_records_are_seen_and_aborted_ones_are_not(backend) {
        let (topic, kafka) = (backend.topic("transactions", 1).await, backend.instance());
        let mut producer = producer(backend, &unique("id")).await;
        let mut expected = Vec::new();
        for round in 0..20 {
            let transaction = producer.begin().await.unwrap();
            for number in 0..30 {
                let _delivery = transaction.send(&topic, &(round * 100 + number)).await.unwrap();
            }
            match round % 4 {
                0 | 1 => {
                    transaction.commit().await.unwrap();
                    expected.extend((0..30).map(|number| round * 100 + number));
                }
                2 => transaction.abort().await.unwrap(),
                _ => drop(transaction),
            }
        }
        // One of nothing, either way.
        producer.begin().await.unwrap().commit().await.unwrap();
        producer.begin().await.unwrap().abort().await.unwrap();
        producer.close().await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &topic).await, expected);
    }

    async fn a_log_that_ends_in_markers_is_read_to_its_end_without_lag_and_committed_beyond_them(backend) {
        let (topic, kafka) = (backend.topic("markers", 1).await, backend.instance());
        let mut producer = producer(backend, &unique("id")).await;
        for ends_well in [true, false] {
            let transaction = producer.begin().await.unwrap();
            transaction.send(&topic, &1).await.unwrap().await.unwrap();
            if ends_well { transaction.commit().await.unwrap() } else { transaction.abort().await.unwrap() }
        }
        // A record, its marker, a record that was taken back, and its marker.
        let (end, key) = (4, TopicPartition::new(topic.as_str(), 0));
        // The coordinator answers before the last marker is in the log.
        let asks = |isolation| kafka.get_consumer_with(Vec::<String>::new(), move |c| c.set("isolation.level", isolation));
        let stable = asks(IsolationLevel::ReadCommitted).await.unwrap();
        while stable.end_offsets([key.clone()]).await.unwrap()[&key] < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for isolation in [IsolationLevel::ReadCommitted, IsolationLevel::ReadUncommitted] {
            let group = unique("markers");
            let settings = |c: dtkafka::ConsumerConfig| c.group_id(&group).set("isolation.level", isolation);
            let mut consumer = dtkafka::Consumer::new_with(&kafka, [&topic], settings)
                .unwrap()
                .register_raw_handler(&topic, async |_: dtkafka::ConsumerRecord| Ok(()))
                .unwrap();
            let started = tokio::time::Instant::now();
            while consumer.lag().get(&key) != Some(&0) {
                assert!(started.elapsed() < PATIENCE, "{:?}", consumer.lag());
                consumer.consume(Duration::from_millis(100)).await.unwrap();
            }
            consumer.close().await.unwrap();
            assert_eq!(committed_offset(&kafka, &group, &topic).await, Some(end), "{isolation:?}");
        }
        // An open transaction holds back what can be read, and so the lag.
        let open = producer.begin().await.unwrap();
        open.send(&topic, &2).await.unwrap().await.unwrap();
        for (isolation, lag) in [(IsolationLevel::ReadCommitted, 0), (IsolationLevel::ReadUncommitted, 1)] {
            let consumer = asks(isolation).await.unwrap();
            consumer.assign([key.clone()]).unwrap();
            consumer.seek(&key, end).unwrap();
            let ends = consumer.end_offsets([key.clone()]).await.unwrap();
            assert_eq!(ends[&key], end + lag, "{isolation:?}");
            let started = tokio::time::Instant::now();
            while consumer.lag().get(&key) != Some(&0) || consumer.position(&key).await.unwrap() < end + lag {
                assert!(started.elapsed() < PATIENCE, "{isolation:?}: {:?}", consumer.lag());
                consumer.poll(Duration::from_millis(100)).await.unwrap();
            }
        }
        open.abort().await.unwrap();
        producer.close().await.unwrap();
    }

    async fn a_second_producer_of_the_id_fences_the_first_and_ends_what_it_left_open(backend) {
        let (topic, kafka, id) = (backend.topic("fenced", 1).await, backend.instance(), unique("id"));
        let mut zombie = producer(backend, &id).await;
        let left_open = zombie.begin().await.unwrap();
        let written = left_open.send(&topic, &1).await.unwrap();
        written.await.unwrap();
        let mut heir = producer(backend, &id).await;
        let transaction = heir.begin().await.unwrap();
        let _delivery = transaction.send(&topic, &2).await.unwrap();
        transaction.commit().await.unwrap();
        let late = left_open.send(&topic, &3).await;
        if let Ok(late) = late {
            late.await.unwrap_err();
        }
        let outcome = left_open.commit().await;
        match outcome {
            Err(error) if error.requires_abort() => fenced(zombie.begin().await),
            outcome => fenced(outcome),
        }
        fenced(zombie.begin().await);
        heir.close().await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [2]);
    }

    async fn a_commit_of_what_the_coordinator_has_aborted_for_its_time_is_none_and_ends_no_other_way(backend) {
        let (topic, kafka, id) = (backend.topic("late", 1).await, backend.instance(), unique("id"));
        let settings = |p: dtkafka::ProducerConfig| {
            p.set("transactional.id", &id).set("transaction.timeout.ms", 1000)
        };
        let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
        let transaction = producer.begin().await.unwrap();
        transaction.send(&topic, &1).await.unwrap().await.unwrap();
        // Until the coordinator has ended it.
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [0_i64; 0]);
        let error = transaction.commit().await.unwrap_err();
        assert!(!error.possibly_written(), "{error}");
        assert!(error.requires_abort() || error.is_fenced(), "{error}");
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [0_i64; 0]);
    }

    async fn offsets_are_committed_with_the_transaction_or_not_at_all(backend) {
        let (source, target) = (backend.topic("source", 1).await, backend.topic("target", 1).await);
        let (kafka, group) = (backend.instance(), unique("copiers"));
        let plain = kafka.get_producer().await.unwrap();
        for number in 0..10 {
            let _delivery = plain.send(&source, &number).await.unwrap();
        }
        plain.close().await.unwrap();
        let mut producer = producer(backend, &unique("id")).await;
        let consumer = kafka
            .get_consumer_with([&source], |c| c.group_id(&group).set("enable.auto.commit", false))
            .await
            .unwrap();
        let metadata = group_of(&consumer).await;
        for (offset, commit) in [(3, true), (7, false)] {
            let transaction = producer.begin().await.unwrap();
            let _delivery = transaction.send(&target, &offset).await.unwrap();
            transaction.send_offsets(&metadata, [(TopicPartition::new(&*source, 0), offset)]).await.unwrap();
            match commit {
                true => transaction.commit().await.unwrap(),
                false => transaction.abort().await.unwrap(),
            }
        }
        // The end of the second is only marked some time after it was answered.
        let mut ended = producer.begin().await.unwrap();
        let _delivery = ended.send(&target, &100).await.unwrap();
        ended.commit().await.unwrap();
        assert_eq!(committed_offset(&kafka, &group, &source).await, Some(3));
        // A member that the group has expelled cannot commit: another generation took its place.
        consumer.close(PATIENCE).await.unwrap();
        ended = producer.begin().await.unwrap();
        let error = ended.send_offsets(&metadata, [(TopicPartition::new(&*source, 0), 9)]).await.unwrap_err();
        assert!(error.requires_abort() && !error.is_fatal(), "{error}");
        ended.abort().await.unwrap();
        assert_eq!(committed_offset(&kafka, &group, &source).await, Some(3));
        producer.close().await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &target).await, [3, 100]);
    }

    async fn a_member_waits_for_the_offsets_of_an_open_transaction_whatever_records_it_reads(backend) {
        let (kafka, group, source) = (backend.instance(), unique("heirs"), backend.topic("source", 1).await);
        let plain = kafka.get_producer().await.unwrap();
        for number in 0..10 {
            let _delivery = plain.send(&source, &number).await.unwrap();
        }
        plain.close().await.unwrap();
        let config = |c: dtkafka::ConsumerConfig| {
            c.group_id(&group).set("enable.auto.commit", false).set("auto.offset.reset", "earliest")
        };
        let consumer = kafka.get_consumer_with([&source], config).await.unwrap();
        let metadata = group_of(&consumer).await;
        let mut producer = producer(backend, &unique("id")).await;
        let transaction = producer.begin().await.unwrap();
        transaction.send_offsets(&metadata, [(TopicPartition::new(&*source, 0), 7)]).await.unwrap();
        consumer.close(PATIENCE).await.unwrap();
        let heir = kafka.get_consumer_with([&source], config).await.unwrap();
        let early = heir.poll(Duration::from_secs(2)).await.unwrap();
        assert!(early.is_empty(), "its records may be handled by the transaction");
        transaction.commit().await.unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let first = loop {
            assert!(std::time::Instant::now() < deadline);
            let records = heir.poll(Duration::from_secs(1)).await.unwrap();
            if let Some(record) = records.records().next() {
                break record.offset();
            }
        };
        assert_eq!(first, 7);
        heir.close(PATIENCE).await.unwrap();
        producer.close().await.unwrap();
    }

    async fn a_body_that_fails_aborts_and_one_that_returns_commits(backend) {
        let (topic, kafka) = (backend.topic("bodies", 1).await, backend.instance());
        let mut producer = producer(backend, &unique("id")).await;
        let committed = producer.run(async |transaction| {
            let _delivery = transaction.send(&topic, &1).await?;
            Ok("done")
        });
        assert_eq!(committed.await.unwrap(), "done");
        let mut attempts = 0;
        let failed = producer.run(async |transaction| {
            attempts += 1;
            let _delivery = transaction.send(&topic, &2).await?;
            Err::<(), _>(Error::other("no"))
        });
        assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::Handler);
        assert_eq!(attempts, 1, "an error of the body's own is not tried again");
        let cancelled = producer.run(async |transaction| {
            let _delivery = transaction.send(&topic, &3).await?;
            std::future::pending::<()>().await;
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(200), cancelled).await.is_err());
        producer
            .run(async |transaction| transaction.send(&topic, &4).await.map(drop))
            .await
            .unwrap();
        producer.close().await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [1, 4]);
    }

    async fn a_body_that_panics_or_is_cancelled_leaves_nothing_open_and_nothing_seen(backend) {
        let topic = backend.topic("panics", 1).await;
        let kafka = KafkaInstance::new(backend.config().set("transactional.id", unique("id"))).unwrap();
        let panics = kafka.transaction(async |transaction| {
            transaction.send(&topic, &1).await?.await?;
            assert!(topic.is_empty(), "the body panics");
            Ok(())
        });
        let panics = std::panic::AssertUnwindSafe(panics);
        assert!(futures_util::FutureExt::catch_unwind(panics).await.is_err());
        let cancelled = kafka.transaction(async |transaction| {
            transaction.send(&topic, &2).await?.await?;
            std::future::pending::<()>().await;
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(500), cancelled).await.is_err());
        // Neither is waited for by readers until it times out: what is behind them is seen at once.
        kafka.transaction(async |transaction| transaction.send(&topic, &3).await.map(drop)).await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [3]);
    }

    async fn a_transaction_that_must_be_aborted_for_a_passing_reason_is_made_again(backend) {
        let (source, topic) = (backend.topic("source", 1).await, backend.topic("again", 1).await);
        let (kafka, group) = (backend.instance(), unique("group"));
        let consumer = kafka
            .get_consumer_with([&source], |c| c.group_id(&group).set("enable.auto.commit", false))
            .await
            .unwrap();
        let stale = group_of(&consumer).await;
        consumer.close(PATIENCE).await.unwrap();
        let consumer = kafka
            .get_consumer_with([&source], |c| c.group_id(&group).set("enable.auto.commit", false))
            .await
            .unwrap();
        let fresh = group_of(&consumer).await;
        let mut producer = producer(backend, &unique("id")).await;
        let mut attempts = 0;
        let offset = [(TopicPartition::new(&*source, 0), 5)];
        let run = producer.run(async |transaction| {
            attempts += 1;
            let _delivery = transaction.send(&topic, &attempts).await?;
            let group = if attempts < 3 { &stale } else { &fresh };
            transaction.send_offsets(group, offset.clone()).await
        });
        run.await.unwrap();
        assert_eq!(attempts, 3, "a group that was rebalanced refuses the first two");
        producer.close().await.unwrap();
        consumer.close(PATIENCE).await.unwrap();
        assert_eq!(seen_in_the_end(&kafka, &topic).await, [3]);
        assert_eq!(committed_offset(&kafka, &group, &source).await, Some(5));
    }

    async fn a_slow_body_ends_its_transactions_before_their_time(backend) {
        let (source, target) = (backend.topic("slow", 1).await, backend.topic("target", 1).await);
        let group = unique("slow");
        let kafka = KafkaInstance::new(backend.config().set("transaction.timeout.ms", 1000)).unwrap();
        let plain = kafka.get_producer().await.unwrap();
        for number in 0..30 {
            let _delivery = plain.send(&source, &number).await.unwrap();
        }
        plain.close().await.unwrap();
        // One poll hands out all, which takes three seconds.
        let run = ExactlyOnce::new(&kafka, [&*source], &*group).run(async |record, output| {
            let number: i64 = record.json()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if number == 20 {
                let committed = committed_offset(&kafka, &group, &source).await;
                assert!(committed.is_some_and(|offset| offset > 5), "{committed:?}");
            }
            output.send(&target, &number).await.map(drop)
        });
        let all = async {
            while seen(&kafka, &target).await.len() < 30 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            ended = run => panic!("{ended:?}"),
            () = all => {}
        }
        let expected: Vec<i64> = (0..30).collect();
        assert_eq!(seen_in_the_end(&kafka, &target).await, expected);
    }

    async fn a_copier_whose_id_another_has_taken_ends_also_when_nothing_comes_to_it_any_more(backend) {
        let (source, target) = (backend.topic("source", 1).await, backend.topic("target", 1).await);
        let kafka = KafkaInstance::new(backend.config().set("max.poll.interval.ms", 1500)).unwrap();
        let (group, id, is_taken) = (unique("heirs"), unique("heir"), AtomicBool::new(false));
        kafka.get_producer().await.unwrap().send(&source, &7_i64).await.unwrap().await.unwrap();
        let copier = || ExactlyOnce::new(&kafka, [&*source], &*group).transactional_id(&*id);
        let run = copier().run(async |record, output| {
            let number: i64 = record.json()?;
            if !is_taken.swap(true, Ordering::Relaxed) {
                // It is stuck for longer than it may: an heir does its work.
                let heir = copier().run(async |record, output| {
                    let number: i64 = record.json()?;
                    output.send(&target, &number).await.map(drop)
                });
                let copied = async {
                    while committed_offset(&kafka, &group, &source).await != Some(1) {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                };
                tokio::select! {
                    ended = heir => panic!("{ended:?}"),
                    () = copied => {}
                }
            }
            output.send(&target, &number).await.map(drop)
        });
        let error = tokio::time::timeout(3 * PATIENCE, run).await.expect("it is not told").unwrap_err();
        assert!(error.is_fenced(), "{error}");
        assert_eq!(seen_in_the_end(&kafka, &target).await, [7]);
    }

    async fn what_is_copied_exactly_once_is_there_once_after_failures_and_restarts(backend) {
        let (source, target) = (backend.topic("source", 3).await, backend.topic("target", 1).await);
        let (kafka, group, id) = (backend.instance(), unique("copiers"), unique("copier"));
        let plain = kafka.get_producer().await.unwrap();
        for number in 0..300_i64 {
            let _delivery = plain.send(&source, &number).partition((number % 3) as i32).await.unwrap();
        }
        plain.close().await.unwrap();
        let copied = AtomicUsize::new(0);
        let copier = || {
            ExactlyOnce::new(&kafka, [&*source], &*group)
                .transactional_id(&*id)
                .commit_records(20)
                .commit_interval(Duration::from_millis(20))
        };
        for life in 1..=4_usize {
            // The first lives end in the middle of a transaction: two by an error of the body, one by being dropped.
            let run = copier().run(async |record, output| {
                let number: i64 = record.json()?;
                let _delivery = output.send(&target, &number).await?;
                if life < 3 && copied.fetch_add(1, Ordering::Relaxed) == life * 40 {
                    return Err(Error::other("the copier fails"));
                }
                Ok(())
            });
            match life {
                1 | 2 => assert_eq!(run.await.unwrap_err().kind(), ErrorKind::Handler),
                3 => drop(tokio::time::timeout(Duration::from_millis(400), run).await),
                _ => {
                    let all = async {
                        while seen(&kafka, &target).await.len() < 300 {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    };
                    tokio::select! {
                        ended = run => panic!("{ended:?}"),
                        () = all => {}
                    }
                }
            }
        }
        let numbers = seen_in_the_end(&kafka, &target).await;
        for partition in 0..3 {
            let own: Vec<i64> = numbers.iter().copied().filter(|number| number % 3 == partition).collect();
            assert!(own.iter().copied().eq((0..100).map(|place| place * 3 + partition)), "{own:?}");
        }
    }

    async fn a_plain_producer_with_a_transactional_id_is_refused(backend) {
        let kafka = KafkaInstance::new(backend.config().set("transactional.id", "id")).unwrap();
        let error = kafka.get_producer().await.unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("get_transactional_producer"), "{error}");
        let error = backend.instance().get_transactional_producer().await.unwrap_err();
        assert!(error.to_string().contains("transactional.id"), "{error}");
    }
}

async fn embedded() -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("t", 2).unwrap();
    let config = KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers());
    (broker, KafkaInstance::new(config).unwrap())
}

/// Lives as long as the producer it was given to, its driver included.
#[derive(Debug, Clone, Default)]
struct Sentinel(Arc<()>);

impl ProducerInterceptor for Sentinel {}

#[tokio::test]
async fn who_is_given_up_before_it_has_its_id_leaves_the_name_to_its_successor() {
    let (broker, kafka) = embedded().await;
    let settings = |p: dtkafka::ProducerConfig| p.set("transactional.id", "heir");
    broker.control().fail(ApiKey::InitProducerId, 1_000_000, ResponseError::CoordinatorLoadInProgress);
    let sentinel = Sentinel::default();
    let start = kafka.get_transactional_producer_with(|p| settings(p).interceptor(sentinel.clone()));
    let asked = async {
        while broker.control().requests(ApiKey::InitProducerId) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        started = start => panic!("{started:?}"),
        () = asked => {}
    }
    // Whoever is left would ask for two minutes, and fence the next.
    let gone = async {
        while Arc::strong_count(&sentinel.0) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("no client is left behind");
    broker.control().clear();
    let mut heir = kafka.get_transactional_producer_with(settings).await.unwrap();
    let transaction = heir.begin().await.unwrap();
    drop(transaction.send("t", &1).await.unwrap());
    transaction.commit().await.unwrap();
    heir.close().await.unwrap();
}

#[tokio::test]
async fn a_producer_that_waits_for_nothing_starts_all_the_same() {
    let (_broker, kafka) = embedded().await;
    let settings = |p: dtkafka::ProducerConfig| p.set("max.block.ms", 0);
    let producer = kafka.get_producer_with(settings).await.unwrap();
    while producer.try_send(dtkafka::ProducerRecord::new("t").value("1")).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    producer.close().await.unwrap();
    let settings = |p: dtkafka::ProducerConfig| settings(p).set("transactional.id", "id");
    let producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    producer.close_within(PATIENCE).await.unwrap();
}

/// Holds up whoever tells of the second failure.
struct Gate {
    told: AtomicUsize,
    open: Mutex<mpsc::Receiver<()>>,
}

impl ProducerInterceptor for Gate {
    fn on_acknowledgement(&self, outcome: Result<&RecordMetadata, &Error>) {
        if outcome.is_err() && self.told.fetch_add(1, Ordering::SeqCst) == 1 {
            let _ = self.open.lock().unwrap().recv_timeout(PATIENCE);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_hears_of_a_failed_record_finds_the_transaction_failed() {
    let (broker, kafka) = embedded().await;
    let (opens, open) = mpsc::channel();
    let gate = Gate { told: AtomicUsize::new(0), open: Mutex::new(open) };
    let settings = |p: dtkafka::ProducerConfig| {
        p.set("transactional.id", "id").set("max.in.flight.requests.per.connection", 1).interceptor(gate)
    };
    let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    let transaction = producer.begin().await.unwrap();
    // Two batches fail in one answer: they gather behind a request that has none.
    broker.control().hold(ApiKey::Produce);
    drop(transaction.send("t", &0).partition(0).await.unwrap());
    while broker.records("t", 0).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    broker.control().fail_topic(ApiKey::Produce, "t", 1, ResponseError::TopicAuthorizationFailed);
    let first = transaction.send("t", &1).partition(0).await.unwrap();
    let second = transaction.send("t", &2).partition(1).await.unwrap();
    broker.control().release(ApiKey::Produce);
    let told = tokio::select! {
        first = first => first,
        second = second => second,
    };
    let failure = transaction.failure();
    opens.send(()).unwrap();
    assert!(told.unwrap_err().requires_abort());
    assert!(failure.is_some(), "a body that hears of it would be taken for the one that failed");
    transaction.abort().await.unwrap();
    producer.close().await.unwrap();
}

/// The numbers that a copier hands to its body before `enough` of them have come.
async fn copied(run: ExactlyOnce, enough: usize) -> Vec<i64> {
    let numbers = Mutex::new(Vec::new());
    let run = run.run(async |record, _| {
        numbers.lock().unwrap().push(record.json::<i64>()?);
        Ok(())
    });
    let all = async {
        while numbers.lock().unwrap().len() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        all = tokio::time::timeout(PATIENCE, all) => all.expect("a record does not come"),
    }
    numbers.into_inner().unwrap()
}

#[tokio::test]
async fn what_fails_before_anything_was_committed_comes_again_where_reading_begins_at_the_end() {
    let (broker, kafka) = embedded().await;
    let plain = kafka.get_producer().await.unwrap();
    plain.send("t", &1_i64).partition(0).await.unwrap().await.unwrap();
    let copier = || ExactlyOnce::new(&kafka, ["t"], "copiers");
    let run = copier().run(async |_, _| Err(Error::other("the body fails")));
    let feed = async {
        while committed_offset(&kafka, "copiers", "t").await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        plain.send("t", &2_i64).partition(0).await.unwrap().await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = run => assert_eq!(ended.unwrap_err().kind(), ErrorKind::Handler),
        () = feed => {}
        _ = tokio::time::sleep(PATIENCE) => panic!("the group does not hear where it began"),
    }
    // Nobody has read this partition, and nobody does while this is written.
    plain.send("t", &3_i64).partition(1).await.unwrap().await.unwrap();
    let mut numbers = copied(copier(), 2).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
    drop(broker);
}

/// Topics to copy from and to, read from their start, with one setting more.
async fn source_and_target((name, value): (&str, i64)) -> (EmbeddedBroker, KafkaInstance) {
    let (broker, _) = embedded().await;
    broker.create_topic("source", 1).unwrap();
    broker.create_topic("target", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set("auto.offset.reset", "earliest")
        .set(name, value);
    (broker, KafkaInstance::new(config).unwrap())
}

/// Until a copier has brought this number to the target.
async fn until_seen(kafka: &KafkaInstance, number: i64, run: impl Future<Output = Result<(), Error>>) {
    let all = async {
        while !seen(kafka, "target").await.contains(&number) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        () = all => {}
        _ = tokio::time::sleep(PATIENCE) => panic!("the copier does not go on"),
    }
}

#[tokio::test]
async fn what_was_read_before_a_log_is_cut_in_an_open_transaction_is_processed_again() {
    let (broker, kafka) = source_and_target(("fetch.max.wait.ms", 10)).await;
    let plain = kafka.get_producer().await.unwrap();
    let write = async |numbers: &[i64]| {
        for number in numbers {
            plain.send("source", number).await.unwrap().await.unwrap();
        }
    };
    write(&[0, 1, 2, 3, 4]).await;
    let is_cut = AtomicBool::new(false);
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |record, output| {
        let number: i64 = record.json()?;
        drop(output.send("target", &number).await?);
        if number == 4 && !is_cut.swap(true, Ordering::Relaxed) {
            broker.control().truncate("source", 0, 2).unwrap();
            write(&[12, 13]).await;
            // Until the consumer has been told of it, and goes on.
            let told = broker.control().requests(ApiKey::Fetch) + 3;
            while broker.control().requests(ApiKey::Fetch) < told {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            broker.control().fail(ApiKey::TxnOffsetCommit, 1, ResponseError::RebalanceInProgress);
        }
        Ok(())
    });
    until_seen(&kafka, 13, run).await;
    assert_eq!(seen_in_the_end(&kafka, "target").await, [0, 1, 12, 13]);
}

#[tokio::test]
async fn a_copier_without_a_name_goes_on_after_a_transaction_that_took_too_long() {
    let (broker, kafka) = source_and_target(("transaction.timeout.ms", 1000)).await;
    kafka.get_producer().await.unwrap().send("source", &7_i64).await.unwrap().await.unwrap();
    let is_slow = AtomicBool::new(true);
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |record, output| {
        let number: i64 = record.json()?;
        output.send("target", &number).await?.await?;
        if is_slow.swap(false, Ordering::Relaxed) {
            broker.control().fail(ApiKey::EndTxn, 1, ResponseError::ProducerFenced);
        }
        Ok(())
    });
    until_seen(&kafka, 7, run).await;
    assert_eq!(seen_in_the_end(&kafka, "target").await, [7]);
    // Whoever goes on from there notices a log that was cut (KIP-320).
    let offsets = kafka.admin().await.unwrap().group_offsets("copiers").await.unwrap();
    let committed = &offsets[&TopicPartition::new("source", 0)];
    assert_eq!((committed.offset, committed.leader_epoch.is_some()), (1, true), "{committed:?}");
}

#[tokio::test]
async fn a_copier_without_a_name_goes_on_however_often_an_outage_costs_it_a_transaction() {
    let (broker, kafka) = source_and_target(("fetch.max.wait.ms", 10)).await;
    kafka.get_producer().await.unwrap().send("source", &7_i64).await.unwrap().await.unwrap();
    let attempts = AtomicUsize::new(0);
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |record, output| {
        let number: i64 = record.json()?;
        output.send("target", &number).await?.await?;
        let attempt = attempts.fetch_add(1, Ordering::Relaxed);
        if attempt < 4 {
            let told = [ResponseError::ProducerFenced, ResponseError::InvalidTxnState][attempt % 2];
            broker.control().fail(ApiKey::EndTxn, 1, told);
        }
        Ok(())
    });
    until_seen(&kafka, 7, run).await;
    assert_eq!(attempts.into_inner(), 5);
}

#[tokio::test]
async fn a_copier_goes_on_whose_body_has_waited_for_brokers_in_vain() {
    let (broker, kafka) = source_and_target(("max.block.ms", 100)).await;
    let kafka = KafkaInstance::new(kafka.config().clone().set("buffer.memory", 1000)).unwrap();
    for number in [6, 7] {
        broker.feed("source", 0, NewRecord::new(number.to_string())).unwrap();
    }
    // The first record takes all the memory there is, and keeps it for as long as nobody answers.
    broker.control().hold(ApiKey::Produce);
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |record, output| {
        let number: i64 = record.json()?;
        match output.send("target", &number).header("long", [0; 500]).await {
            Ok(_delivery) => Ok(()),
            Err(error) => {
                broker.control().release(ApiKey::Produce);
                Err(error)
            }
        }
    });
    until_seen(&kafka, 7, run).await;
    assert_eq!(seen_in_the_end(&kafka, "target").await, [6, 7]);
}

#[tokio::test]
async fn a_transaction_whose_send_has_waited_in_vain_cannot_be_committed_and_the_next_one_can() {
    let (broker, kafka) = source_and_target(("max.block.ms", 1000)).await;
    let settings = |p: dtkafka::ProducerConfig| p.set("transactional.id", "x").set("buffer.memory", 1000);
    let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    broker.control().hold(ApiKey::Produce);
    let transaction = producer.begin().await.unwrap();
    let _first = transaction.send("target", &1).header("long", [0; 500]).await.unwrap();
    let error = transaction.send("target", &2).header("long", [0; 500]).await.unwrap_err();
    assert!(error.requires_abort(), "{error}");
    broker.control().release(ApiKey::Produce);
    let error = transaction.commit().await.unwrap_err();
    assert!(error.requires_abort(), "{error}");
    let transaction = producer.begin().await.unwrap();
    drop(transaction.send("target", &3).await.unwrap());
    transaction.commit().await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(seen_in_the_end(&kafka, "target").await, [3]);
}

#[tokio::test]
async fn a_copier_ends_where_the_topic_that_it_writes_to_does_not_exist() {
    let (broker, kafka) = source_and_target(("max.block.ms", 300)).await;
    let kafka = KafkaInstance::new(kafka.config().clone().set("allow.auto.create.topics", false)).unwrap();
    broker.feed("source", 0, NewRecord::new("7")).unwrap();
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers")
        .run(async |record, output| output.send_record(record.forward_to("missing")).await.map(drop));
    let error = tokio::time::timeout(PATIENCE, run).await.expect("it waits for ever").unwrap_err();
    let told = (error.code().map(|code| code.0), error.topic(), error.requires_abort());
    assert_eq!(
        told,
        (Some(ResponseError::UnknownTopicOrPartition.code()), Some("missing"), false),
        "{error}"
    );
    assert_eq!(broker.open_transactions(), 0);
}

#[tokio::test]
async fn a_copier_without_a_name_ends_where_every_transaction_takes_too_long() {
    let ends = async |api, told: ResponseError| {
        let (broker, kafka) = source_and_target(("fetch.max.wait.ms", 10)).await;
        kafka.get_producer().await.unwrap().send("source", &7_i64).await.unwrap().await.unwrap();
        let attempts = AtomicUsize::new(0);
        let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |record, output| {
            attempts.fetch_add(1, Ordering::Relaxed);
            let number: i64 = record.json()?;
            output.send("target", &number).await?.await?;
            broker.control().fail(api, 1, told);
            Ok(())
        });
        let ended = tokio::time::timeout(PATIENCE, run).await.expect("it works on the record for ever");
        assert_eq!(ended.unwrap_err().code().map(|code| code.0), Some(told.code()));
        assert_eq!(attempts.into_inner(), 10);
    };
    tokio::join!(
        ends(ApiKey::TxnOffsetCommit, ResponseError::ProducerFenced),
        ends(ApiKey::TxnOffsetCommit, ResponseError::InvalidTxnState),
        ends(ApiKey::EndTxn, ResponseError::InvalidTxnState),
    );
}

#[tokio::test]
async fn a_copier_without_a_name_ends_with_the_fence_of_another_producer_of_its_body() {
    let (_broker, kafka) = source_and_target(("fetch.max.wait.ms", 10)).await;
    kafka.get_producer().await.unwrap().send("source", &7_i64).await.unwrap().await.unwrap();
    let own = || kafka.get_transactional_producer_with(|p| p.set("transactional.id", "of-the-body"));
    let mut former = own().await.unwrap();
    let _successor = own().await.unwrap();
    let output = former.begin().await.unwrap();
    drop(output.send("elsewhere", &1).await.unwrap());
    drop(output.commit().await.unwrap_err());
    let fence = former.begin().await.unwrap_err();
    assert!(fence.is_fenced() && !fence.possibly_written(), "{fence}");
    let attempts = AtomicUsize::new(0);
    let run = ExactlyOnce::new(&kafka, ["source"], "copiers").run(async |_, _| {
        attempts.fetch_add(1, Ordering::Relaxed);
        Err(fence.clone())
    });
    let ended = tokio::time::timeout(PATIENCE, run).await.expect("it works on the record for ever");
    assert!(ended.unwrap_err().is_fenced());
    assert_eq!(attempts.into_inner(), 1);
}

#[tokio::test]
async fn what_was_worked_on_before_the_start_of_its_log_moved_is_committed() {
    let (broker, kafka) = source_and_target(("fetch.max.wait.ms", 10)).await;
    let plain = kafka.get_producer().await.unwrap();
    for number in 0..5_i64 {
        // Older than what is retained.
        plain.send("source", &number).timestamp(1000).await.unwrap().await.unwrap();
    }
    // Long enough for the reset to come within the transaction.
    let copier = ExactlyOnce::new(&kafka, ["source"], "copiers").commit_interval(PATIENCE);
    let looked_up = AtomicUsize::new(usize::MAX);
    let look_ups = || broker.control().requests(ApiKey::ListOffsets) as usize;
    let run = copier.run(async |record, output| {
        let number: i64 = record.json()?;
        drop(output.send("target", &number).await?);
        if number == 4 {
            broker.control().retain("source", 0).unwrap();
            broker.control().fail_topic(ApiKey::Fetch, "source", 1, ResponseError::OffsetOutOfRange);
            looked_up.store(look_ups(), Ordering::Relaxed);
        }
        Ok(())
    });
    let mut run = std::pin::pin!(run);
    let reset = async {
        while look_ups() <= looked_up.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = run.as_mut() => panic!("{ended:?}"),
        () = reset => {}
        _ = tokio::time::sleep(PATIENCE) => panic!("the place is not looked up"),
    }
    plain.send("source", &12_i64).await.unwrap().await.unwrap();
    until_seen(&kafka, 4, run).await;
    assert_eq!(seen(&kafka, "target").await[..5], [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_producer_that_is_closed_before_its_abort_is_confirmed_says_so() {
    let (broker, kafka) = embedded().await;
    let settings = |p: dtkafka::ProducerConfig| p.set("transactional.id", "id");
    let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    let transaction = producer.begin().await.unwrap();
    transaction.send("t", &1).await.unwrap().await.unwrap();
    drop(transaction);
    broker.control().hold(ApiKey::EndTxn);
    let error = producer.close_within(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("transaction"), "{error}");
    // One that is told in time says nothing.
    broker.control().release(ApiKey::EndTxn);
    let mut producer = kafka.get_transactional_producer_with(settings).await.unwrap();
    let transaction = producer.begin().await.unwrap();
    transaction.send("t", &1).await.unwrap().await.unwrap();
    drop(transaction);
    producer.close_within(PATIENCE).await.unwrap();
}
