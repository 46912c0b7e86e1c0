//! What the membership wants of the rest: partitions that come, go and are lost. Pure.
//!
//! The order it must keep: hand-outs stop first, then what is outstanding is waited for, then the user's listener is told,
//! then commits end, then the partitions are released, and only then the member hears of it and joins again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tracing::{debug, info, warn};

use super::{Action, Core, reading::partition_count};
use crate::{
    config::settings::GroupProtocol,
    consumer::ledger::Life,
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{
        self, Answer, Membership,
        assignor::{Assignment, Strategy},
    },
    record::{TopicPartition, list},
    time::Instant,
};

/// Partitions that are being given up.
#[derive(Debug)]
pub(super) struct Revoking {
    token: Token,
    partitions: Vec<TopicPartition>,
    stage: Stage,
    /// The coordinator waits no longer than until then.
    ends: Instant,
}

impl Revoking {
    pub(super) fn poll_timeout(&self) -> Instant {
        match self.stage {
            Stage::Working { until } | Stage::Telling { until } => until,
            Stage::Committing { deadline } => deadline,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The user may be at work on records of them.
    Working {
        until: Instant,
    },
    /// The listener is told, within the same time.
    Telling {
        until: Instant,
    },
    Committing {
        deadline: Instant,
    },
}

/// What has happened to the assignment, with the lives of the partitions: for who acknowledges records one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Assigned(Vec<(TopicPartition, Life)>),
    /// Nothing more is handed out of them, and what is outstanding is waited for.
    Revoking(Vec<(TopicPartition, Life)>),
    /// They were given up; what was done is committed.
    Revoked(Vec<(TopicPartition, Life)>),
    /// They were taken away.
    Lost(Vec<(TopicPartition, Life)>),
    /// They are read on from somewhere else: what was handed out in these lives and is not done comes again, or is no more.
    Over(Vec<(TopicPartition, Life)>),
}

impl Core {
    /// Whether partitions are being given up, so that the driver must look at what is done.
    pub(crate) fn is_revoking(&self) -> bool {
        self.revoking.is_some()
    }

    /// The protocol of the membership, once that is settled.
    pub(crate) fn group_protocol(&self) -> Option<GroupProtocol> {
        self.member.as_ref().and_then(Membership::protocol)
    }

    /// Has the group rebalance.
    pub(crate) fn enforce_rebalance(&mut self, now: Instant, reason: &str) -> Result<()> {
        self.check_open()?;
        let Some(member) = &mut self.member else {
            return Err(
                Error::new(ErrorKind::Config, "a rebalance needs a consumer group").with_hint("set group.id")
            );
        };
        member.handle_enforce(now, reason)?;
        self.run_member(now);
        Ok(())
    }

    /// What has happened to the assignment since this was last asked.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        let over = self.partitions.take_over();
        if !over.is_empty() {
            changes.push(Change::Over(over));
        }
        changes
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty() || self.partitions.has_over()
    }

