//! A client made of kafka-protocol's messages over a real socket.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::log::tests::batch;
use super::super::{EmbeddedBroker, Listener};
use super::*;

mod faults;
mod groups;
mod transactions;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Client {
    stream: Box<dyn Stream>,
    correlation: i32,
}

impl Client {
    async fn connect(address: &str) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), correlation: 0 }
    }

    async fn send<R: Request>(&mut self, version: i16, request: &R) {
        self.correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation);
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        header.encode(&mut frame, R::header_version(version)).unwrap();
        request.encode(&mut frame, version).unwrap();
        let size = frame.len() as i32 - 4;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The answer to the latest request, or `None` when the connection was closed instead.
    async fn receive<R: Request>(&mut self, version: i16) -> Option<R::Response> {
        let size = self.stream.read_i32().await.ok()?;
        let mut frame = vec![0; size as usize];
        self.stream.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, self.correlation);
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(
            !frame.has_remaining(),
            "{} bytes behind the answer of API {} v{version}",
            frame.len(),
            R::KEY
        );
        Some(response)
    }

    async fn try_call<R: Request>(&mut self, version: i16, request: &R) -> Option<R::Response> {
        self.send(version, request).await;
        self.receive::<R>(version).await
    }

    async fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.try_call(version, request).await.expect("an answer")
    }
}

fn versions() -> ApiVersionsRequest {
    ApiVersionsRequest::default()
        .with_client_software_name(text("kit"))
        .with_client_software_version(text("1.0"))
}

async fn start() -> (EmbeddedBroker, Client) {
    let broker = EmbeddedBroker::builder().user("alice", "alice-secret").start().await.unwrap();
    broker.create_topic("t", 2).unwrap();
    let client = Client::connect(&broker.bootstrap_servers()).await;
    (broker, client)
}

fn produce(topic: &str, records: Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(0).with_records(Some(records));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![topic])
}

fn fetch(offset: i64) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(topic_name("t")).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(10_000)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

fn list(timestamp: i64) -> ListOffsetsRequest {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(topic_name("t")).with_partitions(vec![partition]);
    ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic])
}

async fn produced(client: &mut Client, version: i16, records: Bytes) -> (i16, i64) {
    let answer = client.call(version, &produce("t", records)).await;
    let p = &answer.responses[0].partition_responses[0];
    (p.error_code, p.base_offset)
}

