//! The Produce request and its answer, to and from the wire. Decides nothing.
//!
//! KIP-467 (errors of records), KIP-516 (topics by id), KIP-951 (leaders in the answer).

use std::sync::Arc;

use super::{
    Shared,
    sender::{Answer, Request},
};
use crate::{
    cluster::{Endpoint, LeaderHint, TopicId, kafka_string, millis},
    config::settings::Acks,
    connection::api::wire,
    error::code,
    record::TopicPartition,
    sorted,
    time::Instant,
};

impl Shared {
    /// What a planned request says on the wire, and its deadline. Sorts its batches by their topics.
    pub(super) fn wire_request(&self, request: &mut Request) -> (wire::ProduceRequest, Instant) {
        sorted::sort_by(&mut request.batches, |a, b| a.partition.topic.cmp(&b.partition.topic));
        let of_topics = request.batches.chunk_by(|a, b| a.partition.topic == b.partition.topic);
        let topics = of_topics.map(|batches| {
            let partitions = batches.iter().map(|sent| wire::produce_request::PartitionProduceData {
                index: sent.partition.partition,
                records: Some(sent.batch.bytes.clone()),
            });
            wire::produce_request::TopicProduceData {
                name: kafka_string(&batches[0].partition.topic),
                topic_id: wire::Uuid(batches[0].topic_id),
                partition_data: partitions.collect(),
            }
        });
        // Not the deadline of a batch: one that is late must not take its neighbours with it.
        let timeout = self.cluster.settings().request_timeout;
        let wire_request = wire::ProduceRequest {
            transactional_id: self.transactions.as_ref().map(|transactions| kafka_string(&transactions.id)),
            acks: wire_acks(self.settings.acks),
            timeout_ms: millis(timeout),
            topic_data: topics.collect(),
        };
        (wire_request, request.sent_at + timeout)
    }
}

/// The names of a request's topics, sorted by their ids.
pub(super) type Names = Vec<(TopicId, Arc<str>)>;

pub(super) fn names(request: &Request) -> Names {
    let mut names = Names::new();
    for sent in &request.batches {
        if names.last().is_none_or(|(id, _)| *id != sent.topic_id) {
            names.push((sent.topic_id, Arc::clone(&sent.partition.topic)));
        }
    }
    sorted::sort_by(&mut names, |(a, _), (b, _)| a.cmp(b));
    names
}

/// What a topic of an answer is called, which names it by its id from version 13 on.
fn name_of<'a>(topic: &'a wire::produce_response::TopicProduceResponse, names: &'a Names) -> &'a str {
    match names.binary_search_by_key(&topic.topic_id.0, |(id, _)| *id) {
        Ok(place) if topic.name.is_empty() => &names[place].1,
        _ => &topic.name,
    }
}

/// The id of the topic that was asked about, also where the answer is by name: epochs compare only within one life of a topic.
fn id_of(topic: &wire::produce_response::TopicProduceResponse, names: &Names) -> TopicId {
    if topic.topic_id.0 != TopicId::default() {
        return topic.topic_id.0;
    }
    names.iter().find(|(_, name)| **name == *topic.name).map_or_else(TopicId::default, |(id, _)| *id)
}

