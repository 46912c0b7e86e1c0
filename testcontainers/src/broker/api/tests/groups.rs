//! Groups of KIP-848, quotas, denials and profiles over the wire.

use std::time::Duration;

use super::super::super::{Operation, Profile, Quota, Resource};
use super::*;

fn joining(member: &'static str) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(StrBytes::from_static_str(member))
        .with_rebalance_timeout_ms(60_000)
        .with_subscribed_topic_names(Some(vec![topic_name("t")]))
        .with_topic_partitions(Some(vec![]))
}

fn partitions(answer: &ConsumerGroupHeartbeatResponse) -> Vec<i32> {
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    let topics = answer.assignment.iter().flat_map(|a| &a.topic_partitions);
    topics.flat_map(|t| t.partitions.iter().copied()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_group_of_kip_848_is_joined_described_listed_and_left_by_silence() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    broker.create_topic("t", 2).unwrap();
    let mut client = Client::over(broker.network().connect_to("c", 1, Listener::Plaintext).unwrap());
    let joined = client.call(1, &joining("a")).await;
    assert_eq!((joined.member_epoch, partitions(&joined)), (1, vec![0, 1]));
    assert_eq!(joined.heartbeat_interval_ms, 5000);
    let regex = joining("b").with_subscribed_topic_names(None).with_subscribed_topic_regex(Some(text("t.?")));
    let second = client.call(1, &regex).await;
    assert_eq!((second.member_epoch, partitions(&second)), (2, vec![]));

    let ask = ConsumerGroupDescribeRequest::default().with_group_ids(vec![GroupId(text("g"))]);
    let described = client.call(1, &ask).await.groups.remove(0);
    assert_eq!((&*described.group_state, described.group_epoch), ("Reconciling", 2));
    assert_eq!(described.members.len(), 2);
    assert_eq!(described.members[1].target_assignment.topic_partitions[0].partitions.len(), 1);
    let listed = client.call(5, &ListGroupsRequest::default()).await.groups.remove(0);
    assert_eq!((&*listed.group_type, &*listed.protocol_type), ("consumer", "consumer"));
    let classic = client.call(3, &join("g")).await;
    assert_eq!(classic.error_code, ResponseError::InconsistentGroupProtocol.code());

    tokio::time::sleep(Duration::from_secs(46)).await;
    let described = client.call(1, &ask).await.groups.remove(0);
    assert_eq!(&*described.group_state, "Empty");
    assert_eq!(client.call(3, &join("g")).await.error_code, 0, "an empty group changes its protocol");
    let refused = client.call(1, &joining("a")).await;
    assert_eq!(refused.error_code, ResponseError::GroupIdNotFound.code());
}

#[tokio::test(start_paused = true)]
async fn whoever_exceeds_a_quota_is_told_and_not_read_from() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    broker.control().quota(Quota::ProduceBytes, None, Some(100));
    let mut client = Client::over(broker.network().connect_to("c", 1, Listener::Plaintext).unwrap());
    let value = "x".repeat(1000);
    let answer = client.call(9, &produce("t", batch(&[&value], None))).await;
    assert!(answer.throttle_time_ms > 9_000, "{}", answer.throttle_time_ms);
    let request = MetadataRequest::default().with_topics(None);
    let mut next = Box::pin(client.call(9, &request));
    let mute = Duration::from_millis(answer.throttle_time_ms as u64);
    assert!(tokio::time::timeout(mute - Duration::from_millis(10), &mut next).await.is_err());
    assert_eq!(next.await.throttle_time_ms, 0);
}

#[tokio::test]
async fn denials_are_told_by_resource() {
    let (broker, mut client) = start().await;
    let control = broker.control();
    control.deny("*", Resource::Topic("t".into()), Operation::Write);
    let (code, _) = produced(&mut client, 9, batch(&["a"], None)).await;
    assert_eq!(code, ResponseError::TopicAuthorizationFailed.code());
    assert_eq!(client.call(2, &list(-1)).await.topics[0].partitions[0].error_code, 0);
    control.deny("*", Resource::Topic("*".into()), Operation::Describe);
    assert!(client.call(9, &MetadataRequest::default().with_topics(None)).await.topics.is_empty());
    control.deny("*", Resource::Group("g".into()), Operation::Read);
    assert_eq!(client.call(3, &join("g")).await.error_code, ResponseError::GroupAuthorizationFailed.code());
    control.allow_all();
    assert_eq!(produced(&mut client, 9, batch(&["a"], None)).await.0, 0);
}

/// Commits for partition 0 of `t` with a text of this length.
fn commit(length: usize) -> OffsetCommitRequest {
    let partition = offset_commit_request::OffsetCommitRequestPartition::default()
        .with_committed_offset(7)
        .with_committed_metadata(Some(StrBytes::from_string("x".repeat(length))));
    let topic = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

/// What is committed for partition 0 of `t`, asked in this version: the error and the offset. None: the topic is not told of.
async fn committed(client: &mut Client, version: i16, by_name: bool) -> Option<(i16, i64)> {
    if version >= 8 {
        let topic = offset_fetch_request::OffsetFetchRequestTopics::default()
            .with_name(topic_name("t"))
            .with_partition_indexes(vec![0]);
        let asked = offset_fetch_request::OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text("g")))
            .with_topics(by_name.then(|| vec![topic]));
        let answer = client.call(version, &OffsetFetchRequest::default().with_groups(vec![asked])).await;
        return answer.groups[0]
            .topics
            .first()
            .map(|t| (t.partitions[0].error_code, t.partitions[0].committed_offset));
    }
    let topic = offset_fetch_request::OffsetFetchRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(by_name.then(|| vec![topic]));
    let answer = client.call(version, &asked).await;
    answer.topics.first().map(|t| (t.partitions[0].error_code, t.partitions[0].committed_offset))
}