#[tokio::test]
async fn what_was_produced_is_fetched_in_every_version() {
    let (broker, mut client) = start().await;
    for (n, version) in (3..=12).enumerate() {
        assert_eq!(produced(&mut client, version, batch(&["v"], None)).await, (0, n as i64));
    }
    let metadata = client.call(12, &MetadataRequest::default().with_topics(None)).await;
    let id = metadata.topics[0].topic_id;
    for version in 4..=16 {
        let mut request = fetch(9);
        if version >= 13 {
            request.topics[0] = request.topics[0].clone().with_topic(topic_name("")).with_topic_id(id);
        }
        let answer = client.call(version, &request).await;
        let data = &answer.responses[0].partitions[0];
        assert_eq!((data.error_code, data.high_watermark), (0, 10), "version {version}");
        assert_eq!(data.records.as_ref().unwrap().clone().get_i64(), 9);
    }
    let records = broker.records("t", 0).unwrap();
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_waiting_fetch_is_woken_by_an_append() {
    let (broker, mut consumer) = start().await;
    let mut producer = Client::connect(&broker.bootstrap_servers()).await;
    consumer.send(12, &fetch(0)).await;
    assert_eq!(produced(&mut producer, 9, batch(&["x", "y"], None)).await, (0, 0));
    let answer = consumer.receive::<FetchRequest>(12).await.unwrap();
    assert_eq!(answer.responses[0].partitions[0].high_watermark, 2);
}

#[tokio::test]
async fn a_fetch_out_of_range_and_a_future_leader_epoch_are_refused() {
    let (_broker, mut client) = start().await;
    let code = |answer: FetchResponse| answer.responses[0].partitions[0].error_code;
    assert_eq!(code(client.call(11, &fetch(1)).await), ResponseError::OffsetOutOfRange.code());
    let mut request = fetch(0);
    request.topics[0].partitions[0].current_leader_epoch = 5;
    assert_eq!(code(client.call(11, &request).await), ResponseError::UnknownLeaderEpoch.code());
}

#[tokio::test]
async fn offsets_are_listed_by_end_and_by_time() {
    let (_broker, mut client) = start().await;
    produced(&mut client, 9, batch(&["a", "b", "c"], None)).await;
    for version in 1..=10 {
        let newest = if version < 7 { (ResponseError::UnsupportedVersion.code(), -1) } else { (0, 2) };
        for (asked, told) in [(-2, (0, 0)), (-1, (0, 3)), (-3, newest), (1001, (0, 1)), (5000, (0, -1))] {
            let answer = client.call(version, &list(asked)).await;
            let p = &answer.topics[0].partitions[0];
            assert_eq!((p.error_code, p.offset), told, "time {asked} in version {version}");
        }
    }
}

#[tokio::test]
async fn an_offset_that_is_listed_has_the_epoch_of_the_leader_that_took_its_record() {
    let (broker, mut client) = start().await;
    produced(&mut client, 9, batch(&["a"], None)).await;
    // Nothing is cut off, and the next epoch begins.
    broker.control().truncate("t", 0, 1).unwrap();
    produced(&mut client, 9, batch(&["b"], None)).await;
    for (time, offset, epoch) in [(-2, 0, 0), (0, 0, 0), (-1, 2, 1)] {
        let answer = client.call(4, &list(time)).await;
        let found = &answer.topics[0].partitions[0];
        assert_eq!((found.offset, found.leader_epoch), (offset, epoch), "{time}");
    }
}

#[tokio::test]
async fn metadata_makes_topics_only_when_asked() {
    let (broker, mut client) = start().await;
    let asked = |name: &str| vec![MetadataRequestTopic::default().with_name(Some(topic_name(name)))];
    let request =
        MetadataRequest::default().with_topics(Some(asked("n"))).with_allow_auto_topic_creation(false);
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(client.call(9, &request).await.topics[0].error_code, unknown);
    let request = request.with_allow_auto_topic_creation(true);
    for version in 0..=13 {
        let answer = client.call(version, &request).await;
        assert_eq!((answer.topics[0].error_code, answer.topics[0].partitions.len()), (0, 1));
        assert_eq!(
            format!("{}:{}", &*answer.brokers[0].host, answer.brokers[0].port),
            broker.bootstrap_servers()
        );
    }
    let mut by_id = request.clone();
    by_id.topics.iter_mut().flatten().for_each(|asked| asked.topic_id = uuid::Uuid::from_u128(7));
    let answer = client.call(12, &by_id).await;
    assert_eq!(
        answer.topics[0].error_code,
        ResponseError::UnknownTopicId.code(),
        "the id counts, not the name"
    );
}

#[tokio::test]
async fn a_version_from_the_future_is_told_the_versions() {
    let (_broker, mut client) = start().await;
    for version in 0..=4 {
        assert_eq!(client.call(version, &versions()).await.error_code, 0);
    }
    let nameless = client.call(3, &versions().with_client_software_name(text("a b"))).await;
    assert_eq!(nameless.error_code, ResponseError::InvalidRequest.code());
    // Version 99, body and all, cannot be understood; the answer comes in version 0.
    client.correlation += 1;
    let mut frame = BytesMut::new();
    frame.put_slice(&[0, 0, 0, 10, 0, 18, 0, 99]);
    frame.put_i32(client.correlation);
    frame.put_slice(&[0, 0]);
    client.stream.write_all(&frame).await.unwrap();
    let answer = client.receive::<ApiVersionsRequest>(0).await.unwrap();
    assert_eq!(answer.error_code, ResponseError::UnsupportedVersion.code());
    let told: Vec<_> = answer.api_keys.iter().map(|k| (k.api_key, k.max_version)).collect();
    assert_eq!(told, [(18, 4)], "only what the next try needs");
}

#[tokio::test]
async fn log_append_time_topics_keep_the_brokers_time() {
    let (broker, mut client) = start().await;
    let config = CreatableTopicConfig::default()
        .with_name(text("message.timestamp.type"))
        .with_value(Some(text("LogAppendTime")));
    let topic = CreatableTopic::default()
        .with_name(topic_name("times"))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(vec![config]);
    for version in 2..=7 {
        let topic = topic.clone().with_name(topic_name(&format!("times{version}")));
        let request = CreateTopicsRequest::default().with_topics(vec![topic]);
        assert_eq!(client.call(version, &request).await.topics[0].error_code, 0);
    }
    let answer = client.call(9, &produce("times7", batch(&["a"], None))).await;
    let told = answer.responses[0].partition_responses[0].log_append_time_ms;
    assert!(told > 1_600_000_000_000);
    assert_eq!(broker.records("times7", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn acks_zero_is_silent_and_its_error_closes_the_connection() {
    let (_broker, mut client) = start().await;
    client.send(9, &produce("t", batch(&["a"], None)).with_acks(0)).await;
    let answer = client.call(4, &list(-1)).await;
    assert_eq!(answer.topics[0].partitions[0].offset, 1);
    client.send(9, &produce("missing", batch(&["a"], None)).with_acks(0)).await;
    assert!(client.receive::<ProduceRequest>(9).await.is_none());
}

#[tokio::test]
async fn faults_fail_disconnect_and_count() {
    let (broker, mut client) = start().await;
    let control = broker.control();
    control.fail_topic(ApiKey::Produce, "t", 1, ResponseError::NotEnoughReplicas);
    assert_eq!(produced(&mut client, 9, batch(&["a"], None)).await, (19, -1));
    assert_eq!(produced(&mut client, 9, batch(&["a"], None)).await, (0, 0));
    control.disconnect_after(ApiKey::Produce, 1);
    assert!(client.try_call(9, &produce("t", batch(&["b"], None))).await.is_none());
    control.disconnect_before(ApiKey::Produce, 1);
    let mut client = Client::connect(&broker.bootstrap_servers()).await;
    assert!(client.try_call(9, &produce("t", batch(&["c"], None))).await.is_none());
    assert_eq!(broker.records("t", 0).unwrap().len(), 2);
    assert_eq!(control.requests(ApiKey::Produce), 4);
}

#[tokio::test]
async fn a_held_answer_comes_after_its_release() {
    let (broker, mut client) = start().await;
    let mut other = Client::connect(&broker.bootstrap_servers()).await;
    broker.control().hold(ApiKey::Produce);
    client.send(9, &produce("t", batch(&["a"], None))).await;
    // Applied, though not answered: another connection sees the record.
    assert_eq!(other.call(12, &fetch(0)).await.responses[0].partitions[0].high_watermark, 1);
    broker.control().release(ApiKey::Produce);
    assert!(client.receive::<ProduceRequest>(9).await.is_some());
}

#[tokio::test]
async fn leaders_move_and_a_stopped_broker_comes_back_at_its_port() {
    let broker = EmbeddedBroker::builder().brokers(2).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let addresses = broker.bootstrap_servers();
    let (first, second) = addresses.split_once(',').unwrap();
    let mut client = Client::connect(first).await;
    broker.control().move_leader("t", 0, 2).unwrap();
    let answer = client.call(10, &produce("t", batch(&["a"], None))).await;
    let p = &answer.responses[0].partition_responses[0];
    assert_eq!(p.error_code, ResponseError::NotLeaderOrFollower.code());
    assert_eq!((p.current_leader.leader_id.0, p.current_leader.leader_epoch), (2, 1));
    assert_eq!(produced(&mut Client::connect(second).await, 9, batch(&["a"], None)).await, (0, 0));
    broker.control().stop_broker(2).unwrap();
    assert_eq!(produced(&mut client, 9, batch(&["b"], None)).await, (0, 1));
    broker.control().start_broker(2).await.unwrap();
    assert_eq!(broker.bootstrap_servers(), addresses);
    let metadata = Client::connect(second).await.call(9, &MetadataRequest::default()).await;
    assert_eq!(metadata.brokers.len(), 2);
}

#[tokio::test]
async fn sasl_listeners_hear_nothing_before_the_login() {
    let (broker, _) = start().await;
    let address = broker.listener(Listener::SaslPlaintext);
    let mut client = Client::connect(&address).await;
    assert!(client.try_call(9, &MetadataRequest::default()).await.is_none());
    let mut client = Client::connect(&address).await;
    client.call(3, &versions()).await;
    let handshake = SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
    assert_eq!(client.call(1, &handshake).await.error_code, 0);
    let token =
        SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from_static(b"\0alice\0alice-secret"));
    assert_eq!(client.call(2, &token).await.error_code, 0);
    let metadata = client.call(9, &MetadataRequest::default()).await;
    assert_eq!(format!("127.0.0.1:{}", metadata.brokers[0].port), address);
}

#[tokio::test]
async fn a_wrong_password_is_told_and_then_the_connection_ends() {
    let (broker, _) = start().await;
    let mut client = Client::connect(&broker.listener(Listener::SaslPlaintext)).await;
    let handshake = SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
    client.call(1, &handshake).await;
    let token = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from_static(b"\0alice\0guess"));
    let answer = client.call(1, &token).await;
    assert_eq!(answer.error_code, ResponseError::SaslAuthenticationFailed.code());
    assert_eq!(&*answer.error_message.unwrap(), "Authentication failed: Invalid username or password");
    assert!(client.receive::<SaslAuthenticateRequest>(1).await.is_none());
}

/// Every version of the group APIs, one group per version, from the join to the deletion.
#[tokio::test]
async fn a_member_lives_through_every_version_of_the_group_apis() {
    let (_broker, mut client) = start().await;
    for version in 0..=9_i16 {
        let group = GroupId(text(&format!("group-{version}")));
        let protocol = join_group_request::JoinGroupRequestProtocol::default()
            .with_name(text("range"))
            .with_metadata(Bytes::from_static(b"m"));
        let mut join = JoinGroupRequest::default()
            .with_group_id(group.clone())
            .with_session_timeout_ms(10_000)
            .with_rebalance_timeout_ms(10_000)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol]);
        let mut joined = client.call(version, &join).await;
        if version >= 4 {
            assert_eq!(joined.error_code, ResponseError::MemberIdRequired.code());
            join.member_id = joined.member_id;
            joined = client.call(version, &join).await;
        }
        assert_eq!((joined.error_code, joined.generation_id, joined.members.len()), (0, 1, 1), "v{version}");
        let member = joined.member_id;
        let assignment = sync_group_request::SyncGroupRequestAssignment::default()
            .with_member_id(member.clone())
            .with_assignment(Bytes::from_static(b"all"));
        let sync = SyncGroupRequest::default()
            .with_group_id(group.clone())
            .with_generation_id(1)
            .with_member_id(member.clone())
            .with_protocol_type((version >= 5).then(|| text("consumer")))
            .with_protocol_name((version >= 5).then(|| text("range")))
            .with_assignments(vec![assignment]);
        assert_eq!(client.call(version.min(5), &sync).await.assignment, "all");
        let heartbeat = HeartbeatRequest::default()
            .with_group_id(group.clone())
            .with_generation_id(1)
            .with_member_id(member.clone());
        assert_eq!(client.call(version.min(4), &heartbeat).await.error_code, 0);
        commit_and_fetch(&mut client, version, &group, &member).await;
        describe_leave_delete(&mut client, version, group, member).await;
    }
}

