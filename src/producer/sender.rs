//! What is sent to whom and when: leaders, one request per leader and round, back-off, identity. Pure but for the partitions'
//! locks, which appending shares.
//!
//! It decides nothing about a batch's fate: [`decision`](super::decision) does, and the partition's queue carries it out. It
//! never waits, connects or reads a clock: the task does what [`poll_action`](Sender::poll_action) says, and feeds back what
//! came of it. What must not happen under a lock (waking who waits, giving memory back) is left in the [`Aftermath`].

mod answers;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    accumulator::{Limits, Pace},
    identity::{Identity, NotYet, ProducerIdentity},
    leaders::{Access, Leaders},
    queue::{Aftermath, Batch, Taken},
    refusal_errors::not_idempotent,
    topics::PartitionQueue,
    transaction::{Partitions, says_nothing},
};
use crate::{
    batch::{Compressor, Decompressor},
    cluster::{Leadership, Metadata, TopicId},
    error::{Error, ErrorKind},
    sorted::Set,
    time::{Backoff, Instant, Rng},
};

/// The settings of the sender.
#[derive(Debug, Clone)]
pub(crate) struct SenderSettings {
    pub(crate) idempotent: bool,
    /// Somebody else says who the producer is.
    pub(crate) transactional: bool,
    /// Requests per leader.
    pub(crate) max_in_flight: usize,
    pub(crate) max_request_size: usize,
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
    /// `partitioner.availability.timeout.ms`; zero: never.
    pub(crate) availability_timeout: Duration,
}

/// Something to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Reach this broker; then call `handle_connected`.
    Connect(i32),
    /// Ask for a producer id; then call `handle_identity`.
    AskIdentity,
    /// Send this in the order of the actions; then call `handle_answers` or `handle_request_error`.
    Send(Request),
}

/// A produce request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) leader: i32,
    pub(crate) batches: Vec<Sent>,
    pub(crate) sent_at: Instant,
}

/// A batch on its way.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) partition: Arc<PartitionQueue>,
    /// Of the topic as it was known then (KIP-516); all zeros where brokers have none.
    pub(crate) topic_id: TopicId,
    pub(crate) batch: Batch,
}

/// A request while it is being planned.
struct Planned {
    leader: i32,
    batches: Vec<Sent>,
    /// Bytes of its batches.
    size: usize,
}

/// What a broker says about one batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) code: i16,
    pub(crate) base_offset: i64,
    /// -1 unless the topic's timestamps are the broker's.
    pub(crate) log_append_time: i64,
    pub(crate) message: Option<String>,
    /// The records that were refused, by their place in the batch (KIP-467).
    pub(crate) record_errors: Vec<(i32, Option<String>)>,
}

/// Under which identity batches may leave, and which partitions' may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permit<'a> {
    pub(crate) identity: Result<Option<ProducerIdentity>, NotYet>,
    /// The partitions that the coordinator knows to be in the transaction; all, if there is no such list.
    pub(crate) partitions: Option<&'a Partitions>,
}

/// Counts of what the sender has done, for the statistics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Of batches before they were compressed, and after.
    pub(crate) raw_bytes: u64,
    pub(crate) sealed_bytes: u64,
    pub(crate) retries: u64,
    pub(crate) splits: u64,
    pub(crate) failed_batches: u64,
}

