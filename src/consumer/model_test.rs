//! The whole consumer core against a model of its brokers, its group and its user, in virtual time: lost requests and answers,
//! refusals, rebalances, expulsions, seeks, pauses, commits, long silences. Whatever happens: no commit passes a record that
//! was not handled, none goes back but by the user's own, no record is skipped, nothing is handed out that was given up, an
//! `Ok` of a commit is true, and in the end all is read and committed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::sync::oneshot;

use super::{
    core::{Action, Core, Notice},
    fetch::FetchAction,
    ledger::Life,
    lookups::{Found, FoundOffset, Lookup},
    offsets::{CommitAction, Offset, Offsets},
    partitions::{Next, Phase, Position, ResetTo, Turn},
};
use crate::{
    KafkaConfig,
    batch::{BatchBuilder, Compressor, Decompressor, Stamp},
    cluster::{Metadata, kafka_string},
    config::settings::Compression,
    connection::api::wire,
    error::{Error, ErrorKind, Result, code},
    flights::Token,
    group::{Answer, Request, wire::encode_assignment},
    record::TopicPartition,
    time::{self, Instant, Rng},
};

const PARTITIONS: i32 = 3;
const WEATHER: Duration = Duration::from_secs(90);
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
    Commit(Token, Result<BTreeMap<TopicPartition, i16>>),
    Committed(Vec<(TopicPartition, Life)>),
    Listed(Vec<Lookup>),
    Fetched(i32, Token, Result<wire::FetchResponse>),
    User,
    Group2,
    Produce,
}

/// The group as its coordinator has it: this consumer, and another member that has the rest.
struct Group {
    generation: i32,
    member: Option<String>,
    /// The plan of this generation is not there yet.
    completing: bool,
    rebalances: bool,
    ours: BTreeSet<i32>,
    /// Given up by the plan, and not by the member.
    blocked: BTreeSet<i32>,
    claim: BTreeSet<i32>,
    ids: u32,
}

/// The offsets of a partition that somebody has handled.
#[derive(Debug, Default, Clone)]
struct Handled {
    /// All below.
    to: i64,
    beyond: BTreeSet<i64>,
}

impl Handled {
    fn insert(&mut self, offset: i64) {
        if offset >= self.to {
            self.beyond.insert(offset);
        }
        while self.beyond.remove(&self.to) {
            self.to += 1;
        }
    }

    fn extend(&mut self, offsets: std::ops::Range<i64>) {
        for offset in offsets.start.max(self.to)..offsets.end {
            self.insert(offset);
        }
    }

    /// The first below this offset that nobody has handled.
    fn missing(&self, offset: i64) -> Option<i64> {
        (self.to < offset).then_some(self.to)
    }
}

/// A commit whose outcome is to come.
struct Receipt {
    outcome: oneshot::Receiver<Result<()>>,
    asked: BTreeMap<i32, Asked>,
    /// All that was handed out is to be committed with it.
    is_all: bool,
}

/// Where a commit is to bring a partition.
struct Asked {
    offset: i64,
    /// And those asked for after it, which may go out in its place.
    later: BTreeSet<i64>,
    /// The coordinator has taken it, or one of those.
    is_met: bool,
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
            core.acknowledge_each();
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

    fn is_calm(&self) -> bool {
        self.now >= self.start + WEATHER
    }

    /// One in so many, while the weather lasts.
    fn chance(&mut self, one_in: usize) -> bool {
        !self.is_calm() && self.rng.below(one_in) == 0
    }

    fn gone() -> Error {
        Error::new(ErrorKind::Disconnected, "gone")
    }

