//! Handlers that fail, hang, panic, block their thread and meet what is no JSON, under each policy and ordering, while
//! members are killed and others come: each record is handled, skipped, or put aside with its bytes; order is kept where it is
//! promised; no commit passes a record that is not done.
//!
//! `DTKAFKA_STRESS` is the number of records of each round, 3,000 without it; `DTKAFKA_STRESS_KAFKA` the version of Apache
//! Kafka whose three brokers take the place of the embedded ones. Of the rounds that are drawn from `DTKAFKA_STRESS_SEED` there
//! are `DTKAFKA_STRESS_ROUNDS`, one after the other; beside them real brokers are killed, paused and restarted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dtkafka::{
    Batch, Consumer, ConsumerConfig, ConsumerHandle, ConsumerRecord, ErrorPolicy, FailedAt, HandlerResult,
    KafkaAdmin, KafkaConfig, KafkaInstance, Message, NewTopic, Ordering, ProducerRecord, Result,
    TopicPartition,
};
use dtkafka_testcontainers::{EmbeddedBroker, launch::Kafka};

use crate::nodes::{Dice, in_sync, inject_faults};

const PARTITIONS: i32 = 6;
const KEYS: u32 = 200;
const MEMBERS: usize = 3;
/// Of a handler that hangs. One that does not must be done by then, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(1);

/// What a record does to its handler, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    FailsOnce,
    PanicsOnce,
    HangsOnce,
    Blocks,
    Waits,
    FailsAlways,
    NoJson,
}

/// What becomes of a record that its handler does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    DeadLetter,
    Skip,
    /// The member ends, and another comes in its place; nothing fails twice.
    Stop,
    /// It waits elsewhere, and ends as a letter.
    RetryTopic,
}

/// What handles the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Each,
    /// Up to eight at once.
    Batch,
    Blocking,
}

