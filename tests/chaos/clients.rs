//! The clients under test: producers of every codec, and members of one group that close, are dropped, or vanish.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use dtkafka::{
    ConsumerRecords, Delivery, KafkaAdmin, KafkaConfig, KafkaConsumer, KafkaInstance, ProducerRecord,
    TopicPartition,
};
use tokio::runtime::Runtime;

use crate::judge::{Judge, Place, Record, Told};

/// What all clients share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) topics: Vec<String>,
    judge: Mutex<Judge>,
    pub(crate) sending: AtomicBool,
}

impl World {
    pub(crate) fn new(topics: Vec<String>) -> Arc<Self> {
        Arc::new(Self { topics, judge: Mutex::default(), sending: AtomicBool::new(true) })
    }

    pub(crate) fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap()
    }

    fn place(&self, topic: &str, partition: i32) -> Place {
        (self.topics.iter().position(|name| name == topic).unwrap(), partition)
    }

    pub(crate) fn partition(&self, place: Place) -> TopicPartition {
        TopicPartition::new(self.topics[place.0].as_str(), place.1)
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

/// How a member is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum End {
    /// It closes: commits and leaves.
    Close = 1,
    /// It is dropped.
    Drop = 2,
}

/// A member of the group on a thread and a runtime of its own.
pub(crate) struct Member {
    end: Arc<AtomicU8>,
    thread: JoinHandle<()>,
}

impl Member {
    pub(crate) fn start(world: Arc<World>, config: KafkaConfig, name: String, commits_itself: bool) -> Self {
        let end = Arc::new(AtomicU8::new(0));
        let asked = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            runtime.block_on(async {
                let kafka = KafkaInstance::new(config).unwrap();
                let topics: Vec<&str> = world.topics.iter().map(String::as_str).collect();
                let consumer =
                    kafka.get_consumer_with(topics, |c| c.enable_auto_commit(commits_itself)).await.unwrap();
                member(&world, consumer, &name, &asked, commits_itself).await;
            });
            runtime.shutdown_background();
        });
        Self { end, thread }
    }

    /// Asks it to end, and waits for that, blocking.
    pub(crate) fn end(self, how: End) {
        self.end.store(how as u8, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

async fn member(world: &World, consumer: KafkaConsumer, name: &str, end: &AtomicU8, commits_itself: bool) {
    loop {
        match end.load(Ordering::Relaxed) {
            0 => {}
            1 => {
                return consumer
                    .close(Duration::from_secs(20))
                    .await
                    .unwrap_or_else(|error| log(name, &error));
            }
            _ => return drop(consumer),
        }
        match consumer.poll(Duration::from_millis(200)).await {
            Ok(records) => handle(world, &records, name),
            Err(error) => {
                log(name, &error);
                assert!(error.is_retriable(), "{name}: {error}");
            }
        }
        if !commits_itself && let Err(error) = consumer.commit().await {
            log(name, &error);
        }
    }
}

fn log(name: &str, error: &dtkafka::Error) {
    eprintln!("chaos: {name}: {error}");
}

fn handle(world: &World, records: &ConsumerRecords, name: &str) {
    let mut judge = world.judge();
    for record in records.records() {
        judge.handled(name, world.place(record.topic(), record.partition()), record.offset());
    }
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
                judge.committed(world.place(&partition.topic, partition.partition), offset.offset);
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Every record of every partition, up to the end of now.
pub(crate) async fn read_all(world: &World, kafka: &KafkaInstance) -> BTreeMap<Place, Vec<(i64, Record)>> {
    let consumer =
        kafka.get_consumer_with(Vec::<&str>::new(), |c| c.enable_auto_commit(false)).await.unwrap();
    let mut partitions = Vec::new();
    for topic in &world.topics {
        let count = kafka.admin().await.unwrap().describe_topic(topic).await.unwrap().partitions.len();
        partitions.extend((0..i32::try_from(count).unwrap()).map(|p| TopicPartition::new(topic.as_str(), p)));
    }
    consumer.assign(partitions.clone()).unwrap();
    consumer.seek_to_beginning(&partitions).unwrap();
    let ends = consumer.end_offsets(partitions).await.unwrap();
    let mut log: BTreeMap<Place, Vec<(i64, Record)>> = BTreeMap::new();
    let mut left: i64 = ends.values().sum();
    while left > 0 {
        for record in consumer.poll(Duration::from_secs(5)).await.unwrap().records() {
            let place = world.place(record.topic(), record.partition());
            let text = String::from_utf8(record.value().unwrap().to_vec()).unwrap();
            let mut words = text.split(' ');
            let producer = words.next().unwrap().parse().unwrap();
            let number = words.next().unwrap().parse().unwrap();
            log.entry(place).or_default().push((record.offset(), Record { producer, number }));
            left -= 1;
        }
    }
    consumer.close(Duration::from_secs(5)).await.unwrap();
    log
}
