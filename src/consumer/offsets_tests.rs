use std::time::Duration;

use super::*;
use crate::consumer::ledger::Lives;
use crate::time;

fn commits() -> Commits {
    Commits::new(Backoff::new(Duration::from_millis(100), Duration::from_secs(1)), Rng::new(1))
}

fn member(generation: i32) -> Identity {
    Identity { member_id: "m".to_owned(), generation, instance_id: None }
}

fn offsets(list: &[(i32, i64)]) -> Offsets {
    list.iter()
        .map(|(partition, offset)| {
            let tenure = Some(Lives::default().begin());
            let offset = Offset { offset: *offset, leader_epoch: -1, tenure, ..Offset::default() };
            (TopicPartition::new("t", *partition), offset)
        })
        .collect()
}

fn sent(commits: &mut Commits, now: Instant) -> CommitAction {
    match commits.poll_action(now, Some(&member(3)), |_, _| true) {
        Some(NextCommit::Send(commit)) => commit,
        other => panic!("nothing is sent but {other:?}"),
    }
}

fn later(commits: &mut Commits) -> CommitAction {
    let at = commits.poll_timeout().unwrap();
    sent(commits, at)
}

fn codes(list: &[(i32, i16)]) -> Result<Map<TopicPartition, i16>> {
    Ok(list.iter().map(|(partition, code)| (TopicPartition::new("t", *partition), *code)).collect())
}

/// Whose commits are over, and whether they have succeeded.
fn settled(outcome: &CommitOutcome) -> Vec<(Option<Ticket>, bool)> {
    outcome.settled.iter().map(|(ticket, result)| (*ticket, result.is_ok())).collect()
}

fn failure(outcome: &CommitOutcome) -> &Error {
    outcome.settled.iter().find_map(|(_, result)| result.as_ref().err()).unwrap()
}

#[test]
fn commits_are_sent_one_at_a_time_in_the_order_they_were_made() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let first = sent(&mut commits, now);
    commits.handle_commit(Some(2), offsets(&[(0, 20)]), deadline);
    assert_eq!(first.offsets, offsets(&[(0, 10)]));
    assert!(commits.poll_action(now, Some(&member(3)), |_, _| true).is_none());
    let outcome = commits.handle_answer(now, first.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert_eq!((settled(&outcome), outcome.committed), (vec![(Some(1), true)], offsets(&[(0, 10)])));
    assert_eq!(sent(&mut commits, now).offsets, offsets(&[(0, 20)]));
}

#[test]
fn an_automatic_commit_is_known_of_while_it_is_out_or_waits() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    assert!(!commits.has_automatic(), "the user's own");
    let first = sent(&mut commits, now);
    commits.handle_commit(None, offsets(&[(0, 20)]), deadline);
    assert!(commits.has_automatic(), "it waits");
    commits.handle_answer(now, first.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    let second = sent(&mut commits, now);
    assert!(commits.has_automatic(), "it is out");
    commits.handle_answer(now, second.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert!(!commits.has_automatic());
}

#[test]
fn a_retry_keeps_its_place_before_later_commits() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let first = sent(&mut commits, now);
    commits.handle_commit(Some(2), offsets(&[(0, 20)]), deadline);
    let told =
        commits.handle_answer(now, first.token, codes(&[(0, code::NOT_COORDINATOR)]), |_, _| false).unwrap();
    assert!(told.forget_coordinator && told.settled.is_empty());
    assert!(commits.poll_action(now, Some(&member(3)), |_, _| true).is_none());
    let again = commits.poll_timeout().unwrap();
    assert_eq!(sent(&mut commits, again).offsets, offsets(&[(0, 10)]));
}

