//! Runs of lanes with handlers of every kind, against a ledger that only counts.

mod batches;
mod clocks;
mod connected;
mod spans;

use std::{
    collections::BTreeSet,
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt as _;

use super::{
    lane::{self, Ended, Flow, Ledger, RunContext},
    load::Chunk,
    *,
};
use crate::{
    config::KafkaConfig,
    consumer::acknowledge::Life,
    facade::{
        CancellationToken, HandlerResult, Message,
        dispatch::lanes::{Bounds, Lanes, Run},
        outbox::Outbox,
    },
    mutex::Mutex,
    record::ConsumerRecord,
    time::{self, Environment},
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
    /// It is over, and nobody has told anything yet.
    is_gone: std::sync::atomic::AtomicBool,
}

impl Book {
    fn done(&self) -> BTreeSet<i64> {
        let said = self.said.lock();
        said.iter().flat_map(|said| if let Said::Done(done) = said { done.clone() } else { vec![] }).collect()
    }

    fn said(&self) -> Vec<Said> {
        self.said.lock().clone()
    }
}

impl Ledger for Book {
    fn done(&self, _: &TopicPartition, _: Life, offsets: &[i64]) -> bool {
        self.said.lock().push(Said::Done(offsets.to_vec()));
        !self.is_over.load(Relaxed)
    }

    fn hand_back(&self, _: &TopicPartition, _: Life, offsets: &[i64]) {
        self.said.lock().push(Said::Back(offsets.to_vec()));
    }

    fn is_live(&self, _: &TopicPartition, _: Life) -> bool {
        !self.is_gone.load(Relaxed)
    }

    fn expect_topic(&self, _: &Arc<str>) {}
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

/// As [`run_with`], and told to give up once it has begun.
async fn run_and_cancel(consumer: &Consumer, book: &Arc<Book>, records: Vec<ConsumerRecord>) -> Ended {
    let token = CancellationToken::new();
    let cancel = async {
        tokio::task::yield_now().await;
        token.cancel();
    };
    tokio::join!(run_with(consumer, book, records, token.clone()), cancel).0
}

async fn run_of(
    consumer: &Consumer,
    topic: &str,
    book: &Arc<Book>,
    records: Vec<ConsumerRecord>,
    token: CancellationToken,
) -> Ended {
    let loads = records.into_iter().map(|record| Chunk::One(Box::new(record), None)).collect();
    run_loads(consumer, topic, book, loads, token).await
}

async fn run_loads(
    consumer: &Consumer,
    topic: &str,
    book: &Arc<Book>,
    loads: Vec<Chunk>,
    token: CancellationToken,
) -> Ended {
    let life = crate::consumer::acknowledge::Life::of_tests();
    let bounds = Bounds { runs: 1, records: 100, bytes: 1 << 20, span: 1000 };
    let mut lanes = Lanes::new(Ordering::Partition, bounds);
    let partition = TopicPartition::new(topic, 0);
    for load in loads {
        lanes.push(time::now(), &partition, life, load, None).unwrap();
    }
    let whole: Run<Chunk, Life> = lanes.poll_run(time::now()).unwrap();
    let context = RunContext {
        ledger: Arc::clone(book) as Arc<dyn Ledger>,
        outbox: Outbox::new(instance()),
        persists: Default::default(),
        counters: Arc::clone(&consumer.shared.counters),
        rng: Mutex::new(Environment::default().rng()),
        is_alone: lane::is_alone(),
        environment: Environment::default(),
        group: Arc::clone(&consumer.group),
    };
    let route = consumer.routes.of(&consumer.topics, &topic.into());
    lane::run(Arc::new(context), route, whole, token).await
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
                seen.lock().push((index, record));
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
        assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
        assert_eq!((ended.handled, book.done()), (1, [7].into()));
        let expected: Vec<_> = calls.into_iter().map(|index| (index, record(7))).collect();
        assert_eq!(*seen.lock(), expected, "failures {failures:?}");
    }
}

#[tokio::test]
async fn an_error_names_the_record_that_its_handler_has_taken_and_nothing_passes_it() {
    let (consumer, seen) = seeing(ErrorPolicy::Stop, &[1]);
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, vec![record(7), record(8)]).await;
    let Err(error) = ended.outcome else { panic!("{ended:?}") };
    assert_eq!((error.kind(), error.topic()), (ErrorKind::Handler, Some("orders")));
    assert_eq!((error.partition(), error.offset()), (Some(0), Some(7)));
    assert_eq!(seen.lock().len(), 1);
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
    let Err(error) = ended.outcome else { panic!("{ended:?}") };
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
    assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{ended:?}");
    assert_eq!((time::now() - begun).as_secs(), 5, "the pause of a minute was not waited for");
    assert_eq!((seen.lock().len(), book.said()), (1, vec![Said::Back(vec![7, 8])]));
}

