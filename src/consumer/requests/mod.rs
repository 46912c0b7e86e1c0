//! The consumer's requests on the wire: built from what the core decides, read back into what it understands.
//!
//! One exchange per function. Nothing is retried here, and nothing decided but one thing: a coordinator that does not answer is
//! forgotten. [`group`](mod@group) is membership, [`offsets`] what a group has committed, [`logs`] what leaders are asked.
//! This file reaches the coordinator, and gathers partitions under their topics.

mod group;
mod logs;
mod offsets;

use std::sync::{Arc, atomic::Ordering};

pub(super) use self::{
    group::{assigned, group},
    logs::{epoch_ends, fetch, list_offsets},
    offsets::{commit, find_committed},
};
use super::Shared;
use crate::{
    cluster::{CoordinatorKind, Lane, TopicId, kafka_string},
    connection::{
        Connection, Unread,
        api::{Api, Outgoing, wire},
    },
    error::{Error, ErrorKind, Result},
    record::TopicPartition,
    time::{self, Instant},
};

fn group_id(shared: &Shared) -> Result<&str> {
    shared.settings.group_id.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Config, "the call needs a consumer group").with_hint("set group.id")
    })
}

/// The deadline of one request within a call, so that a silent broker does not use up the time in which another would
/// answer.
fn of_one_request(shared: &Shared, deadline: Instant) -> Instant {
    deadline.min(time::now() + shared.cluster.settings().request_timeout)
}

async fn coordinator(shared: &Shared, lane: Lane, deadline: Instant) -> Result<(i32, Arc<Connection>)> {
    let group = group_id(shared)?;
    let deadline = of_one_request(shared, deadline);
    let broker = shared.cluster.coordinator(CoordinatorKind::Group, group, deadline).await?;
    shared.coordinator.store(broker, Ordering::Relaxed);
    let connection = noted(shared, broker, shared.cluster.connection(broker, lane, deadline).await)?;
    Ok((broker, connection))
}

async fn to_coordinator<R: Api>(
    shared: &Shared,
    lane: Lane,
    request: R,
    deadline: Instant,
) -> Result<R::Response> {
    let request = Outgoing::up_to(i16::MAX, request);
    let (broker, connection, answer) = ask_coordinator(shared, lane, request, deadline).await?;
    noted(shared, broker, connection.read::<R>(answer))
}

/// The part of [`to_coordinator`] that is the same for every API.
async fn ask_coordinator(
    shared: &Shared,
    lane: Lane,
    request: Outgoing,
    deadline: Instant,
) -> Result<(i32, Arc<Connection>, Unread)> {
    let (broker, connection) = coordinator(shared, lane, deadline).await?;
    let ask = unless_moved(shared, broker, connection.ask(request, deadline));
    let answer = tokio::select! {
        biased;
        answer = ask => answer,
        error = ceases_to_coordinate(shared, broker), if lane == Lane::Group => Err(error),
    };
    if lane == Lane::Group && answer.as_ref().is_err_and(Error::is_retriable) {
        // Requests on this connection would wait behind the unanswered one, for as long as the poll interval.
        connection.end();
    }
    noted(shared, broker, answer).map(|answer| (broker, connection, answer))
}

/// Waits for a coordinator's answer only as long as no broker names another coordinator: it may be cut off, and the answer never
/// come. Its connection stays. Should it coordinate again, what it is sent then comes behind what it has not answered: an older
/// commit is never handled after a newer one.
async fn unless_moved<T>(shared: &Shared, broker: i32, call: impl Future<Output = Result<T>>) -> Result<T> {
    let (group, every) = (group_id(shared)?, shared.settings.heartbeat_interval);
    tokio::select! {
        biased;
        answer = call => answer,
        error = shared.cluster.moves_from(CoordinatorKind::Group, group, broker, every) => {
            shared.cluster.forget_coordinator(CoordinatorKind::Group, group, broker);
            Err(error)
        }
    }
}

/// A coordinator may hold a join back for the whole poll interval, because other members may take that long. A broker that
/// hangs, or is not the coordinator any more, looks the same, so it is asked.
async fn ceases_to_coordinate(shared: &Shared, broker: i32) -> Error {
    let patience = shared.settings.session_timeout;
    match group_id(shared) {
        Ok(group) => {
            shared.cluster.ceases_to_coordinate(CoordinatorKind::Group, group, broker, patience).await
        }
        Err(error) => error,
    }
}

/// A coordinator that cannot be reached may have moved.
fn noted<T>(shared: &Shared, broker: i32, result: Result<T>) -> Result<T> {
    let result = shared.cluster.note(broker, result);
    if let (Err(error), Some(group)) = (&result, &shared.settings.group_id)
        && error.code().is_none()
        && error.is_retriable()
    {
        shared.cluster.forget_coordinator(CoordinatorKind::Group, group, broker);
    }
    result
}

/// Gathers items under their topics and those's ids. The items come sorted by partition, or nearly so.
fn by_topic_id<'a, T, U>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &'a TopicPartition,
    item: impl Fn(&T) -> U,
    id: impl Fn(&T) -> TopicId,
) -> Vec<(wire::Str, TopicId, Vec<U>)>
where
    T: 'a,
{
    let mut topics: Vec<(wire::Str, TopicId, Vec<U>)> = Vec::new();
    for each in items {
        let (topic, id) = (&key(&each).topic, id(&each));
        if topics.last().is_none_or(|(name, last, _)| *last != id || name.as_str() != &**topic) {
            topics.push((kafka_string(topic), id, Vec::new()));
        }
        if let Some((_, _, partitions)) = topics.last_mut() {
            partitions.push(item(&each));
        }
    }
    topics
}

/// Gathers items under their topics. The items come sorted by partition.
fn by_topic<'a, T, U>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &'a TopicPartition,
    item: impl Fn(&T) -> U,
) -> Vec<(wire::Str, Vec<U>)>
where
    T: 'a,
{
    let topics = by_topic_id(items, key, item, |_| TopicId::default());
    topics.into_iter().map(|(topic, _, items)| (topic, items)).collect()
}
