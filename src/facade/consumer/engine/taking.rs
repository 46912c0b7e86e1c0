//! Takes records from the client and puts them into their lanes. Records that another group has put into a retry topic
//! are acknowledged here and reach no lane.

use std::time::Duration;

use super::Engine;
use crate::{
    consumer::{PartitionRecords, RecordRef, acknowledge::Life},
    error::Result,
    facade::{consumer::load::Chunk, letters, routes::Route},
    record::{ConsumerRecord, TopicPartition},
    time,
};

impl Engine {
    /// The next records, put into their lanes.
    pub(in crate::facade::consumer) async fn take(&mut self, timeout: Duration) -> Result<()> {
        let until = time::after(timeout);
        // What was left in lanes may be another member's by now.
        self.follow_group();
        let taken = loop {
            self.follow_user();
            // Waits no longer than until the first of the lanes that wait becomes due.
            let until = self.lanes.poll_timeout().map_or(until, |due| due.min(until));
            let left = until.saturating_duration_since(time::now());
            tokio::select! {
                biased;
                // What waits in lanes is handed back at once, or a rebalance would wait for it.
                Ok(()) = self.client.changed(), if !self.lanes.is_empty() => self.follow_group(),
                () = self.shared.steered() => {}
                taken = self.client.take(self.plan.take, left) => break taken,
            }
        };
        self.put(taken)
    }

    pub(super) fn put(&mut self, taken: Result<Vec<PartitionRecords>>) -> Result<()> {
        self.alive_at = time::after(self.plan.keep_alive);
        for records in taken.or_else(|error| self.on_damage(error))? {
            let (partition, life) = (records.partition().clone(), records.life());
            let route = self.plan.routes.of(&self.plan.topics, &partition.topic);
            for chunk in self.chunks(&route, &partition, life, records) {
                if let Err(refused) = self.lanes.push(time::now(), &partition, life, chunk, route.gather()) {
                    self.hand_back(&partition, life, [refused]);
                }
            }
        }
        self.follow_pauses();
        Ok(())
    }

    /// Records as their lanes take them: those of a retry topic one by one, as each waits for its own time. Those that
    /// another group has put there are acknowledged.
    fn chunks(
        &mut self,
        route: &Route,
        partition: &TopicPartition,
        life: Life,
        records: PartitionRecords,
    ) -> Vec<Chunk> {
        let other = |record: &RecordRef<'_>| letters::other_group(record.headers(), &self.plan.group);
        if route.level == 0
            && !(route.may_hold_others && records.iter().any(|record| other(&record).is_some()))
        {
            return vec![Chunk::Polled(records)];
        }
        let (now, now_ms) = (time::now(), self.context.environment.wall_clock_ms());
        let due = |record: &ConsumerRecord| {
            time::later(now, route.left_to_wait(letters::waits_until(record), now_ms))
        };
        let (mut own, mut others, mut group) = (Vec::new(), Vec::new(), None);
        // They may wait for long, and must not keep the whole answer that they came in.
        for record in records.iter() {
            if let Some(other) = other(&record) {
                others.push(record.offset());
                group = Some(other);
                continue;
            }
            let record = Box::new(record.to_copied());
            let due = (route.level > 0).then(|| due(&record));
            own.push(Chunk::One(record, due));
        }
        if let Some(group) = group {
            let records = others.len();
            match self.passed_over.insert(partition.clone()) {
                true => tracing::warn!(
                    %partition, records, %group,
                    "records that another group has put into the retry topic are passed over, and left to that group"
                ),
                false => {
                    tracing::debug!(%partition, records, %group, "records of another group are passed over")
                }
            }
            self.client.done_all(partition, life, &others);
            self.lanes.pass_over(partition, life, others.len());
        }
        own
    }
}
