//! Every call of a consumer dropped at each of its await points in turn: nothing is lost, nothing stays paused, and the
//! consumer goes on.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use dtkafka::{Consumer, ConsumerRecord, KafkaConfig, KafkaConsumer, KafkaInstance, TopicPartition};
use dtkafka_testcontainers::{EmbeddedBroker, NewRecord};
use futures_util::StreamExt as _;

const PATIENCE: Duration = Duration::from_secs(30);
const RECORDS: i64 = 300;

/// Polls a future until it has waited so often, then drops it; its output, if it ended before.
pub(crate) async fn waits<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), times);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

async fn broker() -> (EmbeddedBroker, KafkaInstance, TopicPartition) {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    for number in 0..RECORDS {
        broker.feed("t", 0, NewRecord::new(number.to_string())).unwrap();
    }
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("max.poll.records", 3);
    (broker, KafkaInstance::new(config).unwrap(), TopicPartition::new("t", 0))
}

/// One call, dropped after so many waits. True if it came to its end.
async fn call(
    consumer: &KafkaConsumer,
    key: &TopicPartition,
    which: usize,
    times: usize,
    got: &mut Vec<i64>,
) -> bool {
    let keys = || [key.clone()];
    match which {
        0 => {
            let records = waits(times, consumer.poll(Duration::from_millis(200))).await;
            let Some(records) = records else { return false };
            got.extend(records.unwrap().records().map(|record| record.offset()));
            true
        }
        1 => {
            let mut stream = consumer.stream();
            let Some(record) = waits(times, stream.next()).await else { return false };
            got.push(record.unwrap().unwrap().offset);
            true
        }
        2 => waits(times, consumer.commit()).await.map(Result::unwrap).is_some(),
        3 => {
            let position = got.last().map_or(0, |last| last + 1);
            waits(times, consumer.commit_offsets([(key.clone(), position)]))
                .await
                .map(Result::unwrap)
                .is_some()
        }
        4 => waits(times, consumer.committed(keys())).await.map(Result::unwrap).is_some(),
        5 => waits(times, consumer.position(key)).await.map(Result::unwrap).is_some(),
        6 => waits(times, consumer.beginning_offsets(keys())).await.map(Result::unwrap).is_some(),
        _ => waits(times, consumer.end_offsets(keys())).await.map(Result::unwrap).is_some(),
    }
}

#[tokio::test]
async fn calls_of_the_client_dropped_at_every_await_point_lose_nothing() {
    let (broker, kafka, key) = broker().await;
    let consumer = kafka.get_consumer_with(["t"], |c| c.enable_auto_commit(false)).await.unwrap();
    let mut got = Vec::new();
    for times in 0..12 {
        for which in 0..8 {
            // The stream may not be left to wait for ever for what is not there.
            if which == 1 && got.len() as i64 + 10 > RECORDS || which > 1 && consumer.assignment().is_empty()
            {
                continue;
            }
            call(&consumer, &key, which, times, &mut got).await;
            assert!(consumer.paused().is_empty());
        }
    }
    let read = async {
        while (got.len() as i64) < RECORDS {
            got.extend(consumer.poll(PATIENCE).await.unwrap().records().map(|record| record.offset()));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert_eq!(got, (0..RECORDS).collect::<Vec<_>>());
    consumer.commit().await.unwrap();
    assert_eq!(broker.committed("g", "t", 0), Some(RECORDS));
    consumer.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_close_dropped_at_any_await_point_closes_all_the_same() {
    let (broker, kafka, _) = broker().await;
    for times in 0..6 {
        let consumer = kafka.get_consumer(["t"]).await.unwrap();
        while consumer.assignment().is_empty() {
            consumer.poll(Duration::from_millis(50)).await.unwrap();
        }
        let leaves = broker.control().requests(dtkafka_testcontainers::broker::ApiKey::LeaveGroup);
        let _outcome = waits(times, consumer.close(PATIENCE)).await;
        let left = async {
            while broker.control().requests(dtkafka_testcontainers::broker::ApiKey::LeaveGroup) == leaves {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.expect("it is still in the group");
    }
}

#[tokio::test]
async fn calls_of_the_facade_dropped_at_every_await_point_skip_nothing() {
    let (broker, kafka, _) = broker().await;
    let seen: Arc<Mutex<Vec<i64>>> = Arc::default();
    let log = Arc::clone(&seen);
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_raw_handler("t", move |record: ConsumerRecord| {
            let log = Arc::clone(&log);
            async move {
                tokio::task::yield_now().await;
                log.lock().unwrap().push(record.offset);
                Ok(())
            }
        })
        .unwrap();
    for times in 0..25 {
        let consumed = waits(times, consumer.consume(Duration::from_millis(200))).await;
        consumed.transpose().unwrap();
        waits(times, consumer.commit()).await.transpose().unwrap();
        if times == 20 {
            let _outcome = waits(1, consumer.close()).await;
        }
    }
    let all = async {
        while broker.committed("g", "t", 0) != Some(RECORDS) {
            consumer.consume(Duration::from_millis(200)).await.unwrap();
            assert!(consumer.client().is_some_and(|client| client.paused().is_empty()));
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    consumer.close().await.unwrap();
    let seen: BTreeSet<i64> = seen.lock().unwrap().iter().copied().collect();
    assert_eq!(seen, (0..RECORDS).collect());
}
