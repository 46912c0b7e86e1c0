//! [`KafkaInstance`]: one configuration, checked once, and every client made of it.
//!
//! It owns no connection. Each client has its own view of the cluster, so that none waits for another, and closing one
//! closes nothing else. The contexts close what they made whatever the body does.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use super::{LogSubject, logged};
use crate::{
    admin::KafkaAdmin,
    cluster::Cluster,
    config::{Acks, ConsumerConfig, KafkaConfig, ProducerConfig, settings::ProducerSettings},
    connection::Tls,
    consumer::KafkaConsumer,
    error::{Error, Result},
    producer::{KafkaProducer, Transaction, TransactionalProducer},
};

/// How long a consumer context tries to commit and to leave its group, as in Java.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the clients of one cluster from one [`KafkaConfig`].
///
/// Cheap to clone; may be shared between threads. It holds no connection: each client it makes has its own.
///
/// ```no_run
/// # async fn example() -> dtkafka::Result<()> {
/// use dtkafka::{KafkaConfig, KafkaInstance};
///
/// let config = KafkaConfig::new().set_bootstrap_servers(["localhost:9092"]).set_group_id("billing");
/// let kafka = KafkaInstance::new(config)?;
/// let offset = kafka
///     .producer_context(async |producer| {
///         let delivery = producer.send("orders", &serde_json::json!({"order_id": 123})).await?;
///         Ok(delivery.await?.offset)
///     })
///     .await?;
/// println!("written at {offset}; the producer is flushed and closed");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct KafkaInstance {
    config: Arc<KafkaConfig>,
}

