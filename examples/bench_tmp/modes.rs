//! What is measured.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dtkafka::{
Delivery, KafkaConfig, KafkaInstance, KafkaProducer, ProducerRecord,
};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Args, Failure, Payload, key},
    report::{Report, Touch, cpu},
};

/// Deliveries kept before the oldest are awaited: enough for every batch in flight, little enough to stay in the cache.
const WINDOW: usize = 1 << 15;
/// Without progress for this long the run has failed.
const STALL: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.mode.as_str() {
        "produce" => produce(&args).await,
        "pingpong" => pingpong(&args).await,
        other => Err(format!("unknown mode {other}: say produce, consume, latency or pingpong").into()),
    }
}

fn kafka(args: &Args) -> Result<KafkaInstance, Failure> {
    let mut config = KafkaConfig::new().set_bootstrap_servers(args.brokers.as_str());
    if !args.group.is_empty() {
        config = config.set_group_id(args.group.as_str());
    }
    Ok(KafkaInstance::new(config.set_auto_offset_reset("earliest").set_enable_auto_commit(false))?)
}

async fn producer(args: &Args, kafka: &KafkaInstance, linger_ms: u64) -> Result<KafkaProducer, Failure> {
    let producer = kafka.get_producer_with(|settings| {
        settings
            .set("compression.type", args.compression.as_str())
            .set("acks", args.acks.as_str())
            .set("linger.ms", linger_ms)
            .set("batch.size", args.batch_bytes)
            .set("buffer.memory", 64 << 20)
    });
    Ok(producer.await?)
}

/// A typical event of ten fields.
#[derive(Serialize, Deserialize)]
struct Event<'a> {
    id: u64,
    kind: &'a str,
    user: u64,
    session: &'a str,
    amount: f64,
    currency: &'a str,
    country: &'a str,
    success: bool,
    retries: u32,
    tags: [&'a str; 3],
}

impl Event<'static> {
    fn new(id: u64) -> Self {
        Self {
            id,
            kind: "order.created",
            user: id * 31 % 100_003,
            session: "6f1f5c1e-8d0c-4f3c-9f3e-52d2b7f0a1c4",
            amount: (id % 10_000) as f64 / 100.0,
            currency: "EUR",
            country: "NL",
            success: !id.is_multiple_of(17),
            retries: (id % 3) as u32,
            tags: ["web", "checkout", "summer"],
        }
    }
}

async fn produce(args: &Args) -> Result<(), Failure> {
    let payload = Arc::new(Payload::new(args)?);
    let cpu_before = cpu().map(|(user, system)| user + system)?;
    let started = Instant::now();
    let kafka = kafka(args)?;
    let producer = producer(args, &kafka, args.linger_ms).await?;
    let mut tasks = Vec::new();
    for task in 0..args.tasks {
        let (producer, payload, args) = (producer.clone(), Arc::clone(&payload), args.clone());
        tasks.push(tokio::spawn(async move { produce_share(&args, &producer, &payload, task, started).await }));
    }
    let mut first_ack = Duration::MAX;
    for task in tasks {
        first_ack = first_ack.min(task.await??);
    }
    let elapsed = started.elapsed();
    producer.close().await?;
    let value_bytes = args.records * args.size as u64;
    let first_ack = ("first_ack_s", format!("{:.6}", first_ack.as_secs_f64()));
    Report { records: args.records, value_bytes, elapsed, cpu_before, extra: vec![first_ack] }.print(args)
}

/// Every `tasks`th record. Returns when the first was acknowledged.
async fn produce_share(
    args: &Args,
    producer: &KafkaProducer,
    payload: &Payload,
    task: u64,
    started: Instant,
) -> Result<Duration, Failure> {
    let mut window: VecDeque<Delivery> = VecDeque::with_capacity(WINDOW);
    let mut first_ack = None;
    let facade = args.api == "facade";
    for i in (task..args.records).step_by(args.tasks as usize) {
        let key = key(i);
        let delivery = if facade {
            producer.send(&args.topic, &Event::new(i)).key(&key).await?
        } else {
            producer
                .send_record(ProducerRecord::new(&args.topic).key(&key).value(payload.value(i)))
                .await?
        };
        window.push_back(delivery);
        if window.len() == WINDOW {
            for delivery in window.drain(..WINDOW / 4) {
                check(delivery).await?;
                first_ack.get_or_insert_with(|| started.elapsed());
            }
        }
    }
    for delivery in window {
        check(delivery).await?;
        first_ack.get_or_insert_with(|| started.elapsed());
    }
    Ok(first_ack.unwrap_or_default())
}

async fn check(delivery: Delivery) -> Result<(), Failure> {
    match delivery.await?.offset {
        offset if offset >= 0 => Ok(()),
        _ => Err("a record was acknowledged without an offset".into()),
    }
}

/// One record at a time, each awaited.
async fn pingpong(args: &Args) -> Result<(), Failure> {
    let payload = Payload::new(args)?;
    let cpu_before = cpu().map(|(user, system)| user + system)?;
    let started = Instant::now();
    let kafka = kafka(args)?;
    let mut latencies = Vec::with_capacity(args.records as usize);
    let mut sent = started;
    let producer = producer(args, &kafka, 0).await?;
    for i in 0..args.records {
        let record = key(i);
        let record = ProducerRecord::new(&args.topic).key(&record).value(payload.value(i));
        check(producer.send_record(record).await?).await?;
        latencies.push(sent.elapsed());
        sent = Instant::now();
    }
    let elapsed = started.elapsed();
    producer.close().await?;
    let value_bytes = args.records * args.size as u64;
    Report { records: args.records, value_bytes, elapsed, cpu_before, extra: vec![] }
        .percentiles(latencies)
        .print(args)
}