    pub(crate) fn handle_group(&mut self, now: Instant, token: Token, answer: Result<Answer>) {
        if let Some(member) = &mut self.member {
            let trouble = answer.as_ref().map_or_else(|error| Some(error.clone()), Answer::trouble);
            self.group_trouble = trouble.map(|error| (now, error));
            member.handle_answer(now, token, answer);
        }
        self.run_member(now);
        self.advance_pattern(now);
        self.run_member(now);
    }

    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        token: Token,
        assignor: Strategy,
        counts: BTreeMap<Arc<str>, i32>,
        plan: Result<Assignment>,
    ) {
        if let Some(member) = &mut self.member {
            member.handle_plan(now, token, assignor, counts, plan);
        }
        self.run_member(now);
    }

    /// Carries out what the membership wants.
    pub(super) fn run_member(&mut self, now: Instant) {
        while let Some(action) = self.member.as_mut().and_then(Membership::poll_action) {
            match action {
                group::Action::Send { token, request, deadline } => {
                    self.actions.push_back(Action::Group { token, request, deadline });
                }
                group::Action::ForgetCoordinator => self.actions.push_back(Action::ForgetCoordinator),
                group::Action::Plan { token, assignor, members, keeps } => {
                    let deadline = now + self.settings.session_timeout / 2;
                    self.actions.push_back(Action::Plan { token, assignor, members, keeps, deadline });
                }
                group::Action::Revoke { token, partitions, since } => {
                    self.begin_revocation(now, token, partitions, since);
                }
                group::Action::Lost { partitions } => self.on_lost(now, &partitions),
                group::Action::Assign { added } => {
                    self.partitions.add(added.iter().cloned(), &self.start_phase());
                    match self.partitions.iter().next() {
                        Some(_) => info!(partitions = %list(&added), "partitions assigned"),
                        None => info!(
                            "in the group, without a partition: it has more members than its topics have partitions, or they are not \
                             there yet"
                        ),
                    }
                    self.refresh_leaders(now);
                    self.note(Change::Assigned, &added);
                    self.tell_assigned(&added);
                    self.tell_member_counts(now);
                    self.news = true;
                }
                group::Action::Identify { topics } => {
                    debug!(?topics, "topics of the assignment are not known yet");
                    // What is subscribed to by name comes with the metadata anyway.
                    self.actions.push_back(match self.pattern.as_mut() {
                        Some(by) => by.identify(topics),
                        None => Action::RefreshMetadata,
                    });
                }
                group::Action::Fail(error) => self.fail(error),
            }
        }
    }

    fn begin_revocation(
        &mut self,
        now: Instant,
        token: Token,
        partitions: Vec<TopicPartition>,
        since: Instant,
    ) {
        debug!(partitions = partitions.len(), "the group rebalances");
        self.partitions.set_revoking(&partitions);
        // The coordinator waits for the rebalance time-out, which is the poll interval, and began to wait before this
        // member heard of the rebalance. Where each record is acknowledged by itself, a rest of that time is kept to
        // commit what is done.
        let patience = self.settings.max_poll_interval;
        let rest =
            if self.partitions.is_by_each() { (patience / 5).min(COMMIT_REST) } else { Duration::ZERO };
        let ends = since + patience;
        self.note(Change::Revoking, &partitions);
        self.revoking =
            Some(Revoking { token, partitions, stage: Stage::Working { until: ends - rest }, ends });
        self.news = true;
        self.advance_revocation(now);
    }

    /// A revocation goes on as soon as nothing of its partitions is in the user's hands, and ends when every commit has.
    pub(super) fn advance_revocation(&mut self, now: Instant) {
        let Some(Revoking { partitions, stage, ends, .. }) = &self.revoking else { return };
        let (mut stage, ends) = (*stage, *ends);
        if let Stage::Working { until } = stage {
            if self.partitions.is_outstanding(partitions) && now < until {
                return;
            }
            let partitions = partitions.clone();
            if self.settings.enable_auto_commit {
                // Committed before the listener is called, which may take long.
                self.commit_covered(now + self.client.request_timeout);
            }
            self.tell_revoked(&partitions);
            stage = Stage::Telling { until };
        }
        if let Stage::Telling { until } = stage
            && (!self.notices.is_busy() || until <= now)
        {
            self.tell_lost(&[]);
            let mut deadline = now + self.client.request_timeout;
            if self.settings.enable_auto_commit {
                // The listener may have sought.
                self.commit_covered(deadline);
            }
            // A slow commit must not keep partitions for longer than the coordinator waits: another member would get them
            // meanwhile.
            deadline = deadline.min(if now < ends { ends } else { now + COMMIT_REST });
            stage = Stage::Committing { deadline };
        }
        if let Some(revoking) = &mut self.revoking {
            revoking.stage = stage;
        }
        let is_over = |revoking: &mut Revoking| match revoking.stage {
            Stage::Working { .. } | Stage::Telling { .. } => false,
            // Commits of other partitions go on.
            Stage::Committing { deadline } => {
                revoking.partitions.iter().all(|key| self.commits.planned(key).is_none()) || deadline <= now
            }
        };
        if let Some(Revoking { token, partitions, .. }) = self.revoking.take_if(is_over) {
            self.note_unfinished(&partitions);
            self.note(Change::Revoked, &partitions);
            self.partitions.release(&partitions);
            self.news = true;
            if let Some(member) = &mut self.member {
                member.handle_revoked(now, token);
            }
            self.run_member(now);
        }
    }

    /// The partitions are another member's already.
    fn on_lost(&mut self, now: Instant, partitions: &[TopicPartition]) {
        // Of a consumer that was closed or has unsubscribed nothing is left to lose.
        let lost: Vec<_> =
            partitions.iter().filter(|key| self.partitions.get(key).is_some()).cloned().collect();
        if !lost.is_empty() {
            warn!(
                partitions = %list(&lost),
                "no longer part of the group: the partitions are released uncommitted; their records come again elsewhere"
            );
            self.note_unfinished(&lost);
            self.note(Change::Lost, &lost);
            self.news = true;
        }
        self.tell_lost(&lost);
        self.revoking = None;
        self.partitions.release(&lost);
        let partitions = &self.partitions;
        let is_ours = |key: &TopicPartition, tenure| partitions.is_of(key, tenure);
        let lost = self.commits.handle_lost(is_ours);
        self.on_commit(now, lost);
    }

    /// Remembers, for the next commit, that something of these partitions was handed out and is not committed.
    fn note_unfinished(&mut self, partitions: &[TopicPartition]) {
        let by_each = self.partitions.is_by_each();
        // Records of a deleted topic will not be handled by another member, so that they do not count as lost.
        let there = partitions.iter().filter(|key| !self.is_known_to_be_gone(key));
        let mut assigned = there.filter_map(|key| self.partitions.get(key));
        let is_lost = assigned.any(|partition| {
            let position = partition.position().map(|position| position.next);
            partition.account.is_uncommitted(position, by_each)
        });
        if is_lost {
            self.lost = Some(false);
        }
    }

    fn note(&mut self, change: fn(Vec<(TopicPartition, Life)>) -> Change, partitions: &[TopicPartition]) {
        if self.partitions.is_by_each() {
            let life = |key: &TopicPartition| Some((key.clone(), self.partitions.get(key)?.life()));
            self.changes.push(change(partitions.iter().filter_map(life).collect()));
        }
    }

    pub(super) fn tell_member_counts(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            let metadata = &self.metadata;
            let counts = |topic: &str| partition_count(metadata, topic);
            member.handle_metadata(now, counts, metadata.topic_names());
        }
        self.run_member(now);
    }
}

