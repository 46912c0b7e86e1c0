//! The peers: an ordinary broker behind somebody who changes what it says.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, NewRecord, Profile},
};
use kafka_protocol::{
    messages::{self as wire, RequestHeader},
    protocol::{Decodable, Encodable, StrBytes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    batches::{Codec, at, batch},
    clients::Kind,
};

pub(crate) const TOPIC: &str = "t";

/// The largest answer that a client takes unless it is told otherwise, of Fetch and of anything else.
const LARGEST_FETCH: usize = 32 << 20;
const LARGEST_OTHER: usize = 4 << 20;

/// A request, as far as it was looked at.
pub(crate) struct Asked {
    key: i16,
    version: i16,
    correlation: [u8; 4],
    frame: Bytes,
    /// Of this peer.
    number: u64,
}

impl Asked {
    fn is(&self, key: ApiKey) -> bool {
        self.key == key as i16
    }

    /// The bytes of an answer before its body.
    fn head(&self) -> Vec<u8> {
        let mut head = self.correlation.to_vec();
        let flexible =
            ApiKey::try_from(self.key).is_ok_and(|key| key.response_header_version(self.version) > 0);
        head.extend(flexible.then_some(0));
        head
    }

    /// A whole answer.
    fn answer(&self, message: &impl Encodable) -> Option<Reply> {
        let mut frame = self.head();
        message.encode(&mut frame, self.version).unwrap();
        Some(Reply::Bytes(framed(&frame)))
    }

    fn read<R: Decodable>(&self) -> R {
        let mut frame = self.frame.clone();
        let header = ApiKey::try_from(self.key).unwrap().request_header_version(self.version);
        RequestHeader::decode(&mut frame, header).unwrap();
        R::decode(&mut frame, self.version).unwrap()
    }
}

/// A large answer, written once for each version.
#[derive(Default)]
struct Made(Mutex<BTreeMap<(i16, i16), Bytes>>);

impl Made {
    fn answer<M: Encodable>(&self, asked: &Asked, make: impl FnOnce() -> M) -> Option<Reply> {
        let mut made = self.0.lock().unwrap();
        let body = made.entry((asked.key, asked.version)).or_insert_with(|| {
            let mut body = Vec::new();
            make().encode(&mut body, asked.version).unwrap();
            body.into()
        });
        let mut frame = asked.head();
        frame.extend_from_slice(body);
        Some(Reply::Bytes(framed(&frame)))
    }
}

/// What a client gets.
enum Reply {
    Bytes(Vec<u8>),
    /// So many bytes at a time.
    Slowly(Vec<u8>, usize, Duration),
    /// These, and then the others for ever.
    Endless(Vec<u8>, Vec<u8>, Duration),
    /// The connection stays open, and nobody reads or writes.
    Nothing,
}

/// An act that has large answers.
fn with_made(
    act: impl Fn(&Asked, Option<&[u8]>, &Made) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&Asked, Option<&[u8]>) -> Option<Reply> + Send + Sync + 'static {
    let made = Made::default();
    move |asked, answer| act(asked, answer, &made)
}

/// Says what becomes of a request: first without the broker's answer, then, where it said nothing, with it.
type Act = Arc<dyn Fn(&Asked, Option<&[u8]>) -> Option<Reply> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    kinds: &'static [Kind],
    /// Before anything was asked.
    greets: Option<fn() -> Reply>,
    act: Act,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn peer(
    name: &'static str,
    kinds: &'static [Kind],
    act: impl Fn(&Asked, Option<&[u8]>) -> Option<Reply> + Send + Sync + 'static,
) -> Peer {
    Peer { name, kinds, greets: None, act: Arc::new(act) }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    bytes
}

/// The head of the largest answer that a client takes.
fn largest(asked: &Asked) -> Vec<u8> {
    let size = if asked.is(ApiKey::Fetch) { LARGEST_FETCH } else { LARGEST_OTHER };
    [&(size as u32).to_be_bytes()[..], &asked.correlation].concat()
}

fn honest(answer: Option<&[u8]>) -> Option<Reply> {
    answer.map(|frame| Reply::Bytes(framed(frame)))
}

fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count).map(|_| next() as u8).collect()
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

const EVERY: &[Kind] = &Kind::ALL;
const CONSUMERS: &[Kind] = &[Kind::Reader, Kind::Member];

