//! What is committed, in whose name, and who waits for it. Pure.
//!
//! The ledger says what may be committed and `offsets.rs` in which order it goes out; here the two meet the membership. It
//! must never commit what belongs to an earlier assignment.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;
use tracing::warn;

use super::{Action, Core, Mode};
use crate::{
    cluster::UNKNOWN_TOPIC_OR_PARTITION,
    config::settings::GroupProtocol,
    consumer::{
        ledger::Life,
        offsets::{self, CommitAction, Offsets, Outcome, over},
    },
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{self, Identity},
    record::TopicPartition,
    time::Instant,
};

impl Core {
    /// Commits these offsets, or all positions. `None` if there is nothing to commit.
    pub(crate) fn commit(
        &mut self,
        offsets: Option<Offsets>,
        deadline: Instant,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        self.check_open()?;
        let identity = self.identity()?;
        if self.lost {
            // Told of once by a member that is back, and for as long as it is not.
            self.lost = identity.is_none();
            return Err(over());
        }
        let offsets = match offsets {
            Some(mut offsets) => {
                self.check_tenure(&mut offsets)?;
                offsets
            }
            None if self.partitions.is_by_each() => {
                self.there(self.partitions.frontiers(|key| self.commits.planned(key)))
            }
            None => self.there(self.partitions.positions(|key| self.commits.planned(key))),
        };
        if offsets.is_empty() {
            // In whatever state of the group: what is gone uncommitted was told of above.
            return Ok(None);
        }
        if identity.is_none() {
            return Err(Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS).with_hint(
                "the consumer is not part of the group at the moment: keep polling; what was not committed is handed out again",
            ));
        }
        self.partitions.cover_explicit(&offsets);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(ticket, sender);
        self.commits.handle_commit(Some(ticket), offsets, deadline);
        Ok(Some(receiver))
    }

    /// Binds offsets that the user names to the assignment. A member commits what is its own, and nothing from before its
    /// assignment began: another member may have committed beyond that.
    fn check_tenure(&self, offsets: &mut Offsets) -> Result<()> {
        if !matches!(self.mode, Mode::Topics) {
            return Ok(());
        }
        for (key, offset) in offsets {
            let place = |error: Error| {
                error
                    .with_topic(Arc::clone(&key.topic))
                    .with_partition(key.partition)
                    .with_offset(offset.offset)
            };
            let Some(partition) = self.partitions.get(key) else { return Err(place(over())) };
            match partition.account.begun() {
                Some(begun) if begun <= offset.offset => {}
                Some(begun) => {
                    let hint = format!(
                        "this assignment of the partition began at offset {begun}: what was read before belongs to an \
                         earlier one, and another member may have gone on from there; to go back on purpose, seek first"
                    );
                    return Err(place(
                        Error::from_code("OffsetCommit", group::code::ILLEGAL_GENERATION).with_hint(hint),
                    ));
                }
                None => {
                    let early = Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS);
                    return Err(place(early.with_hint(
                        "the partition has just been assigned and has no position yet: keep polling",
                    )));
                }
            }
            offset.tenure = Some(partition.account.tenure());
        }
        Ok(())
    }

    /// Those of partitions that are there. That of a deleted topic was told of by the commit that met it: nobody needs to be
    /// told again with every one after it.
    fn there(&self, mut offsets: Offsets) -> Offsets {
        offsets.retain(|key, _| !self.metadata.is_gone(&key.topic, key.partition));
        offsets
    }

    /// Who commits; `None` between generations.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        let Some(member) = &self.member else {
            return Err(Error::new(ErrorKind::Config, "committing needs a consumer group")
                .with_hint("set group.id; without a group positions live in the program alone"));
        };
        Ok(match self.mode {
            Mode::Topics => member.identity(),
            Mode::Manual | Mode::None => Some(Identity::standalone()),
        })
    }

    /// Who asks for committed offsets, where the coordinator looks at that: as a member of the consumer protocol.
    pub(crate) fn reader(&self) -> Option<Identity> {
        let is_consumer = self.group_protocol() == Some(GroupProtocol::Consumer);
        self.identity().ok().flatten().filter(|identity| is_consumer && identity.generation > 0)
    }

    pub(crate) fn handle_commit(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<BTreeMap<TopicPartition, i16>>,
    ) {
        if answer.as_ref().is_ok_and(|codes| codes.values().any(|code| *code == UNKNOWN_TOPIC_OR_PARTITION)) {
            self.actions.push_back(Action::RefreshMetadata);
        }
        let is_gone = |key: &TopicPartition| self.metadata.is_gone(&key.topic, key.partition);
        if let Some(outcome) = self.commits.handle_answer(now, token, answer, is_gone) {
            self.on_commit(now, outcome);
        }
        self.advance_revocation(now);
        self.advance_close(now);
    }

    pub(super) fn poll_commit(&mut self, now: Instant) -> Option<CommitAction> {
        loop {
            let identity = self.identity().ok().flatten();
            let partitions = &self.partitions;
            let is_ours = |key: &TopicPartition, tenure: Life| {
                partitions.get(key).is_some_and(|partition| partition.account.tenure() == tenure)
            };
            match self.commits.poll_action(now, identity.as_ref(), is_ours)? {
                offsets::Next::Send(commit) => return Some(commit),
                offsets::Next::Dropped(outcome) => self.on_commit(now, outcome),
            }
        }
    }

    pub(super) fn commit_covered(&mut self, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let offsets = self.there(self.partitions.covered(|key| self.commits.planned(key)));
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    pub(super) fn on_commit(&mut self, now: Instant, outcome: Outcome) {
        for (key, offset) in &outcome.committed {
            self.partitions.set_committed(key, offset.offset);
        }
        if outcome.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        match outcome.ticket.and_then(|ticket| self.waiters.remove(&ticket)) {
            // Whoever does not wait any more does not care.
            Some(waiter) => drop(waiter.send(outcome.result)),
            None => {
                if let Err(error) = outcome.result {
                    warn!(%error, "an automatic commit failed");
                }
            }
        }
        if let (Some((generation, code)), Some(member)) = (outcome.fenced, &mut self.member) {
            member.handle_fenced_commit(now, generation, code);
            self.run_member(now);
        }
    }
}
