//! The clients under test: producers of every codec, and who looks at what the group commits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dtkafka::{Delivery, KafkaAdmin, KafkaConfig, KafkaInstance, ProducerRecord, TopicPartition};

use crate::{
    blocks::Blocks,
    judge::{Count, Judge, Place, Record, Told},
    owners::Owners,
};

/// What all clients share.
#[derive(Debug)]
pub(crate) struct World {
    topics: Vec<String>,
    /// Of each topic.
    partitions: u16,
    began: Instant,
    judge: Mutex<Judge>,
    owners: Mutex<Owners>,
    blocks: Mutex<Blocks>,
    pub(crate) sending: AtomicBool,
}

impl World {
    pub(crate) fn new(topics: Vec<String>, partitions: u16) -> Arc<Self> {
        Arc::new(Self {
            topics,
            partitions,
            began: Instant::now(),
            judge: Mutex::default(),
            owners: Mutex::default(),
            blocks: Mutex::default(),
            sending: AtomicBool::new(true),
        })
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str)
    }

    /// Since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap()
    }

    pub(crate) fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap()
    }

    pub(crate) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap()
    }

    pub(crate) fn place(&self, topic: &str, partition: i32) -> Place {
        let topic = self.topics.iter().position(|name| name == topic).unwrap();
        (u16::try_from(topic).unwrap(), u16::try_from(partition).unwrap())
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let topic = |topic| (0..self.partitions).map(move |partition| (topic, partition));
        (0..u16::try_from(self.topics.len()).unwrap()).flat_map(topic).collect()
    }

    pub(crate) fn partition(&self, place: Place) -> TopicPartition {
        TopicPartition::new(self.topics[usize::from(place.0)].as_str(), i32::from(place.1))
    }
}

/// Sends until the world stops sending, then waits for every answer.
pub(crate) async fn producer(world: Arc<World>, config: KafkaConfig, number: u32, per_second: u64) {
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let (answers, mut waiting) = tokio::sync::mpsc::unbounded_channel::<(Record, Delivery)>();
    let told = {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            while let Some((record, delivery)) = waiting.recv().await {
                let told = match delivery.await {
                    Ok(at) => Told::Acknowledged(world.place(&at.topic, at.partition), at.offset),
                    Err(error) if error.possibly_written() => Told::Possibly,
                    Err(error) => {
                        eprintln!("chaos: a record of producer {number} failed: {error}");
                        Told::Never
                    }
                };
                world.judge().told(record, told);
            }
        })
    };
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut sent = 0;
    let padding = "x".repeat(80);
    while world.sending.load(Ordering::Relaxed) {
        tick.tick().await;
        for _ in 0..per_second / 100 {
            let topic = &world.topics[usize::try_from(sent).unwrap() % world.topics.len()];
            let value = format!("{number} {sent} {padding}");
            let key = (sent / 2 % 61).to_string();
            let record = ProducerRecord::new(topic).key(&key).value(&value);
            let delivery = producer.send_record(record).await.unwrap();
            answers.send((Record { producer: number, number: sent }, delivery)).unwrap();
            sent += 1;
        }
    }
    drop(answers);
    told.await.unwrap();
    producer.close().await.unwrap();
}

/// Looks at what is committed until `stop`.
pub(crate) async fn watch_commits(
    world: Arc<World>,
    admin: KafkaAdmin,
    group: String,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let floors = world.judge().floors();
        // While the coordinator is away there is nothing to see.
        if let Ok(offsets) = admin.group_offsets(&group).await {
            let mut judge = world.judge();
            for (partition, offset) in offsets {
                let place = world.place(&partition.topic, partition.partition);
                judge.committed(place, offset.offset, floors.get(&place).copied().unwrap_or(0));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Tells the judge every record of every partition, up to the end of now.
pub(crate) async fn read_all(world: &World, kafka: &KafkaInstance) -> Count {
    let consumer =
        kafka.get_consumer_with(Vec::<&str>::new(), |c| c.enable_auto_commit(false)).await.unwrap();
    let partitions: Vec<_> = ends(world, kafka).await.into_iter().collect();
    consumer.assign(partitions.iter().map(|(partition, _)| partition.clone())).unwrap();
    consumer.seek_to_beginning(partitions.iter().map(|(partition, _)| partition)).unwrap();
    let mut left: i64 = partitions.iter().map(|(_, end)| end).sum();
    while left > 0 {
        let records = consumer.poll(Duration::from_secs(5)).await.unwrap();
        let mut judge = world.judge();
        for record in records.records() {
            let place = world.place(record.topic(), record.partition());
            let mut words = std::str::from_utf8(record.value().unwrap()).unwrap().split(' ');
            let producer = words.next().unwrap().parse().unwrap();
            let number = words.next().unwrap().parse().unwrap();
            judge.in_log(place, record.offset(), Record { producer, number });
            left -= 1;
        }
    }
    consumer.close(Duration::from_secs(5)).await.unwrap();
    world.judge().log_ends()
}

/// Where the logs end now.
pub(crate) async fn ends(world: &World, kafka: &KafkaInstance) -> BTreeMap<TopicPartition, i64> {
    let consumer =
        kafka.get_consumer_with(Vec::<&str>::new(), |c| c.enable_auto_commit(false)).await.unwrap();
    let partitions = world.places().into_iter().map(|place| world.partition(place));
    let ends = consumer.end_offsets(partitions).await.unwrap();
    consumer.close(Duration::from_secs(5)).await.unwrap();
    ends
}
