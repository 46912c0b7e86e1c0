//! The embedded broker answers as Apache Kafka does: each test sends raw requests, and expects the same answers of both.
//!
//! Where real Kafka cannot run, its half says why and passes; with `DTKAFKA_REQUIRE_KAFKA` set it fails instead.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fmt::Debug,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use dtkafka_testcontainers::{
    EmbeddedBroker, ResponseError,
    launch::{Kafka, call},
};
use kafka_protocol::{
    messages::{
        consumer_group_heartbeat_request::TopicPartitions,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        fetch_request::{FetchPartition, FetchTopic, ForgottenTopic},
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        produce_request::{PartitionProduceData, TopicProduceData},
        sync_group_request::SyncGroupRequestAssignment,
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
        *,
    },
    protocol::{Request, StrBytes},
};
use tokio::{net::TcpStream, runtime::Runtime, sync::OnceCell};
use uuid::Uuid;

mod looks;

/// Outlives every test: the brokers of all tests run on it.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
static EMBEDDED: OnceCell<EmbeddedBroker> = OnceCell::const_new();
static KAFKA: OnceCell<Option<Kafka>> = OnceCell::const_new();

/// Runs a test on both brokers.
fn on_both(test: impl AsyncFn(Broker)) {
    RUNTIME.block_on(async {
        let embedded = EMBEDDED.get_or_init(async || EmbeddedBroker::start().await.unwrap()).await;
        test(Broker::at(embedded.bootstrap_servers())).await;
        let start = async || {
            let builder = Kafka::for_tests().unwrap()?;
            let builder = builder
                .property("transaction.abort.timed.out.transaction.cleanup.interval.ms", "100")
                .property("group.initial.rebalance.delay.ms", "0")
                .property("group.consumer.min.heartbeat.interval.ms", "100")
                .property("group.consumer.min.assignment.interval.ms", "0")
                .property("group.consumer.assignment.interval.ms", "0")
                .property("group.min.session.timeout.ms", "500");
            Some(builder.start().await.unwrap())
        };
        if let Some(kafka) = KAFKA.get_or_init(start).await {
            test(Broker::at(kafka.bootstrap_servers())).await;
        }
    });
}

/// One of the two, and what it has told so far.
struct Broker {
    address: String,
    told: Mutex<Vec<String>>,
}

impl Broker {
    fn at(address: String) -> Self {
        Self { address, told: Mutex::default() }
    }

    fn tell(&self, what: &str, answer: impl Debug) {
        self.told.lock().unwrap().push(format!("{what}: {answer:?}"));
    }

    /// What was told since the last look.
    fn expect(&self, expected: &[&str]) {
        assert_eq!(*self.told.lock().unwrap(), expected, "at {}", self.address);
        self.told.lock().unwrap().clear();
    }

    /// Asks on a connection of its own.
    async fn ask<R: Request + Sync>(&self, version: i16, request: &R) -> R::Response {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        call(&mut stream, ApiKey::try_from(R::KEY).unwrap(), version, request).await.unwrap()
    }

