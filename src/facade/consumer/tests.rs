//! Runs of lanes with handlers of every kind, against a ledger that only counts.

use std::{
    collections::BTreeSet,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    lane::{self, Ended, Kit, Ledger, Outcome},
    load::Chunk,
    *,
};
use crate::{
    config::KafkaConfig,
    consumer::acknowledge::Life,
    facade::{
        CancellationToken, FailedAt, HandlerResult, Message,
        dispatch::lanes::{Lanes, Run},
        message::Batch,
    },
    record::ConsumerRecord,
    time::Environment,
};

/// What was said, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Done(Vec<i64>),
    Back(Vec<i64>),
}

#[derive(Default)]
struct Book {
    said: Mutex<Vec<Said>>,
    is_over: std::sync::atomic::AtomicBool,
}

impl Book {
    fn done(&self) -> BTreeSet<i64> {
        let said = self.said.lock().unwrap();
        said.iter().flat_map(|said| if let Said::Done(done) = said { done.clone() } else { vec![] }).collect()
    }

    fn said(&self) -> Vec<Said> {
        self.said.lock().unwrap().clone()
    }
}

impl Ledger for Book {
    fn done(&self, _: &TopicPartition, _: Life, offsets: &[i64]) -> bool {
        self.said.lock().unwrap().push(Said::Done(offsets.to_vec()));
        !self.is_over.load(Relaxed)
    }

    fn hand_back(&self, _: &TopicPartition, _: Life, offsets: &[i64]) {
        self.said.lock().unwrap().push(Said::Back(offsets.to_vec()));
    }
}

fn instance() -> KafkaInstance {
    KafkaInstance::new(KafkaConfig::new().set_kafka_url("kafka://localhost:9092?group_id=g")).unwrap()
}

fn consumer() -> Consumer {
    Consumer::new(&instance(), ["orders"]).unwrap()
}

fn record(offset: i64) -> ConsumerRecord {
    ConsumerRecord::new("orders", 0, offset)
        .with_key("k")
        .with_value(offset.to_string())
        .with_header("trace", "t1")
}

/// Puts these records through the lane of their partition.
async fn run(consumer: &Consumer, book: &Arc<Book>, records: Vec<ConsumerRecord>) -> Ended {
    run_with(consumer, book, records, CancellationToken::new()).await
}

async fn run_with(
    consumer: &Consumer,
    book: &Arc<Book>,
    records: Vec<ConsumerRecord>,
    token: CancellationToken,
) -> Ended {
    run_of(consumer, "orders", book, records, token).await
}

async fn run_of(
    consumer: &Consumer,
    topic: &str,
    book: &Arc<Book>,
    records: Vec<ConsumerRecord>,
    token: CancellationToken,
) -> Ended {
    let life = crate::consumer::acknowledge::Life::of_tests();
    let bounds = Bounds { runs: 1, records: 100, bytes: 1 << 20, span: 1000 };
    let mut lanes = Lanes::new(Ordering::Partition, bounds);
    let partition = TopicPartition::new(topic, 0);
    for record in records {
        lanes.push(time::now(), &partition, life, Chunk::One(Box::new(record)), None).unwrap();
    }
    let whole: Run<Chunk, Life> = lanes.poll_run(time::now()).unwrap();
    let kit = Kit {
        ledger: Arc::clone(book) as Arc<dyn Ledger>,
        outbox: Outbox::new(instance()),
        counters: Arc::clone(&consumer.shared.counters),
        rng: Mutex::new(Environment::default().rng()),
        stride: lane::stride(),
        environment: Environment::default(),
    };
    let route = consumer.routes.of(&consumer.topics, &topic.into());
    lane::run(Arc::new(kit), route, whole, token).await
}

type Seen = Arc<Mutex<Vec<(usize, ConsumerRecord)>>>;

/// A consumer of raw handlers that keep what they see and fail as often as they are told.
fn seeing(policy: ErrorPolicy, failures: &[usize]) -> (Consumer, Seen) {
    let seen = Seen::default();
    let mut consumer = consumer().error_policy(policy).unwrap();
    for (index, failures) in failures.iter().enumerate() {
        let (seen, left) = (Arc::clone(&seen), Arc::new(AtomicUsize::new(*failures)));
        consumer = consumer
            .register_raw_handler("orders", async move |record: ConsumerRecord| {
                seen.lock().unwrap().push((index, record));
                let fails = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
                if fails.is_ok() { Err("not yet".into()) } else { Ok(()) }
            })
            .unwrap();
    }
    (consumer, seen)
}

