//! One assigned partition: where it stands, and what its fetches and look-ups need to know of it. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::{
    identity::{Before, UnconfirmedId},
    source::Replica,
};
use crate::{
    cluster::TopicId,
    consumer::{
        buffer::Buffer,
        ledger::{Account, Life, Mark},
    },
    error::{Error, Result},
    time::Instant,
};

/// Where to start when there is no offset, as ListOffsets wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetTo {
    Earliest,
    Latest,
    /// At the first record with this time or a later one, in milliseconds since the Unix epoch; at the end without one.
    Time(i64),
    /// As [`Self::Time`], for the time this long before now (KIP-1106).
    Ago(Duration),
}

impl ResetTo {
    /// The timestamp that stands for it on the wire. `now`: in milliseconds since the Unix epoch.
    pub(crate) fn timestamp(self, now: i64) -> i64 {
        match self {
            Self::Earliest => -2,
            Self::Latest => -1,
            Self::Time(time) => time,
            Self::Ago(age) => now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)).max(0),
        }
    }

    pub(crate) fn is_time(self) -> bool {
        matches!(self, Self::Time(_) | Self::Ago(_))
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// The group's committed offset is being looked up.
    AwaitingCommitted,
    /// The start or the end of the log is being looked up.
    AwaitingReset(ResetTo),
    Fetching(Position),
    /// Metadata name another topic than the group's coordinator, which assigns by id. Nothing happens until the two
    /// agree; polls say why.
    Replaced(Error),
    /// Nothing happens until the user seeks; every poll says why.
    Failed(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) next: i64,
    pub(crate) fetch: i64,
    /// Of the last record handed out; -1 where unknown.
    pub(crate) leader_epoch: i32,
    /// The leader epoch of the last batch fetched; -1 where unknown.
    pub(crate) fetch_epoch: i32,
}

impl Position {
    pub(crate) fn at(offset: i64) -> Self {
        Self::after(offset, -1)
    }

    /// The record before it is of this leader epoch, or -1.
    pub(crate) fn after(offset: i64, epoch: i32) -> Self {
        Self { next: offset, fetch: offset, leader_epoch: epoch, fetch_epoch: epoch }
    }

    pub(super) fn mark(self) -> Mark {
        Mark { offset: self.next, leader_epoch: self.leader_epoch }
    }
}

/// Why a partition is paused; the later reason outweighs the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PausedBy {
    /// What was handed out is worked off first.
    Backlog,
    User,
}

/// One assigned partition. What few partitions have, and is large, is boxed: a member may have 50,000.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) account: Account,
    pub(crate) paused: Option<PausedBy>,
    /// It is being given up: nothing more is handed out of it.
    pub(crate) is_revoking: bool,
    pub(super) phase: Phase,
    pub(crate) queue: Buffer,
    /// When records of it have last come, counted in such events.
    pub(crate) turn: u64,
    /// A look-up of its offset is out.
    pub(crate) asked: bool,
    /// Not to be asked about or fetched before.
    pub(crate) retry_at: Option<Instant>,
    /// What comes at this offset cannot be taken in. It is asked for again once nothing is left before it, and reported
    /// then.
    pub(crate) stuck_at: Option<i64>,
    /// How often in a row its position was outside the log.
    pub(crate) resets: u32,
    /// Why the last question about it, or for its records, has to be put again.
    pub(crate) trouble: Option<Error>,
    pub(crate) leader: Option<(i32, i32)>,
    /// Of the topic it is of; all zeros where unknown.
    pub(crate) topic_id: TopicId,
    /// Another id that metadata name.
    pub(super) unconfirmed: Option<Box<UnconfirmedId>>,
    /// Its leader has served the topic of this id.
    pub(crate) is_served: bool,
    /// It was asked for by that id, and not by the topic's name.
    pub(super) is_served_by_id: bool,
    /// Its leader has refused that id since.
    pub(super) is_refused: bool,
    /// Read from in place of the leader.
    pub(crate) replica: Option<Replica>,
    /// The leader may have another log than what was fetched: it is asked before the partition is fetched on.
    pub(crate) is_unchecked: bool,
    /// The position is outside the log, by the leader's word: nothing is fetched before it is reset. And since when.
    pub(super) outside: Option<Box<(i64, Instant)>>,
    /// How often a newer leader was looked for, because the known one is of an earlier epoch than what was read.
    pub(crate) ahead: u32,
    /// A commit was refused because there is no such partition, and reported: while that is so it is not reported again.
    pub(crate) gone_told: bool,
    /// The end of the log, as it was before a record was looked up by its time, or when the position was found to be
    /// outside.
    pub(crate) end_before: Option<i64>,
    /// The end of what can be read, as of the last fetch: the high watermark, or with read_committed the last stable offset.
    pub(crate) end: Option<i64>,
    /// What was committed before the topic was made again, if that is known.
    pub(super) committed_before: Option<Before>,
    /// It stands in `Partitions::ready`.
    pub(super) is_ready: bool,
    /// It stands in `Partitions::touched`.
    pub(super) is_touched: bool,
}

