//! Carries out the calls of a transaction: finds the coordinator, asks, and turns the answer into a reply or an error. It decides
//! nothing; codes are `transaction/verdict.rs`'s to judge.

use std::{sync::Arc, time::Duration};

use super::{
    identity::ProducerIdentity,
    transaction::{Call, NotDone, Offsets, Partitions, Reply},
};
use crate::{
    cluster::{Cluster, CoordinatorKind, Lane, kafka_string, millis},
    connection::Connection,
    error::{Error, ErrorKind, Result, code},
    sorted::{Map, Set},
    time::{self, Instant},
    wire,
};

/// The level of the feature `transaction.version` from which on the epoch grows with every end (KIP-890).
const EPOCH_PER_TRANSACTION: i16 = 2;

/// Who asks, and how.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) cluster: Cluster,
    pub(super) id: Arc<str>,
    /// `transaction.timeout.ms`
    pub(super) timeout: Duration,
    pub(super) version2: bool,
}

impl Caller {
    pub(super) async fn execute(&self, call: &Call) -> Result<Reply, NotDone> {
        let deadline = time::now() + self.cluster.settings().request_timeout;
        let (kind, key) = match call {
            Call::CommitOffsets(_, offsets) => (CoordinatorKind::Group, &offsets.group.group_id),
            _ => (CoordinatorKind::Transaction, &self.id),
        };
        let unreached = |error| NotDone { error, asked: false };
        let broker = self.cluster.coordinator(kind, key, deadline).await.map_err(unreached)?;
        let reply = match self.cluster.connection(broker, Lane::Main, deadline).await {
            Ok(connection) => {
                let reply = self.ask(&connection, call, deadline).await;
                reply.map_err(|error| NotDone { asked: !error.is_unsent(), error })
            }
            Err(error) => Err(unreached(unreachable(error))),
        };
        reply.map_err(|NotDone { error, asked }| {
            let moved = match error.code() {
                Some(told) => matches!(told.0, code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE),
                None => true,
            };
            if moved {
                self.cluster.forget_coordinator(kind, key, broker);
            }
            NotDone { error: error.with_broker(broker), asked }
        })
    }

    async fn ask(&self, connection: &Connection, call: &Call, deadline: Instant) -> Result<Reply> {
        match call {
            Call::Init(known) => self.init(connection, *known, deadline).await,
            Call::AddPartitions(identity, partitions) => {
                self.add_partitions(connection, *identity, partitions, deadline).await
            }
            Call::AddOffsets(identity, group) => {
                self.add_offsets(connection, *identity, group, deadline).await
            }
            Call::CommitOffsets(identity, offsets) => {
                self.commit_offsets(connection, *identity, offsets, deadline).await
            }
            Call::End { identity, commit } => self.end(connection, *identity, *commit, deadline).await,
        }
    }

    async fn init(
        &self,
        connection: &Connection,
        known: Option<ProducerIdentity>,
        deadline: Instant,
    ) -> Result<Reply> {
        let known = known.unwrap_or(ProducerIdentity { id: -1, epoch: -1, cluster: 0 });
        let request = wire::InitProducerIdRequest {
            transactional_id: Some(kafka_string(&self.id)),
            transaction_timeout_ms: millis(self.timeout),
            producer_id: known.id,
            producer_epoch: known.epoch,
            ..Default::default()
        };
        let answer = connection.call(request, deadline).await?;
        check("InitProducerId", answer.error_code)?;
        let level = connection.finalized_feature("transaction.version");
        let identity = ProducerIdentity::told("InitProducerId", answer.producer_id, answer.producer_epoch)?;
        Ok(Reply::Initialized { identity, version2: level >= EPOCH_PER_TRANSACTION })
    }

