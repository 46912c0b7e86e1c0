//! Many members against a model coordinator in virtual time: lost requests and answers, crashes, closes, slow users, a
//! coordinator that moves. Whatever happens, a partition has one owner per generation, and in the end all are stable.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Action, Answer, GroupSettings, Request,
    assignor::{GroupInfo, GroupMember, Strategy},
    classic::Member,
    code,
    wire::decode_assignment,
};
use crate::{
    config::settings::GroupProtocol,
    error::{Error, ErrorKind},
    flights::Token,
    record::TopicPartition,
    time::{self, Instant, Rng},
};

const PARTITIONS: i32 = 7;
const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing { until: Instant },
    Completing,
    Stable,
}

#[derive(Debug)]
struct Known {
    expires: Instant,
    topics: Vec<Arc<str>>,
    /// What it claims to own, and of which generation.
    claim: (Vec<TopicPartition>, i32),
    /// Who waits for the answer to a join, and its token.
    joining: Option<(usize, Token)>,
    syncing: Option<(usize, Token)>,
    assignment: Bytes,
}

/// The classic coordinator, as the broker has it.
struct Coordinator {
    assignor: Strategy,
    phase: Phase,
    generation: i32,
    leader: String,
    members: BTreeMap<String, Known>,
    pending_ids: BTreeSet<String>,
    next_id: u32,
    answers: Vec<(usize, Token, Answer)>,
}

impl Coordinator {
    fn new(assignor: Strategy) -> Self {
        Self {
            assignor,
            phase: Phase::Empty,
            generation: 0,
            leader: String::new(),
            members: BTreeMap::new(),
            pending_ids: BTreeSet::new(),
            next_id: 0,
            answers: Vec::new(),
        }
    }

    fn handle(&mut self, now: Instant, who: usize, token: Token, request: Request) {
        match request {
            Request::Join { member_id, topics, claim, generation, .. } => {
                self.join(now, who, token, member_id, topics, (claim, generation));
            }
            Request::Sync { member_id, generation, assignments, .. } => {
                self.sync(now, who, token, &member_id, generation, assignments);
            }
            Request::Heartbeat { member_id, generation } => {
                let error = match self.members.get_mut(&member_id) {
                    None => code::UNKNOWN_MEMBER_ID,
                    Some(_) if generation != self.generation => code::ILLEGAL_GENERATION,
                    Some(known) => {
                        known.expires = now + SESSION;
                        if matches!(self.phase, Phase::Preparing { .. }) {
                            code::REBALANCE_IN_PROGRESS
                        } else {
                            0
                        }
                    }
                };
                self.answers.push((who, token, Answer::Heartbeat { error }));
            }
            Request::Leave { member_id, .. } => {
                self.remove(now, &member_id);
                self.answers.push((who, token, Answer::Leave { error: 0 }));
            }
            Request::ConsumerHeartbeat(_) => panic!("a classic member speaks the consumer protocol"),
        }
    }

    fn refuse_join(&mut self, who: usize, token: Token, error: i16, member_id: String) {
        let (leader, protocol) = (String::new(), String::new());
        let answer = Answer::Join {
            error,
            generation: -1,
            member_id,
            leader,
            protocol,
            members: Vec::new(),
            skip_assignment: false,
        };
        self.answers.push((who, token, answer));
    }

    fn join(
        &mut self,
        now: Instant,
        who: usize,
        token: Token,
        member_id: String,
        topics: Vec<Arc<str>>,
        claim: (Vec<TopicPartition>, i32),
    ) {
        if member_id.is_empty() {
            self.next_id += 1;
            let id = format!("member-{}", self.next_id);
            self.pending_ids.insert(id.clone());
            return self.refuse_join(who, token, code::MEMBER_ID_REQUIRED, id);
        }
        if !self.members.contains_key(&member_id) && !self.pending_ids.remove(&member_id) {
            return self.refuse_join(who, token, code::UNKNOWN_MEMBER_ID, member_id);
        }
        let expires = now + SESSION;
        let known = self.members.entry(member_id).or_insert_with(|| Known {
            expires,
            topics: Vec::new(),
            claim: (Vec::new(), -1),
            joining: None,
            syncing: None,
            assignment: Bytes::new(),
        });
        (known.expires, known.topics, known.joining) = (expires, topics, Some((who, token)));
        known.claim = claim;
        self.rebalance(now);
        self.complete(now);
    }

