//! Record batches of the default `batch.size`, without compression: the floor under producing and consuming.

use divan::{Bencher, black_box, counter::ItemsCount};
use dtkafka::{
    Compression,
    bench_support::{BATCH_SIZE, Decoder, Encoder},
};

const KEY: &[u8] = b"customer-0000042";

fn count(value_len: usize) -> usize {
    BATCH_SIZE / (KEY.len() + value_len + 10)
}

/// A full batch, written and summed.
#[divan::bench(args = [100, 1000])]
fn encode(bencher: Bencher<'_, '_>, value_len: usize) {
    let mut encoder = Encoder::new(Compression::None).unwrap();
    let (count, value) = (count(value_len), crate::value(value_len));
    // Sized by one batch before, as in steady state.
    let first = encoder.encode(count, KEY, &value).unwrap();
    encoder.recycle(first);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let batch = encoder.encode(count, black_box(KEY), black_box(&value)).unwrap();
        encoder.recycle(black_box(batch));
    });
}

/// A full batch, its CRC checked, every key and value touched.
#[divan::bench(args = [100, 1000])]
fn decode(bencher: Bencher<'_, '_>, value_len: usize) {
    let count = count(value_len);
    let batch =
        Encoder::new(Compression::None).unwrap().encode(count, KEY, &crate::value(value_len)).unwrap();
    let decoder = Decoder::default();
    decoder.decode(&batch, |_, _| {}).unwrap();
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let first_byte =
            |part: Option<&[u8]>| part.and_then(<[u8]>::first).map_or(0, |byte| u64::from(*byte));
        let mut sum = 0;
        decoder.decode(black_box(&batch), |key, value| sum += first_byte(key) + first_byte(value)).unwrap();
        sum
    });
}
