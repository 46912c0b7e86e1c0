//! Every codec on 64 KiB of JSON lines, with contexts and buffers reused as the clients reuse them.

use std::fmt::Write as _;

use bytes::BytesMut;
use divan::{Bencher, black_box, counter::BytesCount};
use dtkafka::{
    Compression,
    bench_support::{Decoder, Encoder},
};

const LEN: usize = 64 << 10;
const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// Orders with random numbers in them (SplitMix64): repetitive, and not more than real ones.
fn json_lines() -> BytesMut {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 31)) % below
    };
    let mut lines = String::new();
    for id in 0.. {
        let status = ["new", "paid", "shipped", "returned"][random(4) as usize];
        let (customer, sku, quantity, cents) =
            (random(20_000), random(5_000), random(9) + 1, random(100_000));
        writeln!(
            lines,
            r#"{{"id":{id},"customer":"customer-{customer}","sku":"SKU-{sku:05}","quantity":{quantity},"cents":{cents},"status":"{status}","trace":"{:016x}"}}"#,
            random(u64::MAX)
        )
        .unwrap();
        if lines.len() >= LEN {
            break;
        }
    }
    BytesMut::from(&lines.as_bytes()[..LEN])
}

/// One block, in place.
#[divan::bench(args = CODECS)]
fn compress(bencher: Bencher<'_, '_>, codec: Compression) {
    let encoder = Encoder::new(codec).unwrap();
    let lines = json_lines();
    encoder.compress(&mut lines.clone()).unwrap();
    bencher
        .counter(BytesCount::new(LEN))
        .with_inputs(|| lines.clone())
        .bench_local_refs(|block| encoder.compress(block).unwrap());
}

/// A batch of one record that holds the block.
#[divan::bench(args = CODECS)]
fn decompress(bencher: Bencher<'_, '_>, codec: Compression) {
    let batch = Encoder::new(codec).unwrap().encode(1, b"k", &json_lines()).unwrap();
    let decoder = Decoder::default();
    decoder.decode(&batch, |_, _| {}).unwrap();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| {
        decoder.decode(black_box(&batch), |_, value| _ = black_box(value)).unwrap();
    });
}
