//! Commits of a consumer whose partitions are assigned by hand, and what they say when its topic is made again.

use super::*;
use crate::{
    cluster::Metadata,
    config::KafkaConfig,
    consumer::{
        ledger::Life,
        lookups::FoundOffset,
        partitions::{Phase, Position},
    },
    error,
    time::{self, Rng},
    wire::{
        self, Uuid,
        metadata_response::{MetadataResponsePartition, MetadataResponseTopic},
    },
};

const ORDERS: TopicId = [1; 16];

fn key() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn metadata(before: &Metadata, id: TopicId) -> Arc<Metadata> {
    let partition = MetadataResponsePartition { leader_id: 1, leader_epoch: 1, ..Default::default() };
    let topic = MetadataResponseTopic {
        name: Some("orders".into()),
        topic_id: Uuid(id),
        partitions: vec![partition],
        ..Default::default()
    };
    let answer = wire::MetadataResponse { topics: vec![topic], ..Default::default() };
    Arc::new(before.merge(answer, &["orders".into()], |_| true))
}

fn place(offset: i64, by_id: bool) -> FoundOffset {
    FoundOffset { offset, leader_epoch: -1, timestamp: -1, metadata: String::new(), by_id }
}

/// One that has partition 0 of `orders` assigned by hand, at what the group has committed: offset 5, and a text.
fn core(now: Instant) -> Core {
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    core.handle_metadata(now, metadata(&core.metadata, ORDERS));
    core.assign(now, vec![key()]).unwrap();
    let mut asked = Vec::new();
    while let Some(action) = core.poll_action(now) {
        if let Action::FindCommitted { partitions, .. } = action {
            asked = partitions;
        }
    }
    let place =
        FoundOffset { offset: 5, leader_epoch: 1, timestamp: -1, metadata: "mine".to_owned(), by_id: true };
    core.handle_found_committed(now, &asked, Ok([(key(), Ok(place))].into()));
    core
}

/// The leader refuses the id that it is read by, and metadata tell of this one.
fn made_again(core: &mut Core, now: Instant, id: TopicId) {
    if let Some(partition) = core.partitions.get_mut(&key()) {
        partition.note_refused(error::code::UNKNOWN_TOPIC_ID);
    }
    core.handle_metadata(now, metadata(&core.metadata, id));
}

fn asked(core: &mut Core, now: Instant) -> Option<Vec<(TopicPartition, Life)>> {
    std::iter::from_fn(|| core.poll_action(now)).find_map(|action| match action {
        Action::FindCommitted { partitions, .. } => Some(partitions),
        _ => None,
    })
}

fn commits(core: &mut Core, now: Instant) -> Vec<CommitAction> {
    core.handle_timeout(now);
    let actions = std::iter::from_fn(|| core.poll_action(now));
    let commit = |action| match action {
        Action::Commit(commit) => Some(commit),
        _ => None,
    };
    actions.filter_map(commit).collect()
}

#[test]
fn what_is_committed_and_does_not_change_is_committed_again_before_it_expires() {
    let begun = time::now();
    let mut core = core(begun);
    let minutes = |minutes: u64| begun + Duration::from_secs(60 * minutes);
    let mut sent = Vec::new();
    assert!((1..=150).all(|minute| commits(&mut core, minutes(minute)).is_empty()), "another's");
    let own = Offset { offset: 5, metadata: "mine".to_owned(), ..Offset::default() };
    let begun = minutes(150);
    core.commit(Some([(key(), own)].into()), begun + IDLE).unwrap();
    let minutes = |minutes: u64| begun + Duration::from_secs(60 * minutes);
    for minute in 1..=150 {
        for commit in commits(&mut core, minutes(minute)) {
            let offset = &commit.offsets[&key()];
            assert_eq!((offset.offset, offset.metadata.as_str()), (5, "mine"));
            core.handle_commit(minutes(minute), commit.token, Ok([(key(), 0)].into()));
            sent.push(minute);
        }
    }
    assert_eq!(sent, [1, 61, 121]);
}