/// The part of the rebalance time-out that is kept for the last commit.
const COMMIT_REST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::KafkaConfig,
        consumer::{
            core::{Next, tests::buffer_one},
            offsets::Offset,
        },
        group::{Request, code, wire::encode_assignment},
        time::{self, Rng},
    };

    const HEARTBEAT: Duration = Duration::from_secs(3);

    fn asked(core: &mut Core, now: Instant) -> (Token, Request) {
        let actions = std::iter::from_fn(|| core.poll_action(now));
        let found = actions.filter_map(|action| match action {
            Action::Group { token, request, .. } => Some((token, request)),
            _ => None,
        });
        found.last().expect("the coordinator is asked for nothing")
    }

    fn joined() -> (Core, TopicPartition, Life, Instant) {
        joined_by("range")
    }

    /// A member whose handlers have the first two records of its only partition.
    fn joined_by(assignor: &str) -> (Core, TopicPartition, Life, Instant) {
        let (now, key) = (time::now(), TopicPartition::new("orders", 0));
        let config = KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set_group_id("g")
            .set_enable_auto_commit(true)
            .set("heartbeat.interval.ms", HEARTBEAT.as_millis() as u64)
            .set("partition.assignment.strategy", assignor)
            .set("max.poll.interval.ms", 5_000);
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        core.partitions.acknowledge_each();
        core.subscribe(now, vec!["orders".into()]).unwrap();
        core.handle_poll(now).unwrap();
        let (token, _) = asked(&mut core, now);
        let join = Answer::Join {
            error: 0,
            generation: 1,
            member_id: "me".into(),
            leader: "other".into(),
            protocol: assignor.into(),
            members: Vec::new(),
            skip_assignment: false,
        };
        core.handle_group(now, token, Ok(join));
        let (token, _) = asked(&mut core, now);
        let assignment = encode_assignment(std::slice::from_ref(&key));
        core.handle_group(now, token, Ok(Answer::Sync { error: 0, assignment }));
        core.partitions.set_position(&key, 0, 1);
        core.partitions.get_mut(&key).unwrap().account.hand_out_each(0..2, 1);
        let life = core.partitions.get(&key).unwrap().life();
        (core, key, life, now)
    }

    #[test]
    fn a_handler_is_not_waited_for_longer_than_the_coordinator_waits_whenever_the_member_heard_of_it() {
        let (mut core, key, life, mut now) = joined();
        // Another member has joined right after this one was told of its assignment.
        let begun = now;
        now += HEARTBEAT;
        core.handle_timeout(now);
        let (token, request) = asked(&mut core, now);
        assert!(matches!(request, Request::Heartbeat { .. }), "{request:?}");
        core.handle_group(now, token, Ok(Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS }));
        assert_eq!(core.handle_done(&key, life, &[0]), 1);
        core.handle_poll_end(now);
        let mut revoked = || {
            for _ in 0..100 {
                core.handle_timeout(now);
                while core.poll_action(now).is_some() {}
                if core.take_changes().iter().any(|change| matches!(change, Change::Revoked(_))) {
                    return now - begun;
                }
                now = core.poll_timeout(now).expect("the revocation waits for ever");
            }
            panic!("the revocation is not over after {:?}", now - begun);
        };
        // Its commit is never answered.
        assert_eq!(revoked(), Duration::from_secs(5), "the other member has it from then on");
    }

    #[test]
    fn the_poll_interval_stands_still_while_somebody_is_at_work_and_begins_anew_when_they_stop() {
        let stopped: [Option<crate::consumer::core::AtWork>; 2] = [None, Some(Arc::new(|| false))];
        for stopped in stopped {
            let (mut core, _, _, mut now) = joined();
            let mut beat = |core: &mut Core| {
                now += HEARTBEAT;
                core.handle_timeout(now);
                let (token, request) = asked(core, now);
                core.handle_group(now, token, Ok(Answer::Heartbeat { error: 0 }));
                (now, matches!(request, Request::Heartbeat { .. }))
            };
            core.set_at_work(time::now(), Some(Arc::new(|| true)));
            core.handle_poll_end(time::now());
            let mut last = time::now();
            for _ in 0..4 {
                let (now, is_member) = beat(&mut core);
                assert!(is_member, "two records are out, and a handler may block the only thread");
                last = now;
            }
            core.set_at_work(last, stopped);
            assert!(beat(&mut core).1, "the interval has begun anew");
            assert!(!beat(&mut core).1, "nobody polls, and nobody is at work");
        }
    }

    #[test]
    fn a_call_of_the_listener_that_does_not_return_costs_the_membership_whatever_is_polled_meanwhile() {
        let (mut core, key, life, begun) = joined();
        core.handle_done(&key, life, &[0, 1]);
        core.set_listening(true);
        core.tell_assigned(std::slice::from_ref(&key));
        core.next_notice(begun).expect("the listener is called");
        let (mut now, mut has_left) = (begun, None);
        while now < begun + Duration::from_secs(20) {
            now += Duration::from_secs(1);
            core.handle_poll(now).unwrap();
            core.handle_wait(now + Duration::from_secs(60));
            core.handle_alive(now).unwrap();
            core.handle_wait_end(now + Duration::from_secs(60));
            core.handle_poll_end(now);
            core.handle_timeout(now);
            for action in std::iter::from_fn(|| core.poll_action(now)).collect::<Vec<_>>() {
                let Action::Group { token, request, .. } = action else { continue };
                let answer = match request {
                    Request::Heartbeat { .. } => Answer::Heartbeat { error: 0 },
                    Request::Leave { .. } => {
                        has_left = has_left.or(Some(now - begun));
                        Answer::Leave { error: 0 }
                    }
                    other => panic!("it is back while the call is still at work: {other:?}"),
                };
                core.handle_group(now, token, Ok(answer));
            }
        }
        assert_eq!(has_left, Some(Duration::from_secs(5)));
        core.handle_told(now);
        let (_, request) = asked(&mut core, now);
        assert!(matches!(request, Request::Join { .. }), "{request:?}");
    }

    #[test]
    fn being_at_work_keeps_nobody_whose_work_is_done() {
        let (mut core, key, life, mut now) = joined();
        core.set_at_work(now, Some(Arc::new(|| true)));
        core.handle_done(&key, life, &[0, 1]);
        core.handle_poll_end(now);
        now += Duration::from_secs(5);
        core.handle_timeout(now);
        let (_, request) = asked(&mut core, now);
        assert!(matches!(request, Request::Leave { .. }), "{request:?}");
    }

    #[test]
    fn nothing_is_handed_out_once_the_close_has_begun() {
        let (mut core, key, life, now) = joined();
        buffer_one(&mut core, &key);
        core.handle_done(&key, life, &[0, 1]);
        core.begin_close(now, now + Duration::from_secs(30));
        assert!(core.partitions.has_ready(), "its last commit is out");
        assert!(matches!(core.next_chunk(1), Next::Nothing));
    }

    #[test]
    fn a_poll_counts_until_it_should_have_ended_and_not_for_as_long_as_it_is_kept() {
        for (polls, stays) in [(&[1_u64][..], 5), (&[1, 40], 30)] {
            let (mut core, key, life, mut now) = joined();
            core.handle_done(&key, life, &[0, 1]);
            core.handle_poll_end(now);
            let begin = |core: &mut Core, seconds| {
                core.handle_poll(now).unwrap();
                core.handle_wait(now + Duration::from_secs(seconds));
            };
            begin(&mut core, 3_600);
            // None of them is looked after again.
            polls.iter().chain(&[1]).for_each(|seconds| begin(&mut core, *seconds));
            // The first has ended before its time.
            core.handle_wait_end(now + Duration::from_secs(3_600));
            core.handle_poll_end(now);
            let until = now + Duration::from_secs(stays);
            let mut has_left = None;
            while has_left.is_none() && now < until + Duration::from_secs(60) {
                now += Duration::from_secs(1);
                core.handle_timeout(now);
                for action in std::iter::from_fn(|| core.poll_action(now)).collect::<Vec<_>>() {
                    match action {
                        Action::Group { token, request: Request::Heartbeat { .. }, .. } => {
                            core.handle_group(now, token, Ok(Answer::Heartbeat { error: 0 }));
                        }
                        Action::Group { request: Request::Leave { .. }, .. } => has_left = Some(now),
                        _ => {}
                    }
                }
            }
            let left = has_left.expect("a future that is kept holds the partitions for ever");
            assert!(left > until, "{:?} before a poll had ended", until - left);
        }
    }

    /// The commit that goes out now.
    fn commit_out(core: &mut Core, now: Instant) -> Token {
        let mut actions = std::iter::from_fn(|| core.poll_action(now));
        let commit = actions.find_map(|action| match action {
            Action::Commit(commit) => Some(commit),
            _ => None,
        });
        commit.expect("nothing is committed").token
    }

    #[test]
    fn a_member_that_closes_leaves_its_group_as_soon_as_its_last_commit_is_answered() {
        let (mut core, key, life, now) = joined();
        core.handle_done(&key, life, &[0, 1]);
        core.begin_close(now, now + Duration::from_secs(30));
        for refused in [
            core.subscribe(now, vec!["payments".into()]),
            core.subscribe_pattern(now, &"pay.*".into()),
            core.handle_alive(now),
        ] {
            assert_eq!(refused.unwrap_err().kind(), crate::ErrorKind::Closed);
        }
        let token = commit_out(&mut core, now);
        core.handle_commit(now, token, Ok([(key, 0)].into()));
        let (_, request) = asked(&mut core, now);
        assert!(matches!(request, Request::Leave { .. }), "{request:?}");
    }

    #[test]
    fn what_the_refusal_of_a_commit_says_of_coordinator_and_group_is_heeded_at_once() {
        let refused = |code: i16| {
            let (mut core, key, life, now) = joined();
            core.handle_done(&key, life, &[0]);
            let _told = core.commit(None, now + Duration::from_secs(60)).unwrap();
            let token = commit_out(&mut core, now);
            core.handle_commit(now, token, Ok([(key, code)].into()));
            std::iter::from_fn(|| core.poll_action(now)).collect::<Vec<_>>()
        };
        let actions = refused(code::NOT_COORDINATOR);
        assert!(actions.iter().any(|action| matches!(action, Action::ForgetCoordinator)), "{actions:?}");
        let actions = refused(code::ILLEGAL_GENERATION);
        let is_join = |action: &Action| matches!(action, Action::Group { request: Request::Join { .. }, .. });
        assert!(actions.iter().any(is_join), "{actions:?}");
    }

    #[test]
    fn what_is_named_and_is_ours_is_committed_whatever_was_lost_beside_it() {
        let (mut core, key, _, now) = joined();
        core.lost = Some(false);
        let deadline = now + Duration::from_secs(60);
        let named = |key: TopicPartition| Some([(key, Offset { offset: 1, ..Offset::default() })].into());
        core.commit(named(TopicPartition::new("orders", 1)), deadline).expect_err("of what is not ours");
        assert!(core.commit(named(key), deadline).unwrap().is_some());
        core.commit(None, deadline).expect_err("all is not committed");
        assert!(core.commit(None, deadline).is_ok(), "it is told of once");
    }

    #[test]
    fn a_coordinator_that_does_not_let_a_member_in_again_is_told_of_whatever_the_member_has_kept() {
        for assignor in ["range", "cooperative-sticky"] {
            let (mut core, key, life, now) = joined_by(assignor);
            core.handle_done(&key, life, &[0, 1]);
            let now = now + HEARTBEAT;
            core.handle_timeout(now);
            assert!(core.expected_progress(now).group.is_none());
            let (token, _) = asked(&mut core, now);
            core.handle_group(now, token, Ok(Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS }));
            if assignor == "range" {
                let token = commit_out(&mut core, now);
                core.handle_commit(now, token, Ok([(key, 0)].into()));
            }
            let (token, request) = asked(&mut core, now);
            assert!(matches!(request, Request::Join { .. }), "{request:?}");
            assert!(
                matches!(core.expected_progress(now).group, Some(None)),
                "the others may take their time"
            );
            core.handle_group(
                now,
                token,
                Err(Error::from_code("JoinGroup", code::COORDINATOR_LOAD_IN_PROGRESS)),
            );
            assert!(matches!(core.expected_progress(now).group, Some(Some(_))), "{assignor}");
        }
    }
}
