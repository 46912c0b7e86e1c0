//! Metadata (key 3): brokers at the addresses of the caller's listener, topics by name or id, auto creation.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse};

use super::super::acls::{Operation, Resource};
use super::super::cluster::{Cluster, Placement, Topic};
use super::super::partition::Partition;
use super::{Call, text, topic_name};

pub(super) fn handle(call: &Call<'_>, request: MetadataRequest) -> MetadataResponse {
    if let (Some(error @ ResponseError::RebootstrapRequired), 13..) = (call.error, call.version) {
        // KIP-1102: it is said of the cluster, and so of no topic.
        return MetadataResponse::default().with_error_code(error.code());
    }
    let mut cluster = call.cluster();
    let mut response = MetadataResponse::default()
        .with_cluster_id(Some(text(&cluster.id)))
        .with_controller_id(cluster.controller().into());
    for (id, _) in cluster.running() {
        if let Some((host, port)) = cluster.address(id, call.listener) {
            let broker = MetadataResponseBroker::default()
                .with_node_id(id.into())
                .with_host(text(&host))
                .with_port(port.into())
                .with_rack(cluster.rack(id).map(text));
            response.brokers.push(broker);
        }
    }
    response.topics = match request.topics {
        // Version 0 says "all" with an empty list, later versions with null.
        Some(topics) if !topics.is_empty() || call.version > 0 => {
            let create =
                cluster.options.auto_create_topics && (call.version < 4 || request.allow_auto_topic_creation);
            topics.iter().map(|asked| look_up(call, &mut cluster, asked, create)).collect()
        }
        _ => {
            let seen = |name: &str| !call.denies(&Resource::Topic(name.to_owned()), Operation::Describe);
            let topics = cluster.topics.iter().filter(|(name, _)| seen(name));
            topics.map(|(name, topic)| describe(call, &cluster, name, topic)).collect()
        }
    };
    response
}

fn look_up(
    call: &Call<'_>,
    cluster: &mut Cluster,
    asked: &MetadataRequestTopic,
    create: bool,
) -> MetadataResponseTopic {
    let refuse = |error: ResponseError| {
        let mut answer = MetadataResponseTopic::default().with_error_code(error.code());
        answer.name.clone_from(&asked.name);
        if call.version < 12 && answer.name.is_none() {
            answer.name = Some(topic_name(""));
        }
        answer.topic_id = asked.topic_id;
        answer
    };
    // Where there is an id it counts, whatever the name says (KIP-516).
    let name = match &asked.name {
        Some(name) if asked.topic_id.is_nil() => name.to_string(),
        _ => match cluster.topic_name(asked.topic_id) {
            Some(name) => name.to_owned(),
            None => return refuse(ResponseError::UnknownTopicId),
        },
    };
    if let Some(error) = call.error_for(&name) {
        return refuse(error);
    }
    if !cluster.topics.contains_key(&name) {
        if let Err(error) = super::super::cluster::check_topic_name(&name) {
            return refuse(error);
        }
        if !create {
            return refuse(ResponseError::UnknownTopicOrPartition);
        }
        let partitions = cluster.options.default_partitions;
        if let Err(error) = cluster.create_topic(&name, partitions, &Placement::usual(), BTreeMap::new()) {
            return refuse(error);
        }
    }
    match cluster.topics.get(&name) {
        Some(topic) => describe(call, cluster, &name, topic),
        None => refuse(ResponseError::UnknownTopicOrPartition),
    }
}

fn describe(call: &Call<'_>, cluster: &Cluster, name: &str, topic: &Topic) -> MetadataResponseTopic {
    let partition = |(index, p): (usize, &Partition)| {
        let up = cluster.runs(p.leader);
        let brokers = |ids: &mut dyn Iterator<Item = i32>| ids.map(BrokerId).collect::<Vec<_>>();
        let error = if up { 0 } else { ResponseError::LeaderNotAvailable.code() };
        MetadataResponsePartition::default()
            .with_error_code(error)
            .with_partition_index(i32::try_from(index).unwrap_or(i32::MAX))
            .with_leader_id(if up { p.leader } else { -1 }.into())
            .with_leader_epoch(if call.version >= 7 { p.log.leader_epoch() } else { -1 })
            .with_replica_nodes(brokers(&mut p.replicas.iter().copied()))
            .with_isr_nodes(brokers(&mut p.isr.iter().copied()))
            .with_offline_replicas(match call.version {
                5.. => brokers(&mut p.replicas.iter().copied().filter(|r| !cluster.runs(*r))),
                _ => Vec::new(),
            })
    };
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(name)))
        .with_topic_id(topic.id)
        .with_partitions(topic.partitions.iter().enumerate().map(partition).collect())
}
