//! The tables against other implementations of the protocol, and the codec against hostile bytes.

use bytes::Bytes;

use super::*;

/// Generates messages. Seeded.
pub(crate) struct Samples {
    state: u64,
    pub(crate) version: i16,
    pub(crate) flexible: bool,
    /// Whether the field that is made may be null.
    pub(crate) nullable: bool,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Null where there may be null, else empty, else 0.
    Empty,
    /// Every field has a value, and every array one element.
    Full,
    Random,
}

impl Samples {
    fn new(seed: u64, version: i16, flexible: bool) -> Self {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
        Self { state, version, flexible, nullable: true, mode: Mode::Random }
    }

    /// SplitMix64; often small.
    pub(crate) fn number(&mut self) -> u64 {
        if self.mode == Mode::Empty {
            return 0;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        if self.mode == Mode::Full {
            return 1 + mixed % 100;
        }
        match mixed % 4 {
            0 => mixed >> 2,
            1 => (mixed >> 2) % 1000,
            2 => u64::MAX,
            _ => 0,
        }
    }

    pub(crate) fn null(&mut self) -> bool {
        self.nullable && self.mode != Mode::Full && self.number().is_multiple_of(3)
    }

    pub(crate) fn count(&mut self) -> u64 {
        if self.mode == Mode::Full { 1 } else { self.number() % 4 }
    }

    pub(crate) fn text(&mut self) -> String {
        match self.number() % 8 {
            number if self.mode == Mode::Full => format!("t{number}"),
            0 => String::new(),
            1 => "é€😀".repeat(1 + (self.number() % 40) as usize),
            2 => "long".repeat(70),
            _ => format!("text-{}", self.number()),
        }
    }
}

/// Adds tagged fields that nobody knows to a message of kafka-protocol's. `untagged`: it has none in any version.
macro_rules! add_unknown {
    () => {
        |message| message.unknown_tagged_fields.extend(unknown())
    };
    (untagged) => {
        |_| ()
    };
}

fn unknown() -> [(i32, Bytes); 2] {
    [(9_999, Bytes::from_static(b"from the future")), (2_000_000, Bytes::new())]
}

/// Versions that kafka-protocol's newest release lacks: `(API, first missing, highest of the table)`. Kafka's own classes
/// stand in for it there.
const JAVA_ONLY: &[(&str, i16, i16)] = &[
    ("ListOffsets", 11, 11),
    ("OffsetCommit", 10, 10),
    ("OffsetFetch", 10, 10),
    ("ApiVersions", 4, 5),
    ("InitProducerId", 6, 6),
    ("TxnOffsetCommit", 6, 6),
    ("DeleteGroups", 3, 3),
];

#[test]
fn every_message_of_every_version_has_the_bytes_that_kafka_protocol_writes() {
    fn check<A: Api, T: Whole, K>(name: &str, add_unknown: fn(&mut K))
    where
        K: kafka_protocol::protocol::Encodable
            + kafka_protocol::protocol::Decodable
            + kafka_protocol::protocol::Message
            + kafka_protocol::protocol::HeaderVersion
            + Clone,
    {
        let (low, high) = A::TABLE;
        let theirs = JAVA_ONLY.iter().find(|row| row.0 == A::NAME).map_or(high, |row| {
            assert_eq!(row.2, high, "the table of {name} has grown");
            row.1 - 1
        });
        assert!(A::MIN >= low && A::MAX <= high, "{name} speaks what its table lacks");
        for version in low..=theirs {
            let flexible = version >= A::FLEXIBLE;
            let header = if name.ends_with("Request") {
                1 + i16::from(flexible)
            } else {
                i16::from(version >= A::RESPONSE_FLEXIBLE)
            };
            assert_eq!(K::header_version(version), header, "header of {name} version {version}");
            for seed in 0..60 {
                let place = format!("{name} version {version}, seed {seed}");
                let mut samples = Samples::new(seed, version, flexible);
                samples.mode = match seed {
                    0 => Mode::Empty,
                    1 => Mode::Full,
                    _ => Mode::Random,
                };
                let ours = T::sample(&mut samples);
                let mut bytes = Vec::new();
                encode(&ours, version, flexible, &mut bytes)
                    .unwrap_or_else(|error| panic!("{place}: {error}"));

                let mut buffer = Bytes::from(bytes.clone());
                let mut read =
                    K::decode(&mut buffer, version).unwrap_or_else(|error| panic!("{place}: {error}"));
                assert!(buffer.is_empty(), "{place}: kafka-protocol leaves {} bytes", buffer.len());
                let mut theirs = Vec::new();
                read.encode(&mut theirs, version).unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(theirs, bytes, "{place}: {ours:?}");

                if flexible {
                    add_unknown(&mut read);
                    theirs.clear();
                    read.encode(&mut theirs, version).unwrap();
                    assert!(theirs.len() > bytes.len() + 15);
                }
                let again: T = decode(theirs.into(), version, flexible, false)
                    .unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(again, ours, "{place}");
            }
        }
    }
    // Its types here, and those of kafka-protocol.
    macro_rules! check_both {
        ($($request:ident $([$none:ident])?)+) => {$({
            type Kafka = kafka_protocol::messages::$request;
            type Answer = <Kafka as kafka_protocol::protocol::Request>::Response;
            let name = stringify!($request);
            assert_eq!($request::KEY, <Kafka as kafka_protocol::protocol::Request>::KEY);
            check::<$request, $request, Kafka>(name, add_unknown!($($none)?));
            check::<$request, <$request as Api>::Response, Answer>(
                &name.replace("Request", "Response"),
                add_unknown!($($none)?),
            );
        })+};
    }
    every_api!(check_both);
}

fn read<A: Api>(version: i16, bytes: &[u8]) -> Result<A::Response, String> {
    A::decode(Bytes::copy_from_slice(bytes), version).map_err(|error| error.to_string())
}

#[test]
fn a_count_is_compared_with_what_is_left_before_memory_is_reserved() {
    // 4,294,967,294 API versions, then nothing: 24 GB, were it believed.
    let error = read::<ApiVersionsRequest>(3, &[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err();
    assert_eq!(error, "api_keys: 4294967294 elements of 6 bytes or more are announced, 0 bytes are left");
    let error = read::<ApiVersionsRequest>(0, &[0, 0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3]).unwrap_err();
    assert_eq!(error, "api_keys: 2147483647 elements of 6 bytes or more are announced, 3 bytes are left");
    let error = read::<MetadataRequest>(9, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err();
    assert!(error.starts_with("brokers: 4294967294 elements"), "{error}");
    let error = read::<ApiVersionsRequest>(0, &[0, 0, 0xff, 0xff, 0xff, 0xfe]).unwrap_err();
    assert_eq!(error, "api_keys: a length of -2");
}

#[test]
fn elements_that_are_larger_in_memory_than_on_the_wire_are_bounded() {
    // One group with 1,048,574 members, each of which takes 7 bytes here and 192 in memory.
    let mut bytes = vec![0, 0, 0, 0, 2, 0, 0, 1, 1, 1, 1, 0xff, 0xff, 0x3f];
    bytes.resize(7 << 20, 1);
    let error = read::<DescribeGroupsRequest>(5, &bytes).unwrap_err();
    assert!(error.contains("far more than what the answer has"), "{error}");
}

#[test]
fn what_brokers_send_takes_less_memory_than_the_limit() {
    // The leanest elements that make sense: one group with a name of one letter each.
    let groups = (0..10_000)
        .map(|_| list_groups_response::ListedGroup {
            group_id: "g".into(),
            protocol_type: "".into(),
            group_state: "Dead".into(),
            group_type: "classic".into(),
        })
        .collect();
    let answer = ListGroupsResponse { groups, ..Default::default() };
    let bytes = ListGroupsRequest::encode_answer(&answer, 5);
    assert_eq!(read::<ListGroupsRequest>(5, &bytes).unwrap(), answer);
}

#[test]
fn null_where_there_can_be_none_is_an_error() {
    assert_eq!(
        read::<ApiVersionsRequest>(3, &[0, 0, 0]).unwrap_err(),
        "api_keys: null where a value is required"
    );
    // A topic without a name, which Metadata has from version 12 on.
    let topic = metadata_response::MetadataResponseTopic::default();
    let answer = MetadataResponse { topics: vec![topic], ..Default::default() };
    let bytes = MetadataRequest::encode_answer(&answer, 12);
    assert_eq!(read::<MetadataRequest>(12, &bytes).unwrap(), answer);
    let mut bytes = Vec::new();
    let error = encode(&answer, 11, true, &mut bytes).unwrap_err();
    assert_eq!(error.to_string(), "name: version 11 allows no null");
    let named = metadata_response::MetadataResponseTopic { name: Some("".into()), ..Default::default() };
    let mut bytes =
        MetadataRequest::encode_answer(&MetadataResponse { topics: vec![named], ..Default::default() }, 11);
    let at = bytes.iter().rposition(|byte| *byte == 1).unwrap() - 18;
    assert_eq!(bytes[at], 1, "the empty name");
    bytes[at] = 0;
    assert_eq!(read::<MetadataRequest>(11, &bytes).unwrap_err(), "name: null where a value is required");
}

#[test]
fn a_value_that_a_version_cannot_carry_is_refused_unless_it_may_be_dropped() {
    let static_member =
        HeartbeatRequest { group_instance_id: Some("billing-1".into()), ..Default::default() };
    let error = static_member.encode(2, &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "group_instance_id: version 2 has no such field, and it has a value");
    assert!(static_member.encode(3, &mut Vec::new()).is_ok());
    let fetch = FetchRequest { rack_id: "rack".into(), ..Default::default() };
    assert!(fetch.encode(4, &mut Vec::new()).is_ok(), "the rack may be dropped");
    let follower = fetch_request::ReplicaState { replica_id: 1, replica_epoch: 1 };
    let error = FetchRequest { replica_state: follower, ..fetch }.encode(12, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("replica_state: version 12"), "{error}");
}

#[test]
fn strings_longer_than_brokers_read_are_refused_in_every_version() {
    for version in [3, 4] {
        let longest = HeartbeatRequest { group_id: "x".repeat(32_767).into(), ..Default::default() };
        assert!(longest.encode(version, &mut Vec::new()).is_ok());
        let long = HeartbeatRequest { group_id: "x".repeat(32_768).into(), ..Default::default() };
        let error = long.encode(version, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "group_id: a length of 32768, and 32767 is the most there can be");
    }
}

#[test]
fn varints_strings_and_tagged_fields_out_of_bounds_are_errors() {
    let heartbeat = |bytes: &[u8]| read::<HeartbeatRequest>(4, bytes);
    assert!(heartbeat(&[0, 0, 0, 0, 0, 0, 0]).is_ok());
    assert!(heartbeat(&[0, 0, 0, 0, 0, 0, 1, 7, 2, 1, 1]).is_ok(), "an unknown tagged field is skipped");
    for (bytes, expected) in [
        (&[0u8, 0, 0, 0, 0, 0][..], "tagged fields: 1 bytes are wanted, 0 are left"),
        (&[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f], "tagged fields: 1 bytes are wanted, 0 are left"),
        (&[0, 0, 0, 0, 0, 0, 1, 7, 3, 1, 1], "tagged fields: 3 bytes are wanted, 2 are left"),
        (
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x1f],
            "tagged fields: a variable-length number has more than 32 bits",
        ),
        (
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            "tagged fields: a variable-length number has more than 32 bits",
        ),
        (&[0, 0, 0, 0, 0, 0, 0, 9], "1 bytes are left over after the message"),
    ] {
        assert_eq!(heartbeat(bytes).unwrap_err(), expected, "{bytes:?}");
    }
    // A known tagged field whose size is wrong.
    let endpoints = fetch_response::NodeEndpoint { host: "h".into(), ..Default::default() };
    let answer = FetchResponse { node_endpoints: vec![endpoints], ..Default::default() };
    let good = FetchRequest::encode_answer(&answer, 16);
    assert_eq!(read::<FetchRequest>(16, &good).unwrap(), answer);
    let size = good.iter().position(|byte| usize::from(*byte) == good.len() - 14).unwrap();
    for change in [-1i8, 1] {
        let mut bad = good.clone();
        bad[size] = bad[size].wrapping_add_signed(change);
        if change > 0 {
            bad.push(0);
        }
        assert!(read::<FetchRequest>(16, &bad).is_err(), "{change}");
    }
    let describe = DescribeConfigsRequest::encode_answer(
        &DescribeConfigsResponse {
            results: vec![describe_configs_response::DescribeConfigsResult {
                error_message: Some("\u{fffd}".into()),
                ..Default::default()
            }],
            ..Default::default()
        },
        1,
    );
    let broken: Vec<u8> = describe.iter().map(|byte| if *byte == 0xef { 0xff } else { *byte }).collect();
    assert_eq!(
        read::<DescribeConfigsRequest>(1, &broken).unwrap_err(),
        "error_message: a string that is not UTF-8"
    );
}

#[test]
fn unknown_tagged_fields_are_skipped_at_every_depth() {
    use kafka_protocol::{messages as kafka, protocol::Encodable};
    let partition = kafka::fetch_response::PartitionData::default()
        .with_partition_index(3)
        .with_current_leader(
            kafka::fetch_response::LeaderIdAndEpoch::default()
                .with_leader_epoch(8)
                .with_unknown_tagged_fields(unknown().into()),
        )
        .with_unknown_tagged_fields(unknown().into());
    let topic = kafka::fetch_response::FetchableTopicResponse::default()
        .with_partitions(vec![partition])
        .with_unknown_tagged_fields(unknown().into());
    let mut bytes = Vec::new();
    kafka::FetchResponse::default()
        .with_responses(vec![topic])
        .with_unknown_tagged_fields(unknown().into())
        .encode(&mut bytes, 12)
        .unwrap();
    let answer = read::<FetchRequest>(12, &bytes).unwrap();
    let partition = &answer.responses[0].partitions[0];
    assert_eq!((partition.partition_index, partition.current_leader.leader_epoch), (3, 8));
}

#[test]
fn every_prefix_of_an_answer_is_an_error_and_no_byte_of_it_panics() {
    let mut samples = Samples::new(11, 12, true);
    let answer = FetchResponse::sample(&mut samples);
    let bytes = FetchRequest::encode_answer(&answer, 12);
    for end in 0..bytes.len() {
        assert!(read::<FetchRequest>(12, &bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
    }
}

#[test]
fn strings_and_bytes_of_an_answer_are_slices_of_it() {
    let partition =
        fetch_response::PartitionData { records: Some(Bytes::from_static(&[7; 1000])), ..Default::default() };
    let topic = fetch_response::FetchableTopicResponse {
        topic: "orders".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    let answer = FetchResponse { responses: vec![topic], ..Default::default() };
    let bytes = Bytes::from(FetchRequest::encode_answer(&answer, 12));
    let range = bytes.as_ptr_range();
    let read = FetchRequest::decode(bytes, 12).unwrap();
    assert!(range.contains(&read.responses[0].topic.as_bytes().as_ptr()));
    assert!(range.contains(&read.responses[0].partitions[0].records.as_ref().unwrap().as_ptr()));
}

#[test]
fn a_request_is_written_into_memory_that_is_reserved_once() {
    let data = produce_request::PartitionProduceData { index: 0, records: Some(vec![1; 100_000].into()) };
    let topic = produce_request::TopicProduceData {
        name: "orders".into(),
        partition_data: vec![data],
        ..Default::default()
    };
    let request = ProduceRequest { topic_data: vec![topic], ..Default::default() };
    let mut out = Vec::new();
    request.encode(12, &mut out).unwrap();
    assert_eq!(out.capacity(), out.len());
}

#[test]
fn ids_show_as_kafka_shows_them() {
    assert_eq!(Uuid::default().to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
    assert_eq!(Uuid([0xff; 16]).to_string(), "_____________________w");
    let id = Uuid(std::array::from_fn(|place| place as u8 * 17));
    assert_eq!(id.to_string(), "ABEiM0RVZneImaq7zN3u_w");
}

/// Kafka's own classes call the fields as here, in camel case.
fn camel(json: &serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let mut words = name.split('_');
                let first = words.next().unwrap_or_default().to_owned();
                let name = words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..]);
                (name, camel(value))
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        serde_json::Value::Array(elements) => elements.iter().map(camel).collect(),
        other => other.clone(),
    }
}

/// A message of Kafka's classes: its bytes, and what they say it is.
struct Fixture<'a> {
    name: &'a str,
    version: i16,
    bytes: Bytes,
    json: &'a str,
    checked: bool,
}

impl Visitor for Fixture<'_> {
    fn visit<A: Api>(&mut self) {
        if self.name.strip_suffix("Request") == Some(A::NAME) {
            self.check::<A, A>();
        } else if self.name.strip_suffix("Response") == Some(A::NAME) {
            self.check::<A, A::Response>();
        }
    }
}

impl Fixture<'_> {
    fn check<A: Api, T: Whole>(&mut self) {
        let place = format!("{} version {}", self.name, self.version);
        let flexible = self.version >= A::FLEXIBLE;
        let message: T = decode(self.bytes.clone(), self.version, flexible, false)
            .unwrap_or_else(|error| panic!("{place}: {error}"));
        let expected: serde_json::Value = serde_json::from_str(self.json).unwrap();
        assert_eq!(camel(&message.json(self.version)), expected, "{place}");
        let mut bytes = Vec::new();
        encode(&message, self.version, flexible, &mut bytes).unwrap();
        assert_eq!(bytes, self.bytes, "{place}");
        self.checked = true;
    }
}

#[test]
fn messages_have_the_names_and_the_bytes_of_kafkas_own_classes() {
    // `MESSAGES_FROM_JAVA` names a larger file than the one in the repository.
    let path = std::env::var("MESSAGES_FROM_JAVA")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/messages.txt").to_owned());
    let text = std::fs::read_to_string(path).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines() {
        let [name, version, hex, json] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
        let bytes: Vec<u8> = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let version = version.parse().unwrap();
        let mut fixture = Fixture { name, version, bytes: bytes.into(), json, checked: false };
        visit_all(&mut fixture);
        assert!(fixture.checked, "{name}");
        seen.insert((name, version));
    }
    // Where kafka-protocol cannot say, Kafka must.
    for (name, first, last) in JAVA_ONLY {
        for version in *first..=*last {
            for kind in ["Request", "Response"] {
                assert!(
                    seen.contains(&(format!("{name}{kind}").as_str(), version)),
                    "{name}{kind} {version}"
                );
            }
        }
    }
}

#[test]
#[ignore = "writes the input of tests/fixtures/GenerateMessages.java"]
fn writes_messages_for_java_to_encode() {
    struct Lines {
        out: String,
        seeds: u64,
    }
    impl Visitor for Lines {
        fn visit<A: Api>(&mut self) {
            let (low, high) = A::TABLE;
            let java_only = JAVA_ONLY.iter().find(|row| row.0 == A::NAME).map_or(i16::MAX, |row| row.1);
            for version in low..=high {
                let flexible = version >= A::FLEXIBLE;
                let few = [low, high, A::FLEXIBLE].contains(&version) || version >= java_only;
                for seed in 0..self.seeds {
                    let mut samples = Samples::new(seed, version, flexible);
                    samples.mode = match seed {
                        0 => Mode::Full,
                        1 => Mode::Empty,
                        _ => Mode::Random,
                    };
                    let request = A::sample(&mut samples).json(version);
                    let answer = A::Response::sample(&mut samples).json(version);
                    if few || self.seeds > 1 {
                        self.out += &format!("{}Request {version} {}\n", A::NAME, camel(&request));
                        self.out += &format!("{}Response {version} {}\n", A::NAME, camel(&answer));
                    }
                }
            }
        }
    }
    let seeds = std::env::var("MESSAGES_SEEDS").map_or(1, |seeds| seeds.parse().unwrap());
    let mut lines = Lines { out: String::new(), seeds };
    visit_all(&mut lines);
    std::fs::write(std::env::var("MESSAGES").unwrap(), lines.out).unwrap();
}
