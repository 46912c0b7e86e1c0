//! An incremental fetch session with one broker (KIP-227): only what changed since the last fetch is sent. Pure.
//!
//! The broker keeps the list of partitions; whenever it is in doubt which list that is, the next fetch is a full one.

use std::collections::BTreeMap;

use super::ledger::Life;
use crate::record::TopicPartition;

/// What is asked of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Not sent.
    pub(crate) life: Life,
    pub(crate) offset: i64,
    /// KIP-320: what we believe the leader's epoch is; -1 where unknown.
    pub(crate) leader_epoch: i32,
    pub(crate) max_bytes: i32,
}

impl SessionRequest {
    /// A fetch of these partitions alone, outside any session.
    pub(crate) fn alone(partitions: Vec<(TopicPartition, Wanted)>) -> Self {
        Self { id: NO_SESSION, epoch: SessionEpoch::NONE, partitions, forgotten: Vec::new() }
    }
}

/// The part of a fetch request that the session decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRequest {
    pub(crate) id: i32,
    pub(crate) epoch: SessionEpoch,
    pub(crate) partitions: Vec<(TopicPartition, Wanted)>,
    pub(crate) forgotten: Vec<TopicPartition>,
}

pub(crate) const SESSION_ID_NOT_FOUND: i16 = 70;
pub(crate) const INVALID_SESSION_EPOCH: i16 = 71;

/// Counts the fetches of a session (KIP-227); not Kafka's leader epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SessionEpoch(pub(crate) i32);

impl SessionEpoch {
    /// A full fetch, which opens a session, or replaces the one of its id.
    pub(crate) const INITIAL: Self = Self(0);
    /// Outside any session.
    pub(crate) const NONE: Self = Self(-1);

    /// Wraps to one, since zero opens a session.
    fn next(self) -> Self {
        Self(if self.0 == i32::MAX { 1 } else { self.0 + 1 })
    }
}

const NO_SESSION: i32 = 0;

#[derive(Debug, Default)]
pub(crate) struct Session {
    id: i32,
    epoch: SessionEpoch,
    /// What the broker has on its list, the last request included.
    known: BTreeMap<TopicPartition, Wanted>,
    /// What the next request changes.
    changes: BTreeMap<TopicPartition, Option<Wanted>>,
    /// When each partition has last brought something, counted in such events: without a session the order is ours to keep
    /// fair, for a broker fills its answer in the order of the request.
    served: BTreeMap<TopicPartition, u64>,
    turns: u64,
}

impl Session {
    /// What is wanted of a partition from the next request on; `None`: nothing.
    pub(crate) fn set(&mut self, partition: TopicPartition, wanted: Option<Wanted>) {
        self.changes.insert(partition, wanted);
    }

    /// What the last request asked of a partition, be it by silence.
    pub(crate) fn asked(&self, partition: &TopicPartition) -> Option<&Wanted> {
        self.known.get(partition)
    }

    /// A partition has brought records: others come before it in the next full fetch.
    pub(crate) fn handle_served(&mut self, partition: &TopicPartition) {
        if self.id == NO_SESSION {
            self.turns += 1;
            self.served.insert(partition.clone(), self.turns);
        } else if !self.served.is_empty() {
            self.served.clear();
        }
    }

    /// What is wanted now and was not asked for by the request that is out.
    pub(crate) fn fresh(&self) -> impl Iterator<Item = (&TopicPartition, Wanted)> {
        self.changes.iter().filter_map(|(key, change)| {
            let wanted = (*change)?;
            (self.known.get(key) != Some(&wanted)).then_some((key, wanted))
        })
    }

    /// The next request.
    pub(crate) fn request(&mut self) -> SessionRequest {
        if self.epoch == SessionEpoch::INITIAL {
            for (key, wanted) in std::mem::take(&mut self.known) {
                self.changes.entry(key).or_insert(Some(wanted));
            }
        }
        let (mut partitions, mut forgotten) = (Vec::new(), Vec::new());
        for (key, change) in std::mem::take(&mut self.changes) {
            match change {
                Some(wanted) => {
                    if self.known.insert(key.clone(), wanted) != Some(wanted) {
                        partitions.push((key, wanted));
                    }
                }
                None => {
                    self.served.remove(&key);
                    if self.known.remove(&key).is_some() {
                        forgotten.push(key);
                    }
                }
            }
        }
        if !self.served.is_empty() {
            partitions.sort_by_cached_key(|(key, _)| self.served.get(key).copied());
        }
        SessionRequest { id: self.id, epoch: self.epoch, partitions, forgotten }
    }

