//! Who has which partition and when, by what the members are told: how long partitions have no owner, and which are taken
//! away without going anywhere. Pure: no clients, no clock.

use std::{collections::BTreeMap, time::Duration};

use crate::judge::Place;

/// The group's partitions over time. What comes before the first owner of one does not count.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    places: BTreeMap<Place, Ownership>,
    /// Partitions that another member has got than the one before.
    pub(crate) moved: usize,
    /// Partitions that a member gave up in a rebalance and got back, with nobody who had them meanwhile.
    pub(crate) given_back: usize,
}

#[derive(Debug, Default)]
struct Ownership {
    /// Members that have it and are there; more than one where one does not know yet that it was lost.
    present: Vec<u32>,
    /// Since when nobody has it.
    since: Option<Duration>,
    without: Duration,
    /// Who had it last, and whether it was revoked from there.
    last: Option<u32>,
    revoked: bool,
}

impl Owners {
    pub(crate) fn assigned(&mut self, now: Duration, member: u32, place: Place) {
        let ownership = self.places.entry(place).or_default();
        if let Some(since) = ownership.since.take() {
            ownership.without += now - since;
        }
        match ownership.last.replace(member) {
            Some(last) if last != member => self.moved += 1,
            Some(_) if ownership.revoked => self.given_back += 1,
            _ => {}
        }
        ownership.revoked = false;
        ownership.present.push(member);
    }

    /// It is told that it has it no more.
    pub(crate) fn given_up(&mut self, now: Duration, member: u32, place: Place, revoked: bool) {
        let ownership = self.places.entry(place).or_default();
        ownership.leaves(now, member);
        if ownership.last == Some(member) {
            ownership.revoked = revoked;
        }
    }

    /// It has ended, or is away for so long that it has none of its partitions any more, whatever it thinks.
    pub(crate) fn away(&mut self, now: Duration, member: u32) {
        for ownership in self.places.values_mut() {
            ownership.leaves(now, member);
        }
    }

    /// The share of the time between two moments in which a partition had no owner, over all partitions.
    pub(crate) fn share_without(&self, from: Duration, to: Duration) -> f64 {
        let without = self.places.values().map(|ownership| {
            ownership.without + ownership.since.map_or(Duration::ZERO, |since| to.saturating_sub(since))
        });
        let all = (to - from).as_secs_f64() * self.places.len().max(1) as f64;
        without.sum::<Duration>().as_secs_f64() / all
    }
}

impl Ownership {
    fn leaves(&mut self, now: Duration, member: u32) {
        let before = self.present.len();
        self.present.retain(|owner| *owner != member);
        if self.present.is_empty() && before > 0 {
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (0, 0);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_time_without_an_owner_is_counted_and_what_was_taken_for_nothing() {
        let mut owners = Owners::default();
        for place in [PLACE, (0, 1)] {
            owners.assigned(at(1), 1, place);
        }
        owners.given_up(at(2), 1, PLACE, true);
        owners.assigned(at(4), 1, PLACE);
        assert_eq!((owners.moved, owners.given_back), (0, 1), "back to where it was");
        owners.given_up(at(5), 1, PLACE, true);
        owners.assigned(at(6), 2, PLACE);
        assert_eq!((owners.moved, owners.given_back), (1, 1));
        // It hears of its loss only when another has it.
        owners.assigned(at(7), 3, PLACE);
        owners.given_up(at(8), 2, PLACE, false);
        owners.away(at(9), 3);
        owners.assigned(at(10), 3, PLACE);
        assert_eq!((owners.moved, owners.given_back), (2, 1), "lost is not revoked");
        assert!((owners.share_without(at(0), at(10)) - 4.0 / 20.0).abs() < 1e-9);
    }
}
