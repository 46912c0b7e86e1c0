//! Which records wait for their handlers, and up to where a partition is handled. Pure: no handler, no clock, no socket.
//!
//! ```text
//!   polled ──push──> waiting ──take──> running ──handled──> frontier ──committed──> (forgotten)
//!                       │                 │
//!                       └─────────────────┴──rewind──> fetched again later
//! ```
//! The frontier never passes a record that was not handled, for the head of the queue alone is handed out, the next one only
//! when it was handled, and records of a partition stand in the queue in the order of their offsets. The record itself
//! belongs to its handlers while they run; where it stands is remembered here, for they may be dropped with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::record::{ConsumerRecord, TopicPartition};

/// Offsets of the next record, by partition.
pub(super) type Offsets = BTreeMap<TopicPartition, i64>;

#[derive(Debug, Default)]
pub(crate) struct Dispatch {
    /// Handed out by the client, not yet by us.
    waiting: VecDeque<ConsumerRecord>,
    /// Handed out by us, not yet handled.
    running: Option<Running>,
    /// Handled but not yet committed: the offset after the last record handled.
    frontier: Offsets,
}

/// Where a record stands that is in its handlers, or was when they were dropped.
#[derive(Debug)]
struct Running {
    partition: TopicPartition,
    offset: i64,
    /// Its partition was given up since.
    is_lost: bool,
}

impl Dispatch {
    /// Takes the records of a poll.
    pub(crate) fn push(&mut self, records: impl IntoIterator<Item = ConsumerRecord>) {
        self.waiting.extend(records);
    }

    /// The record whose turn it is. None while an earlier one is neither [`handled`](Self::handled) nor rewound.
    #[inline]
    pub(super) fn take(&mut self) -> Option<ConsumerRecord> {
        if self.running.is_some() {
            return None;
        }
        let record = self.waiting.pop_front()?;
        let partition = partition_of(&record);
        self.running = Some(Running { partition, offset: record.offset, is_lost: false });
        Some(record)
    }

    /// The record taken last was handled, or its error was dealt with. Says no if it was given up in the meantime.
    #[inline]
    pub(super) fn handled(&mut self) -> bool {
        let Some(Running { partition, offset, is_lost }) = self.running.take() else { return false };
        if is_lost {
            // The partition may have been given back to us, and the record have come again.
            let head = self.waiting.front();
            if !head.is_some_and(|head| head.offset == offset && partition_of(head) == partition) {
                return false;
            }
            self.waiting.pop_front();
        }
        // Not the maximum: after the log was cut or the topic made again, the right offset is a smaller one.
        self.frontier.insert(partition, offset + 1);
        true
    }

    /// Forgets what is not handled, and says where each partition must go on for it to come again.
    pub(super) fn rewind(&mut self) -> Offsets {
        let mut first = Offsets::new();
        if let Some(running) = self.running.take().filter(|running| !running.is_lost) {
            first.insert(running.partition, running.offset);
        }
        for record in self.waiting.drain(..) {
            first.entry(partition_of(&record)).or_insert(record.offset);
        }
        first
    }

    /// Forgets everything of partitions that are another member's now.
    pub(super) fn retain(&mut self, assigned: &[TopicPartition]) {
        let assigned: BTreeSet<(&str, i32)> = assigned.iter().map(|p| (&*p.topic, p.partition)).collect();
        self.waiting.retain(|record| assigned.contains(&(&*record.topic, record.partition)));
        self.frontier.retain(|partition, _| assigned.contains(&(&*partition.topic, partition.partition)));
        if let Some(Running { partition, is_lost, .. }) = &mut self.running {
            *is_lost |= !assigned.contains(&(&*partition.topic, partition.partition));
        }
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
        *self = Self::default();
    }
}

fn partition_of(record: &ConsumerRecord) -> TopicPartition {
    TopicPartition::new(record.topic.clone(), record.partition)
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
        dispatch.take().unwrap();
        assert!(dispatch.handled());
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
        assert!(dispatch.take().is_none());
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
        assert!(dispatch.take().is_none());
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 6)]), "what was handled stays handled");
    }

    #[test]
    fn a_partition_that_was_taken_away_is_neither_handled_nor_committed() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6), record(1, 3)]);
        handle_head(&mut dispatch);
        dispatch.take().unwrap();
        dispatch.retain(&[TopicPartition::new("orders", 1)]);
        assert!(!dispatch.handled(), "its handler ended after the partition had gone");
        assert!(dispatch.frontier().is_empty());
        assert_eq!(dispatch.take().unwrap().partition, 1);
    }

    #[test]
    fn a_record_whose_handler_was_dropped_comes_again_before_those_behind_it() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6), record(1, 3)]);
        dispatch.take().unwrap();
        assert!(dispatch.take().is_none(), "nothing passes a record that is not handled");
        assert!(dispatch.frontier().is_empty());
        assert_eq!(dispatch.rewind(), offsets(&[(0, 5), (1, 3)]));
        assert!(!dispatch.handled(), "nothing is running any more");
        dispatch.push([record(0, 5)]);
        handle_head(&mut dispatch);
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 6)]));
    }

    #[test]
    fn nothing_goes_back_to_a_record_of_a_partition_that_was_taken_away() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6), record(1, 3)]);
        dispatch.take().unwrap();
        dispatch.retain(&[TopicPartition::new("orders", 1)]);
        assert_eq!(dispatch.rewind(), offsets(&[(1, 3)]));
    }

    #[test]
    fn a_record_that_came_again_while_its_handler_ran_is_handled_once() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5), record(0, 6)]);
        dispatch.take().unwrap();
        dispatch.retain(&[]);
        dispatch.push([record(0, 5), record(0, 6)]);
        dispatch.retain(&[TopicPartition::new("orders", 0)]);
        assert!(dispatch.handled());
        assert_eq!(*dispatch.frontier(), offsets(&[(0, 6)]));
        assert_eq!(dispatch.take().unwrap().offset, 6);
    }

    #[test]
    fn a_record_of_a_partition_that_came_back_further_on_is_not_committed_behind_it() {
        let mut dispatch = Dispatch::default();
        dispatch.push([record(0, 5)]);
        dispatch.take().unwrap();
        dispatch.retain(&[]);
        dispatch.push([record(0, 9)]);
        assert!(!dispatch.handled(), "another member has handled it");
        assert!(dispatch.frontier().is_empty());
        assert_eq!(dispatch.take().unwrap().offset, 9);
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
