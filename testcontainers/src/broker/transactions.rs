//! The transaction coordinator: transactional ids, their producer ids and epochs, and how transactions begin and end
//! (KIP-98, KIP-360, KIP-890 with both protocol versions).
//!
//! Pure: `now` comes in, [`Transactions::poll_ending`] says whose markers are to be written; writing them is the cluster's.
//!
//! ```text
//!  Empty ──► Ongoing ──► PrepareCommit ──► CompleteCommit ──► Ongoing, or Empty by InitProducerId
//!              │
//!              └── abort, time-out, fencing ──► PrepareAbort ──► CompleteAbort ──► as above
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_protocol::ResponseError;

use super::clock::Now;

/// A producer id and its epoch.
pub(super) type Identity = (i64, i16);

/// An epoch that is as good as used up: the next step is a new producer id.
const LAST_EPOCH: i16 = i16::MAX - 1;
/// When markers that could not be written are tried again.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    Ongoing,
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
}

impl State {
    /// The name in DescribeTransactions and ListTransactions.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }
}

/// The markers of a transaction that is ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) commit: bool,
    /// What the markers carry.
    pub(super) marker: Identity,
    /// The identity that counts once they are written.
    next: Identity,
    at: Now,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) identity: Identity,
    /// The one before, which may ask again for what it did not hear.
    previous: Option<Identity>,
    pub(super) timeout: Duration,
    pub(super) state: State,
    pub(super) partitions: BTreeSet<(String, i32)>,
    pub(super) groups: BTreeSet<String>,
    pub(super) started: Now,
    pub(super) started_ms: i64,
    ending: Option<Ending>,
}

impl Transaction {
    fn check(&self, identity: Identity) -> Result<(), ResponseError> {
        if self.identity.0 != identity.0 {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if self.identity.1 != identity.1 {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(())
    }

    /// Its end is written down, and its markers are not all written yet.
    fn is_ending(&self) -> bool {
        matches!(self.state, State::PrepareCommit | State::PrepareAbort)
    }

    /// Aborts what is open, under the next epoch. Whoever had it is fenced for good unless it `may_go_on`, as if it had asked
    /// for the abort and had not heard the answer.
    fn fence(&mut self, may_go_on: bool, at: Now) {
        let fenced = (self.identity.0, self.identity.1.saturating_add(1));
        self.prepare(false, fenced, fenced, at);
        self.previous = self.previous.filter(|_| may_go_on);
    }

    fn prepare(&mut self, commit: bool, marker: Identity, next: Identity, at: Now) {
        self.previous = Some(self.identity);
        self.identity = marker;
        self.state = if commit { State::PrepareCommit } else { State::PrepareAbort };
        self.ending = Some(Ending { commit, marker, next, at });
    }
}

/// A client's transactional id and who it says it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) id: &'a str,
    pub(super) identity: Identity,
}

/// What joins a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Partition(String, i32),
    Group(String),
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    all: BTreeMap<String, Transaction>,
    /// How long the coordinator takes to write markers; meanwhile clients hear CONCURRENT_TRANSACTIONS.
    pub(super) marker_delay: Duration,
    /// `transaction.version` 2: what the coordinator aborts by itself has ended like any other, and its producer may go on
    /// with the abort's answer; unless another has asked for the id until then.
    second_version: bool,
}

impl Transactions {
    pub(super) fn new(second_version: bool) -> Self {
        Self { second_version, ..Self::default() }
    }

    pub(super) fn get(&self, id: &str) -> Option<&Transaction> {
        self.all.get(id)
    }

    /// How many are open, or are being ended.
    pub(super) fn open(&self) -> usize {
        self.all.values().filter(|t| t.state == State::Ongoing || t.is_ending()).count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Transaction)> {
        self.all.iter()
    }

