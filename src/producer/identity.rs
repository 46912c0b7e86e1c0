//! Who the producer is to the brokers, and the sequence numbers of each partition (KIP-98). Pure.
//!
//! ```text
//!   Unknown ──poll_ask──> Asking ──answer──> Known ──renew──> Unknown …
//!                           └──failure──> BackingOff ──(time)──> Asking
//! ```
//! A partition whose sequences broke (a batch given up in the middle, a log that lost records) goes on under a new
//! producer id, from sequence 0, once nothing of the old one is in flight there. Other partitions keep theirs.

use crate::{
    batch::Stamp,
    time::{Backoff, Instant, Rng},
};

/// A producer id with its epoch, as a broker gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProducerIdentity {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

#[derive(Debug)]
pub(crate) struct Identity {
    state: State,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Idempotence is off.
    Off,
    Unknown,
    Asking,
    BackingOff(Instant),
    Known(ProducerIdentity),
}

impl Identity {
    pub(crate) fn new(idempotent: bool, backoff: Backoff) -> Self {
        Self { state: if idempotent { State::Unknown } else { State::Off }, backoff }
    }

    /// Whether an InitProducerId request is due.
    pub(crate) fn poll_ask(&mut self, now: Instant) -> bool {
        let due = match self.state {
            State::Unknown => true,
            State::BackingOff(until) => until <= now,
            State::Off | State::Asking | State::Known(_) => false,
        };
        if due {
            self.state = State::Asking;
        }
        due
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::BackingOff(until) => Some(until),
            _ => None,
        }
    }

    pub(crate) fn handle_answer(&mut self, identity: ProducerIdentity) {
        self.backoff.reset();
        self.state = State::Known(identity);
    }

    pub(crate) fn handle_failure(&mut self, now: Instant, rng: &mut Rng) {
        self.state = State::BackingOff(now + self.backoff.next(rng));
    }

    /// `broken` is of no more use to some partition. Many partitions may say so; one new identity serves all.
    pub(crate) fn renew(&mut self, broken: ProducerIdentity) {
        if self.state == State::Known(broken) {
            self.state = State::Unknown;
        }
    }

    /// What to stamp with: `Err` while there is nothing yet, `Ok(None)` with idempotence off.
    pub(crate) fn current(&self) -> Result<Option<ProducerIdentity>, NotYet> {
        match self.state {
            State::Off => Ok(None),
            State::Known(identity) => Ok(Some(identity)),
            State::Unknown | State::Asking | State::BackingOff(_) => Err(NotYet),
        }
    }
}

/// No producer id has come yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotYet;

/// One partition's sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    identity: Option<ProducerIdentity>,
    next: i32,
    broken: bool,
    /// The broker has acknowledged something under this identity.
    proven: bool,
}

impl Sequences {
    /// The stamp of the next `count` records. `current` is the producer's identity; a partition takes a new one over
    /// only when it is `idle`: with nothing of the old one unanswered.
    pub(crate) fn stamp(
        &mut self,
        current: Option<ProducerIdentity>,
        count: i32,
        idle: bool,
    ) -> Option<Stamp> {
        let Some(current) = current else { return Some(Stamp::NONE) };
        if self.identity != Some(current) {
            if !idle {
                // A healthy partition simply goes on under the identity it has.
                let old = self.identity.filter(|_| !self.broken)?;
                return Some(self.take(old, count));
            }
            self.identity = Some(current);
            self.next = 0;
            self.broken = false;
            self.proven = false;
        }
        if self.broken { None } else { Some(self.take(current, count)) }
    }

    fn take(&mut self, identity: ProducerIdentity, count: i32) -> Stamp {
        let base_sequence = self.next;
        // Java: DefaultRecordBatch.incrementSequence wraps from i32::MAX to 0.
        self.next = (i64::from(base_sequence) + i64::from(count)).rem_euclid(1 << 31) as i32;
        Stamp {
            producer_id: identity.id,
            producer_epoch: identity.epoch,
            base_sequence,
            transactional: false,
        }
    }

