//! What brokers say of logs, producers, transactions and groups, and what they let be deleted.

use kafka_protocol::messages::{
    create_topics_request::CreatableTopicConfig,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    describe_producers_request::TopicRequest,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
    offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
    *,
};

use super::{
    Broker, Duration, GroupId, MINUTE, NOBODY, TransactionalId, batch, commit, now_ms, on_both, text,
    topic_name, unique,
};

const COMMITTED: i8 = 1;

impl Broker {
    /// Code, time, offset and leader epoch of each answer.
    async fn offsets(
        &self,
        version: i16,
        isolation: i8,
        topic: &TopicName,
        times: &[i64],
    ) -> Vec<(i16, i64, i64, i32)> {
        let one = |time: &i64| ListOffsetsPartition::default().with_timestamp(*time);
        let topic = ListOffsetsTopic::default()
            .with_name(topic.clone())
            .with_partitions(times.iter().map(one).collect());
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(isolation)
            .with_timeout_ms(5000)
            .with_topics(vec![topic]);
        let answer = self.ask(version, &request).await;
        let told = |p: &list_offsets_response::ListOffsetsPartitionResponse| {
            (p.error_code, p.timestamp, p.offset, p.leader_epoch)
        };
        answer.topics[0].partitions.iter().map(told).collect()
    }

    async fn delete_before(&self, topic: &TopicName, index: i32, offset: i64) -> (i16, i64) {
        let partition = DeleteRecordsPartition::default().with_partition_index(index).with_offset(offset);
        let topic = DeleteRecordsTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(5000);
        let answer = self.ask(2, &request).await;
        let told = &answer.topics[0].partitions[0];
        (told.error_code, told.low_watermark)
    }

    /// Code, epoch, last sequence, time, coordinator's epoch and the start of the open transaction.
    async fn producers(&self, topic: &TopicName, index: i32) -> (i16, Vec<(i32, i32, i64, i32, i64)>) {
        let topic = TopicRequest::default().with_name(topic.clone()).with_partition_indexes(vec![index]);
        let request = DescribeProducersRequest::default().with_topics(vec![topic]);
        let answer = self.ask(0, &request).await;
        let found = &answer.topics[0].partitions[0];
        let told = |p: &describe_producers_response::ProducerState| {
            let (sequence, time) = (p.last_sequence, p.last_timestamp);
            (p.producer_epoch, sequence, time, p.coordinator_epoch, p.current_txn_start_offset)
        };
        (found.error_code, found.active_producers.iter().map(told).collect())
    }

    /// Code, state, whether it has a start, epoch, partitions.
    async fn transaction(&self, id: &str) -> (i16, String, bool, i16, usize) {
        let ids = vec![TransactionalId(text(id))];
        let request = DescribeTransactionsRequest::default().with_transactional_ids(ids);
        let answer = self.ask(0, &request).await;
        let told = &answer.transaction_states[0];
        let begun = told.transaction_start_time_ms > 0;
        let state = told.transaction_state.to_string();
        (told.error_code, state, begun, told.producer_epoch, told.topics.len())
    }

    async fn is_listed(&self, id: &str, older_than_ms: i64) -> bool {
        let request = ListTransactionsRequest::default().with_duration_filter(older_than_ms);
        let listed = self.ask(1, &request).await.transaction_states;
        listed.iter().any(|state| &**state.transactional_id == id)
    }

    async fn forget(&self, group: &str, topic: &TopicName, index: i32) -> (i16, Vec<i16>) {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(index);
        let topic =
            OffsetDeleteRequestTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
        let request =
            OffsetDeleteRequest::default().with_group_id(GroupId(text(group))).with_topics(vec![topic]);
        let answer = self.settled(0, &request, |answer| answer.error_code).await;
        let codes = answer.topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.error_code));
        (answer.error_code, codes.collect())
    }

    /// Code, epoch and end offset.
    async fn epoch_end(&self, topic: &TopicName, current: i32, epoch: i32) -> (i16, i32, i64) {
        let partition =
            OffsetForLeaderPartition::default().with_current_leader_epoch(current).with_leader_epoch(epoch);
        let topic =
            OffsetForLeaderTopic::default().with_topic(topic.clone()).with_partitions(vec![partition]);
        let request =
            OffsetForLeaderEpochRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]);
        let answer = self.ask(4, &request).await;
        let told = &answer.topics[0].partitions[0];
        (told.error_code, told.leader_epoch, told.end_offset)
    }
}

