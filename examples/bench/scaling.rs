//! How cost grows: CPU, memory and throughput against record size, partitions, batch size, requests and records in flight,
//! and members of a group. Each figure is the median of three processes; the tables are Markdown.

use std::process::Command;

use dtkafka::{KafkaAdmin, NewTopic};
use serde_json::Value;

use crate::{
    args::{Args, Failure},
    modes::kafka,
};

const ROUNDS: usize = 3;

/// One row: a topic, a way to write it and a way to read it.
struct Row {
    label: String,
    partitions: i32,
    records: u64,
    produce: Vec<String>,
    /// The mode and its options; none where reading is not what the table is about.
    consume: Option<Vec<String>>,
}

pub(crate) async fn scaling(args: &Args) -> Result<(), Failure> {
    let admin = kafka(args)?.admin().await?;
    let tables = [
        ("value, bytes", sizes()),
        ("partitions", partitions()),
        ("batch.size, bytes", batches()),
        ("requests in flight", requests()),
        ("records in flight (linger.ms=0)", windows()),
        ("members of the group (60 partitions)", members()),
    ];
    for (name, rows) in tables {
        println!(
            "\n| {name} | produce CPU s/M | records/s | RSS MB | consume CPU s/M | records/s | RSS MB |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for row in rows {
            println!("| {} | {} |", row.label, measure(args, &admin, &row).await?);
        }
    }
    Ok(())
}

fn row(label: impl ToString, partitions: i32, records: u64, produce: &[&str]) -> Row {
    let produce = produce.iter().map(|word| (*word).to_owned()).collect();
    Row { label: label.to_string(), partitions, records, produce, consume: Some(Vec::new()) }
}

fn sizes() -> Vec<Row> {
    // About 200 MB each, and at most three million records.
    let sizes = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
    let rows = sizes
        .map(|size: u64| row(size, 6, (200_000_000 / size).min(3_000_000), &["--size", &size.to_string()]));
    rows.into()
}

fn partitions() -> Vec<Row> {
    [1, 6, 60, 300, 1_000].map(|partitions| row(partitions, partitions, 2_000_000, &["--size", "100"])).into()
}

fn batches() -> Vec<Row> {
    let rows = [4_096, 16_384, 65_536, 131_072, 524_288]
        .map(|bytes: u64| row(bytes, 6, 2_000_000, &["--size", "100", "--batch-bytes", &bytes.to_string()]));
    rows.into()
}

fn requests() -> Vec<Row> {
    let rows = [1, 2, 5].map(|requests: u64| {
        let row = row(requests, 6, 2_000_000, &["--size", "100", "--in-flight", &requests.to_string()]);
        Row { consume: None, ..row }
    });
    rows.into()
}

fn windows() -> Vec<Row> {
    let rows = [
        (1, 5_000),
        (10, 50_000),
        (100, 300_000),
        (1_000, 1_000_000),
        (32_768, 2_000_000),
        (262_144, 2_000_000),
    ];
    let rows = rows.map(|(window, records): (u64, u64)| {
        let options = ["--size", "100", "--linger-ms", "0", "--window", &window.to_string()];
        Row { consume: None, ..row(window, 6, records, &options) }
    });
    rows.into()
}

fn members() -> Vec<Row> {
    let rows = [1, 2, 5, 20, 50].map(|members: u64| {
        let consume = vec!["--consumers".to_owned(), members.to_string()];
        Row { consume: Some(consume), ..row(members, 60, 3_000_000, &["--size", "100"]) }
    });
    rows.into()
}

async fn measure(args: &Args, admin: &KafkaAdmin, row: &Row) -> Result<String, Failure> {
    let (mut produced, mut consumed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let topic = format!("{}-{}-{round}-{}", args.topic, row.partitions, std::process::id());
        admin.create_topic(NewTopic::new(&topic).partitions(row.partitions)).await?;
        let common = ["--brokers", &args.brokers, "--topic", &topic, "--records", &row.records.to_string()];
        produced.push(run("produce", &common, &row.produce)?);
        if let Some(options) = &row.consume {
            let group = ["--group".to_owned(), format!("{topic}-group")];
            let mode = if options.is_empty() { "consume" } else { "members" };
            consumed.push(run(mode, &common, &[options.as_slice(), &group].concat())?);
        }
        admin.delete_topic(&topic).await?;
    }
    Ok(format!("{} | {}", medians(&produced), medians(&consumed)))
}

/// One process of this program.
fn run(mode: &str, common: &[&str], options: &[String]) -> Result<Value, Failure> {
    let output = Command::new(std::env::current_exe()?).arg(mode).args(common).args(options).output()?;
    if !output.status.success() {
        return Err(format!("{mode} {options:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// CPU seconds per million records from the first client on, records per second, peak memory.
fn medians(runs: &[Value]) -> String {
    let median = |of: &dyn Fn(&Value) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let number = |run: &Value, name: &str| run[name].as_f64().unwrap_or(f64::NAN);
    let cpu = median(&|run| number(run, "cpu_part_s") * 1e6 / number(run, "records"));
    let (Some(cpu), Some(rate), Some(memory)) =
        (cpu, median(&|run| number(run, "records_per_s")), median(&|run| number(run, "max_rss_kb") / 1e3))
    else {
        return "| |".to_owned();
    };
    format!("{cpu:.3} | {rate:.0} | {memory:.0}")
}
