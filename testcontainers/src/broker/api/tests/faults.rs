//! Faults, lagging replicas and crashes over the wire.

use std::time::Duration;

use super::super::super::{Effect, Fault};
use super::*;

async fn in_memory(brokers: i32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::builder().in_memory().brokers(brokers).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    broker
}

fn connect(broker: &EmbeddedBroker, id: i32) -> Client {
    Client::over(broker.network().connect_to("c", id, Listener::Plaintext).unwrap())
}

#[tokio::test(start_paused = true)]
async fn acks_all_waits_for_the_in_sync_replicas_and_was_written_when_it_times_out() {
    let broker = in_memory(2).await;
    let control = broker.control();
    let mut client = connect(&broker, 1);
    control.lag("t", 0, 2).unwrap();
    let (code, _) = produced(&mut client, 9, batch(&["a"], None)).await;
    assert_eq!(code, ResponseError::RequestTimedOut.code());
    assert_eq!(broker.records("t", 0).unwrap().len(), 1);
    let read = client.call(12, &fetch(0).with_max_wait_ms(0)).await;
    assert_eq!(read.responses[0].partitions[0].high_watermark, 0, "not yet readable");
    control.shrink_isr("t", 0, 2).unwrap();
    let read = client.call(12, &fetch(0).with_max_wait_ms(0)).await;
    assert_eq!(read.responses[0].partitions[0].high_watermark, 1);
    control.move_leader("t", 0, 2).unwrap();
    assert_eq!(broker.records("t", 0).unwrap().len(), 0, "the new leader never had it");
    let mut other = connect(&broker, 2);
    let read = other.call(12, &fetch(1).with_max_wait_ms(0)).await;
    assert_eq!(read.responses[0].partitions[0].error_code, ResponseError::OffsetOutOfRange.code());
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_and_how_follows_the_rules() {
    let broker = in_memory(1).await;
    let control = broker.control();
    let mut client = connect(&broker, 1);
    let timed_out = ResponseError::RequestTimedOut;
    control.inject(Fault::on(ApiKey::Produce).topic("t").times(1).effect(Effect::ErrorAfter(timed_out)));
    let (code, _) = produced(&mut client, 9, batch(&["a"], None)).await;
    assert_eq!(code, timed_out.code());
    assert_eq!(broker.records("t", 0).unwrap().len(), 1);

    let pause = Duration::from_secs(1);
    let slow = control.inject(Fault::anywhere().effect(Effect::Trickle(1, pause)));
    let request = produce("t", batch(&["b"], None));
    let mut answer = Box::pin(client.call(9, &request));
    let early = tokio::time::timeout(pause * 20, &mut answer).await;
    assert!(early.is_err(), "it comes byte by byte");
    answer.await;
    control.withdraw(slow);

    control.inject(Fault::on(ApiKey::Produce).times(1).effect(Effect::Truncate(9)));
    client.send(9, &produce("t", batch(&["c"], None))).await;
    let mut got = Vec::new();
    client.stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), 9);

    let mut client = connect(&broker, 1);
    control.inject(Fault::on(ApiKey::Produce).times(1).effect(Effect::Silence));
    client.send(9, &produce("t", batch(&["d"], None))).await;
    let answer = tokio::time::timeout(pause * 60, client.receive::<ProduceRequest>(9)).await;
    assert!(answer.is_err());
    assert_eq!(broker.records("t", 0).unwrap().len(), 3, "c was written, d was not");
}

