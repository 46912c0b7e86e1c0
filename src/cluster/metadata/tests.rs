use super::{merge::*, *};
use crate::wire::{
    self,
    metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
};

fn topic(name: &str, leaders: &[(i32, i32)]) -> MetadataResponseTopic {
    let partitions = leaders.iter().enumerate().map(|(index, (leader, epoch))| MetadataResponsePartition {
        partition_index: index as i32,
        leader_id: *leader,
        leader_epoch: *epoch,
        ..Default::default()
    });
    MetadataResponseTopic { name: Some(name.into()), partitions: partitions.collect(), ..Default::default() }
}

fn answer(topics: Vec<MetadataResponseTopic>) -> wire::MetadataResponse {
    let broker = MetadataResponseBroker {
        node_id: 1,
        host: wire::Str::from_static("b1"),
        port: 9092,
        ..Default::default()
    };
    wire::MetadataResponse { brokers: vec![broker], topics, ..Default::default() }
}

fn all(_: &str) -> bool {
    true
}

#[cfg(feature = "pattern")]
#[test]
fn of_all_topics_those_of_the_pattern_are_kept_and_deleted_ones_are_known_to_be_gone() {
    let pattern = Pattern::new("orders.*", false).unwrap();
    let first = Metadata::default().merge(answer(vec![topic("orders-eu", &[(1, 1)])]), &[], all);
    assert_eq!(first.matching(&pattern), None, "nobody has asked for all");
    let internal = MetadataResponseTopic { is_internal: true, ..topic("orders-own", &[(1, 1)]) };
    let everything = vec![topic("orders-us", &[(1, 1)]), topic("users", &[(1, 1)]), internal];
    let asked = ["elsewhere".into()];
    let second = first.merge_all(answer(everything), &asked, &pattern, |_| false);
    assert_eq!(second.matching(&pattern), Some(vec!["orders-us".into()]));
    assert!(second.is_gone("orders-eu", 0) && second.is_gone("elsewhere", 0));
    assert!(!second.is_gone("orders-us", 0) && !second.topics.contains_key("users"));
    let other = Pattern::new("users", false).unwrap();
    assert_eq!(second.matching(&other), None);

    let back = second.merge_all(answer(vec![topic("orders-eu", &[(1, 1)])]), &[], &pattern, |_| false);
    assert_eq!(back.matching(&pattern), Some(vec!["orders-eu".into()]));
    let mut later = back;
    for _ in 0..=REMEMBERED {
        later = later.merge_all(answer(Vec::new()), &[], &pattern, |_| false);
    }
    assert!(later.topics.is_empty(), "what is gone for long takes no memory");
}

#[test]
fn an_id_that_was_replaced_is_never_gone_back_to() {
    let told = |id: u8, epoch| MetadataResponseTopic {
        topic_id: wire::Uuid([id; 16]),
        ..topic("orders", &[(1, epoch)])
    };
    let gone = || MetadataResponseTopic {
        name: Some("orders".into()),
        error_code: UNKNOWN_TOPIC_OR_PARTITION,
        ..Default::default()
    };
    let asked = ["orders".into()];
    let mut metadata = Metadata::default();
    // What a broker tells, and the id and the epoch that count then.
    let steps = [
        (told(1, 5), 1, 5),
        (told(2, 0), 2, 0),
        (told(1, 6), 2, 0),
        (told(2, 1), 2, 1),
        (told(1, 7), 2, 1),
        (told(3, 0), 3, 0),
        (told(2, 9), 3, 0),
        (told(1, 9), 3, 0),
    ];
    for (answered, id, epoch) in steps {
        metadata = metadata.merge(answer(vec![answered]), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [id; 16]);
        assert_eq!(metadata.leader("orders", 0), Some((1, epoch)));
        assert_eq!(metadata.topic_names().keys().collect::<Vec<_>>(), [&[id; 16]]);
    }
    // Nor through a time in which the topic is not there; the same topic may come back from that.
    metadata = metadata.merge(answer(vec![gone()]), &asked, all);
    assert!(metadata.is_gone("orders", 0));
    metadata = metadata.merge(answer(vec![told(2, 9)]), &asked, all);
    assert!(metadata.is_gone("orders", 0), "a broker that lags behind");
    metadata = metadata.merge(answer(vec![told(3, 1)]), &asked, all);
    assert_eq!(metadata.topic_id("orders"), [3; 16]);
    for id in 4..=u8::MAX {
        metadata = metadata.merge(answer(vec![told(id, 0)]), &asked, all);
    }
    assert!(metadata.topics["orders"].former.replaced.len() <= MOST_FORMER);
}

