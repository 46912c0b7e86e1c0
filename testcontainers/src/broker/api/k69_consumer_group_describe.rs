//! ConsumerGroupDescribe (key 69): state, members and assignments of groups of KIP-848.

use std::collections::BTreeSet;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member, TopicPartitions,
};
use kafka_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, GroupId};
use uuid::Uuid;

use super::super::cluster::Cluster;
use super::super::consumer_group::{self, ConsumerGroup};
use super::{Call, text, topic_name};

pub(super) fn handle(
    call: &Call<'_>,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let cluster = call.cluster();
    let groups = request.group_ids.into_iter().map(|id| describe(call, &cluster, id)).collect();
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

fn describe(call: &Call<'_>, cluster: &Cluster, id: GroupId) -> DescribedGroup {
    let answer = DescribedGroup::default().with_group_id(id.clone());
    let found = call.check_group(cluster, &id).and_then(|()| {
        let group = cluster.groups.get(&*id.0).and_then(|entry| entry.consumer.as_ref());
        group.ok_or(ResponseError::GroupIdNotFound)
    });
    match found {
        Ok(group) => fill(call, cluster, answer, group),
        Err(error) => answer
            .with_error_code(error.code())
            .with_error_message(Some(text(&format!("Group {} is not a consumer group.", &*id.0)))),
    }
}

fn fill(call: &Call<'_>, cluster: &Cluster, answer: DescribedGroup, group: &ConsumerGroup) -> DescribedGroup {
    let nothing = BTreeSet::new();
    let member = |(id, m): (&String, &consumer_group::Member)| {
        let names = m.names.iter().map(|name| topic_name(name)).collect();
        let member = Member::default()
            .with_member_id(text(id))
            .with_instance_id(m.instance_id.as_deref().map(text))
            .with_rack_id(m.rack_id.as_deref().map(text))
            .with_member_epoch(m.epoch)
            .with_client_id(text(&m.client_id))
            .with_client_host(text(&m.client_host))
            .with_subscribed_topic_names(names)
            .with_subscribed_topic_regex(m.regex.as_deref().map(text))
            .with_assignment(assignment(cluster, &m.assigned))
            .with_target_assignment(assignment(cluster, group.target.get(id).unwrap_or(&nothing)));
        // Version 1 says which protocol the member speaks: 1 is KIP-848.
        if call.version >= 1 { member.with_member_type(1) } else { member }
    };
    answer
        .with_group_state(text(group.state()))
        .with_group_epoch(group.epoch)
        .with_assignment_epoch(group.assignment_epoch)
        .with_assignor_name(text(group.assignor()))
        .with_members(group.members().map(member).collect())
}

fn assignment(cluster: &Cluster, partitions: &BTreeSet<(Uuid, i32)>) -> Assignment {
    let mut topics: Vec<TopicPartitions> = Vec::new();
    for (id, partition) in partitions {
        match topics.last_mut().filter(|last| last.topic_id == *id) {
            Some(last) => last.partitions.push(*partition),
            None => topics.push(
                TopicPartitions::default()
                    .with_topic_id(*id)
                    .with_topic_name(topic_name(cluster.topic_name(*id).unwrap_or_default()))
                    .with_partitions(vec![*partition]),
            ),
        }
    }
    Assignment::default().with_topic_partitions(topics)
}