    /// InitProducerId. `expected` is the identity that the client has and wants to go on with (KIP-360).
    pub(super) fn init(
        &mut self,
        now: Now,
        id: &str,
        timeout: Duration,
        expected: Option<Identity>,
        new_id: impl FnOnce() -> i64,
    ) -> Result<Identity, ResponseError> {
        let (delay, may_go_on) = (self.marker_delay, self.second_version);
        let Some(txn) = self.all.get_mut(id) else {
            let identity = (new_id(), 0);
            let txn = Transaction {
                identity,
                previous: None,
                timeout,
                state: State::Empty,
                partitions: BTreeSet::new(),
                groups: BTreeSet::new(),
                started: now,
                started_ms: -1,
                ending: None,
            };
            self.all.insert(id.to_owned(), txn);
            return Ok(identity);
        };
        // An end of the first version leaves the epoch as it is: who asks with it asks for the next one.
        let is_retry = expected.is_some() && expected == txn.previous && expected != Some(txn.identity);
        if expected.is_some_and(|e| e.0 != txn.identity.0) && !is_retry {
            return Err(ResponseError::ProducerFenced);
        }
        match txn.state {
            State::PrepareCommit | State::PrepareAbort => Err(ResponseError::ConcurrentTransactions),
            State::Ongoing => {
                // Whoever had the transaction is fenced, whatever epoch the caller has: it asks again once it is aborted.
                txn.fence(may_go_on, now + delay);
                Err(ResponseError::ConcurrentTransactions)
            }
            _ if expected.is_some_and(|e| e != txn.identity) && !is_retry => {
                Err(ResponseError::ProducerFenced)
            }
            State::Empty | State::CompleteCommit | State::CompleteAbort => {
                if !is_retry {
                    // Who had it before a producer that says nothing of itself is fenced, and does not ask again.
                    txn.previous = expected;
                    let (producer, epoch) = txn.identity;
                    txn.identity = if epoch >= LAST_EPOCH { (new_id(), 0) } else { (producer, epoch + 1) };
                }
                txn.timeout = timeout;
                (txn.state, txn.started_ms) = (State::Empty, -1);
                Ok(txn.identity)
            }
        }
    }

