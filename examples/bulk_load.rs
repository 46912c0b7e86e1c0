//! Sends many records as fast as they go, with a line of progress, and says what was acknowledged and what failed.
//!
//! `cargo run --example bulk_load` (with `--release` for real numbers).

#![allow(clippy::disallowed_methods, reason = "an example may read the clock")]

mod support;

use std::time::{Duration, Instant};

use dtkafka::{Acks, Compression, Producer};
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
    let producer = Producer::new_with(&kafka, settings).await?;

    println!("Loading {RECORDS} events:");
    let begun = Instant::now();
    let events = (0..RECORDS).map(|id| (id, json!({"id": id, "type": "click"})));
    // Taken from the iterator as there is memory for them: `buffer.memory` is all the back-pressure there is.
    let mut load = producer.bulk_load("events", events).every(Duration::from_millis(250));
    let (mut delivered, mut failed) = (0, 0);
    while let Some(progress) = load.next().await {
        println!("  {:3} %: {progress}", progress.delivered * 100 / RECORDS);
        for (number, error) in &progress.failures {
            eprintln!("  record {number}: {error}");
        }
        (delivered, failed) = (progress.delivered, progress.failed);
    }
    producer.close().await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("Done: {delivered} acknowledged, {failed} failed, {:.0} a second.", RECORDS as f64 / seconds);
    if failed > 0 { Err("not everything was delivered".into()) } else { Ok(()) }
}
