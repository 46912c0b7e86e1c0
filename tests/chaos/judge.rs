//! What was sent, acknowledged, in the log, handled and committed, and what of it must never be. Pure: no clients.

use std::collections::BTreeMap;

/// A record by who sent it and which of that producer's it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) producer: u32,
    pub(crate) number: u64,
}

/// A partition of one of the topics. Small: a long run keeps some ten million of them.
pub(crate) type Place = (u16, u16);

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

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    told: Option<Told>,
    in_log: bool,
}

/// Everything seen in one run.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Of each producer, by the record's number.
    sent: BTreeMap<u32, Vec<Seen>>,
    /// The last record of a producer in a place.
    last: BTreeMap<(u32, Place), u64>,
    group: BTreeMap<Place, Progress>,
    pub(crate) handled: u64,
    pub(crate) handled_again: u64,
    pub(crate) violations: Vec<String>,
}

/// How far the group has come in a place.
#[derive(Debug, Default)]
struct Progress {
    /// The next offset that nobody has handled.
    frontier: i64,
    /// So much is committed at least: seen at the coordinator, or told to who has committed it.
    committed: i64,
    /// The highest that a member was told is committed.
    told: i64,
    /// The last commit in the coordinator's log.
    stored: i64,
    /// By member, where it goes on; those that were told that it is theirs, and not that it is gone.
    owners: BTreeMap<u32, Reading>,
}

