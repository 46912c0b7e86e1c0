//! The consumer's driver task: asks the core what to do, does it, tells the core what came of it.
//!
//! It decides nothing. All I/O of the consumer happens here, but for the look-ups that a user's call makes and waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use tracing::Instrument as _;

use super::{
    Shared,
    core::{Action, Core, partition_count},
    ledger::Life,
    lookups::{Found, Lookup},
    partitions::{Check, EpochEnds},
    requests,
    stalls::Stalls,
};
use crate::{
    cluster::{CoordinatorKind, Create, Metadata, Partition},
    connection::api::wire,
    driver,
    error::Result,
    flights::{Flights, Token},
    group::{
        Answer,
        assignor::{Assignment, GroupInfo, GroupMember, Racks, Strategy},
    },
    record::TopicPartition,
    sorted::Map,
    time::{self, Instant},
};

/// The outcome of an action.
enum Event {
    Topics(Vec<Arc<str>>, Result<()>),
    Group(Token, Result<Answer>),
    Plan(Token, Strategy, BTreeMap<Arc<str>, i32>, Result<Assignment>),
    Commit(Token, Result<Map<TopicPartition, i16>>),
    Committed(Vec<(TopicPartition, Life)>, Result<Found>),
    Listed(Vec<Lookup>, Result<Found>),
    EpochEnds(Vec<Check>, Result<Option<EpochEnds>>),
    Fetched(i32, Token, Result<wire::FetchResponse>),
}

pub(super) fn spawn(shared: Arc<Shared>) -> Result<()> {
    let ended = Arc::clone(&shared);
    let on_end = move |error| {
        ended.lock().handle_end(error);
        ended.changed.notify_waiters();
    };
    // Each line of the log says which of the process's consumers it is of.
    let group = shared.settings.group_id.as_deref();
    let span = tracing::error_span!(parent: None, "consumer", group, client_id = &*shared.cluster.settings().client_id);
    driver::spawn("consumer", on_end, run(shared).instrument(span)).map(drop)
}

async fn run(shared: Arc<Shared>) {
    let mut work = Flights::new();
    let mut metadata = shared.cluster.subscribe();
    metadata.mark_changed();
    let mut stalls = Stalls::new(time::now(), shared.settings.unreadable_warn);
    let mut actions = Vec::new();
    loop {
        let (timeout, closed) = {
            let mut core = shared.lock();
            let now = time::now();
            core.handle_timeout(now);
            while let Some(action) = core.poll_action(now) {
                actions.push(action);
            }
            (core.poll_timeout(now), core.is_closed())
        };
        if closed {
            // What is still out is dropped: nobody waits for it any more. The handle may be kept for long.
            shared.cluster.end();
            shared.tell();
            return;
        }
        shared.look(&mut stalls);
        shared.tell();
        for action in actions.drain(..) {
            start(&shared, action, &work);
        }
        let look = stalls.poll_timeout();
        let sleep = tokio::time::sleep_until(timeout.map_or(look, |at| at.min(look)));
        tokio::select! {
            biased;
            event = work.next() => handle(&shared, event),
            () = shared.wake.notified() => {}
            Ok(()) = metadata.changed() => {
                let snapshot = Arc::clone(&metadata.borrow_and_update());
                shared.lock().handle_metadata(time::now(), snapshot);
            }
            () = sleep => {}
        }
    }
}