pub(crate) struct Sender {
    settings: SenderSettings,
    limits: Arc<Limits>,
    /// Queues that have something to send or in flight.
    active: Vec<Arc<PartitionQueue>>,
    leaders: Leaders,
    /// The last that was told.
    cluster_id: Option<String>,
    identity: Identity,
    actions: VecDeque<Action>,
    compressor: Compressor,
    /// For batches that must be taken apart.
    decompressor: Decompressor,
    backoff: Backoff,
    rng: Rng,
    wants_metadata: bool,
    /// Topics whose records find no leader in the snapshot.
    missing: Set<Arc<str>>,
    /// Something has happened since the last plan that may let a batch leave.
    unplanned: bool,
    /// The last round of this plan left something that the next may send.
    unfinished: bool,
    /// Partitions with something to send that are not in the transaction yet, some of them several times.
    wanted: Vec<(Arc<str>, i32)>,
    aftermath: Aftermath,
    fatal: Option<Error>,
    /// The first failure that a transaction must know of.
    failure: Option<Error>,
    /// Attempts to get a producer id that failed since the last that did not.
    identity_failures: u64,
    /// Why there is no producer id yet.
    no_identity: Option<Error>,
    /// Some attempt of what failed may be in the log, or come there late.
    open_attempts: bool,
    counts: Counts,
    /// As of the last [`poll_counts`](Self::poll_counts).
    told: Counts,
}

impl Sender {
    pub(crate) fn new(
        settings: SenderSettings,
        limits: Arc<Limits>,
        compressor: Compressor,
        rng: Rng,
    ) -> Self {
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        let leaders = Leaders::new(&settings);
        Self {
            identity: Identity::new(settings.idempotent && !settings.transactional, backoff.clone()),
            settings,
            limits,
            active: Vec::new(),
            leaders,
            cluster_id: None,
            actions: VecDeque::new(),
            compressor,
            decompressor: Decompressor::new(),
            backoff,
            rng,
            wants_metadata: false,
            missing: Set::new(),
            unplanned: false,
            unfinished: false,
            wanted: Vec::new(),
            aftermath: Aftermath::default(),
            fatal: None,
            failure: None,
            identity_failures: 0,
            no_identity: None,
            open_attempts: false,
            counts: Counts::default(),
            told: Counts::default(),
        }
    }

    /// Queues that have got something to send.
    pub(crate) fn handle_scheduled(&mut self, queues: &mut Vec<Arc<PartitionQueue>>) {
        self.active.append(queues);
    }

    /// Gives up what is too old, and plans what can be sent now. `hurry`: nothing lingers.
    pub(crate) fn handle_tick(
        &mut self,
        now: Instant,
        metadata: &Metadata,
        hurry: bool,
        permit: Option<Permit<'_>>,
    ) {
        self.expire(now);
        self.handle_cluster(metadata);
        self.wanted.clear();
        self.unplanned = false;
        let permit = permit.unwrap_or_else(|| Permit { identity: self.identity.current(), partitions: None });
        self.unfinished = true;
        while std::mem::take(&mut self.unfinished) {
            self.plan_round(now, metadata, hurry, &permit);
        }
        if self.identity.poll_ask(now) {
            self.actions.push_back(Action::AskIdentity);
        }
    }

    fn handle_cluster(&mut self, metadata: &Metadata) {
        let Some(told) = metadata.cluster_id.as_ref().filter(|told| self.cluster_id.as_ref() != Some(told))
        else {
            return;
        };
        if self.cluster_id.replace(told.clone()).is_some() {
            self.identity.handle_other_cluster();
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether the snapshot of the cluster is stale.
    pub(crate) fn poll_metadata(&mut self) -> bool {
        std::mem::take(&mut self.wants_metadata)
    }

    /// Topics whose records find no leader in the snapshot.
    pub(crate) fn poll_missing(&mut self) -> Set<Arc<str>> {
        std::mem::take(&mut self.missing)
    }

    /// Topics that there is something to send to, some of them several times.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.active.iter().map(|partition| &partition.topic)
    }

    /// What has become of batches meanwhile; to be dealt with outside every lock, and to be left empty.
    pub(crate) fn poll_aftermath(&mut self) -> Option<&mut Aftermath> {
        (!self.aftermath.is_empty()).then_some(&mut self.aftermath)
    }

    /// An error after which nothing can be sent any more.
    pub(crate) fn poll_fatal(&mut self) -> Option<Error> {
        self.fatal.take()
    }

    /// A failure for which the transaction must be aborted, and whether some attempt may still come in late.
    pub(crate) fn poll_failure(&mut self) -> Option<(Error, bool)> {
        let open = std::mem::take(&mut self.open_attempts);
        self.failure.take().map(|error| (error, open))
    }

    /// Partitions that must be in the transaction before what they have can leave.
    pub(crate) fn wanted(&self) -> &[(Arc<str>, i32)] {
        &self.wanted
    }

    /// When to look again. Forgets queues that have nothing left.
    ///
    /// It is `now` if an answer came after the last plan was made: an answer may be there as soon as its request is
    /// written, and no other event may follow it.
    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let mut timeout = self.identity.poll_timeout();
        timeout = earlier(timeout, self.unplanned.then_some(now));
        timeout = earlier(timeout, self.leaders.poll_timeout(now));
        self.active.retain(|partition| {
            let mut queue = partition.lock();
            timeout = earlier(timeout, queue.poll_timeout(now));
            let is_over = queue.unschedule_if_idle();
            if is_over {
                // Nobody looks at the leader of an idle queue. It counts as available, and the next record looks again.
                partition.set_available(true);
            }
            !is_over
        });
        timeout
    }

