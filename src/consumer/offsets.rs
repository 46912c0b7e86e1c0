//! Commits: their order, their retries, and who waits for them. Pure.
//!
//! One commit is out at a time and the next waits for its answer, so that an older position can never overwrite a newer
//! one. What waits goes out together: of a partition only the last offset, and each who waits is told of what he has
//! named. A commit carries the tenure of each partition: what belongs to an earlier assignment is dropped, and never sent
//! under a later generation, since another member may have gone on from there. What is still of the same assignment when
//! the group has gone on to another generation, as with cooperative rebalancing, is sent again under that one. What may
//! be committed is decided elsewhere (`ledger.rs`): this file must never raise an offset.

use super::{fetch::is_passing, ledger::Life};
use crate::{
    cluster::{TopicId, UNKNOWN_TOPIC_OR_PARTITION},
    error::{Error, ErrorKind, Result},
    flights::{Token, Tokens},
    group::{Identity, code},
    record::TopicPartition,
    sorted::Map,
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
    pub(crate) since: Since,
}

/// What tells of which log an offset is that the user names: the number alone does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Since {
    #[default]
    Now,
    /// The offset comes from records that were handed out in this life.
    Records(Life),
    /// The commit is asked for through a handle that was made in this life.
    Handle(Life),
}

impl Offset {
    /// Whether this later offset makes the earlier one needless: both are of the same assignment and the same topic. An
    /// assignment is of one topic, whether its id is known or not.
    fn supersedes(&self, before: &Self) -> bool {
        let is_same = || !before.is_by_id() || self.topic_id == before.topic_id;
        self.tenure == before.tenure && (is_same() || self.tenure.is_some() && !self.is_by_id())
    }

    /// Whether its topic is named by its id. One request does so with all of its topics, or with none.
    fn is_by_id(&self) -> bool {
        self.topic_id != TopicId::default()
    }
}

pub(crate) type Offsets = Map<TopicPartition, Offset>;

/// Names a commit that somebody waits for.
pub(crate) type Ticket = u64;

/// What [`Commits::poll_action`] found.
#[derive(Debug)]
pub(crate) enum NextCommit {
    Send(CommitAction),
    /// Nothing of a commit is ours to commit any more.
    Dropped(CommitOutcome),
}

/// A commit to send; its answer goes to `handle_answer` with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommitAction {
    pub(crate) token: Token,
    pub(crate) identity: Identity,
    pub(crate) offsets: Offsets,
    pub(crate) deadline: Instant,
}

/// What became of commits.
#[derive(Debug, Default)]
pub(crate) struct CommitOutcome {
    /// The commits that are over; `None` names an automatic one.
    pub(crate) settled: Vec<(Option<Ticket>, Result<()>)>,
    /// What was committed, whatever happened to the rest.
    pub(crate) committed: Offsets,
    /// Refused, as there are no such partitions any more.
    pub(crate) gone: Offsets,
    /// The coordinator was lost: look it up again.
    pub(crate) forget_coordinator: bool,
    /// The generation of the commit is over, with the coordinator's code.
    pub(crate) fenced: Option<(i32, i16)>,
}

impl CommitOutcome {
    fn is_nothing(&self) -> bool {
        self.settled.is_empty()
            && self.committed.is_empty()
            && self.gone.is_empty()
            && !self.forget_coordinator
            && self.fenced.is_none()
    }
}

/// A commit as it was asked for; it may go out together with others.
#[derive(Debug)]
struct Waiter {
    ticket: Option<Ticket>,
    /// Its partitions that have no outcome yet.
    keys: Vec<TopicPartition>,
    deadline: Instant,
    /// What becomes of it when the rest is done: a partition of it is gone, another member's, or refused.
    failure: Option<Error>,
}

impl Waiter {
    fn end(self, otherwise: impl FnOnce() -> Result<()>) -> (Option<Ticket>, Result<()>) {
        (self.ticket, self.failure.map_or_else(otherwise, Err))
    }
}

