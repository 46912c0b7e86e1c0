//! A world: a cluster, its clients and what happens to them, all drawn from one seed. Runs under paused time.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dtkafka::KafkaConfig;
use dtkafka_testcontainers::{
    EmbeddedBroker, FaultControl,
    broker::{Profile, Quota},
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    checker::{self, Facts},
    exactly,
    history::{History, Place},
    members, nemesis,
    network::{Air, Conditions, Wire},
    producers, readers,
    rng::Rng,
    transactions,
};

/// The wall clock at the beginning of every world.
const WALL_CLOCK_MS: i64 = 1_700_000_000_000;
/// Once faults have ended, everything is delivered and committed within this.
const CALM: Duration = Duration::from_secs(400);

/// What all tasks of a world share.
pub(crate) struct World {
    pub(crate) history: History,
    pub(crate) control: FaultControl,
    pub(crate) broker: EmbeddedBroker,
    pub(crate) air: Arc<Air>,
    pub(crate) brokers: u32,
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) groups: Vec<Arc<str>>,
    /// A topic that is deleted and made again; nothing is promised of its records.
    pub(crate) doomed: Option<Arc<str>>,
    profile: Profile,
    /// Brokers that do not run, once for each who has stopped them.
    down: Mutex<Vec<i32>>,
    /// Partitions at the beginning.
    first: BTreeMap<Arc<str>, u64>,
    /// Where partitions end, for readers of all and of committed records, once everything has stopped.
    ends: [OnceLock<BTreeMap<Place, i64>>; 2],
    partitions: Mutex<BTreeMap<Arc<str>, u64>>,
    /// Settings that all clients have.
    settings: Vec<(&'static str, String)>,
    calm: AtomicBool,
    calm_since: OnceLock<Instant>,
    stopped: AtomicBool,
}

