//! What tests do to the broker: faults, moves, stops, and the counters they read.
//!
//! Everything that touches the cluster's data goes through the same doors as the protocol.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

use super::acls::{Operation, Resource};
use super::clock::FOREVER;
use super::cluster::{Kind, Shared};
use super::faults::{Effect, Fault, FaultId};
use super::partition::Partition;
use super::quotas::Quota;
use super::{BrokerError, Commit, server};

/// Makes the embedded broker misbehave, and counts what it was asked. Cheap to clone; valid as long as the broker.
///
/// [`Self::inject`] takes rules for everything; the shorter methods are for the usual ones. A request of a held or delayed
/// API keeps the requests behind it on the same connection waiting, as in Apache Kafka.
#[derive(Clone)]
pub struct FaultControl {
    pub(super) shared: Arc<Shared>,
}

impl FaultControl {
    /// The next `count` requests of `api` are answered with `error`, without effect.
    pub fn fail(&self, api: ApiKey, count: usize, error: ResponseError) {
        self.next(Fault::on(api), count, Effect::Error(error));
    }

    /// The next `count` requests of `api` that name `topic` get `error` for that topic, without effect on it; their
    /// other topics are served.
    pub fn fail_topic(&self, api: ApiKey, topic: &str, count: usize, error: ResponseError) {
        self.next(Fault::on(api).topic(topic), count, Effect::Error(error));
    }

    /// The next `count` requests of `api` are not applied: the connection closes instead.
    pub fn disconnect_before(&self, api: ApiKey, count: usize) {
        self.next(Fault::on(api), count, Effect::DisconnectBefore);
    }

    /// The next `count` requests of `api` are applied, and then the connection closes without the answer.
    pub fn disconnect_after(&self, api: ApiKey, count: usize) {
        self.next(Fault::on(api), count, Effect::DisconnectAfter);
    }

    /// Every answer of `api` is sent this much later (tokio's clock), until set to zero.
    pub fn delay(&self, api: ApiKey, delay: Duration) {
        self.shared.faults.withdraw_delay(api);
        if !delay.is_zero() {
            self.inject(Fault::on(api).effect(Effect::Delay(delay)));
        }
    }

    /// Requests of `api` are applied, but their answers wait for [`Self::release`].
    pub fn hold(&self, api: ApiKey) {
        self.shared.faults.hold(api);
    }

    /// Sends the answers that [`Self::hold`] kept back, and holds no more of them.
    pub fn release(&self, api: ApiKey) {
        self.shared.faults.release(api);
    }

    /// Puts a rule in force. The oldest rule that applies to a request decides; delays, slow answers and throttles add to it.
    pub fn inject(&self, fault: Fault) -> FaultId {
        self.shared.faults.inject(fault)
    }

    /// Takes a rule out of force.
    pub fn withdraw(&self, fault: FaultId) {
        self.shared.faults.withdraw(|id, _| id == fault);
    }

    /// Forgets every rule and hold; the counters stay, and so do cut links and what was moved or stopped.
    pub fn clear(&self) {
        self.shared.faults.clear();
    }

    /// How many requests of `api` all brokers have received so far, failed ones included.
    #[must_use]
    pub fn requests(&self, api: ApiKey) -> u64 {
        self.shared.faults.requests(api)
    }

    /// Keeps every commit that is accepted from now on, for [`Self::take_commits`].
    pub fn record_commits(&self) {
        self.shared.commits.record();
    }

    /// The commits that were accepted since the last call, in order; none before [`Self::record_commits`].
    #[must_use]
    pub fn take_commits(&self) -> Vec<Commit> {
        self.shared.commits.take()
    }

