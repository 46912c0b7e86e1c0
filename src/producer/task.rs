//! The producer's driver task: does what the [`Sender`] plans (connect, ask, send), and feeds the answers back.
//!
//! It decides nothing. However it ends, every record that has no answer gets one.

use std::{collections::BTreeMap, error::Error as _, sync::Arc, time::Duration};

use super::{
    Closing, Shared,
    coordinator::Caller,
    identity::{NotYet, ProducerIdentity},
    queue::Aftermath,
    receipt::BatchOutcome,
    sender::{Action, Answer, Permit, Request, Sender, SenderSettings, earlier},
    transaction::{Call, NotDone, Outstanding, Reply},
    wire_acks,
};
use crate::{
    batch,
    cluster::{Endpoint, Lane, LeaderHint, TopicId, kafka_string, millis},
    config::settings::Acks,
    connection::{Connection, api::wire},
    driver,
    error::{Error, ErrorKind, Result, code},
    flights::{Flight, Flights},
    record::TopicPartition,
    time::{self, Instant, Rng},
};

/// The last version of Produce that names topics by name.
const BY_NAME: i16 = 12;

/// Something the task waited for.
enum Event {
    Connected(i32, Result<Arc<Connection>>),
    Identified(Result<ProducerIdentity>),
    /// With the time for which the broker wanted to be left alone meanwhile.
    Answered(Request, Result<wire::ProduceResponse>, Duration),
    /// With `acks=0`, which no broker answers.
    Written(Request, Result<()>),
    Replied(Call, Result<Reply, NotDone>),
}

struct Task {
    shared: Arc<Shared>,
    sender: Sender,
    connections: BTreeMap<i32, Arc<Connection>>,
    work: Flights<Event>,
    rng: Rng,
    /// When the topics in use are named to the cluster again, which forgets idle ones.
    touch_at: Instant,
}

pub(super) fn spawn(shared: Arc<Shared>) -> Result<()> {
    let sender = new_sender(&shared)?;
    let rng = shared.environment.rng();
    let task = Task {
        sender,
        connections: BTreeMap::new(),
        work: Flights::new(),
        rng,
        touch_at: time::now(),
        shared,
    };
    let ended = Arc::clone(&task.shared);
    driver::spawn("producer", move |error| ended.end(&error), task.run())?;
    Ok(())
}

