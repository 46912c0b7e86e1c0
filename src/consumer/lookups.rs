//! Where a partition without a position begins: at the group's committed offset, or where the reset policy says; and whether
//! a position is in the log of a new leader (KIP-320). Pure.
//!
//! It says what to ask and understands the answers. A partition is asked about once at a time, and again after a pause if
//! that failed; what must happen beyond the partitions is for the core to do.

mod resets;

use std::{sync::Arc, time::Duration};

use tracing::{debug, info, warn};

use self::resets::{is_latest, restart};
use super::{
    fetch::{code::UNKNOWN_TOPIC_ID, is_passing},
    ledger::{Committed, Life},
    partitions::{Check, Checked, EpochEnds, Partition, Partitions, Phase, ResetTo, Standing},
};
use crate::{
    config::settings::AutoOffsetReset,
    error::{Error, Result},
    group::code::{STALE_MEMBER_EPOCH, UNKNOWN_MEMBER_ID, is_moved},
    record::TopicPartition,
    sorted::Map,
    time::{Backoff, Instant, Rng},
};

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
    /// For a committed offset the epoch of the record before it; for one looked up by time, of the record there. -1 if
    /// unknown.
    pub(crate) leader_epoch: i32,
    /// Of the record there, where it was looked up by time.
    pub(crate) timestamp: i64,
    /// The text that was committed with the offset; empty otherwise.
    pub(crate) metadata: String,
    /// The coordinator knows it by the topic's id. An offset that is known by the topic's name may be of an earlier topic
    /// of that name.
    pub(crate) by_id: bool,
}

/// The answer for each partition, or the broker's code.
pub(crate) type Found = Map<TopicPartition, Result<FoundOffset, i16>>;

/// What to ask now.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// Of the coordinator, with the life of each partition.
    pub(crate) committed: Vec<(TopicPartition, Life)>,
    /// A leader, and the look-ups for which it is asked.
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

/// How often, with growing pauses, metadata are asked for a leader whose epoch is not below that of what was read. That
/// takes some twenty seconds, longer than a leader that was cut off from its cluster goes on. After that the epochs are
/// taken to be of another log, that of a topic which was made again where brokers give no ids.
const LOOKED_FOR: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The pause before the coordinator is asked again for a committed offset that may be of the topic before.
const FIND_AGAIN: Duration = Duration::from_secs(1);

/// The pause before metadata are asked again for a topic that is not the one that the coordinator has assigned.
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
        self.ask_unsettled(now, partitions, &mut questions);
        ask_unchecked(now, partitions, &mut questions);
        questions
    }

    /// Asks where partitions begin that have no position yet.
    fn ask_unsettled(&self, now: Instant, partitions: &mut Partitions, questions: &mut Questions) {
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
                        // There may be no record with that time. Reading then begins at the end, which is asked for
                        // first: records that are written between the two questions must not be passed over.
                        let is_end_wanted = to.is_time() && partition.end_before.is_none();
                        let to = if is_end_wanted { ResetTo::Latest } else { to };
                        let (life, partition) = (partition.life(), key.clone());
                        lookups.push(Lookup { partition, life, leader_epoch, to });
                    }
                }
                _ => {}
            }
        });
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
            let leads =
                |leader: Option<(i32, i32)>| leader.is_some_and(|(_, epoch)| epoch == lookup.leader_epoch);
            let Some(partition) =
                awaiting(key, lookup.life, partitions).filter(|partition| leads(partition.leader))
            else {
                continue;
            };
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
                    // No record is that young: reading begins at the end from before this question. If that is not known
                    // yet, it is asked for.
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
        // The member is about to learn of its new epoch, or that it was expelled: the user need not be told.
        let is_fenced =
            error.code().is_some_and(|code| matches!(code.0, STALE_MEMBER_EPOCH | UNKNOWN_MEMBER_ID));
        if !error.is_retriable() && !is_passing(error) && !is_fenced {
            let error = error.clone().with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
            effects.errors.push(error);
        }
    }
}

/// Asks for the end of the log of a partition whose position is outside it. The reset waits until all that was handed out
/// is done, but the end is looked up now: records that are written meanwhile must not be passed over.
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

/// Asks leaders whether they have what was fetched, of partitions where that is in doubt (KIP-320).
fn ask_unchecked(now: Instant, partitions: &mut Partitions, questions: &mut Questions) {
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
}

/// The partition, if it still waits for the answer to this question.
fn awaiting<'a>(
    key: &TopicPartition,
    life: Life,
    partitions: &'a mut Partitions,
) -> Option<&'a mut Partition> {
    partitions.get_mut(key).filter(|partition| partition.life() == life && partition.asked)
}

/// What was found, and what to say of a partition that was not.
fn split(answer: Result<Found>) -> (Found, Error) {
    match answer {
        Ok(found) => (found, Error::protocol("the answer left out a partition")),
        Err(error) => (Found::new(), error),
    }
}

#[cfg(test)]
mod tests;