#[test]
fn only_what_failed_is_sent_again() {
    let (mut commits, now) = (commits(), time::now());
    commits.handle_commit(Some(1), offsets(&[(0, 10), (1, 11)]), now + Duration::from_secs(60));
    let first = sent(&mut commits, now);
    let told = commits
        .handle_answer(now, first.token, codes(&[(0, 0), (1, code::COORDINATOR_LOAD_IN_PROGRESS)]), |_, _| {
            false
        })
        .unwrap();
    assert_eq!(told.committed, offsets(&[(0, 10)]));
    let second = later(&mut commits);
    assert_eq!(second.offsets, offsets(&[(1, 11)]));
    let told = commits.handle_answer(now, second.token, codes(&[(1, 0)]), |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(1), true)]);
}

#[test]
fn that_a_partition_is_gone_is_told_though_nothing_else_has_come_of_the_commit_yet() {
    let (mut commits, now) = (commits(), time::now());
    commits.handle_commit(Some(1), offsets(&[(0, 10), (1, 11)]), now + Duration::from_secs(60));
    let out = sent(&mut commits, now);
    let answer = codes(&[(0, code::COORDINATOR_LOAD_IN_PROGRESS), (1, UNKNOWN_TOPIC_OR_PARTITION)]);
    let told = commits.handle_answer(now, out.token, answer, |key, _| key.partition == 1);
    assert_eq!(told.expect("it would be committed again and again").gone, offsets(&[(1, 11)]));
}

#[test]
fn a_partition_that_is_gone_holds_nothing_up_and_is_told_of_in_the_end() {
    let (mut commits, now) = (commits(), time::now());
    let all = offsets(&[(0, 10), (1, 11), (2, 12)]);
    commits.handle_commit(Some(1), all, now + Duration::from_secs(60));
    let out = sent(&mut commits, now);
    let answer = codes(&[(0, 0), (1, UNKNOWN_TOPIC_OR_PARTITION), (2, UNKNOWN_TOPIC_OR_PARTITION)]);
    let told = commits.handle_answer(now, out.token, answer, |key, _| key.partition == 2).unwrap();
    assert!(told.settled.is_empty(), "partition 1 may come back");

    let again = later(&mut commits);
    assert_eq!(again.offsets, offsets(&[(1, 11)]));
    let told = commits.handle_answer(now, again.token, codes(&[(1, 0)]), |_, _| false).unwrap();
    assert_eq!((settled(&told), &told.committed), (vec![(Some(1), false)], &offsets(&[(1, 11)])));
    assert_eq!(failure(&told).partition(), Some(2));
    assert!(commits.is_idle());
}

#[test]
fn a_stale_answer_is_dropped() {
    let (mut commits, now) = (commits(), time::now());
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), now + Duration::from_secs(60));
    sent(&mut commits, now);
    assert!(commits.handle_answer(now, Token::STRANGER, codes(&[(0, 0)]), |_, _| false).is_none());
    assert!(!commits.is_idle());
}

