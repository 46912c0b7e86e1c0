//! The faults of a world, until it is calm: brokers that stop, leaders and coordinators that move, links that are cut,
//! requests that fail, hang or are applied without an answer, topics that grow and go.

use std::{sync::Arc, time::Duration};

use dtkafka_testcontainers::broker::{ApiKey, Effect, Fault, Quota, ResponseError};

use crate::{checker::Facts, rng::Rng, world::World};

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
    (
        ApiKey::AddPartitionsToTxn,
        &[ResponseError::ConcurrentTransactions, ResponseError::CoordinatorLoadInProgress],
    ),
    (ApiKey::AddOffsetsToTxn, &[ResponseError::NotCoordinator, ResponseError::ConcurrentTransactions]),
    (ApiKey::TxnOffsetCommit, &[ResponseError::NotCoordinator, ResponseError::CoordinatorLoadInProgress]),
    (
        ApiKey::EndTxn,
        &[
            ResponseError::NotCoordinator,
            ResponseError::CoordinatorLoadInProgress,
            ResponseError::ConcurrentTransactions,
        ],
    ),
    (
        ApiKey::ConsumerGroupHeartbeat,
        &[ResponseError::NotCoordinator, ResponseError::CoordinatorLoadInProgress],
    ),
];

/// Errors that can come after the write.
const AFTER: &[ResponseError] =
    &[ResponseError::RequestTimedOut, ResponseError::NotEnoughReplicasAfterAppend];

/// What a nemesis may do in this world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means {
    /// Records may be lost.
    lossy: bool,
    /// No other nemesis acts at the same time: faults are allowed that would lose records together with another fault.
    alone: bool,
}

impl Means {
    pub(crate) fn new(facts: &Facts, alone: bool) -> Self {
        Self { lossy: facts.lossy, alone }
    }
}

