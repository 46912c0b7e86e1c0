//! Questions that any broker can answer: about the cluster, topics, a coordinator, a producer id.
//!
//! [`Round`] is the core and knows no IO; [`Shared::ask_any`] drives it.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;

use super::{Refusals, Shared, no_broker};
use crate::{
    connection::{Connection, is_for_the_client},
    error::{Error, ErrorKind, Result},
    race,
    sorted::{Map, Set},
    time::{self, Instant},
};

/// How long the first broker may be silent before another one is asked as well. It may be paused or cut off, which on an open
/// connection nobody notices before `request.timeout.ms`. Each further one has twice as long as the last, so that a cluster
/// that is slow as a whole is not asked for the same by every broker at once.
const SILENCE: Duration = Duration::from_secs(2);

/// One question on its way round the brokers.
#[derive(Debug)]
struct Round {
    /// Nobody has answered this client yet, and not everybody was asked.
    is_first: bool,
    /// For how long a broker is silent that comes after the others from then on. Those that the first question has left behind
    /// would hold up the second.
    patience: Duration,
    /// Known brokers are asked only if nobody answers at the bootstrap addresses.
    only_bootstrap: bool,
    /// Whether others may still be tried.
    has_others: bool,
    /// Who has been asked, by every id: not asked again before the others were.
    tried: Set<i32>,
    /// Who has not answered yet, and since when.
    out: Map<i32, Instant>,
    errors: Vec<Error>,
    /// When another broker is asked.
    next_at: Instant,
}

impl Round {
    fn begin(now: Instant, is_first: bool, only_bootstrap: bool) -> Self {
        Self {
            is_first,
            patience: if is_first { race::STEP } else { SILENCE },
            only_bootstrap,
            has_others: true,
            tried: Set::new(),
            out: Map::new(),
            errors: Vec::new(),
            next_at: now,
        }
    }

    /// A broker is asked, which has these ids.
    fn handle_asked(&mut self, now: Instant, id: i32, names: Vec<i32>) {
        self.tried.extend(names);
        self.out.insert(id, now);
        self.wait(now);
    }

    /// Before the first answer nothing is known of the brokers, and addresses may be those of others: they are asked at the pace at
    /// which they are dialled.
    fn wait(&mut self, now: Instant) {
        self.next_at = now
            + match self.is_first {
                true => race::STEP,
                false => SILENCE * (1 << self.out.len().saturating_sub(1).min(8)),
            };
    }

    /// A broker has answered, or could not.
    fn handle_answered(&mut self, id: i32) {
        self.out.remove(&id);
    }

    /// What a broker that was asked has in place of an answer. Returns the error that ends the round.
    fn handle_error(&mut self, error: Error) -> Option<Error> {
        if is_for_the_client(&error) {
            return Some(error);
        }
        if error.kind() == ErrorKind::Timeout {
            // Those that were asked since have had what was left of the time. Why nobody else could be asked:
            let others = std::mem::take(&mut self.errors);
            return Some(if others.is_empty() { error } else { error.with_source(no_broker(others)) });
        }
        self.errors.push(error);
        None
    }

    /// No other broker could be reached, or none is left ([`ErrorKind::Config`]). `out`: the ids of those that have not answered
    /// yet. Returns the error that ends the round.
    fn handle_unreached(
        &mut self,
        now: Instant,
        error: Error,
        is_refused: bool,
        out: Set<i32>,
    ) -> Option<Error> {
        let is_last = error.kind() == ErrorKind::Config;
        if !self.out.is_empty() {
            // Who had an error may have an answer in a while.
            self.tried = out;
            if !is_last {
                self.errors.retain(|error| error.code().is_some());
            }
        }
        if !is_last || (self.errors.is_empty() && self.out.is_empty()) {
            self.errors.push(error);
        }
        // Accounts get locked where a password is shown again and again.
        self.has_others = !is_refused;
        // The bootstrap addresses may be gone for good, or silent. Where somebody says that they are the wrong ones (KIP-1102),
        // known brokers have said so before.
        let is_nobody_there = self.errors.iter().all(|error| error.is_retriable() && error.code().is_none());
        if self.only_bootstrap && is_nobody_there && !is_refused {
            self.only_bootstrap = false;
            self.next_at = now;
            return None;
        }
        // Everybody was asked: who had an error is not asked again at the pace of a start.
        self.is_first = false;
        self.wait(now);
        self.out.is_empty().then(|| self.end())
    }

    /// The error where nobody is left to ask.
    fn end(&mut self) -> Error {
        no_broker(std::mem::take(&mut self.errors))
    }

    /// Who has been silent for long enough to be called so.
    fn silent(&self, now: Instant) -> impl Iterator<Item = i32> {
        self.out.iter().filter(move |(_, since)| **since + self.patience <= now).map(|(id, _)| *id)
    }
}

