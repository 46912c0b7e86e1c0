//! How a member gets its partitions: join, plan, sync, and what is given up before. It must never join again while
//! partitions that it must give up are still being worked on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{Heartbeats, Member, NOTHING_MATCHES, State};
use crate::{
    error::Error,
    flights::Token,
    group::{
        Action, Exchange, Reason,
        assignor::{Assignment, GroupMember, Strategy},
        wire::{decode_assignment, encode_assignment},
    },
    record::TopicPartition,
    time::Instant,
};

impl Member {
    /// The partition counts of the cluster. The leader calls for a rebalance when its topics have others than planned.
    pub(crate) fn handle_metadata(&mut self, now: Instant, counts: impl Fn(&str) -> Option<i32>) {
        let State::Stable { .. } = self.state else { return };
        let Some(planned) = &self.planned else { return };
        if planned.iter().any(|(topic, count)| counts(topic).is_some_and(|current| current != *count)) {
            self.rebalance(now, "a topic has another number of partitions");
        }
    }

    /// The user wants the group to rebalance.
    pub(crate) fn handle_enforce(&mut self, now: Instant, reason: &str) {
        if let State::Stable { .. } = self.state {
            let reason = reason.chars().take(LONGEST_REASON).collect::<String>();
            self.rebalance(now, reason);
        }
    }

