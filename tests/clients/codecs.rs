//! Every codec, and every shape a record can have: what comes out is what went in, field by field.

use std::time::Duration;

use bytes::Bytes;
use dtkafka::{
    Compression, ConsumerRecord, Error, Header, KafkaInstance, NewTopic, ProducerConfig, ProducerRecord,
    TimestampType,
};
use futures_util::StreamExt as _;

use crate::{
    backend::{Backend, unique},
    on_every_backend,
};

const PATIENCE: Duration = Duration::from_secs(30);
const MESSAGE_TOO_LARGE: i16 = 10;
/// A time of now, so that no retention deletes the records under test.
const TOLERANCE_MS: i64 = 60_000;

/// A record of the test, and what must come back.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<Header>,
    /// Before the time of sending.
    age_ms: Option<i64>,
}

fn sample(key: Option<&'static str>, value: Option<Vec<u8>>) -> Sample {
    Sample { key: key.map(Bytes::from), value: value.map(Bytes::from), headers: Vec::new(), age_ms: None }
}

/// Bytes that no codec makes smaller.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    (0..length).map(|_| next()).collect()
}

fn samples() -> Vec<Sample> {
    let header = |key: &str, value: Option<&'static [u8]>| Header {
        key: key.to_owned(),
        value: value.map(Bytes::from),
    };
    let mut with_headers = sample(Some("headers"), Some(b"value".to_vec()));
    with_headers.headers = vec![
        header("trace", Some(b"first")),
        header("other", Some(b"\x00\xff\x80")),
        header("trace", Some(b"second, of the same name")),
        header("null", None),
        header("empty", Some(b"")),
        header("", Some(b"a header without a name")),
        header("gr\u{fc}\u{df}e", Some("\u{1f980}".as_bytes())),
    ];
    let mut old = sample(Some("old"), Some(b"an hour ago".to_vec()));
    old.age_ms = Some(3_600_000);
    let mut all = vec![
        sample(None, Some(b"neither key nor header".to_vec())),
        sample(Some("tombstone"), None),
        sample(None, None),
        sample(Some("empty"), Some(Vec::new())),
        sample(Some(""), Some(b"an empty key is a key".to_vec())),
        with_headers,
        old,
        sample(Some("zeros"), Some(vec![0; 100_000])),
        sample(Some("noise"), Some(noise(100_000, 7))),
        sample(Some("one megabyte"), Some(noise(1_000_000, 11))),
        sample(Some("one megabyte of text"), Some(b"{\"order\": 123}".repeat(70_000))),
    ];
    all.extend(
        (0..500u32).map(|number| sample(Some("many"), Some(format!("{{\"number\":{number}}}").into_bytes()))),
    );
    all
}

async fn produce(kafka: &KafkaInstance, topic: &str, samples: &[Sample], codec: Compression) -> Vec<i64> {
    let settings = |p: ProducerConfig| p.compression(codec).linger(Duration::from_millis(20));
    let producer = kafka.get_producer_with(settings).await.unwrap();
    let start = backend_time();
    let mut deliveries = Vec::new();
    for sample in samples {
        let mut record = ProducerRecord::new(topic).headers(&sample.headers).partition(0);
        if let Some(key) = &sample.key {
            record = record.key(key);
        }
        if let Some(value) = &sample.value {
            record = record.value(value);
        }
        if let Some(age) = sample.age_ms {
            record = record.timestamp(start - age);
        }
        deliveries.push(producer.send_record(record).await.unwrap());
    }
    let mut timestamps = Vec::new();
    for (delivery, offset) in deliveries.into_iter().zip(0..) {
        let metadata = delivery.await.unwrap();
        assert_eq!(metadata.offset, offset);
        timestamps.push(metadata.timestamp);
    }
    producer.close().await.unwrap();
    timestamps
}

fn backend_time() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

async fn consume(kafka: &KafkaInstance, topic: &str, count: usize) -> Vec<ConsumerRecord> {
    let consumer = kafka.get_consumer([topic]).await.unwrap();
    let records = consumer.stream().take(count).map(Result::unwrap).collect();
    let records = tokio::time::timeout(PATIENCE, records).await.expect("records are missing");
    consumer.close(PATIENCE).await.unwrap();
    records
}

