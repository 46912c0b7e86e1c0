//! Readers outside of any group: assigned, with seeks and pauses. Where one stands is known, and so is what must come next.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dtkafka::{KafkaConsumer, KafkaInstance, TopicPartition};
use tokio::time::Instant;

use crate::{
    checker::Views,
    history::{Event, Place, Who},
    rng::Rng,
    world::World,
};

/// How one reader is set up; drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    number: u32,
    settings: Vec<(&'static str, String)>,
    pub(crate) committed_only: bool,
    /// Of a hundred polls, before so many it seeks.
    seeks: u64,
}

impl Plan {
    pub(crate) fn draw(number: u32, rng: &mut Rng) -> Self {
        let committed_only = rng.percent(50);
        let isolation = if committed_only { "read_committed" } else { "read_uncommitted" };
        let settings = vec![
            ("auto.offset.reset", "earliest".to_owned()),
            ("isolation.level", isolation.to_owned()),
            ("max.poll.records", rng.pick(&["1", "3", "20", "500"]).to_string()),
            ("fetch.min.bytes", rng.pick(&["1", "1", "500"]).to_string()),
            ("fetch.max.wait.ms", rng.pick(&["10", "100", "500"]).to_string()),
            ("max.partition.fetch.bytes", rng.pick(&["1", "300", "1048576"]).to_string()),
            ("fetch.max.bytes", rng.pick(&["1", "500", "8388608"]).to_string()),
            ("fetch.buffer.memory", rng.pick(&["1000", "67108864"]).to_string()),
            ("request.timeout.ms", rng.pick(&["1000", "5000", "30000"]).to_string()),
            ("default.api.timeout.ms", "10000".to_owned()),
        ];
        Self { number, settings, committed_only, seeks: *rng.pick(&[0, 10, 40]) }
    }

    pub(crate) fn who(&self) -> Who {
        Who { group: "reader".into(), member: self.number, life: 0 }
    }
}

