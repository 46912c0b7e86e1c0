//! Planning of fetches: each leader is asked, with one fetch at a time, before its partitions run dry, and no broker
//! waits for another. Pure.
//!
//! Memory is bounded for the whole consumer (as KIP-81 meant it): bytes buffered and bytes asked for together stay
//! within `fetch.buffer.memory`, but for one oversized batch per broker, which a broker sends whatever it is asked (KIP-74).

mod taking;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(crate) use self::taking::Effects;
use self::taking::{Requested, Taking};
use super::{
    partitions::{Partition, Partitions, Phase},
    session::{
        INVALID_SESSION_EPOCH, NO_SESSION, Names, SESSION_ID_NOT_FOUND, Session, SessionRequest, Wanted,
    },
};
use crate::{
    batch::Decompressor,
    connection::api::wire,
    error::{Error, Result},
    flights::{Token, Tokens},
    record::TopicPartition,
    sorted::Map,
    time::{Backoff, Instant, Rng},
};

/// A fetch to send; its answer goes to `handle_answer` with the same token.
#[derive(Debug)]
pub(crate) struct FetchAction {
    pub(crate) broker: i32,
    pub(crate) token: Token,
    pub(crate) request: SessionRequest,
    pub(crate) max_wait: Duration,
    pub(crate) max_bytes: i32,
    /// It goes beside a fetch that waits at the same broker, and must not wait behind it.
    pub(crate) is_aside: bool,
    /// Says where the client is, so that the broker may name a replica that is nearer.
    pub(crate) names_rack: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct FetchSettings {
    pub(crate) max_bytes: i32,
    pub(crate) max_partition_bytes: i32,
    pub(crate) max_wait: Duration,
    pub(crate) min_bytes: i32,
    pub(crate) buffer_memory: usize,
    pub(crate) read_committed: bool,
    /// Whether the CRC of a batch is to hold (`check.crcs`).
    pub(crate) check_crcs: bool,
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
    /// How long a replica is read from before the leader is asked again (KIP-392): `metadata.max.age.ms`.
    pub(crate) replica_max_age: Duration,
}

#[derive(Debug)]
struct InFlight {
    token: Token,
    reserved: usize,
    since: Instant,
    /// The broker has nothing to wait for: what it is asked for has records, as far as is known.
    has_records: bool,
}

/// A fetch of a few partitions outside the session, while the session's fetch waits at the broker for others: after a seek,
/// for a partition that has just come, or one that was full and is not any more.
#[derive(Debug)]
struct SideFetch {
    out: InFlight,
    asked: Map<TopicPartition, Wanted>,
    names: Names,
}

#[derive(Debug)]
struct BrokerFetch {
    session: Session,
    in_flight: Option<InFlight>,
    aside: Option<SideFetch>,
    /// What was asked aside since the session's fetch left, so that nothing is asked aside twice.
    asked_aside: Map<TopicPartition, Wanted>,
    retry_at: Option<Instant>,
    /// Why its last fetch has brought nothing.
    trouble: Option<Error>,
    backoff: Backoff,
    /// How many answers in a row came at once and brought nothing.
    in_vain: u32,
    /// How many partitions it is asked for, without those that run low.
    wanted: usize,
    /// How many run low.
    low: usize,
    /// How many of its partitions are left out for the moment, and will want data soon.
    left_out: usize,
    /// The token of its last fetch. The broker that was asked least recently comes next: where the buffer has no room for
    /// a fetch to every leader, those with the lowest ids would otherwise take it again and again.
    last: Option<Token>,
}

impl BrokerFetch {
    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight.is_none() && self.retry_at.is_none_or(|at| at <= now)
    }

    /// How many partitions it is asked for.
    fn asked(&self) -> usize {
        self.wanted + self.low
    }

    /// Whether a request is worth it now. Partitions that are read side by side want more soon after one another, so as
    /// long as none runs low a request waits for all of them.
    fn is_due(&self) -> bool {
        self.low > 0 || (self.wanted > 0 && self.left_out == 0)
    }

    /// Takes note of what an answer has brought, or that it came early and has brought nothing.
    fn note_brought(&mut self, answer: &wire::FetchResponse, is_early: bool) {
        use wire::fetch_response::PartitionData;
        let brought = |data: &PartitionData| data.records.as_ref().is_some_and(|records| !records.is_empty());
        let says_nothing = |data: &PartitionData| {
            data.error_code == 0 && data.diverging_epoch.end_offset < 0 && !brought(data)
        };
        let is_empty = answer.responses.iter().flat_map(|topic| &topic.partitions).all(says_nothing);
        self.in_vain = if is_early && is_empty { self.in_vain.saturating_add(1) } else { 0 };
    }