    /// Asks until leader and coordinator are there and have time.
    async fn settled<R: Request + Sync>(
        &self,
        version: i16,
        request: &R,
        code: impl Fn(&R::Response) -> i16,
    ) -> R::Response {
        loop {
            let answer = self.ask(version, request).await;
            if !passes(code(&answer)) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a topic, and returns its name and id once it is known.
    async fn topic(&self, partitions: i32) -> (TopicName, Uuid) {
        self.configured_topic(partitions, Vec::new()).await
    }

    async fn configured_topic(
        &self,
        partitions: i32,
        configs: Vec<CreatableTopicConfig>,
    ) -> (TopicName, Uuid) {
        let name = topic_name(&unique("t"));
        let topic = CreatableTopic::default()
            .with_name(name.clone())
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(configs);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        assert_eq!(self.ask(7, &request).await.topics[0].error_code, 0);
        let asked = MetadataRequestTopic::default().with_name(Some(name.clone()));
        let request = MetadataRequest::default().with_topics(Some(vec![asked]));
        loop {
            let topic = self.ask(12, &request).await.topics.remove(0);
            if topic.error_code == 0 && topic.partitions.iter().all(|p| p.error_code == 0) {
                return (name, topic.topic_id);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until somebody coordinates this.
    async fn coordinator(&self, kind: i8, key: &str) {
        let request =
            FindCoordinatorRequest::default().with_key_type(kind).with_coordinator_keys(vec![text(key)]);
        while self.ask(4, &request).await.coordinators[0].error_code != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn init(&self, id: &str, timeout: Duration, expected: Option<(i64, i16)>) -> (i16, (i64, i16)) {
        let (producer, epoch) = expected.unwrap_or((-1, -1));
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(id))))
            .with_transaction_timeout_ms(timeout.as_millis() as i32)
            .with_producer_id(producer.into())
            .with_producer_epoch(epoch);
        let answer = self.settled(5, &request, |answer| answer.error_code).await;
        (answer.error_code, (answer.producer_id.0, answer.producer_epoch))
    }

    async fn end(&self, version: i16, id: &str, who: (i64, i16), commit: bool) -> (i16, i16) {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(id)))
            .with_producer_id(who.0.into())
            .with_producer_epoch(who.1)
            .with_committed(commit);
        let answer = self.settled(version, &request, |answer| answer.error_code).await;
        (answer.error_code, answer.producer_epoch)
    }

    /// The first partition's answer.
    async fn produce(
        &self,
        version: i16,
        id: Option<&str>,
        topic: (&TopicName, Uuid),
        records: Bytes,
    ) -> (i16, i64, i64) {
        let data = PartitionProduceData::default().with_index(0).with_records(Some(records));
        let data = TopicProduceData::default()
            .with_name(topic.0.clone())
            .with_topic_id(topic.1)
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(id.map(|id| TransactionalId(text(id))))
            .with_acks(-1)
            .with_timeout_ms(5000)
            .with_topic_data(vec![data]);
        let code = |answer: &ProduceResponse| answer.responses[0].partition_responses[0].error_code;
        let answer = self.settled(version, &request, code).await;
        let p = &answer.responses[0].partition_responses[0];
        (p.error_code, p.base_offset, p.log_append_time_ms)
    }

    async fn beat(&self, request: &ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
        self.settled(1, request, |answer| answer.error_code).await
    }
}

/// What a coordinator says that is starting or busy.
fn passes(code: i16) -> bool {
    [
        ResponseError::CoordinatorNotAvailable,
        ResponseError::CoordinatorLoadInProgress,
        ResponseError::NotCoordinator,
        ResponseError::ConcurrentTransactions,
        ResponseError::NotLeaderOrFollower,
    ]
    .iter()
    .any(|error| error.code() == code)
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[expect(clippy::disallowed_methods, reason = "real Kafka goes by the machine's clock")]
fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

const TRANSACTIONAL: i16 = 0x10;

/// A batch of one record, uncompressed, by (producer id, epoch, sequence).
fn batch(producer: (i64, i16, i32), attributes: i16, base_offset: i64, timestamp: i64, size: usize) -> Bytes {
    let mut record = BytesMut::new();
    // Attributes, timestamp delta, offset delta, no key, the value's length as a zigzag varint.
    record.put_slice(&[0, 0, 0, 1]);
    put_varint(&mut record, size as u64 * 2);
    record.put_bytes(b'v', size);
    record.put_u8(0);
    let mut tail = BytesMut::new();
    tail.put_i16(attributes);
    tail.put_i32(0);
    tail.put_i64(timestamp);
    tail.put_i64(timestamp);
    tail.put_i64(producer.0);
    tail.put_i16(producer.1);
    tail.put_i32(producer.2);
    tail.put_i32(1);
    put_varint(&mut tail, record.len() as u64 * 2);
    tail.put_slice(&record);
    let mut out = BytesMut::new();
    out.put_i64(base_offset);
    out.put_i32(tail.len() as i32 + 9);
    out.put_i32(-1);
    out.put_u8(2);
    out.put_u32(crc32c::crc32c(&tail));
    out.put_slice(&tail);
    out.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

const NOBODY: (i64, i16, i32) = (-1, -1, -1);
const MINUTE: Duration = Duration::from_secs(60);
/// Longer than markers take to be written.
const MARKERS: Duration = Duration::from_millis(700);

/// Producer id and epoch.
type Who = (i64, i16);

/// A transactional batch of one record.
fn within(who: Who, sequence: i32) -> Bytes {
    batch((who.0, who.1, sequence), TRANSACTIONAL, 0, now_ms(), 1)
}

#[test]
fn what_a_coordinator_has_aborted_by_itself_has_ended_until_there_is_a_successor() {
    on_both(async |broker| {
        let topic = broker.topic(1).await;
        let topic = (&topic.0, topic.1);
        let id = &*unique("tx");
        broker.coordinator(1, id).await;
        let (_, who) = broker.init(id, MINUTE, None).await;
        assert_eq!(broker.produce(12, Some(id), topic, within(who, 0)).await.0, 0);
        let another = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(id))))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        broker.tell("another", broker.ask(5, &another).await.error_code);
        tokio::time::sleep(MARKERS).await;
        broker.tell("commit", broker.end(5, id, who, true).await);
        broker.tell("abort", broker.end(5, id, who, false).await);
        broker.tell("next epoch", broker.init(id, MINUTE, Some(who)).await.1.1);
        broker.tell("produce", broker.produce(12, Some(id), topic, within(who, 1)).await.0);
        broker.tell("successor", broker.init(id, MINUTE, None).await.1.1);
        broker.tell("commit", broker.end(5, id, who, true).await);
        broker.tell("abort", broker.end(5, id, who, false).await);
        broker.tell("next epoch", broker.init(id, MINUTE, Some(who)).await.0);
        broker.expect(&[
            "another: 51",
            "commit: (48, -1)",
            "abort: (0, 1)",
            "next epoch: 1",
            "produce: 47",
            "successor: 2",
            "commit: (90, -1)",
            "abort: (90, -1)",
            "next epoch: 90",
        ]);

        let (_, who) = broker.init(id, Duration::from_millis(300), None).await;
        assert_eq!(broker.produce(12, Some(id), topic, within(who, 0)).await.0, 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        broker.tell("timed out, commit", broker.end(5, id, who, true).await);
        broker.tell("timed out, abort", broker.end(5, id, who, false).await);
        broker.tell("timed out, of the first version", broker.end(4, id, who, false).await);
        broker.expect(&[
            "timed out, commit: (48, -1)",
            "timed out, abort: (0, 4)",
            "timed out, of the first version: (90, -1)",
        ]);
    });
}

#[test]
fn an_end_means_what_the_state_makes_of_it() {
    on_both(async |broker| {
        let topic = broker.topic(1).await;
        let topic = (&topic.0, topic.1);
        let id = &*unique("tx");
        broker.coordinator(1, id).await;
        let (_, who) = broker.init(id, MINUTE, None).await;
        let at = |epoch: i16| (who.0, epoch);
        for (what, epoch, commit) in [
            ("empty, older, abort", -1, false),
            ("empty, newer", 1, false),
            ("empty, commit", 0, true),
            ("empty, abort", 0, false),
            ("aborted, older", -1, false),
            ("aborted, again, commit", 0, true),
            ("aborted, again, abort", 0, false),
            ("aborted, commit", 1, true),
            ("aborted, newer", 2, true),
        ] {
            broker.tell(what, broker.end(5, id, at(epoch), commit).await);
        }
        assert_eq!(broker.produce(12, Some(id), topic, within(at(1), 0)).await.0, 0);
        for (what, epoch, commit) in [
            ("open, older", 0, false),
            ("open, newer", 2, false),
            ("open, commit", 1, true),
            ("committed, again, commit", 1, true),
            ("committed, again, abort", 1, false),
            ("committed, commit", 2, true),
            ("committed, newer", 3, true),
        ] {
            broker.tell(what, broker.end(5, id, at(epoch), commit).await);
        }
        broker.tell("another producer", broker.end(5, id, (who.0 + 77_777, 2), true).await.0);
        broker.tell("unknown", broker.end(5, &unique("unknown"), at(2), true).await.0);
        broker.tell("init of another", broker.init(id, MINUTE, Some((who.0 + 77, 3))).await.0);
        broker.tell("init, older", broker.init(id, MINUTE, Some(at(0))).await.0);
        broker.tell("init, again", broker.init(id, MINUTE, Some(at(1))).await.1.1);
        broker.tell("init", broker.init(id, MINUTE, Some(at(2))).await.1.1);
        broker.tell("init, half", broker.init(id, MINUTE, Some((5, -1))).await.0);
        broker.tell("init, no time", broker.init(id, Duration::ZERO, None).await.0);
        broker.tell("init, much time", broker.init(id, MINUTE * 16, None).await.0);
        broker.expect(&[
            "empty, older, abort: (90, -1)",
            "empty, newer: (90, -1)",
            "empty, commit: (48, -1)",
            "empty, abort: (0, 1)",
            "aborted, older: (90, -1)",
            "aborted, again, commit: (48, -1)",
            "aborted, again, abort: (0, 1)",
            "aborted, commit: (48, -1)",
            "aborted, newer: (90, -1)",
            "open, older: (90, -1)",
            "open, newer: (90, -1)",
            "open, commit: (0, 2)",
            "committed, again, commit: (0, 2)",
            "committed, again, abort: (48, -1)",
            "committed, commit: (48, -1)",
            "committed, newer: (90, -1)",
            "another producer: 49",
            "unknown: 49",
            "init of another: 90",
            "init, older: 90",
            "init, again: 2",
            "init: 3",
            "init, half: 42",
            "init, no time: 50",
            "init, much time: 50",
        ]);
    });
}

#[test]
fn a_batch_is_checked_before_it_is_written() {
    on_both(async |broker| {
        let topic = broker.topic(1).await;
        let topic = (&topic.0, topic.1);
        let id = &*unique("tx");
        broker.coordinator(1, id).await;
        let (_, who) = broker.init(id, MINUTE, None).await;
        let now = now_ms();
        let plain = batch(NOBODY, 0, 0, now, 9);
        let mut damaged = BytesMut::from(&plain[..]);
        damaged[30] ^= 1;
        for (what, version, records) in [
            ("elsewhere in the log", 9, batch(NOBODY, 0, 7, now, 1)),
            ("two hours ahead", 9, batch(NOBODY, 0, 0, now + 7_200_000, 1)),
            ("of 1970", 9, batch(NOBODY, 0, 0, 1000, 1)),
            ("without a time", 9, batch(NOBODY, 0, 0, -1, 1)),
            ("transactional, of nobody", 9, within(who, 0)),
            ("a marker", 9, batch((who.0, who.1, 0), 0x20, 0, now, 1)),
            ("without a sequence", 9, batch((who.0, 0, -1), 0, 0, now, 1)),
            ("zstd before its time", 6, batch(NOBODY, 4, 0, now, 1)),
            ("two batches", 9, [&plain[..], &plain[..]].concat().into()),
            ("nothing", 9, Bytes::new()),
            ("cut off", 9, plain.slice(..plain.len() - 1)),
            ("damaged", 9, damaged.freeze()),
            ("too large", 9, batch(NOBODY, 0, 0, now, 2_000_000)),
        ] {
            broker.tell(what, broker.produce(version, None, topic, records).await.0);
        }
        broker.expect(&[
            "elsewhere in the log: 87",
            "two hours ahead: 32",
            "of 1970: 0",
            "without a time: 0",
            "transactional, of nobody: 53",
            "a marker: 87",
            "without a sequence: 87",
            "zstd before its time: 76",
            "two batches: 87",
            "nothing: 87",
            "cut off: 87",
            "damaged: 2",
            "too large: 10",
        ]);

        for (what, records) in [
            ("transactional", within(who, 0)),
            ("plain beside it", batch((who.0, who.1, 1), 0, 0, now, 1)),
            ("a gap", within(who, 5)),
            ("next", within(who, 1)),
        ] {
            broker.tell(what, broker.produce(12, Some(id), topic, records).await.0);
        }
        let plain = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let producer = broker.ask(4, &plain).await.producer_id.0;
        for (what, epoch, sequence) in [
            ("unknown here, from 5", 0, 5),
            ("the same again", 0, 5),
            ("the next", 0, 6),
            ("behind a gap", 0, 8),
            ("another epoch, from 3", 1, 3),
            ("another epoch", 1, 0),
            ("the old epoch", 0, 7),
            ("the old epoch again", 0, 6),
        ] {
            let records = batch((producer, epoch, sequence), 0, 0, now, 1);
            let (code, base, time) = broker.produce(9, None, topic, records).await;
            // A duplicate is told with its own time, as if it were the log's.
            broker.tell(what, (code, base, if time == now { "its time" } else { "none" }));
        }
        let data = PartitionProduceData::default().with_records(Some(batch(NOBODY, 0, 0, now, 1)));
        let data = TopicProduceData::default().with_name(topic.0.clone()).with_partition_data(vec![data]);
        let acks = ProduceRequest::default().with_acks(2).with_topic_data(vec![data]);
        broker.tell("acks 2", broker.ask(9, &acks).await.responses[0].partition_responses[0].error_code);
        broker.expect(&[
            "transactional: 0",
            "plain beside it: 48",
            "a gap: 45",
            "next: 0",
            "unknown here, from 5: (0, 4, \"none\")",
            "the same again: (0, 4, \"its time\")",
            "the next: (0, 5, \"none\")",
            "behind a gap: (45, -1, \"none\")",
            "another epoch, from 3: (45, -1, \"none\")",
            "another epoch: (0, 6, \"none\")",
            "the old epoch: (47, -1, \"none\")",
            "the old epoch again: (47, -1, \"none\")",
            "acks 2: 21",
        ]);
    });
}

fn commit(
    group: &str,
    member: &str,
    generation: i32,
    topic: &TopicName,
    metadata: usize,
) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(1)
        .with_committed_metadata(Some(text(&"x".repeat(metadata))));
    let topic = OffsetCommitRequestTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(text(member))
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![topic])
}

