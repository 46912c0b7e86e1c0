//! What is done about a position that is missing or has become useless: nothing was committed, it is outside the log, the
//! log was cut below it, or the topic was made again. Pure.

use std::sync::Arc;

use tracing::{debug, warn};

use super::Lookups;
use crate::{
    config::settings::AutoOffsetReset,
    consumer::{
        fetch::code::OFFSET_OUT_OF_RANGE,
        partitions::{Partition, Partitions, Phase, ResetTo, Truncation},
    },
    error::{self, Error, ErrorKind},
    record::TopicPartition,
    time::Instant,
};

/// How often the pause between resets in a row is doubled.
const MOST_DOUBLED: u32 = 4;

impl Lookups {
    /// The policy for a partition that had a position. With `none` the user decides, also for topics that are read from
    /// their start.
    pub(super) fn policy_of(&self, topic: &Arc<str>) -> AutoOffsetReset {
        match self.policy {
            AutoOffsetReset::None => AutoOffsetReset::None,
            _ if self.is_from_start(topic) => AutoOffsetReset::Earliest,
            policy => policy,
        }
    }

    /// What becomes of a partition that nothing was committed of.
    pub(super) fn first_phase(&self, topic: &Arc<str>) -> Phase {
        if self.is_from_start(topic) { Phase::AwaitingReset(ResetTo::Earliest) } else { self.reset_phase() }
    }

    /// What the reset policy makes of a partition without an offset.
    pub(crate) fn reset_phase(&self) -> Phase {
        reset_or(self.policy, || {
            let text = "there is no committed offset to start from, and auto.offset.reset is none";
            Error::new(ErrorKind::InvalidArgument, text)
        })
    }

    /// The reset policy decides where a partition goes on whose position is outside the log. True if it fails there.
    pub(crate) fn handle_out_of_range(
        &self,
        now: Instant,
        key: &TopicPartition,
        offset: i64,
        partitions: &mut Partitions,
    ) -> bool {
        let asks = partitions.get(key).is_some_and(|partition| partition.is_outside() && partition.asked);
        if asks || has_undone(key, partitions) {
            // Nothing is fetched meanwhile: should the log grow up to the position, the records before it would be passed
            // over.
            let is_news = partitions.get(key).is_some_and(|partition| !partition.is_outside());
            partitions.set_outside(now, key, offset, if is_news { now } else { now + self.pause });
            return false;
        }
        let since = partitions.get(key).and_then(Partition::outside_since).unwrap_or(now);
        let policy = match self.policy_of(&key.topic) {
            // Counted from when the position was found to be outside: what was written since then must not be passed
            // over.
            AutoOffsetReset::ByDuration(age) => {
                AutoOffsetReset::ByDuration(age.saturating_add(now.saturating_duration_since(since)))
            }
            policy => policy,
        };
        warn!(partition = %key, offset, %policy, "the position is outside the log: auto.offset.reset decides where reading goes on");
        let phase = reset_or(policy, || Error::from_code("Fetch", OFFSET_OUT_OF_RANGE).with_offset(offset));
        let end =
            partitions.get(key).and_then(|partition| partition.end_before).filter(|_| is_latest(policy));
        let failed = restart(key, phase, partitions);
        if let Some(end) = end {
            partitions.set_decided(key, end);
        }
        if let Some(partition) = partitions.get_mut(key) {
            // A leader may refuse the very offset that it has named. Growing pauses keep that from becoming a busy loop.
            let again = partition.resets.min(MOST_DOUBLED);
            partition.resets += 1;
            if again > 0 && !failed {
                partition.retry_at = Some(now + self.pause * (1 << again));
            }
        }
        failed
    }

    /// A log was cut before the position. With a reset policy reading goes on where it was cut, as in Java; without one the
    /// user decides. True if it fails there.
    pub(crate) fn handle_truncated(
        &self,
        now: Instant,
        key: &TopicPartition,
        truncation: &Truncation,
        partitions: &mut Partitions,
    ) -> bool {
        let is_policy_none = matches!(self.policy, AutoOffsetReset::None);
        let is_cut = truncation.divergent.is_some() && !is_policy_none;
        if !is_cut && has_undone(key, partitions) {
            // What is buffered is in no log any more.
            let is_dropped = partitions.drop_buffered(key);
            if is_dropped && !is_policy_none {
                // As for a position outside the log: the new place is looked up now and taken when the rest is done.
                partitions.set_checked(key);
                return self.handle_out_of_range(now, key, truncation.position, partitions);
            }
            // The leader is asked again until the user has done the rest.
            if let Some(partition) = partitions.get_mut(key) {
                partition.retry_at = Some(now + self.pause);
            }
            return false;
        }
        let error = truncation.error().with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
        match (self.policy, truncation.divergent) {
            (AutoOffsetReset::None, _) => {
                let hint = "undo what was made of the records behind, and seek; or set auto.offset.reset, to go on there";
                restart(key, Phase::Failed(error.with_hint(hint)), partitions)
            }
            (_, Some((offset, epoch))) => {
                warn!(%error, "records that were read are gone; reading goes on where the log was truncated");
                partitions.cut(key, offset, epoch);
                false
            }
            (_, None) => {
                warn!(%error, "records that were read are gone; auto.offset.reset decides where reading goes on");
                restart(key, self.first_phase(&key.topic), partitions)
            }
        }
    }

