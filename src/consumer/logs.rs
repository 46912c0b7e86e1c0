//! What leaders are asked about their logs, whether or not the partitions are assigned: beginnings, ends, times. Nothing of a
//! position may change by it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use super::{
    KafkaConsumer, Shared,
    ledger::Life,
    lookups::{Found, FoundOffset, Lookup},
    partitions::ResetTo,
    requests,
};
use crate::{
    cluster::{CoordinatorKind, Create, UNKNOWN_TOPIC_OR_PARTITION},
    driver,
    error::{Error, ErrorKind, Result},
    group::code::is_moved,
    record::TopicPartition,
    sorted::Map,
    time::{self, Backoff, Instant, Rng},
};

impl KafkaConsumer {
    /// The offsets of the first records still in the logs.
    ///
    /// # Errors
    /// The leaders' errors; [`ErrorKind::Timeout`] after `default.api.timeout.ms`;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn beginning_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let asked = partitions.into_iter().map(|key| (key, ResetTo::Earliest)).collect();
        Ok(offsets(self.list_offsets(asked).await?))
    }

    /// The offsets that the next records will get (with `read_committed`: after the last record that can be read).
    ///
    /// # Errors
    /// The leaders' errors; [`ErrorKind::Timeout`] after `default.api.timeout.ms`;
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn end_offsets(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let asked = partitions.into_iter().map(|key| (key, ResetTo::Latest)).collect();
        Ok(offsets(self.list_offsets(asked).await?))
    }

    /// The first records with these times or later ones, in milliseconds since the Unix epoch; `None` where there is none.
    /// Partitions need not be assigned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a negative time; the leaders' errors; [`ErrorKind::Timeout`] after
    /// `default.api.timeout.ms`; [`ErrorKind::Closed`] after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn offsets_for_times(
        &self,
        times: impl IntoIterator<Item = (TopicPartition, i64)>,
    ) -> Result<BTreeMap<TopicPartition, Option<OffsetAndTimestamp>>> {
        let mut asked = Vec::new();
        for (key, time) in times {
            check_time(&key, time)?;
            asked.push((key, ResetTo::Time(time)));
        }
        let found = self.list_offsets(asked.into_iter().collect()).await?;
        let record = |place: FoundOffset| {
            let FoundOffset { offset, leader_epoch, timestamp, .. } = place;
            (offset >= 0).then(|| OffsetAndTimestamp {
                offset,
                timestamp,
                leader_epoch: Some(leader_epoch).filter(|epoch| *epoch >= 0),
            })
        };
        Ok(found.into_iter().map(|(key, place)| (key, record(place))).collect())
    }

    async fn list_offsets(
        &self,
        asked: Map<TopicPartition, ResetTo>,
    ) -> Result<Map<TopicPartition, FoundOffset>> {
        self.shared.lock().check_open()?;
        let mut topics: Vec<_> = asked.keys().map(|key| Arc::clone(&key.topic)).collect();
        topics.dedup();
        let deadline = self.api_deadline();
        let mut retrying = Retrying::new(&self.shared, deadline);
        loop {
            let (shared, topics, asked) = (Arc::clone(&self.shared), topics.clone(), asked.clone());
            let asking = async move { shared.ask_leaders(&topics, &asked, deadline).await };
            match driver::apart(asking).await {
                Err(error) => retrying.pause_after(error).await?,
                found => return found,
            }
        }
    }
}

impl Shared {
    async fn ask_leaders(
        &self,
        topics: &[Arc<str>],
        asked: &Map<TopicPartition, ResetTo>,
        deadline: Instant,
    ) -> Result<Map<TopicPartition, FoundOffset>> {
        let metadata = self.cluster.require_topics(topics, Create::Never, deadline).await?;
        let mut leaders: Map<i32, Vec<Lookup>> = Map::new();
        for (key, to) in asked {
            let Some((leader, leader_epoch)) = metadata.leader(&key.topic, key.partition) else {
                return Err(Error::from_code("Metadata", UNKNOWN_TOPIC_OR_PARTITION)
                    .with_topic(Arc::clone(&key.topic))
                    .with_partition(key.partition));
            };
            let lookup = Lookup { partition: key.clone(), life: Life::NONE, leader_epoch, to: *to };
            leaders.entry(leader).or_default().push(lookup);
        }
        let mut found = Map::new();
        for (leader, lookups) in leaders {
            found.extend(requests::list_offsets(self, leader, &lookups, deadline).await?);
        }
        all_found("ListOffsets", asked.keys(), &found)
    }
}

/// Repeats a look-up until it succeeds, fails for good, or the deadline is near. No async closure is taken: of the futures
/// of those, the compiler cannot tell that they may cross threads.
pub(super) struct Retrying<'a> {
    shared: &'a Shared,
    deadline: Instant,
    backoff: Backoff,
    rng: Rng,
}

impl<'a> Retrying<'a> {
    pub(super) fn new(shared: &'a Shared, deadline: Instant) -> Self {
        let settings = shared.cluster.settings();
        let backoff = Backoff::new(settings.retry_backoff, settings.retry_backoff_max);
        Self { shared, deadline, backoff, rng: settings.environment.rng() }
    }

    /// Waits before another attempt; the look-up's error where none may help.
    pub(super) async fn pause_after(&mut self, error: Error) -> Result<()> {
        if !error.is_retriable() {
            return Err(error);
        }
        if let Some(group) = &self.shared.settings.group_id
            && error.code().is_some_and(|code| is_moved(code.0))
        {
            let coordinator = self.shared.coordinator.load(Ordering::Relaxed);
            self.shared.cluster.forget_coordinator(CoordinatorKind::Group, group, coordinator);
        }
        self.shared.cluster.refresh();
        let next = time::now() + self.backoff.next(&mut self.rng);
        if next >= self.deadline {
            return Err(error);
        }
        tokio::time::sleep_until(next).await;
        Ok(())
    }
}

/// Where a record is that was looked up by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetAndTimestamp {
    /// Its offset.
    pub offset: i64,
    /// Its time, in milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The leader epoch it was written under, where known.
    pub leader_epoch: Option<i32>,
}

pub(super) fn all_found<'a>(
    api: &'static str,
    partitions: impl Iterator<Item = &'a TopicPartition>,
    found: &Found,
) -> Result<Map<TopicPartition, FoundOffset>> {
    let place = |key: &TopicPartition| match found.get(key) {
        Some(Ok(place)) => Ok((key.clone(), place.clone())),
        Some(Err(code)) => {
            Err(Error::from_code(api, *code).with_topic(Arc::clone(&key.topic)).with_partition(key.partition))
        }
        None => Err(Error::protocol("the answer left out a partition").with_api(api)),
    };
    partitions.map(place).collect()
}

fn offsets(places: Map<TopicPartition, FoundOffset>) -> BTreeMap<TopicPartition, i64> {
    places.into_iter().map(|(key, place)| (key, place.offset)).collect()
}

pub(super) fn check_time(key: &TopicPartition, time: i64) -> Result<()> {
    if time >= 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("{time} is no time to look for"))
        .with_topic(Arc::clone(&key.topic))
        .with_partition(key.partition)
        .with_hint("times are milliseconds since the Unix epoch"))
}