impl Peer {
    pub(crate) fn suits(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    pub(crate) fn all() -> Vec<Self> {
        [frames(), answers(), records()].into_iter().flatten().collect()
    }
}

/// Those that do not keep to the framing.
fn frames() -> Vec<Peer> {
    let greeting = |name, greets: fn() -> Reply| Peer {
        greets: Some(greets),
        ..peer(name, &[Kind::Producer], |_, answer| honest(answer))
    };
    vec![
        greeting("endless noise before anything was asked", || {
            Reply::Endless(noise(1, 100), noise(2, 1 << 16), Duration::ZERO)
        }),
        greeting("no reading at all", || Reply::Nothing),
        peer("endless noise after the versions", EVERY, |asked, answer| {
            if asked.is(ApiKey::ApiVersions) {
                return honest(answer);
            }
            Some(Reply::Endless(noise(asked.number, 100), noise(2, 1 << 16), Duration::ZERO))
        }),
        peer("answers that are noise", EVERY, |asked, answer| {
            if asked.is(ApiKey::ApiVersions) && asked.number % 4 > 0 {
                return honest(answer);
            }
            let mut frame = asked.head();
            frame.extend(noise(asked.number, 3000));
            Some(Reply::Bytes(framed(&frame)))
        }),
        peer("lengths that cannot be", EVERY, |asked, answer| {
            if asked.is(ApiKey::ApiVersions) && asked.number % 4 > 0 {
                return honest(answer);
            }
            let lengths = [i32::MIN, -1, 0, 3, i32::MAX, (100 << 20) + 1];
            let mut bytes = lengths[asked.number as usize % lengths.len()].to_be_bytes().to_vec();
            bytes.extend(asked.correlation);
            bytes.resize(1000, 0);
            Some(Reply::Bytes(bytes))
        }),
        peer("the largest answer, of which nothing comes", EVERY, |asked, answer| match asked.key {
            18 => honest(answer),
            _ => Some(Reply::Endless(largest(asked), vec![0], Duration::from_secs(3600))),
        }),
        peer("the largest answer, as fast as it goes", EVERY, |asked, answer| match asked.key {
            18 => honest(answer),
            _ => Some(Reply::Endless(largest(asked), vec![0; 1 << 16], Duration::ZERO)),
        }),
        peer("the largest answer to a fetch, as fast as it goes", CONSUMERS, |asked, answer| {
            match asked.key {
                1 => Some(Reply::Endless(largest(asked), vec![0; 1 << 16], Duration::ZERO)),
                _ => honest(answer),
            }
        }),
        peer("an endless trickle", EVERY, |asked, answer| match asked.key {
            18 => honest(answer),
            _ => Some(Reply::Endless(largest(asked), vec![0; 100], Duration::from_millis(1))),
        }),
        peer("every answer a byte at a time", EVERY, |_, answer| {
            Some(Reply::Slowly(framed(answer?), 1, Duration::from_millis(1)))
        }),
        peer("no reading from the first Produce or Fetch on", EVERY, |asked, answer| match asked.key {
            0 | 1 => Some(Reply::Nothing),
            _ => honest(answer),
        }),
        peer("other correlation ids", EVERY, |asked, answer| {
            let mut frame = answer?.to_vec();
            frame[1] ^= asked.number as u8;
            Some(Reply::Bytes(framed(&frame)))
        }),
        peer("answers nobody asked for", EVERY, |asked, answer| {
            let mut bytes = framed(answer?);
            if !asked.is(ApiKey::ApiVersions) {
                bytes.extend([0u8, 0, 0, 4, 0x7f, 0, 0, 1].repeat(50_000));
            }
            Some(Reply::Bytes(bytes))
        }),
        peer("every answer twice", EVERY, |_, answer| Some(Reply::Bytes(framed(answer?).repeat(2)))),
    ]
}

/// Those whose answers lie.
fn answers() -> Vec<Peer> {
    vec![
        peer("counts without elements", EVERY, |asked, answer| {
            let frame = answer?;
            if asked.is(ApiKey::ApiVersions) && asked.number % 4 > 0 {
                return honest(answer);
            }
            let head = asked.head().len();
            let keep = head + (asked.number as usize * 7) % (frame.len() - head).max(1);
            let mut bent = frame[..keep].to_vec();
            if asked.number % 2 == 0 {
                bent.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
            } else {
                bent.extend(i32::MAX.to_be_bytes());
            }
            bent.extend_from_slice(&frame[keep..]);
            Some(Reply::Bytes(framed(&bent)))
        }),
        peer(
            "a million versions",
            EVERY,
            with_made(|asked, answer, made| {
                if !asked.is(ApiKey::ApiVersions) || asked.number % 2 > 0 {
                    return honest(answer);
                }
                let keys = (0..140_000).map(|n| {
                    wire::api_versions_response::ApiVersion::default()
                        .with_api_key(n as i16)
                        .with_max_version(i16::MAX)
                });
                made.answer(asked, || wire::ApiVersionsResponse::default().with_api_keys(keys.collect()))
            }),
        ),
        peer("versions that are always other ones", EVERY, |asked, _| {
            let versions =
                wire::api_versions_response::ApiVersion::default().with_api_key(18).with_max_version(3);
            let refusal =
                wire::ApiVersionsResponse::default().with_error_code(35).with_api_keys(vec![versions]);
            let mut frame = asked.head();
            refusal.encode(&mut frame, 0).unwrap();
            Some(Reply::Bytes(framed(&frame)))
        }),
        peer(
            "as many partitions as fit",
            EVERY,
            with_made(|asked, answer, made| match asked.key {
                3 => made.answer(asked, || metadata(1, 1, 1 << 20)),
                _ => honest(answer),
            }),
        ),
        peer(
            "as many brokers as fit",
            EVERY,
            with_made(|asked, answer, made| match asked.key {
                3 => made.answer(asked, || metadata(1 << 20, 1, 1)),
                _ => honest(answer),
            }),
        ),
        peer(
            "as many topics as fit",
            EVERY,
            with_made(|asked, answer, made| match asked.key {
                3 => made.answer(asked, || metadata(1, 1 << 20, 1)),
                _ => honest(answer),
            }),
        ),
        peer("brokers that cannot be", EVERY, |asked, answer| match asked.key {
            3 => asked.answer(&odd_brokers(asked.number)),
            10 => asked
                .answer(&wire::FindCoordinatorResponse::default().with_node_id((-7).into()).with_port(-1)),
            _ => honest(answer),
        }),
        peer(
            "a group of as many members as fit",
            &[Kind::Member, Kind::Admin],
            with_made(|asked, answer, made| {
                let listed = |n: i32| {
                    wire::list_groups_response::ListedGroup::default()
                        .with_group_id(text(n.to_string()).into())
                };
                match asked.key {
                    11 => made.answer(asked, || joined(150_000)),
                    16 => made.answer(asked, || {
                        wire::ListGroupsResponse::default().with_groups((0..350_000).map(listed).collect())
                    }),
                    _ => honest(answer),
                }
            }),
        ),
        peer(
            "an assignment of as many partitions as fit",
            &[Kind::Member],
            with_made(|asked, answer, made| match asked.key {
                14 => made.answer(asked, || assigned(1_000_000)),
                _ => honest(answer),
            }),
        ),
        peer(
            "an assignment of as many partitions as a member may have",
            &[Kind::Member],
            with_made(|asked, answer, made| match asked.key {
                14 => made.answer(asked, || assigned(50_000)),
                _ => honest(answer),
            }),
        ),
        peer(
            "members with as many partitions as fit",
            &[Kind::Member],
            with_made(|asked, answer, made| match asked.key {
                11 => made.answer(asked, || owners(20, 50_000)),
                _ => honest(answer),
            }),
        ),
        peer(
            "committed offsets of partitions nobody asked about",
            &[Kind::Member, Kind::Admin],
            with_made(|asked, answer, made| match asked.key {
                9 => made.answer(asked, foreign_committed),
                _ => honest(answer),
            }),
        ),
        peer("ids of producers that cannot be", &[Kind::Producer], |asked, answer| match asked.key {
            22 => asked.answer(&wire::InitProducerIdResponse::default().with_producer_id((-1).into())),
            _ => honest(answer),
        }),
        peer(
            "offsets of partitions nobody asked about",
            EVERY,
            with_made(|asked, answer, made| match asked.key {
                2 => made.answer(asked, foreign_offsets),
                _ => honest(answer),
            }),
        ),
        peer(
            "acknowledgements of partitions that were not sent",
            &[Kind::Producer],
            with_made(|asked, answer, made| match asked.key {
                0 => made.answer(asked, foreign_acknowledgements),
                _ => honest(answer),
            }),
        ),
    ]
}

/// A member's partitions of the topic, as groups write them.
fn partitions_of_a_member(count: i32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 1, 0, 1, b't'];
    bytes.extend(count.to_be_bytes());
    bytes.extend((0..count).flat_map(i32::to_be_bytes));
    bytes
}

