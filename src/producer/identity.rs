//! Who the producer is to the brokers, and the sequence numbers of each partition (KIP-98, KIP-360). Pure.
//!
//! ```text
//!   Wanted ──poll_ask──> Asking ──answer──> Known ──bump──> Known (epoch + 1) … until the epochs are used up
//!     ▲                    │                  │
//!     └──(back-off)────────┴─────renew────────┘
//! ```
//! One identity serves the whole producer. A partition takes a newer one over when nothing of the older one is unanswered
//! there; until then it goes on under the one it has. A new epoch costs no request: brokers take any higher one. In another
//! cluster (its brokers have taken over the addresses) the id is nobody's or another producer's, so that none goes on.

use super::queue::Order;
use crate::{
    batch::Stamp,
    error::Error,
    time::{Backoff, Instant, Rng},
};

/// A producer id with its epoch, as a broker gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProducerIdentity {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    /// Which of the clusters that this client came to gave it, counted from 0: another one may give the same id again.
    pub(crate) cluster: u32,
}

impl ProducerIdentity {
    /// The identity in a broker's answer.
    ///
    /// # Errors
    /// `Protocol` for a negative id or epoch: brokers would take batches with a negative id for those of a producer without
    /// idempotence.
    pub(super) fn told(api: &'static str, id: i64, epoch: i16) -> Result<Self, Error> {
        match id >= 0 && epoch >= 0 {
            true => Ok(Self { id, epoch, cluster: 0 }),
            false => {
                Err(Error::protocol(format!("there can be no producer id {id} with epoch {epoch}"))
                    .with_api(api))
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Identity {
    state: State,
    backoff: Backoff,
    /// Nothing was acknowledged under the identity yet. If it is refused, a pause comes before the next one is asked for.
    unproven: bool,
    /// Which of the clusters that the client came to this is, counted from 0.
    cluster: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Idempotence is off, or a transaction says who the producer is.
    Off,
    /// To be asked for, not before that time.
    Wanted(Option<Instant>),
    /// Those who were asked are of this cluster.
    Asking(u32),
    Known(ProducerIdentity),
}

impl Identity {
    pub(crate) fn new(idempotent: bool, backoff: Backoff) -> Self {
        let state = if idempotent { State::Wanted(None) } else { State::Off };
        Self { state, backoff, unproven: true, cluster: 0 }
    }

    /// Whether an InitProducerId request is due.
    pub(crate) fn poll_ask(&mut self, now: Instant) -> bool {
        let due = matches!(self.state, State::Wanted(time) if time.is_none_or(|time| time <= now));
        if due {
            self.state = State::Asking(self.cluster);
        }
        due
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Wanted(time) => time,
            _ => None,
        }
    }

    pub(crate) fn handle_answer(&mut self, identity: ProducerIdentity) {
        self.unproven = true;
        self.state = match self.is_asked_elsewhere() {
            true => State::Wanted(None),
            false => State::Known(ProducerIdentity { cluster: self.cluster, ..identity }),
        };
    }

    /// Whether those who were asked may be of a cluster that the client has left.
    pub(crate) fn is_asked_elsewhere(&self) -> bool {
        matches!(self.state, State::Asking(cluster) if cluster != self.cluster)
    }

    /// The brokers are of another cluster now. There, the producer id may be that of another producer: with the same sequence
    /// numbers its batches would be taken for repeated ones, and with a newer epoch the other one would be fenced.
    pub(crate) fn handle_other_cluster(&mut self) {
        self.cluster += 1;
        if let State::Known(_) = self.state {
            self.state = State::Wanted(None);
        }
    }

    /// Nobody has answered with an id: another attempt follows after a pause.
    pub(crate) fn handle_failure(&mut self, now: Instant, rng: &mut Rng) {
        self.state = State::Wanted(Some(now + self.backoff.next(rng)));
    }

    /// A broker has acknowledged something under this identity.
    pub(crate) fn handle_proven(&mut self) {
        if std::mem::take(&mut self.unproven) {
            self.backoff.reset();
        }
    }

    /// Some partition can prove nothing more under `broken`. Many may say so; one new epoch serves all.
    pub(crate) fn bump(&mut self, broken: ProducerIdentity, now: Instant, rng: &mut Rng) {
        if self.state != State::Known(broken) {
            return;
        }
        // Java: TransactionManager.bumpIdempotentProducerEpoch. The highest epoch is never used, so that none overflows.
        match broken.epoch.checked_add(1).filter(|epoch| *epoch < i16::MAX) {
            Some(epoch) => self.state = State::Known(ProducerIdentity { epoch, ..broken }),
            None => self.renew(broken, now, rng),
        }
    }

    /// A broker refuses this producer id altogether: another one is needed. One that never served is replaced only after a
    /// pause, which doubles each time.
    pub(crate) fn renew(&mut self, refused: ProducerIdentity, now: Instant, rng: &mut Rng) {
        let same = matches!(self.state, State::Known(known) if (known.id, known.cluster) == (refused.id, refused.cluster));
        if same {
            let pause = self.unproven.then(|| now + self.backoff.next(rng));
            self.state = State::Wanted(pause);
        }
    }

    /// What to stamp with: `Err` while there is nothing yet, `Ok(None)` with idempotence off.
    pub(crate) fn current(&self) -> Result<Option<ProducerIdentity>, NotYet> {
        match self.state {
            State::Off => Ok(None),
            State::Known(identity) => Ok(Some(identity)),
            State::Wanted(_) | State::Asking(_) => Err(NotYet { cluster: self.cluster }),
        }
    }
}

/// No producer id has come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotYet {
    /// The cluster that will give it: a partition may go on under an identity that it has from there.
    pub(crate) cluster: u32,
}

/// Whether a partition's sequence numbers still match its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Match {
    #[default]
    Intact,
    /// A batch that is certainly not in the log was taken out: what follows gets new numbers under the same epoch.
    Gap,
    /// Nobody knows how far the log is: only a newer identity can go on.
    Broken,
}

/// One partition's sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    identity: Option<ProducerIdentity>,
    /// The sequence of the next new batch.
    next: i32,
    /// The sequence number that the log expects next, as far as acknowledgments tell.
    acknowledged: i32,
    /// The last batch in the log that was acknowledged: answers may come in another order than batches were written in.
    last_acknowledged: Option<Order>,
    state: Match,
    /// The broker has acknowledged something under this identity.
    proven: bool,
}

