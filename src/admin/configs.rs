//! The settings of topics.

use std::collections::BTreeMap;

use super::{At, KafkaAdmin, NO_ERROR, PossiblyApplied, check_code, without};
use crate::{
    cluster::kafka_string,
    connection::api::{
        Api,
        wire::{
            self,
            describe_configs_request::DescribeConfigsResource,
            incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        },
    },
    error::Result,
};

/// The resource type "topic" of DescribeConfigs.
const TOPIC_RESOURCE: i8 = 2;
/// The configuration source of a topic's own setting, and that of Kafka's default.
const TOPIC_CONFIG: i8 = 1;
const DEFAULT_CONFIG: i8 = 5;
/// What IncrementalAlterConfigs does to a setting.
const SET: i8 = 0;
const DELETE: i8 = 1;

/// One setting of a topic, as the brokers apply it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigEntry {
    /// The value; `None` where the broker keeps it to itself.
    pub value: Option<String>,
    /// Whether the topic itself sets it; otherwise it comes from the brokers or is Kafka's default.
    pub is_set: bool,
    /// Whether nobody has set it anywhere.
    pub is_default: bool,
    /// Whether it can be changed.
    pub is_read_only: bool,
}

/// Changes of a topic's settings.
///
/// ```
/// # use dtkafka::ConfigChanges;
/// let changes = ConfigChanges::new().set("retention.ms", "86400000").reset("max.message.bytes");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "they are only made by `KafkaAdmin::alter_topic_configs`"]
pub struct ConfigChanges(BTreeMap<String, Option<String>>);

impl ConfigChanges {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(name.into(), Some(value.into()));
        self
    }

    /// Goes back to what the brokers set, or to Kafka's default.
    pub fn reset(mut self, name: impl Into<String>) -> Self {
        self.0.insert(name.into(), None);
        self
    }

    fn to_wire(&self) -> Vec<AlterableConfig> {
        let change = |(name, value): (&String, &Option<String>)| AlterableConfig {
            name: kafka_string(name),
            config_operation: if value.is_some() { SET } else { DELETE },
            value: value.as_deref().map(kafka_string),
        };
        self.0.iter().map(change).collect()
    }
}

impl KafkaAdmin {
    /// Changes settings of a topic, and leaves the others as they are (KIP-339).
    ///
    /// # Errors
    /// The broker's: `InvalidConfig` for a name or a value that it does not take (with ZooKeeper also `InvalidRequest`),
    /// `UnknownTopicOrPartition`, `TopicAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    /// `UnsupportedVersion` before Kafka 2.3.
    ///
    /// # Cancel safety
    /// If dropped, the settings may or may not be changed: all of them, or none.
    pub async fn alter_topic_configs(&self, topic: &str, changes: ConfigChanges) -> Result<()> {
        let mut possibly = PossiblyApplied::default();
        let ended = retry!(self, At::Controller, self.deadline(), |connection, until| {
            let resource = AlterConfigsResource {
                resource_type: TOPIC_RESOURCE,
                resource_name: kafka_string(topic),
                configs: changes.to_wire(),
            };
            let request =
                wire::IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
            let answer = possibly.note(connection.call(request, until).await)?;
            let is_ours =
                |result: &wire::incremental_alter_configs_response::AlterConfigsResourceResponse| {
                    result.resource_type == TOPIC_RESOURCE && result.resource_name.as_str() == topic
                };
            let result = answer.responses.into_iter().find(is_ours).ok_or_else(|| without("topic"))?;
            let name = wire::IncrementalAlterConfigsRequest::NAME;
            possibly.note(check_code(name, result.error_code, result.error_message.as_deref()))
        });
        ended.map_err(|error| possibly.mark(error.with_topic(topic), NO_ERROR))
    }

    /// Every setting of a topic, as the brokers apply it.
    ///
    /// # Errors
    /// `UnknownTopicOrPartition`, `TopicAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_topic_configs(&self, topic: &str) -> Result<BTreeMap<String, ConfigEntry>> {
        retry!(self, self.deadline(), |until| {
            let resource = DescribeConfigsResource {
                resource_type: TOPIC_RESOURCE,
                resource_name: kafka_string(topic),
                configuration_keys: None,
            };
            let request = wire::DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
            let answer = self.ask_any(request, Ok, until).await?;
            let is_ours = |result: &wire::describe_configs_response::DescribeConfigsResult| {
                result.resource_type == TOPIC_RESOURCE && result.resource_name.as_str() == topic
            };
            let result = answer.results.into_iter().find(is_ours).ok_or_else(|| without("topic"))?;
            check_code("DescribeConfigs", result.error_code, result.error_message.as_deref())
                .map_err(|error| error.with_topic(topic))?;
            let entry = |config: wire::describe_configs_response::DescribeConfigsResourceResult| {
                let entry = ConfigEntry {
                    value: config.value.map(|value| value.to_string()),
                    is_set: config.config_source == TOPIC_CONFIG,
                    is_default: config.config_source == DEFAULT_CONFIG,
                    is_read_only: config.read_only,
                };
                (config.name.to_string(), entry)
            };
            Ok(result.configs.into_iter().map(entry).collect())
        })
    }
}