    fn run(mut self) {
        let end = self.start + WEATHER + CALM;
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
        while !self.core.is_closed() {
            assert!(self.now < end, "seed {seed}: the close does not end");
            self.drive();
            let due = self.queue.peek().map(|Reverse((at, _))| *at);
            let next = due.into_iter().chain(self.core.poll_timeout(self.now)).min().unwrap();
            self.now = self.now.max(next);
            if due.is_some_and(|at| at <= self.now) {
                let Reverse((_, index)) = self.queue.pop().unwrap();
                let event = self.events[index].take().unwrap();
                if !matches!(event, Event::User | Event::Group2 | Event::Produce) {
                    self.happen(event);
                }
            }
        }
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

    fn start(&mut self, action: Action) {
        let delay = self.soon();
        match action {
            Action::RequireTopics { topics, .. } => self.core.handle_topics(self.now, &topics, Ok(())),
            Action::RefreshMetadata | Action::Follow(_) | Action::ForgetCoordinator => {}
            Action::Group { token, request, deadline } => {
                if let Request::Join { claim, .. } = &request {
                    let kept: BTreeSet<i32> = match self.cooperative {
                        true => claim.iter().map(|key| key.partition).collect(),
                        false => BTreeSet::new(),
                    };
                    self.given_up = (0..PARTITIONS).filter(|number| !kept.contains(number)).collect();
                }
                match self.chance(25) {
                    true => {
                        self.after((deadline - self.now).min(delay), Event::Group(token, Err(Self::gone())))
                    }
                    false => self.after(delay, Event::GroupArrives(token, request)),
                }
            }
            Action::Plan { .. } => panic!("it never leads"),
            Action::Commit(commit) => match self.chance(15) {
                true => self.after(delay, Event::Commit(commit.token, Err(Self::gone()))),
                false => self.after(delay, Event::CommitArrives(commit)),
            },
            Action::FindCommitted { partitions, .. } => self.after(delay, Event::Committed(partitions)),
            Action::ListOffsets { lookups, .. } => self.after(delay, Event::Listed(lookups)),
            Action::Fetch(fetch) => self.fetch(&fetch),
            Action::CheckEpochs { .. } | Action::LearnLeaders(..) => panic!("no leader ever moves"),
            Action::FollowMatching(..) | Action::Identify(..) => panic!("topics are named"),
        }
    }

    fn fetch(&mut self, fetch: &FetchAction) {
        let mut any = false;
        let rows = fetch.request.partitions.iter().map(|(key, wanted)| {
            let end = self.ends[key.partition as usize];
            let count = (end - wanted.offset).clamp(0, 7);
            any |= count > 0;
            wire::fetch_response::PartitionData {
                partition_index: key.partition,
                high_watermark: end,
                last_stable_offset: end,
                records: (count > 0).then(|| batch(wanted.offset, count).into()),
                ..Default::default()
            }
        });
        let topic = wire::fetch_response::FetchableTopicResponse {
            topic: kafka_string("t"),
            partitions: rows.collect(),
            ..Default::default()
        };
        let answer = wire::FetchResponse { responses: vec![topic], ..Default::default() };
        let answer = if self.chance(30) { Err(Self::gone()) } else { Ok(answer) };
        let delay = if any { self.soon() } else { fetch.max_wait };
        self.after(delay, Event::Fetched(fetch.broker, fetch.token, answer));
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Group(token, answer) => self.core.handle_group(now, token, answer),
            Event::GroupArrives(token, request) => self.coordinate(token, request),
            Event::CommitArrives(commit) => self.commit_arrives(&commit),
            Event::Commit(token, answer) => self.core.handle_commit(now, token, answer),
            Event::Committed(asked) => {
                let found = match self.chance(10) {
                    true => Err(Error::from_code("OffsetFetch", code::NOT_COORDINATOR)),
                    false => Ok(asked
                        .iter()
                        .map(|(key, _)| (key.clone(), Ok(place(self.committed_of(key)))))
                        .collect()),
                };
                self.core.handle_found_committed(now, &asked, found);
            }
            Event::Listed(asked) => {
                let mut found = Found::new();
                for Lookup { partition, to, .. } in &asked {
                    let end = self.ends[partition.partition as usize];
                    found.insert(partition.clone(), Ok(place(if *to == ResetTo::Latest { end } else { 0 })));
                    if *to == ResetTo::Latest {
                        // The user has asked for it.
                        self.handled[partition.partition as usize].extend(0..end);
                    }
                }
                self.core.handle_listed(now, &asked, Ok(found));
            }
            Event::Fetched(broker, token, answer) => {
                self.core.handle_fetched(now, broker, token, answer, &self.decompressor);
            }
            Event::User => self.user(),
            Event::Group2 => self.others(),
            Event::Produce => {
                for end in &mut self.ends {
                    *end += self.rng.below(4) as i64;
                }
                if now + seconds(20) < self.start + WEATHER + CALM {
                    self.after(Duration::from_millis(900), Event::Produce);
                }
            }
        }
    }

    fn committed_of(&self, key: &TopicPartition) -> i64 {
        self.committed[key.partition as usize]
    }

