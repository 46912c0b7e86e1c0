//! What goes wrong in a world, until the calm: brokers that stop, leaders and coordinators that move, links that are cut,
//! requests that fail, hang or are applied without an answer, topics that grow and go.

use std::{sync::Arc, time::Duration};

use dtkafka_testcontainers::broker::{ApiKey, ResponseError};

use crate::{rng::Rng, world::World};

/// Errors that a broker may answer for a while.
const ERRORS: &[(ApiKey, &[ResponseError])] = &[
    (
        ApiKey::Produce,
        &[
            ResponseError::NotLeaderOrFollower,
            ResponseError::LeaderNotAvailable,
            ResponseError::NotEnoughReplicas,
            ResponseError::CorruptMessage,
            ResponseError::UnknownTopicOrPartition,
            ResponseError::KafkaStorageError,
        ],
    ),
    (
        ApiKey::Fetch,
        &[
            ResponseError::NotLeaderOrFollower,
            ResponseError::FetchSessionIdNotFound,
            ResponseError::UnknownLeaderEpoch,
            ResponseError::KafkaStorageError,
            ResponseError::UnknownTopicOrPartition,
        ],
    ),
    (ApiKey::ListOffsets, &[ResponseError::NotLeaderOrFollower, ResponseError::LeaderNotAvailable]),
    (ApiKey::Metadata, &[ResponseError::LeaderNotAvailable]),
    (
        ApiKey::OffsetCommit,
        &[
            ResponseError::NotCoordinator,
            ResponseError::CoordinatorLoadInProgress,
            ResponseError::RebalanceInProgress,
            ResponseError::CoordinatorNotAvailable,
        ],
    ),
    (ApiKey::OffsetFetch, &[ResponseError::NotCoordinator, ResponseError::CoordinatorLoadInProgress]),
    (ApiKey::FindCoordinator, &[ResponseError::CoordinatorNotAvailable]),
    (ApiKey::JoinGroup, &[ResponseError::CoordinatorLoadInProgress, ResponseError::NotCoordinator]),
    (ApiKey::SyncGroup, &[ResponseError::RebalanceInProgress, ResponseError::NotCoordinator]),
    (ApiKey::Heartbeat, &[ResponseError::NotCoordinator, ResponseError::RebalanceInProgress]),
    (
        ApiKey::InitProducerId,
        &[ResponseError::CoordinatorLoadInProgress, ResponseError::CoordinatorNotAvailable],
    ),
];

/// Plagues the world until `Duration` has passed.
pub(crate) async fn run(world: Arc<World>, lasting: Duration, mut rng: Rng) {
    let until = tokio::time::Instant::now() + lasting;
    let pause = *rng.pick(&[200, 1000, 5000]);
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(rng.millis(0, pause)).await;
        strike(&world, &mut rng).await;
    }
}

async fn strike(world: &Arc<World>, rng: &mut Rng) {
    let control = &world.control;
    let note = |text: String| world.history.note(format!("nemesis: {text}"));
    let broker = rng.range(1, u64::from(world.brokers)) as i32;
    match rng.below(11) {
        0 => {
            let for_ = rng.millis(100, 8000);
            note(format!("broker {broker} stops for {for_:?}"));
            control.stop_broker(broker).unwrap();
            tokio::time::sleep(for_).await;
            control.start_broker(broker).await.unwrap();
            note(format!("broker {broker} runs again"));
        }
        1 | 2 => {
            let topic = rng.pick(&world.topics);
            let partition = rng.below(world.partitions(topic)) as i32;
            if control.move_leader(topic, partition, broker).is_ok() {
                note(format!("{topic}-{partition} is led by {broker}"));
            }
        }
        3 => {
            if let Some(group) = world.groups.get(rng.below(world.groups.len() as u64 + 1) as usize) {
                note(format!("{group} is coordinated by {broker}"));
                control.move_coordinator(group, broker).unwrap();
            }
        }
        4 => {
            let for_ = rng.millis(100, 15_000);
            note(format!("broker {broker} is cut off for {for_:?}"));
            control.cut(None, Some(broker));
            tokio::time::sleep(for_).await;
            control.heal(None, Some(broker));
        }
        5 => {
            note("every connection breaks".to_owned());
            world.air.break_all();
        }
        6 => {
            note(format!("broker {broker} forgets its connections"));
            control.forget_connections(None, Some(broker));
        }
        7 => {
            let (api, _) = rng.pick(ERRORS);
            let count = rng.range(1, 3) as usize;
            note(format!("{count} {api:?} are lost before they are applied"));
            control.disconnect_before(*api, count);
        }
        8 => {
            let (api, _) = rng.pick(ERRORS);
            let count = rng.range(1, 3) as usize;
            note(format!("{count} {api:?} are applied and not answered"));
            control.disconnect_after(*api, count);
        }
        9 => {
            let (api, _) = rng.pick(ERRORS);
            let (delay, for_) = (rng.millis(10, 4000), rng.millis(100, 5000));
            note(format!("{api:?} takes {delay:?} for {for_:?}"));
            control.delay(*api, delay);
            tokio::time::sleep(for_).await;
            control.delay(*api, Duration::ZERO);
        }
        _ => {
            let (api, errors) = rng.pick(ERRORS);
            let (error, count) = (*rng.pick(errors), rng.range(1, 5) as usize);
            note(format!("{count} {api:?} are answered with {error:?}"));
            control.fail(*api, count, error);
        }
    }
}
