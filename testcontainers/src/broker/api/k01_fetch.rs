//! Fetch (key 1): whole batches from the leader or a follower (KIP-392), by sessions (KIP-227), waiting up to `max_wait_ms` for
//! `min_bytes`.
//!
//! Every append wakes every waiting fetch; each looks again at its own partitions. Nothing is read before the answer
//! is due.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchTopic;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use kafka_protocol::messages::{FetchRequest, FetchResponse};

use super::super::cluster::Cluster;
use super::super::log::{Aborted, Isolation, PartitionLog};
use super::super::partition::Partition;
use super::super::session::{Key, Plan, Wanted};
use super::{Call, text, topic_name};

pub(super) async fn handle(call: &Call<'_>, request: FetchRequest) -> FetchResponse {
    let plan = match plan(call, &request) {
        Ok(plan) => plan,
        Err(error) => return FetchResponse::default().with_error_code(error.code()),
    };
    let mut injected = BTreeMap::new();
    for (key, ..) in &plan.partitions {
        if !injected.contains_key(&key.topic) {
            injected.insert(key.topic.clone(), call.error_for(&key.topic));
        }
    }
    injected.retain(|_, error| error.is_some());
    let read = Read {
        call,
        plan,
        injected,
        max_bytes: usize::try_from(request.max_bytes).unwrap_or(0),
        rack: request.rack_id.to_string(),
        isolation: match request.isolation_level {
            1 => Isolation::Committed,
            _ => Isolation::Uncommitted,
        },
    };
    let enough = usize::try_from(request.min_bytes).unwrap_or(0);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let deadline = call.shared.clock.instant(call.shared.clock.now() + wait);
    loop {
        let mut woken = std::pin::pin!(call.shared.appended.notified());
        // Enabled before looking, so that an append in between is not missed.
        woken.as_mut().enable();
        if read.is_due(enough) {
            break;
        }
        if tokio::time::timeout_at(deadline, woken).await.is_err() {
            break;
        }
    }
    read.answer()
}

fn plan(call: &Call<'_>, request: &FetchRequest) -> Result<Plan, ResponseError> {
    let key = |topic: &str, topic_id, partition| Key { topic: topic.to_owned(), topic_id, partition };
    let mut cluster = call.cluster();
    // Since version 13 a client names topics by id; the key carries both, the id alone where it is unknown.
    let name = |cluster: &Cluster, name: &str, id| match call.version {
        13.. => cluster.topic_name(id).unwrap_or_default().to_owned(),
        _ => name.to_owned(),
    };
    let mut wanted = Vec::new();
    for FetchTopic { topic, topic_id, partitions, .. } in &request.topics {
        let topic = name(&cluster, topic, *topic_id);
        for p in partitions {
            let (offset, max_bytes, leader_epoch) =
                (p.fetch_offset, p.partition_max_bytes, p.current_leader_epoch);
            wanted.push((key(&topic, *topic_id, p.partition), Wanted { offset, max_bytes, leader_epoch }));
        }
    }
    let mut forgotten = Vec::new();
    for topic in &request.forgotten_topics_data {
        let name = name(&cluster, &topic.topic, topic.topic_id);
        forgotten.extend(topic.partitions.iter().map(|p| key(&name, topic.topic_id, *p)));
    }
    let (id, epoch) = if call.version >= 7 { (request.session_id, request.session_epoch) } else { (0, -1) };
    let slots = cluster.options.fetch_sessions;
    let node = cluster.nodes.get_mut(&call.broker).ok_or(ResponseError::BrokerNotAvailable)?;
    node.sessions.plan(call.shared.clock.now(), slots, id, epoch, wanted, &forgotten)
}

struct Read<'a> {
    call: &'a Call<'a>,
    plan: Plan,
    injected: BTreeMap<String, Option<ResponseError>>,
    max_bytes: usize,
    /// Where the reader is; empty if it does not say.
    rack: String,
    isolation: Isolation,
}

/// A partition as this broker has it.
struct Kept<'c> {
    partition: &'c Partition,
    /// Where readers must stop, by isolation and by what the broker has.
    end: i64,
    high_watermark: i64,
    stable: i64,
    /// The replica that the reader is to ask instead.
    nearer: Option<i32>,
}

