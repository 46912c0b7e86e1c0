//! Why nothing comes reaches whoever waits: by `poll`, and by the error of a record that was not delivered.

use std::time::Duration;

use dtkafka::{KafkaConfig, KafkaConsumer, KafkaInstance, TopicPartition};
use dtkafka_testcontainers::{
    Effect, EmbeddedBroker, Fault, NewRecord,
    broker::{ApiKey, ResponseError},
};

const PATIENCE: Duration = Duration::from_secs(60);
const ALWAYS: usize = 1_000_000;

async fn broker() -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    broker.feed("t", 0, NewRecord::new("1")).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("unreadable.warn.ms", 500);
    (broker, KafkaInstance::new(config).unwrap())
}

/// What `poll` says in the end.
async fn told(consumer: &KafkaConsumer) -> String {
    let polling = async {
        loop {
            match consumer.poll(Duration::from_millis(200)).await {
                Ok(records) => assert!(records.is_empty(), "it can be read"),
                Err(error) => return error.to_string(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap()
}

#[tokio::test]
async fn a_broker_that_closes_on_every_question_is_named_with_it_by_poll() {
    let reader = [ApiKey::FindCoordinator, ApiKey::OffsetFetch, ApiKey::ListOffsets, ApiKey::Fetch];
    let member =
        [ApiKey::FindCoordinator, ApiKey::JoinGroup, ApiKey::SyncGroup, ApiKey::OffsetFetch, ApiKey::Fetch];
    let cases = reader.map(|api| (false, api)).into_iter().chain(member.map(|api| (true, api)));
    let cases = cases.map(|(is_member, api)| {
        tokio::spawn(async move {
            let (broker, kafka) = broker().await;
            broker.control().disconnect_before(api, ALWAYS);
            let topics: &[&str] = if is_member { &["t"] } else { &[] };
            let consumer = kafka.get_consumer(topics).await.unwrap();
            if !is_member {
                consumer.assign([TopicPartition::new("t", 0)]).unwrap();
            }
            let text = told(&consumer).await;
            assert!(text.contains(&format!("{api:?}")) && text.contains("500 ms"), "{api:?}: {text}");
        })
    });
    for case in cases.collect::<Vec<_>>() {
        case.await.unwrap();
    }
}

#[tokio::test]
async fn a_passing_refusal_that_does_not_pass_is_told_by_poll_with_its_code() {
    for (api, error, name) in [
        (ApiKey::Fetch, ResponseError::KafkaStorageError, "KafkaStorageError"),
        (ApiKey::OffsetFetch, ResponseError::UnstableOffsetCommit, "UnstableOffsetCommit"),
        (ApiKey::JoinGroup, ResponseError::CoordinatorLoadInProgress, "CoordinatorLoadInProgress"),
    ] {
        let (broker, kafka) = broker().await;
        broker.control().fail(api, ALWAYS, error);
        let consumer = kafka.get_consumer(["t"]).await.unwrap();
        let text = told(&consumer).await;
        assert!(text.contains(name), "{name}: {text}");
        broker.control().clear();
        let reading = async { while consumer.poll(Duration::from_secs(1)).await.unwrap().is_empty() {} };
        tokio::time::timeout(PATIENCE, reading).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_that_a_quota_has_kept_from_its_broker_says_so() {
    let (broker, kafka) = broker().await;
    broker.control().inject(Fault::on(ApiKey::Produce).effect(Effect::Throttle(PATIENCE)));
    let briefly = |p: dtkafka::ProducerConfig| {
        p.set("linger.ms", 0).set("request.timeout.ms", 500).set("delivery.timeout.ms", 1000)
    };
    let producer = kafka.get_producer_with(briefly).await.unwrap();
    producer.send("t", &1).await.unwrap().await.unwrap();
    let held = producer.send("t", &2).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, held).await.unwrap().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("delivery.timeout.ms") && text.contains("holds this client back"), "{text}");
}