/// What goes out in one request; or in two in turns if not all topics have an id. A topic that has one must not be named
/// by its name, which may be another topic's by now.
#[derive(Debug)]
struct Pending {
    offsets: Offsets,
    /// Whether its last request named topics by their ids.
    by_id: bool,
    waiters: Vec<Waiter>,
    /// The last and the first deadline of the waiters. The last one holds even if its waiter does not wait any more.
    last: Instant,
    first: Option<Instant>,
}

impl Pending {
    fn new(ticket: Option<Ticket>, offsets: Offsets, deadline: Instant) -> Self {
        let keys = offsets.keys().cloned().collect();
        let waiter = Waiter { ticket, keys, deadline, failure: None };
        Self { offsets, by_id: false, waiters: vec![waiter], last: deadline, first: Some(deadline) }
    }

    /// What goes out next.
    fn next_request(&mut self) -> Offsets {
        self.by_id = match self.offsets.values().any(Offset::is_by_id) {
            true if self.offsets.values().all(Offset::is_by_id) => true,
            true => !self.by_id,
            false => false,
        };
        let of_request = |(_, offset): &(&TopicPartition, &Offset)| offset.is_by_id() == self.by_id;
        self.offsets.iter().filter(of_request).map(|(key, offset)| (key.clone(), offset.clone())).collect()
    }

    /// Takes out what has just gone out.
    fn take_request(&mut self) -> Offsets {
        let all = std::mem::take(&mut self.offsets).into_iter();
        let (request, rest): (Vec<_>, Vec<_>) = all.partition(|(_, offset)| offset.is_by_id() == self.by_id);
        self.offsets = rest.into_iter().collect();
        request.into_iter().collect()
    }

    /// Takes in a later commit that goes out together with it: of each partition the later offset counts.
    fn absorb(&mut self, later: Self) {
        let mut absorbed = Vec::new();
        for (key, mut offset) in later.offsets {
            match self.offsets.get(&key) {
                Some(before) if !offset.supersedes(before) => self.fail(&key, over),
                Some(before) if !offset.is_by_id() => offset.topic_id = before.topic_id,
                _ => {}
            }
            absorbed.push((key, offset));
        }
        self.offsets.extend(absorbed);
        self.waiters.extend(later.waiters);
        self.last = self.last.max(later.last);
        self.first = self.first.into_iter().chain(later.first).min();
    }

    /// Drops this partition, and notes the error for those who wait for it so far.
    fn fail(&mut self, key: &TopicPartition, error: impl Fn() -> Error) {
        for waiter in &mut self.waiters {
            if waiter.keys.contains(key) {
                waiter.keys.retain(|waited| waited != key);
                waiter.failure.get_or_insert_with(&error);
            }
        }
    }

    /// Drops what is not `kept`, and notes the error for those who wait for it.
    fn fail_unless(&mut self, kept: impl Fn(&TopicPartition, &Offset) -> bool) {
        let before = self.offsets.len();
        self.offsets.retain(|key, offset| kept(key, offset));
        if self.offsets.len() == before {
            return;
        }
        let offsets = &self.offsets;
        for waiter in &mut self.waiters {
            let waited = waiter.keys.len();
            waiter.keys.retain(|key| offsets.contains_key(key));
            if waiter.keys.len() < waited {
                waiter.failure.get_or_insert_with(over);
            }
        }
    }

    /// Takes out the waiters for whom it is over.
    fn take(&mut self, is_over: impl FnMut(&Waiter) -> bool) -> Vec<Waiter> {
        let (over, rest) = std::mem::take(&mut self.waiters).into_iter().partition(is_over);
        self.waiters = rest;
        self.first = self.waiters.iter().map(|waiter| waiter.deadline).min();
        over
    }

    /// Settles the waiters of whose offsets nothing is left to be committed.
    fn settle(&mut self, settled: &mut Vec<(Option<Ticket>, Result<()>)>) {
        let offsets = &self.offsets;
        for waiter in &mut self.waiters {
            waiter.keys.retain(|key| offsets.contains_key(key));
        }
        settled
            .extend(self.take(|waiter| waiter.keys.is_empty()).into_iter().map(|done| done.end(|| Ok(()))));
    }

