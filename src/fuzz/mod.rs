//! What is fuzzed: every reader of bytes that others have written, as a plain function of bytes. No part of the API.
//!
//! A target must never panic, never loop without progress, and never take more memory than its bound, whatever it is given.
//! It reads no file, no clock and no network. `fuzz/` has the same targets for libFuzzer; the tests here mutate the corpus
//! with seeds of their own.

use bytes::Bytes;

use crate::{
    KafkaConfig,
    batch::{self, Decompressor},
    config::{jaas, url},
    connection,
    group::wire::{decode_assignment, decode_subscription, encode_assignment, encode_subscription},
    wire::{self, Api, Visitor},
};

/// A reader of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// How many bytes one input may allocate in all, beside 64 times its size. Text that the user sets is not bounded: the
    /// search for the nearest name of an unknown setting allocates much, and gives it back at once.
    pub memory: usize,
    run: fn(&[u8]),
}

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Reads an input.
    ///
    /// # Panics
    /// Where the reader has a defect.
    pub fn run(&self, input: &[u8]) {
        (self.run)(input);
    }
}

/// Reads an input with the target of a name.
///
/// # Panics
/// Where the reader has a defect.
pub fn run(name: &str, input: &[u8]) {
    if let Some(target) = Target::named(name) {
        target.run(input);
    }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "answers", memory: 64 << 10, run: answers },
    Target { name: "batches", memory: 64 << 20, run: batches },
    Target { name: "group", memory: 64 << 10, run: group },
    Target { name: "url", memory: usize::MAX, run: urls },
    Target { name: "properties", memory: usize::MAX, run: properties },
    Target { name: "jaas", memory: 64 << 10, run: jaas_text },
    Target { name: "scram", memory: 64 << 10, run: connection::fuzz_scram },
    #[cfg(feature = "tls")]
    Target { name: "pem", memory: usize::MAX, run: pem },
];

/// The first byte is the API, the second the version, the rest the answer. What can be read can be written, and reads the same.
fn answers(input: &[u8]) {
    let [api, version, body @ ..] = input else { return };
    let mut nth = Nth { left: usize::from(*api) % apis(), version: *version, body };
    wire::visit_all(&mut nth);
}

struct Nth<'a> {
    left: usize,
    version: u8,
    body: &'a [u8],
}

impl Visitor for Nth<'_> {
    fn visit<A: Api>(&mut self) {
        let is_it = self.left == 0;
        self.left = self.left.wrapping_sub(1);
        if !is_it {
            return;
        }
        let (low, high) = A::TABLE;
        let version = low + i16::from(self.version) % (high - low + 1);
        let version = A::answer_version(version, self.body);
        let Ok(answer) = A::decode(Bytes::copy_from_slice(self.body), version) else { return };
        let again = A::decode(A::encode_answer(&answer, version).into(), version);
        assert!(again.is_ok_and(|again| again == answer), "{} version {version}", A::NAME);
    }
}

fn apis() -> usize {
    struct Count(usize);
    impl Visitor for Count {
        fn visit<A: Api>(&mut self) {
            self.0 += 1;
        }
    }
    let mut count = Count(0);
    wire::visit_all(&mut count);
    count.0
}

/// The first byte says whether CRCs are checked: behind a wrong one there would be nothing left to fuzz.
fn batches(input: &[u8]) {
    let [check_crc, records @ ..] = input else { return };
    let decompressor = Decompressor::new();
    for raw in batch::split(Bytes::copy_from_slice(records)) {
        let Ok(raw) = raw else { return };
        let Ok(batch) = raw.decode(*check_crc % 2 == 1, &decompressor, 1 << 20) else { continue };
        assert!(batch.base_offset <= batch.last_offset || batch.slots.is_empty());
        for slot in &batch.slots {
            assert!(batch.offset(slot) <= batch.last_offset);
            let headers =
                batch.headers(slot).filter(|header| header.key().len() <= batch.data.len() * 3).count();
            let parts = (batch.key_bytes(slot), batch.value_bytes(slot));
            assert!(headers <= batch.data.len() && parts.0.is_none_or(|key| key.len() <= batch.data.len()));
        }
        let _ = batch.control_type();
    }
}

/// What members of a group write to each other.
fn group(input: &[u8]) {
    if let Ok(subscription) = decode_subscription(input) {
        let again = decode_subscription(&encode_subscription(&subscription));
        assert!(again.is_ok_and(|again| again.topics == subscription.topics));
    }
    if let Ok(partitions) = decode_assignment(input) {
        let again = decode_assignment(&encode_assignment(&partitions));
        assert!(again.is_ok_and(|again| again == partitions));
    }
}

fn urls(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = (url::parse(&text), url::parse_addresses(&text));
    let _ = format!("{:?}", KafkaConfig::new().set_kafka_url(text.as_ref()));
}

fn properties(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let config = KafkaConfig::from_properties_text(&text);
    let _ = (format!("{config:?}"), config.get("bootstrap.servers"));
}

fn jaas_text(input: &[u8]) {
    let _ = jaas::parse(&String::from_utf8_lossy(input));
}

/// A text as all that TLS reads: roots, certificate and key. Encrypted keys are left to their tests: opening one is work on
/// purpose.
#[cfg(feature = "tls")]
fn pem(input: &[u8]) {
    use crate::config::settings::{PemSource, Secret, TlsSettings, TrustRoots};
    let text = String::from_utf8_lossy(input).into_owned();
    connection::fuzz_pem(&TlsSettings {
        roots: vec![TrustRoots::Pem(text.clone())],
        identity: Some((PemSource::Text(Secret::new(text.clone())), PemSource::Text(Secret::new(text)))),
        key_password: None,
        verify_host_name: true,
        client_config: None,
        crypto_provider: None,
    });
}

#[cfg(test)]
mod tests;
