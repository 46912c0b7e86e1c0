//! The model's group: its coordinator, and another member that comes and goes.

use std::{collections::BTreeSet, time::Duration};

use super::{Event, FAULTS_LAST, PARTITIONS, World, key};
use crate::{
    consumer::offsets::CommitAction,
    error::code,
    flights::Token,
    group::{Answer, Request, wire::encode_assignment},
    record::TopicPartition,
};

/// The group as its coordinator has it: this consumer, and another member that has the rest.
pub(super) struct Group {
    pub(super) generation: i32,
    pub(super) member: Option<String>,
    /// The plan of this generation is not there yet.
    pub(super) completing: bool,
    pub(super) rebalances: bool,
    pub(super) ours: BTreeSet<i32>,
    /// Given up by the plan, and not by the member.
    pub(super) blocked: BTreeSet<i32>,
    pub(super) claim: BTreeSet<i32>,
    pub(super) ids: u32,
}

impl World {
    pub(super) fn committed_of(&self, key: &TopicPartition) -> i64 {
        self.committed[key.partition as usize]
    }

    pub(super) fn coordinate(&mut self, token: Token, request: Request) {
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
                    let is_over = self.now >= self.start + FAULTS_LAST;
                    group.ours = (0..PARTITIONS).filter(|_| is_over || self.rng.below(3) > 0).collect();
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
            Request::ConsumerHeartbeat(_) => panic!("of another protocol"),
        };
        let answer = if self.chance(25) { Err(Self::gone()) } else { Ok(answer) };
        self.after(delay, Event::Group(token, answer));
    }

    pub(super) fn expel(&mut self) {
        self.group.member = None;
        self.group.generation += 1;
        self.group.ours.clear();
        self.group.blocked.clear();
        self.group.claim.clear();
        self.group.completing = false;
    }

    pub(super) fn commit_arrives(&mut self, commit: &CommitAction) {
        let refusal = match () {
            () if self.chance(20) => {
                [code::NOT_COORDINATOR, code::COORDINATOR_LOAD_IN_PROGRESS][self.rng.below(2)]
            }
            () if self.group.member.as_deref() != Some(&commit.identity.member_id) => code::UNKNOWN_MEMBER_ID,
            () if commit.identity.generation != self.group.generation => code::ILLEGAL_GENERATION,
            () if self.group.completing => code::REBALANCE_IN_PROGRESS,
            () => 0,
        };
        let mut codes = crate::sorted::Map::new();
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
    pub(super) fn others(&mut self) {
        if self.faults_are_over() && self.group.ours.len() < PARTITIONS as usize {
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
}