#[test]
fn an_id_of_which_all_answers_tell_is_believed_in_the_end_and_one_of_another_cluster_at_once() {
    let told = |id: u8, cluster: &str| {
        let topic = MetadataResponseTopic { topic_id: wire::Uuid([id; 16]), ..topic("orders", &[(1, 3)]) };
        wire::MetadataResponse { cluster_id: Some(cluster.into()), ..answer(vec![topic]) }
    };
    let asked = ["orders".into()];
    let mut metadata = Metadata::default();
    // The second comes of a broker that lags behind, and this client has heard of that id never before.
    for id in [2, 1] {
        metadata = metadata.merge(told(id, "here"), &asked, all);
    }
    for _ in 0..MOST_REFUSED {
        metadata = metadata.merge(told(2, "here"), &asked, all);
        assert_eq!(metadata.topic_id("orders"), [1; 16]);
    }
    metadata = metadata.merge(told(2, "here"), &asked, all);
    assert_eq!(metadata.topic_id("orders"), [2; 16]);
    metadata = metadata.merge(told(1, "here"), &asked, all);
    assert_eq!(metadata.topic_id("orders"), [2; 16], "now it is the other that lags");
    metadata = metadata.merge(told(1, "there"), &asked, all);
    assert_eq!(metadata.topic_id("orders"), [1; 16]);
}

#[test]
fn a_cluster_without_an_id_yet_is_not_another_that_has_one_later() {
    let told = |cluster: &str| wire::MetadataResponse {
        cluster_id: Some(cluster.into()),
        ..answer(vec![topic("orders", &[(1, 3)])])
    };
    let starting = Metadata::default().merge(told("redpanda.initializing"), &[], all);
    assert_eq!(starting.cluster_id, None);
    assert_eq!(starting.merge(told("redpanda.1"), &[], all).cluster_id.as_deref(), Some("redpanda.1"));
}

#[test]
fn a_topic_that_is_listed_and_not_kept_any_more_is_not_taken_for_deleted() {
    let pattern = Pattern::new("orders.*", false).unwrap();
    let first = Metadata::default().merge(answer(vec![topic("users", &[(1, 1)])]), &[], all);
    let both = || answer(vec![topic("users", &[(1, 1)]), topic("orders", &[(1, 1)])]);
    let second = first.merge_all(both(), &[], &pattern, |_| false);
    assert!(!second.is_gone("users", 0) && second.is_usable("orders"));
    let third = first.merge_all(answer(Vec::new()), &[], &pattern, |_| false);
    assert!(third.is_gone("users", 0));
}

#[test]
fn a_topic_with_more_partitions_than_any_has_is_not_used() {
    let merge = |count| {
        let answer = answer(vec![topic("t", &vec![(1, 0); count])]);
        Metadata::default().merge(answer, &["t".into()], all)
    };
    assert!(merge(MOST_PARTITIONS).is_usable("t"));
    let merged = merge(MOST_PARTITIONS + 1);
    assert!(merged.permanent_error("t").is_some() && merged.topics["t"].partitions.is_empty());
}

#[test]
fn a_broker_that_does_not_know_what_is_wrong_or_has_too_few_beside_it_for_a_new_topic_is_asked_again() {
    let told = |code| {
        let topic = MetadataResponseTopic { error_code: code, ..topic("t", &[]) };
        Metadata::default().merge(answer(vec![topic]), &["t".into()], all)
    };
    for code in [ErrorCode::UNKNOWN_SERVER_ERROR, ErrorCode::INVALID_REPLICATION_FACTOR] {
        let unknown = told(code.0);
        assert!(unknown.permanent_error("t").is_none() && matches!(unknown.found("t"), Found::Unsettled));
        let (waits, answers) = (unknown.why("t", None).unwrap(), topic_error("t", code));
        assert!(waits.is_retriable() && !answers.is_retriable(), "an admin tells at once what it is told");
    }
    let refused = told(29);
    assert!(refused.permanent_error("t").is_some() && matches!(refused.found("t"), Found::Missing));
}

