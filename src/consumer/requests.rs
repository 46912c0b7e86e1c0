//! The consumer's requests on the wire: built from what the core decides, read back into what it understands.
//!
//! One exchange per function; nothing is retried and nothing decided here, but for forgetting a coordinator that does
//! not answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Shared,
    fetch::FetchAction,
    lookups::{Found, Lookup},
    offsets::CommitAction,
};
use crate::{
    cluster::{Lane, kafka_string, millis},
    config::settings::IsolationLevel,
    connection::{
        Connection,
        api::{Api, StrBytes, wire},
    },
    error::{Error, ErrorKind, Result},
    group::{
        Answer, Request,
        assignor::{Assignor, Subscriber},
        wire::{MemberSubscription, decode_subscription, encode_subscription},
    },
    record::TopicPartition,
    time::{self, Instant},
};

/// The protocol type of classic consumer groups.
const CONSUMER: &str = "consumer";

/// One request of a membership to its coordinator.
pub(super) async fn group(shared: &Shared, request: Request, deadline: Instant) -> Result<Answer> {
    let consumer = &shared.settings;
    let group = wire::GroupId(kafka_string(group_id(shared)?));
    let instance = consumer.group_instance_id.as_deref().map(kafka_string);
    match request {
        Request::Join { member_id, topics } => {
            let metadata = encode_subscription(&MemberSubscription {
                topics,
                owned: Vec::new(),
                generation: -1,
                rack: consumer.client_rack.clone(),
            });
            let protocol = |assignor: Assignor| {
                wire::join_group_request::JoinGroupRequestProtocol::default()
                    .with_name(StrBytes::from_static_str(assignor.name()))
                    .with_metadata(metadata.clone())
            };
            let request = wire::JoinGroupRequest::default()
                .with_group_id(group)
                .with_session_timeout_ms(millis(consumer.session_timeout))
                .with_rebalance_timeout_ms(millis(consumer.max_poll_interval))
                .with_member_id(kafka_string(&member_id))
                .with_group_instance_id(instance)
                .with_protocol_type(StrBytes::from_static_str(CONSUMER))
                .with_protocols(Assignor::ALL.into_iter().map(protocol).collect());
            joined(to_coordinator(shared, Lane::Group, request, deadline).await?)
        }
        Request::Sync { member_id, generation, assignor, assignments } => {
            let assignment = |(member, assignment)| {
                wire::sync_group_request::SyncGroupRequestAssignment::default()
                    .with_member_id(StrBytes::from_string(member))
                    .with_assignment(assignment)
            };
            let request = wire::SyncGroupRequest::default()
                .with_group_id(group)
                .with_generation_id(generation)
                .with_member_id(kafka_string(&member_id))
                .with_group_instance_id(instance)
                .with_protocol_type(Some(StrBytes::from_static_str(CONSUMER)))
                .with_protocol_name(Some(StrBytes::from_static_str(assignor.name())))
                .with_assignments(assignments.into_iter().map(assignment).collect());
            let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
            Ok(Answer::Sync { error: answer.error_code, assignment: answer.assignment })
        }
        Request::Heartbeat { member_id, generation } => {
            let request = wire::HeartbeatRequest::default()
                .with_group_id(group)
                .with_generation_id(generation)
                .with_member_id(kafka_string(&member_id))
                .with_group_instance_id(instance);
            let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
            Ok(Answer::Heartbeat { error: answer.error_code })
        }
        Request::Leave { member_id, reason } => leave(shared, group, &member_id, reason, deadline).await,
    }
}

