//! The consumer's requests on the wire: built from what the core decides, read back into what it understands.
//!
//! One exchange per function; nothing is retried and nothing decided here, but for forgetting a coordinator that does
//! not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Shared,
    fetch::FetchAction,
    lookups::{Found, Lookup, Place},
    offsets::CommitAction,
    partitions::{Check, EpochEnd, EpochEnds},
};
use crate::{
    cluster::{CoordinatorKind, Lane, TopicId, kafka_string, millis},
    config::settings::IsolationLevel,
    connection::{
        Connection,
        api::{Api, wire},
    },
    error::{
        Error, ErrorKind, Result,
        code::{UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION},
    },
    group::{
        Answer, Beat, BeatAnswer, IdPartition, Identity, Request,
        assignor::{GroupMember, Strategy},
        wire::{
            MemberSubscription, decode_assignment, decode_generation, decode_sticky, decode_subscription,
            encode_generation, encode_sticky, encode_subscription,
        },
    },
    record::TopicPartition,
    time::{self, Instant},
};

/// The protocol type of classic consumer groups.
const CONSUMER: &str = "consumer";

/// Groups have some hundred members, thousands at most: what is read of each takes a multiple of its bytes.
const MOST_MEMBERS: usize = 20_000;

/// One request of a membership to its coordinator.
pub(super) async fn group(shared: &Shared, request: Request, deadline: Instant) -> Result<Answer> {
    let consumer = &shared.settings;
    let group = kafka_string(group_id(shared)?);
    let instance = consumer.group_instance_id.as_deref().map(kafka_string);
    match request {
        Request::Join { member_id, topics, claim, generation, reason } => {
            let cooperative = consumer.assignors.iter().all(Strategy::is_cooperative);
            let metadata = |assignor: &Strategy| {
                let user_data = match assignor {
                    Strategy::Range | Strategy::RoundRobin => None,
                    Strategy::Sticky => Some(encode_sticky(&claim, generation)),
                    Strategy::CooperativeSticky => Some(encode_generation(generation)),
                    Strategy::Own(own) => own.user_data(&topics),
                };
                // With eager rebalancing everything was given up before.
                let owned = if cooperative { claim.clone() } else { Vec::new() };
                let (topics, rack) = (topics.clone(), consumer.client_rack.clone());
                encode_subscription(&MemberSubscription { topics, owned, generation, rack, user_data })
            };
            let protocol = |assignor: &Strategy| wire::join_group_request::JoinGroupRequestProtocol {
                name: kafka_string(assignor.name()),
                metadata: metadata(assignor),
            };
            let request = wire::JoinGroupRequest {
                group_id: group,
                session_timeout_ms: millis(consumer.session_timeout),
                rebalance_timeout_ms: millis(consumer.max_poll_interval),
                member_id: kafka_string(&member_id),
                group_instance_id: instance,
                protocol_type: wire::Str::from_static(CONSUMER),
                protocols: consumer.assignors.iter().map(protocol).collect(),
                reason: (!reason.is_empty()).then(|| kafka_string(&reason)),
            };
            joined(to_coordinator(shared, Lane::Group, request, deadline).await?)
        }
        Request::Sync { member_id, generation, assignor, assignments } => {
            let assignment = |(member, assignment)| wire::sync_group_request::SyncGroupRequestAssignment {
                member_id: wire::Str::from(member),
                assignment,
            };
            let request = wire::SyncGroupRequest {
                group_id: group,
                generation_id: generation,
                member_id: kafka_string(&member_id),
                group_instance_id: instance,
                protocol_type: Some(wire::Str::from_static(CONSUMER)),
                protocol_name: Some(kafka_string(assignor.name())),
                assignments: assignments.into_iter().map(assignment).collect(),
            };
            let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
            Ok(Answer::Sync { error: answer.error_code, assignment: answer.assignment })
        }
        Request::Heartbeat { member_id, generation } => {
            let request = wire::HeartbeatRequest {
                group_id: group,
                generation_id: generation,
                member_id: kafka_string(&member_id),
                group_instance_id: instance,
            };
            let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
            Ok(Answer::Heartbeat { error: answer.error_code })
        }
        Request::Beat(beat) => heartbeat(shared, group, instance, beat, deadline).await,
        Request::Leave { member_id, reason } => {
            leave(shared, group, instance, &member_id, reason, deadline).await
        }
    }
}

