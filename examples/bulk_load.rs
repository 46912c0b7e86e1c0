//! Sends many records as fast as they go, with a line of progress, and counts what was acknowledged and what failed.
//!
//! `cargo run --example bulk_load` (with `--release` for real numbers).

#![allow(clippy::disallowed_methods, reason = "an example may read the clock")]

mod support;

use std::time::{Duration, Instant};

use dtkafka::{Acks, Compression};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::json;
use support::{Cluster, Outcome};

const RECORDS: u64 = 50_000;

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("events", 6)]).await?;
    let settings = |p: dtkafka::ProducerConfig| {
        p.acks(Acks::All).compression(Compression::Lz4).linger(Duration::from_millis(5))
    };
    let producer = kafka.get_producer_with(settings).await?;

    println!("Loading {RECORDS} events:");
    let begun = Instant::now();
    let (mut delivered, mut failed, mut shown) = (0_u64, 0_u64, 0);
    let mut deliveries = FuturesUnordered::new();
    for id in 0..RECORDS {
        // Waits only when buffer.memory is full: that is all the back-pressure there is.
        deliveries.push(producer.send("events", &json!({"id": id, "type": "click"})).key(id).await?);
        // Answers are taken as they come, so that memory stays flat.
        while deliveries.len() > 10_000 {
            match deliveries.next().await {
                Some(Ok(_)) => delivered += 1,
                Some(Err(error)) => {
                    failed += 1;
                    eprintln!("  not delivered: {error}");
                }
                None => break,
            }
        }
        if id * 5 / RECORDS > shown {
            shown = id * 5 / RECORDS;
            println!("  {:3} % sent, {delivered} acknowledged, {failed} failed", shown * 20);
        }
    }
    producer.flush().await?;
    while let Some(delivery) = deliveries.next().await {
        if delivery.is_ok() { delivered += 1 } else { failed += 1 }
    }
    producer.close().await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("Done: {delivered} acknowledged, {failed} failed, {:.0} a second.", RECORDS as f64 / seconds);
    if failed > 0 { Err("not everything was delivered".into()) } else { Ok(()) }
}
