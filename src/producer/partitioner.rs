//! Which partition a record goes to. Pure.
//!
//! Keyed records: murmur2, so that a key lands where the Java client puts it. Others stick to one partition until it
//! has got `batch.size` bytes (KIP-480, KIP-794), then move to the less loaded of two.

use crate::time::Rng;

/// Java's murmur2 of a key.
pub(crate) fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = key.len() as u32;
    let mut hash = 0x9747_b28c ^ length;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    for (place, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key among `partitions`, as Java's default partitioner has it.
pub(crate) fn partition_of_key(key: &[u8], partitions: usize) -> usize {
    // Java: `Utils.toPositive(murmur2(key)) % numPartitions`.
    (murmur2(key) & 0x7fff_ffff) as usize % partitions.max(1)
}

/// The partition records without a key go to now.
#[derive(Debug)]
pub(crate) struct Sticky {
    current: usize,
    bytes: usize,
    rng: Rng,
}

impl Sticky {
    pub(crate) fn new(mut rng: Rng, partitions: usize) -> Self {
        Self { current: rng.below(partitions), bytes: 0, rng }
    }

    /// Counts a record of `size` bytes and says where it goes. `leads`: whether a partition has a leader now; `backlog`:
    /// what waits in it, in bytes.
    pub(crate) fn pick(
        &mut self,
        size: usize,
        batch_size: usize,
        partitions: usize,
        leads: impl Fn(usize) -> bool,
        backlog: impl Fn(usize) -> usize,
    ) -> usize {
        let stay = self.current < partitions && self.bytes < batch_size && leads(self.current);
        if !stay {
            self.bytes = 0;
            self.current = self.choose(partitions, leads, backlog);
        }
        self.bytes += size;
        self.current
    }

    /// KIP-794 prefers short queues; the better of two random ones does nearly as well as weighing all.
    fn choose(
        &mut self,
        partitions: usize,
        leads: impl Fn(usize) -> bool,
        backlog: impl Fn(usize) -> usize,
    ) -> usize {
        let mut random = || {
            let start = self.rng.below(partitions);
            (0..partitions).map(|step| (start + step) % partitions).find(|partition| leads(*partition))
        };
        match (random(), random()) {
            (Some(first), Some(second)) => {
                if backlog(second) < backlog(first) {
                    second
                } else {
                    first
                }
            }
            // Nobody leads anywhere: wait for a leader where the records before wait.
            _ if self.current < partitions => self.current,
            _ => self.rng.below(partitions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_is_javas() {
        // From Java's UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_record_without_a_key_stays_until_the_batch_is_full() {
        let mut sticky = Sticky::new(Rng::new(1), 4);
        let first = sticky.pick(60, 100, 4, |_| true, |_| 0);
        assert_eq!(sticky.pick(60, 100, 4, |_| true, |_| 0), first);
        // 120 of 100 bytes are there: the next may go elsewhere, and over many rounds every partition has its turn.
        let seen: std::collections::BTreeSet<_> =
            (0..100).map(|_| sticky.pick(100, 100, 4, |_| true, |_| 0)).collect();
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn partitions_without_a_leader_and_long_queues_are_avoided() {
        let mut sticky = Sticky::new(Rng::new(1), 3);
        let mut counts = [0; 3];
        for _ in 0..300 {
            counts[sticky.pick(100, 100, 3, |p| p > 0, |p| [0, 5000, 0][p])] += 1;
        }
        assert!(counts[0] == 0 && counts[2] > counts[1], "{counts:?}");
    }

    #[test]
    fn a_partition_that_loses_its_leader_is_left_at_once() {
        let mut sticky = Sticky::new(Rng::new(1), 2);
        let first = sticky.pick(1, 1000, 2, |_| true, |_| 0);
        let other = sticky.pick(1, 1000, 2, |p| p != first, |_| 0);
        assert_ne!(other, first);
        assert_eq!(sticky.pick(1, 1000, 2, |_| false, |_| 0), other, "nobody leads: all wait together");
        assert_eq!(
            sticky.pick(1, 1000, 1, |_| false, |_| 0),
            0,
            "the topic has fewer partitions than before"
        );
    }
}
