//! Clients whose calls are made where nothing can be waited for: an error that says what to do, and never a panic.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use dtkafka::{
    Consumer, ErrorKind, KafkaConfig, KafkaInstance, Message, NewTopic, Producer, ProducerRecord, Result,
    TopicPartition,
};
use dtkafka_testcontainers::EmbeddedBroker;
use futures_util::FutureExt as _;

const PATIENCE: Duration = Duration::from_secs(30);

/// The error of a call where there is no runtime.
fn outside<T>(what: &str, call: impl Future<Output = Result<T>>) {
    let polled = std::panic::catch_unwind(AssertUnwindSafe(|| call.now_or_never()));
    let error =
        polled.unwrap_or_else(|_| panic!("{what} panics")).unwrap_or_else(|| panic!("{what} waits")).err();
    let error = error.unwrap_or_else(|| panic!("{what} had nothing to wait for"));
    assert!(
        error.kind() == ErrorKind::Config && error.to_string().contains("tokio runtime"),
        "{what}: {error}"
    );
}

#[test]
fn calls_of_a_client_outside_a_runtime_are_errors() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let broker = runtime.block_on(EmbeddedBroker::start()).unwrap();
    broker.create_topic("t", 1).unwrap();
    let config =
        KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers()).set("buffer.memory", 2_000);
    let kafka = KafkaInstance::new(config.set("linger.ms", 60_000).set_group_id("g")).unwrap();
    let key = TopicPartition::new("t", 0);
    let (producer, simple, mut transactional, consumer, mut facade, admin) = runtime.block_on(async {
        let producer = kafka.get_producer().await.unwrap();
        producer.partitions_for("t").await.unwrap();
        let transactional =
            kafka.get_transactional_producer_with(|p| p.set("transactional.id", "x")).await.unwrap();
        let consumer = kafka.get_consumer(Vec::<String>::new()).await.unwrap();
        consumer.assign([key.clone()]).unwrap();
        let ignore = async |_: Message<serde_json::Value>| Ok(());
        let mut facade = Consumer::new(&kafka, ["t"]).unwrap().register_handler("t", ignore).unwrap();
        facade.consume(Duration::ZERO).await.unwrap();
        let simple = Producer::new(&kafka).await.unwrap();
        (producer, simple, transactional, consumer, facade, kafka.admin().await.unwrap())
    });
    outside("send to a new topic", async { producer.send("new", &1).await });
    let _fills = producer
        .send_record(ProducerRecord::new("t").value(&vec![1; 1_500]))
        .now_or_never()
        .unwrap()
        .unwrap();
    outside(
        "send that waits for memory",
        producer.send_record(ProducerRecord::new("t").value(&vec![1; 1_500])),
    );
    outside("flush_within", producer.flush_within(PATIENCE));
    outside("partitions_for", producer.partitions_for("other"));
    outside("Producer::send", async { simple.send("t", &1).await });
    let load = simple.bulk_load("t", [("k", 1)]).finish().now_or_never().unwrap();
    assert_eq!((load.failed, load.open()), (1, 0));
    outside("commit of a transaction", async {
        let transaction = transactional.begin().await?;
        let _sent = transaction.send_record(ProducerRecord::new("t").value("x")).await?;
        transaction.commit().await
    });
    outside("poll", consumer.poll(PATIENCE));
    outside("end_offsets", consumer.end_offsets([key.clone()]));
    outside("beginning_offsets", consumer.beginning_offsets([key.clone()]));
    outside("offsets_for_times", consumer.offsets_for_times([(key.clone(), 0)]));
    outside("committed", consumer.committed([key.clone()]));
    outside("consume", facade.consume(PATIENCE));
    outside("run", facade.run(std::future::pending::<()>()));
    outside("run_until_signal", facade.run_until_signal());
    outside("Consumer::close", facade.close());
    outside("list_topics", admin.list_topics());
    outside("create_topic", admin.create_topic(NewTopic::new("n")));
    outside("describe_group", admin.describe_group("g"));
    outside("latest_offsets", admin.latest_offsets([key]));
    outside("close", consumer.close(PATIENCE));
    // Back in it, all goes on.
    runtime.block_on(async {
        transactional.begin().await.unwrap().abort().await.unwrap();
        admin.list_topics().await.unwrap();
        facade.close().await.unwrap();
        producer.close().await.unwrap();
    });
}

#[test]
fn signals_in_a_runtime_without_io_are_an_error_and_not_a_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let config = KafkaConfig::new().set_kafka_url("kafka://localhost:9092?group_id=g");
    let mut consumer = Consumer::new(&KafkaInstance::new(config).unwrap(), ["t"]).unwrap();
    runtime.block_on(async { outside("run_until_signal", consumer.run_until_signal()) });
}