    /// The broker answered the last request. False if the answer holds nothing but "begin anew".
    pub(crate) fn handle_answer(&mut self, error: i16, session_id: i32) -> bool {
        match error {
            0 if session_id == NO_SESSION => {
                // The broker has no room for sessions, or is too old for them: every fetch is a full one.
                (self.id, self.epoch) = (NO_SESSION, SessionEpoch::INITIAL);
                true
            }
            0 => {
                self.id = session_id;
                self.epoch = self.epoch.next();
                true
            }
            SESSION_ID_NOT_FOUND => {
                (self.id, self.epoch) = (NO_SESSION, SessionEpoch::INITIAL);
                false
            }
            _ => {
                self.handle_failure();
                false
            }
        }
    }

    /// No answer, so the broker may or may not have counted the request: replace its session by a new one.
    pub(crate) fn handle_failure(&mut self) {
        self.epoch = SessionEpoch::INITIAL;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ledger::Lives, *};

    fn life() -> Life {
        Lives::default().begin()
    }

    /// Wants exactly these partitions.
    fn request(session: &mut Session, list: &[(i32, i64)]) -> SessionRequest {
        for key in session.known.keys().cloned().collect::<Vec<_>>() {
            session.set(key, None);
        }
        for (partition, offset) in list {
            let wanted = Wanted { life: life(), offset: *offset, leader_epoch: 0, max_bytes: 100 };
            session.set(TopicPartition::new("t", *partition), Some(wanted));
        }
        session.request()
    }

    fn shown(request: &SessionRequest) -> (i32, i32, Vec<(i32, i64)>, Vec<i32>) {
        let sent = request.partitions.iter().map(|(key, wanted)| (key.partition, wanted.offset)).collect();
        (request.id, request.epoch.0, sent, request.forgotten.iter().map(|key| key.partition).collect())
    }

    #[test]
    fn the_first_fetch_is_full_and_later_ones_send_what_changed() {
        let mut session = Session::default();
        assert_eq!(shown(&request(&mut session, &[(0, 5), (1, 6)])), (0, 0, vec![(0, 5), (1, 6)], vec![]));
        assert!(session.handle_answer(0, 77));
        assert_eq!(shown(&request(&mut session, &[(0, 9), (1, 6)])), (77, 1, vec![(0, 9)], vec![]));
        assert!(session.handle_answer(0, 77));
        assert_eq!(shown(&request(&mut session, &[(1, 6), (2, 0)])), (77, 2, vec![(2, 0)], vec![0]));
        assert!(session.handle_answer(0, 77));
        assert_eq!(shown(&request(&mut session, &[(1, 6), (2, 0)])), (77, 3, vec![], vec![]));
    }

    #[test]
    fn a_partition_that_was_forgotten_is_sent_again_when_it_comes_back() {
        let mut session = Session::default();
        request(&mut session, &[(0, 5), (1, 6)]);
        session.handle_answer(0, 77);
        request(&mut session, &[(0, 5)]);
        session.handle_answer(0, 77);
        assert_eq!(shown(&request(&mut session, &[(0, 5), (1, 6)])), (77, 2, vec![(1, 6)], vec![]));
    }

    #[test]
    fn what_was_asked_holds_until_the_next_request_and_a_change_is_sent_once() {
        let mut session = Session::default();
        request(&mut session, &[(0, 5)]);
        session.handle_answer(0, 77);
        let key = TopicPartition::new("t", 0);
        let moved = Wanted { life: life(), offset: 9, leader_epoch: 0, max_bytes: 100 };
        session.set(key.clone(), Some(moved));
        assert_eq!(session.asked(&key).unwrap().offset, 5);
        assert_eq!(shown(&session.request()), (77, 1, vec![(0, 9)], vec![]));
        assert_eq!(session.asked(&key), Some(&moved));
        session.handle_answer(0, 77);
        session.set(key, Some(moved));
        assert_eq!(shown(&session.request()), (77, 2, vec![], vec![]));
    }

    #[test]
    fn a_lost_session_is_opened_anew_with_everything() {
        // (error, id of the next request): an unknown session is left alone, one out of step is replaced by its id.
        for (error, id) in [(SESSION_ID_NOT_FOUND, 0), (INVALID_SESSION_EPOCH, 77), (-1, 77)] {
            let mut session = Session::default();
            request(&mut session, &[(0, 5)]);
            session.handle_answer(0, 77);
            request(&mut session, &[(0, 6)]);
            assert!(!session.handle_answer(error, 0));
            assert_eq!(shown(&request(&mut session, &[(0, 6)])), (id, 0, vec![(0, 6)], vec![]));
        }
    }

    #[test]
    fn a_broker_without_sessions_gets_full_fetches() {
        let mut session = Session::default();
        for _ in 0..2 {
            assert_eq!(shown(&request(&mut session, &[(0, 5)])), (0, 0, vec![(0, 5)], vec![]));
            assert!(session.handle_answer(0, 0));
        }
    }

    #[test]
    fn the_session_epoch_wraps_to_one_since_zero_opens_a_session() {
        let mut session = Session { id: 7, epoch: SessionEpoch(i32::MAX), ..Session::default() };
        session.handle_answer(0, 7);
        assert_eq!(session.epoch, SessionEpoch(1));
    }
}