/// On the main lane: a join may be waiting on the group's, and would hold the leave back.
async fn leave(
    shared: &Shared,
    group: wire::GroupId,
    member_id: &str,
    reason: &'static str,
    deadline: Instant,
) -> Result<Answer> {
    let (_, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let version = connection.version::<wire::LeaveGroupRequest>().unwrap_or_default();
    let mut request = wire::LeaveGroupRequest::default().with_group_id(group);
    if version < 3 {
        request = request.with_member_id(kafka_string(member_id));
    } else {
        let mut member =
            wire::leave_group_request::MemberIdentity::default().with_member_id(kafka_string(member_id));
        if version >= 5 {
            member = member.with_reason(Some(StrBytes::from_static_str(reason)));
        }
        request = request.with_members(vec![member]);
    }
    Ok(Answer::Leave { error: connection.call(request, deadline).await?.error_code })
}

fn joined(answer: wire::JoinGroupResponse) -> Result<Answer> {
    let member = |member: wire::join_group_response::JoinGroupResponseMember| -> Result<Subscriber> {
        Ok(Subscriber {
            topics: decode_subscription(&member.metadata)?.topics,
            member_id: member.member_id.to_string(),
            instance_id: member.group_instance_id.map(|id| id.to_string()),
        })
    };
    Ok(Answer::Join {
        error: answer.error_code,
        generation: answer.generation_id,
        member_id: answer.member_id.to_string(),
        leader: answer.leader.to_string(),
        protocol: answer.protocol_name.map(|name| name.to_string()).unwrap_or_default(),
        members: answer.members.into_iter().map(member).collect::<Result<_>>()?,
        skip_assignment: answer.skip_assignment,
    })
}

/// Commits; the coordinator's code for every partition.
pub(super) async fn commit(shared: &Shared, commit: &CommitAction) -> Result<BTreeMap<TopicPartition, i16>> {
    use wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let topics = by_topic(
        commit.offsets.iter(),
        |(key, _)| key,
        |(key, offset)| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(key.partition)
                .with_committed_offset(offset.offset)
                .with_committed_leader_epoch(offset.leader_epoch)
                .with_committed_metadata(Some(kafka_string(&offset.metadata)))
        },
    );
    let topic = |(name, partitions)| {
        OffsetCommitRequestTopic::default().with_name(wire::TopicName(name)).with_partitions(partitions)
    };
    let request = wire::OffsetCommitRequest::default()
        .with_group_id(wire::GroupId(kafka_string(group_id(shared)?)))
        .with_generation_id_or_member_epoch(commit.identity.generation)
        .with_member_id(kafka_string(&commit.identity.member_id))
        .with_group_instance_id(commit.identity.instance_id.as_deref().map(kafka_string))
        .with_retention_time_ms(-1)
        .with_topics(topics.into_iter().map(topic).collect());
    let deadline = commit.deadline.min(time::now() + shared.cluster.settings().request_timeout);
    let answer = to_coordinator(shared, Lane::Main, request, deadline).await?;
    let mut codes = BTreeMap::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            codes.insert(key, partition.error_code);
        }
    }
    Ok(codes)
}

/// The group's committed offsets; -1 where there is none.
pub(super) async fn find_committed(
    shared: &Shared,
    partitions: &[TopicPartition],
    deadline: Instant,
) -> Result<Found> {
    use wire::offset_fetch_request::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
    };
    let (broker, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let version = connection.version::<wire::OffsetFetchRequest>().unwrap_or_default();
    let group = wire::GroupId(kafka_string(group_id(shared)?));
    let topics = by_topic(partitions.iter(), |key| key, |key| key.partition);
    let mut request = wire::OffsetFetchRequest::default();
    if version >= 8 {
        let topic = |(name, partitions)| {
            OffsetFetchRequestTopics::default()
                .with_name(wire::TopicName(name))
                .with_partition_indexes(partitions)
        };
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(group)
            .with_member_epoch(-1)
            .with_topics(Some(topics.into_iter().map(topic).collect()));
        request = request.with_groups(vec![group]);
    } else {
        let topic = |(name, partitions)| {
            OffsetFetchRequestTopic::default()
                .with_name(wire::TopicName(name))
                .with_partition_indexes(partitions)
        };
        request = request.with_group_id(group).with_topics(Some(topics.into_iter().map(topic).collect()));
    }
    // KIP-447: offsets of an open transaction are waited for, so that a restarted processor does not read twice.
    if version >= 7 {
        request =
            request.with_require_stable(shared.settings.isolation_level == IsolationLevel::ReadCommitted);
    }
    let answer = noted(shared, broker, connection.call(request, deadline).await)?;
    let mut found = Found::new();
    let mut add = |name: &Arc<str>, partition: i32, offset: i64, code: i16| {
        let key = TopicPartition { topic: Arc::clone(name), partition };
        found.insert(key, if code == 0 { Ok(offset) } else { Err(code) });
    };
    let mut code = answer.error_code;
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            add(&name, partition.partition_index, partition.committed_offset, partition.error_code);
        }
    }
    for group in answer.groups {
        code = group.error_code;
        for topic in group.topics {
            let name: Arc<str> = Arc::from(topic.name.as_str());
            for partition in topic.partitions {
                add(&name, partition.partition_index, partition.committed_offset, partition.error_code);
            }
        }
    }
    if code == 0 { Ok(found) } else { Err(Error::from_code("OffsetFetch", code)) }
}

