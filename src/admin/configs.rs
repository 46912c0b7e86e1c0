//! The settings of topics.

use std::collections::BTreeMap;

use super::{KafkaAdmin, check_code, without};
use crate::{
    cluster::kafka_string,
    connection::api::wire::{self, describe_configs_request::DescribeConfigsResource},
    error::Result,
};

/// The resource type "topic" of DescribeConfigs.
const TOPIC_RESOURCE: i8 = 2;
/// The configuration source of a topic's own setting, and that of Kafka's default.
const TOPIC_CONFIG: i8 = 1;
const DEFAULT_CONFIG: i8 = 5;

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

impl KafkaAdmin {
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