/// An assignment of so many partitions.
fn assigned(count: i32) -> wire::SyncGroupResponse {
    let assignment = [&[0, 0][..], &partitions_of_a_member(count), &[0; 4]].concat();
    wire::SyncGroupResponse::default()
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignment(assignment.into())
}

/// Members that say that they have so many partitions each.
fn owners(members: i32, partitions: i32) -> wire::JoinGroupResponse {
    let owned = partitions_of_a_member(partitions);
    let metadata =
        Bytes::from([&[0, 1, 0, 0, 0, 1, 0, 1, b't', 0xff, 0xff, 0xff, 0xff][..], &owned].concat());
    let mut joined = joined(members);
    for member in &mut joined.members {
        member.metadata = metadata.clone();
    }
    joined
}

fn foreign_committed() -> wire::OffsetFetchResponse {
    use wire::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
    let partition = |n: i32| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(n % 40_000 - 100)
            .with_committed_offset(i64::MAX - 1)
    };
    let topic = |name: &str| {
        OffsetFetchResponseTopic::default()
            .with_name(text(name).into())
            .with_partitions((0..80_000).map(partition).collect())
    };
    wire::OffsetFetchResponse::default().with_topics(vec![topic("other"), topic(TOPIC)])
}

fn foreign_offsets() -> wire::ListOffsetsResponse {
    let partition = |n: i32| {
        wire::list_offsets_response::ListOffsetsPartitionResponse::default()
            .with_partition_index(n % 7 - 3)
            .with_offset(i64::MAX)
    };
    let topic = |name: &str| {
        wire::list_offsets_response::ListOffsetsTopicResponse::default()
            .with_name(text(name).into())
            .with_partitions((0..100_000).map(partition).collect())
    };
    wire::ListOffsetsResponse::default().with_topics(vec![topic(TOPIC), topic("other")])
}