/// On the group's lane, leaving too: a leave must not pass the join before it.
async fn heartbeat(
    shared: &Shared,
    group_id: wire::Str,
    instance_id: Option<wire::Str>,
    beat: Beat,
    deadline: Instant,
) -> Result<Answer> {
    let consumer = &shared.settings;
    let first = |value: &Option<String>| value.as_deref().filter(|_| beat.is_full).map(kafka_string);
    let request = wire::ConsumerGroupHeartbeatRequest {
        group_id,
        instance_id,
        member_id: kafka_string(&beat.member_id),
        member_epoch: beat.epoch,
        rack_id: first(&consumer.client_rack),
        rebalance_timeout_ms: if beat.is_full { millis(consumer.max_poll_interval) } else { -1 },
        subscribed_topic_names: beat
            .topics
            .map(|topics| topics.iter().map(|name| kafka_string(name)).collect()),
        subscribed_topic_regex: beat.pattern.as_deref().map(kafka_string),
        server_assignor: first(&consumer.group_remote_assignor),
        topic_partitions: beat.owned.map(|owned| by_id(&owned)),
    };
    let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
    let assigned = |topic: wire::consumer_group_heartbeat_response::TopicPartitions| {
        topic.partitions.into_iter().map(move |partition| (topic.topic_id, partition))
    };
    Ok(Answer::Beat(BeatAnswer {
        error: answer.error_code,
        message: answer.error_message.map(|text| text.to_string()),
        member_id: answer.member_id.map(|id| id.to_string()),
        epoch: answer.member_epoch,
        interval: Duration::from_millis(u64::try_from(answer.heartbeat_interval_ms).unwrap_or(0)),
        assignment: answer
            .assignment
            .map(|assignment| assignment.topic_partitions.into_iter().flat_map(assigned).collect()),
    }))
}

fn by_id(partitions: &[IdPartition]) -> Vec<wire::consumer_group_heartbeat_request::TopicPartitions> {
    let topic = |of_topic: &[IdPartition]| wire::consumer_group_heartbeat_request::TopicPartitions {
        topic_id: of_topic.first().map(|(id, _)| *id).unwrap_or_default(),
        partitions: of_topic.iter().map(|(_, partition)| *partition).collect(),
    };
    partitions.chunk_by(|(left, _), (right, _)| left == right).map(topic).collect()
}

