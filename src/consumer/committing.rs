//! Commits and committed offsets, as users ask for them; the order they are sent in is the core's.
//!
//! A commit is queued when it is asked for and is sent whether or not somebody waits for it. It must never hold a consumer alive.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::{
    KafkaConsumer, Shared,
    ledger::Life,
    logs::{Retrying, all_found},
    lookups::FoundOffset,
    offsets::{Offset, Offsets, Since},
    requests,
};
use crate::{
    cluster::TopicId,
    driver,
    error::{Error, ErrorKind, Result},
    record::{OffsetAndMetadata, TopicPartition},
};

impl KafkaConsumer {
    /// Commits the position of every partition: everything handed out so far, whether covered or not.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`] with the coordinator's reason: after a rebalance the partitions are another member's, and it
    /// reads these records again. That something was lost uncommitted is told once, and by every call before the member is
    /// back in its group, with nothing committed; the next call commits what is this member's.
    /// [`ErrorKind::Timeout`] after `default.api.timeout.ms`; [`ErrorKind::Closed`] after
    /// [`close`](Self::close).
    ///
    /// # Cancel safety
    /// A dropped commit is still sent; only its result is lost.
    pub async fn commit(&self) -> Result<()> {
        self.commit_inner(None).await
    }

    /// Commits these offsets: each is that of the next record to read, so one more than the last one done. An `i64`, or with
    /// text and leader epoch an [`OffsetAndMetadata`].
    ///
    /// # Errors
    /// As for [`commit`](Self::commit), but of these partitions alone, whatever was lost beside them. With topics subscribed to,
    /// nothing is committed if one of the partitions is not this member's now, or begins beyond its offset (Java commits, and may
    /// set back who has it now). [`ErrorKind::InvalidArgument`] for a negative offset or a text above 32,767 bytes;
    /// brokers take 4096 (`offset.metadata.max.bytes`) and refuse more.
    ///
    /// # Cancel safety
    /// A dropped commit is still sent; only its result is lost.
    pub async fn commit_offsets<O: Into<OffsetAndMetadata>>(
        &self,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<()> {
        let offsets = checked(offsets, Since::Now)?;
        self.commit_inner(Some(offsets)).await
    }

    pub(super) async fn commit_inner(&self, offsets: Option<Offsets>) -> Result<()> {
        self.shared.begin_commit(offsets)?.await
    }

    /// A handle through which any task can commit while others poll. It does not keep the consumer alive.
    pub fn committer(&self) -> Committer {
        let made_in = self.shared.lock().partitions.now();
        Committer { shared: Arc::downgrade(&self.shared), made_in }
    }

    /// The group's committed offsets, from the coordinator; `None` for a partition without one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a `group.id`; the coordinator's error; [`ErrorKind::Timeout`] after
    /// `default.api.timeout.ms`; [`ErrorKind::Closed`] after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn committed(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, Option<OffsetAndMetadata>>> {
        self.shared.lock().check_open()?;
        let mut partitions: Vec<_> = partitions.into_iter().collect();
        partitions.sort();
        let deadline = self.api_deadline();
        let mut retrying = Retrying::new(&self.shared, deadline);
        let found = loop {
            let (shared, asked) = (Arc::clone(&self.shared), partitions.clone());
            let found = driver::apart(async move {
                let ids = shared.topic_ids(&asked);
                requests::find_committed(&shared, None, &asked, &ids, deadline).await
            });
            let found = found.await;
            match found.and_then(|found| all_found("OffsetFetch", partitions.iter(), &found)) {
                Err(error) => retrying.pause_after(error).await?,
                Ok(found) => break found,
            }
        };
        let offset = |FoundOffset { offset, leader_epoch, metadata, .. }: FoundOffset| {
            let leader_epoch = Some(leader_epoch).filter(|epoch| *epoch >= 0);
            (offset >= 0).then(|| OffsetAndMetadata {
                leader_epoch,
                ..OffsetAndMetadata::new(offset).with_metadata(metadata)
            })
        };
        Ok(found.into_iter().map(|(key, place)| (key, offset(place))).collect())
    }
}