async fn commit_and_fetch(client: &mut Client, version: i16, group: &GroupId, member: &StrBytes) {
    let partition = offset_commit_request::OffsetCommitRequestPartition::default()
        .with_partition_index(1)
        .with_committed_offset(7);
    let topic = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partitions(vec![partition]);
    let commit = OffsetCommitRequest::default()
        .with_group_id(group.clone())
        .with_generation_id_or_member_epoch(1)
        .with_member_id(member.clone())
        .with_topics(vec![topic]);
    assert_eq!(client.call(version.max(2), &commit).await.topics[0].partitions[0].error_code, 0);
    if version >= 8 {
        let topic = offset_fetch_request::OffsetFetchRequestTopics::default()
            .with_name(topic_name("t"))
            .with_partition_indexes(vec![0, 1]);
        let asked = offset_fetch_request::OffsetFetchRequestGroup::default()
            .with_group_id(group.clone())
            .with_topics(Some(vec![topic]));
        // franz-go names its classic generation here.
        let asked = if version >= 9 {
            asked.with_member_id(Some(member.clone())).with_member_epoch(1)
        } else {
            asked
        };
        let answer = client.call(version, &OffsetFetchRequest::default().with_groups(vec![asked])).await;
        let partitions = &answer.groups[0].topics[0].partitions;
        assert_eq!((partitions[0].committed_offset, partitions[1].committed_offset), (-1, 7));
        return;
    }
    let topic = offset_fetch_request::OffsetFetchRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partition_indexes(vec![0, 1]);
    let asked = OffsetFetchRequest::default().with_group_id(group.clone()).with_topics(Some(vec![topic]));
    let answer = client.call(version.max(1), &asked).await;
    let partitions = &answer.topics[0].partitions;
    assert_eq!((partitions[0].committed_offset, partitions[1].committed_offset), (-1, 7));
}

