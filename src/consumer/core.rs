//! The consumer's mind: joins membership, positions, fetches and commits into one state machine. Pure.
//!
//! It lives behind the handle's mutex. Handles and the driver tell it what happened; the driver asks it what to do. The
//! order it must keep: on a rebalance hand-outs stop first, then commits end, then partitions are released, then the
//! member joins again; nothing is committed that the user may still be at work on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{
    buffer::Decoded,
    fetch::{Effects, FetchAction, FetchSettings, Fetcher},
    ledger::Life,
    lookups::{self, Found, Lookup, Lookups},
    offsets::{self, CommitAction, Commits, Offsets, Outcome, Ticket, commit_timeout, over},
    partitions::{JobKey, Next, Partitions, Phase, Turn},
};
use crate::{
    batch::Decompressor,
    cluster::{Metadata, UNKNOWN_TOPIC_OR_PARTITION},
    config::settings::{ClientSettings, ConsumerSettings, IsolationLevel},
    connection::api::wire,
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{
        self, Answer, GroupSettings, Identity, Request,
        assignor::{Assignment, Assignor, Subscriber},
        classic::Member,
    },
    record::TopicPartition,
    time::{Backoff, Instant, Rng},
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
    ForgetCoordinator,
    Group {
        token: Token,
        request: Request,
        deadline: Instant,
    },
    Plan {
        token: Token,
        assignor: Assignor,
        members: Vec<Subscriber>,
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
    Fetch(FetchAction),
}

#[derive(Debug)]
enum Mode {
    None,
    Topics,
    Manual,
}

/// Partitions that are being given up.
#[derive(Debug)]
struct Revoking {
    token: Token,
    partitions: Vec<TopicPartition>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The user may be at work on records of them. The coordinator waits no longer than until then.
    Working {
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
}

#[derive(Debug)]
enum Closing {
    Committing { deadline: Instant },
    Leaving { deadline: Instant },
    Closed,
}

/// Topics that the metadata must follow.
struct Interest {
    topics: Vec<Arc<str>>,
    due: Option<Instant>,
    backoff: Backoff,
}

pub(crate) struct Core {
    settings: Arc<ConsumerSettings>,
    client: Arc<ClientSettings>,
    mode: Mode,
    pub(crate) partitions: Partitions,
    member: Option<Member>,
    commits: Commits,
    waiters: BTreeMap<Ticket, oneshot::Sender<Result<()>>>,
    next_ticket: Ticket,
    lookups: Lookups,
    fetcher: Fetcher,
    metadata: Arc<Metadata>,
    interest: Interest,
    revoking: Option<Revoking>,
    /// Kept only for who acknowledges records one by one.
    changes: Vec<Change>,
    /// Records were handed out of partitions that were taken away before they were committed: the next commit says so.
    lost: bool,
    closing: Option<Closing>,
    polls: usize,
    auto_commit_at: Option<Instant>,
    errors: VecDeque<Error>,
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
            buffer_memory: settings.fetch_buffer_memory,
            read_committed: settings.isolation_level == IsolationLevel::ReadCommitted,
            retry_backoff: client.retry_backoff,
            retry_backoff_max: client.retry_backoff_max,
        };
        let has_group = settings.group_id.is_some();
        Self {
            mode: Mode::None,
            partitions: Partitions::default(),
            member: has_group.then(|| Member::new(GroupSettings::new(&settings, &client), now, seed())),
            commits: Commits::new(backoff(), seed()),
            waiters: BTreeMap::new(),
            next_ticket: 1,
            lookups: Lookups::new(settings.auto_offset_reset, client.retry_backoff, backoff(), seed()),
            fetcher: Fetcher::new(fetch, seed()),
            metadata: Arc::new(Metadata::default()),
            interest: Interest { topics: Vec::new(), due: None, backoff: backoff() },
            revoking: None,
            changes: Vec::new(),
            lost: false,
            closing: None,
            polls: 0,
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
        std::mem::take(&mut self.news)
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.closing, Some(Closing::Closed))
    }

    /// Why the driver ended before its time.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.ended.clone()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        match (&self.ended, &self.closing) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(_)) => Err(Error::closed("consumer")),
            (None, None) => Ok(()),
        }
    }

    // What users ask for.

    pub(crate) fn subscribe(&mut self, now: Instant, mut topics: Vec<Arc<str>>) -> Result<()> {
        self.check_open()?;
        topics.sort();
        topics.dedup();
        if let Some(empty) = topics.iter().find(|topic| topic.trim().is_empty()) {
            let message = format!("a topic to subscribe to has the empty name '{empty}'");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if matches!(self.mode, Mode::Manual) && !topics.is_empty() {
            return Err(exclusive());
        }
        let Some(member) = &mut self.member else {
            if topics.is_empty() {
                return self.assign(now, Vec::new());
            }
            return Err(Error::new(ErrorKind::Config, "subscribing needs a consumer group")
                .with_hint("set group.id, or choose partitions with assign"));
        };
        member.handle_subscription(now, topics.clone());
        self.follow(now, topics.clone());
        if topics.is_empty() {
            self.partitions.clear();
            self.mode = Mode::None;
        } else {
            self.mode = Mode::Topics;
        }
        self.run_member(now);
        Ok(())
    }

    pub(crate) fn assign(&mut self, now: Instant, partitions: Vec<TopicPartition>) -> Result<()> {
        self.check_open()?;
        if matches!(self.mode, Mode::Topics) {
            return Err(exclusive());
        }
        if let Some(bad) = partitions.iter().find(|key| key.partition < 0 || key.topic.trim().is_empty()) {
            let message = format!("'{bad}' cannot be a partition");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        self.mode = if partitions.is_empty() { Mode::None } else { Mode::Manual };
        self.partitions.assign(partitions, &self.start_phase());
        self.refresh_leaders(now);
        self.follow(now, self.partitions.topics());
        Ok(())
    }

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
        if let (Some(member), Mode::Topics) = (&mut self.member, &self.mode) {
            member.handle_poll(now);
        }
        let was_revoking = self.revoking.is_some();
        self.run_member(now);
        self.advance_revocation(now);
        Ok(was_revoking || !self.actions.is_empty())
    }

    /// A poll has returned, or was dropped.
    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        self.polls = self.polls.saturating_sub(1);
        if let (0, Some(member)) = (self.polls, &mut self.member) {
            member.handle_poll_end(now);
        }
    }

    /// From now on records are acknowledged one by one, and not by the next poll.
    pub(crate) fn acknowledge_each(&mut self) {
        self.partitions.acknowledge_each();
    }

    /// The user is alive, and says nothing of what is done.
    pub(crate) fn handle_alive(&mut self, now: Instant) -> Result<()> {
        self.check_open()?;
        if let Some(member) = &mut self.member {
            member.handle_alive(now);
        }
        Ok(())
    }

    /// A poll waits that may never be looked after again.
    pub(crate) fn handle_loose_poll(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            member.handle_loose_poll(now);
        }
    }

    /// A record is done. False if the life it was handed out in is over.
    pub(crate) fn handle_done(&mut self, key: &TopicPartition, life: Life, offset: i64) -> bool {
        self.partitions.done(key, life, offset)
    }

    /// A record comes back unhandled. False if the life it was handed out in is over.
    pub(crate) fn hand_back(&mut self, key: &TopicPartition, life: Life, offset: i64) -> bool {
        self.partitions.hand_back(key, life, offset)
    }

    /// Hands out again from the first record that is not done, if that life is not over.
    pub(crate) fn rewind(&mut self, now: Instant, key: &TopicPartition, life: Life) -> Result<()> {
        self.check_open()?;
        if self.partitions.rewind(key, life) {
            self.refresh_leaders(now);
        }
        Ok(())
    }

    /// Whether partitions are being given up, so that the driver must look at what is done.
    pub(crate) fn is_revoking(&self) -> bool {
        self.revoking.is_some()
    }

    /// What has happened to the assignment since this was last asked.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The next records to hand out.
    pub(crate) fn next_chunk(&mut self, max: usize, turn: Turn) -> Next {
        if self.closing.is_some() {
            return Next::Nothing;
        }
        self.partitions.next_chunk(max, turn, self.fetcher.refill_below())
    }

    pub(crate) fn check_in(&mut self, job: JobKey, decoded: Decoded, damaged: bool) {
        self.partitions.check_in(job, decoded, damaged);
    }

    /// What the user must know before any more records.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        if let Err(closed) = self.check_open() {
            return Some(closed);
        }
        self.fatal.clone().or_else(|| self.errors.pop_front())
    }

    /// Why there are no records, if that is because a partition cannot go on.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.partitions.failure()
    }

    /// Commits these offsets, or all positions. `None` if there is nothing to commit.
    pub(crate) fn commit(
        &mut self,
        offsets: Option<Offsets>,
        deadline: Instant,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        self.check_open()?;
        let identity = self.identity()?;
        if self.lost {
            // Told of once by a member that is back, and for as long as it is not.
            self.lost = identity.is_none();
            return Err(over());
        }
        let offsets = match offsets {
            Some(mut offsets) => {
                self.check_tenure(&mut offsets)?;
                offsets
            }
            None if self.partitions.is_by_each() => self.partitions.covered(),
            None => self.partitions.positions(),
        };
        if offsets.is_empty() {
            // In whatever state of the group: what is gone uncommitted was told of above.
            return Ok(None);
        }
        if identity.is_none() {
            return Err(Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS).with_hint(
                "the consumer is not part of the group at the moment: keep polling; what was not committed is handed out again",
            ));
        }
        self.partitions.cover_explicit(&offsets);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(ticket, sender);
        self.commits.handle_commit(Some(ticket), offsets, deadline);
        Ok(Some(receiver))
    }

    /// Binds offsets that the user names to the assignment. A member commits what is its own, and nothing from before its
    /// assignment began: another member may have committed beyond that.
    fn check_tenure(&self, offsets: &mut Offsets) -> Result<()> {
        if !matches!(self.mode, Mode::Topics) {
            return Ok(());
        }
        for (key, offset) in offsets {
            let place = |error: Error| {
                error
                    .with_topic(Arc::clone(&key.topic))
                    .with_partition(key.partition)
                    .with_offset(offset.offset)
            };
            let Some(partition) = self.partitions.get(key) else { return Err(place(over())) };
            match partition.account.begun() {
                Some(begun) if begun <= offset.offset => {}
                Some(begun) => {
                    let hint = format!(
                        "this assignment of the partition began at offset {begun}: what was read before belongs to an \
                         earlier one, and another member may have gone on from there; to go back on purpose, seek first"
                    );
                    return Err(place(
                        Error::from_code("OffsetCommit", group::code::ILLEGAL_GENERATION).with_hint(hint),
                    ));
                }
                None => {
                    let early = Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS);
                    return Err(place(early.with_hint(
                        "the partition has just been assigned and has no position yet: keep polling",
                    )));
                }
            }
            offset.tenure = Some(partition.account.tenure());
        }
        Ok(())
    }

    /// Who commits; `None` between generations.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        let Some(member) = &self.member else {
            return Err(Error::new(ErrorKind::Config, "committing needs a consumer group")
                .with_hint("set group.id; without a group positions live in the program alone"));
        };
        Ok(match self.mode {
            Mode::Topics => member.identity(),
            Mode::Manual | Mode::None => Some(Identity::standalone()),
        })
    }

    pub(crate) fn seek(&mut self, now: Instant, key: &TopicPartition, phase: Phase) -> Result<()> {
        self.check_open()?;
        if let Phase::Fetching(position) = phase
            && position.next < 0
        {
            return Err(Error::new(ErrorKind::InvalidArgument, "an offset cannot be negative")
                .with_offset(position.next));
        }
        if !self.partitions.restart(key, phase) {
            return Err(not_assigned(key));
        }
        self.refresh_leaders(now);
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

    pub(crate) fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) -> Result<()> {
        self.check_open()?;
        if let Some(missing) = partitions.iter().find(|key| self.partitions.get(key).is_none()) {
            return Err(not_assigned(missing));
        }
        for key in partitions {
            self.partitions.set_paused(key, paused);
        }
        self.news |= !paused;
        Ok(())
    }

    /// The driver ended before its time: nothing more will happen.
    pub(crate) fn handle_end(&mut self, error: Error) {
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            let _ = waiter.send(Err(error.clone()));
        }
        self.closing = Some(Closing::Closed);
        self.ended = Some(error);
        self.news = true;
    }

    /// Commits what is done, leaves the group, and is closed by the deadline at the latest.
    pub(crate) fn begin_close(&mut self, now: Instant, deadline: Instant) {
        if self.closing.is_some() {
            return;
        }
        if self.settings.enable_auto_commit {
            self.commit_covered(deadline);
        }
        self.closing = Some(Closing::Committing { deadline });
        self.news = true;
        self.advance_close(now);
    }

    /// The handle was dropped: leave the group without a commit.
    pub(crate) fn abandon(&mut self, now: Instant, deadline: Instant) {
        if self.closing.is_none() {
            self.closing = Some(Closing::Committing { deadline });
            self.advance_close(now);
        }
    }

    /// What should get on: the partitions that are not paused, and whether the member waits for its group.
    pub(crate) fn should_get_on(&self) -> (Vec<TopicPartition>, bool) {
        if self.closing.is_some() {
            return (Vec::new(), false);
        }
        let running = self.partitions.iter().filter(|(_, partition)| !partition.paused);
        let joining =
            self.member.as_ref().is_some_and(|member| !member.is_idle() && member.identity().is_none());
        (running.map(|(key, _)| key.clone()).collect(), joining && matches!(self.mode, Mode::Topics))
    }

    /// Something has not got on for long: the next poll says so.
    pub(crate) fn handle_starving(&mut self, error: Error) {
        self.fail(error);
    }

    // What the driver reports.

    pub(crate) fn handle_metadata(&mut self, now: Instant, metadata: Arc<Metadata>) {
        self.metadata = metadata;
        self.refresh_leaders(now);
        self.tell_member_counts(now);
    }

    pub(crate) fn handle_topics(&mut self, now: Instant, topics: &[Arc<str>], result: Result<()>) {
        if self.interest.topics != topics {
            return;
        }
        let Err(error) = result else { return self.interest.backoff.reset() };
        warn!(%error, "a topic of the consumer cannot be used yet");
        self.interest.due = Some(now + self.interest.backoff.next(&mut self.rng));
        if !error.is_retriable() {
            self.fail(error);
        }
    }

    pub(crate) fn handle_group(&mut self, now: Instant, token: Token, answer: Result<Answer>) {
        if let Some(member) = &mut self.member {
            member.handle_answer(now, token, answer);
        }
        self.run_member(now);
    }

    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        token: Token,
        assignor: Assignor,
        counts: BTreeMap<Arc<str>, i32>,
        plan: &Assignment,
    ) {
        if let Some(member) = &mut self.member {
            member.handle_plan(now, token, assignor, counts, plan);
        }
        self.run_member(now);
    }

    pub(crate) fn handle_commit(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<BTreeMap<TopicPartition, i16>>,
    ) {
        if answer.as_ref().is_ok_and(|codes| codes.values().any(|code| *code == UNKNOWN_TOPIC_OR_PARTITION)) {
            self.actions.push_back(Action::RefreshMetadata);
        }
        let is_gone = |key: &TopicPartition| self.metadata.is_gone(&key.topic, key.partition);
        if let Some(outcome) = self.commits.handle_answer(now, token, answer, is_gone) {
            self.on_commit(now, outcome);
        }
        self.advance_revocation(now);
        self.advance_close(now);
    }

    /// The committed offsets of the partitions asked about.
    pub(crate) fn handle_found_committed(
        &mut self,
        now: Instant,
        asked: &[(TopicPartition, Life)],
        answer: Result<Found>,
    ) {
        let effects = self.lookups.handle_committed(now, asked, answer, &mut self.partitions);
        self.on_lookup(effects);
    }

    /// The first or last offsets of the partitions asked about.
    pub(crate) fn handle_listed(&mut self, now: Instant, asked: &[Lookup], answer: Result<Found>) {
        let effects = self.lookups.handle_listed(now, asked, answer, &mut self.partitions);
        self.on_lookup(effects);
    }

    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        broker: i32,
        token: Token,
        answer: Result<wire::FetchResponse>,
        decompressor: &Decompressor,
    ) {
        if let Err(error) = &answer {
            debug!(%error, broker, "a fetch failed");
        }
        let Effects { refresh_metadata, out_of_range, errors, buffered } =
            self.fetcher.handle_answer(now, broker, token, answer, &mut self.partitions, decompressor);
        if refresh_metadata {
            self.actions.push_back(Action::RefreshMetadata);
        }
        for (key, offset) in out_of_range {
            info!(partition = %key, offset, "the position is outside the log");
            self.news |= self.lookups.handle_out_of_range(&key, offset, &mut self.partitions);
        }
        for error in errors {
            self.fail(error);
        }
        self.news |= buffered;
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            member.handle_timeout(now);
        }
        self.run_member(now);
        if self.auto_commit_at.is_some_and(|at| at <= now) {
            self.auto_commit_at = Some(now + self.settings.auto_commit_interval);
            if self.closing.is_none() && !self.commits.has_automatic() {
                self.commit_covered(now + self.client.default_api_timeout);
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
        let closing = match self.closing {
            Some(Closing::Committing { deadline } | Closing::Leaving { deadline }) => Some(deadline),
            _ => None,
        };
        let revoking = self.revoking.as_ref().map(|revoking| match revoking.stage {
            Stage::Working { until } => until,
            Stage::Committing { deadline } => deadline,
        });
        [
            self.member.as_ref().and_then(Member::poll_timeout),
            self.commits.poll_timeout(),
            self.fetcher.poll_timeout(now, &self.partitions),
            self.interest.due,
            self.auto_commit_at,
            closing,
            revoking,
            Lookups::poll_timeout(now, &self.partitions),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // How it works.

    /// Carries out what the membership wants.
    fn run_member(&mut self, now: Instant) {
        while let Some(action) = self.member.as_mut().and_then(Member::poll_action) {
            match action {
                group::Action::Send { token, request, deadline } => {
                    self.actions.push_back(Action::Group { token, request, deadline });
                }
                group::Action::ForgetCoordinator => self.actions.push_back(Action::ForgetCoordinator),
                group::Action::Plan { token, assignor, members } => {
                    let deadline = now + self.settings.session_timeout / 2;
                    self.actions.push_back(Action::Plan { token, assignor, members, deadline });
                }
                group::Action::Revoke { token, partitions } => self.begin_revocation(now, token, partitions),
                group::Action::Lost { partitions } => self.on_lost(now, &partitions),
                group::Action::Assign { added } => {
                    info!(partitions = ?added, "partitions assigned");
                    self.partitions.add(added.iter().cloned(), &self.start_phase());
                    self.refresh_leaders(now);
                    self.note(Change::Assigned, &added);
                    self.tell_member_counts(now);
                    self.news = true;
                }
                group::Action::Fail(error) => self.fail(error),
            }
        }
        self.advance_close(now);
    }

    fn begin_revocation(&mut self, now: Instant, token: Token, partitions: Vec<TopicPartition>) {
        debug!(partitions = partitions.len(), "the group rebalances");
        self.partitions.set_revoking(&partitions, true);
        // The coordinator waits for the rebalance time-out, which is the poll interval. What is acknowledged record by record
        // keeps a rest of it to commit what is done.
        let patience = self.settings.max_poll_interval;
        let rest =
            if self.partitions.is_by_each() { (patience / 5).min(COMMIT_REST) } else { Duration::ZERO };
        self.note(Change::Revoking, &partitions);
        self.revoking =
            Some(Revoking { token, partitions, stage: Stage::Working { until: now + (patience - rest) } });
        self.news = true;
        self.advance_revocation(now);
    }

    /// A revocation goes on as soon as nothing of its partitions is in the user's hands, and ends when every commit has.
    fn advance_revocation(&mut self, now: Instant) {
        let Some(revoking) = &self.revoking else { return };
        if let Stage::Working { until } = revoking.stage {
            if self.partitions.is_outstanding(&revoking.partitions) && now < until {
                return;
            }
            let deadline = now + self.client.request_timeout;
            if self.settings.enable_auto_commit {
                self.commit_covered(deadline);
            }
            if let Some(revoking) = &mut self.revoking {
                revoking.stage = Stage::Committing { deadline };
            }
        }
        let is_over = |revoking: &mut Revoking| match revoking.stage {
            Stage::Working { .. } => false,
            Stage::Committing { deadline } => self.commits.is_idle() || deadline <= now,
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
                partitions = lost.len(),
                "no longer part of the group: the partitions are released uncommitted"
            );
            self.note_unfinished(&lost);
            self.note(Change::Lost, &lost);
            self.news = true;
        }
        self.revoking = None;
        self.partitions.release(&lost);
        for outcome in self.commits.handle_lost() {
            self.on_commit(now, outcome);
        }
    }

    /// Remembers, for the next commit, that something of these partitions was handed out and is not committed.
    fn note_unfinished(&mut self, partitions: &[TopicPartition]) {
        let by_each = self.partitions.is_by_each();
        let mut assigned = partitions.iter().filter_map(|key| self.partitions.get(key));
        self.lost |= assigned.any(|partition| {
            let position = partition.position();
            position.is_some_and(|position| partition.account.is_uncommitted(position.next, by_each))
        });
    }

    fn note(&mut self, change: fn(Vec<(TopicPartition, Life)>) -> Change, partitions: &[TopicPartition]) {
        if self.partitions.is_by_each() {
            let life = |key: &TopicPartition| Some((key.clone(), self.partitions.get(key)?.life()));
            self.changes.push(change(partitions.iter().filter_map(life).collect()));
        }
    }

    fn poll_commit(&mut self, now: Instant) -> Option<CommitAction> {
        loop {
            let identity = self.identity().ok().flatten();
            let partitions = &self.partitions;
            let is_ours = |key: &TopicPartition, tenure: Life| {
                partitions.get(key).is_some_and(|partition| partition.account.tenure() == tenure)
            };
            match self.commits.poll_action(now, identity.as_ref(), is_ours)? {
                offsets::Next::Send(commit) => return Some(commit),
                offsets::Next::Dropped(outcome) => self.on_commit(now, outcome),
            }
        }
    }

    fn advance_close(&mut self, now: Instant) {
        if let Some(Closing::Committing { deadline }) = self.closing
            && (self.commits.is_idle() || deadline <= now)
        {
            // Past its deadline too a member that is gone should say so: the group would miss it for the session time-out.
            self.closing = Some(Closing::Leaving { deadline: deadline.max(now + LEAVE_PATIENCE) });
            self.revoking = None;
            self.partitions.clear();
            if let Some(member) = &mut self.member {
                member.handle_close(now);
            }
            self.run_member(now);
        }
        if let Some(Closing::Leaving { deadline }) = self.closing
            && (deadline <= now || self.member.as_ref().is_none_or(Member::is_idle))
        {
            self.closing = Some(Closing::Closed);
            for (_, waiter) in std::mem::take(&mut self.waiters) {
                let _ = waiter.send(Err(commit_timeout()));
            }
            self.news = true;
        }
    }

    fn commit_covered(&mut self, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let offsets = self.partitions.covered();
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    fn on_commit(&mut self, now: Instant, outcome: Outcome) {
        for (key, offset) in &outcome.committed {
            self.partitions.set_committed(key, offset.offset);
        }
        if outcome.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        match outcome.ticket.and_then(|ticket| self.waiters.remove(&ticket)) {
            // Whoever does not wait any more does not care.
            Some(waiter) => drop(waiter.send(outcome.result)),
            None => {
                if let Err(error) = outcome.result {
                    warn!(%error, "an automatic commit failed");
                }
            }
        }
        if let (Some((generation, code)), Some(member)) = (outcome.fenced, &mut self.member) {
            member.handle_fenced_commit(now, generation, code);
            self.run_member(now);
        }
    }

    fn start_phase(&self) -> Phase {
        match self.settings.group_id {
            Some(_) => Phase::AwaitingCommitted,
            None => self.lookups.reset_phase(),
        }
    }

    fn on_lookup(&mut self, effects: lookups::Effects) {
        if effects.refresh_metadata {
            self.actions.push_back(Action::RefreshMetadata);
        }
        if effects.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        for error in effects.errors {
            self.fail(error);
        }
        self.news |= effects.settled;
    }

    fn poll_lookup(&mut self, now: Instant) -> Option<Action> {
        let deadline = now + self.client.request_timeout;
        let questions = self.lookups.poll_questions(now, &mut self.partitions);
        if questions.leaderless {
            self.actions.push_back(Action::RefreshMetadata);
        }
        if let Some((broker, lookups)) = questions.offsets {
            self.actions.push_back(Action::ListOffsets { broker, lookups, deadline });
        }
        if !questions.committed.is_empty() {
            self.actions.push_back(Action::FindCommitted { partitions: questions.committed, deadline });
        }
        self.actions.pop_front()
    }

    fn follow(&mut self, now: Instant, topics: Vec<Arc<str>>) {
        if self.interest.topics != topics {
            self.interest.due = (!topics.is_empty()).then_some(now);
            self.actions.push_back(Action::Follow(topics.clone()));
            self.interest.topics = topics;
        }
    }

    fn refresh_leaders(&mut self, now: Instant) {
        let metadata = &self.metadata;
        let all = self.partitions.set_leaders(now, |key| metadata.leader(&key.topic, key.partition));
        if !all && self.metadata.version > 0 {
            debug!("a partition has no leader at the moment, or is not known");
            // It is looked for until it is there: less and less often while nothing changes.
            self.actions.push_back(Action::RefreshMetadata);
        }
    }

    fn tell_member_counts(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            let metadata = &self.metadata;
            member.handle_metadata(now, |topic| partition_count(metadata, topic));
        }
        self.run_member(now);
    }

    fn fail(&mut self, error: Error) {
        self.news = true;
        if error.is_fatal() {
            self.fatal = Some(error);
        } else if self.errors.len() < 16 {
            // Nobody polls; sixteen tell as much as a thousand.
            self.errors.push_back(error);
        }
    }
}

/// How long a consumer that has closed too late goes on leaving its group, in the background.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// What of the rebalance time-out is kept to commit in.
const COMMIT_REST: Duration = Duration::from_secs(5);

/// Partitions of a topic that can be used.
pub(crate) fn partition_count(metadata: &Metadata, topic: &str) -> Option<i32> {
    let topic = metadata.topics.get(topic).filter(|topic| topic.error.is_none())?;
    i32::try_from(topic.partitions.len()).ok()
}

fn exclusive() -> Error {
    Error::new(ErrorKind::InvalidArgument, "subscribe and assign exclude each other")
        .with_hint("call unsubscribe first")
}

fn not_assigned(key: &TopicPartition) -> Error {
    Error::new(ErrorKind::InvalidArgument, "the partition is not assigned to this consumer")
        .with_topic(Arc::clone(&key.topic))
        .with_partition(key.partition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::KafkaConfig, time};

    /// Of a consumer without a group.
    fn core(now: Instant) -> Core {
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_auto_offset_reset("none");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1))
    }

    #[test]
    fn a_topic_that_was_found_is_looked_for_as_soon_as_ever_when_it_is_missed_again() {
        let now = time::now();
        let (mut core, topics) = (core(now), [Arc::from("orders")]);
        core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
        let mut pause = |result| {
            core.handle_topics(now, &topics, result);
            core.interest.due.map(|due| due - now)
        };
        let lost = || Err(Error::new(ErrorKind::Disconnected, "gone"));
        let first = pause(lost());
        let later = (0..10).map(|_| pause(lost())).last().unwrap();
        assert!(later > first.map(|first| first * 4), "{first:?}, then {later:?}");
        pause(Ok(()));
        // Both have their jitter of 20 %.
        assert!(pause(lost()) < first.map(|first| first * 2));
    }

    #[test]
    fn with_nothing_to_commit_a_commit_is_done_in_whatever_state_of_the_group() {
        let now = time::now();
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        core.subscribe(now, vec!["orders".into()]).unwrap();
        assert!(core.commit(None, now).unwrap().is_none(), "before the first join");
        core.handle_poll(now).unwrap();
        core.handle_poll_end(now);
        assert!(core.identity().unwrap().is_none(), "it is joining");
        assert!(core.commit(None, now).unwrap().is_none());
        core.lost = true;
        core.commit(None, now).unwrap_err();
        core.commit(None, now).unwrap_err();
    }

    #[test]
    fn without_a_group_partitions_can_be_chosen_and_topics_cannot() {
        let now = time::now();
        let mut core = core(now);
        core.subscribe(now, Vec::new()).unwrap();
        let error = core.subscribe(now, vec!["orders".into()]).unwrap_err();
        assert!(error.to_string().contains("group.id"), "{error}");

        core.assign(now, vec![TopicPartition::new("orders", 0)]).unwrap();
        core.handle_poll(now).unwrap();
        let error = core.take_failure().unwrap();
        assert_eq!((error.topic(), error.partition()), (Some("orders"), Some(0)), "{error}");
        let error = core.commit(None, now).unwrap_err();
        assert!(error.to_string().contains("group.id"), "{error}");

        core.subscribe(now, Vec::new()).unwrap();
        assert_eq!(
            core.handle_poll(now).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "nothing is left to poll"
        );
    }
}
