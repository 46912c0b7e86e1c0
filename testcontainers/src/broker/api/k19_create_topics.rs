//! CreateTopics (key 19): partitions by number or by assignment, and topic configurations.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};

use super::super::cluster::{Cluster, Placement, check_topic_name};
use super::super::topic_config;
use super::{Call, text};

/// An error and its text.
type Refusal = (ResponseError, String);

pub(super) fn handle(call: &Call<'_>, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut cluster = call.cluster();
    let mut response = CreateTopicsResponse::default();
    for topic in &request.topics {
        let twice = request.topics.iter().filter(|t| t.name == topic.name).count() > 1;
        let result = match call.error_for(&topic.name) {
            Some(error) => Err((error, error.to_string())),
            None if twice => Err((ResponseError::InvalidRequest, "Duplicate topic name.".to_owned())),
            None => create(&mut cluster, topic, request.validate_only),
        };
        let mut answer = CreatableTopicResult::default().with_name(topic.name.clone());
        match result {
            Err((error, message)) => {
                answer = answer.with_error_code(error.code()).with_error_message(Some(text(&message)));
            }
            Ok(partitions) => describe(call, &cluster, topic, partitions, &mut answer),
        }
        response.topics.push(answer);
    }
    response
}

fn create(cluster: &mut Cluster, topic: &CreatableTopic, validate_only: bool) -> Result<i32, Refusal> {
    let name: &str = &topic.name;
    check_topic_name(name).map_err(|e| (e, format!("Topic name is invalid: '{name}'")))?;
    if cluster.topics.contains_key(name) {
        return Err((ResponseError::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
    }
    // Names of metrics write dots as underscores.
    let written = |name: &str| name.replace('.', "_");
    if let Some(other) = cluster.topics.keys().find(|other| written(other) == written(name)) {
        let text = format!("Topic '{name}' collides with existing topic: {other}");
        return Err((ResponseError::InvalidTopicException, text));
    }
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let value = config.value.as_deref().unwrap_or_default();
        topic_config::check(&config.name, value).map_err(|why| (ResponseError::InvalidConfig, why))?;
        configs.insert(config.name.to_string(), value.to_owned());
    }
    let mut replicas = BTreeMap::new();
    for assignment in &topic.assignments {
        let known = assignment.broker_ids.iter().all(|id| cluster.nodes.contains_key(&id.0));
        if !known || assignment.broker_ids.is_empty() {
            let text = "Invalid replica assignment.".to_owned();
            return Err((ResponseError::InvalidReplicaAssignment, text));
        };
        replicas.insert(assignment.partition_index, assignment.broker_ids.iter().map(|id| id.0).collect());
    }
    let partitions = match (replicas.len(), topic.num_partitions) {
        (0, -1) => cluster.options.default_partitions,
        (0, asked) => asked,
        (assigned, _) => i32::try_from(assigned).unwrap_or(i32::MAX),
    };
    if !(1..=10_000).contains(&partitions) {
        let text = "Number of partitions was set to an invalid non-positive value.".to_owned();
        return Err((ResponseError::InvalidPartitions, text));
    }
    let brokers = cluster.running().count();
    let factor = topic.replication_factor;
    if replicas.is_empty()
        && (factor == 0 || factor < -1 || usize::try_from(factor).is_ok_and(|f| f > brokers))
    {
        let text =
            format!("Unable to replicate the partition {factor} time(s): only {brokers} broker(s) are up.");
        return Err((ResponseError::InvalidReplicationFactor, text));
    }
    if !validate_only {
        let placement = Placement { factor, replicas };
        cluster.create_topic(name, partitions, &placement, configs).map_err(|e| (e, e.to_string()))?;
    }
    Ok(partitions)
}

fn describe(
    call: &Call<'_>,
    cluster: &Cluster,
    topic: &CreatableTopic,
    partitions: i32,
    answer: &mut CreatableTopicResult,
) {
    let made = cluster.topics.get(&*topic.name.0);
    if call.version >= 7
        && let Some(made) = made
    {
        answer.topic_id = made.id;
    }
    if call.version < 5 {
        return;
    }
    answer.num_partitions = partitions;
    answer.replication_factor = match made.and_then(|t| t.partitions.first()) {
        Some(first) => i16::try_from(first.replicas.len()).unwrap_or(i16::MAX),
        None => topic.replication_factor,
    };
    let config = |(name, default, _): &(&str, &str, i8)| {
        let own = made.and_then(|t| t.configs.get(*name));
        CreatableTopicConfigs::default()
            .with_name(text(name))
            .with_value(Some(text(own.map_or(default, String::as_str))))
            // KIP-525: 1 topic configuration, 5 default.
            .with_config_source(if own.is_some() { 1 } else { 5 })
    };
    answer.configs = Some(topic_config::KNOWN.iter().map(config).collect());
}