#[test]
fn committed_offsets_of_topics_without_an_id_are_asked_for_apart_from_the_others() {
    let now = time::now();
    let mut core = core(now);
    let unknown = TopicPartition::new("unknown", 0);
    core.assign(now, vec![TopicPartition::new("orders", 1), unknown.clone()]).unwrap();
    let asked = std::iter::from_fn(|| core.poll_action(now)).filter_map(|action| match action {
        Action::FindCommitted { partitions, .. } => {
            Some(partitions.into_iter().map(|(key, _)| key).collect::<Vec<_>>())
        }
        _ => None,
    });
    assert_eq!(asked.collect::<Vec<_>>(), [vec![TopicPartition::new("orders", 1)], vec![unknown]]);
}

#[test]
fn what_the_metadata_says_is_gone_is_committed_until_the_coordinator_says_so_too() {
    let now = time::now();
    let mut core = core(now);
    let deleted = |core: &Core| {
        let topic = MetadataResponseTopic {
            error_code: UNKNOWN_TOPIC_OR_PARTITION,
            name: Some("orders".into()),
            ..Default::default()
        };
        let answer = wire::MetadataResponse { topics: vec![topic], ..Default::default() };
        Arc::new(core.metadata.merge(answer, &["orders".into()], |_| true))
    };
    core.handle_metadata(now, deleted(&core));
    core.handle_metadata(now, deleted(&core));
    assert!(core.metadata.is_gone("orders", 0));
    core.seek(&key(), Phase::Fetching(Position::at(9))).unwrap();
    let commit = |core: &mut Core| core.commit(None, now + IDLE).unwrap();
    let mut receipt = commit(&mut core).expect("one broker may know less than another");
    let sent = commits(&mut core, now);
    assert_eq!(sent[0].offsets[&key()].offset, 9);
    core.handle_commit(now, sent[0].token, Ok([(key(), UNKNOWN_TOPIC_OR_PARTITION)].into()));
    let error = receipt.try_recv().unwrap().unwrap_err();
    assert_eq!(error.code().map(|code| code.0), Some(UNKNOWN_TOPIC_OR_PARTITION), "{error}");
    assert!(commit(&mut core).is_none(), "told once");

    core.handle_metadata(now, metadata(&core.metadata, ORDERS));
    core.handle_metadata(now, deleted(&core));
    assert!(commit(&mut core).is_some(), "it was there meanwhile");
}

#[test]
fn who_has_handed_out_nothing_of_a_topic_begins_where_the_group_is_in_the_one_made_again() {
    let now = time::now();
    let asked = |core: &mut Core| {
        let actions: Vec<_> = std::iter::from_fn(|| core.poll_action(now)).collect();
        assert!(!actions.iter().any(|action| matches!(action, Action::ListOffsets { .. })));
        actions.into_iter().find_map(|action| match action {
            Action::FindCommitted { partitions, .. } => Some(partitions),
            _ => None,
        })
    };
    let at = |offset| place(offset, true);
    for has_position in [true, false] {
        let mut core = core(now);
        let mut before = Vec::new();
        if !has_position {
            core.assign(now, Vec::new()).unwrap();
            core.assign(now, vec![key()]).unwrap();
            before = asked(&mut core).unwrap();
        }
        made_again(&mut core, now, [2; 16]);
        let again = asked(&mut core).expect("the group may be in the new one already");
        core.handle_found_committed(now, &before, Ok([(key(), Ok(at(5)))].into()));
        core.handle_found_committed(now, &again, Ok([(key(), Ok(at(1_000)))].into()));
        assert_eq!(core.position(&key()).unwrap(), Some(1_000));
    }
}

#[test]
fn what_was_committed_before_a_topic_was_made_again_is_believed_by_its_id_alone() {
    let now = time::now();
    for (found, expected) in [
        (place(5, false), None),
        (place(5, true), Some(5)),
        (place(6, false), Some(6)),
        (place(0, false), Some(0)),
    ] {
        let mut core = core(now);
        let own = Offset { offset: 5, topic_id: ORDERS, ..Offset::default() };
        let committed = Offsets::from([(key(), own)]);
        core.on_commit(now, CommitOutcome { committed, ..CommitOutcome::default() });
        core.partitions.get_mut(&key()).unwrap().note_served(now, true);
        made_again(&mut core, now, [2; 16]);
        assert!(asked(&mut core, now).is_none(), "what it has committed is of the old one");
        made_again(&mut core, now, [3; 16]);
        let asked = asked(&mut core, now).unwrap();
        core.handle_found_committed(now, &asked, Ok([(key(), Ok(found.clone()))].into()));
        assert_eq!(core.position(&key()).unwrap(), expected, "{found:?}");
        let is_reset = std::iter::from_fn(|| core.poll_action(now))
            .any(|action| matches!(action, Action::ListOffsets { .. }));
        assert_eq!(is_reset, expected.is_none(), "{found:?}");
    }
}