/// What members are given their partitions by: a setting and its value.
const REBALANCES: [(&str, &str); 3] = [
    ("partition.assignment.strategy", "range"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("group.protocol", "auto"),
];

#[derive(Debug, Clone, Copy)]
struct Round {
    /// Topics and group are named by it.
    number: u64,
    form: Form,
    ordering: Ordering,
    concurrency: usize,
    last: Last,
    rebalance: (&'static str, &'static str),
    count: u32,
    seed: u64,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

impl Round {
    fn new(form: Form, ordering: Ordering, concurrency: usize, last: Last, seed: u64) -> Self {
        let count = number("DTKAFKA_STRESS", 3000).try_into().unwrap();
        Self { number: 0, form, ordering, concurrency, last, rebalance: REBALANCES[0], count, seed }
    }

    fn draw(dice: &mut Dice) -> Self {
        let mut one_of = |count: usize| usize::try_from(dice.below(count as u64)).unwrap();
        let ordering = [Ordering::Partition, Ordering::Key, Ordering::Unordered][one_of(3)];
        let concurrency = [1, 2, 6, 16, 64, 256][one_of(6)];
        let last = [Last::DeadLetter, Last::Skip, Last::Stop, Last::RetryTopic][one_of(4)];
        let form = [Form::Each, Form::Batch, Form::Blocking][one_of(3)];
        let rebalance = REBALANCES[one_of(3)];
        Self { rebalance, ..Self::new(form, ordering, concurrency, last, dice.below(u64::MAX)) }
    }

    fn topic(&self) -> String {
        format!("orders-{}", self.number)
    }

    fn dead(&self) -> String {
        format!("dead-{}", self.number)
    }

    fn group(&self) -> String {
        format!("g-{}", self.number)
    }

    fn topics(&self) -> [(String, i32); 3] {
        [(self.topic(), PARTITIONS), (format!("{}-retry-50ms", self.topic()), 2), (self.dead(), 1)]
    }

    fn fate(&self, number: u32) -> Fate {
        let every = if self.last == Last::Stop { (self.count / 8).max(101) } else { 101 };
        match number % every {
            1 => Fate::FailsOnce,
            2 => Fate::PanicsOnce,
            3 if (number / every).is_multiple_of(4) => Fate::HangsOnce,
            4 => Fate::Blocks,
            5..=20 => Fate::Waits,
            21 if self.last != Last::Stop => Fate::FailsAlways,
            22 if self.last != Last::Stop => Fate::NoJson,
            _ => Fate::Well,
        }
    }

    fn is_put_aside(&self, number: u32) -> bool {
        matches!(self.fate(number), Fate::FailsAlways | Fate::NoJson)
    }

    fn bytes(&self, number: u32) -> String {
        if self.fate(number) == Fate::NoJson { format!("{{no json {number}") } else { number.to_string() }
    }

    fn policy(&self) -> ErrorPolicy {
        // A batch is called again for each of its records that panics or hangs once.
        let attempts = match (self.form, self.last) {
            (_, Last::Stop) | (Form::Each | Form::Blocking, Last::RetryTopic) => 1,
            (Form::Each | Form::Blocking, Last::DeadLetter | Last::Skip) => 2,
            (Form::Batch, _) => 6,
        };
        let policy = ErrorPolicy::retry(attempts, Duration::from_millis(1)).deadline(DEADLINE);
        match self.last {
            Last::DeadLetter => policy.then_dead_letter(self.dead()),
            Last::Skip => policy.then_skip(),
            Last::Stop => policy,
            Last::RetryTopic => {
                policy.retry_topics([Duration::from_millis(50)]).then_dead_letter(self.dead())
            }
        }
    }
}

#[derive(Default)]
struct History {
    /// Numbers in the order in which their handlers ended well.
    handled: Mutex<Vec<u32>>,
    done: Mutex<BTreeSet<(i32, i64)>>,
    tried: Mutex<BTreeSet<u32>>,
}

impl History {
    /// What the record does to its handler now.
    fn fate(&self, round: Round, message: &Message<u32>) -> Fate {
        let is_first = self.tried.lock().unwrap().insert(message.value);
        match round.fate(message.value) {
            Fate::FailsOnce | Fate::PanicsOnce | Fate::HangsOnce if !is_first => Fate::Well,
            fate => fate,
        }
    }

    fn note(&self, message: &Message<u32>) {
        self.done.lock().unwrap().insert((message.partition, message.offset));
        self.handled.lock().unwrap().push(message.value);
    }
}

async fn handle(round: Round, history: &History, message: Message<u32>) -> HandlerResult {
    match history.fate(round, &message) {
        Fate::FailsOnce => return Err("not yet".into()),
        Fate::PanicsOnce => panic!("{} bursts", message.value),
        Fate::HangsOnce => std::future::pending().await,
        Fate::FailsAlways => return Err("never".into()),
        Fate::Blocks => std::thread::sleep(Duration::from_micros(500)),
        Fate::Waits => {
            let token = message.cancellation();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(u64::from(message.value % 3))) => {}
                () = token.cancelled() => return Err("told to give up".into()),
            }
        }
        Fate::Well | Fate::NoJson => {}
    }
    history.note(&message);
    Ok(())
}

async fn handle_batch(round: Round, history: &History, batch: Batch<u32>) -> HandlerResult {
    for message in batch {
        let copy = message.clone();
        handle(round, history, message).await.map_err(|error| FailedAt::new(&copy, error))?;
    }
    Ok(())
}

/// On a thread of its own.
fn handle_blocking(round: Round, history: &History, message: Message<u32>) -> HandlerResult {
    let token = message.cancellation();
    match history.fate(round, &message) {
        Fate::FailsOnce => return Err("not yet".into()),
        Fate::PanicsOnce => panic!("{} bursts", message.value),
        Fate::HangsOnce => {
            while !token.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err("told to give up".into());
        }
        Fate::FailsAlways => return Err("never".into()),
        Fate::Blocks => std::thread::sleep(Duration::from_micros(500)),
        Fate::Waits => std::thread::sleep(Duration::from_millis(u64::from(message.value % 3))),
        Fate::Well | Fate::NoJson => {}
    }
    history.note(&message);
    Ok(())
}