impl Broker {
    async fn commit(&self, version: i16, request: OffsetCommitRequest) -> i16 {
        let code = |answer: &OffsetCommitResponse| answer.topics[0].partitions[0].error_code;
        code(&self.settled(version, &request, code).await)
    }

    async fn commit_within(
        &self,
        version: i16,
        (id, who): (&str, Who),
        (group, member, generation): (&str, &str, i32),
        topic: &TopicName,
    ) -> i16 {
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_committed_offset(1)
            .with_committed_metadata(Some(text("")));
        let topic =
            TxnOffsetCommitRequestTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(id)))
            .with_group_id(GroupId(text(group)))
            .with_producer_id(who.0.into())
            .with_producer_epoch(who.1)
            .with_generation_id(generation)
            .with_member_id(text(member))
            .with_topics(vec![topic]);
        let code = |answer: &TxnOffsetCommitResponse| answer.topics[0].partitions[0].error_code;
        code(&self.settled(version, &request, code).await)
    }
}

#[test]
fn a_commit_must_come_from_the_group_and_be_short() {
    on_both(async |broker| {
        let topic = broker.topic(1).await.0;
        let (group, other) = (&*unique("g"), &*unique("g"));
        broker.coordinator(0, group).await;
        broker.coordinator(0, other).await;
        for (what, version, request) in [
            ("no group, version 8", 8, commit(group, "m", 3, &topic, 0)),
            ("no group", 9, commit(group, "m", 3, &topic, 0)),
            ("no group, by hand", 9, commit(group, "", -1, &topic, 0)),
            ("empty group", 9, commit(group, "m", 3, &topic, 0)),
            ("too much metadata", 9, commit(group, "", -1, &topic, 4097)),
            ("much metadata", 9, commit(group, "", -1, &topic, 4096)),
            ("no topic", 9, commit(group, "", -1, &topic_name("nowhere"), 0)),
        ] {
            broker.tell(what, broker.commit(version, request).await);
        }
        broker.expect(&[
            "no group, version 8: 22",
            "no group: 69",
            "no group, by hand: 0",
            "empty group: 25",
            "too much metadata: 12",
            "much metadata: 0",
            "no topic: 3",
        ]);

        let id = &*unique("tx");
        broker.coordinator(1, id).await;
        let (_, mut who) = broker.init(id, MINUTE, None).await;
        for (what, caller) in [
            ("no group", (other, "m", 3)),
            ("no group, by hand", (other, "", -1)),
            ("empty group", (group, "m", 3)),
        ] {
            broker.tell(what, broker.commit_within(5, (id, who), caller, &topic).await);
            // Whatever the group says, the transaction has begun.
            let (code, epoch) = broker.end(5, id, who, true).await;
            broker.tell("then commit", code);
            who.1 = epoch;
        }
        let by_hand = (group, "", -1);
        broker.tell("version 4, not added", broker.commit_within(4, (id, who), by_hand, &topic).await);
        broker.tell("version 3, not added", broker.commit_within(3, (id, who), by_hand, &topic).await);
        let old = (who.0, who.1 - 1);
        broker
            .tell("fenced, of no member", broker.commit_within(5, (id, old), (group, "m", 3), &topic).await);
        broker.tell("unknown", broker.commit_within(5, (&unique("no"), who), by_hand, &topic).await);
        broker.expect(&[
            "no group: 22",
            "then commit: 0",
            "no group, by hand: 0",
            "then commit: 0",
            "empty group: 25",
            "then commit: 0",
            "version 4, not added: 120",
            "version 3, not added: 48",
            "fenced, of no member: 47",
            "unknown: 49",
        ]);
    });
}