    /// When something can be asked aside, if anything waits for it. Beside a fetch that is out because its answer is large, or the
    /// network slow, nothing is: the partitions served last would be served again before the others have had their turn.
    fn aside_at(&self) -> Option<Instant> {
        let out = self.in_flight.as_ref().filter(|out| self.aside.is_none() && !out.has_records)?;
        self.fresh().next()?;
        Some(out.since + SHORT_WAIT)
    }

    fn fresh(&self) -> impl Iterator<Item = (&TopicPartition, Wanted)> {
        self.session.fresh().filter(|(key, wanted)| self.asked_aside.get(*key) != Some(wanted))
    }

    fn count(&mut self, standing: Standing) -> &mut usize {
        match standing {
            Standing::Low => &mut self.low,
            Standing::Wanted => &mut self.wanted,
            Standing::LeftOut => &mut self.left_out,
        }
    }
}

/// What a leader is asked of one of its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has little left.
    Low,
    Wanted,
    LeftOut,
}

/// A partition with less than this buffered runs low, and its fetch does not wait for other partitions. At least one
/// byte, so that one with nothing left always runs low.
pub(super) const fn low_mark(refill_below: usize) -> usize {
    if refill_below > 1 { refill_below / 2 } else { 1 }
}

/// Whether asking again may help: for retriable codes, and for the unknown server error, as in Java.
pub(super) fn is_passing(error: &Error) -> bool {
    error.is_retriable()
        || error.code().is_some_and(|code| code.0 == crate::error::code::UNKNOWN_SERVER_ERROR)
}

/// Whether the code is about the session alone, and says nothing of broker or partitions.
fn is_of_session(code: i16) -> bool {
    matches!(code, SESSION_ID_NOT_FOUND | INVALID_SESSION_EPOCH)
}

/// The smallest room worth a fetch; below it the consumer waits for a poll.
const LEAST_FETCH: usize = 64 * 1024;
/// So many answers in a row may come at once and bring nothing before a broker is asked less often.
const MOST_IN_VAIN: u32 = 5;
/// A fetch that is out for longer is taken to wait at its broker for records; what it does not ask for is then asked
/// aside.
const SHORT_WAIT: Duration = Duration::from_millis(20);

pub(super) use crate::error::code;

#[derive(Debug)]
pub(crate) struct Fetcher {
    settings: FetchSettings,
    brokers: Map<i32, BrokerFetch>,
    /// Where each partition stands, as of the last look at it.
    standings: BTreeMap<TopicPartition, (i32, Standing)>,
    /// Left out until a time.
    waiting: BTreeSet<TopicPartition>,
    /// Those of which the last fetch was refused.
    refused: BTreeSet<TopicPartition>,
    tokens: Tokens,
    rng: Rng,
}

impl Fetcher {
    pub(crate) fn new(settings: FetchSettings, rng: Rng) -> Self {
        Self {
            settings,
            brokers: Map::new(),
            standings: BTreeMap::new(),
            waiting: BTreeSet::new(),
            refused: BTreeSet::new(),
            tokens: Tokens::default(),
            rng,
        }
    }

    /// A partition is fetched on while it has less than this buffered: half of what it is asked for at once, so that two
    /// answers are held at a time and not three.
    pub(crate) fn refill_below(&self) -> usize {
        (self.partition_bytes() / 2).max(1)
    }

    fn partition_bytes(&self) -> usize {
        self.settings.max_partition_bytes.max(1) as usize
    }

    fn reserved(&self) -> usize {
        let sessions = self.brokers.values().filter_map(|broker| broker.in_flight.as_ref());
        let asides = self.brokers.values().filter_map(|broker| broker.aside.as_ref()).map(|aside| &aside.out);
        sessions.chain(asides).map(|out| out.reserved).sum()
    }

    /// Whether there is something to ask, or will be once a fetch waits at its broker.
    pub(crate) fn is_due(&mut self, now: Instant, partitions: &mut Partitions) -> bool {
        self.look_again(now, partitions);
        let is_due = |state: &BrokerFetch| match state.in_flight {
            Some(_) => state.fresh().next().is_some(),
            None => state.is_due(),
        };
        self.brokers.values().any(is_due)
    }