/// First or last offsets, asked of one leader.
pub(super) async fn list_offsets(
    shared: &Shared,
    broker: i32,
    lookups: &[Lookup],
    deadline: Instant,
) -> Result<Found> {
    use wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let topics = by_topic(
        lookups.iter(),
        |lookup| &lookup.partition,
        |lookup| {
            ListOffsetsPartition::default()
                .with_partition_index(lookup.partition.partition)
                .with_current_leader_epoch(lookup.leader_epoch)
                .with_timestamp(lookup.to.timestamp())
        },
    );
    let topic = |(name, partitions)| {
        ListOffsetsTopic::default().with_name(wire::TopicName(name)).with_partitions(partitions)
    };
    let request = wire::ListOffsetsRequest::default()
        .with_replica_id(wire::BrokerId(-1))
        .with_isolation_level(isolation(shared))
        .with_timeout_ms(millis(deadline - time::now()))
        .with_topics(topics.into_iter().map(topic).collect());
    let answer = shared.cluster.call(broker, Lane::Main, request, deadline).await?;
    let mut found = Found::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            let code = partition.error_code;
            found.insert(key, if code == 0 { Ok(partition.offset) } else { Err(code) });
        }
    }
    Ok(found)
}

pub(super) async fn fetch(shared: &Shared, action: FetchAction) -> Result<wire::FetchResponse> {
    use wire::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
    let session = action.request;
    let topics = by_topic(
        session.partitions.iter(),
        |(key, _)| key,
        |(key, wanted)| {
            FetchPartition::default()
                .with_partition(key.partition)
                .with_current_leader_epoch(wanted.leader_epoch)
                .with_fetch_offset(wanted.offset)
                .with_partition_max_bytes(wanted.max_bytes)
        },
    );
    let topic = |(name, partitions)| {
        FetchTopic::default().with_topic(wire::TopicName(name)).with_partitions(partitions)
    };
    let forgotten = by_topic(session.forgotten.iter(), |key| key, |key| key.partition);
    let forget = |(name, partitions)| {
        ForgottenTopic::default().with_topic(wire::TopicName(name)).with_partitions(partitions)
    };
    let request = wire::FetchRequest::default()
        .with_max_wait_ms(millis(action.max_wait))
        .with_min_bytes(shared.settings.fetch_min_bytes)
        .with_max_bytes(action.max_bytes)
        .with_isolation_level(isolation(shared))
        .with_session_id(session.id)
        .with_session_epoch(session.epoch)
        .with_topics(topics.into_iter().map(topic).collect())
        .with_forgotten_topics_data(forgotten.into_iter().map(forget).collect());
    let deadline = time::now() + action.max_wait + shared.cluster.settings().request_timeout;
    shared.cluster.call(action.broker, Lane::Fetch, request, deadline).await
}

fn isolation(shared: &Shared) -> i8 {
    i8::from(shared.settings.isolation_level == IsolationLevel::ReadCommitted)
}

fn group_id(shared: &Shared) -> Result<&str> {
    shared.settings.group_id.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Config, "the call needs a consumer group").with_hint("set group.id")
    })
}

async fn coordinator(shared: &Shared, lane: Lane, deadline: Instant) -> Result<(i32, Arc<Connection>)> {
    let group = group_id(shared)?;
    let deadline = deadline.min(time::now() + shared.cluster.settings().request_timeout);
    let broker = shared.cluster.coordinator(group, deadline).await?;
    shared.coordinator.store(broker, Ordering::Relaxed);
    let connection = noted(shared, broker, shared.cluster.connection(broker, lane, deadline).await)?;
    Ok((broker, connection))
}

async fn to_coordinator<R: Api>(
    shared: &Shared,
    lane: Lane,
    request: R,
    deadline: Instant,
) -> Result<R::Response> {
    let (broker, connection) = coordinator(shared, lane, deadline).await?;
    noted(shared, broker, connection.call(request, deadline).await.map_err(|error| error.with_broker(broker)))
}

/// A coordinator that cannot be reached may have moved.
fn noted<T>(shared: &Shared, broker: i32, result: Result<T>) -> Result<T> {
    if let (Err(error), Some(group)) = (&result, &shared.settings.group_id)
        && error.code().is_none()
        && error.is_retriable()
    {
        shared.cluster.forget_coordinator(group, broker);
    }
    result
}

/// Gathers items under their topics. The items come sorted by partition.
fn by_topic<'a, T, U>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &'a TopicPartition,
    item: impl Fn(T) -> U,
) -> Vec<(StrBytes, Vec<U>)>
where
    T: 'a,
{
    let mut topics: Vec<(StrBytes, Vec<U>)> = Vec::new();
    for each in items {
        let topic = &key(&each).topic;
        if topics.last().is_none_or(|(name, _)| name.as_str() != &**topic) {
            topics.push((kafka_string(topic), Vec::new()));
        }
        if let Some((_, partitions)) = topics.last_mut() {
            partitions.push(item(each));
        }
    }
    topics
}