impl KafkaInstance {
    /// Checks the whole configuration, and reads the certificate and key files it names; nothing connects yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) naming every value that is wrong and what is accepted, including a
    /// missing broker address and an unusable file.
    pub fn new(config: KafkaConfig) -> Result<Self> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::new", subject: "Kafka configuration" };
        logged(PLACE, config.validate_with(Tls::problems))?;
        Ok(Self { config: Arc::new(config) })
    }

    /// The configuration, as it was given.
    pub fn config(&self) -> &KafkaConfig {
        &self.config
    }

    /// A producer with the settings of the configuration; waits for the first answer of a broker, for at most
    /// `max.block.ms`, or `socket.connection.setup.timeout.ms` where that is more. The reason for waiting is logged once.
    ///
    /// # Errors
    /// [`Connect`](crate::ErrorKind::Connect) with the stage reached, every cause and the setting to change: at once for
    /// what waiting cannot change (a refused password, a certificate), after that time otherwise;
    /// [`Config`](crate::ErrorKind::Config) outside a tokio runtime. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_producer(&self) -> Result<KafkaProducer> {
        self.get_producer_with(|producer| producer).await
    }

    /// A producer with settings of its own, which win over those of the configuration.
    ///
    /// ```no_run
    /// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
    /// use dtkafka::{Acks, Compression};
    ///
    /// let producer = kafka.get_producer_with(|p| p.acks(Acks::All).compression(Compression::Zstd).linger(10)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get_producer`](Self::get_producer), and [`Config`](crate::ErrorKind::Config) naming every override that is wrong.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_producer_with(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<KafkaProducer> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::get_producer", subject: "Kafka Producer" };
        let config = overrides(ProducerConfig::new()).merged(&self.config);
        config.log_beside(&self.config);
        logged(PLACE, start_producer(&config).await)
    }

    /// A transactional producer with the `transactional.id` of the configuration. It fences others with that id and ends the
    /// transactions that they left open. Its identity is waited for as long again as the first answer of a broker.
    ///
    /// # Errors
    /// As [`get_producer`](Self::get_producer); [`Config`](crate::ErrorKind::Config) without a `transactional.id`; the
    /// coordinator's refusal.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_transactional_producer(&self) -> Result<TransactionalProducer> {
        self.get_transactional_producer_with(|producer| producer).await
    }

    /// A transactional producer with settings of its own, which win over those of the configuration.
    ///
    /// # Errors
    /// As [`get_transactional_producer`](Self::get_transactional_producer).
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_transactional_producer_with(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<TransactionalProducer> {
        const PLACE: LogSubject = LogSubject {
            controller: "dtkafka::KafkaInstance::get_transactional_producer",
            subject: "Kafka Producer",
        };
        let start = async {
            let (cluster, settings) = self.begin_transactional(overrides(ProducerConfig::new()))?;
            TransactionalProducer::start(cluster, settings).await
        };
        logged(PLACE, start.await)
    }

    /// What a transactional producer is made of; the view of the cluster begins to connect.
    pub(super) fn begin_transactional(
        &self,
        overrides: ProducerConfig,
    ) -> Result<(Cluster, ProducerSettings)> {
        let config = overrides.merged(&self.config);
        config.log_beside(&self.config);
        let settings = config.resolve_producer()?;
        Ok((Cluster::start(Arc::new(config.resolve_client()?))?, settings))
    }

    /// Runs `body` in one transaction of a producer with the configuration's `transactional.id`: commits when it returns `Ok`,
    /// aborts when it returns an error, panics or is dropped, and runs it again when the transaction could only be aborted for
    /// a reason that passes. For many transactions make one producer and use [`TransactionalProducer::run`].
    ///
    /// ```no_run
    /// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
    /// kafka
    ///     .transaction(async |transaction| {
    ///         drop(transaction.send("orders", &7).await?); // the commit waits for it
    ///         drop(transaction.send("invoices", &7).await?);
    ///         Ok(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The body's error, or that of the transaction; as [`get_transactional_producer`](Self::get_transactional_producer).
    ///
    /// # Cancel safety
    /// Dropping it aborts, unless brokers were asked to commit already.
    pub async fn transaction<T>(&self, body: impl AsyncFnMut(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut producer = self.get_transactional_producer().await?;
        let outcome = producer.run(body).await;
        if let Err(error) = producer.close().await {
            // Only logged, since the transaction was committed.
            tracing::warn!(%error, "the producer of a transaction was not closed in time");
        }
        outcome
    }

    /// Runs `body` with a producer that is flushed and closed afterwards, also when the body fails or panics.
    ///
    /// Everything sent is delivered or has failed when this returns. A failed delivery shows where the body awaits it.
    ///
    /// # Errors
    /// The body's, else that of closing; as [`get_producer`](Self::get_producer) before that. An error that is not this crate's
    /// goes through with [`Error::other`](crate::Error::other).
    ///
    /// # Cancel safety
    /// If dropped, the body ends where it stands; what was sent is still delivered in the background.
    pub async fn producer_context<T>(&self, body: impl AsyncFnOnce(KafkaProducer) -> Result<T>) -> Result<T> {
        self.producer_context_with(|producer| producer, body).await
    }

    /// [`producer_context`](Self::producer_context) with settings of its own.
    ///
    /// # Errors
    /// As [`producer_context`](Self::producer_context) and [`get_producer_with`](Self::get_producer_with).
    ///
    /// # Cancel safety
    /// As [`producer_context`](Self::producer_context).
    pub async fn producer_context_with<T>(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
        body: impl AsyncFnOnce(KafkaProducer) -> Result<T>,
    ) -> Result<T> {
        self.try_producer_context(overrides, body).await
    }

    /// [`producer_context_with`](Self::producer_context_with) for bodies with an error type of their own, such as
    /// `anyhow::Error`. Closures must spell out that type.
    ///
    /// ```no_run
    /// # async fn example(kafka: dtkafka::KafkaInstance) -> Result<(), Box<dyn std::error::Error>> {
    /// kafka
    ///     .try_producer_context(|p| p, async |producer| -> Result<(), Box<dyn std::error::Error>> {
    ///         let order: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("order.json")?)?;
    ///         producer.send("orders", &order).await?.await?;
    ///         Ok(())
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`producer_context`](Self::producer_context).
    ///
    /// # Cancel safety
    /// As [`producer_context`](Self::producer_context).
    pub async fn try_producer_context<T, E: From<Error>>(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
        body: impl AsyncFnOnce(KafkaProducer) -> Result<T, E>,
    ) -> Result<T, E> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::producer_context", subject: "Kafka Producer" };
        let producer = self.get_producer_with(overrides).await?;
        // After a panic nothing of the body is used but the panic itself.
        let outcome = AssertUnwindSafe(body(producer.clone())).catch_unwind().await;
        let closed = logged(PLACE, producer.close().await);
        match outcome {
            Ok(Ok(value)) => Ok(closed.map(|()| value)?),
            Ok(Err(error)) => Err(error),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A consumer that is subscribed to these topics, with the settings of the configuration; waits for the first answer of
    /// a broker. It joins its group with the first poll. Without topics it needs no group: choose what it reads with
    /// [`assign`](KafkaConsumer::assign).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for topics without a `group.id`;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for an empty topic name; as
    /// [`get_producer`](Self::get_producer), after `default.api.timeout.ms`. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_consumer(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<KafkaConsumer> {
        self.get_consumer_with(topics, |consumer| consumer).await
    }

    /// A consumer with settings of its own, which win over those of the configuration.
    ///
    /// # Errors
    /// As [`get_consumer`](Self::get_consumer), and [`Config`](crate::ErrorKind::Config) naming every override that is wrong.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn get_consumer_with(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
    ) -> Result<KafkaConsumer> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::get_consumer", subject: "Kafka Consumer" };
        let topics: Vec<Arc<str>> = topics.into_iter().map(|topic| Arc::from(topic.as_ref())).collect();
        logged(PLACE, self.start_consumer(&topics, overrides(ConsumerConfig::new())).await)
    }

    /// Runs `body` with a consumer of these topics that leaves its group afterwards, also when the body fails or panics.
    ///
    /// With `enable.auto.commit` (the default) everything that the body was given is committed if it returns `Ok`; if
    /// it fails, everything but the records of its last poll.
    ///
    /// # Errors
    /// The body's, else that of committing and closing; as [`get_consumer`](Self::get_consumer) before that. An error that is
    /// not this crate's goes through with [`Error::other`](crate::Error::other).
    ///
    /// # Cancel safety
    /// If dropped, the body ends where it stands; the group is left in the background, without a commit.
    pub async fn consumer_context<T>(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        body: impl AsyncFnOnce(&KafkaConsumer) -> Result<T>,
    ) -> Result<T> {
        self.consumer_context_with(topics, |consumer| consumer, body).await
    }

    /// [`consumer_context`](Self::consumer_context) with settings of its own.
    ///
    /// # Errors
    /// As [`consumer_context`](Self::consumer_context) and [`get_consumer_with`](Self::get_consumer_with).
    ///
    /// # Cancel safety
    /// As [`consumer_context`](Self::consumer_context).
    pub async fn consumer_context_with<T>(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
        body: impl AsyncFnOnce(&KafkaConsumer) -> Result<T>,
    ) -> Result<T> {
        self.try_consumer_context(topics, overrides, body).await
    }

    /// [`consumer_context_with`](Self::consumer_context_with) for bodies with an error type of their own, such as
    /// `anyhow::Error`. Closures must spell out that type.
    ///
    /// # Errors
    /// As [`consumer_context`](Self::consumer_context).
    ///
    /// # Cancel safety
    /// As [`consumer_context`](Self::consumer_context).
    pub async fn try_consumer_context<T, E: From<Error>>(
        &self,
        topics: impl IntoIterator<Item = impl AsRef<str>>,
        overrides: impl FnOnce(ConsumerConfig) -> ConsumerConfig,
        body: impl AsyncFnOnce(&KafkaConsumer) -> Result<T, E>,
    ) -> Result<T, E> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::consumer_context", subject: "Kafka Consumer" };
        let overrides = overrides(ConsumerConfig::new());
        let auto_commit =
            overrides.merged(&self.config).resolve_consumer().is_ok_and(|s| s.enable_auto_commit);
        let consumer = self.get_consumer_with(topics, |_| overrides).await?;
        // After a panic nothing of the body is used but the panic itself.
        let outcome = AssertUnwindSafe(body(&consumer)).catch_unwind().await;
        let committed = match &outcome {
            Ok(Ok(_)) if auto_commit => logged(PLACE, consumer.commit().await),
            _ => Ok(()),
        };
        let closed = logged(PLACE, consumer.close(CLOSE_TIMEOUT).await);
        match outcome {
            Ok(Ok(value)) => Ok(committed.and(closed).map(|()| value)?),
            Ok(Err(error)) => Err(error),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub(super) async fn start_consumer(
        &self,
        topics: &[Arc<str>],
        overrides: ConsumerConfig,
    ) -> Result<KafkaConsumer> {
        let consumer = self.begin_consumer(overrides)?;
        consumer.connect().await?;
        consumer.subscribe(topics)?;
        Ok(consumer)
    }

    /// A consumer that begins to connect.
    pub(super) fn begin_consumer(&self, overrides: ConsumerConfig) -> Result<KafkaConsumer> {
        let config = overrides.merged(&self.config);
        config.log_beside(&self.config);
        let settings = config.resolve_consumer()?;
        // From the merged configuration, because its fetch sizes decide how large an answer may be.
        KafkaConsumer::start(Arc::new(config.resolve_client()?), settings)
    }

    /// An admin client; waits for the first answer of a broker.
    ///
    /// # Errors
    /// As [`get_producer`](Self::get_producer), after `default.api.timeout.ms`. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, no client is left behind.
    pub async fn admin(&self) -> Result<KafkaAdmin> {
        const PLACE: LogSubject =
            LogSubject { controller: "dtkafka::KafkaInstance::admin", subject: "Kafka Admin" };
        logged(PLACE, start_admin(&self.config).await)
    }
}

