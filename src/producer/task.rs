//! The producer's driver task: takes ready batches, one request per leader, and feeds the answers back.
//!
//! It decides nothing about a batch's fate: [`outcome`](super::outcome) does, and the partition's queue carries it out.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Closing, PartitionQueue, Shared,
    accumulator::{Aftermath, Batch, Pace, Taken},
    identity::{Identity, NotYet, ProducerIdentity},
    outcome::{Decision, decide, leaves_open},
    receipt::Ack,
    wire_acks,
};
use crate::{
    batch,
    cluster::{Lane, Metadata, kafka_string, millis},
    config::settings::Acks,
    connection::{Connection, api::wire},
    error::{Error, ErrorCode, ErrorKind, Result},
    flights::{Flight, Flights},
    time::{self, Backoff, Instant, Rng},
};

/// Something the task waited for.
enum Event {
    Connected(i32, Result<Arc<Connection>>),
    Identified(Result<ProducerIdentity>),
    Answered(Request, Result<wire::ProduceResponse>),
}

/// A produce request in flight.
struct Request {
    leader: i32,
    batches: Vec<Sent>,
}

struct Sent {
    partition: Arc<PartitionQueue>,
    batch: Batch,
}

#[derive(Default)]
struct Leader {
    connection: Option<Arc<Connection>>,
    connecting: bool,
    not_before: Option<Instant>,
    in_flight: usize,
}

struct Task {
    shared: Arc<Shared>,
    /// Queues that have something to send or in flight.
    active: Vec<Arc<PartitionQueue>>,
    leaders: BTreeMap<i32, Leader>,
    identity: Identity,
    work: Flights<Event>,
    backoff: Backoff,
    rng: Rng,
}

pub(super) fn spawn(shared: Arc<Shared>) {
    #[expect(clippy::disallowed_methods, reason = "the one driver task of a producer")]
    tokio::spawn(run(shared));
}

