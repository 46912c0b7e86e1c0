//! The group coordinator of KIP-848, one group: the broker assigns, members reconcile one by one.
//!
//! Pure: `now` and the topics come in, replies go out; no clock, no lock, no await. Regular expressions are matched by
//! the caller.
//!
//! ```text
//!            target needs something back            it was given back
//!  Stable ───────────────────────────► Unrevoked ───────────────────────┐
//!    ▲  │                                                                ▼
//!    │  └── target has what others still own ──► Unreleased ──► (next epoch, as partitions become free)
//!    └───────────────────────────────────────────────┘
//! ```

mod assignor;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_protocol::ResponseError;
use uuid::Uuid;

pub(super) use self::assignor::NAMES as ASSIGNORS;
use self::assignor::{Partition, Plan};
use super::clock::Now;

const LEAVE: i32 = -1;
const LEAVE_FOR_A_WHILE: i32 = -2;

/// Times that the broker sets (`group.consumer.session.timeout.ms`, `group.consumer.heartbeat.interval.ms`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) session: Duration,
    pub(super) heartbeat: Duration,
}

/// A heartbeat; `None`: as before.
#[derive(Debug, Clone, Default)]
pub(super) struct Heartbeat {
    pub(super) member_id: String,
    pub(super) member_epoch: i32,
    pub(super) instance_id: Option<String>,
    pub(super) rack_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) rebalance_timeout: Option<Duration>,
    pub(super) names: Option<Vec<String>>,
    pub(super) regex: Option<String>,
    pub(super) assignor: Option<String>,
    pub(super) owned: Option<BTreeSet<Partition>>,
}

/// What the member hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) member_id: String,
    pub(super) member_epoch: i32,
    /// Only when it changed, or when the member asks anew.
    pub(super) assignment: Option<BTreeSet<Partition>>,
}

/// A topic as the group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Topic {
    pub(super) id: Uuid,
    pub(super) partitions: i32,
}

/// Topics by name.
pub(super) type Topics = BTreeMap<String, Topic>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stable,
    Unrevoked,
    Unreleased,
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) epoch: i32,
    previous_epoch: i32,
    pub(super) instance_id: Option<String>,
    pub(super) rack_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    rebalance_timeout: Duration,
    pub(super) names: BTreeSet<String>,
    pub(super) regex: Option<String>,
    assignor: Option<String>,
    phase: Phase,
    pub(super) assigned: BTreeSet<Partition>,
    revoking: BTreeSet<Partition>,
    session_deadline: Now,
    /// While it has something to give back.
    revoke_deadline: Option<Now>,
}

#[derive(Debug, Default)]
pub(super) struct ConsumerGroup {
    pub(super) epoch: i32,
    pub(super) assignment_epoch: i32,
    members: BTreeMap<String, Member>,
    pub(super) target: Plan,
    /// What the members want, as it was when the group's epoch began.
    wanted: BTreeMap<String, BTreeSet<Uuid>>,
    sizes: BTreeMap<Uuid, i32>,
    ids_given: u64,
}

