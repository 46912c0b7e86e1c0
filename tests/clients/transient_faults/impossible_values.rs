//! Answers with impossible numbers and unknown codes, for half a minute: afterwards all records have arrived once.

use bytes::Bytes;
use dtkafka_testcontainers::broker::ApiKey;
use kafka_protocol::{
    messages as wire,
    protocol::{Decodable, Encodable, StrBytes},
};

use super::{Scenario, run_all, scenario};

/// Changes answers of one API: all of them, or those to requests of some numbers.
fn fault<M: Decodable + Encodable + 'static>(
    api: ApiKey,
    name: &str,
    change: impl Fn(u64, &mut M) + Send + Sync + 'static,
) -> Scenario {
    scenario(format!("{api:?}: {name}")).act(move |asked, frame| {
        asked.is(api).then(|| asked.changed(frame, |answer: &mut M| change(asked.number, answer)))
    })
}

/// Codes by which a partition is not read for now, one that no Kafka has, and one that says nothing.
const PASSING_REFUSALS: [i16; 10] = [1, 29, 74, 76, 78, 100, 103, 999, -1, i16::MIN];

/// Impossible numbers in answers to a consumer.
fn impossible_numbers() -> Vec<Scenario> {
    use wire::{
        FetchResponse, ListOffsetsResponse, OffsetFetchResponse, ProduceResponse,
        fetch_response::{AbortedTransaction, EpochEndOffset, LeaderIdAndEpoch, PartitionData},
    };
    type Change = fn(u64, &mut PartitionData);
    let changes: [(&str, Change); 16] = [
        ("a high watermark below 0", |_, p| p.high_watermark = i64::MIN),
        ("a high watermark without end", |_, p| p.high_watermark = i64::MAX),
        ("a log that begins at the end of all", |_, p| p.log_start_offset = i64::MAX),
        ("nothing is stable", |_, p| p.last_stable_offset = i64::MIN),
        ("aborted by nobody", |_, p| {
            let aborted = |id: i64, first| {
                AbortedTransaction::default().with_producer_id(id.into()).with_first_offset(first)
            };
            p.aborted_transactions = Some(vec![aborted(-7, i64::MIN), aborted(i64::MAX, i64::MAX)]);
        }),
        ("a replica nobody has", |_, p| p.preferred_read_replica = 99.into()),
        ("one replica after the other", |n, p| p.preferred_read_replica = (1 + (n % 2) as i32).into()),
        ("another leader, of the last epoch of all", |n, p| {
            if n % 2 == 0 {
                (p.error_code, p.records) = (6, None);
                p.current_leader =
                    LeaderIdAndEpoch::default().with_leader_id(77.into()).with_leader_epoch(i32::MAX);
            }
        }),
        ("the log was cut at its start", |n, p| {
            if n % 2 == 0 {
                p.diverging_epoch = EpochEndOffset::default().with_epoch(0).with_end_offset(0);
            }
        }),
        ("no records", |n, p| p.records = p.records.take().filter(|_| n % 2 == 1)),
        ("five bytes", |n, p| {
            p.records = p.records.take().map(|r| if n % 2 == 0 { r.slice(..5.min(r.len())) } else { r })
        }),
        ("a head of zeros", |n, p| {
            p.records = p.records.take().map(|r| if n % 2 == 0 { Bytes::from_static(&[0; 61]) } else { r })
        }),
        ("a head of ones", |n, p| {
            p.records = p.records.take().map(|r| if n % 2 == 0 { Bytes::from_static(&[0xff; 61]) } else { r })
        }),
        ("partitions below 0", |n, p| {
            p.partition_index = if n % 2 == 0 { -1 - p.partition_index } else { p.partition_index }
        }),
        ("the last partition of all", |n, p| {
            p.partition_index = if n % 2 == 0 { i32::MAX } else { p.partition_index }
        }),
        ("the partitions change places", |n, p| {
            if n % 2 == 0 {
                (p.partition_index, p.records) = (3 - p.partition_index, None);
            }
        }),
    ];
    fn fetched(name: &str, change: impl Fn(u64, &mut PartitionData) + Send + Sync + 'static) -> Scenario {
        fault(ApiKey::Fetch, name, move |number, answer: &mut FetchResponse| {
            answer
                .responses
                .iter_mut()
                .flat_map(|topic| &mut topic.partitions)
                .for_each(|p| change(number, p));
        })
    }
    let mut scenarios = Vec::new();
    for (name, change) in changes {
        scenarios.push(fetched(name, change));
        if name.contains("stable") || name.contains("aborted") {
            scenarios.push(fetched(name, change).set("isolation.level", "read_committed"));
        }
    }
    for code in PASSING_REFUSALS {
        let refuse = move |number, p: &mut PartitionData| {
            if number % 2 == 0 {
                (p.error_code, p.records) = (code, None);
            }
        };
        scenarios.push(fetched(&format!("{code} at times"), refuse));
    }
    for code in [70, 71, 106, 999, -1] {
        scenarios.push(fault(
            ApiKey::Fetch,
            &format!("as a whole {code} at times"),
            move |number, answer: &mut FetchResponse| {
                if number % 3 == 1 {
                    answer.error_code = code;
                    answer.responses.clear();
                }
            },
        ));
    }
    // After these the batch is in the log, and the answer says that it is not, or nothing.
    for code in [6, 7, 13, 20, 46, 56] {
        scenarios.push(fault(
            ApiKey::Produce,
            &format!("{code} after the append, at times"),
            move |number, answer: &mut ProduceResponse| {
                for partition in answer
                    .responses
                    .iter_mut()
                    .flat_map(|topic| &mut topic.partition_responses)
                    .filter(|_| number % 2 == 0)
                {
                    (partition.error_code, partition.base_offset) = (code, -1);
                }
            },
        ));
    }
    scenarios.push(fault(
        ApiKey::Produce,
        "answers without partitions",
        |number, answer: &mut ProduceResponse| {
            answer.responses.retain(|_| number % 2 == 1);
        },
    ));
    scenarios.push(fault(ApiKey::Produce, "partitions below 0", |number, answer: &mut ProduceResponse| {
        for partition in answer
            .responses
            .iter_mut()
            .flat_map(|topic| &mut topic.partition_responses)
            .filter(|_| number % 2 == 0)
        {
            partition.index = -1;
        }
    }));
    for offset in [i64::MIN, i64::MAX] {
        scenarios.push(fault(
            ApiKey::ListOffsets,
            &format!("offset {offset} at times"),
            move |number, answer: &mut ListOffsetsResponse| {
                for partition in answer
                    .topics
                    .iter_mut()
                    .flat_map(|topic| &mut topic.partitions)
                    .filter(|_| number % 2 == 0)
                {
                    (partition.offset, partition.leader_epoch) = (offset, i32::MAX);
                }
            },
        ));
        scenarios.push(fault(
            ApiKey::OffsetFetch,
            &format!("offset {offset}"),
            move |_, answer: &mut OffsetFetchResponse| {
                for partition in answer
                    .groups
                    .iter_mut()
                    .flat_map(|group| &mut group.topics)
                    .flat_map(|topic| &mut topic.partitions)
                {
                    (partition.committed_offset, partition.committed_leader_epoch) = (offset, i32::MIN);
                }
            },
        ));
    }
    scenarios
}

