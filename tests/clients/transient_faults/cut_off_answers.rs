//! Answers that break off after their first bytes: with silence, the end, or a pause before the others.

use std::time::Duration;

use dtkafka_testcontainers::broker::{ApiKey, Profile};

use super::{Scenario, network::Reply, run_all, scenario};

/// Those that both clients use.
pub(super) const APIS: [ApiKey; 12] = [
    ApiKey::ApiVersions,
    ApiKey::Metadata,
    ApiKey::InitProducerId,
    ApiKey::Produce,
    ApiKey::Fetch,
    ApiKey::ListOffsets,
    ApiKey::FindCoordinator,
    ApiKey::JoinGroup,
    ApiKey::SyncGroup,
    ApiKey::Heartbeat,
    ApiKey::OffsetFetch,
    ApiKey::OffsetCommit,
];
/// How an answer breaks off after its first bytes.
pub(super) fn broken(how: usize, first: usize) -> (&'static str, Reply) {
    let paused = |seconds| Reply::Paused(first, Duration::from_secs(seconds));
    match how {
        0 => ("and silence", Reply::Silence(first)),
        1 => ("and the end", Reply::Close(first)),
        2 => ("and the others after 8 s", paused(8)),
        _ => ("and the others after 70 s", paused(70)),
    }
}

/// Of a frame's length, correlation id and body so many bytes come: all of them with `DTKAFKA_ALL_CUTS=1`.
fn firsts(some: &[usize]) -> Vec<usize> {
    if std::env::var("DTKAFKA_ALL_CUTS").is_ok() { vec![0, 3, 4, 8, 13] } else { some.to_vec() }
}
#[test]
fn answers_that_pause_or_break_off_for_a_while_do_no_harm() {
    run_all(broken_answers());
}

#[test]
fn transactions_are_seen_whole_or_not_at_all_wherever_answers_break_off() {
    run_all(broken_transactions());
}

fn broken_answers() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for api in APIS {
        for first in firsts(&[8]) {
            for how in 0..4 {
                let text = broken(how, first).0;
                scenarios.push(scenario(format!("{api:?}: {first} bytes, {text}")).act(move |asked, _| {
                    let strikes = asked.is(api) && (how == 1 || asked.number % 2 == 0);
                    strikes.then(|| broken(how, first).1)
                }));
            }
        }
    }
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        for api in [ApiKey::SaslHandshake, ApiKey::SaslAuthenticate] {
            for first in firsts(&[8]) {
                for how in 0..4 {
                    let text = broken(how, first).0;
                    scenarios.push(
                        scenario(format!("{mechanism} {api:?}: {first} bytes, {text}")).sasl(mechanism).act(
                            move |asked, _| {
                                let strikes = asked.is(api) && asked.number % 3 != 1;
                                strikes.then(|| broken(how, first).1)
                            },
                        ),
                    );
                }
            }
        }
    }
    for how in 0..4 {
        let text = broken(how, 8).0;
        scenarios.push(
            scenario(format!("the consumer protocol's heartbeat: 8 bytes, {text}"))
                .set("group.protocol", "consumer")
                .act(move |asked, _| {
                    let strikes = asked.is(ApiKey::ConsumerGroupHeartbeat) && asked.number % 2 == 0;
                    strikes.then(|| broken(how, 8).1)
                }),
        );
    }
    scenarios
}
fn broken_transactions() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    let apis = [
        ApiKey::InitProducerId,
        ApiKey::FindCoordinator,
        ApiKey::AddPartitionsToTxn,
        ApiKey::Produce,
        ApiKey::EndTxn,
    ];
    for profile in [Profile::Kafka28, Profile::Latest] {
        scenarios.push(scenario(format!("transactions, {profile:?}: nothing")).transactions(profile));
        for api in apis {
            for how in 0..4 {
                let text = broken(how, 8).0;
                scenarios.push(
                    scenario(format!("transactions, {profile:?}: {api:?}: 8 bytes, {text}"))
                        .transactions(profile)
                        .act(move |asked, _| {
                            (asked.is(api) && asked.number % 2 == 0).then(|| broken(how, 8).1)
                        }),
                );
            }
        }
    }
    scenarios
}