async fn describe_leave_delete(client: &mut Client, version: i16, group: GroupId, member: StrBytes) {
    let find = FindCoordinatorRequest::default();
    let find = if version >= 4 {
        find.with_coordinator_keys(vec![group.0.clone()])
    } else {
        find.with_key(group.0.clone())
    };
    let found = client.call(version.min(6), &find).await;
    let node = if version >= 4 { found.coordinators[0].node_id } else { found.node_id };
    assert_eq!(node.0, 1);
    let describe = DescribeGroupsRequest::default().with_groups(vec![group.clone()]);
    let described = client.call(version.min(6), &describe).await;
    assert_eq!((&*described.groups[0].group_state, described.groups[0].members.len()), ("Stable", 1));
    assert!(
        client
            .call(version.min(5), &ListGroupsRequest::default())
            .await
            .groups
            .iter()
            .any(|g| g.group_id == group)
    );
    let delete = DeleteGroupsRequest::default().with_groups_names(vec![group.clone()]);
    let refused = client.call(version.min(2), &delete).await.results[0].error_code;
    assert_eq!(refused, ResponseError::NonEmptyGroup.code());
    let leave = LeaveGroupRequest::default().with_group_id(group);
    let leave = if version >= 3 {
        leave.with_members(vec![leave_group_request::MemberIdentity::default().with_member_id(member)])
    } else {
        leave.with_member_id(member)
    };
    assert_eq!(client.call(version.min(5), &leave).await.error_code, 0);
    assert_eq!(client.call(version.min(2), &delete).await.results[0].error_code, 0);
}

