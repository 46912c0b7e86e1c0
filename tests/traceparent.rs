//! What a handler sends belongs to the trace of the record that it handles.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what its tests share")]

use std::{sync::Arc, time::Duration};

use dtkafka::{
    Batch, Consumer, ExactlyOnce, HandlerResult, KafkaConfig, KafkaInstance, Message, Ordering, Producer,
    ProducerRecord,
};
use dtkafka_testcontainers::{EmbeddedBroker, NewRecord};
use tokio::sync::Barrier;

const PATIENCE: Duration = Duration::from_secs(20);

/// A trace of its own for each number.
fn trace(number: u32) -> String {
    format!("00-{number:032x}-00f067aa0ba902b7-01")
}

async fn start() -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::builder().default_partitions(1).start().await.unwrap();
    broker.create_topic("from", 1).unwrap();
    broker.create_topic("to", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    (broker, KafkaInstance::new(config).unwrap())
}

/// Records of 1 to `count`, of which each names its trace, and one of 0 that names none.
fn feed(broker: &EmbeddedBroker, count: u32) {
    broker.feed("from", 0, NewRecord::new("0").header("other", "x")).unwrap();
    for number in 1..=count {
        let record = NewRecord::new(number.to_string())
            .header("traceparent", trace(number))
            .header("tracestate", format!("vendor={number}"));
        broker.feed("from", 0, record).unwrap();
    }
}

/// Each record that was written, with what its headers say of its trace.
fn written(broker: &EmbeddedBroker) -> Vec<(u32, Option<String>, Option<String>)> {
    let text = |value: Option<&[u8]>| value.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    let records = broker.records("to", 0).unwrap().into_iter().map(|record| {
        let number = text(record.value.as_deref()).unwrap().parse().unwrap();
        (number, text(record.header("traceparent")), text(record.header("tracestate")))
    });
    let mut records: Vec<_> = records.collect();
    records.sort();
    records
}

fn wanted(count: u32) -> Vec<(u32, Option<String>, Option<String>)> {
    let passed_on = (1..=count).map(|number| (number, Some(trace(number)), Some(format!("vendor={number}"))));
    [(0, None, None)].into_iter().chain(passed_on).collect()
}

async fn consume(consumer: &mut Consumer, count: u32) {
    let mut handled = 0;
    while handled <= count as usize {
        handled += consumer.consume(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn what_handlers_send_at_the_same_time_belongs_to_the_trace_of_each_ones_own_record() {
    const COUNT: u32 = 3;
    let (broker, kafka) = start().await;
    feed(&broker, COUNT);
    let producer = Arc::new(Producer::new(&kafka).await.unwrap());
    // Each goes on once all of them wait, on one thread.
    let all_wait = Arc::new(Barrier::new(COUNT as usize + 1));
    let mut consumer = Consumer::new(&kafka, ["from"])
        .unwrap()
        .ordering(Ordering::Unordered)
        .concurrency(COUNT as usize + 1)
        .register_handler("from", async move |message: Message<u32>| {
            all_wait.wait().await;
            producer.send("to", &message.value).await?;
            HandlerResult::Ok(())
        })
        .unwrap();
    consume(&mut consumer, COUNT).await;
    consumer.close().await.unwrap();
    assert_eq!(written(&broker), wanted(COUNT));
}

#[tokio::test]
async fn a_traceparent_of_the_senders_own_stays_and_what_is_none_is_not_passed_on() {
    let (broker, kafka) = start().await;
    broker.feed("from", 0, NewRecord::new("1").header("traceparent", "00-0-0-0")).unwrap();
    broker.feed("from", 0, NewRecord::new("2").header("traceparent", trace(2))).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let sender = producer.clone();
    let mut consumer = Consumer::new(&kafka, ["from"])
        .unwrap()
        .register_handler("from", async move |message: Message<u32>| {
            let value = message.value.to_string();
            let record = ProducerRecord::new("to").value(&value);
            let record = if message.value == 2 { record.header("traceparent", trace(9)) } else { record };
            sender.send_record(record).await?.await?;
            sender.try_send(ProducerRecord::new("to").value("3"))?.await?;
            HandlerResult::Ok(())
        })
        .unwrap();
    consume(&mut consumer, 1).await;
    consumer.close().await.unwrap();
    // Outside of a handler there is nothing to pass on.
    producer.send("to", &4).await.unwrap().await.unwrap();
    let expected = [(1, None), (2, Some(trace(9))), (3, None), (3, Some(trace(2))), (4, None)];
    assert!(written(&broker).into_iter().map(|(number, parent, _)| (number, parent)).eq(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_handlers_and_those_of_a_batch_of_one_pass_it_on() {
    let (broker, kafka) = start().await;
    feed(&broker, 1);
    let producer = kafka.get_producer().await.unwrap();
    let (blocking, batches) = (producer.clone(), producer);
    let mut consumer = Consumer::new(&kafka, ["from"])
        .unwrap()
        .register_blocking_handler("from", move |message: Message<u32>| {
            let sending = async { blocking.send("to", &message.value).await?.await };
            tokio::runtime::Handle::current().block_on(sending)?;
            HandlerResult::Ok(())
        })
        .unwrap();
    consume(&mut consumer, 1).await;
    consumer.close().await.unwrap();
    let others = KafkaInstance::new(kafka.config().clone().set_group_id("batches")).unwrap();
    let mut consumer = Consumer::new(&others, ["from"])
        .unwrap()
        .register_batch_handler("from", 1, Duration::ZERO, async move |batch: Batch<u32>| {
            for value in batch.values() {
                batches.send("to", value).await?.await?;
            }
            HandlerResult::Ok(())
        })
        .unwrap();
    consume(&mut consumer, 1).await;
    consumer.close().await.unwrap();
    let [none, one] = wanted(1).try_into().unwrap();
    assert_eq!(written(&broker), [none.clone(), none, one.clone(), one]);
}

#[tokio::test]
async fn a_body_of_exactly_once_passes_it_on() {
    let (broker, kafka) = start().await;
    feed(&broker, 2);
    let done = tokio::sync::Notify::new();
    ExactlyOnce::new(&kafka, ["from"], "copy")
        .run_until(done.notified(), async |record, output| {
            let value: u32 = record.json()?;
            drop(output.send("to", &value).await?);
            if value == 2 {
                done.notify_one();
            }
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(written(&broker), wanted(2));
}
