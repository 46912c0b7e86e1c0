//! What was sent, acknowledged, in the log, handled and committed, and what of it must never be. Pure: no clients.

use std::collections::{BTreeMap, BTreeSet};

/// A record by who sent it and which of that producer's it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) producer: u32,
    pub(crate) number: u64,
}

/// A partition of one of the topics.
pub(crate) type Place = (usize, i32);

/// What the producer was told of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Acknowledged at this place and offset; -1 where the broker no longer knew it.
    Acknowledged(Place, i64),
    /// Failed, and may be in the log.
    Possibly,
    /// Failed, and is not in the log.
    Never,
}

/// Everything seen in one run.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    told: BTreeMap<Record, Told>,
    /// Per place, the next offset that nobody has handled.
    frontier: BTreeMap<Place, i64>,
    committed: BTreeMap<Place, i64>,
    pub(crate) handled: u64,
    pub(crate) handled_again: u64,
    pub(crate) violations: Vec<String>,
}

/// What came of the records, in numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) acknowledged: usize,
    pub(crate) possibly: usize,
    pub(crate) never: usize,
    pub(crate) in_log: usize,
}

impl Judge {
    pub(crate) fn told(&mut self, record: Record, told: Told) {
        if self.told.insert(record, told).is_some() {
            self.violations.push(format!("{record:?} got two answers"));
        }
    }

    /// A member of the group was handed a record.
    pub(crate) fn handled(&mut self, member: &str, place: Place, offset: i64) {
        let frontier = self.frontier.entry(place).or_insert(0);
        match offset.cmp(frontier) {
            std::cmp::Ordering::Equal => {
                *frontier += 1;
                self.handled += 1;
            }
            std::cmp::Ordering::Less => self.handled_again += 1,
            std::cmp::Ordering::Greater => {
                let text = format!("{member} got {place:?} at {offset}, and nobody has handled {frontier}");
                *frontier = offset + 1;
                self.violations.push(text);
            }
        }
    }

    /// The group's committed offset, as the coordinator tells it.
    pub(crate) fn committed(&mut self, place: Place, offset: i64) {
        let frontier = self.frontier.get(&place).copied().unwrap_or(0);
        if offset > frontier {
            self.violations
                .push(format!("{place:?} is committed up to {offset}, and handled up to {frontier}"));
        }
        let before = self.committed.entry(place).or_insert(0);
        if offset < *before {
            self.violations.push(format!("the commit of {place:?} went back from {before} to {offset}"));
        }
        *before = offset;
    }

    /// Compares with the whole log: the records of each place in order, from its first offset on.
    pub(crate) fn log(&mut self, log: &BTreeMap<Place, Vec<(i64, Record)>>) -> Count {
        let mut found: BTreeMap<Record, (Place, i64)> = BTreeMap::new();
        let mut last: BTreeMap<(u32, Place), u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (place, records) in log {
            for (offset, record) in records {
                if let Some(first) = found.insert(*record, (*place, *offset)) {
                    wrong.push(format!("doubled: {record:?} at {first:?} and {place:?} {offset}"));
                }
                let before = last.entry((record.producer, *place)).or_insert(record.number);
                if record.number < *before {
                    wrong.push(format!("reordered: {record:?} behind {before} in {place:?} at {offset}"));
                }
                *before = record.number;
            }
        }
        let mut count = Count { in_log: found.len(), ..Count::default() };
        for (record, told) in &self.told {
            match (told, found.get(record)) {
                (Told::Acknowledged(place, offset), Some(at))
                    if at == &(*place, *offset) || (*offset == -1 && at.0 == *place) => {}
                (Told::Acknowledged(..), Some(at)) => {
                    wrong.push(format!("elsewhere: {record:?} was {told:?} and is at {at:?}"));
                }
                (Told::Acknowledged(..), None) => wrong.push(format!("lost: {record:?}, {told:?}")),
                (Told::Never, Some(at)) => {
                    wrong.push(format!("ghost: {record:?} was never written, and is at {at:?}"))
                }
                (Told::Never, None) | (Told::Possibly, _) => {}
            }
            match told {
                Told::Acknowledged(..) => count.acknowledged += 1,
                Told::Possibly => count.possibly += 1,
                Told::Never => count.never += 1,
            }
        }
        let known: BTreeSet<&Record> = self.told.keys().collect();
        for record in found.keys().filter(|record| !known.contains(record)) {
            wrong.push(format!("ghost: {record:?} is in the log, and nobody was told of it"));
        }
        self.violations.append(&mut wrong);
        count
    }

    /// How far the group has come in each place.
    pub(crate) fn frontier(&self) -> &BTreeMap<Place, i64> {
        &self.frontier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (0, 0);

    fn record(number: u64) -> Record {
        Record { producer: 1, number }
    }

    fn judged(told: &[(u64, Told)], log: &[(i64, u64)]) -> Vec<String> {
        let mut judge = Judge::default();
        for (number, told) in told {
            judge.told(record(*number), *told);
        }
        let records = log.iter().map(|(offset, number)| (*offset, record(*number))).collect();
        judge.log(&BTreeMap::from([(PLACE, records)]));
        judge.violations.iter().map(|text| text.split(':').next().unwrap_or("").to_owned()).collect()
    }

    #[test]
    fn each_wrong_of_a_log_is_called_by_its_name() {
        let at = |offset| Told::Acknowledged(PLACE, offset);
        assert!(judged(&[(0, at(0)), (1, Told::Possibly), (2, Told::Never)], &[(0, 0), (1, 1)]).is_empty());
        assert_eq!(judged(&[(0, at(0))], &[]), ["lost"]);
        assert_eq!(judged(&[(0, at(1))], &[(0, 0)]), ["elsewhere"]);
        assert_eq!(judged(&[(0, at(1))], &[(0, 0), (1, 0)]), ["doubled"]);
        assert_eq!(judged(&[(0, at(1)), (1, at(0))], &[(0, 1), (1, 0)]), ["reordered"]);
        assert_eq!(judged(&[(0, Told::Never)], &[(0, 0)]), ["ghost"]);
        assert_eq!(judged(&[], &[(0, 0)]), ["ghost"]);
    }

    #[test]
    fn each_wrong_of_a_group_is_seen() {
        let mut judge = Judge::default();
        judge.handled("a", PLACE, 0);
        judge.handled("b", PLACE, 0);
        judge.committed(PLACE, 1);
        assert!(judge.violations.is_empty());
        assert_eq!((judge.handled, judge.handled_again), (1, 1));
        judge.handled("b", PLACE, 2);
        assert_eq!(judge.violations.len(), 1, "1 was skipped");
        judge.committed(PLACE, 4);
        assert_eq!(judge.violations.len(), 2, "3 was not handled");
        judge.committed(PLACE, 3);
        assert_eq!(judge.violations.len(), 3, "it went back");
    }
}
