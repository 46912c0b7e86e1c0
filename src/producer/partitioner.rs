//! Which partition a record goes to. Pure.
//!
//! Keyed records: murmur2, so that a key lands where the Java client puts it. Others stick to one partition until it
//! has got `batch.size` bytes (KIP-480, KIP-794), then move to the less loaded of two.

use crate::{config::settings::KeyHash, time::Rng};

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

/// librdkafka's hash of a key: CRC-32 as in zlib.
pub(crate) fn crc32(key: &[u8]) -> u32 {
    !key.iter().fold(u32::MAX, |crc, byte| (crc >> 8) ^ CRC_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// The partition that a record with this key, or without one, goes to; `None` where any will do.
#[inline]
pub(crate) fn partition_of(key: Option<&[u8]>, hash: KeyHash, partitions: usize) -> Option<usize> {
    match (hash, key) {
        (KeyHash::Murmur2Random, Some(key)) => Some(partition_of_key(key, partitions)),
        (KeyHash::Murmur2Random, None) | (KeyHash::Random, _) => None,
        (KeyHash::Murmur2, key) => Some(partition_of_key(key.unwrap_or_default(), partitions)),
        (KeyHash::ConsistentRandom, None | Some([])) => None,
        (KeyHash::ConsistentRandom | KeyHash::Consistent, key) => {
            Some(crc32(key.unwrap_or_default()) as usize % partitions.max(1))
        }
    }
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
            // No partition has a leader: the record waits where those before it wait.
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

    /// The digests were computed by Java's own classes over the same 10,000 keys.
    #[test]
    fn ten_thousand_keys_have_javas_hashes_and_partitions() {
        let mut rng = Rng::new(42);
        let (mut hashes, mut partitions, mut crcs) = (0_u64, 0_u64, 0_u64);
        let digest = |sum: &mut u64, value: u64| {
            *sum = sum.wrapping_mul(1_099_511_628_211).wrapping_add(value);
        };
        for index in 0..10_000_usize {
            let key: Vec<u8> = (0..index % 37).map(|_| (rng.next_u64() >> 56) as u8).collect();
            digest(&mut hashes, u64::from(murmur2(&key)));
            digest(&mut partitions, partition_of_key(&key, 1 + index % 100) as u64);
            digest(&mut crcs, u64::from(crc32(&key)));
        }
        assert_eq!(
            (hashes, partitions, crcs),
            (8_195_447_421_421_884_049, 4_388_035_140_142_805_505, 12_256_305_636_079_573_466)
        );
        // Tails of bytes above 127, and a hash whose magnitude is not its positive form.
        assert_eq!(murmur2("é".as_bytes()), 186_971_271);
        assert_eq!(murmur2(&[0xff, 0x80, 0xfe]), 957_058_525);
        assert_eq!(partition_of_key(b"21", 100), ((-973_932_308_i32) & i32::MAX) as usize % 100);
    }

    #[test]
    fn each_partitioner_of_librdkafka_has_its_rule_for_missing_and_empty_keys() {
        let all = [
            KeyHash::Murmur2Random,
            KeyHash::Murmur2,
            KeyHash::ConsistentRandom,
            KeyHash::Consistent,
            KeyHash::Random,
        ];
        let places = |key: Option<&[u8]>| all.map(|hash| partition_of(key, hash, 1000));
        let empty = partition_of_key(b"", 1000);
        assert_eq!(places(None), [None, Some(empty), None, Some(0), None]);
        assert_eq!(places(Some(b"")), [Some(empty), Some(empty), None, Some(0), None]);
        let (murmur, crc) = (partition_of_key(b"k", 1000), crc32(b"k") as usize % 1000);
        assert_eq!(places(Some(b"k")), [Some(murmur), Some(murmur), Some(crc), Some(crc), None]);
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