    /// The next fetch to send, if any.
    pub(crate) fn poll_action(&mut self, now: Instant, partitions: &mut Partitions) -> Option<FetchAction> {
        self.look_again(now, partitions);
        // The broker that was asked longest ago, so that all get their turn where memory is enough for some only.
        let idle = self.brokers.iter().filter(|(_, state)| state.is_due() && state.is_idle(now));
        let Some((broker, wanted)) =
            idle.min_by_key(|(_, state)| state.last).map(|(id, state)| (*id, state.asked()))
        else {
            return self.poll_aside(now, partitions);
        };
        let max_bytes = self.room(wanted, partitions)?;
        let names_rack = partitions.names_rack(now, broker);
        Some(FetchAction { names_rack, ..self.start(now, broker, max_bytes, partitions) })
    }

    /// What is wanted since the fetch left that waits at the broker.
    fn poll_aside(&mut self, now: Instant, partitions: &mut Partitions) -> Option<FetchAction> {
        let due = |state: &BrokerFetch| state.aside_at().is_some_and(|at| at <= now);
        let broker = self.brokers.iter().find(|(_, state)| due(state)).map(|(id, _)| *id)?;
        let fresh: Vec<_> = self.broker(broker).fresh().map(|(key, wanted)| (key.clone(), wanted)).collect();
        let max_bytes = self.room(fresh.len(), partitions)?;
        let token = self.tokens.next();
        let state = self.broker(broker);
        let out = InFlight { token, reserved: max_bytes, since: now, has_records: true };
        state.asked_aside.extend(fresh.iter().cloned());
        let mut names = Names::default();
        fresh.iter().for_each(|(key, wanted)| names.add(key, wanted.topic_id));
        state.aside = Some(SideFetch { out, asked: fresh.iter().cloned().collect(), names });
        Some(FetchAction {
            broker,
            token,
            request: SessionRequest::alone(fresh),
            max_wait: Duration::ZERO,
            max_bytes: i32::try_from(max_bytes).unwrap_or(i32::MAX),
            is_aside: true,
            names_rack: partitions.names_rack(now, broker),
        })
    }

    /// How many bytes may be asked of a broker for so many partitions.
    fn room(&self, wanted: usize, partitions: &mut Partitions) -> Option<usize> {
        let memory = self.settings.buffer_memory;
        let leaders = self.brokers.values().filter(|state| state.asked() + state.left_out > 0).count();
        let share = (memory / leaders.max(1)).max(LEAST_FETCH);
        let mut room = memory.saturating_sub(partitions.buffered() + self.reserved());
        if room < LEAST_FETCH.min(memory) {
            partitions.evict_paused();
            room = memory.saturating_sub(partitions.buffered() + self.reserved());
            if room < LEAST_FETCH.min(memory) {
                partitions.note_short();
                return None;
            }
        }
        let at_most = wanted.saturating_mul(self.partition_bytes());
        Some(room.min(share).min(at_most).min(self.settings.max_bytes.max(1) as usize))
    }

    /// Brokers that back off and partitions that wait, so that the driver wakes for them.
    pub(crate) fn poll_timeout(&self, now: Instant, partitions: &Partitions) -> Option<Instant> {
        let idle = self.brokers.values().filter(|broker| broker.in_flight.is_none());
        let waiting = self.waiting.iter().filter_map(|key| partitions.get(key)?.retry_at);
        let aside = self.brokers.values().filter_map(BrokerFetch::aside_at);
        idle.filter_map(|broker| broker.retry_at).chain(waiting).chain(aside).filter(|at| *at > now).min()
    }

    fn start(&mut self, now: Instant, broker: i32, max_bytes: usize, partitions: &Partitions) -> FetchAction {
        let token = self.tokens.next();
        let FetchSettings { max_wait, min_bytes, .. } = self.settings;
        let state = self.broker(broker);
        let mut request = state.session.request();
        if request.id == NO_SESSION && partitions.has_taken_turns() {
            // A broker fills its answer in the order of the request. Within a session it takes turns itself.
            request
                .partitions
                .sort_by_cached_key(|(key, _)| partitions.get(key).map(|partition| partition.turn));
        }
        // A record has a byte at least.
        let behind = |(key, wanted): &(TopicPartition, Wanted)| {
            let end = partitions.get(key).and_then(|partition| partition.end);
            end.map_or(0, |end| end.saturating_sub(wanted.offset).max(0))
        };
        let mut known = 0_i64;
        let has_records = request.partitions.iter().any(|asked| {
            known = known.saturating_add(behind(asked));
            known >= min_bytes.into()
        });
        state.in_flight = Some(InFlight { token, reserved: max_bytes, since: now, has_records });
        state.asked_aside.clear();
        state.retry_at = None;
        state.last = Some(token);
        let max_bytes = i32::try_from(max_bytes).unwrap_or(i32::MAX);
        FetchAction { broker, token, request, max_wait, max_bytes, is_aside: false, names_rack: true }
    }