    async fn add_partitions(
        &self,
        connection: &Connection,
        identity: ProducerIdentity,
        partitions: &Partitions,
        deadline: Instant,
    ) -> Result<Reply> {
        let mut topics: Map<&str, Vec<i32>> = Map::new();
        for (topic, partition) in partitions {
            topics.entry(topic).or_default().push(*partition);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            wire::add_partitions_to_txn_request::AddPartitionsToTxnTopic {
                name: kafka_string(name),
                partitions,
            }
        });
        let request = wire::AddPartitionsToTxnRequest {
            v3_and_below_transactional_id: kafka_string(&self.id),
            v3_and_below_producer_id: identity.id,
            v3_and_below_producer_epoch: identity.epoch,
            v3_and_below_topics: topics.collect(),
            ..Default::default()
        };
        let answer = connection.call(request, deadline).await?;
        check("AddPartitionsToTxn", answer.error_code)?;
        let mut answered = Vec::new();
        // The error that says most: OPERATION_NOT_ATTEMPTED only means that another partition was refused.
        let mut worst: Option<Error> = None;
        for topic in &answer.results_by_topic_v3_and_below {
            for partition in &topic.results_by_partition {
                answered.push((topic.name.as_str(), partition.partition_index));
                let told = partition.partition_error_code;
                if told == 0 || (told == code::OPERATION_NOT_ATTEMPTED && worst.is_some()) {
                    continue;
                }
                let error = coordinator_error("AddPartitionsToTxn", told)
                    .with_topic(topic.name.as_str())
                    .with_partition(partition.partition_index);
                let passing = error.is_retriable();
                let skipped =
                    |known: &Error| known.code().is_some_and(|told| told.0 == code::OPERATION_NOT_ATTEMPTED);
                match &worst {
                    Some(known) if passing && !known.is_retriable() && !skipped(known) => {}
                    _ => worst = Some(error),
                }
            }
        }
        let asked = partitions.iter().map(|(topic, partition)| (&**topic, *partition));
        worst.map_or_else(|| check_answered("AddPartitionsToTxn", asked, answered), Err)
    }

    async fn add_offsets(
        &self,
        connection: &Connection,
        identity: ProducerIdentity,
        group: &str,
        deadline: Instant,
    ) -> Result<Reply> {
        let request = wire::AddOffsetsToTxnRequest {
            transactional_id: kafka_string(&self.id),
            producer_id: identity.id,
            producer_epoch: identity.epoch,
            group_id: kafka_string(group),
        };
        let answer = connection.call(request, deadline).await?;
        check("AddOffsetsToTxn", answer.error_code).map(|()| Reply::Done)
    }

    async fn commit_offsets(
        &self,
        connection: &Connection,
        identity: ProducerIdentity,
        offsets: &Offsets,
        deadline: Instant,
    ) -> Result<Reply> {
        let mut topics: Map<&str, Vec<_>> = Map::new();
        for (partition, offset) in &offsets.offsets {
            topics.entry(&partition.topic).or_default().push(
                wire::txn_offset_commit_request::TxnOffsetCommitRequestPartition {
                    partition_index: partition.partition,
                    committed_offset: offset.offset,
                    committed_leader_epoch: offset.leader_epoch.unwrap_or(-1),
                    committed_metadata: Some(kafka_string(&offset.metadata)),
                },
            );
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            wire::txn_offset_commit_request::TxnOffsetCommitRequestTopic {
                name: kafka_string(name),
                partitions,
                ..Default::default()
            }
        });
        let group = &offsets.group;
        let request = wire::TxnOffsetCommitRequest {
            transactional_id: kafka_string(&self.id),
            group_id: kafka_string(&group.group_id),
            producer_id: identity.id,
            producer_epoch: identity.epoch,
            generation_id_or_member_epoch: group.generation_or_member_epoch,
            member_id: kafka_string(&group.member_id),
            group_instance_id: group.group_instance_id.as_deref().map(kafka_string),
            topics: topics.collect(),
        };
        // From version 5 on, the group's coordinator adds itself to the transaction (KIP-890).
        let max = if self.version2 { i16::MAX } else { 4 };
        let answer = connection.call_up_to(max, request, deadline).await?;
        let mut answered = Vec::new();
        for topic in &answer.topics {
            for partition in &topic.partitions {
                answered.push((topic.name.as_str(), partition.partition_index));
                if partition.error_code != 0 {
                    return Err(coordinator_error("TxnOffsetCommit", partition.error_code)
                        .with_topic(topic.name.as_str())
                        .with_partition(partition.partition_index));
                }
            }
        }
        let asked = offsets.offsets.iter();
        let asked = asked.map(|(partition, _)| (&*partition.topic, partition.partition));
        check_answered("TxnOffsetCommit", asked, answered)
    }

    async fn end(
        &self,
        connection: &Connection,
        identity: ProducerIdentity,
        committed: bool,
        deadline: Instant,
    ) -> Result<Reply> {
        let request = wire::EndTxnRequest {
            transactional_id: kafka_string(&self.id),
            producer_id: identity.id,
            producer_epoch: identity.epoch,
            committed,
        };
        let max = if self.version2 { i16::MAX } else { 4 };
        let answer = connection.call_up_to(max, request, deadline).await?;
        check("EndTxn", answer.error_code)?;
        // Earlier versions of the answer name no producer id.
        Ok(Reply::Ended(match self.version2 && answer.producer_id >= 0 {
            true => Some(ProducerIdentity::told("EndTxn", answer.producer_id, answer.producer_epoch)?),
            false => None,
        }))
    }
}

