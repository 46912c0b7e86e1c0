//! An incremental fetch session with one broker (KIP-227): only what changed since the last fetch is sent. Pure.
//!
//! The broker keeps the list of partitions; whenever it is in doubt which list that is, the next fetch is a full one. Topics
//! are named by id where every id is known (KIP-516), by name otherwise; a session does one or the other.

use std::{collections::BTreeMap, sync::Arc};

use super::ledger::Life;
use crate::{cluster::TopicId, record::TopicPartition, sorted::Map};

/// What is asked for of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Not sent to the broker: it tells whether an answer is still wanted.
    pub(crate) life: Life,
    pub(crate) offset: i64,
    /// KIP-320: what we believe the leader's epoch is; -1 where unknown.
    pub(crate) leader_epoch: i32,
    /// KIP-320: of the last batch fetched; -1 where unknown. The broker answers where its log differs.
    pub(crate) last_epoch: i32,
    pub(crate) topic_id: TopicId,
    pub(crate) max_bytes: i32,
}

/// The names of topics by their ids, for the answer to a request.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<TopicId, (Arc<str>, usize)>);

impl Names {
    pub(crate) fn add(&mut self, key: &TopicPartition, id: TopicId) {
        self.0.entry(id).or_insert_with(|| (Arc::clone(&key.topic), 0)).1 += 1;
    }

    fn remove(&mut self, id: TopicId) {
        if let Some((_, count)) = self.0.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&id);
            }
        }
    }

    /// The topic of an answer: by its id, or by its name where it has none.
    pub(crate) fn topic(&self, id: TopicId, name: &str) -> Option<Arc<str>> {
        match id == TopicId::default() {
            true => Some(Arc::from(name)),
            false => self.0.get(&id).map(|(topic, _)| Arc::clone(topic)),
        }
    }

    /// Whether every topic has an id.
    pub(crate) fn are_complete(&self) -> bool {
        !self.0.contains_key(&TopicId::default())
    }
}

impl SessionRequest {
    /// A fetch of these partitions alone, outside any session.
    pub(crate) fn alone(partitions: Vec<(TopicPartition, Wanted)>) -> Self {
        let by_id = partitions.iter().all(|(_, wanted)| wanted.topic_id != TopicId::default());
        let (forgotten, replaced) = (Vec::new(), Vec::new());
        Self { id: NO_SESSION, epoch: SessionEpoch::NONE, partitions, forgotten, replaced, by_id }
    }
}

/// The part of a fetch request that the session decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRequest {
    pub(crate) id: i32,
    pub(crate) epoch: SessionEpoch,
    pub(crate) partitions: Vec<(TopicPartition, Wanted)>,
    pub(crate) forgotten: Vec<(TopicPartition, TopicId)>,
    /// Partitions of topics that were made again, under the ids they had. By name they are in their places already.
    pub(crate) replaced: Vec<(TopicPartition, TopicId)>,
    /// Topics may be named by id.
    pub(crate) by_id: bool,
}

pub(crate) const SESSION_ID_NOT_FOUND: i16 = 70;
pub(crate) const INVALID_SESSION_EPOCH: i16 = 71;

/// Counts the fetches of a session (KIP-227); not Kafka's leader epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SessionEpoch(pub(crate) i32);

impl SessionEpoch {
    /// A full fetch, which opens a session or replaces the one whose id it names.
    pub(crate) const INITIAL: Self = Self(0);
    /// Outside any session.
    pub(crate) const NONE: Self = Self(-1);

    /// Wraps to one, since zero opens a session.
    fn next(self) -> Self {
        Self(if self.0 == i32::MAX { 1 } else { self.0 + 1 })
    }
}

pub(crate) const NO_SESSION: i32 = 0;

#[derive(Debug, Default)]
pub(crate) struct Session {
    id: i32,
    epoch: SessionEpoch,
    /// What the broker has on its list, the last request included.
    known: BTreeMap<TopicPartition, Wanted>,
    /// The names and ids of the topics in `known`.
    names: Names,
    /// The session was opened with ids.
    by_id: bool,
    /// What the next request changes.
    changes: Map<TopicPartition, Option<Wanted>>,
}

impl Session {
    /// What is wanted of a partition from the next request on; `None`: nothing.
    pub(crate) fn set(&mut self, partition: TopicPartition, wanted: Option<Wanted>) {
        self.changes.insert(partition, wanted);
    }

    /// What the last request asked for of a partition, also if it did not name the partition because nothing had changed.
    pub(crate) fn asked(&self, partition: &TopicPartition) -> Option<&Wanted> {
        self.known.get(partition)
    }

