//! What a rebalance listener is told, and what waits for it. Pure.
//!
//! Notices are told one at a time, in order. Nothing is handed out while one is told or waits to be, and a revocation goes on
//! only when its listener has returned or the coordinator will wait no longer; what was not told by then is told as lost. It must
//! never tell twice that a partition is gone, nor that one is gone that was not told of.

use std::collections::{BTreeSet, VecDeque};

use super::{Core, Mode};
use crate::{record::TopicPartition, time::Instant};

/// One call of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    Assigned(Vec<TopicPartition>),
    /// They are still this member's, and go when the listener has returned.
    Revoked(Vec<TopicPartition>),
    /// They may be another member's already.
    Lost(Vec<TopicPartition>),
}

/// The notices of a consumer.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// There is a listener.
    is_on: bool,
    waiting: VecDeque<Notice>,
    /// The listener is being called.
    pub(super) is_calling: bool,
    /// What is the consumer's, by all that was told and waits to be.
    has: BTreeSet<TopicPartition>,
}

impl Notices {
    fn push(&mut self, notice: Notice) {
        if self.is_on {
            self.waiting.push_back(notice);
        }
    }

    /// Whether something is told or waits to be.
    pub(super) fn is_busy(&self) -> bool {
        self.is_calling || !self.waiting.is_empty()
    }

    /// These come.
    fn add(&mut self, partitions: &[TopicPartition]) {
        self.has.extend(partitions.iter().cloned());
        self.push(Notice::Assigned(partitions.to_vec()));
    }

    /// These partitions go. Returns those of them that the listener must hear of: neither those whose loss it knows, nor
    /// those that it was never told of.
    fn take(&mut self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let mut rest: Vec<_> = partitions.iter().filter(|key| self.has.remove(*key)).cloned().collect();
        self.waiting.retain_mut(|notice| match notice {
            Notice::Assigned(added) => {
                rest.retain(|key| !added.contains(key));
                added.retain(|key| !partitions.contains(key));
                !added.is_empty()
            }
            _ => true,
        });
        rest
    }

    /// Revocations that were not told in time are told as lost, together with `more`.
    fn lose(&mut self, more: Vec<TopicPartition>) {
        let mut lost = more;
        self.waiting.retain_mut(|notice| match notice {
            Notice::Revoked(partitions) => {
                lost.append(partitions);
                false
            }
            _ => true,
        });
        lost.sort();
        if !lost.is_empty() {
            self.push(Notice::Lost(lost));
        }
    }
}

impl Core {
    /// Whether there is a listener to be told from now on.
    pub(crate) fn set_listening(&mut self, is_on: bool) {
        self.notices.is_on = is_on;
        if !is_on {
            self.notices.waiting.clear();
        }
    }

    /// Whether the listener is told something, or is to be.
    pub(crate) fn is_telling(&self) -> bool {
        self.notices.is_busy()
    }

    /// The next thing to tell the listener; [`Self::handle_told`] when it has returned.
    pub(crate) fn next_notice(&mut self, now: Instant) -> Option<Notice> {
        let notice = self.notices.waiting.pop_front()?;
        if let Some(member) = &mut self.member {
            // The poll interval runs while a listener works, whatever is polled meanwhile: one that never returns must cost
            // the membership.
            member.handle_loose_poll(now);
        }
        self.notices.is_calling = true;
        Some(notice)
    }

    /// The listener has returned.
    pub(crate) fn handle_told(&mut self, now: Instant) {
        self.notices.is_calling = false;
        self.news = true;
        if let (Some(member), Mode::Topics) = (&mut self.member, &self.mode) {
            match self.polls {
                0 => member.handle_poll_end(now),
                _ => member.handle_poll(now),
            }
        }
        self.run_member(now);
        self.advance_revocation(now);
    }

    /// Before a close, in which partitions are given up in an orderly way: the listener is told of all there are, and nothing
    /// more of them is handed out.
    pub(crate) fn tell_farewell(&mut self) {
        let all: Vec<_> = self.partitions.iter().map(|(key, _)| key.clone()).collect();
        if self.closing.is_none() && matches!(self.mode, Mode::Topics) && !all.is_empty() {
            self.partitions.set_revoking(&all);
            self.tell_revoked(&all);
        }
    }

    pub(super) fn tell_assigned(&mut self, partitions: &[TopicPartition]) {
        if !partitions.is_empty() {
            self.notices.add(partitions);
        }
    }

    pub(super) fn tell_revoked(&mut self, partitions: &[TopicPartition]) {
        let gone = self.notices.take(partitions);
        if !gone.is_empty() {
            self.notices.push(Notice::Revoked(gone));
            self.news = true;
        }
    }

    /// These are gone without the listener; so is what waited for it.
    pub(super) fn tell_lost(&mut self, partitions: &[TopicPartition]) {
        let gone = self.notices.take(partitions);
        self.notices.lose(gone);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::KafkaConfig,
        time::{self, Rng},
    };

    fn told(core: &mut Core, now: Instant) -> Vec<Notice> {
        let mut all = Vec::new();
        while let Some(notice) = core.next_notice(now) {
            core.handle_told(now);
            all.push(notice);
        }
        all
    }

    #[test]
    fn what_goes_is_told_once_however_it_goes() {
        let now = time::now();
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        core.set_listening(true);
        core.subscribe(now, vec!["t".into()]).unwrap();
        let keys = [0, 1, 2].map(|partition| TopicPartition::new("t", partition));
        core.partitions.add(keys.iter().cloned(), &crate::consumer::partitions::Phase::AwaitingCommitted);
        core.tell_assigned(&keys);
        assert_eq!(told(&mut core, now), [Notice::Assigned(keys.to_vec())]);

        // It is revoked, and lost while its commits are out.
        core.tell_revoked(&keys[..1]);
        assert_eq!(told(&mut core, now), [Notice::Revoked(keys[..1].to_vec())]);
        core.tell_lost(&keys[..2]);
        assert_eq!(told(&mut core, now), [Notice::Lost(keys[1..2].to_vec())]);
        // What waits to be told as lost is not told as lost again.
        core.tell_assigned(&keys[..2]);
        told(&mut core, now);
        core.tell_revoked(&keys[..1]);
        core.tell_lost(&[]);
        core.tell_lost(&keys[..1]);
        assert_eq!(told(&mut core, now), [Notice::Lost(keys[..1].to_vec())]);
        // It closes during a revocation.
        core.tell_revoked(&keys[1..2]);
        assert!(core.partitions.iter().all(|(_, partition)| !partition.is_revoking));
        core.tell_farewell();
        assert!(
            core.partitions.iter().all(|(_, partition)| partition.is_revoking),
            "nothing more is handed out"
        );
        core.tell_revoked(&keys[2..]);
        let gone = [Notice::Revoked(keys[1..2].to_vec()), Notice::Revoked(keys[2..].to_vec())];
        assert_eq!(told(&mut core, now), gone);
    }
}