    /// The leader's plan is ready. `counts` are what it was made with, or what the assignment that stands covers.
    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        token: Token,
        assignor: Strategy,
        counts: BTreeMap<Arc<str>, i32>,
        plan: Result<Assignment, Error>,
    ) {
        let State::Planning { generation, token: waited, keeps } = self.state else { return };
        if waited != token {
            return;
        }
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.stop(now, error),
        };
        self.planned = Some(counts);
        let is_plain = matches!(assignor, Strategy::Range | Strategy::RoundRobin);
        self.expected = if keeps && is_plain { plan.get(&self.member_id).cloned() } else { None };
        if keeps {
            return self.sync(now, generation, assignor, Vec::new());
        }
        let assignments =
            plan.iter().map(|(member, partitions)| (member.clone(), encode_assignment(partitions))).collect();
        self.sync(now, generation, assignor, assignments);
    }

    /// The partitions of the `Revoke` have been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, token: Token) {
        if matches!(self.state, State::Revoking { token: waited, .. } if waited == token) {
            let revoked = std::mem::take(&mut self.revoking);
            self.owned.retain(|key| revoked.binary_search(key).is_err());
            self.join(now);
        }
    }

    pub(super) fn join(&mut self, now: Instant) {
        self.join_after(now, Duration::ZERO);
    }

    pub(super) fn join_after(&mut self, now: Instant, pause: Duration) {
        if self.topics.is_empty() && self.owned.is_empty() {
            return self.leave(now, NOTHING_MATCHES);
        }
        self.planned = None;
        if self.settings.cooperative {
            self.claim.clone_from(&self.owned);
        }
        // One that was sent away for its member id, or after an error, has said so.
        if !matches!(self.state, State::Joining { .. }) {
            let reason = Some(&*self.reason).filter(|reason| !reason.is_empty());
            info!(reason, "joining the group");
        }
        self.state = State::Joining { exchange: Exchange::Due(now + pause) };
        self.handle_timeout(now);
    }

    pub(super) fn sync(
        &mut self,
        now: Instant,
        generation: i32,
        assignor: Strategy,
        assignments: Vec<(String, bytes::Bytes)>,
    ) {
        let exchange = Exchange::Due(now);
        self.state = State::Syncing { generation, assignor, assignments, exchange };
        self.handle_timeout(now);
    }

    pub(super) fn on_joined(
        &mut self,
        now: Instant,
        generation: i32,
        protocol: &str,
        members: Option<Vec<GroupMember>>,
        skip_assignment: bool,
    ) {
        let offered = self.settings.assignors.iter().find(|assignor| assignor.name() == protocol);
        let Some(assignor) = offered.cloned() else {
            let error = Error::protocol(format!(
                "the group uses the assignor '{protocol}', which this member did not offer"
            ))
            .with_api("JoinGroup");
            return self.stop(now, error);
        };
        self.generation = generation;
        self.reason = Reason::default();
        self.is_alone = members.as_ref().is_some_and(|members| members.len() <= 1);
        match members {
            // KIP-814: the coordinator still has the assignment that this leader made before it came back. It leads all
            // the same, and must notice when its topics change.
            Some(members) => {
                let token = self.tokens.next();
                let keeps = skip_assignment && !self.is_misfit;
                self.state = State::Planning { generation, token, keeps };
                self.actions.push_back(Action::Plan { token, assignor, members, keeps });
            }
            None => self.sync(now, generation, assignor, Vec::new()),
        }
    }

    pub(super) fn on_synced(&mut self, now: Instant, assignment: &[u8]) {
        let State::Syncing { generation, .. } = self.state else { return };
        self.backoff.reset();
        self.churn.reset();
        self.failed_syncs = 0;
        if self.stale {
            return self.join(now);
        }
        let partitions = match decode_assignment(assignment) {
            Ok(partitions) => partitions,
            Err(error) => return self.stop(now, error),
        };
        let is_first = !std::mem::replace(&mut self.is_settled, true);
        if is_first && partitions.iter().any(|key| !self.topics.contains(&key.topic)) {
            // A static member that comes back gets what it had, whatever it subscribes to now (KIP-345).
            (self.is_misfit, self.expected) = (true, None);
            self.reason = Reason::Borrowed("the assignment is of another subscription");
            return self.join(now);
        }
        let has_any = self.planned.as_ref().is_some_and(|counts| counts.values().any(|count| *count > 0));
        if partitions.is_empty() && self.is_alone && has_any {
            warn!(
                "the group has no other member, and has assigned nothing to this one: nothing is read before it rebalances"
            );
        }
        let heartbeats = Heartbeats {
            exchange: Exchange::Due(now + self.settings.heartbeat_interval),
            sent: now,
            at_rest: now,
            session_ends: now + self.settings.session_timeout,
        };
        self.state = State::Stable { generation, heartbeats };
        let revoked: Vec<_> =
            self.owned.iter().filter(|key| partitions.binary_search(key).is_err()).cloned().collect();
        let added: Vec<_> =
            partitions.iter().filter(|key| self.owned.binary_search(key).is_err()).cloned().collect();
        self.claim.clone_from(&partitions);
        self.owned.extend(added.iter().cloned());
        self.owned.sort();
        self.actions.push_back(Action::Assign { added });
        if !revoked.is_empty() {
            self.reason = Reason::Borrowed("partitions were given up for another member");
            // Another member gets them in the next rebalance.
            return self.revoke(generation, heartbeats, revoked);
        }
        self.is_misfit = self.expected.take().is_some_and(|mut expected| {
            expected.sort();
            expected != self.owned
        });
        if self.is_misfit {
            self.rebalance(now, "the assignment of before does not fit any more");
        }
    }

    /// Joins again, once what must be given up for it is released.
    pub(super) fn rebalance(&mut self, now: Instant, reason: impl Into<Reason>) {
        let State::Stable { generation, heartbeats } = self.state else { return };
        self.reason = reason.into();
        // With cooperative rebalancing only partitions of topics that are not subscribed to any more are given up.
        let is_wanted = |key: &&TopicPartition| self.settings.cooperative && self.topics.contains(&key.topic);
        let revoked: Vec<_> = self.owned.iter().filter(|key| !is_wanted(key)).cloned().collect();
        if revoked.is_empty() {
            return self.join(now);
        }
        self.revoke(generation, heartbeats, revoked);
    }

    pub(super) fn revoke(
        &mut self,
        generation: i32,
        heartbeats: Heartbeats,
        partitions: Vec<TopicPartition>,
    ) {
        let token = self.tokens.next();
        self.state = State::Revoking { generation, heartbeats, token };
        self.revoking.clone_from(&partitions);
        self.actions.push_back(Action::Revoke { token, partitions, since: heartbeats.at_rest });
    }
}

/// The longest reason that Java's client sends, in characters.
const LONGEST_REASON: usize = 255;
