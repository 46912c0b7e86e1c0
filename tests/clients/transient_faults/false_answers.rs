//! Answers that are complete but false, or that nobody expects. One function per subject pairs each change with its name.

use bytes::Bytes;
use dtkafka_testcontainers::broker::{ApiKey, Profile};
use kafka_protocol::{
    messages::{
        AddPartitionsToTxnResponse, FetchResponse, FindCoordinatorResponse, InitProducerIdResponse,
        JoinGroupResponse, ListOffsetsResponse, MetadataResponse, OffsetCommitResponse, OffsetFetchResponse,
        ProduceResponse, SaslAuthenticateResponse, SyncGroupResponse, find_coordinator_response::Coordinator,
        metadata_response::MetadataResponseBroker,
    },
    protocol::StrBytes,
};

use super::{
    Scenario,
    network::{Asked, Reply, name},
    run_all, scenario,
};

#[test]
fn false_metadata_for_a_while_do_no_harm() {
    run_all(metadata());
}

#[test]
fn false_answers_about_groups_and_offsets_for_a_while_do_no_harm() {
    run_all([coordinators(), offsets(), members()].into_iter().flatten().collect());
}

#[test]
fn false_answers_about_records_for_a_while_do_no_harm() {
    run_all([produced(), fetched()].into_iter().flatten().collect());
}

#[test]
fn throttling_and_short_sasl_sessions_do_no_harm() {
    run_all([throttles(), sessions()].into_iter().flatten().collect());
}

fn metadata() -> Vec<Scenario> {
    let lie = |name: &str, change: fn(u64, &mut MetadataResponse)| {
        scenario(format!("metadata: {name}")).change_answers(ApiKey::Metadata, change)
    };
    vec![
        lie("the brokers swap their ids", |_, answer| {
            for broker in &mut answer.brokers {
                broker.host = name(3 - broker.node_id.0);
            }
        }),
        lie("the brokers swap their ids again and again", |number, answer| {
            for broker in answer.brokers.iter_mut().filter(|_| number % 2 == 0) {
                broker.host = name(3 - broker.node_id.0);
            }
        }),
        lie("broker 2 comes and goes", |number, answer| {
            if number % 2 == 0 {
                answer.brokers.retain(|broker| broker.node_id.0 == 1);
            }
        }),
        lie("no broker at all", |number, answer| {
            if number % 2 == 1 {
                answer.brokers.clear();
            }
        }),
        lie("the topic comes and goes", |number, answer| {
            if number % 2 == 0 {
                answer.topics.clear();
            }
        }),
        lie("the topic has no partitions at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 3 < 2) {
                topic.partitions.clear();
            }
        }),
        lie("the topic lacks its last partitions at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                topic.partitions.truncate(1);
            }
        }),
        lie("the topic is said not to exist at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                topic.error_code = 3;
                topic.partitions.clear();
            }
        }),
        lie("no leaders at times", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 3 < 2) {
                for partition in &mut topic.partitions {
                    partition.leader_id = (-1).into();
                    partition.error_code = 5;
                }
            }
        }),
        lie("leaders that are not there", |number, answer| {
            for topic in answer.topics.iter_mut().filter(|_| number % 2 == 0) {
                for partition in &mut topic.partitions {
                    partition.leader_id = 77.into();
                }
            }
        }),
        lie("everything leads to the other broker", |_, answer| {
            for topic in &mut answer.topics {
                for partition in &mut topic.partitions {
                    partition.leader_id = (3 - partition.leader_id.0).into();
                }
            }
        }),
        lie("a controller that is not there", |_, answer| answer.controller_id = 99.into()),
        lie("hosts that nobody can reach", |number, answer| {
            for broker in answer.brokers.iter_mut().filter(|_| number % 2 == 0) {
                broker.host = StrBytes::from_static_str("");
            }
        }),
        lie("each broker thrice, and others", |_, answer| {
            let mut all = answer.brokers.clone();
            for other in 100..110 {
                all.push(
                    MetadataResponseBroker::default()
                        .with_node_id(other.into())
                        .with_host(StrBytes::from_static_str("nowhere"))
                        .with_port(1),
                );
            }
            all.extend(answer.brokers.clone());
            all.extend(answer.brokers.clone());
            answer.brokers = all;
        }),
        lie("each partition twice, the second led by the other", |_, answer| {
            for topic in &mut answer.topics {
                let again = topic.partitions.clone();
                topic.partitions.extend(again.into_iter().map(|mut partition| {
                    partition.leader_id = (3 - partition.leader_id.0).into();
                    partition
                }));
            }
        }),
        lie("another cluster id every time", |number, answer| {
            answer.cluster_id = Some(StrBytes::from_string(number.to_string()));
        }),
    ]
}

