//! Which broker coordinates which group and transaction, and the requests that wait for a group's answer.

use std::collections::BTreeSet;

use kafka_protocol::ResponseError;
use tokio::sync::oneshot;

use super::super::clock::Now;
use super::super::consumer_group::{self, ConsumerGroup, Heartbeat, Reply, Topics};
use super::super::group::{Answer, Caller, Ticket};
use super::{Cluster, GroupEntry};

/// What a coordinator is for; the numbers are those of FindCoordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Kind {
    Group = 0,
    Transaction = 1,
}

impl Cluster {
    /// The broker that coordinates a group or transaction: where it was moved to, or the one its name falls on.
    pub(in super::super) fn coordinator(&self, kind: Kind, key: &str) -> i32 {
        if let Some(moved) = self.coordinators.get(&(kind, key.to_owned())) {
            return *moved;
        }
        let ids: Vec<i32> = self.nodes.keys().copied().collect();
        let slot = crc32c::crc32c(key.as_bytes()) as usize % ids.len().max(1);
        ids.get(slot).copied().unwrap_or(-1)
    }

    /// The coordinator as FindCoordinator tells it: pinned, so that later restarts do not move it again.
    pub(in super::super) fn running_coordinator(&mut self, kind: Kind, key: &str, now: Now) -> i32 {
        let owner = self.coordinator(kind, key);
        if self.runs(owner) {
            return owner;
        }
        let heir = self.controller();
        if heir >= 0 {
            self.move_coordinator(kind, key, heir, now);
        }
        heir
    }

    pub(in super::super) fn move_coordinator(&mut self, kind: Kind, key: &str, broker: i32, now: Now) {
        if self.coordinator(kind, key) == broker {
            return;
        }
        self.coordinators.insert((kind, key.to_owned()), broker);
        if kind == Kind::Group {
            if let Some(entry) = self.groups.get_mut(key) {
                entry.group.handle_resign(now);
                if let Some(consumer) = &mut entry.consumer {
                    consumer.handle_resign(now, self.options.consumer_group);
                }
            }
            self.deliver(key);
        }
    }

    /// Everything that one broker coordinates goes to another.
    pub(super) fn move_coordinators(&mut self, from: i32, to: i32, now: Now) {
        let groups: Vec<String> = self.groups.keys().cloned().collect();
        for group in groups.iter().filter(|g| self.coordinator(Kind::Group, g) == from).collect::<Vec<_>>() {
            self.move_coordinator(Kind::Group, group, to, now);
        }
        for owner in self.coordinators.values_mut().filter(|o| **o == from) {
            *owner = to;
        }
    }

    /// Forgets the offsets of a group without members that are too old.
    pub(in super::super) fn expire_offsets(&mut self, group: &str, now_ms: i64) {
        let age = i64::try_from(self.options.offsets_retention.as_millis()).unwrap_or(i64::MAX);
        let since = now_ms.saturating_sub(age);
        if let Some(entry) = self.groups.get_mut(group).filter(|e| e.is_empty()) {
            entry.offsets.retain(|_, committed| committed.committed_ms > since);
        }
    }

    /// The group, made if it is new.
    pub(in super::super) fn group_mut(&mut self, group: &str) -> &mut GroupEntry {
        self.groups.entry(group.to_owned()).or_default()
    }

    /// May this caller commit offsets of the group?
    pub(in super::super) fn check_commit(
        &mut self,
        now: Now,
        group: &str,
        caller: &Caller,
        in_transaction: bool,
    ) -> Result<(), ResponseError> {
        match self.groups.get_mut(group) {
            Some(GroupEntry { consumer: Some(consumer), .. }) if !consumer.is_empty() => {
                consumer.check_offsets(&caller.member_id, caller.generation, true)
            }
            Some(entry) => entry.group.handle_commit(now, caller, in_transaction),
            None if caller.generation < 0 => Ok(()),
            None => Err(ResponseError::GroupIdNotFound),
        }
    }