#[test]
fn a_commit_whose_generation_is_over_goes_again_under_the_next_with_what_is_still_of_the_same_assignment() {
    let (mut commits, now) = (commits(), time::now());
    let mut lives = Lives::default();
    let (kept, given) = (lives.begin(), lives.begin());
    let mut both = offsets(&[(0, 10), (1, 20)]);
    both.get_mut(&TopicPartition::new("t", 0)).unwrap().tenure = Some(kept);
    both.get_mut(&TopicPartition::new("t", 1)).unwrap().tenure = Some(given);
    commits.handle_commit(Some(1), both, now + Duration::from_secs(60));
    let out = sent(&mut commits, now);
    let refused = codes(&[(0, code::ILLEGAL_GENERATION), (1, code::ILLEGAL_GENERATION)]);
    let told = commits.handle_answer(now, out.token, refused, |_, _| false).unwrap();
    assert_eq!((told.settled.len(), told.fenced), (0, Some((3, code::ILLEGAL_GENERATION))));
    assert!(!commits.is_idle());
    assert!(commits.poll_action(now, Some(&member(3)), |_, _| true).is_none(), "it would be refused again");

    // The plan is not there yet.
    let is_ours = |_: &TopicPartition, tenure| tenure == kept;
    let Some(NextCommit::Send(out)) = commits.poll_action(now, Some(&member(4)), is_ours) else { panic!() };
    assert_eq!((out.identity.generation, out.offsets.len()), (4, 1));
    let waits = codes(&[(0, code::REBALANCE_IN_PROGRESS)]);
    assert!(commits.handle_answer(now, out.token, waits, |_, _| false).is_none());
    let at = commits.poll_timeout().unwrap();
    let Some(NextCommit::Send(out)) = commits.poll_action(at, Some(&member(4)), is_ours) else { panic!() };
    let told = commits.handle_answer(at, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert_eq!(told.committed.len(), 1);
    assert_eq!(settled(&told), [(Some(1), false)], "partition 1 was given up uncommitted");
}

#[test]
fn a_commit_whose_generation_is_over_fails_with_its_partitions() {
    let (mut commits, now) = (commits(), time::now());
    let mut ours = offsets(&[(0, 10)]);
    ours.values_mut().for_each(|offset| offset.tenure = Some(Lives::default().begin()));
    commits.handle_commit(Some(1), ours, now + Duration::from_secs(60));
    let out = sent(&mut commits, now);
    let refused = codes(&[(0, code::ILLEGAL_GENERATION)]);
    assert!(commits.handle_answer(now, out.token, refused, |_, _| false).unwrap().settled.is_empty());
    assert_eq!(settled(&commits.handle_lost(|_, _| false)), [(Some(1), false)]);
    assert!(commits.is_idle());
}

#[test]
fn what_is_planned_of_a_partition_is_the_last_that_was_queued() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    let key = TopicPartition::new("t", 0);
    assert_eq!(commits.planned(&key), None);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let out = sent(&mut commits, now);
    assert_eq!(commits.planned(&key), Some(10));
    commits.handle_commit(Some(2), offsets(&[(0, 5)]), deadline);
    commits.handle_commit(Some(3), offsets(&[(1, 7)]), deadline);
    assert_eq!(commits.planned(&key), Some(5));
    commits.handle_answer(now, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    sent(&mut commits, now);
    assert_eq!(commits.planned(&key), Some(5));
}

#[test]
fn a_commit_of_a_member_that_is_out_fails_and_tells_the_membership() {
    let out = [code::UNKNOWN_MEMBER_ID, code::GROUP_ID_NOT_FOUND];
    for refused in out.into_iter().chain([code::FENCED_INSTANCE_ID, code::FENCED_MEMBER_EPOCH]) {
        let (mut commits, now) = (commits(), time::now());
        commits.handle_commit(Some(1), offsets(&[(0, 10)]), now + Duration::from_secs(60));
        let out = sent(&mut commits, now);
        let outcome = commits.handle_answer(now, out.token, codes(&[(0, refused)]), |_, _| false).unwrap();
        assert_eq!(outcome.fenced, Some((3, refused)));
        assert!(settled(&outcome) == [(Some(1), false)] && outcome.committed.is_empty());
    }
}

#[test]
fn retries_end_at_the_deadline_with_the_last_cause() {
    let (mut commits, mut now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(2);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let mut tries = 0;
    let outcome = loop {
        let out = sent(&mut commits, now);
        tries += 1;
        let lost = Err(Error::new(ErrorKind::Disconnected, "gone"));
        match commits.handle_answer(now, out.token, lost, |_, _| false).unwrap() {
            outcome if !outcome.settled.is_empty() => break outcome,
            _ => now = commits.poll_timeout().unwrap(),
        }
    };
    assert!(tries > 2 && now < deadline);
    assert_eq!(settled(&outcome), [(Some(1), false)]);
    assert_eq!(failure(&outcome).kind(), ErrorKind::Disconnected);
    assert!(commits.is_idle());
}

#[test]
fn who_waits_until_just_when_it_would_be_sent_again_is_told_at_once() {
    let refused = |deadline: Option<Duration>| {
        let (mut commits, now) = (commits(), time::now());
        commits.handle_commit(
            Some(1),
            offsets(&[(0, 10)]),
            now + deadline.unwrap_or(Duration::from_secs(60)),
        );
        let out = sent(&mut commits, now);
        let loads = codes(&[(0, code::COORDINATOR_LOAD_IN_PROGRESS)]);
        let told = commits.handle_answer(now, out.token, loads, |_, _| false);
        (told.map(|told| settled(&told)), commits.poll_timeout().map(|until| until - now))
    };
    let (_, pause) = refused(None);
    assert_eq!(refused(pause), (Some(vec![(Some(1), false)]), None));
}

#[test]
fn lost_partitions_fail_every_waiting_commit_but_those_outside_the_group() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    let mut outside = offsets(&[(1, 5)]);
    outside.values_mut().for_each(|offset| offset.tenure = None);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let out = sent(&mut commits, now);
    commits.handle_commit(Some(2), outside.clone(), deadline);
    assert_eq!(settled(&commits.handle_lost(|_, _| false)), [(Some(1), false)]);
    assert!(!commits.is_idle(), "the other one waits");
    let late = commits.handle_answer(now, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert!(late.committed.is_empty() && late.settled.is_empty());
    let nobody = Identity::standalone();
    let Some(NextCommit::Send(out)) = commits.poll_action(now, Some(&nobody), |_, _| false) else { panic!() };
    assert_eq!(out.offsets, outside);
    commits.handle_commit(Some(3), outside, deadline);
    commits.handle_answer(now, out.token, codes(&[(1, 0)]), |_, _| false).unwrap();
    // Nor does it go out in the name of a membership that has come since.
    let Some(NextCommit::Dropped(dropped)) = commits.poll_action(now, Some(&member(1)), |_, _| true) else {
        panic!()
    };
    assert_eq!(settled(&dropped), [(Some(3), false)]);
}

#[test]
fn a_commit_that_is_out_when_its_partition_is_lost_is_not_passed_by_another_under_the_same_identity() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    let send = |commits: &mut Commits, identity: Identity| match commits.poll_action(
        now,
        Some(&identity),
        |_, _| true,
    )? {
        NextCommit::Send(commit) => Some(commit),
        dropped => panic!("{dropped:?}"),
    };
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
    let early = sent(&mut commits, now);
    commits.handle_lost(|_, _| false);
    assert!(commits.is_idle(), "nobody who closes waits for it");
    // Assigned again: a follower that joins again is let in under the generation that stands.
    commits.handle_commit(Some(2), offsets(&[(0, 20)]), deadline);
    assert!(
        send(&mut commits, member(3)).is_none(),
        "the coordinator may still take the first, and after this"
    );
    assert_eq!(commits.planned(&TopicPartition::new("t", 0)), Some(20));
    let told = commits.handle_answer(now, early.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert!(told.committed.is_empty() && told.settled.is_empty() && told.fenced.is_none());
    let second = send(&mut commits, member(3)).unwrap();
    assert_eq!(second.offsets, offsets(&[(0, 20)]));

    // Under another generation the coordinator refuses what comes late.
    commits.handle_lost(|_, _| false);
    commits.handle_commit(Some(3), offsets(&[(0, 30)]), deadline);
    let third = send(&mut commits, member(4)).unwrap();
    assert!(commits.handle_answer(now, second.token, codes(&[(0, 0)]), |_, _| false).is_none());
    let told = commits.handle_answer(now, third.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(3), true)]);
}

