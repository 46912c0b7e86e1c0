//! An answer to a fetch being taken in: its batches into the queues, what it says of leaders and positions to the consumer. Pure.
//!
//! Each partition's part is compared with what was asked: one that was released or moved meanwhile is passed over. Nothing is
//! decoded here but a batch's header, and nothing that is damaged is passed over for what its header says.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use tracing::warn;

use super::{FetchSettings, code, is_passing};
use crate::{
    batch::{Decompressor, Incomplete, RawBatch, split},
    cluster::{Endpoint, LeaderHint, TopicId},
    connection::api::wire,
    consumer::{
        buffer::Aborted,
        partitions::{Checked, EpochEnd, Partition, Partitions, Replica, Truncation},
        session::{Names, Wanted},
    },
    error::Error,
    record::TopicPartition,
    time::Instant,
};

/// What a fetch answer asks the rest of the consumer to do.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Leaders have moved.
    pub(crate) refresh_metadata: bool,
    /// Positions outside the log: the reset policy decides.
    pub(crate) out_of_range: Vec<(TopicPartition, i64)>,
    /// Logs that were cut before the position.
    pub(crate) truncated: Vec<(TopicPartition, Truncation)>,
    /// Who leads now, as who does not has said (KIP-951), and where those are.
    pub(crate) hints: Vec<LeaderHint>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// For the user.
    pub(crate) errors: Vec<Error>,
    /// What was refused for now.
    pub(super) refused: BTreeSet<TopicPartition>,
    /// There is something to hand out.
    pub(crate) buffered: bool,
}

/// What an answer is the answer to.
pub(super) struct Requested<'a> {
    pub(super) names: &'a Names,
    pub(super) asked: &'a dyn Fn(&TopicPartition) -> Option<Wanted>,
}

/// One answer being taken in.
pub(super) struct Taking<'a> {
    pub(super) now: Instant,
    pub(super) broker: i32,
    pub(super) settings: &'a FetchSettings,
    pub(super) decompressor: &'a Decompressor,
}

