//! JSON records through a handler, and through `poll` and serde_json.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use dtkafka::{Consumer, HandlerResult, KafkaInstance, Message};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Args, Failure},
    modes::STALL,
    report::Report,
};

/// A typical event of ten fields, to be sent.
#[derive(Serialize)]
pub(crate) struct Event {
    id: u64,
    kind: &'static str,
    user: u64,
    session: &'static str,
    amount: f64,
    currency: &'static str,
    country: &'static str,
    success: bool,
    retries: u32,
    tags: [&'static str; 3],
}

impl Event {
    pub(crate) fn new(id: u64) -> Self {
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

/// The same as it is received.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only read")]
struct Received {
    id: u64,
    kind: String,
    user: u64,
    session: String,
    amount: f64,
    currency: String,
    country: String,
    success: bool,
    retries: u32,
    tags: [String; 3],
}

/// By hand: `poll` and serde_json.
pub(crate) async fn polled(
    args: &Args,
    kafka: &KafkaInstance,
    started: Instant,
    cpu_before: f64,
) -> Result<(), Failure> {
    let consumer = kafka.get_consumer([args.topic.as_str()]).await?;
    let (mut records, mut progress) = (0, Instant::now());
    while records < args.records {
        let polled = consumer.poll(Duration::from_secs(1)).await?;
        for record in polled.records() {
            black_box(serde_json::from_slice::<Received>(record.value().unwrap_or_default())?);
        }
        records += polled.len() as u64;
        stalled(polled.len(), records, &mut progress)?;
    }
    consumer.commit().await?;
    let elapsed = started.elapsed();
    consumer.close(Duration::from_secs(10)).await?;
    Report { records, value_bytes: 0, elapsed, cpu_before, extra: vec![] }.print(args)
}

/// By a typed handler: `run` until all are handled, or calls of `consume`.
pub(crate) async fn handled(
    args: &Args,
    kafka: &KafkaInstance,
    started: Instant,
    cpu_before: f64,
) -> Result<(), Failure> {
    let mut consumer = Consumer::new(kafka, [args.topic.as_str()])?.ordering(args.ordering);
    if args.concurrency > 0 {
        consumer = consumer.concurrency(args.concurrency);
    }
    let topic = args.topic.as_str();
    let mut consumer = if args.pause.is_zero() {
        consumer.register_handler(topic, async |message: Message<Received>| -> HandlerResult {
            black_box(&message.value);
            Ok(())
        })?
    } else {
        let pause = args.pause;
        consumer.register_handler(topic, async move |message: Message<Received>| -> HandlerResult {
            tokio::time::sleep(pause).await;
            black_box(&message.value);
            Ok(())
        })?
    };
    if args.api == "facade" {
        let handle = consumer.handle();
        let mut elapsed = Duration::ZERO;
        let done = async {
            let (mut records, mut progress) = (0, Instant::now());
            while records < args.records {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let handled = handle.metrics().handled;
                stalled((handled - records) as usize, handled, &mut progress)?;
                records = handled;
            }
            elapsed = started.elapsed();
            Ok::<_, Failure>(())
        };
        let mut outcome = Ok(());
        consumer.run(async { outcome = done.await }).await?;
        outcome?;
        let records = consumer.metrics().handled;
        return Report { records, value_bytes: 0, elapsed, cpu_before, extra: vec![] }.print(args);
    }
    let (mut records, mut progress) = (0, Instant::now());
    while records < args.records {
        let handled = consumer.consume(Duration::from_secs(1)).await?;
        records += handled as u64;
        stalled(handled, records, &mut progress)?;
    }
    consumer.commit().await?;
    let elapsed = started.elapsed();
    consumer.close().await?;
    Report { records, value_bytes: 0, elapsed, cpu_before, extra: vec![] }.print(args)
}

fn stalled(new: usize, records: u64, progress: &mut Instant) -> Result<(), Failure> {
    if new > 0 {
        *progress = Instant::now();
    } else if progress.elapsed() > STALL {
        return Err(format!("stalled at {records} records").into());
    }
    Ok(())
}