/// On the main lane: a join may be waiting on the group's, and would hold the leave back.
async fn leave(
    shared: &Shared,
    group: wire::Str,
    instance: Option<wire::Str>,
    member_id: &str,
    reason: &'static str,
    deadline: Instant,
) -> Result<Answer> {
    let (_, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let version = connection.version::<wire::LeaveGroupRequest>().unwrap_or_default();
    let mut request = wire::LeaveGroupRequest { group_id: group, ..Default::default() };
    if version < 3 {
        request.member_id = kafka_string(member_id);
    } else {
        let mut member = wire::leave_group_request::MemberIdentity {
            member_id: kafka_string(member_id),
            group_instance_id: instance,
            ..Default::default()
        };
        if version >= 5 {
            member.reason = Some(wire::Str::from_static(reason));
        }
        request.members = vec![member];
    }
    Ok(Answer::Leave { error: connection.call(request, deadline).await?.error_code })
}

fn joined(answer: wire::JoinGroupResponse) -> Result<Answer> {
    let is = |strategy: &Strategy| {
        answer.protocol_name.as_ref().is_some_and(|name| name.as_str() == strategy.name())
    };
    let (sticky, cooperative) = (is(&Strategy::Sticky), is(&Strategy::CooperativeSticky));
    // A member that cannot be understood gets nothing; it must not stop those that can.
    let member = |member: wire::join_group_response::JoinGroupResponseMember| {
        let MemberSubscription { topics, owned, generation, rack, user_data } = decode_subscription(
            &member.metadata,
        )
        .unwrap_or_else(|error| {
            tracing::warn!(member = %member.member_id.as_str(), %error, "a member of the group is left out");
            MemberSubscription::default()
        });
        let (owned, generation) = match &user_data {
            Some(data) if sticky => decode_sticky(data),
            Some(data) if cooperative && generation < 0 => (owned, decode_generation(data)),
            _ => (owned, generation),
        };
        GroupMember {
            topics,
            owned,
            generation,
            rack,
            user_data,
            member_id: member.member_id.to_string(),
            instance_id: member.group_instance_id.map(|id| id.to_string()),
        }
    };
    if answer.members.len() > MOST_MEMBERS {
        return Err(Error::protocol(format!(
            "the coordinator names {} members of the group, more than {MOST_MEMBERS}",
            answer.members.len()
        ))
        .with_api("JoinGroup"));
    }
    Ok(Answer::Join {
        error: answer.error_code,
        generation: answer.generation_id,
        member_id: answer.member_id.to_string(),
        leader: answer.leader.to_string(),
        protocol: answer.protocol_name.map(|name| name.to_string()).unwrap_or_default(),
        members: answer.members.into_iter().map(member).collect(),
        skip_assignment: answer.skip_assignment,
    })
}

/// Commits; the coordinator's code for every partition.
pub(super) async fn commit(shared: &Shared, commit: &CommitAction) -> Result<BTreeMap<TopicPartition, i16>> {
    use wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let topics = by_topic_id(
        commit.offsets.iter(),
        |(key, _)| key,
        |(key, offset)| OffsetCommitRequestPartition {
            partition_index: key.partition,
            committed_offset: offset.offset,
            committed_leader_epoch: offset.leader_epoch,
            committed_metadata: Some(kafka_string(&offset.metadata)),
        },
        |(_, offset)| offset.topic_id,
    );
    let ids = Ids::new(topics.iter().map(|(name, id, _)| (name, *id)));
    let topic =
        |(name, id, partitions)| OffsetCommitRequestTopic { name, topic_id: wire::Uuid(id), partitions };
    let request = wire::OffsetCommitRequest {
        group_id: kafka_string(group_id(shared)?),
        generation_id_or_member_epoch: commit.identity.generation,
        member_id: kafka_string(&commit.identity.member_id),
        group_instance_id: commit.identity.instance_id.as_deref().map(kafka_string),
        retention_time_ms: -1,
        topics: topics.into_iter().map(topic).collect(),
    };
    let deadline = commit.deadline.min(time::now() + shared.cluster.settings().request_timeout);
    let (broker, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let answer = match ids.are_known() {
        true => connection.call(request, deadline).await,
        false => connection.call_up_to::<OFFSETS_BY_NAME, _>(request, deadline).await,
    };
    let answer = noted(shared, broker, answer.map_err(|error| error.with_broker(broker)))?;
    let mut codes = BTreeMap::new();
    for topic in answer.topics {
        let Some(name) = ids.name(&topic.name, topic.topic_id) else { continue };
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            let code = match partition.error_code {
                // No such partition of that topic.
                UNKNOWN_TOPIC_ID => UNKNOWN_TOPIC_OR_PARTITION,
                code => code,
            };
            codes.insert(key, code);
        }
    }
    Ok(codes)
}

/// The last version of OffsetCommit and OffsetFetch that names topics by name.
const OFFSETS_BY_NAME: i16 = 9;

/// The topics of a request by their ids. Named so, offsets of a topic are never taken for those of another that was made under
/// its name.
struct Ids(BTreeMap<TopicId, Arc<str>>);

impl Ids {
    fn new<'a>(topics: impl Iterator<Item = (&'a wire::Str, TopicId)>) -> Self {
        Self(topics.map(|(name, id)| (id, Arc::from(name.as_str()))).collect())
    }

    /// Whether all have one.
    fn are_known(&self) -> bool {
        !self.0.contains_key(&TopicId::default())
    }

    /// The name of a topic of the answer, which has either.
    fn name(&self, name: &wire::Str, id: wire::Uuid) -> Option<Arc<str>> {
        match name.as_str() {
            "" => self.0.get(&id.0).cloned(),
            name => Some(Arc::from(name)),
        }
    }
}

