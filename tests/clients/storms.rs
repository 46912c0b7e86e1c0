//! A cluster that lies, pauses and breaks off in one way at a time, in virtual time: producer and group work through half a
//! minute of it and the calm after. Whatever it was, everything arrives once, is read and committed, nothing turns in circles.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dtkafka::{
    Connecting, ConsumerConfig, IsolationLevel, KafkaConfig, KafkaInstance, TopicPartition,
    TransactionalProducer, Transport,
};
use dtkafka_testcontainers::{
    EmbeddedBroker, Listener,
    broker::{ApiKey, MemoryStream, Network, Profile},
};
use kafka_protocol::{
    messages as wire,
    protocol::{Decodable, Encodable, StrBytes},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::Instant,
};

const TOPIC: &str = "t";
/// How long the weather lasts, and by when everything is done.
const WEATHER: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(180);
const RECORDS: u32 = 60;
/// More requests than this are a circle.
const MOST_REQUESTS: u64 = 6_000;
const MOST_DIALS: u64 = 1_500;

/// What is asked, as far as it was looked at.
#[derive(Debug, Clone, Copy)]
struct Asked {
    key: i16,
    version: i16,
    /// Which request of this API it is, over all connections.
    number: u64,
}

impl Asked {
    fn is(self, key: ApiKey) -> bool {
        self.key == key as i16
    }

    fn head(self) -> usize {
        let flexible = ApiKey::try_from(self.key).unwrap().response_header_version(self.version) > 0;
        4 + usize::from(flexible)
    }

    /// The same answer, changed.
    fn changed<M: Decodable + Encodable>(self, frame: &[u8], change: impl FnOnce(&mut M)) -> Reply {
        let mut body = Bytes::copy_from_slice(&frame[self.head()..]);
        let mut message = M::decode(&mut body, self.version).unwrap();
        change(&mut message);
        let mut changed = frame[..self.head()].to_vec();
        message.encode(&mut changed, self.version).unwrap();
        Reply::Frame(changed)
    }
}

enum Reply {
    Frame(Vec<u8>),
    /// The first bytes, and the others after a pause.
    Paused(usize, Duration),
    /// The first bytes, and nothing more, though the connection stays open.
    Silence(usize),
    /// The first bytes, and the end.
    Close(usize),
}

/// Where a dial leads.
enum Way {
    There,
    Broker(i32),
    Refused,
    /// It is never answered.
    BlackHole,
    /// It opens, and nobody is there.
    Silent,
}

type Route = Box<dyn Fn(&str, i32, u64) -> Way + Send + Sync>;
type Act = Box<dyn Fn(Asked, &[u8]) -> Option<Reply> + Send + Sync>;

struct Sky {
    network: Network,
    listener: Listener,
    start: Instant,
    route: Route,
    act: Act,
    dials: AtomicU64,
    requests: Mutex<BTreeMap<i16, u64>>,
}

impl Sky {
    fn is_calm(&self) -> bool {
        self.start.elapsed() > WEATHER
    }
}

#[derive(Clone)]
struct Wire(Arc<Sky>);

/// The bootstrap address, which is nobody's own.
const BALANCER: &str = "balancer";

