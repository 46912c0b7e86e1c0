//! What groups have committed, how far that is behind the ends of partitions, and changing it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    At, KafkaAdmin, check_code,
    offsets::{LATEST, Outcomes, Settled, at, by_topic, read_rows},
    without,
};
use crate::{
    cluster::kafka_string,
    connection::api::{Api, wire},
    error::{
        ErrorCode, Result,
        code::{GROUP_ID_NOT_FOUND, UNKNOWN_MEMBER_ID},
    },
    record::{OffsetAndMetadata, TopicPartition, serialize_fields},
    time::Instant,
};

/// How far a group is behind the end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// The group's committed offset.
    pub committed: i64,
    /// The offset the next record of the partition will get.
    pub end: i64,
    /// Their difference, never negative. Transaction markers and compaction make it larger than the number of records.
    pub lag: i64,
}

impl Lag {
    fn of(committed: i64, end: i64) -> Self {
        Self { committed, end, lag: end.saturating_sub(committed).max(0) }
    }
}

serialize_fields! {
    OffsetAndMetadata { offset, leader_epoch, metadata }
    Lag { committed, end, lag }
}

impl KafkaAdmin {
    /// Every committed offset of a group. A group that never committed, or does not exist, has none.
    ///
    /// # Errors
    /// `GroupAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        self.committed(group, self.deadline()).await
    }

    /// How far a group is behind, for every partition it has committed; each has its own outcome, so that one topic that was
    /// deleted, or may not be read, does not hide the others.
    ///
    /// What it has never committed is not in it: a new group, or one that is stuck at its first record, has no lag here,
    /// and a name that no group has gives an empty map. Compare with [`latest_offsets`](Self::latest_offsets) of its
    /// topics to see those.
    ///
    /// # Errors
    /// As [`group_offsets`](Self::group_offsets); per partition as [`latest_offsets`](Self::latest_offsets).
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn group_lag(&self, group: &str) -> Result<BTreeMap<TopicPartition, Result<Lag>>> {
        let deadline = self.deadline();
        let committed = self.committed(group, deadline).await?;
        let ends = self.ends(committed.keys().cloned(), LATEST, deadline).await?;
        let lag = |(partition, end): (TopicPartition, Result<i64>)| {
            let committed = committed.get(&partition)?.offset;
            Some((partition, end.map(|end| Lag::of(committed, end))))
        };
        Ok(ends.into_iter().filter_map(lag).collect())
    }

    /// Makes a group without members begin at these offsets: each is that of the next record to read. An `i64`, or with text and
    /// leader epoch an [`OffsetAndMetadata`]. Each partition has its own outcome. A group that does not exist is made.
    ///
    /// ```no_run
    /// # async fn example(admin: dtkafka::KafkaAdmin) -> dtkafka::Result<()> {
    /// // "billing" is to read everything again that is still there.
    /// let partitions = admin.group_offsets("billing").await?.into_keys();
    /// for (partition, outcome) in admin.alter_group_offsets("billing", admin.earliest_offsets(partitions).await?).await? {
    ///     outcome?;
    ///     println!("{partition} is reset");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a negative offset or a text that is too long, before anything is
    /// sent. Per partition `UnknownMemberId` while the group has members, `TopicAuthorizationFailed` …; of none in particular
    /// `GroupAuthorizationFailed`, [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, any of the offsets may be changed.
    pub async fn alter_group_offsets<O: Into<OffsetAndMetadata>>(
        &self,
        group: &str,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<BTreeMap<TopicPartition, Result<()>>> {
        let mut left = BTreeMap::new();
        for (partition, offset) in offsets {
            let offset = offset.into();
            offset.check(&partition)?;
            left.insert(partition, offset);
        }
        self.change_offsets(group, left, commit_request, read_commit).await
    }

    /// Makes a group forget offsets that it has committed, so that `auto.offset.reset` decides where it begins. Each partition has its
    /// own outcome; one that was never committed is no error.
    ///
    /// # Errors
    /// Per partition `GroupSubscribedToTopic` while members of the group read its topic, `UnknownTopicOrPartition` for a topic that is
    /// gone; of none in particular `GroupIdNotFound`,
    /// `NonEmptyGroup` for a group that does not say what its members read, `GroupAuthorizationFailed`,
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause. `UnsupportedVersion` before Kafka 2.4 (KIP-496).
    ///
    /// # Cancel safety
    /// If dropped, any of the offsets may be forgotten.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, Result<()>>> {
        let left = partitions.into_iter().map(|partition| (partition, ())).collect();
        self.change_offsets(group, left, delete_request, read_delete).await
    }

    /// One request for all partitions that are left, at the coordinator.
    async fn change_offsets<R: Api, A: Sync + Send>(
        &self,
        group: &str,
        mut left: BTreeMap<TopicPartition, A>,
        request: fn(&str, &BTreeMap<TopicPartition, A>) -> R,
        read: fn(R::Response, BTreeSet<TopicPartition>) -> Result<Outcomes<()>>,
    ) -> Result<BTreeMap<TopicPartition, Result<()>>> {
        let mut settled = Settled::default();
        if left.is_empty() {
            return Ok(settled.done);
        }
        let ended = retry!(self, At::Coordinator(group), self.deadline(), |connection, until| {
            // Later versions of OffsetCommit name topics by their ids.
            let answer = connection.call_up_to(9, request(group, &left), until).await;
            let outcomes = read(settled.possibly.note(answer)?, left.keys().cloned().collect())?;
            settled.sort_out(&mut left, outcomes)
        });
        settled.end(left, ended, |error, possibly| possibly.mark(error, GROUP_ID_NOT_FOUND))
    }

    async fn committed(
        &self,
        group: &str,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        retry!(self, At::Coordinator(group), deadline, |connection, until| {
            let version = connection.version::<wire::OffsetFetchRequest>();
            // KIP-709: from version 8 on, one request asks about several groups. No topics means all of them.
            let request = if version.is_some_and(|version| version >= 8) {
                let asked = wire::offset_fetch_request::OffsetFetchRequestGroup {
                    group_id: kafka_string(group),
                    topics: None,
                    ..Default::default()
                };
                wire::OffsetFetchRequest { groups: vec![asked], ..Default::default() }
            } else {
                wire::OffsetFetchRequest { group_id: kafka_string(group), topics: None, ..Default::default() }
            };
            // Later versions name topics by their ids.
            committed_offsets(group, connection.call_up_to(9, request, until).await?)
        })
    }
}

