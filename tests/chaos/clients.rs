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

/// Where coordinators keep commits.
const OFFSETS: &str = "__consumer_offsets";

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
        // While the coordinator is away there is nothing to see.
        if let Ok(offsets) = admin.group_offsets(&group).await {
            let mut judge = world.judge();
            for (partition, offset) in offsets {
                let place = world.place(&partition.topic, partition.partition);
                judge.committed(place, offset.offset);
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

/// Tells the judge every commit of the group in the order in which its coordinators have written them.
pub(crate) async fn read_commits(world: &World, kafka: &KafkaInstance, admin: &KafkaAdmin, group: &str) {
    let consumer =
        kafka.get_consumer_with(Vec::<&str>::new(), |c| c.enable_auto_commit(false)).await.unwrap();
    let described = admin.describe_topics([OFFSETS]).await.unwrap();
    let partitions = described.into_values().flat_map(|topic| topic.unwrap().partitions);
    let partitions: Vec<_> = partitions.map(|at| TopicPartition::new(OFFSETS, at.partition)).collect();
    let ends = consumer.end_offsets(partitions.iter().cloned()).await.unwrap();
    consumer.assign(partitions.iter().cloned()).unwrap();
    consumer.seek_to_beginning(&partitions).unwrap();
    for (partition, end) in &ends {
        while consumer.position(partition).await.unwrap() < *end {
            let records = consumer.poll(Duration::from_secs(5)).await.unwrap();
            let mut judge = world.judge();
            for record in records.records() {
                if let Some((topic, partition, offset)) = commit_of(group, record.key(), record.value()) {
                    judge.commit_in_log(world.place(&topic, partition), offset);
                }
            }
        }
    }
    consumer.close(Duration::from_secs(5)).await.unwrap();
    world.judge().commits_end();
}

/// What a record of the offsets topic says, if it is a commit of this group.
fn commit_of(group: &str, key: Option<&[u8]>, value: Option<&[u8]>) -> Option<(String, i32, i64)> {
    let mut key = key?;
    let version = i16::from_be_bytes(take(&mut key));
    if version > 1 || text(&mut key) != group {
        return None;
    }
    let topic = text(&mut key);
    let partition = i32::from_be_bytes(take(&mut key));
    let mut value = value?;
    let _version: [u8; 2] = take(&mut value);
    Some((topic, partition, i64::from_be_bytes(take(&mut value))))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().unwrap();
    *bytes = rest;
    *taken
}

fn text(bytes: &mut &[u8]) -> String {
    let length = usize::try_from(i16::from_be_bytes(take(bytes))).unwrap();
    let (text, rest) = bytes.split_at(length);
    *bytes = rest;
    String::from_utf8(text.to_vec()).unwrap()
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
