//! The documents' examples without `async`, on the embedded broker.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what its tests share")]

use std::{
    sync::{Arc, LazyLock, Mutex, OnceLock},
    time::Duration,
};

use dtkafka::{
    ErrorKind, KafkaConfig, Message,
    blocking::{self, Consumer, KafkaInstance, Producer},
};
use dtkafka_testcontainers::EmbeddedBroker;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The broker is async; what is tested is not.
static BROKERS: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn start() -> (EmbeddedBroker, KafkaInstance) {
    let broker = BROKERS.block_on(EmbeddedBroker::builder().start()).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    (broker, KafkaInstance::new(config).unwrap())
}

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_documents_examples_run_without_async() {
    let (broker, kafka_instance) = start();
    broker.create_topic("events", 1).unwrap();

    // Producing, in a context.
    kafka_instance
        .producer_context(|producer| {
            producer.send("events", &json!({"type": "user.signup", "id": 42})).queue()?;
            Ok(())
        })
        .unwrap();
    assert_eq!(broker.records("events", 0).unwrap().len(), 1, "flushed and closed");

    // Consuming, in a context.
    let value = kafka_instance
        .consumer_context_with(
            ["events"],
            |c| c.group_id("context"),
            |consumer| {
                for message in consumer {
                    let value = message?.json::<Value>()?;
                    if value["id"] == 42 {
                        return Ok(value);
                    }
                }
                unreachable!("the records of a consumer end with it")
            },
        )
        .unwrap();
    assert_eq!(value["id"], 42);

    // The producer that waits.
    let producer = Producer::new(&kafka_instance).unwrap();
    let metadata = producer
        .send("events", &json!({"action": "order.created", "order_id": 1001}))
        .key(b"order-1001")
        .timeout(Duration::from_secs(10))
        .wait()
        .unwrap();
    assert_eq!(metadata.offset, 1);
    producer.close().unwrap();
    let producer = Producer::new_with(&kafka_instance, |p| p.linger(0)).unwrap();
    broker.create_topic("numbers", 1).unwrap();
    let sent = producer.send_many("numbers", [(Some("a"), &1), (None, &2)]).unwrap();
    assert_eq!(sent.into_iter().map(|sent| sent.unwrap().offset).collect::<Vec<_>>(), [0, 1]);
    let load = producer.inner().bulk_load("numbers", (0..10).map(|number| (number, number)));
    assert_eq!(blocking::wait(load.finish()).unwrap().delivered, 10);
    producer.close().unwrap();

    // A future that is waited for.
    let producer =
        kafka_instance.get_producer_with(|p| p.acks("all").retries(3).compression("gzip")).unwrap();
    let future = producer.send("events", &json!({"message": "Hello Kafka"})).queue().unwrap();
    assert_eq!(future.get(Duration::from_secs(10)).unwrap().offset, 2);
    producer.flush().unwrap();
    producer.close().unwrap();

    // The consumer with handlers, which may use the producer.
    let received = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&received);
    let answers = Producer::new(&kafka_instance).unwrap();
    let settings = |c: dtkafka::ConsumerConfig| c.enable_auto_commit(false);
    let mut consumer = Consumer::new_with(&kafka_instance, ["events"], settings)
        .unwrap()
        .register_handler("events", move |m: Message<Value>| {
            answers.send("answers", &json!({"of": m.offset})).wait()?;
            log.lock().unwrap().push(m.offset);
            Ok(())
        })
        .unwrap();
    let mut handled = 0;
    while handled < 3 {
        handled += consumer.consume(PATIENCE).unwrap();
    }
    consumer.commit().unwrap();
    consumer.close().unwrap();
    assert_eq!((received.lock().unwrap().len(), broker.committed("g", "events", 0)), (3, Some(3)));

    // Polling by partition.
    let consumer = kafka_instance.get_consumer_with(["events"], |c| c.group_id("poll")).unwrap();
    let messages = consumer.poll(PATIENCE).unwrap();
    for (partition, records) in &messages {
        assert_eq!((&*partition.topic, records.len()), ("events", messages.len()));
    }
    consumer.close().unwrap();
}

#[test]
fn clients_are_used_from_any_thread_and_from_a_static() {
    static PRODUCER: OnceLock<Producer> = OnceLock::new();
    let (broker, kafka) = start();
    broker.create_topic("events", 1).unwrap();
    PRODUCER.set(Producer::new(&kafka).unwrap()).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|number| {
            std::thread::spawn(move || PRODUCER.get().unwrap().send("events", &number).wait().unwrap())
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(broker.records("events", 0).unwrap().len(), 4);
}

#[test]
fn inside_an_async_runtime_a_blocking_call_is_an_error() {
    let (_broker, kafka) = start();
    let error = Runtime::new().unwrap().block_on(async { kafka.get_producer().unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("inside an async runtime"), "{error}");
    assert_eq!(blocking::wait(async { 7 }).unwrap(), 7, "outside of one it is none");
}

#[test]
fn a_consumer_is_stopped_from_another_thread() {
    let (broker, kafka) = start();
    broker.create_topic("events", 1).unwrap();
    let mut consumer = Consumer::new(&kafka, ["events"])
        .unwrap()
        .register_handler("events", |_: Message<Value>| Ok(()))
        .unwrap();
    let handle = consumer.handle();
    let running = std::thread::spawn(move || consumer.run());
    Producer::new(&kafka).unwrap().send("events", &1).wait().unwrap();
    while handle.metrics().handled == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    handle.stop();
    running.join().unwrap().unwrap();
    assert_eq!(broker.committed("g", "events", 0), Some(1));
}