#[test]
fn what_is_still_ours_when_other_partitions_are_lost_stays_out_and_is_told_of() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(1), offsets(&[(0, 10), (1, 11)]), deadline);
    let out = sent(&mut commits, now);
    commits.handle_commit(Some(2), offsets(&[(1, 12)]), deadline);
    commits.handle_commit(Some(3), offsets(&[(0, 13)]), deadline);
    assert_eq!(settled(&commits.handle_lost(|key, _| key.partition == 1)), [(Some(3), false)]);
    assert!(commits.poll_action(now, Some(&member(4)), |_, _| true).is_none(), "one at a time");
    let told = commits.handle_answer(now, out.token, codes(&[(0, 0), (1, 0)]), |_, _| false).unwrap();
    assert_eq!((settled(&told), told.committed), (vec![(Some(1), false)], offsets(&[(1, 11)])));
    assert_eq!(sent(&mut commits, now).offsets, offsets(&[(1, 12)]));
}

#[test]
fn what_belongs_to_an_earlier_assignment_is_dropped_and_the_rest_is_sent() {
    let (mut commits, now) = (commits(), time::now());
    let mut lives = Lives::default();
    let (before, current) = (lives.begin(), lives.begin());
    let mut both = offsets(&[(0, 10), (1, 20)]);
    both.get_mut(&TopicPartition::new("t", 0)).unwrap().tenure = Some(before);
    both.get_mut(&TopicPartition::new("t", 1)).unwrap().tenure = Some(current);
    commits.handle_commit(Some(1), both.clone(), now + Duration::from_secs(60));
    let is_ours = |_: &TopicPartition, tenure| tenure == current;
    let Some(NextCommit::Send(out)) = commits.poll_action(now, Some(&member(4)), is_ours) else { panic!() };
    assert_eq!(out.offsets.keys().map(|key| key.partition).collect::<Vec<_>>(), [1]);
    let outcome = commits.handle_answer(now, out.token, codes(&[(1, 0)]), |_, _| false).unwrap();
    assert_eq!(outcome.committed.len(), 1);
    assert_eq!(failure(&outcome).code().map(|code| code.0), Some(code::UNKNOWN_MEMBER_ID));

    commits.handle_commit(Some(2), both, now + Duration::from_secs(60));
    let dropped = commits.poll_action(now, Some(&member(5)), |_, _| false);
    let Some(NextCommit::Dropped(outcome)) = dropped else { panic!("{dropped:?}") };
    assert!(settled(&outcome) == [(Some(2), false)] && commits.is_idle());
}

