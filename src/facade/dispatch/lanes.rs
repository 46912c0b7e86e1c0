//! Which records may be handled beside each other, and which one after the other. Pure: no handler, no clock, no socket.
//!
//! ```text
//!   taken ──push──> lane's queue ──poll_run──> running ──handle_end──> (forgotten, or the lane's turn comes again)
//!                       │                         │
//!                       └──────── revoke ─────────┘ (running ones end by themselves)
//! ```
//! A lane has one run at a time; what a run holds is handled in order. A lane is a partition, a key of a partition,
//! or a single record, as the [`Ordering`] says; it exists while it has records. Lanes take turns in the order in which
//! they became ready. What is done, and what may be committed, is not known here: the consumer's ledger counts it.
//!
//! A partition with too much in its lanes is paused alone, so that a lane that is stuck holds up no other partition.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    time::Duration,
};

use crate::{
    record::TopicPartition,
    sorted,
    time::{Instant, later},
};

/// Which records of a [`Consumer`](crate::Consumer) are handled one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ordering {
    /// Those of a partition; partitions run beside each other (the default), all of them unless
    /// [`concurrency`](crate::Consumer::concurrency) says how many.
    #[default]
    Partition,
    /// Those of a partition with the same key; others run beside each other, up to
    /// [`concurrency`](crate::Consumer::concurrency). Records without a key have no order.
    Key,
    /// None: all run beside each other, up to [`concurrency`](crate::Consumer::concurrency).
    Unordered,
}

/// How much may wait in lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Runs at once.
    pub(crate) runs: usize,
    /// Records of a partition that may wait; exceeded only by what comes with one take.
    pub(crate) records: usize,
    /// Bytes that wait, of all partitions together.
    pub(crate) bytes: usize,
    /// Records of a partition between the first that is not done and the last that was taken.
    pub(crate) span: u64,
}

/// What the lanes of a topic wait for whose handler takes many records at once: this many records, or this long after the
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gather {
    pub(crate) records: usize,
    pub(crate) wait: Duration,
}

/// Records as they are put into lanes.
pub(crate) trait Load: Sized {
    fn len(&self) -> usize;
    fn bytes(&self) -> usize;
    /// The time before which it must not be handled.
    fn due(&self) -> Option<Instant>;
    /// Record by record, each with the hash of its key.
    fn each(self, hand_out: &mut dyn FnMut(Option<u64>, Self));
}

/// Names a lane; smaller numbers are older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneId {
    /// The number of one life of a partition.
    home: u64,
    slot: Slot,
}

impl LaneId {
    /// All lanes of one life of a partition.
    fn all_of(home: u64) -> RangeInclusive<Self> {
        Self { home, slot: Slot::Whole }..=Self { home, slot: Slot::Record(u64::MAX) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Whole,
    Key(u64),
    Record(u64),
}

/// What is to be handled now, in order.
#[derive(Debug)]
pub(crate) struct Run<W, L> {
    pub(crate) lane: LaneId,
    pub(crate) partition: TopicPartition,
    pub(crate) life: L,
    pub(crate) loads: Vec<W>,
}

/// Partitions to be paused or resumed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    Pause(TopicPartition),
    Resume(TopicPartition),
}

#[derive(Debug)]
struct Lane<W> {
    queue: VecDeque<(u64, W)>,
    /// It starts no sooner than this, unless it has gathered enough.
    not_before: Option<Instant>,
    /// When it is looked at again, if it waits.
    waits_until: Option<Instant>,
    running: Option<Out>,
}

impl<W: Load> Lane<W> {
    /// When it may start: once its first record is due and either enough others are due as well or the time to gather
    /// them is over.
    fn ready_at(&self, gather: Option<Gather>) -> Option<Instant> {
        let (mut records, mut latest) = (0, None);
        let mut loads = self.queue.iter();
        let enough = gather.is_none_or(|gather| {
            loads.any(|(_, load)| {
                records += load.len();
                latest = latest.max(load.due());
                records >= gather.records
            })
        });
        let due = self.queue.front().and_then(|(_, load)| load.due());
        match (enough, self.not_before) {
            (true, Some(not_before)) => due.max(latest.map(|latest| latest.min(not_before))),
            (false, not_before) => due.max(not_before),
            (true, None) => due,
        }
    }

