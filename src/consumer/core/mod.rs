//! The consumer's state machine: joins membership, positions, fetches and commits into one state machine. Pure.
//!
//! What is subscribed to is in `subscribing.rs`, what happens to the assignment in `rebalance.rs`, commits in `commits.rs`,
//! where partitions are read from in `reading.rs`, what a listener is told in `notices.rs`, the end in `closing.rs`.
//!
//! It lives behind the handle's mutex. Handles and the driver tell it what happened; the driver asks it what to do. The
//! order it must keep: on a rebalance hand-outs stop first, then commits end, then partitions are released, then the
//! member joins again; nothing is committed that the user may still be at work on.

mod closing;
mod commits;
mod notices;
mod reading;
mod rebalance;
mod subscribing;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use self::{
    closing::Closing, notices::Notices, reading::Interest, rebalance::Revoking, subscribing::ByPattern,
};
pub(crate) use self::{notices::Notice, reading::partition_count, rebalance::Change};

use super::{
    fetch::{FetchAction, FetchSettings, Fetcher},
    ledger::Life,
    lookups::{FromStart, Lookup, Lookups},
    offsets::{CommitAction, Commits, Ticket},
    partitions::{Check, Next, Partition, Partitions, PausedBy, Phase},
    stalls::ExpectedProgress,
};
use crate::{
    cluster::{Endpoint, LeaderHint, Metadata},
    config::settings::{ClientSettings, ConsumerSettings, IsolationLevel},
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{
        GroupSettings, Membership, Request,
        assignor::{GroupMember, Strategy},
    },
    pattern::Pattern,
    record::TopicPartition,
    sorted::Map,
    time::{Backoff, Instant, Rng},
    wire::Uuid,
};

/// What the driver is to do; answers come back through the `handle_*` method of the same noun.
#[derive(Debug)]
pub(crate) enum Action {
    RequireTopics {
        topics: Vec<Arc<str>>,
        deadline: Instant,
    },
    RefreshMetadata,
    /// Exactly these topics are of interest from now on.
    Follow(Vec<Arc<str>>),
    /// And the topics of this pattern.
    FollowMatching(Option<Arc<Pattern>>),
    /// The names of exactly these topics are looked for.
    Identify(Vec<Uuid>),
    ForgetCoordinator,
    Group {
        token: Token,
        request: Request,
        deadline: Instant,
    },
    Plan {
        token: Token,
        assignor: Strategy,
        members: Vec<GroupMember>,
        keeps: bool,
        deadline: Instant,
    },
    Commit(CommitAction),
    FindCommitted {
        partitions: Vec<(TopicPartition, Life)>,
        deadline: Instant,
    },
    ListOffsets {
        broker: i32,
        lookups: Vec<Lookup>,
        deadline: Instant,
    },
    CheckEpochs {
        broker: i32,
        checks: Vec<Check>,
        deadline: Instant,
    },
    Fetch(FetchAction),
    /// Brokers have told who leads.
    LearnLeaders(Vec<LeaderHint>, Vec<Endpoint>),
}

#[derive(Debug)]
enum Mode {
    None,
    Topics,
    Manual,
}

/// An error that a poll will return. `of`: the assigned partition that it concerns, and its life when it occurred.
struct PollError {
    error: Error,
    of: Option<(TopicPartition, Life)>,
}

const MAX_POLL_ERRORS: usize = 16;

/// A coordinator's answer explains for this long, plus two back-offs, why the member is not in its group. It is asked
/// again sooner than that; a question that is out for longer is a join that waits for the other members.
const TROUBLE_LASTS: Duration = Duration::from_secs(5);

/// Tells whether somebody works on what is acknowledged one by one.
pub(crate) type AtWork = Arc<dyn Fn() -> bool + Send + Sync>;