/// Makes a permanent failure to reach the coordinator one that passes: another broker may become the coordinator soon.
fn unreachable(error: Error) -> Error {
    if error.is_retriable() || error.is_fatal() || error.kind() == ErrorKind::Closed {
        return error;
    }
    let passing = Error::new(ErrorKind::Disconnected, "the coordinator cannot be reached");
    let passing = match error.hint() {
        Some(hint) => passing.with_hint(hint),
        None => passing,
    };
    passing.with_source(error)
}

/// An answer that leaves out a partition is an error, whatever it says of the others: nothing is known of the one left
/// out.
fn check_answered<'a>(
    api: &'static str,
    asked: impl Iterator<Item = (&'a str, i32)>,
    answered: Vec<(&'a str, i32)>,
) -> Result<Reply> {
    let answered: Set<_> = answered.into_iter().collect();
    for (topic, partition) in asked {
        if !answered.contains(&(topic, partition)) {
            return Err(Error::protocol("the coordinator's answer leaves out a partition")
                .with_api(api)
                .with_topic(topic)
                .with_partition(partition));
        }
    }
    Ok(Reply::Done)
}

fn check(api: &'static str, told: i16) -> Result<()> {
    if told == 0 { Ok(()) } else { Err(coordinator_error(api, told)) }
}

fn coordinator_error(api: &'static str, told: i16) -> Error {
    let error = Error::from_code(api, told);
    match told {
        code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED => {
            error.with_hint("grant the user Write and Describe on the transactional.id")
        }
        code::TOPIC_AUTHORIZATION_FAILED => error.with_hint("grant the user Write on the topic"),
        code::GROUP_AUTHORIZATION_FAILED => error.with_hint("grant the user Read on the group"),
        code::INVALID_TRANSACTION_TIMEOUT => {
            error.with_hint("lower transaction.timeout.ms to the brokers' transaction.max.timeout.ms")
        }
        code::INVALID_PRODUCER_ID_MAPPING => {
            error.with_hint("the brokers have forgotten the transactional.id (transactional.id.expiration.ms): make a new producer")
        }
        code::INVALID_TXN_STATE => {
            error.with_hint("the transaction is not open any more: see whether it takes longer than transaction.timeout.ms")
        }
        code::ILLEGAL_GENERATION | code::UNKNOWN_MEMBER_ID | code::STALE_MEMBER_EPOCH => error.with_hint(
            "the group was rebalanced: abort, and process the records again from the committed offsets",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_an_answer_leaves_out_is_not_taken_for_done() {
        let asked = [("a", 0), ("a", 1), ("b", 0)];
        let check = |answered: Vec<(&'static str, i32)>| {
            check_answered("TxnOffsetCommit", asked.into_iter(), answered)
        };
        assert!(check(vec![("b", 0), ("a", 1), ("z", 9), ("a", 0)]).is_ok());
        for missing in asked {
            let answered: Vec<_> =
                asked.into_iter().filter(|key| *key != missing).chain([("z", 9)]).collect();
            let error = check(answered).err().unwrap();
            assert_eq!((error.topic(), error.partition()), (Some(missing.0), Some(missing.1)), "{error}");
        }
    }

    #[test]
    fn one_coordinator_that_stays_out_of_reach_passes_since_another_may_come() {
        let refused = Error::from_code("SaslAuthenticate", code::SASL_AUTHENTICATION_FAILED).with_permanent();
        let error = unreachable(refused.with_hint("see to the certificate"));
        assert!(error.is_retriable() && error.code().is_none(), "{error}");
        assert_eq!(error.hint(), Some("see to the certificate"));
        assert!(std::error::Error::source(&error).is_some());
        assert!(!unreachable(Error::closed("client")).is_retriable());
    }
}
