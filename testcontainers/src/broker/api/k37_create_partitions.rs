//! CreatePartitions (key 37): more partitions for a topic (KIP-195).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::{Call, text};

pub(super) fn handle(call: &Call<'_>, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let mut cluster = call.cluster();
    let mut response = CreatePartitionsResponse::default();
    for topic in request.topics {
        let result = match call.error_for(&topic.name) {
            Some(error) => Err(error),
            None => match cluster.topics.get(&*topic.name.0).map(|t| t.partitions.len()) {
                None => Err(ResponseError::UnknownTopicOrPartition),
                Some(have) if usize::try_from(topic.count).is_ok_and(|count| count > have) => {
                    if request.validate_only {
                        Ok(())
                    } else {
                        cluster.add_partitions(&topic.name, topic.count)
                    }
                }
                Some(_) => Err(ResponseError::InvalidPartitions),
            },
        };
        response.results.push(
            CreatePartitionsTopicResult::default()
                .with_name(topic.name)
                .with_error_code(super::code(&result))
                .with_error_message(result.err().map(|error| text(&error.to_string()))),
        );
    }
    response
}
