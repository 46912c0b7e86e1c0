//! What a member leaves behind for the next, and what it may not: commits and positions.

use super::*;

#[tokio::test]
async fn an_automatic_commit_covers_what_earlier_polls_handed_out_and_no_more() {
    let bench = Bench::start().await;
    let topic = unique("auto");
    bench.topic(&topic, 1).await;
    bench.produce(&topic, 1, 0, 10).await;
    let config =
        bench.config().set_group_id(&topic).set_enable_auto_commit(true).set("max.poll.records", "4");
    let consumer = bench.consumer(&config);
    consumer.subscribe([&topic]).unwrap();
    assert_eq!(read(&consumer, 4).await.len(), 4);
    assert_eq!(read(&consumer, 4).await.len(), 4);
    consumer.close(WAIT).await.unwrap();
    let consumer = bench.consumer(&config);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let committed = consumer.committed([partition.clone()]).await.unwrap();
    assert_eq!(committed[&partition].as_ref().map(|committed| committed.offset), Some(4));
}

#[tokio::test]
async fn a_position_that_was_only_looked_up_is_committed_so_that_the_next_member_skips_nothing() {
    for how in ["interval", "commit", "close"] {
        let bench = Bench::embedded(1).await;
        bench.topic("t", 1).await;
        let config = bench.config().set_auto_offset_reset("latest").set_enable_auto_commit(how != "commit");
        let interval = if how == "interval" { 50 } else { 60_000 };
        let config = config.set("auto.commit.interval.ms", interval);
        let first = bench.consumer(&config);
        first.subscribe(["t"]).unwrap();
        joined(&first).await;
        assert_eq!(first.position(&TopicPartition::new("t", 0)).await.unwrap(), 0);
        if how == "commit" {
            first.commit().await.unwrap();
        }
        let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
        while how == "interval" && committed() != Some(0) {
            first.poll(Duration::from_millis(20)).await.unwrap();
        }
        bench.produce("t", 1, 0, 10).await;
        first.close(WAIT).await.unwrap();
        assert_eq!(committed(), Some(0), "{how}");
        let next = bench.consumer(&config);
        next.subscribe(["t"]).unwrap();
        assert_eq!(read(&next, 10).await.len(), 10, "{how}");
    }
}

#[tokio::test]
async fn the_place_of_a_seek_is_committed_by_the_close_forwards_and_backwards() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    for place in [7, 3] {
        let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
        let partition = TopicPartition::new("t", 0);
        consumer.subscribe(["t"]).unwrap();
        joined(&consumer).await;
        consumer.seek(&partition, place).unwrap();
        consumer.close(WAIT).await.unwrap();
        assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(place));
    }
}

#[tokio::test]
async fn the_place_of_a_seek_to_the_end_is_committed_by_the_close() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config().set_enable_auto_commit(true));
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    bench.produce("t", 1, 10, 90).await;
    let key = TopicPartition::new("t", 0);
    consumer.seek_to_end([&key]).unwrap();
    assert_eq!(consumer.position(&key).await.unwrap(), 100);
    consumer.close(WAIT).await.unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(100));
}

#[tokio::test]
async fn after_a_loss_one_commit_says_so_and_nothing_of_the_earlier_life_is_committed() {
    for is_told_outside in [false, true] {
        commits_after_a_loss(is_told_outside).await;
    }
}

async fn commits_after_a_loss(is_told_outside: bool) {
    let bench = Bench::embedded(1).await;
    let committed = || bench.broker.as_ref().unwrap().committed("group", "t", 0);
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 100).await;
    let key = TopicPartition::new("t", 0);
    let config = brief(&bench).set("max.poll.records", 50);
    let first = bench.consumer(&config);
    first.subscribe(["t"]).unwrap();
    read(&first, 50).await;
    bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
    while !first.assignment().is_empty() {
        tokio::task::yield_now().await;
    }
    // It is not in the group, and does not come back by itself.
    let joins = bench.control().requests(ApiKey::JoinGroup);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.control().requests(ApiKey::JoinGroup), joins);
    if is_told_outside {
        for error in [first.commit().await, first.commit().await] {
            error.unwrap_err();
        }
    }
    first.commit_offsets([(key.clone(), 50)]).await.unwrap_err();
    assert_eq!(committed(), None);

    // Another member goes on and leaves; the first takes the partition again.
    let second = bench.consumer(&config.clone().set("max.poll.records", 500));
    second.subscribe(["t"]).unwrap();
    read(&second, 100).await;
    second.commit().await.unwrap();
    second.close(WAIT).await.unwrap();
    joined(&first).await;
    assert_eq!(first.position(&key).await.unwrap(), 100);
    if !is_told_outside {
        first.commit().await.expect_err("the member that is back is told once");
    }
    first.commit().await.expect("what it has now is its own");
    let error = first.commit_offsets([(key.clone(), 50)]).await.unwrap_err();
    assert!(error.to_string().contains("seek"), "{error}");
    assert_eq!(committed(), Some(100));
    // Who goes back on purpose may.
    first.seek(&key, 50).unwrap();
    first.commit().await.unwrap();
    assert_eq!(committed(), Some(50));
}

#[tokio::test]
async fn who_commits_after_every_poll_sees_no_error_while_others_come_and_go() {
    for strategy in ["range", "cooperative-sticky"] {
        commits_while_others_come_and_go(strategy).await;
    }
}