/// The group's committed offsets; -1 where there is none. `ids`: those of the partitions' topics, as far as they are known. Asked as a `member` of the consumer protocol (KIP-848), the
/// coordinator refuses one that it has given up.
pub(super) async fn find_committed(
    shared: &Shared,
    member: Option<Identity>,
    partitions: &[TopicPartition],
    ids: &[TopicId],
    deadline: Instant,
) -> Result<Found> {
    use wire::offset_fetch_request::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
    };
    let (broker, connection) = coordinator(shared, Lane::Main, deadline).await?;
    let version = connection.version::<wire::OffsetFetchRequest>().unwrap_or_default();
    let group = kafka_string(group_id(shared)?);
    let known = ids.iter().copied().chain(std::iter::repeat(TopicId::default()));
    let topics =
        by_topic_id(partitions.iter().zip(known), |(key, _)| key, |(key, _)| key.partition, |(_, id)| *id);
    let ids = Ids::new(topics.iter().map(|(name, id, _)| (name, *id)));
    let mut request = wire::OffsetFetchRequest::default();
    if version >= 8 {
        let topic = |(name, id, partitions)| OffsetFetchRequestTopics {
            name,
            topic_id: wire::Uuid(id),
            partition_indexes: partitions,
        };
        let group = OffsetFetchRequestGroup {
            group_id: group,
            member_epoch: member.as_ref().map_or(-1, |member| member.generation),
            member_id: member.as_ref().map(|member| kafka_string(&member.member_id)),
            topics: Some(topics.into_iter().map(topic).collect()),
        };
        request.groups = vec![group];
    } else {
        let topic = |(name, _, partitions)| OffsetFetchRequestTopic { name, partition_indexes: partitions };
        request.group_id = group;
        request.topics = Some(topics.into_iter().map(topic).collect());
    }
    // KIP-447: offsets of an open transaction are waited for, so that a restarted processor does not read twice.
    if version >= 7 {
        request.require_stable = shared.settings.isolation_level == IsolationLevel::ReadCommitted;
    }
    let answer = match ids.are_known() {
        true => connection.call(request, deadline).await,
        false => connection.call_up_to::<OFFSETS_BY_NAME, _>(request, deadline).await,
    };
    let answer = noted(shared, broker, answer)?;
    let mut found = Found::new();
    let mut add = |name: &Arc<str>, partition: i32, place: (i64, i32, Option<wire::Str>), code: i16| {
        let key = TopicPartition { topic: Arc::clone(name), partition };
        let (offset, leader_epoch, metadata) = place;
        let metadata = metadata.map(|text| text.to_string()).unwrap_or_default();
        let place = Place { offset, leader_epoch, timestamp: -1, metadata };
        found.insert(key, if code == 0 { Ok(place) } else { Err(code) });
    };
    let mut code = answer.error_code;
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            add(
                &name,
                partition.partition_index,
                (partition.committed_offset, partition.committed_leader_epoch, partition.metadata),
                partition.error_code,
            );
        }
    }
    for group in answer.groups {
        code = group.error_code;
        for topic in group.topics {
            let Some(name) = ids.name(&topic.name, topic.topic_id) else { continue };
            for partition in topic.partitions {
                add(
                    &name,
                    partition.partition_index,
                    (partition.committed_offset, partition.committed_leader_epoch, partition.metadata),
                    partition.error_code,
                );
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
    let mut found = Found::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.name.as_str());
        for partition in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: partition.partition_index };
            let code = partition.error_code;
            let (offset, leader_epoch) = (partition.offset, partition.leader_epoch);
            let timestamp = partition.timestamp;
            let place = Place { offset, leader_epoch, timestamp, metadata: String::new() };
            found.insert(key, if code == 0 { Ok(place) } else { Err(code) });
        }
    }
    Ok(found)
}