async fn run(shared: Arc<Shared>) {
    let mut metadata = shared.cluster.subscribe();
    let mut closing = shared.closing.subscribe();
    let settings = Arc::clone(shared.cluster.settings());
    let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
    let mut task = Task {
        active: Vec::new(),
        leaders: BTreeMap::new(),
        identity: Identity::new(shared.settings.idempotence, backoff.clone()),
        work: Flights::new(),
        backoff,
        rng: settings.environment.rng(),
        shared: Arc::clone(&shared),
    };
    loop {
        let state = *closing.borrow_and_update();
        let timeout = task.step(state).await;
        if task.is_finished(state) {
            break;
        }
        tokio::select! {
            biased;
            event = task.work.next() => task.handle(event),
            () = shared.wake.notified() => {}
            _ = closing.changed() => {}
            Ok(()) = metadata.changed() => {
                let snapshot = Arc::clone(&metadata.borrow_and_update());
                shared.update_topics(&snapshot);
            }
            () = sleep_until(timeout) => {}
        }
    }
    task.give_up();
    shared.closing.send_replace(Closing::Done);
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Task {
    /// Starts everything that can be started now. Returns when to look again.
    async fn step(&mut self, closing: Closing) -> Option<Instant> {
        let now = time::now();
        self.active.append(&mut self.shared.scheduled());
        self.expire(now);
        let hurry = closing != Closing::Open || self.shared.memory.is_short();
        let metadata = self.shared.cluster.metadata();
        while self.send_round(now, hurry, &metadata).await {}
        // After the sending: an answer that is there at once may call for another identity.
        if self.identity.poll_ask(now) {
            self.ask_identity();
        }
        let mut timeout = self.identity.poll_timeout();
        if let Closing::Draining(deadline) = closing {
            timeout = earlier(timeout, Some(deadline));
        }
        for leader in self.leaders.values() {
            timeout = earlier(timeout, leader.not_before.filter(|time| *time > now));
        }
        self.active.retain(|partition| {
            let mut queue = partition.lock();
            timeout = earlier(timeout, queue.poll_timeout(now));
            !queue.unschedule_if_idle()
        });
        timeout
    }

    /// One request to each leader that has room, with one batch of each of its partitions. False when nothing left.
    async fn send_round(&mut self, now: Instant, hurry: bool, metadata: &Metadata) -> bool {
        let mut requests: BTreeMap<i32, (Vec<Sent>, usize)> = BTreeMap::new();
        // Another partition is first each time, so that a request that is full starves nobody.
        if !self.active.is_empty() {
            let first = self.rng.below(self.active.len());
            self.active.rotate_left(first);
        }
        for index in 0..self.active.len() {
            let partition = Arc::clone(&self.active[index]);
            let Some((leader, _)) = metadata.leader(&partition.topic, partition.partition) else {
                self.shared.cluster.refresh();
                continue;
            };
            if !self.is_ready(leader, now) {
                continue;
            }
            let (batches, size) = requests.entry(leader).or_default();
            if *size >= self.shared.settings.max_request_size {
                continue;
            }
            let identity = self.identity.current();
            let pace = Pace::new(hurry, self.leaders.get(&leader).map_or(0, |leader| leader.in_flight));
            let Some(batch) = self.take(&partition, now, pace, identity) else { continue };
            *size += batch.bytes.len();
            batches.push(Sent { partition, batch });
        }
        let mut sent = false;
        for (leader, (batches, _)) in requests {
            if !batches.is_empty() {
                sent = true;
                self.send(leader, batches, now).await;
            }
        }
        sent
    }

    /// Whether a request can go to this broker now; starts to connect if not.
    fn is_ready(&mut self, id: i32, now: Instant) -> bool {
        let leader = self.leaders.entry(id).or_default();
        if leader.in_flight >= self.shared.settings.max_in_flight {
            return false;
        }
        if leader.connection.as_ref().is_some_and(|connection| connection.is_closed()) {
            leader.connection = None;
        }
        if leader.connection.is_some() {
            return true;
        }
        if leader.not_before.is_some_and(|time| time <= now) {
            leader.not_before = None;
        }
        if !leader.connecting && leader.not_before.is_none() {
            leader.connecting = true;
            let cluster = self.shared.cluster.clone();
            let deadline = now + cluster.settings().connection_setup_timeout;
            self.work.push(Box::pin(async move {
                Event::Connected(id, cluster.connection(id, Lane::Main, deadline).await)
            }));
        }
        false
    }

    fn take(
        &mut self,
        partition: &Arc<PartitionQueue>,
        now: Instant,
        pace: Pace,
        identity: Result<Option<ProducerIdentity>, NotYet>,
    ) -> Option<Batch> {
        let taken = partition.lock().poll_batch(now, pace, identity)?;
        let mut batch = match taken {
            Taken::Again(batch) => batch,
            Taken::First { open, stamp, order } => {
                // Compressing and summing happen here, outside the partition's lock.
                match open.seal(stamp, order, &self.shared.limits, &self.shared.compressor) {
                    Ok(batch) => batch,
                    Err((error, receipt, reserved)) => {
                        receipt.fail(error);
                        let aftermath = partition.lock().abandon(order, reserved);
                        self.clean_up(aftermath);
                        return None;
                    }
                }
            }
        };
        batch.count_attempt();
        Some(batch)
    }

    async fn send(&mut self, id: i32, batches: Vec<Sent>, now: Instant) {
        let Some(leader) = self.leaders.get_mut(&id) else { return };
        let Some(connection) = leader.connection.clone() else { return };
        leader.in_flight += 1;
        let request = self.wire_request(&batches);
        let timeout = self.shared.cluster.settings().request_timeout;
        // A batch never outlives its delivery time-out by a request.
        let deadline = batches.iter().map(|sent| sent.batch.deadline).fold(now + timeout, Instant::min);
        if self.shared.settings.acks == Acks::None {
            for sent in &batches {
                sent.batch.receipt.acknowledge(Ack { base_offset: -1, log_append_time: -1 });
            }
        }
        let mut work: Flight<Event> = Box::pin(async move {
            let answer = connection.call(request, deadline).await.map_err(|error| error.with_broker(id));
            Event::Answered(Request { leader: id, batches }, answer)
        });
        // The first poll writes the request: requests leave in the order of these polls, which keeps sequences in order.
        match std::future::poll_fn(|context| std::task::Poll::Ready(work.as_mut().poll(context))).await {
            std::task::Poll::Ready(event) => self.handle(event),
            std::task::Poll::Pending => self.work.push(work),
        }
    }

    fn wire_request(&self, batches: &[Sent]) -> wire::ProduceRequest {
        let mut topics: Vec<wire::produce_request::TopicProduceData> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for sent in batches {
            let place = *places.entry(&sent.partition.topic).or_insert_with(|| {
                let name = kafka_string(&sent.partition.topic);
                topics.push(wire::produce_request::TopicProduceData { name, ..Default::default() });
                topics.len() - 1
            });
            let data = wire::produce_request::PartitionProduceData {
                index: sent.partition.partition,
                records: Some(sent.batch.bytes.clone()),
            };
            topics[place].partition_data.push(data);
        }
        wire::ProduceRequest {
            acks: wire_acks(self.shared.settings.acks),
            timeout_ms: millis(self.shared.cluster.settings().request_timeout),
            topic_data: topics,
            ..Default::default()
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(id, result) => self.handle_connected(id, result),
            Event::Identified(Ok(identity)) => self.identity.handle_answer(identity),
            Event::Identified(Err(error)) => self.handle_no_identity(&error),
            Event::Answered(request, answer) => self.handle_answer(request, answer),
        }
    }

    fn handle_connected(&mut self, id: i32, result: Result<Arc<Connection>>) {
        let leader = self.leaders.entry(id).or_default();
        leader.connecting = false;
        match result {
            Ok(connection) => leader.connection = Some(connection),
            Err(error) => {
                tracing::warn!(broker = id, %error, "the leader cannot be reached");
                leader.not_before = Some(time::now() + self.backoff.next(&mut self.rng));
            }
        }
    }

    fn handle_no_identity(&mut self, error: &Error) {
        if error.is_retriable() {
            tracing::warn!(%error, "no producer id yet");
            self.identity.handle_failure(time::now(), &mut self.rng);
            return;
        }
        let error =
            error.clone().with_fatal().with_hint("grant IdempotentWrite, or set enable.idempotence=false");
        tracing::error!(%error, "no producer id can be had");
        self.shared.fail_for_good(&error);
    }

    fn handle_answer(&mut self, request: Request, answer: Result<wire::ProduceResponse>) {
        if let Some(leader) = self.leaders.get_mut(&request.leader) {
            leader.in_flight -= 1;
        }
        match answer {
            Ok(answer) => self.handle_response(request, &answer),
            Err(error) => self.handle_request_error(request, &error),
        }
    }

    fn handle_response(&mut self, request: Request, answer: &wire::ProduceResponse) {
        let mut answers = BTreeMap::new();
        for topic in &answer.responses {
            for partition in &topic.partition_responses {
                answers.insert((topic.name.as_str(), partition.index), partition);
            }
        }
        let mut stale = false;
        for Sent { partition, mut batch } in request.batches {
            let Some(answer) = answers.get(&(&*partition.topic, partition.partition)) else {
                let error = Error::protocol("the broker's answer lacks a partition").with_api("Produce");
                self.settle(&partition, batch, Decision::Fail { possibly_written: true }, || error);
                continue;
            };
            if answer.error_code == 0 {
                self.backoff.reset();
                let ack = Ack { base_offset: answer.base_offset, log_append_time: answer.log_append_time_ms };
                batch.receipt.acknowledge(ack);
                self.settle(&partition, batch, Decision::Acknowledge, || Error::protocol("acknowledged"));
                continue;
            }
            let code = ErrorCode(answer.error_code);
            batch.possibly_written |= leaves_open(code);
            let context = partition.lock().context(&batch);
            let decision = decide(code, context);
            stale |= matches!(decision, Decision::Retry { stale_leader: true });
            let error = || broker_error(answer, request.leader);
            tracing::debug!(topic = %partition.topic, partition = partition.partition, error = %error(), ?decision, "a batch was refused");
            match decision {
                Decision::Acknowledge => {
                    batch.receipt.acknowledge(Ack { base_offset: -1, log_append_time: -1 });
                    self.settle(&partition, batch, decision, error);
                }
                Decision::Split => self.split(&partition, batch, error),
                Decision::Fatal => {
                    let error = error()
                        .with_fatal()
                        .with_hint("grant IdempotentWrite, or set enable.idempotence=false");
                    self.shared.fail_for_good(&error);
                    self.settle(&partition, batch, decision, || error);
                }
                _ => self.settle(&partition, batch, decision, error),
            }
        }
        if stale {
            self.shared.cluster.refresh();
        }
    }

    /// The request as a whole failed: its answer was lost, or it was never sent.
    fn handle_request_error(&mut self, request: Request, error: &Error) {
        // An answer that did not come says nothing; one that cannot be read says the same.
        let unknown =
            matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Disconnected | ErrorKind::Protocol);
        if let Some(leader) = self.leaders.get_mut(&request.leader) {
            leader.connection = None;
        }
        self.shared.cluster.refresh();
        tracing::warn!(broker = request.leader, %error, batches = request.batches.len(), "a produce request failed");
        let now = time::now();
        for Sent { partition, mut batch } in request.batches {
            batch.possibly_written |= unknown;
            let expired = batch.deadline <= now;
            let decision = if expired || !(unknown || error.is_retriable()) {
                Decision::Fail { possibly_written: batch.possibly_written }
            } else {
                Decision::Retry { stale_leader: true }
            };
            let error = || if expired { delivery_timeout(error) } else { error.clone() };
            self.settle(&partition, batch, decision, error);
        }
    }

    fn settle(
        &mut self,
        partition: &Arc<PartitionQueue>,
        batch: Batch,
        decision: Decision,
        error: impl FnOnce() -> Error,
    ) {
        let not_before = matches!(decision, Decision::Retry { .. })
            .then(|| time::now() + self.backoff.next(&mut self.rng));
        let aftermath = partition.lock().handle_decision(batch, decision, not_before, error);
        self.clean_up(aftermath);
    }

    fn split(&mut self, partition: &Arc<PartitionQueue>, batch: Batch, error: impl FnOnce() -> Error) {
        match batch::split_in_two(&batch.bytes, &self.shared.compressor, &self.shared.decompressor) {
            Ok(halves) => {
                let aftermath = partition.lock().handle_split(batch, halves);
                self.clean_up(aftermath);
            }
            Err(cause) => {
                let error = || error().with_source(cause);
                self.settle(partition, batch, Decision::Fail { possibly_written: false }, error);
            }
        }
    }

    fn clean_up(&mut self, aftermath: Aftermath) {
        if aftermath.freed > 0 {
            self.shared.memory.give_back(aftermath.freed);
        }
        if let Some(buffer) = aftermath.buffer.and_then(batch::recycle) {
            self.shared.memory.recycle(buffer);
        }
        if let Some(broken) = aftermath.broken {
            self.identity.renew(broken);
        }
    }

    fn expire(&mut self, now: Instant) {
        let late = || delivery_timeout(&Error::new(ErrorKind::Timeout, "it waited for its leader"));
        let mut aftermaths = Vec::new();
        for partition in &self.active {
            aftermaths.append(&mut partition.lock().expire(now, late));
        }
        for aftermath in aftermaths {
            self.clean_up(aftermath);
        }
    }

    fn ask_identity(&mut self) {
        let cluster = self.shared.cluster.clone();
        self.work.push(Box::pin(async move {
            let deadline = time::now() + cluster.settings().request_timeout;
            let identify = async {
                let connection = cluster.any_connection(deadline).await?;
                let request = wire::InitProducerIdRequest {
                    transactional_id: None,
                    transaction_timeout_ms: i32::MAX,
                    ..Default::default()
                };
                let answer = connection.call(request, deadline).await?;
                match answer.error_code {
                    0 => Ok(ProducerIdentity { id: answer.producer_id, epoch: answer.producer_epoch }),
                    code => Err(Error::from_code("InitProducerId", code)),
                }
            };
            Event::Identified(identify.await)
        }));
    }

    fn is_finished(&mut self, closing: Closing) -> bool {
        match closing {
            Closing::Open => false,
            Closing::Done => true,
            Closing::Draining(deadline) => {
                time::now() >= deadline || (self.active.is_empty() && self.shared.scheduled().is_empty())
            }
        }
    }

    /// Fails what is left.
    fn give_up(&mut self) {
        self.active.append(&mut self.shared.scheduled());
        let fatal = self.shared.fatal_error();
        let error = || fatal.clone().unwrap_or_else(|| Error::closed("producer"));
        for partition in std::mem::take(&mut self.active) {
            partition.lock().fail_all(error);
        }
    }
}

fn earlier(first: Option<Instant>, second: Option<Instant>) -> Option<Instant> {
    first.into_iter().chain(second).min()
}

fn delivery_timeout(cause: &Error) -> Error {
    Error::new(ErrorKind::Timeout, "the record was not acknowledged within delivery.timeout.ms")
        .with_source(cause.clone())
        .with_hint("raise delivery.timeout.ms, or see to the broker")
}

fn broker_error(answer: &wire::produce_response::PartitionProduceResponse, leader: i32) -> Error {
    let error = Error::from_code("Produce", answer.error_code).with_broker(leader);
    let error = match &answer.error_message {
        Some(text) => error.with_boxed_source(text.to_string().into()),
        None => error,
    };
    match answer.error_code {
        10 | 18 => error.with_hint("raise max.message.bytes of the topic, or lower batch.size"),
        29 => error.with_hint("grant the user Write on the topic"),
        19 | 20 => error.with_hint("see to the in-sync replicas (min.insync.replicas)"),
        _ => error,
    }
}