impl Read<'_> {
    fn find<'c>(&self, cluster: &'c Cluster, key: &Key, want: &Wanted) -> Result<Kept<'c>, ResponseError> {
        if let Some(Some(error)) = self.injected.get(&key.topic) {
            return Err(*error);
        }
        if self.call.version >= 13 && cluster.topic_name(key.topic_id).is_none() {
            return Err(ResponseError::UnknownTopicId);
        }
        let broker = self.call.broker;
        // Who asks in an earlier version knows leaders only.
        let found = match self.call.version {
            11.. => cluster.kept_partition(broker, &key.topic, key.partition, want.leader_epoch)?,
            _ => cluster.led_partition(broker, &key.topic, key.partition, want.leader_epoch)?,
        };
        let (log, has) = (&found.log, found.end_at(broker).unwrap_or(-1));
        if want.offset < log.start() || want.offset > has {
            return Err(ResponseError::OffsetOutOfRange);
        }
        let asks_leader = found.leader == broker && !self.rack.is_empty();
        Ok(Kept {
            partition: found,
            end: log.readable_end(self.isolation).min(has),
            high_watermark: log.high_watermark().min(has),
            stable: log.last_stable_offset().min(has),
            nearer: if asks_leader { cluster.nearer_replica(found, &self.rack, want.offset) } else { None },
        })
    }

    /// Is there enough to answer, an error to tell, or nothing to wait for?
    fn is_due(&self, enough: usize) -> bool {
        let cluster = self.call.cluster();
        let mut bytes = 0;
        for (key, want, _) in &self.plan.partitions {
            match self.find(&cluster, key, want) {
                Err(_) => return true,
                Ok(Kept { nearer: Some(_), .. }) => return true,
                Ok(Kept { partition, end, .. }) => {
                    let missing = enough.saturating_sub(bytes).max(1);
                    bytes += partition.log.readable(want.offset, end, missing);
                }
            }
        }
        self.plan.partitions.is_empty() || bytes >= enough
    }

    fn answer(&self) -> FetchResponse {
        let mut cluster = self.call.cluster();
        let mut response = FetchResponse::default();
        if self.call.version >= 7 {
            response.session_id = self.plan.session_id;
        }
        let mut left = self.max_bytes;
        let mut any = false;
        for (key, want, told) in &self.plan.partitions {
            let mut data = PartitionData::default().with_partition_index(key.partition);
            let mut now = None;
            match self.find(&cluster, key, want) {
                Err(error) => self.refuse(&cluster, key, error, &mut data),
                Ok(Kept { partition, end, high_watermark: high, stable, nearer }) => {
                    let log = &partition.log;
                    let limit = left.min(usize::try_from(want.max_bytes).unwrap_or(0));
                    let end = if nearer.is_some() { want.offset } else { end };
                    let (records, next) = log.read(want.offset, end, limit, !any);
                    any |= !records.is_empty();
                    left = left.saturating_sub(records.len());
                    now = Some((high, log.start(), stable));
                    data = data
                        .with_preferred_read_replica(nearer.unwrap_or(-1).into())
                        .with_high_watermark(high)
                        .with_last_stable_offset(stable)
                        .with_log_start_offset(log.start())
                        .with_aborted_transactions(self.aborted(log, want.offset, next))
                        .with_records(Some(records));
                }
            }
            let news = now.is_none()
                || now != *told
                || data.preferred_read_replica.0 >= 0
                || data.records.as_ref().is_some_and(|r| !r.is_empty());
            if self.plan.incremental && !news {
                continue;
            }
            if self.plan.session_id != 0
                && let Some(node) = cluster.nodes.get_mut(&self.call.broker)
            {
                node.sessions.set_last_sent(self.plan.session_id, key, now);
            }
            push(&mut response, self.call.version, key, data);
        }
        if self.call.version >= 16 {
            response.node_endpoints = endpoints(self.call, &cluster, &response);
        }
        response
    }

    /// The aborted transactions that meet what is handed out; only readers of committed records are told.
    fn aborted(&self, log: &PartitionLog, from: i64, to: i64) -> Option<Vec<AbortedTransaction>> {
        let told = |a: Aborted| {
            AbortedTransaction::default()
                .with_producer_id(a.producer_id.into())
                .with_first_offset(a.first_offset)
        };
        let committed = self.isolation == Isolation::Committed;
        committed.then(|| log.aborted(from, to).into_iter().map(told).collect())
    }

    fn refuse(&self, cluster: &Cluster, key: &Key, error: ResponseError, data: &mut PartitionData) {
        data.error_code = error.code();
        data.high_watermark = -1;
        data.last_stable_offset = -1;
        data.log_start_offset = -1;
        data.records = Some(bytes::Bytes::new());
        let moved = matches!(error, ResponseError::NotLeaderOrFollower | ResponseError::FencedLeaderEpoch);
        // KIP-951: tell the client who leads now.
        if let (true, 16.., Ok(partition)) =
            (moved, self.call.version, cluster.partition(&key.topic, key.partition))
        {
            data.current_leader = LeaderIdAndEpoch::default()
                .with_leader_id(partition.leader.into())
                .with_leader_epoch(partition.log.leader_epoch());
        }
    }
}

fn push(response: &mut FetchResponse, version: i16, key: &Key, data: PartitionData) {
    let same = |last: &FetchableTopicResponse| match version {
        13.. => last.topic_id == key.topic_id,
        _ => *last.topic.0 == *key.topic,
    };
    if let Some(last) = response.responses.last_mut().filter(|last| same(last)) {
        last.partitions.push(data);
        return;
    }
    let mut topic = FetchableTopicResponse::default().with_partitions(vec![data]);
    if version >= 13 {
        topic.topic_id = key.topic_id;
    } else {
        topic.topic = topic_name(&key.topic);
    }
    response.responses.push(topic);
}

fn endpoints(call: &Call<'_>, cluster: &Cluster, response: &FetchResponse) -> Vec<NodeEndpoint> {
    let partitions = response.responses.iter().flat_map(|t| &t.partitions);
    let mut leaders: Vec<i32> =
        partitions.map(|p| p.current_leader.leader_id.0).filter(|l| *l >= 0).collect();
    leaders.sort_unstable();
    leaders.dedup();
    let endpoint = |id: i32| {
        let (host, port) = cluster.address(id, call.listener)?;
        let endpoint = NodeEndpoint::default().with_node_id(id.into()).with_host(text(&host));
        Some(endpoint.with_port(port.into()).with_rack(cluster.rack(id).map(text)))
    };
    leaders.into_iter().filter_map(endpoint).collect()
}