#[tokio::test]
async fn a_crash_leaves_five_batches_of_a_producer_known_and_a_clean_stop_one() {
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let address = broker.bootstrap_servers();
    let control = broker.control();
    let mut client = Client::connect(&address).await;
    for sequence in 0..3 {
        let (code, offset) = produced(&mut client, 9, batch(&["x"], Some((9, 0, sequence)))).await;
        assert_eq!((code, offset), (0, i64::from(sequence)));
    }
    control.kill_broker(1).unwrap();
    control.start_broker(1).await.unwrap();
    let mut client = Client::connect(&address).await;
    assert_eq!(produced(&mut client, 9, batch(&["x"], Some((9, 0, 0)))).await, (0, 0));
    control.stop_broker(1).unwrap();
    control.start_broker(1).await.unwrap();
    let mut client = Client::connect(&address).await;
    let out_of_order = ResponseError::OutOfOrderSequenceNumber.code();
    assert_eq!(produced(&mut client, 9, batch(&["x"], Some((9, 0, 0)))).await, (out_of_order, -1));
    assert_eq!(produced(&mut client, 9, batch(&["x"], Some((9, 0, 2)))).await, (0, 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_corrupt_throttled_or_lost_after_it_was_applied() {
    let broker = in_memory(1).await;
    let control = broker.control();
    let mut client = connect(&broker, 1);
    let whole = async |client: &mut Client| {
        let size = client.stream.read_i32().await.unwrap();
        let mut frame = vec![0; size as usize];
        client.stream.read_exact(&mut frame).await.unwrap();
        frame
    };
    let request = MetadataRequest::default().with_topics(None);
    client.send(9, &request).await;
    let mut good = whole(&mut client).await;
    control.inject(Fault::on(ApiKey::Metadata).times(1).effect(Effect::Corrupt));
    client.send(9, &request).await;
    let corrupt = whole(&mut client).await;
    // The correlation ids differ anyhow.
    good[..4].copy_from_slice(&client.correlation.to_be_bytes());
    assert_eq!(good.len(), corrupt.len());
    let bits: u32 = good.iter().zip(&corrupt).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!(bits, 1);

    let pause = Duration::from_secs(3);
    control.inject(Fault::on(ApiKey::Metadata).times(1).effect(Effect::Throttle(pause)));
    assert_eq!(client.call(9, &request).await.throttle_time_ms, 3000);
    let mut next = Box::pin(client.call(9, &request));
    let early = tokio::time::timeout(pause - Duration::from_millis(10), &mut next).await;
    assert!(early.is_err(), "it is not read from");
    assert_eq!(next.await.throttle_time_ms, 0);

    control.inject(Fault::on(ApiKey::Produce).times(1).effect(Effect::SilenceAfter));
    client.send(9, &produce("t", batch(&["a"], None))).await;
    let answer = tokio::time::timeout(pause * 60, client.receive::<ProduceRequest>(9)).await;
    assert!(answer.is_err());
    assert_eq!(broker.records("t", 0).unwrap().len(), 1, "it was written");
}

#[tokio::test(start_paused = true)]
async fn that_clients_must_start_over_is_said_of_the_whole_answer_and_clusters_of_two_ids_share_nothing() {
    let broker = in_memory(1).await;
    let mut client = connect(&broker, 1);
    let required = ResponseError::RebootstrapRequired;
    broker.control().fail(ApiKey::Metadata, 2, required);
    let ours = MetadataRequestTopic::default().with_name(Some(topic_name("t")));
    for topics in [vec![], vec![ours]] {
        let answer = client.call(13, &MetadataRequest::default().with_topics(Some(topics))).await;
        assert_eq!((answer.error_code, answer.brokers.len(), answer.topics.len()), (required.code(), 0, 0));
    }
    let all = MetadataRequest::default().with_topics(None);
    let ours = client.call(13, &all).await;
    let other = EmbeddedBroker::builder().in_memory().cluster_id("other").start().await.unwrap();
    other.create_topic("t", 1).unwrap();
    let theirs = connect(&other, 1).call(13, &all).await;
    assert_eq!(theirs.cluster_id.as_deref(), Some("other"));
    assert!(ours.cluster_id != theirs.cluster_id && ours.topics[0].topic_id != theirs.topics[0].topic_id);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_was_made_while_nobody_ran_is_led_by_who_comes() {
    let broker = EmbeddedBroker::builder().in_memory().brokers(2).start().await.unwrap();
    let control = broker.control();
    (1..=2).for_each(|id| control.stop_broker(id).unwrap());
    broker.create_topic("t", 2).unwrap();
    for id in 1..=2 {
        control.start_broker(id).await.unwrap();
    }
    let metadata = connect(&broker, 1).call(9, &MetadataRequest::default().with_topics(None)).await;
    let partitions = metadata.topics[0].partitions.iter();
    assert_eq!(partitions.map(|p| (p.error_code, p.leader_id.0)).collect::<Vec<_>>(), [(0, 1), (0, 2)]);
    assert_eq!(produced(&mut connect(&broker, 1), 9, batch(&["a"], None)).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_leader_names_the_replica_in_the_readers_rack_and_that_one_answers_with_what_it_has() {
    let broker =
        EmbeddedBroker::builder().in_memory().brokers(3).racks(["a", "b", "c"]).start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let control = broker.control();
    let (mut leader, mut near) = (connect(&broker, 1), connect(&broker, 2));
    let metadata = leader.call(9, &MetadataRequest::default().with_topics(None)).await;
    let racks = metadata.brokers.iter().map(|broker| broker.rack.as_deref());
    assert_eq!(racks.collect::<Vec<_>>(), [Some("a"), Some("b"), Some("c")]);
    assert_eq!(produced(&mut leader, 9, batch(&["a"], None)).await.0, 0);

    let fetch = |offset, rack| fetch(offset).with_max_wait_ms(0).with_rack_id(text(rack));
    let told = |answer: FetchResponse| {
        let data = answer.responses[0].partitions[0].clone();
        let has_records = data.records.is_some_and(|records| !records.is_empty());
        (data.error_code, data.preferred_read_replica.0, data.high_watermark, has_records)
    };
    assert_eq!(told(leader.call(11, &fetch(0, "b")).await), (0, 2, 1, false));
    assert_eq!(told(leader.call(11, &fetch(0, "a")).await), (0, -1, 1, true), "it is as near");
    assert_eq!(told(leader.call(11, &fetch(0, "")).await), (0, -1, 1, true));
    assert_eq!(told(leader.call(11, &fetch(0, "d")).await), (0, -1, 1, true), "nobody is there");
    assert_eq!(told(near.call(11, &fetch(0, "b")).await), (0, -1, 1, true));
    let refused = ResponseError::NotLeaderOrFollower.code();
    assert_eq!(told(near.call(10, &fetch(0, "")).await).0, refused, "an earlier version asks leaders");

    // One that lags is not named once it is out of sync, and has no more than it has.
    control.shrink_isr("t", 0, 2).unwrap();
    assert_eq!(produced(&mut leader, 9, batch(&["b"], None)).await.0, 0);
    assert_eq!(told(leader.call(11, &fetch(1, "b")).await), (0, -1, 2, true));
    assert_eq!(told(near.call(11, &fetch(1, "b")).await), (0, -1, 1, false));
    assert_eq!(told(near.call(11, &fetch(2, "b")).await).0, ResponseError::OffsetOutOfRange.code());
    control.catch_up("t", 0, 2).unwrap();
    assert_eq!(told(near.call(11, &fetch(1, "b")).await), (0, -1, 2, true));
    control.stop_broker(2).unwrap();
    assert_eq!(told(leader.call(11, &fetch(0, "b")).await), (0, -1, 2, true), "it does not run");
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_has_not_read_when_a_connection_breaks_is_lost_and_what_was_only_closed_is_served() {
    for breaks in [true, false] {
        let broker = in_memory(1).await;
        let pause = Duration::from_secs(5);
        broker.control().inject(Fault::on(ApiKey::Produce).times(1).effect(Effect::Throttle(pause)));
        let stream = broker.network().connect_to("c", 1, Listener::Plaintext).unwrap();
        let breaker = stream.breaker();
        let mut client = Client::over(stream);
        client.call(9, &produce("t", batch(&["a"], None))).await;
        // The broker does not read for a while.
        client.send(9, &produce("t", batch(&["b"], None))).await;
        tokio::time::sleep(pause / 2).await;
        if breaks {
            breaker.reset();
        }
        drop(client);
        tokio::time::sleep(pause).await;
        assert_eq!(broker.records("t", 0).unwrap().len(), if breaks { 1 } else { 2 });
    }
}