#[derive(Debug)]
struct Reading {
    /// The committed offset when reading began. Records before it need not be handed out any more.
    floor: i64,
    next: Option<i64>,
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
        if self.seen(record).told.replace(told).is_some() {
            self.violations.push(format!("{record:?} got two answers"));
        }
    }

    fn seen(&mut self, record: Record) -> &mut Seen {
        let sent = self.sent.entry(record.producer).or_default();
        let index = usize::try_from(record.number).unwrap();
        if sent.len() <= index {
            sent.resize(index + 1, Seen::default());
        }
        &mut sent[index]
    }

    /// A member is told that a place is its own.
    pub(crate) fn assigned(&mut self, member: u32, place: Place) {
        let progress = self.group.entry(place).or_default();
        let reading = Reading { floor: progress.committed, next: None };
        if progress.owners.insert(member, reading).is_some() {
            self.violations.push(format!("member {member} was given {place:?} twice"));
        }
    }

    /// A member is told that a place is not its own any more.
    pub(crate) fn given_up(&mut self, member: u32, place: Place) {
        if self.group.entry(place).or_default().owners.remove(&member).is_none() {
            self.violations.push(format!("member {member} gave up {place:?}, which it did not have"));
        }
    }

    /// A member has ended, with or without a word.
    pub(crate) fn ended(&mut self, member: u32) {
        for progress in self.group.values_mut() {
            progress.owners.remove(&member);
        }
    }

    /// A member of the group was handed a record. Again is legal for what was not committed when its reading began.
    pub(crate) fn handled(&mut self, member: u32, place: Place, offset: i64) {
        let progress = self.group.entry(place).or_default();
        let wrong = match progress.owners.get_mut(&member) {
            None => Some("which it had given up".to_owned()),
            Some(Reading { floor, next }) => {
                let wrong = match next {
                    Some(next) if *next != offset => Some(format!("behind {next}")),
                    None if offset < *floor => Some(format!("and {floor} was committed before it began")),
                    _ => None,
                };
                *next = Some(offset + 1);
                wrong
            }
        };
        if let Some(wrong) = wrong {
            self.violations.push(format!("member {member} got {place:?} at {offset}, {wrong}"));
        }
        match offset.cmp(&progress.frontier) {
            std::cmp::Ordering::Equal => {
                progress.frontier += 1;
                self.handled += 1;
            }
            std::cmp::Ordering::Less => self.handled_again += 1,
            std::cmp::Ordering::Greater => {
                let frontier = std::mem::replace(&mut progress.frontier, offset + 1);
                self.violations.push(format!(
                    "member {member} got {place:?} at {offset}, and nobody has handled {frontier}"
                ));
            }
        }
    }

    /// Where a member stands in each of its places.
    pub(crate) fn positions(&self, member: u32) -> Vec<(Place, i64)> {
        let position =
            |(place, progress): (&Place, &Progress)| Some((*place, progress.owners.get(&member)?.next?));
        self.group.iter().filter_map(position).collect()
    }

    /// A member was told that so much is committed.
    pub(crate) fn commit_told(&mut self, positions: &[(Place, i64)]) {
        for (place, offset) in positions {
            let progress = self.group.entry(*place).or_default();
            progress.committed = progress.committed.max(*offset);
            progress.told = progress.told.max(*offset);
        }
    }

    /// The group's committed offset, as its coordinator tells it now. It may be an old one: a coordinator that has just begun
    /// answers by its high watermark, which may be behind what the coordinator before it has acknowledged.
    pub(crate) fn committed(&mut self, place: Place, offset: i64) {
        let progress = self.group.entry(place).or_default();
        let frontier = progress.frontier;
        if offset > frontier {
            self.violations
                .push(format!("{place:?} is committed up to {offset}, and handled up to {frontier}"));
        }
        progress.committed = progress.committed.max(offset);
    }

    /// The next commit in the coordinator's log, from its first on.
    pub(crate) fn commit_in_log(&mut self, place: Place, offset: i64) {
        let progress = self.group.entry(place).or_default();
        let before = std::mem::replace(&mut progress.stored, offset);
        if offset < before {
            self.violations.push(format!("the commit of {place:?} went back from {before} to {offset}"));
        }
    }

    /// To be called when all commits in the log are there.
    pub(crate) fn commits_end(&mut self) {
        for (place, Progress { told, stored, .. }) in &self.group {
            if stored < told {
                self.violations
                    .push(format!("{place:?} was said to be committed up to {told}, and is up to {stored}"));
            }
        }
    }

    /// The next record of a place's log, from its first offset on. To be called when all answers are there.
    pub(crate) fn in_log(&mut self, place: Place, offset: i64, record: Record) {
        let mut wrong = Vec::new();
        let before = std::mem::replace(self.last.entry((record.producer, place)).or_insert(0), record.number);
        if record.number < before {
            wrong.push(format!("reordered: {record:?} behind {before} in {place:?} at {offset}"));
        }
        let seen = self.seen(record);
        if std::mem::replace(&mut seen.in_log, true) {
            wrong.push(format!("doubled: {record:?}, again in {place:?} at {offset}"));
        }
        match seen.told {
            Some(Told::Acknowledged(at, told)) if at != place || told != offset && told != -1 => {
                wrong.push(format!(
                    "elsewhere: {record:?} was {:?} and is at {offset} in {place:?}",
                    seen.told
                ));
            }
            Some(Told::Never) => {
                wrong.push(format!("ghost: {record:?} was never written, and is in {place:?} at {offset}"));
            }
            None => wrong.push(format!("ghost: {record:?} is in the log, and nobody was told of it")),
            Some(Told::Acknowledged(..) | Told::Possibly) => {}
        }
        self.violations.append(&mut wrong);
    }

    /// The whole log was told: what is missing of it.
    pub(crate) fn log_ends(&mut self) -> Count {
        let mut count = Count::default();
        for (producer, sent) in &self.sent {
            for (number, seen) in (0..).zip(sent) {
                count.in_log += usize::from(seen.in_log);
                match seen.told {
                    Some(Told::Acknowledged(..)) => count.acknowledged += 1,
                    Some(Told::Possibly) => count.possibly += 1,
                    Some(Told::Never) => count.never += 1,
                    None => {}
                }
                if matches!(seen.told, Some(Told::Acknowledged(..))) && !seen.in_log {
                    let record = Record { producer: *producer, number };
                    self.violations.push(format!("lost: {record:?}, {:?}", seen.told));
                }
            }
        }
        count
    }

    /// How far the group has come in each place.
    pub(crate) fn frontier(&self) -> BTreeMap<Place, i64> {
        self.group.iter().map(|(place, progress)| (*place, progress.frontier)).collect()
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
        for (offset, number) in log {
            judge.in_log(PLACE, *offset, record(*number));
        }
        judge.log_ends();
        judge.violations.iter().map(|text| text.split(':').next().unwrap_or("").to_owned()).collect()
    }

    #[test]
    fn each_wrong_of_a_log_is_called_by_its_name() {
        let at = |offset| Told::Acknowledged(PLACE, offset);
        assert!(judged(&[(0, at(0)), (1, Told::Possibly), (2, Told::Never)], &[(0, 0), (1, 1)]).is_empty());
        assert_eq!(judged(&[(0, at(0))], &[]), ["lost"]);
        assert_eq!(judged(&[(0, at(1))], &[(0, 0)]), ["elsewhere"]);
        assert_eq!(judged(&[(0, at(-1))], &[(0, 0), (1, 0)]), ["doubled"]);
        assert_eq!(judged(&[(0, at(1)), (1, at(0))], &[(0, 1), (1, 0)]), ["reordered"]);
        assert_eq!(judged(&[(0, Told::Never)], &[(0, 0)]), ["ghost"]);
        assert_eq!(judged(&[], &[(0, 0)]), ["ghost"]);
    }

    #[test]
    fn each_wrong_of_a_group_is_seen() {
        let mut judge = Judge::default();
        judge.assigned(1, PLACE);
        judge.handled(1, PLACE, 0);
        judge.assigned(2, PLACE);
        judge.handled(2, PLACE, 0);
        judge.committed(PLACE, 1);
        assert!(judge.violations.is_empty());
        assert_eq!((judge.handled, judge.handled_again), (1, 1));
        judge.handled(2, PLACE, 2);
        assert_eq!(judge.violations.len(), 3 - 1, "1 was skipped, by it and by all");
        judge.committed(PLACE, 4);
        assert_eq!(judge.violations.len(), 3, "3 was not handled");
        for offset in [1, 3, 3] {
            judge.commit_in_log(PLACE, offset);
        }
        assert_eq!(judge.violations.len(), 3);
        judge.commit_in_log(PLACE, 2);
        assert_eq!(judge.violations.len(), 4, "it went back");
    }

    #[test]
    fn what_was_committed_is_handled_again_by_nobody_who_begins_later() {
        let mut judge = Judge::default();
        judge.assigned(1, PLACE);
        (0..5).for_each(|offset| judge.handled(1, PLACE, offset));
        // One that does not know yet that it was lost may go on; who follows begins at what is committed.
        judge.commit_told(&[(PLACE, 3)]);
        assert_eq!(judge.positions(1), [(PLACE, 5)]);
        judge.assigned(2, PLACE);
        (3..6).for_each(|offset| judge.handled(2, PLACE, offset));
        judge.handled(1, PLACE, 5);
        assert!(judge.violations.is_empty());
        judge.given_up(1, PLACE);
        judge.handled(1, PLACE, 6);
        assert_eq!(judge.violations.len(), 1, "it had given it up");
        judge.ended(2);
        judge.assigned(3, PLACE);
        judge.handled(3, PLACE, 2);
        assert_eq!(judge.violations.len(), 2, "it was committed");
        judge.commit_in_log(PLACE, 2);
        judge.commits_end();
        assert_eq!(judge.violations.len(), 3, "somebody was told Ok of more");
        judge.given_up(2, PLACE);
        assert_eq!(judge.violations.len(), 4, "it had nothing");
    }
}
