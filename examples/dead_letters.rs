//! What becomes of records that cannot be handled: tried again, put aside in a topic, looked at, and sent back when the
//! cause is mended.
//!
//! `cargo run --example dead_letters`

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dtkafka::{Consumer, DeadLetter, ErrorPolicy, Message, ProducerRecord, Replay};
use futures_util::StreamExt as _;
use support::{Cluster, Outcome};

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("payments", 1), ("payments-dead", 1)]).await?;
    let producer = kafka.get_producer().await?;
    for amount in [10_i64, 20, 30] {
        producer.send("payments", &amount).key("ann").await?.await?;
    }
    producer.send_record(ProducerRecord::new("payments").key("bob").value("{ not JSON")).await?.await?;
    producer.close().await?;

    let bank_is_up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&bank_is_up);
    let mut consumer = Consumer::new(&kafka, ["payments"])?
        .register_handler("payments", async move |payment: Message<i64>| {
            if payment.value == 20 && !is_up.load(Relaxed) {
                Err("the bank is down")?;
            }
            println!("  paid {} (attempt {})", payment.value, payment.attempt);
            Ok(())
        })?
        .error_policy(ErrorPolicy::retry(3, Duration::from_millis(20)).then_dead_letter("payments-dead"))?;

    println!("Four payments, of which one meets a bank that is down and one is no JSON:");
    let mut handled = 0;
    while handled < 4 {
        handled += consumer.consume(Duration::from_secs(1)).await?;
    }

    println!("\nWhat was put aside:");
    let letters = kafka.get_consumer_with(["payments-dead"], |c| c.group_id("auditors")).await?;
    let mut stream = letters.stream().take(2);
    while let Some(record) = stream.next().await {
        let letter = DeadLetter::read(record?);
        println!(
            "  {}-{} offset {}, after {} attempts: {}",
            letter.record.topic, letter.record.partition, letter.record.offset, letter.attempts, letter.error
        );
    }
    drop(stream);
    letters.close(Duration::from_secs(10)).await?;

    println!("\nThe bank is up again. What it refused is sent back; what is no JSON stays:");
    bank_is_up.store(true, Relaxed);
    let replayed = Replay::from_dead_letters(&kafka, "payments-dead")
        .filter(|letter| letter.error.contains("the bank is down"))
        .run()
        .await?;
    while handled < 5 {
        handled += consumer.consume(Duration::from_secs(1)).await?;
    }
    consumer.close().await?;
    println!("{} of {} letters were sent back.", replayed.sent, replayed.read);
    Ok(())
}