    /// Settles those who have waited until `now`.
    fn expire(&mut self, now: Instant, settled: &mut Vec<(Option<Ticket>, Result<()>)>) {
        if self.first.is_some_and(|first| first <= now) {
            let late = self.take(|waiter| waiter.deadline <= now);
            settled.extend(late.into_iter().map(|late| late.end(|| Err(commit_timeout()))));
        }
    }

    /// Ends the commit with this error for all that is left of it.
    fn end(self) -> CommitOutcome {
        let settled = self.waiters.into_iter().map(|waiter| waiter.end(|| Err(over()))).collect();
        CommitOutcome { settled, ..CommitOutcome::default() }
    }
}

#[derive(Debug)]
enum State {
    Idle,
    /// The answer is waited for even if nothing of the commit is ours any more: under the same identity the coordinator
    /// could apply this commit after a later one.
    Out {
        token: Token,
        identity: Identity,
        commit: Pending,
    },
    BackingOff {
        until: Instant,
        /// The generation under which the commit was refused because it is over: the commit waits only until the next one
        /// is known.
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

/// The commit that is out, and what waits for its answer.
#[derive(Debug)]
pub(crate) struct Commits {
    /// All that was asked for since the commit before it went out.
    waiting: Option<Pending>,
    state: State,
    /// So many waiters are looked through for those that nobody waits for any more.
    crowd: usize,
    tokens: Tokens,
    backoff: Backoff,
    rng: Rng,
}

impl Commits {
    pub(crate) fn new(backoff: Backoff, rng: Rng) -> Self {
        Self { waiting: None, state: State::Idle, crowd: CROWD, tokens: Tokens::default(), backoff, rng }
    }

    /// Whether no commit is out or waits that anybody still cares about.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.commit().is_none_or(|commit| commit.offsets.is_empty()) && self.waiting.is_none()
    }

    /// Whether an automatic commit is out or waits already.
    pub(crate) fn has_automatic(&self) -> bool {
        let mut all = self.state.commit().into_iter().chain(&self.waiting);
        all.any(|commit| commit.waiters.iter().any(|waiter| waiter.ticket.is_none()))
    }

    /// What the group will have of a partition when all that is out and waits has succeeded; `None` where nothing is.
    pub(crate) fn planned(&self, key: &TopicPartition) -> Option<i64> {
        let mut last = self.waiting.iter().chain(self.state.commit());
        last.find_map(|commit| commit.offsets.get(key)).map(|offset| offset.offset)
    }

    /// Asks for a commit, which goes out together with what waits already. The deadline bounds its retries.
    pub(crate) fn handle_commit(&mut self, ticket: Option<Ticket>, offsets: Offsets, deadline: Instant) {
        let commit = Pending::new(ticket, offsets, deadline);
        match &mut self.waiting {
            Some(waiting) => waiting.absorb(commit),
            None => self.waiting = Some(commit),
        }
    }

    /// Whether one more commit may be asked for. Those that `is_forgotten` says nobody waits for do not count; they are
    /// still carried out.
    pub(crate) fn has_room(&mut self, mut is_forgotten: impl FnMut(Ticket) -> bool) -> bool {
        let Some(waiting) = &mut self.waiting else { return true };
        if waiting.waiters.len() >= self.crowd.min(MOST_WAITING) {
            waiting.take(|waiter| waiter.ticket.is_some_and(&mut is_forgotten));
            self.crowd = (waiting.waiters.len() * 2).max(CROWD);
        }
        waiting.waiters.len() < MOST_WAITING
    }

    /// The next commit to send, in the name of `identity`. `is_ours`: whether a partition is still of that assignment.
    pub(crate) fn poll_action(
        &mut self,
        now: Instant,
        identity: Option<&Identity>,
        is_ours: impl Fn(&TopicPartition, Life) -> bool,
    ) -> Option<NextCommit> {
        let mut commit = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.waiting.take()?,
            State::Out { identity: before, commit, .. }
                if commit.offsets.is_empty()
                    && self.waiting.is_some()
                    && identity.is_some_and(|identity| *identity != before) =>
            {
                self.waiting.take()?
            }
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
        // A commit that was asked for without a membership never goes out in the name of one that has begun since.
        let is_member = identity.is_some_and(|identity| identity.generation >= 0);
        commit.fail_unless(|key, offset| offset.tenure.map_or(!is_member, |tenure| is_ours(key, tenure)));
        let identity = match identity {
            Some(identity) if !commit.offsets.is_empty() => identity.clone(),
            _ => return Some(NextCommit::Dropped(commit.end())),
        };
        let token = self.tokens.next();
        let (offsets, deadline) = (commit.next_request(), commit.last);
        self.state = State::Out { token, identity: identity.clone(), commit };
        Some(NextCommit::Send(CommitAction { token, identity, offsets, deadline }))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let again = match &self.state {
            State::BackingOff { until, .. } => Some(*until),
            State::Idle | State::Out { .. } => None,
        };
        let waited = self.state.commit().into_iter().chain(&self.waiting).filter_map(|commit| commit.first);
        again.into_iter().chain(waited).min()
    }

    /// Settles the waiters whose commits have taken too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<CommitOutcome> {
        let mut outcome = CommitOutcome::default();
        if let State::Out { commit, .. } | State::BackingOff { commit, .. } = &mut self.state {
            commit.expire(now, &mut outcome.settled);
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.expire(now, &mut outcome.settled);
        }
        if matches!(&self.state, State::BackingOff { commit, .. } if commit.last <= now) {
            self.state = State::Idle;
        }
        self.waiting.take_if(|waiting| waiting.last <= now);
        (!outcome.is_nothing()).then_some(outcome)
    }

