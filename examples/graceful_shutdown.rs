//! A consumer that ends well: told to stop, it finishes what it is at, commits, leaves its group, and the next one goes on
//! exactly there.
//!
//! `cargo run --example graceful_shutdown` stops by itself. In a service it is `consumer.run_until_signal()`, which waits for
//! SIGTERM or ctrl-c.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use dtkafka::{Consumer, KafkaInstance, Message};
use support::{Cluster, Outcome};

fn consumer(kafka: &KafkaInstance, handled: &Arc<AtomicU32>) -> dtkafka::Result<Consumer> {
    let count = Arc::clone(handled);
    Consumer::new(kafka, ["jobs"])?
        .drain_timeout(Duration::from_secs(10))
        .register_handler("jobs", async move |job: Message<u32>| {
            let token = job.cancellation();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(30)) => {}
                // A handler may look itself, and end sooner with an error: its record comes again.
                () = token.cancelled() => println!("  job {} hears that it is time to end, and finishes", job.value),
            }
            count.fetch_add(1, Relaxed);
            Ok(())
        })
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("jobs", 2)]).await?;
    kafka
        .producer_context(async |producer| {
            for id in 0..40_u32 {
                let _flushed = producer.send("jobs", &id).partition((id % 2) as i32).await?;
            }
            Ok(())
        })
        .await?;

    let handled = Arc::new(AtomicU32::new(0));
    println!("Forty jobs wait. A consumer begins, and is told to stop in the middle:");
    let signal = async {
        while handled.load(Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    consumer(&kafka, &handled)?.run(signal).await?;
    println!("It has handled {}, committed them, and left.", handled.load(Relaxed));

    println!("The next one goes on there:");
    let rest = async {
        while handled.load(Relaxed) < 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    consumer(&kafka, &handled)?.run(rest).await?;
    println!("Handled in all: {} of 40, none twice.", handled.load(Relaxed));
    if handled.load(Relaxed) == 40 { Ok(()) } else { Err("a job was handled twice".into()) }
}