    /// A heartbeat of KIP-848. The group is made by the first member that joins.
    pub(in super::super) fn consumer_heartbeat(
        &mut self,
        now: Now,
        group: &str,
        beat: Heartbeat,
    ) -> Result<Reply, (ResponseError, &'static str)> {
        let not_found = |why| Err((ResponseError::GroupIdNotFound, why));
        match self.groups.get(group) {
            Some(entry) if entry.group.members().next().is_some() => {
                return not_found("The group has members of the classic protocol.");
            }
            Some(GroupEntry { consumer: Some(_), .. }) => {}
            _ if beat.member_epoch == 0 => {}
            _ => return not_found("There is no such group."),
        }
        let partitions = |t: &super::Topic| i32::try_from(t.partitions.len()).unwrap_or(i32::MAX);
        let topic = |t: &super::Topic| consumer_group::Topic { id: t.id, partitions: partitions(t) };
        let topics: Topics = self.topics.iter().map(|(name, t)| (name.clone(), topic(t))).collect();
        let matching = |regex: &str| {
            let regex = whole(regex)?;
            Ok(topics.keys().filter(|name| regex.is_match(name)).cloned().collect())
        };
        let times = self.options.consumer_group;
        let consumer = self.groups.entry(group.to_owned()).or_default().consumer.get_or_insert_default();
        consumer.handle_heartbeat(now, times, beat, &topics, matching)
    }

    /// Do members of the group read this topic? `None`: it is no group of consumers, whose members do not say.
    pub(in super::super) fn is_read_by(&self, group: &str, topic: &str) -> Option<bool> {
        let Some(entry) = self.groups.get(group) else { return Some(false) };
        let matches = |regex: &str| whole(regex).is_ok_and(|regex| regex.is_match(topic));
        let reads = |consumer: &ConsumerGroup| consumer.reads(topic, matches);
        Some(entry.group.reads(topic)? || entry.consumer.as_ref().is_some_and(reads))
    }

    /// Parks a request: the receiver gets the group's answer to this ticket.
    pub(in super::super) fn park(&mut self) -> (Ticket, oneshot::Receiver<Answer>) {
        self.tickets += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(self.tickets, sender);
        (self.tickets, receiver)
    }

    /// Hands the group's answers to those who wait for them; one whose connection is gone is dropped.
    pub(in super::super) fn deliver(&mut self, group: &str) {
        let Some(entry) = self.groups.get_mut(group) else { return };
        while let Some((ticket, answer)) = entry.group.poll_answer() {
            if let Some(waiting) = self.waiting.remove(&ticket) {
                drop(waiting.send(answer));
            }
        }
    }

    pub(in super::super) fn next_timeout(&self) -> Option<Now> {
        let groups = self.groups.values().filter_map(|e| e.group.poll_timeout());
        let consumers = self.groups.values().filter_map(|e| e.consumer.as_ref()?.poll_timeout());
        groups.chain(consumers).chain(self.transactions.poll_timeout()).min()
    }

    pub(in super::super) fn handle_group_timeouts(&mut self, now: Now) {
        let due = |e: &GroupEntry| {
            let consumer = e.consumer.as_ref().and_then(ConsumerGroup::poll_timeout);
            e.group.poll_timeout().into_iter().chain(consumer).any(|at| at <= now)
        };
        let due: BTreeSet<String> =
            self.groups.iter().filter(|(_, e)| due(e)).map(|(g, _)| g.clone()).collect();
        for group in due {
            if let Some(entry) = self.groups.get_mut(&group) {
                entry.group.handle_timeout(now);
                if let Some(consumer) = &mut entry.consumer {
                    consumer.handle_timeout(now);
                }
            }
            self.deliver(&group);
        }
    }
}

/// Java: the whole name must match.
fn whole(regex: &str) -> Result<regex_lite::Regex, ()> {
    regex_lite::Regex::new(&format!("^(?:{regex})$")).map_err(drop)
}