/// Reads until the world stops and the end is reached.
pub(crate) async fn run(world: Arc<World>, plan: Plan, mut rng: Rng) {
    let (who, history) = (plan.who(), &world.history);
    let config = world.config(&who.to_string(), &plan.settings, &mut rng);
    let kafka = KafkaInstance::new(config).unwrap();
    let limit = Duration::from_secs(11);
    let consumer = loop {
        match history.bounded("a reader is made", limit, kafka.get_consumer(<[&str; 0]>::default())).await {
            Some(Ok(consumer)) => break consumer,
            Some(Err(error)) => history.note(format!("{who} not made: {error}")),
            None => return,
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let places: Vec<Place> = world
        .topics
        .iter()
        .flat_map(|topic| (0..world.partitions(topic)).map(|p| Place::new(topic, p as i32)))
        .collect();
    let keys: Vec<_> = places.iter().map(|p| TopicPartition::new(&*p.topic, p.partition)).collect();
    consumer.assign(keys).unwrap();
    let mut reader = Reader {
        world: &world,
        who,
        consumer,
        furthest: BTreeMap::new(),
        next: BTreeMap::new(),
        paused: Vec::new(),
    };

    while !(world.is_stopped() && reader.has_all(plan.committed_only)) {
        if rng.percent(plan.seeks) && !world.is_calm() {
            reader.seek(&mut rng);
        }
        reader.poll(&mut rng).await;
    }
    reader.end().await;
}

struct Reader<'a> {
    world: &'a World,
    who: Who,
    consumer: KafkaConsumer,
    /// The highest offset seen by partition.
    furthest: BTreeMap<Place, i64>,
    /// Where it stands.
    next: BTreeMap<Place, i64>,
    paused: Vec<TopicPartition>,
}

impl Reader<'_> {
    fn has_all(&self, committed_only: bool) -> bool {
        self.world.ends(committed_only).iter().all(|(place, end)| {
            !self.world.was_there(place) || self.next.get(place).copied().unwrap_or(0) >= *end
        })
    }

    fn seek(&mut self, rng: &mut Rng) {
        let seen: Vec<_> = self.furthest.iter().collect();
        if seen.is_empty() {
            return;
        }
        let (place, furthest) = *rng.pick(&seen);
        let key = TopicPartition::new(&*place.topic, place.partition);
        let offset = match rng.below(6) {
            0 => {
                self.consumer.seek_to_beginning([&key]).unwrap();
                0
            }
            1 => {
                self.consumer.pause([key.clone()]).unwrap();
                self.paused.push(key);
                return;
            }
            _ => {
                let offset = rng.below(*furthest as u64 + 1) as i64;
                self.consumer.seek(&key, offset).unwrap();
                offset
            }
        };
        self.next.insert(place.clone(), offset);
        self.world.history.add(Event::Sought { who: self.who.clone(), place: place.clone(), offset });
    }

    async fn poll(&mut self, rng: &mut Rng) {
        let timeout = Duration::from_millis(*rng.pick(&[0, 10, 500]));
        let polled =
            self.world.history.bounded("poll of a reader", timeout, self.consumer.poll(timeout)).await;
        match polled {
            Some(Ok(records)) => {
                for record in records.records() {
                    let place = Place::new(record.topic(), record.partition());
                    let id = crate::members::identity(record.value());
                    let offset = record.offset();
                    let furthest = self.furthest.entry(place.clone()).or_default();
                    *furthest = offset.max(*furthest);
                    self.next.insert(place.clone(), offset + 1);
                    let paused = self
                        .paused
                        .iter()
                        .any(|k| *k.topic == *place.topic && k.partition == place.partition);
                    if paused {
                        self.world
                            .history
                            .violation(format!("{} was given {place}@{offset}, which is paused", self.who));
                    }
                    self.world.history.add(Event::HandedOut { who: self.who.clone(), place, offset, id });
                }
            }
            Some(Err(error)) => {
                self.world.history.note(format!("{} poll: {error}", self.who));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None => {}
        }
        if timeout.is_zero() || self.world.is_calm() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.world.is_calm() || rng.percent(30) {
            self.consumer.resume(std::mem::take(&mut self.paused)).unwrap();
        }
    }

    async fn end(self) {
        let within = Duration::from_secs(30);
        let closed =
            self.world.history.bounded("close of a reader", within, self.consumer.close(within)).await;
        if let Some(Err(error)) = closed {
            self.world.history.note(format!("{} close: {error}", self.who));
        }
        let held = self.consumer.buffered_bytes();
        if held > 0 {
            self.world.history.violation(format!("{} holds {held} bytes after its end", self.who));
        }
    }
}

/// Each record follows on the one before or on the seek between them; at the end nothing is left.
pub(crate) fn check(world: &World, plans: &[Plan], events: &[(Instant, Event)], views: &Views) {
    let empty = BTreeMap::new();
    for plan in plans {
        let reader = plan.who();
        let view = if plan.committed_only { &views.committed } else { &views.all };
        let mut next: BTreeMap<&Place, i64> = BTreeMap::new();
        for (at, event) in events {
            match event {
                Event::Sought { who, place, offset } if *who == reader => {
                    next.insert(place, *offset);
                }
                Event::HandedOut { who, place, offset, .. } if *who == reader => {
                    let from = next.get(place).copied().unwrap_or(0);
                    let due = view.get(place).unwrap_or(&empty).range(from..).next().map(|(due, _)| *due);
                    if due != Some(*offset) {
                        let seconds = world.history.seconds(*at);
                        world.history.violation(format!(
                            "{who} got {place}@{offset} at {seconds:.3}, and {due:?} was due from {from} on"
                        ));
                    }
                    next.insert(place, offset + 1);
                }
                _ => {}
            }
        }
        for (place, records) in view.iter().filter(|(place, _)| world.was_there(place)) {
            let from = next.get(place).copied().unwrap_or(0);
            let left = records.range(from..).count();
            if left > 0 {
                world
                    .history
                    .violation(format!("{reader} stopped at {place}@{from}, with {left} records to come"));
            }
        }
    }
}
