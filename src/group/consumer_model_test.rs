//! Many members of the consumer protocol (KIP-848) against a model coordinator in virtual time: lost requests and answers,
//! crashes, closes, slow users, expulsions, topics that are made again. Whatever happens, nobody is given a partition that
//! another member in good standing has, and in the end each is read by one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Action, Answer, GroupSettings, Request, code,
    consumer::{ConsumerHeartbeat, ConsumerHeartbeatAnswer, IdPartition, Member, Names},
};
use crate::{
    config::settings::GroupProtocol,
    error::{Error, ErrorKind},
    flights::Token,
    record::TopicPartition,
    time::{self, Instant, Rng},
    wire::Uuid,
};

const PARTITIONS: i32 = 7;
const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Known {
    epoch: i32,
    previous: i32,
    expires: Option<Instant>,
    assigned: BTreeSet<IdPartition>,
    revoking: BTreeSet<IdPartition>,
    revoke_until: Option<Instant>,
}

/// The coordinator of KIP-848, as the broker has it.
#[derive(Default)]
struct Coordinator {
    topic: u8,
    epoch: i32,
    members: BTreeMap<String, Known>,
    target: BTreeMap<String, BTreeSet<IdPartition>>,
    /// Members that were thrown out, for the world to note.
    expelled: Vec<String>,
}

impl Coordinator {
    fn all(&self) -> BTreeSet<IdPartition> {
        (0..PARTITIONS).map(|partition| (Uuid([self.topic; 16]), partition)).collect()
    }

    /// A new epoch: each keeps what it may, the rest is dealt out.
    fn plan(&mut self) {
        self.epoch += 1;
        let (all, count) = (self.all(), self.members.len().max(1));
        let most = all.len().div_ceil(count);
        let mut rest = all.clone();
        let mut target: BTreeMap<String, BTreeSet<IdPartition>> = BTreeMap::new();
        for id in self.members.keys() {
            let before = self.target.get(id).cloned().unwrap_or_default();
            let kept: BTreeSet<_> = before.intersection(&rest).take(most).copied().collect();
            rest.retain(|key| !kept.contains(key));
            target.insert(id.clone(), kept);
        }
        for key in rest {
            if let Some(least) = target.values_mut().min_by_key(|has| has.len()) {
                least.insert(key);
            }
        }
        self.target = target;
    }

    fn remove(&mut self, id: &str) {
        if self.members.remove(id).is_some() {
            self.expelled.push(id.to_owned());
            self.plan();
        }
    }

    fn make_topic_again(&mut self) {
        self.topic += 1;
        self.plan();
    }

    fn handle(&mut self, now: Instant, beat: ConsumerHeartbeat) -> ConsumerHeartbeatAnswer {
        let refuse = |error| ConsumerHeartbeatAnswer { error, ..ConsumerHeartbeatAnswer::default() };
        let id = beat.member_id.clone();
        if beat.epoch < 0 {
            if self.members.remove(&id).is_none() {
                return refuse(code::UNKNOWN_MEMBER_ID);
            }
            self.plan();
            return ConsumerHeartbeatAnswer { epoch: beat.epoch, ..ConsumerHeartbeatAnswer::default() };
        }
        if beat.epoch == 0 {
            assert!(beat.is_full && beat.topics.is_some() && beat.owned.as_ref().is_some_and(Vec::is_empty));
            if !self.members.contains_key(&id) {
                self.members.insert(id.clone(), Known::default());
                self.plan();
            }
        }
        let owned = beat.owned.map(|owned| owned.into_iter().collect::<BTreeSet<_>>());
        let target = self.target.get(&id).cloned().unwrap_or_default();
        let taken: BTreeSet<_> = self
            .members
            .iter()
            .filter(|(other, _)| **other != id)
            .flat_map(|(_, known)| known.assigned.union(&known.revoking).copied())
            .collect();
        let epoch = self.epoch;
        let Some(known) = self.members.get_mut(&id) else { return refuse(code::UNKNOWN_MEMBER_ID) };
        let repeats = beat.epoch == known.previous
            && owned.as_ref().is_some_and(|owned| owned.is_subset(&known.assigned));
        if beat.epoch != known.epoch && !repeats {
            return refuse(code::FENCED_MEMBER_EPOCH);
        }
        known.expires = Some(now + SESSION);
        let before = known.assigned.clone();
        let gave_back = owned.as_ref().is_some_and(|owned| owned.is_disjoint(&known.revoking));
        if known.revoking.is_empty() || gave_back {
            known.revoking.clear();
            known.revoke_until = None;
            let surplus: BTreeSet<_> = known.assigned.difference(&target).copied().collect();
            let has = owned.as_ref().is_none_or(|owned| !owned.is_disjoint(&surplus));
            known.assigned.retain(|key| target.contains(key));
            if !surplus.is_empty() && has {
                known.revoking = surplus;
                known.revoke_until = Some(now + REBALANCE);
            } else {
                if known.epoch != epoch {
                    (known.previous, known.epoch) = (known.epoch, epoch);
                }
                known.assigned.extend(target.iter().filter(|key| !taken.contains(key)));
            }
        }
        let told = beat.is_full || known.assigned != before;
        ConsumerHeartbeatAnswer {
            epoch: known.epoch.max(1),
            interval: INTERVAL,
            assignment: told.then(|| known.assigned.iter().copied().collect()),
            ..ConsumerHeartbeatAnswer::default()
        }
    }

