//! Against the embedded broker, and transports that let nobody in.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::AtomicU32;

use dtkafka_testcontainers::{EmbeddedBroker, broker::Network};

use super::*;
use crate::{
    Connecting, KafkaConfig, Transport,
    cluster::{metadata::Broker, tests::config_of},
};

/// The producer gives back what is idle for too long. Were it handed the same connection again, it would loop
/// until the timer that closes idle connections comes round.
#[tokio::test(start_paused = true)]
async fn a_connection_that_was_idle_for_too_long_is_not_handed_out_again() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    let config = config_of(&broker).set("connections.max.idle.ms", 1000);
    let settings = Arc::new(config.resolve_client().unwrap());
    let address = settings.bootstrap[0].clone();
    let brokers = Brokers::new(settings, None).unwrap();
    brokers.learn_one(1, address);
    let ask = || async {
        let deadline = time::after(Duration::from_secs(10));
        brokers.connection(1, Lane::Main, deadline).await.unwrap()
    };
    let first = ask().await;
    tokio::time::advance(Duration::from_millis(900)).await;
    assert!(Arc::ptr_eq(&first, &ask().await), "it is in use");
    tokio::time::advance(Duration::from_millis(200)).await;
    let second = ask().await;
    assert!(!Arc::ptr_eq(&first, &second), "it was idle for too long");
    assert!(Arc::ptr_eq(&second, &ask().await));
}

/// Lets everybody in at one address, and keeps silent at all others.
struct Elsewhere(Network, String);

impl Transport for Elsewhere {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        Box::pin(async move {
            if format!("{host}:{port}") != self.1 {
                std::future::pending::<()>().await;
            }
            Ok(Box::new(self.0.connect("test", host, port)?) as _)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_broker_goes_on_at_its_new_address_once_it_is_known() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    let after = broker.bootstrap_servers();
    let config =
        KafkaConfig::new().set_bootstrap_servers(&*after).set_transport(Elsewhere(broker.network(), after));
    let settings = Arc::new(config.resolve_client().unwrap());
    let after = settings.bootstrap[0].clone();
    let brokers = Brokers::new(settings, None).unwrap();
    brokers.learn_one(1, Address { host: "before".into(), port: 9092 });
    let started = time::now();
    let deadline = time::after(Duration::from_secs(60));
    // The first holds the turn, the others wait for it.
    let waiting = (0..5).map(|_| brokers.connection(1, Lane::Main, deadline));
    let told = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        brokers.learn_one(1, after);
    };
    let (connected, ()) = tokio::join!(futures_util::future::join_all(waiting), told);
    let first = connected[0].as_ref().unwrap();
    assert!(connected.iter().all(|other| Arc::ptr_eq(first, other.as_ref().unwrap())));
    assert!(time::now() - started < Duration::from_secs(2), "{:?}", time::now() - started);

    brokers.learn_one(2, Address { host: "before".into(), port: 9092 });
    let gone = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        brokers.learn(&Metadata::default());
        brokers.learn(&Metadata::default());
    };
    let (error, ()) = tokio::join!(brokers.connection(2, Lane::Main, deadline), gone);
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Disconnected, "it is not of the cluster any more");
}

/// Lets nobody in, and counts who knocks.
#[derive(Default)]
struct Closed(AtomicU32);

impl Transport for Arc<Closed> {
    fn connect<'a>(&'a self, _host: &'a str, _port: u16) -> Connecting<'a> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_cannot_be_reached_is_dialled_after_growing_pauses() {
    let closed = Arc::new(Closed::default());
    let config = KafkaConfig::new()
        .set_bootstrap_servers("broker:9092")
        .set_transport(Arc::clone(&closed))
        .set("reconnect.backoff.ms", 100)
        .set("reconnect.backoff.max.ms", 1000);
    let brokers = Brokers::new(Arc::new(config.resolve_client().unwrap()), None).unwrap();
    let deadline = time::after(Duration::from_secs(10));
    while time::now() < deadline {
        // The time stands still but for the pauses.
        assert!(brokers.connection(-1, Lane::Main, deadline).await.is_err());
        let dialled = closed.0.load(Ordering::Relaxed);
        assert!(dialled <= 20, "{dialled} times");
        if dialled >= 10 {
            break;
        }
    }
    // 100 + 200 + 400 + 800 + 5 x 1000 ms, less a fifth.
    assert!(deadline - time::now() <= Duration::from_millis(10_000 - 5200));
}

#[tokio::test]
async fn a_broker_that_has_moved_is_asked_at_its_new_address_and_the_old_connections_close() {
    let broker = EmbeddedBroker::builder().brokers(2).start().await.unwrap();
    let config = KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers());
    let settings = Arc::new(config.resolve_client().unwrap());
    let [before, after] = [0, 1].map(|index| settings.bootstrap[index].clone());
    let brokers = Brokers::new(settings, None).unwrap();
    let deadline = time::now() + Duration::from_secs(30);
    brokers.learn_one(1, before.clone());
    let mut old = Vec::new();
    for lane in [Lane::Main, Lane::Fetch, Lane::Group] {
        old.push(brokers.connection(1, lane, deadline).await.unwrap());
    }
    brokers.learn_one(1, before);
    assert!(old.iter().all(|connection| !connection.is_closed()), "it has not moved");
    brokers.learn_one(1, after);
    assert!(old.iter().all(|connection| connection.is_closed()));
    let new = brokers.connection(1, Lane::Main, deadline).await.unwrap();
    assert!(old.iter().all(|old| !Arc::ptr_eq(old, &new)));
}

