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

/// What the metadata say of a topic.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    /// All zeros where there is none.
    pub(crate) id: TopicId,
    /// The last answer has told of another one.
    pub(crate) is_disputed: bool,
}

/// Another id than that which a partition is read by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rumour {
    id: TopicId,
    /// Since when metadata have named it without contradiction, and without the leader having served the other one.
    since: Instant,
    /// The leader has served it meanwhile, by its name.
    is_served_by_name: bool,
}

/// A rumour that lasts this long is believed: no broker that is asked again and again stays behind the others for longer.
const BELIEVED_AFTER: Duration = Duration::from_secs(20);

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

enum Heard {
    MadeAgain,
    /// The position is of this one already.
    Same,
    Unclear,
}

impl Partition {
    /// What to make of it that metadata name another id than the partition's.
    fn hear(&mut self, now: Instant, told: Told) -> Heard {
        if self.topic_id == TopicId::default() {
            return Heard::Same;
        }
        if self.position().is_none() || self.is_refused {
            return Heard::MadeAgain;
        }
        let rumour = self.rumour.filter(|rumour| rumour.id == told.id && !told.is_disputed);
        let rumour = rumour.unwrap_or(Rumour { id: told.id, since: now, is_served_by_name: false });
        self.rumour = Some(rumour);
        match rumour.since + BELIEVED_AFTER <= now {
            false => Heard::Unclear,
            true if rumour.is_served_by_name => Heard::Same,
            true => Heard::MadeAgain,
        }
    }

    /// Its leader has served it.
    pub(crate) fn note_served(&mut self, now: Instant, by_id: bool) {
        (self.is_served, self.is_served_by_id, self.is_refused) = (true, by_id, false);
        if let Some(rumour) = &mut self.rumour {
            match by_id {
                true => rumour.since = now,
                false => rumour.is_served_by_name = true,
            }
        }
    }

    /// Its leader has refused it for this code.
    pub(crate) fn note_refused(&mut self, code: i16) {
        self.is_refused |=
            matches!(code, UNKNOWN_TOPIC_OR_PARTITION | UNKNOWN_TOPIC_ID | INCONSISTENT_TOPIC_ID);
    }

    /// The leader's log does not have the position. True, and as good as a refusal, if it was asked by name while
    /// metadata name another id.
    pub(crate) fn note_misfit(&mut self, by_id: bool) -> bool {
        let is_another = !by_id && self.rumour.is_some();
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
    /// another log. For those that are `named` by whoever assigns them another id counts at once.
    pub(crate) fn set_topic_ids(
        &mut self,
        now: Instant,
        told: impl Fn(&Arc<str>) -> Told,
        named: impl Fn(&TopicPartition) -> bool,
    ) -> Vec<TopicPartition> {
        let mut again = Vec::new();
        let mut last: Option<(&Arc<str>, Told)> = None;
        for (key, partition) in &mut self.partitions {
            let told = match last {
                Some((topic, told)) if Arc::ptr_eq(topic, &key.topic) => told,
                _ => told(&key.topic),
            };
            last = Some((&key.topic, told));
            if told.id == partition.topic_id || told.id == TopicId::default() {
                partition.rumour = None;
                continue;
            }
            let is_named = are_two_lives(partition.topic_id, told.id) && named(key);
            match partition.hear(now, told) {
                _ if is_named => again.push(key.clone()),
                Heard::MadeAgain => again.push(key.clone()),
                Heard::Same if partition.rumour.is_some() => {
                    warn!(partition = %key, "the topic has another id, and its leader serves the position by name: reading goes on \
                        there, though the topic may have been made again");
                }
                Heard::Same => {}
                Heard::Unclear => continue,
            }
            partition.topic_id = told.id;
            (partition.rumour, partition.is_refused, partition.is_served_by_id) = (None, false, false);
            // Whether or not it was assigned when that happened.
            match self.known.get_mut(&key.topic) {
                Some((known, _)) if *known == told.id => {}
                Some(known) => *known = (told.id, self.lives.begin()),
                None => drop(self.known.insert(Arc::clone(&key.topic), (told.id, Life::NONE))),
            }
            mark(&mut partition.is_touched, key, &mut self.touched);
        }
        self.is_rumoured = self.partitions.values().any(|partition| partition.rumour.is_some());
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

    /// Whether metadata tell of another id than that which one is read by.
    pub(crate) fn has_rumour(&self) -> bool {
        self.is_rumoured
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