impl Shared {
    /// Asks one broker after another until one answers: an error, or silence, may be only the trouble of the one asked. Who
    /// was silent while another answered comes after the others for a while.
    ///
    /// `rebootstrap`: the bootstrap addresses are asked first, and known brokers only if nobody answers there.
    ///
    /// # Errors
    /// Why each one failed; what is wrong with the question itself, or its answer too large for this client, as soon as one was asked;
    /// [`ErrorKind::Timeout`] as soon as one has been silent for `request.timeout.ms`, or until the deadline.
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
        let is_first = self.metadata().version == 0;
        let (mut round, refusals) = (Round::begin(time::now(), is_first, rebootstrap), Refusals::default());
        let mut asked = FuturesUnordered::new();
        loop {
            let failed = Notify::new();
            let (only_bootstrap, next_at, tried) = (round.only_bootstrap, round.next_at, round.tried.clone());
            let connect = async {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(next_at) => {}
                    () = failed.notified() => {}
                }
                self.any_connection(only_bootstrap, &tried, &refusals, until()).await
            };
            let mut connect = pin!(connect);
            let connected = loop {
                tokio::select! {
                    biased;
                    Some((id, answer)) = asked.next() => {
                        round.handle_answered(id);
                        match answer {
                            Ok(answer) => {
                                self.brokers.handle_answered(id);
                                round.silent(time::now()).for_each(|id| self.brokers.handle_silent(id));
                                return Ok(answer);
                            }
                            Err::<T, Error>(error) => {
                                self.brokers.handle_unanswered(id);
                                if let Some(error) = round.handle_error(error) {
                                    round.silent(time::now()).for_each(|id| self.brokers.handle_silent(id));
                                    return Err(error);
                                }
                                failed.notify_one();
                            }
                        }
                    }
                    connected = &mut connect, if round.has_others => break connected,
                    else => return Err(round.end()),
                }
            };
            match connected {
                Ok((id, connection)) => {
                    round.handle_asked(time::now(), id, self.brokers.names_of(id));
                    let answer = question(connection, until());
                    asked.push(async move { (id, answer.await) });
                }
                Err(error) => {
                    let out = round.out.keys().flat_map(|id| self.brokers.names_of(*id)).collect();
                    if let Some(error) = round.handle_unreached(time::now(), error, refusals.are_any(), out) {
                        return Err(error);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use dtkafka_testcontainers::{ApiKey, Effect, EmbeddedBroker, Fault, ResponseError};

    use super::super::{Cluster, CoordinatorKind, Create, Lane, tests::config_of};
    use super::*;
    use crate::error::{Stage, code::REBOOTSTRAP_REQUIRED};

    fn round(only_bootstrap: bool) -> (Round, Instant) {
        let now = time::now();
        (Round::begin(now, false, only_bootstrap), now)
    }

    fn unreachable() -> Error {
        Error::new(ErrorKind::Connect(Stage::Tcp), "refused")
    }

    fn nobody_left() -> Error {
        no_broker(Vec::new())
    }

    #[test]
    fn what_is_wrong_with_the_question_ends_it_and_what_is_wrong_with_a_broker_does_not() {
        let (mut round, now) = round(false);
        round.handle_asked(now, 1, vec![1, -1]);
        assert!(round.handle_error(Error::new(ErrorKind::Disconnected, "gone")).is_none());
        assert!(round.handle_error(Error::protocol("unreadable")).is_none());
        // A KRaft controller among the bootstrap addresses.
        let not_offered = |api| Error::new(ErrorKind::Unsupported, "not offered").with_api(api);
        assert!(round.handle_error(not_offered("Metadata")).is_none());
        assert!(round.handle_error(not_offered("InitProducerId")).is_some());
        assert!(round.handle_error(Error::new(ErrorKind::InvalidArgument, "not so")).is_some());
        assert!(round.handle_error(Error::protocol("too large").with_permanent()).is_some());
        round.handle_answered(1);
        let end = round.handle_unreached(now, nobody_left(), false, Set::new()).unwrap().to_string();
        assert!(
            end.contains("gone") && end.contains("unreadable") && !end.contains("no broker is known"),
            "{end}"
        );
    }

    #[test]
    fn while_one_is_silent_the_others_are_tried_at_a_pace_and_who_had_an_error_again() {
        let (mut round, now) = round(false);
        let mut at = now;
        for (id, wait) in (1..).zip([1, 2, 4, 8]) {
            round.handle_asked(at, id, vec![id]);
            assert_eq!(round.next_at, at + SILENCE * wait, "after {id}");
            at = round.next_at;
        }
        assert_eq!(
            round.silent(now + SILENCE + SILENCE / 2).collect::<Vec<_>>(),
            [1],
            "the second was asked a moment ago"
        );
        round.handle_answered(2);
        assert!(round.handle_error(Error::new(ErrorKind::Disconnected, "gone")).is_none());
        for _ in 0..5 {
            let out: Set<i32> = [1, 3, 4].into_iter().collect();
            assert!(round.handle_unreached(at, unreachable(), false, out).is_none());
            assert!(round.has_others && !round.tried.contains(&2) && round.tried.contains(&3));
        }
        assert_eq!(round.errors.len(), 1, "one error per attempt would be a page of them");
        let error = round.handle_error(Error::new(ErrorKind::Timeout, "no answer")).unwrap();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("refused"));
    }

    #[test]
    fn once_all_were_asked_a_start_goes_on_at_the_pace_of_any_other_question() {
        let now = time::now();
        let mut round = Round::begin(now, true, false);
        round.handle_asked(now, 1, vec![1]);
        assert_eq!(round.next_at, now + race::STEP);
        assert!(round.handle_unreached(now, nobody_left(), false, [1].into_iter().collect()).is_none());
        assert_eq!(round.next_at, now + SILENCE);
    }

    #[test]
    fn a_refused_password_is_not_shown_to_the_others_of_the_round() {
        let refused = || Error::new(ErrorKind::Connect(Stage::Sasl), "refused").with_permanent();
        let (mut silent, now) = round(false);
        silent.handle_asked(now, 1, vec![1]);
        let out: Set<i32> = [1].into_iter().collect();
        assert!(silent.handle_unreached(now, refused(), true, out).is_none());
        assert!(!silent.has_others);
        let (mut rebootstrap, now) = round(true);
        // The other address is dead, so that the error as a whole passes.
        let both = no_broker(vec![unreachable(), refused()]);
        assert!(both.is_retriable());
        assert!(rebootstrap.handle_unreached(now, both, true, Set::new()).is_some());
    }

    #[test]
    fn known_brokers_are_asked_if_nobody_is_at_the_bootstrap_addresses_and_not_if_somebody_sends_the_client_there()
     {
        let (mut gone, now) = round(true);
        assert!(gone.handle_unreached(now, unreachable(), false, Set::new()).is_none());
        assert!(!gone.only_bootstrap && gone.next_at == now);
        assert!(gone.handle_unreached(now, unreachable(), false, Set::new()).is_some());
        let (mut wrong, now) = round(true);
        wrong.handle_asked(now, -1, vec![-1]);
        wrong.handle_answered(-1);
        assert!(
            wrong.handle_error(Error::from_code("Metadata", REBOOTSTRAP_REQUIRED).with_passing()).is_none()
        );
        let end = wrong.handle_unreached(now, nobody_left(), false, Set::new()).unwrap();
        assert!(end.is_retriable() && wrong.only_bootstrap, "{end}");
    }

    /// Connected to each of three brokers.
    async fn connected() -> (EmbeddedBroker, Cluster) {
        connected_to(3).await
    }

    async fn connected_to(brokers: i32) -> (EmbeddedBroker, Cluster) {
        let broker = EmbeddedBroker::builder().brokers(brokers).in_memory().start().await.unwrap();
        let settings = config_of(&broker).resolve_client().unwrap();
        let cluster = Cluster::start(Arc::new(settings)).unwrap();
        cluster.connect(a_minute()).await.unwrap();
        for id in 1..=brokers {
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
    async fn among_ten_that_take_a_client_in_and_answer_nothing_the_one_that_does_is_found_in_two_seconds() {
        const BROKERS: i32 = 11;
        let broker = EmbeddedBroker::builder().brokers(BROKERS).in_memory().start().await.unwrap();
        for living in 1..=BROKERS {
            for silent in (1..=BROKERS).filter(|id| *id != living) {
                for api in [ApiKey::Metadata, ApiKey::FindCoordinator] {
                    broker.control().inject(Fault::on(api).broker(silent).effect(Effect::Silence));
                }
            }
            let started = time::now();
            let cluster = Cluster::start(Arc::new(config_of(&broker).resolve_client().unwrap())).unwrap();
            cluster.connect(a_minute()).await.unwrap();
            let took = time::now() - started;
            assert!(took < Duration::from_secs(2), "{living}: {took:?}");
            let (found, took) = coordinator(&cluster, "g").await;
            assert!(
                took < Duration::from_secs(2),
                "who did not answer at the start is asked last: {living}: {took:?}"
            );
            found.unwrap();
            broker.control().clear();
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
        let (broker, cluster) = connected_to(6).await;
        broker.control().delay(ApiKey::FindCoordinator, Duration::from_secs(25));
        let (found, took) = coordinator(&cluster, "g").await;
        assert!(found.is_ok(), "{found:?}");
        assert!(took < Duration::from_secs(26), "{took:?}");
        assert_eq!(broker.control().requests(ApiKey::FindCoordinator), 4, "at 0, 2, 6 and 14 s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_leads_to_the_next_broker_at_once() {
        let (broker, cluster) = connected().await;
        broker.control().disconnect_before(ApiKey::FindCoordinator, 2);
        let (found, took) = coordinator(&cluster, "g").await;
        assert!(found.is_ok(), "{found:?}");
        assert!(took < SILENCE, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn brokers_that_all_send_a_client_to_the_bootstrap_addresses_are_waited_for() {
        let (broker, cluster) = connected().await;
        broker.create_topic("t", 1).unwrap();
        broker.control().fail(ApiKey::Metadata, 1_000_000, ResponseError::RebootstrapRequired);
        let returning = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            broker.control().clear();
        };
        let topics = ["t".into()];
        let (required, ()) =
            tokio::join!(cluster.require_topics(&topics, Create::Never, a_minute()), returning);
        required.unwrap();
    }
}