    /// The topics of the last request.
    pub(crate) fn names(&self) -> &Names {
        &self.names
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
            self.begin_anew();
        }
        let mut request = self.changes();
        let by_id = self.names.are_complete();
        if by_id != self.by_id && self.epoch != SessionEpoch::INITIAL {
            // Topics that had no id have one now, or the other way round: a session cannot change that.
            self.epoch = SessionEpoch::INITIAL;
            self.begin_anew();
            request = self.changes();
        }
        self.by_id = by_id;
        request.by_id = by_id;
        request
    }

    /// The broker is told everything again.
    fn begin_anew(&mut self) {
        self.names = Names::default();
        for (key, wanted) in std::mem::take(&mut self.known) {
            self.changes.entry(key).or_insert(Some(wanted));
        }
    }

    fn changes(&mut self) -> SessionRequest {
        let (mut partitions, mut forgotten, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
        for (key, change) in std::mem::take(&mut self.changes) {
            let before = match change {
                Some(wanted) => self.known.insert(key.clone(), wanted),
                None => self.known.remove(&key),
            };
            let was = before.map(|before| before.topic_id);
            let is = change.map(|wanted| wanted.topic_id);
            if was != is {
                was.into_iter().for_each(|id| self.names.remove(id));
                is.into_iter().for_each(|id| self.names.add(&key, id));
            }
            match (change, was) {
                (Some(wanted), _) if before == Some(wanted) => {}
                (Some(wanted), was) => {
                    if let Some(was) = was.filter(|was| *was != wanted.topic_id && *was != TopicId::default())
                    {
                        replaced.push((key.clone(), was));
                    }
                    partitions.push((key, wanted));
                }
                (None, was) => forgotten.extend(was.map(|was| (key, was))),
            }
        }
        SessionRequest { id: self.id, epoch: self.epoch, partitions, forgotten, replaced, by_id: false }
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

    fn wanted(offset: i64) -> Wanted {
        let topic_id = TopicId::default();
        Wanted { life: life(), offset, leader_epoch: 0, last_epoch: -1, topic_id, max_bytes: 100 }
    }

    /// Wants exactly these partitions.
    fn request(session: &mut Session, list: &[(i32, i64)]) -> SessionRequest {
        for key in session.known.keys().cloned().collect::<Vec<_>>() {
            session.set(key, None);
        }
        for (partition, offset) in list {
            let wanted = wanted(*offset);
            session.set(TopicPartition::new("t", *partition), Some(wanted));
        }
        session.request()
    }

    fn shown(request: &SessionRequest) -> (i32, i32, Vec<(i32, i64)>, Vec<i32>) {
        let sent = request.partitions.iter().map(|(key, wanted)| (key.partition, wanted.offset)).collect();
        (request.id, request.epoch.0, sent, request.forgotten.iter().map(|(key, _)| key.partition).collect())
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
        let moved = wanted(9);
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
    fn what_is_asked_for_alone_opens_no_session_and_names_topics_by_id_only_if_all_have_one() {
        let of =
            |id: u8| (TopicPartition::new("t", i32::from(id)), Wanted { topic_id: [id; 16], ..wanted(5) });
        for (ids, by_id) in [(&[1, 2][..], true), (&[1, 0], false), (&[0, 0], false)] {
            let request = SessionRequest::alone(ids.iter().map(|id| of(*id)).collect());
            assert_eq!((request.id, request.epoch, request.by_id), (0, SessionEpoch(-1), by_id), "{ids:?}");
        }
    }

    #[test]
    fn what_is_asked_for_already_is_not_fresh() {
        let mut session = Session::default();
        request(&mut session, &[(0, 5), (1, 6), (2, 7)]);
        let key = |partition| TopicPartition::new("t", partition);
        session.set(key(0), Some(wanted(5)));
        session.set(key(1), Some(wanted(9)));
        session.set(key(2), None);
        session.set(key(3), Some(wanted(1)));
        let fresh: Vec<_> = session.fresh().map(|(key, wanted)| (key.partition, wanted.offset)).collect();
        assert_eq!(fresh, [(1, 9), (3, 1)]);
    }

    #[test]
    fn a_topic_made_again_is_forgotten_under_its_old_id_and_asked_for_under_the_new() {
        let mut session = Session::default();
        let key = TopicPartition::new("t", 0);
        let of = |id: u8| Some(Wanted { topic_id: [id; 16], ..wanted(5) });
        session.set(key.clone(), of(1));
        assert!(session.request().by_id);
        session.handle_answer(0, 77);
        session.set(key.clone(), of(2));
        let request = session.request();
        assert_eq!((request.epoch.0, &request.replaced), (1, &vec![(key.clone(), [1; 16])]));
        assert_eq!((request.partitions.len(), request.forgotten.len()), (1, 0));
        assert_eq!(session.names().topic([1; 16], ""), None, "an answer about the old one is nobody's");
        assert_eq!(session.names().topic([2; 16], "").as_deref(), Some("t"));
        session.handle_answer(0, 77);
        session.set(key.clone(), None);
        assert_eq!(session.request().forgotten, [(key, [2; 16])]);
        assert_eq!(session.names().topic([2; 16], ""), None);
    }

    #[test]
    fn a_session_by_name_begins_anew_when_every_topic_has_its_id() {
        let mut session = Session::default();
        let keys = [TopicPartition::new("a", 0), TopicPartition::new("b", 0)];
        session.set(keys[0].clone(), Some(wanted(5)));
        session.set(keys[1].clone(), Some(Wanted { topic_id: [2; 16], ..wanted(6) }));
        assert!(!session.request().by_id);
        session.handle_answer(0, 77);
        session.set(keys[0].clone(), Some(Wanted { topic_id: [1; 16], ..wanted(5) }));
        let request = session.request();
        assert_eq!((request.id, request.epoch.0, request.by_id, request.partitions.len()), (77, 0, true, 2));
    }

    #[test]
    fn the_session_epoch_wraps_to_one_since_zero_opens_a_session() {
        let mut session = Session { id: 7, epoch: SessionEpoch(i32::MAX), ..Session::default() };
        session.handle_answer(0, 7);
        assert_eq!(session.epoch, SessionEpoch(1));
    }
}
