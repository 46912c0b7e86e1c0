//! Records acknowledged one by one: for a dispatcher that works on many records at once and knows itself which are done.
//! A poll acknowledges nothing here; a revocation waits for what is outstanding in its partitions.
//!
//! Lives tell what belongs together: an acknowledgment of an earlier life is refused, and never counts for a later one.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    KafkaConsumer,
    listener::Listening,
    partitions::{Phase, Position},
    records::PartitionRecords,
};
pub(crate) use super::{
    core::{AtWork, Change},
    ledger::Life,
    lookups::FromStart,
};
use crate::{
    cluster::{Cluster, UNKNOWN_TOPIC_OR_PARTITION},
    error::{Error, Result},
    record::TopicPartition,
    time,
};

impl KafkaConsumer {
    /// Has records acknowledged one by one from now on, by [`done`](Self::done), and not by the next poll. To be called
    /// once, before the first poll. Automatic commits commit the frontier: by interval, before a revocation, at the close.
    pub(crate) fn acknowledge_each(&self) {
        self.shared.lock().partitions.acknowledge_each();
    }

    /// Takes at most `max` records. To the group it is a [`poll`](Self::poll), but it does not acknowledge the records
    /// before it.
    ///
    /// # Cancel safety
    /// A dropped call has handed out nothing.
    pub(crate) async fn take(&self, max: usize, timeout: Duration) -> Result<Vec<PartitionRecords>> {
        let records = self.poll_up_to(max, timeout).await?;
        let core = self.shared.lock();
        let is_live = |records: &PartitionRecords| {
            core.partitions
                .get(records.partition())
                .is_some_and(|partition| partition.life() == records.life())
        };
        Ok(records.into_iter().map(|(_, records)| records).filter(is_live).collect())
    }

    /// Proof of life: the poll interval begins again. Hands out nothing, says nothing of what is done, joins nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) after a close.
    pub(crate) fn keep_alive(&self) -> Result<()> {
        self.shared.lock().handle_alive(time::now())
    }

    /// Its view of the cluster, with its connections.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    /// These topics are read from their start where nothing was committed, whatever `auto.offset.reset` says.
    pub(crate) fn read_from_start(&self, topics: FromStart) {
        self.shared.lock().set_from_start(topics);
    }

    /// A record was written to this topic. If the topic is subscribed to and not known yet, it is looked for now, and not
    /// after `metadata.max.age.ms`.
    pub(crate) fn expect_topic(&self, topic: &Arc<str>) {
        self.shared.cluster.expect_topic(topic);
    }

    /// Says whether somebody works on what was taken. While that is so, and something of it is outstanding, the poll
    /// interval does not run out, whether or not the work yields.
    pub(crate) fn set_at_work(&self, at_work: Option<AtWork>) {
        self.shared.lock().set_at_work(time::now(), at_work);
    }

    /// A record is done. False if the life it was handed out in is over.
    #[cfg(test)]
    pub(crate) fn done(&self, partition: &TopicPartition, life: Life, offset: i64) -> bool {
        self.done_all(partition, life, &[offset]) == 1
    }

    /// Many records of one life are done. How many of them count: none, if that life is over.
    pub(crate) fn done_all(&self, partition: &TopicPartition, life: Life, offsets: &[i64]) -> usize {
        let mut core = self.shared.lock();
        let counted = core.handle_done(partition, life, offsets);
        let is_awaited = core.is_revoking();
        drop(core);
        if is_awaited {
            self.shared.wake.notify_one();
        }
        counted
    }

    /// Records come back unhandled: nobody works on them, and the frontier stays before them in this life. How many were out.
    pub(crate) fn hand_back_all(&self, partition: &TopicPartition, life: Life, offsets: &[i64]) -> usize {
        let mut core = self.shared.lock();
        let were_out =
            offsets.iter().filter(|offset| core.partitions.hand_back(partition, life, **offset)).count();
        let is_awaited = core.is_revoking();
        drop(core);
        if is_awaited {
            self.shared.wake.notify_one();
        }
        were_out
    }

    /// Hands out again from the first record that is not done, in a new life. Nothing to do if the life is over.
    pub(crate) fn rewind(&self, partition: &TopicPartition, life: Life) -> Result<()> {
        self.change(|core, _| core.rewind(partition, life))
    }

    /// Hands out again from the record `first` of this life, as long as the assignment goes on; if the log was cut since,
    /// from there if that is earlier. Does nothing if the partition was lost.
    pub(crate) fn hand_out_again(&self, partition: &TopicPartition, life: Life, first: i64) -> Result<()> {
        self.change(|core, _| match core.partitions.assigned_since(partition, life) {
            Some(known) => {
                let position = known.position().filter(|_| known.life() != life);
                let first = position.map_or(first, |position| position.next.min(first));
                core.partitions.forget_decided_beyond(partition, first);
                core.seek(partition, Phase::Fetching(Position::at(first)))
            }
            None => Ok(()),
        })
    }

