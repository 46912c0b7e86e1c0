//! What the examples share: a broker to run on. Without `KAFKA_URL` it is one inside this process.

use dtkafka::{KafkaConfig, KafkaInstance, NewTopic};
use dtkafka_testcontainers::EmbeddedBroker;

/// What an example may fail with.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A cluster; dropping it ends the broker inside this process, if there is one.
pub(crate) struct Cluster {
    _broker: Option<EmbeddedBroker>,
    /// Reads from the beginning, in the group `examples`.
    pub(crate) config: KafkaConfig,
}

impl Cluster {
    /// The cluster of `KAFKA_URL`, or a broker inside this process.
    pub(crate) async fn start() -> Outcome<Self> {
        if let Ok(level) = std::env::var("RUST_LOG") {
            let level = level.parse().unwrap_or(tracing_subscriber::filter::LevelFilter::INFO);
            tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
        }
        let config = KafkaConfig::from_env();
        let (broker, config) = match config.get("kafka.url").or_else(|| config.get("bootstrap.servers")) {
            Some(_) => (None, config),
            None => {
                let broker = EmbeddedBroker::builder().start().await?;
                let config = config.set_bootstrap_servers(broker.bootstrap_servers());
                (Some(broker), config)
            }
        };
        let group = format!("examples-{}", std::process::id());
        Ok(Self { _broker: broker, config: config.set_group_id(group).set_auto_offset_reset("earliest") })
    }

    /// An instance, with these topics made.
    pub(crate) async fn with_topics(&self, topics: &[(&str, i32)]) -> Outcome<KafkaInstance> {
        let kafka = KafkaInstance::new(self.config.clone())?;
        let admin = kafka.admin().await?;
        for (name, partitions) in topics {
            admin.create_topic(NewTopic::new(*name).partitions(*partitions)).await?;
        }
        Ok(kafka)
    }
}
