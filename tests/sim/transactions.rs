//! Producers of transactions, and whether each transaction is seen whole or not at all.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dtkafka::{Delivery, KafkaInstance, ProducerRecord, Transaction, TransactionalProducer};
use tokio::task::JoinSet;

use crate::{
    checker::Log,
    history::{Event, Id, Place},
    rng::Rng,
    world::World,
};

/// How one producer of transactions is set up; drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    number: u32,
    settings: Vec<(&'static str, String)>,
    lives: u64,
    /// In each life.
    transactions: u64,
    /// The longest pause between two records, in milliseconds.
    pause: u64,
    max_block: Duration,
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Drop,
    /// Its network goes while it works on, and comes back once its successor lives.
    Zombie,
}

/// What became of a transaction, as far as its producer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Aborted,
    /// The commit may have happened.
    InDoubt,
}

impl Plan {
    pub(crate) fn draw(number: u32, rng: &mut Rng) -> Self {
        let max_block = *rng.pick(&[3000, 10_000, 60_000]);
        let request = *rng.pick(&[2000, 5000]);
        let settings = vec![
            ("transactional.id", format!("x{number}")),
            ("transaction.timeout.ms", rng.pick(&["1000", "2000", "10000", "60000"]).to_string()),
            ("max.in.flight.requests.per.connection", rng.range(1, 5).to_string()),
            ("request.timeout.ms", request.to_string()),
            ("delivery.timeout.ms", rng.pick(&["6000", "20000"]).to_string()),
            ("linger.ms", rng.pick(&["0", "5", "100"]).to_string()),
            ("max.block.ms", max_block.to_string()),
            ("batch.size", rng.pick(&["1", "200", "16384"]).to_string()),
            ("compression.type", rng.pick(&["none", "lz4", "zstd"]).to_string()),
        ];
        Self {
            number,
            settings,
            lives: rng.range(1, 3),
            transactions: rng.range(2, 12),
            pause: *rng.pick(&[0, 20, 300]),
            max_block: Duration::from_millis(max_block),
        }
    }
}

/// Lives until everything is sent.
pub(crate) async fn run(world: Arc<World>, plan: Plan, mut rng: Rng) {
    let mut zombies: JoinSet<()> = JoinSet::new();
    for life in 0..plan.lives {
        let ends = *rng.pick(&[End::Close, End::Drop, End::Zombie]);
        let name = format!("x{}.{life}", plan.number);
        let config = world.config(&name, &plan.settings, &mut rng);
        let kafka = KafkaInstance::new(config).unwrap();
        let Some(producer) = made(&world, &plan, &name, &kafka).await else { return };
        // Its successor lives: who was cut off may speak again, and be fenced.
        world.control.heal(Some(&format!("x{}.{}", plan.number, life.wrapping_sub(1))), None);
        let mut life = Life { world: Arc::clone(&world), plan: plan.clone(), name: name.clone(), sent: 0 };
        if ends == End::Zombie && !world.is_calm() {
            let mut rng = rng.child();
            let cut_at = rng.millis(0, 3000);
            zombies.spawn(async move { drop(life.live(producer, &mut rng).await) });
            tokio::time::sleep(cut_at).await;
            world.history.note(format!("{name} is cut off"));
            world.control.cut(Some(&name), None);
            continue;
        }
        let producer = life.live(producer, &mut rng).await;
        if ends == End::Close {
            let limit = plan.max_block;
            let closed = world.history.bounded("close of transactions", limit, producer.close_within(limit));
            if let Some(Err(error)) = closed.await {
                world.history.note(format!("{name} close: {error}"));
            }
        }
    }
    world.control.heal(Some(&format!("x{}.{}", plan.number, plan.lives - 1)), None);
    while let Some(ended) = zombies.join_next().await {
        ended.unwrap();
    }
}