impl Partition {
    pub(crate) fn life(&self) -> Life {
        self.account.life()
    }

    pub(crate) fn position(&self) -> Option<Position> {
        match self.phase {
            Phase::Fetching(position) => Some(position),
            _ => None,
        }
    }

    pub(crate) fn position_mut(&mut self) -> Option<&mut Position> {
        match &mut self.phase {
            Phase::Fetching(position) => Some(position),
            _ => None,
        }
    }

    /// Drops what is buffered. How many bytes that was.
    pub(super) fn drop_buffer(&mut self) -> usize {
        std::mem::take(&mut self.queue).bytes()
    }

    /// Drops what is buffered, to be fetched again. How many bytes that was; `None` where nothing is fetched of it, or a poll
    /// decodes what there is.
    pub(super) fn drop_fetched(&mut self) -> Option<usize> {
        let Phase::Fetching(position) = &mut self.phase else { return None };
        if self.queue.is_checked_out() {
            return None;
        }
        position.fetch = position.next;
        position.fetch_epoch = position.leader_epoch;
        Some(self.drop_buffer())
    }

    /// Whether nothing was handed out of it, nor committed, since it was assigned or sought.
    pub(crate) fn is_untouched(&self) -> bool {
        let account = &self.account;
        let is_own = account.committed().is_some_and(|committed| committed.is_own);
        let is_where_it_began = self.position().is_none_or(|position| account.begun() == Some(position.next));
        is_where_it_began && !account.is_outstanding() && !is_own
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The bytes of the batch that could not be decoded for this error. `None` if that batch is not at the front.
    ///
    /// # Errors
    /// This one, if nobody can tell where to go on behind it: what its header says of that may be what is damaged.
    pub(crate) fn damaged(&self, error: &Error) -> Result<Option<Bytes>> {
        let (Some(batch), Some(position)) = (self.queue.front_raw(), self.position()) else {
            return Ok(None);
        };
        let behind = batch.behind();
        if (error.offset(), error.last_offset()) != (Some(batch.base_offset), Some(behind.saturating_sub(1)))
        {
            return Ok(None);
        }
        if behind <= position.next || self.end.is_some_and(|end| behind > end) {
            return Err(error.clone().with_hint(format!(
                "the batch says that it ends before offset {behind}, which cannot be: the error policy cannot pass over it; \
                 find the next batch, and seek there"
            )));
        }
        Ok(Some(batch.bytes.clone()))
    }

    /// Whether its position is known to be outside the log.
    pub(crate) fn is_outside(&self) -> bool {
        self.outside.is_some()
    }

    /// Since when.
    pub(crate) fn outside_since(&self) -> Option<Instant> {
        self.outside.as_ref().map(|outside| outside.1)
    }

    /// Whether what is fetched next waits until what is before it has been handed out.
    pub(crate) fn is_stuck(&self) -> bool {
        let fetch = self.position().map(|position| position.fetch);
        self.stuck_at.is_some() && self.stuck_at == fetch && !self.queue.is_empty()
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }
}
