//! The whole consumer core against a model of its brokers, its group and its user, in virtual time: lost requests and answers,
//! refusals, rebalances, expulsions, seeks, pauses, commits, long silences. Whatever happens: no commit passes a record that
//! was not handled, none goes back but by the user's own, no record is skipped, nothing is handed out that was given up, an
//! `Ok` of a commit is true, and in the end all is read and committed.

mod brokers;
mod coordinator;
mod user;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;

use self::{
    brokers::metadata,
    coordinator::Group,
    user::{Asked, Handled, Receipt},
};
use super::{core::Core, ledger::Life, lookups::Lookup, offsets::CommitAction};
use crate::{
    KafkaConfig,
    batch::Decompressor,
    connection::api::wire,
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{Answer, Request},
    record::TopicPartition,
    time::{self, Instant, Rng},
};

const PARTITIONS: i32 = 3;
const FAULTS_LAST: Duration = Duration::from_secs(90);
const CALM: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_secs(15);

fn key(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How the user says what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Poll,
    Commit,
    Each,
}

enum Event {
    Group(Token, Result<Answer>),
    GroupArrives(Token, Request),
    CommitArrives(CommitAction),
    Commit(Token, Result<crate::sorted::Map<TopicPartition, i16>>),
    Committed(Vec<(TopicPartition, Life)>),
    Listed(Vec<Lookup>),
    Fetched(i32, Token, Result<wire::FetchResponse>),
    User,
    Group2,
    Produce,
}