#[tokio::test(start_paused = true)]
async fn every_handler_gets_the_whole_record_and_gets_it_again_after_a_failure() {
    let retry = ErrorPolicy::retry(3, Duration::from_secs(1));
    for (policy, failures, calls) in [
        (ErrorPolicy::Stop, vec![0], vec![0]),
        (ErrorPolicy::Stop, vec![0, 0, 0], vec![0, 1, 2]),
        (retry.clone(), vec![0, 2, 1], vec![0, 1, 1, 1, 2, 2]),
        (retry.clone().then_skip(), vec![3, 0], vec![0, 0, 0]),
        (ErrorPolicy::Skip, vec![0, 1], vec![0, 1]),
    ] {
        let (consumer, seen) = seeing(policy, &failures);
        let book = Arc::new(Book::default());
        let ended = run(&consumer, &book, vec![record(7)]).await;
        assert!(matches!(ended.outcome, Outcome::Done), "{ended:?}");
        assert_eq!((ended.handled, book.done()), (1, [7].into()));
        let expected: Vec<_> = calls.into_iter().map(|index| (index, record(7))).collect();
        assert_eq!(*seen.lock().unwrap(), expected, "failures {failures:?}");
    }
}

#[tokio::test]
async fn an_error_names_the_record_that_its_handler_has_taken_and_nothing_passes_it() {
    let (consumer, seen) = seeing(ErrorPolicy::Stop, &[1]);
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, vec![record(7), record(8)]).await;
    let Outcome::Failed(error) = ended.outcome else { panic!("{ended:?}") };
    assert_eq!((error.kind(), error.topic()), (ErrorKind::Handler, Some("orders")));
    assert_eq!((error.partition(), error.offset()), (Some(0), Some(7)));
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(book.said(), [Said::Back(vec![7, 8])]);
}

#[tokio::test]
async fn what_is_done_is_told_before_a_handler_waits() {
    let consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            if order.value == 9 {
                pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    let book = Arc::new(Book::default());
    let mut running = pin!(run(&consumer, &book, (7..11).map(record).collect()));
    // Between records it lets others run.
    for _ in 0..10 {
        assert!(running.as_mut().now_or_never().is_none());
    }
    assert_eq!(book.said(), [Said::Done(vec![7, 8])]);
}

#[tokio::test(start_paused = true)]
async fn panics_and_deadlines_are_failures_that_name_the_record() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let policy = ErrorPolicy::retry(2, Duration::from_secs(1)).deadline(Duration::from_secs(10));
    let consumer = consumer()
        .register_handler("orders", async move |order: Message<i64>| {
            count.fetch_add(1, Relaxed);
            match (order.value, order.attempt) {
                (7, 1) => panic!("burst at {}", order.attempt),
                (8, 1) => pending().await,
                (9, _) => panic!("always"),
                _ => {}
            }
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let book = Arc::new(Book::default());
    let begun = time::now();
    let ended = run(&consumer, &book, (7..11).map(record).collect()).await;
    let Outcome::Failed(error) = ended.outcome else { panic!("{ended:?}") };
    assert!(error.to_string().contains("the handler panicked: always"), "{error}");
    assert_eq!((error.topic(), error.partition(), error.offset()), (Some("orders"), Some(0), Some(9)));
    assert_eq!((book.done(), calls.load(Relaxed)), ([7, 8].into(), 6));
    assert_eq!((time::now() - begun).as_secs(), 1 + 11 + 1);
    let metrics = consumer.metrics();
    assert_eq!((metrics.handled, metrics.failed, metrics.retried), (2, 4, 3));
}

#[tokio::test]
async fn a_panic_before_the_first_await_and_in_a_closure_is_caught_as_well() {
    let consumer = consumer()
        .register_raw_handler("orders", |_: ConsumerRecord| -> std::future::Ready<HandlerResult> {
            panic!("at once")
        })
        .unwrap()
        .error_policy(ErrorPolicy::Skip)
        .unwrap();
    let book = Arc::new(Book::default());
    run(&consumer, &book, vec![record(7)]).await;
    assert_eq!(book.done(), [7].into());
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_cancelled_gives_up_its_pause_and_hands_back_the_rest() {
    let (consumer, seen) = seeing(ErrorPolicy::retry(9, Duration::from_secs(60)), &[9]);
    let book = Arc::new(Book::default());
    let token = CancellationToken::new();
    let cancel = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        token.cancel();
    };
    let begun = time::now();
    let (ended, ()) =
        tokio::join!(run_with(&consumer, &book, vec![record(7), record(8)], token.clone()), cancel);
    assert!(matches!(ended.outcome, Outcome::Abandoned), "{ended:?}");
    assert_eq!((time::now() - begun).as_secs(), 5, "the pause of a minute was not waited for");
    assert_eq!((seen.lock().unwrap().len(), book.said()), (1, vec![Said::Back(vec![7, 8])]));
}

#[tokio::test]
async fn a_handler_sees_that_it_should_give_up() {
    let consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            order.cancellation().cancelled().await;
            Ok(())
        })
        .unwrap();
    let (book, token) = (Arc::new(Book::default()), CancellationToken::new());
    let cancel = async {
        tokio::task::yield_now().await;
        token.cancel();
    };
    let (ended, ()) =
        tokio::join!(run_with(&consumer, &book, vec![record(7), record(8)], token.clone()), cancel);
    assert_eq!(ended.handled, 1, "what it has finished counts: {ended:?}");
    assert_eq!(book.said(), [Said::Done(vec![7]), Said::Back(vec![8])]);
}

