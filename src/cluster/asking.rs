//! Questions that any broker can answer: about the cluster, a coordinator, a producer id.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;

use super::{Shared, no_broker};
use crate::{
    connection::Connection,
    error::{Error, ErrorKind, Result},
    sorted::Set,
    time::{self, Instant},
};

/// How long the first broker may be silent before another one is asked as well. It may be paused or cut off, which on an open
/// connection nobody notices before `request.timeout.ms`. Each further one has twice as long as the last, so that a cluster
/// that is slow as a whole is not asked for the same by every broker at once.
const SILENCE: Duration = Duration::from_secs(2);

impl Shared {
    /// Asks one broker after another until one answers: an error, or silence, may be only the trouble of the one asked. Who
    /// was silent while another answered comes after the others for a while.
    ///
    /// # Errors
    /// Why each one failed; [`ErrorKind::Timeout`] as soon as one has been silent for `request.timeout.ms`, or until the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future drops the questions; the connections stay.
    pub(super) async fn ask_any<T, F: Future<Output = Result<T>>>(
        &self,
        rebootstrap: bool,
        deadline: Instant,
        question: impl Fn(Arc<Connection>, Instant) -> F,
    ) -> Result<T> {
        let until = || deadline.min(time::now() + self.settings.request_timeout);
        let (mut errors, mut tried, mut silent) = (Vec::new(), Set::new(), Set::new());
        let (mut next_at, mut has_others) = (time::now(), true);
        let mut asked = FuturesUnordered::new();
        let failed = Notify::new();
        loop {
            let connect = async {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(next_at) => {}
                    () = failed.notified() => {}
                }
                self.any_connection(rebootstrap, &tried, until()).await
            };
            let connected = {
                let mut connect = pin!(connect);
                loop {
                    tokio::select! {
                        biased;
                        Some((id, answer)) = asked.next() => {
                            silent.remove(&id);
                            let error = match answer {
                                Ok(answer) => {
                                    self.brokers.handle_answered(id);
                                    silent.iter().for_each(|id| self.brokers.handle_silent(*id));
                                    return Ok(answer);
                                }
                                Err::<T, Error>(error) => error,
                            };
                            self.brokers.handle_unanswered(id);
                            if error.kind() == ErrorKind::Timeout {
                                // Those that were asked since have had what was left of the time.
                                silent.iter().for_each(|id| self.brokers.handle_silent(*id));
                                return Err(error);
                            }
                            errors.push(error);
                            failed.notify_one();
                        }
                        connected = &mut connect, if has_others => break connected,
                        else => return Err(no_broker(errors)),
                    }
                }
            };
            match connected {
                Ok((id, connection)) => {
                    tried.extend(self.brokers.names_of(id));
                    silent.insert(id);
                    let answer = question(connection, until());
                    asked.push(async move { (id, answer.await) });
                }
                Err(error) if asked.is_empty() => {
                    // No other broker is left, or none can be reached.
                    errors.extend((errors.is_empty() || error.kind() != ErrorKind::Config).then_some(error));
                    return Err(no_broker(errors));
                }
                // Who had an error may have an answer by then. But accounts get locked where a password is shown again and again.
                Err(error) => {
                    tried = silent.iter().flat_map(|id| self.brokers.names_of(*id)).collect();
                    has_others = error.is_retriable() || error.kind() == ErrorKind::Config;
                }
            }
            next_at = time::now() + SILENCE * (1 << silent.len().saturating_sub(1).min(8));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use dtkafka_testcontainers::{ApiKey, EmbeddedBroker};

    use super::super::{Cluster, CoordinatorKind, Create, Lane, tests::InMemory};
    use super::*;
    use crate::KafkaConfig;

    /// Connected to each of three brokers.
    async fn connected() -> (EmbeddedBroker, Cluster) {
        let broker = EmbeddedBroker::builder().brokers(3).in_memory().start().await.unwrap();
        let config = KafkaConfig::new()
            .set_bootstrap_servers(broker.bootstrap_servers())
            .set_transport(InMemory(broker.network()));
        let cluster = Cluster::start(Arc::new(config.resolve_client().unwrap())).unwrap();
        cluster.connect(a_minute()).await.unwrap();
        for id in 1..=3 {
            cluster.connection(id, Lane::Main, a_minute()).await.unwrap();
        }
        (broker, cluster)
    }

    fn a_minute() -> Instant {
        time::after(Duration::from_secs(60))
    }

    async fn coordinator(cluster: &Cluster, group: &str) -> (Result<i32>, Duration) {
        let started = time::now();
        let found = cluster.look_up_coordinator(CoordinatorKind::Group, group, a_minute()).await;
        (found, time::now() - started)
    }

    #[tokio::test(start_paused = true)]
    async fn brokers_that_are_silent_on_open_connections_hold_up_another_for_seconds_and_only_once() {
        for living in 1..=3 {
            let (broker, cluster) = connected().await;
            (1..=3).filter(|id| *id != living).for_each(|id| broker.control().cut(None, Some(id)));
            let started = time::now();
            for number in 0..10 {
                coordinator(&cluster, &format!("g{number}")).await.0.unwrap();
            }
            broker.create_topic("t", 1).unwrap();
            cluster.require_topics(&["t".into()], Create::Never, a_minute()).await.unwrap();
            // Each of the two is waited for once at most: both in one question, or each in another.
            let took = time::now() - started;
            assert!(took <= SILENCE * 3 + Duration::from_secs(1), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_comes_back_while_another_is_silent_is_asked() {
        let (broker, cluster) = connected().await;
        let control = broker.control();
        control.cut(None, Some(1));
        control.kill_broker(2).unwrap();
        control.kill_broker(3).unwrap();
        let returning = async {
            tokio::time::sleep(SILENCE * 3 / 2).await;
            broker.control().start_broker(3).await.unwrap();
        };
        let ((found, took), ()) = tokio::join!(coordinator(&cluster, "g"), returning);
        assert!(found.is_ok(), "{found:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_is_slow_as_a_whole_is_not_asked_by_all_at_once_and_has_the_whole_time_out() {
        let (broker, cluster) = connected().await;
        broker.control().delay(ApiKey::FindCoordinator, Duration::from_secs(25));
        let (found, took) = coordinator(&cluster, "g").await;
        assert!(found.is_ok(), "{found:?}");
        assert!(took < Duration::from_secs(26), "{took:?}");
        assert_eq!(broker.control().requests(ApiKey::FindCoordinator), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_leads_to_the_next_broker_at_once() {
        let (broker, cluster) = connected().await;
        broker.control().disconnect_before(ApiKey::FindCoordinator, 2);
        let (found, took) = coordinator(&cluster, "g").await;
        assert!(found.is_ok(), "{found:?}");
        assert!(took < SILENCE, "{took:?}");
    }
}
