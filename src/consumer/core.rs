//! The consumer's mind: joins membership, positions, fetches and commits into one state machine. Pure.
//!
//! It lives behind the handle's mutex. Handles and the driver tell it what happened; the driver asks it what to do. The
//! order it must keep: on a rebalance hand-outs stop first, then commits end, then partitions are released, then the
//! member joins again; nothing is committed that the user may still be at work on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{
    buffer::Decoded,
    fetch::{Effects, FetchAction, FetchSettings, Fetcher},
    lookups::{self, Found, Lookup, Lookups},
    offsets::{CommitAction, Commits, Offsets, Outcome, Ticket, commit_timeout},
    subscription::{JobKey, Next, Phase, Subscription, Turn},
};
use crate::{
    batch::Decompressor,
    cluster::{Metadata, UNKNOWN_TOPIC_OR_PARTITION},
    config::settings::{ClientSettings, ConsumerSettings, IsolationLevel},
    connection::api::wire,
    error::{Error, ErrorKind, Result},
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
    RequireTopics { topics: Vec<Arc<str>>, deadline: Instant },
    RefreshMetadata,
    ForgetCoordinator,
    Group { epoch: u64, request: Request, deadline: Instant },
    Plan { epoch: u64, assignor: Assignor, members: Vec<Subscriber>, deadline: Instant },
    Commit(CommitAction),
    FindCommitted { partitions: Vec<(TopicPartition, u64)>, deadline: Instant },
    ListOffsets { broker: i32, lookups: Vec<Lookup>, deadline: Instant },
    Fetch(FetchAction),
}

#[derive(Debug)]
enum Mode {
    None,
    Topics,
    Manual,
}

#[derive(Debug)]
enum Revoking {
    /// The user may be at work on records handed out: its next poll says that they are done.
    AwaitingPoll {
        epoch: u64,
    },
    Committing {
        epoch: u64,
        deadline: Instant,
    },
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
    pub(crate) subscription: Subscription,
    member: Option<Member>,
    commits: Commits,
    waiters: BTreeMap<Ticket, oneshot::Sender<Result<()>>>,
    next_ticket: Ticket,
    lookups: Lookups,
    fetcher: Fetcher,
    metadata: Arc<Metadata>,
    interest: Interest,
    revoking: Option<Revoking>,
    closing: Option<Closing>,
    polls: usize,
    auto_commit_at: Option<Instant>,
    errors: VecDeque<Error>,
    fatal: Option<Error>,
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
            subscription: Subscription::default(),
            member: has_group.then(|| Member::new(GroupSettings::new(&settings, &client), now, seed())),
            commits: Commits::new(backoff(), seed()),
            waiters: BTreeMap::new(),
            next_ticket: 1,
            lookups: Lookups::new(settings.auto_offset_reset, client.retry_backoff, backoff(), seed()),
            fetcher: Fetcher::new(fetch, seed()),
            metadata: Arc::new(Metadata::default()),
            interest: Interest { topics: Vec::new(), due: None, backoff: backoff() },
            revoking: None,
            closing: None,
            polls: 0,
            auto_commit_at: (has_group && settings.enable_auto_commit)
                .then(|| now + settings.auto_commit_interval),
            errors: VecDeque::new(),
            fatal: None,
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

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closing.is_some() { Err(Error::closed("consumer")) } else { Ok(()) }
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
            self.subscription.clear();
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
        self.set_assignment(now, partitions);
        self.follow(now, self.subscription.topics());
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
        self.subscription.cover();
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

    /// The next records to hand out.
    pub(crate) fn next_chunk(&mut self, max: usize, turn: Turn) -> Next {
        if self.revoking.is_some() || self.closing.is_some() {
            return Next::Nothing;
        }
        self.subscription.next_chunk(max, turn, self.fetcher.refill_below())
    }

    pub(crate) fn check_in(&mut self, job: JobKey, decoded: Decoded, damaged: bool) {
        self.subscription.check_in(job, decoded, damaged);
    }