#[tokio::test]
async fn a_text_that_is_too_long_keeps_its_offset_out() {
    let (broker, mut client) = start().await;
    let answer = client.call(8, &commit(4097)).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, ResponseError::OffsetMetadataTooLarge.code());
    assert_eq!(broker.committed("g", "t", 0), None);
    assert_eq!(client.call(8, &commit(4096)).await.topics[0].partitions[0].error_code, 0);
    assert_eq!(broker.committed("g", "t", 0), Some(7));
}

#[tokio::test]
async fn who_asks_for_offsets_hears_of_faults_and_denials_by_topic() {
    let (broker, mut client) = start().await;
    client.call(8, &commit(0)).await;
    for version in [1, 7, 8, 9] {
        let error = ResponseError::UnstableOffsetCommit;
        broker.control().fail_topic(ApiKey::OffsetFetch, "t", 1, error);
        assert_eq!(
            committed(&mut client, version, true).await,
            Some((error.code(), -1)),
            "version {version}"
        );
        assert_eq!(committed(&mut client, version, true).await, Some((0, 7)));
        broker.control().deny("*", Resource::Topic("t".into()), Operation::Describe);
        let denied = ResponseError::TopicAuthorizationFailed.code();
        assert_eq!(committed(&mut client, version, true).await, Some((denied, -1)), "version {version}");
        if version > 1 {
            assert_eq!(committed(&mut client, version, false).await, None, "version {version}");
        }
        broker.control().allow_all();
    }
}

#[tokio::test]
async fn a_profile_has_its_own_versions_and_manners() {
    let broker = EmbeddedBroker::builder().profile(Profile::EventHubs).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let mut client = Client::connect(&broker.bootstrap_servers()).await;
    assert!(client.try_call(4, &versions()).await.is_none(), "it closes");
    let mut client = Client::connect(&broker.bootstrap_servers()).await;
    let told = client.call(3, &versions()).await;
    let newest = |api: ApiKey| told.api_keys.iter().find(|k| k.api_key == api as i16).map(|k| k.max_version);
    assert_eq!(newest(ApiKey::Produce), Some(7));
    assert_eq!(newest(ApiKey::OffsetForLeaderEpoch), None);
    assert!(told.finalized_features.is_empty());
    assert_eq!(produced(&mut client, 7, batch(&["a"], None)).await.0, 0);
    assert!(client.try_call(9, &produce("t", batch(&["a"], None))).await.is_none(), "not a version of its");
}

#[tokio::test]
async fn redpanda_knows_no_groups_of_kip_848_and_old_versions_of_the_rest() {
    let broker = EmbeddedBroker::builder().profile(Profile::Redpanda).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let mut client = Client::connect(&broker.bootstrap_servers()).await;
    let told = client.call(3, &versions()).await;
    let newest = |api: ApiKey| told.api_keys.iter().find(|k| k.api_key == api as i16).map(|k| k.max_version);
    assert_eq!((newest(ApiKey::Fetch), newest(ApiKey::Metadata)), (Some(11), Some(8)));
    assert_eq!(newest(ApiKey::ConsumerGroupHeartbeat), None);
    assert_eq!(produced(&mut client, 7, batch(&["a"], None)).await.0, 0);
    let read = client.call(11, &fetch(0).with_max_wait_ms(0)).await;
    assert_eq!(read.responses[0].partitions[0].high_watermark, 1);
    assert!(client.try_call(12, &fetch(0)).await.is_none(), "not a version of its");
}

#[tokio::test(start_paused = true)]
async fn offsets_of_a_group_without_members_are_forgotten_after_their_retention() {
    let day = Duration::from_secs(86_400);
    let broker =
        EmbeddedBroker::builder().in_memory().wall_clock_ms(0).offsets_retention(day).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let mut client = Client::over(broker.network().connect_to("c", 1, Listener::Plaintext).unwrap());
    let partition = offset_commit_request::OffsetCommitRequestPartition::default().with_committed_offset(7);
    let topic = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic_name("t"))
        .with_partitions(vec![partition]);
    let commit = OffsetCommitRequest::default()
        .with_group_id(GroupId(StrBytes::from_static_str("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    assert_eq!(client.call(7, &commit).await.topics[0].partitions[0].error_code, 0);
    let ask = OffsetFetchRequest::default()
        .with_group_id(GroupId(StrBytes::from_static_str("g")))
        .with_topics(None);
    let mut left =
        async || client.call(7, &ask).await.topics.iter().map(|t| t.partitions.len()).sum::<usize>();
    tokio::time::sleep(day - Duration::from_secs(1)).await;
    assert_eq!(left().await, 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(left().await, 0);
}