fn member(kafka: &KafkaInstance, round: Round, history: &Arc<History>) -> Consumer {
    let history = Arc::clone(history);
    let settings = |c: ConsumerConfig| {
        let c = c.group_id(round.group()).session_timeout(6000).heartbeat_interval(100);
        c.auto_commit_interval(50).max_poll_records(200).set(round.rebalance.0, round.rebalance.1)
    };
    let consumer = Consumer::new_with(kafka, [round.topic()], settings).unwrap();
    let consumer = consumer.ordering(round.ordering).concurrency(round.concurrency);
    let consumer = consumer.drain_timeout(Duration::from_secs(5)).error_policy(round.policy()).unwrap();
    let topic = round.topic();
    let registered = match round.form {
        Form::Each => {
            consumer.register_handler(topic, async move |message| handle(round, &history, message).await)
        }
        Form::Batch => {
            let wait = Duration::from_millis(5);
            consumer.register_batch_handler(topic, 8, wait, async move |batch| {
                handle_batch(round, &history, batch).await
            })
        }
        Form::Blocking => consumer
            .register_blocking_handler(topic, move |message| handle_blocking(round, &history, message)),
    };
    registered.unwrap()
}

struct Running {
    handle: ConsumerHandle,
    task: tokio::task::JoinHandle<dtkafka::Result<()>>,
}

fn run(mut consumer: Consumer) -> Running {
    let handle = consumer.handle();
    Running { handle, task: tokio::spawn(async move { consumer.run(std::future::pending::<()>()).await }) }
}

/// Where a dead letter comes from.
fn origin(letter: &ConsumerRecord) -> (i32, i64) {
    let number = |name: &str| {
        letter.header_str(&format!("dtkafka-dead-letter-{name}")).unwrap().parse::<i64>().unwrap()
    };
    (number("partition") as i32, number("offset"))
}

async fn letters(kafka: &KafkaInstance, round: Round) -> Result<Vec<ConsumerRecord>> {
    let none: [&str; 0] = [];
    let reader = kafka.get_consumer_with(none, |c| c.group_id("auditors")).await?;
    let dead = TopicPartition::new(round.dead(), 0);
    let end = reader.end_offsets([dead.clone()]).await?[&dead];
    reader.assign([dead.clone()])?;
    reader.seek_to_beginning([&dead])?;
    let mut letters = Vec::new();
    while reader.position(&dead).await? < end {
        letters
            .extend(reader.poll(Duration::from_secs(1)).await?.into_iter().flat_map(|(_, records)| records));
    }
    reader.close(Duration::from_secs(10)).await?;
    Ok(letters)
}

/// What was asked of brokers that come and go.
async fn at_last<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(told) => return told,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(120), "{error}"),
        }
    }
}

/// Three brokers.
enum Brokers {
    Embedded(EmbeddedBroker),
    Kafka(Box<Kafka>),
}

impl Brokers {
    async fn start() -> Self {
        match std::env::var("DTKAFKA_STRESS_KAFKA") {
            Ok(version) => {
                let kafka = Kafka::builder().version(version).nodes(3).heap("512m");
                let kafka = kafka.property("group.min.session.timeout.ms", "1000");
                let kafka = kafka.property("min.insync.replicas", "2").start().await;
                Self::Kafka(Box::new(kafka.unwrap()))
            }
            Err(_) => {
                let broker = EmbeddedBroker::builder().brokers(3);
                let broker = broker.consumer_group_times(Duration::from_secs(6), Duration::from_millis(100));
                Self::Embedded(broker.start().await.unwrap())
            }
        }
    }