type Refusal = (ResponseError, &'static str);

fn refuse<T>(error: ResponseError, why: &'static str) -> Result<T, Refusal> {
    Err((error, why))
}

impl ConsumerGroup {
    pub(super) fn members(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.members.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Does a member read this topic, by its name or by a pattern?
    pub(super) fn reads(&self, topic: &str, matches: impl Fn(&str) -> bool) -> bool {
        let reads = |m: &Member| m.names.contains(topic) || m.regex.as_deref().is_some_and(&matches);
        self.members.values().any(reads)
    }

    /// The name in ConsumerGroupDescribe and ListGroups.
    pub(super) fn state(&self) -> &'static str {
        if self.members.is_empty() {
            return "Empty";
        }
        if self.epoch > self.assignment_epoch {
            return "Assigning";
        }
        let settled = |m: &Member| m.phase == Phase::Stable && m.epoch == self.assignment_epoch;
        if self.members.values().all(settled) { "Stable" } else { "Reconciling" }
    }

    /// The assignor that most members ask for.
    pub(super) fn assignor(&self) -> &'static str {
        let votes =
            |name: &str| self.members.values().filter(|m| m.assignor.as_deref() == Some(name)).count();
        if votes(ASSIGNORS[1]) > votes(ASSIGNORS[0]) { ASSIGNORS[1] } else { ASSIGNORS[0] }
    }

    /// `matching`: the topics that a regular expression means.
    pub(super) fn handle_heartbeat(
        &mut self,
        now: Now,
        times: Times,
        mut beat: Heartbeat,
        topics: &Topics,
        matching: impl Fn(&str) -> Result<BTreeSet<String>, ()>,
    ) -> Result<Reply, Refusal> {
        check(&beat)?;
        if beat.regex.as_deref().is_some_and(|r| !r.is_empty() && matching(r).is_err()) {
            return refuse(ResponseError::InvalidRegularExpression, "The regular expression cannot be read.");
        }
        if beat.member_epoch < 0 {
            return self.leave(&beat);
        }
        let joins = beat.member_epoch == 0;
        if joins && beat.member_id.is_empty() {
            self.ids_given += 1;
            // Real ids are random UUIDs; a counter keeps simulations repeatable.
            beat.member_id = Uuid::from_u128((0x848 << 96) | u128::from(self.ids_given)).to_string();
        }
        self.admit(now, times, &beat)?;
        let subscribes = beat.names.is_some() || beat.regex.is_some();
        let is_full = joins || (beat.rebalance_timeout.is_some() && subscribes && beat.owned.is_some());
        let id = beat.member_id.clone();
        let owned = beat.owned.clone();
        self.update(now, times, beat);
        self.assign(topics, matching);
        let before = self.members.get(&id).map(|m| m.assigned.clone()).unwrap_or_default();
        self.reconcile(now, &id, owned.as_ref());
        let Some(member) = self.members.get(&id) else {
            return refuse(ResponseError::UnknownMemberId, "The member is gone.");
        };
        let changed = member.assigned != before;
        Ok(Reply {
            member_id: id,
            member_epoch: member.epoch,
            assignment: (is_full || changed).then(|| member.assigned.clone()),
        })
    }

    fn instance(&self, instance: &str) -> Option<(&String, &Member)> {
        self.members.iter().find(|(_, m)| m.instance_id.as_deref() == Some(instance))
    }

    /// Lets a member in, or checks that it is who it says it is.
    fn admit(&mut self, now: Now, times: Times, beat: &Heartbeat) -> Result<(), Refusal> {
        if beat.member_epoch == 0 {
            let known = beat.instance_id.as_deref().and_then(|i| self.instance(i));
            if let Some((old, member)) = known.map(|(id, m)| (id.clone(), m.clone())) {
                if member.epoch != LEAVE_FOR_A_WHILE {
                    let why = "A member has this instance id and has not left, be it the same one.";
                    return refuse(ResponseError::UnreleasedInstanceId, why);
                }
                // The static member is back, mostly under a new id: it takes over what the old one had.
                self.members.remove(&old);
                if let Some(target) = self.target.remove(&old) {
                    self.target.insert(beat.member_id.clone(), target);
                }
                if let Some(wanted) = self.wanted.remove(&old) {
                    self.wanted.insert(beat.member_id.clone(), wanted);
                }
                let member = Member { epoch: 0, previous_epoch: 0, ..member };
                self.members.insert(beat.member_id.clone(), member);
            }
            let deadline = now + times.session;
            // One that is in already is let in again (Apache Kafka before 4.3 fences it where it has gone on meanwhile).
            self.members.entry(beat.member_id.clone()).or_insert_with(|| Member::new(deadline));
            return Ok(());
        }
        self.check_identity(&beat.member_id, beat.instance_id.as_deref())?;
        let Some(member) = self.members.get(&beat.member_id) else {
            return refuse(ResponseError::UnknownMemberId, "The member is not in the group.");
        };
        member.check_epoch(beat)
    }

    fn check_identity(&self, id: &str, instance: Option<&str>) -> Result<(), Refusal> {
        let Some(instance) = instance else { return Ok(()) };
        match self.instance(instance) {
            None => refuse(ResponseError::UnknownMemberId, "The instance id is not in the group."),
            Some((known, _)) if known != id => {
                refuse(ResponseError::FencedInstanceId, "Another member has this instance id.")
            }
            Some(_) => Ok(()),
        }
    }

    fn update(&mut self, now: Now, times: Times, beat: Heartbeat) {
        let Some(member) = self.members.get_mut(&beat.member_id) else { return };
        member.session_deadline = now + times.session;
        member.client_id = beat.client_id;
        member.client_host = beat.client_host;
        if beat.instance_id.is_some() {
            member.instance_id = beat.instance_id;
        }
        if beat.rack_id.is_some() {
            member.rack_id = beat.rack_id;
        }
        if let Some(timeout) = beat.rebalance_timeout {
            member.rebalance_timeout = timeout;
        }
        if let Some(names) = beat.names {
            member.names = names.into_iter().collect();
        }
        if let Some(regex) = beat.regex {
            member.regex = Some(regex).filter(|r| !r.is_empty());
        }
        if beat.assignor.is_some() {
            member.assignor = beat.assignor;
        }
    }

    /// A new epoch and a new target, if what the members want or what there is has changed.
    fn assign(&mut self, topics: &Topics, matching: impl Fn(&str) -> Result<BTreeSet<String>, ()>) {
        let mut wanted = BTreeMap::new();
        for (id, member) in &self.members {
            let mut names = member.names.clone();
            names.extend(member.regex.as_deref().and_then(|r| matching(r).ok()).unwrap_or_default());
            let ids = names.iter().filter_map(|name| topics.get(name)).map(|topic| topic.id);
            wanted.insert(id.clone(), ids.collect::<BTreeSet<Uuid>>());
        }
        let asked: BTreeSet<Uuid> = wanted.values().flatten().copied().collect();
        let sizes: BTreeMap<Uuid, i32> =
            topics.values().filter(|t| asked.contains(&t.id)).map(|t| (t.id, t.partitions)).collect();
        if self.epoch > 0 && wanted == self.wanted && sizes == self.sizes {
            return;
        }
        (self.wanted, self.sizes) = (wanted, sizes);
        self.epoch += 1;
        self.target = assignor::plan(self.assignor(), &self.wanted, &self.sizes, &self.target);
        self.assignment_epoch = self.epoch;
    }

    /// Who has a partition, or has it to give back.
    fn is_owned(&self, partition: &Partition, except: &str) -> bool {
        let has = |m: &Member| m.assigned.contains(partition) || m.revoking.contains(partition);
        self.members.iter().any(|(id, m)| id != except && has(m))
    }

    /// Brings a member closer to its target, as far as it and the others have given back what they must.
    fn reconcile(&mut self, now: Now, id: &str, owned: Option<&BTreeSet<Partition>>) {
        let target = self.target.get(id).cloned().unwrap_or_default();
        let Some(member) = self.members.get(id) else { return };
        let settled = member.phase == Phase::Stable && member.epoch == self.assignment_epoch;
        if settled || (member.phase == Phase::Unrevoked && !member.has_given_back(owned)) {
            return;
        }
        let kept: BTreeSet<Partition> = member.assigned.intersection(&target).copied().collect();
        let revoking: BTreeSet<Partition> = member.assigned.difference(&target).copied().collect();
        let still_has = owned.is_none_or(|owned| !owned.is_disjoint(&revoking));
        let wanted = || target.difference(&kept);
        let free: BTreeSet<Partition> = wanted().filter(|p| !self.is_owned(p, id)).copied().collect();
        let waits = wanted().count() > free.len();
        let epoch = self.assignment_epoch;
        let Some(member) = self.members.get_mut(id) else { return };
        member.previous_epoch = member.epoch;
        if !revoking.is_empty() && still_has {
            // What it gave back last was one step; there is more to give back.
            member.epoch += i32::from(member.phase == Phase::Unrevoked);
            member.assigned = kept;
            member.revoking = revoking;
            member.phase = Phase::Unrevoked;
            member.revoke_deadline = Some(now + member.rebalance_timeout);
            return;
        }
        member.epoch = epoch;
        member.assigned = &kept | &free;
        member.revoking = BTreeSet::new();
        member.revoke_deadline = None;
        member.phase = if waits { Phase::Unreleased } else { Phase::Stable };
    }

    fn leave(&mut self, beat: &Heartbeat) -> Result<Reply, Refusal> {
        self.check_identity(&beat.member_id, beat.instance_id.as_deref())?;
        let Some(member) = self.members.get_mut(&beat.member_id) else {
            return refuse(ResponseError::UnknownMemberId, "The member is not in the group.");
        };
        if beat.member_epoch == LEAVE_FOR_A_WHILE {
            // KIP-345: the static member keeps its partitions until its session ends.
            member.epoch = LEAVE_FOR_A_WHILE;
            member.revoking.clear();
            member.revoke_deadline = None;
        } else {
            self.remove(&beat.member_id.clone());
        }
        Ok(Reply { member_id: beat.member_id.clone(), member_epoch: beat.member_epoch, assignment: None })
    }

    fn remove(&mut self, id: &str) {
        self.members.remove(id);
        self.target.remove(id);
        self.wanted.remove(id);
        self.epoch += 1;
        self.target = assignor::plan(self.assignor(), &self.wanted, &self.sizes, &self.target);
        self.assignment_epoch = self.epoch;
    }

    /// An administrator removes a member, by id or instance id.
    pub(super) fn handle_removal(&mut self, id: &str, instance: Option<&str>) -> Result<(), ResponseError> {
        let id = match instance {
            Some(instance) => self.instance(instance).map(|(id, _)| id.clone()),
            None => Some(id.to_owned()).filter(|id| self.members.contains_key(id)),
        };
        self.remove(&id.ok_or(ResponseError::UnknownMemberId)?);
        Ok(())
    }

    /// May this member commit or read offsets with this epoch? A negative epoch is a client outside the group.
    pub(super) fn check_offsets(&self, id: &str, epoch: i32, commits: bool) -> Result<(), ResponseError> {
        if epoch < 0 && (!commits || self.members.is_empty()) {
            return Ok(());
        }
        let member = self.members.get(id).ok_or(ResponseError::UnknownMemberId)?;
        if member.epoch == epoch { Ok(()) } else { Err(ResponseError::StaleMemberEpoch) }
    }

    /// When [`Self::handle_timeout`] is next due.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let times = |m: &Member| [Some(m.session_deadline), m.revoke_deadline];
        self.members.values().flat_map(times).flatten().min()
    }

    /// Members that are silent, or that do not give back what they must, are out.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        let late = |m: &Member| m.session_deadline <= now || m.revoke_deadline.is_some_and(|at| at <= now);
        let late: Vec<String> =
            self.members.iter().filter(|(_, m)| late(m)).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.remove(&id);
        }
    }

    /// The coordinator moves: the new one reads the group from its log and starts all times afresh.
    pub(super) fn handle_resign(&mut self, now: Now, times: Times) {
        for member in self.members.values_mut() {
            member.session_deadline = now + times.session;
            member.revoke_deadline = member.revoke_deadline.map(|_| now + member.rebalance_timeout);
        }
    }
}