impl Shared {
    /// Queues a commit, of all positions unless offsets are named.
    pub(super) fn begin_commit(&self, offsets: Option<Offsets>) -> Result<Committing> {
        let deadline = self.api_deadline();
        let receipt = self.change(|core, _| core.commit(offsets, deadline))?;
        Ok(Committing(receipt.map_or(Waiting::Done(Some(Ok(()))), Waiting::For)))
    }

    /// The ids of the partitions' topics, as far as they are known.
    pub(super) fn topic_ids(&self, partitions: &[TopicPartition]) -> Vec<TopicId> {
        let core = self.lock();
        partitions.iter().map(|key| core.topic_id(key)).collect()
    }
}

/// A handle through which any task can commit; see [`KafkaConsumer::committer`]. Cheap to clone.
///
/// Commits are sent in the order in which they were made, by whichever task: none overtakes another. While one is out, those that
/// wait are merged into one request, with the last offset of each partition; 10,000 may wait, and more are refused with
/// [`ErrorKind::Timeout`]. Exactly the named offsets are committed: if several tasks handle records of one partition, they must
/// agree on the first record that is not done.
///
/// An offset alone does not say which log it belongs to. Once a topic was deleted and created again, an older committer commits
/// for it only offsets that come with records of the new one
/// ([`PartitionRecords::offset_after`](crate::PartitionRecords::offset_after)), and refuses others with
/// `UnknownTopicOrPartition`: get a new committer then.
#[derive(Clone)]
pub struct Committer {
    shared: Weak<Shared>,
    made_in: Life,
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}

impl Committer {
    /// As [`KafkaConsumer::commit_offsets`].
    ///
    /// # Errors
    /// As there; [`ErrorKind::Closed`] once the consumer is gone.
    ///
    /// # Cancel safety
    /// A dropped commit is still sent; only its result is lost.
    pub async fn commit_offsets<O: Into<OffsetAndMetadata>>(
        &self,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<()> {
        self.commit_async(offsets)?.await
    }

    /// Starts a commit without waiting for it. Its place in the order is fixed when this returns; the returned outcome need not
    /// be awaited.
    ///
    /// # Errors
    /// As [`commit_offsets`](Self::commit_offsets), for what is wrong before anything is sent.
    pub fn commit_async<O: Into<OffsetAndMetadata>>(
        &self,
        offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    ) -> Result<Committing> {
        let offsets = checked(offsets, Since::Handle(self.made_in))?;
        let shared = self.shared.upgrade().ok_or_else(|| Error::closed("consumer"))?;
        shared.begin_commit(Some(offsets))
    }
}

/// The outcome of a commit that is on its way; see [`Committer::commit_async`]. Its errors are those of
/// [`KafkaConsumer::commit_offsets`]. Dropped, the commit goes on.
#[must_use = "whether the commit has succeeded is known only when this is awaited"]
pub struct Committing(Waiting);

/// It needs no runtime: the consumer's driver keeps the deadline.
enum Waiting {
    For(oneshot::Receiver<Result<()>>),
    Done(Option<Result<()>>),
}

impl fmt::Debug for Committing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committing").finish_non_exhaustive()
    }
}

impl Future for Committing {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &mut self.0 {
            Waiting::For(receipt) => match Pin::new(receipt).poll(cx) {
                Poll::Ready(Ok(result)) => result,
                Poll::Ready(Err(_gone)) => Err(Error::closed("consumer")),
                Poll::Pending => return Poll::Pending,
            },
            Waiting::Done(result) => result.take().unwrap_or_else(|| {
                let text = "the future of a commit was polled after it had ended";
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }),
        };
        self.0 = Waiting::Done(None);
        Poll::Ready(result)
    }
}

fn checked<O: Into<OffsetAndMetadata>>(
    offsets: impl IntoIterator<Item = (TopicPartition, O)>,
    since: Since,
) -> Result<Offsets> {
    let mut checked = Offsets::new();
    for (key, offset) in offsets {
        let offset: OffsetAndMetadata = offset.into();
        offset.check(&key)?;
        let OffsetAndMetadata { offset, leader_epoch, metadata, origin } = offset;
        let leader_epoch = leader_epoch.unwrap_or(-1);
        let since = origin.life().map_or(since, |life| Since::Records(Life::numbered(life)));
        checked.insert(key, Offset { offset, leader_epoch, metadata, since, ..Offset::default() });
    }
    Ok(checked)
}
