//! What the leader of a large group computes in a rebalance.

use divan::{Bencher, counter::ItemsCount};
use dtkafka::bench_support::Group;

/// 10,000 partitions in 100 topics, and 1,000 members subscribed to all of them; an item is a partition.
#[divan::bench(args = ["range", "roundrobin", "sticky", "cooperative-sticky"])]
fn assign_to_1000_members(bencher: Bencher<'_, '_>, strategy: &str) {
    let group = Group::new(1000, 100, 100);
    assert_eq!(group.assign(strategy).unwrap().values().map(Vec::len).sum::<usize>(), 10_000);
    bencher.counter(ItemsCount::new(10_000_u32)).bench_local(|| group.assign(strategy));
}
