//! The model's brokers: what the core asks for arrives, is lost or refused, and is answered in its time.

use std::{collections::BTreeSet, time::Duration};

use bytes::BytesMut;

use super::{CALM, Event, FAULTS_LAST, PARTITIONS, World, seconds};
use crate::{
    batch::{BatchBuilder, Compressor, Stamp},
    cluster::{Metadata, kafka_string},
    config::settings::Compression,
    connection::api::wire,
    consumer::{
        core::Action,
        fetch::FetchAction,
        lookups::{Found, FoundOffset, Lookup},
        partitions::ResetTo,
    },
    error::{Error, code},
    group::Request,
};

impl World {
    pub(super) fn start(&mut self, action: Action) {
        let delay = self.soon();
        match action {
            Action::RequireTopics { topics, .. } => self.core.handle_topics(self.now, &topics, Ok(())),
            Action::RefreshMetadata | Action::Follow(_) | Action::ForgetCoordinator => {}
            Action::Group { token, request, deadline } => {
                if let Request::Join { claim, .. } = &request {
                    let kept: BTreeSet<i32> = match self.cooperative {
                        true => claim.iter().map(|key| key.partition).collect(),
                        false => BTreeSet::new(),
                    };
                    self.given_up = (0..PARTITIONS).filter(|number| !kept.contains(number)).collect();
                }
                match self.chance(25) {
                    true => {
                        self.after((deadline - self.now).min(delay), Event::Group(token, Err(Self::gone())))
                    }
                    false => self.after(delay, Event::GroupArrives(token, request)),
                }
            }
            Action::Plan { .. } => panic!("it never leads"),
            Action::Commit(commit) => match self.chance(15) {
                true => self.after(delay, Event::Commit(commit.token, Err(Self::gone()))),
                false => self.after(delay, Event::CommitArrives(commit)),
            },
            Action::FindCommitted { partitions, .. } => self.after(delay, Event::Committed(partitions)),
            Action::ListOffsets { lookups, .. } => self.after(delay, Event::Listed(lookups)),
            Action::Fetch(fetch) => self.fetch(&fetch),
            Action::CheckEpochs { .. } | Action::LearnLeaders(..) => panic!("no leader ever moves"),
            Action::FollowMatching(..) | Action::Identify(..) => panic!("topics are named"),
        }
    }

    pub(super) fn fetch(&mut self, fetch: &FetchAction) {
        let mut any = false;
        let rows = fetch.request.partitions.iter().map(|(key, wanted)| {
            let end = self.ends[key.partition as usize];
            let count = (end - wanted.offset).clamp(0, 7);
            any |= count > 0;
            wire::fetch_response::PartitionData {
                partition_index: key.partition,
                high_watermark: end,
                last_stable_offset: end,
                records: (count > 0).then(|| batch(wanted.offset, count).into()),
                ..Default::default()
            }
        });
        let topic = wire::fetch_response::FetchableTopicResponse {
            topic: kafka_string("t"),
            partitions: rows.collect(),
            ..Default::default()
        };
        let answer = wire::FetchResponse { responses: vec![topic], ..Default::default() };
        let answer = if self.chance(30) { Err(Self::gone()) } else { Ok(answer) };
        let delay = if any { self.soon() } else { fetch.max_wait };
        self.after(delay, Event::Fetched(fetch.broker, fetch.token, answer));
    }

    pub(super) fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Group(token, answer) => self.core.handle_group(now, token, answer),
            Event::GroupArrives(token, request) => self.coordinate(token, request),
            Event::CommitArrives(commit) => self.commit_arrives(&commit),
            Event::Commit(token, answer) => self.core.handle_commit(now, token, answer),
            Event::Committed(asked) => {
                let found = match self.chance(10) {
                    true => Err(Error::from_code("OffsetFetch", code::NOT_COORDINATOR)),
                    false => Ok(asked
                        .iter()
                        .map(|(key, _)| (key.clone(), Ok(place(self.committed_of(key)))))
                        .collect()),
                };
                self.core.handle_found_committed(now, &asked, found);
            }
            Event::Listed(asked) => {
                let mut found = Found::new();
                for Lookup { partition, to, .. } in &asked {
                    let end = self.ends[partition.partition as usize];
                    found.insert(partition.clone(), Ok(place(if *to == ResetTo::Latest { end } else { 0 })));
                    if *to == ResetTo::Latest {
                        // The user has asked for it.
                        self.handled[partition.partition as usize].extend(0..end);
                    }
                }
                self.core.handle_listed(now, &asked, Ok(found));
            }
            Event::Fetched(broker, token, answer) => {
                self.core.handle_fetched(now, broker, token, answer, &self.decompressor);
            }
            Event::User => self.user(),
            Event::Group2 => self.others(),
            Event::Produce => {
                for end in &mut self.ends {
                    *end += self.rng.below(4) as i64;
                }
                if now + seconds(20) < self.start + FAULTS_LAST + CALM {
                    self.after(Duration::from_millis(900), Event::Produce);
                }
            }
        }
    }
}

pub(super) fn batch(base_offset: i64, count: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BytesMut::new());
    for _ in 0..count {
        builder.append(1, None, Some(b"v"), &[]);
    }
    let compressor = Compressor::new(Compression::None, None).unwrap();
    let mut bytes = builder.finish(Stamp::NONE, &compressor).unwrap().bytes.to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes
}

pub(super) fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.version = 1;
    let partition = |_| crate::cluster::metadata::Partition {
        leader: Some(1),
        leader_epoch: 0,
        replicas: vec![1],
        in_sync_replicas: vec![1],
    };
    let partitions = (0..PARTITIONS).map(partition).collect();
    metadata.topics.insert("t".into(), crate::cluster::metadata::Topic { partitions, ..Default::default() });
    metadata
}

pub(super) fn place(offset: i64) -> FoundOffset {
    FoundOffset { offset, leader_epoch: -1, timestamp: -1, metadata: String::new(), by_id: false }
}
