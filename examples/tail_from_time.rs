//! Follows a topic from a point in time on, without a group: what was written in the last seconds, then what comes.
//!
//! `cargo run --example tail_from_time` shows eight lines of the broker inside this process. On your own cluster, from ten
//! minutes ago: `KAFKA_URL=kafka://host:9092 TAIL_TOPIC=orders TAIL_SECONDS=600 cargo run --example tail_from_time`.

#![allow(clippy::disallowed_methods, reason = "an example may read the clock")]

mod support;

use std::time::{Duration, SystemTime};

use dtkafka::{KafkaInstance, TopicPartition};
use futures_util::StreamExt as _;
use support::{Cluster, Outcome};

async fn tail(kafka: &KafkaInstance, topic: &str, from: SystemTime, lines: usize) -> Outcome {
    let none: [&str; 0] = [];
    let consumer = kafka.get_consumer_with(none, |c| c.enable_auto_commit(false)).await?;
    let count = kafka.admin().await?.describe_topic(topic).await?.partitions.len() as i32;
    let partitions: Vec<_> = (0..count).map(|number| TopicPartition::new(topic, number)).collect();
    consumer.assign(partitions.iter().cloned())?;
    consumer.seek_to_beginning(&partitions)?;
    let recent = consumer.stream().filter(|record| {
        let is_recent = record.as_ref().map_or(true, |record| record.time() >= Some(from));
        std::future::ready(is_recent)
    });
    let mut recent = std::pin::pin!(recent.take(lines));
    while let Some(record) = recent.next().await {
        let record = record?;
        let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"(tombstone)"));
        println!("{}-{} {} {value}", record.topic, record.partition, record.key_str().unwrap_or("-"));
    }
    consumer.close(Duration::from_secs(10)).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let now = SystemTime::now();
    if let Ok(topic) = std::env::var("TAIL_TOPIC") {
        let seconds = std::env::var("TAIL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
        let kafka = KafkaInstance::new(cluster.config.clone())?;
        tokio::select! {
            tailed = tail(&kafka, &topic, now - Duration::from_secs(seconds), usize::MAX) => return tailed,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
    let kafka = cluster.with_topics(&[("events", 2)]).await?;
    let producer = dtkafka::Producer::new(&kafka).await?;
    for (number, age) in [(1, 3600), (2, 1800), (3, 30), (4, 20), (5, 10), (6, 5)] {
        let event = serde_json::json!({"number": number, "seconds_ago": age});
        producer
            .send("events", &event)
            .key(format!("k{number}"))
            .timestamp(now - Duration::from_secs(age))
            .await?;
    }
    println!("Six events were written, two of them long ago. From a minute ago on:");
    let later = async {
        for number in 7..=10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            producer.send("events", &serde_json::json!({"number": number, "seconds_ago": 0})).await?;
        }
        Ok::<_, dtkafka::Error>(())
    };
    let (tailed, written) = tokio::join!(tail(&kafka, "events", now - Duration::from_secs(60), 8), later);
    written?;
    producer.close().await?;
    tailed
}