#[test]
fn the_bootstrap_addresses_stay_candidates_beside_the_brokers_that_are_known() {
    for (rebootstrap, expected) in [("rebootstrap", vec![1, -1]), ("none", vec![1])] {
        let config = KafkaConfig::new()
            .set_bootstrap_servers("bootstrap:9092")
            .set("metadata.recovery.strategy", rebootstrap);
        let settings = Arc::new(config.resolve_client().unwrap());
        let address = Address { host: "one".into(), port: 9092 };
        let brokers = Brokers::new(settings, None).unwrap();
        let nobody = Metadata::default();
        assert_eq!(ids(&brokers, &nobody), [-1]);
        let mut snapshot = Metadata::default();
        snapshot.brokers.insert(1, Broker { address, rack: None });
        brokers.learn(&snapshot);
        let mut known = ids(&brokers, &snapshot);
        known.sort_by_key(|id| -id);
        assert_eq!(known, expected, "{rebootstrap}");
    }
}

fn ids(brokers: &Brokers, snapshot: &Metadata) -> Vec<i32> {
    brokers.candidates(snapshot, false).into_iter().map(|candidate| candidate.id).collect()
}

#[tokio::test]
async fn the_outage_of_a_bootstrap_address_is_that_of_the_broker_behind_it() {
    let config = KafkaConfig::new().set_bootstrap_servers("127.0.0.1:1").set("reconnect.backoff.ms", 0);
    let settings = Arc::new(config.resolve_client().unwrap());
    let address = settings.bootstrap[0].clone();
    let brokers = Brokers::new(settings, None).unwrap();
    let deadline = time::now() + Duration::from_secs(30);
    assert!(brokers.connection(-1, Lane::Main, deadline).await.is_err());
    assert!(brokers.why(-1).is_some());
    brokers.learn_one(7, address);
    assert!(brokers.connection(-1, Lane::Main, deadline).await.is_err());
    assert!(brokers.why(7).is_some());
}

/// Lets in whoever comes first.
struct Once(Network, AtomicBool);

impl Transport for Arc<Once> {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a> {
        let is_first = !self.1.swap(true, Ordering::Relaxed);
        Box::pin(async move {
            match is_first {
                true => Ok(Box::new(self.0.connect("test", host, port)?) as _),
                false => Err(std::io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_address_that_fails_says_nothing_against_a_broker_whose_connection_lives() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    let once = Arc::new(Once(broker.network(), AtomicBool::new(false)));
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_transport(Arc::clone(&once))
        .set("reconnect.backoff.ms", 0);
    let settings = Arc::new(config.resolve_client().unwrap());
    let address = settings.bootstrap[0].clone();
    let brokers = Brokers::new(settings, None).unwrap();
    brokers.learn_one(7, address);
    let deadline = time::after(Duration::from_secs(10));
    let lives = brokers.connection(7, Lane::Fetch, deadline).await.unwrap();
    assert!(brokers.connection(-1, Lane::Main, deadline).await.is_err());
    assert!(brokers.why(7).is_none() && brokers.why(-1).is_some());
    lives.end();
    assert!(brokers.connection(-1, Lane::Main, deadline).await.is_err());
    assert!(brokers.why(7).is_some(), "nothing of it lives any more");
    // Whatever it was told under: it is over.
    once.1.store(false, Ordering::Relaxed);
    brokers.connection(7, Lane::Main, deadline).await.unwrap();
    assert!(brokers.why(7).is_none() && brokers.why(-1).is_none());
}

#[tokio::test]
async fn only_a_connection_that_was_just_made_is_news_for_the_idle_timer() {
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    let config = KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers());
    let brokers = Brokers::new(Arc::new(config.resolve_client().unwrap()), None).unwrap();
    let deadline = time::now() + Duration::from_secs(30);
    for lane in [Lane::Main, Lane::Fetch] {
        let made = brokers.connection(-1, lane, deadline).await.unwrap();
        assert!(brokers.take_new());
        for _ in 0..3 {
            let known = brokers.connection(-1, lane, deadline).await.unwrap();
            assert!(Arc::ptr_eq(&made, &known) && !brokers.take_new());
        }
    }
}
