//! Answers that are whole and untrue, or that nobody expects. One module per subject: each pairs a lie with its name.

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
    Storm, each,
    sky::{Asked, Reply, name},
    storm,
};

#[test]
fn lies_about_the_cluster_that_pass_do_no_harm() {
    each(metadata());
}

#[test]
fn lies_about_groups_and_offsets_that_pass_do_no_harm() {
    each([coordinators(), offsets(), members()].into_iter().flatten().collect());
}

#[test]
fn lies_about_records_that_pass_do_no_harm() {
    each([produced(), fetched()].into_iter().flatten().collect());
}

#[test]
fn pauses_and_sessions_that_brokers_ask_for_do_no_harm() {
    each([throttles(), sessions()].into_iter().flatten().collect());
}

fn metadata() -> Vec<Storm> {
    let lie = |name: &str, change: fn(u64, &mut MetadataResponse)| {
        storm(format!("metadata: {name}")).lie(ApiKey::Metadata, change)
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

fn coordinators() -> Vec<Storm> {
    let lie = |name: &str, change: fn(&mut Coordinator)| {
        storm(name).lie(ApiKey::FindCoordinator, move |_, answer: &mut FindCoordinatorResponse| {
            answer.coordinators.iter_mut().for_each(change);
        })
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
        storm("the coordinator of others beside ours").lie(
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

fn offsets() -> Vec<Storm> {
    vec![
        storm("offsets committed: answers without partitions")
            .lie(ApiKey::OffsetCommit, |_, answer: &mut OffsetCommitResponse| answer.topics.clear()),
        storm("offsets fetched: answers without partitions").lie(
            ApiKey::OffsetFetch,
            |_, answer: &mut OffsetFetchResponse| {
                answer.topics.clear();
                for group in &mut answer.groups {
                    group.topics.clear();
                }
            },
        ),
        storm("offsets fetched: of another group beside ours").lie(
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
        storm("listed: answers without partitions")
            .lie(ApiKey::ListOffsets, |_, answer: &mut ListOffsetsResponse| answer.topics.clear()),
    ]
}

fn members() -> Vec<Storm> {
    vec![
        storm("joined: another name for the member every time").lie(
            ApiKey::JoinGroup,
            |number, answer: &mut JoinGroupResponse| {
                if number % 2 == 0 {
                    answer.member_id = StrBytes::from_string(format!("other-{number}"));
                }
            },
        ),
        storm("joined: an assignor that nobody has").lie(
            ApiKey::JoinGroup,
            |_, answer: &mut JoinGroupResponse| {
                answer.protocol_name = Some(StrBytes::from_static_str("nobody's"));
            },
        ),
        storm("synced: an assignment that is noise")
            .lie(ApiKey::SyncGroup, |_, answer: &mut SyncGroupResponse| {
                answer.assignment = Bytes::from_static(&[7; 50])
            }),
    ]
}

fn produced() -> Vec<Storm> {
    vec![
        storm("produced: each partition twice, the second time refused").lie(
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
        storm("an id of a producer that cannot be")
            .lie(ApiKey::InitProducerId, |_, answer: &mut InitProducerIdResponse| {
                answer.producer_id = (-1).into()
            }),
        storm("transactions: partitions added, and left out of the answer")
            .transactions(Profile::Kafka28)
            .lie(ApiKey::AddPartitionsToTxn, |number, answer: &mut AddPartitionsToTxnResponse| {
                if number % 2 == 0 {
                    answer.results_by_topic_v3_and_below.clear();
                }
            }),
    ]
}

fn fetched() -> Vec<Storm> {
    let lie = |name: &str, change: fn(u64, &mut FetchResponse)| {
        storm(format!("fetched: {name}")).lie(ApiKey::Fetch, change)
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

fn throttles() -> Vec<Storm> {
    vec![
        storm("throttled for 3 s by every answer").act(|asked, frame| match ApiKey::try_from(asked.key) {
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
        storm("throttled once for 20 s, and silence after it").act(|asked, frame| {
            match ApiKey::try_from(asked.key) {
                Ok(ApiKey::Produce) if asked.number == 0 => {
                    Some(asked.changed(frame, |m: &mut ProduceResponse| m.throttle_time_ms = 20_000))
                }
                Ok(ApiKey::Produce) if asked.number < 3 => Some(Reply::Silence(8)),
                Ok(ApiKey::Fetch) if asked.number == 0 => {
                    Some(asked.changed(frame, |m: &mut FetchResponse| m.throttle_time_ms = 20_000))
                }
                Ok(ApiKey::Fetch) if asked.number < 3 => Some(Reply::Silence(8)),
                _ => None,
            }
        }),
    ]
}

fn sessions() -> Vec<Storm> {
    vec![
        storm("sessions of 3 s").sasl("PLAIN").act(|asked, frame| session(asked, frame, 3000)),
        storm("sessions of 20 ms").sasl("SCRAM-SHA-256").act(|asked, frame| session(asked, frame, 20)),
        storm("sessions of 1 ms").sasl("PLAIN").act(|asked, frame| session(asked, frame, 1)),
        storm("sessions of 3 s without idempotence")
            .sasl("PLAIN")
            .set("enable.idempotence", "false")
            .act(|asked, frame| session(asked, frame, 3000)),
        storm("sessions of 3 s, and every other renewal is silent").sasl("PLAIN").act(|asked, frame| {
            match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked.is(ApiKey::SaslAuthenticate).then_some(Reply::Silence(8)),
            }
        }),
        storm("sessions of 3 s, and every other renewal is not served").sasl("PLAIN").act(|asked, frame| {
            match asked.number % 2 {
                0 => session(asked, frame, 3000),
                _ => asked
                    .is(ApiKey::SaslAuthenticate)
                    .then(|| asked.changed(frame, |m: &mut SaslAuthenticateResponse| m.error_code = -1)),
            }
        }),
    ]
}

fn session(asked: Asked, frame: &[u8], ms: i64) -> Option<Reply> {
    asked.is(ApiKey::SaslAuthenticate).then(|| {
        asked.changed(frame, |answer: &mut SaslAuthenticateResponse| answer.session_lifetime_ms = ms)
    })
}
