//! One producer's transactions as a state machine. Pure.
//!
//! ```text
//!            ┌───────────────────── init ──────────────────────┐
//!            ▼                                                  │
//!   New ─> Initializing ─> Ready ─begin─> Open ─commit─> Committing ─> Ready
//!                            ▲             │ │failure        │failure
//!                            │             │ ▼               ▼
//!                            │             │ Failed <────────┘
//!                            │       abort │   │ abort
//!                            └── (bump) ── Aborting <┘             any ─> Fatal
//! ```
//! One request to a coordinator is out at a time. Before the end of a transaction everything that belongs to it has been
//! answered. Nothing of a failed transaction is sent any more.
//!
//! KIP-98, KIP-447 (offsets with the group's metadata), KIP-360 (a new epoch after a failure), KIP-691 (abortable, fenced and
//! fatal errors), KIP-890 (`transaction.version` 2: partitions join by being written to, the epoch grows with every end).

mod answers;
mod calls;
mod verdict;

use std::{collections::VecDeque, sync::Arc, time::Duration};

pub(crate) use self::calls::{Call, NotDone, Offsets, Partitions, Reply};
pub(super) use self::verdict::{is_of_the_group, says_nothing};
use super::identity::ProducerIdentity;
use crate::{
    error::{Error, ErrorKind, Result, code},
    time::{Backoff, Instant},
};

/// The longest pause before a call is repeated that the coordinator has refused because it still writes the markers of
/// the transaction before, which takes a few milliseconds. Java: `TransactionManager.ADD_PARTITIONS_RETRY_BACKOFF_MS`,
/// which is for AddPartitionsToTxn only.
pub(crate) const CONCURRENT_PAUSE: Duration = Duration::from_millis(20);

/// Whether the coordinator is still ending the transaction before.
pub(crate) fn is_concurrent(error: &Error) -> bool {
    error.code().is_some_and(|told| told.0 == code::CONCURRENT_TRANSACTIONS)
}

/// What is still to be sent or answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// Records wait to be sent, or have no answer.
    pub(crate) records: bool,
    pub(crate) in_flight: bool,
}

/// What has become of a commit when the time of its caller is over.
#[derive(Debug)]
pub(crate) enum CommitTimeout {
    /// The commit has just ended.
    Ended(Result<()>),
    /// The coordinator was asked to commit. The transaction will be committed, or its outcome is unknown.
    CommitSent,
    /// The coordinator was not asked yet. The transaction is being aborted.
    Aborting,
}

#[derive(Debug, Clone)]
enum State {
    New,
    Initializing,
    Ready,
    Open,
    Committing,
    /// The transaction can only be aborted.
    Failed(Error),
    Aborting,
    Fatal(Error),
}

/// Offsets on their way into the transaction.
#[derive(Debug)]
struct Job {
    offsets: Arc<Offsets>,
    /// The coordinator knows that the group's offsets belong to the transaction (version 1).
    group_added: bool,
}

#[derive(Debug)]
pub(crate) struct Core {
    state: State,
    identity: Option<ProducerIdentity>,
    version2: bool,
    /// The partitions that the coordinator knows (version 1).
    added: Arc<Partitions>,
    wanted: Partitions,
    jobs: VecDeque<Job>,
    /// Jobs that were accepted and done, in all transactions.
    accepted_jobs: u64,
    done_jobs: u64,
    /// Brokers may know of the transaction: it must be ended there.
    begun: bool,
    /// The coordinator was asked to commit: it may have, and nothing else can be asked for.
    commit_sent: bool,
    /// The number of the last transaction that was said to be committed.
    committed: u64,
    /// An attempt to commit may have been carried out although nobody said so.
    commit_lost: bool,
    /// An answer is missing of what belongs to a transaction that is over: only a new epoch keeps it out of the next.
    needs_bump: bool,
    /// There will be no next one.
    is_closing: bool,
    /// What waits in the queues of the transaction that is being aborted is still to be failed.
    discards: bool,
    out: bool,
    not_before: Option<Instant>,
    /// Why the last call must be made again.
    trouble: Option<Error>,
    backoff: Backoff,
    /// Grows with each transaction, so that a guard ends its own alone.
    number: u64,
}

