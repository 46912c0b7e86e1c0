//! Where a partition without a position begins: at the group's committed offset, or where the reset policy says; and whether
//! a position is in the log of a new leader (KIP-320). Pure.
//!
//! It says what to ask and understands the answers. A partition is asked about once at a time, and again after a pause if
//! that failed; what must happen beyond the partitions is for the core to do.

use std::{sync::Arc, time::Duration};

use tracing::{debug, info, warn};

use super::{
    fetch::{
        code::{OFFSET_OUT_OF_RANGE, UNKNOWN_TOPIC_ID},
        is_passing,
    },
    ledger::{Committed, Life},
    partitions::{Check, Checked, EpochEnds, Partition, Partitions, Phase, ResetTo, Standing, Truncation},
};
use crate::{
    config::settings::AutoOffsetReset,
    error::{Error, ErrorKind, Result},
    group::code::{STALE_MEMBER_EPOCH, UNKNOWN_MEMBER_ID, is_moved},
    record::TopicPartition,
    sorted::Map,
    time::{Backoff, Instant, Rng},
};

/// How often the pause between resets in a row is doubled.
const MOST_DOUBLED: u32 = 4;

/// One partition whose first or last offset is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) partition: TopicPartition,
    pub(crate) life: Life,
    pub(crate) leader_epoch: i32,
    pub(crate) to: ResetTo,
}

/// A place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundOffset {
    /// Below 0: there is none.
    pub(crate) offset: i64,
    /// Committed: of the record before it; looked up by time: of the record there. -1 where unknown.
    pub(crate) leader_epoch: i32,
    /// Of the record there, where it was looked up by time.
    pub(crate) timestamp: i64,
    /// Committed along; else empty.
    pub(crate) metadata: String,
    /// Committed for the topic of this id; what is known by name alone may be of an earlier one.
    pub(crate) by_id: bool,
}

/// The answer for each partition, or the broker's code.
pub(crate) type Found = Map<TopicPartition, Result<FoundOffset, i16>>;

/// What to ask now.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// Of the coordinator, with the life of each partition.
    pub(crate) committed: Vec<(TopicPartition, Life)>,
    /// Of one leader.
    pub(crate) offsets: Option<(i32, Vec<Lookup>)>,
    /// Of one leader: whether it has what was fetched.
    pub(crate) checks: Option<(i32, Vec<Check>)>,
    /// A partition has no leader that could be asked, or only an earlier one.
    pub(crate) leaderless: bool,
    /// A partition has failed: its position is outside the log.
    pub(crate) failed: bool,
}

/// What the core must do after an answer.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// A partition has a position now, or has failed.
    pub(crate) settled: bool,
    pub(crate) refresh_metadata: bool,
    pub(crate) forget_coordinator: bool,
    /// For the user.
    pub(crate) errors: Vec<Error>,
    /// When to ask again about those of this answer that failed.
    retry_at: Option<Instant>,
}

/// How often a leader is looked for that is not earlier than what was read, with ever longer pauses: for some twenty seconds,
/// longer than a leader lives that is cut off. After that the epochs are taken to be of another log: of a topic that was made
/// again, where brokers give no ids.
const LOOKED_FOR: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Until a committed offset is looked at again that may be of the topic before.
const FIND_AGAIN: Duration = Duration::from_secs(1);

/// How often the metadata are asked for a topic that is not the one that was assigned.
const REPLACED: Duration = Duration::from_secs(1);

/// Says of a topic whether it is read from its start where nothing else is known, whatever the reset policy says.
pub(crate) type FromStart = Arc<dyn Fn(&Arc<str>) -> bool + Send + Sync>;

pub(crate) struct Lookups {
    policy: AutoOffsetReset,
    from_start: Option<FromStart>,
    /// Between two looks at a partition without a leader.
    pause: Duration,
    backoff: Backoff,
    rng: Rng,
}

impl Lookups {
    pub(crate) fn new(policy: AutoOffsetReset, pause: Duration, backoff: Backoff, rng: Rng) -> Self {
        Self { policy, from_start: None, pause, backoff, rng }
    }

    /// These topics are read from their start where they have no position, and where theirs is outside the log.
    pub(crate) fn set_from_start(&mut self, topics: FromStart) {
        self.from_start = Some(topics);
    }

    pub(super) fn is_from_start(&self, topic: &Arc<str>) -> bool {
        self.from_start.as_ref().is_some_and(|is_one| is_one(topic))
    }

    /// The policy once there was a position: that it means nothing any more is for the user, where the policy says so.
    fn policy_of(&self, topic: &Arc<str>) -> AutoOffsetReset {
        match self.policy {
            AutoOffsetReset::None => AutoOffsetReset::None,
            _ if self.is_from_start(topic) => AutoOffsetReset::Earliest,
            policy => policy,
        }
    }

