//! Records acknowledged one by one.

use super::*;
use crate::consumer::acknowledge::Change;

async fn take(consumer: &KafkaConsumer, count: usize) -> Vec<PartitionRecords> {
    let deadline = time::now() + WAIT;
    let mut all = Vec::new();
    while all.iter().map(|taken: &PartitionRecords| taken.len()).sum::<usize>() < count {
        assert!(time::now() < deadline);
        all.extend(consumer.take(500, Duration::from_millis(100)).await.unwrap());
    }
    all
}

async fn change(consumer: &KafkaConsumer) -> Vec<Change> {
    tokio::time::timeout(WAIT, consumer.changed()).await.unwrap().unwrap();
    consumer.take_changes()
}

fn config(bench: &Bench) -> KafkaConfig {
    bench.config().set("heartbeat.interval.ms", 50).set("max.poll.interval.ms", 2_000)
}

#[tokio::test]
async fn a_poll_claims_nothing_and_the_frontier_alone_is_committed() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&config(&bench).set_enable_auto_commit(true));
    consumer.acknowledge_each();
    consumer.subscribe(["t"]).unwrap();
    let taken = take(&consumer, 10).await;
    let (key, life) = (taken[0].partition().clone(), taken[0].life());
    assert!(consumer.take(500, Duration::from_millis(50)).await.unwrap().is_empty());
    assert_eq!(consumer.outstanding(), 10);
    assert_eq!(consumer.done_all(&key, life, &[4, 1, 0]), 3);
    consumer.commit_done().await.unwrap();
    let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
    assert_eq!(committed(), Some(2));

    consumer.rewind(&key, life).unwrap();
    assert!(!consumer.is_live(&key, life) && !consumer.done(&key, life, 2));
    let again = take(&consumer, 8).await;
    assert_eq!(again[0].iter().next().unwrap().offset(), 2);
    let life = again[0].life();
    (2..10).for_each(|offset| assert!(consumer.done(&key, life, offset)));
    consumer.close(WAIT).await.unwrap();
    assert_eq!(committed(), Some(10));
}

#[tokio::test]
async fn a_revocation_waits_for_what_is_outstanding_however_alive_the_user_is() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 2).await;
    bench.produce("t", 2, 0, 20).await;
    let config = config(&bench).set_enable_auto_commit(true).set("max.poll.interval.ms", 20_000);
    let first = bench.consumer(&config);
    first.acknowledge_each();
    first.subscribe(["t"]).unwrap();
    let taken = take(&first, 20).await;
    assert!(matches!(&change(&first).await[..], [Change::Assigned(partitions)] if partitions.len() == 2));

    let second = bench.consumer(&config);
    second.subscribe(["t"]).unwrap();
    assert!(matches!(&change_after_join(&first, &second).await[..], [Change::Revoking(_)]));
    for _ in 0..5 {
        first.keep_alive().unwrap();
        assert!(first.take(500, Duration::from_millis(50)).await.unwrap().is_empty());
        assert_eq!(first.assignment().len(), 2, "it waits");
    }
    for taken in &taken {
        for record in taken {
            // The first half is done, the rest comes back.
            match record.offset() < 5 {
                true => assert!(first.done(taken.partition(), taken.life(), record.offset())),
                false => {
                    assert_eq!(first.hand_back_all(taken.partition(), taken.life(), &[record.offset()]), 1)
                }
            }
        }
    }
    let revoked = change(&first).await;
    assert!(matches!(&revoked[..], [Change::Revoked(_), ..]), "{revoked:?}");
    for partition in 0..2 {
        let committed = bench.broker.as_ref().unwrap().committed("group", "t", partition);
        assert_eq!(committed, Some(5), "what was done, and nothing that came back");
    }
}

async fn change_after_join(first: &KafkaConsumer, second: &KafkaConsumer) -> Vec<Change> {
    tokio::select! {
        changes = change(first) => changes,
        () = async { loop { second.poll(Duration::from_millis(20)).await.unwrap(); } } => Vec::new(),
    }
}

#[tokio::test]
async fn a_revocation_ends_with_the_time_of_the_rebalance_and_what_comes_too_late_counts_nothing() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let config = config(&bench).set_enable_auto_commit(true);
    let first = bench.consumer(&config);
    first.acknowledge_each();
    first.subscribe(["t"]).unwrap();
    let taken = take(&first, 10).await;
    let (key, life) = (taken[0].partition(), taken[0].life());
    assert!(first.done(key, life, 0));
    let second = bench.consumer(&config);
    second.subscribe(["t"]).unwrap();
    let polling = async {
        loop {
            second.poll(Duration::from_millis(20)).await.unwrap();
        }
    };
    let stuck = async {
        while first.is_live(key, life) {
            first.keep_alive().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = stuck => {}
        () = polling => {}
        () = tokio::time::sleep(WAIT) => panic!("the revocation waits for ever"),
    }
    assert!(!first.done(key, life, 1));
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(1));
    first.commit_done().await.expect_err("a record was handled that is not committed");
}

/// A consumer that has taken all ten records of a topic.
async fn ten_taken() -> (Bench, KafkaConsumer, Vec<PartitionRecords>) {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&config(&bench));
    consumer.acknowledge_each();
    consumer.subscribe(["t"]).unwrap();
    let taken = take(&consumer, 10).await;
    (bench, consumer, taken)
}

#[tokio::test]
async fn what_cannot_be_read_is_passed_over_once_all_before_it_is_done_and_in_a_new_life() {
    let (_bench, consumer, taken) = ten_taken().await;
    let (key, life) = (taken[0].partition().clone(), taken[0].life());
    assert_eq!(consumer.done_all(&key, life, &[0, 1, 2, 3]), 4);
    assert!(!consumer.pass_over(&key, life, 8) && consumer.is_live(&key, life), "4 is not done");
    assert_eq!(consumer.done_all(&key, life, &[4, 5, 6, 7, 8, 9]), 6);
    assert!(consumer.pass_over(&key, life, 8) && !consumer.is_live(&key, life));
    assert!(!consumer.pass_over(&key, life, 9), "that life is over");
    let again = take(&consumer, 2).await;
    let offsets = again.iter().flat_map(|taken| taken.iter().map(|record| record.offset()));
    assert_eq!(offsets.collect::<Vec<_>>(), [8, 9]);
    consumer.close(WAIT).await.unwrap();
    assert_eq!(consumer.keep_alive().unwrap_err().kind(), crate::ErrorKind::Closed);
}

#[tokio::test]
async fn what_was_handled_of_a_topic_that_is_gone_is_no_failure_to_who_commits_what_is_done() {
    let (bench, consumer, taken) = ten_taken().await;
    assert_eq!(consumer.done_all(taken[0].partition(), taken[0].life(), &[0, 1, 2, 3]), 4);
    bench.broker.as_ref().unwrap().delete_topic("t").unwrap();
    consumer.commit_done().await.unwrap();
}