#[test]
fn members_of_kip_848_are_told_by_epoch_id_and_instance() {
    on_both(async |broker| {
        let (topic, topic_id) = broker.topic(4).await;
        let (group, id) = (&*unique("g"), &*unique("tx"));
        broker.coordinator(0, group).await;
        broker.coordinator(1, id).await;
        let beat = |member: &str, epoch: i32| {
            ConsumerGroupHeartbeatRequest::default()
                .with_group_id(GroupId(text(group)))
                .with_member_id(text(member))
                .with_member_epoch(epoch)
                .with_rebalance_timeout_ms(-1)
        };
        let join = |member: &str| {
            beat(member, 0)
                .with_rebalance_timeout_ms(60_000)
                .with_subscribed_topic_names(Some(vec![topic.clone()]))
                .with_topic_partitions(Some(vec![]))
        };
        let all = || {
            let all = TopicPartitions::default().with_topic_id(topic_id).with_partitions(vec![0, 1, 2, 3]);
            Some(vec![all])
        };
        let instance = |request: ConsumerGroupHeartbeatRequest, id| request.with_instance_id(Some(text(id)));
        let count = |answer: &ConsumerGroupHeartbeatResponse| {
            let assigned = answer.assignment.as_ref()?;
            Some(assigned.topic_partitions.iter().map(|t| t.partitions.len()).sum::<usize>())
        };
        for (what, request) in [
            ("no group", beat("a", 3)),
            ("no group, leave", beat("a", -1)),
            ("no member id", join("")),
            ("no subscription", join("a").with_subscribed_topic_names(None)),
            ("epoch -3", beat("a", -3)),
        ] {
            broker.tell(what, broker.beat(&request).await.error_code);
        }
        broker.expect(&[
            "no group: 69",
            "no group, leave: 69",
            "no member id: 42",
            "no subscription: 42",
            "epoch -3: 42",
        ]);

        // Apache Kafka lets a member in first, and may assign a little later. Joining again is no offence.
        let epoch = loop {
            let joined = broker.beat(&join("a")).await;
            assert_eq!(joined.error_code, 0, "{:?}", joined.error_message);
            if count(&joined) == Some(4) {
                break joined.member_epoch;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let full = || beat("a", epoch).with_rebalance_timeout_ms(60_000).with_topic_partitions(all());
        for (what, request) in [
            ("quiet", beat("a", epoch)),
            ("all but a subscription", full()),
            ("all", full().with_subscribed_topic_names(Some(vec![topic.clone()]))),
            ("unknown", beat("x", epoch)),
            ("ahead", beat("a", epoch + 5)),
            ("static", instance(join("s"), "i")),
            ("static again", instance(join("s"), "i")),
            ("static, another", instance(join("t"), "i")),
            ("static, another, joined", instance(beat("t", epoch + 1), "i")),
            ("static, unknown instance", instance(beat("s", epoch + 1), "j")),
            ("static, away", instance(beat("s", -2), "i")),
            ("static, away, beats", instance(beat("s", epoch + 1), "i")),
            ("leave", beat("a", -1)),
        ] {
            let answer = broker.beat(&request).await;
            broker.tell(what, (answer.error_code, count(&answer)));
        }
        broker.expect(&[
            "quiet: (0, None)",
            "all but a subscription: (0, None)",
            "all: (0, Some(4))",
            "unknown: (25, None)",
            "ahead: (110, None)",
            "static: (0, Some(0))",
            "static again: (111, None)",
            "static, another: (111, None)",
            "static, another, joined: (82, None)",
            "static, unknown instance: (25, None)",
            "static, away: (0, None)",
            "static, away, beats: (110, None)",
            "leave: (0, None)",
        ]);

        let epoch = broker.beat(&join("b")).await.member_epoch;
        let (_, who) = broker.init(id, MINUTE, None).await;
        for (what, member, at) in
            [("member", "b", epoch), ("ahead", "b", epoch + 9), ("unknown", "x", 3), ("by hand", "", -1)]
        {
            broker.tell(what, broker.commit(9, commit(group, member, at, &topic, 0)).await);
            let within = broker.commit_within(5, (id, who), (group, member, at), &topic).await;
            broker.tell("in a transaction", within);
        }
        broker.expect(&[
            "member: 0",
            "in a transaction: 0",
            "ahead: 113",
            "in a transaction: 22",
            "unknown: 25",
            "in a transaction: 25",
            "by hand: 25",
            "in a transaction: 0",
        ]);
    });
}

fn join(group: &str, member: &str, instance: Option<&str>, metadata: &'static [u8]) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(metadata));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

fn sync(group: &str, member: &str, assigned: Option<&'static [u8]>) -> SyncGroupRequest {
    let one = |bytes| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(member))
            .with_assignment(Bytes::from_static(bytes))
    };
    SyncGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(text(member))
        .with_group_instance_id(Some(text("i")))
        .with_generation_id(1)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignments(assigned.map(one).into_iter().collect())
}

#[test]
fn a_static_member_of_a_classic_group_comes_back_to_what_it_had() {
    on_both(async |broker| {
        for (version, back) in [(9, "(1, 1, true, true)"), (7, "(1, 0, false, false)")] {
            let group = &*unique("g");
            broker.coordinator(0, group).await;
            let first = broker.ask(version, &join(group, "", Some("i"), b"one")).await;
            broker.tell("join", (first.error_code, first.generation_id, first.members.len()));
            let synced = broker.ask(5, &sync(group, &first.member_id, Some(b"mine"))).await;
            assert_eq!(&synced.assignment[..], b"mine");
            let mut last = first.member_id.clone();
            // Also if it subscribes to something else.
            for metadata in [b"one", b"two"] {
                let again = broker.ask(version, &join(group, "", Some("i"), metadata)).await;
                let leads = again.leader == again.member_id;
                broker.tell("back", (again.generation_id, again.members.len(), leads, again.skip_assignment));
                last = again.member_id;
                let synced = broker.ask(5, &sync(group, &last, None)).await;
                assert_eq!(&synced.assignment[..], b"mine");
            }
            let beat = |id: &StrBytes, generation: i32| {
                HeartbeatRequest::default()
                    .with_group_id(GroupId(text(group)))
                    .with_member_id(id.clone())
                    .with_group_instance_id(Some(text("i")))
                    .with_generation_id(generation)
            };
            broker.tell("its old self", broker.ask(4, &beat(&first.member_id, 1)).await.error_code);
            broker.tell("another generation", broker.ask(4, &beat(&last, 7)).await.error_code);
            let member = MemberIdentity::default().with_group_instance_id(Some(text("i")));
            let leave =
                LeaveGroupRequest::default().with_group_id(GroupId(text(group))).with_members(vec![member]);
            broker.tell("put out", broker.ask(5, &leave).await.members[0].error_code);
            broker.tell("put out again", broker.ask(5, &leave).await.members[0].error_code);
            broker.tell("beat", broker.ask(4, &beat(&last, 1)).await.error_code);
            let back = format!("back: {back}");
            broker.expect(&[
                "join: (0, 1, 1)",
                &back,
                &back,
                "its old self: 82",
                "another generation: 22",
                "put out: 0",
                "put out again: 25",
                "beat: 25",
            ]);
        }
    });
}

#[test]
fn a_fetch_is_cut_at_its_limit_and_a_session_ends_with_its_last_partition() {
    on_both(async |broker| {
        let (name, id) = broker.topic(1).await;
        let one = batch(NOBODY, 0, 0, now_ms(), 1000);
        for _ in 0..3 {
            broker.produce(9, None, (&name, id), one.clone()).await;
        }
        let ask = |offset: i64, max: i32, session: (i32, i32)| {
            let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(max);
            let topic = FetchTopic::default()
                .with_topic(name.clone())
                .with_topic_id(id)
                .with_partitions(vec![partition]);
            FetchRequest::default()
                .with_max_wait_ms(100)
                .with_min_bytes(1)
                .with_max_bytes(1 << 20)
                .with_session_id(session.0)
                .with_session_epoch(session.1)
                .with_topics(vec![topic])
        };
        for (max, expected) in [(1, one.len()), (1100, 1100), (2500, 2500), (9000, 3 * one.len())] {
            let answer = broker.ask(12, &ask(0, max, (0, -1))).await;
            let records = answer.responses[0].partitions[0].records.as_ref().map_or(0, Bytes::len);
            assert_eq!(records, expected, "{max} at {}", broker.address);
        }
        let session = broker.ask(13, &ask(3, 1000, (0, 0))).await.session_id;
        assert_ne!(session, 0);
        let told =
            |answer: FetchResponse| (answer.error_code, answer.session_id == session, answer.responses.len());
        let mut by_name = ask(3, 1000, (session, 1));
        by_name.topics[0].topic_id = Uuid::nil();
        broker.tell("by name", told(broker.ask(12, &by_name).await));
        let mut next = ask(3, 1000, (session, 1));
        next.topics.clear();
        broker.tell("next", told(broker.ask(13, &next).await));
        broker.tell("the same epoch", told(broker.ask(13, &next).await));
        next.session_epoch = 2;
        next.forgotten_topics_data =
            vec![ForgottenTopic::default().with_topic_id(id).with_partitions(vec![0])];
        broker.tell("all forgotten", told(broker.ask(13, &next).await));
        next.session_epoch = 3;
        broker.tell("next", told(broker.ask(13, &next).await));
        broker.expect(&[
            "by name: (106, false, 0)",
            "next: (0, true, 0)",
            "the same epoch: (71, false, 0)",
            "all forgotten: (0, false, 0)",
            "next: (70, false, 0)",
        ]);
    });
}

#[test]
fn versions_are_told_to_who_has_a_name_and_topics_do_not_collide() {
    on_both(async |broker| {
        for name in ["", "a b", "-a", "kit.1"] {
            let request = ApiVersionsRequest::default()
                .with_client_software_name(text(name))
                .with_client_software_version(text("1"));
            let answer = broker.ask(3, &request).await;
            broker.tell(name, (answer.error_code, answer.api_keys.len() > 1));
        }
        let dotted = unique("a.b");
        for name in [dotted.clone(), dotted.replace('.', "_")] {
            let topic = CreatableTopic::default()
                .with_name(topic_name(&name))
                .with_num_partitions(1)
                .with_replication_factor(1);
            let request = CreateTopicsRequest::default().with_timeout_ms(9000).with_topics(vec![topic]);
            broker.tell("topic", broker.ask(7, &request).await.topics[0].error_code);
        }
        broker.expect(&[
            ": (42, false)",
            "a b: (42, false)",
            "-a: (42, false)",
            "kit.1: (0, true)",
            "topic: 0",
            "topic: 17",
        ]);
    });
}
