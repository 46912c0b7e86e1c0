//! Members that do not yield their threads for longer than the session: they keep their partitions all the same, unless a
//! coordinator that was asleep meanwhile has counted their silence, or was killed and nobody took its place within the session.
//! Pure: no clients, no clock.

use std::{collections::BTreeMap, time::Duration};

use crate::members::POLL_INTERVAL;

/// So long after a broker has slept, members may hear that they were thrown out for it.
const HEARD_OF: Duration = Duration::from_secs(16);

/// Who blocks, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    began: BTreeMap<u32, Duration>,
    is_asleep: bool,
    /// When a broker fell asleep, or woke.
    turned: Option<Duration>,
    /// Blocks that were over before their member had lost anything.
    pub(crate) kept: usize,
    /// Losses that a broker's sleep may explain.
    pub(crate) excused: usize,
}

impl Blocks {
    /// The member stops yielding.
    pub(crate) fn begins(&mut self, now: Duration, member: u32) {
        self.began.insert(member, now);
    }

    /// A poll of it has returned.
    pub(crate) fn polled(&mut self, member: u32) {
        self.kept += usize::from(self.began.remove(&member).is_some());
    }

    /// It hears that it has lost partitions. True if it should not have.
    pub(crate) fn lost(&mut self, now: Duration, member: u32) -> bool {
        let Some(began) = self.began.remove(&member) else { return false };
        // What it did after the block may have taken it past the poll interval.
        if now - began >= POLL_INTERVAL {
            return false;
        }
        let slept = self.is_asleep || self.turned.is_some_and(|turned| now - turned < HEARD_OF);
        self.excused += usize::from(slept);
        !slept
    }

    /// A broker falls asleep, or wakes.
    pub(crate) fn broker_sleeps(&mut self, now: Duration, is_asleep: bool) {
        (self.is_asleep, self.turned) = (is_asleep, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_loss_within_a_block_is_a_fault_unless_a_broker_slept_or_the_poll_interval_is_over() {
        let mut blocks = Blocks::default();
        blocks.begins(at(0), 1);
        blocks.polled(1);
        assert!(!blocks.lost(at(9), 1), "it did not block any more");
        blocks.begins(at(10), 1);
        assert!(!blocks.lost(at(10) + POLL_INTERVAL, 1), "it was away for too long");
        blocks.begins(at(30), 1);
        assert!(blocks.lost(at(38), 1));
        blocks.begins(at(40), 1);
        blocks.broker_sleeps(at(41), true);
        assert!(!blocks.lost(at(48), 1));
        blocks.begins(at(49), 1);
        blocks.broker_sleeps(at(49), false);
        assert!(!blocks.lost(at(57), 1));
        blocks.begins(at(60), 1);
        assert!(blocks.lost(at(68), 1));
        assert_eq!((blocks.kept, blocks.excused), (1, 2));
    }
}
