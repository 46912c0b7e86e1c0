//! Where a partition is read from: topics that were made again, ids (KIP-516), replicas nearby (KIP-392), leaders
//! that are named (KIP-951).

use super::*;
use crate::consumer::partitions::MetadataId;

/// Brokers tell of this id of all topics.
fn ids(bench: &mut Bench, id: u8) -> Vec<TopicPartition> {
    let told = MetadataId { id: [id; 16], is_disputed: false };
    bench.partitions.set_topic_ids(bench.now, |_| told, |_| false)
}

#[test]
fn a_topic_made_again_is_read_by_the_reset_policy_and_nothing_of_the_old_one_is_committed() {
    let mut bench = Bench::read_up_to_20(20);
    assert!(ids(&mut bench, 1).is_empty(), "an id that is heard of first is no news");
    assert!(ids(&mut bench, 0).is_empty(), "nor is a broker that tells none");
    assert_eq!(bench.covered(0), Some(20));
    let fetch = bench.plan().unwrap();
    assert!(bench.answer(&fetch, vec![refused(0, code::UNKNOWN_TOPIC_ID)]).refresh_metadata);
    let again = ids(&mut bench, 2);
    assert_eq!(again, [key(0)]);
    for (policy, fails) in [(AutoOffsetReset::Earliest, false), (AutoOffsetReset::None, true)] {
        assert_eq!(Bench::lookups(policy).handle_made_again(&again, false, &mut bench.partitions), fails);
        assert_eq!(bench.covered(0), None);
        assert_eq!(bench.partitions.buffered(), 0);
    }
    let error = bench.partitions.failure().unwrap();
    assert!(error.to_string().contains("made again"), "{error}");
    assert!(!error.is_retriable(), "it is over only when the user seeks");
}

#[test]
fn topics_are_asked_for_by_id_and_answers_are_told_apart_by_it() {
    let mut bench = Bench::new(&[1], 1 << 20);
    ids(&mut bench, 7);
    let fetch = bench.plan().unwrap();
    assert!(fetch.request.by_id);
    let answer = |id: u8| wire::FetchResponse {
        session_id: 9,
        responses: vec![wire::fetch_response::FetchableTopicResponse {
            topic_id: wire::Uuid([id; 16]),
            partitions: vec![data(0, batch(0, 10))],
            ..Default::default()
        }],
        ..Default::default()
    };
    bench.answered(&fetch, Ok(answer(6)));
    assert_eq!(bench.position().fetch, 0, "that is another topic");
    bench.now += Duration::from_millis(200);
    let fetch = bench.plan().unwrap();
    bench.answered(&fetch, Ok(answer(7)));
    assert_eq!(bench.position().fetch, 10);
}

#[test]
fn the_nearest_replica_is_read_until_it_refuses_and_at_most_for_its_time() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let send_to_2 = |bench: &mut Bench| {
        let fetch = bench.plan().unwrap();
        assert_eq!(fetch.broker, 1);
        let mut nearer = data(0, Vec::new());
        nearer.preferred_read_replica = 2;
        bench.answer(&fetch, vec![nearer]);
        // The session with it may have the partition on its list still.
        bench.plan().filter(|fetch| fetch.broker == 2).unwrap()
    };
    // One that lags has not got that far: its leader has.
    let fetch = send_to_2(&mut bench);
    let effects = bench.answer(&fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
    assert!(effects.out_of_range.is_empty(), "only the leader's word is taken for that");
    bench.now += Duration::from_millis(100);
    // One that cannot be reached.
    let fetch = send_to_2(&mut bench);
    bench.answered(&fetch, Err(Error::new(crate::ErrorKind::Disconnected, "gone")));
    bench.now += Duration::from_secs(2);
    // Its time is over.
    let fetch = send_to_2(&mut bench);
    bench.answer(&fetch, vec![data(0, Vec::new())]);
    bench.now += Duration::from_secs(300);
    bench.partitions.check_replicas(bench.now, |_| true);
    // It is not among the brokers any more.
    let fetch = send_to_2(&mut bench);
    bench.partitions.check_replicas(bench.now, |broker| broker != 2);
    bench.answer(&fetch, Vec::new());
    // The leader moves.
    send_to_2(&mut bench);
    bench.lead(1, 1);
    assert_eq!(bench.plan().map(|fetch| fetch.broker), Some(1));
}