    /// How many requests all brokers have received so far, failed ones included.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.shared.faults.total_requests()
    }

    /// Makes `broker` the leader of a partition, under the next leader epoch. Fetches that wait are woken.
    ///
    /// What the broker does not have is lost: nothing, unless it [lags](Self::lag). A lagging replica that is in sync loses
    /// what was not acknowledged to `acks=all`; one [out of sync](Self::shrink_isr) (an unclean election) acknowledged
    /// records too, and consumers find their positions truncated.
    ///
    /// # Errors
    /// The partition or the broker does not exist.
    pub fn move_leader(&self, topic: &str, partition: i32, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        if !cluster.nodes.contains_key(&broker) {
            return Err(BrokerError::NoSuchBroker(broker));
        }
        let moved = cluster.move_leader(topic, partition, broker);
        drop(cluster);
        self.shared.appended.notify_waiters();
        moved.map_err(|_| BrokerError::NoSuchPartition(topic.to_owned(), partition))
    }

    /// A follower stops to copy the leader. It counts as in sync, so the high watermark stands still, and `acks=all`
    /// ends in REQUEST_TIMED_OUT, until [`Self::shrink_isr`] or [`Self::catch_up`].
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn lag(&self, topic: &str, partition: i32, broker: i32) -> Result<(), BrokerError> {
        self.partition(topic, partition, |p| p.lag(broker))
    }

    /// A follower stops to copy the leader and leaves the in-sync replicas.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn shrink_isr(&self, topic: &str, partition: i32, broker: i32) -> Result<(), BrokerError> {
        self.partition(topic, partition, |p| p.shrink(broker))
    }

    /// A follower has everything again, and is in sync.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn catch_up(&self, topic: &str, partition: i32, broker: i32) -> Result<(), BrokerError> {
        self.partition(topic, partition, |p| p.catch_up(broker))
    }

    /// Cuts a partition's log off at `offset` under a new leader epoch, as if every replica had lost the rest.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn truncate(&self, topic: &str, partition: i32, offset: i64) -> Result<(), BrokerError> {
        self.partition(topic, partition, |p| p.truncate(offset))
    }

    /// Compacts a partition: of each key the newest record stays, the others leave gaps in the offsets, and batches without
    /// records go. Transactional batches stay as they are.
    ///
    /// # Errors
    /// The partition does not exist, or a batch cannot be decoded.
    pub fn compact(&self, topic: &str, partition: i32) -> Result<(), BrokerError> {
        let mut done = Ok(());
        self.partition(topic, partition, |p| done = super::compaction::compact(&mut p.log))?;
        done.map_err(BrokerError::Batch)
    }

    /// Flips a bit in the stored batch that holds `offset`, as a bad disk does: its checksum does not hold any more.
    ///
    /// # Errors
    /// The partition does not exist, or has no such offset.
    pub fn damage(&self, topic: &str, partition: i32, offset: i64) -> Result<(), BrokerError> {
        let mut found = false;
        self.partition(topic, partition, |p| found = p.log.damage(offset))?;
        if found { Ok(()) } else { Err(BrokerError::Batch(format!("no batch holds offset {offset}"))) }
    }

    /// Applies the topic's `retention.ms` now: batches whose newest record is older go, from the start of the log on.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn retain(&self, topic: &str, partition: i32) -> Result<(), BrokerError> {
        let now = self.shared.clock.wall_ms();
        let age = {
            let cluster = self.shared.cluster();
            let config = cluster.topics.get(topic).and_then(|t| t.config("retention.ms"));
            config.and_then(|v| v.parse::<i64>().ok()).filter(|age| *age >= 0)
        };
        self.partition(topic, partition, |p| {
            if let Some(age) = age {
                p.log.retain_since(now.saturating_sub(age));
            }
        })
    }

    /// Forgets what a partition knows of idempotent producers, as retention and expiry do
    /// (`producer.id.expiration.ms`). Whoever goes on may do so with any sequence.
    ///
    /// # Errors
    /// The partition does not exist.
    pub fn forget_producers(&self, topic: &str, partition: i32) -> Result<(), BrokerError> {
        self.partition(topic, partition, |p| p.log.producers_mut().clear())
    }

    /// Limits what clients do per second (`client`: one `client.id`, `None`: each that has no limit of its own); `None` lifts
    /// it. Whoever exceeds it is told `throttle_time_ms`, and not read from for as long (KIP-219).
    pub fn quota(&self, quota: Quota, client: Option<&str>, per_second: Option<u64>) {
        self.shared.quotas.lock().unwrap_or_else(PoisonError::into_inner).set(quota, client, per_second);
    }

    /// Denies a user an operation; `*` means everybody, and a resource named `*` all of its kind. The answers are those of
    /// a cluster with an authorizer. Everything else is allowed.
    pub fn deny(&self, user: &str, resource: Resource, operation: Operation) {
        self.shared.acls.lock().unwrap_or_else(PoisonError::into_inner).deny(user, resource, operation);
    }

    /// Takes every [`Self::deny`] back.
    pub fn allow_all(&self) {
        self.shared.acls.lock().unwrap_or_else(PoisonError::into_inner).allow_all();
    }

    /// A broker forgets its fetch sessions: clients hear FETCH_SESSION_ID_NOT_FOUND and begin anew (KIP-227).
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn forget_fetch_sessions(&self, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        let node = cluster.nodes.get_mut(&broker).ok_or(BrokerError::NoSuchBroker(broker))?;
        node.sessions.forget();
        Ok(())
    }

    /// How long the coordinator takes to write the markers of a transaction that ended; until then its producer hears
    /// CONCURRENT_TRANSACTIONS. Default 0.
    pub fn delay_markers(&self, delay: Duration) {
        self.shared.cluster().transactions.marker_delay = delay.min(FOREVER);
    }

    /// Makes `broker` the coordinator of a transactional id.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn move_transaction_coordinator(&self, id: &str, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        if !cluster.nodes.contains_key(&broker) {
            return Err(BrokerError::NoSuchBroker(broker));
        }
        cluster.move_coordinator(Kind::Transaction, id, broker, self.shared.clock.now());
        Ok(())
    }

    /// Makes `broker` the coordinator of a group. Members that wait in a join or a sync get NOT_COORDINATOR.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn move_coordinator(&self, group: &str, broker: i32) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        if !cluster.nodes.contains_key(&broker) {
            return Err(BrokerError::NoSuchBroker(broker));
        }
        cluster.move_coordinator(Kind::Group, group, broker, self.shared.clock.now());
        Ok(())
    }

    /// Stops a broker in an orderly way: its connections close, its partitions and groups move to in-sync replicas that
    /// run; without one they wait for it. Started again it remembers only the last batch of each idempotent producer, as
    /// from Apache Kafka's snapshot. Nothing that was acknowledged is lost, but to the topic configuration
    /// `unclean.leader.election.enable=true`.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn stop_broker(&self, broker: i32) -> Result<(), BrokerError> {
        self.end_broker(broker, true)
    }

    /// Like [`Self::stop_broker`], by a crash: started again it reads its logs, and remembers the last five batches of each
    /// idempotent producer.
    ///
    /// # Errors
    /// The broker does not exist.
    pub fn kill_broker(&self, broker: i32) -> Result<(), BrokerError> {
        self.end_broker(broker, false)
    }

    fn end_broker(&self, broker: i32, clean: bool) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        let Some(node) = cluster.nodes.get_mut(&broker) else {
            return Err(BrokerError::NoSuchBroker(broker));
        };
        let was_running = *node.running.borrow();
        node.running.send_replace(false);
        if was_running {
            node.sessions.forget();
            cluster.broker_stopped(broker, clean, self.shared.clock.now());
        }
        drop(cluster);
        self.shared.appended.notify_waiters();
        Ok(())
    }

    /// Starts a stopped broker again at the same ports. Its replicas are in sync at once; it leads only what nobody took
    /// over, until something is moved to it.
    ///
    /// # Errors
    /// The broker does not exist, or one of its ports is taken.
    ///
    /// # Cancel safety
    /// A dropped call may leave some of the listeners closed; call it again.
    pub async fn start_broker(&self, broker: i32) -> Result<(), BrokerError> {
        server::start_node(&self.shared, broker).await
    }

    /// Lets nothing through between the clients called `client` (`None`: all) and `broker` (`None`: all), and tells nobody:
    /// connections stay open and silent, new ones too, until [`Self::heal`]; what was sent meanwhile then arrives.
    ///
    /// A client's name is the one given to [`super::Network::connect`], over TCP its `client.id`.
    pub fn cut(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.cut((client.map(str::to_owned), broker));
    }

    /// Ends the [`Self::cut`] of the same two; [`Self::heal_all`] ends every one.
    pub fn heal(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.heal(&(client.map(str::to_owned), broker));
    }

    /// Ends every [`Self::cut`].
    pub fn heal_all(&self) {
        self.shared.links.heal_all();
    }

    /// The broker forgets the connections of these clients that are open now, as after a failure of a firewall between
    /// them: they stay open for the client, and nothing is ever answered on them. New connections work.
    pub fn forget_connections(&self, client: Option<&str>, broker: Option<i32>) {
        self.shared.links.forget((client.map(str::to_owned), broker));
    }

    fn next(&self, fault: Fault, count: usize, effect: Effect) {
        self.inject(fault.times(count as u64).effect(effect));
    }

    fn partition(
        &self,
        topic: &str,
        partition: i32,
        change: impl FnOnce(&mut Partition),
    ) -> Result<(), BrokerError> {
        let mut cluster = self.shared.cluster();
        let found = cluster.partition_mut(topic, partition);
        let done = found.map(change).map_err(|_| BrokerError::NoSuchPartition(topic.to_owned(), partition));
        drop(cluster);
        self.shared.appended.notify_waiters();
        done
    }
}