fn coordinators() -> Vec<Scenario> {
    let lie = |name: &str, change: fn(&mut Coordinator)| {
        scenario(name).change_answers(
            ApiKey::FindCoordinator,
            move |_, answer: &mut FindCoordinatorResponse| {
                answer.coordinators.iter_mut().for_each(change);
            },
        )
    };
    vec![
        lie("a coordinator that is nowhere", |found| {
            found.node_id = 55.into();
            found.host = StrBytes::from_static_str("gone");
            found.port = 5;
        }),
        lie("a coordinator under an id that metadata does not have", |found| found.node_id = 55.into()),
        lie("the coordinator is the other broker", |found| {
            found.node_id = (3 - found.node_id.0).into();
            found.host = name(found.node_id.0);
        }),
        scenario("the coordinator of others beside ours").change_answers(
            ApiKey::FindCoordinator,
            |_, answer: &mut FindCoordinatorResponse| {
                let mut other = answer.coordinators[0].clone();
                other.key = StrBytes::from_static_str("other");
                other.node_id = (3 - other.node_id.0).into();
                other.host = name(other.node_id.0);
                answer.coordinators.push(other.clone());
                answer.coordinators.insert(0, other);
            },
        ),
    ]
}

fn offsets() -> Vec<Scenario> {
    vec![
        scenario("offsets committed: answers without partitions")
            .change_answers(ApiKey::OffsetCommit, |_, answer: &mut OffsetCommitResponse| {
                answer.topics.clear()
            }),
        scenario("offsets fetched: answers without partitions").change_answers(
            ApiKey::OffsetFetch,
            |_, answer: &mut OffsetFetchResponse| {
                answer.topics.clear();
                for group in &mut answer.groups {
                    group.topics.clear();
                }
            },
        ),
        scenario("offsets fetched: of another group beside ours").change_answers(
            ApiKey::OffsetFetch,
            |_, answer: &mut OffsetFetchResponse| {
                let mut other = answer.groups[0].clone();
                other.group_id = StrBytes::from_static_str("other").into();
                for topic in &mut other.topics {
                    for partition in &mut topic.partitions {
                        partition.committed_offset = 1_000_000;
                    }
                }
                answer.groups.push(other);
            },
        ),
        scenario("listed: answers without partitions")
            .change_answers(ApiKey::ListOffsets, |_, answer: &mut ListOffsetsResponse| answer.topics.clear()),
    ]
}

fn members() -> Vec<Scenario> {
    vec![
        scenario("joined: another name for the member every time").change_answers(
            ApiKey::JoinGroup,
            |number, answer: &mut JoinGroupResponse| {
                if number % 2 == 0 {
                    answer.member_id = StrBytes::from_string(format!("other-{number}"));
                }
            },
        ),
        scenario("joined: an assignor that nobody has").change_answers(
            ApiKey::JoinGroup,
            |_, answer: &mut JoinGroupResponse| {
                answer.protocol_name = Some(StrBytes::from_static_str("nobody's"));
            },
        ),
        scenario("synced: an assignment that is noise")
            .change_answers(ApiKey::SyncGroup, |_, answer: &mut SyncGroupResponse| {
                answer.assignment = Bytes::from_static(&[7; 50])
            }),
    ]
}

fn produced() -> Vec<Scenario> {
    vec![
        scenario("produced: each partition twice, the second time refused").change_answers(
            ApiKey::Produce,
            |number, answer: &mut ProduceResponse| {
                for topic in answer.responses.iter_mut().filter(|_| number % 2 == 0) {
                    let again = topic.partition_responses.clone();
                    topic.partition_responses.extend(again.into_iter().map(|mut partition| {
                        partition.error_code = 6;
                        partition
                    }));
                }
            },
        ),
        scenario("an id of a producer that cannot be")
            .change_answers(ApiKey::InitProducerId, |_, answer: &mut InitProducerIdResponse| {
                answer.producer_id = (-1).into()
            }),
        scenario("transactions: partitions added, and left out of the answer")
            .transactions(Profile::Kafka28)
            .change_answers(ApiKey::AddPartitionsToTxn, |number, answer: &mut AddPartitionsToTxnResponse| {
                if number % 2 == 0 {
                    answer.results_by_topic_v3_and_below.clear();
                }
            }),
    ]
}

