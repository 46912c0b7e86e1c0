//! Produce, consume through a group, commit, resume: ends with 0 only if every record came once.
//!
//! `KAFKA_URL=kafkas://user:password@host:9093?sasl_mechanism=SCRAM-SHA-512&ssl_ca_location=ca.pem round_trip [RECORDS]`
//! Records are compressed with zstd. The first member of the group stops half-way, after a commit; the second must get
//! exactly the rest. tests/cross/no-c runs it on every target; what the client logs, also the TLS provider, goes to stderr.

use std::{collections::BTreeSet, error::Error, time::Duration};

use dtkafka::{Compression, ConsumerConfig, KafkaConfig, KafkaInstance, NewTopic};
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

const PARTITIONS: i32 = 3;
/// Also for an emulated CPU, where a handshake takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let url = std::env::var("KAFKA_URL").map_err(|_| "set KAFKA_URL")?;
    let records: u64 = std::env::args().nth(1).map_or(Ok(300), |text| text.parse())?;
    let run = format!("round-trip-{}", std::process::id());
    let kafka = KafkaInstance::new(KafkaConfig::new().set_kafka_url(url).set_group_id(run.as_str()))?;

    let admin = kafka.admin().await?;
    admin.create_topic(NewTopic::new(&run).partitions(PARTITIONS).replication_factor(1)).await?;
    produce(&kafka, &run, records).await?;

    let first = consume(&kafka, &run, records / 2).await?;
    let second = consume(&kafka, &run, records - first.len() as u64).await?;
    if let Some(twice) = first.intersection(&second).next() {
        return Err(format!("record {twice} came again after its commit").into());
    }
    if (first.len() + second.len()) as u64 != records {
        return Err(format!("{} and {} of {records} records came", first.len(), second.len()).into());
    }
    let lags = admin.group_lag(&run).await?.into_values();
    let behind: i64 = lags.map(|lag| Ok(lag?.lag)).sum::<dtkafka::Result<i64>>()?;
    if behind != 0 {
        return Err(format!("the group is {behind} records behind").into());
    }
    admin.delete_topic(&run).await?;
    println!(
        "round trip: {records} records produced with zstd, {} consumed and committed by one member, {} by the next",
        first.len(),
        second.len()
    );
    Ok(())
}

async fn produce(kafka: &KafkaInstance, topic: &str, records: u64) -> Result<(), Failure> {
    let producer = kafka.get_producer_with(|settings| settings.compression(Compression::Zstd)).await?;
    let mut deliveries = Vec::new();
    for n in 0..records {
        let value =
            json!({"n": n, "text": "the same words in every record, so that zstd has something to do"});
        deliveries.push(producer.send(topic, &value).key(n.to_string()).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(producer.close().await?)
}

/// Joins the group, takes at least `enough` records, commits after each poll, leaves.
async fn consume(kafka: &KafkaInstance, topic: &str, enough: u64) -> Result<BTreeSet<u64>, Failure> {
    let settings = |settings: ConsumerConfig| {
        let settings = settings.set("auto.offset.reset", "earliest").set("enable.auto.commit", false);
        settings.set("max.poll.records", 25)
    };
    let consumer = kafka.get_consumer_with([topic], settings).await?;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < enough {
        let polled = consumer.poll(PATIENCE).await?;
        if polled.is_empty() {
            return Err(
                format!("nothing came for {PATIENCE:?}; {} of {enough} records did", seen.len()).into()
            );
        }
        for record in polled.records() {
            let value: Value = record.json()?;
            let n = value["n"].as_u64().ok_or("a record without its number")?;
            if !seen.insert(n) {
                return Err(format!("record {n} came twice").into());
            }
        }
        consumer.commit().await?;
    }
    consumer.close(PATIENCE).await?;
    Ok(seen)
}
