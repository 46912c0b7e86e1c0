//! A wall clock that is put forth or back while clients work: what they wait for goes by the other clock, which nobody can set.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, time::Duration};

use dtkafka_testcontainers::{ApiKey, EmbeddedBroker};

use crate::{KafkaInstance, NewTopic, cluster::tests::config_of, time};

const RECORDS: i64 = 60;
const SECOND: Duration = Duration::from_secs(1);
const EPOCH_MS: i64 = 1_700_000_000_000;

/// What brokers were asked, how often; and the times of the records, in milliseconds since the Unix epoch.
type Seen = (BTreeMap<i16, u64>, Vec<i64>);

/// Two minutes of a producer, transactions and a member of a group. In the middle of them somebody sets the wall clock.
async fn work_while_the_clock_is_put(by_ms: i64) -> Seen {
    let broker = EmbeddedBroker::builder().in_memory().seed(7).start().await.unwrap();
    let config = config_of(&broker)
        .set_simulation(7, EPOCH_MS)
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("metadata.max.age.ms", 10_000)
        .set("connections.max.idle.ms", 15_000);
    let clock = config.resolve_client().unwrap().environment;
    let kafka = KafkaInstance::new(config).unwrap();
    let admin = kafka.admin().await.unwrap();
    for topic in ["numbers", "others"] {
        // Brokers refuse times that are an hour ahead of theirs.
        let topic =
            NewTopic::new(topic).partitions(1).config("message.timestamp.after.max.ms", i64::MAX.to_string());
        admin.create_topic(topic).await.unwrap();
    }
    let produce = async {
        let producer = kafka.get_producer().await.unwrap();
        let mut times = Vec::new();
        for number in 0..RECORDS {
            let begun = time::now();
            let written = producer.send("numbers", &number).await.unwrap().await.unwrap();
            assert!(time::now() - begun < SECOND, "record {number}");
            times.push(written.timestamp);
            tokio::time::sleep(2 * SECOND).await;
        }
        producer.close().await.unwrap();
        times
    };
    let transact = async {
        let mut producer =
            kafka.get_transactional_producer_with(|p| p.set("transactional.id", "mine")).await.unwrap();
        for number in 0..12 {
            let transaction = producer.begin().await.unwrap();
            drop(transaction.send("others", &number).await.unwrap());
            // One is open while the clock is put.
            tokio::time::sleep(5 * SECOND).await;
            transaction.commit().await.unwrap();
            tokio::time::sleep(5 * SECOND).await;
        }
    };
    let consume = async {
        let consumer = kafka.get_consumer(["numbers"]).await.unwrap();
        let mut numbers = Vec::new();
        while (numbers.len() as i64) < RECORDS {
            for record in consumer.poll(SECOND).await.unwrap().records() {
                numbers.push(record.json::<i64>().unwrap());
            }
        }
        assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>());
        consumer.commit().await.unwrap();
        consumer.close(SECOND).await.unwrap();
    };
    let put = async {
        tokio::time::sleep(63 * SECOND).await;
        clock.put_wall_clock(by_ms);
    };
    let (times, ..) = tokio::join!(produce, transact, consume, put);
    assert_eq!(broker.committed("g", "numbers", 0), Some(RECORDS));
    let apis =
        (0..=100).filter_map(|key| Some((key, broker.control().requests(ApiKey::try_from(key).ok()?))));
    (apis.collect(), times)
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_changes_the_times_of_records_and_nothing_else() {
    const DAY: i64 = 24 * 3_600_000;
    let (asked, times) = work_while_the_clock_is_put(0).await;
    assert!(asked[&(ApiKey::Heartbeat as i16)] > 30 && asked[&(ApiKey::EndTxn as i16)] == 12, "{asked:?}");
    // The last is a machine whose clock has lost its battery.
    for by_ms in [1, DAY, -DAY, 11_000 * DAY, -EPOCH_MS] {
        let (asked_then, times_then) = work_while_the_clock_is_put(by_ms).await;
        assert_eq!(asked_then, asked, "the clock was put by {by_ms} ms");
        let moved: Vec<i64> = times_then.iter().zip(&times).map(|(then, time)| then - time).collect();
        let put_at = moved.iter().position(|moved| *moved != 0).unwrap();
        assert!(
            (25..35).contains(&put_at) && moved[put_at..].iter().all(|moved| *moved == by_ms),
            "{moved:?}"
        );
    }
}