    /// Takes parts into the transaction, and begins it with the first.
    pub(super) fn add(
        &mut self,
        now: Now,
        now_ms: i64,
        who: Who<'_>,
        parts: impl IntoIterator<Item = Part>,
    ) -> Result<(), ResponseError> {
        let txn = self.all.get_mut(who.id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        txn.check(who.identity)?;
        match txn.state {
            State::PrepareCommit | State::PrepareAbort => return Err(ResponseError::ConcurrentTransactions),
            State::Ongoing => {}
            State::Empty | State::CompleteCommit | State::CompleteAbort => {
                txn.state = State::Ongoing;
                (txn.started, txn.started_ms) = (now, now_ms);
            }
        }
        for part in parts {
            match part {
                Part::Partition(topic, partition) => drop(txn.partitions.insert((topic, partition))),
                Part::Group(group) => drop(txn.groups.insert(group)),
            }
        }
        Ok(())
    }

    /// Is this in the client's open transaction?
    pub(super) fn verify(&self, who: Who<'_>, part: &Part) -> Result<(), ResponseError> {
        let txn = self.all.get(who.id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        txn.check(who.identity)?;
        let known = match part {
            Part::Partition(topic, partition) => txn.partitions.contains(&(topic.clone(), *partition)),
            Part::Group(group) => txn.groups.contains(group),
        };
        match txn.state {
            State::PrepareCommit | State::PrepareAbort => Err(ResponseError::ConcurrentTransactions),
            State::Ongoing if known => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// EndTxn. With `bump` (version 5, KIP-890) every end gives the producer its next epoch; without, it keeps its own.
    pub(super) fn end(
        &mut self,
        now: Now,
        who: Who<'_>,
        commit: bool,
        bump: bool,
        new_id: impl FnOnce() -> i64,
    ) -> Result<Identity, ResponseError> {
        let at = now + self.marker_delay;
        let txn = self.all.get_mut(who.id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        let is_retry = bump && txn.previous == Some(who.identity) && txn.state != State::Empty;
        match txn.check(who.identity) {
            // The second version does not look at the epoch before the end is complete.
            Err(ResponseError::ProducerFenced) if bump && txn.is_ending() => {
                return Err(ResponseError::ConcurrentTransactions);
            }
            Err(error) if !is_retry => return Err(error),
            _ => {}
        }
        let invalid = Err(ResponseError::InvalidTxnState);
        match (txn.state, commit) {
            (State::Ongoing, _) if is_retry => return Err(ResponseError::ProducerFenced),
            (State::Ongoing, _) => {}
            // Whatever is asked for: the end before is not complete.
            (State::PrepareCommit | State::PrepareAbort, _) => {
                return Err(ResponseError::ConcurrentTransactions);
            }
            (State::CompleteCommit, true) | (State::CompleteAbort, false) if is_retry || !bump => {
                return Ok(txn.identity);
            }
            // A client of the new version does not know whether anything joined its transaction: it may abort nothing.
            (State::Empty | State::CompleteCommit | State::CompleteAbort, false) if bump && !is_retry => {}
            _ => return invalid,
        }
        let (producer, epoch) = txn.identity;
        let (marker, next) = match (bump, epoch >= LAST_EPOCH) {
            (false, _) => (txn.identity, txn.identity),
            (true, false) => ((producer, epoch + 1), (producer, epoch + 1)),
            (true, true) => ((producer, i16::MAX), (new_id(), 0)),
        };
        txn.prepare(commit, marker, next, at);
        Ok(next)
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_ending`] have something to do.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let due = |t: &Transaction| match (&t.ending, t.state) {
            (Some(ending), _) => Some(ending.at),
            (None, State::Ongoing) => Some(t.started + t.timeout),
            _ => None,
        };
        self.all.values().filter_map(due).min()
    }

    /// Aborts what took longer than its time-out, and fences its producer.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        let may_go_on = self.second_version;
        let late = |t: &&mut Transaction| t.state == State::Ongoing && t.started + t.timeout <= now;
        for txn in self.all.values_mut().filter(late) {
            txn.fence(may_go_on, now);
        }
    }

    /// A transaction whose markers are due.
    pub(super) fn poll_ending(&self, now: Now) -> Option<(String, Ending)> {
        let due = |(id, t): (&String, &Transaction)| {
            t.ending.clone().filter(|e| e.at <= now).map(|ending| (id.clone(), ending))
        };
        self.all.iter().find_map(due)
    }

    /// Some markers could not be written yet: these partitions remain.
    pub(super) fn postpone(&mut self, now: Now, id: &str, left: BTreeSet<(String, i32)>) {
        if let Some(txn) = self.all.get_mut(id) {
            txn.partitions = left;
            txn.groups.clear();
            if let Some(ending) = &mut txn.ending {
                ending.at = now + RETRY;
            }
        }
    }

    /// All markers are written.
    pub(super) fn complete(&mut self, id: &str) {
        let Some(txn) = self.all.get_mut(id) else { return };
        let Some(ending) = txn.ending.take() else { return };
        txn.identity = ending.next;
        txn.state = if ending.commit { State::CompleteCommit } else { State::CompleteAbort };
        txn.partitions.clear();
        txn.groups.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    struct Play {
        txns: Transactions,
        now: Now,
    }

    impl Play {
        fn new() -> Self {
            Self { txns: Transactions::default(), now: Duration::ZERO }
        }

        fn init(&mut self, expected: Option<Identity>) -> Result<Identity, ResponseError> {
            self.txns.init(self.now, "t", MINUTE, expected, || 7)
        }

        fn add(&mut self, identity: Identity) -> Result<(), ResponseError> {
            let part = Part::Partition("a".into(), 0);
            self.txns.add(self.now, 0, Who { id: "t", identity }, [part])
        }

        fn end(&mut self, identity: Identity, commit: bool, bump: bool) -> Result<Identity, ResponseError> {
            self.txns.end(self.now, Who { id: "t", identity }, commit, bump, || 8)
        }

        fn settle(&mut self) -> Vec<(bool, Identity)> {
            let mut ended = Vec::new();
            while let Some((id, ending)) = self.txns.poll_ending(self.now) {
                ended.push((ending.commit, ending.marker));
                self.txns.complete(&id);
            }
            ended
        }
    }

    #[test]
    fn a_new_producer_fences_the_old_one_and_aborts_its_transaction() {
        let mut play = Play::new();
        assert_eq!(play.init(None), Ok((7, 0)));
        play.add((7, 0)).unwrap();
        assert_eq!(play.init(None), Err(ResponseError::ConcurrentTransactions));
        assert_eq!(play.settle(), [(false, (7, 1))]);
        assert_eq!(play.init(None), Ok((7, 2)));
        assert_eq!(play.add((7, 0)), Err(ResponseError::ProducerFenced));
        assert_eq!(play.end((7, 0), true, false), Err(ResponseError::ProducerFenced));
        assert_eq!(play.add((9, 2)), Err(ResponseError::InvalidProducerIdMapping));
    }

    #[test]
    fn the_first_version_keeps_the_epoch_and_repeats_its_end() {
        let mut play = Play::new();
        play.init(None).unwrap();
        assert_eq!(play.end((7, 0), true, false), Err(ResponseError::InvalidTxnState));
        play.add((7, 0)).unwrap();
        play.txns.marker_delay = Duration::from_secs(1);
        assert_eq!(play.end((7, 0), true, false), Ok((7, 0)));
        assert_eq!(play.end((7, 0), true, false), Err(ResponseError::ConcurrentTransactions));
        assert_eq!(play.end((7, 0), false, false), Err(ResponseError::ConcurrentTransactions));
        assert_eq!(play.add((7, 0)), Err(ResponseError::ConcurrentTransactions));
        assert_eq!(play.settle(), []);
        play.now = Duration::from_secs(1);
        assert_eq!(play.settle(), [(true, (7, 0))]);
        assert_eq!(play.end((7, 0), true, false), Ok((7, 0)));
        assert_eq!(play.end((7, 0), false, false), Err(ResponseError::InvalidTxnState));
        play.add((7, 0)).unwrap();
        // KIP-360: after an abort the producer asks for its next epoch, once.
        assert_eq!(play.end((7, 0), false, false), Ok((7, 0)));
        play.now = Duration::from_secs(2);
        assert_eq!(play.settle(), [(false, (7, 0))]);
        assert_eq!(play.init(Some((7, 0))), Ok((7, 1)));
        assert_eq!(play.init(Some((7, 0))), Ok((7, 1)), "its answer was lost");
        assert_eq!(play.init(Some((7, 1))), Ok((7, 2)));
    }

    #[test]
    fn the_second_version_bumps_the_epoch_at_every_end() {
        let mut play = Play::new();
        play.init(None).unwrap();
        play.add((7, 0)).unwrap();
        assert_eq!(play.end((7, 0), true, true), Ok((7, 1)));
        assert_eq!(play.settle(), [(true, (7, 1))]);
        assert_eq!(play.end((7, 0), true, true), Ok((7, 1)), "the client did not hear the first answer");
        assert_eq!(play.end((7, 0), false, true), Err(ResponseError::InvalidTxnState));
        assert_eq!(play.end((7, 1), true, true), Err(ResponseError::InvalidTxnState), "nothing to commit");
        assert_eq!(play.end((7, 1), false, true), Ok((7, 2)), "but nothing can be aborted");
        play.settle();
        assert_eq!(play.add((7, 1)), Err(ResponseError::ProducerFenced));
        play.add((7, 2)).unwrap();
    }

    #[test]
    fn an_epoch_that_is_used_up_gives_a_new_producer_id() {
        let mut play = Play::new();
        play.init(None).unwrap();
        play.txns.all.get_mut("t").unwrap().identity.1 = LAST_EPOCH;
        play.add((7, LAST_EPOCH)).unwrap();
        assert_eq!(play.end((7, LAST_EPOCH), true, true), Ok((8, 0)));
        assert_eq!(play.settle(), [(true, (7, i16::MAX))]);
        play.add((8, 0)).unwrap();
    }

    #[test]
    fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
        let mut play = Play::new();
        play.init(None).unwrap();
        play.add((7, 0)).unwrap();
        assert_eq!(play.txns.poll_timeout(), Some(MINUTE));
        play.now = MINUTE;
        play.txns.handle_timeout(play.now);
        assert_eq!(play.settle(), [(false, (7, 1))]);
        assert_eq!(play.txns.poll_timeout(), None);
        assert_eq!(play.end((7, 0), true, false), Err(ResponseError::ProducerFenced));
        assert_eq!(play.end((7, 0), true, true), Err(ResponseError::ProducerFenced));
        assert_eq!(play.end((7, 0), false, true), Err(ResponseError::ProducerFenced));
        assert_eq!(play.init(Some((7, 0))), Err(ResponseError::ProducerFenced));
        assert_eq!(play.init(None), Ok((7, 2)));
    }

    #[test]
    fn who_is_fenced_in_the_second_version_may_go_on_until_there_is_a_successor() {
        let mut play = Play::new();
        play.txns.second_version = true;
        play.init(None).unwrap();
        play.add((7, 0)).unwrap();
        play.now = MINUTE;
        play.txns.handle_timeout(play.now);
        assert_eq!(play.settle(), [(false, (7, 1))]);
        assert_eq!(play.end((7, 0), true, true), Err(ResponseError::InvalidTxnState));
        assert_eq!(play.end((7, 0), false, true), Ok((7, 1)));
        play.add((7, 1)).unwrap();
        play.txns.marker_delay = Duration::from_secs(1);
        assert_eq!(play.init(None), Err(ResponseError::ConcurrentTransactions));
        assert_eq!(play.end((7, 1), false, true), Err(ResponseError::ConcurrentTransactions));
        play.now += Duration::from_secs(1);
        assert_eq!(play.settle(), [(false, (7, 2))]);
        assert_eq!(play.end((7, 1), false, true), Ok((7, 2)));
        assert_eq!(play.init(None), Ok((7, 3)));
        assert_eq!(play.end((7, 1), false, true), Err(ResponseError::ProducerFenced));
        assert_eq!(play.init(Some((7, 1))), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn a_producer_that_was_replaced_is_not_given_the_identity_of_its_successor() {
        let mut play = Play::new();
        assert_eq!(play.init(None), Ok((7, 0)));
        assert_eq!(play.init(None), Ok((7, 1)));
        assert_eq!(play.init(Some((7, 0))), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn a_producer_may_go_on_with_the_identity_it_has_and_repeat_the_question() {
        let mut play = Play::new();
        play.init(None).unwrap();
        assert_eq!(play.init(Some((7, 0))), Ok((7, 1)));
        assert_eq!(play.init(Some((7, 0))), Ok((7, 1)), "the answer was lost");
        assert_eq!(play.init(Some((7, 1))), Ok((7, 2)));
        assert_eq!(play.init(Some((7, 0))), Err(ResponseError::ProducerFenced));
    }
}