/// Where epochs end in the log of one leader (KIP-320); `None` where that broker cannot tell.
pub(super) async fn epoch_ends(
    shared: &Shared,
    broker: i32,
    checks: &[Check],
    deadline: Instant,
) -> Result<Option<EpochEnds>> {
    use wire::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
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
    let mut ends = EpochEnds::new();
    for topic in answer.topics {
        let name: Arc<str> = Arc::from(topic.topic.as_str());
        for told in topic.partitions {
            let key = TopicPartition { topic: Arc::clone(&name), partition: told.partition };
            let end = EpochEnd { epoch: told.leader_epoch, offset: told.end_offset };
            ends.insert(key, if told.error_code == 0 { Ok(end) } else { Err(told.error_code) });
        }
    }
    Ok(Some(ends))
}

/// The last version of Fetch that names topics by name.
const BY_NAME: i16 = 12;

pub(super) async fn fetch(shared: &Shared, action: FetchAction) -> Result<wire::FetchResponse> {
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
    // By name, what was replaced would be forgotten under the name that is in use.
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
    let answer = match by_id {
        true => connection.call(request, deadline).await,
        false => connection.call_up_to::<BY_NAME, _>(request, deadline).await,
    };
    if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Disconnected) {
        shared.cluster.refresh();
    }
    answer.map_err(|error| error.with_broker(action.broker))
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
    let broker = shared.cluster.coordinator(CoordinatorKind::Group, group, deadline).await?;
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
    let answer = connection.call(request, deadline).await;
    if lane == Lane::Group && answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Timeout) {
        // Whatever is asked next would wait behind this, for as long as the poll interval.
        connection.end();
    }
    noted(shared, broker, answer.map_err(|error| error.with_broker(broker)))
}

/// Every partition that a member of the group has, as the coordinator knows it.
pub(super) async fn assigned(shared: &Shared, deadline: Instant) -> Result<BTreeSet<TopicPartition>> {
    let groups = vec![kafka_string(group_id(shared)?)];
    let request = wire::DescribeGroupsRequest { groups, ..Default::default() };
    let answer = to_coordinator(shared, Lane::Main, request, deadline).await?;
    let missing = || Error::protocol("an answer without the group asked for").with_api("DescribeGroups");
    let group = answer.groups.into_iter().next().ok_or_else(missing)?;
    if group.error_code != 0 {
        return Err(Error::from_code("DescribeGroups", group.error_code));
    }
    let mut partitions = BTreeSet::new();
    for member in group.members {
        partitions.extend(decode_assignment(&member.member_assignment)?);
    }
    Ok(partitions)
}

/// A coordinator that cannot be reached may have moved.
fn noted<T>(shared: &Shared, broker: i32, result: Result<T>) -> Result<T> {
    if let (Err(error), Some(group)) = (&result, &shared.settings.group_id)
        && error.code().is_none()
        && error.is_retriable()
    {
        shared.cluster.forget_coordinator(CoordinatorKind::Group, group, broker);
    }
    result
}

/// Gathers items under their topics and those's ids. The items come sorted by partition, or nearly so.
fn by_topic_id<'a, T, U>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &'a TopicPartition,
    item: impl Fn(&T) -> U,
    id: impl Fn(&T) -> TopicId,
) -> Vec<(wire::Str, TopicId, Vec<U>)>
where
    T: 'a,
{
    let mut topics: Vec<(wire::Str, TopicId, Vec<U>)> = Vec::new();
    for each in items {
        let (topic, id) = (&key(&each).topic, id(&each));
        if topics.last().is_none_or(|(name, last, _)| *last != id || name.as_str() != &**topic) {
            topics.push((kafka_string(topic), id, Vec::new()));
        }
        if let Some((_, _, partitions)) = topics.last_mut() {
            partitions.push(item(&each));
        }
    }
    topics
}

/// Gathers items under their topics. The items come sorted by partition.
fn by_topic<'a, T, U>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &'a TopicPartition,
    item: impl Fn(T) -> U,
) -> Vec<(wire::Str, Vec<U>)>
where
    T: 'a,
{
    let mut topics: Vec<(wire::Str, Vec<U>)> = Vec::new();
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