    fn coordinate(&mut self, token: Token, request: Request) {
        let known = |group: &Group, id: &str| group.member.as_deref() == Some(id);
        let refused = |error, member_id| Answer::Join {
            error,
            generation: -1,
            member_id,
            leader: String::new(),
            protocol: String::new(),
            members: Vec::new(),
            skip_assignment: false,
        };
        let delay = self.soon();
        let group = &mut self.group;
        let answer = match request {
            Request::Join { member_id, .. } if member_id.is_empty() => {
                group.ids += 1;
                let id = format!("m{}", group.ids);
                group.member = Some(id.clone());
                refused(code::MEMBER_ID_REQUIRED, id)
            }
            Request::Join { member_id, .. } if !known(group, &member_id) => {
                refused(code::UNKNOWN_MEMBER_ID, member_id)
            }
            Request::Join { member_id, claim, .. } => {
                group.generation += 1;
                (group.completing, group.rebalances) = (true, false);
                group.claim = match self.cooperative {
                    true => claim.iter().map(|key| key.partition).collect(),
                    false => BTreeSet::new(),
                };
                group.blocked.clear();
                let protocol = if self.cooperative { "cooperative-sticky" } else { "range" };
                Answer::Join {
                    error: 0,
                    generation: group.generation,
                    member_id,
                    leader: "other".to_owned(),
                    protocol: protocol.to_owned(),
                    members: Vec::new(),
                    skip_assignment: false,
                }
            }
            Request::Sync { member_id, generation, .. } => {
                let error = match () {
                    () if !known(group, &member_id) => code::UNKNOWN_MEMBER_ID,
                    () if generation != group.generation => code::ILLEGAL_GENERATION,
                    () => 0,
                };
                let mut ours: Vec<TopicPartition> = Vec::new();
                if error == 0 {
                    group.completing = false;
                    let calm = self.now >= self.start + WEATHER;
                    group.ours = (0..PARTITIONS).filter(|_| calm || self.rng.below(3) > 0).collect();
                    group.blocked = group.claim.difference(&group.ours).copied().collect();
                    ours.extend(group.ours.iter().map(|number| key(*number)));
                    for number in group.ours.difference(&group.claim) {
                        self.back[*number as usize] = i64::MAX;
                    }
                    for number in &group.ours {
                        self.given_up.remove(number);
                    }
                }
                Answer::Sync { error, assignment: encode_assignment(&ours) }
            }
            Request::Heartbeat { member_id, generation } => Answer::Heartbeat {
                error: match () {
                    () if !known(group, &member_id) => code::UNKNOWN_MEMBER_ID,
                    () if generation != group.generation => code::ILLEGAL_GENERATION,
                    () if group.rebalances => code::REBALANCE_IN_PROGRESS,
                    () => 0,
                },
            },
            Request::Leave { .. } => {
                self.expel();
                Answer::Leave { error: 0 }
            }
            Request::Beat(_) => panic!("of another protocol"),
        };
        let answer = if self.chance(25) { Err(Self::gone()) } else { Ok(answer) };
        self.after(delay, Event::Group(token, answer));
    }

    fn expel(&mut self) {
        self.group.member = None;
        self.group.generation += 1;
        self.group.ours.clear();
        self.group.blocked.clear();
        self.group.claim.clear();
        self.group.completing = false;
    }

    fn commit_arrives(&mut self, commit: &CommitAction) {
        let refusal = match () {
            () if self.chance(20) => {
                [code::NOT_COORDINATOR, code::COORDINATOR_LOAD_IN_PROGRESS][self.rng.below(2)]
            }
            () if self.group.member.as_deref() != Some(&commit.identity.member_id) => code::UNKNOWN_MEMBER_ID,
            () if commit.identity.generation != self.group.generation => code::ILLEGAL_GENERATION,
            () if self.group.completing => code::REBALANCE_IN_PROGRESS,
            () => 0,
        };
        let mut codes = BTreeMap::new();
        for (key, offset) in &commit.offsets {
            codes.insert(key.clone(), refusal);
            if refusal == 0 {
                let number = key.partition as usize;
                let seed = self.seed;
                let passed = self.handled[number].missing(offset.offset);
                assert_eq!(
                    passed, None,
                    "seed {seed}, {:?}: {key} is committed at {}",
                    self.style, offset.offset
                );
                let floor = self.committed[number].min(self.back[number]);
                assert!(
                    offset.offset >= floor,
                    "seed {seed}, {:?}: {key} goes back from {} to {}",
                    self.style,
                    self.committed[number],
                    offset.offset
                );
                self.committed[number] = offset.offset;
                self.ours_committed[number] = offset.offset;
                for asked in
                    self.receipts.iter_mut().filter_map(|receipt| receipt.asked.get_mut(&key.partition))
                {
                    asked.is_met |= asked.offset == offset.offset || asked.later.contains(&offset.offset);
                }
            }
        }
        let answer = if self.chance(20) { Err(Self::gone()) } else { Ok(codes) };
        let delay = self.soon();
        self.after(delay, Event::Commit(commit.token, answer));
    }