#[tokio::test]
async fn administrators_see_and_change_topics() {
    let (_broker, mut client) = start().await;
    let alter = incremental_alter_configs_request::AlterableConfig::default()
        .with_name(text("max.message.bytes"))
        .with_value(Some(text("80")));
    let resource = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("t"))
        .with_configs(vec![alter]);
    let alter = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    for version in 0..=1 {
        assert_eq!(client.call(version, &alter).await.responses[0].error_code, 0);
    }
    let too_large = ResponseError::MessageTooLarge.code();
    assert_eq!(produced(&mut client, 9, batch(&["a value that is long enough"], None)).await.0, too_large);
    let resource = describe_configs_request::DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("t"))
        .with_configuration_keys(Some(vec![text("max.message.bytes")]));
    let describe =
        DescribeConfigsRequest::default().with_include_synonyms(true).with_resources(vec![resource]);
    for version in 1..=4 {
        let answer = client.call(version, &describe).await;
        assert_eq!(answer.results[0].configs[0].value.as_deref(), Some("80"));
    }
    for (n, version) in (0..=3).enumerate() {
        let more = create_partitions_request::CreatePartitionsTopic::default()
            .with_name(topic_name("t"))
            .with_count(3 + n as i32)
            .with_assignments(None);
        let more = CreatePartitionsRequest::default().with_topics(vec![more]);
        assert_eq!(client.call(version, &more).await.results[0].error_code, 0);
    }
    for version in 0..=2 {
        assert_eq!(client.call(version, &DescribeClusterRequest::default()).await.brokers.len(), 1);
    }
    let ids: Vec<i64> = {
        let mut ids = Vec::new();
        for version in 0..=5 {
            let request = InitProducerIdRequest::default().with_transactional_id(None);
            ids.push(client.call(version, &request).await.producer_id.0);
        }
        ids
    };
    assert!(ids.windows(2).all(|w| w[0] < w[1]));
    for version in 1..=6 {
        let name = topic_name(&format!("d{version}"));
        let topics = vec![
            CreatableTopic::default()
                .with_name(name.clone())
                .with_num_partitions(1)
                .with_replication_factor(-1),
        ];
        client.call(5, &CreateTopicsRequest::default().with_topics(topics)).await;
        let mut request = DeleteTopicsRequest::default();
        if version < 6 {
            request.topic_names = vec![name];
        } else {
            request.topics = vec![delete_topics_request::DeleteTopicState::default().with_name(Some(name))];
        }
        assert_eq!(client.call(version, &request).await.responses[0].error_code, 0);
    }
}