#[test]
fn what_was_found_before_a_topic_was_made_again_is_believed_when_the_coordinator_stays_with_it() {
    for (later, expected) in [(5, Some(5)), (1_000, Some(1_000)), (-1, None)] {
        let mut now = time::now();
        let mut core = core(now);
        made_again(&mut core, now, [2; 16]);
        let mut answers = 0;
        while answers < 4 && core.position(&key()).unwrap().is_none() {
            let Some(asked) = asked(&mut core, now) else { break };
            answers += 1;
            // The first answer may come from before it knew that the topic was made again.
            let place = place(if answers == 1 { 5 } else { later }, false);
            core.handle_found_committed(now, &asked, Ok([(key(), Ok(place))].into()));
            assert!(answers > 1 || core.position(&key()).unwrap().is_none());
            now += Duration::from_secs(1);
        }
        assert_eq!(core.position(&key()).unwrap(), expected);
        assert_eq!(answers, if later == 5 { 4 } else { 2 });
    }
}

#[test]
fn what_is_done_of_partitions_that_are_assigned_by_hand_is_committed_when_others_take_their_place() {
    let now = time::now();
    for others in [vec![TopicPartition::new("orders", 1)], Vec::new()] {
        let mut core = core(now);
        core.seek(&key(), Phase::Fetching(Position::at(8_000))).unwrap();
        core.assign(now, others).unwrap();
        let sent = commits(&mut core, now);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].offsets[&key()].offset, 8_000);
    }
}

#[test]
fn a_commit_of_partitions_that_are_assigned_by_hand_outlives_their_assignment() {
    let now = time::now();
    let mut core = core(now);
    core.seek(&key(), Phase::Fetching(Position::at(9))).unwrap();
    let mut receipt = core.commit(None, now + IDLE).unwrap().unwrap();
    let sent = commits(&mut core, now);
    let moved = Ok([(key(), group::code::NOT_COORDINATOR)].into());
    core.handle_commit(now, sent[0].token, moved);
    core.assign(now, vec![TopicPartition::new("orders", 1)]).unwrap();
    let again = commits(&mut core, now + Duration::from_secs(2));
    assert_eq!(again[0].offsets[&key()].offset, 9);
    core.handle_commit(now, again[0].token, Ok([(key(), 0)].into()));
    receipt.try_recv().unwrap().unwrap();
}

#[test]
fn what_becomes_of_a_commit_says_nothing_of_a_later_assignment_or_another_topic() {
    let now = time::now();
    let mut core = core(now);
    let before = core.partitions.get(&key()).unwrap().account.tenure();
    let told = |core: &mut Core, code, tenure, topic_id| {
        let offsets =
            || Offsets::from([(key(), Offset { offset: 70, tenure, topic_id, ..Offset::default() })]);
        let (committed, gone) = match code {
            0 => (offsets(), Offsets::new()),
            _ => (Offsets::new(), offsets()),
        };
        core.on_commit(now, CommitOutcome { committed, gone, ..CommitOutcome::default() });
        let partition = core.partitions.get(&key()).unwrap();
        (partition.account.committed().is_some_and(|committed| committed.offset == 70), partition.gone_told)
    };
    core.assign(now, Vec::new()).unwrap();
    core.assign(now, vec![key()]).unwrap();
    core.handle_metadata(now, metadata(&core.metadata, [2; 16]));
    let tenure = core.partitions.get(&key()).unwrap().account.tenure();
    for code in [0, UNKNOWN_TOPIC_OR_PARTITION] {
        assert_eq!(told(&mut core, code, Some(before), [2; 16]), (false, false), "an earlier assignment");
        assert_eq!(told(&mut core, code, None, ORDERS), (false, false), "the topic before");
    }
    assert_eq!(told(&mut core, 0, Some(tenure), [2; 16]), (true, false));
    assert_eq!(told(&mut core, UNKNOWN_TOPIC_OR_PARTITION, None, [2; 16]), (true, true));
}

