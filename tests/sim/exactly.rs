//! Members that consume, transform and produce exactly once, and whether it was so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use dtkafka::{ExactlyOnce, KafkaInstance};
use tokio::time::Instant;

use crate::{checker::Log, history::Place, rng::Rng, world::World};

/// Where they write to.
pub(crate) const OUT: &str = "out";
/// Their group.
pub(crate) const GROUP: &str = "exactly";

/// How one member is set up; drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    number: u32,
    settings: Vec<(&'static str, String)>,
    interval: Duration,
    restless: bool,
}

impl Plan {
    pub(crate) fn draw(number: u32, shared: &[(&'static str, String)], rng: &mut Rng) -> Self {
        let mut settings = shared.to_vec();
        settings.extend([
            ("max.poll.records", rng.pick(&["1", "7", "500"]).to_string()),
            ("request.timeout.ms", rng.pick(&["2000", "5000"]).to_string()),
            ("delivery.timeout.ms", "10000".to_owned()),
            ("max.block.ms", rng.pick(&["5000", "60000"]).to_string()),
            ("linger.ms", rng.pick(&["0", "5"]).to_string()),
            ("transaction.timeout.ms", rng.pick(&["5000", "20000"]).to_string()),
        ]);
        Self { number, settings, interval: rng.millis(0, 500), restless: rng.percent(60) }
    }

    /// What the members of the group share.
    pub(crate) fn shared(rng: &mut Rng) -> Vec<(&'static str, String)> {
        vec![
            ("auto.offset.reset", "earliest".to_owned()),
            ("session.timeout.ms", rng.pick(&["6000", "10000"]).to_string()),
            ("heartbeat.interval.ms", rng.pick(&["300", "1000"]).to_string()),
            ("max.poll.interval.ms", rng.pick(&["10000", "300000"]).to_string()),
        ]
    }
}

/// Lives until the world stops.
pub(crate) async fn run(world: Arc<World>, plan: Plan, mut rng: Rng) {
    for life in 0.. {
        let name = format!("e{}.{life}", plan.number);
        let config = world.config(&name, &plan.settings, &mut rng);
        let kafka = KafkaInstance::new(config).unwrap();
        let until = Instant::now() + rng.millis(100, 15_000);
        let is_dropped = rng.percent(50);
        let is_over = || plan.restless && Instant::now() >= until && !world.is_calm();
        let over = async || {
            while !world.is_stopped() && !is_over() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        world.history.note(format!("{name} begins"));
        let running = ExactlyOnce::new(&kafka, world.topics.iter().map(|t| t.to_string()), GROUP)
            .transactional_id(format!("e{}", plan.number))
            .commit_interval(plan.interval)
            .run_until(over(), async |record, output| {
                let value = format!("{}-{}@{}", record.topic(), record.partition(), record.offset());
                output.send(OUT, &value).await.map(drop)
            });
        if is_dropped {
            tokio::select! {
                biased;
                () = async { while !is_over() { tokio::time::sleep(Duration::from_millis(130)).await } } => {
                    world.history.note(format!("{name} is dropped"));
                }
                ended = running => tell(&world, &name, ended),
            }
        } else {
            tell(&world, &name, running.await);
        }
        if world.is_stopped() {
            return;
        }
        tokio::time::sleep(rng.millis(100, 2000)).await;
    }
}

fn tell(world: &World, name: &str, ended: dtkafka::Result<()>) {
    world.history.note(match ended {
        Ok(()) => format!("{name} ends"),
        Err(error) => format!("{name} ends: {error}"),
    });
}

/// What went in came out once.
pub(crate) fn check(world: &World, committed: &Log) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for partition in 0..2 {
        for record in world.broker.committed_records(OUT, partition).unwrap() {
            let value = record.value.unwrap_or_default();
            *seen.entry(String::from_utf8_lossy(&value).trim_matches('"').to_owned()).or_default() += 1;
        }
    }
    let due: BTreeSet<String> = committed
        .iter()
        .flat_map(|(place, records): (&Place, _)| {
            records.keys().map(move |offset| format!("{place}@{offset}"))
        })
        .collect();
    for input in &due {
        match seen.get(input) {
            Some(1) => {}
            times => world.history.violation(format!("{input} came out {} times", times.unwrap_or(&0))),
        }
    }
    for output in seen.keys().filter(|output| !due.contains(*output)) {
        world.history.violation(format!("{output} came out and never went in"));
    }
}
