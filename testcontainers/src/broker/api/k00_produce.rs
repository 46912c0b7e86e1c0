//! Produce (key 0): appends one batch per partition, and with acks=all waits until the in-sync replicas have it.
//!
//! Idempotence is in `producers`, the checks of a batch in `log`. Since version 12 a transactional batch takes its
//! partition into the transaction (KIP-890), since version 13 topics come by id (KIP-516).

use std::cell::RefCell;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::super::acls::{Operation, Resource};
use super::super::cluster::Cluster;
use super::super::compaction;
use super::super::log::{Append, Incoming};
use super::super::server::Close;
use super::super::transactions::{Part, Who};
use super::{Call, text};

const ALL: i16 = -1;
/// The codec's number in a batch's attributes.
const ZSTD: i16 = 4;

/// An append that is not acknowledged yet: where its answer stands, and what the high watermark must reach.
struct Waiting {
    topic: String,
    partition: i32,
    leader_epoch: i32,
    next_offset: i64,
    at: (usize, usize),
}

/// `None` for acks=0, whose errors can only be told by closing the connection.
pub(super) async fn handle(
    call: &Call<'_>,
    request: ProduceRequest,
) -> Result<Option<ProduceResponse>, Close> {
    let mut response = ProduceResponse::default();
    let mut failed = false;
    let mut waiting = Vec::new();
    let transactional_id = request.transactional_id.as_ref().map(|id| id.to_string());
    for topic in request.topic_data {
        let name = match call.version {
            13.. => call.cluster().topic_name(topic.topic_id).map(str::to_owned),
            _ => Some(topic.name.to_string()),
        };
        let injected = name.as_deref().and_then(|name| call.error_for(name));
        let after = name.as_deref().and_then(|name| call.error_after(name));
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in &topic.partition_data {
            // The checksum is the costly part, and needs no lock.
            let parsed = match (&data.records, request.acks) {
                (_, acks) if !(-1..=1).contains(&acks) => Err(ResponseError::InvalidRequiredAcks),
                (Some(records), _) => Incoming::parse(records),
                (None, _) => Err(ResponseError::InvalidRecord),
            };
            let mut cluster = call.cluster();
            let target =
                Target { id: transactional_id.as_deref(), acks: request.acks, data, bad: RefCell::default() };
            let result = match (injected, name.as_deref()) {
                (Some(error), _) => Err(error),
                (None, None) => Err(ResponseError::UnknownTopicId),
                (None, Some(name)) => target.append(call, &mut cluster, name, parsed),
            };
            let name = name.as_deref().unwrap_or_default();
            if let (Ok(append), ALL, Ok(found)) = (&result, request.acks, cluster.partition(name, data.index))
                && found.log.high_watermark() < append.next_offset
            {
                waiting.push(Waiting {
                    topic: name.to_owned(),
                    partition: data.index,
                    leader_epoch: found.log.leader_epoch(),
                    next_offset: append.next_offset,
                    at: (response.responses.len(), partitions.len()),
                });
            }
            let result = after.map_or(result, |error| result.and(Err(error)));
            failed |= result.is_err();
            let mut told = answer(call, &cluster, name, data.index, result);
            if call.version >= 8 && !target.bad.borrow().is_empty() {
                name_records(&mut told, &target.bad.borrow());
            }
            partitions.push(told);
        }
        let answer = TopicProduceResponse::default()
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
            .with_partition_responses(partitions);
        response.responses.push(answer);
    }
    call.shared.appended.notify_waiters();
    if request.acks == 0 {
        return if failed { Err(Close) } else { Ok(None) };
    }
    if !waiting.is_empty() {
        let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
        Box::pin(wait(call, waiting, timeout, &mut response)).await;
    }
    if call.version >= 10 {
        response.node_endpoints = endpoints(call, &response);
    }
    Ok(Some(response))
}

