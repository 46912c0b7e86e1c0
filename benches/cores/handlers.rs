//! The way of 1,000 JSON records from the client to a typed handler, and what serde_json alone takes of it.

use divan::{Bencher, black_box, counter::ItemsCount};
use dtkafka::{Consumer, ConsumerRecord, KafkaConfig, KafkaInstance, Message, bench_support};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    sku: String,
    quantity: u32,
    cents: i64,
    currency: String,
    status: String,
    express: bool,
    weight: f64,
    tags: Vec<String>,
}

fn values() -> Vec<Vec<u8>> {
    let order = |id: u64| Order {
        id,
        customer: format!("customer-{}", id * 7919 % 20_000),
        sku: format!("SKU-{:05}", id * 104_729 % 5_000),
        quantity: (id % 9) as u32 + 1,
        cents: (id * 31_337 % 100_000) as i64,
        currency: "EUR".to_owned(),
        status: "shipped".to_owned(),
        express: id.is_multiple_of(2),
        weight: id as f64 / 8.0,
        tags: vec!["web".to_owned(), "returning".to_owned()],
    };
    (0..1000).map(|id| serde_json::to_vec(&order(id)).unwrap()).collect()
}

fn records() -> Vec<ConsumerRecord> {
    bench_support::records("orders", b"customer-0000042", &values()).unwrap()
}

/// The consumer's own loop, without a connection.
fn dispatch(bencher: Bencher<'_, '_>, register: impl FnOnce(Consumer) -> Consumer) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let config = KafkaConfig::new().set_kafka_url("kafka://localhost:9092?group_id=bench");
    let kafka = KafkaInstance::new(config).unwrap();
    let mut consumer = register(Consumer::new(&kafka, ["orders"]).unwrap());
    let records = records();
    bencher.counter(ItemsCount::new(records.len())).with_inputs(|| records.clone()).bench_local_values(
        |records| {
            let expected = records.len();
            let handled = runtime.block_on(bench_support::dispatch(&mut consumer, records)).unwrap();
            assert_eq!(handled, expected);
        },
    );
}

/// To a handler of a type with ten fields.
#[divan::bench]
fn json(bencher: Bencher<'_, '_>) {
    dispatch(bencher, |consumer| {
        consumer
            .register_handler("orders", async |order: Message<Order>| {
                black_box(&order.value);
                Ok(())
            })
            .unwrap()
    });
}

/// To a handler of bytes: the dispatch alone.
#[divan::bench]
fn raw(bencher: Bencher<'_, '_>) {
    dispatch(bencher, |consumer| {
        consumer
            .register_raw_handler("orders", async |record: ConsumerRecord| {
                black_box(&record.value);
                Ok(())
            })
            .unwrap()
    });
}

/// No client at all.
#[divan::bench]
fn serde_json_alone(bencher: Bencher<'_, '_>) {
    let values = values();
    bencher.counter(ItemsCount::new(values.len())).bench_local(|| {
        for value in &values {
            black_box(serde_json::from_slice::<Order>(black_box(value)).unwrap());
        }
    });
}