    /// A topic was deleted and made again, and positions in the old one mean nothing in the new. True if a partition
    /// fails. A member of a group that has handed out nothing of the old topic asks the group first, which may have a
    /// committed offset of the new one.
    pub(crate) fn handle_made_again(
        &self,
        keys: &[TopicPartition],
        in_group: bool,
        partitions: &mut Partitions,
    ) -> bool {
        let mut failed = false;
        for key in keys {
            if in_group && partitions.get(key).is_some_and(Partition::is_untouched) {
                partitions.begin_again(key, Phase::AwaitingCommitted);
                continue;
            }
            if partitions
                .get(key)
                .is_some_and(|partition| !partition.is_served && partition.position().is_some())
            {
                // Nothing was read under the earlier id, so that whoever has set the position meant the topic that is
                // there.
                debug!(partition = %key, "the topic has another id than metadata said at first");
                continue;
            }
            let text = "the topic was deleted and made again: the position is of the old one";
            let position = partitions.get(key).and_then(Partition::position).map(|position| position.next);
            let policy = self.policy_of(&key.topic);
            let phase = reset_or(policy, || {
                // The code is a passing one; this is over only when the user seeks.
                let error = Error::from_code("Metadata", error::code::INCONSISTENT_TOPIC_ID)
                    .with_message(text)
                    .with_permanent();
                match position {
                    Some(position) => error.with_offset(position),
                    None => error,
                }
            });
            warn!(partition = %key, position, %policy, "{text}; auto.offset.reset decides where reading begins");
            failed |= matches!(phase, Phase::Failed(_));
            partitions.begin_again(key, phase);
        }
        failed
    }

    /// As [`Self::handle_made_again`], where the coordinator assigns by id: the partitions of the new topic are other
    /// ones, which it may give to another member.
    pub(crate) fn handle_replaced(&self, keys: &[TopicPartition], partitions: &mut Partitions) {
        for key in keys {
            warn!(partition = %key, "the topic was deleted and made again: it waits to be assigned anew");
            let text = "the topic was deleted and made again, and the group's coordinator has not assigned the new one yet";
            let error = Error::from_code("ConsumerGroupHeartbeat", error::code::INCONSISTENT_TOPIC_ID);
            // The partition comes back when metadata name the topic that the coordinator has assigned; what was committed
            // is of that one.
            partitions.forget(key, Phase::Replaced(error.with_message(text)));
        }
    }
}

pub(super) fn is_latest(policy: AutoOffsetReset) -> bool {
    matches!(policy, AutoOffsetReset::Latest)
}

fn reset_or(policy: AutoOffsetReset, failure: impl FnOnce() -> Error) -> Phase {
    match policy {
        AutoOffsetReset::Earliest => Phase::AwaitingReset(ResetTo::Earliest),
        AutoOffsetReset::Latest => Phase::AwaitingReset(ResetTo::Latest),
        AutoOffsetReset::ByDuration(age) => Phase::AwaitingReset(ResetTo::Ago(age)),
        AutoOffsetReset::None => {
            Phase::Failed(failure().with_hint("seek, or set auto.offset.reset to earliest or latest"))
        }
    }
}

/// Whether something that was handed out of it is not done. Then a reset waits. Its place would be committed, past what
/// is not done, and records that wait in lanes would be dropped as those of an earlier life.
fn has_undone(key: &TopicPartition, partitions: &Partitions) -> bool {
    partitions.get(key).is_some_and(|partition| partition.account.has_undone())
}

/// Starts a partition again in this phase. True if that is a failure.
pub(super) fn restart(key: &TopicPartition, phase: Phase, partitions: &mut Partitions) -> bool {
    let failed = matches!(phase, Phase::Failed(_));
    partitions.restart(key, phase);
    failed
}