/// Waits for the in-sync replicas; what they do not have in time was written, and is answered with an error.
async fn wait(call: &Call<'_>, mut waiting: Vec<Waiting>, timeout: Duration, response: &mut ProduceResponse) {
    let deadline = call.shared.clock.instant(call.shared.clock.now() + timeout);
    loop {
        let mut woken = std::pin::pin!(call.shared.appended.notified());
        woken.as_mut().enable();
        waiting.retain(|w| {
            let cluster = call.cluster();
            let state = cluster.partition(&w.topic, w.partition);
            let error = match state {
                Err(error) => Some(error),
                Ok(p) if p.log.leader_epoch() != w.leader_epoch || p.leader != call.broker => {
                    Some(ResponseError::NotLeaderOrFollower)
                }
                Ok(p) if p.log.high_watermark() >= w.next_offset => {
                    let enough = p.isr.len() >= min_in_sync(&cluster, &w.topic);
                    (!enough).then_some(ResponseError::NotEnoughReplicasAfterAppend)
                }
                Ok(_) => return true,
            };
            if let Some(error) = error {
                refuse(call, &cluster, w, error, response);
            }
            false
        });
        if waiting.is_empty() {
            return;
        }
        if tokio::time::timeout_at(deadline, woken).await.is_err() {
            let cluster = call.cluster();
            for w in &waiting {
                refuse(call, &cluster, w, ResponseError::RequestTimedOut, response);
            }
            return;
        }
    }
}

fn refuse(
    call: &Call<'_>,
    cluster: &Cluster,
    waiting: &Waiting,
    error: ResponseError,
    response: &mut ProduceResponse,
) {
    let (topic, partition) = waiting.at;
    if let Some(told) =
        response.responses.get_mut(topic).and_then(|t| t.partition_responses.get_mut(partition))
    {
        *told = answer(call, cluster, &waiting.topic, waiting.partition, Err(error));
    }
}

fn min_in_sync(cluster: &Cluster, topic: &str) -> usize {
    let config = cluster.topics.get(topic).and_then(|t| t.config("min.insync.replicas"));
    config.and_then(|v| v.parse().ok()).unwrap_or(1)
}

/// One partition's data and what the request says about all of them.
struct Target<'a> {
    id: Option<&'a str>,
    acks: i16,
    data: &'a PartitionProduceData,
    /// Records that the topic does not take, by their place in the batch.
    bad: RefCell<Vec<i32>>,
}

impl Target<'_> {
    fn append(
        &self,
        call: &Call<'_>,
        cluster: &mut Cluster,
        topic: &str,
        parsed: Result<Incoming, ResponseError>,
    ) -> Result<Append, ResponseError> {
        let index = self.data.index;
        let isr = cluster.led_partition(call.broker, topic, index, -1)?.isr.len();
        if self.acks == ALL && isr < min_in_sync(cluster, topic) {
            return Err(ResponseError::NotEnoughReplicas);
        }
        let size = self.data.records.as_ref().map_or(0, bytes::Bytes::len);
        let config = |name: &str| cluster.topics.get(topic).and_then(|t| t.config(name));
        let max = config("max.message.bytes").and_then(|v| v.parse::<usize>().ok());
        let append_time = config("message.timestamp.type") == Some("LogAppendTime");
        if max.is_some_and(|max| size > max) {
            return Err(ResponseError::MessageTooLarge);
        }
        let batch = parsed?;
        // KIP-110.
        if batch.payload().1 == ZSTD && call.version < 7 {
            return Err(ResponseError::UnsupportedCompressionType);
        }
        let ahead = config("message.timestamp.after.max.ms").and_then(|v| v.parse::<i64>().ok());
        let now_ms = call.shared.clock.wall_ms();
        if !append_time && ahead.is_some_and(|ahead| batch.max_timestamp() > now_ms.saturating_add(ahead)) {
            return Err(ResponseError::InvalidTimestamp);
        }
        if config("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
            *self.bad.borrow_mut() = compaction::without_key(&batch);
            if !self.bad.borrow().is_empty() {
                return Err(ResponseError::InvalidRecord);
            }
        }
        self.join_transaction(call, cluster, topic, &batch)?;
        cluster.expire_producers(now_ms);
        let log = &mut cluster.partition_mut(topic, index)?.log;
        log.append(batch, append_time.then_some(now_ms))
    }

    /// A transactional batch must belong to its producer's open transaction. From version 12 on the first one takes its
    /// partition into it; before, the client has done that with AddPartitionsToTxn.
    fn join_transaction(
        &self,
        call: &Call<'_>,
        cluster: &mut Cluster,
        topic: &str,
        batch: &Incoming,
    ) -> Result<(), ResponseError> {
        let Some((producer_id, epoch, true)) = batch.producer() else { return Ok(()) };
        let denied = |id: &&str| call.denies(&Resource::TransactionalId((*id).to_owned()), Operation::Write);
        let Some(id) = self.id.filter(|id| !denied(id)) else {
            return Err(ResponseError::TransactionalIdAuthorizationFailed);
        };
        let log = &cluster.partition(topic, self.data.index)?.log;
        log.producers().check_epoch(producer_id, epoch)?;
        // What is open under an older epoch is being ended: nothing joins it any more (KIP-890).
        if log.transaction_start(producer_id).is_some() && log.producers().is_of_epoch(producer_id, epoch) {
            return Ok(());
        }
        let who = Who { id, identity: (producer_id, epoch) };
        let part = Part::Partition(topic.to_owned(), self.data.index);
        let (now, now_ms) = (call.shared.clock.now(), call.shared.clock.wall_ms());
        let joined = match call.version {
            12.. => cluster.transactions.add(now, now_ms, who, [part]),
            _ => cluster.transactions.verify(who, &part),
        };
        call.shared.timer.notify_one();
        joined.map_err(|error| match (error, call.version) {
            (ResponseError::ProducerFenced, _) => ResponseError::InvalidProducerEpoch,
            (ResponseError::ConcurrentTransactions, ..12) => ResponseError::NotEnoughReplicas,
            (ResponseError::InvalidTxnState, 11) => ResponseError::TransactionAbortable,
            (error, _) => error,
        })
    }
}