    /// The time to gather others begins when the first record is due.
    fn begin_gathering(&mut self, now: Instant, gather: Option<Gather>) {
        let wait = gather.map(|gather| gather.wait).filter(|wait| !wait.is_zero());
        let first = self.queue.front().and_then(|(_, load)| load.due()).map_or(now, |due| due.max(now));
        self.not_before = wait.map(|wait| later(first, wait));
    }
}

/// What runs: the numbers of its loads, and how much they are.
#[derive(Debug)]
struct Out {
    numbers: Vec<u64>,
    records: usize,
    bytes: usize,
}

/// One life of a partition: from its assignment, or a seek, to the next.
#[derive(Debug)]
struct PartitionLanes<L> {
    partition: TopicPartition,
    life: L,
    /// Waiting or running.
    records: usize,
    bytes: usize,
    /// How many records were pushed.
    pushed: u64,
    /// Numbers of loads that are not done.
    unfinished: BTreeSet<u64>,
    gather: Option<Gather>,
    paused: bool,
    revoked: bool,
}

impl<L> PartitionLanes<L> {
    /// What its lanes wait for; nothing while it is paused, when no more can come.
    fn gathers(&self) -> Option<Gather> {
        self.gather.filter(|_| !self.paused)
    }
}

pub(crate) struct Lanes<W, L> {
    ordering: Ordering,
    bounds: Bounds,
    homes: BTreeMap<u64, PartitionLanes<L>>,
    /// The number of the present life of each partition.
    by_partition: BTreeMap<TopicPartition, u64>,
    lanes: BTreeMap<LaneId, Lane<W>>,
    ready: VecDeque<LaneId>,
    /// Lanes that wait for more records, or until their first is due, with the time to look at them again. They hold no
    /// run.
    waiting: BTreeSet<(Instant, LaneId)>,
    running: usize,
    next_home: u64,
    pauses: VecDeque<Pause>,
}

impl<W: Load, L: Copy + Ord> Lanes<W, L> {
    pub(crate) fn new(ordering: Ordering, bounds: Bounds) -> Self {
        Self {
            ordering,
            bounds,
            homes: BTreeMap::new(),
            by_partition: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            running: 0,
            next_home: 0,
            pauses: VecDeque::new(),
        }
    }

    /// Whether nothing waits and nothing runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Takes records of a partition, which stand behind those it has. Records of a life that was revoked are refused.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        partition: &TopicPartition,
        life: L,
        load: W,
        gather: Option<Gather>,
    ) -> Result<(), W> {
        let home_id = self.home_of(partition, life, gather);
        let Some(home) = self.homes.get_mut(&home_id).filter(|home| !home.revoked) else { return Err(load) };
        home.records += load.len();
        // Records that are handled many at once share one lane, or there would be nothing to gather.
        let whole = self.ordering == Ordering::Partition
            || (self.ordering == Ordering::Unordered && gather.is_some());
        if whole {
            let number = home.pushed;
            home.pushed += load.len() as u64;
            home.bytes += load.bytes();
            home.unfinished.insert(number);
            self.queue(now, LaneId { home: home_id, slot: Slot::Whole }, number, load);
        } else {
            let by_key = self.ordering == Ordering::Key;
            let mut ones = Vec::with_capacity(load.len());
            load.each(&mut |hash, one| ones.push((hash, one)));
            for (hash, one) in ones {
                let Some(home) = self.homes.get_mut(&home_id) else { break };
                let number = home.pushed;
                home.pushed += 1;
                home.bytes += one.bytes();
                home.unfinished.insert(number);
                let slot = hash.filter(|_| by_key).map_or(Slot::Record(number), Slot::Key);
                self.queue(now, LaneId { home: home_id, slot }, number, one);
            }
        }
        self.weigh(home_id);
        Ok(())
    }

    /// Counts records that are done without a lane, behind those of the partition. Behind a record that waits for long
    /// they fill the ledger like all others.
    pub(crate) fn pass_over(&mut self, partition: &TopicPartition, life: L, records: usize) {
        let Some(id) = self.by_partition.get(partition).copied() else { return };
        let Some(home) = self.homes.get_mut(&id) else { return };
        if home.life == life && !home.unfinished.is_empty() {
            home.pushed += records as u64;
            self.weigh(id);
        }
    }

