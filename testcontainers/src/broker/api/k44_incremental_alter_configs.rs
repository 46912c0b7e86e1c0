//! IncrementalAlterConfigs (key 44): sets, deletes, appends to and subtracts from topic configurations (KIP-339).

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::super::topic_config;
use super::{Call, text};

const TOPIC: i8 = 2;

pub(super) fn handle(
    call: &Call<'_>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut response = IncrementalAlterConfigsResponse::default();
    for resource in request.resources {
        let result = alter(call, &resource, request.validate_only);
        let mut answer = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        if let Err((error, message)) = result {
            answer = answer.with_error_code(error.code()).with_error_message(Some(text(&message)));
        }
        response.responses.push(answer);
    }
    response
}

fn alter(
    call: &Call<'_>,
    resource: &AlterConfigsResource,
    validate_only: bool,
) -> Result<(), (ResponseError, String)> {
    let plain = |error: ResponseError| (error, error.to_string());
    if let Some(error) = call.error_for(&resource.resource_name) {
        return Err(plain(error));
    }
    if resource.resource_type != TOPIC {
        return Err((ResponseError::InvalidRequest, "Only topics can be altered.".to_owned()));
    }
    let mut cluster = call.cluster();
    let topic = cluster
        .topics
        .get_mut(&*resource.resource_name)
        .ok_or_else(|| plain(ResponseError::UnknownTopicOrPartition))?;
    let mut configs = topic.configs.clone();
    for config in &resource.configs {
        apply(&mut configs, config).map_err(|why| (ResponseError::InvalidConfig, why))?;
    }
    if !validate_only {
        topic.configs = configs;
    }
    Ok(())
}

fn apply(configs: &mut BTreeMap<String, String>, config: &AlterableConfig) -> Result<(), String> {
    let name = config.name.to_string();
    let value = config.value.as_deref().unwrap_or_default();
    let unknown = || format!("Unknown topic config name: {name}");
    let default = topic_config::default_of(&name).ok_or_else(unknown)?;
    let current = configs.get(&name).map_or(default, String::as_str);
    let list = || current.split(',').filter(|part| !part.is_empty() && *part != value);
    let changed = match config.config_operation {
        0 => value.to_owned(),
        1 => {
            configs.remove(&name);
            return Ok(());
        }
        2 => list().chain([value]).collect::<Vec<_>>().join(","),
        3 => list().collect::<Vec<_>>().join(","),
        other => return Err(format!("Unknown operation {other}")),
    };
    topic_config::check(&name, &changed)?;
    configs.insert(name, changed);
    Ok(())
}
