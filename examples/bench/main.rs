//! Speed and cost of the client on a real cluster: one run, one JSON line.
//!
//! ```text
//! bench produce  --brokers H:P --topic T --records N --size BYTES [--api bytes|json|facade] [--tasks 1] [--compression none|gzip|snappy|lz4|zstd]
//!                [--acks all|1] [--linger-ms 5] [--batch-bytes 131072] [--in-flight 5] [--window RECORDS] [--payload FILE]
//!                [--keys N]
//! bench consume  --brokers H:P --topic T --records N --group G [--api bytes|json|facade|consume] [--ordering partition|key|unordered]
//!                [--concurrency N] [--pause-ms MS]
//! bench latency  --brokers H:P --topic T --records N --rate R --size BYTES
//! bench pingpong --brokers H:P --topic T --records N --size BYTES
//! bench members  --brokers H:P --topic T --records N --group G --consumers 5
//! bench copy     --brokers H:P --topic T --records N --group G --to TOPIC [--txn-records N] [--txn-ms MS]
//! bench rebalance --brokers H:P --topic T --group G --consumers 50 --protocol eager|cooperative|consumer
//! bench scaling  --brokers H:P                       tables of all that grows; makes and deletes its topics, takes minutes
//! ```
//! With `BENCH_CA=ca.pem` over TLS, trusting that file's authority.
//! `json` is what the facade is compared with: serde_json and the client of bytes. `facade` sends and handles the same value of
//! ten fields; its handler does nothing, or waits for `--pause-ms`,
//! under `run`; `consume` calls that in its place.
//! The default producer and a group consumer, nothing private: each delivery is awaited and checked, each key and value
//! touched. The clock starts before the first client is made and stops at the last acknowledgment, or when the final
//! commit was answered; CPU time is that of the whole process, read after every client is closed.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod args;
mod copy;
mod handlers;
mod members;
mod modes;
mod rebalance;
mod report;
mod scaling;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let run = match args::Args::parse(std::env::args().skip(1)) {
        // On a worker, as the tasks of a service are: the thread of `main` would have to be woken for every answer.
        Ok(args) => tokio::spawn(modes::run(args)).await.unwrap_or_else(|panic| Err(panic.into())),
        Err(error) => Err(error),
    };
    if let Err(error) = run {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}
