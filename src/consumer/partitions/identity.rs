//! Which topic of its name a partition is of (KIP-516): a topic that was deleted and made again has another id and another log,
//! in which a position of the old one means nothing. Pure.
//!
//! What one broker says of the id may be behind what the others know, and nothing in an id says which of two is the later one. So
//! a position is not given up for what the metadata say alone: the leader, which has the log, serves the id that it is read
//! by, or refuses it.

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
    /// Told of since, without a word of the leader and undisputed.
    since: Instant,
    /// The leader has served it meanwhile, by its name.
    is_served_by_name: bool,
}

/// For so long, as longer than a broker is behind that is asked again and again.
const BELIEVED_AFTER: Duration = Duration::from_secs(20);

/// What the group had of the topic of this name before it was made again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    offset: i64,
    /// This consumer has committed it: it is of the old one. What was found may have been of the new one already.
    is_own: bool,
    /// How often it was found since.
    found: u32,
}

/// So often, a second apart, the coordinator must tell the same before it counts as committed for the new topic. It drops the offsets
/// of a topic with the topic, within moments.
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
    /// What to make of another id than that which it has.
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

    /// The log that its leader has under the name does not have the position. True if that is since another id is told of.
    pub(crate) fn note_misfit(&mut self, by_id: bool) -> bool {
        let is_another = !by_id && self.rumour.is_some();
        self.is_refused |= is_another;
        is_another
    }

    /// Of which topic of its name this committed offset is, which is known by name.
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
    /// Takes over the ids of the topics. The partitions of topics that were made again: what is known of them is of another log.
    /// Those that are `named` by whoever assigns them are so at once.
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

    /// A leader has answered in a session, and refused nothing. It names only what has news, and an id that it does not know always:
    /// whatever it was `asked` for by an id that it has served is served still. Else an idle topic would seem to be served by nobody.
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

    /// The topic was made again: nothing that is known of the partition, or done with, is of the log that there is now. What was
    /// committed until now is not either, if that was by this consumer.
    pub(crate) fn begin_again(&mut self, key: &TopicPartition, phase: Phase) {
        if let Some(partition) = self.partitions.get_mut(key) {
            let committed = partition.account.committed();
            let before =
                committed.map(|known| Before { offset: known.offset, is_own: known.is_own, found: 0 });
            partition.committed_before = before.or(partition.committed_before);
        }
        self.forget(key, phase);
    }

    /// Nothing is known of the partition, nor done with. What the group has committed of it stands.
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
