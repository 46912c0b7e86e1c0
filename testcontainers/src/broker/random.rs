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
}