async fn round_trip(backend: &Backend, codec: Compression) {
    let kafka = backend.instance();
    let topic = backend.topic("codec", 1).await;
    let samples = samples();
    let timestamps = produce(&kafka, &topic, &samples, codec).await;
    let records = consume(&kafka, &topic, samples.len()).await;
    for (((record, sample), timestamp), offset) in records.into_iter().zip(samples).zip(timestamps).zip(0..) {
        assert_eq!((&*record.topic, record.partition, record.offset), (&*topic, 0, offset));
        assert_eq!((record.timestamp, record.timestamp_type), (timestamp, TimestampType::CreateTime));
        let age = backend_time() - record.timestamp - sample.age_ms.unwrap_or(0);
        assert!((0..TOLERANCE_MS).contains(&age), "{age} ms");
        let got =
            Sample { key: record.key, value: record.value, headers: record.headers, age_ms: sample.age_ms };
        // Not assert_eq: a megabyte of noise would be printed.
        assert!(got == sample, "offset {offset}: {:?} {:?}", sample.key, sample.headers);
    }
}

on_every_backend! {
    async fn without_compression(backend) {
        round_trip(backend, Compression::None).await;
    }

    async fn gzip(backend) {
        round_trip(backend, Compression::Gzip).await;
    }

    async fn snappy(backend) {
        round_trip(backend, Compression::Snappy).await;
    }

    async fn lz4(backend) {
        round_trip(backend, Compression::Lz4).await;
    }

    async fn zstd(backend) {
        round_trip(backend, Compression::Zstd).await;
    }

    async fn a_batch_too_large_for_the_topic_is_split_and_only_what_is_too_large_alone_fails(backend) {
        for codec in [Compression::None, Compression::Zstd] {
            split(backend, codec).await;
        }
    }
}

async fn split(backend: &Backend, codec: Compression) {
    let (kafka, admin, topic) = (backend.instance(), backend.admin().await, unique("small"));
    let new = NewTopic::new(&topic).partitions(1).replication_factor(1).config("max.message.bytes", "10000");
    admin.create_topic(new).await.unwrap();
    while !admin
        .describe_topic_configs(&topic)
        .await
        .is_ok_and(|c| c["max.message.bytes"].value.as_deref() == Some("10000"))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One batch of 60 KB, with a record of 20 KB in its midst.
    let settings = |p: ProducerConfig| p.compression(codec).linger(Duration::from_secs(60));
    let producer = kafka.get_producer_with(settings).await.unwrap();
    let value = |number: u64| noise(if number == 40 { 20_000 } else { 500 }, number + 1);
    let mut deliveries = Vec::new();
    for number in 0..80 {
        let (key, value) = (number.to_string(), value(number));
        let record = ProducerRecord::new(&topic).key(&key).value(&value);
        deliveries.push(producer.send_record(record).await.unwrap());
    }
    tokio::time::timeout(PATIENCE, producer.flush()).await.expect("it splits for ever").unwrap();
    for (delivery, number) in deliveries.into_iter().zip(0..) {
        let outcome = delivery.await;
        if number == 40 {
            too_large(&outcome.unwrap_err(), &topic);
        } else {
            assert_eq!(outcome.unwrap().offset, if number < 40 { number } else { number - 1 });
        }
    }
    // Alone in its batch.
    let large = value(40);
    let delivery = producer.send_record(ProducerRecord::new(&topic).value(&large)).await.unwrap();
    producer.close().await.unwrap();
    too_large(&delivery.await.unwrap_err(), &topic);

    let records = consume(&kafka, &topic, 79).await;
    for (record, number) in records.iter().zip((0..80).filter(|number| *number != 40)) {
        assert_eq!(record.key.as_deref(), Some(number.to_string().as_bytes()));
        assert!(record.value.as_deref() == Some(&*value(number)), "{number}");
    }
}

fn too_large(error: &Error, topic: &str) {
    assert_eq!(
        (error.code().map(|code| code.0), error.topic()),
        (Some(MESSAGE_TOO_LARGE), Some(topic)),
        "{error}"
    );
    assert!(!error.possibly_written(), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("max.message.bytes")), "{error}");
}
