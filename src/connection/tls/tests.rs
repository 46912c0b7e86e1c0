//! Names, files that are renewed, and keys that do not fit; handshakes are tested with connections.

use super::*;
use crate::config::settings::{PemSource, Secret};

#[test]
fn trailing_dot_and_ip_addresses_become_server_names() {
    let name = |host: &str| server_name(host).unwrap().to_str().into_owned();
    assert_eq!(name("b1.example."), "b1.example");
    assert_eq!(name("10.0.0.1"), "10.0.0.1");
    assert_eq!(name("::1"), "::1");
    assert_eq!(server_name("a b").unwrap_err().stage(), Some(Stage::Tls));
}

const CA: &str = include_str!("../test_certs/ca.pem");
const CHAIN: &str = include_str!("../test_certs/server.pem");
const KEY: &str = include_str!("../test_certs/server.key");
const OTHER_KEY: &str = include_str!("../test_certs/keys/other.pem");

/// Files of a test, removed in the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dtkafka-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_key_of_another_certificate_is_named_and_not_shown() {
    let settings = |key: &str| TlsSettings {
        roots: vec![TrustRoots::Pem(CA.to_owned())],
        identity: Some((PemSource::Text(Secret::new(CHAIN)), PemSource::Text(Secret::new(key)))),
        ..TlsSettings::default()
    };
    assert!(Tls::problems(&settings(KEY)).is_empty());
    let problems = Tls::problems(&settings(OTHER_KEY));
    assert!(problems.concat().contains("does not belong to the first certificate"), "{problems:?}");
    let damaged = KEY.replacen("AwEHBG0w", "AwEHBG0x", 1);
    let problems = Tls::problems(&settings(&damaged));
    assert!(problems.concat().contains("is damaged, or of a kind"), "{problems:?}");
}

#[tokio::test]
async fn changed_files_serve_new_connections_and_broken_ones_do_not() {
    let folder = Folder::new("renewed");
    let settings = TlsSettings {
        roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
        identity: Some((
            PemSource::File(folder.write("client.pem", CHAIN)),
            PemSource::File(folder.write("client.key", KEY)),
        )),
        ..TlsSettings::default()
    };
    let tls = Tls::new(&settings).unwrap();
    let config = async || Arc::as_ptr(tls.connector().await.unwrap().config());
    let first = config().await;
    assert_eq!(config().await, first, "nothing has changed");
    for broken in ["", "half a key", OTHER_KEY] {
        folder.write("client.key", broken);
        assert_eq!(config().await, first, "the earlier ones serve on");
    }
    // The first certificate is there, the second is being written.
    folder.write("ca.pem", &format!("{CA}{}", &CHAIN[..CHAIN.len() / 2]));
    folder.write("client.key", KEY);
    assert_eq!(config().await, first, "a bundle that is half there has not all it will have");
    folder.write("ca.pem", CA);
    assert_eq!(config().await, first, "they are as they were");
    folder.write("ca.pem", &format!("{CA}{CHAIN}"));
    let second = config().await;
    assert_ne!(second, first);
    assert_eq!(config().await, second);
    std::fs::remove_dir_all(&folder.0).unwrap();
    assert_eq!(config().await, second, "files that are gone serve on");
}

#[test]
fn files_that_cannot_be_used_are_told_of_once_however_many_connections_are_made() {
    let folder = Folder::new("once");
    let settings = TlsSettings {
        roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
        ..TlsSettings::default()
    };
    let mut now = time::now();
    let mut built = renewed(&settings, None, now).unwrap();
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
    for (text, told) in [("", 1), ("other", 2), (CA, 2), ("other", 3)] {
        folder.write("ca.pem", text);
        for _ in 0..5 {
            built = renewed(&settings, Some(Arc::clone(&built)), now).unwrap();
            now += WRITTEN_WITHIN;
        }
        let log = log.text();
        assert_eq!(log.matches("the earlier ones serve on").count(), told, "{text}: {log}");
    }
}

#[test]
fn a_bundle_with_a_damaged_certificate_is_taken_once_nobody_writes_it_any_more() {
    let folder = Folder::new("damaged");
    let settings = TlsSettings {
        roots: vec![TrustRoots::PemFile(folder.write("ca.pem", CA))],
        ..TlsSettings::default()
    };
    let now = time::now();
    let first = renewed(&settings, None, now).unwrap();
    folder.write("ca.pem", &format!("{CA}{}", &CHAIN[..CHAIN.len() / 2]));
    let refused = renewed(&settings, Some(first), now).unwrap();
    let soon = now + WRITTEN_WITHIN / 2;
    let kept = renewed(&settings, Some(Arc::clone(&refused)), soon).unwrap();
    assert!(Arc::ptr_eq(&kept, &refused) && kept.damaged.is_empty());
    let taken = renewed(&settings, Some(kept), now + WRITTEN_WITHIN).unwrap();
    assert_eq!((taken.damaged.len(), taken.refused.is_none()), (1, true));
}

#[tokio::test]
async fn files_that_cannot_be_used_from_the_start_are_an_error_of_the_configuration() {
    let settings = TlsSettings {
        roots: vec![TrustRoots::PemFile("/does/not/exist.pem".to_owned())],
        ..TlsSettings::default()
    };
    let error = Tls::new(&settings).unwrap().connector().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("ssl.truststore.location: \"/does/not/exist.pem\""), "{error}");
}