impl World {
    /// The configuration of one client.
    pub(crate) fn config(
        &self,
        name: &str,
        settings: &[(&'static str, String)],
        rng: &mut Rng,
    ) -> KafkaConfig {
        config(&self.broker, &self.air, name, &self.settings, self.wall_clock(), rng)
            .set_properties(settings.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn wall_clock(&self) -> i64 {
        WALL_CLOCK_MS + (self.history.seconds(Instant::now()) * 1000.0) as i64
    }

    pub(crate) fn partitions(&self, topic: &str) -> u64 {
        self.partitions.lock().unwrap()[topic]
    }

    /// More partitions for a topic.
    pub(crate) fn grow(&self, topic: &Arc<str>) {
        let mut partitions = self.partitions.lock().unwrap();
        let count = partitions.get_mut(topic).unwrap();
        *count += 1;
        self.broker.grow_topic(topic, *count as i32).unwrap();
    }

    /// Whether the partition was there at the beginning.
    pub(crate) fn was_there(&self, place: &Place) -> bool {
        self.first.get(&place.topic).is_some_and(|count| (place.partition as u64) < *count)
    }

    /// Where partitions end, once everything has stopped.
    pub(crate) fn ends(&self, committed_only: bool) -> &BTreeMap<Place, i64> {
        self.ends[usize::from(committed_only)].get_or_init(|| checker::ends(self, committed_only))
    }

    /// Whether the brokers know transactions.
    fn has_transactions(&self) -> bool {
        !matches!(self.profile, Profile::EventHubs)
    }

    pub(crate) fn goes_down(&self, broker: i32) {
        self.down.lock().unwrap().push(broker);
    }

    pub(crate) fn is_up_again(&self, broker: i32) {
        let mut down = self.down.lock().unwrap();
        if let Some(index) = down.iter().position(|other| *other == broker) {
            down.swap_remove(index);
        }
    }

    /// Whether the broker may lead: leadership given to one that is down would lose records, as an unclean election does.
    pub(crate) fn runs(&self, broker: i32) -> bool {
        !self.down.lock().unwrap().contains(&broker)
    }

    /// Whether no more faults are injected.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Whether the clients must end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

fn config(
    broker: &EmbeddedBroker,
    air: &Arc<Air>,
    name: &str,
    settings: &[(&'static str, String)],
    wall_clock: i64,
    rng: &mut Rng,
) -> KafkaConfig {
    KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_client_id(name)
        .set_transport(Wire { air: Arc::clone(air), client: name.into() })
        .set_simulation(rng.next(), wall_clock)
        .set_properties(settings.iter().map(|(name, value)| (*name, value.as_str())))
}

/// The outcome of a seed.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) world: String,
    pub(crate) history: History,
    pub(crate) violations: Vec<String>,
    /// Virtual seconds to the end of the faults and to the end of the world, and requests: what it costs to compute.
    pub(crate) size: (f64, f64, u64),
}

thread_local! {
    /// Panics on this thread that nobody has planned.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Counts panics instead of printing those that are planned.
fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// The client's log, for a seed that is replayed.
pub(crate) fn log_to_stderr() {
    let Ok(level) = std::env::var("DTKAFKA_SIM_LOG") else { return };
    let level: tracing_subscriber::filter::LevelFilter = level.parse().unwrap();
    tracing_subscriber::fmt().with_max_level(level).without_time().with_writer(std::io::stderr).init();
}

/// Runs the world of a seed to its end.
pub(crate) fn run(seed: u64) -> Report {
    watch_panics();
    let panics = PANICS.get();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut report = runtime.block_on(simulate(seed));
    drop(runtime);
    if PANICS.get() > panics {
        report.violations.push(format!("{} panics that were not planned", PANICS.get() - panics));
    }
    report
}

/// Draws a world, runs it and checks its history. The order of the draws is part of what a seed means.
async fn simulate(seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let brokers = rng.range(1, 3) as u32;
    let (broker, profile) = start_cluster(brokers, &mut rng).await;
    let control = broker.control();
    control.record_commits();
    let conditions = Conditions {
        latency: *rng.pick(&[(0, 1), (0, 3), (1, 40), (0, 300)]),
        breaks: *rng.pick(&[0, 0, 10, 100]),
        splits: *rng.pick(&[0, 10, 50]),
    };
    let air = Air::new(broker.network(), conditions, rng.child());
    let topics: Vec<Arc<str>> = (0..rng.range(1, 2)).map(|n| format!("t{n}").into()).collect();
    let mut partitions = BTreeMap::new();
    for topic in &topics {
        let count = *rng.pick(&[1, 1, 2, 3, 5]);
        broker.create_topic(topic, count).unwrap();
        partitions.insert(Arc::clone(topic), count as u64);
    }
    broker.create_topic(members::DEAD, 1).unwrap();
    broker.create_topic(exactly::OUT, 2).unwrap();
    let doomed: Option<Arc<str>> = rng.percent(20).then(|| "doomed".into());
    if let Some(topic) = &doomed {
        broker.create_topic(topic, 2).unwrap();
    }
    let settings = client_settings(&mut rng);
    let groups: Vec<Arc<str>> = (0..rng.range(0, 2)).map(|n| format!("g{n}").into()).collect();
    let world = Arc::new(World {
        history: History::begin(),
        control,
        broker,
        air,
        brokers,
        topics,
        groups,
        doomed,
        profile,
        down: Mutex::default(),
        first: partitions.clone(),
        ends: Default::default(),
        partitions: Mutex::new(partitions),
        settings,
        calm: false.into(),
        calm_since: OnceLock::new(),
        stopped: false.into(),
    });
    let facts = play(&world, &mut rng).await;
    let seconds = |at: Instant| world.history.seconds(at);
    let now = Instant::now();
    let size =
        (seconds(*world.calm_since.get().unwrap_or(&now)), seconds(now), world.control.total_requests());
    checker::check(&world, &facts);
    let world_line = format!(
        "{brokers} brokers like {profile:?}, {conditions:?}, {} topics, {} groups",
        world.topics.len(),
        world.groups.len()
    );
    Report {
        seed,
        world: world_line,
        history: world.history.clone(),
        violations: world.history.violations(),
        size,
    }
}

async fn start_cluster(brokers: u32, rng: &mut Rng) -> (EmbeddedBroker, Profile) {
    let profile = match rng.below(20) {
        0 | 1 => Profile::Kafka28,
        2 | 3 => Profile::Kafka39,
        4 => Profile::EventHubs,
        5 => Profile::Redpanda,
        _ => Profile::Latest,
    };
    let slots = *rng.pick(&[1000, 1000, 2]);
    let broker = EmbeddedBroker::builder()
        .brokers(brokers as i32)
        .profile(profile)
        .fetch_sessions(slots)
        .consumer_group_times(Duration::from_secs(8), rng.millis(300, 2000))
        .in_memory()
        .seed(rng.next())
        .wall_clock_ms(WALL_CLOCK_MS)
        .start()
        .await
        .unwrap();
    (broker, profile)
}

/// Settings that all clients of a world have.
fn client_settings(rng: &mut Rng) -> Vec<(&'static str, String)> {
    vec![
        ("metadata.max.age.ms", rng.pick(&["500", "5000", "300000"]).to_string()),
        ("retry.backoff.ms", rng.pick(&["10", "100"]).to_string()),
        ("retry.backoff.max.ms", "1000".to_owned()),
        ("reconnect.backoff.ms", rng.pick(&["10", "50"]).to_string()),
        ("reconnect.backoff.max.ms", "1000".to_owned()),
        ("connections.max.idle.ms", rng.pick(&["1000", "540000"]).to_string()),
        ("socket.connection.setup.timeout.ms", rng.pick(&["1000", "10000"]).to_string()),
    ]
}

/// The tasks of a world's clients.
#[derive(Default)]
struct Clients {
    producers: JoinSet<()>,
    consumers: JoinSet<()>,
    /// Whether some of them write transactions.
    are_transactional: bool,
    /// How many clients there are at most at a time.
    most: u64,
}

/// Runs the clients, injects faults, ends the faults, and waits for the end of the clients.
async fn play(world: &Arc<World>, rng: &mut Rng) -> Facts {
    let mut facts = Facts { lossy: rng.percent(8), ..Facts::default() };
    let mut clients = spawn_clients(world, rng, &mut facts);
    let watcher = tokio::spawn(checker::watch_requests(Arc::clone(world), clients.most));
    // Without faults: but for slow answers, after which a producer without idempotence repeats a request.
    facts.peaceful = rng.percent(15) && world.air.is_fast() && !facts.lossy;
    let lasting = rng.millis(1000, 40_000);
    if facts.peaceful {
        tokio::time::sleep(lasting).await;
    } else {
        // Two that act independently bring about combinations of faults that one does not.
        let alone = rng.percent(60);
        let first = nemesis::run(Arc::clone(world), lasting, nemesis::Means::new(&facts, alone), rng.child());
        if alone {
            first.await;
        } else {
            let means = nemesis::Means::new(&facts, false);
            tokio::join!(first, nemesis::run(Arc::clone(world), lasting, means, rng.child()));
        }
    }
    calm(world).await;
    within_the_calm(world, "the producers end", async {
        while let Some(ended) = clients.producers.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    if clients.are_transactional {
        // Transactions that were left open are aborted by their time-out. What is on its way may still open one.
        tokio::time::sleep(Duration::from_secs(3)).await;
        for _ in 0..70 {
            if world.broker.open_transactions() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    let lag = checker::lag_is_gone(Arc::clone(world), &facts);
    within_the_calm(world, "everything is committed", lag).await;
    for behind in checker::lagging(world, &facts) {
        world.history.note(behind);
    }
    world.history.note("the world stops");
    world.stopped.store(true, Ordering::Relaxed);
    within_the_calm(world, "the members end", async {
        while let Some(ended) = clients.consumers.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    watcher.abort();
    facts
}

/// Draws and starts the clients, and notes in `facts` what the checker must know of them.
fn spawn_clients(world: &Arc<World>, rng: &mut Rng, facts: &mut Facts) -> Clients {
    let mut clients = Clients::default();
    for number in 0..rng.range(1, 3) as u32 {
        let plan = producers::Plan::draw(number, rng);
        world.history.note(format!("{plan:?}"));
        facts.producers.push(plan.clone());
        clients.producers.spawn(producers::run(Arc::clone(world), plan, rng.child()));
    }
    let transactional = if rng.percent(40) && world.has_transactions() { rng.range(1, 2) } else { 0 };
    for number in 0..transactional as u32 {
        let plan = transactions::Plan::draw(number, rng);
        world.history.note(format!("{plan:?}"));
        clients.producers.spawn(transactions::run(Arc::clone(world), plan, rng.child()));
    }
    let mut topics = world.topics.clone();
    topics.extend(world.doomed.clone());
    for group in &world.groups {
        let shared = group_settings(world.profile, rng);
        let facade = rng.percent(40);
        for number in 0..rng.range(1, 3) as u32 {
            let plan = members::Plan::draw(group, number, &topics, &shared, facade, world.profile, rng);
            world.history.note(format!("{plan:?}"));
            clients.consumers.spawn(members::run(Arc::clone(world), plan, rng.child()));
        }
        facts.groups.insert(Arc::clone(group), shared);
    }
    for number in 0..if rng.percent(40) { rng.range(1, 2) } else { 0 } as u32 {
        let plan = readers::Plan::draw(number, rng);
        world.history.note(format!("{plan:?}"));
        facts.readers.push(plan.clone());
        clients.consumers.spawn(readers::run(Arc::clone(world), plan, rng.child()));
    }
    facts.exactly = rng.percent(15) && world.has_transactions();
    if facts.exactly {
        let shared = exactly::Plan::shared(rng);
        for number in 0..rng.range(1, 2) as u32 {
            let plan = exactly::Plan::draw(number, &shared, rng);
            world.history.note(format!("{plan:?}"));
            clients.consumers.spawn(exactly::run(Arc::clone(world), plan, rng.child()));
        }
    }
    clients.are_transactional = transactional > 0 || facts.exactly;
    // Each member of a group may be two at a time, and so may a producer of transactions.
    let most = 3 + 3 * world.groups.len() as u64 + 2 * transactional + facts.readers.len() as u64;
    clients.most = most + if facts.exactly { 4 } else { 0 };
    clients
}

/// What the members of a group share.
fn group_settings(profile: Profile, rng: &mut Rng) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("auto.offset.reset", if rng.percent(85) { "earliest" } else { "latest" }.to_owned()),
        ("max.poll.interval.ms", rng.pick(&["5000", "30000", "300000"]).to_string()),
        ("isolation.level", rng.pick(&["read_uncommitted", "read_committed"]).to_string()),
    ];
    if profile == Profile::Latest && rng.percent(35) {
        settings.push(("group.protocol", "consumer".to_owned()));
        return settings;
    }
    let assignors =
        ["range", "roundrobin", "sticky", "cooperative-sticky", "cooperative-sticky", "range,roundrobin"];
    settings.extend([
        ("session.timeout.ms", rng.pick(&["6000", "10000", "45000"]).to_string()),
        ("heartbeat.interval.ms", rng.pick(&["300", "1000", "3000"]).to_string()),
        ("partition.assignment.strategy", rng.pick(&assignors).to_string()),
    ]);
    settings
}

async fn calm(world: &World) {
    world.history.note("calm");
    world.calm.store(true, Ordering::Relaxed);
    let _first = world.calm_since.set(Instant::now());
    world.control.clear();
    world.control.heal_all();
    for quota in [Quota::ProduceBytes, Quota::FetchBytes, Quota::Requests] {
        world.control.quota(quota, None, None);
    }
    world.control.delay_markers(Duration::ZERO);
    if let Some(topic) = &world.doomed {
        drop(world.broker.create_topic(topic, 2));
    }
    for broker in 1..=world.brokers as i32 {
        world.control.start_broker(broker).await.unwrap();
    }
    world.air.calm();
}

async fn within_the_calm(world: &World, what: &str, end: impl Future<Output = ()>) {
    if tokio::time::timeout(CALM, end).await.is_err() {
        world.history.violation(format!("{what}: not within {CALM:?} of calm"));
    }
}
