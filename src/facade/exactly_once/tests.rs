#[cfg(feature = "signal")]
use dtkafka_testcontainers::ApiKey;
use dtkafka_testcontainers::{EmbeddedBroker, NewRecord};

#[cfg(feature = "signal")]
use futures_util::StreamExt as _;

use super::*;
use crate::{KafkaConfig, error::ErrorCode};

#[tokio::test]
async fn a_copier_waits_for_a_cluster_that_is_not_there_yet() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::DEBUG);
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.feed("t", 0, NewRecord::new("7")).unwrap();
    broker.control().stop_broker(1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_auto_offset_reset("earliest")
        .set("max.block.ms", 100)
        .set("socket.connection.setup.timeout.ms", 100);
    let kafka = KafkaInstance::new(config).unwrap();
    let (seen, mut is_seen) = tokio::sync::mpsc::channel(1);
    let run = ExactlyOnce::new(&kafka, ["t"], "g").run(async |record, _| {
        let _full = seen.try_send(record.json::<i64>()?);
        Ok(())
    });
    let comes = async {
        // Longer than an attempt to start takes.
        while log.text().matches("can still not be reached").count() < 6 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        broker.control().start_broker(1).await.unwrap();
        assert_eq!(is_seen.recv().await, Some(7));
    };
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        comes = tokio::time::timeout(PATIENCE, comes) => comes.expect("it does not begin"),
    }
    let (text, is_told) = (log.text(), |line: &&str| line.contains(" WARN ") || line.contains(" ERROR "));
    let told: Vec<_> = text.lines().filter(is_told).collect();
    assert_eq!(told.len(), 2, "of the broker and of the cluster, once each: {told:#?}");
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn a_copier_that_is_told_to_end_commits_and_leaves_and_what_it_has_sent_on_is_whole() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("target", 1).unwrap();
    for record in [NewRecord::new("7").key("k").header("h", "1"), NewRecord::tombstone().key("k")] {
        broker.feed("source", 0, record.timestamp_ms(1)).unwrap();
    }
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let signals = futures_util::stream::poll_fn(|context| told.poll_recv(context));
    let copier = ExactlyOnce::new(&kafka, ["source"], "g").commit_interval(PATIENCE);
    let run = copier.run_until_told(signals, async |record, output| {
        drop(output.send_record(record.forward_to("target")).await?);
        if record.value().is_none() {
            let _full = tell.try_send(Ok(()));
        }
        Ok(())
    });
    tokio::time::timeout(PATIENCE, run).await.expect("it does not hear").unwrap();
    assert_eq!(broker.committed("g", "source", 0), Some(2));
    let copies = broker.committed_records("target", 0).unwrap();
    let parts = copies.iter().map(|copy| (copy.key_text(), copy.value_text(), copy.headers.len()));
    assert_eq!(parts.collect::<Vec<_>>(), [(Some("k"), Some("7"), 1), (Some("k"), None, 0)]);
    assert!(copies.iter().all(|copy| copy.timestamp > 1), "retention would take them at once");
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn a_copier_that_is_told_to_end_twice_aborts_and_leaves_without_its_body() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.create_topic("target", 1).unwrap();
    broker.feed("source", 0, NewRecord::new("7")).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let at_work = tokio::sync::Notify::new();
    // The second one comes when it belongs to another stop than the first.
    let signals = futures_util::stream::unfold(true, async |is_first| {
        match is_first {
            true => at_work.notified().await,
            false => tokio::time::sleep(signals::SAME_STOP * 2).await,
        }
        Some((Ok(()), false))
    });
    let run = ExactlyOnce::new(&kafka, ["source"], "g").run_until_told(signals, async |record, output| {
        output.send_record(record.forward_to("target")).await?.await?;
        at_work.notify_one();
        std::future::pending().await
    });
    tokio::time::timeout(PATIENCE, run).await.expect("it waits for its body").unwrap();
    assert_eq!((broker.committed("g", "source", 0), broker.open_transactions()), (Some(0), 0));
    assert!(broker.committed_records("target", 0).unwrap().is_empty());
    assert!(broker.control().requests(ApiKey::LeaveGroup) > 0, "the group waits for its session to end");
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn a_copier_whose_cluster_is_away_ends_when_it_is_told_to() {
    let broker = EmbeddedBroker::start().await.unwrap();
    broker.control().stop_broker(1).unwrap();
    let kafka =
        KafkaInstance::new(KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers())).unwrap();
    let signals = futures_util::stream::iter([Ok(())]).chain(futures_util::stream::pending());
    let run = ExactlyOnce::new(&kafka, ["source"], "g").run_until_told(signals, async |_, _| Ok(()));
    tokio::time::timeout(Duration::from_secs(30), run).await.expect("it does not hear").unwrap();
}

#[test]
fn a_transaction_leaves_the_body_half_of_its_time_and_the_member_time_to_poll() {
    let limit = |settings: &[(&str, u64)], interval| {
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:1");
        let config = settings.iter().fold(config, |config, (name, value)| config.set(*name, *value));
        let kafka = KafkaInstance::new(config).unwrap();
        let copier = ExactlyOnce::new(&kafka, ["t"], "g").commit_interval(Duration::from_secs(interval));
        copier.worked_on_at_most().as_secs()
    };
    assert_eq!(limit(&[], 0), 5);
    assert_eq!(limit(&[("transaction.timeout.ms", 60_000)], 0), 30);
    // A member that polls after more than 300 s has lost its partitions, each time anew.
    assert_eq!(limit(&[], 90), 150);
    assert_eq!(limit(&[("transaction.timeout.ms", 900_000), ("max.poll.interval.ms", 20_000)], 0), 10);
}

#[test]
fn what_brokers_refuse_for_ever_ends_the_loop_and_what_passes_does_not() {
    let told = |code| failed(Error::from_code("Produce", code).with_requires_abort());
    let moved_on = [22, 25, 27, 82, 110, 113, 45, 47, 48, 49, 55, 59, 120, -1];
    for code in (-1..200).filter(|code| *code != 0) {
        // Of one of a newer Kafka nobody knows.
        let is_unknown = !ErrorCode(code).is_known();
        let passes = moved_on.contains(&code) || ErrorCode(code).is_retriable() || is_unknown;
        assert_eq!(matches!(told(code), Failed::Again(_)), passes, "{}", ErrorCode(code));
    }
}
