//! A table of how far a group is behind, redrawn every second, and the same as Prometheus reads it.
//!
//! `cargo run --example lag_exporter` shows a group at work on the broker inside this process for some seconds. On your own
//! cluster: `KAFKA_URL=kafka://host:9092 LAG_GROUP=billing cargo run --example lag_exporter`, which goes on until ctrl-c.

mod support;

use std::{fmt::Write as _, io::IsTerminal as _, time::Duration};

use dtkafka::{Consumer, KafkaAdmin, KafkaInstance, Message};
use support::{Cluster, Outcome};

/// One round: the table, then the lines for Prometheus.
async fn look(admin: &KafkaAdmin, group: &str) -> Outcome<(String, String)> {
    let (mut table, mut metrics) = (String::new(), String::from("# TYPE kafka_consumergroup_lag gauge\n"));
    writeln!(table, "{:<20} {:>10} {:>10} {:>8}", "partition", "committed", "end", "lag")?;
    let lags = admin.group_lag(group).await?;
    for (partition, lag) in &lags {
        let lag = match lag {
            Ok(lag) => lag,
            // Its topic was deleted, or has no leader: the others have their lag.
            Err(error) => {
                writeln!(table, "{:<20} {error}", partition.to_string())?;
                continue;
            }
        };
        writeln!(
            table,
            "{:<20} {:>10} {:>10} {:>8}",
            partition.to_string(),
            lag.committed,
            lag.end,
            lag.lag
        )?;
        let (topic, number) = (&partition.topic, partition.partition);
        writeln!(
            metrics,
            "kafka_consumergroup_lag{{group=\"{group}\",topic=\"{topic}\",partition=\"{number}\"}} {}",
            lag.lag
        )?;
    }
    let sum: i64 = lags.values().flatten().map(|lag| lag.lag).sum();
    writeln!(table, "{:<20} {:>10} {:>10} {sum:>8}", "in all", "", "")?;
    Ok((table, metrics))
}

async fn show(kafka: &KafkaInstance, group: &str, rounds: usize) -> Outcome {
    let admin = kafka.admin().await?;
    let is_terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    for round in 0..rounds {
        let (table, metrics) = look(&admin, group).await?;
        if is_terminal && round > 0 {
            // Up to where the last table began.
            print!("\x1b[{}A", table.lines().count());
        }
        print!("{table}");
        last = metrics;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("\nThe same for Prometheus:\n{last}");
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    if let Ok(group) = std::env::var("LAG_GROUP") {
        let kafka = KafkaInstance::new(cluster.config.clone())?;
        tokio::select! {
            shown = show(&kafka, &group, usize::MAX) => return shown,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
    let kafka = cluster.with_topics(&[("orders", 2)]).await?;
    kafka
        .producer_context(async |producer| {
            for id in 0..400_u32 {
                let _flushed = producer.send("orders", &id).key(id).await?;
            }
            Ok(())
        })
        .await?;
    let mut consumer =
        Consumer::new_with(&kafka, ["orders"], |c| c.auto_commit_interval(100).max_poll_records(10))?
            .register_handler("orders", async |_: Message<u32>| {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            })?;
    let group = cluster.config.get("group.id").unwrap_or_default();
    println!("The group {group} is at work on 400 orders:");
    let (shown, ran) = {
        let handle = consumer.handle();
        let shown = async {
            let shown = show(&kafka, &group, 4).await;
            handle.stop();
            shown
        };
        tokio::join!(shown, consumer.run(std::future::pending::<()>()))
    };
    shown?;
    Ok(ran?)
}