fn fetched() -> Vec<Scenario> {
    let lie = |name: &str, change: fn(u64, &mut FetchResponse)| {
        scenario(format!("fetched: {name}")).change_answers(ApiKey::Fetch, change)
    };
    vec![
        lie("answers without topics", |_, answer| answer.responses.clear()),
        lie("each partition twice", |_, answer| {
            for topic in &mut answer.responses {
                let again = topic.partitions.clone();
                topic.partitions.extend(again);
            }
        }),
        lie("half of each answer", |_, answer| {
            for partition in answer.responses.iter_mut().flat_map(|topic| &mut topic.partitions) {
                if let Some(records) = &mut partition.records {
                    let half = records.len() / 2;
                    records.truncate(half);
                }
            }
        }),
        lie("another session every time", |number, answer| answer.session_id = number as i32 * 7 - 30),
    ]
}

fn throttles() -> Vec<Scenario> {
    vec![
        scenario("throttled for 3 s by every answer").act(|asked, frame| match ApiKey::try_from(asked.key) {
            Ok(ApiKey::Metadata) => {
                Some(asked.changed(frame, |m: &mut MetadataResponse| m.throttle_time_ms = 3000))
            }
            Ok(ApiKey::Produce) => {
                Some(asked.changed(frame, |m: &mut ProduceResponse| m.throttle_time_ms = 3000))
            }
            Ok(ApiKey::Fetch) => {
                Some(asked.changed(frame, |m: &mut FetchResponse| m.throttle_time_ms = 3000))
            }
            _ => None,
        }),
        scenario("throttled once for 20 s, and silence after it").act(|asked, frame| match ApiKey::try_from(
            asked.key,
        ) {
            Ok(ApiKey::Produce) if asked.number == 0 => {
                Some(asked.changed(frame, |m: &mut ProduceResponse| m.throttle_time_ms = 20_000))
            }
            Ok(ApiKey::Produce) if asked.number < 3 => Some(Reply::Silence(8)),
            Ok(ApiKey::Fetch) if asked.number == 0 => {
                Some(asked.changed(frame, |m: &mut FetchResponse| m.throttle_time_ms = 20_000))
            }
            Ok(ApiKey::Fetch) if asked.number < 3 => Some(Reply::Silence(8)),
            _ => None,
        }),
    ]
}

fn sessions() -> Vec<Scenario> {
    vec![
        scenario("sessions of 3 s").sasl("PLAIN").act(|asked, frame| session(asked, frame, 3000)),
        scenario("sessions of 20 ms").sasl("SCRAM-SHA-256").act(|asked, frame| session(asked, frame, 20)),
        scenario("sessions of 1 ms").sasl("PLAIN").act(|asked, frame| session(asked, frame, 1)),
        scenario("sessions of 3 s without idempotence")
            .sasl("PLAIN")
            .set("enable.idempotence", "false")
            .act(|asked, frame| session(asked, frame, 3000)),
        scenario("sessions of 3 s, and every other renewal is silent").sasl("PLAIN").act(|asked, frame| {
            match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked.is(ApiKey::SaslAuthenticate).then_some(Reply::Silence(8)),
            }
        }),
        scenario("sessions of 3 s, and every other renewal is not served").sasl("PLAIN").act(
            |asked, frame| match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked
                    .is(ApiKey::SaslAuthenticate)
                    .then(|| asked.changed(frame, |m: &mut SaslAuthenticateResponse| m.error_code = -1)),
            },
        ),
    ]
}

fn session(asked: Asked, frame: &[u8], ms: i64) -> Option<Reply> {
    asked.is(ApiKey::SaslAuthenticate).then(|| {
        asked.changed(frame, |answer: &mut SaslAuthenticateResponse| answer.session_lifetime_ms = ms)
    })
}