    /// What the user must know before any more records.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        if self.closing.is_some() {
            return Some(Error::closed("consumer"));
        }
        self.fatal.clone().or_else(|| self.errors.pop_front())
    }

    /// Why there are no records, if that is because a partition cannot go on.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.subscription.failure()
    }

    /// Commits these offsets, or all positions. `None` if there is nothing to commit.
    pub(crate) fn commit(
        &mut self,
        offsets: Option<Offsets>,
        deadline: Instant,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        self.check_open()?;
        let identity = self.identity()?;
        let offsets = offsets.unwrap_or_else(|| self.subscription.positions());
        if offsets.is_empty() {
            return Ok(None);
        }
        let Some(identity) = identity else {
            return Err(Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS).with_hint(
                "the consumer is not part of the group at the moment: keep polling; what was not committed is handed out again",
            ));
        };
        self.subscription.cover_explicit(&offsets);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(ticket, sender);
        self.commits.handle_commit(Some(ticket), identity, offsets, deadline);
        Ok(Some(receiver))
    }

    /// Who commits; `None` between generations.
    fn identity(&self) -> Result<Option<Identity>> {
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
        let offset = match phase {
            Phase::Fetching(position) if position.next < 0 => {
                return Err(Error::new(ErrorKind::InvalidArgument, "an offset cannot be negative")
                    .with_offset(position.next));
            }
            Phase::Fetching(position) => Some(position.next),
            _ => None,
        };
        if !self.subscription.restart(key, phase) {
            return Err(not_assigned(key));
        }
        if let Some(offset) = offset {
            self.subscription.cover_seek(key, offset);
        }
        self.refresh_leaders(now);
        Ok(())
    }

    /// The offset handed out next, once it is known.
    pub(crate) fn position(&self, key: &TopicPartition) -> Result<Option<i64>> {
        self.check_open()?;
        let partition = self.subscription.get(key).ok_or_else(|| not_assigned(key))?;
        match partition.phase() {
            Phase::Fetching(position) => Ok(Some(position.next)),
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(None),
        }
    }

    pub(crate) fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) -> Result<()> {
        self.check_open()?;
        if let Some(missing) = partitions.iter().find(|key| self.subscription.get(key).is_none()) {
            return Err(not_assigned(missing));
        }
        for key in partitions {
            self.subscription.set_paused(key, paused);
        }
        self.news |= !paused;
        Ok(())
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

    pub(crate) fn handle_group(&mut self, now: Instant, epoch: u64, answer: Result<Answer>) {
        if let Some(member) = &mut self.member {
            member.handle_answer(now, epoch, answer);
        }
        self.run_member(now);
    }

    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        epoch: u64,
        assignor: Assignor,
        counts: BTreeMap<Arc<str>, i32>,
        plan: &Assignment,
    ) {
        if let Some(member) = &mut self.member {
            member.handle_plan(now, epoch, assignor, counts, plan);
        }
        self.run_member(now);
    }

    pub(crate) fn handle_commit(
        &mut self,
        now: Instant,
        epoch: u64,
        answer: Result<BTreeMap<TopicPartition, i16>>,
    ) {
        if answer.as_ref().is_ok_and(|codes| codes.values().any(|code| *code == UNKNOWN_TOPIC_OR_PARTITION)) {
            self.actions.push_back(Action::RefreshMetadata);
        }
        let is_gone = |key: &TopicPartition| self.metadata.is_gone(&key.topic, key.partition);
        if let Some(outcome) = self.commits.handle_answer(now, epoch, answer, is_gone) {
            self.on_commit(now, outcome);
        }
        self.advance_revocation(now);
        self.advance_close(now);
    }

    /// The committed offsets of the partitions asked about.
    pub(crate) fn handle_found_committed(
        &mut self,
        now: Instant,
        asked: &[(TopicPartition, u64)],
        answer: Result<Found>,
    ) {
        let effects = self.lookups.handle_committed(now, asked, answer, &mut self.subscription);
        self.on_lookup(effects);
    }

    /// The first or last offsets of the partitions asked about.
    pub(crate) fn handle_listed(&mut self, now: Instant, asked: &[Lookup], answer: Result<Found>) {
        let effects = self.lookups.handle_listed(now, asked, answer, &mut self.subscription);
        self.on_lookup(effects);
    }

    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        broker: i32,
        epoch: u64,
        answer: Result<wire::FetchResponse>,
        decompressor: &Decompressor,
    ) {
        if let Err(error) = &answer {
            debug!(%error, broker, "a fetch failed");
        }
        let Effects { refresh_metadata, out_of_range, errors, buffered } =
            self.fetcher.handle_answer(now, broker, epoch, answer, &mut self.subscription, decompressor);
        if refresh_metadata {
            self.actions.push_back(Action::RefreshMetadata);
        }
        for (key, offset) in out_of_range {
            info!(partition = %key, offset, "the position is outside the log");
            self.news |= self.lookups.handle_out_of_range(&key, offset, &mut self.subscription);
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
        if let Some(commit) = self.commits.poll_action(now) {
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
            .or_else(|| self.fetcher.poll_action(now, &mut self.subscription).map(Action::Fetch))
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let closing = match self.closing {
            Some(Closing::Committing { deadline } | Closing::Leaving { deadline }) => Some(deadline),
            _ => None,
        };
        let revoking = match self.revoking {
            Some(Revoking::Committing { deadline, .. }) => Some(deadline),
            _ => None,
        };
        [
            self.member.as_ref().and_then(Member::poll_timeout),
            self.commits.poll_timeout(),
            self.fetcher.poll_timeout(now, &self.subscription),
            self.interest.due,
            self.auto_commit_at,
            closing,
            revoking,
            Lookups::poll_timeout(now, &self.subscription),
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
                group::Action::Send { epoch, request, deadline } => {
                    self.actions.push_back(Action::Group { epoch, request, deadline });
                }
                group::Action::ForgetCoordinator => self.actions.push_back(Action::ForgetCoordinator),
                group::Action::Plan { epoch, assignor, members } => {
                    let deadline = now + self.settings.session_timeout / 2;
                    self.actions.push_back(Action::Plan { epoch, assignor, members, deadline });
                }
                group::Action::Revoke { epoch } => {
                    debug!(partitions = self.subscription.iter().count(), "the group rebalances");
                    self.revoking = Some(Revoking::AwaitingPoll { epoch });
                    self.advance_revocation(now);
                }
                group::Action::Lost => {
                    // Nothing is assigned any more to a consumer that was closed or has unsubscribed.
                    let partitions = self.subscription.iter().count();
                    if partitions > 0 {
                        warn!(
                            partitions,
                            "no longer part of the group: the partitions are released uncommitted"
                        );
                    }
                    self.revoking = None;
                    self.subscription.clear();
                    for outcome in self.commits.handle_lost() {
                        self.on_commit(now, outcome);
                    }
                }
                group::Action::Assign { partitions } => {
                    info!(?partitions, "partitions assigned");
                    self.set_assignment(now, partitions);
                    self.tell_member_counts(now);
                    self.news = true;
                }
                group::Action::Fail(error) => self.fail(error),
            }
        }
        self.advance_close(now);
    }

    /// A revocation goes on as soon as nothing is in the user's hands, and ends when every commit has.
    fn advance_revocation(&mut self, now: Instant) {
        if let Some(Revoking::AwaitingPoll { epoch }) = self.revoking
            && !self.subscription.has_uncovered()
        {
            let deadline = now + self.client.request_timeout;
            if self.settings.enable_auto_commit {
                self.commit_covered(deadline);
            }
            self.revoking = Some(Revoking::Committing { epoch, deadline });
        }
        if let Some(Revoking::Committing { epoch, deadline }) = self.revoking
            && (self.commits.is_idle() || deadline <= now)
        {
            self.revoking = None;
            self.subscription.clear();
            if let Some(member) = &mut self.member {
                member.handle_revoked(now, epoch);
            }
            self.run_member(now);
        }
    }

    fn advance_close(&mut self, now: Instant) {
        if let Some(Closing::Committing { deadline }) = self.closing
            && (self.commits.is_idle() || deadline <= now)
        {
            self.closing = Some(Closing::Leaving { deadline });
            self.revoking = None;
            self.subscription.clear();
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
        let Ok(Some(identity)) = self.identity() else { return };
        let offsets = self.subscription.covered();
        if !offsets.is_empty() {
            self.commits.handle_commit(None, identity, offsets, deadline);
        }
    }

    fn on_commit(&mut self, now: Instant, outcome: Outcome) {
        for (key, offset) in &outcome.committed {
            self.subscription.set_committed(key, offset.offset);
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

    fn set_assignment(&mut self, now: Instant, partitions: Vec<TopicPartition>) {
        let start = match self.settings.group_id {
            Some(_) => Phase::AwaitingCommitted,
            None => self.lookups.reset_phase(),
        };
        self.subscription.assign(partitions, &start);
        self.refresh_leaders(now);
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
        let questions = self.lookups.poll_questions(now, &mut self.subscription);
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
            self.interest.topics = topics;
        }
    }

    fn refresh_leaders(&mut self, now: Instant) {
        let metadata = &self.metadata;
        let all = self.subscription.set_leaders(now, |key| metadata.leader(&key.topic, key.partition));
        if !all && self.metadata.version > 0 {
            debug!("a partition has no leader at the moment");
        }
    }

    fn tell_member_counts(&mut self, now: Instant) {
        if let Some(member) = &mut self.member {
            let metadata = &self.metadata;
            member.handle_metadata(|topic| partition_count(metadata, topic));
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