/// Impossible numbers and codes in answers about the group and the cluster.
fn impossible_groups() -> Vec<Scenario> {
    use wire::{
        ApiVersionsResponse, ConsumerGroupHeartbeatResponse, FindCoordinatorResponse, HeartbeatResponse,
        JoinGroupResponse, MetadataResponse, SyncGroupResponse,
    };
    let mut scenarios = Vec::new();
    for code in [25, 27, 79, 999] {
        scenarios.push(fault(
            ApiKey::JoinGroup,
            &format!("{code}"),
            move |number, answer: &mut JoinGroupResponse| {
                answer.error_code = if code == 999 && number % 2 == 1 { 0 } else { code };
            },
        ));
    }
    scenarios.push(fault(
        ApiKey::JoinGroup,
        "generations below 0",
        |number, answer: &mut JoinGroupResponse| {
            answer.generation_id = if number % 2 == 1 { -1 } else { answer.generation_id };
        },
    ));
    scenarios.push(fault(
        ApiKey::JoinGroup,
        "the assignment of before is kept, always",
        |_, answer: &mut JoinGroupResponse| {
            answer.skip_assignment = true;
        },
    ));
    scenarios.push(fault(
        ApiKey::JoinGroup,
        "no name for the member",
        |_, answer: &mut JoinGroupResponse| {
            answer.member_id = StrBytes::from_static_str("");
        },
    ));
    scenarios.push(fault(ApiKey::JoinGroup, "each member twice", |_, answer: &mut JoinGroupResponse| {
        answer.members.extend(answer.members.clone());
    }));
    for (name, head) in [("-1", [0xff, 0xff]), ("32767", [0x7f, 0xff])] {
        scenarios.push(fault(
            ApiKey::SyncGroup,
            &format!("version {name}"),
            move |_, answer: &mut SyncGroupResponse| {
                let mut bytes = answer.assignment.to_vec();
                bytes.splice(..2.min(bytes.len()), head);
                answer.assignment = bytes.into();
            },
        ));
    }
    for code in [25, 27, 999, -1] {
        scenarios.push(fault(
            ApiKey::Heartbeat,
            &format!("{code}"),
            move |_, answer: &mut HeartbeatResponse| {
                answer.error_code = code;
            },
        ));
    }
    type Change = fn(u64, &mut ConsumerGroupHeartbeatResponse);
    let changes: [(&str, Change); 14] = [
        ("epochs below all", |n, m| m.member_epoch = if n % 2 == 0 { i32::MIN } else { m.member_epoch }),
        ("epochs above all", |n, m| m.member_epoch = if n % 2 == 0 { i32::MAX } else { m.member_epoch }),
        ("it has left", |n, m| m.member_epoch = if n % 2 == 0 { -1 } else { m.member_epoch }),
        ("it is static and away", |n, m| m.member_epoch = if n % 2 == 0 { -2 } else { m.member_epoch }),
        ("the epoch goes back", |n, m| m.member_epoch = if n > 3 { 1 } else { m.member_epoch }),
        ("no name for the member", |_, m| m.member_id = None),
        ("another name for the member every time", |n, m| {
            m.member_id = Some(StrBytes::from_string(format!("other-{n}")));
        }),
        ("an interval of nothing", |_, m| m.heartbeat_interval_ms = 0),
        ("an interval below 0", |_, m| m.heartbeat_interval_ms = i32::MIN),
        ("partitions that are not there", |_, m| {
            for topic in m.assignment.iter_mut().flat_map(|assignment| &mut assignment.topic_partitions) {
                topic.partitions.extend([i32::MAX, -1, 1000]);
            }
        }),
        ("each partition twice", |_, m| {
            for topic in m.assignment.iter_mut().flat_map(|assignment| &mut assignment.topic_partitions) {
                topic.partitions.extend(topic.partitions.clone());
            }
        }),
        ("fenced", |_, m| m.error_code = 110),
        ("unreleased at times", |n, m| m.error_code = if n % 2 == 0 { 111 } else { 0 }),
        ("999 at times", |n, m| m.error_code = if n % 2 == 0 { 999 } else { 0 }),
    ];
    for (name, change) in changes {
        scenarios.push(fault(ApiKey::ConsumerGroupHeartbeat, name, change).set("group.protocol", "consumer"));
    }
    for (name, code) in
        [("to start over at the bootstrap addresses", 129), ("what nobody knows", 999), ("nothing", -1)]
    {
        scenarios.push(fault(
            ApiKey::Metadata,
            &format!("as a whole, {name}, at times"),
            move |number, answer: &mut MetadataResponse| {
                answer.error_code = if number % 4 == 1 { code } else { 0 };
            },
        ));
    }
    scenarios.push(fault(
        ApiKey::Metadata,
        "epochs above all at times",
        |number, answer: &mut MetadataResponse| {
            for partition in
                answer.topics.iter_mut().flat_map(|topic| &mut topic.partitions).filter(|_| number % 2 == 0)
            {
                partition.leader_epoch = i32::MAX;
            }
        },
    ));
    scenarios.push(fault(
        ApiKey::Metadata,
        "the topic twice, unknown the first time",
        |_, answer: &mut MetadataResponse| {
            let mut unknown = answer.topics.clone();
            for topic in &mut unknown {
                topic.error_code = 3;
                topic.partitions.clear();
            }
            answer.topics.splice(..0, unknown);
        },
    ));
    scenarios.push(fault(
        ApiKey::FindCoordinator,
        "nobody at times",
        |number, answer: &mut FindCoordinatorResponse| {
            answer.coordinators.retain(|_| number % 2 == 1);
        },
    ));
    scenarios.push(fault(
        ApiKey::ApiVersions,
        "every version below the last of all",
        |_, answer: &mut ApiVersionsResponse| {
            for api in &mut answer.api_keys {
                api.min_version = i16::MIN;
            }
        },
    ));
    scenarios
}

#[test]
fn impossible_numbers_for_a_while_do_no_harm() {
    run_all(impossible_numbers());
}

#[test]
fn impossible_groups_and_clusters_for_a_while_do_no_harm() {
    run_all(impossible_groups());
}
