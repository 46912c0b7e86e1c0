//! How handlers are tested: as functions, without a broker; and with one inside the test.
//!
//! `cargo test --example unit_test` runs the tests below; `cargo run --example unit_test` does by hand what they do.

use std::sync::Arc;

use dtkafka::{HandlerResult, Message};
use serde::Deserialize;
use tokio::sync::Mutex;

#[derive(Debug, Clone, Deserialize)]
struct Order {
    id: u32,
    euros: i64,
}

/// What the handler needs: put together in the program, and otherwise in a test.
#[derive(Clone, Default)]
struct Ledger {
    booked: Arc<Mutex<Vec<(u32, i64)>>>,
}

async fn book(ledger: Ledger, order: Message<Order>) -> HandlerResult {
    if order.value.euros <= 0 {
        return Err(format!("order {} is worth nothing", order.value.id).into());
    }
    ledger.booked.lock().await.push((order.value.id, order.value.euros));
    Ok(())
}

#[tokio::main]
async fn main() {
    let ledger = Ledger::default();
    let good = book(ledger.clone(), Message::new("orders", Order { id: 7, euros: 30 })).await;
    let bad = book(ledger.clone(), Message::new("orders", Order { id: 8, euros: 0 })).await;
    println!("order 7: {good:?}\norder 8: {bad:?}\nbooked: {:?}", ledger.booked.lock().await);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dtkafka::{Consumer, ErrorPolicy, KafkaConfig, KafkaInstance};
    use dtkafka_testcontainers::EmbeddedBroker;
    use serde_json::json;

    use super::*;

    /// The handler alone: no broker, no runtime but the test's.
    #[tokio::test]
    async fn an_order_is_booked_and_a_worthless_one_refused() {
        let ledger = Ledger::default();
        book(ledger.clone(), Message::new("orders", Order { id: 7, euros: 30 })).await.unwrap();
        book(ledger.clone(), Message::new("orders", Order { id: 8, euros: 0 })).await.unwrap_err();
        assert_eq!(*ledger.booked.lock().await, [(7, 30)]);
    }

    /// The whole road, with a broker inside the test.
    #[tokio::test]
    async fn orders_are_booked_and_bad_ones_put_aside() {
        let broker = EmbeddedBroker::builder().start().await.unwrap();
        broker.create_topic("orders", 1).unwrap();
        let config = KafkaConfig::new()
            .set_bootstrap_servers(broker.bootstrap_servers())
            .set_group_id("bookkeeping")
            .set_auto_offset_reset("earliest");
        let kafka = KafkaInstance::new(config).unwrap();
        let producer = dtkafka::Producer::new(&kafka).await.unwrap();
        for euros in [30, 0] {
            producer.send("orders", &json!({"id": 7, "euros": euros})).await.unwrap();
        }
        let ledger = Ledger::default();
        let mut consumer = Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", {
                let ledger = ledger.clone();
                async move |order: Message<Order>| book(ledger.clone(), order).await
            })
            .unwrap()
            .error_policy(ErrorPolicy::dead_letter("orders-dead"))
            .unwrap();
        let mut handled = 0;
        while handled < 2 {
            handled += consumer.consume(Duration::from_secs(10)).await.unwrap();
        }
        consumer.close().await.unwrap();
        assert_eq!(*ledger.booked.lock().await, [(7, 30)]);
        assert_eq!(broker.records("orders-dead", 0).unwrap().len(), 1);
        assert_eq!(broker.committed("bookkeeping", "orders", 0), Some(2));
    }
}
