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
#[path = "offsets_tests.rs"]
mod tests;