/// A commit of nobody's, as brokers take it for a group without members.
fn commit_request(
    group: &str,
    offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
) -> wire::OffsetCommitRequest {
    use wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let partition = |partition_index, offset: &OffsetAndMetadata| OffsetCommitRequestPartition {
        partition_index,
        committed_offset: offset.offset,
        committed_leader_epoch: offset.leader_epoch.unwrap_or(-1),
        committed_metadata: Some(kafka_string(&offset.metadata)),
    };
    let topic = |(name, partitions): (&str, _)| OffsetCommitRequestTopic {
        name: kafka_string(name),
        partitions,
        ..Default::default()
    };
    wire::OffsetCommitRequest {
        group_id: kafka_string(group),
        topics: by_topic(offsets, partition).into_iter().map(topic).collect(),
        ..Default::default()
    }
}

fn read_commit(answer: wire::OffsetCommitResponse, asked: BTreeSet<TopicPartition>) -> Result<Outcomes<()>> {
    let mut outcomes = read_rows(wire::OffsetCommitRequest::NAME, rows!(answer.topics, |p| ()), asked);
    for (_, outcome) in &mut outcomes {
        if let Err(error) = outcome
            && error.code() == Some(ErrorCode(UNKNOWN_MEMBER_ID))
        {
            *error = error.clone().with_hint("a group's offsets can be changed only while it has no members");
        }
    }
    Ok(outcomes)
}

fn delete_request(group: &str, partitions: &BTreeMap<TopicPartition, ()>) -> wire::OffsetDeleteRequest {
    use wire::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
    let partition = |partition_index, ()| OffsetDeleteRequestPartition { partition_index };
    let topic =
        |(name, partitions): (&str, _)| OffsetDeleteRequestTopic { name: kafka_string(name), partitions };
    let partitions = partitions.keys().map(|key| (key, ()));
    wire::OffsetDeleteRequest {
        group_id: kafka_string(group),
        topics: by_topic(partitions, partition).into_iter().map(topic).collect(),
    }
}

fn read_delete(answer: wire::OffsetDeleteResponse, asked: BTreeSet<TopicPartition>) -> Result<Outcomes<()>> {
    check_code(wire::OffsetDeleteRequest::NAME, answer.error_code, None)?;
    Ok(read_rows(wire::OffsetDeleteRequest::NAME, rows!(answer.topics, |p| ()), asked))
}