    fn bootstrap_servers(&self) -> String {
        match self {
            Self::Embedded(broker) => broker.bootstrap_servers(),
            Self::Kafka(kafka) => kafka.bootstrap_servers(),
        }
    }

    fn config(&self) -> KafkaConfig {
        let config = KafkaConfig::new().set_bootstrap_servers(self.bootstrap_servers());
        config.set_auto_offset_reset("earliest").set("request.timeout.ms", 5000)
    }

    async fn stop(self) {
        if let Self::Kafka(kafka) = self {
            kafka.stop().await.unwrap();
        }
    }
}

/// Writes the records; which number stands where.
async fn fill(kafka: &KafkaInstance, round: Round) -> BTreeMap<(i32, i64), u32> {
    let producer = kafka.get_producer().await.unwrap();
    let (topic, mut deliveries) = (round.topic(), Vec::new());
    for number in 0..round.count {
        let (key, value) = (format!("k{}", number % KEYS), round.bytes(number));
        let record = ProducerRecord::new(&topic).key(&key).value(&value);
        deliveries.push(producer.send_record(record).await.unwrap());
    }
    let mut places = BTreeMap::new();
    for (number, delivery) in (0..).zip(deliveries) {
        let written = delivery.await.unwrap();
        places.insert((written.partition, written.offset), number);
    }
    producer.close().await.unwrap();
    places
}

async fn committed(admin: &KafkaAdmin, round: Round) -> Result<BTreeMap<i32, i64>> {
    let offsets = match admin.group_offsets(&round.group()).await {
        Err(error) if error.is_retriable() => return Err(error),
        offsets => offsets.unwrap_or_default(),
    };
    let own = offsets.into_iter().filter(|(partition, _)| *partition.topic == *round.topic());
    Ok(own.map(|(partition, committed)| (partition.partition, committed.offset)).collect())
}

/// A round on brokers of its own, that stay.
async fn alone(round: Round) {
    let brokers = Brokers::start().await;
    let kafka = KafkaInstance::new(brokers.config()).unwrap();
    make(&kafka, &[round]).await;
    let places = fill(&kafka, round).await;
    play(&kafka, round, &places, false).await;
    drop(kafka);
    brokers.stop().await;
}

async fn make(kafka: &KafkaInstance, rounds: &[Round]) -> Vec<String> {
    let admin = kafka.admin().await.unwrap();
    let topics: Vec<_> = rounds.iter().flat_map(Round::topics).collect();
    for (topic, partitions) in &topics {
        admin.create_topic(NewTopic::new(topic).partitions(*partitions).replication_factor(3)).await.unwrap();
    }
    topics.into_iter().map(|(topic, _)| topic).collect()
}

/// A record that is committed and not done.
fn undone(
    round: Round,
    places: &BTreeMap<(i32, i64), u32>,
    committed: &BTreeMap<i32, i64>,
    done: &BTreeSet<(i32, i64)>,
    put_aside: &BTreeSet<(i32, i64)>,
) -> Option<(i32, i64)> {
    let is_committed = |place: &(i32, i64)| place.1 < committed.get(&place.0).copied().unwrap_or(0);
    let is_dealt_with = |place: &(i32, i64), number: u32| match round.last {
        Last::DeadLetter => put_aside.contains(place),
        Last::Skip => round.is_put_aside(number),
        Last::Stop => false,
        Last::RetryTopic => !matches!(round.fate(number), Fate::Well | Fate::Waits | Fate::Blocks),
    };
    let undone = places.iter().find(|(place, number)| {
        is_committed(place) && !done.contains(place) && !is_dealt_with(place, **number)
    });
    undone.map(|(place, _)| *place)
}