fn start(shared: &Arc<Shared>, action: Action, work: &Flights<Event>) {
    let shared = Arc::clone(shared);
    match action {
        Action::RefreshMetadata => shared.cluster.refresh(),
        Action::Follow(topics) => shared.cluster.follow(&topics),
        Action::FollowMatching(pattern) => shared.cluster.follow_matching(pattern),
        Action::Identify(topics) => {
            let ids: Vec<_> = topics.into_iter().map(|id| id.0).collect();
            shared.cluster.identify(&ids);
        }
        Action::ForgetCoordinator => {
            if let Some(group) = &shared.settings.group_id {
                let coordinator = shared.coordinator.load(Ordering::Relaxed);
                shared.cluster.forget_coordinator(CoordinatorKind::Group, group, coordinator);
            }
        }
        Action::RequireTopics { topics, deadline } => work.push(Box::pin(async move {
            let result = shared.cluster.require_topics(&topics, Create::IfAllowed, deadline).await;
            Event::Topics(topics, result.map(drop))
        })),
        Action::Group { token, request, deadline } => work.push(Box::pin(async move {
            Event::Group(token, requests::group(&shared, request, deadline).await)
        })),
        Action::Plan { token, assignor, members, keeps, deadline } => work.push(Box::pin(async move {
            let (mut counts, plan) = plan(&shared, &assignor, &members, deadline).await;
            if keeps {
                count_covered(&shared, &mut counts, deadline).await;
            }
            Event::Plan(token, assignor, counts, plan)
        })),
        Action::Commit(commit) => work.push(Box::pin(async move {
            Event::Commit(commit.token, requests::commit(&shared, &commit).await)
        })),
        Action::FindCommitted { partitions, deadline } => work.push(Box::pin(async move {
            let keys: Vec<_> = partitions.iter().map(|(key, _)| key.clone()).collect();
            let member = shared.lock().reader();
            let ids = shared.topic_ids(&keys);
            let found = requests::find_committed(&shared, member, &keys, &ids, deadline).await;
            Event::Committed(partitions, found)
        })),
        Action::ListOffsets { broker, lookups, deadline } => work.push(Box::pin(async move {
            let found = requests::list_offsets(&shared, broker, &lookups, deadline).await;
            Event::Listed(lookups, found)
        })),
        Action::LearnLeaders(hints, endpoints) => shared.cluster.learn_leaders(&hints, &endpoints),
        Action::CheckEpochs { broker, checks, deadline } => work.push(Box::pin(async move {
            let ends = requests::epoch_ends(&shared, broker, &checks, deadline).await;
            Event::EpochEnds(checks, ends)
        })),
        Action::Fetch(fetch) => work.push(Box::pin(async move {
            let (broker, token) = (fetch.broker, fetch.token);
            Event::Fetched(broker, token, requests::fetch(&shared, fetch).await)
        })),
    }
}

fn handle(shared: &Shared, event: Event) {
    let mut core = shared.lock();
    let now = time::now();
    match event {
        Event::Topics(topics, result) => core.handle_topics(now, &topics, result),
        Event::Group(token, answer) => core.handle_group(now, token, answer),
        Event::Plan(token, assignor, counts, plan) => core.handle_plan(now, token, assignor, counts, plan),
        Event::Commit(token, answer) => core.handle_commit(now, token, answer),
        Event::Committed(asked, found) => core.handle_found_committed(now, &asked, found),
        Event::EpochEnds(asked, ends) => core.handle_epoch_ends(now, &asked, ends),
        Event::Listed(asked, found) => core.handle_listed(now, &asked, found),
        Event::Fetched(broker, token, answer) => {
            core.handle_fetched(now, broker, token, answer, &shared.decompressor);
        }
    }
}

/// The leader's plan, with the partition counts it was made with. Topics that nobody knows within the deadline are left
/// out; the leader calls for a rebalance when they appear.
async fn plan(
    shared: &Shared,
    assignor: &Strategy,
    members: &[GroupMember],
    deadline: Instant,
) -> (BTreeMap<Arc<str>, i32>, Result<Assignment>) {
    let mut topics: Vec<Arc<str>> = members.iter().flat_map(|member| member.topics.iter().cloned()).collect();
    topics.sort();
    topics.dedup();
    // The leader follows all topics of the group, so that new partitions are given to somebody.
    shared.cluster.follow(&topics);
    let short = deadline.min(time::now() + shared.cluster.settings().request_timeout.min(PLAN_PATIENCE));
    if let Err(error) = shared.cluster.require_topics(&topics, Create::Never, short).await {
        tracing::warn!(%error, "a topic that the group subscribes to is not there: nothing is read from it");
    }
    let metadata = shared.cluster.metadata();
    let mut counts = BTreeMap::new();
    for topic in topics {
        let count = partition_count(&metadata, &topic).unwrap_or(0);
        counts.insert(topic, count);
    }
    let racks = racks(&metadata, counts.keys());
    let plan = assignor.assign(&GroupInfo::new(members, &counts).with_racks(&racks));
    (counts, plan)
}

