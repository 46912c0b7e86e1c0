//! The transactions of one partition's log: which are open, which were aborted, and how far readers of committed
//! records may go (the last stable offset).
//!
//! Pure, and rebuilt from the batches whenever the log is cut.

/// One transaction's part of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Logged {
    producer_id: i64,
    first: i64,
    /// Where its marker is; `None` while it is open.
    last: Option<i64>,
    aborted: bool,
}

/// A transaction that was aborted, as Fetch tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Aborted {
    pub(in super::super) producer_id: i64,
    pub(in super::super) first_offset: i64,
}

/// In the order of their first offsets.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    all: Vec<Logged>,
}

impl Transactions {
    /// A transactional batch was appended.
    pub(super) fn appended(&mut self, producer_id: i64, offset: i64) {
        if self.start_of(producer_id).is_none() {
            self.all.push(Logged { producer_id, first: offset, last: None, aborted: false });
        }
    }

    /// A marker was appended. One without an open transaction changes nothing.
    pub(super) fn ended(&mut self, producer_id: i64, offset: i64, commit: bool) {
        let open = self.all.iter_mut().find(|t| t.producer_id == producer_id && t.last.is_none());
        if let Some(open) = open {
            open.last = Some(offset);
            open.aborted = !commit;
        }
    }

    /// Where the open transaction of a producer begins.
    pub(super) fn start_of(&self, producer_id: i64) -> Option<i64> {
        self.all.iter().find(|t| t.producer_id == producer_id && t.last.is_none()).map(|t| t.first)
    }

    /// The end of what is decided: the first record of a transaction that is open, or whose marker is not yet below
    /// the high watermark.
    pub(super) fn last_stable(&self, high_watermark: i64) -> i64 {
        let undecided = |t: &&Logged| t.last.is_none_or(|last| last >= high_watermark);
        let first = self.all.iter().filter(undecided).map(|t| t.first).min();
        first.map_or(high_watermark, |first| first.min(high_watermark))
    }

    /// The aborted transactions with records from `from` up to, not including, `to`.
    pub(super) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let meets = |t: &&Logged| t.aborted && t.first < to && t.last.is_some_and(|last| last >= from);
        let told = |t: &Logged| Aborted { producer_id: t.producer_id, first_offset: t.first };
        self.all.iter().filter(meets).map(told).collect()
    }

    /// Does a transactional batch belong to an aborted transaction?
    pub(super) fn is_aborted(&self, producer_id: i64, offset: i64) -> bool {
        let holds = |t: &&Logged| t.first <= offset && t.last.is_some_and(|last| offset <= last);
        self.all.iter().filter(|t| t.producer_id == producer_id).find(holds).is_some_and(|t| t.aborted)
    }

    /// Forgets what ended before the log's new start.
    pub(super) fn started_at(&mut self, start: i64) {
        self.all.retain(|t| t.last.is_none_or(|last| last >= start));
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
