//! A user's own tests with the test kit, as `testcontainers/README.md` shows them.

use std::time::Duration;

use dtkafka::{Consumer, ErrorPolicy, KafkaConfig, KafkaInstance, Message, Producer};
use dtkafka_testcontainers::{
    Effect, EmbeddedBroker, FakeKafka, Fault, NewRecord,
    broker::{ApiKey, ResponseError},
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;

const SOON: Duration = Duration::from_secs(30);

/// What is under test: it sends.
async fn place_order(producer: &Producer, id: u32) -> dtkafka::Result<()> {
    producer.send("orders", &json!({ "id": id })).key(id.to_string().as_str()).await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_code_sends_is_seen_without_any_broker() {
    let fake = FakeKafka::start().await.unwrap();
    let config =
        KafkaConfig::new().set_bootstrap_servers(fake.bootstrap_servers()).set_transport(fake.transport());
    let producer = Producer::new(&KafkaInstance::new(config).unwrap()).await.unwrap();

    place_order(&producer, 7).await.unwrap();
    let sent = fake.take_sent("orders");
    assert_eq!((sent[0].key_text(), sent[0].value_text()), (Some("7"), Some(r#"{"id":7}"#)));

    fake.fail_next("orders", ResponseError::TopicAuthorizationFailed);
    let error = place_order(&producer, 8).await.unwrap_err();
    assert_eq!(error.topic(), Some("orders"), "{error}");
    assert!(fake.take_sent("orders").is_empty());

    place_order(&producer, 9).await.unwrap();
    assert_eq!(fake.take_sent("orders").len(), 1);
    assert_eq!((fake.sent("orders").len(), fake.sent("other").len()), (2, 0));
    assert_eq!(fake.topics(), ["orders"]);
}

#[derive(Deserialize)]
struct Order {
    id: u32,
}

#[tokio::test]
async fn orders_are_handled_and_what_cannot_be_goes_to_the_dead_letters() {
    // A broker, and a client for it.
    let broker = EmbeddedBroker::start().await.unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("billing")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();

    // Feed it.
    broker.feed("orders", 0, NewRecord::new(r#"{"id":1}"#).key("a").header("trace", "t-1")).unwrap();
    broker.feed("orders", 0, NewRecord::new("not json")).unwrap();
    broker.feed("orders", 0, NewRecord::new(r#"{"id":3}"#)).unwrap();
    broker.create_topic("orders-dead", 1).unwrap();

    // Break it: the first commit is applied, and its answer never comes.
    let lost = Fault::on(ApiKey::OffsetCommit).times(1).effect(Effect::DisconnectAfter);
    broker.control().inject(lost);
    broker.control().fail(ApiKey::FindCoordinator, 2, ResponseError::CoordinatorNotAvailable);

    // Run the handlers until the work is done.
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |order: Message<Order>| match order.value.id {
            1 | 3 => Ok(()),
            id => Err(format!("no such order: {id}").into()),
        })
        .unwrap()
        .error_policy(ErrorPolicy::retry(1, Duration::from_millis(1)).then_dead_letter("orders-dead"))
        .unwrap();
    let done = Notify::new();
    let work = consumer.run(done.notified());
    let checks = async {
        // Assert commits and dead letters.
        assert_eq!(broker.wait_until_committed("billing", "orders", 0, 3, SOON).await.unwrap(), 3);
        let dead = broker.wait_for_records("orders-dead", 1, SOON).await.unwrap();
        assert_eq!(dead[&0].len(), 1);
        assert_eq!(dead[&0][0].value_text(), Some("not json"));
        assert_eq!(dead[&0][0].header_text("dtkafka-dead-letter-offset"), Some("1"));
        done.notify_one();
    };
    let (ran, ()) = tokio::join!(work, checks);
    ran.unwrap();
    consumer.close().await.unwrap();
    broker.shutdown().await;
}