pub(crate) struct Core {
    settings: Arc<ConsumerSettings>,
    client: Arc<ClientSettings>,
    mode: Mode,
    /// It has unsubscribed, and assigned nothing by hand since.
    was_member: bool,
    pub(crate) partitions: Partitions,
    member: Option<Membership>,
    commits: Commits,
    waiters: Map<Ticket, oneshot::Sender<Result<()>>>,
    next_ticket: Ticket,
    lookups: Lookups,
    fetcher: Fetcher,
    metadata: Arc<Metadata>,
    interest: Interest,
    /// Why the last question to the group's coordinator has to be put again.
    group_trouble: Option<(Instant, Error)>,
    /// The subscription by pattern, if it is one.
    pattern: Option<ByPattern>,
    revoking: Option<Revoking>,
    notices: Notices,
    /// Kept only where records are acknowledged one by one.
    changes: Vec<Change>,
    /// Records were handed out of partitions that were taken away before they were committed. Whether a commit has said so.
    lost: Option<bool>,
    closing: Option<Closing>,
    /// The user's code is at work on what was taken, and may not yield: being at work is proof enough of life.
    at_work: Option<AtWork>,
    polls: usize,
    /// When each of the polls that wait should end.
    polls_end: Vec<Instant>,
    auto_commit_at: Option<Instant>,
    errors: VecDeque<PollError>,
    fatal: Option<Error>,
    /// Why the driver ended before its time.
    ended: Option<Error>,
    actions: VecDeque<Action>,
    rng: Rng,
    /// Something a waiting poll wants to know has happened.
    news: bool,
}

impl Core {
    pub(crate) fn new(
        settings: Arc<ConsumerSettings>,
        client: Arc<ClientSettings>,
        now: Instant,
        mut rng: Rng,
    ) -> Self {
        let backoff = || Backoff::new(client.retry_backoff, client.retry_backoff_max);
        let mut seed = || Rng::new(rng.next_u64());
        let fetch = FetchSettings {
            max_bytes: settings.fetch_max_bytes,
            max_partition_bytes: settings.max_partition_fetch_bytes,
            max_wait: settings.fetch_max_wait,
            min_bytes: settings.fetch_min_bytes,
            buffer_memory: settings.fetch_buffer_memory,
            read_committed: settings.isolation_level == IsolationLevel::ReadCommitted,
            check_crcs: settings.check_crcs,
            retry_backoff: client.retry_backoff,
            retry_backoff_max: client.retry_backoff_max,
            replica_max_age: client.metadata_max_age,
        };
        let has_group = settings.group_id.is_some();
        Self {
            mode: Mode::None,
            was_member: false,
            partitions: Partitions::default(),
            member: has_group.then(|| Membership::new(GroupSettings::new(&settings, &client), now, seed())),
            commits: Commits::new(backoff(), seed()),
            waiters: Map::new(),
            next_ticket: 1,
            lookups: Lookups::new(settings.auto_offset_reset, client.retry_backoff, backoff(), seed()),
            fetcher: Fetcher::new(fetch, seed()),
            metadata: Arc::new(Metadata::default()),
            interest: Interest { topics: Vec::new(), due: None, told: None, backoff: backoff() },
            group_trouble: None,
            pattern: None,
            revoking: None,
            notices: Notices::default(),
            changes: Vec::new(),
            lost: None,
            closing: None,
            at_work: None,
            polls: 0,
            polls_end: Vec::new(),
            auto_commit_at: (has_group && settings.enable_auto_commit)
                .then(|| now + settings.auto_commit_interval),
            errors: VecDeque::new(),
            fatal: None,
            ended: None,
            actions: VecDeque::new(),
            rng: seed(),
            news: false,
            settings,
            client,
        }
    }

