//! What a rebalance listener is told, and what waits for it. Pure.
//!
//! Notices are told one at a time, in order. Nothing is handed out while one is told or waits to be, and a revocation goes on
//! only when its listener has returned or the coordinator will wait no longer; what was not told by then is told as lost.

use std::collections::VecDeque;

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
pub(super) struct Telling {
    /// There is a listener.
    is_on: bool,
    waiting: VecDeque<Notice>,
    /// What the listener is at.
    told: Option<Notice>,
}

impl Telling {
    fn push(&mut self, notice: Notice) {
        if self.is_on {
            self.waiting.push_back(notice);
        }
    }

    /// Whether something is told or waits to be.
    pub(super) fn is_busy(&self) -> bool {
        self.told.is_some() || !self.waiting.is_empty()
    }

    /// What the listener was never told it has it need not be told it loses. The rest of these partitions.
    fn forget_untold(&mut self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let mut rest = partitions.to_vec();
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

    /// What was not told while it could be done something about is told as lost, with `more`.
    fn lose(&mut self, more: Vec<TopicPartition>) {
        let mut lost = more;
        self.waiting.retain_mut(|notice| match notice {
            Notice::Revoked(partitions) => {
                lost.append(partitions);
                false
            }
            _ => true,
        });
        if let Some(Notice::Revoked(told)) = &self.told {
            // They heard of it in time, or as good as.
            lost.retain(|key| !told.contains(key));
        }
        lost.sort();
        lost.dedup();
        if !lost.is_empty() {
            self.push(Notice::Lost(lost));
        }
    }
}

impl Core {
    /// From now on a listener is told.
    pub(crate) fn set_listening(&mut self, is_on: bool) {
        self.telling.is_on = is_on;
        if !is_on {
            self.telling.waiting.clear();
        }
    }

    /// Whether the listener is told something, or is to be.
    pub(crate) fn is_telling(&self) -> bool {
        self.telling.is_busy()
    }

    /// The next thing to tell the listener; [`Self::handle_told`] when it has returned.
    pub(crate) fn next_notice(&mut self, now: Instant) -> Option<Notice> {
        let notice = self.telling.waiting.pop_front()?;
        self.telling.told = Some(notice.clone());
        if let Some(member) = &mut self.member {
            // A listener that never returns is no sign of life.
            member.handle_loose_poll(now);
        }
        Some(notice)
    }

    /// The listener has returned.
    pub(crate) fn handle_told(&mut self, now: Instant) {
        self.telling.told = None;
        self.news = true;
        if let (Some(member), Mode::Topics, 1..) = (&mut self.member, &self.mode, self.polls) {
            member.handle_poll(now);
        }
        self.run_member(now);
        self.advance_revocation(now);
    }

    /// Before a close, in which partitions are given up in an orderly way: the listener is told of all there are, and nothing
    /// more of them is handed out.
    pub(crate) fn tell_farewell(&mut self) {
        let all: Vec<_> = self.partitions.iter().map(|(key, _)| key.clone()).collect();
        if self.closing.is_none() && matches!(self.mode, Mode::Topics) && !all.is_empty() {
            self.partitions.set_revoking(&all, true);
            self.tell_revoked(&all);
        }
    }

    pub(super) fn tell_assigned(&mut self, partitions: &[TopicPartition]) {
        if !partitions.is_empty() {
            self.telling.push(Notice::Assigned(partitions.to_vec()));
        }
    }

    /// True if the listener must be waited for.
    pub(super) fn tell_revoked(&mut self, partitions: &[TopicPartition]) -> bool {
        let gone = self.telling.forget_untold(partitions);
        if gone.is_empty() || !self.telling.is_on {
            return false;
        }
        self.telling.push(Notice::Revoked(gone));
        self.news = true;
        true
    }

    /// These are gone without the listener; so is what waited for it.
    pub(super) fn tell_lost(&mut self, partitions: &[TopicPartition]) {
        let gone = self.telling.forget_untold(partitions);
        self.telling.lose(gone);
    }
}