#[test]
fn what_waits_goes_out_together_with_the_last_offset_of_each_partition_and_all_are_told() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(1), offsets(&[(0, 1)]), deadline);
    let out = sent(&mut commits, now);
    for number in 2..=1000 {
        commits.handle_commit(
            Some(number),
            offsets(&[(0, number as i64), ((number % 3) as i32 + 1, 7)]),
            deadline,
        );
    }
    commits.handle_answer(now, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    let out = sent(&mut commits, now);
    assert_eq!(out.offsets, offsets(&[(0, 1000), (1, 7), (2, 7), (3, 7)]));
    let refused = codes(&[(0, 0), (1, 0), (2, 0), (3, code::OFFSET_METADATA_TOO_LARGE)]);
    let told = commits.handle_answer(now, out.token, refused, |_, _| false).unwrap();
    let expected: Vec<_> = (2..=1000).map(|number| (Some(number), number % 3 != 2)).collect();
    assert_eq!(settled(&told), expected, "each of what it has named");
    assert_eq!(failure(&told).partition(), Some(3));
    assert!(commits.is_idle());
}

#[test]
fn who_waits_only_for_what_is_committed_does_not_wait_for_what_is_not_yet() {
    let (mut commits, now) = (commits(), time::now());
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), now + Duration::from_secs(60));
    commits.handle_commit(Some(2), offsets(&[(1, 20)]), now + Duration::from_secs(60));
    let out = sent(&mut commits, now);
    let answer = codes(&[(0, 0), (1, code::COORDINATOR_LOAD_IN_PROGRESS)]);
    let told = commits.handle_answer(now, out.token, answer, |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(1), true)]);
    let again = later(&mut commits);
    let told = commits.handle_answer(now, again.token, codes(&[(1, 0)]), |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(2), true)]);
}