impl Transport for Wire {
    fn connect<'a>(&'a self, host: &'a str, _port: u16) -> Connecting<'a> {
        Box::pin(async move {
            let sky = &self.0;
            let number = sky.dials.fetch_add(1, Ordering::Relaxed);
            assert!(number < MOST_DIALS, "dials in a circle");
            tokio::time::sleep(Duration::from_millis(1)).await;
            let known = (1..=2).find(|id| host == name(*id).as_str());
            if known.is_none() && host != BALANCER {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let way = match sky.is_calm() {
                true => Way::There,
                false => (sky.route)(host, known.unwrap_or(0), number),
            };
            let broker = match way {
                Way::There => known.unwrap_or(1 + (number % 2) as i32),
                Way::Broker(id) => id,
                Way::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Way::BlackHole => std::future::pending().await,
                Way::Silent => {
                    let (near, far) = tokio::io::duplex(1 << 16);
                    tokio::spawn(async move {
                        let _far = far;
                        std::future::pending::<()>().await;
                    });
                    return Ok(Box::new(near) as _);
                }
            };
            let far = sky.network.connect_to("client", broker, sky.listener)?;
            let (near, mine) = tokio::io::duplex(1 << 16);
            let sky = Arc::clone(sky);
            tokio::spawn(async move {
                tokio::select! {
                    _ = carry(&sky, mine, far) => {}
                    // What leads elsewhere then breaks its connections.
                    () = tokio::time::sleep_until(sky.start + WEATHER), if known.is_some_and(|id| id != broker) => {}
                }
            });
            Ok(Box::new(near) as _)
        })
    }
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// One request after the other.
async fn carry(sky: &Sky, mut near: DuplexStream, mut far: MemoryStream) -> io::Result<()> {
    loop {
        let request = read_frame(&mut near).await?;
        let short = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        let number = {
            let mut requests = sky.requests.lock().unwrap();
            let count = requests.entry(short(0)).or_default();
            *count += 1;
            assert!(*count < MOST_REQUESTS, "API {} in a circle", short(0));
            *count - 1
        };
        let asked = Asked { key: short(0), version: short(2), number };
        far.write_u32(request.len() as u32).await?;
        far.write_all(&request).await?;
        let answer = read_frame(&mut far).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let act = if sky.is_calm() { None } else { (sky.act)(asked, &answer) };
        let whole = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        match act {
            None => near.write_all(&whole(&answer)).await?,
            Some(Reply::Frame(frame)) => near.write_all(&whole(&frame)).await?,
            Some(Reply::Paused(first, pause)) => {
                let bytes = whole(&answer);
                let first = first.min(bytes.len());
                near.write_all(&bytes[..first]).await?;
                tokio::time::sleep(pause).await;
                near.write_all(&bytes[first..]).await?;
            }
            Some(Reply::Silence(first)) => {
                let bytes = whole(&answer);
                near.write_all(&bytes[..first.min(bytes.len())]).await?;
                std::future::pending::<()>().await;
            }
            Some(Reply::Close(first)) => {
                let bytes = whole(&answer);
                near.write_all(&bytes[..first.min(bytes.len())]).await?;
                return Ok(());
            }
        }
    }
}

struct Storm {
    name: String,
    sasl: Option<&'static str>,
    /// Transactions instead of a producer and a group.
    transactions: bool,
    profile: Profile,
    settings: Vec<(&'static str, &'static str)>,
    route: Route,
    act: Act,
}

fn storm(name: impl Into<String>) -> Storm {
    Storm {
        name: name.into(),
        sasl: None,
        transactions: false,
        profile: Profile::Latest,
        settings: Vec::new(),
        route: Box::new(|_, _, _| Way::There),
        act: Box::new(|_, _| None),
    }
}

impl Storm {
    fn act(mut self, act: impl Fn(Asked, &[u8]) -> Option<Reply> + Send + Sync + 'static) -> Self {
        self.act = Box::new(act);
        self
    }

    fn route(mut self, route: impl Fn(&str, i32, u64) -> Way + Send + Sync + 'static) -> Self {
        self.route = Box::new(route);
        self
    }

    fn sasl(mut self, mechanism: &'static str) -> Self {
        self.sasl = Some(mechanism);
        self
    }

    /// Of transactions, with brokers of this kind.
    fn transactions(mut self, profile: Profile) -> Self {
        (self.transactions, self.profile) = (true, profile);
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
        let sky = Arc::new(Sky {
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
            .set_transport(Wire(Arc::clone(&sky)))
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
            if self.transactions {
                return transact(config.clone(), &sky).await;
            }
            tokio::try_join!(produce(config.clone()), consume(config.clone(), &broker)).map(|_| ())
        };
        let done = tokio::time::timeout(CALM, work).await;
        let took = sky.start.elapsed();
        let asked: u64 = sky.requests.lock().unwrap().values().sum();
        let dials = sky.dials.load(Ordering::Relaxed);
        let facts = format!("{took:?}, {asked} requests, {dials} dials");
        match done {
            Err(_) => return Err(format!("not done after {facts}; {:?}", sky.requests.lock().unwrap())),
            Ok(Err(text)) => return Err(format!("{text} after {facts}")),
            Ok(Ok(())) if self.transactions => return Ok(facts),
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

async fn produce(config: KafkaConfig) -> Result<(), String> {
    let producer = KafkaInstance::new(config)
        .unwrap()
        .get_producer()
        .await
        .map_err(|error| format!("producer: {error}"))?;
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        deliveries
            .push(producer.send(TOPIC, &number).await.map_err(|error| format!("send {number}: {error}"))?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (number, delivery) in deliveries.into_iter().enumerate() {
        delivery.await.map_err(|error| format!("delivery {number}: {error}"))?;
    }
    producer.close().await.map_err(|error| format!("close: {error}"))
}

async fn consume(config: KafkaConfig, broker: &EmbeddedBroker) -> Result<(), String> {
    let consumer = KafkaInstance::new(config)
        .unwrap()
        .get_consumer([TOPIC])
        .await
        .map_err(|error| format!("consumer: {error}"))?;
    let mut seen = BTreeMap::<u32, u32>::new();
    let mut errors = Vec::new();
    while (seen.len() as u32) < RECORDS {
        match consumer.poll(Duration::from_secs(1)).await {
            Ok(records) => {
                for record in records.records() {
                    *seen.entry(record.json().unwrap()).or_default() += 1;
                }
            }
            Err(error) => errors.push(error.to_string()),
        }
        if errors.len() > 400 {
            return Err(format!("{} errors of polls, such as {}", errors.len(), errors[0]));
        }
    }
    let mut tries = 0;
    while let Err(error) = consumer.commit().await {
        tries += 1;
        if tries > 20 {
            return Err(format!("commit: {error}"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        consumer.poll(Duration::ZERO).await.ok();
    }
    let committed: i64 = (0..4).filter_map(|partition| broker.committed("g", TOPIC, partition)).sum();
    if committed < i64::from(RECORDS) {
        return Err(format!("{committed} committed"));
    }
    consumer.close(Duration::from_secs(30)).await.map_err(|error| format!("close: {error}"))?;
    Ok(())
}

/// Transactions of five records each, read back when all is calm: each that was committed is seen whole and once, and one of
/// which nobody knows whole or not at all.
async fn transact(config: KafkaConfig, sky: &Sky) -> Result<(), String> {
    let kafka = KafkaInstance::new(config).unwrap();
    let mut fates = Vec::new();
    let mut kept = None;
    let mut errors = Vec::new();
    while fates.len() < 12 {
        if errors.len() > 100 {
            return Err(format!("{} errors, such as {}", errors.len(), errors[99]));
        }
        let number = fates.len() as u32;
        let made = match kept.take() {
            Some(producer) => Ok(producer),
            None => kafka.get_transactional_producer_with(|p| p.set("transactional.id", "mine")).await,
        };
        let outcome = match made {
            Ok(producer) => {
                let producer: &mut TransactionalProducer = kept.insert(producer);
                async {
                    let transaction = producer.begin().await?;
                    for record in 0..5 {
                        drop(transaction.send(TOPIC, &(number * 10 + record)).await?);
                    }
                    transaction.commit().await
                }
                .await
            }
            Err(error) => Err(error),
        };
        if outcome.as_ref().is_err_and(dtkafka::Error::is_fatal) {
            kept = None;
        }
        match outcome {
            Ok(()) => fates.push(true),
            Err(error) if error.possibly_written() => fates.push(false),
            Err(error) => errors.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    drop(kept);
    tokio::time::sleep_until(sky.start + WEATHER + Duration::from_secs(15)).await;
    let settings = |c: ConsumerConfig| {
        c.set("isolation.level", IsolationLevel::ReadCommitted).set("enable.auto.commit", false)
    };
    let consumer =
        kafka.get_consumer_with(Vec::<String>::new(), settings).await.map_err(|error| error.to_string())?;
    let partitions: Vec<_> = (0..4).map(|number| TopicPartition::new(TOPIC, number)).collect();
    consumer.assign(partitions.clone()).map_err(|error| error.to_string())?;
    let mut seen = BTreeMap::<u32, u32>::new();
    for _ in 0..20 {
        for record in
            consumer.poll(Duration::from_millis(700)).await.map_err(|error| error.to_string())?.records()
        {
            *seen.entry(record.json().unwrap()).or_default() += 1;
        }
    }
    for (number, is_committed) in fates.iter().enumerate() {
        let counts: Vec<u32> =
            (0..5).map(|record| seen.remove(&(number as u32 * 10 + record)).unwrap_or(0)).collect();
        if counts != [1; 5] && (*is_committed || counts != [0; 5]) {
            return Err(format!(
                "transaction {number}, committed: {is_committed}, is seen as {counts:?}; {errors:?}"
            ));
        }
    }
    if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?} are nobody's")) }
}

/// Those that both clients use.
const APIS: [ApiKey; 12] = [
    ApiKey::ApiVersions,
    ApiKey::Metadata,
    ApiKey::InitProducerId,
    ApiKey::Produce,
    ApiKey::Fetch,
    ApiKey::ListOffsets,
    ApiKey::FindCoordinator,
    ApiKey::JoinGroup,
    ApiKey::SyncGroup,
    ApiKey::Heartbeat,
    ApiKey::OffsetFetch,
    ApiKey::OffsetCommit,
];

fn name(id: i32) -> StrBytes {
    StrBytes::from_string(format!("broker-{id}"))
}

/// How an answer breaks off after its first bytes.
fn broken(how: usize, first: usize) -> (&'static str, Reply) {
    let paused = |seconds| Reply::Paused(first, Duration::from_secs(seconds));
    match how {
        0 => ("and silence", Reply::Silence(first)),
        1 => ("and the end", Reply::Close(first)),
        2 => ("and the others after 8 s", paused(8)),
        _ => ("and the others after 70 s", paused(70)),
    }
}

/// Of a frame's length, correlation id and body so many bytes come: all of them with `DTKAFKA_STORMS=all`.
fn firsts(some: &[usize]) -> Vec<usize> {
    if std::env::var("DTKAFKA_STORMS").is_ok() { vec![0, 3, 4, 8, 13] } else { some.to_vec() }
}

fn broken_answers() -> Vec<Storm> {
    let mut storms = Vec::new();
    for api in APIS {
        for first in firsts(&[8]) {
            for how in 0..4 {
                let text = broken(how, first).0;
                storms.push(storm(format!("{api:?}: {first} bytes, {text}")).act(move |asked, _| {
                    let strikes = asked.is(api) && (how == 1 || asked.number % 2 == 0);
                    strikes.then(|| broken(how, first).1)
                }));
            }
        }
    }
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        for api in [ApiKey::SaslHandshake, ApiKey::SaslAuthenticate] {
            for first in firsts(&[8]) {
                for how in 0..4 {
                    let text = broken(how, first).0;
                    storms.push(
                        storm(format!("{mechanism} {api:?}: {first} bytes, {text}")).sasl(mechanism).act(
                            move |asked, _| {
                                let strikes = asked.is(api) && asked.number % 3 != 1;
                                strikes.then(|| broken(how, first).1)
                            },
                        ),
                    );
                }
            }
        }
    }
    for how in 0..4 {
        let text = broken(how, 8).0;
        storms.push(
            storm(format!("the consumer protocol's heartbeat: 8 bytes, {text}"))
                .set("group.protocol", "consumer")
                .act(move |asked, _| {
                    let strikes = asked.is(ApiKey::ConsumerGroupHeartbeat) && asked.number % 2 == 0;
                    strikes.then(|| broken(how, 8).1)
                }),
        );
    }
    storms
}

fn ways() -> Vec<Storm> {
    vec![
        storm("nothing"),
        storm("another broker at every dial of the bootstrap address").route(|_, id, number| match id {
            0 => Way::Broker(1 + (number % 2) as i32),
            _ => Way::There,
        }),
        storm("the address of broker 2 leads to broker 1").route(|_, id, _| match id {
            2 => Way::Broker(1),
            _ => Way::There,
        }),
        storm("both addresses lead to the other broker").route(|_, id, _| match id {
            0 => Way::There,
            id => Way::Broker(3 - id),
        }),
        storm("the address of broker 2 leads into a black hole").route(|_, id, _| match id {
            2 => Way::BlackHole,
            _ => Way::There,
        }),
        storm("the address of broker 2 opens and keeps silent").route(|_, id, _| match id {
            2 => Way::Silent,
            _ => Way::There,
        }),
        storm("the address of broker 2 is refused").route(|_, id, _| match id {
            2 => Way::Refused,
            _ => Way::There,
        }),
        storm("the bootstrap address is gone once it was used").route(|_, id, number| match id {
            0 if number > 1 => Way::Refused,
            _ => Way::There,
        }),
        storm("every second dial is refused").route(|_, _, number| match number % 2 {
            0 => Way::Refused,
            _ => Way::There,
        }),
        storm("every second dial is a black hole").route(|_, _, number| match number % 2 {
            0 => Way::BlackHole,
            _ => Way::There,
        }),
        storm("all but the bootstrap address is a black hole").route(|_, id, _| match id {
            0 => Way::There,
            _ => Way::BlackHole,
        }),
    ]
}

fn lies() -> Vec<Storm> {
    use wire::{
        FindCoordinatorResponse, MetadataResponse, OffsetCommitResponse, OffsetFetchResponse,
        ProduceResponse, metadata_response::MetadataResponseBroker,
    };
    let metadata = |name: &str, change: fn(u64, &mut MetadataResponse)| {
        storm(format!("metadata: {name}")).act(move |asked, frame| {
            asked
                .is(ApiKey::Metadata)
                .then(|| asked.changed(frame, |answer: &mut MetadataResponse| change(asked.number, answer)))
        })
    };
    vec![
        metadata("the brokers swap their ids", |_, answer| {
            for broker in &mut answer.brokers {
                broker.host = name(3 - broker.node_id.0);
            }
        }),
        metadata("the brokers swap their ids again and again", |number, answer| {
            for broker in answer.brokers.iter_mut().filter(|_| number % 2 == 0) {
                broker.host = name(3 - broker.node_id.0);
            }
        }),
        metadata("broker 2 comes and goes", |number, answer| {
            if number % 2 == 0 {
                answer.brokers.retain(|broker| broker.node_id.0 == 1);
            }
        }),
        metadata("no broker at all", |number, answer| {
            if number % 2 == 1 {
                answer.brokers.clear();
            }
        }),
        metadata("the topic comes and goes", |number, answer| {
            if number % 2 == 0 {
                answer.topics.clear();
            }
        }),
        metadata("the topic has no partitions at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 3 < 2) {
                topic.partitions.clear();
            }
        }),
        metadata("the topic lacks its last partitions at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                topic.partitions.truncate(1);
            }
        }),
        metadata("the topic is said not to exist at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                topic.error_code = 3;
                topic.partitions.clear();
            }
        }),
        metadata("no leaders at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 3 < 2) {
                for partition in &mut topic.partitions {
                    partition.leader_id = (-1).into();
                    partition.error_code = 5;
                }
            }
        }),
        metadata("leaders that are not there", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                for partition in &mut topic.partitions {
                    partition.leader_id = 77.into();
                }
            }
        }),
        metadata("everything leads to the other broker", |_, answer| {
            for topic in &mut answer.topics {
                for partition in &mut topic.partitions {
                    partition.leader_id = (3 - partition.leader_id.0).into();
                }
            }
        }),
        metadata("a controller that is not there", |_, answer| answer.controller_id = 99.into()),
        metadata("hosts that nobody can reach", |number, answer| {
            for broker in answer.brokers.iter_mut().filter(|_| number % 2 == 0) {
                broker.host = StrBytes::from_static_str("");
            }
        }),
        metadata("each broker thrice, and others", |_, answer| {
            let mut all = answer.brokers.clone();
            for other in 100..110 {
                all.push(
                    MetadataResponseBroker::default()
                        .with_node_id(other.into())
                        .with_host(StrBytes::from_static_str("nowhere"))
                        .with_port(1),
                );
            }
            all.extend(answer.brokers.clone());
            all.extend(answer.brokers.clone());
            answer.brokers = all;
        }),
        metadata("each partition twice, the second led by the other", |_, answer| {
            for topic in &mut answer.topics {
                let again = topic.partitions.clone();
                topic.partitions.extend(again.into_iter().map(|mut partition| {
                    partition.leader_id = (3 - partition.leader_id.0).into();
                    partition
                }));
            }
        }),
        metadata("another cluster id every time", |number, answer| {
            answer.cluster_id = Some(StrBytes::from_string(number.to_string()));
        }),
        storm("a coordinator that is nowhere").act(|asked, frame| {
            asked.is(ApiKey::FindCoordinator).then(|| {
                asked.changed(frame, |answer: &mut FindCoordinatorResponse| {
                    for found in &mut answer.coordinators {
                        found.node_id = 55.into();
                        found.host = StrBytes::from_static_str("gone");
                        found.port = 5;
                    }
                })
            })
        }),
        storm("a coordinator under an id that metadata does not have").act(|asked, frame| {
            asked.is(ApiKey::FindCoordinator).then(|| {
                asked.changed(frame, |answer: &mut FindCoordinatorResponse| {
                    for found in &mut answer.coordinators {
                        found.node_id = 55.into();
                    }
                })
            })
        }),
        storm("the coordinator is the other broker").act(|asked, frame| {
            asked.is(ApiKey::FindCoordinator).then(|| {
                asked.changed(frame, |answer: &mut FindCoordinatorResponse| {
                    for found in &mut answer.coordinators {
                        found.node_id = (3 - found.node_id.0).into();
                        found.host = name(found.node_id.0);
                    }
                })
            })
        }),
        storm("the coordinator of others beside ours").act(|asked, frame| {
            asked.is(ApiKey::FindCoordinator).then(|| {
                asked.changed(frame, |answer: &mut FindCoordinatorResponse| {
                    let mut other = answer.coordinators[0].clone();
                    other.key = StrBytes::from_static_str("other");
                    other.node_id = (3 - other.node_id.0).into();
                    other.host = name(other.node_id.0);
                    answer.coordinators.push(other.clone());
                    answer.coordinators.insert(0, other);
                })
            })
        }),
        storm("offsets committed: answers without partitions").act(|asked, frame| {
            asked
                .is(ApiKey::OffsetCommit)
                .then(|| asked.changed(frame, |answer: &mut OffsetCommitResponse| answer.topics.clear()))
        }),
        storm("offsets fetched: answers without partitions").act(|asked, frame| {
            (asked.is(ApiKey::OffsetFetch)).then(|| {
                asked.changed(frame, |answer: &mut OffsetFetchResponse| {
                    answer.topics.clear();
                    for group in &mut answer.groups {
                        group.topics.clear();
                    }
                })
            })
        }),
        storm("offsets fetched: of another group beside ours").act(|asked, frame| {
            (asked.is(ApiKey::OffsetFetch)).then(|| {
                asked.changed(frame, |answer: &mut OffsetFetchResponse| {
                    let mut other = answer.groups[0].clone();
                    other.group_id = StrBytes::from_static_str("other").into();
                    for topic in &mut other.topics {
                        for partition in &mut topic.partitions {
                            partition.committed_offset = 1_000_000;
                        }
                    }
                    answer.groups.push(other);
                })
            })
        }),
        storm("produced: each partition twice, the second time refused").act(|asked, frame| {
            (asked.is(ApiKey::Produce) && asked.number % 2 == 0).then(|| {
                asked.changed(frame, |answer: &mut ProduceResponse| {
                    for topic in &mut answer.responses {
                        let again = topic.partition_responses.clone();
                        topic.partition_responses.extend(again.into_iter().map(|mut partition| {
                            partition.error_code = 6;
                            partition
                        }));
                    }
                })
            })
        }),
        storm("an id of a producer that cannot be").act(|asked, frame| {
            asked.is(ApiKey::InitProducerId).then(|| {
                asked.changed(frame, |answer: &mut wire::InitProducerIdResponse| {
                    answer.producer_id = (-1).into()
                })
            })
        }),
        storm("fetched: answers without topics").act(|asked, frame| {
            asked
                .is(ApiKey::Fetch)
                .then(|| asked.changed(frame, |answer: &mut wire::FetchResponse| answer.responses.clear()))
        }),
        storm("fetched: each partition twice").act(|asked, frame| {
            asked.is(ApiKey::Fetch).then(|| {
                asked.changed(frame, |answer: &mut wire::FetchResponse| {
                    for topic in &mut answer.responses {
                        let again = topic.partitions.clone();
                        topic.partitions.extend(again);
                    }
                })
            })
        }),
        storm("fetched: half of each answer").act(|asked, frame| {
            asked.is(ApiKey::Fetch).then(|| {
                asked.changed(frame, |answer: &mut wire::FetchResponse| {
                    for topic in &mut answer.responses {
                        for partition in &mut topic.partitions {
                            if let Some(records) = &mut partition.records {
                                let half = records.len() / 2;
                                records.truncate(half);
                            }
                        }
                    }
                })
            })
        }),
        storm("fetched: another session every time").act(|asked, frame| {
            asked.is(ApiKey::Fetch).then(|| {
                asked.changed(frame, |answer: &mut wire::FetchResponse| {
                    answer.session_id = asked.number as i32 * 7 - 30;
                })
            })
        }),
        storm("listed: answers without partitions").act(|asked, frame| {
            asked
                .is(ApiKey::ListOffsets)
                .then(|| asked.changed(frame, |answer: &mut wire::ListOffsetsResponse| answer.topics.clear()))
        }),
        storm("joined: another name for the member every time").act(|asked, frame| {
            (asked.is(ApiKey::JoinGroup) && asked.number % 2 == 0).then(|| {
                asked.changed(frame, |answer: &mut wire::JoinGroupResponse| {
                    answer.member_id = StrBytes::from_string(format!("other-{}", asked.number));
                })
            })
        }),
        storm("joined: an assignor that nobody has").act(|asked, frame| {
            asked.is(ApiKey::JoinGroup).then(|| {
                asked.changed(frame, |answer: &mut wire::JoinGroupResponse| {
                    answer.protocol_name = Some(StrBytes::from_static_str("nobody's"));
                })
            })
        }),
        storm("synced: an assignment that is noise").act(|asked, frame| {
            asked.is(ApiKey::SyncGroup).then(|| {
                asked.changed(frame, |answer: &mut wire::SyncGroupResponse| {
                    answer.assignment = Bytes::from_static(&[7; 50]);
                })
            })
        }),
        storm("throttled for 3 s by every answer").act(|asked, frame| match ApiKey::try_from(asked.key) {
            Ok(ApiKey::Metadata) => {
                Some(asked.changed(frame, |m: &mut MetadataResponse| m.throttle_time_ms = 3000))
            }
            Ok(ApiKey::Produce) => {
                Some(asked.changed(frame, |m: &mut ProduceResponse| m.throttle_time_ms = 3000))
            }
            Ok(ApiKey::Fetch) => {
                Some(asked.changed(frame, |m: &mut wire::FetchResponse| m.throttle_time_ms = 3000))
            }
            _ => None,
        }),
        storm("throttled once for 20 s, and silence after it").act(|asked, frame| {
            match ApiKey::try_from(asked.key) {
                Ok(ApiKey::Produce) if asked.number == 0 => {
                    Some(asked.changed(frame, |m: &mut ProduceResponse| m.throttle_time_ms = 20_000))
                }
                Ok(ApiKey::Produce) if asked.number < 3 => Some(Reply::Silence(8)),
                Ok(ApiKey::Fetch) if asked.number == 0 => {
                    Some(asked.changed(frame, |m: &mut wire::FetchResponse| m.throttle_time_ms = 20_000))
                }
                Ok(ApiKey::Fetch) if asked.number < 3 => Some(Reply::Silence(8)),
                _ => None,
            }
        }),
        storm("sessions of 3 s").sasl("PLAIN").act(|asked, frame| session(asked, frame, 3000)),
        storm("sessions of 20 ms").sasl("SCRAM-SHA-256").act(|asked, frame| session(asked, frame, 20)),
        storm("sessions of 1 ms").sasl("PLAIN").act(|asked, frame| session(asked, frame, 1)),
        storm("sessions of 3 s without idempotence")
            .sasl("PLAIN")
            .set("enable.idempotence", "false")
            .act(|asked, frame| session(asked, frame, 3000)),
        storm("sessions of 3 s, and every other renewal is silent").sasl("PLAIN").act(|asked, frame| {
            match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked.is(ApiKey::SaslAuthenticate).then_some(Reply::Silence(8)),
            }
        }),
        storm("sessions of 3 s, and every other renewal is not served").sasl("PLAIN").act(|asked, frame| {
            match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked.is(ApiKey::SaslAuthenticate).then(|| {
                    asked.changed(frame, |m: &mut wire::SaslAuthenticateResponse| m.error_code = -1)
                }),
            }
        }),
    ]
}

