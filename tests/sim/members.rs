//! Members of groups: raw consumers with every way to commit, and facade consumers with handlers that fail, hang and panic.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dtkafka::{
    Consumer, ConsumerRecord, ConsumerRecords, Error, ErrorCode, ErrorPolicy, HandlerResult, KafkaConsumer,
    KafkaInstance, Message, RecordRef, TopicPartition,
};
use dtkafka_testcontainers::broker::Profile;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::{
    history::{Event, History, Place, Who},
    rng::Rng,
    world::World,
};

/// The payload of the panics that handlers are meant to have.
pub(crate) const PLANNED: &str = "a planned panic of a handler";

/// How one member of a group is set up; drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) group: Arc<str>,
    pub(crate) number: u32,
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) settings: Vec<(&'static str, String)>,
    pub(crate) style: Style,
    pub(crate) default_api: Duration,
    pub(crate) restless: bool,
}

/// How a member consumes and commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Automatic commits.
    Auto,
    /// Automatic commits, record by record.
    Stream,
    /// `commit` after each poll.
    CommitAll,
    /// `commit_offsets` for some of what came.
    CommitOffsets,
    /// The facade's handlers.
    Handlers(Policy),
}

/// What the facade does with what its handlers do not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Stop,
    RetryStop,
    Skip,
    DeadLetter,
}

/// The topic of dead letters.
pub(crate) const DEAD: &str = "dead";

impl Plan {
    pub(crate) fn draw(
        group: &Arc<str>,
        number: u32,
        topics: &[Arc<str>],
        shared: &[(&'static str, String)],
        facade: bool,
        profile: Profile,
        rng: &mut Rng,
    ) -> Self {
        let style = if facade {
            Style::Handlers(*rng.pick(&[Policy::Stop, Policy::RetryStop, Policy::Skip, Policy::DeadLetter]))
        } else {
            *rng.pick(&[Style::Auto, Style::Auto, Style::Stream, Style::CommitAll, Style::CommitOffsets])
        };
        let automatic = match style {
            Style::Auto | Style::Stream => true,
            Style::CommitAll | Style::CommitOffsets => false,
            Style::Handlers(_) => rng.percent(80),
        };
        let default_api = *rng.pick(&[2000, 10_000, 60_000]);
        let mut settings = shared.to_vec();
        settings.extend([
            ("group.id", group.to_string()),
            ("enable.auto.commit", automatic.to_string()),
            ("auto.commit.interval.ms", rng.pick(&["20", "100", "1000", "5000"]).to_string()),
            ("max.poll.records", rng.pick(&["1", "3", "20", "500"]).to_string()),
            ("fetch.min.bytes", rng.pick(&["1", "1", "500"]).to_string()),
            ("fetch.max.wait.ms", rng.pick(&["10", "100", "500"]).to_string()),
            ("max.partition.fetch.bytes", rng.pick(&["1", "300", "1048576"]).to_string()),
            ("fetch.buffer.memory", rng.pick(&["1000", "67108864"]).to_string()),
            ("default.api.timeout.ms", default_api.to_string()),
            ("request.timeout.ms", rng.pick(&["1000", "5000", "30000"]).to_string()),
        ]);
        // Before KIP-814 nobody leads once a static leader has come back: what topics grow by is not seen, in Java neither.
        let nobody_leads = matches!(profile, Profile::Kafka28 | Profile::EventHubs | Profile::Redpanda);
        if rng.percent(15) && !nobody_leads {
            settings.push(("group.instance.id", format!("{group}-{number}")));
        }
        Self {
            group: Arc::clone(group),
            number,
            topics: topics.to_vec(),
            settings,
            style,
            default_api: Duration::from_millis(default_api),
            restless: rng.percent(60),
        }
    }
}

/// How a life of a member ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Drop,
    /// Its network goes, and then the process.
    Die,
}

/// Lives until the world stops; the last life is closed.
pub(crate) async fn run(world: Arc<World>, plan: Plan, mut rng: Rng) {
    for life in 0.. {
        let who = Who { group: Arc::clone(&plan.group), member: plan.number, life };
        let ends = *rng.pick(&[End::Close, End::Close, End::Drop, End::Die]);
        let until = if plan.restless && !world.is_calm() {
            Instant::now() + rng.millis(100, 20_000)
        } else {
            Instant::now() + Duration::from_secs(100_000)
        };
        let life = Life {
            world: &world,
            plan: &plan,
            who: who.clone(),
            until,
            asked: Mutex::default(),
            is_fenced: AtomicBool::default(),
        };
        life.live(ends, &mut rng).await;
        if world.is_stopped() {
            return;
        }
        tokio::time::sleep(rng.millis(0, 3000)).await;
    }
}

struct Life<'a> {
    world: &'a Arc<World>,
    plan: &'a Plan,
    who: Who,
    until: Instant,
    /// How far it has asked to commit by `commit_offsets`.
    asked: Mutex<BTreeMap<Place, i64>>,
    /// Another member has its `group.instance.id`, be it a predecessor whose JoinGroup came late: a program of the user's
    /// begins anew then.
    is_fenced: AtomicBool,
}

