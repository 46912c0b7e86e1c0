//! Commits: their order, their retries, and who waits for them. Pure.
//!
//! One commit is out at a time and the next waits for its answer, so that an older position can never overwrite a newer
//! one. A commit carries the tenure of each partition: what belongs to an earlier assignment is dropped, and never sent
//! under a later generation, since another member may have gone on from there. What is still of the same assignment when the
//! group has gone on to another generation, as with cooperative rebalancing, is sent again under that one. What may be
//! committed is decided elsewhere (`ledger.rs`): this file must never raise an offset.

use std::collections::{BTreeMap, VecDeque};

use super::{fetch::is_passing, ledger::Life};
use crate::{
    cluster::{TopicId, UNKNOWN_TOPIC_OR_PARTITION},
    error::{Error, ErrorKind, Result},
    flights::{Token, Tokens},
    group::{Identity, code},
    record::TopicPartition,
    time::{Backoff, Instant, Rng},
};

/// A position to commit: the offset of the next record to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offset {
    pub(crate) offset: i64,
    /// KIP-320; -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    /// Of the topic whose position it is; all zeros where unknown.
    pub(crate) topic_id: TopicId,
    /// The assignment it belongs to; `None` outside a group, where nobody else owns the partition.
    pub(crate) tenure: Option<Life>,
}

pub(crate) type Offsets = BTreeMap<TopicPartition, Offset>;

/// Names a commit that somebody waits for.
pub(crate) type Ticket = u64;

/// What [`Commits::poll_action`] found.
#[derive(Debug)]
pub(crate) enum Next {
    Send(CommitAction),
    /// Nothing of a commit is ours to commit any more.
    Dropped(Outcome),
}

/// A commit to send; its answer goes to `handle_answer` with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommitAction {
    pub(crate) token: Token,
    pub(crate) identity: Identity,
    pub(crate) offsets: Offsets,
    pub(crate) deadline: Instant,
}

/// What became of a commit.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` for an automatic commit.
    pub(crate) ticket: Option<Ticket>,
    /// What was committed, whatever happened to the rest.
    pub(crate) committed: Offsets,
    pub(crate) result: Result<()>,
    /// The coordinator was lost: look it up again.
    pub(crate) forget_coordinator: bool,
    /// The generation of the commit is over, with the coordinator's code.
    pub(crate) fenced: Option<(i32, i16)>,
}

#[derive(Debug)]
struct Pending {
    ticket: Option<Ticket>,
    offsets: Offsets,
    deadline: Instant,
    /// A partition of it is gone, or another member's: what becomes of the commit when the rest is done.
    gone: Option<Error>,
}

#[derive(Debug)]
enum State {
    Idle,
    Out {
        token: Token,
        generation: i32,
        commit: Pending,
    },
    BackingOff {
        until: Instant,
        /// The generation that is over, and under which it was refused: it need not wait longer than for the next.
        superseded: Option<i32>,
        commit: Pending,
    },
}

impl State {
    fn commit(&self) -> Option<&Pending> {
        match self {
            Self::Idle => None,
            Self::Out { commit, .. } | Self::BackingOff { commit, .. } => Some(commit),
        }
    }
}

/// The queue of commits.
#[derive(Debug)]
pub(crate) struct Commits {
    queue: VecDeque<Pending>,
    state: State,
    tokens: Tokens,
    backoff: Backoff,
    rng: Rng,
}

impl Commits {
    pub(crate) fn new(backoff: Backoff, rng: Rng) -> Self {
        Self { queue: VecDeque::new(), state: State::Idle, tokens: Tokens::default(), backoff, rng }
    }

