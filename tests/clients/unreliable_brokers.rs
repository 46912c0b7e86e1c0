//! Brokers that are silent, restart, throttle, move or answer falsely: clients reach the cluster all the same, or say why not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dtkafka::{ErrorKind, KafkaConfig, KafkaInstance, NewTopic, Stage, TopicPartition};
use dtkafka_testcontainers::{
    Effect, EmbeddedBroker, Fault,
    broker::{ApiKey, Profile, ResponseError},
};
use kafka_protocol::{
    messages::{ApiVersionsResponse, FindCoordinatorResponse, MetadataResponse},
    protocol::{Decodable, Encodable},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn broker() -> EmbeddedBroker {
    EmbeddedBroker::builder().start().await.unwrap()
}

fn config(servers: impl Into<String>) -> KafkaConfig {
    KafkaConfig::new().set_bootstrap_servers(servers.into())
}

/// A port that accepts and never answers; counts who came.
async fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            open.push(socket);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, came)
}

/// A port that accepts and closes for so long, and leads to `to` afterwards: a restart behind a balancer.
async fn closes_for(time: Duration, to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let until = Instant::now() + time;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            if Instant::now() < until {
                continue;
            }
            let to = to.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn one_living_bootstrap_address_among_ten_silent_ones_is_found_before_one_of_them_is_given_up() {
    let broker = broker().await;
    let mut servers = Vec::new();
    for _ in 0..10 {
        servers.push(silent().await.0);
    }
    servers.push(broker.bootstrap_servers());
    let started = Instant::now();
    KafkaInstance::new(config(servers.join(","))).unwrap().admin().await.unwrap();
    // On a machine at rest within two seconds; the first silent one is given up after ten.
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
}

#[tokio::test]
async fn clients_find_their_way_back_to_the_bootstrap_address_when_every_known_broker_is_gone() {
    let first = EmbeddedBroker::builder().brokers(3).start().await.unwrap();
    let second = broker().await;
    second.create_topic("t", 1).unwrap();
    // A balancer that leads to the one cluster first, and then to another at other addresses.
    let leads_to =
        Arc::new(std::sync::Mutex::new(first.bootstrap_servers().split(',').next().unwrap().to_owned()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let target = Arc::clone(&leads_to);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let to = target.lock().unwrap().clone();
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    let config = config(address).set("metadata.max.age.ms", 300).set("max.block.ms", 20_000);
    let producer = KafkaInstance::new(config).unwrap().get_producer().await.unwrap();
    *leads_to.lock().unwrap() = second.bootstrap_servers();
    drop(first);
    let started = Instant::now();
    producer.send("t", &1).await.unwrap().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_sasl_listener_that_closes_while_it_restarts_is_waited_for() {
    use dtkafka_testcontainers::Listener;
    let broker = EmbeddedBroker::builder().user("alice", "alice-secret").start().await.unwrap();
    let to = broker.listener(Listener::SaslPlaintext);
    let restarting = closes_for(Duration::from_millis(1500), to).await;
    let config = config(restarting)
        .set_security_protocol("SASL_PLAINTEXT")
        .set_sasl_plain_username("alice")
        .set_sasl_plain_password("alice-secret");
    let started = Instant::now();
    KafkaInstance::new(config).unwrap().admin().await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(1), "it was not in the way");
}

#[tokio::test]
async fn every_client_waits_for_a_cluster_that_is_about_to_come() {
    let broker = broker().await;
    broker.create_topic("t", 1).unwrap();
    for client in ["producer", "consumer", "admin"] {
        let coming = closes_for(Duration::from_millis(700), broker.bootstrap_servers()).await;
        let kafka = KafkaInstance::new(config(coming).set_group_id("g")).unwrap();
        match client {
            "producer" => drop(kafka.get_producer().await.unwrap()),
            "consumer" => drop(kafka.get_consumer(["t"]).await.unwrap()),
            _ => drop(kafka.admin().await.unwrap()),
        }
    }
}

#[tokio::test]
async fn a_refused_topic_is_asked_about_again_and_not_believed_for_minutes() {
    let broker = broker().await;
    broker.create_topic("t", 1).unwrap();
    let producer =
        KafkaInstance::new(config(broker.bootstrap_servers())).unwrap().get_producer().await.unwrap();
    broker.control().fail_topic(ApiKey::Metadata, "t", 1, ResponseError::TopicAuthorizationFailed);
    let error = producer.send("t", &1).await.unwrap_err();
    assert_eq!((error.code().map(|code| code.0), error.topic()), (Some(29), Some("t")));
    producer.send("t", &1).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn admin_calls_create_nothing_and_a_deleted_topic_stays_deleted() {
    let broker = broker().await;
    let config = config(broker.bootstrap_servers())
        .set("metadata.max.age.ms", 200)
        .set("default.api.timeout.ms", 1000)
        .set_group_id("g");
    let kafka = KafkaInstance::new(config).unwrap();
    let admin = kafka.admin().await.unwrap();
    assert!(admin.latest_offsets([TopicPartition::new("asked", 0)]).await.is_err());
    admin.create_topic(NewTopic::new("used").partitions(3)).await.unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("used", &1).await.unwrap().await.unwrap();
    let consumer = kafka.get_consumer(["used"]).await.unwrap();
    consumer.poll(Duration::from_millis(300)).await.unwrap();
    admin.delete_topic("used").await.unwrap();
    // Many refreshes of all three.
    let before = broker.control().requests(ApiKey::Metadata);
    while broker.control().requests(ApiKey::Metadata) < before + 15 {
        let _ = consumer.poll(Duration::from_millis(100)).await;
    }
    assert_eq!(admin.list_topics().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_topic_is_named_with_its_cause_by_the_producer_that_waits() {
    let broker = EmbeddedBroker::builder().auto_create_topics(false).start().await.unwrap();
    let kafka = KafkaInstance::new(config(broker.bootstrap_servers())).unwrap();
    let producer = dtkafka::Producer::new(&kafka).await.unwrap();
    let error = producer.send("missing", &1).timeout(Duration::from_millis(700)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("missing") && text.contains("UnknownTopicOrPartition"), "{text}");
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_said_by_poll() {
    let broker = broker().await;
    broker.create_topic("t", 2).unwrap();
    let config = config(broker.bootstrap_servers()).set("unreadable.warn.ms", 500);
    let kafka = KafkaInstance::new(config).unwrap();
    let consumer = kafka.get_consumer(Vec::<String>::new()).await.unwrap();
    consumer.assign([TopicPartition::new("t", 7)]).unwrap();
    let polling = async {
        loop {
            if let Err(error) = consumer.poll(Duration::from_secs(1)).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, polling).await.unwrap();
    assert_eq!((error.topic(), error.partition()), (Some("t"), Some(7)), "{error}");
    assert!(error.to_string().contains("2 partitions"), "{error}");
}

#[tokio::test]
async fn idle_connections_are_closed_by_a_timer_and_made_again_when_needed() {
    let broker = broker().await;
    broker.create_topic("t", 1).unwrap();
    let config = config(broker.bootstrap_servers()).set("connections.max.idle.ms", 200);
    let producer = KafkaInstance::new(config).unwrap().get_producer().await.unwrap();
    producer.send("t", &1).await.unwrap().await.unwrap();
    let port: u16 = broker.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
    let closing = async {
        while open_to(port) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closing).await.unwrap();
    producer.send("t", &2).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_client_that_was_closed_has_no_connection_though_its_handle_is_kept() {
    for group in [None, Some("classic"), Some("consumer")] {
        let broker = broker().await;
        broker.create_topic("t", 1).unwrap();
        let kafka = KafkaInstance::new(config(broker.bootstrap_servers()).set_group_id("g")).unwrap();
        let consumer = match group {
            None => {
                let consumer = kafka.get_consumer(Vec::<String>::new()).await.unwrap();
                consumer.assign([TopicPartition::new("t", 0)]).unwrap();
                consumer
            }
            Some(protocol) => {
                kafka.get_consumer_with(["t"], |c| c.set("group.protocol", protocol)).await.unwrap()
            }
        };
        let producer = kafka.get_producer().await.unwrap();
        producer.send("t", &1).await.unwrap().await.unwrap();
        while consumer.assignment().is_empty() {
            consumer.poll(Duration::from_millis(50)).await.unwrap();
        }
        consumer.position(&TopicPartition::new("t", 0)).await.unwrap();
        let port: u16 = broker.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
        assert!(open_to(port) > 0);
        consumer.close(PATIENCE).await.unwrap();
        producer.close().await.unwrap();
        let closing = async {
            while open_to(port) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closing).await.unwrap();
        let error = consumer.committed([TopicPartition::new("t", 0)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        let error = consumer.end_offsets([TopicPartition::new("t", 0)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        assert_eq!(open_to(port), 0);
    }
}

/// Connections of this process to a port, as the system has them.
fn open_to(port: u16) -> usize {
    let Ok(table) = std::fs::read_to_string("/proc/self/net/tcp") else { return 0 };
    let remote = format!(":{port:04X}");
    let is_open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && matches!(fields[3], "01" | "08")
    };
    table.lines().skip(1).filter(is_open).count()
}

#[test]
fn a_client_whose_runtime_has_ended_says_so_to_everybody_who_waits() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let keep = runtime();
    let broker = keep.block_on(broker());
    broker.create_topic("t", 1).unwrap();
    let first = runtime();
    let (producer, consumer) = first.block_on(async {
        let kafka = KafkaInstance::new(config(broker.bootstrap_servers())).unwrap();
        let producer = kafka.get_producer().await.unwrap();
        producer.send("t", &1).await.unwrap().await.unwrap();
        // Outside a group: a member lives in a thread of its own, and goes on.
        let earliest = |c: dtkafka::ConsumerConfig| c.set("auto.offset.reset", "earliest");
        let consumer = kafka.get_consumer_with(Vec::<String>::new(), earliest).await.unwrap();
        consumer.assign([TopicPartition::new("t", 0)]).unwrap();
        assert_eq!(consumer.poll(PATIENCE).await.unwrap().len(), 1);
        (producer, consumer)
    });
    drop(first);
    keep.block_on(async {
        let ended = tokio::time::timeout(PATIENCE, async {
            let sent = match producer.send("t", &2).await {
                Ok(delivery) => delivery.await.map(drop),
                Err(error) => Err(error),
            };
            let polled = consumer.poll(Duration::from_secs(20)).await.map(drop);
            [sent, producer.flush().await, polled, consumer.close(PATIENCE).await]
        });
        let errors = ended.await.unwrap().map(Result::unwrap_err);
        for error in &errors {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        }
        let says_why = |error: &dtkafka::Error| error.to_string().contains("runtime");
        assert!(says_why(&errors[0]) && says_why(&errors[2]), "{errors:?}");
    });
}

#[test]
fn a_send_that_waits_for_its_topic_when_the_runtime_ends_says_so() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (keep, first) = (runtime(), runtime());
    let broker = keep.block_on(broker());
    let kafka = KafkaInstance::new(config(broker.bootstrap_servers())).unwrap();
    let producer = first.block_on(kafka.get_producer()).unwrap();
    broker.control().inject(Fault::on(ApiKey::Metadata).effect(Effect::Silence));
    keep.block_on(async {
        let mut send = std::pin::pin!(producer.send("new", &1).into_future());
        assert!(futures_util::poll!(send.as_mut()).is_pending());
        tokio::task::spawn_blocking(move || drop(first)).await.unwrap();
        let error = tokio::time::timeout(PATIENCE, send).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        assert!(error.to_string().contains("its runtime has ended"), "{error}");
    });
}

#[test]
fn calls_outside_a_runtime_or_in_one_without_timers_or_io_are_errors() {
    let kafka = KafkaInstance::new(config("127.0.0.1:1").set("max.block.ms", 2000)).unwrap();
    let outside = futures_util::FutureExt::now_or_never(kafka.get_producer()).unwrap().unwrap_err();
    assert!(outside.to_string().contains("tokio runtime"), "{outside}");
    let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = bare.block_on(kafka.get_producer()).unwrap_err();
    assert!(error.to_string().contains("enable_all()"), "{error}");
    let without_io = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let error = without_io.block_on(kafka.get_producer()).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("enable_io()"), "{error}");
}

/// What becomes of an answer on its way: of its body, by API and version.
type Bend = Arc<dyn Fn(ApiKey, i16, &mut Vec<u8>) + Send + Sync>;

/// A way to a broker that changes what it says.
#[derive(Clone)]
struct Way {
    port: u16,
    bend: Bend,
    /// The API keys that were asked for here.
    asked: Arc<std::sync::Mutex<std::collections::BTreeSet<i16>>>,
    open: Arc<AtomicUsize>,
}

impl Way {
    async fn open(to: String, bend: impl Fn(ApiKey, i16, &mut Vec<u8>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Self { port, bend: Arc::new(bend), asked: Arc::default(), open: Arc::default() };
        let ours = way.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (way, to) = (ours.clone(), to.clone());
                tokio::spawn(async move {
                    way.open.fetch_add(1, Ordering::SeqCst);
                    let _ = way.serve(near, to).await;
                    way.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        way
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn serve(&self, near: TcpStream, to: String) -> std::io::Result<()> {
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = TcpStream::connect(to).await?.into_split();
        let waiting = std::sync::Mutex::new(std::collections::VecDeque::new());
        let out = async {
            loop {
                let frame = read_frame(&mut near_in).await?;
                let short = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
                self.asked.lock().unwrap().insert(short(0));
                waiting.lock().unwrap().push_back((short(0), short(2)));
                write_frame(&mut far_out, &frame).await?;
            }
        };
        let back = async {
            loop {
                let frame = read_frame(&mut far_in).await?;
                let (key, version) = waiting.lock().unwrap().pop_front().unwrap();
                let api = ApiKey::try_from(key).unwrap();
                let head = 4 + usize::from(api.response_header_version(version) > 0);
                let mut body = frame[head..].to_vec();
                (self.bend)(api, version, &mut body);
                write_frame(&mut near_out, &[&frame[..head], &body].concat()).await?;
            }
        };
        // Either end closes both.
        tokio::select! {
            ended = out => ended,
            ended = back => ended,
        }
    }
}

/// Changes an answer.
fn bend<M: Decodable + Encodable>(body: &mut Vec<u8>, version: i16, change: impl FnOnce(&mut M)) {
    let mut answer = M::decode(&mut bytes::Bytes::copy_from_slice(body), version).unwrap();
    change(&mut answer);
    body.clear();
    answer.encode(body, version).unwrap();
}

/// Says of every broker that it is at this port.
fn elsewhere(told: Arc<AtomicU16>) -> impl Fn(ApiKey, i16, &mut Vec<u8>) + Send + Sync + 'static {
    move |api, version, body| {
        let port = i32::from(told.load(Ordering::SeqCst));
        match api {
            ApiKey::Metadata => bend(body, version, |answer: &mut MetadataResponse| {
                answer.brokers.iter_mut().for_each(|broker| broker.port = port);
            }),
            ApiKey::FindCoordinator => {
                bend(body, version, |answer: &mut FindCoordinatorResponse| answer.port = port);
            }
            _ => {}
        }
    }
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(stream: &mut (impl AsyncWriteExt + Unpin), frame: &[u8]) -> std::io::Result<()> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes).await
}

#[tokio::test]
async fn a_broker_that_moves_is_followed_on_every_lane_although_its_old_address_still_answers() {
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka28).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let told = Arc::new(AtomicU16::new(0));
    let [entry, old, new] =
        [0; 3].map(|_| Way::open(broker.bootstrap_servers(), elsewhere(Arc::clone(&told))));
    let (entry, old, new) = tokio::join!(entry, old, new);
    told.store(old.port, Ordering::SeqCst);
    let config = config(entry.address())
        .set("metadata.max.age.ms", 200)
        .set("heartbeat.interval.ms", 50)
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let (producer, consumer) =
        (kafka.get_producer().await.unwrap(), kafka.get_consumer(["t"]).await.unwrap());
    let (mut sent, mut seen) = (0, Vec::new());
    // Produce, Fetch and Heartbeat have a lane each.
    for way in [&old, &new] {
        told.store(way.port, Ordering::SeqCst);
        let following = async {
            while ![0, 1, 12].iter().all(|key| way.asked.lock().unwrap().contains(key)) {
                producer.send("t", &sent).await.unwrap().await.unwrap();
                sent += 1;
                let polled = consumer.poll(Duration::from_millis(50)).await.unwrap();
                seen.extend(polled.records().map(|record| record.json::<usize>().unwrap()));
            }
        };
        tokio::time::timeout(PATIENCE, following).await.unwrap();
    }
    let leaving = async {
        while old.open.load(Ordering::SeqCst) > 0 {
            let polled = consumer.poll(Duration::from_millis(20)).await.unwrap();
            seen.extend(polled.records().map(|record| record.json::<usize>().unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, leaving).await.unwrap();
    while seen.len() < sent {
        let polled = consumer.poll(PATIENCE).await.unwrap();
        seen.extend(polled.records().map(|record| record.json::<usize>().unwrap()));
    }
    assert_eq!(seen, (0..sent).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broker_that_cannot_tell_about_the_cluster_does_not_keep_the_others_from_it() {
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka28).start().await.unwrap();
    // One that has just started and knows nobody, a controller, one that refuses, one whose answers are damaged.
    let starting = Way::open(broker.bootstrap_servers(), |api, version, body| {
        if api == ApiKey::Metadata {
            bend(body, version, |answer: &mut MetadataResponse| answer.brokers.clear());
        }
    });
    let controller = Way::open(broker.bootstrap_servers(), |api, version, body| {
        if api == ApiKey::ApiVersions {
            bend(body, version, |answer: &mut ApiVersionsResponse| {
                answer.api_keys.retain(|key| key.api_key != ApiKey::Metadata as i16);
            });
        }
    });
    let refusing = Way::open(broker.bootstrap_servers(), |api, version, body| {
        if api == ApiKey::ApiVersions {
            bend(body, version, |answer: &mut ApiVersionsResponse| answer.error_code = -1);
        }
    });
    let damaging = Way::open(broker.bootstrap_servers(), |api, _, body| {
        if api == ApiKey::Metadata {
            body.truncate(body.len() / 2);
        }
    });
    let (a, b, c, d) = tokio::join!(starting, controller, refusing, damaging);
    let mut servers: Vec<String> = [&a, &b, &c, &d].map(Way::address).into();
    servers.push(broker.bootstrap_servers());
    for _ in 0..10 {
        let started = Instant::now();
        KafkaInstance::new(config(servers.join(","))).unwrap().admin().await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    // Alone, each says what it is at its end, and only a controller at once.
    let alone = async |way: &Way| {
        let config = config(way.address()).set("default.api.timeout.ms", 4_000);
        let started = Instant::now();
        let error = KafkaInstance::new(config).unwrap().admin().await.unwrap_err();
        let at_once = started.elapsed() < Duration::from_millis(3_990);
        assert_eq!(at_once, way.port == b.port, "{:?}: {error}", started.elapsed());
    };
    tokio::join!(alone(&a), alone(&b), alone(&c), alone(&d));
}

#[tokio::test]
async fn a_broker_that_refuses_and_damages_answers_while_it_starts_is_waited_for() {
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka28).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    for what in [ApiKey::ApiVersions, ApiKey::Metadata] {
        let bad = AtomicUsize::new(3);
        let way = Way::open(broker.bootstrap_servers(), move |api, version, body| {
            let is_bad =
                || bad.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            match api {
                ApiKey::ApiVersions if what == api && is_bad() => {
                    bend(body, version, |answer: &mut ApiVersionsResponse| answer.error_code = -1);
                }
                ApiKey::Metadata if what == api && is_bad() => body.truncate(3),
                _ => {}
            }
        });
        let kafka = KafkaInstance::new(config(way.await.address())).unwrap();
        kafka.get_producer().await.unwrap();
    }
}

#[tokio::test]
async fn failures_that_nobody_awaited_are_told_once_by_flush_and_by_close() {
    let broker = broker().await;
    broker.create_topic("t", 1).unwrap();
    let producer =
        KafkaInstance::new(config(broker.bootstrap_servers())).unwrap().get_producer().await.unwrap();
    producer.send("t", &0).await.unwrap().await.unwrap();
    producer.flush().await.unwrap();
    for ends in ["flush", "close"] {
        broker.control().fail_topic(ApiKey::Produce, "t", 1, ResponseError::TopicAuthorizationFailed);
        let mut deliveries = Vec::new();
        for n in 0..5 {
            deliveries.push(producer.send("t", &n).await.unwrap());
        }
        let held = deliveries.pop().unwrap();
        assert!(deliveries.pop().unwrap().await.is_err());
        drop(deliveries);
        let told = match ends {
            "flush" => producer.flush().await,
            _ => producer.close().await,
        };
        let error = told.unwrap_err();
        assert_eq!((error.code().map(|code| code.0), error.topic()), (Some(29), Some("t")), "{error}");
        assert!(error.to_string().contains("3 records failed"), "{ends}: {error}");
        assert!(held.await.is_err());
        if ends == "flush" {
            producer.flush().await.unwrap();
        }
    }
}

/// What is logged while it runs, on this thread.
fn logged(run: impl FnOnce()) -> String {
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::INFO);
    run();
    log.text()
}

#[test]
fn records_that_a_runtime_leaves_behind_are_counted_in_one_error_line() {
    let keep = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let broker = keep.block_on(broker());
    broker.create_topic("t", 2).unwrap();
    for closes in [false, true] {
        let log = logged(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = config(broker.bootstrap_servers()).set("linger.ms", 60_000);
                let producer = KafkaInstance::new(config).unwrap().get_producer().await.unwrap();
                for n in 0..7 {
                    let value = n.to_string();
                    let record = dtkafka::ProducerRecord::new("t").partition(n % 2).value(&value);
                    drop(producer.send_record(record).await.unwrap());
                }
                if closes {
                    producer.close().await.unwrap();
                }
            });
        });
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        match closes {
            true => assert!(lines.is_empty(), "{lines:?}"),
            false => assert!(lines.len() == 1 && lines[0].contains("records=7"), "{lines:?}"),
        }
    }
}

/// Nothing but the client's own tickets keeps five requests in flight in order: no sequence, and no luck with the runtime.
#[test]
fn records_without_idempotence_stay_in_order_on_every_runtime() {
    const PARTITIONS: i32 = 3;
    const EACH: usize = 3000;
    let builders = [tokio::runtime::Builder::new_current_thread, tokio::runtime::Builder::new_multi_thread];
    for (builder, acks) in builders.into_iter().flat_map(|builder| [(builder, "all"), (builder, "0")]) {
        builder().enable_all().build().unwrap().block_on(async {
            let broker = EmbeddedBroker::builder().brokers(2).start().await.unwrap();
            broker.create_topic("t", PARTITIONS).unwrap();
            let config = config(broker.bootstrap_servers())
                .set("enable.idempotence", false)
                .set("acks", acks)
                .set("linger.ms", 0)
                .set("batch.size", 200);
            let producer = KafkaInstance::new(config).unwrap().get_producer().await.unwrap();
            let partitions = (0..PARTITIONS).map(|partition| {
                let producer = producer.clone();
                tokio::spawn(async move {
                    for n in 0..EACH {
                        let value = n.to_string();
                        let record = dtkafka::ProducerRecord::new("t").partition(partition).value(&value);
                        drop(producer.send_record(record).await.unwrap());
                        if n % 7 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            });
            for partition in partitions.collect::<Vec<_>>() {
                partition.await.unwrap();
            }
            producer.flush().await.unwrap();
            broker.wait_for_records("t", PARTITIONS as usize * EACH, PATIENCE).await.unwrap();
            for partition in 0..PARTITIONS {
                let records = broker.records("t", partition).unwrap();
                let values: Vec<usize> =
                    records.iter().map(|record| record.value_text().unwrap().parse().unwrap()).collect();
                assert_eq!(values, (0..EACH).collect::<Vec<_>>(), "acks={acks}, partition {partition}");
            }
        });
    }
}

#[tokio::test]
async fn a_plaintext_client_on_a_tls_port_is_told_at_once_also_where_others_would_wait() {
    use dtkafka_testcontainers::{Certificates, Listener};
    let certificates = Certificates::generate().unwrap();
    let server = certificates.server();
    let broker = EmbeddedBroker::builder()
        .tls(server.certificate_pem(), server.key_pem(), None)
        .start()
        .await
        .unwrap();
    let started = Instant::now();
    let kafka = KafkaInstance::new(config(broker.listener(Listener::Ssl)).set_group_id("g")).unwrap();
    let mut consumer = dtkafka::Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async |_: dtkafka::Message<serde_json::Value>| Ok(()))
        .unwrap();
    let error = consumer.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.stage(), Some(Stage::Api), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