    /// The number of this life. An earlier life of the partition is revoked by it.
    fn home_of(&mut self, partition: &TopicPartition, life: L, gather: Option<Gather>) -> u64 {
        if let Some(id) = self.by_partition.get(partition)
            && self.homes.get(id).is_some_and(|home| home.life == life)
        {
            return *id;
        }
        let id = self.next_home;
        self.next_home += 1;
        let home = PartitionLanes {
            partition: partition.clone(),
            life,
            records: 0,
            bytes: 0,
            pushed: 0,
            unfinished: BTreeSet::new(),
            gather,
            paused: false,
            revoked: false,
        };
        self.homes.insert(id, home);
        if let Some(earlier) = self.by_partition.insert(partition.clone(), id) {
            // Records of the earlier life come again in this one, were left behind by a seek, or are of a topic that is
            // gone.
            drop(self.empty(earlier));
        }
        id
    }

    fn queue(&mut self, now: Instant, id: LaneId, number: u64, load: W) {
        let gather = self.homes.get(&id.home).and_then(PartitionLanes::gathers);
        let lane = self.lanes.entry(id).or_insert_with(|| Lane {
            queue: VecDeque::new(),
            not_before: None,
            waits_until: None,
            running: None,
        });
        let was_idle = lane.queue.is_empty() && lane.running.is_none();
        let is_first = lane.queue.is_empty();
        lane.queue.push_back((number, load));
        if is_first {
            lane.begin_gathering(now, gather);
        }
        if was_idle {
            self.ready.push_back(id);
        } else if let Some(until) = lane.waits_until
            && lane.ready_at(gather).is_none_or(|at| at < until)
            && self.waiting.remove(&(until, id))
        {
            self.ready.push_back(id);
        }
    }

