//! What the client's own cores cost, without a broker: `cargo bench --features unstable-benches`.
//!
//! One row is one iteration of what its function's comment names; `item/s` is records, partitions or keys, `B/s` is bytes
//! before compression, and the lines below count allocations per iteration. Between machines only ratios can be compared.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run must stop")]

mod assignors;
mod batch;
mod codecs;
mod handlers;
mod producer;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// A value of `len` bytes that is not all the same.
fn value(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}
