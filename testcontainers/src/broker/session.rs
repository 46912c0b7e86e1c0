//! Fetch sessions of one broker (KIP-227): which partitions a client fetches, and what was last sent to it of each.
//!
//! Pure: no clock, no I/O. The cache is bounded; idle sessions make room, and their clients start new ones.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::clock::Now;

/// A session that was idle for so long makes room for another (`min.incremental.fetch.session.eviction.ms`).
const IDLE: Duration = Duration::from_secs(120);

/// A partition as the client names it: by name before version 13, by topic id since (KIP-516).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) topic: String,
    pub(super) topic_id: Uuid,
    pub(super) partition: i32,
}

impl Key {
    /// Whether both name the same partition: by topic id where there is one, even if the topic has lost its name since.
    fn is_same(&self, other: &Self) -> bool {
        let named = self.topic_id.is_nil() && other.topic_id.is_nil();
        self.partition == other.partition
            && self.topic_id == other.topic_id
            && (!named || self.topic == other.topic)
    }
}

/// What the client asks of one partition.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) offset: i64,
    pub(super) max_bytes: i32,
    pub(super) leader_epoch: i32,
}

/// High watermark, log start and last stable offset as last sent to the client.
pub(super) type LastSent = Option<(i64, i64, i64)>;

#[derive(Debug)]
struct Session {
    epoch: i32,
    partitions: BTreeMap<Key, (Wanted, LastSent)>,
    /// Where the next answer begins, so that a full answer does not starve the partitions at the end.
    next: usize,
    used: Now,
}

/// What one fetch has to look at.
#[derive(Debug)]
pub(super) struct Plan {
    /// Zero: no session.
    pub(super) session_id: i32,
    /// An incremental answer leaves out the partitions without news.
    pub(super) incremental: bool,
    pub(super) partitions: Vec<(Key, Wanted, LastSent)>,
}

/// The sessions of one broker.
#[derive(Debug, Default)]
pub(super) struct FetchSessions {
    sessions: BTreeMap<i32, Session>,
    given: i32,
}

