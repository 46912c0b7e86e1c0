//! The facade and the admin client through answers that pause and break off, `ExactlyOnce` through codes that pass.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use dtkafka::{
    ConfigChanges, Consumer, Error, ErrorPolicy, ExactlyOnce, KafkaAdmin, KafkaConfig, KafkaInstance,
    Message, NewTopic, TopicPartition,
};
use dtkafka_testcontainers::{
    EmbeddedBroker, NewRecord,
    broker::{ApiKey, Profile},
};
use kafka_protocol::messages as wire;
use tokio::sync::Notify;

use super::{
    RECORDS, Scenario, TOPIC, Work,
    cut_off_answers::{APIS, broken},
    network::{Asked, FaultyNetwork},
    run_all, scenario,
};

/// Handles everything; every seventh value fails the first time.
pub(super) async fn handle(config: KafkaConfig, broker: &EmbeddedBroker) -> Result<(), String> {
    let kafka = KafkaInstance::new(config).unwrap();
    let (seen, done) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Notify::new()));
    let notify = Arc::clone(&done);
    let handler = async move |message: Message<u32>| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut seen = seen.lock().unwrap();
        if seen.insert(message.value) && message.value % 7 == 3 {
            return Err("not the first time".into());
        }
        if seen.len() as u32 == RECORDS {
            notify.notify_one();
        }
        Ok(())
    };
    let consumer =
        Consumer::new(&kafka, [TOPIC]).and_then(|consumer| consumer.register_handler(TOPIC, handler));
    let policy = ErrorPolicy::retry(3, Duration::from_millis(200));
    let mut consumer =
        consumer.and_then(|consumer| consumer.error_policy(policy)).map_err(|error| error.to_string())?;
    // What comes again in the end is handled again.
    let shutdown = async {
        done.notified().await;
        tokio::time::sleep(Duration::from_secs(40)).await;
    };
    consumer.run(shutdown).await.map_err(|error| format!("run: {error}"))?;
    let committed: i64 = (0..4).filter_map(|partition| broker.committed("g", TOPIC, partition)).sum();
    if committed == i64::from(RECORDS) { Ok(()) } else { Err(format!("{committed} committed")) }
}