#[test]
fn of_more_brokers_than_any_cluster_has_the_first_count() {
    let mut many = answer(vec![]);
    let broker = many.brokers[0].clone();
    let ids = 0..MOST_BROKERS as i32 + 10;
    many.brokers = ids.map(|node_id| MetadataResponseBroker { node_id, ..broker.clone() }).collect();
    let merged = Metadata::default().merge(many, &[], all);
    assert_eq!(merged.brokers.len(), MOST_BROKERS);
    assert_eq!(merged.brokers.keys().next_back().copied(), Some(MOST_BROKERS as i32 - 1));
}

#[test]
fn a_leader_of_an_older_epoch_does_not_replace_a_newer_one() {
    let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[], all);
    let second = first.merge(answer(vec![topic("orders", &[(1, 4)])]), &[], all);
    assert_eq!(second.leader("orders", 0), Some((2, 5)));
    let third = second.merge(answer(vec![topic("orders", &[(3, 6)])]), &[], all);
    assert_eq!(third.leader("orders", 0), Some((3, 6)));
}

#[test]
fn an_epoch_that_no_answer_tells_of_any_more_does_not_count_for_ever() {
    let told = |epoch| answer(vec![topic("orders", &[(epoch % 2, epoch)])]);
    let mut metadata = Metadata::default().merge(told(1001), &[], all);
    for _ in 1..MOST_REFUSED {
        metadata = metadata.merge(told(4), &[], all);
    }
    // Told between them, it counts on.
    metadata = metadata.merge(told(1001), &[], all);
    for _ in 0..MOST_REFUSED {
        metadata = metadata.merge(told(4), &[], all);
        assert_eq!(metadata.leader("orders", 0), Some((1, 1001)));
    }
    metadata = metadata.merge(told(4), &[], all);
    assert_eq!(metadata.leader("orders", 0), Some((0, 4)));
    assert_eq!(metadata.merge(told(3), &[], all).leader("orders", 0), Some((0, 4)), "now that one lags");
}

#[test]
fn a_broker_that_does_not_know_a_topic_yet_has_none_of_its_epochs_forgotten() {
    let told = |id: u8, epoch| MetadataResponseTopic {
        topic_id: wire::Uuid([id; 16]),
        ..topic("orders", &[(epoch % 2, epoch)])
    };
    let missing = || MetadataResponseTopic { error_code: 3, ..topic("orders", &[]) };
    let known = Metadata::default().merge(answer(vec![told(1, 7)]), &[], all);
    let gone = known.merge(answer(vec![missing()]), &[], all).merge(answer(vec![missing()]), &[], all);
    assert_eq!(gone.leader("orders", 0), None);
    let behind = gone.merge(answer(vec![told(1, 6)]), &[], all);
    assert_eq!(behind.leader("orders", 0), Some((1, 7)), "who tells of it lags behind");
    assert_eq!(behind.merge(answer(vec![told(1, 8)]), &[], all).leader("orders", 0), Some((0, 8)));
    assert_eq!(
        gone.merge(answer(vec![told(2, 0)]), &[], all).leader("orders", 0),
        Some((0, 0)),
        "it was made again"
    );
    // Neither does one that is told of without its id, or has its next id before it has partitions.
    let nameless = gone.merge(answer(vec![topic("orders", &[(2, 0)])]), &[], all);
    assert_eq!(nameless.leader("orders", 0), Some((2, 0)));
    let starting = MetadataResponseTopic {
        topic_id: wire::Uuid([2; 16]),
        error_code: LEADER_NOT_AVAILABLE,
        ..topic("orders", &[])
    };
    let starting = known.merge(answer(vec![starting]), &[], all);
    assert_eq!(starting.merge(answer(vec![told(2, 0)]), &[], all).leader("orders", 0), Some((0, 0)));
    // Without ids nobody knows which life it is.
    let known = Metadata::default().merge(answer(vec![topic("orders", &[(1, 7)])]), &[], all);
    let again = known.merge(answer(vec![missing()]), &[], all).merge(
        answer(vec![topic("orders", &[(2, 0)])]),
        &[],
        all,
    );
    assert_eq!(again.leader("orders", 0), Some((2, 0)));
}