pub(super) fn read_answers<'a>(
    answer: &'a wire::ProduceResponse,
    names: &'a Names,
) -> Vec<((&'a str, i32), Answer)> {
    let mut answers = Vec::new();
    for topic in &answer.responses {
        let name = name_of(topic, names);
        for partition in &topic.partition_responses {
            let record_errors = partition.record_errors.iter().map(|record| {
                let message = record.batch_index_error_message.as_ref();
                (record.batch_index, message.map(|text| text.to_string()))
            });
            let answer = Answer {
                code: partition.error_code,
                base_offset: partition.base_offset,
                log_append_time: partition.log_append_time_ms,
                message: partition.error_message.as_ref().map(|text| text.to_string()),
                record_errors: record_errors.collect(),
            };
            answers.push(((name, partition.index), answer));
        }
    }
    sorted::sort_by(&mut answers, |(a, _), (b, _)| a.cmp(b));
    // Of answers that contradict each other none counts: nobody knows what became of the batch, as after a time-out.
    answers.dedup_by(|(place, other), (kept_place, kept)| {
        let is_same = place == kept_place;
        if is_same && other.code != kept.code {
            let message = Some(String::from("the broker's answer contradicts itself"));
            *kept = Answer { code: code::REQUEST_TIMED_OUT, message, ..Answer::default() };
        }
        is_same
    });
    answers
}

/// The leaders that an answer tells of in place of those that were asked (KIP-951), and where they are.
pub(super) fn read_leaders(
    answer: &wire::ProduceResponse,
    names: &Names,
) -> (Vec<LeaderHint>, Vec<Endpoint>) {
    let mut hints = Vec::new();
    for topic in &answer.responses {
        for partition in &topic.partition_responses {
            let told = &partition.current_leader;
            if partition.error_code != code::NONE && told.leader_id >= 0 {
                let partition = TopicPartition::new(name_of(topic, names), partition.index);
                hints.push(LeaderHint {
                    partition,
                    topic_id: id_of(topic, names),
                    leader: told.leader_id,
                    epoch: told.leader_epoch,
                });
            }
        }
    }
    let endpoints = answer.node_endpoints.iter().map(|node| Endpoint {
        id: node.node_id,
        host: node.host.to_string(),
        port: node.port,
        rack: node.rack.as_ref().map(|rack| rack.to_string()),
    });
    (hints, endpoints.collect())
}

/// The wire's value of `acks`.
fn wire_acks(acks: Acks) -> i16 {
    match acks {
        Acks::All => -1,
        Acks::Leader => 1,
        Acks::None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_id_and_by_name_are_read_with_the_leaders_they_tell_of() {
        use wire::produce_response::{
            LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
        };
        let told = |error_code, leader_id| PartitionProduceResponse {
            index: leader_id,
            error_code,
            base_offset: 9,
            current_leader: LeaderIdAndEpoch { leader_id, leader_epoch: 5 },
            ..Default::default()
        };
        let by_id = TopicProduceResponse {
            topic_id: wire::Uuid([7; 16]),
            partition_responses: vec![told(code::NOT_LEADER_OR_FOLLOWER, 3), told(0, 4)],
            ..Default::default()
        };
        let by_name = TopicProduceResponse {
            name: kafka_string("invoices"),
            partition_responses: vec![told(0, -1)],
            ..Default::default()
        };
        let node = NodeEndpoint { node_id: 3, host: kafka_string("three"), port: 9092, rack: None };
        let answer = wire::ProduceResponse {
            responses: vec![by_id, by_name],
            node_endpoints: vec![node],
            ..Default::default()
        };
        let names = vec![([0; 16], Arc::from("wrong")), ([7; 16], Arc::from("orders"))];
        let answers = read_answers(&answer, &names);
        let places: Vec<_> =
            answers.iter().map(|((name, index), answer)| (*name, *index, answer.code)).collect();
        assert_eq!(
            places,
            [("invoices", -1, 0), ("orders", 3, code::NOT_LEADER_OR_FOLLOWER), ("orders", 4, 0)]
        );
        let (hints, endpoints) = read_leaders(&answer, &names);
        let partition = TopicPartition::new("orders", 3);
        assert_eq!(hints, [LeaderHint { partition, topic_id: [7; 16], leader: 3, epoch: 5 }]);
        assert_eq!((endpoints[0].id, &*endpoints[0].host, endpoints.len()), (3, "three", 1));
        // Up to version 12 the answer is by name, and the id is that of the records.
        let by_name = TopicProduceResponse {
            name: kafka_string("orders"),
            partition_responses: vec![told(code::NOT_LEADER_OR_FOLLOWER, 3)],
            ..Default::default()
        };
        let answer = wire::ProduceResponse { responses: vec![by_name], ..Default::default() };
        assert_eq!(read_leaders(&answer, &names).0[0].topic_id, [7; 16]);
    }

    #[test]
    fn of_answers_that_contradict_each_other_for_a_partition_none_counts() {
        use wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};
        let unknown = code::REQUEST_TIMED_OUT;
        for (codes, expected) in
            [([0, 87], unknown), ([87, 0], unknown), ([6, 87], unknown), ([0, 0], code::NONE), ([6, 6], 6)]
        {
            let told = |error_code| PartitionProduceResponse { index: 3, error_code, ..Default::default() };
            let topic = TopicProduceResponse {
                name: kafka_string("t"),
                partition_responses: codes.map(told).to_vec(),
                ..Default::default()
            };
            let answer = wire::ProduceResponse { responses: vec![topic], ..Default::default() };
            let names = Names::new();
            let answers = read_answers(&answer, &names);
            assert_eq!((answers.len(), answers[0].1.code), (1, expected), "{codes:?}");
        }
    }
}
