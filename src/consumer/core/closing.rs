//! The consumer's end: closed by its user, dropped, or with its driver. Pure.
//!
//! Commits end before the group is left, and every waiter is told of the end.

use std::time::Duration;

use super::Core;
use crate::{
    consumer::offsets::commit_timeout,
    error::{Error, Result},
    group::{GroupMembershipOperation, Membership},
    time::Instant,
};

#[derive(Debug)]
pub(super) enum Closing {
    Committing { deadline: Instant },
    Leaving { deadline: Instant },
    Closed,
}

impl Closing {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match *self {
            Self::Committing { deadline } | Self::Leaving { deadline } => Some(deadline),
            Self::Closed => None,
        }
    }
}

impl Core {
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.closing, Some(Closing::Closed))
    }

    /// Why the driver ended before its time.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.ended.clone()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        match (&self.ended, &self.closing) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(_)) => Err(Error::closed("consumer")),
            (None, None) => Ok(()),
        }
    }

    /// Before the listener is told of a close, which may take all the time that there is: what is done is committed.
    pub(crate) fn prepare_close(&mut self, deadline: Instant) {
        if self.closing.is_none() && self.settings.enable_auto_commit {
            self.commit_covered(deadline);
        }
    }

    /// Commits what is done, leaves the group, and is closed by the deadline at the latest.
    pub(crate) fn begin_close(&mut self, now: Instant, deadline: Instant) {
        if self.closing.is_some() {
            return;
        }
        self.prepare_close(deadline);
        self.closing = Some(Closing::Committing { deadline });
        self.news = true;
        self.advance_close(now);
    }

    /// As [`Self::begin_close`], and the member leaves its group or stays in it.
    pub(crate) fn begin_close_as(
        &mut self,
        membership: GroupMembershipOperation,
        now: Instant,
        deadline: Instant,
    ) {
        if let (None, Some(member)) = (&self.closing, &mut self.member) {
            member.set_departure(membership);
        }
        self.begin_close(now, deadline);
    }

    /// The handle was dropped: leave the group without a commit.
    pub(crate) fn abandon(&mut self, now: Instant, deadline: Instant) {
        if self.closing.is_none() {
            self.closing = Some(Closing::Committing { deadline });
            self.advance_close(now);
        }
    }

    /// The driver ended before its time: nothing more will happen.
    pub(crate) fn handle_end(&mut self, error: Error) {
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            let _ = waiter.send(Err(error.clone()));
        }
        self.closing = Some(Closing::Closed);
        self.ended = Some(error);
        self.news = true;
    }

    /// Goes on with the close, as far as it can.
    pub(crate) fn advance_close(&mut self, now: Instant) {
        if let Some(Closing::Committing { deadline }) = self.closing
            && (self.commits.is_idle() || deadline <= now)
        {
            // Past its deadline too a member that is gone should say so: the group would miss it for the session time-out.
            self.closing = Some(Closing::Leaving { deadline: deadline.max(now + LEAVE_PATIENCE) });
            self.revoking = None;
            self.partitions.clear();
            if let Some(member) = &mut self.member {
                member.handle_close(now);
            }
            self.run_member(now);
        }
        if let Some(Closing::Leaving { deadline }) = self.closing
            && (deadline <= now || self.member.as_ref().is_none_or(Membership::is_idle))
        {
            self.closing = Some(Closing::Closed);
            for (_, waiter) in std::mem::take(&mut self.waiters) {
                let _ = waiter.send(Err(commit_timeout()));
            }
            self.news = true;
        }
    }
}

/// How long a consumer that has closed too late goes on leaving its group, in the background.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