    /// Whether the assignment under which this life began goes on.
    pub(crate) fn is_assigned_since(&self, partition: &TopicPartition, life: Life) -> bool {
        self.shared.lock().partitions.assigned_since(partition, life).is_some()
    }

    /// Whether records before `next`, which were handed out in this life, come again or were replaced: the log was cut before it.
    pub(crate) fn is_cut(&self, partition: &TopicPartition, life: Life, next: i64) -> bool {
        let core = self.shared.lock();
        let known = core.partitions.assigned_since(partition, life).filter(|known| known.life() != life);
        known.and_then(|known| known.position()).is_some_and(|position| position.next < next)
    }

    /// The places where the reset policy had partitions begin or go on since the last call, with the lives that began
    /// there.
    pub(crate) fn take_decided(&self) -> Vec<(TopicPartition, Life, i64)> {
        self.shared.lock().partitions.take_decided()
    }

    /// Whether [`take_decided`](Self::take_decided) has something.
    pub(crate) fn has_decided(&self) -> bool {
        self.shared.lock().partitions.has_decided()
    }

    /// Records that were taken and are neither done nor handed back.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.lock().partitions.outstanding()
    }

    /// In how many answers and for how long brokers have held the consumer back (KIP-219).
    pub(crate) fn throttled(&self) -> (u64, std::time::Duration) {
        self.shared.cluster.pauses()
    }

    /// The bytes of the batch that a poll could not read, for which it ended with this error, and the present life of its
    /// partition. `None` if the partition is not assigned, or if that batch does not come next: a later poll will meet it
    /// again.
    ///
    /// # Errors
    /// This one, if nobody can tell where to go on behind the batch.
    pub(crate) fn damaged(&self, partition: &TopicPartition, error: &Error) -> Result<Option<(Life, Bytes)>> {
        let core = self.shared.lock();
        let Some(partition) = core.partitions.get(partition) else { return Ok(None) };
        Ok(partition.damaged(error)?.map(|bytes| (partition.life(), bytes)))
    }

    /// Goes on behind what cannot be read, in a new life. False, and nothing changes, if this life is over or not all is done
    /// that was handed out in it: going on says that everything before is.
    pub(crate) fn pass_over(&self, partition: &TopicPartition, life: Life, next: i64) -> bool {
        let passed = self.change(|core, _| {
            let is_done = core.partitions.get(partition).is_some_and(|partition| {
                partition.life() == life && partition.account.first_not_done().is_none()
            });
            if is_done {
                core.seek(partition, Phase::Fetching(Position::at(next)))?;
            }
            Ok(is_done)
        });
        passed.unwrap_or(false)
    }

    /// The present life of a partition, if it is assigned.
    pub(crate) fn life_of(&self, partition: &TopicPartition) -> Option<Life> {
        self.shared.lock().partitions.get(partition).map(|partition| partition.life())
    }

    /// Whether what was handed out in this life still counts.
    pub(crate) fn is_live(&self, partition: &TopicPartition, life: Life) -> bool {
        self.shared.lock().partitions.get(partition).is_some_and(|partition| partition.life() == life)
    }

    /// Commits the frontier of every partition. One that is gone with its topic is named in the log, and is no failure: there
    /// is nothing that could be done about it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), but for partitions that are gone.
    ///
    /// # Cancel safety
    /// A dropped commit is still sent; only its result is lost. The future does not hold the consumer.
    pub(crate) fn commit_done(&self) -> impl Future<Output = Result<()>> + Send + Sync + use<> {
        let committing = self.shared.begin_commit(None);
        async {
            match async { committing?.await }.await {
                Err(error) if error.code().is_some_and(|told| told.0 == UNKNOWN_TOPIC_OR_PARTITION) => {
                    tracing::warn!(%error, "what was handled of the partition cannot be committed any more");
                    Ok(())
                }
                outcome => outcome,
            }
        }
    }

    /// Makes the rebalance listener's calls as they come, and never returns: for a caller that waits for something else
    /// than a poll.
    ///
    /// # Cancel safety
    /// If dropped, it leaves the call it is at to the next poll.
    pub(crate) async fn keep_listener_informed(&self) -> Infallible {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            Listening::tell(&self.shared, None).await;
            changed.await;
        }
    }

    /// What has happened to the assignment since this was last asked, in order.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        self.shared.lock().take_changes()
    }

    /// Waits until [`take_changes`](Self::take_changes) has something.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) when the consumer is closed, or why its driver has ended: at once, and
    /// whenever it is asked again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn changed(&self) -> Result<()> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let core = self.shared.lock();
                if core.has_changes() {
                    return Ok(());
                }
                core.check_open()?;
            }
            changed.await;
        }
    }
}