    /// The other member works, and the group does as it likes.
    fn others(&mut self) {
        if self.is_calm() && self.group.ours.len() < PARTITIONS as usize {
            self.group.rebalances = true;
        }
        if self.chance(3) {
            self.group.rebalances = true;
        } else if self.chance(12) {
            self.expel();
        }
        let busy = self.group.completing || self.group.rebalances && self.group.member.is_some();
        for number in 0..PARTITIONS {
            let is_others = !self.group.ours.contains(&number)
                && !self.group.blocked.contains(&number)
                && !self.group.claim.contains(&number);
            if is_others && !busy && self.rng.below(2) == 0 {
                let at = number as usize;
                let from = self.committed[at].max(0);
                let to = (from + self.rng.below(6) as i64).min(self.ends[at]);
                self.handled[at].extend(from..to);
                self.committed[at] = to;
            }
        }
        self.after(Duration::from_millis(1_500), Event::Group2);
    }

    fn user(&mut self) {
        let pause = if self.chance(150) { 20_000 } else { 50 + self.rng.below(300) as u64 };
        self.after(Duration::from_millis(pause), Event::User);
        if std::mem::take(&mut self.polling) {
            self.core.handle_poll_end(self.now);
        }
        if pause > 10_000 {
            return;
        }
        if self.style == Style::Each {
            self.acknowledge();
        }
        self.go_elsewhere();
        self.poll();
        if self.style == Style::Commit && (self.is_calm() || self.rng.below(3) == 0) {
            self.commit();
        }
    }

    /// Some of what is out is done, in any order.
    fn acknowledge(&mut self) {
        let out = std::mem::take(&mut self.out);
        for (key, life, offset) in out {
            if !self.is_calm() && self.rng.below(3) == 0 {
                self.out.push((key, life, offset));
                continue;
            }
            // Handled, whether or not it still counts.
            self.handled[key.partition as usize].insert(offset);
            self.core.handle_done(&key, life, &[offset]);
        }
    }

    fn go_elsewhere(&mut self) {
        let number = self.rng.below(PARTITIONS as usize) as i32;
        let at = number as usize;
        let Some(position) =
            self.core.partitions.get(&key(number)).and_then(|partition| partition.position())
        else {
            return;
        };
        if self.style != Style::Each && self.chance(25) {
            // Back, or on; what is passed over is not wanted.
            let to = (position.next + self.rng.below(9) as i64 - 5).clamp(0, self.ends[at]);
            self.handled[at].extend(0..to);
            self.back[at] = self.back[at].min(to);
            self.owed.remove(&number);
            self.out.retain(|(key, _, _)| key.partition != number);
            self.core.seek(self.now, &key(number), Phase::Fetching(Position::at(to))).unwrap();
        } else if self.style != Style::Each && self.chance(80) {
            self.owed.remove(&number);
            self.out.retain(|(key, _, _)| key.partition != number);
            self.core.seek(self.now, &key(number), Phase::AwaitingReset(ResetTo::Latest)).unwrap();
        } else if self.chance(20) {
            self.core.set_paused(&[key(number)], true).unwrap();
        } else if self.rng.below(4) == 0 || self.is_calm() {
            self.core.set_paused(&[key(number)], false).unwrap();
        }
    }

    fn poll(&mut self) {
        if self.style != Style::Each {
            // What polls before handed out is done by this one.
            for (key, _, offset) in self.out.drain(..) {
                self.handled[key.partition as usize].insert(offset);
            }
        }
        self.core.handle_poll(self.now).unwrap();
        self.polling = true;
        self.listen();
        while self.core.take_error().is_some() {}
        let mut left = 5;
        while left > 0 {
            match self.core.next_chunk(left, Turn::Poll) {
                Next::Chunk(key, life, chunk) => {
                    left -= chunk.range.len();
                    for slot in &chunk.batch.slots[chunk.range.clone()] {
                        self.handed_out(&key, life, chunk.batch.offset(slot));
                    }
                }
                Next::Decode(job) => {
                    let (key, decoding) = job.split();
                    let (decoded, result) = decoding.run(true, &self.decompressor, 1 << 20);
                    self.core.check_in(key, decoded, result.is_err());
                    result.unwrap();
                }
                Next::Nothing => break,
            }
        }
    }

    /// The listener returns at once.
    fn listen(&mut self) {
        let (Some(heard), seed) = (&mut self.heard, self.seed) else { return };
        while let Some(notice) = self.core.next_notice(self.now) {
            let (Notice::Assigned(partitions) | Notice::Revoked(partitions) | Notice::Lost(partitions)) =
                &notice;
            let comes = matches!(notice, Notice::Assigned(_));
            for key in partitions {
                let is_news = if comes { heard.insert(key.clone()) } else { heard.remove(key) };
                assert!(is_news, "seed {seed}: {notice:?} is told again");
            }
            self.core.handle_told(self.now);
        }
    }