/// `has_faults`: brokers come and go meanwhile.
async fn play(kafka: &KafkaInstance, round: Round, places: &BTreeMap<(i32, i64), u32>, has_faults: bool) {
    let Round { last, count, seed, .. } = round;
    let admin = at_last(async || kafka.admin().await).await;
    let history = Arc::new(History::default());
    let mut members: Vec<_> = (0..MEMBERS).map(|_| run(member(kafka, round, &history))).collect();
    let (mut dice, mut killed, mut stopped) = (Dice(seed), 0, 0);
    let begun = Instant::now();
    let well = (0..count).filter(|number| !round.is_put_aside(*number)).count();
    let (pause, kills) = if count > 10_000 { (1000, 20) } else { (150, 6) };
    loop {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // What is committed is done: handled before, or dealt with before as the policy says.
        let committed = at_last(async || committed(&admin, round).await).await;
        let done = history.done.lock().unwrap().clone();
        let looked = Instant::now();
        let put_aside: BTreeSet<_> = loop {
            let read = at_last(async || letters(kafka, round).await).await;
            let put_aside = read.iter().map(origin).collect();
            let Some(place) = undone(round, places, &committed, &done, &put_aside) else { break put_aside };
            // A broker that was paused may lead no more and not know it, and tell of an end that is long past.
            let fate = round.fate(places[&place]);
            assert!(
                has_faults && looked.elapsed() < Duration::from_secs(5),
                "{round:?}: {committed:?} is committed, and {place:?}, {fate:?}, is not done"
            );
        };
        let handled: BTreeSet<u32> = history.handled.lock().unwrap().iter().copied().collect();
        let letters = if last == Last::RetryTopic { count as usize - well } else { 0 };
        let is_over = handled.len() == well && put_aside.len() >= letters;
        if is_over && committed.values().sum::<i64>() == i64::from(count) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "{round:?}: {committed:?} of {count}");
        for member in &mut members {
            if member.task.is_finished() {
                stopped += 1;
                let ended = std::mem::replace(member, run(self::member(kafka, round, &history)));
                let error = ended.task.await.unwrap().unwrap_err();
                assert_eq!(last, Last::Stop, "only there does a record end its member: {error}");
            }
        }
        let which = usize::try_from(dice.below(MEMBERS as u64)).unwrap();
        match dice.below(8) {
            // Killed: nothing is committed, nothing ends well.
            0 if killed < kills => {
                killed += 1;
                members[which].task.abort();
                members[which] = run(member(kafka, round, &history));
            }
            1 if killed < kills => {
                killed += 1;
                let next = run(member(kafka, round, &history));
                let ended = std::mem::replace(&mut members[which], next);
                ended.handle.stop();
                check_stop(round, ended.task.await.unwrap());
            }
            _ => {}
        }
    }
    for member in members {
        member.handle.stop();
        check_stop(round, member.task.await.unwrap());
    }
    check_end(round, places, &history, &at_last(async || letters(kafka, round).await).await);
    eprintln!(
        "{round:?}: {} handled again, {killed} members ended, {stopped} by a record, {:?}",
        history.handled.lock().unwrap().len() - well,
        begun.elapsed()
    );
}

/// One that stops may have failed with a record that another has handled since; what real brokers that come and go do not let it
/// commit comes again elsewhere.
fn check_stop(round: Round, ended: Result<()>) {
    let is_passing = |ended: &Result<()>| ended.as_ref().is_err_and(dtkafka::Error::is_retriable);
    assert!(ended.is_ok() || round.last == Last::Stop || is_passing(&ended), "{round:?}: {ended:?}");
}