/// Injects faults until `Duration` has passed.
pub(crate) async fn run(world: Arc<World>, lasting: Duration, means: Means, mut rng: Rng) {
    let until = tokio::time::Instant::now() + lasting;
    let pause = *rng.pick(&[200, 1000, 5000]);
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(rng.millis(0, pause)).await;
        match rng.below(20) {
            0..10 => strike(&world, &mut rng).await,
            10..16 => spoil(&world, &mut rng).await,
            16..19 => shift(&world, means, &mut rng).await,
            _ if means.lossy => lose(&world, &mut rng),
            _ => {}
        }
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
            world.goes_down(broker);
            control.stop_broker(broker).unwrap();
            tokio::time::sleep(for_).await;
            control.start_broker(broker).await.unwrap();
            world.is_up_again(broker);
            note(format!("broker {broker} runs again"));
        }
        1 | 2 => {
            let topic = rng.pick(&world.topics);
            let partition = rng.below(world.partitions(topic)) as i32;
            if world.runs(broker) && control.move_leader(topic, partition, broker).is_ok() {
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

/// Answers that are slow, broken, refused after all, or never come.
async fn spoil(world: &Arc<World>, rng: &mut Rng) {
    let control = &world.control;
    let note = |text: String| world.history.note(format!("nemesis: {text}"));
    let broker = rng.range(1, u64::from(world.brokers)) as i32;
    let (api, _) = rng.pick(ERRORS);
    let times = rng.range(1, 3);
    let effect = match rng.below(8) {
        0 => Effect::Silence,
        1 => Effect::SilenceAfter,
        2 | 3 => Effect::Truncate(rng.below(60) as usize),
        4 => Effect::Throttle(rng.millis(100, 4000)),
        5 => {
            let error = *rng.pick(AFTER);
            note(format!("{times} Produce are applied and answered with {error:?}"));
            control.inject(Fault::on(ApiKey::Produce).times(times).effect(Effect::ErrorAfter(error)));
            return;
        }
        6 => {
            let (bytes, pause, for_) = (rng.range(1, 40), rng.millis(1, 30), rng.millis(100, 3000));
            note(format!("broker {broker} answers {bytes} bytes each {pause:?} for {for_:?}"));
            let trickle = Fault::anywhere().broker(broker).effect(Effect::Trickle(bytes as usize, pause));
            let id = control.inject(trickle);
            tokio::time::sleep(for_).await;
            control.withdraw(id);
            return;
        }
        _ => {
            let quota = *rng.pick(&[Quota::ProduceBytes, Quota::FetchBytes, Quota::Requests]);
            let limit = if quota == Quota::Requests { rng.range(2, 50) } else { rng.range(200, 5000) };
            let for_ = rng.millis(500, 8000);
            note(format!("{quota:?} is limited to {limit} for {for_:?}"));
            control.quota(quota, None, Some(limit));
            tokio::time::sleep(for_).await;
            control.quota(quota, None, None);
            return;
        }
    };
    note(format!("{times} {api:?}: {effect:?}"));
    control.inject(Fault::on(*api).times(times).effect(effect));
}

/// Brokers crash, forget and fall behind; topics grow and go; transactions take their time.
async fn shift(world: &Arc<World>, means: Means, rng: &mut Rng) {
    let control = &world.control;
    let note = |text: String| world.history.note(format!("nemesis: {text}"));
    let broker = rng.range(1, u64::from(world.brokers)) as i32;
    let topic = rng.pick(&world.topics);
    let partition = rng.below(world.partitions(topic)) as i32;
    match rng.below(8) {
        0 => {
            let for_ = rng.millis(100, 5000);
            note(format!("broker {broker} crashes for {for_:?}"));
            world.goes_down(broker);
            control.kill_broker(broker).unwrap();
            tokio::time::sleep(for_).await;
            control.start_broker(broker).await.unwrap();
            world.is_up_again(broker);
        }
        1 => {
            note(format!("broker {broker} forgets its fetch sessions"));
            control.forget_fetch_sessions(broker).unwrap();
        }
        2 => {
            let id = format!("{}{}", rng.pick(&["x", "e"]), rng.below(2));
            note(format!("{id} is coordinated by {broker}"));
            control.move_transaction_coordinator(&id, broker).unwrap();
        }
        3 => {
            let delay = rng.millis(0, 3000);
            note(format!("markers take {delay:?}"));
            control.delay_markers(delay);
        }
        4 if means.alone && world.brokers > 1 => {
            let for_ = rng.millis(100, 5000);
            note(format!("broker {broker} lags behind at {topic}-{partition} for {for_:?}"));
            control.lag(topic, partition, broker).unwrap();
            tokio::time::sleep(for_).await;
            control.catch_up(topic, partition, broker).unwrap();
        }
        5 if world.partitions(topic) < 6 => {
            world.grow(topic);
            note(format!("{topic} has {} partitions", world.partitions(topic)));
        }
        6 | 7 => {
            let Some(doomed) = &world.doomed else { return };
            note(format!("{doomed} is deleted"));
            drop(world.broker.delete_topic(doomed));
            tokio::time::sleep(rng.millis(0, 5000)).await;
            if world.broker.create_topic(doomed, rng.range(1, 3) as i32).is_ok() {
                note(format!("{doomed} is made again"));
            }
        }
        _ => {}
    }
}

/// Records are lost, or compacted away.
fn lose(world: &Arc<World>, rng: &mut Rng) {
    let control = &world.control;
    let note = |text: String| world.history.note(format!("nemesis: {text}"));
    let topic = rng.pick(&world.topics);
    let partition = rng.below(world.partitions(topic)) as i32;
    match rng.below(3) {
        0 => {
            let offset = rng.below(100) as i64;
            note(format!("{topic}-{partition} is cut off at {offset}"));
            control.truncate(topic, partition, offset).unwrap();
        }
        1 => {
            note(format!("{topic}-{partition} is compacted"));
            control.compact(topic, partition).unwrap();
        }
        _ => {
            note(format!("{topic}-{partition} forgets its producers"));
            control.forget_producers(topic, partition).unwrap();
        }
    }
}