/// Both layouts of an OffsetFetch answer: one group (up to version 7), or a list with one group in it.
fn committed_offsets(
    group: &str,
    answer: wire::OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
    let (is_listed, mut groups) = (!answer.groups.is_empty(), answer.groups.into_iter());
    let (code, rows) = match groups.find(|found| found.group_id.as_str() == group) {
        None if is_listed => return Err(without("group")),
        Some(group) => (
            group.error_code,
            rows!(group.topics, |p| (p.committed_offset, p.committed_leader_epoch, p.metadata)),
        ),
        None => (
            answer.error_code,
            rows!(answer.topics, |p| (p.committed_offset, p.committed_leader_epoch, p.metadata)),
        ),
    };
    check_code("OffsetFetch", code, None)?;
    let mut found = BTreeMap::new();
    for (key, code, (offset, epoch, metadata)) in rows {
        check_code("OffsetFetch", code, None).map_err(|error| at(error, &key))?;
        // -1: nothing was committed.
        if offset >= 0 {
            let leader_epoch = (epoch >= 0).then_some(epoch);
            let metadata = metadata.map(|text| text.to_string()).unwrap_or_default();
            let found_offset = OffsetAndMetadata::new(offset).with_metadata(metadata);
            found.insert(key, OffsetAndMetadata { leader_epoch, ..found_offset });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use wire::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    };

    use super::*;

    #[test]
    fn both_layouts_of_committed_offsets_are_read_and_what_was_never_committed_is_left_out() {
        let name = || kafka_string("orders");
        let old = |partition, offset| OffsetFetchResponsePartition {
            partition_index: partition,
            committed_offset: offset,
            committed_leader_epoch: 4,
            ..Default::default()
        };
        let topic = OffsetFetchResponseTopic { name: name(), partitions: vec![old(0, 7), old(1, -1)] };
        let old =
            committed_offsets("", wire::OffsetFetchResponse { topics: vec![topic], ..Default::default() })
                .unwrap();
        let new = |partition, offset| OffsetFetchResponsePartitions {
            partition_index: partition,
            committed_offset: offset,
            committed_leader_epoch: 4,
            ..Default::default()
        };
        let topic = OffsetFetchResponseTopics {
            name: name(),
            partitions: vec![new(0, 7), new(1, -1)],
            ..Default::default()
        };
        let group = OffsetFetchResponseGroup { topics: vec![topic], ..Default::default() };
        let new =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap();
        assert_eq!(old, new);
        let offset = OffsetAndMetadata::new(7).with_leader_epoch(4);
        assert!(new.into_iter().eq([(TopicPartition::new("orders", 0), offset)]));
    }

    #[test]
    fn an_error_for_the_group_or_for_a_partition_is_an_error() {
        let group = OffsetFetchResponseGroup { error_code: 16, ..Default::default() };
        let error =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap_err();
        assert!(error.is_retriable(), "{error}");
        let row = OffsetFetchResponsePartitions { partition_index: 3, error_code: 29, ..Default::default() };
        let topic = OffsetFetchResponseTopics { partitions: vec![row], ..Default::default() };
        let group = OffsetFetchResponseGroup { topics: vec![topic], ..Default::default() };
        let error =
            committed_offsets("", wire::OffsetFetchResponse { groups: vec![group], ..Default::default() })
                .unwrap_err();
        assert_eq!(error.partition(), Some(3));
    }

    #[test]
    fn only_the_group_that_was_asked_about_counts() {
        let group = |name: &str, error_code| OffsetFetchResponseGroup {
            group_id: kafka_string(name),
            error_code,
            ..Default::default()
        };
        let read =
            |groups| committed_offsets("g", wire::OffsetFetchResponse { groups, ..Default::default() });
        assert!(read(vec![group("g", 0), group("other", 30)]).is_ok());
        assert!(read(vec![group("other", 0), group("g", 30)]).is_err());
        assert!(read(vec![group("other", 0)]).unwrap_err().to_string().contains("without the group"));
    }

    #[test]
    fn lag_is_never_negative_whatever_a_broker_says_of_the_end() {
        for (committed, end, expected) in
            [(5, 9, 4), (9, 5, 0), (5, i64::MIN, 0), (0, i64::MAX, i64::MAX), (i64::MAX, -1, 0)]
        {
            assert_eq!(Lag::of(committed, end).lag, expected, "{committed} of {end}");
        }
    }
}