fn foreign_acknowledgements() -> wire::ProduceResponse {
    let partition = |n: i32| {
        wire::produce_response::PartitionProduceResponse::default()
            .with_index(n % 5 - 2)
            .with_base_offset(i64::MAX - 1)
    };
    let topic = |name: &str| {
        wire::produce_response::TopicProduceResponse::default()
            .with_name(text(name).into())
            .with_partition_responses((0..50_000).map(partition).collect())
    };
    wire::ProduceResponse::default().with_responses(vec![topic("other"), topic(TOPIC)])
}

fn joined(members: i32) -> wire::JoinGroupResponse {
    let member = |n: i32| {
        wire::join_group_response::JoinGroupResponseMember::default()
            .with_member_id(text(n.to_string()))
            .with_metadata(Bytes::from_static(&[0, 0, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 0]))
    };
    wire::JoinGroupResponse::default()
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_generation_id(1)
        .with_leader(text("0"))
        .with_member_id(text("0"))
        .with_members((0..members).map(member).collect())
}

fn metadata(brokers: i32, topics: i32, partitions: i32) -> wire::MetadataResponse {
    const ROOM: i32 = (LARGEST_OTHER - 1000) as i32;
    let broker = |id: i32| {
        wire::metadata_response::MetadataResponseBroker::default()
            .with_node_id(id.into())
            .with_host(text("h"))
            .with_port(9092)
    };
    let partition = |n: i32| {
        wire::metadata_response::MetadataResponsePartition::default()
            .with_partition_index(n)
            .with_leader_id(1.into())
    };
    let count = |wanted: i32, size: i32| if wanted > 1 { wanted.min(ROOM / size) } else { wanted };
    let partitions: Vec<_> = (0..count(partitions, 26)).map(partition).collect();
    let topic = |n: i32| {
        let name = if n == 0 { TOPIC.to_owned() } else { n.to_string() };
        wire::metadata_response::MetadataResponseTopic::default()
            .with_name(Some(text(name).into()))
            .with_partitions(partitions.clone())
    };
    wire::MetadataResponse::default()
        .with_brokers((1..=count(brokers, 14)).map(broker).collect())
        .with_topics((0..count(topics, 60)).map(topic).collect())
}