#[test]
fn offsets_are_found_by_time_and_by_name() {
    on_both(async |broker| {
        let (name, id) = broker.topic(1).await;
        let named = (&name, id);
        broker.tell("empty", broker.offsets(10, 0, &name, &[-1]).await);
        broker.tell("empty, first", broker.offsets(10, 0, &name, &[-2]).await);
        broker.tell("empty, newest", broker.offsets(10, 0, &name, &[-3]).await);
        broker.tell("empty, by time", broker.offsets(10, 0, &name, &[0]).await);
        for time in [1000, 3000, 2000] {
            broker.produce(9, None, named, batch(NOBODY, 0, 0, time, 1)).await;
        }
        for time in [-1, -2, -3, -4, -5, -7, 0, 1000, 1001, 3000, 3001] {
            broker.tell(&time.to_string(), broker.offsets(10, 0, &name, &[time]).await);
        }
        broker.tell("-3 in version 6", broker.offsets(6, 0, &name, &[-3]).await);
        broker.tell("-4 in version 7", broker.offsets(7, 0, &name, &[-4]).await);
        broker.tell("-5 in version 8", broker.offsets(8, 0, &name, &[-5]).await);
        broker.tell("twice", broker.offsets(10, 0, &name, &[-1, -2]).await[0]);
        broker.tell("nowhere", broker.offsets(10, 0, &topic_name("nowhere"), &[-1]).await);
        broker.expect(&[
            "empty: [(0, -1, 0, 0)]",
            "empty, first: [(0, -1, 0, 0)]",
            "empty, newest: [(0, -1, -1, -1)]",
            "empty, by time: [(0, -1, -1, -1)]",
            "-1: [(0, -1, 3, 0)]",
            "-2: [(0, -1, 0, 0)]",
            "-3: [(0, 3000, 1, 0)]",
            "-4: [(0, -1, 0, 0)]",
            "-5: [(0, -1, -1, -1)]",
            "-7: [(35, -1, -1, -1)]",
            "0: [(0, 1000, 0, 0)]",
            "1000: [(0, 1000, 0, 0)]",
            "1001: [(0, 3000, 1, 0)]",
            "3000: [(0, 3000, 1, 0)]",
            "3001: [(0, -1, -1, -1)]",
            "-3 in version 6: [(35, -1, -1, -1)]",
            "-4 in version 7: [(35, -1, -1, -1)]",
            "-5 in version 8: [(35, -1, -1, -1)]",
            "twice: (42, -1, -1, -1)",
            "nowhere: [(3, -1, -1, -1)]",
        ]);

        let tx = &*unique("tx");
        broker.coordinator(1, tx).await;
        let (_, who) = broker.init(tx, MINUTE, None).await;
        broker.produce(12, Some(tx), named, batch((who.0, who.1, 0), 0x10, 0, 9000, 1)).await;
        for (what, isolation) in [("all", 0), ("committed", COMMITTED)] {
            for time in [-1, -3, 2500, 9000] {
                let told = broker.offsets(10, isolation, &name, &[time]).await;
                broker.tell(&format!("{what} {time}"), told);
            }
        }
        broker.end(5, tx, who, true).await;
        while broker.transaction(tx).await.1 != "CompleteCommit" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The marker is of now.
        for time in [-3, 9001] {
            let told = broker.offsets(10, COMMITTED, &name, &[time]).await;
            broker.tell(&format!("marker {time}"), (told[0].0, told[0].2));
        }
        for (current, epoch) in [(-1, 0), (0, 0), (0, 1), (-1, 5), (5, 0), (-1, -1)] {
            let told = broker.epoch_end(&name, current, epoch).await;
            broker.tell(&format!("epoch {epoch} by {current}"), told);
        }
        broker.expect(&[
            "all -1: [(0, -1, 4, 0)]",
            "all -3: [(0, 9000, 3, 0)]",
            "all 2500: [(0, 3000, 1, 0)]",
            "all 9000: [(0, 9000, 3, 0)]",
            "committed -1: [(0, -1, 3, 0)]",
            "committed -3: [(0, -1, -1, -1)]",
            "committed 2500: [(0, 3000, 1, 0)]",
            "committed 9000: [(0, -1, -1, -1)]",
            "marker -3: (0, 4)",
            "marker 9001: (0, 4)",
            "epoch 0 by -1: (0, 0, 5)",
            "epoch 0 by 0: (0, 0, 5)",
            "epoch 1 by 0: (0, -1, -1)",
            "epoch 5 by -1: (0, -1, -1)",
            "epoch 0 by 5: (75, -1, -1)",
            "epoch -1 by -1: (0, -1, -1)",
        ]);
    });
}

