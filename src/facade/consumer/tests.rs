//! The dispatch of records to handlers, of a consumer that is not connected.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt as _;

use super::Consumer;
use crate::{
    config::KafkaConfig,
    error::ErrorKind,
    facade::{
        KafkaInstance,
        handler::{ErrorPolicy, Message, test_record},
    },
    record::{ConsumerRecord, TopicPartition},
};

fn consumer() -> Consumer {
    let config = KafkaConfig::new().set_kafka_url("kafka://localhost:9092?group_id=g");
    Consumer::new(&KafkaInstance::new(config).unwrap(), ["orders"]).unwrap()
}

fn push(consumer: &mut Consumer, offsets: impl IntoIterator<Item = i64>) {
    let record = |offset: i64| test_record("orders", 0, offset, &offset.to_string());
    consumer.dispatch.push(offsets.into_iter().map(record));
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
                let fails =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
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
        (ErrorPolicy::Stop.then_skip(), vec![0, 1], vec![0, 1]),
    ] {
        let (mut consumer, seen) = seeing(policy, &failures);
        push(&mut consumer, [7]);
        assert_eq!(consumer.dispatch(pin!(pending())).await.unwrap(), 1);
        let expected: Vec<_> =
            calls.into_iter().map(|index| (index, test_record("orders", 0, 7, "7"))).collect();
        assert_eq!(*seen.lock().unwrap(), expected, "failures {failures:?}");
    }
}

#[tokio::test]
async fn an_error_names_the_record_that_its_handler_has_taken_and_nothing_passes_it() {
    let (mut consumer, seen) = seeing(ErrorPolicy::Stop, &[1]);
    push(&mut consumer, [7, 8]);
    let error = consumer.dispatch(pin!(pending())).await.unwrap_err();
    assert_eq!((error.kind(), error.topic()), (ErrorKind::Handler, Some("orders")));
    assert_eq!((error.partition(), error.offset()), (Some(0), Some(7)));
    assert_eq!(
        consumer.dispatch(pin!(pending())).await.unwrap(),
        0,
        "before a rewind there is nothing to do"
    );
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(consumer.dispatch.rewind(), [(TopicPartition::new("orders", 0), 7)].into());
}

#[tokio::test]
async fn a_dispatch_dropped_with_its_handler_leaves_the_record_to_come_again() {
    let mut consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            if order.value == 8 {
                pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    push(&mut consumer, [7, 8, 9]);
    assert!(consumer.dispatch(pin!(pending())).now_or_never().is_none());
    let partition = TopicPartition::new("orders", 0);
    assert_eq!(*consumer.dispatch.frontier(), [(partition.clone(), 8)].into());
    assert_eq!(consumer.dispatch.rewind(), [(partition, 8)].into());
}

#[tokio::test]
async fn a_handler_that_yields_lets_others_run() {
    let polls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&polls);
    let mut consumer = consumer()
        .register_raw_handler("orders", move |_: ConsumerRecord| {
            let (count, mut has_yielded) = (Arc::clone(&count), false);
            poll_fn(move |context| {
                count.fetch_add(1, Ordering::Relaxed);
                if std::mem::replace(&mut has_yielded, true) {
                    return Poll::Ready(Ok(()));
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
        })
        .unwrap();
    push(&mut consumer, [7]);
    let mut shutdown = pin!(pending());
    let mut dispatch = pin!(consumer.dispatch(shutdown.as_mut()));
    let first = poll_fn(|context| Poll::Ready(dispatch.as_mut().poll(context))).await;
    assert!(first.is_pending(), "it is not polled again at once");
    assert_eq!(polls.load(Ordering::Relaxed), 1);
    assert_eq!(dispatch.await.unwrap(), 1);
}
