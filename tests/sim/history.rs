//! What happened, in order: events of the actors and of the nemesis, with the virtual time.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tokio::time::{Duration, Instant};

use crate::transactions::Outcome;

/// A partition, as the history names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

impl Place {
    pub(crate) fn new(topic: &str, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A record that a producer sends: unique in its world, and its value.
pub(crate) type Id = String;

/// The consumer group and member of an actor's life: every new client is another life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) group: Arc<str>,
    pub(crate) member: u32,
    pub(crate) life: u32,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/m{}.{}", self.group, self.member, self.life)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A producer took the record into its memory, for this partition.
    Queued { id: Id, place: Place },
    /// A producer refused the record: it must never be written.
    NotQueued { id: Id, error: String },
    /// The record was acknowledged.
    Acked { id: Id, place: Place, offset: i64 },
    /// The delivery failed.
    Failed { id: Id, possibly_written: bool, error: String },
    /// Nobody waits for the delivery any more.
    Abandoned { id: Id },
    /// A consumer handed out a record.
    HandedOut { who: Who, place: Place, offset: i64, id: Id },
    /// The application is done with a record.
    Done { who: Who, place: Place, offset: i64 },
    /// A handler has begun.
    HandlerBegins { who: Who, place: Place, offset: i64 },
    /// A handler is over, or was dropped.
    HandlerEnds { who: Who, place: Place, offset: i64, how: &'static str },
    /// The error policy wrote the record to the dead letter topic, by its contract, before the next commit.
    DeadLettered { who: Who, place: Place, offset: i64, id: Id },
    /// A reader goes to another place.
    Sought { who: Who, place: Place, offset: i64 },
    /// A transaction is over, for its producer.
    Transaction { what: String, records: Vec<Id>, outcome: Outcome },
    /// A member begins a life, with these settings.
    Begins { who: Who, how: String },
    /// A member's life ends, and how.
    Ends { who: Who, how: &'static str },
    /// What the nemesis did, and whatever else is worth a line.
    Note(String),
}

impl Event {
    /// The partition it is about.
    pub(crate) fn place(&self) -> Option<&Place> {
        match self {
            Self::Queued { place, .. }
            | Self::Acked { place, .. }
            | Self::HandedOut { place, .. }
            | Self::Done { place, .. }
            | Self::HandlerBegins { place, .. }
            | Self::HandlerEnds { place, .. }
            | Self::DeadLettered { place, .. }
            | Self::Sought { place, .. } => Some(place),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued { id, place } => write!(f, "{id} queued for {place}"),
            Self::NotQueued { id, error } => write!(f, "{id} refused: {error}"),
            Self::Acked { id, place, offset } => write!(f, "{id} acknowledged at {place}@{offset}"),
            Self::Failed { id, possibly_written, error } => {
                write!(f, "{id} failed (possibly written: {possibly_written}): {error}")
            }
            Self::Abandoned { id } => write!(f, "{id} abandoned"),
            Self::HandedOut { who, place, offset, id } => write!(f, "{who} gets {place}@{offset} = {id}"),
            Self::Sought { who, place, offset } => write!(f, "{who} seeks {place}@{offset}"),
            Self::Transaction { what, records, outcome } => write!(f, "{what} is {outcome:?}: {records:?}"),
            Self::Done { who, place, offset } => write!(f, "{who} is done with {place}@{offset}"),
            Self::HandlerBegins { who, place, offset } => write!(f, "{who} handles {place}@{offset}"),
            Self::HandlerEnds { who, place, offset, how } => write!(f, "{who} {how} at {place}@{offset}"),
            Self::DeadLettered { who, place, offset, id } => {
                write!(f, "{who} gives up {place}@{offset} = {id} as a dead letter")
            }
            Self::Begins { who, how } => write!(f, "{who} begins: {how}"),
            Self::Ends { who, how } => write!(f, "{who} ends: {how}"),
            Self::Note(text) => f.write_str(text),
        }
    }
}

/// The history, shared by all tasks of a world.
#[derive(Clone)]
pub(crate) struct History {
    start: Instant,
    events: Arc<Mutex<Vec<(Instant, Event)>>>,
    violations: Arc<Mutex<Vec<String>>>,
}

impl History {
    pub(crate) fn begin() -> Self {
        Self { start: Instant::now(), events: Arc::default(), violations: Arc::default() }
    }

    pub(crate) fn add(&self, event: Event) {
        // Among the client's log, for a seed that is replayed.
        tracing::info!("{:8.3} {event}", self.seconds(Instant::now()));
        self.events.lock().unwrap().push((Instant::now(), event));
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.add(Event::Note(text.into()));
    }

    /// A rule was broken.
    pub(crate) fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("VIOLATION: {text}"));
        self.violations.lock().unwrap().push(text);
    }

    pub(crate) fn events(&self) -> Vec<(Instant, Event)> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Seconds of virtual time, as the history prints them.
    pub(crate) fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start).as_secs_f64()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events.iter().map(|(at, event)| format!("{:8.3} {event}", self.seconds(*at))).collect()
    }

    /// Waits for a call that has promised to be back within `limit`; a second more is given for what comes after.
    pub(crate) async fn bounded<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = T>,
    ) -> Option<T> {
        match tokio::time::timeout(limit + Duration::from_secs(1), call).await {
            Ok(value) => Some(value),
            Err(_) => {
                self.violation(format!("{what} was not back within {limit:?}"));
                None
            }
        }
    }
}