    /// Nothing is out or queued.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.queue.is_empty()
    }

    /// Whether an automatic commit is out or queued already.
    pub(crate) fn has_automatic(&self) -> bool {
        self.state.commit().into_iter().chain(&self.queue).any(|commit| commit.ticket.is_none())
    }

    /// What the group will have of a partition when all that is out and queued has succeeded; `None` where nothing is.
    pub(crate) fn planned(&self, key: &TopicPartition) -> Option<i64> {
        let last = self.queue.iter().rev().chain(self.state.commit());
        last.filter_map(|commit| commit.offsets.get(key)).map(|offset| offset.offset).next()
    }

    /// Queues a commit. The deadline bounds its retries.
    pub(crate) fn handle_commit(&mut self, ticket: Option<Ticket>, offsets: Offsets, deadline: Instant) {
        self.queue.push_back(Pending { ticket, offsets, deadline, gone: None });
    }

    /// The next commit to send, in the name of `identity`. `is_ours`: whether a partition is still of that assignment.
    pub(crate) fn poll_action(
        &mut self,
        now: Instant,
        identity: Option<&Identity>,
        is_ours: impl Fn(&TopicPartition, Life) -> bool,
    ) -> Option<Next> {
        let mut commit = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.queue.pop_front()?,
            State::BackingOff { until, commit, .. } if until <= now => commit,
            State::BackingOff { superseded: Some(generation), commit, .. }
                if identity.is_none_or(|identity| identity.generation != generation) =>
            {
                commit
            }
            waiting => {
                self.state = waiting;
                return None;
            }
        };
        let before = commit.offsets.len();
        // What was committed without a membership never goes out in the name of one that has come since.
        let is_member = identity.is_some_and(|identity| identity.generation >= 0);
        commit.offsets.retain(|key, offset| offset.tenure.map_or(!is_member, |tenure| is_ours(key, tenure)));
        if commit.offsets.len() < before {
            commit.gone.get_or_insert_with(over);
        }
        let identity = match identity {
            Some(identity) if !commit.offsets.is_empty() => identity.clone(),
            _ => return Some(Next::Dropped(failed(commit))),
        };
        let token = self.tokens.next();
        let (offsets, deadline) = (commit.offsets.clone(), commit.deadline);
        self.state = State::Out { token, generation: identity.generation, commit };
        Some(Next::Send(CommitAction { token, identity, offsets, deadline }))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::BackingOff { until, .. } => Some(*until),
            State::Idle | State::Out { .. } => None,
        }
    }

    /// The coordinator's code for every partition, or why there is no answer. Returns what became of the commit, unless
    /// it goes on. `is_gone`: whether the metadata knows that there is no such partition any more, of the topic of that id. A
    /// commit that waited for one to come back would hold up all others, and the rebalance that lets go of it.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<BTreeMap<TopicPartition, i16>>,
        is_gone: impl Fn(&TopicPartition, TopicId) -> bool,
    ) -> Option<Outcome> {
        let (mut commit, generation) = match std::mem::replace(&mut self.state, State::Idle) {
            State::Out { token: waited, generation, commit } if waited == token => (commit, generation),
            other => {
                self.state = other;
                return None;
            }
        };
        let mut outcome = Outcome {
            ticket: commit.ticket,
            committed: Offsets::new(),
            result: Ok(()),
            forget_coordinator: false,
            fenced: None,
        };
        let failure = match answer {
            Err(error) => {
                let lost = error.code().is_none_or(|code| code::is_moved(code.0));
                outcome.forget_coordinator = lost;
                Some(error)
            }
            Ok(codes) => {
                let mut failure: Option<Error> = None;
                let offsets = std::mem::take(&mut commit.offsets);
                for (partition, offset) in offsets {
                    match codes.get(&partition).copied() {
                        Some(0) => {
                            outcome.committed.insert(partition, offset);
                        }
                        Some(UNKNOWN_TOPIC_OR_PARTITION) if is_gone(&partition, offset.topic_id) => {
                            commit.gone = Some(partition_gone(&partition));
                        }
                        refused => {
                            let error = refusal(&partition, refused, generation, &mut outcome);
                            // The one that says most: a retriable one only if nothing worse came with it.
                            if failure
                                .as_ref()
                                .is_none_or(|known| known.is_retriable() && !error.is_retriable())
                            {
                                failure = Some(error);
                            }
                            commit.offsets.insert(partition, offset);
                        }
                    }
                }
                failure
            }
        };
        let Some(error) = failure else {
            self.backoff.reset();
            outcome.result = commit.gone.map_or(Ok(()), Err);
            return Some(outcome);
        };
        let again = now + self.backoff.next(&mut self.rng);
        let superseded =
            outcome.fenced.filter(|(_, code)| is_superseded(*code)).map(|(generation, _)| generation);
        let goes_on = match outcome.fenced {
            Some(_) => superseded.is_some_and(|generation| generation >= 0),
            None => is_passing(&error) || is_rebalancing(&error),
        };
        if goes_on && again < commit.deadline {
            self.state = State::BackingOff { until: again, superseded, commit };
            // What is committed already must count even if the rest never succeeds.
            let told =
                !outcome.committed.is_empty() || outcome.forget_coordinator || outcome.fenced.is_some();
            outcome.ticket = None;
            return told.then_some(outcome);
        }
        self.backoff.reset();
        outcome.result = Err(error);
        Some(outcome)
    }

    /// The partitions are somebody else's: what waits or is out fails, and nothing of it is sent any more.
    pub(crate) fn handle_lost(&mut self) -> Vec<Outcome> {
        let current = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => None,
            State::Out { commit, .. } | State::BackingOff { commit, .. } => Some(commit),
        };
        let (standing, lost) = current
            .into_iter()
            .chain(self.queue.drain(..))
            .partition::<Vec<_>, _>(|commit| commit.offsets.values().all(|offset| offset.tenure.is_none()));
        self.queue = standing.into();
        lost.into_iter().map(failed).collect()
    }
}