    /// Whether a waiting poll should look again. Asked once after each change.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news) || self.partitions.has_over()
    }

    // What users ask for.

    /// A poll begins: what was handed out before is done with.
    /// True if that gave the driver something to do.
    pub(crate) fn handle_poll(&mut self, now: Instant) -> Result<bool> {
        self.check_open()?;
        if matches!(self.mode, Mode::None) {
            return Err(Error::new(ErrorKind::InvalidArgument, "the consumer has nothing to poll")
                .with_hint("call subscribe or assign first"));
        }
        if !self.partitions.is_by_each() {
            self.partitions.cover();
        }
        self.polls += 1;
        Ok(self.handle_poll_again(now))
    }

    /// A poll that waits is looked after again. Nothing that was handed out is done with by that.
    /// True if it gave the driver something to do.
    pub(crate) fn handle_poll_again(&mut self, now: Instant) -> bool {
        // Also without a subscription, which may come while it waits.
        if let Some(member) = self.polled_member() {
            member.handle_poll(now);
        }
        let was_revoking = self.revoking.is_some();
        self.run_member(now);
        self.advance_revocation(now);
        was_revoking || !self.actions.is_empty()
    }

    /// A poll has returned, or was dropped.
    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        self.polls = self.polls.saturating_sub(1);
        match (self.polls, self.polled_member()) {
            (0, Some(member)) => member.handle_poll_end(now),
            _ => self.handle_loose_poll(now),
        }
    }

    /// The member, as far as polls say that the user is alive: not while the listener is at work, which may never return.
    fn polled_member(&mut self) -> Option<&mut Membership> {
        self.member.as_mut().filter(|_| !self.notices.is_calling)
    }

    /// A poll waits until then. Its future may be kept, and never looked after again: from then on the poll interval runs.
    pub(crate) fn handle_wait(&mut self, until: Instant) {
        self.polls_end.push(until);
        self.handle_loose_poll(until);
    }

    /// A poll that has begun to wait until then does so no longer.
    pub(crate) fn handle_wait_end(&mut self, until: Instant) {
        if let Some(found) = self.polls_end.iter().position(|end| *end == until) {
            self.polls_end.swap_remove(found);
        }
    }

    /// The poll interval begins anew; nothing is acknowledged.
    pub(crate) fn handle_alive(&mut self, now: Instant) -> Result<()> {
        self.check_open()?;
        if let Some(member) = self.polled_member() {
            member.handle_alive(now);
        }
        Ok(())
    }

    /// See [`Lookups::set_from_start`].
    pub(crate) fn set_from_start(&mut self, topics: FromStart) {
        self.lookups.set_from_start(topics);
    }

    /// Whether somebody is at work on what is acknowledged one by one. While that is so, and something is outstanding, the
    /// poll interval does not run: a handler may block the only thread there is.
    pub(crate) fn set_at_work(&mut self, now: Instant, at_work: Option<AtWork>) {
        if self.at_work.is_some()
            && let Some(member) = &mut self.member
        {
            member.handle_alive(now);
        }
        self.at_work = at_work;
    }

    /// A poll waits that may never be polled again: the poll interval must run.
    pub(crate) fn handle_loose_poll(&mut self, now: Instant) {
        let now = self.polls_end.iter().copied().fold(now, Instant::max);
        if let Some(member) = self.polled_member() {
            member.handle_loose_poll(now);
        }
    }

    /// Records of one life are done. How many of them count: none, if that life is over.
    pub(crate) fn handle_done(&mut self, key: &TopicPartition, life: Life, offsets: &[i64]) -> usize {
        let counted = self.partitions.done(key, life, offsets);
        // If the assignment is over, these records were handled here and will be handled again by another member.
        let is_of_now = |partition: &Partition| partition.account.tenure() <= life;
        let is_lost =
            || matches!(self.mode, Mode::Topics) && !self.partitions.get(key).is_some_and(is_of_now);
        if counted < offsets.len() && is_lost() {
            self.lost = Some(false);
        }
        counted
    }

    /// Hands out again from the first record that is not done, if that life is not over.
    pub(crate) fn rewind(&mut self, key: &TopicPartition, life: Life) -> Result<()> {
        self.check_open()?;
        self.partitions.rewind(key, life);
        Ok(())
    }

    /// The next records to hand out.
    pub(crate) fn next_chunk(&mut self, max: usize) -> Next {
        if self.closing.is_some() || self.notices.is_busy() {
            return Next::Nothing;
        }
        self.partitions.next_chunk(max, self.fetcher.refill_below())
    }

    /// Whether other polls wait, and there is something for them.
    pub(crate) fn has_left_for_others(&self) -> bool {
        self.polls > 1 && self.partitions.has_ready()
    }

    /// Whether what was taken since the last call makes a fetch due. The clock is read only if that depends on it.
    pub(crate) fn take_wants_fetch(&mut self, now: impl FnOnce() -> Instant) -> bool {
        self.partitions.take_wants_fetch() && self.fetcher.is_due(now(), &mut self.partitions)
    }

    /// What the user must know before any more records.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        if let Err(closed) = self.check_open() {
            return Some(closed);
        }
        if self.fatal.is_some() {
            return self.fatal.clone();
        }
        while let Some(next) = self.errors.pop_front() {
            if self.is_of_now(&next) {
                return Some(next.error);
            }
        }
        None
    }

    pub(crate) fn seek(&mut self, key: &TopicPartition, phase: Phase) -> Result<()> {
        self.check_open()?;
        if let Phase::Fetching(position) = phase
            && position.next < 0
        {
            return Err(Error::new(ErrorKind::InvalidArgument, "an offset cannot be negative")
                .with_offset(position.next));
        }
        // It waits for the coordinator, which may give the new topic to another member.
        let is_replaced = |partition: &Partition| matches!(partition.phase(), Phase::Replaced(_));
        if self.partitions.get(key).is_some_and(is_replaced) || !self.partitions.restart(key, phase) {
            return Err(not_assigned(key));
        }
        Ok(())
    }

    /// The offset handed out next, once it is known.
    pub(crate) fn position(&self, key: &TopicPartition) -> Result<Option<i64>> {
        self.check_open()?;
        let partition = self.partitions.get(key).ok_or_else(|| not_assigned(key))?;
        match partition.phase() {
            Phase::Fetching(position) => Ok(Some(position.next)),
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(None),
        }
    }

    pub(crate) fn set_paused(
        &mut self,
        partitions: &[TopicPartition],
        paused: Option<PausedBy>,
    ) -> Result<()> {
        self.check_open()?;
        if let Some(missing) = partitions.iter().find(|key| self.partitions.get(key).is_none()) {
            return Err(not_assigned(missing));
        }
        for key in partitions {
            self.partitions.set_paused(key, paused);
        }
        self.news |= paused.is_none();
        Ok(())
    }

    /// Where progress is expected: the partitions that are not paused and of which nothing waits to be handed out, and the member
    /// if it waits for its group.
    pub(in crate::consumer) fn expected_progress(&self, now: Instant) -> ExpectedProgress {
        if self.closing.is_some() {
            return ExpectedProgress::default();
        }
        let running = self
            .partitions
            .iter()
            .filter(|(_, partition)| partition.paused.is_none() && partition.queue.is_empty());
        let running =
            running.map(|(key, partition)| (key.clone(), self.fetcher.why(now, partition).cloned()));
        let all_paused =
            self.partitions.iter().all(|(_, partition)| partition.paused == Some(PausedBy::User));
        let paused = if all_paused { self.partitions.iter().count() } else { 0 };
        let joining = self.member.as_ref().is_some_and(|member| !member.is_idle() && !member.is_in());
        let joining = joining && matches!(self.mode, Mode::Topics);
        let lasts = TROUBLE_LASTS.saturating_add(self.client.retry_backoff_max.saturating_mul(2));
        let trouble = self.group_trouble.as_ref();
        let trouble = trouble.filter(|(since, _)| now.saturating_duration_since(*since) < lasts);
        let group = joining.then(|| trouble.map(|(_, error)| error.clone()));
        // With a pattern no topic is missing: only topics that exist match.
        let mut topics = Vec::new();
        if matches!(self.mode, Mode::Topics) && self.pattern.is_none() {
            let here = self.partitions.topics();
            let is_missing =
                |topic: &&Arc<str>| here.binary_search(topic).is_err() && !self.lookups.is_from_start(topic);
            topics.extend(self.interest.topics.iter().filter(is_missing).cloned());
        }
        ExpectedProgress { partitions: running.collect(), paused, topics, group }
    }

    /// Something has made no progress for long: the next poll returns the error.
    pub(crate) fn handle_stall(&mut self, error: Error) {
        self.fail(error);
    }

    // What the driver reports.

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            let is_at_work = self.at_work.as_ref().is_some_and(|is_at_work| is_at_work());
            if is_at_work && member.is_overdue(now) && self.partitions.outstanding() > 0 {
                member.handle_alive(now);
            }
            member.handle_timeout(now);
        }
        self.run_member(now);
        if let Some(late) = self.commits.handle_timeout(now) {
            self.on_commit(now, late);
        }
        if self.auto_commit_at.is_some_and(|at| at <= now) {
            self.auto_commit_at = Some(now + self.settings.auto_commit_interval);
            if self.closing.is_none() && !self.commits.has_automatic() {
                self.commit_by_interval(now, now + self.client.default_api_timeout);
            }
        }
        self.advance_revocation(now);
        self.advance_close(now);
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(commit) = self.poll_commit(now) {
            return Some(Action::Commit(commit));
        }
        if self.closing.is_some() {
            return None;
        }
        if self.interest.due.is_some_and(|due| due <= now) {
            self.interest.due = None;
            let deadline = now + self.client.default_api_timeout;
            return Some(Action::RequireTopics { topics: self.interest.topics.clone(), deadline });
        }
        self.poll_lookup(now)
            .or_else(|| self.fetcher.poll_action(now, &mut self.partitions).map(Action::Fetch))
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let ending = [
            self.member.as_ref().and_then(Membership::poll_timeout),
            self.commits.poll_timeout(),
            self.auto_commit_at,
            self.closing.as_ref().and_then(Closing::poll_timeout),
            self.revoking.as_ref().map(Revoking::poll_timeout),
        ];
        // A consumer that closes reads nothing more: waking for what `poll_action` will not do would be a busy loop.
        let reading = if self.closing.is_some() {
            [None; 3]
        } else {
            [
                self.fetcher.poll_timeout(now, &self.partitions),
                self.interest.due,
                Lookups::poll_timeout(now, &self.partitions),
            ]
        };
        ending.into_iter().chain(reading).flatten().min()
    }

    fn fail(&mut self, error: Error) {
        self.news = true;
        if error.is_fatal() {
            self.fatal = Some(error);
            return;
        }
        let of = key_of(&error).and_then(|key| {
            let life = self.partitions.get(&key)?.life();
            Some((key, life))
        });
        let is_same = |known: &PollError| known.of == of && known.error.kind() == error.kind();
        // The list is bounded because nobody may be polling. Sixteen errors say as much as a thousand, and the same error
        // of a partition is kept once.
        if self.errors.len() < MAX_POLL_ERRORS && !(of.is_some() && self.errors.iter().any(is_same)) {
            self.errors.push_back(PollError { error, of });
        }
    }

    /// Whether an error is still of interest: its partition was not given up or sought since, and nothing is left of it to be
    /// handed out first, as there is where it is read again; or its topic is still read. What lasts is met again.
    fn is_of_now(&self, known: &PollError) -> bool {
        match (&known.of, known.error.topic()) {
            (Some((key, life)), _) => self
                .partitions
                .get(key)
                .is_some_and(|partition| partition.life() == *life && partition.queue.is_empty()),
            (None, Some(topic)) => self.interest.topics.iter().any(|followed| **followed == *topic),
            (None, None) => true,
        }
    }
}

fn key_of(error: &Error) -> Option<TopicPartition> {
    Some(TopicPartition::new(error.topic()?, error.partition()?))
}

fn not_assigned(key: &TopicPartition) -> Error {
    Error::new(ErrorKind::InvalidArgument, "the partition is not assigned to this consumer")
        .with_topic(Arc::clone(&key.topic))
        .with_partition(key.partition)
}

#[cfg(test)]
mod tests;