    fn broker(&mut self, broker: i32) -> &mut BrokerFetch {
        let backoff = (self.settings.retry_backoff, self.settings.retry_backoff_max);
        self.brokers.entry(broker).or_insert_with(|| BrokerFetch {
            session: Session::default(),
            in_flight: None,
            aside: None,
            asked_aside: Map::new(),
            retry_at: None,
            trouble: None,
            backoff: Backoff::new(backoff.0, backoff.1),
            in_vain: 0,
            wanted: 0,
            low: 0,
            left_out: 0,
            last: None,
        })
    }

    /// Takes over what has changed of the partitions since the last time, so that a fetch costs by what it brings and not
    /// by how many partitions there are.
    fn look_again(&mut self, now: Instant, partitions: &mut Partitions) {
        for key in std::mem::take(&mut self.waiting) {
            self.place(now, key, partitions);
        }
        while let Some(key) = partitions.pop_touched() {
            self.place(now, key, partitions);
        }
    }

    fn place(&mut self, now: Instant, key: TopicPartition, partitions: &Partitions) {
        let place = partitions.get(&key).and_then(|partition| self.judge(now, partition));
        let low_mark = low_mark(self.refill_below());
        let is_low = partitions.get(&key).is_some_and(|partition| partition.queue.bytes() < low_mark);
        let standing = place.map(|(leader, wanted)| match wanted {
            Some(_) if is_low => (leader, Standing::Low),
            Some(_) => (leader, Standing::Wanted),
            None => (leader, Standing::LeftOut),
        });
        let before = match standing {
            Some(standing) => self.standings.insert(key.clone(), standing),
            None => self.standings.remove(&key),
        };
        if before != standing {
            if let Some((leader, standing)) = before {
                *self.broker(leader).count(standing) -= 1;
            }
            if let Some((leader, standing)) = standing {
                *self.broker(leader).count(standing) += 1;
            }
        }
        let asked = |standing: Option<(i32, Standing)>| match standing? {
            (leader, Standing::Low | Standing::Wanted) => Some(leader),
            (_, Standing::LeftOut) => None,
        };
        if let Some(leader) = asked(before)
            && asked(standing) != Some(leader)
        {
            self.broker(leader).session.set(key.clone(), None);
        }
        match place {
            Some((leader, Some(wanted))) => self.broker(leader).session.set(key, Some(wanted)),
            Some((_, None)) if partitions.get(&key).is_some_and(|partition| !partition.is_due(now)) => {
                self.waiting.insert(key);
            }
            _ => {}
        }
    }

    /// Whom a partition is fetched from, and what is wanted of it at the moment.
    fn judge(&self, now: Instant, partition: &Partition) -> Option<(i32, Option<Wanted>)> {
        let (source, leader_epoch) = partition.source(now)?;
        if partition.paused.is_some() || matches!(partition.phase(), Phase::Failed(_)) {
            return None;
        }
        let is_leader = partition.leader.is_some_and(|(leader, _)| leader == source);
        let ready = !partition.is_unchecked
            && !partition.is_outside()
            && partition.is_due(now)
            && partition.queue.bytes() < self.refill_below()
            && !partition.is_stuck();
        let wanted = partition.position().filter(|_| ready).map(|position| Wanted {
            life: partition.life(),
            offset: position.fetch,
            leader_epoch,
            // Only the leader can compare epochs: a replica that is behind would report a part of the log that it has not
            // copied yet as cut.
            last_epoch: if is_leader { position.fetch_epoch } else { -1 },
            topic_id: partition.topic_id,
            max_bytes: self.settings.max_partition_bytes,
        });
        Some((source, wanted))
    }

