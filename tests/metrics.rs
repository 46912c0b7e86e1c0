//! What a recorder of the `metrics` facade is given.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what its tests share")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use dtkafka::{Consumer, ErrorPolicy, KafkaConfig, KafkaInstance, Message, MetricsPublisher};
use dtkafka_testcontainers::EmbeddedBroker;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// Keeps the last value of counters and gauges, and how many durations a histogram was given.
#[derive(Default, Clone)]
struct Kept(Arc<Mutex<BTreeMap<String, f64>>>);

struct Slot(String, Kept);

impl Slot {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut kept = self.1.0.lock().unwrap();
        let value = kept.entry(self.0.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Slot {
    fn increment(&self, value: u64) {
        self.change(|old| old + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|old| old.max(value as f64));
    }
}

impl GaugeFn for Slot {
    fn increment(&self, value: f64) {
        self.change(|old| old + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|old| old - value);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

impl HistogramFn for Slot {
    fn record(&self, value: f64) {
        assert!((0.001..=65.536).contains(&value), "{value} s");
        self.change(|old| old + 1.0);
    }
}

impl Kept {
    fn slot(&self, key: &Key) -> Arc<Slot> {
        let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
        Arc::new(Slot(format!("{}{}", key.name(), labels.collect::<String>()), self.clone()))
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.0.lock().unwrap().get(name).copied()
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, unit: Option<Unit>, _: SharedString) {
        assert_eq!(unit, Some(Unit::Seconds));
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.slot(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.slot(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.slot(key))
    }
}

#[tokio::test]
async fn a_recorder_is_given_what_clients_count_and_nothing_twice() {
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("orders", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("billing")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    for number in 0..7_u32 {
        producer.send("orders", &number).await.unwrap().await.unwrap();
    }
    let mut consumer = Consumer::new(&kafka, ["orders"])
        .unwrap()
        .register_handler("orders", async |order: Message<u32>| {
            if order.value == 3 {
                Err("out of stock")?
            }
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Skip)
        .unwrap();
    let mut handled = 0;
    while handled < 7 {
        handled += consumer.consume(Duration::from_secs(30)).await.unwrap();
    }

    let kept = Kept::default();
    let mut publishers = [(); 2].map(|()| MetricsPublisher::new([("service", "shop")]));
    for _ in 0..2 {
        metrics::with_local_recorder(&kept, || {
            publishers[0].consumer(&consumer.metrics());
            publishers[1].producer(&producer.statistics());
        });
    }
    let own = "messaging.system=kafka service=shop";
    let get = |name: &str| kept.get(&format!("{name} {own}"));
    assert_eq!(get("messaging.client.consumed.messages"), Some(7.0));
    assert_eq!((get("dtkafka.consumer.failed"), get("dtkafka.consumer.skipped")), (Some(1.0), Some(1.0)));
    assert_eq!((get("dtkafka.consumer.lag"), get("dtkafka.consumer.in_work")), (Some(0.0), Some(0.0)));
    assert_eq!(
        get("messaging.process.duration"),
        Some(7.0),
        "each call once, although they were published twice"
    );
    assert_eq!(get("messaging.client.sent.messages"), Some(7.0));
    let operation = |name: &str| {
        kept.get(&format!("messaging.client.operation.duration {own} messaging.operation.name={name}"))
    };
    let commits: u64 = consumer.metrics().commit_latency.count();
    assert_eq!(operation("commit"), Some(commits as f64));
    assert_eq!(operation("send"), Some(producer.statistics().requests as f64));

    // What comes later is added.
    producer.send("orders", &7).await.unwrap().await.unwrap();
    while handled < 8 {
        handled += consumer.consume(Duration::from_secs(30)).await.unwrap();
    }
    metrics::with_local_recorder(&kept, || publishers[0].consumer(&consumer.metrics()));
    assert_eq!(get("messaging.process.duration"), Some(8.0));
    consumer.close().await.unwrap();
    producer.close().await.unwrap();
}