/// Every record was handled or is put aside as it was, and in order where that is promised.
fn check_end(
    round: Round,
    places: &BTreeMap<(i32, i64), u32>,
    history: &History,
    letters: &[ConsumerRecord],
) {
    let handled = history.handled.lock().unwrap().clone();
    let distinct: BTreeSet<u32> = handled.iter().copied().collect();
    let well: BTreeSet<u32> = (0..round.count).filter(|number| !round.is_put_aside(*number)).collect();
    assert_eq!(distinct, well, "{round:?}: every record that can be handled was");
    let values: BTreeSet<String> = letters
        .iter()
        .map(|letter| String::from_utf8(letter.value.clone().unwrap().to_vec()).unwrap())
        .collect();
    let aside = (0..round.count).filter(|number| round.is_put_aside(*number));
    let expected: BTreeSet<_> = match round.last {
        Last::DeadLetter | Last::RetryTopic => aside.map(|number| round.bytes(number)).collect(),
        Last::Skip | Last::Stop => BTreeSet::new(),
    };
    assert_eq!(values, expected, "{round:?}: with their own bytes");
    if round.ordering == Ordering::Unordered || round.last == Last::RetryTopic {
        return;
    }
    let partition: BTreeMap<u32, i32> =
        places.iter().map(|((partition, _), number)| (*number, *partition)).collect();
    let (mut first, mut last) = (BTreeSet::new(), BTreeMap::new());
    for number in &handled {
        if first.insert(*number) {
            let lane = match round.ordering {
                Ordering::Key => (0, number % KEYS),
                _ => (partition[number], 0),
            };
            let before = last.insert(lane, *number);
            assert!(before < Some(*number), "{round:?}: {number} after {before:?}");
        }
    }
}

macro_rules! rounds {
    ($($name:ident: $form:ident, $ordering:ident, $concurrency:literal, $last:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $name() {
            let (form, ordering, last) = (Form::$form, Ordering::$ordering, Last::$last);
            alone(Round::new(form, ordering, $concurrency, last, line!().into())).await;
        }
    )*};
}

rounds! {
    nothing_is_lost_or_out_of_order_per_partition: Each, Partition, 16, DeadLetter;
    nothing_is_lost_or_out_of_order_per_key: Each, Key, 16, DeadLetter;
    nothing_is_lost_without_an_order: Each, Unordered, 16, DeadLetter;
    nothing_else_is_skipped: Each, Key, 64, Skip;
    nothing_is_lost_by_members_that_stop_at_a_failure: Each, Partition, 2, Stop;
    nothing_is_lost_by_way_of_a_retry_topic: Each, Partition, 1, RetryTopic;
    nothing_is_lost_by_handlers_of_batches: Batch, Partition, 16, DeadLetter;
    nothing_is_lost_by_batches_of_a_key: Batch, Key, 16, RetryTopic;
    nothing_is_lost_by_handlers_that_block_their_thread: Blocking, Key, 16, Skip;
    nothing_is_lost_by_blocking_handlers_that_stop_at_a_failure: Blocking, Partition, 6, Stop;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_whatever_is_drawn_while_brokers_come_and_go() {
    let mut dice = Dice(number("DTKAFKA_STRESS_SEED", 7));
    let rounds: Vec<_> = (1..=number("DTKAFKA_STRESS_ROUNDS", 1))
        .map(|number| Round { number, ..Round::draw(&mut dice) })
        .collect();
    let mut brokers = Brokers::start().await;
    let kafka = KafkaInstance::new(brokers.config()).unwrap();
    let topics = make(&kafka, &rounds).await;
    let mut places = Vec::new();
    for round in &rounds {
        places.push(fill(&kafka, *round).await);
    }
    let has_faults = matches!(brokers, Brokers::Kafka(_));
    let playing = async {
        for (round, places) in rounds.iter().zip(&places) {
            play(&kafka, *round, places, has_faults).await;
        }
    };
    let admin = kafka.admin().await.unwrap();
    let faults = async {
        let Brokers::Kafka(nodes) = &mut brokers else { return std::future::pending().await };
        in_sync(&admin, &topics).await;
        let years = Duration::from_secs(1 << 30);
        inject_faults(nodes, &admin, &topics, &mut dice, Instant::now() + years, 0, |_| {}).await;
    };
    tokio::select! {
        () = playing => {}
        () = faults => unreachable!("it goes on for years"),
    }
    drop((kafka, admin));
    brokers.stop().await;
}