#[test]
fn a_commit_of_an_earlier_assignment_fails_when_one_of_a_later_one_takes_its_place() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    let mut lives = Lives::default();
    for (ticket, offset) in [(1, 70), (2, 5)] {
        let mut named = offsets(&[(0, offset)]);
        named.values_mut().for_each(|offset| offset.tenure = Some(lives.begin()));
        commits.handle_commit(Some(ticket), named, deadline);
    }
    let out = sent(&mut commits, now);
    assert_eq!(out.offsets.values().map(|offset| offset.offset).collect::<Vec<_>>(), [5]);
    let loads = codes(&[(0, code::COORDINATOR_LOAD_IN_PROGRESS)]);
    let told = commits.handle_answer(now, out.token, loads, |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(1), false)], "it waits for nothing any more");
    let out = later(&mut commits);
    let told = commits.handle_answer(now, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert_eq!(settled(&told), [(Some(2), true)]);
}

#[test]
fn each_is_told_by_its_own_deadline_whatever_becomes_of_the_request() {
    let (mut commits, now) = (commits(), time::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    commits.handle_commit(Some(1), offsets(&[(0, 10)]), at(1));
    let out = sent(&mut commits, now);
    commits.handle_commit(Some(2), offsets(&[(0, 20)]), at(3));
    commits.handle_commit(Some(3), offsets(&[(0, 30)]), at(2));
    for (seconds, ticket) in [(1, 1), (2, 3), (3, 2)] {
        assert_eq!(commits.poll_timeout(), Some(at(seconds)));
        let late = commits.handle_timeout(at(seconds)).unwrap();
        assert_eq!(settled(&late), [(Some(ticket), false)]);
        assert_eq!(failure(&late).kind(), ErrorKind::Timeout);
    }
    assert_eq!(commits.poll_timeout(), None);
    let told = commits.handle_answer(at(4), out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
    assert_eq!((told.committed.len(), told.settled.len()), (1, 0));
    assert!(commits.is_idle(), "what nobody waits for any more is not sent after its time");
}

#[test]
fn so_many_may_wait_and_those_that_are_forgotten_do_not_count() {
    let (mut commits, now) = (commits(), time::now());
    let deadline = now + Duration::from_secs(60);
    commits.handle_commit(Some(0), offsets(&[(0, 1)]), deadline);
    sent(&mut commits, now);
    let most = MOST_WAITING as u64;
    for ticket in 1..=most * 3 {
        assert!(commits.has_room(|ticket| ticket <= most * 2), "{ticket}");
        commits.handle_commit(Some(ticket), offsets(&[(0, ticket as i64)]), deadline);
    }
    assert!(!commits.has_room(|ticket| ticket <= most * 2));
    assert_eq!(commits.planned(&TopicPartition::new("t", 0)), Some(most as i64 * 3));
    assert!(commits.has_room(|_| true));
}

/// Of topic `t`, whose id is `id`.
fn of_topic(id: TopicId, topic: &str, partition: i32, offset: i64) -> Offsets {
    let offset = Offset { offset, topic_id: id, ..Offset::default() };
    [(TopicPartition::new(topic, partition), offset)].into()
}

#[test]
fn topics_without_an_id_go_in_a_request_of_their_own_and_take_turns_with_the_others() {
    let (mut commits, mut now) = (commits(), time::now());
    let nobody = Identity::standalone();
    let sent = |commits: &mut Commits, now| match commits.poll_action(now, Some(&nobody), |_, _| true) {
        Some(NextCommit::Send(commit)) => commit,
        other => panic!("nothing is sent but {other:?}"),
    };
    let (known, unknown) = (of_topic([1; 16], "a", 0, 10), of_topic([0; 16], "b", 0, 20));
    for (ticket, offsets) in [(1, &known), (2, &unknown)] {
        commits.handle_commit(Some(ticket), offsets.clone(), now + Duration::from_secs(60));
    }
    let key = |offsets: &Offsets| offsets.keys().next().unwrap().clone();
    for _ in 0..3 {
        let first = sent(&mut commits, now);
        assert_eq!(first.offsets, known);
        let refused = Ok([(key(&known), code::COORDINATOR_LOAD_IN_PROGRESS)].into());
        assert!(commits.handle_answer(now, first.token, refused, |_, _| false).is_none());
        now = commits.poll_timeout().unwrap();
        let second = sent(&mut commits, now);
        assert_eq!(second.offsets, unknown, "it waits for no answer that the other gets");
        let lost = Err(Error::new(ErrorKind::Disconnected, "gone"));
        assert!(commits.handle_answer(now, second.token, lost, |_, _| false).unwrap().settled.is_empty());
        now = commits.poll_timeout().unwrap();
    }
    for (ticket, offsets) in [(1, known), (2, unknown)] {
        let out = sent(&mut commits, now);
        assert_eq!(out.offsets, offsets);
        let told =
            commits.handle_answer(now, out.token, Ok([(key(&offsets), 0)].into()), |_, _| false).unwrap();
        assert_eq!((settled(&told), told.committed), (vec![(Some(ticket), true)], offsets));
    }
    assert!(commits.is_idle());
}

#[test]
fn an_offset_of_a_topic_whose_id_is_not_known_yet_is_superseded_by_one_with_the_id_and_not_the_other_way_round()
 {
    let tenure = Some(Lives::default().begin());
    // (the tenure, the ids of the two, whose commits are told of success, the id that is sent)
    for (tenure, first, second, told, id) in [
        (None, [0; 16], [1; 16], [true, true], [1; 16]),
        (None, [1; 16], [1; 16], [true, true], [1; 16]),
        (None, [1; 16], [2; 16], [false, true], [2; 16]),
        // By hand nobody knows which topic the name is of by now; an assignment is of one.
        (None, [1; 16], [0; 16], [false, true], [0; 16]),
        (tenure, [1; 16], [0; 16], [true, true], [1; 16]),
        (tenure, [0; 16], [1; 16], [true, true], [1; 16]),
    ] {
        let (mut commits, now) = (commits(), time::now());
        for (ticket, id) in [(1, first), (2, second)] {
            let mut offsets = of_topic(id, "a", 0, 10 + ticket as i64);
            offsets.values_mut().for_each(|offset| offset.tenure = tenure);
            commits.handle_commit(Some(ticket), offsets, now + Duration::from_secs(60));
        }
        let identity = if tenure.is_some() { member(3) } else { Identity::standalone() };
        let Some(NextCommit::Send(out)) = commits.poll_action(now, Some(&identity), |_, _| true) else {
            panic!()
        };
        let (key, offset) = out.offsets.iter().next().unwrap();
        assert_eq!((offset.offset, offset.topic_id), (12, id));
        let outcome =
            commits.handle_answer(now, out.token, Ok([(key.clone(), 0)].into()), |_, _| false).unwrap();
        let told = [(Some(1), told[0]), (Some(2), told[1])];
        assert_eq!(settled(&outcome), told, "{first:?} and {second:?}");
    }
}

#[test]
fn a_consumer_by_hand_that_is_refused_is_told_to_use_another_group() {
    let (mut commits, now) = (commits(), time::now());
    let by_hand: Offsets = offsets(&[(0, 10)])
        .into_iter()
        .map(|(key, offset)| (key, Offset { tenure: None, ..offset }))
        .collect();
    commits.handle_commit(Some(1), by_hand, now + Duration::from_secs(60));
    let Some(NextCommit::Send(sent)) = commits.poll_action(now, Some(&Identity::standalone()), |_, _| true)
    else {
        panic!("nothing is sent");
    };
    let refused = codes(&[(0, code::UNKNOWN_MEMBER_ID)]);
    let outcome = commits.handle_answer(now, sent.token, refused, |_, _| false).unwrap();
    let error = failure(&outcome).to_string();
    assert!(error.contains("another group.id") && !error.contains("max.poll.interval.ms"), "{error}");
}