#[tokio::test]
async fn nothing_more_is_begun_in_a_life_that_is_over() {
    let (consumer, seen) = seeing(ErrorPolicy::Skip, &[1]);
    let book = Arc::new(Book::default());
    book.is_over.store(true, Relaxed);
    // The failure makes it tell what is done before it decides.
    let ended = run(&consumer, &book, vec![record(7), record(8), record(9)]).await;
    assert!(matches!(ended.outcome, Outcome::Abandoned), "{ended:?}");
    assert_eq!((ended.handled, seen.lock().unwrap().len()), (0, 3), "no handler waited, so none could know");
}

/// What a batch handler was given.
type Batches = Arc<Mutex<Vec<Vec<i64>>>>;

fn batching(
    policy: ErrorPolicy,
    fail: impl Fn(&Batch<i64>) -> HandlerResult + Clone + Send + Sync + 'static,
) -> (Consumer, Batches) {
    let batches = Batches::default();
    let log = Arc::clone(&batches);
    let consumer = consumer()
        .register_batch_handler("orders", 4, Duration::ZERO, async move |batch: Batch<i64>| {
            log.lock().unwrap().push(batch.values().copied().collect());
            fail(&batch)
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    (consumer, batches)
}

#[tokio::test]
async fn batches_have_at_most_the_size_asked_for_and_keep_their_order() {
    let (consumer, batches) = batching(ErrorPolicy::Stop, |_| Ok(()));
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..10).map(record).collect()).await;
    assert_eq!(*batches.lock().unwrap(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    assert_eq!((ended.handled, book.done()), (10, (0..10).collect()));
}

#[tokio::test]
async fn those_before_the_message_at_which_a_batch_failed_are_done() {
    let at_two = |batch: &Batch<i64>| match batch.iter().find(|message| message.value == 2) {
        Some(message) => Err(FailedAt::new(message, "two").into()),
        None => Ok(()),
    };
    let (consumer, batches) = batching(ErrorPolicy::Stop, at_two);
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..6).map(record).collect()).await;
    let Outcome::Failed(error) = ended.outcome else { panic!("{ended:?}") };
    assert_eq!((error.offset(), book.done()), (Some(2), [0, 1].into()), "{error}");

    let (consumer, again) = batching(ErrorPolicy::retry(2, Duration::ZERO).then_skip(), at_two);
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..6).map(record).collect()).await;
    assert!(matches!(ended.outcome, Outcome::Done), "{ended:?}");
    assert_eq!(*again.lock().unwrap(), [vec![0, 1, 2, 3], vec![2, 3], vec![3], vec![4, 5]]);
    assert_eq!((book.done(), consumer.metrics().skipped), ((0..6).collect(), 1));
    assert_eq!(batches.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_batch_that_fails_as_a_whole_is_dealt_with_as_a_whole() {
    let never =
        |batch: &Batch<i64>| if batch.values().any(|value| *value < 4) { Err("down".into()) } else { Ok(()) };
    let (consumer, batches) = batching(ErrorPolicy::retry(2, Duration::ZERO).then_skip(), never);
    let book = Arc::new(Book::default());
    run(&consumer, &book, (0..6).map(record).collect()).await;
    assert_eq!(*batches.lock().unwrap(), [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![4, 5]]);
    assert_eq!((book.done(), consumer.metrics().skipped), ((0..6).collect(), 4));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_leaves_its_batch_alone() {
    for (policy, done, skipped) in [(ErrorPolicy::Skip, 6, 1), (ErrorPolicy::Stop, 2, 0)] {
        let (consumer, batches) = batching(policy, |_| Ok(()));
        let book = Arc::new(Book::default());
        let mut records: Vec<_> = (0..6).map(record).collect();
        records[2] = record(2).with_value("{nope");
        let ended = run(&consumer, &book, records).await;
        assert_eq!(batches.lock().unwrap()[0], [0, 1], "those before it come first");
        assert_eq!((book.done().len(), consumer.metrics().skipped), (done, skipped));
        if let Outcome::Failed(error) = ended.outcome {
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Json, Some(2)));
        }
    }
}