fn new_sender(shared: &Shared) -> Result<Sender> {
    let client = shared.cluster.settings();
    let settings = SenderSettings {
        idempotent: shared.limits.idempotent,
        transactional: shared.limits.transactional,
        max_in_flight: shared.settings.max_in_flight,
        max_request_size: shared.settings.max_request_size,
        retry_backoff: client.retry_backoff,
        retry_backoff_max: client.retry_backoff_max,
        availability_timeout: shared.settings.partitioner_availability_timeout,
    };
    let compressor = batch::Compressor::new(shared.settings.compression, shared.settings.compression_level)?;
    Ok(Sender::new(settings, Arc::clone(&shared.limits), compressor, client.environment.rng()))
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Task {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut metadata = shared.cluster.subscribe();
        let mut closing = shared.closing.subscribe();
        loop {
            let state = *closing.borrow_and_update();
            let timeout = self.step(state).await;
            if self.is_finished(state) {
                break;
            }
            tokio::select! {
                biased;
                event = self.work.next() => self.handle(event),
                () = shared.wake.notified() => {}
                _ = closing.changed() => {}
                Ok(()) = metadata.changed() => {
                    let snapshot = Arc::clone(&metadata.borrow_and_update());
                    shared.topics.update_all(&snapshot, &shared.limits, &shared.environment);
                }
                () = sleep_until(timeout) => {}
            }
        }
        shared.end(&shared.fatal_error().unwrap_or_else(|| Error::closed("producer")));
    }

    /// Starts everything that can be started now. Returns when to look again.
    async fn step(&mut self, closing: Closing) -> Option<Instant> {
        let now = time::now();
        self.sender.handle_scheduled(&mut self.shared.scheduled());
        self.drop_spent_connections(now);
        let hurry = closing != Closing::Open || self.shared.memory.is_short();
        let metadata = self.shared.cluster.metadata();
        self.discard_aborted(now);
        match &self.shared.transactions {
            None => self.sender.handle_tick(now, &metadata, hurry, None),
            Some(transactions) => {
                let (identity, partitions, ending) = {
                    let core = transactions.lock();
                    (core.identity(), core.permitted(), core.is_ending())
                };
                let identity = identity.map_or(Err(NotYet), |identity| Ok(Some(identity)));
                let permit = Permit { identity, partitions: partitions.as_deref() };
                self.sender.handle_tick(now, &metadata, hurry || ending, Some(permit));
                transactions.lock().handle_wanted(self.sender.wanted());
            }
        }
        while let Some(action) = self.sender.poll_action() {
            match action {
                Action::Connect(id) => self.connect(id, now),
                Action::AskIdentity => self.ask_identity(),
                Action::Send(request) => self.send(request, now).await,
            }
        }
        if self.sender.poll_metadata() {
            self.shared.cluster.refresh();
        }
        for topic in self.sender.poll_missing() {
            self.shared.cluster.want_topic(&topic);
        }
        if self.touch_at <= now {
            // Once a second is enough for what is forgotten after minutes.
            self.touch_at = now + Duration::from_secs(1);
            self.shared.cluster.touch_topics(self.sender.topics());
        }
        self.settle();
        let mut timeout = self.sender.poll_timeout(now);
        timeout = earlier(timeout, self.step_transaction(now));
        if let Closing::Draining(deadline) = closing {
            timeout = earlier(timeout, Some(deadline));
        }
        timeout
    }

    /// Throws away what belongs to a transaction that is over.
    fn discard_aborted(&mut self, now: Instant) {
        let Some(transactions) = &self.shared.transactions else { return };
        let discard = transactions.lock().poll_discard();
        if let Some(error) = discard {
            self.shared.refuse_records();
            // Also what was sent since the last look: it would leave in the next transaction.
            self.sender.handle_scheduled(&mut self.shared.scheduled());
            self.sender.discard(now, &error);
            self.settle();
        }
    }

    /// Asks the coordinator for what is due. Returns when to look again.
    fn step_transaction(&mut self, now: Instant) -> Option<Instant> {
        self.shared.transactions.as_ref()?;
        let shared = Arc::clone(&self.shared);
        let transactions = shared.transactions.as_ref()?;
        // Looked at in this order: whoever has asked for the end has sent everything before. An end that is asked for after this
        // wakes the task again.
        let is_asked = transactions.lock().is_ending();
        let records = !is_asked || !self.sender.is_idle() || !shared.scheduled().is_empty();
        let outstanding = Outstanding { records, in_flight: self.sender.in_flight() > 0 };
        let mut core = transactions.lock();
        let was_settled = core.is_settled();
        let call = core.poll_call(now, outstanding);
        let is_over = core.is_settled() && !was_settled;
        let (version2, timeout) = (core.is_version2(), core.poll_timeout());
        drop(core);
        if is_over {
            // A transaction of nothing ends without a call. Told only then: who waits answers by waking this task.
            transactions.notify();
        }
        if let Some(call) = call {
            let caller = Caller {
                cluster: shared.cluster.clone(),
                id: Arc::clone(&transactions.id),
                timeout: transactions.timeout,
                version2,
            };
            self.work.push(Box::pin(async move {
                let reply = caller.execute(&call).await;
                Event::Replied(call, reply)
            }));
        }
        timeout
    }

    /// A connection that is lost, or that nobody used for `connections.max.idle.ms`: a middle box may have dropped it. One that
    /// is to be replaced, such as when its session is about to end (KIP-368), goes when what is out on it has landed.
    fn drop_spent_connections(&mut self, now: Instant) {
        let idle = self.shared.cluster.settings().connections_max_idle;
        let sender = &mut self.sender;
        self.connections.retain(|id, connection| {
            let is_unused = connection.in_flight() == 0 && connection.idle_since() + idle <= now;
            if connection.is_lost() || is_unused {
                sender.handle_disconnected(*id);
                return false;
            }
            !connection.is_closed() || !sender.handle_ending(*id)
        });
    }

    fn connect(&mut self, id: i32, now: Instant) {
        let cluster = self.shared.cluster.clone();
        let deadline = now + cluster.settings().connection_setup_timeout;
        self.work.push(Box::pin(async move {
            Event::Connected(id, cluster.connection(id, Lane::Main, deadline).await)
        }));
    }

    async fn send(&mut self, request: Request, now: Instant) {
        let id = request.leader;
        let Some(connection) = self.connections.get(&id).cloned() else {
            let error =
                Error::new(ErrorKind::Disconnected, "the connection was lost before the request left");
            self.sender.handle_not_sent(now, request, &error.with_broker(id));
            return;
        };
        let wire_request = self.wire_request(&request);
        // Not the deadline of a batch: one that is late must not take its neighbours with it.
        let deadline = now + self.shared.cluster.settings().request_timeout;
        // By name, where a topic's id is not known (KIP-516).
        let by_id = request.batches.iter().all(|sent| sent.topic_id != TopicId::default());
        if self.shared.settings.acks == Acks::None {
            let work: Flight<Event> = Box::pin(async move {
                // No answer would say that a topic was made again, and its records would go on to an id that is gone.
                let written = connection.send_unanswered::<BY_NAME, _>(wire_request, deadline).await;
                Event::Written(request, written.map_err(|error| error.with_broker(id)))
            });
            return self.start(work).await;
        }
        let version1 = match &self.shared.transactions {
            Some(transactions) => {
                let mut core = transactions.lock();
                core.handle_sent();
                !core.is_version2()
            }
            None => false,
        };
        let work: Flight<Event> = Box::pin(async move {
            let paused = connection.paused_so_far();
            // From version 12 on a partition joins the transaction by being written to (KIP-890).
            let answer = match (version1, by_id) {
                (true, _) => connection.call_up_to::<11, _>(wire_request, deadline).await,
                (false, false) => connection.call_up_to::<BY_NAME, _>(wire_request, deadline).await,
                (false, true) => connection.call(wire_request, deadline).await,
            };
            let paused = connection.paused_so_far().saturating_sub(paused);
            Event::Answered(request, answer.map_err(|error| error.with_broker(id)), paused)
        });
        self.start(work).await;
    }

    /// Polls a request once: that writes it, or takes its place among those that wait to be written. Requests leave in the
    /// order of these polls, which keeps sequences in order.
    async fn start(&mut self, mut work: Flight<Event>) {
        match std::future::poll_fn(|context| std::task::Poll::Ready(work.as_mut().poll(context))).await {
            std::task::Poll::Ready(event) => self.handle(event),
            std::task::Poll::Pending => self.work.push(work),
        }
    }

    fn wire_request(&self, request: &Request) -> wire::ProduceRequest {
        let mut topics: Vec<wire::produce_request::TopicProduceData> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for sent in &request.batches {
            let place = *places.entry(&sent.partition.topic).or_insert_with(|| {
                let name = kafka_string(&sent.partition.topic);
                let topic_id = wire::Uuid(sent.topic_id);
                topics.push(wire::produce_request::TopicProduceData { name, topic_id, ..Default::default() });
                topics.len() - 1
            });
            let data = wire::produce_request::PartitionProduceData {
                index: sent.partition.partition,
                records: Some(sent.batch.bytes.clone()),
            };
            topics[place].partition_data.push(data);
        }
        wire::ProduceRequest {
            transactional_id: self
                .shared
                .transactions
                .as_ref()
                .map(|transactions| kafka_string(&transactions.id)),
            acks: wire_acks(self.shared.settings.acks),
            timeout_ms: millis(self.shared.cluster.settings().request_timeout),
            topic_data: topics,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = time::now();
        match event {
            Event::Connected(id, Ok(connection)) => {
                self.connections.insert(id, connection);
                self.sender.handle_connected(now, id, true);
            }
            Event::Connected(id, Err(error)) => {
                tracing::debug!(broker = id, %error, "the leader cannot be reached");
                self.sender.handle_connected(now, id, false);
            }
            Event::Replied(call, reply) => {
                if let Some(transactions) = &self.shared.transactions {
                    let mut core = transactions.lock();
                    core.handle_reply(now, &call, reply, &mut self.rng);
                    drop(core);
                    transactions.notify();
                }
            }
            Event::Identified(result) => self.sender.handle_identity(now, result),
            Event::Written(request, Ok(())) => self.sender.handle_written(now, request),
            Event::Answered(request, Ok(answer), paused) => {
                // What a quota takes is told by itself.
                self.shared.note_latency((now - request.sent_at).saturating_sub(paused));
                let names = names(&request);
                let (hints, endpoints) = read_leaders(&answer, &names);
                if !hints.is_empty() {
                    self.shared.cluster.learn_leaders(&hints, &endpoints);
                }
                self.sender.handle_answers(now, request, &read_answers(&answer, &names));
            }
            Event::Answered(request, Err(error), _) | Event::Written(request, Err(error)) => {
                tracing::debug!(broker = request.leader, %error, batches = request.batches.len(), "a produce request failed");
                self.connections.remove(&request.leader);
                self.sender.handle_request_error(now, request, &error);
            }
        }
        self.settle();
    }

    /// Does what must not be done under a partition's lock.
    fn settle(&mut self) {
        // Before anybody is told, so that who has seen an answer finds it counted.
        if let Some(counts) = self.sender.poll_counts() {
            self.shared.note_counts(counts);
        }
        if let Some(aftermath) = self.sender.poll_aftermath() {
            self.shared.settle(aftermath);
        }
        if let Some(transactions) = &self.shared.transactions
            && let Some((error, open)) = self.sender.poll_failure()
        {
            let fatal = error.code().is_some_and(|told| told.0 == code::PRODUCER_FENCED);
            let mut core = transactions.lock();
            match fatal {
                true => core.handle_fatal(error.with_fatal()),
                false => core.handle_failure(error, open),
            }
            drop(core);
            transactions.notify();
        }
        if let Some(error) = self.sender.poll_fatal() {
            self.shared.fail_for_good(&error);
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
                    0 => ProducerIdentity::told("InitProducerId", answer.producer_id, answer.producer_epoch),
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
                let transactions = self.shared.transactions.as_ref();
                let settled = transactions.is_none_or(|transactions| transactions.lock().is_settled());
                let idle = settled && self.sender.is_idle() && self.shared.scheduled().is_empty();
                time::now() >= deadline || idle
            }
        }
    }
}