#[tokio::test]
async fn a_handler_sees_that_it_should_give_up() {
    let consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            order.cancellation().cancelled().await;
            Ok(())
        })
        .unwrap();
    let book = Arc::new(Book::default());
    let ended = run_and_cancel(&consumer, &book, vec![record(7), record(8)]).await;
    assert_eq!(ended.handled, 1, "what it has finished counts: {ended:?}");
    assert_eq!(book.said(), [Said::Done(vec![7]), Said::Back(vec![8])]);
}

#[tokio::test]
async fn a_handler_that_cancels_its_own_token_gives_up_nothing_of_its_lane() {
    let consumer = consumer()
        .register_raw_handler("orders", async |record: ConsumerRecord| {
            let message = Message::new(record.topic, ());
            if record.offset == 1 {
                let token = message.cancellation();
                token.cancel();
                assert!(token.is_cancelled());
            }
            assert!(!message.cancellation().is_cancelled(), "those that are asked for later are their own");
            Ok(())
        })
        .unwrap();
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..5).map(record).collect()).await;
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    assert_eq!((ended.handled, book.done()), (5, (0..5).collect()));
}

#[tokio::test]
async fn a_handler_that_gives_up_as_it_was_told_to_says_nothing_of_its_record() {
    let policies = [
        ErrorPolicy::Stop,
        ErrorPolicy::Skip,
        ErrorPolicy::retry(2, Duration::ZERO).then_skip(),
        ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]).then_dead_letter("dead"),
        ErrorPolicy::Skip.deadline(Duration::from_secs(60)),
    ];
    for (policy, panics) in policies.iter().flat_map(|policy| [(policy, false), (policy, true)]) {
        let consumer = consumer()
            .register_handler("orders", async move |order: Message<i64>| {
                order.cancellation().cancelled().await;
                if panics { panic!("told to give up") } else { Err("told to give up".into()) }
            })
            .unwrap()
            .error_policy(policy.clone())
            .unwrap();
        let book = Arc::new(Book::default());
        let ended = run_and_cancel(&consumer, &book, vec![record(7), record(8)]).await;
        assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{policy:?}: {ended:?}");
        assert_eq!(book.said(), [Said::Back(vec![7, 8])], "{policy:?}");
        assert_eq!((consumer.metrics().failed, consumer.metrics().skipped), (0, 0), "{policy:?}");
    }
}

#[tokio::test]
async fn handlers_that_wait_or_fail_among_others_that_do_not_are_called_in_turn_and_once() {
    /// What a handler does with a record: by two bits of the record's number each.
    fn behaviour(record: i64, handler: usize) -> (bool, bool) {
        let bits = record >> (2 * handler);
        (bits & 1 == 1, bits & 2 == 2)
    }
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut consumer = consumer().error_policy(ErrorPolicy::retry(2, Duration::ZERO)).unwrap();
    for handler in 0..3 {
        let calls = Arc::clone(&calls);
        consumer = consumer
            .register_handler("orders", async move |order: Message<i64>| {
                let (waits, fails) = behaviour(order.value, handler);
                calls.lock().push((order.value, handler, order.attempt));
                if waits {
                    tokio::task::yield_now().await;
                }
                if fails && order.attempt == 1 { Err("not yet".into()) } else { Ok(()) }
            })
            .unwrap();
    }
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..64).map(record).collect()).await;
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    assert_eq!((ended.handled, book.done()), (64, (0..64).collect()));
    let all = (0..64).flat_map(|record| (0..3).map(move |handler| (record, handler)));
    let expected: Vec<_> = all
        .flat_map(|(record, handler)| {
            let attempts = if behaviour(record, handler).1 { 2 } else { 1 };
            (1..=attempts).map(move |attempt| (record, handler, attempt))
        })
        .collect();
    assert_eq!(*calls.lock(), expected);
}

#[test]
fn any_number_of_handlers_at_once_is_taken() {
    for concurrency in [1, usize::MAX / 4, usize::MAX] {
        let bounds = consumer().concurrency(concurrency).plan().bounds;
        assert!(bounds.records >= 1000 && bounds.span >= bounds.records as u64, "{bounds:?}");
    }
}

#[tokio::test]
async fn nothing_more_is_begun_in_a_life_that_is_over() {
    let (consumer, seen) = seeing(ErrorPolicy::Skip, &[1]);
    let book = Arc::new(Book::default());
    book.is_over.store(true, Relaxed);
    // The failure makes it tell what is done before it decides.
    let ended = run(&consumer, &book, vec![record(7), record(8), record(9)]).await;
    assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{ended:?}");
    assert_eq!((ended.handled, seen.lock().len()), (0, 3), "no handler waited, so none could know");
}

