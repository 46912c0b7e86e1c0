//! Membership: what a member asks its coordinator.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{Shared, coordinator, group_id, to_coordinator};
use crate::{
    cluster::{Lane, kafka_string, millis},
    config::settings::ConsumerSettings,
    connection::api::wire,
    error::{Error, ErrorKind, Result},
    group::{
        Answer, ConsumerHeartbeat, ConsumerHeartbeatAnswer, IdPartition, Request,
        assignor::{GroupMember, Strategy},
        wire::{
            MemberSubscription, check_count, decode_assignment, decode_generation, decode_sticky,
            decode_subscription, encode_generation, encode_sticky, encode_subscription,
        },
    },
    record::TopicPartition,
    time::Instant,
};

/// The protocol type of classic consumer groups.
const CONSUMER: &str = "consumer";

/// Groups have some hundred members, thousands at most: what is read of each takes a multiple of its bytes.
const MOST_MEMBERS: usize = 20_000;

/// One request of a membership to its coordinator.
pub(in crate::consumer) async fn group(
    shared: &Shared,
    request: Request,
    deadline: Instant,
) -> Result<Answer> {
    let consumer = &shared.settings;
    let group = kafka_string(group_id(shared)?);
    let instance = consumer.group_instance_id.as_deref().map(kafka_string);
    match request {
        Request::Join { member_id, topics, claim, generation, reason } => {
            let request = wire::JoinGroupRequest {
                group_id: group,
                session_timeout_ms: millis(consumer.session_timeout),
                rebalance_timeout_ms: millis(consumer.max_poll_interval),
                member_id: kafka_string(&member_id),
                group_instance_id: instance,
                protocol_type: wire::Str::from_static(CONSUMER),
                protocols: protocols(consumer, &topics, &claim, generation),
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
        Request::ConsumerHeartbeat(beat) => heartbeat(shared, group, instance, beat, deadline).await,
        Request::Leave { member_id, reason } => {
            leave(shared, group, instance, &member_id, reason, deadline).await
        }
    }
}

/// What the member subscribes to and owns, for each of its assignors.
fn protocols(
    consumer: &ConsumerSettings,
    topics: &[Arc<str>],
    claim: &[TopicPartition],
    generation: i32,
) -> Vec<wire::join_group_request::JoinGroupRequestProtocol> {
    let cooperative = consumer.assignors.iter().all(Strategy::is_cooperative);
    let protocol = |assignor: &Strategy| {
        let user_data = match assignor {
            Strategy::Range | Strategy::RoundRobin => None,
            Strategy::Sticky => Some(encode_sticky(claim, generation)),
            Strategy::CooperativeSticky => Some(encode_generation(generation)),
            Strategy::Own(own) => own.user_data(topics),
        };
        // With eager rebalancing everything was given up before.
        let owned = if cooperative { claim.to_vec() } else { Vec::new() };
        let (topics, rack) = (topics.to_vec(), consumer.client_rack.clone());
        let subscription = MemberSubscription { topics, owned, generation, rack, user_data };
        wire::join_group_request::JoinGroupRequestProtocol {
            name: kafka_string(assignor.name()),
            metadata: encode_subscription(&subscription),
        }
    };
    consumer.assignors.iter().map(protocol).collect()
}

/// On the group's lane, leaving too: a leave must not pass the join before it.
async fn heartbeat(
    shared: &Shared,
    group_id: wire::Str,
    instance_id: Option<wire::Str>,
    beat: ConsumerHeartbeat,
    deadline: Instant,
) -> Result<Answer> {
    let consumer = &shared.settings;
    let first = |value: &Option<String>| value.as_deref().filter(|_| beat.is_full).map(kafka_string);
    let mut request = wire::ConsumerGroupHeartbeatRequest {
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
    if let Some(pattern) = &request.subscribed_topic_regex {
        let (broker, connection) = coordinator(shared, Lane::Group, deadline).await?;
        // Before Kafka 4.0 the protocol is there, and has no patterns.
        if connection.version::<wire::ConsumerGroupHeartbeatRequest>() == Some(0) {
            if !pattern.is_empty() {
                let text = "the coordinator matches no patterns in the consumer protocol";
                return Err(Error::new(ErrorKind::Unsupported, text).with_broker(broker));
            }
            // A broker of that version has never been told of a pattern, so that there is none to take back.
            request.subscribed_topic_regex = None;
        }
    }
    let answer = to_coordinator(shared, Lane::Group, request, deadline).await?;
    let topics = answer.assignment.iter().flat_map(|assignment| &assignment.topic_partitions);
    check_count("assignment", topics.map(|topic| topic.partitions.len()).sum())?;
    let assigned = |topic: wire::consumer_group_heartbeat_response::TopicPartitions| {
        topic.partitions.into_iter().map(move |partition| (topic.topic_id, partition))
    };
    Ok(Answer::ConsumerHeartbeat(ConsumerHeartbeatAnswer {
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

/// Every partition that a member of the group has, as the coordinator knows it.
pub(in crate::consumer) async fn assigned(
    shared: &Shared,
    deadline: Instant,
) -> Result<BTreeSet<TopicPartition>> {
    let id = group_id(shared)?;
    let request = wire::DescribeGroupsRequest { groups: vec![kafka_string(id)], ..Default::default() };
    let answer = to_coordinator(shared, Lane::Main, request, deadline).await?;
    let missing = || Error::protocol("an answer without the group asked for").with_api("DescribeGroups");
    let group = answer.groups.into_iter().find(|group| group.group_id.as_str() == id).ok_or_else(missing)?;
    if group.error_code != 0 {
        return Err(Error::from_code("DescribeGroups", group.error_code));
    }
    let mut partitions = BTreeSet::new();
    for member in group.members {
        partitions.extend(decode_assignment(&member.member_assignment)?);
    }
    Ok(partitions)
}