impl Sequences {
    /// Whether what is stamped fits what is in the log and in flight.
    pub(crate) fn is_intact(&self) -> bool {
        self.state == Match::Intact
    }

    /// Whether a batch was taken out in front of those that were sent after it.
    pub(crate) fn has_gap(&self) -> bool {
        self.state == Match::Gap
    }

    pub(crate) fn identity(&self) -> Option<ProducerIdentity> {
        self.identity
    }

    /// The partition goes on under `current`. Only to be called while nothing is in flight and no batch keeps a stamp of
    /// an older identity.
    pub(crate) fn settle(&mut self, current: ProducerIdentity) -> Settled {
        if self.identity != Some(current) {
            *self = Self { identity: Some(current), ..Self::default() };
            return Settled::Renumber;
        }
        match self.state {
            Match::Intact => Settled::Unchanged,
            Match::Gap => {
                self.next = self.acknowledged;
                self.state = Match::Intact;
                Settled::Renumber
            }
            Match::Broken => Settled::Wait,
        }
    }

    /// The stamp of the next `count` records; `None` where [`settle`](Self::settle) must come first.
    pub(crate) fn stamp(&mut self, count: i32, transactional: bool) -> Option<Stamp> {
        let identity = self.identity.filter(|_| self.is_intact())?;
        let base_sequence = self.next;
        self.next = sequence_after(base_sequence, count);
        Some(Stamp { producer_id: identity.id, producer_epoch: identity.epoch, base_sequence, transactional })
    }

    /// Whether the broker may not know the identity yet. It then takes any sequence for the first (KIP-360), also that of
    /// a batch whose predecessor it has just refused: until one is acknowledged, no second one may be on its way.
    pub(crate) fn is_unproven(&self) -> bool {
        self.identity.is_some() && !self.proven
    }

    /// The log is another one, which does not know the identity.
    pub(crate) fn forget_proof(&mut self) {
        self.proven = false;
    }

    /// A batch of `count` records stamped so is in the log.
    pub(crate) fn handle_acknowledged(&mut self, stamp: &Stamp, order: Order, count: i32) {
        if !self.is_own(stamp) {
            return;
        }
        self.proven = true;
        if self.last_acknowledged < Some(order) {
            self.last_acknowledged = Some(order);
            self.acknowledged = sequence_after(stamp.base_sequence, count);
        }
    }

    pub(crate) fn is_own(&self, stamp: &Stamp) -> bool {
        self.identity.is_some_and(|own| own.id == stamp.producer_id && own.epoch == stamp.producer_epoch)
    }

    /// A stamped batch was taken out that is certainly not in the log.
    pub(crate) fn leave_gap(&mut self) {
        self.state = self.state.max(Match::Gap);
    }

    /// Nothing more can be proved under this identity. Returns it, to be replaced.
    pub(crate) fn break_off(&mut self) -> Option<ProducerIdentity> {
        self.state = Match::Broken;
        self.identity
    }
}

