//! What leaders are asked: records, first and last offsets, where epochs end.

use std::sync::Arc;

use super::{Shared, by_topic, by_topic_id, of_one_request};
use crate::{
    cluster::{Lane, kafka_string, millis},
    config::settings::IsolationLevel,
    connection::api::wire,
    consumer::{
        fetch::FetchAction,
        lookups::{Found, FoundOffset, Lookup},
        partitions::{Check, EpochEnd, EpochEnds},
    },
    error::Result,
    record::TopicPartition,
    time::{self, Instant},
};

/// The last version of Fetch that names topics by name.
const BY_NAME: i16 = 12;

pub(in crate::consumer) async fn fetch(shared: &Shared, action: FetchAction) -> Result<wire::FetchResponse> {
    use wire::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
    let deadline = time::now() + action.max_wait + shared.cluster.settings().request_timeout;
    let lane = if action.is_aside { Lane::Main } else { Lane::Fetch };
    let connection = shared.cluster.connection(action.broker, lane, deadline).await?;
    let rack = shared.settings.client_rack.as_deref().filter(|_| action.names_rack);
    let session = action.request;
    let version = connection.version::<wire::FetchRequest>().unwrap_or_default();
    let by_id = session.by_id && version > BY_NAME;
    let topics = by_topic_id(
        session.partitions.iter(),
        |(key, _)| key,
        |(key, wanted)| FetchPartition {
            partition: key.partition,
            current_leader_epoch: wanted.leader_epoch,
            fetch_offset: wanted.offset,
            // Earlier versions have no place for it.
            last_fetched_epoch: if version >= BY_NAME { wanted.last_epoch } else { -1 },
            partition_max_bytes: wanted.max_bytes,
            ..Default::default()
        },
        |(_, wanted)| wanted.topic_id,
    );
    let topic = |(topic, id, partitions)| FetchTopic { topic, topic_id: wire::Uuid(id), partitions };
    // By name the topic that is in use now would be taken off the broker's list.
    let replaced = if by_id { &session.replaced[..] } else { &[] };
    let gone = session.forgotten.iter().chain(replaced);
    let forgotten = by_topic_id(gone, |(key, _)| key, |(key, _)| key.partition, |(_, id)| *id);
    let forget = |(topic, id, partitions)| ForgottenTopic { topic, topic_id: wire::Uuid(id), partitions };
    let request = wire::FetchRequest {
        max_wait_ms: millis(action.max_wait),
        min_bytes: shared.settings.fetch_min_bytes,
        max_bytes: action.max_bytes,
        isolation_level: isolation(shared),
        session_id: session.id,
        session_epoch: session.epoch.0,
        topics: topics.into_iter().map(topic).collect(),
        forgotten_topics_data: forgotten.into_iter().map(forget).collect(),
        rack_id: rack.map(kafka_string).unwrap_or_default(),
        ..Default::default()
    };
    let max = if by_id { i16::MAX } else { BY_NAME };
    let answer = connection.call_up_to(max, request, deadline).await;
    shared.cluster.note(action.broker, answer)
}

/// First or last offsets, asked of one leader.
pub(in crate::consumer) async fn list_offsets(
    shared: &Shared,
    broker: i32,
    lookups: &[Lookup],
    deadline: Instant,
) -> Result<Found> {
    use wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let deadline = of_one_request(shared, deadline);
    let now = shared.cluster.settings().environment.wall_clock_ms();
    let topics = by_topic(
        lookups.iter(),
        |lookup| &lookup.partition,
        |lookup| ListOffsetsPartition {
            partition_index: lookup.partition.partition,
            current_leader_epoch: lookup.leader_epoch,
            timestamp: lookup.to.timestamp(now),
        },
    );
    let topic = |(name, partitions)| ListOffsetsTopic { name, partitions };
    let request = wire::ListOffsetsRequest {
        replica_id: -1,
        isolation_level: isolation(shared),
        timeout_ms: millis(deadline - time::now()),
        topics: topics.into_iter().map(topic).collect(),
    };
    let answer = shared.cluster.call(broker, Lane::Main, request, deadline).await?;
    let mut found = Vec::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            let code = partition.error_code;
            let (offset, leader_epoch) = (partition.offset, partition.leader_epoch);
            let timestamp = partition.timestamp;
            let place =
                FoundOffset { offset, leader_epoch, timestamp, metadata: String::new(), by_id: false };
            found.push((key, if code == 0 { Ok(place) } else { Err(code) }));
        }
    }
    Ok(found.into_iter().collect())
}

/// Where epochs end in the log of one leader (KIP-320); `None` where that broker cannot tell.
pub(in crate::consumer) async fn epoch_ends(
    shared: &Shared,
    broker: i32,
    checks: &[Check],
    deadline: Instant,
) -> Result<Option<EpochEnds>> {
    use wire::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
    let deadline = of_one_request(shared, deadline);
    let connection = shared.cluster.connection(broker, Lane::Main, deadline).await?;
    // As in Java: before version 3 it was for brokers alone to ask.
    if connection.version::<wire::OffsetForLeaderEpochRequest>().is_none_or(|version| version < 3) {
        return Ok(None);
    }
    let topics = by_topic(
        checks.iter(),
        |check| &check.partition,
        |check| OffsetForLeaderPartition {
            partition: check.partition.partition,
            current_leader_epoch: check.leader_epoch,
            leader_epoch: check.epoch,
        },
    );
    let topic = |(topic, partitions)| OffsetForLeaderTopic { topic, partitions };
    let request =
        wire::OffsetForLeaderEpochRequest { replica_id: -1, topics: topics.into_iter().map(topic).collect() };
    let answer = shared.cluster.call(broker, Lane::Main, request, deadline).await?;
    let mut ends = Vec::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.topic.as_str());
        for told in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: told.partition };
            let end = EpochEnd { epoch: told.leader_epoch, offset: told.end_offset };
            ends.push((key, if told.error_code == 0 { Ok(end) } else { Err(told.error_code) }));
        }
    }
    Ok(Some(ends.into_iter().collect()))
}

fn isolation(shared: &Shared) -> i8 {
    i8::from(shared.settings.isolation_level == IsolationLevel::ReadCommitted)
}
