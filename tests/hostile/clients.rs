//! What is attacked: each kind of client at its ordinary work, over a transport that leads everywhere to the peer.

use std::{collections::BTreeSet, time::Duration};

use dtkafka::{KafkaConfig, KafkaConsumer, KafkaInstance, ProducerRecord, TopicPartition};
use tokio::net::TcpStream;

use super::peers::TOPIC;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Producer,
    /// A consumer with partitions of its own choice.
    Reader,
    /// A member of a group.
    Member,
    Admin,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Producer, Self::Reader, Self::Member, Self::Admin];

    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name).unwrap()
    }
}

/// The different errors that a client has told; a handful of them.
#[derive(Default)]
struct Said(BTreeSet<String>);

impl Said {
    fn note<T>(&mut self, result: dtkafka::Result<T>) -> Option<T> {
        match result {
            Ok(good) => Some(good),
            Err(error) => {
                let text: String = error.to_string().chars().take(150).collect();
                if self.0.len() < 3 {
                    self.0.insert(text);
                }
                None
            }
        }
    }
}

fn config(port: u16) -> KafkaConfig {
    KafkaConfig::new()
        .set_bootstrap_servers("hostile.invalid:9092")
        .set_transport(move |_host, _port| TcpStream::connect(("127.0.0.1", port)))
        .set_security_protocol(if std::env::var("DTKAFKA_HOSTILE_SASL").is_ok() {
            "SASL_PLAINTEXT"
        } else {
            "PLAINTEXT"
        })
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        // Time-outs of its own that are short: as many rounds as there can be.
        .set("request.timeout.ms", 1000)
        .set("max.block.ms", 1000)
        .set("delivery.timeout.ms", 5000)
        .set("default.api.timeout.ms", 1000)
        .set("socket.connection.setup.timeout.ms", 1000)
        .set("reconnect.backoff.ms", 1)
        .set("reconnect.backoff.max.ms", 20)
        .set("retry.backoff.ms", 1)
        .set("retry.backoff.max.ms", 20)
        .set("metadata.max.age.ms", 50)
        .set("heartbeat.interval.ms", 100)
        .set("auto.commit.interval.ms", 50)
        .set("unreadable.warn.ms", 300)
        // What a producer and a consumer may hold is the user's: not what is measured here.
        .set("buffer.memory", 4 << 20)
        .set("fetch.buffer.memory", 16 << 20)
}

/// Works for so long. Returns what errors it met.
pub(crate) async fn run(kind: Kind, port: u16, time: Duration) -> Vec<String> {
    let kafka = KafkaInstance::new(config(port)).unwrap();
    let mut said = Said::default();
    let work = async {
        loop {
            match kind {
                Kind::Producer => produce(&kafka, &mut said).await,
                Kind::Reader => read(&kafka, &mut said).await,
                Kind::Member => follow(&kafka, &mut said).await,
                Kind::Admin => administer(&kafka, &mut said).await,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = tokio::time::timeout(time, work).await;
    said.0.into_iter().collect()
}

async fn produce(kafka: &KafkaInstance, said: &mut Said) {
    let Some(producer) = said.note(kafka.get_producer().await) else { return };
    let value = vec![b'x'; 1000];
    loop {
        let sent = producer.send_record(ProducerRecord::new(TOPIC).value(&value)).await;
        let is_fatal = sent.as_ref().is_err_and(dtkafka::Error::is_fatal);
        if let Some(delivery) = said.note(sent) {
            let in_time = tokio::time::timeout(Duration::from_millis(20), delivery).await;
            let _ = in_time.map(|delivered| said.note(delivered));
        }
        if is_fatal {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn read(kafka: &KafkaInstance, said: &mut Said) {
    let Some(consumer) = said.note(kafka.get_consumer(Vec::<String>::new()).await) else { return };
    let partition = TopicPartition::new(TOPIC, 0);
    said.note(consumer.assign([partition.clone()]));
    poll(&consumer, Some(&partition), said).await;
}

async fn follow(kafka: &KafkaInstance, said: &mut Said) {
    let Some(consumer) = said.note(kafka.get_consumer([TOPIC]).await) else { return };
    poll(&consumer, None, said).await;
}

async fn poll(consumer: &KafkaConsumer, partition: Option<&TopicPartition>, said: &mut Said) {
    loop {
        let polled = consumer.poll(Duration::from_millis(100)).await;
        let behind = polled.as_ref().err().and_then(dtkafka::Error::last_offset);
        said.note(polled);
        // As the documentation says: on behind what cannot be read.
        if let (Some(partition), Some(last)) = (partition, behind) {
            said.note(consumer.seek(partition, last.saturating_add(1)));
        }
        tokio::task::yield_now().await;
    }
}

async fn administer(kafka: &KafkaInstance, said: &mut Said) {
    let Some(admin) = said.note(kafka.admin().await) else { return };
    for _ in 0..20 {
        said.note(admin.list_topics().await);
        said.note(admin.describe_topic(TOPIC).await);
        said.note(admin.latest_offsets([TopicPartition::new(TOPIC, 0)]).await);
        said.note(admin.list_groups().await);
        said.note(admin.describe_group("g").await);
    }
}