impl FetchSessions {
    /// Takes the session fields of a fetch request and says what to read.
    ///
    /// With `slots` sessions in use the client gets none (KIP-227).
    pub(super) fn plan(
        &mut self,
        now: Now,
        slots: usize,
        id: i32,
        epoch: i32,
        wanted: Vec<(Key, Wanted)>,
        forgotten: &[Key],
    ) -> Result<Plan, ResponseError> {
        if epoch <= 0 {
            self.sessions.remove(&id);
            let session_id = if epoch == 0 { self.open(now, slots, &wanted) } else { 0 };
            let partitions = wanted.into_iter().map(|(k, w)| (k, w, None)).collect();
            return Ok(Plan { session_id, incremental: false, partitions });
        }
        let session = self.sessions.get_mut(&id).ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.epoch != epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        // KIP-516: a session names topics by id, or does not.
        let named = wanted.iter().map(|(key, _)| key).chain(forgotten).next();
        let by_id = |key: &Key| !key.topic_id.is_nil();
        if named.is_some_and(|key| session.partitions.keys().any(|known| by_id(known) != by_id(key))) {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        session.used = now;
        session.epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
        for key in forgotten {
            session.partitions.retain(|known, _| !known.is_same(key));
        }
        for (key, wanted) in wanted {
            let sent = session.partitions.get(&key).and_then(|p| p.1);
            // It may have been deleted since, and have no name any more.
            session.partitions.retain(|known, _| *known == key || !known.is_same(&key));
            session.partitions.insert(key, (wanted, sent));
        }
        if session.partitions.is_empty() {
            self.sessions.remove(&id);
            return Ok(Plan { session_id: 0, incremental: false, partitions: Vec::new() });
        }
        let start = session.next.checked_rem(session.partitions.len()).unwrap_or(0);
        session.next = start + 1;
        let all = || session.partitions.iter().map(|(k, (w, t))| (k.clone(), w.clone(), *t));
        let partitions = all().skip(start).chain(all().take(start)).collect();
        Ok(Plan { session_id: id, incremental: true, partitions })
    }

    fn open(&mut self, now: Now, slots: usize, wanted: &[(Key, Wanted)]) -> i32 {
        if wanted.is_empty() {
            return 0;
        }
        if self.sessions.len() >= slots {
            let oldest = self.sessions.iter().min_by_key(|(_, s)| s.used).map(|(id, s)| (*id, s.used));
            match oldest.filter(|(_, used)| now.saturating_sub(*used) > IDLE) {
                Some((id, _)) => self.sessions.remove(&id),
                None => return 0,
            };
        }
        self.given = self.given.checked_add(1).unwrap_or(1);
        let partitions = wanted.iter().map(|(k, w)| (k.clone(), (w.clone(), None))).collect();
        self.sessions.insert(self.given, Session { epoch: 1, partitions, next: 0, used: now });
        self.given
    }

    /// Forgets every session. Their ids are not given again: who goes on with one would be taken for somebody else.
    pub(super) fn forget(&mut self) {
        self.sessions.clear();
    }

    /// Remembers what the answer says of a partition; `None` makes the next answer name it again.
    pub(super) fn set_last_sent(&mut self, id: i32, key: &Key, sent: LastSent) {
        if let Some(partition) = self.sessions.get_mut(&id).and_then(|s| s.partitions.get_mut(key)) {
            partition.1 = sent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(partition: i32) -> Key {
        Key { topic: "t".into(), topic_id: Uuid::nil(), partition }
    }

    fn want(partition: i32, offset: i64) -> (Key, Wanted) {
        (key(partition), Wanted { offset, max_bytes: 100, leader_epoch: -1 })
    }

    #[test]
    fn an_incremental_fetch_keeps_what_it_does_not_name() {
        let mut sessions = FetchSessions::default();
        let id = sessions.plan(Now::ZERO, 9, 0, 0, vec![want(0, 0), want(1, 0)], &[]).unwrap().session_id;
        let plan = sessions.plan(Now::ZERO, 9, id, 1, vec![want(1, 7)], &[]).unwrap();
        let offsets: Vec<i64> = plan.partitions.iter().map(|p| p.1.offset).collect();
        assert_eq!(offsets, [0, 7]);
        let plan = sessions.plan(Now::ZERO, 9, id, 2, vec![], &[key(0)]).unwrap();
        assert_eq!(plan.partitions.len(), 1);
        let plan = sessions.plan(Now::ZERO, 9, id, 3, vec![], &[key(1)]).unwrap();
        assert_eq!((plan.session_id, plan.partitions.len()), (0, 0), "a session without partitions ends");
        let gone = sessions.plan(Now::ZERO, 9, id, 4, vec![want(1, 7)], &[]).unwrap_err();
        assert_eq!(gone, ResponseError::FetchSessionIdNotFound);
    }

    #[test]
    fn a_partition_of_a_topic_that_was_deleted_is_forgotten_by_its_id() {
        let mut sessions = FetchSessions::default();
        let of = |topic: &str, id| Key { topic: topic.into(), topic_id: Uuid::from_u128(id), partition: 0 };
        let asked = |key: Key| (key, want(0, 0).1);
        let wanted = vec![asked(of("t", 1)), asked(of("t", 2)), asked(of("u", 3))];
        let id = sessions.plan(Now::ZERO, 9, 0, 0, wanted, &[]).unwrap().session_id;
        let plan = sessions.plan(Now::ZERO, 9, id, 1, vec![asked(of("", 3))], &[of("", 1)]).unwrap();
        let mut ids: Vec<_> = plan.partitions.iter().map(|p| p.0.topic_id.as_u128()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [2, 3]);
    }

    #[test]
    fn a_wrong_epoch_and_an_unknown_session_are_refused() {
        let mut sessions = FetchSessions::default();
        let id = sessions.plan(Now::ZERO, 9, 0, 0, vec![want(0, 0)], &[]).unwrap().session_id;
        assert_eq!(
            sessions.plan(Now::ZERO, 9, id, 2, vec![], &[]).unwrap_err(),
            ResponseError::InvalidFetchSessionEpoch
        );
        assert_eq!(
            sessions.plan(Now::ZERO, 9, 99, 1, vec![], &[]).unwrap_err(),
            ResponseError::FetchSessionIdNotFound
        );
    }

    #[test]
    fn who_goes_on_with_a_session_that_was_forgotten_gets_nobody_elses() {
        let mut sessions = FetchSessions::default();
        let open = |sessions: &mut FetchSessions| {
            sessions.plan(Now::ZERO, 9, 0, 0, vec![want(0, 0)], &[]).unwrap().session_id
        };
        let forgotten = open(&mut sessions);
        sessions.forget();
        open(&mut sessions);
        let refused = sessions.plan(Now::ZERO, 9, forgotten, 1, vec![], &[]).unwrap_err();
        assert_eq!(refused, ResponseError::FetchSessionIdNotFound);
    }

    #[test]
    fn the_final_epoch_closes_the_session() {
        let mut sessions = FetchSessions::default();
        let id = sessions.plan(Now::ZERO, 9, 0, 0, vec![want(0, 0)], &[]).unwrap().session_id;
        assert_eq!(sessions.plan(Now::ZERO, 9, id, -1, vec![], &[]).unwrap().session_id, 0);
        assert_eq!(
            sessions.plan(Now::ZERO, 9, id, 1, vec![], &[]).unwrap_err(),
            ResponseError::FetchSessionIdNotFound
        );
    }

    #[test]
    fn the_answers_begin_at_another_partition_each_time() {
        let mut sessions = FetchSessions::default();
        let id = sessions.plan(Now::ZERO, 9, 0, 0, vec![want(0, 0), want(1, 0)], &[]).unwrap().session_id;
        let first = |plan: Plan| plan.partitions[0].0.partition;
        assert_eq!(first(sessions.plan(Now::ZERO, 9, id, 1, vec![], &[]).unwrap()), 0);
        assert_eq!(first(sessions.plan(Now::ZERO, 9, id, 2, vec![], &[]).unwrap()), 1);
    }

    #[test]
    fn a_full_cache_gives_no_session_until_one_is_idle() {
        let mut sessions = FetchSessions::default();
        let mut open = |at| sessions.plan(at, 1, 0, 0, vec![want(0, 0)], &[]).unwrap().session_id;
        assert_eq!(open(Now::ZERO), 1);
        assert_eq!(open(IDLE), 0);
        assert_eq!(open(IDLE + Duration::from_secs(1)), 2);
        assert_eq!(
            sessions.plan(Now::ZERO, 1, 1, 1, vec![], &[]).unwrap_err(),
            ResponseError::FetchSessionIdNotFound
        );
    }
}
