//! The rules: once the world has ended, the history, the logs and the committed offsets are checked against each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use dtkafka_testcontainers::broker::Commit;
use tokio::time::Instant;

use crate::{
    exactly,
    history::{Event, Id, Place, Who},
    members, producers, readers, transactions,
    world::World,
};

/// A client makes no more requests in a virtual second than this, whatever happens.
const REQUESTS_PER_SECOND: u64 = 400;

/// What the checker must know of the plan.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) producers: Vec<producers::Plan>,
    /// Settings that the members of a group share.
    pub(crate) groups: BTreeMap<Arc<str>, Vec<(&'static str, String)>>,
    pub(crate) readers: Vec<readers::Plan>,
    /// Some members run `ExactlyOnce`.
    pub(crate) exactly: bool,
    /// No faults are injected.
    pub(crate) peaceful: bool,
    /// Brokers lose and compact records: then only progress is checked.
    pub(crate) lossy: bool,
}

/// Counts requests per second, to notice clients that send them in a busy loop.
pub(crate) async fn watch_requests(world: Arc<World>, clients: u64) {
    let mut before = world.control.total_requests();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = world.control.total_requests();
        if now - before > clients * REQUESTS_PER_SECOND {
            world.history.violation(format!("a storm: {} requests in a second", now - before));
            return;
        }
        before = now;
    }
}

