//! Who coordinates a group or a transactional id: asked once, then remembered until it proves wrong.

use std::{sync::Arc, time::Duration};

use super::{Cluster, Lane, kafka_string, metadata};
use crate::{
    connection::Connection,
    error::{
        Error, Result,
        code::{GROUP_AUTHORIZATION_FAILED, NOT_COORDINATOR, TRANSACTIONAL_ID_AUTHORIZATION_FAILED},
    },
    sorted::Map,
    time::{self, Backoff, Instant},
    wire,
};

/// What is coordinated, by the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CoordinatorKind {
    /// A consumer group.
    Group = 0,
    /// A transactional id (KIP-98).
    Transaction = 1,
}

#[derive(Default)]
pub(super) struct Coordinators {
    known: Map<(CoordinatorKind, String), i32>,
    /// Why the last question failed.
    failing: Map<(CoordinatorKind, String), Error>,
}

/// How many coordinators are remembered. A program that watches all groups of a cluster for months sees new names every
/// day.
const MOST_KNOWN: usize = 10_000;

impl Coordinators {
    /// Takes note of the answer to a question.
    fn handle_answer(&mut self, place: (CoordinatorKind, String), found: &Result<i32>) {
        if self.known.len() + self.failing.len() >= MOST_KNOWN {
            // Callers that still need one ask again.
            *self = Self::default();
        }
        match found {
            Ok(broker) => {
                self.failing.remove(&place);
                self.known.insert(place, *broker);
            }
            Err(error) => {
                self.failing.insert(place, error.clone());
            }
        }
    }
}