    /// The coordinator's code for every partition, or why there is no answer. Returns what has become of commits, if that is
    /// anything yet. `is_gone`: whether the metadata knows that there is no such partition any more, of the topic of that id. A
    /// commit that waited for one to come back would hold up all others, and the rebalance that lets go of it.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<Map<TopicPartition, i16>>,
        is_gone: impl Fn(&TopicPartition, TopicId) -> bool,
    ) -> Option<CommitOutcome> {
        let (mut commit, generation) = match std::mem::replace(&mut self.state, State::Idle) {
            State::Out { token: waited, identity, commit } if waited == token => {
                (commit, identity.generation)
            }
            other => {
                self.state = other;
                return None;
            }
        };
        let mut outcome = CommitOutcome::default();
        let refused = refused(&mut commit, generation, answer, is_gone, &mut outcome);
        let superseded =
            outcome.fenced.filter(|(_, code)| is_superseded(*code)).map(|(generation, _)| generation);
        // What may succeed later, and why it has not; the rest is over.
        let (mut again, mut back) = (Map::new(), Vec::new());
        for (key, offset, error) in refused {
            let goes_on = match outcome.fenced {
                Some(_) => superseded.is_some_and(|generation| generation >= 0),
                None => is_passing(&error) || is_rebalancing(&error),
            };
            if goes_on {
                back.push((key.clone(), offset));
                again.insert(key, error);
            } else {
                commit.fail(&key, || error.clone());
            }
        }
        commit.offsets.extend(back);
        commit.settle(&mut outcome.settled);
        if commit.offsets.is_empty() {
            self.backoff.reset();
            return Some(outcome);
        }
        // What the last request did not name, because topics with and without ids take turns, goes at once.
        let until = if again.is_empty() { now } else { now + self.backoff.next(&mut self.rng) };
        for late in commit.take(|waiter| waiter.deadline <= until) {
            let cause = late.keys.first().and_then(|key| again.get(key)).cloned();
            outcome.settled.push(late.end(|| Err(cause.unwrap_or_else(commit_timeout))));
        }
        if commit.last <= until {
            self.backoff.reset();
        } else {
            self.state = State::BackingOff { until, superseded, commit };
        }
        // What is committed already must count even if the rest never succeeds.
        (!outcome.is_nothing()).then_some(outcome)
    }

    /// Partitions were lost: commits of those that are not ours any more fail, whether they wait or are out, and are not
    /// sent again.
    pub(crate) fn handle_lost(&mut self, is_ours: impl Fn(&TopicPartition, Life) -> bool) -> CommitOutcome {
        let mut outcome = CommitOutcome::default();
        let mut drop_lost = |commit: &mut Pending| {
            commit.fail_unless(|key, offset| offset.tenure.is_none_or(|tenure| is_ours(key, tenure)));
            commit.settle(&mut outcome.settled);
            commit.offsets.is_empty()
        };
        if let State::Out { commit, .. } = &mut self.state {
            // Its answer is waited for all the same.
            drop_lost(commit);
        }
        if let State::BackingOff { commit, .. } = &mut self.state
            && drop_lost(commit)
        {
            self.state = State::Idle;
        }
        self.waiting.take_if(|commit| drop_lost(commit));
        outcome
    }
}