/// How many partitions of each topic the assignment covers that the coordinator has kept. Topics may have grown while
/// nobody led the group, and without this nobody would ever plan for the new partitions.
async fn count_covered(shared: &Shared, counts: &mut BTreeMap<Arc<str>, i32>, deadline: Instant) {
    let deadline = deadline.min(time::now() + PLAN_PATIENCE);
    let covered = loop {
        match requests::assigned(shared, deadline).await {
            Err(error) if error.is_retriable() && time::now() < deadline => {
                tokio::time::sleep(shared.cluster.settings().retry_backoff).await;
            }
            Ok(assigned) => break assigned,
            // A leader that may not ask takes the present numbers, as Java does.
            Err(error) if !error.is_retriable() => {
                tracing::debug!(%error, "what the group's assignment covers is not known");
                return;
            }
            // If it is not known in time, an empty set has the group planned anew, which covers everything.
            Err(_) => break BTreeSet::new(),
        }
    };
    for (topic, count) in counts {
        *count = covered.iter().filter(|key| key.topic == *topic).count() as i32;
    }
}

/// Where the replicas of these topics are, also those that are out of sync: they may be back before the next rebalance.
fn racks<'a>(metadata: &Metadata, topics: impl Iterator<Item = &'a Arc<str>>) -> Racks {
    let names: Map<i32, Arc<str>> = metadata
        .brokers
        .iter()
        .filter_map(|(id, broker)| Some((*id, Arc::from(broker.rack.as_deref()?))))
        .collect();
    if names.is_empty() {
        return Racks::new();
    }
    let of =
        |partition: &Partition| partition.replicas.iter().filter_map(|id| names.get(id).cloned()).collect();
    topics
        .filter_map(|name| {
            let topic = metadata.topics.get(name)?;
            Some((Arc::clone(name), topic.partitions.iter().map(of).collect()))
        })
        .collect()
}

/// How long a whole group waits for the metadata of a topic that may not exist.
const PLAN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

impl Shared {
    /// Logs what has made no progress for long, and why.
    fn look(&self, stalls: &mut Stalls) {
        let now = time::now();
        if !stalls.is_due(now) {
            return;
        }
        let expected = self.lock().expected_progress(now);
        let (cluster, group) = (&self.cluster, self.settings.group_id.as_ref());
        let why = expected.causes(
            |key| cluster.why_topic(&key.topic, Some(key.partition)),
            |topic| cluster.metadata().why(topic, None),
            || cluster.why_coordinator(CoordinatorKind::Group, group?),
        );
        let mut changes = stalls.handle_look(now, why);
        for harmless in changes.take_harmless() {
            if let Some(error) = harmless.error(self.settings.unreadable_warn) {
                tracing::warn!(%error, "the consumer makes no progress");
            }
        }
        for (what, lasted) in &changes.over {
            tracing::info!(?what, lasted_ms = lasted.as_millis() as u64, "the consumer makes progress again");
        }
        if let Some(error) = changes.error(self.settings.unreadable_warn) {
            tracing::warn!(%error, "the consumer makes no progress");
            self.lock().handle_stall(error);
        }
    }

    /// Wakes whoever waits for something that has happened in the core.
    pub(super) fn tell(&self) {
        if self.lock().take_news() {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Core> {
        self.core.lock()
    }
}