async fn commits_while_others_come_and_go(strategy: &str) {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 4).await;
    bench.produce("t", 4, 0, 40).await;
    let config = bench.config().set("heartbeat.interval.ms", 20).set("max.poll.records", 3);
    let config = config.set("partition.assignment.strategy", strategy);
    let stays = bench.consumer(&config);
    stays.subscribe(["t"]).unwrap();
    let polling = async {
        loop {
            stays.poll(Duration::from_millis(10)).await.unwrap();
            stays.commit().await.unwrap();
        }
    };
    let coming_and_going = async {
        for _ in 0..5 {
            let comes = bench.consumer(&config);
            comes.subscribe(["t"]).unwrap();
            joined(&comes).await;
            comes.commit().await.unwrap();
            comes.close(WAIT).await.unwrap();
        }
    };
    tokio::select! {
        () = polling => {}
        () = coming_and_going => {}
    }
}

#[tokio::test]
async fn a_commit_that_meets_the_next_generation_is_made_under_it() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 2).await;
    bench.produce("t", 2, 0, 20).await;
    let config = brief(&bench).set("partition.assignment.strategy", "cooperative-sticky");
    let stays = bench.consumer(&config);
    stays.subscribe(["t"]).unwrap();
    read(&stays, 20).await;
    for refusal in [ResponseError::IllegalGeneration, ResponseError::RebalanceInProgress] {
        // The coordinator says so while the member is in a rebalance that it keeps its partitions through.
        bench.control().hold(ApiKey::JoinGroup);
        let joins = bench.control().requests(ApiKey::JoinGroup);
        bench.control().fail(ApiKey::Heartbeat, 1, ResponseError::RebalanceInProgress);
        while bench.control().requests(ApiKey::JoinGroup) == joins {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.control().fail(ApiKey::OffsetCommit, 1, refusal);
        let offsets = (0..2).map(|partition| (TopicPartition::new("t", partition), 5));
        let (committed, ()) = tokio::join!(stays.commit_offsets(offsets), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            bench.control().clear();
            while stays.shared.lock().identity().unwrap().is_none_or(|who| who.generation < 2) {
                stays.poll(Duration::from_millis(20)).await.unwrap();
            }
        });
        committed.unwrap();
        assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(5));
        stays.commit().await.unwrap();
    }
}

#[test]
fn automatic_commits_go_on_while_the_users_only_thread_is_blocked() {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = theirs.block_on(Bench::embedded(1));
    theirs.block_on(bench.topic("t", 1));
    theirs.block_on(bench.produce("t", 1, 0, 20));
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ours.block_on(async {
        let config = brief(&bench).set_enable_auto_commit(true).set("auto.commit.interval.ms", 50);
        let consumer = bench.consumer(&config.set("max.poll.records", 10));
        consumer.subscribe(["t"]).unwrap();
        read(&consumer, 10).await;
        // The poll that covers the first ten; they are committed while the second ten are worked on without a yield.
        read(&consumer, 10).await;
        let deadline = time::now() + WAIT;
        while bench.broker.as_ref().unwrap().committed("group", "t", 0) != Some(10) {
            assert!(time::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[tokio::test]
async fn a_commit_waits_for_one_that_is_on_its_way_and_never_takes_it_for_done() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    bench.produce("t", 1, 0, 10).await;
    let consumer = bench.consumer(&bench.config());
    consumer.subscribe(["t"]).unwrap();
    read(&consumer, 10).await;
    consumer.commit().await.unwrap();
    let key = TopicPartition::new("t", 0);
    // The first goes back; the second names what the group has now, and will not have when the first is done.
    let (first, second) = tokio::join!(consumer.commit_offsets([(key, 5)]), consumer.commit());
    first.and(second).unwrap();
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(10));
}

#[tokio::test]
async fn a_commit_is_not_waited_for_at_a_broker_that_is_cut_off_once_another_coordinates_the_group() {
    let bench = Bench::embedded(3).await;
    let control = bench.control();
    bench.topic("t", 1).await;
    control.move_leader("t", 0, 1).unwrap();
    control.move_coordinator("group", 2).unwrap();
    let config = bench.config().set("heartbeat.interval.ms", 50);
    let consumer = bench.consumer(&config);
    let partition = TopicPartition::new("t", 0);
    consumer.subscribe(["t"]).unwrap();
    joined(&consumer).await;
    consumer.position(&partition).await.unwrap();
    consumer.commit_offsets([(partition.clone(), 0)]).await.unwrap();
    control.cut(None, Some(2));
    let committer = consumer.committer();
    let commits = [5, 6].map(|offset| committer.commit_async([(partition.clone(), offset)]).unwrap());
    control.move_coordinator("group", 3).unwrap();
    // Less than request.timeout.ms.
    for commit in commits {
        tokio::time::timeout(Duration::from_secs(20), commit)
            .await
            .expect("the old one is waited for")
            .unwrap();
    }
    assert_eq!(bench.broker.as_ref().unwrap().committed("group", "t", 0), Some(6));
}

#[tokio::test]
async fn what_is_committed_is_found_with_its_epoch_if_it_has_one() {
    let bench = Bench::embedded(1).await;
    bench.topic("t", 1).await;
    let consumer = bench.consumer(&bench.config());
    let key = TopicPartition::new("t", 0);
    consumer.assign([key.clone()]).unwrap();
    for epoch in [None, Some(0), Some(3)] {
        let offset = crate::OffsetAndMetadata { leader_epoch: epoch, ..crate::OffsetAndMetadata::new(0) };
        consumer.commit_offsets([(key.clone(), offset)]).await.unwrap();
        let committed = consumer.committed([key.clone()]).await.unwrap();
        assert_eq!(committed[&key].as_ref().map(|committed| committed.leader_epoch), Some(epoch));
    }
}
