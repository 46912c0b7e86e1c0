//! DescribeConfigs (key 32): a topic's configurations and where they come from; a broker has none to show.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::super::topic_config;
use super::{Call, text};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// KIP-226's sources: set on the topic, or the built-in default.
const DYNAMIC_TOPIC: i8 = 1;
const DEFAULT: i8 = 5;

pub(super) fn handle(call: &Call<'_>, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let mut response = DescribeConfigsResponse::default();
    for resource in &request.resources {
        let result = describe(call, resource, request.include_synonyms);
        let mut answer = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(super::code(&result));
        match result {
            Ok(configs) => answer.configs = configs,
            Err(error) => answer.error_message = Some(text(&error.to_string())),
        }
        response.results.push(answer);
    }
    response
}

fn describe(
    call: &Call<'_>,
    resource: &DescribeConfigsResource,
    synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, ResponseError> {
    if let Some(error) = call.error_for(&resource.resource_name) {
        return Err(error);
    }
    match resource.resource_type {
        TOPIC => {}
        BROKER => return Ok(Vec::new()),
        _ => return Err(ResponseError::InvalidRequest),
    }
    let cluster = call.cluster();
    let topic = cluster.topics.get(&*resource.resource_name).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let wanted = |name: &str| {
        resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| &**key == name))
    };
    let describe = |(name, default, kind): &(&str, &str, i8)| {
        let own = topic.configs.get(*name).map(String::as_str);
        let synonym = |value: &str, source| {
            DescribeConfigsSynonym::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_source(source)
        };
        let mut result = DescribeConfigsResourceResult::default()
            .with_name(text(name))
            .with_value(Some(text(own.unwrap_or(default))))
            .with_config_source(if own.is_some() { DYNAMIC_TOPIC } else { DEFAULT });
        if synonyms {
            result.synonyms.extend(own.map(|value| synonym(value, DYNAMIC_TOPIC)));
            result.synonyms.push(synonym(default, DEFAULT));
        }
        if call.version >= 3 {
            result.config_type = *kind;
        }
        result
    };
    Ok(topic_config::KNOWN.iter().filter(|known| wanted(known.0)).map(describe).collect())
}
