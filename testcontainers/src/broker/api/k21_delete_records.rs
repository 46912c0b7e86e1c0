//! DeleteRecords (key 21): moves a partition's log start forward (KIP-107).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::Call;

pub(super) fn handle(call: &Call<'_>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut cluster = call.cluster();
    let mut response = DeleteRecordsResponse::default();
    for topic in request.topics {
        let injected = call.error_for(&topic.name);
        let policy = cluster.topics.get(&*topic.name.0).and_then(|t| t.config("cleanup.policy"));
        let keeps = policy.is_some_and(|policy| !policy.contains("delete"));
        let mut answer = DeleteRecordsTopicResult::default().with_name(topic.name.clone());
        for p in topic.partitions {
            let mut delete = || -> Result<i64, ResponseError> {
                injected.map_or(Ok(()), Err)?;
                cluster.led_partition(call.broker, &topic.name, p.partition_index, -1)?;
                if keeps {
                    return Err(ResponseError::PolicyViolation);
                }
                cluster.partition_mut(&topic.name, p.partition_index)?.log.delete_before(p.offset)
            };
            let result = delete();
            answer.partitions.push(
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(p.partition_index)
                    .with_low_watermark(result.unwrap_or(-1))
                    .with_error_code(super::code(&result)),
            );
        }
        response.topics.push(answer);
    }
    drop(cluster);
    call.shared.appended.notify_waiters();
    response
}