fn transactions() -> Vec<Storm> {
    let mut storms = Vec::new();
    let apis = [
        ApiKey::InitProducerId,
        ApiKey::FindCoordinator,
        ApiKey::AddPartitionsToTxn,
        ApiKey::Produce,
        ApiKey::EndTxn,
    ];
    for profile in [Profile::Kafka28, Profile::Latest] {
        storms.push(storm(format!("transactions, {profile:?}: nothing")).transactions(profile));
        for api in apis {
            for how in 0..4 {
                let text = broken(how, 8).0;
                storms.push(
                    storm(format!("transactions, {profile:?}: {api:?}: 8 bytes, {text}"))
                        .transactions(profile)
                        .act(move |asked, _| {
                            (asked.is(api) && asked.number % 2 == 0).then(|| broken(how, 8).1)
                        }),
                );
            }
        }
    }
    storms.push(
        storm("transactions: partitions added, and left out of the answer")
            .transactions(Profile::Kafka28)
            .act(|asked, frame| {
                (asked.is(ApiKey::AddPartitionsToTxn) && asked.number % 2 == 0).then(|| {
                    asked.changed(frame, |answer: &mut wire::AddPartitionsToTxnResponse| {
                        answer.results_by_topic_v3_and_below.clear();
                    })
                })
            }),
    );
    storms
}