    fn timeout(&self) -> Option<Instant> {
        self.members.values().flat_map(|known| [known.expires, known.revoke_until]).flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let late = |known: &Known| [known.expires, known.revoke_until].iter().flatten().any(|at| *at <= now);
        let late: Vec<_> =
            self.members.iter().filter(|(_, known)| late(known)).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.remove(&id);
        }
    }
}

struct Client {
    id: String,
    member: Member,
    alive: bool,
    /// Thrown out, and does not know it yet: it may read what is another's, and can commit nothing.
    is_zombie: bool,
    /// What it reads, with the topic it takes it for.
    owned: BTreeMap<TopicPartition, u8>,
    /// What is being given up, and did not get lost meanwhile.
    revoking: Option<(Token, Vec<TopicPartition>)>,
    topic: u8,
}

#[derive(Debug)]
enum Event {
    Request(usize, Token, ConsumerHeartbeat),
    Answer(usize, Token, Result<Answer, Error>),
    Revoked(usize, Token),
    Poll(usize),
    PollEnd(usize),
    Start,
    /// The coordinator drops a member that knows nothing of it.
    Expel,
    MakeAgain,
    Metadata(usize),
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
}

impl World {
    fn new(seed: u64) -> Self {
        let now = time::now();
        let mut world = Self {
            now,
            rng: Rng::new(seed),
            coordinator: Coordinator { topic: 1, ..Coordinator::default() },
            clients: Vec::new(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            quiet_from: now + Duration::from_secs(120),
        };
        world.after(Duration::ZERO, Event::Start);
        for (count, within) in [(6, 90_000), (4, 120_000), (2, 110_000)] {
            for _ in 0..count {
                let at = Duration::from_millis(world.rng.below(within) as u64);
                let event = match count {
                    6 => Event::Start,
                    4 => Event::Expel,
                    _ => Event::MakeAgain,
                };
                world.after(at, event);
            }
        }
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
            let alive = self.clients.iter().filter(|client| client.alive);
            let timeouts = alive.filter_map(|client| client.member.poll_timeout());
            let first = self.queue.peek().map(|Reverse((at, _))| *at);
            let due = timeouts.chain(first).chain(self.coordinator.timeout()).min();
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
            Event::Request(who, token, beat) => {
                let answer = if self.chance(3) {
                    ConsumerHeartbeatAnswer {
                        error: code::NOT_COORDINATOR,
                        ..ConsumerHeartbeatAnswer::default()
                    }
                } else {
                    self.coordinator.handle(now, beat)
                };
                if self.chance(3) {
                    return self.fail(who, token);
                }
                let delay = self.delay();
                self.after(delay, Event::Answer(who, token, Ok(Answer::ConsumerHeartbeat(answer))));
            }
            Event::Answer(who, token, answer) if self.clients[who].alive => {
                self.clients[who].member.handle_answer(now, token, answer);
            }
            Event::Revoked(who, token) if self.clients[who].alive => {
                let client = &mut self.clients[who];
                if let Some((_, given)) = client.revoking.take_if(|(of, _)| *of == token) {
                    client.owned.retain(|key, _| !given.contains(key));
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
            Event::Answer(..) | Event::Revoked(..) | Event::Poll(_) => {}
            Event::Start => self.start(),
            Event::Expel => {
                let ids: Vec<_> = self.coordinator.members.keys().cloned().collect();
                if let Some(id) = ids.get(self.rng.below(ids.len())) {
                    self.coordinator.remove(id);
                }
            }
            Event::MakeAgain => {
                self.coordinator.make_topic_again();
                for who in 0..self.clients.len() {
                    let delay = Duration::from_millis(self.rng.below(3_000) as u64);
                    self.after(delay, Event::Metadata(who));
                }
            }
            Event::Metadata(who) => self.tell(who),
            Event::Crash(who) => {
                self.clients[who].alive = false;
                self.clients[who].owned.clear();
            }
            Event::Close(who) => self.clients[who].member.handle_close(now),
        }
    }

    /// What the cluster's topic is called.
    fn tell(&mut self, who: usize) {
        let topic = self.coordinator.topic;
        let names: Names = [([topic; 16], Arc::from("t"))].into();
        let client = &mut self.clients[who];
        client.topic = topic;
        client.member.handle_names(self.now, &Arc::new(names));
    }

    fn fail(&mut self, who: usize, token: Token) {
        let delay = self.delay();
        let lost = Error::new(ErrorKind::Disconnected, "lost");
        self.after(delay, Event::Answer(who, token, Err(lost)));
    }

    fn start(&mut self) {
        let settings = GroupSettings {
            protocol: GroupProtocol::Consumer,
            instance_id: None,
            assignors: crate::group::assignor::Strategy::ALL.to_vec(),
            cooperative: false,
            session_timeout: SESSION,
            heartbeat_interval: INTERVAL,
            max_poll_interval: Duration::from_secs(30),
            request_timeout: Duration::from_secs(5),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
        };
        let who = self.clients.len();
        let mut member = Member::new(settings, self.now, Rng::new(self.rng.next_u64()));
        member.handle_subscription(self.now, vec!["t".into()], None);
        let id = member.id().to_owned();
        let owned = BTreeMap::new();
        let revoking = None;
        self.clients.push(Client { id, member, alive: true, is_zombie: false, owned, revoking, topic: 0 });
        self.tell(who);
        self.after(Duration::ZERO, Event::Poll(who));
        // One in three ends on the way, one half of these without a word; the first stays.
        if who > 0 && self.rng.below(3) == 0 {
            let at = Duration::from_millis(self.rng.below(60_000) as u64);
            let end = if self.rng.below(2) == 0 { Event::Crash(who) } else { Event::Close(who) };
            self.after(at, end);
        }
    }

    /// Carries out what the members want, until they want nothing more.
    fn settle(&mut self) {
        for id in std::mem::take(&mut self.coordinator.expelled) {
            self.clients
                .iter_mut()
                .filter(|client| client.id == id)
                .for_each(|client| client.is_zombie = true);
        }
        for who in 0..self.clients.len() {
            while let Some(action) = self.clients[who].member.poll_action() {
                if self.clients[who].alive {
                    self.act(who, action);
                }
            }
        }
    }

    fn act(&mut self, who: usize, action: Action) {
        match action {
            Action::Send { token, request: Request::ConsumerHeartbeat(beat), deadline } => {
                if beat.epoch <= 0 {
                    assert!(self.clients[who].owned.is_empty(), "it comes or goes with partitions");
                    self.clients[who].is_zombie = false;
                }
                let late = Error::new(ErrorKind::Timeout, "late");
                self.after(deadline - self.now, Event::Answer(who, token, Err(late)));
                if self.chance(3) {
                    self.fail(who, token);
                } else {
                    let delay = self.delay();
                    self.after(delay, Event::Request(who, token, beat));
                }
            }
            Action::Revoke { token, partitions, .. } => {
                let has = |key| self.clients[who].owned.contains_key(key);
                assert!(partitions.iter().all(has), "what is revoked was not there");
                let busy = Duration::from_millis(self.rng.below(2_000) as u64);
                self.after(busy, Event::Revoked(who, token));
                self.clients[who].revoking = Some((token, partitions));
            }
            Action::Lost { partitions } => {
                let client = &mut self.clients[who];
                client.owned.retain(|key, _| !partitions.contains(key));
                if let Some((_, given)) = &mut client.revoking {
                    given.retain(|key| !partitions.contains(key));
                }
            }
            Action::Assign { added } => {
                let topic = self.clients[who].topic;
                for key in added {
                    let in_standing = |other: &Client| {
                        other.alive && !other.is_zombie && other.owned.get(&key) == Some(&topic)
                    };
                    let another = self.clients.iter().position(in_standing);
                    assert!(
                        another.is_none() || self.clients[who].is_zombie,
                        "{key} is {another:?}'s and {who}'s"
                    );
                    let before = self.clients[who].owned.insert(key, topic);
                    assert!(before.is_none(), "assigned before the old life was over");
                }
            }
            Action::ForgetCoordinator => {}
            Action::Identify { .. } => {
                let delay = self.delay();
                self.after(delay, Event::Metadata(who));
            }
            other => panic!("nothing here is the user's to mend: {other:?}"),
        }
    }

    fn check_end(&self) {
        let mut owned = BTreeSet::new();
        for (who, client) in self.clients.iter().enumerate().filter(|(_, client)| client.alive) {
            if client.member.is_idle() && client.owned.is_empty() {
                continue; // closed
            }
            assert!(client.member.is_settled(), "member {who} is not settled: {:?}", client.member);
            assert_eq!(client.member.identity().unwrap().generation, self.coordinator.epoch);
            for (partition, topic) in &client.owned {
                assert_eq!(*topic, self.coordinator.topic, "{partition} is of a topic that is gone");
                assert!(owned.insert(partition.clone()), "{partition} has two owners in the end");
            }
        }
        assert_eq!(owned.len(), PARTITIONS as usize, "every partition is read by somebody");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nobody_is_given_what_another_member_has_and_in_the_end_each_partition_is_read_by_one(seed in any::<u64>()) {
        let mut world = World::new(seed);
        let end = world.quiet_from + Duration::from_secs(120);
        world.run(end);
        world.check_end();
    }
}