    /// Whether nothing is left to send and nothing in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Batches in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.active.iter().map(|partition| partition.lock().in_flight()).sum()
    }

    /// What was done so far, if that is more than was told before.
    pub(crate) fn poll_counts(&mut self) -> Option<Counts> {
        (self.counts != self.told).then(|| {
            self.told = self.counts;
            self.counts
        })
    }

    #[cfg(test)]
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// One request to each leader that has room, with one batch of each of its partitions.
    fn plan_round(&mut self, now: Instant, metadata: &Metadata, hurry: bool, permit: &Permit<'_>) {
        // Sorted by leader; a round that sends nothing allocates nothing.
        let mut requests: Vec<Planned> = Vec::new();
        // Another partition is first each time, so that a request that is full starves nobody.
        if !self.active.is_empty() {
            let first = self.rng.below(self.active.len());
            self.active.rotate_left(first);
        }
        for index in 0..self.active.len() {
            let partition = Arc::clone(&self.active[index]);
            let Some(at) = metadata.leadership(&partition.topic, partition.partition) else {
                self.missing.insert(Arc::clone(&partition.topic));
                continue;
            };
            let leader = at.leader;
            let access = self.leaders.access(leader, now);
            let up = access == Access::Open;
            partition.set_available(up || !self.leaders.is_unavailable(leader, now));
            if access == Access::Connect {
                self.actions.push_back(Action::Connect(leader));
            }
            if !up {
                continue;
            }
            let place = requests.binary_search_by_key(&leader, |planned| planned.leader);
            // A batch by itself may have any size: each of its records may be sent.
            let most = self.settings.max_request_size;
            let room = place.map_or(usize::MAX, |place| most.saturating_sub(requests[place].size));
            if room == 0 {
                self.unfinished = true;
                continue;
            }
            let pace = Pace::new(hurry, self.leaders.in_flight(leader));
            if !self.is_permitted(&partition, now, pace, permit) {
                continue;
            }
            let Some(batch) = self.take(&partition, &at, room, now, pace, permit.identity) else {
                continue;
            };
            let size = batch.bytes.len();
            let sent = Sent { partition, topic_id: at.topic_id, batch };
            match place {
                Ok(place) => {
                    requests[place].size += size;
                    requests[place].batches.push(sent);
                }
                Err(place) => requests.insert(place, Planned { leader, size, batches: vec![sent] }),
            }
        }
        for Planned { leader, batches, size } in requests {
            self.leaders.handle_sent(leader);
            self.counts.requests += 1;
            self.counts.batches += batches.len() as u64;
            self.counts.bytes += size as u64;
            self.actions.push_back(Action::Send(Request { leader, batches, sent_at: now }));
        }
    }

    fn is_permitted(
        &mut self,
        partition: &Arc<PartitionQueue>,
        now: Instant,
        pace: Pace,
        permit: &Permit<'_>,
    ) -> bool {
        let Some(partitions) = permit.partitions else { return true };
        let key = (Arc::clone(&partition.topic), partition.partition);
        if partitions.contains(&key) {
            return true;
        }
        if partition.lock().is_ready(now, pace) {
            self.wanted.push(key);
        }
        false
    }

    fn take(
        &mut self,
        partition: &Arc<PartitionQueue>,
        leadership: &Leadership,
        room: usize,
        now: Instant,
        pace: Pace,
        identity: Result<Option<ProducerIdentity>, NotYet>,
    ) -> Option<Batch> {
        let (taken, more) = self.change(now, partition, |queue, aftermath| {
            queue.handle_leadership(leadership, aftermath);
            if queue.next_len() > room {
                return (None, true);
            }
            let taken = queue.poll_batch(now, pace, identity);
            let more = taken.is_some() && queue.is_ready(now, pace);
            (taken, more)
        });
        self.unfinished |= more;
        let mut batch = match taken? {
            Taken::Again(batch) => {
                self.counts.retries += 1;
                batch
            }
            Taken::First { open, stamp, order } => {
                // Compressing and summing happen here, outside the partition's lock.
                let raw = open.len();
                match open.seal(stamp, order, &self.limits, &self.compressor) {
                    Ok(batch) => {
                        self.counts.raw_bytes += raw as u64;
                        self.counts.sealed_bytes += batch.bytes.len() as u64;
                        batch
                    }
                    Err((error, receipt, reserved)) => {
                        self.change(now, partition, |queue, aftermath| {
                            queue.abandon(order, receipt, reserved, error, aftermath);
                        });
                        return None;
                    }
                }
            }
        };
        batch.prepare();
        Some(batch)
    }

    /// A broker was reached, or not.
    pub(crate) fn handle_connected(&mut self, now: Instant, id: i32, reached: bool) {
        self.unplanned = true;
        self.leaders.handle_connected(now, id, reached, &mut self.rng);
    }

    /// The connection to a broker is of no more use. Answers that are still out come all the same.
    pub(crate) fn handle_disconnected(&mut self, id: i32) {
        self.leaders.handle_disconnected(id);
    }

    /// The connection to a leader is to be replaced: nothing more is sent by it. True once what is out on it has landed.
    pub(crate) fn handle_ending(&mut self, id: i32) -> bool {
        self.leaders.handle_ending(id)
    }

    /// A producer id, or why there is none.
    pub(crate) fn handle_identity(&mut self, now: Instant, result: Result<ProducerIdentity, Error>) {
        match result {
            Ok(identity) => {
                self.unplanned = true;
                let failures = std::mem::take(&mut self.identity_failures);
                if failures > 0 {
                    tracing::info!(failures, "there is a producer id");
                }
                self.no_identity = None;
                self.identity.handle_answer(identity);
            }
            // An answer that cannot be read may have been damaged on its way, and a code that says nothing may pass; one of a
            // cluster that the client has left says nothing of this one. Asking again does no harm.
            Err(error)
                if error.is_retriable()
                    || self.identity.is_asked_elsewhere()
                    || error.kind() == ErrorKind::Protocol
                    || error.code().is_some_and(says_nothing) =>
            {
                match self.identity_failures {
                    0 => {
                        tracing::warn!(%error, "no producer id yet; further failures are counted, not logged")
                    }
                    _ => tracing::debug!(%error, "no producer id yet"),
                }
                self.identity_failures += 1;
                self.no_identity = Some(error);
                self.identity.handle_failure(now, &mut self.rng);
            }
            Err(error) => {
                tracing::error!(%error, "no producer id can be had");
                self.fatal.get_or_insert_with(|| not_idempotent(error));
            }
        }
    }
}

pub(super) fn earlier(first: Option<Instant>, second: Option<Instant>) -> Option<Instant> {
    first.into_iter().chain(second).min()
}

#[cfg(test)]
mod tests;