    /// The next run that may start.
    pub(crate) fn poll_run(&mut self, now: Instant) -> Option<Run<W, L>> {
        while let Some(&(until, id)) = self.waiting.first().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, id));
            self.ready.push_back(id);
        }
        while self.running < self.bounds.runs {
            let id = self.ready.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            let Some(home) = self.homes.get(&id.home) else { continue };
            lane.waits_until = lane.ready_at(home.gathers()).filter(|until| *until > now);
            if let Some(until) = lane.waits_until {
                self.waiting.insert((until, id));
                continue;
            }
            // The lane of a partition takes all that is due. The lane of a key takes one record, so that no key holds a
            // place for long.
            let takes_all = id.slot == Slot::Whole || home.gather.is_some();
            let due = lane.queue.iter().take_while(|(_, load)| load.due().is_none_or(|due| due <= now));
            let count = due.take(if takes_all { usize::MAX } else { 1 }).count();
            let (numbers, loads): (Vec<u64>, Vec<W>) = lane.queue.drain(..count).unzip();
            let records = loads.iter().map(Load::len).sum();
            let bytes = loads.iter().map(Load::bytes).sum();
            lane.begin_gathering(now, home.gather);
            lane.running = Some(Out { numbers, records, bytes });
            self.running += 1;
            return Some(Run { lane: id, partition: home.partition.clone(), life: home.life, loads });
        }
        None
    }

    /// Whether nothing runs and all lanes wait for their first record to be due, and none for others of its batch.
    pub(crate) fn are_at_rest(&self, now: Instant) -> bool {
        let is_due_later = |id: &LaneId| {
            let lane = self.lanes.get(id);
            let first = lane.and_then(|lane| lane.queue.front());
            first.and_then(|(_, load)| load.due()).is_some_and(|due| due > now)
        };
        self.running == 0 && self.ready.is_empty() && self.waiting.iter().all(|(_, id)| is_due_later(id))
    }

    /// When the first of the waiting lanes stops waiting.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// A run has ended, whether all of it was done or not.
    pub(crate) fn handle_end(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(Out { numbers, records, bytes }) = lane.running.take() else { return };
        self.running -= 1;
        if let Some(home) = self.homes.get_mut(&id.home) {
            home.records -= records;
            home.bytes -= bytes;
            for number in numbers {
                home.unfinished.remove(&number);
            }
        }
        match lane.queue.is_empty() {
            true => drop(self.lanes.remove(&id)),
            false => self.ready.push_back(id),
        }
        self.weigh(id.home);
        self.forget_if_over(id.home);
    }

    /// Starts nothing more of this life of a partition and of those before it, and gives back what waits there, by life.
    /// What runs ends by itself. A later life, which may have come before its predecessor's end was heard of, goes on.
    pub(crate) fn revoke(&mut self, partition: &TopicPartition, life: L) -> Vec<(L, Vec<W>)> {
        let is_meant = |home: &PartitionLanes<L>| home.partition == *partition && home.life <= life;
        let homes = self.homes.iter().filter(|(_, home)| is_meant(home));
        let homes: Vec<_> = homes.map(|(id, home)| (*id, home.life)).collect();
        homes.into_iter().map(|(id, life)| (life, self.empty(id))).collect()
    }

    /// As [`revoke`](Self::revoke), of every partition that has something waiting or running.
    pub(crate) fn revoke_all(&mut self) -> Vec<(TopicPartition, L, Vec<W>)> {
        let homes = self.homes.iter().filter(|(_, home)| home.records > 0);
        let homes: Vec<_> = homes.map(|(id, home)| (*id, home.partition.clone(), home.life)).collect();
        homes.into_iter().map(|(id, partition, life)| (partition, life, self.empty(id))).collect()
    }

    fn empty(&mut self, id: u64) -> Vec<W> {
        let Some(home) = self.homes.get_mut(&id) else { return Vec::new() };
        home.revoked = true;
        let mut waiting = Vec::new();
        let mut over = Vec::new();
        for (lane_id, lane) in self.lanes.range_mut(LaneId::all_of(id)) {
            waiting.extend(lane.queue.drain(..));
            if lane.running.is_none() {
                over.push((*lane_id, lane.waits_until));
            }
        }
        for (lane, waits_until) in over {
            self.lanes.remove(&lane);
            if let Some(until) = waits_until {
                self.waiting.remove(&(until, lane));
            }
        }
        if std::mem::take(&mut home.paused) {
            // Its lanes are empty now, and the partition may be here in another life.
            self.pauses.push_back(Pause::Resume(home.partition.clone()));
        }
        // In the order they were taken, whatever lane they stood in.
        sorted::sort_by(&mut waiting, |(a, _), (b, _)| a.cmp(b));
        for (number, load) in &waiting {
            home.records -= load.len();
            home.bytes -= load.bytes();
            home.unfinished.remove(number);
        }
        self.forget_if_over(id);
        waiting.into_iter().map(|(_, load)| load).collect()
    }

    fn forget_if_over(&mut self, id: u64) {
        let Some(home) = self.homes.get(&id).filter(|home| home.revoked && home.records == 0) else { return };
        if self.by_partition.get(&home.partition) == Some(&id) {
            self.by_partition.remove(&home.partition);
        }
        self.homes.remove(&id);
    }

    /// Whether anything of a partition waits or runs.
    pub(crate) fn has(&self, partition: &TopicPartition) -> bool {
        self.homes.values().any(|home| home.partition == *partition && home.records > 0)
    }

    /// Pauses or resumes a partition by what waits in it.
    fn weigh(&mut self, id: u64) {
        // Each partition has its share of the bytes, so that one that is stuck cannot take all.
        let share = (self.bounds.bytes / self.by_partition.len().max(1)).max(1);
        let Some(home) = self.homes.get_mut(&id) else { return };
        let span = home.pushed - home.unfinished.first().copied().unwrap_or(home.pushed);
        let is_full =
            |part: usize| home.records >= self.bounds.records / part || home.bytes >= (share / part).max(1);
        let pause = match home.paused {
            false => is_full(1) || span >= self.bounds.span,
            // It is resumed only at half, or each record that is done would change it.
            true => is_full(2) || span >= self.bounds.span,
        };
        if pause != home.paused && !home.revoked {
            home.paused = pause;
            let partition = home.partition.clone();
            let gathers = home.gather.is_some();
            self.pauses.push_back(if pause { Pause::Pause(partition) } else { Pause::Resume(partition) });
            if pause && gathers {
                // The records that its lanes wait for cannot come while it is paused.
                for (lane_id, lane) in self.lanes.range(LaneId::all_of(id)) {
                    if let Some(until) = lane.waits_until
                        && self.waiting.remove(&(until, *lane_id))
                    {
                        self.ready.push_back(*lane_id);
                    }
                }
            }
        }
    }

    /// Whether a partition was paused and not resumed.
    pub(crate) fn is_paused(&self, partition: &TopicPartition) -> bool {
        self.by_partition
            .get(partition)
            .and_then(|id| self.homes.get(id))
            .is_some_and(|home| home.paused && !home.revoked)
    }

    /// The partitions that were paused and not resumed.
    pub(crate) fn paused(&self) -> impl Iterator<Item = &TopicPartition> {
        self.homes.values().filter(|home| home.paused).map(|home| &home.partition)
    }

    /// What is to be paused or resumed.
    pub(crate) fn poll_pause(&mut self) -> Option<Pause> {
        self.pauses.pop_front()
    }
}

#[cfg(test)]
mod tests;