    fn rebalance(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Preparing { .. }) {
            return;
        }
        self.phase = Phase::Preparing { until: now + REBALANCE };
        for known in self.members.values_mut() {
            if let Some((who, token)) = known.syncing.take() {
                let answer = Answer::Sync { error: code::REBALANCE_IN_PROGRESS, assignment: Bytes::new() };
                self.answers.push((who, token, answer));
            }
        }
    }

    fn remove(&mut self, now: Instant, member_id: &str) {
        if self.members.remove(member_id).is_none() {
            return;
        }
        if self.members.is_empty() {
            self.phase = Phase::Empty;
        } else {
            self.rebalance(now);
            self.complete(now);
        }
    }

    fn complete(&mut self, now: Instant) {
        let Phase::Preparing { until } = self.phase else { return };
        if now >= until {
            self.members.retain(|_, known| known.joining.is_some());
        }
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            return;
        }
        if self.members.values().any(|known| known.joining.is_none()) {
            return;
        }
        self.generation += 1;
        self.phase = Phase::Completing;
        self.leader = self.members.keys().next().cloned().unwrap();
        let all: Vec<_> = self
            .members
            .iter()
            .map(|(id, known)| GroupMember {
                topics: known.topics.clone(),
                owned: known.claim.0.clone(),
                generation: known.claim.1,
                ..GroupMember::new(id.clone(), [""; 0])
            })
            .collect();
        for (id, known) in &mut self.members {
            let (who, token) = known.joining.take().unwrap();
            known.expires = now + SESSION;
            known.assignment = Bytes::new();
            let answer = Answer::Join {
                error: 0,
                generation: self.generation,
                member_id: id.clone(),
                leader: self.leader.clone(),
                protocol: self.assignor.name().to_owned(),
                members: if *id == self.leader { all.clone() } else { Vec::new() },
                skip_assignment: false,
            };
            self.answers.push((who, token, answer));
        }
    }

    fn sync(
        &mut self,
        now: Instant,
        who: usize,
        token: Token,
        member_id: &str,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
    ) {
        let current = self.generation;
        let error = match self.members.get(member_id) {
            None => code::UNKNOWN_MEMBER_ID,
            Some(_) if generation != current => code::ILLEGAL_GENERATION,
            Some(_) if matches!(self.phase, Phase::Preparing { .. }) => code::REBALANCE_IN_PROGRESS,
            Some(_) => 0,
        };
        if error != 0 {
            return self.answers.push((who, token, Answer::Sync { error, assignment: Bytes::new() }));
        }
        let known = self.members.get_mut(member_id).unwrap();
        known.expires = now + SESSION;
        known.syncing = Some((who, token));
        if self.phase == Phase::Completing && member_id == self.leader {
            for (id, assignment) in assignments {
                if let Some(known) = self.members.get_mut(&id) {
                    known.assignment = assignment;
                }
            }
            self.phase = Phase::Stable;
        }
        if self.phase == Phase::Stable {
            for known in self.members.values_mut() {
                if let Some((who, token)) = known.syncing.take() {
                    let assignment = known.assignment.clone();
                    self.answers.push((who, token, Answer::Sync { error: 0, assignment }));
                }
            }
        }
    }

    fn timeout(&self) -> Option<Instant> {
        let sessions =
            self.members.values().filter(|known| known.joining.is_none()).map(|known| known.expires);
        let rebalance = match self.phase {
            Phase::Preparing { until } => Some(until),
            _ => None,
        };
        sessions.chain(rebalance).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let expired: Vec<_> = self
            .members
            .iter()
            .filter(|(_, known)| known.joining.is_none() && known.expires <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            self.remove(now, &id);
        }
        self.complete(now);
    }
}

struct Client {
    member: Member,
    alive: bool,
    owned: Vec<TopicPartition>,
    /// What is being given up, and did not get lost meanwhile.
    revoking: Option<(Token, Vec<TopicPartition>)>,
}

#[derive(Debug)]
enum Event {
    Request(usize, Token, Request),
    Answer(usize, Token, Result<Answer, Error>),
    Revoked(usize, Token),
    Poll(usize),
    PollEnd(usize),
    Start,
    /// The coordinator drops a member that knows nothing of it.
    Expel,
    Crash(usize),
    Close(usize),
}