#[tokio::test]
async fn on_one_thread_others_run_between_records_whose_handlers_block() {
    let turns = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (count, log) = (Arc::clone(&turns), Arc::clone(&seen));
    let consumer = consumer()
        .register_handler("orders", async move |_: Message<i64>| {
            log.lock().unwrap().push(count.load(Relaxed));
            Ok(())
        })
        .unwrap();
    let book = Arc::new(Book::default());
    let others = async {
        loop {
            turns.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        ended = run(&consumer, &book, (0..5).map(record).collect()) => assert_eq!(ended.handled, 5),
        () = others => unreachable!("they never end"),
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
}

#[test]
fn handlers_can_be_added_to_a_finished_consumer() {
    let mut consumer = consumer();
    async fn on_order(_: Message<u32>) -> std::result::Result<(), std::io::Error> {
        Ok(())
    }
    consumer.add_handler("orders", on_order).unwrap().add_handler(Topics::others(), on_order).unwrap();
    let error = consumer.add_handler("payments", on_order).unwrap_err();
    assert!(error.to_string().contains("its topics are orders"), "{error}");
}

#[test]
fn a_consumer_that_runs_may_cross_threads() {
    fn sends<T: Send>(_: &T) {}
    let mut consumer = consumer();
    sends(&consumer.handle());
    #[cfg(feature = "signal")]
    sends(&consumer.run_until_signal());
    sends(&consumer.consume(Duration::ZERO));
    sends(&consumer);
}

/// What spans were made, and what was noted with them.
#[derive(Default, Clone)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Spans {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push(format!("{field}={value:?}"));
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == "dtkafka::messaging"
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_call_of_a_handler_has_a_span_by_the_conventions_without_key_and_value() {
    let spans = Spans::default();
    crate::heard::on_every_thread();
    let _guard = tracing::subscriber::set_default(spans.clone());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (consumer, seen) = seeing(ErrorPolicy::retry(2, Duration::from_secs(1)), &[1]);
    let record = record(7).with_key("secret key").with_header("traceparent", parent);
    run(&consumer, &Arc::default(), vec![record]).await;
    assert_eq!(seen.lock().unwrap()[0].1.traceparent(), Some(parent));
    let told = spans.0.lock().unwrap().clone();
    for field in [
        "otel.name=process orders",
        "otel.kind=\"consumer\"",
        "messaging.system=\"kafka\"",
        "messaging.destination.name=\"orders\"",
        "messaging.destination.partition.id=0",
        "messaging.kafka.offset=7",
        "dtkafka.attempt=1",
        "dtkafka.attempt=2",
    ] {
        assert!(told.iter().any(|found| found == field), "{field}\n{told:?}");
    }
    assert!(told.contains(&format!("traceparent={parent:?}")), "{told:?}");
    assert!(!told.concat().contains("secret"), "{told:?}");
}

#[tokio::test]
async fn a_client_that_is_closed_while_handlers_run_ends_the_consumer_when_they_are_done() {
    use dtkafka_testcontainers::EmbeddedBroker;
    const PATIENCE: Duration = Duration::from_secs(20);
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("orders", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("orders", &1).await.unwrap().await.unwrap();
    for runs in [true, false] {
        let client = Arc::new(std::sync::OnceLock::<std::sync::Weak<KafkaConsumer>>::new());
        let ended = Arc::new(AtomicUsize::new(0));
        let (of_handler, count) = (Arc::clone(&client), Arc::clone(&ended));
        let mut consumer = Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |_: Message<i64>| {
                let client = of_handler.get().and_then(std::sync::Weak::upgrade);
                client.expect("connected").close(PATIENCE).await.ok();
                tokio::time::sleep(Duration::from_millis(20)).await;
                count.fetch_add(1, Relaxed);
                Ok(())
            })
            .unwrap();
        let engine = consumer.work().await.unwrap();
        client.set(Arc::downgrade(&engine.engine.client)).unwrap();
        drop(engine);
        // Looked at whenever the consumer is: one that turns in circles lets nothing else run.
        let begun = crate::time::now();
        let late = std::future::poll_fn(|_| match begun.elapsed() > PATIENCE {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        let error = match runs {
            true => consumer.run(late).await.unwrap_err(),
            false => loop {
                if let Err(error) = consumer.consume(PATIENCE).await {
                    break error;
                }
            },
        };
        assert_eq!((error.kind(), ended.load(Relaxed)), (ErrorKind::Closed, 1), "{error}");
        // And again at once.
        if !runs {
            assert_eq!(consumer.run(pending::<()>()).await.unwrap_err().kind(), ErrorKind::Closed);
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn what_a_handler_leaves_behind_may_panic_when_it_is_dropped() {
    struct Remains;
    impl Drop for Remains {
        fn drop(&mut self) {
            panic!("a test's remains");
        }
    }
    let policy = ErrorPolicy::retry(2, Duration::ZERO).deadline(Duration::from_millis(20)).then_skip();
    let consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            match order.value {
                7 => {
                    let _remains = Remains;
                    pending::<()>().await;
                }
                8 => {
                    let _remains = Remains;
                }
                _ => {}
            }
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (7..10).map(record).collect()).await;
    assert!(matches!(ended.outcome, Outcome::Done), "{ended:?}");
    assert_eq!((book.done(), consumer.metrics().skipped), ([7, 8, 9].into(), 2));
}

#[tokio::test]
async fn what_a_record_lies_in_is_let_go_of_before_the_next_load_is_handled() {
    struct Owned(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            b"7"
        }
    }
    impl Drop for Owned {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }
    let alive = Arc::new(AtomicUsize::new(0));
    let (seen, count) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&alive));
    let log = Arc::clone(&seen);
    let consumer = consumer()
        .register_handler("orders", async move |_: Message<i64>| {
            log.lock().unwrap().push(count.load(Relaxed));
            Ok(())
        })
        .unwrap();
    let mut records: Vec<_> = (0..4).map(record).collect();
    for record in &mut records {
        alive.fetch_add(1, Relaxed);
        record.value = Some(bytes::Bytes::from_owner(Owned(Arc::clone(&alive))));
    }
    run(&consumer, &Arc::new(Book::default()), records).await;
    assert_eq!(*seen.lock().unwrap(), [4, 3, 2, 1]);
}

/// A record of `topic` as it waits in a retry topic after three attempts.
fn waiting(offset: i64, topic: &str, partition: i32, at: i64, value: &str) -> ConsumerRecord {
    let mut record = ConsumerRecord::new("orders-retry-1s", 0, offset).with_value(value.to_owned());
    for (name, text) in [
        ("topic", topic.to_owned()),
        ("partition", partition.to_string()),
        ("offset", at.to_string()),
        ("attempts", "3".to_owned()),
        ("due", "0".to_owned()),
    ] {
        record = record.with_header(format!("dtkafka-retry-{name}"), text);
    }
    record
}

#[tokio::test]
async fn a_dead_letter_to_where_its_record_came_from_is_not_written_and_stops_the_consumer() {
    for (from, to) in
        [("orders", "orders"), ("orders-retry-1s", "orders"), ("orders-retry-1s", "orders-retry-1s")]
    {
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(1)]);
        let consumer = consumer()
            .register_raw_handler("orders", async |_| Err("never".into()))
            .unwrap()
            .error_policy(policy.retry_if(|_| false).then_dead_letter_by(move |_, _| to.to_owned()))
            .unwrap();
        let book = Arc::new(Book::default());
        let ended = run_of(&consumer, from, &book, vec![record(7)], CancellationToken::new()).await;
        let Outcome::Failed(error) = ended.outcome else { panic!("{from} to {to}: {:?}", ended.outcome) };
        assert_eq!((error.kind(), error.topic(), error.offset()), (ErrorKind::Config, Some(to), Some(7)));
        assert!(error.to_string().contains("feed itself") && error.hint().is_some(), "{error}");
        assert!(book.done().is_empty());
    }
}

#[tokio::test]
async fn headers_that_somebody_else_wrote_neither_hold_a_retry_topic_up_nor_overflow() {
    let attempts: Arc<Mutex<Vec<u32>>> = Arc::default();
    let log = Arc::clone(&attempts);
    let policy = ErrorPolicy::Stop.retry_topics([Duration::from_millis(20)]).then_skip();
    let consumer = consumer()
        .register_handler("orders", async move |message: Message<i64>| {
            log.lock().unwrap().push(message.attempt);
            Err("never".into())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let record = record(0)
        .with_header("dtkafka-retry-attempts", u32::MAX.to_string())
        .with_header("dtkafka-retry-due", i64::MAX.to_string());
    let book = Arc::new(Book::default());
    let run = run_of(&consumer, "orders-retry-20ms", &book, vec![record], CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(30), run).await.expect("it waits for ever");
    assert!(matches!(ended.outcome, Outcome::Done), "{ended:?}");
    assert_eq!((attempts.lock().unwrap().len(), book.done()), (1, [0].into()));
}

#[tokio::test]
async fn a_batch_of_a_retry_topic_counts_on_beside_a_record_that_cannot_be_read() {
    type Call = (u32, Vec<i64>);
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let log = Arc::clone(&calls);
    let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(1)]).then_skip();
    let consumer = consumer()
        .register_batch_handler("orders", 4, Duration::ZERO, async move |batch: Batch<i64>| {
            let attempt = batch.iter().next().map_or(0, |message| message.attempt);
            log.lock().unwrap().push((attempt, batch.values().copied().collect()));
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let records = ["1", "\"two\"", "3"].into_iter().zip(0..);
    let records = records.map(|(value, offset)| waiting(offset, "orders", 0, 40 + offset, value)).collect();
    let book = Arc::new(Book::default());
    let ended = run_of(&consumer, "orders-retry-1s", &book, records, CancellationToken::new()).await;
    assert!(matches!(ended.outcome, Outcome::Done), "{ended:?}");
    assert_eq!(*calls.lock().unwrap(), [(4, vec![1]), (4, vec![3])]);
    let metrics = consumer.metrics();
    assert_eq!((book.done(), metrics.skipped, metrics.failed), ([0, 1, 2].into(), 1, 1));
}

#[tokio::test]
async fn in_a_retry_topic_a_batch_fails_at_the_message_of_its_own_partition() {
    let fails = |batch: &Batch<i64>| match batch.iter().find(|message| message.partition == 1) {
        Some(message) => Err(FailedAt::new(message, "of partition 1").into()),
        None => Ok(()),
    };
    let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(1)]).then_skip();
    let (consumer, batches) = batching(policy, fails);
    let records = (0..3).map(|offset| waiting(offset, "orders", offset as i32, 40, &offset.to_string()));
    let book = Arc::new(Book::default());
    run_of(&consumer, "orders-retry-1s", &book, records.collect(), CancellationToken::new()).await;
    assert_eq!(
        *batches.lock().unwrap(),
        [vec![0, 1, 2], vec![2]],
        "the first was done, the second is skipped"
    );
    assert_eq!(consumer.metrics().skipped, 1);
}

#[tokio::test]
async fn a_handler_whose_partition_is_lost_is_dropped_where_it_waits() {
    use dtkafka_testcontainers::{
        EmbeddedBroker,
        broker::{ApiKey, ResponseError},
    };

    /// Counts those that were dropped.
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("heartbeat.interval.ms", 50)
        .set("session.timeout.ms", 6000);
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("t", &1).await.unwrap().await.unwrap();
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, drops) = (Arc::clone(&begun), Arc::clone(&dropped));
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async move |_: Message<u32>| {
            let _here = Dropped(Arc::clone(&drops));
            begins.fetch_add(1, Relaxed);
            pending::<HandlerResult>().await
        })
        .unwrap();
    let watch = async {
        while begun.load(Relaxed) < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        broker.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
        // It comes again once the member has joined again, and not before the first is gone.
        while begun.load(Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(dropped.load(Relaxed), 1, "it works on in a partition that may be another member's");
    };
    tokio::select! {
        biased;
        ended = tokio::time::timeout(Duration::from_secs(30), watch) => ended.expect("the record does not come again"),
        ended = consumer.run(pending::<()>()) => panic!("{ended:?}"),
    }
}
