//! The transactions of one partition's log: which are open, which were aborted, and how far readers of committed
//! records may go (the last stable offset).
//!
//! Pure, and rebuilt from the batches whenever the log is cut.

use std::collections::BTreeMap;

/// A transaction that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    producer_id: i64,
    first: i64,
    /// Where its marker is.
    last: i64,
    aborted: bool,
}

/// A transaction that was aborted, as Fetch tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Aborted {
    pub(in super::super) producer_id: i64,
    pub(in super::super) first_offset: i64,
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Where the open transaction of a producer begins.
    open: BTreeMap<i64, i64>,
    /// In the order of their markers, as Apache Kafka's index of aborted transactions has it: not sorted by their beginnings.
    ended: Vec<Ended>,
}

impl Transactions {
    /// A transactional batch was appended.
    pub(super) fn appended(&mut self, producer_id: i64, offset: i64) {
        self.open.entry(producer_id).or_insert(offset);
    }

    /// A marker was appended. One without an open transaction changes nothing.
    pub(super) fn ended(&mut self, producer_id: i64, offset: i64, commit: bool) {
        if let Some(first) = self.open.remove(&producer_id) {
            self.ended.push(Ended { producer_id, first, last: offset, aborted: !commit });
        }
    }

    /// Where the open transaction of a producer begins.
    pub(super) fn start_of(&self, producer_id: i64) -> Option<i64> {
        self.open.get(&producer_id).copied()
    }

    /// The end of what is decided: the first record of a transaction that is open, or whose marker is not yet below
    /// the high watermark.
    pub(super) fn last_stable(&self, high_watermark: i64) -> i64 {
        let undecided = self.ended.iter().rev().take_while(|t| t.last >= high_watermark).map(|t| t.first);
        undecided.chain(self.open.values().copied()).chain([high_watermark]).min().unwrap_or(high_watermark)
    }

    /// The aborted transactions with records from `from` up to, not including, `to`.
    pub(super) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let meets = |t: &&Ended| t.aborted && t.first < to;
        let told = |t: &Ended| Aborted { producer_id: t.producer_id, first_offset: t.first };
        self.ended_since(from).iter().filter(meets).map(told).collect()
    }

    /// Does a transactional batch belong to an aborted transaction?
    pub(super) fn is_aborted(&self, producer_id: i64, offset: i64) -> bool {
        let holds = |t: &&Ended| t.producer_id == producer_id && t.first <= offset;
        self.ended_since(offset).iter().find(holds).is_some_and(|t| t.aborted)
    }

    fn ended_since(&self, offset: i64) -> &[Ended] {
        &self.ended[self.ended.partition_point(|t| t.last < offset)..]
    }

    /// Forgets what ended before the log's new start.
    pub(super) fn started_at(&mut self, start: i64) {
        self.ended.retain(|t| t.last >= start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_transaction_holds_readers_back() {
        let mut log = Transactions::default();
        log.appended(7, 10);
        log.appended(8, 12);
        log.appended(7, 14);
        assert_eq!(log.last_stable(20), 10);
        log.ended(7, 15, true);
        assert_eq!(log.last_stable(20), 12);
        log.ended(8, 16, false);
        assert_eq!(log.last_stable(20), 20);
    }

    #[test]
    fn the_aborted_come_in_the_order_of_their_ends() {
        let mut log = Transactions::default();
        log.appended(7, 10);
        log.appended(8, 12);
        log.ended(8, 13, false);
        log.ended(7, 14, false);
        let told: Vec<i64> = log.aborted(0, 20).iter().map(|a| a.first_offset).collect();
        assert_eq!(told, [12, 10]);
        assert!(log.is_aborted(7, 11) && !log.is_aborted(9, 11) && !log.is_aborted(7, 15));
    }

    #[test]
    fn a_marker_that_is_not_replicated_decides_nothing() {
        let mut log = Transactions::default();
        log.appended(7, 10);
        log.ended(7, 15, true);
        assert_eq!(log.last_stable(15), 10);
        assert_eq!(log.last_stable(16), 16);
    }

    #[test]
    fn aborted_transactions_are_told_to_those_who_read_over_them() {
        let mut log = Transactions::default();
        log.appended(7, 10);
        log.ended(7, 15, false);
        log.appended(8, 16);
        log.ended(8, 18, true);
        let told = [Aborted { producer_id: 7, first_offset: 10 }];
        assert_eq!(log.aborted(0, 11), told);
        assert_eq!(log.aborted(15, 30), told);
        assert_eq!(log.aborted(0, 10), []);
        assert_eq!(log.aborted(16, 30), []);
        log.started_at(16);
        assert_eq!(log.aborted(0, 30), []);
    }
}
