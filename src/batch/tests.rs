//! Encoding against decoding, and both against an independent implementation.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::{config::settings::Compression, record::Header};

fn batch(compression: Compression, records: usize) -> EncodedBatch {
    let mut builder = BatchBuilder::new(BytesMut::new());
    for index in 0..records {
        let headers = [Header::new("trace", format!("{index}")), Header { key: "trace".into(), value: None }];
        builder.append(
            1_000 + index as i64,
            Some(format!("key-{index}").as_bytes()),
            Some(b"value"),
            &headers[..index % 3],
        );
    }
    builder.finish(Stamp::NONE, &Compressor::new(compression, None).unwrap()).unwrap()
}

#[test]
fn records_come_back_as_they_were_appended() {
    let batches: Vec<_> = split(batch(Compression::None, 200).bytes).collect::<Result<_, _>>().unwrap();
    let decoded = batches[0].decode(true, &Decompressor::new(), usize::MAX).unwrap();
    assert_eq!((batches.len(), decoded.slots.len(), decoded.last_offset), (1, 200, 199));
    for (index, slot) in decoded.slots.iter().enumerate() {
        assert_eq!(decoded.offset(slot), index as i64);
        assert_eq!(slot.timestamp, 1_000 + index as i64);
        assert_eq!(decoded.key(slot), Some(format!("key-{index}").as_bytes()));
        assert_eq!(decoded.value_bytes(slot), Some(Bytes::from_static(b"value")));
        assert_eq!(decoded.owned_headers(slot).len(), index % 3);
    }
}