fn failed(commit: Pending) -> Outcome {
    Outcome {
        ticket: commit.ticket,
        committed: Offsets::new(),
        result: Err(commit.gone.unwrap_or_else(over)),
        forget_coordinator: false,
        fenced: None,
    }
}

/// Why nothing was committed: the assignment that it belongs to is over.
pub(crate) fn over() -> Error {
    generation_over(Error::from_code("OffsetCommit", code::UNKNOWN_MEMBER_ID))
}

fn refusal(
    partition: &TopicPartition,
    refused: Option<i16>,
    generation: i32,
    outcome: &mut Outcome,
) -> Error {
    let error = match refused {
        None => Error::protocol("the coordinator left out a partition").with_api("OffsetCommit"),
        Some(code) => {
            outcome.forget_coordinator |= code::is_moved(code);
            let error = Error::from_code("OffsetCommit", code);
            match code {
                code::ILLEGAL_GENERATION
                | code::UNKNOWN_MEMBER_ID
                | code::FENCED_INSTANCE_ID
                | code::FENCED_MEMBER_EPOCH
                | code::STALE_MEMBER_EPOCH => {
                    outcome.fenced = Some((generation, code));
                    generation_over(error)
                }
                code::REBALANCE_IN_PROGRESS => error.with_hint(
                    "the group is rebalancing: keep polling; what was not committed is handed out again",
                ),
                _ => error,
            }
        }
    };
    error.with_topic(std::sync::Arc::clone(&partition.topic)).with_partition(partition.partition)
}

/// The group has gone on to another generation, of which this member may be.
fn is_superseded(code: i16) -> bool {
    matches!(code, code::ILLEGAL_GENERATION | code::STALE_MEMBER_EPOCH)
}

/// The coordinator waits for the plan of a new generation, and takes commits again when it has it.
fn is_rebalancing(error: &Error) -> bool {
    error.code().is_some_and(|code| code.0 == code::REBALANCE_IN_PROGRESS)
}

fn partition_gone(partition: &TopicPartition) -> Error {
    Error::from_code("OffsetCommit", UNKNOWN_TOPIC_OR_PARTITION)
        .with_topic(std::sync::Arc::clone(&partition.topic))
        .with_partition(partition.partition)
        .with_hint("the topic was deleted, or made again; the other partitions are committed")
}

fn generation_over(error: Error) -> Error {
    error.with_hint(
        "the group has given the partitions to another member, which gets these records again; if this happens often, \
         raise max.poll.interval.ms or lower max.poll.records",
    )
}

/// A commit that did not end in time.
pub(crate) fn commit_timeout() -> Error {
    Error::new(ErrorKind::Timeout, "the commit was not acknowledged in time")
        .with_api("OffsetCommit")
        .with_hint("raise default.api.timeout.ms if the coordinator is slow")
}

