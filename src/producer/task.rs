//! The producer's driver task: does what the [`Sender`] plans (connect, ask, send), and feeds the answers back.
//!
//! It decides nothing. However it ends, every record that has no answer gets one.

use std::{pin::pin, sync::Arc, time::Duration};

use super::{
    Closing, Shared,
    coordinator::Caller,
    identity::{NotYet, ProducerIdentity},
    produce::{names, read_answers, read_leaders},
    sender::{Action, Permit, Request, Sender, SenderSettings, earlier},
    transaction::{Call, NotDone, Outstanding, Reply},
};
use crate::{
    batch,
    cluster::{Lane, TopicId},
    config::settings::Acks,
    connection::{Connection, api::wire},
    driver,
    error::{Error, ErrorKind, Result, code},
    flights::{Flight, Flights},
    sorted::Map,
    time::{self, Alarm, Instant, Rng},
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
    connections: Map<i32, Arc<Connection>>,
    work: Flights<Event>,
    rng: Rng,
    /// When the topics in use are named to the cluster again, which forgets idle ones.
    touch_at: Instant,
}

pub(super) fn spawn(shared: Arc<Shared>) -> Result<()> {
    let sender = new_sender(&shared)?;
    let rng = shared.environment.rng();
    let task =
        Task { sender, connections: Map::new(), work: Flights::new(), rng, touch_at: time::now(), shared };
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

impl Task {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // What it waits for stays from turn to turn: at one record a turn, to begin and to end each wait would cost as
        // much as the record. Who closes the producer wakes it.
        let mut woken = pin!(shared.wake.notified());
        let mut news = pin!(shared.cluster.subscribe().into_changed());
        let mut alarm = Alarm::new();
        loop {
            let state = *shared.closing.borrow();
            let timeout = self.step(state).await;
            if self.is_finished(state) {
                break;
            }
            tokio::select! {
                biased;
                event = self.work.next() => self.handle(event),
                () = woken.as_mut() => woken.set(shared.wake.notified()),
                mut metadata = news.as_mut() => {
                    let snapshot = Arc::clone(&metadata.borrow_and_update());
                    news.set(metadata.into_changed());
                    shared.topics.update_all(&snapshot, &shared.limits, &shared.environment);
                }
                () = alarm.ring(timeout) => {}
            }
        }
        shared.end(&shared.fatal_error().unwrap_or_else(|| Error::closed("producer")));
    }

    /// Starts everything that can be started now. Returns when to look again.
    async fn step(&mut self, closing: Closing) -> Option<Instant> {
        let now = time::now();
        self.sender.handle_scheduled(&mut self.shared.scheduled.lock());
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
                let identity = identity.map(Some).ok_or(NotYet { cluster: 0 });
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
            self.sender.handle_scheduled(&mut self.shared.scheduled.lock());
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
        let records = !is_asked || !self.sender.is_idle() || !shared.scheduled.lock().is_empty();
        let outstanding = Outstanding { records, in_flight: self.sender.in_flight() > 0 };
        let mut core = transactions.lock();
        let was_settled = core.is_settled();
        let call = core.poll_call(now, outstanding);
        let is_over = core.is_settled() && !was_settled;
        let (version2, timeout) = (core.is_version2(), core.poll_timeout());
        drop(core);
        if is_over {
            // An empty transaction ends without a call, so handles are told here, and only then: they answer by waking
            // this task.
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
        // This bounds all attempts together; each has a shorter time-out of its own, which grows (KIP-601).
        let settings = cluster.settings();
        let deadline = now + settings.connection_setup_timeout_max + settings.reconnect_backoff_max;
        self.work.push(Box::pin(async move {
            Event::Connected(id, cluster.connection(id, Lane::Main, deadline).await)
        }));
    }

    async fn send(&mut self, mut request: Request, now: Instant) {
        let id = request.leader;
        let Some(connection) = self.connections.get(&id).cloned() else {
            let error =
                Error::new(ErrorKind::Disconnected, "the connection was lost before the request left");
            self.sender.handle_not_sent(now, request, &error.with_broker(id));
            return;
        };
        // By name, where a topic's id is not known (KIP-516).
        let by_id = request.batches.iter().all(|sent| sent.topic_id != TopicId::default());
        let shared = Arc::clone(&self.shared);
        if self.shared.settings.acks == Acks::None {
            let work: Flight<Event> = Box::pin(async move {
                // By name, because no answer would say that the topic was made again, and records would go on to an id
                // that is gone.
                let (wire_request, deadline) = shared.wire_request(&mut request);
                let written = connection.send_unanswered(BY_NAME, wire_request, deadline).await;
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
            // Made here, or the future would hold it.
            let (wire_request, deadline) = shared.wire_request(&mut request);
            // From version 12 on a partition joins the transaction by being written to (KIP-890).
            let max = match (version1, by_id) {
                (true, _) => 11,
                (false, false) => BY_NAME,
                (false, true) => i16::MAX,
            };
            let answer = connection.call_up_to(max, wire_request, deadline).await;
            let paused = connection.paused_so_far().saturating_sub(paused);
            let answer = answer.map_err(|error| error.with_broker(request.leader));
            Event::Answered(request, answer, paused)
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
                // The pauses of a quota are counted by themselves.
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
        // The transaction fails first, so that whoever hears of a failed record finds it failed.
        let failure = self.shared.transactions.as_ref().zip(self.sender.poll_failure());
        if let Some((transactions, (error, open))) = &failure {
            let is_fenced = error.code().is_some_and(|told| told.0 == code::PRODUCER_FENCED);
            let mut core = transactions.lock();
            match is_fenced {
                true => core.handle_fatal(error.clone().with_fatal()),
                false => core.handle_failure(error.clone(), *open),
            }
        }
        if let Some(aftermath) = self.sender.poll_aftermath() {
            self.shared.settle(aftermath);
        }
        if let Some((transactions, _)) = failure {
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
                let request = wire::InitProducerIdRequest {
                    transactional_id: None,
                    transaction_timeout_ms: i32::MAX,
                    ..Default::default()
                };
                let question = |connection: Arc<Connection>, until| {
                    let request = request.clone();
                    async move { connection.call(request, until).await }
                };
                let answer = cluster.ask_any(deadline, question).await?;
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
                let idle = settled && self.sender.is_idle() && self.shared.scheduled.lock().is_empty();
                time::now() >= deadline || idle
            }
        }
    }
}
