//! What is measured.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use dtkafka::{Delivery, KafkaConfig, KafkaConsumer, KafkaInstance, KafkaProducer, ProducerRecord};

use crate::{
    args::{Args, Failure, MODES, Payload, key},
    copy::copy,
    handlers::{self, Event},
    members::members,
    rebalance::rebalance,
    report::{Report, Touch, cpu},
    scaling::scaling,
};

/// Bytes sent before the oldest deliveries are awaited: enough for every batch in flight to six partitions.
const WINDOW_BYTES: usize = 12 << 20;
/// And records, where they are small.
const WINDOW_RECORDS: usize = 1 << 15;
/// Without progress for this long the run has failed.
pub(crate) const STALL: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    match args.mode.as_str() {
        "produce" => produce(&args).await,
        "consume" => consume(&args).await,
        "latency" => latency(&args).await,
        "pingpong" => pingpong(&args).await,
        "members" => members(&args).await,
        "copy" => copy(&args).await,
        "rebalance" => rebalance(&args).await,
        "scaling" => scaling(&args).await,
        other => Err(format!("unknown mode {other}: say {MODES}").into()),
    }
}

pub(crate) fn kafka(args: &Args) -> Result<KafkaInstance, Failure> {
    let mut config = KafkaConfig::new().set_bootstrap_servers(args.brokers.as_str());
    if !args.group.is_empty() {
        config = config.set_group_id(args.group.as_str());
    }
    // TLS with the authority in the file BENCH_CA.
    if let Ok(ca) = std::env::var("BENCH_CA") {
        config = config.set("security.protocol", "SSL").set("ssl.ca.location", ca);
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
            .set("max.in.flight.requests.per.connection", args.in_flight)
            .set("buffer.memory", 64 << 20)
    });
    Ok(producer.await?)
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
        tasks.push(tokio::spawn(
            async move { produce_share(&args, &producer, &payload, task, started).await },
        ));
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

