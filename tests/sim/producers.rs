//! Producers of a world: what they send and what became of it.

use std::{sync::Arc, time::Duration};

use dtkafka::{Delivery, KafkaInstance, KafkaProducer, ProducerRecord};
use tokio::task::JoinSet;

use crate::{
    history::{Event, History, Id, Place},
    rng::Rng,
    world::World,
};

/// How one producer is set up; drawn from the seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) number: u32,
    pub(crate) settings: Vec<(&'static str, String)>,
    pub(crate) idempotent: bool,
    pub(crate) records: u64,
    /// The longest pause between two records, in milliseconds.
    pub(crate) pause: u64,
    delivery_timeout: Duration,
    request_timeout: Duration,
    max_block: Duration,
    keyed: bool,
    ends: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    CloseWithin(Duration),
    Drop,
}

impl Plan {
    pub(crate) fn draw(number: u32, rng: &mut Rng) -> Self {
        let idempotent = rng.percent(75);
        let in_flight = rng.range(1, 5);
        let request = *rng.pick(&[500, 1000, 3000, 10_000]);
        let linger = *rng.pick(&[0, 0, 1, 5, 50, 300]);
        let delivery = linger + request + *rng.pick(&[0, 1000, 10_000, 60_000]);
        let max_block = *rng.pick(&[1000, 10_000, 60_000]);
        let settings = vec![
            ("enable.idempotence", idempotent.to_string()),
            ("acks", if idempotent || rng.percent(70) { "all" } else { "1" }.to_owned()),
            ("max.in.flight.requests.per.connection", in_flight.to_string()),
            ("request.timeout.ms", request.to_string()),
            ("linger.ms", linger.to_string()),
            ("delivery.timeout.ms", delivery.to_string()),
            ("max.block.ms", max_block.to_string()),
            ("batch.size", rng.pick(&["1", "200", "1000", "16384"]).to_string()),
            ("buffer.memory", rng.pick(&["2000", "20000", "33554432"]).to_string()),
            ("compression.type", rng.pick(&["none", "none", "gzip", "snappy", "lz4", "zstd"]).to_string()),
            ("max.request.size", rng.pick(&["1000", "1048576"]).to_string()),
        ];
        Self {
            number,
            settings,
            idempotent,
            records: rng.range(10, 120),
            pause: *rng.pick(&[0, 5, 50, 500]),
            delivery_timeout: Duration::from_millis(delivery),
            request_timeout: Duration::from_millis(request),
            max_block: Duration::from_millis(max_block),
            keyed: rng.percent(40),
            ends: match rng.below(4) {
                0 => End::Drop,
                1 => End::CloseWithin(rng.millis(0, 3000)),
                _ => End::Close,
            },
        }
    }
}

/// Sends everything, and ends. The outcome of every record is in the history when this returns.
pub(crate) async fn run(world: Arc<World>, plan: Plan, mut rng: Rng) {
    let history = &world.history;
    let name = format!("p{}", plan.number);
    let config = world.config(&name, &plan.settings, &mut rng);
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = loop {
        // No broker may run when the producer begins.
        match history.bounded("get_producer", Duration::from_secs(200), kafka.get_producer()).await {
            Some(Ok(producer)) => break producer,
            Some(Err(error)) => history.note(format!("{name} not made: {error}")),
            None => return,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let mut fates = JoinSet::new();
    for n in 0..plan.records {
        send_one(&world, &plan, &producer, n, &mut rng, &mut fates).await;
        if plan.pause > 0 {
            tokio::time::sleep(rng.millis(0, plan.pause)).await;
        }
        if rng.percent(2) {
            let limit = plan.delivery_timeout + Duration::from_secs(2);
            history.bounded("flush", limit, producer.flush()).await;
        }
    }
    let closed = end(history, &plan, &name, producer).await;
    while let Some(fate) = fates.join_next().await {
        fate.unwrap();
    }
    let Some(producer) = closed else { return };
    // A request that was given up holds its bytes until it is over.
    tokio::time::sleep(plan.request_timeout + Duration::from_secs(1)).await;
    if producer.buffered_bytes() > 0 {
        history.violation(format!("{name} holds {} bytes after its end", producer.buffered_bytes()));
    }
}

/// Ends the producer; it is still there if it was closed.
async fn end(history: &History, plan: &Plan, name: &str, producer: KafkaProducer) -> Option<KafkaProducer> {
    let within = match plan.ends {
        End::Drop => return None,
        End::Close => plan.delivery_timeout,
        End::CloseWithin(limit) => limit,
    };
    history.note(format!("{name} closes within {within:?}"));
    history.bounded("close of a producer", within, producer.close_within(within)).await;
    Some(producer)
}

async fn send_one(
    world: &Arc<World>,
    plan: &Plan,
    producer: &KafkaProducer,
    n: u64,
    rng: &mut Rng,
    fates: &mut JoinSet<()>,
) {
    let history = &world.history;
    let topic = match &world.doomed {
        Some(doomed) if rng.percent(10) => Arc::clone(doomed),
        _ => Arc::clone(rng.pick(&world.topics)),
    };
    let id: Id = format!("p{}-{n}", plan.number);
    let mut value = format!("\"{id}\"");
    if rng.percent(5) {
        // Larger than most batches, and now and then than a request.
        value.extend(std::iter::repeat_n(' ', rng.range(200, 1500) as usize));
    }
    let key = format!("k{}", rng.below(10));
    let mut record = ProducerRecord::new(&topic).value(value.as_str());
    if plan.keyed {
        record = record.key(key.as_str());
    } else if rng.percent(50) && world.topics.contains(&topic) {
        record = record.partition(rng.below(world.partitions(&topic)) as i32);
    }
    let queued = history.bounded("send", plan.max_block, producer.send_record(record)).await;
    match queued {
        Some(Ok(delivery)) => {
            let place = Place::new(delivery.topic(), delivery.partition());
            history.add(Event::Queued { id: id.clone(), place });
            if rng.percent(2) {
                history.add(Event::Abandoned { id });
                drop(delivery);
                return;
            }
            // The batch may wait a linger more than the time-out counts.
            let limit = plan.delivery_timeout + Duration::from_millis(1500);
            fates.spawn(fate(history.clone(), id, delivery, limit));
        }
        Some(Err(error)) => history.add(Event::NotQueued { id, error: error.to_string() }),
        None => {}
    }
}

async fn fate(history: History, id: Id, delivery: Delivery, limit: Duration) {
    match history.bounded(&format!("delivery of {id}"), limit, delivery).await {
        Some(Ok(metadata)) => {
            let place = Place::new(&metadata.topic, metadata.partition);
            history.add(Event::Acked { id, place, offset: metadata.offset });
        }
        Some(Err(error)) => {
            let possibly_written = error.possibly_written();
            history.add(Event::Failed { id, possibly_written, error: error.to_string() });
        }
        None => history.add(Event::Abandoned { id }),
    }
}
