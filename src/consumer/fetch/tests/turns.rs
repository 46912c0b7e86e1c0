//! Whose records are handed out next.

use super::*;

#[test]
fn what_is_decoded_of_one_partition_is_handed_out_before_another_one_is_decoded() {
    let mut bench = Bench::new(&[1, 1, 1], 1 << 20);
    let fetch = bench.plan().unwrap();
    bench.answer(&fetch, (0..3).map(|partition| data(partition, batch(0, 1))).collect());
    for wanted in [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9], [0, 1, 2, 3]] {
        assert_eq!(bench.poll(4), wanted);
    }
}

#[test]
fn a_partition_with_much_to_hand_out_does_not_keep_others_from_their_turn() {
    // Batches that end in the middle of a poll, and such as a marker follows.
    let uneven = (0..10).flat_map(|n| batch(n * 10, 1)).collect();
    let marked = (0..10).flat_map(|n| [batch(n * 11, 1), marker(n * 11 + 10)].concat()).collect();
    for (first, polled) in [(uneven, 7), (marked, 10)] {
        let mut bench = Bench::new(&[1, 1], 1 << 20);
        let fetch = bench.plan().unwrap();
        bench.answer(&fetch, vec![data(0, first), data(1, batch(1_000, 1))]);
        assert_eq!(bench.poll(polled), (0..polled as i64).collect::<Vec<_>>());
        assert!(bench.poll(polled).contains(&1_000), "{polled}");
    }
}
