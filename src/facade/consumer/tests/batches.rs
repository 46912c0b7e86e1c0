//! Handlers of many records at once.

use super::*;
use crate::facade::{FailedAt, message::Batch};

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
            log.lock().push(batch.values().copied().collect());
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
    assert_eq!(*batches.lock(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
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
    let Err(error) = ended.outcome else { panic!("{ended:?}") };
    assert_eq!((error.offset(), book.done()), (Some(2), [0, 1].into()), "{error}");

    let (consumer, again) = batching(ErrorPolicy::retry(2, Duration::ZERO).then_skip(), at_two);
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..6).map(record).collect()).await;
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    assert_eq!(*again.lock(), [vec![0, 1, 2, 3], vec![2, 3], vec![3], vec![4, 5]]);
    assert_eq!((book.done(), consumer.metrics().skipped), ((0..6).collect(), 1));
    assert_eq!(batches.lock().len(), 1);
}

/// As `anyhow::Error` becomes a boxed error: of a type of its own, with the causes of what it was made of.
#[derive(Debug)]
struct Hidden(FailedAt);

impl std::fmt::Display for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Hidden {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

#[tokio::test]
async fn the_message_at_which_a_batch_failed_is_found_where_its_errors_type_is_hidden() {
    let at_two = |batch: &Batch<i64>| match batch.iter().find(|message| message.value == 2) {
        Some(message) => Err(Hidden(FailedAt::new(message, "x".parse::<u8>().unwrap_err())).into()),
        None => Ok(()),
    };
    let retry = || ErrorPolicy::retry(2, Duration::ZERO);
    let never = retry().never_retry::<std::num::ParseIntError>();
    let only = retry().retry_if(|error| error.is::<std::num::ParseIntError>());
    for (policy, calls) in [(retry(), 4), (never, 3), (only, 4)] {
        let (consumer, batches) = batching(policy.then_skip(), at_two);
        let book = Arc::new(Book::default());
        run(&consumer, &book, (0..6).map(record).collect()).await;
        assert_eq!((book.done(), consumer.metrics().skipped), ((0..6).collect(), 1));
        assert_eq!(batches.lock().len(), calls);
    }
    let (consumer, _) = batching(ErrorPolicy::Stop, at_two);
    let ended = run(&consumer, &Arc::new(Book::default()), (0..6).map(record).collect()).await;
    let Err(error) = ended.outcome else { panic!("{ended:?}") };
    assert_eq!(error.offset(), Some(2));
    let text = error.to_string();
    assert!(text.contains("failed at offset 2") && text.contains("invalid digit"), "{text}");
}

#[tokio::test]
async fn a_batch_that_fails_as_a_whole_is_dealt_with_as_a_whole() {
    let never =
        |batch: &Batch<i64>| if batch.values().any(|value| *value < 4) { Err("down".into()) } else { Ok(()) };
    let (consumer, batches) = batching(ErrorPolicy::retry(2, Duration::ZERO).then_skip(), never);
    let book = Arc::new(Book::default());
    run(&consumer, &book, (0..6).map(record).collect()).await;
    assert_eq!(*batches.lock(), [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![4, 5]]);
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
        assert_eq!(batches.lock()[0], [0, 1], "those before it come first");
        assert_eq!((book.done().len(), consumer.metrics().skipped), (done, skipped));
        if let Err(error) = ended.outcome {
            assert_eq!((error.kind(), error.offset()), (ErrorKind::Json, Some(2)));
        }
    }
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
            log.lock().push((attempt, batch.values().copied().collect()));
            Ok(())
        })
        .unwrap()
        .error_policy(policy)
        .unwrap();
    let records = ["1", "\"two\"", "3"].into_iter().zip(0..);
    let records = records.map(|(value, offset)| waiting(offset, "orders", 0, 40 + offset, value)).collect();
    let book = Arc::new(Book::default());
    let ended = run_of(&consumer, "orders-retry-1s", &book, records, CancellationToken::new()).await;
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    assert_eq!(*calls.lock(), [(4, vec![1]), (4, vec![3])]);
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
    assert_eq!(*batches.lock(), [vec![0, 1, 2], vec![2]], "the first was done, the second is skipped");
    assert_eq!(consumer.metrics().skipped, 1);
}

