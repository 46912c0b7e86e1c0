//! What is committed, in whose name, and who waits for it. Pure.
//!
//! The ledger says what may be committed and `offsets.rs` in which order it goes out; here the two meet the membership. It
//! must never commit what belongs to an earlier assignment.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::warn;

use super::{Action, Core, Mode};
use crate::{
    cluster::{TopicId, UNKNOWN_TOPIC_OR_PARTITION, are_two_lives},
    config::settings::GroupProtocol,
    consumer::{
        ledger::Committed,
        offsets::{self, CommitAction, CommitOutcome, Offset, Offsets, Since, over},
    },
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{self, Identity},
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

impl Core {
    /// Commits these offsets, or all positions. `None` if there is nothing to commit. What becomes of it is told by the deadline
    /// at the latest.
    pub(crate) fn commit(
        &mut self,
        offsets: Option<Offsets>,
        deadline: Instant,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        self.check_open()?;
        let identity = self.identity()?;
        let offsets = match offsets {
            // Offsets that are named are judged by themselves. The next commit of everything reports that other
            // partitions were lost.
            Some(mut offsets) => {
                self.check_tenure(&mut offsets)?;
                offsets
            }
            None if self.has_loss_to_tell(identity.is_some()) => return Err(over()),
            None => self.without_gone(self.partitions.positions(|key| self.commits.planned(key))),
        };
        if offsets.is_empty() {
            // Nothing to commit is a success in every state of the group: what was lost uncommitted was reported above.
            return Ok(None);
        }
        if identity.is_none() {
            return Err(Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS).with_hint(
                "the consumer is not part of the group at the moment: keep polling; what was not committed is handed out again",
            ));
        }
        let waiters = &mut self.waiters;
        let has_room = self.commits.has_room(|ticket| {
            let is_forgotten = waiters.get(&ticket).is_none_or(oneshot::Sender::is_closed);
            if is_forgotten {
                waiters.remove(&ticket);
            }
            is_forgotten
        });
        if !has_room {
            return Err(too_many());
        }
        self.partitions.cover_explicit(&offsets);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(ticket, sender);
        self.commits.handle_commit(Some(ticket), offsets, deadline);
        Ok(Some(receiver))
    }

    /// Whether a commit of everything fails for what was lost: one does, and every one before the member is back in its
    /// group. What such a member commits then is its own, and comes again to nobody.
    fn has_loss_to_tell(&mut self, is_member: bool) -> bool {
        let Some(is_told) = self.lost else { return false };
        self.lost = (!is_member).then_some(true);
        !(is_member && is_told)
    }

    /// Binds offsets that the user names to the assignment. A member commits what is its own, and nothing from before its
    /// assignment began: another member may have committed beyond that.
    fn check_tenure(&self, offsets: &mut Offsets) -> Result<()> {
        offsets.iter().try_for_each(|(key, offset)| self.check_log(key, offset.since))?;
        if !matches!(self.mode, Mode::Topics) {
            // Offsets from the time of a membership that is over are not committed without one: other members may have
            // gone on since.
            if self.was_member
                && let Some(key) = offsets.keys().next()
            {
                return Err(over().with_topic(Arc::clone(&key.topic)).with_partition(key.partition));
            }
            for (key, offset) in offsets {
                offset.topic_id = self.topic_id(key);
            }
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
            offset.topic_id = partition.topic_id;
        }
        Ok(())
    }

    /// Refuses an offset that the user has from before the topic was made again: in the present log it means another
    /// record.
    fn check_log(&self, key: &TopicPartition, since: Since) -> Result<()> {
        let begun = match since {
            Since::Now => return Ok(()),
            Since::Records(_) => self.partitions.get(key).map(|partition| partition.account.tenure()),
            Since::Handle(_) => self.partitions.made_again(&key.topic),
        };
        let error = match (since, begun) {
            (Since::Records(life), Some(begun)) if life < begun => over(),
            (Since::Handle(life), Some(begun)) if life < begun => {
                Error::from_code("OffsetCommit", UNKNOWN_TOPIC_OR_PARTITION).with_hint(
                    "the topic was made again since the committer was: take another one, or commit what the records say \
                     (PartitionRecords::offset_after)",
                )
            }
            _ => return Ok(()),
        };
        Err(error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition))
    }

    /// The id of a partition's topic: of the one that its position is of, where it is assigned.
    pub(crate) fn topic_id(&self, key: &TopicPartition) -> TopicId {
        let assigned = self.partitions.get(key).map(|partition| partition.topic_id);
        assigned.unwrap_or_else(|| self.metadata.topic_id(&key.topic))
    }

    /// Leaves out partitions that the coordinator has refused as unknown and that metadata call gone too. The refused
    /// commit has reported that, and the next ones need not. Metadata alone may be wrong, if the broker that gave them
    /// has just started.
    fn without_gone(&self, mut offsets: Offsets) -> Offsets {
        offsets.retain(|key, _| !self.is_known_to_be_gone(key));
        if !matches!(self.mode, Mode::Topics) {
            // A partition that is assigned by hand goes to no other member, so that its commit is not bound to an
            // assignment.
            offsets.values_mut().for_each(|offset| offset.tenure = None);
        }
        offsets
    }

    pub(super) fn is_known_to_be_gone(&self, key: &TopicPartition) -> bool {
        self.partitions.get(key).is_some_and(|partition| partition.gone_told)
            && self.metadata.is_gone(&key.topic, key.partition)
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

    /// The identity under which committed offsets are asked for, in the consumer protocol, where the coordinator checks
    /// it.
    pub(crate) fn reader(&self) -> Option<Identity> {
        let is_consumer = self.group_protocol() == Some(GroupProtocol::Consumer);
        self.identity().ok().flatten().filter(|identity| is_consumer && identity.generation > 0)
    }

    pub(crate) fn handle_commit(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<Map<TopicPartition, i16>>,
    ) {
        if answer.as_ref().is_ok_and(|codes| codes.values().any(|code| *code == UNKNOWN_TOPIC_OR_PARTITION)) {
            self.actions.push_back(Action::RefreshMetadata);
        }
        let is_gone = |key: &TopicPartition, id: TopicId| {
            are_two_lives(id, self.metadata.topic_id(&key.topic))
                || self.metadata.is_gone(&key.topic, key.partition)
        };
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
            let is_ours = |key: &TopicPartition, tenure| partitions.is_of(key, tenure);
            match self.commits.poll_action(now, identity.as_ref(), is_ours)? {
                offsets::NextCommit::Send(commit) => return Some(commit),
                offsets::NextCommit::Dropped(outcome) => self.on_commit(now, outcome),
            }
        }
    }

    pub(super) fn commit_covered(&mut self, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let offsets = self.without_gone(self.partitions.covered(|key| self.commits.planned(key), |_| false));
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    /// As [`Self::commit_covered`], and also what has not changed for long, because committed offsets expire
    /// (`offsets.retention.minutes`); those of partitions assigned by hand do so even while they are read. Of these only
    /// what this consumer has committed itself is committed again.
    pub(super) fn commit_by_interval(&mut self, now: Instant, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let is_manual = matches!(self.mode, Mode::Manual);
        // Several consumers may have the same partition by hand, some of them only to look. Each keeps alive what it has
        // committed itself.
        let idle = |committed: &Committed| (committed.is_own || !is_manual) && committed.since + IDLE <= now;
        let offsets = self.without_gone(self.partitions.covered(|key| self.commits.planned(key), idle));
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    /// Whether what became of this commit says something of the partition that is assigned now: it is of the same assignment, and
    /// of the same topic.
    fn is_still_of(&self, key: &TopicPartition, offset: &Offset) -> bool {
        offset.tenure.is_none_or(|tenure| self.partitions.is_of(key, tenure))
            && !are_two_lives(offset.topic_id, self.topic_id(key))
    }

    pub(super) fn on_commit(&mut self, now: Instant, outcome: CommitOutcome) {
        for (key, committed) in outcome.committed {
            if self.is_still_of(&key, &committed) {
                let Offset { offset, metadata, .. } = committed;
                self.partitions.set_committed(&key, Committed { offset, metadata, since: now, is_own: true });
            }
        }
        for (key, refused) in outcome.gone {
            if self.is_still_of(&key, &refused)
                && let Some(partition) = self.partitions.get_mut(&key)
            {
                partition.gone_told = true;
            }
        }
        if outcome.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        for (ticket, result) in outcome.settled {
            match (ticket, result) {
                (Some(ticket), result) => {
                    // It fails if nobody waits any more, which is fine.
                    let _ = self.waiters.remove(&ticket).map(|waiter| waiter.send(result));
                }
                (None, Err(error)) => warn!(%error, "an automatic commit failed"),
                (None, Ok(())) => {}
            }
        }
        if let (Some((generation, code)), Some(member)) = (outcome.fenced, &mut self.member) {
            member.handle_fenced_commit(now, generation, code);
            self.run_member(now);
        }
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::Timeout, "too many commits wait for the coordinator")
        .with_api("OffsetCommit")
        .with_hint(
            "await what commit_async gives back before more is committed, or drop it if it does not matter",
        )
}

/// What is committed and does not change is committed again after so long. Brokers keep offsets for a week unless told otherwise,
/// and hardly anybody tells them less than hours.
const IDLE: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests;