async fn start_producer(config: &KafkaConfig) -> Result<KafkaProducer> {
    let settings = config.resolve_producer()?;
    let cluster = Cluster::start(Arc::new(config.resolve_client()?))?;
    KafkaProducer::start(cluster, settings).await
}

impl KafkaInstance {
    /// The producer for records that are put aside or sent back. They count as handled once they are written, so three of
    /// the user's settings are replaced: every in-sync replica must acknowledge, a record that could be read is never too
    /// large to be sent, and no transactional id is used.
    pub(super) async fn get_letter_producer(
        &self,
        overrides: impl FnOnce(ProducerConfig) -> ProducerConfig,
    ) -> Result<KafkaProducer> {
        let config = ProducerConfig::new().acks(Acks::All).max_request_size(LARGEST);
        let config = overrides(config).merged(&self.config);
        let settings = ProducerSettings { transactional_id: None, ..config.resolve_producer()? };
        KafkaProducer::start(Cluster::start(Arc::new(config.resolve_client()?))?, settings).await
    }
}

/// Bytes of a request, as brokers take them by default (`socket.request.max.bytes`).
const LARGEST: usize = 100 * 1024 * 1024;

async fn start_admin(config: &KafkaConfig) -> Result<KafkaAdmin> {
    KafkaAdmin::start(Cluster::start(Arc::new(config.resolve_client()?))?).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, Stage};

    fn nobody_listens() -> KafkaInstance {
        // Port 1 of loopback: refused at once.
        let config = KafkaConfig::new()
            .set_bootstrap_servers("127.0.0.1:1")
            .set("default.api.timeout.ms", 500)
            .set("max.block.ms", 500)
            // The start of a producer waits at least that long.
            .set("socket.connection.setup.timeout.ms", 500);
        KafkaInstance::new(config).unwrap()
    }

    #[test]
    fn a_configuration_without_brokers_is_refused_at_once() {
        let error = KafkaInstance::new(KafkaConfig::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("bootstrap.servers"), "{error}");
    }

    #[test]
    fn every_bad_value_is_named_before_anything_connects() {
        let config = KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set_auto_offset_reset("first")
            .set("batch.size", "many");
        let text = KafkaInstance::new(config).unwrap_err().to_string();
        assert!(text.contains("auto.offset.reset") && text.contains("batch.size"), "{text}");
    }

    #[tokio::test]
    async fn clients_fail_with_the_cause_where_nobody_listens() {
        let kafka = nobody_listens();
        let error = kafka.get_producer().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect(Stage::Tcp), "{error}");
        let error = kafka.admin().await.unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Tcp), "{error}");
        let body = async |_| -> Result<()> { unreachable!("no producer was made") };
        assert!(kafka.producer_context(body).await.is_err());
    }

    #[tokio::test]
    async fn a_bad_override_is_named_before_anything_connects() {
        let error = nobody_listens().get_producer_with(|p| p.acks("most")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("acks"), "{error}");
    }

    #[test]
    fn an_instance_and_its_calls_may_cross_threads() {
        fn crosses<T: Send + Sync + Clone>() {}
        fn sends<T: Send>(_: &T) {}
        crosses::<KafkaInstance>();
        let kafka = nobody_listens();
        sends(&kafka.producer_context(async |producer| {
            producer.flush().await?;
            Ok(())
        }));
    }
}
