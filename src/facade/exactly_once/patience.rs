//! How [`ExactlyOnce`](super::ExactlyOnce) waits for brokers that are away: what passes by itself is logged and tried again, for as
//! long as it takes.

use std::time::Duration;

use crate::{
    consumer::{ConsumerRecords, KafkaConsumer},
    error::Result,
    facade::RUN_PAUSE,
    time::{Backoff, Rng},
};

pub(super) fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(1))
}

/// Starts a client, for as long as brokers are away. Of the failures the first is logged, and how many there were.
pub(super) async fn patiently<T, F: Future<Output = Result<T>>>(start: impl Fn() -> F) -> Result<T> {
    let mut failures = 0_u64;
    loop {
        match start().await {
            Err(error) if error.is_retriable() && !error.is_fatal() => {
                match failures {
                    0 => tracing::warn!(%error, "no client yet; further failures are counted, not logged"),
                    _ => tracing::debug!(%error, "no client yet"),
                }
                failures += 1;
                tokio::time::sleep(RUN_PAUSE).await;
            }
            started => {
                if failures > 0 && started.is_ok() {
                    tracing::info!(failures, "there is a client");
                }
                return started;
            }
        }
    }
}

/// The records of one poll. Errors that pass are logged and waited out.
pub(super) async fn poll_patiently(consumer: &KafkaConsumer, rng: &mut Rng) -> Result<ConsumerRecords> {
    let mut backoff = pauses();
    loop {
        match consumer.poll(Duration::from_secs(1)).await {
            Err(error) if error.is_retriable() => {
                tracing::warn!(%error, "the consumer will go on");
                tokio::time::sleep(backoff.next(rng)).await;
            }
            polled => return polled,
        }
    }
}