#[test]
fn a_leader_that_has_named_a_replica_that_failed_is_not_asked_for_one_for_long() {
    let (second, five_minutes) = (Duration::from_secs(1), Duration::from_secs(300));
    type Fail = fn(&mut Bench, &FetchAction);
    let fails: [(Fail, Duration); 4] = [
        (
            |bench, fetch| {
                bench.answer(fetch, vec![refused(0, code::OFFSET_OUT_OF_RANGE)]);
            },
            second,
        ),
        (
            |bench, fetch| {
                bench.answer(fetch, vec![refused(0, code::NOT_LEADER_OR_FOLLOWER)]);
            },
            five_minutes,
        ),
        (
            |bench, fetch| {
                let gone = Error::new(crate::ErrorKind::Disconnected, "gone");
                bench.answered(fetch, Err(gone));
            },
            five_minutes,
        ),
        (
            |bench, fetch| {
                let denied = wire::FetchResponse { error_code: 31, ..Default::default() };
                bench.answered(fetch, Ok(denied));
            },
            five_minutes,
        ),
    ];
    for (fail, pause) in fails {
        let mut bench = Bench::new(&[1], 1 << 20);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && fetch.names_rack);
        let mut nearer = data(0, Vec::new());
        nearer.preferred_read_replica = 2;
        bench.answer(&fetch, vec![nearer]);
        let fetch = bench.plan().filter(|fetch| fetch.broker == 2).unwrap();
        let failed = bench.now;
        fail(&mut bench, &fetch);
        bench.now += Duration::from_millis(100);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && !fetch.names_rack, "the leader serves it itself");
        bench.answer(&fetch, vec![data(0, batch(0, 10))]);
        bench.now = failed + pause - Duration::from_millis(1);
        let fetch = bench.plan().unwrap();
        assert!(fetch.broker == 1 && !fetch.names_rack);
        bench.answer(&fetch, vec![]);
        bench.now = failed + pause;
        assert!(bench.plan().is_some_and(|fetch| fetch.broker == 1 && fetch.names_rack));
    }
}

#[test]
fn a_refusal_that_names_the_leader_is_handed_on() {
    let mut bench = Bench::new(&[1], 1 << 20);
    let fetch = bench.plan().unwrap();
    let mut moved = refused(0, code::NOT_LEADER_OR_FOLLOWER);
    moved.current_leader.leader_id = 2;
    moved.current_leader.leader_epoch = 1;
    let effects = bench.answer(&fetch, vec![moved]);
    assert_eq!(effects.hints, [LeaderHint { partition: key(0), topic_id: [0; 16], leader: 2, epoch: 1 }]);
    assert!(effects.refresh_metadata);
}

#[test]
fn a_log_that_does_not_fit_is_another_topics_when_one_is_told_of() {
    type Misfit = fn() -> wire::fetch_response::PartitionData;
    let misfits: [Misfit; 2] = [
        || refused(0, code::OFFSET_OUT_OF_RANGE),
        || {
            let mut data = data(0, Vec::new());
            (data.diverging_epoch.epoch, data.diverging_epoch.end_offset) = (0, 10);
            data
        },
    ];
    for misfit in misfits {
        let mut bench = Bench::read_up_to_20(20);
        ids(&mut bench, 1);
        assert!(ids(&mut bench, 2).is_empty(), "its leader has not said so");
        let fetch = bench.plan().unwrap();
        let effects = bench.answer(&fetch, vec![misfit()]);
        assert!(effects.refresh_metadata && effects.out_of_range.is_empty() && effects.truncated.is_empty());
        assert_eq!(bench.position().next, 20);
        assert_eq!(ids(&mut bench, 2), [key(0)]);
    }
}

#[test]
fn a_leader_that_passes_a_partition_over_in_its_session_serves_the_id_it_was_asked_by() {
    for by_id in [true, false] {
        let mut bench = Bench::new(&[1], 1 << 20);
        ids(&mut bench, 1);
        let fetch = bench.plan().unwrap();
        let partitions = vec![data(0, batch(0, 20))];
        let topic = wire::fetch_response::FetchableTopicResponse { partitions, ..Default::default() };
        let topic = match by_id {
            true => wire::fetch_response::FetchableTopicResponse { topic_id: wire::Uuid([1; 16]), ..topic },
            false => wire::fetch_response::FetchableTopicResponse { topic: "t".into(), ..topic },
        };
        let brought = wire::FetchResponse { session_id: 9, responses: vec![topic], ..Default::default() };
        bench.answered(&fetch, Ok(brought));
        assert_eq!(bench.poll(10).len(), 10);
        // The only broker that tells of topics is behind, and nothing is written.
        let mut again = Vec::new();
        for _ in 0..30 {
            again.append(&mut ids(&mut bench, 2));
            let fetch = bench.plan().unwrap();
            bench.now += Duration::from_secs(1);
            bench.answered(&fetch, Ok(wire::FetchResponse { session_id: 9, ..Default::default() }));
        }
        assert_eq!(again.is_empty(), by_id, "what is asked by name says nothing of the id");
    }
}

#[test]
fn while_another_topic_is_told_of_the_leader_of_the_one_that_is_read_stays() {
    let mut bench = Bench::read_up_to_20(20);
    ids(&mut bench, 1);
    ids(&mut bench, 2);
    bench.lead(2, 0);
    assert_eq!(bench.plan().map(|fetch| fetch.broker), Some(1));
    ids(&mut bench, 1);
    bench.lead(2, 4);
    assert!(bench.partitions.get(&key(0)).is_some_and(|partition| partition.leader == Some((2, 4))));
}

#[test]
fn only_the_leader_is_asked_whether_the_log_is_still_the_same() {
    let mut bench = Bench::read_up_to_20(20);
    let fetch = bench.plan().unwrap();
    assert_eq!(fetch.request.partitions[0].1.last_epoch, 3);
    let mut nearer = data(0, Vec::new());
    nearer.preferred_read_replica = 2;
    bench.answer(&fetch, vec![nearer]);
    let fetch = bench.plan().filter(|fetch| fetch.broker == 2).unwrap();
    assert_eq!(fetch.request.partitions[0].1.last_epoch, -1);
}