#[tokio::test]
async fn records_are_deleted_and_epochs_looked_up() {
    let (broker, mut client) = start().await;
    produced(&mut client, 9, batch(&["a", "b", "c"], None)).await;
    for version in 0..=2 {
        let partition = delete_records_request::DeleteRecordsPartition::default().with_offset(2);
        let topic = delete_records_request::DeleteRecordsTopic::default()
            .with_name(topic_name("t"))
            .with_partitions(vec![partition]);
        let answer = client.call(version, &DeleteRecordsRequest::default().with_topics(vec![topic])).await;
        assert_eq!(answer.topics[0].partitions[0].low_watermark, 2);
    }
    assert_eq!(broker.records("t", 0).unwrap().len(), 1);
    for version in 2..=4 {
        let partition = offset_for_leader_epoch_request::OffsetForLeaderPartition::default()
            .with_current_leader_epoch(0)
            .with_leader_epoch(0);
        let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
            .with_topic(topic_name("t"))
            .with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let answer = client.call(version, &request).await;
        assert_eq!(answer.topics[0].partitions[0].end_offset, 3);
    }
}

fn join(group: &str) -> JoinGroupRequest {
    let protocol = join_group_request::JoinGroupRequestProtocol::default().with_name(text("range"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

#[tokio::test(start_paused = true)]
async fn sessions_end_on_a_paused_clock_over_in_memory_streams() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    assert_eq!(broker.bootstrap_servers(), "broker-1:9092");
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    broker.serve_stream(1, Listener::Plaintext, theirs);
    let mut client = Client::over(ours);
    assert_eq!(client.call(3, &join("g")).await.generation_id, 1);
    let describe = DescribeGroupsRequest::default().with_groups(vec![GroupId(text("g"))]);
    assert_eq!(&*client.call(5, &describe).await.groups[0].group_state, "CompletingRebalance");
    tokio::time::sleep(std::time::Duration::from_millis(10_001)).await;
    assert_eq!(&*client.call(5, &describe).await.groups[0].group_state, "Empty");
}

#[tokio::test]
async fn coordinators_move_and_the_old_one_says_so() {
    let broker = EmbeddedBroker::builder().brokers(2).start().await.unwrap();
    broker.control().move_coordinator("g", 1).unwrap();
    let addresses = broker.bootstrap_servers();
    let mut client = Client::connect(addresses.split_once(',').unwrap().0).await;
    assert_eq!(client.call(3, &join("g")).await.error_code, 0);
    broker.control().move_coordinator("g", 2).unwrap();
    assert_eq!(client.call(3, &join("g")).await.error_code, ResponseError::NotCoordinator.code());
    let find = FindCoordinatorRequest::default().with_key(text("g"));
    assert_eq!(client.call(3, &find).await.node_id.0, 2);
}

#[tokio::test]
async fn an_incremental_fetch_names_only_partitions_with_news() {
    let (_broker, mut client) = start().await;
    let mut request = fetch(0).with_session_epoch(0).with_max_wait_ms(1);
    let second = request.topics[0].partitions[0].clone().with_partition(1);
    request.topics[0].partitions.push(second);
    let opened = client.call(12, &request).await;
    assert_eq!(opened.responses[0].partitions.len(), 2);
    produced(&mut client, 9, batch(&["a"], None)).await;
    let next = fetch(0).with_topics(vec![]).with_session_id(opened.session_id).with_session_epoch(1);
    let answer = client.call(12, &next.clone().with_max_wait_ms(1)).await;
    assert_eq!(answer.responses[0].partitions.len(), 1);
    assert_eq!(answer.responses[0].partitions[0].high_watermark, 1);
    let stale = client.call(12, &next).await;
    assert_eq!(stale.error_code, ResponseError::InvalidFetchSessionEpoch.code());
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_is_silent_until_it_heals_and_a_forgotten_connection_for_ever() {
    let broker =
        EmbeddedBroker::builder().in_memory().seed(3).wall_clock_ms(1_000_000).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let (host, port) = broker.address(1, Listener::Plaintext).unwrap();
    let connect = |name| Client::over(broker.network().connect(name, &host, port).unwrap());
    let (mut a, mut b) = (connect("a"), connect("b"));
    let soon = |client: Client| async move {
        let mut client = client;
        let request = MetadataRequest::default().with_topics(None);
        let answer = client.call(12, &request);
        let answered = tokio::time::timeout(std::time::Duration::from_secs(60), answer).await.is_ok();
        (client, answered)
    };
    let (back, answered) = soon(a).await;
    a = back;
    assert!(answered);
    broker.control().cut(Some("a"), None);
    a.send(12, &MetadataRequest::default().with_topics(None)).await;
    let (_, answered) = soon(b).await;
    assert!(answered, "another client is not concerned");
    let (_, answered) = soon(connect("a")).await;
    assert!(!answered, "a new connection is silent too");
    broker.control().heal(Some("a"), None);
    assert!(a.receive::<MetadataRequest>(12).await.is_some(), "what was sent meanwhile arrives");
    broker.control().forget_connections(None, Some(1));
    let (_, answered) = soon(a).await;
    assert!(!answered);
    b = connect("b");
    let (_, answered) = soon(b).await;
    assert!(answered);
    broker.control().stop_broker(1).unwrap();
    let refused = broker.network().connect("b", &host, port).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
