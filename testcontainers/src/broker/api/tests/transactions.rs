//! Transactions of both versions over the wire.

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};

use super::super::super::log::tests::transactional_batch;
use super::*;

fn id(text: &'static str) -> TransactionalId {
    TransactionalId(StrBytes::from_static_str(text))
}

async fn init(client: &mut Client) -> (i64, i16) {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(id("tx")))
        .with_transaction_timeout_ms(60_000)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let answer = client.call(5, &request).await;
    assert_eq!(answer.error_code, 0);
    (answer.producer_id.0, answer.producer_epoch)
}

async fn send(client: &mut Client, version: i16, who: (i64, i16), first: i32, values: &[&str]) -> i16 {
    let records = transactional_batch(values, (who.0, who.1, first));
    let request = produce("t", records).with_transactional_id(Some(id("tx")));
    client.call(version, &request).await.responses[0].partition_responses[0].error_code
}

async fn end(client: &mut Client, version: i16, who: (i64, i16), commit: bool) -> EndTxnResponse {
    let request = EndTxnRequest::default()
        .with_transactional_id(id("tx"))
        .with_producer_id(who.0.into())
        .with_producer_epoch(who.1)
        .with_committed(commit);
    client.call(version, &request).await
}

/// What a reader of committed records gets from offset 0: how many bytes, the last stable offset, the aborted list.
async fn committed(client: &mut Client) -> (usize, i64, Vec<(i64, i64)>) {
    let request = fetch(0).with_isolation_level(1).with_max_wait_ms(0);
    let answer = client.call(12, &request).await;
    let p = &answer.responses[0].partitions[0];
    let aborted = p.aborted_transactions.iter().flatten();
    let aborted = aborted.map(|a| (a.producer_id.0, a.first_offset)).collect();
    (p.records.as_ref().map_or(0, Bytes::len), p.last_stable_offset, aborted)
}

#[tokio::test]
async fn the_first_version_adds_partitions_writes_and_ends() {
    let (broker, mut client) = start().await;
    let who = init(&mut client).await;
    let invalid = ResponseError::InvalidTxnState.code();
    assert_eq!(send(&mut client, 9, who, 0, &["a"]).await, invalid, "the partition was not added");
    let add = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(id("tx"))
        .with_v3_and_below_producer_id(who.0.into())
        .with_v3_and_below_producer_epoch(who.1)
        .with_v3_and_below_topics(vec![
            AddPartitionsToTxnTopic::default().with_name(topic_name("t")).with_partitions(vec![0]),
        ]);
    let added = client.call(3, &add).await;
    assert_eq!(added.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code, 0);
    assert_eq!(send(&mut client, 9, who, 0, &["a", "b"]).await, 0);
    assert_eq!(committed(&mut client).await, (0, 0, vec![]));
    assert_eq!(end(&mut client, 3, who, true).await.error_code, 0);
    let (bytes, stable, aborted) = committed(&mut client).await;
    assert!(bytes > 0);
    assert_eq!((stable, aborted), (3, vec![]));
    client.call(3, &add).await;
    assert_eq!(send(&mut client, 9, who, 2, &["c"]).await, 0, "epoch and sequences go on");
    assert_eq!(end(&mut client, 3, who, false).await.error_code, 0);
    let (_, stable, aborted) = committed(&mut client).await;
    assert_eq!((stable, aborted), (5, vec![(who.0, 3)]));
    assert_eq!(broker.records("t", 0).unwrap().len(), 3, "markers are no records");
}