/// A task's share of the records, in a row: the values of a payload are then read in order, however many tasks there are.
/// Returns when the first was acknowledged.
async fn produce_share(
    args: &Args,
    producer: &KafkaProducer,
    payload: &Payload,
    task: u64,
    started: Instant,
) -> Result<Duration, Failure> {
    let most = match args.window {
        0 => (WINDOW_BYTES / (args.size + 16)).clamp(1, WINDOW_RECORDS).div_ceil(args.tasks as usize),
        window => window,
    };
    let mut window: VecDeque<Delivery> = VecDeque::with_capacity(most);
    let mut first_ack = None;
    let mut json = Vec::new();
    let first_of = |task: u64| args.records * task / args.tasks;
    for i in first_of(task)..first_of(task + 1) {
        let key = key(if args.keys == 0 { i } else { i % args.keys });
        let record = || ProducerRecord::new(&args.topic).key(&key);
        let delivery = match args.api.as_str() {
            "facade" => producer.send(&args.topic, &Event::new(i)).key(&key).await?,
            "json" => {
                json.clear();
                serde_json::to_writer(&mut json, &Event::new(i))?;
                producer.send_record(record().value(&json)).await?
            }
            _ => producer.send_record(record().value(payload.value(i))).await?,
        };
        window.push_back(delivery);
        if window.len() == most {
            for delivery in window.drain(..most.div_ceil(4)) {
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

async fn consume(args: &Args) -> Result<(), Failure> {
    let cpu_before = cpu().map(|(user, system)| user + system)?;
    let started = Instant::now();
    let kafka = kafka(args)?;
    match args.api.as_str() {
        "facade" | "consume" => return handlers::handled(args, &kafka, started, cpu_before).await,
        "json" => return handlers::polled(args, &kafka, started, cpu_before).await,
        _ => {}
    }
    let consumer = kafka.get_consumer([args.topic.as_str()]).await?;
    let mut touch = Touch::default();
    let mut first_record = Duration::ZERO;
    let mut progress = Instant::now();
    while touch.records < args.records {
        let records = consumer.poll(Duration::from_secs(1)).await?;
        if records.is_empty() {
            if progress.elapsed() > STALL {
                return Err(format!("stalled at {} records", touch.records).into());
            }
            continue;
        }
        if touch.records == 0 {
            first_record = started.elapsed();
        }
        progress = Instant::now();
        for (_, records) in &records {
            for record in records {
                touch.record(record.key().unwrap_or_default(), record.value().unwrap_or_default());
            }
        }
    }
    consumer.commit().await?;
    let elapsed = started.elapsed();
    consumer.close(Duration::from_secs(10)).await?;
    Report { records: touch.records, value_bytes: 0, elapsed, cpu_before, extra: vec![] }
        .touched(&touch, first_record)
        .print(args)
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

/// From the paced send of a record to its receipt by a consumer of a group. The topic must be fresh.
async fn latency(args: &Args) -> Result<(), Failure> {
    const WARM_UP: u64 = 64;
    if args.size < 16 {
        return Err("--size must be 16 or more: the value carries its number and time".into());
    }
    let cpu_before = cpu().map(|(user, system)| user + system)?;
    let args = &Args { group: format!("{}-latency", args.topic), ..args.clone() };
    let kafka = kafka(args)?;
    let producer = producer(args, &kafka, 0).await?;
    let epoch = Instant::now();
    for i in 0..WARM_UP {
        let value = vec![0; args.size];
        check(producer.send_record(ProducerRecord::new(&args.topic).key(&key(i)).value(&value)).await?)
            .await?;
    }
    let consumer = kafka.get_consumer([args.topic.as_str()]).await?;
    receive(&consumer, WARM_UP, |_| {}).await?;

    let started = Instant::now();
    let (handle, share, clone) = (tokio::runtime::Handle::current(), args.clone(), producer.clone());
    let sender = tokio::task::spawn_blocking(move || pace(&handle, &share, &clone, epoch));
    let mut latencies = Vec::with_capacity(args.records as usize);
    receive(&consumer, args.records, |value| {
        let sent = value.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        latencies.push(epoch.elapsed().saturating_sub(Duration::from_nanos(sent.unwrap_or_default())));
    })
    .await?;
    let elapsed = started.elapsed();
    sender.await??;
    producer.close().await?;
    consumer.close(Duration::from_secs(10)).await?;
    let value_bytes = args.records * args.size as u64;
    Report { records: args.records, value_bytes, elapsed, cpu_before, extra: vec![] }
        .percentiles(latencies)
        .print(args)
}

/// Sends record `i` at `i / rate`, however long the others take. Has a thread of its own: timers of the runtime are too coarse.
fn pace(
    handle: &tokio::runtime::Handle,
    args: &Args,
    producer: &KafkaProducer,
    epoch: Instant,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut deliveries = VecDeque::new();
    let mut value = vec![b'x'; args.size];
    for i in 0..args.records {
        let due = start + Duration::from_secs_f64(i as f64 / args.rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        value[..8].copy_from_slice(&i.to_le_bytes());
        value[8..16].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_le_bytes());
        let record = key(i);
        let record = ProducerRecord::new(&args.topic).key(&record).value(&value);
        deliveries.push_back(handle.block_on(producer.send_record(record))?);
        if deliveries.len() > WINDOW_RECORDS {
            handle.block_on(check(deliveries.pop_front().ok_or("no delivery")?))?;
        }
    }
    for delivery in deliveries {
        handle.block_on(check(delivery))?;
    }
    Ok(())
}

async fn receive(consumer: &KafkaConsumer, count: u64, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    let mut received = 0;
    let mut progress = Instant::now();
    while received < count {
        let records = consumer.poll(Duration::from_secs(1)).await?;
        if !records.is_empty() {
            progress = Instant::now();
        } else if progress.elapsed() > STALL {
            return Err(format!("stalled at {received} records").into());
        }
        for record in records.records() {
            each(record.value().unwrap_or_default());
            received += 1;
        }
    }
    Ok(())
}