#[test]
fn a_list_of_all_topics_without_one_has_none_of_its_epochs_forgotten() {
    let told = |epoch| {
        let topic = topic("orders", &[(epoch % 2, epoch)]);
        answer(vec![MetadataResponseTopic { topic_id: wire::Uuid([1; 16]), ..topic }])
    };
    let pattern = Pattern::new("orders.*", false).unwrap();
    let mut metadata = Metadata::default().merge_all(told(7), &[], &pattern, |_| false);
    for _ in 0..2 {
        metadata = metadata.merge_all(answer(Vec::new()), &[], &pattern, |_| false);
        assert!(metadata.is_gone("orders", 0));
    }
    let behind = metadata.merge_all(told(6), &[], &pattern, |_| false);
    assert_eq!(behind.leader("orders", 0), Some((1, 7)), "who tells of it lags behind");
}

#[test]
fn a_topic_made_again_starts_its_epochs_again() {
    let first = Metadata::default().merge(answer(vec![topic("orders", &[(2, 5)])]), &[], all);
    let mut again = topic("orders", &[(1, 0)]);
    again.topic_id = wire::Uuid([9; 16]);
    let second = first.merge(answer(vec![again]), &[], all);
    assert_eq!(second.leader("orders", 0), Some((1, 0)));
}

#[test]
fn topics_not_asked_for_are_kept_and_deleted_ones_are_forgotten() {
    let both = vec![topic("a", &[(1, 0)]), topic("b", &[(1, 0)])];
    let first = Metadata::default().merge(answer(both), &[], all);
    let second = first.merge(answer(vec![]), &["a".into()], all);
    assert!(!second.topics.contains_key("a") && second.found("b") == Found::Settled);
}

#[test]
fn partitions_of_a_deleted_or_smaller_topic_are_gone_and_those_of_an_unknown_one_are_not() {
    let mut deleted = topic("deleted", &[]);
    deleted.error_code = UNKNOWN_TOPIC_OR_PARTITION;
    let metadata = Metadata::default().merge(answer(vec![topic("a", &[(1, 0)]), deleted]), &[], all);
    assert!(metadata.is_gone("a", 1) && metadata.is_gone("deleted", 0));
    assert!(!metadata.is_gone("a", 0) && !metadata.is_gone("a", -1) && !metadata.is_gone("unknown", 0));
}

#[test]
fn absurd_partition_numbers_are_ignored() {
    let mut odd = topic("a", &[(1, 0), (1, 0)]);
    odd.partitions[1].partition_index = i32::MAX;
    let metadata = Metadata::default().merge(answer(vec![odd]), &[], all);
    assert_eq!(metadata.leader("a", 0), Some((1, 0)));
    assert_eq!(metadata.leader("a", 1), None);
    assert_eq!(metadata.leader("a", i32::MAX), None);
    assert_eq!(metadata.leader("a", -1), None);
}

#[test]
fn a_topic_without_partitions_is_not_settled_and_one_that_is_refused_or_unknown_is_missing() {
    let with_error = |name: &str, code| {
        let mut topic = topic(name, &[]);
        topic.error_code = code;
        topic
    };
    let topics = vec![
        topic("empty", &[]),
        topic("good", &[(1, 0)]),
        topic("leaderless", &[(1, 0), (-1, 0)]),
        with_error("starting", LEADER_NOT_AVAILABLE),
        with_error("refused", 29),
        with_error("unknown", UNKNOWN_TOPIC_OR_PARTITION),
    ];
    let metadata = Metadata::default().merge(answer(topics), &[], all);
    for (name, found) in [
        ("empty", Found::Unsettled),
        ("good", Found::Settled),
        ("leaderless", Found::Unsettled),
        ("starting", Found::Unsettled),
        ("refused", Found::Missing),
        ("unknown", Found::Missing),
        ("never heard of", Found::Missing),
    ] {
        assert_eq!(metadata.found(name), found, "{name}");
    }
}

