//! What clients do while a scenario lasts: a producer and a group, or transactions; each says what went wrong.

use std::{collections::BTreeMap, time::Duration};

use dtkafka::{
    ConsumerConfig, IsolationLevel, KafkaConfig, KafkaInstance, TopicPartition, TransactionalProducer,
};
use dtkafka_testcontainers::EmbeddedBroker;

use super::{
    RECORDS, TOPIC,
    network::{FAULTS_LAST, FaultyNetwork},
};

pub(super) async fn produce(config: KafkaConfig) -> Result<(), String> {
    let producer = KafkaInstance::new(config)
        .unwrap()
        .get_producer()
        .await
        .map_err(|error| format!("producer: {error}"))?;
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        deliveries
            .push(producer.send(TOPIC, &number).await.map_err(|error| format!("send {number}: {error}"))?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (number, delivery) in deliveries.into_iter().enumerate() {
        delivery.await.map_err(|error| format!("delivery {number}: {error}"))?;
    }
    producer.close().await.map_err(|error| format!("close: {error}"))
}

pub(super) async fn consume(config: KafkaConfig, broker: &EmbeddedBroker) -> Result<(), String> {
    let consumer = KafkaInstance::new(config)
        .unwrap()
        .get_consumer([TOPIC])
        .await
        .map_err(|error| format!("consumer: {error}"))?;
    let mut seen = BTreeMap::<u32, u32>::new();
    let mut errors = Vec::new();
    while (seen.len() as u32) < RECORDS {
        match consumer.poll(Duration::from_secs(1)).await {
            Ok(records) => {
                for record in records.records() {
                    *seen.entry(record.json().unwrap()).or_default() += 1;
                }
            }
            Err(error) => errors.push(error.to_string()),
        }
        if errors.len() > 400 {
            return Err(format!("{} errors of polls, such as {}", errors.len(), errors[0]));
        }
    }
    let mut tries = 0;
    while let Err(error) = consumer.commit().await {
        tries += 1;
        if tries > 20 {
            return Err(format!("commit: {error}"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        consumer.poll(Duration::ZERO).await.ok();
    }
    let committed: i64 = (0..4).filter_map(|partition| broker.committed("g", TOPIC, partition)).sum();
    if committed < i64::from(RECORDS) {
        return Err(format!("{committed} committed"));
    }
    consumer.close(Duration::from_secs(30)).await.map_err(|error| format!("close: {error}"))?;
    Ok(())
}

/// Transactions of five records each, read back after the faults: each that was committed is seen whole and once, and one of
/// which nobody knows whole or not at all.
pub(super) async fn transact(config: KafkaConfig, network: &FaultyNetwork) -> Result<(), String> {
    let kafka = KafkaInstance::new(config).unwrap();
    let mut fates = Vec::new();
    let mut kept = None;
    let mut errors = Vec::new();
    while fates.len() < 12 {
        if errors.len() > 100 {
            return Err(format!("{} errors, such as {}", errors.len(), errors[99]));
        }
        let number = fates.len() as u32;
        let made = match kept.take() {
            Some(producer) => Ok(producer),
            None => kafka.get_transactional_producer_with(|p| p.set("transactional.id", "mine")).await,
        };
        let outcome = match made {
            Ok(producer) => {
                let producer: &mut TransactionalProducer = kept.insert(producer);
                async {
                    let transaction = producer.begin().await?;
                    for record in 0..5 {
                        drop(transaction.send(TOPIC, &(number * 10 + record)).await?);
                    }
                    transaction.commit().await
                }
                .await
            }
            Err(error) => Err(error),
        };
        if outcome.as_ref().is_err_and(dtkafka::Error::is_fatal) {
            kept = None;
        }
        match outcome {
            Ok(()) => fates.push(true),
            Err(error) if error.possibly_written() => fates.push(false),
            Err(error) => errors.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    drop(kept);
    tokio::time::sleep_until(network.start + FAULTS_LAST + Duration::from_secs(15)).await;
    let settings = |c: ConsumerConfig| {
        c.set("isolation.level", IsolationLevel::ReadCommitted).set("enable.auto.commit", false)
    };
    let consumer =
        kafka.get_consumer_with(Vec::<String>::new(), settings).await.map_err(|error| error.to_string())?;
    let partitions: Vec<_> = (0..4).map(|number| TopicPartition::new(TOPIC, number)).collect();
    consumer.assign(partitions.clone()).map_err(|error| error.to_string())?;
    let mut seen = BTreeMap::<u32, u32>::new();
    for _ in 0..20 {
        for record in
            consumer.poll(Duration::from_millis(700)).await.map_err(|error| error.to_string())?.records()
        {
            *seen.entry(record.json().unwrap()).or_default() += 1;
        }
    }
    for (number, is_committed) in fates.iter().enumerate() {
        let counts: Vec<u32> =
            (0..5).map(|record| seen.remove(&(number as u32 * 10 + record)).unwrap_or(0)).collect();
        if counts != [1; 5] && (*is_committed || counts != [0; 5]) {
            return Err(format!(
                "transaction {number}, committed: {is_committed}, is seen as {counts:?}; {errors:?}"
            ));
        }
    }
    if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?} are nobody's")) }
}