impl Member {
    fn new(session_deadline: Now) -> Self {
        Self {
            epoch: 0,
            previous_epoch: 0,
            instance_id: None,
            rack_id: None,
            client_id: String::new(),
            client_host: String::new(),
            rebalance_timeout: Duration::ZERO,
            names: BTreeSet::new(),
            regex: None,
            assignor: None,
            phase: Phase::Stable,
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            session_deadline,
            revoke_deadline: None,
        }
    }

    /// A member may be one step behind, whose answer it did not hear.
    fn check_epoch(&self, beat: &Heartbeat) -> Result<(), Refusal> {
        let repeats = beat.member_epoch == self.previous_epoch
            && beat.owned.as_ref().is_some_and(|owned| owned.is_subset(&self.assigned));
        if beat.member_epoch == self.epoch || (beat.member_epoch < self.epoch && repeats) {
            return Ok(());
        }
        let why =
            "The member's epoch is not the coordinator's: it must abandon its partitions and join again.";
        refuse(ResponseError::FencedMemberEpoch, why)
    }

    /// Only a member that says what it owns can have given something back.
    fn has_given_back(&self, owned: Option<&BTreeSet<Partition>>) -> bool {
        owned.is_some_and(|owned| owned.is_disjoint(&self.revoking))
    }
}

