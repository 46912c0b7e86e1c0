//! Appending to the producer's queues, and choosing the partition of a key.

use divan::{Bencher, black_box, counter::ItemsCount};
use dtkafka::bench_support::{Accumulator, partition_of_key};

const KEY: &[u8] = b"customer-0000042";
/// Enough for starting threads not to show.
const RECORDS: usize = 80_000;

/// 80,000 records of 100 bytes by all threads together, each going round the partitions; a row's rate is that of all
/// threads. Allocations are those of the first thread. With one partition all threads meet in one lock.
#[divan::bench(args = [1, 2, 8], consts = [1, 6], sample_size = 1, sample_count = 50)]
fn append<const PARTITIONS: usize>(bencher: Bencher<'_, '_>, threads: usize) {
    append_with(bencher, threads, PARTITIONS, |thread, record| (thread + record) % PARTITIONS);
}

fn append_with(
    bencher: Bencher<'_, '_>,
    threads: usize,
    partitions: usize,
    choose: impl Fn(usize, usize) -> usize + Copy + Sync,
) {
    let accumulator = Accumulator::new(partitions as i32).unwrap();
    let value = crate::value(100);
    let work = |thread: usize| {
        for record in 0..RECORDS / threads {
            let partition = choose(thread, record);
            drop(accumulator.append(partition, black_box(KEY), black_box(&value)).unwrap());
        }
    };
    // Buffers of full size for all partitions, as in steady state.
    (0..threads).for_each(work);
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        std::thread::scope(|scope| {
            for thread in 1..threads {
                scope.spawn(move || work(thread));
            }
            work(0);
        });
    });
}

/// The same with a partition for each thread: what is slower with two threads than with one meets outside of the queues.
#[divan::bench(args = [1, 2], sample_size = 1, sample_count = 50)]
fn append_apart(bencher: Bencher<'_, '_>, threads: usize) {
    append_with(bencher, threads, threads, |thread, _| thread);
}

/// 1,000 keys of this length.
#[divan::bench(args = [8, 16, 36])]
fn murmur2(bencher: Bencher<'_, '_>, len: usize) {
    let keys: Vec<Vec<u8>> = (0..1000).map(|id| format!("{id:0len$}").into_bytes()).collect();
    bencher
        .counter(ItemsCount::new(keys.len()))
        .bench_local(|| keys.iter().map(|key| partition_of_key(black_box(key), 6)).sum::<usize>());
}