    /// What becomes of a partition that nothing was committed of.
    fn first_phase(&self, topic: &Arc<str>) -> Phase {
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
            // To fetch meanwhile would pass over what is written there, should the log grow to the position.
            let is_news = partitions.get(key).is_some_and(|partition| !partition.is_outside());
            partitions.set_outside(now, key, offset, if is_news { now } else { now + self.pause });
            return false;
        }
        let since = partitions.get(key).and_then(Partition::outside_since).unwrap_or(now);
        let policy = match self.policy_of(&key.topic) {
            // Of when it was found to be outside: what has come since is not to be passed.
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
            // A leader that refuses what it has named itself is not asked in a circle.
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
                // By the same rules as a position that is outside the log: the place is that of now, and taken when the rest is done.
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

    /// A topic was deleted and made again: the positions of the old one mean nothing in the new. True if one fails. Of who is
    /// `in_group` and has handed out nothing of the old one, the group may know where it is in the new.
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
                // Nothing was read by the id before: whoever has named the position had no other topic in mind.
                debug!(partition = %key, "the topic has another id than metadata said at first");
                continue;
            }
            let text = "the topic was deleted and made again: the position is of the old one";
            let position = partitions.get(key).and_then(Partition::position).map(|position| position.next);
            let policy = self.policy_of(&key.topic);
            let phase = reset_or(policy, || {
                // The code is a passing one; this is over only when the user seeks.
                let error = Error::from_code("Metadata", crate::error::code::INCONSISTENT_TOPIC_ID)
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

    /// The same where the coordinator assigns by id: the new topic is another partition, which it may give to another member.
    pub(crate) fn handle_replaced(&self, keys: &[TopicPartition], partitions: &mut Partitions) {
        for key in keys {
            warn!(partition = %key, "the topic was deleted and made again: it waits to be assigned anew");
            let text = "the topic was deleted and made again, and the group's coordinator has not assigned the new one yet";
            let error = Error::from_code("ConsumerGroupHeartbeat", crate::error::code::INCONSISTENT_TOPIC_ID);
            // It comes back when metadata name again what the coordinator has assigned: what was committed is of that.
            partitions.forget(key, Phase::Replaced(error.with_message(text)));
        }
    }

    /// What to ask of whom. Partitions of other leaders than the first's are for the next call.
    pub(crate) fn poll_questions(&self, now: Instant, partitions: &mut Partitions) -> Questions {
        let mut questions = Questions::default();
        let outside = partitions.outside().filter(|(_, _, partition)| partition.is_due(now));
        for (key, offset) in outside.map(|(key, offset, _)| (key.clone(), offset)).collect::<Vec<_>>() {
            if is_latest(self.policy_of(&key.topic)) {
                ask_for_end(&key, partitions, &mut questions);
            }
            questions.failed |= self.handle_out_of_range(now, &key, offset, partitions);
        }
        partitions.each_unsettled(|key, partition| {
            if partition.asked || !partition.is_due(now) {
                return;
            }
            match (partition.phase(), partition.leader) {
                (Phase::AwaitingCommitted, _) => {
                    partition.asked = true;
                    questions.committed.push((key.clone(), partition.life()));
                }
                (Phase::Replaced(_), _) => {
                    // What one broker has said may be behind what the coordinator knows.
                    questions.leaderless = true;
                    partition.retry_at = Some(now + REPLACED);
                }
                (Phase::AwaitingReset(_), None) => {
                    questions.leaderless = true;
                    partition.retry_at = Some(now + self.pause);
                }
                (&Phase::AwaitingReset(to), Some((leader, leader_epoch))) => {
                    let (broker, lookups) = questions.offsets.get_or_insert_with(|| (leader, Vec::new()));
                    if *broker == leader {
                        partition.asked = true;
                        // By time there may be nothing. The end must be known from before that: what is written meanwhile
                        // is not to be passed.
                        let is_end_wanted = to.is_time() && partition.end_before.is_none();
                        let to = if is_end_wanted { ResetTo::Latest } else { to };
                        let (life, partition) = (partition.life(), key.clone());
                        lookups.push(Lookup { partition, life, leader_epoch, to });
                    }
                }
                _ => {}
            }
        });
        let (mut without_epoch, mut given_up) = (Vec::new(), Vec::new());
        partitions.each_unchecked(|key, partition| {
            if partition.asked || !partition.is_due(now) {
                return;
            }
            let Some((leader, check)) = partition.check(key) else { return };
            if check.epoch < 0 {
                return without_epoch.push(key.clone());
            }
            if partition.is_ahead() {
                if partition.ahead == LOOKED_FOR {
                    return given_up.push(key.clone());
                }
                partition.ahead += 1;
                partition.retry_at = Some(now + LOOK_AGAIN * partition.ahead);
                questions.leaderless = true;
                return;
            }
            let (broker, checks) = questions.checks.get_or_insert_with(|| (leader, Vec::new()));
            if *broker == leader {
                partition.asked = true;
                checks.push(check);
            }
        });
        for key in without_epoch {
            partitions.set_checked(&key);
        }
        for key in given_up {
            warn!(partition = %key, "its leader is of an earlier epoch than what was read, for long: epochs are not compared");
            partitions.forget_epochs(&key);
        }
        questions
    }

    /// What a leader says of where epochs end; `None`: it cannot tell, and reading goes on as with brokers before KIP-320.
    pub(crate) fn handle_epoch_ends(
        &mut self,
        now: Instant,
        asked: &[Check],
        answer: Result<Option<EpochEnds>>,
        partitions: &mut Partitions,
    ) -> Effects {
        let mut effects = Effects::default();
        let missing = Error::protocol("the answer left out a partition");
        let (ends, missing) = match answer {
            Ok(Some(ends)) => (ends, missing),
            Ok(None) => {
                for check in asked.iter().filter(|check| partitions.awaits(check)).collect::<Vec<_>>() {
                    partitions.set_checked(&check.partition);
                }
                return effects;
            }
            Err(error) => (EpochEnds::new(), error),
        };
        for check in asked {
            if !partitions.awaits(check) {
                continue;
            }
            let key = &check.partition;
            match ends.get(key).cloned() {
                Some(Ok(end)) => match partitions.handle_epoch_end(key, end) {
                    Checked::Same => self.backoff.reset(),
                    Checked::Refetched => {
                        debug!(partition = %key, ?end, "what was buffered is not in the log any more")
                    }
                    Checked::Truncated(truncation) => {
                        effects.settled |= self.handle_truncated(now, key, &truncation, partitions);
                    }
                },
                Some(Err(code)) => {
                    effects.refresh_metadata = true;
                    let error = Error::from_code("OffsetForLeaderEpoch", code);
                    self.retry(now, key, &error, partitions, &mut effects);
                }
                None => {
                    effects.refresh_metadata = true;
                    self.retry(now, key, &missing, partitions, &mut effects);
                }
            }
        }
        effects
    }

    pub(crate) fn poll_timeout(now: Instant, partitions: &Partitions) -> Option<Instant> {
        let waiting = partitions.unsettled().chain(partitions.unchecked());
        let outside = partitions.outside().map(|(_, _, partition)| partition);
        let waiting = waiting.map(|(_, partition)| partition).chain(outside);
        waiting.filter_map(|partition| partition.retry_at).filter(|at| *at > now).min()
    }

    /// The committed offsets of the partitions asked about.
    pub(crate) fn handle_committed(
        &mut self,
        now: Instant,
        asked: &[(TopicPartition, Life)],
        answer: Result<Found>,
        partitions: &mut Partitions,
    ) -> Effects {
        let mut effects = Effects::default();
        let mut new = Vec::new();
        let (found, missing) = split(answer);
        for (key, life) in asked {
            let Some(partition) = awaiting(key, *life, partitions) else { continue };
            partition.asked = false;
            match found.get(key).cloned() {
                Some(Ok(FoundOffset { offset, leader_epoch, metadata, by_id, .. })) if offset >= 0 => {
                    // Before 0 nothing can be missed.
                    match if by_id || offset == 0 { Standing::OfThis } else { partition.standing(offset) } {
                        Standing::OfThis => {}
                        Standing::Unclear => {
                            // The coordinator may not know yet that the topic was made again.
                            partition.retry_at = Some(now + FIND_AGAIN);
                            continue;
                        }
                        Standing::OfTheOneBefore => {
                            warn!(partition = %key, offset, "the committed offset is the one from before the topic was made \
                                again; auto.offset.reset decides where reading begins");
                            effects.settled |= restart(key, self.first_phase(&key.topic), partitions);
                            continue;
                        }
                    }
                    self.backoff.reset();
                    partitions.set_position(key, offset, leader_epoch);
                    partitions.set_committed(key, Committed { offset, metadata, since: now, is_own: false });
                    effects.settled = true;
                }
                Some(Ok(_)) => {
                    new.push(key);
                    effects.settled |= restart(key, self.first_phase(&key.topic), partitions);
                }
                Some(Err(code)) => {
                    effects.refresh_metadata |= code == UNKNOWN_TOPIC_ID;
                    self.retry(now, key, &Error::from_code("OffsetFetch", code), partitions, &mut effects);
                }
                None => self.retry(now, key, &missing, partitions, &mut effects),
            }
        }
        if let Some(first) = new.first() {
            info!(partitions = new.len(), %first, policy = %self.policy, "the group has committed nothing of these partitions yet");
        }
        effects
    }

    /// The first or last offsets of the partitions asked about.
    pub(crate) fn handle_listed(
        &mut self,
        now: Instant,
        asked: &[Lookup],
        answer: Result<Found>,
        partitions: &mut Partitions,
    ) -> Effects {
        let mut effects = Effects::default();
        let (found, missing) = split(answer);
        for lookup in asked {
            let key = &lookup.partition;
            let Some(partition) = awaiting(key, lookup.life, partitions) else { continue };
            partition.asked = false;
            match found.get(key).cloned() {
                Some(Ok(FoundOffset { offset, .. })) if offset >= 0 => {
                    self.backoff.reset();
                    let wants_time = matches!(partition.phase(), Phase::AwaitingReset(to) if to.is_time());
                    if wants_time && !lookup.to.is_time() || partition.is_outside() {
                        partition.end_before = Some(offset);
                        continue;
                    }
                    partitions.set_decided(key, offset);
                    effects.settled = true;
                }
                Some(Ok(_)) if lookup.to.is_time() => {
                    // Nothing is that young: reading begins with what has come since. Without that end it is asked for.
                    if let Some(end) = partition.end_before {
                        self.backoff.reset();
                        partitions.set_decided(key, end);
                        effects.settled = true;
                    }
                }
                Some(Ok(_)) => {
                    let error = Error::protocol("the broker knows no offset");
                    self.retry(now, key, &error, partitions, &mut effects);
                }
                Some(Err(code)) => {
                    effects.refresh_metadata = true;
                    self.retry(now, key, &Error::from_code("ListOffsets", code), partitions, &mut effects);
                }
                None => self.retry(now, key, &missing, partitions, &mut effects),
            }
        }
        effects
    }

    /// The partition is asked about again later, with the others of the same answer, which are one failure. The user learns
    /// of an error that does not pass by itself.
    fn retry(
        &mut self,
        now: Instant,
        key: &TopicPartition,
        error: &Error,
        partitions: &mut Partitions,
        effects: &mut Effects,
    ) {
        debug!(%error, partition = %key, "an offset could not be looked up yet");
        let retry_at = *effects.retry_at.get_or_insert_with(|| now + self.backoff.next(&mut self.rng));
        if let Some(partition) = partitions.get_mut(key) {
            partition.retry_at = Some(retry_at);
            partition.trouble = Some(error.clone());
        }
        effects.forget_coordinator |= error.code().is_some_and(|code| is_moved(code.0));
        // Another epoch of the member is on its way, or its end.
        let is_fenced =
            error.code().is_some_and(|code| matches!(code.0, STALE_MEMBER_EPOCH | UNKNOWN_MEMBER_ID));
        if !error.is_retriable() && !is_passing(error) && !is_fenced {
            let error = error.clone().with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
            effects.errors.push(error);
        }
    }
}

fn is_latest(policy: AutoOffsetReset) -> bool {
    matches!(policy, AutoOffsetReset::Latest)
}

/// Of a partition whose position is outside the log: the end of the log is taken only when all that was handed out is done, but it is that
/// of now. What is written meanwhile is not to be passed.
fn ask_for_end(key: &TopicPartition, partitions: &mut Partitions, questions: &mut Questions) {
    let Some(partition) = partitions.get_mut(key) else { return };
    let Some((leader, leader_epoch)) = partition.leader else { return };
    if partition.asked || partition.end_before.is_some() {
        return;
    }
    let (broker, lookups) = questions.offsets.get_or_insert_with(|| (leader, Vec::new()));
    if *broker == leader {
        partition.asked = true;
        let (life, partition, to) = (partition.life(), key.clone(), ResetTo::Latest);
        lookups.push(Lookup { partition, life, leader_epoch, to });
    }
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

/// The partition, if it still waits for the answer to this question.
fn awaiting<'a>(
    key: &TopicPartition,
    life: Life,
    partitions: &'a mut Partitions,
) -> Option<&'a mut Partition> {
    partitions.get_mut(key).filter(|partition| partition.life() == life && partition.asked)
}

/// Whether something that was handed out of it is not done. Then the reset policy waits: the place that it gives is committed,
/// and would pass over what is not done; and what waits in lanes would be dropped as of an earlier life.
fn has_undone(key: &TopicPartition, partitions: &Partitions) -> bool {
    partitions.get(key).is_some_and(|partition| partition.account.has_undone())
}

/// Starts a partition again in this phase. True if that is a failure.
fn restart(key: &TopicPartition, phase: Phase, partitions: &mut Partitions) -> bool {
    let failed = matches!(phase, Phase::Failed(_));
    partitions.restart(key, phase);
    failed
}

/// What was found, and what to say of a partition that was not.
fn split(answer: Result<Found>) -> (Found, Error) {
    match answer {
        Ok(found) => (found, Error::protocol("the answer left out a partition")),
        Err(error) => (Found::new(), error),
    }
}

#[cfg(test)]
#[path = "lookups_tests.rs"]
mod tests;