/// The names of a request's topics, sorted by their ids.
type Names = Vec<(TopicId, Arc<str>)>;

fn names(request: &Request) -> Names {
    let mut names = Names::new();
    for sent in &request.batches {
        if names.last().is_none_or(|(id, _)| *id != sent.topic_id) {
            names.push((sent.topic_id, Arc::clone(&sent.partition.topic)));
        }
    }
    names.sort_unstable_by_key(|(id, _)| *id);
    names
}

/// What a topic of an answer is called, which names it by its id from version 13 on.
fn name_of<'a>(topic: &'a wire::produce_response::TopicProduceResponse, names: &'a Names) -> &'a str {
    match names.binary_search_by_key(&topic.topic_id.0, |(id, _)| *id) {
        Ok(place) if topic.name.is_empty() => &names[place].1,
        _ => &topic.name,
    }
}

/// The id of the topic that was asked about, also where the answer is by name: epochs compare only within one life of a topic.
fn id_of(topic: &wire::produce_response::TopicProduceResponse, names: &Names) -> TopicId {
    if topic.topic_id.0 != TopicId::default() {
        return topic.topic_id.0;
    }
    names.iter().find(|(_, name)| **name == *topic.name).map_or_else(TopicId::default, |(id, _)| *id)
}

fn read_answers<'a>(answer: &'a wire::ProduceResponse, names: &'a Names) -> Vec<((&'a str, i32), Answer)> {
    let mut answers = Vec::new();
    for topic in &answer.responses {
        let name = name_of(topic, names);
        for partition in &topic.partition_responses {
            let record_errors = partition.record_errors.iter().map(|record| {
                let message = record.batch_index_error_message.as_ref();
                (record.batch_index, message.map(|text| text.to_string()))
            });
            let answer = Answer {
                code: partition.error_code,
                base_offset: partition.base_offset,
                log_append_time: partition.log_append_time_ms,
                message: partition.error_message.as_ref().map(|text| text.to_string()),
                record_errors: record_errors.collect(),
            };
            answers.push(((name, partition.index), answer));
        }
    }
    answers.sort_unstable_by_key(|(place, _): &(_, Answer)| *place);
    // Of answers that contradict each other none counts: nobody knows what became of the batch, as after a time-out.
    answers.dedup_by(|(place, other), (kept_place, kept)| {
        let is_same = place == kept_place;
        if is_same && other.code != kept.code {
            let message = Some(String::from("the broker's answer contradicts itself"));
            *kept = Answer { code: code::REQUEST_TIMED_OUT, message, ..Answer::default() };
        }
        is_same
    });
    answers
}

