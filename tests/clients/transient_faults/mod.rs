//! Clients on a cluster that for half a minute has one fault: false, late or cut off answers, or addresses that lead elsewhere.
//! Afterwards all records are in the log once, read and committed; at no time do clients send requests in a busy loop.
//!
//! A [`Scenario`] is a fault and what clients do meanwhile; [`run_all`] runs scenarios in virtual time. The tests are in
//! `addresses.rs`, `cut_off_answers.rs`, `false_answers.rs`, `impossible_values.rs` and `facade.rs`; `network.rs` carries the
//! fault out, and `workloads.rs` has the clients. `DTKAFKA_SCENARIO=text` runs only those whose name contains the text.

mod addresses;
mod cut_off_answers;
mod facade;
mod false_answers;
mod impossible_values;
mod network;
mod workloads;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dtkafka::KafkaConfig;
use dtkafka_testcontainers::{
    EmbeddedBroker, Listener,
    broker::{ApiKey, Profile},
};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::time::Instant;

use self::{
    network::{Act, Asked, BALANCER, Destination, FaultyNetwork, FaultyTransport, Reply, Route},
    workloads::{consume, produce, transact},
};

const TOPIC: &str = "t";
const RECORDS: u32 = 60;
/// By when clients must be done, counted from the start.
const LIMIT: Duration = Duration::from_secs(180);

/// What clients do meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A producer and a group.
    Clients,
    Transactions,
    /// A producer, and a `Consumer` whose handler fails at times.
    Facade,
    /// `ExactlyOnce`, from one topic to another.
    Copy,
    Admin,
}

/// What goes wrong, and what clients do meanwhile.
struct Scenario {
    name: String,
    sasl: Option<&'static str>,
    work: Work,
    profile: Profile,
    settings: Vec<(&'static str, &'static str)>,
    route: Route,
    act: Act,
}

fn scenario(name: impl Into<String>) -> Scenario {
    Scenario {
        name: name.into(),
        sasl: None,
        work: Work::Clients,
        profile: Profile::Latest,
        settings: Vec::new(),
        route: Box::new(|_, _, _| Destination::Itself),
        act: Box::new(|_, _| None),
    }
}

impl Scenario {
    fn act(mut self, act: impl Fn(Asked, &[u8]) -> Option<Reply> + Send + Sync + 'static) -> Self {
        self.act = Box::new(act);
        self
    }

    fn route(mut self, route: impl Fn(&str, i32, u64) -> Destination + Send + Sync + 'static) -> Self {
        self.route = Box::new(route);
        self
    }

    fn sasl(mut self, mechanism: &'static str) -> Self {
        self.sasl = Some(mechanism);
        self
    }

    /// Changes every answer of one API; `change` also gets the number of the request.
    fn change_answers<M: Decodable + Encodable>(
        self,
        api: ApiKey,
        change: impl Fn(u64, &mut M) + Send + Sync + 'static,
    ) -> Self {
        self.act(move |asked, frame| {
            asked.is(api).then(|| asked.changed(frame, |answer: &mut M| change(asked.number, answer)))
        })
    }

    /// The clients write transactions, to brokers of this kind.
    fn transactions(self, profile: Profile) -> Self {
        self.work(Work::Transactions, profile)
    }

    /// The clients do this, with brokers of this kind.
    fn work(mut self, work: Work, profile: Profile) -> Self {
        (self.work, self.profile) = (work, profile);
        self
    }

    fn set(mut self, name: &'static str, value: &'static str) -> Self {
        self.settings.push((name, value));
        self
    }

    async fn run(self) -> Result<String, String> {
        let builder = EmbeddedBroker::builder().brokers(2).in_memory().seed(7).profile(self.profile);
        let broker = builder.user("alice", "secret").start().await.unwrap();
        broker.create_topic(TOPIC, 4).unwrap();
        let listener = if self.sasl.is_some() { Listener::SaslPlaintext } else { Listener::Plaintext };
        let network = Arc::new(FaultyNetwork {
            network: broker.network(),
            listener,
            start: Instant::now(),
            route: self.route,
            act: self.act,
            dials: AtomicU64::new(0),
            requests: Mutex::default(),
        });
        let mut config = KafkaConfig::new()
            .set_bootstrap_servers(format!("{BALANCER}:9092"))
            .set_transport(FaultyTransport(Arc::clone(&network)))
            .set_simulation(7, 1_700_000_000_000)
            .set_group_id("g")
            .set_auto_offset_reset("earliest")
            .set("max.block.ms", 90_000)
            .set("max.poll.interval.ms", 20_000)
            .set("metadata.max.age.ms", 2_000);
        if let Some(mechanism) = self.sasl {
            config = config
                .set_security_protocol("SASL_PLAINTEXT")
                .set_sasl_mechanism(mechanism)
                .set_sasl_plain_username("alice")
                .set_sasl_plain_password("secret");
        }
        for (name, value) in self.settings {
            config = config.set(name, value);
        }
        let work = async {
            match self.work {
                Work::Clients => {
                    tokio::try_join!(produce(config.clone()), consume(config.clone(), &broker)).map(|_| ())
                }
                Work::Transactions => transact(config.clone(), &network).await,
                Work::Facade => {
                    let handle = facade::handle(config.clone(), &broker);
                    tokio::try_join!(produce(config.clone()), handle).map(|_| ())
                }
                Work::Copy => facade::copy(config.clone(), &broker, &network).await,
                Work::Admin => facade::administer(config.clone(), &network).await,
            }
        };
        let done = tokio::time::timeout(LIMIT, work).await;
        let took = network.start.elapsed();
        let asked: u64 = network.requests.lock().unwrap().values().sum();
        let dials = network.dials.load(Ordering::Relaxed);
        let facts = format!("{took:?}, {asked} requests, {dials} dials");
        match done {
            Err(_) => return Err(format!("not done after {facts}; {:?}", network.requests.lock().unwrap())),
            Ok(Err(text)) => return Err(format!("{text} after {facts}")),
            Ok(Ok(())) if !matches!(self.work, Work::Clients | Work::Facade) => return Ok(facts),
            Ok(Ok(())) => {}
        }
        let mut log: Vec<u32> = (0..4)
            .flat_map(|partition| broker.records(TOPIC, partition).unwrap())
            .map(|record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap())
            .collect();
        log.sort_unstable();
        if log != (0..RECORDS).collect::<Vec<_>>() {
            return Err(format!("the log has {log:?}, {facts}"));
        }
        Ok(facts)
    }
}

/// Runs each scenario in a runtime of its own, three at a time, and fails with the names of those that failed.
fn run_all(scenarios: Vec<Scenario>) {
    let only = std::env::var("DTKAFKA_SCENARIO").unwrap_or_default();
    let left: Vec<Scenario> =
        scenarios.into_iter().filter(|scenario| scenario.name.contains(&only)).collect();
    let (left, failed) = (Mutex::new(left.into_iter()), Mutex::new(Vec::new()));
    let run = || {
        loop {
            let Some(scenario) = left.lock().unwrap().next() else { return };
            let name = scenario.name.clone();
            let (told, hears) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().start_paused(true).build().unwrap();
                let _ = told.send(runtime.block_on(scenario.run()));
            });
            // A panic within it ends its thread. A busy loop that sends no request ends nothing, hence the limit.
            match hears.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|error| Err(error.to_string()))
            {
                Ok(facts) => println!("{name}: {facts}"),
                Err(text) => failed.lock().unwrap().push(format!("{name}: {text}")),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(run);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} fail: {failed:#?}", failed.len());
}
