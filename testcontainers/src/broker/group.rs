//! The classic group coordinator, one group: membership, generations and rebalances as Apache Kafka has them
//! (KIP-62, KIP-345 static members, KIP-394 member ids). Initial rebalance delay: 0.
//!
//! Pure: `now` comes in, answers come out of [`Group::poll_answer`]; no clock, no lock, no await.
//!
//! ```text
//!          join                 all joined, or rebalance timeout            leader's sync
//!  Empty ────────► Preparing ─────────────────────────────────► Completing ───────────────► Stable
//!    ▲               │  ▲ ▲                                        │                           │
//!    └── nobody left ┘  │ └── join, leave, session or sync timeout ┘                           │
//!                       └────────────────── join, leave, session timeout ──────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ConsumerProtocolSubscription;
use kafka_protocol::protocol::{Decodable as _, StrBytes};

use super::clock::Now;

/// Names a request that waits for its answer.
pub(super) type Ticket = u64;

/// A JoinGroup request.
#[derive(Debug, Clone, Default)]
pub(super) struct Join {
    pub(super) member_id: String,
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocol_type: String,
    pub(super) protocols: Vec<(StrBytes, Bytes)>,
    /// KIP-394: from version 4 on a new member is sent away once, to come back with the id it was given.
    pub(super) needs_known_id: bool,
    /// KIP-814: from version 9 on a static leader that is back is told that it leads, and to leave the assignment as it is.
    pub(super) knows_skipping: bool,
}

/// A SyncGroup request.
#[derive(Debug, Clone, Default)]
pub(super) struct Sync {
    pub(super) caller: Caller,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) assignments: Vec<(String, Bytes)>,
}

/// Who a request says it comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    pub(super) member_id: String,
    pub(super) instance_id: Option<String>,
    pub(super) generation: i32,
}

/// An answer to a parked request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Joined(Joined),
    Synced { protocol_type: Option<String>, protocol: Option<String>, assignment: Bytes },
    Refused { error: ResponseError, member_id: String },
}

/// What a member learns when its join is complete.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Joined {
    pub(super) generation: i32,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<StrBytes>,
    pub(super) leader: String,
    pub(super) member_id: String,
    pub(super) skip_assignment: bool,
    /// Id, instance id and metadata of every member; only for the leader.
    pub(super) members: Vec<(String, Option<String>, Bytes)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    Preparing { deadline: Now },
    Completing,
    Stable,
}

impl State {
    /// The name in DescribeGroups and ListGroups.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Preparing { .. } => "PreparingRebalance",
            Self::Completing => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<(StrBytes, Bytes)>,
    pub(super) assignment: Bytes,
    joining: Option<Ticket>,
    syncing: Option<Ticket>,
    session_deadline: Now,
}

impl Member {
    /// Such a member cannot send heartbeats: its session waits too.
    fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|p| &*p.0 == protocol).map(|p| p.1.clone()).unwrap_or_default()
    }
}

/// The group as it stands in the log, from which a coordinator takes it over: written when a generation has its
/// assignments, when a static member is replaced, and when nobody is left. A rebalance under way is not in it.
#[derive(Debug, Default, Clone)]
struct Stored {
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<StrBytes>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
}

/// One group. Committed offsets are kept beside it, by the cluster.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) state: State,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<StrBytes>,
    generation: i32,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    static_members: BTreeMap<String, String>,
    /// KIP-394: ids handed out and not yet used, with the time they are forgotten.
    pending: BTreeMap<String, Now>,
    /// Members of this generation that have not asked for their assignment; they are out at the deadline.
    unsynced: BTreeSet<String>,
    sync_deadline: Now,
    stored: Stored,
    answers: VecDeque<(Ticket, Answer)>,
    ids_given: u64,
}

