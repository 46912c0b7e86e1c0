//! OffsetFetch (key 9): committed offsets, of one group up to version 7, of several since version 8 (KIP-709).

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse};
use kafka_protocol::protocol::StrBytes;

use super::super::acls::{Operation, Resource};
use super::super::cluster::{Cluster, Committed};
use super::{Call, by_id, topic_name};

/// Topic by topic: partition and what is committed for it.
type Found = BTreeMap<String, Vec<(i32, Option<Committed>)>>;

pub(super) fn handle(call: &Call<'_>, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let mut cluster = call.cluster();
    let mut response = OffsetFetchResponse::default();
    let now_ms = call.shared.clock.wall_ms();
    let stable = call.version >= 7 && request.require_stable;
    if call.version < 8 {
        let topics = request.topics.map(|topics| {
            topics.into_iter().map(|t| (t.name.to_string(), t.partition_indexes)).collect::<Vec<_>>()
        });
        cluster.expire_offsets(&request.group_id, now_ms);
        let allowed = call.check_group(&cluster, &request.group_id);
        if let Err(error) = allowed {
            response.error_code = error.code();
        }
        let all = topics.is_none();
        for (topic, partitions) in find(&cluster, &request.group_id, topics, allowed.is_ok()) {
            if all && is_hidden(call, &topic) {
                continue;
            }
            let refused = match allowed {
                Ok(()) => call.error_for(&topic),
                // Version 1 has no field for the group's error: it stands at every partition.
                Err(error) => Some(error).filter(|_| call.version < 2),
            };
            let one = |(index, committed): (i32, Option<Committed>)| {
                let pending = || stable && is_pending(&cluster, &request.group_id, &topic, index);
                let error = refused.or_else(|| pending().then_some(ResponseError::UnstableOffsetCommit));
                let (offset, epoch, metadata) = fields(committed.filter(|_| error.is_none()));
                OffsetFetchResponsePartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(offset)
                    .with_committed_leader_epoch(if call.version >= 5 { epoch } else { -1 })
                    .with_metadata(metadata)
                    .with_error_code(error.map_or(0, |error| error.code()))
            };
            let partitions = partitions.into_iter().map(one).collect();
            response.topics.push(
                OffsetFetchResponseTopic::default().with_name(topic_name(&topic)).with_partitions(partitions),
            );
        }
        return response;
    }
    for group in request.groups {
        cluster.expire_offsets(&group.group_id, now_ms);
        let answer = of_group(call, &cluster, group, stable);
        response.groups.push(answer);
    }
    response
}

fn of_group(
    call: &Call<'_>,
    cluster: &Cluster,
    group: OffsetFetchRequestGroup,
    stable: bool,
) -> OffsetFetchResponseGroup {
    // Member and epoch are for KIP-848 groups; classic ones do not look at them, though franz-go sends them.
    let member = group.member_id.as_deref().unwrap_or_default();
    let allowed = call.check_group(cluster, &group.group_id).and_then(|()| {
        match cluster.groups.get(&*group.group_id.0).and_then(|e| e.consumer.as_ref()) {
            Some(consumer) if call.version >= 9 && !member.is_empty() => {
                consumer.check_offsets(member, group.member_epoch, false)
            }
            _ => Ok(()),
        }
    });
    let mut answer = OffsetFetchResponseGroup::default()
        .with_group_id(group.group_id.clone())
        .with_error_code(super::code(&allowed));
    if allowed.is_err() {
        return answer;
    }
    let by_id = call.version >= by_id::VERSION;
    let all = group.topics.is_none();
    let mut asked = group.topics.as_ref().map(|_| Vec::new());
    for topic in group.topics.into_iter().flatten() {
        let name = match by_id {
            true => cluster.topic_name(topic.topic_id).map(str::to_owned),
            false => Some(topic.name.to_string()),
        };
        match name {
            Some(name) => asked.get_or_insert_default().push((name, topic.partition_indexes)),
            None => answer.topics.push(unknown(topic)),
        }
    }
    for (topic, partitions) in find(cluster, &group.group_id, asked, true) {
        if all && is_hidden(call, &topic) {
            continue;
        }
        let refused = call.error_for(&topic);
        let one = |(index, committed): (i32, Option<Committed>)| {
            let pending = || stable && is_pending(cluster, &group.group_id, &topic, index);
            let error = refused.or_else(|| pending().then_some(ResponseError::UnstableOffsetCommit));
            let (offset, epoch, metadata) = fields(committed.filter(|_| error.is_none()));
            OffsetFetchResponsePartitions::default()
                .with_error_code(error.map_or(0, |error| error.code()))
                .with_partition_index(index)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(epoch)
                .with_metadata(metadata)
        };
        let partitions = partitions.into_iter().map(one).collect();
        let mut found = OffsetFetchResponseTopics::default().with_partitions(partitions);
        if by_id {
            found.topic_id = cluster.topics.get(&topic).map(|t| t.id).unwrap_or_default();
        } else {
            found.name = topic_name(&topic);
        }
        answer.topics.push(found);
    }
    answer
}

/// Who asks for everything is not told of topics that he may not see; who names one is refused.
fn is_hidden(call: &Call<'_>, topic: &str) -> bool {
    call.denies(&Resource::Topic(topic.to_owned()), Operation::Describe)
}

/// A topic whose id nobody has.
fn unknown(topic: OffsetFetchRequestTopics) -> OffsetFetchResponseTopics {
    let one = |index: i32| {
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_error_code(ResponseError::UnknownTopicId.code())
    };
    let partitions = topic.partition_indexes.into_iter().map(one).collect();
    OffsetFetchResponseTopics::default().with_topic_id(topic.topic_id).with_partitions(partitions)
}

/// Does an open transaction hold an offset of this partition (KIP-447)?
fn is_pending(cluster: &Cluster, group: &str, topic: &str, partition: i32) -> bool {
    let Some(entry) = cluster.groups.get(group) else { return false };
    entry.pending.values().any(|offsets| offsets.contains_key(&(topic.to_owned(), partition)))
}

/// What is committed for the partitions asked for, or for all (`None`).
fn find(cluster: &Cluster, group: &str, topics: Option<Vec<(String, Vec<i32>)>>, allowed: bool) -> Found {
    let offsets = cluster.groups.get(group).filter(|_| allowed).map(|entry| &entry.offsets);
    let mut found = Found::new();
    match topics {
        Some(topics) => {
            for (topic, partitions) in topics {
                for p in partitions {
                    let committed = offsets.and_then(|o| o.get(&(topic.clone(), p))).cloned();
                    found.entry(topic.clone()).or_default().push((p, committed));
                }
            }
        }
        None => {
            for ((topic, p), committed) in offsets.into_iter().flatten() {
                found.entry(topic.clone()).or_default().push((*p, Some(committed.clone())));
            }
        }
    }
    found
}

/// Offset, leader epoch and metadata; -1 and an empty text where nothing is committed.
fn fields(committed: Option<Committed>) -> (i64, i32, Option<StrBytes>) {
    match committed {
        Some(c) => (c.offset, c.leader_epoch, Some(c.metadata.unwrap_or_default())),
        None => (-1, -1, Some(StrBytes::new())),
    }
}
