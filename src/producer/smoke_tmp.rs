use super::*;
use crate::config::{KafkaConfig, ProducerConfig};
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let config = KafkaConfig::new().set_bootstrap_servers(["127.0.0.1:19092"]);
    let merged = ProducerConfig::new().merged(&config);
    let cluster = Cluster::start(Arc::new(merged.resolve_client().unwrap())).unwrap();
    let t0 = time::now();
    let producer = KafkaProducer::start(cluster, merged.resolve_producer().unwrap()).await.unwrap();
    let topic = format!("smoke-{}", time::wall_clock_ms());
    let d = producer.send(&topic, &serde_json::json!({"a": 1})).key("k").await.unwrap();
    println!("first {:?} {:?}", d.await.unwrap(), time::now() - t0);
    let t0 = time::now();
    let n = 300_000u32;
    let value = vec![b'x'; 100];
    let mut pending = std::collections::VecDeque::new();
    for i in 0..n {
        let key = format!("{i:016}");
        pending.push_back(producer.send_record(ProducerRecord::new(&topic).key(&key).value(&value)).await.unwrap());
        while pending.len() > 10000 { pending.pop_front().unwrap().await.unwrap(); }
    }
    for d in pending { d.await.unwrap(); }
    println!("{n} in {:?}", time::now() - t0);
    producer.flush().await.unwrap();
    assert_eq!(producer.buffered_bytes(), 0);
    producer.close().await.unwrap();
}