#[tokio::test]
async fn a_failure_in_a_life_that_is_over_says_nothing_of_its_record() {
    let policies = [
        ErrorPolicy::Stop,
        ErrorPolicy::Skip,
        ErrorPolicy::retry(2, Duration::ZERO).then_skip(),
        ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]).then_dead_letter("dead"),
    ];
    for (policy, reads) in policies.iter().flat_map(|policy| [(policy, false), (policy, true)]) {
        let consumer = consumer().error_policy(policy.clone()).unwrap();
        let consumer = match reads {
            true => consumer.register_handler("orders", async |_: Message<String>| Ok(())),
            false => consumer.register_handler("orders", async |_: Message<i64>| Err("not that one".into())),
        };
        let (consumer, book) = (consumer.unwrap(), Arc::new(Book::default()));
        book.is_gone.store(true, Relaxed);
        let ended = run(&consumer, &book, vec![record(7), record(8)]).await;
        assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{policy:?}: {ended:?}");
        assert_eq!(book.said(), [Said::Back(vec![7, 8])], "{policy:?}");
        assert_eq!((consumer.metrics().failed, consumer.metrics().skipped), (0, 0), "{policy:?}");
    }
}

#[test]
fn a_runtime_with_one_worker_is_alone_whatever_it_is_called() {
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(one.block_on(async { lane::is_alone() }));
    for (workers, is_alone) in [(1, true), (2, false)] {
        let many = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).build().unwrap();
        assert_eq!(many.block_on(async { lane::is_alone() }), is_alone, "{workers}");
    }
    assert!(!lane::is_alone(), "there is no runtime here");
}

#[tokio::test]
async fn on_one_thread_others_run_between_records_whose_handlers_block() {
    let turns = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (count, log) = (Arc::clone(&turns), Arc::clone(&seen));
    let consumer = consumer()
        .register_handler("orders", async move |_: Message<i64>| {
            log.lock().push(count.load(Relaxed));
            std::thread::sleep(Duration::from_millis(2));
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
    let seen = seen.lock().clone();
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
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
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
            log.lock().push(count.load(Relaxed));
            Ok(())
        })
        .unwrap();
    let mut records: Vec<_> = (0..4).map(record).collect();
    for record in &mut records {
        alive.fetch_add(1, Relaxed);
        record.value = Some(bytes::Bytes::from_owner(Owned(Arc::clone(&alive))));
    }
    run(&consumer, &Arc::new(Book::default()), records).await;
    assert_eq!(*seen.lock(), [4, 3, 2, 1]);
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
async fn a_dead_letter_to_where_its_record_has_been_is_not_written_and_stops_the_consumer() {
    for (from, to) in [
        ("orders", "orders"),
        ("orders-retry-1s", "orders"),
        ("orders-retry-1s", "orders-retry-1s"),
        ("orders", "first"),
        ("orders-retry-1s", "second"),
    ] {
        let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(1)]);
        let consumer = consumer()
            .register_raw_handler("orders", async |_| Err("never".into()))
            .unwrap()
            .error_policy(policy.retry_if(|_| false).then_dead_letter_by(move |_, _| to.to_owned()))
            .unwrap();
        let book = Arc::new(Book::default());
        let record = ["first", "second"]
            .into_iter()
            .fold(record(7), |record, topic| record.with_header("dtkafka-dead-letter-topic", topic));
        let ended = run_of(&consumer, from, &book, vec![record], CancellationToken::new()).await;
        let Err(error) = ended.outcome else { panic!("{from} to {to}: {:?}", ended.outcome) };
        assert_eq!((error.kind(), error.topic(), error.offset()), (ErrorKind::Config, Some(to), Some(7)));
        let told = ["feed itself", "in a circle"].into_iter().filter(|told| error.to_string().contains(told));
        assert!(told.count() == 1 && error.hint().is_some(), "{error}");
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
            log.lock().push(message.attempt);
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
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    assert_eq!((attempts.lock().len(), book.done()), (1, [0].into()));
}

#[test]
fn policies_of_topics_that_are_not_consumed_and_circles_are_refused() {
    let retry = ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]);
    for topics in [Topics::from("ordres"), Topics::glob("payments-*")] {
        let error = consumer().error_policy_for(topics, ErrorPolicy::Skip).unwrap_err();
        assert!(error.to_string().contains("its topics are orders"), "{error}");
    }
    consumer().error_policy_for(Topics::glob("ord*"), ErrorPolicy::Skip).unwrap();
    let error = consumer().error_policy(retry.clone().then_dead_letter("orders-retry-1m")).unwrap_err();
    assert!(error.to_string().contains("is one of its retry topics"), "{error}");
    consumer().error_policy(retry.clone().then_dead_letter("orders-retry-2m")).unwrap();
    // In whatever order they are set.
    let both = || Consumer::new(&instance(), ["orders", "audit"]).unwrap();
    let letters = ErrorPolicy::dead_letter("orders-retry-1m");
    for (one, other) in
        [("orders", &retry), ("audit", &letters)].into_iter().zip([("audit", &letters), ("orders", &retry)])
    {
        let consumer = both().error_policy_for(one.0, one.1.clone()).unwrap();
        let error = consumer.error_policy_for(other.0, other.1.clone()).unwrap_err();
        assert!(error.to_string().contains("is one of its retry topics"), "{error}");
    }
    both().error_policy_for("audit", retry).unwrap().error_policy_for("orders", letters).unwrap();
}