#[tokio::test]
async fn a_batch_that_gives_up_as_it_was_told_to_comes_again() {
    for policy in [ErrorPolicy::Stop, ErrorPolicy::Skip, ErrorPolicy::retry(2, Duration::ZERO).then_skip()] {
        let consumer = consumer()
            .register_batch_handler("orders", 4, Duration::ZERO, async move |batch: Batch<i64>| {
                batch.cancellation().cancelled().await;
                let third = batch.into_iter().nth(2).ok_or("no third")?;
                Err(FailedAt::new(&third, "told to give up"))?
            })
            .unwrap()
            .error_policy(policy)
            .unwrap();
        let book = Arc::new(Book::default());
        let ended = run_and_cancel(&consumer, &book, (0..6).map(record).collect()).await;
        assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{ended:?}");
        assert_eq!((book.done(), consumer.metrics().failed), ([0, 1].into(), 0), "those before it are done");
    }
}

#[tokio::test]
async fn each_message_at_which_a_batch_fails_has_its_own_attempts() {
    let failures = Arc::new(Mutex::new(BTreeSet::new()));
    let (consumer, batches) = batching(ErrorPolicy::retry(2, Duration::ZERO).then_skip(), move |batch| {
        let mut failed = failures.lock();
        match batch.iter().find(|message| message.value < 3 && failed.insert(message.value)) {
            Some(message) => Err(FailedAt::new(message, "not yet").into()),
            None => Ok(()),
        }
    });
    let book = Arc::new(Book::default());
    let ended = run(&consumer, &book, (0..4).map(record).collect()).await;
    assert!(matches!(ended.outcome, Ok(Flow::Handled)), "{ended:?}");
    let expected = [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![1, 2, 3], vec![2, 3]];
    assert_eq!((batches.lock().as_slice(), consumer.metrics().skipped), (&expected[..], 0));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_in_a_life_that_is_over_is_not_judged() {
    let (consumer, _) = batching(ErrorPolicy::Skip, |_| Ok(()));
    let book = Arc::new(Book::default());
    book.is_gone.store(true, Relaxed);
    let ended = run(&consumer, &book, vec![record(0).with_value("{nope"), record(1)]).await;
    assert!(matches!(ended.outcome, Ok(Flow::Abandoned)), "{ended:?}");
    assert_eq!((consumer.metrics().skipped, consumer.metrics().failed), (0, 0));
}

#[tokio::test]
async fn in_a_retry_topic_each_record_of_a_batch_that_fails_as_a_whole_is_named_by_its_own_place() {
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::ERROR);
    let policy = ErrorPolicy::Stop.retry_topics([Duration::from_secs(1)]).then_skip();
    let (consumer, _) = batching(policy, |_| Err("all of them".into()));
    let records = (0..3).map(|number| waiting(number, "orders", number as i32, 40 + number, "7"));
    let book = Arc::new(Book::default());
    run_of(&consumer, "orders-retry-1s", &book, records.collect(), CancellationToken::new()).await;
    let said = log.text();
    for place in ["partition 0, offset 40", "partition 1, offset 41", "partition 2, offset 42"] {
        assert!(said.contains(place), "{place}: {said}");
    }
}

#[tokio::test]
async fn batches_are_read_by_a_codec_of_their_own() {
    /// One byte.
    #[derive(Clone)]
    struct Byte;
    impl crate::Codec<u8> for Byte {
        fn encode(
            &self,
            _: &str,
            value: &u8,
            buffer: &mut Vec<u8>,
        ) -> std::result::Result<(), crate::HandlerError> {
            buffer.push(*value);
            Ok(())
        }
        fn decode(&self, _: &str, value: Option<&[u8]>) -> std::result::Result<u8, crate::HandlerError> {
            match value {
                Some([byte]) => Ok(*byte),
                _ => Err("not one byte".into()),
            }
        }
    }
    let batches: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let log = Arc::clone(&batches);
    let none = consumer().register_batch_handler_with(
        "orders",
        0,
        Duration::ZERO,
        Byte,
        async |_: Batch<u8>| Ok(()),
    );
    assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let consumer = consumer()
        .register_batch_handler_with("orders", 3, Duration::ZERO, Byte, async move |batch: Batch<u8>| {
            log.lock().push(batch.values().copied().collect());
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Skip)
        .unwrap();
    let book = Arc::new(Book::default());
    // The last but one has two digits.
    let records = [7, 8, 9, 10, 6]
        .into_iter()
        .zip(0..)
        .map(|(number, offset)| ConsumerRecord::new("orders", 0, offset).with_value(number.to_string()));
    run(&consumer, &book, records.collect()).await;
    assert_eq!(*batches.lock(), [b"789".to_vec(), b"6".to_vec()]);
    assert_eq!((book.done().len(), consumer.metrics().skipped), (5, 1));
}