struct World {
    now: Instant,
    rng: Rng,
    coordinator: Coordinator,
    clients: Vec<Client>,
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
    events: Vec<Option<Event>>,
    /// Until then messages get lost and the coordinator refuses now and then.
    quiet_from: Instant,
    /// Owners by generation and partition.
    owners: BTreeMap<(i32, TopicPartition), usize>,
}

impl World {
    fn new(seed: u64, assignor: Strategy) -> Self {
        let now = time::now();
        let mut world = Self {
            now,
            rng: Rng::new(seed),
            coordinator: Coordinator::new(assignor),
            clients: Vec::new(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            quiet_from: now + Duration::from_secs(120),
            owners: BTreeMap::new(),
        };
        for _ in 0..6 {
            let at = world.rng.below(90_000) as u64;
            world.after(Duration::from_millis(at), Event::Start);
        }
        for _ in 0..4 {
            let at = world.rng.below(120_000) as u64;
            world.after(Duration::from_millis(at), Event::Expel);
        }
        world.after(Duration::ZERO, Event::Start);
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.queue.push(Reverse((self.now + delay, self.events.len())));
        self.events.push(Some(event));
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.now < self.quiet_from && self.rng.below(100) < percent
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(1 + self.rng.below(50) as u64)
    }

    fn run(&mut self, until: Instant) {
        loop {
            let due = self
                .queue
                .peek()
                .map(|Reverse((at, _))| *at)
                .into_iter()
                .chain(self.clients.iter().filter(|c| c.alive).filter_map(|c| c.member.poll_timeout()))
                .chain(self.coordinator.timeout())
                .min();
            let Some(due) = due.filter(|due| *due <= until) else { return };
            self.now = self.now.max(due);
            self.coordinator.handle_timeout(self.now);
            for client in self.clients.iter_mut().filter(|client| client.alive) {
                client.member.handle_timeout(self.now);
            }
            if let Some(Reverse((at, index))) = self.queue.peek().copied()
                && at <= self.now
            {
                self.queue.pop();
                let event = self.events[index].take().unwrap();
                self.handle(event);
            }
            self.settle();
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Request(who, token, request) => {
                if self.chance(3) {
                    let moved = match request {
                        Request::Heartbeat { .. } => Answer::Heartbeat { error: code::NOT_COORDINATOR },
                        _ => return self.fail(who, token),
                    };
                    let delay = self.delay();
                    return self.after(delay, Event::Answer(who, token, Ok(moved)));
                }
                self.coordinator.handle(now, who, token, request);
            }
            Event::Answer(who, token, answer) => {
                if self.clients[who].alive {
                    self.clients[who].member.handle_answer(now, token, answer);
                }
            }
            Event::Revoked(who, token) => {
                let client = &mut self.clients[who];
                if let Some((_, given)) = client.revoking.take_if(|(of, _)| *of == token) {
                    client.owned.retain(|key| !given.contains(key));
                }
                client.member.handle_revoked(now, token);
            }
            Event::Poll(who) if self.clients[who].alive => {
                self.clients[who].member.handle_poll(now);
                let busy = Duration::from_millis(self.rng.below(400) as u64);
                self.after(busy, Event::PollEnd(who));
            }
            Event::PollEnd(who) => {
                self.clients[who].member.handle_poll_end(now);
                // Now and then a handler takes longer than the poll interval allows.
                let stuck = self.chance(1);
                let away = if stuck { Duration::from_secs(40) } else { Duration::from_millis(100) };
                self.after(away, Event::Poll(who));
            }
            Event::Poll(_) => {}
            Event::Start => self.start(),
            Event::Expel => {
                let ids: Vec<_> = self.coordinator.members.keys().cloned().collect();
                if let Some(id) = ids.get(self.rng.below(ids.len())) {
                    self.coordinator.remove(now, id);
                }
            }
            Event::Crash(who) => {
                self.clients[who].alive = false;
                self.clients[who].owned.clear();
            }
            Event::Close(who) => self.clients[who].member.handle_close(now),
        }
    }

    fn fail(&mut self, who: usize, token: Token) {
        let delay = self.delay();
        let lost = Error::new(ErrorKind::Disconnected, "lost");
        self.after(delay, Event::Answer(who, token, Err(lost)));
    }

    fn start(&mut self) {
        let settings = GroupSettings {
            protocol: GroupProtocol::Classic,
            instance_id: None,
            assignors: Strategy::ALL.to_vec(),
            cooperative: self.coordinator.assignor.is_cooperative(),
            session_timeout: SESSION,
            heartbeat_interval: Duration::from_secs(1),
            max_poll_interval: Duration::from_secs(30),
            request_timeout: Duration::from_secs(5),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
        };
        let who = self.clients.len();
        let mut member = Member::new(settings, self.now, Rng::new(self.rng.next_u64()));
        member.handle_subscription(self.now, vec!["t".into()]);
        self.clients.push(Client { member, alive: true, owned: Vec::new(), revoking: None });
        self.after(Duration::ZERO, Event::Poll(who));
        // One in three ends on the way, one half of these without a word; the first stays.
        if who > 0 && self.rng.below(3) == 0 {
            let at = Duration::from_millis(self.rng.below(60_000) as u64);
            let end = if self.rng.below(2) == 0 { Event::Crash(who) } else { Event::Close(who) };
            self.after(at, end);
        }
    }

    /// Carries out what members and coordinator want, until they want nothing more.
    fn settle(&mut self) {
        for who in 0..self.clients.len() {
            while let Some(action) = self.clients[who].member.poll_action() {
                if self.clients[who].alive {
                    self.act(who, action);
                }
            }
        }
        for (who, token, answer) in std::mem::take(&mut self.coordinator.answers) {
            if self.chance(3) {
                self.fail(who, token);
            } else {
                let delay = self.delay();
                self.after(delay, Event::Answer(who, token, Ok(answer)));
            }
        }
    }

    fn act(&mut self, who: usize, action: Action) {
        match action {
            Action::Send { token, request, deadline } => {
                let late = Error::new(ErrorKind::Timeout, "late");
                self.after(deadline - self.now, Event::Answer(who, token, Err(late)));
                if self.chance(3) {
                    self.fail(who, token);
                } else {
                    let delay = self.delay();
                    self.after(delay, Event::Request(who, token, request));
                }
            }
            Action::Plan { token, assignor, members, .. } => {
                let counts: BTreeMap<Arc<str>, i32> = [(Arc::from("t"), PARTITIONS)].into();
                let plan = assignor.assign(&GroupInfo::new(&members, &counts));
                assert_eq!(assignor, self.coordinator.assignor);
                self.clients[who].member.handle_plan(self.now, token, assignor, counts, plan);
            }
            Action::Revoke { token, partitions, .. } => {
                let busy = Duration::from_millis(self.rng.below(2_000) as u64);
                self.after(busy, Event::Revoked(who, token));
                self.clients[who].revoking = Some((token, partitions));
            }
            Action::Lost { .. } => {
                self.clients[who].owned.clear();
                self.clients[who].revoking = None;
            }
            Action::Assign { added: partitions } => {
                let generation = self.clients[who].member.identity().unwrap().generation;
                let cooperative = self.coordinator.assignor.is_cooperative();
                assert!(
                    cooperative || self.clients[who].owned.is_empty(),
                    "assigned before the old were released"
                );
                for partition in &partitions {
                    let before = self.owners.insert((generation, partition.clone()), who);
                    assert!(
                        before.is_none_or(|owner| owner == who),
                        "{partition} of {generation} has two owners"
                    );
                }
                self.clients[who].owned.extend(partitions);
            }
            Action::ForgetCoordinator | Action::Identify { .. } => {}
            Action::Fail(error) => panic!("nothing here is the user's to mend: {error}"),
        }
    }

    fn check_end(&self) {
        let mut owned = BTreeSet::new();
        for (who, client) in self.clients.iter().enumerate().filter(|(_, client)| client.alive) {
            if client.member.is_idle() && client.owned.is_empty() {
                continue; // closed
            }
            assert!(client.member.is_stable(), "member {who} is not stable: {:?}", client.member);
            for partition in &client.owned {
                assert!(owned.insert(partition.clone()), "{partition} has two owners in the end");
            }
        }
        assert_eq!(owned.len(), PARTITIONS as usize, "every partition is read by somebody");
        assert_eq!(self.coordinator.phase, Phase::Stable);
        for known in self.coordinator.members.values() {
            decode_assignment(&known.assignment).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_partition_has_one_owner_per_generation_and_everyone_ends_stable(
        seed in any::<u64>(),
        assignor in proptest::sample::select(vec![Strategy::Range, Strategy::Sticky, Strategy::CooperativeSticky]),
    ) {
        let mut world = World::new(seed, assignor);
        let end = world.quiet_from + Duration::from_secs(240);
        world.run(end);
        world.check_end();
    }
}