#[test]
fn what_is_known_of_a_membership_that_is_over_is_committed_in_nobodys_name() {
    let now = time::now();
    let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
    let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
    let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
    let commit = |core: &mut Core| {
        core.commit(Some([(key(), Offset { offset: 7, ..Offset::default() })].into()), now + IDLE).map(drop)
    };
    commit(&mut core).unwrap();
    core.subscribe(now, vec!["orders".into()]).unwrap();
    core.subscribe(now, Vec::new()).unwrap();
    let error = commit(&mut core).unwrap_err();
    assert_eq!(error.code().map(|code| code.0), Some(group::code::UNKNOWN_MEMBER_ID), "{error}");
    core.assign(now, vec![key()]).unwrap();
    commit(&mut core).unwrap();
}

#[test]
fn a_commit_names_the_topic_that_its_position_is_of_and_is_not_waited_for_when_that_is_gone() {
    let now = time::now();
    let mut core = core(now);
    let mut receipt = core
        .commit(Some([(key(), Offset { offset: 7, ..Offset::default() })].into()), now + IDLE)
        .unwrap()
        .unwrap();
    let sent = commits(&mut core, now);
    assert_eq!((sent[0].offsets[&key()].topic_id, sent[0].offsets[&key()].offset), (ORDERS, 7));
    let refused = || Ok([(key(), UNKNOWN_TOPIC_OR_PARTITION)].into());
    core.handle_commit(now, sent[0].token, refused());
    assert!(receipt.try_recv().is_err(), "the coordinator may not know of the topic yet");

    core.handle_metadata(now, metadata(&core.metadata, [2; 16]));
    let again = commits(&mut core, now + Duration::from_secs(2));
    assert_eq!(again[0].offsets[&key()].topic_id, ORDERS, "never under the id of the new one");
    core.handle_commit(now, again[0].token, refused());
    let error = receipt.try_recv().unwrap().unwrap_err();
    assert_eq!(error.code().map(|code| code.0), Some(UNKNOWN_TOPIC_OR_PARTITION), "{error}");
}

#[test]
fn what_was_read_before_a_topic_was_made_again_is_not_committed_for_the_one_that_there_is_now() {
    let now = time::now();
    let mut core = core(now);
    let commit = |core: &mut Core, since| {
        let named = Offset { offset: 70, since, ..Offset::default() };
        core.commit(Some([(key(), named)].into()), now + IDLE).map(drop)
    };
    let records = Since::Records(core.partitions.get(&key()).unwrap().account.life());
    let handle = Since::Handle(core.partitions.now());
    for since in [records, handle, Since::Now] {
        commit(&mut core, since).unwrap();
    }
    core.partitions.get_mut(&key()).unwrap().note_served(now, true);
    made_again(&mut core, now, [2; 16]);
    let code = |error: Error| error.code().map(|code| code.0);
    assert_eq!(code(commit(&mut core, records).unwrap_err()), Some(group::code::UNKNOWN_MEMBER_ID));
    let error = commit(&mut core, handle).unwrap_err();
    assert!(error.to_string().contains("made again"), "{error}");
    assert_eq!((error.topic(), code(error.clone())), (Some("orders"), Some(UNKNOWN_TOPIC_OR_PARTITION)));
    let again = Since::Handle(core.partitions.now());
    for since in [again, Since::Now] {
        commit(&mut core, since).unwrap();
    }

    // Nor of one that was made again while nobody had it assigned.
    core.assign(now, Vec::new()).unwrap();
    core.handle_metadata(now, metadata(&core.metadata, [3; 16]));
    core.assign(now, vec![key()]).unwrap();
    assert_eq!(code(commit(&mut core, again).unwrap_err()), Some(UNKNOWN_TOPIC_OR_PARTITION));
    let last = Since::Handle(core.partitions.now());
    commit(&mut core, last).unwrap();
}