/// Takes what the coordinator answered out of the commit; what it has refused, or not heard of, comes back with the reason.
fn refused(
    commit: &mut Pending,
    generation: i32,
    answer: Result<Map<TopicPartition, i16>>,
    is_gone: impl Fn(&TopicPartition, TopicId) -> bool,
    outcome: &mut CommitOutcome,
) -> Vec<(TopicPartition, Offset, Error)> {
    let offsets = commit.take_request();
    let codes = match answer {
        Ok(codes) => codes,
        Err(error) => {
            outcome.forget_coordinator = error.code().is_none_or(|code| code::is_moved(code.0));
            return offsets.into_iter().map(|(key, offset)| (key, offset, error.clone())).collect();
        }
    };
    let mut refused = Vec::new();
    for (key, offset) in offsets {
        match codes.get(&key).copied() {
            Some(0) => {
                outcome.committed.insert(key, offset);
            }
            Some(UNKNOWN_TOPIC_OR_PARTITION) if is_gone(&key, offset.topic_id) => {
                commit.fail(&key, || partition_gone(&key));
                outcome.gone.insert(key, offset);
            }
            code => {
                let error = refusal(&key, code, generation, outcome);
                refused.push((key, offset, error));
            }
        }
    }
    refused
}

/// How many commits may wait for the one that is out. Whoever asks for more does not look at what becomes of them.
const MOST_WAITING: usize = 10_000;

const CROWD: usize = 64;

/// Why nothing was committed: the assignment that it belongs to is over.
pub(crate) fn over() -> Error {
    generation_over(Error::from_code("OffsetCommit", code::UNKNOWN_MEMBER_ID))
}

fn refusal(
    partition: &TopicPartition,
    refused: Option<i16>,
    generation: i32,
    outcome: &mut CommitOutcome,
) -> Error {
    let error = match refused {
        None => Error::protocol("the coordinator left out a partition").with_api("OffsetCommit"),
        Some(code) => {
            outcome.forget_coordinator |= code::is_moved(code);
            let error = Error::from_code("OffsetCommit", code);
            match code {
                code::ILLEGAL_GENERATION
                | code::UNKNOWN_MEMBER_ID
                | code::GROUP_ID_NOT_FOUND
                | code::FENCED_INSTANCE_ID
                | code::FENCED_MEMBER_EPOCH
                | code::STALE_MEMBER_EPOCH => {
                    outcome.fenced = Some((generation, code));
                    match generation {
                        0.. => generation_over(error),
                        _ => error.with_hint(
                            "the group has members that subscribe to topics: a consumer whose partitions are assigned by hand \
                             needs another group.id",
                        ),
                    }
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

/// The coordinator waits for the plan of a new generation, after which it accepts commits again.
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