fn odd_brokers(number: u64) -> wire::MetadataResponse {
    let broker = |(id, host, port): (i32, &str, i32)| {
        wire::metadata_response::MetadataResponseBroker::default()
            .with_node_id(id.into())
            .with_host(text(host))
            .with_port(port)
    };
    let odd = [
        (-1, "h", 9092),
        (-2, "h", 1),
        (i32::MIN, "h", 9),
        (i32::MAX, "h", 9),
        (1, "", 9092),
        (1, "h", 0),
        (1, "h", -1),
        (1, "h", 70_000),
        (2, "h", 9092),
        (2, "x", 9092),
    ];
    let mut metadata = metadata(0, 1, 3);
    metadata.brokers = odd.into_iter().map(broker).collect();
    // Each answer knows a thousand others.
    metadata.brokers.extend((0..1000).map(|n| broker((n * 7 + number as i32 * 1000, "h", 9092))));
    metadata.controller_id = (-5).into();
    metadata
}

/// Those whose records are none.
fn records() -> Vec<Peer> {
    let fetched = |name, batches: fn() -> Vec<Bytes>| {
        let made = LazyLock::new(batches);
        peer(name, CONSUMERS, move |asked, answer| match asked.key {
            1 => {
                let batches: &Vec<Bytes> = &made;
                asked.answer(&fetch(asked, batches))
            }
            _ => honest(answer),
        })
    };
    vec![
        fetched("a gzip bomb", || vec![batch(Codec::Gzip, 1, 300 << 20, 1)]),
        fetched("a snappy bomb", || vec![batch(Codec::Snappy, 1, 150 << 20, 1)]),
        fetched("an lz4 bomb", || vec![batch(Codec::Lz4, 1, 300 << 20, 1)]),
        fetched("a zstd bomb", || vec![batch(Codec::Zstd, 1, 300 << 20, 1)]),
        fetched("a chain of gzip bombs below the limit", || vec![batch(Codec::Gzip, 1, 31 << 20, 1); 20]),
        fetched("a chain of zstd bombs below the limit", || vec![batch(Codec::Zstd, 31, 1 << 20, 31); 50]),
        fetched("a chain of lz4 bombs below the limit", || vec![batch(Codec::Lz4, 1, 31 << 20, 1); 20]),
        fetched("a chain of snappy bombs below the limit", || vec![batch(Codec::Snappy, 1, 31 << 20, 1); 5]),
        fetched("records of nothing", || vec![batch(Codec::Zstd, 500_000, 0, 500_000); 20]),
        fetched("records of nothing, as they are", || vec![batch(Codec::None, 500_000, 0, 500_000); 2]),
        fetched("more records than there are", || vec![batch(Codec::Gzip, 10, 10, i32::MAX); 20]),
        fetched("only the start of a batch", || vec![batch(Codec::None, 10, 100, 10).slice(..300)]),
        fetched("noise for records", || vec![Bytes::from(noise(5, 4 << 20))]),
        peer(
            "as many partitions in a fetch as fit",
            CONSUMERS,
            with_made(|asked, answer, made| match asked.key {
                1 => made.answer(asked, many_fetched),
                _ => honest(answer),
            }),
        ),
        peer("records of partitions nobody asked for", CONSUMERS, |asked, answer| match asked.key {
            1 => {
                let mut fetched = fetch(asked, &[batch(Codec::None, 100, 1000, 100)]);
                let topic = fetched.responses.remove(0);
                for n in 0..100 {
                    let mut topic = topic.clone();
                    if n % 3 > 0 {
                        topic.topic = text(format!("other-{n}")).into();
                    }
                    topic.partitions[0].partition_index = n % 5 - 2;
                    fetched.responses.push(topic);
                }
                asked.answer(&fetched)
            }
            _ => honest(answer),
        }),
        peer("positions that cannot be", CONSUMERS, |asked, answer| match asked.key {
            1 => {
                let mut fetched = fetch(asked, &[batch(Codec::None, 10, 100, 10)]);
                let offsets = [i64::MIN, -1, i64::MAX, 0, 1 << 40];
                let offset = offsets[asked.number as usize % offsets.len()];
                let partition = &mut fetched.responses[0].partitions[0];
                partition.high_watermark = offset;
                partition.last_stable_offset = offset;
                partition.log_start_offset = offset;
                partition.records = Some(at(&batch(Codec::None, 10, 100, 10), offset).into());
                partition.error_code = if asked.number % 3 == 0 { 1 } else { 0 };
                asked.answer(&fetched)
            }
            _ => honest(answer),
        }),
    ]
}

