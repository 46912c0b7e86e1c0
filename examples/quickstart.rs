//! The whole road in one file: JSON in, JSON out through a consumer group, and a restart that goes on where it stopped.
//!
//! `cargo run --example quickstart` needs nothing: it starts a broker inside this process. With `KAFKA_URL` (and any other
//! `KAFKA_` variable, such as `KAFKA_SSL_CA_LOCATION` or `KAFKA_COMPRESSION_TYPE`) it runs on that cluster, with a topic and
//! a group of its own that it deletes in the end. `RUST_LOG=debug` shows what the client logs.

use std::{
    collections::BTreeMap,
    error::Error,
    hash::{BuildHasher as _, RandomState},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dtkafka::{Consumer, KafkaAdmin, KafkaConfig, KafkaInstance, Message, NewTopic};
use dtkafka_testcontainers::EmbeddedBroker;
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How many orders are sent, and how many of them the first consumer handles.
const ORDERS: u64 = 8;
const FIRST_SHARE: usize = 5;
/// The whole story takes a second or two; a cluster that does not answer must not hold it up for ever.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    euros: u64,
}

/// The ids of the orders handled so far, by every consumer of the run.
type Handled = Arc<Mutex<Vec<u64>>>;

#[tokio::main]
async fn main() -> ExitCode {
    log_if_asked_to();
    let story = tokio::time::timeout(PATIENCE, story()).await;
    match story.unwrap_or_else(|_elapsed| Err(format!("not done after {PATIENCE:?}").into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The quickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn story() -> Outcome<()> {
    let mut config = KafkaConfig::from_env();
    let given = config.get("kafka.url").or_else(|| config.get("bootstrap.servers"));
    // Lives until the end of the story; dropping it would close it.
    let broker = match &given {
        Some(cluster) => {
            println!("Using the Kafka cluster {cluster}.");
            None
        }
        None => {
            let broker = EmbeddedBroker::builder().start().await?;
            let address = broker.bootstrap_servers();
            println!(
                "Started a Kafka broker inside this process, on {address} (set KAFKA_URL to use your own)."
            );
            config = config.set_bootstrap_servers(address);
            Some(broker)
        }
    };
    let kafka = KafkaInstance::new(config)?;
    let admin = kafka.admin().await?;

    // A name of its own, so that runs on one cluster do not meet.
    let name = format!("quickstart-{:08x}", RandomState::new().hash_one("run") as u32);
    admin.create_topic(NewTopic::new(&name).partitions(3)).await?;
    println!("Created the topic {name} with 3 partitions.");

    let told = orders(&kafka, &admin, &name).await;
    let tidied = tidy_up(&admin, &name).await;
    told.and(tidied)?;
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
    println!("Deleted the topic and the group. That is all.");
    Ok(())
}

async fn orders(kafka: &KafkaInstance, admin: &KafkaAdmin, name: &str) -> Outcome<()> {
    produce(kafka, name).await?;

    let handled = Handled::default();
    println!("\nA consumer joins the group {name} and handles {FIRST_SHARE} orders:");
    consume(kafka, name, &handled, FIRST_SHARE).await?;
    println!("It has committed how far it came, and left the group.");

    println!("\nA new consumer of the group goes on where that one stopped:");
    consume(kafka, name, &handled, ORDERS as usize).await?;

    let mut ids = handled.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ids.sort_unstable();
    if ids != (1..=ORDERS).collect::<Vec<_>>() {
        return Err(format!("orders 1 to {ORDERS} were sent, but these were handled: {ids:?}").into());
    }
    let lags = admin.group_lag(name).await?.into_values();
    let behind: i64 = lags.map(|partition| Ok(partition?.lag)).sum::<dtkafka::Result<i64>>()?;
    println!("\nAll {ORDERS} orders were handled, none twice. The group has {behind} records left to read.");
    Ok(())
}

/// Sends the orders; the context flushes and closes the producer, also when something fails.
async fn produce(kafka: &KafkaInstance, topic: &str) -> Outcome<()> {
    let compression = kafka.config().get("compression.type");
    let partitions = kafka
        .producer_context(async |producer| {
            let mut deliveries = Vec::new();
            for id in 1..=ORDERS {
                let customer = ["ann", "bob", "cem", "dee"][id as usize % 4].to_owned();
                let order = Order { id, customer: customer.clone(), euros: 10 * id };
                // Queued, not yet acknowledged. Orders of one customer stay in order: they share a partition.
                deliveries.push(producer.send(topic, &order).key(&customer).await?);
            }
            let mut partitions: BTreeMap<i32, u64> = BTreeMap::new();
            for delivery in deliveries {
                *partitions.entry(delivery.await?.partition).or_default() += 1;
            }
            Ok(partitions)
        })
        .await?;
    let spread: Vec<_> =
        partitions.iter().map(|(number, count)| format!("{count} in partition {number}")).collect();
    let how = compression.map_or_else(String::new, |codec| format!(", compressed with {codec}"));
    println!("Sent {ORDERS} orders as JSON{how}; the cluster has acknowledged {}.", spread.join(", "));
    Ok(())
}

/// Consumes as a member of the group until `until` orders were handled in all; then commits and leaves.
async fn consume(kafka: &KafkaInstance, name: &str, handled: &Handled, until: usize) -> Outcome<()> {
    let seen = Arc::clone(handled);
    let mut consumer = Consumer::new_with(kafka, [name], |settings| {
        // One record a poll, to stop where the story wants it; without it, a poll gives up to 500.
        settings.group_id(name).auto_offset_reset("earliest").enable_auto_commit(false).max_poll_records(1)
    })?
    .register_handler(name, async move |order: Message<Order>| {
        let Order { id, customer, euros } = &order.value;
        println!(
            "  order {id}: {customer} pays {euros} euros (partition {}, offset {})",
            order.partition, order.offset
        );
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(*id);
        Ok(())
    })?;
    while handled.lock().unwrap_or_else(PoisonError::into_inner).len() < until {
        consumer.consume(Duration::from_secs(1)).await?;
    }
    consumer.commit().await?;
    consumer.close().await?;
    Ok(())
}

/// Deletes what this run has made, also when it failed halfway.
async fn tidy_up(admin: &KafkaAdmin, name: &str) -> Outcome<()> {
    // The group first: brokers forget a group by themselves once the topics of its offsets are gone.
    let group = admin.delete_groups([name]).await?.remove(name);
    admin.delete_topic(name).await?;
    Ok(group.unwrap_or(Ok(()))?)
}

fn log_if_asked_to() {
    if let Ok(level) = std::env::var("RUST_LOG") {
        let level = level.parse().unwrap_or(tracing_subscriber::filter::LevelFilter::INFO);
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    }
}
