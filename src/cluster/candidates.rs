//! In which order brokers are tried when any of them will do. Pure.
//!
//! Open connections come first, the least loaded of them before the others. Then come those that failed least, in random
//! order, so that clients spread. The bootstrap addresses stand behind the first known brokers, not behind all of them
//! (KIP-899): where every known broker is gone, the way back is found before all of them were tried.

use crate::{sorted, time::Rng};

/// A broker, or a bootstrap address (a negative id).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: i32,
    /// Calls in flight on its open connection; `None` if there is no connection.
    pub(crate) load: Option<usize>,
    /// Attempts to connect that failed, or were overtaken by another candidate, since the last that succeeded.
    pub(crate) failures: u32,
}

impl Candidate {
    fn is_bootstrap(&self) -> bool {
        self.id < 0
    }
}

/// How many known brokers come before the first bootstrap address.
const KNOWN_FIRST: usize = 2;

/// The ids in the order in which to try them.
pub(crate) fn order(mut candidates: Vec<Candidate>, rng: &mut Rng) -> Vec<i32> {
    for index in (1..candidates.len()).rev() {
        candidates.swap(index, rng.below(index + 1));
    }
    // The sort is stable, so that equal ones stay shuffled.
    let rank = |candidate: &Candidate| (candidate.load.unwrap_or(usize::MAX), candidate.failures);
    sorted::sort_by(&mut candidates, |a, b| rank(a).cmp(&rank(b)));
    let (open, closed): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.load.is_some());
    let (bootstrap, known): (Vec<_>, Vec<_>) = closed.into_iter().partition(Candidate::is_bootstrap);
    let mut order: Vec<i32> = open.iter().map(|candidate| candidate.id).collect();
    let (mut known, mut bootstrap) = (known.into_iter().peekable(), bootstrap.into_iter().peekable());
    for turn in 0.. {
        let bootstrap_next = match (known.peek(), bootstrap.peek()) {
            (None, None) => break,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(known), Some(bootstrap)) => {
                known.failures > bootstrap.failures || (turn >= KNOWN_FIRST && turn % 2 == 0)
            }
        };
        let next = if bootstrap_next { bootstrap.next() } else { known.next() };
        order.extend(next.map(|candidate| candidate.id));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(id: i32) -> Candidate {
        Candidate { id, load: None, failures: 0 }
    }

    #[test]
    fn open_connections_come_first_and_the_least_loaded_before_the_others() {
        let open = |id, load| Candidate { load: Some(load), ..fresh(id) };
        for seed in 0..20 {
            let all = vec![fresh(1), open(2, 7), fresh(-1), open(3, 0), open(4, 2)];
            let order = order(all, &mut Rng::new(seed));
            assert_eq!(order[..3], [3, 4, 2]);
            assert_eq!(order.len(), 5);
        }
    }

    #[test]
    fn each_candidate_is_first_in_some_order() {
        let mut first: Vec<i32> =
            (0..100).map(|seed| order((-5..0).map(fresh).collect(), &mut Rng::new(seed))[0]).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first, [-5, -4, -3, -2, -1]);
    }

    #[test]
    fn a_bootstrap_address_is_third_even_where_a_hundred_brokers_are_known() {
        let all: Vec<_> = (1..=100).map(fresh).chain([fresh(-1), fresh(-2)]).collect();
        let order = order(all, &mut Rng::new(7));
        assert_eq!(order.iter().position(|id| *id < 0), Some(2));
        assert_eq!(order.iter().filter(|id| **id < 0).count(), 2);
        assert_eq!(order.len(), 102);
    }

    #[test]
    fn who_failed_comes_after_who_did_not_and_a_bootstrap_address_before_brokers_that_failed() {
        let failed = |id, failures| Candidate { failures, ..fresh(id) };
        for seed in 0..20 {
            let all = vec![failed(1, 3), failed(2, 1), fresh(-1), failed(-2, 2)];
            assert_eq!(order(all, &mut Rng::new(seed)), [-1, 2, -2, 1]);
        }
    }
}