    /// Whether the broker may not know the identity yet. It then takes any sequence for the first (KIP-360), also that of
    /// a batch whose predecessor it has just refused: until one is acknowledged, no second one may be on its way.
    pub(crate) fn is_unproven(&self) -> bool {
        self.identity.is_some() && !self.proven
    }

    /// A batch stamped so is in the log.
    pub(crate) fn handle_acknowledged(&mut self, stamp: &Stamp) {
        if self.identity.is_some_and(|identity| identity.id == stamp.producer_id) {
            self.proven = true;
        }
    }

    /// Whether what was stamped so still fits the log: its identity is the partition's own, and unbroken.
    pub(crate) fn fits(&self, stamp: &Stamp) -> bool {
        match self.identity {
            None => true,
            Some(identity) => !self.broken && identity.id == stamp.producer_id,
        }
    }

    /// Sequences no longer match the log: nothing new goes out under this identity. Returns it, to be renewed.
    pub(crate) fn break_off(&mut self) -> Option<ProducerIdentity> {
        self.broken = self.identity.is_some();
        self.identity
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0 };
    const SECOND: ProducerIdentity = ProducerIdentity { id: 8, epoch: 0 };

    fn identity() -> Identity {
        Identity::new(true, Backoff::new(Duration::from_millis(100), Duration::from_secs(1)))
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
    fn one_new_identity_serves_all_partitions_that_broke() {
        let now = crate::time::now();
        let mut identity = identity();
        identity.poll_ask(now);
        identity.handle_answer(FIRST);
        identity.renew(FIRST);
        assert!(identity.poll_ask(now));
        identity.renew(FIRST);
        identity.handle_answer(SECOND);
        identity.renew(FIRST);
        assert_eq!(
            identity.current(),
            Ok(Some(SECOND)),
            "a late complaint about the old one changes nothing"
        );
    }

    #[test]
    fn sequences_count_records_and_wrap() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.stamp(Some(FIRST), 10, true).unwrap().base_sequence, 0);
        assert_eq!(sequences.stamp(Some(FIRST), 5, false).unwrap().base_sequence, 10);
        sequences.next = i32::MAX - 1;
        assert_eq!(sequences.stamp(Some(FIRST), 3, false).unwrap().base_sequence, i32::MAX - 1);
        assert_eq!(sequences.stamp(Some(FIRST), 1, false).unwrap().base_sequence, 1);
    }

    #[test]
    fn a_broken_partition_waits_for_its_flight_to_land_and_for_a_new_identity() {
        let mut sequences = Sequences::default();
        sequences.stamp(Some(FIRST), 10, true);
        assert_eq!(sequences.break_off(), Some(FIRST));
        assert_eq!(sequences.stamp(Some(FIRST), 1, true), None, "the old identity is of no use");
        assert_eq!(sequences.stamp(Some(SECOND), 1, false), None, "old batches are still in flight");
        let stamp = sequences.stamp(Some(SECOND), 1, true).unwrap();
        assert_eq!((stamp.producer_id, stamp.base_sequence), (8, 0));
    }

    #[test]
    fn a_healthy_partition_keeps_its_identity_while_it_has_batches_in_flight() {
        let mut sequences = Sequences::default();
        sequences.stamp(Some(FIRST), 10, true);
        let stamp = sequences.stamp(Some(SECOND), 1, false).unwrap();
        assert_eq!((stamp.producer_id, stamp.base_sequence), (7, 10));
        let stamp = sequences.stamp(Some(SECOND), 1, true).unwrap();
        assert_eq!((stamp.producer_id, stamp.base_sequence), (8, 0));
    }

    #[test]
    fn without_idempotence_there_is_no_stamp() {
        assert_eq!(Sequences::default().stamp(None, 10, false), Some(Stamp::NONE));
    }
}
