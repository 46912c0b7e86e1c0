//! Look-ups that the user asks for, where a broker says nothing.

use dtkafka_testcontainers::{Effect, Fault};

use super::*;

#[tokio::test]
async fn a_broker_that_is_silent_takes_one_request_of_a_lookup_and_not_all_of_its_time() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 3).await;
    let config = bench.config().set("request.timeout.ms", 500).set("default.api.timeout.ms", 20_000);
    let client = Arc::new(config.resolve_client().unwrap());
    let consumer = KafkaConsumer::start(client, config.resolve_consumer().unwrap()).unwrap();
    let key = TopicPartition::new("t", 0);
    let silence = |api| bench.control().inject(Fault::on(api).times(1).effect(Effect::Silence));
    silence(ApiKey::ListOffsets);
    assert_eq!(consumer.end_offsets([key.clone()]).await.unwrap()[&key], 3);
    silence(ApiKey::OffsetFetch);
    assert_eq!(consumer.committed([key.clone()]).await.unwrap()[&key], None);
}