impl Taking<'_> {
    /// False if something in it was not asked for, which is passed over.
    pub(super) fn take(
        &self,
        answer: wire::FetchResponse,
        asked: &Requested<'_>,
        partitions: &mut Partitions,
        effects: &mut Effects,
    ) -> bool {
        let mut is_ours = true;
        for topic in answer.responses {
            let id = topic.topic_id.0;
            let Some(name) = asked.names.topic(id, &topic.topic) else {
                is_ours = false;
                continue;
            };
            for data in topic.partitions {
                let key = TopicPartition { topic: Arc::clone(&name), partition: data.partition_index };
                let Some(wanted) = (asked.asked)(&key) else {
                    is_ours = false;
                    continue;
                };
                self.on_partition(&key, wanted, data, id != TopicId::default(), partitions, effects);
            }
        }
        if !effects.hints.is_empty() {
            effects.endpoints.extend(answer.node_endpoints.into_iter().map(|endpoint| Endpoint {
                id: endpoint.node_id,
                host: endpoint.host.to_string(),
                port: endpoint.port,
                rack: endpoint.rack.map(|rack| rack.to_string()),
            }));
        }
        is_ours
    }

    /// Takes in what an answer says of one partition: its records, or why there are none.
    fn on_partition(
        &self,
        key: &TopicPartition,
        asked: Wanted,
        data: wire::fetch_response::PartitionData,
        by_id: bool,
        partitions: &mut Partitions,
        effects: &mut Effects,
    ) {
        let now = self.now;
        let Some(partition) = partitions.get_mut(key) else { return };
        let Some(fetch) = partition.position().map(|position| position.fetch) else { return };
        if (partition.life(), fetch) != (asked.life, asked.offset) {
            return; // it was released or moved while the answer was on its way
        }
        let is_leader = partition.leader.is_some_and(|(leader, _)| leader == self.broker);
        let is_diverging = data.error_code == 0 && data.diverging_epoch.end_offset >= 0;
        if is_leader
            && (is_diverging || data.error_code == code::OFFSET_OUT_OF_RANGE)
            && partition.note_outside(by_id)
        {
            partition.retry_at = Some(now + self.settings.retry_backoff);
            effects.refresh_metadata = true;
            return;
        }
        if data.error_code != 0 {
            let leader = partition.leader.map(|(leader, _)| leader);
            let asked_replica = self.on_refused(key, asked, &data, partition, effects);
            if let Some(leader) = leader.filter(|_| asked_replica) {
                // A replica that lags will have the offset soon; others are left alone for longer.
                let pause = match data.error_code {
                    code::OFFSET_OUT_OF_RANGE => self.settings.retry_backoff_max,
                    _ => self.settings.replica_max_age,
                };
                partitions.keep_to_leader(leader, now + pause);
            }
            return;
        }
        if is_diverging {
            // KIP-320, from version 12 on: the broker has compared the epochs itself.
            let end = EpochEnd { epoch: data.diverging_epoch.epoch, offset: data.diverging_epoch.end_offset };
            return self.on_diverged(key, end, partitions, effects);
        }
        let added = self.on_served(key, asked.offset, data, by_id, partition, effects);
        if added > 0 {
            effects.buffered = true;
            partitions.add_buffered(key, added);
        }
    }

    /// Takes in the records of a partition. Returns how many bytes are buffered more.
    fn on_served(
        &self,
        key: &TopicPartition,
        asked: i64,
        data: wire::fetch_response::PartitionData,
        by_id: bool,
        partition: &mut Partition,
        effects: &mut Effects,
    ) -> usize {
        let now = self.now;
        let is_leader = partition.leader.is_some_and(|(leader, _)| leader == self.broker);
        partition.resets = 0;
        partition.note_served(now, by_id);
        if data.preferred_read_replica >= 0 && is_leader && data.preferred_read_replica != self.broker {
            let until = now + self.settings.replica_max_age;
            partition.replica = Some(Replica { id: data.preferred_read_replica, until });
        }
        partition.end = Some(match self.settings.read_committed && data.last_stable_offset >= 0 {
            true => data.last_stable_offset,
            false => data.high_watermark,
        });
        let Some(records) = data.records.filter(|records| !records.is_empty()) else { return 0 };
        let aborted = self.settings.read_committed.then(|| {
            let transactions = data.aborted_transactions.unwrap_or_default();
            Aborted::new(transactions.into_iter().map(|aborted| (aborted.first_offset, aborted.producer_id)))
        });
        let before = partition.queue.bytes();
        self.take_batches(key, asked, records, aborted, partition, effects);
        partition.queue.bytes() - before
    }

    /// Queues the batches that came for the offset `asked`, and moves the position behind them. `aborted`: the
    /// transactions that readers of committed records must not see.
    fn take_batches(
        &self,
        key: &TopicPartition,
        asked: i64,
        records: Bytes,
        mut aborted: Option<Aborted>,
        partition: &mut Partition,
        effects: &mut Effects,
    ) {
        let mut fetch = asked;
        let mut batches = split(records);
        let mut is_damaged = false;
        let mut epoch = -1;
        for batch in &mut batches {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    is_damaged = true;
                    if !partition.queue.is_empty() {
                        break;
                    }
                    let error = error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition);
                    effects.errors.push(error);
                    partition.retry_at = Some(self.now + self.settings.retry_backoff_max);
                    break;
                }
            };
            if batch.last_offset < fetch {
                // A batch before the position is dropped, unless the next one shows that it reaches further and its own
                // header is damaged.
                if let Some(next) = batch.next_offset
                    && next > fetch
                    && !self.believes(&batch)
                {
                    fetch = next;
                    partition.queue.push(batch, false);
                }
                continue;
            }
            let skip = match &mut aborted {
                Some(aborted) => aborted.skips(&batch, self.decompressor),
                None => batch.is_control,
            };
            // A damaged batch is not passed over because of what its header says: it is queued, and whoever reads it gets
            // the error.
            let skip = skip && self.believes(&batch);
            fetch = batch.last_offset.saturating_add(1).min(batch.next_offset.unwrap_or(i64::MAX)).max(fetch);
            epoch = batch.leader_epoch;
            partition.queue.push(batch, skip);
        }
        let makes_no_progress = fetch == asked && !is_damaged;
        // What was taken in before it is handed out first. Then it is asked for again, and reported.
        let is_stuck = (is_damaged || makes_no_progress) && !partition.queue.is_empty();
        partition.stuck_at = is_stuck.then_some(fetch);
        if makes_no_progress && !is_stuck {
            // Asking again at once would bring the same answer for ever.
            effects.errors.push(self.no_progress(key, fetch, batches.incomplete()));
            partition.retry_at = Some(self.now + self.settings.retry_backoff_max);
        }
        if let Some(position) = partition.position_mut() {
            if fetch != asked {
                position.fetch_epoch = epoch;
            }
            position.fetch = fetch;
        }
    }

    /// Whether a batch may be passed over for what its header says. Others are checked when they are read.
    fn believes(&self, batch: &RawBatch) -> bool {
        !self.settings.check_crcs || batch.is_intact()
    }

    /// An answer with bytes, but without any record from the offset asked for on. By KIP-74 a broker sends the first batch
    /// whole, however large it is.
    fn no_progress(&self, key: &TopicPartition, offset: i64, incomplete: Option<Incomplete>) -> Error {
        let (text, hint) = match incomplete {
            Some(Incomplete { needed, got, .. }) => {
                let whole = needed.map_or(String::new(), |needed| format!(", which claims {needed} bytes"));
                let text = format!("the broker sent {got} bytes, only the start of a record batch{whole}");
                let hint = format!(
                    "if the batch is really that large, raise max.partition.fetch.bytes ({} now) and fetch.max.bytes above \
                     it; else the log is damaged here: seek past the batch",
                    self.settings.max_partition_bytes
                );
                (text, hint)
            }
            None => (
                "the broker answered with batches that all lie before the offset asked for".to_owned(),
                "seek past the offset to go on".to_owned(),
            ),
        };
        Error::protocol(text)
            .with_api("Fetch")
            .with_topic(Arc::clone(&key.topic))
            .with_partition(key.partition)
            .with_offset(offset)
            .with_hint(hint)
    }

    /// The broker's log differs from what was fetched.
    fn on_diverged(
        &self,
        key: &TopicPartition,
        end: EpochEnd,
        partitions: &mut Partitions,
        effects: &mut Effects,
    ) {
        match partitions.handle_epoch_end(key, end) {
            Checked::Truncated(truncation) => effects.truncated.push((key.clone(), truncation)),
            // Whatever the broker means, a pause keeps this from becoming a busy loop.
            checked @ (Checked::Same | Checked::Refetched) => {
                if checked == Checked::Same {
                    partitions.forget_epochs(key);
                }
                if let Some(partition) = partitions.get_mut(key) {
                    partition.retry_at = Some(self.now + self.settings.retry_backoff);
                }
            }
        }
    }

    /// True if it was asked of a replica that is not the leader.
    fn on_refused(
        &self,
        key: &TopicPartition,
        asked: Wanted,
        data: &wire::fetch_response::PartitionData,
        partition: &mut Partition,
        effects: &mut Effects,
    ) -> bool {
        let leader = &data.current_leader;
        if leader.leader_id >= 0 && leader.leader_epoch > asked.leader_epoch {
            effects.hints.push(LeaderHint {
                partition: key.clone(),
                topic_id: asked.topic_id,
                leader: leader.leader_id,
                epoch: leader.leader_epoch,
            });
        }
        // Nothing is reset while there is something left to hand out, and the broker is not asked in vain meanwhile.
        partition.retry_at = Some(self.now + self.settings.retry_backoff);
        if partition.replica.take_if(|replica| replica.id == self.broker).is_some() {
            // KIP-392: the leader can serve what the replica cannot. It may name the same replica again, hence the pause.
            effects.refresh_metadata |= data.error_code != code::OFFSET_OUT_OF_RANGE;
            return true;
        }
        // From a broker that does not lead any more, or for a position that is being checked, the code says nothing.
        let is_source =
            partition.leader == Some((self.broker, asked.leader_epoch)) && !partition.is_unchecked;
        let is_believed = partition.queue.is_empty() && is_source;
        if is_source && asked.topic_id == partition.topic_id {
            partition.note_refused(data.error_code);
        }
        let known = partition.trouble.as_ref().and_then(Error::code);
        let told = Error::from_code("Fetch", data.error_code)
            .with_topic(Arc::clone(&key.topic))
            .with_partition(key.partition)
            .with_offset(asked.offset);
        if data.error_code != code::OFFSET_OUT_OF_RANGE {
            effects.refused.insert(key.clone());
            partition.trouble = Some(told.clone());
        }
        let is_news = known != told.code();
        self.on_partition_error(key, told, is_news, asked.offset, is_believed, effects);
        false
    }

    fn on_partition_error(
        &self,
        key: &TopicPartition,
        told: Error,
        is_news: bool,
        offset: i64,
        is_believed: bool,
        effects: &mut Effects,
    ) {
        match told.code().map_or(0, |code| code.0) {
            code::OFFSET_OUT_OF_RANGE => {
                if is_believed {
                    effects.out_of_range.push((key.clone(), offset));
                }
            }
            code::TOPIC_AUTHORIZATION_FAILED => {
                effects.errors.push(told.with_hint("grant the user Read on the topic"));
            }
            code::CORRUPT_MESSAGE => {
                effects
                    .errors
                    .push(told.with_hint("the broker cannot read its own log here: seek past the offset"));
            }
            code::UNKNOWN_TOPIC_OR_PARTITION
            | code::UNKNOWN_TOPIC_ID
            | code::INCONSISTENT_TOPIC_ID
            | code::FENCED_LEADER_EPOCH
            | code::UNKNOWN_LEADER_EPOCH => {
                effects.refresh_metadata = true;
            }
            _ if is_passing(&told) => {
                if is_news {
                    warn!(error = %told, "a fetch is refused for now; the same again is not logged");
                }
                effects.refresh_metadata = true;
            }
            _ => effects.errors.push(told),
        }
    }
}