impl Life<'_> {
    async fn live(&self, ends: End, rng: &mut Rng) {
        let name = self.who.to_string();
        let history = &self.world.history;
        let config = self.world.config(&name, &self.plan.settings, rng);
        let kafka = KafkaInstance::new(config).unwrap();
        history.add(Event::Begins { who: self.who.clone(), how: format!("{:?}", self.plan.style) });
        match self.plan.style {
            Style::Handlers(policy) => self.handle(&kafka, policy, ends, rng).await,
            _ => self.consume(&kafka, ends, rng).await,
        }
    }

    fn is_over(&self) -> bool {
        self.is_fenced.load(Relaxed)
            || self.world.is_stopped()
            || (Instant::now() >= self.until && !self.world.is_calm())
    }

    fn history(&self) -> &History {
        &self.world.history
    }

    fn failed(&self, what: &str, error: &Error) {
        self.history().note(format!("{} {what}: {error}", self.who));
        let is_fenced = error.code() == Some(ErrorCode::FENCED_INSTANCE_ID);
        if is_fenced && self.who.life == 0 {
            self.history()
                .violation(format!("{} is fenced, and nobody had its group.instance.id before", self.who));
        }
        self.is_fenced.fetch_or(is_fenced, Relaxed);
    }

    /// How this life really ends: the last one is closed.
    fn end(&self, drawn: End) -> End {
        let ends = if self.world.is_calm() { End::Close } else { drawn };
        let how = match ends {
            End::Close => "closes",
            End::Drop => "is dropped",
            End::Die => "dies",
        };
        self.history().add(Event::Ends { who: self.who.clone(), how });
        if ends == End::Die {
            self.world.control.cut(Some(&self.who.to_string()), None);
        }
        ends
    }

    // Raw consumers.

    async fn consume(&self, kafka: &KafkaInstance, ends: End, rng: &mut Rng) {
        let made = kafka.get_consumer(&*self.plan.topics);
        let limit = self.plan.default_api + Duration::from_secs(1);
        let consumer = match self.history().bounded("get_consumer", limit, made).await {
            Some(Ok(consumer)) => consumer,
            Some(Err(error)) => {
                self.history().note(format!("{} not made: {error}", self.who));
                self.history().add(Event::Ends { who: self.who.clone(), how: "was not made" });
                return;
            }
            None => return,
        };
        let mut pending: Vec<(Place, i64)> = Vec::new();
        while !self.is_over() {
            if self.plan.style == Style::Stream {
                self.stream(&consumer, &mut pending, rng).await;
            } else {
                self.poll(&consumer, &mut pending, rng).await;
            }
            // Slow work between the polls; now and then slower than the group allows.
            if rng.percent(20) {
                let longest = if rng.percent(5) && !self.world.is_calm() { 20_000 } else { 300 };
                tokio::time::sleep(rng.millis(0, longest)).await;
            }
        }
        let ends = self.end(ends);
        if ends == End::Close {
            // What is handed out counts as done when a member closes that commits by itself.
            if matches!(self.plan.style, Style::Auto | Style::Stream) {
                self.done(&mut pending);
            }
            let within = if self.world.is_calm() { Duration::from_secs(30) } else { rng.millis(0, 10_000) };
            let closed = self.history().bounded("close of a consumer", within, consumer.close(within)).await;
            if let Some(Err(error)) = closed {
                self.history().note(format!("{} close: {error}", self.who));
            }
            let held = consumer.buffered_bytes();
            if held > 0 {
                self.history().violation(format!("{} holds {held} bytes after its end", self.who));
            }
        }
    }

    fn done(&self, pending: &mut Vec<(Place, i64)>) {
        for (place, offset) in pending.drain(..) {
            self.history().add(Event::Done { who: self.who.clone(), place, offset });
        }
    }

    fn handed_out(&self, record: &RecordRef<'_>) -> (Place, i64) {
        let place = Place::new(record.topic(), record.partition());
        let id = identity(record.value());
        let offset = record.offset();
        self.history().add(Event::HandedOut { who: self.who.clone(), place: place.clone(), offset, id });
        (place, offset)
    }

    /// What comes again takes the place of what came before: a commit of that would be the user's own step back.
    fn take(&self, records: &ConsumerRecords, pending: &mut Vec<(Place, i64)>) {
        for record in records.records() {
            let (place, offset) = self.handed_out(&record);
            pending.retain(|(other, later)| *other != place || *later < offset);
            pending.push((place, offset));
        }
    }

    async fn poll(&self, consumer: &KafkaConsumer, pending: &mut Vec<(Place, i64)>, rng: &mut Rng) {
        let timeout = *rng.pick(&[0, 10, 500, 3000]);
        let timeout = Duration::from_millis(timeout);
        if self.plan.style == Style::Auto {
            // The poll itself says so.
            self.done(pending);
        }
        if rng.percent(2) {
            // Dropped in the middle: it must lose nothing.
            let early = tokio::time::timeout(rng.millis(0, 300), consumer.poll(timeout)).await;
            if let Ok(Ok(records)) = early {
                self.take(&records, pending);
            }
        } else {
            match self.history().bounded("poll", timeout, consumer.poll(timeout)).await {
                Some(Ok(records)) => self.take(&records, pending),
                Some(Err(error)) => {
                    self.failed("poll", &error);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                None => {}
            }
        }
        if timeout.is_zero() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match self.plan.style {
            Style::CommitAll if !pending.is_empty() || self.world.is_calm() => {
                self.commit_all(consumer, pending, rng).await
            }
            // What could not be committed during the faults is committed after them.
            Style::CommitOffsets if self.world.is_calm() => self.commit_all(consumer, pending, rng).await,
            Style::CommitOffsets if !pending.is_empty() => self.commit_some(consumer, pending, rng).await,
            _ => {}
        }
    }

    async fn commit_all(&self, consumer: &KafkaConsumer, pending: &mut Vec<(Place, i64)>, rng: &mut Rng) {
        self.done(pending);
        if rng.percent(10) && !self.world.is_calm() {
            return;
        }
        let result = self.history().bounded("commit", self.plan.default_api, consumer.commit()).await;
        if let Some(Err(error)) = result {
            self.history().note(format!("{} commit: {error}", self.who));
        }
    }

    /// Commits up to one of the records of each partition, and is done with no more than these.
    async fn commit_some(&self, consumer: &KafkaConsumer, pending: &mut Vec<(Place, i64)>, rng: &mut Rng) {
        let take = rng.range(1, pending.len() as u64) as usize;
        let rest = pending.split_off(take);
        let mut offsets: BTreeMap<Place, i64> = BTreeMap::new();
        {
            let mut asked = self.asked.lock().unwrap();
            for (place, offset) in pending.iter() {
                // What comes again after a rebalance is behind what was committed of it: that would be the user's own step back.
                let furthest = asked.entry(place.clone()).or_default();
                *furthest = (offset + 1).max(*furthest);
                offsets.insert(place.clone(), *furthest);
            }
        }
        self.done(pending);
        *pending = rest;
        let offsets =
            offsets.into_iter().map(|(p, offset)| (TopicPartition::new(&*p.topic, p.partition), offset));
        let committed = consumer.commit_offsets(offsets.collect::<Vec<_>>());
        let result = self.history().bounded("commit_offsets", self.plan.default_api, committed).await;
        if let Some(Err(error)) = result {
            self.history().note(format!("{} commit_offsets: {error}", self.who));
        }
    }

    /// Some records through a stream; each is done when the next is asked for.
    async fn stream(&self, consumer: &KafkaConsumer, pending: &mut Vec<(Place, i64)>, rng: &mut Rng) {
        let mut stream = consumer.stream();
        for _ in 0..rng.range(1, 30) {
            self.done(pending);
            match tokio::time::timeout(rng.millis(50, 2000), stream.next()).await {
                Ok(Some(Ok(record))) => {
                    let place = Place::new(&record.topic, record.partition);
                    self.history().add(Event::HandedOut {
                        who: self.who.clone(),
                        place: place.clone(),
                        offset: record.offset,
                        id: identity(record.value.as_deref()),
                    });
                    pending.push((place, record.offset));
                }
                Ok(Some(Err(error))) => {
                    self.failed("stream", &error);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    // Facade consumers.

    async fn handle(&self, kafka: &KafkaInstance, policy: Policy, ends: End, rng: &mut Rng) {
        let desk = Arc::new(Desk {
            world: Arc::clone(self.world),
            who: self.who.clone(),
            policy,
            attempts: rng.range(1, 3) as u32,
            state: Mutex::new((rng.child(), BTreeMap::new())),
        });
        let backoff = rng.millis(0, 400);
        let json = rng.percent(50);
        let mut consumer = self.made(kafka, &desk, backoff, json);
        let limit = Duration::from_secs(400);
        // `run` never commits where the application does.
        if rng.percent(50) || !self.commits_by_itself() {
            while !self.is_over() {
                let round = consumer.consume(rng.millis(0, 2000));
                let round = AssertUnwindSafe(round).catch_unwind();
                match self.history().bounded("consume", limit, round).await {
                    Some(Ok(Ok(_))) => {}
                    Some(Ok(Err(error))) => {
                        self.history().note(format!("{} consume: {error}", self.who));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Some(Err(_)) => self.history().note(format!("{} consume panicked", self.who)),
                    None => return,
                }
                if !self.commits_by_itself() && rng.percent(if self.world.is_calm() { 100 } else { 50 }) {
                    let commit = consumer.commit();
                    let done = self.history().bounded("facade commit", self.plan.default_api, commit).await;
                    if let Some(Err(error)) = done {
                        self.history().note(format!("{} commit: {error}", self.who));
                    }
                }
            }
        } else {
            self.run(&mut consumer).await;
        }
        if self.end(ends) == End::Close {
            let within = if self.world.is_calm() { Duration::from_secs(30) } else { rng.millis(0, 10_000) };
            let close = consumer.close_within(within);
            if let Some(Err(error)) = self.history().bounded("close of a facade", within, close).await {
                self.history().note(format!("{} close: {error}", self.who));
            }
        }
    }

    fn commits_by_itself(&self) -> bool {
        self.plan.settings.iter().any(|(name, value)| *name == "enable.auto.commit" && value == "true")
    }

    fn made(&self, kafka: &KafkaInstance, desk: &Arc<Desk>, backoff: Duration, json: bool) -> Consumer {
        let mut consumer = Consumer::new(kafka, &*self.plan.topics).unwrap();
        for topic in &self.plan.topics {
            let desk = Arc::clone(desk);
            consumer = if json {
                let handler = async move |message: Message<String>| -> HandlerResult {
                    let place = Place::new(&message.topic, message.partition);
                    desk.serve(place, message.offset, message.value).await
                };
                consumer.register_handler(topic, handler).unwrap()
            } else {
                let handler = async move |record: ConsumerRecord| -> HandlerResult {
                    let place = Place::new(&record.topic, record.partition);
                    desk.serve(place, record.offset, identity(record.value.as_deref())).await
                };
                consumer.register_raw_handler(topic, handler).unwrap()
            };
        }
        let retry = ErrorPolicy::retry(desk.attempts, backoff);
        let policy = match desk.policy {
            Policy::Stop => ErrorPolicy::Stop,
            Policy::RetryStop => retry,
            Policy::Skip => retry.then_skip(),
            Policy::DeadLetter => retry.then_dead_letter(DEAD),
        };
        consumer.error_policy(policy).unwrap()
    }

    async fn run(&self, consumer: &mut Consumer) {
        while !self.is_over() {
            let shutdown = async {
                while !self.is_over() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let running = AssertUnwindSafe(consumer.run(shutdown)).catch_unwind();
            // Until it is told to stop, or to the end of the world.
            match running.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.history().note(format!("{} run: {error}", self.who));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(_) => self.history().note(format!("{} run panicked", self.who)),
            }
        }
    }
}

/// How often each record failed.
type Failures = BTreeMap<(Place, i64), u32>;

/// What the handlers of one facade consumer share.
struct Desk {
    world: Arc<World>,
    who: Who,
    policy: Policy,
    attempts: u32,
    /// The generator, and how often each record failed in a row.
    state: Mutex<(Rng, Failures)>,
}

enum Fate {
    Well,
    Fails,
    Panics,
    Hangs(Duration),
}

/// Says that a handler is over, also when it is dropped.
struct Open<'a>(&'a Desk, Place, i64, &'static str);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let Self(desk, place, offset, how) = self;
        desk.world.history.add(Event::HandlerEnds {
            who: desk.who.clone(),
            place: place.clone(),
            offset: *offset,
            how,
        });
    }
}

impl Desk {
    async fn serve(&self, place: Place, offset: i64, id: String) -> HandlerResult {
        let (who, history) = (self.who.clone(), &self.world.history);
        history.add(Event::HandedOut { who: who.clone(), place: place.clone(), offset, id: id.clone() });
        history.add(Event::HandlerBegins { who: who.clone(), place: place.clone(), offset });
        let (fate, pause) = {
            let rng = &mut self.state.lock().unwrap().0;
            let fate = match rng.below(100) {
                _ if self.world.is_calm() => Fate::Well,
                0..8 => Fate::Fails,
                8..9 => Fate::Panics,
                9..11 => Fate::Hangs(rng.millis(1000, 20_000)),
                _ => Fate::Well,
            };
            (fate, rng.millis(0, 20))
        };
        let mut open = Open(self, place.clone(), offset, "drops its handler");
        tokio::time::sleep(pause).await;
        match fate {
            Fate::Hangs(time) => tokio::time::sleep(time).await,
            Fate::Panics => {
                open.3 = "panics";
                drop(open);
                // The policy deals with a panic as with an error.
                self.failed(place, offset, id);
                std::panic::resume_unwind(Box::new(PLANNED));
            }
            Fate::Fails => {
                open.3 = "fails";
                drop(open);
                self.failed(place, offset, id);
                return Err("a planned failure".into());
            }
            Fate::Well => {}
        }
        open.3 = "has handled";
        drop(open);
        self.state.lock().unwrap().1.remove(&(place.clone(), offset));
        history.add(Event::Done { who, place, offset });
        Ok(())
    }

    fn failed(&self, place: Place, offset: i64, id: String) {
        let failures = {
            let failures = &mut self.state.lock().unwrap().1;
            let failures = failures.entry((place.clone(), offset)).or_default();
            *failures += 1;
            *failures
        };
        let (who, history) = (self.who.clone(), &self.world.history);
        match self.policy {
            Policy::Skip if failures >= self.attempts => history.add(Event::Done { who, place, offset }),
            Policy::DeadLetter if failures >= self.attempts => {
                history.add(Event::DeadLettered { who, place, offset, id });
            }
            _ => {}
        }
    }
}

/// The name of a record, from its value.
pub(crate) fn identity(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or_default()).trim_matches([' ', '"']).to_owned()
}
