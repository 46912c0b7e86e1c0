//! Which records wait for their handlers, and up to where a partition is handled. Pure: no handler, no clock, no socket.
//!
//! ```text
//!   polled ──push──> waiting ──handled──> frontier ──committed──> (forgotten)
//!                       │
//!                       └──rewind──> fetched again later
//! ```
//! The frontier never passes a record that was not handled, for the head of the queue alone can be handled, and records of
//! a partition stand in the queue in the order of their offsets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::record::{ConsumerRecord, TopicPartition};

/// Offsets of the next record, by partition.
pub(super) type Offsets = BTreeMap<TopicPartition, i64>;

#[derive(Debug, Default)]
pub(crate) struct Dispatch {
    /// Handed out by the client, not yet handled; the first may be in its handlers.
    waiting: VecDeque<ConsumerRecord>,
    /// Handled but not yet committed: the offset after the last record handled.
    frontier: Offsets,
}

impl Dispatch {
    /// Takes the records of a poll.
    pub(crate) fn push(&mut self, records: impl IntoIterator<Item = ConsumerRecord>) {
        self.waiting.extend(records);
    }

    /// The record whose turn it is.
    pub(super) fn head(&self) -> Option<&ConsumerRecord> {
        self.waiting.front()
    }

    /// The record was handled, or its error was dealt with. Does nothing if it was given up in the meantime.
    pub(super) fn handled(&mut self, record: &ConsumerRecord) -> bool {
        let is_head = self.waiting.front().is_some_and(|head| is_same(head, record));
        if is_head {
            self.waiting.pop_front();
            // Not the maximum: after the log was cut or the topic made again, the right offset is a smaller one.
            self.frontier.insert(partition_of(record), record.offset + 1);
        }
        is_head
    }

    /// Forgets what waits, and says where each partition must go on for it to come again.
    pub(super) fn rewind(&mut self) -> Offsets {
        let mut first = Offsets::new();
        for record in self.waiting.drain(..) {
            first.entry(partition_of(&record)).or_insert(record.offset);
        }
        first
    }

    /// Forgets everything of partitions that are another member's now.
    pub(super) fn retain(&mut self, assigned: &[TopicPartition]) {
        let assigned: BTreeSet<&TopicPartition> = assigned.iter().collect();
        self.waiting.retain(|record| assigned.contains(&partition_of(record)));
        self.frontier.retain(|partition, _| assigned.contains(partition));
    }

    /// What may be committed now.
    pub(super) fn frontier(&self) -> &Offsets {
        &self.frontier
    }

    /// These offsets were committed.
    pub(super) fn committed(&mut self, offsets: &Offsets) {
        self.frontier.retain(|partition, offset| offsets.get(partition) != Some(offset));
    }

    /// Forgets everything: the next client starts at what is committed.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.frontier.clear();
    }
}

fn partition_of(record: &ConsumerRecord) -> TopicPartition {
    TopicPartition::new(record.topic.clone(), record.partition)
}

fn is_same(one: &ConsumerRecord, other: &ConsumerRecord) -> bool {
    (one.offset, one.partition) == (other.offset, other.partition) && one.topic == other.topic
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facade::handler::test_record;

    fn record(partition: i32, offset: i64) -> ConsumerRecord {
        test_record("orders", partition, offset, "{}")
    }

    fn offsets(list: &[(i32, i64)]) -> Offsets {
        list.iter().map(|(partition, offset)| (TopicPartition::new("orders", *partition), *offset)).collect()
    }

    fn handle_head(dispatch: &mut Dispatch) {
        let head = dispatch.head().unwrap().clone();
        assert!(dispatch.handled(&head));
    }

    #[test]
    fn the_frontier_follows_what_is_handled_and_never_what_waits() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 9), record(1, 3)]);
        assert!(dispatch.frontier().is_empty());
        handle_head(&mut dispatch);
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 6)]));
        handle_head(&mut dispatch);
        handle_head(&mut dispatch);
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 10), (1, 4)]), "gaps of compaction are passed");
        assert!(dispatch.head().is_none());
    }

    #[test]
    fn a_commit_clears_what_it_covers_and_keeps_what_was_handled_meanwhile() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(1, 3), record(0, 6)]);
        handle_head(&mut dispatch);
        handle_head(&mut dispatch);
        let sent = dispatch.frontier().clone();
        handle_head(&mut dispatch);
        dispatch.committed(&sent);
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 7)]));
    }

    #[test]
    fn a_rewind_goes_back_to_the_first_record_of_each_partition_that_waits() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6), record(1, 3), record(1, 4)]);
        handle_head(&mut dispatch);
        assert_eq!(dispatch.rewind(), offsets(&[(0, 6), (1, 3)]));
        assert!(dispatch.head().is_none());
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 6)]), "what was handled stays handled");
    }

    #[test]
    fn a_partition_that_was_taken_away_is_neither_handled_nor_committed() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6), record(1, 3)]);
        handle_head(&mut dispatch);
        let running = dispatch.head().unwrap().clone();
        dispatch.retain(&[TopicPartition::new("orders", 1)]);
        assert!(!dispatch.handled(&running), "its handler ended after the partition had gone");
        assert!(dispatch.frontier().is_empty());
        assert_eq!(dispatch.head().unwrap().partition, 1);
    }

    #[test]
    fn a_topic_made_again_is_committed_at_its_new_small_offsets() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 100), record(0, 0)]);
        handle_head(&mut dispatch);
        handle_head(&mut dispatch);
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 1)]));
    }
}
