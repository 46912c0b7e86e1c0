//! The broker's only source of chance: one seed, one sequence (SplitMix64). The same seed and the same requests in the
//! same order give the same run. Not for secrets.

use std::sync::{Mutex, PoisonError};

/// A generator that many connections share.
#[derive(Debug)]
pub(super) struct Random {
    state: Mutex<u64>,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: Mutex::new(seed) }
    }

    pub(super) fn next(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 for a bound of 0.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// True with this probability (0 to 1). Certainties draw nothing.
    pub(super) fn happens(&self, probability: f64) -> bool {
        if probability >= 1.0 {
            return true;
        }
        // 53 bits, the precision of a double.
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let random = Random::new(seed);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn chances_come_about_as_often_as_asked() {
        let random = Random::new(1);
        let hits = (0..10_000).filter(|_| random.happens(0.25)).count();
        assert!((2_300..2_700).contains(&hits), "{hits}");
        assert!(!random.happens(0.0) && random.happens(1.0));
    }
}
