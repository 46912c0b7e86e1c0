//! Against embedded brokers in memory, behind a name that leads to one or another of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{io, time::Duration};

use dtkafka_testcontainers::{
    ApiKey, EmbeddedBroker, Listener, ResponseError,
    broker::{MemoryStream, Network},
};

use super::*;
use crate::{
    Connecting, KafkaConfig, KafkaInstance, KafkaProducer, ProducerRecord, Transport,
    cluster::{Cluster, Lane},
    mutex::Mutex,
};

/// Where names lead, as a name server has it: the bootstrap address and the brokers' own.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<(Option<Network>, Option<Network>)>>);

const BOOTSTRAP: &str = "bootstrap";

impl Names {
    fn lead_to(&self, bootstrap: Option<&EmbeddedBroker>, brokers: Option<&EmbeddedBroker>) {
        let networks = (bootstrap.map(EmbeddedBroker::network), brokers.map(EmbeddedBroker::network));
        *self.0.lock() = networks;
    }

    fn open(&self, host: &str) -> io::Result<MemoryStream> {
        let (bootstrap, brokers) = &*self.0.lock();
        let network = if host == BOOTSTRAP { bootstrap } else { brokers };
        network.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?.connect_to("test", 1, Listener::Plaintext)
    }
}

impl Transport for Names {
    fn connect<'a>(&'a self, host: &'a str, _port: u16) -> Connecting<'a> {
        Box::pin(async move { Ok(Box::new(self.open(host)?) as _) })
    }
}

async fn cluster(id: &str) -> EmbeddedBroker {
    EmbeddedBroker::builder().in_memory().cluster_id(id).start().await.unwrap()
}

fn config(names: &Names) -> KafkaConfig {
    KafkaConfig::new()
        .set_bootstrap_servers(BOOTSTRAP)
        .set("metadata.recovery.rebootstrap.trigger.ms", 5_000)
        .set_transport(names.clone())
}

async fn connected(names: &Names) -> Cluster {
    let settings = config(names).resolve_client().unwrap();
    let cluster = Cluster::start(Arc::new(settings)).unwrap();
    cluster.connect(soon()).await.unwrap();
    cluster
}

fn soon() -> Instant {
    time::after(Duration::from_secs(60))
}

async fn until(what: impl Fn() -> bool) {
    let come = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), come).await.unwrap();
}

/// One heartbeat to the only broker; who has had it is told by the brokers' counters.
async fn beat(cluster: &Cluster) {
    cluster.call(1, Lane::Main, wire::HeartbeatRequest::default(), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_must_start_over_looks_up_the_bootstrap_name_again_and_leaves_the_brokers_of_the_other_cluster() {
    let (blue, green) = (cluster("blue").await, cluster("green").await);
    let names = Names::default();
    names.lead_to(Some(&blue), Some(&blue));
    let cluster = connected(&names).await;
    beat(&cluster).await;
    // The name server is behind: it leads back to those who say that the client is wrong there.
    let (asked, control) = (|| blue.control().requests(ApiKey::Metadata), blue.control());
    control.fail(ApiKey::Metadata, 1_000_000, ResponseError::RebootstrapRequired);
    let before = asked();
    cluster.refresh();
    until(|| asked() > before + 10).await;
    // The brokers of both clusters are advertised by the same names.
    names.lead_to(Some(&green), Some(&green));
    until(|| cluster.metadata().cluster_id.as_deref() == Some("green")).await;
    beat(&cluster).await;
    let beats = [&blue, &green].map(|of| of.control().requests(ApiKey::Heartbeat));
    assert_eq!(beats, [1, 1], "to each cluster in its time");
}

#[tokio::test(start_paused = true)]
async fn known_brokers_that_are_back_after_an_outage_are_asked_though_no_bootstrap_address_is_left() {
    let broker = cluster("c").await;
    let names = Names::default();
    names.lead_to(Some(&broker), Some(&broker));
    let cluster = connected(&names).await;
    names.lead_to(None, None);
    cluster.shared.brokers.retire_all();
    cluster.refresh();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let version = cluster.metadata().version;
    names.lead_to(None, Some(&broker));
    until(|| cluster.metadata().version > version).await;
}

async fn producer(names: &Names) -> KafkaProducer {
    KafkaInstance::new(config(names)).unwrap().get_producer().await.unwrap()
}

async fn send(producer: &KafkaProducer, topic: &str, value: &str) {
    let record = ProducerRecord::new(topic).partition(0).value(value);
    producer.send_record(record).await.unwrap().await.unwrap();
}

/// Clusters count their producer ids from the same number on.
#[tokio::test(start_paused = true)]
async fn a_producer_does_not_take_its_id_to_another_cluster_where_it_is_that_of_another_producer() {
    let (blue, green) = (cluster("blue").await, cluster("green").await);
    let moved = Names::default();
    moved.lead_to(Some(&blue), Some(&blue));
    let there = Names::default();
    there.lead_to(Some(&green), Some(&green));
    let (moving, resident) = (producer(&moved).await, producer(&there).await);
    send(&moving, "t", "blue 0").await;
    for number in 0..5 {
        send(&resident, "t", &format!("resident {number}")).await;
    }
    moved.lead_to(Some(&green), Some(&green));
    blue.control().fail(ApiKey::Metadata, 1_000_000, ResponseError::RebootstrapRequired);
    // Asks about the cluster.
    send(&moving, "other", "x").await;
    for number in 0..5 {
        send(&moving, "t", &format!("moving {number}")).await;
        send(&resident, "t", &format!("resident {}", number + 5)).await;
    }
    let stored = green.records("t", 0).unwrap();
    let values: Vec<_> = stored.iter().map(|record| record.value.clone().unwrap()).collect();
    let before = (0..5).map(|number| format!("resident {number}"));
    let since = (0..5).flat_map(|number| [format!("moving {number}"), format!("resident {}", number + 5)]);
    assert_eq!(values, before.chain(since).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_producer_goes_on_in_another_cluster_that_gives_it_the_id_it_had() {
    let (blue, green) = (cluster("blue").await, cluster("green").await);
    let names = Names::default();
    names.lead_to(Some(&blue), Some(&blue));
    let producer = producer(&names).await;
    send(&producer, "t", "blue").await;
    // The answer to the next is lost, and blue is gone.
    blue.control().disconnect_after(ApiKey::Produce, 1);
    names.lead_to(Some(&green), Some(&green));
    let record = ProducerRecord::new("t").partition(0).value("lost");
    let lost = producer.send_record(record).await.unwrap().await.unwrap_err();
    assert!(lost.possibly_written(), "{lost}");
    for number in 0..3 {
        send(&producer, "t", &format!("green {number}")).await;
    }
    let stored = green.records("t", 0).unwrap();
    assert_eq!(
        stored.iter().map(|record| record.value_text().unwrap()).collect::<Vec<_>>(),
        ["green 0", "green 1", "green 2"]
    );
}