/// What [`Sequences::settle`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Unchanged,
    /// Stamps given before are of no more use.
    Renumber,
    /// A newer identity is needed.
    Wait,
}

/// Java: `DefaultRecordBatch.incrementSequence` wraps from `i32::MAX` to 0.
pub(crate) fn sequence_after(base: i32, count: i32) -> i32 {
    (i64::from(base) + i64::from(count)).rem_euclid(1 << 31) as i32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0, cluster: 0 };
    const BUMPED: ProducerIdentity = ProducerIdentity { id: 7, epoch: 1, cluster: 0 };
    const SECOND: ProducerIdentity = ProducerIdentity { id: 8, epoch: 0, cluster: 0 };

    fn identity() -> Identity {
        Identity::new(true, Backoff::new(Duration::from_millis(100), Duration::from_secs(1)))
    }

    fn known(now: Instant) -> Identity {
        let mut identity = identity();
        assert!(identity.poll_ask(now));
        identity.handle_answer(FIRST);
        identity
    }

    #[test]
    fn an_id_of_another_cluster_is_replaced_also_where_it_comes_late_and_is_the_same_again() {
        let (now, mut rng) = (crate::time::now(), Rng::new(1));
        let elsewhere = Err(NotYet { cluster: 2 });
        let mut identity = known(now);
        let mut sequences = Sequences::default();
        assert_eq!(sequences.settle(FIRST), Settled::Renumber);
        identity.handle_other_cluster();
        assert_eq!(identity.current(), Err(NotYet { cluster: 1 }), "not even for partitions that have it");
        // They may be of that cluster still who answer now.
        assert!(identity.poll_ask(now) && !identity.is_asked_elsewhere());
        identity.handle_other_cluster();
        assert!(identity.is_asked_elsewhere());
        identity.handle_answer(FIRST);
        assert_eq!(identity.current(), elsewhere);
        assert!(identity.poll_ask(now));
        // A partition breaks off meanwhile, and nobody can take its word.
        let broken = sequences.break_off().unwrap();
        identity.bump(broken, now, &mut rng);
        identity.renew(broken, now, &mut rng);
        identity.handle_answer(FIRST);
        let same = identity.current().unwrap().unwrap();
        assert_eq!((same.id, same.epoch), (FIRST.id, FIRST.epoch));
        assert_eq!(sequences.settle(same), Settled::Renumber, "clusters count from the same number on");
        identity.bump(broken, now, &mut rng);
        assert_eq!(identity.current(), Ok(Some(same)), "that one is not broken");
        let mut off = Identity::new(false, Backoff::new(Duration::ZERO, Duration::ZERO));
        off.handle_other_cluster();
        assert_eq!(off.current(), Ok(None));
    }

    #[test]
    fn an_id_that_cannot_be_is_no_answer() {
        assert_eq!(ProducerIdentity::told("InitProducerId", 7, 0).unwrap(), FIRST);
        for (id, epoch) in [(-1, 0), (7, -1), (i64::MIN, i16::MIN)] {
            let error = ProducerIdentity::told("InitProducerId", id, epoch).unwrap_err();
            assert!(error.to_string().contains(&id.to_string()), "{error}");
        }
    }

    #[test]
    fn asks_once_and_again_after_a_failure() {
        let now = crate::time::now();
        let mut identity = identity();
        assert!(identity.poll_ask(now));
        assert!(!identity.poll_ask(now));
        identity.handle_failure(now, &mut Rng::new(1));
        assert!(!identity.poll_ask(now));
        let due = identity.poll_timeout().unwrap();
        assert!(identity.poll_ask(due));
        identity.handle_answer(FIRST);
        assert_eq!(identity.current(), Ok(Some(FIRST)));
    }

    #[test]
    fn one_new_epoch_serves_all_partitions_that_broke_and_asks_nobody() {
        let (now, mut rng) = (crate::time::now(), Rng::new(1));
        let mut identity = known(now);
        identity.bump(FIRST, now, &mut rng);
        assert_eq!(identity.current(), Ok(Some(BUMPED)));
        identity.bump(FIRST, now, &mut rng);
        assert_eq!(
            identity.current(),
            Ok(Some(BUMPED)),
            "a late complaint about the old one changes nothing"
        );
        assert!(!identity.poll_ask(now));
    }

    #[test]
    fn when_the_epochs_are_used_up_another_id_is_asked_for() {
        let (now, mut rng) = (crate::time::now(), Rng::new(1));
        let mut identity = known(now);
        identity.handle_proven();
        let mut last = FIRST;
        while let Ok(Some(current)) = identity.current() {
            last = current;
            identity.bump(current, now, &mut rng);
        }
        assert_eq!(last.epoch, i16::MAX - 1);
        assert!(identity.poll_ask(now));
    }

    #[test]
    fn an_id_that_is_refused_before_it_served_is_replaced_with_longer_and_longer_pauses() {
        let (mut now, mut rng) = (crate::time::now(), Rng::new(1));
        let mut identity = known(now);
        let mut asked = 0;
        let end = now + Duration::from_secs(60);
        while now < end {
            if identity.poll_ask(now) {
                asked += 1;
                identity.handle_answer(ProducerIdentity { id: 100 + asked, epoch: 0, cluster: 0 });
            }
            if let Ok(Some(current)) = identity.current() {
                identity.renew(current, now, &mut rng);
            }
            now += Duration::from_millis(1);
        }
        assert!((50..100).contains(&asked), "{asked} requests in a minute");
        // One that served is replaced at once, and the pauses start again.
        let due = identity.poll_timeout().unwrap();
        assert!(identity.poll_ask(due));
        identity.handle_answer(SECOND);
        identity.handle_proven();
        identity.renew(SECOND, due, &mut rng);
        assert!(identity.poll_ask(due));
    }

    #[test]
    fn a_refusal_of_another_identity_than_the_one_in_use_replaces_nothing() {
        let (now, mut rng) = (crate::time::now(), Rng::new(1));
        let elsewhere = ProducerIdentity { cluster: 1, ..FIRST };
        for (refused, is_replaced) in [(SECOND, false), (elsewhere, false), (FIRST, true), (BUMPED, true)] {
            let mut identity = known(now);
            identity.renew(refused, now, &mut rng);
            assert_eq!(identity.current().is_err(), is_replaced, "{refused:?}");
        }
        for stamp in [SECOND, BUMPED, FIRST] {
            let mut sequences = Sequences::default();
            assert!(!sequences.is_unproven(), "nothing was claimed yet");
            sequences.settle(FIRST);
            let own = sequences.stamp(1, false).unwrap();
            let stamp = Stamp { producer_id: stamp.id, producer_epoch: stamp.epoch, ..own };
            sequences.handle_acknowledged(&stamp, Order::test(0), 1);
            assert_eq!(sequences.is_unproven(), stamp != own);
            sequences.forget_proof();
            assert!(sequences.is_unproven());
        }
    }

    #[test]
    fn sequences_count_records_and_wrap() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.settle(FIRST), Settled::Renumber);
        assert_eq!(sequences.stamp(10, false).unwrap().base_sequence, 0);
        assert_eq!(sequences.stamp(5, false).unwrap().base_sequence, 10);
        sequences.next = i32::MAX - 1;
        assert_eq!(sequences.stamp(3, false).unwrap().base_sequence, i32::MAX - 1);
        assert_eq!(sequences.stamp(1, false).unwrap().base_sequence, 1);
    }

    #[test]
    fn behind_a_gap_numbers_go_on_where_the_log_is() {
        let mut sequences = Sequences::default();
        sequences.settle(FIRST);
        let first = sequences.stamp(10, false).unwrap();
        sequences.stamp(5, false);
        sequences.stamp(5, false);
        let third = sequences.stamp(5, false).unwrap();
        sequences.handle_acknowledged(&third, Order::test(3), 5);
        // An answer that was lost and asked for again: the log is not where this batch ends.
        sequences.handle_acknowledged(&first, Order::test(0), 10);
        sequences.leave_gap();
        assert_eq!(sequences.stamp(1, false), None, "what is in flight must land first");
        assert_eq!(sequences.settle(FIRST), Settled::Renumber);
        assert_eq!(sequences.stamp(1, false).unwrap().base_sequence, 25);
    }

    #[test]
    fn a_broken_partition_waits_for_a_newer_identity_and_a_gap_does_not_mend_it() {
        let mut sequences = Sequences::default();
        sequences.settle(FIRST);
        sequences.stamp(10, false);
        assert_eq!(sequences.break_off(), Some(FIRST));
        sequences.leave_gap();
        assert_eq!(sequences.settle(FIRST), Settled::Wait);
        assert_eq!(sequences.stamp(1, false), None);
        assert_eq!(sequences.settle(BUMPED), Settled::Renumber);
        let stamp = sequences.stamp(1, false).unwrap();
        assert_eq!((stamp.producer_epoch, stamp.base_sequence), (1, 0));
    }

    #[test]
    fn an_acknowledgment_of_an_older_identity_proves_nothing() {
        let mut sequences = Sequences::default();
        sequences.settle(FIRST);
        let old = sequences.stamp(10, false).unwrap();
        sequences.settle(BUMPED);
        sequences.handle_acknowledged(&old, Order::test(0), 10);
        assert!(sequences.is_unproven());
    }
}
