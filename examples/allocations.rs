//! Allocations per record in steady state, of the whole process: `allocations BROKERS [RECORDS]`.
//!
//! Creates a topic, produces and consumes twice through the default clients, and counts the second time, when buffers
//! and connections are there. What is left is per batch, per request and per poll, not per record.

use std::{alloc::System, error::Error, time::Duration};

use dtkafka::{Delivery, KafkaConfig, KafkaConsumer, KafkaInstance, KafkaProducer, NewTopic, ProducerRecord};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().ok_or("name the brokers: HOST:PORT[,HOST:PORT]")?;
    let records: u64 = arguments.next().map_or(Ok(500_000), |text| text.parse())?;
    let name = format!("allocations-{}", std::process::id());
    let config = KafkaConfig::new()
        .set_bootstrap_servers(brokers.as_str())
        .set_group_id(name.as_str())
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config)?;
    let admin = kafka.admin().await?;
    admin.create_topic(NewTopic::new(&name).partitions(6)).await?;

    let producer = kafka.get_producer().await?;
    produce(&producer, &name, records).await?;
    let region = Region::new(ALLOCATOR);
    produce(&producer, &name, records).await?;
    tell("produce", &region, records);
    producer.close().await?;

    let consumer = kafka.get_consumer([name.as_str()]).await?;
    consume(&consumer, records).await?;
    let region = Region::new(ALLOCATOR);
    let seen = consume(&consumer, records - records / 10).await?;
    tell("consume", &region, seen);
    consumer.close(Duration::from_secs(10)).await?;
    admin.delete_topics([name.as_str()]).await?;
    Ok(())
}

fn tell(what: &str, region: &Region<'_, System>, records: u64) {
    let change = region.change();
    let calls = change.allocations + change.reallocations;
    println!(
        "{what}: {:.4} allocations and {:.1} bytes per record ({records} records of 100 bytes)",
        calls as f64 / records as f64,
        change.bytes_allocated as f64 / records as f64,
    );
}

async fn produce(producer: &KafkaProducer, topic: &str, records: u64) -> Result<(), Failure> {
    let value = [b'x'; 100];
    let mut window: std::collections::VecDeque<Delivery> = std::collections::VecDeque::with_capacity(1 << 15);
    for i in 0..records {
        let record = ProducerRecord::new(topic).value(&value);
        window.push_back(producer.send_record(record.key(&i.to_be_bytes())).await?);
        if window.len() == 1 << 15 {
            for delivery in window.drain(..1 << 13) {
                delivery.await?;
            }
        }
    }
    for delivery in window {
        delivery.await?;
    }
    Ok(())
}

async fn consume(consumer: &KafkaConsumer, records: u64) -> Result<u64, Failure> {
    let mut seen = 0;
    while seen < records {
        for (_, records) in &consumer.poll(Duration::from_secs(10)).await? {
            for record in records {
                seen += u64::from(record.value().is_some());
            }
        }
    }
    Ok(seen)
}
