//! The driver that keeps the snapshot fresh: asks when [`Refresh`](super::refresh::Refresh) says so, publishes answers. It
//! also closes connections that are idle for too long.

use std::{sync::Arc, time::Duration};

use super::{
    Shared, TopicId,
    causes::Causes,
    kafka_string,
    metadata::{are_two_clusters, told},
    refresh::Ask,
};
use crate::{
    connection::Connection,
    driver::{self, AbortOnDrop},
    error::{ErrorCode, Result},
    time::{self, Instant, Rng},
    wire,
};

/// Starts the task, which ends when the last handle goes.
pub(super) fn start(shared: Arc<Shared>) -> Result<AbortOnDrop<()>> {
    let ended = Arc::clone(&shared);
    driver::spawn("client", move |error| ended.handle_end(error), run(shared)).map(AbortOnDrop)
}

/// While names lead to two clusters by turns, one line says so for all.
const SAME_MOVE: Duration = Duration::from_secs(600);

/// What the log has been told of, and need not be again.
#[derive(Default)]
struct Logged {
    causes: Causes<()>,
    other_cluster: Option<Instant>,
}

async fn run(shared: Arc<Shared>) {
    let mut rng = shared.settings.environment.rng();
    let mut logged = Logged::default();
    loop {
        let now = time::now();
        let idle = shared.brokers.close_idle(now);
        let (ask, timeout) = {
            let mut refresh = shared.refresh.lock();
            (refresh.poll_ask(now), refresh.poll_timeout())
        };
        if let Some(ask) = ask {
            let answer = fetch(&shared, &ask).await;
            publish(&shared, &ask, answer, &mut logged, &mut rng);
            continue;
        }
        tokio::select! {
            biased;
            () = shared.wake.notified() => {}
            () = time::sleep_until(timeout.into_iter().chain(idle).min()) => {}
        }
    }
}

/// Asks about the cluster.
async fn fetch(shared: &Shared, ask: &Ask) -> Result<wire::MetadataResponse> {
    if ask.rebootstrap {
        // Their names may lead elsewhere by now, while what was opened to where they led still answers.
        shared.brokers.replace(|id| id < 0);
    }
    let question = |connection, until| ask_one(shared, ask, connection, until);
    shared.ask_any(ask.rebootstrap, time::after(Duration::MAX), question).await
}

async fn ask_one(
    shared: &Shared,
    ask: &Ask,
    connection: Arc<Connection>,
    until: Instant,
) -> Result<wire::MetadataResponse> {
    let answer = told(connection.call(request(shared, ask), until).await?);
    // KIP-1102: the broker is not, or no longer, of the client's cluster.
    if answer.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::REBOOTSTRAP_REQUIRED)) {
        shared.refresh.lock().rebootstrap();
    }
    answer
}

fn request(shared: &Shared, ask: &Ask) -> wire::MetadataRequest {
    let topic = |name: &Arc<str>| wire::metadata_request::MetadataRequestTopic {
        name: Some(kafka_string(name)),
        ..Default::default()
    };
    let by_id = |id: &TopicId| wire::metadata_request::MetadataRequestTopic {
        topic_id: wire::Uuid(*id),
        ..Default::default()
    };
    let topics = match (&ask.matching, &ask.ids[..]) {
        (Some(_), _) => None,
        (None, []) => Some(ask.topics.iter().map(topic).collect()),
        (None, ids) => Some(ids.iter().map(by_id).collect()),
    };
    wire::MetadataRequest {
        topics,
        allow_auto_topic_creation: ask.create && shared.settings.allow_auto_create_topics,
        ..Default::default()
    }
}

fn publish(
    shared: &Shared,
    ask: &Ask,
    answer: Result<wire::MetadataResponse>,
    logged: &mut Logged,
    rng: &mut Rng,
) {
    let now = time::now();
    let error = match answer {
        Ok(answer) => {
            take_over(shared, ask, answer, logged, rng);
            if let Some(over) = logged.causes.handle_success(now, ()) {
                let lasted_ms = over.lasted.as_millis() as u64;
                tracing::info!(failures = over.failures, lasted_ms, "brokers tell about the cluster again");
            }
            None
        }
        Err(error) => {
            if logged.causes.handle_failure(now, (), &error) {
                tracing::warn!(%error, "no broker tells about the cluster; further failures are counted, not logged");
            }
            shared.refresh.lock().handle_failure(now, ask, rng);
            Some(error)
        }
    };
    shared.tell_health(error);
}

/// Makes the next snapshot of an answer.
fn take_over(shared: &Shared, ask: &Ask, answer: wire::MetadataResponse, logged: &mut Logged, rng: &mut Rng) {
    let (now, old) = (time::now(), shared.metadata());
    let new = {
        let mut refresh = shared.refresh.lock();
        for topic in answer.topics.iter().filter(|topic| ask.ids.contains(&topic.topic_id.0)) {
            if let (0, Some(name)) = (topic.error_code, &topic.name) {
                refresh.handle_named(now, &Arc::from(name.as_str()));
            }
        }
        let mut new = match &ask.matching {
            Some(pattern) => old.merge_all(answer, &ask.topics, pattern, |topic| refresh.knows(topic)),
            None => old.merge(answer, &ask.topics, |topic| refresh.knows(topic)),
        };
        new.answers = new.answers.max(ask.number);
        refresh.handle_names(new.topic_names());
        let changed = !new.agrees_with(&old);
        refresh.handle_answer(now, ask, changed, |topic| new.found(topic), rng);
        Arc::new(new)
    };
    shared.brokers.learn(&new);
    let (before, after) = (old.cluster_id.as_deref(), new.cluster_id.as_deref());
    if are_two_clusters(before, after) {
        if logged.other_cluster.is_none_or(|at| at + SAME_MOVE <= now) {
            tracing::warn!(
                before,
                after,
                "the brokers are of another cluster than before: see that bootstrap.servers names brokers of one cluster alone; \
                 more such changes within ten minutes are not logged"
            );
            logged.other_cluster = Some(now);
        }
        // Its brokers may have the names of those before.
        shared.brokers.replace(|_| true);
    }
    shared.snapshot.send_modify(|current| {
        // Another answer may have named newer leaders meanwhile (KIP-951).
        *current = if Arc::ptr_eq(current, &old) { new } else { Arc::new(new.with_newer_leaders(current)) };
    });
}

#[cfg(test)]
mod tests;