/// Copies what is written meanwhile, and is not stopped by anything that passes.
pub(super) async fn copy(
    config: KafkaConfig,
    broker: &EmbeddedBroker,
    network: &FaultyNetwork,
) -> Result<(), String> {
    broker.create_topic("out", 2).unwrap();
    let written = async {
        for number in 0..RECORDS {
            broker.feed(TOPIC, (number % 4) as i32, NewRecord::new(number.to_string())).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let committed =
            || (0..4).filter_map(|partition| broker.committed("copy", TOPIC, partition)).sum::<i64>();
        while committed() < i64::from(RECORDS) || !network.is_over() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let kafka = KafkaInstance::new(config).unwrap();
    let run =
        ExactlyOnce::new(&kafka, [TOPIC], "copy").transactional_id("copier").run(async |record, output| {
            let number: u32 = record.json()?;
            drop(output.send("out", &number).await?);
            Ok(())
        });
    tokio::select! {
        () = written => {}
        ended = run => return Err(format!("it ended: {ended:?}")),
    }
    let records = (0..2).flat_map(|partition| broker.committed_records("out", partition).unwrap());
    let mut copied: Vec<u32> =
        records.map(|record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()).collect();
    copied.sort_unstable();
    if copied == (0..RECORDS).collect::<Vec<_>>() { Ok(()) } else { Err(format!("the copy has {copied:?}")) }
}

/// Every call, again and again: after the faults none fails.
pub(super) async fn administer(config: KafkaConfig, network: &FaultyNetwork) -> Result<(), String> {
    let admin =
        KafkaInstance::new(config).unwrap().admin().await.map_err(|error| format!("admin: {error}"))?;
    for round in 0.. {
        let begun_after_faults = network.is_over();
        let outcome = every_call(&admin, &format!("made-{round}")).await;
        if begun_after_faults {
            return outcome.map_err(|error| format!("in the calm: {error}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn every_call(admin: &KafkaAdmin, name: &str) -> Result<(), Error> {
    admin.create_topic(NewTopic::new(name).partitions(2)).await?;
    admin.list_topics().await?;
    admin.describe_topic(name).await?;
    admin.describe_topic_configs(name).await?;
    admin.describe_cluster().await?;
    admin.alter_topic_configs(name, ConfigChanges::new().set("retention.ms", "1000000")).await?;
    admin.create_partitions(name, 3).await?;
    let both = [0, 1].map(|partition| TopicPartition::new(name, partition));
    let ends = admin.latest_offsets(both.clone()).await?;
    admin.alter_group_offsets("g", ends.clone()).await?.into_values().collect::<Result<(), _>>()?;
    admin.delete_records(ends).await?.into_values().collect::<Result<Vec<_>, _>>()?;
    admin.delete_group_offsets("g", both).await?.into_values().collect::<Result<(), _>>()?;
    admin.list_groups().await?;
    admin.group_lag("g").await?;
    admin.delete_groups(["nobody's"]).await?;
    admin.delete_topic(name).await
}

/// Those that only these use, beside [`APIS`].
fn through(work: Work, profile: Profile, apis: &[ApiKey]) -> Vec<Scenario> {
    let mut scenarios = vec![scenario("nothing").work(work, profile)];
    for api in apis.iter().copied() {
        for how in 0..4 {
            scenarios.push(
                scenario(format!("{api:?}: 8 bytes, {}", broken(how, 8).0))
                    .work(work, profile)
                    .act(move |asked, _| (asked.is(api) && asked.number % 2 == 0).then(|| broken(how, 8).1)),
            );
        }
    }
    scenarios
}

#[test]
fn a_consumer_with_handlers_outlasts_transient_faults() {
    let mut scenarios = through(Work::Facade, Profile::Latest, &APIS);
    for how in 0..4 {
        let scenario = scenario(format!("the consumer protocol's heartbeat: 8 bytes, {}", broken(how, 8).0));
        let strikes =
            move |asked: Asked| asked.is(ApiKey::ConsumerGroupHeartbeat) && asked.number.is_multiple_of(2);
        scenarios.push(
            scenario
                .work(Work::Facade, Profile::Latest)
                .set("group.protocol", "consumer")
                .act(move |asked, _| strikes(asked).then(|| broken(how, 8).1)),
        );
    }
    run_all(scenarios);
}

#[test]
fn exactly_once_outlasts_transient_error_codes() {
    let mut scenarios = Vec::new();
    for code in [7, 14, 15, 16, 51, 22, 25, 27, 120, -1, 999] {
        let refused = move |api: ApiKey, asked: Asked| asked.is(api) && asked.number % 3 == 1;
        scenarios.push(
            scenario(format!("TxnOffsetCommit: {code} at times")).work(Work::Copy, Profile::Latest).act(
                move |asked, frame| {
                    refused(ApiKey::TxnOffsetCommit, asked).then(|| {
                        asked.changed(frame, |answer: &mut wire::TxnOffsetCommitResponse| {
                            let topics = answer.topics.iter_mut();
                            topics.flat_map(|topic| &mut topic.partitions).for_each(|p| p.error_code = code);
                        })
                    })
                },
            ),
        );
        if ![22, 25, 27].contains(&code) {
            let scenario = scenario(format!("AddOffsetsToTxn: {code} at times"));
            scenarios.push(scenario.work(Work::Copy, Profile::Kafka39).act(move |asked, frame| {
                refused(ApiKey::AddOffsetsToTxn, asked).then(|| {
                    asked
                        .changed(frame, |answer: &mut wire::AddOffsetsToTxnResponse| answer.error_code = code)
                })
            }));
        }
    }
    run_all(scenarios);
}

#[test]
fn admin_calls_outlast_answers_that_break_off() {
    let apis = [
        ApiKey::ApiVersions,
        ApiKey::Metadata,
        ApiKey::CreateTopics,
        ApiKey::DeleteTopics,
        ApiKey::DescribeConfigs,
        ApiKey::ListOffsets,
        ApiKey::ListGroups,
        ApiKey::OffsetFetch,
        ApiKey::DeleteGroups,
        ApiKey::FindCoordinator,
    ];
    run_all(through(Work::Admin, Profile::Latest, &apis));
}
