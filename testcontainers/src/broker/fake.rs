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
    /// How many records of each topic were taken.
    taken: Mutex<BTreeMap<String, usize>>,
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
    /// A record is here once its delivery was awaited, or the producer flushed.
    #[must_use]
    pub fn sent(&self, topic: &str) -> Vec<StoredRecord> {
        let partitions = self.broker.shared.cluster().topics.get(topic).map_or(0, |t| t.partitions.len());
        let numbers = 0..i32::try_from(partitions).unwrap_or(i32::MAX);
        numbers.flat_map(|partition| self.broker.records(topic, partition).unwrap_or_default()).collect()
    }

    /// The same, without what this returned before.
    #[must_use]
    pub fn take_sent(&self, topic: &str) -> Vec<StoredRecord> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = taken.entry(topic.to_owned()).or_default();
        let new = self.sent(topic).split_off(*before);
        *before += new.len();
        new
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