#[tokio::test]
async fn the_second_version_needs_no_adding_and_bumps_the_epoch() {
    let (_broker, mut client) = start().await;
    let who = init(&mut client).await;
    assert_eq!(send(&mut client, 12, who, 0, &["a"]).await, 0);
    let ended = end(&mut client, 5, who, true).await;
    assert_eq!((ended.error_code, ended.producer_id.0, ended.producer_epoch), (0, who.0, who.1 + 1));
    let fenced = ResponseError::InvalidProducerEpoch.code();
    assert_eq!(send(&mut client, 12, who, 1, &["late"]).await, fenced);
    let next = (who.0, who.1 + 1);
    assert_eq!(send(&mut client, 12, next, 0, &["b"]).await, 0);
    let described =
        client.call(0, &DescribeTransactionsRequest::default().with_transactional_ids(vec![id("tx")])).await;
    assert_eq!(&*described.transaction_states[0].transaction_state, "Ongoing");
    assert_eq!(described.transaction_states[0].topics[0].partitions, [0]);
    let newer = init_again(&mut client).await;
    assert_eq!(newer.error_code, ResponseError::ConcurrentTransactions.code());
    assert_eq!(init(&mut client).await, (who.0, who.1 + 3));
    let (_, stable, aborted) = committed(&mut client).await;
    assert_eq!((stable, aborted), (4, vec![(who.0, 2)]));
}

#[tokio::test]
async fn nothing_joins_a_transaction_whose_markers_are_still_to_be_written() {
    let (broker, mut client) = start().await;
    broker.control().delay_markers(std::time::Duration::from_secs(3600));
    let who = init(&mut client).await;
    assert_eq!(send(&mut client, 12, who, 0, &["a"]).await, 0);
    let ended = end(&mut client, 5, who, true).await;
    let next = (who.0, ended.producer_epoch);
    let concurrent = ResponseError::ConcurrentTransactions.code();
    assert_eq!(send(&mut client, 12, next, 0, &["b"]).await, concurrent);
    assert_eq!(broker.records("t", 0).unwrap().len(), 1);
}

#[tokio::test]
async fn times_of_no_end_stop_no_broker() {
    let most = std::time::Duration::MAX;
    let broker = EmbeddedBroker::builder().consumer_group_times(most, most).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    broker.control().delay_markers(most);
    let mut client = Client::connect(&broker.bootstrap_servers()).await;
    let who = init(&mut client).await;
    assert_eq!(send(&mut client, 12, who, 0, &["a"]).await, 0);
    assert_eq!(end(&mut client, 5, who, true).await.error_code, 0);
    let join = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(1000)
        .with_subscribed_topic_names(Some(vec![topic_name("t")]))
        .with_topic_partitions(Some(Vec::new()));
    assert_eq!(client.call(1, &join).await.error_code, 0);
}

async fn init_again(client: &mut Client) -> InitProducerIdResponse {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(id("tx")))
        .with_transaction_timeout_ms(60_000)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    client.call(4, &request).await
}

#[tokio::test]
async fn offsets_of_a_transaction_count_when_it_is_committed() {
    let (broker, mut client) = start().await;
    let mut who = init(&mut client).await;
    for (commit, expected) in [(false, None), (true, Some(42))] {
        let partition =
            TxnOffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(42);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name("t"))
            .with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id("tx"))
            .with_group_id(GroupId(text("g")))
            .with_producer_id(who.0.into())
            .with_producer_epoch(who.1)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        assert_eq!(client.call(5, &request).await.topics[0].partitions[0].error_code, 0);
        assert_eq!(broker.committed("g", "t", 0), None);
        let topic =
            OffsetFetchRequestTopics::default().with_name(topic_name("t")).with_partition_indexes(vec![0]);
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text("g")))
            .with_topics(Some(vec![topic]));
        let ask = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(true);
        let pending = client.call(8, &ask).await.groups[0].topics[0].partitions[0].error_code;
        assert_eq!(pending, ResponseError::UnstableOffsetCommit.code());
        let ended = end(&mut client, 5, who, commit).await;
        who = (ended.producer_id.0, ended.producer_epoch);
        assert_eq!(broker.committed("g", "t", 0), expected);
        assert_eq!(client.call(8, &ask).await.groups[0].topics[0].partitions[0].error_code, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_takes_too_long_is_aborted_by_the_coordinator() {
    let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let mut client = Client::over(broker.network().connect_to("c", 1, Listener::Plaintext).unwrap());
    let who = init(&mut client).await;
    assert_eq!(send(&mut client, 12, who, 0, &["a"]).await, 0);
    assert_eq!(committed(&mut client).await.1, 0);
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert_eq!(committed(&mut client).await.1, 2);
    assert_eq!(send(&mut client, 12, who, 1, &["b"]).await, ResponseError::InvalidProducerEpoch.code());
}
