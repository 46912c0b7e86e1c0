//! A service in one file: takes orders, writes invoices, tries again what may pass, and sends away what does not.
//!
//! `cargo run --example orders_service`. Each order is invoiced at least once; the invoice has the order's id as its key, so
//! that whoever reads invoices can tell a second one.

mod support;

use std::{sync::Arc, time::Duration};

use dtkafka::{Consumer, ErrorPolicy, KafkaProducer, Message, Ordering};
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

#[derive(Debug, thiserror::Error)]
#[error("order {0} costs less than nothing")]
struct Impossible(u32);

struct Service {
    invoices: KafkaProducer,
}

impl Service {
    async fn invoice(&self, order: Message<Order>) -> Outcome {
        let Order { id, customer, euros } = &order.value;
        if *euros < 0 {
            return Err(Impossible(*id).into());
        }
        if order.attempt == 1 && id % 4 == 0 {
            return Err(format!("the bank did not answer for {customer}").into());
        }
        let key = id.to_string();
        let invoice = Invoice { order: *id, cents: euros * 100 };
        // Acknowledged before the order counts as handled.
        let written = self.invoices.send("invoices", &invoice).key(&key).await?.await?;
        println!("  order {id} of {customer}: invoice at {}-{}", written.partition, written.offset);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("orders", 3), ("invoices", 3), ("orders-dead", 1)]).await?;

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

    let service = Arc::new(Service { invoices: kafka.get_producer().await? });
    let handler = Arc::clone(&service);
    let mut consumer = Consumer::new(&kafka, ["orders"])?
        .ordering(Ordering::Key) // the orders of one customer one after the other
        .concurrency(16)
        .register_handler("orders", async move |order: Message<Order>| handler.invoice(order).await)?
        .error_policy(
            ErrorPolicy::retry(5, Duration::from_millis(50))
                .jitter()
                .never_retry::<Impossible>()
                .deadline(Duration::from_secs(10))
                .then_dead_letter("orders-dead"),
        )?;
    println!("The service handles them:");
    let handle = consumer.handle();
    consumer
        .run(async {
            while handle.metrics().handled < 10 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await?;
    service.invoices.close().await?;
    let done = consumer.metrics();
    println!(
        "Done: {} orders, {} calls failed, {} tried again, {} in the dead letter topic.",
        done.handled, done.failed, done.retried, done.dead_lettered
    );
    Ok(())
}
