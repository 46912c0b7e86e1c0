//! Brokers that hold a client back because it is over its quota (KIP-219).

use std::time::Duration;

use dtkafka::{ProducerRecord, TopicPartition};

use crate::{backend::unique, on_every_backend};

const PATIENCE: Duration = Duration::from_secs(90);

on_every_backend! {
    /// A request of 40 kB is paid for with a pause of seconds, once the window of eleven seconds is used up that real brokers grant.
    /// Without idempotence a request that is taken for lost is written again: every time-out would show in the log.
    async fn at_ten_kilobytes_a_second_every_record_is_in_the_log_once(backend) {
        const RECORDS: usize = 1300;
        let (topic, client) = (backend.topic("slow", 1).await, unique("slow-client"));
        backend.produce_quota(&client, 10_000).await;
        let kafka = backend.instance();
        let producer = kafka
            .get_producer_with(|p| {
                p.set("client.id", &client)
                    .set("enable.idempotence", false)
                    .set("request.timeout.ms", 5000)
                    .set("delivery.timeout.ms", 90_000)
                    .set("batch.size", 40_000)
            })
            .await
            .unwrap();
        let value = vec![b'x'; 200];
        let mut records = 0_i64;
        // Brokers apply a quota some time after they have taken it.
        let mut left = RECORDS;
        while left > 0 {
            let mut deliveries = Vec::new();
            for _ in 0..left.min(200) {
                let key = records.to_string();
                let record = ProducerRecord::new(&topic).partition(0).key(key.as_bytes()).value(&value);
                deliveries.push(producer.send_record(record).await.unwrap());
                records += 1;
            }
            for delivery in deliveries {
                tokio::time::timeout(PATIENCE, delivery).await.unwrap().unwrap();
            }
            assert!(records < 100 * RECORDS as i64, "no broker holds back {:?}", producer.statistics());
            left = if producer.statistics().throttled == 0 { RECORDS } else { left.saturating_sub(200) };
        }
        let statistics = producer.statistics();
        assert_eq!(statistics.retries, 0, "{statistics:?}");
        assert!(statistics.throttled > 0 && statistics.throttle_time > Duration::from_secs(1), "{statistics:?}");
        // The latencies are the broker's, not what it wanted to be left alone for.
        assert!(statistics.latency_within(0.5) <= Duration::from_millis(512), "{statistics:?}");
        let ends = backend.admin().await.latest_offsets([TopicPartition::new(&*topic, 0)]).await.unwrap();
        assert_eq!(ends.into_values().next(), Some(records));
    }
}