type Refusal = ResponseError;

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    pub(super) fn new() -> Self {
        Self {
            state: State::Empty,
            protocol_type: None,
            protocol: None,
            generation: 0,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            sync_deadline: Now::ZERO,
            stored: Stored::default(),
            answers: VecDeque::new(),
            ids_given: 0,
        }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.members.iter()
    }

    pub(super) fn metadata_of(&self, member: &Member) -> Bytes {
        self.protocol.as_deref().map(|p| member.metadata(p)).unwrap_or_default()
    }

    /// Does a member read this topic, as far as it says? `None`: this group's members do not say.
    pub(super) fn reads(&self, topic: &str) -> Option<bool> {
        if self.state == State::Empty {
            return Some(false);
        }
        self.protocol_type.as_deref().filter(|kind| *kind == "consumer")?;
        let reads = |member: &Member| {
            let mut written = self.metadata_of(member);
            if written.len() < 2 {
                return false;
            }
            let version = written.get_i16().clamp(0, 3);
            ConsumerProtocolSubscription::decode(&mut written, version)
                .is_ok_and(|subscription| subscription.topics.iter().any(|name| &**name == topic))
        };
        Some(self.members.values().any(reads))
    }

    /// The next answer to a parked request.
    pub(super) fn poll_answer(&mut self) -> Option<(Ticket, Answer)> {
        self.answers.pop_front()
    }

    /// When [`Self::handle_timeout`] is next due.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let sessions = self.members.values().filter(|m| !m.is_waiting()).map(|m| m.session_deadline);
        let rebalance = match self.state {
            State::Preparing { deadline } => Some(deadline),
            State::Empty | State::Completing | State::Stable => {
                (!self.unsynced.is_empty()).then_some(self.sync_deadline)
            }
        };
        sessions.chain(self.pending.values().copied()).chain(rebalance).min()
    }

    /// Session, pending-member and rebalance timeouts.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        let pending = self.pending.len();
        self.pending.retain(|_, deadline| *deadline > now);
        let expired: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| !m.is_waiting() && m.session_deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            self.remove(now, &id, ResponseError::UnknownMemberId);
        }
        if self.pending.len() != pending {
            self.complete_join_if_all_joined(now);
        }
        match self.state {
            State::Preparing { deadline } if deadline <= now => self.complete_join(now),
            State::Completing | State::Stable if self.sync_deadline <= now => {
                for id in std::mem::take(&mut self.unsynced) {
                    self.remove(now, &id, ResponseError::UnknownMemberId);
                }
            }
            _ => {}
        }
    }

    pub(super) fn handle_join(&mut self, now: Now, ticket: Ticket, join: Join) {
        if let Err((error, member_id)) = self.try_join(now, ticket, join) {
            self.answers.push_back((ticket, Answer::Refused { error, member_id }));
        }
    }

    fn try_join(&mut self, now: Now, ticket: Ticket, join: Join) -> Result<(), (Refusal, String)> {
        let id = join.member_id.clone();
        let refuse = |error| Err((error, id.clone()));
        if !self.accepts_protocols(&join) {
            return refuse(ResponseError::InconsistentGroupProtocol);
        }
        if id.is_empty() {
            return self.join_new(now, ticket, join);
        }
        if self.pending.contains_key(&id) {
            self.pending.remove(&id);
            self.add(now, ticket, id, join);
            return Ok(());
        }
        if let Err(error) = self.check_caller(&id, join.instance_id.as_deref()) {
            return refuse(error);
        }
        let Some(member) = self.members.get(&id) else { return refuse(ResponseError::UnknownMemberId) };
        let unchanged = member.protocols == join.protocols;
        let is_leader = self.leader.as_deref() == Some(&id);
        match self.state {
            State::Empty => return refuse(ResponseError::UnknownMemberId),
            State::Completing if unchanged => self.answer_current(now, ticket, &id),
            State::Stable if unchanged && !is_leader => self.answer_current(now, ticket, &id),
            State::Preparing { .. } | State::Completing | State::Stable => {
                self.rejoin(now, ticket, &id, join);
            }
        }
        Ok(())
    }

    fn join_new(&mut self, now: Now, ticket: Ticket, join: Join) -> Result<(), (Refusal, String)> {
        self.ids_given += 1;
        let name = join.instance_id.as_deref().unwrap_or(&join.client_id);
        // Real ids end in a random UUID; a counter keeps simulations repeatable.
        let id = format!("{name}-{:08x}-{}", fingerprint(&join), self.ids_given);
        if let Some(instance) = &join.instance_id {
            if let Some(old) = self.static_members.get(instance).cloned() {
                self.replace_static(now, ticket, &old, id, join);
            } else {
                self.add(now, ticket, id, join);
            }
            return Ok(());
        }
        if join.needs_known_id {
            self.pending.insert(id.clone(), now + join.session_timeout);
            return Err((ResponseError::MemberIdRequired, id));
        }
        self.add(now, ticket, id, join);
        Ok(())
    }

    /// A static member came back under a new id (KIP-345): the old id is fenced, the assignment stays.
    fn replace_static(&mut self, now: Now, ticket: Ticket, old: &str, id: String, join: Join) {
        let Some(mut member) = self.members.remove(old) else { return self.add(now, ticket, id, join) };
        for parked in [member.joining.take(), member.syncing.take()].into_iter().flatten() {
            let error = ResponseError::FencedInstanceId;
            self.answers.push_back((parked, Answer::Refused { error, member_id: old.to_owned() }));
        }
        let led = self.leader.as_deref() == Some(old);
        if led {
            self.leader = Some(id.clone());
        }
        if let Some(instance) = &join.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        self.members.insert(id.clone(), member);
        let knows_skipping = join.knows_skipping;
        self.update(&id, join.clone());
        // Whatever it subscribes to now: only another protocol is worth a rebalance.
        if self.state == State::Stable && self.vote() == self.protocol {
            self.store();
            self.answer_current(now, ticket, &id);
            if let (true, false, Some((_, Answer::Joined(told)))) =
                (led, knows_skipping, self.answers.back_mut())
            {
                // One that cannot be told to skip the assignment is told that the old one leads.
                old.clone_into(&mut told.leader);
                (told.skip_assignment, told.members) = (false, Vec::new());
            }
        } else {
            self.rejoin(now, ticket, &id, join);
        }
    }

    fn add(&mut self, now: Now, ticket: Ticket, id: String, join: Join) {
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        if let Some(instance) = &join.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        let member = Member {
            instance_id: join.instance_id.clone(),
            client_id: join.client_id.clone(),
            client_host: join.client_host.clone(),
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: Vec::new(),
            assignment: Bytes::new(),
            joining: None,
            syncing: None,
            session_deadline: now + join.session_timeout,
        };
        self.members.insert(id.clone(), member);
        self.rejoin(now, ticket, &id, join);
    }

    fn update(&mut self, id: &str, join: Join) {
        if let Some(member) = self.members.get_mut(id) {
            member.protocols = join.protocols;
            member.session_timeout = join.session_timeout;
            member.rebalance_timeout = join.rebalance_timeout;
            member.client_id = join.client_id;
            member.client_host = join.client_host;
        }
    }

    fn rejoin(&mut self, now: Now, ticket: Ticket, id: &str, join: Join) {
        self.update(id, join);
        if let Some(old) = self.members.get_mut(id).and_then(|m| m.joining.replace(ticket)) {
            // The member asked again on another connection; the older question goes without an answer of use.
            let error = ResponseError::RebalanceInProgress;
            self.answers.push_back((old, Answer::Refused { error, member_id: id.to_owned() }));
        }
        self.prepare_rebalance(now);
        self.complete_join_if_all_joined(now);
    }

    fn accepts_protocols(&self, join: &Join) -> bool {
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return false;
        }
        let others: Vec<&Member> =
            self.members.iter().filter(|(id, _)| **id != join.member_id).map(|(_, m)| m).collect();
        if others.is_empty() {
            return true;
        }
        let shared = |name: &StrBytes| others.iter().all(|m| m.protocols.iter().any(|p| p.0 == *name));
        self.protocol_type.as_deref() == Some(&join.protocol_type)
            && join.protocols.iter().any(|p| shared(&p.0))
    }

    fn prepare_rebalance(&mut self, now: Now) {
        match self.state {
            State::Preparing { .. } => return,
            State::Completing => self.refuse_syncs(now, ResponseError::RebalanceInProgress),
            State::Empty | State::Stable => {}
        }
        self.unsynced.clear();
        let longest = self.members.values().map(|m| m.rebalance_timeout).max().unwrap_or_default();
        self.state = State::Preparing { deadline: now + longest };
    }

    fn refuse_syncs(&mut self, now: Now, error: ResponseError) {
        for (id, member) in &mut self.members {
            member.assignment = Bytes::new();
            if let Some(ticket) = member.syncing.take() {
                member.session_deadline = now + member.session_timeout;
                self.answers.push_back((ticket, Answer::Refused { error, member_id: id.clone() }));
            }
        }
    }

    fn complete_join_if_all_joined(&mut self, now: Now) {
        let preparing = matches!(self.state, State::Preparing { .. });
        if preparing && self.pending.is_empty() && self.members.values().all(|m| m.joining.is_some()) {
            self.complete_join(now);
        }
    }

    fn complete_join(&mut self, now: Now) {
        // Static members that did not come back stay until their session ends (KIP-345).
        self.members.retain(|_, m| m.joining.is_some() || m.instance_id.is_some());
        let members = &self.members;
        self.static_members.retain(|_, id| members.contains_key(id));
        let leader_joined =
            self.leader.as_ref().and_then(|l| self.members.get(l)).is_some_and(|m| m.joining.is_some());
        if !leader_joined {
            self.leader = self.members.iter().find(|(_, m)| m.joining.is_some()).map(|(id, _)| id.clone());
        }
        let longest = self.members.values().map(|m| m.rebalance_timeout).max().unwrap_or_default();
        if self.members.is_empty() {
            self.generation += 1;
            (self.protocol, self.state) = (None, State::Empty);
            self.store();
            return;
        }
        if self.leader.is_none() {
            self.state = State::Preparing { deadline: now + longest };
            return;
        }
        self.generation += 1;
        self.protocol = self.vote();
        self.state = State::Completing;
        self.sync_deadline = now + longest;
        self.unsynced = self.members.keys().cloned().collect();
        let joining: Vec<(String, Ticket)> =
            self.members.iter_mut().filter_map(|(id, m)| Some((id.clone(), m.joining.take()?))).collect();
        for (id, ticket) in joining {
            self.answer_current(now, ticket, &id);
        }
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
        }
    }

    /// Every member votes for the first of its protocols that all others know too; ties go to the smallest name.
    fn vote(&self) -> Option<StrBytes> {
        let mut votes: BTreeMap<&StrBytes, usize> = BTreeMap::new();
        let known = |name: &StrBytes| self.members.values().all(|m| m.protocols.iter().any(|p| p.0 == *name));
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|p| known(&p.0)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name.clone())
    }

    fn answer_current(&mut self, now: Now, ticket: Ticket, id: &str) {
        let leader = self.leader.clone().unwrap_or_default();
        let members = match &self.protocol {
            Some(protocol) if leader == id => self
                .members
                .iter()
                .map(|(id, m)| (id.clone(), m.instance_id.clone(), m.metadata(protocol)))
                .collect(),
            _ => Vec::new(),
        };
        let answer = Answer::Joined(Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            skip_assignment: leader == id && self.state == State::Stable,
            leader,
            member_id: id.to_owned(),
            members,
        });
        self.answers.push_back((ticket, answer));
        self.touch(now, id);
    }

    fn touch(&mut self, now: Now, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            member.session_deadline = now + member.session_timeout;
        }
    }

    fn remove(&mut self, now: Now, id: &str, error: ResponseError) {
        let Some(member) = self.members.remove(id) else { return };
        self.unsynced.remove(id);
        if let Some(instance) = &member.instance_id {
            self.static_members.remove(instance);
        }
        for ticket in [member.joining, member.syncing].into_iter().flatten() {
            self.answers.push_back((ticket, Answer::Refused { error, member_id: id.to_owned() }));
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = None;
        }
        self.prepare_rebalance(now);
        self.complete_join_if_all_joined(now);
    }

    fn check_caller(&self, id: &str, instance: Option<&str>) -> Result<(), Refusal> {
        if let Some(instance) = instance {
            match self.static_members.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(current) if current != id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(id) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    fn check_generation(&self, caller: &Caller) -> Result<(), Refusal> {
        self.check_caller(&caller.member_id, caller.instance_id.as_deref())?;
        if caller.generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    pub(super) fn handle_sync(&mut self, now: Now, ticket: Ticket, sync: Sync) {
        let member_id = sync.caller.member_id.clone();
        if let Err(error) = self.try_sync(now, ticket, sync) {
            self.answers.push_back((ticket, Answer::Refused { error, member_id }));
        }
    }

    fn try_sync(&mut self, now: Now, ticket: Ticket, sync: Sync) -> Result<(), Refusal> {
        self.check_generation(&sync.caller)?;
        let differs =
            |asked: &Option<String>, ours: Option<&str>| asked.is_some() && asked.as_deref() != ours;
        if differs(&sync.protocol_type, self.protocol_type.as_deref())
            || differs(&sync.protocol, self.protocol.as_deref())
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let id = sync.caller.member_id;
        self.touch(now, &id);
        self.unsynced.remove(&id);
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            State::Stable => {
                self.answer_sync(ticket, &id);
                Ok(())
            }
            State::Completing => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.syncing = Some(ticket);
                }
                if self.leader.as_deref() == Some(&id) {
                    self.assign(now, sync.assignments);
                }
                Ok(())
            }
        }
    }

    fn assign(&mut self, now: Now, assignments: Vec<(String, Bytes)>) {
        for (id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
            }
        }
        self.state = State::Stable;
        let waiting: Vec<(String, Ticket)> =
            self.members.iter_mut().filter_map(|(id, m)| Some((id.clone(), m.syncing.take()?))).collect();
        for (id, ticket) in waiting {
            self.touch(now, &id);
            self.answer_sync(ticket, &id);
        }
        self.store();
    }

    fn answer_sync(&mut self, ticket: Ticket, id: &str) {
        let answer = Answer::Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.as_ref().map(ToString::to_string),
            assignment: self.members.get(id).map(|m| m.assignment.clone()).unwrap_or_default(),
        };
        self.answers.push_back((ticket, answer));
    }

    pub(super) fn handle_heartbeat(&mut self, now: Now, caller: &Caller) -> Result<(), Refusal> {
        if self.state == State::Empty {
            return Err(ResponseError::UnknownMemberId);
        }
        self.check_generation(caller)?;
        self.touch(now, &caller.member_id);
        match self.state {
            State::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// One member leaves. An empty member id with an instance id is an administrator removing a static member.
    pub(super) fn handle_leave(&mut self, now: Now, id: &str, instance: Option<&str>) -> Result<(), Refusal> {
        if self.pending.remove(id).is_some() {
            self.complete_join_if_all_joined(now);
            return Ok(());
        }
        let id = match instance {
            Some(instance) if id.is_empty() => {
                self.static_members.get(instance).cloned().ok_or(ResponseError::UnknownMemberId)?
            }
            _ => id.to_owned(),
        };
        self.check_caller(&id, instance)?;
        self.remove(now, &id, ResponseError::UnknownMemberId);
        Ok(())
    }

    /// May this caller commit offsets? A negative generation is a client that assigns partitions by itself.
    /// In a transaction it may do so between two generations too.
    pub(super) fn handle_commit(
        &mut self,
        now: Now,
        caller: &Caller,
        in_transaction: bool,
    ) -> Result<(), Refusal> {
        if caller.generation < 0 && self.state == State::Empty {
            return Ok(());
        }
        if caller.generation >= 0 && self.state == State::Empty && self.members.is_empty() {
            return Err(ResponseError::UnknownMemberId);
        }
        self.check_generation(caller)?;
        self.touch(now, &caller.member_id);
        match self.state {
            State::Completing if !in_transaction => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    fn store(&mut self) {
        self.stored = Stored {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.clone(),
        };
    }

    /// The coordinator moves away: whoever waits must look for the new one, which reads the group from the log. Of a
    /// rebalance under way it knows nothing, and the number of its generation will be given again. Sessions start afresh.
    pub(super) fn handle_resign(&mut self, now: Now) {
        let error = ResponseError::NotCoordinator;
        for (id, member) in &mut self.members {
            for ticket in [member.joining.take(), member.syncing.take()].into_iter().flatten() {
                self.answers.push_back((ticket, Answer::Refused { error, member_id: id.clone() }));
            }
        }
        self.pending.clear();
        self.unsynced.clear();
        let Stored { generation, protocol_type, protocol, leader, members } = self.stored.clone();
        (self.generation, self.protocol_type, self.protocol) = (generation, protocol_type, protocol);
        (self.leader, self.members) = (leader, members);
        self.state = if self.members.is_empty() { State::Empty } else { State::Stable };
        self.static_members.clear();
        for (id, member) in &mut self.members {
            (member.joining, member.syncing) = (None, None);
            member.session_deadline = now + member.session_timeout;
            if let Some(instance) = &member.instance_id {
                self.static_members.insert(instance.clone(), id.clone());
            }
        }
    }
}

/// Something that tells members apart in an id without being random.
fn fingerprint(join: &Join) -> u32 {
    let host = crc32c::crc32c(join.client_host.as_bytes());
    crc32c::crc32c_append(host, join.client_id.as_bytes())
}

#[cfg(test)]
mod tests;