impl Core {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            state: State::New,
            identity: None,
            version2: false,
            added: Arc::default(),
            wanted: Partitions::new(),
            jobs: VecDeque::new(),
            accepted_jobs: 0,
            done_jobs: 0,
            begun: false,
            commit_sent: false,
            committed: 0,
            commit_lost: false,
            needs_bump: false,
            is_closing: false,
            discards: false,
            out: false,
            not_before: None,
            trouble: None,
            backoff,
            number: 0,
        }
    }

    /// The first call: fences other producers of the id.
    pub(crate) fn handle_init(&mut self) {
        if matches!(self.state, State::New) {
            self.state = State::Initializing;
        }
    }

    /// No transaction will be begun, so that nobody needs a new epoch. If there is no producer id yet it is not asked for
    /// again, which would fence a producer that has taken over the name.
    pub(crate) fn handle_close(&mut self) {
        self.is_closing = true;
        match self.state {
            State::New | State::Initializing => self.handle_fatal(Error::closed("producer").with_fatal()),
            // Before the driver has discarded what waits, something may just be leaving that brokers will know of.
            State::Aborting if !self.begun && !self.discards => self.finish(),
            _ => {}
        }
    }

    /// Begins a transaction; `None` while the one before is being ended.
    pub(crate) fn handle_begin(&mut self) -> Option<Result<u64>> {
        match &self.state {
            // Only after the end it turned out that an attempt of the transaction before may still arrive: a new epoch
            // comes first.
            State::Ready if self.needs_bump => {
                self.state = State::Aborting;
                None
            }
            State::Ready => {
                self.state = State::Open;
                self.commit_lost = false;
                self.number += 1;
                Some(Ok(self.number))
            }
            State::Fatal(error) => Some(Err(error.clone())),
            // Left open by a caller that has leaked its guard (`mem::forget`).
            State::Open | State::Failed(_) => {
                self.handle_abort();
                None
            }
            State::New | State::Initializing | State::Committing | State::Aborting => None,
        }
    }

    pub(crate) fn handle_commit(&mut self) -> Result<()> {
        match &self.state {
            State::Open => {
                self.state = State::Committing;
                Ok(())
            }
            State::Failed(error) | State::Fatal(error) => Err(error.clone()),
            _ => Err(not_open()),
        }
    }

    /// Ends a transaction that is open or has failed, without its records. One that the coordinator was asked to commit is
    /// committed all the same.
    pub(crate) fn handle_abort(&mut self) {
        if self.commit_sent {
            return;
        }
        if matches!(self.state, State::Open | State::Failed(_) | State::Committing) {
            self.discards = true;
            self.state = State::Aborting;
            self.jobs.clear();
            self.done_jobs = self.accepted_jobs;
        }
    }

    /// Offsets to be committed with the transaction. Returns the number to wait for with [`is_job_done`](Self::is_job_done).
    pub(crate) fn handle_offsets(&mut self, offsets: Offsets) -> Result<u64> {
        match &self.state {
            State::Open => {
                self.accepted_jobs += 1;
                self.jobs.push_back(Job { offsets: Arc::new(offsets), group_added: self.version2 });
                Ok(self.accepted_jobs)
            }
            State::Failed(error) | State::Fatal(error) => Err(error.clone()),
            _ => Err(not_open()),
        }
    }

    /// Whether the offsets are part of the transaction; `None`: not yet.
    pub(crate) fn is_job_done(&self, job: u64) -> Option<Result<()>> {
        match &self.state {
            State::Failed(error) | State::Fatal(error) => Some(Err(error.clone())),
            _ => (self.done_jobs >= job).then_some(Ok(())),
        }
    }

    /// Partitions that something waits to be sent to.
    pub(crate) fn handle_wanted(&mut self, wanted: &[(Arc<str>, i32)]) {
        if self.version2 || !matches!(self.state, State::Open | State::Committing) {
            return;
        }
        let new = wanted.iter().filter(|partition| !self.added.contains(*partition));
        self.wanted.extend(new.cloned());
    }

    /// Something was sent under the transaction.
    pub(crate) fn handle_sent(&mut self) {
        self.begun = true;
    }

    /// A record of the transaction failed. `open`: it may be in the log, and its attempt may come in late.
    pub(crate) fn handle_failure(&mut self, error: Error, open: bool) {
        // A new epoch is due also when a broker has refused the record: a log that has lost what came before takes
        // nothing more under this epoch (KIP-360). With version 2 the end of the transaction brings one anyway.
        self.needs_bump |= open || (self.begun && error.code().is_some());
        // Once the coordinator was asked to commit, every record has had its answer.
        if matches!(self.state, State::Open | State::Committing) && !self.commit_sent {
            self.fail(error);
        }
    }

    /// Under which identity records may leave now.
    pub(crate) fn identity(&self) -> Option<ProducerIdentity> {
        match self.state {
            State::Open | State::Committing => self.identity,
            _ => None,
        }
    }

    /// The partitions whose records may leave; all with version 2.
    pub(crate) fn permitted(&self) -> Option<Arc<Partitions>> {
        (!self.version2).then(|| Arc::clone(&self.added))
    }

    pub(crate) fn is_version2(&self) -> bool {
        self.version2
    }

    /// Everything leaves at once: the transaction is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.state, State::Committing | State::Aborting)
    }

    fn is_fatal(&self) -> bool {
        matches!(self.state, State::Fatal(_))
    }

    /// Whether no transaction is open or being ended.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state, State::New | State::Ready | State::Fatal(_))
    }

    /// Whether records are refused at once, and why.
    pub(crate) fn refusal(&self) -> Option<Error> {
        match &self.state {
            State::Failed(error) | State::Fatal(error) => Some(error.clone()),
            State::Open | State::Committing => None,
            _ => Some(not_open()),
        }
    }

    /// How the transaction of that number ended; `None` while it has not. An error says whether it may be committed all the same.
    pub(crate) fn outcome(&self, number: u64) -> Option<Result<()>> {
        let open = self.may_be_committed();
        match &self.state {
            _ if number == self.committed => Some(Ok(())),
            State::Fatal(error) => Some(Err(error.clone().with_possibly_written(open))),
            State::Failed(error) if number == self.number => {
                Some(Err(error.clone().with_possibly_written(open)))
            }
            State::Ready => Some(Ok(())),
            _ if number < self.number => Some(Ok(())),
            _ => None,
        }
    }

    /// The time in which the caller waits for the commit is over. Aborts unless the coordinator was asked to commit. Must be
    /// called under the lock under which the driver asks, so that what it returns stays true.
    pub(crate) fn handle_commit_timeout(&mut self, number: u64) -> CommitTimeout {
        match self.outcome(number) {
            Some(outcome) => CommitTimeout::Ended(outcome),
            None if self.commit_sent || self.may_be_committed() => CommitTimeout::CommitSent,
            None => {
                self.handle_abort();
                CommitTimeout::Aborting
            }
        }
    }

    /// Whether an attempt to commit the last transaction may have been carried out, and nobody said so.
    fn may_be_committed(&self) -> bool {
        self.commit_lost || (self.commit_sent && self.out)
    }

    /// Why a call that is being made again and again comes to nothing.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble.clone()
    }

    /// Whether the first call has been answered.
    pub(crate) fn is_initialized(&self) -> Option<Result<()>> {
        match &self.state {
            State::New | State::Initializing => None,
            State::Fatal(error) => Some(Err(error.clone())),
            _ => Some(Ok(())),
        }
    }

    /// What waits in the queues is to be failed with this: again and again once nothing can leave any more, because a record may
    /// be on its way into its queue meanwhile.
    pub(crate) fn poll_discard(&mut self) -> Option<Error> {
        let discards = std::mem::take(&mut self.discards);
        match &self.state {
            State::Failed(error) | State::Fatal(error) => Some(error.clone()),
            _ => discards.then(aborted),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.out)
    }

    /// The next request to a coordinator.
    pub(crate) fn poll_call(&mut self, now: Instant, outstanding: Outstanding) -> Option<Call> {
        if self.out || self.discards || self.not_before.is_some_and(|time| time > now) {
            return None;
        }
        self.not_before = None;
        let call = match self.state {
            State::Initializing => Some(Call::Init(None)),
            State::Open => self.next_of_open(),
            // Once the commit was asked for, it is repeated and nothing else comes before it.
            State::Committing if self.commit_sent => self.end(true),
            State::Committing => match self.next_of_open() {
                None if !outstanding.records => self.end(true),
                next => next,
            },
            State::Aborting if !outstanding.in_flight => self.end(false),
            State::New | State::Ready | State::Failed(_) | State::Aborting | State::Fatal(_) => None,
        };
        self.out = call.is_some();
        call
    }

    fn next_of_open(&mut self) -> Option<Call> {
        let identity = self.identity?;
        if !self.wanted.is_empty() {
            self.begun = true;
            return Some(Call::AddPartitions(identity, Arc::new(self.wanted.clone())));
        }
        let job = self.jobs.front()?;
        self.begun = true;
        if !job.group_added {
            return Some(Call::AddOffsets(identity, Arc::clone(&job.offsets.group.group_id)));
        }
        Some(Call::CommitOffsets(identity, Arc::clone(&job.offsets)))
    }

    fn end(&mut self, commit: bool) -> Option<Call> {
        let identity = self.identity?;
        if self.begun {
            self.commit_sent = commit;
            return Some(Call::End { identity, commit });
        }
        if self.needs_bump && !commit && !self.is_closing {
            return Some(Call::Init(Some(identity)));
        }
        self.finish();
        None
    }

    fn finish(&mut self) {
        self.state = State::Ready;
        self.added = Arc::default();
        self.wanted.clear();
        self.begun = false;
        self.commit_sent = false;
        self.commit_lost = false;
    }

    /// Sets the transaction to fail; a new epoch is due when nobody knows what brokers have taken.
    fn fail(&mut self, error: Error) {
        // Records that were never sent get this error too, and nothing of the transaction is committed.
        let error = error.with_possibly_written(false);
        self.jobs.clear();
        self.done_jobs = self.accepted_jobs;
        self.wanted.clear();
        self.commit_sent = false;
        self.state = State::Failed(error.with_requires_abort());
    }

    /// Nothing can be sent under this id any more.
    pub(crate) fn handle_fatal(&mut self, error: Error) {
        if !self.is_fatal() {
            self.jobs.clear();
            self.done_jobs = self.accepted_jobs;
            self.state = State::Fatal(error.with_possibly_written(false));
        }
    }
}

fn not_open() -> Error {
    Error::new(ErrorKind::InvalidArgument, "no transaction is open").with_hint("call begin first")
}

fn aborted() -> Error {
    Error::new(ErrorKind::Closed, "the transaction was aborted, and this record with it")
}

#[cfg(test)]
mod tests;