    /// A broker's answer, or why there is none.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        broker: i32,
        token: Token,
        answer: Result<wire::FetchResponse>,
        partitions: &mut Partitions,
        decompressor: &Decompressor,
    ) -> Effects {
        let mut effects = Effects::default();
        let Some(state) = self.brokers.get_mut(&broker) else { return effects };
        let taking = Taking { now, broker, settings: &self.settings, decompressor };
        if let Some(aside) = state.aside.take_if(|aside| aside.out.token == token) {
            // Errors are left to the session's fetch, which meets them too.
            if let Some(answer) = answer.ok().filter(|answer| answer.error_code == 0) {
                let asked = Requested { names: &aside.names, asked: &|key| aside.asked.get(key).copied() };
                taking.take(answer, &asked, partitions, &mut effects);
                self.refused.append(&mut effects.refused);
            }
            return effects;
        }
        let Some(out) = state.in_flight.take_if(|out| out.token == token) else { return effects };
        let answer = match of_session(&mut state.session, broker, answer) {
            Ok(Some(answer)) => answer,
            // The next fetch opens another session.
            Ok(None) => return effects,
            Err((error, passes)) => {
                state.retry_at = Some(now + state.backoff.next(&mut self.rng));
                partitions.forget_replica(broker, now + self.settings.replica_max_age);
                effects.refresh_metadata = true;
                state.trouble = Some(error.clone());
                effects.errors.extend((!passes).then_some(error));
                return effects;
            }
        };
        state.trouble = None;
        let is_early = now < out.since + self.settings.max_wait / 2;
        state.note_brought(&answer, is_early);
        if state.in_vain > MOST_IN_VAIN {
            // The broker answers at once instead of waiting for records as it was asked to. Asking again at once would
            // be a busy loop.
            state.retry_at = Some(now + state.backoff.next(&mut self.rng));
        } else {
            state.backoff.reset();
        }
        let session = &state.session;
        let mut told = answer.responses.iter().flat_map(|topic| &topic.partitions);
        let is_all_served = answer.session_id != 0 && told.all(|data| data.error_code == 0);
        let asked = Requested { names: session.names(), asked: &|key| session.asked(key).copied() };
        if !taking.take(answer, &asked, partitions, &mut effects) {
            // A session that is out of step would answer at once with it, again and again.
            tracing::debug!(
                broker,
                "an answer is of partitions that nobody asked for: the session begins anew"
            );
            state.session.handle_failure();
            state.retry_at = Some(now + state.backoff.next(&mut self.rng));
        } else if is_all_served && partitions.has_unconfirmed_id() {
            partitions.note_passed_over(now, broker, |key| Some(state.session.asked(key)?.topic_id));
        }
        // A session's answer names only what has changed: what was asked for and is not in it as refused is not refused
        // any more.
        self.refused.retain(|key| {
            let is_over = state.session.asked(key).is_some() && !effects.refused.contains(key);
            if let Some(partition) = partitions.get_mut(key).filter(|_| is_over) {
                partition.trouble = None;
            }
            !is_over
        });
        self.refused.append(&mut effects.refused);
        effects
    }

    /// Why nothing comes of a partition that has nothing left to hand out, as far as brokers have said.
    pub(crate) fn why<'a>(&'a self, now: Instant, partition: &'a Partition) -> Option<&'a Error> {
        if let Phase::Replaced(error) = partition.phase() {
            return Some(error);
        }
        let of_broker = || {
            let (source, _) = partition.source(now).filter(|_| partition.position().is_some())?;
            self.brokers.get(&source)?.trouble.as_ref()
        };
        partition.trouble.as_ref().or_else(of_broker)
    }
}

/// The answer to a fetch of the session; `None` if the broker has ended the session. An error comes with whether it passes.
fn of_session(
    session: &mut Session,
    broker: i32,
    answer: Result<wire::FetchResponse>,
) -> Result<Option<wire::FetchResponse>, (Error, bool)> {
    match answer {
        Ok(answer) if session.handle_answer(answer.error_code, answer.session_id) => Ok(Some(answer)),
        Ok(answer) if is_of_session(answer.error_code) => Ok(None),
        Ok(answer) => {
            let error = Error::from_code("Fetch", answer.error_code).with_broker(broker);
            let passes = is_passing(&error);
            Err((error, passes))
        }
        Err(error) => {
            session.handle_failure();
            let passes = error.is_retriable();
            Err((error, passes))
        }
    }
}

#[cfg(test)]
mod tests;