#[cfg(test)]
mod tests {
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
            Some(Next::Send(commit)) => commit,
            other => panic!("nothing is sent but {other:?}"),
        }
    }

    fn later(commits: &mut Commits) -> CommitAction {
        let at = commits.poll_timeout().unwrap();
        sent(commits, at)
    }

    fn codes(list: &[(i32, i16)]) -> Result<BTreeMap<TopicPartition, i16>> {
        Ok(list.iter().map(|(partition, code)| (TopicPartition::new("t", *partition), *code)).collect())
    }

    #[test]
    fn commits_are_sent_one_at_a_time_in_the_order_they_were_made() {
        let (mut commits, now) = (commits(), time::now());
        let deadline = now + Duration::from_secs(60);
        commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
        commits.handle_commit(Some(2), offsets(&[(0, 20)]), deadline);
        let first = sent(&mut commits, now);
        assert_eq!(first.offsets, offsets(&[(0, 10)]));
        assert!(commits.poll_action(now, Some(&member(3)), |_, _| true).is_none());
        let outcome = commits.handle_answer(now, first.token, codes(&[(0, 0)]), |_, _| false).unwrap();
        assert_eq!((outcome.ticket, outcome.committed), (Some(1), offsets(&[(0, 10)])));
        assert_eq!(sent(&mut commits, now).offsets, offsets(&[(0, 20)]));
    }

    #[test]
    fn a_retry_keeps_its_place_before_later_commits() {
        let (mut commits, now) = (commits(), time::now());
        let deadline = now + Duration::from_secs(60);
        commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
        commits.handle_commit(Some(2), offsets(&[(0, 20)]), deadline);
        let first = sent(&mut commits, now);
        let told = commits
            .handle_answer(now, first.token, codes(&[(0, code::NOT_COORDINATOR)]), |_, _| false)
            .unwrap();
        assert!(told.forget_coordinator && told.ticket.is_none() && told.result.is_ok());
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
            .handle_answer(
                now,
                first.token,
                codes(&[(0, 0), (1, code::COORDINATOR_LOAD_IN_PROGRESS)]),
                |_, _| false,
            )
            .unwrap();
        assert_eq!(told.committed, offsets(&[(0, 10)]));
        let second = later(&mut commits);
        assert_eq!(second.offsets, offsets(&[(1, 11)]));
        assert!(
            commits.handle_answer(now, second.token, codes(&[(1, 0)]), |_, _| false).unwrap().result.is_ok()
        );
    }

    #[test]
    fn a_partition_that_is_gone_holds_nothing_up_and_is_told_of_in_the_end() {
        let (mut commits, now) = (commits(), time::now());
        let all = offsets(&[(0, 10), (1, 11), (2, 12)]);
        commits.handle_commit(Some(1), all, now + Duration::from_secs(60));
        let out = sent(&mut commits, now);
        let answer = codes(&[(0, 0), (1, UNKNOWN_TOPIC_OR_PARTITION), (2, UNKNOWN_TOPIC_OR_PARTITION)]);
        let told = commits.handle_answer(now, out.token, answer, |key, _| key.partition == 2).unwrap();
        assert!(told.ticket.is_none() && told.result.is_ok(), "partition 1 may come back");

        let again = later(&mut commits);
        assert_eq!(again.offsets, offsets(&[(1, 11)]));
        let told = commits.handle_answer(now, again.token, codes(&[(1, 0)]), |_, _| false).unwrap();
        assert_eq!((told.ticket, told.committed), (Some(1), offsets(&[(1, 11)])));
        assert_eq!(told.result.unwrap_err().partition(), Some(2));
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
    fn a_commit_whose_generation_is_over_goes_again_under_the_next_with_what_is_still_of_the_same_assignment()
    {
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
        assert_eq!((told.ticket, told.fenced), (None, Some((3, code::ILLEGAL_GENERATION))));
        assert!(told.result.is_ok() && !commits.is_idle());
        assert!(
            commits.poll_action(now, Some(&member(3)), |_, _| true).is_none(),
            "it would be refused again"
        );

        // The plan is not there yet.
        let is_ours = |_: &TopicPartition, tenure| tenure == kept;
        let Some(Next::Send(out)) = commits.poll_action(now, Some(&member(4)), is_ours) else { panic!() };
        assert_eq!((out.identity.generation, out.offsets.len()), (4, 1));
        let waits = codes(&[(0, code::REBALANCE_IN_PROGRESS)]);
        assert!(commits.handle_answer(now, out.token, waits, |_, _| false).is_none());
        let at = commits.poll_timeout().unwrap();
        let Some(Next::Send(out)) = commits.poll_action(at, Some(&member(4)), is_ours) else { panic!() };
        let told = commits.handle_answer(at, out.token, codes(&[(0, 0)]), |_, _| false).unwrap();
        assert_eq!((told.ticket, told.committed.len()), (Some(1), 1));
        told.result.expect_err("partition 1 was given up uncommitted");
    }

    #[test]
    fn a_commit_whose_generation_is_over_fails_with_its_partitions() {
        let (mut commits, now) = (commits(), time::now());
        let mut ours = offsets(&[(0, 10)]);
        ours.values_mut().for_each(|offset| offset.tenure = Some(Lives::default().begin()));
        commits.handle_commit(Some(1), ours, now + Duration::from_secs(60));
        let out = sent(&mut commits, now);
        let refused = codes(&[(0, code::ILLEGAL_GENERATION)]);
        assert!(commits.handle_answer(now, out.token, refused, |_, _| false).unwrap().result.is_ok());
        let lost = commits.handle_lost();
        assert!(lost.len() == 1 && lost[0].ticket == Some(1) && lost[0].result.is_err());
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
        for refused in [code::UNKNOWN_MEMBER_ID, code::FENCED_INSTANCE_ID, code::FENCED_MEMBER_EPOCH] {
            let (mut commits, now) = (commits(), time::now());
            commits.handle_commit(Some(1), offsets(&[(0, 10)]), now + Duration::from_secs(60));
            let out = sent(&mut commits, now);
            let outcome =
                commits.handle_answer(now, out.token, codes(&[(0, refused)]), |_, _| false).unwrap();
            assert_eq!(outcome.fenced, Some((3, refused)));
            assert!(outcome.result.is_err() && outcome.committed.is_empty());
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
                outcome if outcome.result.is_err() => break outcome,
                _ => now = commits.poll_timeout().unwrap(),
            }
        };
        assert!(tries > 2 && now < deadline);
        assert_eq!(outcome.ticket, Some(1));
        assert!(commits.is_idle());
    }

    #[test]
    fn lost_partitions_fail_every_waiting_commit_but_those_outside_the_group() {
        let (mut commits, now) = (commits(), time::now());
        let deadline = now + Duration::from_secs(60);
        let mut outside = offsets(&[(1, 5)]);
        outside.values_mut().for_each(|offset| offset.tenure = None);
        commits.handle_commit(Some(1), offsets(&[(0, 10)]), deadline);
        commits.handle_commit(Some(2), outside.clone(), deadline);
        commits.handle_commit(Some(3), outside.clone(), deadline);
        let out = sent(&mut commits, now);
        let lost: Vec<_> = commits.handle_lost().into_iter().map(|outcome| outcome.ticket).collect();
        assert_eq!(lost, [Some(1)]);
        assert!(commits.handle_answer(now, out.token, codes(&[(0, 0)]), |_, _| false).is_none());
        let nobody = Identity::standalone();
        let Some(Next::Send(out)) = commits.poll_action(now, Some(&nobody), |_, _| false) else { panic!() };
        assert_eq!(out.offsets, outside);
        commits.handle_answer(now, out.token, codes(&[(1, 0)]), |_, _| false).unwrap();
        // Nor does it go out in the name of a membership that has come since.
        let Some(Next::Dropped(dropped)) = commits.poll_action(now, Some(&member(1)), |_, _| true) else {
            panic!()
        };
        assert_eq!((dropped.ticket, dropped.result.is_err()), (Some(3), true));
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
        let Some(Next::Send(out)) = commits.poll_action(now, Some(&member(4)), is_ours) else { panic!() };
        assert_eq!(out.offsets.keys().map(|key| key.partition).collect::<Vec<_>>(), [1]);
        let outcome = commits.handle_answer(now, out.token, codes(&[(1, 0)]), |_, _| false).unwrap();
        assert_eq!(outcome.committed.len(), 1);
        assert_eq!(outcome.result.unwrap_err().code().map(|code| code.0), Some(code::UNKNOWN_MEMBER_ID));

        commits.handle_commit(Some(2), both, now + Duration::from_secs(60));
        let dropped = commits.poll_action(now, Some(&member(5)), |_, _| false);
        let Some(Next::Dropped(outcome)) = dropped else { panic!("{dropped:?}") };
        assert!(outcome.ticket == Some(2) && outcome.result.is_err() && commits.is_idle());
    }
}