struct World {
    seed: u64,
    start: Instant,
    now: Instant,
    rng: Rng,
    core: Core,
    style: Style,
    cooperative: bool,
    group: Group,
    decompressor: Decompressor,
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
    events: Vec<Option<Event>>,
    ends: Vec<i64>,
    handled: Vec<Handled>,
    committed: Vec<i64>,
    /// Down to where the user has gone back on purpose, in this assignment.
    back: Vec<i64>,
    /// Handed out, and not said to be done.
    out: Vec<(TopicPartition, Life, i64)>,
    /// The next record of a life.
    next: BTreeMap<(i32, Life), i64>,
    /// Handed out, and neither known to be committed nor told to be lost.
    owed: BTreeMap<i32, i64>,
    /// The last that the coordinator has taken from this consumer.
    ours_committed: Vec<i64>,
    receipts: Vec<Receipt>,
    polling: bool,
    given_up: BTreeSet<i32>,
    /// What the listener was told that it has; none where there is no listener.
    heard: Option<BTreeSet<TopicPartition>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let style = [Style::Poll, Style::Commit, Style::Each][rng.below(3)];
        let cooperative = rng.below(2) == 0;
        let strategy = if cooperative { "cooperative-sticky" } else { "range" };
        let config = KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set_group_id("g")
            .set_auto_offset_reset("earliest")
            .set_enable_auto_commit(style != Style::Commit)
            .set("auto.commit.interval.ms", 700)
            .set("session.timeout.ms", 6_000)
            .set("heartbeat.interval.ms", 500)
            .set("max.poll.interval.ms", POLL_INTERVAL.as_millis() as u64)
            .set("request.timeout.ms", 3_000)
            .set("default.api.timeout.ms", 8_000)
            .set("partition.assignment.strategy", strategy);
        let now = time::now();
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(seed ^ 7));
        if style == Style::Each {
            core.partitions.acknowledge_each();
        }
        core.subscribe(now, vec!["t".into()]).unwrap();
        let group = Group {
            generation: 1,
            member: None,
            completing: false,
            rebalances: false,
            ours: BTreeSet::new(),
            blocked: BTreeSet::new(),
            claim: BTreeSet::new(),
            ids: 0,
        };
        let each = PARTITIONS as usize;
        let mut world = Self {
            seed,
            start: now,
            now,
            rng,
            core,
            style,
            cooperative,
            group,
            decompressor: Decompressor::new(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            ends: vec![20; each],
            handled: vec![Handled::default(); each],
            committed: vec![-1; each],
            back: vec![i64::MAX; each],
            out: Vec::new(),
            next: BTreeMap::new(),
            owed: BTreeMap::new(),
            ours_committed: vec![-1; each],
            receipts: Vec::new(),
            polling: false,
            given_up: BTreeSet::new(),
            heard: (seed % 2 == 1).then(BTreeSet::new),
        };
        world.core.set_listening(world.heard.is_some());
        world.core.handle_metadata(now, Arc::new(metadata()));
        world.after(Duration::ZERO, Event::User);
        world.after(seconds(3), Event::Group2);
        world.after(seconds(1), Event::Produce);
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.queue.push(Reverse((self.now + delay, self.events.len())));
        self.events.push(Some(event));
    }

    fn soon(&mut self) -> Duration {
        let most = if self.rng.below(20) == 0 { 2_500 } else { 60 };
        Duration::from_millis(1 + self.rng.below(most) as u64)
    }

    fn faults_are_over(&self) -> bool {
        self.now >= self.start + FAULTS_LAST
    }

    /// One in so many, while faults last.
    fn chance(&mut self, one_in: usize) -> bool {
        !self.faults_are_over() && self.rng.below(one_in) == 0
    }

    fn gone() -> Error {
        Error::new(ErrorKind::Disconnected, "gone")
    }

    fn run(mut self) {
        let end = self.start + FAULTS_LAST + CALM;
        let mut turns = 0;
        while self.now < end {
            self.drive();
            let due = self.queue.peek().map(|Reverse((at, _))| *at);
            let timer = self.core.poll_timeout(self.now);
            let next = due.into_iter().chain(timer).min().unwrap();
            turns = if next <= self.now { turns + 1 } else { 0 };
            assert!(turns < 10_000, "seed {}: it spins", self.seed);
            self.now = self.now.max(next);
            if due.is_some_and(|at| at <= self.now) {
                let Reverse((_, index)) = self.queue.pop().unwrap();
                let event = self.events[index].take().unwrap();
                self.happen(event);
            }
        }
        let seed = self.seed;
        for partition in 0..PARTITIONS as usize {
            let (end, committed) = (self.ends[partition], self.committed[partition]);
            let missing = self.handled[partition].missing(end);
            assert_eq!(missing, None, "seed {seed}, {:?}: a record of {partition} was skipped", self.style);
            assert_eq!(
                committed, end,
                "seed {seed}, {:?}: partition {partition} is not committed",
                self.style
            );
        }
        self.now += Duration::from_millis(1);
        self.core.begin_close(self.now, self.now + seconds(10));
        let end = self.now + seconds(20);
        loop {
            assert!(self.now < end, "seed {seed}: the close does not end");
            self.drive();
            if self.core.is_closed() {
                break;
            }
            let due = self.queue.peek().map(|Reverse((at, _))| *at);
            let Some(next) = due.into_iter().chain(self.core.poll_timeout(self.now)).min() else { break };
            self.now = self.now.max(next);
            if due.is_some_and(|at| at <= self.now) {
                let Reverse((_, index)) = self.queue.pop().unwrap();
                let event = self.events[index].take().unwrap();
                if !matches!(event, Event::User | Event::Group2 | Event::Produce) {
                    self.happen(event);
                }
            }
        }
        assert!(self.core.is_closed(), "seed {seed}: nothing is left that could end the close");
    }

    fn drive(&mut self) {
        self.core.handle_timeout(self.now);
        while let Some(action) = self.core.poll_action(self.now) {
            self.start(action);
        }
        let mut receipts = std::mem::take(&mut self.receipts);
        receipts.retain_mut(|receipt| match receipt.outcome.try_recv() {
            Ok(outcome) => {
                self.told(outcome, &receipt.asked, receipt.is_all);
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => panic!("a commit was forgotten"),
        });
        self.receipts = receipts;
    }

    /// A commit has an outcome.
    fn told(&mut self, outcome: Result<()>, asked: &BTreeMap<i32, Asked>, is_all: bool) {
        if outcome.is_err() {
            // Said once of all that is gone.
            self.owed.clear();
            return;
        }
        for (partition, Asked { offset, later, is_met }) in asked {
            let committed = self.ours_committed[*partition as usize];
            assert!(
                is_met,
                "seed {}: a commit says Ok, and neither {offset} of {partition} nor one of {later:?} was committed, but \
                 {committed}",
                self.seed
            );
            if is_all {
                self.owed.retain(|key, owed| key != partition || *owed > *offset);
            }
        }
    }
}

/// `DTKAFKA_MODEL_SEEDS` for more of them, `DTKAFKA_MODEL_FROM` to begin elsewhere.
#[test]
fn whatever_happens_nothing_is_skipped_and_no_commit_is_wrong() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("DTKAFKA_MODEL_FROM").unwrap_or(0);
    for seed in from..from + number("DTKAFKA_MODEL_SEEDS").unwrap_or(30) {
        World::new(seed).run();
    }
}
