//! [`FakeKafka`]: for tests of code that sends, without any broker to start: it takes what is sent and keeps it.
//!
//! An embedded broker in memory behind one line: no port, no thread, and no time of its own, so that it works under a paused
//! clock. It owns nothing that the broker has not.

use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    io,
    sync::{Mutex, PoisonError},
};

use kafka_protocol::{ResponseError, messages::ApiKey};
use uuid::Uuid;

use super::{BrokerError, Effect, EmbeddedBroker, Fault, MemoryStream, StoredRecord};

/// A cluster for tests of code that sends: no broker is started, no port is opened, and what was sent can be looked at.
///
/// A client of `dtkafka` reaches it through its transport; topics are made by the first record, with one partition each, so
/// that the records of a topic are in the order in which they were sent.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use dtkafka_testcontainers::FakeKafka;
///
/// let fake = FakeKafka::start().await?;
/// // KafkaConfig::new().set_bootstrap_servers(fake.bootstrap_servers()).set_transport(fake.transport())
/// # let _ = fake.transport();
/// assert!(fake.sent("orders").is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct FakeKafka {
    broker: EmbeddedBroker,
    /// Up to which offset the records of a partition were taken, by its topic's id: one that was made again has others.
    taken: Mutex<BTreeMap<(Uuid, i32), i64>>,
}

impl FakeKafka {
    /// Starts one. It ends when it is dropped.
    ///
    /// # Errors
    /// None that can be foreseen: it opens nothing.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn start() -> Result<Self, BrokerError> {
        let broker = EmbeddedBroker::builder().in_memory().start().await?;
        Ok(Self { broker, taken: Mutex::default() })
    }

    /// What to give as `bootstrap.servers`, together with [`transport`](Self::transport): nobody else finds it there.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.broker.bootstrap_servers()
    }

    /// The way to it: a function of host and port, as `KafkaConfig::set_transport` takes one.
    pub fn transport(
        &self,
    ) -> impl Fn(String, u16) -> Ready<io::Result<MemoryStream>> + Clone + Send + Sync + 'static {
        let network = self.broker.network();
        move |host: String, port| ready(network.connect("client", &host, port))
    }

    /// Every record that was sent to a topic so far, in order; empty if there is no such topic.
    ///
    /// A record is here once its delivery was awaited, or the producer flushed. So are those of transactions that are open or
    /// were aborted, which [`committed_records`](EmbeddedBroker::committed_records) of the [`broker`](Self::broker) leaves out.
    #[must_use]
    pub fn sent(&self, topic: &str) -> Vec<StoredRecord> {
        self.by_partition(topic).into_iter().flat_map(|(_, records)| records).collect()
    }

    /// The same, without what this returned before. If the log was cut, look before more is sent.
    #[must_use]
    pub fn take_sent(&self, topic: &str) -> Vec<StoredRecord> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for (partition, mut records) in self.by_partition(topic) {
            let mark = taken.entry(partition).or_default();
            let end = records.last().map_or(0, |last| last.offset + 1);
            records.retain(|record| record.offset >= *mark);
            // A cut log may end before what was taken.
            *mark = end;
            new.append(&mut records);
        }
        new
    }

    /// The partitions of a topic, by its id and their numbers.
    fn by_partition(&self, topic: &str) -> Vec<((Uuid, i32), Vec<StoredRecord>)> {
        let cluster = self.broker.shared.cluster();
        let Some((id, count)) = cluster.topics.get(topic).map(|topic| (topic.id, topic.partitions.len()))
        else {
            return Vec::new();
        };
        drop(cluster);
        let records = |partition| self.broker.records(topic, partition).unwrap_or_default();
        let numbers = 0..i32::try_from(count).unwrap_or(i32::MAX);
        numbers.map(|partition| ((id, partition), records(partition))).collect()
    }

    /// The names of the topics that something was sent to, sorted.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let mut names: Vec<String> = self.broker.shared.cluster().topics.keys().cloned().collect();
        names.retain(|name| !self.sent(name).is_empty());
        names.sort();
        names
    }

    /// The next batch of records that is sent to a topic is refused with this error, and is not written.
    pub fn fail_next(&self, topic: &str, error: ResponseError) {
        let fault = Fault::on(ApiKey::Produce).topic(topic).times(1).effect(Effect::Error(error));
        self.broker.control().inject(fault);
    }

    /// The broker underneath, to feed, to break and to look at.
    #[must_use]
    pub fn broker(&self) -> &EmbeddedBroker {
        &self.broker
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::NewRecord;

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_is_taken_once_also_after_the_topic_was_cut_or_made_again() {
        let fake = FakeKafka::start().await.unwrap();
        let send = |values: &[&str]| {
            for value in values {
                fake.broker().feed("t", 0, NewRecord::new(value)).unwrap();
            }
        };
        let take = || {
            let taken = fake.take_sent("t");
            taken.iter().map(|record| record.value_text().unwrap().to_owned()).collect::<Vec<_>>()
        };
        send(&["a", "b", "c"]);
        assert_eq!(take(), ["a", "b", "c"]);
        fake.broker().control().truncate("t", 0, 1).unwrap();
        assert!(take().is_empty());
        send(&["d"]);
        assert_eq!(take(), ["d"]);
        fake.broker().delete_topic("t").unwrap();
        assert!(take().is_empty());
        send(&["e"]);
        assert_eq!(take(), ["e"]);
        let all = fake.broker().wait_for_records("t", 1, Duration::MAX).await.unwrap();
        assert_eq!(all[&0].len(), 1);
    }

    #[tokio::test]
    async fn what_was_sent_to_several_partitions_is_taken_once() {
        let fake = FakeKafka::start().await.unwrap();
        fake.broker().create_topic("t", 2).unwrap();
        for (partition, value) in [(0, "a"), (1, "b")] {
            fake.broker().feed("t", partition, NewRecord::new(value)).unwrap();
        }
        assert_eq!(fake.take_sent("t").len(), 2);
        fake.broker().feed("t", 0, NewRecord::new("c")).unwrap();
        let taken = fake.take_sent("t");
        assert_eq!(taken.iter().map(|record| record.value_text()).collect::<Vec<_>>(), [Some("c")]);
        assert!(fake.take_sent("t").is_empty());
        assert_eq!(fake.sent("t").len(), 3);
    }
}
