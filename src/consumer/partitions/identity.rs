//! Which topic of its name a partition is of (KIP-516): a topic that was deleted and made again has another id and another log,
//! in which a position of the old one means nothing. Pure.
//!
//! What one broker says of the id may be behind what the others know, and two ids do not tell which is the later one. So
//! a position is not given up because of metadata alone. The leader, which has the log, decides: it serves the id that
//! the partition is read by, or refuses it.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::{Partition, Partitions, Phase, mark};
use crate::{
    cluster::{TopicId, are_two_lives},
    consumer::ledger::{Account, Life},
    error::code::{INCONSISTENT_TOPIC_ID, UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION},
    record::TopicPartition,
    time::Instant,
};

/// The id of a topic in the metadata snapshot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MetadataId {
    /// All zeros where there is none.
    pub(crate) id: TopicId,
    /// The last Metadata answer named another id.
    pub(crate) is_disputed: bool,
}

/// An id in the metadata other than the one that the partition is read by. It counts only once the leader has refused the
/// old id, or after [`ACCEPTED_AFTER`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnconfirmedId {
    id: TopicId,
    /// Since when all metadata have named it, and the leader has not served the old id.
    since: Instant,
    /// The leader has served it meanwhile, by its name.
    is_served_by_name: bool,
}

/// No broker lags behind the others for longer than this, so an id that metadata name for as long is accepted.
const ACCEPTED_AFTER: Duration = Duration::from_secs(20);

/// What the group had of the topic of this name before it was made again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    offset: i64,
    /// This consumer has committed it, so that it is of the old topic. One that was found may have been of the new topic
    /// already.
    is_own: bool,
    /// How often it was found since.
    found: u32,
}

/// How often, a second apart, the coordinator must give the same offset before it counts as committed for the new topic.
/// A coordinator drops the offsets of a deleted topic within moments.
const FOUND_AGAIN: u32 = 3;

/// What an offset is that the coordinator knows by the topic's name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    OfThis,
    OfTheOneBefore,
    Unclear,
}

/// What another id in the metadata means.
enum IdChange {
    /// The topic was made again: the position means nothing in its log.
    MadeAgain,
    /// The position is in the log of the new id already.
    SameLog,
    Unclear,
}

impl Partition {
    /// Decides what it means that metadata name another id than the partition's.
    fn judge_id(&mut self, now: Instant, named: MetadataId) -> IdChange {
        if self.topic_id == TopicId::default() {
            return IdChange::SameLog;
        }
        if self.position().is_none() || self.is_refused {
            return IdChange::MadeAgain;
        }
        let known =
            self.unconfirmed.as_deref().copied().filter(|known| known.id == named.id && !named.is_disputed);
        let unconfirmed =
            known.unwrap_or(UnconfirmedId { id: named.id, since: now, is_served_by_name: false });
        self.unconfirmed = Some(Box::new(unconfirmed));
        match unconfirmed.since + ACCEPTED_AFTER <= now {
            false => IdChange::Unclear,
            true if unconfirmed.is_served_by_name => IdChange::SameLog,
            true => IdChange::MadeAgain,
        }
    }

    /// Its leader has served it.
    pub(crate) fn note_served(&mut self, now: Instant, by_id: bool) {
        (self.is_served, self.is_served_by_id, self.is_refused) = (true, by_id, false);
        if let Some(unconfirmed) = &mut self.unconfirmed {
            match by_id {
                true => unconfirmed.since = now,
                false => unconfirmed.is_served_by_name = true,
            }
        }
    }

    /// Its leader has refused it for this code.
    pub(crate) fn note_refused(&mut self, code: i16) {
        self.is_refused |=
            matches!(code, UNKNOWN_TOPIC_OR_PARTITION | UNKNOWN_TOPIC_ID | INCONSISTENT_TOPIC_ID);
    }

    /// The leader's log does not have the position. If the leader was asked by name while metadata name another id, this
    /// counts as a refusal of the old id, and true is returned.
    pub(crate) fn note_outside(&mut self, by_id: bool) -> bool {
        let is_another = !by_id && self.unconfirmed.is_some();
        self.is_refused |= is_another;
        is_another
    }

    /// Which topic of its name a committed offset is of that the coordinator knows by name only.
    pub(crate) fn standing(&mut self, offset: i64) -> Standing {
        match &mut self.committed_before {
            Some(before) if before.offset == offset && before.is_own => Standing::OfTheOneBefore,
            Some(before) if before.offset == offset && before.found < FOUND_AGAIN => {
                before.found += 1;
                Standing::Unclear
            }
            _ => Standing::OfThis,
        }
    }
}