#[test]
fn brokers_that_cannot_be_and_what_is_listed_twice_are_passed_over() {
    let broker = |id: i32, host: &str, port| MetadataResponseBroker {
        node_id: id,
        host: host.into(),
        port,
        ..Default::default()
    };
    let brokers = vec![
        broker(-1, "evil", 9092),
        broker(i32::MIN, "evil", 9092),
        broker(2, "b2", -1),
        broker(3, "b3", 65_536),
        broker(4, "", 9092),
        broker(5, "b5", 0),
        broker(6, "b6", 9092),
        broker(6, "evil", 9092),
        broker(7, "a\0b", 9092),
        broker(8, "two words", 9092),
        broker(9, &"h".repeat(30_000), 9092),
    ];
    let mut twice = topic("a", &[(6, 0), (7, 9), (8, 9)]);
    twice.partitions[1].partition_index = 0;
    twice.partitions[2].partition_index = -3;
    let answer = wire::MetadataResponse { brokers, topics: vec![twice], ..Default::default() };
    let metadata = Metadata::default().merge(answer, &[], all);
    assert_eq!(metadata.brokers.keys().collect::<Vec<_>>(), [&6]);
    assert_eq!(metadata.brokers[&6].address.host, "b6");
    assert_eq!(metadata.topics["a"].partitions.len(), 1);
    assert_eq!(metadata.leader("a", 0), Some((6, 0)));
    let why = |id| metadata.why_broker(id).map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(why(6), "");
    assert!(why(5).contains("\"b5\" port 0") && why(5).contains("advertised.listeners"), "{}", why(5));
    assert!(why(9).len() < 300 && why(7).contains(r#""a\0b""#), "{}", why(9));
    assert!(why(77).contains("not among those") && why(77).contains("broker 77"), "{}", why(77));
}

#[test]
fn a_topic_of_no_interest_is_not_taken_over_and_a_known_one_is_forgotten() {
    let both = || answer(vec![topic("a", &[(1, 0)]), topic("b", &[(1, 0)])]);
    let first = Metadata::default().merge(both(), &[], all);
    let second = first.merge(both(), &[], |name| name == "b");
    assert_eq!(second.topics.keys().map(|name| &**name).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn why_a_partition_cannot_be_used_names_it_and_the_reason() {
    let mut refused = topic("refused", &[]);
    refused.error_code = 29;
    let topics = vec![topic("a", &[(1, 0), (-1, 0)]), topic("empty", &[]), refused];
    let metadata = Metadata::default().merge(answer(topics), &[], all);
    let why = |topic, partition| metadata.why(topic, partition).map(|error| error.to_string());
    assert_eq!(why("a", Some(0)), None);
    assert_eq!(why("a", None), None);
    for (topic, partition, text) in [
        ("a", Some(1), "has no leader"),
        ("a", Some(2), "the topic has 2 partitions, from 0"),
        ("empty", Some(0), "listed without partitions"),
        ("refused", Some(0), "TopicAuthorizationFailed"),
        ("unheard", None, "no broker has told"),
    ] {
        let why = why(topic, partition).unwrap();
        assert!(why.contains(text) && why.contains(topic), "{why}");
    }
}

#[test]
fn topics_are_found_by_their_id() {
    let mut with_id = topic("a", &[(1, 0)]);
    with_id.topic_id = wire::Uuid([9; 16]);
    let metadata = Metadata::default().merge(answer(vec![with_id, topic("b", &[(1, 0)])]), &[], all);
    assert_eq!(metadata.topic_names().get(&[9; 16]).map(|name| &**name), Some("a"));
    assert_eq!(metadata.topic_names().get(&[0; 16]), None, "older brokers have none");
}