/// Waits until every group has committed all there is.
pub(crate) async fn lag_is_gone(world: Arc<World>, facts: &Facts) {
    // What is there does not change any more but by transactions that are aborted by their time-out.
    loop {
        let ends = (ends(&world, false), ends(&world, true));
        for _ in 0..20 {
            if behind(&world, facts, &ends).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Which groups are behind, and where.
pub(crate) fn lagging(world: &World, facts: &Facts) -> Vec<String> {
    behind(world, facts, &(ends(world, false), ends(world, true)))
}

type Ends = BTreeMap<Place, i64>;

fn behind(world: &World, facts: &Facts, ends: &(Ends, Ends)) -> Vec<String> {
    let mut all = Vec::new();
    let mut look = |group: &str, committed_only: bool| {
        for (place, end) in if committed_only { &ends.1 } else { &ends.0 } {
            let committed = world.broker.committed(group, &place.topic, place.partition);
            if committed.unwrap_or(0) < *end {
                all.push(format!("{group} has {committed:?} of {end} at {place}"));
            }
        }
    };
    for (group, settings) in &facts.groups {
        look(group, is_committed_only(settings));
    }
    if facts.exactly {
        look(exactly::GROUP, true);
    }
    all
}

/// Where the records of each partition end.
pub(crate) fn ends(world: &World, committed_only: bool) -> Ends {
    let view = view(world, committed_only);
    let end = |(place, records): (Place, BTreeMap<i64, Id>)| {
        (place, records.last_key_value().map_or(0, |(offset, _)| offset + 1))
    };
    view.into_iter().map(end).collect()
}

fn is_committed_only(settings: &[(&'static str, String)]) -> bool {
    settings.iter().any(|(name, value)| *name == "isolation.level" && value == "read_committed")
}

fn places(world: &World) -> Vec<Place> {
    let of = |topic: &Arc<str>| {
        let count = world.partitions(topic) as i32;
        let topic = Arc::clone(topic);
        (0..count).map(move |partition| Place { topic: Arc::clone(&topic), partition })
    };
    world.topics.iter().flat_map(of).collect()
}

/// A partition's records by offset.
pub(crate) type Log = BTreeMap<Place, BTreeMap<i64, Id>>;

/// What readers of each isolation see.
pub(crate) struct Views {
    pub(crate) all: Log,
    pub(crate) committed: Log,
}

fn view(world: &World, committed_only: bool) -> Log {
    let read = |place: Place| {
        let records = if committed_only {
            world.broker.committed_records(&place.topic, place.partition)
        } else {
            world.broker.records(&place.topic, place.partition)
        };
        let named = records.unwrap().into_iter().map(|r| (r.offset, members::identity(r.value.as_deref())));
        (place.clone(), named.collect())
    };
    places(world).into_iter().map(read).collect()
}

/// Checks every rule.
pub(crate) fn check(world: &World, facts: &Facts) {
    if facts.lossy {
        return;
    }
    let mut events = world.history.events();
    // The topic that is deleted and made again only disturbs the others.
    events.retain(|(_, event)| event.place().is_none_or(|place| world.topics.contains(&place.topic)));
    let views = Views { all: view(world, false), committed: view(world, true) };
    check_log(world, facts, &events, &views.all);
    check_hand_outs(world, facts, &events, &views);
    check_commits(world, facts, &events, &views);
    transactions::check(world, &events, &views.committed);
    readers::check(world, &facts.readers, &events, &views);
    if facts.exactly {
        exactly::check(world, &views.committed);
    }
}

fn check_log(world: &World, facts: &Facts, events: &[(Instant, Event)], log: &Log) {
    let violation = |text: String| world.history.violation(text);
    let mut found: BTreeMap<&str, Vec<(&Place, i64)>> = BTreeMap::new();
    for (place, records) in log {
        for (offset, id) in records {
            found.entry(id).or_default().push((place, *offset));
        }
    }
    let idempotent = |id: &str| {
        if id.starts_with('x') {
            return true;
        }
        let number = id[1..].split('-').next().and_then(|number| number.parse().ok());
        facts.producers.iter().any(|plan| Some(plan.number) == number && plan.idempotent)
    };
    let mut queued: BTreeMap<&str, &Place> = BTreeMap::new();
    for (_, event) in events {
        match event {
            Event::Queued { id, place } => {
                queued.insert(id, place);
            }
            Event::NotQueued { id, .. } if found.contains_key(id.as_str()) => {
                violation(format!("{id} was refused and is in the log"));
            }
            Event::Acked { id, place, offset } => {
                let there = found.get(id.as_str()).map_or(&[][..], Vec::as_slice);
                if there.is_empty() {
                    violation(format!("{id} is lost: acknowledged at {place}@{offset}, not in the log"));
                } else if *offset >= 0 && !there.contains(&(place, *offset)) {
                    violation(format!("{id} was acknowledged at {place}@{offset} and is at {there:?}"));
                }
            }
            Event::Failed { id, possibly_written: false, error } if found.contains_key(id.as_str()) => {
                violation(format!("{id} is in the log and failed as certainly not written: {error}"));
            }
            _ => {}
        }
    }
    for (id, there) in &found {
        let Some(place) = queued.get(id) else {
            violation(format!("{id} is in the log and nobody sent it"));
            continue;
        };
        if there.iter().any(|(at, _)| at != place) {
            violation(format!("{id} was queued for {place} and is at {there:?}"));
        }
        if there.len() > 1 && (idempotent(id) || facts.peaceful) {
            violation(format!("{id} is doubled: {there:?}"));
        }
    }
    for (place, records) in log {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (offset, id) in records {
            let Some((producer, number)) = id.split_once('-') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            let before = last.insert(producer, number);
            if before.is_some_and(|before| before >= number) && (idempotent(id) || facts.peaceful) {
                violation(format!(
                    "{id} at {place}@{offset} stands behind {producer}-{}",
                    before.unwrap_or(0)
                ));
            }
        }
    }
}

/// What is handed out is what the log has there, and in order within a life.
fn check_hand_outs(world: &World, facts: &Facts, events: &[(Instant, Event)], views: &Views) {
    let violation = |text: String| world.history.violation(text);
    let log = |group: &Arc<str>| match facts.groups.get(group) {
        Some(settings) if is_committed_only(settings) => &views.committed,
        _ => &views.all,
    };
    let mut running: BTreeMap<(&str, &Place), &Who> = BTreeMap::new();
    for (_, event) in events {
        match event {
            Event::HandedOut { who, place, offset, id } => {
                match log(&who.group).get(place).and_then(|records| records.get(offset)) {
                    Some(there) if there == id => {}
                    there => {
                        violation(format!("{who} got {id} as {place}@{offset}, where the log has {there:?}"))
                    }
                }
            }
            Event::HandlerBegins { who, place, offset } => {
                let other = running.insert((&who.group, place), who);
                if facts.peaceful && other.is_some_and(|other| other != who) {
                    violation(format!("{who} handles {place}@{offset} while {other:?} still handles it"));
                }
            }
            Event::HandlerEnds { who, place, .. } if running.get(&(&*who.group, place)) == Some(&who) => {
                running.remove(&(&*who.group, place));
            }
            _ => {}
        }
    }
}

/// Nothing is committed that was not done, and no commit goes back.
fn check_commits(world: &World, facts: &Facts, events: &[(Instant, Event)], views: &Views) {
    let violation = |text: String| world.history.violation(text);
    let mut done: BTreeMap<(&str, &Place), BTreeMap<i64, Instant>> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Done { who, place, offset } => {
                done.entry((&who.group, place)).or_default().entry(*offset).or_insert(*at);
            }
            Event::DeadLettered { who, place, offset, .. } => {
                done.entry((&who.group, place)).or_default().entry(*offset).or_insert(*at);
            }
            _ => {}
        }
    }
    let letters: BTreeSet<String> = world
        .broker
        .records(members::DEAD, 0)
        .unwrap()
        .into_iter()
        .map(|record| members::identity(record.value.as_deref()))
        .collect();
    let commits = world.control.take_commits();
    // Where each group's committed offset stands, by partition; `latest` groups begin where their first commit is.
    let mut frontier: BTreeMap<(&str, Place), i64> = BTreeMap::new();
    for commit in &commits {
        let Commit { at, group, topic, partition, offset, .. } = commit;
        let Some((group, settings)) = facts.groups.get_key_value(group.as_str()) else { continue };
        if !world.topics.iter().any(|known| **known == *topic.as_str()) {
            continue;
        }
        let log = if is_committed_only(settings) { &views.committed } else { &views.all };
        let latest = settings.contains(&("auto.offset.reset", "latest".to_owned()));
        let place = Place::new(topic, *partition);
        let seconds = world.history.seconds(*at);
        let key = (&**group, place.clone());
        let before = match frontier.get(&key) {
            Some(before) => *before,
            None if latest => *offset,
            None => 0,
        };
        if *offset < before {
            violation(format!(
                "{group} committed {place}@{offset} at {seconds:.3} by {} in {}, and {before} before: it went back",
                commit.member, commit.generation
            ));
        }
        let records = log.get(&place);
        for (skipped, id) in
            records.into_iter().flat_map(|records| records.range(before..(*offset).max(before)))
        {
            let when = done.get(&(&**group, &place)).and_then(|done| done.get(skipped));
            if when.is_none_or(|when| when > at) {
                let when = when.map(|when| world.history.seconds(*when));
                violation(format!(
                    "{group} committed {place}@{offset} at {seconds:.3} by {}, past {id} at {skipped}, which was done {when:?}",
                    commit.member
                ));
            }
        }
        frontier.insert(key, (*offset).max(before));
    }
    // What was given up stands among the dead letters once it is committed, unless a handler has taken it in the end.
    for (_, event) in events {
        let Event::DeadLettered { who, place, offset, id } = event else { continue };
        let committed = frontier.get(&(&*who.group, place.clone())).is_some_and(|end| end > offset);
        let handled = events.iter().any(|(_, other)| {
            matches!(other, Event::Done { who: by, place: at, offset: of } if by.group == who.group && at == place && of == offset)
        });
        if committed && !handled && !letters.contains(id) {
            violation(format!(
                "{who} gave up {place}@{offset} = {id}, committed it, and it is no dead letter"
            ));
        }
    }
}