fn session(asked: Asked, frame: &[u8], ms: i64) -> Option<Reply> {
    asked.is(ApiKey::SaslAuthenticate).then(|| {
        asked.changed(frame, |answer: &mut wire::SaslAuthenticateResponse| answer.session_lifetime_ms = ms)
    })
}

/// Runs each in a runtime of its own, some beside each other.
fn each(storms: Vec<Storm>) {
    let only = std::env::var("DTKAFKA_STORM").unwrap_or_default();
    let left: Vec<Storm> = storms.into_iter().filter(|storm| storm.name.contains(&only)).collect();
    let (left, failed) = (Mutex::new(left.into_iter()), Mutex::new(Vec::new()));
    let run = || {
        loop {
            let Some(storm) = left.lock().unwrap().next() else { return };
            let name = storm.name.clone();
            let (told, hears) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().start_paused(true).build().unwrap();
                let _ = told.send(runtime.block_on(storm.run()));
            });
            // A panic within it ends its thread; what turns in circles without a request, nothing.
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

#[test]
fn answers_that_pause_or_break_off_anywhere_are_weather() {
    each(broken_answers());
}

#[test]
fn ways_that_lead_elsewhere_or_nowhere_are_weather() {
    each(ways());
}

#[test]
fn lies_that_pass_do_no_harm() {
    each(lies());
}

#[test]
fn transactions_are_whole_or_not_there_whatever_breaks_off() {
    each(transactions());
}