/// KIP-467: which records of the batch are to blame.
fn name_records(answer: &mut PartitionProduceResponse, bad: &[i32]) {
    const WHY: &str = "Compacted topic cannot accept message without key.";
    let one = |index: &i32| {
        BatchIndexAndErrorMessage::default()
            .with_batch_index(*index)
            .with_batch_index_error_message(Some(text(WHY)))
    };
    answer.record_errors = bad.iter().map(one).collect();
    answer.error_message = Some(text("One or more records have been rejected."));
}

fn answer(
    call: &Call<'_>,
    cluster: &Cluster,
    topic: &str,
    index: i32,
    result: Result<Append, ResponseError>,
) -> PartitionProduceResponse {
    let mut answer = PartitionProduceResponse::default().with_index(index);
    let partition = cluster.partition(topic, index);
    match result {
        Ok(append) => {
            answer.base_offset = append.base_offset;
            answer.log_append_time_ms = append.append_time_ms;
            answer.log_start_offset = partition.map_or(-1, |p| p.log.start());
        }
        Err(error) => {
            answer.error_code = error.code();
            answer.base_offset = -1;
            answer.log_append_time_ms = -1;
            answer.log_start_offset = -1;
            if error == ResponseError::InvalidRecord && call.version >= 8 {
                answer.error_message =
                    Some(text("One batch of format v2 with consecutive records per partition is expected."));
            }
            // KIP-951: tell the client who leads now.
            if let (ResponseError::NotLeaderOrFollower, Ok(p), 10..) = (error, partition, call.version) {
                answer.current_leader = LeaderIdAndEpoch::default()
                    .with_leader_id(p.leader.into())
                    .with_leader_epoch(p.log.leader_epoch());
            }
        }
    }
    answer
}

fn endpoints(call: &Call<'_>, response: &ProduceResponse) -> Vec<NodeEndpoint> {
    let partitions = response.responses.iter().flat_map(|t| &t.partition_responses);
    let mut leaders: Vec<i32> =
        partitions.map(|p| p.current_leader.leader_id.0).filter(|l| *l >= 0).collect();
    leaders.sort_unstable();
    leaders.dedup();
    let cluster = call.cluster();
    let endpoint = |id: i32| {
        let (host, port) = cluster.address(id, call.listener)?;
        let endpoint = NodeEndpoint::default().with_node_id(id.into()).with_host(text(&host));
        Some(endpoint.with_port(port.into()).with_rack(cluster.rack(id).map(text)))
    };
    leaders.into_iter().filter_map(endpoint).collect()
}
