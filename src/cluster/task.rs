//! The driver that keeps the snapshot fresh: asks when [`Refresh`](super::refresh::Refresh) says so, publishes answers.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{Health, Shared, kafka_string, refresh::Ask};
use crate::{
    connection::api::wire,
    error::Result,
    time::{self, Rng},
};

/// Ends the task when the last handle goes.
pub(crate) struct Driver(JoinHandle<()>);

impl Driver {
    pub(crate) fn start(shared: Arc<Shared>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one driver task of a cluster view")]
        Self(tokio::spawn(run(shared)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(shared: Arc<Shared>) {
    let mut rng = shared.settings.environment.rng();
    loop {
        let (ask, timeout) = {
            let mut refresh = shared.refresh();
            (refresh.poll_ask(time::now()), refresh.poll_timeout())
        };
        if let Some(ask) = ask {
            let answer = fetch(&shared, &ask).await;
            publish(&shared, &ask, answer, &mut rng);
            continue;
        }
        let Some(timeout) = timeout else {
            shared.wake.notified().await;
            continue;
        };
        tokio::select! {
            biased;
            () = shared.wake.notified() => {}
            () = tokio::time::sleep_until(timeout) => {}
        }
    }
}

async fn fetch(shared: &Shared, ask: &Ask) -> Result<wire::MetadataResponse> {
    let deadline = time::now() + shared.settings.request_timeout;
    let connection = shared.any_connection(deadline).await?;
    let topics = {
        let topic = |name: &Arc<str>| wire::metadata_request::MetadataRequestTopic {
            name: Some(kafka_string(name)),
            ..Default::default()
        };
        ask.topics.iter().map(topic).collect()
    };
    let request = wire::MetadataRequest {
        topics: Some(topics),
        allow_auto_topic_creation: shared.settings.allow_auto_create_topics,
        ..Default::default()
    };
    connection.call(request, deadline).await
}

fn publish(shared: &Shared, ask: &Ask, answer: Result<wire::MetadataResponse>, rng: &mut Rng) {
    let now = time::now();
    let error = match answer {
        Ok(answer) => {
            let old = Arc::clone(&shared.snapshot.borrow());
            let new = Arc::new(old.merge(answer, &ask.topics));
            let complete = ask.topics.iter().all(|topic| {
                // What waiting will not mend needs no second question.
                new.is_settled(topic) || new.permanent_error(topic).is_some()
            });
            shared.brokers.learn(&new);
            shared.refresh().handle_answer(now, complete, rng);
            shared.snapshot.send_replace(new);
            None
        }
        Err(error) => {
            tracing::warn!(%error, "metadata could not be refreshed");
            shared.refresh().handle_failure(now, rng);
            Some(error)
        }
    };
    shared.health.send_modify(|health| *health = Health { attempts: health.attempts + 1, error });
}