/// What a heartbeat must have, whoever sends it.
fn check(beat: &Heartbeat) -> Result<(), Refusal> {
    let invalid = |why| refuse(ResponseError::InvalidRequest, why);
    if beat.member_epoch < LEAVE_FOR_A_WHILE {
        return invalid("MemberEpoch is invalid.");
    }
    if beat.instance_id.as_deref() == Some("") || beat.rack_id.as_deref() == Some("") {
        return invalid("InstanceId and RackId can't be empty.");
    }
    if beat.member_epoch != 0 && beat.member_id.is_empty() {
        return invalid("MemberId can't be empty.");
    }
    if beat.member_epoch == LEAVE_FOR_A_WHILE && beat.instance_id.is_none() {
        return invalid("InstanceId can't be null.");
    }
    if beat.member_epoch == 0 {
        if beat.rebalance_timeout.is_none() {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        }
        if beat.owned.as_ref().is_none_or(|owned| !owned.is_empty()) {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        }
        if beat.names.is_none() && beat.regex.is_none() {
            return invalid("SubscribedTopicNames or SubscribedTopicRegex must be set in first request.");
        }
    }
    if beat.assignor.as_deref().is_some_and(|name| !ASSIGNORS.contains(&name)) {
        return refuse(ResponseError::UnsupportedAssignor, "The assignors are uniform and range.");
    }
    debug_assert!(beat.member_epoch >= 0 || matches!(beat.member_epoch, LEAVE | LEAVE_FOR_A_WHILE));
    Ok(())
}

#[cfg(test)]
mod tests;