async fn made(
    world: &World,
    plan: &Plan,
    name: &str,
    kafka: &KafkaInstance,
) -> Option<TransactionalProducer> {
    // Metadata, and then the identity; either as long as one connection may take, which is 10 s at most.
    let limit = plan.max_block.max(Duration::from_secs(10)) * 2 + Duration::from_secs(1);
    loop {
        let made = kafka.get_transactional_producer();
        match world.history.bounded("get_transactional_producer", limit, made).await? {
            Ok(producer) => return Some(producer),
            Err(error) => world.history.note(format!("{name} not made: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

struct Life {
    world: Arc<World>,
    plan: Plan,
    name: String,
    sent: u64,
}

impl Life {
    async fn live(&mut self, mut producer: TransactionalProducer, rng: &mut Rng) -> TransactionalProducer {
        for number in 0..self.plan.transactions {
            let begun = {
                let limit = self.plan.max_block;
                self.world.history.bounded("begin", limit, producer.begin()).await
            };
            match begun {
                Some(Ok(transaction)) => self.transaction(transaction, number, rng).await,
                Some(Err(error)) => {
                    self.world.history.note(format!("{} begin: {error}", self.name));
                    if error.is_fatal() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                None => break,
            }
        }
        producer
    }

    async fn transaction(&mut self, transaction: Transaction<'_>, number: u64, rng: &mut Rng) {
        let history = &self.world.history;
        let mut records = Vec::new();
        let mut deliveries = Vec::new();
        for _ in 0..rng.range(1, 8) {
            let topic = Arc::clone(rng.pick(&self.world.topics));
            let id: Id = format!("{}-{}", self.name, self.sent);
            self.sent += 1;
            let value = format!("\"{id}\"");
            let partition = rng.below(self.world.partitions(&topic)) as i32;
            let record = ProducerRecord::new(&topic).value(&value).partition(partition);
            match history.bounded("send", self.plan.max_block, transaction.send_record(record)).await {
                Some(Ok(delivery)) => {
                    let place = Place::new(delivery.topic(), delivery.partition());
                    history.add(Event::Queued { id: id.clone(), place });
                    records.push(id.clone());
                    deliveries.push((id, delivery));
                }
                Some(Err(error)) => history.add(Event::NotQueued { id, error: error.to_string() }),
                None => {}
            }
            if self.plan.pause > 0 {
                tokio::time::sleep(rng.millis(0, self.plan.pause)).await;
            }
        }
        let what = format!("{} transaction {number}", self.name);
        let limit = self.plan.max_block;
        let outcome = match rng.below(10) {
            0 => {
                drop(transaction);
                Outcome::Aborted
            }
            1 | 2 => {
                let aborted = history.bounded("abort", limit, transaction.abort()).await;
                if let Some(Err(error)) = aborted {
                    history.note(format!("{what} abort: {error}"));
                }
                Outcome::Aborted
            }
            _ => match history.bounded("commit of a transaction", limit, transaction.commit()).await {
                Some(Ok(())) => Outcome::Committed,
                Some(Err(error)) => {
                    history.note(format!("{what} commit (possibly: {}): {error}", error.possibly_written()));
                    if error.possibly_written() { Outcome::InDoubt } else { Outcome::Aborted }
                }
                None => Outcome::InDoubt,
            },
        };
        history.add(Event::Transaction { what, records, outcome });
        self.fates(deliveries, outcome).await;
    }

    /// What was committed was delivered.
    async fn fates(&self, deliveries: Vec<(Id, Delivery)>, outcome: Outcome) {
        let history = &self.world.history;
        if outcome != Outcome::Committed {
            return;
        }
        for (id, delivery) in deliveries {
            match history.bounded("delivery of a commit", Duration::ZERO, delivery).await {
                Some(Ok(at)) => {
                    let place = Place::new(&at.topic, at.partition);
                    history.add(Event::Acked { id, place, offset: at.offset });
                }
                Some(Err(error)) => history.violation(format!("{id} was committed and has failed: {error}")),
                None => {}
            }
        }
    }
}

/// Every transaction is among the committed records as a whole, or not at all, as its producer was told.
pub(crate) fn check(world: &World, events: &[(tokio::time::Instant, Event)], committed: &Log) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for id in committed.values().flat_map(BTreeMap::values) {
        *seen.entry(id).or_default() += 1;
    }
    for (_, event) in events {
        let Event::Transaction { what, records, outcome } = event else { continue };
        let there = records.iter().filter(|id| seen.contains_key(id.as_str())).count();
        let all = records.len();
        let fits = match outcome {
            Outcome::Committed => there == all,
            Outcome::Aborted => there == 0,
            Outcome::InDoubt => there == 0 || there == all,
        };
        if !fits {
            world.history.violation(format!(
                "{what} was {outcome:?}, and {there} of {all} records are committed: {records:?}"
            ));
        }
        for id in records.iter().filter(|id| seen.get(id.as_str()).is_some_and(|times| *times > 1)) {
            world.history.violation(format!("{id} of {what} is committed twice"));
        }
    }
}