impl Partitions {
    /// Takes over the ids of the topics. Returns the partitions whose topic was made again: what is known of them is of
    /// another log. Where the coordinator assigns partitions by topic id (`is_assigned_by_id`), another id counts at once.
    pub(crate) fn set_topic_ids(
        &mut self,
        now: Instant,
        metadata_id: impl Fn(&Arc<str>) -> MetadataId,
        is_assigned_by_id: impl Fn(&TopicPartition) -> bool,
    ) -> Vec<TopicPartition> {
        let mut again = Vec::new();
        let mut last: Option<(&Arc<str>, MetadataId)> = None;
        for (key, partition) in &mut self.partitions {
            let named = match last {
                Some((topic, named)) if Arc::ptr_eq(topic, &key.topic) => named,
                _ => metadata_id(&key.topic),
            };
            last = Some((&key.topic, named));
            if named.id == partition.topic_id || named.id == TopicId::default() {
                partition.unconfirmed = None;
                continue;
            }
            let is_reassigned = are_two_lives(partition.topic_id, named.id) && is_assigned_by_id(key);
            match partition.judge_id(now, named) {
                _ if is_reassigned => again.push(key.clone()),
                IdChange::MadeAgain => again.push(key.clone()),
                IdChange::SameLog if partition.unconfirmed.is_some() => {
                    warn!(partition = %key, "the topic has another id, and its leader serves the position by name: reading goes on \
                        there, though the topic may have been made again");
                }
                IdChange::SameLog => {}
                IdChange::Unclear => continue,
            }
            partition.topic_id = named.id;
            (partition.unconfirmed, partition.is_refused, partition.is_served_by_id) = (None, false, false);
            // Whether or not it was assigned when that happened.
            match self.known.get_mut(&key.topic) {
                Some((known, _)) if *known == named.id => {}
                Some(known) => *known = (named.id, self.lives.begin()),
                None => drop(self.known.insert(Arc::clone(&key.topic), (named.id, Life::NONE))),
            }
            mark(&mut partition.is_touched, key, &mut self.touched);
        }
        self.has_unconfirmed = self.partitions.values().any(|partition| partition.unconfirmed.is_some());
        again
    }

    /// A leader has answered in a session and refused nothing. Such an answer names only partitions with news, but always
    /// an id that the leader does not know. So all that was `asked` for by an id which the leader has served before is
    /// still served; otherwise an idle topic would seem to be served by nobody.
    pub(crate) fn note_passed_over(
        &mut self,
        now: Instant,
        leader: i32,
        asked: impl Fn(&TopicPartition) -> Option<TopicId>,
    ) {
        for (key, partition) in &mut self.partitions {
            let is_of_leader = partition.leader.is_some_and(|(id, _)| id == leader);
            if partition.is_served_by_id && is_of_leader && asked(key) == Some(partition.topic_id) {
                partition.note_served(now, true);
            }
        }
    }

    /// Whether metadata name another id than the one that some partition is read by.
    pub(crate) fn has_unconfirmed_id(&self) -> bool {
        self.has_unconfirmed
    }

    /// The life in which a topic was found to be another one than that of its name before.
    pub(crate) fn made_again(&self, topic: &Arc<str>) -> Option<Life> {
        self.known.get(topic).map(|(_, since)| *since)
    }

    /// The last life of all that have begun.
    pub(crate) fn now(&self) -> Life {
        self.lives.last()
    }

    /// The topic was made again: nothing that is known of the partition, or done, is of the present log; nor is what this
    /// consumer has committed until now.
    pub(crate) fn begin_again(&mut self, key: &TopicPartition, phase: Phase) {
        if let Some(partition) = self.partitions.get_mut(key) {
            let committed = partition.account.committed();
            let before =
                committed.map(|known| Before { offset: known.offset, is_own: known.is_own, found: 0 });
            partition.committed_before = before.or(partition.committed_before);
        }
        self.forget(key, phase);
    }

    /// Forgets all that is known of the partition, and what is done of it. What the group has committed of it stands.
    pub(crate) fn forget(&mut self, key: &TopicPartition, phase: Phase) {
        self.note_over(key);
        let Some(partition) = self.partitions.get_mut(key) else { return };
        self.buffered = self.buffered.saturating_sub(partition.drop_buffer());
        partition.account = Account::open(self.lives.begin());
        partition.end = None;
        partition.is_served = false;
        self.uncovered.retain(|uncovered| uncovered != key);
        self.set_phase(key, phase);
    }
}
