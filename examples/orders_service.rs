//! A service in one file: takes orders and writes invoices, each exactly once, and sends away what makes no sense.
//!
//! `cargo run --example orders_service`. Invoices, rejected orders and the offsets of the orders are committed in one
//! transaction: whoever reads invoices with `isolation.level=read_committed` never sees one twice, although the service is
//! killed in the middle of its work here.

mod support;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use dtkafka::{ExactlyOnce, IsolationLevel, KafkaInstance, RecordRef, Transaction};
use serde::{Deserialize, Serialize};
use support::{Cluster, Outcome};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u32,
    customer: String,
    euros: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Invoice {
    order: u32,
    cents: i64,
}

/// One order. What fails here ends the service and aborts its transaction, so what may pass is tried again here.
async fn invoice(order: RecordRef<'_>, output: &Transaction<'_>) -> dtkafka::Result<()> {
    let Order { id, customer, euros } = order.json()?;
    if euros < 0 {
        println!("  order {id} of {customer}: rejected");
        drop(output.send_record(order.forward_to("orders-rejected")).await?);
        return Ok(());
    }
    println!("  order {id} of {customer}");
    let key = id.to_string();
    // The commit waits for it, and does not come about without it.
    drop(output.send("invoices", &Invoice { order: id, cents: euros * 100 }).key(&key).await?);
    Ok(())
}

/// The service, until it has seen so many orders.
async fn serve(kafka: &KafkaInstance, orders: u32) -> Outcome {
    let (seen, (enough, mut is_enough)) = (AtomicU32::new(0), tokio::sync::mpsc::channel(1));
    let shutdown = async {
        is_enough.recv().await;
    };
    ExactlyOnce::new(kafka, ["orders"], "invoicing")
        .transactional_id("invoicing-1") // one for each instance, the same after its restart
        .commit_interval(Duration::from_millis(50))
        .run_until(shutdown, async |order, output| {
            invoice(order, output).await?;
            if seen.fetch_add(1, Relaxed) + 1 == orders {
                let _full = enough.try_send(());
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// The service, killed when it has worked on four orders and committed none of them.
async fn serve_and_be_killed(kafka: &KafkaInstance) {
    let (kill, mut killed) = tokio::sync::mpsc::channel(1);
    let seen = AtomicU32::new(0);
    let service = ExactlyOnce::new(kafka, ["orders"], "invoicing")
        .transactional_id("invoicing-1")
        .commit_interval(Duration::from_secs(60))
        .run(async |order, output| {
            if seen.fetch_add(1, Relaxed) == 4 {
                let _full = kill.try_send(());
                std::future::pending::<()>().await;
            }
            invoice(order, output).await
        });
    tokio::select! {
        ended = service => println!("  ended by itself: {ended:?}"),
        _ = killed.recv() => {}
    }
}

/// How often each order was invoiced, for those who read what is committed.
async fn invoices(kafka: &KafkaInstance) -> Outcome<BTreeMap<u32, u32>> {
    let settings =
        |c: dtkafka::ConsumerConfig| c.group_id("bookkeeping").isolation_level(IsolationLevel::ReadCommitted);
    let consumer = kafka.get_consumer_with(["invoices"], settings).await?;
    let mut count = BTreeMap::new();
    while count.len() < 9 {
        for record in consumer.poll(Duration::from_secs(10)).await?.records() {
            *count.entry(record.json::<Invoice>()?.order).or_default() += 1;
        }
    }
    consumer.close(Duration::from_secs(10)).await?;
    Ok(count)
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("orders", 1), ("invoices", 3), ("orders-rejected", 1)]).await?;

    println!("Ten orders arrive; number 7 makes no sense.");
    kafka
        .producer_context(async |producer| {
            for id in 1..=10 {
                let customer = ["ann", "bob", "cem"][id as usize % 3].to_owned();
                let order = Order { id, euros: if id == 7 { -5 } else { 10 * i64::from(id) }, customer };
                let _flushed = producer.send("orders", &order).key(&order.customer).await?;
            }
            Ok(())
        })
        .await?;

    println!("The service begins, and is killed in the middle of its first transaction:");
    serve_and_be_killed(&kafka).await;
    println!("It starts again:");
    serve(&kafka, 10).await?;

    let count = invoices(&kafka).await?;
    let twice = count.values().filter(|count| **count != 1).count();
    println!("Done: {} orders have an invoice, {twice} of them more than one.", count.len());
    if twice > 0 { Err("an order was invoiced twice".into()) } else { Ok(()) }
}