fn many_fetched() -> wire::FetchResponse {
    let partition = |n: i32| wire::fetch_response::PartitionData::default().with_partition_index(n);
    let topic = wire::fetch_response::FetchableTopicResponse::default()
        .with_topic(text(TOPIC).into())
        .with_partitions((0..600_000).map(partition).collect());
    wire::FetchResponse::default().with_responses(vec![topic])
}

/// An answer with these batches, from where the client reads.
fn fetch(asked: &Asked, batches: &[Bytes]) -> wire::FetchResponse {
    let request: wire::FetchRequest = asked.read();
    let wanted = request.topics.iter().flat_map(|topic| &topic.partitions).next();
    let mut offset = wanted.map_or(0, |partition| partition.fetch_offset);
    let mut records = Vec::new();
    for batch in batches {
        records.extend(at(batch, offset));
        let last = batch
            .get(23..27)
            .and_then(|delta| delta.first_chunk::<4>())
            .map_or(0, |delta| i32::from_be_bytes(*delta));
        offset = offset.saturating_add(i64::from(last.clamp(0, 1 << 20)) + 1);
    }
    let partition = wire::fetch_response::PartitionData::default()
        .with_partition_index(0)
        .with_high_watermark(i64::MAX - 1)
        .with_last_stable_offset(i64::MAX - 1)
        .with_records(Some(records.into()));
    let topic = wire::fetch_response::FetchableTopicResponse::default()
        .with_topic(text(TOPIC).into())
        .with_partitions(vec![partition]);
    wire::FetchResponse::default().with_responses(vec![topic])
}

/// Opens the peer's port; counts what it is asked.
pub(crate) async fn listen(peer: Peer) -> (u16, Arc<AtomicU64>) {
    let broker = EmbeddedBroker::builder().profile(Profile::Kafka28).start().await.unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    for n in 0..10 {
        broker.feed(TOPIC, 0, NewRecord::new(n.to_string())).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let to = broker.bootstrap_servers();
        while let Ok((near, _)) = listener.accept().await {
            let (peer, to, count) = (peer.clone(), to.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                // The client has closed, or the peer has done what it does.
                let _ = serve(&peer, near, &to, &count).await;
            });
        }
    });
    (port, asked)
}

async fn serve(peer: &Peer, mut near: TcpStream, to: &str, count: &AtomicU64) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    let mut far = TcpStream::connect(to).await?;
    if let Some(greets) = peer.greets {
        count.fetch_add(1, Ordering::Relaxed);
        return reply(&mut near, greets()).await;
    }
    loop {
        let frame = read_frame(&mut near).await?;
        let short = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
        let correlation = [frame[4], frame[5], frame[6], frame[7]];
        let number = count.fetch_add(1, Ordering::Relaxed);
        let asked = Asked { key: short(0), version: short(2), correlation, frame: frame.clone(), number };
        let answer = match (peer.act)(&asked, None) {
            Some(answer) => answer,
            None => {
                far.write_all(&framed(&frame)).await?;
                let answer = read_frame(&mut far).await?;
                let Some(answer) = (peer.act)(&asked, Some(&answer)) else { return Ok(()) };
                answer
            }
        };
        reply(&mut near, answer).await?;
    }
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

async fn reply(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    match reply {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await,
        Reply::Slowly(bytes, step, pause) => {
            for part in bytes.chunks(step) {
                stream.write_all(part).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        }
        Reply::Endless(first, then, pause) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&then).await?;
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Reply::Nothing => std::future::pending().await,
    }
}
