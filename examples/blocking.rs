//! The quick tour without `async`.
//!
//! `cargo run --example blocking --features blocking`

use std::{error::Error, sync::mpsc, time::Duration};

use dtkafka::{
    KafkaConfig, Message,
    blocking::{self, Consumer, KafkaInstance, Producer},
};
use dtkafka_testcontainers::EmbeddedBroker;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    // The broker of the test kit is async; everything else here is not.
    let broker = blocking::wait(EmbeddedBroker::builder().start())??;
    broker.create_topic("events", 3)?;
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("tour")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config)?;

    let producer = Producer::new(&kafka)?;
    for id in 1..=5 {
        let event = json!({"action": "order.created", "order_id": id});
        let written = producer.send("events", &event).key(id).timeout(Duration::from_secs(10)).wait()?;
        println!("sent order {id} to {}-{}", written.partition, written.offset);
    }
    producer.close()?;

    let (tell, told) = mpsc::channel();
    let mut consumer =
        Consumer::new(&kafka, ["events"])?.register_handler("events", move |event: Message<Value>| {
            println!("received {} from partition {}", event.value["order_id"], event.partition);
            tell.send(())?;
            Ok(())
        })?;
    while told.try_iter().count() + consumer.consume(Duration::from_secs(1))? == 0 {}
    let mut handled = consumer.handle().metrics().handled;
    while handled < 5 {
        consumer.consume(Duration::from_secs(1))?;
        handled = consumer.handle().metrics().handled;
    }
    consumer.close()?;
    println!("{handled} events were handled and committed.");
    Ok(())
}
