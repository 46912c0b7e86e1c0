//! DeleteTopics (key 20): by name, and since version 6 by topic id.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};

use super::{Call, topic_name};

pub(super) fn handle(call: &Call<'_>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let mut cluster = call.cluster();
    let mut response = DeleteTopicsResponse::default();
    let named = |name| DeleteTopicState::default().with_name(Some(name));
    let asked = request.topics.into_iter().chain(request.topic_names.into_iter().map(named));
    for topic in asked {
        let by_id = topic.name.is_none();
        let name = match &topic.name {
            Some(name) => Some(name.to_string()),
            None => cluster.topic_name(topic.topic_id).map(str::to_owned),
        };
        let result = match &name {
            None => Err(ResponseError::UnknownTopicId),
            Some(name) => match call.error_for(name) {
                Some(error) => Err(error),
                None => cluster.delete_topic(name),
            },
        };
        let mut answer = DeletableTopicResult::default()
            .with_name(name.as_deref().map(topic_name))
            .with_error_code(super::code(&result));
        if call.version >= 6 {
            answer.topic_id = if by_id { topic.topic_id } else { result.unwrap_or_default() };
        }
        response.responses.push(answer);
    }
    drop(cluster);
    call.shared.appended.notify_waiters();
    response
}