/// The leaders that an answer tells of in place of those that were asked (KIP-951), and where they are.
fn read_leaders(answer: &wire::ProduceResponse, names: &Names) -> (Vec<LeaderHint>, Vec<Endpoint>) {
    let mut hints = Vec::new();
    for topic in &answer.responses {
        for partition in &topic.partition_responses {
            let told = &partition.current_leader;
            if partition.error_code != code::NONE && told.leader_id >= 0 {
                let partition = TopicPartition::new(name_of(topic, names), partition.index);
                hints.push(LeaderHint {
                    partition,
                    topic_id: id_of(topic, names),
                    leader: told.leader_id,
                    epoch: told.leader_epoch,
                });
            }
        }
    }
    let endpoints = answer.node_endpoints.iter().map(|node| Endpoint {
        id: node.node_id,
        host: node.host.to_string(),
        port: node.port,
        rack: node.rack.as_ref().map(|rack| rack.to_string()),
    });
    (hints, endpoints.collect())
}

impl Shared {
    /// Does what must not be done under a partition's lock: tells those who wait, and gives memory back.
    pub(super) fn settle(&self, aftermath: Aftermath) {
        for (receipt, outcome) in aftermath.resolved {
            let outcome = match outcome {
                BatchOutcome::Failed(error) => {
                    // What was never sent does not know why: the cluster does.
                    let never_sent = error.kind() == ErrorKind::Timeout && error.source().is_none();
                    let (topic, partition) = receipt.place();
                    let why = never_sent.then(|| self.cluster.why_topic(topic, Some(partition))).flatten();
                    let error = match why {
                        Some(why) => error.with_source(why),
                        None => error,
                    };
                    BatchOutcome::Failed(match &self.transactions {
                        Some(_) => error.with_requires_abort(),
                        None => error,
                    })
                }
                outcome => outcome,
            };
            let failed = match (&outcome, &self.transactions) {
                (BatchOutcome::Failed(error), None) => Some(error.clone()),
                // A transaction says by itself that it has failed.
                _ => None,
            };
            if receipt.resolve_telling(outcome, &self.settings.plugins.interceptors)
                && let Some(error) = failed
            {
                let (topic, partition) = receipt.place();
                let error = error.with_topic(Arc::clone(topic)).with_partition(partition);
                self.unheard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).note(&receipt, &error);
            }
        }
        for buffer in aftermath.buffers.into_iter().filter_map(batch::recycle) {
            self.memory.recycle(buffer);
        }
        if aftermath.freed > 0 {
            self.memory.give_back(aftermath.freed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_id_and_by_name_are_read_with_the_leaders_they_tell_of() {
        use wire::produce_response::{
            LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
        };
        let told = |error_code, leader_id| PartitionProduceResponse {
            index: leader_id,
            error_code,
            base_offset: 9,
            current_leader: LeaderIdAndEpoch { leader_id, leader_epoch: 5 },
            ..Default::default()
        };
        let by_id = TopicProduceResponse {
            topic_id: wire::Uuid([7; 16]),
            partition_responses: vec![told(code::NOT_LEADER_OR_FOLLOWER, 3), told(0, 4)],
            ..Default::default()
        };
        let by_name = TopicProduceResponse {
            name: kafka_string("invoices"),
            partition_responses: vec![told(0, -1)],
            ..Default::default()
        };
        let node = NodeEndpoint { node_id: 3, host: kafka_string("three"), port: 9092, rack: None };
        let answer = wire::ProduceResponse {
            responses: vec![by_id, by_name],
            node_endpoints: vec![node],
            ..Default::default()
        };
        let names = vec![([0; 16], Arc::from("wrong")), ([7; 16], Arc::from("orders"))];
        let answers = read_answers(&answer, &names);
        let places: Vec<_> =
            answers.iter().map(|((name, index), answer)| (*name, *index, answer.code)).collect();
        assert_eq!(
            places,
            [("invoices", -1, 0), ("orders", 3, code::NOT_LEADER_OR_FOLLOWER), ("orders", 4, 0)]
        );
        let (hints, endpoints) = read_leaders(&answer, &names);
        let partition = TopicPartition::new("orders", 3);
        assert_eq!(hints, [LeaderHint { partition, topic_id: [7; 16], leader: 3, epoch: 5 }]);
        assert_eq!((endpoints[0].id, &*endpoints[0].host, endpoints.len()), (3, "three", 1));
        // Up to version 12 the answer is by name, and the id is that of the records.
        let by_name = TopicProduceResponse {
            name: kafka_string("orders"),
            partition_responses: vec![told(code::NOT_LEADER_OR_FOLLOWER, 3)],
            ..Default::default()
        };
        let answer = wire::ProduceResponse { responses: vec![by_name], ..Default::default() };
        assert_eq!(read_leaders(&answer, &names).0[0].topic_id, [7; 16]);
    }

    #[test]
    fn of_answers_that_contradict_each_other_for_a_partition_none_counts() {
        use wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};
        let unknown = code::REQUEST_TIMED_OUT;
        for (codes, expected) in
            [([0, 87], unknown), ([87, 0], unknown), ([6, 87], unknown), ([0, 0], code::NONE), ([6, 6], 6)]
        {
            let told = |error_code| PartitionProduceResponse { index: 3, error_code, ..Default::default() };
            let topic = TopicProduceResponse {
                name: kafka_string("t"),
                partition_responses: codes.map(told).to_vec(),
                ..Default::default()
            };
            let answer = wire::ProduceResponse { responses: vec![topic], ..Default::default() };
            let names = Names::new();
            let answers = read_answers(&answer, &names);
            assert_eq!((answers.len(), answers[0].1.code), (1, expected), "{codes:?}");
        }
    }
}