impl Cluster {
    /// The broker that coordinates a group or a transactional id; asked once, then remembered until
    /// [`Self::forget_coordinator`].
    ///
    /// # Errors
    /// The broker's error if waiting will not mend it; otherwise the last cause at the deadline.
    pub(crate) async fn coordinator(
        &self,
        kind: CoordinatorKind,
        key: &str,
        deadline: Instant,
    ) -> Result<i32> {
        let mut backoff = Backoff::new(self.settings().retry_backoff, self.settings().retry_backoff_max);
        let mut rng = self.settings().environment.rng();
        loop {
            let error = match self.look_up_coordinator(kind, key, deadline).await {
                Ok(broker) => return Ok(broker),
                Err(error) => error,
            };
            let next = time::now() + backoff.next(&mut rng);
            if !error.is_retriable() || next >= deadline {
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// As [`coordinator`](Self::coordinator), with a single round of the brokers, for callers that repeat more than this question.
    pub(crate) async fn look_up_coordinator(
        &self,
        kind: CoordinatorKind,
        key: &str,
        deadline: Instant,
    ) -> Result<i32> {
        let place = (kind, key.to_owned());
        if let Some(known) = self.shared.coordinators.lock().known.get(&place) {
            return Ok(*known);
        }
        let found = self.find_coordinator(kind, key, deadline).await;
        self.shared.coordinators.lock().handle_answer(place, &found);
        found
    }

    /// Why a coordinator cannot be found or reached, as far as is known.
    pub(crate) fn why_coordinator(&self, kind: CoordinatorKind, key: &str) -> Option<Error> {
        let place = (kind, key.to_owned());
        let (known, failing) = {
            let coordinators = self.shared.coordinators.lock();
            (coordinators.known.get(&place).copied(), coordinators.failing.get(&place).cloned())
        };
        match known {
            Some(broker) => self.why(broker),
            None => failing,
        }
    }

    /// The coordinator is not (or no longer) `broker`.
    pub(crate) fn forget_coordinator(&self, kind: CoordinatorKind, key: &str, broker: i32) {
        let mut coordinators = self.shared.coordinators.lock();
        let place = (kind, key.to_owned());
        if coordinators.known.get(&place) == Some(&broker) {
            coordinators.known.remove(&place);
        }
    }

    /// Asks this broker again and again, on its main lane, whether it is the coordinator. Returns why a request to it on
    /// another lane is not worth waiting for: it is not the coordinator any more, or does not answer this question within
    /// `patience` either.
    pub(crate) async fn ceases_to_coordinate(
        &self,
        kind: CoordinatorKind,
        key: &str,
        broker: i32,
        patience: Duration,
    ) -> Error {
        loop {
            tokio::time::sleep(patience / 3).await;
            let deadline = time::now() + patience.min(self.settings().request_timeout);
            match self.coordinates(kind, key, broker, deadline).await {
                Ok(true) => {}
                Ok(false) => return Error::from_code("FindCoordinator", NOT_COORDINATOR),
                Err(error) => return error,
            }
        }
    }

    /// Asks all brokers in turn, again and again, who the coordinator is. Returns once that is another one than `broker`, which
    /// may be cut off and will never answer.
    pub(crate) async fn moves_from(
        &self,
        kind: CoordinatorKind,
        key: &str,
        broker: i32,
        every: Duration,
    ) -> Error {
        loop {
            tokio::time::sleep(every).await;
            let deadline = time::now() + self.settings().request_timeout;
            if self.find_coordinator(kind, key, deadline).await.is_ok_and(|other| other != broker) {
                return Error::from_code("FindCoordinator", NOT_COORDINATOR);
            }
        }
    }

    /// Whether this broker says that it is the coordinator. True also if it cannot tell at the moment.
    ///
    /// # Errors
    /// Why it does not answer.
    async fn coordinates(
        &self,
        kind: CoordinatorKind,
        key: &str,
        broker: i32,
        deadline: Instant,
    ) -> Result<bool> {
        let connection = self.connection(broker, Lane::Main, deadline).await?;
        let answer = connection.call(request(&connection, kind, key), deadline).await;
        let found = found(answer.map_err(|error| error.with_broker(broker))?, key);
        Ok(found.is_none_or(|found| found.error_code != 0 || found.node_id == broker))
    }

    async fn find_coordinator(&self, kind: CoordinatorKind, key: &str, deadline: Instant) -> Result<i32> {
        let question = |connection: Arc<Connection>, until| async move {
            connection.call(request(&connection, kind, key), until).await
        };
        let answer = self.ask_any(deadline, question).await?;
        let found = found(answer, key).ok_or_else(|| {
            Error::protocol("the answer lacks what was asked for").with_api("FindCoordinator")
        })?;
        let (code, id, host, port) = (found.error_code, found.node_id, found.host, found.port);
        if code != 0 {
            let error = Error::from_code("FindCoordinator", code);
            return Err(match code {
                GROUP_AUTHORIZATION_FAILED => {
                    error.with_hint(format!("grant the user Read on the group {key}"))
                }
                TRANSACTIONAL_ID_AUTHORIZATION_FAILED => {
                    error.with_hint(format!("grant the user Write on the transactional id {key}"))
                }
                _ => error,
            });
        }
        let Some(address) = metadata::address(id, &host, port) else {
            return Err(Error::protocol(format!("there can be no coordinator {id} at {host:?} port {port}"))
                .with_api("FindCoordinator"));
        };
        self.shared.brokers.learn_one(id, address);
        Ok(id)
    }
}

/// What an answer says of one key. Before version 4 an answer is about a single key, which it does not name.
fn found(
    answer: wire::FindCoordinatorResponse,
    key: &str,
) -> Option<wire::find_coordinator_response::Coordinator> {
    if !answer.coordinators.is_empty() {
        return answer.coordinators.into_iter().find(|found| found.key.as_str() == key);
    }
    Some(wire::find_coordinator_response::Coordinator {
        error_code: answer.error_code,
        node_id: answer.node_id,
        host: answer.host,
        port: answer.port,
        ..Default::default()
    })
}

fn request(connection: &Connection, kind: CoordinatorKind, key: &str) -> wire::FindCoordinatorRequest {
    let key_type = kind as i8;
    // KIP-699: from version 4 on, one request asks for several keys.
    if connection.version::<wire::FindCoordinatorRequest>().is_some_and(|version| version >= 4) {
        wire::FindCoordinatorRequest {
            coordinator_keys: vec![kafka_string(key)],
            key_type,
            ..Default::default()
        }
    } else {
        wire::FindCoordinatorRequest { key: kafka_string(key), key_type, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use wire::find_coordinator_response::Coordinator;

    use super::*;

    #[test]
    fn no_more_coordinators_are_remembered_than_are_of_use() {
        let mut coordinators = Coordinators::default();
        for number in 0..3 * MOST_KNOWN as i32 {
            let place = (CoordinatorKind::Group, format!("console-{number}"));
            let found = if number % 3 == 0 { Err(Error::closed("broker")) } else { Ok(number) };
            coordinators.handle_answer(place.clone(), &found);
            assert_eq!(coordinators.known.get(&place).copied(), found.ok());
            assert!(coordinators.known.len() + coordinators.failing.len() <= MOST_KNOWN);
        }
    }

    #[test]
    fn only_what_is_said_of_the_key_that_was_asked_about_counts() {
        let named =
            |key: &str, node_id| Coordinator { key: kafka_string(key), node_id, ..Default::default() };
        let answer = |coordinators| wire::FindCoordinatorResponse { coordinators, ..Default::default() };
        for others in [vec![], vec![named("before", 1), named("behind", 3)]] {
            let mut all = others.clone();
            assert_eq!(
                found(answer(others), "g").map(|found| found.node_id),
                if all.is_empty() { Some(0) } else { None }
            );
            all.insert(all.len() / 2, named("g", 2));
            assert_eq!(found(answer(all), "g").unwrap().node_id, 2);
        }
        // Up to version 3.
        let alone = wire::FindCoordinatorResponse { node_id: 7, error_code: 15, ..Default::default() };
        assert_eq!(found(alone, "g").map(|found| (found.node_id, found.error_code)), Some((7, 15)));
    }
}