    fn handed_out(&mut self, key: &TopicPartition, life: Life, offset: i64) {
        let (number, seed) = (key.partition, self.seed);
        assert!(
            self.heard.as_ref().is_none_or(|heard| heard.contains(key)),
            "seed {seed}: {offset} of {key} is handed out, which the listener was not told of"
        );
        assert!(
            !self.given_up.contains(&number),
            "seed {seed}: {key} was given up, and {offset} is handed out"
        );
        match self.next.insert((number, life), offset + 1) {
            Some(next) => assert_eq!(offset, next, "seed {seed}: a hole or a repetition in {key}"),
            None => {
                let skipped = self.handled[number as usize].missing(offset);
                assert_eq!(skipped, None, "seed {seed}, {:?}: {key} begins at {offset}", self.style);
            }
        }
        self.out.push((key.clone(), life, offset));
        if self.style != Style::Each {
            self.owed.insert(number, offset + 1);
        }
    }

    /// Everything handed out is done, the user says.
    fn commit(&mut self) {
        for (key, _, offset) in self.out.drain(..) {
            self.handled[key.partition as usize].insert(offset);
        }
        let named = self.chance(6).then(|| self.named()).flatten();
        let is_all = named.is_none();
        let asked: BTreeMap<i32, i64> = match &named {
            Some(named) => named.iter().map(|(key, named)| (key.partition, named.offset)).collect(),
            None => self.owed.clone(),
        };
        // Also what was sought.
        let sent: BTreeMap<i32, i64> = match &named {
            Some(_) => asked.clone(),
            None => {
                let position =
                    |number| Some((number, self.core.partitions.get(&key(number))?.position()?.next));
                (0..PARTITIONS).filter_map(position).collect()
            }
        };
        let asked = asked.into_iter().map(|(partition, offset)| {
            let at = partition as usize;
            let is_met = self.ours_committed[at] == offset || self.committed[at] == offset;
            (partition, Asked { offset, later: BTreeSet::new(), is_met })
        });
        let asked = asked.collect();
        match self.core.commit(named, self.now + seconds(8)) {
            Ok(Some(outcome)) => {
                for receipt in &mut self.receipts {
                    for (partition, asked) in &mut receipt.asked {
                        asked.later.extend(sent.get(partition));
                    }
                }
                self.receipts.push(Receipt { outcome, asked, is_all });
            }
            Ok(None) => self.told(Ok(()), &asked, is_all),
            Err(error) => self.told(Err(error), &asked, is_all),
        }
    }

    /// An offset of the user's own, below what was handed out.
    fn named(&mut self) -> Option<Offsets> {
        let number = self.rng.below(PARTITIONS as usize) as i32;
        let partition = self.core.partitions.get(&key(number))?;
        let (begun, position) = (partition.account.begun()?, partition.position()?.next);
        let offset = (position - self.rng.below(3) as i64).max(begun).min(position);
        self.back[number as usize] = self.back[number as usize].min(offset);
        let named = Offset { offset, leader_epoch: -1, ..Offset::default() };
        Some(Offsets::from([(key(number), named)]))
    }
}

fn batch(base_offset: i64, count: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BytesMut::new());
    for _ in 0..count {
        builder.append(1, None, Some(b"v"), &[]);
    }
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let mut bytes = builder.finish(Stamp::NONE, &compressor).unwrap().bytes.to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.version = 1;
    let partition = |_| crate::cluster::metadata::Partition {
        leader: Some(1),
        leader_epoch: 0,
        replicas: vec![1],
        in_sync_replicas: vec![1],
    };
    let partitions = (0..PARTITIONS).map(partition).collect();
    metadata.topics.insert("t".into(), crate::cluster::metadata::Topic { partitions, ..Default::default() });
    metadata
}

/// `DTKAFKA_MODEL_SEEDS` for more of them, `DTKAFKA_MODEL_FROM` to begin elsewhere.
fn place(offset: i64) -> FoundOffset {
    FoundOffset { offset, leader_epoch: -1, timestamp: -1, metadata: String::new(), by_id: false }
}

#[test]
fn whatever_happens_nothing_is_skipped_and_no_commit_is_wrong() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("DTKAFKA_MODEL_FROM").unwrap_or(0);
    for seed in from..from + number("DTKAFKA_MODEL_SEEDS").unwrap_or(30) {
        World::new(seed).run();
    }
}