#[test]
fn records_and_offsets_are_deleted_within_bounds() {
    on_both(async |broker| {
        let (name, id) = broker.topic(1).await;
        for _ in 0..4 {
            broker.produce(9, None, (&name, id), batch(NOBODY, 0, 0, now_ms(), 1)).await;
        }
        for offset in [-2, 5, 2, 1, -1] {
            broker.tell(&format!("before {offset}"), broker.delete_before(&name, 0, offset).await);
        }
        broker.tell("another partition", broker.delete_before(&name, 7, 0).await);
        let config = CreatableTopicConfig::default()
            .with_name(text("cleanup.policy"))
            .with_value(Some(text("compact")));
        let compacted = broker.configured_topic(1, vec![config]).await.0;
        broker.tell("compacted", broker.delete_before(&compacted, 0, 0).await);

        let group = &*unique("g");
        broker.coordinator(0, group).await;
        broker.tell("no group", broker.forget(group, &name, 0).await);
        assert_eq!(broker.commit(9, commit(group, "", -1, &name, 0)).await, 0);
        broker.tell("a partition that is not there", broker.forget(group, &name, 7).await);
        broker.tell("a topic that is not there", broker.forget(group, &topic_name("nowhere"), 0).await);
        broker.tell("an offset", broker.forget(group, &name, 0).await);
        broker.tell("again", broker.forget(group, &name, 0).await);
        let request = DeleteGroupsRequest::default().with_groups_names(vec![
            GroupId(text(group)),
            GroupId(text("nobody")),
            GroupId(text("")),
        ]);
        let told = broker.settled(2, &request, |answer| answer.results[0].error_code).await;
        let mut codes: Vec<i16> = told.results.iter().map(|r| r.error_code).collect();
        codes.sort_unstable();
        broker.tell("groups", codes);
        broker.expect(&[
            "before -2: (1, -1)",
            "before 5: (1, -1)",
            "before 2: (0, 2)",
            "before 1: (0, 2)",
            "before -1: (0, 4)",
            "another partition: (3, -1)",
            "compacted: (44, -1)",
            "no group: (69, [])",
            "a partition that is not there: (0, [3])",
            "a topic that is not there: (0, [3])",
            "an offset: (0, [0])",
            "again: (0, [0])",
            "groups: [0, 69, 69]",
        ]);
    });
}

#[test]
fn producers_and_transactions_are_described() {
    on_both(async |broker| {
        let (name, id) = broker.topic(1).await;
        let topic = (&name, id);
        let tx = &*unique("tx");
        broker.tell("unknown", broker.transaction(tx).await);
        broker.coordinator(1, tx).await;
        let (_, who) = broker.init(tx, MINUTE, None).await;
        broker.tell("empty", broker.transaction(tx).await);
        broker.tell("empty, of any age", broker.is_listed(tx, -1).await);
        broker.tell("empty, of a minute", broker.is_listed(tx, 60_000).await);
        broker.produce(12, Some(tx), topic, batch((who.0, who.1, 0), 0x10, 0, 1000, 1)).await;
        broker.tell("open", broker.transaction(tx).await);
        broker.tell("open, of a minute", broker.is_listed(tx, 60_000).await);
        broker.tell("its producer", broker.producers(&name, 0).await);
        broker.tell("of no partition", broker.producers(&name, 7).await);

        // Whoever says an older epoch of the same producer.
        let code = async |expected: Option<(i64, i16)>| {
            let (producer, epoch) = expected.unwrap_or((-1, -1));
            let request = InitProducerIdRequest::default()
                .with_transactional_id(Some(TransactionalId(text(tx))))
                .with_transaction_timeout_ms(60_000)
                .with_producer_id(producer.into())
                .with_producer_epoch(epoch);
            broker.ask(5, &request).await.error_code
        };
        broker.tell("init of another", code(Some((who.0 + 77, 0))).await);
        broker.tell("still", broker.transaction(tx).await.1);
        broker.tell("init of an epoch that was never", code(Some((who.0, 9))).await);
        while broker.transaction(tx).await.1 == "PrepareAbort" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        broker.tell("then", broker.transaction(tx).await);
        broker.tell("again", code(Some((who.0, 9))).await);
        let (sequence, coordinator) = {
            let (_, told) = broker.producers(&name, 0).await;
            ((told[0].0, told[0].1), (told[0].3, told[0].4))
        };
        broker.tell("its producer", (sequence, coordinator));
        broker.init(tx, MINUTE, None).await;
        broker.tell("next", broker.transaction(tx).await);
        broker.expect(&[
            "unknown: (105, \"\", false, 0, 0)",
            "empty: (0, \"Empty\", false, 0, 0)",
            "empty, of any age: true",
            "empty, of a minute: true",
            "open: (0, \"Ongoing\", true, 0, 1)",
            "open, of a minute: false",
            "its producer: (0, [(0, 0, 1000, -1, 0)])",
            "of no partition: (3, [])",
            "init of another: 90",
            "still: \"Ongoing\"",
            "init of an epoch that was never: 51",
            "then: (0, \"CompleteAbort\", true, 1, 0)",
            "again: 90",
            "its producer: ((1, -1), (0, -1))",
            "next: (0, \"Empty\", false, 2, 0)",
        ]);
    });
}
